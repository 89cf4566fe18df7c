//! Windows: how a CPU reaches one page of somebody else's RAM, for the length of one access.
//!
//! Each CPU has a page of addresses at the top of the core's own map, beyond all RAM, and its entry in the last table there. The
//! page is mapped, used and taken away again; interrupts are masked at EL2, so nobody else uses the CPU's window meanwhile, and the other CPUs never
//! use this one's, whatever their TLBs may have seen of it: so forgetting is local. The attributes are those of all RAM.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;

use super::host_start::CoreMemory;
use crate::abstract_machine::ForeignPage;
use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SHIFT, PAGE_SIZE, Pa, Pfn, PhysRange};
use crate::abstract_machine::cpu::{self, maintenance, pool};
use crate::npt::Level;
use crate::npt::descriptor::{CoreAccess, Desc};

/// Where the windows are: the last 2 MiB of 48 bits of address, one table's worth.
pub const BASE: u64 = (1 << 48) - BLOCK_2M;

/// Words of a page, and entries of a table.
const WORDS: usize = 512;

/// Address of the level-3 table for [`BASE`]; 0 before [`init`].
static TABLE: AtomicU64 = AtomicU64::new(0);
static MEMORY: Once<(&'static [PhysRange], CoreMemory)> = Once::new();

/// Opens the windows: `ram` may be seen through them, but not `core`.
pub fn init(ram: &'static [PhysRange], core: CoreMemory, table: Pa) {
    MEMORY.call_once(|| (ram, core));
    TABLE.store(table.raw(), Ordering::Release);
}

/// The page that this CPU's window shows.
pub struct Window(*mut u64);

impl ForeignPage for Window {
    #[inline(always)]
    fn read(&self, word: usize) -> u64 {
        assert!(word < WORDS, "beyond a page");
        // SAFETY: within the mapped page; its owner may write it meanwhile, so the word is read once.
        unsafe { self.0.add(word).read_volatile() }
    }

    #[inline(always)]
    fn write(&self, word: usize, value: u64) {
        assert!(word < WORDS, "beyond a page");
        // SAFETY: within the mapped page, which holds no Rust value.
        unsafe { self.0.add(word).write_volatile(value) };
    }
}

/// Whether a window may show these pages: RAM of one bank that is not the core's.
fn is_foreign(pages: PhysRange) -> bool {
    MEMORY.get().is_some_and(|(ram, core)| {
        ram.iter().any(|bank| bank.contains_range(pages)) && !core.iter().any(|range| range.overlaps(pages))
    })
}

/// Stops the machine if a window may not show `pfn`.
#[inline]
fn expect_foreign(pfn: Pfn) {
    // What is RAM, and what the core's, never changes: a CPU need not look twice.
    if !cpu::this().is_some_and(|this| this.has_seen(pfn)) {
        look_at(pfn);
    }
}

/// The same for the first page of a block that this CPU comes to.
#[inline(never)]
fn look_at(pfn: Pfn) {
    let around = |size| PhysRange::new(pfn.addr().align_down(size), size).is_some_and(is_foreign);
    let block = around(BLOCK_2M);
    assert!(block || around(PAGE_SIZE), "{pfn:?} is no memory for a window");
    if let Some(this) = cpu::this() {
        this.has_seen_now(pfn, block);
    }
}

/// See `Machine::visit_page`.
#[inline]
pub fn visit<R>(pfn: Pfn, visit: impl FnOnce(&Window) -> R) -> R {
    expect_foreign(pfn);
    let (table, this) = (TABLE.load(Ordering::Acquire), cpu::this());
    let (Some(this), true) = (this.filter(|this| this.cpu.index() < WORDS), table != 0) else {
        panic!("{pfn:?}: no window yet")
    };
    let slot = this.cpu.index() as u64;
    let (at, entry) = (BASE | slot << PAGE_SHIFT, (table | slot << 3) as *mut u64);
    // SAFETY: the entry is this CPU's own, in a table of the core's map; the page is RAM that is not the core's.
    unsafe { entry.write_volatile(Desc::stage1(Level::L3, pfn.addr(), CoreAccess::ReadWrite).raw()) };
    maintenance::publish();
    let result = visit(&Window(at as *mut u64));
    // SAFETY: as above; then this CPU forgets the window.
    unsafe {
        entry.write_volatile(0);
        asm!("dsb nshst", "tlbi vae2, {}", "dsb nsh", "isb", in(reg) at >> PAGE_SHIFT, options(nostack, preserves_flags));
    }
    result
}

/// See `Machine::read_page`.
pub fn read(pfn: Pfn, first_word: usize, out: &mut [u64]) {
    visit(pfn, |page| (first_word..).zip(out).for_each(|(n, word)| *word = page.read(n)));
}

/// See `Machine::write_page`.
pub fn write(pfn: Pfn, first_word: usize, words: &[u64]) {
    visit(pfn, |page| (first_word..).zip(words).for_each(|(n, word)| page.write(n, *word)));
}

/// See `Machine::clear_phys_page`.
pub fn clear(pfn: Pfn) {
    let zero = |at: u64| maintenance::zero_to_poc(PhysRange::between(Pa::new(at), Pa::new(at + PAGE_SIZE)));
    // The core's own pages are in no window. A page that it adopted may be: its other address has the same attributes, so it finds the zeroes there.
    if pool::holds(pfn.addr()) { zero(pfn.addr().raw()) } else { visit(pfn, |page| zero(page.0 as u64)) }
}

/// See `Machine::sync_page_to_poc`.
pub fn sync(range: PhysRange) {
    let pages = range.page_cover();
    let mut at = pages.base();
    while at < pages.end() {
        visit(Pfn::containing(at), |page| {
            let page = Pa::new(page.0 as u64);
            maintenance::clean_and_invalidate_to_poc(PhysRange::between(page, Pa::new(page.raw() + PAGE_SIZE)));
        });
        at = Pa::new(at.raw() + PAGE_SIZE);
    }
    maintenance::invalidate_icache_all();
}
