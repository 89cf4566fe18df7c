//! Why the machine cannot be started: one line each, that names what and where.

use core::fmt;

use super::boot::MAX_TREE;
use super::cpus::CpuError;
use super::device_tree::DeviceTreeError;
use super::host_image::HostImageError;
use super::own_map::MapError;
use crate::abstract_machine::addr::PhysRange;
use crate::memory::mem_manager::Denied;
use crate::memory::mem_region::RegionError;
use crate::npt::pt_alloc::OutOfTables;

/// Why the machine cannot be started.
pub enum BootError {
    /// The boot loader's device tree is broken, or something is missing in it.
    DeviceTree(DeviceTreeError),
    /// The device tree needs so many bytes.
    TreeTooLarge(usize),
    /// The core's own map.
    Map(MapError),
    /// The CPUs.
    Cpus(CpuError),
    /// The host's kernel.
    Image(HostImageError),
    /// Banks and windows do not go together.
    Region(RegionError),
    /// The core itself lies outside RAM.
    NotInRam(PhysRange),
    /// No free RAM for this, so many bytes.
    NoRoomFor(&'static str, u64),
    /// The page pool is used up.
    OutOfTables,
    /// The core's own memory could not be taken from the host.
    Protect(Denied),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceTree(error) => write!(f, "device tree: {error}"),
            Self::TreeTooLarge(size) => {
                write!(f, "device tree: {size} bytes are more than the {MAX_TREE} there is room for")
            }
            Self::Map(MapError::OutOfTables) | Self::OutOfTables => f.write_str("the page pool is used up"),
            Self::Map(MapError::Overlap(range)) => {
                write!(f, "{range} overlaps the core, or another part of what it needs")
            }
            Self::Cpus(error) => error.fmt(f),
            Self::Image(error) => error.fmt(f),
            Self::Region(RegionError::TooMany) => f.write_str("device tree: too many memory banks and device windows"),
            Self::Region(RegionError::NotPages(range)) => write!(f, "device tree: {range} is no whole number of pages"),
            Self::Region(RegionError::NotAscending(range)) => {
                write!(f, "device tree: {range} is RAM and device at once")
            }
            Self::NotInRam(range) => {
                write!(f, "the core was loaded to {range}, which the device tree does not call RAM")
            }
            Self::NoRoomFor(what, size) => write!(f, "no {size} bytes of free RAM for {what}"),
            Self::Protect(reason) => write!(f, "the core's own memory could not be protected: {reason:?}"),
        }
    }
}

macro_rules! from {
    ($($error:ty => $variant:ident,)*) => {
        $(impl From<$error> for BootError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from! {
    DeviceTreeError => DeviceTree,
    MapError => Map,
    CpuError => Cpus,
    HostImageError => Image,
    RegionError => Region,
    Denied => Protect,
}

impl From<OutOfTables> for BootError {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfTables
    }
}
