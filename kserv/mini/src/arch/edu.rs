//! QEMU's educational PCI device, for its DMA engine: it copies between memory and a page of its own. Source: QEMU's docs/specs/edu.rst.

use alloc::vec::Vec;
use core::ops::Range;

use super::pci::Bridge;
use super::{Registers, memory};

const VENDOR: u16 = 0x1234;
const DEVICE: u16 = 0x11e8;
/// Bytes of its registers.
const SIZE: u64 = 1 << 20;
/// Version 1.0 of an edu device.
const IDENTIFICATION: u32 = 0x0100_00ed;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
/// Starts a transfer; reads as 1 until it is over.
const START: u64 = 1;
/// From the device's page to memory, not the other way.
const TO_MEMORY: u64 = 1 << 1;
/// Where the device's page is, for its engine.
const PAGE: u64 = 0x4_0000;
/// Its size.
pub const PAGE_SIZE: u64 = 4096;

/// The device.
#[derive(Debug)]
pub struct Edu {
    registers: Registers,
    ram: Vec<Range<u64>>,
}

impl Edu {
    /// The device, if there is one; `ram`: all that is this host's.
    pub fn start(bridge: &Bridge, ram: &[Range<u64>]) -> Option<Self> {
        let registers = bridge.start(VENDOR, DEVICE, SIZE)?;
        (registers.read(0) == IDENTIFICATION).then(|| Self { registers, ram: ram.to_vec() })
    }

    /// Begins to copy `size` bytes at `pa`, wherever that is, into the device's page.
    pub fn read(&self, pa: u64, size: u64) {
        self.begin(pa, PAGE, size, START);
    }

    /// Begins to copy the first `size` bytes of the device's page to `pa`, which is free RAM or no RAM of this host's.
    pub fn write(&self, pa: u64, size: u64) {
        if self.ram.iter().any(|bank| pa < bank.end && bank.start < pa + size) {
            memory::assert_free(pa, size);
        }
        self.begin(PAGE, pa, size, START | TO_MEMORY);
    }

    fn begin(&self, from: u64, to: u64, size: u64, command: u64) {
        assert!(size <= PAGE_SIZE && !self.is_busy(), "the device's page is too small, or in use");
        self.registers.write64(DMA_SOURCE, from);
        self.registers.write64(DMA_DESTINATION, to);
        self.registers.write64(DMA_COUNT, size);
        self.registers.write64(DMA_COMMAND, command);
    }

    /// Whether a transfer is under way.
    pub fn is_busy(&self) -> bool {
        self.registers.read64(DMA_COMMAND) & START != 0
    }
}
