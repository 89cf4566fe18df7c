//! Empty pools, windows, addresses at the end of a VM's space, and what a reclaim costs.

use crate::bed::{A, B, BACK, GUEST, RAM, WINDOW, destroy, gfn, guest, host, pfn, state, two_vms};
use corevisor::abstract_machine::addr::{BLOCK_1G, BLOCK_2M, Ipa, Pa, VmId};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::memory::mem_manager::Denied;
use corevisor::memory::memory_ops::vm_pages;
use corevisor::npt::Level;
use corevisor::npt::VmKind::{Ordinary, Protected};
use corevisor::spec::world::{Layout, World};

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
    let layout = Layout { regions, pool: RAM, pool_pages: 16, ia_bits: 48, cpus: 1, smmu: Some(Level::L2) };
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
        let layout =
            Layout { regions, pool: 8 * BLOCK_1G, pool_pages: 64, ia_bits: 40, cpus: 1, smmu: Some(Level::L2) };
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
}
