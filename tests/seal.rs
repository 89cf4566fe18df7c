//! Snapshots of protected VMs: what comes back is what went out, or nothing: K §4.8, §8.2 D5, D6.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

mod common;

use common::snapshots::*;
use common::vms::{Host, PAGE, TestManifest, image, key};
use corevisor::abstract_machine::Worlds;
use corevisor::abstract_machine::addr::{Gfn, Pa, Pfn, VcpuId};
use corevisor::abstract_machine::shadow::{BankReg, ShadowReg};
use corevisor::interface::calls::{VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::{CallError, HostCall};
use corevisor::memory::memory_ops;
use corevisor::vm::{Start, VmState, boot_ops, mmio_guard};

#[test]
fn a_vm_that_comes_back_has_its_memory_and_every_register() {
    let (mut host, old, content) = ran();
    let kept = save(&mut host, old);
    host.destroy(old);
    let vm = empty(&mut host);
    assert_eq!(restore(&mut host, vm, &kept), Ok(()));
    assert_eq!(host.state(vm), VmState::Verified as u64);
    let now: Vec<_> = PAGES.iter().map(|gpa| inside(&host, vm, *gpa)).collect();
    assert!(now == content);
    assert_eq!(host.call(HostCall::PageInfo, &[vm, DATA]).unwrap()[1], 1, "private");
    assert_eq!(host.call(HostCall::PageInfo, &[vm, DATA + PAGE]).unwrap()[1], 2, "shared, as it was");
    let vms = host.world.core.vms();
    let active = boot_ops::set_vcpu_active(vms, id(vm), VcpuId::new(0)).unwrap();
    assert_eq!(active.start, Start::Resume);
    let reg = |reg| host.world.sim().get_shadow_ctxt(active.shadow, reg);
    let some = [ShadowReg::X(0), ShadowReg::X(30), ShadowReg::Pc, ShadowReg::Q(63), ShadowReg::Fpcr].map(reg);
    assert_eq!(some, [0x1_0000, 0x1_0001, 0x1_0002, 0x1_0003, 0x1_0004]);
    assert_eq!(reg(ShadowReg::Pstate), 0x6000_03c5);
    assert!(BankReg::ALL.iter().all(|bank| reg(ShadowReg::Bank(*bank)) == 0x2_0000 + *bank as u64));
    let allowed = [0x8fff, 0x9000, 0x9001].map(|page| mmio_guard::allows(vms, id(vm), Gfn::new(page)));
    assert_eq!(allowed, [false, true, false], "the host hears of no more than before");
    let second = boot_ops::set_vcpu_active(vms, id(vm), VcpuId::new(1)).unwrap();
    assert_eq!(second.start, Start::Psci { pc: KERNEL + 8, x0: 99 });
}

#[test]
fn a17_a_snapshot_that_changes_as_soon_as_it_was_read_comes_back_as_what_was_read() {
    let life = |race: bool| {
        let (mut host, old, content) = ran();
        let kept = save(&mut host, old);
        host.destroy(old);
        let vm = empty(&mut host);
        assert_eq!(restore_raced(&mut host, vm, &kept, race), Ok(()));
        let now: Vec<_> = PAGES.iter().map(|gpa| inside(&host, vm, *gpa)).collect();
        assert!(now == content);
        let states = PAGES.map(|gpa| host.call(HostCall::PageInfo, &[vm, gpa]).unwrap()[1]);
        let vms = host.world.core.vms();
        let vcpus = [0, 1].map(|vcpu| boot_ops::set_vcpu_active(vms, id(vm), VcpuId::new(vcpu)).unwrap());
        let all = vcpus.map(|active| (active.start, host.world.sim().context(active.shadow)));
        let allowed = [0x8fff, 0x9000, 0x9001].map(|page| mmio_guard::allows(vms, id(vm), Gfn::new(page)));
        (states, all, allowed)
    };
    assert!(life(true) == life(false));
}

#[test]
fn a21_a_page_that_comes_back_is_clean_in_memory() {
    let (mut host, old) = (ran().0, 1);
    let kept = save(&mut host, old);
    host.destroy(old);
    let vm = empty(&mut host);
    let data = host.hold(&kept.pages[0].1);
    let tag = host.hold(&kept.pages[0].2);
    let before = host.cleaned(data);
    host.done(HostCall::UnsealPage, &[vm, kept.pages[0].0, data, tag]).unwrap();
    // When it became the VM's, and again after it was decrypted.
    assert_eq!(host.cleaned(data) - before, 2);
}

#[test]
fn what_a_vm_wrote_around_the_caches_is_what_is_sealed() {
    let (mut host, old, _) = ran();
    let vms = host.world.core.vms();
    let (pfn, _) = memory_ops::walk_vm(vms.memory(), id(old), Gfn::new(DATA / PAGE)).unwrap();
    // The caches hold a line of what was there before; nobody wrote it.
    host.world.sim().write_around(pfn, 0x7e57);
    assert_ne!(host.world.sim().read_ram(pfn), 0x7e57);
    let kept = save(&mut host, old);
    host.destroy(old);
    let vm = empty(&mut host);
    restore(&mut host, vm, &kept).unwrap();
    assert_eq!(inside(&host, vm, DATA)[..8], 0x7e57_u64.to_le_bytes());
}

#[test]
fn what_a_head_says_in_clear_is_under_the_seal() {
    let (mut host, old) = (ran().0, 1);
    let kept = save(&mut host, old);
    let vm = empty(&mut host);
    let (gpa, data, tag) = kept.pages[0].clone();
    let other = gpa + 0x10_0000;
    // Another kind, another place, another sequence number, each offered as what it says.
    for (word, value, gpa) in [(0, 2, gpa), (1, other / PAGE, other), (2, 9, gpa)] {
        let mut head = tag.clone();
        head[word * 8..word * 8 + 8].copy_from_slice(&u64::to_le_bytes(value));
        let (data, tag) = (host.hold(&data), host.hold(&head));
        assert_eq!(host.done(HostCall::UnsealPage, &[vm, gpa, data, tag]), Err(CallError::NotAuthentic), "word {word}");
    }
}

#[test]
fn nothing_of_a_vm_is_in_what_the_host_keeps_and_no_two_pages_look_alike() {
    let (mut host, vm, content) = ran();
    let kept = save(&mut host, vm);
    let secret = 0x5ec2e7_u64.to_le_bytes();
    let all = kept.pages.iter().map(|(_, data, _)| data).chain(&kept.vcpus).chain([&kept.whole]);
    assert!(all.clone().all(|data| !data.windows(8).any(|at| at == secret)));
    assert!(kept.pages.iter().zip(&content).all(|((_, data, _), page)| data != page));
    // Two pages of zeroes but for a word: no pattern shows.
    let same = kept.pages[2].1.iter().zip(&kept.pages[3].1).filter(|(a, b)| a == b).count();
    assert!(same < 64, "{same} bytes alike");
    let sequences: Vec<_> = kept.pages.iter().map(|(_, _, tag)| tag[16..32].to_vec()).collect();
    assert!(sequences.iter().enumerate().all(|(n, one)| !sequences[n + 1..].contains(one)), "no nonce twice");
}

#[test]
fn no_bit_of_a_snapshot_may_be_another_one() {
    let (mut host, old, _) = ran();
    let kept = save(&mut host, old);
    let vm = empty(&mut host);
    let (data, tag) = (host.pages(1), host.pages(1));
    let (gpa, good_data, good_tag) = kept.pages[0].clone();
    let try_page = |host: &Host, bytes: &[u8], head: &[u8]| {
        host.write(data, bytes);
        host.write(tag, head);
        host.done(HostCall::UnsealPage, &[vm, gpa, data, tag])
    };
    for n in (0..4096).step_by(97) {
        let mut bad = good_data.clone();
        bad[n] ^= 1 << (n % 8);
        assert_eq!(try_page(&host, &bad, &good_tag), Err(CallError::NotAuthentic), "byte {n}");
    }
    for n in 0..48 {
        let mut bad = good_tag.clone();
        bad[n] ^= 1 << (n % 8);
        assert_eq!(try_page(&host, &good_data, &bad), Err(CallError::NotAuthentic), "byte {n} of the head");
    }
    for n in (0..48).chain((64..64 + 175 * 8).step_by(13)) {
        let mut bad = kept.vcpus[0].clone();
        bad[n] ^= 0x40;
        host.write(data, &bad);
        assert_eq!(host.done(HostCall::UnsealVcpu, &[vm, 0, data]), Err(CallError::NotAuthentic), "byte {n} of a vCPU");
    }
    for n in (0..48).chain(64..64 + 31 * 8) {
        let mut bad = kept.whole.clone();
        bad[n] ^= 2;
        host.write(data, &bad);
        assert_eq!(host.done(HostCall::SealVm, &[vm, 1, data]), Err(CallError::NotAuthentic), "byte {n} of the whole");
    }
    assert_eq!(try_page(&host, &good_data, &good_tag), Ok(()), "what was refused has changed nothing");
}

#[test]
fn a_page_fits_its_own_place_only_and_nothing_fits_another_kind() {
    let (mut host, old, _) = ran();
    let kept = save(&mut host, old);
    let vm = empty(&mut host);
    let (_, data, tag) = kept.pages[0].clone();
    let (data, tag) = (host.hold(&data), host.hold(&tag));
    for gpa in [KERNEL + PAGE, DATA, 0] {
        assert_eq!(host.done(HostCall::UnsealPage, &[vm, gpa, data, tag]), Err(CallError::NotAuthentic), "{gpa:#x}");
    }
    let vcpu = host.hold(&kept.vcpus[0]);
    assert_eq!(host.done(HostCall::UnsealVcpu, &[vm, 1, vcpu]), Err(CallError::NotAuthentic));
    assert_eq!(host.done(HostCall::SealVm, &[vm, 1, vcpu]), Err(CallError::NotAuthentic));
    let whole = host.hold(&kept.whole);
    assert_eq!(host.done(HostCall::UnsealVcpu, &[vm, 0, whole]), Err(CallError::NotAuthentic));
}

#[test]
fn a_vm_with_a_page_or_a_vcpu_missing_or_too_many_does_not_start() {
    let (mut host, old, _) = ran();
    let kept = save(&mut host, old);
    for missing in 0..PAGES.len() {
        let vm = empty(&mut host);
        let mut less = kept.clone();
        let (gpa, ..) = less.pages.remove(missing);
        // Not even with another page in its place.
        let zeroes = host.pages(1);
        host.call(HostCall::MapMemory, &[vm, gpa, zeroes, 1]).unwrap();
        assert_eq!(restore(&mut host, vm, &less), Err(CallError::WrongState));
        assert_eq!(
            restore(&mut host, vm, &Kept { pages: vec![kept.pages[missing].clone()], ..kept.clone() }),
            Err(CallError::Occupied)
        );
        assert_eq!(host.done(HostCall::VerifyVm, &[vm, 0x40f0_0000]), Err(CallError::WrongState));
        host.destroy(vm);
    }
    let vm = empty(&mut host);
    assert_eq!(
        restore(&mut host, vm, &Kept { vcpus: kept.vcpus[..1].to_vec(), ..kept.clone() }),
        Err(CallError::WrongState)
    );
    let vm = empty(&mut host);
    host.vcpu(vm, 2);
    assert_eq!(restore(&mut host, vm, &kept), Err(CallError::WrongState), "a vCPU that nobody vouches for");
    let vm = empty(&mut host);
    let mut twice = kept.clone();
    twice.pages[1] = twice.pages[0].clone();
    assert_eq!(restore(&mut host, vm, &twice), Err(CallError::Occupied));
}

#[test]
fn snapshots_do_not_mix() {
    let (mut host, old, _) = ran();
    let first = save(&mut host, old);
    host.destroy(old);
    let vm = empty(&mut host);
    restore(&mut host, vm, &first).unwrap();
    host.done(HostCall::PowerOffVm, &[vm]).unwrap();
    let second = save(&mut host, vm);
    assert!(first.pages[0].1 != second.pages[0].1, "the same page under another key");
    for mixed in [
        Kept { pages: [&first.pages[..1], &second.pages[1..]].concat(), ..second.clone() },
        Kept { vcpus: first.vcpus.clone(), ..second.clone() },
        Kept { whole: first.whole.clone(), ..second.clone() },
    ] {
        let vm = empty(&mut host);
        assert_eq!(restore(&mut host, vm, &mixed), Err(CallError::NotAuthentic));
        host.destroy(vm);
    }
    let vm = empty(&mut host);
    assert_eq!(restore(&mut host, vm, &second), Ok(()));
}

#[test]
fn only_a_protected_vm_that_was_allowed_to_run_and_is_off_is_sealed() {
    let mut host = Host::default();
    let (out, tag) = (host.pages(1), host.pages(1));
    let seal = |host: &Host, vm: u64| {
        let all = [
            host.done(HostCall::SealPage, &[vm, KERNEL, out, tag]),
            host.done(HostCall::SealVcpu, &[vm, 0, out]),
            host.call(HostCall::SealVm, &[vm, 0, out]).map(|_| ()),
        ];
        assert!(all[0] == all[1] && all[1] == all[2], "{all:?}");
        all[0]
    };
    let vm = empty(&mut host);
    let images = [image(KERNEL, PAGE as usize)];
    host.load(vm, &images);
    assert_eq!(seal(&host, vm), Err(CallError::WrongState), "ready");
    host.done(HostCall::PowerOffVm, &[vm]).unwrap();
    assert_eq!(seal(&host, vm), Err(CallError::WrongState), "nobody vouched for it");
    let vm = empty(&mut host);
    host.load(vm, &images);
    host.verify(vm, &TestManifest::of(&images, KERNEL, 0).sign(&key(1))).unwrap();
    assert_eq!(seal(&host, vm), Err(CallError::WrongState), "it may run");
    boot_ops::set_vcpu_active(host.world.core.vms(), id(vm), VcpuId::new(0)).unwrap();
    host.done(HostCall::PowerOffVm, &[vm]).unwrap();
    assert_eq!(seal(&host, vm), Err(CallError::Busy), "it runs");
    let vm = host.vm(VM_ORDINARY, 20);
    host.vcpu(vm, 0);
    host.done(HostCall::VerifyVm, &[vm]).unwrap();
    host.done(HostCall::PowerOffVm, &[vm]).unwrap();
    assert_eq!(seal(&host, vm), Err(CallError::WrongState), "the host's own memory");
}

#[test]
fn a_vm_of_which_a_part_was_reclaimed_is_not_sealed_whatever_its_pages_count() {
    const BLOCK: u64 = 512 * PAGE;
    // The lowest of its memory is a block, which goes first and whole; behind it are as many pages as the host seals.
    const BLOCK_AT: u64 = 0x4000_0000;
    let mut host = Host::default();
    let vm = host.vm(VM_PROTECTED, 30);
    host.vcpu(vm, 0);
    let images = [image(0x4800_0000, 2 * PAGE as usize)];
    host.load(vm, &images);
    host.verify(vm, &TestManifest::of(&images, 0x4800_0000, 0).sign(&key(1))).unwrap();
    host.next = host.next.next_multiple_of(BLOCK);
    let block = host.pages(512);
    assert_eq!(host.call(HostCall::MapMemory, &[vm, BLOCK_AT, block, 512]).unwrap()[0], 512);
    boot_ops::vcpu_started(host.world.core.vms(), id(vm), VcpuId::new(0));
    host.done(HostCall::PowerOffVm, &[vm]).unwrap();

    let (out, tag) = (host.pages(1), host.pages(1));
    for gpa in [0x4800_0000, 0x4800_0000 + PAGE] {
        host.done(HostCall::SealPage, &[vm, gpa, out, tag]).unwrap();
    }
    host.done(HostCall::SealVcpu, &[vm, 0, out]).unwrap();
    assert_eq!(host.call(HostCall::SealVm, &[vm, 0, out]), Err(CallError::WrongState), "a block is missing");
    assert_eq!(host.call(HostCall::ReclaimVm, &[vm]).unwrap()[0], 512);
    assert_eq!(host.call(HostCall::VmInfo, &[vm]).unwrap()[2], 2, "as many pages as are sealed");
    assert_eq!(host.call(HostCall::SealVm, &[vm, 0, out]), Err(CallError::WrongState));
    assert_eq!(host.done(HostCall::SealVcpu, &[vm, 0, out]), Err(CallError::WrongState));
    assert_eq!(host.done(HostCall::SealPage, &[vm, 0x4900_0000, out, tag]), Err(CallError::WrongState));
    assert!(host.read(out)[..8] != 4u64.to_le_bytes(), "there is no whole");
}

#[test]
fn d5_neither_way_takes_a_page_that_is_not_the_hosts() {
    let (mut host, old, _) = ran();
    let (out, tag) = (host.pages(1), host.pages(1));
    let (own, _) = memory_ops::walk_vm(host.world.core.memory(), id(old), Gfn::new(KERNEL / PAGE)).unwrap();
    // The core's, a device, nothing, the VM's own.
    let not_the_hosts = [0x4000_1000, 0x0800_0000, 1 << 45, own.addr().raw()];
    for page in not_the_hosts {
        assert_eq!(host.done(HostCall::SealPage, &[old, KERNEL, page, tag]), Err(CallError::NotOwner), "{page:#x}");
        assert_eq!(host.done(HostCall::SealPage, &[old, KERNEL, out, page]), Err(CallError::NotOwner), "{page:#x}");
        assert_eq!(host.done(HostCall::SealVcpu, &[old, 0, page]), Err(CallError::NotOwner), "{page:#x}");
    }
    assert_eq!(host.done(HostCall::SealPage, &[old, KERNEL, out, out]), Err(CallError::InvalidParameter));
    assert_eq!(host.done(HostCall::SealPage, &[old, 0x7000_0000, out, tag]), Err(CallError::NotOwner), "nothing there");
    let kept = save(&mut host, old);
    assert_eq!(host.done(HostCall::SealPage, &[old, KERNEL, out, tag]), Err(CallError::InvalidParameter), "each once");
    let vm = empty(&mut host);
    let head = host.hold(&kept.pages[0].2);
    for page in not_the_hosts {
        assert_eq!(host.done(HostCall::UnsealPage, &[vm, KERNEL, page, head]), Err(CallError::NotOwner), "{page:#x}");
    }
    let shown = Pfn::containing(Pa::new(head));
    assert_eq!(host.world.sim().read_ram(shown) & 0xff, 1, "the head is the host's to read");
}

#[test]
fn a_save_without_all_pages_and_vcpus_has_no_end() {
    let (mut host, vm, _) = ran();
    let (out, tag) = (host.pages(1), host.pages(1));
    assert_eq!(host.call(HostCall::SealVm, &[vm, 0, out]), Err(CallError::WrongState));
    for gpa in PAGES {
        assert_eq!(host.call(HostCall::SealVm, &[vm, 0, out]), Err(CallError::WrongState));
        host.done(HostCall::SealPage, &[vm, gpa, out, tag]).unwrap();
    }
    host.done(HostCall::SealVcpu, &[vm, 1, out]).unwrap();
    assert_eq!(host.call(HostCall::SealVm, &[vm, 0, out]), Err(CallError::WrongState), "vCPU 0 is missing");
    host.done(HostCall::SealVcpu, &[vm, 0, out]).unwrap();
    assert!(host.call(HostCall::SealVm, &[vm, 0, out]).is_ok());
}
