//! Layers 1-4, LockOps to Locks: ticket locks that own their data, taken in one order.
//!
//! | primitive                    | does                                                          |
//! |------------------------------|---------------------------------------------------------------|
//! | [`wait_lock`]                | joins the line and waits for its turn                         |
//! | [`Lock::acquire`]            | [`wait_lock`], after a check of the lock order                |
//! | drop of [`Guard`]            | serves the next in line: K's `pass_lock`                                              |
//!
//! The data of an object is reachable only through its guard, so "lock held, data pulled" of the proof is a
//! type. Waiting is first come, first served.
//!
//! The order is that of the proof (K §1.3), by [`Rank`]: `Mmio`, `Vm`, `Core`, `S2Page`, `Npt`, `Spt`; a CPU takes a
//! lock only if every lock that it holds has a smaller rank. Two `Vm` locks, or two `Npt` locks, are never held together.
//! The order is checked at every acquisition on the development machine; on the target the rank costs nothing.
//!
//! A panic does not unwind in the core, so no guard is dropped by one: who broke an object keeps it locked.
//!
//! Below: AbstractMachine (`turn`). Above: everything that shares state.
//! Specification: `spec::locks`. Source: SeKVM layers LockOps, LockOpsQ, LockOpsH, Locks; K §1.3, §2 L1-L4.
#![forbid(unsafe_code)]

use core::ops::{Deref, DerefMut};

use crate::abstract_machine::turn::{CpuWords, Held, Turn, Words};

/// Place of a lock in the order; a CPU takes locks only upwards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Rank {
    /// Registers that the host reaches through the core (the proof: emulated SMMUs).
    Mmio = 1,
    /// One VM's state and boot information.
    Vm = 2,
    /// Numbers that are given out: VM ids, remap addresses.
    Core = 3,
    /// Owner and state of every page.
    S2Page = 4,
    /// One stage-2 table.
    Npt = 5,
    /// SMMU tables.
    Spt = 6,
}

/// Joins the line for `turn` and returns when it is served. K: `wait_lock`.
pub fn wait_lock<T, W: Words>(turn: &Turn<T, W>) -> Held<'_, T, W> {
    let mut ticket = turn.incr_ticket();
    loop {
        match ticket.pull() {
            Ok(held) => return held,
            Err(again) => ticket = again,
        }
        W::relax();
    }
}

/// An object behind a ticket lock of a certain rank.
pub struct Lock<T, W = CpuWords> {
    rank: Rank,
    turn: Turn<T, W>,
}

/// Access to the object of a [`Lock`] for as long as it lives.
pub struct Guard<'a, T, W: Words = CpuWords> {
    // Dropped in this order: the lock is passed on before the order's record is taken back.
    held: Held<'a, T, W>,
    _order: order::Taken,
}

impl<T> Lock<T> {
    /// `object`, unlocked.
    pub const fn new(rank: Rank, object: T) -> Self {
        Self { rank, turn: Turn::new(object) }
    }
}

impl<T, W: Words> Lock<T, W> {
    /// `object`, unlocked, over other words than the CPU's.
    pub fn with_words(rank: Rank, object: T) -> Self {
        Self { rank, turn: Turn::with_words(object) }
    }

    /// Waits for the lock. K: `acquire_lock_*`.
    ///
    /// # Panics
    /// On the development machine, if this CPU holds a lock of the same or a higher rank.
    pub fn acquire(&self) -> Guard<'_, T, W> {
        let order = order::Taken::new(self.rank);
        Guard { held: wait_lock(&self.turn), _order: order }
    }
}

impl<T, W: Words> Deref for Guard<'_, T, W> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.held
    }
}

impl<T, W: Words> DerefMut for Guard<'_, T, W> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.held
    }
}

/// The lock order, checked: on the development machine a thread is a CPU.
#[cfg(not(target_os = "none"))]
mod order {
    use super::Rank;
    use std::cell::RefCell;
    use std::vec::Vec;

    std::thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    /// A lock of this rank is on the record of this thread.
    pub(super) struct Taken(Rank);

    impl Taken {
        pub(super) fn new(rank: Rank) -> Self {
            HELD.with_borrow_mut(|held| {
                if let Some(last) = held.last() {
                    assert!(*last < rank, "lock order: {rank:?} taken while {last:?} is held");
                }
                held.push(rank);
            });
            Self(rank)
        }
    }

    impl Drop for Taken {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|held| {
                if let Some(at) = held.iter().rposition(|rank| *rank == self.0) {
                    held.remove(at);
                }
            });
        }
    }
}

#[cfg(target_os = "none")]
mod order {
    use super::Rank;

    pub(super) struct Taken;

    impl Taken {
        #[inline(always)]
        pub(super) fn new(_: Rank) -> Self {
            Self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::vec::Vec;

    #[test]
    fn a_guard_gives_access_and_its_drop_serves_the_next() {
        let lock = Lock::new(Rank::Core, 1);
        *lock.acquire() += 1;
        assert_eq!(*lock.acquire(), 2);
    }

    #[test]
    fn eight_cpus_that_count_together_lose_no_count() {
        let lock = Arc::new(Lock::new(Rank::Npt, 0u64));
        let cpus: Vec<_> = (0..8)
            .map(|_| {
                let lock = lock.clone();
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        *lock.acquire() += 1;
                    }
                })
            })
            .collect();
        for cpu in cpus {
            cpu.join().unwrap();
        }
        assert_eq!(*lock.acquire(), 1600);
    }

    #[test]
    fn locks_taken_upwards_are_accepted() {
        let (outer, inner) = (Lock::new(Rank::S2Page, ()), Lock::new(Rank::Npt, ()));
        let outer_guard = outer.acquire();
        drop(inner.acquire());
        drop(outer_guard);
        drop(inner.acquire());
    }

    #[test]
    #[should_panic(expected = "lock order: S2Page taken while Npt is held")]
    fn a_lock_taken_downwards_is_refused() {
        let (upper, lower) = (Lock::new(Rank::Npt, ()), Lock::new(Rank::S2Page, ()));
        let _upper = upper.acquire();
        let _lower = lower.acquire();
    }

    #[test]
    #[should_panic(expected = "lock order: Npt taken while Npt is held")]
    fn two_stage_2_tables_are_never_locked_together() {
        let (a, b) = (Lock::new(Rank::Npt, ()), Lock::new(Rank::Npt, ()));
        let _a = a.acquire();
        let _b = b.acquire();
    }
}
