//! What devices reach, where SMMUs stand between them and memory: what the host may access, at the same addresses, and nothing else. Layers 9-12 with 16.
#![forbid(unsafe_code)]

use corevisor::abstract_machine::addr::{BLOCK_2M, Gfn, Ipa, Pa, Pfn, VmId};
use corevisor::abstract_machine::sim::Sabotage;
use corevisor::abstract_machine::sim::walker::AccessKind::{Read, Write};
use corevisor::memory::memory_ops::Scrub;
use corevisor::memory::oracle::{self, Broken};
use corevisor::memory::page_manager::PageState;
use corevisor::npt::{Level, VmKind};
use corevisor::spec::world::{Layout, World};
use corevisor::spt::mmio_spt_ops::{map_spt, unmap_spt};
use corevisor::spt::mmio_spt_walk::walk_smmu_pt;

const RAM: u64 = 0x4000_0000;
const WINDOW: u64 = 0x0900_0000;
const BACK: u64 = RAM + 4 * BLOCK_2M;
const GUEST: u64 = 0x4000_0000;
const PAGE: u64 = 0x1000;
const A: VmId = VmId::new(1);
const B: VmId = VmId::new(2);

fn pfn(at: u64) -> Pfn {
    Pfn::containing(Pa::new(at))
}

fn gfn(at: u64) -> Gfn {
    Gfn::new(at >> 12)
}

/// 8 MiB of RAM for whatever comes, a bank behind it for what VMs need, a window; an SMMU whose leaves are at most `largest`.
fn machine(largest: Level) -> World {
    let regions = vec![(WINDOW, BLOCK_2M, false), (RAM, 4 * BLOCK_2M, true), (BACK, BLOCK_2M, true)];
    let layout = Layout { regions, pool: BACK, pool_pages: 32, ia_bits: 40, cpus: 2, smmu: Some(largest) };
    let world = World::new(&layout);
    // Devices use these at any moment.
    world.sim().watch(&[RAM, RAM + 0x3000, RAM + 0x9000, RAM + BLOCK_2M + PAGE].map(Ipa::new));
    world
}

/// The same with a protected VM 1 and an ordinary VM 2.
fn with_vms(largest: Level) -> World {
    let mut world = machine(largest);
    for (vm, kind, root) in [(A, VmKind::Protected, BACK + 0x10_0000), (B, VmKind::Ordinary, BACK + 0x18_0000)] {
        assert_eq!(world.register_vm_table(vm, kind, 39, pfn(root)), Ok(()));
        (1..=16).for_each(|n| assert_eq!(world.donate_pool_page(vm, pfn(root + n * PAGE)), Ok(())));
    }
    world
}

fn device(world: &mut World, at: u64) -> bool {
    let read = world.device_touch(Ipa::new(at), Read);
    assert_eq!(world.device_touch(Ipa::new(at), Write), read, "{at:#x}: both or none");
    read
}

fn leaf(world: &World, at: u64) -> Option<Level> {
    let memory = world.core.memory();
    walk_smmu_pt(memory.machine(), &memory.spt().unwrap().acquire(), Ipa::new(at).into()).map(|(level, _)| level)
}

fn destroy(world: &mut World, vm: VmId) {
    while world.clear_vm_range(vm, 512).unwrap() > 0 {}
    while !world.free_vm_table(vm, 512).unwrap() {}
    world.check();
}

#[test]
fn a13_the_hosts_devices_reach_all_its_memory_at_its_own_addresses() {
    for largest in [Level::L2, Level::L3] {
        let mut world = machine(largest);
        for at in [RAM, RAM + 0x5678, RAM + 4 * BLOCK_2M - 1, BACK + BLOCK_2M - PAGE] {
            assert!(device(&mut world, at), "{at:#x}");
        }
        // No host has touched them: a device's access cannot wait for a fault.
        assert_eq!(leaf(&world, RAM), Some(largest));
        world.check();
    }
}

#[test]
fn what_is_no_ram_and_what_is_the_cores_no_device_reaches() {
    let mut world = machine(Level::L2);
    // A window (another device's registers), a hole, the core's own pool.
    for at in [WINDOW, 0, RAM - PAGE, BACK + BLOCK_2M, BACK, BACK + 31 * PAGE] {
        assert!(!device(&mut world, at), "{at:#x}");
    }
    assert!(device(&mut world, BACK + 32 * PAGE));
}

#[test]
fn d13_no_address_beyond_the_table_leads_anywhere() {
    let mut world = machine(Level::L2);
    for at in [1 << 40, (1 << 40) + RAM, (1 << 48) - PAGE, 1 << 48, (1 << 48) | RAM, 1 << 51, !0xfff] {
        assert!(world.sim().device_access(Ipa::new(at), Read).unwrap().is_err(), "{at:#x}");
        assert_eq!(leaf(&world, at), None, "{at:#x}");
    }
    assert!(device(&mut world, RAM));
}

#[test]
fn d10_a_page_whose_number_does_not_fit_32_bits_is_the_one_that_a_device_loses() {
    let far = 1u64 << 45;
    let same_low_bits = far & 0xffff_ffff << 12 | RAM;
    let regions = vec![(RAM, BLOCK_2M, true), (far + RAM, BLOCK_2M, true)];
    let pool = RAM + 0x10_0000;
    let mut world = World::new(&Layout { regions, pool, pool_pages: 8, ia_bits: 48, cpus: 1, smmu: Some(Level::L2) });
    assert_eq!(same_low_bits, RAM, "the two banks differ above bit 43 of the address only");
    assert_eq!(world.assign_page_to_core(pfn(far + RAM + PAGE)), Ok(()));
    assert!(!device(&mut world, far + RAM + PAGE) && device(&mut world, far + RAM) && device(&mut world, RAM + PAGE));
    world.check();
}

#[test]
fn a6_a_device_that_used_a_page_does_not_reach_it_once_it_is_a_vms() {
    for largest in [Level::L2, Level::L3] {
        let mut world = with_vms(largest);
        let page = RAM + 0x3000;
        // The SMMU remembers the page, and its neighbours, from here on.
        assert!(device(&mut world, page) && device(&mut world, page + PAGE) && device(&mut world, page - PAGE));
        assert_eq!(world.assign_pfn_to_vm(A, gfn(GUEST), pfn(page), Scrub::Zero), Ok(()));
        assert!(!device(&mut world, page));
        assert!(device(&mut world, page + PAGE) && device(&mut world, page - PAGE), "the rest of the block stays");
        world.check();
        destroy(&mut world, A);
        assert!(device(&mut world, page));
        assert_eq!((world.sim().read_ram(pfn(page)), leaf(&world, page)), (0, Some(largest)));
    }
}

#[test]
fn a6_the_same_for_a_whole_block() {
    for largest in [Level::L2, Level::L3] {
        let mut world = with_vms(largest);
        assert!([0, 1, 511].iter().all(|n| device(&mut world, RAM + BLOCK_2M + n * PAGE)));
        assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM + BLOCK_2M), 512), Ok(512));
        assert!([0, 1, 511].iter().all(|n| !device(&mut world, RAM + BLOCK_2M + n * PAGE)));
        assert!(device(&mut world, RAM + BLOCK_2M - PAGE) && device(&mut world, RAM + 2 * BLOCK_2M));
        world.check();
        // One page of it is shown to the host: there is a table for it, whoever gave the block away.
        assert_eq!(world.grant_vm_page(A, gfn(GUEST + 7 * PAGE)), Ok(()));
        assert!(device(&mut world, RAM + BLOCK_2M + 7 * PAGE) && !device(&mut world, RAM + BLOCK_2M + 8 * PAGE));
        world.check();
        destroy(&mut world, A);
        assert!(device(&mut world, RAM + BLOCK_2M + 8 * PAGE));
    }
}

#[test]
fn what_a_vm_shows_the_host_its_devices_reach_until_the_last_showing_ends() {
    let mut world = with_vms(Level::L2);
    let page = RAM + 0x9000;
    assert_eq!(world.assign_pfn_to_vm(A, gfn(GUEST), pfn(page), Scrub::Zero), Ok(()));
    assert!(!device(&mut world, page));
    for _ in 0..2 {
        assert_eq!(world.grant_vm_page(A, gfn(GUEST)), Ok(()));
        assert!(device(&mut world, page));
    }
    assert_eq!(world.revoke_vm_page(A, gfn(GUEST)), Ok(()));
    assert!(device(&mut world, page));
    assert_eq!(world.revoke_vm_page(A, gfn(GUEST)), Ok(()));
    assert!(!device(&mut world, page));
    world.check();
}

#[test]
fn memory_that_is_lent_stays_within_devices_reach() {
    let mut world = with_vms(Level::L2);
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM + 0x4000), 2, false), Ok(2));
    assert!(device(&mut world, RAM + 0x4000) && leaf(&world, RAM) == Some(Level::L2));
    destroy(&mut world, B);
    assert!(device(&mut world, RAM + 0x4000));
}

#[test]
fn pages_that_the_core_could_not_adopt_are_within_devices_reach_again() {
    let mut world = with_vms(Level::L2);
    world.limit_adoption(0);
    assert!(world.donate_pool_page(A, pfn(RAM + 0x6000)).is_err());
    assert!(device(&mut world, RAM + 0x6000));
    world.check();
}

#[test]
fn the_oracle_that_runs_on_target_finds_a_page_that_devices_lost_and_one_that_they_kept() {
    for largest in [Level::L2, Level::L3] {
        let mut world = machine(largest);
        assert_eq!(world.assign_page_to_core(pfn(RAM + 0x7000)), Ok(()));
        let memory = world.core.memory();
        let (sim, spt) = (memory.machine(), memory.spt().unwrap());
        assert_eq!(oracle::check(memory), Ok(()));
        unmap_spt(sim, spt, pfn(RAM + BLOCK_2M), 1);
        assert_eq!(oracle::check(memory), Err(Broken::Devices(Pa::new(RAM + BLOCK_2M), PageState::Host)));
        map_spt(sim, spt, pfn(RAM + BLOCK_2M), 1);
        assert_eq!(oracle::check(memory), Ok(()));
        map_spt(sim, spt, pfn(RAM + 0x7000), 1);
        assert_eq!(oracle::check(memory), Err(Broken::Devices(Pa::new(RAM + 0x7000), PageState::Core)));
    }
}

#[test]
#[should_panic(expected = "a device's access to")]
fn an_smmu_that_forgets_nothing_is_noticed() {
    let mut world = with_vms(Level::L2);
    assert!(device(&mut world, RAM));
    world.sim().sabotage(Sabotage::NoSmmuFlush);
    let _ = world.assign_page_to_core(pfn(RAM));
    device(&mut world, RAM);
}
