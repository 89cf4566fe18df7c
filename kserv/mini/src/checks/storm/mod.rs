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
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use corevisor_interface::calls::MAX_VMS;
use kserv_model::layout::RAM_BASE;
use spin::Mutex;

use super::{Context, ensure};
use crate::arch::cpu;
use crate::arch::entry::try_read;
use crate::guest::{Failure, Guest};
use crate::pages::{self, BLOCK, PAGE};
use crate::session::{bury, plan};
use crate::{calls, jobs, scheduler};
use attack::{Counts, Storm};
use draw::Places;

/// Steps of each CPU.
const ROUNDS: u64 = 4000;
/// The attacker's own memory.
const ARENA: u64 = 2 * BLOCK;
/// How long the attacked VM may take until its secrets are there.
const START_MS: u64 = 200;
/// PageInfo: private.
const PRIVATE: u64 = 1;

/// All of it.
pub fn storm(context: &Context<'_>) -> Result<String, Failure> {
    let number = |name, usual| context.wishes.number(name).unwrap_or(usual);
    let (seed, rounds) = (number("seed", 1), number("rounds", ROUNDS));
    let Some(vm) = context.wishes.vms.iter().find(|vm| vm.protected) else {
        return Err(Failure::Text("it needs a VM to attack: --vm guest:keeper --protected".into()));
    };
    let plan = plan(vm, context.archive, false)?;
    let guest = Guest::make(&plan, context.info, scheduler::cpus_for(plan.vcpus))?;
    scheduler::add(&guest);
    let until = cpu::counter() + cpu::frequency() * START_MS / 1000;
    scheduler::run(|| cpu::counter() >= until);
    let arena = pages::take(ARENA / PAGE, ARENA).ok_or(Failure::Memory(ARENA))?;
    let storm = Arc::new(Storm {
        places: Places {
            arena,
            size: ARENA,
            private: private_pages(&guest)?,
            forbidden: forbidden(),
            victim: guest.id,
            victim_vcpus: plan.vcpus as u64,
            cpus: guest.cpus.iter().map(|cpu| cpu.load(Ordering::Relaxed)).collect(),
        },
        known: Mutex::default(),
        counts: Counts::default(),
        wrong: Mutex::new(None),
    });
    let shared = storm.clone();
    let job: jobs::Job = Arc::new(move || shared.rage(seed << 8 | cpu::index() as u64, rounds));
    jobs::everywhere(&job);
    drop(job);
    for page in (arena..arena + ARENA).chain(guest.ram.0..guest.ram.0 + guest.ram.1 * PAGE).step_by(PAGE as usize) {
        storm.search(page);
    }
    guest.mailboxes().into_iter().for_each(|page| storm.search(page));
    let wrong = storm.wrong.lock().take();
    if let Some(text) = wrong {
        return Err(Failure::Text(alloc::format!("seed {seed}: {text}")));
    }
    end(&storm, &guest)?;
    pages::give(arena, ARENA / PAGE);
    Ok(alloc::format!("seed {seed}, {} CPUs: {}", scheduler::online(), storm.counts))
}

/// Everything goes back: the storm's VMs, then the attacked one, which says itself how it is.
fn end(storm: &Storm, guest: &Arc<Guest>) -> Result<(), Failure> {
    for vm in (1..=MAX_VMS).filter(|vm| *vm != guest.id && calls::vm_info(*vm).is_ok()) {
        ensure(storm.end(vm, 100_000), "a VM of the storm cannot be ended")?;
    }
    let _ = guest.inner().model.receive(b"q");
    scheduler::kick_all();
    scheduler::run(|| guest.is_over());
    let account = bury(guest)?;
    ensure(account.given == account.back, "pages of the attacked VM did not come back")?;
    ensure(!scheduler::has_failed(), "the attacked VM did not end well")?;
    let lost = (0..ARENA / PAGE).filter(|n| try_read(storm.places.arena + n * PAGE).is_err()).count();
    ensure(lost == 0, &alloc::format!("{lost} pages of the storm did not come back"))
}

/// The pages that stay the VM's own.
fn private_pages(guest: &Guest) -> Result<Vec<u64>, Failure> {
    /// The page that the guest shows now and then (tests/guests/src/arch.rs).
    const SHARED: u64 = 0x400f_0000;
    let mut list = Vec::new();
    for n in 0..guest.ram.1 {
        let gpa = RAM_BASE + n * PAGE;
        if gpa != SHARED && calls::page_info(guest.id, gpa).is_ok_and(|(state, _)| state == PRIVATE) {
            list.push(guest.ram.0 + n * PAGE);
        }
    }
    ensure(list.len() >= 16, "the VM has no secrets yet")?;
    Ok(list)
}

/// Addresses around this host's memory that it cannot reach, and some where nothing is.
fn forbidden() -> Vec<u64> {
    /// RAM starts at a multiple of it on the machines that there are.
    const GIB: u64 = 1 << 30;
    let start = crate::arch::entry::image().start & !(GIB - 1);
    let around = (start..start + GIB).step_by(BLOCK as usize);
    let mut list: Vec<u64> =
        around.filter(|pa| try_read(*pa).is_err_and(|abort| abort.is_external())).take(64).collect();
    list.extend([0x7f_ffff_f000, 0x0801_0000, 0x0900_0000, 0x0804_0000, 1 << 47, 1 << 52]);
    list
}
