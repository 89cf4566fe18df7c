//! What passes between the core and those below it: one table, for the core, for every host (`kserv/`), and for the C
//! header of the Linux driver, which `header::text` makes from it.
//!
//! | module      | holds                                                                              |
//! |-------------|------------------------------------------------------------------------------------|
//! | [`calls`]   | the host's hypercalls: numbers, arguments, errors                                  |
//! | [`guest`]   | a VM's hypercalls: HypSec's pvops, Linux's protected-guest calls, PSCI and SMCCC    |
//! | [`mailbox`] | the page through which a host runs a vCPU                                          |
//! | [`id_registers`] | what a VM sees of the CPU                                                      |
//! | [`boot`]    | the manifest of a protected VM's images, and its signature                         |
//! | `header`    | the same as a C header (development machine only)                                  |
//!
//! All are SMC Calling Convention (Arm DEN 0028) fast calls by `HVC #0`. No pointer means anything here but a physical
//! address; no value is trusted by the core before it was checked.
#![no_std]
#![forbid(unsafe_code)]
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod boot;
pub mod calls;
pub mod guest;
#[cfg(not(target_os = "none"))]
pub mod header;
pub mod id_registers;
pub mod mailbox;

pub use calls::{CORE_UID, CallError, HostCall, INTERFACE_VERSION};
