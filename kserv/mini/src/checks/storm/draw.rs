//! Random arguments: mostly near what makes sense, so that calls get far, and often just not.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use corevisor_interface::calls::{HostCall, MAX_IMAGES, MAX_PAGES, MAX_RUNS, MAX_VCPUS, MAX_VMS};
use kserv_model::layout::RAM_BASE;
use kserv_model::random::Random;

use super::super::victim::Victim;
use crate::pages::{BLOCK, PAGE};

/// Addresses that the arguments are drawn from.
pub struct Places {
    /// The pages that may be given away, in one piece, aligned to its size: a call for many pages may go on behind the first half, from
    /// which addresses are drawn, and stays in the second.
    pub arena: u64,
    /// Bytes of it.
    pub size: u64,
    /// Addresses that are nobody's to give: the core's, devices, holes.
    pub forbidden: Vec<u64>,
    /// The VM that is attacked.
    pub victim: Victim,
}

/// How often a call is made, in relation to the others: those that a VM's life needs more often than those that end it.
pub const fn weight(call: HostCall) -> u64 {
    match call {
        HostCall::MapMemory => 16,
        HostCall::DonatePool | HostCall::MapRuns => 10,
        HostCall::RegisterVcpu | HostCall::VerifyVm => 8,
        HostCall::UnmapMemory | HostCall::RemapImagePages => 6,
        HostCall::RegisterVm | HostCall::SetBootInfo => 4,
        HostCall::PowerOffVm | HostCall::DestroyVm => 1,
        HostCall::ReclaimVm | HostCall::VcpuRun => 2,
        _ => 3,
    }
}

/// One call at random, by [`weight`].
pub fn call(random: &mut Random) -> HostCall {
    let mut left = random.below(HostCall::ALL.iter().map(|call| weight(*call)).sum());
    for call in HostCall::ALL {
        match left.checked_sub(weight(*call)) {
            None => return *call,
            Some(rest) => left = rest,
        }
    }
    HostCall::CoreVersion
}

/// An argument by its name in the interface's table. `known`: VMs that there are.
pub fn argument(random: &mut Random, places: &Places, known: &[u64], name: &str) -> u64 {
    if random.percent(2) {
        let next = random.next();
        return random.one_of(&[0, 1, u64::MAX, u64::MAX - PAGE + 1, 1 << 63, PAGE, next]);
    }
    match name {
        "vm" => vm(random, places, known),
        "vcpu" => few(random, 3, MAX_VCPUS),
        "pa" | "mailbox" | "root" | "manifest" | "out" | "tag" | "data" => physical(random, places),
        "gpa" => guest(random),
        // A whole block takes long to scrub.
        "pages" if random.percent(2) => random.one_of(&[MAX_PAGES, MAX_PAGES + 1, 0]),
        "pages" => random.one_of(&[1, 1, 1, 2, 3, 8]),
        "size" => random.one_of(&[PAGE, 1, PAGE + 1, 4 * PAGE, 0, u64::MAX]),
        "kind" => few(random, 2, 2),
        "ipa_bits" if random.percent(5) => random.one_of(&[48, 31, 52, 64]),
        "ipa_bits" => random.one_of(&[32, 36, 39, 40]),
        "image" => few(random, 2, MAX_IMAGES),
        "register" => random.below(200),
        "runs" => random.one_of(&[1, 1, 2, 3, MAX_RUNS as u64, MAX_RUNS as u64 + 1]),
        "run" => physical(random, places) | random.one_of(&[0, 0, 1, 2]),
        "flags" => random.one_of(&[0, 0, 0, 1, 2, !0]),
        "phase" => few(random, 2, 2),
        _ => {
            let next = random.next();
            random.one_of(&[0, 1, next, next >> 32])
        }
    }
}

/// Mostly below `usual`, else about `limit`.
fn few(random: &mut Random, usual: u64, limit: u64) -> u64 {
    if random.percent(90) { random.below(usual) } else { limit - 1 + random.below(3) }
}

fn vm(random: &mut Random, places: &Places, known: &[u64]) -> u64 {
    match random.below(100) {
        0..75 => random.one_of(known),
        75..92 => places.victim.id(),
        _ => random.one_of(&[0, MAX_VMS, MAX_VMS + 1, u64::MAX]),
    }
}

/// Of the attacker's own memory mostly.
pub fn physical(random: &mut Random, places: &Places) -> u64 {
    match random.below(100) {
        0..70 => arena(random, places),
        70..75 => places.arena + random.below(places.size / 2 / BLOCK) * BLOCK,
        75..80 => arena(random, places) + random.one_of(&[1, 8, 0x800]),
        80..92 => random.one_of(&places.victim.private),
        _ => random.one_of(&places.forbidden),
    }
}

/// A page of the arena's first half.
pub fn arena(random: &mut Random, places: &Places) -> u64 {
    places.arena + random.below(places.size / 2 / PAGE) * PAGE
}

/// An address in a VM: a few pages and blocks, so that calls meet.
fn guest(random: &mut Random) -> u64 {
    match random.below(100) {
        0..70 => RAM_BASE + random.below(32) * PAGE,
        70..90 => RAM_BASE + random.below(4) * BLOCK,
        _ => random.one_of(&[
            0,
            RAM_BASE - PAGE,
            RAM_BASE + 1,
            0x0900_0000,
            0x0801_0000,
            (1 << 36) - PAGE,
            1 << 39,
            u64::MAX - PAGE + 1,
        ]),
    }
}
