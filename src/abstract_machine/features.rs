//! What a CPU has, as far as the world switch must know: asked once when the CPU starts (`cpu::el2`), and kept in its own data. Reading an ID register
//! costs little; decoding half a dozen of them at every exit and entry of a VM does not. Arm ARM (DDI 0487) D24.2.
#![forbid(unsafe_code)]

use tock_registers::{LocalRegisterCopy, register_bitfields};

use super::regs::SysregId;

/// Values of the registers that decide what EL1 and EL0 may do, for whoever runs there. One of an extension that the CPU does not
/// have is never written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traps {
    /// HCR_EL2; a VM's interrupt lines come on top.
    pub hcr: u64,
    /// CPTR_EL2; that FP traps from a VM comes on top.
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
    /// FEAT_FPMR: modes of 8-bit floating point.
    pub fpmr: bool,
    /// Performance counters.
    pub pmu: bool,
    /// Statistical profiling, whose buffer is not firmware's.
    pub spe: bool,
    /// FEAT_TRF: trace filter registers.
    pub trf: bool,
    /// FEAT_TRBE: a buffer of trace, which is not firmware's.
    pub trbe: bool,
    /// FEAT_BRBE: records of branches.
    pub brbe: bool,
    /// FEAT_MPAM, of whichever version.
    pub mpam: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// Fine-grained traps: 0, 1 (FEAT_FGT) or 2 (FEAT_FGT2).
    pub fgt: u8,
    /// FEAT_S2FWB, and it is in use: VMs run with HCR_EL2.FWB.
    pub fwb: bool,
    /// What the world switch asks each time.
    pub parts: Parts,
    /// VTCR_EL2 but for the size of the addresses.
    pub vtcr: u64,
    /// VTCR_EL2 of the host's table.
    pub host_vtcr: u64,
    /// VTTBR_EL2 of the host.
    pub host_vttbr: u64,
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
        fpmr: false,
        pmu: false,
        spe: false,
        trf: false,
        trbe: false,
        brbe: false,
        mpam: false,
        hcx: false,
        fgt: 0,
        fwb: false,
        parts: Parts(0),
        vtcr: 0,
        host_vtcr: 0,
        host_vttbr: 0,
        host: Traps::ZERO,
        vm: Traps::ZERO,
    };
}

/// Those of the features that the world switch asks about each time, in one byte: it is loaded once, and each question is a branch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts(u8);

impl Parts {
    const PMU: u8 = 1 << 0;
    const HCX: u8 = 1 << 1;
    const FGT: u8 = 1 << 2;
    const FGT2: u8 = 1 << 3;
    const SELDOM: u8 = 1 << 4;

    /// Those of a CPU with `features`.
    pub const fn of(features: &Features) -> Self {
        let seldom = features.spe || features.trf || features.trbe || features.brbe || features.mpam;
        Self(
            Self::part(features.pmu, Self::PMU)
                | Self::part(features.hcx, Self::HCX)
                | Self::part(features.fgt >= 1, Self::FGT)
                | Self::part(features.fgt >= 2, Self::FGT2)
                | Self::part(seldom, Self::SELDOM),
        )
    }

    const fn part(has: bool, part: u8) -> u8 {
        if has { part } else { 0 }
    }

    /// Performance counters.
    #[inline(always)]
    pub const fn pmu(self) -> bool {
        self.0 & Self::PMU != 0
    }

    /// FEAT_HCX.
    #[inline(always)]
    pub const fn hcx(self) -> bool {
        self.0 & Self::HCX != 0
    }

    /// FEAT_FGT.
    #[inline(always)]
    pub const fn fgt(self) -> bool {
        self.0 & Self::FGT != 0
    }

    /// FEAT_FGT2.
    #[inline(always)]
    pub const fn fgt2(self) -> bool {
        self.0 & Self::FGT2 != 0
    }

    /// Profiling, trace, branch records or MPAM: most CPUs have none of them.
    #[inline(always)]
    pub const fn seldom(self) -> bool {
        self.0 & Self::SELDOM != 0
    }
}

/// What the CPUs of a machine must have in common, for what one does is for all: as one CPU has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Common {
    /// EL2 is always with E2H.
    pub vhe: bool,
    /// Bits of a physical address.
    pub pa_bits: u32,
    /// FEAT_S2FWB.
    pub fwb: bool,
    /// Bytes of the smallest data cache line (CTR_EL0.DminLine).
    pub line: u64,
    /// MIDR_EL1.
    pub midr: u64,
    /// FEAT_SME.
    pub sme: bool,
}

impl Common {
    /// Why a CPU like this cannot run the host on a machine whose boot CPU is `boot`, and whose host has a table for `host_bits` bits of address; `None` if it can.
    pub fn unfit(&self, boot: &Self, host_bits: u32) -> Option<&'static str> {
        if self.vhe {
            Some("its EL2 cannot be without VHE")
        } else if self.pa_bits < host_bits {
            Some("its physical addresses are shorter than the boot CPU's")
        } else if boot.fwb && !self.fwb {
            Some("it has no FEAT_S2FWB, with which VMs' tables are made")
        } else if self.line < boot.line {
            // What the others cleaned by their line would be every second one of this CPU's.
            Some("its data cache lines are shorter than the boot CPU's")
        } else if self.sme && writes_after_tlbi(self.midr) {
            Some("accesses by SME outlive TLB maintenance on it (erratum 4193714)")
        } else {
            None
        }
    }
}

register_bitfields! {u64,
    /// MIDR_EL1. Arm ARM D24.2.122.
    MIDR [
        /// Who designed the CPU.
        IMPLEMENTER OFFSET(24) NUMBITS(8) [ Arm = 0x41 ],
        /// The r of its revision.
        VARIANT OFFSET(20) NUMBITS(4) [],
        /// Which of his it is.
        PART OFFSET(4) NUMBITS(12) [ C1Pro = 0xd8b ],
        /// The p.
        REVISION OFFSET(0) NUMBITS(4) [],
    ],
}

/// Whether a CPU's SME unit may go on writing to a page that TLB maintenance of another CPU took away: C1-Pro up to r1p2 (CVE-2026-0995, erratum 4193714). Only firmware could
/// make it stop.
fn writes_after_tlbi(midr: u64) -> bool {
    let midr = LocalRegisterCopy::<u64, MIDR::Register>::new(midr);
    midr.matches_all(MIDR::IMPLEMENTER::Arm + MIDR::PART::C1Pro)
        && (midr.read(MIDR::VARIANT), midr.read(MIDR::REVISION)) <= (1, 2)
}

/// Whether a CPU has FEAT_MPAM, by ID_AA64PFR0_EL1.MPAM and ID_AA64PFR1_EL1.MPAM_frac: version 0.1 has a zero in the first. Arm ARM D24.2.84.
pub const fn has_mpam(version: u64, fraction: u64) -> bool {
    version != 0 || fraction != 0
}

/// ID registers as VMs see them on one CPU, as far as one has asked.
pub struct SeenIds {
    known: u64,
    seen: [u64; SeenIds::PLACES],
}

impl SeenIds {
    const PLACES: usize = 64;
    /// Nobody has asked.
    pub const NONE: Self = Self { known: 0, seen: [0; Self::PLACES] };

    /// They are told apart by CRm (0 to 7) and op2.
    const fn place(reg: SysregId) -> usize {
        (reg.crm as usize & 7) << 3 | reg.op2 as usize & 7
    }

    /// What was kept of `reg`.
    #[inline]
    pub fn get(&self, reg: SysregId) -> Option<u64> {
        let place = Self::place(reg);
        if self.known >> place & 1 == 0 { None } else { self.seen.get(place).copied() }
    }

    /// Keeps `value` of `reg`.
    pub fn keep(&mut self, reg: SysregId, value: u64) {
        let place = Self::place(reg);
        if let Some(seen) = self.seen.get_mut(place) {
            *seen = value;
            self.known |= 1 << place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_that_records_or_partitions_is_looked_after_at_the_world_switch() {
        assert!(!Parts::of(&Features::NONE).seldom());
        let set: [fn(&mut Features); 5] =
            [|f| f.spe = true, |f| f.trf = true, |f| f.trbe = true, |f| f.brbe = true, |f| f.mpam = true];
        for set in set {
            let mut features = Features::NONE;
            set(&mut features);
            assert!(Parts::of(&features).seldom(), "{features:?}");
        }
    }

    #[test]
    fn each_part_is_told_by_itself() {
        let of = |change: fn(&mut Features)| {
            let mut features = Features::NONE;
            change(&mut features);
            let parts = Parts::of(&features);
            [parts.pmu(), parts.hcx(), parts.fgt(), parts.fgt2(), parts.seldom()]
        };
        assert_eq!(of(|_| {}), [false; 5]);
        assert_eq!(of(|f| f.pmu = true), [true, false, false, false, false]);
        assert_eq!(of(|f| f.hcx = true), [false, true, false, false, false]);
        assert_eq!(of(|f| f.fgt = 1), [false, false, true, false, false]);
        assert_eq!(of(|f| f.fgt = 2), [false, false, true, true, false]);
        assert_eq!(of(|f| f.mpam = true), [false, false, false, false, true]);
    }

    const BOOT: Common = Common { vhe: false, pa_bits: 40, fwb: true, line: 64, midr: 0x410f_d8b0, sme: false };

    #[test]
    fn a_cpu_that_is_like_the_boot_cpu_or_has_more_runs_the_host() {
        let more = Common { pa_bits: 48, line: 128, ..BOOT };
        let without = Common { fwb: false, ..BOOT };
        assert_eq!([BOOT.unfit(&BOOT, 40), more.unfit(&BOOT, 40), BOOT.unfit(&without, 40)], [None; 3]);
        assert_eq!(without.unfit(&without, 40), None);
    }

    #[test]
    fn a_cpu_that_lacks_what_the_boot_cpu_has_stays_off() {
        for (cpu, why) in [
            (Common { vhe: true, ..BOOT }, "VHE"),
            (Common { pa_bits: 36, ..BOOT }, "addresses"),
            (Common { fwb: false, ..BOOT }, "S2FWB"),
            (Common { line: 32, ..BOOT }, "lines"),
            (Common { sme: true, ..BOOT }, "4193714"),
        ] {
            assert!(cpu.unfit(&BOOT, 40).unwrap().contains(why), "{cpu:?}");
        }
    }

    #[test]
    fn c1_pro_with_sme_is_refused_up_to_r1p2() {
        let refused = |midr| Common { midr, sme: true, ..BOOT }.unfit(&BOOT, 40).is_some();
        // r0p0, r0p9, r1p0, r1p2; r1p3, r2p0; C1-Ultra; another implementer's.
        assert!([0x410f_d8b0, 0x410f_d8b9, 0x411f_d8b0, 0x411f_d8b2].into_iter().all(refused));
        assert!(![0x411f_d8b3, 0x412f_d8b0, 0x410f_d8c0, 0x610f_d8b0].into_iter().any(refused));
    }

    #[test]
    fn every_version_of_mpam_is_one() {
        assert_eq!(
            [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(version, fraction)| has_mpam(version, fraction)),
            [false, true, true, true]
        );
    }

    #[test]
    fn an_id_register_is_found_again_and_no_other_in_its_place() {
        let mut ids = SeenIds::NONE;
        for (crm, op2) in (1..8).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
            let reg = SysregId::new(3, 0, 0, crm, op2);
            assert_eq!(ids.get(reg), None);
            ids.keep(reg, u64::from(crm) << 8 | u64::from(op2));
        }
        assert_eq!(ids.get(SysregId::new(3, 0, 0, 4, 0)), Some(0x400));
        assert_eq!(ids.get(SysregId::new(3, 0, 0, 7, 7)), Some(0x707));
    }
}
