//! EL2 while a VM runs: what traps, and what of the host has to rest meanwhile. The host's side is `el2`.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{HCR_EL2, MDCR_EL2, Readable, VTCR_EL2, VTTBR_EL2, Writeable};

use super::super::per_cpu::World;
use super::super::shape::Shape;
use super::super::world::VirtualLines;
use super::sysreg::{self, CPTR_EL2, ID_AA64DFR0, ID_AA64MMFR0, ID_AA64MMFR1, ID_AA64PFR0, PMCR_EL0};
use super::{el2, maintenance};

/// HCR_EL2 of every VM (Arm ARM D24.2.49): stage 2; interrupts and SErrors come to EL2; SMC, WFI, feature registers, ACTLR, set/way
/// maintenance, implementation-defined registers, LORegions and error records trap; maintenance and barriers reach all CPUs of the inner
/// domain. K: HCR_HYPSEC_VM_FLAGS.
const HCR_VM: u64 = 1 // VM
    | 1 << 1 // SWIO
    | 1 << 3 | 1 << 4 | 1 << 5 // FMO, IMO, AMO
    | 1 << 9 // FB
    | 0b01 << 10 // BSU: inner shareable
    | 1 << 13 // TWI
    | 1 << 18 // TID3
    | 1 << 19 // TSC
    | 1 << 20 // TIDCP
    | 1 << 21 // TACR
    | 1 << 22 // TSW
    | 1 << 31 // RW
    | 1 << 35; // TLOR
const HCR_VF: u64 = 1 << 6;
const HCR_VI: u64 = 1 << 7;
const HCR_TERR: u64 = 1 << 36;
const HCR_APK_API: u64 = 0b11 << 40;
/// MDCR_EL2: performance counters, breakpoints, profiling and trace trap; BRK stays the VM's own.
const MDCR_TRAPS: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 19; // TPMCR TPM TDA TDOSA TDRA TPMS TTRF
const MDCR_TDCC: u64 = 1 << 27;
/// MPAM2_EL2: TRAPMPAM0EL1, TRAPMPAM1EL1.
const MPAM_TRAPS: u64 = 0b11 << 48;

const TCR_EPD: u64 = 1 << 7 | 1 << 23;
const SCTLR_M: u64 = 1;

/// Lets no stage-1 walk of EL1 begin: between two worlds, stage 1 of one must not meet stage 2 of the other, not even by
/// speculation (Cortex-A57, A72, A76 and others: errata 1319537, 1319367, 1165522, 1530923). TCR before SCTLR: with the MMU off, addresses
/// would translate to themselves. The owner's values come back with `bank::restore`.
pub fn no_walks() {
    sysreg::Tcr1::set(sysreg::Tcr1::get().get() | TCR_EPD);
    barrier::isb(barrier::SY);
    sysreg::Sctlr1::set(sysreg::Sctlr1::get().get() | SCTLR_M);
    barrier::isb(barrier::SY);
}

/// The stage 2 at `vttbr` on this CPU.
pub fn set_stage2(vttbr: u64, shape: Shape, flush: bool) {
    no_walks();
    VTCR_EL2.set(el2::vtcr(shape));
    VTTBR_EL2.set(vttbr);
    barrier::isb(barrier::SY);
    if flush {
        maintenance::flush_vmid_local();
    }
}

fn has_pmu() -> bool {
    !matches!(sysreg::IdAa64dfr0::get().read(ID_AA64DFR0::PMUVer), 0 | 0xf)
}

/// Traps for a VM; the host's counters, profiling and trace stop.
pub fn activate(world: &mut World, lines: VirtualLines) {
    let pfr0 = sysreg::IdAa64pfr0::get();
    let mmfr0 = sysreg::IdAa64mmfr0::get();
    pause_host_counting(world);
    let mut hcr = HCR_VM;
    hcr |= if lines.virq { HCR_VI } else { 0 } | if lines.vfiq { HCR_VF } else { 0 };
    hcr |= if el2::has_pauth() { HCR_APK_API } else { 0 };
    hcr |= if pfr0.read(ID_AA64PFR0::RAS) != 0 { HCR_TERR } else { 0 };
    HCR_EL2.set(hcr);
    let amu = pfr0.read(ID_AA64PFR0::AMU) != 0;
    sysreg::Cptr::set(
        (CPTR_EL2::RES1_A.val(0xff)
            + CPTR_EL2::RES1_B::SET
            + CPTR_EL2::RES1_C::SET
            + CPTR_EL2::TZ::SET
            + CPTR_EL2::TSM::SET
            + CPTR_EL2::TTA::SET
            + CPTR_EL2::TAM.val(u64::from(amu)))
        .value,
    );
    let fgt = mmfr0.read(ID_AA64MMFR0::FGT);
    // Profiling and trace buffers (E2PB, E2TB) are EL2's and off.
    let counters = MDCR_EL2.read(MDCR_EL2::HPMN);
    let quiet = MDCR_EL2::HPMN.val(counters)
        + MDCR_EL2::HPMD.val(u64::from(has_pmu()))
        + MDCR_EL2::HCCD.val(u64::from(has_pmu()));
    MDCR_EL2.set(quiet.value | MDCR_TRAPS | if fgt != 0 { MDCR_TDCC } else { 0 });
    if sysreg::IdAa64mmfr1::get().read(ID_AA64MMFR1::HCX) != 0 {
        // Memory copy instructions keep no state; whatever else needs some that is not switched.
        sysreg::Hcrx::set(sysreg::HCRX_EL2::MSCEn::SET.value);
    }
    // All zero: registers that are older than fine-grained traps do not trap, all newer ones do.
    if fgt >= 1 {
        sysreg::Hfgrtr::set(0);
        sysreg::Hfgwtr::set(0);
        sysreg::Hfgitr::set(0);
        sysreg::Hdfgrtr::set(0);
        sysreg::Hdfgwtr::set(0);
    }
    if fgt >= 2 {
        sysreg::Hfgrtr2::set(0);
        sysreg::Hfgwtr2::set(0);
        sysreg::Hfgitr2::set(0);
        sysreg::Hdfgrtr2::set(0);
        sysreg::Hdfgwtr2::set(0);
    }
    if pfr0.read(ID_AA64PFR0::MPAM) != 0 {
        sysreg::Mpam2::set(MPAM_TRAPS);
    }
    barrier::isb(barrier::SY);
}

/// The host's features and counters again.
pub fn deactivate(world: &World) {
    el2::features_for_host();
    let dfr0 = sysreg::IdAa64dfr0::get();
    if has_pmu() {
        sysreg::Pmcr::set(world.pmcr);
    }
    if dfr0.read(ID_AA64DFR0::PMSVer) != 0 {
        sysreg::Pmscr1::set(world.pmscr);
    }
    if dfr0.read(ID_AA64DFR0::TraceFilt) != 0 {
        sysreg::Trfcr1::set(world.trfcr);
    }
    barrier::isb(barrier::SY);
}

/// What counts or samples for the host would count and sample the VM: a window into it.
fn pause_host_counting(world: &mut World) {
    let dfr0 = sysreg::IdAa64dfr0::get();
    if has_pmu() {
        world.pmcr = sysreg::Pmcr::get().get();
        // C and P (bits 1, 2) read as zero, so writing back resets nothing.
        sysreg::Pmcr::set(world.pmcr & !PMCR_EL0::E::SET.value);
    }
    if dfr0.read(ID_AA64DFR0::PMSVer) != 0 {
        world.pmscr = sysreg::Pmscr1::get().get();
        sysreg::Pmscr1::set(0);
        barrier::isb(barrier::SY);
        // SAFETY: PSB CSYNC and DSB wait until what was sampled is written.
        unsafe { asm!("hint #17", "dsb nsh", options(nostack, preserves_flags)) };
    }
    if dfr0.read(ID_AA64DFR0::TraceFilt) != 0 {
        world.trfcr = sysreg::Trfcr1::get().get();
        sysreg::Trfcr1::set(0);
        barrier::isb(barrier::SY);
        // SAFETY: TSB CSYNC and DSB, the same for the trace.
        unsafe { asm!("hint #18", "dsb nsh", options(nostack, preserves_flags)) };
    }
}
