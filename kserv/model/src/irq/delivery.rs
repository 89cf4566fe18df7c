//! List registers for an entry, and what they say at the exit.
//!
//! | function                | does                                                                                       |
//! |-------------------------|--------------------------------------------------------------------------------------------|
//! | [`Engine::fill`]        | chooses what the vCPU's list registers hold and what they report                           |
//! | [`Engine::fold`]        | takes everything back: what was acknowledged, ended, or is still there                     |
//! | [`Engine::deliverable`] | whether something would go into a list register as pending                                 |
//!
//! With more interrupts than list registers, active ones come first (their end needs the register), then the pending ones of highest
//! priority; a pending one that can preempt all active ones takes the place of the active one of lowest priority. The end of an active
//! interrupt that has no register is counted by the machine (EOIcount) and falls to the active one of highest priority. Asked for, so that the
//! rest gets its turn: UIE (at most one register is in use), LRENPIE (an end without register), and the EOI bit of the register that ends
//! last before nothing is left to do (the only one there can be when the machine has one list register, where UIE would never let the
//! vCPU run). A level-sensitive interrupt whose line is up has its EOI bit set, so that the line is looked at again at its end.
//! Source: IHI 0048B §5.3, IHI 0069H §12.4.
#![forbid(unsafe_code)]

use super::{Engine, Form, Irq, ListRegister, MAX_LRS, NOBODY, PRIVATE, Placed, SGIS};

/// GICH_HCR, ICH_HCR_EL2: maintenance interrupt when none or one list register is in use.
pub const HCR_UIE: u64 = 1 << 1;
/// Maintenance interrupt at the end of an interrupt without list register.
pub const HCR_LRENPIE: u64 = 1 << 2;
/// Maintenance interrupt when none is pending.
pub const HCR_NPIE: u64 = 1 << 3;

/// What an entry has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Filled {
    /// List registers in use, from the first on.
    pub count: usize,
    /// Maintenance interrupts to ask for: `HCR_*`.
    pub hcr: u64,
}

/// The best few of many: highest priority (lowest number) first, then lowest interrupt.
struct Best {
    /// Priority in the upper half, interrupt in the lower.
    keys: [u32; MAX_LRS],
    kept: usize,
    seen: usize,
}

impl Best {
    const fn new() -> Self {
        Self { keys: [0; MAX_LRS], kept: 0, seen: 0 }
    }

    fn add(&mut self, priority: u8, intid: usize) {
        self.seen += 1;
        let key = u32::from(priority) << 16 | intid as u32;
        let at = self.keys[..self.kept].partition_point(|other| *other < key);
        if at == MAX_LRS {
            return;
        }
        self.kept = (self.kept + 1).min(MAX_LRS);
        self.keys.copy_within(at..self.kept - 1, at + 1);
        self.keys[at] = key;
    }

    /// Priority of the best; the lowest one if there is none.
    const fn priority(&self) -> u32 {
        if self.kept == 0 { u32::MAX } else { self.keys[0] >> 16 }
    }

    /// The best `n` interrupts.
    fn first(&self, n: usize) -> impl Iterator<Item = usize> {
        self.keys.iter().take(n.min(self.kept)).map(|key| (*key & 0xffff) as usize)
    }
}

impl<const V: usize, const S: usize> Engine<V, S> {
    /// Whether any interrupt has any state that may concern `vcpu`.
    fn is_any_hot(&self, vcpu: usize) -> bool {
        self.hot_words != 0 || self.hot_private.get(vcpu).is_some_and(|hot| *hot != 0)
    }

    /// Whether there is nothing to give to `vcpu`, nothing that it was given, and nobody to be told of anything.
    #[inline]
    pub fn is_quiet(&self, vcpu: usize) -> bool {
        self.kicks == 0 && self.placed_count.get(vcpu) == Some(&0) && !self.is_any_hot(vcpu)
    }

    /// Calls `each` for every interrupt with any state that concerns `vcpu`.
    fn each_hot(&self, vcpu: usize, mut each: impl FnMut(usize, &Irq)) {
        // Word 0 is the vCPU's own.
        let mut words = self.hot_words | 1;
        while words != 0 {
            let word = words.trailing_zeros() as usize;
            words &= words - 1;
            let mut hot =
                if word == 0 { self.hot_private.get(vcpu).copied().unwrap_or(0) } else { self.hot_shared[word] };
            while hot != 0 {
                let intid = word * 32 + hot.trailing_zeros() as usize;
                hot &= hot - 1;
                let Some(irq) = self.irq(vcpu, intid) else { continue };
                let mine = match irq.holder {
                    // One that was made active by a register and goes nowhere has to end somewhere.
                    NOBODY => self.target(vcpu, intid, irq).or(irq.active.then_some(0)) == Some(vcpu),
                    holder => usize::from(holder) == vcpu,
                };
                if mine {
                    each(intid, irq);
                }
            }
        }
    }

    /// Whether an interrupt waits that `vcpu` would take if it ran, where it takes those whose priority is below `mask`.
    pub fn deliverable(&self, vcpu: usize, mask: u8) -> bool {
        let mut found = false;
        if !self.is_any_hot(vcpu) {
            return false;
        }
        self.each_hot(vcpu, |_, irq| {
            let taken = irq.priority < mask && self.may_signal(irq);
            found |= irq.pending() && !irq.active && irq.placed.is_none() && taken;
        });
        found
    }

    /// Fills the list registers `lrs` (all that the machine has) for an entry of `vcpu`. `split_eoi`: the vCPU deactivates apart from ending
    /// (VMCR.EOIM), so that active interrupts do not hold back others.
    ///
    /// An entry follows; what is in list registers is there until [`Engine::fold`]. Those behind the count that is returned are not written.
    #[inline]
    pub fn fill(&mut self, vcpu: usize, lrs: &mut [u64], split_eoi: bool) -> Filled {
        if vcpu >= self.vcpus {
            return Filled::default();
        }
        if self.placed_count[vcpu] != 0 {
            // An entry that did not happen: nothing was acknowledged.
            self.unplace(vcpu);
        }
        if lrs.is_empty() || !self.is_any_hot(vcpu) {
            return Filled::default();
        }
        let (mut seen, mut only) = (0, 0);
        self.each_hot(vcpu, |intid, irq| {
            if irq.active || irq.pending() && self.may_signal(irq) {
                (seen, only) = (seen + 1, intid);
            }
        });
        match seen {
            0 => Filled::default(),
            1 => {
                lrs[0] = self.place(vcpu, only, false);
                self.placed[vcpu][0] = only as u16;
                self.placed_count[vcpu] = 1;
                Filled { count: 1, hcr: 0 }
            }
            _ => self.fill_best(vcpu, lrs, split_eoi),
        }
    }

    /// The same where there is a choice.
    fn fill_best(&mut self, vcpu: usize, lrs: &mut [u64], split_eoi: bool) -> Filled {
        let (mut active, mut pending) = (Best::new(), Best::new());
        self.each_hot(vcpu, |intid, irq| {
            if irq.active {
                active.add(irq.priority, intid);
            } else if irq.pending() && self.may_signal(irq) {
                pending.add(irq.priority, intid);
            }
        });
        let room = lrs.len().min(MAX_LRS);
        let mut actives = active.kept.min(room);
        let mut pendings = pending.kept.min(room - actives);
        let preempts = pending.kept > 0 && (split_eoi || pending.priority() < active.priority());
        if pendings == 0 && actives > 0 && preempts {
            (actives, pendings) = (actives - 1, 1);
        }
        let count = actives + pendings;
        let left = active.seen + pending.seen > count;
        // What ends last of all that is placed before those that wait could be served.
        let last = if pendings > 0 { count - 1 } else { 0 };
        for (n, intid) in active.first(actives).chain(pending.first(pendings)).enumerate() {
            lrs[n] = self.place(vcpu, intid, left && n == last);
            self.placed[vcpu][n] = intid as u16;
        }
        self.placed_count[vcpu] = count;
        let mut hcr = 0;
        if left && count > 1 {
            hcr |= HCR_UIE;
        }
        if active.seen > actives {
            hcr |= HCR_LRENPIE;
        }
        Filled { count, hcr }
    }

    /// Moves an interrupt into a list register.
    fn place(&mut self, vcpu: usize, intid: usize, eoi: bool) -> u64 {
        let form = self.form;
        let Some(irq) = self.irq(vcpu, intid).copied() else { return 0 };
        let v2_sgi = form == Form::V2 && intid < SGIS;
        // A level-sensitive interrupt or an SGI of GICv2 is never pending and active in one register, nor one that goes elsewhere next.
        let again = irq.latch && irq.edge && self.may_signal(&irq) && self.target(vcpu, intid, &irq) == Some(vcpu);
        let pending = !irq.active || again;
        let source = match () {
            () if !v2_sgi => 0,
            () if irq.active => irq.source,
            () => irq.sources.trailing_zeros() as u8 & 7,
        };
        let more = if pending { irq.sources & !(1 << source) } else { irq.sources };
        let latched = pending && irq.latch;
        self.change(vcpu, intid, |irq| {
            irq.holder = vcpu as u8;
            irq.placed = Some(Placed { pending, latched, source, withdrawn: false, active_written: false });
            if v2_sgi {
                irq.sources = more;
            }
            irq.latch &= !latched;
        });
        // This vCPU is about to enter with it.
        self.kicks &= !(1 << vcpu);
        let lr = ListRegister {
            intid: self.name(intid),
            source,
            priority: irq.priority,
            group1: irq.group1,
            pending,
            active: irq.active,
            eoi: eoi || more != 0 || (irq.line && !irq.edge) || (irq.latch && !latched),
        };
        lr.encode(form)
    }

    /// Takes back what the list registers hold after an exit of `vcpu`; `ends`: how many interrupts without list register ended
    /// (EOIcount). A register that is not what it was filled with counts as untouched; those behind are the core's (module `direct`). Whether the timer's was among
    /// these.
    #[inline(always)]
    pub fn fold(&mut self, vcpu: usize, lrs: &[u64], ends: u32) -> bool {
        if vcpu >= self.vcpus {
            return false;
        }
        self.given[vcpu] = 0;
        if ends != 0 || !lrs.is_empty() || self.placed_count[vcpu] != 0 {
            self.fold_placed(vcpu, lrs, ends)
        } else {
            self.ended[vcpu] = 0;
            false
        }
    }

    #[inline(never)]
    fn fold_placed(&mut self, vcpu: usize, lrs: &[u64], ends: u32) -> bool {
        let form = self.form;
        let count = core::mem::take(&mut self.placed_count[vcpu]);
        self.ended[vcpu] = 0;
        if ends > 0 {
            self.end_without_register(vcpu, ends as usize);
        }
        for n in 0..count {
            let intid = usize::from(self.placed[vcpu][n]);
            let seen = lrs.get(n).map(|value| ListRegister::decode(form, *value));
            let seen = seen.filter(|seen| !seen.is_valid() || seen.intid == self.name(intid));
            self.take_back(vcpu, intid, seen);
            if seen.is_some_and(|seen| !seen.is_valid()) {
                self.note_end(vcpu, intid);
            }
        }
        let mut timer = false;
        for lr in lrs.iter().skip(count) {
            timer |= self.adopt(vcpu, *lr);
        }
        timer
    }

    /// The active interrupts of highest priority that have no list register end.
    fn end_without_register(&mut self, vcpu: usize, ends: usize) {
        let mut without = Best::new();
        self.each_hot(vcpu, |intid, irq| {
            if irq.active && irq.placed.is_none() {
                without.add(irq.priority, intid);
            }
        });
        for intid in without.first(ends) {
            self.change(vcpu, intid, |irq| {
                irq.active = false;
                irq.holder = NOBODY;
            });
            self.note_end(vcpu, intid);
        }
    }

    pub(super) fn note_end(&mut self, vcpu: usize, intid: usize) {
        if intid < PRIVATE {
            self.ended[vcpu] |= 1 << intid;
        } else {
            self.ended_shared[intid / 32] |= self.watched[intid / 32] & 1 << (intid % 32);
        }
    }

    /// Whether the vCPU acknowledged and ended this private interrupt between its last entry and exit.
    pub fn has_ended(&self, vcpu: usize, intid: usize) -> bool {
        intid < PRIVATE && self.ended.get(vcpu).is_some_and(|ended| ended >> intid & 1 != 0)
    }

    /// Everything comes back as it was placed.
    fn unplace(&mut self, vcpu: usize) {
        for n in 0..core::mem::take(&mut self.placed_count[vcpu]) {
            self.take_back(vcpu, usize::from(self.placed[vcpu][n]), None);
        }
    }

    fn take_back(&mut self, vcpu: usize, intid: usize, seen: Option<ListRegister>) {
        let v2_sgi = self.form == Form::V2 && intid < SGIS;
        self.change(vcpu, intid, |irq| {
            let Some(placed) = irq.placed.take() else { return };
            let (pending, active) = match seen {
                Some(seen) => (seen.pending, seen.active),
                None => (placed.pending, irq.active),
            };
            if pending && !placed.withdrawn {
                // An SGI that was not pending when it was placed was sent again since, by way of the core.
                irq.latch |= placed.latched || irq.edge && !placed.pending && !v2_sgi;
                if v2_sgi {
                    irq.sources |= 1 << placed.source;
                }
            }
            if !placed.active_written {
                irq.active = active;
                irq.source = placed.source;
            }
            if !irq.active {
                irq.holder = NOBODY;
            }
        });
    }

    /// Whether the interrupt is in a list register or active somewhere: for tests and status lines.
    pub fn is_held(&self, vcpu: usize, intid: usize) -> bool {
        self.irq(vcpu, intid).is_some_and(|irq| irq.holder != NOBODY)
    }
}
