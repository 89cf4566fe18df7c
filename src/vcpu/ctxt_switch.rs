//! Layer 29, CtxtSwitch: the world switch.
//!
//! | primitive        | does                                                                    | lock                 |
//! |------------------|-------------------------------------------------------------------------|----------------------|
//! | [`save_host`]    | the host's EL1 registers go into this CPU's own context                 | none                 |
//! | [`restore_vm`]   | takes the vCPU, checks what the host wants, and loads it                | Vm                   |
//! | [`save_vm`]      | saves the vCPU, shows the host what the exit shows, and gives it back   | Vm                   |
//! | [`restore_host`] | the host's registers come back                                          | none                 |
//!
//! The order is K §3.7's: the host is saved before anything of a VM is loaded; a VM is saved whole before another CPU may take it. An exit that the
//! core serves comes here not at all. FP registers are moved only if the VM uses them: the two FP steps of each primitive are the machine's to decide (`abstract_machine::world`),
//! and its first use in a run is `vm_exit_dispatcher`'s. Interrupts are masked at EL2 all the while; nothing of the host's state depends on how it called.
//!
//! Below: VCPUOps. Above: the trap layers. Specification: `spec::vcpu`. Source: SeKVM layer CtxtSwitch; K §3.3, §3.4, §3.7, §8.2 M8,
//! §8.3 A7.
#![forbid(unsafe_code)]

use super::vcpu_ops::direct::list_registers_in_use;
use super::vcpu_ops::{read_entry, restore_shadow_kvm_regs, save_shadow_kvm_regs, save_timer};
use crate::abstract_machine::addr::{VcpuId, VmId};
use crate::abstract_machine::shadow::ShadowReg;
use crate::abstract_machine::{ContextAt, Machine};
use crate::interface::CallError;
use crate::interface::guest::SUCCESS;
use crate::interface::mailbox::ExitReason;
use crate::vm::boot_ops::{give_vcpu_back, set_vcpu_active, set_vcpu_inactive, vcpu_started};
use crate::vm::{Active, Start, Vms};

/// The host's EL1 registers, into this CPU's own context; its FP state only if no VM could run with it in place. First of all what writes for it by its tables
/// (profiling, trace) stops, for these go. K: `save_host`.
pub fn save_host<M: Machine>(machine: &M) {
    machine.stop_host_recording();
    machine.save_sysregs(ContextAt::Host);
    machine.fpsimd_save_state(ContextAt::Host);
}

/// The host's registers come back, after its stage 2; its FP state, if a VM's took its place. It is *restored*: the published skeleton's second "save" is a slip (K §0). K: `restore_host`.
pub fn restore_host<M: Machine>(machine: &M) {
    // K: HOST's vCPU is the CPU's number.
    machine.set_per_cpu(VmId::HOST, VcpuId::new(machine.get_cur_cpu().index() as u16));
    machine.restore_sysregs(ContextAt::Host);
    machine.fpsimd_restore_state(ContextAt::Host);
    machine.resume_host_recording();
}

/// A vCPU that this CPU has loaded: between [`restore_vm`] and [`save_vm`].
pub struct Running<'m, M: Machine + 'm> {
    /// Which.
    pub active: Active,
    /// Its registers, as far as they are not in the CPU.
    pub ctxt: M::Taken<'m>,
    /// Its mailbox, which the core holds for as long as the VM lives: within reach from the entry to the exit.
    page: M::Foreign<'m>,
}

/// Takes vCPU `vcpuid` of `vmid`, and loads it. The host was saved before. K: `restore_vm`; what K answers by `panic` (no such VM or vCPU; M8: it
/// compares the wrong one) is an error for the host here.
///
/// # Errors
/// As [`set_vcpu_active`] and [`read_entry`]; the vCPU is given back then, and [`restore_host`] must follow.
pub fn restore_vm<M: Machine>(vms: &Vms<M>, vmid: VmId, vcpuid: VcpuId) -> Result<Running<'_, M>, CallError> {
    let machine = vms.machine();
    machine.set_per_cpu(vmid, vcpuid);
    let entering = set_vcpu_active(vms, vmid, vcpuid)?;
    // Before anything can fail: that this CPU forgot what was to be flushed is on record now.
    machine.vm_el2_restore_state(entering.vttbr, entering.ia_bits, entering.flush);
    let mut ctxt = machine.take_shadow_ctxt(entering.shadow);
    let page = machine.open_page(entering.mailbox);
    let entry = match read_entry(&page, &entering, &machine.vgic_info(), &mut ctxt) {
        Ok(entry) => entry,
        Err(error) => {
            drop((ctxt, page));
            machine.host_el2_restore_state();
            set_vcpu_inactive(vms, vmid, vcpuid);
            return Err(error);
        }
    };
    // All is checked; nothing below fails.
    let active = entering.active;
    restore_shadow_kvm_regs::<M>(&mut ctxt, &active, &entry, &page);
    let (lines, lrs) = (entry.lines, entry.list_registers());
    if entering.start != Start::Resume {
        vcpu_started(vms, vmid, vcpuid);
    }
    machine.timer_enable_traps(active.cntvoff);
    machine.activate_traps(lines);
    machine.restore_sysregs(ContextAt::Vm(&mut ctxt));
    machine.fpsimd_restore_state(ContextAt::Vm(&mut ctxt));
    machine.vgic_restore_state(&ctxt, lrs);
    Ok(Running { active, ctxt, page })
}

/// Saves the vCPU that this CPU runs, shows the host what an exit for `reason` shows, and gives the vCPU back. [`restore_host`] must follow. The reason as the host
/// hears it: an interrupt may be the VM's timer, and a VM that was switched off meanwhile shows nothing but that. K: `save_vm`.
pub fn save_vm<'m, M: Machine + 'm>(vms: &Vms<M>, running: Running<'m, M>, reason: ExitReason) -> ExitReason {
    let machine = vms.machine();
    let calls = reason == ExitReason::Psci;
    let Running { active, mut ctxt, page } = running;
    let lrs = list_registers_in_use(&ctxt);
    machine.vgic_save_state(&mut ctxt, lrs);
    machine.save_sysregs(ContextAt::Vm(&mut ctxt));
    machine.fpsimd_save_state(ContextAt::Vm(&mut ctxt));
    // With the vCPU given back the VM's tables may go (A7): this CPU must not walk them any more, not even by speculation. Before the host's traps: these bring what the
    // host has of TCR2_EL1 and the like into force, by which the VM's stage 1 must not be walked.
    machine.host_el2_restore_state();
    machine.deactivate_traps();
    // K §3.4: `timer_enable_traps` there is the model's only name for both.
    machine.timer_disable_traps();
    let fired = save_timer(&mut ctxt, reason == ExitReason::Irq);
    give_vcpu_back(vms, active.vm, active.vcpu, |on, sgis| {
        let reason = match reason {
            ExitReason::SystemOff | ExitReason::Failed => reason,
            _ if !on => ExitReason::Stopped,
            ExitReason::Irq if fired => ExitReason::Timer,
            _ => reason,
        };
        save_shadow_kvm_regs(&mut ctxt, &active, reason, sgis, &page);
        if calls {
            // What the core did of it is done: whatever the host says, and if the VM was switched off meanwhile.
            ctxt.set(ShadowReg::X(0), SUCCESS);
        }
        // With the vCPU given back the VM, and with it the mailbox, may go.
        drop((ctxt, page));
        reason
    })
}
