//! Layers 30-34: what the core does when the host or a VM traps.
//!
//! | layer | module               | holds                                                         |
//! |-------|----------------------|---------------------------------------------------------------|
//! | 30    | [`mem_handler`]      | a VM touched what its stage 2 does not map                    |
//! | 31    | [`fault_handler`]    | stage-2 faults of the host; calls and registers of VMs        |
//! | 32    | [`trap_dispatcher`]  | which call, which answer                                      |
//! | 33    | [`trap_handler_raw`] | registers in, dispatcher, registers out                       |
//! | 34    | [`trap_handler`]     | the entry points: from exception class to handler             |
//!
//! This file holds the state that these layers share.
#![forbid(unsafe_code)]

pub mod fault_handler;
pub mod mem_handler;
pub mod trap_dispatcher;
pub mod trap_handler;
pub mod trap_handler_raw;

use crate::abstract_machine::Machine;
use crate::memory::Memory;
use crate::mmio::Mediated;
use crate::vm::{VmLock, Vms};

/// All state of the core.
pub struct Core<M> {
    vms: Vms<M>,
    mediated: Option<Mediated>,
}

impl<M: Machine> Core<M> {
    /// The core over this memory, with places for VMs (`MAX_VMS` of [`crate::vm::no_vm`]).
    pub const fn new(memory: Memory<M>, vms: &'static [VmLock]) -> Self {
        Self { vms: Vms::new(memory, vms), mediated: None }
    }

    /// The same, with registers that the host reaches through the core.
    #[must_use]
    pub fn with_mediated(self, mediated: Option<Mediated>) -> Self {
        Self { mediated, ..self }
    }

    /// The registers that the host reaches through the core.
    pub const fn mediated(&self) -> Option<&Mediated> {
        self.mediated.as_ref()
    }

    /// The VMs.
    pub const fn vms(&self) -> &Vms<M> {
        &self.vms
    }

    /// The memory.
    pub const fn memory(&self) -> &Memory<M> {
        self.vms.memory()
    }

    /// The machine.
    pub const fn machine(&self) -> &M {
        self.vms.machine()
    }
}
