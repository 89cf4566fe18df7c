//! Trapped registers by name: the syndrome of an exception, the host's x0-x30, the EL1 registers that an
//! injected exception touches. Arm ARM (DDI 0487) D24.2 for the registers, D1.3 for exception entry.

use tock_registers::LocalRegisterCopy;

use super::addr::Ipa;

pub use fields::*;

/// Interrupt numbers of LPIs begin here. IHI 0069H §2.2.
pub const FIRST_LPI: u64 = 8192;

/// Which of bits 0 to `below` - 1 (at most 62) are set, from the lowest on.
#[inline(always)]
pub fn ones(mask: u64, below: u8) -> impl Iterator<Item = u8> {
    let mut left = mask & ((1 << below) - 1);
    core::iter::from_fn(move || {
        let n = left.trailing_zeros() as u8;
        left &= left.wrapping_sub(1);
        (n < below).then_some(n)
    })
}

/// Size of an A64 instruction.
pub const INSTRUCTION_SIZE: u64 = 4;
/// SCTLR_EL1 at reset, of the host's CPUs and of VMs': RES1 bits, MMU and caches off, little endian. Arm ARM D24.2.
pub const SCTLR_EL1_RESET: u64 = 0x30d0_0800;
/// The affinity fields of MPIDR_EL1: Aff3 in bits 39:32, Aff2, Aff1, Aff0 in bits 23:0. Arm ARM D24.2.117.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

#[allow(missing_docs, reason = "the macro's own items cannot carry any")]
mod fields {
    use tock_registers::register_bitfields;

    register_bitfields! {u64,
        /// Exception syndrome of EL2 or EL1; ISS fields of the classes that the core looks at.
        pub ESR [
            /// Exception class.
            EC OFFSET(26) NUMBITS(6) [
                Unknown = 0x00,
                Illegal = 0x0e,
                Hvc64 = 0x16,
                Smc64 = 0x17,
                Sys64 = 0x18,
                InstrAbortLowerEl = 0x20,
                InstrAbortCurrentEl = 0x21,
                DataAbortLowerEl = 0x24,
                DataAbortCurrentEl = 0x25,
            ],
            /// 32-bit instruction.
            IL OFFSET(25) NUMBITS(1) [],
            /// Abort: the fields from here to SF say what the instruction was.
            ISV OFFSET(24) NUMBITS(1) [],
            /// Abort: width of the access, as log2 of bytes.
            SAS OFFSET(22) NUMBITS(2) [],
            /// Abort: the load extends the sign.
            SSE OFFSET(21) NUMBITS(1) [],
            /// Abort: the register that is loaded or stored; 31 is XZR.
            SRT OFFSET(16) NUMBITS(5) [],
            /// Abort: that register is 64 bits wide.
            SF OFFSET(15) NUMBITS(1) [],
            /// Abort: cache maintenance, not an access.
            CM OFFSET(8) NUMBITS(1) [],
            /// WFI and its like: which.
            WFX_TI OFFSET(0) NUMBITS(2) [],
            /// MSR, MRS, SYS: op0, op2, op1 and CRn.
            SYS_ID OFFSET(10) NUMBITS(12) [],
            /// MSR, MRS: op0.
            SYS_OP0 OFFSET(20) NUMBITS(2) [],
            /// op2.
            SYS_OP2 OFFSET(17) NUMBITS(3) [],
            /// op1.
            SYS_OP1 OFFSET(14) NUMBITS(3) [],
            /// CRn.
            SYS_CRN OFFSET(10) NUMBITS(4) [],
            /// MSR, MRS: the general register; 31 is XZR.
            SYS_RT OFFSET(5) NUMBITS(5) [],
            /// CRm.
            SYS_CRM OFFSET(1) NUMBITS(4) [],
            /// MRS, not MSR.
            SYS_READ OFFSET(0) NUMBITS(1) [],
            /// Abort: write, not read.
            WNR OFFSET(6) NUMBITS(1) [],
            /// Abort: fault of a stage-1 walk's own access.
            S1PTW OFFSET(7) NUMBITS(1) [],
            /// Abort: FAR is not valid.
            FNV OFFSET(10) NUMBITS(1) [],
            /// Abort: what went wrong; the low two bits of the first kinds are the level.
            FSC OFFSET(0) NUMBITS(6) [
                SyncExternalAbort = 0b01_0000,
                AlignmentFault = 0b10_0001,
            ],
            /// HVC, SMC: the immediate.
            IMM16 OFFSET(0) NUMBITS(16) [],
        ],

        /// Saved processor state, AArch64.
        pub SPSR [
            /// Condition flags.
            NZCV OFFSET(28) NUMBITS(4) [],
            /// Tag check override.
            TCO OFFSET(25) NUMBITS(1) [],
            /// Data-independent timing.
            DIT OFFSET(24) NUMBITS(1) [],
            /// Privileged access never.
            PAN OFFSET(22) NUMBITS(1) [],
            /// All interrupts are masked, those of superpriority too (FEAT_NMI).
            ALLINT OFFSET(13) NUMBITS(1) [],
            /// Speculative store bypass is safe.
            SSBS OFFSET(12) NUMBITS(1) [],
            /// Masks of debug, SError, IRQ and FIQ.
            DAIF OFFSET(6) NUMBITS(4) [
                Masked = 0b1111,
            ],
            /// Mode: exception level and stack pointer, or AArch32 mode.
            M OFFSET(0) NUMBITS(5) [
                EL0t = 0b0_0000,
                EL1t = 0b0_0100,
                EL1h = 0b0_0101,
            ],
        ],

        /// Control of a generic timer.
        pub CNT_CTL [
            /// Its condition is met.
            ISTATUS OFFSET(2) NUMBITS(1) [],
            /// Its interrupt is masked.
            IMASK OFFSET(1) NUMBITS(1) [],
            /// It runs.
            ENABLE OFFSET(0) NUMBITS(1) [],
        ],

        /// GICH_LR<n>. IHI 0048 §5.3.9.
        pub GICH_LR [
            /// The end of the virtual interrupt ends a physical one.
            HW OFFSET(31) NUMBITS(1) [],
            /// Reserved.
            RES0 OFFSET(20) NUMBITS(3) [],
            /// HW: the physical interrupt.
            PHYSICAL_ID OFFSET(10) NUMBITS(10) [],
            /// The interrupt that the VM sees.
            VIRTUAL_ID OFFSET(0) NUMBITS(10) [],
        ],

        /// ICH_LR<n>_EL2. IHI 0069 §12.4.
        pub ICH_LR [
            /// The end of the virtual interrupt ends a physical one.
            HW OFFSET(61) NUMBITS(1) [],
            /// Pending and active.
            STATE OFFSET(62) NUMBITS(2) [
                Invalid = 0b00,
                Pending = 0b01,
            ],
            /// It is in group 1.
            GROUP OFFSET(60) NUMBITS(1) [],
            /// Its priority.
            PRIORITY OFFSET(48) NUMBITS(8) [],
            /// Without HW: its end makes a maintenance interrupt.
            EOI OFFSET(41) NUMBITS(1) [],
            /// Reserved, and non-maskability, which VMs do not have.
            RES0 OFFSET(56) NUMBITS(4) [],
            /// Reserved.
            RES0_45 OFFSET(45) NUMBITS(3) [],
            /// HW: the physical interrupt.
            PINTID OFFSET(32) NUMBITS(13) [],
            /// The interrupt that the VM sees.
            VINTID OFFSET(0) NUMBITS(32) [],
        ],

        /// ICC_SGI1R_EL1. IHI 0069 §12.2.15.
        pub ICC_SGI1R [
            /// Affinity of the targets.
            AFF3 OFFSET(48) NUMBITS(8) [],
            /// Which sixteen of the cluster.
            RS OFFSET(44) NUMBITS(4) [],
            /// All but the sender.
            IRM OFFSET(40) NUMBITS(1) [],
            /// Affinity of the targets.
            AFF2 OFFSET(32) NUMBITS(8) [],
            /// The interrupt.
            INTID OFFSET(24) NUMBITS(4) [],
            /// Affinity of the targets.
            AFF1 OFFSET(16) NUMBITS(8) [],
            /// The targets, by affinity 0.
            TARGETS OFFSET(0) NUMBITS(16) [],
        ],

        /// Which list registers a vCPU that runs has in use: the core's own note, in its shadow context.
        pub LISTS [
            /// Number in use.
            USED OFFSET(0) NUMBITS(8) [],
            /// Of these the host's: the first ones.
            HOST OFFSET(8) NUMBITS(8) [],
            /// The one with the timer's interrupt, if the core put it there or masked the timer because of it, plus 1; else 0.
            TIMER OFFSET(16) NUMBITS(8) [],
        ],

        /// GICH_HCR and ICH_HCR_EL2, what they have in common.
        pub VGIC_HCR [
            /// Interrupts that the VM ended and no list register has.
            EOICOUNT OFFSET(27) NUMBITS(5) [],
            /// Interrupt when no list register is pending.
            NPIE OFFSET(3) NUMBITS(1) [],
            /// Interrupt when the VM ends an interrupt that no list register has.
            LRENPIE OFFSET(2) NUMBITS(1) [],
            /// Interrupt when list registers run out.
            UIE OFFSET(1) NUMBITS(1) [],
        ],

        /// System control register of EL1, the fields that exception entry reads.
        pub SCTLR_EL1_ENTRY [
            /// PAN is left alone on exception entry.
            SPAN OFFSET(23) NUMBITS(1) [],
            /// EL1 may use memory tags.
            ATA OFFSET(43) NUMBITS(1) [],
            /// Value of SSBS after exception entry.
            DSSBS OFFSET(44) NUMBITS(1) [],
            /// Interrupts may be of superpriority.
            NMI OFFSET(61) NUMBITS(1) [],
            /// The stack pointer that is used masks these, not the exception entry.
            SPINTMASK OFFSET(62) NUMBITS(1) [],
        ],
    }
}

/// Why the CPU came to EL2: a copy of ESR_EL2.
#[derive(Clone, Copy)]
pub struct Syndrome(LocalRegisterCopy<u64, ESR::Register>);

/// HPFAR_EL2.FIPA with all that any extension adds (FEAT_LPA, FEAT_D128): without the upper bits, an address beyond 48 bits would pass for one below.
const FIPA: u64 = 0xffff_ffff_fff0;

/// The page that HPFAR_EL2 names: bits 55 to 12 of its address stand at bits 47 to 4. Arm ARM D24.2.66.
pub const fn ipa_of_hpfar(hpfar: u64) -> Ipa {
    Ipa::new((hpfar & FIPA) << 8)
}

/// What HPFAR_EL2 holds for the page of `ipa`.
pub const fn hpfar_of_ipa(ipa: Ipa) -> u64 {
    ipa.raw() >> 8 & FIPA
}

/// A system register, or a system instruction, by its encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SysregId {
    /// op0.
    pub op0: u8,
    /// op1.
    pub op1: u8,
    /// CRn.
    pub crn: u8,
    /// CRm.
    pub crm: u8,
    /// op2.
    pub op2: u8,
}

impl SysregId {
    /// The register S`op0`_`op1`_C`crn`_C`crm`_`op2`.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self { op0, op1, crn, crm, op2 }
    }
}

/// Exception classes that the host can cause; each has a decided outcome in the dispatcher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExceptionClass {
    /// HVC from AArch64.
    Hvc64,
    /// SMC from AArch64, trapped: the program counter still stands on it.
    Smc64,
    /// Trapped MRS, MSR or system instruction.
    Sys64,
    /// Instruction fetch that stage 2 refused.
    InstrAbort,
    /// Data access that stage 2 refused.
    DataAbort,
    /// Anything else; the number of the class.
    Other(u8),
}

/// What a stage-2 abort says went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// Nothing is mapped there, or the address is beyond the table's input size.
    Translation,
    /// Mapped, but the access flag is off.
    AccessFlag,
    /// Mapped, but not for this access.
    Permission,
    /// Anything else: external aborts, TLB conflicts.
    Other,
}

impl Syndrome {
    /// The syndrome that ESR_EL2 holds as `raw`.
    pub const fn new(raw: u64) -> Self {
        Self(LocalRegisterCopy::new(raw))
    }

    /// The register's value.
    pub fn raw(self) -> u64 {
        self.0.get()
    }

    /// The exception class.
    #[inline]
    pub fn class(self) -> ExceptionClass {
        match self.0.read_as_enum(ESR::EC) {
            Some(ESR::EC::Value::Hvc64) => ExceptionClass::Hvc64,
            Some(ESR::EC::Value::Smc64) => ExceptionClass::Smc64,
            Some(ESR::EC::Value::Sys64) => ExceptionClass::Sys64,
            Some(ESR::EC::Value::InstrAbortLowerEl) => ExceptionClass::InstrAbort,
            Some(ESR::EC::Value::DataAbortLowerEl) => ExceptionClass::DataAbort,
            _ => ExceptionClass::Other(self.0.read(ESR::EC) as u8),
        }
    }

    /// What went wrong, if this is an abort.
    pub fn fault_kind(self) -> FaultKind {
        match self.0.read(ESR::FSC) >> 2 {
            0b0000 | 0b0001 => FaultKind::Translation,
            0b0010 => FaultKind::AccessFlag,
            0b0011 => FaultKind::Permission,
            // Translation fault at level -1 (FEAT_LPA2).
            _ if self.0.read(ESR::FSC) == 0b10_1011 => FaultKind::Translation,
            _ => FaultKind::Other,
        }
    }

    /// Whether the refused access was a write.
    pub fn is_write(self) -> bool {
        self.0.is_set(ESR::WNR)
    }

    /// Whether FAR_EL2 does not hold the address, which only an external abort may do.
    pub fn is_far_invalid(self) -> bool {
        self.0.is_set(ESR::FNV)
    }

    /// Whether the refused access was one of a stage-1 table walk.
    pub fn is_stage1_walk(self) -> bool {
        self.0.is_set(ESR::S1PTW)
    }

    /// The number of the exception class.
    pub fn class_number(self) -> u8 {
        self.0.read(ESR::EC) as u8
    }

    /// Whether the syndrome of the abort says what the instruction was, and it is one of 4 bytes: it can be stepped over. Thumb's of 2 bytes (IL = 0) cannot.
    pub fn is_described(self) -> bool {
        self.0.matches_all(ESR::ISV::SET + ESR::IL::SET)
    }

    /// Whether the abort is a load's or store's that the syndrome describes, to an address at which nothing is mapped: neither of a table walk nor of cache maintenance.
    #[inline]
    pub fn is_access_to_nothing(self) -> bool {
        const MAPPED: u64 = 0b11_1000; // FSC from 0b001000 on is no fault of translation, but for level -1
        let described = ESR::EC::DataAbortLowerEl + ESR::IL::SET + ESR::ISV::SET;
        let is_load_or_store = self.0.matches_all(described + ESR::S1PTW::CLEAR + ESR::CM::CLEAR);
        is_load_or_store && self.0.read(ESR::FSC) & MAPPED == 0
    }

    /// Whether the abort is one of cache maintenance.
    pub fn is_cache_maintenance(self) -> bool {
        self.0.is_set(ESR::CM)
    }

    /// Number of the register that the access loads or stores; 31 is XZR.
    pub fn srt(self) -> u8 {
        self.0.read(ESR::SRT) as u8
    }

    /// Bytes of the access.
    pub fn access_size(self) -> u32 {
        1 << self.0.read(ESR::SAS)
    }

    /// Whether the load extends the sign.
    pub fn is_sign_extended(self) -> bool {
        self.0.is_set(ESR::SSE)
    }

    /// Whether the register of the access is 64 bits wide.
    pub fn is_64_bit_register(self) -> bool {
        self.0.is_set(ESR::SF)
    }

    /// The trapped system register.
    pub fn sys_register(self) -> SysregId {
        let field = |field| self.0.read(field) as u8;
        SysregId::new(
            field(ESR::SYS_OP0),
            field(ESR::SYS_OP1),
            field(ESR::SYS_CRN),
            field(ESR::SYS_CRM),
            field(ESR::SYS_OP2),
        )
    }

    /// Whether the trapped access reads one of the ID registers that trap together (HCR_EL2.TID3): op0 3, op1 0, CRn 0, CRm 1 to 7.
    pub fn is_id_register_read(self) -> bool {
        let group = ESR::SYS_OP0.val(3) + ESR::SYS_OP1.val(0) + ESR::SYS_CRN.val(0) + ESR::SYS_READ::SET;
        self.0.matches_all(group) && (1..=7).contains(&self.0.read(ESR::SYS_CRM))
    }

    /// Whether the trapped access is MRS.
    pub fn is_sys_read(self) -> bool {
        self.0.is_set(ESR::SYS_READ)
    }

    /// Number of the general register of the trapped MRS or MSR; 31 is XZR.
    pub fn sys_rt(self) -> u8 {
        self.0.read(ESR::SYS_RT) as u8
    }

    /// The 16-bit immediate of an HVC or SMC.
    pub fn immediate(self) -> u16 {
        self.0.read(ESR::IMM16) as u16
    }
}

/// EL1 registers of the host that the core reads or writes while it serves a trap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum El1Reg {
    /// Exception link register.
    Elr,
    /// Saved processor state.
    Spsr,
    /// Exception syndrome.
    Esr,
    /// Fault address.
    Far,
    /// System control.
    Sctlr,
    /// Vector base address.
    Vbar,
}

/// x0 to x17 of a hypercall: its number, and its arguments.
pub type Hypercall = [u64; 18];

/// The host's x0 to x30, as boot/vectors.S saved them; the last slot is the stack pointer of a trap of the core.
#[derive(Clone, Default)]
#[repr(C, align(16))]
pub struct TrapFrame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The core's own stack pointer, if it was the core that trapped.
    pub sp: u64,
}

impl TrapFrame {
    /// What a hypercall passes; x0 to x3 are what it gives back.
    pub fn hypercall_registers(&mut self) -> &mut Hypercall {
        match self.x.first_chunk_mut() {
            Some(first) => first,
            None => unreachable!("31 registers have a first eighteen"),
        }
    }

    /// x0 to x3: what an SMC passes and what it gives back.
    pub fn call_registers(&mut self) -> &mut [u64; 4] {
        match self.x.first_chunk_mut() {
            Some(first) => first,
            None => unreachable!("31 registers have a first four"),
        }
    }
}
