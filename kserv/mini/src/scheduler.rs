//! vCPUs on CPUs: each vCPU has its CPU; those of a CPU take turns. An idle CPU waits for an interrupt: a kick, or the next deadline.
//!
//! Lock: each CPU's queue, held only to choose.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kserv_model::vm::VcpuState;
use spin::{Mutex, Once};

use crate::arch::cpu;
use crate::arch::entry::MAX_CPUS;
use crate::arch::gic::Gic;
use crate::guest::{Guest, Step};
use crate::{console, say};

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
}

static CPUS: [Cpu; MAX_CPUS] =
    [const { Cpu { queue: Mutex::new(Queue { threads: Vec::new(), next: 0, turn_ends: 0 }), affinity: Once::new() } };
        MAX_CPUS];
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
        CPUS[*cpu].queue.lock().threads.push((guest.clone(), vcpu));
        kick(*cpu);
    }
}

/// They do not any more.
pub fn remove(guest: &Arc<Guest>) {
    for cpu in &guest.cpus {
        CPUS[*cpu].queue.lock().threads.retain(|(other, _)| !Arc::ptr_eq(other, guest));
    }
}

/// Makes a CPU look at its queue.
fn kick(target: usize) {
    if target != cpu::index()
        && let (Some(gic), Some((affinity, interface))) = (GIC.get(), CPUS[target].affinity.get())
    {
        gic.kick(*interface, *affinity);
    }
}

/// Makes every other CPU leave its vCPU.
pub fn kick_all() {
    (0..MAX_CPUS).for_each(kick);
}

fn take_interrupts() {
    if let Some(gic) = GIC.get() {
        while let Some(interrupt) = gic.take() {
            if interrupt == 30 {
                cpu::set_deadline(None);
            }
        }
    }
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
    loop {
        take_interrupts();
        if end() {
            return cpu::set_deadline(None);
        }
        if cpu::index() == 0 {
            receive();
        }
        let (chosen, deadline) = choose(cpu::counter());
        cpu::set_deadline(deadline);
        match chosen {
            Some((guest, vcpu)) => turn(&guest, vcpu),
            None => cpu::wait(),
        }
    }
}

fn turn(guest: &Guest, vcpu: usize) {
    loop {
        let mut kicks = 0;
        let step = guest.step(vcpu, &mut kicks);
        let mut here = false;
        for (other, cpu) in guest.cpus.iter().enumerate().filter(|(other, _)| kicks >> other & 1 != 0) {
            here |= *cpu == cpu::index() && other != vcpu;
            kick(*cpu);
        }
        match step {
            Ok(Step::Again) if !here => {}
            Ok(_) => break,
            Err(failure) => {
                say!("error: {}: {failure}", guest.name);
                set_failed();
                guest.stop();
                break;
            }
        }
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
        guest.cpus.iter().enumerate().filter(|(vcpu, _)| kicks >> vcpu & 1 != 0).for_each(|(_, cpu)| kick(*cpu));
    }
}
