//! The words of a ticket lock and the data behind them: the primitives under layers 1-4.
//!
//! K: `incr_ticket`, `get_now`, `incr_now`, `log_hold`, and the pull and push of the protected object. The
//! protocol is a chain of values that cannot be copied, so no other order can be written down (the barrier
//! automaton of K §1.3):
//!
//! ```text
//! Turn::incr_ticket -> Ticket -(get_now == my)-> Held -(drop: incr_now)-> next in line
//! ```
//!
//! [`Word`] is a trait so that the tests can put the atomics of an interleaving explorer in place, [`Words`] one so that they can put a broken lock there.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

/// The two counters of a ticket lock.
pub trait Words: Sync {
    /// Both counters at zero.
    fn new() -> Self;
    /// Takes the next ticket: returns the number and adds one. Wraps around.
    fn incr_ticket(&self) -> u32;
    /// The number that is being served. Acquire: what the last holder wrote is visible once it matches.
    fn get_now(&self) -> u32;
    /// Serves the next number; only the holder calls it. Release: what it wrote becomes visible.
    fn incr_now(&self);
    /// Waiting: a hint to the CPU, or to the explorer's scheduler.
    fn relax();
}

/// A word that several CPUs read and write.
pub trait Word: Sync {
    /// One that holds zero.
    fn zero() -> Self;
    /// What it holds.
    fn load(&self, order: Ordering) -> u32;
    /// Overwrites it.
    fn store(&self, value: u32, order: Ordering);
    /// Adds to it, in one access: returns what it held. Wraps around.
    fn fetch_add(&self, value: u32, order: Ordering) -> u32;
    /// Waiting: a hint to the CPU, or to the explorer's scheduler.
    fn relax();
}

/// The counters, over any word. Here their orderings stand, once: what the explorer explores is what the CPU does.
pub struct Counters<W> {
    ticket: W,
    now: W,
}

impl<W: Word> Words for Counters<W> {
    fn new() -> Self {
        Self { ticket: W::zero(), now: W::zero() }
    }

    fn incr_ticket(&self) -> u32 {
        self.ticket.fetch_add(1, Ordering::Relaxed)
    }

    fn get_now(&self) -> u32 {
        self.now.load(Ordering::Acquire)
    }

    fn incr_now(&self) {
        // Only the holder writes `now`, so load and store need not be one access.
        let next = self.now.load(Ordering::Relaxed).wrapping_add(1);
        self.now.store(next, Ordering::Release);
    }

    fn relax() {
        W::relax();
    }
}

/// The counters of a real CPU.
pub type CpuWords = Counters<AtomicU32>;

impl CpuWords {
    /// Both counters at zero, for statics.
    pub const fn zero() -> Self {
        Self { ticket: AtomicU32::new(0), now: AtomicU32::new(0) }
    }
}

impl Word for AtomicU32 {
    fn zero() -> Self {
        Self::new(0)
    }

    fn load(&self, order: Ordering) -> u32 {
        Self::load(self, order)
    }

    fn store(&self, value: u32, order: Ordering) {
        Self::store(self, value, order);
    }

    fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        Self::fetch_add(self, value, order)
    }

    fn relax() {
        // Whoever shares this CPU goes first. Rust's hint is an ISB, which keeps the CPU: where CPUs take turns on one (QEMU without a thread for each), the
        // holder, which lets go of it at every broadcast TLBI, then waited for the end of a slice of 100 ms each time.
        #[cfg(target_os = "none")]
        // SAFETY: a hint; neither memory nor a register changes.
        unsafe {
            core::arch::asm!("yield", options(nomem, nostack, preserves_flags));
        }
        core::hint::spin_loop();
        // Test threads outnumber the processors of a development machine.
        #[cfg(not(target_os = "none"))]
        std::thread::yield_now();
    }
}

/// Data, and the line of those who wait for it.
pub struct Turn<T, W = CpuWords> {
    words: W,
    data: UnsafeCell<T>,
}

// SAFETY: the data is reached only through `Held`, and the ticket protocol lets one `Held` exist at a time:
// tickets are unique (until 2^32 wait at once), and `now` moves on only when the holder's `Held` is dropped.
unsafe impl<T: Send, W: Words> Sync for Turn<T, W> {}

/// A place in the line. If it is dropped before its turn, the line stops there: a lock is never given up.
#[must_use]
pub struct Ticket<'a, T, W: Words> {
    turn: &'a Turn<T, W>,
    my: u32,
}

/// The turn itself: the only way to the data. Dropping it serves the next in line.
pub struct Held<'a, T, W: Words> {
    turn: &'a Turn<T, W>,
}

impl<T> Turn<T, CpuWords> {
    /// `data`, with nobody in line.
    pub const fn new(data: T) -> Self {
        Self { words: CpuWords::zero(), data: UnsafeCell::new(data) }
    }
}

impl<T, W: Words> Turn<T, W> {
    /// `data` behind other words than the CPU's.
    pub fn with_words(data: T) -> Self {
        Self { words: W::new(), data: UnsafeCell::new(data) }
    }

    /// Joins the line.
    pub fn incr_ticket(&self) -> Ticket<'_, T, W> {
        Ticket { my: self.words.incr_ticket(), turn: self }
    }
}

impl<'a, T, W: Words> Ticket<'a, T, W> {
    /// The data, if it is this ticket's turn; else the ticket again.
    ///
    /// # Errors
    /// The ticket itself, if another number is being served.
    pub fn pull(self) -> Result<Held<'a, T, W>, Self> {
        if self.turn.words.get_now() == self.my { Ok(Held { turn: self.turn }) } else { Err(self) }
    }
}

impl<T, W: Words> Deref for Held<'_, T, W> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: one `Held` exists at a time (see `Sync` above), so nobody writes meanwhile.
        unsafe { &*self.turn.data.get() }
    }
}

impl<T, W: Words> DerefMut for Held<'_, T, W> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: one `Held` exists at a time, and it is borrowed exclusively.
        unsafe { &mut *self.turn.data.get() }
    }
}

impl<T, W: Words> Drop for Held<'_, T, W> {
    fn drop(&mut self) {
        self.turn.words.incr_now();
    }
}
