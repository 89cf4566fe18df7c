//! Layer 6, PTWalk: one step of a walk.
//!
//! | primitive                               | reads or writes the entry for an address in    | lock |
//! |-----------------------------------------|------------------------------------------------|------|
//! | [`walk_pgd`]                            | the root: leads to a level-1 table             | Npt  |
//! | [`walk_pud`], [`set_pud`]               | a level-1 table: a 1 GiB block, or a level-2 table | Npt |
//! | [`walk_pmd`], [`set_pmd`]               | a level-2 table: a 2 MiB block, or a level-3 table | Npt |
//! | [`walk_pte`], [`set_pte`]               | a level-3 table: a page                        | Npt  |
//! | [`load_slots`], [`store_leaves`], [`clear_slots`] | some entries of one table behind one another | Npt |
//! | [`load_slot`], [`store_slot`]           | any table, by place ([`root_slots`], [`table_slots`], [`root_slot`], [`table_slot`]) | Npt |
//!
//! A step with [`Alloc::Yes`] puts an empty table where nothing is; a step never replaces anything.
//! `set_*` write one leaf (or nothing, [`Desc::INVALID`]) and leave publishing and TLBs to the layers above.
//!
//! Below: PTAlloc. Above: NPTWalk. Specification: `spec::npt`. Source: SeKVM layer PTWalk; K §2 L6.
#![forbid(unsafe_code)]

use super::descriptor::{Desc, Kind};
use super::pt_alloc::{self, OutOfTables};
use super::{Level, Npt};
use crate::abstract_machine::addr::{Ia, PAGE_SIZE, Pa};
use crate::abstract_machine::{ENTRY_SIZE, Machine};

/// Whether a step may add a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alloc {
    /// An empty table is put where nothing is.
    Yes,
    /// Nothing is changed.
    No,
}

const INDEX_BITS: u32 = 9;
const ENTRIES: u64 = 1 << INDEX_BITS;

/// Address of the entry for `ia` in the table of `level` (0 to 3) at `table`.
fn entry(table: Pa, ia: Ia, level: u32) -> Pa {
    let shift = 12 + INDEX_BITS * (3 - level);
    let index = (ia.raw() >> shift) & (ENTRIES - 1);
    Pa::new(table.raw() + index * ENTRY_SIZE)
}

/// The entry of the root for `ia`: it leads to a level-1 table or to nothing. A table without a level 0 has its level-1 tables
/// side by side in the root; the step then only chooses the right one.
///
/// # Errors
/// [`OutOfTables`], only with [`Alloc::Yes`]. Nothing has changed then.
pub fn walk_pgd<M: Machine>(machine: &M, npt: &mut Npt, ia: Ia, alloc: Alloc) -> Result<Desc, OutOfTables> {
    if !npt.shape().has_level0() {
        return Ok(Desc::table(Pa::new(npt.root().raw() + (ia.raw() >> 39) * PAGE_SIZE)));
    }
    let slot = entry(npt.root(), ia, 0);
    step(machine, npt, slot, None, alloc, pt_alloc::alloc_pgd_page)
}

/// The entry for `ia` in the level-1 table at `pgd`.
///
/// # Errors
/// [`OutOfTables`], only with [`Alloc::Yes`]. Nothing has changed then.
pub fn walk_pud<M: Machine>(machine: &M, npt: &mut Npt, pgd: Pa, ia: Ia, alloc: Alloc) -> Result<Desc, OutOfTables> {
    step(machine, npt, entry(pgd, ia, 1), Some(Level::L1), alloc, pt_alloc::alloc_pud_page)
}

/// The entry for `ia` in the level-2 table at `pud`.
///
/// # Errors
/// [`OutOfTables`], only with [`Alloc::Yes`]. Nothing has changed then.
pub fn walk_pmd<M: Machine>(machine: &M, npt: &mut Npt, pud: Pa, ia: Ia, alloc: Alloc) -> Result<Desc, OutOfTables> {
    step(machine, npt, entry(pud, ia, 2), Some(Level::L2), alloc, pt_alloc::alloc_pmd_page)
}

/// The entry for `ia` in the level-3 table at `pmd`.
pub fn walk_pte<M: Machine>(machine: &M, pmd: Pa, ia: Ia) -> Desc {
    Desc::from_raw(machine.pt_load(entry(pmd, ia, 3)))
}

/// Writes the entry for `ia` in the level-1 table at `pgd`.
pub fn set_pud<M: Machine>(machine: &M, pgd: Pa, ia: Ia, desc: Desc) {
    machine.pt_store(entry(pgd, ia, 1), desc.raw());
}

/// Writes the entry for `ia` in the level-2 table at `pud`.
pub fn set_pmd<M: Machine>(machine: &M, pud: Pa, ia: Ia, desc: Desc) {
    machine.pt_store(entry(pud, ia, 2), desc.raw());
}

/// Writes the entry for `ia` in the level-3 table at `pmd`.
pub fn set_pte<M: Machine>(machine: &M, pmd: Pa, ia: Ia, desc: Desc) {
    machine.pt_store(entry(pmd, ia, 3), desc.raw());
}

/// Places of all entries of the root.
pub fn root_slots(npt: &Npt) -> impl Iterator<Item = Pa> + use<> {
    slots(npt.root(), ENTRIES << npt.shape().root_order())
}

/// Places of all entries of the table at `table`, which is not a root.
pub fn table_slots(table: Pa) -> impl Iterator<Item = Pa> {
    slots(table, ENTRIES)
}

/// Place of the root's entry for `ia`, and the bytes that such an entry stands for.
pub fn root_slot(npt: &Npt, ia: Ia) -> (Pa, u64) {
    // Root pages side by side are one array of entries.
    let size = if npt.shape().has_level0() { Level::L1.size() << INDEX_BITS } else { Level::L1.size() };
    (Pa::new(npt.root().raw() + ia.raw() / size * ENTRY_SIZE), size)
}

/// Place of the entry for `ia` in the table at `table`, whose entries are of `level`.
pub fn table_slot(table: Pa, ia: Ia, level: Level) -> Pa {
    entry(table, ia, level as u32)
}

/// How many entries of a table, whose entries are of `level`, there are from the one for `ia` on.
pub fn slots_from(ia: Ia, level: Level) -> u64 {
    ENTRIES - ia.raw() / level.size() % ENTRIES
}

/// Whether the entry for `ia` is the last of its table, whose entries are of `level`.
pub fn is_last_slot(ia: Ia, level: Level) -> bool {
    slots_from(ia, level) == 1
}

fn slots(table: Pa, entries: u64) -> impl Iterator<Item = Pa> {
    (0..entries).map(move |index| Pa::new(table.raw() + index * ENTRY_SIZE))
}

/// The entry at this place.
pub fn load_slot<M: Machine>(machine: &M, slot: Pa) -> Desc {
    Desc::from_raw(machine.pt_load(slot))
}

/// Writes the entry at this place.
pub fn store_slot<M: Machine>(machine: &M, slot: Pa, desc: Desc) {
    machine.pt_store(slot, desc.raw());
}

/// Of how many of the `most` entries from this place on, all in one table, `fits` is true, up to the first of which it is not.
#[inline]
pub fn load_slots<M: Machine>(machine: &M, slot: Pa, most: u64, mut fits: impl FnMut(Desc) -> bool) -> u64 {
    machine.pt_load_run(slot, most, |raw| fits(Desc::from_raw(raw)))
}

/// Writes `count` leaves of `level` at this place and behind it, all in one table: the first is `leaf`, the others' memory is behind its.
pub fn store_leaves<M: Machine>(machine: &M, slot: Pa, level: Level, count: u64, leaf: Desc) {
    machine.pt_store_run(slot, count, leaf.raw(), level.size());
}

/// Writes nothing ([`Desc::INVALID`]) at this place and at `count` - 1 behind it, all in one table.
pub fn clear_slots<M: Machine>(machine: &M, slot: Pa, count: u64) {
    machine.pt_store_run(slot, count, Desc::INVALID.raw(), 0);
}

fn step<M: Machine>(
    machine: &M,
    npt: &mut Npt,
    slot: Pa,
    level: Option<Level>,
    alloc: Alloc,
    alloc_page: fn(&M, &mut Npt) -> Result<Pa, OutOfTables>,
) -> Result<Desc, OutOfTables> {
    let found = Desc::from_raw(machine.pt_load(slot));
    if alloc == Alloc::No || found.kind(level) != Kind::Invalid {
        return Ok(found);
    }
    let table = Desc::table(alloc_page(machine, npt)?);
    // The new table is all zero; it must be seen so before the entry that leads to it.
    machine.publish_tables();
    machine.pt_store(slot, table.raw());
    Ok(table)
}
