//! Streaming mode and ZA, for [`super::registers`]: where a CPU has SME, a VM runs while this host is in streaming mode, or has ZA, or both.
//!
//! Of ZA, which is up to 64 KiB, the first and the last rows are filled. Arm ARM B1.4; ID_AA64PFR1_EL1.SME, ID_AA64SMFR0_EL1.FA64.

use core::arch::asm;

use alloc::string::String;
use alloc::vec;

use super::registers::mix;

/// SVCR: streaming mode.
const STREAMING: u64 = 1 << 0;
/// SVCR: ZA is on.
const ZA: u64 = 1 << 1;
/// SMCR_EL1: all of SVE and of Advanced SIMD is there in streaming mode.
const FA64: u64 = 1 << 31;

/// Rows of ZA that are filled, at each end.
const ROWS: usize = 2;

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// SVCR.
    pub svcr: u64,
    /// SMCR_EL1.FA64. Without it a VM that runs in streaming mode by mistake has no Advanced SIMD.
    fa64: bool,
}

impl Mode {
    /// One of those that the CPU has.
    pub fn choose(seed: u64) -> Self {
        if !is_there() {
            return Self { svcr: 0, fa64: false };
        }
        Self { svcr: seed & (STREAMING | ZA), fa64: has_fa64() && seed & 1 << 2 != 0 }
    }

    /// Streaming mode.
    pub const fn is_streaming(self) -> bool {
        self.svcr & STREAMING != 0
    }

    /// The CPU has FFR.
    pub const fn has_ffr(self) -> bool {
        !self.is_streaming() || self.fa64
    }
}

/// ID_AA64PFR1_EL1.SME.
pub fn is_there() -> bool {
    let pfr1: u64;
    // SAFETY: reads an ID register.
    unsafe { asm!("mrs {}, id_aa64pfr1_el1", out(reg) pfr1, options(nomem, nostack, preserves_flags)) };
    pfr1 >> 24 & 0xf != 0
}

/// ID_AA64SMFR0_EL1.FA64.
fn has_fa64() -> bool {
    let smfr0: u64;
    // SAFETY: reads an ID register; where there is no SME it is zero.
    unsafe { asm!("mrs {}, S3_0_C0_C4_5", out(reg) smfr0, options(nomem, nostack, preserves_flags)) };
    smfr0 >> 63 != 0
}

/// CPACR_EL1.SMEN, if there is SME.
pub fn cpacr() -> u64 {
    if is_there() { 0b11 << 24 } else { 0 }
}

/// ZA on and filled, if `mode` says so, for what follows; and SMCR_EL1, with the longest vectors; a value in TPIDR2_EL0.
pub fn start(mode: Mode, seed: u64) {
    if !is_there() {
        return;
    }
    let smcr = 0xf | if mode.fa64 { FA64 } else { 0 };
    // SAFETY: registers of SME, which is there and enabled (`cpacr`); nothing else here uses them. SVCR is written without streaming mode.
    unsafe {
        asm!("msr S3_0_C1_C2_6, {}", "msr S3_3_C13_C0_5, {}", "isb", "msr S3_3_C4_C2_2, {}",
            in(reg) smcr, in(reg) mix(seed, 3000), in(reg) mode.svcr & ZA, options(nomem, nostack, preserves_flags));
    }
    if mode.svcr & ZA != 0 {
        let mut row = vec![0; vector_bytes() / 8];
        for n in rows() {
            row.iter_mut().enumerate().for_each(|(word, value)| *value = in_row(seed, n, word));
            // SAFETY: ZA is on; the row's words are as long as a streaming vector.
            unsafe {
                asm!(".arch_extension sme", "ldr za[w12, 0], [{}]", in(reg) row.as_ptr(), in("w12") n as u32,
                    options(nostack, preserves_flags, readonly));
            }
        }
    }
}

/// ZA off. What is not as [`start`] left it.
pub fn stop(mode: Mode, seed: u64) -> Option<String> {
    if mode.svcr & ZA == 0 {
        return None;
    }
    let mut row = vec![0_u64; vector_bytes() / 8];
    let changed = rows().find(|n| {
        // SAFETY: ZA is on, or this is an exception that tells so; as above.
        unsafe {
            asm!(".arch_extension sme", "str za[w12, 0], [{}]", in(reg) row.as_mut_ptr(), in("w12") *n as u32,
                options(nostack, preserves_flags));
        }
        row.iter().enumerate().any(|(word, value)| *value != in_row(seed, *n, word))
    });
    // SAFETY: SMSTOP ZA.
    unsafe { asm!("msr S0_3_C4_C4_3, xzr", options(nomem, nostack, preserves_flags)) };
    changed.map(|n| alloc::format!("row {n} of ZA changed in a run"))
}

/// SMCR_EL1 and TPIDR2_EL0, if there is SME.
pub fn read_registers() -> [(&'static str, u64); 2] {
    let (mut smcr, mut tpidr2) = (0, 0);
    if is_there() {
        // SAFETY: registers of SME, which is there and enabled.
        unsafe {
            asm!("mrs {}, S3_0_C1_C2_6", "mrs {}, S3_3_C13_C0_5", out(reg) smcr, out(reg) tpidr2,
                options(nomem, nostack, preserves_flags));
        }
    }
    [("smcr_el1", smcr), ("tpidr2_el0", tpidr2)]
}

/// Bytes of a streaming vector, and rows of ZA.
pub fn vector_bytes() -> usize {
    let bytes: usize;
    // SAFETY: RDSVL x0, #1 on a CPU with SME.
    unsafe { asm!(".inst 0x04bf5820", out("x0") bytes, options(nomem, nostack, preserves_flags)) };
    bytes
}

fn rows() -> impl Iterator<Item = usize> {
    let all = vector_bytes();
    (0..ROWS).chain(all - ROWS..all)
}

fn in_row(seed: u64, row: usize, word: usize) -> u64 {
    mix(seed, (4000 + row * 64 + word) as u64)
}
