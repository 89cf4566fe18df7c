//! The checksums of a bundle: they find damage, not forgery.
//!
//! * [`crc32c`]: CRC-32C (Castagnoli; RFC 3720 B.4), bit by bit, for the few bytes of a header.
//! * [`lane_sum`]: for the kernel, whose tens of megabytes are most of what the core does at boot. Sixteen lanes of 32 bits
//!   start at all ones; each 64 bytes of the data, the last filled up with zeroes, are sixteen little-endian words, and each lane
//!   becomes `lane * 0x9e37_79b1 + word`; the sum is the CRC-32C of the 64 bytes of lanes. The factor is odd, so a change of
//!   one word is always found; others with a chance of one in 2^32. Where a CRC takes three instructions for 16 bytes with the
//!   CPU's own CRC instructions, this takes 1.5 with SIMD.

/// The reflected polynomial of CRC-32C.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const FACTOR: u32 = 0x9e37_79b1;
const LANES: usize = 16;
const CHUNK: usize = LANES * 4;

/// CRC-32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
    !data.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// Sum of `data` over sixteen lanes.
pub fn lane_sum(data: &[u8]) -> u32 {
    let mut lanes = [u32::MAX; LANES];
    #[cfg(target_os = "none")]
    let data = simd::add_blocks(&mut lanes, data);
    for chunk in data.chunks(CHUNK) {
        let mut words = [0; CHUNK];
        words.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        add_chunk(&mut lanes, &words);
    }
    let mut bytes = [0; CHUNK];
    for (four, lane) in bytes.chunks_exact_mut(4).zip(lanes) {
        four.copy_from_slice(&lane.to_le_bytes());
    }
    crc32c(&bytes)
}

fn add_chunk(lanes: &mut [u32; LANES], chunk: &[u8; CHUNK]) {
    for (lane, four) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
        let word = four.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        *lane = lane.wrapping_mul(FACTOR).wrapping_add(word);
    }
}

#[cfg(target_os = "none")]
mod simd {
    use core::arch::asm;

    use super::{CHUNK, FACTOR, LANES};
    use crate::abstract_machine::cpu::el2;

    const BLOCK: usize = 4 * CHUNK;

    /// Adds as many whole blocks of four chunks as there are, and gives back the rest. The SIMD registers belong to nobody
    /// before the host starts, and the compiler uses none (softfloat target), so none is saved.
    pub(super) fn add_blocks<'d>(lanes: &mut [u32; LANES], data: &'d [u8]) -> &'d [u8] {
        let blocks = data.len() / BLOCK;
        let (whole, rest) = data.split_at(blocks * BLOCK);
        if blocks == 0 {
            return rest;
        }
        el2::allow_simd();
        // SAFETY: reads `blocks` blocks from `whole`, reads and writes the lanes; EL2 traps no SIMD any more.
        unsafe {
            asm!(
                ".arch_extension simd",
                "dup v31.4s, {factor:w}",
                "ld1 {{v16.4s-v19.4s}}, [{lanes}]",
                "2:",
                ".rept 2",
                // The new words are added to what the lanes were, times the factor; then the roles change.
                "ld1 {{v0.4s-v3.4s}}, [{data}], #64",
                "mla v0.4s, v16.4s, v31.4s",
                "mla v1.4s, v17.4s, v31.4s",
                "mla v2.4s, v18.4s, v31.4s",
                "mla v3.4s, v19.4s, v31.4s",
                "ld1 {{v16.4s-v19.4s}}, [{data}], #64",
                "mla v16.4s, v0.4s, v31.4s",
                "mla v17.4s, v1.4s, v31.4s",
                "mla v18.4s, v2.4s, v31.4s",
                "mla v19.4s, v3.4s, v31.4s",
                ".endr",
                "subs {count}, {count}, #1",
                "b.ne 2b",
                "st1 {{v16.4s-v19.4s}}, [{lanes}]",
                ".arch_extension nosimd",
                factor = in(reg) FACTOR,
                lanes = in(reg) lanes.as_mut_ptr(),
                data = inout(reg) whole.as_ptr() => _,
                count = inout(reg) blocks => _,
                options(nostack),
            );
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn the_check_value_of_the_standard_comes_out() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn any_changed_word_and_any_cut_changes_the_lane_sum() {
        let data: Vec<u8> = (0..1000_u32).map(|n| (n * 7) as u8).collect();
        let sum = lane_sum(&data);
        for at in 0..data.len() {
            let mut bad = data.clone();
            bad[at] ^= 0x40;
            assert_ne!(lane_sum(&bad), sum);
        }
        assert_ne!(lane_sum(&data[..960]), sum);
    }

    #[test]
    fn the_lane_sum_is_what_scripts_image_writes() {
        // The same value stands in scripts/tool/src/bundle.rs.
        let data: Vec<u8> = (0..5000_u32).map(|n| n.wrapping_mul(2_654_435_761) as u8).collect();
        assert_eq!(lane_sum(&data), LANE_SUM_OF_5000);
    }

    const LANE_SUM_OF_5000: u32 = 0x4a8d_9aee;
}
