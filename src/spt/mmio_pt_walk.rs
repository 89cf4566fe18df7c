//! Layer 10, MmioPTWalk: one step of a walk through the table of the SMMUs.
//!
//! | primitive             | finds                                                                 | lock |
//! |-----------------------|-----------------------------------------------------------------------|------|
//! | [`walk_smmu_pgd`]     | the level-1 table for an address                                      | Spt  |
//! | [`walk_smmu_pmd`]     | the level-2 table for an address                                      | Spt  |
//! | [`walk_smmu_pte`]     | the level-3 table that stands, or may stand, in a block's place       | Spt  |
//! | [`smmu_pmd`], [`set_smmu_pmd`] | a block's entry                                              | Spt  |
//! | [`smmu_pte`], [`set_smmu_pte`] | a page's entry                                               | Spt  |
//!
//! Given a reserve, a step puts a table where none is; without, it changes nothing. Publishing and TLBs are the layers' above.
//!
//! Below: MmioPTAlloc; entries and their places are those of stage 2 (PTWalk). Above: MmioSPTWalk.
//! Specification: `spec::spt`. Source: SeKVM layer MmioPTWalk; K §2 L10.
#![forbid(unsafe_code)]

use super::Spt;
use super::mmio_pt_alloc::{self, Reserve};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Ia, PAGE_SIZE, Pa};
use crate::npt::Level;
use crate::npt::descriptor::{Desc, Kind};
use crate::npt::pt_alloc::OutOfTables;
use crate::npt::pt_walk::{load_slot, store_slot, table_slot};

/// The level-1 table for `at`; `None` if there is none, or no place for it. K: first half of `walk_smmu_pgd`.
///
/// # Errors
/// [`OutOfTables`], only with a reserve.
pub fn walk_smmu_pgd<M: Machine>(
    machine: &M,
    spt: &Spt,
    at: Ia,
    reserve: Option<&mut Reserve>,
) -> Result<Option<Pa>, OutOfTables> {
    if at.raw() >> spt.shape.ia_bits() != 0 {
        return Ok(None);
    }
    let level1 = at.raw() >> 39;
    if !spt.shape.has_level0() {
        // Level-1 tables side by side.
        return Ok(spt.root.checked_add(level1 * PAGE_SIZE));
    }
    let Some(slot) = spt.root.checked_add(level1 * size_of::<u64>() as u64) else { return Ok(None) };
    step(machine, slot, None, reserve, mmio_pt_alloc::alloc_smmu_pgd_page)
}

/// The level-2 table for `at`, below the level-1 table at `pgd`. K: `walk_smmu_pgd`.
///
/// # Errors
/// [`OutOfTables`], only with a reserve.
pub fn walk_smmu_pmd<M: Machine>(
    machine: &M,
    pgd: Pa,
    at: Ia,
    reserve: Option<&mut Reserve>,
) -> Result<Option<Pa>, OutOfTables> {
    let slot = table_slot(pgd, at, Level::L1);
    step(machine, slot, Some(Level::L1), reserve, mmio_pt_alloc::alloc_smmu_pmd_page)
}

/// The level-3 table of the block around `at`, from the register behind the level-2 table at `pmd`; `None` if the block has none. K: `walk_smmu_pmd`.
///
/// # Errors
/// [`OutOfTables`], only with a reserve.
pub fn walk_smmu_pte<M: Machine>(
    machine: &M,
    pmd: Pa,
    at: Ia,
    reserve: Option<&mut Reserve>,
) -> Result<Option<Pa>, OutOfTables> {
    let Some(register) = pmd.checked_add(PAGE_SIZE) else { return Ok(None) };
    let slot = table_slot(register, at, Level::L2);
    step(machine, slot, Some(Level::L2), reserve, mmio_pt_alloc::alloc_smmu_pte_page)
}

/// The table that the entry at `slot` leads to.
fn step<M: Machine>(
    machine: &M,
    slot: Pa,
    level: Option<Level>,
    reserve: Option<&mut Reserve>,
    alloc: fn(&mut Reserve) -> Result<Pa, OutOfTables>,
) -> Result<Option<Pa>, OutOfTables> {
    if let Kind::Table(table) = load_slot(machine, slot).kind(level) {
        return Ok(Some(table));
    }
    let Some(reserve) = reserve else { return Ok(None) };
    let table = alloc(reserve)?;
    store_slot(machine, slot, Desc::table(table));
    Ok(Some(table))
}

/// The entry of the block around `at`, in the level-2 table at `pmd`.
pub fn smmu_pmd<M: Machine>(machine: &M, pmd: Pa, at: Ia) -> Desc {
    load_slot(machine, table_slot(pmd, at, Level::L2))
}

/// Writes the entry of the block around `at`, in the level-2 table at `pmd`.
pub fn set_smmu_pmd<M: Machine>(machine: &M, pmd: Pa, at: Ia, desc: Desc) {
    store_slot(machine, table_slot(pmd, at, Level::L2), desc);
}

/// The entry of the page at `at`, in the level-3 table at `pte`.
pub fn smmu_pte<M: Machine>(machine: &M, pte: Pa, at: Ia) -> Desc {
    load_slot(machine, table_slot(pte, at, Level::L3))
}

/// Writes the entry of the page at `at`, in the level-3 table at `pte`. K: `set_smmu_pte`.
pub fn set_smmu_pte<M: Machine>(machine: &M, pte: Pa, at: Ia, desc: Desc) {
    store_slot(machine, table_slot(pte, at, Level::L3), desc);
}
