//! Layers 27-32 for VMs: what an exit shows, what an entry takes back, what the core serves itself. K §3.5; the numbers are those of the Arm ARM
//! (D24.2), of PSCI (DEN 0022), SMCCC (DEN 0028) and TRNG (DEN 0098), written down a second time.
//!
//! Corrected where K says so: M1 (no class is a panic), M2 (a skipped register access moves the PC, nothing else), M4-M6 (what is taken back), A2 (the
//! shadow's syndrome decides), A8 (register 31 is XZR), D9 (exceptions go where the CPU takes them).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::trap;
use crate::abstract_machine::sim::Trapped;

/// A vCPU, as far as exits and entries read and write it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vcpu {
    /// x0 to x30.
    pub x: [u64; 31],
    /// What exception entry reads and writes; `esr`, `far`, `hpfar` are those of EL2 at the last exit, `hpfar` as an address.
    pub regs: Trapped,
}

/// What stands around the vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Around {
    /// Protected VM.
    pub protected: bool,
    /// Memory is mapped at the faulting address.
    pub mapped: bool,
    /// The VM has its GIC's system registers.
    pub gicv3: bool,
    /// The FP registers in the CPU are the VM's.
    pub fp: bool,
    /// What the trapped ID register shows a VM.
    pub id: u64,
    /// The random words that the machine gives next, if it has any.
    pub random: Option<[u64; 4]>,
}

/// What follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// The VM goes on.
    Resume,
    /// The host hears this reason.
    Host(u64),
}

/// What the mailbox shows after an exit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shown {
    /// General registers.
    pub x: BTreeMap<usize, u64>,
    /// Syndrome.
    pub esr: u64,
    /// Address.
    pub ipa: u64,
}

const WFX: u64 = 2;
const MMIO_READ: u64 = 3;
const MMIO_WRITE: u64 = 4;
const MEMORY_FAULT: u64 = 5;
const PSCI: u64 = 6;
const SYSREG: u64 = 7;
const SYSTEM_OFF: u64 = 8;
const FAILED: u64 = 10;

/// K: `vm_exit_dispatcher`. Calls that change more than the vCPU (CPU_ON, sharing of memory that is there) are not here.
pub fn trap(mut v: Vcpu, around: Around) -> (Vcpu, Next) {
    match v.regs.esr >> 26 & 0x3f {
        0x01 => (v, Next::Host(WFX)),
        0x07 if !around.fp => (v, Next::Resume),
        0x0e => (exception(v, 0x0e << 26 | 1 << 25), Next::Resume),
        0x16 => call(v, around),
        0x17 => {
            v.regs.pc = v.regs.pc.wrapping_add(4);
            call(v, around)
        }
        0x18 => sysreg(v, around),
        0x20 | 0x24 => abort(v, around),
        0x3c => {
            let esr = v.regs.esr & 0xffff_ffff;
            (exception(v, esr), Next::Resume)
        }
        _ => undefined(v),
    }
}

fn exception(mut v: Vcpu, esr: u64) -> Vcpu {
    v.regs = trap::exception_entry(v.regs, esr);
    v
}

fn undefined(v: Vcpu) -> (Vcpu, Next) {
    (exception(v, 1 << 25), Next::Resume)
}

fn external_abort(mut v: Vcpu) -> Vcpu {
    let esr = trap::external_abort(v.regs.esr, v.regs.pstate);
    v.regs.far_el1 = v.regs.far;
    exception(v, esr)
}

fn abort(mut v: Vcpu, around: Around) -> (Vcpu, Next) {
    let (esr, ipa) = (v.regs.esr, v.regs.hpfar);
    let translation = matches!(esr & 0x3f, 0b00_0000..=0b00_1011 | 0b10_1011);
    let permission = matches!(esr & 0x3f, 0b00_1100..=0b00_1111);
    let memory = (0x4000_0000..0x40_0000_0000).contains(&ipa);
    let fetch = esr >> 26 & 0x3f == 0x20;
    if !translation && !permission || permission && !memory && !around.mapped {
        return (external_abort(v), Next::Resume);
    }
    let next = match (memory, esr >> 24 & 1, esr >> 6 & 1) {
        (true, ..) if translation && around.mapped => Next::Resume,
        (true, ..) => Next::Host(MEMORY_FAULT),
        _ if fetch || esr >> 7 & 1 != 0 => Next::Host(MEMORY_FAULT),
        _ if esr >> 8 & 1 != 0 => {
            v.regs.pc = v.regs.pc.wrapping_add(4);
            Next::Resume
        }
        (_, 0, _) => Next::Host(MEMORY_FAULT),
        (_, _, 0) => Next::Host(MMIO_READ),
        _ => Next::Host(MMIO_WRITE),
    };
    (v, next)
}

fn sysreg(mut v: Vcpu, around: Around) -> (Vcpu, Next) {
    let iss = v.regs.esr;
    let field = |shift: u64, bits: u64| iss >> shift & ((1 << bits) - 1);
    let (op0, op2, op1, crn, crm) = (field(20, 2), field(17, 3), field(14, 3), field(10, 4), field(1, 4));
    let (rt, read) = (field(5, 5) as usize, iss & 1 != 0);
    let el0 = v.regs.pstate & 0xf == 0;
    let fixed = match (op0, op1, crn, crm, op2) {
        (3, 3, 14, 2, 0..=2) => return (v, Next::Host(SYSREG)),
        _ if el0 => return undefined(v),
        (3, 0, 0, 1..=7, _) if read => around.id,
        (3, 0, 12, 11, 5..=7) if !read && around.gicv3 => return (v, Next::Host(SYSREG)),
        (3, 0, 1, 0, 1) => 0,
        (3, 0, 12, 12, 5) => 7,
        (3, 0 | 3, 9, 12..=14, _) | (3, 3, 14, 8..=15, _) => 0,
        (2, 0, 1, 1, 4) => 8,
        (2, 0 | 3, _, _, _) => 0,
        (1, 0, 7, 6 | 10 | 14, 2) => 0,
        _ => return undefined(v),
    };
    if read && rt < 31 {
        v.x[rt] = fixed;
    }
    v.regs.pc = v.regs.pc.wrapping_add(4);
    (v, Next::Resume)
}

fn call(mut v: Vcpu, around: Around) -> (Vcpu, Next) {
    const NOT_SUPPORTED: u64 = u64::MAX;
    const INVALID_PARAMETER: u64 = u64::MAX - 2;
    const PSCI_CALLS: [u64; 10] = [
        0x8400_0000,
        0x8400_0002,
        0x8400_0006,
        0x8400_0008,
        0x8400_0009,
        0x8400_000a,
        0xc400_0001,
        0xc400_0003,
        0xc400_0004,
        0xc400_0012,
    ];
    if v.regs.esr & 0xffff != 0 {
        v.x[0] = NOT_SUPPORTED;
        return (v, Next::Resume);
    }
    let asked = v.x[1] & 0xffff_ffff;
    let smccc = matches!(asked, 0x8000_0000 | 0x8000_0001);
    v.x[0] = match v.x[0] & 0xffff_ffff {
        0x8400_0000 | 0x8000_0000 => 0x1_0001,
        0x8400_000a if smccc || PSCI_CALLS.contains(&asked) => 0,
        // The test machine's firmware has this workaround, and not 0x8000_3fff.
        0x8000_0001 if smccc || asked == 0x8000_8000 => 0,
        0x8000_8000 => 0,
        0x8400_0006 => 2,
        0xc400_0001 => {
            v.regs.pc = v.regs.pc.wrapping_sub(4);
            return (v, Next::Host(WFX));
        }
        0x8400_0002 => return (v, Next::Host(PSCI)),
        0x8400_0008 | 0x8400_0009 | 0xc400_0012 => return (v, Next::Host(SYSTEM_OFF)),
        0x8400_0050..=0x8400_0053 | 0xc400_0053 => match around.random {
            Some(words) => return (random(v, asked, words), Next::Resume),
            None => NOT_SUPPORTED,
        },
        0x8600_ff01 => {
            // 28b46fb6-2ec5-11e9-a9ca-4b564d003a74.
            v.x[..4].copy_from_slice(&[0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d]);
            return (v, Next::Resume);
        }
        0x8600_0000 => {
            v.x[1..4].fill(0);
            if around.protected { 0b1_1111_1101 } else { 1 }
        }
        0xc600_0002 | 0xc600_0005 if around.protected => 4096,
        // Pages that are not there.
        0xc600_0003 | 0xc600_0004 if around.protected => INVALID_PARAMETER,
        _ => NOT_SUPPORTED,
    };
    (v, Next::Resume)
}

/// TRNG.
fn random(mut v: Vcpu, asked: u64, words: [u64; 4]) -> Vcpu {
    let call = v.x[0] & 0xffff_ffff;
    let width = if call == 0xc400_0053 { 64 } else { 32 };
    match call {
        0x8400_0050 => v.x[0] = 0x1_0000,
        0x8400_0051 => {
            let is_there = (0x8400_0050..=0x8400_0053).contains(&asked) || asked == 0xc400_0053;
            v.x[0] = if is_there { 0 } else { u64::MAX };
        }
        // 0f44fb40-9cb2-469e-82b1-409a0f7ba94b.
        0x8400_0052 => v.x[..4].copy_from_slice(&[0x40fb_440f, 0x9e46_b29c, 0x9a40_b182, 0x4ba9_7b0f]),
        _ => {
            // An argument of a 32-bit call has 32 bits.
            let wanted = if width == 64 { v.x[1] } else { v.x[1] & 0xffff_ffff };
            v.x[..4].fill(0);
            if wanted == 0 || wanted > 3 * width {
                v.x[0] = u64::MAX - 1;
                return v;
            }
            // Bit n of all that is wanted: 0 is the lowest of x3.
            for n in 0..wanted {
                // The highest bits of a word are as random as its others.
                let (word, left) = ((n / width) as usize, (wanted - n / width * width).min(width));
                let bit = words[word] >> (64 - left) >> (n % width) & 1;
                v.x[3 - word] |= bit << (n % width);
            }
        }
    }
    v
}

/// K: `save_shadow_kvm_regs`.
pub fn shown(v: &Vcpu, reason: u64) -> Shown {
    let esr = v.regs.esr;
    let address = v.regs.hpfar | v.regs.far & 0xfff;
    let mut out = Shown::default();
    match reason {
        WFX => out.esr = esr & 0b11,
        MMIO_READ | MMIO_WRITE => (out.esr, out.ipa) = (esr & 0x01ff_8000, address),
        MEMORY_FAULT if esr >> 7 & 1 != 0 => {
            // The walk's, not the instruction's: it writes where it may only read.
            let writes = u64::from(esr >> 2 & 0xf == 3) << 6;
            (out.esr, out.ipa) = (esr & 0xfc00_0000 | writes, v.regs.hpfar);
        }
        MEMORY_FAULT => (out.esr, out.ipa) = (esr & 0xfc00_0040, v.regs.hpfar),
        SYSREG => out.esr = esr & 0x3f_ffff,
        FAILED => out.esr = esr & 0xfc00_0000,
        _ => {}
    }
    let registers = match reason {
        MMIO_WRITE => one(esr >> 16 & 31),
        SYSREG if esr & 1 == 0 => one(esr >> 5 & 31),
        // CPU_ON has arguments.
        PSCI if v.x[0] & 0xffff_ffff == 0xc400_0003 => 0..4,
        PSCI | SYSTEM_OFF => 0..1,
        _ => 0..0,
    };
    // Bytes that are stored; CNTP_TVAL and CNTP_CTL have 32 bits.
    let bits = match reason {
        MMIO_WRITE => 8 << (esr >> 22 & 3),
        SYSREG if matches!(esr & 0x3f_fc1e, 0x30_f804 | 0x32_f804) => 32,
        _ => 64,
    };
    out.x = registers.map(|n| (n, v.x[n] & u64::MAX >> (64 - bits))).collect();
    out
}

fn one(n: u64) -> core::ops::Range<usize> {
    let n = n as usize;
    if n < 31 { n..n + 1 } else { 0..0 }
}

/// K: `restore_shadow_kvm_regs`, after an exit for `reason`, with the host's registers `x`; `abort`: it wants the access to end with one.
pub fn enter(mut v: Vcpu, reason: u64, x: &[u64; 32], abort: bool) -> Vcpu {
    let esr = v.regs.esr;
    if abort {
        return external_abort(v);
    }
    match reason {
        MMIO_READ => {
            let n = (esr >> 16 & 31) as usize;
            if n < 31 {
                let bits = 8 << (esr >> 22 & 3);
                let mut value = x[n] & (u64::MAX >> (64 - bits));
                if esr >> 21 & 1 != 0 && value >> (bits - 1) & 1 != 0 {
                    value |= (u64::MAX << (bits - 1)) & if esr >> 15 & 1 != 0 { u64::MAX } else { 0xffff_ffff };
                }
                v.x[n] = if esr >> 15 & 1 != 0 { value } else { value & 0xffff_ffff };
            }
        }
        SYSREG if esr & 1 != 0 => {
            let n = (esr >> 5 & 31) as usize;
            if n < 31 {
                v.x[n] = x[n];
            }
        }
        // The call has succeeded, whatever the host says; so has one that waited.
        PSCI => v.x[0] = 0,
        WFX if matches!(esr >> 26 & 0x3f, 0x16 | 0x17) => v.x[0] = 0,
        _ => {}
    }
    if matches!(reason, WFX | MMIO_READ | MMIO_WRITE | SYSREG) {
        v.regs.pc = v.regs.pc.wrapping_add(4);
    }
    v
}
