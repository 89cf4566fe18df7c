//! Part of layer 31, FaultHandler: the calls of a VM.
//!
//! | primitive               | does                                           | lock                               |
//! |-------------------------|------------------------------------------------|------------------------------------|
//! | [`core_handle_pvops`]   | serves a call, or says that it is the host's   | by call: Vm; S2Page, Npt           |
//!
//! | calls                                                       | outcome                                                         |
//! |-------------------------------------------------------------|-----------------------------------------------------------------|
//! | PSCI_VERSION, FEATURES, MIGRATE_INFO_TYPE, AFFINITY_INFO, SMCCC | served                                                       |
//! | CPU_ON                                                      | served: the start stands. Success is also exit Psci: the host schedules the vCPU |
//! | CPU_OFF                                                     | exit Psci; the vCPU does not run again until CPU_ON             |
//! | CPU_SUSPEND                                                 | exit Wfx; then x0 = 0                                           |
//! | SYSTEM_OFF, SYSTEM_RESET, SYSTEM_RESET2                     | exit SystemOff; the VM never runs again                         |
//! | SMCCC_ARCH_WORKAROUND_1 and 3                               | passed on, if the machine's firmware has them                   |
//! | random numbers (TRNG)                                       | served ([`super::trng`])                                        |
//! | UID and features of KVM's guest services                    | served                                                          |
//! | share and unshare, HypSec's and KVM's; MMIO guard           | served in a protected VM; NOT_SUPPORTED in an ordinary one, as KVM does |
//! | anything else                                               | NOT_SUPPORTED                                                   |
//!
//! Three dialects (HypSec, KVM, later the Realm Services Interface) lead to one mechanism: `grant_vm_page` and `revoke_vm_page`.
//! A function number is what w0 holds; arguments are whole registers, but for the 32-bit call for random numbers. A call on a range does [`STEP`] pages and is then made
//! again by the VM itself, with what is left in x1 and x2: so interrupts get in however long the range is.
//!
//! Source: SeKVM `core_handle_pvops`; K §3.1, §3.5 (`prep_hvc`), §4.2, §8.2 M3 (the range is x1, x2); Arm DEN 0022, DEN 0028.
#![forbid(unsafe_code)]

use super::super::Core;
use super::trng::core_handle_trng;
use crate::abstract_machine::addr::{Gfn, Ipa, PAGE_SIZE, VcpuId, VmId};
use crate::abstract_machine::regs::{INSTRUCTION_SIZE, Syndrome};
use crate::abstract_machine::shadow::{Context, ShadowReg};
use crate::abstract_machine::{Machine, SmcOutcome};
use crate::interface::guest::{
    HYPSEC_SET_DESC_PFN, HYPSEC_UNSET_DESC_PFN, INVALID_PARAMETER, KVM_FEATURES, KVM_HYP_MEMINFO, KVM_MEM_SHARE,
    KVM_MEM_UNSHARE, KVM_MMIO_GUARD_ENROLL, KVM_MMIO_GUARD_INFO, KVM_MMIO_GUARD_MAP, KVM_MMIO_GUARD_UNMAP, KVM_UID,
    NOT_SUPPORTED, SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION, SUCCESS,
    VENDOR_CALL_UID, psci, trng,
};
use crate::interface::mailbox::ExitReason;
use crate::memory::mem_manager::Denied;
use crate::memory::memory_ops::{grant_vm_page, revoke_vm_page};
use crate::npt::VmKind;
use crate::vcpu::Action;
use crate::vm::boot_ops::{PsciResult, psci_affinity_info, psci_cpu_off, psci_cpu_on};
use crate::vm::vm_power::{end_vm, vm_kind};
use crate::vm::{Active, mmio_guard};

/// Pages that one exit for a range works on.
pub const STEP: u64 = 32;

/// PSCI 1.1 and SMCCC 1.1.
const VERSION_1_1: u64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: there is nothing to migrate.
const NO_TRUSTED_OS: u64 = 2;
/// The functions of KVM's guest services that every VM has: FEATURES.
const FEATURES_OF_ALL: u64 = 1 << 0;
/// HYP_MEMINFO, MEM_SHARE, MEM_UNSHARE and the four of the MMIO guard.
const FEATURES_OF_PROTECTED: u64 = 0b1_1111_1100;

/// The vCPU's next step is the call whose number its x0 holds, another than the versions; PC stands behind the instruction. K: `core_handle_pvops`.
// Out of line, so that the null calls pay for nothing of this.
#[inline(never)]
pub fn core_handle_pvops<M: Machine>(core: &Core<M>, vmid: VmId, vcpuid: VcpuId, ctxt: &mut Context) -> Action {
    let [x0, x1, x2, x3, ..] = ctxt.x;
    let function = x0 & u64::from(u32::MAX);
    let result = match function {
        SMCCC_ARCH_FEATURES if is_workaround(x1) => firmware(core, SMCCC_ARCH_FEATURES, x1 & u64::from(u32::MAX)),
        psci::FEATURES | SMCCC_ARCH_FEATURES => features(function, x1),
        SMCCC_ARCH_WORKAROUND_1 | SMCCC_ARCH_WORKAROUND_3 => firmware(core, function, 0),
        psci::MIGRATE_INFO_TYPE => NO_TRUSTED_OS,
        psci::AFFINITY_INFO => psci_affinity_info(core.vms(), vmid, x1).x0(),
        psci::CPU_ON => match psci_cpu_on(core.vms(), vmid, x1, x2, x3) {
            PsciResult::Success => return Action::ToHost(ExitReason::Psci),
            error => error.x0(),
        },
        psci::CPU_OFF => {
            psci_cpu_off(core.vms(), vmid, vcpuid);
            return Action::ToHost(ExitReason::Psci);
        }
        psci::CPU_SUSPEND => {
            // An exit for WFI goes on behind the instruction, and then with SUCCESS (`prep_wfx`).
            again(ctxt);
            return Action::ToHost(ExitReason::Wfx);
        }
        psci::SYSTEM_OFF | psci::SYSTEM_RESET | psci::SYSTEM_RESET2 => {
            // The VM exists: it runs.
            let _ = end_vm(core.vms(), vmid);
            return Action::ToHost(ExitReason::SystemOff);
        }
        _ if trng::is_call(function) => core_handle_trng(core, function, ctxt),
        VENDOR_CALL_UID => {
            (0..).zip(KVM_UID).for_each(|(n, word)| ctxt.set(ShadowReg::X(n), word));
            return Action::Resume;
        }
        KVM_FEATURES => {
            let more = if is_protected(core, vmid) { FEATURES_OF_PROTECTED } else { 0 };
            (1..4).for_each(|n| ctxt.set(ShadowReg::X(n), 0));
            FEATURES_OF_ALL | more
        }
        _ if !is_protected(core, vmid) => NOT_SUPPORTED,
        KVM_HYP_MEMINFO | KVM_MMIO_GUARD_INFO => PAGE_SIZE,
        KVM_MMIO_GUARD_ENROLL => mmio_guard::enroll(core.vms(), vmid).map_or(INVALID_PARAMETER, |()| SUCCESS),
        KVM_MMIO_GUARD_MAP => page_call(x1, |gfn| mmio_guard::map(core.vms(), vmid, gfn).is_ok()),
        KVM_MMIO_GUARD_UNMAP => page_call(x1, |gfn| mmio_guard::unmap(core.vms(), vmid, gfn).is_ok()),
        KVM_MEM_SHARE => page_call(x1, |gfn| grant_vm_page(core.memory(), vmid, gfn).is_ok()),
        KVM_MEM_UNSHARE => page_call(x1, |gfn| revoke_vm_page(core.memory(), vmid, gfn).is_ok()),
        HYPSEC_SET_DESC_PFN => match range_call(ctxt, |gfn| grant_vm_page(core.memory(), vmid, gfn)) {
            Some(result) => result,
            None => return Action::Resume,
        },
        HYPSEC_UNSET_DESC_PFN => match range_call(ctxt, |gfn| revoke_vm_page(core.memory(), vmid, gfn)) {
            Some(result) => result,
            None => return Action::Resume,
        },
        _ => NOT_SUPPORTED,
    };
    ctxt.set(ShadowReg::X(0), result);
    Action::Resume
}

/// The VM makes the call once more. An SMC traps with PC on the instruction, which then was stepped over: the same.
fn again(ctxt: &mut Context) {
    let pc = ctxt.get(ShadowReg::Pc);
    ctxt.set(ShadowReg::Pc, pc.wrapping_sub(INSTRUCTION_SIZE));
}

fn is_protected<M: Machine>(core: &Core<M>, vmid: VmId) -> bool {
    vm_kind(core.vms(), vmid) == Ok(VmKind::Protected)
}

/// Workarounds that have neither arguments nor a state, so that a VM may make firmware do them. (SMCCC_ARCH_WORKAROUND_2 switches one on and off for the CPU.)
fn is_workaround(function: u64) -> bool {
    matches!(function & u64::from(u32::MAX), SMCCC_ARCH_WORKAROUND_1 | SMCCC_ARCH_WORKAROUND_3)
}

/// Whether firmware has done a call that the host may make too. A VM wanders between CPUs that may not all need a workaround: so "not required here" (1) is told
/// as "there", and the calls themselves give nothing back (Arm DEN 0028 §7).
fn firmware<M: Machine>(core: &Core<M>, function: u64, argument: u64) -> u64 {
    match core.machine().host_smc([function, argument, 0, 0], &|_| false) {
        SmcOutcome::Return([x0, ..]) if x0 != NOT_SUPPORTED => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}

/// PSCI_FEATURES and SMCCC_ARCH_FEATURES: whether there is a call that the core itself serves.
fn features(call: u64, function: u64) -> u64 {
    let is_there = match function & u64::from(u32::MAX) {
        SMCCC_VERSION | SMCCC_ARCH_FEATURES => true,
        psci::VERSION
        | psci::FEATURES
        | psci::MIGRATE_INFO_TYPE
        | psci::AFFINITY_INFO
        | psci::CPU_ON
        | psci::CPU_OFF
        | psci::CPU_SUSPEND
        | psci::SYSTEM_OFF
        | psci::SYSTEM_RESET
        | psci::SYSTEM_RESET2 => call == psci::FEATURES,
        _ => false,
    };
    if is_there { SUCCESS } else { NOT_SUPPORTED }
}

/// A call on the page at `gpa`.
fn page_call(gpa: u64, act: impl FnOnce(Gfn) -> bool) -> u64 {
    let gpa = Ipa::new(gpa);
    if gpa.is_aligned(PAGE_SIZE) && act(Gfn::containing(gpa)) { SUCCESS } else { INVALID_PARAMETER }
}

/// A call on the `x2` bytes from `x1` on. `None`: a part is done, and the VM makes the call again for the rest. An error leaves x1 and x2 at what was not done.
fn range_call(ctxt: &mut Context, mut act: impl FnMut(Gfn) -> Result<(), Denied>) -> Option<u64> {
    let (gpa, size) = (ctxt.get(ShadowReg::X(1)), ctxt.get(ShadowReg::X(2)));
    let end = gpa.checked_add(size);
    let (true, true, Some(end)) = (gpa.is_multiple_of(PAGE_SIZE), size.is_multiple_of(PAGE_SIZE), end) else {
        return Some(INVALID_PARAMETER);
    };
    let stop = end.min(gpa.saturating_add(STEP * PAGE_SIZE));
    let mut at = gpa;
    while at < stop && act(Gfn::containing(Ipa::new(at))).is_ok() {
        at += PAGE_SIZE;
    }
    ctxt.set(ShadowReg::X(1), at);
    ctxt.set(ShadowReg::X(2), end - at);
    if at == end {
        return Some(SUCCESS);
    }
    if at < stop {
        return Some(INVALID_PARAMETER);
    }
    again(ctxt);
    None
}

/// A call of the VM by HVC or SMC, with PC behind it. An immediate other than 0 is another interface, which does not exist.
#[inline]
pub fn call<M: Machine>(core: &Core<M>, active: &Active, ctxt: &mut Context, syndrome: Syndrome) -> Action {
    if syndrome.immediate() != 0 {
        ctxt.set(ShadowReg::X(0), NOT_SUPPORTED);
        return Action::Resume;
    }
    // The null calls are what a VM measures: nothing else stands before them.
    if matches!(ctxt.x[0] & u64::from(u32::MAX), psci::VERSION | SMCCC_VERSION) {
        ctxt.set(ShadowReg::X(0), VERSION_1_1);
        return Action::Resume;
    }
    core_handle_pvops(core, active.vm, active.vcpu, ctxt)
}
