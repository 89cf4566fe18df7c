//! Records of pages and of blocks.
#![forbid(unsafe_code)]

use super::*;
use crate::abstract_machine::addr::Pa;
use std::boxed::Box;
use std::vec;

fn world() -> (S2Pages, MemRegions) {
    let mut regions = MemRegions::new();
    regions.push_ram(PhysRange::new(Pa::new(0x4000_0000), 0x80_0000).unwrap()).unwrap();
    let records = Box::leak(vec![PageRecord::HOST; regions.slots() as usize].into_boxed_slice());
    let blocks = Box::leak(vec![BlockRecord::HOST; regions.blocks() as usize].into_boxed_slice());
    (S2Pages::new(records, blocks), regions)
}

#[test]
fn a_record_is_eight_bytes_and_gives_back_every_state_that_was_stored() {
    assert_eq!(size_of::<PageRecord>(), 8);
    let (vm, gfn) = (VmId::new(0xffff), Gfn::new((1 << 36) - 1));
    for state in [
        PageState::Host,
        PageState::Core,
        PageState::Lent(1),
        PageState::Lent(255),
        PageState::Private { vm, gfn },
        PageState::Shared { vm, gfn, count: 100 },
        PageState::Shared { vm: VmId::new(1), gfn: Gfn::new(0), count: 1 },
        PageState::Dma { vm },
    ] {
        assert_eq!(PageRecord::encode(state).decode(), state);
    }
    assert_eq!(PageRecord::encode(PageState::Host), PageRecord(0));
}

#[test]
fn a_new_page_is_the_hosts() {
    let (pages, regions) = world();
    let pfn = Pfn::new(0x4_0000);
    assert_eq!(get_pfn_state(&pages, &regions, pfn), Some(PageState::Host));
    assert_eq!(get_pfn_state(&pages, &regions, Pfn::new(0x3_ffff)), None);
}

#[test]
fn a_run_is_as_long_as_its_pages_are_in_one_state_and_in_one_block() {
    let (mut pages, regions) = world();
    let run = |pages: &S2Pages, pfn, most| get_pfn_run(pages, &regions, Pfn::new(pfn), most);
    assert_eq!(run(&pages, 0x4_0000, 1024), Some((PageState::Host, 512)));
    assert_eq!(run(&pages, 0x4_01ff, 1024), Some((PageState::Host, 1)));
    assert_eq!(run(&pages, 0x3_ffff, 1024), None);
    // Over the end of a block.
    set_pfn_run(&mut pages, &regions, Pfn::new(0x4_01fe), 4, PageState::Lent(2));
    assert_eq!(run(&pages, 0x4_0000, 1024), Some((PageState::Host, 0x1fe)));
    assert_eq!(run(&pages, 0x4_01fe, 1024), Some((PageState::Lent(2), 2)));
    assert_eq!(run(&pages, 0x4_0200, 1), Some((PageState::Lent(2), 1)));
    assert_eq!(run(&pages, 0x4_0200, 1024), Some((PageState::Lent(2), 2)));
    assert_eq!(run(&pages, 0x4_0202, 3), Some((PageState::Host, 3)));
}

#[test]
fn a_vm_sees_the_pages_of_a_run_one_behind_the_other() {
    let (mut pages, regions) = world();
    let own = |n: u64| PageState::Private { vm: VmId::new(3), gfn: Gfn::new(0x1_2345 + n) };
    set_pfn_run(&mut pages, &regions, Pfn::new(0x4_01ff), 3, own(0));
    let states =
        [0x1fe, 0x1ff, 0x200, 0x201, 0x202].map(|n| get_pfn_state(&pages, &regions, Pfn::new(0x4_0000 + n)).unwrap());
    assert_eq!(states, [PageState::Host, own(0), own(1), own(2), PageState::Host]);
    assert_eq!(pages.blocks[..3], [BlockRecord::split(1), BlockRecord::split(2), BlockRecord::HOST]);
    let all = get_pfn_run(&pages, &regions, Pfn::new(0x4_0200), 512);
    assert_eq!(all, Some((own(1), 2)));
    // What is no RAM has no record, but a place in the run.
    set_pfn_run(&mut pages, &regions, Pfn::new(0x3_ffff), 2, own(0));
    assert_eq!(get_pfn_state(&pages, &regions, Pfn::new(0x4_0000)), Some(own(1)));
}

#[test]
fn the_host_may_access_a_block_only_while_it_may_access_all_its_pages() {
    let (mut pages, regions) = world();
    let block = |n| PhysRange::new(Pa::new(0x4000_0000 + n * BLOCK_2M), BLOCK_2M).unwrap();
    let all = PhysRange::new(Pa::new(0x4000_0000), 4 * BLOCK_2M).unwrap();
    let (a, b) = (Pfn::new(0x4_0201), Pfn::new(0x4_0202));
    assert!(host_may_access_block(&pages, &regions, all));
    set_pfn_state(&mut pages, &regions, a, PageState::Core);
    let (vm, gfn) = (VmId::new(1), Gfn::new(0));
    set_pfn_state(&mut pages, &regions, b, PageState::Private { vm, gfn });
    set_pfn_state(&mut pages, &regions, b, PageState::Dma { vm });
    assert!(host_may_access_block(&pages, &regions, block(0)) && !host_may_access_block(&pages, &regions, block(1)));
    assert!(!host_may_access_block(&pages, &regions, all));
    set_pfn_state(&mut pages, &regions, a, PageState::Host);
    assert!(!host_may_access_block(&pages, &regions, block(1)));
    set_pfn_state(&mut pages, &regions, b, PageState::Shared { vm, gfn, count: 1 });
    assert!(host_may_access_block(&pages, &regions, all));
    set_pfn_state(&mut pages, &regions, b, PageState::Lent(1));
    set_pfn_state(&mut pages, &regions, b, PageState::Host);
    assert!(host_may_access_block(&pages, &regions, all));
}

#[test]
fn a_block_has_one_record_until_one_of_its_pages_differs() {
    let (mut pages, regions) = world();
    let own = |n: u64| PageState::Private { vm: VmId::new(7), gfn: Gfn::new(0x800 + n) };
    let state = |pages: &S2Pages, n: u64| get_pfn_state(pages, &regions, Pfn::new(0x4_0200 + n));
    set_pfn_run(&mut pages, &regions, Pfn::new(0x4_0200), 512, own(0));
    assert_eq!(pages.blocks[1].decode(), Ok(PageRecord::encode(own(0))));
    assert!(pages.records.iter().all(|record| *record == PageRecord::HOST), "not one of the pages' own");
    assert_eq!((state(&pages, 0), state(&pages, 511)), (Some(own(0)), Some(own(511))));
    assert_eq!(get_pfn_run(&pages, &regions, Pfn::new(0x4_0203), 1024), Some((own(3), 509)));
    set_pfn_state(&mut pages, &regions, Pfn::new(0x4_0203), PageState::Host);
    assert_eq!(pages.blocks[1], BlockRecord::split(511));
    assert_eq!(
        (state(&pages, 2), state(&pages, 3), state(&pages, 4)),
        (Some(own(2)), Some(PageState::Host), Some(own(4)))
    );
    // Whole again as soon as it is set as a whole.
    set_pfn_run(&mut pages, &regions, Pfn::new(0x4_0200), 512, PageState::Host);
    assert_eq!(pages.blocks[1], BlockRecord::HOST);
    assert_eq!(get_pfn_run(&pages, &regions, Pfn::new(0x4_0200), 512), Some((PageState::Host, 512)));
}

#[test]
fn a_block_that_leaves_its_bank_is_nobodys_block() {
    let (pages, regions) = world();
    assert!(!host_may_access_block(&pages, &regions, PhysRange::new(Pa::new(0x4060_0000), 2 * BLOCK_2M).unwrap()));
    assert!(!host_may_access_block(&pages, &regions, PhysRange::new(Pa::new(0x4000_1000), BLOCK_2M).unwrap()));
}

#[test]
fn a_block_that_lies_in_two_banks_that_touch_is_nobodys_block() {
    let mut regions = MemRegions::new();
    regions.push_ram(PhysRange::new(Pa::new(0x4000_0000), 0x30_0000).unwrap()).unwrap();
    regions.push_ram(PhysRange::new(Pa::new(0x4030_0000), 0x30_0000).unwrap()).unwrap();
    let records = Box::leak(vec![PageRecord::HOST; regions.slots() as usize].into_boxed_slice());
    let blocks = Box::leak(vec![BlockRecord::HOST; regions.blocks() as usize].into_boxed_slice());
    let pages = S2Pages::new(records, blocks);
    let block = |n| PhysRange::new(Pa::new(0x4000_0000 + n * BLOCK_2M), BLOCK_2M).unwrap();
    assert_eq!([0, 1, 2].map(|n| host_may_access_block(&pages, &regions, block(n))), [true, false, true]);
}
