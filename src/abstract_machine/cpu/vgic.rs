//! The virtual CPU interface of the GIC: list registers and what goes with them, in a context while the VM does not run.
//!
//! GICv2: memory-mapped, GICH (IHI 0048B §5.3). GICv3 and v4: ICH_*_EL2 (IHI 0069 §12.4). The host reaches neither; what it puts into list
//! registers came through the mailbox and was masked by `vcpu`. After a VM the interface is off.

use core::arch::asm;

use spin::Once;
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

use super::super::addr::{PhysRange, Va};
use super::super::shadow::Context;
use super::super::world::{VgicInfo, VgicWord};

const MISR: usize = VgicWord::Misr as usize;
const EISR: usize = VgicWord::Eisr as usize;
const ELRSR: usize = VgicWord::Elrsr as usize;
const VMCR: usize = VgicWord::Vmcr as usize;
const ENABLES: usize = VgicWord::Hcr as usize;
const APR0: usize = VgicWord::Ap0r as usize;
const APRS: usize = VgicWord::Ap1r as usize - APR0;

register_bitfields! {u32,
    GICH_HCR [ EN OFFSET(0) NUMBITS(1) [] ],
    GICH_VTR [ LIST_REGS OFFSET(0) NUMBITS(6) [] ],
}

register_structs! {
    /// Virtual interface control registers, IHI 0048B §5.3.
    #[allow(non_snake_case, missing_docs)]
    Gich {
        (0x000 => hcr: ReadWrite<u32, GICH_HCR::Register>),
        (0x004 => vtr: ReadOnly<u32, GICH_VTR::Register>),
        (0x008 => vmcr: ReadWrite<u32>),
        (0x00c => _reserved0),
        (0x010 => misr: ReadOnly<u32>),
        (0x014 => _reserved1),
        (0x020 => eisr: [ReadOnly<u32>; 2]),
        (0x028 => _reserved2),
        (0x030 => elrsr: [ReadOnly<u32>; 2]),
        (0x038 => _reserved3),
        (0x0f0 => apr: ReadWrite<u32>),
        (0x0f4 => _reserved4),
        (0x100 => lr: [ReadWrite<u32>; 64]),
        (0x200 => @END),
    }
}

/// Which interface this machine has.
#[derive(Clone, Copy)]
enum Kind {
    V2 { gich: Va, gicv: PhysRange },
    V3,
}

static KIND: Once<Kind> = Once::new();

/// This machine has a GICv2 whose GICH is mapped at `gich` and whose GICV is at `gicv`.
///
/// # Safety
/// `gich` is GICH, mapped as device memory for good.
pub unsafe fn init_v2(gich: Va, gicv: PhysRange) {
    KIND.call_once(|| Kind::V2 { gich, gicv });
}

/// This machine has a GICv3 or v4.
pub fn init_v3() {
    KIND.call_once(|| Kind::V3);
}

fn gich(at: Va) -> &'static Gich {
    // SAFETY: `init_v2` was given the address of these registers, mapped for good; each register is accessed atomically.
    unsafe { &*(at.raw() as *const Gich) }
}

macro_rules! ich {
    (read $name:literal) => {{
        let value: u64;
        // SAFETY: a register of the virtual CPU interface, which exists on a GICv3.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
    (write $name:literal, $value:expr) => {
        // SAFETY: as above; it governs EL1 only.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nomem, nostack, preserves_flags)) }
    };
}

/// Number of list registers.
fn list_registers(kind: Kind) -> usize {
    match kind {
        Kind::V2 { gich: at, .. } => (gich(at).vtr.read(GICH_VTR::LIST_REGS) as usize + 1).min(16),
        Kind::V3 => (ich!(read "S3_4_C12_C11_1") & 0x1f) as usize + 1,
    }
}

/// Number of active priority registers of each group on a GICv3: by ICH_VTR_EL2.PREbits.
fn priority_registers() -> usize {
    match ich!(read "S3_4_C12_C11_1") >> 26 & 7 {
        0..=4 => 1,
        5 => 2,
        _ => 4,
    }
}

/// What VMs can have.
pub fn info() -> VgicInfo {
    match KIND.get().copied() {
        None => VgicInfo { version: 0, list_registers: 0, gicv: None },
        Some(kind @ Kind::V2 { gicv, .. }) => {
            VgicInfo { version: 2, list_registers: list_registers(kind) as u8, gicv: Some(gicv) }
        }
        Some(kind @ Kind::V3) => VgicInfo { version: 3, list_registers: list_registers(kind) as u8, gicv: None },
    }
}

/// The interface's state goes into `context`, and the interface is off.
pub fn save(context: &mut Context) {
    match KIND.get().copied() {
        None => {}
        Some(kind @ Kind::V2 { gich: at, .. }) => save_v2(gich(at), &mut context.vgic, list_registers(kind)),
        Some(kind @ Kind::V3) => save_v3(&mut context.vgic, list_registers(kind)),
    }
}

/// The interface works for the VM in `context`, with its first `used` list registers.
pub fn restore(context: &Context, used: usize) {
    match KIND.get().copied() {
        None => {}
        Some(kind @ Kind::V2 { gich: at, .. }) => restore_v2(gich(at), &context.vgic, used, list_registers(kind)),
        Some(kind @ Kind::V3) => restore_v3(&context.vgic, used, list_registers(kind)),
    }
}

fn save_v2(gich: &Gich, words: &mut [u64], used: usize) {
    words[MISR] = gich.misr.get().into();
    words[EISR] = u64::from(gich.eisr[0].get());
    words[ELRSR] = u64::from(gich.elrsr[0].get());
    words[VMCR] = gich.vmcr.get().into();
    words[APR0] = gich.apr.get().into();
    for (word, lr) in words.iter_mut().zip(&gich.lr).take(used) {
        *word = lr.get().into();
        lr.set(0);
    }
    gich.hcr.set(0);
}

fn restore_v2(gich: &Gich, words: &[u64], used: usize, all: usize) {
    for (n, lr) in gich.lr.iter().enumerate().take(all) {
        lr.set(if n < used { words[n] as u32 } else { 0 });
    }
    gich.vmcr.set(words[VMCR] as u32);
    gich.apr.set(words[APR0] as u32);
    gich.hcr.set((GICH_HCR::EN::SET.value) | words[ENABLES] as u32);
}

macro_rules! list_register {
    ($($n:literal: $name:literal,)*) => {
        fn read_lr(n: usize) -> u64 {
            match n {
                $($n => ich!(read $name),)*
                _ => 0,
            }
        }

        fn write_lr(n: usize, value: u64) {
            match n {
                $($n => ich!(write $name, value),)*
                _ => {}
            }
        }
    };
}

list_register! {
    0: "S3_4_C12_C12_0", 1: "S3_4_C12_C12_1", 2: "S3_4_C12_C12_2", 3: "S3_4_C12_C12_3",
    4: "S3_4_C12_C12_4", 5: "S3_4_C12_C12_5", 6: "S3_4_C12_C12_6", 7: "S3_4_C12_C12_7",
    8: "S3_4_C12_C13_0", 9: "S3_4_C12_C13_1", 10: "S3_4_C12_C13_2", 11: "S3_4_C12_C13_3",
    12: "S3_4_C12_C13_4", 13: "S3_4_C12_C13_5", 14: "S3_4_C12_C13_6", 15: "S3_4_C12_C13_7",
}

fn save_v3(words: &mut [u64], used: usize) {
    // What the VM's accesses to its interface did must have reached the list registers.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    words[MISR] = ich!(read "S3_4_C12_C11_2");
    words[EISR] = ich!(read "S3_4_C12_C11_3");
    words[ELRSR] = ich!(read "S3_4_C12_C11_5");
    words[VMCR] = ich!(read "S3_4_C12_C11_7");
    for n in 0..used {
        words[n] = read_lr(n);
        write_lr(n, 0);
    }
    let count = priority_registers();
    words[APR0] = ich!(read "S3_4_C12_C8_0");
    words[APR0 + APRS] = ich!(read "S3_4_C12_C9_0");
    if count > 1 {
        words[APR0 + 1] = ich!(read "S3_4_C12_C8_1");
        words[APR0 + APRS + 1] = ich!(read "S3_4_C12_C9_1");
    }
    if count > 2 {
        words[APR0 + 2] = ich!(read "S3_4_C12_C8_2");
        words[APR0 + 3] = ich!(read "S3_4_C12_C8_3");
        words[APR0 + APRS + 2] = ich!(read "S3_4_C12_C9_2");
        words[APR0 + APRS + 3] = ich!(read "S3_4_C12_C9_3");
    }
    ich!(write "S3_4_C12_C11_0", 0_u64);
}

fn restore_v3(words: &[u64], used: usize, all: usize) {
    for n in 0..all {
        write_lr(n, if n < used { words[n] } else { 0 });
    }
    ich!(write "S3_4_C12_C11_7", words[VMCR]);
    let count = priority_registers();
    ich!(write "S3_4_C12_C8_0", words[APR0]);
    ich!(write "S3_4_C12_C9_0", words[APR0 + APRS]);
    if count > 1 {
        ich!(write "S3_4_C12_C8_1", words[APR0 + 1]);
        ich!(write "S3_4_C12_C9_1", words[APR0 + APRS + 1]);
    }
    if count > 2 {
        ich!(write "S3_4_C12_C8_2", words[APR0 + 2]);
        ich!(write "S3_4_C12_C8_3", words[APR0 + 3]);
        ich!(write "S3_4_C12_C9_2", words[APR0 + APRS + 2]);
        ich!(write "S3_4_C12_C9_3", words[APR0 + APRS + 3]);
    }
    ich!(write "S3_4_C12_C11_0", 1 | words[ENABLES]);
}
