//! The machine's own interrupt controller: its private interrupts and one software-generated interrupt.
//! Sources: Arm IHI 0048B (GICv2), IHI 0069H (GICv3).

use alloc::vec::Vec;
use core::arch::asm;

use super::Registers;
use super::lpis::Frame;

/// The kick between CPUs.
pub const KICK: u32 = 0;
/// The core's kick between CPUs that run vCPUs of one VM: of a higher priority than all others, as the core wants it.
pub const CORE_KICK: u32 = 1;
/// Interrupts that are enabled: both kicks, maintenance, virtual timer, this program's own timer.
const ENABLED: u32 = 1 << KICK | 1 << CORE_KICK | 1 << 25 | 1 << 27 | 1 << 30;
/// Priorities of interrupts 4 * n and on.
const PRIORITY: u32 = 0xa0a0_a0a0;
/// Those of the first four.
const PRIORITY_0: u32 = PRIORITY & !(0xff << (8 * CORE_KICK)) | 0x80 << (8 * CORE_KICK);

const GICD_CTLR: u64 = 0;
const GICD_ISENABLER: u64 = 0x100;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_SGIR: u64 = 0xf00;
const GICC_CTLR: u64 = 0;
const GICC_PMR: u64 = 4;
const GICC_BPR: u64 = 8;
const GICC_IAR: u64 = 0xc;
const GICC_EOIR: u64 = 0x10;
const GICR_TYPER: u64 = 8;
const GICR_WAKER: u64 = 0x14;
const GICR_SGI: u64 = 0x1_0000;
const GICR_IGROUPR0: u64 = GICR_SGI + 0x80;
const GICR_ISENABLER0: u64 = GICR_SGI + 0x100;
const GICR_IPRIORITYR: u64 = GICR_SGI + 0x400;
/// From here on an interrupt's number says that there is none, up to those of LPIs.
const SPURIOUS: u32 = 1020;
/// The first LPI.
const FIRST_LPI: u32 = 8192;
const PATIENCE: u32 = 10_000_000;

/// The interrupt controller.
#[derive(Clone, Copy, Debug)]
pub enum Gic {
    /// GICv2: distributor, CPU interface.
    V2 {
        /// GICD.
        #[allow(private_interfaces, reason = "made by `v2` only")]
        distributor: Registers,
        /// GICC.
        #[allow(private_interfaces, reason = "made by `v2` only")]
        cpu: Registers,
    },
    /// GICv3: distributor, first redistributors.
    V3 {
        /// GICD.
        #[allow(private_interfaces, reason = "made by `v3` only")]
        distributor: Registers,
        /// GICR, of the first CPU of the region.
        #[allow(private_interfaces, reason = "made by `v3` only")]
        redistributors: Registers,
    },
}

impl Gic {
    /// A GICv2, as the device tree describes it.
    pub fn v2(distributor: u64, cpu: u64) -> Self {
        // SAFETY: the device tree says what is there, and what is no RAM is mapped as device memory.
        unsafe { Self::V2 { distributor: Registers::new(distributor), cpu: Registers::new(cpu) } }
    }

    /// A GICv3, as the device tree describes it.
    pub fn v3(distributor: u64, redistributors: u64) -> Self {
        // SAFETY: as in `v2`.
        unsafe { Self::V3 { distributor: Registers::new(distributor), redistributors: Registers::new(redistributors) } }
    }

    /// The distributor: once, on the first CPU.
    pub fn start(&self) {
        match self {
            Self::V2 { distributor, .. } => distributor.write(GICD_CTLR, 1),
            // ARE_NS, both groups 1.
            Self::V3 { distributor, .. } => distributor.write(GICD_CTLR, 0x13),
        }
    }

    /// This CPU's part.
    ///
    /// # Errors
    /// A text if it does not answer.
    pub fn start_cpu(&self) -> Result<(), &'static str> {
        match self {
            Self::V2 { distributor, cpu } => {
                for n in 0..8 {
                    distributor.write(GICD_IPRIORITYR + n * 4, PRIORITY);
                }
                distributor.write(GICD_ISENABLER, ENABLED);
                cpu.write(GICC_PMR, 0xf0);
                cpu.write(GICC_BPR, 0);
                cpu.write(GICC_CTLR, 1);
            }
            Self::V3 { redistributors, .. } => {
                let own = own_redistributor(*redistributors).ok_or("this CPU has no redistributor")?;
                own.write(GICR_WAKER, own.read(GICR_WAKER) & !2);
                if !(0..PATIENCE).any(|_| own.read(GICR_WAKER) & 4 == 0) {
                    return Err("the redistributor does not wake");
                }
                own.write(GICR_IGROUPR0, u32::MAX);
                for n in 0..8 {
                    own.write(GICR_IPRIORITYR + n * 4, if n == 0 { PRIORITY_0 } else { PRIORITY });
                }
                own.write(GICR_ISENABLER0, ENABLED);
                // SAFETY: this program's own CPU interface; interrupts are masked.
                unsafe {
                    asm!(
                        "mrs {t}, S3_0_C12_C12_5", "orr {t}, {t}, #1", "msr S3_0_C12_C12_5, {t}", "isb", // ICC_SRE_EL1
                        "mov {t}, #0xf0", "msr S3_0_C4_C6_0, {t}",                                      // ICC_PMR_EL1
                        "msr S3_0_C12_C12_3, xzr",                                                      // ICC_BPR1_EL1
                        "msr S3_0_C12_C12_4, xzr",                                                      // ICC_CTLR_EL1
                        "mov {t}, #1", "msr S3_0_C12_C12_7, {t}", "isb",                                // ICC_IGRPEN1_EL1
                        t = out(reg) _, options(nostack)
                    );
                }
            }
        }
        Ok(())
    }

    /// Takes one pending interrupt and ends it: its number.
    pub fn take(&self) -> Option<u32> {
        let id = match self {
            Self::V2 { cpu, .. } => {
                let iar = cpu.read(GICC_IAR);
                if iar & 0x3ff < SPURIOUS {
                    cpu.write(GICC_EOIR, iar);
                }
                iar & 0x3ff
            }
            Self::V3 { .. } => {
                let iar: u64;
                // SAFETY: ICC_IAR1_EL1.
                unsafe { asm!("mrs {}, S3_0_C12_C12_0", "dsb sy", out(reg) iar, options(nostack)) };
                if !is_none(iar as u32) {
                    // SAFETY: ICC_EOIR1_EL1, with what was read.
                    unsafe { asm!("msr S3_0_C12_C12_1, {}", "isb", in(reg) iar, options(nostack)) };
                }
                iar as u32
            }
        };
        (!is_none(id)).then_some(id)
    }

    /// Interrupts another CPU: GICv2 by the number of its interface, GICv3 by its affinity.
    pub fn kick(&self, interface: usize, affinity: u64) {
        // SAFETY: a barrier: what was written before is seen by the CPU that is kicked.
        unsafe { asm!("dsb ish", options(nostack)) };
        match self {
            Self::V2 { distributor, .. } => distributor.write(GICD_SGIR, 1 << (16 + (interface & 7)) | KICK),
            Self::V3 { .. } => {
                let list = 1 << (affinity & 0xf);
                let value = list
                    | (affinity >> 8 & 0xff) << 16
                    | u64::from(KICK) << 24
                    | (affinity >> 16 & 0xff) << 32
                    | (affinity >> 4 & 0xf) << 44
                    | (affinity >> 32 & 0xff) << 48;
                // SAFETY: ICC_SGI1R_EL1.
                unsafe { asm!("msr S3_0_C12_C11_5, {}", "isb", in(reg) value, options(nostack)) };
            }
        }
    }

    /// GICv3: every redistributor, and which of them is this CPU's. GICv2: there is none.
    pub fn redistributors(&self) -> Vec<(Frame, bool)> {
        match self {
            Self::V2 { .. } => Vec::new(),
            Self::V3 { redistributors: first, .. } => {
                redistributors(*first).map(|at| (Frame::new(at), is_own(at))).collect()
            }
        }
    }

    /// GICv2: this CPU's interface, as the distributor numbers them (GICD_ITARGETSR0). GICv3: 0.
    pub fn interface(&self) -> usize {
        match self {
            Self::V2 { distributor, .. } => (distributor.read(0x800) as u8).trailing_zeros() as usize & 7,
            Self::V3 { .. } => 0,
        }
    }
}

/// Whether this is no interrupt's number.
const fn is_none(id: u32) -> bool {
    SPURIOUS <= id && id < FIRST_LPI
}

/// One behind the other, up to the one that says it is the last.
fn redistributors(first: Registers) -> impl Iterator<Item = Registers> {
    let after = |at: &Registers| {
        let typer = at.read64(GICR_TYPER);
        let next = at.base + if typer & 1 << 1 != 0 { 0x4_0000 } else { 0x2_0000 };
        (typer & 1 << 4 == 0).then_some(Registers { base: next })
    };
    core::iter::successors(Some(first), after).take(super::entry::MAX_CPUS * 4)
}

fn is_own(redistributor: Registers) -> bool {
    let affinity = super::cpu::affinity();
    redistributor.read64(GICR_TYPER) >> 32 == (affinity & 0xff_ffff) | (affinity >> 32 & 0xff) << 24
}

fn own_redistributor(first: Registers) -> Option<Registers> {
    redistributors(first).find(|at| is_own(*at))
}
