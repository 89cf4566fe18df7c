//! Core and host kernel in one file that boots where an arm64 kernel boots.
//!
//! The format is fixed, and the core checks it when it boots:
//!
//! | offset     | what                                                                                        |
//! |------------|---------------------------------------------------------------------------------------------|
//! | 0          | the core's flat image; the `image_size` of its arm64 header grows to cover the kernel       |
//! | 0x1f_f000  | a header page, little endian: `[0..8)` magic, `[8..12)` version, `[12..16)` CRC32C of bytes `[0..64)` with this field 0, `[16..24)` offset of the kernel, `[24..32)` its size in bytes, `[32..36)` its lane sum, the rest 0 |
//! | 0x20_0000  | the kernel's `Image`                                                                        |

use crate::arm64_image::{IMAGE_SIZE_OFFSET, NotAnImage, image_size};
use thiserror::Error;

/// The first bytes of the header.
pub const MAGIC: &[u8; 8] = b"CVBUNDLE";
/// The version of the format.
pub const VERSION: u32 = 2;
/// Where the header page is.
pub const HEADER_OFFSET: usize = 0x1f_f000;
/// Where the kernel is.
pub const KERNEL_OFFSET: usize = 0x20_0000;

/// Why two files do not make a bundle.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BundleError {
    /// The core's file reaches into the header page.
    #[error("the core's flat image has {0:#x} bytes, but only {HEADER_OFFSET:#x} fit before the bundle's header")]
    CoreTooLarge(usize),
    /// The core's file has no arm64 header.
    #[error("the core's file is not a flat arm64 image: {0}")]
    Core(NotAnImage),
    /// The kernel's file is not a plain arm64 Image.
    #[error("the host kernel cannot be carried: {0}")]
    Kernel(NotAnImage),
    /// The kernel's header says more than there are addresses.
    #[error("the host kernel's header says that it needs {0:#x} bytes of memory; the file is damaged")]
    KernelMemory(u64),
}

/// Puts the core's flat image and a host kernel into one bootable file.
///
/// # Errors
/// [`BundleError`] names the file that does not fit, and why.
pub fn bundle(core: &[u8], kernel: &[u8]) -> Result<Vec<u8>, BundleError> {
    if core.len() > HEADER_OFFSET {
        return Err(BundleError::CoreTooLarge(core.len()));
    }
    image_size(core).map_err(BundleError::Core)?;
    let kernel_memory = image_size(kernel).map_err(BundleError::Kernel)?;
    let memory = kernel_memory.checked_add(KERNEL_OFFSET as u64).and_then(|end| end.checked_next_multiple_of(4096));
    let memory = memory.ok_or(BundleError::KernelMemory(kernel_memory))?;

    let mut file = Vec::with_capacity(KERNEL_OFFSET + kernel.len());
    file.extend_from_slice(core);
    file[IMAGE_SIZE_OFFSET..IMAGE_SIZE_OFFSET + 8].copy_from_slice(&memory.to_le_bytes());
    file.resize(HEADER_OFFSET, 0);
    file.extend_from_slice(&header(kernel));
    file.resize(KERNEL_OFFSET, 0);
    file.extend_from_slice(kernel);
    Ok(file)
}

fn header(kernel: &[u8]) -> [u8; 64] {
    let mut header = [0; 64];
    header[0..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&(KERNEL_OFFSET as u64).to_le_bytes());
    header[24..32].copy_from_slice(&(kernel.len() as u64).to_le_bytes());
    header[32..36].copy_from_slice(&lane_sum(kernel).to_le_bytes());
    let own = crc32c::crc32c(&header);
    header[12..16].copy_from_slice(&own.to_le_bytes());
    header
}

/// The checksum of a kernel: sixteen lanes of 32 bits, all ones at first; each 64 bytes, the last filled up with zeroes, are
/// sixteen little-endian words, and each lane becomes `lane * 0x9e37_79b1 + word`; then CRC32C over the lanes.
pub fn lane_sum(data: &[u8]) -> u32 {
    let mut lanes = [u32::MAX; 16];
    for chunk in data.chunks(64) {
        let mut words = [0; 64];
        words[..chunk.len()].copy_from_slice(chunk);
        for (lane, word) in lanes.iter_mut().zip(words.chunks_exact(4)) {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            *lane = lane.wrapping_mul(0x9e37_79b1).wrapping_add(word);
        }
    }
    crc32c::crc32c(&lanes.map(u32::to_le_bytes).concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arm64_image::tests::image;

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_lane_sum_is_what_the_core_checks() {
        // The same value stands in src/platform/checksum.rs.
        let data: Vec<u8> = (0..5000_u32).map(|n| n.wrapping_mul(2_654_435_761) as u8).collect();
        assert_eq!(lane_sum(&data), 0x4a8d_9aee);
    }

    #[test]
    fn the_parts_stand_where_the_core_looks_for_them() {
        let (core, kernel) = (image(0x1_8003, 0x2_0000), image(0x5001, 0));
        let file = bundle(&core, &kernel).unwrap();
        assert_eq!(file.len(), 0x20_0000 + 0x5001);
        assert_eq!(file[64..0x1_8003], core[64..]);
        assert!(file[0x1_8003..0x1f_f000].iter().all(|byte| *byte == 0));
        assert_eq!(file[0x20_0000..], kernel);

        let header = &file[0x1f_f000..0x20_0000];
        assert_eq!(&header[0..8], b"CVBUNDLE");
        assert_eq!(u32_at(header, 8), VERSION);
        assert_eq!(u64_at(header, 16), 0x20_0000);
        assert_eq!(u64_at(header, 24), 0x5001);
        assert_eq!(u32_at(header, 32), lane_sum(&kernel));
        assert!(header[36..].iter().all(|byte| *byte == 0));
        let mut cleared = header[..64].to_vec();
        cleared[12..16].fill(0);
        assert_eq!(u32_at(header, 12), crc32c::crc32c(&cleared));
    }

    #[test]
    fn boot_loaders_keep_the_kernels_whole_memory_free() {
        let size = |said| u64_at(&bundle(&image(4096, 1), &image(0x5001, said)).unwrap(), IMAGE_SIZE_OFFSET);
        assert_eq!(size(0), 0x20_6000);
        assert_eq!(size(0x7_0000), 0x27_0000);
        assert_eq!(size(0x7_0001), 0x27_1000);
    }

    #[test]
    fn a_kernel_that_needs_all_addresses_is_refused() {
        for size in [u64::MAX, u64::MAX - KERNEL_OFFSET as u64, u64::MAX - KERNEL_OFFSET as u64 - 0xffe] {
            let mut kernel = image(64, 0);
            kernel[16..24].copy_from_slice(&size.to_le_bytes());
            assert_eq!(bundle(&image(64, 0), &kernel), Err(BundleError::KernelMemory(size)));
        }
    }

    #[test]
    fn a_core_that_reaches_the_header_is_refused() {
        let kernel = image(4096, 0);
        assert!(bundle(&image(HEADER_OFFSET, 0), &kernel).is_ok());
        let too_large = BundleError::CoreTooLarge(HEADER_OFFSET + 1);
        assert_eq!(bundle(&image(HEADER_OFFSET + 1, 0), &kernel), Err(too_large));
    }

    #[test]
    fn files_of_another_kind_are_refused() {
        let ok = image(4096, 0);
        assert_eq!(bundle(b"\x7fELF", &ok), Err(BundleError::Core(NotAnImage::Magic)));
        assert_eq!(bundle(&ok, &[0x1f, 0x8b, 8]), Err(BundleError::Kernel(NotAnImage::Gzip)));
    }
}
