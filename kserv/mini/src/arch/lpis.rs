//! A GICv3's pages of registers about LPIs: RD_base and VLPI_base of redistributors, the control frame of the interrupt translation service.
//!
//! What stands in some of them leads to memory that the interrupt controller writes: never this program's own.

use super::Registers;
use super::entry::image;

/// Bytes of a frame.
const SIZE: u64 = 0x1_0000;
/// An address in any register that has one, and the most that is written from there on: a redistributor's tables of 16 bits of interrupts, or a queue.
const ADDRESS: u64 = ((1 << 52) - 1) & !0xfff;
const REACH: u64 = 1 << 20;

/// Such a page.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    registers: Registers,
}

impl Frame {
    pub(super) const fn new(registers: Registers) -> Self {
        Self { registers }
    }

    /// The control frame of the interrupt translation service that the device tree names.
    pub fn service(at: u64) -> Self {
        // SAFETY: the device tree says what is there, and what is no RAM is mapped as device memory.
        Self { registers: unsafe { Registers::new(at) } }
    }

    /// The frame so many bytes behind this one, which says that it is there.
    pub fn behind(self, distance: u64) -> Self {
        // SAFETY: as in `service`: a redistributor's frames are in one window.
        Self { registers: unsafe { Registers::new(self.registers.base + distance) } }
    }

    /// Where it is.
    pub const fn at(self) -> u64 {
        self.registers.base
    }

    /// A word.
    pub fn read(self, register: u64) -> u32 {
        assert!(register < SIZE, "there is no register {register:#x}");
        self.registers.read(register)
    }

    /// A doubleword.
    pub fn read64(self, register: u64) -> u64 {
        assert!(register < SIZE, "there is no register {register:#x}");
        self.registers.read64(register)
    }

    /// A word: flags, an offset, or half of what leads nowhere near this program.
    pub fn write(self, register: u64, value: u32) {
        assert!(register < SIZE, "there is no register {register:#x}");
        assert_elsewhere(u64::from(value) & ADDRESS);
        self.registers.write(register, value);
    }

    /// A doubleword. If it leads to memory, then to none of this program's.
    pub fn write64(self, register: u64, value: u64) {
        assert!(register < SIZE, "there is no register {register:#x}");
        assert_elsewhere(value & ADDRESS);
        self.registers.write64(register, value);
    }
}

fn assert_elsewhere(start: u64) {
    let own = image();
    assert!(
        start + REACH <= own.start || own.end <= start,
        "the interrupt controller would write this program at {start:#x}"
    );
}
