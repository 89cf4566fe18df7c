//! The interrupt controller as a device of KVM: KVM_CREATE_DEVICE, its addresses, its size, its initialisation; and interrupt lines.
//!
//! | group | attributes                                                                                          |
//! |-------|-----------------------------------------------------------------------------------------------------|
//! | ADDR 0 | GICv2: distributor 0, CPU interface 1. GICv3: distributor 2, redistributors 3, one region of them 5 |
//! | NR_IRQS 3 | 64 to 288 in steps of 32, before initialisation                                                  |
//! | CTRL 4 | INIT 0; GICv3: SAVE_PENDING_TABLES 3, which goes on as `its_device` says                            |
//!
//! Source: Linux, Documentation/virt/kvm/devices/arm-vgic.rst, arm-vgic-v3.rst.
#![forbid(unsafe_code)]

use super::{Errno, Kvm, SPIS, VCPUS};
use crate::gic::GicVersion;
use crate::gicv2::Distributor;
use crate::irq::{Form, PRIVATE, SGIS};
use crate::layout::GICR_STRIDE;
use crate::mmio::{Access, Device, Range};

/// KVM_DEV_ARM_VGIC_GRP_ADDR.
pub const GROUP_ADDR: u32 = 0;
/// KVM_DEV_ARM_VGIC_GRP_NR_IRQS.
pub const GROUP_NR_IRQS: u32 = 3;
/// KVM_DEV_ARM_VGIC_GRP_CTRL.
pub const GROUP_CTRL: u32 = 4;

const ADDR_V2_DIST: u64 = 0;
const ADDR_V2_CPU: u64 = 1;
const ADDR_V3_DIST: u64 = 2;
const ADDR_V3_REDIST: u64 = 3;
const ADDR_V3_REGION: u64 = 5;
const CTRL_INIT: u64 = 0;
const CTRL_SAVE_PENDING: u64 = 3;

const V2_DIST_SIZE: u64 = 0x1000;
const V2_CPU_SIZE: u64 = 0x2000;
const V3_DIST_SIZE: u64 = 0x1_0000;
/// KVM's number of interrupts if nobody says one.
const DEFAULT_IRQS: u32 = 256;

/// Types of KVM_IRQ_LINE: bits 27:24.
const LINE_CPU: u32 = 0;
const LINE_SPI: u32 = 1;
const LINE_PPI: u32 = 2;

/// A run of redistributors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Region {
    base: u64,
    /// How many; 0: as many as there are vCPUs.
    count: u64,
    /// As user space said it: by a region, or by the old attribute.
    by_region: bool,
}

/// What user space said about it.
#[derive(Clone, Copy, Debug)]
pub struct GicDevice {
    version: Option<GicVersion>,
    pub(super) initialized: bool,
    distributor: Option<u64>,
    cpu: Option<u64>,
    redistributors: Option<Region>,
    irqs: u32,
}

impl GicDevice {
    /// There is none.
    pub const NONE: Self =
        Self { version: None, initialized: false, distributor: None, cpu: None, redistributors: None, irqs: 0 };

    /// Whether there is one.
    pub const fn exists(&self) -> bool {
        self.version.is_some()
    }

    /// Whether it is this one.
    pub fn is(&self, version: GicVersion) -> bool {
        self.version == Some(version)
    }

    /// vCPUs that it can have.
    pub(super) const fn most_vcpus(&self) -> usize {
        match self.version {
            Some(GicVersion::V2) => 8,
            _ => VCPUS,
        }
    }

    const fn distributor_size(&self) -> u64 {
        match self.version {
            Some(GicVersion::V2) => V2_DIST_SIZE,
            _ => V3_DIST_SIZE,
        }
    }

    fn distributor_range(&self) -> Option<Range> {
        self.distributor.map(|base| Range { base, size: self.distributor_size() })
    }

    /// Those of `vcpus` vCPUs.
    fn redistributors_range(&self, vcpus: u64) -> Option<Range> {
        self.redistributors.map(|region| {
            let count = if region.count == 0 { vcpus.max(1) } else { region.count };
            Range { base: region.base, size: count.saturating_mul(GICR_STRIDE) }
        })
    }

    /// What is where: distributor, GICv2's CPU interface, redistributors of `vcpus` vCPUs.
    fn ranges(&self, vcpus: u64) -> [Option<Range>; 3] {
        [
            self.distributor_range(),
            self.cpu.map(|base| Range { base, size: V2_CPU_SIZE }),
            self.redistributors_range(vcpus),
        ]
    }
}

const fn overlap(one: Range, base: u64, size: u64) -> bool {
    base < one.base.saturating_add(one.size) && one.base < base.saturating_add(size)
}

impl Kvm {
    /// KVM_CREATE_DEVICE.
    ///
    /// # Errors
    /// [`Errno::NoDevice`] if the machine cannot virtualise this one, [`Errno::Exists`], [`Errno::Busy`] after a vCPU has run, [`Errno::TooBig`] for more vCPUs than it
    /// can have.
    pub fn create_gic(&mut self, version: u32) -> Result<(), Errno> {
        let wanted = GicVersion::from_core_info(version.into()).ok_or(Errno::NoDevice)?;
        if GicVersion::from_core_info(self.machine.gic) != Some(wanted) {
            return Err(Errno::NoDevice);
        }
        if self.device.exists() {
            return Err(Errno::Exists);
        }
        if self.has_run {
            return Err(Errno::Busy);
        }
        let device = GicDevice { version: Some(wanted), ..GicDevice::NONE };
        if self.count() > device.most_vcpus() {
            return Err(Errno::TooBig);
        }
        self.device = device;
        Ok(())
    }

    /// 0, 2 or 3.
    pub const fn gic_version(&self) -> u32 {
        match self.device.version {
            None => 0,
            Some(GicVersion::V2) => 2,
            Some(GicVersion::V3) => 3,
        }
    }

    /// Whether it is initialised.
    pub const fn is_gic_initialized(&self) -> bool {
        self.device.initialized
    }

    /// GICv2: where the VM sees the virtual CPU interface.
    pub const fn gic_cpu_base(&self) -> Option<u64> {
        self.device.cpu
    }

    /// Whether something of it is in this range.
    pub fn gic_overlaps(&self, base: u64, size: u64) -> bool {
        let ranges = self.device.ranges(self.count() as u64).into_iter().chain([self.its_range()]);
        ranges.flatten().any(|range| overlap(range, base, size))
    }

    /// Whether there is such an attribute of groups ADDR, NR_IRQS, CTRL.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`].
    pub fn has_gic(&self, group: u32, attribute: u64) -> Result<(), Errno> {
        let v2 = self.device.is(GicVersion::V2);
        let there = self.device.exists()
            && match (group, attribute) {
                (GROUP_ADDR, ADDR_V2_DIST | ADDR_V2_CPU) => v2,
                (GROUP_ADDR, ADDR_V3_DIST | ADDR_V3_REDIST | ADDR_V3_REGION) => !v2,
                (GROUP_NR_IRQS, 0) | (GROUP_CTRL, CTRL_INIT) => true,
                (GROUP_CTRL, CTRL_SAVE_PENDING) => !v2,
                _ => false,
            };
        if there { Ok(()) } else { Err(Errno::NoSuchDevice) }
    }

    /// Reads one. `value`: the index of a region, for those.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`], [`Errno::NoEntry`] for a region that is not there.
    pub fn get_gic(&self, group: u32, attribute: u64, value: u64) -> Result<u64, Errno> {
        self.has_gic(group, attribute)?;
        let address = |address: Option<u64>| Ok(address.unwrap_or(u64::MAX));
        match (group, attribute) {
            (GROUP_ADDR, ADDR_V2_DIST | ADDR_V3_DIST) => address(self.device.distributor),
            (GROUP_ADDR, ADDR_V2_CPU) => address(self.device.cpu),
            (GROUP_ADDR, ADDR_V3_REDIST) => {
                address(self.device.redistributors.filter(|region| !region.by_region).map(|region| region.base))
            }
            (GROUP_ADDR, ADDR_V3_REGION) => {
                let region = self.device.redistributors.filter(|region| region.by_region && value & 0xfff == 0);
                region.map(|region| region.base | region.count << 52).ok_or(Errno::NoEntry)
            }
            // Until it is said how many there are, KVM has those that each vCPU has.
            (GROUP_NR_IRQS, _) => Ok(u64::from(self.device.irqs).max(PRIVATE as u64)),
            _ => Err(Errno::NoSuchDevice),
        }
    }

    /// Writes one.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`]; [`Errno::Exists`] for an address that has been said, [`Errno::Invalid`] for one that is not aligned or not free, [`Errno::TooBig`] for one
    /// that no VM has; [`Errno::Busy`] after initialisation, [`Errno::NoDevice`] for it without vCPUs.
    pub fn set_gic(&mut self, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        self.has_gic(group, attribute)?;
        match (group, attribute) {
            (GROUP_ADDR, ADDR_V2_DIST | ADDR_V3_DIST) => {
                let align = if attribute == ADDR_V2_DIST { V2_DIST_SIZE } else { V3_DIST_SIZE };
                self.is_free(self.device.distributor.is_some(), value, align, self.device.distributor_size())?;
                self.device.distributor = Some(value);
            }
            (GROUP_ADDR, ADDR_V2_CPU) => {
                self.is_free(self.device.cpu.is_some(), value, V2_DIST_SIZE, V2_CPU_SIZE)?;
                self.device.cpu = Some(value);
            }
            (GROUP_ADDR, ADDR_V3_REDIST) => {
                if self.device.redistributors.is_some_and(|region| region.by_region) {
                    return Err(Errno::Invalid);
                }
                self.is_free(self.device.redistributors.is_some(), value, V3_DIST_SIZE, GICR_STRIDE)?;
                self.device.redistributors = Some(Region { base: value, count: 0, by_region: false });
            }
            (GROUP_ADDR, ADDR_V3_REGION) => self.set_region(value)?,
            (GROUP_NR_IRQS, _) => {
                let irqs = u32::try_from(value).unwrap_or(u32::MAX);
                if !(64..=(PRIVATE + SPIS) as u32).contains(&irqs) || !irqs.is_multiple_of(32) {
                    return Err(Errno::Invalid);
                }
                if self.device.initialized || self.device.irqs != 0 {
                    return Err(Errno::Busy);
                }
                self.device.irqs = irqs;
            }
            (GROUP_CTRL, CTRL_INIT) => self.init_gic()?,
            _ if !self.device.initialized => return Err(Errno::NoSuchDevice),
            _ => self.save_pending(),
        }
        Ok(())
    }

    pub(super) fn is_free(&self, said: bool, base: u64, align: u64, size: u64) -> Result<(), Errno> {
        if said {
            return Err(Errno::Exists);
        }
        if !base.is_multiple_of(align) {
            return Err(Errno::Invalid);
        }
        let end = 1 << self.ipa_bits;
        if base >= end || size > end - base {
            return Err(Errno::TooBig);
        }
        if self.gic_overlaps(base, size) { Err(Errno::Invalid) } else { Ok(()) }
    }

    /// Bits 63:52 how many, 51:16 where, 15:12 zero, 11:0 index: only one region, 0, is taken.
    fn set_region(&mut self, value: u64) -> Result<(), Errno> {
        let (count, base, flags, index) = (value >> 52, value & 0xf_ffff_ffff_0000, value >> 12 & 0xf, value & 0xfff);
        if count == 0 || flags != 0 || index != 0 || self.device.redistributors.is_some() {
            return Err(Errno::Invalid);
        }
        self.is_free(false, base, V3_DIST_SIZE, count.saturating_mul(GICR_STRIDE))?;
        self.device.redistributors = Some(Region { base, count, by_region: true });
        Ok(())
    }

    pub(super) fn init_gic(&mut self) -> Result<(), Errno> {
        if self.device.initialized {
            return Ok(());
        }
        let vcpus = self.count();
        let form = match self.device.version.ok_or(Errno::NoDevice)? {
            _ if vcpus == 0 => return Err(Errno::NoDevice),
            GicVersion::V2 => Form::V2,
            GicVersion::V3 => Form::V3,
        };
        let irqs = if self.device.irqs == 0 { DEFAULT_IRQS } else { self.device.irqs };
        self.device.irqs = irqs;
        self.gic.reset(form, vcpus, (irqs as usize).saturating_sub(PRIVATE));
        if self.has_its {
            self.gic.add_lpis();
        }
        self.device.initialized = true;
        Ok(())
    }

    /// At the first run.
    pub(super) fn ready_gic(&mut self) -> Result<(), Errno> {
        // A region has room for so many vCPUs; without one there is room for all.
        let vcpus = self.count() as u64;
        let has_room = |region: Region| region.count == 0 || region.count >= vcpus;
        let all = |device: &GicDevice, v2: bool| {
            device.distributor.is_some()
                && if v2 { device.cpu.is_some() } else { device.redistributors.is_some_and(has_room) }
        };
        match self.device.version {
            None => Ok(()),
            Some(version) if !all(&self.device, version == GicVersion::V2) => Err(Errno::NoSuchDevice),
            Some(GicVersion::V2) => self.init_gic(),
            Some(GicVersion::V3) if !self.device.initialized => Err(Errno::Busy),
            Some(GicVersion::V3) => Ok(()),
        }
    }

    /// An access of the VM: `None` if it is not the interrupt controller's; a store gives 0.
    pub(super) fn gic_access(&mut self, vcpu: usize, access: &Access) -> Option<u64> {
        if !self.device.initialized {
            return None;
        }
        let at = |range: Option<Range>| range.and_then(|range| range.offset(access.address, access.width));
        let (width, write) = (access.width, access.write);
        if let Some(offset) = at(self.device.distributor_range()) {
            let mut v2 = Distributor { irqs: &mut self.gic.irqs };
            return Some(match (self.device.version, write) {
                (Some(GicVersion::V2), None) => v2.read(vcpu, offset, width),
                (Some(GicVersion::V2), Some(value)) => {
                    v2.write(vcpu, offset, width, value);
                    0
                }
                (_, None) => self.gic.read_distributor(offset, width),
                (_, Some(value)) => {
                    self.gic.write_distributor(offset, width, value);
                    0
                }
            });
        }
        let redistributors = self.device.redistributors_range(self.count() as u64);
        let Some(offset) = at(redistributors) else { return self.its_access(access) };
        Some(match write {
            None => self.gic.read_redistributors(offset, width),
            Some(value) => {
                self.gic.write_redistributors(offset, width, value);
                if offset % GICR_STRIDE == 0 {
                    self.update_lpis();
                }
                0
            }
        })
    }

    /// KVM_IRQ_LINE: bits 31:28 and 23:16 vCPU, 27:24 type, 15:0 number. vCPUs to kick.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`] for a line of an interrupt controller that is not here, or of a vCPU if one is; [`Errno::Invalid`]; [`Errno::Busy`] before GICv3 is
    /// initialised.
    pub fn irq_line(&mut self, irq: u32, level: bool) -> Result<u32, Errno> {
        let vcpu = ((irq >> 16 & 0xff) | (irq >> 28) << 8) as usize;
        let number = (irq & 0xffff) as usize;
        match irq >> 24 & 0xf {
            LINE_CPU if self.device.exists() => return Err(Errno::NoSuchDevice),
            LINE_CPU => {
                let line = self.created(vcpu)?.lines.get_mut(number).ok_or(Errno::Invalid)?;
                if core::mem::replace(line, level) != level {
                    self.kicks |= 1 << vcpu;
                }
            }
            LINE_PPI | LINE_SPI if !self.device.exists() => return Err(Errno::NoSuchDevice),
            LINE_PPI => {
                self.created(vcpu)?;
                if !(SGIS..PRIVATE).contains(&number) {
                    return Err(Errno::Invalid);
                }
                self.ready_for_lines().map_err(|_| Errno::Busy)?;
                self.gic.irqs.set_line(vcpu, number, level);
            }
            LINE_SPI => {
                let spi = number.checked_sub(PRIVATE).ok_or(Errno::Invalid)?;
                self.ready_for_lines().map_err(|_| Errno::Busy)?;
                return self.set_spi(spi, level);
            }
            _ => return Err(Errno::Invalid),
        }
        Ok(self.take_kicks())
    }

    /// GICv2 is initialised by its first line, GICv3 by user space only.
    fn ready_for_lines(&mut self) -> Result<(), Errno> {
        if self.device.is(GicVersion::V2) {
            self.init_gic().map_err(|_| Errno::Again)?;
        }
        if self.device.initialized { Ok(()) } else { Err(Errno::Again) }
    }

    /// Interrupt number of an SPI that there is.
    fn spi(&mut self, spi: usize) -> Result<usize, Errno> {
        self.ready_for_lines()?;
        let intid = spi.saturating_add(PRIVATE);
        if intid < self.gic.irqs.intids() { Ok(intid) } else { Err(Errno::Invalid) }
    }

    /// The level of SPI `spi`, from 0 on. vCPUs to kick.
    ///
    /// # Errors
    /// [`Errno::Invalid`] if there is none such, [`Errno::Again`] before the interrupt controller is initialised.
    pub fn set_spi(&mut self, spi: usize, level: bool) -> Result<u32, Errno> {
        let intid = self.spi(spi)?;
        self.gic.irqs.drive(intid, level);
        Ok(self.take_kicks())
    }

    /// An irqfd's edge on it. Where it is level-sensitive its line stays up until somebody lowers it, as in KVM.
    ///
    /// # Errors
    /// As [`Kvm::set_spi`].
    pub fn pulse_spi(&mut self, spi: usize) -> Result<u32, Errno> {
        let intid = self.spi(spi)?;
        self.gic.irqs.drive(intid, true);
        if self.gic.irqs.is_edge(0, intid) {
            self.gic.irqs.drive(intid, false);
        }
        Ok(self.take_kicks())
    }

    /// Whether [`Kvm::next_ended_spi`] tells its end.
    ///
    /// # Errors
    /// As [`Kvm::set_spi`].
    pub fn watch_spi(&mut self, spi: usize, on: bool) -> Result<(), Errno> {
        let intid = self.spi(spi)?;
        self.gic.irqs.watch(intid, on);
        Ok(())
    }

    /// A watched SPI that the VM ended.
    pub fn next_ended_spi(&mut self) -> Option<usize> {
        self.gic.irqs.take_ended()?.checked_sub(PRIVATE)
    }
}
