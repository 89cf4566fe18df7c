//! corevisor: KCore of SeKVM, one module per layer of SeKVM's proof (this code is tested, not proved).
//!
//! Read the modules in this order; a layer calls only layers with smaller numbers (`tests/architecture` checks it). "K" in comments is docs/kcore.md,
//! which says what KCore is and does: K §6.1 is its section 6.1, A4 and D3 are items of K §8.3 and §8.2.
//!
//! | layers | module               | holds                                                              |
//! |--------|----------------------|--------------------------------------------------------------------|
//! | 0      | [`abstract_machine`] | what the layers can do to the machine: registers, tables, TLB, caches |
//! | -      | [`interface`]        | the calls of the host, in one table                                |
//! | 1-4    | [`locks`]            | ticket locks that own their data, ranks                            |
//! | 5-8    | [`npt`]              | translation tables                                                 |
//! | 9-12   | [`spt`]              | the table of the SMMUs: what devices reach                         |
//! | 13-17  | [`memory`]           | who owns each page                                                 |
//! | 18-21  | [`vm`]               | the life of VMs                                                    |
//! | 22-26  | [`mmio`]             | registers that the host reaches through the core                   |
//! | 27-29  | [`vcpu`]             | the registers of a vCPU between host and VM                        |
//! | 30-34  | [`trap`]             | exits and hypercalls                                               |
//! | -      | [`platform`]         | device tree, console, PSCI, boot: beside layer 0                   |
//! | -      | `spec`               | what each primitive has to do, to compare with; not in the binary  |
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
