//! What the tree names and the host must not reach: memory that firmware keeps, and the registers for external debug and trace of CPUs (CoreSight), by which
//! one CPU halts another at EL2, reads and writes its registers, or records where it goes: those are nobody's, and the host's tree has none of them.
//!
//! | a reservation (DTSpec §3.5, §5.3)                                   | with `no-map`                          | without                                            |
//! |---------------------------------------------------------------------|----------------------------------------|----------------------------------------------------|
//! | a driver's: it has `compatible`, or a `memory-region` names it      | a window: the host maps it as a device | the host's RAM, as all its RAM                     |
//! | any other, and every `/memreserve/`: firmware's                     | nobody's                               | nobody's, unless the boot loader's files lie in it |
//!
//! Firmware in plain RAM (Trusted Firmware on a Raspberry Pi) is what the core stands on: who writes it ends the core. What is carved out in hardware
//! answers the core with an abort, and what a coprocessor writes is no memory for a VM. So none of the left column is RAM with a record: never lent, never
//! given to a VM, in no window of the core, not in the SMMUs' table. Linux maps nothing of the right column's "nobody's" of its own accord.
//!
//! A device's own registers or frame buffer (`reg`) within such memory stay a window of the host. Where a CPU waits at a spin table, the page with its
//! release address is nobody's: it may still read where to go.
#![forbid(unsafe_code)]

use super::binding::{self, Section};
use super::blob::be32;
use super::bus::Path;
use super::description::{EnableMethod, MachineDescription};
use super::error::{DeviceTreeError, Reason};
use super::normalise::DeviceTree;
use super::windows;
use crate::abstract_machine::addr::PhysRange;

/// Takes what is firmware's out of the RAM and the windows of `out`, which [`describe`](super::describe) read from `tree`, and drivers' `no-map` memory out
/// of its RAM. `loaded`: what the boot loader put into memory besides the files that the tree names.
///
/// # Errors
/// [`Reason::TooMany`] of what is left, [`Reason::NoMemory`].
pub fn withhold(
    tree: &DeviceTree<'_>,
    out: &mut MachineDescription,
    loaded: &[PhysRange],
) -> Result<(), DeviceTreeError> {
    mark_drivers(tree, out);
    let MachineDescription { ram, windows, reserved, withheld, chosen, cpus, .. } = out;
    let size = |ram: &[PhysRange]| ram.iter().map(|bank| bank.size()).sum::<u64>();
    let all = size(ram);
    for one in reserved.iter().filter(|one| one.no_map || !one.drivers) {
        let modules = chosen.modules.iter().map(|module| module.range);
        let mut files = loaded.iter().copied().chain(chosen.initrd).chain(modules);
        if one.drivers {
            cut_ram(ram, one.range)?;
            windows::add(windows, one.range)?;
        } else if one.no_map || !files.any(|file| !file.is_empty() && file.overlaps(one.range)) {
            windows::add(withheld, one.range).map_err(|_| Reason::TooMany("reserved ranges"))?;
        }
    }
    for cpu in cpus.iter() {
        if let EnableMethod::SpinTable { release } = cpu.enable_method {
            let word =
                PhysRange::new(release, size_of::<u64>() as u64).ok_or(Reason::BadProperty("cpu-release-addr"))?;
            windows::add(withheld, word).map_err(|_| Reason::TooMany("reserved ranges"))?;
        }
    }
    for range in withheld.iter() {
        cut_ram(ram, *range)?;
        windows::cut(windows, *range)?;
    }
    if ram.is_empty() {
        return Err(Reason::NoMemory.into());
    }
    out.set_aside = all - size(ram);
    if out.withheld.is_empty() && !out.has_debug { Ok(()) } else { Ok(settle_registers(tree, out)?) }
}

fn cut_ram<const N: usize>(ram: &mut super::List<PhysRange, N>, range: PhysRange) -> Result<(), Reason> {
    windows::cut(ram, range).map_err(|_| Reason::TooMany("memory banks"))
}

/// Finds the reservations that a device names by `memory-region` (dt-schema `reserved-memory/memory-region.yaml`).
fn mark_drivers(tree: &DeviceTree<'_>, out: &mut MachineDescription) {
    if !out.reserved.iter().any(|one| !one.drivers && one.phandle.is_some()) {
        return;
    }
    let mut path = Path::new();
    for (node, depth) in tree.nodes() {
        path.enter(node, depth);
        let named = node.property("memory-region").filter(|_| path.node().enabled);
        for cell in named.map_or(&[][..], |named| named.value).chunks_exact(size_of::<u32>()) {
            let phandle = be32(cell, 0);
            let found = out.reserved.iter_mut().filter(|one| phandle.is_some() && one.phandle == phandle);
            found.for_each(|one| one.drivers = true);
        }
    }
}

/// What a device has for registers within memory that is withheld, wholly, stays a window; registers for debug of CPUs are in none, whatever
/// other node covers them.
fn settle_registers(tree: &DeviceTree<'_>, out: &mut MachineDescription) -> Result<(), Reason> {
    let mut path = Path::new();
    for (node, depth) in tree.nodes() {
        path.enter(node, depth);
        let this = path.node();
        if this.section == Section::Debug {
            for range in path.registers() {
                windows::cut(&mut out.windows, range)?;
            }
        }
        // A frame buffer that the boot loader left on stands below /chosen.
        let is_device = matches!(this.section, Section::Devices | Section::Chosen) && this.role.module().is_none();
        if !is_device || !this.enabled || binding::is_memory(this.device_type) {
            continue;
        }
        for range in path.registers().filter(|range| !range.is_empty()) {
            if out.withheld.iter().any(|withheld| withheld.contains_range(range)) {
                windows::add(&mut out.windows, range)?;
            }
        }
    }
    Ok(())
}
