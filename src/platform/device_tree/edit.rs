//! The host's device tree: the boot loader's, with the edits that confinement needs.
//!
//! One pass over the structure block. What no edit concerns is copied as it stands, in long runs; the strings block is
//! copied and a few names are appended. (`dtoolkit` 0.4.1 cannot create a node without a heap.)
//!
//! | node                    | edit                                                                              |
//! |-------------------------|-----------------------------------------------------------------------------------|
//! | memory                  | the core's and firmware's ranges leave `reg`; a node without memory left goes     |
//! | `/cpus`                 | no `compatible`                                                                   |
//! | CPUs                    | `enable-method = "psci"`, no `cpu-release-addr`                                   |
//! | PSCI                    | created or replaced: 1.0 by SMC, which the core traps                             |
//! | interrupt controller    | `reg` without GICC (v3), GICH, GICV; no maintenance interrupt                     |
//! | `arm,armv8-timer`       | only the two EL1 physical timer interrupts: Linux then keeps its clock on CNTP    |
//! | `/chosen`               | initrd, bootargs and `rng-seed` if given; boot modules and the loader's seed go   |
//! | debug and trace of CPUs | goes: all that CoreSight names                                                    |
//! | `arm,dsu-pmu` and such  | goes: its driver would use registers that are undefined for the host              |
//! | `/hypervisor`           | created or replaced: `compatible = "corevisor"`                                   |
//!
//! Where the core drives the SMMUs ([`HostEdits::smmus_taken`]), also:
//!
//! | node                    | edit                                                                              |
//! |-------------------------|-----------------------------------------------------------------------------------|
//! | SMMU                    | goes                                                                              |
//! | any                     | no `iommus`, `iommu-map`, `iommu-map-mask`; `msi-map` stays                        |
//! | device beside the SMMUs | goes: `virtio,mmio`, `qemu,fw-cfg-mmio` and SMMU counters without `iommus`        |
//! | `/hypervisor`           | has the empty property `corevisor,devices-confined`                               |
//!
//! Where the core stands before the registers of a GICv3's tables ([`HostEdits::gic_taken`]), `/hypervisor` has the empty property
//! `corevisor,gic-confined`.
//!
//! Nothing else may change here; reservations, `stdout-path` and `kaslr-seed` stay.
#![forbid(unsafe_code)]

use super::binding::{self, Role};
use super::blob::{END, Header, Output, Token, Tokens};
use super::bus::Cells;
use super::description::MachineDescription;
use super::error::{DeviceTreeError, Reason};
use super::interrupts::redistributor_regions;
use super::list::List;
use super::normalise::{DeviceTree, MAX_DEPTH};
use super::properties::{Facts, Properties, property_name, skip_node};
use crate::abstract_machine::addr::PhysRange;

/// What the host's tree says differently from the boot loader's, besides what always differs.
#[derive(Clone, Copy, Debug)]
pub struct HostEdits<'e> {
    /// Memory that is not the host's: whole pages around each range leave its RAM. Any order.
    pub core_memory: &'e [PhysRange],
    /// The initial RAM disk, if it is not where the boot loader said.
    pub initrd: Option<PhysRange>,
    /// The command line, if it is not the boot loader's. Without NUL.
    pub bootargs: Option<&'e str>,
    /// Whether the core drives the SMMUs, see [`take_smmus`](MachineDescription::take_smmus): the host's tree then has none, and no
    /// device beside them.
    pub smmus_taken: bool,
    /// Whether the core stands between host and GICv3: its LPI and ITS tables are then where the host may write.
    pub gic_taken: bool,
    /// Random bytes for the host to begin with, in place of the boot loader's, which are the core's.
    pub seed: Option<[u8; 32]>,
    /// Version of the core, for `/hypervisor`. Without NUL.
    pub version: &'e str,
}

/// Names of the properties that are added: appended to the strings block.
const NAMES: &[u8] = b"compatible\0method\0enable-method\0bootargs\0linux,initrd-start\0linux,initrd-end\0version\0\
    corevisor,devices-confined\0corevisor,gic-confined\0rng-seed\0";

/// What a node says of the SMMU that it or its bus stands behind.
const BEHIND_SMMU: &[&str] = &["iommus", "iommu-map", "iommu-map-mask"];

/// Bytes of a buffer that always hold [`host_device_tree`]'s result.
pub fn host_tree_size(tree: &DeviceTree<'_>, edits: &HostEdits<'_>) -> usize {
    let texts = edits.bootargs.map_or(0, str::len) + edits.version.len();
    // At most 56 bytes for a node (PSCI), and an entry more in `reg` and `linux,usable-memory` for each hole.
    tree.blob().len() + tree.node_count() * 56 + edits.core_memory.len() * 32 + texts + 512
}

/// Writes the host's tree to `out` and returns the part of it that holds the blob.
///
/// `description` is what [`describe`](super::describe) read from `tree`. `out` should be aligned to 8 bytes, as the
/// host will want its tree; [`host_tree_size`] bytes are enough.
///
/// # Errors
/// [`Reason::BufferTooSmall`], or [`Reason::BadProperty`] for a text with a NUL in it.
pub fn host_device_tree<'o>(
    tree: &DeviceTree<'_>,
    description: &MachineDescription,
    edits: &HostEdits<'_>,
    out: &'o mut [u8],
) -> Result<&'o [u8], DeviceTreeError> {
    if edits.bootargs.unwrap_or_default().contains('\0') || edits.version.contains('\0') {
        return Err(Reason::BadProperty("bootargs").into());
    }
    let header = Header::parse(tree.blob())?;
    let (structure, strings) = (header.structure(tree.blob()), header.strings(tree.blob()));
    let mut output = Output::new(out);
    output.start(header.reservations(tree.blob())?)?;
    let structure_at = output.len;
    let mut editor = Editor {
        edits,
        timer_cells: description.timer.as_ref().map_or(3, |timer| timer.cells_per_interrupt as usize),
        structure,
        strings,
        out: output,
        run: 0,
        open: List::new(Open { kind: Kind::Plain, cells: Cells::DEFAULT }),
        seen: Seen::default(),
    };
    editor.copy()?;
    let mut output = editor.out;
    let strings_at = output.len;
    output.put(strings)?;
    output.put(NAMES)?;
    let size = output.finish(structure_at, strings_at, header.boot_cpu)?;
    Ok(out.get(..size).unwrap_or_default())
}

/// Which edits a node gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Root,
    Cpus,
    Memory,
    Cpu,
    Psci,
    /// Number of `reg` entries to keep.
    Gic(usize),
    /// Bit `i`: keep interrupt `i`.
    Timer(u32),
    Chosen,
    Dropped,
}

/// A node that is open, with the cell counts of its children.
#[derive(Clone, Copy)]
struct Open {
    kind: Kind,
    cells: Cells,
}

/// Nodes of which only the first is edited, or which must exist in the end.
#[derive(Default)]
struct Seen {
    psci: bool,
    gic: bool,
    chosen: bool,
}

struct Editor<'x, 'o> {
    edits: &'x HostEdits<'x>,
    timer_cells: usize,
    structure: &'x [u8],
    strings: &'x [u8],
    out: Output<'o>,
    /// First byte of the structure block that is neither copied nor left out yet.
    run: usize,
    open: List<Open, MAX_DEPTH>,
    seen: Seen,
}

impl<'x> Editor<'x, '_> {
    fn copy(&mut self) -> Result<(), Reason> {
        let mut tokens = Tokens::new(self.structure);
        loop {
            let at = tokens.at();
            match tokens.next()? {
                Token::Begin { name } => self.begin(name, at, &mut tokens)?,
                Token::Prop { name_offset, value } => self.property(name_offset, value, at, tokens.at())?,
                Token::End => {
                    self.open.remove(self.open.len().saturating_sub(1), 1);
                    if self.open.is_empty() {
                        self.keep_until(at, at)?;
                        self.new_nodes()?;
                    }
                }
                Token::Nop => {}
                Token::Done => return self.keep_until(at, at).and_then(|()| self.out.put_u32(END)),
            }
        }
    }

    /// Copies what was not copied or left out before `end`; goes on at `next`.
    fn keep_until(&mut self, end: usize, next: usize) -> Result<(), Reason> {
        self.out.put(self.structure.get(self.run..end).unwrap_or_default())?;
        self.run = next;
        Ok(())
    }

    fn begin(&mut self, name: &[u8], at: usize, tokens: &mut Tokens<'x>) -> Result<(), Reason> {
        let properties = Properties { strings: self.strings, tokens: tokens.clone() };
        let (facts, behind) = properties.facts();
        let kind = self.kind(name, &facts, &properties)?;
        if kind == Kind::Dropped {
            skip_node(tokens)?;
            return self.keep_until(at, tokens.at());
        }
        self.open.push(Open { kind, cells: facts.cells }).map_err(|_| Reason::TooDeep)?;
        if matches!(kind, Kind::Cpu | Kind::Psci | Kind::Chosen) {
            self.keep_until(tokens.at(), tokens.at())?;
            self.new_properties(kind)?;
        }
        if matches!(kind, Kind::Plain | Kind::Root) && !self.edits.smmus_taken {
            *tokens = behind;
        }
        Ok(())
    }

    /// What the node `name` is; it stands below the open nodes.
    fn kind(&mut self, name: &[u8], facts: &Facts, properties: &Properties) -> Result<Kind, Reason> {
        let parent = self.open.last().map(|open| open.kind);
        let is_named = |word| binding::is_one_of(name, &[word]);
        Ok(match (parent, facts.role) {
            (None, _) => Kind::Root,
            (Some(Kind::Root), _) if binding::is_memory(facts.device_type) => {
                let taken = self.is_all_core(properties.find("reg").unwrap_or_default());
                if taken { Kind::Dropped } else { Kind::Memory }
            }
            (Some(Kind::Root), _) if is_named("hypervisor") => Kind::Dropped,
            (Some(Kind::Root), _) if is_named("cpus") => Kind::Cpus,
            // Of a second one nothing is read, and nothing goes to the host.
            (Some(Kind::Root), _) if is_named("chosen") => {
                if core::mem::replace(&mut self.seen.chosen, true) {
                    Kind::Dropped
                } else {
                    Kind::Chosen
                }
            }
            (Some(Kind::Cpus), _) if binding::is_cpu(name, facts.device_type) => Kind::Cpu,
            (Some(Kind::Chosen), role) if role.module().is_some() => Kind::Dropped,
            (_, Role::Debug | Role::OwnRegisters) => Kind::Dropped,
            (_, Role::Smmu(_)) if self.edits.smmus_taken => Kind::Dropped,
            (_, Role::BesideSmmus) if self.edits.smmus_taken && !facts.behind_smmu => Kind::Dropped,
            (_, Role::Psci) => {
                self.seen.psci = true;
                Kind::Psci
            }
            (_, role @ (Role::GicV2 | Role::GicV3)) if facts.enabled && !self.seen.gic => {
                self.seen.gic = true;
                let regions = redistributor_regions(properties.find("#redistributor-regions"))?;
                Kind::Gic(if role == Role::GicV2 { 2 } else { 1 + regions })
            }
            (_, Role::Timer) => Kind::Timer(timer_interrupts(properties.find("interrupt-names"))),
            _ => Kind::Plain,
        })
    }

    /// Edits one property of the innermost open node; its token takes the bytes from `at` to `end`.
    fn property(&mut self, name_offset: u32, value: &[u8], at: usize, end: usize) -> Result<(), Reason> {
        let kind = self.open.last().map_or(Kind::Plain, |open| open.kind);
        let name = property_name(self.strings, name_offset);
        let is = |words| binding::is_one_of(name, words);
        match kind {
            _ if self.edits.smmus_taken && is(BEHIND_SMMU) => self.keep_until(at, end),
            Kind::Memory if is(&["reg", "linux,usable-memory"]) => {
                self.keep_until(at, end)?;
                self.memory_without_core(name_offset, value)
            }
            Kind::Gic(entries) if is(&["reg"]) => {
                let cells = self.parent_cells();
                let keep = (entries * (cells.address + cells.size) * 4).min(value.len());
                self.keep_until(at, end)?;
                self.out.property(name_offset, &[value.get(..keep).unwrap_or_default()])
            }
            Kind::Timer(keep) if is(&["interrupt-names"]) => {
                self.keep_until(at, end)?;
                self.some_parts(name_offset, &mut value.split_inclusive(|b| *b == 0), keep)
            }
            Kind::Timer(keep) if is(&["interrupts", "interrupts-extended"]) => {
                // An extended interrupt has the controller's phandle before its cells.
                let cells = self.timer_cells + usize::from(is(&["interrupts-extended"]));
                self.keep_until(at, end)?;
                self.some_parts(name_offset, &mut value.chunks_exact(cells * 4), keep)
            }
            _ if is(self.left_out(kind)) => self.keep_until(at, end),
            _ => Ok(()),
        }
    }

    /// Properties that a node of this kind loses; some of them get a new value.
    fn left_out(&self, kind: Kind) -> &'static [&'static str] {
        let (bootargs, initrd) = (self.edits.bootargs.is_some(), self.edits.initrd.is_some());
        match kind {
            // By which Linux knows that CPUs have registers of their own (`Role::OwnRegisters`).
            Kind::Cpus => &["compatible"],
            Kind::Cpu => &["enable-method", "cpu-release-addr"],
            Kind::Psci => &["compatible", "method", "status", "cpu_suspend", "cpu_off", "cpu_on", "migrate"],
            Kind::Gic(_) => &["interrupts", "interrupts-extended", "interrupt-names"],
            Kind::Chosen if bootargs && initrd => &["rng-seed", "bootargs", "linux,initrd-start", "linux,initrd-end"],
            Kind::Chosen if bootargs => &["rng-seed", "bootargs"],
            Kind::Chosen if initrd => &["rng-seed", "linux,initrd-start", "linux,initrd-end"],
            Kind::Chosen => &["rng-seed"],
            _ => &[],
        }
    }

    /// Adds what a node of this kind must say.
    fn new_properties(&mut self, kind: Kind) -> Result<(), Reason> {
        match kind {
            Kind::Cpu => self.add(b"enable-method\0", &[b"psci\0"]),
            Kind::Psci => {
                self.add(b"compatible\0", &[b"arm,psci-1.0\0arm,psci-0.2\0"])?;
                self.add(b"method\0", &[b"smc\0"])
            }
            Kind::Chosen => {
                if let Some(bootargs) = self.edits.bootargs {
                    self.add(b"bootargs\0", &[bootargs.as_bytes(), b"\0"])?;
                }
                if let Some(initrd) = self.edits.initrd {
                    self.add(b"linux,initrd-start\0", &[&initrd.base().raw().to_be_bytes()])?;
                    self.add(b"linux,initrd-end\0", &[&initrd.end().raw().to_be_bytes()])?;
                }
                if let Some(seed) = &self.edits.seed {
                    self.add(b"rng-seed\0", &[seed])?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Adds, at the end of the root, the nodes that are not there.
    fn new_nodes(&mut self) -> Result<(), Reason> {
        let missing = [(self.seen.psci, &b"psci"[..], Kind::Psci), (self.seen.chosen, b"chosen", Kind::Chosen)];
        for (_, name, kind) in missing.into_iter().filter(|(seen, ..)| !seen) {
            self.out.begin_node(name)?;
            self.new_properties(kind)?;
            self.out.end_node()?;
        }
        self.out.begin_node(b"hypervisor")?;
        self.add(b"compatible\0", &[b"corevisor\0"])?;
        self.add(b"version\0", &[self.edits.version.as_bytes(), b"\0"])?;
        if self.edits.smmus_taken {
            self.add(b"corevisor,devices-confined\0", &[])?;
        }
        if self.edits.gic_taken {
            self.add(b"corevisor,gic-confined\0", &[])?;
        }
        self.out.end_node()
    }

    /// Writes a property whose name, given with its NUL, is one of [`NAMES`].
    fn add(&mut self, name: &[u8], value: &[&[u8]]) -> Result<(), Reason> {
        let at = NAMES.windows(name.len()).position(|window| window == name).unwrap_or_default();
        self.out.property((self.strings.len() + at) as u32, value)
    }

    /// Writes a property with the parts of `parts` whose bit in `keep` is set.
    fn some_parts(
        &mut self,
        name_offset: u32,
        parts: &mut dyn Iterator<Item = &[u8]>,
        keep: u32,
    ) -> Result<(), Reason> {
        let length = self.out.open_property(name_offset)?;
        for (_, part) in parts.take(32).enumerate().filter(|(index, _)| keep & (1 << index) != 0) {
            self.out.put(part)?;
        }
        self.out.close_property(length)
    }

    /// Cell counts that hold for the innermost open node.
    fn parent_cells(&self) -> Cells {
        self.open.iter().nth_back(1).map_or(Cells::DEFAULT, |open| open.cells)
    }

    /// Whether no byte of a memory node's `reg` is left for the host; the node is not open yet.
    fn is_all_core(&self, reg: &[u8]) -> bool {
        let cells = self.open.last().map_or(Cells::DEFAULT, |open| open.cells);
        cells.entries(reg).all(|(base, size)| remainder(self.edits.core_memory, base, size).next().is_none())
    }

    /// Writes a memory node's `reg` without the core's ranges, in the node's own cells.
    fn memory_without_core(&mut self, name_offset: u32, reg: &[u8]) -> Result<(), Reason> {
        let cells = self.parent_cells();
        let length = self.out.open_property(name_offset)?;
        for (base, size) in cells.entries(reg) {
            for (base, size) in remainder(self.edits.core_memory, base, size) {
                self.out.put_number(base, cells.address)?;
                self.out.put_number(size, cells.size)?;
            }
        }
        self.out.close_property(length)
    }
}

/// The pieces (address, size) of a bank that no page of `holes` touches, in order.
fn remainder(holes: &[PhysRange], base: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = base.saturating_add(size);
    let mut at = base;
    core::iter::from_fn(move || {
        while at < end {
            let ahead = holes.iter().map(|hole| hole.page_cover()).filter(|hole| hole.end().raw() > at);
            let hole = ahead.filter(|hole| !hole.is_empty()).min_by_key(|hole| hole.base());
            let start = at;
            let stop = hole.map_or(end, |hole| hole.base().raw().clamp(start, end));
            at = hole.map_or(end, |hole| hole.end().raw());
            if stop > start {
                return Some((start, stop - start));
            }
        }
        None
    })
}

/// Which timer interrupts the host keeps: the secure and the non-secure EL1 physical one. Without names these are
/// the first two; with names they may stand anywhere (Linux `arm,arch_timer.yaml`).
fn timer_interrupts(names: Option<&[u8]>) -> u32 {
    let Some(names) = names else { return 0b11 };
    let physical = |(_, name): &(usize, &[u8])| binding::is_one_of(name, &["sec-phys", "phys"]);
    names.split(|b| *b == 0).take(32).enumerate().filter(physical).fold(0, |keep, (index, _)| keep | 1 << index)
}
