//! Private interrupts that the core delivers by itself while a vCPU runs (`corevisor_interface::mailbox::Mailbox::direct`).
//!
//! | function             | does                                                                                      |
//! |----------------------|-------------------------------------------------------------------------------------------|
//! | [`Engine::direct`]   | which ones it may, as the mailbox has it                                                  |
//! | [`Engine::adopt`]    | a list register that the core has filled comes back                                       |
//! | [`Engine::sent_to`]  | SGIs that found none                                                                      |
//!
//! An interrupt that has any state here must not be delivered past this model: it would come twice, or too early. So an SGI may be delivered that is
//! enabled and nowhere but in a list register; and the virtual timer's if it is nowhere, or in a list register with its line high, of which the core hears the end. All SGIs that are named have one priority:
//! that of SGI 0, as kernels have it. When one of them may not be delivered any more, its vCPU is kicked: it may stand in a list register that this model has
//! not seen.
#![forbid(unsafe_code)]

use corevisor_interface::mailbox::{DIRECT_SGI_PRIORITY_SHIFT, DIRECT_TIMER, DIRECT_TIMER_PRIORITY_SHIFT};

use super::{Engine, Form, Irq, ListRegister, PRIVATE, SGIS};
use crate::layout::VTIMER_INTID;

/// Where the mailbox's word has interrupt `intid`.
const fn bit_of(intid: usize) -> Option<u64> {
    match intid {
        0..SGIS => Some(1 << intid),
        VTIMER_INTID => Some(DIRECT_TIMER),
        _ => None,
    }
}

impl<const V: usize, const S: usize> Engine<V, S> {
    /// What the core may deliver to `vcpu` by itself during the next run, if nothing waits for a list register: bits of `Mailbox::direct`. Call it after
    /// [`Engine::fill`]. Nothing with GICv2, whose SGIs have senders.
    #[inline]
    pub fn direct(&mut self, vcpu: usize) -> u64 {
        let direct = self.direct.get(vcpu).copied().unwrap_or(0);
        if let Some(given) = self.given.get_mut(vcpu) {
            *given = direct;
        }
        direct
    }

    /// A private interrupt of `vcpu` has changed to `irq`.
    pub(super) fn note_direct(&mut self, vcpu: usize, intid: usize, irq: &Irq) {
        let may = self.form == Form::V3
            && irq.group1
            && self.may_signal(irq)
            && match intid {
                0..SGIS => {
                    !irq.pending()
                        && (!irq.active || irq.placed.is_some())
                        && irq.priority == self.private[vcpu][0].priority
                }
                VTIMER_INTID => !irq.is_hot() || irq.line && irq.placed.is_some(),
                _ => false,
            };
        if let Some(bit) = bit_of(intid) {
            let (priority, named) = (u64::from(irq.priority), if may { bit } else { 0 });
            let shift = match intid {
                0 => Some(DIRECT_SGI_PRIORITY_SHIFT),
                VTIMER_INTID => Some(DIRECT_TIMER_PRIORITY_SHIFT),
                _ => None,
            };
            let word = shift.map_or(0, |shift| 0xff << shift);
            self.direct[vcpu] = self.direct[vcpu] & !(bit | word) | named | shift.map_or(0, |shift| priority << shift);
        }
        if !may {
            self.take_direct_back(vcpu, intid);
        }
    }

    /// If the core may deliver it just now, it must not go on so: the vCPU has to leave.
    pub(super) fn take_direct_back(&mut self, vcpu: usize, intid: usize) {
        let given = bit_of(intid).is_some_and(|bit| self.given[vcpu] & bit != 0);
        self.kicks |= u32::from(given) << vcpu;
    }

    /// What they have in common has changed.
    pub(super) fn note_all_direct(&mut self, vcpu: usize) {
        for intid in 0..PRIVATE {
            let irq = self.private[vcpu][intid];
            self.note_direct(vcpu, intid, &irq);
        }
    }

    /// SGIs that other vCPUs sent to `vcpu` by way of the core, one bit each, wait for it.
    #[cold]
    pub fn sent_to(&mut self, vcpu: usize, sgis: u64) {
        for sgi in (0..SGIS).filter(|sgi| sgis >> sgi & 1 != 0) {
            self.send_sgi(vcpu, 1 << vcpu, sgi, None);
        }
    }

    /// A list register of `vcpu` that the core has filled comes back. Whether it was the timer's. What makes no sense there is left out.
    pub(super) fn adopt(&mut self, vcpu: usize, lr: u64) -> bool {
        let seen = ListRegister::decode(self.form, lr);
        let sgi = seen.intid < SGIS && self.form == Form::V3;
        if lr == 0 || !sgi && seen.intid != VTIMER_INTID {
            return false;
        }
        if seen.is_valid() {
            self.change(vcpu, seen.intid, |irq| {
                // The timer's is pending as long as its line is high.
                irq.latch |= sgi && seen.pending;
                if seen.active {
                    (irq.active, irq.holder) = (true, vcpu as u8);
                }
            });
        } else {
            self.note_end(vcpu, seen.intid);
        }
        !sgi
    }
}
