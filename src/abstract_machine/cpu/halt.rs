//! Stopping for good: after a failure of the core no CPU runs anything of the host or a VM any more.
//!
//! The CPU that fails marks the machine halted and takes the host's stage 2 away (its root becomes empty, TLBs are
//! flushed on all CPUs). Whatever another CPU does next at EL1 then traps to EL2, where it finds the mark and stays.
//! No lock is taken and none is released.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use aarch64_cpu::asm::{barrier, wfi};
use aarch64_cpu::registers::{CNTPCT_EL0, Readable};

use super::super::addr::{PAGE_SIZE, Pa};
use super::{maintenance, pool};

static HALTED: AtomicBool = AtomicBool::new(false);
static STAYING: AtomicUsize = AtomicUsize::new(0);
static HOST_ROOT: AtomicU64 = AtomicU64::new(0);
static HOST_ROOT_PAGES: AtomicU64 = AtomicU64::new(0);

/// Says which table to take away when the machine halts: VTTBR_EL2's value, and the root's size in pages.
pub fn set_host_root(vttbr: u64, pages: u64) {
    HOST_ROOT.store(vttbr, Ordering::Release);
    HOST_ROOT_PAGES.store(pages, Ordering::Release);
}

/// Marks the machine halted. True on the first call: that caller reports.
pub fn begin() -> bool {
    !HALTED.swap(true, Ordering::AcqRel)
}

/// Keeps this CPU for good if the machine is halted. K: `check`.
#[inline]
pub fn check() {
    if HALTED.load(Ordering::Acquire) {
        stay();
    }
}

/// CPUs that [`stay`].
pub fn staying() -> usize {
    STAYING.load(Ordering::Acquire)
}

/// Makes every other CPU come here too.
pub fn stop_others() {
    let vttbr = HOST_ROOT.load(Ordering::Acquire);
    let base = vttbr & 0xffff_ffff_f000;
    if base == 0 || !pool::holds(Pa::new(base)) {
        return;
    }
    // Who does not see the mark of `begin` after its own store to the table made that before the first of these.
    barrier::dsb(barrier::SY);
    for entry in 0..HOST_ROOT_PAGES.load(Ordering::Acquire) * PAGE_SIZE / 8 {
        // SAFETY: the root lies in the pool, and the tables below it stay as they are; other CPUs that write an entry at the same
        // time are inside the core and stop at their next `check`.
        unsafe { ((base + entry * 8) as *mut u64).write_volatile(0) };
    }
    // The host's, and VMs', whose roots may be gone too.
    maintenance::flush_all_vms();
}

/// For a loop that waits for another CPU: a hint (YIELD) that it may run instead.
pub fn give_way() {
    // SAFETY: a hint changes nothing.
    unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
}

/// Waits until `done`, or until the machine's counter (CNTPCT_EL0) has come to `deadline`.
pub fn wait_until(deadline: u64, done: impl Fn() -> bool) {
    while !done() && CNTPCT_EL0.get() < deadline {
        give_way();
    }
}

/// Stays here, with everything masked.
pub fn stay() -> ! {
    STAYING.fetch_add(1, Ordering::AcqRel);
    loop {
        barrier::dsb(barrier::SY);
        wfi();
    }
}
