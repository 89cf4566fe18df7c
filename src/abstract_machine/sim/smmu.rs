//! An SMMU and the devices behind it: walks, and a TLB that forgets nothing unless it is told (K: `dev_load_ref`, `dev_store_ref`).
//!
//! Its table stands in memory of its own, which nothing else of the machine is. After every store to it, and every time it was made to forget, the SMMU walks to all watched addresses, as a device may
//! use them at any moment. It sees stores in any order between two barriers for it ([`Machine::publish_to_smmus`]), which those for the CPUs are not: so a table is complete
//! and published before an entry leads to it, and before the SMMU begins with it. Blocks may become tables and tables blocks in one store (SMMU_IDR3.BBML = 2), so that is no violation here.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::string::String;
use std::thread::{self, ThreadId};
use std::vec::Vec;
use std::{format, vec};

use super::tlb::Tlb;
use super::walker::{AccessKind, Fault, Leaf, Regime};
use super::{Sabotage, Sim, State};
use crate::abstract_machine::addr::{Ipa, PAGE_SIZE, Pa, Pfn, PhysRange};

/// Words of a table.
const WORDS: usize = 512;

/// The streams of all devices have one TLB and one tag.
const STREAMS: u16 = 0;

/// The SMMU.
pub(super) struct Smmu {
    memory: PhysRange,
    words: Vec<u64>,
    regime: Option<Regime>,
    tlb: Tlb,
    /// Words of `memory` that no barrier followed yet, and who stored them.
    unseen: BTreeMap<usize, ThreadId>,
}

impl Smmu {
    /// Place of the word at `addr`, if it is in the memory of the SMMU's tables.
    fn word(&self, addr: Pa) -> Option<usize> {
        self.memory.contains(addr).then(|| ((addr.raw() - self.memory.base().raw()) / 8) as usize)
    }

    /// The first word, in the table that `entry` leads to, that an SMMU may still find as it was before. Only tables stand in the memory of tables, so an entry leads to one if it
    /// leads there.
    fn unseen_below(&self, entry: u64) -> Option<u64> {
        let table = entry & 0x0000_ffff_ffff_f000;
        let first = self.word(Pa::new(table)).filter(|_| entry & 0b11 == 0b11)?;
        let (unseen, _) = self.unseen.range(first..first + WORDS).next()?;
        Some(self.memory.base().raw() + *unseen as u64 * 8)
    }

    /// The leaf that a device's access to `iova` goes by.
    fn leaf(&mut self, iova: u64) -> Result<Leaf, Fault> {
        let Some(regime) = self.regime else { return Err(Fault::Translation(0)) };
        if let Some(leaf) = self.tlb.find(STREAMS, iova) {
            return Ok(leaf);
        }
        let from = self.tlb.find_table(STREAMS, iova);
        let base = self.memory.base().raw();
        let words = &self.words;
        let load = |addr: u64| words.get(((addr - base) / 8) as usize).copied().unwrap_or(0);
        let (seen, leaf) = regime.walk(iova, from, load);
        self.tlb.saw_tables(STREAMS, &seen);
        // Two leaves for one address are allowed (BBML = 2), and lead to the same.
        let _ = self.tlb.saw_leaf(STREAMS, leaf?);
        leaf
    }

    /// Whether a device reaches the byte at `pa`, by a TLB or by a walk.
    pub(super) fn reaches(&mut self, pa: u64) -> bool {
        self.leaf(pa).is_ok() || self.tlb.leaves(STREAMS).any(|leaf| leaf.output <= pa && pa - leaf.output < leaf.size)
    }

    fn walk_to(&mut self, watched: &[u64]) {
        for iova in watched {
            let _ = self.leaf(*iova);
        }
    }
}

impl Sim {
    /// The same machine with an SMMU, whose tables stand in `memory`: none of the machine's RAM, all zero.
    #[must_use]
    pub fn with_smmu(self, memory: PhysRange) -> Self {
        let words = vec![0; (memory.size() / 8) as usize];
        self.state().smmu = Some(Smmu { memory, words, regime: None, tlb: Tlb::default(), unseen: BTreeMap::new() });
        self
    }

    /// The SMMU uses this table from now on.
    pub fn load_smmu(&self, root: Pa, ia_bits: u32) {
        let regime = Regime { root: root.raw(), ia_bits, pa_bits: 48 };
        assert!(regime.root_is_aligned(), "the SMMU's root {root} is not aligned to its size");
        let mut state = self.state();
        let Some(smmu) = &mut state.smmu else { return };
        smmu.regime = Some(regime);
        if !smmu.unseen.is_empty() {
            state.tables.violation(String::from("the SMMU began with a table that was not published"));
        }
    }

    /// What becomes of a device's access to `iova`. `None`: the machine has no SMMU.
    pub fn device_access(&self, iova: Ipa, kind: AccessKind) -> Option<Result<Pa, Fault>> {
        let mut state = self.state();
        let smmu = state.smmu.as_mut()?;
        Some(match smmu.leaf(iova.raw()) {
            Ok(leaf) if leaf.allows(kind) => Ok(Pa::new(leaf.output + (iova.raw() - leaf.base))),
            Ok(leaf) => Err(Fault::Permission(leaf.level)),
            Err(fault) => Err(fault),
        })
    }

    /// All leaves of the SMMU's table, and all that its TLB remembers. `None`: the machine has no SMMU.
    pub fn device_leaves(&self) -> Option<(Vec<Leaf>, Vec<Leaf>)> {
        let state = self.state();
        let smmu = state.smmu.as_ref()?;
        let load = |addr: u64| smmu.word(Pa::new(addr)).map_or(0, |word| smmu.words[word]);
        let leaves = smmu.regime.map(|regime| regime.enumerate(load).0).unwrap_or_default();
        Some((leaves, smmu.tlb.leaves(STREAMS).collect()))
    }
}

impl State {
    /// A load from the SMMU's tables, if `entry` is in them.
    pub(super) fn load_smmu_entry(&self, entry: Pa) -> Option<u64> {
        let smmu = self.smmu.as_ref()?;
        smmu.word(entry).map(|word| smmu.words[word])
    }

    /// A store to the SMMU's tables. Whether `entry` is in them.
    pub(super) fn store_smmu_entry(&mut self, entry: Pa, value: u64) -> bool {
        let watched = self.watched_by_devices();
        let Some(smmu) = &mut self.smmu else { return false };
        let Some(word) = smmu.word(entry) else { return false };
        assert!(entry.is_aligned(8), "store at {entry}: not aligned");
        // Before it begins nobody looks.
        let unseen = smmu.regime.and_then(|_| smmu.unseen_below(value));
        smmu.words[word] = value;
        smmu.unseen.insert(word, thread::current().id());
        smmu.walk_to(&watched);
        if let Some(unseen) = unseen {
            self.tables.violation(format!("{entry} leads the SMMU to {unseen:#x}, which was not published before"));
        }
        true
    }

    fn watched_by_devices(&self) -> Vec<u64> {
        self.watched.iter().map(|(_, ipa)| ipa.raw()).collect()
    }

    /// DSB: what this CPU stored is seen.
    pub(super) fn publish_smmu(&mut self) {
        if let Some(smmu) = &mut self.smmu {
            let me = thread::current().id();
            smmu.unseen.retain(|_, by| *by != me);
        }
    }

    /// The commands of `Machine::smmu_flush`.
    pub(super) fn flush_smmu(&mut self, at: Ipa, pages: u64) {
        self.publish_smmu();
        if self.sabotage == Some(Sabotage::NoSmmuFlush) {
            return;
        }
        let watched = self.watched_by_devices();
        if let Some(smmu) = &mut self.smmu {
            (0..pages).for_each(|n| smmu.tlb.flush_ipa(STREAMS, at.raw() + n * PAGE_SIZE));
            smmu.walk_to(&watched);
        }
    }

    /// The host runs again: what the SMMU owes.
    pub(super) fn smmu_at_rest(&mut self) {
        let me = thread::current().id();
        if self.smmu.as_ref().is_some_and(|smmu| smmu.unseen.values().any(|by| *by == me)) {
            self.tables.violation(String::from("an entry of the SMMU's table was never published"));
            self.publish_smmu();
        }
    }

    /// Whether a device may write the page at any moment.
    pub(super) fn device_reaches(&mut self, pfn: Pfn) -> bool {
        self.smmu.as_mut().is_some_and(|smmu| smmu.reaches(pfn.addr().raw()))
    }
}
