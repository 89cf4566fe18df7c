//! GICv3 distributor and redistributors with affinity routing, one security state, no LPIs; SGIs by ICC_SGI1R_EL1.
//!
//! | where                   | registers                                                                                       |
//! |-------------------------|-------------------------------------------------------------------------------------------------|
//! | distributor             | CTLR (DS, ARE), TYPER, IIDR, those of [`crate::irq::registers`] for SPIs, IROUTER, PIDR2        |
//! | redistributor, RD frame | CTLR, IIDR, TYPER, WAKER, PIDR2                                                                 |
//! | redistributor, SGI frame | those of [`crate::irq::registers`] for SGIs and PPIs of its vCPU                               |
//! | system registers        | ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1: [`GicV3::send_sgi`]                               |
//!
//! Interrupts begin in group 1. Up to 16 vCPUs, 16 to a cluster. The CPU interface is the machine's own (ICV_*).
//! Source: IHI 0069H §12.9 (GICD), §12.11 (GICR), §12.2.15 (ICC_SGI1R_EL1).
#![forbid(unsafe_code)]

use crate::irq::registers::is_word;
use crate::irq::{Engine, Form, PRIVATE};
use crate::layout::{GICR_STRIDE, affinity, vcpu_of};
use crate::mmio::Width;
use crate::sysreg::Register;

const IIDR: u32 = 0x6300_043b;
const PIDR2: u32 = 0x3b;
const FRAME: u64 = 0x1_0000;
/// CTLR: one security state, affinity routing.
const CTLR_FIXED: u32 = 1 << 6 | 1 << 4;
/// TYPER: 10 bits of interrupt number, no 1 of N.
const TYPER_FIXED: u32 = 9 << 19 | 1 << 25;
const IROUTER: u64 = 0x6100;
const IROUTER_MASK: u64 = 0xff_00ff_ffff;

/// Distributor and redistributors.
#[derive(Clone, Debug)]
pub struct GicV3<const V: usize, const S: usize> {
    /// The interrupts.
    pub irqs: Engine<V, S>,
    router: [u64; S],
    /// WAKER.ProcessorSleep, one bit a vCPU.
    asleep: u32,
}

impl<const V: usize, const S: usize> GicV3<V, S> {
    /// For `vcpus` vCPUs, at most 16.
    pub const fn new(vcpus: usize) -> Self {
        let mut irqs = Engine::new(Form::V3, vcpus);
        let mut spi = 0;
        while spi < S {
            // Affinity 0.0.0.0 is vCPU 0.
            irqs.reset_route(spi);
            spi += 1;
        }
        Self { irqs, router: [0; S], asleep: u32::MAX }
    }

    /// Becomes, in place, what [`GicV3::new`] makes, with `spis` SPIs; or, of form V2, the interrupts of [`crate::gicv2::Distributor`].
    pub fn reset(&mut self, form: Form, vcpus: usize, spis: usize) {
        self.irqs.reset(form, vcpus, spis);
        if form == Form::V3 {
            (0..S).for_each(|spi| self.irqs.reset_route(spi));
        }
        self.router.fill(0);
        self.asleep = u32::MAX;
    }

    fn spis(&self) -> core::ops::Range<usize> {
        PRIVATE..self.irqs.intids()
    }

    /// SPI and half of an access to IROUTER: 64 bits, or one of its halves.
    fn router_at(&self, offset: u64, width: Width) -> Option<(usize, u32)> {
        let at = offset.checked_sub(IROUTER)?;
        let spi = usize::try_from(at / 8).ok().filter(|spi| PRIVATE + *spi < self.irqs.intids())?;
        match width {
            Width::Double if at.is_multiple_of(8) => Some((spi, 0)),
            Width::Word if at.is_multiple_of(4) => Some((spi, at as u32 % 8 * 8)),
            _ => None,
        }
    }

    fn write_router(&mut self, offset: u64, width: Width, value: u64) {
        let Some((spi, shift)) = self.router_at(offset, width) else { return };
        let mask = (width.mask() << shift) & IROUTER_MASK;
        let route = self.router[spi] & !mask | value << shift & mask;
        self.router[spi] = route;
        let mask = vcpu_of(route, self.irqs.vcpus()).map_or(0, |vcpu| 1 << vcpu);
        self.irqs.set_route(PRIVATE + spi, mask);
    }

    /// A load from the distributor.
    pub fn read_distributor(&mut self, offset: u64, width: Width) -> u64 {
        if let Some((spi, shift)) = self.router_at(offset, width) {
            return self.router[spi] >> shift & width.mask();
        }
        let value = match offset {
            0x080..0xd00 => self.irqs.read_common(0, offset, width, &self.spis()),
            _ if !is_word(offset, width) => 0,
            0x000 => {
                let [group0, group1] = self.irqs.enables();
                CTLR_FIXED | u32::from(group0) | u32::from(group1) << 1
            }
            0x004 => TYPER_FIXED | self.irqs.lines_number(),
            0x008 => IIDR,
            0xffe8 => PIDR2,
            _ => 0,
        };
        value.into()
    }

    /// A store to the distributor.
    pub fn write_distributor(&mut self, offset: u64, width: Width, value: u64) {
        match offset {
            IROUTER..0x8000 => self.write_router(offset, width, value),
            0x080..0xd00 => self.irqs.write_common(0, offset, width, value as u32, &self.spis()),
            0x000 if is_word(offset, width) => self.irqs.set_enables([value & 1 != 0, value & 2 != 0]),
            _ => {}
        }
    }

    /// A load from the redistributors; the offset is from the first one's.
    pub fn read_redistributors(&mut self, offset: u64, width: Width) -> u64 {
        let (vcpu, offset) = ((offset / GICR_STRIDE) as usize, offset % GICR_STRIDE);
        if vcpu >= self.irqs.vcpus() {
            return 0;
        }
        let last = vcpu + 1 == self.irqs.vcpus();
        let typer = affinity(vcpu) << 32 | (vcpu as u64) << 8 | u64::from(last) << 4;
        let value = match offset {
            0x0008 if width == Width::Double => return typer,
            FRAME.. => self.irqs.read_common(vcpu, offset - FRAME, width, &(0..PRIVATE)),
            _ if !is_word(offset, width) => 0,
            0x0004 => IIDR,
            0x0008 => typer as u32,
            0x000c => (typer >> 32) as u32,
            0x0014 => (self.asleep >> vcpu & 1) * 0b110,
            0xffe8 => PIDR2,
            _ => 0,
        };
        value.into()
    }

    /// A store to the redistributors.
    pub fn write_redistributors(&mut self, offset: u64, width: Width, value: u64) {
        let (vcpu, offset) = ((offset / GICR_STRIDE) as usize, offset % GICR_STRIDE);
        if vcpu >= self.irqs.vcpus() {
            return;
        }
        match offset {
            FRAME.. => self.irqs.write_common(vcpu, offset - FRAME, width, value as u32, &(0..PRIVATE)),
            0x0014 if is_word(offset, width) => {
                self.asleep = self.asleep & !(1 << vcpu) | (value as u32 >> 1 & 1) << vcpu;
            }
            _ => {}
        }
    }

    /// A write of `vcpu` to ICC_SGI1R_EL1 (group 1), or to ICC_ASGI1R_EL1 or ICC_SGI0R_EL1 (group 0).
    pub fn send_sgi(&mut self, vcpu: usize, register: Register, value: u64) {
        let sgi = (value >> 24 & 0xf) as usize;
        let targets = if value >> 40 & 1 != 0 {
            !(1 << vcpu)
        } else {
            let cluster = (value >> 48 & 0xff) << 32 | (value >> 32 & 0xff) << 16 | (value >> 16 & 0xff) << 8;
            // 16 vCPUs to a cluster, and no more clusters than the mask has room for; the range selector names others.
            match vcpu_of(cluster, self.irqs.vcpus()) {
                Some(first) if value >> 44 & 0xf == 0 => {
                    ((value & 0xffff) as u32).checked_shl(first as u32).unwrap_or(0)
                }
                _ => 0,
            }
        };
        self.irqs.send_sgi(vcpu, targets, sgi, Some(register == Register::IccSgi1r));
    }
}
