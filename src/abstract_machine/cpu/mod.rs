//! The real CPU at EL2. Exists on the target only.
//!
//! | part            | holds                                                                   |
//! |-----------------|-------------------------------------------------------------------------|
//! | [`Cpu`]         | [`Machine`] on the real thing                                           |
//! | [`el2`]         | what EL2 must hold so that the host can run                             |
//! | [`maintenance`] | TLB and cache maintenance                                               |
//! | [`pool`]        | pages for tables and per-CPU areas                                      |
//! | [`sysreg`]      | system registers that `aarch64-cpu` lacks                               |
//! | [`smccc`]       | the SMC instruction                                                     |
//! | [`halt`]        | stopping for good                                                       |
//! | `world`         | the world switch, with `bank`, `fpsimd`, `traps`, `vgic`                |
//! | [`smmu`]        | SMMUs: what devices reach                                               |
//! | [`entropy`]     | random words                                                            |
//! | [`digest`]      | SHA-256 of pages                                                        |

mod bank;
pub mod digest;
pub mod el2;
pub mod entropy;
pub mod fpsimd;
pub mod halt;
pub mod maintenance;
pub mod pool;
pub mod smccc;
pub mod smmu;
pub mod sysreg;
mod traps;
pub mod vgic;
mod world;

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    ELR_EL1, ELR_EL2, ESR_EL1, ESR_EL2, FAR_EL1, FAR_EL2, HPFAR_EL2, Readable, SCTLR_EL1, SPSR_EL1, SPSR_EL2,
    TPIDR_EL2, VBAR_EL1, Writeable,
};
use spin::Once;
use tock_registers::LocalRegisterCopy;

use super::addr::{Ipa, PAGE_SIZE, Pa, Pfn, PhysRange, VmId};
use super::per_cpu::{Event, PerCpu, World};
use super::regs::{El1Reg, Syndrome, SysregId, ipa_of_hpfar};
use super::shape::Stage2;
use super::{ENTRY_SIZE, Machine, SmcOutcome};
use crate::platform::{own_map, window};
use sysreg::PAR_EL1;

mod switch {
    unsafe extern "C" {
        pub fn translate_stage1(address: u64) -> u64;
    }
}

/// What serves SMC for the host: the board's PSCI server, set once at boot.
pub trait SmcServer: Sync {
    /// See [`Machine::host_smc`]; `cpu` is the CPU that trapped.
    fn serve(&self, cpu: &PerCpu, args: [u64; 4], is_host_memory: &dyn Fn(Ipa) -> bool) -> SmcOutcome;
}

static CPUS: Once<&'static [PerCpu]> = Once::new();
static SMC_SERVER: Once<&'static dyn SmcServer> = Once::new();

/// This machine.
#[derive(Clone, Copy)]
pub struct Cpu;

/// Data of all CPUs, in order of their dense numbers; none before [`set_all`].
pub fn all() -> &'static [PerCpu] {
    CPUS.get().copied().unwrap_or(&[])
}

/// Makes `cpus` the data of all CPUs.
pub fn set_all(cpus: &'static [PerCpu]) {
    CPUS.call_once(|| cpus);
}

/// Makes `server` answer the host's SMCs.
pub fn set_smc_server(server: &'static dyn SmcServer) {
    SMC_SERVER.call_once(|| server);
}

/// Data of this CPU, if it has any yet.
pub fn this() -> Option<&'static PerCpu> {
    // SAFETY: TPIDR_EL2 is zero until `set_this`, which takes a `&'static PerCpu`; nobody else writes it.
    unsafe { (TPIDR_EL2.get() as *const PerCpu).as_ref() }
}

/// The same for a CPU that serves host and VMs: its data do not change any more ([`set_this`] is for its start), so the compiler may take one reading of the
/// register for all of a world switch ("pure").
#[inline(always)]
pub fn this_for_good() -> Option<&'static PerCpu> {
    let data: *const PerCpu;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, tpidr_el2", out(reg) data, options(pure, nomem, nostack, preserves_flags)) };
    // SAFETY: as above.
    unsafe { data.as_ref() }
}

/// Makes `per_cpu` the data of this CPU.
pub fn set_this(per_cpu: Option<&'static PerCpu>) {
    TPIDR_EL2.set(per_cpu.map_or(0, |data| core::ptr::from_ref(data) as u64));
}

/// Runs `with` on this CPU's part of the world switch. Not to be nested.
#[inline(always)]
fn with_world<R>(with: impl FnOnce(&mut World) -> R) -> R {
    let Some(cpu) = this() else { without_data() };
    // SAFETY: this CPU's own, which no other CPU follows; interrupts are masked and uses are not nested.
    with(unsafe { &mut *cpu.world() })
}

/// The same for a CPU that serves host and VMs.
#[inline(always)]
fn serving<R>(with: impl FnOnce(&mut World) -> R) -> R {
    let Some(cpu) = this_for_good() else { without_data() };
    // SAFETY: as in `with_world`; the data of a CPU that serves are its for good.
    with(unsafe { &mut *cpu.world() })
}

#[cold]
#[inline(never)]
fn without_data() -> ! {
    unreachable!("a CPU without data serves nobody")
}

/// Whether a VM is on this CPU, or something of it may be: for a report of a trap of the core, which may have come at any place.
pub fn has_vm() -> bool {
    // SAFETY: this CPU's own; one word of it, which whoever has a reference to it may be about to write, but does not while this runs.
    this().is_some_and(|cpu| unsafe { (&raw const (*cpu.world()).vm).read_volatile() } != VmId::HOST)
}

/// The page of `address` by EL1's own stage 1, as it stands in the CPU. `None` if there is none, or if the CPU took an exception for the attempt (boot/switch.S): ELR_EL2, SPSR_EL2
/// and the syndrome registers are not the caller's any more then.
pub fn translate_stage1(address: u64) -> Option<Pfn> {
    // SAFETY: PAR_EL1 and what an exception uses are put back; nothing else changes.
    let par = LocalRegisterCopy::<u64, PAR_EL1::Register>::new(unsafe { switch::translate_stage1(address) });
    (!par.is_set(PAR_EL1::F)).then(|| Pfn::new(par.read(PAR_EL1::PA)))
}

/// Whether a table or a context may stand at `pa`: the pool, an adopted page, or the SMMUs' tables.
#[inline]
fn is_table_memory(pa: Pa) -> bool {
    let known = || this().is_some_and(|cpu| cpu.has_found(pa.align_down(PAGE_SIZE).raw(), own_map::releases()));
    pool::holds(pa) || known() || is_other_table_memory(pa)
}

/// The same for what is seldom asked.
#[inline(never)]
fn is_other_table_memory(pa: Pa) -> bool {
    pool::holds_added(pa) || is_adopted(pa)
}

/// Stops the machine if no entry may stand at `entry`.
fn expect_table_entry(entry: Pa) {
    if !is_table_memory(entry) || !entry.is_aligned(ENTRY_SIZE) {
        outside(entry);
    }
}

/// Stops the machine if not all of the `count` entries from `entry` on may stand in one table.
#[inline]
fn expect_table_run(entry: Pa, count: u64) {
    expect_table_entry(entry);
    if count > (PAGE_SIZE - entry.raw() % PAGE_SIZE) / ENTRY_SIZE {
        outside(entry);
    }
}

/// The end: a layer made an address that is none of a table.
#[cold]
#[inline(never)]
fn outside(entry: Pa) -> ! {
    panic!("page-table entry {entry} outside the pool")
}

/// Whether `pa` lies in an adopted page.
#[inline]
fn is_adopted(pa: Pa) -> bool {
    let (page, releases) = (pa.align_down(PAGE_SIZE).raw(), own_map::releases());
    this_for_good().is_some_and(|cpu| cpu.has_found(page, releases) || finds(cpu, page, releases))
}

/// Whether the page is an adopted one, by the core's map; then this CPU remembers it.
#[inline(never)]
fn finds(cpu: &PerCpu, page: u64, releases: u64) -> bool {
    let adopted = own_map::is_adopted(Pa::new(page));
    if adopted {
        cpu.remember(page, releases);
    }
    adopted
}

/// The ID register `reg` as `view` shows it, from now on kept.
#[cold]
#[inline(never)]
fn first_look(reg: SysregId, view: impl FnOnce(u64) -> u64) -> u64 {
    let seen = view(sysreg::id_register(reg));
    with_world(|world| world.ids.keep(reg, seen));
    seen
}

impl Machine for Cpu {
    type Foreign<'v> = window::Window;
    type Digester<'d> = digest::Digester;

    fn pt_load(&self, entry: Pa) -> u64 {
        expect_table_entry(entry);
        // SAFETY: the pool is the core's, mapped at its physical addresses; the entry is aligned. The hardware may
        // read it at the same time, and other CPUs under another table's lock never write it.
        unsafe { (entry.raw() as *const u64).read_volatile() }
    }

    fn pt_store(&self, entry: Pa, value: u64) {
        expect_table_entry(entry);
        // SAFETY: as above; one aligned 64-bit store, which walkers see whole.
        unsafe { (entry.raw() as *mut u64).write_volatile(value) };
    }

    #[inline]
    fn pt_load_run(&self, entry: Pa, most: u64, mut fits: impl FnMut(u64) -> bool) -> u64 {
        expect_table_run(entry, most);
        let mut count = 0;
        // SAFETY: as above, for each of them: they lie in one page.
        while count < most && fits(unsafe { (entry.raw() as *const u64).add(count as usize).read_volatile() }) {
            count += 1;
        }
        count
    }

    #[inline]
    fn pt_store_run(&self, entry: Pa, count: u64, value: u64, step: u64) {
        expect_table_run(entry, count);
        let mut value = value;
        for n in 0..count as usize {
            // SAFETY: as above, for each of them: they lie in one page.
            unsafe { (entry.raw() as *mut u64).add(n).write_volatile(value) };
            value = value.wrapping_add(step);
        }
    }

    fn alloc_table(&self, order: u32) -> Option<Pa> {
        pool::alloc(order)
    }

    fn free_table(&self, base: Pa, order: u32) {
        pool::free(base, order);
    }

    fn publish_tables(&self) {
        maintenance::publish();
    }

    fn publish_to_smmus(&self) {
        barrier::dsb(barrier::OSHST);
    }

    fn tlb_flush_run(&self, _: VmId, table: Stage2, ipa: Ipa, pages: u64) {
        maintenance::flush_run(table, ipa, pages);
    }

    fn tlb_flush_vm(&self, _: VmId, table: Stage2) {
        maintenance::flush_vm(table);
    }

    fn clear_phys_run(&self, pages: PhysRange) {
        window::clear(pages);
    }

    fn zero_phys_run(&self, pages: PhysRange) {
        window::zero(pages);
    }

    fn forces_write_back(&self) -> bool {
        el2::vms_force_write_back()
    }

    fn clean_phys_run(&self, pages: PhysRange) {
        window::clean(pages);
    }

    fn sync_page_to_poc(&self, range: PhysRange) {
        window::sync(range);
    }

    fn adopt_page(&self, pfn: Pfn) -> bool {
        own_map::adopt(pfn)
    }

    fn release_page(&self, pfn: Pfn) {
        own_map::release(pfn);
    }

    #[inline(always)]
    fn open_page(&self, pfn: Pfn) -> window::Window {
        window::open(pfn)
    }

    fn read_page(&self, pfn: Pfn, first_word: usize, out: &mut [u64]) {
        window::read(pfn, first_word, out);
    }

    fn write_page(&self, pfn: Pfn, first_word: usize, words: &[u64]) {
        window::write(pfn, first_word, words);
    }

    fn digester(&self) -> digest::Digester {
        digest::Digester::start()
    }

    fn read_esr_el2(&self) -> Syndrome {
        Syndrome::new(ESR_EL2.get())
    }

    fn read_hpfar_el2(&self) -> Ipa {
        ipa_of_hpfar(HPFAR_EL2.get())
    }

    fn read_far_el2(&self) -> u64 {
        FAR_EL2.get()
    }

    fn host_pc(&self) -> u64 {
        ELR_EL2.get()
    }

    fn set_host_pc(&self, pc: u64) {
        ELR_EL2.set(pc);
    }

    fn host_pstate(&self) -> u64 {
        SPSR_EL2.get()
    }

    fn set_host_pstate(&self, pstate: u64) {
        SPSR_EL2.set(pstate);
    }

    fn pend_host_serror(&self, syndrome: Syndrome) {
        el2::pend_host_serror(syndrome);
    }

    fn mmio_read(&self, at: Pa, size: u64) -> u64 {
        assert!(own_map::is_device(at) && at.is_aligned(size), "{at} is no register of the core's");
        // SAFETY: mapped as device memory, aligned; the register is one that the layers chose to read.
        unsafe {
            match size {
                4 => (at.raw() as *const u32).read_volatile().into(),
                _ => (at.raw() as *const u64).read_volatile(),
            }
        }
    }

    fn mmio_write(&self, at: Pa, size: u64, value: u64) {
        assert!(own_map::is_device(at) && at.is_aligned(size), "{at} is no register of the core's");
        // What the device reads because of it is written by now.
        barrier::dsb(barrier::SY);
        // SAFETY: as above.
        unsafe {
            match size {
                4 => (at.raw() as *mut u32).write_volatile(value as u32),
                _ => (at.raw() as *mut u64).write_volatile(value),
            }
        }
    }

    fn read_el1(&self, reg: El1Reg) -> u64 {
        match reg {
            El1Reg::Elr => ELR_EL1.get(),
            El1Reg::Spsr => SPSR_EL1.get(),
            El1Reg::Esr => ESR_EL1.get(),
            El1Reg::Far => FAR_EL1.get(),
            El1Reg::Sctlr => SCTLR_EL1.get(),
            El1Reg::Vbar => VBAR_EL1.get(),
        }
    }

    fn write_el1(&self, reg: El1Reg, value: u64) {
        match reg {
            El1Reg::Elr => ELR_EL1.set(value),
            El1Reg::Spsr => SPSR_EL1.set(value),
            El1Reg::Esr => ESR_EL1.set(value),
            El1Reg::Far => FAR_EL1.set(value),
            El1Reg::Sctlr => SCTLR_EL1.set(value),
            El1Reg::Vbar => VBAR_EL1.set(value),
        }
    }

    #[inline]
    fn id_register(&self, reg: SysregId, view: impl FnOnce(u64) -> u64) -> u64 {
        match with_world(|world| world.ids.get(reg)) {
            Some(seen) => seen,
            None => first_look(reg, view),
        }
    }

    fn host_smc(&self, args: [u64; 4], is_host_memory: &dyn Fn(Ipa) -> bool) -> SmcOutcome {
        const NOT_SUPPORTED: u64 = -1_i64 as u64;
        match (SMC_SERVER.get(), this()) {
            (Some(server), Some(cpu)) => server.serve(cpu, args, is_host_memory),
            _ => SmcOutcome::Return([NOT_SUPPORTED, 0, 0, 0]),
        }
    }

    fn read_log(&self, seq: u64, out: &mut [u8]) -> (u64, usize) {
        let read = crate::platform::logger::read_from(seq, out);
        (read.next, read.len)
    }

    fn count(&self, event: Event) {
        if let Some(cpu) = this_for_good() {
            cpu.count(event);
        }
    }

    fn smmu_flush(&self, at: Ipa, pages: u64) {
        smmu::flush(at, pages);
    }

    fn counted(&self, event: Event) -> u64 {
        let so_far = || all().iter().map(|cpu| cpu.counted(event)).sum();
        if event == Event::DeviceAccessDenied {
            smmu::count_refused(so_far(), |event| self.count(event));
        }
        so_far()
    }

    fn check(&self) {
        halt::check();
    }
}
