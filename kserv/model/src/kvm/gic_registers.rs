//! The interrupt controller's registers as user space saves and restores them.
//!
//! | group           | attribute                           | what                                                          |
//! |-----------------|-------------------------------------|---------------------------------------------------------------|
//! | DIST_REGS 1     | GICv2: vCPU 39:32, offset; GICv3: offset | the distributor                                          |
//! | CPU_REGS 2      | GICv2: vCPU 39:32, offset           | the virtual CPU interface: VMCR and APR of the core            |
//! | REDIST_REGS 5   | affinity 63:32, offset              | GICv3: a redistributor, both frames                            |
//! | CPU_SYSREGS 6   | affinity 63:32, register 15:0       | GICv3: ICC_*_EL1: VMCR and active priorities of the core       |
//! | LEVEL_INFO 7    | affinity 63:32, 0, interrupt 9:0    | GICv3: levels of 32 lines                                      |
//!
//! As KVM has it: with GICv3, ISPENDR reads and writes the latches alone (levels stand apart), and ICPENDR is zero. Source: Linux,
//! Documentation/virt/kvm/devices/arm-vgic.rst, arm-vgic-v3.rst; IHI 0048B §5.3, IHI 0069H §12.4.
#![forbid(unsafe_code)]

use super::registers::{ACTIVE_PRIORITIES, Behind, Found, VMCR};
use super::{Errno, Kvm};
use crate::gic::GicVersion;
use crate::gicv2::Distributor;
use crate::irq::Form;
use crate::layout::{GICR_STRIDE, vcpu_of};
use crate::mmio::{Device, Width};

const GROUP_DIST: u32 = 1;
const GROUP_CPU: u32 = 2;
const GROUP_REDIST: u32 = 5;
const GROUP_SYSREGS: u32 = 6;
const GROUP_LEVEL: u32 = 7;

/// The SGI frame of a redistributor.
const SGI_FRAME: u32 = 0x1_0000;

/// A part of VMCR: lowest bit, and bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Field(u32, u64);

impl Field {
    const fn get(self, vmcr: u64) -> u64 {
        vmcr >> self.0 & self.1
    }

    const fn set(self, vmcr: u64, value: u64) -> u64 {
        vmcr & !(self.1 << self.0) | (value & self.1) << self.0
    }
}

/// GICC_CTLR: enables of both groups, AckCtl, FIQEn, CBPR; EOImode at bit 9. VMCR has them at the same places.
const V2_CTLR: Field = Field(0, 0x21f);
/// Five bits of priority: the interface of KVM has them in the lowest ones.
const V2_PMR: Field = Field(27, 0x1f);
const BPR0: Field = Field(21, 7);
const BPR1: Field = Field(18, 7);
const V3_PMR: Field = Field(24, 0xff);
const V3_GROUP0: Field = Field(0, 1);
const V3_GROUP1: Field = Field(1, 1);
const V3_CBPR: Field = Field(4, 1);
const V3_EOIM: Field = Field(9, 1);

/// ICC_CTLR_EL1: five bits of priority, 16 bits of interrupt number; CBPR and EOImode are the VM's.
const ICC_CTLR_FIXED: u64 = 4 << 8;
const ICC_CTLR_CBPR: u64 = 1 << 0;
const ICC_CTLR_EOIMODE: u64 = 1 << 1;
/// ICC_SRE_EL1: system registers only.
const ICC_SRE: u64 = 7;
/// GICC_IIDR: GICv2, implementer Arm.
const GICC_IIDR: u64 = 0x0002_043b;

/// A register of the interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GicRegister {
    /// Distributor, by offset.
    Distributor(u32),
    /// Redistributor of the vCPU, by offset.
    Redistributor(u32),
    /// Lines of interrupts 32 * n and on.
    Levels(usize),
    /// GICv2's CPU interface.
    V2(Field),
    /// GICv3's.
    V3(Field),
    V3Bpr1,
    V3Ctlr,
    /// GICv3: word of the active priorities.
    ActivePriorities(u32),
    /// GICv2: GICC_APR0.
    V2ActivePriorities,
    /// 32 bits that nobody changes.
    Fixed(u64),
    /// ICC_SRE_EL1.
    V3Sre,
}

impl GicRegister {
    /// The core register that it is in.
    pub(super) const fn core(self) -> Option<u32> {
        match self {
            Self::V2(_) | Self::V3(_) | Self::V3Bpr1 | Self::V3Ctlr => Some(VMCR),
            Self::ActivePriorities(n) => Some(ACTIVE_PRIORITIES + n),
            Self::V2ActivePriorities => Some(ACTIVE_PRIORITIES),
            _ => None,
        }
    }

    /// Bytes in user space: those of system registers are 8.
    pub(super) const fn size(self) -> u32 {
        match self {
            Self::V3(_) | Self::V3Bpr1 | Self::V3Ctlr | Self::ActivePriorities(_) | Self::V3Sre => 8,
            _ => 4,
        }
    }
}

/// Offset in the low half of an attribute, if it is one of a 32-bit register.
fn word(attribute: u64) -> Option<u32> {
    let offset = attribute as u32;
    offset.is_multiple_of(4).then_some(offset)
}

const fn is_common(offset: u32) -> bool {
    matches!(offset, 0x080..0x800 | 0xc00..0xd00)
}

fn distributor(form: Form, offset: u32) -> Option<GicRegister> {
    let there = match (form, offset) {
        (_, 0x000 | 0x004 | 0x008) => true,
        (_, offset) if is_common(offset) => true,
        (Form::V2, 0x800..0xc00 | 0xf10..0xf30 | 0xfd0..0x1000) => true,
        (Form::V3, 0x010 | 0x6000..0x8000 | 0xffd0..0x1_0000) => true,
        _ => false,
    };
    there.then_some(GicRegister::Distributor(offset))
}

fn redistributor(offset: u32) -> Option<GicRegister> {
    let there = match offset {
        0x00..0x18 | 0x70..0x80 | 0xffd0..0x1_0000 => true,
        SGI_FRAME.. => matches!(
            offset - SGI_FRAME,
            0x080 | 0x100 | 0x180 | 0x200 | 0x280 | 0x300 | 0x380 | 0x400..0x420 | 0xc00 | 0xc04
        ),
        _ => false,
    };
    there.then_some(GicRegister::Redistributor(offset))
}

const fn v2_interface(offset: u32) -> Option<GicRegister> {
    Some(match offset {
        0x00 => GicRegister::V2(V2_CTLR),
        0x04 => GicRegister::V2(V2_PMR),
        0x08 => GicRegister::V2(BPR0),
        0x1c => GicRegister::V2(BPR1),
        // There are 32 preemption levels: the other three are zero.
        0xd0 => GicRegister::V2ActivePriorities,
        0xd4 | 0xd8 | 0xdc => GicRegister::Fixed(0),
        0xfc => GicRegister::Fixed(GICC_IIDR),
        _ => return None,
    })
}

/// By op0, op1, CRn, CRm, op2 as an attribute packs them.
const fn v3_interface(register: u64) -> Option<GicRegister> {
    const fn icc(crn: u64, crm: u64, op2: u64) -> u64 {
        3 << 14 | crn << 7 | crm << 3 | op2
    }
    const PMR: u64 = icc(4, 6, 0);
    const IAR_BPR0: u64 = icc(12, 8, 3);
    const AP0R0: u64 = icc(12, 8, 4);
    const AP0R3: u64 = icc(12, 8, 7);
    const AP1R0: u64 = icc(12, 9, 0);
    const AP1R3: u64 = icc(12, 9, 3);
    const ICC_BPR1: u64 = icc(12, 12, 3);
    const CTLR: u64 = icc(12, 12, 4);
    const SRE: u64 = icc(12, 12, 5);
    const IGRPEN0: u64 = icc(12, 12, 6);
    const IGRPEN1: u64 = icc(12, 12, 7);
    Some(match register {
        PMR => GicRegister::V3(V3_PMR),
        IAR_BPR0 => GicRegister::V3(BPR0),
        AP0R0..=AP0R3 => GicRegister::ActivePriorities((register - AP0R0) as u32),
        AP1R0..=AP1R3 => GicRegister::ActivePriorities(4 + (register - AP1R0) as u32),
        ICC_BPR1 => GicRegister::V3Bpr1,
        CTLR => GicRegister::V3Ctlr,
        SRE => GicRegister::V3Sre,
        IGRPEN0 => GicRegister::V3(V3_GROUP0),
        IGRPEN1 => GicRegister::V3(V3_GROUP1),
        _ => return None,
    })
}

impl Kvm {
    /// Whether there is such a register; its vCPU need not be there.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`].
    pub fn has_gic_register(&self, group: u32, attribute: u64) -> Result<(), Errno> {
        self.gic_register(group, attribute).map(|_| ())
    }

    fn gic_register(&self, group: u32, attribute: u64) -> Result<GicRegister, Errno> {
        let (v2, v3) = (self.device.is(GicVersion::V2), self.device.is(GicVersion::V3));
        let offset = word(attribute);
        let found = match group {
            GROUP_DIST if v2 => offset.and_then(|offset| distributor(Form::V2, offset)),
            GROUP_DIST if v3 => offset.and_then(|offset| distributor(Form::V3, offset)),
            GROUP_CPU if v2 => offset.and_then(v2_interface),
            GROUP_REDIST if v3 => offset.and_then(redistributor),
            GROUP_SYSREGS if v3 => v3_interface(attribute & 0xffff),
            // Bits 31:10: which information; there is only one.
            GROUP_LEVEL if v3 && attribute >> 10 & 0x3f_ffff == 0 && attribute & 0x1f == 0 => {
                Some(GicRegister::Levels((attribute & 0x3ff) as usize / 32))
            }
            _ => None,
        };
        found.ok_or(Errno::NoSuchDevice)
    }

    /// The register of groups DIST_REGS, CPU_REGS, REDIST_REGS, CPU_SYSREGS, LEVEL_INFO; get and set it by [`Kvm::get_register`], [`Kvm::set_register`].
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`], of LEVEL_INFO [`Errno::Invalid`] as in KVM; [`Errno::Invalid`] if the vCPU is not there; [`Errno::Busy`] before initialisation.
    pub fn find_gic_register(&mut self, group: u32, attribute: u64) -> Result<Found, Errno> {
        let unknown =
            if group == GROUP_LEVEL && self.device.is(GicVersion::V3) { Errno::Invalid } else { Errno::NoSuchDevice };
        let register = self.gic_register(group, attribute).map_err(|_| unknown)?;
        let upper = attribute >> 32;
        let vcpu = match group {
            GROUP_DIST if self.device.is(GicVersion::V3) => Some(0),
            GROUP_DIST | GROUP_CPU => usize::try_from(upper & 0xff).ok(),
            // Affinity 3 to 0, a byte each.
            _ => vcpu_of((upper >> 24) << 32 | upper & 0xff_ffff, self.count()),
        };
        let vcpu = vcpu.filter(|vcpu| self.created(*vcpu).is_ok()).ok_or(Errno::Invalid)?;
        if self.device.is(GicVersion::V2) {
            self.init_gic()?;
        }
        if !self.device.initialized {
            return Err(Errno::Busy);
        }
        Ok(Found { behind: Behind::Gic(register), vcpu })
    }

    pub(super) fn get_gic_register(&mut self, vcpu: usize, register: GicRegister, core: u64) -> Result<u64, Errno> {
        Ok(match register {
            GicRegister::Distributor(offset) => self.read_gic(vcpu, offset),
            GicRegister::Redistributor(offset) if offset == SGI_FRAME + 0x200 => self.gic.irqs.latches(vcpu, 0).into(),
            GicRegister::Redistributor(offset) if offset == SGI_FRAME + 0x280 => 0,
            GicRegister::Redistributor(offset) => {
                self.gic.read_redistributors(vcpu as u64 * GICR_STRIDE + u64::from(offset), Width::Word)
            }
            GicRegister::Levels(word) => self.gic.irqs.lines(vcpu, word).into(),
            GicRegister::V2(field) | GicRegister::V3(field) => field.get(core),
            GicRegister::V3Bpr1 if V3_CBPR.get(core) != 0 => (BPR0.get(core) + 1).min(7),
            GicRegister::V3Bpr1 => BPR1.get(core),
            GicRegister::V3Ctlr => {
                let (common, split) = (V3_CBPR.get(core) != 0, V3_EOIM.get(core) != 0);
                ICC_CTLR_FIXED | if common { ICC_CTLR_CBPR } else { 0 } | if split { ICC_CTLR_EOIMODE } else { 0 }
            }
            GicRegister::ActivePriorities(_) | GicRegister::V2ActivePriorities => core & u64::from(u32::MAX),
            GicRegister::Fixed(value) => value,
            GicRegister::V3Sre => ICC_SRE,
        })
    }

    /// The word for the core.
    pub(super) fn set_gic_register(
        &mut self,
        vcpu: usize,
        register: GicRegister,
        value: u64,
        core: u64,
    ) -> Result<u64, Errno> {
        let low = value as u32;
        Ok(match register {
            GicRegister::Distributor(offset) => {
                self.write_gic(vcpu, offset, low)?;
                core
            }
            GicRegister::Redistributor(offset) => {
                let at = vcpu as u64 * GICR_STRIDE + u64::from(offset);
                match offset.checked_sub(SGI_FRAME) {
                    Some(0x200) => self.gic.irqs.set_latches(vcpu, 0, low),
                    Some(0x280) => {}
                    _ => self.gic.write_redistributors(at, Width::Word, low.into()),
                }
                self.update_lpis();
                core
            }
            GicRegister::Levels(word) => {
                self.gic.irqs.set_lines(vcpu, word, low);
                core
            }
            GicRegister::V2(field) | GicRegister::V3(field) => field.set(core, value),
            // With the binary point of group 0 for both it has none of its own.
            GicRegister::V3Bpr1 if V3_CBPR.get(core) != 0 => core,
            GicRegister::V3Bpr1 => BPR1.set(core, value),
            GicRegister::V3Ctlr if value & !(ICC_CTLR_CBPR | ICC_CTLR_EOIMODE) != ICC_CTLR_FIXED => {
                return Err(Errno::Invalid);
            }
            GicRegister::V3Ctlr => {
                let core = V3_CBPR.set(core, u64::from(value & ICC_CTLR_CBPR != 0));
                V3_EOIM.set(core, u64::from(value & ICC_CTLR_EOIMODE != 0))
            }
            GicRegister::ActivePriorities(_) | GicRegister::V2ActivePriorities => low.into(),
            GicRegister::Fixed(_) => core,
            GicRegister::V3Sre if value != ICC_SRE => return Err(Errno::Invalid),
            GicRegister::V3Sre => core,
        })
    }

    fn read_gic(&mut self, vcpu: usize, offset: u32) -> u64 {
        match (self.form(), offset) {
            (Form::V2, _) => Distributor { irqs: &mut self.gic.irqs }.read(vcpu, offset.into(), Width::Word),
            (Form::V3, 0x204..0x280) => self.gic.irqs.latches(0, (offset as usize - 0x200) / 4).into(),
            (Form::V3, 0x280..0x300) => 0,
            (Form::V3, _) => self.gic.read_distributor(offset.into(), Width::Word),
        }
    }

    fn write_gic(&mut self, vcpu: usize, offset: u32, value: u32) -> Result<(), Errno> {
        const IIDR: u32 = 0x008;
        match (self.form(), offset) {
            (_, IIDR) if u64::from(value) != self.read_gic(vcpu, IIDR) => return Err(Errno::Invalid),
            (Form::V2, _) => {
                Distributor { irqs: &mut self.gic.irqs }.write(vcpu, offset.into(), Width::Word, value.into());
            }
            (Form::V3, 0x204..0x280) => self.gic.irqs.set_latches(0, (offset as usize - 0x200) / 4, value),
            (Form::V3, 0x280..0x300) => {}
            (Form::V3, _) => self.gic.write_distributor(offset.into(), Width::Word, value.into()),
        }
        Ok(())
    }
}
