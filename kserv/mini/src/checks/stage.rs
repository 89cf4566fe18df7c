//! What several CPUs do at the same time, in rounds, until all is done or something is wrong.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::ensure;
use crate::arch::cpu;
use crate::guest::Failure;
use crate::sync::Mutex;
use crate::{jobs, scheduler};

/// What the CPUs share.
#[derive(Debug, Default)]
pub struct Stage {
    over: AtomicBool,
    arrived: AtomicUsize,
    meetings: AtomicUsize,
    wrong: Mutex<Option<String>>,
}

impl Stage {
    /// It is over, and this is wrong: the first to say so is heard.
    pub fn fail(&self, text: String) {
        self.wrong.lock().get_or_insert(text);
        self.end();
    }

    /// It is over.
    pub fn end(&self) {
        self.over.store(true, SeqCst);
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    /// Waits until `reached`; whether it was, before all was over.
    pub fn wait(&self, reached: impl Fn() -> bool) -> bool {
        while !self.is_over() {
            if reached() {
                return true;
            }
            cpu::relax();
        }
        false
    }

    /// Waits until every CPU is here; whether all came.
    pub fn meet(&self) -> bool {
        let meeting = self.meetings.load(SeqCst);
        if self.arrived.fetch_add(1, SeqCst) + 1 == scheduler::online() {
            self.arrived.store(0, SeqCst);
            self.meetings.store(meeting + 1, SeqCst);
        }
        self.wait(|| self.meetings.load(SeqCst) != meeting)
    }
}

/// Every CPU does `act`, with its number; it is over when the first CPU is done, or one fails.
///
/// # Errors
/// There is only one CPU; the first failure.
pub fn play(act: impl Fn(&Stage, usize) -> Result<(), Failure> + Send + Sync + 'static) -> Result<(), Failure> {
    ensure(scheduler::online() > 1, "it needs two CPUs")?;
    let stage = Arc::new(Stage::default());
    let shared = stage.clone();
    let job: jobs::Job = Arc::new(move || {
        let cpu = cpu::index();
        match act(&shared, cpu) {
            Ok(()) if cpu == 0 => shared.end(),
            Ok(()) => {}
            Err(failure) => shared.fail(alloc::format!("CPU {cpu}: {failure}")),
        }
    });
    jobs::everywhere(&job);
    let wrong = stage.wrong.lock().take();
    wrong.map_or(Ok(()), |text| Err(Failure::Text(text)))
}
