//! A stage-2 walk as the hardware does it, written from the Arm ARM (DDI 0487 D8.2, D8.3) and from nothing else: it shares no
//! code with the layers, so that a mistake there is not made twice.
//!
//! 4 KiB granule, 48-bit descriptors (no FEAT_LPA2), FEAT_XNX.
#![forbid(unsafe_code)]

use std::string::String;
use std::vec::Vec;
use std::{format, vec};

/// What VTTBR_EL2 and VTCR_EL2 say about a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Regime {
    /// VTTBR_EL2.BADDR.
    pub root: u64,
    /// 64 - VTCR_EL2.T0SZ.
    pub ia_bits: u32,
    /// Output size: VTCR_EL2.PS.
    pub pa_bits: u32,
}

/// What the access wants to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A fetch at EL1.
    Execute,
}

/// Why a walk ended without an address; the number is the level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An address beyond the output size.
    AddressSize(u32),
    /// Nothing there.
    Translation(u32),
    /// The access flag is off.
    AccessFlag(u32),
    /// There, but not for this access.
    Permission(u32),
}

impl Fault {
    /// The fault status code for ESR_EL2.
    pub const fn fsc(self) -> u64 {
        match self {
            Self::AddressSize(level) => level as u64,
            Self::Translation(level) => 0b0100 | level as u64,
            Self::AccessFlag(level) => 0b1000 | level as u64,
            Self::Permission(level) => 0b1100 | level as u64,
        }
    }
}

/// A leaf as the hardware understands it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// First input address.
    pub base: u64,
    /// Bytes mapped.
    pub size: u64,
    /// First output address.
    pub output: u64,
    /// 1, 2 or 3.
    pub level: u32,
    /// The whole descriptor.
    pub raw: u64,
}

impl Leaf {
    /// Whether the leaf allows the access; S2AP and XN\[1:0\].
    pub const fn allows(&self, kind: AccessKind) -> bool {
        match kind {
            AccessKind::Read => self.raw >> 6 & 1 == 1,
            AccessKind::Write => self.raw >> 7 & 1 == 1,
            // 00: EL1 and EL0 may execute; 11: EL1 only. S2AP[0] is needed as well.
            AccessKind::Execute => self.raw >> 6 & 1 == 1 && matches!(self.raw >> 53 & 3, 0b00 | 0b11),
        }
    }

    /// MemAttr\[3:0\].
    pub const fn mem_attr(&self) -> u64 {
        self.raw >> 2 & 0xf
    }
}

/// Where the tables of one walk stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableAt {
    /// Level of the table's entries.
    pub level: u32,
    /// First input address that the table translates.
    pub base: u64,
    /// Address of the table.
    pub table: u64,
}

/// What one entry means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing: invalid or a reserved encoding.
    Nothing,
    /// Leads to a table.
    Table(u64),
    /// Maps memory.
    Leaf(u64),
}

/// Bytes that one entry of `level` stands for.
pub const fn entry_size(level: u32) -> u64 {
    1 << (12 + 9 * (3 - level))
}

/// Decodes an entry of a table of `level`.
pub const fn decode(level: u32, raw: u64) -> Entry {
    const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    match (raw & 0b11, level) {
        (0b11, 3) => Entry::Leaf(raw & ADDRESS),
        (0b11, _) => Entry::Table(raw & ADDRESS),
        // Blocks at levels 1 and 2 only: the low address bits are RES0, and ignored.
        (0b01, 1 | 2) => Entry::Leaf(raw & ADDRESS & !(entry_size(level) - 1)),
        _ => Entry::Nothing,
    }
}

/// What is wrong with a valid entry although the hardware would take it: RES0 bits, reserved attributes.
pub fn oddity(level: u32, raw: u64) -> Option<String> {
    match decode(level, raw) {
        Entry::Nothing if raw & 1 == 1 => Some(format!("reserved encoding {raw:#x} at level {level}")),
        Entry::Nothing => None,
        Entry::Table(_) if raw & !0x0000_ffff_ffff_f003 != 0 => Some(format!("table entry {raw:#x} with attributes")),
        Entry::Table(_) => None,
        Entry::Leaf(output) if raw & 0x0000_ffff_ffff_f000 != output => {
            Some(format!("leaf {raw:#x} of level {level} is not aligned to its size"))
        }
        Entry::Leaf(_) if raw >> 48 & 0xf != 0 => Some(format!("leaf {raw:#x}: RES0 bits 51:48")),
        Entry::Leaf(_) if raw >> 2 & 0xf != 0 && raw >> 2 & 0b11 == 0 => {
            Some(format!("leaf {raw:#x}: MemAttr reserved"))
        }
        Entry::Leaf(_) if raw >> 8 & 0b11 == 0b01 => Some(format!("leaf {raw:#x}: SH reserved")),
        Entry::Leaf(_) => None,
    }
}

impl Regime {
    /// Level of the root's entries: 0 from 44 bits on, else 1 with up to 16 tables side by side.
    pub const fn start_level(&self) -> u32 {
        if self.ia_bits > 43 { 0 } else { 1 }
    }

    /// Number of entries of the root.
    pub const fn root_entries(&self) -> u64 {
        1 << (self.ia_bits - (12 + 9 * (3 - self.start_level())))
    }

    /// Number of pages of the root.
    pub const fn root_pages(&self) -> u64 {
        (self.root_entries() * 8).div_ceil(4096)
    }

    /// The tables of the root, page by page.
    pub fn root_tables(&self) -> Vec<TableAt> {
        let level = self.start_level();
        (0..self.root_pages())
            .map(|n| TableAt { level, base: n * 512 * entry_size(level), table: self.root + n * 4096 })
            .collect()
    }

    /// Whether the root stands where the hardware can find it: aligned to its size, at least 64 bytes.
    pub const fn root_is_aligned(&self) -> bool {
        let size = self.root_entries() * 8;
        self.root & ((if size < 64 { 64 } else { size }) - 1) == 0
    }

    /// Walks from `from` (a table that a walk cache holds, or the root) to the leaf for `ipa`: the tables on the way, and
    /// the leaf or the fault.
    pub fn walk(
        &self,
        ipa: u64,
        from: Option<TableAt>,
        mut load: impl FnMut(u64) -> u64,
    ) -> (Vec<TableAt>, Result<Leaf, Fault>) {
        if ipa >> self.ia_bits != 0 {
            return (vec![], Err(Fault::Translation(0)));
        }
        let start = self.start_level();
        let mut at = from.unwrap_or(TableAt { level: start, base: 0, table: self.root });
        let mut seen = vec![];
        loop {
            let index = (ipa - at.base) / entry_size(at.level);
            debug_assert!(index < if at.base == 0 && at.table == self.root { self.root_entries() } else { 512 });
            let raw = load(at.table + index * 8);
            let base = at.base + index * entry_size(at.level);
            match decode(at.level, raw) {
                Entry::Nothing => return (seen, Err(Fault::Translation(at.level))),
                Entry::Table(next) | Entry::Leaf(next) if next >> self.pa_bits != 0 => {
                    return (seen, Err(Fault::AddressSize(at.level)));
                }
                Entry::Table(table) => {
                    at = TableAt { level: at.level + 1, base, table };
                    seen.push(at);
                }
                Entry::Leaf(_) if raw >> 10 & 1 == 0 => return (seen, Err(Fault::AccessFlag(at.level))),
                Entry::Leaf(output) => {
                    return (seen, Ok(Leaf { base, size: entry_size(at.level), output, level: at.level, raw }));
                }
            }
        }
    }

    /// All leaves and all tables below the root, in order of input address.
    pub fn enumerate(&self, mut load: impl FnMut(u64) -> u64) -> (Vec<Leaf>, Vec<TableAt>) {
        let (mut leaves, mut tables) = (vec![], vec![]);
        let mut todo: Vec<_> = self.root_tables().into_iter().rev().map(|at| (at, true)).collect();
        while let Some((at, is_root)) = todo.pop() {
            let count = if is_root { self.root_entries().min(512) } else { 512 };
            let mut below = vec![];
            for index in 0..count {
                let raw = load(at.table + index * 8);
                let base = at.base + index * entry_size(at.level);
                match decode(at.level, raw) {
                    Entry::Nothing => {}
                    Entry::Table(table) => below.push((TableAt { level: at.level + 1, base, table }, false)),
                    Entry::Leaf(output) => {
                        leaves.push(Leaf { base, size: entry_size(at.level), output, level: at.level, raw });
                    }
                }
            }
            tables.extend(below.iter().map(|(at, _)| *at));
            todo.extend(below.into_iter().rev());
        }
        leaves.sort_by_key(|leaf| leaf.base);
        (leaves, tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regime(ia_bits: u32) -> Regime {
        Regime { root: 0x1_0000, ia_bits, pa_bits: 40 }
    }

    #[test]
    fn the_start_level_and_the_size_of_the_root_are_those_of_the_manual() {
        // Arm ARM, "Stage 2 translation table entry for the initial lookup", 4 KiB granule.
        for (bits, level, pages) in
            [(32, 1, 1), (39, 1, 1), (40, 1, 2), (42, 1, 8), (43, 1, 16), (44, 0, 1), (48, 0, 1)]
        {
            assert_eq!((regime(bits).start_level(), regime(bits).root_pages()), (level, pages), "{bits} bits");
        }
    }

    #[test]
    fn reserved_encodings_map_nothing() {
        assert_eq!(decode(0, 0x4000_0001), Entry::Nothing);
        assert_eq!(decode(3, 0x4000_0001), Entry::Nothing);
        assert_eq!(decode(2, 0x4000_1002), Entry::Nothing);
    }

    #[test]
    fn a_misaligned_block_maps_the_aligned_one_and_is_odd() {
        assert_eq!(decode(2, 0x4000_17fd), Entry::Leaf(0x4000_0000));
        assert!(oddity(2, 0x4000_17fd).unwrap().contains("not aligned"));
        assert_eq!(oddity(2, 0x4000_07fd), None);
    }

    #[test]
    fn a_walk_faults_by_name() {
        let r = regime(39);
        assert_eq!(r.walk(1 << 39, None, |_| 0).1, Err(Fault::Translation(0)));
        assert_eq!(r.walk(0, None, |_| 0).1, Err(Fault::Translation(1)));
        assert_eq!(r.walk(0, None, |_| 0x3c1).1, Err(Fault::AccessFlag(1)));
        assert_eq!(r.walk(0, None, |_| 1 << 40 | 0x7c1).1, Err(Fault::AddressSize(1)));
        let leaf = r.walk(0x4000_1234, None, |_| 0x4000_07c1).1.unwrap();
        assert_eq!((leaf.base, leaf.size, leaf.output), (0x4000_0000, 1 << 30, 0x4000_0000));
    }
}
