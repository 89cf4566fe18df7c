//! This CPU, and how the others start.

use core::arch::asm;

use corevisor_interface::guest::psci::{CPU_OFF, CPU_ON};

use super::call::{Conduit, psci};
use super::memory;

/// CNTP_CTL_EL0.ENABLE.
const ENABLE: u64 = 1;

unsafe extern "C" {
    fn secondary_entry();
}

/// This CPU's number, as it was started; the first is 0.
pub fn index() -> usize {
    let index: usize;
    // SAFETY: reads a register that `entry.S` has set.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) index, options(nomem, nostack, preserves_flags)) };
    index
}

/// While this CPU waits for another one. Who shares a processor with it goes first: Rust's hint for a loop that waits is an ISB, at which an emulator that
/// runs CPUs in turns goes on with this one to the end of its turn.
pub fn relax() {
    // SAFETY: a hint; neither memory nor a register changes.
    unsafe { asm!("yield", options(nomem, nostack, preserves_flags)) };
}

/// Affinity fields of this CPU's MPIDR.
pub fn affinity() -> u64 {
    let mpidr: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack, preserves_flags)) };
    mpidr & 0xff_00ff_ffff
}

/// The physical counter.
pub fn counter() -> u64 {
    let count: u64;
    // SAFETY: reads a register.
    unsafe { asm!("isb", "mrs {}, cntpct_el0", out(reg) count, options(nomem, nostack, preserves_flags)) };
    count
}

/// Its frequency in Hz.
pub fn frequency() -> u64 {
    let hertz: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack, preserves_flags)) };
    hertz.max(1)
}

/// This CPU's timer interrupts at that time, or never.
pub fn set_deadline(at: Option<u64>) {
    let (compare, control) = at.map_or((u64::MAX, 0), |at| (at, ENABLE));
    // SAFETY: the physical timer is this program's own.
    unsafe {
        asm!("msr cntp_cval_el0, {}", "msr cntp_ctl_el0, {}", "isb", in(reg) compare, in(reg) control, options(nomem, nostack));
    }
}

/// Waits until an interrupt is pending; it may be pending already.
pub fn wait() {
    // SAFETY: changes nothing.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Switches this CPU off. It comes back only if that was refused.
pub fn off(conduit: Conduit) {
    psci(conduit, CPU_OFF, [0; 3]);
}

/// Starts the CPU with this affinity as number `index`. By PSCI: its status.
pub fn start(conduit: Conduit, affinity: u64, index: usize) -> u64 {
    let image = super::entry::image();
    // What it reads before its MMU is on: code, which does not change, and no more (`mmu::start` has cleaned the tables).
    if index == 1 {
        memory::clean(image.start, image.end - image.start);
    }
    psci(conduit, CPU_ON, [affinity, secondary_entry as *const () as u64, index as u64])
}
