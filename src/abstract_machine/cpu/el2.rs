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
use tock_registers::fields::FieldValue;

use super::super::features::{Common, Features, Parts, SeenIds, Traps, has_mpam};
use super::super::regs::{MPIDR_AFFINITY, SCTLR_EL1_RESET, Syndrome};
use super::super::shadow::Context;
use super::super::shape::Shape;
use super::sysreg::{
    self, BUFFER_ID, CPTR_EL2, HCRX_EL2, ID_AA64DFR0, ID_AA64ISAR1, ID_AA64ISAR2, ID_AA64MMFR0, ID_AA64MMFR1,
    ID_AA64MMFR2, ID_AA64MMFR3, ID_AA64PFR0, ID_AA64PFR1, ID_AA64PFR2, ID_AA64SMFR0, MPAM2_EL2,
};
use super::{bank, fpsimd, maintenance, traps, vgic, with_world};

#[cfg(feature = "test-hooks")]
pub use traps::write_hcr;

/// ID_AA64MMFR0_EL1.PARange, decoded.
const PA_BITS: [u32; 8] = [32, 36, 40, 42, 44, 48, 52, 56];

static HOST_STAGE2: Once<(u64, Shape)> = Once::new();
static BOOT_CPU: Once<Common> = Once::new();

/// Makes the table at `vttbr` of form `shape` the host's stage 2 on every CPU, and this CPU the one that others are measured by: once, on the boot CPU, before the first is
/// made ready.
pub fn set_host_stage2(vttbr: u64, shape: Shape) {
    HOST_STAGE2.call_once(|| (vttbr, shape));
    let boot = BOOT_CPU.call_once(common);
    maintenance::set_line_size(boot.line);
}

/// What of this CPU the others depend on.
fn common() -> Common {
    Common {
        vhe: is_vhe(),
        pa_bits: pa_bits(),
        fwb: sysreg::IdAa64mmfr2::get().read(ID_AA64MMFR2::FWB) != 0,
        line: maintenance::own_line_size(),
        midr: MIDR_EL1.get(),
        sme: sysreg::IdAa64pfr1::get().read(ID_AA64PFR1::SME) != 0,
    }
}

/// Why this CPU cannot run the host, whose table is of form `shape`.
pub fn unfit(shape: Shape) -> Option<&'static str> {
    BOOT_CPU.get().map_or(Some("no CPU has booted"), |boot| common().unfit(boot, shape.ia_bits()))
}

/// The host's stage 2: VTTBR_EL2 and the table's form; none before [`set_host_stage2`].
pub fn host_stage2() -> Option<(u64, Shape)> {
    HOST_STAGE2.get().copied()
}

/// Whether VMs run with HCR_EL2.FWB: as the boot CPU can, for all CPUs walk the same tables. See `Machine::forces_write_back`.
pub fn vms_force_write_back() -> bool {
    BOOT_CPU.get().is_some_and(|boot| boot.fwb)
}

/// Affinity of this CPU.
pub fn affinity() -> u64 {
    aarch64_cpu::registers::MPIDR_EL1.get() & MPIDR_AFFINITY
}

/// Whether EL2 runs with E2H = 1 although boot/entry.S wrote 0: a CPU without FEAT_E2H0. For secondaries: the boot CPU does not come out of entry.S so.
pub fn is_vhe() -> bool {
    HCR_EL2.matches_all(HCR_EL2::E2H::EnableOsAtEl2)
}

/// Bits of a physical address on this CPU; the core uses 48 at most (4 KiB granule without FEAT_LPA2).
pub fn pa_bits() -> u32 {
    let range = sysreg::IdAa64mmfr0::get().read(ID_AA64MMFR0::PARange) as usize;
    PA_BITS.get(range).copied().unwrap_or(48).min(48)
}

/// Encoding of [`pa_bits`] for TCR_EL2.PS and VTCR_EL2.PS.
pub fn physical_size_field() -> u64 {
    sysreg::IdAa64mmfr0::get().read(ID_AA64MMFR0::PARange).min(0b101)
}

/// Makes EL2 of this CPU ready for the host, whose stage 2 is `vttbr` of form `shape`. From here on the CPU's own data say what it has.
pub fn init_for_host(vttbr: u64, shape: Shape) {
    let mut features = features();
    (features.host_vttbr, features.host_vtcr) = (vttbr, vtcr(&features, shape));
    VTCR_EL2.set(features.host_vtcr);
    VTTBR_EL2.set(vttbr);
    traps::write_hcr(features.host.hcr);
    if features.ras {
        sysreg::Vdisr::clear();
        sysreg::Vsesr::clear();
    }
    sysreg::Cptr::set(features.host.cptr);
    traps::write(&features, &features.host);
    if features.fgt != 0 && sysreg::IdAa64pfr0::get().read(ID_AA64PFR0::AMU) != 0 {
        sysreg::Hafgrtr::clear();
    }
    if features.mpam && sysreg::Mpamidr::get().is_set(sysreg::MPAMIDR_EL1::HAS_HCR) {
        sysreg::Mpamhcr::clear();
    }
    barrier::isb(barrier::SY);
    vectors_for_host(&features);
    if features.trf {
        sysreg::Trfcr::clear();
    }
    if features.spe {
        sysreg::Pmscr2::clear();
    }
    if features.brbe {
        sysreg::Brbcr2::set((sysreg::BRBCR_EL2::CC::SET + sysreg::BRBCR_EL2::MPRED::SET).value);
    }
    CNTHCTL_EL2.write(CNTHCTL_EL2::EL1PCEN::SET + CNTHCTL_EL2::EL1PCTEN::SET);
    CNTVOFF_EL2.set(0);
    CNTHP_CTL_EL2.set(0);
    sysreg::Hstr::clear();
    // No write of EL1 to implementation-defined control registers: some switch coherency off.
    ACTLR_EL2.set(0);
    sysreg::Vpidr::set(MIDR_EL1.get());
    VMPIDR_EL2.set(aarch64_cpu::registers::MPIDR_EL1.get());
    gic_for_host();
    barrier::isb(barrier::SY);
    with_world(|world| {
        (world.features, world.ids) = (features, SeenIds::NONE);
        world.host = Context::EMPTY;
        bank::init_host(&mut world.host);
        vgic::prepare(world);
    });
    maintenance::flush_all_local();
}

/// VTCR_EL2 for a stage-2 table of form `shape`. K §1.4.
#[inline(always)]
pub fn vtcr(features: &Features, shape: Shape) -> u64 {
    let start = 1 + u64::from(shape.has_level0());
    // A form has 48 bits at most.
    let size = 64_u64.wrapping_sub(shape.ia_bits().into());
    features.vtcr | (VTCR_EL2::SL0.val(start) + VTCR_EL2::T0SZ.val(size)).value
}

/// The same by this CPU's own data.
pub fn vtcr_of(shape: Shape) -> u64 {
    with_world(|world| vtcr(&world.features, shape))
}

/// What this CPU has.
fn features() -> Features {
    let (pfr0, pfr1) = (sysreg::IdAa64pfr0::get(), sysreg::IdAa64pfr1::get());
    let (mmfr0, mmfr1) = (sysreg::IdAa64mmfr0::get(), sysreg::IdAa64mmfr1::get());
    let dfr0 = sysreg::IdAa64dfr0::get();
    let sme = pfr1.read(ID_AA64PFR1::SME) != 0;
    let mut features = Features {
        pauth: has_pauth(),
        ras: pfr0.read(ID_AA64PFR0::RAS) != 0,
        sve: pfr0.read(ID_AA64PFR0::SVE) != 0,
        sme,
        fa64: sme && sysreg::IdAa64smfr0::get().is_set(ID_AA64SMFR0::FA64),
        fpmr: sysreg::IdAa64pfr2::get().read(ID_AA64PFR2::FPMR) != 0,
        pmu: !matches!(dfr0.read(ID_AA64DFR0::PMUVer), 0 | 0xf),
        spe: dfr0.read(ID_AA64DFR0::PMSVer) != 0 && !sysreg::Pmbidr::get().is_set(BUFFER_ID::P),
        trf: dfr0.read(ID_AA64DFR0::TraceFilt) != 0,
        trbe: dfr0.read(ID_AA64DFR0::TraceBuffer) != 0 && !sysreg::Trbidr::get().is_set(BUFFER_ID::P),
        brbe: dfr0.read(ID_AA64DFR0::BRBE) != 0,
        mpam: has_mpam(pfr0.read(ID_AA64PFR0::MPAM), pfr1.read(ID_AA64PFR1::MPAM_frac)),
        hcx: mmfr1.read(ID_AA64MMFR1::HCX) != 0,
        fgt: mmfr0.read(ID_AA64MMFR0::FGT).min(2) as u8,
        fwb: vms_force_write_back(),
        vtcr: (VTCR_EL2::RES1::SET
            + VTCR_EL2::VS.val(u64::from(mmfr1.matches_all(ID_AA64MMFR1::VMIDBits::Bits16)))
            + VTCR_EL2::PS.val(physical_size_field())
            + VTCR_EL2::TG0.val(0)
            + VTCR_EL2::SH0::Inner
            + VTCR_EL2::ORGN0::NormalWBRAWA
            + VTCR_EL2::IRGN0::NormalWBRAWA)
            .value,
        ..Features::NONE
    };
    features.parts = Parts::of(&features);
    features.host = for_host(&features);
    features.vm = traps::for_vm(&features, pfr0.read(ID_AA64PFR0::AMU) != 0);
    features
}

/// Whether the CPU has pointer authentication, by whichever algorithm.
fn has_pauth() -> bool {
    let isar1 = sysreg::IdAa64isar1::get();
    [ID_AA64ISAR1::APA, ID_AA64ISAR1::API, ID_AA64ISAR1::GPA, ID_AA64ISAR1::GPI]
        .iter()
        .any(|field| isar1.read(*field) != 0)
        || [ID_AA64ISAR2::GPA3, ID_AA64ISAR2::APA3].iter().any(|field| sysreg::IdAa64isar2::get().read(*field) != 0)
}

/// The host takes an SError with the ISS of `syndrome` (IDS and ISS; without FEAT_RAS none can be told). Arm ARM D1.3.7, D24.2.164.
pub fn pend_host_serror(syndrome: Syndrome) {
    const ISS: u64 = 0x1ff_ffff;
    if with_world(|world| world.features.ras) {
        sysreg::Vsesr::set(syndrome.raw() & ISS);
    }
    traps::write_hcr(HCR_EL2.get() | HCR_EL2::VSE::SET.value);
}

/// HCR_EL2 while the host runs: stage 2 on, SMC trapped, interrupts the host's own, extensions free. SErrors come to the core, for only so
/// does it hear of its own; the host's it gives back ([`pend_host_serror`]). What an implementation has of its own (CRn 11 and 15) traps: with some of it EL1
/// reads the caches' RAM, whosever lines these are (Cortex-A57 and A72: RAMINDEX).
fn host_hcr(pauth: bool) -> u64 {
    let mte = sysreg::IdAa64pfr1::get().read(ID_AA64PFR1::MTE) >= 2;
    let scxt = sysreg::IdAa64pfr0::get().read(ID_AA64PFR0::CSV2) >= 2;
    (HCR_EL2::VM::Enable
        + HCR_EL2::RW::EL1IsAarch64
        + HCR_EL2::TSC::EnableTrapEl1SmcToEl2
        + HCR_EL2::TIDCP::SET
        + HCR_EL2::AMO::SET
        + HCR_EL2::API.val(u64::from(pauth))
        + HCR_EL2::APK.val(u64::from(pauth))
        + HCR_EL2::ATA.val(u64::from(mte))
        + HCR_EL2::EnSCXT.val(u64::from(scxt)))
    .value
}

/// While the host runs. Self-hosted debug, performance counters, profiling, trace buffers and branch records belong to EL1; none of them sees EL2. FEAT_FGT: the
/// newer half of these bits are "no trap" bits, so zero would trap.
fn for_host(features: &Features) -> Traps {
    const EL1_REGISTERS: u64 = 0b11_1111_1111_1101 << 50; // nACCDATA, nGCS .. nAMAIR2; bit 51 is RES0
    const INSTRUCTIONS: u64 = 0b1_1111 << 55; // nBRBINJ .. nGCSEPP
    const DEBUG_READ: u64 = 0b1111 << 59; // nBRBIDR .. nPMSNEVFR
    const DEBUG_WRITE: u64 = 0b111 << 60; // nBRBCTL .. nPMSNEVFR
    const DEBUG_INSTRUCTIONS: u64 = 1 << 1; // nDCCIVAPS; bit 0, TSBCSYNC, is a trap
    let mdcr = MDCR_EL2::E2PB.val(if features.spe { 0b11 } else { 0 })
        + MDCR_EL2::E2TB.val(if features.trbe { 0b11 } else { 0 });
    let absent = CPTR_EL2::TZ.val(u64::from(!features.sve)) + CPTR_EL2::TSM.val(u64::from(!features.sme));
    Traps {
        hcr: host_hcr(features.pauth),
        cptr: (CPTR_RES1 + absent).value,
        mdcr: mdcr.value | own_counters(features.pmu),
        hcrx: host_hcrx(),
        // Linux writes MPAMSM_EL1 where there is SME. VMs have no MPAM at all.
        mpam: MPAM2_EL2::EnMPAMSM.val(u64::from(features.sme)).value,
        fine_registers: EL1_REGISTERS,
        fine_instructions: INSTRUCTIONS,
        fine_debug_reads: DEBUG_READ,
        fine_debug_writes: DEBUG_WRITE,
        fine2: u64::MAX,
        fine2_instructions: DEBUG_INSTRUCTIONS,
    }
}

/// Bits of CPTR_EL2 that are one.
pub const CPTR_RES1: FieldValue<u64, CPTR_EL2::Register> =
    FieldValue::<u64, CPTR_EL2::Register>::new(0x22ff, 0, 0x22ff);

/// MDCR_EL2: all performance counters are EL1's, and none counts at EL2.
pub fn own_counters(pmu: bool) -> u64 {
    let counters = if pmu { sysreg::Pmcr::get().read(sysreg::PMCR_EL0::N) } else { 0 };
    (MDCR_EL2::HPMN.val(counters) + MDCR_EL2::HPMD.val(u64::from(pmu)) + MDCR_EL2::HCCD.val(u64::from(pmu))).value
}

/// Lets EL2 itself use SIMD registers, on the boot CPU before [`init_for_host`].
pub fn allow_simd() {
    sysreg::Cptr::set(CPTR_RES1.value);
    barrier::isb(barrier::SY);
}

/// The longest vectors that the CPU has, and all of SME: for EL1.
fn vectors_for_host(features: &Features) {
    if features.sve {
        sysreg::Zcr::set(sysreg::ZCR_EL2::LEN.val(0x1ff).value);
    }
    if features.sme {
        let zt0 = sysreg::IdAa64smfr0::get().read(ID_AA64SMFR0::SMEver) != 0;
        sysreg::Smcr::set(
            (sysreg::SMCR_EL2::LEN.val(0x1ff)
                + sysreg::SMCR_EL2::EZT0.val(u64::from(zt0))
                + sysreg::SMCR_EL2::FA64.val(u64::from(features.fa64)))
            .value,
        );
    }
}

/// HCRX_EL2: every extension that EL1 could use without a hypervisor; bits of absent ones are RES0. Not 128-bit tables (D128En): with them TTBR0_EL1, TTBR1_EL1 and PAR_EL1 are
/// longer than what a world switch keeps. Not an implementation's own 128-bit registers (EnIDCP128) either: at EL0 HCR_EL2.TIDCP does not trap these.
fn host_hcrx() -> u64 {
    (HCRX_EL2::EnAS0::SET
        + HCRX_EL2::EnALS::SET
        + HCRX_EL2::EnASR::SET
        + HCRX_EL2::MSCEn::SET
        + HCRX_EL2::TCR2En::SET
        + HCRX_EL2::SCTLR2En::SET
        + HCRX_EL2::EnSNERR::SET
        + HCRX_EL2::EnSDERR::SET
        + HCRX_EL2::GCSEn::SET
        + HCRX_EL2::EnFPM::SET
        + HCRX_EL2::PACMEn::SET)
        .value
}

/// Switches the CPU's system registers for the GIC on: whether it has any that can be used. Firmware that runs a GICv3 as a GICv2 keeps them off (ICC_SRE_EL3.SRE; Linux, booting.rst): the
/// write does not stick, and every other of them would trap.
pub fn enable_gic_registers() -> bool {
    if sysreg::IdAa64pfr0::get().read(ID_AA64PFR0::GIC) == 0 {
        return false;
    }
    set_gic_access(true);
    barrier::isb(barrier::SY);
    ICC_SRE_EL2.is_set(ICC_SRE_EL2::SRE)
}

/// The system registers for the GIC, and whether EL1 may touch ICC_SRE_EL1 (where the CPU has that bit): the host may, as on the bare machine; what a VM wrote there, SRE = 0, would be
/// the host's as well. IHI 0069 12.2.24.
#[inline(always)]
pub fn set_gic_access(sre: bool) {
    let enable = ICC_SRE_EL2::ENABLE.val(u64::from(sre));
    ICC_SRE_EL2.write(ICC_SRE_EL2::SRE::SET + ICC_SRE_EL2::DFB::SET + ICC_SRE_EL2::DIB::SET + enable);
}

/// The GIC's system registers belong to EL1; the list registers, which only EL2 reaches, are off.
fn gic_for_host() {
    if enable_gic_registers() {
        ICH_HCR_EL2.set(0);
    }
}

/// Before the host is on this CPU for the first time, after [`init_for_host`]: all registers that VMs may have had in another life of the core are zero. A warm reset need not clear them, and scrubs
/// no register.
pub fn forget_registers() {
    with_world(|world| {
        bank::restore(&world.host, &world.features, true);
        fpsimd::forget(world);
    });
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
    sysreg::Cpacr1::clear();
    // What EL1 may use without asking (HCRX_EL2) is off until it does.
    let mmfr3 = sysreg::IdAa64mmfr3::get();
    if mmfr3.read(ID_AA64MMFR3::SCTLRX) != 0 {
        sysreg::Sctlr2::clear();
    }
    if mmfr3.read(ID_AA64MMFR3::TCRX) != 0 {
        sysreg::Tcr2::clear();
    }
    if sysreg::IdAa64pfr1::get().read(ID_AA64PFR1::GCS) != 0 {
        sysreg::Gcscr1::clear();
        sysreg::Gcscre0::clear();
    }
    barrier::isb(barrier::SY);
}
