//! Layer 27, VCPUOpsAux: the steps of the hand-over between shadow context and mailbox, and how EL1 takes an exception.
//!
//! | primitive                                          | does                                                                 | lock |
//! |----------------------------------------------------|----------------------------------------------------------------------|------|
//! | [`prep_wfx`], [`prep_hvc`], [`prep_abort`], [`prep_sys64`], [`prep_none`] | what the host is shown, and what it may change  | none |
//! | [`sync_dirty_to_shadow`]                           | takes what the host may change                                       | none |
//! | [`reset_gp_regs`], [`reset_sys_regs`]              | a vCPU as it starts                                                  | none |
//! | [`update_exception_gp_regs`]                       | exception entry into EL1, as the CPU does it                         | none |
//! | [`take_undefined`], [`take_external_abort`], [`take_alignment_fault`], [`take_illegal`], [`take_breakpoint`] | the exceptions that the core makes host and VMs take | none |
//!
//! The syndrome that decides is always the shadow's, never a copy that the host could change (K §8.3 A2). Which vCPU is meant was
//! checked above: nobody else runs it.
//!
//! Below: AbstractMachine, `exposure`. Above: VCPUOps. Specification: `spec::vcpu`. Source: SeKVM layer VCPUOpsAux; K §3.5, §8.2 D9, M4-M6,
//! §8.3 A2, A8, A9; Arm ARM D1.3.1 for exception entry.
#![forbid(unsafe_code)]

use core::mem::offset_of;

use tock_registers::LocalRegisterCopy;
use tock_registers::fields::FieldValue;

use super::el1::El1State;
use super::exposure;
use crate::abstract_machine::ForeignPage;
use crate::abstract_machine::addr::{PAGE_SIZE, VcpuId};
use crate::abstract_machine::regs::{
    ESR, El1Reg, ExceptionClass, INSTRUCTION_SIZE, SCTLR_EL1_ENTRY, SCTLR_EL1_RESET, SPSR, Syndrome, ipa_of_hpfar, ones,
};
use crate::abstract_machine::shadow::{BankReg, Context, DIRTY_PC, ShadowReg, VGIC_WORDS};
use crate::interface::guest::{SUCCESS, psci};
use crate::interface::mailbox::{ExitReason, Mailbox, START_PSTATE};

/// Bit of `Flags`: the host may end the last access with an abort.
pub const FLAG_ABORTABLE: u64 = 1 << 0;
/// Bit of `Flags`: the core has masked the VM's timer at the CPU.
pub const FLAG_TIMER_MASKED: u64 = 1 << 1;

/// MPIDR_EL1: bit 31 is RES1.
const MPIDR_RES1: u64 = 1 << 31;

/// What the host is shown of an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// Which of x0 to x30.
    pub x: u64,
    /// Which bits of each.
    pub bits: u64,
    /// Of ESR_EL2.
    pub esr: u64,
    /// Of the faulting address.
    pub ipa: u64,
}

// ---- exit ---------------------------------------------------------------------------------------------------------------

/// WFI, or a call that waits as it does: the host sees that, and no register. The call returns when the wait is over. K: `prep_wfx`.
#[inline(always)]
pub fn prep_wfx(ctxt: &mut Context) -> Shown {
    if matches!(Syndrome::new(ctxt.get(ShadowReg::EsrEl2)).class(), ExceptionClass::Hvc64 | ExceptionClass::Smc64) {
        ctxt.set(ShadowReg::X(0), SUCCESS);
    }
    prepare(ctxt, ExitReason::Wfx)
}

/// A call that the host has a part in, or the VM's last. Only CPU_ON has arguments. K: `prep_hvc`.
#[inline(always)]
pub fn prep_hvc(ctxt: &mut Context, reason: ExitReason) -> Shown {
    let shown = prepare(ctxt, reason);
    if reason == ExitReason::Psci && !is_call(ctxt, psci::CPU_ON) {
        return Shown { x: shown.x & exposure::NUMBER_OF_CALL, ..shown };
    }
    shown
}

/// Whether x0 says that the vCPU makes the call `function`.
#[inline(always)]
pub fn is_call(ctxt: &Context, function: u64) -> bool {
    ctxt.get(ShadowReg::X(0)) & u64::from(u32::MAX) == function
}

/// An access to an address that is not the VM's memory, or not yet. K: `prep_abort`.
#[inline(always)]
pub fn prep_abort(ctxt: &mut Context, reason: ExitReason) -> Shown {
    let shown = prepare(ctxt, reason);
    let syndrome = Syndrome::new(ctxt.get(ShadowReg::EsrEl2));
    if reason == ExitReason::MemoryFault && syndrome.is_stage1_walk() {
        return Shown { esr: exposure::of_walk(syndrome, shown.esr), ..shown };
    }
    shown
}

/// A trapped system register that the host emulates. New: K skips them all.
#[inline(always)]
pub fn prep_sys64(ctxt: &mut Context) -> Shown {
    prepare(ctxt, ExitReason::Sysreg)
}

/// An exit that has nothing to show. K: exits by an interrupt.
#[inline(always)]
pub fn prep_none(ctxt: &mut Context, reason: ExitReason) -> Shown {
    prepare(ctxt, reason)
}

// Each exit knows its reason where it is made, so that its row is no table to look into but what the code does.
#[inline(always)]
fn prepare(ctxt: &mut Context, reason: ExitReason) -> Shown {
    let row = exposure::of(reason);
    let syndrome = Syndrome::new(ctxt.get(ShadowReg::EsrEl2));
    // One word, written whole: nothing of an earlier exit stays in it (K §8.2 M5).
    let dirty = row.taken.mask(syndrome) | if row.steps { DIRTY_PC } else { 0 };
    ctxt.set(ShadowReg::Dirty, dirty);
    let flags = ctxt.get(ShadowReg::Flags) & !FLAG_ABORTABLE;
    let abortable = if row.abortable { FLAG_ABORTABLE } else { 0 };
    ctxt.set(ShadowReg::Flags, flags | abortable);
    let ipa = if row.ipa == 0 { 0 } else { fault_address(ctxt) & row.ipa };
    Shown { x: row.shown.mask(syndrome), bits: exposure::bits(reason, syndrome), esr: syndrome.raw() & row.esr, ipa }
}

/// The address in the VM that faulted. A stage-2 page and a stage-1 page agree in the offset.
fn fault_address(ctxt: &Context) -> u64 {
    let page = ipa_of_hpfar(ctxt.get(ShadowReg::HpfarEl2));
    page.raw() | ctxt.get(ShadowReg::FarEl2) & (PAGE_SIZE - 1)
}

// ---- entry --------------------------------------------------------------------------------------------------------------

/// Takes from `page`, the mailbox, what the last exit allows of x0 to x30, each once, and nothing else; the program counter moves on if that exit
/// said so. K: `sync_dirty_to_shadow`. (M6: the published function keeps only the last register; M4: its caller has the test inverted.)
pub fn sync_dirty_to_shadow(ctxt: &mut Context, page: &impl ForeignPage) {
    let dirty = ctxt.get(ShadowReg::Dirty);
    let syndrome = Syndrome::new(ctxt.get(ShadowReg::EsrEl2));
    if syndrome.class() == ExceptionClass::DataAbort {
        // It has one register at most.
        if let Some(n) = numbers(dirty).next() {
            let value = page.read(X + usize::from(n));
            ctxt.set(ShadowReg::X(n), loaded(value, syndrome));
        }
    } else {
        numbers(dirty).for_each(|n| ctxt.set(ShadowReg::X(n), page.read(X + usize::from(n))));
    }
    if dirty & DIRTY_PC != 0 {
        step_over(ctxt);
    }
}

/// Word of x0 in the mailbox.
pub const X: usize = offset_of!(Mailbox, x) / 8;

/// The general registers that a mask of x0 to x30 names.
pub fn numbers(mask: u64) -> impl Iterator<Item = u8> {
    ones(mask, 31)
}

/// The VM goes on behind the instruction.
pub fn step_over(ctxt: &mut Context) {
    let pc = ctxt.get(ShadowReg::Pc);
    ctxt.set(ShadowReg::Pc, pc.wrapping_add(INSTRUCTION_SIZE));
}

/// What a load of this syndrome can give: the host cannot put more into a register than the access has bits.
fn loaded(value: u64, syndrome: Syndrome) -> u64 {
    let unused = 64 - 8 * syndrome.access_size();
    let value = if syndrome.is_sign_extended() {
        ((value << unused) as i64 >> unused) as u64
    } else {
        value << unused >> unused
    };
    if syndrome.is_64_bit_register() { value } else { value & u64::from(u32::MAX) }
}

/// General registers of a vCPU that starts at `pc` with `x0`: everything else zero, EL1h with all masked (A9: whatever the host said).
/// K: `reset_gp_regs`.
pub fn reset_gp_regs(ctxt: &mut Context, pc: u64, x0: u64) {
    let mut set = |reg, value| ctxt.set(reg, value);
    (0..31).for_each(|n| set(ShadowReg::X(n), 0));
    set(ShadowReg::X(0), x0);
    set(ShadowReg::Pc, pc);
    set(ShadowReg::Pstate, START_PSTATE);
    (0..64).for_each(|n| set(ShadowReg::Q(n), 0));
    for reg in [ShadowReg::Fpsr, ShadowReg::Fpcr, ShadowReg::Dirty, ShadowReg::Flags] {
        set(reg, 0);
    }
}

/// System registers of a vCPU that starts: MMU off, its own number in MPIDR, nothing of whoever ran before. The first `lrs` list registers are what the host
/// has for it already: an interrupt may be pending before the vCPU is there. K: `reset_sys_regs`. (M6: the published specification writes them into general registers.)
pub fn reset_sys_regs(ctxt: &mut Context, vcpu: VcpuId, lrs: usize) {
    for reg in BankReg::ALL {
        let value = match reg {
            BankReg::Mpidr => MPIDR_RES1 | vcpu.index() as u64,
            BankReg::Sctlr => SCTLR_EL1_RESET,
            _ => 0,
        };
        ctxt.set(ShadowReg::Bank(*reg), value);
    }
    (lrs as u8..VGIC_WORDS as u8).for_each(|n| ctxt.set(ShadowReg::Vgic(n), 0));
}

// ---- exceptions ---------------------------------------------------------------------------------------------------------

/// Entry into EL1 with syndrome `esr`, as the CPU would do it. K: `update_exception_gp_regs`; D9: the published one went to vector 0.
pub fn update_exception_gp_regs(el1: &mut impl El1State, esr: u64) {
    let (pc, pstate) = (el1.pc(), el1.pstate());
    el1.write(El1Reg::Elr, pc);
    el1.write(El1Reg::Spsr, pstate);
    el1.write(El1Reg::Esr, esr);
    el1.set_pc(el1.read(El1Reg::Vbar).wrapping_add(vector_offset(pstate)));
    el1.set_pstate(entry_pstate(pstate, el1.read(El1Reg::Sctlr)));
}

/// The instruction is undefined.
pub fn take_undefined(el1: &mut impl El1State) {
    update_exception_gp_regs(el1, (ESR::EC::Unknown + ESR::IL::SET).value);
}

/// The processor state was illegal.
pub fn take_illegal(el1: &mut impl El1State) {
    update_exception_gp_regs(el1, (ESR::EC::Illegal + ESR::IL::SET).value);
}

/// The BRK instruction of `syndrome`.
pub fn take_breakpoint(el1: &mut impl El1State, syndrome: Syndrome) {
    update_exception_gp_regs(el1, syndrome.raw() & u64::from(u32::MAX));
}

/// A synchronous external abort for the access to `va` that trapped with `syndrome`. K §8.3 A22: `stage2_inject_el1_fault`.
pub fn take_external_abort(el1: &mut impl El1State, syndrome: Syndrome, va: u64) {
    let fnv = ESR::FNV.val(u64::from(syndrome.is_far_invalid()));
    take_abort(el1, syndrome, va, fnv + ESR::FSC::SyncExternalAbort);
}

/// An alignment fault for the data access to `va` that trapped with `syndrome`.
pub fn take_alignment_fault(el1: &mut impl El1State, syndrome: Syndrome, va: u64) {
    take_abort(el1, syndrome, va, ESR::FSC::AlignmentFault);
}

fn take_abort(el1: &mut impl El1State, syndrome: Syndrome, va: u64, status: FieldValue<u64, ESR::Register>) {
    let from_el0 = is_el0(el1.pstate());
    let class = match (syndrome.class(), from_el0) {
        (ExceptionClass::InstrAbort, true) => ESR::EC::InstrAbortLowerEl,
        (ExceptionClass::InstrAbort, false) => ESR::EC::InstrAbortCurrentEl,
        (_, true) => ESR::EC::DataAbortLowerEl,
        (_, false) => ESR::EC::DataAbortCurrentEl,
    };
    let is_write = syndrome.class() == ExceptionClass::DataAbort && syndrome.is_write();
    let access = ESR::WNR.val(u64::from(is_write)) + status;
    el1.write(El1Reg::Far, va);
    update_exception_gp_regs(el1, (class + ESR::IL::SET + access).value);
}

/// Whether `pstate` is one of EL0.
pub fn is_el0(pstate: u64) -> bool {
    LocalRegisterCopy::<u64, SPSR::Register>::new(pstate).read(SPSR::M) & 0b0_1111 == 0
}

/// Offset of the synchronous vector for an exception from `pstate`: current EL with SP_EL0, current EL with SP_ELx, lower EL in
/// AArch64, lower EL in AArch32.
fn vector_offset(pstate: u64) -> u64 {
    match LocalRegisterCopy::<u64, SPSR::Register>::new(pstate).read_as_enum(SPSR::M) {
        Some(SPSR::M::Value::EL1t) => 0x000,
        Some(SPSR::M::Value::EL1h) => 0x200,
        Some(SPSR::M::Value::EL0t) => 0x400,
        _ => 0x600,
    }
}

/// Processor state after exception entry into EL1 from `pstate`.
fn entry_pstate(pstate: u64, sctlr: u64) -> u64 {
    let old = LocalRegisterCopy::<u64, SPSR::Register>::new(pstate);
    let sctlr = LocalRegisterCopy::<u64, SCTLR_EL1_ENTRY::Register>::new(sctlr);
    let pan = !sctlr.is_set(SCTLR_EL1_ENTRY::SPAN) || old.is_set(SPSR::PAN);
    (SPSR::M::EL1h
        + SPSR::DAIF::Masked
        + SPSR::NZCV.val(old.read(SPSR::NZCV))
        + SPSR::DIT.val(old.read(SPSR::DIT))
        // Set by every exception on a CPU with memory tagging; it means something only where EL1 may use tags. In the
        // state of an AArch32 process the bit is another one.
        + SPSR::TCO.val(sctlr.read(SCTLR_EL1_ENTRY::ATA))
        + SPSR::PAN.val(u64::from(pan))
        // It means something only with NMI, which is clear where there is no such bit.
        + SPSR::ALLINT.val(u64::from(sctlr.is_set(SCTLR_EL1_ENTRY::NMI) && !sctlr.is_set(SCTLR_EL1_ENTRY::SPINTMASK)))
        + SPSR::SSBS.val(sctlr.read(SCTLR_EL1_ENTRY::DSSBS)))
    .value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_enters_the_vector_of_the_level_that_it_came_from() {
        assert_eq!([0x3c4, 0x3c5, 0x3c0, 0x010].map(vector_offset), [0x000, 0x200, 0x400, 0x600]);
    }

    #[test]
    fn exception_entry_masks_interrupts_of_superpriority_unless_the_stack_pointer_does() {
        assert_eq!(entry_pstate(0, 1 << 61 | 1 << 23), 1 << 13 | 0x3c5);
        assert_eq!(entry_pstate(1 << 13, 0b11 << 61 | 1 << 23), 0x3c5);
        assert_eq!(entry_pstate(0, 1 << 23), 0x3c5);
    }

    #[test]
    fn exception_entry_masks_everything_and_keeps_the_flags() {
        let pstate = 0b1010 << 28 | 1 << 24 | 1 << 21;
        assert_eq!(entry_pstate(pstate, 1 << 23), 0b1010 << 28 | 1 << 24 | 0x3c5);
    }

    #[test]
    fn exception_entry_sets_tco_where_tags_are_used_and_nowhere_else() {
        assert_eq!(entry_pstate(0, 1 << 43 | 1 << 23), 1 << 25 | 0x3c5);
        assert_eq!(entry_pstate(1 << 25, 1 << 23), 0x3c5);
    }

    #[test]
    fn exception_entry_sets_pan_unless_the_host_keeps_it() {
        assert_eq!(entry_pstate(0, 0), 1 << 22 | 0x3c5);
        assert_eq!(entry_pstate(1 << 22, 1 << 23), 1 << 22 | 0x3c5);
    }

    #[test]
    fn a_load_gives_what_a_load_of_its_width_can_give() {
        let load = |sas: u64, sse: u64, sf: u64| {
            loaded(0x1234_5678_9abc_def0, Syndrome::new(sas << 22 | sse << 21 | sf << 15))
        };
        assert_eq!(load(0, 0, 0), 0xf0);
        assert_eq!(load(0, 1, 0), 0xffff_fff0);
        assert_eq!(load(0, 1, 1), 0xffff_ffff_ffff_fff0);
        assert_eq!(load(1, 0, 0), 0xdef0);
        assert_eq!(load(2, 0, 0), 0x9abc_def0);
        assert_eq!(load(2, 1, 1), 0xffff_ffff_9abc_def0);
        assert_eq!(load(3, 0, 1), 0x1234_5678_9abc_def0);
    }
}
