//! Layer 30, MemHandler: a VM touched what its stage 2 does not map, or not for this.
//!
//! | primitive              | decides                                                       | lock       |
//! |------------------------|---------------------------------------------------------------|------------|
//! | [`handle_vm_abort`]    | memory that the host may add, a device, or an abort in the VM | Vm; Npt    |
//!
//! What it decides, in this order:
//!
//! | the access                                        | outcome                                                                      |
//! |---------------------------------------------------|------------------------------------------------------------------------------|
//! | its address is not known any more                 | again: another vCPU changed the stage-1 tables meanwhile; or walking them is an external abort, which the VM takes then |
//! | external abort, TLB conflict, unsupported atomic  | external abort in the VM                                                     |
//! | memory, and mapped by now                         | again: another vCPU's fault was served meanwhile (K §8.3 A4)                 |
//! | memory                                            | exit MemoryFault: its page, whether write or fetch, no register              |
//! | device, refused for its kind (fetch from a window) | external abort in the VM; not where the host has lent memory there (below)  |
//! | beyond 48 bits                                    | external abort in the VM                                                     |
//! | device, but not one that the VM has named to the MMIO guard | external abort in the VM                                           |
//! | device, cache maintenance                         | nothing: there is no cache                                                   |
//! | device, load or store that the syndrome describes | exit MmioRead or MmioWrite                                                   |
//! | device, anything else (fetch, walk, pair of registers) | exit MemoryFault                                                        |
//!
//! A store to memory that was lent read-only (A24) is a MemoryFault too: the host decides, by an abort or another mapping. To an ordinary VM it may lend some where devices are, as flash
//! memory is: what is refused there is an access to a device, as if nothing were mapped.
//! `clear_vm_stage2_range` of the proof's MemHandler is `vm_memory::reclaim_vm`.
//!
//! Below: CtxtSwitch. Above: FaultHandler. Specification: `spec::vcpu`. Source: SeKVM layer MemHandler, `prep_abort`; K §3.2, §3.5, §8.2 M1.
#![forbid(unsafe_code)]

use super::Core;
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Gfn, Ipa, VmId};
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::{ExceptionClass, FaultKind, Syndrome, hpfar_of_ipa, ipa_of_hpfar};
use crate::abstract_machine::shadow::{Context, ShadowReg};
use crate::interface::mailbox::ExitReason;
use crate::memory::memory_ops;
use crate::vcpu::Action;
use crate::vcpu::el1::VmEl1;
use crate::vcpu::vcpu_ops_aux::{step_over, take_external_abort};
use crate::vm::mmio_guard;
use crate::vm::vm_memory::is_vm_memory;

/// No table of a VM takes more bits of address; what is beyond is no address of a device either.
const MOST_IPA_BITS: u32 = 48;

/// Decides what follows from the data or instruction abort `syndrome` of the vCPU that this CPU runs.
#[inline(never)]
pub fn handle_vm_abort<M: Machine>(core: &Core<M>, vmid: VmId, ctxt: &mut Context, syndrome: Syndrome) -> Action {
    // What a driver of the VM does all the time; the row of the table is the same.
    if syndrome.is_access_to_nothing() && is_device(core, vmid, ipa_of_hpfar(ctxt.get(ShadowReg::HpfarEl2))) {
        return Action::ToHost(if syndrome.is_write() { ExitReason::MmioWrite } else { ExitReason::MmioRead });
    }
    other_abort(core, vmid, ctxt, syndrome)
}

/// Whether the VM may have the host serve an access at this address.
#[inline(always)]
fn is_device<M: Machine>(core: &Core<M>, vmid: VmId, ipa: Ipa) -> bool {
    !is_vm_memory(ipa) && ipa.raw() >> MOST_IPA_BITS == 0 && mmio_guard::allows(core.vms(), vmid, Gfn::containing(ipa))
}

/// An abort that is no driver's access.
#[inline(never)]
fn other_abort<M: Machine>(core: &Core<M>, vmid: VmId, ctxt: &mut Context, syndrome: Syndrome) -> Action {
    let machine = core.machine();
    let kind = syndrome.fault_kind();
    if kind == FaultKind::Other {
        return deny(machine, ctxt, syndrome);
    }
    let Some(ipa) = machine.fault_ipa(ctxt) else { return Action::Resume };
    // From here on the shadow's is the right one, also where the register's was not.
    ctxt.set(ShadowReg::HpfarEl2, hpfar_of_ipa(ipa));
    let gfn = Gfn::containing(ipa);
    if is_vm_memory(ipa) {
        let served = kind != FaultKind::Permission && memory_ops::walk_vm(core.memory(), vmid, gfn).is_some();
        return if served { Action::Resume } else { Action::ToHost(ExitReason::MemoryFault) };
    }
    let refused = kind == FaultKind::Permission && memory_ops::walk_vm(core.memory(), vmid, gfn).is_none();
    if refused || !is_device(core, vmid, ipa) {
        return deny(machine, ctxt, syndrome);
    }
    let is_data = syndrome.class() == ExceptionClass::DataAbort;
    if !is_data || syndrome.is_stage1_walk() {
        return Action::ToHost(ExitReason::MemoryFault);
    }
    if syndrome.is_cache_maintenance() {
        step_over(ctxt);
        return Action::Resume;
    }
    Action::ToHost(match (syndrome.is_described(), syndrome.is_write()) {
        (false, _) => ExitReason::MemoryFault,
        (true, false) => ExitReason::MmioRead,
        (true, true) => ExitReason::MmioWrite,
    })
}

#[cold]
#[inline(never)]
fn deny<M: Machine>(machine: &M, ctxt: &mut Context, syndrome: Syndrome) -> Action {
    machine.count(Event::VmAccessDenied);
    let va = ctxt.get(ShadowReg::FarEl2);
    take_external_abort(&mut VmEl1::loaded(machine, ctxt), syndrome, va);
    Action::Resume
}
