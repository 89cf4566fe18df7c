//! From the first instruction to the last: the machine is started, the archive's `config` is done, the machine goes off.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use corevisor_interface::boot::OLD_MANIFEST_MAGIC;
use corevisor_interface::calls::INTERFACE_VERSION;
use corevisor_interface::guest::psci::SYSTEM_OFF;
use kserv_model::archive::Archive;
use kserv_model::config::{self, Kind, Line, VmConfig};
use kserv_model::image;
use kserv_model::layout::DTB_BASE;
use kserv_model::vm::Ended;
use spin::Once;

use crate::arch::call::{Conduit, psci};
use crate::arch::entry::MAX_CPUS;
use crate::arch::uart::Uart;
use crate::arch::{cpu, heap, memory, mmu, registers};
use crate::calls::{self, CoreInfo};
use crate::console;
use crate::guest::{Failure, Guest, Image, Plan};
use crate::machine::Machine;
use crate::{checks, demo, jobs, pages, say, scheduler};

/// One part in so many of RAM is the heap's.
const HEAP_SHARE: u64 = 64;

static CONDUIT: Once<Conduit> = Once::new();

/// The end that is a failure: one line, and the machine goes off.
pub fn fail(text: fmt::Arguments<'_>) -> ! {
    console::last_line(format_args!("error: {text}"));
    off()
}

fn off() -> ! {
    psci(CONDUIT.get().copied().unwrap_or(Conduit::Smc), SYSTEM_OFF, [0; 3]);
    loop {
        cpu::wait();
    }
}

/// The first CPU comes here with its translation on and a first heap.
pub fn start(device_tree: u64) -> ! {
    let blob = memory::device_tree(device_tree).unwrap_or_default();
    let Some(machine) = Machine::read(blob) else { fail(format_args!("there is no device tree")) };
    CONDUIT.call_once(|| machine.conduit);
    if let Err(text) = mmu::start(&machine.ram) {
        fail(format_args!("{text}"));
    }
    if let Some((kind, base)) = machine.uart {
        console::start(Uart::new(kind, base));
    }
    share_memory(&machine);
    let Some(gic) = machine.gic else { fail(format_args!("the device tree names no interrupt controller")) };
    scheduler::start(gic);
    if let Err(text) = scheduler::start_cpu() {
        fail(format_args!("{text}"));
    }
    start_others(&machine);
    let archive = Archive::new(machine.initrd.clone().map_or(&[], memory::initrd));
    match session(archive, &machine) {
        Ok(()) if !scheduler::has_failed() => off(),
        Ok(()) => fail(format_args!("not all went well")),
        Err(failure) => fail(format_args!("{failure}")),
    }
}

fn share_memory(machine: &Machine) {
    let mut taken = machine.taken.clone();
    taken.push(crate::arch::entry::image());
    let free = pages::without(&machine.ram, &taken);
    pages::start(free);
    let pages = pages::free_bytes() / HEAP_SHARE / pages::PAGE;
    if let Some(at) = pages::take_top(pages, pages::PAGE) {
        heap::add(at..at + pages * pages::PAGE);
        taken.push(at..at + pages * pages::PAGE);
    }
    for range in pages::without(&machine.ram, &taken) {
        memory::give(range);
    }
}

fn start_others(machine: &Machine) {
    let own = cpu::affinity();
    let mut count = 1;
    for affinity in machine.cpus.iter().filter(|affinity| **affinity != own).take(MAX_CPUS - 1) {
        let status = cpu::start(machine.conduit, *affinity, count);
        if status != 0 {
            say!("CPU {affinity:#x} does not start: PSCI says {}", status as i64);
            continue;
        }
        let until = cpu::counter() + cpu::frequency() * 5;
        while scheduler::online() == count && cpu::counter() < until {
            cpu::relax();
        }
        if scheduler::online() == count {
            fail(format_args!("CPU {affinity:#x} was started but does not come"));
        }
        count += 1;
    }
}

/// Every other CPU.
pub fn start_secondary() -> ! {
    if let Err(text) = scheduler::start_cpu() {
        fail(format_args!("{text}"));
    }
    loop {
        scheduler::run(jobs::is_waiting);
        jobs::work();
    }
}

/// What the archive asks for.
#[derive(Debug, Default)]
pub struct Wishes<'a> {
    /// VMs.
    pub vms: Vec<VmConfig<'a>>,
    /// Options: word and value.
    pub options: Vec<(&'a str, Option<&'a str>)>,
}

impl Wishes<'_> {
    /// The number that an option has.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.options.iter().find(|(key, _)| *key == name).and_then(|(_, value)| config::number((*value)?))
    }

    /// Whether an option is there.
    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(key, _)| *key == name)
    }
}

fn session(archive: Archive<'_>, machine: &Machine) -> Result<(), Failure> {
    let text = archive.find("config").map_err(|error| Failure::Text(alloc::format!("config: {error}")))?;
    let mut wishes = Wishes::default();
    for line in config::lines(text) {
        match line.map_err(|error| Failure::Text(alloc::format!("{error}")))? {
            Line::Vm(vm) => wishes.vms.push(vm),
            Line::Option(key, value) => wishes.options.push((key, value)),
        }
    }
    if !wishes.has("quiet") {
        say!("{} CPUs, {} MiB free", scheduler::online(), pages::free_bytes() >> 20);
    }
    let version = calls::version().map_err(|error| Failure::Call("CoreVersion", error))?;
    if version != INTERFACE_VERSION {
        return Err(Failure::Text(alloc::format!(
            "the core's interface is {version:#x}, this host's {INTERFACE_VERSION:#x}"
        )));
    }
    let info = calls::core_info().map_err(|error| Failure::Call("CoreInfo", error))?;
    if let Some(seed) = wishes.number("move") {
        scheduler::let_wander(seed);
    }
    if wishes.options.iter().any(|(key, _)| *key == "test") {
        return checks::run(&wishes, archive, &info, machine);
    }
    if wishes.has("demo") {
        return demo::run(&wishes, archive, &info);
    }
    if wishes.has("fill") {
        registers::fill();
    }
    run_all(&wishes, archive, &info)?;
    if wishes.has("move") {
        say!("vCPUs went from CPU to CPU: {}", scheduler::moves());
    }
    if wishes.has("fill") {
        say!("every register of this host as it was, switches: {}", registers::switches());
        say!("of these in streaming mode: {}", registers::streaming_switches());
    }
    Ok(())
}

/// What a VM of the configuration is made of.
///
/// # Errors
/// A file is missing or does not fit.
pub fn plan<'a>(vm: &VmConfig<'a>, archive: Archive<'a>, raw_console: bool) -> Result<Plan<'a>, Failure> {
    let file =
        |name: &str| archive.find(name).map_err(|error| Failure::Text(alloc::format!("{}: {name}: {error}", vm.name)));
    let (kernel, dtb) = (file(vm.kernel)?, file(vm.dtb)?);
    let initrd = vm.initrd.map(file).transpose()?;
    let size = initrd.map(|bytes| bytes.len() as u64);
    let place = image::place(vm.kind, kernel, size, vm.memory)
        .map_err(|error| Failure::Text(alloc::format!("{}: {error}", vm.name)))?;
    let kernel_image = Image { gpa: if vm.kind == Kind::Image { place.load } else { vm.load }, bytes: kernel };
    let mut images = alloc::vec![kernel_image, Image { gpa: DTB_BASE, bytes: dtb }];
    if let (Some((gpa, _)), Some(bytes)) = (place.initrd, initrd) {
        images.push(Image { gpa, bytes });
    }
    let manifest = if vm.protected { vm.manifest.map(file).transpose()? } else { None };
    if manifest.is_some_and(|manifest| manifest.starts_with(&OLD_MANIFEST_MAGIC.to_le_bytes())) {
        return Err(Failure::Text(alloc::format!(
            "{}: its manifest is of an older version: sign the images again",
            vm.name
        )));
    }
    Ok(Plan {
        name: vm.name,
        manifest,
        vcpus: vm.vcpus,
        memory: vm.memory,
        images,
        entry: vm.entry,
        x0: DTB_BASE,
        raw_console,
    })
}

/// All VMs of the configuration, from their start to their end.
fn run_all(wishes: &Wishes<'_>, archive: Archive<'_>, info: &CoreInfo) -> Result<(), Failure> {
    if wishes.vms.is_empty() {
        return Err(Failure::Text("config names no VM".into()));
    }
    let raw = wishes.vms.len() == 1;
    let mut guests = Vec::new();
    for vm in &wishes.vms {
        let guest = Guest::make(&plan(vm, archive, raw)?, info, scheduler::cpus_for(vm.vcpus))
            .map_err(|failure| Failure::Text(alloc::format!("{}: {failure}", vm.name)))?;
        guests.push(guest);
    }
    guests.iter().for_each(scheduler::add);
    finish(guests, wishes.has("quiet"))
}

/// Runs these VMs until each has ended, and destroys each then.
///
/// # Errors
/// Memory did not come back, or the core refused something.
pub fn finish(mut guests: Vec<Arc<Guest>>, quiet: bool) -> Result<(), Failure> {
    let (mut given, mut back) = (0, 0);
    while !guests.is_empty() {
        scheduler::run(|| guests.iter().any(|guest| guest.is_over()));
        let over: Vec<_> = guests.iter().filter(|guest| guest.is_over()).cloned().collect();
        guests.retain(|guest| !guest.is_over());
        for guest in over {
            let account = bury(&guest)?;
            given += account.given;
            back += account.back;
        }
    }
    if given != back {
        return Err(Failure::Text(alloc::format!("of {given} pages given to VMs only {back} came back")));
    }
    if !quiet {
        say!("all {given} pages that the VMs had are back");
    }
    Ok(())
}

/// A VM that has ended: says so, destroys it.
///
/// # Errors
/// What the core refused.
pub fn bury(guest: &Arc<Guest>) -> Result<crate::guest::Account, Failure> {
    scheduler::remove(guest);
    let (ended, exits) = {
        let mut inner = guest.inner();
        inner.console.end();
        (inner.model.ended(), demo::exits(&inner.model))
    };
    let account = guest.destroy().map_err(|failure| Failure::Text(alloc::format!("{}: {failure}", guest.name)))?;
    match ended {
        Some(Ended::Off | Ended::AllOff) => say!("{} powered off (exits: {exits})", guest.name),
        other => {
            scheduler::set_failed();
            match other {
                Some(Ended::Reset) => say!("error: {} asked for a reset (exits: {exits})", guest.name),
                Some(Ended::Failed(esr)) => say!("error: {} failed: ESR {esr:#x} (exits: {exits})", guest.name),
                _ => say!("error: {} was stopped (exits: {exits})", guest.name),
            }
        }
    }
    Ok(account)
}
