//! A VM's stage-2 table and pool: pages that the host gives for them, and gets back. Part of layer 16, MemManager.
//!
//! | primitive                 | transition                                                                | lock             |
//! |---------------------------|---------------------------------------------------------------------------|------------------|
//! | [`register_vm_table`]     | root: `Host` -> `Core`, adopted; the VM has an empty table                | S2Page, then Npt |
//! | [`donate_pool_page`]      | `Host` -> `Core`, adopted, on the VM's free list                          | S2Page, then Npt |
//! | [`alloc_pool_page`], [`free_pool_page`] | none: free list -> a vCPU context, and back                 | Npt              |
//! | [`free_vm_page`]          | `Core` -> `Host`, scrubbed: one page of the pool, at last the root         | S2Page, then Npt |
//! | [`pool_info`], [`vm_vttbr`], [`vm_kind`], [`vm_pages`], [`has_memory`] | none                         | Npt              |
#![forbid(unsafe_code)]

use super::{Denied, expect_host_pages, expect_live, give_to_host, run, show_to_devices, take_from_host};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{PAGE_SIZE, Pfn, VmId};
use crate::memory::Memory;
use crate::memory::page_manager::{PageState, S2Pages, set_pfn_run};
use crate::npt::npt_ops::{self, vm as vm_ops};
use crate::npt::{Shape, VmKind};

/// Fewest bits of a VM's address space.
const LEAST_IPA_BITS: u32 = 32;

/// Gives `vm` an empty stage-2 table of `ipa_bits` bits, whose root is the host's pages from `root` on: as many as [`Shape`] says, aligned to
/// their size. Its pool is empty yet.
///
/// Initiator: `Host`, each page.
///
/// # Errors
/// [`Denied::NoSuchVm`] for an id that no VM can have, [`Denied::InUse`] if the id is taken or a page is lent, [`Denied::OutOfRange`] for an address space that
/// the machine cannot translate, [`Denied::Misaligned`], [`Denied::PageZero`], [`Denied::NotDescribed`], [`Denied::NotOwner`], and
/// [`Denied::OutOfTables`] if the core cannot map the root for itself.
pub fn register_vm_table<M: Machine>(
    mem: &Memory<M>,
    vm: VmId,
    kind: VmKind,
    ipa_bits: u32,
    root: Pfn,
) -> Result<(), Denied> {
    let mut pages = mem.s2page().acquire();
    if mem.npts().vm(vm).ok_or(Denied::NoSuchVm)?.acquire().is_some() {
        return Err(Denied::InUse);
    }
    // The host's table goes as far as the machine's physical addresses do.
    if !(LEAST_IPA_BITS..=mem.npts().host().acquire().shape().ia_bits()).contains(&ipa_bits) {
        return Err(Denied::OutOfRange);
    }
    let shape = Shape::new(ipa_bits);
    if !root.addr().is_aligned(PAGE_SIZE << shape.root_order()) {
        return Err(Denied::Misaligned);
    }
    take_for_core(mem, &mut pages, root, 1 << shape.root_order())?;
    vm_ops::create_vm_s2pt(mem.npts(), vm, kind, shape, root.addr());
    Ok(())
}

/// The host's page `pfn` goes into the pool of `vm`, for its tables and contexts.
///
/// Initiator: `Host`.
///
/// # Errors
/// [`Denied::NoSuchVm`], [`Denied::Busy`] if the VM's memory is on its way back, [`Denied::PageZero`], [`Denied::NotDescribed`], [`Denied::NotOwner`],
/// [`Denied::InUse`] if the page is lent, [`Denied::OutOfTables`] if the core cannot map the page for itself.
pub fn donate_pool_page<M: Machine>(mem: &Memory<M>, vm: VmId, pfn: Pfn) -> Result<(), Denied> {
    let mut pages = mem.s2page().acquire();
    expect_live(mem, vm)?;
    take_for_core(mem, &mut pages, pfn, 1)?;
    vm_ops::give_pool_page(mem.npts(), vm, pfn);
    Ok(())
}

/// `Host` -> `Core` for all of these pages or none: out of the host's reach, then in the core's own map, zeroed.
fn take_for_core<M: Machine>(mem: &Memory<M>, pages: &mut S2Pages, pfn: Pfn, count: u64) -> Result<(), Denied> {
    expect_host_pages(mem, pages, pfn, count)?;
    take_from_host(mem, pfn, count);
    for (n, page) in run(pfn, count).enumerate() {
        if !adopt(mem, page) {
            // What the host gave it loses the content of, as it would have anyway; who owns it has not changed.
            run(pfn, n as u64).for_each(|adopted| mem.machine().release_page(adopted));
            show_to_devices(mem, pfn, count);
            return Err(Denied::OutOfTables);
        }
    }
    set_pfn_run(pages, mem.regions(), pfn, count, PageState::Core);
    Ok(())
}

/// Into the core's own map. The host's tables are a cache: before the core has no room for its own they go.
fn adopt<M: Machine>(mem: &Memory<M>, page: Pfn) -> bool {
    mem.machine().adopt_page(page) || {
        npt_ops::forget_host(mem.npts());
        mem.machine().adopt_page(page)
    }
}

/// Free pages of the VM's pool, and all.
pub fn pool_info<M: Machine>(mem: &Memory<M>, vm: VmId) -> Option<(u64, u64)> {
    vm_ops::vm_s2pt(mem.npts(), vm).map(|table| (table.pool_free, table.pool_all))
}

/// A page of zeroes out of the VM's pool, for a vCPU context: adopted, so that `pt_load`, `pt_store` and the context primitives reach it.
/// [`free_pool_page`] gives it back; until then the VM's table cannot go.
///
/// # Errors
/// [`Denied::NoSuchVm`], [`Denied::OutOfPool`].
pub fn alloc_pool_page<M: Machine>(mem: &Memory<M>, vm: VmId) -> Result<Pfn, Denied> {
    vm_ops::vm_s2pt(mem.npts(), vm).ok_or(Denied::NoSuchVm)?;
    vm_ops::take_pool_page(mem.npts(), vm).ok_or(Denied::OutOfPool)
}

/// A page that [`alloc_pool_page`] gave goes back into the VM's pool, scrubbed. The caller uses it no more.
pub fn free_pool_page<M: Machine>(mem: &Memory<M>, vm: VmId, pfn: Pfn) {
    vm_ops::return_pool_page(mem.npts(), vm, pfn);
}

/// VTTBR_EL2 and the bits of an address of a VM that still has its memory.
pub fn vm_vttbr<M: Machine>(mem: &Memory<M>, vm: VmId) -> Option<(u64, u32)> {
    let table = vm_ops::vm_s2pt(mem.npts(), vm).filter(|table| table.live)?;
    Some((table.vttbr, table.shape.ia_bits()))
}

/// Whose memory the VM runs in.
pub fn vm_kind<M: Machine>(mem: &Memory<M>, vm: VmId) -> Option<VmKind> {
    vm_ops::vm_kind(mem.npts(), vm).map(|(kind, _)| kind)
}

/// Whether the VM has all the memory that it was given: its reclaim has not begun.
pub fn has_memory<M: Machine>(mem: &Memory<M>, vm: VmId) -> bool {
    expect_live(mem, vm).is_ok()
}

/// How many pages of RAM the VM has mapped: its own, or lent to it. While they are taken back they become fewer.
pub fn vm_pages<M: Machine>(mem: &Memory<M>, vm: VmId) -> Option<u64> {
    vm_ops::vm_s2pt(mem.npts(), vm).map(|table| table.mapped)
}

/// One page of a VM without memory becomes the host's: a free page of its pool, or, when the pool is empty, the root; then the VM has no table any
/// more, and its id is free. Whether that was it.
///
/// Initiator: `Core`. No CPU remembers anything of the VM's id afterwards.
///
/// # Errors
/// [`Denied::NoSuchVm`]; [`Denied::Busy`] while memory is mapped, tables stand ([`super::reclaim::clear_vm_step`]), or contexts are in use.
pub fn free_vm_page<M: Machine>(mem: &Memory<M>, vm: VmId) -> Result<bool, Denied> {
    let mut pages = mem.s2page().acquire();
    let table = vm_ops::vm_s2pt(mem.npts(), vm).ok_or(Denied::NoSuchVm)?;
    if table.table_pages > 1 << table.shape.root_order() || table.pool_free < table.pool_all {
        return Err(Denied::Busy);
    }
    vm_ops::cut_vm_s2pt(mem.npts(), vm);
    if let Some(page) = vm_ops::retire_pool_page(mem.npts(), vm) {
        release(mem, &mut pages, page, 1);
        return Ok(false);
    }
    if let Some((root, shape)) = vm_ops::remove_vm_s2pt(mem.npts(), vm) {
        release(mem, &mut pages, root, 1 << shape.root_order());
    }
    Ok(true)
}

/// `Core` -> `Host`: scrubbed and out of the core's own map first.
fn release<M: Machine>(mem: &Memory<M>, pages: &mut S2Pages, pfn: Pfn, count: u64) {
    run(pfn, count).for_each(|page| mem.machine().release_page(page));
    give_to_host(mem, pages, pfn, count);
}
