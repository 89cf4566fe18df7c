//! The EL1 and EL0 registers of host and VMs: what is switched, what is not, and why.
//!
//! | registers                                   | decision                                                                   |
//! |---------------------------------------------|----------------------------------------------------------------------------|
//! | [`BankReg`], but the ones below             | switched                                                                   |
//! | ACTLR_EL1                                   | the host's stays: a VM's accesses trap (HCR_EL2.TACR)                      |
//! | MDSCR_EL1, MDCCINT_EL1                      | 0 for VMs, whose accesses trap: the host's breakpoints do not fire in them |
//! | breakpoints, watchpoints, OS lock           | the host's stay: trap (MDCR_EL2.TDA, TDRA, TDOSA)                          |
//! | performance counters                        | the host's stay, stopped while a VM runs; trap (MDCR_EL2)                  |
//! | profiling, trace, branch records            | the host's stay, stopped before its tables go (`traps::stop_recording`); trap (MDCR_EL2, CPTR_EL2.TTA, fine-grained traps) |
//! | activity monitors, MPAM, error records      | trap (CPTR_EL2.TAM, MPAM2_EL2, HCR_EL2.TERR)                               |
//! | VMPIDR_EL2                                  | loaded; nobody but the core writes it, so it is never saved                |
//! | DISR_EL1                                    | host and VM have VDISR_EL2 in its place (HCR_EL2.AMO)                      |
//! | PAuth keys                                  | switched where the CPU has them                                            |
//! | CNTV_*                                      | switched; off while the core is between the two                            |
//! | CNTP_*                                      | the host's stay: trap (CNTHCTL_EL2.EL1PCEN = 0)                            |
//! | z0-z31, ZCR_EL1, SME                        | `fpsimd`                                                                   |
//! | ICC_*_EL1                                   | a VM has ICV_* in their place (HCR_EL2.IMO, FMO); ICC_SRE_EL1: traps (`vgic`) |
//! | MTE, SCXTNUM, LORegions, TPIDR2, PIR, POR, TCR2, SCTLR2, GCS, BRBE, ... | no access: HCR_EL2, HCRX_EL2, fine-grained traps |
//!
//! Source: Arm ARM (DDI 0487) D24.2 for each register, and of what traps.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{MPIDR_EL1, Readable};

use super::super::features::Features;
use super::super::shadow::{BANK_REGS, BankReg, Context};
use super::sysreg;

type Bank = [u64; BANK_REGS];

/// A register, or two that are neighbours in the bank.
macro_rules! save {
    ($bank:ident, ($reg:ident, $name:literal)) => {
        // SAFETY: reads a register of EL1 or EL0, which the core does not use itself.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) $bank[BankReg::$reg as usize], options(nomem, nostack, preserves_flags)) };
    };
    ($bank:ident, ($low:ident, $low_name:literal), ($high:ident, $high_name:literal)) => {
        const { assert!(BankReg::$low as usize + 1 == BankReg::$high as usize) };
        // SAFETY: reads two registers of EL1 or EL0, which the core does not use itself, into two words of the bank.
        unsafe {
            asm!(concat!("mrs {low}, ", $low_name), concat!("mrs {high}, ", $high_name), "stp {low}, {high}, [{bank}, {at}]",
                low = out(reg) _, high = out(reg) _, bank = in(reg) $bank.as_mut_ptr(), at = const 8 * BankReg::$low as usize,
                options(nostack, preserves_flags));
        }
    };
}

macro_rules! load {
    ($bank:ident, ($reg:ident, $name:literal)) => {
        // SAFETY: writes a register of EL1 or EL0, whose owner it is that runs next.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) $bank[BankReg::$reg as usize], options(nomem, nostack, preserves_flags)) };
    };
    ($bank:ident, ($low:ident, $low_name:literal), ($high:ident, $high_name:literal)) => {
        // SAFETY: writes two registers of EL1 or EL0, whose owner it is that runs next, from two words of the bank.
        unsafe {
            asm!("ldp {low}, {high}, [{bank}, {at}]", concat!("msr ", $low_name, ", {low}"), concat!("msr ", $high_name, ", {high}"),
                low = out(reg) _, high = out(reg) _, bank = in(reg) $bank.as_ptr(), at = const 8 * BankReg::$low as usize,
                options(nostack, preserves_flags, readonly));
        }
    };
}

macro_rules! moves {
    ($save:ident, $load:ident, $(($low:ident, $low_name:literal) $(+ ($high:ident, $high_name:literal))?),* $(,)?) => {
        #[inline(always)]
        fn $save(bank: &mut Bank) {
            $(save!(bank, ($low, $low_name) $(, ($high, $high_name))?);)*
        }

        #[inline(always)]
        fn $load(bank: &Bank) {
            $(load!(bank, ($low, $low_name) $(, ($high, $high_name))?);)*
        }
    };
}

// Always there.
moves!(
    save_plain,
    load_plain,
    (SpEl0, "sp_el0") + (SpEl1, "sp_el1"),
    (ElrEl1, "elr_el1") + (SpsrEl1, "spsr_el1"),
    (Cpacr, "cpacr_el1") + (Ttbr0, "ttbr0_el1"),
    (Esr, "esr_el1") + (Afsr0, "afsr0_el1"),
    (Afsr1, "afsr1_el1") + (Far, "far_el1"),
    (Mair, "mair_el1") + (Vbar, "vbar_el1"),
    (Contextidr, "contextidr_el1") + (TpidrEl0, "tpidr_el0"),
    (TpidrroEl0, "tpidrro_el0") + (TpidrEl1, "tpidr_el1"),
    (Amair, "amair_el1") + (Cntkctl, "cntkctl_el1"),
);
// These too, but they are loaded in an order of their own.
moves!(
    save_in_order,
    _load_in_order,
    (Csselr, "csselr_el1") + (Sctlr, "sctlr_el1"),
    (Ttbr1, "ttbr1_el1") + (Tcr, "tcr_el1"),
    (CntvCtl, "cntv_ctl_el0") + (CntvCval, "cntv_cval_el0"),
);
moves!(save_debug, load_debug, (Mdscr, "mdscr_el1") + (Mdccint, "mdccint_el1"));
moves!(save_ras, load_ras, (Disr, "S3_4_C12_C1_1"));
moves!(
    save_pauth,
    load_pauth,
    (ApiaKeyLo, "S3_0_C2_C1_0") + (ApiaKeyHi, "S3_0_C2_C1_1"),
    (ApibKeyLo, "S3_0_C2_C1_2") + (ApibKeyHi, "S3_0_C2_C1_3"),
    (ApdaKeyLo, "S3_0_C2_C2_0") + (ApdaKeyHi, "S3_0_C2_C2_1"),
    (ApdbKeyLo, "S3_0_C2_C2_2") + (ApdbKeyHi, "S3_0_C2_C2_3"),
    (ApgaKeyLo, "S3_0_C2_C3_0") + (ApgaKeyHi, "S3_0_C2_C3_1"),
);

// PAR_EL1 is saved by itself: no read of it close to a load of device memory, which another vCPU or the host may have on its way (Cortex-A77: erratum 1508412).
moves!(save_par, load_par, (Par, "par_el1"));

/// What of this CPU's host is never saved, for it does not change.
pub fn init_host(context: &mut Context) {
    context.bank[BankReg::Mpidr as usize] = MPIDR_EL1.get();
}

/// Saves the registers that are there, and switches CNTV off. It is so when the caller's next ISB is over, before CNTVOFF_EL2 or CNTV_CVAL_EL0 change.
#[inline(always)]
pub fn save(context: &mut Context, features: &Features, is_host: bool) {
    let bank = &mut context.bank;
    if is_host {
        // A VM's exit has a DSB of its own. What is loaded next is behind that of `traps::change_stage2`.
        barrier::dmb(barrier::SY);
    }
    save_par(bank);
    save_plain(bank);
    save_in_order(bank);
    if is_host {
        save_debug(bank);
    }
    if features.ras {
        save_ras(bank);
    }
    if features.pauth {
        save_pauth(bank);
    }
    sysreg::CntvCtl::clear();
}

/// Loads the registers: first all that stage-1 walks read, then SCTLR, at last TCR, which lets walks begin again
/// (`traps::change_stage2` stopped them). What stands after the last ISB holds for who runs next: ERET is one, too (SCTLR_EL2.EOS, which boot sets).
#[inline(always)]
pub fn restore(context: &Context, features: &Features, is_host: bool) {
    let bank = &context.bank;
    load_plain(bank);
    load_par(bank);
    load!(bank, (Mpidr, "vmpidr_el2"), (Csselr, "csselr_el1"));
    load!(bank, (Ttbr1, "ttbr1_el1"));
    load!(bank, (CntvCval, "cntv_cval_el0"));
    if is_host {
        load_debug(bank);
    } else {
        sysreg::Mdscr::clear();
        sysreg::Mdccint::clear();
    }
    if features.ras {
        load_ras(bank);
    }
    if features.pauth {
        load_pauth(bank);
    }
    barrier::isb(barrier::SY);
    sysreg::Sctlr1::set(bank[BankReg::Sctlr as usize]);
    barrier::isb(barrier::SY);
    sysreg::Tcr1::set(bank[BankReg::Tcr as usize]);
    sysreg::CntvCtl::set(bank[BankReg::CntvCtl as usize]);
}
