//! A vCPU's timers: when they fire, and whether their interrupts are asserted.
//!
//! | timer           | where its registers are                                        | interrupt |
//! |-----------------|----------------------------------------------------------------|-----------|
//! | [`VirtualTimer`]  | the CPU's; the mailbox shows them at every exit              | PPI 27    |
//! | [`PhysicalTimer`] | here: the VM's accesses to CNTP_* trap to the host           | PPI 30    |
//!
//! The core masks the virtual timer at the CPU when it fires (CNTV_CTL.IMASK), so that the line drops for the host. It may fire again once its
//! condition is gone: at the entry where [`VirtualTimer::asserted`] is false, ENTRY_TIMER_UNMASK is set. As long as it is asserted, the
//! list register of interrupt 27 asks for an exit at its end, and the condition is looked at again.
//!
//! While the core masks it, a mask that the VM sets itself cannot be seen: "asserted" then means that the VM either left the timer as it was,
//! or masked it, as handlers do. The first makes no sense, so an interrupt that ended while the timer's registers stayed as they were
//! counts as handled ([`VirtualTimer::line`] is down) until it fires again or its registers change. One end is not enough: a timer that its handler
//! set anew may fire before that handler ends its interrupt, so the first end may be of an interrupt from before. It comes once
//! more then, as a level-sensitive interrupt does. If the VM changes them without an exit, the core's
//! mask would hold back the next one; so a vCPU in that state is made to exit now and then ([`VirtualTimer::poll`]).
//! Times are of the physical counter. Source: Arm ARM D11.2.4; `corevisor_interface::mailbox`.
#![forbid(unsafe_code)]

use corevisor_interface::mailbox::Mailbox;

use crate::sysreg::Register;

/// CNTx_CTL: the timer is on.
pub const ENABLE: u64 = 1 << 0;
/// CNTx_CTL: its interrupt is masked.
pub const IMASK: u64 = 1 << 1;
/// CNTx_CTL: the condition is met.
pub const ISTATUS: u64 = 1 << 2;

/// When a timer with these registers fires: physical time, saturating; `None` if it never does.
const fn fires(ctl: u64, cval: u64, offset: u64) -> Option<u64> {
    if ctl & (ENABLE | IMASK) != ENABLE {
        return None;
    }
    // The condition is CVAL <= count - offset as unsigned numbers. An offset that makes the virtual count wrap between now and then
    // is of a VM started before this machine: its count is `now + (-offset)`.
    Some(if offset >> 63 == 0 { cval.saturating_add(offset) } else { cval.saturating_sub(offset.wrapping_neg()) })
}

/// The virtual timer as last seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VirtualTimer {
    ctl: u64,
    cval: u64,
    offset: u64,
    /// How often its interrupt ended since the timer fired or changed.
    ends: u8,
    polls: u32,
}

/// With so many ends the last interrupt was surely taken after the timer fired.
const HANDLED: u8 = 2;
/// First time between two looks at a handled timer, in ticks; it doubles up to 64 times of it.
const POLL: u64 = 100_000;

impl VirtualTimer {
    /// Off.
    pub const fn new() -> Self {
        Self { ctl: 0, cval: 0, offset: 0, ends: 0, polls: 0 }
    }

    /// What an exit shows; `fired`: the exit was because of it; `ended`: the VM ended its interrupt since the last exit.
    pub fn observe(&mut self, mailbox: &Mailbox, fired: bool, ended: bool) {
        let seen = Self {
            ctl: mailbox.cntv_ctl & (ENABLE | IMASK),
            cval: mailbox.cntv_cval,
            offset: mailbox.cntvoff,
            ..*self
        };
        if fired || seen != *self {
            *self = Self { ends: 0, polls: 0, ..seen };
        } else if ended && mailbox.cntv_ctl & ISTATUS != 0 {
            self.ends = self.ends.saturating_add(1);
        }
    }

    /// Whether an exit shows it as the one before did.
    pub const fn is_as_seen(&self, mailbox: &Mailbox) -> bool {
        self.ctl == mailbox.cntv_ctl & (ENABLE | IMASK)
            && self.cval == mailbox.cntv_cval
            && self.offset == mailbox.cntvoff
    }

    /// CNTV_CTL without ISTATUS, CNTV_CVAL.
    pub const fn registers(&self) -> (u64, u64) {
        (self.ctl, self.cval)
    }

    /// What the host writes into the vCPU's CNTV_CTL and CNTV_CVAL while it does not run.
    pub const fn set_registers(&mut self, ctl: u64, cval: u64) {
        *self = Self { ctl: ctl & (ENABLE | IMASK), cval, offset: self.offset, ends: 0, polls: 0 };
    }

    /// CNTVOFF that the next entry has.
    pub const fn set_offset(&mut self, offset: u64) {
        *self = Self { offset, ends: 0, polls: 0, ..*self };
    }

    /// When it fires (or did), in physical time.
    pub const fn deadline(&self) -> Option<u64> {
        fires(self.ctl, self.cval, self.offset)
    }

    /// Whether its condition is met at physical time `now`.
    pub fn asserted(&self, now: u64) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Level of interrupt 27.
    pub fn line(&self, now: u64) -> bool {
        self.asserted(now) && self.ends < HANDLED
    }

    /// Whether [`Self::poll`] would say a time.
    pub const fn is_polled(&self) -> bool {
        self.ends >= HANDLED
    }

    /// When a vCPU that runs must be made to exit, so that its timer can be looked at.
    pub fn poll(&mut self, now: u64) -> Option<u64> {
        if self.ends < HANDLED {
            return None;
        }
        let at = now.saturating_add(POLL << self.polls);
        self.polls = (self.polls + 1).min(6);
        Some(at)
    }
}

/// The physical timer of a VM, emulated. Its count is the machine's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PhysicalTimer {
    ctl: u64,
    cval: u64,
}

impl PhysicalTimer {
    /// Off.
    pub const fn new() -> Self {
        Self { ctl: 0, cval: 0 }
    }

    /// When it fires (or did).
    pub const fn deadline(&self) -> Option<u64> {
        fires(self.ctl, self.cval, 0)
    }

    /// Whether interrupt 30 is asserted at `now`.
    pub fn asserted(&self, now: u64) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// An MRS. Zero for what is no register of it.
    pub fn read(&self, register: Register, now: u64) -> u64 {
        let met = self.ctl & ENABLE != 0 && self.cval <= now;
        match register {
            Register::CntpCtl => self.ctl | if met { ISTATUS } else { 0 },
            Register::CntpCval => self.cval,
            Register::CntpTval => self.cval.wrapping_sub(now) & 0xffff_ffff,
            _ => 0,
        }
    }

    /// An MSR. Ignored for what is no register of it.
    pub fn write(&mut self, register: Register, value: u64, now: u64) {
        match register {
            Register::CntpCtl => self.ctl = value & (ENABLE | IMASK),
            Register::CntpCval => self.cval = value,
            Register::CntpTval => self.cval = now.wrapping_add(i64::from(value as u32 as i32) as u64),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn virtual_timer(ctl: u64, cval: u64, offset: u64) -> VirtualTimer {
        VirtualTimer { ctl, cval, offset, ..VirtualTimer::new() }
    }

    #[test]
    fn the_virtual_timer_fires_at_its_value_plus_the_offset() {
        let timer = virtual_timer(ENABLE, 100, 1000);
        assert_eq!(timer.deadline(), Some(1100));
        assert!(!timer.asserted(1099) && timer.asserted(1100));
        assert_eq!(virtual_timer(ENABLE, u64::MAX, 1000).deadline(), Some(u64::MAX));
        // A VM whose count is ahead of the machine's.
        assert_eq!(virtual_timer(ENABLE, 100, 40u64.wrapping_neg()).deadline(), Some(60));
        assert_eq!(virtual_timer(ENABLE, 10, 40u64.wrapping_neg()).deadline(), Some(0));
    }

    #[test]
    fn a_timer_whose_interrupt_ended_twice_is_quiet_until_it_fires_or_changes() {
        let mut mailbox = Mailbox { cntv_ctl: ENABLE | ISTATUS, cntv_cval: 100, ..Mailbox::EMPTY };
        let mut timer = VirtualTimer::new();
        timer.observe(&mailbox, true, false);
        assert!(timer.line(100) && timer.poll(100).is_none());
        // Still in a list register.
        timer.observe(&mailbox, false, false);
        assert!(timer.line(100));
        // The end of an interrupt from before it fired, perhaps.
        timer.observe(&mailbox, false, true);
        assert!(timer.line(100) && timer.poll(100).is_none());
        timer.observe(&mailbox, false, true);
        assert!(!timer.line(100) && timer.asserted(100));
        assert_eq!((timer.poll(100), timer.poll(100)), (Some(100 + POLL), Some(100 + 2 * POLL)));
        assert_eq!((0..9).map(|_| timer.poll(0)).last(), Some(Some(64 * POLL)));
        // Unmasked by the VM: it fires anew.
        let mut again = timer;
        again.observe(&mailbox, true, false);
        assert!(again.line(100));
        // Set anew.
        mailbox.cntv_cval = 50;
        timer.observe(&mailbox, false, true);
        assert!(timer.line(100));
    }

    #[test]
    fn a_timer_that_is_off_or_masked_never_fires() {
        assert_eq!(virtual_timer(0, 0, 0).deadline(), None);
        assert_eq!(virtual_timer(ENABLE | IMASK, 0, 0).deadline(), None);
        assert!(!virtual_timer(ENABLE | IMASK | ISTATUS, 0, 0).asserted(u64::MAX));
        assert!(virtual_timer(ENABLE | ISTATUS, 0, 0).asserted(0));
    }

    #[test]
    fn the_physical_timer_is_what_its_registers_say() {
        let mut timer = PhysicalTimer::new();
        timer.write(Register::CntpTval, 50, 1000);
        assert_eq!(timer.read(Register::CntpCval, 1000), 1050);
        assert_eq!(timer.read(Register::CntpTval, 1020), 30);
        assert_eq!(timer.read(Register::CntpTval, 1051), 0xffff_ffff);
        timer.write(Register::CntpCtl, u64::MAX, 1000);
        assert_eq!(timer.read(Register::CntpCtl, 1049), ENABLE | IMASK);
        assert_eq!(timer.read(Register::CntpCtl, 1050), ENABLE | IMASK | ISTATUS);
        assert_eq!(timer.deadline(), None);
        timer.write(Register::CntpCtl, ENABLE, 1000);
        assert_eq!(timer.deadline(), Some(1050));
        // TVAL is signed: one that is in the past fires at once.
        timer.write(Register::CntpTval, -1i64 as u64, 1000);
        assert!(timer.asserted(1000) && timer.read(Register::CntpCval, 0) == 999);
        timer.write(Register::CntpTval, 1, u64::MAX);
        assert_eq!(timer.read(Register::IccSgi0r, 0), 0);
    }
}
