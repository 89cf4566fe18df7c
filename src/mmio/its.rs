//! What the core knows of an ITS: how boot set it up, what the host has said of it, which devices have a table.
//!
//! Part of layer 24, MmioCore.
#![forbid(unsafe_code)]

use crate::abstract_machine::addr::{PAGE_SIZE, Pa, PhysRange};

/// GITS_BASER registers.
const BASERS: usize = 8;
/// Devices that can have a table at a time.
const MOST_DEVICES: usize = 64;
/// Most bits of a device's number: boards have them up to 0xe0000 in their `msi-map`, and each further bit costs twice the pages.
pub const MOST_DEVICE_BITS: u32 = 20;
/// Bytes of an entry of a device table's first level. GIC architecture (IHI 0069H) 5.2.
pub const LEVEL1_ENTRY: u64 = 8;
/// log2 of the pages that a first level has at most, but for one page of an ITS that only takes larger ones.
const MOST_LEVEL1_ORDER: u32 = 2;

/// What boot found, and set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The first page of the control frame.
    pub frame: Pa,
    /// The queue: one page.
    pub queue: Pa,
    /// The table whose entries lead to pages of device table entries, if the ITS takes one of two levels; else all devices' entries have their place.
    pub level1: Option<PhysRange>,
    /// log2 of the pages of one page of the ITS's.
    pub page_order: u32,
    /// Bytes of an entry of the device table.
    pub device_entry: u64,
    /// Bytes of an entry of an interrupt translation table.
    pub itt_entry: u64,
    /// Bits of a device's number.
    pub device_bits: u32,
    /// GITS_BASER as the ITS has it.
    pub basers: [u64; BASERS],
}

/// The first level of a device table of two levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level1 {
    /// log2 of its pages, whole ones of the ITS's.
    pub order: u32,
    /// Bits of a device's number that it has room for.
    pub device_bits: u32,
}

impl Level1 {
    /// For `bits` bits, or as many as there are pages for. The ITS has pages of `1 << page_order` pages, and entries of `entry` bytes for devices.
    pub fn new(bits: u32, page_order: u32, entry: u64) -> Self {
        // Bits that a page of devices takes, and most that the pages of the first level can take.
        let devices = ((PAGE_SIZE << page_order) / entry).ilog2();
        let most = ((PAGE_SIZE << MOST_LEVEL1_ORDER.max(page_order)) / LEVEL1_ENTRY).ilog2();
        let device_bits = bits.min(MOST_DEVICE_BITS).min(devices + most);
        let bytes = LEVEL1_ENTRY << device_bits.saturating_sub(devices);
        Self { order: bytes.div_ceil(PAGE_SIZE).ilog2().max(page_order), device_bits }
    }
}

/// A table of interrupt translation, in use or kept for the next device: an ITS may remember it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Itt {
    pub(crate) device: Option<u32>,
    pub(crate) base: Pa,
    pub(crate) order: u32,
}

/// An ITS as the host knows it, and as it is.
#[derive(Debug)]
pub struct Its {
    pub(crate) setup: Setup,
    /// Where in the queue of the core's the next command goes.
    pub(crate) writer: u64,
    pub(crate) cbaser: u64,
    pub(crate) host_writer: u64,
    pub(crate) host_reader: u64,
    pub(crate) stalled: bool,
    pub(crate) basers: [u64; BASERS],
    pub(crate) itts: [Option<Itt>; MOST_DEVICES],
    /// Pages of the pool that it has besides what boot gave it: its [`itts`](Self::itts), and pages of the device table.
    pub(crate) pages: u64,
    /// It has a command that it had not run when last asked: it gets no other before.
    pub(crate) late: bool,
}

impl Its {
    /// An ITS that is off, and has its queue and its tables.
    pub const fn new(setup: Setup) -> Self {
        Self {
            setup,
            writer: 0,
            cbaser: 0,
            host_writer: 0,
            host_reader: 0,
            stalled: false,
            basers: [0; BASERS],
            itts: [None; MOST_DEVICES],
            pages: 0,
            late: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_level_has_20_bits_of_devices_or_what_fits_into_four_pages() {
        for (page_order, entry, order, device_bits) in [
            // Pages of 4 KiB: 512 devices of 8 bytes each, so 2,048 entries of 8 bytes lead to all.
            (0, 8, 2, 20),
            (0, 4, 1, 20),
            (0, 1, 0, 20),
            (0, 12, 2, 19),
            (0, 16, 2, 19),
            (0, 32, 2, 18),
            // Of 16 KiB: one is enough, also where an entry is as large as can be.
            (2, 1, 2, 20),
            (2, 8, 2, 20),
            (2, 32, 2, 20),
            // Of 64 KiB: one is the least.
            (4, 8, 4, 20),
            (4, 32, 4, 20),
        ] {
            for bits in [20, 32] {
                let found = Level1::new(bits, page_order, entry);
                assert_eq!(found, Level1 { order, device_bits }, "{page_order} {entry} {bits}");
            }
        }
        assert_eq!(Level1::new(16, 0, 8), Level1 { order: 0, device_bits: 16 });
        assert_eq!(Level1::new(19, 0, 8), Level1 { order: 1, device_bits: 19 });
    }

    #[test]
    fn every_device_has_its_place_in_a_first_level_that_is_no_larger_than_it_must_be() {
        for (page_order, entry, bits) in [0, 2, 4]
            .iter()
            .flat_map(|order| (1..=32).flat_map(move |entry| (1..=32).map(move |bits| (*order, entry, bits))))
        {
            let Level1 { order, device_bits } = Level1::new(bits, page_order, entry);
            let last = ((1 << device_bits) - 1) / ((PAGE_SIZE << page_order) / entry);
            let (needed, size) = (LEVEL1_ENTRY * (last + 1), PAGE_SIZE << order);
            assert!(needed <= size, "{page_order} {entry} {bits}");
            assert!(order == page_order || needed > size / 2, "{page_order} {entry} {bits}");
            assert!(order <= page_order.max(2) && (1..=bits.min(20)).contains(&device_bits));
        }
    }
}
