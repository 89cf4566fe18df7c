//! One random call for a VM, by code and specification.
#![forbid(unsafe_code)]

use corevisor::abstract_machine::addr::{Gfn, Ipa, Pa, Pfn, VmId};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::memory::memory_ops::{Run, Scrub};
use corevisor::npt::VmKind;
use corevisor::npt::descriptor::Stage2Access;
use corevisor::spec::world::World;

use corevisor_evidence::Rng;

/// The VMs of a test machine.
pub const VMS: [VmId; 3] = [VmId::new(1), VmId::new(2), VmId::new(3)];

const BLOCK: u64 = 1 << 21;

/// Where they have something, or not.
pub const GPAS: [u64; 10] = [
    0,
    0x1000,
    0x4000_0000,
    0x4000_1000,
    0x4000_0000 + BLOCK - 0x1000,
    0x4000_0000 + BLOCK,
    0x4000_0000 + 2 * BLOCK,
    0x8000_0000 - 0x1000,
    0xffff_f000,
    1 << 39,
];

/// Whether the page is a VM's root or in its pool: the core gives it back with the VM only.
pub fn belongs_to_vm(world: &World, pfn: Pfn) -> bool {
    world.sim().adopted().contains(&pfn)
}

/// A page of RAM: one of a few, or the first of a block, or any.
fn some_page(world: &World, rng: &mut Rng, addrs: &[u64]) -> Pfn {
    let ram: Vec<_> = world.spec.regions.iter().filter(|region| region.is_ram).map(|region| region.range).collect();
    let bank = rng.pick(&ram);
    let any = bank.base().raw() + rng.below(bank.pages()) * 4096;
    Pfn::containing(Pa::new(match rng.below(8) {
        0 | 1 => rng.pick(addrs),
        2..=4 => any & !(BLOCK - 1),
        5 => any & !0x1_ffff,
        6 => (any & !(BLOCK - 1)) + 0x1000 * rng.below(4),
        _ => any,
    }))
}

/// One call.
pub fn step(world: &mut World, rng: &mut Rng, addrs: &[u64]) {
    let vm = if rng.below(24) == 0 { VmId::new(rng.pick(&[0, 4, 127, 128, 0xffff])) } else { rng.pick(&VMS) };
    let gpa = rng.pick(&GPAS);
    let (gfn, pfn) = (Gfn::new(gpa >> 12), some_page(world, rng, addrs));
    let pages = rng.pick(&[1, 1, 2, 5, 512, 600]);
    let known = world.spec.vms.get(&vm).map(|found| (found.cut, found.kind));
    match (rng.below(26), known) {
        // A VM that is not there is made more often than anything else is asked of it, and gets a pool.
        (0..=12, None) => {
            let kind = rng.pick(&[VmKind::Ordinary, VmKind::Protected]);
            let bits = rng.pick(&[32, 36, 39, 39, 40, 41, 44, 31, 48]);
            if world.register_vm_table(vm, kind, bits, pfn).is_ok() {
                let first = some_page(world, rng, addrs);
                for n in 0..rng.below(12) {
                    let _ = world.donate_pool_page(vm, Pfn::new(first.raw() + n));
                }
            }
        }
        // One on its way out goes on.
        (0..=9, Some((true, _))) => {
            let _ = world.clear_vm_range(vm, rng.pick(&[0, 1, 3, 512]));
            let contexts: Vec<Pfn> = world.spec.vms[&vm].contexts.iter().copied().collect();
            if rng.below(2) == 0 {
                contexts.into_iter().for_each(|page| world.free_pool_page(vm, page));
            }
            let _ = world.free_vm_table(vm, rng.pick(&[0, 1, 4, 512]));
        }
        (0..=2, Some((_, VmKind::Protected))) => _ = world.prot_and_map_vm_s2pt(vm, gfn, pfn, pages),
        (0..=2, _) => _ = world.lend_pages_to_vm(vm, gfn, pfn, pages, rng.below(4) == 0),
        (3, Some((_, VmKind::Ordinary))) => _ = world.take_back_lent(vm, gfn, pages),
        (3 | 4, Some((_, VmKind::Protected))) => {
            let _ = world.grant_vm_page(vm, gfn);
            world.touch(rng.below(2) as usize, Ipa::new(pfn.addr().raw()), AccessKind::Write);
        }
        (3..=5, _) => _ = world.revoke_vm_page(vm, gfn),
        (6, _) => _ = world.lend_pages_to_vm(vm, gfn, pfn, pages, rng.below(4) == 0),
        (7, _) => _ = world.prot_and_map_vm_s2pt(vm, gfn, pfn, pages),
        (8, _) => _ = world.assign_pfn_to_vm(vm, gfn, pfn, rng.pick(&[Scrub::Zero, Scrub::Keep])),
        (9, _) => _ = world.take_back_lent(vm, Gfn::new(gfn.raw().saturating_sub(rng.below(3))), pages),
        (10, _) => {
            let access = rng.pick(&[Stage2Access::Ram, Stage2Access::RamReadOnly]);
            let _ = world.lend_block_to_vm(vm, gfn, pfn, access);
            let _ = world.assign_block_to_vm(vm, gfn, pfn);
        }
        (11, _) => {
            let at = rng.pick(&[0x0900_0000, 0x0900_1000, 0x0900_0008, 0x0900_2000, pfn.addr().raw()]);
            let _ = world.map_vm_io(vm, gfn, Pa::new(at));
        }
        (12, _) => _ = world.donate_pool_page(vm, pfn),
        (13, _) => _ = world.alloc_pool_page(vm),
        (14, Some(_)) => {
            let contexts: Vec<Pfn> = world.spec.vms[&vm].contexts.iter().copied().collect();
            if !contexts.is_empty() {
                world.free_pool_page(vm, rng.pick(&contexts));
            }
        }
        (15, _) => _ = world.hold_mailbox(pfn),
        (16, _) => {
            let held: Vec<Pfn> = world.spec.mailboxes.keys().copied().collect();
            let lent = world.spec.pages.contains_key(&pfn);
            if !held.is_empty() {
                let _ = world.drop_mailbox(rng.pick(&held));
            } else if !lent {
                let _ = world.drop_mailbox(pfn);
            }
        }
        (17, _) if rng.below(3) == 0 => _ = world.clear_vm_range(vm, rng.pick(&[0, 1, 3, 512])),
        (18, _) => _ = world.free_vm_table(vm, rng.pick(&[0, 1, 4, 512])),
        (19, _) if rng.below(4) == 0 => {
            let room = rng.pick(&[0, 1, 3, 1000, usize::MAX / 2]);
            world.limit_adoption(room);
            let all = world.spec.free_tables + world.spec.host.tables.len();
            world.keep_from_adoption(rng.pick(&[0, 0, 1, all / 2, all]));
        }
        (20, _) => _ = world.walk_vm(vm, gfn),
        (21 | 22, known) => {
            let mut runs: Vec<Run> = (0..1 + rng.below(5))
                .map(|_| Run { first: some_page(world, rng, addrs), pages: rng.pick(&[1, 1, 1, 2, 9, 70, 600]) })
                .collect();
            // A page may stand there twice.
            runs.extend_from_within(..rng.below(2) as usize);
            match known {
                Some((_, VmKind::Protected)) => _ = world.assign_runs_to_vm(vm, gfn, &runs),
                _ => _ = world.lend_runs_to_vm(vm, gfn, &runs, rng.below(4) == 0),
            }
        }
        _ => {
            let kind = rng.pick(&[AccessKind::Read, AccessKind::Write, AccessKind::Execute]);
            for vm in VMS {
                world.vm_touch(rng.below(2) as usize, vm, Ipa::new(gpa + rng.below(512) * 8), kind);
            }
        }
    }
}
