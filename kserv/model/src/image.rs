//! Where a kernel, its device tree and its initrd go in a VM's memory.
//!
//! Device tree at the start of RAM; a flat binary at `0x4008_0000`; an arm64 `Image` at `0x4020_0000` plus its `text_offset`; the initrd
//! on the next 2 MiB boundary behind what the kernel needs. Source of the header: Linux, Documentation/arch/arm64/booting.rst.
#![forbid(unsafe_code)]

use core::fmt;

use crate::config::Kind;
use crate::layout::{BLOCK, DTB_BASE, DTB_MAX, FLAT_BASE, IMAGE_BASE, RAM_BASE};

/// Why it cannot be placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaceError {
    /// The file is empty.
    Empty,
    /// `kind=image`, but there is no arm64 magic ("ARM\x64" at offset 56).
    NoMagic,
    /// It is compressed with gzip.
    Gzip,
    /// It is a self-unpacking EFI image.
    Zboot,
    /// A big-endian kernel.
    BigEndian,
    /// `text_offset` is not a multiple of 4 KiB below 2 MiB.
    TextOffset,
    /// The device tree is larger than its place.
    DtbTooLarge,
    /// The device tree does not end before the kernel.
    DtbUnderKernel,
    /// The VM's memory is too small: so many bytes are needed.
    NeedsMemory(u64),
    /// The header's size is beyond every memory.
    TooLarge,
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the kernel is empty"),
            Self::NoMagic => write!(f, "the kernel has no arm64 Image magic"),
            Self::Gzip => write!(f, "the kernel is compressed with gzip"),
            Self::Zboot => write!(f, "the kernel is a self-unpacking EFI image (zboot)"),
            Self::BigEndian => write!(f, "the kernel is big-endian"),
            Self::TextOffset => write!(f, "the kernel's text_offset is not a page within 2 MiB"),
            Self::DtbTooLarge => write!(f, "the device tree is larger than 2 MiB"),
            Self::DtbUnderKernel => write!(f, "the device tree reaches into the kernel"),
            Self::NeedsMemory(bytes) => write!(f, "the VM needs at least {bytes} bytes of memory"),
            Self::TooLarge => write!(f, "the kernel says that it needs more memory than there can be"),
        }
    }
}

/// The header of an arm64 `Image`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageHeader {
    /// Offset from a 2 MiB boundary.
    pub text_offset: u64,
    /// Memory that it needs from its first byte on; 0 in kernels before 3.17.
    pub image_size: u64,
    /// Flags: bit 0 big-endian, bits 2:1 page size, bit 3 anywhere.
    pub flags: u64,
}

impl ImageHeader {
    /// Reads it.
    ///
    /// # Errors
    /// [`PlaceError`] names what the file is instead.
    pub fn parse(kernel: &[u8]) -> Result<Self, PlaceError> {
        if kernel.is_empty() {
            return Err(PlaceError::Empty);
        }
        if kernel.starts_with(&[0x1f, 0x8b]) {
            return Err(PlaceError::Gzip);
        }
        if kernel.starts_with(b"MZ") && kernel.get(4..8) == Some(b"zimg") {
            return Err(PlaceError::Zboot);
        }
        if kernel.len() < 64 || kernel.get(56..60) != Some(b"ARM\x64") {
            return Err(PlaceError::NoMagic);
        }
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&kernel[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let mut header = Self { text_offset: word(8), image_size: word(16), flags: word(24) };
        if header.image_size == 0 {
            // booting.rst: then text_offset is to be taken as 0x80000.
            header.text_offset = 0x8_0000;
        }
        if header.flags & 1 != 0 {
            return Err(PlaceError::BigEndian);
        }
        if header.text_offset >= BLOCK || !header.text_offset.is_multiple_of(4096) {
            return Err(PlaceError::TextOffset);
        }
        Ok(header)
    }
}

/// Where everything goes; addresses in the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// What the kernel is.
    pub kind: Kind,
    /// Where the kernel's file is loaded.
    pub load: u64,
    /// Where vCPU 0 starts.
    pub entry: u64,
    /// x0 of vCPU 0: the device tree.
    pub dtb: u64,
    /// Behind what the kernel needs.
    pub kernel_end: u64,
    /// The initrd's first byte and the one behind its last.
    pub initrd: Option<(u64, u64)>,
}

/// Places a kernel, and an initrd of `initrd_size` bytes, in a VM with `memory` bytes of RAM.
///
/// # Errors
/// [`PlaceError`]. The device tree is checked by [`Placement::check_dtb`], as its size is known later.
pub fn place(kind: Kind, kernel: &[u8], initrd_size: Option<u64>, memory: u64) -> Result<Placement, PlaceError> {
    let size = kernel.len() as u64;
    let (load, needs) = match kind {
        Kind::Image => {
            let header = ImageHeader::parse(kernel)?;
            (IMAGE_BASE + header.text_offset, header.image_size.max(size))
        }
        Kind::Flat if size == 0 => return Err(PlaceError::Empty),
        Kind::Flat => (FLAT_BASE, size),
    };
    let kernel_end = load.checked_add(needs).ok_or(PlaceError::TooLarge)?;
    let initrd = match initrd_size {
        None => None,
        Some(size) => {
            let start = kernel_end.checked_next_multiple_of(BLOCK).ok_or(PlaceError::TooLarge)?;
            Some((start, start.checked_add(size).ok_or(PlaceError::TooLarge)?))
        }
    };
    let end = initrd.map_or(kernel_end, |(_, end)| end);
    if end - RAM_BASE > memory {
        return Err(PlaceError::NeedsMemory(end - RAM_BASE));
    }
    Ok(Placement { kind, load, entry: load, dtb: DTB_BASE, kernel_end, initrd })
}

impl Placement {
    /// Whether a device tree of `size` bytes fits before the kernel.
    ///
    /// # Errors
    /// [`PlaceError::DtbTooLarge`], [`PlaceError::DtbUnderKernel`].
    pub fn check_dtb(&self, size: u64) -> Result<(), PlaceError> {
        if size > DTB_MAX {
            return Err(PlaceError::DtbTooLarge);
        }
        if self.dtb + size > self.load {
            return Err(PlaceError::DtbUnderKernel);
        }
        Ok(())
    }
}

/// What a file most likely is: an `Image` if it has the magic, else a flat binary.
pub fn kind_of(kernel: &[u8]) -> Kind {
    if matches!(ImageHeader::parse(kernel), Ok(_) | Err(PlaceError::TextOffset | PlaceError::BigEndian)) {
        Kind::Image
    } else {
        Kind::Flat
    }
}
