//! The interrupt engine against a CPU interface that behaves as the architecture says, over random sequences with fixed seeds.
//!
//! Checked at every acknowledge: that the interrupt was raised and not yet delivered (edges: one raise, one delivery; a level: the line
//! is up), and if nothing is offered that nothing waits that could preempt; that it is enabled and of the highest priority that waits for this vCPU, that it is active nowhere else. Checked at the end: nothing
//! that was raised is still owed. Checked at every entry (`Interface::load`): the vCPU gets to run.
#![forbid(unsafe_code)]

mod common;

use common::{Interface, Taken};
use kserv_model::irq::{Bits, Engine, Form, HCR_LRENPIE, HCR_UIE, ListRegister};
use kserv_model::random::Random;

const SPIS: usize = 64;
const IDS: usize = 32 + SPIS;

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

struct World {
    engine: Engine<4, SPIS>,
    form: Form,
    vcpus: usize,
    cpus: Vec<Interface>,
    running: Vec<bool>,
    known: Vec<Vec<Known>>,
    /// Kicked vCPUs exit at once; else some steps later.
    prompt: bool,
    kicked: u32,
    delivered: usize,
}

impl World {
    fn new(form: Form, vcpus: usize, lrs: usize, prompt: bool, rng: &mut Random) -> Self {
        let mut world = Self {
            engine: Engine::new(form, vcpus),
            form,
            vcpus,
            cpus: (0..vcpus).map(|_| Interface::new(form, lrs)).collect(),
            running: vec![false; vcpus],
            known: vec![vec![Known::default(); IDS]; vcpus],
            prompt,
            kicked: 0,
            delivered: 0,
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
            self.running[vcpu] = true;
        }
    }

    fn exit(&mut self, vcpu: usize) {
        if self.running[vcpu] {
            self.engine.fold(vcpu, &self.cpus[vcpu].lrs, self.cpus[vcpu].ends);
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
        match intid {
            0..16 => self.engine.send_sgi(sender, 1 << vcpu, intid, None),
            _ => self.engine.pulse(vcpu, intid),
        }
        let by_sender = if self.form == Form::V2 && intid < 16 { sender } else { 0 };
        let known = self.known(vcpu, intid);
        known.owed[by_sender] = (known.owed[by_sender] + 1).min(most);
        known.due[by_sender] = true;
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

    fn step(&mut self, rng: &mut Random) {
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
    fn drain(&mut self) {
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
            assert!(!self.engine.deliverable(vcpu));
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

fn run(form: Form, prompt: bool) {
    let (mut rng, mut delivered, mut worlds) = (Random::new(0x5eed + form as u64), 0, 0);
    for vcpus in [1, 2, 4] {
        for lrs in [1, 2, 4, 16] {
            for _ in 0..12 {
                let mut world = World::new(form, vcpus, lrs, prompt, &mut rng);
                for _ in 0..1500 {
                    world.step(&mut rng);
                }
                world.drain();
                delivered += world.delivered;
                worlds += 1;
            }
        }
    }
    println!("{worlds} worlds, {delivered} interrupts");
    assert!(delivered > 10_000);
}

/// An engine with interrupts 32 and on raised, of these priorities, edge-triggered, for vCPU 0.
fn raised(form: Form, priorities: &[u8]) -> Engine<4, SPIS> {
    let mut engine = Engine::new(form, 4);
    engine.set_enables([true, true]);
    for (intid, priority) in (32..).zip(priorities) {
        engine.set_edge(intid, true);
        engine.set_route(intid, 1);
        engine.set_priority(0, intid, *priority);
        engine.write_bits(0, intid / 32, Bits::Enabled, 1 << (intid % 32), true);
        engine.pulse(0, intid);
    }
    engine
}

/// (interrupt, pending, active, EOI bit) of each list register of an entry, and the maintenance interrupts asked for.
fn entry(
    engine: &mut Engine<4, SPIS>,
    form: Form,
    lrs: &mut [u64],
    eoim: bool,
) -> (Vec<(usize, bool, bool, bool)>, u64) {
    let filled = engine.fill(0, lrs, eoim);
    let used = lrs[..filled.count].iter().map(|lr| ListRegister::decode(form, *lr));
    (used.map(|lr| (lr.intid, lr.pending, lr.active, lr.eoi)).collect(), filled.hcr)
}

/// The vCPU acknowledges what its list registers `taken` hold.
fn acknowledge(engine: &mut Engine<4, SPIS>, form: Form, lrs: &mut [u64], taken: &[usize]) {
    for n in taken {
        let lr = ListRegister::decode(form, lrs[*n]);
        lrs[*n] = ListRegister { pending: false, active: true, ..lr }.encode(form);
    }
    engine.fold(0, lrs, 0);
}

#[test]
fn when_there_are_more_than_list_registers_the_most_urgent_go_first_and_the_rest_is_asked_for() {
    for form in [Form::V2, Form::V3] {
        let mut engine = raised(form, &[0xa0, 0x80, 0xa0, 0x90, 0xa0]);
        let mut lrs = [0; 4];
        let (held, hcr) = entry(&mut engine, form, &mut lrs[..2], false);
        assert_eq!((held, hcr), (vec![(33, true, false, false), (35, true, false, true)], HCR_UIE));
        // With one register UIE would never let the vCPU run.
        let (held, hcr) = entry(&mut engine, form, &mut lrs[..1], false);
        assert_eq!((held, hcr), (vec![(33, true, false, true)], 0));
        let (held, hcr) = entry(&mut engine, form, &mut lrs, false);
        assert_eq!((held.len(), hcr), (4, HCR_UIE));
        let (held, hcr) = entry(&mut engine, form, &mut [0; 5], false);
        assert_eq!((held.iter().any(|lr| lr.3), held.len(), hcr), (false, 5, 0));
        assert!(entry(&mut engine, form, &mut [], false).0.is_empty() && engine.deliverable(0));
    }
}

#[test]
fn what_can_preempt_all_active_ones_takes_a_register_and_the_others_end_is_counted() {
    for form in [Form::V2, Form::V3] {
        let mut engine = raised(form, &[0xa0, 0x90]);
        let mut lrs = [0; 2];
        entry(&mut engine, form, &mut lrs, false);
        acknowledge(&mut engine, form, &mut lrs, &[0, 1]);
        for (priority, held, hcr) in [
            (0xa0, vec![(33, false, true, true), (32, false, true, false)], HCR_UIE),
            (0x80, vec![(33, false, true, false), (34, true, false, true)], HCR_UIE | HCR_LRENPIE),
        ] {
            engine.set_edge(34, true);
            engine.set_route(34, 1);
            engine.set_priority(0, 34, priority);
            engine.write_bits(0, 1, Bits::Enabled, 1 << 2, true);
            engine.pulse(0, 34);
            assert_eq!(entry(&mut engine, form, &mut lrs, false), (held, hcr));
        }
        // The end of what has no register.
        acknowledge(&mut engine, form, &mut lrs, &[]);
        entry(&mut engine, form, &mut lrs, false);
        engine.fold(0, &lrs, 1);
        assert_eq!(engine.bits(0, 1, Bits::Active), 0b10);
    }
}

#[test]
fn where_ends_and_deactivations_are_apart_active_ones_hold_nothing_back() {
    let mut engine = raised(Form::V3, &[0x80]);
    let mut lrs = [0; 1];
    entry(&mut engine, Form::V3, &mut lrs, true);
    acknowledge(&mut engine, Form::V3, &mut lrs, &[0]);
    engine.set_route(33, 1);
    engine.set_priority(0, 33, 0xa0);
    engine.write_bits(0, 1, Bits::Enabled, 1 << 1, true);
    engine.set_line(0, 33, true);
    assert_eq!(entry(&mut engine, Form::V3, &mut lrs, false).0, [(32, false, true, true)]);
    assert_eq!(entry(&mut engine, Form::V3, &mut lrs, true).0, [(33, true, false, true)]);
}

#[test]
fn what_another_vcpu_writes_to_active_and_pending_state_wins_over_the_list_register() {
    for (pending, active) in [(false, false), (true, false), (false, true)] {
        let mut engine = raised(Form::V2, &[0x80]);
        let mut lrs = [0; 4];
        entry(&mut engine, Form::V2, &mut lrs, false);
        engine.take_kicks();
        engine.write_bits(1, 1, Bits::Pending, 1, pending);
        engine.write_bits(1, 1, Bits::Active, 1, active);
        assert_eq!(engine.take_kicks(), 1, "the vCPU that has it is told");
        // Meanwhile it was acknowledged, or not.
        for taken in [&[0][..], &[]] {
            let (mut engine, mut lrs) = (engine.clone(), lrs);
            acknowledge(&mut engine, Form::V2, &mut lrs, taken);
            assert_eq!(
                (engine.bits(0, 1, Bits::Pending), engine.bits(0, 1, Bits::Active)),
                (pending.into(), active.into())
            );
            assert_eq!(engine.is_held(0, 32), active);
            assert_eq!(engine.deliverable(0), pending && !active);
        }
    }
    // A guest may make an interrupt active that never was.
    let mut engine = Engine::<4, SPIS>::new(Form::V2, 1);
    engine.write_bits(0, 2, Bits::Active, 2, true);
    assert_eq!(entry(&mut engine, Form::V2, &mut [0; 4], false).0, [(65, false, true, false)]);
    engine.fold(0, &[0; 4], 0);
    assert_eq!(engine.bits(0, 2, Bits::Active), 0);
}

#[test]
fn v2_loses_no_interrupt_and_delivers_none_twice() {
    run(Form::V2, true);
}

#[test]
fn v3_loses_no_interrupt_and_delivers_none_twice() {
    run(Form::V3, true);
}

#[test]
fn v2_loses_nothing_when_vcpus_are_slow_to_exit() {
    run(Form::V2, false);
}

#[test]
fn v3_loses_nothing_when_vcpus_are_slow_to_exit() {
    run(Form::V3, false);
}
