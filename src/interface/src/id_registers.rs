//! What a VM sees of the CPU: ID registers, filtered, as data. The core answers a VM's reads by it; the host tells its own user space the same.
//!
//! A VM has what needs nothing of the core (instructions, the shape of its own tables) and what the world switch keeps for it: FP and SIMD,
//! pointer authentication. It has not: AArch32, EL2 and EL3, SVE, SME, memory tags, RAS, MPAM, activity monitors, performance counters, profiling,
//! trace, branch records, limited-order regions, nested virtualization, big-endian data (who serves a VM's accesses to
//! devices knows nothing of it), and whatever came after this table was written: a field that is not named reads as zero, "not there".
//!
//! Arm ARM D24.2 (ID_AA64*_EL1). Registers of AArch32 (CRm 1 to 3) read as zero, which is what they hold where EL0 has no AArch32.

/// How one register is filtered.
struct Rule {
    crm: u8,
    op2: u8,
    /// Fields that pass as they are.
    pass: u64,
    /// Fields that pass up to a value: a newer form needs something of the core.
    most: &'static [(u32, u64)],
    /// What stands there besides.
    fixed: u64,
}

/// The fields with these lowest bits.
const fn fields(shifts: &[u32]) -> u64 {
    match shifts {
        [] => 0,
        [first, rest @ ..] => 0xf << *first | fields(rest),
    }
}

const RULES: [Rule; 9] = [
    // PFR0: FP, AdvSIMD (the same value), DIT, CSV3; CSV2 without SCXTNUM; EL0 and EL1 in AArch64 only. GIC is added by `visible`.
    Rule { crm: 4, op2: 0, pass: fields(&[16, 20, 48, 60]), most: &[(56, 1)], fixed: 0x11 },
    // PFR1: BT; SSBS.
    Rule { crm: 4, op2: 1, pass: fields(&[0, 4]), most: &[], fixed: 0 },
    // DFR0: Armv8 debug with two breakpoints and two watchpoints, which read as zero and ignore writes.
    Rule { crm: 5, op2: 0, pass: fields(&[]), most: &[], fixed: 0x10_1006 },
    // ISAR0: AES, SHA1, SHA2, CRC32, Atomic, RDM, SHA3, SM3, SM4, DP, FHM, TS, TLB, RNDR; not TME.
    Rule { crm: 6, op2: 0, pass: fields(&[4, 8, 12, 16, 20, 28, 32, 36, 40, 44, 48, 52, 56, 60]), most: &[], fixed: 0 },
    // ISAR1: DPB, APA, API, JSCVT, FCMA, LRCPC, GPA, GPI, FRINTTS, SB, SPECRES, BF16, DGH, I8MM; not XS, LS64.
    Rule { crm: 6, op2: 1, pass: fields(&[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52]), most: &[], fixed: 0 },
    // ISAR2: GPA3, APA3, BC, PAC_frac, CLRBHB, CSSC.
    Rule { crm: 6, op2: 2, pass: fields(&[8, 12, 20, 24, 28, 52]), most: &[], fixed: 0 },
    // MMFR0: ASIDBits, TGran16, TGran64, TGran4; PARange up to 48 bits.
    Rule { crm: 7, op2: 0, pass: fields(&[4, 24]), most: &[(0, 5), (20, 1), (28, 0)], fixed: 0 },
    // MMFR1: HAFDBS up to dirty state, HPDS, PAN, ETS, nTLBPA.
    Rule { crm: 7, op2: 1, pass: fields(&[12, 20, 36, 48]), most: &[(0, 2)], fixed: 0 },
    // MMFR2: CnP, UAO, LSM, CCIDX, ST, AT, TTL, BBM, E0PD; VARange 48 bits.
    Rule { crm: 7, op2: 2, pass: fields(&[0, 4, 8, 20, 28, 32, 48, 52, 60]), most: &[], fixed: 0 },
];

/// ID_AA64PFR0_EL1.GIC.
const GIC_SHIFT: u32 = 24;
/// CRm, op2 and lowest bit of ID_AA64MMFR0_EL1.TGran4, of the fields that pass up to a value the signed one: 0b1111 is "not there" in it, and stays.
const TGRAN4: (u8, u8, u32) = (7, 0, 28);

/// What a VM reads of ID_AA64* register (3, 0, 0, `crm`, `op2`) where the CPU has `raw`. `gic_registers`: the VM reaches its GIC by system registers.
pub fn visible(crm: u8, op2: u8, raw: u64, gic_registers: bool) -> u64 {
    let Some(rule) = RULES.iter().find(|rule| (rule.crm, rule.op2) == (crm, op2)) else { return 0 };
    let cut = |shift: u32, most: u64| match raw >> shift & 0xf {
        0xf if (crm, op2, shift) == TGRAN4 => 0xf << shift,
        value => value.min(most) << shift,
    };
    let most = rule.most.iter().fold(0, |all, (shift, most)| all | cut(*shift, *most));
    let is_pfr0 = (rule.crm, rule.op2) == (4, 0);
    let gic = u64::from(is_pfr0 && gic_registers) << GIC_SHIFT;
    raw & rule.pass | most | rule.fixed | gic
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn seen(crm: u8, op2: u8, raw: u64) -> u64 {
        visible(crm, op2, raw, false)
    }

    #[test]
    fn what_needs_the_core_is_not_there() {
        // A CPU that claims version 1 of everything.
        let all = 0x1111_1111_1111_1111;
        let pfr0 = seen(4, 0, all);
        for (shift, name) in [(8, "EL2"), (12, "EL3"), (28, "RAS"), (32, "SVE"), (40, "MPAM"), (44, "AMU"), (52, "RME")]
        {
            assert_eq!(pfr0 >> shift & 0xf, 0, "{name}");
        }
        let pfr1 = seen(4, 1, all);
        for (shift, name) in [(8, "MTE"), (12, "RAS_frac"), (16, "MPAM_frac"), (24, "SME"), (36, "NMI")] {
            assert_eq!(pfr1 >> shift & 0xf, 0, "{name}");
        }
        assert_eq!((seen(4, 4, all), seen(4, 5, all)), (0, 0), "SVE and SME features");
        assert_eq!(seen(5, 0, u64::MAX), 0x10_1006, "no counters, profiling, trace, branch records");
        assert_eq!(seen(7, 0, all) & 0xf_0f00, 0, "no big-endian data, at EL0 neither");
    }

    #[test]
    fn floating_point_and_pointer_authentication_stay() {
        assert_eq!(seen(4, 0, 0x0000_0000_0011_0022), 0x11_0011);
        assert_eq!(seen(6, 1, 0x0000_0000_1100_0110), 0x1100_0110);
        assert_eq!(seen(4, 0, 0xff_0011) & 0xff_0000, 0xff_0000, "a CPU without FP says so");
    }

    #[test]
    fn the_gic_is_shown_only_where_the_vm_reaches_it_by_registers() {
        assert_eq!(visible(4, 0, 0x0100_0000, false) >> 24 & 0xf, 0);
        assert_eq!(visible(4, 0, 0x0300_0000, true) >> 24 & 0xf, 1);
    }

    #[test]
    fn a_field_that_means_not_there_is_not_made_smaller() {
        assert_eq!(seen(7, 0, 0xf1ff_0000) >> 28 & 0xf, 0xf, "no 4 KiB granule");
        assert_eq!(seen(7, 0, 0x1000_0006) & 0xf000_000f, 5, "no 52 bits");
        // In the others that is one more form, and newer.
        assert_eq!((seen(7, 0, 0x00f0_000f), seen(7, 1, 0xf), seen(4, 0, 0xf << 56) >> 56), (0x0010_0005, 2, 1));
    }

    #[test]
    fn no_two_rules_are_about_one_register_and_no_field_stands_twice() {
        for (n, rule) in RULES.iter().enumerate() {
            assert!(RULES.iter().skip(n + 1).all(|other| (rule.crm, rule.op2) != (other.crm, other.op2)));
            let most: Vec<u64> = rule.most.iter().map(|(shift, _)| fields(&[*shift])).collect();
            assert_eq!(rule.pass + most.iter().sum::<u64>(), most.iter().fold(rule.pass, |all, field| all | field));
        }
    }
}
