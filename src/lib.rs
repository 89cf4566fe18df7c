//! corevisor: KCore of SeKVM, one module per verified layer.
//!
//! Read the modules in this order; a layer calls only what stands above it here (`tests/architecture.rs` checks it).
//!
//! | layers | module               | holds                                                              |
//! |--------|----------------------|--------------------------------------------------------------------|
//! | 0      | [`abstract_machine`] | everything unsafe: registers, table memory, TLB and caches         |
//! | 1-4    | [`locks`]            | ticket locks that own their data, ranks                            |
//! | 5-8    | [`npt`]              | translation tables                                                 |
//! | 9-12   | [`spt`]              | the table of the SMMUs: what devices reach                         |
//! | 13-17  | [`memory`]           | who owns each page                                                 |
//! | -      | [`interface`]        | the calls of the host, in one table                                |
//! | 18-21  | [`vm`]               | the life of VMs                                                    |
//! | 22-26  | [`mmio`]             | registers that the host reaches through the core                   |
//! | 27-29  | [`vcpu`]             | the registers of a vCPU between host and VM                        |
//! | 30-34  | [`trap`]             | exits and hypercalls                                               |
//! | -      | [`platform`]         | device tree, console, PSCI, boot: beside layer 0                   |
#![no_std]
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod abstract_machine;
pub use corevisor_interface as interface;
pub mod locks;
pub mod memory;
pub mod mmio;
pub mod npt;
pub mod platform;
#[cfg(not(target_os = "none"))]
pub mod spec;
pub mod spt;
pub mod trap;
pub mod vcpu;
pub mod vm;
