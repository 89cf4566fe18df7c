//! The service's tables in the VM's memory: written when user space saves, read when it restores. KVM's layout of revision 0.
//!
//! | table                 | where                                | entry, 8 bytes, little-endian                                                           |
//! |-----------------------|--------------------------------------|-----------------------------------------------------------------------------------------|
//! | devices               | BASER0, by number; one or two levels | 63 valid, 62:49 how far the next is (0: none), 48:5 where its events are, 4:0 bits of an event's number, less 1 |
//! | a device's events     | as MAPD said, by number              | 63:48 how far the next is (0: none), 47:16 LPI (0: no entry), 15:0 collection            |
//! | collections           | BASER1, one behind the other         | 63 valid, 47:16 vCPU (all ones: nobody's), 15:0 number                                   |
//! | what is pending       | GICR_PENDBASER of the vCPU           | one bit for an LPI                                                                       |
//!
//! A walk goes step by step, and tells by [`Want`] what it reads and writes: at most once through 2^16 devices and the 2^16 events of each of those [`LPIS`] devices
//! that there is room for, four entries at a time. What stands in the tables is the VM's: nonsense ends the walk with an error, and the service is empty then.
//! What a command takes away is erased at once: between two entries nothing older is left. Source: Linux, Documentation/virt/kvm/devices/arm-vgic-its.rst.
#![forbid(unsafe_code)]

use super::{Around, COLLECTIONS, COMMAND, Device, Entry, ID_BITS, INDIRECT, Its, LPIS, NOBODY, VALID, Work, word};

/// Bytes of an entry.
pub(super) const ENTRY: u64 = 8;
/// Bytes of a page of a table.
const PAGE: u64 = 0x1_0000;
/// Entries in one.
pub(super) const ENTRIES: u64 = PAGE / ENTRY;
/// A table of the second level.
const SECOND: u64 = 0x000f_ffff_ffff_0000;
/// Farthest next device, and event.
pub(super) const DEVICE_STEP: u32 = 0x3fff;
const EVENT_STEP: u32 = 0xffff;

/// What of the VM's memory is to be read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// So many bytes, at most [`COMMAND`].
    Read {
        /// Where.
        address: u64,
        /// How many.
        length: usize,
    },
    /// The first bytes of these.
    Write {
        /// Where.
        address: u64,
        /// How many.
        length: usize,
        /// What.
        bytes: [u8; 8],
    },
}

/// Why tables are not saved or restored, or a register not restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The service is on.
    Busy,
    /// The VM has no memory where its registers or tables say.
    Fault,
    /// They make no sense.
    Invalid,
    /// There is something already.
    Exists,
    /// There is more than room for.
    NoRoom,
    /// Nobody waited for the end.
    Interrupted,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// KVM_DEV_ARM_ITS_SAVE_TABLES.
    Save,
    /// KVM_DEV_ARM_ITS_RESTORE_TABLES.
    Restore,
    /// KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.
    SavePending,
    /// A device is gone.
    EraseDevice {
        /// Its number.
        device: u32,
    },
    /// A translation is gone.
    EraseEvent {
        /// Its device.
        device: u32,
        /// Its event.
        event: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    SaveDevice,
    SaveEvent,
    SaveCollection,
    SavePending,
    LoadCollection,
    LoadDevice,
    LoadEvent,
    LoadConfig,
    LoadPending,
    EraseDevice,
    End,
}

/// [`COMMAND`] bytes of the VM's memory, aligned.
type Line = Option<(u64, [u8; COMMAND])>;

/// How far a walk is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    pub(super) stage: Stage,
    /// The next device's number, the place of the one whose events are walked through, the next event's number.
    pub(super) id: u32,
    pub(super) device: usize,
    pub(super) event: u32,
    /// The next collection, or a translation's place.
    pub(super) place: usize,
    /// Where the device's entry is; of collections: how far in their table.
    pub(super) at: u64,
    /// What was read last: a step looks at no more than two.
    lines: [Line; 2],
    want: Option<Want>,
    /// A command made it, and nobody asks what came of it.
    erases: bool,
}

impl Walk {
    pub(super) const IDLE: Self = Self::new(Stage::End);

    const fn new(stage: Stage) -> Self {
        Self { stage, id: 0, device: 0, event: 0, place: 0, at: 0, lines: [None; 2], want: None, erases: false }
    }

    pub(super) const fn want(&self) -> Option<Want> {
        self.want
    }

    fn line(&self, address: u64) -> Result<&[u8; COMMAND], Stop> {
        let start = address & !(COMMAND as u64 - 1);
        let line = self.lines.iter().flatten().find(|line| line.0 == start);
        line.map(|line| &line.1).ok_or(Stop::Want(Want::Read { address: start, length: COMMAND }))
    }

    pub(super) fn word(&self, address: u64) -> Result<u64, Stop> {
        Ok(word(self.line(address)?, (address % COMMAND as u64 / ENTRY) as usize))
    }

    pub(super) fn byte(&self, address: u64) -> Result<u8, Stop> {
        Ok(self.line(address)?[(address % COMMAND as u64) as usize])
    }

    /// What was wanted is done.
    fn take(&mut self, want: Want, bytes: &[u8; COMMAND]) {
        match want {
            Want::Read { address, .. } => self.lines = [Some((address, *bytes)), self.lines[0]],
            Want::Write { address, .. } => {
                let start = address & !(COMMAND as u64 - 1);
                self.lines
                    .iter_mut()
                    .filter(|line| line.is_some_and(|line| line.0 == start))
                    .for_each(|line| *line = None);
            }
        }
    }
}

/// Why a step is the last for now.
pub(super) enum Stop {
    Want(Want),
    Failed(Failure),
    Done,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

const fn write(address: u64, value: u64) -> Result<(), Stop> {
    Err(Stop::Want(Want::Write { address, length: ENTRY as usize, bytes: value.to_le_bytes() }))
}

/// BASER with pages of 64 KiB: bits 15:12 are the address's upper ones.
pub(super) const fn base(baser: u64) -> u64 {
    baser & 0xffff_ffff_0000 | (baser >> 12 & 0xf) << 48
}

pub(super) const fn entries(baser: u64) -> u64 {
    ((baser & 0xff) + 1) * ENTRIES
}

impl Its {
    /// Begins a walk; [`Its::next`] and [`Its::feed`] do it, [`Its::outcome`] says what came of it.
    pub fn begin<const V: usize, const S: usize>(&mut self, task: Task, around: &mut Around<'_, V, S>) {
        let mut walk = Walk::new(match task {
            Task::Save => Stage::SaveDevice,
            Task::Restore => Stage::LoadCollection,
            Task::SavePending => Stage::SavePending,
            Task::EraseDevice { .. } => Stage::EraseDevice,
            Task::EraseEvent { .. } => Stage::End,
        });
        match task {
            Task::EraseDevice { device } => (walk.id, walk.erases) = (device, true),
            Task::EraseEvent { device, event } => {
                let Some(place) = self.device(device) else { return };
                let address = self.devices[place].table + u64::from(event) * ENTRY;
                walk.want = Some(Want::Write { address, length: ENTRY as usize, bytes: [0; 8] });
                walk.erases = true;
            }
            _ => self.outcome = Ok(()),
        }
        (self.walk, self.work) = (walk, Work::Tables);
        if self.walk.want.is_none() {
            self.go_on(around);
        }
    }

    /// What came of the last walk that no command made. One that has not come to its end is given up.
    ///
    /// # Errors
    /// As [`Failure`] says.
    pub fn outcome<const V: usize, const S: usize>(&mut self, around: &mut Around<'_, V, S>) -> Result<(), Failure> {
        if self.work == Work::Tables {
            self.end(Err(Failure::Interrupted), around);
        }
        core::mem::replace(&mut self.outcome, Ok(()))
    }

    /// What was wanted is done, or could not be.
    pub(super) fn walk_on<const V: usize, const S: usize>(
        &mut self,
        bytes: Option<&[u8; COMMAND]>,
        around: &mut Around<'_, V, S>,
    ) {
        match (self.walk.want.take(), bytes) {
            (Some(want), Some(bytes)) => {
                self.walk.take(want, bytes);
                self.go_on(around);
            }
            _ => self.end(Err(Failure::Fault), around),
        }
    }

    fn go_on<const V: usize, const S: usize>(&mut self, around: &mut Around<'_, V, S>) {
        loop {
            match self.step(around) {
                Ok(()) => {}
                Err(Stop::Want(want)) => {
                    self.walk.want = Some(want);
                    return;
                }
                Err(Stop::Failed(failure)) => return self.end(Err(failure), around),
                Err(Stop::Done) => return self.end(Ok(()), around),
            }
        }
    }

    fn end<const V: usize, const S: usize>(&mut self, outcome: Result<(), Failure>, around: &mut Around<'_, V, S>) {
        use Stage::{LoadCollection, LoadConfig, LoadDevice, LoadEvent, LoadPending};
        let loads = matches!(self.walk.stage, LoadCollection | LoadDevice | LoadEvent | LoadConfig | LoadPending);
        if loads && outcome.is_err() {
            self.forget_devices(around);
            self.forget_collections(around);
        }
        if !self.walk.erases {
            self.outcome = outcome;
        }
        (self.work, self.walk) = (Work::Command, Walk::IDLE);
    }

    /// One step. Between two wants there are few: no more than there are entries in two lines, or places here.
    fn step<const V: usize, const S: usize>(&mut self, around: &mut Around<'_, V, S>) -> Result<(), Stop> {
        match self.walk.stage {
            Stage::SaveDevice => self.save_device(),
            Stage::SaveEvent => self.save_event(),
            Stage::SaveCollection => self.save_collection(),
            Stage::SavePending => self.save_pending(around),
            Stage::LoadCollection => self.load_collection(around.irqs.vcpus()),
            Stage::LoadDevice => self.load_device(),
            Stage::LoadEvent => self.load_event(around),
            Stage::LoadConfig => self.load_config(around),
            Stage::LoadPending => self.load_pending(around),
            Stage::EraseDevice => {
                let entry = self.device_entry(self.walk.id)?;
                self.walk.stage = Stage::End;
                entry.map_or(Ok(()), |entry| write(entry, 0))
            }
            Stage::End => Err(Stop::Done),
        }
    }

    /// Devices have numbers below this: those that their table has room for.
    pub(super) fn device_room(&self) -> u32 {
        let first = entries(self.baser[0]);
        let room = if self.baser[0] & INDIRECT != 0 { first * ENTRIES } else { first };
        room.min(1 << ID_BITS) as u32
    }

    /// Where the device's entry is; `None`: the VM has no table for it.
    pub(super) fn device_entry(&self, id: u32) -> Result<Option<u64>, Stop> {
        let (base, id) = (base(self.baser[0]), u64::from(id));
        if self.baser[0] & INDIRECT == 0 {
            return Ok(Some(base + id * ENTRY));
        }
        let first = self.walk.word(base + id / ENTRIES * ENTRY)?;
        Ok((first & VALID != 0).then_some((first & SECOND) + id % ENTRIES * ENTRY))
    }

    // ---- saving ---------------------------------------------------------------------------------------------------------

    /// The device with the lowest number from `id` on.
    fn device_from(&self, id: u32) -> Option<usize> {
        let there = self.devices.iter().enumerate().filter(|(_, device)| device.bits != 0 && device.id >= id);
        there.min_by_key(|(_, device)| device.id).map(|(place, _)| place)
    }

    /// Its translation with the lowest event from `event` on.
    fn event_from(&self, device: u32, event: u32) -> Option<usize> {
        let of = |entry: &Entry| entry.used && entry.device == device && entry.event >= event;
        let there = self.entries.iter().enumerate().filter(|(_, entry)| of(entry));
        there.min_by_key(|(_, entry)| entry.event).map(|(place, _)| place)
    }

    fn save_device(&mut self) -> Result<(), Stop> {
        let Some(place) = self.device_from(self.walk.id).filter(|_| self.baser[0] & VALID != 0) else {
            (self.walk.stage, self.walk.at) = (Stage::SaveCollection, 0);
            return Ok(());
        };
        let id = self.devices[place].id;
        let entry = if id < self.device_room() { self.device_entry(id)? } else { None };
        self.walk.at = entry.ok_or(Failure::Invalid)?;
        (self.walk.device, self.walk.event, self.walk.stage) = (place, 0, Stage::SaveEvent);
        Ok(())
    }

    fn save_event(&mut self) -> Result<(), Stop> {
        let Device { id, bits, table } = self.devices[self.walk.device];
        if let Some(place) = self.event_from(id, self.walk.event) {
            let entry = self.entries[place];
            let next = self.event_from(id, entry.event + 1);
            let step = next.map_or(0, |next| (self.entries[next].event - entry.event).min(EVENT_STEP));
            self.walk.event = entry.event + 1;
            let value = u64::from(step) << 48 | u64::from(entry.lpi) << 16 | u64::from(entry.collection);
            return write(table + u64::from(entry.event) * ENTRY, value);
        }
        let step = self.device_from(id + 1).map_or(0, |next| (self.devices[next].id - id).min(DEVICE_STEP));
        (self.walk.id, self.walk.stage) = (id + 1, Stage::SaveDevice);
        write(self.walk.at, VALID | u64::from(step) << 49 | table >> 8 << 5 | u64::from(bits - 1))
    }

    fn save_collection(&mut self) -> Result<(), Stop> {
        if self.baser[1] & VALID == 0 {
            return Err(Stop::Done);
        }
        let number = (self.walk.place..COLLECTIONS).find(|number| self.collections[*number] != 0);
        let address = base(self.baser[1]) + self.walk.at;
        let Some(number) = number else {
            // There is always room for the entry that ends them.
            self.walk.stage = Stage::End;
            return write(address, 0);
        };
        let vcpu = match self.collections[number] {
            NOBODY => u32::MAX,
            vcpu => u32::from(vcpu) - 1,
        };
        (self.walk.place, self.walk.at) = (number + 1, self.walk.at + ENTRY);
        write(address, VALID | u64::from(vcpu) << 16 | number as u64)
    }

    /// The vCPU that gets a translation's interrupt, and where that is noted as pending: byte and bit.
    pub(super) fn pending_bit<const V: usize, const S: usize>(
        &self,
        place: usize,
        around: &Around<'_, V, S>,
    ) -> Option<(u64, u8)> {
        let entry = self.entries[place];
        let vcpu = self.vcpu_of(entry.collection).filter(|_| entry.used)?;
        Some(((around.pending.get(vcpu)? & SECOND) + u64::from(entry.lpi / 8), 1 << (entry.lpi % 8)))
    }

    fn save_pending<const V: usize, const S: usize>(&mut self, around: &Around<'_, V, S>) -> Result<(), Stop> {
        let place = self.walk.place;
        if place >= LPIS {
            return Err(Stop::Done);
        }
        let Some((address, bit)) = self.pending_bit(place, around) else {
            self.walk.place += 1;
            return Ok(());
        };
        let old = self.walk.byte(address)?;
        let pending = self.places_of(self.entries[place].lpi).any(|other| around.irqs.is_lpi_pending(other));
        self.walk.place += 1;
        write_byte(address, old, if pending { old | bit } else { old & !bit })
    }
}

/// Only if it is another.
pub(super) fn write_byte(address: u64, old: u8, new: u8) -> Result<(), Stop> {
    if old == new {
        return Ok(());
    }
    Err(Stop::Want(Want::Write { address, length: 1, bytes: [new, 0, 0, 0, 0, 0, 0, 0] }))
}
