//! FP and SIMD registers, and what stands behind them on a CPU with SVE or SME. K §3.4: `fpsimd_save_state`, `fpsimd_restore_state`.
//!
//! A VM has q0-q31, FPSR and FPCR. The host has all that its CPU has: its vectors and predicates are saved whole, at the longest length,
//! because a VM's use of q0-q31 clears the rest of them. The core itself uses none of these registers.

use aarch64_cpu::asm::barrier;

use super::super::shadow::Context;
use super::sysreg;

unsafe extern "C" {
    fn fpsimd_save(q: *mut u64);
    fn fpsimd_restore(q: *const u64);
    fn sve_save(area: *mut u8);
    fn sve_restore(area: *const u8);
}

/// Bytes of a CPU's area for the host's vectors, at the longest length that the architecture has (256 bytes): 32 vectors, 16
/// predicates and FFR.
pub const SVE_AREA: u64 = 32 * 256 + 17 * 32;

/// Whether this CPU has SVE.
pub fn has_sve() -> bool {
    sysreg::IdAa64pfr0::get().read(sysreg::ID_AA64PFR0::SVE) != 0
}

/// Whether this CPU has SME.
pub fn has_sme() -> bool {
    sysreg::IdAa64pfr1::get().read(sysreg::ID_AA64PFR1::SME) != 0
}

/// Lets EL2 use the vector registers that the following accesses need.
fn allow() {
    sysreg::Cptr::set(cptr(false, false));
    barrier::isb(barrier::SY);
}

/// CPTR_EL2 with traps of SVE and SME as asked for, for EL2 as well as for what is below.
pub fn cptr(trap_sve: bool, trap_sme: bool) -> u64 {
    (sysreg::CPTR_EL2::RES1_A.val(0xff)
        + sysreg::CPTR_EL2::RES1_B::SET
        + sysreg::CPTR_EL2::RES1_C::SET
        + sysreg::CPTR_EL2::TZ.val(u64::from(trap_sve || !has_sve()))
        + sysreg::CPTR_EL2::TSM.val(u64::from(trap_sme || !has_sme())))
    .value
}

/// This CPU's q0-q31, FPSR and FPCR go into `context`.
pub fn save_vm(context: &mut Context) {
    // SAFETY: room for 32 registers of 16 bytes.
    unsafe { fpsimd_save(context.q.as_mut_ptr()) };
    context.fp_control = [sysreg::Fpsr::get().get(), sysreg::Fpcr::get().get()];
}

/// This CPU gets q0-q31, FPSR and FPCR from `context`; on a CPU with SVE the rest of the vectors is zero then.
pub fn restore_vm(context: &Context) {
    // SAFETY: 32 registers of 16 bytes; the core uses none of them.
    unsafe { fpsimd_restore(context.q.as_ptr()) };
    sysreg::Fpsr::set(context.fp_control[0]);
    sysreg::Fpcr::set(context.fp_control[1]);
}

/// The host's vectors: as [`save_vm`], or all of SVE into `area` where the CPU has it.
///
/// # Safety
/// `area` is room for [`SVE_AREA`] bytes that only this CPU uses, or the CPU has no SVE.
pub unsafe fn save_host(context: &mut Context, area: *mut u8) {
    if has_sve() {
        allow();
        // SAFETY: the caller's.
        unsafe { sve_save(area) };
        context.fp_control = [sysreg::Fpsr::get().get(), sysreg::Fpcr::get().get()];
    } else {
        save_vm(context);
    }
}

/// The host has its vectors back.
///
/// # Safety
/// As [`save_host`]; `area` was filled by it.
pub unsafe fn restore_host(context: &Context, area: *const u8) {
    if has_sve() {
        allow();
        // SAFETY: the caller's.
        unsafe { sve_restore(area) };
        sysreg::Fpsr::set(context.fp_control[0]);
        sysreg::Fpcr::set(context.fp_control[1]);
    } else {
        restore_vm(context);
    }
}
