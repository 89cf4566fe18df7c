//! EL2 while a VM runs: what traps, and what of the host has to rest meanwhile. The host's side is `el2`.
//! Arm ARM (DDI 0487) D24.2 for each register.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{HCR_EL2, MDCR_EL2, Readable, SCTLR_EL1, TCR_EL1, Writeable};

use super::super::features::{Features, Traps};
use super::super::per_cpu::World;
use super::super::shape::Shape;
use super::super::world::VirtualLines;
use super::sysreg::{self, BUFFER_LIMIT, CPTR_EL2, MPAM2_EL2, PMCR_EL0};
use super::{el2, maintenance};

/// TCR_EL1.EPD0 and EPD1: no walks by TTBR0_EL1, none by TTBR1_EL1.
const TCR_EPD: [u64; 2] = [TCR_EL1::EPD0::DisableTTBR0Walks.value, TCR_EL1::EPD1::DisableTTBR1Walks.value];
const SCTLR_M: u64 = SCTLR_EL1::M::Enable.value;

/// HCR_EL2 of every VM (Arm ARM D24.2.49): stage 2; no walks of stage 1 in device memory; interrupts and SErrors come to EL2; SMC, WFI, feature registers, ACTLR, set/way
/// maintenance, implementation-defined registers, LORegions and error records trap; maintenance and barriers reach all CPUs of the inner
/// domain. K: HCR_HYPSEC_VM_FLAGS.
fn vm_hcr(features: &Features) -> u64 {
    let all = HCR_EL2::VM::Enable
        + HCR_EL2::SWIO::SET
        + HCR_EL2::PTW::SET
        + HCR_EL2::FMO::SET
        + HCR_EL2::IMO::SET
        + HCR_EL2::AMO::SET
        + HCR_EL2::FB::SET
        + HCR_EL2::BSU::InnerShareable
        + HCR_EL2::TWI::SET
        + HCR_EL2::TID3::SET
        + HCR_EL2::TSC::SET
        + HCR_EL2::TIDCP::SET
        + HCR_EL2::TACR::SET
        + HCR_EL2::TSW::SET
        + HCR_EL2::RW::EL1IsAarch64
        + HCR_EL2::TLOR::SET;
    let pauth = u64::from(features.pauth);
    // FWB: VMs' tables say how their RAM is cached (`Desc::of_vm`). TLBs may hold this bit: for a VMID it is always the same, and between two worlds nothing is walked.
    let own = HCR_EL2::API.val(pauth)
        + HCR_EL2::APK.val(pauth)
        + HCR_EL2::TERR.val(features.ras.into())
        + HCR_EL2::FWB.val(features.fwb.into());
    (all + own).value
}

/// MDCR_EL2 of every VM: performance counters, breakpoints, profiling and trace trap; BRK stays the VM's own.
fn vm_mdcr(features: &Features) -> u64 {
    let traps = MDCR_EL2::TPMCR::SET
        + MDCR_EL2::TPM::SET
        + MDCR_EL2::TDA::SET
        + MDCR_EL2::TDOSA::SET
        + MDCR_EL2::TDRA::SET
        + MDCR_EL2::TPMS::SET
        + MDCR_EL2::TTRF::SET
        + MDCR_EL2::TDCC.val((features.fgt != 0).into());
    el2::own_counters(features.pmu) | traps.value
}

/// The stage 2 at `vttbr`, of the form that `vtcr` says, with `hcr` in HCR_EL2, on this CPU; and no walk of EL1's stage 1 until `bank::restore` has its owner's values.
///
/// Walks that EL1 began may go on after an exception: the DSB waits for them (Arm ARM R_LFHQG). After it no walk begins: between two worlds, stage 1 of
/// one must not meet stage 2 of the other, not even by speculation (Cortex-A57, A72, A76 and others: errata 1319537, 1319367, 1165522, 1530923). TCR before SCTLR: with
/// the MMU off, addresses would translate to themselves. Between the DSB and the last ISB no memory is accessed: see [`write_hcr`], whose barriers these are as well.
#[inline(always)]
pub fn change_stage2(vtcr: u64, vttbr: u64, hcr: u64) {
    // SAFETY: what EL1 uses changes, while the core runs: `vttbr` is a table of the layers', and HCR_EL2 one of `for_host` or `for_vm`, with E2H = 0.
    unsafe {
        asm!(
            "dsb nsh",
            "mrs {t}, tcr_el1",
            "orr {t}, {t}, {epd0}",
            "orr {t}, {t}, {epd1}",
            "msr tcr_el1, {t}",
            "isb",
            "mrs {t}, sctlr_el1",
            "orr {t}, {t}, {m}",
            "msr sctlr_el1, {t}",
            "isb",
            "msr vtcr_el2, {vtcr}",
            "msr vttbr_el2, {vttbr}",
            "msr hcr_el2, {hcr}",
            "isb",
            t = out(reg) _, vtcr = in(reg) vtcr, vttbr = in(reg) vttbr, hcr = in(reg) hcr,
            epd0 = const TCR_EPD[0], epd1 = const TCR_EPD[1], m = const SCTLR_M,
            options(nostack, preserves_flags)
        );
    }
}

/// HCR_EL2, in force. Nowhere but here and in [`change_stage2`] is it written: on some CPUs a write may corrupt the translation of what is loaded or stored
/// at the same time (AmpereOne: erratum AC04_CPU_23), so nothing is.
pub fn write_hcr(hcr: u64) {
    // SAFETY: a value of `for_host` or `for_vm`, with E2H = 0: it governs EL1, and what comes to EL2.
    unsafe { asm!("dsb nsh", "msr hcr_el2, {}", "isb", in(reg) hcr, options(nostack, preserves_flags)) };
}

/// While a VM runs. Profiling and trace buffers (E2PB, E2TB) are EL2's and off; memory copy instructions keep no state, and whatever else of HCRX_EL2 needs some
/// that is not switched. Fine-grained traps all zero: registers that are older than these traps do not trap, all newer ones do.
pub fn for_vm(features: &Features, amu: bool) -> Traps {
    let traps = CPTR_EL2::TZ::SET + CPTR_EL2::TSM::SET + CPTR_EL2::TTA::SET + CPTR_EL2::TAM.val(u64::from(amu));
    Traps {
        hcr: vm_hcr(features),
        cptr: (el2::CPTR_RES1 + traps).value,
        mdcr: vm_mdcr(features),
        hcrx: sysreg::HCRX_EL2::MSCEn::SET.value,
        mpam: (MPAM2_EL2::TRAPMPAM0EL1::SET + MPAM2_EL2::TRAPMPAM1EL1::SET).value,
        ..Traps::ZERO
    }
}

/// CPTR_EL2 for the VM that runs on this CPU: FP traps while the host's registers are in place.
#[inline]
pub fn cptr_of_vm(world: &World) -> u64 {
    let fp = CPTR_EL2::TFP.val(u64::from(!world.fp_saved));
    world.features.vm.cptr | fp.value
}

/// Writes what this CPU has of `traps`, but HCR_EL2 and CPTR_EL2. They hold after the caller's next ISB.
pub fn write(features: &Features, traps: &Traps) {
    write_common(features, traps);
    if features.mpam {
        sysreg::Mpam2::set(traps.mpam);
    }
}

/// The same without MPAM.
#[inline]
fn write_common(features: &Features, traps: &Traps) {
    MDCR_EL2.set(traps.mdcr);
    let parts = features.parts;
    if parts.hcx() {
        sysreg::Hcrx::set(traps.hcrx);
    }
    if parts.fgt() {
        sysreg::Hfgrtr::set(traps.fine_registers);
        sysreg::Hfgwtr::set(traps.fine_registers);
        sysreg::Hfgitr::set(traps.fine_instructions);
        sysreg::Hdfgrtr::set(traps.fine_debug_reads);
        sysreg::Hdfgwtr::set(traps.fine_debug_writes);
    }
    if parts.fgt2() {
        sysreg::Hfgrtr2::set(traps.fine2);
        sysreg::Hfgwtr2::set(traps.fine2);
        sysreg::Hdfgrtr2::set(traps.fine2);
        sysreg::Hdfgwtr2::set(traps.fine2);
        sysreg::Hfgitr2::set(traps.fine2_instructions);
    }
}

/// Traps for a VM, but HCR_EL2, which came with its stage 2, except for `lines`; the host's counters stop. In force when `bank::restore` has come to its first ISB: until
/// then nothing of EL1 is used, and the core itself uses nothing that they trap.
pub fn activate(world: &mut World, lines: VirtualLines) {
    pause_host_counting(world);
    if lines.virq || lines.vfiq {
        let pending = HCR_EL2::VI.val(lines.virq.into()) + HCR_EL2::VF.val(lines.vfiq.into());
        write_hcr(world.features.vm.hcr | pending.value);
    }
    sysreg::Cptr::set(cptr_of_vm(world));
    write_common(&world.features, &world.features.vm);
}

/// A VM's stage 2 and HCR_EL2; `flush` as in `Machine::vm_el2_restore_state`. What waits for the host is not for the VM, and waits on.
pub fn set_vm_stage2(world: &mut World, vttbr: u64, shape: Shape, flush: bool) {
    world.serror = HCR_EL2.get() & HCR_EL2::VSE::SET.value;
    change_stage2(el2::vtcr(&world.features, shape), vttbr, world.features.vm.hcr);
    if flush {
        maintenance::flush_vmid_local();
    }
}

/// The host's, with the SError that waits for it.
pub fn set_host_stage2(world: &World) {
    let features = &world.features;
    change_stage2(features.host_vtcr, features.host_vttbr, features.host.hcr | world.serror);
}

/// The host's features and counters again, once its stage 2 is back: in force when `bank::restore` has come to its first ISB, as with [`activate`]. That CNTV is off (`bank::save`),
/// so that its offset may change, came into force with stage 2.
pub fn deactivate(world: &World) {
    let features = &world.features;
    sysreg::Cptr::set(features.host.cptr);
    write_common(features, &features.host);
    if features.parts.pmu() {
        sysreg::Pmcr::set(world.pmcr);
    }
}

/// What counts for the host would count the VM: a window into it.
fn pause_host_counting(world: &mut World) {
    if world.features.parts.pmu() {
        world.pmcr = sysreg::Pmcr::get().get();
        // C and P (bits 1, 2) read as zero, so writing back resets nothing.
        sysreg::Pmcr::set(world.pmcr & !PMCR_EL0::E::SET.value);
    }
}

/// The host leaves, with its stage 1 and its stage 2 still in place: what records or samples for it stops, and what waits to be written goes where the host
/// wanted it. Afterwards nothing of it makes an access until [`resume_recording`]: the VM's tables would be the wrong ones. The branch records that the host has stay, and none is added.
/// MPAM's traps for the VM begin here as well: they are no concern of the core's.
#[cold]
#[inline(never)]
pub fn stop_recording(world: &mut World) {
    let features = &world.features;
    if features.mpam {
        sysreg::Mpam2::set(features.vm.mpam);
    }
    if features.spe {
        world.pmscr = sysreg::Pmscr1::get().get();
        sysreg::Pmscr1::set(0);
    }
    if features.trf {
        world.trfcr = sysreg::Trfcr1::get().get();
        sysreg::Trfcr1::set(0);
    }
    if features.brbe {
        world.brbcr = sysreg::Brbcr1::get().get();
        sysreg::Brbcr1::set(0);
    }
    barrier::isb(barrier::SY);
    if features.spe {
        // SAFETY: PSB CSYNC and DSB wait until what was sampled is written.
        unsafe { asm!("hint #17", "dsb nsh", options(nostack, preserves_flags)) };
        world.pmblimitr = sysreg::Pmblimitr::get().get();
        sysreg::Pmblimitr::set(world.pmblimitr & !BUFFER_LIMIT::E::SET.value);
    }
    if features.trf {
        wait_for_trace();
    }
    if features.trbe {
        world.trblimitr = sysreg::Trblimitr::get().get();
        sysreg::Trblimitr::set(world.trblimitr & !BUFFER_LIMIT::E::SET.value);
        // Some CPUs write what is left only now (Cortex-A510: erratum 2064142).
        wait_for_trace();
    }
    barrier::isb(barrier::SY);
}

fn wait_for_trace() {
    // SAFETY: TSB CSYNC and DSB wait until what was traced is written.
    unsafe { asm!("hint #18", "dsb nsh", options(nostack, preserves_flags)) };
}

/// The host is back, with all of its registers and tables: what [`stop_recording`] stopped goes on. In force at the return to it.
#[cold]
#[inline(never)]
pub fn resume_recording(world: &World) {
    let features = &world.features;
    if features.spe {
        sysreg::Pmblimitr::set(world.pmblimitr);
    }
    if features.trbe {
        sysreg::Trblimitr::set(world.trblimitr);
    }
    barrier::isb(barrier::SY);
    if features.spe {
        sysreg::Pmscr1::set(world.pmscr);
    }
    if features.trf {
        sysreg::Trfcr1::set(world.trfcr);
    }
    if features.brbe {
        sysreg::Brbcr1::set(world.brbcr);
    }
    if features.mpam {
        sysreg::Mpam2::set(features.host.mpam);
    }
}
