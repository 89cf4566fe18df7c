//! Trapped registers by name: the syndrome of an exception, the host's x0-x30, the EL1 registers that an
//! injected exception touches. Arm ARM (DDI 0487) D24.2 for the registers, D1.3 for exception entry.

use tock_registers::LocalRegisterCopy;

pub use fields::*;

#[allow(missing_docs, reason = "the macro's own items cannot carry any")]
mod fields {
    use tock_registers::register_bitfields;

    register_bitfields! {u64,
        /// Exception syndrome of EL2 or EL1; ISS fields of the classes that the core looks at.
        pub ESR [
            /// Exception class.
            EC OFFSET(26) NUMBITS(6) [
                Unknown = 0x00,
                TrappedWfx = 0x01,
                SveAccess = 0x19,
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
            /// Abort: write, not read.
            WNR OFFSET(6) NUMBITS(1) [],
            /// Abort: fault of a stage-1 walk's own access.
            S1PTW OFFSET(7) NUMBITS(1) [],
            /// Abort: FAR is not valid.
            FNV OFFSET(10) NUMBITS(1) [],
            /// Abort: what went wrong; the low two bits of the first kinds are the level.
            FSC OFFSET(0) NUMBITS(6) [
                SyncExternalAbort = 0b01_0000,
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
            /// User access override.
            UAO OFFSET(23) NUMBITS(1) [],
            /// Privileged access never.
            PAN OFFSET(22) NUMBITS(1) [],
            /// Software step.
            SS OFFSET(21) NUMBITS(1) [],
            /// Illegal execution state.
            IL OFFSET(20) NUMBITS(1) [],
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
                EL2h = 0b0_1001,
            ],
        ],

        /// System control register of EL1, the fields that exception entry reads.
        pub SCTLR_EL1_ENTRY [
            /// PAN is left alone on exception entry.
            SPAN OFFSET(23) NUMBITS(1) [],
            /// EL1 may use memory tags.
            ATA OFFSET(43) NUMBITS(1) [],
            /// Value of SSBS after exception entry.
            DSSBS OFFSET(44) NUMBITS(1) [],
        ],
    }
}

/// Why the CPU came to EL2: a copy of ESR_EL2.
#[derive(Clone, Copy)]
pub struct Syndrome(LocalRegisterCopy<u64, ESR::Register>);

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
    /// x0 to x3: what a call passes and what it gives back.
    pub fn call_registers(&mut self) -> &mut [u64; 4] {
        match self.x.first_chunk_mut() {
            Some(first) => first,
            None => unreachable!("31 registers have a first four"),
        }
    }
}
