//! Layer 26, MmioOps: the host touched a page of registers that it reaches through the core only.
//!
//! | primitive          | does                                                                          | lock                      |
//! |--------------------|-------------------------------------------------------------------------------|---------------------------|
//! | [`emulate_mmio`]   | serves the access that trapped, and steps over it                              | takes Mmio; S2Page, inside |
//!
//! Below: MmioOpsAux. Above: FaultHandler. Specification: `spec::mmio`. Source: SeKVM layer MmioOps; K §2 L26.
#![forbid(unsafe_code)]

use super::Mediated;
use super::mmio_ops_aux::handle_host_mmio;
use super::mmio_raw::{Registers, host_access, host_dispatch_mmio_data};
use crate::abstract_machine::Machine;
use crate::abstract_machine::regs::{INSTRUCTION_SIZE, Syndrome};
use crate::memory::Memory;

/// Serves the host's access of `syndrome`, if it is one to a page of `mediated`. `None`: it is to none. `Some(false)`: it is, but nothing that registers are for. K: `emulate_mmio`.
pub fn emulate_mmio<M: Machine>(
    mem: &Memory<M>,
    mediated: &Mediated,
    syndrome: Syndrome,
    x: &mut Registers,
) -> Option<bool> {
    let machine = mem.machine();
    let page = machine.read_hpfar_el2();
    let frame = mediated.frame(page.identity())?;
    let Some(access) = host_access(syndrome, page, machine.read_far_el2(), x) else { return Some(false) };
    let value = handle_host_mmio(mem, &mut mediated.state.acquire(), frame.kind, access, mediated.lpi_bits);
    if access.store.is_none() {
        host_dispatch_mmio_data(syndrome, x, value);
    }
    machine.set_host_pc(machine.host_pc().wrapping_add(INSTRUCTION_SIZE));
    Some(true)
}
