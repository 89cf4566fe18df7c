//! K §6.1 and §6.4, as far as they concern memory, over the concrete state: the tables that stand in memory, what the
//! TLBs remember, and the page records.
//!
//! | check                  | item                                                                            |
//! |------------------------|---------------------------------------------------------------------------------|
//! | [`host_identity`]      | §6.1 2: a leaf of the host maps gfn g to pfn g                                  |
//! | [`page_0`]             | §6.1 4, adapted (A15): page 0 is never given away                               |
//! | [`host_iso`]           | §6.1 5: what the host's table maps, the host may access                         |
//! | [`core_iso`]           | §6.1 15: the core's pages are those that it took, no more, no less              |
//! | [`tables_in_pool`]     | §6.4 b: tables stand in the pool, the pool is the core's                        |
//! | [`blocks_whole`]       | §6.4 c: a block is aligned                                                      |
//! | [`tlbs_agree`]         | §6.4 h: no TLB remembers what the host may not access                           |
//! | [`machine_rules`]      | §6.4 i and VRM: one CPU's sections ended with what they owed                    |
//! | [`devices`]            | §6.1 1, 8, adapted (A6, A13): devices reach what the host may access, all of it, and no SMMU remembers more |
//! | [`counters_agree`]     | the counters of 2 MiB blocks are what a count would give                        |
//! | [`vm_iso`]             | §6.1 6: what a VM's table maps, or a TLB remembers for it, is its own, lent, or a window |
//! | [`bijection`]          | §6.4 a: a VM's own page is mapped where its record says, and nowhere else       |
//! | [`vm_tables_in_pool`]  | §6.4 b: a VM's tables stand in pages that the host gave for them, the core's now |
//! | [`counts`]             | §6.4 j: a page is lent as often as it is mapped or held                         |
//! | [`on_target`]          | what the oracle of the test build finds on target, it finds here          |
//! | [`nothing_remembered`] | §6.4 g, A7: no TLB knows a VM that has lost its memory                          |
//!
//! §6.1 17 is in [`super::replay`]. The lock order (§6.4 i) is checked at every acquisition, in [`crate::locks`].
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

use crate::abstract_machine::addr::{BLOCK_2M, Pa, Pfn, PhysRange, VmId};
use crate::abstract_machine::sim::Sim;
use crate::abstract_machine::sim::walker::{AccessKind, Leaf, TableAt};
use crate::memory::mem_region::{RegionKind, mem_region_search};
use crate::memory::page_manager::{PageState, get_pfn_state, host_may_access_block};
use crate::memory::{Memory, oracle};
use crate::npt::npt_ops::vm::{VmTable, vm_s2pt};
use crate::npt::{Level, VM_SLOTS, VmKind};

/// A VM's part of the concrete state.
pub struct VmView {
    /// What the core keeps of it.
    pub table: VmTable,
    /// Leaves of its table; after the cut, those not taken apart yet.
    pub leaves: Vec<Leaf>,
    /// Tables below its root.
    pub tables: Vec<TableAt>,
    /// Pages of its root.
    pub root: BTreeSet<Pfn>,
}

/// The concrete state, read once.
pub struct View<'a> {
    mem: &'a Memory<Sim>,
    /// Leaves of the host's table.
    pub leaves: Vec<Leaf>,
    /// Tables below its root.
    pub tables: Vec<TableAt>,
    /// Leaves that some CPU remembers.
    pub remembered: Vec<Leaf>,
    /// Pages of RAM that are not in state `Host`.
    pub foreign: BTreeMap<Pfn, PageState>,
    /// VMs that have a table.
    pub vms: BTreeMap<VmId, VmView>,
}

/// What a check found.
pub type Checked = Result<(), String>;

fn ensure(holds: bool, text: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(text()) }
}

impl<'a> View<'a> {
    /// Reads the state.
    pub fn of(mem: &'a Memory<Sim>) -> Self {
        let ids = (1..=VM_SLOTS as u16).map(VmId::new);
        let vms = ids.filter_map(|vm| Some((vm, vm_view(mem, vm, vm_s2pt(mem.npts(), vm)?)))).collect();
        let (leaves, tables) = mem.machine().enumerate(VmId::HOST);
        let pages = mem.s2page().acquire();
        let ram = mem.regions().as_slice().iter().filter(|region| region.kind != RegionKind::Device);
        let pfns = ram.flat_map(|region| {
            let first = region.range.first_pfn().raw();
            (first..first + region.range.pages()).map(Pfn::new)
        });
        let states = pfns.map(|pfn| (pfn, get_pfn_state(&pages, mem.regions(), pfn).unwrap_or(PageState::Core)));
        let foreign = states.filter(|(_, state)| *state != PageState::Host).collect();
        let mut remembered = mem.machine().remembered(VmId::HOST);
        remembered.sort_by_key(|leaf| (leaf.base, leaf.size));
        remembered.dedup();
        Self { mem, leaves, tables, remembered, foreign, vms }
    }

    /// Every check. `mailboxes` says how often each page is held as one.
    pub fn check(&self, core_pages: &BTreeSet<Pfn>, mailboxes: &BTreeMap<Pfn, u8>) -> Checked {
        host_identity(self)?;
        page_0(self)?;
        host_iso(self)?;
        core_iso(self, core_pages)?;
        tables_in_pool(self)?;
        blocks_whole(self)?;
        tlbs_agree(self)?;
        machine_rules(self)?;
        devices(self)?;
        counters_agree(self)?;
        vm_iso(self)?;
        bijection(self)?;
        vm_tables_in_pool(self)?;
        counts(self, mailboxes)?;
        nothing_remembered(self)?;
        on_target(self)
    }
}

fn vm_view(mem: &Memory<Sim>, vm: VmId, table: VmTable) -> VmView {
    let machine = mem.machine();
    let (leaves, tables) = if table.live { machine.enumerate(vm) } else { machine.enumerate_parked(vm) };
    let roots = machine.regime(vm).map(|regime| regime.root_tables()).unwrap_or_default();
    let root = roots.iter().map(|at| Pfn::containing(Pa::new(at.table))).collect();
    VmView { table, leaves, tables, root }
}

/// The pages that a leaf maps, with the gfn of each.
fn pages_of(leaf: &Leaf) -> impl Iterator<Item = (u64, Pfn)> + use<> {
    (leaf.base >> 12..).zip(leaf.output >> 12..).take((leaf.size >> 12) as usize).map(|(gfn, pfn)| (gfn, Pfn::new(pfn)))
}

/// Not write-back, without HCR_EL2.FWB or with it; which of the two fits is judged by the simulated machine.
fn is_window(leaf: &Leaf) -> bool {
    !matches!(leaf.mem_attr(), 0b1111 | 0b0110)
}

/// Whether the VM may have this leaf.
fn leaf_is_vms(view: &View<'_>, vm: VmId, kind: VmKind, leaf: &Leaf) -> Checked {
    if is_window(leaf) {
        let region = mem_region_search(view.mem.regions(), Pa::new(leaf.output));
        let is_ram = region.is_some_and(|region| region.kind != RegionKind::Device);
        return ensure(!is_ram && !leaf.allows(AccessKind::Execute) && leaf.level == 3, || {
            format!("{leaf:x?} of {vm:?} is a strange window")
        });
    }
    for (at, pfn) in pages_of(leaf) {
        let fine = match (kind, view.foreign.get(&pfn)) {
            (VmKind::Ordinary, Some(PageState::Lent(_))) => true,
            (
                VmKind::Protected,
                Some(PageState::Private { vm: owner, gfn } | PageState::Shared { vm: owner, gfn, .. }),
            ) => (*owner, gfn.raw()) == (vm, at),
            _ => false,
        };
        ensure(fine, || format!("{leaf:x?} lets {vm:?} reach {pfn:?}, which is {:?}", view.foreign.get(&pfn)))?;
    }
    Ok(())
}

/// K §6.1 6, and §6.4 c for VMs.
pub fn vm_iso(view: &View<'_>) -> Checked {
    for (vm, own) in &view.vms {
        let remembered = view.mem.machine().remembered(*vm);
        for leaf in own.leaves.iter().chain(&remembered) {
            let aligned = leaf.base % leaf.size == 0 && leaf.output % leaf.size == 0 && leaf.level >= 2;
            ensure(aligned, || format!("vm_iso: {leaf:x?} of {vm:?} is not aligned (A5)"))?;
            leaf_is_vms(view, *vm, own.table.kind, leaf).map_err(|text| format!("vm_iso: {text}"))?;
        }
        let ram = own.leaves.iter().filter(|leaf| !is_window(leaf)).map(|leaf| leaf.size / Level::L3.size());
        let mapped: u64 = ram.sum();
        ensure(mapped == own.table.mapped, || {
            format!("vm_iso: {vm:?} maps {mapped} pages, {} are counted", own.table.mapped)
        })?;
    }
    Ok(())
}

/// K §6.4 a. That a page is mapped nowhere else is in [`vm_iso`].
pub fn bijection(view: &View<'_>) -> Checked {
    let mut mapped = BTreeSet::new();
    for (vm, own) in &view.vms {
        mapped.extend(own.leaves.iter().flat_map(pages_of).map(|(gfn, pfn)| (*vm, gfn, pfn)));
    }
    let owned = view.foreign.iter().filter_map(|(pfn, state)| match state {
        PageState::Private { vm, gfn } | PageState::Shared { vm, gfn, .. } => Some((*vm, gfn.raw(), *pfn)),
        _ => None,
    });
    let lost = { owned }.find(|place| !mapped.contains(place));
    ensure(lost.is_none(), || format!("bijection: {lost:x?} is in the records and not in the table"))
}

/// K §6.4 b, for VMs.
pub fn vm_tables_in_pool(view: &View<'_>) -> Checked {
    let adopted = view.mem.machine().adopted();
    let mut all = 0;
    for (vm, own) in &view.vms {
        let below = own.tables.iter().map(|at| Pfn::containing(Pa::new(at.table)));
        let in_use: Vec<Pfn> = own.root.iter().copied().chain(below).collect();
        let strange =
            in_use.iter().find(|pfn| !adopted.contains(pfn) || view.foreign.get(pfn) != Some(&PageState::Core));
        ensure(strange.is_none(), || format!("vm_tables_in_pool: {strange:?} of {vm:?}"))?;
        let table_pages = in_use.len() as u64;
        ensure(table_pages == own.table.table_pages, || {
            format!("vm_tables_in_pool: {table_pages} of {vm:?}, {} are counted", own.table.table_pages)
        })?;
        all += own.table.pool_all + own.root.len() as u64;
    }
    ensure(all == adopted.len() as u64, || {
        format!("vm_tables_in_pool: {} pages are adopted, VMs have {all}", adopted.len())
    })
}

/// K §6.4 j.
pub fn counts(view: &View<'_>, mailboxes: &BTreeMap<Pfn, u8>) -> Checked {
    let mut lent: BTreeMap<Pfn, u64> = mailboxes.iter().map(|(pfn, count)| (*pfn, u64::from(*count))).collect();
    let ordinary = view.vms.values().filter(|own| own.table.kind == VmKind::Ordinary);
    for leaf in ordinary.flat_map(|own| &own.leaves).filter(|leaf| !is_window(leaf)) {
        pages_of(leaf).for_each(|(_, pfn)| *lent.entry(pfn).or_insert(0) += 1);
    }
    let recorded = view.foreign.iter().filter_map(|(pfn, state)| match state {
        PageState::Lent(count) => Some((*pfn, u64::from(*count))),
        _ => None,
    });
    let recorded: BTreeMap<Pfn, u64> = recorded.collect();
    let differ = lent.iter().find(|(pfn, count)| recorded.get(pfn) != Some(count));
    ensure(recorded.len() == lent.len() && differ.is_none(), || format!("counts: {differ:?} by the tables"))
}

/// The oracle that runs on target is as content with a state as the checks here are.
pub fn on_target(view: &View<'_>) -> Checked {
    oracle::check(view.mem).map_err(|broken| format!("the oracle on target: {broken:x?}"))
}

/// K §6.4 g, §8.3 A7.
pub fn nothing_remembered(view: &View<'_>) -> Checked {
    for vm in (1..=VM_SLOTS as u16).map(VmId::new) {
        let live = view.vms.get(&vm).is_some_and(|own| own.table.live);
        ensure(live || !view.mem.machine().knows_vm(vm), || format!("nothing_remembered: a TLB knows {vm:?}"))?;
    }
    Ok(())
}

/// Whether the host may access everything that the leaf maps: one region, and no page in it kept from the host.
fn leaf_is_hosts(view: &View<'_>, leaf: &Leaf) -> Checked {
    let end = Pa::new(leaf.output + leaf.size);
    let range = PhysRange::between(Pa::new(leaf.output), end);
    let region = mem_region_search(view.mem.regions(), range.base());
    let Some(region) = region.filter(|region| region.range.contains_range(range)) else {
        return Err(format!("{leaf:x?} maps what no region describes"));
    };
    if region.kind == RegionKind::Device {
        let device = !leaf.allows(AccessKind::Execute) && leaf.mem_attr() != 0b1111;
        return ensure(device, || format!("{leaf:x?} maps a window executable or cacheable"));
    }
    let mut inside = view.foreign.range(range.first_pfn()..Pfn::containing(end));
    match inside.find(|(_, state)| !state.host_may_access()) {
        Some((pfn, state)) => Err(format!("{leaf:x?} lets the host reach {pfn:?}, which is {state:?}")),
        None => Ok(()),
    }
}

/// K §6.1 1 and 8, for one table of all devices: an identity of the RAM that the host may access. What TLBs remember is in it.
pub fn devices(view: &View<'_>) -> Checked {
    let Some((leaves, remembered)) = view.mem.machine().device_leaves() else { return Ok(()) };
    let bent = leaves.iter().chain(&remembered).find(|leaf| leaf.base != leaf.output || leaf.base % leaf.size != 0);
    ensure(bent.is_none(), || format!("devices: {bent:x?} is no identity"))?;
    let reached = joined(leaves.iter().map(|leaf| (leaf.base >> 12, (leaf.base + leaf.size) >> 12)));
    let covers = |leaf: &Leaf| {
        reached.iter().any(|(first, end)| *first << 12 <= leaf.base && leaf.base + leaf.size <= *end << 12)
    };
    let old = remembered.iter().find(|leaf| !covers(leaf));
    ensure(old.is_none(), || format!("devices: an SMMU remembers {old:x?}, which its table does not have"))?;
    let mut may = Vec::new();
    for bank in view.mem.regions().as_slice().iter().filter(|region| region.kind != RegionKind::Device) {
        let (mut first, end) = (bank.range.first_pfn(), Pfn::containing(bank.range.end()));
        for (pfn, _) in view.foreign.range(first..end).filter(|(_, state)| !state.host_may_access()) {
            may.push((first.raw(), pfn.raw()));
            first = Pfn::new(pfn.raw() + 1);
        }
        may.push((first.raw(), end.raw()));
    }
    let may = joined(may.into_iter());
    let differ = reached.iter().zip(&may).find(|(reached, may)| reached != may);
    ensure(differ.is_none() && reached.len() == may.len(), || {
        format!(
            "devices: pages that they reach, and that the host may access: {differ:x?}, {} and {} runs",
            reached.len(),
            may.len()
        )
    })
}

/// Ascending runs of pages (first, end), those that touch as one, without empty ones.
fn joined(runs: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (first, end) in runs.filter(|(first, end)| first < end) {
        match all.last_mut() {
            Some(last) if last.1 == first => last.1 = end,
            _ => all.push((first, end)),
        }
    }
    all
}

/// K §6.1 2.
pub fn host_identity(view: &View<'_>) -> Checked {
    let bent = view.leaves.iter().chain(&view.remembered).find(|leaf| leaf.base != leaf.output);
    ensure(bent.is_none(), || format!("host_identity: {bent:x?}"))
}

/// K §6.1 4, adapted: page 0 means nothing special in a table here, but it is never anyone's but the host's (A15).
pub fn page_0(view: &View<'_>) -> Checked {
    let state = view.foreign.get(&Pfn::new(0));
    ensure(state.is_none(), || format!("page_0: page 0 is {state:?}"))
}

/// K §6.1 5: the central one.
pub fn host_iso(view: &View<'_>) -> Checked {
    view.leaves.iter().try_for_each(|leaf| leaf_is_hosts(view, leaf)).map_err(|text| format!("host_iso: {text}"))
}

/// K §6.1 15, for a core that may take and return pages: the records say what was taken.
pub fn core_iso(view: &View<'_>, expected: &BTreeSet<Pfn>) -> Checked {
    let core: BTreeSet<Pfn> =
        view.foreign.iter().filter(|(_, s)| **s == PageState::Core).map(|(pfn, _)| *pfn).collect();
    let differ = core.symmetric_difference(expected).next();
    ensure(differ.is_none(), || format!("core_iso: {differ:?} is the core's in the records or by right, not both"))
}

/// K §6.4 b.
pub fn tables_in_pool(view: &View<'_>) -> Checked {
    let pool = view.mem.machine().pool();
    let regime = view.mem.machine().regime(VmId::HOST).ok_or("no table")?;
    let below = view.tables.iter().map(|at| at.table);
    for table in regime.root_tables().iter().map(|at| at.table).chain(below) {
        ensure(pool.contains(Pa::new(table)), || format!("tables_in_pool: {table:#x}"))?;
    }
    let mut pfns = (0..pool.pages()).map(|n| Pfn::new(pool.first_pfn().raw() + n));
    let open = pfns.find(|pfn| view.foreign.get(pfn) != Some(&PageState::Core));
    ensure(open.is_none(), || format!("tables_in_pool: {open:?} of the pool is not the core's"))
}

/// K §6.4 c.
pub fn blocks_whole(view: &View<'_>) -> Checked {
    for leaf in view.leaves.iter().filter(|leaf| leaf.level < 3) {
        let aligned = leaf.base % leaf.size == 0 && leaf.raw & 0x0000_ffff_ffff_f000 == leaf.output;
        ensure(aligned, || format!("blocks_whole: {leaf:x?} is not aligned (A5)"))?;
    }
    Ok(())
}

/// K §6.4 h.
pub fn tlbs_agree(view: &View<'_>) -> Checked {
    view.remembered.iter().try_for_each(|leaf| leaf_is_hosts(view, leaf)).map_err(|text| format!("tlbs_agree: {text}"))
}

/// K §6.4 i, VRM's sequential TLB invalidation: what the simulated machine saw go wrong.
pub fn machine_rules(view: &View<'_>) -> Checked {
    let violations = view.mem.machine().violations_at_rest();
    ensure(violations.is_empty(), || format!("machine_rules: {violations:?}"))
}

/// The counters that [`host_may_access_block`] reads, against the records.
pub fn counters_agree(view: &View<'_>) -> Checked {
    let pages = view.mem.s2page().acquire();
    let regions = view.mem.regions();
    for region in regions.as_slice().iter().filter(|region| region.kind != RegionKind::Device) {
        let mut base = region.range.base().align_down(BLOCK_2M);
        while base < region.range.end() {
            let Some(block) = PhysRange::new(base, BLOCK_2M) else { break };
            let within = region.range.contains_range(block);
            let mut inside = view.foreign.range(block.first_pfn()..Pfn::containing(block.end()));
            let counted = within && inside.all(|(_, state)| state.host_may_access());
            ensure(!within || host_may_access_block(&pages, regions, block) == counted, || {
                format!("counters_agree: {block:?}")
            })?;
            base = block.end();
        }
    }
    Ok(())
}
