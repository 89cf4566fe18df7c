//! SIMD registers of host and VMs.
//!
//! They are switched when a VM touches them first: it enters with FP trapped (CPTR_EL2.TFP) and the host's registers in place, which it can neither read nor
//! write so. At its first access ([`open`]) the host's are saved, the VM's loaded and the trap is opened; at the exit the VM's are saved and the host's come
//! back. So whenever the host runs, all of these registers are its own; `World::fp_saved` says that they are not just now. A VM that does not touch them costs nothing.
//!
//! A VM has q0-q31, FPSR and FPCR (SVE and SME trap). On a CPU with SVE these are the low parts of z0-z31, and loading them clears the rest:
//! so the host's z0-z31 are kept in an area of the CPU, as long as its vectors. Predicates and FFR are out of a VM's reach and stay
//! where they are; so does ZA. Only a host in streaming mode has to leave it for the VM, which takes its p0-p15 and FFR
//! along, and FPMR, which no VM has (HCRX_EL2.EnFPM): then all is switched at the entry, for no VM runs in streaming mode. Arm ARM B1.2 (SVE), B1.4 (streaming mode); for the host's FPCR and FPSR see `shadow::Context`.

use core::arch::asm;

use aarch64_cpu::asm::barrier;

use super::super::addr::PAGE_SIZE;
use super::super::features::Features;
use super::super::per_cpu::{VECTORS_SIZE, World};
use super::super::shadow::Context;
use super::{pool, sysreg, traps, with_world};

unsafe extern "C" {
    fn fpsimd_save(q: *mut [u64; 64]);
    fn fpsimd_restore(q: *const [u64; 64]);
    fn sve_vector_bytes() -> u64;
    fn sve_save(area: u64, more: u64);
    fn sve_restore(area: u64, more: u64);
}

// boot/switch.S finds FPSR and FPCR behind q31.
const _: () = assert!(core::mem::offset_of!(Context, fp_control) == core::mem::offset_of!(Context, q) + 512);

const SVCR_SM: u64 = 1;

/// Bytes of an area by those of a vector: z0-z31; p0-p15 and FFR are an eighth of a vector each.
const fn area_size(vector: u64) -> u64 {
    vector * 35
}

/// Bytes of the architecture's longest vector.
const LONGEST: u64 = 256;
const _: () = assert!(area_size(LONGEST) <= VECTORS_SIZE);

/// Gives this CPU its area, once its vectors have their full length (`el2::init_for_host`), unless it has one for any length. `false` if the pool is empty.
pub fn prepare() -> bool {
    let features = with_world(|world| world.features);
    let mut vector = 0;
    if features.sve {
        // SAFETY: reads the length of a vector, which this CPU has.
        vector = unsafe { sve_vector_bytes() };
    }
    if features.sme {
        let streaming: u64;
        // SAFETY: RDSVL x0, #1 reads the length of a streaming vector, which this CPU has.
        unsafe { asm!(".inst 0x04bf5820", out("x0") streaming, options(nomem, nostack, preserves_flags)) };
        vector = vector.max(streaming);
    }
    if vector == 0 {
        return true;
    }
    let order = area_size(vector).div_ceil(PAGE_SIZE).next_power_of_two().ilog2();
    with_world(|world| {
        if world.vectors == 0 {
            world.vectors = pool::alloc(order).map_or(0, |area| area.raw());
        }
        world.vectors != 0
    })
}

/// q0-q31, FPSR and FPCR become those of the host's empty context, and with SVE what is above them zero. VMs have no more of these registers.
pub fn forget(world: &World) {
    restore(&world.host);
}

/// Saves the VM's q0-q31, FPSR, FPCR, if they are in the CPU. The VM's CPTR_EL2 stands, open then.
#[inline(always)]
pub fn save_vm(world: &World, context: &mut Context) {
    if world.fp_saved {
        save(context);
    }
}

/// Loads them, if the host's are saved already.
#[inline(always)]
pub fn restore_vm(world: &World, context: &Context) {
    if world.fp_saved {
        restore(context);
    }
}

/// The VM touched FP: its registers take the place of the host's, and are its own until it leaves. `false` if they were that before: FP did not trap
/// for the host's registers. Not in streaming mode: that the host left at the entry, if it was in it.
#[inline(never)]
pub fn open(world: &mut World, context: &Context) -> bool {
    if world.fp_saved {
        return false;
    }
    // The traps of the VM hold for the core as well.
    sysreg::Cptr::set(world.features.host.cptr);
    barrier::isb(barrier::SY);
    save_host_registers(world);
    world.fp_saved = true;
    restore(context);
    // In force when the VM goes on.
    sysreg::Cptr::set(traps::cptr_of_vm(world));
    true
}

fn save(context: &mut Context) {
    // SAFETY: the registers go where they belong in the context; FPSR and FPCR stand behind them (see above).
    unsafe { fpsimd_save(&raw mut context.q) };
}

fn restore(context: &Context) {
    // SAFETY: the core itself does not use these registers.
    unsafe { fpsimd_restore(&raw const context.q) };
}

/// FPSR and FPCR, by number: to the assembler a core without FP has none.
fn save_control(context: &mut Context) {
    let (fpsr, fpcr);
    // SAFETY: the core itself does not use these registers.
    unsafe {
        asm!("mrs {}, S3_3_C4_C4_1", "mrs {}, S3_3_C4_C4_0", out(reg) fpsr, out(reg) fpcr, options(nomem, nostack, preserves_flags))
    };
    context.fp_control = [fpsr, fpcr];
}

fn restore_control(context: &Context) {
    let [fpsr, fpcr] = context.fp_control;
    // SAFETY: as above.
    unsafe {
        asm!("msr S3_3_C4_C4_1, {}", "msr S3_3_C4_C4_0, {}", in(reg) fpsr, in(reg) fpcr, options(nomem, nostack, preserves_flags))
    };
}

/// How much sve_save and sve_restore move in streaming mode.
fn streaming_state(features: &Features) -> u64 {
    if features.fa64 { 2 } else { 1 }
}

/// Before a VM runs: a host in streaming mode leaves it, and its registers are saved; else they stay in place. The host's CPTR_EL2 stands, so nothing of this traps.
#[inline(always)]
pub fn save_host(world: &mut World) {
    world.streaming = world.features.sme && sysreg::Svcr::get().get() & SVCR_SM != 0;
    if world.streaming {
        save_host_registers(world);
        world.fp_saved = true;
    }
}

/// While the host runs: all its registers are saved, it is out of streaming mode, and q0-q31 are the core's until [`restore_host`]. The host's CPTR_EL2 stands.
pub fn take_from_host(world: &mut World) {
    save_host(world);
    if !world.fp_saved {
        save_host_registers(world);
        world.fp_saved = true;
    }
}

/// Loads the host's registers, if they are not in place. The host's CPTR_EL2 stands.
#[inline(always)]
pub fn restore_host(world: &mut World) {
    if world.fp_saved {
        restore_host_registers(world);
        world.fp_saved = false;
    }
}

/// The host's registers into its context, its vectors into their area; out of streaming mode.
#[inline(never)]
fn save_host_registers(world: &mut World) {
    // z0-z31 have q0-q31 in them.
    if world.features.sve && !world.streaming {
        save_control(&mut world.host);
        // SAFETY: the area is this CPU's, as long as `prepare` measured.
        unsafe { sve_save(world.vectors, 0) };
        return;
    }
    save(&mut world.host);
    if world.streaming {
        if world.features.fpmr {
            world.fpmr = sysreg::Fpmr::get().get();
        }
        // SAFETY: as above; in streaming mode the same instructions move streaming vectors.
        unsafe {
            sve_save(world.vectors, streaming_state(&world.features));
            asm!("msr S0_3_C4_C2_3, xzr", options(nostack, preserves_flags)); // SMSTOP SM
        }
    }
}

#[inline(never)]
fn restore_host_registers(world: &World) {
    if world.features.sve && !world.streaming {
        restore_control(&world.host);
        // SAFETY: as above.
        unsafe { sve_restore(world.vectors, 0) };
        return;
    }
    // SAFETY: as above. Entering streaming mode clears all of it, and loading q0-q31 clears what is above them: so this order.
    unsafe {
        if world.streaming {
            asm!("msr S0_3_C4_C3_3, xzr", options(nostack, preserves_flags)); // SMSTART SM
        }
        restore(&world.host);
        if world.streaming {
            sve_restore(world.vectors, streaming_state(&world.features));
        }
    }
    if world.streaming && world.features.fpmr {
        sysreg::Fpmr::set(world.fpmr);
    }
}
