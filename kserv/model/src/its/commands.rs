//! The VM's commands: devices, collections and translations come, move and go. Source: IHI 0069H §5.3.
#![forbid(unsafe_code)]

use super::tables::Task;
use super::{Around, Device, Entry, FIRST_LPI, ID_BITS, Its, LAST_LPI, LPIS, NOBODY, TABLE, VALID, Work};

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

impl Its {
    pub(super) fn execute<const V: usize, const S: usize>(&mut self, words: [u64; 3], around: &mut Around<'_, V, S>) {
        let (device, event) = ((words[0] >> 32) as u32, words[1] as u32);
        let collection = words[2] as u16;
        let found = self.find(device, event);
        match (words[0] & 0xff, found) {
            (command::MAPD, _) => self.map_device(device, words, around),
            (command::MAPC, _) => self.map_collection(collection, words[2], around),
            (command::MAPTI, _) => self.map(device, event, (words[1] >> 32) as u32, collection, around),
            (command::MAPI, _) => self.map(device, event, event, collection, around),
            (command::MOVI, Some(place)) if self.name_collection(collection) => {
                self.entries[place].collection = collection;
                self.apply(place, around);
            }
            (command::INV, Some(place)) => self.work = Work::Config { place, all: false },
            (command::INVALL, _) => self.work = self.config_from(0),
            // A message like any other, of which nobody asks what came.
            (command::INT, _) => {
                let _ = self.message(device, event, around);
            }
            (command::CLEAR, Some(place)) => {
                self.places_of(self.entries[place].lpi).for_each(|place| around.irqs.clear_lpi(place, false));
            }
            (command::DISCARD, Some(place)) => {
                self.forget(place, around);
                self.begin(Task::EraseEvent { device, event }, around);
            }
            // SYNC has nothing to wait for, MOVALL nothing to move: what is pending follows its translation.
            _ => {}
        }
    }

    /// MAPD: what the device had is gone.
    fn map_device<const V: usize, const S: usize>(&mut self, id: u32, words: [u64; 3], around: &mut Around<'_, V, S>) {
        let (valid, bits) = (words[2] & VALID != 0, (words[1] & 0x1f) as u8 + 1);
        if id >= self.device_room() || valid && bits > ID_BITS {
            return;
        }
        for place in 0..LPIS {
            if self.entries[place].used && self.entries[place].device == id {
                self.forget(place, around);
            }
        }
        if let Some(old) = self.device(id) {
            self.devices[old] = Device::FREE;
        }
        if valid {
            self.add_device(Device { id, bits, table: words[2] & TABLE });
        } else {
            self.begin(Task::EraseDevice { device: id }, around);
        }
    }

    /// Its place; `None`: there is no room.
    pub(super) fn add_device(&mut self, device: Device) -> Option<usize> {
        let place = self.devices.iter().position(|device| device.bits == 0)?;
        self.devices[place] = device;
        Some(place)
    }

    pub(super) fn device(&self, id: u32) -> Option<usize> {
        self.devices.iter().position(|device| device.bits != 0 && device.id == id)
    }

    /// MAPC.
    fn map_collection<const V: usize, const S: usize>(
        &mut self,
        number: u16,
        word: u64,
        around: &mut Around<'_, V, S>,
    ) {
        let vcpu = word >> 16 & 0xffff;
        let valid = word & VALID != 0;
        let named = self.entries.iter().any(|entry| entry.used && entry.collection == number);
        let Some(collection) = self.collections.get_mut(usize::from(number)) else { return };
        match valid {
            true if vcpu >= around.irqs.vcpus() as u64 => return,
            true => *collection = vcpu as u8 + 1,
            false => *collection = if named { NOBODY } else { 0 },
        }
        self.apply_all(around);
    }

    /// A translation is to be in this collection: whether there can be one.
    fn name_collection(&mut self, number: u16) -> bool {
        let collection = self.collections.get_mut(usize::from(number));
        collection.is_some_and(|collection| {
            *collection = if *collection == 0 { NOBODY } else { *collection };
            true
        })
    }

    fn map<const V: usize, const S: usize>(
        &mut self,
        device: u32,
        event: u32,
        lpi: u32,
        collection: u16,
        around: &mut Around<'_, V, S>,
    ) {
        let has = self.device(device).is_some_and(|place| self.devices[place].has(event));
        if !has || !(FIRST_LPI..=LAST_LPI).contains(&lpi) || !self.name_collection(collection) {
            return;
        }
        if let Some(old) = self.find(device, event) {
            self.forget(old, around);
        }
        let entry = Entry { device, event, lpi, collection, config: 0, used: true };
        if let Some(place) = self.add_entry(entry, around) {
            self.work = Work::Config { place, all: false };
        }
    }

    /// Its place; `None`: there is no room.
    pub(super) fn add_entry<const V: usize, const S: usize>(
        &mut self,
        entry: Entry,
        around: &mut Around<'_, V, S>,
    ) -> Option<usize> {
        let room = LPIS.min(around.irqs.lpis());
        let place = self.entries[..room].iter().position(|entry| !entry.used)?;
        self.entries[place] = entry;
        self.apply(place, around);
        Some(place)
    }

    /// A translation is gone. Its LPI stays pending if another event leads to it.
    pub(super) fn forget<const V: usize, const S: usize>(&mut self, place: usize, around: &mut Around<'_, V, S>) {
        let entry = self.entries[place];
        if !entry.used {
            return;
        }
        let pending = around.irqs.is_lpi_pending(place);
        self.entries[place] = Entry::FREE;
        around.irqs.clear_lpi(place, true);
        if let Some(other) = self.places_of(entry.lpi).next().filter(|_| pending) {
            around.irqs.raise_lpi(other);
        }
    }
}
