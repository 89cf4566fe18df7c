//! Layers 13-17: who owns each page. K §2 L13-L17; docs/architecture.md, Memory.
#![forbid(unsafe_code)]

use super::{Region, State, npt};
use crate::abstract_machine::addr::{Gfn, Ipa, Pa, Pfn, PhysRange};
use crate::memory::mem_manager::Denied;
use crate::memory::page_manager::PageState;
use crate::npt::Level;
use crate::npt::descriptor::Stage2Access;
use crate::npt::npt_walk::SetNptError;

/// K: `mem_region_search`. Corrected: an address in no region is nobody's (A14).
pub fn mem_region_search(s: &State, addr: Pa) -> Option<&Region> {
    s.regions.iter().find(|region| region.range.contains(addr))
}

/// K: `get_pfn_owner`, `get_pfn_count`, `get_pfn_map`, as one state. `None`: no RAM.
pub fn get_pfn_state(s: &State, pfn: Pfn) -> Option<PageState> {
    mem_region_search(s, pfn.addr()).filter(|region| region.is_ram)?;
    Some(s.pages.get(&pfn).copied().unwrap_or(PageState::Host))
}

pub(super) fn set_pfn_state(s: &mut State, pfn: Pfn, state: PageState) {
    if state == PageState::Host {
        s.pages.remove(&pfn);
    } else {
        s.pages.insert(pfn, state);
    }
}

/// Whether the host may access every page of the block of `level` around `pa`, RAM of one bank.
fn host_may_access_block(s: &State, pa: Pa, level: Level) -> bool {
    let first = npt::first_of(level as u32, Gfn::new(Pfn::containing(pa).raw())).identity();
    let end = Pfn::new(first.raw() + npt::pages_of(level as u32));
    mem_region_search(s, pa).is_some_and(|region| {
        region.is_ram && region.range.contains_range(PhysRange::between(first.addr(), end.addr()))
    }) && s.pages.range(first..end).all(|(_, state)| state_lets_host_access(*state))
}

/// What the host may do with the block of `level` around `pa`, if one leaf may map it.
fn candidate(s: &State, pa: Pa, level: Level) -> Option<Stage2Access> {
    let region = mem_region_search(s, pa)?;
    let first = npt::first_of(level as u32, Gfn::new(Pfn::containing(pa).raw())).identity().addr();
    let block = PhysRange::new(first, npt::pages_of(level as u32) * 4096)?;
    match region.is_ram {
        false => region.range.contains_range(block).then_some(Stage2Access::Window),
        true if level == Level::L3 => Some(Stage2Access::Ram),
        true => host_may_access_block(s, pa, level).then_some(Stage2Access::Ram),
    }
}

/// Whether the host may reach the page, and why not.
pub fn host_may_access(s: &State, pa: Pa) -> Result<(), Denied> {
    let region = mem_region_search(s, pa).ok_or(Denied::NotDescribed)?;
    if !region.is_ram {
        return Ok(());
    }
    let state = get_pfn_state(s, Pfn::containing(pa)).ok_or(Denied::NotDescribed)?;
    if state_lets_host_access(state) { Ok(()) } else { Err(Denied::NotOwner) } // A1, A22
}

/// The table of states in docs/architecture.md, Memory.
pub fn state_lets_host_access(state: PageState) -> bool {
    match state {
        PageState::Host | PageState::Lent(_) | PageState::Shared { .. } => true,
        PageState::Core | PageState::Private { .. } | PageState::Dma { .. } => false,
    }
}

/// K: `map_page_host`. Corrected: refuses before it maps (D11), refuses what is not described (A14), never a DMA page (A1),
/// an error instead of a panic (A22). When the pool is empty the host's tables are forgotten, once.
pub fn map_page_host(mut s: State, ipa: Ipa) -> (State, Result<(), Denied>) {
    let pa = ipa.identity();
    let gfn = Gfn::containing(ipa);
    if let Err(reason) = host_may_access(&s, pa) {
        return (s, Err(reason));
    }
    let bank = |s: &State, pa| mem_region_search(s, pa).map(|region| region.range);
    let here = bank(&s, pa);
    let mut result = Err(SetNptError::OutOfTables);
    for forget in [false, true] {
        if result == Err(SetNptError::OutOfTables) {
            if forget {
                (s.host, s.free_tables) = npt::forget_host(s.host, s.free_tables);
            }
            let table = core::mem::replace(&mut s.host, npt::Table::new(0));
            (s.host, s.free_tables, result) = npt::map_largest(table, s.free_tables, gfn, |gfn, level| {
                // What lies in another bank is asked for by another fault.
                let same = bank(&s, gfn.addr().identity()) == here;
                candidate(&s, gfn.addr().identity(), level).filter(|_| same)
            });
        }
    }
    let result = result.map_err(|error| match error {
        SetNptError::OutOfTables => Denied::OutOfTables,
        _ => Denied::NotDescribed,
    });
    (s, result)
}

/// `Host` -> `Core`. Page 0 is never given away (A15); what is no RAM has no owner to change (A14).
pub fn assign_page_to_core(mut s: State, pfn: Pfn) -> (State, Result<(), Denied>) {
    let result = match get_pfn_state(&s, pfn) {
        _ if pfn == Pfn::new(0) => Err(Denied::PageZero),
        None => Err(Denied::NotDescribed),
        Some(PageState::Host) => Ok(()),
        Some(PageState::Lent(_)) => Err(Denied::InUse),
        Some(_) => Err(Denied::NotOwner),
    };
    if result.is_ok() {
        (s.host, s.free_tables) = npt::clear_pfn_host(s.host, s.free_tables, pfn);
        set_pfn_state(&mut s, pfn, PageState::Core);
    }
    (s, result)
}

/// `Core` -> `Host`, scrubbed. When this makes a whole block the host's, the tables in its place go.
pub fn return_page_to_host(mut s: State, pfn: Pfn) -> (State, Result<(), Denied>) {
    let result = match get_pfn_state(&s, pfn) {
        None => Err(Denied::NotDescribed),
        Some(PageState::Core) => Ok(()),
        Some(_) => Err(Denied::NotOwner),
    };
    if result.is_ok() {
        s.ram.insert(pfn, 0);
        s = give_to_host(s, pfn, 1);
    }
    (s, result)
}

/// The pages from `pfn` on, scrubbed, are the host's. Where this lets it access a whole block, the tables in its place go.
pub(super) fn give_to_host(mut s: State, pfn: Pfn, count: u64) -> State {
    for n in 0..count {
        set_pfn_state(&mut s, Pfn::new(pfn.raw() + n), PageState::Host);
    }
    let whole = |level: &Level| host_may_access_block(&s, pfn.addr(), *level);
    if let Some(level) = [Level::L1, Level::L2].into_iter().find(whole) {
        (s.host, s.free_tables) = npt::merge_host(s.host, s.free_tables, pfn.identity(), level);
    }
    s
}

/// K: `protect_el2_mem`. Every byte of the range is the core's afterwards (A20).
pub fn protect_el2_mem(mut s: State, range: PhysRange) -> (State, Result<(), Denied>) {
    let pages = range.page_cover();
    for n in 0..pages.pages() {
        let result;
        (s, result) = assign_page_to_core(s, Pfn::new(pages.first_pfn().raw() + n));
        if result.is_err() {
            return (s, result);
        }
    }
    (s, Ok(()))
}

/// Whether the host may name this address as an entry point.
pub fn is_host_memory(s: &State, ipa: Ipa) -> bool {
    let is_ram = mem_region_search(s, ipa.identity()).is_some_and(|region| region.is_ram);
    is_ram && host_may_access(s, ipa.identity()).is_ok()
}
