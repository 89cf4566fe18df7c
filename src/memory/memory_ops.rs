//! Layer 17, MemoryOps: ownership over ranges.
//!
//! | primitive             | does                                                  | lock          |
//! |-----------------------|-------------------------------------------------------|---------------|
//! | [`protect_el2_mem`]   | the core's own memory becomes the core's              | S2Page, Npt   |
//! | [`is_host_memory`]    | whether an address is RAM that the host may reach     | S2Page        |
//! | [`donate_pool`]       | pages of the host become a VM's pool                  | S2Page, Npt   |
//! | [`prot_and_map_vm_s2pt`] | pages of the host become a protected VM's          | S2Page, Npt   |
//! | [`lend_pages_to_vm`], [`take_back_lent`] | pages of the host are lent to an ordinary VM, and taken back | S2Page, Npt |
//! | [`assign_runs_to_vm`], [`lend_runs_to_vm`] | the same for pages that lie anywhere | S2Page, Npt |
//! | [`clear_vm_range`]    | a VM's memory becomes the host's, a part at a time    | S2Page, Npt   |
//! | [`free_vm_table`]     | so do its table and its pool                          | S2Page, Npt   |
//! | [`scrub_for_end`]     | nothing of a VM is left in memory, for the machine's end | S2Page, for good |
//!
//! No lock of its own: up to [`PART`] pages, or a block, are one transition of MemManager, so no lock is held long. What concerns one page only is
//! in MemManager and can be called from here as well.
//!
//! Below: MemManager. Above: the VM layers and the trap layers. Specification: `spec::memory`.
//! Source: SeKVM layer MemoryOps; K §1.4 for `protect_el2_mem`.
#![forbid(unsafe_code)]

use super::Memory;
use super::mem_manager::PART;
use super::mem_manager::ordinary;
use super::mem_manager::ordinary::{lend_block_to_vm, take_back_leaves};
use super::mem_manager::protected::assign_block_to_vm;
use super::mem_manager::reclaim::clear_vm_step;
use super::mem_manager::vm_table::free_vm_page;
use super::page_manager::{PageState, S2Pages, for_each_foreign_run, get_pfn_state};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_2M, BLOCK_PAGES, Gfn, Ipa, Pfn, PhysRange, VmId};
use crate::interface::calls::MAX_PAGES;
use crate::npt::descriptor::Stage2Access;

pub use super::mem_manager::ordinary::{is_vm_window, map_vm_io};
pub use super::mem_manager::protected::{Scrub, assign_pfn_to_vm, assign_runs_to_vm, grant_vm_page, revoke_vm_page};
pub use super::mem_manager::vm_table::{
    alloc_pool_page, donate_pool_page, free_pool_page, has_memory, pool_info, register_vm_table, vm_kind, vm_pages,
    vm_vttbr,
};
pub use super::mem_manager::{Denied, Run, assign_page_to_core, drop_mailbox, hold_mailbox, walk_vm};

/// Makes every page that `range` has a byte in the core's: image, stacks, tables, records. K: `protect_el2_mem`; A14, A20.
///
/// # Errors
/// See [`assign_page_to_core`]; the pages before the one that failed are the core's.
pub fn protect_el2_mem<M: Machine>(mem: &Memory<M>, range: PhysRange) -> Result<(), Denied> {
    let pages = range.page_cover();
    for n in 0..pages.pages() {
        let pfn = pages.first_pfn().checked_add(n).ok_or(Denied::NotDescribed)?;
        assign_page_to_core(mem, pfn)?;
    }
    Ok(())
}

/// Whether `ipa` is an address of RAM that the host may reach.
pub fn is_host_memory<M: Machine>(mem: &Memory<M>, ipa: Ipa) -> bool {
    let pages = mem.s2page().acquire();
    get_pfn_state(&pages, mem.regions(), Pfn::containing(ipa.identity())).is_some_and(|state| state.host_may_access())
}

/// Up to [`MAX_PAGES`] of the host's `pages` pages from `pfn` on become the pool of `vm`. Pages given.
///
/// # Errors
/// As [`donate_pool_page`], if the first page was refused.
pub fn donate_pool<M: Machine>(mem: &Memory<M>, vm: VmId, pfn: Pfn, pages: u64) -> Result<u64, Denied> {
    each(pages.min(MAX_PAGES), |n| donate_pool_page(mem, vm, pfn.checked_add(n).ok_or(Denied::NotDescribed)?))
}

/// The host's `pages` pages from `pfn` on become the protected VM's at `gfn`: a whole block of 2 MiB where both sides are aligned to it, nothing stands in its
/// place and `pages` is enough; else page by page, up to where a block may come. At most [`MAX_PAGES`]. Pages given.
/// K: `prot_and_map_vm_s2pt`. A misaligned block is never a block (A5).
///
/// # Errors
/// As [`assign_pfn_to_vm`], if the first page was refused.
pub fn prot_and_map_vm_s2pt<M: Machine>(
    mem: &Memory<M>,
    vm: VmId,
    gfn: Gfn,
    pfn: Pfn,
    pages: u64,
    scrub: Scrub,
) -> Result<u64, Denied> {
    if fits_block(gfn, pfn, pages) && assign_block_to_vm(mem, vm, gfn, pfn, scrub).is_ok() {
        return Ok(BLOCK_PAGES);
    }
    by_parts(gfn, pfn, pages, |gfn, run| assign_runs_to_vm(mem, vm, gfn, &[run], scrub))
}

/// The host's `pages` pages from `pfn` on are lent to the ordinary VM at `gfn`, in blocks as in [`prot_and_map_vm_s2pt`]. Pages lent.
///
/// # Errors
/// As [`ordinary::lend_runs_to_vm`], if the first page was refused.
pub fn lend_pages_to_vm<M: Machine>(
    mem: &Memory<M>,
    vm: VmId,
    gfn: Gfn,
    pfn: Pfn,
    pages: u64,
    read_only: bool,
) -> Result<u64, Denied> {
    let access = ram(read_only);
    if fits_block(gfn, pfn, pages) && lend_block_to_vm(mem, vm, gfn, pfn, access).is_ok() {
        return Ok(BLOCK_PAGES);
    }
    by_parts(gfn, pfn, pages, |gfn, run| ordinary::lend_runs_to_vm(mem, vm, gfn, &[run], access))
}

/// Pages of the host's that lie anywhere are lent to the ordinary VM at `gfn`, one of `runs` behind the other and never as a block: up to [`PART`], and to the end of a table. Pages lent.
///
/// # Errors
/// As [`ordinary::lend_runs_to_vm`], if the first page was refused.
pub fn lend_runs_to_vm<M: Machine>(
    mem: &Memory<M>,
    vm: VmId,
    gfn: Gfn,
    runs: &[Run],
    read_only: bool,
) -> Result<u64, Denied> {
    ordinary::lend_runs_to_vm(mem, vm, gfn, runs, ram(read_only))
}

const fn ram(read_only: bool) -> Stage2Access {
    if read_only { Stage2Access::RamReadOnly } else { Stage2Access::Ram }
}

/// Takes what was lent to the ordinary VM in the `pages` pages from `gfn` on back, up to [`MAX_PAGES`]. Pages done, mapped or not.
///
/// # Errors
/// As [`take_back_leaves`], if nothing was done before.
pub fn take_back_lent<M: Machine>(mem: &Memory<M>, vm: VmId, gfn: Gfn, pages: u64) -> Result<u64, Denied> {
    let all = pages.min(MAX_PAGES);
    let mut done = 0;
    while done < all {
        let at = gfn.checked_add(done).ok_or(Denied::OutOfRange)?;
        match take_back_leaves(mem, vm, at, all - done) {
            Ok(passed) => done += passed,
            Err(reason) if done == 0 => return Err(reason),
            Err(_) => return Ok(done),
        }
    }
    Ok(all)
}

/// Takes memory of `vm` back to the host, until `most` pages are done: pages of its memory, and tables that became empty. A block is done whole, so it may be up to one block
/// more. The caller knows that the VM is switched off and no vCPU of it runs (A7). Pages done; 0: there is nothing left.
/// K: `clear_vm_stage2_range`.
///
/// # Errors
/// [`Denied::NoSuchVm`].
pub fn clear_vm_range<M: Machine>(mem: &Memory<M>, vm: VmId, most: u64) -> Result<u64, Denied> {
    let mut done = 0;
    while done < most {
        match clear_vm_step(mem, vm)? {
            0 => break,
            pages => done += pages,
        }
    }
    Ok(done)
}

/// Gives up to `most` pages of a VM without memory back to the host: its pool, at last its root. Whether all is done: then the VM has no table any more and its id is free,
/// and no CPU remembers anything of it.
///
/// # Errors
/// [`Denied::NoSuchVm`]; [`Denied::Busy`] while [`clear_vm_range`] has not come to its end or a page of [`alloc_pool_page`] is out.
pub fn free_vm_table<M: Machine>(mem: &Memory<M>, vm: VmId, most: u64) -> Result<bool, Denied> {
    for _ in 0..most {
        if free_vm_page(mem, vm)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Scrubs all that is not the host's and not in `own`, the core's own memory: pools of VMs with their tables and contexts first, so that no VM goes on; then, after `stop`, which is told
/// whether there were any and makes all other CPUs stay in the core, everything, for a CPU may have saved a VM's registers meanwhile. Pages. The records' lock is never
/// given back: nothing changes hands any more.
pub fn scrub_for_end<M: Machine>(mem: &Memory<M>, own: &[PhysRange], stop: impl FnOnce(bool)) -> u64 {
    let pages = mem.s2page().acquire();
    let pools = scrub_foreign(mem, &pages, own, |state| state == PageState::Core);
    stop(pools != 0);
    let all = if pools != 0 { scrub_foreign(mem, &pages, own, |_| true) } else { 0 };
    core::mem::forget(pages);
    all
}

fn scrub_foreign<M: Machine>(
    mem: &Memory<M>,
    pages: &S2Pages,
    own: &[PhysRange],
    is_meant: impl Fn(PageState) -> bool,
) -> u64 {
    let mut count = 0;
    for_each_foreign_run(pages, mem.regions(), |state, first, run| {
        for pfn in (0..run).filter_map(|n| first.checked_add(n)).filter(|_| is_meant(state)) {
            if !own.iter().any(|range| range.contains(pfn.addr())) {
                mem.machine().clear_phys_page(pfn);
                count += 1;
            }
        }
    });
    count
}

/// `act` for 0 to `count`, until it is refused; how often it was done.
fn each(count: u64, mut act: impl FnMut(u64) -> Result<(), Denied>) -> Result<u64, Denied> {
    for n in 0..count {
        match act(n) {
            Err(reason) if n == 0 => return Err(reason),
            Err(_) => return Ok(n),
            Ok(()) => {}
        }
    }
    Ok(count)
}

/// `act` for pages up to where a block may come, [`PART`] at a time, until it is refused: from which gfn on, and which pages at most; it says how many. Pages done.
fn by_parts(
    gfn: Gfn,
    pfn: Pfn,
    pages: u64,
    mut act: impl FnMut(Gfn, Run) -> Result<u64, Denied>,
) -> Result<u64, Denied> {
    let all = pages_until_block(gfn, pfn, pages);
    let mut done = 0;
    while done < all {
        let part = PART.min(all - done);
        match both(gfn, pfn, done).and_then(|(gfn, first)| act(gfn, Run { first, pages: part })) {
            Err(reason) if done == 0 => return Err(reason),
            Err(_) => break,
            Ok(part) => done += part,
        }
    }
    Ok(done)
}

fn both(gfn: Gfn, pfn: Pfn, n: u64) -> Result<(Gfn, Pfn), Denied> {
    Ok((gfn.checked_add(n).ok_or(Denied::OutOfRange)?, pfn.checked_add(n).ok_or(Denied::NotDescribed)?))
}

fn fits_block(gfn: Gfn, pfn: Pfn, pages: u64) -> bool {
    pages >= BLOCK_PAGES && gfn.addr().is_aligned(BLOCK_2M) && pfn.addr().is_aligned(BLOCK_2M)
}

/// How many pages to do one by one: where both sides will be aligned together, a block may follow.
fn pages_until_block(gfn: Gfn, pfn: Pfn, pages: u64) -> u64 {
    let most = pages.min(MAX_PAGES);
    let (in_gfn, in_pfn) = (gfn.raw() % BLOCK_PAGES, pfn.raw() % BLOCK_PAGES);
    if in_gfn == in_pfn { most.min(BLOCK_PAGES - in_gfn) } else { most }
}
