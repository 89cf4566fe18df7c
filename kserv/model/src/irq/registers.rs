//! The registers that a GICv2 distributor, a GICv3 distributor and a redistributor's SGI frame have at the same offsets.
//!
//! | offset          | register              | width      |
//! |-----------------|-----------------------|------------|
//! | `0x080`         | IGROUPR               | 32         |
//! | `0x100`-`0x3ff` | I{S,C}{ENABLE,PEND,ACTIVE}R | 32   |
//! | `0x400`         | IPRIORITYR            | 8, 32      |
//! | `0xc00`         | ICFGR                 | 32         |
//!
//! Source: IHI 0048B §4.1.4 (widths), §4.3; IHI 0069H §12.9.
#![forbid(unsafe_code)]

use core::ops::Range;

use super::{Bits, Engine};
use crate::mmio::Width;

/// The bytes that an access to a byte-accessible register names: offsets of the first, and how many. `None` where the width is not allowed.
pub fn bytes(offset: u64, width: Width) -> Option<Range<usize>> {
    let n = match width {
        Width::Byte => 1,
        Width::Word if offset.is_multiple_of(4) => 4,
        _ => return None,
    };
    let first = usize::try_from(offset).ok()?;
    Some(first..first.checked_add(n)?)
}

/// Reads byte registers one by one.
pub fn read_bytes(offset: u64, width: Width, read: impl Fn(usize) -> u8) -> u32 {
    let range = bytes(offset, width).unwrap_or_default();
    range.enumerate().fold(0, |value, (n, at)| value | u32::from(read(at)) << (8 * n))
}

/// Writes byte registers one by one.
pub fn write_bytes(offset: u64, width: Width, value: u32, mut write: impl FnMut(usize, u8)) {
    for (n, at) in bytes(offset, width).unwrap_or_default().enumerate() {
        write(at, (value >> (8 * n)) as u8);
    }
}

/// Whether an access is one to a whole 32-bit register.
pub const fn is_word(offset: u64, width: Width) -> bool {
    matches!(width, Width::Word) && offset.is_multiple_of(4)
}

/// Which register stands at `0x080` to `0x3ff`, which interrupts, and whether a write of ones sets.
const fn one_bit(offset: u64) -> Option<(Bits, usize, bool)> {
    let (bits, set) = match offset >> 7 {
        1 => (Bits::Group, true),
        2 => (Bits::Enabled, true),
        3 => (Bits::Enabled, false),
        4 => (Bits::Pending, true),
        5 => (Bits::Pending, false),
        6 => (Bits::Active, true),
        7 => (Bits::Active, false),
        _ => return None,
    };
    Some((bits, (offset & 0x7f) as usize / 4, set))
}

impl<const V: usize, const S: usize> Engine<V, S> {
    /// A load from one of the registers above, of those interrupts that are in `intids`; others read as zero.
    pub fn read_common(&mut self, vcpu: usize, offset: u64, width: Width, intids: &Range<usize>) -> u32 {
        match offset {
            0x400..0x800 => {
                read_bytes(
                    offset - 0x400,
                    width,
                    |intid| {
                        if intids.contains(&intid) { self.priority(vcpu, intid) } else { 0 }
                    },
                )
            }
            _ if !is_word(offset, width) => 0,
            0xc00..0xd00 => (0..16).fold(0, |value, n| {
                let intid = (offset - 0xc00) as usize * 4 + n;
                let edge = intids.contains(&intid) && self.is_edge(vcpu, intid);
                value | u32::from(edge) << (2 * n + 1)
            }),
            _ => match one_bit(offset) {
                Some((bits, word, _)) if intids.contains(&(word * 32)) => {
                    if bits == Bits::Active {
                        self.ask_holders(vcpu, word);
                    }
                    self.bits(vcpu, word, bits)
                }
                _ => 0,
            },
        }
    }

    /// A store to one of them; ignored for interrupts that are not in `intids`.
    pub fn write_common(&mut self, vcpu: usize, offset: u64, width: Width, value: u32, intids: &Range<usize>) {
        match offset {
            0x400..0x800 => write_bytes(offset - 0x400, width, value, |intid, priority| {
                if intids.contains(&intid) {
                    self.set_priority(vcpu, intid, priority);
                }
            }),
            _ if !is_word(offset, width) => {}
            0xc00..0xd00 => {
                for n in 0..16 {
                    let intid = (offset - 0xc00) as usize * 4 + n;
                    if intids.contains(&intid) {
                        self.set_edge(intid, value >> (2 * n + 1) & 1 != 0);
                    }
                }
            }
            _ => match one_bit(offset) {
                Some((bits, word, set)) if intids.contains(&(word * 32)) => {
                    self.write_bits(vcpu, word, bits, value, set);
                    if bits == Bits::Group {
                        self.write_bits(vcpu, word, bits, !value, false);
                    }
                }
                _ => {}
            },
        }
    }
}
