//! A VM's address space, as the calls of its host change it. Part of `spec::vm`.
#![forbid(unsafe_code)]

use super::{ALL, Answer, BUILT, Leaf, Lives, Outcome, Page, run_of, until_refused};
use crate::interface::CallError;
use crate::vm::VmState;
use std::vec::Vec;

/// What the host may map at `pages` pages from `gfn` on: whether they become the VM's own.
fn may_map(s: &mut Lives, id: u64, gfn: u64, pages: u64) -> Result<bool, CallError> {
    let vm = s.vm(id, BUILT)?;
    vm.has(gfn, pages)?;
    let ends = [gfn, gfn + pages - 1];
    if vm.protected && !ends.iter().all(|page| (0x4_0000..0x400_0000).contains(page)) {
        return Err(CallError::InvalidParameter); // K §3.5: a device stays one
    }
    Ok(vm.protected)
}

/// `MapMemory`.
pub fn map_memory(s: &mut Lives, id: u64, gfn: u64, pfn: u64, pages: u64) -> Outcome {
    let protected = may_map(s, id, gfn, pages)?;
    until_refused(run_of(gfn, pfn, pages), |n| {
        if protected { give(s, id, gfn + n, pfn + n) } else { lend(s, id, gfn + n, pfn + n) }
    })
}

/// `MapRuns`: each page as `MapMemory` would map it, one call behind the other.
pub fn map_runs(s: &mut Lives, id: u64, gfn: u64, runs: &[(u64, u64)]) -> Outcome {
    let pages: Vec<u64> = runs.iter().flat_map(|(first, pages)| *first..first + pages).collect();
    let protected = may_map(s, id, gfn, pages.len() as u64)?;
    until_refused((pages.len() as u64).min(64).min(512 - gfn % 512), |n| {
        let pfn = pages[n as usize];
        if protected { give(s, id, gfn + n, pfn) } else { lend(s, id, gfn + n, pfn) }
    })
}

/// `UnmapMemory`.
pub fn unmap_memory(s: &mut Lives, id: u64, gfn: u64, pages: u64) -> Outcome {
    let vm = s.vm(id, BUILT)?;
    if vm.protected {
        return Err(CallError::WrongState);
    }
    vm.has(gfn, pages)?;
    for at in gfn..gfn + pages.min(512) {
        if let Some(Leaf::Ram(pfn)) = s.vms[&id].map.get(&at).copied() {
            s.vm(id, ALL)?.map.remove(&at);
            s.let_go(pfn);
        }
    }
    Ok(Answer::Number(pages.min(512)))
}

/// `MapIo`.
pub fn map_io(s: &mut Lives, id: u64, gfn: u64, pfn: u64, pages: u64) -> Outcome {
    let vm = s.vm(id, &[VmState::Ready])?;
    vm.has(gfn, pages)?;
    if vm.protected && (gfn..gfn + pages).any(|page| (0x4_0000..0x400_0000).contains(&page)) {
        return Err(CallError::InvalidParameter); // K §3.5: memory stays memory
    }
    if pfn < s.gicv.start || pfn + pages > s.gicv.end {
        return Err(CallError::NotOwner); // A16
    }
    until_refused(pages, |n| put(s, id, gfn + n, Leaf::Window))
}

/// `leaf` becomes what the VM has at `gfn`, where it has nothing (A4).
fn put(s: &mut Lives, vm: u64, gfn: u64, leaf: Leaf) -> Result<(), CallError> {
    let vm = s.vm(vm, ALL)?;
    vm.has(gfn, 1)?;
    if vm.map.contains_key(&gfn) {
        return Err(CallError::Occupied);
    }
    vm.map.insert(gfn, leaf);
    Ok(())
}

/// The host's page becomes the VM's own.
pub fn give(s: &mut Lives, vm: u64, gfn: u64, pfn: u64) -> Result<(), CallError> {
    s.expect_host(pfn)?;
    put(s, vm, gfn, Leaf::Ram(pfn))?;
    s.pages.insert(pfn, Page::Private(vm, gfn));
    Ok(())
}

/// The host's page is lent to the VM.
fn lend(s: &mut Lives, vm: u64, gfn: u64, pfn: u64) -> Result<(), CallError> {
    s.clone().hold(pfn)?;
    put(s, vm, gfn, Leaf::Ram(pfn))?;
    s.hold(pfn)
}
