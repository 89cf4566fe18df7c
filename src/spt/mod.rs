//! Layers 9-12: the table of the SMMUs: what devices reach.
//!
//! | layer | module              | holds                                                                          |
//! |-------|---------------------|--------------------------------------------------------------------------------|
//! | 9     | [`mmio_pt_alloc`]   | pages for tables, all given out at boot                                         |
//! | 10    | [`mmio_pt_walk`]    | one step of a walk                                                             |
//! | 11    | [`mmio_spt_walk`]   | a whole walk: look up, set, clear                                              |
//! | 12    | [`mmio_spt_ops`]    | the same under the table's lock, with the SMMUs' TLBs kept in step              |
//!
//! There is one table, and every stream of every SMMU goes through it: stage 2, an identity, of the pages of RAM that the host may access, and of the
//! pages that take message-signalled interrupts. So a device reaches what the host reaches, and no more. Its entries are those of a
//! CPU's stage 2 ([`descriptor`](crate::npt::descriptor)).
//!
//! The proof gives each context bank of an SMMUv2 a table of its own, filled by calls of the host, and emulates the registers (layers 22-26). Here the
//! host has no SMMU: nothing to call, nothing to emulate (K §8.3 A12, A13), and what a table says follows from the page records alone.
//!
//! A device's access is not repeated after a fault as a CPU's is. So this table is full from the start, is never taken apart to be filled on demand, and
//! every change can be made without a page for a table: each block of 2 MiB has its own from boot on, whether it is in use or not.
#![forbid(unsafe_code)]

pub mod mmio_pt_alloc;
pub mod mmio_pt_walk;
pub mod mmio_spt_ops;
pub mod mmio_spt_walk;

use crate::abstract_machine::addr::Pa;
use crate::abstract_machine::shape::Shape;
use crate::npt::Level;

/// The table of the SMMUs.
#[derive(Debug)]
pub struct Spt {
    root: Pa,
    shape: Shape,
    largest: Level,
}

impl Spt {
    /// Physical address of the root.
    pub const fn root(&self) -> Pa {
        self.root
    }

    /// The form of the table.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// The largest leaf: blocks of 2 MiB only where every SMMU lets a block become a table, and a table a block, while devices use it
    /// (SMMU_IDR3.BBML = 2: IHI 0070, 3.21.1); else pages.
    pub const fn largest(&self) -> Level {
        self.largest
    }
}
