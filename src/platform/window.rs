//! Windows: how a CPU reaches pages of somebody else's RAM, for the length of one access, or one page from a vCPU's entry to its exit.
//!
//! Each CPU has [`SHARE`] pages of addresses at the top of the core's own map, beyond all RAM, and their entries in the last table there. A
//! page, or a few behind one another that change hands together, is mapped, used and taken away again; interrupts are masked at EL2, so nobody else uses the CPU's windows meanwhile, and the other CPUs never
//! use this one's, whatever their TLBs may have seen of it: so forgetting is local. The attributes are those of all RAM.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;

use super::host_start::CoreMemory;
use crate::abstract_machine::ForeignPage;
use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SHIFT, PAGE_SIZE, Pa, Pfn, PhysRange, Va};
use crate::abstract_machine::cpu::{self, maintenance};
use crate::abstract_machine::per_cpu::PerCpu;
use crate::npt::Level;
use crate::npt::descriptor::{CoreAccess, Desc};
use crate::platform::device_tree::MAX_CPUS;

/// Where the windows are: the last 2 MiB of 48 bits of address, one table's worth.
pub const BASE: u64 = (1 << 48) - BLOCK_2M;

/// Words of a page, and entries of a table.
const WORDS: usize = 512;

/// Windows of one CPU.
const SHARE: usize = WORDS / MAX_CPUS;
/// The one for a page that stays open while others are visited; those before it are for the length of an access.
const OPEN: usize = SHARE - 1;

/// Address of the level-3 table for [`BASE`]; 0 before [`init`].
static TABLE: AtomicU64 = AtomicU64::new(0);
static MEMORY: Once<(&'static [PhysRange], CoreMemory)> = Once::new();

/// Opens the windows: `ram` may be seen through them, but not `core`.
pub fn init(ram: &'static [PhysRange], core: CoreMemory, table: Pa) {
    MEMORY.call_once(|| (ram, core));
    TABLE.store(table.raw(), Ordering::Release);
}

/// The page that a window of this CPU shows, until this is dropped.
pub struct Window {
    at: *mut u64,
    entry: *mut u64,
}

impl Window {
    /// Where the page is seen.
    pub fn as_ptr(&self) -> *const u64 {
        self.at
    }
}

impl ForeignPage for Window {
    #[inline(always)]
    fn read(&self, word: usize) -> u64 {
        assert!(word < WORDS, "beyond a page");
        // SAFETY: within the mapped page; its owner may write it meanwhile, so the word is read once.
        unsafe { self.at.add(word).read_volatile() }
    }

    #[inline(always)]
    fn write(&self, word: usize, value: u64) {
        assert!(word < WORDS, "beyond a page");
        // SAFETY: within the mapped page, which holds no Rust value.
        unsafe { self.at.add(word).write_volatile(value) };
    }
}

impl Drop for Window {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the entry is this CPU's own; then this CPU forgets the window.
        unsafe { self.entry.write_volatile(0) };
        maintenance::forget_own_pages(Va::new(self.at as u64), 1);
    }
}

/// Whether a window may show these pages: RAM of one bank that is not the core's.
fn is_foreign(pages: PhysRange) -> bool {
    MEMORY.get().is_some_and(|(ram, core)| {
        ram.iter().any(|bank| bank.contains_range(pages)) && !core.ranges().iter().any(|range| range.overlaps(pages))
    })
}

/// Stops the machine if a window may not show `pfn`.
#[inline]
fn expect_foreign(pfn: Pfn) {
    // What is RAM, and what the core's, never changes: a CPU need not look twice.
    if !cpu::this_for_good().is_some_and(|this| this.has_seen(pfn)) {
        look_at(pfn);
    }
}

/// The same for pages behind one another, which change hands: what a CPU visits between two of these calls is elsewhere.
#[inline]
fn expect_all_foreign(this: &PerCpu, pages: PhysRange) {
    let in_block = BLOCK_2M - pages.base().raw() % BLOCK_2M;
    if !this.has_changed(pages.first_pfn()) || pages.size() > in_block {
        look_at_all(this, pages);
    }
}

/// The same for the first pages of a block that this CPU changes.
#[inline(never)]
fn look_at_all(this: &PerCpu, pages: PhysRange) {
    let block = PhysRange::new(pages.base().align_down(BLOCK_2M), BLOCK_2M).filter(|block| is_foreign(*block));
    if block.is_some() {
        this.note_changed(pages.first_pfn());
    }
    let all = block.is_some_and(|block| block.contains_range(pages)) || is_foreign(pages);
    assert!(all, "{pages:?} is no memory for a window");
}

/// [`expect_foreign`] for the first page of a block that this CPU comes to.
#[inline(never)]
fn look_at(pfn: Pfn) {
    let around = |size| PhysRange::new(pfn.addr().align_down(size), size).is_some_and(is_foreign);
    let block = around(BLOCK_2M);
    assert!(block || around(PAGE_SIZE), "{pfn:?} is no memory for a window");
    if let Some(this) = cpu::this() {
        this.note_seen(pfn, block);
    }
}

/// This CPU, and address and entry of its first window; the others are behind it.
#[inline(always)]
fn own_windows() -> (&'static PerCpu, u64, *mut u64) {
    let (table, this) = (TABLE.load(Ordering::Acquire), cpu::this_for_good());
    let (Some(this), true) = (this.filter(|this| this.cpu.index() < MAX_CPUS), table != 0) else { no_window() };
    let slot = (this.cpu.index() * SHARE) as u64;
    (this, BASE | slot << PAGE_SHIFT, (table | slot << 3) as *mut u64)
}

#[cold]
#[inline(never)]
fn no_window() -> ! {
    panic!("no window yet")
}

/// Shows whole pages, as many at once as the CPU has windows, to `change`, which gets where they are seen.
fn show_all(pages: PhysRange, change: impl Fn(PhysRange)) {
    let (this, first, entries) = own_windows();
    expect_all_foreign(this, pages);
    let mut at = pages.base().raw();
    while at < pages.end().raw() {
        let size = (pages.end().raw() - at).min(OPEN as u64 * PAGE_SIZE);
        let count = (size >> PAGE_SHIFT) as usize;
        let leaf = Desc::stage1(Level::L3, Pa::new(at), CoreAccess::ReadWrite).raw();
        // SAFETY: the entries are this CPU's own, in a table of the core's map; the pages are RAM that is not the core's.
        (0..count).for_each(|n| unsafe { entries.add(n).write_volatile(leaf + (n as u64 * PAGE_SIZE)) });
        maintenance::publish();
        change(PhysRange::between(Pa::new(first), Pa::new(first + size)));
        // SAFETY: as above; then this CPU forgets the windows.
        (0..count).for_each(|n| unsafe { entries.add(n).write_volatile(0) });
        maintenance::forget_own_pages(Va::new(first), count as u64);
        at += size;
    }
}

/// Shows `pfn` in window `n` of this CPU.
#[inline(always)]
fn show(n: usize, pfn: Pfn) -> Window {
    expect_foreign(pfn);
    let (_, first, entries) = own_windows();
    // SAFETY: each CPU has `SHARE` entries, and `n` is less.
    let (at, entry) = (first + (n as u64 * PAGE_SIZE), unsafe { entries.add(n) });
    // SAFETY: the entry is this CPU's own, in a table of the core's map; the page is RAM that is not the core's.
    unsafe { entry.write_volatile(Desc::stage1(Level::L3, pfn.addr(), CoreAccess::ReadWrite).raw()) };
    maintenance::publish();
    Window { at: at as *mut u64, entry }
}

/// See `Machine::open_page`.
#[inline(always)]
pub fn open(pfn: Pfn) -> Window {
    show(OPEN, pfn)
}

/// A page to be looked at all at once, with nothing visited meanwhile.
pub fn visit(pfn: Pfn) -> Window {
    show(0, pfn)
}

/// See `Machine::read_page`.
pub fn read(pfn: Pfn, first_word: usize, out: &mut [u64]) {
    let page = show(0, pfn);
    (first_word..).zip(out).for_each(|(n, word)| *word = page.read(n));
}

/// See `Machine::write_page`.
pub fn write(pfn: Pfn, first_word: usize, words: &[u64]) {
    let page = show(0, pfn);
    (first_word..).zip(words).for_each(|(n, word)| page.write(n, *word));
}

/// See `Machine::clear_phys_run`.
pub fn clear(pages: PhysRange) {
    // Pages that the core adopted are among them: their other address has the same attributes, so it finds the zeroes there.
    show_all(pages, maintenance::zero_to_poc);
}

/// See `Machine::zero_phys_run`.
pub fn zero(pages: PhysRange) {
    show_all(pages, maintenance::zero_for_all);
}

/// See `Machine::clean_phys_run`.
pub fn clean(pages: PhysRange) {
    show_all(pages, maintenance::clean_and_invalidate_to_poc);
}

/// See `Machine::sync_page_to_poc`.
pub fn sync(range: PhysRange) {
    if !range.is_empty() {
        clean(range.page_cover());
    }
    maintenance::invalidate_icache_all();
}
