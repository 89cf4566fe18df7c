//! Windows: how the core reaches a page of somebody else, for one access.
//!
//! Each CPU has two pages of addresses of its own in the core's map, beyond all memory. A page is mapped there, used, and forgotten by
//! this CPU's TLB; no other CPU ever uses the address, so no other TLB has it. Interrupts are masked at EL2, so nobody comes between.
//! Here too: pages that the core adopts into its own map for longer, from a host's donation.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use spin::Once;

use super::super::addr::{PAGE_SHIFT, PAGE_SIZE, Pa, Pfn, PhysRange};
use super::{maintenance, this};
use crate::platform::own_map;

/// Where the windows start: the upper half of the core's 48 bits, where the largest machine has no memory.
pub const BASE: u64 = 1 << 47;
/// Bytes of addresses that a CPU has for its windows.
pub const PER_CPU: u64 = PAGE_SIZE;

/// Level-3 table entries of the windows, by CPU.
static SLOTS: Once<&'static [Pa]> = Once::new();

/// Says where the table entry of each CPU's window is.
pub fn set_slots(slots: &'static [Pa]) {
    SLOTS.call_once(|| slots);
}

/// Maps `pfn` into this CPU's window, lets `access` use it at the address that it is given, and forgets it.
///
/// # Panics
/// Before [`set_slots`], and inside another window's `access`.
pub fn with_page<R>(pfn: Pfn, access: impl FnOnce(u64) -> R) -> R {
    let cpu = this().map(|data| data.cpu.index()).unwrap_or_default();
    let slot = SLOTS.get().and_then(|slots| slots.get(cpu)).copied();
    let Some(slot) = slot else { panic!("no window on CPU {cpu}") };
    let entry = slot.raw() as *mut u64;
    let at = BASE + cpu as u64 * PER_CPU;
    // SAFETY: the entry is this CPU's own, in a table of the core's map; its address is used by nobody else.
    unsafe {
        assert!(entry.read_volatile() == 0, "window in a window");
        entry.write_volatile(own_map::data_page(pfn));
    }
    barrier::dsb(barrier::NSHST);
    barrier::isb(barrier::SY);
    let result = access(at);
    // SAFETY: as above; after the invalidation this CPU has no translation for the address, and no other ever had.
    unsafe {
        entry.write_volatile(0);
        asm!("dsb nshst", "tlbi vae2, {}", "dsb nsh", "isb", in(reg) at >> PAGE_SHIFT, options(nostack, preserves_flags));
    }
    result
}

/// Reads words of the page from `first` on, each once.
pub fn read(pfn: Pfn, first: usize, out: &mut [u64]) {
    check(first, out.len());
    with_page(pfn, |at| {
        for (n, word) in out.iter_mut().enumerate() {
            // SAFETY: in the page that the window maps, aligned; whoever else writes it at the same time only changes what is read.
            *word = unsafe { ((at as *const u64).add(first + n)).read_volatile() };
        }
    });
}

/// Writes words of the page from `first` on, each once.
pub fn write(pfn: Pfn, first: usize, words: &[u64]) {
    check(first, words.len());
    with_page(pfn, |at| {
        for (n, word) in words.iter().enumerate() {
            // SAFETY: in the page that the window maps, aligned; nothing of the core lies there.
            unsafe { ((at as *mut u64).add(first + n)).write_volatile(*word) };
        }
    });
}

fn check(first: usize, count: usize) {
    assert!(first.checked_add(count).is_some_and(|end| end <= PAGE_SIZE as usize / 8), "words beyond the page");
}

/// Fills the page with zeroes and cleans them to the point of coherency.
pub fn clear(pfn: Pfn) {
    with_page(pfn, |at| {
        let page = PhysRange::between(Pa::new(at), Pa::new(at + PAGE_SIZE));
        maintenance::zero(page);
        maintenance::clean_and_invalidate_to_poc(page);
    });
}

/// Cleans the pages to the point of coherency, and drops them from the data caches.
pub fn clean(range: PhysRange) {
    let pages = range.page_cover();
    for n in 0..pages.pages() {
        with_page(Pfn::new(pages.first_pfn().raw() + n), |at| {
            maintenance::clean_and_invalidate_to_poc(PhysRange::between(Pa::new(at), Pa::new(at + PAGE_SIZE)));
        });
    }
}

/// The core's own map gains the page, zeroed.
pub fn adopt(pfn: Pfn) -> bool {
    let page = PhysRange::between(pfn.addr(), Pa::new(pfn.addr().raw() + PAGE_SIZE));
    if !own_map::adopt(page) {
        return false;
    }
    maintenance::zero(page);
    // Walkers of all CPUs are coherent; nothing with caches off reads it.
    true
}

/// Takes an adopted page out of the core's map, scrubbed.
pub fn release(pfn: Pfn) {
    let page = PhysRange::between(pfn.addr(), Pa::new(pfn.addr().raw() + PAGE_SIZE));
    maintenance::zero(page);
    maintenance::clean_and_invalidate_to_poc(page);
    own_map::unmap_page(pfn);
}
