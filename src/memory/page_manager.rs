//! Layer 15, PageManager: one record for every page of RAM.
//!
//! | primitive                                                        | does                              | lock   |
//! |------------------------------------------------------------------|-----------------------------------|--------|
//! | [`get_pfn_state`], [`set_pfn_state`]                             | the whole record                  | S2Page |
//! | [`get_pfn_run`], [`set_pfn_run`]                                 | those of many pages at once       | S2Page |
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

use tock_registers::{LocalRegisterCopy, register_bitfields};

use super::mem_region::{MemRegions, mem_region_search};
use super::page_index::{PageIndex, get_s2_page_index, get_s2_page_run};
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
}

impl S2Pages {
    /// The records of a machine on which every page is the host's: both slices all zero.
    pub const fn new(records: &'static mut [PageRecord], blocks: &'static mut [BlockRecord]) -> Self {
        Self { records, blocks }
    }
}

/// State of `pfn`, or `None` if it is no page of RAM.
pub fn get_pfn_state(pages: &S2Pages, regions: &MemRegions, pfn: Pfn) -> Option<PageState> {
    get_pfn_run(pages, regions, pfn, 1).map(|(state, _)| state)
}

/// State of `pfn`, and how many of the `most` pages from it on are in that state; they lie in one 2 MiB block. Where it is a VM's own page: how many the VM sees one
/// behind the other. `None` if it is no page of RAM.
pub fn get_pfn_run(pages: &S2Pages, regions: &MemRegions, pfn: Pfn, most: u64) -> Option<(PageState, u64)> {
    let (PageIndex { slot, block, before }, run) = get_s2_page_run(regions, pfn, most)?;
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
        let Some((index, in_block)) = get_s2_page_run(regions, at, BLOCK_PAGES) else {
            done += 1;
            continue;
        };
        let run = in_block.min(count - done);
        set_in_block(pages, index, in_block as usize, run as usize, first.behind(done));
        done += run;
    }
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
            let Some((PageIndex { block, .. }, in_block)) = get_s2_page_run(regions, at, bank.pages() - done) else {
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
mod tests {
    use super::*;
    use crate::abstract_machine::addr::Pa;
    use std::boxed::Box;
    use std::vec;

    fn world() -> (S2Pages, MemRegions) {
        let mut regions = MemRegions::new();
        regions.push_ram(PhysRange::new(Pa::new(0x4000_0000), 0x80_0000).unwrap()).unwrap();
        let records = Box::leak(vec![PageRecord::HOST; regions.slots() as usize].into_boxed_slice());
        let blocks = Box::leak(vec![BlockRecord::HOST; regions.blocks() as usize].into_boxed_slice());
        (S2Pages::new(records, blocks), regions)
    }

    #[test]
    fn a_record_is_eight_bytes_and_gives_back_every_state_that_was_stored() {
        assert_eq!(size_of::<PageRecord>(), 8);
        let (vm, gfn) = (VmId::new(0xffff), Gfn::new((1 << 36) - 1));
        for state in [
            PageState::Host,
            PageState::Core,
            PageState::Lent(1),
            PageState::Lent(255),
            PageState::Private { vm, gfn },
            PageState::Shared { vm, gfn, count: 100 },
            PageState::Shared { vm: VmId::new(1), gfn: Gfn::new(0), count: 1 },
            PageState::Dma { vm },
        ] {
            assert_eq!(PageRecord::encode(state).decode(), state);
        }
        assert_eq!(PageRecord::encode(PageState::Host), PageRecord(0));
    }

    #[test]
    fn a_new_page_is_the_hosts() {
        let (pages, regions) = world();
        let pfn = Pfn::new(0x4_0000);
        assert_eq!(get_pfn_state(&pages, &regions, pfn), Some(PageState::Host));
        assert_eq!(get_pfn_state(&pages, &regions, Pfn::new(0x3_ffff)), None);
    }

    #[test]
    fn a_run_is_as_long_as_its_pages_are_in_one_state_and_in_one_block() {
        let (mut pages, regions) = world();
        let run = |pages: &S2Pages, pfn, most| get_pfn_run(pages, &regions, Pfn::new(pfn), most);
        assert_eq!(run(&pages, 0x4_0000, 1024), Some((PageState::Host, 512)));
        assert_eq!(run(&pages, 0x4_01ff, 1024), Some((PageState::Host, 1)));
        assert_eq!(run(&pages, 0x3_ffff, 1024), None);
        // Over the end of a block.
        set_pfn_run(&mut pages, &regions, Pfn::new(0x4_01fe), 4, PageState::Lent(2));
        assert_eq!(run(&pages, 0x4_0000, 1024), Some((PageState::Host, 0x1fe)));
        assert_eq!(run(&pages, 0x4_01fe, 1024), Some((PageState::Lent(2), 2)));
        assert_eq!(run(&pages, 0x4_0200, 1), Some((PageState::Lent(2), 1)));
        assert_eq!(run(&pages, 0x4_0200, 1024), Some((PageState::Lent(2), 2)));
        assert_eq!(run(&pages, 0x4_0202, 3), Some((PageState::Host, 3)));
    }

    #[test]
    fn a_vm_sees_the_pages_of_a_run_one_behind_the_other() {
        let (mut pages, regions) = world();
        let own = |n: u64| PageState::Private { vm: VmId::new(3), gfn: Gfn::new(0x1_2345 + n) };
        set_pfn_run(&mut pages, &regions, Pfn::new(0x4_01ff), 3, own(0));
        let states = [0x1fe, 0x1ff, 0x200, 0x201, 0x202]
            .map(|n| get_pfn_state(&pages, &regions, Pfn::new(0x4_0000 + n)).unwrap());
        assert_eq!(states, [PageState::Host, own(0), own(1), own(2), PageState::Host]);
        assert_eq!(pages.blocks[..3], [BlockRecord::split(1), BlockRecord::split(2), BlockRecord::HOST]);
        let all = get_pfn_run(&pages, &regions, Pfn::new(0x4_0200), 512);
        assert_eq!(all, Some((own(1), 2)));
        // What is no RAM has no record, but a place in the run.
        set_pfn_run(&mut pages, &regions, Pfn::new(0x3_ffff), 2, own(0));
        assert_eq!(get_pfn_state(&pages, &regions, Pfn::new(0x4_0000)), Some(own(1)));
    }

    #[test]
    fn the_host_may_access_a_block_only_while_it_may_access_all_its_pages() {
        let (mut pages, regions) = world();
        let block = |n| PhysRange::new(Pa::new(0x4000_0000 + n * BLOCK_2M), BLOCK_2M).unwrap();
        let all = PhysRange::new(Pa::new(0x4000_0000), 4 * BLOCK_2M).unwrap();
        let (a, b) = (Pfn::new(0x4_0201), Pfn::new(0x4_0202));
        assert!(host_may_access_block(&pages, &regions, all));
        set_pfn_state(&mut pages, &regions, a, PageState::Core);
        let (vm, gfn) = (VmId::new(1), Gfn::new(0));
        set_pfn_state(&mut pages, &regions, b, PageState::Private { vm, gfn });
        set_pfn_state(&mut pages, &regions, b, PageState::Dma { vm });
        assert!(
            host_may_access_block(&pages, &regions, block(0)) && !host_may_access_block(&pages, &regions, block(1))
        );
        assert!(!host_may_access_block(&pages, &regions, all));
        set_pfn_state(&mut pages, &regions, a, PageState::Host);
        assert!(!host_may_access_block(&pages, &regions, block(1)));
        set_pfn_state(&mut pages, &regions, b, PageState::Shared { vm, gfn, count: 1 });
        assert!(host_may_access_block(&pages, &regions, all));
        set_pfn_state(&mut pages, &regions, b, PageState::Lent(1));
        set_pfn_state(&mut pages, &regions, b, PageState::Host);
        assert!(host_may_access_block(&pages, &regions, all));
    }

    #[test]
    fn a_block_has_one_record_until_one_of_its_pages_differs() {
        let (mut pages, regions) = world();
        let own = |n: u64| PageState::Private { vm: VmId::new(7), gfn: Gfn::new(0x800 + n) };
        let state = |pages: &S2Pages, n: u64| get_pfn_state(pages, &regions, Pfn::new(0x4_0200 + n));
        set_pfn_run(&mut pages, &regions, Pfn::new(0x4_0200), 512, own(0));
        assert_eq!(pages.blocks[1].decode(), Ok(PageRecord::encode(own(0))));
        assert!(pages.records.iter().all(|record| *record == PageRecord::HOST), "not one of the pages' own");
        assert_eq!((state(&pages, 0), state(&pages, 511)), (Some(own(0)), Some(own(511))));
        assert_eq!(get_pfn_run(&pages, &regions, Pfn::new(0x4_0203), 1024), Some((own(3), 509)));
        set_pfn_state(&mut pages, &regions, Pfn::new(0x4_0203), PageState::Host);
        assert_eq!(pages.blocks[1], BlockRecord::split(511));
        assert_eq!(
            (state(&pages, 2), state(&pages, 3), state(&pages, 4)),
            (Some(own(2)), Some(PageState::Host), Some(own(4)))
        );
        // Whole again as soon as it is set as a whole.
        set_pfn_run(&mut pages, &regions, Pfn::new(0x4_0200), 512, PageState::Host);
        assert_eq!(pages.blocks[1], BlockRecord::HOST);
        assert_eq!(get_pfn_run(&pages, &regions, Pfn::new(0x4_0200), 512), Some((PageState::Host, 512)));
    }

    #[test]
    fn a_block_that_leaves_its_bank_is_nobodys_block() {
        let (pages, regions) = world();
        assert!(!host_may_access_block(&pages, &regions, PhysRange::new(Pa::new(0x4060_0000), 2 * BLOCK_2M).unwrap()));
        assert!(!host_may_access_block(&pages, &regions, PhysRange::new(Pa::new(0x4000_1000), BLOCK_2M).unwrap()));
    }

    #[test]
    fn a_block_that_lies_in_two_banks_that_touch_is_nobodys_block() {
        let mut regions = MemRegions::new();
        regions.push_ram(PhysRange::new(Pa::new(0x4000_0000), 0x30_0000).unwrap()).unwrap();
        regions.push_ram(PhysRange::new(Pa::new(0x4030_0000), 0x30_0000).unwrap()).unwrap();
        let records = Box::leak(vec![PageRecord::HOST; regions.slots() as usize].into_boxed_slice());
        let blocks = Box::leak(vec![BlockRecord::HOST; regions.blocks() as usize].into_boxed_slice());
        let pages = S2Pages::new(records, blocks);
        let block = |n| PhysRange::new(Pa::new(0x4000_0000 + n * BLOCK_2M), BLOCK_2M).unwrap();
        assert_eq!([0, 1, 2].map(|n| host_may_access_block(&pages, &regions, block(n))), [true, false, true]);
    }
}
