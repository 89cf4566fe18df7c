//! Commands of an ITS: which of the host's it gets. GIC architecture (IHI 0069H) 5.3.
//!
//! Part of layer 24, MmioCore. Pure values.
#![forbid(unsafe_code)]

use tock_registers::{LocalRegisterCopy, register_bitfields};

use crate::abstract_machine::addr::Pa;

/// Doublewords of a command.
pub const WORDS: usize = 4;
/// Bytes of a command.
pub const SIZE: u64 = 8 * WORDS as u64;

register_bitfields! {u64,
    DW0 [
        CODE OFFSET(0) NUMBITS(8) [
            Movi = 0x01,
            Int = 0x03,
            Clear = 0x04,
            Sync = 0x05,
            Mapd = 0x08,
            Mapc = 0x09,
            Mapti = 0x0a,
            Mapi = 0x0b,
            Inv = 0x0c,
            Invall = 0x0d,
            Movall = 0x0e,
            Discard = 0x0f,
        ],
        DEVICE OFFSET(32) NUMBITS(32) [],
    ],
    /// Of MAPD.
    DW1 [
        /// Bits of an event's number, less one.
        SIZE OFFSET(0) NUMBITS(5) [],
    ],
    /// Of MAPD.
    DW2 [
        /// Address of the interrupt translation table, bits 51 to 8.
        ITT OFFSET(8) NUMBITS(44) [],
        VALID OFFSET(63) NUMBITS(1) [],
    ],
}

/// What a command of the host means for the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// It names no memory: the ITS gets it as it stands.
    Plain,
    /// A device gets an interrupt translation table, for so many bits of events.
    MapDevice {
        /// Its number.
        device: u32,
        /// Bits of an event's number.
        event_bits: u32,
    },
    /// A device loses its table.
    UnmapDevice {
        /// Its number.
        device: u32,
    },
    /// None that the host has: those of a GICv4 (virtual LPIs), and what does not exist. The ITS does not get it.
    Unknown,
}

impl Command {
    /// What the doublewords of a command say.
    pub fn decode(words: [u64; WORDS]) -> Self {
        use DW0::CODE::Value as Code;
        let [first, second, third, _] = words;
        let first = LocalRegisterCopy::<u64, DW0::Register>::new(first);
        let device = first.read(DW0::DEVICE) as u32;
        match first.read_as_enum(DW0::CODE) {
            Some(Code::Mapd) if LocalRegisterCopy::<u64, DW2::Register>::new(third).is_set(DW2::VALID) => {
                let size = LocalRegisterCopy::<u64, DW1::Register>::new(second).read(DW1::SIZE) as u32;
                Self::MapDevice { device, event_bits: size + 1 }
            }
            Some(Code::Mapd) => Self::UnmapDevice { device },
            Some(_) => Self::Plain,
            None => Self::Unknown,
        }
    }
}

/// The MAPD that gives `device` the table at `itt`, of `event_bits` bits of events.
pub fn map_device(device: u32, event_bits: u32, itt: Pa) -> [u64; WORDS] {
    let first = DW0::CODE::Mapd + DW0::DEVICE.val(device.into());
    let third = DW2::ITT.val(itt.raw() >> 8) + DW2::VALID::SET;
    [first.value, DW1::SIZE.val((event_bits - 1).into()).value, third.value, 0]
}

/// The SYNC that stands where a command was that the ITS refused: it waits for the first CPU's redistributor, and names nothing that may not be there.
pub const fn nothing() -> [u64; WORDS] {
    [DW0::CODE::Sync.value, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_maps_a_device_is_read_and_made() {
        let made = map_device(0x1_0008, 5, Pa::new(0x8000_4100));
        assert_eq!(made, [0x0001_0008_0000_0008, 4, 1 << 63 | 0x8000_4100, 0]);
        assert_eq!(Command::decode(made), Command::MapDevice { device: 0x1_0008, event_bits: 5 });
        assert_eq!(Command::decode([made[0], 0, 0, 0]), Command::UnmapDevice { device: 0x1_0008 });
    }

    #[test]
    fn commands_of_a_gicv4_and_unknown_ones_are_none() {
        for code in [0x00, 0x02, 0x06, 0x07, 0x10, 0x20, 0x21, 0x22, 0x23, 0x25, 0x29, 0x2a, 0x2d, 0xff] {
            assert_eq!(Command::decode([code, 0, 1 << 63, 0]), Command::Unknown, "{code:#x}");
        }
        for code in [1, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15] {
            assert_eq!(Command::decode([code | 7 << 32, 0, 1 << 63 | 0x4000_0000, 0]), Command::Plain, "{code:#x}");
        }
    }
}
