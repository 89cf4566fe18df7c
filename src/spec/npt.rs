//! Layers 5-8: a stage-2 table as a map. K §1.1 `shared.npts`, §2 L5-L8.
//!
//! The table is a map from the first gfn of each leaf to what it maps, plus the set of tables that exist: an empty table
//! keeps a larger block out, so it decides what is mapped next.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use crate::abstract_machine::addr::{Gfn, Pfn};
use crate::npt::Level;
use crate::npt::descriptor::Stage2Access;
use crate::npt::npt_walk::SetNptError;

/// What a leaf maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First page.
    pub pfn: Pfn,
    /// Size.
    pub level: Level,
    /// What may be done with it.
    pub access: Stage2Access,
}

/// A stage-2 table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Bits of an input address.
    pub ia_bits: u32,
    /// First gfn of a leaf -> leaf.
    pub leaves: BTreeMap<Gfn, Leaf>,
    /// Tables below the root: level of their entries, first gfn that they translate.
    pub tables: BTreeSet<(u32, Gfn)>,
}

/// Pages that an entry of this level stands for.
pub const fn pages_of(level: u32) -> u64 {
    1 << (9 * (3 - level))
}

/// First gfn of the entry of this level that `gfn` lies in.
pub const fn first_of(level: u32, gfn: Gfn) -> Gfn {
    Gfn::new(gfn.raw() & !(pages_of(level) - 1))
}

impl Table {
    /// An empty table.
    pub const fn new(ia_bits: u32) -> Self {
        Self { ia_bits, leaves: BTreeMap::new(), tables: BTreeSet::new() }
    }

    /// Level of the root's entries (Arm ARM D8.2.2).
    pub const fn start_level(&self) -> u32 {
        if self.ia_bits > 43 { 0 } else { 1 }
    }

    /// Number of pages of the root.
    pub const fn root_pages(&self) -> usize {
        if self.ia_bits > 39 && self.ia_bits <= 43 { 1 << (self.ia_bits - 39) } else { 1 }
    }

    /// Whether the table has a place for `gfn`.
    pub const fn in_range(&self, gfn: Gfn) -> bool {
        gfn.raw() >> (self.ia_bits - 12) == 0
    }

    /// The leaf that maps `gfn`, with its first gfn. K: `walk_npt`, `get_npt_level`, `walk_s2pt`, `get_level_s2pt`.
    pub fn walk(&self, gfn: Gfn) -> Option<(Gfn, Leaf)> {
        let (first, leaf) = self.leaves.range(..=gfn).next_back()?;
        (gfn.raw() - first.raw() < pages_of(leaf.level as u32)).then_some((*first, *leaf))
    }

    /// Where `gfn` is mapped to. The map as the hardware sees it.
    pub fn translate(&self, gfn: Gfn) -> Option<(Pfn, Stage2Access)> {
        let (first, leaf) = self.walk(gfn)?;
        Some((Pfn::new(leaf.pfn.raw() + (gfn.raw() - first.raw())), leaf.access))
    }

    /// Level of the largest leaf that fits into the hole at `gfn`: the first level whose entry leads to no table.
    pub fn hole(&self, gfn: Gfn) -> Level {
        if self.tables.contains(&(3, first_of(2, gfn))) {
            Level::L3
        } else if self.tables.contains(&(2, first_of(1, gfn))) {
            Level::L2
        } else {
            Level::L1
        }
    }
}

/// Puts the tables down to `level` over `gfn` in place; `false` if the pool ends first. K: `walk_pgd`, `walk_pud`,
/// `walk_pmd` with alloc = 1, `alloc_*_page`.
fn add_tables(table: &mut Table, free: &mut usize, gfn: Gfn, level: Level) -> bool {
    for below in table.start_level() + 1..=level as u32 {
        let key = (below, first_of(below - 1, gfn));
        if !table.tables.contains(&key) {
            if *free == 0 {
                return false;
            }
            *free -= 1;
            table.tables.insert(key);
        }
    }
    true
}

/// The tables for a leaf of `level` at `gfn` stand, and nothing is mapped there.
pub fn prepare(mut table: Table, mut free: usize, gfn: Gfn, level: Level) -> (Table, usize, Result<(), SetNptError>) {
    let result = if !gfn.raw().is_multiple_of(pages_of(level as u32)) {
        Err(SetNptError::Misaligned)
    } else if !table.in_range(gfn) {
        Err(SetNptError::OutOfRange)
    } else if table.walk(gfn).is_some() || level < table.hole(gfn) {
        Err(SetNptError::Occupied)
    } else if !add_tables(&mut table, &mut free, gfn, level) {
        Err(SetNptError::OutOfTables)
    } else {
        Ok(())
    };
    (table, free, result)
}

/// The block at `gfn` becomes leaves of the next smaller level; `None` if there is no page for the table.
pub fn split(mut table: Table, free: usize, gfn: Gfn) -> Option<(Table, usize)> {
    let (first, leaf) = table.walk(gfn)?;
    let smaller = leaf.level.below()?;
    let free = free.checked_sub(1)?;
    table.leaves.remove(&first);
    table.tables.insert((smaller as u32, first));
    let step = pages_of(smaller as u32);
    for n in (0..pages_of(leaf.level as u32)).step_by(step as usize) {
        let part = Leaf { pfn: Pfn::new(leaf.pfn.raw() + n), level: smaller, ..leaf };
        table.leaves.insert(Gfn::new(first.raw() + n), part);
    }
    Some((table, free))
}

/// `clear_block_host`: the 2 MiB from `pfn` on are gone. A 1 GiB block is split if there is a page for it, else it goes.
pub fn clear_block_host(mut table: Table, mut free: usize, pfn: Pfn) -> (Table, usize) {
    let gfn = pfn.identity();
    if table.walk(gfn).is_some_and(|(_, leaf)| leaf.level == Level::L1)
        && let Some((with_blocks, left)) = split(table.clone(), free, gfn)
    {
        (table, free) = (with_blocks, left);
    }
    if let Some((first, leaf)) = table.walk(gfn)
        && leaf.level < Level::L3
    {
        table.leaves.remove(&first);
    } else if table.tables.remove(&(3, gfn)) {
        free += 1;
        table.leaves.retain(|at, _| first_of(2, *at) != gfn);
    }
    (table, free)
}

/// What is taken apart next: by last page, and where that is one, leaf before table, table before the one that it stands in.
pub fn next_apart(table: &Table) -> Option<Result<Gfn, (u32, Gfn)>> {
    let leaves = table.leaves.iter().map(|(gfn, leaf)| (gfn.raw() + pages_of(leaf.level as u32), 4, Ok(*gfn)));
    let tables = table.tables.iter().map(|(level, gfn)| (gfn.raw() + pages_of(level - 1), *level, Err((*level, *gfn))));
    leaves.chain(tables).min_by_key(|(end, level, _)| (*end, 4 - *level)).map(|(_, _, what)| what)
}

/// K: `set_npt`, `map_s2pt`. Corrected: a leaf is never overwritten (A4), alignment is checked (A5).
pub fn set_npt(mut table: Table, mut free: usize, gfn: Gfn, leaf: Leaf) -> (Table, usize, Result<(), SetNptError>) {
    let aligned = |n: u64| n & (pages_of(leaf.level as u32) - 1) == 0;
    let result = if !aligned(gfn.raw()) || !aligned(leaf.pfn.raw()) {
        Err(SetNptError::Misaligned)
    } else if !table.in_range(gfn) {
        Err(SetNptError::OutOfRange)
    } else if let Some(old) = table.walk(gfn) {
        if old == (gfn, leaf) { Ok(()) } else { Err(SetNptError::Occupied) }
    } else if leaf.level < table.hole(gfn) {
        Err(SetNptError::Occupied)
    } else if !add_tables(&mut table, &mut free, gfn, leaf.level) {
        Err(SetNptError::OutOfTables)
    } else {
        table.leaves.insert(gfn, leaf);
        Ok(())
    };
    (table, free, result)
}

/// The largest leaf that fits and that `candidate` allows; mapped already is success. The host's map is the identity. Behind a block of 2 MiB of RAM come those that
/// `candidate` allows as well, in the same table, up to the first that it does not, or where something stands. `candidate` is asked about a page of the block.
pub fn map_largest(
    table: Table,
    free: usize,
    gfn: Gfn,
    candidate: impl Fn(Gfn, Level) -> Option<Stage2Access>,
) -> (Table, usize, Result<(), SetNptError>) {
    if table.walk(gfn).is_some() {
        return (table, free, Ok(()));
    }
    let largest = table.hole(gfn);
    for level in Level::ALL {
        if level >= largest
            && let Some(access) = candidate(gfn, level)
        {
            let first = first_of(level as u32, gfn);
            let leaf = |at: Gfn| Leaf { pfn: Pfn::new(at.raw()), level, access };
            let (mut table, free, result) = set_npt(table, free, first, leaf(first));
            if result.is_ok() && level == Level::L2 && access == Stage2Access::Ram {
                let mut next = Gfn::new(first.raw() + pages_of(level as u32));
                while first_of(Level::L1 as u32, next) == first_of(Level::L1 as u32, first)
                    && table.walk(next).is_none()
                    && table.hole(next) == level
                    && candidate(next, level) == Some(access)
                {
                    table.leaves.insert(next, leaf(next));
                    next = Gfn::new(next.raw() + pages_of(level as u32));
                }
            }
            return (table, free, result);
        }
    }
    (table, free, Err(SetNptError::Occupied))
}

/// K: `clear_pfn_host`. The block around the page is split as long as there are pages for tables; if there are none, the
/// whole block goes.
pub fn clear_pfn_host(mut table: Table, mut free: usize, pfn: Pfn) -> (Table, usize) {
    let gfn = pfn.identity();
    while let Some((first, leaf)) = table.walk(gfn) {
        table.leaves.remove(&first);
        let Some(smaller) = leaf.level.below() else { break };
        if free == 0 {
            break;
        }
        free -= 1;
        table.tables.insert((smaller as u32, first));
        let step = pages_of(smaller as u32);
        for n in (0..pages_of(leaf.level as u32)).step_by(step as usize) {
            let part = Leaf { pfn: Pfn::new(leaf.pfn.raw() + n), level: smaller, ..leaf };
            table.leaves.insert(Gfn::new(first.raw() + n), part);
        }
    }
    (table, free)
}

/// `forget_host`: all tables below the root go back to the pool, with what they map.
pub fn forget_host(mut table: Table, free: usize) -> (Table, usize) {
    let given_back = table.tables.len();
    table.tables.clear();
    let in_root = table.start_level();
    table.leaves.retain(|_, leaf| leaf.level as u32 == in_root);
    (table, free + given_back)
}

/// `merge_host`: the tables that stand where one block of `level` could, around `gfn`, go back to the pool.
pub fn merge_host(mut table: Table, free: usize, gfn: Gfn, level: Level) -> (Table, usize) {
    let first = first_of(level as u32, gfn);
    let within = |g: Gfn| first_of(level as u32, g) == first;
    if !table.tables.contains(&(level as u32 + 1, first)) {
        return (table, free);
    }
    let before = table.tables.len();
    table.tables.retain(|(below, g)| *below <= level as u32 || !within(*g));
    table.leaves.retain(|g, _| !within(*g));
    let given_back = before - table.tables.len();
    (table, free + given_back)
}
