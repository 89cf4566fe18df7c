//! The world switch on the real CPU: not there yet; no call of the host comes here before it is.

use super::super::addr::{CpuId, Ipa, VcpuId, VmId};
use super::super::shadow::{Shadow, ShadowReg};
use super::super::world::{ContextAt, ExitCode, VgicInfo, VirtualLines, Worlds};
use super::Cpu;

impl Worlds for Cpu {
    fn get_shadow_ctxt(&self, _: Shadow, _: ShadowReg) -> u64 {
        unreachable!("no VM runs yet")
    }

    fn set_shadow_ctxt(&self, _: Shadow, _: ShadowReg, _: u64) {
        unreachable!("no VM runs yet")
    }

    fn save_sysregs(&self, _: ContextAt) {
        unreachable!("no VM runs yet")
    }

    fn restore_sysregs(&self, _: ContextAt) {
        unreachable!("no VM runs yet")
    }

    fn fpsimd_save_state(&self, _: ContextAt) {
        unreachable!("no VM runs yet")
    }

    fn fpsimd_restore_state(&self, _: ContextAt) {
        unreachable!("no VM runs yet")
    }

    fn activate_traps(&self, _: VirtualLines) {
        unreachable!("no VM runs yet")
    }

    fn deactivate_traps(&self) {
        unreachable!("no VM runs yet")
    }

    fn timer_enable_traps(&self, _: u64) {
        unreachable!("no VM runs yet")
    }

    fn timer_disable_traps(&self) {
        unreachable!("no VM runs yet")
    }

    fn host_el2_restore_state(&self) {
        unreachable!("no VM runs yet")
    }

    fn vm_el2_restore_state(&self, _: u64, _: u32, _: bool) {
        unreachable!("no VM runs yet")
    }

    fn vgic_save_state(&self, _: Shadow) {
        unreachable!("no VM runs yet")
    }

    fn vgic_restore_state(&self, _: Shadow, _: usize) {
        unreachable!("no VM runs yet")
    }

    fn vgic_info(&self) -> VgicInfo {
        unreachable!("no VM runs yet")
    }

    fn set_per_cpu(&self, _: VmId, _: VcpuId) {
        unreachable!("no VM runs yet")
    }

    fn get_cur_vmid(&self) -> VmId {
        unreachable!("no VM runs yet")
    }

    fn get_cur_vcpuid(&self) -> VcpuId {
        unreachable!("no VM runs yet")
    }

    fn get_cur_cpu(&self) -> CpuId {
        unreachable!("no VM runs yet")
    }

    fn run_vm(&self, _: Shadow) -> ExitCode {
        unreachable!("no VM runs yet")
    }

    fn fault_ipa(&self, _: Shadow) -> Option<Ipa> {
        unreachable!("no VM runs yet")
    }

    fn counter(&self) -> u64 {
        unreachable!("no VM runs yet")
    }

    fn entropy(&self) -> Option<[u64; 4]> {
        unreachable!("no VM runs yet")
    }
}
