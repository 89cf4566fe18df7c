//! The host's kernel and device tree: found, checked, put where the host can start with them. Boot CPU only.

use core::slice;

use super::boot_error::BootError;
use super::device_tree::{self, DeviceTree, HostEdits, List, MAX_WITHHELD, MachineDescription, ModuleKind};
use super::host_image::{
    BUNDLE_HEADER_OFFSET, BUNDLE_KERNEL_OFFSET, BundleHeader, HostImageError, IMAGE_HEADER_SIZE, ImageHeader,
};
use super::{entry, memory_plan, own_map};
use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SIZE, Pa, PhysRange};
use crate::abstract_machine::cpu;

/// The core's own memory.
#[derive(Clone, Copy)]
pub struct CoreMemory {
    /// The block that it was loaded to.
    pub block: PhysRange,
    /// The records of all pages.
    pub records: PhysRange,
    /// The SMMUs' table; empty where there is none.
    pub smmu_table: PhysRange,
    /// Data and stacks of the CPUs, where there are many; else empty.
    pub cpus: PhysRange,
}

impl CoreMemory {
    /// Number of its parts.
    pub const PARTS: usize = 4;

    /// All of it.
    pub const fn ranges(&self) -> [PhysRange; Self::PARTS] {
        [self.block, self.records, self.smmu_table, self.cpus]
    }
}

/// RAM, and what of it is spoken for.
pub struct Plan<'d> {
    ram: &'d [PhysRange],
    taken: List<PhysRange, 96>,
    /// The core's own memory, as far as it is placed.
    pub core: CoreMemory,
}

impl<'d> Plan<'d> {
    /// What is spoken for before the core takes anything: itself, reservations, initrd, boot modules.
    ///
    /// # Errors
    /// [`BootError::NotInRam`].
    pub fn new(description: &'d MachineDescription, layout: &entry::ImageLayout) -> Result<Self, BootError> {
        let block = PhysRange::between(layout.text.base(), layout.free.end());
        let ram: &[PhysRange] = &description.ram;
        if !ram.iter().any(|bank| bank.contains_range(block)) {
            return Err(BootError::NotInRam(block));
        }
        let nothing = PhysRange::default();
        let core = CoreMemory { block, records: nothing, smmu_table: nothing, cpus: nothing };
        let mut plan = Self { ram, taken: List::new(nothing), core };
        plan.take(block)?;
        for reserved in description.reserved.iter() {
            plan.take(reserved.range)?;
        }
        for range in description.chosen.initrd.into_iter().chain(description.chosen.modules.iter().map(|m| m.range)) {
            plan.take(range)?;
        }
        Ok(plan)
    }

    /// Marks `range` as spoken for.
    ///
    /// # Errors
    /// [`BootError::NoRoomFor`], if there are too many such ranges.
    pub fn take(&mut self, range: PhysRange) -> Result<(), BootError> {
        self.taken.push(range).map_err(|_| BootError::NoRoomFor("the list of reserved memory", 0))
    }

    /// Finds the highest free `size` bytes for `what`, aligned to `align`, and marks them.
    ///
    /// # Errors
    /// [`BootError::NoRoomFor`].
    pub fn place(&mut self, what: &'static str, size: u64, align: u64) -> Result<PhysRange, BootError> {
        let found = memory_plan::find_top(self.ram, &self.taken, size, align);
        let range = found.ok_or(BootError::NoRoomFor(what, size))?;
        self.take(range)?;
        Ok(range)
    }
}

/// The host's kernel, where it will run.
pub struct Kernel {
    /// Its first byte.
    pub at: Pa,
    bootargs: Option<device_tree::TextRange>,
    initrd: Option<PhysRange>,
}

/// Finds the kernel, checks it, and moves it if it cannot run where it lies.
///
/// # Errors
/// [`BootError`].
pub fn find_kernel(description: &MachineDescription, base: Pa, plan: &mut Plan<'_>) -> Result<Kernel, BootError> {
    let header_page =
        PhysRange::between(Pa::new(base.raw() + BUNDLE_HEADER_OFFSET), Pa::new(base.raw() + BUNDLE_KERNEL_OFFSET));
    // SAFETY: the last page of the core's block is mapped, and nothing writes it.
    let header_bytes = unsafe { slice::from_raw_parts(header_page.base().raw() as *const u8, PAGE_SIZE as usize) };
    let modules = &description.chosen.modules;
    let ramdisk = modules.iter().find(|module| module.kind == ModuleKind::Ramdisk).map(|module| module.range);
    let (file, bundle, bootargs) = match BundleHeader::parse(header_bytes)? {
        Some(header) => {
            let at = Pa::new(base.raw() + BUNDLE_KERNEL_OFFSET);
            let file = PhysRange::new(at, header.kernel_size).ok_or(BootError::Image(HostImageError::Missing))?;
            (file, Some(header), None)
        }
        None => {
            let module =
                modules.iter().find(|module| module.kind == ModuleKind::Kernel).ok_or(HostImageError::Missing)?;
            (module.range, None, module.bootargs)
        }
    };
    if !plan.ram.iter().any(|bank| bank.contains_range(file)) {
        return Err(HostImageError::NotInRam(file).into());
    }
    let header = own_map::with_bytes(file, |bytes| -> Result<ImageHeader, HostImageError> {
        bundle.map_or(Ok(()), |bundle| bundle.check(bytes))?;
        ImageHeader::parse(file.base(), bytes.get(..IMAGE_HEADER_SIZE).unwrap_or(bytes))
    })??;
    let at = settle(&header, file, plan)?;
    Ok(Kernel { at, bootargs, initrd: ramdisk })
}

/// Where the kernel runs: where it lies, if alignment and room allow it, else the top of free RAM.
fn settle(header: &ImageHeader, file: PhysRange, plan: &mut Plan<'_>) -> Result<Pa, BootError> {
    let size = header.memory_size(file.size());
    let here = PhysRange::new(file.base(), size);
    // A module is in the list of what is taken; for itself that is no obstacle.
    let others = |range: &PhysRange| *range != file;
    if let Some(here) = here
        && header.may_run_at(file.base())
        && plan.ram.iter().any(|bank| bank.contains_range(here))
        && !plan.taken.iter().filter(|range| others(range)).any(|range| range.overlaps(here))
    {
        plan.take(here)?;
        return Ok(file.base());
    }
    let no_room = BootError::Image(HostImageError::NoRoom { size });
    plan.take(file)?;
    let room = plan.place("the host kernel", size.saturating_add(header.text_offset), BLOCK_2M).map_err(|_| no_room)?;
    let target = PhysRange::between(Pa::new(room.base().raw() + header.text_offset), room.end());
    log::info!("host kernel moved from {} to {}", file.base(), target.base());
    own_map::with_bytes(file, |source| {
        own_map::with_bytes_mut(target, |bytes| bytes.iter_mut().zip(source).for_each(|(to, from)| *to = *from))
    })??;
    cpu::maintenance::invalidate_icache_all();
    Ok(target.base())
}

/// What besides the CPUs is confined on this machine.
#[derive(Clone, Copy)]
pub struct Confined {
    /// Devices: the core drives the SMMUs.
    pub devices: bool,
    /// The GIC: the core stands before the registers that say where its tables are.
    pub gic: bool,
}

/// Writes the host's device tree into the host's memory.
///
/// # Errors
/// [`BootError`].
pub fn hand_over_tree(
    tree: &DeviceTree<'_>,
    description: &MachineDescription,
    kernel: &Kernel,
    core_memory: &CoreMemory,
    confined: Confined,
    plan: &mut Plan<'_>,
) -> Result<Pa, BootError> {
    let mut holes = List::<_, { CoreMemory::PARTS + MAX_WITHHELD }>::new(PhysRange::default());
    for range in core_memory.ranges().into_iter().chain(description.withheld.iter().copied()) {
        holes.push(range).map_err(|_| BootError::NoRoomFor("the list of reserved memory", 0))?;
    }
    let edits = HostEdits {
        core_memory: &holes,
        initrd: kernel.initrd,
        bootargs: kernel.bootargs.map(|range| tree.text(range)),
        smmus_taken: confined.devices,
        gic_taken: confined.gic,
        seed: cpu::entropy::draw_bytes(),
        version: env!("CARGO_PKG_VERSION"),
    };
    if kernel.initrd.or(description.chosen.initrd).is_none() {
        log::warn!("/chosen names no initrd: the host must find its root file system by itself");
    }
    let size = (device_tree::host_tree_size(tree, &edits) as u64).div_ceil(PAGE_SIZE) * PAGE_SIZE;
    let place = plan.place("the host's device tree", size, PAGE_SIZE)?;
    own_map::with_bytes_mut(place, |bytes| {
        device_tree::host_device_tree(tree, description, &edits, bytes).map(|_| ())
    })??;
    Ok(place.base())
}
