//! GICv2 distributor, as a VM without the Security Extensions sees it. The CPU interface is the machine's own (GICV).
//!
//! | offset  | register                              | notes                                                             |
//! |---------|---------------------------------------|-------------------------------------------------------------------|
//! | `0x000` | CTLR, TYPER, IIDR                     | CTLR: EnableGrp0, EnableGrp1; interrupts begin in group 0         |
//! | `0x080` | see [`crate::irq::registers`]         | SGIs are always enabled                                           |
//! | `0x800` | ITARGETSR                             | 8, 32 bits; the lowest vCPU named gets an SPI, the first if none is |
//! | `0xf00` | SGIR                                  |                                                                   |
//! | `0xf10` | CPENDSGIR, SPENDSGIR                  | 8, 32 bits                                                        |
//! | `0xfd0` | PIDR, CIDR                            | ICPIDR2: architecture 2                                           |
//!
//! Up to 8 vCPUs. What is not there reads as zero and ignores writes. Source: IHI 0048B §4.3.
#![forbid(unsafe_code)]

use crate::irq::registers::{is_word, read_bytes, write_bytes};
use crate::irq::{Engine, Form, PRIVATE};
use crate::mmio::{Device, Width};

/// Implementer Arm, product of our own.
const IIDR: u32 = 0x6300_043b;
/// Peripheral and component identification as the architecture's example gives them.
const IDS: [u8; 12] = [0x04, 0, 0, 0, 0x90, 0xb4, 0x2b, 0, 0x0d, 0xf0, 0x05, 0xb1];

/// The distributor.
#[derive(Clone, Debug)]
pub struct GicV2<const V: usize, const S: usize> {
    /// The interrupts.
    pub irqs: Engine<V, S>,
}

impl<const V: usize, const S: usize> GicV2<V, S> {
    /// For `vcpus` vCPUs, at most 8.
    pub const fn new(vcpus: usize) -> Self {
        Self { irqs: Engine::new(Form::V2, vcpus) }
    }
}

/// The registers over interrupts that somebody else keeps.
#[derive(Debug)]
pub struct Distributor<'a, const V: usize, const S: usize> {
    /// The interrupts, of form V2.
    pub irqs: &'a mut Engine<V, S>,
}

impl<const V: usize, const S: usize> Distributor<'_, V, S> {
    fn target(&self, vcpu: usize, intid: usize) -> u8 {
        if intid < PRIVATE { 1 << (vcpu & 7) } else { self.irqs.route(intid) as u8 }
    }

    fn set_target(&mut self, intid: usize, mask: u8) {
        let exist = (1u16 << self.irqs.vcpus()) - 1;
        self.irqs.set_route(intid, u16::from(mask) & exist);
    }

    /// SGIR: TargetListFilter, CPUTargetList, SGIINTID.
    fn send_sgi(&mut self, vcpu: usize, value: u32) {
        let targets = match value >> 24 & 3 {
            0 => value >> 16 & 0xff,
            1 => !(1 << vcpu),
            2 => 1 << vcpu,
            _ => return,
        };
        self.irqs.send_sgi(vcpu, targets, (value & 15) as usize, None);
    }
}

impl<const V: usize, const S: usize> Device for GicV2<V, S> {
    fn read(&mut self, vcpu: usize, offset: u64, width: Width) -> u64 {
        Distributor { irqs: &mut self.irqs }.read(vcpu, offset, width)
    }

    fn write(&mut self, vcpu: usize, offset: u64, width: Width, value: u64) {
        Distributor { irqs: &mut self.irqs }.write(vcpu, offset, width, value);
    }
}

impl<const V: usize, const S: usize> Device for Distributor<'_, V, S> {
    fn read(&mut self, vcpu: usize, offset: u64, width: Width) -> u64 {
        if vcpu >= self.irqs.vcpus() {
            return 0;
        }
        let value = match offset {
            0x800..0xc00 => read_bytes(offset - 0x800, width, |intid| self.target(vcpu, intid)),
            0xf10..0xf30 => read_bytes(offset & 15, width, |sgi| self.irqs.sgi_sources(vcpu, sgi)),
            0x080..0x800 | 0xc00..0xd00 => self.irqs.read_common(vcpu, offset, width, &(0..self.irqs.intids())),
            _ if !is_word(offset, width) => 0,
            0x000 => {
                let [group0, group1] = self.irqs.enables();
                u32::from(group0) | u32::from(group1) << 1
            }
            0x004 => self.irqs.lines_number() | (self.irqs.vcpus() as u32 - 1) << 5,
            0x008 => IIDR,
            0xfd0..0x1000 => IDS[(offset as usize - 0xfd0) / 4].into(),
            _ => 0,
        };
        value.into()
    }

    fn write(&mut self, vcpu: usize, offset: u64, width: Width, value: u64) {
        let value = value as u32;
        if vcpu >= self.irqs.vcpus() {
            return;
        }
        match offset {
            0x800..0xc00 => write_bytes(offset - 0x800, width, value, |intid, mask| self.set_target(intid, mask)),
            0xf10..0xf20 => write_bytes(offset & 15, width, value, |sgi, mask| {
                self.irqs.clear_sgi_sources(vcpu, sgi, mask);
            }),
            0xf20..0xf30 => write_bytes(offset & 15, width, value, |sgi, mask| {
                self.irqs.set_sgi_sources(vcpu, sgi, mask);
            }),
            0x080..0x800 | 0xc00..0xd00 => {
                self.irqs.write_common(vcpu, offset, width, value, &(0..self.irqs.intids()));
            }
            _ if !is_word(offset, width) => {}
            0x000 => self.irqs.set_enables([value & 1 != 0, value & 2 != 0]),
            0xf00 => self.send_sgi(vcpu, value),
            _ => {}
        }
    }
}
