//! Layer 33, TrapHandlerRaw: registers in, dispatcher, registers out.
//!
//! | primitive                    | is                                                        |
//! |------------------------------|-----------------------------------------------------------|
//! | [`host_hvc_handler_raw`]     | host_to_core; host_hvc_dispatcher; core_to_host           |
//! | [`host_smc_handler_raw`]     | the same for an SMC, which does not step over itself      |
//! | [`host_npt_handler_raw`]     | host_to_core; handle_host_stage2_fault; core_to_host      |
//! | [`host_undefined_raw`]       | an undefined instruction into the host                    |
//! | [`host_serror_raw`]          | an SError back to the host                                |
//! | [`host_vcpu_run_handler_raw`]| save_host; restore_vm                                     |
//! | [`vm_exit_handler_raw`]      | vm_exit_dispatcher, handle_interrupt, or why it is the host's |
//! | [`leave_vm_raw`]             | save_vm; restore_host                                     |
//!
//! host_to_core and core_to_host of the proof (x0-x30 to the core and back) are boot/vectors.S and the [`TrapFrame`].
//! No lock of its own.
//!
//! Below: TrapDispatcher. Above: TrapHandler. Specification: `spec::trap`. Source: SeKVM layer TrapHandlerRaw; K §3.6.
#![forbid(unsafe_code)]

use super::Core;
use super::fault_handler;
use super::fault_handler::interrupts::handle_interrupt;
use super::trap_dispatcher;
use super::trap_dispatcher::vm_exit::vm_exit_dispatcher;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::{Hypercall, INSTRUCTION_SIZE, SPSR, TrapFrame};
use crate::abstract_machine::shadow::Context;
use crate::abstract_machine::{ExitCode, Machine, SmcOutcome};
use crate::interface::CallError;
use crate::interface::mailbox::ExitReason;
use crate::vcpu::Action;
use crate::vcpu::ctxt_switch::{self, Running};
use crate::vm::vm_power::end_vm;
use crate::vm::{Active, host_calls};

/// The host made a hypercall, with these registers; x0 to x3 are the answer. K: `host_hvc_handler_raw`.
#[inline]
pub fn host_hvc_handler_raw<M: Machine>(core: &Core<M>, args: &mut Hypercall) {
    core.machine().count(Event::HostHypercall);
    // The interface is HVC #0; another immediate is another interface, which does not exist.
    let answer = match core.machine().read_esr_el2().immediate() {
        0 => trap_dispatcher::host_hvc_dispatcher(core, args),
        _ => Err(CallError::NotSupported),
    };
    match answer {
        Ok([x0, x1, x2, x3]) => (args[0], args[1], args[2], args[3]) = (x0, x1, x2, x3),
        Err(error) => args[0] = error.x0(),
    }
}

/// The host runs vCPU `x2` of VM `x1`, and is away when this returns `Ok`. K: `host_vcpu_run_handler_raw`.
///
/// # Errors
/// As [`ctxt_switch::restore_vm`]; [`CallError::NoSuchObject`] for numbers that no VM or vCPU has. The host is back then.
pub fn host_vcpu_run_handler_raw<M: Machine>(core: &Core<M>, x1: u64, x2: u64) -> Result<Running<'_, M>, CallError> {
    let machine = core.machine();
    if machine.read_esr_el2().immediate() != 0 {
        return Err(CallError::NotSupported);
    }
    let (vmid, vcpuid) = (host_calls::vm(x1)?, host_calls::vcpu(x2)?);
    ctxt_switch::save_host(machine);
    let running = ctxt_switch::restore_vm(core.vms(), vmid, vcpuid);
    match running {
        Ok(_) => machine.count(Event::VcpuEntry),
        Err(_) => ctxt_switch::restore_host(machine),
    }
    running
}

/// The vCPU that this CPU runs left by `code`. K: `vm_exit_handler_raw`.
#[inline]
pub fn vm_exit_handler_raw<M: Machine>(core: &Core<M>, active: &Active, ctxt: &mut Context, code: ExitCode) -> Action {
    match code {
        ExitCode::Trap => vm_exit_dispatcher(core, active, ctxt),
        ExitCode::Irq => handle_interrupt(core, active, ctxt),
        ExitCode::SError => failed(core, active),
    }
}

/// An SError while the VM ran: what it did cannot be undone, so it does not run on. The machine does.
#[cold]
#[inline(never)]
fn failed<M: Machine>(core: &Core<M>, active: &Active) -> Action {
    log::warn!("VM {}: SError while it ran; it is switched off", active.vm.raw());
    // It exists: it runs.
    let _ = end_vm(core.vms(), active.vm);
    Action::ToHost(ExitReason::Failed)
}

/// The vCPU that this CPU runs leaves for `reason`; the host is back afterwards, and hears this.
pub fn leave_vm_raw<M: Machine>(core: &Core<M>, running: Running<'_, M>, reason: ExitReason) -> ExitReason {
    let machine = core.machine();
    let reason = ctxt_switch::save_vm(core.vms(), running, reason);
    ctxt_switch::restore_host(machine);
    machine.count(event_of(reason));
    reason
}

const fn event_of(reason: ExitReason) -> Event {
    match reason {
        ExitReason::Irq => Event::ExitIrq,
        ExitReason::Timer => Event::ExitTimer,
        ExitReason::Wfx => Event::ExitWfx,
        ExitReason::MmioRead => Event::ExitMmioRead,
        ExitReason::MmioWrite => Event::ExitMmioWrite,
        ExitReason::MemoryFault => Event::ExitMemoryFault,
        ExitReason::Psci => Event::ExitPsci,
        ExitReason::Sysreg => Event::ExitSysreg,
        ExitReason::SystemOff => Event::ExitSystemOff,
        ExitReason::Stopped => Event::ExitStopped,
        ExitReason::Failed => Event::ExitFailed,
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
pub fn host_npt_handler_raw<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {
    fault_handler::handle_host_stage2_fault(core, &mut frame.x);
}

/// An SError while the host ran. What it is about is the host's to judge: it takes it by itself, as a virtual one.
#[cold]
#[inline(never)]
pub fn host_serror_raw<M: Machine>(core: &Core<M>) {
    let (machine, syndrome) = (core.machine(), core.machine().read_esr_el2());
    let level = machine.count_to_tell(Event::HostSError);
    log::log!(
        level,
        "SError while the host ran, ESR_EL2 {:#x}, pc {:#x}: the host takes it",
        syndrome.raw(),
        machine.host_pc()
    );
    machine.pend_host_serror(syndrome);
}

/// The host did what it has no right to, or what the core has no answer to.
#[cold]
#[inline(never)]
pub fn host_undefined_raw<M: Machine>(core: &Core<M>) {
    let machine = core.machine();
    let level = machine.count_to_tell(Event::HostUndefined);
    log::log!(level, "host trap {:?} at pc {:#x} undefined", machine.read_esr_el2().class(), machine.host_pc());
    fault_handler::inject_undefined(machine);
}
