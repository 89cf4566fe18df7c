//! The world switch of the simulated machine: what stands in each CPU's registers, whose it is, and in which order it changed.
//!
//! A VM is a script, a closure that gets the registers as the vCPU has them and says why it leaves. Every primitive is written
//! down ([`Sim::switches`]), so that a test can compare the order with K §3.7.
#![forbid(unsafe_code)]

use std::boxed::Box;
use std::collections::BTreeMap;
use std::format;
use std::sync::MutexGuard;
use std::vec::Vec;

use super::{CPU, Sim};
use crate::abstract_machine::addr::{CpuId, Ipa, Pa, Pfn, VcpuId, VmId};
use crate::abstract_machine::regs::El1Reg;
use crate::abstract_machine::regs::ipa_of_hpfar;
use crate::abstract_machine::shadow::{BankReg, Context, Shadow, ShadowReg};
use crate::abstract_machine::{ContextAt, ExitCode, VgicInfo, VgicWord, VirtualLines, Worlds};

/// What a VM does once it runs: it may change its registers, and says why it leaves.
pub type Script = Box<dyn FnMut(&mut Context) -> ExitCode + Send>;

/// A step of the world switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names and arguments of the primitives")]
pub enum Switch {
    SaveSysregs(ContextAt),
    RestoreSysregs(ContextAt),
    FpsimdSaveState(ContextAt),
    FpsimdRestoreState(ContextAt),
    ActivateTraps(VirtualLines),
    DeactivateTraps,
    TimerEnableTraps(u64),
    TimerDisableTraps,
    HostEl2RestoreState,
    VmEl2RestoreState { vttbr: u64, ia_bits: u32, flush: bool },
    VgicSaveState(Shadow),
    VgicRestoreState(Shadow, usize),
    SetPerCpu(VmId, VcpuId),
    RunVm(Shadow),
}

/// One CPU's registers, and the vCPU that it runs.
struct Registers {
    live: Context,
    host: Context,
    vm: VmId,
    vcpu: VcpuId,
}

/// All of it.
#[derive(Default)]
pub(super) struct WorldState {
    contexts: BTreeMap<u64, Context>,
    cpus: BTreeMap<usize, Registers>,
    log: Vec<(usize, Switch)>,
    script: Option<Script>,
    raced: Option<Pfn>,
    vgic: VgicInfo,
    entropy: u64,
    now: u64,
}

impl WorldState {
    pub(super) fn forget(&mut self, pfn: Pfn) {
        self.contexts.remove(&pfn.addr().raw());
    }

    fn this(&mut self) -> &mut Registers {
        let host = || Registers {
            live: Context::EMPTY,
            host: Context::EMPTY,
            vm: VmId::HOST,
            vcpu: VcpuId::new(CPU.get() as u16),
        };
        self.cpus.entry(CPU.get()).or_insert_with(host)
    }

    /// Registers of the CPU, and the context that they are saved to or loaded from.
    fn pair(&mut self, at: ContextAt, copy: impl FnOnce(&mut Context, &mut Context)) {
        let this = self.this();
        let mut live = this.live;
        match at {
            ContextAt::Host => copy(&mut live, &mut this.host),
            ContextAt::Vm(shadow) => copy(&mut live, self.context(shadow)),
        }
        self.this().live = live;
    }

    fn context(&mut self, shadow: Shadow) -> &mut Context {
        self.contexts.entry(shadow.page().raw()).or_insert(Context::EMPTY)
    }

    fn note(&mut self, switch: Switch) {
        self.log.push((CPU.get(), switch));
    }
}

impl Sim {
    /// The world switch's part, behind a lock of its own.
    fn worlds(&self) -> MutexGuard<'_, WorldState> {
        self.worlds.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn forget_context(&self, pfn: Pfn) {
        self.worlds().forget(pfn);
    }

    /// What every VM does from now on.
    pub fn set_script(&self, script: Script) {
        self.worlds().script = Some(script);
    }

    /// From now on the host, on another CPU, changes every word of `page` as soon as any of it was read.
    pub fn set_race(&self, page: Option<Pfn>) {
        self.worlds().raced = page;
    }

    pub(super) fn race(&self, read: Pfn) {
        let raced = self.worlds().raced == Some(read);
        if raced {
            self.state().write_page(read, 0, &[u64::MAX; 512]);
        }
    }

    /// What VMs have of the GIC; nothing if no test says so.
    pub fn set_vgic(&self, vgic: VgicInfo) {
        self.worlds().vgic = vgic;
    }

    /// Sets the registers of EL1 and EL0 of `cpu` as they stand there now.
    pub fn set_live(&self, cpu: usize, live: Context) {
        let me = CPU.replace(cpu);
        self.worlds().this().live = live;
        CPU.set(me);
    }

    /// The registers of EL1 and EL0 of `cpu` as they stand there now.
    pub fn live(&self, cpu: usize) -> Context {
        let me = CPU.replace(cpu);
        let live = self.worlds().this().live;
        CPU.set(me);
        live
    }

    /// The whole context of a vCPU.
    pub fn context(&self, shadow: Shadow) -> Context {
        *self.worlds().context(shadow)
    }

    /// The steps of world switches since the last call, each with its CPU.
    pub fn switches(&self) -> Vec<(usize, Switch)> {
        core::mem::take(&mut self.worlds().log)
    }

    /// An EL1 register of the VM that this CPU runs, written first; `None` if it runs the host, whose registers are elsewhere.
    pub(super) fn running(&self, reg: El1Reg, value: Option<u64>) -> Option<u64> {
        let mut worlds = self.worlds();
        let this = worlds.this();
        if this.vm == VmId::HOST {
            return None;
        }
        let reg = match reg {
            El1Reg::Elr => BankReg::ElrEl1,
            El1Reg::Spsr => BankReg::SpsrEl1,
            El1Reg::Esr => BankReg::Esr,
            El1Reg::Far => BankReg::Far,
            El1Reg::Sctlr => BankReg::Sctlr,
            El1Reg::Vbar => BankReg::Vbar,
        };
        let slot = &mut this.live.bank[reg as usize];
        *slot = value.unwrap_or(*slot);
        Some(*slot)
    }

    fn is_context(&self, shadow: Shadow) -> bool {
        let page: Pa = shadow.page();
        let adopted = self.adopted().contains(&Pfn::containing(page)) && page.is_aligned(4096);
        if !adopted {
            self.state().tables.violation(format!("a shadow context at {page}, which is not an adopted page"));
        }
        adopted
    }
}

impl Worlds for Sim {
    fn get_shadow_ctxt(&self, shadow: Shadow, reg: ShadowReg) -> u64 {
        if self.is_context(shadow) { self.worlds().context(shadow).get(reg).unwrap_or(0) } else { 0 }
    }

    fn set_shadow_ctxt(&self, shadow: Shadow, reg: ShadowReg, value: u64) {
        if self.is_context(shadow)
            && let Some(slot) = self.worlds().context(shadow).slot(reg)
        {
            *slot = value;
        }
    }

    fn save_sysregs(&self, at: ContextAt) {
        let mut worlds = self.worlds();
        worlds.note(Switch::SaveSysregs(at));
        worlds.pair(at, |live, saved| {
            saved.bank = live.bank;
            live.bank[BankReg::CntvCtl as usize] = 0;
        });
    }

    fn restore_sysregs(&self, at: ContextAt) {
        let mut worlds = self.worlds();
        worlds.note(Switch::RestoreSysregs(at));
        worlds.pair(at, |live, saved| live.bank = saved.bank);
    }

    fn fpsimd_save_state(&self, at: ContextAt) {
        let mut worlds = self.worlds();
        worlds.note(Switch::FpsimdSaveState(at));
        worlds.pair(at, |live, saved| (saved.q, saved.fp_control) = (live.q, live.fp_control));
    }

    fn fpsimd_restore_state(&self, at: ContextAt) {
        let mut worlds = self.worlds();
        worlds.note(Switch::FpsimdRestoreState(at));
        worlds.pair(at, |live, saved| (live.q, live.fp_control) = (saved.q, saved.fp_control));
    }

    fn activate_traps(&self, lines: VirtualLines) {
        self.worlds().note(Switch::ActivateTraps(lines));
    }

    fn deactivate_traps(&self) {
        self.worlds().note(Switch::DeactivateTraps);
    }

    fn timer_enable_traps(&self, cntvoff: u64) {
        self.worlds().note(Switch::TimerEnableTraps(cntvoff));
    }

    fn timer_disable_traps(&self) {
        self.worlds().note(Switch::TimerDisableTraps);
    }

    fn host_el2_restore_state(&self) {
        self.worlds().note(Switch::HostEl2RestoreState);
    }

    fn vm_el2_restore_state(&self, vttbr: u64, ia_bits: u32, flush: bool) {
        self.worlds().note(Switch::VmEl2RestoreState { vttbr, ia_bits, flush });
    }

    fn vgic_save_state(&self, shadow: Shadow) {
        let mut worlds = self.worlds();
        worlds.note(Switch::VgicSaveState(shadow));
        worlds.pair(ContextAt::Vm(shadow), |live, saved| {
            saved.vgic = live.vgic;
            live.vgic[VgicWord::Hcr as usize] = 0;
        });
    }

    fn vgic_restore_state(&self, shadow: Shadow, lrs: usize) {
        let mut worlds = self.worlds();
        worlds.note(Switch::VgicRestoreState(shadow, lrs));
        worlds.pair(ContextAt::Vm(shadow), |live, saved| {
            live.vgic = saved.vgic;
            live.vgic[lrs.min(16)..16].fill(0);
        });
    }

    fn vgic_info(&self) -> VgicInfo {
        self.worlds().vgic
    }

    fn set_per_cpu(&self, vm: VmId, vcpu: VcpuId) {
        let mut worlds = self.worlds();
        worlds.note(Switch::SetPerCpu(vm, vcpu));
        let this = worlds.this();
        (this.vm, this.vcpu) = (vm, vcpu);
    }

    fn get_cur_vmid(&self) -> VmId {
        self.worlds().this().vm
    }

    fn get_cur_vcpuid(&self) -> VcpuId {
        self.worlds().this().vcpu
    }

    fn get_cur_cpu(&self) -> CpuId {
        CpuId::new(CPU.get() as u16)
    }

    fn run_vm(&self, shadow: Shadow) -> ExitCode {
        if !self.is_context(shadow) {
            return ExitCode::SError;
        }
        let mut worlds = self.worlds();
        worlds.note(Switch::RunVm(shadow));
        let Some(mut script) = worlds.script.take() else { return ExitCode::Irq };
        let mut seen = *worlds.context(shadow);
        let live = worlds.this().live;
        (seen.bank, seen.q, seen.fp_control, seen.vgic) = (live.bank, live.q, live.fp_control, live.vgic);
        // The script may look at the machine itself.
        drop(worlds);
        let code = script(&mut seen);
        let mut worlds = self.worlds();
        worlds.script.get_or_insert(script);
        let live = &mut worlds.this().live;
        (live.bank, live.q, live.fp_control, live.vgic) = (seen.bank, seen.q, seen.fp_control, seen.vgic);
        let saved = worlds.context(shadow);
        (saved.x, saved.pc, saved.pstate, saved.syndrome) = (seen.x, seen.pc, seen.pstate, seen.syndrome);
        code
    }

    fn fault_ipa(&self, shadow: Shadow) -> Option<Ipa> {
        Some(ipa_of_hpfar(self.get_shadow_ctxt(shadow, ShadowReg::HpfarEl2)))
    }

    fn counter(&self) -> u64 {
        let mut worlds = self.worlds();
        worlds.now += 1;
        worlds.now
    }

    fn entropy(&self) -> Option<[u64; 4]> {
        let mut worlds = self.worlds();
        worlds.entropy += 1;
        let n = worlds.entropy;
        Some([1, 2, 3, 4].map(|word: u64| (n << 8 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abstract_machine::Machine;
    use crate::abstract_machine::addr::PhysRange;

    #[test]
    fn a_vms_registers_stay_its_own_over_a_world_switch() {
        let sim = Sim::new(1, PhysRange::between(Pa::new(0x8000_0000), Pa::new(0x8000_8000)));
        assert!(sim.adopt_page(Pfn::new(0x4_0000)));
        let shadow = Shadow::new(Pa::new(0x4000_0000));
        let host = ShadowReg::Bank(BankReg::Ttbr0);
        let mut live = Context::EMPTY;
        live.bank[BankReg::Ttbr0 as usize] = 0x1000;
        sim.set_live(0, live);
        sim.set_shadow_ctxt(shadow, ShadowReg::Bank(BankReg::Ttbr0), 0x2000);
        sim.set_script(Box::new(|seen| {
            assert_eq!(seen.bank[BankReg::Ttbr0 as usize], 0x2000);
            seen.bank[BankReg::Ttbr0 as usize] = 0x3000;
            seen.x[0] = 7;
            ExitCode::Trap
        }));
        sim.save_sysregs(ContextAt::Host);
        sim.restore_sysregs(ContextAt::Vm(shadow));
        assert_eq!(sim.run_vm(shadow), ExitCode::Trap);
        sim.save_sysregs(ContextAt::Vm(shadow));
        sim.restore_sysregs(ContextAt::Host);
        assert_eq!(sim.live(0).get(host), Some(0x1000));
        assert_eq!((sim.get_shadow_ctxt(shadow, host), sim.get_shadow_ctxt(shadow, ShadowReg::X(0))), (0x3000, 7));
        assert_eq!(sim.switches().len(), 5);
        sim.release_page(Pfn::new(0x4_0000));
        assert!(sim.violations().is_empty());
    }
}
