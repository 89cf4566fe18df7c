//! The world switch: what the layers of vCPUs can do to the machine, by the proof's names.
//!
//! The order in which a CPU goes from host to VM and back is the layers' (`vcpu::ctxt_switch`), that of K §3.7:
//!
//! ```text
//! stop_host_recording, save_sysregs(Host), fpsimd_save_state(Host), set_per_cpu(vm, vcpu), vm_el2_restore_state, timer_enable_traps,
//! activate_traps, restore_sysregs(Vm), fpsimd_restore_state(Vm), vgic_restore_state,
//! run_vm (which goes on after exits that the core serves; fpsimd_open at the first use of FP),
//! vgic_save_state, save_sysregs(Vm), fpsimd_save_state(Vm), host_el2_restore_state, deactivate_traps, timer_disable_traps,
//! set_per_cpu(host), restore_sysregs(Host), fpsimd_restore_state(Host), resume_host_recording
//! ```
//!
//! FP registers are moved only for a VM that uses them, at its first use; a VM never runs with the host's open to it, the host never with a VM's in the CPU.
//!
//! Between `vm_el2_restore_state` and `host_el2_restore_state` the CPU's EL1 is the VM's; interrupts are masked at EL2 all the
//! way. Source: K §1.2 (primitives), §3.3-3.7.
#![forbid(unsafe_code)]

use core::ops::DerefMut;

use super::addr::{CpuId, Ipa, PhysRange, VcpuId, VmId};
use super::shadow::{Context, Shadow, ShadowReg};

/// Whose registers a save or restore is about.
pub enum ContextAt<'c> {
    /// The host's, on this CPU: a context in the CPU's own data.
    Host,
    /// A vCPU's.
    Vm(&'c mut Context),
}

/// Interrupt lines of the VM that the hypervisor drives itself: HCR_EL2.VI and HCR_EL2.VF.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VirtualLines {
    /// A virtual IRQ is pending.
    pub virq: bool,
    /// A virtual FIQ is pending.
    pub vfiq: bool,
}

/// Why a vCPU left the CPU. K: the exit code (ARM_EXCEPTION_*).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum ExitCode {
    /// A synchronous exception: the shadow's ESR_EL2 says which.
    Trap = 0,
    /// A physical interrupt is pending; it is not acknowledged.
    Irq = 1,
    /// An SError.
    SError = 2,
}

/// The GIC's virtual CPU interface, as VMs may use it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VgicInfo {
    /// Version of the GIC: 2 or 3; 0 if there is no virtual CPU interface.
    pub version: u8,
    /// Number of list registers that every CPU has.
    pub list_registers: u8,
    /// GICv2's virtual CPU interface (GICV), which a VM sees as its CPU interface.
    pub gicv: Option<PhysRange>,
}

impl VgicInfo {
    /// There is none.
    pub const NONE: Self = Self { version: 0, list_registers: 0, gicv: None };
}

/// Words of a context's `vgic` part by name: [`ShadowReg::Vgic`]'s number. Words 0 to 15 are list registers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum VgicWord {
    /// GICH_HCR or ICH_HCR_EL2. Before an entry: what is wanted (the machine adds En); maintenance interrupt enables only. After it, if LRENPIE was one of them: as the VM left it.
    Hcr = 16,
    /// GICH_VMCR or ICH_VMCR_EL2.
    Vmcr = 17,
    /// Active priorities: GICH_APR, or ICH_AP0R<n>_EL2 from here on (4 words).
    Ap0r = 18,
    /// Active priorities, group 1: ICH_AP1R<n>_EL2 (4 words).
    Ap1r = 22,
    /// GICH_MISR or ICH_MISR_EL2 at the last exit.
    Misr = 26,
}

impl VgicWord {
    /// The word as a register of a shadow context.
    pub const fn reg(self) -> ShadowReg {
        ShadowReg::Vgic(self as u8)
    }
}

/// The world switch's primitives. A part of [`Machine`](super::Machine); "this CPU" is the one that calls.
pub trait Worlds: Sync {
    /// A context that nobody else has.
    type Taken<'m>: DerefMut<Target = Context>
    where
        Self: 'm;

    /// Takes the context of a vCPU until it is dropped: for whoever runs the vCPU, or holds the lock of its VM while nobody does. That it is a
    /// context's page of the core's own is checked here, once.
    fn take_shadow_ctxt(&self, shadow: Shadow) -> Self::Taken<'_>;

    /// Reads a register of a vCPU that does not run. A register that no context has reads as zero. K: `get_shadow_ctxt`.
    fn get_shadow_ctxt(&self, shadow: Shadow, reg: ShadowReg) -> u64 {
        self.take_shadow_ctxt(shadow).get(reg)
    }

    /// Writes a register of a vCPU that does not run; one that no context has is left out. K: `set_shadow_ctxt`.
    fn set_shadow_ctxt(&self, shadow: Shadow, reg: ShadowReg, value: u64) {
        self.take_shadow_ctxt(shadow).set(reg, value);
    }

    /// What samples, traces or records branches for the host stops; what of it was not written yet is written now, by the host's tables, and nothing afterwards.
    fn stop_host_recording(&self);

    /// It goes on: by the host's tables, which are in place again.
    fn resume_host_recording(&self);

    /// Saves the EL1 and EL0 registers of this CPU, CNTV among them, and switches CNTV off. K: `save_sysregs`.
    fn save_sysregs(&self, at: ContextAt<'_>);

    /// Loads them; for a VM, its MPIDR into VMPIDR_EL2. Stage 1 comes to life last, when stage 2 stands. K: `restore_sysregs`.
    fn restore_sysregs(&self, at: ContextAt<'_>);

    /// The VM's q0-q31, FPSR and FPCR, if they are in the CPU; the host's, with what SVE and SME add to them, only if a VM could not run with them in place
    /// (streaming mode). K: `fpsimd_save_state`.
    fn fpsimd_save_state(&self, at: ContextAt<'_>);

    /// Loads them: the VM's, if the host's are saved already; the host's, if they are not in place. K: `fpsimd_restore_state`.
    fn fpsimd_restore_state(&self, at: ContextAt<'_>);

    /// The VM that this CPU runs touched FP: the host's registers are saved, the VM's loaded, and FP does not trap any more until it leaves.
    /// `false`, and nothing has changed, if that was so already.
    fn fpsimd_open(&self, ctxt: &Context) -> bool;

    /// The VM's traps: these lines in HCR_EL2, CPTR_EL2, MDCR_EL2 and the rest; stops the host's performance counters. K: `activate_traps`.
    fn activate_traps(&self, lines: VirtualLines);

    /// Puts back what [`activate_traps`](Self::activate_traps) changed, except HCR_EL2. K: `deactivate_traps`.
    fn deactivate_traps(&self);

    /// The VM's counter is behind the physical one by `cntvoff`; the physical timer traps. K: `timer_enable_traps`.
    fn timer_enable_traps(&self, cntvoff: u64);

    /// Both timers are the host's again (K §3.4: the meaning of [C]). K: `timer_disable_traps`.
    fn timer_disable_traps(&self);

    /// The host's stage 2 and HCR_EL2 on this CPU. K: `host_el2_restore_state`.
    fn host_el2_restore_state(&self);

    /// The VM's stage 2 and HCR_EL2 on this CPU; `flush`: the vCPU comes from another CPU, so what this one remembers of its VMID goes first.
    /// K: `vm_el2_restore_state`.
    fn vm_el2_restore_state(&self, vttbr: u64, ia_bits: u32, flush: bool);

    /// Saves the first `lrs` list registers (the others were empty when the VM began, and so are still) and the virtual CPU interface,
    /// and turns it off.
    fn vgic_save_state(&self, ctxt: &mut Context, lrs: usize);

    /// Loads the first `lrs` list registers (the others are empty) and the virtual CPU interface, and turns it on.
    fn vgic_restore_state(&self, ctxt: &Context, lrs: usize);

    /// What VMs have of the GIC.
    fn vgic_info(&self) -> VgicInfo;

    /// List register `n` of the vCPU that this CPU runs, as the vCPU left it; 0 if there is none. GICv3 only.
    fn list_register(&self, n: usize) -> u64;

    /// Writes list register `n` of the vCPU that this CPU runs. GICv3 only.
    fn set_list_register(&self, n: usize, value: u64);

    /// CNTV_CTL_EL0 of the vCPU that this CPU runs.
    fn cntv_ctl(&self) -> u64;

    /// Writes it.
    fn set_cntv_ctl(&self, value: u64);

    /// Interrupts `cpu` by the host's SGI `sgi`; what was written before is seen there by then. GICv3 only.
    fn kick(&self, cpu: CpuId, sgi: u8);

    /// If the physical interrupt that waits for this CPU is the host's SGI `sgi`, takes and ends it. Else it stays pending. GICv3 only.
    fn take_kick(&self, sgi: u8) -> bool;

    /// Whether a physical interrupt waits for this CPU, of whatever number and priority.
    fn interrupt_waits(&self) -> bool;

    /// Says which vCPU this CPU is running: [`VmId::HOST`] when none. K: `set_per_cpu`.
    fn set_per_cpu(&self, vm: VmId, vcpu: VcpuId);

    /// The VM that this CPU is running. K: `get_cur_vmid`.
    fn get_cur_vmid(&self) -> VmId;

    /// The vCPU that this CPU is running. K: `get_cur_vcpuid`.
    fn get_cur_vcpuid(&self) -> VcpuId;

    /// This CPU. K: `get_cur_cpu`.
    fn get_cur_cpu(&self) -> CpuId;

    /// Runs the vCPU. Each time it leaves, its x0-x30, PC, PSTATE, ESR_EL2, FAR_EL2 and HPFAR_EL2 stand in the context, and `exit` is asked:
    /// with `None` the vCPU goes on from what stands there then, with a result it has left; and if what it began is an SError by then, `exit` is asked once more,
    /// with [`ExitCode::SError`]. Between these two nothing else of the CPU is
    /// touched but by list registers and CNTV_CTL ([`Self::set_list_register`], [`Self::set_cntv_ctl`]). `None`: it has not run, for an SError waits that was there when the host
    /// came to the core; the host takes it when it is back. K: `core_to_vm`, `vm_to_core`.
    fn run_vm<R, F: FnMut(&mut Context, ExitCode) -> Option<R>>(&self, ctxt: &mut Context, exit: F) -> Option<R>;

    /// Page of the intermediate address of the abort with which the vCPU of `ctxt` just left. HPFAR_EL2 holds it, but
    /// not for a permission fault of an access (Arm ARM D24.2.66): then the virtual address is translated again with the VM's
    /// own stage 1, which must still be loaded. `None`: the VM has changed its tables meanwhile, or the CPU cannot walk them; let it try again, and meet itself what is there. K §3.2.
    fn fault_ipa(&self, ctxt: &Context) -> Option<Ipa>;

    /// The physical counter (CNTPCT_EL0).
    fn counter(&self) -> u64;

    /// Random words, if the machine has a source for them: the CPU's generator, or a seed of the boot loader's.
    fn entropy(&self) -> Option<[u64; 4]>;
}
