//! Code and specification side by side: each step is done by both, and then everything is compared.
#![forbid(unsafe_code)]

mod vms;

use std::boxed::Box;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::string::String;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;
use std::{format, vec};

use super::invariants::View;
use super::{Region, State, memory, npt, spt, trap};
use crate::abstract_machine::addr::{Gfn, Ipa, Pa, Pfn, PhysRange, VmId};
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::{ExceptionClass, TrapFrame};
use crate::abstract_machine::sim::walker::{AccessKind, Fault, Leaf, TableAt};
use crate::abstract_machine::sim::{Sim, Trapped, run_as};
use crate::abstract_machine::{Machine, SmcOutcome};
use crate::locks::Lock;
use crate::memory::mem_manager::{self, Denied};
use crate::memory::mem_region::{MemRegions, RegionKind};
use crate::memory::page_manager::{BlockRecord, PageRecord, PageState, S2Pages};
use crate::memory::{Memory, memory_ops};
use crate::npt::descriptor::Stage2Access;
use crate::npt::pt_alloc::alloc_root;
use crate::npt::{Level, Npts, Shape, TableOwner, VM_SLOTS, no_vm};
use crate::spt::Spt;
use crate::spt::mmio_pt_alloc::pages_for;
use crate::spt::mmio_spt_ops::init_spt;
use crate::trap::Core;
use crate::trap::trap_handler::{host_hvc_handler, host_serror_handler, host_trap_handler};
use crate::vm;

/// What a test machine looks like.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Base, size, RAM or not; ascending.
    pub regions: Vec<(u64, u64, bool)>,
    /// Where the pool for tables is; in RAM.
    pub pool: u64,
    /// Its pages.
    pub pool_pages: u64,
    /// Bits of the host's addresses.
    pub ia_bits: u32,
    /// CPUs.
    pub cpus: usize,
    /// The largest leaf of the SMMU's table, if there is an SMMU.
    pub smmu: Option<Level>,
}

/// Where the SMMU's tables stand: beyond all RAM.
const SMMU_TABLES: u64 = 0x6000_0000_0000;

/// The firmware of the test machine: CPU_ON (0xc400_0003) asks whether the entry point is the host's memory, CPU_SUSPEND
/// (0xc400_0001) starts again there; of workarounds it has SMCCC_ARCH_WORKAROUND_1 (0x8000_8000), which this CPU does not need. Everything else is unknown.
pub fn firmware(args: [u64; 4], is_host_memory: &dyn Fn(Ipa) -> bool) -> SmcOutcome {
    match args[0] {
        0xc400_0003 if is_host_memory(Ipa::new(args[2])) => SmcOutcome::Return([0, args[1], args[2], args[3]]),
        0xc400_0003 => SmcOutcome::Return([-9i64 as u64, args[1], args[2], args[3]]),
        0x8000_0001 if args[1] == 0x8000_8000 => SmcOutcome::Return([1, args[1], args[2], args[3]]),
        0x8000_8000 => SmcOutcome::Return(args),
        0xc400_0001 => SmcOutcome::Restart { entry: Ipa::new(args[2]), context: args[3] },
        _ => SmcOutcome::Return([-1i64 as u64, args[1], args[2], args[3]]),
    }
}

/// Places for VMs, as boot makes them: most of what a world needs of memory.
type Places = &'static [vm::VmLock];

/// Those of worlds that are over.
static SPARE: Mutex<Vec<Places>> = Mutex::new(Vec::new());

fn spare() -> MutexGuard<'static, Vec<Places>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the host's hardware made of an access, in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// It went through.
    Reached(Pa),
    /// The host took an external abort.
    Aborted,
}

/// A core on the simulated machine, and its specification.
pub struct World {
    /// The code.
    pub core: Core<Sim>,
    /// The specification.
    pub spec: State,
    /// Calls made so far.
    pub calls: usize,
    /// What VMs write into pages that are theirs alone is changed by this.
    pub secret: u64,
    /// Where each gfn of a protected VM was mapped to, ever since (K §6.4 f).
    placed: RefCell<BTreeMap<(VmId, Gfn), Pfn>>,
    places: Places,
}

/// A synchronous exception of the host, as boot/vectors.S hands it on.
pub fn host_sync(core: &Core<Sim>, frame: &mut TrapFrame) {
    match core.machine().read_esr_el2().class() {
        ExceptionClass::Hvc64 => host_hvc_handler(core, frame.hypercall_registers()),
        _ => host_trap_handler(core, frame),
    }
}

impl World {
    /// Boots the machine: every page the host's, except the pool.
    pub fn new(layout: &Layout) -> Self {
        let range = |base, size| PhysRange::between(Pa::new(base), Pa::new(base + size));
        let mut regions = MemRegions::new();
        for &(base, size, is_ram) in &layout.regions {
            let pushed =
                if is_ram { regions.push_ram(range(base, size)) } else { regions.push_device(range(base, size)) };
            pushed.unwrap_or_else(|error| panic!("{layout:x?}: {error:?}"));
        }
        let pool = range(layout.pool, layout.pool_pages * 4096);
        let sim = Sim::new(layout.cpus, pool).with_firmware(Box::new(firmware));
        let (sim, spt) = match layout.smmu {
            Some(largest) => Self::with_smmu(sim, layout, &regions, largest),
            None => (sim, None),
        };
        let owner = TableOwner::Stage2(VmId::HOST);
        let npt = alloc_root(&sim, owner, Shape::new(layout.ia_bits)).unwrap_or_else(|_| panic!("pool too small"));
        sim.publish_tables();
        sim.load_stage2(VmId::HOST, npt.root(), layout.ia_bits, 48);
        let records = Box::leak(vec![PageRecord::HOST; regions.slots() as usize].into_boxed_slice());
        let blocks = Box::leak(vec![BlockRecord::HOST; regions.blocks() as usize].into_boxed_slice());
        let memory = Memory::new(
            Npts::new(sim, npt, Box::leak(Box::new([const { no_vm() }; VM_SLOTS]))),
            regions,
            S2Pages::new(records, blocks),
            spt,
        );
        let host = npt::Table::new(layout.ia_bits);
        let spec = State {
            regions: layout.regions.iter().map(|r| Region { range: range(r.0, r.1), is_ram: r.2 }).collect(),
            pages: BTreeMap::new(),
            vms: BTreeMap::new(),
            mailboxes: BTreeMap::new(),
            room_to_adopt: usize::MAX,
            kept_from_adoption: 0,
            free_tables: layout.pool_pages as usize - host.root_pages(),
            host,
            ram: BTreeMap::new(),
            cpus: vec![Trapped::default(); layout.cpus],
            counts: [0; Event::COUNT],
            log: (0, vec![]),
        };
        let places = spare().pop();
        let places = places.unwrap_or_else(|| Box::leak((0..vm::slots()).map(|_| vm::no_vm()).collect()));
        let core = Core::new(memory, places);
        let mut world = Self { core, spec, calls: 0, secret: 0, placed: RefCell::default(), places };
        assert_eq!(world.protect_el2_mem(pool), Ok(()));
        world
    }

    /// The machine is over: the next one needs less memory of its own. For tests that make very many.
    pub fn give_way(self) {
        self.places.iter().for_each(|place| *place.acquire() = vm::Vm::UNUSED);
        spare().push(self.places);
    }

    /// An SMMU for the machine, and its table of all RAM.
    fn with_smmu(sim: Sim, layout: &Layout, regions: &MemRegions, largest: Level) -> (Sim, Option<Lock<Spt>>) {
        let ram = || regions.as_slice().iter().filter(|region| region.kind != RegionKind::Device).map(|ram| ram.range);
        let shape = Shape::new(layout.ia_bits);
        let tables = PhysRange::new(Pa::new(SMMU_TABLES), pages_for(shape, ram()) * 4096);
        let tables = tables.unwrap_or_else(|| panic!("{layout:x?}: no room for the SMMU's tables"));
        let sim = sim.with_smmu(tables);
        let spt = init_spt(&sim, shape, largest, tables, ram(), [].into_iter());
        let spt = spt.unwrap_or_else(|_| panic!("{layout:x?}: `pages_for` counted too few"));
        sim.load_smmu(spt.acquire().root(), layout.ia_bits);
        (sim, Some(spt))
    }

    /// The machine.
    pub fn sim(&self) -> &Sim {
        self.core.machine()
    }

    fn mem(&self) -> &Memory<Sim> {
        self.core.memory()
    }

    /// The two results of one call, which must be one.
    fn agreed<T: PartialEq + core::fmt::Debug>(&mut self, code: T, step: impl FnOnce(State) -> (State, T)) -> T {
        let (after, spec) = step(self.spec.clone());
        self.spec = after;
        self.calls += 1;
        assert!(code == spec, "code gives {code:x?}\nspecification gives {spec:x?}");
        code
    }

    /// Both map.
    pub fn map_page_host(&mut self, ipa: Ipa) -> Result<(), Denied> {
        let code = mem_manager::map_page_host(self.mem(), ipa);
        self.agreed(code, |s| memory::map_page_host(s, ipa))
    }

    /// Both assign.
    pub fn assign_page_to_core(&mut self, pfn: Pfn) -> Result<(), Denied> {
        let code = mem_manager::assign_page_to_core(self.mem(), pfn);
        self.agreed(code, |s| memory::assign_page_to_core(s, pfn))
    }

    /// Both return.
    pub fn return_page_to_host(&mut self, pfn: Pfn) -> Result<(), Denied> {
        let code = mem_manager::return_page_to_host(self.mem(), pfn);
        self.agreed(code, |s| memory::return_page_to_host(s, pfn))
    }

    /// Both protect.
    pub fn protect_el2_mem(&mut self, range: PhysRange) -> Result<(), Denied> {
        let code = memory_ops::protect_el2_mem(self.mem(), range);
        self.agreed(code, |s| memory::protect_el2_mem(s, range))
    }

    /// Both look.
    pub fn is_host_memory(&mut self, ipa: Ipa) -> bool {
        let code = memory_ops::is_host_memory(self.mem(), ipa);
        let spec = memory::is_host_memory(&self.spec, ipa);
        self.agreed(code, |s| (s, spec))
    }

    /// `pages` pages of the pool are taken by somebody else, or fewer if it ends first. They are given back by
    /// [`Self::give_back`].
    pub fn take_from_pool(&mut self, pages: usize) -> Vec<Pa> {
        let taken: Vec<Pa> = (0..pages).map_while(|_| self.sim().alloc_table(0)).collect();
        self.sim().publish_tables();
        self.spec.free_tables -= taken.len();
        taken
    }

    /// Gives back what [`Self::take_from_pool`] took.
    pub fn give_back(&mut self, taken: Vec<Pa>) {
        self.spec.free_tables += taken.len();
        taken.into_iter().for_each(|page| self.sim().free_table(page, 0));
    }

    /// The host on `cpu` traps with these registers; gives what it finds afterwards.
    pub fn trap(&mut self, cpu: usize, trapped: Trapped, x: trap::Frame) -> (Trapped, trap::Frame) {
        run_as(cpu);
        self.sim().set_trapped(cpu, trapped);
        self.spec.cpus[cpu] = trapped;
        let mut frame = TrapFrame { x, sp: 0 };
        host_sync(&self.core, &mut frame);
        let code = (self.sim().trapped(cpu), frame.x);
        self.agreed(code, |s| {
            let (s, x) = trap::host_trap(s, cpu, x, &firmware);
            let trapped = s.cpus[cpu];
            (s, (trapped, x))
        })
    }

    /// An SError while the host ran on `cpu`, with these registers. Gives the registers after it.
    pub fn serror(&mut self, cpu: usize, trapped: Trapped) -> Trapped {
        run_as(cpu);
        self.sim().set_trapped(cpu, trapped);
        self.spec.cpus[cpu] = trapped;
        host_serror_handler(&self.core);
        let code = self.sim().trapped(cpu);
        self.agreed(code, |s| {
            let s = trap::host_serror(s, cpu);
            let trapped = s.cpus[cpu];
            (s, trapped)
        })
    }

    /// The host's hypercall (or SMC, by `class`) on `cpu`.
    pub fn call(&mut self, cpu: usize, class: u64, immediate: u16, args: [u64; 4]) -> [u64; 4] {
        let mut x = core::array::from_fn(|n| 0x1000 + n as u64);
        x[..4].copy_from_slice(&args);
        let esr = class << 26 | 1 << 25 | u64::from(immediate);
        let trapped = Trapped { esr, pc: 0xffff_8000_0000_1000, pstate: 0x5, ..Trapped::default() };
        let (_, x) = self.trap(cpu, trapped, x);
        [x[0], x[1], x[2], x[3]]
    }

    /// The host on `cpu` touches `ipa`: the hardware's walk, and as many faults as it takes.
    pub fn touch(&mut self, cpu: usize, ipa: Ipa, kind: AccessKind) -> Touched {
        for _ in 0..3 {
            match self.sim().host_access(cpu, ipa, kind) {
                Ok(pa) => {
                    let allowed = memory::host_may_access(&self.spec, ipa.identity());
                    assert_eq!(allowed, Ok(()), "the host on CPU {cpu} reached {ipa}");
                    assert_eq!(pa, ipa.identity());
                    if kind == AccessKind::Write {
                        // What the host writes is there, until the page is scrubbed.
                        let (pfn, value) = (Pfn::containing(pa), 0x4057_0000 + self.calls as u64);
                        self.sim().write_ram(pfn, value);
                        self.spec.ram.insert(pfn, value);
                    }
                    return Touched::Reached(pa);
                }
                Err(fault) => {
                    self.check_fault(ipa, kind, fault);
                    let pc = 0xffff_8000_0000_2000;
                    let start = Trapped { pc, pstate: 0x5, vbar_el1: 0xffff_8000_0001_0000, ..Trapped::default() };
                    self.sim().set_trapped(cpu, start);
                    self.sim().take_abort(cpu, ipa, 0xffff_0000_0000_0000 | ipa.raw(), kind, fault);
                    let (after, _) = self.trap(cpu, self.sim().trapped(cpu), [0; 31]);
                    if after.pc != pc {
                        return Touched::Aborted;
                    }
                }
            }
        }
        panic!("the host's access to {ipa} on CPU {cpu} faults for ever");
    }

    /// A device reads or writes at `iova`: whether it gets through. Without an SMMU it always does.
    pub fn device_touch(&mut self, iova: Ipa, kind: AccessKind) -> bool {
        let Some(code) = self.sim().device_access(iova, kind) else { return true };
        let spec = spt::device_access(&self.spec, iova);
        self.calls += 1;
        assert_eq!(code.ok(), spec, "a device's access to {iova}");
        spec.is_some()
    }

    /// A fault must have a reason in the specification: a table says nothing, or says no.
    fn check_fault(&self, ipa: Ipa, kind: AccessKind, fault: Fault) {
        match (self.spec.host.translate(Gfn::containing(ipa)), fault) {
            (None, Fault::Translation(_)) => {}
            (Some((_, Stage2Access::Window)), Fault::Permission(_)) if kind == AccessKind::Execute => {}
            (spec, _) => panic!("the hardware faults at {ipa} ({fault:?}); the specification says {spec:?}"),
        }
    }

    /// Pages that are the core's by the specification.
    pub fn core_pages(&self) -> BTreeSet<Pfn> {
        self.spec.pages.iter().filter(|(_, state)| **state == PageState::Core).map(|(pfn, _)| *pfn).collect()
    }

    /// The abstraction of the concrete state is the specification's state, and the invariants hold.
    pub fn check(&self) {
        let view = View::of(self.mem());
        assert_eq!(
            abstract_table(&view.leaves, &view.tables, self.spec.host.ia_bits, HOST_WINDOW),
            Ok(self.spec.host.clone()),
            "host stage 2"
        );
        assert_eq!(view.foreign, self.spec.pages, "page records");
        assert_eq!(self.sim().free_pages(), self.spec.free_tables, "free pages of the pool");
        let table_pages = self.mem().npts().host().acquire().table_pages();
        assert_eq!(table_pages, self.spec.host.root_pages() + self.spec.host.tables.len(), "accounted table pages");
        let counts = Event::ALL.map(|event| self.sim().counted(event));
        assert_eq!(counts, self.spec.counts, "events counted");
        for (pfn, content) in &self.spec.ram {
            assert_eq!(self.sim().read_ram(*pfn), *content, "content of {pfn:?}");
        }
        self.check_vms(&view);
        if let Err(broken) = view.check(&self.core_pages(), &self.spec.mailboxes) {
            panic!("{broken}");
        }
    }
}

/// Attributes of a window of the host, which chooses the memory type by its stage 1: Normal, not cacheable; and of one of a VM: Device-nGnRE. Never executed.
const HOST_WINDOW: u64 = 0x0040_0000_0000_07d4;
const VM_WINDOW: u64 = 0x0040_0000_0000_04c4;

/// The table in memory, whose windows have these attributes, as the specification describes one.
fn abstract_table(leaves: &[Leaf], tables: &[TableAt], ia_bits: u32, window: u64) -> Result<npt::Table, String> {
    let mut table = npt::Table::new(ia_bits);
    for leaf in leaves {
        let access = match (leaf.raw & 0xfff0_0000_0000_0ffc, leaf.level) {
            (0x0000_0000_0000_07fc | 0x0000_0000_0000_07d8, 1..=3) => Stage2Access::Ram,
            (0x0000_0000_0000_077c | 0x0000_0000_0000_0758, 1..=3) => Stage2Access::RamReadOnly,
            (other, 1..=3) if other == window => Stage2Access::Window,
            (other, _) => return Err(format!("a leaf with the attributes {other:#x}")),
        };
        let level = Level::ALL[leaf.level as usize - 1];
        let pfn = Pfn::containing(Pa::new(leaf.output));
        table.leaves.insert(Gfn::containing(Ipa::new(leaf.base)), npt::Leaf { pfn, level, access });
    }
    table.tables = tables.iter().map(|at| (at.level, Gfn::containing(Ipa::new(at.base)))).collect();
    Ok(table)
}
