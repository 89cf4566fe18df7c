//! Layer 15, PageManager: one record for every page of RAM.
//!
//! | primitive                                                        | does                              | lock   |
//! |------------------------------------------------------------------|-----------------------------------|--------|
//! | [`get_pfn_state`], [`set_pfn_state`]                             | the whole record                  | S2Page |
//! | [`get_pfn_run`], [`set_pfn_run`]                                 | those of many pages at once       | S2Page |
//! | [`change_pfn_run`]                                               | looked at and set in one step     | S2Page |
//! | [`for_each_foreign_run`]                                         | all pages that are not the host's | S2Page |
//! | [`host_may_access_block`]                                        | whether the host may access all of a 2 MiB or 1 GiB block | S2Page |
//! | [`host_blocks`]                                                  | how many 2 MiB blocks behind one another it may access all of | S2Page |
//!
//! The proof keeps owner, count and gfn apart and sets them one by one; here they are one value of [`PageState`], so
//! that no combination without a meaning can be stored (K §8.3 A1: "count INVALID" was one).
//! A record is 8 bytes and all zero for a page of the host, so a new table need only be zeroed. Next to the records of the pages
//! stands one for each 2 MiB block: as long as all of its pages are in one state, which is most of the time, it alone says so, and
//! to give, lend or take a block is one store. From the first page that is set by itself, the pages have their own records; the block's then counts those that
//! the host may not access.
//!
//! Below: PageIndex. Above: MemManager. Specification: `spec::memory`. Source: SeKVM layer PageManager; K §2 L15.
#![forbid(unsafe_code)]

use core::cell::Cell;

use tock_registers::{LocalRegisterCopy, register_bitfields};

use super::mem_region::{MemRegions, mem_region_near, mem_region_search};
use super::page_index::{PageIndex, get_s2_page_index, get_s2_page_run_in};
use crate::abstract_machine::addr::{BLOCK_2M, BLOCK_PAGES, Gfn, Pfn, PhysRange, VmId};

register_bitfields! {u64,
    RECORD [
        STATE OFFSET(0) NUMBITS(4) [
            Host = 0,
            Core = 1,
            Lent = 2,
            Private = 3,
            Shared = 4,
            Dma = 5,
        ],
        COUNT OFFSET(4) NUMBITS(8) [],
        VMID OFFSET(12) NUMBITS(16) [],
        GFN OFFSET(28) NUMBITS(36) [],
    ],
    /// A block's: a page's, or, with a state that no page has, how many of its pages the host may not access.
    BLOCK [
        STATE OFFSET(0) NUMBITS(4) [
            Split = 15,
        ],
        FOREIGN OFFSET(4) NUMBITS(10) [],
    ],
}

/// Owner and state of a page of RAM: the table in docs/architecture.md, Memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageState {
    /// The host's own: it reads, writes and executes it.
    Host,
    /// The core's own: nobody else reaches it.
    Core,
    /// The host's, and visible in ordinary VMs at so many places (1 to 255).
    Lent(u8),
    /// A protected VM's own, at `gfn`: nobody else reaches it.
    Private {
        /// The owner.
        vm: VmId,
        /// Where the owner sees it.
        gfn: Gfn,
    },
    /// A protected VM's own, at `gfn`, which it shows to the host; shown `count` times (1 to 255).
    Shared {
        /// The owner.
        vm: VmId,
        /// Where the owner sees it.
        gfn: Gfn,
        /// How often it was shared and not yet taken back.
        count: u8,
    },
    /// A VM's, reached by its devices only; never by a CPU.
    Dma {
        /// The owner.
        vm: VmId,
    },
}

impl PageState {
    /// Whether the host may read and write the page.
    pub const fn host_may_access(self) -> bool {
        matches!(self, Self::Host | Self::Lent(_) | Self::Shared { .. })
    }
}

/// The record of one page: 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct PageRecord(u64);

impl PageRecord {
    /// The record of a page of the host.
    pub const HOST: Self = Self(0);

    fn encode(state: PageState) -> Self {
        let fields = match state {
            PageState::Host => RECORD::STATE::Host,
            PageState::Core => RECORD::STATE::Core,
            PageState::Lent(count) => RECORD::STATE::Lent + RECORD::COUNT.val(count.into()),
            PageState::Private { vm, gfn } => RECORD::STATE::Private + owner_fields(vm, gfn),
            PageState::Shared { vm, gfn, count } => {
                RECORD::STATE::Shared + owner_fields(vm, gfn) + RECORD::COUNT.val(count.into())
            }
            PageState::Dma { vm } => RECORD::STATE::Dma + RECORD::VMID.val(vm.raw().into()),
        };
        Self(fields.value)
    }

    fn decode(self) -> PageState {
        let fields = LocalRegisterCopy::<u64, RECORD::Register>::new(self.0);
        let vm = VmId::new(fields.read(RECORD::VMID) as u16);
        let gfn = Gfn::new(fields.read(RECORD::GFN));
        let count = fields.read(RECORD::COUNT) as u8;
        match fields.read_as_enum(RECORD::STATE) {
            Some(RECORD::STATE::Value::Host) => PageState::Host,
            Some(RECORD::STATE::Value::Lent) => PageState::Lent(count),
            Some(RECORD::STATE::Value::Private) => PageState::Private { vm, gfn },
            Some(RECORD::STATE::Value::Shared) => PageState::Shared { vm, gfn, count },
            Some(RECORD::STATE::Value::Dma) => PageState::Dma { vm },
            // A value that was never stored belongs to nobody but the core.
            Some(RECORD::STATE::Value::Core) | None => PageState::Core,
        }
    }

    /// By how much the record of the next page in a run differs from this one's: a VM sees its own pages one behind the other.
    fn step(self) -> u64 {
        match self.decode() {
            PageState::Private { .. } => 1 << RECORD::GFN.shift,
            _ => 0,
        }
    }

    /// The record of the page so many behind this one in a run.
    fn behind(self, pages: u64) -> Self {
        Self(self.0.wrapping_add(self.step().wrapping_mul(pages)))
    }
}

/// The record of a 2 MiB block: 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct BlockRecord(u64);

impl BlockRecord {
    /// The record of a block of the host.
    pub const HOST: Self = Self(PageRecord::HOST.0);

    /// All of its pages are in the state of `first`, the record of the first one.
    const fn whole(first: PageRecord) -> Self {
        Self(first.0)
    }

    /// Its pages have records of their own; the host may not access `foreign` of them.
    fn split(foreign: u64) -> Self {
        Self((BLOCK::STATE::Split + BLOCK::FOREIGN.val(foreign)).value)
    }

    /// The record of its first page, if that says it for all of them; else how many the host may not access.
    fn decode(self) -> Result<PageRecord, u64> {
        let fields = LocalRegisterCopy::<u64, BLOCK::Register>::new(self.0);
        match fields.read_as_enum(BLOCK::STATE) {
            Some(BLOCK::STATE::Value::Split) => Err(fields.read(BLOCK::FOREIGN)),
            None => Ok(PageRecord(self.0)),
        }
    }

    fn host_may_access(self) -> bool {
        match self.decode() {
            Ok(first) => first.decode().host_may_access(),
            Err(foreign) => foreign == 0,
        }
    }
}

fn owner_fields(vm: VmId, gfn: Gfn) -> tock_registers::fields::FieldValue<u64, RECORD::Register> {
    RECORD::VMID.val(vm.raw().into()) + RECORD::GFN.val(gfn.raw())
}

/// The records of all pages of RAM, and of their 2 MiB blocks.
pub struct S2Pages {
    records: &'static mut [PageRecord],
    blocks: &'static mut [BlockRecord],
    /// Number of the region that the page was in that was asked for last.
    near: Cell<usize>,
}

impl S2Pages {
    /// The records of a machine on which every page is the host's: both slices all zero.
    pub const fn new(records: &'static mut [PageRecord], blocks: &'static mut [BlockRecord]) -> Self {
        Self { records, blocks, near: Cell::new(0) }
    }

    /// [`get_s2_page_run`](super::page_index::get_s2_page_run).
    fn index(&self, regions: &MemRegions, pfn: Pfn, most: u64) -> Option<(PageIndex, u64)> {
        get_s2_page_run_in(mem_region_near(regions, pfn.addr(), &self.near)?, pfn, most)
    }
}

/// State of `pfn`, or `None` if it is no page of RAM.
pub fn get_pfn_state(pages: &S2Pages, regions: &MemRegions, pfn: Pfn) -> Option<PageState> {
    get_pfn_run(pages, regions, pfn, 1).map(|(state, _)| state)
}

/// State of `pfn`, and how many of the `most` pages from it on are in that state; they lie in one 2 MiB block. Where it is a VM's own page: how many the VM sees one
/// behind the other. `None` if it is no page of RAM.
pub fn get_pfn_run(pages: &S2Pages, regions: &MemRegions, pfn: Pfn, most: u64) -> Option<(PageState, u64)> {
    let (index, run) = pages.index(regions, pfn, most)?;
    run_at(pages, index, run)
}

/// State of the page at `index`, and how many of the `run` pages of its block from it on are in that state.
fn run_at(pages: &S2Pages, PageIndex { slot, block, before }: PageIndex, run: u64) -> Option<(PageState, u64)> {
    if let Ok(first) = pages.blocks.get(block)?.decode() {
        return Some((first.behind(before as u64).decode(), run));
    }
    let records = pages.records.get(slot..slot + run as usize)?;
    let first = *records.first()?;
    let (step, mut next) = (first.step(), first.0);
    let other = records.iter().position(|record| {
        let other = record.0 != next;
        next = next.wrapping_add(step);
        other
    });
    Some((first.decode(), other.unwrap_or(records.len()) as u64))
}

/// Sets the state of `pfn`. A page that is no RAM has no state: nothing happens (K: slot INVALID64, write ignored).
pub fn set_pfn_state(pages: &mut S2Pages, regions: &MemRegions, pfn: Pfn, state: PageState) {
    set_pfn_run(pages, regions, pfn, 1, state);
}

/// Sets the states of the `count` pages from `pfn` on, as [`set_pfn_state`]. Where `state` is a VM's own page, the VM sees the pages one behind the other, the first where
/// `state` says.
pub fn set_pfn_run(pages: &mut S2Pages, regions: &MemRegions, pfn: Pfn, count: u64, state: PageState) {
    let (first, mut done) = (PageRecord::encode(state), 0);
    while let Some(at) = pfn.checked_add(done).filter(|_| done < count) {
        // What is no RAM has no record.
        let Some((index, in_block)) = pages.index(regions, at, BLOCK_PAGES) else {
            done += 1;
            continue;
        };
        let run = in_block.min(count - done);
        set_in_block(pages, index, in_block as usize, run as usize, first.behind(done));
        done += run;
    }
}

/// Sets the state of `pfn`, and of those behind it that are in the same state and 2 MiB block, up to `most` in all, to what `to` makes of it, as [`set_pfn_run`]. How many.
///
/// # Errors
/// What `to` says, which is asked of `None` if `pfn` is no page of RAM. Nothing has changed then.
pub fn change_pfn_run<E>(
    pages: &mut S2Pages,
    regions: &MemRegions,
    pfn: Pfn,
    most: u64,
    to: impl FnOnce(Option<PageState>) -> Result<PageState, E>,
) -> Result<u64, E> {
    let place = pages.index(regions, pfn, BLOCK_PAGES);
    let found = place.and_then(|(index, in_block)| run_at(pages, index, most.min(in_block)));
    let state = to(found.map(|(state, _)| state))?;
    let (Some((index, in_block)), Some((was, run))) = (place, found) else { return Ok(0) };
    let new = PageRecord::encode(state);
    let records = pages.records.get_mut(index.slot..index.slot + run as usize);
    if run < BLOCK_PAGES
        && let (Some(records), Some(block)) = (records, pages.blocks.get_mut(index.block))
        && let Err(foreign) = block.decode()
    {
        // They have records of their own, and were all in one state.
        fill(records, new);
        *block = BlockRecord::split(match (was.host_may_access(), state.host_may_access()) {
            (true, false) => foreign + run,
            (false, true) => foreign - run,
            _ => foreign,
        });
    } else {
        set_in_block(pages, index, in_block as usize, run as usize, new);
    }
    Ok(run)
}

/// Sets the records of `run` of the `in_block` pages that are in the block from the one at `index` on, the first to `new`.
fn set_in_block(pages: &mut S2Pages, index: PageIndex, in_block: usize, run: usize, new: PageRecord) {
    let PageIndex { slot, block, before } = index;
    let records = pages.records.get_mut(slot - before..slot + in_block);
    let (Some(records), Some(block)) = (records, pages.blocks.get_mut(block)) else { return };
    if run as u64 == BLOCK_PAGES {
        *block = BlockRecord::whole(new);
        return;
    }
    let mut foreign = match block.decode() {
        Err(foreign) => foreign,
        Ok(first) => {
            fill(records, first);
            if first.decode().host_may_access() { 0 } else { records.len() as u64 }
        }
    };
    let Some(set) = records.get_mut(before..before + run) else { return };
    let access = new.decode().host_may_access();
    for record in set.iter() {
        match (record.decode().host_may_access(), access) {
            (true, false) => foreign += 1,
            (false, true) => foreign -= 1,
            _ => {}
        }
    }
    fill(set, new);
    *block = BlockRecord::split(foreign);
}

/// The records of pages in one state, the first of which has `first`.
fn fill(records: &mut [PageRecord], first: PageRecord) {
    let (step, mut next) = (first.step(), first.0);
    for record in records {
        record.0 = next;
        next = next.wrapping_add(step);
    }
}

/// Calls `act` for all pages that the host may not access, run by run: state of the first, where it is, how many. Blocks that are all the host's cost nothing.
pub fn for_each_foreign_run(pages: &S2Pages, regions: &MemRegions, mut act: impl FnMut(PageState, Pfn, u64)) {
    for bank in regions.as_slice().iter().map(|region| region.range) {
        let mut done = 0;
        while let Some(at) = bank.first_pfn().checked_add(done).filter(|_| done < bank.pages()) {
            let Some((PageIndex { block, .. }, in_block)) = pages.index(regions, at, bank.pages() - done) else {
                break;
            };
            let is_all_the_hosts = pages.blocks.get(block).is_some_and(|block| block.host_may_access());
            let run = if is_all_the_hosts { None } else { get_pfn_run(pages, regions, at, in_block) };
            done += run.map_or(in_block, |(_, run)| run);
            if let Some((state, run)) = run.filter(|(state, _)| !state.host_may_access()) {
                act(state, at, run);
            }
        }
    }
}

/// Whether the host may access every page of `range`, whole 2 MiB blocks within one bank of RAM.
pub fn host_may_access_block(pages: &S2Pages, regions: &MemRegions, range: PhysRange) -> bool {
    !range.is_empty() && host_blocks(pages, regions, range) == range.size() / BLOCK_2M
}

/// How many of the 2 MiB blocks of `range`, from its first one on, the host may access every page of. 0 unless `range` is whole blocks within one bank of RAM.
pub fn host_blocks(pages: &S2Pages, regions: &MemRegions, range: PhysRange) -> u64 {
    if !range.base().is_aligned(BLOCK_2M) || !range.end().is_aligned(BLOCK_2M) {
        return 0;
    }
    // Banks may touch, and their records too: only the region says where one ends.
    if !mem_region_search(regions, range.base()).is_some_and(|bank| bank.range.contains_range(range)) {
        return 0;
    }
    let Some(PageIndex { block, .. }) = get_s2_page_index(regions, range.first_pfn()) else { return 0 };
    let blocks = pages.blocks.get(block..block + (range.size() / BLOCK_2M) as usize).unwrap_or_default();
    blocks.iter().take_while(|block| block.host_may_access()).count() as u64
}

#[cfg(test)]
mod tests;
