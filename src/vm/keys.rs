//! Keys: public ones, whose signatures count, from the build and from the device tree; and the one that seals snapshots.
//!
//! Without a public key nothing is authentic, and no protected VM starts (K §8.2 D2: the published code has a key that everybody knows).
#![forbid(unsafe_code)]

use ed25519_compact::sha512::Hash;

/// Most public keys, besides the one of the build.
pub const MAX_KEYS: usize = 4;

/// An Ed25519 public key.
pub type PublicKey = [u8; 32];
/// A SHA-256 digest.
pub type Digest256 = [u8; 32];
/// A SHA-512 digest.
pub type Digest512 = [u8; 64];

/// The key of the build, if it was given one: 64 hexadecimal digits in the environment's COREVISOR_PUBLIC_KEY.
const BUILD_KEY: Option<PublicKey> = match option_env!("COREVISOR_PUBLIC_KEY") {
    Some(text) => Some(from_hex(text.as_bytes())),
    None => None,
};

/// Runs while the core is compiled: a wrong key is an error there.
const fn from_hex(text: &[u8]) -> PublicKey {
    assert!(text.len() == 64, "COREVISOR_PUBLIC_KEY: 64 hexadecimal digits");
    let mut key = [0; 32];
    let mut n = 0;
    while n < 64 {
        let digit = match text[n] {
            digit @ b'0'..=b'9' => digit - b'0',
            digit @ b'a'..=b'f' => digit - b'a' + 10,
            digit @ b'A'..=b'F' => digit - b'A' + 10,
            _ => unreachable!(),
        };
        key[n / 2] = key[n / 2] << 4 | digit;
        n += 1;
    }
    key
}

/// Public keys whose signatures count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keys {
    given: [Option<PublicKey>; MAX_KEYS],
    build: Option<PublicKey>,
}

impl Keys {
    /// The key of the build, if it has one.
    pub const OF_BUILD: Self = Self { given: [None; MAX_KEYS], build: BUILD_KEY };

    /// The key of the build, and the first [`MAX_KEYS`] of `given`.
    pub fn with(given: impl Iterator<Item = PublicKey>) -> Self {
        let mut keys = Self::OF_BUILD;
        keys.given.iter_mut().zip(given).for_each(|(place, key)| *place = Some(key));
        keys
    }

    /// Whether `key` is one of them.
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.given.iter().chain([&self.build]).any(|known| known.as_ref() == Some(key))
    }
}

/// The secret from which the keys of snapshots come.
pub struct SealingKey([u8; 32]);

impl SealingKey {
    /// The key that these random words are.
    pub fn from_words(words: [u64; 4]) -> Self {
        let mut key = [0; 32];
        key.as_chunks_mut().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
        Self(key)
    }

    /// The key of snapshot `number`, and of no other: the first half of HMAC-SHA-512 (RFC 2104) of the number.
    pub fn of_snapshot(&self, number: u64) -> [u8; 32] {
        let half = |pad: u8, message: &[u8]| {
            let mut block = [pad; 128];
            block.iter_mut().zip(self.0).for_each(|(byte, key)| *byte ^= key);
            let mut hash = Hash::new();
            hash.update(block);
            hash.update(message);
            hash.finalize()
        };
        let mut message = *b"corevisor snapshot \0\0\0\0\0\0\0\0";
        if let Some(place) = message.last_chunk_mut() {
            *place = number.to_le_bytes();
        }
        let mac = half(0x5c, &half(0x36, &message));
        mac.first_chunk().copied().unwrap_or([0; 32])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_snapshot_is_hmac_sha_512_of_its_number() {
        // Computed with Python: hmac.new(bytes(range(32)), b"corevisor snapshot " + (7).to_bytes(8, "little"), "sha512").
        let words =
            [0, 1, 2, 3].map(|n: u64| u64::from_le_bytes(core::array::from_fn(|byte| n as u8 * 8 + byte as u8)));
        let key = SealingKey::from_words(words).of_snapshot(7);
        assert_eq!(
            key,
            [
                0xc2, 0x05, 0xec, 0xf8, 0xe1, 0x79, 0x6f, 0xb7, 0xc8, 0x0e, 0x5a, 0xcb, 0xeb, 0x8e, 0x11, 0x32, 0x23,
                0x01, 0x80, 0x78, 0xac, 0x34, 0xbd, 0x80, 0xc3, 0x1a, 0x87, 0x8d, 0x3b, 0x1d, 0x18, 0xba
            ]
        );
        assert_ne!(key, SealingKey::from_words(words).of_snapshot(8));
    }
}
