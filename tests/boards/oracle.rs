//! Another reader of device trees, to compare with: crate `dtoolkit`, and addresses translated from the root downwards, not upwards as the core does.

use corevisor::abstract_machine::addr::{Pa, PhysRange};
use dtoolkit::{
    Node, Property,
    fdt::{Fdt, FdtNode},
};
use std::collections::BTreeMap;

/// A window through which a bus's addresses reach the CPU: start on the bus, start for the CPU, size.
type Window = (u64, u64, u64);

/// What holds for the children of a node.
#[derive(Clone)]
struct Bus {
    address: usize,
    size: usize,
    /// `None`: not reached by the CPU. Empty: as it is.
    windows: Option<Vec<Window>>,
}

/// One node on the walk.
struct Visit<'v, 'a> {
    path: &'v str,
    node: FdtNode<'a>,
    /// Its `reg` as the CPU addresses it.
    registers: Vec<PhysRange>,
    /// The CPU's side of its `ranges`, if it is a PCI host bridge.
    pci: Vec<PhysRange>,
}

fn value(node: FdtNode<'_>, name: &str) -> Option<Vec<u8>> {
    node.property(name).map(|property| property.value().to_vec())
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn texts(list: Option<Vec<u8>>) -> Vec<String> {
    let list = list.unwrap_or_default();
    list.split(|byte| *byte == 0)
        .filter(|text| !text.is_empty())
        .map(|text| String::from_utf8_lossy(text).into())
        .collect()
}

/// To the CPU, cut off at the window's end.
fn translate(bus: &Bus, base: u64, size: u64) -> Option<PhysRange> {
    let windows = bus.windows.as_ref()?;
    let (base, size) = match windows.is_empty() {
        true => (base, size),
        false => {
            let (from, to, len) = windows.iter().find(|(from, _, len)| base >= *from && base - from < *len)?;
            (to + (base - from), size.min(len - (base - from)))
        }
    };
    PhysRange::new(Pa::new(base), size)
}

fn below(node: FdtNode<'_>, bus: &Bus, is_root: bool) -> Bus {
    let cells = |name, default| value(node, name).map_or(default, |cells| number(&cells) as usize);
    let (address, size) = (cells("#address-cells", 2), cells("#size-cells", 1));
    let windows = match value(node, "ranges") {
        _ if is_root => Some(Vec::new()),
        None => None,
        Some(ranges) if ranges.is_empty() => bus.windows.clone(),
        Some(ranges) if address <= 2 && bus.windows.is_some() => {
            let entry = (address + bus.address + size) * 4;
            let windows = ranges.chunks_exact(entry).filter_map(|range| {
                let (from, rest) = range.split_at(address * 4);
                let (to, len) = rest.split_at(bus.address * 4);
                let to = translate(bus, number(to), number(len))?;
                Some((number(from), to.base().raw(), to.size()))
            });
            // A bus whose windows all lead nowhere reaches nothing.
            Some(windows.collect::<Vec<_>>()).filter(|windows| !windows.is_empty())
        }
        Some(_) => None,
    };
    Bus { address, size, windows }
}

fn walk<'a>(node: FdtNode<'a>, path: &str, bus: &Bus, visit: &mut dyn FnMut(Visit<'_, 'a>)) {
    let entry = (bus.address + bus.size) * 4;
    let reg = value(node, "reg").filter(|_| (1..=2).contains(&bus.address) && (1..=2).contains(&bus.size));
    let reg = reg.unwrap_or_default();
    let registers = reg.chunks_exact(entry.max(1)).filter_map(|entry| {
        let (base, size) = entry.split_at(bus.address * 4);
        translate(bus, number(base), number(size))
    });
    let below = below(node, bus, path.is_empty());
    let mut pci = Vec::new();
    if below.address == 3 {
        let entry = (3 + bus.address + below.size) * 4;
        for range in value(node, "ranges").unwrap_or_default().chunks_exact(entry) {
            let (to, len) = range[12..].split_at(bus.address * 4);
            pci.extend(translate(bus, number(to), number(len)));
        }
    }
    visit(Visit { path, node, registers: registers.collect(), pci });
    for child in node.children() {
        walk(child, &format!("{path}/{}", child.name()), &below, visit);
    }
}

fn on_all<'a>(blob: &'a [u8], mut visit: impl FnMut(Visit<'_, 'a>)) {
    let fdt = reader(blob);
    walk(fdt.root(), "", &Bus { address: 2, size: 1, windows: Some(Vec::new()) }, &mut visit);
}

fn is_device(path: &str, node: FdtNode<'_>) -> bool {
    let elsewhere = ["/cpus", "/chosen", "/reserved-memory"];
    let within = |place: &&str| path == *place || path.starts_with(&format!("{place}/"));
    !elsewhere.iter().any(within) && value(node, "device_type").is_none_or(|kind| kind != b"memory\0")
}

/// Registers of each enabled device but those for debug of CPUs.
pub fn registers(blob: &[u8]) -> Vec<(String, PhysRange)> {
    let (mut found, mut debug) = (Vec::new(), Vec::<String>::new());
    on_all(blob, |visit| {
        if texts(value(visit.node, "compatible")).iter().any(|text| text.contains("coresight")) {
            debug.push(visit.path.to_owned());
        }
        let is_debug = debug.iter().any(|place| visit.path == *place || visit.path.starts_with(&format!("{place}/")));
        let status = texts(value(visit.node, "status"));
        let enabled = status.first().is_none_or(|status| status == "okay" || status == "ok");
        if enabled && !is_debug && is_device(visit.path, visit.node) {
            let ranges = visit.registers.iter().chain(&visit.pci).filter(|range| range.size() != 0);
            found.extend(ranges.map(|range| (visit.path.to_owned(), *range)));
        }
    });
    found
}

/// All that any node has for registers, the windows of PCI, and reserved memory.
pub fn all_ranges(blob: &[u8]) -> Vec<PhysRange> {
    let mut found = Vec::new();
    on_all(blob, |visit| {
        let is_other = ["/chosen/", "/reserved-memory/"].iter().any(|place| visit.path.starts_with(place));
        if is_device(visit.path, visit.node) || is_other {
            found.extend(visit.registers.iter().chain(&visit.pci).filter(|range| range.size() != 0).copied());
        }
    });
    found
}

/// Each node's path with the first of its `compatible`.
pub fn nodes(blob: &[u8]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    on_all(blob, |visit| {
        let compatible = texts(value(visit.node, "compatible")).join(" ");
        found.insert(visit.path.to_owned(), compatible);
    });
    found
}

/// What `stdout-path` points to: its first `compatible`, and where its registers are.
pub fn stdout(blob: &[u8]) -> Option<(String, PhysRange)> {
    let fdt = reader(blob);
    let path = texts(value(fdt.find_node("/chosen")?, "stdout-path")).first()?.split(':').next()?.to_owned();
    let path = match path.starts_with('/') {
        true => path,
        false => texts(value(fdt.find_node("/aliases")?, &path)).first()?.clone(),
    };
    let mut found = None;
    on_all(blob, |visit| {
        if visit.path == path {
            let compatible = texts(value(visit.node, "compatible")).first().cloned().unwrap_or_default();
            found = visit.registers.first().map(|range| (compatible, *range));
        }
    });
    found
}

/// Property names as some have (upper case) are none for `dtoolkit`, which would refuse the tree.
pub fn reader(blob: &[u8]) -> Fdt<'_> {
    Fdt::new_unchecked(blob)
}
