//! Power management block of the Raspberry Pi (`brcm,bcm2835-pm`): its watchdog is the board's reset, and a reset with
//! boot partition 63 is its power-off.
//!
//! There is no public manual; this is what the firmware and Linux (`bcm2835_wdt.c`) agree on, and what QEMU's model does.

use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::ReadWrite;
use tock_registers::{register_bitfields, register_structs};

use super::firmware::SystemEnd;
use crate::abstract_machine::addr::Va;

register_bitfields! [u32,
    /// Reset control.
    PM_RSTC [
        /// Must be 0x5a in every write.
        PASSWORD OFFSET(24) NUMBITS(8) [],
        /// What happens when the watchdog runs out.
        WRCFG OFFSET(4) NUMBITS(2) [
            FullReset = 2
        ]
    ],
    /// Reset status: keeps the number of the boot partition over a reset, in every second bit from bit 0 on.
    PM_RSTS [
        /// Must be 0x5a in every write.
        PASSWORD OFFSET(24) NUMBITS(8) [],
        /// Bit 0 of the partition.
        PARTITION0 OFFSET(0) NUMBITS(1) [],
        /// Bit 1 of the partition.
        PARTITION1 OFFSET(2) NUMBITS(1) [],
        /// Bit 2 of the partition.
        PARTITION2 OFFSET(4) NUMBITS(1) [],
        /// Bit 3 of the partition.
        PARTITION3 OFFSET(6) NUMBITS(1) [],
        /// Bit 4 of the partition.
        PARTITION4 OFFSET(8) NUMBITS(1) [],
        /// Bit 5 of the partition.
        PARTITION5 OFFSET(10) NUMBITS(1) []
    ],
    /// Watchdog.
    PM_WDOG [
        /// Must be 0x5a in every write.
        PASSWORD OFFSET(24) NUMBITS(8) [],
        /// Time to go, in steps of about 15 us.
        TIME OFFSET(0) NUMBITS(20) []
    ]
];

register_structs! {
    Registers {
        (0x00 => _other),
        (0x1c => pm_rstc: ReadWrite<u32, PM_RSTC::Register>),
        (0x20 => pm_rsts: ReadWrite<u32, PM_RSTS::Register>),
        (0x24 => pm_wdog: ReadWrite<u32, PM_WDOG::Register>),
        (0x28 => @END),
    }
}

const PASSWORD: u32 = 0x5a;
/// About 150 us.
const TICKS: u32 = 10;
/// Polls until the reset is taken as failed: far more than 150 us.
const PATIENCE: u32 = 1_000_000;

/// The power management block.
pub struct Bcm2835Pm {
    base: Va,
}

impl Bcm2835Pm {
    /// The block whose first register (`reg` of the device tree's node, first entry) is at `base`; `None` if `base` is 0
    /// or not a multiple of 4.
    ///
    /// # Safety
    /// At `base` are the registers of such a block, mapped as device memory for as long as this value is used.
    pub const unsafe fn new(base: Va) -> Option<Self> {
        if base.raw() != 0 && base.is_aligned(4) { Some(Self { base }) } else { None }
    }

    fn registers(&self) -> &Registers {
        // SAFETY: `new`'s caller vouches for the registers at `base`; all of them are cells that other agents may change.
        unsafe { &*(self.base.raw() as *const Registers) }
    }

    /// Ends the machine's run. Returns only if that did not work.
    pub fn end(&self, how: SystemEnd) {
        self.arm(how);
        for _ in 0..PATIENCE {
            let _ = self.registers().pm_rstc.get();
        }
    }

    fn arm(&self, how: SystemEnd) {
        let bit = u32::from(how == SystemEnd::Off);
        let partition = PM_RSTS::PARTITION0.val(bit)
            + PM_RSTS::PARTITION1.val(bit)
            + PM_RSTS::PARTITION2.val(bit)
            + PM_RSTS::PARTITION3.val(bit)
            + PM_RSTS::PARTITION4.val(bit)
            + PM_RSTS::PARTITION5.val(bit);
        let registers = self.registers();
        registers.pm_rsts.modify_no_read(registers.pm_rsts.extract(), PM_RSTS::PASSWORD.val(PASSWORD) + partition);
        registers.pm_wdog.write(PM_WDOG::PASSWORD.val(PASSWORD) + PM_WDOG::TIME.val(TICKS));
        let control = PM_RSTC::PASSWORD.val(PASSWORD) + PM_RSTC::WRCFG::FullReset;
        registers.pm_rstc.modify_no_read(registers.pm_rstc.extract(), control);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    fn registers_after(how: SystemEnd) -> [u32; 3] {
        let memory = [const { Cell::new(0u32) }; 16];
        memory[0x1c / 4].set(0x0000_0112);
        memory[0x20 / 4].set(0x0000_1fff);
        // SAFETY: the array is as large as the registers and outlives the driver.
        unsafe { Bcm2835Pm::new(Va::new(memory.as_ptr() as u64)) }.unwrap().end(how);
        [memory[0x1c / 4].get(), memory[0x20 / 4].get(), memory[0x24 / 4].get()]
    }

    #[test]
    fn a_reset_is_a_full_reset_from_partition_0_after_ten_ticks() {
        assert_eq!(registers_after(SystemEnd::Reset), [0x5a00_0122, 0x5a00_1aaa, 0x5a00_000a]);
    }

    #[test]
    fn power_off_is_a_reset_to_partition_63() {
        assert_eq!(registers_after(SystemEnd::Off), [0x5a00_0122, 0x5a00_1fff, 0x5a00_000a]);
    }
}
