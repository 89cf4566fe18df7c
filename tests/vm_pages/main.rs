//! What of the machine is a VM's, by example: donation, lending, sharing, reclaim, tables, and each rule of K §8.3 by its number.
//!
//! | module       | its story                                                     |
//! |--------------|---------------------------------------------------------------|
//! | [`give`]     | a VM is registered, gets pages and blocks, and leaves nothing |
//! | [`rules`]    | the rules of K §8.3 by their numbers                          |
//! | [`runs`]       | pages that lie anywhere, in one call                          |
//! | [`share`]    | pages that are shared and lent, and how they are counted      |
//! | [`limits`]   | empty pools, windows, addresses at the end, costs             |
//! | [`bed`]      | the machine and the VMs that they stand on                    |
#![forbid(unsafe_code)]

mod bed;
mod give;
mod limits;
mod rules;
mod runs;
mod share;
