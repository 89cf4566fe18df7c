//! What calls about VMs take, for `scripts/bench`: a line `cost NAME NANOSECONDS` for each. Where the machine counts one instruction as 1 ns,
//! these are instructions.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use corevisor_interface::calls::{MAX_PAGES, VM_PROTECTED};
use kserv_model::layout::RAM_BASE;

use super::{Bare, Context, ensure, tiny, tiny_bytes};
use crate::arch::cpu;
use crate::calls;
use crate::guest::{Failure, Guest, at};
use crate::pages::{self, BLOCK, PAGE};
use crate::{say, scheduler};

/// Other VMs that there are meanwhile, and this one.
const VMS: [u64; 3] = [1, 8, 32];
/// MiB that another VM has meanwhile.
const MEMORY: [u64; 4] = [64, 256, 1024, 4096];
/// MiB that are to be left for everything else.
const SPARE: u64 = 256;
const ROUNDS: u64 = 64;
/// A guest that says when it began, and ends.
const STAMP: [u32; 5] = [
    0xd53b_e041, // mrs x1, cntvct_el0
    0xd2b0_8000, // movz x0, #0x8400, lsl #16
    0xf280_0040, // movk x0, #2: CPU_OFF
    0xd400_0002, // hvc #0
    0x1400_0000, // b .
];
/// GetRegister's number of the register in which it says so.
const X1: u64 = 1;
/// Pool of a VM.
const POOL: u64 = 16;

fn cost(name: &str, ticks: u64, rounds: u64) {
    say!("cost {name} {}", ticks * (1_000_000_000 / cpu::frequency()) / rounds);
}

/// Donates one by one: ticks.
fn donate(vm: &Bare, gpa: u64, pa: u64, step: u64, rounds: u64) -> Result<u64, Failure> {
    let start = cpu::counter();
    for n in 0..rounds {
        let done = at("MapMemory", calls::map_memory(vm.id, gpa + n * step, pa + n * step, step / PAGE, 0))?;
        ensure(done == step / PAGE, "not all was mapped at once")?;
    }
    Ok(cpu::counter() - start)
}

/// A protected VM gets `rounds` pieces of `step` bytes, one call for each, and they come back.
fn pieces(names: [&str; 2], step: u64, rounds: u64) -> Result<(), Failure> {
    let vm = Bare::new(VM_PROTECTED, POOL)?;
    // The piece before takes what is for the first one only: tables, and a block of this host's table that is split.
    let size = (rounds + 1) * step;
    let pa = pages::take(size / PAGE, BLOCK).ok_or(Failure::Memory(size))?;
    donate(&vm, RAM_BASE, pa, step, 1)?;
    let ticks = donate(&vm, RAM_BASE + step, pa + step, step, rounds)?;
    cost(names[0], ticks, rounds);
    let (_, ticks) = vm.end_timed()?;
    cost(names[1], ticks, rounds + 1);
    pages::give(pa, size / PAGE);
    Ok(())
}

/// It has ended: destroys it, and says what that took.
fn destroy(guest: &Arc<Guest>, name: Option<&str>) -> Result<(), Failure> {
    scheduler::remove(guest);
    guest.inner().console.clear();
    let start = cpu::counter();
    let account = guest.destroy()?;
    if let Some(name) = name {
        cost(name, cpu::counter() - start, 1);
    }
    ensure(account.given == account.back, "not all pages came back")
}

/// From when the scheduler is told of a VM to its first instruction: the first fault, the memory around it, and the entry.
fn first_instruction(context: &Context<'_>) -> Result<(), Failure> {
    let code: Vec<u8> = STAMP.iter().flat_map(|word| word.to_le_bytes()).collect();
    let guest = Guest::make(&tiny("stamp", &code), context.info, scheduler::cpus_for(1))?;
    let start = cpu::counter();
    scheduler::add(&guest);
    scheduler::run(|| guest.is_over());
    let cntvoff = guest.hold()[0].mailbox().cntvoff;
    let began = at("GetRegister", calls::get_register(guest.id, 0, X1))?.wrapping_add(cntvoff);
    ensure(began > start, "the VM began before it was there")?;
    cost("vm_first", began - start, 1);
    destroy(&guest, None)
}

/// Prints them all.
pub fn costs(context: &Context<'_>) -> Result<String, Failure> {
    pieces(["donate_block", "reclaim_block"], BLOCK, 8)?;
    for vms in VMS {
        let others = (1..vms).map(|_| Bare::new(VM_PROTECTED, POOL)).collect::<Result<Vec<_>, _>>()?;
        let names = [alloc::format!("donate_page.vms.{vms}"), alloc::format!("reclaim_page.vms.{vms}")];
        pieces([&names[0], &names[1]], PAGE, ROUNDS)?;
        for other in others {
            other.end()?;
        }
    }
    // As much as there is: the machine of scripts/bench has enough for all.
    for mib in MEMORY.into_iter().filter(|mib| pages::free_bytes() > (mib + SPARE) << 20) {
        let blocks = (mib << 20) / BLOCK;
        let large = Bare::new(VM_PROTECTED, POOL)?;
        let pa = pages::take(blocks * MAX_PAGES, BLOCK).ok_or(Failure::Memory(mib << 20))?;
        cost(&alloc::format!("donate_block.mib.{mib}"), donate(&large, RAM_BASE, pa, BLOCK, blocks)?, blocks);
        let names = [alloc::format!("donate_page.mib.{mib}"), alloc::format!("reclaim_page.mib.{mib}")];
        pieces([&names[0], &names[1]], PAGE, ROUNDS)?;
        let (_, ticks) = large.end_timed()?;
        cost(&alloc::format!("reclaim_block.mib.{mib}"), ticks, blocks);
        pages::give(pa, blocks * MAX_PAGES);
    }
    first_instruction(context)?;
    // From nothing to a VM that can run; its first instruction to its last; nothing again.
    let code = tiny_bytes();
    let start = cpu::counter();
    let guest = Guest::make(&tiny("tiny", &code), context.info, scheduler::cpus_for(1))?;
    cost("vm_create", cpu::counter() - start, 1);
    let start = cpu::counter();
    scheduler::add(&guest);
    scheduler::run(|| guest.is_over());
    cost("vm_run", cpu::counter() - start, 1);
    destroy(&guest, Some("vm_destroy"))?;
    Ok(alloc::format!("up to {} VMs", VMS[VMS.len() - 1]))
}
