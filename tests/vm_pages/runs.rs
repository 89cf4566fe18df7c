//! Pages that lie anywhere, given or lent in one call.

use crate::bed::{A, B, GUEST, RAM, WINDOW, destroy, gfn, guest, host, pfn, state, two_vms};
use corevisor::abstract_machine::addr::{BLOCK_2M, Pfn, VmId};
use corevisor::abstract_machine::sim::tables::LogEntry;
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::abstract_machine::{Machine, addr::Ipa};
use corevisor::memory::mem_manager::Denied;
use corevisor::memory::memory_ops::{Run, vm_pages};
use corevisor::memory::page_manager::PageState;
use corevisor::spec::world::World;

/// Runs by the address of their first page, and how many.
fn runs(of: &[(u64, u64)]) -> Vec<Run> {
    of.iter().map(|(at, pages)| Run { first: pfn(*at), pages: *pages }).collect()
}

fn give(world: &mut World, vm: VmId, at: u64, of: &[(u64, u64)]) -> Result<u64, Denied> {
    match vm {
        A => world.assign_runs_to_vm(A, gfn(at), &runs(of)),
        _ => world.lend_runs_to_vm(vm, gfn(at), &runs(of), false),
    }
}

/// All that a refused call must leave as it was.
fn all(world: &World) -> String {
    let spec = &world.spec;
    let pools: Vec<_> = spec.vms.values().map(|vm| vm.free).collect();
    format!("{:?} {pools:?} {:?}", spec.pages, [A, B].map(|vm| vm_pages(world.core.memory(), vm)))
}

#[test]
fn pages_that_lie_anywhere_stand_one_behind_the_other_in_the_vm() {
    for vm in [A, B] {
        let mut world = two_vms(8);
        // Downwards; three behind one another; another block, and another bank.
        let of = [(RAM + 0x9000, 1), (RAM + 0x3000, 3), (RAM + 0x2000, 1), (RAM + 5 * BLOCK_2M, 1), (0x1000, 2)];
        let places: Vec<u64> = of.iter().flat_map(|(at, pages)| (0..*pages).map(move |n| at + n * 0x1000)).collect();
        assert!((0..3).all(|cpu| places.iter().all(|at| host(&mut world, cpu, *at))));
        assert_eq!(give(&mut world, vm, GUEST + 0x4000, &of), Ok(8));
        world.check();
        for (n, at) in (0..).zip(&places) {
            let here = GUEST + 0x4000 + n * 0x1000;
            assert!((0..3).all(|cpu| guest(&mut world, cpu, vm, here + 0x18) == Some(at + 0x18)), "page {n}");
            let own = PageState::Private { vm: A, gfn: gfn(here) };
            assert_eq!(state(&mut world, vm, here), Some(if vm == A { own } else { PageState::Lent(1) }));
            assert!((0..3).all(|cpu| host(&mut world, cpu, *at) == (vm == B)), "page {n}");
        }
        assert_eq!((guest(&mut world, 0, vm, GUEST + 0x3000), guest(&mut world, 0, vm, GUEST + 0xc000)), (None, None));
        assert_eq!(vm_pages(world.core.memory(), vm), Some(8));
        destroy(&mut world, vm);
        assert!(places.iter().all(|at| host(&mut world, 0, *at)));
    }
}

#[test]
fn pages_are_mapped_up_to_the_first_that_cannot_be_and_nothing_behind_it() {
    for vm in [A, B] {
        let mut world = two_vms(8);
        assert_eq!(world.assign_page_to_core(pfn(RAM + 0x5000)), Ok(()));
        // The core's, in the middle of a run; a window; page 0; no RAM at all.
        for (n, wrong) in (0..).zip([RAM + 0x5000, WINDOW, 0, 0x7f_ffff_f000]) {
            let (at, first) = (GUEST + n * 0x1_0000, RAM + 0x10_0000 + n * 0x1_0000);
            assert_eq!(give(&mut world, vm, at, &[(first, 2), (wrong, 1), (first + 0x8000, 1)]), Ok(2), "{wrong:#x}");
            assert_eq!(guest(&mut world, 0, vm, at + 0x2000), None);
            assert!(state(&mut world, vm, at + 0x1000).is_some() && host(&mut world, 1, first + 0x8000));
        }
        assert_eq!(give(&mut world, vm, GUEST + 0x8_0000, &[(RAM + 0x3000, 4), (RAM + 0x9000, 1)]), Ok(2));
        // Something stands at the third place.
        assert_eq!(give(&mut world, vm, GUEST + 0x9_2000, &[(RAM + 0xa000, 1)]), Ok(1));
        assert_eq!(give(&mut world, vm, GUEST + 0x9_0000, &[(RAM + 0xd000, 1), (RAM + 0xc000, 1), (RAM, 1)]), Ok(2));
        assert!(host(&mut world, 0, RAM) && !world.spec.pages.contains_key(&pfn(RAM)));
        assert_eq!(vm_pages(world.core.memory(), vm), Some(4 * 2 + 2 + 1 + 2));
        world.check();
    }
}

#[test]
fn a_call_whose_first_page_is_refused_changes_nothing() {
    for vm in [A, B] {
        let mut world = two_vms(2);
        assert_eq!(world.assign_page_to_core(pfn(RAM + 0x5000)), Ok(()));
        assert_eq!(give(&mut world, vm, GUEST, &[(RAM + 0x6000, 1)]), Ok(1));
        assert_eq!(world.hold_mailbox(pfn(RAM + 0x7000)), Ok(()));
        let (before, good) = (all(&world), (RAM + 0x10_0000, 1));
        let lent = if vm == A { Err(Denied::InUse) } else { Ok(1) };
        let cases: [(u64, u64, Result<u64, Denied>); 7] = [
            (GUEST + 0x1000, RAM + 0x5000, Err(Denied::NotOwner)),
            (GUEST + 0x1000, WINDOW, Err(Denied::NotDescribed)),
            (GUEST + 0x1000, 0, Err(Denied::PageZero)),
            (GUEST, RAM + 0x8000, Err(Denied::Occupied)),
            (1 << 39, RAM + 0x8000, Err(Denied::OutOfRange)),
            // The pool has no table for another 2 MiB, none for this one's.
            (GUEST + 8 * BLOCK_2M, RAM + 0x8000, Err(Denied::OutOfPool)),
            (GUEST + 0x1000, RAM + 0x7000, lent),
        ];
        for (at, wrong, why) in cases {
            let refused = give(&mut world, vm, at, &[(wrong, 1), good]);
            assert_eq!(refused.map(|count| count.min(1)), why, "{wrong:#x} at {at:#x}");
            if why.is_err() {
                assert_eq!(all(&world), before, "{wrong:#x} at {at:#x}");
                assert!(guest(&mut world, 0, vm, GUEST + 0x2000).is_none());
            }
        }
        world.check();
    }
    let mut world = two_vms(2);
    let of = runs(&[(RAM, 1)]);
    assert_eq!(world.lend_runs_to_vm(A, gfn(GUEST), &of, false), Err(Denied::WrongKind));
    assert_eq!(world.assign_runs_to_vm(B, gfn(GUEST), &of), Err(Denied::WrongKind));
    assert_eq!(world.lend_runs_to_vm(VmId::new(3), gfn(GUEST), &of, false), Err(Denied::NoSuchVm));
    assert_eq!(world.clear_vm_range(B, 0), Ok(0));
    assert_eq!(world.clear_vm_range(B, 1), Ok(0));
    assert_eq!(world.lend_runs_to_vm(B, gfn(GUEST), &of, false), Err(Denied::Busy));
}

#[test]
fn a_page_that_stands_there_twice_is_lent_twice_or_given_once() {
    let mut world = two_vms(8);
    assert_eq!(give(&mut world, B, GUEST, &[(RAM, 1), (RAM + 0x3000, 1), (RAM, 1)]), Ok(3));
    assert_eq!(state(&mut world, B, GUEST + 0x2000), Some(PageState::Lent(2)));
    assert_eq!(world.take_back_lent(B, gfn(GUEST), 1), Ok(1));
    assert_eq!(state(&mut world, B, GUEST + 0x2000), Some(PageState::Lent(1)));
    // Up to 255 times, in one call too.
    for n in 0..253 {
        assert_eq!(give(&mut world, B, GUEST + (n + 10) * 0x1000, &[(RAM, 1)]), Ok(1));
    }
    let last = give(&mut world, B, GUEST + BLOCK_2M, &[(RAM, 1), (RAM, 1), (RAM + 0x4000, 1)]);
    assert_eq!((last, world.spec.pages.get(&pfn(RAM))), (Ok(1), Some(&PageState::Lent(255))));
    assert_eq!(world.spec.pages.get(&pfn(RAM + 0x4000)), None);
    // Private is private once: the VM would see it at two places.
    assert_eq!(give(&mut world, A, GUEST, &[(RAM + 0x9000, 2), (RAM + 0xa000, 1), (RAM + 0xc000, 1)]), Ok(2));
    assert_eq!(guest(&mut world, 0, A, GUEST + 0x2000), None);
    world.check();
}

#[test]
fn one_call_maps_no_more_than_64_pages_and_none_of_another_table() {
    for vm in [A, B] {
        let mut world = two_vms(8);
        let many: Vec<_> = (0..70).map(|n| (RAM + 0x10_0000 + n * 0x2000, 1)).collect();
        assert_eq!(give(&mut world, vm, GUEST, &many), Ok(64));
        assert_eq!(guest(&mut world, 0, vm, GUEST + 64 * 0x1000), None);
        assert_eq!(give(&mut world, vm, GUEST + 0x10_0000, &[(RAM, 50), (RAM + 0x5_0000, 50)]), Ok(64));
        assert_eq!(guest(&mut world, 0, vm, GUEST + 0x10_0000 + 63 * 0x1000), Some(RAM + 0x5_d000));
        let over = give(&mut world, vm, GUEST + BLOCK_2M - 0x3000, &[(RAM + 4 * BLOCK_2M, 2), (RAM + 3 * BLOCK_2M, 2)]);
        assert_eq!((over, guest(&mut world, 0, vm, GUEST + BLOCK_2M)), (Ok(3), None));
        // A whole block of pages, aligned on both sides, is no block here.
        assert_eq!(give(&mut world, vm, GUEST + 2 * BLOCK_2M, &[(RAM + 5 * BLOCK_2M, 512)]), Ok(64));
        assert_eq!(vm_pages(world.core.memory(), vm), Some(64 + 64 + 3 + 64));
        world.check();
    }
}

#[test]
fn the_tables_are_published_once_for_all_pages_of_a_call() {
    let mut world = two_vms(8);
    assert_eq!(give(&mut world, B, GUEST, &[(RAM, 1)]), Ok(1));
    world.sim().start_log();
    assert_eq!(give(&mut world, B, GUEST + 0x1000, &[(RAM + 0x9000, 1), (RAM + 0x7000, 1), (RAM + 0x5000, 2)]), Ok(4));
    let log = world.sim().take_log();
    let stores: Vec<usize> = (0..log.len()).filter(|n| matches!(log[*n], LogEntry::Store { .. })).collect();
    let publishes: Vec<usize> = (0..log.len()).filter(|n| matches!(log[*n], LogEntry::Barrier)).collect();
    assert_eq!(stores.len(), 4);
    assert!(publishes.last() > stores.last() && publishes.iter().filter(|n| stores.first() < Some(n)).count() == 1);
}

#[test]
fn what_is_lent_read_only_is_not_written_wherever_it_lies() {
    let mut world = two_vms(8);
    assert_eq!(world.lend_runs_to_vm(B, gfn(GUEST), &runs(&[(RAM + 0x9000, 1), (RAM + 0x2000, 2)]), true), Ok(3));
    for n in 0..3 {
        let at = Ipa::new(GUEST + n * 0x1000);
        assert_eq!(world.vm_touch(0, B, at, AccessKind::Write), None);
        assert!(world.vm_touch(0, B, at, AccessKind::Read).is_some());
    }
    world.check();
}

#[test]
fn a18_a_page_that_lies_anywhere_is_zero_before_the_protected_vm_sees_it() {
    let mut world = two_vms(8);
    let places = [RAM + 0x9000, RAM + 0x3000, RAM + 0x2000];
    places.iter().for_each(|at| world.sim().write_page(Pfn::new(at >> 12), 0, &[0x5ec2_e700; 512]));
    assert_eq!(give(&mut world, A, GUEST, &places.map(|at| (at, 1))), Ok(3));
    assert!(places.iter().all(|at| world.sim().read_ram(pfn(*at)) == 0));
    world.check();
}
