//! The context switch, from the host's side: VcpuRun with every register that this program can do without full of values of its own,
//! which must be there again afterwards. The option `fill` of `config` asks for it.
//!
//! Filled: x4 to x28, q0 to q31 or all of SVE (z0-z31, p0-p15, FFR), FPSR, FPCR, and the system registers in [`run`]'s list. Those that this
//! program lives by (SCTLR_EL1, TCR_EL1, TTBR0_EL1, ...) are only compared. Where the CPU has SME, some runs are made in streaming mode,
//! some with ZA ([`super::sme`]), some with both.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alloc::boxed::Box;
use alloc::string::String;

use super::sme;

/// Words for vectors, predicates and FFR of the longest length (256 bytes).
const VECTOR_WORDS: usize = (32 * 256 + 17 * 32) / 8;
/// x0 to x28.
const GENERAL: usize = 29;
/// The first of these that the call leaves alone.
const FIRST_KEPT: usize = 4;

/// What `run_filled` moves: SVE's registers, not the q registers only; FFR, too; SVCR, which the CPU has.
const MOVE_SVE: u64 = 1 << 0;
const MOVE_FFR: u64 = 1 << 1;
const MOVE_SVCR: u64 = 1 << 2;

/// What the assembly loads or stores; `fp` is FPSR, FPCR and SVCR.
#[repr(C, align(16))]
struct File {
    general: [u64; GENERAL],
    fp: [u64; 3],
    vectors: [u64; VECTOR_WORDS],
}

impl File {
    const EMPTY: Self = Self { general: [0; GENERAL], fp: [0; 3], vectors: [0; VECTOR_WORDS] };
}

const _: () = assert!(core::mem::offset_of!(File, fp) == 232 && core::mem::offset_of!(File, vectors) == 256);

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .section .text.run_filled, "ax"
    // run_filled(values, found, MOVE_*): loads all, HVC, stores all. Afterwards streaming mode is over; ZA stays.
    .global run_filled
run_filled:
    sub     sp, sp, #112
    stp     x19, x20, [sp, #0]
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    stp     x1, x2, [sp, #96]
    tbz     x2, #2, 0f
    ldr     x10, [x0, #248]
    msr     S3_3_C4_C2_2, x10           // SVCR
0:  add     x9, x0, #256
    tbnz    x2, #0, 1f
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ldr     q\n, [x9, #(16 * \n)]
    .endr
    b       2f
1:  rdvl    x10, #16
    add     x10, x9, x10, lsl #1
    tbz     x2, #1, 3f
    ldr     p0, [x10, #16, mul vl]
    wrffr   p0.b
3:  .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    ldr     p\n, [x10, #\n, mul vl]
    .endr
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ldr     z\n, [x9, #\n, mul vl]
    .endr
2:  ldp     x10, x11, [x0, #232]
    msr     S3_3_C4_C4_1, x10           // FPSR
    msr     S3_3_C4_C4_0, x11           // FPCR
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldr     x28, [x0, #224]
    ldp     x0, x1, [x0]
    hvc     #0
    ldr     x30, [sp, #96]
    stp     x0, x1, [x30]
    stp     x2, x3, [x30, #16]
    stp     x4, x5, [x30, #32]
    stp     x6, x7, [x30, #48]
    stp     x8, x9, [x30, #64]
    stp     x10, x11, [x30, #80]
    stp     x12, x13, [x30, #96]
    stp     x14, x15, [x30, #112]
    stp     x16, x17, [x30, #128]
    stp     x18, x19, [x30, #144]
    stp     x20, x21, [x30, #160]
    stp     x22, x23, [x30, #176]
    stp     x24, x25, [x30, #192]
    stp     x26, x27, [x30, #208]
    str     x28, [x30, #224]
    mrs     x10, S3_3_C4_C4_1
    mrs     x11, S3_3_C4_C4_0
    stp     x10, x11, [x30, #232]
    add     x9, x30, #256
    ldr     x2, [sp, #104]
    tbz     x2, #2, 0f
    mrs     x10, S3_3_C4_C2_2           // SVCR
    str     x10, [x30, #248]
0:  tbnz    x2, #0, 1f
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     q\n, [x9, #(16 * \n)]
    .endr
    b       2f
1:  rdvl    x10, #16
    add     x10, x9, x10, lsl #1
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     z\n, [x9, #\n, mul vl]
    .endr
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    str     p\n, [x10, #\n, mul vl]
    .endr
    tbz     x2, #1, 2f
    rdffr   p0.b
    str     p0, [x10, #16, mul vl]
2:  tbz     x2, #2, 3f
    msr     S0_3_C4_C2_3, xzr           // SMSTOP SM
3:  ldp     x19, x20, [sp, #0]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    add     sp, sp, #112
    ret
"#
);

unsafe extern "C" {
    fn run_filled(values: *const File, found: *mut File, moves: u64);
}

static WANTED: AtomicBool = AtomicBool::new(false);
static SWITCHES: AtomicU64 = AtomicU64::new(0);
static STREAMING: AtomicU64 = AtomicU64::new(0);

/// From now on every VcpuRun and every VerifyVm is made with full registers.
pub fn fill() {
    WANTED.store(true, Ordering::Release);
}

/// Whether they are to be made with full registers.
pub fn are_filled() -> bool {
    WANTED.load(Ordering::Acquire)
}

/// How often they were.
pub fn switches() -> u64 {
    SWITCHES.load(Ordering::Acquire)
}

/// How often of these in streaming mode.
pub fn streaming_switches() -> u64 {
    STREAMING.load(Ordering::Acquire)
}

/// A number that depends on both inputs (splitmix64).
pub fn mix(seed: u64, number: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 30).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

macro_rules! read {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: reads a register that the CPU has.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

macro_rules! write {
    ($name:expr, $value:expr) => {
        // SAFETY: writes a register that this program does without.
        unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nomem, nostack, preserves_flags)) }
    };
}

macro_rules! registers {
    ($write:ident $read:ident $count:ident: $($name:literal & $mask:literal,)*) => {
        const $count: usize = [$($name),*].len();

        fn $write(seed: u64) {
            let mut number = 2000;
            $(number += 1; write!($name, mix(seed, number) & $mask);)*
            let _ = number;
        }

        fn $read() -> [(&'static str, u64); $count] {
            [$(($name, read!($name))),*]
        }
    };
}

registers! { write_plain read_plain PLAIN:
    "contextidr_el1" & 0xffff_ffff,
    "tpidr_el0" & 0xffff_ffff_ffff_ffff,
    "tpidrro_el0" & 0xffff_ffff_ffff_ffff,
    "sp_el0" & 0xffff_ffff_ffff_fff0,
    "elr_el1" & 0x0000_ffff_ffff_fffc,
    "spsr_el1" & 0xf000_03c0,
    "far_el1" & 0x0000_ffff_ffff_ffff,
    "esr_el1" & 0xffff_ffff,
    "afsr0_el1" & 0xffff_ffff,
    "afsr1_el1" & 0xffff_ffff,
    "amair_el1" & 0xffff_ffff,
    "par_el1" & 0x0000_ffff_ffff_f000,
    "cntkctl_el1" & 0xf0,
    "csselr_el1" & 0x1,
    "mdscr_el1" & 0x1000,
    "cntv_cval_el0" & 0xffff_ffff_ffff_ffff,
}

registers! { write_keys read_keys KEYS:
    "s3_0_c2_c1_0" & 0xffff_ffff_ffff_ffff,
    "s3_0_c2_c1_1" & 0xffff_ffff_ffff_ffff,
    "s3_0_c2_c1_2" & 0xffff_ffff_ffff_ffff,
    "s3_0_c2_c1_3" & 0xffff_ffff_ffff_ffff,
    "s3_0_c2_c2_0" & 0xffff_ffff_ffff_ffff,
    "s3_0_c2_c2_1" & 0xffff_ffff_ffff_ffff,
    "s3_0_c2_c2_2" & 0xffff_ffff_ffff_ffff,
    "s3_0_c2_c2_3" & 0xffff_ffff_ffff_ffff,
    "s3_0_c2_c3_0" & 0xffff_ffff_ffff_ffff,
    "s3_0_c2_c3_1" & 0xffff_ffff_ffff_ffff,
}

/// Registers that this program lives by.
fn read_own() -> [(&'static str, u64); 9] {
    [
        ("sctlr_el1", read!("sctlr_el1")),
        ("tcr_el1", read!("tcr_el1")),
        ("ttbr0_el1", read!("ttbr0_el1")),
        ("ttbr1_el1", read!("ttbr1_el1")),
        ("mair_el1", read!("mair_el1")),
        ("vbar_el1", read!("vbar_el1")),
        ("cpacr_el1", read!("cpacr_el1")),
        ("tpidr_el1", read!("tpidr_el1")),
        ("cntv_ctl_el0", read!("cntv_ctl_el0")),
    ]
}

fn differs(before: &[(&'static str, u64)], after: &[(&'static str, u64)]) -> Option<String> {
    let (wanted, found) = before.iter().zip(after).find(|(before, after)| before.1 != after.1)?;
    Some(alloc::format!("{} was {:#x} before a run, and {:#x} after it", wanted.0, wanted.1, found.1))
}

/// ID_AA64PFR0_EL1.SVE.
fn has_sve() -> bool {
    read!("id_aa64pfr0_el1") >> 32 & 0xf != 0
}

/// ID_AA64ISAR1_EL1.{APA, API, GPA, GPI}.
fn has_keys() -> bool {
    read!("id_aa64isar1_el1") & 0xff00_0ff0 != 0
}

/// Makes the call `function(vm, argument)`, of a VM's run or of its images' check, with full registers: its x0 to x3.
///
/// # Errors
/// The register that is not what it was.
pub fn run(function: u64, vm: u64, argument: u64) -> Result<[u64; 4], String> {
    let count = SWITCHES.fetch_add(1, Ordering::AcqRel);
    let seed = mix(count, super::cpu::index() as u64);
    let (sve, keys) = (has_sve(), has_keys());
    let mode = sme::Mode::choose(seed);
    enable(sve);
    sme::start(mode, seed);
    if mode.is_streaming() {
        STREAMING.fetch_add(1, Ordering::AcqRel);
    }

    let shape = Shape::of(sve, mode);
    let values = full([function, vm, argument], seed, mode, &shape);
    let mut found = Box::new(File::EMPTY);
    write_plain(seed);
    if keys {
        write_keys(seed);
    }
    let before = (read_plain(), read_keys_if(keys), read_own(), sme::read_registers());
    // SAFETY: it keeps the calling convention, but for FP and SVE registers, which nothing here uses.
    unsafe { run_filled(&raw const *values, &raw mut *found, shape.moves) };
    let after = (read_plain(), read_keys_if(keys), read_own(), sme::read_registers());
    let of_za = sme::stop(mode, seed);
    differs(&before.0, &after.0)
        .or_else(|| differs(&before.1, &after.1))
        .or_else(|| differs(&before.2, &after.2))
        .or_else(|| differs(&before.3, &after.3))
        .or_else(|| differs_in_files(&values, &found, &shape))
        .or(of_za)
        .map_or_else(|| Ok([0, 1, 2, 3].map(|n| found.general[n])), Err)
}

/// FP, and SVE and SME where they are, for EL1; vectors of the longest length.
fn enable(sve: bool) {
    const FPEN: u64 = 0b11 << 20;
    const ZEN: u64 = 0b11 << 16;
    write!("cpacr_el1", FPEN | if sve { ZEN } else { 0 } | sme::cpacr());
    // SAFETY: what is written before takes effect.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
    if sve {
        write!("S3_0_C1_C2_0", 0xf_u64);
    }
    // SAFETY: as above.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// How much of a [`File`] there is.
struct Shape {
    /// MOVE_*.
    moves: u64,
    /// Bytes of a vector, and words of all vectors, predicates and FFR.
    vector: usize,
    words: usize,
}

impl Shape {
    fn of(sve: bool, mode: sme::Mode) -> Self {
        let vector = if mode.is_streaming() { sme::vector_bytes() } else { vector_bytes() };
        let moves = if sme::is_there() { MOVE_SVCR } else { 0 };
        if !sve && !mode.is_streaming() {
            return Self { moves, vector: 16, words: 64 };
        }
        let predicates = if mode.has_ffr() { 17 } else { 16 };
        let moves = moves | MOVE_SVE | if mode.has_ffr() { MOVE_FFR } else { 0 };
        Self { moves, vector, words: (32 * vector + predicates * vector / 8) / 8 }
    }
}

/// Values for every register.
fn full(call: [u64; 3], seed: u64, mode: sme::Mode, shape: &Shape) -> Box<File> {
    let word = |number: usize| mix(seed, number as u64);
    let mut values = Box::new(File::EMPTY);
    values.general = core::array::from_fn(word);
    values.general[..3].copy_from_slice(&call);
    // Flags; rounding modes.
    values.fp = [word(100) & 0x9f, word(101) & 0x00c0_0000, mode.svcr];
    values.vectors.iter_mut().enumerate().for_each(|(number, value)| *value = word(200 + number));
    if shape.moves & MOVE_FFR != 0 {
        // FFR is a run of ones from the lowest bit on.
        let ffr = &mut values.vectors[(32 * shape.vector + 16 * shape.vector / 8) / 8..shape.words];
        ffr.fill(0);
        if let Some(first) = ffr.first_mut() {
            *first = (1 << (seed % 16)) - 1;
        }
    }
    values
}

fn differs_in_files(values: &File, found: &File, shape: &Shape) -> Option<String> {
    if let Some(n) = (FIRST_KEPT..GENERAL).find(|n| values.general[*n] != found.general[*n]) {
        return Some(alloc::format!("x{n} was {:#x} before a run, {:#x} after", values.general[n], found.general[n]));
    }
    if values.fp != found.fp {
        return Some(alloc::format!("FPSR, FPCR, SVCR were {:x?} before a run, {:x?} after", values.fp, found.fp));
    }
    let n = (0..shape.words).find(|n| values.vectors[*n] != found.vectors[*n])?;
    Some(alloc::format!("word {n} of the vectors ({} bytes each) changed in a run", shape.vector))
}

fn read_keys_if(there: bool) -> [(&'static str, u64); KEYS] {
    if there { read_keys() } else { [("", 0); KEYS] }
}

/// Bytes of a vector out of streaming mode.
fn vector_bytes() -> usize {
    if !has_sve() {
        return 16;
    }
    let bytes: usize;
    // SAFETY: reads how long a vector is, on a CPU with SVE.
    unsafe { asm!(".arch_extension sve", "rdvl {}, #1", out(reg) bytes, options(nomem, nostack, preserves_flags)) };
    bytes
}
