//! The core's console: one serial port, output only, by polling.
//!
//! A character waits for room a bounded number of polls and is dropped then, so a dead UART never hangs the core; after
//! a drop the next ones wait only briefly until the UART answers again. No lock is taken, no memory but the
//! [`Console`] itself is touched and no exclusive access is made: it works before the MMU is on and from the panic path.
//!
//! What it may not do: change baud rate or line format (the boot loader's stay), receive, or use interrupts. The
//! transmitter is switched on if it is off, and nothing else. The host drives the same UART: its characters and ours
//! mix, and its driver may stop the clock; both cost text, never the machine.
//!
//! Each driver names the manual it follows.

pub mod bcm2835_aux;
pub mod ns16550;
pub mod pl011;
pub mod soc;

use core::sync::atomic::{AtomicBool, Ordering};

use crate::abstract_machine::addr::{Pa, Va};
use bcm2835_aux::Bcm2835Aux;
use ns16550::Ns16550;
use pl011::Pl011;
use soc::{Soc, SocUart};

/// Polls of the status register before a character is dropped. A read of a device register takes about 100 ns, so this
/// is at least 10 ms: ten characters at 9600 baud.
const PATIENCE: u32 = 100_000;
/// Polls for each character after one has been dropped.
const PATIENCE_WHEN_STUCK: u32 = 16;

/// A serial port as the device tree describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsoleDevice {
    /// Arm PrimeCell PL011 (`arm,pl011`).
    Pl011 {
        /// First byte of its registers.
        base: Pa,
    },
    /// The subset of a PL011 that the SBSA defines (`arm,sbsa-uart`): no control register.
    SbsaUart {
        /// First byte of its registers.
        base: Pa,
    },
    /// 16550 and its kin (`ns16550a`, `snps,dw-apb-uart`, ...).
    Ns16550 {
        /// First byte of its registers, with `reg-offset` added.
        base: Pa,
        /// log2 of the distance of two registers in bytes: 0 to 3.
        reg_shift: u8,
        /// Width of a register access in bytes: 1 or 4.
        io_width: u8,
    },
    /// Mini-UART of the Raspberry Pi (`brcm,bcm2835-aux-uart`).
    Bcm2835Aux {
        /// First byte of its registers: AUX_MU_IO_REG.
        base: Pa,
    },
    /// A UART that a SoC maker built for himself.
    Soc {
        /// First byte of its registers.
        base: Pa,
        /// Which one.
        kind: SocUart,
    },
}

impl ConsoleDevice {
    /// Where the registers start.
    pub const fn base(self) -> Pa {
        match self {
            Self::Pl011 { base }
            | Self::SbsaUart { base }
            | Self::Ns16550 { base, .. }
            | Self::Bcm2835Aux { base }
            | Self::Soc { base, .. } => base,
        }
    }

    /// Number of bytes, from [`Self::base`], that the driver touches; at most one page.
    pub const fn size(self) -> u64 {
        match self {
            Self::Pl011 { .. } | Self::SbsaUart { .. } => 0x34,
            Self::Ns16550 { reg_shift, .. } => 8 << (reg_shift & 3),
            Self::Bcm2835Aux { .. } => 0x24,
            Self::Soc { .. } => SocUart::SIZE,
        }
    }
}

/// What every UART driver offers. No wait, no lock.
trait Uart {
    /// Switches the transmitter on if it is off; baud rate and format stay.
    fn enable(&self);
    /// Whether there is room for one character.
    fn ready(&self) -> bool;
    /// Hands one character to the UART; only after [`Self::ready`].
    fn send(&self, byte: u8);
}

/// The drivers.
enum Driver {
    Pl011(Pl011),
    Ns16550(Ns16550),
    Bcm2835Aux(Bcm2835Aux),
    Soc(Soc),
    #[cfg(test)]
    Fake(&'static fake::Fake),
}

impl Driver {
    fn uart(&self) -> &dyn Uart {
        match self {
            Self::Pl011(uart) => uart,
            Self::Ns16550(uart) => uart,
            Self::Bcm2835Aux(uart) => uart,
            Self::Soc(uart) => uart,
            #[cfg(test)]
            Self::Fake(uart) => *uart,
        }
    }
}

/// A serial port that the core writes to. It may be used from several CPUs at once; their characters mix then, so
/// ordinary text goes through the logger, whose lock keeps lines whole.
pub struct Console {
    driver: Driver,
    /// The last character was dropped.
    stuck: AtomicBool,
}

impl Console {
    /// The console `device`, whose registers appear at `base` (before the MMU is on: `device.base()` itself), with its
    /// transmitter on. `None` if `device` has a register distance or access width that no driver knows, or `base` is
    /// not a multiple of 4.
    ///
    /// # Safety
    /// From `base` on, [`ConsoleDevice::size`] bytes are the registers of such a device and stay mapped as
    /// device memory for as long as the console is used.
    pub unsafe fn new(device: ConsoleDevice, base: Va) -> Option<Self> {
        if !base.is_aligned(4) || base.raw() == 0 {
            return None;
        }
        // SAFETY: the caller vouches for the registers at `base`, which is aligned for 32-bit accesses.
        let driver = unsafe {
            match device {
                ConsoleDevice::Pl011 { .. } => Driver::Pl011(Pl011::new(base, true)),
                ConsoleDevice::SbsaUart { .. } => Driver::Pl011(Pl011::new(base, false)),
                ConsoleDevice::Ns16550 { reg_shift, io_width, .. } => {
                    Driver::Ns16550(Ns16550::new(base, reg_shift, io_width)?)
                }
                ConsoleDevice::Bcm2835Aux { .. } => Driver::Bcm2835Aux(Bcm2835Aux::new(base)),
                ConsoleDevice::Soc { kind, .. } => Driver::Soc(Soc::new(base, kind)),
            }
        };
        Some(Self::with(driver))
    }

    fn with(driver: Driver) -> Self {
        driver.uart().enable();
        Self { driver, stuck: AtomicBool::new(false) }
    }

    /// Writes one byte as it is. Asks up to [`PATIENCE`] times for room, then drops the byte; after that [`PATIENCE_WHEN_STUCK`] times for each, until there is room again.
    pub fn put(&self, byte: u8) {
        // Plain loads and stores only: an exclusive access may fault while the MMU is off.
        let patience = if self.stuck.load(Ordering::Relaxed) { PATIENCE_WHEN_STUCK } else { PATIENCE };
        let uart = self.driver.uart();
        let ready = (0..patience).any(|_| uart.ready());
        if ready {
            uart.send(byte);
        }
        self.stuck.store(!ready, Ordering::Relaxed);
    }

    /// Writes text, `\n` as `\r\n`. Takes no lock.
    pub fn write(&self, text: &[u8]) {
        for &byte in text {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
    }

    /// As [`Self::write`], for a machine in trouble: first switches the transmitter on again, should the host have
    /// switched it off. Takes no lock.
    pub fn force_write(&self, text: &[u8]) {
        self.driver.uart().enable();
        self.write(text);
    }
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use super::*;
    use fake::Fake;

    #[test]
    fn a_new_line_becomes_carriage_return_and_new_line() {
        let fake = Fake::leak();
        Console::fake(fake).write(b"a\nb\n");
        assert_eq!(fake.text(), "a\r\nb\r\n");
    }

    #[test]
    fn a_dead_uart_costs_its_patience_once_and_little_for_each_further_character() {
        let fake = Fake::leak();
        let console = Console::fake(fake);
        fake.set_dead(true);
        console.write(&[b'x'; 1000]);
        assert_eq!(fake.text(), "");
        assert_eq!(fake.polls(), PATIENCE + 999 * PATIENCE_WHEN_STUCK);
    }

    #[test]
    fn a_uart_that_comes_back_is_used_again() {
        let fake = Fake::leak();
        let console = Console::fake(fake);
        fake.set_dead(true);
        console.write(b"lost");
        fake.set_dead(false);
        console.write(b"seen");
        assert_eq!(fake.text(), "seen");
    }

    #[test]
    fn only_force_write_switches_the_transmitter_on_again() {
        let fake = Fake::leak();
        let console = Console::fake(fake);
        assert_eq!(fake.enables(), 1);
        console.write(b"a");
        assert_eq!(fake.enables(), 1);
        console.force_write(b"b");
        assert_eq!(fake.enables(), 2);
    }

    #[test]
    fn a_console_with_an_unknown_register_layout_is_refused() {
        let device = |reg_shift, io_width| ConsoleDevice::Ns16550 { base: Pa::new(0x1000), reg_shift, io_width };
        for (reg_shift, io_width) in [(4, 1), (0, 4), (1, 4), (2, 2), (2, 8), (2, 0), (255, 255)] {
            // SAFETY: the layout is refused before any access.
            assert!(unsafe { Console::new(device(reg_shift, io_width), Va::new(0x1000)) }.is_none());
        }
        let pl011 = ConsoleDevice::Pl011 { base: Pa::new(0x1001) };
        for base in [0, 0x1001, 0x1002] {
            // SAFETY: the address is refused before any access.
            assert!(unsafe { Console::new(pl011, Va::new(base)) }.is_none());
        }
    }
}
