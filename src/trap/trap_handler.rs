//! Layer 34, TrapHandler: where boot/vectors.S comes in.
//!
//! | primitive              | the host                                                        |
//! |------------------------|-----------------------------------------------------------------|
//! | [`host_trap_handler`]  | trapped: decides by exception class                             |
//! | [`host_hvc_handler`]   | made a hypercall                                                |
//! | [`host_smc_handler`]   | made an SMC                                                     |
//! | [`host_npt_handler`]   | touched what its stage 2 does not map                           |
//!
//! Every class has a decided outcome; one that the core did not ask for is an undefined instruction for the host. After a
//! failure on any CPU none of them returns (`check` of the proof, K §1.2). No lock of its own.
//!
//! Below: TrapHandlerRaw. Specification: `spec::trap`. Source: SeKVM layer TrapHandler; K §3.6.
#![forbid(unsafe_code)]

use super::Core;
use super::trap_handler_raw;
use crate::abstract_machine::Machine;
use crate::abstract_machine::regs::{ExceptionClass, TrapFrame};

/// A synchronous exception of the host.
pub fn host_trap_handler<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {
    core.machine().check();
    match core.machine().read_esr_el2().class() {
        ExceptionClass::Hvc64 => host_hvc_handler(core, frame.call_registers()),
        ExceptionClass::DataAbort | ExceptionClass::InstrAbort => host_npt_handler(core),
        ExceptionClass::Smc64 => host_smc_handler(core, frame),
        ExceptionClass::Sys64 | ExceptionClass::Other(_) => trap_handler_raw::host_undefined_raw(core),
    }
}

/// The host made a hypercall, with these x0 to x3. boot/vectors.S comes here by a short way of its own, because a host
/// may make many. K: `host_hvc_handler`.
#[inline]
pub fn host_hvc_handler<M: Machine>(core: &Core<M>, args: &mut [u64; 4]) {
    core.machine().check();
    trap_handler_raw::host_hvc_handler_raw(core, args);
}

/// The host made an SMC. Kept out of line: the way of a hypercall is short only without it.
#[inline(never)]
pub fn host_smc_handler<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {
    trap_handler_raw::host_smc_handler_raw(core, frame);
}

/// The host touched what its stage 2 does not map. Kept out of line as well. K: `host_npt_handler`.
#[inline(never)]
pub fn host_npt_handler<M: Machine>(core: &Core<M>) {
    trap_handler_raw::host_npt_handler_raw(core);
}
