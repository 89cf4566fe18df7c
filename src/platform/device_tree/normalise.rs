//! From the boot loader's bytes to a tree that crate `fdt` reads without panicking.
//!
//! `fdt` 0.1.5 panics on NOP tokens and on most malformed input. So every token is checked here once, and the blob is
//! copied without NOPs and without the empty part (QEMU's is 1 MiB long and holds 8 KiB). What passes has: blocks
//! within the blob, balanced nodes, properties before child nodes, ASCII names without `/` (a path is never an
//! alias of itself), whole and sane `#address-cells` and `#size-cells`.
#![forbid(unsafe_code)]

use fdt::Fdt;
use fdt::node::FdtNode;

use super::binding;
use super::blob::{END, Header, Output, Token, Tokens, be32, until_nul};
use super::description::TextRange;
use super::error::{DeviceTreeError, NodePath, Reason};

/// Largest blob in bytes: what Linux accepts on arm64.
pub const MAX_BLOB: usize = 2 << 20;
/// Deepest nesting, the root included.
pub const MAX_DEPTH: usize = 16;

/// Bytes of the blob whose first 40 bytes are `header`: how much of memory may be read.
///
/// # Errors
/// The header's own mistakes: magic, version, size, blocks outside.
pub fn total_size(header: &[u8]) -> Result<usize, DeviceTreeError> {
    Ok(Header::parse(header)?.total)
}

/// Bytes of a buffer that [`DeviceTree::normalise`] can always do its work in, for the blob `blob`.
///
/// # Errors
/// As [`total_size`]; [`Reason::Truncated`]; [`Reason::BadHeader`] if the memory reservations have no end.
pub fn buffer_size(blob: &[u8]) -> Result<usize, DeviceTreeError> {
    let header = whole(blob)?;
    // A node takes 12 bytes or more, and one byte in the depth table.
    let used = header.used() + header.reservations(blob)?.len();
    Ok(used + used / 12)
}

/// The header of a blob that is all there.
fn whole(blob: &[u8]) -> Result<Header, Reason> {
    let header = Header::parse(blob)?;
    if blob.len() < header.total { Err(Reason::Truncated) } else { Ok(header) }
}

/// A device tree that was checked; every function on it is free of panics.
#[derive(Clone, Copy)]
pub struct DeviceTree<'a> {
    blob: &'a [u8],
    /// Depth of each node in the tree's order; 0 is the root. `fdt` does not tell it.
    depths: &'a [u8],
    fdt: Fdt<'a>,
}

impl<'a> DeviceTree<'a> {
    /// Checks `source` and copies it, compact, to `out`, which then belongs to the tree.
    ///
    /// Needs [`buffer_size`] bytes at most; never reads the part of `source` that its header leaves unused.
    ///
    /// # Errors
    /// What is wrong with the blob, and at which node; [`Reason::BufferTooSmall`].
    pub fn normalise(source: &[u8], out: &'a mut [u8]) -> Result<Self, DeviceTreeError> {
        let header = whole(source)?;
        let strings = checked_strings(header.strings(source))?;
        let reservations = header.reservations(source)?;

        let depths_at = header.used() + reservations.len();
        let (front, back) = out.split_at_mut_checked(depths_at).ok_or(Reason::BufferTooSmall)?;
        let mut output = Output::new(front);
        output.start(reservations)?;
        let structure_at = output.len;
        let mut walk = Walk { strings, names: [b""; MAX_DEPTH], open: 0, has_child: 0, depths: Output::new(back) };
        walk.copy(header.structure(source), &mut output).map_err(|reason| walk.error(reason))?;
        let nodes = walk.depths.len;
        let strings_at = output.len;
        output.put(strings)?;
        let size = output.finish(structure_at, strings_at, header.boot_cpu)?;

        let out: &'a [u8] = out;
        let blob = out.get(..size).unwrap_or_default();
        let depths = out.get(depths_at..depths_at + nodes).unwrap_or_default();
        let fdt = Fdt::new(blob).map_err(|_| Reason::Truncated)?;
        Ok(Self { blob, depths, fdt })
    }

    /// The tree as a blob.
    pub fn blob(&self) -> &'a [u8] {
        self.blob
    }

    /// The tree as crate `fdt` sees it. Some of that crate's conveniences panic on a missing node or property
    /// (`chosen()`, `cpus()`, `memory()`, `Root::model()`); nodes and their properties do not.
    pub fn fdt(&self) -> &Fdt<'a> {
        &self.fdt
    }

    /// Text found by [`describe`](super::describe); empty if `range` is not from this tree.
    pub fn text(&self, range: TextRange) -> &'a str {
        let bytes = self.blob.get(range.offset as usize..).and_then(|rest| rest.get(..range.len as usize));
        bytes.and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    pub(super) fn node_count(&self) -> usize {
        self.depths.len()
    }

    /// Every node with its depth (the root's is 0), parents before children.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (FdtNode<'_, 'a>, usize)> {
        self.fdt.all_nodes().zip(self.depths.iter().map(|depth| usize::from(*depth)))
    }

    /// The first node that the absolute `path` means; unit addresses may be left out (DTSpec §2.2.3).
    pub(super) fn find(&self, path: &str) -> Option<FdtNode<'_, 'a>> {
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        let mut wanted = 1;
        for (node, depth) in self.nodes() {
            match parts.peek() {
                None => return Some(node),                       // the root
                _ if depth > 0 && depth < wanted => return None, // the parent's end
                Some(part) if depth == wanted && (node.name == *part || node.name.split('@').next() == Some(*part)) => {
                    parts.next();
                    wanted += 1;
                    if parts.peek().is_none() {
                        return Some(node);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Where in the blob `value`, one of its properties' values, starts.
    pub(super) fn offset_of(&self, value: &[u8]) -> u32 {
        value.as_ptr().addr().wrapping_sub(self.blob.as_ptr().addr()) as u32
    }
}

/// The strings block up to its last NUL: every offset into it then names a terminated string.
fn checked_strings(strings: &[u8]) -> Result<&[u8], Reason> {
    let end = strings.iter().rposition(|b| *b == 0).map_or(0, |last| last + 1);
    let strings = strings.get(..end).unwrap_or_default();
    if strings.iter().all(|b| *b == 0 || is_name_byte(*b)) { Ok(strings) } else { Err(Reason::BadPropertyName) }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'/'
}

/// The walk over the structure block: what is open, and where.
struct Walk<'s, 'o> {
    strings: &'s [u8],
    names: [&'s [u8]; MAX_DEPTH],
    /// Number of open nodes.
    open: usize,
    /// Bit `d`: the open node at depth `d` has had a child node.
    has_child: u32,
    depths: Output<'o>,
}

impl<'s> Walk<'s, '_> {
    /// Checks every token of `structure`, and copies all but NOPs.
    fn copy(&mut self, structure: &'s [u8], out: &mut Output) -> Result<(), Reason> {
        let mut tokens = Tokens::new(structure);
        let mut run = 0;
        loop {
            let at = tokens.at();
            match tokens.next()? {
                Token::Begin { name } => self.begin(name)?,
                Token::Prop { name_offset, value } => self.property(name_offset, value)?,
                Token::End => self.open = self.open.checked_sub(1).ok_or(Reason::BadToken(2))?,
                Token::Nop => {
                    out.put(structure.get(run..at).unwrap_or_default())?;
                    run = tokens.at();
                }
                Token::Done if self.open > 0 || self.depths.len == 0 => return Err(Reason::StructureEndsEarly),
                Token::Done => {
                    out.put(structure.get(run..at).unwrap_or_default())?;
                    return out.put_u32(END);
                }
            }
        }
    }

    fn begin(&mut self, name: &'s [u8]) -> Result<(), Reason> {
        let is_root = self.open == 0;
        if is_root && self.depths.len > 0 {
            return Err(Reason::BadToken(1));
        }
        let place = self.names.get_mut(self.open).ok_or(Reason::TooDeep)?;
        if is_root != name.is_empty() || !name.iter().all(|b| is_name_byte(*b)) {
            return Err(Reason::BadNodeName);
        }
        *place = name;
        self.depths.put(&[self.open as u8])?;
        self.has_child = (self.has_child | (1 << self.open) >> 1) & !(1 << self.open);
        self.open += 1;
        Ok(())
    }

    fn property(&mut self, name_offset: u32, value: &[u8]) -> Result<(), Reason> {
        let depth = self.open.checked_sub(1).ok_or(Reason::BadToken(3))?;
        if self.has_child & (1 << depth) != 0 {
            return Err(Reason::PropertyAfterNode);
        }
        let name = self.strings.get(name_offset as usize..).filter(|s| !s.is_empty()).ok_or(Reason::BadPropertyName)?;
        if name.starts_with(b"#") {
            check_cells(until_nul(name).unwrap_or_default(), value)?;
        }
        Ok(())
    }

    fn error(&self, reason: Reason) -> DeviceTreeError {
        let names = self.names.get(1..self.open).unwrap_or_default();
        DeviceTreeError { reason, place: NodePath::new(names.iter().copied()) }
    }
}

/// Cell counts are one word, and no bus has more than four cells (DTSpec §2.3.5).
fn check_cells(name: &[u8], value: &[u8]) -> Result<(), Reason> {
    const CELLS: [&str; 2] = ["#address-cells", "#size-cells"];
    let Some(name) = binding::position(name, &CELLS).and_then(|at| CELLS.get(at)) else { return Ok(()) };
    match be32(value, 0) {
        Some(0..=4) if value.len() == 4 => Ok(()),
        _ => Err(Reason::BadProperty(name)),
    }
}
