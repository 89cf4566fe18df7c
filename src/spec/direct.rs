//! Layers 28 and 31: interrupts that the core delivers to running vCPUs by itself.
//!
//! A vCPU that runs is its list registers, of which the first are the host's, and its timer's control. What the host lets the core do comes in words of its
//! mailbox, decoded here a second time. Interrupts are numbers; a list register is what IHI 0069H §12.4.8 says, field by field.
#![forbid(unsafe_code)]

use std::vec::Vec;

/// Number of the timer's interrupt.
pub const TIMER: u64 = 27;

/// A list register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lr {
    /// Interrupt.
    pub intid: u64,
    /// Priority.
    pub priority: u64,
    /// Pending.
    pub pending: bool,
    /// Active.
    pub active: bool,
    /// In group 1.
    pub group1: bool,
    /// Its end makes a maintenance interrupt.
    pub eoi: bool,
}

impl Lr {
    /// As the register has it.
    pub fn raw(&self) -> u64 {
        let bit = |set: bool, at: u32| u64::from(set) << at;
        self.intid
            | self.priority << 48
            | bit(self.eoi, 41)
            | bit(self.group1, 60)
            | bit(self.pending, 62)
            | bit(self.active, 63)
    }

    fn holds(&self) -> bool {
        self.pending || self.active
    }
}

/// What the host allows: the mailbox's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed(pub u64);

impl Allowed {
    /// Whether an entry with it is refused, on a machine with a GIC of `version`.
    pub fn is_refused(self, version: u8) -> bool {
        self.0 != 0 && (version != 3 || self.0 >> 38 != 0)
    }

    fn sgi(self, n: u64) -> bool {
        self.0 >> n & 1 != 0
    }

    fn timer(self) -> bool {
        self.0 >> 24 & 1 != 0
    }

    fn fresh(self, intid: u64) -> Lr {
        let priority = self.0 >> if intid == TIMER { 30 } else { 16 } & 0xff;
        Lr { intid, priority, pending: true, active: false, group1: true, eoi: intid == TIMER }
    }
}

/// A vCPU that runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Running {
    /// List registers in use.
    pub lrs: Vec<Lr>,
    /// Of these the host's.
    pub host: usize,
    /// List registers that there are.
    pub most: usize,
    /// Which one has the timer's interrupt, for which the core has masked the timer.
    pub timer: Option<usize>,
    /// CNTV_CTL_EL0.
    pub ctl: u64,
    /// The mask in it is the core's.
    pub masked: bool,
    /// The mailbox's word of this entry.
    pub allowed: Allowed,
}

impl Running {
    /// An entry.
    pub fn new(lrs: Vec<Lr>, most: usize, ctl: u64, masked: bool, allowed: Allowed) -> Self {
        Self { host: lrs.len(), lrs, most, timer: None, ctl, masked, allowed }
    }

    /// `intid` becomes pending; which list register has it. `None`: no room.
    fn pend(&self, intid: u64) -> Option<(Self, usize)> {
        let mut next = self.clone();
        if let Some(n) = self.lrs.iter().position(|lr| lr.holds() && lr.intid == intid) {
            next.lrs[n].pending = true;
            return Some((next, n));
        }
        let is_free = |n: &usize| !self.lrs[*n].holds() && Some(*n) != self.timer;
        let n = (self.host..self.lrs.len()).find(is_free).unwrap_or(self.lrs.len());
        if n == self.most {
            return None;
        }
        next.lrs.resize(next.lrs.len().max(n + 1), Lr::default());
        next.lrs[n] = self.allowed.fresh(intid);
        Some((next, n))
    }
}

/// The vCPU `own` writes `value` to ICC_SGI1R_EL1: SGI number, itself afterwards, and which others must hear of it. `None`: it is the host's.
pub fn send(v: &Running, own: u32, value: u64) -> Option<(Running, u64, u16)> {
    let (sgi, targets) = (value >> 24 & 15, value as u16);
    let affinity = value >> 16 & 0xff | value >> 32 & 0xff | value >> 44 & 15 | value >> 48 & 0xff;
    if !v.allowed.sgi(sgi) || affinity != 0 || value >> 40 & 1 != 0 {
        return None;
    }
    let others = targets & !(1 << own);
    if others != 0 && v.allowed.0 >> 25 & 1 == 0 {
        return None;
    }
    let after = if targets >> own & 1 != 0 { v.pend(sgi)?.0 } else { v.clone() };
    Some((after, sgi, others))
}

/// The vCPU is kicked, with SGIs `posted` for it: itself afterwards, and what of them is left for its host.
pub fn kicked(v: &Running, posted: u16) -> (Running, u16) {
    let mut v = v.clone();
    let mut left = 0;
    for sgi in (0..16).filter(|sgi| posted >> sgi & 1 != 0) {
        match v.pend(sgi) {
            Some((next, _)) if v.allowed.sgi(sgi) => v = next,
            _ => left |= 1 << sgi,
        }
    }
    (v, left)
}

/// Whether it goes on after that; else its host gets its turn.
pub fn goes_on(left: u16, another_waits: bool) -> bool {
    left == 0 && !another_waits
}

/// The vCPU is interrupted by something else: `None` if that is the host's.
pub fn interrupted(v: &Running) -> Option<Running> {
    const ENABLED: u64 = 1;
    const MASKED: u64 = 2;
    const MET: u64 = 4;
    let held = v.timer.is_some_and(|n| v.lrs[n].holds());
    let mut next = v.clone();
    if !v.allowed.timer() {
        return None;
    }
    if v.ctl & (ENABLED | MASKED | MET) == ENABLED | MET {
        match v.timer {
            Some(_) if held => {}
            Some(n) => next.lrs[n] = v.allowed.fresh(TIMER),
            None => match v.lrs.iter().position(|lr| lr.holds() && lr.intid == TIMER) {
                Some(n) if v.lrs[n].eoi => next.timer = Some(n),
                Some(_) => return None,
                None => {
                    let (with, n) = v.pend(TIMER)?;
                    next = Running { timer: Some(n), ..with };
                }
            },
        }
        (next.ctl, next.masked) = (v.ctl | MASKED, true);
        return Some(next);
    }
    let n = v.timer.filter(|_| !held)?;
    if v.masked && v.ctl & MASKED != 0 {
        if v.ctl & MET != 0 {
            return None;
        }
        next.ctl &= !MASKED;
    }
    (next.masked, next.timer, next.lrs[n]) = (false, None, Lr::default());
    Some(next)
}
