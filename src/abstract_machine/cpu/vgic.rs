//! The GIC's virtual CPU interface: list registers and what goes with them, of GICv2 (memory-mapped GICH) and GICv3 (system registers).
//!
//! Between VMs it is off, so the host, whose interrupts do not go through it, never sees a list register at work.
//! A VM of GICv3 has the system register interface only: ICC_SRE_EL1 is one register for host and VMs, and on most CPUs cannot be
//! written; where it can, a VM's accesses trap (ICC_SRE_EL2.Enable). Source: GIC architecture (IHI 0069) 12.4, GICv2 (IHI 0048) 5.3.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use spin::Once;

use super::super::addr::PhysRange;
use super::super::per_cpu::World;
use super::super::regs::{FIRST_LPI, ICC_SGI1R};
use super::super::shadow::Context;
use super::super::world::{VgicInfo, VgicWord};
use super::{el2, sysreg};

static INFO: Once<VgicInfo> = Once::new();
static GICH: AtomicU64 = AtomicU64::new(0);

const HCR_EN: u64 = 1;
/// UIE, LRENPIE, NPIE: what a host may ask for.
const HCR_ENABLES: u64 = 0b1110;
const HCR_LRENPIE: u64 = 1 << 2;
/// Most list registers that a GIC has.
pub const MOST_LRS: usize = 16;
/// From here on a number says that there is no interrupt, up to those of LPIs.
const SPECIAL: u64 = 1020;
const AP0R: usize = VgicWord::Ap0r as usize;
const AP1R: usize = VgicWord::Ap1r as usize;

/// Registers of GICH by offset.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Gich {
    Hcr = 0x000,
    Vtr = 0x004,
    Vmcr = 0x008,
    Misr = 0x010,
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

/// Makes this CPU know what its interface is, and that list registers may hold anything.
pub fn prepare(world: &mut World) {
    world.vgic = info();
    world.priorities = if world.vgic.version == 3 { priorities() } else { 0 };
    world.list_registers = world.vgic.list_registers;
}

/// Whether this CPU has the list registers that every CPU is taken to have, its registers for the GIC being on. GICv2's interface is one for all.
pub fn has_list_registers() -> bool {
    let info = info();
    info.version != 3 || list_registers(sysreg::IchVtr::get().get()) >= info.list_registers
}

/// Turns the interface of this CPU off.
fn off(version: u8) {
    match version {
        2 => gich_write(Gich::Hcr, 0, 0),
        3 => sysreg::IchHcr::clear(),
        _ => {}
    }
}

/// Saves the interface into `context`, with its first `used` list registers (at most those that there are), and turns it off.
pub fn save(world: &World, context: &mut Context, used: usize) {
    let words = &mut context.vgic;
    // EOIcount is what the host wants of this register, and wants only if it let more interrupts be active than list registers hold.
    let counts = words[VgicWord::Hcr as usize] & HCR_LRENPIE != 0;
    match world.vgic.version {
        2 => {
            if counts {
                words[VgicWord::Hcr as usize] = gich_read(Gich::Hcr, 0);
            }
            words[VgicWord::Misr as usize] = gich_read(Gich::Misr, 0);
            words[VgicWord::Vmcr as usize] = gich_read(Gich::Vmcr, 0);
            words[VgicWord::Ap0r as usize] = gich_read(Gich::Apr, 0);
            words.iter_mut().take(used).enumerate().for_each(|(n, word)| *word = gich_read(Gich::Lr, n));
        }
        3 => {
            // What the VM did through the interface is in the registers since its exit's DSB (boot/switch.S: vm_leave).
            if counts {
                words[VgicWord::Hcr as usize] = sysreg::IchHcr::get().get();
            }
            words[VgicWord::Misr as usize] = sysreg::IchMisr::get().get();
            words[VgicWord::Vmcr as usize] = sysreg::IchVmcr::get().get();
            words.iter_mut().take(used).enumerate().for_each(|(n, word)| *word = ich_lr(n));
            words[AP0R] = ich_ap0r(0);
            words[AP1R] = ich_ap1r(0);
            for n in 1..usize::from(world.priorities) {
                (words[AP0R + n], words[AP1R + n]) = (ich_ap0r(n), ich_ap1r(n));
            }
        }
        _ => {}
    }
    off(world.vgic.version);
    if world.vgic.version == 3 {
        // In force with the next ISB, long before the host is.
        el2::set_gic_access(true);
    }
}

/// Loads the interface from `context`, with its first `used` list registers, and turns it on. What others left in list registers goes:
/// `world` knows how many were used last.
pub fn restore(world: &mut World, context: &Context, used: usize) {
    let words = &context.vgic;
    let stale = used..usize::from(world.list_registers);
    world.list_registers = used as u8;
    let hcr = words[VgicWord::Hcr as usize] & HCR_ENABLES | HCR_EN;
    match world.vgic.version {
        2 => {
            gich_write(Gich::Vmcr, 0, words[VgicWord::Vmcr as usize]);
            gich_write(Gich::Apr, 0, words[VgicWord::Ap0r as usize]);
            words.iter().take(used).enumerate().for_each(|(n, word)| gich_write(Gich::Lr, n, *word));
            stale.for_each(|n| gich_write(Gich::Lr, n, 0));
            gich_write(Gich::Hcr, 0, hcr);
            barrier::dsb(barrier::SY);
        }
        3 => {
            sysreg::IchVmcr::set(words[VgicWord::Vmcr as usize]);
            words.iter().take(used).enumerate().for_each(|(n, word)| set_ich_lr(n, *word));
            stale.for_each(|n| set_ich_lr(n, 0));
            set_ich_ap0r(0, words[AP0R]);
            set_ich_ap1r(0, words[AP1R]);
            for n in 1..usize::from(world.priorities) {
                set_ich_ap0r(n, words[AP0R + n]);
                set_ich_ap1r(n, words[AP1R + n]);
            }
            sysreg::IchHcr::set(hcr);
            // Both are in force at the entry.
            el2::set_gic_access(false);
        }
        _ => {}
    }
}

/// A list register as the VM that runs here left it. What it did through the interface is in the register after the barrier.
#[inline]
pub fn list_register(n: usize) -> u64 {
    barrier::dsb(barrier::SY);
    ich_lr(n)
}

/// Writes a list register of the VM that runs here; the return to it makes that seen.
#[inline]
pub fn set_list_register(world: &mut World, n: usize, value: u64) {
    world.list_registers = world.list_registers.max(n as u8 + 1);
    set_ich_lr(n, value);
}

/// Sends SGI `sgi` (0 to 15, of group 1) to the CPU of this affinity. Only with GICv3.
pub fn kick(mpidr: u64, sgi: u8) {
    let affinity = |shift: u32| mpidr >> shift & 0xff;
    let value = ICC_SGI1R::AFF3.val(affinity(32))
        + ICC_SGI1R::AFF2.val(affinity(16))
        + ICC_SGI1R::AFF1.val(affinity(8))
        + ICC_SGI1R::RS.val(affinity(0) >> 4)
        + ICC_SGI1R::TARGETS.val(1 << (affinity(0) & 15))
        + ICC_SGI1R::INTID.val(sgi.into());
    barrier::dsb(barrier::ISHST);
    sysreg::IccSgi1r::set(value.value);
    barrier::isb(barrier::SY);
}

/// Takes and ends SGI `sgi` if it is what waits. The interface of EL2 is the machine's own, whatever EL1 has (IHI 0069 12.1). One that comes between the
/// look and the taking has a lower priority, by the host's promise (`DIRECT_KICK_SGI_SHIFT`), so it is not what is taken.
pub fn take_kick(sgi: u8) -> bool {
    if sysreg::IccHppir1::get().get() != u64::from(sgi) {
        return false;
    }
    let taken = sysreg::IccIar1::get().get();
    barrier::dsb(barrier::SY);
    if (SPECIAL..FIRST_LPI).contains(&taken) {
        return false;
    }
    sysreg::IccEoir1::set(taken);
    if sysreg::IccCtlr::get().is_set(sysreg::ICC_CTLR::EOIMODE) {
        sysreg::IccDir::set(taken);
    }
    barrier::isb(barrier::SY);
    taken == u64::from(sgi)
}

/// Whether an interrupt waits for this CPU. What [`take_kick`] ended does not: its last barrier is behind that.
pub fn interrupt_waits() -> bool {
    sysreg::Isr::get().any_matching_bits_set(
        sysreg::ISR_EL1::IS::SET + sysreg::ISR_EL1::FS::SET + sysreg::ISR_EL1::I::SET + sysreg::ISR_EL1::F::SET,
    )
}

/// Registers whose number is in their name: reads or writes the one with number `n`, if there is one.
macro_rules! numbered {
    ($get:ident, $set:ident, $($n:literal => $name:literal,)*) => {
        #[inline(always)]
        fn $get(n: usize) -> u64 {
            let mut value = 0;
            match n {
                // SAFETY: a register of the virtual CPU interface that this CPU has.
                $($n => unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) },)*
                _ => {}
            }
            value
        }

        #[inline(always)]
        fn $set(n: usize, value: u64) {
            match n {
                // SAFETY: the same; it concerns the VM that it is for, and the core itself not at all.
                $($n => unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nomem, nostack, preserves_flags)) },)*
                _ => {}
            }
        }
    };
}

numbered! { ich_lr, set_ich_lr,
    0 => "S3_4_C12_C12_0",
    1 => "S3_4_C12_C12_1",
    2 => "S3_4_C12_C12_2",
    3 => "S3_4_C12_C12_3",
    4 => "S3_4_C12_C12_4",
    5 => "S3_4_C12_C12_5",
    6 => "S3_4_C12_C12_6",
    7 => "S3_4_C12_C12_7",
    8 => "S3_4_C12_C13_0",
    9 => "S3_4_C12_C13_1",
    10 => "S3_4_C12_C13_2",
    11 => "S3_4_C12_C13_3",
    12 => "S3_4_C12_C13_4",
    13 => "S3_4_C12_C13_5",
    14 => "S3_4_C12_C13_6",
    15 => "S3_4_C12_C13_7",
}

numbered! { ich_ap0r, set_ich_ap0r,
    0 => "S3_4_C12_C8_0",
    1 => "S3_4_C12_C8_1",
    2 => "S3_4_C12_C8_2",
    3 => "S3_4_C12_C8_3",
}

numbered! { ich_ap1r, set_ich_ap1r,
    0 => "S3_4_C12_C9_0",
    1 => "S3_4_C12_C9_1",
    2 => "S3_4_C12_C9_2",
    3 => "S3_4_C12_C9_3",
}

/// Number of active-priority registers of each group: 32 preemption levels each (ICH_VTR_EL2.PREbits).
fn priorities() -> u8 {
    let levels = (sysreg::IchVtr::get().get() >> 26 & 7) + 1;
    1 << levels.saturating_sub(5).min(2)
}
