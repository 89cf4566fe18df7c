//! Two runs that differ in nothing but what protected VMs write into their own memory: to the host they are one. K §6.2.
//!
//! What a VM writes while it shows the page to the host is no secret and the same in both; what it wrote before is one, and shows as soon as
//! the page is shown: from there on the page counts as told, until it is scrubbed (K: declassification by grant).
#![forbid(unsafe_code)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{interesting, vm_layout, vm_steps};
use corevisor::abstract_machine::addr::{Ipa, Pfn, VmId};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::memory::page_manager::PageState;
use corevisor::memory::{mem_manager, memory_ops};
use corevisor::spec::world::World;
use corevisor_evidence::{Rng, factor, tell};

/// Everything that the host can find out: what it may read, whom pages belong to, its own table, what is free.
fn host_view(world: &World, told: &BTreeSet<Pfn>) -> (BTreeMap<Pfn, u64>, String) {
    let spec = &world.spec;
    let may_read = |pfn: &Pfn| spec.pages.get(pfn).is_none_or(|state| state.host_may_access());
    let readable = spec.ram.keys().filter(|pfn| may_read(pfn) && !told.contains(pfn));
    let contents = readable.map(|pfn| (*pfn, world.sim().read_ram(*pfn))).collect();
    let pools: Vec<_> = vm_steps::VMS.iter().map(|vm| memory_ops::pool_info(world.core.memory(), *vm)).collect();
    let leaves = world.sim().enumerate(VmId::HOST);
    (contents, format!("{:?}{:?}{pools:?}{leaves:?}", spec.pages, spec.counts))
}

/// One random sequence, twice: steps compared, and private pages that differed in between.
fn run(seed: u64, steps: usize) -> (usize, usize) {
    let mut runs = [0, 0x5ec2_e700_0000_0000].map(|secret| {
        let mut rng = Rng::new(seed);
        let layout = vm_layout(&mut rng);
        let mut world = World::new(&layout);
        world.secret = secret;
        (world, rng, interesting(&layout))
    });
    let (mut told, mut differed) = (BTreeSet::new(), 0);
    for _ in 0..steps {
        for (world, rng, addrs) in &mut runs {
            vm_steps::step(world, rng, addrs);
            // What the VMs have is written to often.
            for vm in vm_steps::VMS {
                world.vm_touch(0, vm, Ipa::new(rng.pick(&vm_steps::GPAS)), AccessKind::Write);
            }
        }
        let [(a, ..), (b, ..)] = &runs;
        // Shown by the VM's own will; scrubbed when it comes back.
        told.retain(|pfn| matches!(a.spec.pages.get(pfn), Some(PageState::Shared { .. } | PageState::Private { .. })));
        let shared = a.spec.pages.iter().filter(|(_, state)| matches!(state, PageState::Shared { .. }));
        told.extend(shared.map(|(pfn, _)| *pfn));
        assert!(host_view(a, &told) == host_view(b, &told), "seed {seed}: the host sees a difference");
        let private = a.spec.pages.iter().filter(|(_, state)| matches!(state, PageState::Private { .. }));
        differed += private.filter(|(pfn, _)| a.sim().read_ram(**pfn) != b.sim().read_ram(**pfn)).count();
    }
    (steps, differed)
}

#[test]
fn what_a_protected_vm_keeps_to_itself_makes_no_difference_to_the_host() {
    let seeds = 30 * factor();
    let runs = (1..=seeds).map(|seed| run(seed, 120));
    let (steps, differed) = runs.fold((0, 0), |sum, (steps, differed)| (sum.0 + steps, sum.1 + differed));
    let counts = [("seeds", seeds), ("steps", steps as u64), ("differing private pages", differed as u64)];
    tell("noninterference", &counts);
    assert!(differed > 1000);
}

#[test]
fn control_a_difference_in_what_the_host_may_read_is_seen() {
    let mut worlds = [1, 2].map(|content| {
        let mut world = World::new(&vm_layout(&mut Rng::new(1)));
        let page = Pfn::new(0x4_0000);
        world.sim().write_ram(page, content);
        world.spec.ram.insert(page, content);
        world
    });
    let view = |world: &World| host_view(world, &BTreeSet::new());
    assert!(view(&worlds[0]) != view(&worlds[1]));
    for world in &mut worlds {
        assert_eq!(mem_manager::assign_page_to_core(world.core.memory(), Pfn::new(0x4_0000)), Ok(()));
        world.spec.pages.insert(Pfn::new(0x4_0000), PageState::Core);
    }
    assert!(view(&worlds[0]) == view(&worlds[1]));
}
