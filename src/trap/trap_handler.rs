//! Layer 34, TrapHandler: where boot/vectors.S comes in.
//!
//! | primitive              | the host                                                        |
//! |------------------------|-----------------------------------------------------------------|
//! | [`host_trap_handler`]  | trapped: decides by exception class                             |
//! | [`host_hvc_handler`]   | made a hypercall                                                |
//! | [`host_smc_handler`]   | made an SMC                                                     |
//! | [`host_npt_handler`]   | touched what its stage 2 does not map                           |
//! | [`host_serror_handler`] | met an SError                                                  |
//! | [`host_vcpu_run_handler`] | runs a vCPU                                                  |
//! | [`vm_exit_handler`]    | (a VM left: serves it, or says that it is the host's)           |
//!
//! Every class has a decided outcome; one that the core did not ask for is an undefined instruction for the host. After a
//! failure on any CPU none of them returns (`check` of the proof, K §1.2). No lock of its own.
//!
//! Below: TrapHandlerRaw. Specification: `spec::trap`. Source: SeKVM layer TrapHandler; K §3.6.
#![forbid(unsafe_code)]

use super::Core;
use super::trap_handler_raw;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::{ExceptionClass, Hypercall, TrapFrame};
use crate::abstract_machine::shadow::Context;
use crate::abstract_machine::{ExitCode, Machine};
use crate::interface::HostCall;
use crate::interface::mailbox::ExitReason;
use crate::vcpu::Action;
use crate::vcpu::ctxt_switch::Running;
use crate::vm::Active;

/// A synchronous exception of the host. A hypercall does not come here, but to [`host_hvc_handler`].
pub fn host_trap_handler<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {
    core.machine().check();
    match core.machine().read_esr_el2().class() {
        ExceptionClass::DataAbort | ExceptionClass::InstrAbort => host_npt_handler(core, frame),
        ExceptionClass::Smc64 => host_smc_handler(core, frame),
        ExceptionClass::Hvc64 | ExceptionClass::Sys64 | ExceptionClass::Other(_) => {
            trap_handler_raw::host_undefined_raw(core)
        }
    }
}

/// The host made a hypercall, with these registers. boot/vectors.S comes here by a short way of its own, because a host
/// may make many. K: `host_hvc_handler`.
#[inline]
pub fn host_hvc_handler<M: Machine>(core: &Core<M>, args: &mut Hypercall) {
    core.machine().check();
    if args[0] == HostCall::VcpuRun.function() {
        args[0] = host_vcpu_run_handler(core, args[1], args[2]);
    } else {
        trap_handler_raw::host_hvc_handler_raw(core, args);
    }
}

/// The host runs vCPU `x2` of VM `x1` until something is the host's to do: x0. Exits that the core serves go back to the VM at once; a
/// pending interrupt ends such a sequence, since the VM leaves by it before its next instruction. K: `host_vcpu_run_handler`.
#[inline(never)]
pub fn host_vcpu_run_handler<M: Machine>(core: &Core<M>, x1: u64, x2: u64) -> u64 {
    let mut running = match trap_handler_raw::host_vcpu_run_handler_raw(core, x1, x2) {
        Ok(running) => running,
        Err(error) => {
            core.machine().count(Event::HostHypercall);
            return error.x0();
        }
    };
    let Running { active, ctxt, .. } = &mut running;
    let reason = core.machine().run_vm(ctxt, |ctxt, code| match vm_exit_handler(core, active, ctxt, code) {
        Action::Resume => {
            core.machine().count(Event::VmExitServed);
            None
        }
        Action::ToHost(reason) => Some(reason),
    });
    // To the host an SError of its own is an interrupt that was there at once: it takes it when it is back.
    let reason = reason.unwrap_or(ExitReason::Irq);
    trap_handler_raw::leave_vm_raw(core, running, reason) as u64
}

/// The vCPU that this CPU runs left by `code`. After a failure on any CPU it does not return. K: `vm_exit_handler`.
#[inline]
pub fn vm_exit_handler<M: Machine>(core: &Core<M>, active: &Active, ctxt: &mut Context, code: ExitCode) -> Action {
    core.machine().check();
    trap_handler_raw::vm_exit_handler_raw(core, active, ctxt, code)
}

/// An SError while the host ran: it is the host's.
#[inline(never)]
pub fn host_serror_handler<M: Machine>(core: &Core<M>) {
    core.machine().check();
    trap_handler_raw::host_serror_raw(core);
}

/// The host made an SMC. Kept out of line: the way of a hypercall is short only without it.
#[inline(never)]
pub fn host_smc_handler<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {
    trap_handler_raw::host_smc_handler_raw(core, frame);
}

/// The host touched what its stage 2 does not map. Kept out of line as well. K: `host_npt_handler`.
#[inline(never)]
pub fn host_npt_handler<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {
    trap_handler_raw::host_npt_handler_raw(core, frame);
}
