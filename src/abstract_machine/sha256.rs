//! SHA-256 (FIPS 180-4) of whole pages: where a digest stands between two of them, and its end. What a page does to it is the machine's part
//! ([`PageDigester`](super::PageDigester)): by the CPU's instructions (boot/digest.S), or by crate `sha2` ([`Sha256::add_page`]): its small form, 60
//! instructions a byte; the fast one takes 37, and 8 KiB more of the image.
//!
//! The constants are computed while the core is compiled, as the standard defines them: the first 32 bits of the fractions of roots of the first primes.
#![forbid(unsafe_code)]

use sha2::block_api::compress256;

use super::addr::PAGE_SIZE;

/// Bytes of a digest.
pub const DIGEST_SIZE: usize = 32;
/// Bytes of a block, and words of memory.
pub const BLOCK_SIZE: usize = 64;
const BLOCK_WORDS: usize = BLOCK_SIZE / 8;
/// Blocks of a page: whole ones.
pub const PAGE_BLOCKS: usize = PAGE_SIZE as usize / BLOCK_SIZE;

/// The hash value before the first block: of square roots. FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] = fractions(2);
/// K of each round: of cube roots. FIPS 180-4, 4.2.2. For boot/digest.S; the crate has its own.
#[cfg(any(target_os = "none", test))]
pub static ROUND_CONSTANTS: [u32; 64] = fractions(3);

/// The first 32 bits of the fractions of the `degree`th roots of the first `N` primes. FIPS 180-4 needs no prime of more than nine bits.
const fn fractions<const N: usize>(degree: u32) -> [u32; N] {
    let mut all = [0; N];
    let (mut n, mut candidate) = (0, 2);
    while n < N {
        if is_prime(candidate) {
            // The low half of the integer root of the prime, shifted by 32 bits under the root.
            all[n] = integer_root(candidate << (32 * degree), degree) as u32;
            n += 1;
        }
        candidate += 1;
    }
    all
}

const fn is_prime(number: u128) -> bool {
    let mut divisor = 2;
    while divisor * divisor <= number {
        if number.is_multiple_of(divisor) {
            return false;
        }
        divisor += 1;
    }
    true
}

/// The largest number whose `degree`th power is at most `of`; it has 37 bits at most.
const fn integer_root(of: u128, degree: u32) -> u128 {
    let (mut root, mut bit) = (0, 1_u128 << 36);
    while bit != 0 {
        if (root | bit).pow(degree) <= of {
            root |= bit;
        }
        bit >>= 1;
    }
    root
}

/// A digest of the pages so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sha256 {
    state: [u32; 8],
    pages: u64,
}

impl Sha256 {
    /// Of no page yet.
    pub const NEW: Self = Self { state: INITIAL, pages: 0 };

    /// Adds a page by software; `word` reads its words, each once and in order.
    pub fn add_page(&mut self, word: impl Fn(usize) -> u64) {
        for first in (0..PAGE_BLOCKS).map(|block| block * BLOCK_WORDS) {
            let mut block = [0; BLOCK_SIZE];
            block.as_chunks_mut().0.iter_mut().zip(first..).for_each(|(bytes, n)| *bytes = word(n).to_le_bytes());
            compress256(&mut self.state, &[block]);
        }
        self.pages += 1;
    }

    /// Adds a page by `compress`, which gets the hash value and leaves in its place the one after the page's blocks.
    #[cfg(target_os = "none")]
    pub fn add_page_by(&mut self, compress: impl FnOnce(&mut [u32; 8])) {
        compress(&mut self.state);
        self.pages += 1;
    }

    /// The digest: behind whole blocks the padding (5.1.1: a one, zeroes, the length in bits) is a block of its own.
    pub fn finish(mut self) -> [u8; DIGEST_SIZE] {
        let mut last = [0; BLOCK_SIZE];
        last[0] = 0x80;
        if let Some(length) = last.last_chunk_mut() {
            *length = (self.pages * PAGE_SIZE * 8).to_be_bytes();
        }
        compress256(&mut self.state, &[last]);
        let mut digest = [0; DIGEST_SIZE];
        digest.as_chunks_mut().0.iter_mut().zip(self.state).for_each(|(bytes, word)| *bytes = word.to_be_bytes());
        digest
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use sha2::Digest;

    use super::*;

    /// The compression as FIPS 180-4, 6.2.2 has it, with this file's constants.
    fn compress(state: &mut [u32; 8], block: &[u8; BLOCK_SIZE]) {
        let mut w: Vec<u32> = block.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect();
        for t in 16..64 {
            let (x, y) = (w[t - 15], w[t - 2]);
            let small0 = x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3;
            let small1 = y.rotate_right(17) ^ y.rotate_right(19) ^ y >> 10;
            w.push(small1.wrapping_add(w[t - 7]).wrapping_add(small0).wrapping_add(w[t - 16]));
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
        for (k, w) in ROUND_CONSTANTS.iter().zip(w) {
            let big1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let t1 = h.wrapping_add(big1).wrapping_add(e & f ^ !e & g).wrapping_add(*k).wrapping_add(w);
            let big0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t2 = big0.wrapping_add(a & b ^ a & c ^ b & c);
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
        }
        state.iter_mut().zip([a, b, c, d, e, f, g, h]).for_each(|(state, word)| *state = state.wrapping_add(word));
    }

    fn hex(bytes: &[u8]) -> std::string::String {
        bytes.iter().map(|byte| std::format!("{byte:02x}")).collect()
    }

    /// The digest of whole pages.
    fn of(message: &[u8]) -> [u8; DIGEST_SIZE] {
        let mut digest = Sha256::NEW;
        for page in message.chunks(PAGE_SIZE as usize) {
            digest.add_page(|n| u64::from_le_bytes(page.as_chunks().0[n]));
        }
        digest.finish()
    }

    #[test]
    fn the_first_and_last_constants_are_the_standards() {
        assert_eq!((INITIAL[0], INITIAL[7]), (0x6a09_e667, 0x5be0_cd19));
        assert_eq!((ROUND_CONSTANTS[0], ROUND_CONSTANTS[63]), (0x428a_2f98, 0xc671_78f2));
    }

    #[test]
    fn the_constants_make_the_standards_digests() {
        // NIST, examples of FIPS 180: "abc", and 448 bits, which need a second block.
        let examples: [(&[u8], &str); 3] = [
            (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
        ];
        for (message, expected) in examples {
            let mut padded = [message, &[0x80]].concat();
            padded.resize((message.len() + 9).next_multiple_of(BLOCK_SIZE) - 8, 0);
            padded.extend((message.len() as u64 * 8).to_be_bytes());
            let (mut ours, mut crates) = (INITIAL, INITIAL);
            for block in padded.as_chunks().0 {
                compress(&mut ours, block);
                compress256(&mut crates, &[*block]);
            }
            assert_eq!(ours, crates, "{expected}");
            assert_eq!(hex(&ours.map(u32::to_be_bytes).concat()), expected);
        }
    }

    #[test]
    fn pages_of_known_messages_have_their_known_digests() {
        // No page; and from coreutils: head -c 4096 /dev/zero | sha256sum, and a million times "a" with zeroes up to whole pages.
        assert_eq!(hex(&of(&[])), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hex(&of(&[0; 4096])), "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7");
        let mut million = std::vec![b'a'; 1_000_000];
        million.resize(million.len().next_multiple_of(4096), 0);
        assert_eq!(hex(&of(&million)), "d037dc2b740cc544c66af7c0486e67f126d5d0780c5f593939dac6cd0d365ab6");
    }

    #[test]
    fn random_pages_have_the_crates_digest() {
        for seed in corevisor_evidence::seeds(50) {
            let mut rng = corevisor_evidence::Rng::new(seed);
            let message: Vec<u8> = (0..rng.below(40) * PAGE_SIZE / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
            let crates: [u8; DIGEST_SIZE] = sha2::Sha256::digest(&message).into();
            assert_eq!(of(&message), crates, "seed {seed}, {} bytes", message.len());
        }
    }
}
