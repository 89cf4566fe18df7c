//! Checks of VMs from their start to their end.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;

use corevisor_interface::calls::{CallError, MAX_PAGES, MAX_VMS, VM_PROTECTED};
use kserv_model::layout::RAM_BASE;

use super::{Bare, Context, ensure, page, returned, tiny, tiny_bytes};
use crate::arch::cpu;
use crate::arch::entry::{try_read, try_write};
use crate::calls;
use crate::guest::{Failure, Guest, at};
use crate::pages::{self, BLOCK, PAGE};
use crate::scheduler;

const ROUNDS: u64 = 20;
/// What stands in the pages before the VM gets them.
const MARK: u64 = 0x5ec2_e700_5ec2_e700;

/// A block and three pages of a protected VM: gone while it has them, zero when they are back.
pub fn reclaim(_: &Context<'_>) -> Result<String, Failure> {
    let vm = Bare::new(VM_PROTECTED, 16)?;
    let block = pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?;
    let few = pages::take(3, PAGE).ok_or(Failure::Memory(3 * PAGE))?;
    let all: Vec<u64> = (0..MAX_PAGES).map(|n| block + n * PAGE).chain((0..3).map(|n| few + n * PAGE)).collect();
    for pa in &all {
        ensure(try_write(*pa, MARK).is_ok(), "a free page cannot be written")?;
    }
    let done = at("MapMemory", calls::map_memory(vm.id, RAM_BASE, block, MAX_PAGES, 0))?;
    ensure(done == MAX_PAGES, "a block was not mapped as one")?;
    // The last of them first, then the two before it.
    let done = at("MapRuns", calls::map_runs(vm.id, RAM_BASE + BLOCK, &[few + 2 * PAGE, few | 1], 0))?;
    ensure(done == 3, "not all runs were mapped")?;
    for pa in &all {
        ensure(try_read(*pa).is_err_and(|abort| abort.is_refusal()), "the host reads a private page")?;
        ensure(try_write(*pa, 1).is_err_and(|abort| abort.is_refusal()), "the host writes a private page")?;
    }
    let (_, private, _) = at("VmInfo", calls::vm_info(vm.id))?;
    ensure(private == all.len() as u64, "VmInfo counts other pages")?;
    let early = calls::reclaim_vm(vm.id);
    ensure(early == Err(CallError::WrongState), "memory of a VM that is not off was reclaimed")?;
    at("PowerOffVm", calls::power_off_vm(vm.id))?;
    ensure(calls::destroy_vm(vm.id) == Err(CallError::Busy), "a VM with memory was destroyed")?;
    let taken = vm.end()?;
    ensure(taken >= all.len() as u64, "not all pages came back")?;
    all.iter().try_for_each(|pa| returned(*pa))?;
    pages::give(block, MAX_PAGES);
    pages::give(few, 3);
    Ok(alloc::format!("{taken} pages came back all zero"))
}

/// VMs come and go.
pub fn lifecycle(context: &Context<'_>) -> Result<String, Failure> {
    let rounds = context.wishes.number("rounds").unwrap_or(ROUNDS);
    let code = tiny_bytes();
    let (mut given, mut time) = (0, 0);
    for round in 0..rounds {
        let start = cpu::counter();
        let guest = Guest::make(&tiny("tiny", &code), context.info, scheduler::cpus_for(1))?;
        scheduler::add(&guest);
        scheduler::run(|| guest.is_over());
        scheduler::remove(&guest);
        guest.inner().console.clear();
        let account = guest.destroy()?;
        if account.given != account.back {
            let text = alloc::format!("round {round}: of {} pages {} came back", account.given, account.back);
            return Err(Failure::Text(text));
        }
        given += account.given;
        time += cpu::counter() - start;
    }
    let micros = time / rounds.max(1) * 1_000_000 / cpu::frequency();
    Ok(alloc::format!("{rounds} VMs, {given} pages given and back, {micros} us for each VM"))
}

/// Many VMs at the same time.
pub fn many(context: &Context<'_>) -> Result<String, Failure> {
    let count = context.wishes.number("vms").unwrap_or(MAX_VMS).min(MAX_VMS);
    let code = tiny_bytes();
    let mut guests = Vec::new();
    for _ in 0..count {
        guests.push(Guest::make(&tiny("tiny", &code), context.info, scheduler::cpus_for(1))?);
    }
    if count == MAX_VMS {
        let root = page()?;
        let one_more = calls::register_vm(VM_PROTECTED, 36, root);
        ensure(one_more == Err(CallError::NoSpace), "there is a VM too many")?;
        pages::give(root, 1);
    }
    guests.iter().for_each(scheduler::add);
    scheduler::run(|| guests.iter().all(|guest| guest.is_over()));
    for guest in &guests {
        scheduler::remove(guest);
        guest.inner().console.clear();
        let account = guest.destroy()?;
        ensure(account.given == account.back, "not all pages came back")?;
    }
    Ok(alloc::format!("{count} VMs at the same time"))
}
