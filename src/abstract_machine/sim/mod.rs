//! The simulated machine: the trait [`Machine`] for the development machine, built to show mistakes.
//!
//! | part       | holds                                                                                      |
//! |------------|--------------------------------------------------------------------------------------------|
//! | [`walker`] | stage-2 walks as the hardware does them, written from the manual, not from the layers       |
//! | [`tlb`]    | a TLB and a walk cache for each CPU that forget nothing unless they are told                |
//! | [`tables`] | table memory: judges each store (break before make, publish, forget before free), logs them |
//! | [`smmu`]   | an SMMU and the devices behind it; `its`: an ITS, as far as it reads memory                |
//! | [`foreign`] | pages of somebody else as the core reads them, and a host that changes them meanwhile     |
//! | [`vms`]    | what VMs' hardware does; what caches hold back of memory that changes hands                 |
//! | `reach`    | who else reaches a page that changes hands                                                  |
//! | [`worlds`] | the world switch, with scripts as VMs; `registers`: those of one CPU, and whose they are     |
//! | this file  | [`Sim`]: the above, RAM, and each CPU's trapped registers, behind one Mutex                 |
//!
//! A thread is one CPU at a time: [`run_as`] says which. [`Sim::host_access`] is what the host's hardware would do with
//! an address. Mistakes that real hardware would only punish at times are collected in [`Sim::violations`].
#![forbid(unsafe_code)]

pub mod foreign;
mod its;
mod reach;
mod registers;
mod sabotage;
pub mod smmu;
pub mod tables;
pub mod tlb;
mod trapped;
pub mod vms;
pub mod walker;
pub mod worlds;

use std::boxed::Box;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::string::String;
use std::sync::{Mutex, MutexGuard};
use std::vec::Vec;
use std::{format, vec};

use super::addr::{Ipa, PAGE_SIZE, Pa, Pfn, PhysRange, VmId};
use super::per_cpu::Event;
use super::regs::{El1Reg, Syndrome, SysregId};
use super::shape::Stage2;
use super::{Machine, SmcOutcome};
pub use sabotage::Sabotage;
use tables::{LogEntry, Tables};
use tlb::Tlb;
use trapped::el1;
pub use trapped::{Registers, Trapped};
pub use vms::canary;
use vms::{Caches, Content, Digester};
use walker::{AccessKind, Fault, Leaf, Regime, TableAt};

std::thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// This thread is `cpu` from now on.
pub fn run_as(cpu: usize) {
    CPU.set(cpu);
}

/// What the fake firmware does with an SMC.
pub type Firmware = Box<dyn Fn([u64; 4], &dyn Fn(Ipa) -> bool) -> SmcOutcome + Send + Sync>;

#[derive(Default)]
struct Cpu {
    trapped: Trapped,
    tlb: Tlb,
    counts: [u64; Event::COUNT],
}

struct State {
    tables: Tables,
    cpus: Vec<Cpu>,
    ram: BTreeMap<u64, Content>,
    caches: Caches,
    cleaned_early: reach::CleanedEarly,
    smmu: Option<smmu::Smmu>,
    itss: Vec<its::Its>,
    room_to_adopt: vms::Room,
    synced: Vec<PhysRange>,
    text: (u64, Vec<u8>),
    watched: Vec<(VmId, Ipa)>,
    sabotage: Option<Sabotage>,
    halted: bool,
    id_registers: BTreeMap<SysregId, u64>,
}

/// The simulated machine.
pub struct Sim {
    state: Mutex<State>,
    worlds: Mutex<worlds::WorldState>,
    firmware: Option<Firmware>,
    registers: Mutex<Option<Registers>>,
}

impl Sim {
    /// A machine with so many CPUs and a pool for tables at `pool`.
    pub fn new(cpus: usize, pool: PhysRange) -> Self {
        let state = State {
            tables: Tables::new(pool.base().raw(), pool.pages() as usize),
            cpus: (0..cpus).map(|_| Cpu::default()).collect(),
            ram: BTreeMap::new(),
            caches: Caches::default(),
            cleaned_early: reach::CleanedEarly::default(),
            smmu: None,
            itss: vec![],
            room_to_adopt: vms::Room::ENDLESS,
            synced: vec![],
            text: (0, vec![]),
            watched: vec![],
            sabotage: None,
            halted: false,
            id_registers: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), worlds: Mutex::default(), firmware: None, registers: Mutex::default() }
    }

    /// The same, with firmware that answers SMCs. Without, every SMC is NOT_SUPPORTED.
    #[must_use]
    pub fn with_firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = Some(firmware);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test thread that panicked has its message out already; the others may go on.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The CPUs use this stage-2 table for `vm` from now on.
    pub fn load_stage2(&self, vm: VmId, root: Pa, ia_bits: u32, pa_bits: u32) {
        self.state().tables.load_root(vm.raw(), Regime { root: root.raw(), ia_bits, pa_bits });
    }

    /// What the hardware of `cpu` makes of the host's access to `ipa`: the physical address, or the fault that it takes.
    ///
    /// # Errors
    /// The fault.
    pub fn host_access(&self, cpu: usize, ipa: Ipa, kind: AccessKind) -> Result<Pa, Fault> {
        let mut state = self.state();
        state.section_over();
        state.translate(cpu, 0, ipa.raw(), kind)
    }

    /// The host's load from the page at `ipa`.
    ///
    /// # Errors
    /// The fault.
    pub fn host_load(&self, cpu: usize, ipa: Ipa) -> Result<u64, Fault> {
        let pa = self.host_access(cpu, ipa, AccessKind::Read)?;
        Ok(self.read_ram(Pfn::containing(pa)))
    }

    /// The host's store to the page at `ipa`.
    ///
    /// # Errors
    /// The fault.
    pub fn host_store(&self, cpu: usize, ipa: Ipa, value: u64) -> Result<(), Fault> {
        let pa = self.host_access(cpu, ipa, AccessKind::Write)?;
        self.write_ram(Pfn::containing(pa), value);
        Ok(())
    }

    /// After every store to a table, all CPUs walk to these addresses on their own account, as speculation may.
    pub fn watch(&self, ipas: &[Ipa]) {
        self.watch_vms(&ipas.iter().map(|ipa| (VmId::HOST, *ipa)).collect::<Vec<_>>());
    }

    /// The machine was halted by a failure on some CPU.
    pub fn halt(&self) {
        self.state().halted = true;
    }

    /// What went against the rules of the architecture so far.
    pub fn violations(&self) -> Vec<String> {
        self.state().tables.violations.clone()
    }

    /// The same, including sections that ended without what they owed, as the host sees it when it runs again.
    pub fn violations_at_rest(&self) -> Vec<String> {
        let mut state = self.state();
        state.section_over();
        state.smmu_at_rest();
        drop(state);
        self.violations()
    }

    /// The ranges that were cleaned to the point of coherency, in order.
    pub fn synced(&self) -> Vec<PhysRange> {
        self.state().synced.clone()
    }

    /// Number of free pages in the pool.
    pub fn free_pages(&self) -> usize {
        self.state().tables.free_pages()
    }

    /// The pool.
    pub fn pool(&self) -> PhysRange {
        let (base, size) = self.state().tables.pool();
        PhysRange::between(Pa::new(base), Pa::new(base + size))
    }

    /// Begins to write down what is done to tables.
    pub fn start_log(&self) {
        self.state().tables.log = Some(vec![]);
    }

    /// What was written down.
    pub fn take_log(&self) -> Vec<LogEntry> {
        self.state().tables.log.take().unwrap_or_default()
    }

    /// The table memory as it is.
    pub fn snapshot(&self) -> BTreeMap<u64, u64> {
        self.state().tables.snapshot()
    }

    /// How the CPUs walk the tables of `vm`.
    pub fn regime(&self, vm: VmId) -> Option<Regime> {
        self.state().tables.regime(vm.raw())
    }

    /// All leaves and tables of `vm` that stand in memory.
    pub fn enumerate(&self, vm: VmId) -> (Vec<Leaf>, Vec<TableAt>) {
        let mut state = self.state();
        let tables = &mut state.tables;
        tables.regime(vm.raw()).map(|regime| regime.enumerate(|addr| tables.walk_load(addr))).unwrap_or_default()
    }

    /// All leaves of `vm` that some CPU remembers.
    pub fn remembered(&self, vm: VmId) -> Vec<Leaf> {
        self.state().cpus.iter().flat_map(|cpu| cpu.tlb.leaves(vm.raw())).collect()
    }
}

impl State {
    fn translate(&mut self, cpu: usize, vm: u16, ipa: u64, kind: AccessKind) -> Result<Pa, Fault> {
        let regime = self.tables.regime(vm).unwrap_or_else(|| panic!("no stage-2 table loaded for VM {vm}"));
        let leaf = match self.cpus[cpu].tlb.find(vm, ipa) {
            Some(leaf) => leaf,
            None => {
                let from = self.cpus[cpu].tlb.find_table(vm, ipa);
                let (seen, leaf) = regime.walk(ipa, from, |addr| self.tables.walk_load(addr));
                self.cpus[cpu].tlb.saw_tables(vm, &seen);
                let leaf = leaf?;
                self.caches.fetched(vm, &leaf);
                if let Some(conflict) = self.cpus[cpu].tlb.saw_leaf(vm, leaf) {
                    self.tables.violation(conflict);
                }
                leaf
            }
        };
        if leaf.allows(kind) {
            Ok(Pa::new(leaf.output + (ipa - leaf.base)))
        } else {
            Err(Fault::Permission(leaf.level))
        }
    }

    fn speculate(&mut self) {
        for (vm, ipa) in self.watched.clone() {
            if self.tables.regime(vm.raw()).is_some() {
                for cpu in 0..self.cpus.len() {
                    let _ = self.translate(cpu, vm.raw(), ipa.raw(), AccessKind::Read);
                }
            }
        }
    }

    fn this_cpu(&mut self) -> &mut Cpu {
        let cpu = CPU.get();
        self.cpus.get_mut(cpu).unwrap_or_else(|| panic!("CPU {cpu} does not exist"))
    }

    fn check_root(&mut self, vm: VmId, Stage2 { vttbr, shape }: Stage2) {
        let Some(regime) = self.tables.regime(vm.raw()) else { return };
        if vttbr != regime.root | u64::from(vm.raw()) << 48 {
            self.tables.violation(format!("flush of {vm:?} with the VTTBR {vttbr:#x} of another"));
        }
        if shape.ia_bits() != regime.ia_bits {
            self.tables.violation(format!("flush of {vm:?} with the form of another table, {shape:?}"));
        }
    }
}

impl Machine for Sim {
    type Foreign<'v> = foreign::Visited<'v>;
    type Digester<'d> = Digester<'d>;

    fn pt_load(&self, entry: Pa) -> u64 {
        let state = self.state();
        state.load_smmu_entry(entry).unwrap_or_else(|| state.tables.load(entry.raw()))
    }

    fn pt_store(&self, entry: Pa, value: u64) {
        let mut state = self.state();
        if state.store_smmu_entry(entry, value) {
            return;
        }
        state.link_its_table(entry, value);
        if let Some(leaf) = state.tables.store(entry.raw(), value) {
            state.check_caches(leaf);
        }
        state.speculate();
    }

    fn alloc_table(&self, order: u32) -> Option<Pa> {
        self.state().tables.alloc(order).map(Pa::new)
    }

    fn free_table(&self, base: Pa, order: u32) {
        self.state().free_table(base, order);
    }

    fn publish_tables(&self) {
        let mut state = self.state();
        if state.sabotage != Some(Sabotage::NoPublish) {
            state.tables.publish();
        }
    }

    fn publish_to_smmus(&self) {
        let mut state = self.state();
        if state.sabotage != Some(Sabotage::NoPublish) {
            state.publish_smmu();
        }
    }

    fn smmu_flush(&self, at: Ipa, pages: u64) {
        self.state().flush_smmu(at, pages);
    }

    fn tlb_flush_run(&self, vm: VmId, table: Stage2, ipa: Ipa, pages: u64) {
        let mut state = self.state();
        state.check_root(vm, table);
        state.tables.publish();
        for at in (0..pages).map(|n| ipa.raw() + n * PAGE_SIZE) {
            match state.sabotage {
                Some(Sabotage::NoFlushIpa) => return,
                Some(Sabotage::LocalFlushOnly) => state.cpus[CPU.get()].tlb.flush_ipa(vm.raw(), at),
                _ => state.cpus.iter_mut().for_each(|cpu| cpu.tlb.flush_ipa(vm.raw(), at)),
            }
            state.tables.flushed_ipa(vm.raw(), at);
        }
    }

    fn tlb_flush_vm(&self, vm: VmId, table: Stage2) {
        let mut state = self.state();
        state.check_root(vm, table);
        state.tables.publish();
        let vm = if state.sabotage == Some(Sabotage::FlushOfHostOnly) { VmId::HOST } else { vm };
        if state.sabotage != Some(Sabotage::NoFlushVm) {
            state.cpus.iter_mut().for_each(|cpu| cpu.tlb.flush_vm(vm.raw()));
            state.tables.flushed_vm(vm.raw());
        }
    }

    fn clear_phys_run(&self, pages: PhysRange) {
        self.state().scrub_all(pages, true);
    }

    fn zero_phys_run(&self, pages: PhysRange) {
        self.state().scrub_all(pages, false);
    }

    fn forces_write_back(&self) -> bool {
        self.state().caches.forced
    }

    fn clean_phys_run(&self, pages: PhysRange) {
        self.state().clean(pages);
    }

    fn sync_page_to_poc(&self, range: PhysRange) {
        self.state().sync(range);
    }

    fn forget_instructions(&self) {
        self.state().sync(PhysRange::default());
    }

    fn adopt_page(&self, pfn: Pfn) -> bool {
        self.state().adopt(pfn)
    }

    fn release_page(&self, pfn: Pfn) {
        self.state().release(pfn);
        self.forget_context(pfn);
    }

    fn open_page(&self, pfn: Pfn) -> foreign::Visited<'_> {
        self.visited(pfn)
    }

    fn read_page(&self, pfn: Pfn, first_word: usize, out: &mut [u64]) {
        self.read_foreign(pfn, first_word, out);
    }

    fn write_page(&self, pfn: Pfn, first_word: usize, words: &[u64]) {
        self.state().write_page(pfn, first_word, words);
    }

    fn digester(&self) -> Digester<'_> {
        Digester(self)
    }

    fn read_esr_el2(&self) -> Syndrome {
        Syndrome::new(self.state().this_cpu().trapped.esr)
    }

    fn read_hpfar_el2(&self) -> Ipa {
        Ipa::new(self.state().this_cpu().trapped.hpfar)
    }

    fn read_far_el2(&self) -> u64 {
        self.state().this_cpu().trapped.far
    }

    fn host_pc(&self) -> u64 {
        self.state().this_cpu().trapped.pc
    }

    fn set_host_pc(&self, pc: u64) {
        self.state().this_cpu().trapped.pc = pc;
    }

    fn host_pstate(&self) -> u64 {
        self.state().this_cpu().trapped.pstate
    }

    fn set_host_pstate(&self, pstate: u64) {
        self.state().this_cpu().trapped.pstate = pstate;
    }

    fn pend_host_serror(&self, syndrome: Syndrome) {
        self.state().this_cpu().trapped.serror = Some(syndrome.raw());
    }

    fn mmio_read(&self, at: Pa, size: u64) -> u64 {
        self.register(at, size, None)
    }

    fn mmio_write(&self, at: Pa, size: u64, value: u64) {
        self.state().tell_its(at);
        self.register(at, size, Some(value));
    }

    fn read_el1(&self, reg: El1Reg) -> u64 {
        match self.running(reg, None) {
            Some(value) => value,
            None => *el1(&mut self.state().this_cpu().trapped, reg),
        }
    }

    fn write_el1(&self, reg: El1Reg, value: u64) {
        if self.running(reg, Some(value)).is_none() {
            *el1(&mut self.state().this_cpu().trapped, reg) = value;
        }
    }

    fn id_register(&self, reg: SysregId, view: impl FnOnce(u64) -> u64) -> u64 {
        let raw = self.state().id_registers.get(&reg).copied().unwrap_or(0);
        view(raw)
    }

    fn host_smc(&self, args: [u64; 4], is_host_memory: &dyn Fn(Ipa) -> bool) -> SmcOutcome {
        match &self.firmware {
            Some(firmware) => firmware(args, is_host_memory),
            None => SmcOutcome::Return([-1i64 as u64, args[1], args[2], args[3]]),
        }
    }

    fn read_log(&self, seq: u64, out: &mut [u8]) -> (u64, usize) {
        let state = self.state();
        let (first, text) = &state.text;
        let from = seq.saturating_sub(*first).min(text.len() as u64) as usize;
        let rest = &text[from..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        (first + (from + count) as u64, count)
    }

    fn count(&self, event: Event) {
        self.state().this_cpu().counts[event as usize] += 1;
    }

    fn counted(&self, event: Event) -> u64 {
        self.state().cpus.iter().map(|cpu| cpu.counts[event as usize]).sum()
    }

    fn check(&self) {
        assert!(!self.state().halted, "check: the machine is halted, and a CPU went on");
    }
}

#[cfg(test)]
mod tests;
