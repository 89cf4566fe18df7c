//! UARTs that SoC makers built for themselves. They differ in where things are, not in how a character is sent: a word with a
//! flag says whether there is room, another word takes the character. So each is a [`Layout`] and not a driver. Transmit only.

use tock_registers::fields::Field;
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::register_bitfields;
use tock_registers::registers::ReadWrite;

use super::Uart;
use crate::abstract_machine::addr::Va;

/// Who built it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SocUart {
    /// NXP's i.MX 6 to 8M (`fsl,imx6q-uart`): i.MX 8M Plus Reference Manual, chapter "UART".
    Imx,
    /// NXP's LPUART of the i.MX 7ULP, 8, 8ULP and 9 (`fsl,imx7ulp-lpuart`): i.MX 93 Reference Manual, chapter "LPUART".
    Lpuart,
    /// Amlogic's (`amlogic,meson-ao-uart`): S905 data sheet, "UART".
    Meson,
    /// Cadence's in Xilinx's Zynq and Zynq UltraScale+ (`cdns,uart-r1p12`): UG1087, module UART.
    Cadence,
    /// Marvell's in the Armada 3700 (`marvell,armada-3700-uart`): Armada 37xx functional specification, "UART".
    Armada3700,
}

register_bitfields! [u32,
    /// i.MX: control 1.
    UCR1 [ UARTEN OFFSET(0) NUMBITS(1) [] ],
    /// i.MX: control 2.
    UCR2 [ TXEN OFFSET(2) NUMBITS(1) [] ],
    /// i.MX: test register, which has the FIFOs' state.
    UTS [ TXFULL OFFSET(4) NUMBITS(1) [] ],
    /// LPUART: status.
    STAT [ TDRE OFFSET(23) NUMBITS(1) [] ],
    /// LPUART: control.
    CTRL [ TE OFFSET(19) NUMBITS(1) [] ],
    /// Amlogic: control.
    UART_CONTROL [ TX_EN OFFSET(12) NUMBITS(1) [] ],
    /// Amlogic: status.
    UART_STATUS [ TX_FULL OFFSET(21) NUMBITS(1) [] ],
    /// Cadence: control.
    CR [
        TX_EN OFFSET(4) NUMBITS(1) [],
        TX_DIS OFFSET(5) NUMBITS(1) []
    ],
    /// Cadence: channel status.
    SR [ TXFULL OFFSET(4) NUMBITS(1) [] ],
    /// Armada 3700: status.
    UART_STAT [ TX_FIFO_FULL OFFSET(11) NUMBITS(1) [] ]
];

/// One bit of a register.
#[derive(Clone, Copy)]
struct Bit {
    register: u64,
    mask: u32,
    /// What it has to be for the transmitter to go on.
    wanted: bool,
}

impl Bit {
    const fn set<R: tock_registers::RegisterLongName>(register: u64, field: Field<u32, R>) -> Self {
        Self { register, mask: field.mask << field.shift, wanted: true }
    }

    const fn clear<R: tock_registers::RegisterLongName>(register: u64, field: Field<u32, R>) -> Self {
        Self { wanted: false, ..Self::set(register, field) }
    }

    fn is_wanted(self, value: u32) -> bool {
        (value & self.mask != 0) == self.wanted
    }
}

/// Where things are; offsets in bytes.
struct Layout {
    /// The register that takes a character.
    data: u64,
    /// Whether there is room for one.
    room: Bit,
    /// What switches the transmitter on.
    on: &'static [Bit],
}

const IMX: Layout = Layout {
    data: 0x40,
    room: Bit::clear(0xb4, UTS::TXFULL),
    on: &[Bit::set(0x80, UCR1::UARTEN), Bit::set(0x84, UCR2::TXEN)],
};
const LPUART: Layout = Layout { data: 0x1c, room: Bit::set(0x14, STAT::TDRE), on: &[Bit::set(0x18, CTRL::TE)] };
const MESON: Layout =
    Layout { data: 0, room: Bit::clear(0x0c, UART_STATUS::TX_FULL), on: &[Bit::set(0x08, UART_CONTROL::TX_EN)] };
const CADENCE: Layout =
    Layout { data: 0x30, room: Bit::clear(0x2c, SR::TXFULL), on: &[Bit::clear(0, CR::TX_DIS), Bit::set(0, CR::TX_EN)] };
const ARMADA_3700: Layout = Layout { data: 0x04, room: Bit::clear(0x0c, UART_STAT::TX_FIFO_FULL), on: &[] };

impl SocUart {
    /// Number of bytes from the first register to the end of the last one that is used, over all of them.
    pub(super) const SIZE: u64 = 0xb8;

    const fn layout(self) -> &'static Layout {
        match self {
            Self::Imx => &IMX,
            Self::Lpuart => &LPUART,
            Self::Meson => &MESON,
            Self::Cadence => &CADENCE,
            Self::Armada3700 => &ARMADA_3700,
        }
    }
}

/// A UART by its layout.
pub(super) struct Soc {
    base: Va,
    layout: &'static Layout,
}

impl Soc {
    /// The UART `kind` whose registers start at `base`.
    ///
    /// # Safety
    /// As [`super::Console::new`]; `base` is a multiple of 4.
    pub(super) const unsafe fn new(base: Va, kind: SocUart) -> Self {
        Self { base, layout: kind.layout() }
    }

    fn register(&self, offset: u64) -> &ReadWrite<u32> {
        // SAFETY: `new`'s caller vouches for the registers at `base`, a multiple of 4 as all offsets of layouts are; a cell that other agents
        // may change.
        unsafe { &*((self.base.raw() + offset) as *const ReadWrite<u32>) }
    }
}

impl Uart for Soc {
    fn enable(&self) {
        for bit in self.layout.on {
            let register = self.register(bit.register);
            let value = register.get();
            if !bit.is_wanted(value) {
                register.set(value ^ bit.mask);
            }
        }
    }

    fn ready(&self) -> bool {
        let room = self.layout.room;
        room.is_wanted(self.register(room.register).get())
    }

    fn send(&self, byte: u8) {
        self.register(self.layout.data).set(u32::from(byte));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    const ALL: [SocUart; 5] = [SocUart::Imx, SocUart::Lpuart, SocUart::Meson, SocUart::Cadence, SocUart::Armada3700];

    fn with_registers(kind: SocUart, act: impl FnOnce(&Soc, &[Cell<u32>])) {
        let registers = [const { Cell::new(0u32) }; SocUart::SIZE as usize / 4];
        // SAFETY: the array is as large as the registers of each kind and outlives the driver.
        act(&unsafe { Soc::new(Va::new(registers.as_ptr() as u64), kind) }, &registers);
    }

    /// Register and value that mean "no room", and "room"; where the character goes.
    fn expected(kind: SocUart) -> (usize, u32, u32, usize) {
        match kind {
            SocUart::Imx => (0xb4, 0x10, !0x10, 0x40),
            SocUart::Lpuart => (0x14, !0x0080_0000, 0x0080_0000, 0x1c),
            SocUart::Meson => (0x0c, 0x0020_0000, !0x0020_0000, 0x00),
            SocUart::Cadence => (0x2c, 0x10, !0x10, 0x30),
            SocUart::Armada3700 => (0x0c, 0x800, !0x800, 0x04),
        }
    }

    #[test]
    fn each_kind_waits_for_its_flag_and_writes_into_its_data_register() {
        for kind in ALL {
            with_registers(kind, |uart, registers| {
                let (status, full, room, data) = expected(kind);
                registers[status / 4].set(full);
                assert!(!uart.ready(), "{kind:?}");
                registers[status / 4].set(room);
                assert!(uart.ready(), "{kind:?}");
                uart.send(b'A');
                assert_eq!(registers[data / 4].get(), 0x41, "{kind:?}");
            });
        }
    }

    #[test]
    fn a_transmitter_that_is_off_is_switched_on_and_other_bits_stay() {
        for (kind, register, off, on) in [
            (SocUart::Imx, 0x80, 0xf0f0_0200, 0xf0f0_0201),
            (SocUart::Imx, 0x84, 0x0000_4022, 0x0000_4026),
            (SocUart::Lpuart, 0x18, 0x0004_0000, 0x000c_0000),
            (SocUart::Meson, 0x08, 0x0000_2000, 0x0000_3000),
            (SocUart::Cadence, 0x00, 0x0000_0124, 0x0000_0114),
            (SocUart::Cadence, 0x00, 0x0000_0114, 0x0000_0114),
            (SocUart::Armada3700, 0x08, 0x0000_0000, 0x0000_0000),
        ] {
            with_registers(kind, |uart, registers| {
                registers[register / 4].set(off);
                uart.enable();
                assert_eq!(registers[register / 4].get(), on, "{kind:?} at {register:#x}");
            });
        }
    }
}
