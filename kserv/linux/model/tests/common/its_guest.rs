//! A VM with a translation service, and its memory.
#![allow(dead_code, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use corevisor_interface::mailbox::ExitReason;
use kserv_linux_model::its::*;

use super::{Driver, syndrome};

pub const ITS: u64 = 0x808_0000;
pub const DOORBELL: u64 = ITS + 0x1_0040;
pub const REDIST: u64 = 0x80a_0000;
pub const RAM: Range<u64> = 0x4000_0000..0x8000_0000;
pub const QUEUE: u64 = 0x4100_0000;
/// Configuration of LPIs.
pub const TABLE: u64 = 0x4200_0000;
/// Pending LPIs of vCPU 0; of the next, 1 MiB further.
pub const PENDING: u64 = 0x4300_0000;
pub const DEVICES: u64 = 0x4400_0000;
pub const COLLECTIONS: u64 = 0x4500_0000;
/// Translations of device 0; of the next, 512 KiB further, up to device 255.
pub const EVENTS: u64 = 0x5000_0000;
pub const VALID: u64 = 1 << 63;
pub const ENABLED: u8 = 0xa1;
const PAGE: u64 = 4096;

/// A VM with what it wrote into its memory: commands, configuration of LPIs, tables.
pub struct Guest {
    pub driver: Driver,
    pub memory: HashMap<u64, Vec<u8>>,
    pub ram: Range<u64>,
    pub tail: u64,
    /// Those that [`Guest::map`] has mapped.
    pub devices: HashSet<u64>,
    /// How often the memory was asked for, and what for.
    pub steps: usize,
    pub wants: Vec<RawWant>,
}

impl Guest {
    /// Distributor and redistributors are ready, the service is not.
    pub fn bare(vcpus: u32) -> Self {
        let driver = Driver::with_its(vcpus);
        let mut guest = Self {
            driver,
            memory: HashMap::new(),
            ram: RAM,
            tail: 0,
            devices: HashSet::new(),
            steps: 0,
            wants: vec![],
        };
        (1..vcpus).for_each(|vcpu| assert_eq!(guest.driver.mp_state_set(vcpu, 0), 0));
        guest.driver.store(0, 0x800_0000, 2);
        for vcpu in 0..u64::from(vcpus) {
            let frame = REDIST + 0x2_0000 * vcpu;
            guest.store(frame + 0x70, TABLE | 15);
            guest.store(frame + 0x78, 1 << 62 | (PENDING + 0x10_0000 * vcpu));
            guest.driver.store(vcpu as u32, frame, 1);
        }
        guest
    }

    /// The service has its tables and a collection for each vCPU.
    pub fn new(vcpus: u32) -> Self {
        Self::with_devices(vcpus, VALID | DEVICES)
    }

    /// With this table of devices.
    pub fn with_devices(vcpus: u32, table: u64) -> Self {
        let mut guest = Self::bare(vcpus);
        guest.store(ITS + 0x80, VALID | QUEUE);
        guest.store(ITS + 0x100, table);
        guest.store(ITS + 0x108, VALID | COLLECTIONS);
        guest.driver.store(0, ITS, 1);
        for vcpu in 0..u64::from(vcpus) {
            guest.command([0x09, 0, VALID | vcpu << 16 | vcpu]);
        }
        guest
    }

    pub fn peek(&self, address: u64, length: usize) -> Vec<u8> {
        let byte = |at: u64| self.memory.get(&(at / PAGE)).map_or(0, |page| page[(at % PAGE) as usize]);
        (address..address + length as u64).map(byte).collect()
    }

    pub fn poke(&mut self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            self.memory.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize])[(at % PAGE) as usize] = *byte;
        }
    }

    pub fn word(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.peek(address, 8).try_into().unwrap())
    }

    pub fn set_word(&mut self, address: u64, value: u64) {
        self.poke(address, &value.to_le_bytes());
    }

    /// A 64-bit store of vCPU 0, as C serves it.
    pub fn store(&mut self, address: u64, value: u64) {
        let action = self.driver.run(0, ExitReason::MmioWrite, |mailbox| {
            (mailbox.esr, mailbox.ipa, mailbox.x[5]) = (syndrome(3, false, 5, true, true), address, value);
        });
        assert!(action.kind == 0 || action.kind == 8, "{address:#x}");
        if action.kind == 8 {
            self.serve();
        }
    }

    pub fn load(&mut self, address: u64) -> u64 {
        let action = self.driver.run(0, ExitReason::MmioRead, |mailbox| {
            (mailbox.esr, mailbox.ipa) = (syndrome(3, false, 5, true, false), address);
        });
        assert_eq!(action.kind, 0, "{address:#x}");
        self.driver.mailboxes[0].x[5]
    }

    pub fn serve(&mut self) {
        let mut want = RawWant::default();
        while kserv_its_next(self.driver.vm(), &mut want) {
            self.steps += 1;
            self.wants.push(want);
            let (mut bytes, length) = ([0; 32], want.len as usize);
            assert!(length <= if want.write != 0 { 8 } else { 32 });
            assert_eq!(want.gpa % length as u64, 0, "no access is in two pages");
            let there = self.ram.contains(&want.gpa);
            if there && want.write != 0 {
                self.poke(want.gpa, &want.bytes[..length]);
            } else if there {
                bytes[..length].copy_from_slice(&self.peek(want.gpa, length));
            }
            // SAFETY: `kicks` is the driver's.
            unsafe { kserv_its_feed(self.driver.vm(), &bytes, there, &raw mut self.driver.kicks) };
        }
    }

    pub fn command(&mut self, words: [u64; 3]) {
        let bytes: Vec<u8> = words.into_iter().chain([0]).flat_map(u64::to_le_bytes).collect();
        self.poke(QUEUE + self.tail, &bytes);
        self.tail = (self.tail + 32) % 4096;
        self.store(ITS + 0x88, self.tail);
        assert_eq!(self.load(ITS + 0x90), self.tail, "the command is done");
    }

    pub fn configure(&mut self, lpi: u64, config: u8) {
        self.poke(TABLE + lpi - 8192, &[config]);
    }

    /// MAPD with events of 16 bits.
    pub fn map_device(&mut self, device: u64) {
        self.command([device << 32 | 0x08, 15, VALID | (EVENTS + 0x8_0000 * (device % 0x100))]);
    }

    /// A translation, of a device that may be new.
    pub fn map(&mut self, device: u64, event: u64, lpi: u64, collection: u64) {
        if self.devices.insert(device) {
            self.map_device(device);
        }
        self.configure(lpi, ENABLED);
        self.command([device << 32 | 0x0a, lpi << 32 | event, collection]);
    }

    pub fn send(&mut self, device: u32, event: u32) -> i32 {
        // SAFETY: `kicks` is the driver's.
        unsafe { kserv_msi(self.driver.vm(), DOORBELL, event, device, true, &raw mut self.driver.kicks) }
    }

    /// Interrupts that an entry of the vCPU has in its list registers.
    pub fn enter(&mut self, vcpu: u32) -> Vec<u64> {
        assert_eq!(self.driver.enter(vcpu), 0);
        let mailbox = &self.driver.mailboxes[vcpu as usize];
        mailbox.lr[..mailbox.lr_count as usize].iter().map(|lr| lr & 0xffff_ffff).collect()
    }

    /// They are taken and ended, at once.
    pub fn end(&mut self, vcpu: u32) {
        self.driver.mailboxes[vcpu as usize].lr = [0; 16];
        self.driver.exit(vcpu, ExitReason::Irq);
    }

    pub fn take(&mut self, vcpu: u32) -> Vec<u64> {
        let taken = self.enter(vcpu);
        self.end(vcpu);
        taken
    }

    /// KVM_SET_DEVICE_ATTR of the service, as C does it.
    pub fn set_its(&mut self, group: u32, attr: u64, value: u64) -> i32 {
        match self.driver.set_its(group, attr, value) {
            0 => {
                self.serve();
                kserv_its_outcome(self.driver.vm(), &mut self.driver.kicks)
            }
            error => error,
        }
    }

    pub fn get_its(&mut self, attr: u64) -> u64 {
        let mut value = 0;
        assert_eq!(kserv_its_get(self.driver.vm(), 8, attr, &mut value), 0);
        value
    }

    /// KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.
    pub fn save_pending(&mut self) -> i32 {
        assert_eq!(self.driver.set_gic(4, 3, 0), 0);
        self.serve();
        kserv_its_outcome(self.driver.vm(), &mut self.driver.kicks)
    }
}
