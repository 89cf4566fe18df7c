//! A VM's calls, by `HVC #0` (PSCI and SMCCC also by SMC): which the core answers at once, and which go to the host.
//!
//! Source: SMCCC, Arm DEN 0028; PSCI, Arm DEN 0022; KVM's calls, Linux's `include/linux/arm-smccc.h`; random numbers, Arm DEN 0098; HypSec's, K §4.2.

/// HypSec: share `size` bytes from `gpa` on with the host. x1 = gpa, x2 = size. K §4.2.
pub const HYPSEC_SET_DESC_PFN: u64 = 0x81000;
/// HypSec: stop sharing.
pub const HYPSEC_UNSET_DESC_PFN: u64 = 0x82000;

/// SMCCC: `ARM_SMCCC_VERSION_FUNC_ID`.
pub const SMCCC_VERSION: u64 = 0x8000_0000;
/// SMCCC: `ARM_SMCCC_ARCH_FEATURES_FUNC_ID`.
pub const SMCCC_ARCH_FEATURES: u64 = 0x8000_0001;
/// SMCCC: `ARM_SMCCC_ARCH_WORKAROUND_1`, against branch target injection; there if the machine's firmware has it.
pub const SMCCC_ARCH_WORKAROUND_1: u64 = 0x8000_8000;
/// SMCCC: `ARM_SMCCC_ARCH_WORKAROUND_3`, the same against injection of branch history.
pub const SMCCC_ARCH_WORKAROUND_3: u64 = 0x8000_3fff;
/// KVM's UID by `CALL_UID`: 28b46fb6-2ec5-11e9-a9ca-4b564d003a74, for Linux's protected-guest driver.
pub const VENDOR_CALL_UID: u64 = 0x8600_ff01;
/// The words of that UID, w0 to w3.
pub const KVM_UID: [u64; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];
/// KVM's feature bitmap: which of the following exist, bit by function number.
pub const KVM_FEATURES: u64 = 0x8600_0000;
/// Size of the unit of sharing: x0 = 4096. x1-x3 must be 0.
pub const KVM_HYP_MEMINFO: u64 = 0xc600_0002;
/// x1 = gpa of one page to share; x2, x3 must be 0 (from Linux 6.12 on; older kernels pass nothing there).
pub const KVM_MEM_SHARE: u64 = 0xc600_0003;
/// x1 = gpa of one page to take back.
pub const KVM_MEM_UNSHARE: u64 = 0xc600_0004;
/// MMIO guard: x0 = size of its unit.
pub const KVM_MMIO_GUARD_INFO: u64 = 0xc600_0005;
/// MMIO guard: from now on only addresses named by MAP leave as MMIO exits.
pub const KVM_MMIO_GUARD_ENROLL: u64 = 0xc600_0006;
/// MMIO guard: x1 = gpa of a page whose accesses may be shown to the host.
pub const KVM_MMIO_GUARD_MAP: u64 = 0xc600_0007;
/// MMIO guard: x1 = gpa of a page that is no longer.
pub const KVM_MMIO_GUARD_UNMAP: u64 = 0xc600_0008;

/// SMCCC results.
pub const SUCCESS: u64 = 0;
/// SMCCC: no such call.
pub const NOT_SUPPORTED: u64 = -1_i64 as u64;
/// SMCCC: wrong argument.
pub const INVALID_PARAMETER: u64 = -3_i64 as u64;

/// PSCI function identifiers (Arm DEN 0022).
pub mod psci {
    /// PSCI_VERSION: answered by the core.
    pub const VERSION: u64 = 0x8400_0000;
    /// CPU_SUSPEND, 64 bit: like WFI.
    pub const CPU_SUSPEND: u64 = 0xc400_0001;
    /// CPU_OFF.
    pub const CPU_OFF: u64 = 0x8400_0002;
    /// CPU_ON, 64 bit: x1 = target MPIDR, x2 = entry, x3 = context. The core keeps entry and context; the host starts the vCPU.
    pub const CPU_ON: u64 = 0xc400_0003;
    /// AFFINITY_INFO, 64 bit.
    pub const AFFINITY_INFO: u64 = 0xc400_0004;
    /// MIGRATE_INFO_TYPE.
    pub const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
    /// SYSTEM_OFF.
    pub const SYSTEM_OFF: u64 = 0x8400_0008;
    /// SYSTEM_RESET.
    pub const SYSTEM_RESET: u64 = 0x8400_0009;
    /// PSCI_FEATURES: answered by the core.
    pub const FEATURES: u64 = 0x8400_000a;
    /// SYSTEM_RESET2, 64 bit.
    pub const SYSTEM_RESET2: u64 = 0xc400_0012;
}

/// The TRNG firmware interface (Arm DEN 0098): random numbers of the core's.
pub mod trng {
    /// TRNG_VERSION.
    pub const VERSION: u64 = 0x8400_0050;
    /// TRNG_FEATURES: w1 = the call that is asked for.
    pub const FEATURES: u64 = 0x8400_0051;
    /// TRNG_GET_UUID.
    pub const GET_UUID: u64 = 0x8400_0052;
    /// TRNG_RND, 32 bit: w1 = bits wanted, 1 to 96; they are in w1 (the highest), w2, w3.
    pub const RND32: u64 = 0x8400_0053;
    /// TRNG_RND, 64 bit: x1 = bits wanted, 1 to 192.
    pub const RND64: u64 = 0xc400_0053;

    /// What VERSION answers: 1.0.
    pub const VERSION_1_0: u64 = 1 << 16;
    /// The core's source, 0f44fb40-9cb2-469e-82b1-409a0f7ba94b: w0 to w3, as SMCCC has UUIDs (DEN 0028 §6.2).
    pub const UUID: [u64; 4] = [0x40fb_440f, 0x9e46_b29c, 0x9a40_b182, 0x4ba9_7b0f];
    /// Another number of bits. Not the -3 of other calls.
    pub const INVALID_PARAMETERS: u64 = -2_i64 as u64;

    /// Whether it is one of these calls.
    pub const fn is_call(function: u64) -> bool {
        matches!(function, VERSION..=RND32 | RND64)
    }
}
