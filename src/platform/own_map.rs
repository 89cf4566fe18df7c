//! The core's own stage-1 map: what it may read, write and execute itself.
//!
//! Every address maps to itself. Text is read-only, nothing else is executable, devices are device memory, the page
//! under every stack is not mapped, and memory of others is mapped for as long as one look takes. The map is made of
//! the same tables as stage 2, by the same layers (K: the table of COREVISOR). Boot CPU only.

use core::slice;

use aarch64_cpu::asm::barrier;
use spin::Once;
use spin::mutex::SpinMutex;

use super::entry::{self, ImageLayout};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{PAGE_SHIFT, PAGE_SIZE, Pa, Pfn, PhysRange, Va};
use crate::abstract_machine::cpu::{Cpu, window};
use crate::npt::descriptor::{CoreAccess, Desc};
use crate::npt::npt_walk::{self, SetNptError};
use crate::npt::pt_alloc::{self, OutOfTables};
use crate::npt::{Level, Npt, Shape, TableOwner};

static OWN: Once<SpinMutex<Npt>> = Once::new();

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

/// Replaces the map of boot by the final one: the image in its parts, its free rest, and the device tree blob.
///
/// # Errors
/// [`MapError`].
pub fn init(layout: &ImageLayout) -> Result<(), MapError> {
    let npt = pt_alloc::alloc_root(&Cpu, TableOwner::Core, Shape::new(48))?;
    let root = npt.root();
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

/// The table entry that maps the page `pfn` as data.
pub fn data_page(pfn: Pfn) -> u64 {
    Desc::stage1(Level::L3, pfn.addr(), CoreAccess::ReadWrite).raw()
}

/// The map gains `page` as data. `false` if there is no page for a table.
pub fn adopt(page: PhysRange) -> bool {
    map(page, CoreAccess::ReadWrite).is_ok()
}

/// Takes one page out of the map, on all CPUs: break, then every TLB forgets this address.
pub fn unmap_page(pfn: Pfn) {
    let Some(own) = OWN.get() else { return };
    let mut npt = own.lock();
    let at = pfn.addr().raw();
    npt_walk::clear_npt(&Cpu, &mut npt, Va::new(at).into());
    barrier::dsb(barrier::ISHST);
    // SAFETY: the translation is walked again; the page is not in use any more.
    unsafe {
        core::arch::asm!("tlbi vae2is, {}", "dsb ish", "isb", in(reg) at >> PAGE_SHIFT, options(nostack, preserves_flags));
    }
}

/// Makes the windows: one page of addresses for each of `cpus`, with nothing behind. Gives the table entry of each.
///
/// # Errors
/// [`MapError`].
pub fn make_windows(cpus: usize) -> Result<&'static [Pa], MapError> {
    let bytes = (size_of::<Pa>() * cpus) as u64;
    let array = crate::abstract_machine::cpu::pool::alloc(bytes.div_ceil(PAGE_SIZE).next_power_of_two().ilog2());
    let array = array.ok_or(MapError::OutOfTables)?.raw() as *mut Pa;
    let mut npt = OWN.get().ok_or(MapError::OutOfTables)?.lock();
    for cpu in 0..cpus {
        let at = Va::new(window::BASE + cpu as u64 * window::PER_CPU);
        let slot = slot_of(&mut npt, at)?;
        // SAFETY: the run of pages has room for as many as there are CPUs, and nothing refers to it yet.
        unsafe { array.add(cpu).write(slot) };
    }
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
    // SAFETY: `cpus` elements were written; the pages are never given back.
    Ok(unsafe { slice::from_raw_parts(array.cast_const(), cpus) })
}

/// The level-3 entry for `at`, where nothing is mapped, with all tables on the way.
fn slot_of(npt: &mut Npt, at: Va) -> Result<Pa, MapError> {
    // A page mapped and taken away again, before any CPU could use the address, leaves its tables.
    let leaf = Desc::stage1(Level::L3, npt.root(), CoreAccess::Read);
    npt_walk::set_npt(&Cpu, npt, at.into(), Level::L3, leaf).map_err(|_| MapError::OutOfTables)?;
    npt_walk::clear_npt(&Cpu, npt, at.into());
    let mut table = npt.root();
    for shift in [39, 30, 21] {
        table = Desc::from_raw(Cpu.pt_load(entry_in(table, at, shift))).address();
    }
    Ok(entry_in(table, at, 12))
}

fn entry_in(table: Pa, at: Va, shift: u32) -> Pa {
    Pa::new(table.raw() + (at.raw() >> shift & 511) * 8)
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
