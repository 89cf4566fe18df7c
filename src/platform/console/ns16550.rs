//! 16550 and its kin (National Semiconductor PC16550D data sheet): registers 1, 2, 4 or 8 bytes apart, read and
//! written as bytes or words (device tree: `reg-shift`, `reg-io-width`). Transmit only.

use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::ReadWrite;
use tock_registers::{LocalRegisterCopy, register_bitfields};

use super::Uart;
use crate::abstract_machine::addr::Va;

register_bitfields! [u8,
    /// Line status register, PC16550D §8.4.
    LSR [
        /// Transmitter holding register empty.
        THRE OFFSET(5) NUMBITS(1) []
    ]
];

/// Number of the transmitter holding register.
const THR: u64 = 0;
/// Number of the line status register.
const LSR_NUMBER: u64 = 5;

/// Width of a register access.
#[derive(Clone, Copy)]
enum Width {
    Byte,
    Word,
}

/// A 16550.
pub(super) struct Ns16550 {
    base: Va,
    reg_shift: u8,
    width: Width,
}

impl Ns16550 {
    /// The 16550 at `base`, or `None` unless `reg_shift` is 0 to 3 and `io_width` 1, or 4 with registers at least 4
    /// bytes apart.
    ///
    /// # Safety
    /// As [`super::Console::new`]; `base` is a multiple of 4.
    pub(super) const unsafe fn new(base: Va, reg_shift: u8, io_width: u8) -> Option<Self> {
        let width = match (reg_shift, io_width) {
            (0..=3, 1) => Width::Byte,
            (2..=3, 4) => Width::Word,
            _ => return None,
        };
        Some(Self { base, reg_shift, width })
    }

    fn address(&self, number: u64) -> u64 {
        self.base.raw() + (number << self.reg_shift)
    }

    fn read(&self, number: u64) -> u8 {
        // SAFETY: `new`'s caller vouches for eight registers at `base`; a word access is aligned, for `base` is a
        // multiple of 4 and the registers are then at least 4 bytes apart.
        unsafe {
            match self.width {
                Width::Byte => (*(self.address(number) as *const ReadWrite<u8>)).get(),
                Width::Word => (*(self.address(number) as *const ReadWrite<u32>)).get() as u8,
            }
        }
    }

    fn write(&self, number: u64, value: u8) {
        // SAFETY: as in `read`.
        unsafe {
            match self.width {
                Width::Byte => (*(self.address(number) as *const ReadWrite<u8>)).set(value),
                Width::Word => (*(self.address(number) as *const ReadWrite<u32>)).set(u32::from(value)),
            }
        }
    }
}

impl Uart for Ns16550 {
    /// A 16550's transmitter cannot be switched off.
    fn enable(&self) {}

    fn ready(&self) -> bool {
        LocalRegisterCopy::<u8, LSR::Register>::new(self.read(LSR_NUMBER)).is_set(LSR::THRE)
    }

    fn send(&self, byte: u8) {
        self.write(THR, byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_finds_status_and_data() {
        for (reg_shift, io_width) in [(0, 1), (1, 1), (2, 1), (2, 4), (3, 1), (3, 4)] {
            let mut memory = [0xffu32; 16];
            let bytes = memory.as_mut_ptr().cast::<u8>();
            let status = 5 << reg_shift;
            // SAFETY: the array is as large as the registers and outlives the driver.
            let uart = unsafe { Ns16550::new(Va::new(bytes as u64), reg_shift, io_width) }.unwrap();
            // SAFETY: `status` is at most 40, within the array.
            unsafe { bytes.add(status).write(!(1 << 5)) };
            assert!(!uart.ready());
            // SAFETY: as above.
            unsafe { bytes.add(status).write(1 << 5) };
            assert!(uart.ready());
            uart.send(b'A');
            assert_eq!(memory[0] & 0xff, 0x41);
        }
    }
}
