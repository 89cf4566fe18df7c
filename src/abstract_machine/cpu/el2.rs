//! What EL2 must hold so that an unmodified Linux runs below it: the requirements of Linux's
//! Documentation/arch/arm64/booting.rst for the level above the kernel, and the core's own confinement.
//!
//! Every register that governs EL1 is written, on every CPU, whatever firmware left in it. A register that comes
//! with an extension is written only where the ID registers have the extension. Arm ARM D24.2.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    ACTLR_EL2, CNTHCTL_EL2, CNTHP_CTL_EL2, CNTVOFF_EL2, ELR_EL1, HCR_EL2, ICC_SRE_EL2, ICH_HCR_EL2, MDCR_EL2, MIDR_EL1,
    Readable, SCTLR_EL1, SP_EL1, SPSR_EL1, TTBR0_EL1, TTBR1_EL1, VBAR_EL1, VMPIDR_EL2, VTCR_EL2, VTTBR_EL2, Writeable,
};
use spin::Once;

use super::super::shape::Shape;
use super::maintenance;
use super::sysreg::{self, HCRX_EL2};

/// SCTLR_EL1 at reset: RES1 bits, MMU and caches off, little endian.
pub const SCTLR_EL1_RESET: u64 = 0x30d0_0800;
/// MPIDR_EL1.{Aff3, Aff2, Aff1, Aff0}.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;
/// ID_AA64MMFR0_EL1.PARange, decoded.
const PA_BITS: [u32; 8] = [32, 36, 40, 42, 44, 48, 52, 56];

static HOST_STAGE2: Once<(u64, Shape)> = Once::new();

/// The host's stage 2: VTTBR_EL2 and the table's form. Empty before the first CPU is ready for the host.
pub fn host_stage2() -> (u64, Shape) {
    HOST_STAGE2.get().copied().unwrap_or((0, Shape::new(0)))
}

/// Affinity of this CPU.
pub fn affinity() -> u64 {
    aarch64_cpu::registers::MPIDR_EL1.get() & MPIDR_AFFINITY
}

/// Whether EL2 runs with E2H = 1 although boot/entry.S wrote 0: a CPU without FEAT_E2H0.
pub fn is_vhe() -> bool {
    HCR_EL2.matches_all(HCR_EL2::E2H::EnableOsAtEl2)
}

/// Bits of a physical address on this CPU; the core uses 48 at most (4 KiB granule without FEAT_LPA2).
pub fn pa_bits() -> u32 {
    let range = sysreg::IdAa64mmfr0::get().read(sysreg::ID_AA64MMFR0::PARange) as usize;
    PA_BITS.get(range).copied().unwrap_or(48).min(48)
}

/// Encoding of [`pa_bits`] for TCR_EL2.PS and VTCR_EL2.PS.
pub fn physical_size_field() -> u64 {
    sysreg::IdAa64mmfr0::get().read(sysreg::ID_AA64MMFR0::PARange).min(0b101)
}

/// Makes EL2 of this CPU ready for the host: its stage 2 is `vttbr` of form `shape`.
pub fn init_for_host(vttbr: u64, shape: Shape) {
    HOST_STAGE2.call_once(|| (vttbr, shape));
    VTCR_EL2.set(vtcr(shape));
    VTTBR_EL2.set(vttbr);
    HCR_EL2.write(host_hcr());
    features_for_host();
    CNTHCTL_EL2.write(CNTHCTL_EL2::EL1PCEN::SET + CNTHCTL_EL2::EL1PCTEN::SET);
    CNTVOFF_EL2.set(0);
    CNTHP_CTL_EL2.set(0);
    sysreg::Hstr::set(0);
    // No write of EL1 to implementation-defined control registers: some switch coherency off.
    ACTLR_EL2.set(0);
    sysreg::Vpidr::set(MIDR_EL1.get());
    VMPIDR_EL2.set(aarch64_cpu::registers::MPIDR_EL1.get());
    gic_for_host();
    barrier::isb(barrier::SY);
    maintenance::flush_all_local();
}

/// VTCR_EL2 for a stage-2 table of form `shape`. K §1.4.
pub fn vtcr(shape: Shape) -> u64 {
    let start = if shape.has_level0() { 2 } else { 1 };
    let vmid16 = sysreg::IdAa64mmfr1::get().matches_all(sysreg::ID_AA64MMFR1::VMIDBits::Bits16);
    (VTCR_EL2::RES1::SET
        + VTCR_EL2::VS.val(u64::from(vmid16))
        + VTCR_EL2::PS.val(physical_size_field())
        + VTCR_EL2::TG0.val(0)
        + VTCR_EL2::SH0::Inner
        + VTCR_EL2::ORGN0::NormalWBRAWA
        + VTCR_EL2::IRGN0::NormalWBRAWA
        + VTCR_EL2::SL0.val(start)
        + VTCR_EL2::T0SZ.val(u64::from(64 - shape.ia_bits())))
    .value
}

/// Whether the CPU has pointer authentication, by whichever algorithm.
pub fn has_pauth() -> bool {
    let isar1 = sysreg::IdAa64isar1::get();
    [sysreg::ID_AA64ISAR1::APA, sysreg::ID_AA64ISAR1::API, sysreg::ID_AA64ISAR1::GPA, sysreg::ID_AA64ISAR1::GPI]
        .iter()
        .any(|field| isar1.read(*field) != 0)
        || [sysreg::ID_AA64ISAR2::GPA3, sysreg::ID_AA64ISAR2::APA3]
            .iter()
            .any(|field| sysreg::IdAa64isar2::get().read(*field) != 0)
}

/// HCR_EL2 while the host runs: stage 2 on, SMC trapped, interrupts and SErrors the host's own, extensions free.
pub fn host_hcr() -> tock_registers::fields::FieldValue<u64, HCR_EL2::Register> {
    let pauth = has_pauth();
    let mte = sysreg::IdAa64pfr1::get().read(sysreg::ID_AA64PFR1::MTE) >= 2;
    let scxt = sysreg::IdAa64pfr0::get().read(sysreg::ID_AA64PFR0::CSV2) >= 2;
    HCR_EL2::VM::Enable
        + HCR_EL2::RW::EL1IsAarch64
        + HCR_EL2::TSC::EnableTrapEl1SmcToEl2
        + HCR_EL2::API.val(u64::from(pauth))
        + HCR_EL2::APK.val(u64::from(pauth))
        + HCR_EL2::ATA.val(u64::from(mte))
        + HCR_EL2::EnSCXT.val(u64::from(scxt))
}

/// Lets EL2 itself use SIMD registers, on the boot CPU before [`init_for_host`].
pub fn allow_simd() {
    sysreg::Cptr::set(
        (sysreg::CPTR_EL2::RES1_A.val(0xff) + sysreg::CPTR_EL2::RES1_B::SET + sysreg::CPTR_EL2::RES1_C::SET).value,
    );
    barrier::isb(barrier::SY);
}

/// What the CPU's extensions need at EL2 so that EL1 can use them.
pub fn features_for_host() {
    let pfr0 = sysreg::IdAa64pfr0::get();
    let pfr1 = sysreg::IdAa64pfr1::get();
    let sve = pfr0.read(sysreg::ID_AA64PFR0::SVE) != 0;
    let sme = pfr1.read(sysreg::ID_AA64PFR1::SME) != 0;
    sysreg::Cptr::set(
        (sysreg::CPTR_EL2::RES1_A.val(0xff)
            + sysreg::CPTR_EL2::RES1_B::SET
            + sysreg::CPTR_EL2::RES1_C::SET
            + sysreg::CPTR_EL2::TZ.val(u64::from(!sve))
            + sysreg::CPTR_EL2::TSM.val(u64::from(!sme)))
        .value,
    );
    barrier::isb(barrier::SY);
    if sve {
        sysreg::Zcr::set(sysreg::ZCR_EL2::LEN.val(0x1ff).value);
    }
    if sme {
        let smfr0 = sysreg::IdAa64smfr0::get();
        let zt0 = smfr0.read(sysreg::ID_AA64SMFR0::SMEver) != 0;
        let fa64 = smfr0.is_set(sysreg::ID_AA64SMFR0::FA64);
        sysreg::Smcr::set(
            (sysreg::SMCR_EL2::LEN.val(0x1ff)
                + sysreg::SMCR_EL2::EZT0.val(u64::from(zt0))
                + sysreg::SMCR_EL2::FA64.val(u64::from(fa64)))
            .value,
        );
    }
    if sysreg::IdAa64mmfr1::get().read(sysreg::ID_AA64MMFR1::HCX) != 0 {
        sysreg::Hcrx::set(host_hcrx());
    }
    fine_grained_traps_off();
    if pfr0.read(sysreg::ID_AA64PFR0::MPAM) != 0 {
        sysreg::Mpam2::set(0);
    }
    debug_for_host();
}

/// HCRX_EL2: every extension that EL1 could use without a hypervisor; bits of absent ones are RES0.
fn host_hcrx() -> u64 {
    (HCRX_EL2::EnAS0::SET
        + HCRX_EL2::EnALS::SET
        + HCRX_EL2::EnASR::SET
        + HCRX_EL2::MSCEn::SET
        + HCRX_EL2::TCR2En::SET
        + HCRX_EL2::SCTLR2En::SET
        + HCRX_EL2::D128En::SET
        + HCRX_EL2::EnSNERR::SET
        + HCRX_EL2::EnSDERR::SET
        + HCRX_EL2::EnIDCP128::SET
        + HCRX_EL2::GCSEn::SET
        + HCRX_EL2::EnFPM::SET
        + HCRX_EL2::PACMEn::SET)
        .value
}

/// FEAT_FGT: the newer half of these bits are "no trap" bits, so zero would trap.
fn fine_grained_traps_off() {
    const EL1_REGISTERS: u64 = 0b11_1111_1111_1101 << 50; // nACCDATA, nGCS .. nAMAIR2; bit 51 is RES0
    const INSTRUCTIONS: u64 = 0b1_1111 << 55; // nBRBINJ .. nGCSEPP
    const DEBUG_READ: u64 = 0b1111 << 59; // nBRBIDR .. nPMSNEVFR
    const DEBUG_WRITE: u64 = 0b111 << 60; // nBRBCTL .. nPMSNEVFR
    let fgt = sysreg::IdAa64mmfr0::get().read(sysreg::ID_AA64MMFR0::FGT);
    if fgt >= 1 {
        sysreg::Hfgrtr::set(EL1_REGISTERS);
        sysreg::Hfgwtr::set(EL1_REGISTERS);
        sysreg::Hfgitr::set(INSTRUCTIONS);
        sysreg::Hdfgrtr::set(DEBUG_READ);
        sysreg::Hdfgwtr::set(DEBUG_WRITE);
    }
    if fgt >= 2 {
        sysreg::Hfgrtr2::set(u64::MAX);
        sysreg::Hfgwtr2::set(u64::MAX);
        sysreg::Hdfgrtr2::set(u64::MAX);
        sysreg::Hdfgwtr2::set(u64::MAX);
        sysreg::Hfgitr2::set(1); // nDCCIVAPS; the next bit is a trap
    }
}

/// Self-hosted debug, performance counters, profiling and trace buffers belong to EL1; none of them sees EL2.
fn debug_for_host() {
    let dfr0 = sysreg::IdAa64dfr0::get();
    let pmu = !matches!(dfr0.read(sysreg::ID_AA64DFR0::PMUVer), 0 | 0xf);
    let counters = if pmu { sysreg::Pmcr::get().read(sysreg::PMCR_EL0::N) } else { 0 };
    let spe = dfr0.read(sysreg::ID_AA64DFR0::PMSVer) != 0;
    let trace = dfr0.read(sysreg::ID_AA64DFR0::TraceBuffer) != 0;
    MDCR_EL2.write(
        MDCR_EL2::HPMN.val(counters)
            + MDCR_EL2::HPMD.val(u64::from(pmu))
            + MDCR_EL2::HCCD.val(u64::from(pmu))
            + MDCR_EL2::E2PB.val(if spe { 0b11 } else { 0 })
            + MDCR_EL2::E2TB.val(if trace { 0b11 } else { 0 }),
    );
    if dfr0.read(sysreg::ID_AA64DFR0::TraceFilt) != 0 {
        sysreg::Trfcr::set(0);
    }
}

/// Whether the CPU has system registers for the GIC.
pub fn has_gic_registers() -> bool {
    sysreg::IdAa64pfr0::get().read(sysreg::ID_AA64PFR0::GIC) != 0
}

/// The GIC's system registers belong to EL1; the list registers, which only EL2 reaches, are off.
fn gic_for_host() {
    if has_gic_registers() {
        ICC_SRE_EL2
            .write(ICC_SRE_EL2::SRE::SET + ICC_SRE_EL2::DFB::SET + ICC_SRE_EL2::DIB::SET + ICC_SRE_EL2::ENABLE::SET);
        barrier::isb(barrier::SY);
        ICH_HCR_EL2.set(0);
    }
}

/// EL1 as a reset leaves it: MMU and caches off. What a reset leaves unknown is zero, so nothing of a former
/// owner shows.
pub fn reset_el1() {
    SCTLR_EL1.set(SCTLR_EL1_RESET);
    VBAR_EL1.set(0);
    ELR_EL1.set(0);
    SPSR_EL1.set(0);
    SP_EL1.set(0);
    TTBR0_EL1.set(0);
    TTBR1_EL1.set(0);
    sysreg::Cpacr1::set(0);
    barrier::isb(barrier::SY);
}
