//! Snapshots of a protected VM, taken and brought in by a host.
#![forbid(unsafe_code)]
#![allow(dead_code, missing_docs)]

use corevisor::abstract_machine::addr::{Gfn, VcpuId, VmId};
use corevisor::abstract_machine::shadow::{BankReg, Shadow, ShadowReg};
use corevisor::abstract_machine::{Machine, Worlds};
use corevisor::interface::calls::VM_PROTECTED;
use corevisor::interface::{CallError, HostCall};
use corevisor::memory::memory_ops;
use corevisor::vm::{boot_ops, mmio_guard};

use super::vms::{Host, PAGE, TestManifest, image, key};

pub const KERNEL: u64 = 0x4020_0000;
pub const DATA: u64 = 0x5000_0000;

pub fn id(vm: u64) -> VmId {
    VmId::new(vm as u16)
}

/// The shadow of a vCPU of a VM that may run.
pub fn shadow(host: &Host, vm: u64, vcpu: u16) -> Shadow {
    let vms = host.world.core.vms();
    let active = boot_ops::set_vcpu_active(vms, id(vm), VcpuId::new(vcpu)).unwrap();
    boot_ops::vcpu_started(vms, id(vm), VcpuId::new(vcpu));
    boot_ops::set_vcpu_inactive(vms, id(vm), VcpuId::new(vcpu));
    active.shadow
}

/// What the VM has at `gpa`: the core's view, not the host's.
pub fn inside(host: &Host, vm: u64, gpa: u64) -> Vec<u8> {
    let (pfn, _) = memory_ops::walk_vm(host.world.core.memory(), id(vm), Gfn::new(gpa / PAGE)).unwrap();
    host.read(pfn.addr().raw())
}

/// Pages of the VM of [`ran`], in order.
pub const PAGES: [u64; 4] = [KERNEL, KERNEL + PAGE, DATA, DATA + PAGE];

/// A host with [`one_that_ran`].
pub fn ran() -> (Host, u64, Vec<Vec<u8>>) {
    let mut host = Host::default();
    let (vm, content) = one_that_ran(&mut host);
    (host, vm, content)
}

/// A VM with two vCPUs that ran and is off now, and what its memory holds.
pub fn one_that_ran(host: &mut Host) -> (u64, Vec<Vec<u8>>) {
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
    let context = shadow(host, vm, 0);
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
    let content = PAGES.iter().map(|gpa| inside(host, vm, *gpa)).collect();
    (vm, content)
}

/// What the host keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Address, ciphertext, head.
    pub pages: Vec<(u64, Vec<u8>, Vec<u8>)>,
    pub vcpus: Vec<Vec<u8>>,
    pub whole: Vec<u8>,
}

pub fn save(host: &mut Host, vm: u64) -> Kept {
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
pub fn empty(host: &mut Host) -> u64 {
    let vm = host.vm(VM_PROTECTED, 30);
    host.vcpu(vm, 0);
    host.vcpu(vm, 1);
    vm
}

/// Brings it all in, as far as it goes.
pub fn restore(host: &mut Host, vm: u64, kept: &Kept) -> Result<(), CallError> {
    restore_raced(host, vm, kept, false)
}

/// The same, and in a race each page changes as soon as it was read.
pub fn restore_raced(host: &mut Host, vm: u64, kept: &Kept, race: bool) -> Result<(), CallError> {
    for (gpa, data, tag) in &kept.pages {
        let (data, tag) = (host.hold(data), host.hold(tag));
        host.raced(race, &[data, tag], || host.done(HostCall::UnsealPage, &[vm, *gpa, data, tag]))?;
    }
    for (n, vcpu) in kept.vcpus.iter().enumerate() {
        let data = host.hold(vcpu);
        host.raced(race, &[data], || host.done(HostCall::UnsealVcpu, &[vm, n as u64, data]))?;
    }
    let whole = host.hold(&kept.whole);
    host.raced(race, &[whole], || host.done(HostCall::SealVm, &[vm, 1, whole]))
}
