//! Snapshots: the protected VMs of `config` are stopped amid their work, sealed, destroyed, and go on as other VMs, at other addresses; between that,
//! whatever this host does to what it keeps is refused by name.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use corevisor_interface::calls::{CallError, VM_ORDINARY, VM_PROTECTED};
use kserv_model::vm::Ended;

use super::{Bare, Context, ensure};
use crate::calls;
use crate::guest::{Failure, Guest, at};
use crate::pages::{self, BLOCK, PAGE};
use crate::session::{self, plan};
use crate::snapshot::{Borrowed, SealedPage, Snapshot};
use crate::{demo, scheduler};

/// Exits that each VM has behind it when it is stopped.
const AMID: u64 = 400;
/// What the guest `worker` has in memory and registers (tests/guests/src/bin/worker.rs).
const SECRET: &[u8] = b"SECRET-";
/// Pool of a VM that is only tried.
const POOL: u64 = 16;

/// Two protected VMs at least.
pub fn snapshot(context: &Context<'_>) -> Result<String, Failure> {
    let mut guests = Vec::new();
    for vm in &context.wishes.vms {
        let plan = plan(vm, context.archive, false)?;
        ensure(plan.manifest.is_some(), "only a protected VM can be kept")?;
        guests.push((Guest::make(&plan, context.info, scheduler::cpus_for(vm.vcpus))?, plan.shape()));
    }
    ensure(guests.len() >= 2, "two protected VMs are wanted")?;
    let (first, _) = &guests[0];
    ensure(seal_refused(first)? == CallError::WrongState, "a VM that may run was sealed")?;
    guests.iter().for_each(|(guest, _)| scheduler::add(guest));
    let amid = |guest: &Guest| guest.is_over() || demo::exits_of(&guest.inner().model) >= AMID;
    scheduler::run(|| guests.iter().all(|(guest, _)| amid(guest)));

    let mut kept = Vec::new();
    let mut places = Vec::new();
    for (guest, shape) in &guests {
        ensure(!guest.is_over(), "a VM had ended before it could be stopped")?;
        let snapshot = Snapshot::take(guest, shape)?;
        guest.inner().console.clear();
        let account = guest.destroy()?;
        ensure(account.given == account.back, "not all pages came back")?;
        places.push(guest.ram);
        kept.push(snapshot);
    }
    kept.iter().try_for_each(shows_nothing)?;
    let refused = refusals(&kept[0], &kept[1])?;
    let count: usize = kept.iter().map(|snapshot| snapshot.pages.len()).sum();
    let vcpus: usize = kept.iter().map(|snapshot| snapshot.vcpus.len()).sum();
    go_on(context, &kept, &places)?;
    Ok(alloc::format!("{} VMs with {count} pages and {vcpus} vCPUs went on elsewhere, {refused} refusals", kept.len()))
}

/// Nothing that the host keeps says anything.
fn shows_nothing(snapshot: &Snapshot) -> Result<(), Failure> {
    let pages = snapshot.pages.iter().map(|page| &page.data);
    for bytes in pages.chain(&snapshot.vcpus).chain([&snapshot.whole]) {
        ensure(bytes.windows(SECRET.len()).all(|window| window != SECRET), "a secret is in what the host keeps")?;
    }
    let mut all: Vec<&[u8]> = snapshot.pages.iter().map(|page| &page.data[..]).collect();
    all.sort_unstable();
    all.dedup();
    // Many pages of a VM are alike, all zero at least.
    ensure(all.len() == snapshot.pages.len(), "two sealed pages are alike")
}

/// Every VM goes on, where another piece of memory is, until it powers itself off.
fn go_on(context: &Context<'_>, kept: &[Snapshot], places: &[(u64, u64)]) -> Result<(), Failure> {
    // What the VMs had is not what they get.
    let size: u64 = places.iter().map(|(_, pages)| pages).sum();
    let aside = pages::take(size, BLOCK).ok_or(Failure::Memory(size * PAGE))?;
    let guests = kept.iter().enumerate().map(|(n, snapshot)| {
        let cpus = scheduler::cpus_for(snapshot.vcpus.len());
        if n > 0 {
            return snapshot.restore(context.info, cpus);
        }
        // One step after the other, and the end too early.
        let guest = snapshot.empty_vm(context.info, cpus)?;
        guest.or_destroy(|| {
            let last = snapshot.pages.len() - 1;
            snapshot.give_vcpus(&guest)?;
            snapshot.give_pages(&guest, 0..last)?;
            ensure(snapshot.finish(&guest)? == Err(CallError::WrongState), "a VM with a page missing can run")?;
            snapshot.give_pages(&guest, last..last + 1)?;
            at("SealVm", snapshot.finish(&guest)?)
        })?;
        Ok(guest)
    });
    let guests: Vec<Arc<Guest>> = guests.collect::<Result<_, Failure>>()?;
    for (guest, (before, _)) in guests.iter().zip(places) {
        ensure(guest.ram.0 != *before, "a VM came back to where it was")?;
    }
    guests.iter().for_each(scheduler::add);
    scheduler::run(|| guests.iter().all(|guest| guest.is_over()));
    for guest in &guests {
        let ended = guest.inner().model.ended();
        let account = session::bury(guest)?;
        ensure(account.given == account.back, "not all pages came back")?;
        ensure(ended == Some(Ended::Off), "a VM that came back did not power itself off")?;
    }
    pages::give(aside, size);
    Ok(())
}

/// What SealVcpu says of a VM that is not off.
fn seal_refused(guest: &Guest) -> Result<CallError, Failure> {
    let out = Borrowed::with(&[])?;
    calls::seal_vcpu(guest.id, 0, out.pa()).err().ok_or_else(|| Failure::Text("a VM that is not off was sealed".into()))
}

/// What the core says of a page for the VM.
fn page_into(vm: &Bare, gpa: u64, data: &[u8], tag: &[u8]) -> Result<Result<(), CallError>, Failure> {
    let (data, tag) = (Borrowed::with(data)?, Borrowed::with(tag)?);
    let said = calls::unseal_page(vm.id, gpa, data.pa(), tag.pa());
    if said.is_ok() {
        // The page is the VM's now, and comes back at its end.
        core::mem::forget(data);
    }
    Ok(said)
}

fn vcpu_into(vm: &Bare, vcpu: u64, sealed: &[u8]) -> Result<Result<(), CallError>, Failure> {
    let page = Borrowed::with(sealed)?;
    Ok(calls::unseal_vcpu(vm.id, vcpu, page.pa()))
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

/// Everything that must not come in: how much was tried.
fn refusals(one: &Snapshot, other: &Snapshot) -> Result<usize, Failure> {
    const FORGED: Result<(), CallError> = Err(CallError::NotAuthentic);
    let mut count = 0;
    let mut refused = |said: Result<(), CallError>, error: Result<(), CallError>, what: &str| {
        count += 1;
        let text = || Failure::Text(alloc::format!("{what}: the core says {said:?}, not {error:?}"));
        if said == error { Ok(()) } else { Err(text()) }
    };
    let [a, b] = [&one.pages[0], &one.pages[1]];
    let sealed = other.vcpus.last().map_or(&[][..], |sealed| sealed);
    let last = other.vcpus.len() as u64 - 1;

    let mut vm = Bare::new(VM_PROTECTED, POOL)?;
    vm.vcpu(0)?;
    vm.vcpu(1)?;
    for bit in [0, 8 * 1000 + 3, 8 * PAGE as usize - 1] {
        refused(page_into(&vm, a.gpa, &flipped(&a.data, bit), &a.tag)?, FORGED, "a flipped bit in a page")?;
    }
    // Kind, place, sequence, snapshot, and both words of the tag.
    for word in 0..6 {
        refused(page_into(&vm, a.gpa, &a.data, &flipped(&a.tag, 64 * word + 5))?, FORGED, "a flipped bit in a seal")?;
    }
    refused(page_into(&vm, b.gpa, &a.data, &a.tag)?, FORGED, "a page in another one's place")?;
    refused(page_into(&vm, a.gpa, &b.data, &a.tag)?, FORGED, "another page with this one's seal")?;
    refused(vcpu_into(&vm, 1 - last, sealed)?, FORGED, "registers of another vCPU")?;
    refused(vcpu_into(&vm, last, &flipped(sealed, 8 * 300))?, FORGED, "a flipped bit in registers")?;
    refused(vcpu_into(&vm, last, &page_as_vcpu(a))?, FORGED, "a page as registers")?;

    // From here on the VM is one of the first snapshot.
    let kept = Borrowed::with(&a.data)?;
    let tag = Borrowed::with(&a.tag)?;
    at("UnsealPage", calls::unseal_page(vm.id, a.gpa, kept.pa(), tag.pa()))?;
    let foreign = &other.pages[1];
    refused(page_into(&vm, foreign.gpa, &foreign.data, &foreign.tag)?, FORGED, "a page of another snapshot")?;
    refused(vcpu_into(&vm, last, sealed)?, FORGED, "registers of another snapshot")?;
    refused(page_into(&vm, a.gpa, &a.data, &a.tag)?, Err(CallError::Occupied), "the same page twice")?;
    let whole = Borrowed::with(&one.whole)?;
    refused(calls::end_restore(vm.id, whole.pa()), Err(CallError::WrongState), "a VM with pages missing")?;
    vm.end()?;

    let mut ordinary = Bare::new(VM_ORDINARY, POOL)?;
    ordinary.vcpu(0)?;
    refused(page_into(&ordinary, a.gpa, &a.data, &a.tag)?, Err(CallError::WrongState), "a page for an ordinary VM")?;
    refused(vcpu_into(&ordinary, 0, &one.vcpus[0])?, Err(CallError::WrongState), "registers for an ordinary VM")?;
    refused(calls::end_restore(ordinary.id, whole.pa()), Err(CallError::WrongState), "the end for an ordinary VM")?;
    ordinary.end()?;
    Ok(count)
}

/// A page's seal and content where a vCPU's would be.
fn page_as_vcpu(page: &SealedPage) -> Vec<u8> {
    let mut bytes = page.tag.to_vec();
    bytes.extend_from_slice(&page.data[..PAGE as usize - page.tag.len()]);
    bytes
}
