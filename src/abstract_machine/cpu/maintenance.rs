//! TLB and cache maintenance. Arm ARM D8.16 (TLB), D7.5 (caches); the order of barriers is the point of each function.
//!
//! What is for all CPUs ends in [`wait_for_all`], and stands nowhere but here.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{HCR_EL2, Readable, SCTLR_EL1, TCR_EL1, VTCR_EL2, VTTBR_EL2, Writeable};

use super::super::addr::{Ipa, PAGE_SHIFT, PAGE_SIZE, PhysRange, Va};
use super::super::shape::Stage2;
use super::{el2, traps};

/// DSB ISHST, ISB: table entries written before are seen by walks that start after.
pub fn publish() {
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
}

/// Waits until TLB maintenance for all CPUs is done, on every CPU: no translation that it removed is used any more, and what was written through one is
/// written. One DSB should do. On most newer Arm CPUs it does not wait for writes through what the TLBI before it removed (CVE-2025-10263, Linux's
/// ARM64_ERRATUM_4118414: Cortex-A76 to X925, Neoverse N1 to V3, C1), and on some older ones not for the removal itself (1286807, 2441007,
/// 2441009): it does behind a second TLBI, of whatever address.
#[inline(always)]
fn wait_for_all() {
    // SAFETY: TLB invalidation only makes walks happen again.
    unsafe {
        asm!("dsb ish", "tlbi vale2is, xzr", "dsb ish", "isb", options(nostack, preserves_flags));
    }
}

/// Runs `flush` with `table` in VTTBR_EL2, after what was stored in tables is seen by walks: the stage-2 TLBI instructions act on the VMID that stands there. VTCR_EL2 goes
/// with it, or whatever walks meanwhile would take the table for one of another form, and a TLB keep what it found.
fn with_vttbr(table: Stage2, flush: impl FnOnce()) {
    barrier::dsb(barrier::ISHST);
    let current = VTTBR_EL2.get();
    if current == table.vttbr {
        return flush();
    }
    // The stage 1 that stands in EL1's registers is not that of `table`.
    let (tcr, sctlr, vtcr) = (TCR_EL1.get(), SCTLR_EL1.get(), VTCR_EL2.get());
    traps::change_stage2(el2::vtcr_of(table.shape), table.vttbr, HCR_EL2.get());
    flush();
    VTCR_EL2.set(vtcr);
    VTTBR_EL2.set(current);
    barrier::isb(barrier::SY);
    SCTLR_EL1.set(sctlr);
    barrier::isb(barrier::SY);
    TCR_EL1.set(tcr);
    barrier::isb(barrier::SY);
}

/// Of more pages than these a TLB forgets all of the VMID's stage 2 at once. What combines both stages goes in any case.
const ONE_BY_ONE: u64 = 8;

/// Forgets `pages` intermediate addresses of the VMID of `table` from `ipa` on, on every CPU: first stage-2 entries, then, after these are
/// gone, entries that combine both stages, which are not found by intermediate address.
pub fn flush_run(table: Stage2, ipa: Ipa, pages: u64) {
    if pages > ONE_BY_ONE {
        return flush_vm(table);
    }
    with_vttbr(table, || {
        let first = ipa.raw() >> PAGE_SHIFT;
        for page in first..first + pages {
            // SAFETY: TLB invalidation only makes walks happen again.
            unsafe { asm!("tlbi ipas2e1is, {}", in(reg) page, options(nostack, preserves_flags)) };
        }
        barrier::dsb(barrier::ISH);
        // SAFETY: as above.
        unsafe {
            asm!("tlbi vmalle1is", options(nostack, preserves_flags));
        }
        wait_for_all();
    });
}

/// Forgets everything of the VMID of `table`, on every CPU.
pub fn flush_vm(table: Stage2) {
    with_vttbr(table, || {
        // SAFETY: TLB invalidation only makes walks happen again.
        unsafe {
            asm!("tlbi vmalls12e1is", options(nostack, preserves_flags));
        }
        wait_for_all();
    });
}

/// Forgets everything of EL1 on every CPU: of the host, and of all VMs.
pub fn flush_all_vms() {
    // SAFETY: TLB invalidation only makes walks happen again.
    unsafe { asm!("dsb ishst", "tlbi alle1is", options(nostack, preserves_flags)) };
    wait_for_all();
}

/// Forgets, on every CPU, the page at `at` of the core's own map, whose entry is gone.
pub fn forget_own_page_for_all(at: Va) {
    let page = at.raw() >> PAGE_SHIFT;
    // SAFETY: translations are walked again; what is gone from the map is not in use any more.
    unsafe { asm!("dsb ishst", "tlbi vae2is, {}", in(reg) page, options(nostack, preserves_flags)) };
    wait_for_all();
}

/// Forgets the core's own map on every CPU.
pub fn forget_own_map_for_all() {
    // SAFETY: as above.
    unsafe { asm!("dsb ishst", "tlbi alle2is", options(nostack, preserves_flags)) };
    wait_for_all();
}

/// Forgets on this CPU what it remembers of the VMID in VTTBR_EL2 and of both its stages: a vCPU of it that ran elsewhere comes, or
/// two of its vCPUs share the CPU, with stage-1 tables of their own.
pub fn flush_vmid_local() {
    // SAFETY: TLB and instruction cache invalidation only make walks and fetches happen again.
    unsafe {
        asm!("dsb nshst", "tlbi vmalle1", "ic iallu", "dsb nsh", "isb", options(nostack, preserves_flags));
    }
}

/// Forgets, on this CPU, the `pages` pages from `at` on of the core's own map, whose entries are gone.
#[inline(always)]
pub fn forget_own_pages(at: Va, pages: u64) {
    let first = at.raw() >> PAGE_SHIFT;
    barrier::dsb(barrier::NSHST);
    for page in first..first + pages {
        // SAFETY: TLB invalidation only makes walks happen again.
        unsafe { asm!("tlbi vae2, {}", in(reg) page, options(nostack, preserves_flags)) };
    }
    barrier::dsb(barrier::NSH);
    barrier::isb(barrier::SY);
}

/// Forgets everything of EL1 and of EL2 on this CPU: at its start, when any rest of a loader may stand there.
pub fn flush_all_local() {
    // SAFETY: TLB invalidation only makes walks happen again.
    unsafe {
        asm!("dsb nshst", "tlbi alle1", "tlbi alle2", "dsb nsh", "isb", options(nostack, preserves_flags));
    }
}

/// The shortest data cache line of all CPUs, once it is known.
static LINE: AtomicU64 = AtomicU64::new(0);

/// No CPU that runs the host has shorter data cache lines than `bytes`.
pub fn set_line_size(bytes: u64) {
    LINE.store(bytes, Ordering::Relaxed);
}

/// The step of cache maintenance by address, which concerns the lines of all CPUs.
fn line_size() -> u64 {
    match LINE.load(Ordering::Relaxed) {
        0 => own_line_size(),
        line => line,
    }
}

/// Bytes of this CPU's shortest data cache line (CTR_EL0.DminLine).
pub fn own_line_size() -> u64 {
    let ctr: u64;
    // SAFETY: reading an ID register.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    4 << (ctr >> 16 & 0xf)
}

/// Bytes that DC ZVA fills, or `None` where it may not be used (DCZID_EL0).
fn zero_block_size() -> Option<u64> {
    let dczid: u64;
    // SAFETY: reading an ID register.
    unsafe { asm!("mrs {}, dczid_el0", out(reg) dczid, options(nomem, nostack, preserves_flags)) };
    (dczid >> 4 & 1 == 0).then_some(4 << (dczid & 0xf))
}

/// Executes instructions at every `$step` bytes of `$pages`, whole pages at their address `{0}`, sixteen at a time: a page's way from one
/// owner to the next is made of this. A step of more than a sixteenth of a page does the same thing more than once. Of no page it is never used.
macro_rules! throughout {
    ($pages:expr, $step:expr, $($instruction:literal),+) => {{
        let (pages, step): (PhysRange, u64) = ($pages, $step);
        asm!(
            "2:", ".rept 16", $($instruction,)+ "add {0}, {0}, {1}", ".endr", "cmp {0}, {2}", "b.lo 2b",
            inout(reg) pages.base().raw() => _, in(reg) step.min(PAGE_SIZE / 16), in(reg) pages.end().raw(),
            options(nostack),
        )
    }};
}

/// Cache maintenance by address translates, and faults where nothing is mapped; in QEMU it does nothing. The core for tests touches what it is about to maintain, so
/// that a page too many stops it there as it would on a board.
fn expect_mapped(range: PhysRange) {
    let pages = range.page_cover();
    let mut at = pages.base().raw();
    while cfg!(feature = "test-hooks") && at < pages.end().raw() {
        // SAFETY: a load changes nothing; what is not mapped stops the core, which is the point.
        unsafe { asm!("ldrb wzr, [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) };
        at += PAGE_SIZE;
    }
}

/// Cleans `range`, mapped at its physical address, to the point of coherency: a CPU with its caches off sees it.
pub fn clean_to_poc(range: PhysRange) {
    expect_mapped(range);
    let line = line_size();
    let mut at = range.base().align_down(line).raw();
    while at < range.end().raw() {
        // SAFETY: cleaning changes no content; the range is mapped.
        unsafe { asm!("dc cvac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
    barrier::dsb(barrier::SY);
}

/// The same for whole pages, and drops the lines: the next access of whoever has the memory then comes from memory itself.
pub fn clean_and_invalidate_to_poc(pages: PhysRange) {
    expect_mapped(pages);
    // SAFETY: what is dirty is written back first, so no content changes; the pages are mapped.
    unsafe { throughout!(pages, line_size(), "dc civac, {0}") };
    barrier::dsb(barrier::SY);
}

/// Drops all instructions from the instruction caches of all CPUs.
pub fn invalidate_icache_all() {
    // SAFETY: instructions are fetched again; nothing else changes.
    unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Fills whole pages, the core's own and mapped at their physical address, with zeroes, a block at a time where the CPU can (DC ZVA).
pub fn zero(pages: PhysRange) {
    // SAFETY: the pages are the caller's to overwrite; DC ZVA writes one aligned block, of at most 2 KiB, the other 16 bytes.
    unsafe {
        match zero_block_size() {
            Some(block) => throughout!(pages, block, "dc zva, {0}"),
            None => throughout!(pages, 16, "stp xzr, xzr, [{0}]"),
        }
    }
}

/// [`zero`]: every CPU sees the zeroes before anything that this one does next.
pub fn zero_for_all(pages: PhysRange) {
    zero(pages);
    barrier::dsb(barrier::ISH);
}

/// [`zero`], then [`clean_and_invalidate_to_poc`]: in one go where a block of zeroes is a cache line.
pub fn zero_to_poc(pages: PhysRange) {
    let line = line_size();
    if zero_block_size() != Some(line) {
        zero(pages);
        return clean_and_invalidate_to_poc(pages);
    }
    // SAFETY: as in `zero`. Both instructions are of one line: they happen in this order.
    unsafe { throughout!(pages, line, "dc zva, {0}", "dc civac, {0}") };
    barrier::dsb(barrier::SY);
}
