//! The GIC's virtual CPU interface: list registers and what goes with them, of GICv2 (memory-mapped GICH) and GICv3 (system registers).
//!
//! Between VMs it is off, so the host, whose interrupts do not go through it, never sees a list register at work.
//! A VM of GICv3 has the system register interface only: ICC_SRE_EL1 is one register for host and VMs, and on most CPUs cannot be
//! written; where it can, it is put back after the VM. Source: GIC architecture (IHI 0069) 12.4, GICv2 (IHI 0048) 5.3.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use spin::Once;

use super::super::addr::PhysRange;
use super::super::shadow::{Context, VGIC_WORDS};
use super::super::world::{VgicInfo, VgicWord};
use super::sysreg;

static INFO: Once<VgicInfo> = Once::new();
static GICH: AtomicU64 = AtomicU64::new(0);

const HCR_EN: u64 = 1;
/// UIE, LRENPIE, NPIE: what a host may ask for.
const HCR_ENABLES: u64 = 0b1110;
const MOST_LRS: usize = 16;
const SRE: u64 = 0b111;

/// Registers of GICH by offset.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Gich {
    Hcr = 0x000,
    Vtr = 0x004,
    Vmcr = 0x008,
    Misr = 0x010,
    Eisr = 0x020,
    Elrsr = 0x030,
    Apr = 0x0f0,
    Lr = 0x100,
}

fn gich_read(reg: Gich, n: usize) -> u64 {
    let at = GICH.load(Ordering::Relaxed) + reg as u64 + 4 * n as u64;
    // SAFETY: GICH is mapped as device memory for good (`use_v2`); reading its registers has no effect.
    u64::from(unsafe { (at as *const u32).read_volatile() })
}

fn gich_write(reg: Gich, n: usize, value: u64) {
    let at = GICH.load(Ordering::Relaxed) + reg as u64 + 4 * n as u64;
    // SAFETY: as above; each CPU reaches its own bank of these registers.
    unsafe { (at as *mut u32).write_volatile(value as u32) };
}

/// VMs use GICv2, its control registers mapped at `gich`.
pub fn use_v2(gich: PhysRange, gicv: Option<PhysRange>) {
    GICH.store(gich.base().raw(), Ordering::Relaxed);
    INFO.call_once(|| VgicInfo { version: 2, list_registers: list_registers(gich_read(Gich::Vtr, 0)), gicv });
}

/// VMs use the system registers of GICv3.
pub fn use_v3() {
    INFO.call_once(|| VgicInfo { version: 3, list_registers: list_registers(sysreg::IchVtr::get().get()), gicv: None });
}

fn list_registers(vtr: u64) -> u8 {
    // ListRegs: bits 5 to 0 of GICH_VTR, 4 to 0 of ICH_VTR_EL2 (bit 5 is RES0), minus one.
    (vtr & 0x3f).min(MOST_LRS as u64 - 1) as u8 + 1
}

/// What VMs have.
pub fn info() -> VgicInfo {
    INFO.get().copied().unwrap_or_default()
}

/// Turns the interface of this CPU off.
fn off(version: u8) {
    match version {
        2 => gich_write(Gich::Hcr, 0, 0),
        3 => sysreg::IchHcr::set(0),
        _ => {}
    }
}

/// Saves the interface into `context`, and turns it off.
pub fn save(context: &mut Context) {
    let info = info();
    let lrs = usize::from(info.list_registers);
    let words = &mut context.vgic;
    match info.version {
        2 => {
            words[VgicWord::Misr as usize] = gich_read(Gich::Misr, 0);
            words[VgicWord::Eisr as usize] = gich_read(Gich::Eisr, 0);
            words[VgicWord::Elrsr as usize] = gich_read(Gich::Elrsr, 0);
            words[VgicWord::Hcr as usize] = gich_read(Gich::Hcr, 0);
            words[VgicWord::Vmcr as usize] = gich_read(Gich::Vmcr, 0);
            words[VgicWord::Ap0r as usize] = gich_read(Gich::Apr, 0);
            words.iter_mut().take(lrs).enumerate().for_each(|(n, word)| *word = gich_read(Gich::Lr, n));
        }
        3 => {
            // What the VM did through the interface is in the registers after this (IHI 0069 4.2.6).
            barrier::dsb(barrier::SY);
            words[VgicWord::Misr as usize] = sysreg::IchMisr::get().get();
            words[VgicWord::Eisr as usize] = sysreg::IchEisr::get().get();
            words[VgicWord::Elrsr as usize] = sysreg::IchElrsr::get().get();
            words[VgicWord::Hcr as usize] = sysreg::IchHcr::get().get();
            words[VgicWord::Vmcr as usize] = sysreg::IchVmcr::get().get();
            v3_save(words, lrs);
        }
        _ => {}
    }
    off(info.version);
    if info.version == 3 {
        if sysreg::IccSre1::get().get() & SRE != SRE {
            sysreg::IccSre1::set(SRE);
        }
        barrier::isb(barrier::SY);
    }
}

/// Loads the interface from `context`, with its first `used` list registers, and turns it on.
pub fn restore(context: &Context, used: usize) {
    let info = info();
    let lrs = usize::from(info.list_registers);
    let mut words = context.vgic;
    words[used.min(MOST_LRS)..MOST_LRS].fill(0);
    let hcr = words[VgicWord::Hcr as usize] & HCR_ENABLES | HCR_EN;
    match info.version {
        2 => {
            gich_write(Gich::Vmcr, 0, words[VgicWord::Vmcr as usize]);
            gich_write(Gich::Apr, 0, words[VgicWord::Ap0r as usize]);
            (0..lrs).for_each(|n| gich_write(Gich::Lr, n, words[n]));
            gich_write(Gich::Hcr, 0, hcr);
            barrier::dsb(barrier::SY);
        }
        3 => {
            sysreg::IchVmcr::set(words[VgicWord::Vmcr as usize]);
            v3_restore(&words, lrs);
            sysreg::IchHcr::set(hcr);
            barrier::isb(barrier::SY);
        }
        _ => {}
    }
}

/// A system register whose number is in its name: reads or writes those that there are.
macro_rules! numbered {
    ($save:ident, $restore:ident, $($there:pat => $word:expr, $name:literal;)*) => {
        fn $save(words: &mut [u64; VGIC_WORDS], lrs: usize, priorities: usize) {
            $(if matches!((lrs, priorities), $there) {
                // SAFETY: a register of the virtual CPU interface that this CPU has.
                unsafe { asm!(concat!("mrs {}, ", $name), out(reg) words[$word], options(nomem, nostack, preserves_flags)) };
            })*
        }

        fn $restore(words: &[u64; VGIC_WORDS], lrs: usize, priorities: usize) {
            $(if matches!((lrs, priorities), $there) {
                // SAFETY: the same; the interface is off.
                unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) words[$word], options(nomem, nostack, preserves_flags)) };
            })*
        }
    };
}

const AP0R: usize = VgicWord::Ap0r as usize;
const AP1R: usize = VgicWord::Ap1r as usize;

numbered! { numbered_save, numbered_restore,
    (1.., _) => 0, "S3_4_C12_C12_0";
    (2.., _) => 1, "S3_4_C12_C12_1";
    (3.., _) => 2, "S3_4_C12_C12_2";
    (4.., _) => 3, "S3_4_C12_C12_3";
    (5.., _) => 4, "S3_4_C12_C12_4";
    (6.., _) => 5, "S3_4_C12_C12_5";
    (7.., _) => 6, "S3_4_C12_C12_6";
    (8.., _) => 7, "S3_4_C12_C12_7";
    (9.., _) => 8, "S3_4_C12_C13_0";
    (10.., _) => 9, "S3_4_C12_C13_1";
    (11.., _) => 10, "S3_4_C12_C13_2";
    (12.., _) => 11, "S3_4_C12_C13_3";
    (13.., _) => 12, "S3_4_C12_C13_4";
    (14.., _) => 13, "S3_4_C12_C13_5";
    (15.., _) => 14, "S3_4_C12_C13_6";
    (16.., _) => 15, "S3_4_C12_C13_7";
    (_, 1..) => AP0R, "S3_4_C12_C8_0";
    (_, 2..) => AP0R + 1, "S3_4_C12_C8_1";
    (_, 4..) => AP0R + 2, "S3_4_C12_C8_2";
    (_, 4..) => AP0R + 3, "S3_4_C12_C8_3";
    (_, 1..) => AP1R, "S3_4_C12_C9_0";
    (_, 2..) => AP1R + 1, "S3_4_C12_C9_1";
    (_, 4..) => AP1R + 2, "S3_4_C12_C9_2";
    (_, 4..) => AP1R + 3, "S3_4_C12_C9_3";
}

/// Number of active-priority registers of each group: 32 preemption levels each (ICH_VTR_EL2.PREbits).
fn priorities() -> usize {
    let levels = (sysreg::IchVtr::get().get() >> 26 & 7) + 1;
    1 << levels.saturating_sub(5).min(2)
}

fn v3_save(words: &mut [u64; VGIC_WORDS], lrs: usize) {
    numbered_save(words, lrs, priorities());
}

fn v3_restore(words: &[u64; VGIC_WORDS], lrs: usize) {
    numbered_restore(words, lrs, priorities());
}
