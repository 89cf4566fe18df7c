//! Random words for keys and nonces: the CPU's generator (FEAT_RNG) where there is one, and the boot loader's seed
//! (`/chosen/rng-seed`, which the host then neither gets nor finds: boot overwrites the blob; it gets one that is drawn here). Without a generator all follows from the seed: a loader that gives the
//! same at each start makes the core give the same keys.
//!
//! The key of a ChaCha block function; each draw turns one block into a new key and the words that are given out, so neither earlier nor later
//! draws follow from one ("fast key erasure"). ChaCha: RFC 8439 2.3.

use core::arch::asm;

use spin::mutex::SpinMutex;

use super::sysreg::{self, ID_AA64ISAR0};

static KEY: SpinMutex<Option<[u32; 8]>> = SpinMutex::new(None);

/// Gives the boot loader's seed.
pub fn seed(seed: &[u8; 32]) {
    let (words, _) = seed.as_chunks::<4>();
    let mut key = [0; 8];
    key.iter_mut().zip(words).for_each(|(to, word)| *to = u32::from_le_bytes(*word));
    *KEY.lock() = Some(key);
}

/// A word from the CPU's generator; `None` if it has none, or nothing to give for a while.
fn rndr() -> Option<u64> {
    if sysreg::IdAa64isar0::get().read(ID_AA64ISAR0::RNDR) == 0 {
        return None;
    }
    (0..16).find_map(|_| {
        let (value, failed): (u64, u64);
        // SAFETY: RNDR exists; it sets Z if it failed.
        unsafe {
            asm!("mrs {}, S3_3_C2_C4_0", "cset {}, eq", out(reg) value, out(reg) failed, options(nomem, nostack))
        };
        (failed == 0).then_some(value)
    })
}

/// Four words; `None` if nothing was ever random here.
pub fn draw() -> Option<[u64; 4]> {
    let mut fresh = [0_u64; 4];
    let mut from_cpu = true;
    for word in &mut fresh {
        match rndr() {
            Some(value) => *word = value,
            None => from_cpu = false,
        }
    }
    let mut held = KEY.lock();
    let mut key = match *held {
        Some(key) => key,
        None if from_cpu => [0; 8],
        None => return None,
    };
    for (n, word) in key.iter_mut().enumerate() {
        *word ^= (fresh[n / 2] >> (32 * (n % 2))) as u32;
    }
    let block = chacha(&key);
    let (next, out) = block.split_at(8);
    key.copy_from_slice(next);
    *held = Some(key);
    let mut words = [0; 4];
    for (n, word) in words.iter_mut().enumerate() {
        *word = u64::from(out[2 * n]) | u64::from(out[2 * n + 1]) << 32;
    }
    Some(words)
}

/// The same as 32 bytes.
pub fn draw_bytes() -> Option<[u8; 32]> {
    let words = draw()?;
    let mut bytes = [0; 32];
    bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(eight, word)| *eight = word.to_le_bytes());
    Some(bytes)
}

/// The block with counter and nonce zero.
fn chacha(key: &[u32; 8]) -> [u32; 16] {
    let mut start = [0; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    start[4..12].copy_from_slice(key);
    let mut s = start;
    let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
        for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
            s[x] = s[x].wrapping_add(s[y]);
            s[z] = (s[z] ^ s[x]).rotate_left(turn);
        }
    };
    for _ in 0..10 {
        for n in 0..4 {
            quarter(n, n + 4, n + 8, n + 12);
        }
        for n in 0..4 {
            quarter(n, (n + 1) % 4 + 4, (n + 2) % 4 + 8, (n + 3) % 4 + 12);
        }
    }
    s.iter_mut().zip(start).for_each(|(word, first)| *word = word.wrapping_add(first));
    s
}
