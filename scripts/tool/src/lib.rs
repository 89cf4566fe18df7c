//! What the project's scripts are thin over, and what its QEMU tests are written on.
//!
//! Runs on the development machine only; nothing of it is part of the core.
//!
//! | module          | for                                                                        |
//! |-----------------|----------------------------------------------------------------------------|
//! | [`project`]     | where things stand under `target/`                                         |
//! | [`newc`]        | a cpio archive, as Linux wants its initramfs                               |
//! | [`modules`]     | which kernel modules to load, in which order                               |
//! | [`initrd`]      | the host's initramfs: busybox, modules, `/init`, a script                  |
//! | [`arm64_image`] | the header of an arm64 `Image`                                             |
//! | [`sign`]        | the manifest of a protected VM, and the keys that sign it                  |
//! | [`vms`]         | what the mini host starts: an archive of VMs                               |
//! | [`kvm`]         | a Linux host that runs VMs by `/dev/kvm`                                   |
//! | [`bundle`]      | core and host kernel in one bootable file                                  |
//! | [`machine`]     | the QEMU command line of a machine                                         |
//! | [`board`]       | the boards that QEMU has a model of                                        |
//! | [`board_tree`]  | the device trees of QEMU's models of real boards                           |
//! | [`raspi`]       | the Raspberry Pi's device tree, for QEMU's model of it                     |
//! | [`erratum`]     | sequences of instructions that a Cortex-A53 must not get                   |
//! | [`stack`]       | how much of a stack the core's code may need                               |
//! | [`given_tree`]  | the device tree of a machine, with the public keys for the core            |
//! | [`qmp`]         | QEMU's control socket                                                      |
//! | [`run`]         | a run of a machine: console text, outcome, and an end to it in any case    |
//! | [`script`]      | a script for the host's shell from standard input                          |
//! | [`deploy`]      | the files for a board, [`sdcard`] an SD-card image of them                 |
//! | [`bench`]       | the project's numbers                                                      |
//! | [`cli`]         | the command line of the tool                                               |
//!
//! # A test in QEMU
//! ```no_run
//! use corevisor_tool::{machine::Machine, project::Project, run::{Outcome, Run}};
//! use std::time::Duration;
//!
//! let project = Project::find()?;
//! let done = Run::new(&project, Machine::virt().cpu("cortex-a72").smp(2))
//!     .script("nproc; insmod /lib/probe.ko")
//!     .file("/lib/probe.ko", std::fs::read("probe.ko")?)
//!     .timeout(Duration::from_secs(60))
//!     .finish()?;
//! assert_eq!(done.outcome, Outcome::PoweredOff { script: Some(0) }, "{}", done.tail(20));
//! assert!(done.console.contains("\n2\n"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! [`run::Run::start`] gives a running machine instead, to type into, to wait for a line of, and to ask through QMP.

pub mod arm64_image;
pub mod bench;
pub mod board;
pub mod board_tree;
pub mod bundle;
pub mod cli;
pub mod deploy;
pub mod erratum;
pub mod error;
pub mod given_tree;
pub mod initrd;
pub mod kvm;
pub mod kvm_protected;
pub mod machine;
pub mod modules;
pub mod newc;
pub mod outcome;
pub mod project;
pub mod qmp;
pub mod raspi;
pub mod run;
pub mod running;
pub mod script;
pub mod sdcard;
pub mod sign;
pub mod stack;
pub mod vms;
