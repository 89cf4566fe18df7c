//! Boards: trusted code that brings the machine up, outside the proof. It stands beside layer 0; the layers reach
//! it only through the machine trait.
//!
//! | module            | holds                                                                        |
//! |-------------------|------------------------------------------------------------------------------|
//! | [`device_tree`]   | what the boot loader's tree says, and the tree that the host gets            |
//! | [`console`], [`logger`], [`ring`] | serial ports, the log, recent lines                          |
//! | [`psci`]          | PSCI for the host, on firmware or without                                    |
//! | [`host_image`], [`checksum`] | the host's kernel: where it travels, whether it is whole          |
//! | [`memory_plan`]   | where the core's own memory goes                                             |
//! | [`cpu_memory`]    | how the memory of many CPUs is laid out                                      |
//! | `entry`           | from boot/entry.S to Rust, and from Rust to the host                         |
//! | `el3`             | what only the secure side can do, if the core is entered there               |
//! | `own_map`         | the core's own stage-1 map                                                   |
//! | `window`          | one look at a page of somebody else                                          |
//! | `boot`, `boot_error` | the order of it all, and what can be wrong                                |
//! | `host_start`      | the host's kernel and device tree                                            |
//! | `gic_tables`      | a GICv3: the registers that the core keeps between host and GIC              |
//! | `smmu`            | SMMUs: whether the core can use them, and their start                        |
//! | `cpus`            | every CPU: its data, its start, PSCI                                         |
//! | `failure`         | what happens when the core itself is wrong                                   |

pub mod checksum;
pub mod console;
pub mod cpu_memory;
pub mod device_tree;
pub mod host_image;
pub mod logger;
pub mod memory_plan;
pub mod psci;
pub mod ring;

#[cfg(target_os = "none")]
pub mod boot;
#[cfg(target_os = "none")]
pub mod boot_error;
#[cfg(target_os = "none")]
pub mod cpus;
#[cfg(target_os = "none")]
pub mod el3;
#[cfg(target_os = "none")]
pub mod entry;
#[cfg(target_os = "none")]
pub mod failure;
#[cfg(target_os = "none")]
pub mod gic_tables;
#[cfg(target_os = "none")]
pub mod host_start;
#[cfg(target_os = "none")]
pub mod own_map;
#[cfg(target_os = "none")]
pub mod smmu;
#[cfg(target_os = "none")]
pub mod window;
