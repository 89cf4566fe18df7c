//! A protected VM's memory. Part of layer 16, MemManager.
//!
//! | primitive                | transition                                                                     | lock             |
//! |--------------------------|--------------------------------------------------------------------------------|------------------|
//! | [`assign_pfn_to_vm`], [`assign_pages_to_vm`] | `Host` -> `Private(vm, gfn)`, mapped there                 | S2Page, then Npt |
//! | [`assign_block_to_vm`]   | the same for 2 MiB                                                             | S2Page, then Npt |
//! | [`grant_vm_page`]        | `Private` -> `Shared(1)`, `Shared(n)` -> `Shared(n + 1)`                       | S2Page, then Npt |
//! | [`revoke_vm_page`]       | back; the host's mapping goes with the last                                    | S2Page, then Npt |
//!
//! A page leaves the host before anything is done to it: unmapped, then scrubbed, then clean in memory, if the VM may go around the caches, and gone from all instruction
//! caches, then the VM's (K §8.3 A18, A21). It is clean, too, before the VM shows it.
#![forbid(unsafe_code)]

use super::{Denied, expect_vm, host_pages, mapped_page, prepare, show_to_devices, take_from_host};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_PAGES, Gfn, Pfn, PhysRange, VmId};
use crate::memory::Memory;
use crate::memory::page_manager::{PageState, get_pfn_state, set_pfn_run, set_pfn_state};
use crate::npt::descriptor::{Desc, Stage2Access};
use crate::npt::npt_ops::vm as vm_ops;
use crate::npt::{Level, VmKind};

/// What becomes of the content of a page that a VM gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scrub {
    /// It is filled with zeroes: what the host left there is nothing that a VM should start with.
    Zero,
    /// It stays: an image, which is checked before the VM runs.
    Keep,
}

/// Gives the host's page `pfn` to the protected VM `vm`, which sees it at `gfn`. K: `assign_pfn_to_vm`, `map_pfn_vm`.
///
/// Initiator: `Host`. After it the host's stage 2 does not reach the page, and no CPU holds a translation to it.
///
/// # Errors
/// [`Denied::NoSuchVm`], [`Denied::WrongKind`], [`Denied::Busy`] if the VM's memory is on its way back, [`Denied::PageZero`], [`Denied::NotDescribed`], [`Denied::NotOwner`] if
/// the page is not the host's, [`Denied::InUse`] if it is lent, [`Denied::Occupied`] if something is mapped at `gfn` (K §8.3 A4), [`Denied::OutOfRange`], [`Denied::OutOfPool`].
/// Nothing has changed then, but empty tables may have been added.
pub fn assign_pfn_to_vm<M: Machine>(mem: &Memory<M>, vm: VmId, gfn: Gfn, pfn: Pfn, scrub: Scrub) -> Result<(), Denied> {
    assign(mem, vm, gfn, pfn, Level::L3, 1, scrub).map(|_| ())
}

/// Gives pages of the host's, `pfn` and up to `most` in all behind one another, to the protected VM `vm`, which sees them from `gfn` on. Pages given: up to the
/// first that cannot be, or at which the VM has something, or to the end of a table.
///
/// # Errors
/// As [`assign_pfn_to_vm`], if it is the first page.
pub fn assign_pages_to_vm<M: Machine>(
    mem: &Memory<M>,
    vm: VmId,
    gfn: Gfn,
    pfn: Pfn,
    most: u64,
    scrub: Scrub,
) -> Result<u64, Denied> {
    assign(mem, vm, gfn, pfn, Level::L3, most, scrub)
}

/// Gives the host's 2 MiB from `pfn` on to the protected VM `vm`, which sees them at `gfn` as one block: unmapped from the host as one.
///
/// # Errors
/// As [`assign_pfn_to_vm`], for each page; [`Denied::Misaligned`] if `gfn` or `pfn` is not aligned to 2 MiB (K §8.3 A5); [`Denied::Occupied`] also if a
/// table stands there.
pub fn assign_block_to_vm<M: Machine>(
    mem: &Memory<M>,
    vm: VmId,
    gfn: Gfn,
    pfn: Pfn,
    scrub: Scrub,
) -> Result<(), Denied> {
    assign(mem, vm, gfn, pfn, Level::L2, BLOCK_PAGES, scrub).map(|_| ())
}

fn assign<M: Machine>(
    mem: &Memory<M>,
    vm: VmId,
    gfn: Gfn,
    pfn: Pfn,
    level: Level,
    most: u64,
    scrub: Scrub,
) -> Result<u64, Denied> {
    let mut pages = mem.s2page().acquire();
    expect_vm(mem, vm, VmKind::Protected)?;
    if !pfn.addr().is_aligned(level.size()) {
        return Err(Denied::Misaligned); // K §8.3 A5
    }
    let fit = host_pages(mem, &pages, pfn, most);
    let (count, prepared) = prepare(mem, vm, gfn, level, most, fit)?;

    take_from_host(mem, pfn, count);
    match scrub {
        Scrub::Zero => {
            scrub_for_vm(mem, PhysRange::of_pages(pfn, count));
            // What is left are the instruction caches.
            mem.machine().forget_instructions();
        }
        // Also where the VM never goes around the caches: the host may have, and a line that holds something else than memory must not go between the check of the
        // image and the VM's look at it.
        Scrub::Keep => mem.machine().sync_page_to_poc(PhysRange::of_pages(pfn, count)),
    }
    set_pfn_run(&mut pages, mem.regions(), pfn, count, PageState::Private { vm, gfn });
    let leaf = Desc::of_vm(level, pfn.addr(), Stage2Access::Ram, mem.machine().forces_write_back());
    vm_ops::fill_vm_s2pt(mem.npts(), vm, gfn.addr(), level, prepared, leaf);
    Ok(count)
}

/// Zeroes for a VM, in pages that nobody else reaches any more: in memory where the VM may go around the caches. Where it never does, its zeroes may wait in a cache: memory
/// beneath them holds what the host left there, as nothing of a VM or of the core goes to the host before memory itself holds zeroes; so whoever goes around the
/// caches to a page that the VM shows to the host finds nothing that the host did not have.
fn scrub_for_vm<M: Machine>(mem: &Memory<M>, pages: PhysRange) {
    if mem.machine().forces_write_back() {
        mem.machine().zero_phys_run(pages);
    } else {
        mem.machine().clear_phys_run(pages);
    }
}

/// The protected VM `vm` shows its page at `gfn` to the host, once more: its own mapping stays as it is. Before it is shown the page is clean in memory, and in no instruction
/// cache. K: `grant_vm_page`.
///
/// Initiator: `Private`, `Shared`, at `gfn`.
///
/// # Errors
/// [`Denied::NoSuchVm`], [`Denied::WrongKind`], [`Denied::Busy`], [`Denied::NotOwner`] if no page of its own is mapped at `gfn`, [`Denied::InUse`] if it is shared 255 times.
pub fn grant_vm_page<M: Machine>(mem: &Memory<M>, vm: VmId, gfn: Gfn) -> Result<(), Denied> {
    let mut pages = mem.s2page().acquire();
    expect_vm(mem, vm, VmKind::Protected)?;
    let pfn = mapped_page(mem, vm, gfn).ok_or(Denied::NotOwner)?;
    let count = match get_pfn_state(&pages, mem.regions(), pfn) {
        Some(PageState::Private { vm: owner, gfn: at }) if (owner, at) == (vm, gfn) => 1,
        Some(PageState::Shared { vm: owner, gfn: at, count }) if (owner, at) == (vm, gfn) => {
            count.checked_add(1).ok_or(Denied::InUse)?
        }
        _ => return Err(Denied::NotOwner),
    };
    if count == 1 {
        // The host, or a device, may go around the caches: memory itself must hold what the VM means to show, and nothing that it overwrote.
        mem.machine().sync_page_to_poc(PhysRange::of_pages(pfn, 1));
    }
    set_pfn_state(&mut pages, mem.regions(), pfn, PageState::Shared { vm, gfn, count });
    if count == 1 {
        show_to_devices(mem, pfn, 1);
    }
    Ok(())
}

/// The protected VM `vm` takes back one showing of its page at `gfn`; after the last the host does not reach it, and no CPU holds a translation to it.
/// K: `revoke_vm_page`.
///
/// Initiator: `Shared`, at `gfn`.
///
/// # Errors
/// [`Denied::NoSuchVm`], [`Denied::WrongKind`], [`Denied::Busy`], [`Denied::NotOwner`] if no page that it shares is mapped at `gfn`.
pub fn revoke_vm_page<M: Machine>(mem: &Memory<M>, vm: VmId, gfn: Gfn) -> Result<(), Denied> {
    let mut pages = mem.s2page().acquire();
    expect_vm(mem, vm, VmKind::Protected)?;
    let pfn = mapped_page(mem, vm, gfn).ok_or(Denied::NotOwner)?;
    match get_pfn_state(&pages, mem.regions(), pfn) {
        Some(PageState::Shared { vm: owner, gfn: at, count }) if (owner, at) == (vm, gfn) => {
            if count > 1 {
                set_pfn_state(&mut pages, mem.regions(), pfn, PageState::Shared { vm, gfn, count: count - 1 });
            } else {
                take_from_host(mem, pfn, 1);
                // The host may have written around the caches: what the VM looks at from now on must not be exchanged for that.
                mem.machine().sync_page_to_poc(PhysRange::of_pages(pfn, 1));
                set_pfn_state(&mut pages, mem.regions(), pfn, PageState::Private { vm, gfn });
            }
            Ok(())
        }
        _ => Err(Denied::NotOwner),
    }
}
