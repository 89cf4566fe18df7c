//! What of the machine is a VM's, by example: donation, lending, sharing, reclaim, tables, and each rule of K §8.3 by its number.
#![forbid(unsafe_code)]

use corevisor::abstract_machine::addr::{BLOCK_1G, BLOCK_2M, Gfn, Ipa, Pa, Pfn, VmId};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::memory::mem_manager::Denied;
use corevisor::memory::memory_ops::{Scrub, vm_kind, vm_pages};
use corevisor::memory::page_manager::PageState;
use corevisor::npt::VmKind::{Ordinary, Protected};
use corevisor::npt::descriptor::Stage2Access;
use corevisor::npt::{Level, npt_ops};
use corevisor::spec::world::{Layout, Touched, World};

const RAM: u64 = 0x4000_0000;
const WINDOW: u64 = 0x0900_0000;
/// Holds the core's pool, and roots and pools of VMs.
const BACK: u64 = RAM + 16 * BLOCK_2M;
/// Where VMs have their memory.
const GUEST: u64 = 0x4000_0000;

const A: VmId = VmId::new(1);
const B: VmId = VmId::new(2);

fn pfn(at: u64) -> Pfn {
    Pfn::new(at >> 12)
}

fn gfn(at: u64) -> Gfn {
    Gfn::new(at >> 12)
}

/// 32 MiB of RAM, a bank for what VMs need besides, page 0, a window.
fn world() -> World {
    let regions =
        vec![(0, 2 * BLOCK_2M, true), (WINDOW, BLOCK_2M, false), (RAM, 16 * BLOCK_2M, true), (BACK, BLOCK_2M, true)];
    World::new(&Layout { regions, pool: BACK, pool_pages: 32, ia_bits: 40, cpus: 3 })
}

/// The same with VM 1 protected and VM 2 ordinary, each with `pool` pages.
fn two_vms(pool: u64) -> World {
    let mut world = world();
    for (vm, kind, root) in [(A, Protected, BACK + 0x10_0000), (B, Ordinary, BACK + 0x18_0000)] {
        assert_eq!(world.register_vm_table(vm, kind, 39, pfn(root)), Ok(()));
        for n in 1..=pool {
            assert_eq!(world.donate_pool_page(vm, pfn(root + n * 0x1000)), Ok(()));
        }
    }
    world
}

fn host(world: &mut World, cpu: usize, at: u64) -> bool {
    world.touch(cpu, Ipa::new(at), AccessKind::Write) == Touched::Reached(Pa::new(at))
}

fn guest(world: &mut World, cpu: usize, vm: VmId, at: u64) -> Option<u64> {
    world.vm_touch(cpu, vm, Ipa::new(at), AccessKind::Read).map(Pa::raw)
}

fn state(world: &mut World, vm: VmId, at: u64) -> Option<PageState> {
    world.walk_vm(vm, gfn(at)).map(|(_, state)| state)
}

fn destroy(world: &mut World, vm: VmId) {
    while world.clear_vm_range(vm, 512).unwrap() > 0 {
        world.check();
    }
    while !world.free_vm_table(vm, 512).unwrap() {
        world.check();
    }
    world.check();
}

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
    let mut world = World::new(&Layout { regions, pool: 2 * BLOCK_1G, pool_pages: 16, ia_bits: 40, cpus: 2 });
    assert_eq!(world.register_vm_table(A, Protected, 40, pfn(2 * BLOCK_1G + 0x2_0000)), Ok(()));
    for n in 0..4 {
        assert_eq!(world.donate_pool_page(A, pfn(2 * BLOCK_1G + 0x2_2000 + n * 0x1000)), Ok(()));
    }
    let level = |world: &World, at| npt_ops::get_level_s2pt(world.core.memory().npts(), Ipa::new(at));
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
    let mut world = World::new(&Layout { regions, pool: 2 * BLOCK_1G, pool_pages: 4, ia_bits: 40, cpus: 2 });
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

#[test]
fn a1_d11_what_is_a_vms_or_lent_or_a_devices_is_never_given_a_second_time() {
    let mut world = two_vms(8);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 2), Ok(2));
    assert_eq!(world.grant_vm_page(A, gfn(GUEST)), Ok(()));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + 0x2000), 1, false), Ok(1));
    assert_eq!(world.hold_mailbox(pfn(RAM + 0x3000)), Ok(()));
    // Shared, private, lent, a mailbox, the core's, a table's.
    for at in [RAM, RAM + 0x1000, RAM + 0x2000, RAM + 0x3000, BACK, BACK + 0x10_0000] {
        let to = gfn(GUEST + BLOCK_2M);
        // The host is told which of them it can have again.
        let why = if [RAM + 0x2000, RAM + 0x3000].contains(&at) { Denied::InUse } else { Denied::NotOwner };
        assert_eq!(world.prot_and_map_vm_s2pt(A, to, pfn(at), 1), Err(why), "{at:#x}");
        assert_eq!(world.assign_pfn_to_vm(A, to, pfn(at), Scrub::Keep), Err(why), "{at:#x}");
        assert_eq!(world.donate_pool_page(A, pfn(at)), Err(why), "{at:#x}");
        assert_eq!(world.assign_page_to_core(pfn(at)), Err(why), "{at:#x}");
    }
    for at in [RAM, RAM + 0x1000, BACK, BACK + 0x10_0000] {
        assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + BLOCK_2M), pfn(at), 1, false), Err(Denied::NotOwner));
        assert_eq!(world.hold_mailbox(pfn(at)), Err(Denied::NotOwner), "{at:#x}");
    }
    // A block with one such page in it is not given as a block, and the page not at all.
    assert_eq!(world.assign_block_to_vm(A, gfn(GUEST + BLOCK_2M), pfn(RAM)), Err(Denied::NotOwner));
    world.check();
}

#[test]
fn a4_what_a_vm_has_at_an_address_is_never_swapped_for_something_else() {
    let mut world = two_vms(8);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 1), Ok(1));
    world.vm_touch(0, A, Ipa::new(GUEST), AccessKind::Write);
    let wrote = world.sim().read_ram(pfn(RAM));
    for _ in 0..2 {
        assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM + 0x7000), 1), Err(Denied::Occupied));
        assert_eq!(world.assign_pfn_to_vm(A, gfn(GUEST), pfn(RAM + 0x7000), Scrub::Keep), Err(Denied::Occupied));
        assert_eq!(world.map_vm_io(A, gfn(GUEST), Pa::new(WINDOW)), Err(Denied::Occupied));
    }
    assert_eq!(world.assign_block_to_vm(A, gfn(GUEST), pfn(RAM + BLOCK_2M)), Err(Denied::Occupied));
    assert_eq!(world.sim().vm_load(1, A, Ipa::new(GUEST)), Ok(wrote));
    assert!(host(&mut world, 0, RAM + 0x7000), "what was refused is still the host's");
    // Not under a block either, and for an ordinary VM not even the same page.
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + BLOCK_2M), 512, false), Ok(512));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + BLOCK_2M), 1, false), Err(Denied::Occupied));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + 0x5000), pfn(RAM + 0x9000), 1, true), Err(Denied::Occupied));
    world.check();
}

#[test]
fn a5_d14_a_block_that_is_not_aligned_on_both_sides_becomes_pages() {
    let mut world = two_vms(8);
    assert_eq!(world.assign_block_to_vm(A, gfn(GUEST), pfn(RAM + 0x1000)), Err(Denied::Misaligned));
    assert_eq!(world.assign_block_to_vm(A, gfn(GUEST + 0x1000), pfn(RAM)), Err(Denied::Misaligned));
    let ram = Stage2Access::Ram;
    assert_eq!(world.lend_block_to_vm(B, gfn(GUEST), pfn(RAM + 0x1000), ram), Err(Denied::Misaligned));
    assert_eq!(world.lend_block_to_vm(B, gfn(GUEST + 0x1000), pfn(RAM), ram), Err(Denied::Misaligned));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM + 0x1000), 1000), Ok(512));
    assert_eq!(guest(&mut world, 0, A, GUEST + 0x1f_f000), Some(RAM + 0x20_0000));
    assert!(host(&mut world, 0, RAM) && !host(&mut world, 0, RAM + 0x20_0000) && host(&mut world, 0, RAM + 0x20_1000));
    // Both sides off by the same: pages up to where a block may come, then the block.
    let (at, from) = (GUEST + 3 * BLOCK_2M - 0x3000, RAM + 4 * BLOCK_2M - 0x3000);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(at), pfn(from), 800), Ok(3));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(at + 0x3000), pfn(from + 0x3000), 797), Ok(512));
    world.check();
}

#[test]
fn a7_nothing_of_a_vm_is_scrubbed_or_given_away_before_every_cpu_has_forgotten_it() {
    let mut world = two_vms(8);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 3), Ok(3));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + 0x3000), 3, false), Ok(3));
    for vm in [A, B] {
        assert!((0..3).all(|cpu| guest(&mut world, cpu, vm, GUEST + 0x2000).is_some()));
        // One page is enough to lose all: nothing is reached any more, whatever is still in the VM's tables.
        assert_eq!(world.clear_vm_range(vm, 1), Ok(1));
        world.check();
        for at in [GUEST, GUEST + 0x1000, GUEST + 0x2000] {
            assert!((0..3).all(|cpu| guest(&mut world, cpu, vm, at).is_none()), "{at:#x}");
        }
    }
    assert!(!host(&mut world, 0, RAM + 0x1000), "not scrubbed yet");
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM + 0x8000), 1), Err(Denied::Busy));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + 0x8000), 1, false), Err(Denied::Busy));
    assert_eq!(world.take_back_lent(B, gfn(GUEST + 0x1000), 1), Err(Denied::Busy));
    assert_eq!(world.grant_vm_page(A, gfn(GUEST + 0x1000)), Err(Denied::Busy));
    assert_eq!(world.map_vm_io(A, gfn(0), Pa::new(WINDOW)), Err(Denied::Busy));
    assert_eq!(world.donate_pool_page(A, pfn(RAM + 0x8000)), Err(Denied::Busy));
    destroy(&mut world, A);
    destroy(&mut world, B);
    assert!(host(&mut world, 0, RAM + 0x1000));
}

#[test]
fn a14_what_is_no_ram_is_no_vms() {
    let mut world = two_vms(8);
    for at in [WINDOW, WINDOW + BLOCK_2M, RAM - 0x1000, 1 << 45, u64::MAX - 0xfff] {
        assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(at), 1), Err(Denied::NotDescribed), "{at:#x}");
        assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(at), 1, false), Err(Denied::NotDescribed), "{at:#x}");
        assert_eq!(world.donate_pool_page(A, pfn(at)), Err(Denied::NotDescribed), "{at:#x}");
        assert_eq!(world.hold_mailbox(pfn(at)), Err(Denied::NotDescribed), "{at:#x}");
    }
    // A range that runs out of its bank ends there.
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(0), pfn(2 * BLOCK_2M - 0x2000), 5), Ok(2));
    world.check();
}

#[test]
fn a15_page_0_is_nobodys_but_the_hosts() {
    let mut world = two_vms(8);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), Pfn::new(0), 1), Err(Denied::PageZero));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), Pfn::new(0), 512), Err(Denied::PageZero));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), Pfn::new(0), 512, false), Err(Denied::PageZero));
    assert_eq!(world.donate_pool_page(A, Pfn::new(0)), Err(Denied::PageZero));
    assert_eq!(world.register_vm_table(VmId::new(3), Ordinary, 32, Pfn::new(0)), Err(Denied::PageZero));
    assert_eq!(world.hold_mailbox(Pfn::new(0)), Err(Denied::PageZero));
    // A VM may see something at its own address 0.
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(0), pfn(RAM), 1), Ok(1));
    assert!(host(&mut world, 0, 0) && guest(&mut world, 0, A, 0) == Some(RAM));
    world.check();
}

#[test]
fn a18_fresh_pages_of_a_protected_vm_are_zero_and_images_are_what_the_host_left_there() {
    let mut world = two_vms(8);
    for n in 0..4 {
        assert!(host(&mut world, n as usize % 3, RAM + n * 0x1000));
    }
    let left = world.sim().read_ram(pfn(RAM + 0x3000));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 3), Ok(3));
    assert_eq!(world.assign_pfn_to_vm(A, gfn(GUEST + 0x3000), pfn(RAM + 0x3000), Scrub::Keep), Ok(()));
    let seen = [0, 0x1000, 0x2000, 0x3000].map(|at| world.sim().vm_load(0, A, Ipa::new(GUEST + at)));
    assert_eq!(seen, [Ok(0), Ok(0), Ok(0), Ok(left)]);
    world.check();
}

#[test]
fn a21_what_becomes_a_vms_is_clean_in_memory_and_in_no_instruction_cache() {
    let mut world = two_vms(8);
    // Just written by the host, so in its caches.
    assert!((0..4).all(|n| host(&mut world, 0, RAM + n * 0x1000) && host(&mut world, 1, RAM + BLOCK_2M + n * 0x1000)));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 1), Ok(1));
    assert_eq!(world.assign_pfn_to_vm(A, gfn(GUEST + 0x1000), pfn(RAM + 0x1000), Scrub::Keep), Ok(()));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + 0x2000), 2, false), Ok(2));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + BLOCK_2M), pfn(RAM + BLOCK_2M), 512, true), Ok(512));
    let synced = world.sim().synced();
    assert!(synced.iter().any(|range| range.first_pfn() == pfn(RAM + 0x1000) && range.pages() == 1));
    assert!(synced.iter().any(|range| range.first_pfn() == pfn(RAM + BLOCK_2M) && range.pages() == 512));
    // The simulated machine writes down what a VM gets that is not clean.
    world.check();
}

#[test]
fn a22_a_host_that_touches_a_vms_page_takes_an_abort_and_goes_on() {
    let mut world = two_vms(8);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 2), Ok(2));
    for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Execute] {
        assert_eq!(world.touch(0, Ipa::new(RAM), kind), Touched::Aborted);
        assert_eq!(world.touch(2, Ipa::new(BACK + 0x10_0000), kind), Touched::Aborted, "its root");
    }
    assert!(host(&mut world, 0, RAM + 0x2000));
    assert!(!world.is_host_memory(Ipa::new(RAM)) && world.is_host_memory(Ipa::new(RAM + 0x2000)));
    world.check();
}

#[test]
fn a24_what_is_lent_read_only_is_read_and_executed_and_never_written() {
    let mut world = two_vms(8);
    assert_eq!(world.lend_pages_to_vm(B, gfn(0), pfn(RAM), 3, true), Ok(3));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + BLOCK_2M), 512, true), Ok(512));
    for at in [0, 0x2000, GUEST, GUEST + 0x1f_f000] {
        assert!(world.vm_touch(0, B, Ipa::new(at), AccessKind::Read).is_some());
        assert!(world.vm_touch(1, B, Ipa::new(at), AccessKind::Execute).is_some());
        assert!(world.vm_touch(0, B, Ipa::new(at), AccessKind::Write).is_none(), "{at:#x}");
    }
    // Also after the block became pages.
    assert_eq!(world.take_back_lent(B, gfn(GUEST + 0x4000), 1), Ok(1));
    assert!(world.vm_touch(2, B, Ipa::new(GUEST + 0x5000), AccessKind::Read).is_some());
    assert!(world.vm_touch(2, B, Ipa::new(GUEST + 0x5000), AccessKind::Write).is_none());
    assert!(host(&mut world, 0, RAM), "the host writes its own page");
    world.check();
}

#[test]
fn a_shared_page_is_the_hosts_to_see_as_often_as_it_was_shared_and_then_no_more() {
    let mut world = two_vms(8);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 512), Ok(512));
    let at = gfn(GUEST + 0x7000);
    assert_eq!(world.revoke_vm_page(A, at), Err(Denied::NotOwner));
    assert!(!host(&mut world, 0, RAM + 0x7000));
    assert_eq!((world.grant_vm_page(A, at), world.grant_vm_page(A, at)), (Ok(()), Ok(())));
    assert!((0..3).all(|cpu| host(&mut world, cpu, RAM + 0x7000) && !host(&mut world, cpu, RAM + 0x8000)));
    assert_eq!(state(&mut world, A, GUEST + 0x7000), Some(PageState::Shared { vm: A, gfn: at, count: 2 }));
    assert_eq!(world.revoke_vm_page(A, at), Ok(()));
    assert!(host(&mut world, 0, RAM + 0x7000));
    assert_eq!(world.revoke_vm_page(A, at), Ok(()));
    assert!((0..3).all(|cpu| !host(&mut world, cpu, RAM + 0x7000)));
    assert_eq!(guest(&mut world, 1, A, GUEST + 0x7000), Some(RAM + 0x7000), "the VM keeps its block");
    assert_eq!(world.grant_vm_page(A, gfn(GUEST + BLOCK_2M)), Err(Denied::NotOwner));
    for n in 0..255 {
        assert_eq!(world.grant_vm_page(A, at), Ok(()), "{n}");
    }
    assert_eq!(world.grant_vm_page(A, at), Err(Denied::InUse));
    world.check();
    destroy(&mut world, A);
    assert_eq!(world.sim().host_load(0, Ipa::new(RAM + 0x7000)).unwrap_or(0), 0);
}

#[test]
fn a_lent_page_counts_each_place_that_it_is_lent_to_and_each_mailbox() {
    let mut world = two_vms(8);
    let third = VmId::new(3);
    assert_eq!(world.register_vm_table(third, Ordinary, 33, pfn(BACK + 0x17_0000)), Ok(()));
    (1..6).for_each(|n| assert_eq!(world.donate_pool_page(third, pfn(BACK + 0x17_0000 + n * 0x1000)), Ok(())));
    let page = pfn(RAM + 0x1000);
    assert!(host(&mut world, 0, RAM + 0x1000));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), page, 1, false), Ok(1));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + 0x5000), page, 1, true), Ok(1));
    assert_eq!(world.lend_pages_to_vm(third, gfn(GUEST), page, 1, false), Ok(1));
    assert_eq!((world.hold_mailbox(page), world.hold_mailbox(page)), (Ok(()), Ok(())));
    assert_eq!(state(&mut world, B, GUEST), Some(PageState::Lent(5)));
    world.check();
    assert!(host(&mut world, 1, RAM + 0x1000) && guest(&mut world, 0, third, GUEST) == Some(RAM + 0x1000));
    assert_eq!(world.drop_mailbox(page), Ok(()));
    destroy(&mut world, B);
    assert_eq!(state(&mut world, third, GUEST), Some(PageState::Lent(2)));
    assert_eq!(world.take_back_lent(third, gfn(GUEST), 1), Ok(1));
    assert_eq!(world.assign_page_to_core(page), Err(Denied::InUse), "still a mailbox");
    assert_eq!((world.drop_mailbox(page), world.drop_mailbox(page)), (Ok(()), Err(Denied::NotOwner)));
    assert_eq!(world.assign_page_to_core(page), Ok(()));
    world.check();
}

#[test]
fn a_page_is_lent_at_most_255_times() {
    let mut world = two_vms(8);
    for n in 0..255 {
        assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + n * 0x1000), pfn(RAM), 1, false), Ok(1));
    }
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + BLOCK_2M), pfn(RAM), 1, false), Err(Denied::InUse));
    assert_eq!(world.hold_mailbox(pfn(RAM)), Err(Denied::InUse));
    // A block with it in it is not lent as one; nor is anything of it counted.
    let block = world.lend_block_to_vm(B, gfn(GUEST + BLOCK_2M), pfn(RAM), Stage2Access::Ram);
    assert_eq!(block, Err(Denied::InUse));
    world.check();
    assert_eq!(world.take_back_lent(B, gfn(GUEST), 512), Ok(512));
    assert_eq!(world.spec.pages.get(&pfn(RAM)), None);
    world.check();
}

#[test]
fn d14_what_is_taken_back_of_a_lent_block_goes_on_every_cpu_and_the_rest_stays() {
    let mut world = two_vms(8);
    assert!(host(&mut world, 0, RAM));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM), 512, false), Ok(512));
    assert!((0..3).all(|cpu| guest(&mut world, cpu, B, GUEST + 0x6000).is_some()));
    assert_eq!(world.take_back_lent(B, gfn(GUEST + 0x6000), 2), Ok(2));
    world.check();
    for at in [0x5000, 0x6000, 0x7000, 0x8000] {
        let expected = (!(0x6000..0x8000).contains(&at)).then_some(RAM + at);
        assert!((0..3).all(|cpu| guest(&mut world, cpu, B, GUEST + at) == expected), "{at:#x}");
    }
    assert!((0..3).all(|cpu| host(&mut world, cpu, RAM + 0x6000)), "the host had it all the time");
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM + 0x6000), 2), Ok(2));
    // Holes count as done, and so does what lies beyond the VM's addresses.
    assert_eq!(world.take_back_lent(B, gfn(GUEST - 0x5000), 5 + 512), Ok(512));
    assert_eq!(world.take_back_lent(B, gfn(GUEST + BLOCK_2M - 0x5000), 700), Ok(512));
    assert_eq!(vm_pages(world.core.memory(), B), Some(0));
    assert_eq!(world.take_back_lent(B, Gfn::new(1 << 40), 3), Ok(3));
    world.check();
}

#[test]
fn a_vm_whose_pool_is_empty_gets_an_error_and_nothing_else_changes() {
    let mut world = two_vms(2);
    let full = |world: &mut World, at, from| world.prot_and_map_vm_s2pt(A, gfn(at), pfn(from), 1);
    assert_eq!(full(&mut world, GUEST, RAM), Ok(1));
    assert_eq!(full(&mut world, GUEST + BLOCK_2M, RAM + 0x1000), Err(Denied::OutOfPool));
    assert_eq!(
        world.prot_and_map_vm_s2pt(A, gfn(GUEST + BLOCK_2M), pfn(RAM + BLOCK_2M), 512),
        Ok(512),
        "no table needed"
    );
    assert!(host(&mut world, 0, RAM + 0x1000));
    assert_eq!(world.alloc_pool_page(A), Err(Denied::OutOfPool));
    assert_eq!(world.alloc_pool_page(VmId::new(3)), Err(Denied::NoSuchVm));
    // A block cannot be split without a page for the table.
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + 2 * BLOCK_2M), 512, false), Ok(512));
    let context = world.alloc_pool_page(B).unwrap();
    assert_eq!(world.take_back_lent(B, gfn(GUEST + 0x1000), 1), Err(Denied::OutOfPool));
    assert_eq!(world.take_back_lent(B, gfn(GUEST - 0x1000), 3), Ok(1));
    world.check();
    world.free_pool_page(B, context);
    assert_eq!(world.take_back_lent(B, gfn(GUEST + 0x1000), 1), Ok(1));
    assert_eq!(world.donate_pool_page(A, pfn(BACK + 0x17_0000)), Ok(()));
    assert_eq!(full(&mut world, GUEST + 2 * BLOCK_2M, RAM + 0x1000), Ok(1));
    world.check();
}

#[test]
fn a_page_that_was_a_context_comes_out_of_the_pool_as_zeroes() {
    let mut world = two_vms(1);
    // The world fills each context, and looks at each that it gets.
    for _ in 0..2 {
        let context = world.alloc_pool_page(A).unwrap();
        assert_eq!(world.alloc_pool_page(A), Err(Denied::OutOfPool));
        world.check();
        world.free_pool_page(A, context);
        world.check();
    }
}

#[test]
fn a_window_is_never_executable_and_goes_with_its_vm() {
    let mut world = two_vms(8);
    for vm in [A, B] {
        assert_eq!(world.map_vm_io(vm, gfn(0x0801_0000), Pa::new(WINDOW)), Ok(()));
        assert!(world.vm_touch(0, vm, Ipa::new(0x0801_0008), AccessKind::Write).is_some());
        assert!(world.vm_touch(0, vm, Ipa::new(0x0801_0008), AccessKind::Execute).is_none());
        assert_eq!(world.map_vm_io(vm, gfn(0x0802_0000), Pa::new(RAM)), Err(Denied::NotOwner));
        assert_eq!(world.map_vm_io(vm, gfn(0x0802_0000), Pa::new(WINDOW + 8)), Err(Denied::Misaligned));
        assert_eq!(world.map_vm_io(vm, gfn(1 << 39), Pa::new(WINDOW)), Err(Denied::OutOfRange));
        assert_eq!((state(&mut world, vm, 0x0801_0000), vm_pages(world.core.memory(), vm)), (None, Some(0)));
    }
    assert_eq!(world.take_back_lent(B, gfn(0x0801_0000), 1), Ok(1));
    assert!(world.vm_touch(1, B, Ipa::new(0x0801_0008), AccessKind::Read).is_some(), "it was not lent");
    world.check();
    destroy(&mut world, A);
    destroy(&mut world, B);
}

#[test]
fn an_address_beyond_the_vms_space_is_refused() {
    let mut world = two_vms(8);
    for at in [1u64 << 39, 1 << 40, 1 << 47, 1 << 51] {
        assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(at), pfn(RAM), 1), Err(Denied::OutOfRange), "{at:#x}");
        assert_eq!(world.lend_pages_to_vm(B, gfn(at), pfn(RAM), 512, false), Err(Denied::OutOfRange), "{at:#x}");
        assert_eq!((guest(&mut world, 0, A, at), state(&mut world, A, at)), (None, None));
    }
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn((1 << 39) - 0x1000), pfn(RAM), 2), Ok(1));
    world.check();
}

#[test]
fn every_size_of_address_space_has_its_first_and_last_page_and_comes_back_whole() {
    let regions = vec![(RAM, BLOCK_2M, true)];
    let layout = Layout { regions, pool: RAM, pool_pages: 16, ia_bits: 48, cpus: 1 };
    let mut world = World::new(&layout);
    for bits in 32..=48 {
        let kind = if bits % 2 == 0 { Protected } else { Ordinary };
        assert_eq!(world.register_vm_table(A, kind, bits, pfn(RAM + 0x10_0000)), Ok(()), "{bits} bits");
        (0..8).for_each(|n| assert_eq!(world.donate_pool_page(A, pfn(RAM + 0x12_0000 + n * 0x1000)), Ok(())));
        for (n, at) in [0, (1 << bits) - 0x1000].into_iter().enumerate() {
            let from = pfn(RAM + 0x18_0000 + n as u64 * 0x1000);
            let mapped = match kind {
                Protected => world.prot_and_map_vm_s2pt(A, gfn(at), from, 1),
                Ordinary => world.lend_pages_to_vm(A, gfn(at), from, 1, false),
            };
            assert_eq!(mapped, Ok(1), "{bits} bits, {at:#x}");
            assert_eq!(guest(&mut world, 0, A, at), Some(from.addr().raw()));
        }
        assert_eq!(guest(&mut world, 0, A, 1 << bits), None);
        destroy(&mut world, A);
        assert_eq!(world.spec.pages.len(), 16);
    }
}

#[test]
fn what_it_costs_to_reclaim_a_vm_depends_on_what_it_had_and_on_nothing_else() {
    // The same VM on a small machine alone, and on a large one beside another VM.
    let cost = |ram: u64, other: bool| {
        let regions = vec![(BLOCK_1G, ram, true), (8 * BLOCK_1G, BLOCK_2M, true)];
        let layout = Layout { regions, pool: 8 * BLOCK_1G, pool_pages: 64, ia_bits: 40, cpus: 1 };
        let mut world = World::new(&layout);
        for (vm, n) in [(A, 1u64), (B, 2)].into_iter().take(1 + usize::from(other)) {
            let root = 8 * BLOCK_1G + n * 0x8_0000;
            assert_eq!(world.register_vm_table(vm, Protected, 39, pfn(root)), Ok(()));
            (1..9).for_each(|n| assert_eq!(world.donate_pool_page(vm, pfn(root + n * 0x1000)), Ok(())));
            assert_eq!(world.prot_and_map_vm_s2pt(vm, gfn(GUEST), pfn(BLOCK_1G + n * BLOCK_2M), 512), Ok(512));
            assert_eq!(world.prot_and_map_vm_s2pt(vm, gfn(GUEST + BLOCK_2M), pfn(BLOCK_1G + n * 0x1000), 1), Ok(1));
        }
        world.sim().start_log();
        let mem = world.core.memory();
        while corevisor::memory::memory_ops::clear_vm_range(mem, A, 512).unwrap() > 0 {}
        while !corevisor::memory::memory_ops::free_vm_table(mem, A, 512).unwrap() {}
        world.sim().take_log().len()
    };
    let alone = cost(8 * BLOCK_2M, false);
    assert_eq!(cost(BLOCK_1G + 64 * BLOCK_2M, true), alone);
    println!("{alone} steps on tables");
}
