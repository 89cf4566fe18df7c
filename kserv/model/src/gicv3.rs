//! GICv3 distributor and redistributors with affinity routing, one security state; SGIs by ICC_SGI1R_EL1.
//!
//! | where                   | registers                                                                                       |
//! |-------------------------|-------------------------------------------------------------------------------------------------|
//! | distributor             | CTLR (DS, ARE), TYPER, IIDR, those of [`crate::irq::registers`] for SPIs, IROUTER, PIDR2        |
//! | redistributor, RD frame | CTLR, IIDR, TYPER, WAKER, PIDR2; with LPIs PROPBASER (one for all), PENDBASER                    |
//! | redistributor, SGI frame | those of [`crate::irq::registers`] for SGIs and PPIs of its vCPU                               |
//! | system registers        | ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1: [`GicV3::send_sgi`]                               |
//!
//! Interrupts begin in group 1. Up to 16 vCPUs, 16 to a cluster. The CPU interface is the machine's own (ICV_*).
//! Source: IHI 0069H §12.9 (GICD), §12.11 (GICR), §12.2.15 (ICC_SGI1R_EL1).
#![forbid(unsafe_code)]

use crate::irq::registers::is_word;
use crate::irq::{Engine, Form, PRIVATE};
use crate::its::Around;
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
/// TYPER: LPIs, 16 bits of interrupt number.
const TYPER_LPIS: u32 = 1 << 17 | 15 << 19;
/// PENDBASER: the table is zero; write only.
const PENDBASER_PTZ: u64 = 1 << 62;
const IROUTER: u64 = 0x6100;
const IROUTER_MASK: u64 = 0xff_00ff_ffff;

/// What an access of `width` at `offset` sees of a 64-bit register.
const fn part(value: u64, offset: u64, width: Width) -> u64 {
    match width {
        Width::Double if offset.is_multiple_of(8) => value,
        Width::Word if offset.is_multiple_of(4) => value >> (offset % 8 * 8) & width.mask(),
        _ => 0,
    }
}

/// A 64-bit register after a store.
const fn merge(old: u64, offset: u64, width: Width, value: u64) -> u64 {
    match width {
        Width::Double if offset.is_multiple_of(8) => value,
        Width::Word if offset.is_multiple_of(4) => {
            let shift = offset % 8 * 8;
            old & !(width.mask() << shift) | (value & width.mask()) << shift
        }
        _ => old,
    }
}

/// Distributor and redistributors.
#[derive(Clone, Debug)]
pub struct GicV3<const V: usize, const S: usize> {
    /// The interrupts.
    pub irqs: Engine<V, S>,
    router: [u64; S],
    /// WAKER.ProcessorSleep, one bit a vCPU.
    asleep: u32,
    /// It has LPIs: there is an [`crate::its::Its`].
    lpis: bool,
    /// CTLR.EnableLPIs, one bit a vCPU.
    lpis_enabled: u32,
    /// PROPBASER: the configuration of LPIs. One for all vCPUs.
    table: u64,
    /// PENDBASER.
    pending: [u64; V],
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
        Self { irqs, router: [0; S], asleep: u32::MAX, lpis: false, lpis_enabled: 0, table: 0, pending: [0; V] }
    }

    /// Becomes, in place, what [`GicV3::new`] makes, with `spis` SPIs; or, of form V2, the interrupts of [`crate::gicv2::Distributor`].
    pub fn reset(&mut self, form: Form, vcpus: usize, spis: usize) {
        self.irqs.reset(form, vcpus, spis);
        if form == Form::V3 {
            (0..S).for_each(|spi| self.irqs.reset_route(spi));
        }
        self.router.fill(0);
        self.asleep = u32::MAX;
        (self.lpis, self.lpis_enabled, self.table) = (false, 0, 0);
        self.pending.fill(0);
    }

    /// It has LPIs from now on.
    pub fn add_lpis(&mut self) {
        self.irqs.add_lpis();
        self.lpis = true;
    }

    /// What a translation service works on.
    pub const fn around_its(&mut self) -> Around<'_, V, S> {
        Around { irqs: &mut self.irqs, enabled: self.lpis_enabled, table: self.table, pending: &self.pending }
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
            0x004 => TYPER_FIXED | self.irqs.lines_number() | if self.lpis { TYPER_LPIS } else { 0 },
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
        let typer = affinity(vcpu) << 32 | (vcpu as u64) << 8 | u64::from(last) << 4 | u64::from(self.lpis);
        let value = match offset {
            0x0008 if width == Width::Double => return typer,
            0x0070..0x0080 if self.lpis => return part(self.bases(vcpu, offset), offset, width),
            0x0000 if is_word(offset, width) => self.lpis_enabled >> vcpu & 1,
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

    const fn bases(&self, vcpu: usize, offset: u64) -> u64 {
        if offset & !7 == 0x70 { self.table } else { self.pending[vcpu] }
    }

    /// A store to CTLR, PROPBASER or PENDBASER: no effect without LPIs, nor on the bases while this vCPU has its LPIs enabled. The others may: the kernel
    /// after a kexec finds them so.
    fn write_lpis(&mut self, vcpu: usize, offset: u64, width: Width, value: u64) {
        let enabled = self.lpis_enabled >> vcpu & 1 != 0;
        match offset {
            _ if !self.lpis => {}
            0x0000 if is_word(offset, width) => {
                self.lpis_enabled = self.lpis_enabled & !(1 << vcpu) | (value as u32 & 1) << vcpu;
                if enabled && value & 1 == 0 {
                    self.irqs.drop_lpis(vcpu);
                }
            }
            0x0070..0x0078 if !enabled => self.table = merge(self.table, offset, width, value),
            0x0078..0x0080 if !enabled => {
                self.pending[vcpu] = merge(self.pending[vcpu], offset, width, value) & !PENDBASER_PTZ;
            }
            _ => {}
        }
    }

    /// A store to the redistributors.
    pub fn write_redistributors(&mut self, offset: u64, width: Width, value: u64) {
        let (vcpu, offset) = ((offset / GICR_STRIDE) as usize, offset % GICR_STRIDE);
        if vcpu >= self.irqs.vcpus() {
            return;
        }
        match offset {
            FRAME.. => self.irqs.write_common(vcpu, offset - FRAME, width, value as u32, &(0..PRIVATE)),
            0x0000 | 0x0070..0x0080 => self.write_lpis(vcpu, offset, width, value),
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
