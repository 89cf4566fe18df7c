//! The 64-byte header of an arm64 `Image` (Linux: Documentation/arch/arm64/booting).

use thiserror::Error;

/// Where the header says how much memory the image needs from its first byte on.
pub const IMAGE_SIZE_OFFSET: usize = 16;
const TEXT_OFFSET: usize = 8;
const MAGIC_OFFSET: usize = 56;
const MAGIC: &[u8; 4] = b"ARM\x64";

/// Why a file is not an arm64 `Image`.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NotAnImage {
    /// gzip, as in `Image.gz` and in the vmlinuz of some distributions.
    #[error("it is compressed with gzip: unpack it first (`zcat FILE > Image`)")]
    Gzip,
    /// The self-unpacking EFI form.
    #[error("it is a self-unpacking EFI image (zboot): take the plain arm64 `Image` out of it, or another build")]
    Zboot,
    /// Another kind of file.
    #[error("it has no arm64 Image magic (\"ARM\\x64\" at offset 56)")]
    Magic,
}

/// What the header says about the memory that the image needs: at least the file itself.
///
/// # Errors
/// [`NotAnImage`] says what the file is instead, as far as that can be seen.
pub fn image_size(file: &[u8]) -> Result<u64, NotAnImage> {
    if file.starts_with(&[0x1f, 0x8b]) {
        return Err(NotAnImage::Gzip);
    }
    if file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg") {
        return Err(NotAnImage::Zboot);
    }
    if file.get(MAGIC_OFFSET..MAGIC_OFFSET + 4) != Some(MAGIC) || file.len() < 64 {
        return Err(NotAnImage::Magic);
    }
    let mut said = [0; 8];
    said.copy_from_slice(&file[IMAGE_SIZE_OFFSET..IMAGE_SIZE_OFFSET + 8]);
    Ok(u64::from_le_bytes(said).max(file.len() as u64))
}

/// Where the image wants to start within a block of 2 MiB: its header's `text_offset`. Images before Linux 3.17, which leave
/// `image_size` 0, mean 0x8_0000 by whatever stands there.
pub fn text_offset(file: &[u8]) -> u64 {
    let word = |at: usize| file.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    if word(IMAGE_SIZE_OFFSET) == 0 { 0x8_0000 } else { word(TEXT_OFFSET) & 0x1f_ffff }
}

/// The release of a Linux kernel, from its "Linux version" text: "6.12.38+deb12-arm64".
pub fn linux_release(kernel: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b"Linux version ";
    let found = kernel.windows(BEFORE.len()).enumerate().filter(|(_, window)| *window == BEFORE);
    for (at, _) in found {
        let text = &kernel[at + BEFORE.len()..];
        let end = text.iter().position(|byte| !byte.is_ascii_graphic()).unwrap_or(text.len());
        // "Linux version %s (%s)" is the same text as a format; it names no version.
        if let Ok(release) = std::str::from_utf8(&text[..end])
            && release.starts_with(|first: char| first.is_ascii_digit())
        {
            return Some(release.to_owned());
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file of `len` bytes that passes for an arm64 Image.
    pub(crate) fn image(len: usize, said_size: u64) -> Vec<u8> {
        let mut file = vec![0xa5; len];
        file[TEXT_OFFSET..TEXT_OFFSET + 8].fill(0);
        file[IMAGE_SIZE_OFFSET..IMAGE_SIZE_OFFSET + 8].copy_from_slice(&said_size.to_le_bytes());
        file[MAGIC_OFFSET..MAGIC_OFFSET + 4].copy_from_slice(MAGIC);
        file
    }

    #[test]
    fn an_image_needs_what_it_says_and_at_least_its_own_length() {
        assert_eq!(image_size(&image(4096, 0x10000)), Ok(0x10000));
        assert_eq!(image_size(&image(4096, 0)), Ok(4096));
    }

    #[test]
    fn an_image_stands_where_its_header_wants_it() {
        let mut file = image(4096, 0x10000);
        assert_eq!(text_offset(&file), 0);
        file[TEXT_OFFSET + 2] = 8;
        assert_eq!(text_offset(&file), 0x8_0000);
        assert_eq!(text_offset(&image(4096, 0)), 0x8_0000);
    }

    #[test]
    fn other_files_are_named() {
        assert_eq!(image_size(&[0x1f, 0x8b, 8, 0]), Err(NotAnImage::Gzip));
        assert_eq!(image_size(b"MZ\0\0zimg........"), Err(NotAnImage::Zboot));
        assert_eq!(image_size(b"\x7fELF"), Err(NotAnImage::Magic));
        assert_eq!(image_size(&[]), Err(NotAnImage::Magic));
        assert_eq!(image_size(&image(4096, 0)[..62]), Err(NotAnImage::Magic));
    }

    #[test]
    fn a_release_is_found_past_the_format_text() {
        let kernel = b"..Linux version %s (%s)\0..Linux version 6.12.9+x (debian";
        assert_eq!(linux_release(kernel).as_deref(), Some("6.12.9+x"));
        assert_eq!(linux_release(b"Linux version %s"), None);
    }
}
