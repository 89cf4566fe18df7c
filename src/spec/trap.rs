//! Layers 30-34: what each call returns, what each trap leads to. K §2 L31-L34, §3.6; the numbers are those of the Arm ARM
//! (D1.3 exception entry, D24.2 ESR_ELx, C5.2 SPSR_ELx) and of the SMC calling convention, written down a second time.
#![forbid(unsafe_code)]

use super::{State, memory};
use crate::abstract_machine::SmcOutcome;
use crate::abstract_machine::addr::Ipa;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::sim::Trapped;
use crate::memory::mem_manager::Denied;

/// x0 to x30.
pub type Frame = [u64; 31];

/// The firmware's answer to an SMC.
pub type Firmware<'a> = &'a dyn Fn([u64; 4], &dyn Fn(Ipa) -> bool) -> SmcOutcome;

const NOT_SUPPORTED: u64 = -1i64 as u64;
const INVALID_PARAMETER: u64 = -3i64 as u64;

/// A synchronous exception of the host on `cpu`, whose registers are `s.cpus[cpu]` and `frame`. K: the four entry points of
/// TrapHandler that concern the host.
pub fn host_trap(s: State, cpu: usize, frame: Frame, firmware: Firmware<'_>) -> (State, Frame) {
    let esr = s.cpus[cpu].esr;
    match esr >> 26 & 0x3f {
        0x16 => hvc(s, esr & 0xffff, frame),
        0x17 => smc(s, cpu, esr & 0xffff, frame, firmware),
        0x20 | 0x24 => (abort(s, cpu), frame),
        _ => (undefined(s, cpu), frame),
    }
}

/// An SError while the host ran on `cpu`: it waits for the host, which goes on where it was.
pub fn host_serror(s: State, cpu: usize) -> State {
    s_count(s, Event::HostSError, |s| s.cpus[cpu].serror = Some(s.cpus[cpu].esr))
}

/// What the host has no right to, and what the core has no answer to: EC 0, IL.
fn undefined(s: State, cpu: usize) -> State {
    s_count(s, Event::HostUndefined, |s| s.cpus[cpu] = exception_entry(s.cpus[cpu], 1 << 25))
}

fn s_count(mut s: State, event: Event, then: impl FnOnce(&mut State)) -> State {
    s.counts[event as usize] += 1;
    then(&mut s);
    s
}

/// K: `handle_host_stage2_fault`. Corrected: a refused access is an abort in the host, not a panic (A22): an external one, or an alignment fault for its
/// kernel, which may have a fix-up for the access.
fn abort(mut s: State, cpu: usize) -> State {
    let esr = s.cpus[cpu].esr;
    let result;
    // Address size and translation faults, with the latter of level -1, and access-flag faults.
    if matches!(esr & 0x3f, 0b00_0000..=0b00_1011 | 0b10_1011) {
        let ipa = Ipa::new(s.cpus[cpu].hpfar);
        (s, result) = memory::map_page_host(s, ipa);
    } else {
        result = Err(Denied::NotOwner);
    }
    if result.is_ok() {
        return s_count(s, Event::HostFaultServed, |_| ());
    }
    s_count(s, Event::HostAccessDenied, |s| {
        let trapped = &mut s.cpus[cpu];
        trapped.far_el1 = trapped.far;
        let external = external_abort(trapped.esr, trapped.pstate);
        // A data abort of EL1 (then its class is one more), by a fault of stage 2 and not of a walk of stage 1.
        let by_stage2 = matches!(esr & 0x3f, 0b00_0000..=0b00_1111 | 0b10_1011);
        let is_data = external >> 26 == 0x25 && by_stage2 && esr & 1 << 7 == 0;
        let syndrome = if is_data { external & !0x3f & !(1 << 10) | 0b10_0001 } else { external };
        *trapped = exception_entry(*trapped, syndrome);
    })
}

/// ESR_EL1 of a synchronous external abort for the access that `esr` (of EL2) describes, from `pstate`.
pub fn external_abort(esr: u64, pstate: u64) -> u64 {
    let is_fetch = esr >> 26 & 0x3f == 0x20;
    let from_el0 = pstate & 0xf == 0;
    // Lower EL: 0x20 fetch, 0x24 data; current EL: one more.
    let class = if is_fetch { 0x20 } else { 0x24 } + u64::from(!from_el0);
    let write = if is_fetch { 0 } else { esr & 1 << 6 };
    // FnV is passed on: what FAR_EL2 did not say, FAR_EL1 does not say either.
    class << 26 | 1 << 25 | write | esr & 1 << 10 | 0b01_0000
}

/// The CPU takes an exception to EL1 with this syndrome. Arm ARM AArch64.TakeException.
pub fn exception_entry(mut t: Trapped, esr: u64) -> Trapped {
    let old = t.pstate;
    let offset = match old & 0x1f {
        0b0_0100 => 0x000,
        0b0_0101 => 0x200,
        0b0_0000 => 0x400,
        _ => 0x600,
    };
    t.esr_el1 = esr;
    t.elr_el1 = t.pc;
    t.spsr_el1 = old;
    t.pc = t.vbar_el1.wrapping_add(offset);
    let keep = old & (0xf << 28 | 1 << 24); // NZCV, DIT
    let pan = if t.sctlr_el1 >> 23 & 1 == 0 { 1 << 22 } else { old & 1 << 22 };
    let ssbs = (t.sctlr_el1 >> 44 & 1) << 12;
    // TCO is set by every exception on a CPU with memory tagging; only where EL1 may use tags (ATA) does it matter.
    let tco = (t.sctlr_el1 >> 43 & 1) << 25;
    let allint = u64::from(t.sctlr_el1 >> 61 & 0b11 == 0b01) << 13;
    t.pstate = keep | pan | allint | ssbs | tco | 0xf << 6 | 0b0_0101;
    t
}

/// K: `host_hvc_handler`, `host_hvc_dispatcher`. An unknown number, those of Linux's boot stub included (A19), and another
/// immediate than 0 are NOT_SUPPORTED.
fn hvc(s: State, immediate: u64, mut x: Frame) -> (State, Frame) {
    let s = s_count(s, Event::HostHypercall, |_| ());
    let answer: &[u64] = match (immediate, x[0]) {
        (0, 0xc600_8000) => &[0x0001_0001],
        (0, 0xc600_8001) => match s.counts.get(usize::try_from(x[1]).unwrap_or(usize::MAX)) {
            Some(count) => &[0, *count],
            None => &[INVALID_PARAMETER],
        },
        (0, 0xc600_8002) => &log_read(&s, x[1]),
        // 1d7ff4a1-6a4e-4b1c-9c55-c04e5150cafe: bytes in order, four to a register, the first lowest (DEN 0028 §6.2).
        (0, 0x8600_ff01) => &[0xa1f4_7f1d, 0x1c4b_4e6a, 0x4ec0_559c, 0xfeca_5051],
        (0, 0x8600_ff03) => &[1, 1],
        _ => &[NOT_SUPPORTED],
    };
    x[..answer.len()].copy_from_slice(answer);
    (s, x)
}

/// Up to 16 bytes of the log from sequence number `seq` on.
fn log_read(s: &State, seq: u64) -> [u64; 4] {
    let (first, text) = &s.log;
    let from = (seq.max(*first) - first).min(text.len() as u64) as usize;
    let bytes = &text[from..text.len().min(from + 16)];
    let mut x = [0, first + (from + bytes.len()) as u64, 0, 0];
    for (n, byte) in bytes.iter().enumerate() {
        x[2 + n / 8] |= u64::from(*byte) << (n % 8 * 8);
    }
    x
}

/// A trapped SMC: the pc stands on it, so it moves on (A11: nothing of it reaches the firmware unfiltered).
fn smc(s: State, cpu: usize, immediate: u64, mut x: Frame, firmware: Firmware<'_>) -> (State, Frame) {
    let mut s = s_count(s, Event::HostSmc, |s| s.cpus[cpu].pc = s.cpus[cpu].pc.wrapping_add(4));
    if immediate != 0 {
        x[0] = NOT_SUPPORTED;
        return (s, x);
    }
    match firmware([x[0], x[1], x[2], x[3]], &|ipa| memory::is_host_memory(&s, ipa)) {
        SmcOutcome::Return(answer) => x[..4].copy_from_slice(&answer),
        SmcOutcome::Restart { entry, context } => {
            x = [0; 31];
            x[0] = context;
            s.cpus[cpu].pc = entry.raw();
            s.cpus[cpu].pstate = 0x3c5;
        }
    }
    (s, x)
}
