//! Several CPUs at once: some take pages for the core and give them back, all fault. No host access ever reaches a page
//! while it is the core's, on no CPU; afterwards the invariants hold. The same for VMs that come and go on every CPU.
#![forbid(unsafe_code)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use corevisor::abstract_machine::addr::{Gfn, Ipa, Pfn, VmId};
use corevisor::abstract_machine::regs::TrapFrame;
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::abstract_machine::sim::{Sim, Trapped, run_as};
use corevisor::memory::mem_manager::{assign_page_to_core, return_page_to_host};
use corevisor::memory::memory_ops::{
    Scrub, clear_vm_range, donate_pool, free_vm_table, grant_vm_page, prot_and_map_vm_s2pt, register_vm_table,
    revoke_vm_page,
};
use corevisor::npt::{Level, VmKind};
use corevisor::spec::invariants::View;
use corevisor::spec::world::{Layout, World, host_sync};
use corevisor::trap::Core;
use corevisor_evidence::{Rng, factor, tell};

const RAM: u64 = 0x4000_0000;
const POOL: u64 = RAM + (8 << 20);
const CPUS: usize = 4;
/// What the core writes into its pages; nobody else may ever see it.
const SECRET: u64 = 0x5ec2_e700_0000_0000;

/// The host on this CPU touches the page until it gets there or takes an abort.
fn touch(core: &Core<Sim>, cpu: usize, at: u64) -> bool {
    const PC: u64 = 0x1000;
    // Others may take the mapping away in between, but not for ever.
    for _ in 0..1000 {
        match core.machine().host_access(cpu, Ipa::new(at), AccessKind::Read) {
            Ok(_) => return true,
            Err(fault) => {
                let start = Trapped { pc: PC, pstate: 5, vbar_el1: 0x8000, ..Trapped::default() };
                core.machine().set_trapped(cpu, start);
                core.machine().take_abort(cpu, Ipa::new(at), at, AccessKind::Read, fault);
                host_sync(core, &mut TrapFrame::default());
                if core.machine().trapped(cpu).pc != PC {
                    return false;
                }
            }
        }
    }
    panic!("the host's access to {at:#x} on CPU {cpu} faults for ever");
}

fn one_cpu(core: &Core<Sim>, cpu: usize, seed: u64, rounds: u64, done: &AtomicUsize) {
    run_as(cpu);
    let rng = &mut Rng::new(seed * CPUS as u64 + cpu as u64);
    for _ in 0..rounds {
        let at = RAM + rng.below(8 << 8) * 4096;
        match rng.below(4) {
            0 => {
                // A page of this CPU's own: nobody else gives it back.
                let page = Pfn::new((RAM + rng.below(8) * (1 << 20) + (8 + cpu as u64) * 4096) >> 12);
                assert_eq!(assign_page_to_core(core.memory(), page), Ok(()));
                core.machine().write_ram(page, SECRET | page.raw());
                for other in 0..CPUS {
                    let seen = core.machine().host_load(other, page.identity().addr());
                    assert!(seen.is_err(), "CPU {other} reaches {page:?}, which is the core's");
                }
                assert!(!touch(core, cpu, page.addr().raw()));
                assert_eq!(return_page_to_host(core.memory(), page), Ok(()));
            }
            _ => {
                let reached = touch(core, cpu, at);
                if let Ok(seen) = core.machine().host_load(cpu, Ipa::new(at)) {
                    assert_ne!(seen & SECRET, SECRET, "the host reads what the core wrote at {at:#x}");
                }
                let own = (8..8 + CPUS as u64).contains(&(at >> 12 & 0xff));
                assert!(reached || own, "{at:#x} is the host's all the time");
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// On this CPU a protected VM comes and goes, with pages that only this CPU gives: their numbers leave the remainder `cpu` by 4. The host
/// touches them meanwhile from everywhere.
fn one_vm(core: &Core<Sim>, cpu: usize, seed: u64, lives: u64, done: &AtomicUsize) {
    run_as(cpu);
    let (mem, sim, vm) = (core.memory(), core.machine(), VmId::new(1 + cpu as u64 as u16));
    let rng = &mut Rng::new(seed * CPUS as u64 + cpu as u64);
    // Roots and pools of the VMs stand in the last MiB.
    let back = Pfn::new((RAM + (8 << 20) + 0x8_0000 + cpu as u64 * 0x1_0000) >> 12);
    let own = |n: u64| Pfn::new((RAM >> 12) + n * CPUS as u64 + cpu as u64);
    for life in 0..lives {
        assert_eq!(register_vm_table(mem, vm, VmKind::Protected, 39, back), Ok(()));
        sim.load_stage2(vm, back.addr(), 39, 48);
        assert_eq!(donate_pool(mem, vm, Pfn::new(back.raw() + 1), 8), Ok(8));
        let first = rng.below(500);
        for n in 0..12 {
            let (page, gfn) = (own(first + n), Gfn::new(0x4_0000 + n * 3));
            assert_eq!(prot_and_map_vm_s2pt(mem, vm, gfn, page, 1, Scrub::Zero), Ok(1));
            assert_eq!(sim.vm_load(cpu, vm, gfn.addr()), Ok(0), "fresh memory");
            assert_eq!(sim.vm_store(cpu, vm, gfn.addr(), SECRET | life), Ok(()));
            for other in 0..CPUS {
                let seen = sim.host_load(other, page.identity().addr());
                assert!(seen.is_err(), "CPU {other} reaches {page:?}, which is the VM's");
            }
            if n % 3 == 0 {
                assert_eq!(sim.vm_store(cpu, vm, gfn.addr(), 0x5a5a), Ok(()));
                assert_eq!(grant_vm_page(mem, vm, gfn), Ok(()));
                assert!(touch(core, cpu, page.addr().raw()));
                assert_eq!(revoke_vm_page(mem, vm, gfn), Ok(()));
                assert!(!touch(core, cpu, page.addr().raw()));
                assert_eq!(sim.vm_store(cpu, vm, gfn.addr(), SECRET | life), Ok(()));
            }
            let at = RAM + rng.below(8 << 8) * 4096;
            if touch(core, cpu, at)
                && let Ok(seen) = sim.host_load(cpu, Ipa::new(at))
            {
                assert_ne!(seen & SECRET, SECRET, "the host reads what a VM wrote at {at:#x}");
            }
        }
        while clear_vm_range(mem, vm, 5).unwrap() > 0 {}
        while !free_vm_table(mem, vm, 3).unwrap() {}
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a CPU does: the core, its number, a seed, how often, and where it counts what it has done.
type Work = fn(&Core<Sim>, usize, u64, u64, &AtomicUsize);

/// All CPUs do `work` at once, on one machine for each of `seeds`; afterwards the invariants hold. How much was done.
fn all_cpus(seeds: u64, times: u64, work: Work) -> usize {
    let done = AtomicUsize::new(0);
    for seed in 1..=seeds {
        // Also with a pool that ends again and again.
        let pool_pages = if seed % 3 == 0 { 5 } else { 40 };
        let layout = Layout {
            regions: vec![(RAM, 9 << 20, true)],
            pool: POOL,
            pool_pages,
            ia_bits: 40,
            cpus: CPUS,
            smmu: Some(Level::L2),
        };
        let world = World::new(&layout);
        let pool: BTreeSet<Pfn> = world.core_pages();
        std::thread::scope(|scope| {
            for cpu in 0..CPUS {
                let (core, done) = (&world.core, &done);
                scope.spawn(move || work(core, cpu, seed, times, done));
            }
        });
        assert_eq!(View::of(world.core.memory()).check(&pool, &BTreeMap::new()), Ok(()), "seed {seed}");
    }
    done.into_inner()
}

#[test]
fn no_cpu_reaches_a_page_while_it_is_a_vms() {
    let seeds = 4 * factor();
    let lives = all_cpus(seeds, 12, one_vm);
    tell("concurrency: lives of VMs", &[("seeds", seeds), ("CPUs", CPUS as u64), ("lives", lives as u64)]);
}

#[test]
fn no_cpu_reaches_a_page_while_it_is_the_cores() {
    let seeds = 16 * factor();
    let steps = all_cpus(seeds, 1500, one_cpu);
    tell("concurrency: pages of the core", &[("seeds", seeds), ("CPUs", CPUS as u64), ("steps", steps as u64)]);
}
