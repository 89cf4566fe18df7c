//! The host's models of a virtual machine: what the core leaves to the untrusted side.
//!
//! | module      | holds                                                                                   |
//! |-------------|-----------------------------------------------------------------------------------------|
//! | [`vm`]      | a VM and its vCPUs as the host sees them; what to do after each exit, before each entry |
//! | [`kvm`]     | the same as `/dev/kvm` shows it: for the Linux driver                                   |
//! | `passage`   | a vCPU's way into a VM and out of it, as both models of a VM have it                    |
//! | [`memory`]  | a VM's memory: what is mapped, what to map next                                         |
//! | [`irq`]     | the state of interrupts, and list registers: shared by both interrupt controllers       |
//! | [`gic`]     | a VM's interrupt controller: one of the two below                                        |
//! | [`gicv2`]   | GICv2 distributor                                                                       |
//! | [`gicv3`]   | GICv3 distributor and redistributors, SGIs by system register                           |
//! | [`its`]     | GICv3's interrupt translation service                                                   |
//! | [`pl011`]   | the serial port                                                                         |
//! | [`psci`]    | the host's half of PSCI                                                                 |
//! | [`vtimer`]  | virtual timer (of the mailbox) and physical timer (emulated)                            |
//! | [`mmio`]    | from the syndrome to an access, and its result back; devices by address                 |
//! | [`sysreg`]  | from the syndrome to a system register                                                  |
//! | [`layout`]  | where everything is in a VM                                                             |
//! | [`image`]   | where a kernel goes                                                                     |
//! | [`boot_info`] | what a VM is about to start with, found in its memory                                 |
//! | [`archive`] | newc archives, read in place                                                            |
//! | [`config`]  | the text that names the VMs of the mini host                                            |
//! | [`random`]  | random numbers that a seed gives again                                                   |
//! | `fdt`       | a VM's device tree (feature `alloc`)                                                    |
//!
//! Nothing here is trusted by the core, and nothing here trusts the VM: any value in a mailbox is served without panic. No lock
//! is taken; the caller holds one per VM. Sources: Arm GIC architecture specifications (IHI 0048B, IHI 0069H), PL011 (DDI 0183G),
//! PSCI (DEN 0022F), QEMU's virt machine for the addresses; K §3.5.
#![no_std]
#![forbid(unsafe_code)]
#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod archive;
pub mod boot_info;
pub mod config;
#[cfg(feature = "alloc")]
pub mod fdt;
pub mod gic;
pub mod gicv2;
pub mod gicv3;
pub mod image;
pub mod irq;
pub mod its;
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod mmio;
mod passage;
pub mod pl011;
pub mod psci;
pub mod random;
pub mod sysreg;
pub mod vm;
pub mod vtimer;
