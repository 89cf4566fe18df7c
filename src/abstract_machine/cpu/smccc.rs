//! The SMC instruction: calls from the core to the firmware at EL3 (Arm DEN0028, SMC Calling Convention §2.6).
//!
//! Only the PSCI server's whitelist stands above this; no argument of the host gets here unchecked.

use core::arch::asm;

/// Calls `function` of the firmware with x1 to x3; gives back x0 to x3.
///
/// Firmware of SMCCC 1.0 may change x4 to x17, so those count as lost; x18 to x30 and SP it keeps.
///
/// # Safety
/// A firmware runs this call: the CPU has EL3 or implements PSCI by SMC in another way (elsewhere the instruction is
/// undefined), and the call neither changes memory that the core uses nor switches off a CPU on which something of
/// value is still to be done. If the call powers this CPU down, execution goes on at the entry point given to it, so no
/// lock may be held.
pub unsafe fn smc(function: u32, args: [u64; 3]) -> [u64; 4] {
    let [mut x1, mut x2, mut x3] = args;
    let mut x0 = u64::from(function);
    // SAFETY: every register that the calling convention lets the firmware change is declared; memory is taken as
    // changed (no `nomem`). That the call itself does no harm is what the caller vouches for.
    unsafe {
        asm!(
            "smc #0",
            inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3,
            lateout("x4") _, lateout("x5") _, lateout("x6") _, lateout("x7") _, lateout("x8") _,
            lateout("x9") _, lateout("x10") _, lateout("x11") _, lateout("x12") _, lateout("x13") _,
            lateout("x14") _, lateout("x15") _, lateout("x16") _, lateout("x17") _,
            options(nostack),
        );
    }
    [x0, x1, x2, x3]
}
