//! The manifest of a protected VM: what it may start with, signed (`corevisor_interface::boot`).
//!
//! A key is an Ed25519 key in PEM form (PKCS #8), as `openssl genpkey -algorithm ed25519` makes it too.

use crate::error::{FileError, read_text, write_secret};
use corevisor_interface::{
    boot::{MANIFEST_MAGIC, Manifest, ManifestImage, OLD_MANIFEST_MAGIC},
    calls::MAX_IMAGES,
};
use ed25519_compact::{KeyPair, PublicKey, SecretKey, Seed, Signature};
use sha2::{Digest, Sha256};
use std::path::Path;
use thiserror::Error;

/// The VM's unit of memory.
pub const PAGE: u64 = 4096;
const SIZE: usize = size_of::<Manifest>();
const IMAGES_AT: usize = 32;
const IMAGE_SIZE: usize = size_of::<ManifestImage>();
const KEY_AT: usize = IMAGES_AT + MAX_IMAGES as usize * IMAGE_SIZE;

/// A manifest cannot be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SignError {
    /// The core takes so many only.
    #[error("a VM has 1 to {MAX_IMAGES} images, not {0}")]
    Images(usize),
    /// Nothing in it.
    #[error("the image at {0:#x} is empty")]
    Empty(u64),
    /// Images are mapped page by page.
    #[error("the image's address {0:#x} is not a multiple of {PAGE}")]
    Misaligned(u64),
    /// More than there are addresses.
    #[error("the image at {0:#x} runs past the end of the address space: sign it at a lower address (FILE@ADDRESS)")]
    TooHigh(u64),
    /// One over the other.
    #[error("the images at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    /// The first instruction would be nothing that was signed.
    #[error("the entry point {0:#x} is in no image")]
    Entry(u64),
}

/// A key is not to be had.
#[derive(Debug, Error)]
pub enum KeyError {
    /// Its file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something else is in it.
    #[error("{0} holds no Ed25519 key in PEM form; `openssl genpkey -algorithm ed25519 -out FILE` makes one")]
    NotAKey(String),
}

/// Why a manifest is not good.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Wrong {
    /// It is something else.
    #[error("it is no manifest")]
    Form,
    /// Its digests are SHA-512.
    #[error("it is of an older version, which the core does not take any more: sign the images again")]
    Old,
    /// Somebody else signed it.
    #[error("it is signed with another key: {0}")]
    Key(String),
    /// Something in it was changed after it was signed.
    #[error("its signature is wrong")]
    Signature,
    /// It is for something else.
    #[error("image {0} (at {1:#x}) is not the one that was signed")]
    Image(usize, u64),
    /// It is for something else.
    #[error("it is for {0} images")]
    Images(u64),
    /// It is for something else.
    #[error("it is for the entry point {0:#x} and the argument {1:#x}")]
    Start(u64, u64),
}

/// One image.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Where the VM sees it.
    pub gpa: u64,
    /// Its bytes.
    pub content: &'a [u8],
}

impl Image<'_> {
    /// Its pages' end, if there are so many addresses.
    fn end(&self) -> Option<u64> {
        self.gpa.checked_add((self.content.len() as u64).checked_next_multiple_of(PAGE)?)
    }

    /// SHA-256 of its whole pages.
    fn digest(&self) -> [u8; 32] {
        let filler = vec![0; self.content.len().next_multiple_of(PAGE as usize) - self.content.len()];
        Sha256::new().chain_update(self.content).chain_update(filler).finalize().into()
    }

    fn entry(&self) -> Vec<u8> {
        let size = self.content.len() as u64;
        [&self.gpa.to_le_bytes()[..], &size.to_le_bytes(), &self.digest()].concat()
    }
}

/// A key with which manifests are signed.
#[derive(Debug)]
pub struct Key(KeyPair);

impl Key {
    /// A new one.
    pub fn generate() -> Self {
        Self(KeyPair::generate())
    }

    /// The one that this seed gives. For tests.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(KeyPair::from_seed(Seed::new(seed)))
    }

    /// The key in this file.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let none = |_| KeyError::NotAKey(path.display().to_string());
        let secret = SecretKey::from_pem(&read_text(path)?).map_err(none)?;
        Ok(Self(KeyPair { pk: secret.public_key(), sk: secret }))
    }

    /// The key in this file, made now if there is no such file: the key, and whether it was made.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read_or_make(path: &Path) -> Result<(Self, bool), KeyError> {
        if path.exists() {
            return Ok((Self::read(path)?, false));
        }
        let key = Self::generate();
        match write_secret(path, &key.0.sk.to_pem()) {
            Ok(()) => Ok((key, true)),
            // Somebody else made it just now.
            Err(_) if path.exists() => Ok((Self::read(path)?, false)),
            Err(error) => Err(error.into()),
        }
    }

    /// The public key, which the core is given.
    pub fn public(&self) -> [u8; 32] {
        *self.0.pk
    }

    /// The signed manifest of `images`, whose first vCPU starts at `entry` with `x0`.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn sign(&self, images: &[Image<'_>], entry: u64, x0: u64) -> Result<Vec<u8>, SignError> {
        check(images, entry)?;
        let mut manifest = Vec::with_capacity(SIZE);
        for word in [MANIFEST_MAGIC, images.len() as u64, entry, x0] {
            manifest.extend_from_slice(&word.to_le_bytes());
        }
        images.iter().for_each(|image| manifest.extend(image.entry()));
        manifest.resize(KEY_AT, 0);
        manifest.extend_from_slice(&self.public());
        // Without noise the same input gives the same file.
        let signature = self.0.sk.sign(&manifest, None);
        manifest.extend_from_slice(signature.as_ref());
        Ok(manifest)
    }
}

fn check(images: &[Image<'_>], entry: u64) -> Result<(), SignError> {
    if images.is_empty() || images.len() > MAX_IMAGES as usize {
        return Err(SignError::Images(images.len()));
    }
    let mut taken: Vec<(u64, u64)> = Vec::with_capacity(images.len());
    for image in images {
        if image.content.is_empty() {
            return Err(SignError::Empty(image.gpa));
        }
        if !image.gpa.is_multiple_of(PAGE) {
            return Err(SignError::Misaligned(image.gpa));
        }
        let end = image.end().ok_or(SignError::TooHigh(image.gpa))?;
        if let Some((other, _)) = taken.iter().find(|(start, after)| image.gpa < *after && *start < end) {
            return Err(SignError::Overlap(*other, image.gpa));
        }
        taken.push((image.gpa, end));
    }
    // All ends are addresses: this cannot overflow.
    let inside = |image: &Image<'_>| (image.gpa..image.gpa + image.content.len() as u64).contains(&entry);
    if images.iter().any(inside) { Ok(()) } else { Err(SignError::Entry(entry)) }
}

/// Checks a manifest as the core does: signed with `public`, for exactly these images in this order (for none given, whichever they
/// are), entered at `start` (entry point and x0; if given).
///
/// # Errors
/// [`Wrong`].
pub fn verify(manifest: &[u8], public: [u8; 32], images: &[Image<'_>], start: Option<(u64, u64)>) -> Result<(), Wrong> {
    let word = |at: usize| manifest[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    if manifest.starts_with(&OLD_MANIFEST_MAGIC.to_le_bytes()) {
        return Err(Wrong::Old);
    }
    if manifest.len() != SIZE || word(0) != MANIFEST_MAGIC {
        return Err(Wrong::Form);
    }
    let (signed, signature) = manifest.split_at(Manifest::SIGNED_SIZE);
    if signed[KEY_AT..] != public {
        return Err(Wrong::Key(hex(&signed[KEY_AT..])));
    }
    let signature = Signature::from_slice(signature).map_err(|_| Wrong::Signature)?;
    PublicKey::new(public).verify(signed, &signature).map_err(|_| Wrong::Signature)?;
    if let Some(start) = start
        && start != (word(16), word(24))
    {
        return Err(Wrong::Start(word(16), word(24)));
    }
    if images.is_empty() {
        return Ok(());
    }
    if word(8) != images.len() as u64 {
        return Err(Wrong::Images(word(8)));
    }
    for (n, image) in images.iter().enumerate() {
        if signed[IMAGES_AT + n * IMAGE_SIZE..][..IMAGE_SIZE] != image.entry() {
            return Err(Wrong::Image(n, image.gpa));
        }
    }
    Ok(())
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x4020_0000;
    const TREE: u64 = 0x4000_0000;

    fn images<'a>(kernel: &'a [u8], tree: &'a [u8]) -> [Image<'a>; 2] {
        [Image { gpa: ENTRY, content: kernel }, Image { gpa: TREE, content: tree }]
    }

    #[test]
    fn what_was_signed_is_good_and_anything_else_is_not() {
        let (key, other) = (Key::from_seed([1; 32]), Key::from_seed([2; 32]));
        let (kernel, tree) = (vec![0x11; 5000], vec![0x22; 100]);
        let good = images(&kernel, &tree);
        let manifest = key.sign(&good, ENTRY, TREE).unwrap();
        assert_eq!(manifest.len(), SIZE);
        assert_eq!(verify(&manifest, key.public(), &good, Some((ENTRY, TREE))), Ok(()));
        assert_eq!(verify(&manifest, key.public(), &[], None), Ok(()));
        assert_eq!(verify(&manifest, other.public(), &good, None), Err(Wrong::Key(hex(&key.public()))));
        assert_eq!(verify(&manifest, key.public(), &good, Some((TREE, TREE))), Err(Wrong::Start(ENTRY, TREE)));
        assert_eq!(verify(&manifest, key.public(), &good[..1], None), Err(Wrong::Images(2)));

        let mut tampered = kernel.clone();
        tampered[4999] ^= 1;
        assert_eq!(verify(&manifest, key.public(), &images(&tampered, &tree), None), Err(Wrong::Image(0, ENTRY)));
        let longer = [&tree[..], &[0]].concat();
        assert_eq!(verify(&manifest, key.public(), &images(&kernel, &longer), None), Err(Wrong::Image(1, TREE)));
        assert_eq!(verify(&manifest[1..], key.public(), &good, None), Err(Wrong::Form));
        // As long as they were: with digests of 64 bytes.
        let old = [&b"CVMANIF1"[..], &[0; 520]].concat();
        assert_eq!(verify(&old, key.public(), &good, None), Err(Wrong::Old));
    }

    #[test]
    fn no_byte_of_a_manifest_can_change_unnoticed() {
        let key = Key::from_seed([1; 32]);
        let manifest = key.sign(&images(&[1; 4096], &[2; 4096]), ENTRY, TREE).unwrap();
        for at in 0..manifest.len() {
            let mut changed = manifest.clone();
            changed[at] ^= 0x40;
            assert!(verify(&changed, key.public(), &[], None).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_digest_is_of_whole_pages() {
        let short = Image { gpa: 0, content: b"abc" };
        let whole: [u8; 32] = Sha256::digest([&b"abc"[..], &[0; 4093]].concat()).into();
        assert_eq!(short.digest(), whole);
    }

    #[test]
    fn what_the_core_would_refuse_is_not_signed() {
        let key = Key::from_seed([1; 32]);
        let image = |gpa| Image { gpa, content: &[1; 8192] };
        assert_eq!(key.sign(&[], 0, 0), Err(SignError::Images(0)));
        assert_eq!(key.sign(&[0, 2, 4, 6, 8, 10].map(|n| image(n << 12)), 0, 0), Err(SignError::Images(6)));
        assert_eq!(key.sign(&[Image { gpa: 0, content: &[] }], 0, 0), Err(SignError::Empty(0)));
        assert_eq!(key.sign(&[image(0x800)], 0x800, 0), Err(SignError::Misaligned(0x800)));
        // Its last page, and the one behind it, have no end that is an address.
        for gpa in [u64::MAX - 0xfff, u64::MAX - 0x1fff] {
            assert_eq!(key.sign(&[image(gpa)], gpa, 0), Err(SignError::TooHigh(gpa)));
            assert_eq!(key.sign(&[image(0), image(gpa)], 0, 0), Err(SignError::TooHigh(gpa)));
            let manifest = key.sign(&[image(0)], 0, 0).unwrap();
            assert_eq!(verify(&manifest, key.public(), &[image(gpa)], None), Err(Wrong::Image(0, gpa)));
        }
        assert_eq!(key.sign(&[image(0), image(0x1000)], 0, 0), Err(SignError::Overlap(0, 0x1000)));
        assert_eq!(key.sign(&[image(0x2000)], 0x4000, 0), Err(SignError::Entry(0x4000)));
    }

    #[test]
    fn a_key_is_made_once_for_its_owners_eyes_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/new.pem");
        let (made, new) = Key::read_or_make(&path).unwrap();
        let (again, newer) = Key::read_or_make(&path).unwrap();
        assert!(new && !newer);
        assert_eq!(made.public(), again.public());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, "no key").unwrap();
        assert!(Key::read_or_make(&path).unwrap_err().to_string().contains("openssl genpkey"));
    }

    #[test]
    fn a_key_of_openssls_is_a_key() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        std::fs::write(&path, pem).unwrap();
        // RFC 8032, 7.1, test 1.
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(hex(&Key::read(&path).unwrap().public()), public);
    }
}
