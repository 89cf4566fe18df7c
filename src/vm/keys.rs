//! Public keys whose signatures count: from the build, and from the device tree.
//!
//! Without one nothing is authentic, and no protected VM starts (K §8.2 D2: the published code has a key that everybody knows).
#![forbid(unsafe_code)]

/// Most public keys, besides the one of the build.
pub const MAX_KEYS: usize = 4;

/// An Ed25519 public key.
pub type PublicKey = [u8; 32];
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
