//! The tables of VMs under their locks, with the TLBs kept in step. Part of layer 8, NPTOps.
//!
//! | primitive                                          | does                                                     | lock      |
//! |----------------------------------------------------|----------------------------------------------------------|-----------|
//! | [`create_vm_s2pt`], [`remove_vm_s2pt`]             | a table in a VM's place, and its end                     | takes Npt |
//! | [`give_pool_page`], [`take_pool_page`], [`return_pool_page`], [`retire_pool_page`] | pages of the VM's pool   | takes Npt |
//! | [`walk_vm_s2pt`]                                   | the leaf at an address, or the hole                      | takes Npt |
//! | [`prepare_vm_s2pt`], [`fill_vm_s2pt`]              | puts leaves where nothing is, in two steps               | takes Npt |
//! | [`clear_vm_s2pt`], [`clear_run_vm_s2pt`]           | takes one leaf away, or some pages, and no TLB holds it any more | takes Npt |
//! | [`split_vm_s2pt`]                                  | a block becomes pages                                    | takes Npt |
//! | [`cut_vm_s2pt`], [`take_apart_vm_s2pt`]            | the VM reaches nothing any more; then leaf by leaf        | takes Npt |
//!
//! Who calls [`prepare_vm_s2pt`] and then [`fill_vm_s2pt`] holds S2Page all the while, so nobody puts anything there in between.
#![forbid(unsafe_code)]

use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Gfn, Ia, Ipa, Pa, Pfn, VmId};
use crate::npt::descriptor::Desc;
use crate::npt::npt_walk::{self, Apart, SetNptError, Walk};
use crate::npt::pt_alloc::{self, OutOfTables};
use crate::npt::{Level, Npts, Phase, Shape, Source, VmKind, VmNpt, page_pool};

/// What the rest of the core may know of a VM's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmTable {
    /// Whose memory the VM runs in.
    pub kind: VmKind,
    /// Form of the table.
    pub shape: Shape,
    /// The value for VTTBR_EL2.
    pub vttbr: u64,
    /// Whether the reclaim of its memory has not begun.
    pub live: bool,
    /// Pages of RAM that it maps.
    pub mapped: u64,
    /// Pages that the table takes, root included.
    pub table_pages: u64,
    /// Free pages of the pool.
    pub pool_free: u64,
    /// All pages of the pool.
    pub pool_all: u64,
}

fn with_vm<M: Machine, R>(npts: &Npts<M>, vm: VmId, act: impl FnOnce(&M, &mut VmNpt) -> R) -> Option<R> {
    let mut place = npts.vm(vm)?.acquire();
    place.as_mut().map(|table| act(npts.machine(), table))
}

fn pool(table: &mut VmNpt) -> Option<&mut page_pool::PagePool> {
    match &mut table.npt.source {
        Source::Pool(pool) => Some(pool),
        Source::Machine => None,
    }
}

/// The VM's table, if it has one.
pub fn vm_s2pt<M: Machine>(npts: &Npts<M>, vm: VmId) -> Option<VmTable> {
    with_vm(npts, vm, |_, table| {
        let (pool_free, pool_all) = pool(table).map_or((0, 0), |pool| (pool.free(), pool.all()));
        VmTable {
            kind: table.kind,
            shape: table.npt.shape(),
            vttbr: table.npt.vttbr(),
            live: table.is_live(),
            mapped: table.mapped,
            table_pages: table.npt.table_pages() as u64,
            pool_free,
            pool_all,
        }
    })
}

/// Whose memory the VM runs in, and whether its reclaim has not begun; `None` without a table.
pub fn vm_kind<M: Machine>(npts: &Npts<M>, vm: VmId) -> Option<(VmKind, bool)> {
    with_vm(npts, vm, |_, table| (table.kind, table.is_live()))
}

/// Puts an empty table into the VM's place, over what is there. The root is zeroed pages that the machine adopted. Nothing happens if
/// there is no such place.
pub fn create_vm_s2pt<M: Machine>(npts: &Npts<M>, vm: VmId, kind: VmKind, shape: Shape, root: Pa) {
    if let Some(place) = npts.vm(vm) {
        *place.acquire() = Some(pt_alloc::root_of_vm(vm, kind, shape, root));
        npts.machine().publish_tables();
    }
}

/// The VM's place is empty again. Where its root is, for the caller to give back.
pub fn remove_vm_s2pt<M: Machine>(npts: &Npts<M>, vm: VmId) -> Option<(Pfn, Shape)> {
    let table = npts.vm(vm)?.acquire().take()?;
    Some((Pfn::containing(table.npt.root()), table.npt.shape()))
}

/// One more page, adopted and zeroed, for the VM's pool.
pub fn give_pool_page<M: Machine>(npts: &Npts<M>, vm: VmId, page: Pfn) {
    with_vm(npts, vm, |machine, table| {
        if let Some(pool) = pool(table) {
            page_pool::give_page(machine, pool, page);
        }
    });
}

/// A page of zeroes out of the VM's pool.
pub fn take_pool_page<M: Machine>(npts: &Npts<M>, vm: VmId) -> Option<Pfn> {
    with_vm(npts, vm, |machine, table| page_pool::take_page(machine, pool(table)?)).flatten()
}

/// A page that was taken comes back into the VM's pool.
pub fn return_pool_page<M: Machine>(npts: &Npts<M>, vm: VmId, page: Pfn) {
    with_vm(npts, vm, |machine, table| {
        if let Some(pool) = pool(table) {
            page_pool::return_page(machine, pool, page);
        }
    });
}

/// A free page leaves the VM's pool for good.
pub fn retire_pool_page<M: Machine>(npts: &Npts<M>, vm: VmId) -> Option<Pfn> {
    with_vm(npts, vm, |machine, table| page_pool::retire_page(machine, pool(table)?)).flatten()
}

/// What the VM's table says of `ipa`; `None` without a table, or if its reclaim has begun.
pub fn walk_vm_s2pt<M: Machine>(npts: &Npts<M>, vm: VmId, ipa: Ipa) -> Option<Walk> {
    with_vm(npts, vm, |machine, table| table.is_live().then(|| npt_walk::walk_npt(machine, &mut table.npt, ipa.into())))
        .flatten()
}

/// Where leaves can be put: what [`prepare_vm_s2pt`] found, which stays true for as long as its caller holds S2Page.
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    table: Pa,
    leaves: u64,
}

impl Prepared {
    /// How many leaves.
    pub const fn leaves(self) -> u64 {
        self.leaves
    }
}

/// Makes sure that [`fill_vm_s2pt`] can put a leaf of `level` at `ipa`; for pages also how many of `most` from there on, all in one table. A live
/// table is the caller's to check.
///
/// # Errors
/// See [`SetNptError`]; nothing is ever put over what is mapped, not even the same again (K §8.3 A4). Empty tables may have been added.
pub fn prepare_vm_s2pt<M: Machine>(
    npts: &Npts<M>,
    vm: VmId,
    ipa: Ipa,
    level: Level,
    most: u64,
) -> Result<Prepared, SetNptError> {
    with_vm(npts, vm, |machine, table| {
        let prepared = npt_walk::prepare_npt(machine, &mut table.npt, ipa.into(), level);
        // Also after an error: tables may have been added on the way.
        machine.publish_tables();
        let table = prepared?;
        let most = if level == Level::L3 { most } else { 1 };
        Ok(Prepared { table, leaves: npt_walk::free_slots(machine, table, ipa.into(), level, most) })
    })
    .unwrap_or(Err(SetNptError::OutOfRange))
}

/// Puts `count` leaves of `level` at `ipa` and behind it, where [`prepare_vm_s2pt`] made sure that they can be, all of RAM or none: of each of `runs` as many as it says. The first is
/// its leaf; the others' memory is behind that.
pub fn fill_vm_s2pt<M: Machine>(
    npts: &Npts<M>,
    vm: VmId,
    ipa: Ipa,
    level: Level,
    (prepared, count): (Prepared, u64),
    runs: impl Iterator<Item = (Desc, u64)> + Clone,
) {
    with_vm(npts, vm, |machine, vm| {
        let pages = runs.clone().next().map_or(0, |(leaf, _)| ram_pages(level, leaf));
        if npt_walk::set_free(machine, prepared.table, ipa.into(), level, count, runs) {
            vm.mapped += count * pages;
        }
        machine.publish_tables();
    });
}

fn ram_pages(level: Level, leaf: Desc) -> u64 {
    if leaf.is_ram() { level.size() / Level::L3.size() } else { 0 }
}

/// Takes the leaf that maps `ipa` away; afterwards no CPU holds a translation to it.
pub fn clear_vm_s2pt<M: Machine>(npts: &Npts<M>, vm: VmId, ipa: Ipa) {
    with_vm(npts, vm, |machine, table| {
        if let Some((level, leaf)) = npt_walk::clear_npt(machine, &mut table.npt, ipa.into()) {
            table.mapped -= ram_pages(level, leaf);
            machine.tlb_flush_ipa(vm, table.npt.stage2(), ipa);
        }
    });
}

/// Takes the pages of RAM at `ipa` and behind it away, as many as `taken` has places and one table has behind one another; afterwards no CPU holds a translation to them. Where
/// they are: none if `ipa` is mapped otherwise, or not at all.
pub fn clear_run_vm_s2pt<'t, M: Machine>(npts: &Npts<M>, vm: VmId, ipa: Ipa, taken: &'t mut [Pfn]) -> &'t [Pfn] {
    let most = taken.len() as u64;
    let count = with_vm(npts, vm, |machine, table| {
        let mut places = taken.iter_mut();
        let go =
            |leaf: Desc| leaf.is_ram() && places.next().map(|place| *place = Pfn::containing(leaf.address())).is_some();
        let (found, pages) = npt_walk::clear_pages(machine, &mut table.npt, ipa.into(), most, go);
        let Walk::Mapped(..) = found else { return 0 };
        table.mapped -= pages;
        machine.tlb_flush_run(vm, table.npt.stage2(), ipa, pages);
        pages as usize
    });
    count.and_then(|count| taken.get(..count)).unwrap_or_default()
}

/// The block that maps `ipa` becomes leaves of the next smaller level. A vCPU that uses it meanwhile may take a fault on it.
///
/// # Errors
/// [`OutOfTables`] if the VM's pool is empty. Nothing has changed then.
pub fn split_vm_s2pt<M: Machine>(npts: &Npts<M>, vm: VmId, ipa: Ipa) -> Result<(), OutOfTables> {
    with_vm(npts, vm, |machine, table| {
        if let Some(split) = npt_walk::split_npt(machine, &mut table.npt, ipa.into())? {
            machine.tlb_flush_ipa(vm, table.npt.stage2(), ipa);
            npt_walk::finish_split(machine, split);
            machine.publish_tables();
        }
        Ok(())
    })
    .unwrap_or(Ok(()))
}

/// From now on the VM reaches nothing, and no CPU remembers anything of it: the entries of the root are gone, then all TLBs are
/// flushed, before anything that stood below is touched (K §8.3 A7). Nothing happens the second time.
pub fn cut_vm_s2pt<M: Machine>(npts: &Npts<M>, vm: VmId) {
    with_vm(npts, vm, |machine, table| {
        if table.is_live() {
            npt_walk::park_all(machine, &mut table.npt);
            machine.tlb_flush_vm(vm, table.npt.stage2());
            table.phase = Phase::Cut(Gfn::new(0));
        }
    });
}

/// The next leaf, or empty table, out of what [`cut_vm_s2pt`] cut off; tables go back to the pool. The leaf with its first gfn.
pub fn take_apart_vm_s2pt<M: Machine>(npts: &Npts<M>, vm: VmId) -> Option<(Gfn, Apart)> {
    with_vm(npts, vm, |machine, table| {
        let Phase::Cut(from) = table.phase else { return None };
        let (at, apart) = npt_walk::take_apart(machine, &mut table.npt, Ia::from(from.addr()));
        let gfn = Gfn::containing(Ipa::new(at.raw()));
        table.phase = Phase::Cut(gfn);
        if let Apart::Leaf(level, leaf) = apart {
            table.mapped -= ram_pages(level, leaf);
        }
        Some((gfn, apart))
    })
    .flatten()
}
