//! PSCI, SMCCC, sharing memory with the host.

use crate::arch::wait;
use core::arch::asm;

/// PSCI: CPU_ON worked.
pub const SUCCESS: u64 = 0;
/// There is no such call.
pub const NOT_SUPPORTED: u64 = -1_i64 as u64;
/// SMCCC and PSCI: an argument is wrong.
pub const INVALID_PARAMETERS: u64 = -2_i64 as u64;
/// PSCI: it runs.
pub const ALREADY_ON: u64 = -4_i64 as u64;

/// `HVC #0`.
pub fn hvc(function: u64, arguments: [u64; 3]) -> u64 {
    call(false, function, arguments)
}

/// `SMC #0`.
pub fn smc(function: u64, arguments: [u64; 3]) -> u64 {
    call(true, function, arguments)
}

fn call(smc: bool, function: u64, arguments: [u64; 3]) -> u64 {
    answer(smc, function, arguments)[0]
}

fn answer(smc: bool, function: u64, [a, b, c]: [u64; 3]) -> [u64; 4] {
    let mut x = [function, a, b, c];
    let [x0, x1, x2, x3] = &mut x;
    // SAFETY: no call takes an address of memory that Rust uses but to give it another owner, which its caller knows. SMCCC changes x0 to x17
    // at most.
    unsafe {
        if smc {
            asm!("smc #0", inout("x0") * x0, inout("x1") * x1, inout("x2") * x2, inout("x3") * x3, clobber_abi("C"));
        } else {
            asm!("hvc #0", inout("x0") * x0, inout("x1") * x1, inout("x2") * x2, inout("x3") * x3, clobber_abi("C"));
        }
    }
    x
}

/// `bits` random ones, the lowest in the last word (TRNG_RND); the error if there are none.
pub fn random(bits: u64) -> Result<[u64; 3], u64> {
    match answer(false, 0xc400_0053, [bits, 0, 0]) {
        [SUCCESS, high, middle, low] => Ok([high, middle, low]),
        [error, ..] => Err(error),
    }
}

/// Ends the VM.
pub fn system_off() -> ! {
    hvc(0x8400_0008, [0; 3]);
    loop {
        wait();
    }
}

/// Starts a vCPU at the guest's main function.
pub fn cpu_on(vcpu: u64) -> u64 {
    let entry: u64;
    // SAFETY: only computes an address.
    unsafe { asm!("ldr {}, =guest_secondary_entry", out(reg) entry, options(nostack)) };
    hvc(0xc400_0003, [vcpu, entry, vcpu])
}

/// Ends this vCPU.
pub fn cpu_off() -> ! {
    hvc(0x8400_0002, [0; 3]);
    crate::fail!("CPU_OFF came back")
}

/// PSCI AFFINITY_INFO: 0 on, 1 off, 2 being started.
pub fn affinity_info(vcpu: u64) -> u64 {
    hvc(0xc400_0004, [vcpu, 0, 0])
}

/// Starts every vCPU that there is, from 1 on: how many there are then, with vCPU 0.
pub fn all_on() -> u64 {
    (1..16).find(|vcpu| cpu_on(*vcpu) != SUCCESS).unwrap_or(16)
}

/// Shares a page with the host (Linux's protected-guest call).
pub fn share(page: u64) -> u64 {
    hvc(0xc600_0003, [page, 0, 0])
}

/// Takes it back.
pub fn unshare(page: u64) -> u64 {
    hvc(0xc600_0004, [page, 0, 0])
}
