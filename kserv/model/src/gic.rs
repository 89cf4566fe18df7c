//! A VM's interrupt controller, whichever it is: GICv2 or GICv3, as the machine's own is, because its CPU interface is the machine's.
#![forbid(unsafe_code)]

use crate::gicv2::GicV2;
use crate::gicv3::GicV3;
use crate::irq::Engine;
use crate::layout::{GICD_BASE, GICD_SIZE, GICR_BASE};
use crate::mmio::{Device, Width};

/// Redistributors, from the distributor on.
const REDISTRIBUTORS: u64 = GICR_BASE - GICD_BASE;

/// Which interrupt controller the machine can virtualise: CoreInfo x2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GicVersion {
    /// GICv2.
    V2,
    /// GICv3.
    V3,
}

impl GicVersion {
    /// From CoreInfo; `None` if the machine has neither.
    pub const fn from_core_info(version: u64) -> Option<Self> {
        match version & 0xff {
            2 => Some(Self::V2),
            3 => Some(Self::V3),
            _ => None,
        }
    }
}

/// The VM's interrupt controller.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one per VM, in place")]
pub enum Gic<const V: usize, const S: usize> {
    /// GICv2.
    V2(GicV2<V, S>),
    /// GICv3.
    V3(GicV3<V, S>),
}

impl<const V: usize, const S: usize> Gic<V, S> {
    /// Its interrupts.
    pub const fn irqs(&mut self) -> &mut Engine<V, S> {
        match self {
            Self::V2(gic) => &mut gic.irqs,
            Self::V3(gic) => &mut gic.irqs,
        }
    }
}

/// All that is between the distributor and the serial port.
impl<const V: usize, const S: usize> Device for Gic<V, S> {
    fn read(&mut self, vcpu: usize, offset: u64, width: Width) -> u64 {
        match (self, offset) {
            (Self::V2(gic), 0..GICD_SIZE) => gic.read(vcpu, offset, width),
            (Self::V3(gic), 0..GICD_SIZE) => gic.read_distributor(offset, width),
            (Self::V3(gic), REDISTRIBUTORS..) => gic.read_redistributors(offset - REDISTRIBUTORS, width),
            _ => 0,
        }
    }

    fn write(&mut self, vcpu: usize, offset: u64, width: Width, value: u64) {
        match (self, offset) {
            (Self::V2(gic), 0..GICD_SIZE) => gic.write(vcpu, offset, width, value),
            (Self::V3(gic), 0..GICD_SIZE) => gic.write_distributor(offset, width, value),
            (Self::V3(gic), REDISTRIBUTORS..) => gic.write_redistributors(offset - REDISTRIBUTORS, width, value),
            _ => {}
        }
    }
}
