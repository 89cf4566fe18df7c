//! PCI Express, as far as one device on the first bus needs it: found, given a place for its registers, switched on.
//! Sources: PCI Express Base Specification 4.0 §7.2.2 (ECAM), §7.5.1 (configuration space header).

use core::ops::Range;

use super::Registers;

/// Bytes of a function's configuration space.
const FUNCTION: u64 = 4096;
/// Functions of a device; only the first is looked at.
const FUNCTIONS: u64 = 8;
/// Devices of a bus.
const DEVICES: u64 = 32;
/// Vendor ID in the lower half, device ID in the upper one.
const ID: u64 = 0;
/// Command register in the lower half.
const COMMAND: u64 = 4;
/// Base address register 0.
const BAR0: u64 = 0x10;
/// Command: it answers in memory space, and may access memory itself.
const MEMORY_AND_MASTER: u32 = 1 << 1 | 1 << 2;

/// A host bridge, as the device tree describes it.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// Configuration space, from the first bus on.
    pub config: Range<u64>,
    /// Where 32-bit memory space is for CPUs.
    pub window: Range<u64>,
    /// Where it begins on the bus.
    pub bus_start: u32,
}

impl Bridge {
    /// The device on the first bus with these IDs, its registers, `size` bytes, at the start of the window. For one device: nothing else is in the window.
    pub(super) fn start(&self, vendor: u16, device: u16, size: u64) -> Option<Registers> {
        let id = u32::from(device) << 16 | u32::from(vendor);
        let places = (0..DEVICES).map(|n| self.config.start + n * FUNCTIONS * FUNCTION);
        // SAFETY: the device tree says that configuration space is there, and what is no RAM is mapped as device memory.
        let mut functions =
            places.take_while(|at| at + FUNCTION <= self.config.end).map(|at| unsafe { Registers::new(at) });
        let config = functions.find(|config| config.read(ID) == id)?;
        if !u64::from(self.bus_start).is_multiple_of(size) || self.window.end - self.window.start < size {
            return None;
        }
        config.write(BAR0, self.bus_start);
        // The upper half is the status register, where a 1 clears.
        config.write(COMMAND, config.read(COMMAND) & 0xffff | MEMORY_AND_MASTER);
        // SAFETY: as above, for the window, which now leads to the device.
        Some(unsafe { Registers::new(self.window.start) })
    }
}
