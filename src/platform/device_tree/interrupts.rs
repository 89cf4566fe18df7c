//! Interrupt controller, where devices send interrupts to, and architected timer (Linux `arm,gic.yaml`, `arm,gic-v3.yaml`, `arm,arch_timer.yaml`).
//!
//! The first enabled controller of a known kind is the machine's; further ones are devices like any other.
#![forbid(unsafe_code)]

use fdt::node::FdtNode;

use super::binding::Role;
use super::blob::be32;
use super::bus::{Path, number};
use super::description::{Gic, MachineDescription, Timer};
use super::error::Reason;
use super::list::List;
use crate::abstract_machine::addr::{Pa, PhysRange};

/// Where an ITS has the register that devices write to, GITS_TRANSLATER (Arm IHI 0069H §12.18).
const ITS_DOORBELL: u64 = 0x1_0040;
/// Where a GICv2m frame has it, MSI_SETSPI_NS (Arm DEN 0029, Server Base System Architecture, appendix E).
const FRAME_DOORBELL: u64 = 0x40;

/// Reads a node that is a GIC, an ITS, a GICv2m frame or the timer. `cells` is the controller's `#interrupt-cells`, which the timer's
/// interrupts have too: these are private to a CPU, so no other controller can stand in between.
pub(super) fn node(node: FdtNode, path: &Path, out: &mut MachineDescription, cells: &mut u32) -> Result<(), Reason> {
    let role = path.node().role;
    out.gic_incoherent |= matches!(role, Role::GicV3 | Role::Its) && node.property("dma-noncoherent").is_some();
    match role {
        Role::Its => its(path, out),
        Role::MsiFrame => {
            let frame = path.register(0).ok_or(Reason::BadProperty("reg"))?;
            doorbell(frame, FRAME_DOORBELL, out)
        }
        Role::Timer if out.timer.is_none() => {
            out.timer = timer(node)?;
            Ok(())
        }
        Role::GicV2 | Role::GicV3 if out.gic.is_none() => {
            out.gic = Some(if role == Role::GicV2 { gic_v2(path)? } else { gic_v3(node, path)? });
            if let Some(property) = node.property("#interrupt-cells") {
                let count = be32(property.value, 0).filter(|count| matches!(count, 1..=4));
                *cells = count.ok_or(Reason::BadProperty("#interrupt-cells"))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn gic_v2(path: &Path) -> Result<Gic, Reason> {
    let frame = |index| path.register(index);
    let (Some(gicd), Some(gicc)) = (frame(0), frame(1)) else { return Err(Reason::BadProperty("reg")) };
    Ok(Gic::V2 { gicd, gicc, gich: frame(2), gicv: frame(3) })
}

/// `reg` holds GICD, the redistributor regions, then GICC, GICH and GICV.
fn gic_v3(node: FdtNode, path: &Path) -> Result<Gic, Reason> {
    let gicd = path.register(0).ok_or(Reason::BadProperty("reg"))?;
    let regions = redistributor_regions(node.property("#redistributor-regions").map(|property| property.value))?;
    let mut redistributors = List::new(PhysRange::between(Pa::new(0), Pa::new(0)));
    for index in 1..=regions {
        let region = path.register(index).ok_or(Reason::BadProperty("reg"))?;
        redistributors.push(region).map_err(|_| Reason::TooMany("redistributor regions"))?;
    }
    let stride = match node.property("redistributor-stride") {
        Some(property) => match number(property.value, 0, property.value.len() / 4) {
            Some(0) => None,
            Some(stride) if stride.is_multiple_of(0x1_0000) => Some(stride),
            _ => return Err(Reason::BadProperty("redistributor-stride")),
        },
        None => None,
    };
    let frame = |index: usize| path.register(1 + regions + index);
    let its = List::new(PhysRange::between(Pa::new(0), Pa::new(0)));
    Ok(Gic::V3 { gicd, redistributors, stride, gicc: frame(0), gich: frame(1), gicv: frame(2), its })
}

/// Number of redistributor regions that `#redistributor-regions` says; 1 without it.
pub(super) fn redistributor_regions(value: Option<&[u8]>) -> Result<usize, Reason> {
    match value.map(|value| be32(value, 0)) {
        None => Ok(1),
        Some(Some(regions @ 1..=256)) => Ok(regions as usize),
        _ => Err(Reason::BadProperty("#redistributor-regions")),
    }
}

/// An ITS is a child of its controller, so that was read before.
fn its(path: &Path, out: &mut MachineDescription) -> Result<(), Reason> {
    if let Some(Gic::V3 { its, .. }) = &mut out.gic {
        let range = path.register(0).ok_or(Reason::BadProperty("reg"))?;
        its.push(range).map_err(|_| Reason::TooMany("interrupt translation services"))?;
        doorbell(range, ITS_DOORBELL, out)?;
    }
    Ok(())
}

/// Notes the page with the register at `offset` from the start of `frame`.
fn doorbell(frame: PhysRange, offset: u64, out: &mut MachineDescription) -> Result<(), Reason> {
    let register = frame.base().checked_add(offset).and_then(|register| PhysRange::new(register, 4));
    let page = register.ok_or(Reason::BadProperty("reg"))?.page_cover();
    out.doorbells.push(page).map_err(|_| Reason::TooMany("doorbells for interrupts of devices"))
}

fn timer(node: FdtNode) -> Result<Option<Timer>, Reason> {
    let Some(property) = node.property("interrupts") else { return Ok(None) };
    let mut timer = Timer { cells: List::new(0), cells_per_interrupt: 0 };
    for at in (0..property.value.len()).step_by(4) {
        let cell = be32(property.value, at).ok_or(Reason::BadProperty("interrupts"))?;
        timer.cells.push(cell).map_err(|_| Reason::TooMany("timer interrupts"))?;
    }
    Ok(Some(timer))
}
