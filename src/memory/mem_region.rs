//! Layer 13, MemRegion: what is where in the physical address space.
//!
//! | primitive              | gives                                         | lock |
//! |------------------------|-----------------------------------------------|------|
//! | [`mem_region_search`], [`mem_region_near`] | the region that holds an address | none: constant after boot |
//!
//! A region is a bank of RAM, each page of which has a record, or a window of device registers. An address in
//! neither is nobody's, and nobody reaches it (K §8.3 A14: the proof counts such an address as a device).
//!
//! Below: NPTOps. Above: PageIndex. Specification: `spec::memory`. Source: SeKVM layer MemRegion; K §2 L13.
#![forbid(unsafe_code)]

use core::cell::Cell;

use crate::abstract_machine::addr::{BLOCK_2M, Pa, PhysRange};

/// Most regions that a machine may have.
pub const MAX_REGIONS: usize = 416;

/// What a region is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionKind {
    /// RAM: the records of its pages start at slot `first_slot`, the counters of its 2 MiB blocks at `first_block`.
    Ram {
        /// Slot of the first page's record.
        first_slot: u64,
        /// Number of the counter of the 2 MiB block that the first page lies in.
        first_block: u64,
    },
    /// Registers of devices.
    Device,
}

/// A range of whole pages of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemRegion {
    /// Where it is.
    pub range: PhysRange,
    /// What it is.
    pub kind: RegionKind,
}

/// Why a region could not be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionError {
    /// Base or size is not a whole number of pages, or the size is zero.
    NotPages(PhysRange),
    /// It begins before the end of the region added last.
    NotAscending(PhysRange),
    /// There are [`MAX_REGIONS`] already.
    TooMany,
}

/// The regions of the machine, in ascending order.
#[derive(Debug)]
pub struct MemRegions {
    regions: [MemRegion; MAX_REGIONS],
    count: usize,
    slots: u64,
    blocks: u64,
}

impl Default for MemRegions {
    fn default() -> Self {
        Self::new()
    }
}

impl MemRegions {
    /// No region.
    pub const fn new() -> Self {
        let nothing = MemRegion { range: PhysRange::between(Pa::new(0), Pa::new(0)), kind: RegionKind::Device };
        Self { regions: [nothing; MAX_REGIONS], count: 0, slots: 0, blocks: 0 }
    }

    /// Adds a bank of RAM behind all regions so far.
    ///
    /// # Errors
    /// See [`RegionError`]. Nothing has changed then.
    pub fn push_ram(&mut self, range: PhysRange) -> Result<(), RegionError> {
        let kind = RegionKind::Ram { first_slot: self.slots, first_block: self.blocks };
        self.push(MemRegion { range, kind })?;
        self.slots += range.pages();
        self.blocks += blocks_of(range);
        Ok(())
    }

    /// Adds a window of device registers behind all regions so far.
    ///
    /// # Errors
    /// See [`RegionError`]. Nothing has changed then.
    pub fn push_device(&mut self, range: PhysRange) -> Result<(), RegionError> {
        self.push(MemRegion { range, kind: RegionKind::Device })
    }

    fn push(&mut self, region: MemRegion) -> Result<(), RegionError> {
        let range = region.range;
        if range.is_empty() || range.page_core() != range {
            return Err(RegionError::NotPages(range));
        }
        if self.as_slice().last().is_some_and(|last| last.range.end() > range.base()) {
            return Err(RegionError::NotAscending(range));
        }
        *self.regions.get_mut(self.count).ok_or(RegionError::TooMany)? = region;
        self.count += 1;
        Ok(())
    }

    /// The regions, in ascending order.
    pub fn as_slice(&self) -> &[MemRegion] {
        self.regions.get(..self.count).unwrap_or(&[])
    }

    /// Number of page records that all RAM needs.
    pub const fn slots(&self) -> u64 {
        self.slots
    }

    /// Number of counters that the 2 MiB blocks of all RAM need.
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }
}

/// Number of 2 MiB blocks that a bank of RAM has a part in.
fn blocks_of(range: PhysRange) -> u64 {
    let first = range.base().raw() / BLOCK_2M;
    let end = range.end().raw().div_ceil(BLOCK_2M);
    end - first
}

/// The region that holds the byte at `addr`; `None` if nothing is described there. K: `mem_region_search`.
pub fn mem_region_search(regions: &MemRegions, addr: Pa) -> Option<&MemRegion> {
    region_at(regions, number_of(regions, addr)?, addr)
}

/// The same, where `near` is the number of the region that was found last: what comes next is mostly there, too.
pub fn mem_region_near<'r>(regions: &'r MemRegions, addr: Pa, near: &Cell<usize>) -> Option<&'r MemRegion> {
    region_at(regions, near.get(), addr).or_else(|| {
        near.set(number_of(regions, addr)?);
        region_at(regions, near.get(), addr)
    })
}

/// Region `number`, if it holds `addr`.
fn region_at(regions: &MemRegions, number: usize, addr: Pa) -> Option<&MemRegion> {
    regions.as_slice().get(number).filter(|region| region.range.contains(addr))
}

/// Number of the region that holds `addr`, if any does: the last that begins at it or before.
fn number_of(regions: &MemRegions, addr: Pa) -> Option<usize> {
    regions.as_slice().partition_point(|region| region.range.base() <= addr).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u64, size: u64) -> PhysRange {
        PhysRange::new(Pa::new(base), size).unwrap()
    }

    #[test]
    fn an_address_is_found_in_its_region_and_nowhere_else() {
        let mut regions = MemRegions::new();
        regions.push_device(range(0x0900_0000, 0x1000)).unwrap();
        regions.push_ram(range(0x4000_0000, 0x20_0000)).unwrap();
        regions.push_ram(range(0x8000_0000, 0x20_1000)).unwrap();
        assert_eq!(mem_region_search(&regions, Pa::new(0x08ff_ffff)), None);
        assert_eq!(mem_region_search(&regions, Pa::new(0x0900_0fff)).unwrap().kind, RegionKind::Device);
        assert_eq!(mem_region_search(&regions, Pa::new(0x4020_0000)), None);
        let second = mem_region_search(&regions, Pa::new(0x8020_0fff)).unwrap();
        assert_eq!(second.kind, RegionKind::Ram { first_slot: 0x200, first_block: 1 });
        assert_eq!(mem_region_search(&regions, Pa::new(u64::MAX)), None);
        assert_eq!((regions.slots(), regions.blocks()), (0x401, 3));
    }

    #[test]
    fn regions_that_overlap_or_are_no_whole_pages_are_refused() {
        let mut regions = MemRegions::new();
        regions.push_ram(range(0x1000, 0x2000)).unwrap();
        assert_eq!(regions.push_ram(range(0x2000, 0x1000)), Err(RegionError::NotAscending(range(0x2000, 0x1000))));
        assert_eq!(regions.push_ram(range(0x3800, 0x1000)), Err(RegionError::NotPages(range(0x3800, 0x1000))));
        assert_eq!(regions.push_device(range(0x4000, 0)), Err(RegionError::NotPages(range(0x4000, 0))));
    }

    #[test]
    fn a_machine_with_too_many_regions_is_refused() {
        let mut regions = MemRegions::new();
        for n in 0..MAX_REGIONS as u64 {
            regions.push_device(range(n * 0x2000, 0x1000)).unwrap();
        }
        assert_eq!(regions.push_device(range(0x1_0000_0000, 0x1000)), Err(RegionError::TooMany));
    }
}
