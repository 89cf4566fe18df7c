//! Layers 5-8: stage-2 translation tables of the host and of VMs, and the core's own stage-1 table.
//!
//! | layer | module       | holds                                                              |
//! |-------|--------------|--------------------------------------------------------------------|
//! | -     | [`descriptor`] | what a table entry is: Arm ARM D8.3                              |
//! | 5     | [`pt_alloc`] | pages for tables, accounted to their owner                         |
//! | 6     | [`pt_walk`]  | one step of a walk                                                 |
//! | 7     | [`npt_walk`] | a whole walk: look up, set, clear, split                           |
//! | 8     | [`npt_ops`]  | the same under the table's lock, with the TLB kept in step         |
//!
//! This file holds the state that these layers share.
#![forbid(unsafe_code)]

pub mod descriptor;
pub mod npt_ops;
pub mod npt_walk;
pub mod pt_alloc;
pub mod pt_walk;

use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_1G, BLOCK_2M, PAGE_SIZE, Pa, VmId};
pub use crate::abstract_machine::shape::Shape;
use crate::locks::{Lock, Rank};

/// Level of a leaf entry: how much it maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// A block of 1 GiB.
    L1 = 1,
    /// A block of 2 MiB.
    L2 = 2,
    /// A page of 4 KiB.
    L3 = 3,
}

impl Level {
    /// Every level, the largest leaf first.
    pub const ALL: [Self; 3] = [Self::L1, Self::L2, Self::L3];

    /// Bytes that a leaf of this level maps.
    pub const fn size(self) -> u64 {
        match self {
            Self::L1 => BLOCK_1G,
            Self::L2 => BLOCK_2M,
            Self::L3 => PAGE_SIZE,
        }
    }

    /// The next smaller leaf.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }
}

/// Whose table it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableOwner {
    /// The core's own stage 1.
    Core,
    /// Stage 2 of the host or of a VM.
    Stage2(VmId),
}

/// One translation table.
#[derive(Debug)]
pub struct Npt {
    owner: TableOwner,
    shape: Shape,
    root: Pa,
    table_pages: usize,
}

impl Npt {
    /// Whose table this is.
    pub const fn owner(&self) -> TableOwner {
        self.owner
    }

    /// The form of the table.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Level of the root's entries; `None` is level 0.
    pub const fn root_level(&self) -> Option<Level> {
        if self.shape.has_level0() { None } else { Some(Level::L1) }
    }

    /// Physical address of the root.
    pub const fn root(&self) -> Pa {
        self.root
    }

    /// Number of pages that the table itself takes, root included.
    pub const fn table_pages(&self) -> usize {
        self.table_pages
    }

    /// The value for VTTBR_EL2 (TTBR0_EL2 for the core): root and VMID. K: `get_pt_vttbr`.
    pub fn vttbr(&self) -> u64 {
        match self.owner {
            TableOwner::Core => self.root.raw(),
            TableOwner::Stage2(vm) => self.root.raw() | u64::from(vm.raw()) << 48,
        }
    }
}

/// Whose memory a VM runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmKind {
    /// Memory lent by the host, which keeps its access.
    Ordinary,
    /// Memory of its own, which the host gave away.
    Protected,
}

/// The stage-2 tables, each behind its lock, and the machine that they live in.
pub struct Npts<M> {
    machine: M,
    host: Lock<Npt>,
}

impl<M: Machine> Npts<M> {
    /// The tables of a machine on which only the host runs yet.
    pub const fn new(machine: M, host: Npt) -> Self {
        Self { machine, host: Lock::new(Rank::Npt, host) }
    }

    /// The machine.
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    /// The lock of the host's table.
    pub const fn host(&self) -> &Lock<Npt> {
        &self.host
    }
}
