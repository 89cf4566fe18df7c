//! Locks that wait by [`cpu::relax`].
#![forbid(unsafe_code)]

use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::RelaxStrategy;

use crate::arch::cpu;

/// How to wait.
#[derive(Clone, Copy, Debug)]
pub struct Yield;

impl RelaxStrategy for Yield {
    fn relax() {
        cpu::relax();
    }
}

/// A lock.
pub type Mutex<T> = SpinMutex<T, Yield>;
/// Held.
pub type MutexGuard<'a, T> = SpinMutexGuard<'a, T, Yield>;
