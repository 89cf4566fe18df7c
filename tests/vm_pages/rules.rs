//! The rules of K §8.3, each by its number.

use crate::bed::{A, B, BACK, GUEST, RAM, WINDOW, destroy, gfn, guest, host, pfn, two_vms};
use corevisor::abstract_machine::Machine;
use corevisor::abstract_machine::addr::{BLOCK_2M, Ipa, Pa, Pfn, PhysRange, VmId};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::memory::mem_manager::Denied;
use corevisor::memory::memory_ops::{Scrub, scrub_for_end};
use corevisor::npt::VmKind::{Ordinary, Protected};
use corevisor::npt::descriptor::Stage2Access;
use corevisor::spec::world::{Touched, World};

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
fn a21_a_vm_that_never_goes_around_the_caches_gets_nothing_cleaned_but_images() {
    let mut world = two_vms(8);
    world.sim().force_write_back();
    assert!((0..4).all(|n| host(&mut world, 0, RAM + n * 0x1000) && host(&mut world, 1, RAM + BLOCK_2M + n * 0x1000)));
    let left = world.sim().read_ram(pfn(RAM + 0x1000));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 1), Ok(1));
    assert_eq!(world.assign_pfn_to_vm(A, gfn(GUEST + 0x1000), pfn(RAM + 0x1000), Scrub::Keep), Ok(()));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + 0x2000), 2, false), Ok(2));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + BLOCK_2M), pfn(RAM + BLOCK_2M), 512, true), Ok(512));
    assert_eq!(world.map_vm_io(A, gfn(0x0801_0000), Pa::new(WINDOW)), Ok(()));
    let synced: Vec<_> = world.sim().synced().into_iter().filter(|range| !range.is_empty()).collect();
    assert_eq!(synced, [PhysRange::of_pages(pfn(RAM + 0x1000), 1)]);
    // Zero for the VM, and what the host left is an image's.
    let seen = [0, 0x1000].map(|at| world.sim().vm_load(0, A, Ipa::new(GUEST + at)));
    assert_eq!(seen, [Ok(0), Ok(left)]);
    let attributes = |vm| world.sim().enumerate(vm).0.into_iter().map(|leaf| leaf.mem_attr()).collect::<Vec<_>>();
    assert_eq!((attributes(A), attributes(B)), (vec![0b0001, 0b0110, 0b0110], vec![0b0110; 3]));
    assert!(world.sim().enumerate(VmId::HOST).0.iter().all(|leaf| leaf.mem_attr() != 0b0110));
    world.check();
}

#[test]
fn a21_what_a_vm_wrote_around_the_caches_is_what_the_host_reads_of_what_comes_back() {
    let mut world = two_vms(8);
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM), 3, false), Ok(3));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + BLOCK_2M), pfn(RAM + BLOCK_2M), 512, false), Ok(512));
    let written = [RAM, RAM + 0x1000, RAM + BLOCK_2M + 0x5000].map(pfn);
    for page in written {
        // The caches hold a line of what was there before; nobody wrote it.
        world.sim().write_around(page, 0x7e57);
        assert_ne!(world.sim().read_ram(page), 0x7e57);
    }
    assert_eq!(world.take_back_lent(B, gfn(GUEST), 1), Ok(1));
    assert_eq!(world.take_back_lent(B, gfn(GUEST + BLOCK_2M), 512), Ok(512));
    while world.clear_vm_range(B, 512).unwrap() > 0 {}
    assert_eq!(written.map(|page| world.sim().read_ram(page)), [0x7e57; 3]);
}

#[test]
fn a18_whoever_goes_around_the_caches_finds_nothing_of_a_vm_in_what_comes_back_nor_in_what_it_shows() {
    for forced in [false, true] {
        let mut world = two_vms(8);
        if forced {
            world.sim().force_write_back();
        }
        let beneath = |world: &World, at| world.sim().read_beneath(pfn(at));
        // A VM wrote to all of these, and what it wrote is in memory too.
        assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 3), Ok(3));
        let touch = |world: &mut World, n: u64| world.vm_touch(0, A, Ipa::new(GUEST + n * 0x1000), AccessKind::Write);
        assert!((0..3).all(|n| touch(&mut world, n).is_some()));
        world.sim().sync_page_to_poc(PhysRange::of_pages(pfn(RAM), 3));
        assert!((0..3).all(|n| beneath(&world, RAM + n * 0x1000) != 0));
        destroy(&mut world, A);
        assert!((0..3).all(|n| beneath(&world, RAM + n * 0x1000) == 0), "forced: {forced}");
        // The next VM shows one of them: memory has zeroes, or what the host itself left there.
        assert_eq!(world.register_vm_table(A, Protected, 39, pfn(BACK + 0x10_0000)), Ok(()));
        for n in 1..=8 {
            assert_eq!(world.donate_pool_page(A, pfn(BACK + 0x10_0000 + n * 0x1000)), Ok(()));
        }
        assert!(host(&mut world, 0, RAM));
        let left = world.sim().read_ram(pfn(RAM));
        assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 1), Ok(1));
        assert_eq!(world.grant_vm_page(A, gfn(GUEST)), Ok(()));
        assert_eq!(world.touch(0, Ipa::new(RAM), AccessKind::Read), Touched::Reached(Pa::new(RAM)));
        assert_eq!(world.sim().host_load(0, Ipa::new(RAM)), Ok(0));
        assert!([0, left].contains(&beneath(&world, RAM)), "forced: {forced}");
        world.check();
    }
}

#[test]
fn a18_whoever_goes_around_the_caches_finds_nothing_that_a_vm_overwrote_before_it_showed_the_page() {
    for forced in [false, true] {
        let mut world = two_vms(8);
        if forced {
            world.sim().force_write_back();
        }
        let (ipa, page) = (Ipa::new(GUEST), pfn(RAM));
        assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), page, 1), Ok(1));
        // A secret, which went to memory as lines do; then the VM makes the page fit to be seen, and that is in the caches.
        assert_eq!(world.sim().vm_store(0, A, ipa, 0x5ec2e7), Ok(()));
        world.sim().sync_page_to_poc(PhysRange::of_pages(page, 1));
        assert_eq!(world.sim().vm_store(0, A, ipa, 0), Ok(()));
        world.spec.ram.insert(page, 0);
        assert_eq!(world.sim().read_beneath(page), 0x5ec2e7);
        let before = world.sim().synced().len();
        assert_eq!(world.grant_vm_page(A, gfn(GUEST)), Ok(()));
        assert_eq!(world.sim().read_beneath(page), 0, "forced: {forced}");
        assert_eq!(world.sim().host_load(0, Ipa::new(RAM)).unwrap_or(0), 0);
        // It is shown already: nothing is cleaned a second time.
        assert_eq!(world.grant_vm_page(A, gfn(GUEST)), Ok(()));
        assert_eq!(world.sim().synced().len() - before, 1);
        world.check();
    }
}

#[test]
fn a21_what_comes_back_of_a_vm_is_in_no_instruction_cache() {
    let mut world = two_vms(8);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 3), Ok(3));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST + BLOCK_2M), pfn(RAM + BLOCK_2M), 512), Ok(512));
    for at in [GUEST, GUEST + 0x2000, GUEST + BLOCK_2M] {
        assert!((0..3).all(|cpu| world.vm_touch(cpu, A, Ipa::new(at), AccessKind::Execute).is_some()), "{at:#x}");
    }
    let before = world.sim().synced().len();
    destroy(&mut world, A);
    assert_eq!(world.sim().synced().len() - before, 1, "once for all of the VM");
    // The simulated machine writes down what the host gets of which a VM's instructions are cached.
    assert!([RAM, RAM + 0x2000, RAM + BLOCK_2M].into_iter().all(|at| host(&mut world, 1, at)));
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
fn at_the_machines_end_nothing_of_a_protected_vm_is_left_in_memory_and_what_is_the_hosts_stays() {
    let mut world = two_vms(8);
    let own = [PhysRange::new(Pa::new(BACK), 32 * 0x1000).unwrap()];
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM + BLOCK_2M), 512), Ok(512));
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST + BLOCK_2M), pfn(RAM + 0x3000), 2), Ok(2));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + 0x5000), 1, false), Ok(1));
    let pages = |first: u64, count: u64| (0..count).map(move |n| pfn(first + n * 0x1000));
    let private = || pages(RAM + BLOCK_2M, 512).chain(pages(RAM + 0x3000, 2));
    let hosts = || pages(RAM, 3).chain(pages(RAM + 0x5000, 3)).chain(pages(RAM + 2 * BLOCK_2M, 2));
    private().chain(hosts()).for_each(|page| world.sim().write_ram(page, 0x5ec));
    let mut told = None;
    let scrubbed = scrub_for_end(world.core.memory(), &own, |vms| {
        told = Some(vms);
        // Without tables and contexts no VM goes on; its own memory follows, once nobody writes there any more.
        assert_eq!(world.sim().read_ram(pfn(RAM + 0x4000)), 0x5ec);
        // A CPU that leaves a VM saves something.
        world.sim().write_ram(pfn(RAM + 0x3000), 0x5ec);
    });
    // Two roots of two pages or less, and two pools, besides.
    assert!(told == Some(true) && (514 + 2 + 16..=514 + 4 + 16).contains(&scrubbed), "{told:?} {scrubbed}");
    assert!(private().all(|page| world.sim().read_ram(page) == 0 && world.sim().read_beneath(page) == 0));
    assert!(hosts().all(|page| world.sim().read_ram(page) == 0x5ec));
}
