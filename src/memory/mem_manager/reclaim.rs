//! A VM's memory on its way back to the host. Part of layer 16, MemManager.
//!
//! | primitive            | transition                                                                         | lock             |
//! |----------------------|------------------------------------------------------------------------------------|------------------|
//! | [`clear_vm_step`]    | `Private`, `Shared` -> `Host`, scrubbed; `Lent(n)` -> `Lent(n - 1)` or `Host`      | S2Page, then Npt |
//!
//! K §8.3 A7: the caller knows that no vCPU of the VM runs, and none will. Then the order is: the entries of the root go, the VM's id is flushed
//! on all CPUs, all instruction caches forget what it executed, and only after that a page is scrubbed or given away, leaf by leaf along the VM's own table: what it costs
//! depends on what the VM had, and on nothing else.
#![forbid(unsafe_code)]

use super::ordinary::less_lent;
use super::{Denied, by_runs, give_to_host};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Pfn, PhysRange, VmId};
use crate::memory::Memory;
use crate::memory::page_manager::{PageState, S2Pages, get_pfn_run, get_pfn_state};
use crate::npt::Level;
use crate::npt::npt_ops::vm as vm_ops;
use crate::npt::npt_walk::Apart;

/// Takes the next leaf of the VM's table back: a page, or a block; or the next table, which goes into its pool. Pages taken;
/// 0: there is nothing left. The VM has begun to lose its memory and gets none any more. K: `clear_vm_page`, part of `clear_vm_stage2_range`.
///
/// # Errors
/// [`Denied::NoSuchVm`].
pub fn clear_vm_step<M: Machine>(mem: &Memory<M>, vm: VmId) -> Result<u64, Denied> {
    let mut pages = mem.s2page().acquire();
    let (_, live) = vm_ops::vm_kind(mem.npts(), vm).ok_or(Denied::NoSuchVm)?;
    if live {
        vm_ops::cut_vm_s2pt(mem.npts(), vm);
        // From now on no CPU fetches anything of the VM's memory. What it fetched before goes, once for all of it: the host executes none of that where its own pages are next.
        mem.machine().forget_instructions();
    }
    match vm_ops::take_apart_vm_s2pt(mem.npts(), vm) {
        None | Some((_, Apart::Nothing)) => Ok(0),
        Some((_, Apart::Table)) => Ok(1),
        Some((_, Apart::Leaf(level, leaf))) => {
            let count = level.size() / Level::L3.size();
            take_pages(mem, &mut pages, vm, Pfn::containing(leaf.address()), count);
            Ok(count)
        }
    }
}

/// What a leaf of the VM mapped becomes the host's, page by page as the records say.
fn take_pages<M: Machine>(mem: &Memory<M>, pages: &mut S2Pages, vm: VmId, first: Pfn, count: u64) {
    let is_own = |state| match state {
        Some(PageState::Private { vm: owner, .. } | PageState::Shared { vm: owner, .. }) => owner == vm,
        _ => false,
    };
    // Nothing of it is refused.
    let _ = by_runs(first, count, |page, most| match get_pfn_run(pages, mem.regions(), page, most) {
        Some((state, own)) if is_own(Some(state)) => {
            mem.machine().clear_phys_run(PhysRange::of_pages(page, own));
            Ok(own)
        }
        // Lent, or a window, which nobody owns.
        other => {
            let others = other.map_or(1, |(_, others)| others);
            less_lent(mem, pages, page, others);
            Ok(others)
        }
    });
    // A leaf's pages have one owner: a protected VM has nothing lent, an ordinary one nothing of its own.
    if is_own(get_pfn_state(pages, mem.regions(), first)) {
        give_to_host(mem, pages, first, count);
    }
}
