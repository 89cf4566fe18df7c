//! What the guests of the tests and of the demo stand on: entry, console, calls, interrupts. Nothing of it is part of the core.
//!
//! Each program of `src/bin` is a flat binary for 0x4008_0000 in QEMU virt's memory map. It prints lines that tests match,
//! `guest NAME: ok ...` or `guest NAME: FAILED: ...`, and powers its VM off. Parameters are words of the device tree's
//! bootargs: `rounds=N`.
//!
//! | module      | holds                                                               |
//! |-------------|---------------------------------------------------------------------|
//! | [`arch`]    | entry, exceptions, system registers, MMIO                           |
//! | [`console`] | the PL011; `say!`                                                   |
//! | [`calls`]   | PSCI, SMCCC, sharing                                                |
//! | [`gic`]     | GICv2 and GICv3: enough for one timer and inter-processor interrupts |
//! | [`leave`]   | leaving the VM with all registers full                              |
//! | [`tree`]    | what a guest wants of its device tree, found without parsing it      |
//!
//! The MMU stays off, so that every system register is free for the tests. Nothing is atomic but plain loads and stores: without
//! the MMU all memory is Device memory.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
pub mod arch;
#[cfg(target_os = "none")]
pub mod calls;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod gic;
#[cfg(target_os = "none")]
pub mod leave;
#[cfg(target_os = "none")]
pub mod tree;

/// Makes `$main(vcpu, dtb)` the guest called `$name`: the function runs on vCPU 0 from the start, and on every vCPU that
/// [`calls::cpu_on`] starts. On the development machine the program only says what it is.
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn guest_entered(vcpu: u64, dtb: u64) -> ! {
            $crate::console::start($name);
            $main(vcpu, dtb)
        }

        #[cfg(not(target_os = "none"))]
        fn main() {
            eprintln!("{} is a guest: scripts/run --mini --vm target/guests/{}.bin", $name, $name);
            std::process::exit(2);
        }
    };
}
