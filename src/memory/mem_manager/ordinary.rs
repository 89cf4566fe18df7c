//! An ordinary VM's memory, and windows. Part of layer 16, MemManager.
//!
//! | primitive                | transition                                                                     | lock             |
//! |--------------------------|--------------------------------------------------------------------------------|------------------|
//! | [`lend_runs_to_vm`]      | `Host` -> `Lent(1)`, `Lent(n)` -> `Lent(n + 1)`, mapped                        | S2Page, then Npt |
//! | [`lend_block_to_vm`]     | the same for 2 MiB                                                             | S2Page, then Npt |
//! | [`take_back_leaves`]     | unmapped, `Lent(n)` -> `Lent(n - 1)`, `Lent(1)` -> `Host`                       | S2Page, then Npt |
//! | [`map_vm_io`]            | none: a window of device registers is mapped                                   | S2Page, then Npt |
//!
//! The host keeps its access, and its mapping. A page may be lent at several places and to several VMs; each counts.
//!
//! What comes back holds what the VM wrote last, also around the caches: the host may copy it to another place, or to a disk, right away (A21).
#![forbid(unsafe_code)]

use super::{
    Denied, PART, Place, Run, by_parts_of, by_runs, expect_live, expect_pages, expect_vm, fill, lend_more, lent_less,
    lent_more, prepare,
};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_PAGES, Gfn, Ipa, Pa, Pfn, PhysRange, VmId};
use crate::memory::Memory;
use crate::memory::mem_region::{RegionKind, mem_region_search};
use crate::memory::page_manager::{PageState, S2Pages, get_pfn_run, set_pfn_run};
use crate::npt::descriptor::{Desc, Stage2Access};
use crate::npt::npt_ops::vm as vm_ops;
use crate::npt::npt_walk::Walk;
use crate::npt::{Level, VmKind};

/// Lends pages of the host's to the ordinary VM `vm`: those of `runs`, one run behind the other, which it sees from `gfn` on, [`PART`] at most; `access` says whether it may
/// write (K §8.3 A24). Pages lent: up to the first that cannot be, or at which the VM has something, or to the end of a table. A page that stands in `runs` twice is lent twice.
///
/// Initiator: `Host`, `Lent`.
///
/// # Errors
/// If it is the first page: [`Denied::NoSuchVm`], [`Denied::WrongKind`], [`Denied::Busy`], [`Denied::PageZero`], [`Denied::NotDescribed`], [`Denied::NotOwner`], [`Denied::InUse`] if it is lent 255
/// times, [`Denied::Occupied`] if something is mapped at `gfn` (A4), [`Denied::OutOfRange`], [`Denied::OutOfPool`]. Nothing has changed then, but
/// empty tables may have been added.
pub fn lend_runs_to_vm<M: Machine>(
    mem: &Memory<M>,
    vm: VmId,
    gfn: Gfn,
    runs: &[Run],
    access: Stage2Access,
) -> Result<u64, Denied> {
    lend(mem, Place { vm, gfn, level: Level::L3 }, runs, access)
}

/// Lends the host's 2 MiB from `pfn` on, which the VM sees at `gfn` as one block.
///
/// # Errors
/// As [`lend_runs_to_vm`], for each page; [`Denied::Misaligned`] if `gfn` or `pfn` is not aligned to 2 MiB (A5); [`Denied::Occupied`] also if a table
/// stands there.
pub fn lend_block_to_vm<M: Machine>(
    mem: &Memory<M>,
    vm: VmId,
    gfn: Gfn,
    pfn: Pfn,
    access: Stage2Access,
) -> Result<(), Denied> {
    lend(mem, Place { vm, gfn, level: Level::L2 }, &[Run { first: pfn, pages: BLOCK_PAGES }], access).map(|_| ())
}

fn lend<M: Machine>(mem: &Memory<M>, place: Place, runs: &[Run], access: Stage2Access) -> Result<u64, Denied> {
    let mut pages = mem.s2page().acquire();
    expect_vm(mem, place.vm, VmKind::Ordinary)?;
    let (most, prepared) =
        prepare(mem, place, runs, |first, count| expect_pages(mem, &pages, first, count, lent_more))?;

    let forced = mem.machine().forces_write_back();
    let count = by_parts_of(runs, most, |page, most| {
        let part = lend_more(mem, &mut pages, page, most)?;
        if !forced {
            mem.machine().sync_page_to_poc(PhysRange::of_pages(page, part));
        }
        Ok(part)
    });
    // K §8.3 A21. For a VM that never goes around the caches only the instruction caches are left.
    if forced {
        mem.machine().forget_instructions();
    }
    fill(mem, place, access, runs, count, prepared);
    Ok(count)
}

/// Takes back what the ordinary VM `vm` has at `gfn`: its page and those behind it, [`PART`] in all; or its block if that lies wholly in the `pages` pages from `gfn` on; else the
/// block becomes pages first. Pages passed, of which the first may be many that are not mapped; a window is passed too, and stays.
/// Afterwards no CPU holds a translation of the VM to what was taken.
///
/// Initiator: `Lent`.
///
/// # Errors
/// [`Denied::NoSuchVm`], [`Denied::WrongKind`], [`Denied::Busy`], [`Denied::OutOfPool`] if a block has to be split and the VM's pool is empty.
pub fn take_back_leaves<M: Machine>(mem: &Memory<M>, vm: VmId, gfn: Gfn, pages: u64) -> Result<u64, Denied> {
    let mut records = mem.s2page().acquire();
    expect_vm(mem, vm, VmKind::Ordinary)?;
    let ipa = gfn.addr();
    let walk = vm_ops::walk_vm_s2pt(mem.npts(), vm, ipa).ok_or(Denied::Busy)?;
    let (level, leaf) = match walk {
        Walk::Hole(level) => return Ok(to_the_end(gfn, level)),
        Walk::Mapped(level, leaf) if !leaf.is_ram() => return Ok(to_the_end(gfn, level)),
        Walk::Mapped(level, leaf) => (level, leaf),
    };
    if level == Level::L3 {
        return Ok(take_back_pages(mem, vm, &mut records, ipa, pages));
    }
    let count = level.size() / Level::L3.size();
    let whole = ipa.is_aligned(level.size()) && pages >= count;
    if !whole {
        vm_ops::split_vm_s2pt(mem.npts(), vm, ipa).map_err(|_| Denied::OutOfPool)?;
        // The same again, page by page.
        return Ok(0);
    }
    vm_ops::clear_vm_s2pt(mem.npts(), vm, ipa);
    less_lent(mem, &mut records, Pfn::containing(leaf.address()), count);
    Ok(count)
}

/// Takes the page of the VM at `ipa` back, and what pages stand behind it in the same table, up to `pages`: one flush for all. How many.
fn take_back_pages<M: Machine>(mem: &Memory<M>, vm: VmId, records: &mut S2Pages, ipa: Ipa, pages: u64) -> u64 {
    let mut places = [Pfn::new(0); PART as usize];
    let places = places.get_mut(..pages.min(PART) as usize).unwrap_or_default();
    let taken = vm_ops::clear_run_vm_s2pt(mem.npts(), vm, ipa, places);
    for run in taken.chunk_by(|page, next| page.raw() + 1 == next.raw()) {
        if let [first, ..] = run {
            less_lent(mem, records, *first, run.len() as u64);
        }
    }
    taken.len() as u64
}

/// Pages from `gfn` to the end of the leaf of `level` that it lies, or could lie, in.
fn to_the_end(gfn: Gfn, level: Level) -> u64 {
    let count = level.size() / Level::L3.size();
    count - gfn.raw() % count
}

/// One mapping of each of the `count` pages from `pfn` on is gone, as far as they are lent. The VM may have written around the caches, which can hold what was there before: unless it
/// never does, they forget it.
pub(super) fn less_lent<M: Machine>(mem: &Memory<M>, records: &mut S2Pages, pfn: Pfn, count: u64) {
    // Nothing of it is refused.
    let _ = by_runs(pfn, count, |page, most| match get_pfn_run(records, mem.regions(), page, most) {
        None => Ok(1),
        Some((PageState::Lent(count), run)) => {
            if !mem.machine().forces_write_back() {
                mem.machine().clean_phys_run(PhysRange::of_pages(page, run));
            }
            set_pfn_run(records, mem.regions(), page, run, lent_less(count));
            Ok(run)
        }
        Some((_, run)) => Ok(run),
    });
}

/// Maps the page of device registers at `pa` for a VM of any kind. The caller knows that the VM may have it: the core's only window for VMs is
/// the GIC's virtual CPU interface. K: `map_io`, `map_vm_io`.
///
/// # Errors
/// [`Denied::NoSuchVm`], [`Denied::Busy`], [`Denied::Misaligned`], [`Denied::NotOwner`] if there is RAM, [`Denied::Occupied`], [`Denied::OutOfRange`], [`Denied::OutOfPool`].
pub fn map_vm_io<M: Machine>(mem: &Memory<M>, vm: VmId, gfn: Gfn, pa: Pa) -> Result<(), Denied> {
    let _pages = mem.s2page().acquire();
    expect_live(mem, vm)?;
    if !pa.is_aligned(Level::L3.size()) {
        return Err(Denied::Misaligned);
    }
    if mem_region_search(mem.regions(), pa).is_some_and(|region| region.kind != RegionKind::Device) {
        return Err(Denied::NotOwner);
    }
    let prepared = vm_ops::prepare_vm_s2pt(mem.npts(), vm, gfn.addr(), Level::L3, 1)?;
    let leaf = Desc::of_vm(Level::L3, pa, Stage2Access::Window, mem.machine().forces_write_back());
    vm_ops::fill_vm_s2pt(mem.npts(), vm, gfn.addr(), Level::L3, (prepared, 1), core::iter::once((leaf, 1)));
    Ok(())
}

/// Whether a window of device registers is mapped at `gfn`.
pub fn is_vm_window<M: Machine>(mem: &Memory<M>, vm: VmId, gfn: Gfn) -> bool {
    let walk = vm_ops::walk_vm_s2pt(mem.npts(), vm, gfn.addr());
    matches!(walk, Some(Walk::Mapped(_, leaf)) if !leaf.is_ram())
}
