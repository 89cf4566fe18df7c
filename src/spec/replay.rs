//! K §6.1 item 17, transactional page tables: whatever order other CPUs see a section's stores in, a walk gives what it gave
//! before, or what it gives after, or a fault. Never anything else.
//!
//! Stores between two barriers may be seen in any order, one by one; a barrier keeps those before it before those behind it.
//! The log comes from the simulated machine. Between two barriers every subset of stores is tried if there are at most
//! [`ALL_SUBSETS`] that change live memory; else every prefix, every single store, and every one left out.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec::Vec;

use crate::abstract_machine::sim::tables::LogEntry;
use crate::abstract_machine::sim::walker::Regime;

/// Most stores between two barriers for which every subset is tried.
pub const ALL_SUBSETS: usize = 8;

type Words = BTreeMap<u64, u64>;

/// Where a walk ends: output address and attributes of the page, or nothing.
fn walk(regime: &Regime, memory: &Words, ipa: u64) -> Option<(u64, u64)> {
    let (_, leaf) = regime.walk(ipa, None, |addr| memory.get(&addr).copied().unwrap_or(0));
    let leaf = leaf.ok()?;
    Some((leaf.output + (ipa - leaf.base), leaf.raw & 0xfff0_0000_0000_0ffc))
}

/// Replays a section. `before` is the table memory at its start, `ipas` are the addresses to walk.
/// Gives the number of memory states that were tried.
///
/// # Errors
/// The state and the walk that gave something else.
pub fn transactional(regime: &Regime, before: &Words, log: &[LogEntry], ipas: &[u64]) -> Result<usize, String> {
    let mut after = before.clone();
    let mut tried = 0;
    for entry in log {
        apply(&mut after, entry);
    }
    let expected: Vec<_> =
        ipas.iter().map(|ipa| (*ipa, walk(regime, before, *ipa), walk(regime, &after, *ipa))).collect();
    let mut memory = before.clone();
    let mut check = |memory: &Words| {
        tried += 1;
        for (ipa, old, new) in &expected {
            let found = walk(regime, memory, *ipa);
            if found.is_some() && found != *old && found != *new {
                return Err(format!("a walk to {ipa:#x} gives {found:x?}; before {old:x?}, after {new:x?}"));
            }
        }
        Ok(())
    };
    for group in log.split(|entry| !matches!(entry, LogEntry::Store { .. } | LogEntry::Alloc(..))) {
        let stores: Vec<_> = group.iter().filter(|entry| matches!(entry, LogEntry::Store { .. })).collect();
        // Fresh pages are zero for everyone: they were published, or are not linked yet.
        group.iter().filter(|entry| matches!(entry, LogEntry::Alloc(..))).for_each(|entry| apply(&mut memory, entry));
        let n = stores.len();
        let subsets: Vec<Vec<usize>> = if n <= ALL_SUBSETS {
            (0..1usize << n).map(|bits| (0..n).filter(|i| bits >> i & 1 == 1).collect()).collect()
        } else {
            let prefixes = (0..=n).step_by(n / 16 + 1).map(|end| (0..end).collect());
            let singles = (0..n).step_by(n / 16 + 1).map(|i| Vec::from([i]));
            let last = core::iter::once(Vec::from([n - 1]));
            let left_out = (0..n).step_by(n / 16 + 1).map(|out| (0..n).filter(|i| *i != out).collect());
            prefixes.chain(singles).chain(last).chain(left_out).collect()
        };
        for subset in subsets {
            let mut partial = memory.clone();
            subset.iter().for_each(|i| apply(&mut partial, stores[*i]));
            check(&partial)?;
        }
        stores.iter().for_each(|store| apply(&mut memory, store));
    }
    Ok(tried)
}

fn apply(memory: &mut Words, entry: &LogEntry) {
    match entry {
        LogEntry::Store { entry, new, .. } => {
            memory.insert(*entry, *new);
        }
        LogEntry::Alloc(base, order) => {
            for n in 0..512u64 << order {
                memory.insert(base + n * 8, 0);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGIME: Regime = Regime { root: 0x1000, ia_bits: 39, pa_bits: 40 };
    const A: u64 = 0x4000_07fd;
    const B: u64 = 0x8000_07fd;

    fn store(entry: u64, old: u64, new: u64) -> LogEntry {
        LogEntry::Store { entry, old, new }
    }

    #[test]
    fn a_leaf_that_appears_or_disappears_is_transactional() {
        let before = Words::from([(0x1008, 0), (0x1010, B)]);
        let log = [store(0x1008, 0, A), store(0x1010, B, 0)];
        assert_eq!(transactional(&REGIME, &before, &log, &[0x4000_0000, 0x8000_0000]), Ok(4));
    }

    #[test]
    fn a_table_linked_before_it_was_filled_is_not() {
        // A split whose stores have no barrier between them and whose new table still holds another's leaves.
        let before = Words::from([(0x1008, A), (0x2000, B)]);
        let log = [store(0x2000, B, A), store(0x1008, A, 0x2003)];
        assert!(transactional(&REGIME, &before, &log, &[0x4000_0000]).unwrap_err().contains("gives Some((80000000"));
    }
}
