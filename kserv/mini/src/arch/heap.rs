//! Rust's heap: buddies, first over a piece of .bss, then over more RAM.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::NonNull;

use buddy_system_allocator::Heap;

use crate::sync::Mutex;

const FIRST_SIZE: usize = 512 * 1024;

#[repr(C, align(4096))]
struct First(UnsafeCell<[u8; FIRST_SIZE]>);

// SAFETY: given to the heap once, whose lock guards it.
unsafe impl Sync for First {}

static FIRST: First = First(UnsafeCell::new([0; FIRST_SIZE]));

struct Locked(Mutex<Heap<33>>);

#[global_allocator]
static HEAP: Locked = Locked(Mutex::new(Heap::new()));

// SAFETY: the buddy allocator hands out blocks of the layout's size and alignment that do not overlap.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: the caller got it from `alloc` with this layout.
            unsafe { self.0.lock().dealloc(pointer, layout) };
        }
    }
}

/// The first piece. Once, before anything is allocated.
pub(super) fn start() {
    // SAFETY: nothing else uses FIRST.
    unsafe { HEAP.0.lock().init(FIRST.0.get() as usize, FIRST_SIZE) };
}

/// More: a range of RAM that nothing else uses and that is not free RAM of `memory`.
pub fn add(range: Range<u64>) {
    // SAFETY: the caller has taken it out of the RAM that it gives to `memory::give`.
    unsafe { HEAP.0.lock().add_to_heap(range.start as usize, range.end as usize) };
}
