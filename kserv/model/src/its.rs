//! GICv3 interrupt translation service: device and event of an MSI become an LPI of a vCPU.
//!
//! | offset            | register                                                                                        |
//! |-------------------|-------------------------------------------------------------------------------------------------|
//! | `0x0`             | CTLR, IIDR, TYPER                                                                               |
//! | `0x80`            | CBASER, CWRITER, CREADR: the queue of commands in the VM's memory                               |
//! | `0x100`           | BASER0 (devices), BASER1 (collections): the tables that module [`tables`] writes and reads       |
//! | `0xffe8`          | PIDR2                                                                                           |
//! | `0x1_0040`        | TRANSLATER: where devices write                                                                 |
//!
//! The VM's memory is the caller's to reach: [`Its::next`] says what is wanted, such as a command or an LPI's configuration byte, and [`Its::feed`] takes it, until
//! nothing is wanted. There is room for [`LPIS`] translations of as many devices and [`COLLECTIONS`] collections; commands for more are ignored, as are those that make
//! no sense. All of them are here, not in the VM's tables, but for what is saved. Source: IHI 0069H §5.3 (commands), §12.19 (registers).
#![forbid(unsafe_code)]

mod commands;
mod restore;
pub mod tables;

use crate::irq::{Engine, Lpi};
use crate::mmio::Width;
use tables::Walk;
pub use tables::{Failure, Want};

/// Most translations.
pub const LPIS: usize = 256;
/// Most collections.
pub const COLLECTIONS: usize = 32;
/// Bytes of the register frames.
pub const SIZE: u64 = 0x2_0000;
/// Where a device writes its event.
pub const TRANSLATER: u64 = 0x1_0040;
/// Bytes of a command.
pub const COMMAND: usize = 32;

const FIRST_LPI: u32 = 8192;
/// Numbers of 16 bits.
const LAST_LPI: u32 = 0xffff;
/// The revision, bits 15:12, is that of the tables: 0.
const IIDR: u64 = 0x6300_043b;
const PIDR2: u64 = 0x3b;
/// TYPER: physical LPIs; 8 bytes of table for an event; 16 bits of event and device; targets by processor number.
const TYPER: u64 = 1 | 7 << 4 | 15 << 8 | 15 << 13;
const ENABLED: u64 = 1;
const QUIESCENT: u64 = 1 << 31;
/// CBASER, PROPBASER and the like: address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const VALID: u64 = 1 << 63;
/// BASER: what is fixed, type 58:56 and entry size 52:48.
const BASER_FIXED: u64 = 7 << 56 | 0x1f << 48;
const BASER: [u64; 2] = [1 << 56 | 7 << 48, 4 << 56 | 7 << 48];
/// BASER: pages of 64 KiB, bits 9:8.
const BASER_PAGES: u64 = 0b11 << 8;
const BASER_PAGES_64K: u64 = 0b10 << 8;
/// BASER: a table of tables; not for collections.
const INDIRECT: u64 = 1 << 62;
/// Devices and events have numbers of so many bits.
const ID_BITS: u8 = 16;
/// MAPD: address of the device's translations.
const TABLE: u64 = 0x000f_ffff_ffff_ff00;
/// CWRITER, CREADR: offset.
const OFFSET: u64 = 0xf_ffe0;

/// A translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    device: u32,
    event: u32,
    lpi: u32,
    collection: u16,
    /// Configuration byte of the LPI: enable in bit 0, priority in the upper six.
    config: u8,
    used: bool,
}

impl Entry {
    const FREE: Self = Self { device: 0, event: 0, lpi: 0, collection: 0, config: 0, used: false };
}

/// A device that the VM gave a table of translations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Device {
    id: u32,
    /// Bits of its events' numbers; 0: this place is free.
    bits: u8,
    /// Where its translations are saved.
    table: u64,
}

impl Device {
    const FREE: Self = Self { id: 0, bits: 0, table: 0 };

    const fn has(&self, event: u32) -> bool {
        event < 1 << self.bits
    }
}

/// What is read next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// The next command, if there is one.
    Command,
    /// Configuration of the LPI at this place; then, for INVALL, of those behind it.
    Config { place: usize, all: bool },
    /// What the walk through the tables wants.
    Tables,
}

/// The service.
#[derive(Clone, Debug)]
pub struct Its {
    enabled: bool,
    cbaser: u64,
    cwriter: u64,
    creadr: u64,
    baser: [u64; 2],
    /// vCPU of each collection, plus 1; [`NOBODY`]; 0: there is none.
    collections: [u8; COLLECTIONS],
    devices: [Device; LPIS],
    entries: [Entry; LPIS],
    work: Work,
    walk: Walk,
    outcome: Result<(), Failure>,
}

/// A collection that translations name and no vCPU has.
const NOBODY: u8 = u8::MAX;

/// What else the service works on.
pub struct Around<'a, const V: usize, const S: usize> {
    /// The interrupts.
    pub irqs: &'a mut Engine<V, S>,
    /// vCPUs whose redistributor takes LPIs (GICR_CTLR.EnableLPIs), one bit each.
    pub enabled: u32,
    /// GICR_PROPBASER: where the configuration of LPIs is.
    pub table: u64,
    /// GICR_PENDBASER of each vCPU: where its LPIs are pending while nobody runs.
    pub pending: &'a [u64; V],
}

impl Its {
    /// After reset.
    pub const fn new() -> Self {
        Self {
            enabled: false,
            cbaser: 0,
            cwriter: 0,
            creadr: 0,
            baser: BASER,
            collections: [0; COLLECTIONS],
            devices: [Device::FREE; LPIS],
            entries: [Entry::FREE; LPIS],
            work: Work::Command,
            walk: Walk::IDLE,
            outcome: Ok(()),
        }
    }

    /// Everything is forgotten.
    pub fn reset<const V: usize, const S: usize>(&mut self, around: &mut Around<'_, V, S>) {
        self.forget_devices(around);
        (self.enabled, self.cbaser, self.cwriter, self.creadr) = (false, 0, 0, 0);
        (self.baser, self.collections) = (BASER, [0; COLLECTIONS]);
        (self.work, self.walk) = (Work::Command, Walk::IDLE);
    }

    fn forget_devices<const V: usize, const S: usize>(&mut self, around: &mut Around<'_, V, S>) {
        for place in (0..LPIS).filter(|place| self.entries[*place].used) {
            around.irqs.clear_lpi(place, true);
        }
        self.entries.fill(Entry::FREE);
        self.devices = [Device::FREE; LPIS];
    }

    fn forget_collections<const V: usize, const S: usize>(&mut self, around: &mut Around<'_, V, S>) {
        self.collections = [0; COLLECTIONS];
        self.apply_all(around);
    }

    // ---- registers ------------------------------------------------------------------------------------------------------

    /// A load.
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let value = match offset & !7 {
            0x000 => {
                let quiescent = if self.creadr == self.cwriter { QUIESCENT } else { 0 };
                u64::from(self.enabled) | quiescent | IIDR << 32
            }
            0x008 => TYPER,
            0x080 => self.cbaser,
            0x088 => self.cwriter,
            0x090 => self.creadr,
            0x100 => self.baser[0],
            0x108 => self.baser[1],
            0xffe8 => PIDR2,
            _ => 0,
        };
        match width {
            Width::Double if offset.is_multiple_of(8) => value,
            Width::Word if offset.is_multiple_of(4) => value >> (offset % 8 * 8) & Width::Word.mask(),
            _ => 0,
        }
    }

    /// A store. The queue may have commands then.
    pub fn write<const V: usize, const S: usize>(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
        around: &mut Around<'_, V, S>,
    ) {
        let shift = offset % 8 * 8;
        let (mask, value) = match width {
            Width::Double if shift == 0 => (u64::MAX, value),
            Width::Word if offset.is_multiple_of(4) => (Width::Word.mask() << shift, value << shift),
            _ => return,
        };
        let merge = |old: u64| old & !mask | value & mask;
        match offset & !7 {
            0x000 if mask & ENABLED != 0 => self.enabled = value & ENABLED != 0 && (self.enabled || self.is_ready()),
            // These only while it is off: the queue is not looked at then.
            0x080 if !self.enabled => (self.cbaser, self.creadr, self.cwriter) = (merge(self.cbaser), 0, 0),
            0x088 => {
                let offset = merge(self.cwriter) & OFFSET;
                self.cwriter = if offset < self.queue_size() { offset } else { self.cwriter };
            }
            0x100 if !self.enabled => {
                self.baser[0] = merge(self.baser[0]) & !(BASER_FIXED | BASER_PAGES) | BASER[0] | BASER_PAGES_64K;
                if self.baser[0] & VALID == 0 {
                    self.forget_devices(around);
                }
            }
            0x108 if !self.enabled => {
                let fixed = BASER_FIXED | BASER_PAGES | INDIRECT;
                self.baser[1] = merge(self.baser[1]) & !fixed | BASER[1] | BASER_PAGES_64K;
                if self.baser[1] & VALID == 0 {
                    self.forget_collections(around);
                }
            }
            _ => {}
        }
    }

    /// It has its queue and its tables, as it must have to be enabled.
    const fn is_ready(&self) -> bool {
        self.cbaser & self.baser[0] & self.baser[1] & VALID != 0
    }

    /// CREADR as user space restores it. Whether it may, and it lies in the queue.
    pub const fn restore_creadr(&mut self, value: u64) -> Result<(), Failure> {
        let offset = value & OFFSET;
        if self.enabled {
            return Err(Failure::Busy);
        }
        if offset >= self.queue_size() {
            return Err(Failure::Invalid);
        }
        self.creadr = offset;
        Ok(())
    }

    /// IIDR as user space restores it: whether there are tables of that revision.
    pub const fn has_revision_of(value: u64) -> bool {
        value >> 12 & 0xf == IIDR >> 12 & 0xf
    }

    // ---- the queue ------------------------------------------------------------------------------------------------------

    const fn queue_size(&self) -> u64 {
        ((self.cbaser & 0xff) + 1) * 4096
    }

    /// What is wanted of the VM's memory. `table`: GICR_PROPBASER.
    pub const fn next(&self, table: u64) -> Option<Want> {
        match self.work {
            Work::Tables => self.walk.want(),
            Work::Config { place, .. } => {
                Some(Want::Read { address: config_address(table, self.entries[place].lpi), length: 1 })
            }
            Work::Command if !self.enabled || self.creadr == self.cwriter => None,
            Work::Command => Some(Want::Read { address: (self.cbaser & ADDRESS) + self.creadr, length: COMMAND }),
        }
    }

    /// Whether what is wanted, if anything is, is a command: nothing is half done.
    pub fn is_between_commands(&self) -> bool {
        self.work == Work::Command
    }

    /// It is done, with this in front of a read's bytes; `None`: the VM has no memory there. A command is passed over then.
    pub fn feed<const V: usize, const S: usize>(
        &mut self,
        bytes: Option<&[u8; COMMAND]>,
        around: &mut Around<'_, V, S>,
    ) {
        if self.next(around.table).is_none() {
            return;
        }
        match self.work {
            Work::Tables => self.walk_on(bytes, around),
            Work::Config { place, all } => {
                if let Some(bytes) = bytes {
                    self.configure(self.entries[place].lpi, bytes[0], around);
                }
                self.work = if all { self.config_from(place + 1) } else { Work::Command };
            }
            Work::Command => {
                let behind = self.creadr + COMMAND as u64;
                self.creadr = if behind >= self.queue_size() { 0 } else { behind };
                if let Some(bytes) = bytes {
                    self.execute([word(bytes, 0), word(bytes, 1), word(bytes, 2)], around);
                }
            }
        }
    }

    /// Of all LPIs from this place on.
    fn config_from(&self, first: usize) -> Work {
        let place = (first..LPIS).find(|place| self.entries[*place].used);
        place.map_or(Work::Command, |place| Work::Config { place, all: true })
    }

    fn find(&self, device: u32, event: u32) -> Option<usize> {
        self.entries.iter().position(|entry| entry.used && (entry.device, entry.event) == (device, event))
    }

    /// The places of an LPI: several events may lead to one.
    fn places_of(&self, lpi: u32) -> impl Iterator<Item = usize> {
        (0..LPIS).filter(move |place| self.entries[*place].used && self.entries[*place].lpi == lpi)
    }

    /// An LPI's configuration.
    fn configure<const V: usize, const S: usize>(&mut self, lpi: u32, config: u8, around: &mut Around<'_, V, S>) {
        for place in 0..LPIS {
            if self.entries[place].used && self.entries[place].lpi == lpi {
                self.entries[place].config = config;
                self.apply(place, around);
            }
        }
    }

    /// A translation's LPI becomes pending. It is so at one place of its places only: two list registers that call their interrupts the same are UNPREDICTABLE (IHI 0069H,
    /// ICH_LR<n>_EL2). What a vCPU has stays there.
    fn raise<const V: usize, const S: usize>(&self, place: usize, around: &mut Around<'_, V, S>) {
        let lpi = self.entries[place].lpi;
        let mut held = None;
        for other in self.places_of(lpi) {
            if held.is_none() && around.irqs.is_lpi_held(other) {
                held = Some(other);
            } else if other != place {
                around.irqs.clear_lpi(other, false);
            }
        }
        let at = held.unwrap_or(place);
        if at != place {
            around.irqs.clear_lpi(place, false);
        }
        around.irqs.raise_lpi(at);
    }

    /// Who gets the interrupts of a collection.
    fn vcpu_of(&self, collection: u16) -> Option<usize> {
        let vcpu = self.collections.get(usize::from(collection)).filter(|vcpu| **vcpu != NOBODY)?;
        vcpu.checked_sub(1).map(usize::from)
    }

    /// The engine's view of a translation.
    fn apply<const V: usize, const S: usize>(&self, place: usize, around: &mut Around<'_, V, S>) {
        let entry = self.entries[place];
        if !entry.used {
            return;
        }
        let vcpu = self.vcpu_of(entry.collection);
        let taken = vcpu.is_some_and(|vcpu| around.enabled >> vcpu & 1 != 0);
        let lpi = Lpi { number: entry.lpi, vcpu, enabled: taken && entry.config & 1 != 0, priority: entry.config & !3 };
        around.irqs.set_lpi(place, lpi);
    }

    /// After a change of what is around: of all translations.
    pub fn apply_all<const V: usize, const S: usize>(&self, around: &mut Around<'_, V, S>) {
        (0..LPIS).for_each(|place| self.apply(place, around));
    }

    /// A device's message. Whether there is an LPI for it, and a vCPU for that.
    ///
    /// # Errors
    /// [`Failure::Busy`] while the service is off, or the vCPU's redistributor takes no LPIs: the message is lost.
    pub fn message<const V: usize, const S: usize>(
        &self,
        device: u32,
        event: u32,
        around: &mut Around<'_, V, S>,
    ) -> Result<bool, Failure> {
        if !self.enabled {
            return Err(Failure::Busy);
        }
        let Some(place) = self.find(device, event) else { return Ok(false) };
        let Some(vcpu) = self.vcpu_of(self.entries[place].collection) else { return Ok(false) };
        if around.enabled >> vcpu & 1 == 0 {
            return Err(Failure::Busy);
        }
        self.raise(place, around);
        Ok(true)
    }
}

/// A little-endian word of bytes that were read.
fn word(bytes: &[u8; COMMAND], n: usize) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes.iter().skip(8 * n)).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}

/// Where an LPI's configuration is.
const fn config_address(table: u64, lpi: u32) -> u64 {
    (table & ADDRESS) + lpi.saturating_sub(FIRST_LPI) as u64
}

impl Default for Its {
    fn default() -> Self {
        Self::new()
    }
}
