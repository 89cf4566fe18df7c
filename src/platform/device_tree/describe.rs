//! Reads the tree in one walk: memory, CPUs, firmware, console, boot modules, device windows.
//!
//! Only reads; every decision that needs more than the tree (is the initrd in RAM, which CPU booted) is the caller's.
#![forbid(unsafe_code)]

use fdt::node::FdtNode;

use super::binding::{self, Role, Section};
use super::blob::be32;
use super::bus::{Path, number};
use super::description::{
    BootModule, Chosen, Console, Cpu, EnableMethod, MachineDescription, Mpidr, Psci, PsciConduit, Reserved, Smmu,
    TextRange,
};
use super::error::{DeviceTreeError, Reason};
use super::interrupts;
use super::list::List;
use super::normalise::DeviceTree;
use super::windows;
use crate::abstract_machine::addr::{Pa, PhysRange};
use crate::interface::boot::KEY_PROPERTY;

/// Reads everything the core needs from `tree` into `out`, which is empty.
///
/// After an error `out` holds what could be read all the same, the console above all: somebody has to be told.
///
/// # Errors
/// The first of: a missing part that the core cannot do without (memory, CPUs, interrupt controller), a property that contradicts
/// its binding or the rest of the tree, or more of something than [`MachineDescription`] has room for.
pub fn describe(tree: &DeviceTree<'_>, out: &mut MachineDescription) -> Result<(), DeviceTreeError> {
    let consoles = List::new(("", Console::Pl011 { base: Pa::new(0) }));
    let mut reader = Reader { tree, out, interrupt_cells: 3, chosen: None, aliases: None, consoles };
    let mut path = Path::new();
    let mut result = reader.reservations().map_err(DeviceTreeError::from);
    for (node, depth) in tree.nodes() {
        path.enter(node, depth);
        if let Err(reason) = reader.node(node, &path)
            && result.is_ok()
        {
            result = Err(path.error(reason));
        }
    }
    reader.out.console = reader.console();
    result?;
    Ok(reader.finish()?)
}

/// Name of the node that `stdout-path` points to: the same slice of the blob as when the walk came by.
fn stdout_node<'a>(
    tree: &DeviceTree<'a>,
    chosen: Option<FdtNode<'_, 'a>>,
    aliases: Option<FdtNode<'_, 'a>>,
) -> Option<&'a str> {
    let chosen = chosen?;
    let value = chosen.property("stdout-path").or_else(|| chosen.property("linux,stdout-path"))?.value;
    let path = binding::without_nul(value).split(|b| *b == b':').next()?;
    let mut path = core::str::from_utf8(path).ok()?;
    if !path.starts_with('/') {
        path = core::str::from_utf8(binding::without_nul(aliases?.property(path)?.value)).ok()?;
    }
    path.starts_with('/').then(|| tree.find(path))?.map(|node| node.name)
}

struct Reader<'r, 't, 'a> {
    tree: &'t DeviceTree<'a>,
    out: &'r mut MachineDescription,
    /// `#interrupt-cells` of the interrupt controller.
    interrupt_cells: u32,
    chosen: Option<FdtNode<'t, 'a>>,
    aliases: Option<FdtNode<'t, 'a>>,
    /// Serial ports with the names of their nodes; which one it is shows when the walk is over.
    consoles: List<(&'a str, Console), 32>,
}

impl<'t, 'a> Reader<'_, 't, 'a> {
    fn node(&mut self, node: FdtNode<'t, 'a>, path: &Path<'a>) -> Result<(), Reason> {
        let this = path.node();
        match (this.section, path.depth()) {
            (Section::Cpus, 2) if binding::is_cpu(this.name.as_bytes(), this.device_type) => self.cpu(node, path),
            (Section::Cpus, _) => Ok(()),
            (Section::Debug, _) => {
                self.out.has_debug = true;
                Ok(())
            }
            (Section::Chosen, 1) => self.chosen(node),
            (Section::Devices, 1) if binding::is_one_of(this.name.as_bytes(), &["aliases"]) => {
                self.aliases = self.aliases.or(Some(node));
                Ok(())
            }
            (Section::Chosen, _) => self.module(node, path),
            (Section::ReservedMemory, 2) if this.enabled => self.reserved(node, path),
            (Section::ReservedMemory, _) => Ok(()),
            (Section::Devices, 1) if binding::is_memory(this.device_type) => self.memory(path),
            (Section::Devices, _) => self.device(node, path),
        }
    }

    /// DTSpec §5.3.
    fn reservations(&mut self) -> Result<(), Reason> {
        for entry in self.tree.fdt().memory_reservations() {
            let range = PhysRange::new(Pa::new(entry.address().addr() as u64), entry.size() as u64);
            let range = range.ok_or(Reason::BadHeader("off_mem_rsvmap"))?;
            reserve(self.out, Reserved { range, no_map: false, drivers: false, phandle: None })?;
        }
        Ok(())
    }

    /// DTSpec §3.4. A bank of size 0 is none.
    fn memory(&mut self, path: &Path) -> Result<(), Reason> {
        let cells = path.parent().cells;
        let Some(reg) = path.node().reg.filter(|_| path.node().enabled) else { return Ok(()) };
        if !cells.fits(reg) || cells.entries(reg).next().is_none() {
            return Err(Reason::BadProperty("reg"));
        }
        for (base, size) in cells.entries(reg).filter(|(_, size)| *size != 0) {
            let bank = path.translate(base, size).ok_or(Reason::AddressTooLarge(base.saturating_add(size)))?;
            let ram = &mut self.out.ram;
            let at = ram.partition_point(|other| other.base() < bank.base());
            let neighbours = ram.get(at.saturating_sub(1)..).unwrap_or_default().iter().take(2);
            if let Some(other) = neighbours.copied().find(|other| other.overlaps(bank)) {
                let (base, end) = (bank.base().max(other.base()), bank.end().min(other.end()));
                return Err(Reason::OverlappingMemory(PhysRange::between(base, end)));
            }
            ram.insert(at, bank).map_err(|_| Reason::TooMany("memory banks"))?;
        }
        Ok(())
    }

    /// DTSpec §3.5: a region without `reg` is for the operating system to place.
    fn reserved(&mut self, node: FdtNode, path: &Path) -> Result<(), Reason> {
        let Some(reg) = path.node().reg else { return Ok(()) };
        let no_map = node.property("no-map").is_some();
        let drivers = node.property("compatible").is_some();
        let phandle = node.property("phandle").and_then(|property| be32(property.value, 0));
        for (base, size) in path.parent().cells.entries(reg) {
            let range = PhysRange::new(Pa::new(base), size).ok_or(Reason::BadProperty("reg"))?;
            reserve(self.out, Reserved { range, no_map, drivers, phandle })?;
        }
        Ok(())
    }

    /// DTSpec §3.8 and Linux `arm/cpus.yaml`.
    fn cpu(&mut self, node: FdtNode, path: &Path) -> Result<(), Reason> {
        if !path.node().enabled {
            return Ok(());
        }
        let reg = path.node().reg.unwrap_or_default();
        let reg = number(reg, 0, path.parent().cells.address).ok_or(Reason::BadProperty("reg"))?;
        let mpidr = Mpidr::new(reg);
        if mpidr.raw() != reg {
            return Err(Reason::BadProperty("reg"));
        }
        if self.out.cpus.iter().any(|cpu| cpu.mpidr == mpidr) {
            return Err(Reason::DuplicateCpu(reg));
        }
        let method = node.property("enable-method").map(|method| binding::without_nul(method.value));
        let enable_method = match method.and_then(|method| binding::position(method, &["psci", "spin-table"])) {
            Some(0) => EnableMethod::Psci,
            Some(1) => EnableMethod::SpinTable { release: release_address(node)? },
            _ => EnableMethod::None,
        };
        if self.out.cpus.push(Cpu { mpidr, enable_method }).is_err() {
            self.out.cpus_ignored += 1;
        }
        Ok(())
    }

    /// DTSpec §3.6; initrd: Linux `chosen.yaml`.
    fn chosen(&mut self, node: FdtNode<'t, 'a>) -> Result<(), Reason> {
        // The first one counts.
        if self.chosen.is_some() {
            return Ok(());
        }
        self.chosen = Some(node);
        let Chosen { bootargs, initrd, rng_seed, .. } = &mut self.out.chosen;
        *bootargs = text(self.tree, node, "bootargs")?;
        *rng_seed = node.property("rng-seed").and_then(|seed| seed.value.first_chunk().copied());
        let edge = |name| match node.property(name) {
            None => Ok(None),
            Some(property) => whole_number(property.value).map(Some).ok_or(Reason::BadProperty(name)),
        };
        *initrd = match (edge("linux,initrd-start")?, edge("linux,initrd-end")?) {
            (None, None) => None,
            (Some(start), Some(end)) if start <= end => {
                Some(PhysRange::between(Pa::new(start), Pa::new(end))).filter(|initrd| !initrd.is_empty())
            }
            _ => return Err(Reason::BadProperty("linux,initrd-end")),
        };
        let keys = node.property(KEY_PROPERTY).map_or(&[][..], |property| property.value).as_chunks::<32>();
        if !keys.1.is_empty() {
            return Err(Reason::BadProperty(KEY_PROPERTY));
        }
        let places = &mut self.out.chosen.public_keys;
        keys.0.iter().try_for_each(|key| places.push(*key)).map_err(|_| Reason::TooMany("public keys"))
    }

    /// A file that the boot loader left in memory: multiboot binding, `docs/misc/arm/device-tree/booting.txt` of Xen. Else something for the host, as a frame buffer
    /// (Linux `display/simple-framebuffer.yaml`), which may be in memory that no bank has.
    fn module(&mut self, node: FdtNode<'_, 'a>, path: &Path) -> Result<(), Reason> {
        let Some(kind) = path.node().role.module() else {
            let mut registers = path.registers();
            return registers.try_for_each(|range| windows::add(&mut self.out.windows, range));
        };
        let (Some(reg), cells) = (path.node().reg, path.parent().cells) else {
            return Err(Reason::BadProperty("reg"));
        };
        // QEMU writes 64-bit pairs and no cell counts.
        let entry = if cells.fits(reg) { cells.entries(reg).next() } else { number(reg, 0, 2).zip(number(reg, 2, 2)) };
        let range = entry.and_then(|(base, size)| PhysRange::new(Pa::new(base), size));
        let module = BootModule {
            kind,
            range: range.ok_or(Reason::BadProperty("reg"))?,
            bootargs: text(self.tree, node, "bootargs")?,
        };
        self.out.chosen.modules.push(module).map_err(|_| Reason::TooMany("boot modules"))
    }

    fn device(&mut self, node: FdtNode<'_, 'a>, path: &Path<'a>) -> Result<(), Reason> {
        let this = path.node();
        if this.role == Role::Its && !this.enabled {
            // It may be there all the same, and nobody stands before the registers that say where it writes.
            return Ok(());
        }
        self.out.smmus_serve |= this.enabled && (this.behind_smmu || node.property("iommu-map").is_some());
        for range in path.registers() {
            windows::add(&mut self.out.windows, range)?;
        }
        if this.cells.address == 3 {
            self.pci_windows(path)?;
        }
        let enabled = this.enabled;
        match this.role {
            Role::Pl011 | Role::SbsaUart | Role::Ns16550 | Role::Ns16550Words | Role::Bcm2835Aux | Role::Soc(_) => {
                // A port beyond the last place cannot become the console: the boot loader's choice comes early.
                let _ = console(node, path).map(|console| self.consoles.push((this.name, console)));
            }
            Role::Psci if enabled && self.out.psci.is_none() => self.out.psci = Some(psci(node)?),
            Role::GicIncoherent => self.out.gic_incoherent = true,
            Role::BcmPower => self.out.bcm_power = path.register(0).map(|range| range.base()),
            Role::Smmu(version) if enabled => {
                let range = path.register(0).ok_or(Reason::BadProperty("reg"))?;
                let coherent = node.property("dma-coherent").is_some();
                self.out.smmus.push(Smmu { version, range, coherent }).map_err(|_| Reason::TooMany("SMMUs"))?;
            }
            // A disabled node too: the device may be there all the same, and nobody confines an SMMU that nobody may use.
            Role::BesideSmmus | Role::Smmu(_) if !this.behind_smmu => {
                for range in path.registers() {
                    let added = windows::add(&mut self.out.beside_smmus, range);
                    added.map_err(|_| Reason::TooMany("windows of devices beside SMMUs"))?;
                }
            }
            Role::GicV2 | Role::GicV3 | Role::Its | Role::MsiFrame | Role::Timer if enabled => {
                interrupts::node(node, path, self.out, &mut self.interrupt_cells)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The CPU's side of a PCI host bridge's memory and I/O windows (IEEE 1275 PCI binding: three address cells).
    fn pci_windows(&mut self, path: &Path) -> Result<(), Reason> {
        let (cpu, pci) = (path.parent().cells, path.node().cells);
        let entry = pci.address + cpu.address + pci.size;
        for range in path.node().ranges.unwrap_or_default().chunks_exact(entry * 4) {
            let base = number(range, pci.address, cpu.address);
            let size = number(range, pci.address + cpu.address, pci.size);
            let window = base.zip(size).and_then(|(base, size)| path.translate(base, size));
            if let Some(window) = window {
                windows::add(&mut self.out.windows, window)?;
            }
        }
        Ok(())
    }

    /// The serial port that `stdout-path` points to.
    fn console(&self) -> Option<Console> {
        let stdout = stdout_node(self.tree, self.chosen, self.aliases)?;
        self.consoles.iter().find(|(name, _)| core::ptr::eq(name.as_ptr(), stdout.as_ptr())).map(|found| found.1)
    }

    /// What can only be said with the whole tree read.
    fn finish(self) -> Result<(), Reason> {
        let Self { out, interrupt_cells, .. } = self;
        merge_banks(&mut out.ram);
        if out.ram.is_empty() {
            return Err(Reason::NoMemory);
        }
        if out.cpus.is_empty() {
            return Err(Reason::NoCpus);
        }
        if let Some(timer) = &mut out.timer {
            timer.cells_per_interrupt = interrupt_cells;
        }
        let gic = out.gic.as_ref().ok_or(Reason::NoInterruptController)?;
        let not_for_the_host = out.ram.iter().copied().chain(gic.virtualization_frames());
        for range in not_for_the_host {
            windows::cut(&mut out.windows, range)?;
        }
        Ok(())
    }
}

/// Joins banks that touch, then trims each to whole pages.
fn merge_banks<const N: usize>(ram: &mut List<PhysRange, N>) {
    let banks = *ram;
    ram.clear();
    let mut open: Option<PhysRange> = None;
    // No push below can fail: there are never more banks than before.
    for bank in banks.iter().copied() {
        open = match open {
            Some(last) if last.end() == bank.base() => Some(PhysRange::between(last.base(), bank.end())),
            last => {
                let _ = last.map(|last| ram.push(last.page_core()));
                Some(bank)
            }
        };
    }
    let _ = open.map(|last| ram.push(last.page_core()));
    while let Some(empty) = ram.iter().position(|bank| bank.is_empty()) {
        ram.remove(empty, 1);
    }
}

fn reserve(out: &mut MachineDescription, reserved: Reserved) -> Result<(), Reason> {
    if reserved.range.is_empty() {
        return Ok(());
    }
    out.reserved.push(reserved).map_err(|_| Reason::TooMany("reserved ranges"))
}

/// A value of 4 or 8 bytes.
fn whole_number(value: &[u8]) -> Option<u64> {
    number(value, 0, value.len() / 4).filter(|_| value.len().is_multiple_of(4))
}

fn release_address(node: FdtNode) -> Result<Pa, Reason> {
    let value = node.property("cpu-release-addr").and_then(|property| whole_number(property.value));
    value.map(Pa::new).ok_or(Reason::BadProperty("cpu-release-addr"))
}

/// The text of a string property, if the node has it; it must be UTF-8.
fn text(tree: &DeviceTree, node: FdtNode, name: &'static str) -> Result<Option<TextRange>, Reason> {
    let Some(property) = node.property(name) else { return Ok(None) };
    let text = binding::without_nul(property.value);
    core::str::from_utf8(text).map_err(|_| Reason::BadProperty(name))?;
    Ok(Some(TextRange { offset: tree.offset_of(property.value), len: text.len() as u32 }))
}

/// Linux `arm/psci.yaml`.
fn psci(node: FdtNode) -> Result<Psci, Reason> {
    let method = node.property("method").map(|method| binding::without_nul(method.value));
    let conduit = match method.and_then(|method| binding::position(method, &["smc", "hvc"])) {
        Some(0) => PsciConduit::Smc,
        Some(1) => PsciConduit::Hvc,
        _ => return Err(Reason::BadProperty("method")),
    };
    Ok(Psci { conduit })
}

/// The serial port at this node, if the core can drive it (Linux `serial/8250.yaml`, `serial/pl011.yaml` and those of SoC makers).
fn console(node: FdtNode, path: &Path) -> Option<Console> {
    let base = path.register(0)?.base();
    let setting = |name, default| match node.property(name) {
        Some(property) => be32(property.value, 0),
        None => Some(default),
    };
    match path.node().role {
        Role::Pl011 => Some(Console::Pl011 { base }),
        Role::SbsaUart => Some(Console::SbsaUart { base }),
        Role::Bcm2835Aux => Some(Console::Bcm2835Aux { base }),
        role @ (Role::Ns16550 | Role::Ns16550Words) => {
            let (shift, width) = if role == Role::Ns16550 { (0, 1) } else { (2, 4) };
            Some(Console::Ns16550 {
                base: base.checked_add(setting("reg-offset", 0)?.into())?,
                reg_shift: setting("reg-shift", shift).filter(|shift| *shift <= 3)? as u8,
                io_width: setting("reg-io-width", width).filter(|width| matches!(width, 1 | 4))? as u8,
            })
        }
        Role::Soc(kind) => Some(Console::Soc { base, kind }),
        _ => None,
    }
}
