//! Entered at EL3, on a board whose firmware left that level to the kernel: what only the secure side can do before
//! the core drops to EL2 and never comes back. Nothing below may come to EL3 again, so nothing traps there; what does nevertheless stops the machine (boot/entry.S).
//!
//! A GIC with two security states gives a non-secure kernel no interrupt until the secure side has put them into
//! Group 1 and opened the priority mask. Boot CPU only, MMU off, no locks. Arm IHI 0048B (GICv2) §4.3, IHI 0069 (GICv3) §12.9 to 12.11.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use tock_registers::interfaces::{ReadWriteable, Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

use super::boot;
use super::device_tree::Gic;
use crate::abstract_machine::addr::{Pa, PhysRange};
use crate::abstract_machine::cpu::el2;
use crate::abstract_machine::gic_registers::GICR_TYPER;

register_bitfields! {u64,
    /// What traps to EL3, and what EL2 is.
    SCR_EL3 [
        NS OFFSET(0) NUMBITS(1) [],
        RES1 OFFSET(4) NUMBITS(2) [ One = 0b11 ],
        HCE OFFSET(8) NUMBITS(1) [],
        RW OFFSET(10) NUMBITS(1) [],
        APK OFFSET(16) NUMBITS(1) [],
        API OFFSET(17) NUMBITS(1) [],
        EnSCXT OFFSET(25) NUMBITS(1) [],
        ATA OFFSET(26) NUMBITS(1) [],
        FGTEn OFFSET(27) NUMBITS(1) [],
        ECVEn OFFSET(28) NUMBITS(1) [],
        AMVOFFEN OFFSET(35) NUMBITS(1) [],
        EnAS0 OFFSET(36) NUMBITS(1) [],
        ADEn OFFSET(37) NUMBITS(1) [],
        HXEn OFFSET(38) NUMBITS(1) [],
        GCSEn OFFSET(39) NUMBITS(1) [],
        EnTP2 OFFSET(41) NUMBITS(1) [],
        RCWMASKEn OFFSET(42) NUMBITS(1) [],
        TCR2En OFFSET(43) NUMBITS(1) [],
        SCTLR2En OFFSET(44) NUMBITS(1) [],
        PIEn OFFSET(45) NUMBITS(1) [],
        AIEn OFFSET(46) NUMBITS(1) [],
        D128En OFFSET(47) NUMBITS(1) [],
        EnFPM OFFSET(50) NUMBITS(1) [],
        PFAREn OFFSET(53) NUMBITS(1) [],
        EnIDCP128 OFFSET(55) NUMBITS(1) [],
        FGTEn2 OFFSET(59) NUMBITS(1) [],
    ],
    CPTR_EL3 [
        EZ OFFSET(8) NUMBITS(1) [],
        ESM OFFSET(12) NUMBITS(1) [],
    ],
    /// Debug, counters, profiling, trace.
    MDCR_EL3 [
        EnPM2 OFFSET(7) NUMBITS(1) [],
        NSPB OFFSET(12) NUMBITS(2) [ NonSecure = 0b11 ],
        NSTB OFFSET(24) NUMBITS(2) [ NonSecure = 0b11 ],
        SBRBE OFFSET(32) NUMBITS(2) [ NonSecure = 0b01 ],
        EnPMSN OFFSET(36) NUMBITS(1) [],
        EnTB2 OFFSET(39) NUMBITS(1) [],
        EnPMS3 OFFSET(42) NUMBITS(1) [],
        EnPMSS OFFSET(44) NUMBITS(1) [],
        EnITE OFFSET(47) NUMBITS(1) [],
        EnSTEPOP OFFSET(50) NUMBITS(1) [],
    ],
    SMCR_EL3 [
        LEN OFFSET(0) NUMBITS(9) [ Longest = 0x1ff ],
        EZT0 OFFSET(30) NUMBITS(1) [],
        FA64 OFFSET(31) NUMBITS(1) [],
    ],
}

/// EL2 is non-secure AArch64, and decides itself about every extension: whoever runs below would come to EL3 with what is zero here, and nobody serves it there.
/// Bits of extensions that the CPU does not have are RES0: these have no effect, whatever stands in them (Arm ARM, glossary).
pub const SCR_EL3_VALUE: u64 = SCR_EL3::NS::SET.value
    | SCR_EL3::RES1::One.value
    | SCR_EL3::HCE::SET.value
    | SCR_EL3::RW::SET.value
    | SCR_EL3::APK::SET.value
    | SCR_EL3::API::SET.value
    | SCR_EL3::EnSCXT::SET.value
    | SCR_EL3::ATA::SET.value
    | SCR_EL3::FGTEn::SET.value
    | SCR_EL3::ECVEn::SET.value
    | SCR_EL3::AMVOFFEN::SET.value
    | SCR_EL3::EnAS0::SET.value
    | SCR_EL3::ADEn::SET.value
    | SCR_EL3::HXEn::SET.value
    | SCR_EL3::GCSEn::SET.value
    | SCR_EL3::EnTP2::SET.value
    | SCR_EL3::RCWMASKEn::SET.value
    | SCR_EL3::TCR2En::SET.value
    | SCR_EL3::SCTLR2En::SET.value
    | SCR_EL3::PIEn::SET.value
    | SCR_EL3::AIEn::SET.value
    | SCR_EL3::D128En::SET.value
    | SCR_EL3::EnFPM::SET.value
    | SCR_EL3::PFAREn::SET.value
    | SCR_EL3::EnIDCP128::SET.value
    | SCR_EL3::FGTEn2::SET.value;
/// SVE and SME are not trapped.
pub const CPTR_EL3_VALUE: u64 = CPTR_EL3::EZ::SET.value | CPTR_EL3::ESM::SET.value;
/// Profiling, trace and branch records are the non-secure side's; nothing traps.
pub const MDCR_EL3_VALUE: u64 = MDCR_EL3::EnPM2::SET.value
    | MDCR_EL3::NSPB::NonSecure.value
    | MDCR_EL3::NSTB::NonSecure.value
    | MDCR_EL3::SBRBE::NonSecure.value
    | MDCR_EL3::EnPMSN::SET.value
    | MDCR_EL3::EnTB2::SET.value
    | MDCR_EL3::EnPMS3::SET.value
    | MDCR_EL3::EnPMSS::SET.value
    | MDCR_EL3::EnITE::SET.value
    | MDCR_EL3::EnSTEPOP::SET.value;
/// Vectors as long as the CPU has them, ZT0, and all instructions in streaming mode, if it has these.
pub const SMCR_EL3_VALUE: u64 = SMCR_EL3::LEN::Longest.value | SMCR_EL3::EZT0::SET.value | SMCR_EL3::FA64::SET.value;

register_bitfields! {u32,
    GICD_TYPER [ ITLinesNumber OFFSET(0) NUMBITS(5) [] ],
    /// Secure view of a GICv3's distributor control.
    GICD_CTLR [
        RWP OFFSET(31) NUMBITS(1) [],
        ARE_NS OFFSET(5) NUMBITS(1) [],
        ARE_S OFFSET(4) NUMBITS(1) [],
    ],
    GICR_WAKER [
        ChildrenAsleep OFFSET(2) NUMBITS(1) [],
        ProcessorSleep OFFSET(1) NUMBITS(1) [],
    ],
}

register_structs! {
    Distributor {
        (0x000 => ctlr: ReadWrite<u32, GICD_CTLR::Register>),
        (0x004 => typer: ReadOnly<u32, GICD_TYPER::Register>),
        (0x008 => _reserved0),
        (0x080 => igroupr: [ReadWrite<u32>; 32]),
        (0x100 => @END),
    },
    CpuInterface {
        (0x00 => _ctlr: ReadWrite<u32>),
        (0x04 => pmr: ReadWrite<u32>),
        (0x08 => @END),
    },
    Redistributor {
        (0x00000 => _reserved0),
        (0x00008 => typer: ReadOnly<u64, GICR_TYPER::Register>),
        (0x00010 => _reserved1),
        (0x00014 => waker: ReadWrite<u32, GICR_WAKER::Register>),
        (0x00018 => _reserved2),
        (0x10080 => igroupr0: ReadWrite<u32>),
        (0x10084 => _reserved3),
        (0x10d00 => igrpmodr0: ReadWrite<u32>),
        (0x10d04 => @END),
    }
}

/// Priorities up to the lowest are let through.
const ALL_PRIORITIES: u32 = 0xff;
/// Distance of redistributors: RD and SGI frame, and with virtual LPIs two frames more.
const REDISTRIBUTOR: u64 = 0x2_0000;
/// Polls of a status bit; an interrupt controller that does not answer is left as it is.
const PATIENCE: u32 = 100_000;

/// Gives all interrupts to the non-secure side, on the boot CPU, with the controller that the tree at `dtb` names. Without
/// a readable tree nothing happens; the core will say so when it has a console.
pub extern "C" fn open_to_non_secure(dtb: u64) {
    let Some(description) = boot::early_description(Pa::new(dtb)) else { return };
    match &description.gic {
        Some(Gic::V2 { gicd, gicc, .. }) => open_gicv2(*gicd, *gicc),
        Some(Gic::V3 { gicd, redistributors, .. }) => open_gicv3(*gicd, redistributors),
        None => {}
    }
    barrier::dsb(barrier::SY);
}

fn registers<T>(range: PhysRange) -> Option<&'static T> {
    let fits = range.size() >= size_of::<T>() as u64 && range.base().is_aligned(0x1000);
    // SAFETY: the device tree says that these registers are there; the MMU is off, so the access is a device access.
    fits.then(|| unsafe { &*(range.base().raw() as *const T) })
}

fn all_group_1(gicd: &Distributor, first: usize) {
    let words = gicd.typer.read(GICD_TYPER::ITLinesNumber) as usize + 1;
    for word in gicd.igroupr.iter().take(words).skip(first) {
        word.set(u32::MAX);
    }
}

fn open_gicv2(gicd: PhysRange, gicc: PhysRange) {
    let (Some(gicd), Some(gicc)) = (registers::<Distributor>(gicd), registers::<CpuInterface>(gicc)) else { return };
    all_group_1(gicd, 0);
    gicc.pmr.set(ALL_PRIORITIES);
}

fn open_gicv3(gicd: PhysRange, regions: &[PhysRange]) {
    let Some(gicd) = registers::<Distributor>(gicd) else { return };
    gicd.ctlr.modify(GICD_CTLR::ARE_S::SET + GICD_CTLR::ARE_NS::SET);
    let _ = (0..PATIENCE).find(|_| !gicd.ctlr.is_set(GICD_CTLR::RWP));
    all_group_1(gicd, 1);
    if let Some(own) = own_redistributor(regions) {
        own.waker.modify(GICR_WAKER::ProcessorSleep::CLEAR);
        let _ = (0..PATIENCE).find(|_| !own.waker.is_set(GICR_WAKER::ChildrenAsleep));
        own.igroupr0.set(u32::MAX);
        own.igrpmodr0.set(0);
    }
    // SAFETY: ICC_PMR_EL1, which boot/entry.S's ICC_SRE_EL3 would allow too; it masks interrupts by priority only.
    unsafe {
        asm!(
            "mrs {sre}, S3_6_C12_C12_5",
            "orr {sre}, {sre}, #1",
            "msr S3_6_C12_C12_5, {sre}",
            "isb",
            "msr S3_0_C4_C6_0, {pmr}",
            "isb",
            sre = out(reg) _, pmr = in(reg) u64::from(ALL_PRIORITIES), options(nostack, preserves_flags),
        );
    }
}

fn own_redistributor(regions: &[PhysRange]) -> Option<&'static Redistributor> {
    let mpidr = el2::affinity();
    // GICR_TYPER packs Aff3 next to Aff2.
    let own = (mpidr >> 32 & 0xff) << 24 | mpidr & 0xff_ffff;
    for region in regions {
        let mut at = region.base();
        while let Some(frames) = PhysRange::new(at, REDISTRIBUTOR).filter(|frames| region.contains_range(*frames)) {
            let candidate = registers::<Redistributor>(frames)?;
            if candidate.typer.read(GICR_TYPER::Affinity_Value) == own {
                return Some(candidate);
            }
            if candidate.typer.is_set(GICR_TYPER::Last) {
                break;
            }
            let virtual_lpis = candidate.typer.is_set(GICR_TYPER::VLPIS);
            at = at.checked_add(if virtual_lpis { 2 * REDISTRIBUTOR } else { REDISTRIBUTOR })?;
        }
    }
    None
}
