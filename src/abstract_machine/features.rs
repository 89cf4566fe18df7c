//! What a CPU has, as far as the world switch must know: asked once when the CPU starts (`cpu::el2`), and kept in its own data. Reading an ID register
//! costs little; decoding half a dozen of them at every exit and entry of a VM does not.
#![forbid(unsafe_code)]

/// Values of the registers that decide what EL1 and EL0 may do, for whoever runs there. One of an extension that the CPU does not
/// have is never written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traps {
    /// HCR_EL2; a VM's interrupt lines come on top.
    pub hcr: u64,
    /// CPTR_EL2.
    pub cptr: u64,
    /// MDCR_EL2.
    pub mdcr: u64,
    /// HCRX_EL2.
    pub hcrx: u64,
    /// MPAM2_EL2.
    pub mpam: u64,
    /// HFGRTR_EL2 and HFGWTR_EL2.
    pub fine_registers: u64,
    /// HFGITR_EL2.
    pub fine_instructions: u64,
    /// HDFGRTR_EL2.
    pub fine_debug_reads: u64,
    /// HDFGWTR_EL2.
    pub fine_debug_writes: u64,
    /// HFGRTR2_EL2, HFGWTR2_EL2, HDFGRTR2_EL2 and HDFGWTR2_EL2.
    pub fine2: u64,
    /// HFGITR2_EL2.
    pub fine2_instructions: u64,
}

impl Traps {
    /// Every register zero.
    pub const ZERO: Self = Self {
        hcr: 0,
        cptr: 0,
        mdcr: 0,
        hcrx: 0,
        mpam: 0,
        fine_registers: 0,
        fine_instructions: 0,
        fine_debug_reads: 0,
        fine_debug_writes: 0,
        fine2: 0,
        fine2_instructions: 0,
    };
}

/// What one CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Pointer authentication, by whichever algorithm.
    pub pauth: bool,
    /// FEAT_RAS.
    pub ras: bool,
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_SME.
    pub sme: bool,
    /// FEAT_SME_FA64: all of SVE in streaming mode.
    pub fa64: bool,
    /// Performance counters.
    pub pmu: bool,
    /// Statistical profiling.
    pub spe: bool,
    /// FEAT_TRF: trace filter registers.
    pub trf: bool,
    /// FEAT_MPAM.
    pub mpam: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// Fine-grained traps: 0, 1 (FEAT_FGT) or 2 (FEAT_FGT2).
    pub fgt: u8,
    /// VTCR_EL2 but for the size of the addresses.
    pub vtcr: u64,
    /// While the host runs.
    pub host: Traps,
    /// While a VM runs.
    pub vm: Traps,
}

impl Features {
    /// Of a CPU that was not asked yet.
    pub const NONE: Self = Self {
        pauth: false,
        ras: false,
        sve: false,
        sme: false,
        fa64: false,
        pmu: false,
        spe: false,
        trf: false,
        mpam: false,
        hcx: false,
        fgt: 0,
        vtcr: 0,
        host: Traps::ZERO,
        vm: Traps::ZERO,
    };
}
