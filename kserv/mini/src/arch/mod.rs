//! The machine under the mini host: entry, translation, caches, devices, calls. The only place with `unsafe`.
//!
//! | module        | holds                                                                             |
//! |---------------|-----------------------------------------------------------------------------------|
//! | [`entry`]     | from `entry.S` to Rust, exceptions, accesses that may fail                        |
//! | [`mmu`]       | identity map: RAM as normal memory, all else as device memory that never executes |
//! | [`memory`]    | the free RAM: filled, copied, cleaned, read; the device tree and the initrd       |
//! | [`heap`]      | Rust's heap                                                                       |
//! | [`cpu`]       | this CPU: number, counter, deadline, waiting; starting the others                 |
//! | [`call`]      | HVC and SMC                                                                       |
//! | [`registers`] | runs of a VM with every register full                                             |
//! | [`sme`]       | the same for streaming mode and ZA                                                |
//! | [`gic`]       | the machine's own GICv2 or GICv3                                                  |
//! | [`lpis`]      | its pages of registers about LPIs                                                 |
//! | [`uart`]      | PL011 and the Raspberry Pi's mini-UART                                            |
//! | [`pci`]       | a PCI host bridge, as far as one device needs it                                  |
//! | [`edu`]       | QEMU's educational PCI device: a DMA engine                                       |
//!
//! Interrupts stay masked on every CPU for good. Those that arrive are taken by asking the interrupt controller ([`gic::Gic::take`]), and
//! WFI ends for a masked one too; so no code here can be interrupted and a plain spin lock is enough everywhere.
#![allow(unsafe_code, reason = "the bottom; each block says why it is right")]

use core::arch::asm;

pub mod call;
pub mod cpu;
pub mod edu;
pub mod entry;
pub mod gic;
pub mod heap;
pub mod lpis;
pub mod memory;
pub mod mmu;
pub mod pci;
pub mod registers;
pub mod sme;
pub mod uart;

/// Registers of a device: accesses of 32 or 64 bits at byte offsets. Each is one plain load or store: what the core serves for the host it must know by the
/// syndrome, which does not describe one that also moves its base on, as compilers like to make of volatile ones.
#[derive(Clone, Copy, Debug)]
struct Registers {
    base: u64,
}

impl Registers {
    /// # Safety
    /// From `base` on there are a device's registers, as far as offsets are used, mapped as device memory.
    const unsafe fn new(base: u64) -> Self {
        Self { base }
    }

    fn read(self, offset: u64) -> u32 {
        let value;
        // SAFETY: `new`'s caller vouches for the registers.
        unsafe {
            asm!("ldr {:w}, [{}]", out(reg) value, in(reg) self.base + offset, options(nostack, preserves_flags))
        };
        value
    }

    fn read64(self, offset: u64) -> u64 {
        let value;
        // SAFETY: as in `read`.
        unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) self.base + offset, options(nostack, preserves_flags)) };
        value
    }

    fn write(self, offset: u64, value: u32) {
        // SAFETY: as in `read`.
        unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) self.base + offset, options(nostack, preserves_flags)) };
    }

    fn write64(self, offset: u64, value: u64) {
        // SAFETY: as in `read`.
        unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) self.base + offset, options(nostack, preserves_flags)) };
    }
}
