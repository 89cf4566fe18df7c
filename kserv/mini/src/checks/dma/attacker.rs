//! The device and what this host does with it: every access of its goes through the device's page, and is a transfer of QEMU's edu (0.1 s).
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::cell::Cell;

use super::super::ensure;
use crate::arch::edu::{Edu, PAGE_SIZE};
use crate::arch::entry::{try_read, try_write};
use crate::arch::{cpu, memory};
use crate::guest::{Failure, at};
use crate::machine::Machine;
use crate::pages::{self, PAGE};
use crate::{calls, scheduler};

/// The device's page is one of memory.
const _: () = assert!(PAGE_SIZE == PAGE);

/// A transfer that takes longer, in seconds, never ends.
const PATIENCE: u64 = 60;
/// In the upper half of each word that this host puts into a page of its own, for the device to find.
const OWN: u64 = 0x600d_600d << 32;
/// The same for what the device writes.
const WRITTEN: u64 = 0xbad0_bad0 << 32;
/// What stands in the device's page before it reads something that is not this host's.
const UNTOUCHED: u64 = 0x0c0f_fee0_0c0f_fee0;

/// The core's count of accesses that SMMUs refused (its `Event::DeviceAccessDenied`).
const DEVICE_ACCESS_DENIED: u64 = 21;

/// The device, and a page of this host's that its page is filled from and emptied to.
pub struct Attacker {
    edu: Edu,
    page: u64,
    transfers: Cell<u64>,
    attacks: Cell<u64>,
}

impl Attacker {
    /// Switches the device on.
    ///
    /// # Errors
    /// There is none.
    pub fn new(machine: &Machine) -> Result<Self, Failure> {
        let edu = machine.pci.as_ref().and_then(|bridge| Edu::start(bridge, &machine.ram));
        let edu = edu.ok_or_else(|| Failure::Text("it needs QEMU's device edu on a PCI bus: -device edu".into()))?;
        Ok(Self { edu, page: super::super::page()?, transfers: Cell::new(0), attacks: Cell::new(0) })
    }

    /// Gives this host's page back: transfers, and those of them at what is not this host's.
    pub fn end(self) -> (u64, u64) {
        pages::give(self.page, 1);
        (self.transfers.get(), self.attacks.get())
    }

    /// VMs run meanwhile.
    fn finish(&self) -> Result<(), Failure> {
        let until = cpu::counter() + cpu::frequency() * PATIENCE;
        scheduler::run(|| !self.edu.is_busy() || cpu::counter() >= until);
        self.transfers.set(self.transfers.get() + 1);
        ensure(!self.edu.is_busy(), "the device does not come to the end of a transfer")
    }

    /// Memory to the device's page.
    fn load(&self, pa: u64, size: u64) -> Result<(), Failure> {
        self.edu.read(pa, size);
        self.finish()
    }

    /// The device's page to memory.
    fn store(&self, pa: u64, size: u64) -> Result<(), Failure> {
        self.edu.write(pa, size);
        self.finish()
    }

    /// Fills the device's page with a word.
    fn prepare(&self, word: u64) -> Result<(), Failure> {
        fill(self.page, word)?;
        self.load(self.page, PAGE)
    }

    /// What the device finds at `pa`. What it does not get is [`is_nothing`].
    ///
    /// # Errors
    /// The device hangs.
    pub fn read(&self, pa: u64, size: u64) -> Result<Vec<u64>, Failure> {
        self.prepare(UNTOUCHED)?;
        self.load(pa, size)?;
        fill(self.page, 0)?;
        self.store(self.page, PAGE)?;
        words(self.page, size)
    }

    /// The device writes `word`, over and over, to `pa`.
    ///
    /// # Errors
    /// The device hangs.
    pub fn write(&self, pa: u64, size: u64, word: u64) -> Result<(), Failure> {
        self.prepare(word)?;
        self.store(pa, size)
    }

    /// The device copies one page of this host's to another.
    ///
    /// # Errors
    /// Something else is there afterwards.
    pub fn copy(&self, from: u64, to: u64) -> Result<(), Failure> {
        fill(from, OWN | from >> 12)?;
        fill(to, 0)?;
        self.load(from, PAGE)?;
        self.store(to, PAGE)?;
        all_are(&words(to, PAGE)?, OWN | from >> 12, &alloc::format!("copied from {from:#x} to {to:#x}"))
    }

    /// The device reads and writes a page of this host's.
    ///
    /// # Errors
    /// It does not.
    pub fn reaches(&self, page: u64, what: &str) -> Result<(), Failure> {
        self.copy(page, self.page).map_err(|failure| Failure::Text(alloc::format!("{what}: {failure}")))?;
        self.write(page, PAGE, WRITTEN | page >> 12)?;
        all_are(&words(page, PAGE)?, WRITTEN | page >> 12, &alloc::format!("{what}, written to {page:#x}"))
    }

    /// The device reads nothing at `pa`, which is not this host's; then it writes there, of which others must find nothing.
    ///
    /// # Errors
    /// It has read something, or the core does not know of it.
    pub fn attacks(&self, pa: u64, size: u64, what: &str) -> Result<(), Failure> {
        self.refused(what, || {
            let found = self.read(pa, size)?;
            let Some(n) = found.iter().position(|word| !is_nothing(*word)) else { return Ok(()) };
            let (at, word) = (pa + 8 * n as u64, found[n]);
            Err(Failure::Text(alloc::format!("{what}: the device reads {word:#x} at {at:#x}")))
        })?;
        self.refused(what, || self.write(pa, size, WRITTEN))
    }

    /// What the device does here is an attack: by the core's count something of it was refused.
    ///
    /// # Errors
    /// Nothing was.
    pub fn refused<T>(&self, what: &str, attack: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let count = || at("CoreStatistics", calls::core_statistics(DEVICE_ACCESS_DENIED));
        let before = count()?;
        let found = attack()?;
        self.attacks.set(self.attacks.get() + 1);
        if count()? == before {
            return Err(Failure::Text(alloc::format!(
                "{what}: the core does not know that the device was refused anything"
            )));
        }
        Ok(found)
    }
}

/// Whether a word in the device's page tells nothing of what it was to read.
pub const fn is_nothing(word: u64) -> bool {
    word == UNTOUCHED || word == 0
}

/// Fills a page of this host's, where devices see it.
///
/// # Errors
/// It is not this host's.
pub fn fill(page: u64, word: u64) -> Result<(), Failure> {
    let refused = (page..page + PAGE).step_by(8).any(|at| try_write(at, word).is_err());
    memory::clean(page, PAGE);
    ensure(!refused, "this host cannot write a page of its own")
}

/// The words at `pa` after a device's transfer.
///
/// # Errors
/// They are not this host's to read.
pub fn words(pa: u64, size: u64) -> Result<Vec<u64>, Failure> {
    memory::clean(pa, size);
    let words: Result<Vec<u64>, _> = (pa..pa + size).step_by(8).map(try_read).collect();
    words.map_err(|abort| Failure::Text(alloc::format!("{pa:#x} cannot be read: ESR {:#x}", abort.esr)))
}

/// Each word is this one.
///
/// # Errors
/// The first that is not.
pub fn all_are(found: &[u64], word: u64, what: &str) -> Result<(), Failure> {
    match found.iter().position(|other| *other != word) {
        Some(n) => Err(Failure::Text(alloc::format!("{what}: word {n} is {:#x}, not {word:#x}", found[n]))),
        None => Ok(()),
    }
}
