//! Part of layer 31, FaultHandler: interrupts of a VM that need no host.
//!
//! | primitive               | does                                                                       | lock |
//! |-------------------------|----------------------------------------------------------------------------|------|
//! | [`send_sgi`]            | a vCPU sends an SGI to itself, or to vCPUs that run                         | Vm, where others get it |
//! | [`handle_interrupt`]    | a physical interrupt: the VM's timer, or an SGI of another vCPU; else the host's | Vm, for an SGI |
//!
//! What the host lets the core do stands in the mailbox of each entry (`vcpu_ops::direct`). Everything else is an exit, as it is without.
//!
//! Specification: `spec::direct`. Source: new; IHI 0069H §12.2.15 (ICC_SGI1R_EL1).
#![forbid(unsafe_code)]

use tock_registers::LocalRegisterCopy;

use super::super::Core;
use crate::abstract_machine::Machine;
use crate::abstract_machine::regs::{ICC_SGI1R, ones};
use crate::abstract_machine::shadow::Context;
use crate::interface::mailbox::ExitReason;
use crate::vcpu::Action;
use crate::vcpu::vcpu_ops::direct::{Direct, deliver, handle_vtimer, place_of};
use crate::vm::Active;
use crate::vm::boot_ops::posted::{post_sgi, return_posted_sgis, take_posted_sgis};

/// The vCPU `active`, which this CPU runs, writes `value` to ICC_SGI1R_EL1. `false`: the host has to serve it; nothing has happened.
#[inline(never)]
pub fn send_sgi<M: Machine>(core: &Core<M>, active: &Active, ctxt: &mut Context, value: u64) -> bool {
    let sent = LocalRegisterCopy::<u64, ICC_SGI1R::Register>::new(value);
    let direct = Direct::of(ctxt);
    let sgi = sent.read(ICC_SGI1R::INTID) as u8;
    // vCPUs are numbered by affinity 0 alone (`reset_sys_regs`).
    let elsewhere = ICC_SGI1R::AFF3::SET.value
        | ICC_SGI1R::AFF2::SET.value
        | ICC_SGI1R::AFF1::SET.value
        | ICC_SGI1R::RS::SET.value
        | ICC_SGI1R::IRM::SET.value;
    if direct.sgis() >> sgi & 1 == 0 || value & elsewhere != 0 {
        return false;
    }
    let targets = sent.read(ICC_SGI1R::TARGETS) as u16;
    let own = 1 << active.vcpu.index();
    let machine = core.machine();
    let place = if targets & own != 0 {
        let Some(place) = place_of(machine, ctxt, sgi.into()) else { return false };
        Some(place)
    } else {
        None
    };
    let others = targets & !own;
    if others != 0 {
        let Some(kick) = direct.kick() else { return false };
        if !post_sgi(core.vms(), active.vm, others, sgi, |cpu| machine.kick(cpu, kick)) {
            return false;
        }
    }
    place.into_iter().for_each(|place| deliver(machine, ctxt, place));
    true
}

/// A physical interrupt waits for the CPU that runs `active`. A kick may be of a higher priority than all that is the host's, and the next one may be there when this one is
/// served: so after a kick the host gets its turn as soon as anything else waits. (The timer needs no such rule: its interrupt is masked until the VM has ended it.)
#[inline(never)]
pub fn handle_interrupt<M: Machine>(core: &Core<M>, active: &Active, ctxt: &mut Context) -> Action {
    let direct = Direct::of(ctxt);
    if direct.is_none() {
        return Action::ToHost(ExitReason::Irq);
    }
    let machine = core.machine();
    let served = match direct.kick() {
        Some(kick) if machine.take_kick(kick) => {
            deliver_posted(core, active, ctxt, direct) && !machine.interrupt_waits()
        }
        _ => handle_vtimer(machine, ctxt),
    };
    // If another one waits the vCPU leaves again before its next instruction.
    if served { Action::Resume } else { Action::ToHost(ExitReason::Irq) }
}

/// Delivers what other vCPUs have sent. `false`: the host has to see to some of it.
fn deliver_posted<M: Machine>(core: &Core<M>, active: &Active, ctxt: &mut Context, direct: Direct) -> bool {
    let mut left = 0;
    for sgi in ones(take_posted_sgis(core.vms(), active.vm, active.vcpu).into(), 16) {
        let allowed = direct.sgis() >> sgi & 1 != 0;
        match place_of(core.machine(), ctxt, sgi.into()).filter(|_| allowed) {
            Some(place) => deliver(core.machine(), ctxt, place),
            None => left |= 1 << sgi,
        }
    }
    if left != 0 {
        return_posted_sgis(core.vms(), active.vm, active.vcpu, left);
    }
    left == 0
}
