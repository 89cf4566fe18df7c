//! Layer 33, TrapHandlerRaw: registers in, dispatcher, registers out.
//!
//! | primitive                    | is                                                        |
//! |------------------------------|-----------------------------------------------------------|
//! | [`host_hvc_handler_raw`]     | host_to_core; host_hvc_dispatcher; core_to_host           |
//! | [`host_smc_handler_raw`]     | the same for an SMC, which does not step over itself      |
//! | [`host_npt_handler_raw`]     | host_to_core; handle_host_stage2_fault; core_to_host      |
//! | [`host_undefined_raw`]       | an undefined instruction into the host                    |
//!
//! host_to_core and core_to_host of the proof (x0-x30 to the core and back) are boot/vectors.S and the [`TrapFrame`].
//! No lock of its own.
//!
//! Below: TrapDispatcher. Above: TrapHandler. Specification: `spec::trap`. Source: SeKVM layer TrapHandlerRaw; K §3.6.
#![forbid(unsafe_code)]

use super::Core;
use super::fault_handler;
use super::trap_dispatcher;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::{SPSR, TrapFrame};
use crate::abstract_machine::{Machine, SmcOutcome};
use crate::interface::CallError;

const INSTRUCTION_SIZE: u64 = 4;
/// Undefined instructions that are told on the console; the rest is only counted.
const TOLD: u64 = 32;

/// The host made a hypercall, with these x0 to x3. K: `host_hvc_handler_raw`.
#[inline]
pub fn host_hvc_handler_raw<M: Machine>(core: &Core<M>, args: &mut [u64; 4]) {
    core.machine().count(Event::HostHypercall);
    // The interface is HVC #0; another immediate is another interface, which does not exist.
    let answer = match core.machine().read_esr_el2().immediate() {
        0 => trap_dispatcher::host_hvc_dispatcher(core, *args),
        _ => Err(CallError::NotSupported),
    };
    match answer {
        Ok(results) => *args = results,
        Err(error) => args[0] = error.x0(),
    }
}

/// The host made an SMC. The program counter still stands on it.
pub fn host_smc_handler_raw<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {
    let machine = core.machine();
    machine.count(Event::HostSmc);
    machine.set_host_pc(machine.host_pc().wrapping_add(INSTRUCTION_SIZE));
    if machine.read_esr_el2().immediate() != 0 {
        frame.x[0] = CallError::NotSupported.x0();
        return;
    }
    match trap_dispatcher::host_smc_dispatcher(core, *frame.call_registers()) {
        SmcOutcome::Return(results) => *frame.call_registers() = results,
        SmcOutcome::Restart { entry, context } => {
            frame.x = [0; 31];
            frame.x[0] = context;
            machine.set_host_pc(entry.raw());
            machine.set_host_pstate((SPSR::M::EL1h + SPSR::DAIF::Masked).value);
        }
    }
}

/// The host touched what its stage 2 does not map. K: `host_npt_handler_raw`.
pub fn host_npt_handler_raw<M: Machine>(core: &Core<M>) {
    fault_handler::handle_host_stage2_fault(core);
}

/// The host did what it has no right to, or what the core has no answer to.
#[cold]
#[inline(never)]
pub fn host_undefined_raw<M: Machine>(core: &Core<M>) {
    let machine = core.machine();
    let level = if machine.counted(Event::HostUndefined) < TOLD { log::Level::Warn } else { log::Level::Trace };
    log::log!(level, "host trap {:?} at pc {:#x} undefined", machine.read_esr_el2().class(), machine.host_pc());
    fault_handler::inject_undefined(machine);
}
