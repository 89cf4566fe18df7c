//! One random machine and a random sequence of calls, compared step by step; used with and without planted faults.
#![forbid(unsafe_code)]
#![allow(dead_code, missing_docs)]

use corevisor::abstract_machine::addr::{Ipa, Pa, Pfn, PhysRange, VmId};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::abstract_machine::sim::{Sabotage, Trapped};
use corevisor::npt::npt_ops;
use corevisor::spec::replay;
use corevisor::spec::world::{Layout, World};

use super::vm_steps::{self, belongs_to_vm};
use corevisor_evidence::Rng;

use super::{interesting, random_layout, vm_layout};

const KINDS: [AccessKind; 3] = [AccessKind::Read, AccessKind::Write, AccessKind::Execute];

/// One random step. Most addresses come from a few, so that steps meet each other.
fn step(world: &mut World, rng: &mut Rng, layout: &Layout, addrs: &[u64], taken: &mut Vec<Pa>) {
    let addr = match rng.below(8) {
        0 => {
            let (base, size, _) = rng.pick(&layout.regions);
            base + rng.below(size)
        }
        1 => rng.next() >> rng.below(64),
        _ => rng.pick(addrs),
    };
    let (cpu, pfn) = (rng.below(layout.cpus as u64) as usize, Pfn::containing(Pa::new(addr)));
    match rng.below(22) {
        20..=21 => {
            world.device_touch(Ipa::new(addr & ((1 << 52) - 1)), rng.pick(&KINDS[..2]));
        }
        0..=6 => {
            world.touch(cpu, Ipa::new(addr & ((1 << 52) - 1)), rng.pick(&KINDS));
        }
        7 => {
            let _ = world.map_page_host(Ipa::new(addr));
        }
        8..=10 => {
            let _ = world.assign_page_to_core(pfn);
        }
        11..=13 => {
            let kept = |world: &World, pfn| in_pool(layout, pfn) || belongs_to_vm(world, pfn);
            let core: Vec<Pfn> = world.core_pages().into_iter().filter(|pfn| !kept(world, *pfn)).collect();
            let pfn = if core.is_empty() || rng.below(8) == 0 { pfn } else { rng.pick(&core) };
            if !kept(world, pfn) {
                let _ = world.return_page_to_host(pfn);
            }
        }
        14 => {
            let end = addr.saturating_add(rng.below(5 * 4096));
            let _ = world.protect_el2_mem(PhysRange::between(Pa::new(addr), Pa::new(end)));
        }
        15 => {
            world.is_host_memory(Ipa::new(addr));
        }
        16 if taken.is_empty() => {
            // The pool all but ends.
            let leave = rng.below(4) as usize;
            let free = world.spec.free_tables;
            *taken = world.take_from_pool(free.saturating_sub(leave));
        }
        16 => world.give_back(std::mem::take(taken)),
        17 => {
            let (class, immediate) = (rng.pick(&[0x16, 0x17]), rng.pick(&[0, 0, 0, 1]));
            let function = rng.pick(&[0, 1, 0xc600_8000, 0xc600_8001, 0xc600_8002, 0xc400_0003, 0xc400_0001]);
            world.call(cpu, class, immediate, [function, rng.pick(&[0, 4, 5, addr]), addr, rng.next()]);
        }
        18 => {
            // Any trap at all: random class, random rest.
            let esr = rng.below(64) << 26 | 1 << 25 | rng.next() & 0x1ff_ffff;
            let (pc, pstate) = (rng.next() & !3, rng.pick(&[0x0, 0x4, 0x5, 0x10, 0x3c5, 0x6000_0000, 0x0140_0004]));
            let regs = Trapped { esr, hpfar: addr & !0xfff, far: rng.next(), pc, pstate, ..Trapped::default() };
            let regs = Trapped { sctlr_el1: rng.next(), vbar_el1: rng.next() & !0x7ff, ..regs };
            world.trap(cpu, regs, std::array::from_fn(|_| rng.next()));
        }
        _ => {
            npt_ops::clear_run_host(world.core.memory().npts(), pfn, 1);
            let (table, free) = (world.spec.host.clone(), world.spec.free_tables);
            (world.spec.host, world.spec.free_tables) = corevisor::spec::npt::clear_pfn_host(table, free, pfn);
        }
    }
}

fn in_pool(layout: &Layout, pfn: Pfn) -> bool {
    let addr = pfn.addr().raw();
    addr >= layout.pool && addr < layout.pool + layout.pool_pages * 4096
}

/// What machines a sequence runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Machines {
    /// The host alone, on small banks.
    Small,
    /// The host alone, with a bank of whole GiB.
    Large,
    /// Host and VMs.
    WithVms,
}

/// One machine and its sequence: number of calls compared, number of memory states replayed.
pub fn run(seed: u64, machines: Machines, steps: usize, sabotage: Option<Sabotage>) -> (usize, usize) {
    run_with(&mut Rng::new(seed), machines, steps, sabotage)
}

/// The same with these numbers, until they are used up.
pub fn run_with(rng: &mut Rng, machines: Machines, steps: usize, sabotage: Option<Sabotage>) -> (usize, usize) {
    let layout = match machines {
        Machines::WithVms => vm_layout(rng),
        other => random_layout(rng, other == Machines::Large),
    };
    let mut world = World::new(&layout);
    let text = b"the log of a machine that was never built".to_vec();
    world.sim().set_log_text(7, &text);
    // Half of all machines have FEAT_S2FWB.
    if layout.pool_pages % 2 == 1 {
        world.sim().force_write_back();
    }
    world.spec.log = (7, text);
    let (mut taken, mut replayed) = (vec![], 0);
    // A few addresses, some of which every CPU also walks to by speculation.
    let all = interesting(&layout);
    let addrs: Vec<u64> = (0..12).map(|_| rng.pick(&all)).collect();
    let mut watched: Vec<_> = addrs.iter().take(4).map(|addr| (VmId::HOST, Ipa::new(*addr))).collect();
    if machines == Machines::WithVms {
        watched.extend(vm_steps::VMS.iter().map(|vm| (*vm, Ipa::new(rng.pick(&vm_steps::GPAS)))));
    }
    world.sim().watch_vms(&watched);
    world.check();
    if let Some(sabotage) = sabotage {
        world.sim().sabotage(sabotage);
    }
    for n in 0..steps {
        if rng.is_spent() {
            break;
        }
        // Replay is dear: every eighth step.
        let before = (n % 8 == 0).then(|| world.sim().snapshot());
        world.sim().start_log();
        if machines == Machines::WithVms && rng.below(4) > 0 {
            vm_steps::step(&mut world, rng, &addrs);
        } else {
            step(&mut world, rng, &layout, &addrs, &mut taken);
        }
        let log = world.sim().take_log();
        if let Some(before) = before {
            let regimes = std::iter::once(VmId::HOST).chain(vm_steps::VMS).filter_map(|vm| world.sim().regime(vm));
            for (n, regime) in regimes.enumerate() {
                let ipas = if n == 0 { &addrs[..] } else { &vm_steps::GPAS };
                replayed += replay::transactional(&regime, &before, &log, ipas).expect("K §6.1 17");
            }
        }
        world.check();
    }
    (world.calls, replayed)
}
