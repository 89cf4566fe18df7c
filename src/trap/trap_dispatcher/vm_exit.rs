//! Part of layer 32, TrapDispatcher: what follows from a trap of a VM.
//!
//! | primitive                | answers                                     | lock    |
//! |--------------------------|---------------------------------------------|---------|
//! | [`vm_exit_dispatcher`]   | a synchronous exception of a VM             | by case |
//!
//! Every exception class that a VM can cause has its outcome in one table, [`outcome`]; a class that is not in it is one that the core did not ask
//! for, and an undefined instruction for the VM. The published function panics for all but two (K §3.2, §8.2 M1).
//!
//! Source: SeKVM `vm_exit_dispatcher`; K §3.2.
#![forbid(unsafe_code)]

use super::super::Core;
use super::super::fault_handler::{pvops, sys64};
use super::super::mem_handler::handle_vm_abort;
use crate::abstract_machine::Machine;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::Syndrome;
use crate::abstract_machine::shadow::{Context, ShadowReg};
use crate::interface::mailbox::ExitReason;
use crate::vcpu::Action;
use crate::vcpu::el1::VmEl1;
use crate::vcpu::vcpu_ops_aux::{step_over, take_breakpoint, take_illegal, take_undefined};
use crate::vm::Active;

/// What becomes of an exception class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Exit Wfx.
    Wait,
    /// HVC: `core_handle_pvops`.
    Hvc,
    /// SMC: the same. It traps with PC on the instruction.
    Smc,
    /// `core_handle_sys64`.
    Register,
    /// `handle_vm_abort`.
    Abort,
    /// The VM gets its FP registers, and goes on; if it has them, it takes an undefined instruction.
    Fp,
    /// The VM takes an illegal-state exception.
    Illegal,
    /// The VM takes its breakpoint itself.
    Breakpoint,
    /// The VM takes an undefined instruction.
    Undefined,
}

/// What becomes of exception class `class`. Arm ARM D24.2.40.
pub const fn outcome(class: u8) -> Outcome {
    match class {
        // WFI; WFE does not trap.
        0x01 => Outcome::Wait,
        // FP and SIMD, in either state of execution: it traps as long as the host's registers are in place.
        0x07 => Outcome::Fp,
        // An illegal return: the CPU brings it to EL1 by itself.
        0x0e => Outcome::Illegal,
        // HVC and SMC of AArch64.
        0x16 => Outcome::Hvc,
        0x17 => Outcome::Smc,
        // MSR, MRS and system instructions.
        0x18 => Outcome::Register,
        // Instruction and data abort of EL1 or EL0.
        0x20 | 0x24 => Outcome::Abort,
        // BRK: goes to EL1 by itself, for debug exceptions are not routed to EL2.
        0x3c => Outcome::Breakpoint,
        // Not there for VMs: coprocessor traps of AArch32 (0x03 to 0x06, 0x08, 0x0c), pointer authentication (0x09, 0x1c), LS64 (0x0a),
        // branch targets (0x0d), SVC, HVC and SMC of AArch32 (0x11 to 0x13), SVC (0x15), SVE (0x19), ERET (0x1a), SME (0x1d), alignment (0x22, 0x26), FP exceptions
        // (0x28, 0x2c), SError (0x2f: another vector), breakpoint, step and watchpoint (0x30 to 0x35), AArch32 BKPT and vector catch (0x38, 0x3a), and what no
        // manual knows yet.
        _ => Outcome::Undefined,
    }
}

/// The vCPU `active`, which this CPU runs and whose registers are `ctxt`, trapped. K: `vm_exit_dispatcher`.
#[inline]
pub fn vm_exit_dispatcher<M: Machine>(core: &Core<M>, active: &Active, ctxt: &mut Context) -> Action {
    let machine = core.machine();
    let syndrome = Syndrome::new(ctxt.get(ShadowReg::EsrEl2));
    match outcome(syndrome.class_number()) {
        Outcome::Hvc => pvops::call(core, active, ctxt, syndrome),
        Outcome::Smc => {
            step_over(ctxt);
            pvops::call(core, active, ctxt, syndrome)
        }
        Outcome::Register => sys64::core_handle_sys64(core, active, ctxt, syndrome),
        Outcome::Abort => handle_vm_abort(core, active.vm, ctxt, syndrome),
        Outcome::Wait => Action::ToHost(ExitReason::Wfx),
        other => seldom(machine, ctxt, syndrome, other),
    }
}

// Out of line, so that the calls pay for nothing of this.
#[cold]
#[inline(never)]
fn seldom<M: Machine>(machine: &M, ctxt: &mut Context, syndrome: Syndrome, outcome: Outcome) -> Action {
    if outcome == Outcome::Fp && machine.fpsimd_open(ctxt) {
        return Action::Resume;
    }
    let vm = &mut VmEl1::loaded(machine, ctxt);
    match outcome {
        Outcome::Illegal => take_illegal(vm),
        Outcome::Breakpoint => take_breakpoint(vm, syndrome),
        _ => {
            machine.count(Event::VmUndefined);
            take_undefined(vm);
        }
    }
    Action::Resume
}
