//! The machine's RAM as bytes: the free part, in which no Rust object lives, and what the loader put there to read.
//!
//! Every function for free RAM checks that its range is free RAM as [`give`] said, so that no caller can reach an object of this program.
//! A page that belongs to a protected VM is not readable then: such an access ends the program (`entry::try_read` does not).

use core::ops::Range;
use core::slice;

use corevisor_interface::mailbox::Mailbox;

use crate::sync::Mutex;

const MOST_RANGES: usize = 64;

static FREE: Mutex<([Range<u64>; MOST_RANGES], usize)> = Mutex::new(([const { 0..0 }; MOST_RANGES], 0));

/// From now on this range is free RAM. The caller says that nothing else is in it.
pub fn give(range: Range<u64>) -> bool {
    let mut free = FREE.lock();
    let (ranges, used) = &mut *free;
    let Some(slot) = ranges.get_mut(*used) else { return false };
    *slot = range;
    *used += 1;
    true
}

fn is_free(pa: u64, size: u64) -> bool {
    let free = FREE.lock();
    let (ranges, used) = &*free;
    pa.checked_add(size).is_some_and(|end| ranges[..*used].iter().any(|range| range.start <= pa && end <= range.end))
}

/// Ends the program if this is no free RAM.
pub(super) fn assert_free(pa: u64, size: u64) {
    assert!(is_free(pa, size), "{pa:#x} is no free RAM");
}

/// Copies bytes to free RAM.
pub fn copy_to(pa: u64, bytes: &[u8]) {
    assert_free(pa, bytes.len() as u64);
    // SAFETY: free RAM holds no Rust object, so it does not overlap `bytes` either.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), pa as *mut u8, bytes.len()) };
}

/// Copies bytes out of free RAM, which must be accessible.
pub fn copy_from(pa: u64, bytes: &mut [u8]) {
    assert_free(pa, bytes.len() as u64);
    // SAFETY: free RAM holds no Rust object, so it does not overlap `bytes` either.
    unsafe { core::ptr::copy_nonoverlapping(pa as *const u8, bytes.as_mut_ptr(), bytes.len()) };
}

/// Zeroes free RAM.
pub fn zero(pa: u64, size: u64) {
    assert_free(pa, size);
    // SAFETY: free RAM holds no Rust object.
    unsafe { core::ptr::write_bytes(pa as *mut u8, 0, size as usize) };
}

/// Whether a page of free RAM, which must be accessible, is all zero.
pub fn is_zero(pa: u64) -> bool {
    assert_free(pa, 4096);
    // SAFETY: free RAM holds no Rust object; reads through volatile words, as somebody else may have written it.
    (0..512).all(|n| unsafe { core::ptr::read_volatile((pa + n * 8) as *const u64) } == 0)
}

/// Cleans and invalidates the data cache over a range, to the point of coherency: what a VM reads with its caches off.
pub fn clean(pa: u64, size: u64) {
    let ctr: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack)) };
    let line = 4 << (ctr >> 16 & 0xf);
    let (mut at, end) = (pa & !(line - 1), pa + size);
    // Eight at a time, as far as there are so many: a block has thousands.
    while end.saturating_sub(at) >= 8 * line {
        // SAFETY: as below.
        unsafe {
            core::arch::asm!(
                "dc civac, {at}", "add {at}, {at}, {line}", "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}", "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}", "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}", "dc civac, {at}", "add {at}, {at}, {line}",
                at = inout(reg) at, line = in(reg) line, options(nostack)
            );
        }
    }
    while at < end {
        // SAFETY: changes no memory; the range is mapped.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) at, options(nostack)) };
        at += line;
    }
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("dsb sy", options(nostack)) };
}

/// Makes what was written into a range fit for execution by a VM.
pub fn clean_code(pa: u64, size: u64) {
    clean(pa, size);
    // SAFETY: invalidates the instruction cache of all CPUs.
    unsafe { core::arch::asm!("ic ialluis", "dsb ish", "isb", options(nostack)) };
}

/// The device tree at `pa`; `None` if there is none. Its size is what its header says, at most 2 MiB.
pub fn device_tree(pa: u64) -> Option<&'static [u8]> {
    if pa == 0 || !pa.is_multiple_of(8) {
        return None;
    }
    // SAFETY: the core gives the device tree's address in x0, and `entry.S` maps 2 MiB from there on.
    let header = unsafe { slice::from_raw_parts(pa as *const u8, 8) };
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) != 0xd00d_feed || word(4) > 0x20_0000 {
        return None;
    }
    // SAFETY: as above; nobody writes it, as it is never free RAM.
    Some(unsafe { slice::from_raw_parts(pa as *const u8, word(4) as usize) })
}

/// The initrd, which the device tree names. Never free RAM.
pub fn initrd(range: Range<u64>) -> &'static [u8] {
    // SAFETY: it is RAM as the device tree says, mapped, and nobody writes it.
    unsafe { slice::from_raw_parts(range.start as *const u8, (range.end - range.start) as usize) }
}

/// A page of free RAM that is a vCPU's mailbox. The core writes it while the vCPU runs, and then only: [`MailboxPage::run`] has it for itself.
#[derive(Debug)]
pub struct MailboxPage {
    pa: u64,
}

impl MailboxPage {
    /// The page at `pa`, zeroed. Nobody else uses it, and `VcpuRun` of its vCPU is called by [`MailboxPage::run`] only.
    pub fn new(pa: u64) -> Self {
        assert!(pa.is_multiple_of(4096), "a mailbox is a page");
        zero(pa, 4096);
        Self { pa }
    }

    /// Its address.
    pub const fn pa(&self) -> u64 {
        self.pa
    }

    /// What stands in it, in place: between two runs nobody else reads or writes it.
    pub fn mailbox(&mut self) -> &mut Mailbox {
        // SAFETY: `new` checked the page, which is this value's alone; every bit pattern is a Mailbox; the core writes it during `run` only,
        // which ends this borrow.
        unsafe { &mut *(self.pa as *mut Mailbox) }
    }

    /// VcpuRun, or another call that lets the core read and write the page.
    pub fn run<T>(&mut self, call: impl FnOnce() -> T) -> T {
        call()
    }
}
