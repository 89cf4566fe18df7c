//! Where a VM's images stand in its memory: the map of QEMU's virt, so that what was made for that machine runs unchanged.
//!
//! | address                          | what                                                              |
//! |----------------------------------|-------------------------------------------------------------------|
//! | 0x4000_0000                      | the device tree, at most 2 MiB; start of the VM's memory          |
//! | 0x4008_0000                      | a flat binary (its device tree must end below)                    |
//! | 0x4020_0000 + its `text_offset`  | an arm64 Image                                                    |
//! | next 2 MiB boundary behind       | the initrd                                                        |

use crate::arm64_image::{image_size, text_offset};
use thiserror::Error;

/// Start of a VM's memory, and of its device tree.
pub const RAM: u64 = 0x4000_0000;
/// Where a flat binary goes.
pub const FLAT: u64 = 0x4008_0000;
/// Where an Image with `text_offset` 0 goes.
pub const IMAGE: u64 = 0x4020_0000;
const BLOCK: u64 = 2 << 20;

/// What a VM's kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An arm64 Image: its header says what it needs.
    Image,
    /// Anything else: its first byte is its first instruction.
    Flat,
}

impl Kind {
    /// Its name in the mini host's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Flat => "flat",
        }
    }
}

/// The files do not fit into the VM.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Nothing in it.
    #[error("the kernel is an empty file")]
    Empty,
    /// It looks like a kernel, but not like one that starts as it is.
    #[error("the kernel does not start as it is: {0}")]
    NotAnImage(crate::arm64_image::NotAnImage),
    /// Too little memory.
    #[error("the VM has {has} MiB of memory, and its images reach to {needs} MiB: give it more (--vm-memory)")]
    Memory {
        /// What it has.
        has: u64,
        /// What is needed at least.
        needs: u64,
    },
}

/// Where things go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What the kernel is.
    pub kind: Kind,
    /// The kernel's first byte, and first instruction.
    pub kernel: u64,
    /// The device tree.
    pub dtb: u64,
    /// Where an initrd goes, whether there is one or not.
    pub initrd: u64,
}

impl Layout {
    /// The places for this kernel.
    ///
    /// # Errors
    /// [`LayoutError`] for a file that is no kernel: a compressed one, an empty one.
    pub fn of(kernel: &[u8]) -> Result<Self, LayoutError> {
        use crate::arm64_image::NotAnImage;
        if kernel.is_empty() {
            return Err(LayoutError::Empty);
        }
        let (kind, at, size) = match image_size(kernel) {
            Ok(size) => (Kind::Image, IMAGE + text_offset(kernel), size),
            Err(NotAnImage::Magic) if !kernel.starts_with(b"\x7fELF") => (Kind::Flat, FLAT, kernel.len() as u64),
            Err(error) => return Err(LayoutError::NotAnImage(error)),
        };
        Ok(Self { kind, kernel: at, dtb: RAM, initrd: at.saturating_add(size).next_multiple_of(BLOCK) })
    }

    /// Checks that a VM with `memory` bytes has room for all, with an initrd of `initrd` bytes.
    ///
    /// # Errors
    /// [`LayoutError::Memory`].
    pub fn check(&self, memory: u64, initrd: Option<u64>) -> Result<(), LayoutError> {
        // `initrd` is the end of the kernel, rounded up, if there is none.
        let end = self.initrd + initrd.unwrap_or(0);
        let needs = (end - RAM).div_ceil(1 << 20);
        if needs > memory >> 20 { Err(LayoutError::Memory { has: memory >> 20, needs }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arm64_image::{NotAnImage, tests::image};

    #[test]
    fn an_image_goes_behind_the_first_block_and_the_initrd_behind_what_it_needs() {
        let layout = Layout::of(&image(4096, 0x30_0000)).unwrap();
        assert_eq!(layout, Layout { kind: Kind::Image, kernel: IMAGE, dtb: RAM, initrd: 0x4060_0000 });
    }

    #[test]
    fn anything_else_is_flat() {
        let layout = Layout::of(&[0; 4096]).unwrap();
        assert_eq!(layout, Layout { kind: Kind::Flat, kernel: FLAT, dtb: RAM, initrd: 0x4020_0000 });
    }

    #[test]
    fn what_cannot_start_is_refused_with_its_reason() {
        assert_eq!(Layout::of(&[]), Err(LayoutError::Empty));
        assert_eq!(Layout::of(&[0x1f, 0x8b, 8, 0]), Err(LayoutError::NotAnImage(NotAnImage::Gzip)));
        assert_eq!(Layout::of(b"\x7fELF..."), Err(LayoutError::NotAnImage(NotAnImage::Magic)));
    }

    #[test]
    fn a_vm_needs_room_for_its_images() {
        let layout = Layout::of(&[0; 4096]).unwrap();
        assert_eq!(layout.check(2 << 20, None), Ok(()));
        assert_eq!(layout.check(2 << 20, Some(1)), Err(LayoutError::Memory { has: 2, needs: 3 }));
    }
}
