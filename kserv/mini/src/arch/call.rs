//! Calls to the core: its own (HVC), and PSCI by what the device tree says.
//!
//! A call can take RAM away from this program. It cannot reach an object of it: the callers' pages come from the free RAM.

use core::arch::asm;

/// How PSCI is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
}

/// A hypercall: function and arguments in x0 to x5, results in x0 to x3.
pub fn hvc(function: u64, arguments: [u64; 5]) -> [u64; 4] {
    let mut x = [function, arguments[0], arguments[1], arguments[2]];
    // SAFETY: by SMCCC, x4 to x17 may be changed; memory is reached by the core only as the call says.
    unsafe {
        asm!(
            "hvc #0",
            inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3],
            inout("x4") arguments[3] => _, inout("x5") arguments[4] => _,
            out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _,
            out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack)
        );
    }
    x
}

fn smc(function: u64, arguments: [u64; 3]) -> u64 {
    let mut x0 = function;
    // SAFETY: as in `hvc`.
    unsafe {
        asm!(
            "smc #0",
            inout("x0") x0, inout("x1") arguments[0] => _, inout("x2") arguments[1] => _, inout("x3") arguments[2] => _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack)
        );
    }
    x0
}

/// A PSCI call.
pub fn psci(conduit: Conduit, function: u64, arguments: [u64; 3]) -> u64 {
    match conduit {
        Conduit::Hvc => hvc(function, [arguments[0], arguments[1], arguments[2], 0, 0])[0],
        Conduit::Smc => smc(function, arguments),
    }
}
