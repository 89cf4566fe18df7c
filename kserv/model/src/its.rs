//! GICv3 interrupt translation service: device and event of an MSI become an LPI of a vCPU.
//!
//! | offset            | register                                                                                        |
//! |-------------------|-------------------------------------------------------------------------------------------------|
//! | `0x0`             | CTLR, IIDR, TYPER                                                                               |
//! | `0x80`            | CBASER, CWRITER, CREADR: the queue of commands in the VM's memory                               |
//! | `0x100`           | BASER0 (devices), BASER1 (collections): taken, but all translations are here                    |
//! | `0xffe8`          | PIDR2                                                                                           |
//! | `0x1_0040`        | TRANSLATER: where devices write                                                                 |
//!
//! The VM's memory is the caller's to read: [`Its::next`] says what is wanted, a command or an LPI's configuration byte, and [`Its::feed`] takes it, until nothing
//! is wanted. There is room for [`LPIS`] translations and [`COLLECTIONS`] collections; commands for more are ignored, as are those that make no sense.
//! Translations live as long as the VM: they are not written into its tables. Source: IHI 0069H §5.3 (commands), §12.19 (registers).
#![forbid(unsafe_code)]

use crate::irq::{Engine, Lpi};
use crate::mmio::Width;

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
/// CWRITER, CREADR: offset.
const OFFSET: u64 = 0xf_ffe0;

mod command {
    pub const MOVI: u64 = 0x01;
    pub const INT: u64 = 0x03;
    pub const CLEAR: u64 = 0x04;
    pub const MAPD: u64 = 0x08;
    pub const MAPC: u64 = 0x09;
    pub const MAPTI: u64 = 0x0a;
    pub const MAPI: u64 = 0x0b;
    pub const INV: u64 = 0x0c;
    pub const INVALL: u64 = 0x0d;
    pub const DISCARD: u64 = 0x0f;
}

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

/// What is read next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// The next command, if there is one.
    Command,
    /// Configuration of the LPI at this place; then, for INVALL, of those behind it.
    Config { place: usize, all: bool },
}

/// The service.
#[derive(Clone, Debug)]
pub struct Its {
    enabled: bool,
    cbaser: u64,
    cwriter: u64,
    creadr: u64,
    baser: [u64; 2],
    /// vCPU of each collection, plus 1; 0: not mapped.
    collections: [u8; COLLECTIONS],
    entries: [Entry; LPIS],
    work: Work,
}

/// What else the service works on.
pub struct Around<'a, const V: usize, const S: usize> {
    /// The interrupts.
    pub irqs: &'a mut Engine<V, S>,
    /// vCPUs whose redistributor takes LPIs (GICR_CTLR.EnableLPIs), one bit each.
    pub enabled: u32,
    /// GICR_PROPBASER: where the configuration of LPIs is.
    pub table: u64,
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
            entries: [Entry::FREE; LPIS],
            work: Work::Command,
        }
    }

    /// Everything is forgotten.
    pub fn reset<const V: usize, const S: usize>(&mut self, around: &mut Around<'_, V, S>) {
        (0..LPIS).for_each(|place| self.forget(place, around));
        (self.enabled, self.cbaser, self.cwriter, self.creadr) = (false, 0, 0, 0);
        (self.baser, self.collections, self.work) = (BASER, [0; COLLECTIONS], Work::Command);
    }

    // ---- registers ------------------------------------------------------------------------------------------------------

    /// A load.
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let value = match offset & !7 {
            0x000 => u64::from(self.enabled) | QUIESCENT | IIDR << 32,
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
    pub fn write(&mut self, offset: u64, width: Width, value: u64) {
        let shift = offset % 8 * 8;
        let (mask, value) = match width {
            Width::Double if shift == 0 => (u64::MAX, value),
            Width::Word if offset.is_multiple_of(4) => (Width::Word.mask() << shift, value << shift),
            _ => return,
        };
        let merge = |old: u64| old & !mask | value & mask;
        match offset & !7 {
            0x000 if mask & ENABLED != 0 => self.enabled = value & ENABLED != 0,
            // Only while it is off: the queue is not looked at then.
            0x080 if !self.enabled => (self.cbaser, self.creadr) = (merge(self.cbaser), 0),
            0x088 => self.cwriter = merge(self.cwriter) & OFFSET,
            0x100 if !self.enabled => self.baser[0] = merge(self.baser[0]) & !BASER_FIXED | BASER[0],
            0x108 if !self.enabled => self.baser[1] = merge(self.baser[1]) & !BASER_FIXED | BASER[1],
            _ => {}
        }
    }

    // ---- the queue ------------------------------------------------------------------------------------------------------

    const fn queue_size(&self) -> u64 {
        ((self.cbaser & 0xff) + 1) * 4096
    }

    /// The VM's memory that is wanted: address and bytes, at most [`COMMAND`]. `table`: GICR_PROPBASER.
    pub const fn next(&self, table: u64) -> Option<(u64, usize)> {
        match self.work {
            Work::Config { place, .. } => {
                Some(((table & ADDRESS).saturating_add(self.entries[place].lpi.saturating_sub(FIRST_LPI) as u64), 1))
            }
            Work::Command if !self.enabled || self.cbaser & VALID == 0 || self.cwriter >= self.queue_size() => None,
            Work::Command if self.creadr == self.cwriter => None,
            Work::Command => Some(((self.cbaser & ADDRESS) + self.creadr, COMMAND)),
        }
    }

    /// What stands there; `None`: the VM has no memory there, and the command is passed over.
    pub fn feed<const V: usize, const S: usize>(
        &mut self,
        bytes: Option<&[u8; COMMAND]>,
        around: &mut Around<'_, V, S>,
    ) {
        if self.next(around.table).is_none() {
            return;
        }
        match self.work {
            Work::Config { place, all } => {
                if let Some(bytes) = bytes {
                    self.entries[place].config = bytes[0];
                }
                self.apply(place, around);
                self.work = if all { self.config_from(place + 1) } else { Work::Command };
            }
            Work::Command => {
                // The VM may have made its queue smaller.
                self.creadr =
                    if self.creadr + COMMAND as u64 >= self.queue_size() { 0 } else { self.creadr + COMMAND as u64 };
                if let Some(bytes) = bytes {
                    let word = |n: usize| {
                        let mut word = [0; 8];
                        word.iter_mut().zip(&bytes[8 * n..]).for_each(|(to, from)| *to = *from);
                        u64::from_le_bytes(word)
                    };
                    self.execute([word(0), word(1), word(2)], around);
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

    fn execute<const V: usize, const S: usize>(&mut self, words: [u64; 3], around: &mut Around<'_, V, S>) {
        let (device, event) = ((words[0] >> 32) as u32, words[1] as u32);
        let collection = words[2] as u16;
        let found = self.find(device, event);
        match (words[0] & 0xff, found) {
            (command::MAPD, _) if words[2] & VALID == 0 => {
                for place in 0..LPIS {
                    if self.entries[place].used && self.entries[place].device == device {
                        self.forget(place, around);
                    }
                }
            }
            (command::MAPC, _) => {
                let vcpu = words[2] >> 16 & 0xffff;
                let valid = words[2] & VALID != 0 && vcpu < around.irqs.vcpus() as u64;
                if let Some(place) = self.collections.get_mut(usize::from(collection)) {
                    *place = if valid { vcpu as u8 + 1 } else { 0 };
                }
                self.apply_all(around);
            }
            (command::MAPTI, _) => self.map(device, event, (words[1] >> 32) as u32, collection, around),
            (command::MAPI, _) => self.map(device, event, event, collection, around),
            (command::MOVI, Some(place)) => {
                self.entries[place].collection = collection;
                self.apply(place, around);
            }
            (command::INV, Some(place)) => self.work = Work::Config { place, all: false },
            (command::INVALL, _) => self.work = self.config_from(0),
            (command::INT, Some(place)) => around.irqs.raise_lpi(place),
            (command::CLEAR, Some(place)) => around.irqs.clear_lpi(place, false),
            (command::DISCARD, Some(place)) => self.forget(place, around),
            // MAPD of a device that has translations keeps them; SYNC has nothing to wait for, MOVALL nothing to move: what is pending follows its translation.
            _ => {}
        }
    }

    fn map<const V: usize, const S: usize>(
        &mut self,
        device: u32,
        event: u32,
        lpi: u32,
        collection: u16,
        around: &mut Around<'_, V, S>,
    ) {
        if !(FIRST_LPI..=LAST_LPI).contains(&lpi) {
            return;
        }
        if let Some(old) = self.find(device, event) {
            self.forget(old, around);
        }
        let room = LPIS.min(around.irqs.lpis());
        let Some(place) = self.entries[..room].iter().position(|entry| !entry.used) else { return };
        self.entries[place] = Entry { device, event, lpi, collection, config: 0, used: true };
        self.apply(place, around);
        self.work = Work::Config { place, all: false };
    }

    fn forget<const V: usize, const S: usize>(&mut self, place: usize, around: &mut Around<'_, V, S>) {
        if self.entries[place].used {
            self.entries[place] = Entry::FREE;
            around.irqs.clear_lpi(place, true);
        }
    }

    /// The engine's view of a translation.
    fn apply<const V: usize, const S: usize>(&self, place: usize, around: &mut Around<'_, V, S>) {
        let entry = self.entries[place];
        if !entry.used {
            return;
        }
        let vcpu = self.collections.get(usize::from(entry.collection)).and_then(|vcpu| vcpu.checked_sub(1));
        let vcpu = vcpu.map(usize::from);
        let taken = vcpu.is_some_and(|vcpu| around.enabled >> vcpu & 1 != 0);
        let lpi = Lpi { number: entry.lpi, vcpu, enabled: taken && entry.config & 1 != 0, priority: entry.config & !3 };
        around.irqs.set_lpi(place, lpi);
    }

    /// After a change of what is around: of all translations.
    pub fn apply_all<const V: usize, const S: usize>(&self, around: &mut Around<'_, V, S>) {
        (0..LPIS).for_each(|place| self.apply(place, around));
    }

    /// A device's message. Whether there is an LPI for it.
    pub fn message<const V: usize, const S: usize>(&self, device: u32, event: u32, irqs: &mut Engine<V, S>) -> bool {
        let place = self.find(device, event).filter(|_| self.enabled);
        place.into_iter().for_each(|place| irqs.raise_lpi(place));
        place.is_some()
    }
}

impl Default for Its {
    fn default() -> Self {
        Self::new()
    }
}
