//! Faults of the machine itself, planted one at a time: `tests/kill_table.rs` shows that each is noticed.
#![forbid(unsafe_code)]

use super::Sim;

/// A fault to plant: what the machine leaves out, so that a test can show that it is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// `tlb_flush_run` does nothing.
    NoFlushIpa,
    /// `tlb_flush_vm` does nothing.
    NoFlushVm,
    /// `publish_tables` and `publish_to_smmus` do nothing.
    NoPublish,
    /// `clear_phys_run` and `zero_phys_run` do nothing.
    NoScrub,
    /// `tlb_flush_run` reaches only the CPU that calls it.
    LocalFlushOnly,
    /// `sync_page_to_poc` does nothing.
    NoSync,
    /// `smmu_flush` does nothing.
    NoSmmuFlush,
    /// `tlb_flush_vm` flushes the host whoever was meant.
    FlushOfHostOnly,
}

impl Sim {
    /// The fault that the machine plants from now on.
    pub fn sabotage(&self, sabotage: Sabotage) {
        self.state().sabotage = Some(sabotage);
    }
}
