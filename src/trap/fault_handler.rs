//! Layer 31, FaultHandler: the host touched what its stage 2 does not map; a VM called, or touched a system register.
//!
//! | primitive                                | does                                                         | lock             |
//! |------------------------------------------|--------------------------------------------------------------|------------------|
//! | [`handle_host_stage2_fault`]             | maps what is the host's, passes on what is for a register behind the core; else an abort | Mmio; S2Page, then Npt |
//! | [`inject_undefined`]                     | an undefined instruction into the host                       | none             |
//! | [`core_handle_pvops`](pvops::core_handle_pvops) | a VM's call: served, or the host's                    | by call          |
//! | [`core_handle_trng`](trng::core_handle_trng) | a VM's call for random numbers                         | none             |
//! | [`core_handle_sys64`](sys64::core_handle_sys64) | a VM's trapped system register                        | Vm, for an SGI   |
//! | [`handle_interrupt`](interrupts::handle_interrupt) | a physical interrupt while a VM ran                | Vm, for an SGI   |
//!
//! A refused access never stops the machine (K §8.3 A22) and is never answered by a translation or permission fault, which the host would
//! take for one of its own and retry for ever. The host kills the process, or the thread, that did it.
//!
//! | refused                                | the host takes                      | Linux then                                                           |
//! |----------------------------------------|-------------------------------------|----------------------------------------------------------------------|
//! | data access of EL1                     | an alignment fault at the address   | goes on where the kernel has a fix-up for the access, else an oops    |
//! | everything of EL0; fetches of EL1      | a synchronous external abort        | a bus error; an oops                                                 |
//! | a walk of the host's own tables        | a synchronous external abort        | a bus error; an oops                                                 |
//!
//! A kernel touches what is not its own without being wrong: it reads on over the end of a page (`load_unaligned_zeropad`, for every path that a process names), and copies from and to
//! whatever pages a process has mapped. For that it has fix-ups, but not for external aborts: each would be an oops that any process of the host's can bring about. Of the faults that
//! Linux (`arch/arm64/mm/fault.c` of 6.4 and 6.6 was read) never retries, the alignment fault is the one whose handler looks for a fix-up first and takes no lock; that of a permission
//! fault may sleep, which path look-up must not, and for an address of a process it would map the page and try again.
//!
//! Below: MemHandler. Above: TrapDispatcher. Specification: `spec::trap`, `spec::vcpu`. Source: SeKVM layer FaultHandler; K §2 L31, §3.1, §3.6.
#![forbid(unsafe_code)]

pub mod id_registers;
pub mod interrupts;
pub mod pvops;
pub mod sys64;
pub mod trng;

use super::Core;
use crate::abstract_machine::Machine;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::{ExceptionClass, FaultKind, Syndrome};
use crate::memory::mem_manager::{self, Denied};
use crate::mmio::mmio_ops::emulate_mmio;
use crate::mmio::mmio_raw::Registers;
use crate::vcpu::el1::Host;
use crate::vcpu::vcpu_ops_aux::{is_el0, take_alignment_fault, take_external_abort, take_undefined};

/// Serves a stage-2 abort of the host, whose x0 to x30 are `x`: passes it on if it is to a register behind the core, maps the page if it is the host's, else injects an abort.
/// K: `handle_host_stage2_fault`.
pub fn handle_host_stage2_fault<M: Machine>(core: &Core<M>, x: &mut Registers) {
    let machine = core.machine();
    let syndrome = machine.read_esr_el2();
    let mapped = match syndrome.fault_kind() {
        FaultKind::Translation | FaultKind::AccessFlag => {
            let mediated = core.mediated().and_then(|mediated| emulate_mmio(core.memory(), mediated, syndrome, x));
            match mediated {
                Some(true) => return machine.count(Event::HostMmio),
                Some(false) => Err(Denied::NotOwner),
                None => mem_manager::map_page_host(core.memory(), machine.read_hpfar_el2()),
            }
        }
        // Mapped, and still refused: execution from a device window. Nothing else is mapped with less than all rights.
        FaultKind::Permission | FaultKind::Other => Err(Denied::NotOwner),
    };
    match mapped {
        Ok(()) => {
            // A CPU that failed meanwhile has taken the table away: what was mapped since must not be used.
            machine.check();
            machine.count(Event::HostFaultServed);
        }
        Err(reason) => deny(machine, syndrome, reason),
    }
}

fn deny<M: Machine>(machine: &M, syndrome: Syndrome, reason: Denied) {
    let level = machine.count_to_tell(Event::HostAccessDenied);
    // What the host made of an external abort of its own is one for it, too.
    let is_fixable = syndrome.class() == ExceptionClass::DataAbort
        && syndrome.fault_kind() != FaultKind::Other
        && !syndrome.is_stage1_walk()
        && !is_el0(machine.host_pstate());
    // HPFAR_EL2 means nothing after a permission fault, so both addresses are shown.
    log::log!(
        level,
        "host {} denied ({reason:?}), {:?} fault: va {:#x}, ipa {}, pc {:#x}: {} injected",
        if syndrome.is_write() { "write" } else { "read or fetch" },
        syndrome.fault_kind(),
        machine.read_far_el2(),
        machine.read_hpfar_el2(),
        machine.host_pc(),
        if is_fixable { "alignment fault" } else { "external abort" },
    );
    let take = if is_fixable { take_alignment_fault } else { take_external_abort };
    take(&mut Host(machine), syndrome, machine.read_far_el2());
}

/// Makes the host take an undefined-instruction exception for the instruction that trapped.
pub fn inject_undefined<M: Machine>(machine: &M) {
    take_undefined(&mut Host(machine));
}
