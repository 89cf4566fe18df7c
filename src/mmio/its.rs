//! What the core knows of an ITS: how boot set it up, what the host has said of it, which devices have a table.
//!
//! Part of layer 24, MmioCore.
#![forbid(unsafe_code)]

use crate::abstract_machine::addr::Pa;

/// GITS_BASER registers.
const BASERS: usize = 8;
/// Devices that can have a table at a time.
const MOST_DEVICES: usize = 64;

/// What boot found, and set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The first page of the control frame.
    pub frame: Pa,
    /// The queue: one page.
    pub queue: Pa,
    /// The table whose entries lead to pages of device table entries, if the ITS takes one of two levels; else all devices' entries have their place.
    pub level1: Option<Pa>,
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
