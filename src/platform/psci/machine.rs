//! The real machine below the PSCI server: SMC, WFE, SEV and the board's reset hook. Target only.

use aarch64_cpu::asm::barrier::{ISHST, dsb};
use aarch64_cpu::asm::{sev, wfe};

use super::bcm2835_pm::Bcm2835Pm;
use super::firmware::{Machine, SystemEnd};
use crate::abstract_machine::cpu::smccc;

/// The board.
pub struct BoardMachine {
    pm: Option<Bcm2835Pm>,
}

impl BoardMachine {
    /// A board that can end its run by `pm`, or only by firmware.
    ///
    /// # Safety
    /// If it is used with [`super::Below::Smc`], firmware with PSCI by SMC runs at EL3 or is modelled there, and the entry
    /// point given to it is the core's.
    pub const unsafe fn new(pm: Option<Bcm2835Pm>) -> Self {
        Self { pm }
    }
}

impl Machine for BoardMachine {
    fn smc(&self, function: u32, args: [u64; 3]) -> [u64; 4] {
        // SAFETY: `new`'s caller vouches for the firmware. The server above makes only calls of its whitelist, none of
        // which takes an address but the core's own entry point, and powers a CPU down only when the trap handler has
        // said, by calling `leave`, that nothing is left to be done there.
        unsafe { smccc::smc(function, args) }
    }

    fn wait_for_event(&self) {
        wfe();
    }

    fn send_event(&self) {
        dsb(ISHST);
        sev();
    }

    fn end(&self, how: SystemEnd) {
        if let Some(pm) = &self.pm {
            pm.end(how);
        }
    }
}
