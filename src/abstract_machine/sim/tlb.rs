//! What a CPU remembers of walks: every leaf and every table that it ever saw, until it is told to forget.
//!
//! A real TLB forgets by chance; this one only by order, so a missing TLBI always shows.
#![forbid(unsafe_code)]

use std::format;
use std::string::String;
use std::vec::Vec;

use super::State;
use super::walker::{Leaf, TableAt, entry_size};
use crate::abstract_machine::addr::{PAGE_SIZE, Pa};

/// The TLB and the walk cache of one CPU.
#[derive(Default, Clone)]
pub struct Tlb {
    leaves: Vec<(u16, Leaf)>,
    tables: Vec<(u16, TableAt)>,
}

fn covers(base: u64, size: u64, ipa: u64) -> bool {
    ipa >= base && ipa - base < size
}

/// Bytes that a table of this level translates: what one entry of the level above stands for.
fn reach(at: TableAt) -> u64 {
    entry_size(at.level) * 512
}

impl Tlb {
    /// The leaf remembered for `ipa`.
    pub fn find(&self, vm: u16, ipa: u64) -> Option<Leaf> {
        self.leaves.iter().find(|(v, leaf)| *v == vm && covers(leaf.base, leaf.size, ipa)).map(|(_, leaf)| *leaf)
    }

    /// The table nearest to the leaf remembered for `ipa`.
    pub fn find_table(&self, vm: u16, ipa: u64) -> Option<TableAt> {
        let known = self.tables.iter().filter(|(v, at)| *v == vm && covers(at.base, reach(*at), ipa));
        known.map(|(_, at)| *at).max_by_key(|at| at.level)
    }

    /// Remembers the tables of a walk.
    pub fn saw_tables(&mut self, vm: u16, seen: &[TableAt]) {
        for at in seen {
            if !self.tables.contains(&(vm, *at)) {
                self.tables.push((vm, *at));
            }
        }
    }

    /// Remembers a leaf. What is wrong if another leaf for some of the same addresses is remembered: the CPU would
    /// report a TLB conflict, or choose.
    pub fn saw_leaf(&mut self, vm: u16, leaf: Leaf) -> Option<String> {
        if self.leaves.contains(&(vm, leaf)) {
            return None;
        }
        let overlap = self
            .leaves
            .iter()
            .find(|(v, old)| *v == vm && old.base < leaf.base + leaf.size && leaf.base < old.base + old.size);
        let conflict = overlap.map(|(_, old)| format!("TLB conflict: {leaf:x?} while {old:x?} is remembered"));
        self.leaves.push((vm, leaf));
        conflict
    }

    /// Forgets what covers `ipa`.
    pub fn flush_ipa(&mut self, vm: u16, ipa: u64) {
        self.leaves.retain(|(v, leaf)| *v != vm || !covers(leaf.base, leaf.size, ipa));
        self.tables.retain(|(v, at)| *v != vm || !covers(at.base, reach(*at), ipa));
    }

    /// Forgets all of `vm`.
    pub fn flush_vm(&mut self, vm: u16) {
        self.leaves.retain(|(v, _)| *v != vm);
        self.tables.retain(|(v, _)| *v != vm);
    }

    /// Whether the table at this address is remembered.
    pub fn knows_table(&self, table: u64) -> bool {
        self.tables.iter().any(|(_, at)| at.table == table)
    }

    /// Whether anything of `vm` is remembered.
    pub fn knows_vm(&self, vm: u16) -> bool {
        self.leaves.iter().any(|(v, _)| *v == vm) || self.tables.iter().any(|(v, _)| *v == vm)
    }

    /// Every remembered leaf of `vm`.
    pub fn leaves(&self, vm: u16) -> impl Iterator<Item = Leaf> + '_ {
        self.leaves.iter().filter(move |(v, _)| *v == vm).map(|(_, leaf)| *leaf)
    }
}

impl State {
    /// Pages of tables go back, which no TLB may remember.
    pub(super) fn free_table(&mut self, base: Pa, order: u32) {
        let mut pages = (0..1u64 << order).map(|n| base.raw() + n * PAGE_SIZE);
        let remembered = pages.any(|page| self.cpus.iter().any(|cpu| cpu.tlb.knows_table(page)));
        self.tables.free(base.raw(), order, remembered);
    }
}
