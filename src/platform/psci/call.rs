//! PSCI and SMCCC calls as the host makes them: numbers, argument width, error codes.
//!
//! Arm DEN0022 (PSCI 1.1) §5, Arm DEN0028 (SMCCC 1.2) §2, §7, Arm DEN0098 (TRNG). Pure decoding; whoever acts on a
//! [`Call`] checks its arguments.
#![forbid(unsafe_code)]

/// Function numbers. A name ending in 64 is the SMC64 form; forms with one number have no suffix.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod id {
    pub const SMCCC_VERSION: u32 = 0x8000_0000;
    pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
    pub const SMCCC_ARCH_SOC_ID: u32 = 0x8000_0002;
    pub const SMCCC_ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
    pub const SMCCC_ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
    pub const SMCCC_ARCH_WORKAROUND_1: u32 = 0x8000_8000;

    pub const PSCI_VERSION: u32 = 0x8400_0000;
    pub const CPU_SUSPEND: u32 = 0x8400_0001;
    pub const CPU_SUSPEND_64: u32 = 0xc400_0001;
    pub const CPU_OFF: u32 = 0x8400_0002;
    pub const CPU_ON: u32 = 0x8400_0003;
    pub const CPU_ON_64: u32 = 0xc400_0003;
    pub const AFFINITY_INFO: u32 = 0x8400_0004;
    pub const AFFINITY_INFO_64: u32 = 0xc400_0004;
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    pub const PSCI_FEATURES: u32 = 0x8400_000a;
    pub const SYSTEM_SUSPEND: u32 = 0x8400_000e;
    pub const SYSTEM_SUSPEND_64: u32 = 0xc400_000e;
    /// The core's own: the host does not have it.
    pub const MEM_PROTECT: u32 = 0x8400_0013;
    pub const SYSTEM_RESET2: u32 = 0x8400_0012;
    pub const SYSTEM_RESET2_64: u32 = 0xc400_0012;

    pub const TRNG_VERSION: u32 = 0x8400_0050;
    pub const TRNG_FEATURES: u32 = 0x8400_0051;
    pub const TRNG_GET_UUID: u32 = 0x8400_0052;
    pub const TRNG_RND: u32 = 0x8400_0053;
    pub const TRNG_RND_64: u32 = 0xc400_0053;
}

/// PSCI version 1.1, as `PSCI_VERSION` returns it.
pub const PSCI_1_1: u64 = 0x0001_0001;
/// SMCCC version 1.2, as `SMCCC_VERSION` returns it.
pub const SMCCC_1_2: u64 = 0x0001_0002;
/// `MIGRATE_INFO_TYPE`: no trusted OS that would have to migrate.
pub const MIGRATION_NOT_REQUIRED: u64 = 2;
/// SMCCC's own "invalid parameter" (DEN0028 §7.1), which is not PSCI's.
pub const SMCCC_INVALID_PARAMETER: u64 = -3i64 as u64;

/// Why a PSCI call fails, DEN0022 §5.2.2. [`PsciError::NotSupported`] is also SMCCC's answer to an unknown call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum PsciError {
    NotSupported = -1,
    InvalidParameters = -2,
    Denied = -3,
    AlreadyOn = -4,
    OnPending = -5,
    InternalFailure = -6,
    NotPresent = -7,
    Disabled = -8,
    InvalidAddress = -9,
}

impl PsciError {
    /// The error as it stands in x0: negative, sign-extended to 64 bits (right for both widths of call).
    pub const fn code(self) -> u64 {
        self as i32 as i64 as u64
    }

    /// The result of a firmware call whose low 32 bits are `x0`: 0 or more is success.
    ///
    /// # Errors
    /// The firmware's error; a code that no manual knows counts as [`PsciError::InternalFailure`].
    pub const fn check(x0: u64) -> Result<u32, Self> {
        let code = x0 as u32 as i32;
        Err(match code {
            0.. => return Ok(code as u32),
            -1 => Self::NotSupported,
            -2 => Self::InvalidParameters,
            -3 => Self::Denied,
            -4 => Self::AlreadyOn,
            -5 => Self::OnPending,
            -7 => Self::NotPresent,
            -8 => Self::Disabled,
            -9 => Self::InvalidAddress,
            _ => Self::InternalFailure,
        })
    }
}

/// An SMC as it was trapped: the low half of x0, and x1 to x3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SmcCall {
    function: u32,
    args: [u64; 3],
}

impl SmcCall {
    /// The call in registers x0 to x3. The upper half of x0 does not count, nor do those of x1 to x3 in a 32-bit call.
    pub const fn new(x0: u64, x1: u64, x2: u64, x3: u64) -> Self {
        let function = x0 as u32;
        let mask = if is_smc64(function) { u64::MAX } else { u32::MAX as u64 };
        Self { function, args: [x1 & mask, x2 & mask, x3 & mask] }
    }

    /// Function number.
    pub const fn function(self) -> u32 {
        self.function
    }

    /// x1 to x3, cut to the width of the call.
    pub const fn args(self) -> [u64; 3] {
        self.args
    }

    /// What is asked for.
    pub fn decode(self) -> Call {
        let [a, b, c] = self.args;
        match self.function {
            id::PSCI_VERSION => Call::Version,
            id::CPU_SUSPEND | id::CPU_SUSPEND_64 => Call::CpuSuspend { state: a as u32, entry: b, context: c },
            id::CPU_OFF => Call::CpuOff,
            id::CPU_ON | id::CPU_ON_64 => Call::CpuOn { target: a, entry: b, context: c },
            id::AFFINITY_INFO | id::AFFINITY_INFO_64 => Call::AffinityInfo { target: a, level: b as u32 },
            id::MIGRATE_INFO_TYPE => Call::MigrateInfoType,
            id::SYSTEM_OFF => Call::SystemOff,
            id::SYSTEM_RESET => Call::SystemReset,
            id::PSCI_FEATURES => Call::PsciFeatures { function: a as u32 },
            id::SYSTEM_SUSPEND | id::SYSTEM_SUSPEND_64 => Call::SystemSuspend { entry: a, context: b },
            id::SYSTEM_RESET2 | id::SYSTEM_RESET2_64 => Call::SystemReset2 { reset_type: a as u32 },
            id::SMCCC_VERSION => Call::SmcccVersion,
            id::SMCCC_ARCH_FEATURES => Call::ArchFeatures { function: a as u32 },
            id::SMCCC_ARCH_SOC_ID
            | id::SMCCC_ARCH_WORKAROUND_1
            | id::SMCCC_ARCH_WORKAROUND_2
            | id::SMCCC_ARCH_WORKAROUND_3
            | id::TRNG_VERSION
            | id::TRNG_FEATURES
            | id::TRNG_GET_UUID
            | id::TRNG_RND
            | id::TRNG_RND_64 => Call::Firmware,
            _ => Call::Unknown,
        }
    }
}

/// Whether `function` is a 64-bit call: its arguments and results have all 64 bits.
pub const fn is_smc64(function: u32) -> bool {
    function & (1 << 30) != 0
}

/// A call with its arguments, not yet checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Call {
    Version,
    CpuSuspend {
        state: u32,
        entry: u64,
        context: u64,
    },
    CpuOff,
    CpuOn {
        target: u64,
        entry: u64,
        context: u64,
    },
    AffinityInfo {
        target: u64,
        level: u32,
    },
    MigrateInfoType,
    SystemOff,
    SystemReset,
    PsciFeatures {
        function: u32,
    },
    SystemSuspend {
        entry: u64,
        context: u64,
    },
    SystemReset2 {
        reset_type: u32,
    },
    SmcccVersion,
    ArchFeatures {
        function: u32,
    },
    /// A call that the firmware answers, if it has it.
    Firmware,
    Unknown,
}
