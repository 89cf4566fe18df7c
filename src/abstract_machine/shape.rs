//! The form of a translation table: how many bits go in, and where a walk starts.
#![forbid(unsafe_code)]

/// A stage-2 table as a CPU is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2 {
    /// VTTBR_EL2: the root, and the VMID.
    pub vttbr: u64,
    /// VTCR_EL2's part of it.
    pub shape: Shape,
}

/// Form of a table's root. Arm ARM D8.2.2: with the 4 KiB granule a stage-2 table of up to 43 bits may start at level 1
/// with up to 16 root pages side by side (concatenated); a larger one starts at level 0. CPUs with less than 44 physical address
/// bits know only the first form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    ia_bits: u32,
}

impl Shape {
    /// The form of a table with `ia_bits` bits of input address, brought into 32 to 48.
    pub const fn new(ia_bits: u32) -> Self {
        if ia_bits < 32 {
            Self { ia_bits: 32 }
        } else if ia_bits > 48 {
            Self { ia_bits: 48 }
        } else {
            Self { ia_bits }
        }
    }

    /// The form that [`new`](Self::new) gave with so many bits before.
    pub const fn again(ia_bits: u32) -> Self {
        Self { ia_bits }
    }

    /// Bits of an input address.
    pub const fn ia_bits(self) -> u32 {
        self.ia_bits
    }

    /// Whether a level-0 table stands on top.
    pub const fn has_level0(self) -> bool {
        self.ia_bits > 43
    }

    /// log2 of the number of pages of the root.
    pub const fn root_order(self) -> u32 {
        if self.has_level0() || self.ia_bits <= 39 { 0 } else { self.ia_bits - 39 }
    }
}
