//! The page pool: physical memory of the core from which tables and per-CPU areas come.
//!
//! A buddy allocator over the free rest of the core's own 2 MiB block. Nobody outside the core ever maps a page of it,
//! so the allocator may keep its lists in free pages. Page-table accesses are checked against its bounds.

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use buddy_system_allocator::Heap;
use spin::mutex::SpinMutex;

use super::super::addr::{PAGE_SIZE, Pa, PhysRange};

/// Largest run is `1 << (ORDERS - 1)` bytes: 2 MiB.
const ORDERS: usize = 22;

static POOL: SpinMutex<Heap<ORDERS>> = SpinMutex::new(Heap::new());
static BASE: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);
/// Tables besides the pool: base and end.
static TABLES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Makes `range` the pool; `free` is the part of it that is not in use yet.
///
/// # Safety
/// To be called once. Both are whole pages of the core's own memory, mapped read-write at their physical
/// addresses; nothing else uses `free`, and `range` besides it holds nothing but page tables.
pub unsafe fn init(range: PhysRange, free: PhysRange) {
    BASE.store(range.base().raw(), Ordering::Relaxed);
    END.store(range.end().raw(), Ordering::Relaxed);
    // SAFETY: the caller hands `free` over.
    unsafe { POOL.lock().init(free.base().raw() as usize, free.size() as usize) };
}

fn layout(order: u32) -> Option<Layout> {
    let size = (PAGE_SIZE as usize).checked_shl(order)?;
    Layout::from_size_align(size, size).ok()
}

/// Takes `1 << order` pages, zeroed, aligned to their size; none if no such run is free. Takes the pool's own lock, below which nothing is taken.
pub fn alloc(order: u32) -> Option<Pa> {
    let layout = layout(order)?;
    let block = POOL.lock().alloc(layout).ok()?;
    // SAFETY: the block is the pool's own memory of this layout, and nobody else has it.
    unsafe { block.as_ptr().write_bytes(0, layout.size()) };
    Some(Pa::new(block.as_ptr() as u64))
}

/// Gives back what [`alloc`] gave with the same `order`, once; nobody has it any more. Takes the pool's own lock.
///
/// # Panics
/// If that lies outside the pool.
pub fn free(base: Pa, order: u32) {
    let end = Pa::new(base.raw() + (PAGE_SIZE << order));
    assert!(holds(base) && end.raw() <= END.load(Ordering::Relaxed), "{base} is not in the page pool");
    if let (Some(layout), Some(block)) = (layout(order), NonNull::new(base.raw() as *mut u8)) {
        // SAFETY: the run lies in the pool and was given out with this layout (only table pages come here, from the
        // layer that allocated them).
        unsafe { POOL.lock().dealloc(block, layout) };
    }
}

/// Tables may stand in `range` too, the core's own memory, mapped read-write at its physical address; at boot, once.
pub fn add_tables(range: PhysRange) {
    TABLES[0].store(range.base().raw(), Ordering::Relaxed);
    TABLES[1].store(range.end().raw(), Ordering::Relaxed);
}

/// Whether the byte at `pa` lies in memory that [`add_tables`] added.
pub fn holds_added(pa: Pa) -> bool {
    (TABLES[0].load(Ordering::Relaxed)..TABLES[1].load(Ordering::Relaxed)).contains(&pa.raw())
}

/// Whether the byte at `pa` lies in the pool.
pub fn holds(pa: Pa) -> bool {
    pa.raw() >= BASE.load(Ordering::Relaxed) && pa.raw() < END.load(Ordering::Relaxed)
}

/// Bytes in use, and bytes in all.
pub fn usage() -> (usize, usize) {
    let pool = POOL.lock();
    (pool.stats_alloc_actual(), pool.stats_total_bytes())
}
