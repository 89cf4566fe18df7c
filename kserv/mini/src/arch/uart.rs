//! Serial ports by polling: PL011 (DDI 0183) and the Raspberry Pi's mini-UART (BCM2711 Arm peripherals §2.2).

use super::Registers;

/// Polls until a character is dropped.
const PATIENCE: u32 = 1_000_000;

/// Which.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// PL011.
    Pl011,
    /// Mini-UART, from AUX_MU_IO_REG on.
    Aux,
}

/// A serial port, switched on by the loader.
#[derive(Clone, Copy, Debug)]
pub struct Uart {
    kind: Kind,
    registers: Registers,
}

impl Uart {
    /// The port that the device tree names: at `base`, mapped as device memory since `mmu::start`.
    pub fn new(kind: Kind, base: u64) -> Self {
        // SAFETY: the device tree says what is there, and what is no RAM is mapped as device memory.
        let registers = unsafe { Registers::new(base) };
        let uart = Self { kind, registers };
        match kind {
            // UARTCR: enable, transmit, receive.
            Kind::Pl011 => registers.write(0x30, registers.read(0x30) | 1 | 1 << 8 | 1 << 9),
            // AUX_MU_CNTL: receiver and transmitter.
            Kind::Aux => registers.write(0x20, registers.read(0x20) | 3),
        }
        uart
    }

    fn ready(&self) -> bool {
        match self.kind {
            Kind::Pl011 => self.registers.read(0x18) & 1 << 5 == 0,
            Kind::Aux => self.registers.read(0x14) & 1 << 5 != 0,
        }
    }

    /// Sends a byte.
    pub fn put(&self, byte: u8) {
        if (0..PATIENCE).any(|_| self.ready()) {
            self.registers.write(0, byte.into());
        }
    }

    /// A received byte, if there is one.
    pub fn get(&self) -> Option<u8> {
        let there = match self.kind {
            Kind::Pl011 => self.registers.read(0x18) & 1 << 4 == 0,
            Kind::Aux => self.registers.read(0x14) & 1 != 0,
        };
        there.then(|| self.registers.read(0) as u8)
    }
}
