//! Pages that are shared and lent, and how they are counted.

use crate::bed::{A, B, BACK, GUEST, RAM, destroy, gfn, guest, host, pfn, state, two_vms};
use corevisor::abstract_machine::addr::{BLOCK_2M, Gfn, Ipa, VmId};
use corevisor::memory::mem_manager::Denied;
use corevisor::memory::memory_ops::vm_pages;
use corevisor::memory::page_manager::PageState;
use corevisor::npt::VmKind::Ordinary;
use corevisor::npt::descriptor::Stage2Access;

#[test]
fn a_shared_page_is_the_hosts_to_see_as_often_as_it_was_shared_and_then_no_more() {
    let mut world = two_vms(8);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 512), Ok(512));
    let at = gfn(GUEST + 0x7000);
    assert_eq!(world.revoke_vm_page(A, at), Err(Denied::NotOwner));
    assert!(!host(&mut world, 0, RAM + 0x7000));
    assert_eq!((world.grant_vm_page(A, at), world.grant_vm_page(A, at)), (Ok(()), Ok(())));
    assert!((0..3).all(|cpu| host(&mut world, cpu, RAM + 0x7000) && !host(&mut world, cpu, RAM + 0x8000)));
    assert_eq!(state(&mut world, A, GUEST + 0x7000), Some(PageState::Shared { vm: A, gfn: at, count: 2 }));
    assert_eq!(world.revoke_vm_page(A, at), Ok(()));
    assert!(host(&mut world, 0, RAM + 0x7000));
    assert_eq!(world.revoke_vm_page(A, at), Ok(()));
    assert!((0..3).all(|cpu| !host(&mut world, cpu, RAM + 0x7000)));
    assert_eq!(guest(&mut world, 1, A, GUEST + 0x7000), Some(RAM + 0x7000), "the VM keeps its block");
    assert_eq!(world.grant_vm_page(A, gfn(GUEST + BLOCK_2M)), Err(Denied::NotOwner));
    for n in 0..255 {
        assert_eq!(world.grant_vm_page(A, at), Ok(()), "{n}");
    }
    assert_eq!(world.grant_vm_page(A, at), Err(Denied::InUse));
    world.check();
    destroy(&mut world, A);
    assert_eq!(world.sim().host_load(0, Ipa::new(RAM + 0x7000)).unwrap_or(0), 0);
}

#[test]
fn what_a_vm_took_back_stays_what_it_is_when_caches_forget_it() {
    let mut world = two_vms(8);
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM), 512), Ok(512));
    let (at, page) = (gfn(GUEST + 0x7000), pfn(RAM + 0x7000));
    assert_eq!(world.grant_vm_page(A, at), Ok(()));
    // One thing in the caches, where the VM reads it; another in memory, by a mapping that goes around them.
    world.sim().write_ram(page, 7);
    assert_ne!(world.sim().read_beneath(page), 7);
    assert_eq!(world.revoke_vm_page(A, at), Ok(()));
    assert_eq!((world.sim().read_beneath(page), world.sim().read_ram(page)), (7, 7));
}

#[test]
fn a_lent_page_counts_each_place_that_it_is_lent_to_and_each_mailbox() {
    let mut world = two_vms(8);
    let third = VmId::new(3);
    assert_eq!(world.register_vm_table(third, Ordinary, 33, pfn(BACK + 0x17_0000)), Ok(()));
    (1..6).for_each(|n| assert_eq!(world.donate_pool_page(third, pfn(BACK + 0x17_0000 + n * 0x1000)), Ok(())));
    let page = pfn(RAM + 0x1000);
    assert!(host(&mut world, 0, RAM + 0x1000));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), page, 1, false), Ok(1));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + 0x5000), page, 1, true), Ok(1));
    assert_eq!(world.lend_pages_to_vm(third, gfn(GUEST), page, 1, false), Ok(1));
    assert_eq!((world.hold_mailbox(page), world.hold_mailbox(page)), (Ok(()), Ok(())));
    assert_eq!(state(&mut world, B, GUEST), Some(PageState::Lent(5)));
    world.check();
    assert!(host(&mut world, 1, RAM + 0x1000) && guest(&mut world, 0, third, GUEST) == Some(RAM + 0x1000));
    assert_eq!(world.drop_mailbox(page), Ok(()));
    destroy(&mut world, B);
    assert_eq!(state(&mut world, third, GUEST), Some(PageState::Lent(2)));
    assert_eq!(world.take_back_lent(third, gfn(GUEST), 1), Ok(1));
    assert_eq!(world.assign_page_to_core(page), Err(Denied::InUse), "still a mailbox");
    assert_eq!((world.drop_mailbox(page), world.drop_mailbox(page)), (Ok(()), Err(Denied::NotOwner)));
    assert_eq!(world.assign_page_to_core(page), Ok(()));
    world.check();
}

#[test]
fn a_page_is_lent_at_most_255_times() {
    let mut world = two_vms(8);
    for n in 0..255 {
        assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + n * 0x1000), pfn(RAM), 1, false), Ok(1));
    }
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST + BLOCK_2M), pfn(RAM), 1, false), Err(Denied::InUse));
    assert_eq!(world.hold_mailbox(pfn(RAM)), Err(Denied::InUse));
    // A block with it in it is not lent as one; nor is anything of it counted.
    let block = world.lend_block_to_vm(B, gfn(GUEST + BLOCK_2M), pfn(RAM), Stage2Access::Ram);
    assert_eq!(block, Err(Denied::InUse));
    world.check();
    assert_eq!(world.take_back_lent(B, gfn(GUEST), 512), Ok(512));
    assert_eq!(world.spec.pages.get(&pfn(RAM)), None);
    world.check();
}

#[test]
fn d14_what_is_taken_back_of_a_lent_block_goes_on_every_cpu_and_the_rest_stays() {
    let mut world = two_vms(8);
    assert!(host(&mut world, 0, RAM));
    assert_eq!(world.lend_pages_to_vm(B, gfn(GUEST), pfn(RAM), 512, false), Ok(512));
    assert!((0..3).all(|cpu| guest(&mut world, cpu, B, GUEST + 0x6000).is_some()));
    assert_eq!(world.take_back_lent(B, gfn(GUEST + 0x6000), 2), Ok(2));
    world.check();
    for at in [0x5000, 0x6000, 0x7000, 0x8000] {
        let expected = (!(0x6000..0x8000).contains(&at)).then_some(RAM + at);
        assert!((0..3).all(|cpu| guest(&mut world, cpu, B, GUEST + at) == expected), "{at:#x}");
    }
    assert!((0..3).all(|cpu| host(&mut world, cpu, RAM + 0x6000)), "the host had it all the time");
    assert_eq!(world.prot_and_map_vm_s2pt(A, gfn(GUEST), pfn(RAM + 0x6000), 2), Ok(2));
    // Holes count as done, and so does what lies beyond the VM's addresses.
    assert_eq!(world.take_back_lent(B, gfn(GUEST - 0x5000), 5 + 512), Ok(512));
    assert_eq!(world.take_back_lent(B, gfn(GUEST + BLOCK_2M - 0x5000), 700), Ok(512));
    assert_eq!(vm_pages(world.core.memory(), B), Some(0));
    assert_eq!(world.take_back_lent(B, Gfn::new(1 << 40), 3), Ok(3));
    world.check();
}
