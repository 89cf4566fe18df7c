//! The EL1 and EL0 registers of host and VMs: what is switched, what is not, and why.
//!
//! | registers                                   | decision                                                                   |
//! |---------------------------------------------|----------------------------------------------------------------------------|
//! | [`BankReg`], but the ones below             | switched                                                                   |
//! | ACTLR_EL1                                   | the host's stays: a VM's accesses trap (HCR_EL2.TACR)                      |
//! | MDSCR_EL1, MDCCINT_EL1                      | 0 for VMs, whose accesses trap: the host's breakpoints do not fire in them |
//! | breakpoints, watchpoints, OS lock           | the host's stay: trap (MDCR_EL2.TDA, TDRA, TDOSA)                          |
//! | performance counters, profiling, trace      | the host's stay, stopped while a VM runs; trap (MDCR_EL2, CPTR_EL2.TTA)    |
//! | activity monitors, MPAM, error records      | trap (CPTR_EL2.TAM, MPAM2_EL2, HCR_EL2.TERR)                               |
//! | DISR_EL1                                    | a VM has VDISR_EL2 in its place (HCR_EL2.AMO)                              |
//! | PAuth keys                                  | switched where the CPU has them                                            |
//! | CNTV_*                                      | switched; off while the core is between the two                            |
//! | CNTP_*                                      | the host's stay: trap (CNTHCTL_EL2.EL1PCEN = 0)                            |
//! | z0-z31, ZCR_EL1, SME                        | `fpsimd`                                                                   |
//! | ICC_*_EL1                                   | a VM has ICV_* in their place (HCR_EL2.IMO, FMO); ICC_SRE_EL1: `vgic`      |
//! | MTE, SCXTNUM, LORegions, TPIDR2, PIR, POR, TCR2, SCTLR2, GCS, BRBE, ... | no access: HCR_EL2, HCRX_EL2, fine-grained traps |

use core::arch::asm;

use aarch64_cpu::asm::barrier;

use super::super::features::Features;
use super::super::shadow::{BankReg, Context};
use super::sysreg;

macro_rules! moves {
    ($(($reg:ident, $name:literal)),* $(,)?) => {
        (
            |context: &mut Context| {
                $({
                    let value: u64;
                    // SAFETY: reads a register of EL1 or EL0, which the core does not use itself.
                    unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
                    context.bank[BankReg::$reg as usize] = value;
                })*
            },
            |context: &Context| {
                $(
                    // SAFETY: writes a register of EL1 or EL0, whose owner it is that runs next.
                    unsafe {
                        asm!(concat!("msr ", $name, ", {}"), in(reg) context.bank[BankReg::$reg as usize],
                            options(nomem, nostack, preserves_flags));
                    }
                )*
            },
        )
    };
}

type Moves = (fn(&mut Context), fn(&Context));

/// Always there. The next list is loaded in an order.
const PLAIN: Moves = moves!(
    (SpEl0, "sp_el0"),
    (SpEl1, "sp_el1"),
    (ElrEl1, "elr_el1"),
    (SpsrEl1, "spsr_el1"),
    (Mpidr, "vmpidr_el2"),
    (Csselr, "csselr_el1"),
    (Cpacr, "cpacr_el1"),
    (Ttbr0, "ttbr0_el1"),
    (Ttbr1, "ttbr1_el1"),
    (Esr, "esr_el1"),
    (Afsr0, "afsr0_el1"),
    (Afsr1, "afsr1_el1"),
    (Far, "far_el1"),
    (Mair, "mair_el1"),
    (Vbar, "vbar_el1"),
    (Contextidr, "contextidr_el1"),
    (TpidrEl0, "tpidr_el0"),
    (TpidrroEl0, "tpidrro_el0"),
    (TpidrEl1, "tpidr_el1"),
    (Amair, "amair_el1"),
    (Cntkctl, "cntkctl_el1"),
    (Par, "par_el1"),
    (CntvCval, "cntv_cval_el0"),
);
const ORDERED: Moves = moves!((Sctlr, "sctlr_el1"), (Tcr, "tcr_el1"), (CntvCtl, "cntv_ctl_el0"));
const DEBUG: Moves = moves!((Mdscr, "mdscr_el1"), (Mdccint, "mdccint_el1"));
const HOST_RAS: Moves = moves!((Disr, "S3_0_C12_C1_1"));
const VM_RAS: Moves = moves!((Disr, "S3_4_C12_C1_1"));
const PAUTH: Moves = moves!(
    (ApiaKeyLo, "S3_0_C2_C1_0"),
    (ApiaKeyHi, "S3_0_C2_C1_1"),
    (ApibKeyLo, "S3_0_C2_C1_2"),
    (ApibKeyHi, "S3_0_C2_C1_3"),
    (ApdaKeyLo, "S3_0_C2_C2_0"),
    (ApdaKeyHi, "S3_0_C2_C2_1"),
    (ApdbKeyLo, "S3_0_C2_C2_2"),
    (ApdbKeyHi, "S3_0_C2_C2_3"),
    (ApgaKeyLo, "S3_0_C2_C3_0"),
    (ApgaKeyHi, "S3_0_C2_C3_1"),
);

/// Saves the registers that are there, and switches CNTV off.
pub fn save(context: &mut Context, features: &Features, is_host: bool) {
    (PLAIN.0)(context);
    (ORDERED.0)(context);
    if is_host {
        (DEBUG.0)(context);
    }
    if features.ras {
        (if is_host { HOST_RAS.0 } else { VM_RAS.0 })(context);
    }
    if features.pauth {
        (PAUTH.0)(context);
    }
    sysreg::CntvCtl::set(0);
    barrier::isb(barrier::SY);
}

/// Loads the registers: first all that stage-1 walks read, then SCTLR, at last TCR, which lets walks begin again
/// (`traps::no_walks` stopped them).
pub fn restore(context: &Context, features: &Features, is_host: bool) {
    (PLAIN.1)(context);
    if is_host {
        (DEBUG.1)(context);
    } else {
        sysreg::Mdscr::set(0);
        sysreg::Mdccint::set(0);
    }
    if features.ras {
        (if is_host { HOST_RAS.1 } else { VM_RAS.1 })(context);
    }
    if features.pauth {
        (PAUTH.1)(context);
    }
    barrier::isb(barrier::SY);
    sysreg::Sctlr1::set(context.bank[BankReg::Sctlr as usize]);
    barrier::isb(barrier::SY);
    sysreg::Tcr1::set(context.bank[BankReg::Tcr as usize]);
    sysreg::CntvCtl::set(context.bank[BankReg::CntvCtl as usize]);
    barrier::isb(barrier::SY);
}
