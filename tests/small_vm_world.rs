//! Every sequence of calls up to a depth over a protected VM, an ordinary VM, and a handful of pages: one block of 2 MiB with two pages
//! of it by name, and two odd pages. After each, code and specification agree and the invariants hold.
//!
//! Besides, every call from every state that the specification can get into by longer sequences: two sequences that lead to one abstract
//! state count as one there.
#![forbid(unsafe_code)]

use corevisor_evidence::tell;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use corevisor::abstract_machine::addr::{Gfn, Ipa, Pfn, VmId};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::memory::memory_ops::Scrub;
use corevisor::npt::{Level, VmKind};
use corevisor::spec::world::{Layout, World};

const BLOCK: u64 = 0x4000_0000;
const ODD: u64 = 0x8000_0000;
const A: VmId = VmId::new(1);
const B: VmId = VmId::new(2);
/// Where both VMs have their memory, one block.
const GUEST: u64 = 0x4000_0000;

#[derive(Clone, Copy, Debug)]
enum Act {
    /// The host stores.
    Host(usize, u64),
    /// The VM loads, on both CPUs.
    Guest(VmId, u64),
    Give(u64, u64, u64),
    Image(u64, u64),
    Lend(u64, u64, u64),
    TakeBack(u64, u64),
    Grant(u64),
    Revoke(u64),
    Mailbox(u64),
    Core(u64),
    Clear(VmId, u64),
    Free(VmId),
}

/// Everything that can happen.
const ACTS: [Act; 19] = [
    Act::Host(0, BLOCK),
    Act::Host(1, BLOCK + 0x1000),
    Act::Guest(A, GUEST),
    Act::Guest(B, GUEST + 0x1000),
    Act::Give(GUEST, BLOCK, 1),
    Act::Give(GUEST, BLOCK, 512),
    Act::Give(GUEST + 0x1000, ODD, 2),
    Act::Image(GUEST, ODD),
    Act::Lend(GUEST, BLOCK, 512),
    Act::Lend(GUEST + 0x1000, BLOCK, 1),
    Act::Lend(GUEST, ODD, 2),
    Act::TakeBack(GUEST + 0x1000, 1),
    Act::Grant(GUEST),
    Act::Revoke(GUEST),
    Act::Mailbox(BLOCK),
    Act::Core(BLOCK + 0x1000),
    Act::Clear(A, 2),
    Act::Clear(B, 512),
    Act::Free(A),
];

fn pfn(at: u64) -> Pfn {
    Pfn::new(at >> 12)
}

fn gfn(at: u64) -> Gfn {
    Gfn::new(at >> 12)
}

fn world() -> World {
    let regions = vec![(BLOCK, 2 << 20, true), (ODD, 0x20_0000, true)];
    let mut world =
        World::new(&Layout { regions, pool: ODD + 0x2000, pool_pages: 4, ia_bits: 39, cpus: 2, smmu: Some(Level::L2) });
    for (vm, kind, root) in [(A, VmKind::Protected, ODD + 0x1_0000), (B, VmKind::Ordinary, ODD + 0x2_0000)] {
        assert_eq!(world.register_vm_table(vm, kind, 39, pfn(root)), Ok(()));
        (1..4).for_each(|n| assert_eq!(world.donate_pool_page(vm, pfn(root + n * 0x1000)), Ok(())));
    }
    world
}

fn act(world: &mut World, act: Act) {
    match act {
        Act::Host(cpu, at) => _ = world.touch(cpu, Ipa::new(at), AccessKind::Write),
        Act::Guest(vm, at) => (0..2).for_each(|cpu| _ = world.vm_touch(cpu, vm, Ipa::new(at), AccessKind::Read)),
        Act::Give(at, from, pages) => _ = world.prot_and_map_vm_s2pt(A, gfn(at), pfn(from), pages),
        Act::Image(at, from) => _ = world.assign_pfn_to_vm(A, gfn(at), pfn(from), Scrub::Keep),
        Act::Lend(at, from, pages) => _ = world.lend_pages_to_vm(B, gfn(at), pfn(from), pages, false),
        Act::TakeBack(at, pages) => _ = world.take_back_lent(B, gfn(at), pages),
        Act::Grant(at) => _ = world.grant_vm_page(A, gfn(at)),
        Act::Revoke(at) => _ = world.revoke_vm_page(A, gfn(at)),
        // Held, or dropped if it is held.
        Act::Mailbox(at) if world.spec.mailboxes.is_empty() => _ = world.hold_mailbox(pfn(at)),
        Act::Mailbox(at) => _ = world.drop_mailbox(pfn(at)),
        Act::Core(at) => {
            if world.assign_page_to_core(pfn(at)).is_err() {
                let _ = world.return_page_to_host(pfn(at));
            }
        }
        Act::Clear(vm, most) => _ = world.clear_vm_range(vm, most),
        Act::Free(vm) => _ = world.free_vm_table(vm, 512),
    }
}

fn after(sequence: &[usize]) -> World {
    let mut world = world();
    sequence.iter().for_each(|n| act(&mut world, ACTS[*n]));
    world.check();
    world
}

/// Runs every sequence of exactly `depth` acts; the shorter ones are its beginnings.
fn every_sequence(depth: u32) -> usize {
    let count = ACTS.len().pow(depth);
    for n in 0..count {
        let sequence: Vec<usize> = (0..depth).map(|place| n / ACTS.len().pow(place) % ACTS.len()).collect();
        after(&sequence).give_way();
    }
    count
}

/// The abstract state without what only counts how it came about.
fn fingerprint(world: &World) -> u64 {
    let spec = &world.spec;
    let zero: Vec<_> = spec.ram.iter().filter(|(_, content)| **content == 0).map(|(pfn, _)| pfn.raw()).collect();
    let mut hasher = DefaultHasher::new();
    let owners: Vec<String> = spec.pages.iter().map(|page| format!("{page:?}")).collect();
    (owners, format!("{:?}{:?}{:?}", spec.host, spec.vms, spec.mailboxes), zero).hash(&mut hasher);
    hasher.finish()
}

/// Every act from every abstract state that is reached by up to `depth - 1` acts: states, calls.
fn every_state(depth: usize) -> (usize, usize) {
    let (mut known, mut last, mut calls) = (HashSet::new(), vec![vec![]], 0);
    for _ in 0..depth {
        let mut next = vec![];
        for sequence in &last {
            for n in 0..ACTS.len() {
                let longer: Vec<usize> = sequence.iter().copied().chain([n]).collect();
                calls += 1;
                let world = after(&longer);
                if known.insert(fingerprint(&world)) {
                    next.push(longer);
                }
                world.give_way();
            }
        }
        last = next;
    }
    (known.len(), calls)
}

#[test]
fn every_sequence_of_up_to_three_calls_agrees_with_the_specification() {
    let counts: Vec<usize> = (1..=3).map(every_sequence).collect();
    let sequences = counts.iter().sum::<usize>() as u64;
    let bounds = [("different calls", ACTS.len() as u64), ("most calls", 3), ("sequences", sequences)];
    tell("small_vm_world: every sequence", &bounds);
}

#[test]
fn every_call_from_every_state_within_three_calls_agrees_with_the_specification() {
    let (states, calls) = every_state(4);
    tell("small_vm_world: every state", &[("most calls", 4), ("sequences", calls as u64), ("states", states as u64)]);
}

#[test]
#[ignore = "long: cargo test --test small_vm_world -- --ignored"]
fn every_call_from_every_state_within_five_calls_agrees_with_the_specification() {
    let (states, calls) = every_state(6);
    tell("small_vm_world: every state", &[("most calls", 6), ("sequences", calls as u64), ("states", states as u64)]);
}
