//! Layer 7, NPTWalk: whole walks.
//!
//! | primitive          | does                                                                  | lock |
//! |--------------------|-----------------------------------------------------------------------|------|
//! | [`walk_npt`]       | that leaf, or the largest one that would fit into the hole            | Npt  |
//! | [`set_npt`]        | puts a leaf where nothing is                                          | Npt  |
//! | [`prepare_npt`]    | makes sure that a leaf can be put there                               | Npt  |
//! | [`free_slots`], [`set_free`] | the same for more than one in the table that it gave          | Npt  |
//! | [`clear_npt`]      | takes a leaf away                                                     | Npt  |
//! | [`clear_pages`]    | takes leaves away that are pages', behind one another                 | Npt  |
//! | [`split_npt`]      | a block becomes a table of the next smaller leaves, in two steps      | Npt  |
//! | [`unlink_npt`]     | a table that stands where a block could goes, in two steps            | Npt  |
//! | [`park_all`]       | all tables below the root go, in two steps                            | Npt  |
//! | [`take_apart`]     | the same second step, leaf by leaf                                    | Npt  |
//!
//! A leaf is never overwritten by another (K §8.3 A4: content swap), a block is never put over a table, nor a page under
//! a block (K §2 L7). Publishing and TLBs are the next layer's.
//!
//! Below: PTWalk. Above: NPTOps. Specification: `spec::npt`. Source: SeKVM layer NPTWalk.
#![forbid(unsafe_code)]

use super::descriptor::{Desc, Kind};
use super::pt_alloc::{self, OutOfTables};
use super::pt_walk::{self, Alloc};
use super::{Level, Npt};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Ia, Pa};

/// Why an entry could not be set. Nothing that translates has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetNptError {
    /// The address, or the memory, is not aligned to the level's size.
    Misaligned,
    /// The address is beyond the table's input size.
    OutOfRange,
    /// Something else is mapped there, or a table stands where the block would.
    Occupied,
    /// No page for a table.
    OutOfTables,
}

impl From<OutOfTables> for SetNptError {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfTables
    }
}

/// What a table says of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// It is mapped by this leaf.
    Mapped(Level, Desc),
    /// It is not mapped; the largest leaf that could be put there without removing a table.
    Hole(Level),
}

/// Whether the table has an entry for `ia` at all.
fn in_range(npt: &Npt, ia: Ia) -> bool {
    ia.raw() >> npt.shape().ia_bits() == 0
}

/// The leaf that maps `ia`, or what could be put there. An address beyond the table's input size is a hole for
/// which [`set_npt`] has no place. K: `walk_npt`.
pub fn walk_npt<M: Machine>(machine: &M, npt: &mut Npt, ia: Ia) -> Walk {
    let mut table = None;
    find(machine, npt, ia, &mut table)
}

/// [`walk_npt`], and the `table` whose entry said it: `None` if the address is out of range, or the root leads nowhere.
fn find<M: Machine>(machine: &M, npt: &mut Npt, ia: Ia, table: &mut Option<Pa>) -> Walk {
    *table = None;
    if !in_range(npt, ia) {
        return Walk::Hole(Level::L1);
    }
    // Without Alloc::Yes no step can run out of tables.
    let Ok(pgd) = pt_walk::walk_pgd(machine, npt, ia, Alloc::No) else { return Walk::Hole(Level::L1) };
    let Kind::Table(pgd) = pgd.kind(None) else { return Walk::Hole(Level::L1) };

    *table = Some(pgd);
    let Ok(pud) = pt_walk::walk_pud(machine, npt, pgd, ia, Alloc::No) else { return Walk::Hole(Level::L1) };
    let pud = match pud.kind(Some(Level::L1)) {
        Kind::Invalid => return Walk::Hole(Level::L1),
        Kind::Leaf(_) => return Walk::Mapped(Level::L1, pud),
        Kind::Table(pud) => pud,
    };
    *table = Some(pud);
    let Ok(pmd) = pt_walk::walk_pmd(machine, npt, pud, ia, Alloc::No) else { return Walk::Hole(Level::L2) };
    let pmd = match pmd.kind(Some(Level::L2)) {
        Kind::Invalid => return Walk::Hole(Level::L2),
        Kind::Leaf(_) => return Walk::Mapped(Level::L2, pmd),
        Kind::Table(pmd) => pmd,
    };
    *table = Some(pmd);
    let pte = pt_walk::walk_pte(machine, pmd, ia);
    match pte.kind(Some(Level::L3)) {
        Kind::Leaf(_) => Walk::Mapped(Level::L3, pte),
        _ => Walk::Hole(Level::L3),
    }
}

/// Puts `leaf` of `level` at `ia`, with the tables on the way to it. The same leaf twice is one leaf. K: `set_npt`.
///
/// # Errors
/// See [`SetNptError`]. Empty tables may have been added.
pub fn set_npt<M: Machine>(machine: &M, npt: &mut Npt, ia: Ia, level: Level, leaf: Desc) -> Result<(), SetNptError> {
    if !leaf.address().is_aligned(level.size()) {
        return Err(SetNptError::Misaligned); // K §8.3 A5
    }
    match prepare_npt(machine, npt, ia, level) {
        Ok(table) => set_leaf(machine, level, table, ia, leaf),
        Err(SetNptError::Occupied) if walk_npt(machine, npt, ia) == Walk::Mapped(level, leaf) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Makes sure that a leaf of `level` can be put at `ia`: nothing is mapped there, no table stands there, and the tables on the way
/// to it exist. The table that it would stand in.
///
/// # Errors
/// See [`SetNptError`]. Empty tables may have been added, also without an error.
pub fn prepare_npt<M: Machine>(machine: &M, npt: &mut Npt, ia: Ia, level: Level) -> Result<Pa, SetNptError> {
    if !ia.is_aligned(level.size()) {
        return Err(SetNptError::Misaligned); // K §8.3 A5
    }
    if !in_range(npt, ia) {
        return Err(SetNptError::OutOfRange);
    }
    let mut table = None;
    match find(machine, npt, ia, &mut table) {
        Walk::Mapped(..) => return Err(SetNptError::Occupied),
        Walk::Hole(largest) if level < largest => return Err(SetNptError::Occupied),
        Walk::Hole(largest)
            if level == largest
                && let Some(table) = table =>
        {
            return Ok(table);
        }
        Walk::Hole(_) => {}
    }
    table_for(machine, npt, ia, level, Alloc::Yes)?.ok_or(SetNptError::Occupied)
}

/// In `table`, which [`prepare_npt`] gave for a leaf of `level` at `ia`: how many of the `most` leaves from there on can be put, as far as the table goes.
pub fn free_slots<M: Machine>(machine: &M, table: Pa, ia: Ia, level: Level, most: u64) -> u64 {
    let most = most.min(pt_walk::slots_from(ia, level));
    pt_walk::load_slots(machine, pt_walk::table_slot(table, ia, level), most, |desc| !desc.is_valid())
}

/// Puts `count` leaves of `level` at `ia` and behind it into `table`, which [`prepare_npt`] gave for `ia`, if nothing stands there. `leaf` is the first, the others' memory is
/// behind its. Whether it did.
pub fn set_free<M: Machine>(machine: &M, table: Pa, ia: Ia, level: Level, count: u64, leaf: Desc) -> bool {
    // K §8.3 A5, A4.
    let allowed = leaf.address().is_aligned(level.size()) && free_slots(machine, table, ia, level, count) == count;
    if allowed {
        pt_walk::store_leaves(machine, pt_walk::table_slot(table, ia, level), level, count, leaf);
    }
    allowed
}

/// Takes the leaves that map `ia` and what is behind it away, up to `most`, as far as they are pages of one table that `go`, which hears of each in order; and gives what stood at
/// `ia`, and of how many pages from `ia` on that is over: none where a larger leaf stands, at most `most`. The TLBs still hold what was there. K: part of `clear_pfn_host`.
pub fn clear_pages<M: Machine>(
    machine: &M,
    npt: &mut Npt,
    ia: Ia,
    most: u64,
    mut go: impl FnMut(Desc) -> bool,
) -> (Walk, u64) {
    let mut table = None;
    let found = find(machine, npt, ia, &mut table);
    let most = most.min(pt_walk::slots_from(ia, Level::L3));
    let pages = match (found, table) {
        (Walk::Mapped(Level::L3, _), Some(table)) => {
            let slot = pt_walk::table_slot(table, ia, Level::L3);
            let pages = pt_walk::load_slots(machine, slot, most, |desc| desc.is_valid() && go(desc));
            pt_walk::clear_slots(machine, slot, pages);
            pages
        }
        (Walk::Hole(Level::L3), Some(table)) => free_slots(machine, table, ia, Level::L3, most),
        // Nothing stands in the place of a whole table of pages.
        (Walk::Hole(_), _) => most,
        (Walk::Mapped(..), _) => 0,
    };
    (found, pages)
}

/// Takes the leaf that maps `ia` away and returns it. The TLBs still hold it. K: part of `clear_pfn_host`.
pub fn clear_npt<M: Machine>(machine: &M, npt: &mut Npt, ia: Ia) -> Option<(Level, Desc)> {
    let mut table = None;
    let Walk::Mapped(level, leaf) = find(machine, npt, ia, &mut table) else { return None };
    set_leaf(machine, level, table?, ia, Desc::INVALID);
    Some((level, leaf))
}

/// The first step of a split: the block that maps `ia` is gone from the table, and a table with the same memory in
/// smaller leaves is ready. Between the steps the caller makes every TLB forget the block (break before make).
#[must_use]
pub struct Split {
    slot_table: Pa,
    level: Level,
    ia: Ia,
    new_table: Pa,
}

/// Takes the block that maps `ia` out of the table and prepares what will stand in its place. `None` if `ia` is
/// not mapped by a block.
///
/// # Errors
/// [`OutOfTables`]. Nothing has changed then.
pub fn split_npt<M: Machine>(machine: &M, npt: &mut Npt, ia: Ia) -> Result<Option<Split>, OutOfTables> {
    let mut slot_table = None;
    let Walk::Mapped(level, block) = find(machine, npt, ia, &mut slot_table) else { return Ok(None) };
    let (Some(slot_table), Some(smaller)) = (slot_table, level.below()) else { return Ok(None) };
    let new_table = match level {
        Level::L1 => pt_alloc::alloc_pud_page(machine, npt)?,
        Level::L2 | Level::L3 => pt_alloc::alloc_pmd_page(machine, npt)?,
    };
    let mut offset = 0;
    while offset < level.size() {
        set_leaf(machine, smaller, new_table, Ia::new(offset), block.shrunk(smaller, offset));
        offset += smaller.size();
    }
    set_leaf(machine, level, slot_table, ia, Desc::INVALID);
    Ok(Some(Split { slot_table, level, ia, new_table }))
}

/// The second step of a split, after no TLB holds the block any more.
pub fn finish_split<M: Machine>(machine: &M, split: Split) {
    machine.publish_tables();
    set_leaf(machine, split.level, split.slot_table, split.ia, Desc::table(split.new_table));
}

/// A table that no entry leads to any more, but that TLBs and walk caches may remember.
#[must_use]
pub struct Unlinked {
    table: Pa,
    level: Level,
}

/// Takes the table that stands where a leaf of `level` could map `ia` out, with all below it. `None` if no table stands
/// there. Before [`free_unlinked`] the caller makes every TLB forget all that the table led to.
pub fn unlink_npt<M: Machine>(machine: &M, npt: &mut Npt, ia: Ia, level: Level) -> Option<Unlinked> {
    let smaller = level.below()?;
    if !in_range(npt, ia) {
        return None;
    }
    let slot_table = table_for(machine, npt, ia, level, Alloc::No).ok()??;
    let slot = match level {
        Level::L1 => pt_walk::walk_pud(machine, npt, slot_table, ia, Alloc::No),
        Level::L2 | Level::L3 => pt_walk::walk_pmd(machine, npt, slot_table, ia, Alloc::No),
    };
    let Kind::Table(table) = slot.ok()?.kind(Some(level)) else { return None };
    set_leaf(machine, level, slot_table, ia, Desc::INVALID);
    Some(Unlinked { table, level: smaller })
}

/// The second step: the table and all below it go back to the pool.
pub fn free_unlinked<M: Machine>(machine: &M, npt: &mut Npt, unlinked: Unlinked) {
    free_tree(machine, npt, unlinked.table, unlinked.level);
}

/// Takes every table below the root out. Its entry keeps the address, invalid, for [`free_parked`]; between the two the
/// caller makes every TLB forget all of the table, and nothing else may use it.
pub fn park_all<M: Machine>(machine: &M, npt: &mut Npt) {
    for slot in pt_walk::root_slots(npt) {
        let desc = pt_walk::load_slot(machine, slot);
        if let Kind::Table(_) = desc.kind(npt.root_level()) {
            pt_walk::store_slot(machine, slot, desc.parked());
        }
    }
}

/// The second step: the tables that [`park_all`] took out go back to the pool.
pub fn free_parked<M: Machine>(machine: &M, npt: &mut Npt) {
    let below = npt.root_level().and_then(Level::below).unwrap_or(Level::L1);
    for slot in pt_walk::root_slots(npt) {
        if let Some(table) = pt_walk::load_slot(machine, slot).parked_table() {
            pt_walk::store_slot(machine, slot, Desc::INVALID);
            free_tree(machine, npt, table, below);
        }
    }
}

/// What [`take_apart`] took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Apart {
    /// This leaf.
    Leaf(Level, Desc),
    /// A table that had become empty: it went back to the pool.
    Table,
    /// There is nothing left.
    Nothing,
}

/// After [`park_all`], and after every TLB forgot all of the table: takes the next leaf from `from` on out of what was parked, or the
/// next empty table. Gives also where to go on; below that everything is gone already.
pub fn take_apart<M: Machine>(machine: &M, npt: &mut Npt, from: Ia) -> (Ia, Apart) {
    let below_root = npt.root_level().and_then(Level::below).unwrap_or(Level::L1);
    let mut at = from;
    while in_range(npt, at) {
        let (mut parent, size) = pt_walk::root_slot(npt, at);
        let Some(mut table) = pt_walk::load_slot(machine, parent).parked_table() else {
            at = behind(at, size);
            continue;
        };
        let mut level = below_root;
        loop {
            let slot = pt_walk::table_slot(table, at, level);
            let desc = pt_walk::load_slot(machine, slot);
            match (desc.kind(Some(level)), level.below()) {
                (Kind::Table(next), Some(smaller)) => (parent, table, level) = (slot, next, smaller),
                (Kind::Leaf(_), _) => {
                    pt_walk::store_slot(machine, slot, Desc::INVALID);
                    return (at, Apart::Leaf(level, desc));
                }
                _ if pt_walk::is_last_slot(at, level) => {
                    pt_walk::store_slot(machine, parent, Desc::INVALID);
                    pt_alloc::free_table_page(machine, npt, table);
                    return (at, Apart::Table);
                }
                _ => at = behind(at, level.size()),
            }
        }
    }
    (at, Apart::Nothing)
}

/// The first address behind the naturally aligned `size` bytes around `at`.
fn behind(at: Ia, size: u64) -> Ia {
    Ia::new(at.align_down(size).raw().saturating_add(size))
}

/// Gives the table at `table`, whose entries are of `level`, and all below it back to the pool.
fn free_tree<M: Machine>(machine: &M, npt: &mut Npt, table: Pa, level: Level) {
    if let Some(smaller) = level.below() {
        for slot in pt_walk::table_slots(table) {
            if let Kind::Table(next) = pt_walk::load_slot(machine, slot).kind(Some(level)) {
                free_tree(machine, npt, next, smaller);
            }
        }
    }
    pt_alloc::free_table_page(machine, npt, table);
}

/// The table whose entry for `ia` is of `level`. `None` if a block stands in the way, or nothing.
fn table_for<M: Machine>(
    machine: &M,
    npt: &mut Npt,
    ia: Ia,
    level: Level,
    alloc: Alloc,
) -> Result<Option<Pa>, OutOfTables> {
    let Kind::Table(pgd) = pt_walk::walk_pgd(machine, npt, ia, alloc)?.kind(None) else { return Ok(None) };
    if level == Level::L1 {
        return Ok(Some(pgd));
    }
    let Kind::Table(pud) = pt_walk::walk_pud(machine, npt, pgd, ia, alloc)?.kind(Some(Level::L1)) else {
        return Ok(None);
    };
    if level == Level::L2 {
        return Ok(Some(pud));
    }
    match pt_walk::walk_pmd(machine, npt, pud, ia, alloc)?.kind(Some(Level::L2)) {
        Kind::Table(pmd) => Ok(Some(pmd)),
        _ => Ok(None),
    }
}

fn set_leaf<M: Machine>(machine: &M, level: Level, table: Pa, ia: Ia, leaf: Desc) {
    match level {
        Level::L1 => pt_walk::set_pud(machine, table, ia, leaf),
        Level::L2 => pt_walk::set_pmd(machine, table, ia, leaf),
        Level::L3 => pt_walk::set_pte(machine, table, ia, leaf),
    }
}
