//! Layer 25, MmioOpsAux: whose register an access is for.
//!
//! | primitive               | does                                                                       | lock |
//! |-------------------------|----------------------------------------------------------------------------|------|
//! | [`handle_host_mmio`]    | passes the access on to its kind of frame: what a load gives                | Mmio |
//!
//! Below: MmioCore. Above: MmioOps. Specification: `spec::mmio`. Source: SeKVM layer MmioOpsAux; K §2 L25.
#![forbid(unsafe_code)]

use super::gic_its::handle_gits_access;
use super::gic_redistributor::handle_gicr_access;
use super::mmio_raw::Access;
use super::{FrameKind, GicState};
use crate::abstract_machine::Machine;
use crate::memory::Memory;

/// Serves `access` to a page of `kind`: what a load gives. K: `handle_host_mmio`.
pub fn handle_host_mmio<M: Machine>(
    mem: &Memory<M>,
    state: &mut GicState,
    kind: FrameKind,
    access: Access,
    lpi_bits: u32,
) -> u64 {
    match kind {
        FrameKind::Redistributor => handle_gicr_access(mem, access, lpi_bits),
        FrameKind::VirtualLpis => 0,
        FrameKind::Its(n) => match state.its.get_mut(n) {
            Some(Some(its)) => handle_gits_access(mem, its, access),
            _ => 0,
        },
    }
}
