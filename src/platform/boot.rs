//! The order of boot: from the boot loader's registers to the host's first instruction.
//!
//! Own map and page pool (the core's house), device tree and console, the host's kernel (found and checked), data of
//! all CPUs, who owns each page (the core's own first), PSCI, the host's device tree, the host.
//!
//! Whatever is missing or broken ends here with one line that names it.

use core::slice;

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use log::LevelFilter;
use spin::Once;

use super::boot_error::BootError;
use super::console::Console;
use super::device_tree::{self, DeviceTree, Gic, MachineDescription};
use super::host_image::BUNDLE_HEADER_OFFSET;
use super::host_start::{self, Confined, CoreMemory, Plan};
use super::own_map::{self, MapError};
use super::psci::{Leave, SetUp};
use super::{cpus, entry, failure, gic_tables, logger, smmu, window};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SIZE, Pa, PhysRange, Va, VmId};
use crate::abstract_machine::cpu::{self, Cpu, el2, halt, pool};
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::{Hypercall, TrapFrame};
use crate::memory::Memory;
use crate::memory::mem_region::MemRegions;
use crate::memory::memory_ops;
use crate::memory::page_manager::{BlockRecord, PageRecord, S2Pages};
use crate::mmio::Mediated;
use crate::npt::descriptor::CoreAccess;
use crate::npt::pt_alloc;
use crate::npt::{self, Npts, Shape, TableOwner, VM_SLOTS};
use crate::trap::{Core, trap_handler};
use crate::vm;

/// Largest device tree that fits into the page pool.
pub const MAX_TREE: usize = 512 * 1024;

static CORE: Once<Core<Cpu>> = Once::new();
static CORE_MEMORY: Once<CoreMemory> = Once::new();

/// The boot CPU, its MMU on with the map of boot: `dtb` is what x0 held, `base` where the image lies, `entered_at` the
/// exception level.
pub extern "C" fn primary_main(dtb: u64, base: u64, entered_at: u64) -> ! {
    entry::early_traps();
    match start(Pa::new(dtb), Pa::new(base), entered_at) {
        Ok(host) => {
            log::info!(
                "host kernel at {}, device tree at {}; the counter stands at {} ({} Hz)",
                host.entry,
                host.dtb,
                CNTPCT_EL0.get(),
                CNTFRQ_EL0.get()
            );
            match cpu::all().first() {
                Some(boot_cpu) => entry::start_host(boot_cpu, host.entry.raw(), host.dtb.raw()),
                None => halt::stay(),
            }
        }
        Err(error) => {
            log::error!("cannot start: {error}");
            let _ = halt::begin();
            halt::stay()
        }
    }
}

/// Why boot/entry.S cannot go on.
#[repr(u64)]
pub enum Unfit {
    /// Entered at EL1.
    El1 = 0,
    /// EL2 has E2H fixed to 1.
    E2h = 1,
    /// The image is at no multiple of 2 MiB.
    Place = 2,
}

/// boot/entry.S cannot go on, for the reason `why` ([`Unfit`]): the MMU is off, so nothing that needs exclusive accesses may be used; say so and stop.
pub extern "C" fn refuse(dtb: u64, why: u64) {
    const EL1: u64 = Unfit::El1 as u64;
    const E2H: u64 = Unfit::E2h as u64;
    let why: &[u8] = match why {
        EL1 => b"entered at EL1, but a hypervisor needs EL2 (QEMU: -M virt,virtualization=on)",
        E2H => b"this CPU's EL2 cannot be without VHE (HCR_EL2.E2H is fixed to 1), which the core needs",
        _ => b"not loaded to a multiple of 2 MiB, as its header asks for",
    };
    let Some(description) = early_description(Pa::new(dtb)) else { return };
    if let Some(console) = description.console.and_then(|device| {
        // SAFETY: the device tree says that the registers are there; the MMU is off, so all of it is device memory.
        unsafe { Console::new(device, Va::new(device.base().raw())) }
    }) {
        [b"corevisor: cannot start: ", why, b"\n"].into_iter().for_each(|text| console.write(text));
    }
}

/// Reads the device tree with the MMU off: no locks, no pool; the rest of the core's block serves as buffer.
pub fn early_description(dtb: Pa) -> Option<MachineDescription> {
    let free = entry::image_layout().free;
    if dtb.raw() == 0 || !dtb.is_aligned(8) {
        return None;
    }
    // SAFETY: with the MMU off every address can be read; the blob's header says how long it is, and it is the boot
    // loader's promise that x0 points to one. Nothing else uses the rest of the core's block.
    unsafe {
        let header = slice::from_raw_parts(dtb.raw() as *const u8, HEADER_LOOKED_AT as usize);
        let size = device_tree::total_size(header).ok()?;
        let bytes = slice::from_raw_parts(dtb.raw() as *const u8, size);
        let buffer = slice::from_raw_parts_mut(free.base().raw() as *mut u8, MAX_TREE);
        let tree = DeviceTree::normalise(bytes, buffer).ok()?;
        let mut description = MachineDescription::empty();
        let _ = device_tree::describe(&tree, &mut description);
        Some(description)
    }
}

/// What the host starts with.
struct HostStart {
    entry: Pa,
    dtb: Pa,
}

fn start(dtb: Pa, base: Pa, entered_at: u64) -> Result<HostStart, BootError> {
    let layout = entry::image_layout();
    let pool_range = PhysRange::between(layout.free.base(), Pa::new(base.raw() + BUNDLE_HEADER_OFFSET));
    // SAFETY: the rest of the core's block, which nothing uses; the page of the bundle's header stays out.
    unsafe { pool::init(pool_range, pool_range) };
    own_map::init(&layout)?;

    let (tree, description, blob) = read_tree(dtb)?;
    open_console(&tree, description)?;
    log::info!("version {}, at {base}, entered at EL{entered_at}", env!("CARGO_PKG_VERSION"));
    // Before anything is placed in memory: where the blob is, is free RAM by now.
    if !description.keep_seed(blob, || erase(blob)) {
        log::warn!("rng-seed is not used: the device tree at {blob} cannot be erased, so the host could read it");
    }
    if description.cpus_ignored != 0 {
        log::warn!("{} CPUs are more than the core drives and stay off", description.cpus_ignored);
    }

    let smmus = smmu::take(description)?;
    let mediated = gic_tables::mediate(description)?;
    let description: &'static MachineDescription = description;
    let mut plan = Plan::new(description, &layout)?;
    let kernel = host_start::find_kernel(description, base, &mut plan)?;
    // Where the kernel lies is known: what is placed now may be anywhere else.
    let cpus = cpus::allocate(description, &mut plan)?;
    let has_its = matches!(description.gic, Some(Gic::V3 { its, .. }) if mediated.is_some() && !its.is_empty());
    let confined = Confined { devices: smmus.is_some(), gic: mediated.is_some() };
    let set_up = SetUp { smmus: smmus.is_some(), its: has_its };
    let core_memory = build_core(description, smmus, mediated, &mut plan)?;
    open_windows(description, core_memory)?;
    start_vgic(description)?;
    ready_for_host();
    cpus::start_psci(description, cpus, set_up)?;
    let dtb = host_start::hand_over_tree(&tree, description, &kernel, &core_memory, confined, &mut plan)?;
    log::info!(
        "{} CPUs, {} MiB of RAM; the core keeps {} KiB",
        cpus.len(),
        (description.ram.iter().map(|bank| bank.size()).sum::<u64>() + description.set_aside) >> 20,
        core_memory.ranges().iter().map(|range| range.size()).sum::<u64>() >> 10,
    );
    if description.set_aside != 0 {
        log::info!("firmware and drivers keep {} KiB, as the device tree says", description.set_aside >> 10);
    }
    Ok(HostStart { entry: kernel.at, dtb })
}

// ---- device tree and console ----------------------------------------------------------------------------------------

/// A value in pages of the pool that is never given back.
pub fn in_pool<T>(value: T) -> Result<&'static mut T, BootError> {
    let order = (size_of::<T>() as u64).div_ceil(PAGE_SIZE).next_power_of_two().ilog2();
    let place = pool::alloc(order).ok_or(BootError::OutOfTables)?.raw() as *mut T;
    // SAFETY: fresh pages, large enough and page aligned, that nobody else has.
    unsafe {
        place.write(value);
        Ok(&mut *place)
    }
}

/// `count` values in pages of the pool that are never given back, made one by one: all together they have no place on a stack.
fn many_in_pool<T>(count: usize, new: fn() -> T) -> Result<&'static [T], BootError> {
    let order = ((count * size_of::<T>()) as u64).div_ceil(PAGE_SIZE).next_power_of_two().ilog2();
    let place = pool::alloc(order).ok_or(BootError::OutOfTables)?.raw() as *mut T;
    for n in 0..count {
        // SAFETY: fresh pages, large enough for `count` values and page aligned, that nobody else has.
        unsafe { place.add(n).write(new()) };
    }
    // SAFETY: the same pages, every value written above.
    Ok(unsafe { slice::from_raw_parts(place, count) })
}

/// Overwrites the boot loader's blob, which nobody needs any more, in memory itself. Whether nothing of it is left there.
fn erase(blob: PhysRange) -> bool {
    let written = own_map::with_bytes_mut(blob, |bytes| {
        bytes.fill(0);
        // Dropped from the caches too: what is read back comes from memory.
        cpu::maintenance::clean_and_invalidate_to_poc(blob.page_cover());
    });
    let is_zero = |bytes: &[u8]| {
        // SAFETY: all bytes are numbers. QEMU's blob has a megabyte: word by word that is a tenth of the instructions.
        let (head, words, tail) = unsafe { bytes.align_to::<u64>() };
        words.iter().all(|word| *word == 0) && head.iter().chain(tail).all(|byte| *byte == 0)
    };
    written.is_ok() && own_map::with_bytes(blob, is_zero) == Ok(true)
}

/// Bytes at the start of the boot loader's blob that are looked at for its size: its header has 40.
const HEADER_LOOKED_AT: u64 = 64;

/// What the boot loader's blob says, and where it is.
type Read = (DeviceTree<'static>, &'static mut MachineDescription, PhysRange);

/// Maps the boot loader's blob, checks it and reads it.
fn read_tree(dtb: Pa) -> Result<Read, BootError> {
    // What says how long the blob is stands in its first words.
    let header = PhysRange::new(dtb, HEADER_LOOKED_AT).ok_or(BootError::TreeTooLarge(HEADER_LOOKED_AT as usize))?;
    let size = own_map::with_bytes(header, device_tree::total_size)??;
    let blob = PhysRange::new(dtb, size as u64).ok_or(BootError::TreeTooLarge(size))?;
    let tree = own_map::with_bytes(blob, |bytes| {
        let needed = device_tree::buffer_size(bytes)?;
        if needed > MAX_TREE {
            return Err(BootError::TreeTooLarge(needed));
        }
        let order = (needed as u64).div_ceil(PAGE_SIZE).next_power_of_two().ilog2();
        let buffer = pool::alloc(order).ok_or(BootError::OutOfTables)?.raw() as *mut u8;
        // SAFETY: fresh pages that nobody else has and that are never given back.
        let buffer = unsafe { slice::from_raw_parts_mut(buffer, needed) };
        Ok(DeviceTree::normalise(bytes, buffer)?)
    })??;
    let description = in_pool(MachineDescription::empty())?;
    let read = device_tree::describe(&tree, description);
    if read.is_err() {
        // The console may be known already: then the error can be told.
        let _ = open_console(&tree, description);
    }
    read?;
    let layout = entry::image_layout();
    let block = PhysRange::between(layout.text.base(), layout.free.end());
    device_tree::withhold(&tree, description, &[blob, block])?;
    Ok((tree, description, blob))
}

fn open_console(tree: &DeviceTree<'_>, description: &MachineDescription) -> Result<(), MapError> {
    let bootargs = description.chosen.bootargs.map_or("", |range| tree.text(range));
    let level = logger::level_from_bootargs(bootargs);
    let mut console = None;
    if let Some(device) = description.console {
        let registers = PhysRange::between(device.base(), Pa::new(device.base().raw() + device.size()));
        own_map::map(registers, CoreAccess::Device)?;
        // SAFETY: the device tree says that the registers are there; they stay mapped.
        console = unsafe { Console::new(device, Va::new(device.base().raw())) };
    }
    // SAFETY: only the boot CPU runs, and it is not logging.
    unsafe { logger::init(console, level.as_ref().ok().copied().flatten().unwrap_or(logger::DEFAULT_LEVEL)) };
    logger::enable_locking();
    if let Err(unknown) = level {
        log::warn!("corevisor.log={}: no such level (off, error, warn, info, debug, trace)", unknown.0);
    }
    Ok(())
}

// ---- memory ---------------------------------------------------------------------------------------------------------

/// Bytes for records of 2 MiB blocks that the pool spares: those of 16 GiB.
const BLOCKS_IN_POOL: u64 = 0x1_0000;

/// The core itself: the records of all pages, the host's empty table, and its own memory taken from the host.
fn build_core(
    description: &MachineDescription,
    smmus: Option<smmu::Taken>,
    mediated: Option<Mediated>,
    plan: &mut Plan<'_>,
) -> Result<CoreMemory, BootError> {
    let shape = Shape::new(el2::pa_bits());
    let regions = in_pool(MemRegions::new())?;
    add_regions(regions, description, shape)?;
    let pages_bytes = regions.slots() * size_of::<PageRecord>() as u64;
    let blocks_bytes = regions.blocks() * size_of::<BlockRecord>() as u64;
    // Those of blocks need no 2 MiB of their own on most machines, and more than the pool has on very large ones.
    let are_few = blocks_bytes <= BLOCKS_IN_POOL;
    let records_size = (pages_bytes + if are_few { 0 } else { blocks_bytes }).div_ceil(BLOCK_2M) * BLOCK_2M;
    let records = plan.place("the records of all pages", records_size, BLOCK_2M)?;
    plan.core.records = records;
    own_map::map(records, CoreAccess::ReadWrite)?;
    cpu::maintenance::zero(records);
    let blocks = if are_few {
        pool::alloc(blocks_bytes.div_ceil(PAGE_SIZE).next_power_of_two().ilog2()).ok_or(BootError::OutOfTables)?
    } else {
        Pa::new(records.base().raw() + pages_bytes)
    };
    // SAFETY: free RAM that the plan gave to the core, and fresh pages of the pool or what of that RAM lies behind the pages' records; mapped, zeroed, large enough and
    // aligned for records of 8 bytes; zero is a valid value of both.
    let pages = unsafe {
        S2Pages::new(
            slice::from_raw_parts_mut(records.base().raw() as *mut PageRecord, regions.slots() as usize),
            slice::from_raw_parts_mut(blocks.raw() as *mut BlockRecord, regions.blocks() as usize),
        )
    };
    let host = pt_alloc::alloc_root(&Cpu, TableOwner::Stage2(VmId::HOST), shape)?;
    halt::set_host_root(host.vttbr(), 1 << shape.root_order());
    el2::set_host_stage2(host.vttbr(), shape);
    let regions = core::mem::take(regions);
    let vms = many_in_pool(vm::slots(), vm::no_vm)?;
    let tables = many_in_pool(VM_SLOTS, npt::no_vm)?;
    let mut spt = None;
    if let Some(smmus) = smmus {
        let (memory, table) = smmu::build_table(smmus, description, &regions, shape, plan)?;
        plan.core.smmu_table = memory;
        spt = Some(table);
    }
    let memory = Memory::new(Npts::new(Cpu, host, tables), regions, pages, spt);
    let core = CORE.call_once(|| Core::new(memory, vms).with_mediated(mediated));
    core.vms().set_keys(description.chosen.public_keys.iter().copied());
    for range in plan.core.ranges() {
        memory_ops::protect_el2_mem(core.memory(), range)?;
    }
    CORE_MEMORY.call_once(|| plan.core);
    // The core's own memory is not in the table any more.
    if let (Some(smmus), Some(spt)) = (smmus, core.memory().spt()) {
        smmu::start(smmus, description, spt)?;
    }
    Ok(plan.core)
}

/// What the machine needs for VMs: windows into RAM, and randomness.
fn open_windows(description: &'static MachineDescription, core: CoreMemory) -> Result<(), BootError> {
    window::init(&description.ram, core, own_map::window_table()?);
    if let Some(seed) = &description.chosen.rng_seed {
        cpu::entropy::seed(seed);
    }
    Ok(())
}

/// The GIC's virtual CPU interface, if there is one that VMs can use.
fn start_vgic(description: &MachineDescription) -> Result<(), BootError> {
    match description.gic {
        Some(Gic::V2 { gich: Some(gich), gicv, .. }) => {
            own_map::map(gich, CoreAccess::Device)?;
            cpu::vgic::use_v2(gich, gicv);
        }
        Some(Gic::V3 { .. }) if el2::enable_gic_registers() => cpu::vgic::use_v3(),
        _ => log::warn!("the GIC has no virtual CPU interface: VMs get their interrupts from the host alone"),
    }
    Ok(())
}

/// RAM and device windows in ascending order; what lies beyond the host's address size does not exist for it.
fn add_regions(regions: &mut MemRegions, description: &MachineDescription, shape: Shape) -> Result<(), BootError> {
    let limit = Pa::new(1 << shape.ia_bits());
    let mut ram = description.ram.iter().peekable();
    let mut windows = description.windows.iter().peekable();
    loop {
        let ram_first = match (ram.peek(), windows.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(bank), Some(window)) => bank.base() < window.base(),
        };
        let next = if ram_first { ram.next() } else { windows.next() };
        let Some(range) = next else { return Ok(()) };
        if range.end() > limit {
            log::warn!("{range} is beyond the {} bits of this CPU and left out", shape.ia_bits());
        } else if ram_first {
            regions.push_ram(*range)?;
        } else {
            regions.push_device(*range)?;
        }
    }
}

/// Makes EL2 of this CPU ready for the host. One that cannot do what the others rely on stays off.
pub fn ready_for_host() {
    let Some((vttbr, shape)) = el2::host_stage2() else { halt::stay() };
    if let Some(why) = el2::unfit(shape) {
        stay_off(why);
    }
    el2::init_for_host(vttbr, shape);
    if !cpu::vgic::has_list_registers() {
        stay_off("it has fewer list registers than the boot CPU");
    }
    if !cpu::fpsimd::prepare() {
        stay_off("there is no memory for its vectors");
    }
    el2::forget_registers();
}

/// This CPU never gets the host.
fn stay_off(why: &str) -> ! {
    log::error!("CPU with MPIDR {:#x} stays off: {why}", el2::affinity());
    halt::stay()
}

// ---- while the host runs --------------------------------------------------------------------------------------------

/// A synchronous exception of the host: from boot/vectors.S.
pub extern "C" fn trap_lower_sync(frame: &mut TrapFrame) {
    match CORE.get() {
        Some(core) => trap_handler::host_trap_handler(core, frame),
        None => failure::unexpected_trap(frame),
    }
}

/// A hypercall of the host, with its x0 to x17: from boot/vectors.S.
pub extern "C" fn trap_lower_hvc(args: &mut Hypercall) {
    #[cfg(feature = "test-hooks")]
    let asked = [args[0], args[1]];
    #[cfg(feature = "test-hooks")]
    failure::provoke::if_asked(args);
    let Some(core) = CORE.get() else { unreachable!("a hypercall, and there is no core yet") };
    trap_handler::host_hvc_handler(core, args);
    #[cfg(feature = "test-hooks")]
    failure::provoke::judge(core.memory(), &asked);
}

/// An SError while the host ran: from boot/vectors.S.
pub extern "C" fn trap_lower_serror(frame: &mut TrapFrame) {
    match CORE.get() {
        Some(core) => trap_handler::host_serror_handler(core),
        None => failure::unexpected_trap(frame),
    }
}

/// How long other CPUs get to leave VMs before memory is scrubbed, in parts of a second: an exit takes microseconds.
const PARTING: u64 = 20;

/// Before the machine's run ends, if `leave` does that: all that was a VM's is zero in memory, which keeps it over a reset, and whoever comes next, this core's next life too, gives it
/// to a host. Nothing of host or VMs runs any more then. Besides, what was counted, at debug level.
pub fn end_run(leave: &Leave) -> bool {
    if !matches!(leave, Leave::System(_) | Leave::WarmReset) {
        return false;
    }
    log::info!("host ends the run: {leave:?}");
    // CPUs that stay from here on do so because of what begins now.
    let before = halt::staying();
    if !halt::begin() {
        // Another CPU was faster, or the core has failed.
        halt::stay();
    }
    if let (Some(core), Some(own)) = (CORE.get(), CORE_MEMORY.get()) {
        let scrubbed = memory_ops::scrub_for_end(core.memory(), &own.ranges(), |vms| stop_others(vms, before));
        if scrubbed != 0 {
            log::info!("{scrubbed} pages that were not the host's are zero");
        }
    }
    #[cfg(feature = "test-hooks")]
    log::info!("the oracle found nothing wrong, calls: {}", failure::provoke::judged());
    if log::max_level() >= LevelFilter::Debug {
        for event in Event::ALL {
            log::debug!("{}: {}", event.name(), Cpu.counted(event));
        }
    }
    true
}

/// Host and VMs lose their memory on all CPUs. Where there are VMs, waits until the CPUs that run are in the core for good, besides `before`; for a bounded time: one that sleeps
/// stays asleep.
fn stop_others(vms: bool, before: usize) {
    halt::stop_others();
    let deadline = CNTPCT_EL0.get() + CNTFRQ_EL0.get() / PARTING;
    let others = cpus::running() - 1;
    halt::wait_until(deadline, || !vms || halt::staying() - before >= others);
}

/// The host switched the machine off, and nothing can: all CPUs stop here.
pub fn halted_by_host() -> ! {
    log::info!("this board has no power-off; it may be switched off now");
    let _ = halt::begin();
    halt::stop_others();
    halt::stay()
}
