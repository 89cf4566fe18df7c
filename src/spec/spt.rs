//! Layers 9-12: what devices reach. K §2 L9-L12.
//!
//! The table of the SMMUs says nothing that the page records do not say, so it has no state here: a function of the records is all of it.
#![forbid(unsafe_code)]

use super::{State, memory};
use crate::abstract_machine::addr::{Ipa, Pa};

/// Where a device's access to `iova` leads: to that page of RAM, if the host may access it (K: `dev_load_ref`, `dev_store_ref`). Corrected: an identity, so that the addresses of a host that knows of no SMMU
/// mean the same to its devices (A13); what a VM shows the host its devices reach too; never a page of the core's or a private one (A6).
pub fn device_access(s: &State, iova: Ipa) -> Option<Pa> {
    let pa = iova.identity();
    let in_range = iova.raw() >> s.host.ia_bits == 0;
    let is_ram = memory::mem_region_search(s, pa).is_some_and(|region| region.is_ram);
    (in_range && is_ram && memory::host_may_access(s, pa).is_ok()).then_some(pa)
}
