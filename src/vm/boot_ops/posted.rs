//! Part of layer 21, BootOps: SGIs from one running vCPU to another.
//!
//! | primitive            | does                                                                             | lock |
//! |----------------------|----------------------------------------------------------------------------------|------|
//! | [`post_sgi`]         | notes an SGI for vCPUs of a VM that all run                                       | Vm   |
//! | [`take_posted_sgis`] | the CPU that runs a vCPU takes what was noted for it                              | Vm   |
//! | [`return_posted_sgis`] | it had no list register for these                                              | Vm   |
//!
//! A vCPU takes part while it is active, which begins and ends under the lock of its VM (`set_vcpu_active`, `give_vcpu_back`): so an SGI either is noted in time to be shown to the
//! host with the exit, or is the sender's host's to deliver. Nothing is lost between. Its CPU is kicked once for all that is noted before it looks, so kicks come no faster than
//! they are served.
//!
//! Specification: `spec::direct`. Source: new.
#![forbid(unsafe_code)]

use super::super::{Vcpu, VcpuState, Vms};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{CpuId, VcpuId, VmId};
use crate::abstract_machine::regs::ones;

/// Notes SGI `sgi` for the vCPUs of `vm` in the mask `targets`, and tells `kick` the CPU of each. `false`: one of them does not run; nothing was noted.
pub fn post_sgi<M: Machine>(vms: &Vms<M>, vm: VmId, targets: u16, sgi: u8, kick: impl Fn(CpuId)) -> bool {
    let Ok(mut vm) = vms.vm(vm) else { return false };
    let runs = |n: u8| vm.vcpus.get(usize::from(n)).is_some_and(|vcpu| vcpu.state == VcpuState::Active);
    if !ones(targets.into(), 16).all(runs) {
        return false;
    }
    for n in ones(targets.into(), 16) {
        let vcpu = &mut vm.vcpus[usize::from(n)];
        vcpu.posted |= 1 << sgi;
        // One is on its way until the vCPU looks or leaves, and then finds this as well.
        if vcpu.posted & Vcpu::KICKED == 0 {
            vcpu.posted |= Vcpu::KICKED;
            // It runs, so there is one.
            vcpu.last_cpu.map(&kick);
        }
    }
    true
}

/// What was noted for the vCPU, which this CPU runs, one bit for each SGI.
pub fn take_posted_sgis<M: Machine>(vms: &Vms<M>, vm: VmId, vcpu: VcpuId) -> u16 {
    let Ok(mut vm) = vms.vm(vm) else { return 0 };
    vm.vcpu(vcpu).map_or(0, |vcpu| core::mem::take(&mut vcpu.posted) as u16)
}

/// These wait for the vCPU's exit.
pub fn return_posted_sgis<M: Machine>(vms: &Vms<M>, vm: VmId, vcpu: VcpuId, sgis: u16) {
    let Ok(mut vm) = vms.vm(vm) else { return };
    if let Ok(vcpu) = vm.vcpu(vcpu) {
        vcpu.posted |= u32::from(sgis);
    }
}
