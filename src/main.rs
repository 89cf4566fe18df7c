//! The bootable binary: the library, and what only a binary may define. boot/entry.S comes first.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    // The library holds the entry point; without a reference the linker would leave it out.
    #[used]
    static ENTRY: extern "C" fn(u64, u64, u64) -> ! = corevisor::platform::boot::primary_main;

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        corevisor::platform::failure::panicked(info)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("corevisor runs at EL2 of an Arm machine: scripts/run starts it in QEMU");
    std::process::exit(2);
}
