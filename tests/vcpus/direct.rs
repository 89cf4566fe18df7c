//! Interrupts that the core delivers by itself: next to the specification over random runs, and from vCPU to vCPU.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::bench::{Bench, ENTRY, TREE, word_of};
use corevisor::abstract_machine::addr::{Pa, Pfn};
use corevisor::abstract_machine::shadow::{BankReg, Context};
use corevisor::abstract_machine::sim::run_as;
use corevisor::abstract_machine::sim::worlds::Script;
use corevisor::abstract_machine::{ExitCode, Machine, VgicInfo, Worlds};
use corevisor::interface::CallError;
use corevisor::interface::calls::VM_ORDINARY;
use corevisor::interface::mailbox::{
    DIRECT_KICK, DIRECT_KICK_SGI_SHIFT, DIRECT_KNOWN, DIRECT_TIMER, ENTRY_TIMER_UNMASK, ExitReason, START_PSTATE,
};
use corevisor::spec::direct::{self as spec, Allowed, Lr, Running, TIMER};
use corevisor::trap::trap_handler::host_vcpu_run_handler;
use corevisor_evidence::{Rng, factor, tell};

const MOST: usize = 4;
const WFI: u64 = 0x01 << 26;
/// MSR ICC_SGI1R_EL1, x3.
const SGI1R: u64 = 0x18 << 26 | 1 << 25 | 3 << 20 | 5 << 17 | 12 << 10 | 11 << 1 | 3 << 5;
const CTL: usize = BankReg::CntvCtl as usize;

fn gicv3(bench: &Bench) {
    let info = VgicInfo { version: 3, list_registers: MOST as u8, gicv: None };
    bench.host.world.sim().set_vgic(info);
}

/// What the VM and the specification have done so far.
struct Story {
    rng: Rng,
    running: Running,
    left: u32,
    exit: Option<ExitReason>,
    served: u64,
}

impl Story {
    /// The vCPU goes on: it has what the specification says, does something, and leaves.
    fn step(&mut self, context: &mut Context) -> ExitCode {
        assert_eq!(self.exit, None, "the vCPU should have left");
        self.compare(&context.vgic, context.bank[CTL]);
        self.left -= 1;
        let rng = &mut self.rng;
        for (n, lr) in self.running.lrs.iter_mut().enumerate() {
            match rng.below(4) {
                0 if lr.pending => (lr.pending, lr.active) = (false, true),
                1 => lr.active = false,
                _ => {}
            }
            context.vgic[n] = lr.raw();
        }
        if rng.below(2) == 0 {
            self.running.ctl = rng.below(8);
            context.bank[CTL] = self.running.ctl;
        } else if rng.below(2) == 0 {
            // Time passes, or the VM sets the timer anew.
            self.running.ctl ^= 4;
            context.bank[CTL] = self.running.ctl;
        }
        if self.left == 0 {
            context.syndrome[0] = WFI;
            self.exit = Some(ExitReason::Wfx);
            return ExitCode::Trap;
        }
        // Mostly by what is due, so that a run is long.
        let ended = self.running.timer.is_some_and(|n| !self.running.lrs[n].pending && !self.running.lrs[n].active);
        let due = self.running.ctl & 7 == 5 || ended;
        if rng.below(8) < if due { 6 } else { 1 } { self.interrupted() } else { self.sends(context) }
    }

    fn compare(&self, vgic: &[u64], ctl: u64) {
        let expected: Vec<_> = self.running.lrs.iter().map(Lr::raw).collect();
        assert_eq!(vgic[..expected.len()], expected);
        assert!(vgic[expected.len()..16].iter().all(|lr| *lr == 0), "{vgic:x?}");
        assert_eq!(ctl, self.running.ctl);
    }

    fn interrupted(&mut self) -> ExitCode {
        match spec::interrupted(&self.running) {
            Some(next) => {
                self.running = next;
                self.served += 1;
            }
            None => {
                let fires = self.running.ctl & 7 == 5;
                self.exit = Some(if fires { ExitReason::Timer } else { ExitReason::Irq });
            }
        }
        ExitCode::Irq
    }

    fn sends(&mut self, context: &mut Context) -> ExitCode {
        let rng = &mut self.rng;
        let to = if rng.below(4) == 0 { rng.next() & 3 } else { 1 };
        let odd = if rng.below(8) == 0 { 1 << rng.pick(&[16, 23, 32, 39, 40, 44, 47, 48, 55]) } else { 0 };
        let value = rng.below(4) << 24 | to | odd;
        (context.syndrome[0], context.x[3], context.pstate) = (SGI1R, value, 5);
        match spec::send(&self.running, 0, value) {
            // There is no other vCPU that runs.
            Some((next, _, 0)) => {
                self.running = next;
                self.served += 1;
            }
            _ => self.exit = Some(ExitReason::Sysreg),
        }
        ExitCode::Trap
    }
}

fn random_lrs(rng: &mut Rng) -> Vec<Lr> {
    let mut intids = vec![0, 1, 2, TIMER, 40];
    (0..rng.below(MOST as u64 + 1))
        .map(|_| {
            let intid = intids.remove(rng.below(intids.len() as u64) as usize);
            let (state, eoi) = (rng.below(4), rng.below(2) == 0);
            let (pending, active) = (state & 1 != 0, state & 2 != 0);
            Lr { intid, priority: 0x80, pending, active, group1: true, eoi }
        })
        .collect()
}

#[test]
fn every_interrupt_is_delivered_or_is_the_hosts_as_the_specification_says() {
    let bench = Bench::started(VM_ORDINARY);
    gicv3(&bench);
    let rng = &mut Rng::new(2831);
    let (mut rounds, mut served, mut masked) = (0, 0, false);
    for _ in 0..2_000 * factor() {
        let lrs = random_lrs(rng);
        let allowed = match rng.below(8) {
            0 => 0,
            1..6 => DIRECT_TIMER | 0xf | 0x90 << 16 | 0xa0 << 30,
            _ => rng.next() & DIRECT_KNOWN & !DIRECT_KICK,
        };
        let unmask = rng.below(2) == 0;
        let words: Vec<_> = lrs.iter().enumerate().map(|(n, lr)| (word_of("lr") + n, lr.raw())).collect();
        bench.write_mailbox(&words);
        bench.write_mailbox(&[(word_of("lr_count"), lrs.len() as u64), (word_of("direct"), allowed)]);
        bench.write_mailbox(&[(word_of("entry_flags"), if unmask { ENTRY_TIMER_UNMASK } else { 0 })]);
        masked &= !unmask;
        // What the VM left in its timer's control.
        let ctl = bench.mailbox()[word_of("cntv_ctl")] | if masked { 2 } else { 0 };
        let running = Running::new(lrs, MOST, ctl, masked, Allowed(allowed));
        let left = 1 + rng.below(12) as u32;
        let story = Story { rng: Rng::new(rng.next()), running, left, exit: None, served: 0 };
        let story = Arc::new(Mutex::new(story));
        let script = story.clone();
        bench.host.world.sim().set_script(Box::new(move |context| script.lock().unwrap().step(context)));
        let reason = bench.run().unwrap();
        let story = story.lock().unwrap();
        assert_eq!(Some(reason), story.exit);
        let shown = bench.mailbox();
        let lrs = &shown[word_of("lr")..][..16];
        assert_eq!(shown[word_of("lr_count")], story.running.lrs.len() as u64);
        for (n, lr) in story.running.lrs.iter().enumerate() {
            assert_eq!(lrs[n], lr.raw(), "list register {n}");
        }
        // The core's mask is not the VM's.
        let was = story.running.masked && story.running.ctl & 2 != 0;
        assert_eq!(shown[word_of("cntv_ctl")], if was { story.running.ctl & !2 } else { story.running.ctl });
        masked = was || reason == ExitReason::Timer;
        assert_eq!(shown[word_of("sgis")], 0);
        (rounds, served) = (rounds + 1, served + story.served);
    }
    assert!(2 * served > rounds, "{served} interrupts were served in {rounds} runs");
    tell("vcpus: interrupts without a host", &[("runs", rounds), ("served", served)]);
}

#[test]
fn what_the_core_may_deliver_has_known_bits_and_a_gicv3() {
    let bench = Bench::started(VM_ORDINARY);
    for version in [0, 2, 3] {
        bench.host.world.sim().set_vgic(VgicInfo { version, list_registers: 4, gicv: None });
        for bit in 0..64 {
            bench.write_mailbox(&[(word_of("direct"), 1 << bit)]);
            let refused = Allowed(1 << bit).is_refused(version);
            let expected = if refused { Err(CallError::InvalidParameter) } else { Ok(ExitReason::Irq) };
            assert_eq!(bench.run(), expected, "bit {bit}, GICv{version}");
            assert_eq!(refused, version != 3 || 1 << bit & DIRECT_KNOWN == 0, "bit {bit}, GICv{version}");
        }
    }
}

/// The host's SGI by which the core interrupts CPUs.
pub const KICK: u8 = 9;
pub const ALL: u64 = 0xffff | 0xa0 << 16 | DIRECT_KICK | (KICK as u64) << DIRECT_KICK_SGI_SHIFT;

/// Two vCPUs, 0 on CPU 0 and 1 on CPU 1.
pub struct Two {
    pub bench: Bench,
}

impl Two {
    pub fn new() -> Self {
        let bench = Bench::with_vcpus(VM_ORDINARY, 2);
        gicv3(&bench);
        let two = Self { bench };
        for vcpu in 0..2 {
            (0..512).for_each(|word| two.write(vcpu, word, 0));
            let start = [("pc", ENTRY), ("pstate", START_PSTATE), ("x0", TREE), ("lr_count", 0), ("direct", ALL)];
            start.iter().for_each(|(field, value)| two.write(vcpu, word_of(field), *value));
            assert_eq!(two.run(vcpu), Ok(ExitReason::Irq));
        }
        two
    }

    pub fn write(&self, vcpu: usize, word: usize, value: u64) {
        let page = Pfn::containing(Pa::new(self.bench.mailboxes[vcpu]));
        self.bench.host.world.sim().write_page(page, word, &[value]);
    }

    fn run(&self, vcpu: usize) -> Result<ExitReason, CallError> {
        run_as(vcpu);
        let x0 = host_vcpu_run_handler(&self.bench.host.world.core, self.bench.vm, vcpu as u64);
        run_as(0);
        ExitReason::from_x0(x0).ok_or_else(|| CallError::from_x0(x0).unwrap())
    }

    pub fn shown(&self, vcpu: usize, field: &str) -> u64 {
        self.bench.mailbox_of(vcpu)[word_of(field)]
    }

    /// vCPU 1 runs on CPU 1 and stops somewhere, of which `has_stopped` hears; `act` happens; it goes on when `go` says so. How it left.
    fn beside_one<R>(&self, has_stopped: &Receiver<()>, go: Sender<()>, act: impl FnOnce() -> R) -> (R, ExitReason) {
        let (core, vm) = (&self.bench.host.world.core, self.bench.vm);
        thread::scope(|threads| {
            // Dropped by a failure of `act`, so that the other thread comes to its end.
            let go = go;
            let one = threads.spawn(move || {
                run_as(1);
                host_vcpu_run_handler(core, vm, 1)
            });
            has_stopped.recv().unwrap();
            let result = act();
            go.send(()).unwrap();
            (result, ExitReason::from_x0(one.join().unwrap()).unwrap())
        })
    }

    /// vCPU 1 runs on CPU 1; meanwhile `act` happens; then vCPU 1 is interrupted, and goes on with `then` if it still runs. How it left.
    pub fn while_one_runs<R>(&self, act: impl FnOnce() -> R, then: Script) -> (R, ExitReason) {
        let sim = self.bench.host.world.sim();
        let (entered, has_entered) = channel();
        let (go, may_go) = channel();
        sim.set_script(Box::new(move |_| {
            entered.send(()).unwrap();
            may_go.recv().unwrap();
            ExitCode::Irq
        }));
        let act = || {
            let result = act();
            sim.set_script(then);
            result
        };
        self.beside_one(&has_entered, go, act)
    }

    /// vCPU 0, on CPU 0, writes `value` to ICC_SGI1R_EL1, and is interrupted afterwards.
    pub fn sends(&self, value: u64) -> Result<ExitReason, CallError> {
        let mut sent = false;
        self.bench.host.world.sim().set_script(Box::new(move |context| {
            if std::mem::replace(&mut sent, true) {
                return ExitCode::Irq;
            }
            (context.syndrome[0], context.x[3], context.pstate) = (SGI1R, value, 5);
            ExitCode::Trap
        }));
        self.run(0)
    }
}

/// The first list register must be this; then the vCPU is interrupted by something that is the host's.
pub fn finds(lr: u64) -> Script {
    Box::new(move |context| {
        assert_eq!(context.vgic[0], lr);
        ExitCode::Irq
    })
}

pub fn never() -> Script {
    Box::new(|_| panic!("the vCPU should have left"))
}

pub const SGI_5_TO_1: u64 = 5 << 24 | 0b10;

pub fn sgi(intid: u64) -> u64 {
    Lr { intid, priority: 0xa0, pending: true, active: false, group1: true, eoi: false }.raw()
}

#[test]
fn an_sgi_to_a_running_vcpu_needs_no_host() {
    let two = Two::new();
    let (sender, receiver) = two.while_one_runs(|| two.sends(SGI_5_TO_1), finds(sgi(5)));
    assert_eq!((sender, receiver), (Ok(ExitReason::Irq), ExitReason::Irq));
    assert_eq!((two.shown(1, "lr_count"), two.shown(1, "lr"), two.shown(1, "sgis")), (1, sgi(5), 0));
    assert_eq!((two.shown(0, "lr_count"), two.shown(0, "sgis")), (0, 0));
    assert_eq!(two.bench.host.world.sim().kicks(), []);
}

#[test]
fn an_sgi_to_both_is_one_step_and_nothing_if_the_other_does_not_run() {
    let two = Two::new();
    let (sender, receiver) = two.while_one_runs(|| two.sends(2 << 24 | 0b11), finds(sgi(2)));
    assert_eq!((sender, receiver), (Ok(ExitReason::Irq), ExitReason::Irq));
    assert_eq!((two.shown(0, "lr_count"), two.shown(0, "lr")), (1, sgi(2)));
    // Not the sender's part of it either: the host does it all.
    two.write(0, word_of("lr_count"), 0);
    assert_eq!(two.sends(2 << 24 | 0b11), Ok(ExitReason::Sysreg));
    assert_eq!((two.shown(0, "lr_count"), two.bench.host.world.sim().kicks().len()), (0, 0));
    // Nor is there a third vCPU.
    let (sender, receiver) = two.while_one_runs(|| two.sends(2 << 24 | 0b110), never());
    assert_eq!((sender, receiver, two.shown(1, "sgis")), (Ok(ExitReason::Sysreg), ExitReason::Irq, 0));
}

#[test]
fn an_sgi_that_the_receiver_may_not_have_from_the_core_is_shown_to_its_host() {
    let two = Two::new();
    two.write(1, word_of("direct"), ALL & !(1 << 5));
    let (sender, receiver) = two.while_one_runs(|| two.sends(SGI_5_TO_1), never());
    assert_eq!((sender, receiver), (Ok(ExitReason::Irq), ExitReason::Irq));
    assert_eq!((two.shown(1, "lr_count"), two.shown(1, "sgis")), (0, 1 << 5));
    // It is told once.
    let (_, receiver) = two.while_one_runs(|| (), never());
    assert_eq!((receiver, two.shown(1, "sgis")), (ExitReason::Irq, 0));
}

#[test]
fn an_sgi_for_which_no_list_register_is_free_is_shown_to_the_host() {
    let two = Two::new();
    for n in 0..MOST {
        two.write(1, word_of("lr") + n, sgi(10 + n as u64));
    }
    two.write(1, word_of("lr_count"), MOST as u64);
    let (sender, receiver) = two.while_one_runs(|| two.sends(SGI_5_TO_1), never());
    assert_eq!((sender, receiver), (Ok(ExitReason::Irq), ExitReason::Irq));
    assert_eq!((two.shown(1, "lr_count"), two.shown(1, "sgis")), (MOST as u64, 1 << 5));
}

#[test]
fn an_sgi_is_not_lost_when_the_receiver_leaves_before_it_is_kicked() {
    let two = Two::new();
    let sim = two.bench.host.world.sim();
    let lose_the_kick = || {
        let sender = two.sends(SGI_5_TO_1);
        assert_eq!(sim.kicks(), [(1, KICK)]);
        run_as(1);
        assert!(sim.take_kick(KICK));
        run_as(0);
        sender
    };
    let (sender, receiver) = two.while_one_runs(lose_the_kick, never());
    assert_eq!((sender, receiver), (Ok(ExitReason::Irq), ExitReason::Irq));
    assert_eq!((two.shown(1, "lr_count"), two.shown(1, "sgis")), (0, 1 << 5));
}

#[test]
fn an_sgi_to_a_vcpu_on_its_way_out_is_shown_with_its_exit() {
    let two = Two::new();
    let (leaving, is_leaving) = channel();
    let (go, may_go) = channel();
    let mut first = true;
    // Its registers are saved; what the exit shows is not shown yet.
    two.bench.host.world.sim().set_leaving(Box::new(move || {
        if std::mem::take(&mut first) {
            leaving.send(()).unwrap();
            may_go.recv().unwrap();
        }
    }));
    two.bench.host.world.sim().set_script(Box::new(|_| ExitCode::Irq));
    let (sender, receiver) = two.beside_one(&is_leaving, go, || two.sends(SGI_5_TO_1));
    assert_eq!((sender, receiver), (Ok(ExitReason::Irq), ExitReason::Irq));
    assert_eq!((two.shown(1, "lr_count"), two.shown(1, "sgis")), (0, 1 << 5));
    // From then on it does not run.
    assert_eq!(two.sends(SGI_5_TO_1), Ok(ExitReason::Sysreg));
}

/// A vCPU with random list registers that may have some SGIs from the core, and gets some.
#[test]
fn a_kick_delivers_what_the_specification_says_and_the_rest_is_shown() {
    let two = Two::new();
    let rng = &mut Rng::new(3119);
    let (mut all, mut some, mut waited) = (0, 0, 0);
    for _ in 0..400 * factor() {
        let lrs = random_lrs(rng);
        let allowed = rng.next() & 0xffff | (0x80 + rng.below(8) * 8) << 16;
        for (n, lr) in lrs.iter().enumerate() {
            two.write(1, word_of("lr") + n, lr.raw());
        }
        two.write(1, word_of("lr_count"), lrs.len() as u64);
        two.write(1, word_of("direct"), allowed | DIRECT_KICK | u64::from(KICK) << DIRECT_KICK_SGI_SHIFT);
        let posted: u16 = (0..1 + rng.below(4)).map(|_| 1 << rng.below(16)).fold(0, |all, sgi| all | sgi);
        let (expected, left) = spec::kicked(&Running::new(lrs, MOST, 0, false, Allowed(allowed)), posted);
        let found: Vec<_> = expected.lrs.iter().map(Lr::raw).collect();
        let waits = rng.below(4) == 0;
        let goes_on = spec::goes_on(left, waits);
        let then = Box::new(move |context: &mut Context| {
            assert!(goes_on, "the vCPU should have left");
            assert_eq!(context.vgic[..found.len()], found);
            ExitCode::Irq
        });
        let send = || {
            two.write(0, word_of("lr_count"), 0);
            for sgi in (0..16).filter(|sgi| posted >> sgi & 1 != 0) {
                assert_eq!(two.sends(sgi << 24 | 0b10), Ok(ExitReason::Irq));
            }
            two.bench.host.world.sim().set_waiting(1, waits);
        };
        let ((), exit) = two.while_one_runs(send, then);
        assert_eq!(exit, ExitReason::Irq);
        assert_eq!((two.shown(1, "lr_count"), two.shown(1, "sgis")), (expected.lrs.len() as u64, left.into()));
        let shown = &two.bench.mailbox_of(1)[word_of("lr")..];
        expected.lrs.iter().zip(shown).for_each(|(lr, shown)| assert_eq!(*shown, lr.raw()));
        two.bench.host.world.sim().set_waiting(1, false);
        (all, some, waited) = (all + u64::from(goes_on), some + u64::from(left != 0), waited + u64::from(waits));
    }
    assert!(all > 0 && some > all / 10 && waited > all / 10, "{all} delivered, {some} left, {waited} not alone");
    tell("vcpus: kicks", &[("delivered", all), ("left to the host", some), ("with another interrupt", waited)]);
}
