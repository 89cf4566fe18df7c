//! The machine as its device tree describes it: plain data, fixed size, no reference into the blob.
//!
//! Filled by [`describe`](super::describe) only. About 9 KiB: let it stand in a static, not on a stack.
#![forbid(unsafe_code)]

use core::fmt;

use super::error::DeviceTreeError;
use super::list::List;
use super::windows;
use crate::abstract_machine::addr::{Pa, PhysRange};
use crate::abstract_machine::regs::MPIDR_AFFINITY;
pub use crate::platform::console::ConsoleDevice as Console;
use crate::vm::keys::{MAX_KEYS, PublicKey};

/// Most CPUs that the core drives; more are counted and left alone.
pub const MAX_CPUS: usize = 64;
/// Most memory banks, after merging.
pub const MAX_BANKS: usize = 64;
/// Most reserved ranges.
pub const MAX_RESERVED: usize = 64;
/// Most ranges that are withheld, after merging: of each reservation, and of each spin table.
pub const MAX_WITHHELD: usize = MAX_RESERVED + MAX_CPUS;
/// Most device windows, after merging.
pub const MAX_WINDOWS: usize = 384;

const NO_RANGE: PhysRange = PhysRange::between(Pa::new(0), Pa::new(0));

/// A place in the normalised blob that holds text; [`DeviceTree::text`](super::DeviceTree::text) reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TextRange {
    /// First byte, counted from the start of the blob.
    pub offset: u32,
    /// Number of bytes, without the terminating NUL.
    pub len: u32,
}

/// Everything the core learns from the device tree.
#[derive(Clone, Debug)]
pub struct MachineDescription {
    /// RAM: sorted, merged, whole pages, never overlapping, at least one (DTSpec §3.4). After [`withhold`](super::withhold) without firmware's and
    /// drivers' `no-map` memory.
    pub ram: List<PhysRange, MAX_BANKS>,
    /// Parts of the memory map that firmware keeps: `/memreserve/` entries and children of `/reserved-memory`
    /// (DTSpec §3.5, §5.3), in the tree's order, byte-exact. They may overlap.
    pub reserved: List<Reserved, MAX_RESERVED>,
    /// Memory that is nobody's: whole pages, sorted, merged; empty before [`withhold`](super::withhold).
    pub withheld: List<PhysRange, MAX_WITHHELD>,
    /// Bytes by which [`withhold`](super::withhold) has made RAM smaller.
    pub set_aside: u64,
    /// Whether there are registers for debug or trace of CPUs: in no window, and after [`withhold`](super::withhold) not by another node's either.
    pub has_debug: bool,
    /// Enabled CPUs in the tree's order, at least one (DTSpec §3.8; Linux `arm/cpus.yaml`).
    pub cpus: List<Cpu, MAX_CPUS>,
    /// Enabled CPUs beyond [`MAX_CPUS`]: left alone, worth a warning.
    pub cpus_ignored: u32,
    /// Power firmware, where there is one (Linux `arm/psci.yaml`).
    pub psci: Option<Psci>,
    /// The interrupt controller; always `Some` after [`describe`](super::describe) succeeded.
    pub gic: Option<Gic>,
    /// Where `stdout-path` points, if the core can drive it; `None` is worth a warning.
    pub console: Option<Console>,
    /// What the boot loader left in `/chosen` (DTSpec §3.6).
    pub chosen: Chosen,
    /// What the host may reach besides RAM: whole pages, sorted, merged. No RAM, no GICH, no GICV.
    pub windows: List<PhysRange, MAX_WINDOWS>,
    /// Enabled system MMUs, byte-exact. They also stand in [`windows`](Self::windows), until [`take_smmus`](Self::take_smmus).
    pub smmus: List<Smmu, 16>,
    /// Where devices send their interrupts to: the page of each ITS with GITS_TRANSLATER and of each GICv2m frame with
    /// MSI_SETSPI_NS, in the tree's order.
    pub doorbells: List<PhysRange, 16>,
    /// Registers of devices that are known to reach memory beside every SMMU, disabled SMMUs among them: whole pages, sorted, merged. They also stand in
    /// [`windows`](Self::windows), until [`take_smmus`](Self::take_smmus).
    pub beside_smmus: List<PhysRange, 32>,
    /// The GIC, or one of its ITSs, does not look into the CPUs' caches (`dma-noncoherent`; Linux `arm,gic-v3.yaml`), whatever its registers say.
    pub gic_incoherent: bool,
    /// Whether a device or a bus stands behind an SMMU (`iommus`, `iommu-map`).
    pub smmus_serve: bool,
    /// The power manager of the Raspberry Pi (`brcm,bcm2835-pm`): reset and power-off without PSCI.
    pub bcm_power: Option<Pa>,
    /// The architected timer's node (Linux `arm,arch_timer.yaml`).
    pub timer: Option<Timer>,
}

impl MachineDescription {
    /// Nothing known yet. No constant, which would travel in the image with all of its unused places: 11.8 KiB.
    pub fn empty() -> Self {
        Self {
            ram: List::new(NO_RANGE),
            reserved: List::new(Reserved { range: NO_RANGE, no_map: false, drivers: false, phandle: None }),
            withheld: List::new(NO_RANGE),
            set_aside: 0,
            has_debug: false,
            cpus: List::new(Cpu { mpidr: Mpidr(0), enable_method: EnableMethod::None }),
            cpus_ignored: 0,
            psci: None,
            gic: None,
            console: None,
            chosen: Chosen::empty(),
            windows: List::new(NO_RANGE),
            smmus: List::new(Smmu { version: SmmuVersion::V3, range: NO_RANGE, coherent: false }),
            doorbells: List::new(NO_RANGE),
            beside_smmus: List::new(NO_RANGE),
            gic_incoherent: false,
            smmus_serve: false,
            bcm_power: None,
            timer: None,
        }
    }

    /// From now on the core drives all SMMUs: their registers, and those of every device that reaches memory beside them, are
    /// no longer the host's. Goes with [`HostEdits::smmus_taken`](super::HostEdits::smmus_taken).
    ///
    /// # Errors
    /// [`Reason::TooMany`](super::Reason::TooMany) if what is left are more windows than there is room for.
    pub fn take_smmus(&mut self) -> Result<(), DeviceTreeError> {
        let Self { windows, smmus, beside_smmus, .. } = self;
        for range in smmus.iter().map(|smmu| smmu.range).chain(beside_smmus.iter().copied()) {
            windows::cut(windows, range)?;
        }
        Ok(())
    }

    /// `page` is no longer the host's to reach.
    ///
    /// # Errors
    /// [`Reason::TooMany`](super::Reason::TooMany) if what is left are more windows than there is room for.
    pub fn take_window(&mut self, page: PhysRange) -> Result<(), DeviceTreeError> {
        Ok(windows::cut(&mut self.windows, page)?)
    }

    /// The seed that the boot loader chose is the core's alone, or it is none: it stands in the boot loader's blob at `blob` too, where the host could read it and compute what
    /// the core makes of it. `erase` overwrites all of the blob and says whether nothing of it is left. Without asking it a seed is dropped whose blob is no RAM, or has parts
    /// of something that the host needs. Whether there is no seed that had to be dropped.
    #[must_use]
    pub fn keep_seed(&mut self, blob: PhysRange, erase: impl FnOnce() -> bool) -> bool {
        let Chosen { initrd, modules, rng_seed, .. } = &mut self.chosen;
        let is_needed = |range: PhysRange| range.overlaps(blob);
        let needed = initrd.is_some_and(is_needed) || modules.iter().any(|module| is_needed(module.range));
        if rng_seed.is_none() {
            return true;
        }
        let is_kept = !needed && self.ram.iter().any(|bank| bank.contains_range(blob)) && erase();
        if !is_kept {
            *rng_seed = None;
        }
        is_kept
    }
}

/// A range that is not plainly the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reserved {
    /// Its bytes.
    pub range: PhysRange,
    /// Whether it must not even be mapped (`no-map`).
    pub no_map: bool,
    /// Whether it is a driver's: it has `compatible`, or, after [`withhold`](super::withhold), a device names it.
    pub drivers: bool,
    /// What a device names it by.
    pub phandle: Option<u32>,
}

/// Affinity fields of MPIDR_EL1, nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mpidr(u64);

impl Mpidr {
    /// The affinity fields of `raw`; other bits of the register are dropped.
    pub const fn new(raw: u64) -> Self {
        Self(raw & MPIDR_AFFINITY)
    }

    /// The fields, in the register's places.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Mpidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpidr({:#x})", self.0)
    }
}

/// A CPU that the tree does not disable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// Its `reg`: which CPU it is.
    pub mpidr: Mpidr,
    /// How it is started.
    pub enable_method: EnableMethod,
}

/// How a CPU is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnableMethod {
    /// By CPU_ON of the firmware.
    Psci,
    /// By writing its entry point to the doubleword at `release` and SEV.
    SpinTable {
        /// `cpu-release-addr`.
        release: Pa,
    },
    /// No method, or none that arm64 knows: only the boot CPU can be used then.
    None,
}

/// The instruction that calls the firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsciConduit {
    /// SMC.
    Smc,
    /// HVC: something else already sits at EL2, or the tree is not meant for EL2.
    Hvc,
}

/// Power firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Psci {
    /// How it is called.
    pub conduit: PsciConduit,
}

/// The interrupt controller's frames, byte-exact, as the CPU addresses them.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, in a static")]
pub enum Gic {
    /// GICv2 (Linux `arm,gic.yaml`).
    V2 {
        /// Distributor.
        gicd: PhysRange,
        /// CPU interface.
        gicc: PhysRange,
        /// Virtual interface control: the core's alone.
        gich: Option<PhysRange>,
        /// Virtual CPU interface: for VMs.
        gicv: Option<PhysRange>,
    },
    /// GICv3 or v4 (Linux `arm,gic-v3.yaml`).
    V3 {
        /// Distributor.
        gicd: PhysRange,
        /// Redistributor regions, at least one.
        redistributors: List<PhysRange, 16>,
        /// Distance in bytes from one redistributor to the next, if it is not the architecture's.
        stride: Option<u64>,
        /// Legacy CPU interface.
        gicc: Option<PhysRange>,
        /// Legacy virtual interface control: the core's alone.
        gich: Option<PhysRange>,
        /// Legacy virtual CPU interface.
        gicv: Option<PhysRange>,
        /// Interrupt translation services.
        its: List<PhysRange, 16>,
    },
}

impl Gic {
    /// The frames that the host must not reach: GICH and GICV.
    pub fn virtualization_frames(&self) -> impl Iterator<Item = PhysRange> {
        let (Self::V2 { gich, gicv, .. } | Self::V3 { gich, gicv, .. }) = *self;
        gich.into_iter().chain(gicv)
    }
}

/// What the boot loader chose.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// Command line.
    pub bootargs: Option<TextRange>,
    /// Initial RAM disk, byte-exact.
    pub initrd: Option<PhysRange>,
    /// Random bytes for whoever boots (`rng-seed`): the core keeps them to itself ([`keep_seed`](MachineDescription::keep_seed)).
    pub rng_seed: Option<[u8; 32]>,
    /// Boot modules in the tree's order (QEMU's guest-loader; the multiboot binding of Xen).
    pub modules: List<BootModule, 8>,
    /// Public keys whose manifests of protected VMs count ([`KEY_PROPERTY`](crate::interface::boot::KEY_PROPERTY)).
    pub public_keys: List<PublicKey, MAX_KEYS>,
}

impl Chosen {
    fn empty() -> Self {
        Self {
            bootargs: None,
            initrd: None,
            rng_seed: None,
            modules: List::new(BootModule { kind: ModuleKind::Other, range: NO_RANGE, bootargs: None }),
            public_keys: List::new([0; 32]),
        }
    }
}

/// What a boot module is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModuleKind {
    /// `multiboot,kernel` or `xen,linux-zimage`.
    Kernel,
    /// `multiboot,ramdisk` or `xen,linux-initrd`.
    Ramdisk,
    /// Any other `multiboot,module`.
    Other,
}

/// A file that the boot loader put into memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootModule {
    /// What it is.
    pub kind: ModuleKind,
    /// Where it is, byte-exact.
    pub range: PhysRange,
    /// Its own command line.
    pub bootargs: Option<TextRange>,
}

/// Generation of a system MMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SmmuVersion {
    /// SMMUv1 or v2: `arm,smmu-v2`, `arm,mmu-500` and relatives.
    V2,
    /// `arm,smmu-v3`.
    V3,
}

/// A system MMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Smmu {
    /// Its generation.
    pub version: SmmuVersion,
    /// Its registers.
    pub range: PhysRange,
    /// Whether its accesses see what caches hold, as the node says (`dma-coherent`).
    pub coherent: bool,
}

/// The architected timer's interrupts, as the node names them.
#[derive(Clone, Copy, Debug)]
pub struct Timer {
    /// Cells of `interrupts`, in native byte order.
    pub cells: List<u32, 24>,
    /// Cells of one interrupt: `#interrupt-cells` of the interrupt controller.
    pub cells_per_interrupt: u32,
}
