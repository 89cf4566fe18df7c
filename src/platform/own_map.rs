//! The core's own stage-1 map: what it may read, write and execute itself.
//!
//! Every address maps to itself. Text is read-only, nothing else is executable, devices are device memory, the page
//! under every stack is not mapped, and memory of others is mapped for as long as one look takes, or one run of a vCPU (its mailbox). The map is made of
//! the same tables as stage 2, by the same layers (K: the table of COREVISOR). After boot only adopted pages come and go: memory that
//! the host gave for the tables and contexts of VMs. Its lock is inside all others (S2Page and Npt are held when pages are adopted).
//!
//! Source: Arm ARM (DDI 0487) D8.2, D8.3 (tables of stage 1 for EL2), D8.16 (TLB).

use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use spin::Once;
use spin::mutex::SpinMutex;

use super::entry::{self, ImageLayout};
use super::window;
use crate::abstract_machine::addr::{PAGE_SHIFT, PAGE_SIZE, Pa, Pfn, PhysRange, Va};
use crate::abstract_machine::cpu::{Cpu, maintenance, pool};
use crate::npt::descriptor::{CoreAccess, Desc};
use crate::npt::npt_walk::{self, SetNptError};
use crate::npt::pt_alloc::{self, OutOfTables};
use crate::npt::{Level, Npt, Shape, TableOwner};

static OWN: Once<SpinMutex<Npt>> = Once::new();
static ROOT: AtomicU64 = AtomicU64::new(0);

/// Why a range could not be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No page for a table.
    OutOfTables,
    /// It overlaps what is mapped already, or is no address.
    Overlap(PhysRange),
}

impl From<OutOfTables> for MapError {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfTables
    }
}

/// Replaces the map of boot by the final one: the image in its parts, and its free rest. The device tree blob is mapped while it is read (`with_bytes`).
///
/// # Errors
/// [`MapError`].
pub fn init(layout: &ImageLayout) -> Result<(), MapError> {
    let npt = pt_alloc::alloc_root(&Cpu, TableOwner::Core, Shape::new(48))?;
    let root = npt.root();
    ROOT.store(root.raw(), Ordering::Release);
    OWN.call_once(|| SpinMutex::new(npt));
    map(layout.text, CoreAccess::ReadExecute)?;
    map(layout.rodata, CoreAccess::Read)?;
    map(layout.data, CoreAccess::ReadWrite)?;
    map(layout.free, CoreAccess::ReadWrite)?;
    unmap(layout.stack_guard);
    // SAFETY: the map holds the image, with the stack that this runs on, where it is.
    unsafe { entry::install_map(root) };
    Ok(())
}

/// Maps the pages that `range` touches, at their own addresses, by the largest blocks that fit.
///
/// # Errors
/// [`MapError`]; a part may be mapped then.
pub fn map(range: PhysRange, access: CoreAccess) -> Result<(), MapError> {
    let pages = range.page_cover();
    let mut npt = OWN.get().ok_or(MapError::OutOfTables)?.lock();
    let mut at = pages.base();
    while at < pages.end() {
        let left = pages.end().raw() - at.raw();
        let level = Level::ALL.into_iter().find(|level| at.is_aligned(level.size()) && left >= level.size());
        let level = level.unwrap_or(Level::L3);
        let leaf = Desc::stage1(level, at, access);
        npt_walk::set_npt(&Cpu, &mut npt, Va::new(at.raw()).into(), level, leaf).map_err(|error| match error {
            SetNptError::OutOfTables => MapError::OutOfTables,
            _ => MapError::Overlap(range),
        })?;
        at = at.checked_add(level.size()).ok_or(MapError::Overlap(range))?;
    }
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
    Ok(())
}

/// Software bit of an adopted page's entry.
const ADOPTED: u64 = 1 << 55;

/// See `Machine::adopt_page`. The page is mapped at its own address, as a page, so that it can be told from the core's own memory.
pub fn adopt(pfn: Pfn) -> bool {
    let (used, all) = pool::usage();
    // Tables for adopted pages all over the RAM must not eat up what the host's own stage 2 needs.
    let Some(own) = OWN.get().filter(|_| used < all / 4 * 3) else { return false };
    let mut npt = own.lock();
    let leaf = Desc::from_raw(Desc::stage1(Level::L3, pfn.addr(), CoreAccess::ReadWrite).raw() | ADOPTED);
    if npt_walk::set_npt(&Cpu, &mut npt, Va::new(pfn.addr().raw()).into(), Level::L3, leaf).is_err() {
        return false;
    }
    maintenance::publish();
    maintenance::zero(page(pfn));
    true
}

/// Pages released so far: what a CPU knew of adopted pages before the last one is not to be relied upon.
static RELEASES: AtomicU64 = AtomicU64::new(0);

/// How many pages have been released.
#[inline]
pub fn releases() -> u64 {
    RELEASES.load(Ordering::Acquire)
}

/// See `Machine::release_page`.
pub fn release(pfn: Pfn) {
    assert!(is_adopted(pfn.addr()), "{pfn:?} was not adopted");
    maintenance::zero(page(pfn));
    maintenance::clean_and_invalidate_to_poc(page(pfn));
    let Some(own) = OWN.get() else { return };
    let mut npt = own.lock();
    let _ = npt_walk::clear_npt(&Cpu, &mut npt, Va::new(pfn.addr().raw()).into());
    // After the entry is gone: who looked before it went remembers the page under the old count.
    RELEASES.fetch_add(1, Ordering::AcqRel);
    let at = pfn.addr().raw() >> PAGE_SHIFT;
    // SAFETY: translations are walked again; the page is not in use any more.
    unsafe {
        core::arch::asm!("dsb ishst", "tlbi vae2is, {}", "dsb ish", "isb", in(reg) at, options(nostack, preserves_flags));
    }
}

fn page(pfn: Pfn) -> PhysRange {
    PhysRange::between(pfn.addr(), Pa::new(pfn.addr().raw() + PAGE_SIZE))
}

/// Whether the byte at `pa` lies in an adopted page. Takes no lock: tables of this map stay where they are.
pub fn is_adopted(pa: Pa) -> bool {
    entry_of(pa.raw()).is_some_and(|(_, entry)| entry & (ADOPTED | 1) == ADOPTED | 1)
}

/// Whether the byte at `pa` lies in a page that is mapped as device memory, as a page.
pub fn is_device(pa: Pa) -> bool {
    entry_of(pa.raw()).is_some_and(|(_, entry)| Desc::from_raw(entry).is_core_device())
}

/// The level-3 table for the address, and its entry there.
fn entry_of(at: u64) -> Option<(Pa, u64)> {
    let mut table = Pa::new(ROOT.load(Ordering::Acquire));
    if table.raw() == 0 || at >> 48 != 0 {
        return None;
    }
    for shift in [39, 30, 21] {
        // SAFETY: a table of the core's own map, which lies in the pool and is never freed.
        let entry = unsafe { ((table.raw() + (at >> shift & 511) * 8) as *const u64).read_volatile() };
        // Table: bits 1 and 0.
        if entry & 0b11 != 0b11 {
            return None;
        }
        table = Desc::from_raw(entry).address();
    }
    // SAFETY: as above.
    let entry = unsafe { ((table.raw() + (at >> PAGE_SHIFT & 511) * 8) as *const u64).read_volatile() };
    Some((table, entry))
}

/// Makes the tables for the windows' addresses: the last of them.
///
/// # Errors
/// [`MapError`].
pub fn window_table() -> Result<Pa, MapError> {
    let own = OWN.get().ok_or(MapError::OutOfTables)?;
    let mut npt = own.lock();
    let first = Va::new(window::BASE);
    // Any page serves: a leaf brings its tables along, which stay when it goes.
    let leaf = Desc::stage1(Level::L3, npt.root(), CoreAccess::Read);
    npt_walk::set_npt(&Cpu, &mut npt, first.into(), Level::L3, leaf).map_err(|_| MapError::OutOfTables)?;
    let _ = npt_walk::clear_npt(&Cpu, &mut npt, first.into());
    maintenance::publish();
    maintenance::flush_all_local();
    entry_of(window::BASE).map(|(table, _)| table).ok_or(MapError::OutOfTables)
}

/// Takes the pages that `range` touches out of the map, on all CPUs.
pub fn unmap(range: PhysRange) {
    let pages = range.page_cover();
    let Some(own) = OWN.get() else { return };
    let mut npt = own.lock();
    let mut at = pages.base().raw();
    while at < pages.end().raw() {
        let step = npt_walk::clear_npt(&Cpu, &mut npt, Va::new(at).into()).map_or(PAGE_SIZE, |(level, _)| level.size());
        at += step;
    }
    barrier::dsb(barrier::ISHST);
    // SAFETY: translations are walked again; what was unmapped is not in use any more.
    unsafe { core::arch::asm!("tlbi alle2is", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Shows the bytes of `range`, memory of somebody else, to `look` and forgets them again.
///
/// # Errors
/// [`MapError`], if the range overlaps what is mapped.
pub fn with_bytes<R>(range: PhysRange, look: impl FnOnce(&[u8]) -> R) -> Result<R, MapError> {
    map(range, CoreAccess::Read)?;
    // SAFETY: mapped, readable; only the boot CPU runs, so nobody writes meanwhile.
    let result = look(unsafe { slice::from_raw_parts(range.base().raw() as *const u8, range.size() as usize) });
    unmap(range);
    Ok(result)
}

/// Lets `change` write the bytes of `range`, memory of somebody else, cleans them to memory and forgets them again.
///
/// # Errors
/// [`MapError`], if the range overlaps what is mapped.
pub fn with_bytes_mut<R>(range: PhysRange, change: impl FnOnce(&mut [u8]) -> R) -> Result<R, MapError> {
    map(range, CoreAccess::ReadWrite)?;
    // SAFETY: mapped, writable; only the boot CPU runs, and the caller gave up every other reference.
    let result = change(unsafe { slice::from_raw_parts_mut(range.base().raw() as *mut u8, range.size() as usize) });
    crate::abstract_machine::cpu::maintenance::clean_to_poc(range);
    unmap(range);
    Ok(result)
}

/// Writes the aligned doubleword at `at`, memory of somebody else, in one access, and cleans it to memory: another CPU that
/// polls it sees all of it or nothing.
///
/// # Errors
/// [`MapError`], if `at` is not aligned or overlaps what is mapped.
pub fn write_doubleword(at: Pa, value: u64) -> Result<(), MapError> {
    let word = PhysRange::between(at, Pa::new(at.raw().wrapping_add(8)));
    if !at.is_aligned(8) {
        return Err(MapError::Overlap(word));
    }
    with_bytes_mut(word, |bytes| {
        // SAFETY: eight aligned bytes, mapped writable; the only other user polls them.
        unsafe { bytes.as_mut_ptr().cast::<u64>().write_volatile(value) };
    })
}
