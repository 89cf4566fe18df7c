//! Part of layer 31, FaultHandler: system registers that trap from a VM.
//!
//! | primitive               | does                                                          | lock |
//! |-------------------------|---------------------------------------------------------------|------|
//! | [`core_handle_sys64`]   | serves the access, gives it to the host, or undefines it      | Vm, for an SGI |
//! | [`outcome`]             | which of these, as a table                                    | none |
//!
//! The published function steps over every access: a read leaves the register as it was, a write is dropped (K §3.1; M2: its
//! model stores the next PC into ESR_EL2). Here a read gives a value.
//!
//! Source: SeKVM `core_handle_sys64`; K §3.1, §8.2 M2; Arm ARM D24 for the encodings.
#![forbid(unsafe_code)]

use super::super::Core;
use super::{id_registers, interrupts};
use crate::abstract_machine::Machine;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::{Syndrome, SysregId};
use crate::abstract_machine::shadow::{Context, ShadowReg};
use crate::interface::mailbox::ExitReason;
use crate::vcpu::Action;
use crate::vcpu::el1::VmEl1;
use crate::vcpu::vcpu_ops_aux::{is_el0, step_over, take_undefined};
use crate::vm::Active;

/// What becomes of an access to a system register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// An ID register: reads are filtered, writes undefined.
    Id,
    /// Reads give this value, writes are ignored.
    Fixed(u64),
    /// The host emulates it.
    Host,
    /// The host emulates writes, where the GIC has system registers; there are no reads. What it has left to the core, the core serves.
    Sgi1,
    /// The same, but the host serves all.
    HostSgi,
    /// VMs do not have it.
    Undefined,
}

/// OSLSR_EL1: the lock is there (OSLM), and open.
const OS_LOCK_OPEN: u64 = 0b1000;

/// ICC_SRE_EL1: system registers, and no way around them (SRE, DFB, DIB).
const GIC_REGISTERS_ONLY: u64 = 0b111;

/// What becomes of an access to `reg` from EL1.
pub const fn outcome(reg: SysregId) -> Outcome {
    match (reg.op0, reg.op1, reg.crn, reg.crm, reg.op2) {
        _ if id_registers::is_id_register(reg) => Outcome::Id,
        // Implementation's own controls: ACTLR_EL1.
        (3, 0, 1, 0, 1) => Outcome::Fixed(0),
        // ICC_SGI1R_EL1; ICC_ASGI1R_EL1, ICC_SGI0R_EL1.
        (3, 0, 12, 11, 5) => Outcome::Sgi1,
        (3, 0, 12, 11, 6..=7) => Outcome::HostSgi,
        // ICC_SRE_EL1 (traps where there is a GICv3 for VMs).
        (3, 0, 12, 12, 5) => Outcome::Fixed(GIC_REGISTERS_ONLY),
        // CNTP_TVAL_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0.
        (3, 3, 14, 2, 0..=2) => Outcome::Host,
        // Performance counters: the ID register says that there are none; some systems write them all the same.
        (3, 0 | 3, 9, 12..=14, _) | (3, 3, 14, 8..=15, _) => Outcome::Fixed(0),
        // Debug registers (op1 0 and 3; op1 1 is trace): breakpoints and watchpoints that do nothing, and an OS lock that is open.
        (2, 0, 1, 1, 4) => Outcome::Fixed(OS_LOCK_OPEN),
        (2, 0 | 3, _, _, _) => Outcome::Fixed(0),
        // DC ISW, DC CSW, DC CISW: by set and way they would reach others' lines. The VM's memory is coherent without: what the host wrote was cleaned
        // when it changed hands, and a VM with its caches off sees what others wrote by their addresses.
        (1, 0, 7, 6 | 10 | 14, 2) => Outcome::Fixed(0),
        _ => Outcome::Undefined,
    }
}

/// The vCPU's next step is the access to a system register that `syndrome` describes. K: `core_handle_sys64`.
#[inline]
pub fn core_handle_sys64<M: Machine>(
    core: &Core<M>,
    active: &Active,
    ctxt: &mut Context,
    syndrome: Syndrome,
) -> Action {
    // What a kernel of the VM reads often, and measures: nothing else stands before it.
    if syndrome.is_id_register_read() && !is_el0(ctxt.get(ShadowReg::Pstate)) {
        let (machine, reg) = (core.machine(), syndrome.sys_register());
        let gic_registers = || machine.vgic_info().version == 3;
        let value = machine.id_register(reg, |raw| id_registers::visible(reg, raw, gic_registers()));
        return served(ctxt, Some((syndrome.sys_rt(), value)));
    }
    other_access(core, active, ctxt, syndrome)
}

/// An access that is no kernel's read of an ID register.
#[inline(never)]
fn other_access<M: Machine>(core: &Core<M>, active: &Active, ctxt: &mut Context, syndrome: Syndrome) -> Action {
    let machine = core.machine();
    let is_read = syndrome.is_sys_read();
    let outcome = match outcome(syndrome.sys_register()) {
        // A process of the VM reaches the timer only if its kernel lets it, and nothing else that traps here.
        outcome if outcome != Outcome::Host && is_el0(ctxt.get(ShadowReg::Pstate)) => Outcome::Undefined,
        outcome => outcome,
    };
    match outcome {
        Outcome::Fixed(value) if is_read => served(ctxt, Some((syndrome.sys_rt(), value))),
        Outcome::Fixed(_) => served(ctxt, None),
        Outcome::Host => Action::ToHost(ExitReason::Sysreg),
        Outcome::Sgi1 | Outcome::HostSgi if !is_read && machine.vgic_info().version == 3 => {
            let value = ctxt.get(ShadowReg::X(syndrome.sys_rt()));
            if outcome == Outcome::Sgi1 && interrupts::send_sgi(core, active, ctxt, value) {
                served(ctxt, None)
            } else {
                Action::ToHost(ExitReason::Sysreg)
            }
        }
        Outcome::Id | Outcome::Sgi1 | Outcome::HostSgi | Outcome::Undefined => {
            machine.count(Event::VmUndefined);
            take_undefined(&mut VmEl1::loaded(machine, ctxt));
            Action::Resume
        }
    }
}

/// The access is over. Register 31 is XZR: what is read to it is lost (A8); a shadow context has none.
#[inline]
fn served(ctxt: &mut Context, read: Option<(u8, u64)>) -> Action {
    if let Some((rt, value)) = read {
        ctxt.set(ShadowReg::X(rt), value);
    }
    step_over(ctxt);
    Action::Resume
}
