//! Mini-UART of the Raspberry Pi's AUX block (BCM2711 ARM Peripherals, §2.2). Transmit only.

use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

use super::Uart;
use crate::abstract_machine::addr::Va;

register_bitfields! [u32,
    /// Line status, BCM2711 §2.2.2.
    AUX_MU_LSR [
        /// The transmit FIFO can accept at least one byte.
        TX_EMPTY OFFSET(5) NUMBITS(1) []
    ],
    /// Extra control, BCM2711 §2.2.2.
    AUX_MU_CNTL [
        /// Transmitter enable.
        TX_ENABLE OFFSET(1) NUMBITS(1) []
    ]
];

register_structs! {
    /// The registers from AUX_MU_IO_REG on, which is where the device tree's node points.
    Registers {
        (0x00 => aux_mu_io: ReadWrite<u32>),
        (0x04 => _ier),
        (0x14 => aux_mu_lsr: ReadOnly<u32, AUX_MU_LSR::Register>),
        (0x18 => _msr),
        (0x20 => aux_mu_cntl: ReadWrite<u32, AUX_MU_CNTL::Register>),
        (0x24 => @END),
    }
}

/// A mini-UART, switched on in AUX_ENABLES by the boot loader.
pub(super) struct Bcm2835Aux {
    base: Va,
}

impl Bcm2835Aux {
    /// The mini-UART whose AUX_MU_IO_REG is at `base`.
    ///
    /// # Safety
    /// As [`super::Console::new`]; `base` is a multiple of 4.
    pub(super) const unsafe fn new(base: Va) -> Self {
        Self { base }
    }

    fn registers(&self) -> &Registers {
        // SAFETY: `new`'s caller vouches for the registers at `base`; all of them are cells that other agents may change.
        unsafe { &*(self.base.raw() as *const Registers) }
    }
}

impl Uart for Bcm2835Aux {
    fn enable(&self) {
        let control = &self.registers().aux_mu_cntl;
        let value = control.extract();
        if !value.is_set(AUX_MU_CNTL::TX_ENABLE) {
            control.modify_no_read(value, AUX_MU_CNTL::TX_ENABLE::SET);
        }
    }

    fn ready(&self) -> bool {
        self.registers().aux_mu_lsr.is_set(AUX_MU_LSR::TX_EMPTY)
    }

    fn send(&self, byte: u8) {
        self.registers().aux_mu_io.set(u32::from(byte));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn the_mini_uart_waits_for_room_and_keeps_its_other_control_bits() {
        let registers = [const { Cell::new(0u32) }; 16];
        registers[0x20 / 4].set(0xf1);
        // SAFETY: the array is as large as the registers and outlives the driver.
        let uart = unsafe { Bcm2835Aux::new(Va::new(registers.as_ptr() as u64)) };
        uart.enable();
        assert!(!uart.ready());
        uart.send(b'A');
        assert_eq!((registers[0].get(), registers[0x20 / 4].get()), (0x41, 0xf3));
        registers[0x14 / 4].set(1 << 5);
        assert!(uart.ready());
    }
}
