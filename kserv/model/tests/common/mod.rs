//! A CPU interface that takes list registers as the architecture says.
#![forbid(unsafe_code)]
#![allow(dead_code, missing_docs)]

pub mod world;

use kserv_model::irq::{Filled, Form, HCR_LRENPIE, HCR_NPIE, HCR_UIE, ListRegister};

/// An acknowledged interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    pub intid: usize,
    pub source: u8,
    pub priority: u8,
}

/// The virtual CPU interface of one vCPU (IHI 0048B §5, EOImode 0).
pub struct Interface {
    form: Form,
    pub lrs: Vec<u64>,
    /// Of these the host's: the first ones.
    host: usize,
    hcr: u64,
    /// EOIcount.
    pub ends: u32,
    /// An interrupt ended whose register has the EOI bit.
    ended: bool,
    /// Acknowledged, not ended; the last one is the running one.
    pub stack: Vec<Taken>,
}

impl Interface {
    pub fn new(form: Form, lrs: usize) -> Self {
        Self { form, lrs: vec![0; lrs], host: 0, hcr: 0, ends: 0, ended: false, stack: vec![] }
    }

    fn decoded(&self) -> Vec<ListRegister> {
        self.lrs.iter().map(|lr| ListRegister::decode(self.form, *lr)).collect()
    }

    /// What an entry loads. Maintenance interrupts that would leave the vCPU no instruction are an error.
    pub fn load(&mut self, filled: Filled) {
        (self.hcr, self.ends, self.ended) = (filled.hcr, 0, false);
        self.host = filled.count;
        // The machine gets as many as the count says.
        self.lrs[filled.count..].fill(0);
        let valid: Vec<_> = self.decoded().into_iter().filter(ListRegister::is_valid).collect();
        assert_eq!(valid.len(), filled.count);
        for (n, one) in valid.iter().enumerate() {
            let same = |other: &&ListRegister| other.intid == one.intid;
            assert_eq!(valid.iter().filter(same).count(), 1, "{n}: one interrupt in two list registers");
        }
        assert!(!self.maintenance(), "the vCPU would never run");
    }

    /// The core makes an SGI pending. `false`: no list register is free.
    pub fn deliver(&mut self, intid: usize, priority: u8) -> bool {
        let decoded = self.decoded();
        let held = decoded.iter().position(|lr| lr.is_valid() && lr.intid == intid);
        let free = || (self.host..decoded.len()).find(|n| !decoded[*n].is_valid());
        let fresh = ListRegister { intid, priority, group1: true, pending: true, ..Default::default() };
        let Some(n) = held.or_else(free) else { return false };
        self.lrs[n] = match held {
            Some(n) => ListRegister { pending: true, ..decoded[n] }.encode(self.form),
            None => fresh.encode(self.form),
        };
        true
    }

    /// Whether the maintenance interrupt is asserted.
    pub fn maintenance(&self) -> bool {
        let decoded = self.decoded();
        let valid = decoded.iter().filter(|lr| lr.is_valid()).count();
        self.ended
            || self.hcr & HCR_UIE != 0 && valid <= 1
            || self.hcr & HCR_LRENPIE != 0 && self.ends > 0
            || self.hcr & HCR_NPIE != 0 && !decoded.iter().any(|lr| lr.pending)
    }

    /// A read of IAR.
    pub fn acknowledge(&mut self) -> Option<Taken> {
        let decoded = self.decoded();
        let ready = decoded.iter().enumerate().filter(|(_, lr)| lr.pending && !lr.active);
        let (n, lr) = ready.min_by_key(|(_, lr)| (lr.priority, lr.intid))?;
        if self.stack.last().is_some_and(|running| running.priority <= lr.priority) {
            return None;
        }
        let taken = Taken { intid: lr.intid, source: lr.source, priority: lr.priority };
        self.lrs[n] = ListRegister { pending: false, active: true, ..*lr }.encode(self.form);
        self.stack.push(taken);
        Some(taken)
    }

    /// A write of EOIR for the running interrupt.
    pub fn end(&mut self) -> Option<Taken> {
        let taken = self.stack.pop()?;
        let decoded = self.decoded();
        match decoded.iter().position(|lr| lr.active && lr.intid == taken.intid) {
            None => self.ends += 1,
            Some(n) => {
                assert_eq!(decoded[n].source, taken.source, "the sender changed while it was active");
                self.ended |= decoded[n].eoi;
                self.lrs[n] = ListRegister { active: false, ..decoded[n] }.encode(self.form);
            }
        }
        Some(taken)
    }
}
