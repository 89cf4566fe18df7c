//! Layers 27-29: the registers of a vCPU between host and VM.
//!
//! | layer | module             | holds                                                                        |
//! |-------|--------------------|------------------------------------------------------------------------------|
//! | -     | [`exposure`]       | what an exit shows and an entry takes back, as data                          |
//! | -     | [`el1`]            | the EL1 state of who takes an exception, wherever it stands just now         |
//! | 27    | [`vcpu_ops_aux`]   | the steps of the hand-over: what to show, what to take, reset, exceptions    |
//! | 28    | [`vcpu_ops`]       | the hand-over between shadow context and mailbox                             |
//! | 29    | [`ctxt_switch`]    | the world switch: host away, VM in; VM away, host in                         |
//!
//! The shadow context is the core's; the mailbox is the host's, and nothing of a VM's registers gets there but what
//! [`exposure`] names (K §3.5).
#![forbid(unsafe_code)]

pub mod ctxt_switch;
pub mod el1;
pub mod exposure;
pub mod vcpu_ops;
pub mod vcpu_ops_aux;

use crate::interface::mailbox::ExitReason;

/// What follows from an exit of a VM. K: 0 and 1, with opposite meanings in different places (K §3.1); so it is a type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The core has served it: the VM goes on.
    Resume,
    /// It is the host's to serve.
    ToHost(ExitReason),
}
