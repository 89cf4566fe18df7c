//! Layer 9, MmioPTAlloc: pages for the tables of the SMMUs.
//!
//! | primitive                | gives                                                          | lock     |
//! |--------------------------|----------------------------------------------------------------|----------|
//! | [`pages_for`]            | how many pages all tables of some memory can take              | none     |
//! | [`alloc_smmu_root`]      | the root                                                       | none yet |
//! | [`alloc_smmu_pgd_page`]  | a level-1 table                                                | none yet |
//! | [`alloc_smmu_pmd_page`]  | a level-2 table, and behind it its register of level-3 tables   | none yet |
//! | [`alloc_smmu_pte_page`]  | a level-3 table                                                | none yet |
//!
//! All of it happens at boot, out of one run of pages; after that no table comes or goes, so no change of the table can lack one. The register of a level-2 table
//! has, for each of its entries, the address of the level-3 table that may stand there.
//!
//! May not: touch an entry. Below: AbstractMachine. Above: MmioPTWalk.
//! Specification: `spec::spt`. Source: SeKVM layer MmioPTAlloc; K §2 L9.
#![forbid(unsafe_code)]

use crate::abstract_machine::addr::{BLOCK_1G, BLOCK_2M, PAGE_SIZE, Pa, PhysRange};
use crate::abstract_machine::shape::Shape;
use crate::npt::pt_alloc::OutOfTables;

/// Bytes that one entry of level 0 stands for.
const LEVEL0_SIZE: u64 = BLOCK_1G << 9;

/// Pages that are not given out yet: zeroed, the core's own.
#[derive(Debug)]
pub struct Reserve {
    next: Pa,
    end: Pa,
}

impl Reserve {
    /// All pages of `range`, whose base is aligned to the root's size.
    pub const fn new(range: PhysRange) -> Self {
        Self { next: range.base(), end: range.end() }
    }
}

/// Most pages that the tables for `memory` take, ranges of whole pages in any order. Two that share a table are counted as if they did not.
pub fn pages_for(shape: Shape, memory: impl Iterator<Item = PhysRange>) -> u64 {
    let parts = |range: PhysRange, size: u64| range.end().raw().div_ceil(size) - range.base().raw() / size;
    let tables = memory.filter(|range| !range.is_empty()).map(|range| {
        let level1 = if shape.has_level0() { parts(range, LEVEL0_SIZE) } else { 0 };
        level1 + 2 * parts(range, BLOCK_1G) + parts(range, BLOCK_2M)
    });
    (1 << shape.root_order()) + tables.sum::<u64>()
}

fn take(reserve: &mut Reserve, pages: u64) -> Result<Pa, OutOfTables> {
    let first = reserve.next;
    let next = first.checked_add(pages * PAGE_SIZE).filter(|next| *next <= reserve.end).ok_or(OutOfTables)?;
    reserve.next = next;
    Ok(first)
}

/// The pages of the root: the first to be given out.
///
/// # Errors
/// [`OutOfTables`].
pub fn alloc_smmu_root(reserve: &mut Reserve, shape: Shape) -> Result<Pa, OutOfTables> {
    take(reserve, 1 << shape.root_order())
}

/// A level-1 table, for an entry of level 0. K: `alloc_smmu_pgd_page`.
///
/// # Errors
/// [`OutOfTables`].
pub fn alloc_smmu_pgd_page(reserve: &mut Reserve) -> Result<Pa, OutOfTables> {
    take(reserve, 1)
}

/// A level-2 table, for an entry of level 1, and in the page behind it its register. K: `alloc_smmu_pmd_page`.
///
/// # Errors
/// [`OutOfTables`].
pub fn alloc_smmu_pmd_page(reserve: &mut Reserve) -> Result<Pa, OutOfTables> {
    take(reserve, 2)
}

/// A level-3 table, for a place in a register.
///
/// # Errors
/// [`OutOfTables`].
pub fn alloc_smmu_pte_page(reserve: &mut Reserve) -> Result<Pa, OutOfTables> {
    take(reserve, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u64, size: u64) -> PhysRange {
        PhysRange::new(Pa::new(base), size).unwrap()
    }

    #[test]
    fn pages_are_counted_for_every_table_that_memory_lies_in() {
        let (small, large) = (Shape::new(40), Shape::new(48));
        // Two root pages side by side; one level-2 table with its register; 512 level-3 tables.
        assert_eq!(pages_for(small, [range(BLOCK_1G, BLOCK_1G)].into_iter()), 2 + 2 + 512);
        assert_eq!(pages_for(large, [range(BLOCK_1G, BLOCK_1G)].into_iter()), 1 + 1 + 2 + 512);
        // A page on both sides of a boundary.
        assert_eq!(pages_for(small, [range(BLOCK_1G - 0x1000, 0x2000)].into_iter()), 2 + 4 + 2);
        assert_eq!(pages_for(small, [range(0, 0)].into_iter()), 2);
    }

    #[test]
    fn pages_are_given_out_once_and_not_beyond_the_end() {
        let mut reserve = Reserve::new(range(0x20_0000, 4 * PAGE_SIZE));
        assert_eq!(alloc_smmu_root(&mut reserve, Shape::new(40)), Ok(Pa::new(0x20_0000)));
        assert_eq!(alloc_smmu_pgd_page(&mut reserve), Ok(Pa::new(0x20_2000)));
        assert_eq!(alloc_smmu_pmd_page(&mut reserve), Err(OutOfTables));
        assert_eq!(alloc_smmu_pte_page(&mut reserve), Ok(Pa::new(0x20_3000)));
        assert_eq!(alloc_smmu_pte_page(&mut reserve), Err(OutOfTables));
    }
}
