//! Layer 17, MemoryOps: ownership over ranges.
//!
//! | primitive             | does                                                  | lock          |
//! |-----------------------|-------------------------------------------------------|---------------|
//! | [`protect_el2_mem`]   | the core's own memory becomes the core's              | S2Page, Npt   |
//! | [`is_host_memory`]    | whether an address is RAM that the host may reach     | S2Page        |
//!
//! No lock of its own: each page is one transition of MemManager.
//!
//! Below: MemManager. Above: the VM layers and the trap layers. Specification: `spec::memory`.
//! Source: SeKVM layer MemoryOps; K §1.4 for `protect_el2_mem`.
#![forbid(unsafe_code)]

use super::Memory;
use super::mem_manager::{Denied, assign_page_to_core};
use super::page_manager::get_pfn_state;
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Ipa, Pfn, PhysRange};

/// Makes every page that `range` has a byte in the core's: image, stacks, tables, records. K: `protect_el2_mem`; A14, A20.
///
/// # Errors
/// See [`assign_page_to_core`]; the pages before the one that failed are the core's.
pub fn protect_el2_mem<M: Machine>(mem: &Memory<M>, range: PhysRange) -> Result<(), Denied> {
    let pages = range.page_cover();
    for n in 0..pages.pages() {
        let pfn = pages.first_pfn().checked_add(n).ok_or(Denied::NotDescribed)?;
        assign_page_to_core(mem, pfn)?;
    }
    Ok(())
}

/// Whether `ipa` is an address of RAM that the host may reach.
pub fn is_host_memory<M: Machine>(mem: &Memory<M>, ipa: Ipa) -> bool {
    let pages = mem.s2page().acquire();
    get_pfn_state(&pages, mem.regions(), Pfn::containing(ipa.identity())).is_some_and(|state| state.host_may_access())
}
