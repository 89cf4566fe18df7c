//! Layer 14, PageIndex: from a page to the place of its record.
//!
//! | primitive             | gives                                                  | lock |
//! |-----------------------|--------------------------------------------------------|------|
//! | [`get_s2_page_index`] | place of the record of a page of RAM; none for others  | none |
//! | [`get_s2_page_run`], [`get_s2_page_run_in`] | the same, and how many pages follow in the same block | none |
//!
//! Below: MemRegion. Above: PageManager. Specification: `spec::memory`. Source: SeKVM layer PageIndex; K §2 L14.
#![forbid(unsafe_code)]

use super::mem_region::{MemRegion, MemRegions, RegionKind, mem_region_search};
use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SIZE, Pfn};

/// Place of a page's record, and of the record of its 2 MiB block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageIndex {
    /// Slot of the page's record.
    pub slot: usize,
    /// Slot of the block's record.
    pub block: usize,
    /// How many pages of the block lie before this one in the same bank.
    pub before: usize,
}

/// Place of the record of `pfn`, or `None` if it is no page of RAM. K: `get_s2_page_index`.
pub fn get_s2_page_index(regions: &MemRegions, pfn: Pfn) -> Option<PageIndex> {
    get_s2_page_run(regions, pfn, 1).map(|(index, _)| index)
}

/// Place of the record of `pfn`, and how many of the `most` pages from it on lie in the same bank of RAM and in the same 2 MiB block: their records stand
/// one behind the other, and there is one record of their block. `None` if it is no page of RAM.
pub fn get_s2_page_run(regions: &MemRegions, pfn: Pfn, most: u64) -> Option<(PageIndex, u64)> {
    get_s2_page_run_in(mem_region_search(regions, pfn.addr())?, pfn, most)
}

/// [`get_s2_page_run`], where the region that `pfn` lies in is known.
pub fn get_s2_page_run_in(region: &MemRegion, pfn: Pfn, most: u64) -> Option<(PageIndex, u64)> {
    let addr = pfn.addr();
    let RegionKind::Ram { first_slot, first_block } = region.kind else { return None };
    let slot = first_slot + (pfn.raw() - region.range.first_pfn().raw());
    let block = first_block + (addr.raw() / BLOCK_2M - region.range.base().raw() / BLOCK_2M);
    let before = (addr.raw() % BLOCK_2M).min(addr.raw() - region.range.base().raw()) / PAGE_SIZE;
    let index = PageIndex {
        slot: usize::try_from(slot).ok()?,
        block: usize::try_from(block).ok()?,
        before: usize::try_from(before).ok()?,
    };
    let in_bank = (region.range.end().raw() - addr.raw()) / PAGE_SIZE;
    let in_block = (BLOCK_2M - addr.raw() % BLOCK_2M) / PAGE_SIZE;
    Some((index, most.min(in_bank).min(in_block)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abstract_machine::addr::{Pa, PhysRange};

    #[test]
    fn records_of_several_banks_stand_one_behind_the_other() {
        let mut regions = MemRegions::new();
        // Base 0, as on the Raspberry Pi; then a bank that starts in the middle of a block.
        regions.push_ram(PhysRange::new(Pa::new(0), 0x3000).unwrap()).unwrap();
        regions.push_device(PhysRange::new(Pa::new(0x10_0000), 0x1000).unwrap()).unwrap();
        regions.push_ram(PhysRange::new(Pa::new(0x3f_f000), 0x2000).unwrap()).unwrap();
        let index = |pfn| get_s2_page_index(&regions, Pfn::new(pfn));
        assert_eq!(index(0), Some(PageIndex { slot: 0, block: 0, before: 0 }));
        assert_eq!(index(2), Some(PageIndex { slot: 2, block: 0, before: 2 }));
        assert_eq!(index(3), None);
        assert_eq!(index(0x100), None);
        assert_eq!(index(0x3ff), Some(PageIndex { slot: 3, block: 1, before: 0 }));
        assert_eq!(index(0x400), Some(PageIndex { slot: 4, block: 2, before: 0 }));
    }

    #[test]
    fn a_run_ends_with_its_block_and_with_its_bank() {
        let mut regions = MemRegions::new();
        regions.push_ram(PhysRange::new(Pa::new(0x40_0000), 0x30_0000).unwrap()).unwrap();
        regions.push_ram(PhysRange::new(Pa::new(0x70_0000), 0x10_0000).unwrap()).unwrap();
        let run = |pfn, most| get_s2_page_run(&regions, Pfn::new(pfn), most).map(|(index, run)| (index.slot, run));
        assert_eq!(run(0x400, 512), Some((0, 512)));
        assert_eq!(run(0x401, 512), Some((1, 511)));
        assert_eq!(run(0x401, 7), Some((1, 7)));
        assert_eq!(run(0x600, 512), Some((0x200, 0x100)));
        assert_eq!(run(0x700, 512), Some((0x300, 0x100)));
        assert_eq!(run(0x3ff, 512), None);
    }
}
