//! Addresses and numbers: one type for each kind, so that none can be taken for another.
//!
//! | type        | is                                                   | unit           |
//! |-------------|------------------------------------------------------|----------------|
//! | [`Pa`]      | physical address                                     | byte           |
//! | [`Ipa`]     | intermediate physical address: what a VM or the host calls physical | byte |
//! | [`Va`]      | virtual address of the core itself (EL2 stage 1)     | byte           |
//! | [`Ia`]      | input address of a translation table: an [`Ipa`] or a [`Va`] | byte   |
//! | [`Pfn`]     | number of a physical 4 KiB page                      | 4 KiB          |
//! | [`Gfn`]     | number of an intermediate physical 4 KiB page        | 4 KiB          |
//! | [`VmId`]    | principal: the host is 0, VMs are 1 and up           | -              |
//! | [`CpuId`]   | dense number of a physical CPU, given by the core (K §1.4: MPIDR is no index) | - |
//! | [`VcpuId`]  | number of a virtual CPU within its VM                | -              |
//!
//! Arithmetic that could wrap is `checked_`; there is no silent wrap-around anywhere.

use core::fmt;

/// log2 of the page size; the core uses the 4 KiB granule everywhere.
pub const PAGE_SHIFT: u32 = 12;
/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Size in bytes of the block that one entry of a level-2 table maps.
pub const BLOCK_2M: u64 = 1 << 21;
/// Pages of one.
pub const BLOCK_PAGES: u64 = BLOCK_2M / PAGE_SIZE;
/// Size in bytes of the block that one entry of a level-1 table maps.
pub const BLOCK_1G: u64 = 1 << 30;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address `raw`, in bytes.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The address in bytes.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// `self + bytes`, or `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The multiple of `size` (a power of two) at or below this address.
            pub const fn align_down(self, size: u64) -> Self {
                debug_assert!(size.is_power_of_two());
                Self(self.0 & !(size - 1))
            }

            /// The multiple of `size` (a power of two) at or above this address, or `None` past the end.
            pub const fn align_up(self, size: u64) -> Option<Self> {
                match self.checked_add(size - 1) {
                    Some(a) => Some(a.align_down(size)),
                    None => None,
                }
            }

            /// Whether this address is a multiple of `size` (a power of two).
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A physical address, in bytes.
    Pa
);
address!(
    /// An intermediate physical address, in bytes: input of a stage-2 table.
    Ipa
);
address!(
    /// A virtual address of the core, in bytes: input of its own stage-1 table.
    Va
);

address!(
    /// Input of some translation table, in bytes: an [`Ipa`] for stage 2, a [`Va`] for the core's own stage 1.
    Ia
);

impl From<Ipa> for Ia {
    fn from(ipa: Ipa) -> Self {
        Self(ipa.raw())
    }
}

impl From<Va> for Ia {
    fn from(va: Va) -> Self {
        Self(va.raw())
    }
}

macro_rules! frame {
    ($(#[$doc:meta])* $name:ident, $addr:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The page number `raw`.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The page that holds the byte at `addr`.
            pub const fn containing(addr: $addr) -> Self {
                Self(addr.raw() >> PAGE_SHIFT)
            }

            /// The page number.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Address of the page's first byte.
            pub const fn addr(self) -> $addr {
                $addr::new(self.0 << PAGE_SHIFT)
            }

            /// The page `pages` further on, or `None` past the end of the address space.
            pub const fn checked_add(self, pages: u64) -> Option<Self> {
                match self.0.checked_add(pages) {
                    Some(n) if n <= u64::MAX >> PAGE_SHIFT => Some(Self(n)),
                    _ => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

frame!(
    /// Number of a physical page.
    Pfn,
    Pa
);
frame!(
    /// Number of an intermediate physical page.
    Gfn,
    Ipa
);

impl Ipa {
    /// The physical address that an identity map gives for this one. Only the host's stage-2 is an identity map.
    pub const fn identity(self) -> Pa {
        Pa::new(self.0)
    }
}

impl Pa {
    /// The intermediate address under which the host, whose map is the identity, knows this one.
    pub const fn identity(self) -> Ipa {
        Ipa::new(self.0)
    }
}

impl Pfn {
    /// The page under which the host, whose map is the identity, knows this one.
    pub const fn identity(self) -> Gfn {
        Gfn::new(self.0)
    }
}

impl Gfn {
    /// The physical page that an identity map gives for this one.
    pub const fn identity(self) -> Pfn {
        Pfn::new(self.0)
    }
}

/// A principal that has a stage-2 table: the host (0) or a VM (1 and up).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VmId(u16);

impl VmId {
    /// The untrusted host ("KServ").
    pub const HOST: Self = Self(0);

    /// The principal `raw`; 0 is the host.
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The number, as it stands in VTTBR_EL2.VMID.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Whether this is the host.
    pub const fn is_host(self) -> bool {
        self.0 == 0
    }
}

/// Dense number of a physical CPU: 0 is the CPU that booted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CpuId(u16);

impl CpuId {
    /// The CPU with this dense number.
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The number.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The number as an array index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Number of a virtual CPU within its VM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId(u16);

impl VcpuId {
    /// The virtual CPU with this number.
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The number.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The number as an array index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A physical range `[base, base + size)` that does not wrap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PhysRange {
    base: Pa,
    size: u64,
}

impl PhysRange {
    /// `size` bytes from `base`, or `None` if they would run past the end of the address space.
    pub const fn new(base: Pa, size: u64) -> Option<Self> {
        match base.checked_add(size) {
            Some(_) => Some(Self { base, size }),
            None => None,
        }
    }

    /// The bytes from `base` up to, not including, `end`; empty if `end` is not above `base`.
    pub const fn between(base: Pa, end: Pa) -> Self {
        Self { base, size: end.raw().saturating_sub(base.raw()) }
    }

    /// The `count` pages from `pfn` on; empty if they would run past the end of the address space.
    pub const fn of_pages(pfn: Pfn, count: u64) -> Self {
        match Self::new(pfn.addr(), count << PAGE_SHIFT) {
            Some(range) => range,
            None => Self::between(pfn.addr(), pfn.addr()),
        }
    }

    /// First byte.
    pub const fn base(self) -> Pa {
        self.base
    }

    /// Number of bytes.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// First byte behind the range.
    pub const fn end(self) -> Pa {
        Pa::new(self.base.raw() + self.size)
    }

    /// Whether the range has no byte.
    pub const fn is_empty(self) -> bool {
        self.size == 0
    }

    /// Whether the byte at `addr` lies in the range.
    pub const fn contains(self, addr: Pa) -> bool {
        addr.raw() >= self.base.raw() && addr.raw() - self.base.raw() < self.size
    }

    /// Whether every byte of `other` lies in this range.
    pub const fn contains_range(self, other: Self) -> bool {
        other.base.raw() >= self.base.raw() && other.end().raw() <= self.end().raw()
    }

    /// Whether some byte lies in both ranges.
    pub const fn overlaps(self, other: Self) -> bool {
        self.base.raw() < other.end().raw() && other.base.raw() < self.end().raw()
    }

    /// The smallest range of whole pages that holds this one (the last page of the address space is cut off).
    pub const fn page_cover(self) -> Self {
        let base = self.base.align_down(PAGE_SIZE);
        match self.end().align_up(PAGE_SIZE) {
            Some(end) => Self::between(base, end),
            None => Self::between(base, Pa::new(!(PAGE_SIZE - 1))),
        }
    }

    /// The largest range of whole pages within this one; may be empty.
    pub const fn page_core(self) -> Self {
        match self.base.align_up(PAGE_SIZE) {
            Some(base) => Self::between(base, self.end().align_down(PAGE_SIZE)),
            None => Self::between(self.base, self.base),
        }
    }

    /// Number of the first page of the range.
    pub const fn first_pfn(self) -> Pfn {
        Pfn::containing(self.base)
    }

    /// Number of whole pages, if base and size are page aligned.
    pub const fn pages(self) -> u64 {
        self.size >> PAGE_SHIFT
    }
}

impl fmt::Debug for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.base.raw(), self.end().raw())
    }
}

impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_never_wraps() {
        assert_eq!(PhysRange::new(Pa::new(u64::MAX), 2), None);
        assert!(PhysRange::new(Pa::new(u64::MAX), 0).is_some());
    }

    #[test]
    fn page_cover_grows_and_page_core_shrinks() {
        let r = PhysRange::new(Pa::new(0x1800), 0x1000).unwrap();
        assert_eq!(r.page_cover(), PhysRange::new(Pa::new(0x1000), 0x2000).unwrap());
        assert!(r.page_core().is_empty());
    }

    #[test]
    fn ranges_that_only_touch_do_not_overlap() {
        let a = PhysRange::new(Pa::new(0), 0x1000).unwrap();
        let b = PhysRange::new(Pa::new(0x1000), 0x1000).unwrap();
        assert!(!a.overlaps(b) && !a.contains(b.base()));
    }

    #[test]
    fn a_frame_beyond_the_address_space_does_not_exist() {
        assert_eq!(Pfn::new(u64::MAX >> 12).checked_add(1), None);
    }
}
