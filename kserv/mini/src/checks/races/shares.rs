//! A VM shows a page and takes it back while the host's other CPUs use it all the time (tests/guests/src/bin/sharer.rs).
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use kserv_model::layout::RAM_BASE;

use super::super::drive::{Driven, SHARED, run};
use super::super::stage::{Stage, play};
use super::super::victim::is_canary;
use super::{Context, ensure, strange};
use crate::arch::entry::{Access, try_access};
use crate::guest::Failure;
use crate::scheduler;

/// "SHARED-0": the VM's verdict.
const VERDICT: u64 = u64::from_le_bytes(*b"SHARED-0");
/// What the host writes into the upper half of the page. The verdict is in the lower one.
const OWN: u64 = 0x4057_3333;
const UPPER: u64 = 2048;

/// Loads, stores, atomics: those that were served, those that were refused.
#[derive(Default)]
struct Touches {
    served: AtomicU64,
    refused: AtomicU64,
}

/// Whatever the other CPUs find is public, and what they write lands nowhere while the page is the VM's.
pub fn share_and_touch(context: &Context<'_>) -> Result<String, Failure> {
    let (driven, touches) = (Arc::new(Driven::new(context)?), Arc::new(Touches::default()));
    let shared = (driven.clone(), touches.clone());
    play(move |stage, cpu| {
        let (driven, touches) = &shared;
        if cpu != 0 {
            return touch(touches, stage, driven.guest.ram.0 + SHARED - RAM_BASE, cpu);
        }
        let mut over = false;
        while !over && !stage.is_over() {
            driven.prepare(0);
            let exit = run(driven.guest.id, 0).map_err(|error| Failure::Call("VcpuRun", error))?;
            over = driven.serve(0, exit)?;
        }
        Ok(())
    })?;
    let [verdict, rounds] = driven.verdict()?;
    ensure(verdict == VERDICT, "the VM shows something else")?;
    Arc::into_inner(driven).ok_or_else(|| Failure::Text("a CPU still looks".into()))?.end()?;
    let [served, refused] = [&touches.served, &touches.refused].map(|count| count.load(SeqCst));
    ensure(served != 0 && refused != 0, "the page was not used while it was shown, or not while it was not")?;
    let cpus = scheduler::online();
    Ok(alloc::format!("{rounds} times shown and taken back, {cpus} CPUs: {served} accesses served, {refused} refused"))
}

fn touch(touches: &Touches, stage: &Stage, page: u64, cpu: usize) -> Result<(), Failure> {
    let ways: Vec<Access> =
        Access::all(OWN).filter(|access| !matches!(access, Access::Execute | Access::Zero)).collect();
    for turn in cpu.. {
        if stage.is_over() {
            break;
        }
        let access = ways[turn % ways.len()];
        let place = 64 * (turn as u64 * 5 % 32);
        let at = page + if access == Access::Load { 2 * place } else { UPPER + place };
        match try_access(access, at) {
            Ok(word) if is_canary(word) => return Err(strange("a secret was found", (access, at, word))),
            Ok(_) => touches.served.fetch_add(1, SeqCst),
            Err(abort) if abort.is_refusal() => touches.refused.fetch_add(1, SeqCst),
            Err(abort) => return Err(strange("not an abort of the core's", (access, abort.esr))),
        };
    }
    Ok(())
}
