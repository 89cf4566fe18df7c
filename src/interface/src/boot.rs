//! What a protected VM may start with: the manifest of its images and its signature; made by `scripts/sign`, checked by the core.
//!
//! What is signed is everything that decides how the VM starts: which images, in which order, at which addresses, of which size and
//! content, and where the first vCPU enters. One page of the host's memory holds it.

use crate::calls::MAX_IMAGES;

/// First word of a manifest: "CVMANIF2".
pub const MANIFEST_MAGIC: u64 = u64::from_le_bytes(*b"CVMANIF2");

/// First word of a manifest of the version before, whose digests were SHA-512: the core takes none, and the images must be signed again.
pub const OLD_MANIFEST_MAGIC: u64 = u64::from_le_bytes(*b"CVMANIF1");

/// One image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ManifestImage {
    /// Where the VM sees it; page-aligned.
    pub gpa: u64,
    /// Bytes; the rest of its last page is zero (and part of what is digested).
    pub size: u64,
    /// SHA-256 of its whole pages, the rest of the last page zero.
    pub digest: [u8; 32],
}

/// The manifest, little endian, without padding. The signature is Ed25519 over `SIGNED_SIZE` bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Manifest {
    /// [`MANIFEST_MAGIC`].
    pub magic: u64,
    /// Number of images, at most [`MAX_IMAGES`].
    pub images: u64,
    /// Address of the first instruction of vCPU 0, within an image.
    pub entry: u64,
    /// x0 of vCPU 0: address of the device tree.
    pub x0: u64,
    /// The images, in the order in which the host registers them; unused ones all zero.
    pub image: [ManifestImage; MAX_IMAGES as usize],
    /// Ed25519 public key of who signed it; it must be one that the core was given (build time or device tree).
    pub public_key: [u8; 32],
    /// Ed25519 signature over all that stands before it.
    pub signature: [u8; 64],
}

impl Manifest {
    /// Size in bytes of what is signed: all but the signature.
    pub const SIGNED_SIZE: usize = size_of::<Self>() - 64;
}

/// Property of /chosen in the device tree that names public keys whose manifests are accepted: a whole number of 32-byte keys.
pub const KEY_PROPERTY: &str = "corevisor,public-keys";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_has_no_padding_and_fits_into_a_page() {
        assert_eq!(size_of::<Manifest>(), 32 + 5 * 48 + 32 + 64);
        assert!(size_of::<Manifest>() <= 4096);
    }
}
