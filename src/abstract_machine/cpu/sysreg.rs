//! System registers that `aarch64-cpu` does not have, or not with their fields, by the manual's names.
//!
//! Each is a value with `get` and `set`; the encoding stands at its definition. Arm ARM (DDI 0487) D24.2.

use super::super::regs::SysregId;

pub use fields::*;

#[allow(missing_docs, reason = "the macro's own items cannot carry any")]
mod fields {
    use tock_registers::register_bitfields;

    register_bitfields! {u64,
        /// Architectural feature trap register, E2H = 0. RES1 bits are written as one.
        pub CPTR_EL2 [
            /// RES1.
            RES1_A OFFSET(0) NUMBITS(8) [],
            /// SVE traps; RES1 without SVE.
            TZ OFFSET(8) NUMBITS(1) [],
            /// RES1.
            RES1_B OFFSET(9) NUMBITS(1) [],
            /// FP and SIMD trap.
            TFP OFFSET(10) NUMBITS(1) [],
            /// SME traps; RES1 without SME.
            TSM OFFSET(12) NUMBITS(1) [],
            /// Trace registers trap.
            TTA OFFSET(20) NUMBITS(1) [],
            /// Activity monitors trap.
            TAM OFFSET(30) NUMBITS(1) [],
            /// RES1.
            RES1_C OFFSET(13) NUMBITS(1) [],
        ],
        /// SVE vector length control: the longest that the CPU has.
        pub ZCR_EL2 [ LEN OFFSET(0) NUMBITS(9) [] ],
        /// SME vector length and features for lower levels.
        pub SMCR_EL2 [
            LEN OFFSET(0) NUMBITS(9) [],
            EZT0 OFFSET(30) NUMBITS(1) [],
            FA64 OFFSET(31) NUMBITS(1) [],
        ],
        /// Extended hypervisor configuration: features that EL1 may use.
        pub HCRX_EL2 [
            EnAS0 OFFSET(0) NUMBITS(1) [],
            EnALS OFFSET(1) NUMBITS(1) [],
            EnASR OFFSET(2) NUMBITS(1) [],
            MSCEn OFFSET(11) NUMBITS(1) [],
            TCR2En OFFSET(14) NUMBITS(1) [],
            SCTLR2En OFFSET(15) NUMBITS(1) [],
            EnSNERR OFFSET(18) NUMBITS(1) [],
            EnSDERR OFFSET(20) NUMBITS(1) [],
            EnIDCP128 OFFSET(21) NUMBITS(1) [],
            GCSEn OFFSET(22) NUMBITS(1) [],
            EnFPM OFFSET(23) NUMBITS(1) [],
            PACMEn OFFSET(24) NUMBITS(1) [],
        ],
        /// ID_AA64PFR0_EL1: which extensions there are.
        pub ID_AA64PFR0 [
            GIC OFFSET(24) NUMBITS(4) [],
            RAS OFFSET(28) NUMBITS(4) [],
            SVE OFFSET(32) NUMBITS(4) [],
            MPAM OFFSET(40) NUMBITS(4) [],
            AMU OFFSET(44) NUMBITS(4) [],
            CSV2 OFFSET(56) NUMBITS(4) [],
        ],
        /// ID_AA64PFR1_EL1.
        pub ID_AA64PFR1 [
            MTE OFFSET(8) NUMBITS(4) [],
            MPAM_frac OFFSET(16) NUMBITS(4) [],
            SME OFFSET(24) NUMBITS(4) [],
            GCS OFFSET(44) NUMBITS(4) [],
        ],
        /// MPAMIDR_EL1.
        pub MPAMIDR_EL1 [
            /// MPAMHCR_EL2 is there.
            HAS_HCR OFFSET(17) NUMBITS(1) [],
        ],
        /// MPAM2_EL2: partitioning, as EL1 has it.
        pub MPAM2_EL2 [
            /// EL1 may use MPAMSM_EL1 (FEAT_SME).
            EnMPAMSM OFFSET(50) NUMBITS(1) [],
            /// MPAM1_EL1 traps.
            TRAPMPAM1EL1 OFFSET(49) NUMBITS(1) [],
            /// MPAM0_EL1 traps.
            TRAPMPAM0EL1 OFFSET(48) NUMBITS(1) [],
        ],
        /// PMBIDR_EL1 and TRBIDR_EL1: a buffer of profiling or of trace.
        pub BUFFER_ID [
            /// It is a higher level's: its registers are out of reach.
            P OFFSET(4) NUMBITS(1) [],
        ],
        /// PMBLIMITR_EL1 and TRBLIMITR_EL1.
        pub BUFFER_LIMIT [
            /// The buffer is written.
            E OFFSET(0) NUMBITS(1) [],
        ],
        /// BRBCR_EL2: what of the records of EL1's branches there is, and (zero) none of EL2's.
        pub BRBCR_EL2 [
            /// Counts of cycles.
            CC OFFSET(3) NUMBITS(1) [],
            /// Mispredictions.
            MPRED OFFSET(4) NUMBITS(1) [],
        ],
        /// ID_AA64PFR2_EL1.
        pub ID_AA64PFR2 [
            FPMR OFFSET(32) NUMBITS(4) [],
        ],
        /// ID_AA64SMFR0_EL1.
        pub ID_AA64SMFR0 [
            SMEver OFFSET(56) NUMBITS(4) [],
            FA64 OFFSET(63) NUMBITS(1) [],
        ],
        /// ID_AA64DFR0_EL1.
        pub ID_AA64DFR0 [
            PMUVer OFFSET(8) NUMBITS(4) [],
            PMSVer OFFSET(32) NUMBITS(4) [],
            TraceFilt OFFSET(40) NUMBITS(4) [],
            TraceBuffer OFFSET(44) NUMBITS(4) [],
            BRBE OFFSET(52) NUMBITS(4) [],
        ],
        /// ID_AA64MMFR0_EL1.
        pub ID_AA64MMFR0 [
            PARange OFFSET(0) NUMBITS(4) [],
            FGT OFFSET(56) NUMBITS(4) [],
            ECV OFFSET(60) NUMBITS(4) [],
        ],
        /// ID_AA64MMFR1_EL1.
        pub ID_AA64MMFR1 [
            VMIDBits OFFSET(4) NUMBITS(4) [ Bits16 = 0b0010 ],
            HCX OFFSET(40) NUMBITS(4) [],
        ],
        /// ID_AA64MMFR3_EL1.
        pub ID_AA64MMFR3 [
            TCRX OFFSET(0) NUMBITS(4) [],
            SCTLRX OFFSET(4) NUMBITS(4) [],
        ],
        /// ID_AA64MMFR2_EL1.
        pub ID_AA64MMFR2 [
            FWB OFFSET(40) NUMBITS(4) [],
        ],
        /// ID_AA64ISAR1_EL1: pointer authentication, by whichever algorithm.
        pub ID_AA64ISAR1 [
            APA OFFSET(4) NUMBITS(4) [],
            API OFFSET(8) NUMBITS(4) [],
            GPA OFFSET(24) NUMBITS(4) [],
            GPI OFFSET(28) NUMBITS(4) [],
        ],
        /// ID_AA64ISAR2_EL1: pointer authentication by QARMA3.
        pub ID_AA64ISAR2 [
            GPA3 OFFSET(8) NUMBITS(4) [],
            APA3 OFFSET(12) NUMBITS(4) [],
        ],
        /// ID_AA64ISAR0_EL1: instructions for SHA-256 (1) and SHA-512 (2); random numbers.
        pub ID_AA64ISAR0 [
            SHA2 OFFSET(12) NUMBITS(4) [],
            RNDR OFFSET(60) NUMBITS(4) [],
        ],
        /// PAR_EL1 after a translation of 64 bits.
        pub PAR_EL1 [
            /// It failed.
            F OFFSET(0) NUMBITS(1) [],
            /// The page, in units of 4 KiB.
            PA OFFSET(12) NUMBITS(36) [],
        ],
        /// ISR_EL1 at EL2: what physical interrupts wait for this CPU.
        pub ISR_EL1 [
            /// IRQ and FIQ of superpriority (FEAT_NMI).
            IS OFFSET(10) NUMBITS(1) [],
            FS OFFSET(9) NUMBITS(1) [],
            I OFFSET(7) NUMBITS(1) [],
            F OFFSET(6) NUMBITS(1) [],
        ],
        /// ICC_CTLR_EL1: an interrupt's end does not deactivate it.
        pub ICC_CTLR [ EOIMODE OFFSET(1) NUMBITS(1) [] ],
        /// PMCR_EL0.
        pub PMCR_EL0 [
            N OFFSET(11) NUMBITS(5) [],
            E OFFSET(0) NUMBITS(1) [],
        ],
        /// PMEVTYPER<n>_EL0.
        pub PMEVTYPER [
            P OFFSET(31) NUMBITS(1) [],
            U OFFSET(30) NUMBITS(1) [],
            NSK OFFSET(29) NUMBITS(1) [],
            NSU OFFSET(28) NUMBITS(1) [],
            NSH OFFSET(27) NUMBITS(1) [],
            EVENT OFFSET(0) NUMBITS(16) [ InstRetired = 0x08 ],
        ],
    }
}

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident: $encoding:literal, $fields:ty;)*) => {
        $(
            $(#[$doc])*
            pub struct $name;

            #[allow(dead_code)]
            impl $name {
                /// Reads the register.
                pub fn get() -> tock_registers::LocalRegisterCopy<u64, $fields> {
                    let value: u64;
                    // SAFETY: reading a system register of this CPU has no effect on memory (of ICC_IAR1_EL1: on the GIC, which is `vgic`'s to want); that the register
                    // exists is the caller's check of the ID registers (else an undefined-instruction trap stops the core).
                    unsafe {
                        core::arch::asm!(concat!("mrs {}, ", $encoding), out(reg) value, options(nomem, nostack, preserves_flags));
                    }
                    tock_registers::LocalRegisterCopy::new(value)
                }

                /// Writes zero to the register.
                pub fn clear() {
                    // SAFETY: as `set`.
                    unsafe {
                        core::arch::asm!(concat!("msr ", $encoding, ", xzr"), options(nomem, nostack, preserves_flags));
                    }
                }

                /// Writes the register.
                pub fn set(value: u64) {
                    // SAFETY: none of these registers changes what the core's code and references mean. Most govern lower exception levels and counters.
                    // Those that the core itself depends on are written where that is so: CPTR_EL2 and the lengths of vectors in `el2` and `fpsimd`,
                    // before instructions that they govern; interrupts are masked at EL2 whatever the GIC's say.
                    unsafe {
                        core::arch::asm!(concat!("msr ", $encoding, ", {}"), in(reg) value, options(nomem, nostack, preserves_flags));
                    }
                }
            }
        )*
    };
}

registers! {
    /// Architectural feature traps.
    Cptr: "cptr_el2", CPTR_EL2::Register;
    /// SVE vector length for EL2 and below.
    Zcr: "S3_4_C1_C2_0", ZCR_EL2::Register;
    /// SME control for EL2 and below.
    Smcr: "S3_4_C1_C2_6", SMCR_EL2::Register;
    /// Extended hypervisor configuration.
    Hcrx: "S3_4_C1_C2_2", HCRX_EL2::Register;
    /// Fine-grained read traps.
    Hfgrtr: "S3_4_C1_C1_4", ();
    /// Fine-grained write traps.
    Hfgwtr: "S3_4_C1_C1_5", ();
    /// Fine-grained instruction traps.
    Hfgitr: "S3_4_C1_C1_6", ();
    /// Fine-grained debug read traps.
    Hdfgrtr: "S3_4_C3_C1_4", ();
    /// Fine-grained debug write traps.
    Hdfgwtr: "S3_4_C3_C1_5", ();
    /// Fine-grained activity monitor traps.
    Hafgrtr: "S3_4_C3_C1_6", ();
    /// Second fine-grained debug read traps (FEAT_FGT2).
    Hdfgrtr2: "S3_4_C3_C1_0", ();
    /// Second fine-grained debug write traps (FEAT_FGT2).
    Hdfgwtr2: "S3_4_C3_C1_1", ();
    /// Second fine-grained read traps (FEAT_FGT2).
    Hfgrtr2: "S3_4_C3_C1_2", ();
    /// Second fine-grained write traps (FEAT_FGT2).
    Hfgwtr2: "S3_4_C3_C1_3", ();
    /// Second fine-grained instruction traps (FEAT_FGT2).
    Hfgitr2: "S3_4_C3_C1_7", ();
    /// Hypervisor system trap register (AArch32 CP15).
    Hstr: "hstr_el2", ();
    /// Deferred virtual SError: what EL1 reads as DISR_EL1.
    Vdisr: "S3_4_C12_C1_1", ();
    /// Syndrome of the virtual SError that HCR_EL2.VSE makes pending.
    Vsesr: "S3_4_C5_C2_3", ();
    /// Memory partitioning, EL2.
    Mpam2: "S3_4_C10_C5_0", MPAM2_EL2::Register;
    /// Memory partitioning: what there is.
    Mpamidr: "S3_0_C10_C4_4", MPAMIDR_EL1::Register;
    /// Memory partitioning: virtual partitions, and a trap of the register before.
    Mpamhcr: "S3_4_C10_C4_0", ();
    /// Trace filter, EL2.
    Trfcr: "S3_4_C1_C2_1", ();
    /// Virtual processor id: what EL1 reads as MIDR_EL1.
    Vpidr: "vpidr_el2", ();
    /// EL1's access to its feature traps.
    Cpacr1: "cpacr_el1", ();
    /// EL1's system control.
    Sctlr1: "sctlr_el1", ();
    /// EL1's translation control.
    Tcr1: "tcr_el1", ();
    /// EL1's further system control (FEAT_SCTLR2).
    Sctlr2: "S3_0_C1_C0_3", ();
    /// EL1's further translation control (FEAT_TCR2).
    Tcr2: "S3_0_C2_C0_3", ();
    /// EL1's guarded control stack (FEAT_GCS).
    Gcscr1: "S3_0_C2_C5_0", ();
    /// EL0's.
    Gcscre0: "S3_0_C2_C5_2", ();
    /// EL1's debug control.
    Mdscr: "mdscr_el1", ();
    /// Debug channel interrupts.
    Mdccint: "mdccint_el1", ();
    /// The virtual timer's control.
    CntvCtl: "cntv_ctl_el0", ();
    /// Streaming mode and ZA (FEAT_SME).
    Svcr: "S3_3_C4_C2_2", ();
    /// Modes of 8-bit floating point (FEAT_FPMR).
    Fpmr: "S3_3_C4_C4_2", ();
    /// EL1's statistical profiling control.
    Pmscr1: "S3_0_C9_C9_0", ();
    /// EL2's statistical profiling control.
    Pmscr2: "S3_4_C9_C9_0", ();
    /// The profiling buffer's limit.
    Pmblimitr: "S3_0_C9_C10_0", BUFFER_LIMIT::Register;
    /// The profiling buffer's owner.
    Pmbidr: "S3_0_C9_C10_7", BUFFER_ID::Register;
    /// The trace buffer's limit.
    Trblimitr: "S3_0_C9_C11_0", BUFFER_LIMIT::Register;
    /// The trace buffer's owner.
    Trbidr: "S3_0_C9_C11_7", BUFFER_ID::Register;
    /// EL1's control of branch records (FEAT_BRBE).
    Brbcr1: "S2_1_C9_C0_0", ();
    /// EL2's.
    Brbcr2: "S2_4_C9_C0_0", BRBCR_EL2::Register;
    /// EL1's trace filter.
    Trfcr1: "S3_0_C1_C2_1", ();
    /// GIC CPU interface: control.
    IccCtlr: "S3_0_C12_C12_4", ICC_CTLR::Register;
    /// Physical interrupts that wait.
    Isr: "isr_el1", ISR_EL1::Register;
    /// GIC CPU interface: the interrupt of group 1 that would be taken next.
    IccHppir1: "S3_0_C12_C12_2", ();
    /// GIC CPU interface: takes an interrupt of group 1.
    IccIar1: "S3_0_C12_C12_0", ();
    /// GIC CPU interface: ends one.
    IccEoir1: "S3_0_C12_C12_1", ();
    /// GIC CPU interface: deactivates one.
    IccDir: "S3_0_C12_C11_1", ();
    /// GIC CPU interface: sends an SGI of group 1.
    IccSgi1r: "S3_0_C12_C11_5", super::super::regs::ICC_SGI1R::Register;
    /// GIC virtual CPU interface: control.
    IchHcr: "S3_4_C12_C11_0", ();
    /// GIC virtual CPU interface: type.
    IchVtr: "S3_4_C12_C11_1", ();
    /// GIC virtual CPU interface: maintenance interrupt state.
    IchMisr: "S3_4_C12_C11_2", ();
    /// GIC virtual CPU interface: the virtual machine's view.
    IchVmcr: "S3_4_C12_C11_7", ();
    /// Performance monitors control.
    Pmcr: "pmcr_el0", PMCR_EL0::Register;
    /// Counter selection.
    Pmselr: "pmselr_el0", ();
    /// Event of the selected counter.
    Pmxevtyper: "pmxevtyper_el0", PMEVTYPER::Register;
    /// Count of the selected counter.
    Pmxevcntr: "pmxevcntr_el0", ();
    /// Counter enable set.
    Pmcntenset: "pmcntenset_el0", ();
    /// Feature registers.
    IdAa64pfr0: "id_aa64pfr0_el1", ID_AA64PFR0::Register;
    /// Feature registers.
    IdAa64pfr1: "id_aa64pfr1_el1", ID_AA64PFR1::Register;
    /// Feature registers.
    IdAa64pfr2: "S3_0_C0_C4_2", ID_AA64PFR2::Register;
    /// Feature registers: SME.
    IdAa64smfr0: "S3_0_C0_C4_5", ID_AA64SMFR0::Register;
    /// Feature registers: debug.
    IdAa64dfr0: "id_aa64dfr0_el1", ID_AA64DFR0::Register;
    /// Feature registers: memory model.
    IdAa64mmfr0: "id_aa64mmfr0_el1", ID_AA64MMFR0::Register;
    /// Feature registers: memory model.
    IdAa64mmfr1: "id_aa64mmfr1_el1", ID_AA64MMFR1::Register;
    /// Feature registers: instructions.
    IdAa64isar2: "S3_0_C0_C6_2", ID_AA64ISAR2::Register;
    /// Feature registers: memory model.
    IdAa64mmfr2: "S3_0_C0_C7_2", ID_AA64MMFR2::Register;
    /// Feature registers: memory model.
    IdAa64mmfr3: "S3_0_C0_C7_3", ID_AA64MMFR3::Register;
    /// Feature registers: instructions.
    IdAa64isar0: "id_aa64isar0_el1", ID_AA64ISAR0::Register;
    /// Feature registers: instructions.
    IdAa64isar1: "id_aa64isar1_el1", ID_AA64ISAR1::Register;
}

/// The ID register `reg`, if it is one of those that every CPU has; else zero, which is what the others may hold.
pub fn id_register(reg: SysregId) -> u64 {
    match (reg.crm, reg.op2) {
        (4, 0) => IdAa64pfr0::get().get(),
        (4, 1) => IdAa64pfr1::get().get(),
        (5, 0) => IdAa64dfr0::get().get(),
        (6, 0) => IdAa64isar0::get().get(),
        (6, 1) => IdAa64isar1::get().get(),
        (6, 2) => IdAa64isar2::get().get(),
        (7, 0) => IdAa64mmfr0::get().get(),
        (7, 1) => IdAa64mmfr1::get().get(),
        (7, 2) => IdAa64mmfr2::get().get(),
        _ => 0,
    }
}
