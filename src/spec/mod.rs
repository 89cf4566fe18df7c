//! The specification: what each primitive does, as a pure function over an abstract state.
//!
//! Not part of the core: it is compiled on the development machine only, where the layers run on the simulated machine next
//! to it and are compared after every call ("refinement", K §6.4 k). It shares words with the layers (states, errors,
//! levels), but no code that decides anything.
//!
//! | module         | specifies                                                                    | layers |
//! |----------------|------------------------------------------------------------------------------|--------|
//! | [`locks`]      | the line at a ticket lock                                                    | 1-4    |
//! | [`npt`]        | a stage-2 table as a map from gfn to (pfn, level, access)                    | 5-8    |
//! | [`spt`]        | what devices reach                                                           | 9-12   |
//! | [`memory`]     | page -> state, and the transitions of host and core                          | 13-17  |
//! | [`vm_memory`]  | the transitions of VMs: table, pool, memory                                  | 13-17  |
//! | [`vm`]         | the life of VMs: what each call does in each state                           | 18-21  |
//! | [`mmio`]       | what a GICv3 gets of what the host says, and what that reads again           | 22-26  |
//! | [`trap`]       | what each call returns, what each trap leads to                              | 30-34  |
//! | [`vcpu`]       | what an exit of a VM shows, what an entry takes back, what the core serves   | 27-32  |
//! | [`direct`]     | interrupts that the core delivers to running vCPUs by itself                 | 28, 31 |
//! | [`id_registers`] | what a VM sees of the CPU                                                  | 31     |
//! | [`invariants`] | K §6.1 and §6.4 over the concrete state                                      | all    |
//! | [`replay`]     | K §6.1 item 17: every order in which a section's stores may be seen          | 5-8    |
//! | [`world`]      | code and specification side by side, compared after each call                | -      |
//! | [`vm_world`]   | the same for the life of VMs                                                 | 18-21  |
//!
//! A function takes the state and gives the new one: `fn primitive(State, arguments) -> (State, result)`.
//! Where K §8.2 or §8.3 says that the published model is wrong, the corrected behaviour stands here, with the item's name.
#![forbid(unsafe_code)]

pub mod direct;
pub mod id_registers;
pub mod invariants;
pub mod locks;
pub mod memory;
pub mod mmio;
pub mod npt;
pub mod replay;
pub mod spt;
pub mod trap;
pub mod vcpu;
pub mod vm;
pub mod vm_memory;
pub mod vm_world;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use crate::abstract_machine::addr::{Pfn, PhysRange, VmId};
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::sim::Trapped;
use crate::memory::page_manager::PageState;
use crate::npt::VmKind;

/// What the device tree said, as far as it decides anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where.
    pub range: PhysRange,
    /// RAM, or a window of device registers.
    pub is_ram: bool,
}

/// A VM, as far as memory is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Whose memory it runs in.
    pub kind: VmKind,
    /// K: `npts[vm]`. After the cut: what is not taken apart yet.
    pub table: npt::Table,
    /// First page of the root.
    pub root: Pfn,
    /// Whether its memory is on its way back to the host.
    pub cut: bool,
    /// Pages of its pool: free, tables, contexts.
    pub pool: BTreeSet<Pfn>,
    /// How many of them are free.
    pub free: usize,
    /// Those that are contexts.
    pub contexts: BTreeSet<Pfn>,
}

/// The abstract state: K §1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// K: `regions`. Ascending.
    pub regions: Vec<Region>,
    /// K: `s2page`. Pages that are not in state `Host`.
    pub pages: BTreeMap<Pfn, PageState>,
    /// K: `npts[HOST]`.
    pub host: npt::Table,
    /// Free pages in the pool for tables.
    pub free_tables: usize,
    /// VMs that have a table.
    pub vms: BTreeMap<VmId, Vm>,
    /// How often each page is held as a mailbox.
    pub mailboxes: BTreeMap<Pfn, u8>,
    /// How many more pages the core can map for itself.
    pub room_to_adopt: usize,
    /// Below so many free pages of the pool for tables it maps none.
    pub kept_from_adoption: usize,
    /// K: `flatmem`. Pages that were written; all others hold their canary.
    pub ram: BTreeMap<Pfn, u64>,
    /// K: `regs`, the part that a trap reads and writes, for each CPU.
    pub cpus: Vec<Trapped>,
    /// Events counted.
    pub counts: [u64; Event::COUNT],
    /// The log's first sequence number and its text.
    pub log: (u64, Vec<u8>),
}
