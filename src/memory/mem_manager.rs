//! Layer 16, MemManager: who owns a page of RAM, and who may reach it.
//!
//! The only place where a page changes hands. A transition checks everything first; after that it cannot fail.
//!
//! | primitive                  | transition                                     | lock             |
//! |----------------------------|------------------------------------------------|------------------|
//! | [`map_page_host`]          | the host maps what it owns or was shown        | S2Page, then Npt |
//! | [`assign_page_to_core`]    | `Host` -> `Core`                               | S2Page, then Npt |
//! | [`return_page_to_host`]    | `Core` -> `Host`, scrubbed                     | S2Page, then Npt |
//!
//! The transitions of VMs come with the VM layers; their states are in [`PageState`] already, and
//! [`map_page_host`] decides by them.
//!
//! Below: PageManager (page records), NPTOps (stage-2 tables). Above: MemoryOps.
//! Specification: `spec::memory`. Source: SeKVM layer MemManager; K §2 L16, §8.3 A1, A5, A14, A15, A22.
#![forbid(unsafe_code)]

use super::Memory;
use super::mem_region::{RegionKind, mem_region_search};
use super::page_manager::{PageState, S2Pages, block_is_host, get_pfn_state, set_pfn_state};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Ipa, Pa, Pfn, PhysRange};
use crate::npt::Level;
use crate::npt::descriptor::{Desc, Stage2Access};
use crate::npt::npt_ops;
use crate::npt::npt_walk::SetNptError;

/// Why an access or a transition is refused. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    /// The device tree describes neither RAM nor a device there.
    NotDescribed,
    /// Page 0 is never given away (K §8.3 A15).
    PageZero,
    /// The page is not the asker's, or not in the state that the transition starts from.
    NotOwner,
    /// The pool has no page left for a table.
    OutOfTables,
}

/// Maps what lies at the host's `ipa` for the host: its own page, or one that it was shown, or a device window; by
/// the largest block in which every page is the host's own. If it is mapped already, that is success. If the pool is
/// empty, the host's tables are given back once: they only repeat what the page records say, and are filled again on demand.
/// K: `map_page_host`.
///
/// # Errors
/// [`Denied::NotDescribed`], [`Denied::NotOwner`] if a page of RAM is the core's or private to a VM,
/// [`Denied::OutOfTables`].
pub fn map_page_host<M: Machine>(mem: &Memory<M>, ipa: Ipa) -> Result<(), Denied> {
    let pa = ipa.identity();
    let pages = mem.s2page().acquire();
    let region = mem_region_search(mem.regions(), pa).ok_or(Denied::NotDescribed)?;
    let access = match region.kind {
        RegionKind::Device => Stage2Access::Window,
        RegionKind::Ram { .. } => {
            let state = get_pfn_state(&pages, mem.regions(), Pfn::containing(pa)).ok_or(Denied::NotDescribed)?;
            if !state.host_may_access() {
                return Err(Denied::NotOwner);
            }
            Stage2Access::Ram
        }
    };

    let leaf_of = |level: Level| {
        let block = block_around(pa, level)?;
        let uniform =
            level == Level::L3 || access == Stage2Access::Window || block_is_host(&pages, mem.regions(), block);
        (uniform && region.range.contains_range(block)).then(|| Desc::stage2(level, block.base(), access))
    };
    let mut mapped = npt_ops::map_largest_s2pt(mem.npts(), ipa, leaf_of);
    if mapped == Err(SetNptError::OutOfTables) {
        npt_ops::forget_host(mem.npts());
        mapped = npt_ops::map_largest_s2pt(mem.npts(), ipa, leaf_of);
    }
    match mapped {
        Ok(()) => Ok(()),
        Err(SetNptError::OutOfTables) => Err(Denied::OutOfTables),
        // Beyond the table's input size there is nothing that a device tree could have described.
        Err(SetNptError::OutOfRange | SetNptError::Misaligned | SetNptError::Occupied) => Err(Denied::NotDescribed),
    }
}

/// The host's page `pfn` becomes the core's. Afterwards the host's stage 2 does not reach it, and no CPU holds a
/// translation to it.
///
/// Initiator: `Host`. K: what `protect_el2_mem` does page by page, at any time.
///
/// # Errors
/// [`Denied::PageZero`], [`Denied::NotDescribed`] if the page is no RAM, [`Denied::NotOwner`] if it is not in state `Host`.
pub fn assign_page_to_core<M: Machine>(mem: &Memory<M>, pfn: Pfn) -> Result<(), Denied> {
    if pfn == Pfn::new(0) {
        return Err(Denied::PageZero); // K §8.3 A15
    }
    let mut pages = mem.s2page().acquire();
    expect_state(mem, &pages, pfn, PageState::Host)?;
    npt_ops::clear_pfn_host(mem.npts(), pfn);
    set_pfn_state(&mut pages, mem.regions(), pfn, PageState::Core);
    Ok(())
}

/// The core's page `pfn`, which nothing uses any more, becomes the host's: scrubbed, so nothing of the core shows. If
/// this makes a whole block the host's, the tables in its place go, and the next fault maps the block.
///
/// Initiator: `Core`.
///
/// # Errors
/// [`Denied::NotDescribed`] if the page is no RAM, [`Denied::NotOwner`] if it is not in state `Core`.
pub fn return_page_to_host<M: Machine>(mem: &Memory<M>, pfn: Pfn) -> Result<(), Denied> {
    let mut pages = mem.s2page().acquire();
    expect_state(mem, &pages, pfn, PageState::Core)?;
    mem.machine().clear_phys_page(pfn);
    set_pfn_state(&mut pages, mem.regions(), pfn, PageState::Host);
    let whole = |level: &Level| {
        let block = block_around(pfn.addr(), *level);
        block.is_some_and(|block| block_is_host(&pages, mem.regions(), block))
    };
    if let Some(level) = [Level::L1, Level::L2].into_iter().find(whole) {
        npt_ops::merge_host(mem.npts(), pfn, level);
    }
    Ok(())
}

/// Whether `pfn` is a page of RAM in the state that a transition starts from.
fn expect_state<M: Machine>(mem: &Memory<M>, pages: &S2Pages, pfn: Pfn, state: PageState) -> Result<(), Denied> {
    match get_pfn_state(pages, mem.regions(), pfn) {
        None => Err(Denied::NotDescribed),
        Some(found) if found == state => Ok(()),
        Some(_) => Err(Denied::NotOwner),
    }
}

/// The naturally aligned block of `level` around `pa`, unless it runs past the end of the address space.
fn block_around(pa: Pa, level: Level) -> Option<PhysRange> {
    PhysRange::new(pa.align_down(level.size()), level.size())
}
