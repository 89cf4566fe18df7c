//! The interrupt engine next to what is known of every interrupt.
#![forbid(unsafe_code)]
#![allow(dead_code, missing_docs)]

use kserv_model::irq::{Bits, Engine, Form};

use super::{Interface, Taken};
use corevisor_evidence::Rng;

pub const SPIS: usize = 64;
pub const IDS: usize = 32 + SPIS;

/// What the oracle knows of one interrupt of one vCPU (SPIs: of vCPU 0).
#[derive(Clone, Copy, Default)]
struct Known {
    /// Deliveries that raises have paid for, by sender for SGIs of GICv2.
    owed: [u8; 8],
    /// Raised since the last delivery, by sender.
    due: [bool; 8],
    line: bool,
    enabled: bool,
    edge: bool,
    priority: u8,
    target: usize,
    active_on: Option<usize>,
}

pub struct World {
    engine: Engine<4, SPIS>,
    form: Form,
    vcpus: usize,
    cpus: Vec<Interface>,
    running: Vec<bool>,
    known: Vec<Vec<Known>>,
    /// Kicked vCPUs exit at once; else some steps later.
    prompt: bool,
    kicked: u32,
    /// What the core may deliver by itself, and what it could not: SGIs by bit.
    core: Vec<Option<(u64, u64)>>,
    pub delivered: usize,
    pub by_core: usize,
}

impl World {
    pub fn new(form: Form, vcpus: usize, lrs: usize, prompt: bool, rng: &mut Rng) -> Self {
        let mut world = Self {
            engine: Engine::new(form, vcpus),
            form,
            vcpus,
            cpus: (0..vcpus).map(|_| Interface::new(form, lrs)).collect(),
            running: vec![false; vcpus],
            known: vec![vec![Known::default(); IDS]; vcpus],
            prompt,
            kicked: 0,
            core: vec![None; vcpus],
            delivered: 0,
            by_core: 0,
        };
        world.engine.set_enables([true, true]);
        for vcpu in 0..vcpus {
            for intid in 0..if vcpu == 0 { IDS } else { 32 } {
                let priority = rng.below(6) as u8 * 8 + 0x80;
                world.engine.set_priority(vcpu, intid, priority);
                world.enable(vcpu, intid, true);
                let edge = intid < 16 || intid >= 32 && intid % 2 == 0;
                world.engine.set_edge(intid, edge);
                let target = rng.below(vcpus as u64) as usize;
                world.engine.set_route(intid, 1 << target);
                let target = if intid < 32 { vcpu } else { target };
                let known = &mut world.known[vcpu][intid];
                *known = Known { priority, edge, target, ..*known };
            }
        }
        world
    }

    /// From now on the core delivers SGIs by itself, as far as it may.
    pub fn use_core(&mut self) {
        self.core.fill(Some((0, 0)));
        for vcpu in 0..self.vcpus {
            for sgi in 0..16 {
                self.engine.set_priority(vcpu, sgi, 0x90);
                self.known(vcpu, sgi).priority = 0x90;
            }
        }
    }

    fn known(&mut self, vcpu: usize, intid: usize) -> &mut Known {
        &mut self.known[if intid < 32 { vcpu } else { 0 }][intid]
    }

    fn enable(&mut self, vcpu: usize, intid: usize, enabled: bool) {
        if self.form == Form::V2 && intid < 16 && !enabled {
            return;
        }
        self.engine.write_bits(vcpu, intid / 32, Bits::Enabled, 1 << (intid % 32), enabled);
        self.known(vcpu, intid).enabled = enabled;
    }

    fn enter(&mut self, vcpu: usize) {
        if !self.running[vcpu] {
            let filled = self.engine.fill(vcpu, &mut self.cpus[vcpu].lrs, false);
            self.cpus[vcpu].load(filled);
            if let Some((may, left)) = &mut self.core[vcpu] {
                (*may, *left) = (if filled.hcr == 0 { self.engine.direct(vcpu) } else { 0 }, 0);
            }
            self.running[vcpu] = true;
        }
    }

    fn exit(&mut self, vcpu: usize) {
        if self.running[vcpu] {
            self.engine.fold(vcpu, &self.cpus[vcpu].lrs, self.cpus[vcpu].ends);
            self.core[vcpu].into_iter().for_each(|(_, left)| self.engine.sent_to(vcpu, left));
            self.running[vcpu] = false;
        }
    }

    /// Serves the kicks, and maintenance interrupts.
    fn settle(&mut self, delay: bool) {
        self.kicked |= self.engine.take_kicks();
        for vcpu in 0..self.vcpus {
            let must = self.cpus[vcpu].maintenance() || !delay && self.kicked >> vcpu & 1 != 0;
            if self.running[vcpu] && must {
                self.exit(vcpu);
                self.enter(vcpu);
                self.kicked &= !(1 << vcpu);
            }
        }
        // An exit may have freed what another one waits for.
        let again = self.engine.take_kicks();
        if again != 0 && !delay {
            self.kicked |= again;
            self.settle(false);
        }
        self.kicked |= again;
    }

    fn raise(&mut self, vcpu: usize, intid: usize, sender: usize, most: u8) {
        match (intid, self.core[vcpu]) {
            (0..16, Some((may, _))) if self.running[vcpu] => self.send_by_core(vcpu, intid, may),
            (0..16, _) => self.engine.send_sgi(sender, 1 << vcpu, intid, None),
            _ => self.engine.pulse(vcpu, intid),
        }
        let by_sender = if self.form == Form::V2 && intid < 16 { sender } else { 0 };
        let known = self.known(vcpu, intid);
        known.owed[by_sender] = (known.owed[by_sender] + 1).min(most);
        known.due[by_sender] = true;
    }

    /// A vCPU sends to one that runs; what has no place there is shown with its exit.
    fn send_by_core(&mut self, vcpu: usize, sgi: usize, may: u64) {
        if may >> sgi & 1 != 0 && self.cpus[vcpu].deliver(sgi, (may >> 16) as u8) {
            self.by_core += 1;
            return;
        }
        if let Some((_, left)) = &mut self.core[vcpu] {
            *left |= 1 << sgi;
        }
        self.exit(vcpu);
        self.enter(vcpu);
    }

    fn set_line(&mut self, vcpu: usize, intid: usize, line: bool) {
        self.engine.set_line(vcpu, intid, line);
        self.known(vcpu, intid).line = line;
    }

    fn taken(&mut self, vcpu: usize, taken: Taken) {
        let prompt = self.prompt;
        let best = self.best(vcpu);
        let source = usize::from(taken.source);
        let known = self.known(vcpu, taken.intid);
        assert_eq!(known.active_on, None, "{taken:?} is active twice");
        known.active_on = Some(vcpu);
        if known.edge {
            assert!(known.owed[source] > 0, "{taken:?} was delivered twice");
            known.owed[source] -= 1;
            known.due[source] = false;
        } else {
            assert!(known.line || !prompt, "{taken:?} has no line");
        }
        assert!(known.enabled && known.target == vcpu || !prompt, "{taken:?} is not for vCPU {vcpu}");
        assert!(best.is_none_or(|best| taken.priority <= best) || !prompt, "{best:?} waits, {taken:?} was taken");
        self.delivered += 1;
    }

    /// The highest priority that waits for a vCPU.
    fn best(&self, vcpu: usize) -> Option<u8> {
        let all = (0..IDS).map(|intid| &self.known[if intid < 32 { vcpu } else { 0 }][intid]);
        let waits = all.filter(|known| {
            let pending = if known.edge { known.owed.iter().any(|owed| *owed > 0) } else { known.line };
            pending && known.enabled && known.active_on.is_none() && known.target == vcpu
        });
        waits.map(|known| known.priority).min()
    }

    fn acknowledge(&mut self, vcpu: usize) -> bool {
        let running = self.cpus[vcpu].stack.last().map(|running| running.priority);
        let taken = self.cpus[vcpu].acknowledge();
        match taken {
            Some(taken) => self.taken(vcpu, taken),
            None if self.prompt => {
                let held_back = self.best(vcpu).is_none_or(|best| running.is_some_and(|running| running <= best));
                assert!(held_back, "{:?} waits, nothing is offered", self.best(vcpu));
            }
            None => {}
        }
        taken.is_some()
    }

    /// Ends the running interrupt; a level's handler mostly lowers the line first, by an access that exits.
    fn end(&mut self, vcpu: usize, lower: bool) {
        let Some(taken) = self.cpus[vcpu].stack.last().copied() else { return };
        if lower && !self.known(vcpu, taken.intid).edge {
            self.exit(vcpu);
            self.set_line(vcpu, taken.intid, false);
            self.enter(vcpu);
        }
        let ended = self.cpus[vcpu].end().unwrap();
        self.known(vcpu, ended.intid).active_on = None;
    }

    pub fn step(&mut self, rng: &mut Rng) {
        let vcpu = rng.below(self.vcpus as u64) as usize;
        // A few interrupts, so that they meet.
        let intid = rng.pick(&[1, 2, 3, 27, 30, 33, 34, 35, 36, 38, 40, 41, 64, 90]);
        let edge = self.known(vcpu, intid).edge;
        let running = self.running[vcpu];
        match rng.below(16) {
            0..=3 if edge => {
                let sender = rng.below(self.vcpus as u64) as usize;
                self.raise(vcpu, intid, sender, if self.prompt { 1 } else { 2 });
            }
            0..=3 => self.set_line(vcpu, intid, true),
            4 => self.enable(vcpu, intid, rng.below(3) != 0),
            5 if intid >= 32 => {
                let target = rng.below(self.vcpus as u64) as usize;
                self.engine.set_route(intid, 1 << target);
                self.known(vcpu, intid).target = target;
            }
            6 if self.prompt && edge && intid >= 16 => {
                self.engine.write_bits(vcpu, intid / 32, Bits::Pending, 1 << (intid % 32), false);
                (self.known(vcpu, intid).owed, self.known(vcpu, intid).due) = ([0; 8], [false; 8]);
            }
            7 if !edge && !self.prompt => self.set_line(vcpu, intid, false),
            8 => self.exit(vcpu),
            9..=10 => self.enter(vcpu),
            11..=13 if running => {
                self.acknowledge(vcpu);
            }
            _ if running => self.end(vcpu, rng.below(4) != 0),
            _ => {}
        }
        let delay = !self.prompt && rng.below(4) != 0;
        self.settle(delay);
    }

    /// Lets every vCPU serve all it has.
    pub fn drain(&mut self) {
        for vcpu in 0..self.vcpus {
            for intid in 0..if vcpu == 0 { IDS } else { 32 } {
                self.enable(vcpu, intid, true);
            }
        }
        for _ in 0..IDS * 8 {
            for vcpu in 0..self.vcpus {
                self.enter(vcpu);
                self.settle(false);
                if !self.acknowledge(vcpu) {
                    self.end(vcpu, true);
                }
                self.settle(false);
            }
        }
        (0..self.vcpus).for_each(|vcpu| self.exit(vcpu));
        for vcpu in 0..self.vcpus {
            assert!(!self.engine.deliverable(vcpu, u8::MAX));
            for intid in 0..IDS {
                let known = self.known(vcpu, intid);
                assert_eq!((known.active_on, known.line), (None, false), "{intid} of {vcpu}");
            }
            assert!(self.cpus[vcpu].stack.is_empty());
            assert!((0..3).all(|word| self.engine.bits(vcpu, word, Bits::Pending) == 0));
            assert!((0..3).all(|word| self.engine.bits(vcpu, word, Bits::Active) == 0));
        }
        assert!(self.known.iter().flatten().all(|known| known.due == [false; 8]), "an interrupt was lost");
        assert!(!self.prompt || self.known.iter().flatten().all(|known| known.owed == [0; 8]));
    }
}
