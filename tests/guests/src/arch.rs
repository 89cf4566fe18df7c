//! Entry, exceptions, system registers, MMIO.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

global_asm!(include_str!("start.S"));

/// The page that guests share with the host: nothing else is in it. Behind the guest's image (guest.ld).
pub const SHARED: u64 = 0x400f_0000;
/// From here on guests keep secrets.
pub const SECRETS: u64 = 0x4010_0000;

static EXPECTED: AtomicBool = AtomicBool::new(false);
static SYNDROME: AtomicU64 = AtomicU64::new(0);

/// Reads a system register by name.
#[macro_export]
macro_rules! mrs {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading a system register changes no memory; one that is not there is an exception, which is handled.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register by name.
#[macro_export]
macro_rules! msr {
    ($register:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: with the MMU off no system register that guests write changes what Rust relies on.
        unsafe { core::arch::asm!(concat!("msr ", $register, ", {}\nisb"), in(reg) value, options(nostack)) };
    }};
}

/// The number of this vCPU: affinity 0.
pub fn vcpu() -> u64 {
    mrs!("mpidr_el1") & 0xff
}

/// A 32-bit load that a hypervisor can serve.
pub fn read32(address: u64) -> u32 {
    let value: u32;
    // SAFETY: `address` is a device's register, or the fault is expected; no memory of Rust's changes.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// A 32-bit store that a hypervisor can serve.
pub fn write32(address: u64, value: u32) {
    // SAFETY: `address` is a device's register, or the fault is expected; no memory of Rust's changes.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

/// A 64-bit load from anywhere.
pub fn read64(address: u64) -> u64 {
    let value: u64;
    // SAFETY: only reads; a fault is handled.
    unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// A 64-bit store.
///
/// # Safety
/// `address` must not be memory that Rust uses.
pub unsafe fn write64(address: u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

/// Waits for an interrupt.
pub fn wait() {
    // SAFETY: an instruction without effect on memory.
    unsafe { asm!("wfi", options(nostack)) };
}

/// Takes interrupts from now on, or no longer.
pub fn interrupts(on: bool) {
    // SAFETY: the interrupt handler saves all that it uses.
    unsafe {
        if on {
            asm!("msr daifclr, #2", options(nostack));
        } else {
            asm!("msr daifset, #2", options(nostack));
        }
    }
}

/// Runs `attempt`, which may end in an exception: then its syndrome.
///
/// # Errors
/// The ESR_EL1 of the exception. The instruction was skipped.
pub fn attempt(attempt: impl FnOnce() -> u64) -> Result<u64, u64> {
    SYNDROME.store(0, SeqCst);
    EXPECTED.store(true, SeqCst);
    let value = attempt();
    EXPECTED.store(false, SeqCst);
    match SYNDROME.load(SeqCst) {
        0 => Ok(value),
        syndrome => Err(syndrome),
    }
}

#[unsafe(no_mangle)]
extern "C" fn guest_sync(esr: u64, elr: u64, far: u64) -> u64 {
    if EXPECTED.load(SeqCst) {
        SYNDROME.store(esr, SeqCst);
        return elr + 4;
    }
    guest_unexpected(esr, elr, far)
}

#[unsafe(no_mangle)]
extern "C" fn guest_unexpected(esr: u64, elr: u64, far: u64) -> ! {
    crate::fail!("unexpected exception: ESR {esr:#x}, PC {elr:#x}, FAR {far:#x}")
}

#[unsafe(no_mangle)]
extern "C" fn guest_irq() {
    crate::gic::interrupted();
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::fail!("{info}")
}
