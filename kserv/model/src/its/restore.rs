//! Restoring: a walk through tables that the VM may have made whatever it likes. Layout and bounds: [`super::tables`].
#![forbid(unsafe_code)]

use super::tables::{DEVICE_STEP, ENTRIES, ENTRY, Stage, Stop, base, entries, write_byte};
use super::{Around, Device, Entry, FIRST_LPI, Failure, ID_BITS, Its, LAST_LPI, NOBODY, TABLE, VALID, config_address};

/// No number: behind the last.
const END: u32 = u32::MAX;

impl Its {
    pub(super) fn load_collection(&mut self, vcpus: usize) -> Result<(), Stop> {
        let there = self.baser[1] & VALID != 0 && self.walk.at < entries(self.baser[1]) * ENTRY;
        let entry = if there { self.walk.word(base(self.baser[1]) + self.walk.at)? } else { 0 };
        if entry & VALID == 0 {
            self.walk.stage = Stage::LoadDevice;
            return Ok(());
        }
        let vcpu = match (entry >> 16) as u32 {
            u32::MAX => NOBODY,
            vcpu if (vcpu as usize) < vcpus => vcpu as u8 + 1,
            _ => return Err(Failure::Invalid.into()),
        };
        let collection = self.collections.get_mut(usize::from(entry as u16)).ok_or(Failure::NoRoom)?;
        if *collection != 0 {
            return Err(Failure::Exists.into());
        }
        *collection = vcpu;
        self.walk.at += ENTRY;
        Ok(())
    }

    pub(super) fn load_device(&mut self) -> Result<(), Stop> {
        let id = self.walk.id;
        if self.baser[0] & VALID == 0 || id >= self.device_room() {
            self.walk.stage = Stage::End;
            return Ok(());
        }
        let Some(address) = self.device_entry(id)? else {
            self.walk.id = (id / ENTRIES as u32 + 1) * ENTRIES as u32;
            return Ok(());
        };
        let entry = self.walk.word(address)?;
        if entry & VALID == 0 {
            self.walk.id += 1;
            return Ok(());
        }
        let device = Device { id, bits: (entry & 0x1f) as u8 + 1, table: entry >> 5 << 8 & TABLE };
        if device.bits > ID_BITS {
            return Err(Failure::Invalid.into());
        }
        if self.device(id).is_some() {
            return Err(Failure::Exists.into());
        }
        self.walk.device = self.add_device(device).ok_or(Failure::NoRoom)?;
        self.walk.id = following(id, (entry >> 49) as u32 & DEVICE_STEP);
        (self.walk.event, self.walk.stage) = (0, Stage::LoadEvent);
        Ok(())
    }

    pub(super) fn load_event<const V: usize, const S: usize>(
        &mut self,
        around: &mut Around<'_, V, S>,
    ) -> Result<(), Stop> {
        let (device, event) = (self.devices[self.walk.device], self.walk.event);
        if !device.has(event) {
            self.walk.stage = Stage::LoadDevice;
            return Ok(());
        }
        let entry = self.walk.word(device.table + u64::from(event) * ENTRY)?;
        let (lpi, collection, step) = ((entry >> 16) as u32, entry as u16, (entry >> 48) as u32);
        if lpi == 0 {
            self.walk.event += 1;
            return Ok(());
        }
        let named = self.collections.get(usize::from(collection)).is_some_and(|collection| *collection != 0);
        if !(FIRST_LPI..=LAST_LPI).contains(&lpi) || !named || !device.has(event + step) {
            return Err(Failure::Invalid.into());
        }
        let entry = Entry { device: device.id, event, lpi, collection, config: 0, used: true };
        self.walk.place = self.add_entry(entry, around).ok_or(Failure::NoRoom)?;
        (self.walk.event, self.walk.stage) = (following(event, step), Stage::LoadConfig);
        Ok(())
    }

    pub(super) fn load_config<const V: usize, const S: usize>(
        &mut self,
        around: &mut Around<'_, V, S>,
    ) -> Result<(), Stop> {
        let place = self.walk.place;
        self.entries[place].config = self.walk.byte(config_address(around.table, self.entries[place].lpi))?;
        self.apply(place, around);
        self.walk.stage = Stage::LoadPending;
        Ok(())
    }

    /// What was pending is so here from now on, and there no more.
    pub(super) fn load_pending<const V: usize, const S: usize>(
        &mut self,
        around: &mut Around<'_, V, S>,
    ) -> Result<(), Stop> {
        let place = self.walk.place;
        let Some((address, bit)) = self.pending_bit(place, around) else {
            self.walk.stage = Stage::LoadEvent;
            return Ok(());
        };
        let old = self.walk.byte(address)?;
        if old & bit != 0 {
            self.raise(place, around);
        }
        self.walk.stage = Stage::LoadEvent;
        write_byte(address, old, old & !bit)
    }
}

/// The number that is `step` behind; 0: there is none.
const fn following(number: u32, step: u32) -> u32 {
    if step == 0 { END } else { number + step }
}
