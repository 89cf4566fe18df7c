//! Layers 1-4: the line at a ticket lock, as a queue (K §2 L2: the queue view of LockOpsQ).
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// Who stands in line; the first holds the lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line<C> {
    queue: VecDeque<C>,
}

impl<C: Copy + PartialEq> Line<C> {
    /// Nobody.
    pub fn new() -> Self {
        Self { queue: VecDeque::new() }
    }

    /// `cpu` takes a ticket. K: `incr_ticket`.
    #[must_use]
    pub fn join(mut self, cpu: C) -> Self {
        self.queue.push_back(cpu);
        self
    }

    /// Who holds the lock. K: `get_now`.
    pub fn holder(&self) -> Option<C> {
        self.queue.front().copied()
    }

    /// `cpu` gives the lock back; `None` if it does not hold it. K: `incr_now`.
    pub fn pass(mut self, cpu: C) -> Option<Self> {
        (self.queue.pop_front()? == cpu).then_some(self)
    }
}
