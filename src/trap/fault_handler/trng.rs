//! Part of layer 31, FaultHandler: random numbers for a VM.
//!
//! | primitive             | does                                            | lock |
//! |-----------------------|-------------------------------------------------|------|
//! | [`core_handle_trng`]  | serves a call of the TRNG firmware interface    | none |
//!
//! A VM on a CPU without FEAT_RNG has nothing random that its host does not give it or could not watch; Linux then computes for some hundred million instructions until it takes its own jitter
//! for random. The numbers are the core's (`Machine::entropy`), never firmware's by way of the host and never the host's. Without a source of its own the core has no such calls.
//!
//! Source: no primitive of SeKVM's; Arm DEN 0098 (TRNG 1.0) §2.
#![forbid(unsafe_code)]

use super::super::Core;
use crate::abstract_machine::Machine;
use crate::abstract_machine::shadow::{Context, ShadowReg};
use crate::interface::guest::{NOT_SUPPORTED, SUCCESS, trng};

/// A call gives up to so many registers of random bits.
const REGISTERS: u8 = 3;

/// The vCPU has made the call `function`, one of [`trng`]'s; x0 of the answer. DEN 0098 §2.1-2.5.
pub fn core_handle_trng<M: Machine>(core: &Core<M>, function: u64, ctxt: &mut Context) -> u64 {
    let Some(words) = core.machine().entropy() else { return NOT_SUPPORTED };
    match function {
        trng::VERSION => trng::VERSION_1_0,
        trng::FEATURES if trng::is_call(ctxt.get(ShadowReg::X(1)) & u64::from(u32::MAX)) => SUCCESS,
        trng::GET_UUID => {
            (1..).zip(&trng::UUID[1..]).for_each(|(n, word)| ctxt.set(ShadowReg::X(n), *word));
            trng::UUID[0]
        }
        trng::RND32 => give(ctxt, &words, u32::BITS),
        trng::RND64 => give(ctxt, &words, u64::BITS),
        _ => NOT_SUPPORTED,
    }
}

/// As many random bits as x1 wants, the lowest in x3, zeroes above them and for another number of bits; `width`: bits of a register, also of x1.
fn give(ctxt: &mut Context, words: &[u64; 4], width: u32) -> u64 {
    let wanted = ctxt.get(ShadowReg::X(1)) & u64::MAX >> (u64::BITS - width);
    let width = u64::from(width);
    let fits = (1..=u64::from(REGISTERS) * width).contains(&wanted);
    let mut left = if fits { wanted } else { 0 };
    for (register, word) in (1..=REGISTERS).rev().zip(words) {
        let bits = left.min(width);
        left -= bits;
        let random = if bits == 0 { 0 } else { word >> (u64::from(u64::BITS) - bits) };
        ctxt.set(ShadowReg::X(register), random);
    }
    if fits { SUCCESS } else { trng::INVALID_PARAMETERS }
}
