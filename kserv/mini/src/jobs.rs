//! Work that every CPU does at the same time, between its turns of vCPUs.
//!
//! Lock: [`JOB`], held only to take the work out.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::ops::Deref;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::arch::cpu;
use crate::arch::entry::MAX_CPUS;
use crate::scheduler;
use crate::sync::Mutex;

/// A number for each CPU, by its index; at first 0.
#[derive(Debug)]
pub struct Numbers([AtomicU64; MAX_CPUS]);

// Arrays of more than 32 have no default.
impl Default for Numbers {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; MAX_CPUS])
    }
}

impl Deref for Numbers {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// What each CPU calls once.
pub type Job = Arc<dyn Fn() + Send + Sync>;

static JOB: Mutex<Option<Job>> = Mutex::new(None);
/// How many jobs there were so far; and of these, how many each CPU has done.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static DONE: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

/// Whether there is work that this CPU has not done.
pub fn is_waiting() -> bool {
    DONE[cpu::index()].load(Ordering::Acquire) != COUNT.load(Ordering::Acquire)
}

/// Does it.
pub fn work() {
    let count = COUNT.load(Ordering::Acquire);
    let job = JOB.lock().clone();
    if let (true, Some(job)) = (is_waiting(), job) {
        job();
    }
    DONE[cpu::index()].store(count, Ordering::Release);
}

/// Does `job` on every CPU that has started, this one included; comes back when all have done it. On the first CPU only. vCPUs go on meanwhile.
pub fn everywhere(job: &Job) {
    *JOB.lock() = Some(job.clone());
    let count = COUNT.fetch_add(1, Ordering::AcqRel) + 1;
    scheduler::kick_all();
    work();
    let all = || DONE[..scheduler::online()].iter().all(|done| done.load(Ordering::Acquire) == count);
    scheduler::run(all);
    *JOB.lock() = None;
}
