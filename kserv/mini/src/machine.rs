//! What the device tree says of the machine: RAM and what of it is taken, CPUs, console, interrupt controller, initrd, PSCI, PCI.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use fdt::Fdt;
use fdt::node::{CellSizes, FdtNode};

use crate::arch::call::Conduit;
use crate::arch::gic::Gic;
use crate::arch::pci::Bridge;
use crate::arch::uart;

/// The machine.
#[derive(Debug)]
pub struct Machine {
    /// Banks of RAM.
    pub ram: Vec<Range<u64>>,
    /// What of it is not free: reservations, device tree, initrd.
    pub taken: Vec<Range<u64>>,
    /// Affinities of the CPUs.
    pub cpus: Vec<u64>,
    /// Serial port: kind and address.
    pub uart: Option<(uart::Kind, u64)>,
    /// Interrupt controller.
    pub gic: Option<Gic>,
    /// The archive.
    pub initrd: Option<Range<u64>>,
    /// How PSCI is called.
    pub conduit: Conduit,
    /// PCI host bridge.
    pub pci: Option<Bridge>,
    /// The GICv3's interrupt translation service.
    pub its: Option<u64>,
    /// The core says that it keeps devices to what this host may reach.
    pub devices_confined: bool,
}

/// A bus: where its children's addresses are in its parent's. `None`: nowhere.
type Windows = Option<Vec<(u64, u64, u64)>>;

/// What looks at each node: its path, itself, its registers.
type Visit<'f, 'b, 'a> = &'f mut dyn FnMut(&str, FdtNode<'b, 'a>, &[Range<u64>]);

struct Walk<'f, 'b, 'a> {
    buses: Vec<Windows>,
    visit: Visit<'f, 'b, 'a>,
}

fn cells(bytes: &[u8], at: &mut usize, count: usize) -> Option<u64> {
    let value = bytes.get(*at..*at + count * 4)?.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    *at += count * 4;
    Some(value)
}

/// `ranges`: child address, parent address, size. A child address of three cells (PCI) counts by its lower two.
fn windows(node: FdtNode<'_, '_>, own: CellSizes, parent: CellSizes) -> Windows {
    let bytes = node.property("ranges")?.value;
    let mut at = 0;
    let mut list = Vec::new();
    while at < bytes.len() {
        let child = cells(bytes, &mut at, own.address_cells)?;
        let above = cells(bytes, &mut at, parent.address_cells)?;
        list.push((child, above, cells(bytes, &mut at, own.size_cells)?));
    }
    if list.is_empty() {
        list.push((0, 0, u64::MAX));
    }
    Some(list)
}

impl<'b, 'a> Walk<'_, 'b, 'a> {
    fn translate(&self, mut at: u64) -> Option<u64> {
        for bus in self.buses.iter().rev() {
            let (child, above, _) = bus.as_ref()?.iter().find(|(child, _, size)| at.wrapping_sub(*child) < *size)?;
            at = at - child + above;
        }
        Some(at)
    }

    fn children(&mut self, node: FdtNode<'b, 'a>, path: &str, own: CellSizes) {
        for child in node.children() {
            let mut name = String::from(path);
            name.push('/');
            name.push_str(child.name);
            let raw: Vec<_> = child.reg().map(Iterator::collect).unwrap_or_default();
            let regs: Vec<_> = raw
                .iter()
                .filter_map(|reg: &fdt::standard_nodes::MemoryRegion| {
                    let base = self.translate(reg.starting_address as u64)?;
                    Some(base..base.checked_add(reg.size.unwrap_or(0) as u64)?)
                })
                .collect();
            (self.visit)(&name, child, &regs);
            let below = child.cell_sizes();
            self.buses.push(windows(child, below, own));
            self.children(child, &name, below);
            self.buses.pop();
        }
    }
}

/// The host bridge of a node that is on no other bus than the root's, with addresses of two cells: its configuration space, its 32-bit memory space.
fn bridge(node: FdtNode<'_, '_>, regs: &[Range<u64>]) -> Option<Bridge> {
    /// IEEE 1275, PCI bus binding §2.2.1.1: the kind of space in an address's first cell, and that of 32-bit memory.
    const SPACE: (u64, u64) = (3 << 24, 2 << 24);
    let bytes = node.property("ranges")?.value;
    let mut at = 0;
    while at < bytes.len() {
        let kind = cells(bytes, &mut at, 1)?;
        let (bus, start, size) = (cells(bytes, &mut at, 2)?, cells(bytes, &mut at, 2)?, cells(bytes, &mut at, 2)?);
        if kind & SPACE.0 == SPACE.1 {
            let window = start..start.checked_add(size)?;
            return Some(Bridge { config: regs.first()?.clone(), window, bus_start: bus.try_into().ok()? });
        }
    }
    None
}

fn text<'a>(node: FdtNode<'_, 'a>, name: &str) -> Option<&'a str> {
    node.property(name)?.as_str()
}

fn number(node: FdtNode<'_, '_>, name: &str) -> Option<u64> {
    let bytes = node.property(name)?.value;
    cells(bytes, &mut 0, bytes.len() / 4)
}

fn is_compatible(node: FdtNode<'_, '_>, with: &[&str]) -> bool {
    node.compatible().is_some_and(|list| list.all().any(|name| with.contains(&name)))
}

fn available(node: FdtNode<'_, '_>) -> bool {
    text(node, "status").is_none_or(|status| status == "okay" || status == "ok")
}

impl Machine {
    /// Reads it. Does not fail: what is missing is missing.
    pub fn read(blob: &[u8]) -> Option<Self> {
        let fdt = Fdt::new(blob).ok()?;
        let mut machine = Self {
            ram: Vec::new(),
            taken: Vec::new(),
            cpus: Vec::new(),
            uart: None,
            gic: None,
            initrd: None,
            conduit: Conduit::Smc,
            pci: None,
            its: None,
            devices_confined: false,
        };
        let console = fdt.find_node("/chosen").and_then(|chosen| {
            let path = text(chosen, "stdout-path")?.split(':').next()?;
            if path.starts_with('/') { Some(path) } else { fdt.aliases()?.resolve(path) }
        });
        let mut visit = |path: &str, node: FdtNode<'_, '_>, regs: &[Range<u64>]| {
            machine.node(path, node, regs, console);
        };
        let root = fdt.find_node("/")?;
        Walk { buses: Vec::new(), visit: &mut visit }.children(root, "", root.cell_sizes());
        machine.taken.extend(fdt.memory_reservations().map(|one| {
            let at = one.address() as u64;
            at..at + one.size() as u64
        }));
        let at = blob.as_ptr() as u64;
        machine.taken.push(at..at + blob.len() as u64);
        machine.taken.extend(machine.initrd.clone());
        Some(machine)
    }

    fn node(&mut self, path: &str, node: FdtNode<'_, '_>, regs: &[Range<u64>], console: Option<&str>) {
        let real = || regs.iter().filter(|range| !range.is_empty()).cloned();
        if text(node, "device_type") == Some("memory") && available(node) {
            self.ram.extend(real());
        } else if path.starts_with("/reserved-memory/") {
            self.taken.extend(real());
        } else if text(node, "device_type") == Some("cpu") && available(node) {
            let bytes = node.property("reg").map(|reg| reg.value).unwrap_or_default();
            self.cpus.extend(cells(bytes, &mut 0, bytes.len() / 4));
        } else if path == "/psci" && text(node, "method") == Some("hvc") {
            self.conduit = Conduit::Hvc;
        } else if path == "/chosen" {
            let (start, end) = (number(node, "linux,initrd-start"), number(node, "linux,initrd-end"));
            self.initrd = start.zip(end).map(|(start, end)| start..end).filter(|range| !range.is_empty());
        } else if path == "/hypervisor" {
            self.devices_confined = node.property("corevisor,devices-confined").is_some();
        } else if is_compatible(node, &["pci-host-ecam-generic"]) && self.pci.is_none() {
            self.pci = bridge(node, regs);
        } else if is_compatible(node, &["arm,gic-v3-its"]) {
            self.its = regs.first().map(|reg| reg.start);
        } else if is_compatible(node, &["arm,gic-v3"]) && self.gic.is_none() && regs.len() >= 2 {
            self.gic = Some(Gic::v3(regs[0].start, regs[1].start));
        } else if is_compatible(node, &["arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a7-gic"]) && regs.len() >= 2 {
            self.gic = Some(Gic::v2(regs[0].start, regs[1].start));
        }
        if console == Some(path)
            && let Some(reg) = regs.first()
        {
            if is_compatible(node, &["arm,pl011", "arm,sbsa-uart"]) {
                self.uart = Some((uart::Kind::Pl011, reg.start));
            } else if is_compatible(node, &["brcm,bcm2835-aux-uart"]) {
                self.uart = Some((uart::Kind::Aux, reg.start));
            }
        }
    }
}
