//! The bank of EL1 and EL0 registers: between this CPU and a context. K §3.4: `save_sysregs`, `restore_sysregs`.
//!
//! What the world switch does with every register that a VM could reach:
//!
//! | registers                                                     | decision                                                  |
//! |---------------------------------------------------------------|-----------------------------------------------------------|
//! | [`BankReg`]                                                   | switched                                                  |
//! | pointer authentication keys, DISR_EL1                         | switched where the CPU has them                           |
//! | x0-x30, PC, PSTATE                                            | switched by boot/switch.S                                 |
//! | q0-q31, FPSR, FPCR; the host's SVE and SME state              | switched by `fp`                                          |
//! | list registers, the virtual CPU interface                     | switched by `vgic`                                        |
//! | debug registers (breakpoints, OS lock), PMU, SPE, trace       | trapped while a VM runs (MDCR_EL2); MDSCR_EL1 is switched  |
//! | SVE, SME of VMs; AMU, RAS error records, MTE, LOR, IMPDEF     | trapped, or refused by HCR_EL2, and absent in the VM's ID registers |
//! | CNTP_*_EL0                                                    | trapped: the host's                                       |
//! | SCXTNUM, TCR2, PIR, GCS, ... (later extensions)               | refused to VMs by HCRX_EL2, HCR_EL2 and the ID registers  |

use core::arch::asm;

use super::super::shadow::{BANK_REGS, BankReg};
use super::sysreg;

// The timer's control comes last, when its comparator is right.
macro_rules! registers {
    ($do:ident) => {
        $do! {
            SpEl0: "sp_el0", SpEl1: "sp_el1", ElrEl1: "elr_el1", SpsrEl1: "spsr_el1", Mpidr: "vmpidr_el2",
            Csselr: "csselr_el1", Sctlr: "sctlr_el1", Actlr: "actlr_el1", Cpacr: "cpacr_el1", Ttbr0: "ttbr0_el1",
            Ttbr1: "ttbr1_el1", Tcr: "tcr_el1", Esr: "esr_el1", Afsr0: "afsr0_el1", Afsr1: "afsr1_el1", Far: "far_el1",
            Mair: "mair_el1", Vbar: "vbar_el1", Contextidr: "contextidr_el1", TpidrEl0: "tpidr_el0",
            TpidrroEl0: "tpidrro_el0", TpidrEl1: "tpidr_el1", Amair: "amair_el1", Cntkctl: "cntkctl_el1", Par: "par_el1",
            Mdscr: "mdscr_el1", Mdccint: "mdccint_el1", CntvCval: "cntv_cval_el0", CntvCtl: "cntv_ctl_el0",
        }
    };
}
macro_rules! pauth_keys {
    ($do:ident) => {
        $do! {
            ApiaKeyLo: "S3_0_C2_C1_0", ApiaKeyHi: "S3_0_C2_C1_1", ApibKeyLo: "S3_0_C2_C1_2", ApibKeyHi: "S3_0_C2_C1_3",
            ApdaKeyLo: "S3_0_C2_C2_0", ApdaKeyHi: "S3_0_C2_C2_1", ApdbKeyLo: "S3_0_C2_C2_2", ApdbKeyHi: "S3_0_C2_C2_3",
            ApgaKeyLo: "S3_0_C2_C3_0", ApgaKeyHi: "S3_0_C2_C3_1",
        }
    };
}

/// Copies this CPU's registers, the EL2 view of what EL1 had, into `bank`; the virtual timer is off afterwards.
pub fn save(bank: &mut [u64; BANK_REGS]) {
    macro_rules! save {
        ($($reg:ident: $name:literal,)*) => {
            $(
                // SAFETY: reading a register of EL1 has no side effect; conditional ones are asked for only where the CPU has them.
                bank[BankReg::$reg as usize] = unsafe {
                    let value: u64;
                    asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
                    value
                };
            )*
        };
    }
    registers!(save);
    if has_pauth() {
        pauth_keys!(save);
    }
    if has_ras() {
        save! { Disr: "S3_0_C12_C1_1", }
    }
    // The line of the virtual timer falls; whoever runs next has its own.
    // SAFETY: only the timer of EL1 changes.
    unsafe { asm!("msr cntv_ctl_el0, xzr", options(nomem, nostack, preserves_flags)) };
}

/// Gives this CPU the registers in `bank`.
pub fn restore(bank: &[u64; BANK_REGS]) {
    macro_rules! restore {
        ($($reg:ident: $name:literal,)*) => {
            $(
                // SAFETY: a register of EL1 or EL0, which the core itself does not use; conditional ones only where the CPU has them.
                unsafe {
                    asm!(concat!("msr ", $name, ", {}"), in(reg) bank[BankReg::$reg as usize], options(nomem, nostack, preserves_flags));
                }
            )*
        };
    }
    registers!(restore);
    if has_pauth() {
        pauth_keys!(restore);
    }
    if has_ras() {
        restore! { Disr: "S3_0_C12_C1_1", }
    }
}

/// FEAT_PAuth, by whichever algorithm.
pub fn has_pauth() -> bool {
    let isar1 = sysreg::IdAa64isar1::get();
    [sysreg::ID_AA64ISAR1::APA, sysreg::ID_AA64ISAR1::API].iter().any(|field| isar1.read(*field) != 0)
        || sysreg::IdAa64isar2::get().read(sysreg::ID_AA64ISAR2::APA3) != 0
}

fn has_ras() -> bool {
    sysreg::IdAa64pfr0::get().read(sysreg::ID_AA64PFR0::RAS) != 0
}
