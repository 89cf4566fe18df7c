//! Layer 28, VCPUOps: the hand-over between a vCPU's shadow context and the host's mailbox page.
//!
//! | primitive                     | does                                                                       | lock |
//! |-------------------------------|----------------------------------------------------------------------------|------|
//! | [`read_entry`]                | copies the mailbox, once, and checks the copy                              | none |
//! | [`restore_shadow_kvm_regs`]   | takes from the copy what the last exit, or a start, allows                 | none |
//! | [`save_shadow_kvm_regs`]      | writes to the mailbox, once, what this exit shows                          | none |
//!
//! The mailbox is the host's memory, which any CPU may write at any time: it is read in one go into the core's own memory, checked there,
//! and used from there (K §8.3 A2, A17). What the core writes to it, it never reads back.
//!
//! Below: VCPUOpsAux. Above: CtxtSwitch. Specification: `spec::vcpu`. Source: SeKVM layer VCPUOps; K §3.5, §8.2 M4, M5, §8.3 A2, A9, A17.
#![forbid(unsafe_code)]

use core::mem::offset_of;

use tock_registers::LocalRegisterCopy;

use super::el1::Saved;
use super::vcpu_ops_aux::{
    FLAG_ABORTABLE, FLAG_TIMER_MASKED, Shown, prep_abort, prep_hvc, prep_none, prep_sys64, prep_wfx, reset_gp_regs,
    reset_sys_regs, sync_dirty_to_shadow, take_external_abort,
};
use crate::abstract_machine::regs::{CNT_CTL, GICH_LR, ICH_LR, Syndrome, VGIC_HCR};
use crate::abstract_machine::shadow::{BankReg, Shadow, ShadowReg};
use crate::abstract_machine::{Machine, VgicWord, VirtualLines};
use crate::interface::CallError;
use crate::interface::guest::psci;
use crate::interface::mailbox::{
    ENTRY_INJECT_ABORT, ENTRY_KEEP_REGISTERS, ENTRY_TIMER_UNMASK, ENTRY_VFIQ, ENTRY_VIRQ, ExitReason,
    MAX_LIST_REGISTERS, Mailbox, START_PSTATE,
};
use crate::npt::VmKind;
use crate::vm::{Active, Start};

/// Interrupt number of the virtual timer, physical and virtual: the only one that a list register may link.
const TIMER_INTID: u64 = 27;

macro_rules! word {
    ($field:ident) => {
        offset_of!(Mailbox, $field) / 8
    };
}

/// Words that an entry reads: from the start up to `vgic_hcr`.
const ENTRY_WORDS: usize = word!(vgic_hcr) + 1;
/// Words that an exit writes: from `esr` on.
const EXIT_FIRST: usize = word!(esr);
const EXIT_WORDS: usize = Mailbox::WORDS - EXIT_FIRST;

/// A copy of what the host wants of an entry, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    x: [u64; 32],
    lr: [u64; MAX_LIST_REGISTERS],
    lr_count: usize,
    vgic_hcr: u64,
    unmask_timer: bool,
    inject_abort: bool,
    /// Interrupt lines that the host drives itself.
    pub lines: VirtualLines,
    /// Where a vCPU starts, with which x0; `None`: it goes on.
    start: Option<(u64, u64)>,
}

impl Entry {
    /// Number of list registers in use.
    pub const fn list_registers(&self) -> usize {
        self.lr_count
    }
}

/// Copies the mailbox of `active` and checks the copy.
///
/// # Errors
/// [`CallError::InvalidParameter`]: unknown flags; more list registers than there are, or one that links an interrupt other than the VM's timer; a start
/// in another state than EL1h with all masked (A9), or a protected VM's elsewhere than where its manifest says; an abort where no access was
/// made. Nothing has changed then.
pub fn read_entry<M: Machine>(machine: &M, active: &Active) -> Result<Entry, CallError> {
    const KNOWN: u64 = ENTRY_VIRQ | ENTRY_VFIQ | ENTRY_INJECT_ABORT | ENTRY_TIMER_UNMASK | ENTRY_KEEP_REGISTERS;
    let mut words = [0; ENTRY_WORDS];
    machine.read_page(active.mailbox, 0, &mut words);
    let word = |n: usize| words.get(n).copied().unwrap_or(0);

    let flags = word(word!(entry_flags));
    let inject_abort = flags & ENTRY_INJECT_ABORT != 0;
    let last = machine.get_shadow_ctxt(active.shadow, ShadowReg::Flags);
    let keep = flags & ENTRY_KEEP_REGISTERS != 0;
    // Registers of a protected VM are not the host's to write (SetRegister refuses that too).
    let wrong = inject_abort && last & FLAG_ABORTABLE == 0 || keep && active.kind == VmKind::Protected;
    if flags & !KNOWN != 0 || wrong {
        return Err(CallError::InvalidParameter);
    }
    let (pc, x0) = (word(word!(pc)), word(word!(x0)));
    let start = match active.start {
        Start::Resume => None,
        Start::Psci { pc, x0 } => Some((pc, x0)),
        Start::Mailbox if keep => None,
        Start::Manifest { .. } | Start::Mailbox if word(word!(pstate)) != START_PSTATE => {
            return Err(CallError::InvalidParameter);
        }
        Start::Manifest { pc: signed, .. } if signed != pc => return Err(CallError::InvalidParameter),
        Start::Manifest { pc, x0 } => Some((pc, x0)),
        Start::Mailbox => Some((pc, x0)),
    };
    let vgic = machine.vgic_info();
    let lr_count = usize::try_from(word(word!(lr_count))).map_err(|_| CallError::InvalidParameter)?;
    if lr_count > usize::from(vgic.list_registers) || lr_count > MAX_LIST_REGISTERS {
        return Err(CallError::InvalidParameter);
    }
    let mut lr = [0; MAX_LIST_REGISTERS];
    for (n, lr) in lr.iter_mut().enumerate().take(lr_count) {
        *lr = list_register(vgic.version, word(word!(lr) + n))?;
    }
    let mut x = [0; 32];
    x.iter_mut().enumerate().for_each(|(n, x)| *x = word(word!(x) + n));
    Ok(Entry {
        x,
        lr,
        lr_count,
        vgic_hcr: word(word!(vgic_hcr)) & MAINTENANCE,
        unmask_timer: flags & ENTRY_TIMER_UNMASK != 0,
        inject_abort: inject_abort && start.is_none(),
        lines: VirtualLines { virq: flags & ENTRY_VIRQ != 0, vfiq: flags & ENTRY_VFIQ != 0 },
        start,
    })
}

/// Maintenance interrupts that the host may enable; the other bits of the register are the core's. They have the same places in both GICs.
const MAINTENANCE: u64 = VGIC_HCR::UIE.mask << VGIC_HCR::UIE.shift
    | VGIC_HCR::LRENPIE.mask << VGIC_HCR::LRENPIE.shift
    | VGIC_HCR::NPIE.mask << VGIC_HCR::NPIE.shift;

/// A list register as the host wants it, without the bits that mean nothing.
///
/// # Errors
/// [`CallError::InvalidParameter`] if it links a physical interrupt: its end would be the VM's to say, and the interrupt is somebody else's.
fn list_register(version: u8, raw: u64) -> Result<u64, CallError> {
    const V2: u64 = u32::MAX as u64 & !(GICH_LR::RES0.mask << GICH_LR::RES0.shift);
    const V3: u64 = !(ICH_LR::RES0.mask << ICH_LR::RES0.shift | ICH_LR::RES0_45.mask << ICH_LR::RES0_45.shift);
    let (value, hardware, physical, virtual_) = if version == 2 {
        let lr = LocalRegisterCopy::<u64, GICH_LR::Register>::new(raw & V2);
        (lr.get(), lr.is_set(GICH_LR::HW), lr.read(GICH_LR::PHYSICAL_ID), lr.read(GICH_LR::VIRTUAL_ID))
    } else {
        let lr = LocalRegisterCopy::<u64, ICH_LR::Register>::new(raw & V3);
        (lr.get(), lr.is_set(ICH_LR::HW), lr.read(ICH_LR::PINTID), lr.read(ICH_LR::VINTID))
    };
    if hardware && (physical, virtual_) != (TIMER_INTID, TIMER_INTID) {
        return Err(CallError::InvalidParameter);
    }
    Ok(value)
}

/// The vCPU as it will run: where it starts, or what its last exit left to the host. Cannot fail: `entry` was checked.
/// K: `restore_shadow_kvm_regs`.
pub fn restore_shadow_kvm_regs<M: Machine>(machine: &M, active: &Active, entry: &Entry) {
    let shadow = active.shadow;
    if let Some((pc, x0)) = entry.start {
        reset_gp_regs(machine, shadow, pc, x0);
        reset_sys_regs(machine, shadow, active.vcpu);
    } else if entry.inject_abort {
        // The access is over; its register keeps what it had. The exception says where it was.
        let syndrome = Syndrome::new(machine.get_shadow_ctxt(shadow, ShadowReg::EsrEl2));
        let va = machine.get_shadow_ctxt(shadow, ShadowReg::FarEl2);
        take_external_abort(&Saved(machine, shadow), syndrome, va);
    } else {
        sync_dirty_to_shadow(machine, shadow, &entry.x);
    }
    machine.set_shadow_ctxt(shadow, ShadowReg::Dirty, 0);
    restore_timer(machine, shadow, entry.unmask_timer);
    for (n, lr) in (0_u8..).zip(entry.lr) {
        machine.set_shadow_ctxt(shadow, ShadowReg::Vgic(n), lr);
    }
    machine.set_shadow_ctxt(shadow, VgicWord::Hcr.reg(), entry.vgic_hcr);
}

/// Forgets that the last exit was an access; the timer stays masked at the CPU until the host says otherwise.
fn restore_timer<M: Machine>(machine: &M, shadow: Shadow, unmask: bool) {
    let masked = machine.get_shadow_ctxt(shadow, ShadowReg::Flags) & FLAG_TIMER_MASKED != 0 && !unmask;
    machine.set_shadow_ctxt(shadow, ShadowReg::Flags, if masked { FLAG_TIMER_MASKED } else { 0 });
    if masked {
        let ctl = machine.get_shadow_ctxt(shadow, CNTV_CTL) | CNT_CTL::IMASK::SET.value;
        machine.set_shadow_ctxt(shadow, CNTV_CTL, ctl);
    }
}

const CNTV_CTL: ShadowReg = ShadowReg::Bank(BankReg::CntvCtl);

/// Whether the virtual timer is what interrupted the vCPU, whose registers were saved just now. If so the core keeps it masked at the CPU from now on.
/// Afterwards the shadow's CNTV_CTL is the VM's own view: without the core's mask. While the core masks it, a mask of the VM's
/// own cannot be told from it and is not seen; the VM's next write of the register without it ends both.
pub fn save_timer<M: Machine>(machine: &M, shadow: Shadow, interrupted: bool) -> bool {
    let flags = machine.get_shadow_ctxt(shadow, ShadowReg::Flags);
    let raw = machine.get_shadow_ctxt(shadow, CNTV_CTL);
    let ctl = LocalRegisterCopy::<u64, CNT_CTL::Register>::new(raw);
    let was_masked = flags & FLAG_TIMER_MASKED != 0 && ctl.is_set(CNT_CTL::IMASK);
    if was_masked {
        machine.set_shadow_ctxt(shadow, CNTV_CTL, raw & !CNT_CTL::IMASK::SET.value);
    }
    let fires = ctl.is_set(CNT_CTL::ENABLE) && ctl.is_set(CNT_CTL::ISTATUS) && !ctl.is_set(CNT_CTL::IMASK);
    let fired = interrupted && fires;
    let masked = if was_masked || fired { FLAG_TIMER_MASKED } else { 0 };
    machine.set_shadow_ctxt(shadow, ShadowReg::Flags, flags & !FLAG_TIMER_MASKED | masked);
    fired
}

/// Writes to the mailbox what an exit for `reason` shows, and notes what the next entry may take back. K: `save_shadow_kvm_regs`.
pub fn save_shadow_kvm_regs<M: Machine>(machine: &M, active: &Active, reason: ExitReason) {
    let shadow = active.shadow;
    let shown = match reason {
        ExitReason::Wfx => prep_wfx(machine, shadow),
        ExitReason::Psci | ExitReason::SystemOff => prep_hvc(machine, shadow, reason),
        ExitReason::MmioRead | ExitReason::MmioWrite | ExitReason::MemoryFault => prep_abort(machine, shadow, reason),
        ExitReason::Sysreg => prep_sys64(machine, shadow),
        ExitReason::Irq | ExitReason::Timer | ExitReason::Stopped | ExitReason::Failed => {
            prep_none(machine, shadow, reason)
        }
    };
    let exits = machine.get_shadow_ctxt(shadow, ShadowReg::Exits).wrapping_add(1);
    machine.set_shadow_ctxt(shadow, ShadowReg::Exits, exits);
    write_mailbox(machine, active, reason, &shown, exits);
}

fn write_mailbox<M: Machine>(machine: &M, active: &Active, reason: ExitReason, shown: &Shown, exits: u64) {
    let shadow = active.shadow;
    let get = |reg| machine.get_shadow_ctxt(shadow, reg);
    for n in (0_u8..31).filter(|n| shown.x >> n & 1 != 0) {
        machine.write_page(active.mailbox, word!(x) + usize::from(n), &[get(ShadowReg::X(n))]);
    }
    let mut words = [0; EXIT_WORDS];
    let mut set = |at: usize, value: u64| {
        if let Some(word) = words.get_mut(at - EXIT_FIRST) {
            *word = value;
        }
    };
    set(word!(esr), shown.esr);
    set(word!(ipa), shown.ipa);
    // List registers and the rest of the virtual CPU interface are the host's own doing, as the VM's interrupts left them.
    let lrs = machine.vgic_info().list_registers.min(MAX_LIST_REGISTERS as u8);
    let mut in_use = 0;
    for (n, lr) in (0..lrs).map(|n| (usize::from(n), get(ShadowReg::Vgic(n)))).filter(|(_, lr)| *lr != 0) {
        set(word!(lr) + n, lr);
        in_use = n + 1;
    }
    set(word!(lr_count), in_use as u64);
    set(word!(vgic_hcr), get(VgicWord::Hcr.reg()) & MAINTENANCE);
    set(word!(vgic_vmcr), get(VgicWord::Vmcr.reg()));
    set(word!(vgic_misr), get(VgicWord::Misr.reg()));
    set(word!(cntv_ctl), get(CNTV_CTL));
    set(word!(cntv_cval), get(ShadowReg::Bank(BankReg::CntvCval)));
    set(word!(cntvoff), active.cntvoff);
    set(word!(exits), exits);
    let off = match reason {
        ExitReason::SystemOff | ExitReason::Stopped | ExitReason::Failed => true,
        ExitReason::Psci => get(ShadowReg::X(0)) & u64::from(u32::MAX) == psci::CPU_OFF,
        _ => false,
    };
    set(word!(powered), u64::from(!off));
    machine.write_page(active.mailbox, EXIT_FIRST, &words);
}
