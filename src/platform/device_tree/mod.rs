//! The boot loader's device tree: what the core learns from it, and the edited tree that the host gets.
//!
//! Pure code: no memory but its arguments, no registers, no heap. Nothing here panics on any input.
//!
//! | step                    | takes                         | gives                                                 |
//! |-------------------------|-------------------------------|-------------------------------------------------------|
//! | [`total_size`]          | first 40 bytes of the blob    | number of bytes that belong to it                     |
//! | [`DeviceTree::normalise`] | the raw blob, a buffer      | [`DeviceTree`]: checked, compact, safe for crate `fdt` |
//! | [`describe`]            | [`DeviceTree`]                | [`MachineDescription`]: plain data                    |
//! | [`withhold`]            | both, what is loaded          | in it, nothing left to the host that is firmware's    |
//! | [`host_device_tree`]    | both, [`HostEdits`], a buffer | the host's blob                                       |
//!
//! The blob is trusted as far as the boot loader is; it is checked all the same, because a broken one must give one
//! clear line ([`DeviceTreeError`]) and never a hang. Source: Devicetree Specification v0.4 (below: "DTSpec").
#![forbid(unsafe_code)]

mod binding;
mod blob;
mod bus;
mod describe;
mod description;
mod edit;
mod error;
mod interrupts;
mod list;
mod normalise;
mod properties;
#[cfg(test)]
mod tests;
mod windows;
mod withheld;

pub use describe::describe;
pub use description::{
    BootModule, Chosen, Console, Cpu, EnableMethod, Gic, MAX_CPUS, MAX_WINDOWS, MAX_WITHHELD, MachineDescription,
    ModuleKind, Mpidr, Psci, PsciConduit, Reserved, Smmu, SmmuVersion, TextRange, Timer,
};
pub use edit::{HostEdits, host_device_tree, host_tree_size};
pub use error::{DeviceTreeError, NodePath, Reason};
pub use list::{Full, List};
pub use normalise::{DeviceTree, MAX_BLOB, MAX_DEPTH, buffer_size, total_size};
pub use withheld::withhold;
