//! Calls to the core: its own (HVC), and PSCI by what the device tree says.
//!
//! A call can take RAM away from this program. It cannot reach an object of it: the callers' pages come from the free RAM.

use core::arch::asm;

use corevisor_interface::calls::ARGUMENTS;

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

/// A hypercall with all registers that may hold arguments.
pub fn hvc_long(function: u64, arguments: [u64; ARGUMENTS]) -> [u64; 4] {
    let [x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17] = arguments;
    let mut x = [function, x1, x2, x3];
    // SAFETY: as in `hvc`.
    unsafe {
        asm!(
            "hvc #0",
            inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3],
            inout("x4") x4 => _, inout("x5") x5 => _, inout("x6") x6 => _, inout("x7") x7 => _, inout("x8") x8 => _,
            inout("x9") x9 => _, inout("x10") x10 => _, inout("x11") x11 => _, inout("x12") x12 => _,
            inout("x13") x13 => _, inout("x14") x14 => _, inout("x15") x15 => _, inout("x16") x16 => _,
            inout("x17") x17 => _,
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
