//! Layers 22-26: registers that the host does not reach itself, but through the core.
//!
//! | layer | module                | K            | holds                                                                       |
//! |-------|-----------------------|--------------|-----------------------------------------------------------------------------|
//! | 22    | [`mmio_raw`]          | MmioRaw      | which access: address, size, value, the register that it is for             |
//! | 23    | [`gic_redistributor`] | MmioCoreAux  | a redistributor's registers                                                 |
//! | -     | [`its`]               | -            | what the core knows of an ITS                                               |
//! | -     | [`its_command`]       | -            | which commands an ITS gets, and in which form                               |
//! | 24    | [`gic_its`]           | MmioCore     | an ITS's registers, and its commands                                        |
//! | 25    | [`mmio_ops_aux`]      | MmioOpsAux   | whose register it is                                                        |
//! | 26    | [`mmio_ops`]          | MmioOps      | the same under the lock                                                     |
//!
//! The proof emulates the registers of an SMMU here. This host has no SMMU (`spt`); what it has is a GICv3, and with that it could write memory that it does not reach: a
//! redistributor writes pending bits where GICR_PENDBASER says, and an ITS its tables where GITS_BASER and its commands say. So the pages with these registers are the
//! core's: a redistributor gets only tables in memory that the host may access, which stays the host's from then on; an ITS has its tables and its queue in the core's own memory,
//! and the host's queue is read, command by command. Everything else in these pages goes through.
#![forbid(unsafe_code)]

pub mod gic_its;
pub mod gic_redistributor;
pub mod its;
pub mod its_command;
pub mod mmio_ops;
pub mod mmio_ops_aux;
pub mod mmio_raw;

use crate::abstract_machine::addr::{PAGE_SIZE, Pa};
use crate::locks::{Lock, Rank};
use its::Its;

/// Most ITSs.
pub const MOST_ITS: usize = 16;

/// What stands in a page of registers that the host reaches through the core only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// The first page of a redistributor's RD_base frame.
    Redistributor,
    /// The first page of a GICv4 redistributor's VLPI_base frame: the host has none of it.
    VirtualLpis,
    /// The first page of the control frame of the ITS with this number.
    Its(usize),
}

/// Such a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Where it is.
    pub at: Pa,
    /// What it is.
    pub kind: FrameKind,
}

/// What the host has said of the ITSs so far.
pub struct GicState {
    its: [Option<&'static mut Its>; MOST_ITS],
}

/// The registers that the host reaches through the core.
pub struct Mediated {
    frames: &'static [Frame],
    lpi_bits: u32,
    state: Lock<GicState>,
}

impl Mediated {
    /// These pages, in ascending order. `lpi_bits`: of interrupt numbers, what GICD_TYPER says. `its` are the ITSs, off, with their queues set up.
    pub const fn new(frames: &'static [Frame], lpi_bits: u32, its: [Option<&'static mut Its>; MOST_ITS]) -> Self {
        Self { frames, lpi_bits, state: Lock::new(Rank::Mmio, GicState { its }) }
    }

    /// The page that `at` lies in.
    pub fn frame(&self, at: Pa) -> Option<Frame> {
        let page = at.align_down(PAGE_SIZE);
        let found = self.frames.binary_search_by_key(&page, |frame| frame.at).ok()?;
        self.frames.get(found).copied()
    }
}
