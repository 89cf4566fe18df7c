//! VMs at work, a status line for each, and what the host may not do to them.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;

use corevisor_interface::calls::{CallError, HostCall};
use corevisor_interface::mailbox::{ExitReason, Register};
use kserv_model::archive::Archive;
use kserv_model::layout::RAM_BASE;
use kserv_model::vm::VcpuState;

use crate::arch::cpu;
use crate::arch::entry::{try_read, try_write};
use crate::calls::{self, CoreInfo, page_state, raw};
use crate::guest::{Failure, Guest, Model};
use crate::pages::{self, PAGE};
use crate::say;
use crate::scheduler;
use crate::session::{Wishes, finish, plan};

/// Status lines for each VM before the host tries what it may not.
const STATUS_LINES: u64 = 3;
const STATUS_MS: u64 = 500;

/// Number of exits of a VM.
pub fn exits_of(model: &Model) -> u64 {
    ExitReason::ALL.iter().map(|reason| model.exits(*reason)).sum()
}

/// Exits by reason, those that there were: "1234, Irq 200, MmioWrite 34".
pub fn exits(model: &Model) -> String {
    exits_by(|reason| model.exits(reason))
}

/// The same of any counts.
pub fn exits_by(count: impl Fn(ExitReason) -> u64) -> String {
    let counts = ExitReason::ALL.map(|reason| (reason, count(reason)));
    let mut text = String::new();
    let _ = write!(text, "{}", counts.iter().map(|(_, count)| count).sum::<u64>());
    for (reason, count) in counts.iter().filter(|(_, count)| *count != 0) {
        let _ = write!(text, ", {reason:?} {count}");
    }
    text
}

fn kind(guest: &Guest) -> &'static str {
    if guest.protected { "protected" } else { "ordinary" }
}

/// "vm0: protected, running, 123 exits, 520 pages".
fn status(guest: &Guest) {
    let mut inner = guest.inner();
    let exits: u64 = ExitReason::ALL.iter().map(|reason| inner.model.exits(*reason)).sum();
    let states: Vec<_> = (0..guest.cpus.len())
        .map(|vcpu| match inner.model.state(vcpu) {
            VcpuState::Off => "off",
            VcpuState::Ready => "ready",
            VcpuState::Running => "running",
            VcpuState::Blocked { .. } => "waiting",
        })
        .collect();
    let state = if guest.is_over() { String::from("ended") } else { states.join(", ") };
    let pages = inner.model.memory().pages();
    drop(inner);
    say!("{}: {}, {state}, {exits} exits, {pages} pages", guest.name, kind(guest));
}

fn work_for(milliseconds: u64) {
    let until = cpu::counter() + cpu::frequency() * milliseconds / 1000;
    scheduler::run(|| cpu::counter() >= until);
}

/// The demo: the VMs of `config` at work; then the attempts; then their end.
///
/// # Errors
/// The core allowed what it must refuse, or a VM failed.
pub fn run(wishes: &Wishes<'_>, archive: Archive<'_>, info: &CoreInfo) -> Result<(), Failure> {
    let mut guests = Vec::new();
    for vm in &wishes.vms {
        let guest = Guest::make(&plan(vm, archive, false)?, info, scheduler::cpus_for(vm.vcpus))
            .map_err(|failure| Failure::Text(alloc::format!("{}: {failure}", vm.name)))?;
        say!("{}: {}, {} vCPUs, {} MiB", vm.name, kind(&guest), vm.vcpus, vm.memory >> 20);
        guests.push(guest);
    }
    guests.iter().for_each(scheduler::add);
    for _ in 0..STATUS_LINES {
        work_for(STATUS_MS);
        guests.iter().for_each(|guest| status(guest));
    }
    let ordinary = guests.iter().find(|guest| !guest.protected && !guest.is_over());
    for (guest, vm) in guests.iter().zip(&wishes.vms) {
        if guest.is_over() {
            continue;
        }
        if guest.protected {
            protected(guest, ordinary, vm.entry)?;
        } else {
            readable(guest, vm.entry)?;
        }
    }
    if let Some(vm) = wishes.vms.iter().find(|vm| vm.protected) {
        changed_image(&plan(vm, archive, false)?, info)?;
    }
    say!("the VMs go on to their end");
    finish(guests, wishes.has("quiet"))
}

/// An attempt that must fail.
fn refused<T>(what: core::fmt::Arguments<'_>, result: Result<T, CallError>) -> Result<(), Failure> {
    match result {
        Err(error) => {
            say!("{what}: refused by the core ({error:?})");
            Ok(())
        }
        Ok(_) => Err(Failure::Text(alloc::format!("{what}: the core allowed it"))),
    }
}

/// What the host may not do to a protected VM. `entry`: a page of it that is certainly there.
fn protected(guest: &Guest, ordinary: Option<&Arc<Guest>>, entry: u64) -> Result<(), Failure> {
    let (name, id) = (guest.name.as_str(), guest.id);
    let gpa = entry & !(PAGE - 1);
    let pa = guest.ram.0 + (gpa - RAM_BASE);
    let abort = |what: &str, result: Result<(), crate::arch::entry::Abort>| match result {
        Err(abort) if abort.is_refusal() => {
            say!("host {what} of {name}'s page at {pa:#x}: refused by the core (abort)");
            Ok(())
        }
        Err(abort) => Err(Failure::Text(alloc::format!("host {what} at {pa:#x}: ESR {:#x}", abort.esr))),
        Ok(()) => Err(Failure::Text(alloc::format!("host {what} of {name}'s page at {pa:#x}: the core allowed it"))),
    };
    abort("read", try_read(pa).map(drop))?;
    abort("write", try_write(pa, 0))?;
    if let Some(other) = ordinary {
        let free = RAM_BASE + other.ram.1 * PAGE;
        refused(
            format_args!("host maps {name}'s page into {}", other.name),
            calls::map_memory(other.id, free, pa, 1, 0),
        )?;
    }
    let fresh = pages::take_top(1, PAGE).ok_or(Failure::Memory(PAGE))?;
    refused(
        format_args!("host maps a page of its own over {name}'s at {gpa:#x}"),
        calls::map_memory(id, gpa, fresh, 1, 0),
    )?;
    pages::give(fresh, 1);
    refused(format_args!("host gives {name}'s page to the core as pool"), calls::donate_pool(id, pa, 1))?;
    refused(format_args!("host reclaims the memory of {name}, which runs"), calls::reclaim_vm(id))?;
    refused(format_args!("host reads the program counter of {name}"), calls::get_register(id, 0, Register::Pc as u64))?;
    refused(
        format_args!("host writes a register of {name}"),
        raw(HostCall::SetRegister, [id, 0, Register::Pc as u64, 0, 0]),
    )?;
    shown(guest)
}

/// What the VM itself shows to the host can be read.
fn shown(guest: &Guest) -> Result<(), Failure> {
    let mapped: Vec<u64> = {
        let mut inner = guest.inner();
        let all = (0..guest.ram.1).map(|n| RAM_BASE + n * PAGE);
        all.filter(|gpa| inner.model.memory().is_mapped(*gpa)).collect()
    };
    let mut private = 0;
    for gpa in mapped {
        match raw(HostCall::PageInfo, [guest.id, gpa, 0, 0, 0]).map_err(|error| Failure::Call("PageInfo", error))? {
            [_, page_state::PRIVATE, ..] => private += 1,
            [_, page_state::SHARED, pa, _] => match try_read(pa) {
                Ok(word) => {
                    let text = word.to_le_bytes();
                    let text = core::str::from_utf8(&text).unwrap_or("not text");
                    say!("host reads the page at {pa:#x} that {} shows to it: \"{}\"", guest.name, text.escape_debug());
                }
                Err(abort) => {
                    return Err(Failure::Text(alloc::format!("a shared page is not readable: ESR {:#x}", abort.esr)));
                }
            },
            _ => {}
        }
    }
    say!("{private} pages of {} are private", guest.name);
    Ok(())
}

/// An ordinary VM's memory is the host's.
fn readable(guest: &Guest, entry: u64) -> Result<(), Failure> {
    let pa = guest.ram.0 + (entry - RAM_BASE);
    let word = try_read(pa).map_err(|abort| Failure::Text(alloc::format!("ESR {:#x}", abort.esr)))?;
    try_write(pa, word).map_err(|abort| Failure::Text(alloc::format!("ESR {:#x}", abort.esr)))?;
    say!("host reads and writes the page of {} at {pa:#x}: {word:#018x} (an ordinary VM hides nothing)", guest.name);
    // A vCPU that runs has no registers to show; it leaves when it is interrupted.
    for _ in 0..1000 {
        if let Ok(pc) = calls::get_register(guest.id, 0, Register::Pc as u64) {
            say!("host reads the program counter of {}: {pc:#x}", guest.name);
            return Ok(());
        }
        scheduler::kick_all();
        // The other CPU has to come to it: where CPUs take turns, not before this one lets go.
        cpu::relax();
    }
    Err(Failure::Text(alloc::format!("the registers of {} cannot be read", guest.name)))
}

/// A protected VM does not start with another kernel than the one that was signed.
fn changed_image(plan: &crate::guest::Plan<'_>, info: &CoreInfo) -> Result<(), Failure> {
    let Some(kernel) = plan.images.first() else { return Ok(()) };
    let mut bytes = kernel.bytes.to_vec();
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 1;
    }
    let mut changed = plan.clone();
    if let Some(first) = changed.images.first_mut() {
        first.bytes = &bytes;
    }
    match Guest::make(&changed, info, scheduler::cpus_for(plan.vcpus)) {
        Err(Failure::Call("VerifyVm", CallError::NotAuthentic)) => {
            say!("host starts {} with one bit of its kernel changed: refused by the core (NotAuthentic)", plan.name);
            Ok(())
        }
        Err(other) => Err(other),
        Ok(_) => Err(Failure::Text("a changed kernel was accepted".into())),
    }
}
