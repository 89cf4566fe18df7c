//! The life of VMs: each call in each state, random sequences of calls next to their specification, and what K §8.2 and §8.3 found
//! missing elsewhere.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod lives;

/// The GIC's virtual CPU interface.
const GICV: u64 = 0x0804_0000;
use common::lives::SCRATCH;
