//! The translation service as a device of KVM, and messages from devices.
//!
//! | group      | attributes                                                                       |
//! |------------|----------------------------------------------------------------------------------|
//! | ADDR 0     | 4: where its two frames are                                                      |
//! | CTRL 4     | INIT 0; SAVE_TABLES 1; RESTORE_TABLES 2; RESET 4                                 |
//! | ITS_REGS 8 | its registers by offset; CREADR and IIDR can be restored                         |
//!
//! Tables are saved and restored by what [`Kvm::next_for_its`] wants; [`Kvm::its_outcome`] says what came of it. Registers and tables only while no vCPU runs.
//! Source: Linux, Documentation/virt/kvm/devices/arm-vgic-its.rst.
#![forbid(unsafe_code)]

use super::gic_device::{GROUP_ADDR, GROUP_CTRL};
use super::{Errno, Kvm};
use crate::gic::GicVersion;
use crate::its::tables::Task;
use crate::its::{COMMAND, Failure, Its, SIZE, TRANSLATER, Want};
use crate::mmio::{Access, Range, Width};

/// KVM_DEV_ARM_VGIC_GRP_ITS_REGS.
pub const GROUP_ITS_REGS: u32 = 8;

const ADDR: u64 = 4;
const CTRL_INIT: u64 = 0;
const CTRL_SAVE: u64 = 1;
const CTRL_RESTORE: u64 = 2;
const CTRL_RESET: u64 = 4;
const ALIGN: u64 = 0x1_0000;
const IIDR: u64 = 0x4;
const TYPER: u64 = 0x8;
const CREADR: u64 = 0x90;
/// PIDR4, the first of the registers of 32 bits at the frame's end.
const LAST_WORDS: u64 = 0xffd0;

/// Width of a register that user space reaches.
///
/// # Errors
/// [`Errno::Invalid`] for an offset that is not aligned, [`Errno::NoSuchDevice`] where there is none.
const fn width_of(offset: u64) -> Result<Width, Errno> {
    let words = offset < TYPER || offset >= LAST_WORDS;
    if !offset.is_multiple_of(if words { 4 } else { 8 }) {
        return Err(Errno::Invalid);
    }
    match offset {
        0..TYPER | LAST_WORDS..0x1_0000 => Ok(Width::Word),
        TYPER | 0x80..0x98 | 0x100..0x140 => Ok(Width::Double),
        _ => Err(Errno::NoSuchDevice),
    }
}

impl From<Failure> for Errno {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Busy => Self::Busy,
            Failure::Fault => Self::Fault,
            Failure::Invalid => Self::Invalid,
            Failure::Exists => Self::Exists,
            Failure::NoRoom => Self::NoMemory,
            Failure::Interrupted => Self::Interrupted,
        }
    }
}

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
    /// [`Errno::NoSuchDevice`]; [`Errno::Invalid`] for a register's offset that is not aligned.
    pub const fn has_its_attribute(&self, group: u32, attribute: u64) -> Result<(), Errno> {
        match (group, attribute) {
            _ if !self.has_its => Err(Errno::NoSuchDevice),
            (GROUP_ADDR, ADDR) | (GROUP_CTRL, CTRL_INIT | CTRL_SAVE | CTRL_RESTORE | CTRL_RESET) => Ok(()),
            (GROUP_ITS_REGS, offset) => match width_of(offset) {
                Ok(_) => Ok(()),
                Err(errno) => Err(errno),
            },
            _ => Err(Errno::NoSuchDevice),
        }
    }

    /// Where it is, all ones if nowhere yet; or a register.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`], also of registers before it has an address; [`Errno::Invalid`] as [`Kvm::has_its_attribute`].
    pub fn its_attribute(&self, group: u32, attribute: u64) -> Result<u64, Errno> {
        self.has_its_attribute(group, attribute)?;
        match group {
            GROUP_ADDR => Ok(self.its_base.unwrap_or(u64::MAX)),
            GROUP_ITS_REGS => {
                self.its_base.ok_or(Errno::NoSuchDevice)?;
                Ok(self.its.read(attribute, width_of(attribute)?))
            }
            _ => Err(Errno::NoSuchDevice),
        }
    }

    /// Writes one. Of SAVE_TABLES and RESTORE_TABLES it is the begin.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`] and [`Errno::Invalid`] as [`Kvm::its_attribute`]; of an address as the interrupt controller's own; [`Errno::Busy`] and [`Errno::Invalid`] for a
    /// CREADR that cannot be, [`Errno::Invalid`] for an IIDR of other tables.
    pub fn set_its_attribute(&mut self, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        self.has_its_attribute(group, attribute)?;
        match (group, attribute) {
            (GROUP_ADDR, _) => {
                self.is_free(self.its_base.is_some(), value, ALIGN, SIZE)?;
                self.its_base = Some(value);
            }
            (GROUP_ITS_REGS, offset) => {
                self.its_base.ok_or(Errno::NoSuchDevice)?;
                self.set_its_register(offset, value)?;
            }
            (_, CTRL_SAVE) => self.its.begin(Task::Save, &mut self.gic.around_its()),
            (_, CTRL_RESTORE) => self.its.begin(Task::Restore, &mut self.gic.around_its()),
            (_, CTRL_RESET) => self.its.reset(&mut self.gic.around_its()),
            _ => {}
        }
        Ok(())
    }

    fn set_its_register(&mut self, offset: u64, value: u64) -> Result<(), Errno> {
        match offset {
            IIDR if !Its::has_revision_of(value) => Err(Errno::Invalid),
            IIDR => Ok(()),
            CREADR => Ok(self.its.restore_creadr(value)?),
            _ => {
                self.its.write(offset, width_of(offset)?, value, &mut self.gic.around_its());
                Ok(())
            }
        }
    }

    /// KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, the begin: without LPIs there is nothing to save.
    pub(super) fn save_pending(&mut self) {
        if self.has_its {
            self.its.begin(Task::SavePending, &mut self.gic.around_its());
        }
    }

    /// What came of tables that were to be saved or restored, when nothing is wanted any more; what is not at its end is given up.
    ///
    /// # Errors
    /// [`Errno::Fault`] where the VM has no memory, [`Errno::Invalid`] for tables that make no sense, [`Errno::Exists`] for what is there already, [`Errno::NoMemory`] for
    /// more than there is room for, [`Errno::Interrupted`].
    pub fn its_outcome(&mut self) -> Result<(), Errno> {
        Ok(self.its.outcome(&mut self.gic.around_its())?)
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
                self.its.write(offset, access.width, value, &mut self.gic.around_its());
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

    /// What of the VM's memory the service wants to be read or written.
    pub const fn next_for_its(&mut self) -> Option<Want> {
        self.its.next(self.gic.around_its().table)
    }

    /// Whether that is the VM's next command, if anything.
    pub fn is_its_between_commands(&self) -> bool {
        self.its.is_between_commands()
    }

    /// That is done, with what stands there in front of `bytes`; `None` if there is no memory. vCPUs to kick.
    pub fn feed_its(&mut self, bytes: Option<&[u8; COMMAND]>) -> u32 {
        self.its.feed(bytes, &mut self.gic.around_its());
        self.take_kicks()
    }

    /// A device's message. Whether there is an interrupt for it, and vCPUs to kick.
    ///
    /// # Errors
    /// [`Errno::NoDevice`] without the service, [`Errno::Invalid`] for another address or a message of nobody, [`Errno::Busy`] while it, or the redistributor, is off.
    pub fn message(&mut self, address: u64, event: u32, device: Option<u32>) -> Result<(bool, u32), Errno> {
        let base = self.its_base.filter(|_| self.device.initialized).ok_or(Errno::NoDevice)?;
        let device = device.filter(|_| address == base + TRANSLATER).ok_or(Errno::Invalid)?;
        let there = self.its.message(device, event, &mut self.gic.around_its())?;
        Ok((there, self.take_kicks()))
    }
}
