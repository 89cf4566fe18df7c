//! Layer 28, VCPUOps: the hand-over between a vCPU's shadow context and the host's mailbox page.
//!
//! | primitive                     | does                                                                       | lock |
//! |-------------------------------|----------------------------------------------------------------------------|------|
//! | [`read_entry`]                | copies what decides an entry out of the mailbox, once, and checks the copy | none |
//! | [`restore_shadow_kvm_regs`]   | takes what the last exit, or a start, allows                               | none |
//! | [`save_shadow_kvm_regs`]      | writes to the mailbox, once, what this exit shows                          | none |
//! | [`direct`]                    | interrupts that the core delivers by itself                                | none |
//!
//! The mailbox is the host's memory, which any CPU may write at any time: a word of it is read once, into the core's own memory, checked there
//! if it can be wrong, and used from there (K §8.3 A2, A17). A word that no field of this entry names is not read. What the core writes to it, it never
//! reads back.
//!
//! Below: VCPUOpsAux. Above: CtxtSwitch. Specification: `spec::vcpu`. Source: SeKVM layer VCPUOps; K §3.5, §8.2 M4, M5, §8.3 A2, A9, A17.
#![forbid(unsafe_code)]

pub mod direct;

use core::mem::offset_of;

use tock_registers::LocalRegisterCopy;

use direct::{Direct, begin_direct, list_registers_in_use};

use super::el1::VmEl1;
use super::vcpu_ops_aux::{
    FLAG_ABORTABLE, FLAG_TIMER_MASKED, X, is_call, numbers, prep_abort, prep_hvc, prep_none, prep_sys64, prep_wfx,
    reset_gp_regs, reset_sys_regs, sync_dirty_to_shadow, take_external_abort,
};
use crate::abstract_machine::regs::{CNT_CTL, GICH_LR, ICH_LR, Syndrome, VGIC_HCR};
use crate::abstract_machine::shadow::{BankReg, Context, ShadowReg};
use crate::abstract_machine::{ForeignPage, Machine, VgicInfo, VgicWord, VirtualLines};
use crate::interface::CallError;
use crate::interface::guest::psci;
use crate::interface::mailbox::{
    ENTRY_INJECT_ABORT, ENTRY_KEEP_REGISTERS, ENTRY_TIMER_UNMASK, ENTRY_VFIQ, ENTRY_VIRQ, ExitReason,
    MAX_LIST_REGISTERS, Mailbox, START_PSTATE,
};
use crate::npt::VmKind;
use crate::vm::{Active, Entering, Start};

/// Interrupt number of the virtual timer, physical and virtual: the only one that a list register may link.
const TIMER_INTID: u64 = 27;

macro_rules! word {
    ($field:ident) => {
        offset_of!(Mailbox, $field) / 8
    };
}

/// A copy of what the host wants of an entry, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    lr_count: usize,
    direct: Direct,
    vgic_hcr: u64,
    unmask_timer: bool,
    inject_abort: bool,
    /// Interrupt lines that the host drives itself.
    pub lines: VirtualLines,
    /// Where a vCPU starts, with which x0; `None`: it goes on.
    start: Option<(u64, u64)>,
}

impl Entry {
    /// Number of the host's list registers.
    pub const fn list_registers(&self) -> usize {
        self.lr_count
    }
}

/// Copies what decides this entry of `active` out of its mailbox `page`, and checks the copy. List registers that are
/// good go to `ctxt`.
///
/// # Errors
/// [`CallError::InvalidParameter`]: unknown flags, here or in what the core may deliver; more list registers than there are, or one that links an interrupt other than the VM's timer; a start
/// in another state than EL1h with all masked (A9), or a protected VM's elsewhere than where its manifest says; an abort where no access was
/// made. Nothing has changed then but list registers in the context, which every entry writes anew.
pub fn read_entry(
    page: &impl ForeignPage,
    active: &Entering,
    vgic: &VgicInfo,
    ctxt: &mut Context,
) -> Result<Entry, CallError> {
    const KNOWN: u64 = ENTRY_VIRQ | ENTRY_VFIQ | ENTRY_INJECT_ABORT | ENTRY_TIMER_UNMASK | ENTRY_KEEP_REGISTERS;
    let flags = page.read(word!(entry_flags));
    let (inject_abort, keep) = (flags & ENTRY_INJECT_ABORT != 0, flags & ENTRY_KEEP_REGISTERS != 0);
    // Registers of a protected VM are not the host's to write (SetRegister refuses that too).
    let wrong =
        inject_abort && ctxt.get(ShadowReg::Flags) & FLAG_ABORTABLE == 0 || keep && active.kind == VmKind::Protected;
    if flags & !KNOWN != 0 || wrong {
        return Err(CallError::InvalidParameter);
    }
    let start = match active.start {
        Start::Resume => None,
        Start::Psci { pc, x0 } => Some((pc, x0)),
        Start::Mailbox if keep => None,
        start => Some(read_start(page, start)?),
    };
    let lr_count = usize::try_from(page.read(word!(lr_count))).map_err(|_| CallError::InvalidParameter)?;
    if lr_count > usize::from(vgic.list_registers) || lr_count > MAX_LIST_REGISTERS {
        return Err(CallError::InvalidParameter);
    }
    for (n, lr) in ctxt.vgic.iter_mut().enumerate().take(lr_count) {
        *lr = list_register(vgic.version, page.read(word!(lr) + n))?;
    }
    let direct = Direct::checked(page.read(word!(direct)), vgic)?;
    Ok(Entry {
        lr_count,
        direct,
        vgic_hcr: page.read(word!(vgic_hcr)) & MAINTENANCE,
        unmask_timer: flags & ENTRY_TIMER_UNMASK != 0,
        inject_abort: inject_abort && start.is_none(),
        lines: VirtualLines { virq: flags & ENTRY_VIRQ != 0, vfiq: flags & ENTRY_VFIQ != 0 },
        start,
    })
}

/// Where a vCPU starts, with which x0, if the mailbox has a say.
#[cold]
fn read_start(page: &impl ForeignPage, start: Start) -> Result<(u64, u64), CallError> {
    let (pc, x0) = (page.read(word!(pc)), page.read(word!(x0)));
    let (pc_is_right, start) = match start {
        Start::Manifest { pc: signed, x0 } => (signed == pc, (signed, x0)),
        _ => (true, (pc, x0)),
    };
    if page.read(word!(pstate)) == START_PSTATE && pc_is_right { Ok(start) } else { Err(CallError::InvalidParameter) }
}

/// Maintenance interrupts that the host may enable; the other bits of the register are the core's. They have the same places in both GICs.
const MAINTENANCE: u64 = VGIC_HCR::UIE.mask << VGIC_HCR::UIE.shift
    | VGIC_HCR::LRENPIE.mask << VGIC_HCR::LRENPIE.shift
    | VGIC_HCR::NPIE.mask << VGIC_HCR::NPIE.shift;

/// What the host is told of the register: how many interrupts ended that it has to find itself.
const ENDED: u64 = VGIC_HCR::EOICOUNT.mask << VGIC_HCR::EOICOUNT.shift;

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

/// The vCPU as it will run: where it starts, or what its last exit left to the host. Cannot fail: `entry` was checked, and what is read
/// of `page` besides may be anything. K: `restore_shadow_kvm_regs`.
pub fn restore_shadow_kvm_regs<M: Machine>(ctxt: &mut Context, active: &Active, entry: &Entry, page: &M::Foreign<'_>) {
    if let Some((pc, x0)) = entry.start {
        reset_gp_regs(ctxt, pc, x0);
        reset_sys_regs(ctxt, active.vcpu, entry.lr_count);
    } else if entry.inject_abort {
        // The access is over; its register keeps what it had. The exception says where it was.
        let (syndrome, va) = (Syndrome::new(ctxt.get(ShadowReg::EsrEl2)), ctxt.get(ShadowReg::FarEl2));
        take_external_abort(&mut VmEl1::<M>::saved(ctxt), syndrome, va);
    } else {
        sync_dirty_to_shadow(ctxt, page);
    }
    ctxt.set(ShadowReg::Dirty, 0);
    ctxt.set(ShadowReg::Cntvoff, active.cntvoff);
    restore_timer(ctxt, entry.unmask_timer);
    ctxt.set(VgicWord::Hcr.reg(), entry.vgic_hcr);
    begin_direct(ctxt, entry.direct, entry.lr_count);
}

/// Forgets that the last exit was an access; the timer stays masked at the CPU until the host says otherwise.
fn restore_timer(ctxt: &mut Context, unmask: bool) {
    let masked = ctxt.get(ShadowReg::Flags) & FLAG_TIMER_MASKED != 0 && !unmask;
    ctxt.set(ShadowReg::Flags, if masked { FLAG_TIMER_MASKED } else { 0 });
    if masked {
        ctxt.set(CNTV_CTL, ctxt.get(CNTV_CTL) | CNT_CTL::IMASK::SET.value);
    }
}

const CNTV_CTL: ShadowReg = ShadowReg::Bank(BankReg::CntvCtl);

/// Whether the virtual timer is what interrupted the vCPU, whose registers were saved just now. If so the core keeps it masked at the CPU from now on.
/// Afterwards the shadow's CNTV_CTL is the VM's own view: without the core's mask. While the core masks it, a mask of the VM's
/// own cannot be told from it and is not seen; the VM's next write of the register without it ends both.
pub fn save_timer(ctxt: &mut Context, interrupted: bool) -> bool {
    let flags = ctxt.get(ShadowReg::Flags);
    let raw = ctxt.get(CNTV_CTL);
    let ctl = LocalRegisterCopy::<u64, CNT_CTL::Register>::new(raw);
    let was_masked = flags & FLAG_TIMER_MASKED != 0 && ctl.is_set(CNT_CTL::IMASK);
    if was_masked {
        ctxt.set(CNTV_CTL, raw & !CNT_CTL::IMASK::SET.value);
    }
    let fires = ctl.is_set(CNT_CTL::ENABLE) && ctl.is_set(CNT_CTL::ISTATUS) && !ctl.is_set(CNT_CTL::IMASK);
    let fired = interrupted && fires;
    let masked = if was_masked || fired { FLAG_TIMER_MASKED } else { 0 };
    ctxt.set(ShadowReg::Flags, flags & !FLAG_TIMER_MASKED | masked);
    fired
}

/// Writes to the mailbox `page` what an exit for `reason` shows, and notes what the next entry may take back. `sgis`: from other vCPUs, in no list register.
/// K: `save_shadow_kvm_regs`.
pub fn save_shadow_kvm_regs(
    ctxt: &mut Context,
    active: &Active,
    reason: ExitReason,
    sgis: u16,
    page: &impl ForeignPage,
) {
    let lrs = list_registers_in_use(ctxt);
    let shown = match reason {
        ExitReason::Wfx => prep_wfx(ctxt),
        ExitReason::Psci => prep_hvc(ctxt, ExitReason::Psci),
        ExitReason::SystemOff => prep_hvc(ctxt, ExitReason::SystemOff),
        ExitReason::MmioRead => prep_abort(ctxt, ExitReason::MmioRead),
        ExitReason::MmioWrite => prep_abort(ctxt, ExitReason::MmioWrite),
        ExitReason::MemoryFault => prep_abort(ctxt, ExitReason::MemoryFault),
        ExitReason::Sysreg => prep_sys64(ctxt),
        ExitReason::Irq | ExitReason::Timer | ExitReason::Stopped => prep_none(ctxt, ExitReason::Irq),
        ExitReason::Failed => prep_none(ctxt, ExitReason::Failed),
    };
    ctxt.set(ShadowReg::Exits, ctxt.get(ShadowReg::Exits).wrapping_add(1));
    for n in numbers(shown.x) {
        page.write(X + usize::from(n), ctxt.get(ShadowReg::X(n)) & shown.bits);
    }
    page.write(word!(esr), shown.esr);
    page.write(word!(ipa), shown.ipa);
    // List registers and the rest of the virtual CPU interface are the host's own doing or what it let the core do, as the VM's interrupts left them.
    for (n, lr) in ctxt.vgic.iter().enumerate().take(lrs.min(MAX_LIST_REGISTERS)) {
        page.write(word!(lr) + n, *lr);
    }
    page.write(word!(lr_count), lrs as u64);
    page.write(word!(vgic_hcr), ctxt.get(VgicWord::Hcr.reg()) & ENDED);
    page.write(word!(vgic_vmcr), ctxt.get(VgicWord::Vmcr.reg()));
    page.write(word!(vgic_misr), ctxt.get(VgicWord::Misr.reg()));
    page.write(word!(cntv_ctl), ctxt.get(CNTV_CTL));
    page.write(word!(cntv_cval), ctxt.get(ShadowReg::Bank(BankReg::CntvCval)));
    page.write(word!(cntvoff), active.cntvoff);
    page.write(word!(exits), ctxt.get(ShadowReg::Exits));
    let off = match reason {
        ExitReason::SystemOff | ExitReason::Stopped | ExitReason::Failed => true,
        ExitReason::Psci => is_call(ctxt, psci::CPU_OFF),
        _ => false,
    };
    page.write(word!(powered), u64::from(!off));
    page.write(word!(sgis), sgis.into());
}
