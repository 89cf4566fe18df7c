//! Layers 13-17: what of the machine is a VM's. K §2 L16, L17, §4.6; docs/architecture.md, Memory.
//!
//! Which page of a pool becomes a table or a context is the core's choice and nobody's business; where a result names a page, the
//! specification says which it may be.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::vec::Vec;

use super::memory::{get_pfn_state, give_to_host, mem_region_search, set_pfn_state};
use super::{State, Vm, npt};
use crate::abstract_machine::addr::{Gfn, Pa, Pfn, VmId};
use crate::memory::mem_manager::protected::Scrub;
use crate::memory::mem_manager::{Denied, Run};
use crate::memory::page_manager::PageState;
use crate::npt::descriptor::Stage2Access;
use crate::npt::{Level, VM_SLOTS, VmKind};

/// A state and a result.
pub type After<T> = (State, Result<T, Denied>);

fn run(pfn: Pfn, count: u64) -> impl Iterator<Item = Pfn> {
    (pfn.raw()..pfn.raw() + count).map(Pfn::new)
}

/// Every page is plainly the host's: RAM, neither lent nor anybody's, not page 0 (A15).
fn all_host(s: &State, pfn: Pfn, count: u64) -> Result<(), Denied> {
    if pfn == Pfn::new(0) {
        return Err(Denied::PageZero);
    }
    run(pfn, count).try_for_each(|page| match get_pfn_state(s, page) {
        None => Err(Denied::NotDescribed),
        Some(PageState::Host) => Ok(()),
        Some(PageState::Lent(_)) => Err(Denied::InUse),
        Some(_) => Err(Denied::NotOwner),
    })
}

fn live(s: &State, vm: VmId) -> Result<&Vm, Denied> {
    let found = s.vms.get(&vm).ok_or(Denied::NoSuchVm)?;
    if found.cut { Err(Denied::Busy) } else { Ok(found) }
}

fn of_kind(s: &State, vm: VmId, kind: VmKind) -> Result<&Vm, Denied> {
    let found = live(s, vm)?;
    if found.kind == kind { Ok(found) } else { Err(Denied::WrongKind) }
}

/// `Host` -> `Core`: the host loses the pages, the core's map gains them.
fn adopt(mut s: State, pfn: Pfn, count: u64) -> After<()> {
    for page in run(pfn, count) {
        (s.host, s.free_tables) = npt::clear_pfn_host(s.host, s.free_tables, page);
    }
    let fits = |s: &State| s.room_to_adopt as u64 >= count && s.free_tables >= s.kept_from_adoption;
    if !fits(&s) {
        (s.host, s.free_tables) = npt::forget_host(s.host, s.free_tables);
    }
    // What the core zeroed before it ran out of room is zero, and the host's as before.
    if !fits(&s) {
        let zeroed = if s.free_tables >= s.kept_from_adoption { s.room_to_adopt as u64 } else { 0 };
        run(pfn, zeroed).for_each(|page| _ = s.ram.insert(page, 0));
        return (s, Err(Denied::OutOfTables));
    }
    s.room_to_adopt -= count as usize;
    for page in run(pfn, count) {
        s.ram.remove(&page);
        set_pfn_state(&mut s, page, PageState::Core);
    }
    (s, Ok(()))
}

/// `Core` -> `Host`: scrubbed.
fn release(mut s: State, pfn: Pfn, count: u64) -> State {
    s.room_to_adopt += count as usize;
    run(pfn, count).for_each(|page| _ = s.ram.insert(page, 0));
    give_to_host(s, pfn, count)
}

/// `register_vm_table`.
pub fn register_vm_table(mut s: State, vm: VmId, kind: VmKind, ipa_bits: u32, root: Pfn) -> After<()> {
    let table = npt::Table::new(ipa_bits);
    let pages = table.root_pages() as u64;
    let checked = if !(1..=VM_SLOTS).contains(&usize::from(vm.raw())) {
        Err(Denied::NoSuchVm)
    } else if s.vms.contains_key(&vm) {
        Err(Denied::InUse)
    } else if ipa_bits < 32 || ipa_bits > s.host.ia_bits {
        Err(Denied::OutOfRange)
    } else if !root.raw().is_multiple_of(pages) {
        Err(Denied::Misaligned)
    } else {
        all_host(&s, root, pages)
    };
    if let Err(reason) = checked {
        return (s, Err(reason));
    }
    let adopted;
    (s, adopted) = adopt(s, root, pages);
    if adopted.is_ok() {
        let vm_state = Vm { kind, table, root, cut: false, pool: BTreeSet::new(), free: 0, contexts: BTreeSet::new() };
        s.vms.insert(vm, vm_state);
    }
    (s, adopted)
}

/// `donate_pool_page`.
pub fn donate_pool_page(mut s: State, vm: VmId, pfn: Pfn) -> After<()> {
    if let Err(reason) = live(&s, vm).map(|_| ()).and_then(|()| all_host(&s, pfn, 1)) {
        return (s, Err(reason));
    }
    let adopted;
    (s, adopted) = adopt(s, pfn, 1);
    if let (Ok(()), Some(found)) = (adopted, s.vms.get_mut(&vm)) {
        found.pool.insert(pfn);
        found.free += 1;
    }
    (s, adopted)
}

/// `alloc_pool_page`: any page of the pool that is not a context; the core chose `chosen`.
pub fn alloc_pool_page(mut s: State, vm: VmId, chosen: Option<Pfn>) -> After<Pfn> {
    let Some(found) = s.vms.get_mut(&vm) else { return (s, Err(Denied::NoSuchVm)) };
    if found.free == 0 {
        return (s, Err(Denied::OutOfPool));
    }
    let fits = |page: &Pfn| found.pool.contains(page) && !found.contexts.contains(page);
    let Some(page) = chosen.filter(fits) else { return (s, Err(Denied::NotOwner)) };
    found.free -= 1;
    found.contexts.insert(page);
    (s, Ok(page))
}

/// `free_pool_page`.
pub fn free_pool_page(mut s: State, vm: VmId, page: Pfn) -> State {
    if let Some(found) = s.vms.get_mut(&vm)
        && found.contexts.remove(&page)
    {
        found.free += 1;
    }
    s
}

/// The tables for a leaf at `gfn` of the VM.
fn prepare(mut s: State, vm: VmId, gfn: Gfn, level: Level) -> After<()> {
    let Some(found) = s.vms.get_mut(&vm) else { return (s, Err(Denied::NoSuchVm)) };
    let (table, free, result) = npt::prepare(found.table.clone(), found.free, gfn, level);
    (found.table, found.free) = (table, free);
    (s, result.map_err(Denied::from))
}

fn fill(s: &mut State, vm: VmId, gfn: Gfn, leaf: npt::Leaf) {
    if let Some(found) = s.vms.get_mut(&vm) {
        found.table.leaves.insert(gfn, leaf);
    }
}

/// `assign_pfn_to_vm`, `assign_block_to_vm`: K's, corrected: nothing is mapped twice (A4), blocks are aligned (A5), fresh pages are zero (A18).
pub fn assign(mut s: State, vm: VmId, gfn: Gfn, pfn: Pfn, level: Level, scrub: Scrub) -> After<()> {
    let count = npt::pages_of(level as u32);
    let checked = match of_kind(&s, vm, VmKind::Protected) {
        Err(reason) => Err(reason),
        Ok(_) if !pfn.raw().is_multiple_of(count) => Err(Denied::Misaligned),
        Ok(_) => all_host(&s, pfn, count),
    };
    if let Err(reason) = checked {
        return (s, Err(reason));
    }
    let prepared;
    (s, prepared) = prepare(s, vm, gfn, level);
    if prepared.is_err() {
        return (s, prepared);
    }
    (s.host, s.free_tables) = match level {
        Level::L3 => npt::clear_pfn_host(s.host, s.free_tables, pfn),
        _ => npt::clear_block_host(s.host, s.free_tables, pfn),
    };
    for (n, page) in run(pfn, count).enumerate() {
        if scrub == Scrub::Zero {
            s.ram.insert(page, 0);
        }
        set_pfn_state(&mut s, page, PageState::Private { vm, gfn: Gfn::new(gfn.raw() + n as u64) });
    }
    fill(&mut s, vm, gfn, npt::Leaf { pfn, level, access: Stage2Access::Ram });
    (s, Ok(()))
}

/// What stands at `gfn` of a VM that has its memory.
pub fn walk_vm(s: &State, vm: VmId, gfn: Gfn) -> Option<(Pfn, PageState)> {
    let (pfn, access) = live(s, vm).ok()?.table.translate(gfn)?;
    (access != Stage2Access::Window).then_some((pfn, get_pfn_state(s, pfn)?))
}

/// Its own page at `gfn`, and how often the VM shows it.
fn own_page(s: &State, vm: VmId, gfn: Gfn) -> Result<(Pfn, u8), Denied> {
    of_kind(s, vm, VmKind::Protected)?;
    match walk_vm(s, vm, gfn) {
        Some((pfn, PageState::Private { .. })) => Ok((pfn, 0)),
        Some((pfn, PageState::Shared { count, .. })) => Ok((pfn, count)),
        _ => Err(Denied::NotOwner),
    }
}

/// K: `grant_vm_page`.
pub fn grant_vm_page(mut s: State, vm: VmId, gfn: Gfn) -> After<()> {
    match own_page(&s, vm, gfn) {
        Err(reason) => (s, Err(reason)),
        Ok((_, 255)) => (s, Err(Denied::InUse)),
        Ok((pfn, count)) => {
            set_pfn_state(&mut s, pfn, PageState::Shared { vm, gfn, count: count + 1 });
            (s, Ok(()))
        }
    }
}

/// K: `revoke_vm_page`.
pub fn revoke_vm_page(mut s: State, vm: VmId, gfn: Gfn) -> After<()> {
    match own_page(&s, vm, gfn) {
        Err(reason) => (s, Err(reason)),
        Ok((_, 0)) => (s, Err(Denied::NotOwner)),
        Ok((pfn, 1)) => {
            (s.host, s.free_tables) = npt::clear_pfn_host(s.host, s.free_tables, pfn);
            set_pfn_state(&mut s, pfn, PageState::Private { vm, gfn });
            (s, Ok(()))
        }
        Ok((pfn, count)) => {
            set_pfn_state(&mut s, pfn, PageState::Shared { vm, gfn, count: count - 1 });
            (s, Ok(()))
        }
    }
}

fn may_lend(s: &State, pfn: Pfn) -> Result<(), Denied> {
    match get_pfn_state(s, pfn) {
        _ if pfn == Pfn::new(0) => Err(Denied::PageZero),
        None => Err(Denied::NotDescribed),
        Some(PageState::Host) => Ok(()),
        Some(PageState::Lent(255)) => Err(Denied::InUse),
        Some(PageState::Lent(_)) => Ok(()),
        Some(_) => Err(Denied::NotOwner),
    }
}

/// Lent once more, or once less.
fn lend_by(s: &mut State, pfn: Pfn, by: i16) {
    let before = if let Some(PageState::Lent(count)) = get_pfn_state(s, pfn) { i16::from(count) } else { 0 };
    let state = if before + by == 0 { PageState::Host } else { PageState::Lent((before + by) as u8) };
    set_pfn_state(s, pfn, state);
}

/// `hold_mailbox`.
pub fn hold_mailbox(mut s: State, pfn: Pfn) -> After<()> {
    let checked = may_lend(&s, pfn);
    if checked.is_ok() {
        lend_by(&mut s, pfn, 1);
        *s.mailboxes.entry(pfn).or_insert(0) += 1;
    }
    (s, checked)
}

/// `drop_mailbox`, by one who holds it.
pub fn drop_mailbox(mut s: State, pfn: Pfn) -> After<()> {
    let checked = match get_pfn_state(&s, pfn) {
        None => Err(Denied::NotDescribed),
        Some(PageState::Lent(_)) => Ok(()),
        Some(_) => Err(Denied::NotOwner),
    };
    if checked.is_ok() {
        lend_by(&mut s, pfn, -1);
        let held = s.mailboxes.get(&pfn).copied().unwrap_or(0);
        if held > 1 {
            s.mailboxes.insert(pfn, held - 1)
        } else {
            s.mailboxes.remove(&pfn)
        };
    }
    (s, checked)
}

/// `lend_page_to_vm`, `lend_block_to_vm`.
pub fn lend(mut s: State, vm: VmId, gfn: Gfn, pfn: Pfn, level: Level, access: Stage2Access) -> After<()> {
    let count = npt::pages_of(level as u32);
    let checked = match of_kind(&s, vm, VmKind::Ordinary) {
        Err(reason) => Err(reason),
        Ok(_) if !pfn.raw().is_multiple_of(count) => Err(Denied::Misaligned),
        Ok(_) => run(pfn, count).try_for_each(|page| may_lend(&s, page)),
    };
    if let Err(reason) = checked {
        return (s, Err(reason));
    }
    let prepared;
    (s, prepared) = prepare(s, vm, gfn, level);
    if prepared.is_ok() {
        run(pfn, count).for_each(|page| lend_by(&mut s, page, 1));
        fill(&mut s, vm, gfn, npt::Leaf { pfn, level, access });
    }
    (s, prepared)
}

/// `act` for page 0 to `count`, until it is refused.
fn each(mut s: State, count: u64, mut act: impl FnMut(State, u64) -> After<()>) -> After<u64> {
    for n in 0..count {
        let done;
        (s, done) = act(s, n);
        match done {
            Ok(()) => {}
            Err(reason) if n == 0 => return (s, Err(reason)),
            Err(_) => return (s, Ok(n)),
        }
    }
    (s, Ok(count))
}

/// A range in one call: a block where both sides are aligned to one and it can be, else pages, up to where a block may come.
fn in_blocks(
    s: State,
    gfn: Gfn,
    pfn: Pfn,
    pages: u64,
    mut one: impl FnMut(State, Gfn, Pfn, Level) -> After<()>,
) -> After<u64> {
    let aligned = gfn.raw().is_multiple_of(512) && pfn.raw().is_multiple_of(512);
    let mut s = s;
    if aligned && pages >= 512 {
        let done;
        (s, done) = one(s, gfn, pfn, Level::L2);
        if done.is_ok() {
            return (s, Ok(512));
        }
    }
    let together = gfn.raw() % 512 == pfn.raw() % 512;
    let count = pages.min(if together { 512 - gfn.raw() % 512 } else { 512 });
    each(s, count, |s, n| one(s, Gfn::new(gfn.raw() + n), Pfn::new(pfn.raw() + n), Level::L3))
}

/// K: `prot_and_map_vm_s2pt`.
pub fn prot_and_map_vm_s2pt(s: State, vm: VmId, gfn: Gfn, pfn: Pfn, pages: u64) -> After<u64> {
    in_blocks(s, gfn, pfn, pages, |s, gfn, pfn, level| assign(s, vm, gfn, pfn, level, Scrub::Zero))
}

/// `lend_pages_to_vm`.
pub fn lend_pages_to_vm(s: State, vm: VmId, gfn: Gfn, pfn: Pfn, pages: u64, read_only: bool) -> After<u64> {
    let access = if read_only { Stage2Access::RamReadOnly } else { Stage2Access::Ram };
    in_blocks(s, gfn, pfn, pages, |s, gfn, pfn, level| lend(s, vm, gfn, pfn, level, access))
}

/// Pages that lie anywhere in one call: page by page, at most 64, up to the end of a table.
fn in_runs(s: State, gfn: Gfn, runs: &[Run], mut one: impl FnMut(State, Gfn, Pfn) -> After<()>) -> After<u64> {
    let pages: Vec<Pfn> = runs.iter().flat_map(|part| run(part.first, part.pages)).collect();
    let count = (pages.len() as u64).min(64).min(512 - gfn.raw() % 512);
    each(s, count, |s, n| one(s, Gfn::new(gfn.raw() + n), pages[n as usize]))
}

/// `assign_runs_to_vm`.
pub fn assign_runs_to_vm(s: State, vm: VmId, gfn: Gfn, runs: &[Run]) -> After<u64> {
    in_runs(s, gfn, runs, |s, gfn, pfn| assign(s, vm, gfn, pfn, Level::L3, Scrub::Zero))
}

/// `lend_runs_to_vm`.
pub fn lend_runs_to_vm(s: State, vm: VmId, gfn: Gfn, runs: &[Run], read_only: bool) -> After<u64> {
    let access = if read_only { Stage2Access::RamReadOnly } else { Stage2Access::Ram };
    in_runs(s, gfn, runs, |s, gfn, pfn| lend(s, vm, gfn, pfn, Level::L3, access))
}

/// `take_back_lent`: page by page; a block that is not wholly meant is split first.
pub fn take_back_lent(mut s: State, vm: VmId, gfn: Gfn, pages: u64) -> After<u64> {
    let end = gfn.raw() + pages.min(512);
    let mut at = gfn.raw();
    while at < end {
        if let Err(reason) = of_kind(&s, vm, VmKind::Ordinary) {
            return (s, Err(reason));
        }
        let Some(found) = s.vms.get_mut(&vm) else { return (s, Err(Denied::NoSuchVm)) };
        match found.table.walk(Gfn::new(at)) {
            Some((first, leaf)) if leaf.access != Stage2Access::Window => {
                let count = npt::pages_of(leaf.level as u32);
                if first.raw() < at || first.raw() + count > end {
                    let Some((table, free)) = npt::split(found.table.clone(), found.free, first) else {
                        let done = at - gfn.raw();
                        return (s, if done == 0 { Err(Denied::OutOfPool) } else { Ok(done) });
                    };
                    (found.table, found.free) = (table, free);
                    continue;
                }
                found.table.leaves.remove(&first);
                run(leaf.pfn, count).for_each(|page| lend_by(&mut s, page, -1));
                at += count;
            }
            _ => at += 1,
        }
    }
    (s, Ok(pages.min(512)))
}

/// K: `map_vm_io`.
pub fn map_vm_io(mut s: State, vm: VmId, gfn: Gfn, pa: Pa) -> After<()> {
    let checked = match live(&s, vm) {
        Err(reason) => Err(reason),
        Ok(_) if !pa.raw().is_multiple_of(4096) => Err(Denied::Misaligned),
        Ok(_) if mem_region_search(&s, pa).is_some_and(|region| region.is_ram) => Err(Denied::NotOwner),
        Ok(_) => Ok(()),
    };
    if let Err(reason) = checked {
        return (s, Err(reason));
    }
    let prepared;
    (s, prepared) = prepare(s, vm, gfn, Level::L3);
    if prepared.is_ok() {
        let leaf = npt::Leaf { pfn: Pfn::containing(pa), level: Level::L3, access: Stage2Access::Window };
        fill(&mut s, vm, gfn, leaf);
    }
    (s, prepared)
}

/// K: `clear_vm_stage2_range`. Corrected: nothing is given away before the VM reaches nothing (A7).
pub fn clear_vm_range(mut s: State, vm: VmId, most: u64) -> After<u64> {
    let mut done = 0;
    while done < most {
        let Some(found) = s.vms.get_mut(&vm) else { return (s, Err(Denied::NoSuchVm)) };
        found.cut = true;
        match npt::next_apart(&found.table) {
            None => break,
            Some(Err(table)) => {
                found.table.tables.remove(&table);
                found.free += 1;
                done += 1;
            }
            Some(Ok(gfn)) => {
                let Some(leaf) = found.table.leaves.remove(&gfn) else { break };
                let (protected, count) = (found.kind == VmKind::Protected, npt::pages_of(leaf.level as u32));
                if leaf.access != Stage2Access::Window {
                    if protected {
                        run(leaf.pfn, count).for_each(|page| _ = s.ram.insert(page, 0));
                        s = give_to_host(s, leaf.pfn, count);
                    } else {
                        run(leaf.pfn, count).for_each(|page| lend_by(&mut s, page, -1));
                    }
                }
                done += count;
            }
        }
    }
    if done == 0 && !s.vms.contains_key(&vm) {
        return (s, if most == 0 { Ok(0) } else { Err(Denied::NoSuchVm) });
    }
    (s, Ok(done))
}

/// `free_vm_table`; `gave` are the pages of the pool that the core gave back, in any order.
pub fn free_vm_table(mut s: State, vm: VmId, most: u64, gave: &BTreeSet<Pfn>) -> After<bool> {
    if most == 0 {
        return (s, Ok(false));
    }
    let Some(found) = s.vms.get_mut(&vm) else { return (s, Err(Denied::NoSuchVm)) };
    if !found.table.tables.is_empty() || !found.contexts.is_empty() {
        return (s, Err(Denied::Busy));
    }
    found.cut = true;
    let pages: BTreeSet<Pfn> = found.pool.intersection(gave).copied().collect();
    let (expected, root, root_pages) = (found.pool.len() as u64, found.root, found.table.root_pages() as u64);
    assert_eq!(pages.len() as u64, expected.min(most), "pages of the pool given back");
    found.pool.retain(|page| !pages.contains(page));
    found.free = found.pool.len();
    for page in pages {
        s = release(s, page, 1);
    }
    if expected >= most {
        return (s, Ok(false));
    }
    s = release(s, root, root_pages);
    s.vms.remove(&vm);
    (s, Ok(true))
}
