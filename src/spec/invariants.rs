//! K §6.1 and §6.4, as far as they concern host and core, over the concrete state: the tables that stand in memory, what the
//! TLBs remember, and the page records.
//!
//! | check                  | item                                                                            |
//! |------------------------|---------------------------------------------------------------------------------|
//! | [`host_identity`]      | §6.1 2: a leaf of the host maps gfn g to pfn g                                  |
//! | [`page_0`]             | §6.1 4, adapted (A15): page 0 is never given away                               |
//! | [`host_iso`]           | §6.1 5: what the host's table maps, the host may access                         |
//! | [`core_iso`]           | §6.1 15: the core's pages are those that it took, no more, no less              |
//! | [`tables_in_pool`]     | §6.4 b: tables stand in the pool, the pool is the core's                        |
//! | [`blocks_whole`]       | §6.4 c: a block is aligned, and the host may access every page of it            |
//! | [`tlbs_agree`]         | §6.4 h: no TLB remembers what the host may not access                           |
//! | [`machine_rules`]      | §6.4 i and VRM: one CPU's sections ended with what they owed                    |
//! | [`counters_agree`]     | the counters of 2 MiB blocks are what a count would give                        |
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
use crate::memory::Memory;
use crate::memory::mem_region::{RegionKind, mem_region_search};
use crate::memory::page_manager::{PageState, block_is_host, get_pfn_state};

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
}

/// What a check found.
pub type Checked = Result<(), String>;

fn ensure(holds: bool, text: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(text()) }
}

impl<'a> View<'a> {
    /// Reads the state.
    pub fn of(mem: &'a Memory<Sim>) -> Self {
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
        Self { mem, leaves, tables, remembered, foreign }
    }

    /// Every check.
    pub fn check(&self, core_pages: &BTreeSet<Pfn>) -> Checked {
        host_identity(self)?;
        page_0(self)?;
        host_iso(self)?;
        core_iso(self, core_pages)?;
        tables_in_pool(self)?;
        blocks_whole(self)?;
        tlbs_agree(self)?;
        machine_rules(self)?;
        counters_agree(self)
    }
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
        let range = PhysRange::between(Pa::new(leaf.output), Pa::new(leaf.output + leaf.size));
        let mixed = view.foreign.range(range.first_pfn()..Pfn::containing(range.end())).next();
        ensure(mixed.is_none(), || format!("blocks_whole: {leaf:x?} holds {mixed:?}"))?;
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

/// The counters that [`block_is_host`] reads, against the records.
pub fn counters_agree(view: &View<'_>) -> Checked {
    let pages = view.mem.s2page().acquire();
    let regions = view.mem.regions();
    for region in regions.as_slice().iter().filter(|region| region.kind != RegionKind::Device) {
        let mut base = region.range.base().align_down(BLOCK_2M);
        while base < region.range.end() {
            let Some(block) = PhysRange::new(base, BLOCK_2M) else { break };
            let within = region.range.contains_range(block);
            let counted =
                within && view.foreign.range(block.first_pfn()..Pfn::containing(block.end())).next().is_none();
            ensure(!within || block_is_host(&pages, regions, block) == counted, || {
                format!("counters_agree: {block:?}")
            })?;
            base = block.end();
        }
    }
    Ok(())
}
