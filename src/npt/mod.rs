//! Layers 5-8: stage-2 translation tables of the host and of VMs, and the core's own stage-1 table.
//!
//! | layer | module       | holds                                                              |
//! |-------|--------------|--------------------------------------------------------------------|
//! | -     | [`descriptor`] | what a table entry is: Arm ARM D8.3                              |
//! | -     | [`page_pool`] | pages that the host gave for one VM's tables and contexts         |
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
pub mod page_pool;
pub mod pt_alloc;
pub mod pt_walk;

use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_1G, BLOCK_2M, Gfn, PAGE_SIZE, Pa, VmId};
pub use crate::abstract_machine::shape::Shape;
use crate::interface::calls::MAX_VMS;
use crate::locks::{Lock, Rank};
use page_pool::PagePool;

/// Number of places for VMs: ids 1 to this.
pub const VM_SLOTS: usize = MAX_VMS as usize;

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

/// Where a table's pages come from, and go back to.
#[derive(Debug)]
enum Source {
    /// The core's own pool.
    Machine,
    /// Pages that the host gave for this VM.
    Pool(PagePool),
}

/// One translation table.
#[derive(Debug)]
pub struct Npt {
    owner: TableOwner,
    shape: Shape,
    root: Pa,
    table_pages: usize,
    source: Source,
}

impl Npt {
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

/// How far the memory of a VM is on its way back to the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// It has its memory.
    Live,
    /// No entry of the root is valid any more and no TLB remembers one; what stands below is taken apart from this page on.
    Cut(Gfn),
}

/// The stage-2 table of a VM, with what belongs to it.
#[derive(Debug)]
pub struct VmNpt {
    npt: Npt,
    kind: VmKind,
    phase: Phase,
    /// Pages of RAM that it maps.
    mapped: u64,
}

impl VmNpt {
    /// The table.
    pub const fn npt(&self) -> &Npt {
        &self.npt
    }

    /// Whose memory the VM runs in.
    pub const fn kind(&self) -> VmKind {
        self.kind
    }

    /// Whether the VM still has its memory: its reclaim has not begun.
    pub const fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }
}

/// A VM's place: its table, or nothing, behind its lock.
pub type VmSlot = Lock<Option<VmNpt>>;

/// A place without a VM.
pub const fn no_vm() -> VmSlot {
    Lock::new(Rank::Npt, None)
}

/// The stage-2 tables, each behind its lock, and the machine that they live in.
pub struct Npts<M> {
    machine: M,
    host: Lock<Npt>,
    vms: &'static [VmSlot],
}

impl<M: Machine> Npts<M> {
    /// The tables of a machine on which only the host runs yet. `vms` are the places of VMs, [`VM_SLOTS`] of [`no_vm`].
    pub const fn new(machine: M, host: Npt, vms: &'static [VmSlot]) -> Self {
        Self { machine, host: Lock::new(Rank::Npt, host), vms }
    }

    /// The machine.
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    /// The lock of the host's table.
    pub const fn host(&self) -> &Lock<Npt> {
        &self.host
    }
    /// The place of a VM; none for the host and beyond the last.
    pub fn vm(&self, vm: VmId) -> Option<&VmSlot> {
        self.vms.get(usize::from(vm.raw().checked_sub(1)?))
    }
}
