//! What a VM sees of the CPU's ID registers, field by field: the numbers of the Arm ARM (D24.2, ID_AA64*_EL1), written down a second time.
//!
//! What is not here reads as zero. Signed fields have 0b1111 for "not there".
#![forbid(unsafe_code)]

/// What a VM finds in a field of four bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shows {
    /// What the CPU has.
    Raw,
    /// That, or this number if the CPU has more.
    UpTo(u64),
    /// The same of a signed field.
    SignedUpTo(u64),
    /// This number.
    Always(u64),
    /// 1 where the VM has its GIC's system registers.
    Gic,
}

use Shows::{Always, Gic, Raw, SignedUpTo, UpTo};

/// The fields of a register, by name and lowest bit.
type Fields = &'static [(&'static str, u32, Shows)];

const PFR0: Fields = &[
    ("EL0", 0, Always(1)),
    ("EL1", 4, Always(1)),
    ("FP", 16, Raw),
    ("AdvSIMD", 20, Raw),
    ("GIC", 24, Gic),
    ("DIT", 48, Raw),
    ("CSV2", 56, UpTo(1)),
    ("CSV3", 60, Raw),
];

const PFR1: Fields = &[("BT", 0, Raw), ("SSBS", 4, Raw)];

const DFR0: Fields = &[("DebugVer", 0, Always(6)), ("BRPs", 12, Always(1)), ("WRPs", 20, Always(1))];

const ISAR0: Fields = &[
    ("AES", 4, Raw),
    ("SHA1", 8, Raw),
    ("SHA2", 12, Raw),
    ("CRC32", 16, Raw),
    ("Atomic", 20, Raw),
    ("RDM", 28, Raw),
    ("SHA3", 32, Raw),
    ("SM3", 36, Raw),
    ("SM4", 40, Raw),
    ("DP", 44, Raw),
    ("FHM", 48, Raw),
    ("TS", 52, Raw),
    ("TLB", 56, Raw),
    ("RNDR", 60, Raw),
];

const ISAR1: Fields = &[
    ("DPB", 0, Raw),
    ("APA", 4, Raw),
    ("API", 8, Raw),
    ("JSCVT", 12, Raw),
    ("FCMA", 16, Raw),
    ("LRCPC", 20, Raw),
    ("GPA", 24, Raw),
    ("GPI", 28, Raw),
    ("FRINTTS", 32, Raw),
    ("SB", 36, Raw),
    ("SPECRES", 40, Raw),
    ("BF16", 44, Raw),
    ("DGH", 48, Raw),
    ("I8MM", 52, Raw),
];

const ISAR2: Fields = &[
    ("GPA3", 8, Raw),
    ("APA3", 12, Raw),
    ("BC", 20, Raw),
    ("PAC_frac", 24, Raw),
    ("CLRBHB", 28, Raw),
    ("CSSC", 52, Raw),
];

const MMFR0: Fields = &[
    ("PARange", 0, UpTo(5)),
    ("ASIDBits", 4, Raw),
    ("TGran16", 20, UpTo(1)),
    ("TGran64", 24, Raw),
    ("TGran4", 28, SignedUpTo(0)),
];

const MMFR1: Fields =
    &[("HAFDBS", 0, UpTo(2)), ("HPDS", 12, Raw), ("PAN", 20, Raw), ("ETS", 36, Raw), ("nTLBPA", 48, Raw)];

const MMFR2: Fields = &[
    ("CnP", 0, Raw),
    ("UAO", 4, Raw),
    ("LSM", 8, Raw),
    ("CCIDX", 20, Raw),
    ("ST", 28, Raw),
    ("AT", 32, Raw),
    ("TTL", 48, Raw),
    ("BBM", 52, Raw),
    ("E0PD", 60, Raw),
];

/// What a VM reads of register (3, 0, 0, `crm`, `op2`) where the CPU has `raw`, and the VM its GIC's system registers or not.
pub fn visible(crm: u8, op2: u8, raw: u64, gicv3: bool) -> u64 {
    let fields = match (crm, op2) {
        (4, 0) => PFR0,
        (4, 1) => PFR1,
        (5, 0) => DFR0,
        (6, 0) => ISAR0,
        (6, 1) => ISAR1,
        (6, 2) => ISAR2,
        (7, 0) => MMFR0,
        (7, 1) => MMFR1,
        (7, 2) => MMFR2,
        _ => &[],
    };
    fields.iter().fold(0, |all, (_, shift, shows)| {
        let has = raw >> shift & 0xf;
        let shown = match shows {
            Raw => has,
            UpTo(most) => has.min(*most),
            SignedUpTo(_) if has == 0xf => 0xf,
            SignedUpTo(most) => has.min(*most),
            Always(value) => *value,
            Gic => gicv3.into(),
        };
        all | shown << shift
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interface::id_registers;
    use corevisor_evidence::{Rng, factor};

    #[test]
    fn the_filter_shows_of_every_register_what_its_fields_are() {
        let rng = &mut Rng::new(24);
        for crm in 0..16 {
            for op2 in 0..8 {
                // Each field by itself first: a random word seldom has one alone.
                let alone = (0..16).flat_map(|field| (0..16).map(move |value| value << (4 * field)));
                let random: std::vec::Vec<_> = (0..1_000 * factor()).map(|_| rng.next()).collect();
                for raw in alone.chain(random) {
                    for gicv3 in [false, true] {
                        let (code, spec) = (id_registers::visible(crm, op2, raw, gicv3), visible(crm, op2, raw, gicv3));
                        assert_eq!(code, spec, "CRm {crm}, op2 {op2}, {raw:#x}\nleft: code, right: specification");
                    }
                }
            }
        }
    }
}
