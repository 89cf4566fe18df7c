//! The form of an SMMUv3's stream table in which every stream has the same entry: how many streams it has, and which word stands where. IHI 0070, 3.3.1.
//!
//! Pure, so that the development machine can look at it; `cpu::smmu` writes it.
#![forbid(unsafe_code)]

use super::addr::Pa;

/// Streams of one level-2 table, log 2: one page of entries of 64 bytes.
pub const SPLIT: u32 = 6;
/// Most streams that a table has entries for, log 2: a device beyond them reaches nothing.
pub const MOST_BITS: u32 = 20;
/// The same for SMMUs that know tables of one level only.
pub const MOST_LINEAR_BITS: u32 = 11;

/// Bytes of a descriptor of level 1, and of an entry.
const DESCRIPTOR_SIZE: u64 = 8;
const ENTRY_SIZE: u64 = 64;

/// The form of a stream table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamTable {
    bits: u32,
    two_levels: bool,
}

impl StreamTable {
    /// The table for an SMMU whose stream numbers have `bits` bits (SMMU_IDR1.SIDSIZE), and which knows tables of two levels or not (SMMU_IDR0.ST_LEVEL).
    pub const fn new(bits: u32, two_levels: bool) -> Self {
        let two_levels = two_levels && bits > SPLIT;
        let most = if two_levels { MOST_BITS } else { MOST_LINEAR_BITS };
        Self { bits: if bits < most { bits } else { most }, two_levels }
    }

    /// Log 2 of the number of streams: what SMMU_STRTAB_BASE_CFG.LOG2SIZE says. The SMMU refuses every stream beyond it.
    pub const fn log2_size(self) -> u32 {
        self.bits
    }

    /// Whether a table of descriptors leads to the entries.
    pub const fn has_two_levels(self) -> bool {
        self.two_levels
    }

    /// Number of entries: those of all streams, or of one level-2 table, to which all descriptors lead.
    pub const fn entries(self) -> u64 {
        if self.two_levels { 1 << SPLIT } else { 1 << self.bits }
    }

    /// Bytes of the entries.
    pub const fn entries_size(self) -> u64 {
        self.entries() * ENTRY_SIZE
    }

    /// Number of descriptors of level 1; none in a table of one level.
    pub const fn descriptors(self) -> u64 {
        if self.two_levels { 1 << (self.bits - SPLIT) } else { 0 }
    }

    /// Bytes of the descriptors.
    pub const fn descriptors_size(self) -> u64 {
        self.descriptors() * DESCRIPTOR_SIZE
    }

    /// Every descriptor of level 1: the entries at `entries`, and their span.
    pub const fn descriptor(entries: Pa) -> u64 {
        entries.raw() | (SPLIT + 1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the SMMU looks for the entry of `stream`, by IHI 0070, 3.3.1: within the entries' bytes; `None` if it refuses the stream.
    fn entry_of(table: StreamTable, stream: u64) -> Option<u64> {
        if stream >> table.log2_size() != 0 {
            return None;
        }
        if !table.has_two_levels() {
            return Some(stream * 64);
        }
        let descriptor = stream >> 6;
        assert!(descriptor < table.descriptors(), "{table:?}: no descriptor for stream {stream:#x}");
        let span = StreamTable::descriptor(Pa::new(0x4000)) & 0x1f;
        let within = stream & 0x3f;
        // L1STD.Span: 2^(Span - 1) entries.
        (within < 1 << (span - 1)).then_some(within * 64)
    }

    #[test]
    fn d13_every_stream_number_has_an_entry_of_the_table_or_is_refused() {
        for bits in 0..=32 {
            for two_levels in [false, true] {
                let table = StreamTable::new(bits, two_levels);
                let end = 1u64 << table.log2_size();
                for stream in [0, 1, 63, 64, end / 2, end - 1, end, end + 1, u64::from(u32::MAX)] {
                    match entry_of(table, stream) {
                        Some(at) => assert!(stream < end && at + 64 <= table.entries_size(), "{table:?}, {stream:#x}"),
                        None => assert!(stream >= end, "{table:?}, {stream:#x}"),
                    }
                }
            }
        }
    }

    #[test]
    fn the_table_of_qemus_smmu_has_all_its_streams_in_three_pages() {
        let table = StreamTable::new(16, true);
        assert_eq!((table.log2_size(), table.entries_size(), table.descriptors_size()), (16, 4096, 8192));
    }

    #[test]
    fn an_smmu_with_very_many_streams_gets_a_table_of_bounded_size() {
        for (two_levels, most) in [(true, 128 * 1024), (false, 128 * 1024)] {
            let table = StreamTable::new(32, two_levels);
            assert_eq!(table.entries_size().max(table.descriptors_size()), most);
        }
    }
}
