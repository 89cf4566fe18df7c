//! The oracle on target: invariants of `spec::invariants` over what stands in real memory, after a call of the host. Only in test builds
//! (feature `test-hooks`): it looks at every page of RAM.
//!
//! | finding               | invariant                                                                                  |
//! |-----------------------|--------------------------------------------------------------------------------------------|
//! | [`Broken::Identity`]  | K §6.1 2: a leaf of the host maps gfn g to pfn g       |
//! | [`Broken::PageZero`]  | K §6.1 4 (A15): page 0 is never given away                                                 |
//! | [`Broken::HostIso`]   | K §6.1 5: what the host's table maps, the host may access                                  |
//! | [`Broken::Devices`]   | K §6.1 8, adapted (A6, A13): devices reach a page if and only if the host may access it     |
//! | [`Broken::Counter`]   | the counter of a 2 MiB block is what a count gives                                         |
//! | [`Broken::VmIso`]     | K §6.1 6: what a VM's table maps is its own, at the address of its record, or lent, or a window |
//! | [`Broken::Bijection`] | K §6.4 a: every page whose record names a VM is in its table; the table's count is right    |
//!
//! What only the development machine can see (TLBs, orders of stores, lent counts, where tables stand) is not here. VMs of more than
//! [`MOST_BITS`] bits of addresses are left out: their holes would take too long.
//!
//! Part of layer 16; the lock S2Page is held all the while, so no transition is half done.
#![forbid(unsafe_code)]

use super::Memory;
use super::mem_region::{MemRegion, RegionKind, mem_region_search};
use super::page_manager::{PageState, S2Pages, get_pfn_state, host_may_access_block, set_pfn_state};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_2M, BLOCK_PAGES, Gfn, Ipa, PAGE_SIZE, Pa, Pfn, PhysRange, VmId};
use crate::npt::npt_ops::vm::{VmTable, vm_s2pt, walk_vm_s2pt};
use crate::npt::npt_ops::walk_s2pt;
use crate::npt::npt_walk::Walk;
use crate::npt::{Level, VM_SLOTS, VmKind};
use crate::spt::mmio_spt_ops::walk_spt_block;

/// Most bits of addresses of a VM that is looked at.
pub const MOST_BITS: u32 = 40;

/// What is not as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// The host's table leads elsewhere.
    Identity(Pa, Pa),
    /// Page 0 is not the host's.
    PageZero(PageState),
    /// The host's table maps a page that is not the host's to access.
    HostIso(Pa, PageState),
    /// The SMMUs' table maps what is not the host's to access, or does not map what is.
    Devices(Pa, PageState),
    /// A block's counter and its pages disagree.
    Counter(Pa),
    /// A VM's table maps what is not the VM's, or elsewhere than its record says.
    VmIso(VmId, Ipa, Pa, Option<PageState>),
    /// A VM's table has so many pages of RAM; so many records name it; so many the table counts.
    Bijection(VmId, u64, u64, u64),
}

/// Pages that name each VM.
type Named = [u64; VM_SLOTS + 1];

/// Checks all of it.
///
/// # Errors
/// The first [`Broken`].
pub fn check<M: Machine>(mem: &Memory<M>) -> Result<(), Broken> {
    let pages = mem.s2page().acquire();
    let mut named: Named = [0; VM_SLOTS + 1];
    for region in mem.regions().as_slice().iter().filter(|region| region.kind != RegionKind::Device) {
        check_host(mem, &pages, region, &mut named)?;
    }
    (1..=VM_SLOTS as u16).map(VmId::new).try_for_each(|vm| match vm_s2pt(mem.npts(), vm) {
        Some(table) if table.live && table.shape.ia_bits() <= MOST_BITS => {
            check_vm(mem, &pages, vm, &table, named.get(usize::from(vm.raw())).copied().unwrap_or(0))
        }
        _ => Ok(()),
    })
}

/// A bank of RAM: each page's record, next to what the host's table has there.
fn check_host<M: Machine>(mem: &Memory<M>, pages: &S2Pages, bank: &MemRegion, named: &mut Named) -> Result<(), Broken> {
    let (mut at, end) = (bank.range.base().raw(), bank.range.end().raw());
    let (mut mapped_to, mut foreign) = (at, false);
    let mut devices = None;
    while at < end {
        let pa = Pa::new(at);
        let state = get_pfn_state(pages, mem.regions(), Pfn::containing(pa)).unwrap_or(PageState::Core);
        if let PageState::Private { vm, .. } | PageState::Shared { vm, .. } = state
            && let Some(count) = named.get_mut(usize::from(vm.raw()))
        {
            *count += 1;
        }
        if at == 0 && !state.host_may_access() {
            return Err(Broken::PageZero(state));
        }
        if at >= mapped_to {
            mapped_to = mapped_until(mem, pa)?;
        }
        if at < mapped_to && !state.host_may_access() {
            return Err(Broken::HostIso(pa, state));
        }
        if at == bank.range.base().raw() || pa.is_aligned(BLOCK_2M) {
            devices = mem.spt().and_then(|spt| walk_spt_block(mem.machine(), spt, Ipa::new(at)));
        }
        let reached = devices.map(|block| is_set(&block, at / PAGE_SIZE % BLOCK_PAGES));
        if reached.is_some_and(|reached| reached != state.host_may_access()) {
            return Err(Broken::Devices(pa, state));
        }
        foreign = (foreign && !pa.is_aligned(BLOCK_2M)) || !state.host_may_access();
        at += PAGE_SIZE;
        let block = PhysRange::new(Pa::new(at).align_down(BLOCK_2M), BLOCK_2M).filter(|_| at % BLOCK_2M == 0);
        let block = block.and_then(|behind| PhysRange::new(Pa::new(behind.base().raw() - BLOCK_2M), BLOCK_2M));
        if let Some(block) = block.filter(|block| bank.range.contains_range(*block))
            && host_may_access_block(pages, mem.regions(), block) == foreign
        {
            return Err(Broken::Counter(block.base()));
        }
    }
    Ok(())
}

/// Where the host's leaf at `pa` ends; `pa` itself if there is none.
fn mapped_until<M: Machine>(mem: &Memory<M>, pa: Pa) -> Result<u64, Broken> {
    let Some((level, leaf)) = walk_s2pt(mem.npts(), Ipa::new(pa.raw())) else { return Ok(pa.raw()) };
    let start = pa.align_down(level.size());
    if leaf.address() != start {
        return Err(Broken::Identity(start, leaf.address()));
    }
    Ok(start.raw() + level.size())
}

/// Bit `n` of these words.
fn is_set(words: &[u64], n: u64) -> bool {
    words.get(n as usize / 64).is_some_and(|word| word >> (n % 64) & 1 == 1)
}

/// A VM's table, from end to end.
fn check_vm<M: Machine>(mem: &Memory<M>, pages: &S2Pages, vm: VmId, table: &VmTable, named: u64) -> Result<(), Broken> {
    let (mut at, mut found) = (0, 0);
    while at >> table.shape.ia_bits() == 0 {
        let ipa = Ipa::new(at);
        let level = match walk_vm_s2pt(mem.npts(), vm, ipa) {
            // Its reclaim cannot begin while S2Page is held.
            None => return Ok(()),
            Some(Walk::Hole(level)) => level,
            Some(Walk::Mapped(level, leaf)) => {
                if leaf.is_ram() {
                    found += check_leaf(mem, pages, vm, table.kind, ipa, leaf.address(), level)?;
                } else if mem_region_search(mem.regions(), leaf.address())
                    .is_some_and(|region| region.kind != RegionKind::Device)
                {
                    return Err(Broken::VmIso(vm, ipa, leaf.address(), None));
                }
                level
            }
        };
        at = (at & !(level.size() - 1)) + level.size();
    }
    let all = table.kind == VmKind::Ordinary || found == named;
    if all && found == table.mapped { Ok(()) } else { Err(Broken::Bijection(vm, found, named, table.mapped)) }
}

/// Every page of a leaf of RAM: how many they are.
fn check_leaf<M: Machine>(
    mem: &Memory<M>,
    pages: &S2Pages,
    vm: VmId,
    kind: VmKind,
    ipa: Ipa,
    pa: Pa,
    level: Level,
) -> Result<u64, Broken> {
    let count = level.size() / PAGE_SIZE;
    for n in 0..count {
        let (ipa, pa) = (Ipa::new(ipa.raw() + n * PAGE_SIZE), Pa::new(pa.raw() + n * PAGE_SIZE));
        let state = get_pfn_state(pages, mem.regions(), Pfn::containing(pa));
        let right = match state {
            Some(PageState::Private { vm: owner, gfn } | PageState::Shared { vm: owner, gfn, .. }) => {
                kind == VmKind::Protected && owner == vm && gfn == Gfn::containing(ipa)
            }
            Some(PageState::Lent(_)) => kind == VmKind::Ordinary,
            _ => false,
        };
        if !right {
            return Err(Broken::VmIso(vm, ipa, pa, state));
        }
    }
    Ok(count)
}

/// A fault for the oracle to find: a page that the host's table maps is a VM's, as its record says.
pub fn plant<M: Machine>(mem: &Memory<M>) {
    let mut pages = mem.s2page().acquire();
    let ram = mem.regions().as_slice().iter().filter(|region| region.kind != RegionKind::Device);
    let mut all = ram.flat_map(|region| {
        let first = region.range.first_pfn().raw();
        (first..first + region.range.pages()).map(Pfn::new)
    });
    let mapped = all.find(|pfn| {
        *pfn != Pfn::new(0)
            && get_pfn_state(&pages, mem.regions(), *pfn) == Some(PageState::Host)
            && walk_s2pt(mem.npts(), Ipa::new(pfn.addr().raw())).is_some()
    });
    if let Some(pfn) = mapped {
        set_pfn_state(&mut pages, mem.regions(), pfn, PageState::Private { vm: VmId::new(1), gfn: Gfn::new(0) });
    }
}
