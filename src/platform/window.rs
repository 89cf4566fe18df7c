//! Windows: how a CPU reaches one page of somebody else's RAM, for the length of one access.
//!
//! Each CPU has a page of addresses at the top of the core's own map, beyond all RAM, and its entry in the last table there. The
//! page is mapped, used and taken away again; interrupts are masked at EL2, so nobody else uses the CPU's window meanwhile, and the other CPUs never
//! use this one's, whatever their TLBs may have seen of it: so forgetting is local. The attributes are those of all RAM.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use spin::Once;

use super::own_map;
use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SHIFT, PAGE_SIZE, Pa, Pfn, PhysRange};
use crate::abstract_machine::cpu::{self, maintenance, pool};
use crate::npt::Level;
use crate::npt::descriptor::{CoreAccess, Desc};

/// Where the windows are: the last 2 MiB of 48 bits of address, one table's worth.
pub const BASE: u64 = (1 << 48) - BLOCK_2M;

/// Address of the level-3 table for [`BASE`]; 0 before [`init`].
static TABLE: AtomicU64 = AtomicU64::new(0);
static MEMORY: Once<(&'static [PhysRange], [PhysRange; 2])> = Once::new();

/// Opens the windows: `ram` may be seen through them, but not `core`.
pub fn init(ram: &'static [PhysRange], core: [PhysRange; 2], table: Pa) {
    MEMORY.call_once(|| (ram, core));
    TABLE.store(table.raw(), Ordering::Release);
}

/// Lets `look` use the page `pfn`, through this CPU's window.
fn with<R>(pfn: Pfn, look: impl FnOnce(*mut u64) -> R) -> R {
    let page = PhysRange::between(pfn.addr(), Pa::new(pfn.addr().raw() + PAGE_SIZE));
    let (table, slot) = (TABLE.load(Ordering::Acquire), cpu::this().map(|cpu| cpu.cpu.index()));
    let known = MEMORY.get().is_some_and(|(ram, core)| {
        ram.iter().any(|bank| bank.contains_range(page)) && !core.iter().any(|range| range.overlaps(page))
    });
    let (true, Some(slot), true) = (table != 0, slot.filter(|slot| *slot < 512), known) else {
        panic!("{page} is no memory for a window")
    };
    let at = BASE + slot as u64 * PAGE_SIZE;
    let entry = (table + slot as u64 * 8) as *mut u64;
    // SAFETY: the entry is this CPU's own, in a table of the core's map; the page is RAM that is not the core's.
    unsafe { entry.write_volatile(Desc::stage1(Level::L3, pfn.addr(), CoreAccess::ReadWrite).raw()) };
    maintenance::publish();
    let result = look(at as *mut u64);
    // SAFETY: as above; then this CPU forgets the window.
    unsafe {
        entry.write_volatile(0);
        asm!("dsb nshst", "tlbi vae2, {}", "dsb nsh", "isb", in(reg) at >> PAGE_SHIFT, options(nostack, preserves_flags));
    }
    barrier::isb(barrier::SY);
    result
}

/// See `Machine::read_page`.
pub fn read(pfn: Pfn, first_word: usize, out: &mut [u64]) {
    assert!(first_word.saturating_add(out.len()) <= 512, "beyond a page");
    with(pfn, |page| {
        for (n, word) in out.iter_mut().enumerate() {
            // SAFETY: within the mapped page; its owner may write it meanwhile, so each word is read once.
            *word = unsafe { page.add(first_word + n).read_volatile() };
        }
    });
}

/// See `Machine::write_page`.
pub fn write(pfn: Pfn, first_word: usize, words: &[u64]) {
    assert!(first_word.saturating_add(words.len()) <= 512, "beyond a page");
    with(pfn, |page| {
        for (n, word) in words.iter().enumerate() {
            // SAFETY: within the mapped page, which holds no Rust value.
            unsafe { page.add(first_word + n).write_volatile(*word) };
        }
    });
}

/// See `Machine::clear_phys_page`.
pub fn clear(pfn: Pfn) {
    let zero = |at: u64| {
        let page = PhysRange::between(Pa::new(at), Pa::new(at + PAGE_SIZE));
        maintenance::zero(page);
        maintenance::clean_and_invalidate_to_poc(page);
    };
    let at = pfn.addr();
    // Table pages have their owner's own address; it goes on using them.
    if pool::holds(at) || own_map::is_adopted(at) { zero(at.raw()) } else { with(pfn, |page| zero(page as u64)) }
}

/// See `Machine::sync_page_to_poc`.
pub fn sync(range: PhysRange) {
    let pages = range.page_cover();
    let mut at = pages.base();
    while at < pages.end() {
        with(Pfn::containing(at), |page| {
            let page = Pa::new(page as u64);
            maintenance::clean_and_invalidate_to_poc(PhysRange::between(page, Pa::new(page.raw() + PAGE_SIZE)));
        });
        at = Pa::new(at.raw() + PAGE_SIZE);
    }
    maintenance::invalidate_icache_all();
}
