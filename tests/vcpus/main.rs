//! vCPUs between host and VM: every exit and entry next to its specification, with random registers, and what of them the host finds.
//! A VM is a script: it sets its registers, and says why it leaves.
//!
//! | module            | its story                                                        |
//! |-------------------|------------------------------------------------------------------|
//! | [`specification`] | every exit with its entry, over random registers                 |
//! | [`exits`]         | how a VM leaves, by example, and what it may do there            |
//! | [`entries`]       | how a vCPU starts and goes on: what of the mailbox is taken      |
//! | [`switch`]        | the world switch: its order, and what it flushes                 |
//! | [`direct`]        | interrupts that need no host                                     |
//! | [`kicks`]         | kicks of a CPU that runs a vCPU                                  |
//! | [`bench`]         | what they stand on: a VM with one vCPU, and random traps         |
#![forbid(unsafe_code)]
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod direct;
mod entries;
mod exits;
mod kicks;
mod specification;
mod switch;
