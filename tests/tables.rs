//! Layers 5-8 alone: the host's table next to the map of the specification, and each rule by an example.
#![forbid(unsafe_code)]

mod common;

use std::collections::BTreeSet;

use corevisor::abstract_machine::Machine;
use corevisor::abstract_machine::addr::{BLOCK_1G, BLOCK_2M, Gfn, Ipa, Pa, Pfn, PhysRange, VmId};
use corevisor::abstract_machine::sim::Sim;
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::npt::descriptor::{Desc, Stage2Access};
use corevisor::npt::npt_walk::{SetNptError, set_npt};
use corevisor::npt::pt_alloc::{OutOfTables, alloc_root};
use corevisor::npt::{Level, Npts, Shape, TableOwner, VM_SLOTS, no_vm, npt_ops};
use corevisor::spec::npt::{self, Leaf, Table};
use corevisor_evidence::{Rng, factor, tell};

const POOL: u64 = 0x100_0000_0000 - 0x100_0000;

fn npts(ia_bits: u32, pages: u64) -> Npts<Sim> {
    let pool = PhysRange::new(Pa::new(POOL), pages * 4096).unwrap();
    let sim = Sim::new(2, pool);
    let npt = alloc_root(&sim, TableOwner::Stage2(VmId::HOST), Shape::new(ia_bits)).unwrap();
    sim.publish_tables();
    sim.load_stage2(VmId::HOST, npt.root(), ia_bits, 48);
    Npts::new(sim, npt, Box::leak(Box::new([const { no_vm() }; VM_SLOTS])))
}

fn ram(level: Level, at: u64) -> Desc {
    Desc::stage2(level, Pa::new(at), Stage2Access::Ram)
}

/// K: `map_s2pt`.
fn map_s2pt(npts: &Npts<Sim>, ipa: Ipa, level: Level, leaf: Desc) -> Result<(), SetNptError> {
    let set = set_npt(npts.machine(), &mut npts.host().acquire(), ipa.into(), level, leaf);
    // Also after an error: tables may have been added on the way.
    npts.machine().publish_tables();
    set
}

fn map(npts: &Npts<Sim>, level: Level, at: u64) -> Result<(), SetNptError> {
    map_s2pt(npts, Ipa::new(at), level, ram(level, at))
}

fn reach(npts: &Npts<Sim>, cpu: usize, at: u64) -> bool {
    npts.machine().host_access(cpu, Ipa::new(at), AccessKind::Read) == Ok(Pa::new(at))
}

fn assert_clean(npts: &Npts<Sim>) {
    assert_eq!(npts.machine().violations_at_rest(), Vec::<String>::new());
}

#[test]
fn every_shape_of_root_maps_its_first_and_its_last_page_and_no_more() {
    for bits in 32..=48 {
        let npts = npts(bits, 64);
        let (last, behind) = ((1 << bits) - 4096, 1u64 << bits);
        assert_eq!((map(&npts, Level::L3, 0), map(&npts, Level::L3, last)), (Ok(()), Ok(())), "{bits} bits");
        assert!(reach(&npts, 0, 0) && reach(&npts, 0, last) && !reach(&npts, 0, 4096) && !reach(&npts, 0, last - 4096));
        for beyond in [behind, behind + 4096, 1 << 52] {
            assert_eq!(map(&npts, Level::L3, beyond), Err(SetNptError::OutOfRange), "{bits} bits, {beyond:#x}");
            assert_eq!(npt_ops::walk_s2pt(&npts, Ipa::new(beyond)), None);
            npt_ops::clear_run_host(&npts, Pfn::new(beyond >> 12), 1);
            npt_ops::merge_host(&npts, Pfn::new(beyond >> 12), Level::L2);
        }
        assert!(reach(&npts, 1, 0) && reach(&npts, 1, last));
        assert_clean(&npts);
    }
}

#[test]
fn a5_a_block_that_is_not_aligned_is_refused() {
    let npts = npts(40, 16);
    for (level, at) in [(Level::L2, BLOCK_1G + 4096), (Level::L1, BLOCK_2M), (Level::L3, 0x800)] {
        assert_eq!(map(&npts, level, at), Err(SetNptError::Misaligned));
    }
    let bent = map_s2pt(&npts, Ipa::new(BLOCK_2M), Level::L2, ram(Level::L2, BLOCK_2M + 4096));
    assert_eq!(bent, Err(SetNptError::Misaligned));
    assert_eq!(npts.host().acquire().table_pages(), 2, "the root, and nothing else");
}

#[test]
fn a4_a_leaf_is_never_overwritten_by_another() {
    let npts = npts(40, 16);
    for (level, at) in [(Level::L3, 0x1000), (Level::L2, BLOCK_2M), (Level::L1, BLOCK_1G)] {
        assert_eq!(map(&npts, level, at), Ok(()));
        assert_eq!(map(&npts, level, at), Ok(()), "the same leaf twice is one leaf");
        let other = map_s2pt(&npts, Ipa::new(at), level, ram(level, at + level.size()));
        let window = Desc::stage2(level, Pa::new(at), Stage2Access::Window);
        assert_eq!(other, Err(SetNptError::Occupied));
        assert_eq!(map_s2pt(&npts, Ipa::new(at), level, window), Err(SetNptError::Occupied));
        assert!(reach(&npts, 0, at));
    }
    assert_clean(&npts);
}

#[test]
fn a_block_never_goes_over_a_table_nor_a_page_under_a_block() {
    let npts = npts(40, 16);
    assert_eq!(map(&npts, Level::L3, 0x1000), Ok(()));
    assert_eq!(map(&npts, Level::L2, 0), Err(SetNptError::Occupied));
    assert_eq!(map(&npts, Level::L1, 0), Err(SetNptError::Occupied));
    assert_eq!(map(&npts, Level::L1, BLOCK_1G), Ok(()));
    assert_eq!(map(&npts, Level::L3, BLOCK_1G), Err(SetNptError::Occupied));
    assert_eq!(map(&npts, Level::L2, BLOCK_1G), Err(SetNptError::Occupied));
    // An empty table is a table.
    npt_ops::clear_run_host(&npts, Pfn::new(1), 1);
    assert_eq!(map(&npts, Level::L2, 0), Err(SetNptError::Occupied));
    assert_clean(&npts);
}

#[test]
fn a_split_keeps_everything_else_mapped_and_the_page_goes_on_every_cpu() {
    let npts = npts(40, 16);
    assert_eq!(map(&npts, Level::L1, BLOCK_1G), Ok(()));
    let gone = BLOCK_1G + 5 * BLOCK_2M + 7 * 4096;
    assert!(reach(&npts, 0, gone) && reach(&npts, 1, gone));
    npt_ops::clear_run_host(&npts, Pfn::new(gone >> 12), 1);
    for at in (BLOCK_1G..2 * BLOCK_1G).step_by(4096) {
        assert_eq!((reach(&npts, 0, at), reach(&npts, 1, at)), (at != gone, at != gone), "{at:#x}");
    }
    let levels =
        [gone, gone + 4096, BLOCK_1G].map(|at| npt_ops::walk_s2pt(&npts, Ipa::new(at)).map(|(level, _)| level));
    assert_eq!(levels, [None, Some(Level::L3), Some(Level::L2)]);
    assert_eq!(npts.host().acquire().table_pages(), 2 + 2);
    assert_clean(&npts);
}

#[test]
fn a_run_goes_however_it_was_mapped_and_nothing_else_with_it() {
    let npts = npts(40, 16);
    // Pages with a hole between them, up to the end of their table; a hole for a whole table; a block; nothing.
    let first = BLOCK_1G + 508 * 4096;
    for at in [first - 4096, first, first + 4096, first + 3 * 4096] {
        assert_eq!(map(&npts, Level::L3, at), Ok(()));
    }
    assert_eq!(map(&npts, Level::L2, BLOCK_1G + 2 * BLOCK_2M), Ok(()));
    let mapped = |at| reach(&npts, 0, at) && reach(&npts, 1, at);
    let count = 4 + 512 + 3;
    let behind = first + count * 4096;
    assert!([first - 4096, first, first + 0x3000, behind - 4096, behind].iter().all(|at| mapped(*at)));
    npt_ops::clear_run_host(&npts, Pfn::new(first >> 12), count);
    for at in (first..behind).step_by(4096) {
        assert!(!reach(&npts, 0, at) && !reach(&npts, 1, at), "{at:#x}");
    }
    assert!(mapped(first - 4096) && (behind..BLOCK_1G + 3 * BLOCK_2M).step_by(4096).all(mapped));
    // Nothing is there any more: nothing happens.
    npt_ops::clear_run_host(&npts, Pfn::new(first >> 12), count);
    npt_ops::clear_run_host(&npts, Pfn::new(BLOCK_1G >> 11), 3);
    assert!(mapped(first - 4096) && mapped(behind));
    assert_clean(&npts);
}

#[test]
fn when_the_pool_ends_a_mapping_is_refused_and_everything_mapped_stays() {
    // Root of two pages, and two tables.
    let npts = npts(40, 4);
    assert_eq!(map(&npts, Level::L3, 0x1000), Ok(()));
    assert_eq!(map(&npts, Level::L3, BLOCK_2M), Err(SetNptError::OutOfTables));
    assert_eq!(map(&npts, Level::L2, BLOCK_1G), Err(SetNptError::OutOfTables));
    assert_eq!((map(&npts, Level::L2, BLOCK_2M), map(&npts, Level::L1, BLOCK_1G)), (Ok(()), Ok(())));
    assert!([0x1000, BLOCK_2M, BLOCK_1G].iter().all(|at| reach(&npts, 0, *at)));
    assert_eq!(npts.machine().alloc_table(0), None);
    assert_clean(&npts);
}

#[test]
fn when_the_pool_ends_a_page_still_goes_and_takes_its_block_with_it() {
    let npts = npts(40, 3);
    assert_eq!((map(&npts, Level::L2, BLOCK_2M), map(&npts, Level::L1, BLOCK_1G)), (Ok(()), Ok(())));
    let page = BLOCK_2M + 0x3000;
    assert!(reach(&npts, 0, page) && reach(&npts, 1, BLOCK_1G + page));
    npt_ops::clear_run_host(&npts, Pfn::new(page >> 12), 1);
    npt_ops::clear_run_host(&npts, Pfn::new((BLOCK_1G + page) >> 12), 1);
    for at in [page, BLOCK_2M, BLOCK_1G + page, BLOCK_1G] {
        assert!(!reach(&npts, 0, at) && !reach(&npts, 1, at), "{at:#x}");
    }
    assert_clean(&npts);
}

#[test]
fn a_root_that_does_not_fit_into_the_pool_is_an_error() {
    let sim = Sim::new(1, PhysRange::new(Pa::new(POOL), 3 * 4096).unwrap());
    let root = alloc_root(&sim, TableOwner::Stage2(VmId::HOST), Shape::new(42));
    assert_eq!(root.map(|_| ()), Err(OutOfTables));
    assert_eq!(sim.free_pages(), 3);
}

#[test]
fn forgetting_gives_every_table_back_and_no_cpu_remembers_what_they_mapped() {
    for bits in [36, 39, 41, 43, 44, 48] {
        let npts = npts(bits, 64);
        let root_pages = npts.host().acquire().table_pages();
        let mapped = [(Level::L3, 0x5000), (Level::L2, BLOCK_2M), (Level::L1, BLOCK_1G), (Level::L3, 5 * BLOCK_1G)];
        mapped.iter().for_each(|(level, at)| assert_eq!(map(&npts, *level, *at), Ok(())));
        assert!(mapped.iter().all(|(_, at)| reach(&npts, 1, *at)));
        npt_ops::forget_host(&npts);
        assert_eq!(npts.host().acquire().table_pages(), root_pages);
        assert_eq!(npts.machine().free_pages(), 64 - root_pages);
        // A 1 GiB block in the root needs no table, and stays.
        let stays = |level| level == Level::L1 && bits <= 43;
        mapped.iter().for_each(|(level, at)| assert_eq!(reach(&npts, 1, *at), stays(*level), "{bits} bits {at:#x}"));
        mapped.iter().for_each(|(level, at)| assert_eq!(map(&npts, *level, *at), Ok(())));
        npt_ops::forget_host(&npts);
        npt_ops::forget_host(&npts);
        assert_clean(&npts);
    }
}

#[test]
fn merging_drops_the_tables_of_one_block_and_leaves_its_neighbours() {
    let npts = npts(44, 16);
    for at in [0x1000, BLOCK_2M + 0x1000, BLOCK_1G + 0x1000] {
        assert_eq!(map(&npts, Level::L3, at), Ok(()));
        assert!(reach(&npts, 0, at));
    }
    npt_ops::merge_host(&npts, Pfn::new(0), Level::L2);
    assert_eq!([0x1000, BLOCK_2M + 0x1000, BLOCK_1G + 0x1000].map(|at| reach(&npts, 0, at)), [false, true, true]);
    assert_eq!(map(&npts, Level::L2, 0), Ok(()));
    npt_ops::merge_host(&npts, Pfn::new(0), Level::L2);
    assert!(reach(&npts, 1, 0x1000), "a block is no table: nothing to merge");
    npt_ops::merge_host(&npts, Pfn::new(0), Level::L1);
    assert_eq!([0x1000, BLOCK_2M + 0x1000, BLOCK_1G + 0x1000].map(|at| reach(&npts, 0, at)), [false, false, true]);
    assert_eq!(map(&npts, Level::L1, 0), Ok(()));
    assert_eq!(npts.host().acquire().table_pages(), 4);
    assert_clean(&npts);
}

/// Any leaf anywhere, identity or not, next to the map.
#[test]
fn a_table_and_its_map_agree_after_every_random_operation() {
    let (mut operations, mut outcomes) = (0, BTreeSet::new());
    for seed in 1..=60 * factor() {
        let rng = &mut Rng::new(seed);
        let bits = rng.pick(&[33, 39, 40, 43, 44, 48]);
        let pages = npt::Table::new(bits).root_pages() as u64 + rng.below(12);
        let npts = npts(bits, pages);
        let mut spec = (Table::new(bits), npts.machine().free_pages());
        for n in 0..120 {
            let blocks = [0, BLOCK_2M, 511 * BLOCK_2M, BLOCK_1G, 3 * BLOCK_1G + BLOCK_2M, 1 << (bits - 1), 1 << bits];
            let at = rng.pick(&blocks) + rng.pick(&[0, 0, 0, 0x1000, 0x1f_f000]);
            let level = rng.pick(&Level::ALL);
            let access = rng.pick(&[Stage2Access::Ram, Stage2Access::Ram, Stage2Access::Window]);
            let output = if rng.below(4) == 0 { at ^ BLOCK_1G } else { at };
            let (gfn, pfn) = (Gfn::new(at >> 12), Pfn::new(output >> 12));
            match rng.below(8) {
                0..=3 => {
                    let code = map_s2pt(&npts, Ipa::new(at), level, Desc::stage2(level, Pa::new(output), access));
                    let (table, free, result) = npt::set_npt(spec.0, spec.1, gfn, Leaf { pfn, level, access });
                    spec = (table, free);
                    assert_eq!(code, result, "seed {seed} step {n}: {level:?} at {at:#x}");
                    outcomes.insert(format!("{code:?}"));
                }
                4 | 5 => {
                    npt_ops::clear_run_host(&npts, Pfn::new(at >> 12), 1);
                    spec = npt::clear_pfn_host(spec.0, spec.1, Pfn::new(at >> 12));
                }
                6 if level != Level::L3 => {
                    npt_ops::merge_host(&npts, Pfn::new(at >> 12), level);
                    spec = npt::merge_host(spec.0, spec.1, gfn, level);
                }
                7 if rng.below(6) == 0 => {
                    npt_ops::forget_host(&npts);
                    spec = npt::forget_host(spec.0, spec.1);
                }
                _ => {}
            }
            operations += 1;
            for at in blocks.iter().flat_map(|at| [*at, at + 0x1000, at + BLOCK_2M]) {
                let cpu = rng.below(2) as usize;
                let seen = npts.machine().host_access(cpu, Ipa::new(at), AccessKind::Read).ok();
                let expected =
                    spec.0.in_range(Gfn::new(at >> 12)).then(|| spec.0.translate(Gfn::new(at >> 12))).flatten();
                assert_eq!(seen, expected.map(|(pfn, _)| pfn.addr()), "seed {seed} step {n}: {at:#x} on CPU {cpu}");
                let level = npt_ops::walk_s2pt(&npts, Ipa::new(at)).map(|(level, _)| level);
                assert_eq!(level, spec.0.walk(Gfn::new(at >> 12)).map(|(_, leaf)| leaf.level));
            }
            assert_eq!(npts.machine().free_pages(), spec.1);
        }
        assert_clean(&npts);
    }
    assert_eq!(outcomes.len(), 5, "every result was seen: {outcomes:?}");
    tell("tables", &[("operations", operations as u64)]);
}
