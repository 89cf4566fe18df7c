//! Layers 13-17: who owns each page of the machine.
//!
//! | layer | module            | holds                                                          |
//! |-------|-------------------|----------------------------------------------------------------|
//! | 13    | [`mem_region`]    | what the device tree calls RAM, and device windows             |
//! | 14    | [`page_index`]    | from a page to the place of its record                         |
//! | 15    | [`page_manager`]  | one record a page: owner and state, in 8 bytes                 |
//! | 16    | [`mem_manager`]   | transitions: the only place where a page changes hands         |
//! | 17    | [`memory_ops`]    | the same over ranges                                           |
//! | -     | `oracle`          | test builds: whether records and tables agree                  |
//!
//! This file holds the state that these layers share.
#![forbid(unsafe_code)]

pub mod mem_manager;
pub mod mem_region;
pub mod memory_ops;
#[cfg(any(feature = "test-hooks", not(target_os = "none")))]
pub mod oracle;
pub mod page_index;
pub mod page_manager;

use crate::abstract_machine::Machine;
use crate::locks::{Lock, Rank};
use crate::npt::Npts;
use crate::spt::Spt;
use mem_region::MemRegions;
use page_manager::S2Pages;

/// Page ownership, and the stage-2 tables that must agree with it.
pub struct Memory<M> {
    npts: Npts<M>,
    regions: MemRegions,
    s2page: Lock<S2Pages>,
    spt: Option<Lock<Spt>>,
}

impl<M: Machine> Memory<M> {
    /// The memory of a machine: what there is, who owns it, and what devices reach of it, if there are SMMUs between.
    pub const fn new(npts: Npts<M>, regions: MemRegions, pages: S2Pages, spt: Option<Lock<Spt>>) -> Self {
        Self { npts, regions, s2page: Lock::new(Rank::S2Page, pages), spt }
    }

    /// The layers below.
    pub const fn npts(&self) -> &Npts<M> {
        &self.npts
    }

    /// The machine.
    pub const fn machine(&self) -> &M {
        self.npts.machine()
    }

    /// What the device tree says is where; constant after boot.
    pub const fn regions(&self) -> &MemRegions {
        &self.regions
    }

    /// The table of the SMMUs; `None` where none stands between devices and memory.
    pub const fn spt(&self) -> Option<&Lock<Spt>> {
        self.spt.as_ref()
    }

    /// The records of all pages, behind their lock.
    pub const fn s2page(&self) -> &Lock<S2Pages> {
        &self.s2page
    }
}
