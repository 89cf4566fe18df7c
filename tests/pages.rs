//! Layers 13-17 by example: who owns a page, who reaches it, and what becomes of it when it changes hands.
#![forbid(unsafe_code)]

use corevisor::abstract_machine::addr::{BLOCK_1G, BLOCK_2M, Gfn, Ipa, Pa, Pfn, PhysRange, VmId};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::memory::mem_manager::Denied;
use corevisor::memory::mem_region::{MemRegions, mem_region_search};
use corevisor::memory::page_manager::{
    BlockRecord, PageRecord, PageState, S2Pages, get_pfn_run, get_pfn_state, host_may_access_block, set_pfn_run,
    set_pfn_state,
};
use corevisor::npt::{Level, npt_ops};
use corevisor::spec::world::{Layout, Touched, World};
use corevisor::spt::mmio_spt_ops::unmap_spt;
use corevisor_evidence::{Rng, seeds, tell};

const RAM: u64 = 0x4000_0000;
const WINDOW: u64 = 0x0900_0000;
const POOL: u64 = RAM + 16 * BLOCK_2M;

fn world_of(regions: Vec<(u64, u64, bool)>, pool: u64, pool_pages: u64) -> World {
    World::new(&Layout { regions, pool, pool_pages, ia_bits: 40, cpus: 3, smmu: Some(Level::L2) })
}

/// 32 MiB of RAM for the test, a bank with the pool behind it, a window, page 0.
fn world() -> World {
    let regions =
        vec![(0, 2 * BLOCK_2M, true), (WINDOW, BLOCK_2M, false), (RAM, 16 * BLOCK_2M, true), (POOL, BLOCK_2M, true)];
    world_of(regions, POOL, 32)
}

fn pfn(at: u64) -> Pfn {
    Pfn::new(at >> 12)
}

fn level(world: &World, at: u64) -> Option<Level> {
    npt_ops::walk_s2pt(world.core.memory().npts(), Ipa::new(at)).map(|(level, _)| level)
}

fn touch(world: &mut World, cpu: usize, at: u64) -> bool {
    world.touch(cpu, Ipa::new(at), AccessKind::Write) == Touched::Reached(Pa::new(at))
}

/// The page's state in code and specification, as a transition of a later layer would set it.
fn force(world: &mut World, at: u64, state: PageState) {
    let memory = world.core.memory();
    set_pfn_state(&mut memory.s2page().acquire(), memory.regions(), pfn(at), state);
    if let Some(spt) = memory.spt().filter(|_| !state.host_may_access()) {
        unmap_spt(memory.machine(), spt, pfn(at), 1);
    }
    world.spec.pages.insert(pfn(at), state);
}

#[test]
fn a_page_given_to_the_core_is_out_of_the_hosts_reach_on_every_cpu() {
    let mut world = world();
    assert!((0..3).all(|cpu| touch(&mut world, cpu, RAM + 0x5000)));
    assert_eq!(level(&world, RAM), Some(Level::L2));
    assert_eq!(world.assign_page_to_core(pfn(RAM + 0x5000)), Ok(()));
    world.check();
    assert!((0..3).all(|cpu| !touch(&mut world, cpu, RAM + 0x5000) && touch(&mut world, cpu, RAM + 0x6000)));
    world.check();
}

#[test]
fn a_page_that_comes_back_is_zero_and_the_whole_block_is_mapped_again() {
    let mut world = world();
    let pages = [RAM + 0x1000, RAM + 0x1f_f000];
    for at in pages {
        world.sim().write_ram(pfn(at), 0x5ec2e7);
        assert_eq!(world.assign_page_to_core(pfn(at)), Ok(()));
    }
    assert!(touch(&mut world, 0, RAM) && touch(&mut world, 1, RAM + 0x2000));
    assert_eq!((level(&world, RAM), level(&world, RAM + 0x3000)), (Some(Level::L3), None));
    assert_eq!(world.return_page_to_host(pfn(pages[0])), Ok(()));
    assert_eq!(level(&world, RAM), Some(Level::L3), "one page is still the core's");
    assert_eq!(world.return_page_to_host(pfn(pages[1])), Ok(()));
    assert_eq!(level(&world, RAM), None);
    assert!(touch(&mut world, 2, RAM) && level(&world, RAM) == Some(Level::L2));
    assert_eq!(world.sim().host_load(0, Ipa::new(pages[1])), Ok(0));
    assert_eq!(world.sim().read_ram(pfn(pages[0])), 0);
    world.check();
}

#[test]
fn a_whole_gibibyte_that_is_the_hosts_again_is_one_block_again() {
    let mut world = world_of(vec![(BLOCK_1G, BLOCK_1G + BLOCK_2M, true)], 2 * BLOCK_1G, 16);
    assert!(touch(&mut world, 0, BLOCK_1G) && level(&world, BLOCK_1G) == Some(Level::L1));
    let page = pfn(BLOCK_1G + 77 * BLOCK_2M + 0x3000);
    assert_eq!(world.assign_page_to_core(page), Ok(()));
    assert_eq!(level(&world, BLOCK_1G), Some(Level::L2));
    assert_eq!(world.return_page_to_host(page), Ok(()));
    assert!(touch(&mut world, 1, BLOCK_1G + 0x1000) && level(&world, BLOCK_1G) == Some(Level::L1));
    world.check();
}

#[test]
fn a_bank_that_begins_or_ends_within_a_block_is_mapped_by_pages_there() {
    let mut world = world_of(vec![(RAM + 0x1000, 2 * BLOCK_2M + 0x7000, true)], RAM + 2 * BLOCK_2M, 8);
    for (at, expected) in [(RAM + 0x1000, Level::L3), (RAM + BLOCK_2M, Level::L2)] {
        assert!(touch(&mut world, 0, at) && level(&world, at) == Some(expected), "{at:#x}");
    }
    assert!(!touch(&mut world, 0, RAM) && !touch(&mut world, 0, RAM + 2 * BLOCK_2M + 0x8000));
    world.check();
}

#[test]
fn a_block_in_two_banks_that_touch_is_mapped_by_pages() {
    let regions = vec![(RAM, BLOCK_2M + 0x5000, true), (RAM + BLOCK_2M + 0x5000, BLOCK_2M, true)];
    let mut world = world_of(regions, RAM + 0x1000, 8);
    assert!(touch(&mut world, 0, RAM + BLOCK_2M) && level(&world, RAM + BLOCK_2M) == Some(Level::L3));
    assert!(touch(&mut world, 0, RAM + BLOCK_2M + 0x5000));
    world.check();
}

#[test]
fn a1_a_dma_page_is_never_mapped_for_the_host() {
    let mut world = world();
    force(&mut world, RAM, PageState::Dma { vm: VmId::new(3) });
    assert_eq!(world.map_page_host(Ipa::new(RAM)), Err(Denied::NotOwner));
    assert!(!touch(&mut world, 0, RAM) && touch(&mut world, 0, RAM + 0x1000));
    world.check();
}

#[test]
fn d11_every_state_of_a_page_says_whether_the_host_may_reach_it() {
    let (vm, gfn) = (VmId::new(1), Gfn::new(0x80));
    for (state, may) in [
        (PageState::Core, false),
        (PageState::Private { vm, gfn }, false),
        (PageState::Dma { vm }, false),
        (PageState::Lent(1), true),
        (PageState::Lent(255), true),
        (PageState::Shared { vm, gfn, count: 1 }, true),
    ] {
        let mut world = world();
        force(&mut world, RAM + 0x7000, state);
        assert_eq!(touch(&mut world, 0, RAM + 0x7000), may, "{state:?}");
        assert_eq!(world.is_host_memory(Ipa::new(RAM + 0x7000)), may, "{state:?}");
        // A block never holds a page that the host may not reach.
        let expected = if may { Level::L2 } else { Level::L3 };
        assert!(touch(&mut world, 0, RAM) && level(&world, RAM) == Some(expected), "{state:?}");
        let why = if let PageState::Lent(_) = state { Denied::InUse } else { Denied::NotOwner };
        assert_eq!(world.assign_page_to_core(pfn(RAM + 0x7000)), Err(why), "{state:?}");
        world.spec.ram.clear();
        let back = if state == PageState::Core { Ok(()) } else { Err(Denied::NotOwner) };
        assert_eq!(world.return_page_to_host(pfn(RAM + 0x7000)), back, "{state:?}");
    }
}

#[test]
fn a15_page_0_is_the_hosts_and_never_given_away() {
    let mut world = world();
    assert!(touch(&mut world, 0, 0) && level(&world, 0) == Some(Level::L2));
    assert_eq!(world.assign_page_to_core(Pfn::new(0)), Err(Denied::PageZero));
    assert_eq!(world.return_page_to_host(Pfn::new(0)), Err(Denied::NotOwner));
    assert_eq!(world.assign_page_to_core(Pfn::new(1)), Ok(()));
    assert!(touch(&mut world, 1, 0));
    world.check();
}

#[test]
fn a14_what_is_no_ram_has_no_owner_to_change() {
    let mut world = world();
    for at in [WINDOW, WINDOW + BLOCK_2M, RAM - 0x1000, 1 << 40, u64::MAX - 0xfff] {
        assert_eq!(world.assign_page_to_core(pfn(at)), Err(Denied::NotDescribed), "{at:#x}");
        assert_eq!(world.return_page_to_host(pfn(at)), Err(Denied::NotDescribed), "{at:#x}");
    }
    world.check();
}

#[test]
fn a20_every_byte_of_a_protected_range_is_the_cores() {
    let mut world = world();
    let range = PhysRange::new(Pa::new(RAM + 0x1800), 0x1000).unwrap();
    assert_eq!(world.protect_el2_mem(range), Ok(()));
    assert_eq!([0, 0x1000, 0x2000, 0x3000].map(|at| touch(&mut world, 0, RAM + at)), [true, false, false, true]);
    assert_eq!(world.protect_el2_mem(range), Err(Denied::NotOwner));
    world.check();
}

#[test]
fn a_range_that_leaves_the_ram_is_protected_up_to_its_end_and_refused_by_name() {
    let mut world = world();
    let range = PhysRange::new(Pa::new(POOL + BLOCK_2M - 0x2000), 0x3000).unwrap();
    assert_eq!(world.protect_el2_mem(range), Err(Denied::NotDescribed));
    assert!(!touch(&mut world, 0, POOL + BLOCK_2M - 0x1000));
    world.check();
}

#[test]
fn when_the_pool_ends_the_hosts_tables_are_forgotten_once_and_the_fault_is_served() {
    let mut world = world();
    // Pages, not blocks: one page of each block is the core's.
    for block in 0..16 {
        assert_eq!(world.assign_page_to_core(pfn(RAM + block * BLOCK_2M)), Ok(()));
    }
    let taken = world.take_from_pool(world.spec.free_tables - 4);
    for round in 0..3 {
        for block in 0..16 {
            assert!(touch(&mut world, round, RAM + block * BLOCK_2M + 0x1000), "round {round} block {block}");
            world.check();
        }
    }
    world.give_back(taken);
    world.check();
}

#[test]
fn when_there_is_no_table_at_all_a_fault_is_refused_and_the_host_goes_on() {
    let mut world = world();
    assert_eq!(world.assign_page_to_core(pfn(RAM)), Ok(()));
    let taken = world.take_from_pool(usize::MAX);
    assert_eq!(world.map_page_host(Ipa::new(RAM + 0x1000)), Err(Denied::OutOfTables));
    assert!(!touch(&mut world, 0, RAM + 0x1000));
    world.check();
    world.give_back(taken);
    assert!(touch(&mut world, 0, RAM + 0x1000));
    world.check();
}

#[test]
fn a_page_is_given_to_the_core_even_when_there_is_no_table_to_split_its_block() {
    let mut world = world();
    assert!((0..3).all(|cpu| touch(&mut world, cpu, RAM + 0x5000)));
    let taken = world.take_from_pool(usize::MAX);
    assert_eq!(world.assign_page_to_core(pfn(RAM + 0x5000)), Ok(()));
    assert_eq!(level(&world, RAM + 0x6000), None, "the whole block went");
    assert!((0..3).all(|cpu| !touch(&mut world, cpu, RAM + 0x5000)));
    world.check();
    world.give_back(taken);
    assert!(touch(&mut world, 0, RAM + 0x6000));
    world.check();
}

#[test]
fn with_a_block_of_the_hosts_come_those_behind_it_up_to_one_that_it_may_not_access_whole() {
    let mut world = world();
    let block = |n: u64| RAM + n * BLOCK_2M;
    force(&mut world, block(5) + 0x3000, PageState::Core);
    assert!(touch(&mut world, 0, block(2) + 0x1000));
    let levels = |world: &World| [1, 2, 3, 4, 5, 6].map(|n| level(world, block(n)));
    assert_eq!(levels(&world), [None, Some(Level::L2), Some(Level::L2), Some(Level::L2), None, None]);
    // That one by pages; and behind it blocks again, up to the end of the bank.
    assert!(touch(&mut world, 0, block(5)) && !touch(&mut world, 0, block(5) + 0x3000));
    assert!(touch(&mut world, 1, block(6)));
    assert_eq!(levels(&world)[4..], [Some(Level::L3), Some(Level::L2)]);
    assert_eq!((level(&world, block(15)), level(&world, POOL)), (Some(Level::L2), None));
    // A window comes alone.
    assert!(touch(&mut world, 0, WINDOW));
    assert_eq!(level(&world, WINDOW), Some(Level::L2));
}

/// The state of the page so many behind one in `state`, in a run.
fn behind(state: PageState, pages: u64) -> PageState {
    match state {
        PageState::Private { vm, gfn } => PageState::Private { vm, gfn: Gfn::new(gfn.raw() + pages) },
        other => other,
    }
}

/// Banks that begin and end amid a block, and two that touch there.
fn ragged_banks() -> MemRegions {
    let mut regions = MemRegions::new();
    for (base, end) in [(0x1f_0000, 0x65_0000), (0x65_0000, 0x86_3000), (0xa0_0000, 0xe0_0000)] {
        regions.push_ram(PhysRange::new(Pa::new(base), end - base).unwrap()).unwrap();
    }
    regions
}

#[test]
fn records_of_blocks_and_pages_say_together_what_a_record_for_every_page_would() {
    const PAGES: u64 = 0x1000;
    let (seeds, mut sets) = (seeds(40), 0);
    for seed in &seeds {
        let mut rng = Rng::new(*seed);
        let regions = ragged_banks();
        let records = Box::leak(vec![PageRecord::HOST; regions.slots() as usize].into_boxed_slice());
        let blocks = Box::leak(vec![BlockRecord::HOST; regions.blocks() as usize].into_boxed_slice());
        let mut pages = S2Pages::new(records, blocks);
        let is_ram = |n: u64| mem_region_search(&regions, Pa::new(n << 12)).is_some();
        let mut expected: Vec<_> = (0..PAGES).map(|n| is_ram(n).then_some(PageState::Host)).collect();
        for _ in 0..60 {
            let (vm, gfn) = (VmId::new(rng.below(3) as u16 + 1), Gfn::new(rng.below(1 << 20)));
            let count = rng.below(255) as u8 + 1;
            let state = [
                PageState::Host,
                PageState::Core,
                PageState::Lent(count),
                PageState::Private { vm, gfn },
                PageState::Shared { vm, gfn, count },
                PageState::Dma { vm },
            ][rng.below(6) as usize];
            // Often whole blocks.
            let (first, count) = match rng.below(3) {
                0 => (rng.below(8) * 512, 512 * (rng.below(2) + 1)),
                1 => (rng.below(PAGES), 1),
                _ => (rng.below(PAGES), rng.below(1024)),
            };
            set_pfn_run(&mut pages, &regions, Pfn::new(first), count, state);
            for n in first..(first + count).min(PAGES) {
                expected[n as usize] = expected[n as usize].map(|_| behind(state, n - first));
            }
            sets += 1;
            for n in 0..PAGES {
                let found = get_pfn_state(&pages, &regions, Pfn::new(n));
                assert_eq!(found, expected[n as usize], "seed {seed}, page {n:#x}, set {first:#x} + {count:#x}");
            }
            let from = rng.below(PAGES);
            if let Some((state, run)) = get_pfn_run(&pages, &regions, Pfn::new(from), 700) {
                let alike = (0..run).all(|n| expected[(from + n) as usize] == Some(behind(state, n)));
                assert!(run > 0 && alike, "seed {seed}, a run of {run:#x} from {from:#x}");
            }
            for block in 0..PAGES / 512 {
                let range = PhysRange::new(Pa::new(block << 21), BLOCK_2M).unwrap();
                let inside = (block * 512..(block + 1) * 512).map(|n| expected[n as usize]);
                let all = inside.clone().all(|state| state.is_some_and(PageState::host_may_access));
                let one_bank = ![0, 3, 4].contains(&block);
                let found = host_may_access_block(&pages, &regions, range);
                assert_eq!(found, all && one_bank, "seed {seed}, block {block}");
            }
        }
    }
    tell("pages::records_of_blocks_and_pages", &[("sequences", seeds.len() as u64), ("sets", sets)]);
}
