//! The world switch of the simulated machine: what stands in each CPU's registers, whose it is, and in which order it changed.
//!
//! A VM is a script, a closure that gets the registers as the vCPU has them and says why it leaves. Every primitive is written
//! down ([`Sim::switches`]), so that a test can compare the order with K §3.7.
#![forbid(unsafe_code)]

mod random;
#[cfg(test)]
mod tests;

use core::ops::{Deref, DerefMut};
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::sync::MutexGuard;
use std::vec::Vec;

use super::registers::Registers;
use super::{CPU, Sim};
use crate::abstract_machine::addr::{CpuId, Ipa, Pa, Pfn, VcpuId, VmId};
use crate::abstract_machine::regs::{El1Reg, FaultKind, Syndrome, ipa_of_hpfar};
use crate::abstract_machine::shadow::{BankReg, Context, Shadow, ShadowReg};
use crate::abstract_machine::{ContextAt, ExitCode, VgicInfo, VgicWord, VirtualLines, Worlds};

/// What a VM does once it runs: it may change its registers, and says why it leaves.
pub type Script = Box<dyn FnMut(&mut Context) -> ExitCode + Send>;

/// Whose registers a step is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the host or the VM that the CPU runs")]
pub enum Whose {
    Host,
    Vm,
}

impl From<&ContextAt<'_>> for Whose {
    fn from(at: &ContextAt<'_>) -> Self {
        match at {
            ContextAt::Host => Self::Host,
            ContextAt::Vm(_) => Self::Vm,
        }
    }
}

/// A step of the world switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names and arguments of the primitives")]
pub enum Switch {
    StopHostRecording,
    ResumeHostRecording,
    SaveSysregs(Whose),
    RestoreSysregs(Whose),
    FpsimdSaveState(Whose),
    FpsimdRestoreState(Whose),
    ActivateTraps(VirtualLines),
    DeactivateTraps,
    TimerEnableTraps(u64),
    TimerDisableTraps,
    HostEl2RestoreState,
    VmEl2RestoreState { vttbr: u64, ia_bits: u32, flush: bool },
    VgicSaveState(usize),
    VgicRestoreState(usize),
    FpsimdOpen,
    OpenPage(Pfn),
    ClosePage(Pfn),
    SetPerCpu(VmId, VcpuId),
    RunVm,
}

/// All of it.
#[derive(Default)]
pub(super) struct WorldState {
    contexts: BTreeMap<u64, Context>,
    taken: BTreeSet<u64>,
    cpus: BTreeMap<usize, Registers>,
    log: Vec<(usize, Switch)>,
    script: Option<Script>,
    /// An SError comes of what a VM began, when it has left already.
    late_serror: bool,
    /// One of the host's waits.
    early_serror: bool,
    leaving: Option<Box<dyn FnMut() + Send>>,
    pub(super) raced: BTreeSet<Pfn>,
    vgic: VgicInfo,
    /// SGIs of the host's that the core has sent and nobody has taken: CPU and number.
    kicks: BTreeSet<(usize, u8)>,
    /// CPUs for which another interrupt of the host's waits.
    waiting: BTreeSet<usize>,
    /// No walk of a VM's stage-1 tables comes to an end.
    untranslatable: bool,
    source: random::Source,
    now: u64,
}

impl WorldState {
    pub(super) fn forget(&mut self, pfn: Pfn) {
        self.contexts.remove(&pfn.addr().raw());
    }

    fn this(&mut self) -> &mut Registers {
        let cpu = CPU.get();
        self.cpus.entry(cpu).or_insert_with(|| Registers::new(cpu as u16))
    }

    fn context(&mut self, shadow: Shadow) -> &mut Context {
        self.contexts.entry(shadow.page().raw()).or_insert(Context::EMPTY)
    }

    pub(super) fn note(&mut self, switch: Switch) {
        self.log.push((CPU.get(), switch));
    }
}

impl Sim {
    /// The world switch's part, behind a lock of its own.
    pub(super) fn worlds(&self) -> MutexGuard<'_, WorldState> {
        self.worlds.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn forget_context(&self, pfn: Pfn) {
        self.worlds().forget(pfn);
    }

    /// What the next VM that leaves for the host began ends in an SError, which comes when it has left.
    pub fn set_late_serror(&self) {
        self.worlds().late_serror = true;
    }

    /// An SError of the host's waits, or does not any more.
    pub fn set_early_serror(&self, waits: bool) {
        self.worlds().early_serror = waits;
    }

    /// What every VM does from now on.
    pub fn set_script(&self, script: Script) {
        self.worlds().script = Some(script);
    }

    /// What happens elsewhere whenever a CPU is about to leave a VM's tables for the host's.
    pub fn set_leaving(&self, act: Box<dyn FnMut() + Send>) {
        self.worlds().leaving = Some(act);
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

    /// Puts the host of `cpu` into SVE streaming mode, or out of it.
    pub fn set_streaming(&self, cpu: usize, streaming: bool) {
        let me = CPU.replace(cpu);
        self.worlds().this().set_streaming(streaming);
        CPU.set(me);
    }

    /// Whether `cpu` is in SVE streaming mode.
    pub fn is_streaming(&self, cpu: usize) -> bool {
        let me = CPU.replace(cpu);
        let streaming = self.worlds().this().is_streaming();
        CPU.set(me);
        streaming
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

    /// SGIs of the host's that the core has sent and nobody has taken: CPU and number.
    pub fn kicks(&self) -> Vec<(usize, u8)> {
        self.worlds().kicks.iter().copied().collect()
    }

    /// Another interrupt of the host's waits for `cpu`, or none does any more.
    pub fn set_waiting(&self, cpu: usize, waits: bool) {
        let waiting = &mut self.worlds().waiting;
        if waits {
            waiting.insert(cpu)
        } else {
            waiting.remove(&cpu)
        };
    }

    /// From now on a VM's stage-1 tables cannot be walked any more, or can.
    pub fn set_untranslatable(&self, untranslatable: bool) {
        self.worlds().untranslatable = untranslatable;
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
        let slot = &mut this.live.bank[BankReg::from(reg) as usize];
        *slot = value.unwrap_or(*slot);
        Some(*slot)
    }

    fn is_context(&self, shadow: Shadow) -> bool {
        let page: Pa = shadow.page();
        self.adopted().contains(&Pfn::containing(page)) && page.is_aligned(4096)
    }
}

impl Sim {
    /// The VM does its next step.
    fn run_once(&self, ctxt: &mut Context) -> ExitCode {
        let mut worlds = self.worlds();
        worlds.note(Switch::RunVm);
        if let Some(code) = worlds.this().waited(ctxt) {
            return code;
        }
        let Some(mut script) = worlds.script.take() else { return ExitCode::Irq };
        let (before, streaming) = (worlds.this().of_vm(ctxt), worlds.this().is_streaming());
        // The script may look at the machine itself.
        drop(worlds);
        if streaming {
            self.state().tables.violation("a VM runs in streaming mode".into());
        }
        let mut after = before;
        let code = script(&mut after);
        let mut worlds = self.worlds();
        worlds.script.get_or_insert(script);
        worlds.this().step(ctxt, &before, &after, code)
    }
}

/// A context that somebody has taken. Nobody else may until it is dropped.
pub struct Taken<'m> {
    sim: &'m Sim,
    shadow: Shadow,
    context: Context,
}

impl Deref for Taken<'_> {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.context
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Context {
        &mut self.context
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut worlds = self.sim.worlds();
        worlds.taken.remove(&self.shadow.page().raw());
        *worlds.context(self.shadow) = self.context;
    }
}

impl Worlds for Sim {
    type Taken<'m> = Taken<'m>;

    fn take_shadow_ctxt(&self, shadow: Shadow) -> Taken<'_> {
        let page = shadow.page();
        if !self.is_context(shadow) {
            self.state().tables.violation(format!("a shadow context at {page}, which is not an adopted page"));
        }
        if !self.worlds().taken.insert(page.raw()) {
            self.state().tables.violation(format!("the context at {page} is in two hands"));
        }
        let context = *self.worlds().context(shadow);
        Taken { sim: self, shadow, context }
    }

    fn stop_host_recording(&self) {
        self.worlds().note(Switch::StopHostRecording);
    }

    fn resume_host_recording(&self) {
        self.worlds().note(Switch::ResumeHostRecording);
    }

    fn save_sysregs(&self, at: ContextAt<'_>) {
        let mut worlds = self.worlds();
        worlds.note(Switch::SaveSysregs(Whose::from(&at)));
        worlds.this().pair(at, |live, saved| {
            saved.bank = live.bank;
            live.bank[BankReg::CntvCtl as usize] = 0;
        });
    }

    fn restore_sysregs(&self, at: ContextAt<'_>) {
        let mut worlds = self.worlds();
        worlds.note(Switch::RestoreSysregs(Whose::from(&at)));
        worlds.this().pair(at, |live, saved| live.bank = saved.bank);
    }

    fn fpsimd_save_state(&self, at: ContextAt<'_>) {
        let mut worlds = self.worlds();
        worlds.note(Switch::FpsimdSaveState(Whose::from(&at)));
        worlds.this().fp_save(at);
    }

    fn fpsimd_restore_state(&self, at: ContextAt<'_>) {
        let mut worlds = self.worlds();
        worlds.note(Switch::FpsimdRestoreState(Whose::from(&at)));
        worlds.this().fp_restore(at);
    }

    fn fpsimd_open(&self, ctxt: &Context) -> bool {
        let mut worlds = self.worlds();
        worlds.note(Switch::FpsimdOpen);
        worlds.this().fp_open(ctxt)
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
        // What happens may use the machine.
        let leaving = self.worlds().leaving.take();
        if let Some(mut act) = leaving {
            act();
            self.worlds().leaving = Some(act);
        }
        self.worlds().note(Switch::HostEl2RestoreState);
    }

    fn vm_el2_restore_state(&self, vttbr: u64, ia_bits: u32, flush: bool) {
        self.worlds().note(Switch::VmEl2RestoreState { vttbr, ia_bits, flush });
    }

    fn vgic_save_state(&self, ctxt: &mut Context, lrs: usize) {
        let mut worlds = self.worlds();
        worlds.note(Switch::VgicSaveState(lrs));
        worlds.this().pair(ContextAt::Vm(ctxt), |live, saved| {
            saved.vgic[..lrs].copy_from_slice(&live.vgic[..lrs]);
            saved.vgic[16..].copy_from_slice(&live.vgic[16..]);
            live.vgic[VgicWord::Hcr as usize] = 0;
        });
    }

    fn vgic_restore_state(&self, ctxt: &Context, lrs: usize) {
        let mut worlds = self.worlds();
        worlds.note(Switch::VgicRestoreState(lrs));
        let live = &mut worlds.this().live;
        live.vgic = ctxt.vgic;
        live.vgic[lrs..16].fill(0);
    }

    fn vgic_info(&self) -> VgicInfo {
        self.worlds().vgic
    }

    fn list_register(&self, n: usize) -> u64 {
        self.worlds().this().live.vgic[n]
    }

    fn set_list_register(&self, n: usize, value: u64) {
        self.worlds().this().live.vgic[n] = value;
    }

    fn cntv_ctl(&self) -> u64 {
        self.worlds().this().live.bank[BankReg::CntvCtl as usize]
    }

    fn set_cntv_ctl(&self, value: u64) {
        self.worlds().this().live.bank[BankReg::CntvCtl as usize] = value;
    }

    fn kick(&self, cpu: CpuId, sgi: u8) {
        self.worlds().kicks.insert((cpu.index(), sgi));
    }

    fn take_kick(&self, sgi: u8) -> bool {
        self.worlds().kicks.remove(&(CPU.get(), sgi))
    }

    fn interrupt_waits(&self) -> bool {
        let (worlds, cpu) = (self.worlds(), CPU.get());
        worlds.waiting.contains(&cpu) || worlds.kicks.iter().any(|(kicked, _)| *kicked == cpu)
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

    fn run_vm<R, F: FnMut(&mut Context, ExitCode) -> Option<R>>(&self, ctxt: &mut Context, mut exit: F) -> Option<R> {
        if self.worlds().early_serror {
            return None;
        }
        loop {
            let code = self.run_once(ctxt);
            if let Some(result) = exit(ctxt, code) {
                let late = core::mem::take(&mut self.worlds().late_serror);
                return late.then(|| exit(ctxt, ExitCode::SError)).flatten().or(Some(result));
            }
        }
    }

    fn fault_ipa(&self, ctxt: &Context) -> Option<Ipa> {
        let syndrome = Syndrome::new(ctxt.get(ShadowReg::EsrEl2));
        let walks = syndrome.fault_kind() == FaultKind::Permission && !syndrome.is_stage1_walk();
        (!walks || !self.worlds().untranslatable).then(|| ipa_of_hpfar(ctxt.get(ShadowReg::HpfarEl2)))
    }

    fn counter(&self) -> u64 {
        let mut worlds = self.worlds();
        worlds.now += 1;
        worlds.now
    }

    fn entropy(&self) -> Option<[u64; 4]> {
        self.worlds().source.draw()
    }
}
