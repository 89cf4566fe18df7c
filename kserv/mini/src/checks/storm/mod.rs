//! The storm: every CPU makes random calls with random arguments, touches memory, runs vCPUs with random code, all at the same time, while
//! protected VMs with secrets run. `seed=N` (default 1) and `rounds=N` (steps of each CPU; default 4,000) choose it.
//!
//! It holds if
//! - the core lives on, and answers every call with a result or a named error,
//! - no access of the host to a private page succeeds, and none gets anything but an external abort,
//! - no page that the host can read holds a word of the VM's secrets: the storm's pages, mailboxes, the VM's own memory,
//! - the VM finds every secret as it was, in memory and in registers, and powers itself off,
//! - all VMs of the storm can be ended, and every page comes back.
//!
//! Not random: what would only show that the host schedules (PowerOffVm of the attacked VM).
#![forbid(unsafe_code)]

mod attack;
mod draw;

use alloc::string::String;
use alloc::sync::Arc;

use super::victim::{Victim, forbidden, others};
use super::{Context, all_back, ensure};
use crate::arch::cpu;
use crate::guest::Failure;
use crate::pages::{self, BLOCK, PAGE};
use crate::sync::Mutex;
use crate::{jobs, scheduler};
use attack::{Counts, Storm};
use draw::Places;

/// Steps of each CPU.
const ROUNDS: u64 = 4000;
/// The attacker's own memory.
const ARENA: u64 = 2 * BLOCK;

/// All of it.
pub fn storm(context: &Context<'_>) -> Result<String, Failure> {
    let number = |name, usual| context.wishes.number(name).unwrap_or(usual);
    let (seed, rounds) = (number("seed", 1), number("rounds", ROUNDS));
    let victim = Victim::start(context)?;
    let arena = pages::take(ARENA / PAGE, ARENA).ok_or(Failure::Memory(ARENA))?;
    let storm = Arc::new(Storm {
        places: Places { arena, size: ARENA, forbidden: forbidden(), victim },
        known: Mutex::default(),
        counts: Counts::default(),
        wrong: Mutex::new(None),
    });
    let shared = storm.clone();
    let job: jobs::Job = Arc::new(move || shared.rage(seed << 8 | cpu::index() as u64, rounds));
    jobs::everywhere(&job);
    drop(job);
    let places = &storm.places;
    let own = (arena..arena + ARENA).step_by(PAGE as usize);
    own.chain(places.victim.memory()).chain(places.victim.mailboxes()).for_each(|page| storm.search(page));
    let wrong = storm.wrong.lock().take();
    if let Some(text) = wrong {
        return Err(Failure::Text(alloc::format!("seed {seed}: {text}")));
    }
    end(&storm)?;
    pages::give(arena, ARENA / PAGE);
    Ok(alloc::format!("seed {seed}, {} CPUs: {}", scheduler::online(), storm.counts))
}

/// Everything goes back: the storm's VMs, then the attacked one, which says itself how it is.
fn end(storm: &Storm) -> Result<(), Failure> {
    let Places { arena, victim, .. } = &storm.places;
    for vm in others(victim.id()) {
        ensure(storm.end(vm, 100_000), "a VM of the storm cannot be ended")?;
    }
    victim.finish()?;
    all_back(*arena, ARENA)
}
