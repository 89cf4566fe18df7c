//! Layer 20, BootAux, one part: whether what a protected VM starts with is what somebody signed whom the machine's owner trusts.
//!
//! | primitive             | does                                                                          | lock  |
//! |-----------------------|-------------------------------------------------------------------------------|-------|
//! | [`check_manifest`]    | a manifest against the images that the host registered, and its signature     | none  |
//! | [`Manifest`]          | a copy of a manifest: nobody changes it between two looks                     | none  |
//!
//! Everything that decides how the VM starts is under the signature: number, order, addresses, sizes and content of the images, entry
//! point and x0 (K §4.5: bind, not only bytes). The signature is Ed25519 by its strict rules (no second form of a number or a
//! point); the digest of an image is SHA-256, that of a manifest SHA-512. Without a key nothing is authentic (D2: the published code has a key that everybody knows, and
//! takes everything).
//!
//! Below: BootCore. Above: BootAux. Specification: `spec::vm`. Source: SeKVM `verify_image`; K §4.5, §8.2 D2, §8.3 A3.
#![forbid(unsafe_code)]

use ed25519_compact::sha512::Hash;
use ed25519_compact::{PublicKey, Signature, VerifyingState};

use super::Image;
use super::keys::{self, Digest256, Digest512, Keys};
use crate::interface::CallError;
use crate::interface::boot::{self, MANIFEST_MAGIC, ManifestImage};
use crate::interface::calls::MAX_IMAGES;

const SIZE: usize = size_of::<boot::Manifest>();
const SIGNED: usize = boot::Manifest::SIGNED_SIZE;
const IMAGES_AT: usize = core::mem::offset_of!(boot::Manifest, image);
const KEY_AT: usize = core::mem::offset_of!(boot::Manifest, public_key);
const IMAGE_SIZE: usize = size_of::<ManifestImage>();
const DIGEST_AT: usize = core::mem::offset_of!(ManifestImage, digest);

/// A copy of a manifest.
pub struct Manifest([u8; SIZE]);

impl Manifest {
    /// Words of a manifest.
    pub const WORDS: usize = SIZE / 8;

    /// A copy of nothing yet.
    pub const EMPTY: Self = Self([0; SIZE]);

    /// Takes word `n` of the page that the manifest stands in.
    pub fn set_word(&mut self, n: usize, word: u64) {
        if let Some(bytes) = self.0.as_chunks_mut().0.get_mut(n) {
            *bytes = word.to_le_bytes();
        }
    }

    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        // Every place that is asked for lies within; a part beyond the end would be zero.
        self.0.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
    }

    #[inline(never)]
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.part(at))
    }

    /// Address of the first instruction.
    pub fn entry(&self) -> u64 {
        self.word(core::mem::offset_of!(boot::Manifest, entry))
    }

    /// x0 of the first vCPU.
    pub fn x0(&self) -> u64 {
        self.word(core::mem::offset_of!(boot::Manifest, x0))
    }

    /// Digest that the pages of image `n` must have.
    pub fn digest(&self, n: usize) -> Digest256 {
        self.part(IMAGES_AT + n * IMAGE_SIZE + DIGEST_AT)
    }

    /// What identifies the VM that starts so: SHA-512 of all that is signed.
    #[inline(never)]
    pub fn identity(&self) -> Digest512 {
        Hash::hash(&self.0[..SIGNED])
    }

    /// Whether it names exactly these images, in this order.
    fn names(&self, images: &[Image]) -> bool {
        let count = self.word(core::mem::offset_of!(boot::Manifest, images));
        let same = |n: usize, image: &Image| {
            let at = IMAGES_AT + n * IMAGE_SIZE;
            self.word(at) == image.gfn.addr().raw() && self.word(at + 8) == image.size
        };
        let unused = &self.0[IMAGES_AT + images.len().min(MAX_IMAGES as usize) * IMAGE_SIZE..KEY_AT];
        count == images.len() as u64
            && images.iter().enumerate().all(|(n, image)| same(n, image))
            && unused.iter().all(|byte| *byte == 0)
    }

    /// Whether the first instruction is a byte of an image.
    fn enters(&self, images: &[Image]) -> bool {
        let entry = self.entry();
        entry.is_multiple_of(4)
            && images
                .iter()
                .any(|image| entry.checked_sub(image.gfn.addr().raw()).is_some_and(|offset| offset < image.size))
    }

    fn is_signed(&self, keys: &Keys) -> bool {
        let key = self.part(KEY_AT);
        let Some(mut state) = begin(key, self.part(SIGNED)) else { return false };
        state.absorb(&self.0[..SIGNED]);
        keys.contains(&key) && is_good(&state)
    }
}

// The two halves of a check apart: each needs much of the stack, and none the other's.

#[inline(never)]
fn begin(key: keys::PublicKey, signature: [u8; 64]) -> Option<VerifyingState> {
    PublicKey::new(key).verify_incremental(&Signature::new(signature)).ok()
}

#[inline(never)]
fn is_good(state: &VerifyingState) -> bool {
    state.verify().is_ok()
}

/// Whether `manifest` is one for exactly `images`, enters one of them, and is signed with one of `keys`. What the images hold is
/// not looked at.
///
/// # Errors
/// [`CallError::NotAuthentic`].
#[inline(never)]
pub fn check_manifest(manifest: &Manifest, images: &[Image], keys: &Keys) -> Result<(), CallError> {
    let is_good = manifest.word(0) == MANIFEST_MAGIC && manifest.names(images) && manifest.enters(images);
    if is_good && manifest.is_signed(keys) { Ok(()) } else { Err(CallError::NotAuthentic) }
}
