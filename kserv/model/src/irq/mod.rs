//! The state of a VM's interrupts, as GICv2 and GICv3 share it: what is pending, active, enabled, and for whom.
//!
//! | function                                   | does                                                                |
//! |--------------------------------------------|---------------------------------------------------------------------|
//! | [`Engine::set_line`], [`Engine::pulse`]    | a device's or timer's line; an edge                                 |
//! | [`Engine::send_sgi`]                       | an interrupt from vCPU to vCPU                                      |
//! | [`Engine::fill`], [`Engine::fold`]         | list registers for an entry; back at its exit (module `delivery`)   |
//! | [`Engine::deliverable`]                    | whether a vCPU that waits has to go on                              |
//! | [`Engine::direct`]                         | what the core may deliver by itself meanwhile (module `direct`)     |
//! | [`Engine::take_kicks`]                     | which vCPUs must be looked at since the last call                   |
//! | [`Engine::bits`], [`Engine::write_bits`]   | the one-bit registers, 32 interrupts at a time                      |
//!
//! An interrupt is in one place: here, or in a list register of one vCPU. What a list register took (an edge, a sender) is gone here and
//! comes back at the exit if it was not acknowledged: so nothing is lost and nothing arrives twice. A level is never taken: it is looked
//! at again at every entry. What other vCPUs change meanwhile is noted beside it and wins at the exit; `take_kicks` names the vCPU.
//! Source: IHI 0048B §3, IHI 0069H §4 (state machine of interrupts).
#![forbid(unsafe_code)]

mod delivery;
mod direct;
mod list_register;
mod lpi;
pub mod registers;
mod state;

pub use delivery::{Filled, HCR_LRENPIE, HCR_NPIE, HCR_UIE};
pub use list_register::{Form, ListRegister};
pub use lpi::Lpi;
use state::{Irq, Placed};

/// Interrupts of one vCPU: SGIs and PPIs.
pub const PRIVATE: usize = 32;
/// SGIs.
pub const SGIS: usize = 16;
/// Most interrupts that a model may have.
pub const MAX_INTIDS: usize = 1020;
/// Most list registers.
pub const MAX_LRS: usize = corevisor_interface::mailbox::MAX_LIST_REGISTERS;
/// Bits of a priority that exist.
pub const PRIORITY_MASK: u8 = 0xf8;

const NOBODY: u8 = 0xff;

/// A one-bit register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bits {
    /// IGROUPR.
    Group,
    /// ISENABLER, ICENABLER.
    Enabled,
    /// ISPENDR, ICPENDR.
    Pending,
    /// ISACTIVER, ICACTIVER.
    Active,
}

/// All interrupts of a VM with up to `V` (at most 16; GICv2: 8) vCPUs and `S` SPIs.
#[derive(Clone, Debug)]
pub struct Engine<const V: usize, const S: usize> {
    form: Form,
    vcpus: usize,
    /// SPIs that there are: at most `S`.
    spis: usize,
    /// Places for LPIs behind them, and who has each.
    lpis: usize,
    lpi_numbers: [u32; S],
    private: [[Irq; PRIVATE]; V],
    shared: [Irq; S],
    /// Which interrupts have any state: most have none.
    hot_private: [u32; V],
    hot_shared: [u32; MAX_INTIDS.div_ceil(32)],
    /// Which words of `hot_shared` are not 0.
    hot_words: u32,
    /// Group 0, group 1.
    enables: [bool; 2],
    placed: [[u16; MAX_LRS]; V],
    placed_count: [usize; V],
    /// Private interrupts that ended between the last entry and exit.
    ended: [u32; V],
    /// SPIs whose end somebody wants to know, and those that ended since they were asked for.
    watched: [u32; MAX_INTIDS.div_ceil(32)],
    ended_shared: [u32; MAX_INTIDS.div_ceil(32)],
    kicks: u32,
    /// Private interrupts that the core may deliver by itself, as the mailbox has them.
    direct: [u64; V],
    /// What it was let to in the run that goes on.
    given: [u64; V],
}

impl<const V: usize, const S: usize> Engine<V, S> {
    /// After reset, for `vcpus` vCPUs (cut to what the model can have).
    pub const fn new(form: Form, vcpus: usize) -> Self {
        const { assert!(V >= 1 && V <= 16 && PRIVATE + S <= MAX_INTIDS, "more than the model can have") };
        let v3 = matches!(form, Form::V3);
        Self {
            form,
            vcpus: Self::cut(form, vcpus),
            spis: S,
            lpis: 0,
            lpi_numbers: [0; S],
            private: [Self::bank(form); V],
            shared: [Irq { group1: v3, ..Irq::RESET }; S],
            hot_private: [0; V],
            hot_shared: [0; MAX_INTIDS.div_ceil(32)],
            hot_words: 0,
            enables: [false; 2],
            placed: [[0; MAX_LRS]; V],
            placed_count: [0; V],
            ended: [0; V],
            watched: [0; MAX_INTIDS.div_ceil(32)],
            ended_shared: [0; MAX_INTIDS.div_ceil(32)],
            kicks: 0,
            direct: [0; V],
            given: [0; V],
        }
    }

    /// Most vCPUs that the model can have.
    const fn cut(form: Form, vcpus: usize) -> usize {
        let most = if matches!(form, Form::V3) || V < 8 { V } else { 8 };
        if vcpus > most { most } else { vcpus }
    }

    /// SGIs and PPIs of a vCPU after reset. SGIs are enabled: with GICv2 always, with GICv3 as KVM has them.
    const fn bank(form: Form) -> [Irq; PRIVATE] {
        let v3 = matches!(form, Form::V3);
        let mut bank = [Irq { group1: v3, ..Irq::RESET }; PRIVATE];
        let mut sgi = 0;
        while sgi < SGIS {
            bank[sgi].edge = true;
            bank[sgi].enabled = true;
            sgi += 1;
        }
        bank
    }

    /// Becomes, in place, what [`Engine::new`] makes, with `spis` SPIs (cut to what the model can have). For a caller whose stack is smaller than this.
    pub fn reset(&mut self, form: Form, vcpus: usize, spis: usize) {
        (self.form, self.vcpus, self.spis) = (form, Self::cut(form, vcpus), spis.min(S));
        (self.lpis, self.lpi_numbers) = (0, [0; S]);
        self.private.fill(Self::bank(form));
        self.shared.fill(Irq { group1: form == Form::V3, ..Irq::RESET });
        (self.hot_private, self.hot_shared, self.hot_words) = ([0; V], [0; MAX_INTIDS.div_ceil(32)], 0);
        (self.enables, self.placed_count, self.ended) = ([false; 2], [0; V], [0; V]);
        (self.watched, self.ended_shared) = ([0; MAX_INTIDS.div_ceil(32)], [0; MAX_INTIDS.div_ceil(32)]);
        (self.kicks, self.direct, self.given) = (0, [0; V], [0; V]);
    }

    /// Whose list registers it fills.
    pub const fn form(&self) -> Form {
        self.form
    }

    /// Number of vCPUs.
    pub const fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// Number of interrupts, private ones included.
    pub const fn intids(&self) -> usize {
        PRIVATE + self.spis
    }

    /// ITLinesNumber of GICD_TYPER.
    pub const fn lines_number(&self) -> u32 {
        (self.spis as u32).div_ceil(32)
    }

    fn irq(&self, vcpu: usize, intid: usize) -> Option<&Irq> {
        if intid < PRIVATE {
            self.private.get(vcpu)?.get(intid)
        } else {
            self.shared.get(intid - PRIVATE).filter(|_| intid < PRIVATE + self.spis + self.lpis)
        }
    }

    /// The vCPU that gets it.
    fn target(&self, vcpu: usize, intid: usize, irq: &Irq) -> Option<usize> {
        if intid < PRIVATE {
            return Some(vcpu);
        }
        let first = match irq.route {
            // GICv2 of a VM: as KVM has it. GICv3's route may lead to nobody.
            0 if self.form == Form::V2 => 0,
            route => route.trailing_zeros() as usize,
        };
        (first < self.vcpus).then_some(first)
    }

    fn may_signal(&self, irq: &Irq) -> bool {
        irq.enabled && self.enables[usize::from(irq.group1)]
    }

    /// Changes an interrupt, then notes who must look at it. Nothing happens if it does not exist.
    fn change(&mut self, vcpu: usize, intid: usize, change: impl FnOnce(&mut Irq)) {
        let irq = if intid < PRIVATE {
            self.private.get_mut(vcpu).and_then(|bank| bank.get_mut(intid))
        } else {
            self.shared.get_mut(intid - PRIVATE).filter(|_| intid < PRIVATE + self.spis + self.lpis)
        };
        let Some(irq) = irq else { return };
        change(irq);
        let irq = *irq;
        let hot = match intid {
            0..PRIVATE => &mut self.hot_private[vcpu],
            _ => &mut self.hot_shared[intid / 32],
        };
        *hot = *hot & !(1 << (intid % 32)) | u32::from(irq.is_hot()) << (intid % 32);
        if intid >= PRIVATE {
            let word = intid / 32;
            self.hot_words = self.hot_words & !(1 << word) | u32::from(*hot != 0) << word;
        }
        let kicked = if irq.placed.is_some() {
            Some(usize::from(irq.holder))
        } else if irq.pending() && !irq.active && self.may_signal(&irq) {
            self.target(vcpu, intid, &irq)
        } else {
            None
        };
        self.kicks |= kicked.map_or(0, |vcpu| 1 << vcpu);
        if intid < PRIVATE {
            self.note_direct(vcpu, intid, &irq);
        }
    }

    /// The line of a PPI (of `vcpu`) or SPI. A rising line makes an edge where the interrupt is edge-triggered.
    #[inline(always)]
    pub fn set_line(&mut self, vcpu: usize, intid: usize, level: bool) {
        if intid >= SGIS && self.irq(vcpu, intid).is_some_and(|irq| irq.line != level) {
            self.put_line(vcpu, intid, level);
        }
    }

    #[inline(always)]
    fn put_line(&mut self, vcpu: usize, intid: usize, level: bool) {
        self.change(vcpu, intid, |irq| {
            irq.latch |= irq.edge && level;
            irq.line = level;
        });
    }

    /// The line of an SPI as a VMM drives it: where the interrupt is edge-triggered each `true` is an edge, also if the line was up before, and perhaps still a
    /// level's; a `false` is none.
    pub fn drive(&mut self, intid: usize, level: bool) {
        let means = |irq: &Irq| if irq.edge { level || irq.line } else { irq.line != level };
        if intid >= PRIVATE && self.irq(0, intid).is_some_and(means) {
            self.put_line(0, intid, level);
        }
    }

    /// An edge on a PPI or SPI.
    pub fn pulse(&mut self, vcpu: usize, intid: usize) {
        if intid >= SGIS {
            self.change(vcpu, intid, |irq| irq.latch = true);
        }
    }

    /// SGI `sgi` from `source` to the vCPUs of the mask `targets`. `group1` limits it to targets where it is in that group.
    pub fn send_sgi(&mut self, source: usize, targets: u32, sgi: usize, group1: Option<bool>) {
        if sgi >= SGIS {
            return;
        }
        let mut left = targets & ((1 << self.vcpus) - 1);
        while left != 0 {
            let target = left.trailing_zeros() as usize;
            left &= left - 1;
            if group1.is_some_and(|group1| self.private[target][sgi].group1 != group1) {
                continue;
            }
            match self.form {
                Form::V2 => self.set_sgi_sources(target, sgi, 1 << (source & 7)),
                Form::V3 => self.change(target, sgi, |irq| irq.latch = true),
            }
        }
    }

    /// GICv2: senders of an SGI that wait for `vcpu`.
    pub fn sgi_sources(&self, vcpu: usize, sgi: usize) -> u8 {
        let Some(irq) = self.irq(vcpu, sgi).filter(|_| sgi < SGIS) else { return 0 };
        let placed = irq.placed.filter(|placed| placed.pending && !placed.withdrawn);
        irq.sources | placed.map_or(0, |placed| 1 << placed.source)
    }

    /// GICv2: SPENDSGIR.
    pub fn set_sgi_sources(&mut self, vcpu: usize, sgi: usize, sources: u8) {
        if sgi < SGIS && sources != 0 {
            self.change(vcpu, sgi, |irq| irq.sources |= sources);
        }
    }

    /// GICv2: CPENDSGIR.
    pub fn clear_sgi_sources(&mut self, vcpu: usize, sgi: usize, sources: u8) {
        if sgi < SGIS && sources != 0 {
            self.change(vcpu, sgi, |irq| {
                irq.sources &= !sources;
                if let Some(placed) = irq.placed.as_mut().filter(|placed| sources >> placed.source & 1 != 0) {
                    placed.withdrawn = true;
                }
            });
        }
    }

    /// Latches of interrupts 32 * `word` and on: pending without regard to their lines.
    pub fn latches(&self, vcpu: usize, word: usize) -> u32 {
        self.collect(vcpu, word, |irq| {
            let placed = irq.placed.is_some_and(|placed| placed.latched && placed.pending && !placed.withdrawn);
            irq.latch || placed
        })
    }

    /// Makes them what `value` says.
    pub fn set_latches(&mut self, vcpu: usize, word: usize, value: u32) {
        if word * 32 >= self.intids() {
            return;
        }
        self.write_bits(vcpu, word, Bits::Pending, !value, false);
        self.write_bits(vcpu, word, Bits::Pending, value, true);
    }

    /// Levels of the lines of interrupts 32 * `word` and on.
    pub fn lines(&self, vcpu: usize, word: usize) -> u32 {
        self.collect(vcpu, word, |irq| irq.line)
    }

    /// Makes them what `value` says, without an edge: a state that comes back, not an event.
    pub fn set_lines(&mut self, vcpu: usize, word: usize, value: u32) {
        for n in 0..32 {
            let (intid, level) = (word * 32 + n, value >> n & 1 != 0);
            if (SGIS..self.intids()).contains(&intid) && self.irq(vcpu, intid).is_some_and(|irq| irq.line != level) {
                self.change(vcpu, intid, |irq| irq.line = level);
            }
        }
    }

    fn collect(&self, vcpu: usize, word: usize, bit: impl Fn(&Irq) -> bool) -> u32 {
        (0..32).fold(0, |value, n| value | u32::from(self.irq(vcpu, word * 32 + n).is_some_and(&bit)) << n)
    }

    /// Whether the end of an SPI is to be told by [`Engine::take_ended`].
    pub fn watch(&mut self, intid: usize, on: bool) {
        if (PRIVATE..self.intids()).contains(&intid) {
            let word = &mut self.watched[intid / 32];
            *word = *word & !(1 << (intid % 32)) | u32::from(on) << (intid % 32);
            self.ended_shared[intid / 32] &= *word;
        }
    }

    /// A watched SPI that ended since it was told last.
    pub fn take_ended(&mut self) -> Option<usize> {
        let (word, bits) = self.ended_shared.iter_mut().enumerate().find(|(_, bits)| **bits != 0)?;
        let bit = bits.trailing_zeros() as usize;
        *bits &= *bits - 1;
        Some(word * 32 + bit)
    }

    /// Which groups the distributor forwards.
    pub const fn enables(&self) -> [bool; 2] {
        self.enables
    }

    /// GICD_CTLR: group 0, group 1.
    pub fn set_enables(&mut self, enables: [bool; 2]) {
        if self.enables != enables {
            self.enables = enables;
            self.kicks |= (1 << self.vcpus) - 1;
            (0..self.vcpus).for_each(|vcpu| self.note_all_direct(vcpu));
        }
    }

    /// A one-bit register: interrupts 32 * `word` and on.
    pub fn bits(&self, vcpu: usize, word: usize, bits: Bits) -> u32 {
        self.collect(vcpu, word, |irq| match bits {
            Bits::Group => irq.group1,
            Bits::Enabled => irq.enabled,
            Bits::Pending => irq.pending_anywhere(),
            Bits::Active => irq.active,
        })
    }

    /// Who has one of these interrupts in a list register knows by now whether it is active: those vCPUs have to be looked at. The answer is right when they have
    /// been; who waits for it asks again. The reader itself may be among them: its exit has told what there is to know.
    pub(crate) fn ask_holders(&mut self, vcpu: usize, word: usize) {
        for intid in word * 32..word * 32 + 32 {
            let placed = self.irq(vcpu, intid).filter(|irq| irq.placed.is_some());
            self.kicks |= placed.map_or(0, |irq| 1 << irq.holder);
        }
    }

    /// Sets or clears those bits of a one-bit register that are set in `mask`.
    pub fn write_bits(&mut self, vcpu: usize, word: usize, bits: Bits, mask: u32, set: bool) {
        for intid in (0..32).filter(|n| mask >> n & 1 != 0).map(|n| word * 32 + n) {
            if self.irq(vcpu, intid).is_none() {
                continue;
            }
            let v2_sgi = self.form == Form::V2 && intid < SGIS;
            match bits {
                Bits::Group => self.change(vcpu, intid, |irq| irq.group1 = set),
                // GICv2's SGIs are always enabled, and become pending only by SGIR and SPENDSGIR.
                Bits::Enabled | Bits::Pending if v2_sgi => {}
                Bits::Enabled => self.change(vcpu, intid, |irq| irq.enabled = set),
                Bits::Pending if set => self.change(vcpu, intid, |irq| irq.latch = true),
                Bits::Pending => self.change(vcpu, intid, |irq| {
                    irq.latch = false;
                    if let Some(placed) = &mut irq.placed {
                        placed.withdrawn = true;
                    }
                }),
                Bits::Active => self.change(vcpu, intid, |irq| {
                    irq.active = set;
                    match &mut irq.placed {
                        Some(placed) => placed.active_written = true,
                        // Until it is in a list register, it is where its route says: registers are restored in any order.
                        None if !set => irq.holder = NOBODY,
                        None => {}
                    }
                }),
            }
        }
    }

    /// Priority of an interrupt.
    pub fn priority(&self, vcpu: usize, intid: usize) -> u8 {
        self.irq(vcpu, intid).map_or(0, |irq| irq.priority)
    }

    /// Sets it.
    pub fn set_priority(&mut self, vcpu: usize, intid: usize, priority: u8) {
        self.change(vcpu, intid, |irq| irq.priority = priority & PRIORITY_MASK);
        if intid < PRIVATE {
            self.note_all_direct(vcpu);
            self.take_direct_back(vcpu, intid);
        }
    }

    /// Whether it is edge-triggered.
    pub fn is_edge(&self, vcpu: usize, intid: usize) -> bool {
        self.irq(vcpu, intid).is_some_and(|irq| irq.edge)
    }

    /// Makes an SPI edge-triggered or level-sensitive. SGIs and PPIs are what they are.
    pub fn set_edge(&mut self, intid: usize, edge: bool) {
        if intid >= PRIVATE {
            self.change(0, intid, |irq| irq.edge = edge);
        }
    }

    /// vCPUs that an SPI may go to; the lowest gets it, and the first one, with GICv2, where none is named.
    pub fn route(&self, intid: usize) -> u16 {
        if intid < PRIVATE { 0 } else { self.irq(0, intid).map_or(0, |irq| irq.route) }
    }

    /// Sets them.
    pub fn set_route(&mut self, intid: usize, route: u16) {
        if intid >= PRIVATE {
            self.change(0, intid, |irq| irq.route = route);
        }
    }

    /// `vcpu` has to be looked at for another reason.
    pub fn kick(&mut self, vcpu: usize) {
        if vcpu < self.vcpus {
            self.kicks |= 1 << vcpu;
        }
    }

    /// At reset: SPI `spi` (from 0) goes to vCPU 0.
    pub(crate) const fn reset_route(&mut self, spi: usize) {
        self.shared[spi].route = 1;
    }

    /// vCPUs for which something changed since the last call, one bit each: one that waits may have to go on, one that runs has to
    /// leave and enter again.
    pub fn take_kicks(&mut self) -> u32 {
        core::mem::take(&mut self.kicks)
    }
}
