//! The host's kernel: where it travels, what its header says, whether it is whole.
//!
//! Pure: parses bytes that the caller has mapped. Two ways a kernel comes:
//!
//! * in a bundle behind the core, described by a header page at [`BUNDLE_HEADER_OFFSET`] of the core's block, which
//!   `scripts/image` writes (format: [`BundleHeader`]);
//! * as a boot module that the boot loader names in `/chosen` (`multiboot,kernel`).
//!
//! Either is an arm64 `Image`: Linux, Documentation/arch/arm64/booting.rst.
#![forbid(unsafe_code)]

use core::fmt;

use super::checksum::{crc32c, lane_sum};
use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SIZE, Pa, PhysRange};

/// Where the bundle's header stands in the core's 2 MiB block.
pub const BUNDLE_HEADER_OFFSET: u64 = 0x1f_f000;
/// Where the bundled kernel starts, from the core's base.
pub const BUNDLE_KERNEL_OFFSET: u64 = BLOCK_2M;
/// Bytes of the bundle's header.
pub const BUNDLE_HEADER_SIZE: usize = 64;
/// Bytes of the arm64 Image header.
pub const IMAGE_HEADER_SIZE: usize = 64;

const BUNDLE_MAGIC: &[u8; 8] = b"CVBUNDLE";
const BUNDLE_VERSION: u32 = 2;
const IMAGE_MAGIC: &[u8; 4] = b"ARM\x64";

/// Why there is no kernel to start. Each says what and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostImageError {
    /// Neither a bundle nor a boot module.
    Missing,
    /// The bundle's header is of another version.
    BundleVersion(u32),
    /// The bundle's header was changed or cut.
    BundleHeaderChecksum,
    /// The bundle's header says that the kernel stands where it cannot stand.
    BundleLayout {
        /// Offset in the header.
        offset: u64,
        /// Size in the header.
        size: u64,
    },
    /// The kernel was changed, or the file was cut.
    KernelChecksum {
        /// What the header says.
        expected: u32,
        /// What the memory holds.
        found: u32,
    },
    /// The kernel does not lie in RAM.
    NotInRam(PhysRange),
    /// The kernel is no arm64 Image: its magic number is missing.
    NotAnImage(Pa),
    /// The kernel wants to be big-endian.
    BigEndian,
    /// The memory that the kernel needs, from where it must run, is not free RAM.
    NoRoom {
        /// Bytes that it needs.
        size: u64,
    },
}

impl fmt::Display for HostImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str(
                "no host kernel: neither a bundle behind the core (scripts/image makes one) nor a module in /chosen",
            ),
            Self::BundleVersion(found) => {
                write!(
                    f,
                    "bundle header: version {found}, this core reads {BUNDLE_VERSION}; make it anew with scripts/image"
                )
            }
            Self::BundleHeaderChecksum => f.write_str("bundle header: wrong checksum; the file is damaged"),
            Self::BundleLayout { offset, size } => {
                write!(f, "bundle header: a kernel of {size} bytes at offset {offset:#x} is impossible")
            }
            Self::KernelChecksum { expected, found } => write!(
                f,
                "host kernel in the bundle: checksum {found:#010x}, its header says {expected:#010x}; the file is damaged or cut"
            ),
            Self::NotInRam(range) => {
                write!(f, "host kernel: {range} is not RAM; the file is cut or the memory too small")
            }
            Self::NotAnImage(at) => {
                write!(f, "host kernel at {at}: no arm64 Image (a compressed one must be unpacked)")
            }
            Self::BigEndian => f.write_str("host kernel: big-endian kernels are not supported"),
            Self::NoRoom { size } => write!(f, "host kernel: no free RAM for the {size} bytes it needs"),
        }
    }
}

/// What a bundle's header says. Little endian: magic (8 bytes), version (4), CRC-32C of the 64 bytes with this field zero
/// (4), offset of the kernel (8), its size (8), its lane sum (4), zeroes. Sums: [`super::checksum`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BundleHeader {
    /// Bytes of the kernel's file.
    pub kernel_size: u64,
    /// Its lane sum.
    pub kernel_sum: u32,
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl BundleHeader {
    /// Reads the header; `None` if there is none, so the core travels alone.
    ///
    /// # Errors
    /// [`HostImageError::BundleVersion`], [`HostImageError::BundleHeaderChecksum`], [`HostImageError::BundleLayout`].
    pub fn parse(page: &[u8]) -> Result<Option<Self>, HostImageError> {
        let Some(header) = page.first_chunk::<BUNDLE_HEADER_SIZE>() else { return Ok(None) };
        if !header.starts_with(BUNDLE_MAGIC) {
            return Ok(None);
        }
        let version = le32(header, 8);
        if version != BUNDLE_VERSION {
            return Err(HostImageError::BundleVersion(version));
        }
        let mut unsigned = *header;
        unsigned[12..16].fill(0);
        if crc32c(&unsigned) != le32(header, 12) {
            return Err(HostImageError::BundleHeaderChecksum);
        }
        let (offset, size) = (le64(header, 16), le64(header, 24));
        if offset != BUNDLE_KERNEL_OFFSET || size < IMAGE_HEADER_SIZE as u64 || size > 1 << 32 {
            return Err(HostImageError::BundleLayout { offset, size });
        }
        Ok(Some(Self { kernel_size: size, kernel_sum: le32(header, 32) }))
    }

    /// Whether `kernel` is what the header was made for.
    ///
    /// # Errors
    /// [`HostImageError::KernelChecksum`].
    pub fn check(&self, kernel: &[u8]) -> Result<(), HostImageError> {
        match lane_sum(kernel) {
            found if found == self.kernel_sum => Ok(()),
            found => Err(HostImageError::KernelChecksum { expected: self.kernel_sum, found }),
        }
    }
}

/// What an arm64 Image header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageHeader {
    /// Where the kernel wants to start: this many bytes behind a 2 MiB boundary.
    pub text_offset: u64,
    /// Bytes of memory that it needs from its start on, bss included; zero in very old kernels.
    pub image_size: u64,
}

impl ImageHeader {
    /// Reads the header of the kernel at `at`, whose first bytes are `bytes`.
    ///
    /// # Errors
    /// [`HostImageError::NotAnImage`], [`HostImageError::BigEndian`].
    pub fn parse(at: Pa, bytes: &[u8]) -> Result<Self, HostImageError> {
        let header = bytes.first_chunk::<IMAGE_HEADER_SIZE>().ok_or(HostImageError::NotAnImage(at))?;
        if !header.get(56..).is_some_and(|rest| rest.starts_with(IMAGE_MAGIC)) {
            return Err(HostImageError::NotAnImage(at));
        }
        if le64(header, 24) & 1 == 1 {
            return Err(HostImageError::BigEndian);
        }
        Ok(Self { text_offset: le64(header, 8) & (BLOCK_2M - 1), image_size: le64(header, 16) })
    }

    /// Bytes of memory that the kernel needs, whose file has `file_size` bytes: whole pages, or all there can be if it says so.
    pub fn memory_size(&self, file_size: u64) -> u64 {
        self.image_size.max(file_size).div_ceil(PAGE_SIZE).saturating_mul(PAGE_SIZE)
    }

    /// Whether the kernel can run where it is.
    pub fn may_run_at(&self, at: Pa) -> bool {
        at.raw() & (BLOCK_2M - 1) == self.text_offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn bundle_header(kernel: &[u8]) -> [u8; BUNDLE_HEADER_SIZE] {
        let mut header = [0; BUNDLE_HEADER_SIZE];
        header[..8].copy_from_slice(BUNDLE_MAGIC);
        header[8..12].copy_from_slice(&BUNDLE_VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&BUNDLE_KERNEL_OFFSET.to_le_bytes());
        header[24..32].copy_from_slice(&(kernel.len() as u64).to_le_bytes());
        header[32..36].copy_from_slice(&lane_sum(kernel).to_le_bytes());
        let crc = crc32c(&header);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        header
    }

    #[test]
    fn a_bundle_is_accepted_as_it_was_made() {
        let kernel: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
        let header = BundleHeader::parse(&bundle_header(&kernel)).unwrap().unwrap();
        assert_eq!(header.kernel_size, 1000);
        assert_eq!(header.check(&kernel), Ok(()));
    }

    #[test]
    fn a_core_without_a_bundle_is_no_error() {
        assert_eq!(BundleHeader::parse(&[0; 64]), Ok(None));
        assert_eq!(BundleHeader::parse(&[]), Ok(None));
    }

    #[test]
    fn any_changed_bit_of_a_header_is_found() {
        let good = bundle_header(&[7; 128]);
        for bit in 64..BUNDLE_HEADER_SIZE * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(BundleHeader::parse(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_cut_kernel_has_another_checksum() {
        let kernel = [7; 128];
        let header = BundleHeader::parse(&bundle_header(&kernel)).unwrap().unwrap();
        assert!(matches!(header.check(&kernel[..127]), Err(HostImageError::KernelChecksum { .. })));
    }

    #[test]
    fn a_header_for_an_impossible_place_is_refused() {
        let mut bad = bundle_header(&[7; 128]);
        bad[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        bad[12..16].fill(0);
        let crc = crc32c(&bad);
        bad[12..16].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(BundleHeader::parse(&bad), Err(HostImageError::BundleLayout { .. })));
    }

    #[test]
    fn only_a_little_endian_arm64_image_is_a_kernel() {
        let at = Pa::new(0x4040_0000);
        let mut image = [0; 64];
        assert_eq!(ImageHeader::parse(at, &image), Err(HostImageError::NotAnImage(at)));
        image[56..60].copy_from_slice(IMAGE_MAGIC);
        image[16..24].copy_from_slice(&0x12345_u64.to_le_bytes());
        let header = ImageHeader::parse(at, &image).unwrap();
        assert_eq!((header.text_offset, header.memory_size(0x100)), (0, 0x13000));
        assert!(header.may_run_at(at) && !header.may_run_at(Pa::new(0x4048_0000)));
        image[16..24].fill(0xff);
        assert_eq!(ImageHeader::parse(at, &image).unwrap().memory_size(0x100), u64::MAX, "no machine has room for it");
        image[24] = 1;
        assert_eq!(ImageHeader::parse(at, &image), Err(HostImageError::BigEndian));
    }
}
