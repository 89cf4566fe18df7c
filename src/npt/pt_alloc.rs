//! Layer 5, PTAlloc: pages for tables.
//!
//! | primitive                                               | gives                         | lock     |
//! |---------------------------------------------------------|-------------------------------|----------|
//! | [`alloc_pgd_page`] [`alloc_pud_page`] [`alloc_pmd_page`] | a zeroed table for the next level | Npt  |
//! | [`free_table_page`]                                     | takes an unlinked table back  | Npt      |
//! | [`alloc_root`]                                          | a new, empty table            | none yet |
//! | [`root_of_vm`]                                          | the same, in pages that the host gave | none yet |
//!
//! The names are the proof's: `alloc_pgd_page` gives what a pgd entry points to, and so on. The proof cuts one pool
//! per VM and level and never frees (K §2 L5); here the host's come from the core's own pool, a VM's from the pages that the host
//! gave for it; all are counted in their table, and go back to where they came from.
//!
//! May not: touch an entry. Below: AbstractMachine. Above: PTWalk.
//! Specification: `spec::npt`. Source: SeKVM layer PTAlloc.
#![forbid(unsafe_code)]

use super::page_pool::{self, PagePool};
use super::{Npt, Phase, Shape, Source, TableOwner, VmKind, VmNpt};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Pa, Pfn, VmId};

/// The pool has no page left for a table. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfTables;

/// A new table without entries.
///
/// # Errors
/// [`OutOfTables`] if the pool has no run of pages for its root.
pub fn alloc_root<M: Machine>(machine: &M, owner: TableOwner, shape: Shape) -> Result<Npt, OutOfTables> {
    let root = machine.alloc_table(shape.root_order()).ok_or(OutOfTables)?;
    Ok(Npt { owner, shape, root, table_pages: 1 << shape.root_order(), source: Source::Machine })
}

/// A VM's table without entries, whose root is the zeroed pages from `root` on, aligned to their size. Its pool is empty yet.
pub const fn root_of_vm(vm: VmId, kind: VmKind, shape: Shape, root: Pa) -> VmNpt {
    let source = Source::Pool(PagePool::new());
    let npt = Npt { owner: TableOwner::Stage2(vm), shape, root, table_pages: 1 << shape.root_order(), source };
    VmNpt { npt, kind, phase: Phase::Live, mapped: 0 }
}

/// A level-1 table, for an entry of level 0. K: `alloc_pgd_page`.
///
/// # Errors
/// [`OutOfTables`].
pub fn alloc_pgd_page<M: Machine>(machine: &M, npt: &mut Npt) -> Result<Pa, OutOfTables> {
    alloc_table_page(machine, npt)
}

/// A level-2 table, for an entry of level 1. K: `alloc_pud_page`.
///
/// # Errors
/// [`OutOfTables`].
pub fn alloc_pud_page<M: Machine>(machine: &M, npt: &mut Npt) -> Result<Pa, OutOfTables> {
    alloc_table_page(machine, npt)
}

/// A level-3 table, for an entry of level 2. K: `alloc_pmd_page`.
///
/// # Errors
/// [`OutOfTables`].
pub fn alloc_pmd_page<M: Machine>(machine: &M, npt: &mut Npt) -> Result<Pa, OutOfTables> {
    alloc_table_page(machine, npt)
}

fn alloc_table_page<M: Machine>(machine: &M, npt: &mut Npt) -> Result<Pa, OutOfTables> {
    let page = match &mut npt.source {
        Source::Machine => machine.alloc_table(0),
        Source::Pool(pool) => page_pool::take_page(machine, pool).map(Pfn::addr),
    };
    let page = page.ok_or(OutOfTables)?;
    npt.table_pages += 1;
    Ok(page)
}

/// Takes back a table that no entry leads to and that no TLB or walk cache remembers.
pub fn free_table_page<M: Machine>(machine: &M, npt: &mut Npt, page: Pa) {
    npt.table_pages -= 1;
    match &mut npt.source {
        Source::Machine => machine.free_table(page, 0),
        Source::Pool(pool) => page_pool::return_page(machine, pool, Pfn::containing(page)),
    }
}
