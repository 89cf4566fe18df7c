//! Where everything is in a VM: the memory map of QEMU's virt machine, as far as it is there.
//!
//! | from          | size      | what                                                     |
//! |---------------|-----------|----------------------------------------------------------|
//! | `0x0800_0000` | 64 KiB    | interrupt controller: distributor                        |
//! | `0x0801_0000` | 8 KiB     | GICv2: virtual CPU interface, mapped, no model           |
//! | `0x080a_0000` | 128 KiB each | GICv3: redistributor of a vCPU                        |
//! | `0x0900_0000` | 4 KiB     | serial port                                              |
//! | `0x4000_0000` | as large as wished | RAM: device tree, kernel, initrd                |
#![forbid(unsafe_code)]

/// Distributor.
pub const GICD_BASE: u64 = 0x0800_0000;
/// Size of the distributor's window.
pub const GICD_SIZE: u64 = 0x1_0000;
/// GICv2: where the VM sees the virtual CPU interface.
pub const GICC_BASE: u64 = 0x0801_0000;
/// Size of the virtual CPU interface.
pub const GICC_SIZE: u64 = 0x2000;
/// GICv3: redistributor of vCPU 0; the others follow.
pub const GICR_BASE: u64 = 0x080a_0000;
/// Size of one redistributor: two frames of 64 KiB.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// Serial port.
pub const UART_BASE: u64 = 0x0900_0000;
/// Size of the serial port's window.
pub const UART_SIZE: u64 = 0x1000;
/// First address of RAM.
pub const RAM_BASE: u64 = 0x4000_0000;
/// Behind the last address that can be RAM.
pub const RAM_END: u64 = 0x40_0000_0000;
/// Device tree.
pub const DTB_BASE: u64 = RAM_BASE;
/// Most bytes of a device tree.
pub const DTB_MAX: u64 = 0x20_0000;
/// Where a flat binary is loaded and entered.
pub const FLAT_BASE: u64 = 0x4008_0000;
/// An arm64 `Image` is loaded here plus its `text_offset`.
pub const IMAGE_BASE: u64 = 0x4020_0000;
/// A page.
pub const PAGE: u64 = 0x1000;
/// A block.
pub const BLOCK: u64 = 0x20_0000;

/// Interrupt of the serial port (SPI 1).
pub const UART_INTID: usize = 33;
/// Interrupt of the virtual timer (PPI 11).
pub const VTIMER_INTID: usize = 27;
/// Interrupt of the physical timer (PPI 14).
pub const PTIMER_INTID: usize = 30;

/// The affinity (MPIDR without its upper flags) of a vCPU: 16 to a cluster, as the core gives it out (K §3.5 `reset_sys_regs`).
pub const fn affinity(vcpu: usize) -> u64 {
    (vcpu as u64 & 15) | ((vcpu as u64 >> 4) & 0xff) << 8
}

/// The vCPU with this affinity, if there are `vcpus`. Bits that are no affinity fields are left out.
pub fn vcpu_of(mpidr: u64, vcpus: usize) -> Option<usize> {
    let affinity_bits = mpidr & 0xff_00ff_ffff;
    // The inverse of `affinity`, where there is one.
    let vcpu = (affinity_bits & 15 | affinity_bits >> 4 & 0xff0) as usize;
    (vcpu < vcpus && affinity(vcpu) == affinity_bits).then_some(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vcpu_is_found_by_its_affinity_and_by_no_other() {
        for vcpu in 0..40 {
            assert_eq!(vcpu_of(affinity(vcpu) | 1 << 31, 40), Some(vcpu));
            assert_eq!(vcpu_of(affinity(vcpu), vcpu), None);
        }
        assert_eq!(vcpu_of(1 << 32, 16), None);
        assert_eq!(vcpu_of(u64::MAX, 16), None);
    }
}
