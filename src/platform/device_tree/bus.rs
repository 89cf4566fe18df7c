//! Where a node stands: its parents, their cell counts, and the way from its `reg` to a CPU address (DTSpec §2.3).
//!
//! A node whose parents do not all have `ranges` has no CPU address: [`Path::translate`] says `None`, and that is no
//! error (I2C devices, flash partitions, CPUs).
#![forbid(unsafe_code)]

use fdt::node::FdtNode;

use super::binding::{self, Role, Section};
use super::blob::{be32, be64};
use super::error::{DeviceTreeError, NodePath, Reason};
use super::normalise::MAX_DEPTH;
use crate::abstract_machine::addr::{Pa, PhysRange};

/// No CPU of the architecture has more address bits.
const ADDRESS_BITS: u32 = 52;

/// A node with the properties that decide how it is read.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    pub(super) section: Section,
    pub(super) role: Role,
    pub(super) enabled: bool,
    pub(super) device_type: &'a [u8],
    /// Whether it names the SMMU that it stands behind (`iommus`).
    pub(super) behind_smmu: bool,
    pub(super) reg: Option<&'a [u8]>,
    pub(super) ranges: Option<&'a [u8]>,
    /// Of the node's children.
    pub(super) cells: Cells,
    has_cells: bool,
}

/// `#address-cells` and `#size-cells`.
#[derive(Clone, Copy)]
pub(super) struct Cells {
    pub(super) address: usize,
    pub(super) size: usize,
}

impl Cells {
    /// Of a node that does not say (DTSpec §2.3.5).
    pub(super) const DEFAULT: Self = Self { address: 2, size: 1 };

    /// From the two properties, if the node has them.
    pub(super) fn of(address: Option<&[u8]>, size: Option<&[u8]>) -> Self {
        let cells = |value: Option<&[u8]>, default| match value.and_then(|value| be32(value, 0)) {
            Some(cells) => cells as usize,
            None => default,
        };
        Self { address: cells(address, Self::DEFAULT.address), size: cells(size, Self::DEFAULT.size) }
    }

    /// Bytes of one `reg` entry; never 0 where an entry can be read.
    fn entry(self) -> usize {
        (self.address + self.size) * 4
    }

    /// Splits a `reg` value into (address, size). A node with other than 1 or 2 cells for either has none.
    pub(super) fn entries(self, reg: &[u8]) -> impl Iterator<Item = (u64, u64)> {
        let readable = (1..=2).contains(&self.address) && (1..=2).contains(&self.size);
        let reg = if readable { reg } else { &[] };
        reg.chunks_exact(self.entry().max(1))
            .filter_map(move |entry| Some((number(entry, 0, self.address)?, number(entry, self.address, self.size)?)))
    }

    /// Whether a `reg` value holds whole entries, at least one.
    pub(super) fn fits(self, reg: &[u8]) -> bool {
        self.entry() != 0 && !reg.is_empty() && reg.len().is_multiple_of(self.entry())
    }
}

/// The number in `cells` cells (1 or 2) from cell `at` on.
pub(super) fn number(bytes: &[u8], at: usize, cells: usize) -> Option<u64> {
    match cells {
        1 => be32(bytes, at * 4).map(u64::from),
        2 => be64(bytes, at * 4),
        _ => None,
    }
}

impl<'a> Node<'a> {
    const NONE: Self = Self {
        name: "",
        section: Section::Devices,
        role: Role::Other,
        enabled: true,
        device_type: &[],
        behind_smmu: false,
        reg: None,
        ranges: None,
        cells: Cells::DEFAULT,
        has_cells: false,
    };

    fn collect(node: FdtNode<'_, 'a>) -> Self {
        let properties = node.properties().map(|property| (property.name.as_bytes(), property.value));
        let names = ["compatible", "reg", "ranges", "status", "device_type", "iommus", "#address-cells", "#size-cells"];
        let [compatible, reg, ranges, status, device_type, iommus, address, size] = binding::select(properties, names);
        Self {
            name: node.name,
            section: Section::Devices,
            role: compatible.map_or(Role::Other, Role::of),
            enabled: status.is_none_or(binding::is_okay),
            device_type: device_type.unwrap_or_default(),
            behind_smmu: iommus.is_some(),
            reg,
            ranges,
            cells: Cells::of(address, size),
            has_cells: address.is_some() || size.is_some(),
        }
    }
}

/// The node that is being read, and its parents.
pub(super) struct Path<'a> {
    nodes: [Node<'a>; MAX_DEPTH],
    depth: usize,
}

impl<'a> Path<'a> {
    pub(super) fn new() -> Self {
        Self { nodes: [Node::NONE; MAX_DEPTH], depth: 0 }
    }

    fn at(&self, depth: usize) -> &Node<'a> {
        self.nodes.get(depth).unwrap_or(&const { Node::NONE })
    }

    /// Goes on to `node`, which stands at `depth` (the root at 0). Its parents were entered before.
    pub(super) fn enter(&mut self, node: FdtNode<'_, 'a>, depth: usize) {
        let parent = if depth == 0 { &Node::NONE } else { self.at(depth - 1) };
        let mut entered = Node::collect(node);
        entered.section = if depth == 1 { Section::of(entered.name.as_bytes()) } else { parent.section };
        if entered.section == Section::Devices && entered.role == Role::Debug {
            entered.section = Section::Debug;
        }
        if depth == 1 && entered.section == Section::Chosen && !entered.has_cells {
            // Boot loaders that add modules to /chosen rely on the root's cell counts.
            entered.cells = parent.cells;
        }
        if let Some(place) = self.nodes.get_mut(depth) {
            *place = entered;
        }
        self.depth = depth;
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// The node itself.
    pub(super) fn node(&self) -> &Node<'a> {
        self.at(self.depth)
    }

    /// Its parent; for the root, a node without properties.
    pub(super) fn parent(&self) -> &Node<'a> {
        if self.depth == 0 { &const { Node::NONE } } else { self.at(self.depth - 1) }
    }

    /// The node's `reg` as the CPU addresses it; entries that it cannot address are left out.
    pub(super) fn registers(&self) -> impl Iterator<Item = PhysRange> {
        let reg = self.node().reg.unwrap_or_default();
        self.parent().cells.entries(reg).filter_map(|(base, size)| self.translate(base, size))
    }

    /// Range number `index` of the node's `reg`, if the CPU can address it and it is not empty.
    pub(super) fn register(&self, index: usize) -> Option<PhysRange> {
        let (base, size) = self.parent().cells.entries(self.node().reg?).nth(index)?;
        self.translate(base, size).filter(|range| !range.is_empty())
    }

    /// The CPU address of `size` bytes from `base`, which is an address on the parent's bus. Cut off where the
    /// window of a bus in between ends.
    pub(super) fn translate(&self, base: u64, size: u64) -> Option<PhysRange> {
        let (mut base, mut size) = (base, size);
        for depth in (1..self.depth).rev() {
            let ranges = self.at(depth).ranges?;
            if !ranges.is_empty() {
                (base, size) = through(ranges, self.at(depth).cells, self.at(depth - 1).cells, base, size)?;
            }
        }
        let range = PhysRange::new(Pa::new(base), size)?;
        (range.end().raw() <= 1 << ADDRESS_BITS).then_some(range)
    }

    /// An error at the node.
    pub(super) fn error(&self, reason: Reason) -> DeviceTreeError {
        let names = self.nodes.get(1..=self.depth).unwrap_or_default();
        DeviceTreeError { reason, place: NodePath::new(names.iter().map(|node| node.name.as_bytes())) }
    }
}

/// Takes an address on the child bus to the parent bus (DTSpec §2.3.8).
fn through(ranges: &[u8], child: Cells, parent: Cells, base: u64, size: u64) -> Option<(u64, u64)> {
    let entry = child.address + parent.address + child.size;
    ranges.chunks_exact((entry * 4).max(1)).find_map(|range| {
        let from = number(range, 0, child.address)?;
        let to = number(range, child.address, parent.address)?;
        let len = number(range, child.address + parent.address, child.size)?;
        let offset = base.checked_sub(from).filter(|offset| *offset < len)?;
        Some((to.checked_add(offset)?, size.min(len - offset)))
    })
}
