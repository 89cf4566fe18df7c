//! A VM is registered, gets pages and blocks, and leaves nothing behind.

use crate::bed::{A, B, BACK, GUEST, RAM, WINDOW, destroy, gfn, guest, host, pfn, state, two_vms, world};
use corevisor::abstract_machine::addr::{BLOCK_1G, BLOCK_2M, Ipa, Pa, VmId};
use corevisor::abstract_machine::sim::tables::LogEntry;
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::memory::mem_manager::Denied;
use corevisor::memory::memory_ops::{Scrub, vm_kind, vm_pages};
use corevisor::memory::page_manager::PageState;
use corevisor::npt::VmKind::{Ordinary, Protected};
use corevisor::npt::{Level, npt_ops};
use corevisor::spec::world::{Layout, World};

#[test]
fn a_page_given_to_a_protected_vm_is_the_vms_and_out_of_the_hosts_reach_on_every_cpu() {
    let mut world = two_vms(8);
    let at = RAM + 0x5000;
    assert!((0..3).all(|cpu| host(&mut world, cpu, at)));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(at), 1), Ok(1));
    world.check();
    assert!((0..3).all(|cpu| !host(&mut world, cpu, at) && host(&mut world, cpu, at + 0x1000)));
    assert!((0..3).all(|cpu| guest(&mut world, cpu, A, GUEST + 0x18) == Some(at + 0x18)));
    assert_eq!(guest(&mut world, 0, B, GUEST), None);
    let own = Some(PageState::Private { vm: A, gfn: gfn(GUEST) });
    assert_eq!((state(&mut world, A, GUEST), state(&mut world, B, GUEST)), (own, None));
    assert_eq!(vm_pages(world.core.memory(), A), Some(1));
    world.check();
}

#[test]
fn pages_are_given_and_lent_up_to_the_first_that_cannot_be_and_over_the_end_of_a_table() {
    for vm in [A, B] {
        let mut world = two_vms(8);
        let give = |world: &mut World, at: u64, from: u64, pages| match vm {
            A => world.prot_and_map_vm_s2pt(A, gfn(at), pfn(from), pages),
            _ => world.lend_pages_to_vm(B, gfn(at), pfn(from), pages, false),
        };
        assert!((0..8).all(|n| host(&mut world, 0, RAM + n * 0x1000)));
        // Something stands at the third place; the third page is the core's; then nothing is in the way from one table to the next.
        assert_eq!(give(&mut world, GUEST + 0x2000, RAM + 0x10_0000, 1), Ok(1));
        assert_eq!(give(&mut world, GUEST, RAM, 5), Ok(2));
        assert_eq!(world.assign_page_to_core(pfn(RAM + 0x4000)), Ok(()));
        assert_eq!(give(&mut world, GUEST + 0x1_0000, RAM + 0x2000, 5), Ok(2));
        assert_eq!(give(&mut world, GUEST + BLOCK_2M - 0x3000, RAM + 0x5000, 100), Ok(100));
        assert_eq!(give(&mut world, GUEST, RAM + 0x20_0000, 5), Err(Denied::Occupied));
        assert_eq!(give(&mut world, GUEST + 0x2_0000, RAM + 0x4000, 5), Err(Denied::NotOwner));
        assert_eq!(vm_pages(world.core.memory(), vm), Some(1 + 2 + 2 + 100));
        assert_eq!(guest(&mut world, 1, vm, GUEST + BLOCK_2M), Some(RAM + 0x8000));
        assert_eq!(host(&mut world, 0, RAM + 0x3000), vm == B);
        world.check();
        destroy(&mut world, vm);
        assert!([0, 0x1000, 0x2000, 0x3000, 0x5000, 0x6_0000].iter().all(|at| host(&mut world, 0, RAM + at)));
    }
}

#[test]
fn lent_pages_that_lie_anywhere_come_back_together_and_what_was_not_lent_stays() {
    let mut world = two_vms(8);
    let at = |n: u64| GUEST + n * 0x1000;
    // Downwards in memory; a hole; one that is lent at another place, too; a window; 70 behind one another, over the end of a table.
    for n in 0..6 {
        assert_eq!(world.lend_pages_to_vm(B, gfn(at(n)), pfn(RAM + (40 - n) * 0x1000), 1, false), Ok(1));
    }
    assert_eq!(world.lend_pages_to_vm(B, gfn(at(7)), pfn(RAM + 0x1000), 1, false), Ok(1));
    assert_eq!(world.lend_pages_to_vm(B, gfn(at(2000)), pfn(RAM + 0x1000), 1, true), Ok(1));
    assert_eq!(world.map_vm_io(B, gfn(at(8)), Pa::new(WINDOW)), Ok(()));
    assert_eq!(world.lend_pages_to_vm(B, gfn(at(470)), pfn(RAM + 0x10_0000), 70, false), Ok(70));
    let places: Vec<u64> = (0..6).chain([7]).chain(470..540).collect();
    for cpu in 0..3 {
        assert!(places.iter().all(|n| guest(&mut world, cpu, B, at(*n)).is_some()));
    }
    world.sim().start_log();
    assert_eq!(world.take_back_lent(B, gfn(at(0)), 512), Ok(512));
    let log = world.sim().take_log();
    let count = |wanted: fn(&LogEntry) -> bool| log.iter().filter(|entry| wanted(entry)).count();
    assert_eq!(count(|entry| matches!(entry, LogEntry::FlushIpa(_))), 6 + 1 + 42);
    assert_eq!(count(|entry| matches!(entry, LogEntry::Barrier)), 3, "one flush for what stands behind one another");
    assert_eq!(world.take_back_lent(B, gfn(at(512)), 28), Ok(28));
    for cpu in 0..3 {
        assert!(places.iter().all(|n| guest(&mut world, cpu, B, at(*n)).is_none()));
        assert!(guest(&mut world, cpu, B, at(8)).is_some() && guest(&mut world, cpu, B, at(2000)).is_some());
    }
    assert_eq!((state(&mut world, B, at(2000)), vm_pages(world.core.memory(), B)), (Some(PageState::Lent(1)), Some(1)));
    world.check();
    destroy(&mut world, B);
}

#[test]
fn two_mebibytes_that_are_aligned_are_given_as_one_block() {
    let mut world = two_vms(8);
    assert!((0..3).all(|cpu| host(&mut world, cpu, RAM + BLOCK_2M + cpu as u64 * 0x1000)));
    let free = world.spec.free_tables;
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM + BLOCK_2M), 700), Ok(512));
    world.check();
    assert_eq!(world.spec.vms[&A].table.walk(gfn(GUEST)).unwrap().1.level, Level::L2);
    assert_eq!(world.spec.free_tables, free, "the host's block went as one: no table was needed");
    assert!((0..3).all(|cpu| !host(&mut world, cpu, RAM + BLOCK_2M + 0x1f_f000) && host(&mut world, cpu, RAM)));
    assert_eq!(guest(&mut world, 1, A, GUEST + 0x1f_fff8), Some(RAM + BLOCK_2M + 0x1f_fff8));
    // And one of which the host had mapped pages.
    assert_eq!(world.assign_page_to_core(pfn(RAM + 2 * BLOCK_2M)), Ok(()));
    assert!(host(&mut world, 0, RAM + 2 * BLOCK_2M + 0x1000));
    assert_eq!(world.return_page_to_host(pfn(RAM + 2 * BLOCK_2M)), Ok(()));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST + BLOCK_2M), pfn(RAM + 2 * BLOCK_2M), 512), Ok(512));
    assert!((0..3).all(|cpu| !host(&mut world, cpu, RAM + 2 * BLOCK_2M + 0x1000)));
    assert_eq!(vm_pages(world.core.memory(), A), Some(1024));
    world.check();
}

#[test]
fn a_gibibyte_of_the_hosts_is_split_where_a_block_of_it_is_given_away_and_whole_again_after() {
    let regions = vec![(BLOCK_1G, BLOCK_1G + BLOCK_2M, true)];
    let mut world = World::new(&Layout {
        regions,
        pool: 2 * BLOCK_1G,
        pool_pages: 16,
        ia_bits: 40,
        cpus: 2,
        smmu: Some(Level::L2),
    });
    assert_eq!(world.register_vm_table(A, Protected, 40, pfn(2 * BLOCK_1G + 0x2_0000)), Ok(()));
    for n in 0..4 {
        assert_eq!(world.donate_pool_page(A, pfn(2 * BLOCK_1G + 0x2_2000 + n * 0x1000)), Ok(()));
    }
    let level =
        |world: &World, at| npt_ops::walk_s2pt(world.core.memory().npts(), Ipa::new(at)).map(|(level, _)| level);
    assert!(host(&mut world, 0, BLOCK_1G) && level(&world, BLOCK_1G) == Some(Level::L1));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(BLOCK_1G + 7 * BLOCK_2M), 512), Ok(512));
    assert!(level(&world, BLOCK_1G) == Some(Level::L2) && !host(&mut world, 1, BLOCK_1G + 7 * BLOCK_2M));
    destroy(&mut world, A);
    assert!(host(&mut world, 1, BLOCK_1G + 7 * BLOCK_2M) && level(&world, BLOCK_1G) == Some(Level::L1));
    world.check();
}

#[test]
fn a_block_is_given_even_when_the_core_has_no_table_to_split_the_hosts_gibibyte() {
    let regions = vec![(BLOCK_1G, BLOCK_1G + BLOCK_2M, true)];
    let mut world =
        World::new(&Layout { regions, pool: 2 * BLOCK_1G, pool_pages: 4, ia_bits: 40, cpus: 2, smmu: Some(Level::L2) });
    assert_eq!(world.register_vm_table(A, Protected, 39, pfn(2 * BLOCK_1G + 0x2_0000)), Ok(()));
    assert_eq!(world.donate_pool_page(A, pfn(2 * BLOCK_1G + 0x2_2000)), Ok(()));
    assert!(host(&mut world, 0, BLOCK_1G));
    let taken = world.take_from_pool(usize::MAX);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(BLOCK_1G), 512), Ok(512));
    assert!(!host(&mut world, 0, BLOCK_1G));
    world.check();
    world.give_back(taken);
    assert!(host(&mut world, 0, BLOCK_1G + BLOCK_2M));
    world.check();
}

#[test]
fn d11_d14_a_destroyed_vm_leaves_nothing_behind_and_its_id_can_be_used_again() {
    let mut world = two_vms(16);
    for round in 0..3 {
        assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 512), Ok(512));
        assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST + BLOCK_1G), pfn(RAM + BLOCK_2M), 3), Ok(3));
        assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + 2 * BLOCK_2M), 512, false), Ok(512));
        assert_eq!(world.grant_vm_page(A, gfn(GUEST + 0x3000)), Ok(()));
        let context = world.alloc_pool_page(A).unwrap();
        for vm in [A, B] {
            assert!((0..3).all(|cpu| guest(&mut world, cpu, vm, GUEST + 0x3000).is_some()));
        }
        world.vm_touch(0, A, Ipa::new(GUEST), AccessKind::Write);
        world.check();
        assert_eq!(world.free_vm_table(A, 512), Err(Denied::Busy), "memory is mapped");
        while world.clear_vm_range(A, 100).unwrap() > 0 {
            world.check();
        }
        assert_eq!(world.free_vm_table(A, 512), Err(Denied::Busy), "a context is in use");
        world.free_pool_page(A, context);
        destroy(&mut world, A);
        destroy(&mut world, B);
        assert_eq!(
            (world.spec.pages.len(), world.sim().adopted().len()),
            (32, 0),
            "all but the core's own is the host's"
        );
        for at in [RAM, RAM + 0x3000, RAM + BLOCK_2M + 0x2000, BACK + 0x10_0000, BACK + 0x10_1000] {
            assert_eq!(world.sim().read_ram(pfn(at)), 0, "{at:#x}");
            assert!(host(&mut world, 0, at));
        }
        let (kind, other) = if round % 2 == 0 { (Protected, Ordinary) } else { (Protected, Protected) };
        assert_eq!(world.register_vm_table(A, kind, 40, pfn(BACK + 0x10_0000)), Ok(()));
        assert_eq!(
            world.register_vm_table(B, if round == 2 { other } else { Ordinary }, 36, pfn(BACK + 0x18_0000)),
            Ok(())
        );
        for n in 2..12 {
            assert_eq!(world.donate_pool_page(A, pfn(BACK + 0x10_0000 + n * 0x1000)), Ok(()));
            assert_eq!(world.donate_pool_page(B, pfn(BACK + 0x18_0000 + n * 0x1000)), Ok(()));
        }
        // Nothing of the last life is there.
        assert_eq!([A, B].map(|vm| guest(&mut world, 1, vm, GUEST + 0x3000)), [None, None]);
        world.check();
    }
}

#[test]
fn a_vm_is_registered_only_with_a_free_id_a_possible_size_and_a_root_of_the_hosts_own() {
    let mut world = world();
    let root = pfn(BACK + 0x10_0000);
    assert_eq!(world.register_vm_table(VmId::HOST, Protected, 39, root), Err(Denied::NoSuchVm));
    assert_eq!(world.register_vm_table(VmId::new(128), Protected, 39, root), Err(Denied::NoSuchVm));
    for bits in [0, 31, 41, 48, 64] {
        assert_eq!(world.register_vm_table(A, Protected, bits, root), Err(Denied::OutOfRange), "{bits} bits");
    }
    assert_eq!(world.register_vm_table(A, Protected, 40, pfn(BACK + 0x10_1000)), Err(Denied::Misaligned));
    assert_eq!(world.register_vm_table(A, Protected, 39, pfn(BACK)), Err(Denied::NotOwner));
    assert_eq!(world.register_vm_table(A, Protected, 40, pfn(BACK + 31 * 0x1000 - 0x1000)), Err(Denied::NotOwner));
    assert_eq!(world.register_vm_table(A, Protected, 39, pfn(WINDOW)), Err(Denied::NotDescribed));
    world.limit_adoption(1);
    world.sim().write_ram(root, 7);
    assert_eq!(world.register_vm_table(A, Protected, 40, root), Err(Denied::OutOfTables));
    world.check();
    assert!(host(&mut world, 0, BACK + 0x10_0000) && world.sim().adopted().is_empty());
    world.limit_adoption(3);
    assert_eq!(world.register_vm_table(A, Protected, 40, root), Ok(()));
    assert_eq!(world.register_vm_table(A, Ordinary, 39, pfn(BACK + 0x18_0000)), Err(Denied::InUse));
    assert_eq!(world.register_vm_table(B, Ordinary, 39, root), Err(Denied::NotOwner));
    assert_eq!(world.donate_pool_page(A, pfn(BACK + 0x18_0000)), Ok(()));
    assert_eq!(world.donate_pool_page(A, pfn(BACK + 0x18_1000)), Err(Denied::OutOfTables));
    assert_eq!(world.donate_pool_page(B, pfn(BACK + 0x18_1000)), Err(Denied::NoSuchVm));
    assert_eq!(vm_kind(world.core.memory(), A), Some(Protected));
    world.check();
}

#[test]
fn the_hosts_tables_make_room_for_what_a_vm_needs() {
    let mut world = world();
    let all = world.spec.free_tables;
    // A page given away by itself: the block around it is mapped by pages.
    assert_eq!(world.assign_page_to_core(pfn(RAM)), Ok(()));
    assert!(host(&mut world, 0, RAM + 0x1000) && world.spec.free_tables < all);
    let root = pfn(BACK + 0x10_0000);
    // They are forgotten for a VM's root of two pages, and for a page of its pool. The host has its memory back at once.
    world.keep_from_adoption(all);
    assert_eq!(world.register_vm_table(A, Protected, 40, root), Ok(()));
    assert_eq!(world.spec.free_tables, all);
    assert!(host(&mut world, 0, RAM + 0x1000) && world.spec.free_tables < all);
    assert_eq!(world.donate_pool_page(A, pfn(BACK + 0x18_0000)), Ok(()));
    assert!(host(&mut world, 1, RAM + 0x1000));
    world.check();
    // Where they do not help the host hears of it.
    world.keep_from_adoption(all + 1);
    assert_eq!(world.donate_pool_page(A, pfn(BACK + 0x18_1000)), Err(Denied::OutOfTables));
    assert!(host(&mut world, 0, RAM + 0x1000) && host(&mut world, 0, BACK + 0x18_1000));
    world.check();
}

#[test]
fn a_vms_memory_changes_hands_only_as_its_kind_says() {
    let mut world = two_vms(8);
    assert_eq!(world.lend_pages_to_vm(A, gfn(GUEST), pfn(RAM), 1, false), Err(Denied::WrongKind));
    assert_eq!(world.take_back_lent(A, gfn(GUEST), 1), Err(Denied::WrongKind));
    assert_eq!(world.prot_and_map_vm_s2pt(B, gfn(GUEST), pfn(RAM), 1), Err(Denied::WrongKind));
    assert_eq!(world.assign_pfn_to_vm(B, gfn(GUEST), pfn(RAM), Scrub::Keep), Err(Denied::WrongKind));
    assert_eq!(world.grant_vm_page(B, gfn(GUEST)), Err(Denied::WrongKind));
    assert_eq!(world.revoke_vm_page(B, gfn(GUEST)), Err(Denied::WrongKind));
    assert_eq!(world.prot_and_map_vm_s2pt(VmId::new(3), gfn(GUEST), pfn(RAM), 1), Err(Denied::NoSuchVm));
    assert_eq!(world.clear_vm_range(VmId::new(3), 1), Err(Denied::NoSuchVm));
    assert_eq!(world.free_vm_table(VmId::new(3), 1), Err(Denied::NoSuchVm));
    world.check();
}
