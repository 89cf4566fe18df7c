//! What can be wrong with a device tree, and where: one clear line for the console.
#![forbid(unsafe_code)]

use core::fmt;

use super::list::Full;
use crate::abstract_machine::addr::PhysRange;

/// Why a device tree was refused. Blob format: DTSpec §5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The first word is not 0xd00dfeed.
    BadMagic,
    /// Fewer bytes than the header says, or than a header has.
    Truncated,
    /// More bytes than [`MAX_BLOB`](super::MAX_BLOB).
    TooLarge,
    /// The format is older than version 16, or not compatible with version 17; holds the version.
    UnsupportedVersion(u32),
    /// The named header field points outside the blob or is misaligned.
    BadHeader(&'static str),
    /// The caller's buffer cannot hold the result.
    BufferTooSmall,
    /// The structure block holds a word that is no token, or a token where it must not stand; holds the word.
    BadToken(u32),
    /// The structure block ends before its last token.
    StructureEndsEarly,
    /// Nodes are nested deeper than [`MAX_DEPTH`](super::MAX_DEPTH).
    TooDeep,
    /// A node's name is not terminated, empty below the root, or holds a character that no name may hold.
    BadNodeName,
    /// A property's name lies outside the strings block or holds a character that no name may hold.
    BadPropertyName,
    /// A property's value runs past the structure block.
    PropertyTooLong,
    /// A property stands behind a child node.
    PropertyAfterNode,
    /// The named property has a value that its binding does not allow.
    BadProperty(&'static str),
    /// No enabled memory node with a size.
    NoMemory,
    /// Two memory banks share these bytes.
    OverlappingMemory(PhysRange),
    /// An address that no CPU can have (beyond 52 bits), in bytes.
    AddressTooLarge(u64),
    /// No enabled CPU node.
    NoCpus,
    /// Two CPU nodes have this `reg`.
    DuplicateCpu(u64),
    /// No enabled interrupt controller of a kind that the core knows.
    NoInterruptController,
    /// There is more of the named thing than the core has room for.
    TooMany(&'static str),
}

impl From<Full> for Reason {
    fn from(_: Full) -> Self {
        Self::TooMany("entries")
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMagic => f.write_str("not a device tree (magic number)"),
            Self::Truncated => f.write_str("truncated"),
            Self::TooLarge => f.write_str("larger than 2 MiB"),
            Self::UnsupportedVersion(v) => write!(f, "unsupported format version {v}"),
            Self::BadHeader(field) => write!(f, "header field {field} is wrong"),
            Self::BufferTooSmall => f.write_str("no room for the device tree"),
            Self::BadToken(token) => write!(f, "unexpected token {token:#x}"),
            Self::StructureEndsEarly => f.write_str("structure block ends early"),
            Self::TooDeep => f.write_str("nodes nested too deep"),
            Self::BadNodeName => f.write_str("malformed node name"),
            Self::BadPropertyName => f.write_str("malformed property name"),
            Self::PropertyTooLong => f.write_str("property runs past the end"),
            Self::PropertyAfterNode => f.write_str("property behind a child node"),
            Self::BadProperty(name) => write!(f, "bad value of property {name}"),
            Self::NoMemory => f.write_str("no memory"),
            Self::OverlappingMemory(range) => write!(f, "memory banks overlap at {range}"),
            Self::AddressTooLarge(addr) => write!(f, "address {addr:#x} has more than 52 bits"),
            Self::NoCpus => f.write_str("no CPU"),
            Self::DuplicateCpu(reg) => write!(f, "two CPUs with reg {reg:#x}"),
            Self::NoInterruptController => f.write_str("no interrupt controller that the core knows"),
            Self::TooMany(what) => write!(f, "too many {what}"),
        }
    }
}

/// Longest path that an error shows; the rest is cut off.
const PATH_MAX: usize = 80;

/// Path of a node, cut off at 80 bytes; empty where no node is concerned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NodePath {
    bytes: [u8; PATH_MAX],
    len: u8,
}

impl NodePath {
    /// No node: the error concerns the whole tree.
    pub const NONE: Self = Self { bytes: [0; PATH_MAX], len: 0 };

    /// The path whose nodes below the root have these names.
    pub fn new<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut path = Self::NONE;
        for name in names {
            path.append(b"/");
            path.append(name);
        }
        if path.len == 0 {
            path.append(b"/");
        }
        path
    }

    fn append(&mut self, text: &[u8]) {
        let room = self.bytes.get_mut(usize::from(self.len)..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(text) {
            *to = if from.is_ascii_graphic() { *from } else { b'?' };
            self.len += 1;
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        self.bytes.get(..usize::from(self.len)).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or_default()
    }
}

impl fmt::Debug for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Why, and at which node, a device tree was refused. Shown as one line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceTreeError {
    /// What is wrong.
    pub reason: Reason,
    /// The node where it is wrong, or [`NodePath::NONE`].
    pub place: NodePath,
}

impl From<Reason> for DeviceTreeError {
    fn from(reason: Reason) -> Self {
        Self { reason, place: NodePath::NONE }
    }
}

impl fmt::Display for DeviceTreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device tree: {}", self.reason)?;
        if self.place != NodePath::NONE {
            write!(f, " at {}", self.place.as_str())?;
        }
        Ok(())
    }
}

impl core::error::Error for DeviceTreeError {}
