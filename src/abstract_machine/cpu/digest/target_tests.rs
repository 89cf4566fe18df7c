//! What a test on the target asks for (`platform::failure`, feature `test-hooks`): boot/digest.S beside the crate's compression, and a core that goes without the instructions.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use sha2::block_api::compress256;

use super::{Digester, ROUND_CONSTANTS, sha256_blocks};
use crate::abstract_machine::sha256::BLOCK_SIZE;

/// Most blocks of a message.
const BLOCKS: usize = 16;

static FORGONE: AtomicBool = AtomicBool::new(false);

/// No CPU uses its instructions from now on, or each does again.
pub fn forgo(instructions: bool) {
    FORGONE.store(instructions, Relaxed);
    log::info!("digests by {}", if instructions { "software" } else { "instructions" });
}

pub(super) fn is_forgone() -> bool {
    FORGONE.load(Relaxed)
}

/// Random messages, of 1 to [`BLOCKS`] blocks, from a random hash value on: what boot/digest.S makes of them is what the crate makes. Stops the machine if not.
pub fn compare(seed: u64, messages: u64) {
    if !Digester::start().by_instructions {
        log::info!("no instructions for SHA-256");
        return;
    }
    (0..messages).for_each(|n| check(seed, n));
    log::info!("SHA-256 by instructions and by software, messages alike: {messages}, of 1 to {BLOCKS} blocks");
}

#[inline(never)]
fn check(seed: u64, n: u64) {
    // xorshift64*.
    let mut random = (seed << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let count = 1 + n as usize % BLOCKS;
    let words: [u64; BLOCKS * BLOCK_SIZE / 8] = core::array::from_fn(|_| next());
    let mut by_instructions: [u32; 8] = core::array::from_fn(|_| next() as u32);
    let mut by_software = by_instructions;
    for block in words.as_chunks::<{ BLOCK_SIZE / 8 }>().0.iter().take(count) {
        let mut bytes = [0; BLOCK_SIZE];
        bytes.as_chunks_mut().0.iter_mut().zip(block).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
        compress256(&mut by_software, &[bytes]);
    }
    let digester = Digester::start();
    // SAFETY: the CPU has the instructions, and its SIMD registers are the core's; the blocks are this function's own.
    unsafe { sha256_blocks(&raw mut by_instructions, words.as_ptr(), count, &raw const ROUND_CONSTANTS) };
    drop(digester);
    assert!(
        by_instructions == by_software,
        "SHA-256 of {count} blocks, seed {seed}, message {n}: {by_instructions:x?}"
    );
}
