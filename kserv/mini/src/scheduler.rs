//! vCPUs on CPUs: each vCPU has its CPU, or goes to another one after each turn (option `move`); those of a CPU take turns. An idle CPU waits for an interrupt: a kick, or the next deadline.
//!
//! Lock: [`MOVING`], below it each CPU's queue, held only to choose.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use kserv_model::random::Random;
use kserv_model::vm::VcpuState;
use spin::Once;

use crate::arch::call::Conduit;
use crate::arch::cpu;
use crate::arch::entry::MAX_CPUS;
use crate::arch::gic::Gic;
use crate::guest::{Guest, Host};
use crate::sync::Mutex;
use crate::{console, say};

/// A turn, where vCPUs wander.
const WANDER_US: u64 = 700;
/// No vCPU: ids of VMs begin at 1.
const NOBODY: u64 = 0;
/// This program's own timer.
const TIMER: u32 = 30;
/// A turn, where more than one vCPU could run.
const TURN_MS: u64 = 4;
/// How often the first CPU looks for console input.
const LOOK_MS: u64 = 10;

struct Queue {
    threads: Vec<(Arc<Guest>, usize)>,
    next: usize,
    /// Until then the one before `next` goes on, whenever it can: else one whose every turn begins with an interrupt would do nothing else.
    turn_ends: u64,
}

struct Cpu {
    queue: Mutex<Queue>,
    affinity: Once<(u64, usize)>,
    /// The vCPU that runs here: [`thread`].
    current: AtomicU64,
    /// Somebody wants this CPU to look at its queue.
    look: AtomicBool,
    /// Random numbers drawn.
    drawn: AtomicU64,
    /// When this CPU has to look again, whatever runs.
    until: AtomicU64,
}

impl Cpu {
    const fn new() -> Self {
        Self {
            queue: Mutex::new(Queue { threads: Vec::new(), next: 0, turn_ends: 0 }),
            affinity: Once::new(),
            current: AtomicU64::new(NOBODY),
            look: AtomicBool::new(false),
            drawn: AtomicU64::new(0),
            until: AtomicU64::new(u64::MAX),
        }
    }
}

static CPUS: [Cpu; MAX_CPUS] = [const { Cpu::new() }; MAX_CPUS];
/// vCPUs wander, and how: 0 if they do not, else a word that the random numbers begin with.
static WANDER: AtomicU64 = AtomicU64::new(0);
/// How often one went from CPU to CPU.
static MOVES: AtomicU64 = AtomicU64::new(0);
/// Taken while a vCPU is in no queue, or in none for good.
static MOVING: Mutex<()> = Mutex::new(());
static GIC: Once<Gic> = Once::new();
static ONLINE: AtomicUsize = AtomicUsize::new(0);
static NEXT_CPU: AtomicUsize = AtomicUsize::new(0);
/// Some VM has failed: the end is not a good one.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Once, on the first CPU.
pub fn start(gic: Gic) {
    GIC.call_once(|| gic).start();
}

/// On each CPU, before it schedules.
///
/// # Errors
/// A text if its interrupt controller does not answer.
pub fn start_cpu() -> Result<(), &'static str> {
    let gic = GIC.get().ok_or("there is no interrupt controller")?;
    gic.start_cpu()?;
    cpu::set_deadline(None);
    CPUS[cpu::index()].affinity.call_once(|| (cpu::affinity(), gic.interface()));
    ONLINE.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

/// Affinity of a CPU that has started.
pub fn affinity_of(cpu: usize) -> Option<u64> {
    CPUS.get(cpu)?.affinity.get().map(|(affinity, _)| *affinity)
}

/// This CPU, the last that started, switches itself off; it comes again like one that was never there.
pub fn leave_cpu(conduit: Conduit) {
    ONLINE.fetch_sub(1, Ordering::AcqRel);
    cpu::off(conduit);
}

/// CPUs that have started.
pub fn online() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// CPUs for a VM's vCPUs: the next ones in turn.
pub fn cpus_for(vcpus: usize) -> Vec<usize> {
    (0..vcpus).map(|_| NEXT_CPU.fetch_add(1, Ordering::Relaxed) % online().max(1)).collect()
}

/// Whether a VM has failed so far.
pub fn has_failed() -> bool {
    FAILED.load(Ordering::Acquire)
}

/// A VM has failed, or something else went wrong.
pub fn set_failed() {
    FAILED.store(true, Ordering::Release);
}

/// The VM's vCPUs take part from now on.
pub fn add(guest: &Arc<Guest>) {
    for (vcpu, cpu) in guest.cpus.iter().enumerate() {
        let cpu = cpu.load(Ordering::SeqCst);
        CPUS[cpu].queue.lock().threads.push((guest.clone(), vcpu));
        kick(cpu, None);
    }
}

/// They do not any more.
pub fn remove(guest: &Arc<Guest>) {
    let _none_is_on_its_way = MOVING.lock();
    for cpu in &CPUS {
        cpu.queue.lock().threads.retain(|(other, _)| !Arc::ptr_eq(other, guest));
    }
}

/// A vCPU's name among all: VM ids begin at 1.
fn thread(guest: &Guest, vcpu: usize) -> u64 {
    guest.id << 8 | vcpu as u64
}

/// Makes a CPU look at its queue; if it only concerns the vCPU `whom` and that runs there, makes it leave and enter again.
fn kick(target: usize, whom: Option<u64>) {
    let cpu = &CPUS[target];
    if whom.is_none_or(|whom| cpu.current.load(Ordering::SeqCst) != whom) {
        cpu.look.store(true, Ordering::SeqCst);
    }
    if target != cpu::index()
        && let (Some(gic), Some((affinity, interface))) = (GIC.get(), cpu.affinity.get())
    {
        gic.kick(*interface, *affinity);
    }
}

/// vCPUs of a VM that are to be looked at, one bit each.
fn kick_vcpus(guest: &Guest, mut vcpus: u32) {
    while vcpus != 0 {
        let vcpu = vcpus.trailing_zeros() as usize;
        vcpus &= vcpus - 1;
        if let Some(cpu) = guest.cpus.get(vcpu) {
            kick(cpu.load(Ordering::SeqCst), Some(thread(guest, vcpu)));
        }
    }
}

/// Makes every other CPU leave its vCPU.
pub fn kick_all() {
    (0..MAX_CPUS).for_each(|cpu| kick(cpu, None));
}

/// Takes what interrupts this CPU: whether its deadline was among them.
fn take_interrupts() -> bool {
    let mut deadline = false;
    if let Some(gic) = GIC.get() {
        while let Some(interrupt) = gic.take() {
            if interrupt == TIMER {
                cpu::set_deadline(None);
                deadline = true;
            }
        }
    }
    deadline
}

/// What this CPU does next, and when it must look again.
fn choose(now: u64) -> (Option<(Arc<Guest>, usize)>, Option<u64>) {
    let mut queue = CPUS[cpu::index()].queue.lock();
    let count = queue.threads.len();
    let (mut chosen, mut deadline) = (None, None::<u64>);
    let mut sooner = |at: u64| deadline = Some(deadline.map_or(at, |other| other.min(at)));
    let goes_on = now < queue.turn_ends;
    let first = if goes_on { queue.next + count.saturating_sub(1) } else { queue.next };
    let mut others = false;
    for n in 0..count {
        let position = (first + n) % count;
        let (guest, vcpu) = &queue.threads[position];
        if guest.is_over() {
            continue;
        }
        let mut inner = guest.inner();
        if inner.model.runnable(*vcpu, now) {
            if chosen.is_some() {
                others = true;
            } else {
                chosen = Some(position);
                inner.model.run_until(*vcpu, now).into_iter().for_each(&mut sooner);
            }
        } else if let VcpuState::Blocked { until: Some(until) } = inner.model.state(*vcpu) {
            sooner(until);
        }
    }
    if cpu::index() == 0 {
        sooner(now + cpu::frequency() * LOOK_MS / 1000);
    }
    match CPUS[cpu::index()].until.load(Ordering::Relaxed) {
        u64::MAX => {}
        until => sooner(until),
    }
    if WANDER.load(Ordering::Relaxed) != 0 {
        sooner(now + cpu::frequency() * WANDER_US / 1_000_000);
    }
    if let Some(position) = chosen {
        if !goes_on || position != first % count {
            queue.turn_ends = now + cpu::frequency() * TURN_MS / 1000;
        }
        if others {
            sooner(queue.turn_ends);
        }
    }
    let chosen = chosen.map(|position| {
        queue.next = position + 1;
        queue.threads[position].clone()
    });
    (chosen, deadline)
}

/// Runs vCPUs on this CPU until `end` says so; it is asked at every turn.
pub fn run(mut end: impl FnMut() -> bool) {
    let own = &CPUS[cpu::index()];
    loop {
        take_interrupts();
        // What is asked for from now on is seen below, or asked for again: also by whoever kicks the vCPU that ran last, for another may be chosen.
        own.current.store(NOBODY, Ordering::SeqCst);
        own.look.store(false, Ordering::SeqCst);
        if end() {
            return cpu::set_deadline(None);
        }
        if cpu::index() == 0 {
            receive();
        }
        let (chosen, deadline) = choose(cpu::counter());
        cpu::set_deadline(deadline);
        match chosen {
            Some((guest, vcpu)) => {
                own.current.store(thread(&guest, vcpu), Ordering::SeqCst);
                turn(&guest, vcpu);
                if WANDER.load(Ordering::Relaxed) != 0 {
                    wander(&guest, vcpu);
                }
            }
            None => cpu::wait(),
        }
    }
}

/// Runs vCPUs on this CPU for so many microseconds. [`run`] alone asks no sooner than a vCPU leaves for good, or something interrupts it.
pub fn run_for(microseconds: u64) {
    let until = cpu::counter() + cpu::frequency() * microseconds / 1_000_000;
    let own = &CPUS[cpu::index()].until;
    own.store(until, Ordering::Relaxed);
    run(|| cpu::counter() >= until);
    own.store(u64::MAX, Ordering::Relaxed);
}

/// From now on vCPUs go to another CPU by chance after every turn; the same `seed` gives the same chances on each CPU.
pub fn let_wander(seed: u64) {
    WANDER.store(Random::new(seed).next() | 1, Ordering::Relaxed);
}

/// How often a vCPU has gone from CPU to CPU.
pub fn moves() -> u64 {
    MOVES.load(Ordering::Relaxed)
}

/// The next random number of this CPU.
fn random() -> u64 {
    let index = cpu::index();
    let start = WANDER.load(Ordering::Relaxed).wrapping_mul(index as u64 + 1);
    Random::new(start).nth(CPUS[index].drawn.fetch_add(1, Ordering::Relaxed))
}

/// A vCPU that has had its turn here goes to another CPU's queue, if chance wants it.
fn wander(guest: &Arc<Guest>, vcpu: usize) {
    let (own, target) = (cpu::index(), (random() % online() as u64) as usize);
    if target == own {
        return;
    }
    {
        let _moving = MOVING.lock();
        let mut queue = CPUS[own].queue.lock();
        let here = |(other, n): &(Arc<Guest>, usize)| Arc::ptr_eq(other, guest) && *n == vcpu;
        // Whoever takes part no more stays away.
        let Some(position) = queue.threads.iter().position(here) else { return };
        let thread = queue.threads.remove(position);
        queue.next = 0;
        queue.turn_ends = 0;
        drop(queue);
        guest.cpus[vcpu].store(target, Ordering::SeqCst);
        CPUS[target].queue.lock().threads.push(thread);
    }
    MOVES.fetch_add(1, Ordering::Relaxed);
    kick(target, None);
}

/// This CPU while it runs a vCPU.
struct Turn<'a>(&'a Guest);

impl Host for Turn<'_> {
    fn after(&mut self, kick: u32, interrupted: bool) -> bool {
        kick_vcpus(self.0, kick);
        let deadline = interrupted && take_interrupts();
        // A kick for the vCPU that runs here asks for no more than that it enters again.
        !deadline && !CPUS[cpu::index()].look.load(Ordering::SeqCst)
    }
}

fn turn(guest: &Guest, vcpu: usize) {
    if let Err(failure) = guest.run(vcpu, &mut Turn(guest)) {
        say!("error: {}: {failure}", guest.name);
        set_failed();
        guest.stop();
    }
    if guest.is_over() {
        kick_all();
    }
}

/// Console input goes to the first VM that is there.
fn receive() {
    while let Some(byte) = console::get() {
        let queues = CPUS.iter().find_map(|cpu| {
            cpu.queue
                .lock()
                .threads
                .iter()
                .find(|(guest, vcpu)| *vcpu == 0 && !guest.is_over())
                .map(|(guest, _)| guest.clone())
        });
        let Some(guest) = queues else { return };
        let (_, kicks) = guest.inner().model.receive(&[byte]);
        kick_vcpus(&guest, kicks);
    }
}
