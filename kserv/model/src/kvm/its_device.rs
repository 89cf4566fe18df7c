//! The translation service as a device of KVM, and messages from devices.
//!
//! | group  | attributes                                                                    |
//! |--------|-------------------------------------------------------------------------------|
//! | ADDR 0 | 4: where its two frames are                                                   |
//! | CTRL 4 | INIT 0; RESET 4. Tables cannot be saved (1) or restored (2)                   |
//!
//! Source: Linux, Documentation/virt/kvm/devices/arm-vgic-its.rst.
#![forbid(unsafe_code)]

use super::gic_device::{GROUP_ADDR, GROUP_CTRL};
use super::{Errno, Kvm};
use crate::gic::GicVersion;
use crate::its::{COMMAND, SIZE, TRANSLATER};
use crate::mmio::{Access, Range};

const ADDR: u64 = 4;
const CTRL_INIT: u64 = 0;
const CTRL_RESET: u64 = 4;
const ALIGN: u64 = 0x1_0000;

impl Kvm {
    /// KVM_CREATE_DEVICE.
    ///
    /// # Errors
    /// [`Errno::NoDevice`] without GICv3, [`Errno::Exists`], [`Errno::Busy`] after a vCPU has run.
    pub fn create_its(&mut self) -> Result<(), Errno> {
        if !self.device.is(GicVersion::V3) {
            return Err(Errno::NoDevice);
        }
        if self.has_its {
            return Err(Errno::Exists);
        }
        if self.has_run {
            return Err(Errno::Busy);
        }
        self.has_its = true;
        if self.device.initialized {
            self.gic.add_lpis();
        }
        Ok(())
    }

    /// Whether there is such an attribute.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`].
    pub const fn has_its_attribute(&self, group: u32, attribute: u64) -> Result<(), Errno> {
        match (group, attribute) {
            (GROUP_ADDR, ADDR) | (GROUP_CTRL, CTRL_INIT | CTRL_RESET) if self.has_its => Ok(()),
            _ => Err(Errno::NoSuchDevice),
        }
    }

    /// Where it is; all ones: nowhere yet.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`].
    pub fn its_attribute(&self, group: u32, attribute: u64) -> Result<u64, Errno> {
        self.has_its_attribute(group, attribute)?;
        if group == GROUP_ADDR { Ok(self.its_base.unwrap_or(u64::MAX)) } else { Err(Errno::NoSuchDevice) }
    }

    /// Writes one.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`]; of an address as the interrupt controller's own.
    pub fn set_its_attribute(&mut self, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        self.has_its_attribute(group, attribute)?;
        match (group, attribute) {
            (GROUP_ADDR, _) => {
                self.is_free(self.its_base.is_some(), value, ALIGN, SIZE)?;
                self.its_base = Some(value);
            }
            (_, CTRL_RESET) => self.its.reset(&mut self.gic.around_its()),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn its_range(&self) -> Option<Range> {
        self.its_base.map(|base| Range { base, size: SIZE })
    }

    /// An access of the VM: `None` if it is not the service's.
    pub(super) fn its_access(&mut self, access: &Access) -> Option<u64> {
        let offset = self.its_range()?.offset(access.address, access.width)?;
        match access.write {
            None => Some(self.its.read(offset, access.width)),
            Some(value) => {
                self.its.write(offset, access.width, value);
                Some(0)
            }
        }
    }

    /// A redistributor may have changed whether it takes LPIs.
    pub(super) fn update_lpis(&mut self) {
        if self.has_its {
            self.its.apply_all(&mut self.gic.around_its());
        }
    }

    /// The VM's memory that the service wants: address and bytes.
    pub fn next_for_its(&mut self) -> Option<(u64, usize)> {
        self.its.next(self.gic.around_its().table)
    }

    /// What stands there; `None` if there is no memory. vCPUs to kick.
    pub fn feed_its(&mut self, bytes: Option<&[u8; COMMAND]>) -> u32 {
        self.its.feed(bytes, &mut self.gic.around_its());
        self.take_kicks()
    }

    /// A device's message. Whether there is an interrupt for it, and vCPUs to kick.
    ///
    /// # Errors
    /// [`Errno::NoDevice`] without the service, [`Errno::Invalid`] for another address or a message of nobody.
    pub fn message(&mut self, address: u64, event: u32, device: Option<u32>) -> Result<(bool, u32), Errno> {
        let base = self.its_base.filter(|_| self.device.initialized).ok_or(Errno::NoDevice)?;
        let device = device.filter(|_| address == base + TRANSLATER).ok_or(Errno::Invalid)?;
        let there = self.its.message(device, event, &mut self.gic.irqs);
        Ok((there, self.take_kicks()))
    }
}
