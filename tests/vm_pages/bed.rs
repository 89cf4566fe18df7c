//! A machine with RAM, a window and page 0, and two VMs on it.

use corevisor::abstract_machine::addr::{BLOCK_2M, Gfn, Ipa, Pa, Pfn, VmId};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::memory::page_manager::PageState;
use corevisor::npt::Level;
use corevisor::npt::VmKind::{Ordinary, Protected};
use corevisor::spec::world::{Layout, Touched, World};

pub const RAM: u64 = 0x4000_0000;
pub const WINDOW: u64 = 0x0900_0000;
/// Holds the core's pool, and roots and pools of VMs.
pub const BACK: u64 = RAM + 16 * BLOCK_2M;
/// Where VMs have their memory.
pub const GUEST: u64 = 0x4000_0000;

pub const A: VmId = VmId::new(1);
pub const B: VmId = VmId::new(2);

pub fn pfn(at: u64) -> Pfn {
    Pfn::new(at >> 12)
}

pub fn gfn(at: u64) -> Gfn {
    Gfn::new(at >> 12)
}

/// 32 MiB of RAM, a bank for what VMs need besides, page 0, a window.
pub fn world() -> World {
    let regions =
        vec![(0, 2 * BLOCK_2M, true), (WINDOW, BLOCK_2M, false), (RAM, 16 * BLOCK_2M, true), (BACK, BLOCK_2M, true)];
    World::new(&Layout { regions, pool: BACK, pool_pages: 32, ia_bits: 40, cpus: 3, smmu: Some(Level::L2) })
}

/// The same with VM 1 protected and VM 2 ordinary, each with `pool` pages.
pub fn two_vms(pool: u64) -> World {
    let mut world = world();
    for (vm, kind, root) in [(A, Protected, BACK + 0x10_0000), (B, Ordinary, BACK + 0x18_0000)] {
        assert_eq!(world.register_vm_table(vm, kind, 39, pfn(root)), Ok(()));
        for n in 1..=pool {
            assert_eq!(world.donate_pool_page(vm, pfn(root + n * 0x1000)), Ok(()));
        }
    }
    world
}

pub fn host(world: &mut World, cpu: usize, at: u64) -> bool {
    world.touch(cpu, Ipa::new(at), AccessKind::Write) == Touched::Reached(Pa::new(at))
}

pub fn guest(world: &mut World, cpu: usize, vm: VmId, at: u64) -> Option<u64> {
    world.vm_touch(cpu, vm, Ipa::new(at), AccessKind::Read).map(Pa::raw)
}

pub fn state(world: &mut World, vm: VmId, at: u64) -> Option<PageState> {
    world.walk_vm(vm, gfn(at)).map(|(_, state)| state)
}

pub fn destroy(world: &mut World, vm: VmId) {
    while world.clear_vm_range(vm, 512).unwrap() > 0 {
        world.check();
    }
    while !world.free_vm_table(vm, 512).unwrap() {
        world.check();
    }
    world.check();
}
