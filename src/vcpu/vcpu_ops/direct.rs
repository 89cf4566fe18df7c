//! Part of layer 28, VCPUOps: interrupts that the core delivers to a running vCPU by itself.
//!
//! | primitive                  | does                                                                                    | lock |
//! |----------------------------|-----------------------------------------------------------------------------------------|------|
//! | [`begin_direct`]           | an entry: what the host lets the core deliver, and which list registers are the host's   | none |
//! | [`list_registers_in_use`]  | how many list registers the exit shows                                                  | none |
//! | [`place_of`]               | where an interrupt would go                                                             | none |
//! | [`deliver`]                | puts it there                                                                           | none |
//! | [`handle_vtimer`]          | the virtual timer fired, or the VM ended its interrupt                                  | none |
//!
//! Interrupt controllers are the host's to emulate, but what a vCPU sends to itself, or its own timer, need not go there: the host names in
//! the mailbox the private interrupts that have no state but in a list register, and the core puts these into registers behind the host's own. The
//! next exit shows them, and from then on they are the host's like all others. Nothing here is more than the host could do to its VM; so nothing
//! has to be checked but numbers.
//!
//! The timer is level-sensitive. While its interrupt is in a list register it is masked at the CPU, as for the host (`save_timer`); the end of
//! the interrupt, which makes a maintenance interrupt, opens it again. If its condition is still met then and the mask is still there, the VM may have masked it
//! itself: the host has to judge, and the exit is an ordinary one.
//!
//! Specification: `spec::direct`. Source: new; IHI 0069H §12.4.8 (ICH_LR<n>_EL2), Arm ARM D11.2.4 (timers).
#![forbid(unsafe_code)]

use tock_registers::LocalRegisterCopy;

use super::super::vcpu_ops_aux::FLAG_TIMER_MASKED;
use super::TIMER_INTID;
use crate::abstract_machine::regs::{CNT_CTL, ICH_LR, LISTS};
use crate::abstract_machine::shadow::{Context, ShadowReg};
use crate::abstract_machine::{VgicInfo, Worlds};
use crate::interface::CallError;
use crate::interface::mailbox::{
    DIRECT_KICK, DIRECT_KICK_SGI_SHIFT, DIRECT_KNOWN, DIRECT_SGI_PRIORITY_SHIFT, DIRECT_SGIS, DIRECT_TIMER,
    DIRECT_TIMER_PRIORITY_SHIFT,
};

/// What the core may deliver by itself: the mailbox's word, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Direct(u64);

impl Direct {
    /// The word of the mailbox on a machine with this interface.
    ///
    /// # Errors
    /// [`CallError::InvalidParameter`]: bits without a meaning; any where there are no list registers of GICv3.
    pub const fn checked(raw: u64, vgic: &VgicInfo) -> Result<Self, CallError> {
        if raw & !DIRECT_KNOWN != 0 || raw != 0 && vgic.version != 3 {
            return Err(CallError::InvalidParameter);
        }
        Ok(Self(raw))
    }

    /// That of the vCPU which this CPU runs.
    #[inline]
    pub fn of(ctxt: &Context) -> Self {
        Self(ctxt.get(ShadowReg::Direct))
    }

    /// Nothing at all.
    #[inline]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The SGIs, by bit.
    #[inline]
    pub const fn sgis(self) -> u16 {
        (self.0 & DIRECT_SGIS) as u16
    }

    /// Whether the timer's interrupt.
    #[inline]
    pub const fn timer(self) -> bool {
        self.0 & DIRECT_TIMER != 0
    }

    /// The machine's SGI by which another CPU may be interrupted.
    #[inline]
    pub const fn kick(self) -> Option<u8> {
        if self.0 & DIRECT_KICK != 0 { Some((self.0 >> DIRECT_KICK_SGI_SHIFT & 15) as u8) } else { None }
    }

    /// A list register with interrupt `intid` pending.
    fn pending(self, intid: u64) -> u64 {
        let timer = intid == TIMER_INTID;
        let shift = if timer { DIRECT_TIMER_PRIORITY_SHIFT } else { DIRECT_SGI_PRIORITY_SHIFT };
        (ICH_LR::STATE::Pending
            + ICH_LR::GROUP::SET
            + ICH_LR::PRIORITY.val(self.0 >> shift & 0xff)
            + ICH_LR::EOI.val(u64::from(timer))
            + ICH_LR::VINTID.val(intid))
        .value
    }
}

type Lists = LocalRegisterCopy<u64, LISTS::Register>;
type Lr = LocalRegisterCopy<u64, ICH_LR::Register>;
type Ctl = LocalRegisterCopy<u64, CNT_CTL::Register>;

#[inline]
fn lists(ctxt: &Context) -> Lists {
    Lists::new(ctxt.get(ShadowReg::Lists))
}

/// The host begins a run with its `lrs` list registers.
#[inline]
pub fn begin_direct(ctxt: &mut Context, direct: Direct, lrs: usize) {
    ctxt.set(ShadowReg::Direct, direct.0);
    ctxt.set(ShadowReg::Lists, (LISTS::USED.val(lrs as u64) + LISTS::HOST.val(lrs as u64)).value);
}

/// List registers in use: the host's, and behind them the core's.
#[inline]
pub fn list_registers_in_use(ctxt: &Context) -> usize {
    lists(ctxt).read(LISTS::USED) as usize
}

/// Where an interrupt goes, and as what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    n: usize,
    value: u64,
}

/// The list register for interrupt `intid`: the one that it is in, which becomes pending, or else a free one that is not the host's. `None`: all are in use.
/// Changes nothing.
pub fn place_of<M: Worlds>(machine: &M, ctxt: &Context, intid: u64) -> Option<Place> {
    let lists = lists(ctxt);
    let (used, host) = (lists.read(LISTS::USED) as usize, lists.read(LISTS::HOST) as usize);
    let mut free = None;
    for n in 0..used {
        let lr = Lr::new(machine.list_register(n));
        if lr.read(ICH_LR::STATE) == 0 {
            // The timer's stays until its end was looked at.
            let ended = n >= host && lists.read(LISTS::TIMER) as usize != n + 1;
            free = free.or(ended.then_some(n));
        } else if lr.read(ICH_LR::VINTID) == intid {
            let pending = lr.get() | ICH_LR::STATE::Pending.value;
            return Some(Place { n, value: pending });
        }
    }
    let n = free.unwrap_or(used);
    let room = n < usize::from(machine.vgic_info().list_registers);
    room.then(|| Place { n, value: Direct::of(ctxt).pending(intid) })
}

/// Puts an interrupt where [`place_of`] said; nothing has happened between.
pub fn deliver<M: Worlds>(machine: &M, ctxt: &mut Context, place: Place) {
    machine.set_list_register(place.n, place.value);
    let mut lists = lists(ctxt);
    if place.n >= lists.read(LISTS::USED) as usize {
        lists.modify(LISTS::USED.val(place.n as u64 + 1));
        ctxt.set(ShadowReg::Lists, lists.get());
    }
}

/// The vCPU was interrupted: whether it was by its timer, or by the end of the timer's interrupt, and the core has served it.
pub fn handle_vtimer<M: Worlds>(machine: &M, ctxt: &mut Context) -> bool {
    if !Direct::of(ctxt).timer() {
        return false;
    }
    let ctl = Ctl::new(machine.cntv_ctl());
    if ctl.is_set(CNT_CTL::ENABLE) && ctl.is_set(CNT_CTL::ISTATUS) && !ctl.is_set(CNT_CTL::IMASK) {
        vtimer_fired(machine, ctxt, ctl)
    } else {
        vtimer_ended(machine, ctxt, ctl)
    }
}

/// Its interrupt becomes pending, unless it is in a list register still, of the core's or the host's: then its end looks at the timer again.
fn vtimer_fired<M: Worlds>(machine: &M, ctxt: &mut Context, ctl: Ctl) -> bool {
    match lists(ctxt).read(LISTS::TIMER).checked_sub(1).map(|n| n as usize) {
        Some(n) if Lr::new(machine.list_register(n)).read(ICH_LR::STATE) != 0 => {}
        Some(n) => machine.set_list_register(n, Direct::of(ctxt).pending(TIMER_INTID)),
        None => {
            let Some(place) = place_of(machine, ctxt, TIMER_INTID) else { return false };
            let held = Lr::new(machine.list_register(place.n));
            if held.read(ICH_LR::STATE) == 0 {
                deliver(machine, ctxt, place);
            } else if !held.is_set(ICH_LR::EOI) {
                // The host put it there, and would not hear of its end.
                return false;
            }
            let mut lists = lists(ctxt);
            lists.modify(LISTS::TIMER.val(place.n as u64 + 1));
            ctxt.set(ShadowReg::Lists, lists.get());
        }
    }
    machine.set_cntv_ctl(ctl.get() | CNT_CTL::IMASK::SET.value);
    ctxt.set(ShadowReg::Flags, ctxt.get(ShadowReg::Flags) | FLAG_TIMER_MASKED);
    true
}

/// The core's mask goes with the interrupt that it was for.
fn vtimer_ended<M: Worlds>(machine: &M, ctxt: &mut Context, ctl: Ctl) -> bool {
    let mut lists = lists(ctxt);
    let Some(n) = lists.read(LISTS::TIMER).checked_sub(1).map(|n| n as usize) else { return false };
    if Lr::new(machine.list_register(n)).read(ICH_LR::STATE) != 0 {
        return false;
    }
    let flags = ctxt.get(ShadowReg::Flags);
    if flags & FLAG_TIMER_MASKED != 0 && ctl.is_set(CNT_CTL::IMASK) {
        if ctl.is_set(CNT_CTL::ISTATUS) {
            return false;
        }
        machine.set_cntv_ctl(ctl.get() & !CNT_CTL::IMASK::SET.value);
    }
    ctxt.set(ShadowReg::Flags, flags & !FLAG_TIMER_MASKED);
    // Its maintenance interrupt goes with it.
    machine.set_list_register(n, 0);
    lists.modify(LISTS::TIMER.val(0));
    ctxt.set(ShadowReg::Lists, lists.get());
    true
}
