//! Snapshots of protected VMs: what comes back is what went out, or nothing: K §4.8, §8.2 D5, D6.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

mod common;

use common::vms::{Host, PAGE, TestManifest, image, key};
use corevisor::abstract_machine::addr::{Gfn, Pa, Pfn, VcpuId, VmId};
use corevisor::abstract_machine::shadow::{BankReg, Shadow, ShadowReg};
use corevisor::abstract_machine::{Machine, Worlds};
use corevisor::interface::calls::{VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::{CallError, HostCall};
use corevisor::memory::memory_ops;
use corevisor::vm::{Start, VmState, boot_ops, mmio_guard};

const KERNEL: u64 = 0x4020_0000;
const DATA: u64 = 0x5000_0000;

fn id(vm: u64) -> VmId {
    VmId::new(vm as u16)
}

/// The shadow of a vCPU of a VM that may run.
fn shadow(host: &Host, vm: u64, vcpu: u16) -> Shadow {
    let vms = host.world.core.vms();
    let active = boot_ops::set_vcpu_active(vms, id(vm), VcpuId::new(vcpu)).unwrap();
    boot_ops::vcpu_started(vms, id(vm), VcpuId::new(vcpu));
    boot_ops::set_vcpu_inactive(vms, id(vm), VcpuId::new(vcpu));
    active.shadow
}

/// What the VM has at `gpa`: the core's view, not the host's.
fn inside(host: &Host, vm: u64, gpa: u64) -> Vec<u8> {
    let (pfn, _) = memory_ops::walk_vm(host.world.core.memory(), id(vm), Gfn::new(gpa / PAGE)).unwrap();
    host.read(pfn.addr().raw())
}

/// Pages of the VM of [`ran`], in order.
const PAGES: [u64; 4] = [KERNEL, KERNEL + PAGE, DATA, DATA + PAGE];

/// A VM with two vCPUs that ran and is off now, and what its memory holds.
fn ran() -> (Host, u64, Vec<Vec<u8>>) {
    let mut host = Host::default();
    let vm = host.vm(VM_PROTECTED, 30);
    host.vcpu(vm, 0);
    host.vcpu(vm, 1);
    let images = [image(KERNEL, 2 * PAGE as usize)];
    host.load(vm, &images);
    host.verify(vm, &TestManifest::of(&images, KERNEL, 7).sign(&key(1))).unwrap();
    let data = host.pages(2);
    host.call(HostCall::MapMemory, &[vm, DATA, data, 2]).unwrap();
    let sim = host.world.sim();
    let (pfn, _) = memory_ops::walk_vm(host.world.core.memory(), id(vm), Gfn::new(DATA / PAGE)).unwrap();
    sim.write_page(pfn, 3, &[0x5ec2e7]);
    memory_ops::grant_vm_page(host.world.core.memory(), id(vm), Gfn::new(DATA / PAGE + 1)).unwrap();
    let context = shadow(&host, vm, 0);
    for (n, reg) in
        [ShadowReg::X(0), ShadowReg::X(30), ShadowReg::Pc, ShadowReg::Q(63), ShadowReg::Fpcr].iter().enumerate()
    {
        sim.set_shadow_ctxt(context, *reg, 0x1_0000 + n as u64);
    }
    sim.set_shadow_ctxt(context, ShadowReg::Pstate, 0x6000_03c5);
    BankReg::ALL.iter().for_each(|reg| sim.set_shadow_ctxt(context, ShadowReg::Bank(*reg), 0x2_0000 + *reg as u64));
    boot_ops::psci_cpu_on(host.world.core.vms(), id(vm), 1, KERNEL + 8, 99);
    mmio_guard::enroll(host.world.core.vms(), id(vm)).unwrap();
    mmio_guard::map(host.world.core.vms(), id(vm), Gfn::new(0x9000)).unwrap();
    host.done(HostCall::PowerOffVm, &[vm]).unwrap();
    let content = PAGES.iter().map(|gpa| inside(&host, vm, *gpa)).collect();
    (host, vm, content)
}

/// What the host keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    /// Address, ciphertext, head.
    pages: Vec<(u64, Vec<u8>, Vec<u8>)>,
    vcpus: Vec<Vec<u8>>,
    whole: Vec<u8>,
}

fn save(host: &mut Host, vm: u64) -> Kept {
    let (out, tag) = (host.pages(1), host.pages(1));
    let mut kept = Kept { pages: vec![], vcpus: vec![], whole: vec![] };
    for gpa in PAGES {
        host.done(HostCall::SealPage, &[vm, gpa, out, tag]).unwrap();
        kept.pages.push((gpa, host.read(out), host.read(tag)[..64].to_vec()));
    }
    for vcpu in 0..2 {
        host.done(HostCall::SealVcpu, &[vm, vcpu, out]).unwrap();
        kept.vcpus.push(host.read(out));
    }
    let answer = host.call(HostCall::SealVm, &[vm, 0, out]).unwrap();
    assert_eq!((answer[0], answer[2]), (0, PAGES.len() as u64));
    kept.whole = host.read(out);
    kept
}

/// A new VM, with two vCPUs.
fn empty(host: &mut Host) -> u64 {
    let vm = host.vm(VM_PROTECTED, 30);
    host.vcpu(vm, 0);
    host.vcpu(vm, 1);
    vm
}

/// Brings it all in, as far as it goes.
fn restore(host: &mut Host, vm: u64, kept: &Kept) -> Result<(), CallError> {
    for (gpa, data, tag) in &kept.pages {
        let (data, tag) = (host.hold(data), host.hold(tag));
        host.done(HostCall::UnsealPage, &[vm, *gpa, data, tag])?;
    }
    for (n, vcpu) in kept.vcpus.iter().enumerate() {
        let data = host.hold(vcpu);
        host.done(HostCall::UnsealVcpu, &[vm, n as u64, data])?;
    }
    let whole = host.hold(&kept.whole);
    host.done(HostCall::SealVm, &[vm, 1, whole])
}

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
