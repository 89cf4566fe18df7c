//! Pages of somebody else, as the core reads and writes them, and the host that changes them while it does.
//!
//! In a race ([`Sim::set_race`]) what the core has read of a page is gone at once: each word reads as all ones from then on. So whatever the core reads a second time is
//! something else, and what it does must be what it would do without a race (K §8.3 A17).
#![forbid(unsafe_code)]

use std::vec;

use super::Sim;
use super::worlds::Switch;
use crate::abstract_machine::ForeignPage;
use crate::abstract_machine::addr::Pfn;

/// A page within reach.
pub struct Visited<'v>(&'v Sim, Pfn);

impl ForeignPage for Visited<'_> {
    fn read(&self, word: usize) -> u64 {
        let mut value = [0];
        self.0.read_foreign(self.1, word, &mut value);
        value[0]
    }

    fn write(&self, word: usize, value: u64) {
        self.0.state().write_page(self.1, word, &[value]);
    }
}

impl Drop for Visited<'_> {
    fn drop(&mut self) {
        self.0.worlds().note(Switch::ClosePage(self.1));
    }
}

impl Sim {
    pub(super) fn visited(&self, pfn: Pfn) -> Visited<'_> {
        self.worlds().note(Switch::OpenPage(pfn));
        Visited(self, pfn)
    }

    /// From now on the host, on another CPU, changes each word of these pages as soon as it was read. They are the host's all the while: whoever sets this takes it back
    /// before one of them is not.
    pub fn set_race(&self, pages: &[Pfn]) {
        self.worlds().raced = pages.iter().copied().collect();
    }

    /// Words of a page, each read once; in a race they are others afterwards.
    pub(super) fn read_foreign(&self, pfn: Pfn, first_word: usize, out: &mut [u64]) {
        let raced = self.worlds().raced.contains(&pfn);
        let mut state = self.state();
        state.read_page(pfn, first_word, out);
        if raced {
            state.write_page(pfn, first_word, &vec![u64::MAX; out.len()]);
        }
    }
}
