//! Arm PrimeCell UART (PL011), Arm DDI 0183, and its SBSA subset (Arm DEN0029, "Generic UART"). Transmit only.

use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

use super::Uart;
use crate::abstract_machine::addr::Va;

register_bitfields! [u32,
    /// Flag register, DDI 0183 §3.3.3.
    UARTFR [
        /// Transmit FIFO full.
        TXFF OFFSET(5) NUMBITS(1) []
    ],
    /// Control register, DDI 0183 §3.3.8. Not in the SBSA subset.
    UARTCR [
        /// Transmit enable.
        TXE OFFSET(8) NUMBITS(1) [],
        /// UART enable.
        UARTEN OFFSET(0) NUMBITS(1) []
    ]
];

register_structs! {
    /// The registers used, DDI 0183 §3.2.
    Registers {
        (0x00 => uartdr: ReadWrite<u32>),
        (0x04 => _rsr),
        (0x18 => uartfr: ReadOnly<u32, UARTFR::Register>),
        (0x1c => _ilpr),
        (0x30 => uartcr: ReadWrite<u32, UARTCR::Register>),
        (0x34 => @END),
    }
}

/// A PL011.
pub(super) struct Pl011 {
    base: Va,
    /// There is a control register (not on an SBSA UART).
    has_control: bool,
}

impl Pl011 {
    /// The PL011 at `base`.
    ///
    /// # Safety
    /// As [`super::Console::new`]; `base` is a multiple of 4.
    pub(super) const unsafe fn new(base: Va, has_control: bool) -> Self {
        Self { base, has_control }
    }

    fn registers(&self) -> &Registers {
        // SAFETY: `new`'s caller vouches for the registers at `base`; all of them are cells that other agents may change.
        unsafe { &*(self.base.raw() as *const Registers) }
    }
}

impl Uart for Pl011 {
    fn enable(&self) {
        if !self.has_control {
            return;
        }
        let control = &self.registers().uartcr;
        let value = control.extract();
        if !(value.is_set(UARTCR::UARTEN) && value.is_set(UARTCR::TXE)) {
            control.modify_no_read(value, UARTCR::UARTEN::SET + UARTCR::TXE::SET);
        }
    }

    fn ready(&self) -> bool {
        !self.registers().uartfr.is_set(UARTFR::TXFF)
    }

    fn send(&self, byte: u8) {
        self.registers().uartdr.set(u32::from(byte));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(registers: &mut [u32; 16], has_control: bool) -> Pl011 {
        // SAFETY: the array is as large as the registers and outlives the driver in each test.
        unsafe { Pl011::new(Va::new(registers.as_mut_ptr() as u64), has_control) }
    }

    #[test]
    fn enable_sets_only_the_two_enable_bits_and_only_if_one_is_off() {
        for (before, after) in [(0, 0x101), (0xc200, 0xc301), (0x100, 0x101), (1, 0x101), (0x4301, 0x4301)] {
            let mut registers = [0; 16];
            registers[0x30 / 4] = before;
            fake(&mut registers, true).enable();
            assert_eq!(registers[0x30 / 4], after);
            registers[0x30 / 4] = 0;
            assert_eq!(registers, [0; 16]);
        }
    }

    #[test]
    fn an_sbsa_uart_has_no_control_register_to_write() {
        let mut registers = [0; 16];
        fake(&mut registers, false).enable();
        assert_eq!(registers, [0; 16]);
    }

    #[test]
    fn a_full_fifo_is_not_ready_and_a_character_goes_to_the_data_register() {
        let mut registers = [0; 16];
        registers[0x18 / 4] = 1 << 5;
        assert!(!fake(&mut registers, true).ready());
        registers[0x18 / 4] = !(1 << 5);
        let uart = fake(&mut registers, true);
        assert!(uart.ready());
        uart.send(b'A');
        assert_eq!(registers[0], 0x41);
    }
}
