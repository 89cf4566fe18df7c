//! The real CPU at EL2. Exists on the target only.
//!
//! | part            | holds                                                                   |
//! |-----------------|-------------------------------------------------------------------------|
//! | [`Cpu`]         | [`Machine`] on the real thing                                           |
//! | [`el2`]         | what EL2 must hold so that the host can run                             |
//! | [`maintenance`] | TLB and cache maintenance                                               |
//! | [`pool`]        | pages for tables and per-CPU areas                                      |
//! | [`world`]       | the world switch: stage 2, traps, timers                                |
//! | [`bank`], [`fp`], [`vgic`] | the registers that it moves                                  |
//! | [`window`]      | pages of somebody else, for one access                                  |
//! | [`sysreg`]      | system registers that `aarch64-cpu` lacks                               |
//! | [`smccc`]       | the SMC instruction                                                     |
//! | [`halt`]        | stopping for good                                                       |

pub mod bank;
pub mod el2;
pub mod fp;
pub mod halt;
pub mod maintenance;
pub mod pool;
pub mod smccc;
pub mod sysreg;
pub mod vgic;
pub mod window;
pub mod world;

use aarch64_cpu::registers::{
    ELR_EL1, ELR_EL2, ESR_EL1, ESR_EL2, FAR_EL1, FAR_EL2, HPFAR_EL2, Readable, SCTLR_EL1, SPSR_EL1, SPSR_EL2,
    TPIDR_EL2, VBAR_EL1, Writeable,
};
use spin::Once;

use super::addr::{CpuId, Ipa, Pa, Pfn, PhysRange, VcpuId, VmId};
use super::per_cpu::{Event, PerCpu};
use super::regs::{El1Reg, Syndrome, SysregId, ipa_of_hpfar};
use super::shadow::{Shadow, ShadowReg};
use super::world::{ContextAt, ExitCode, VgicInfo, VirtualLines};
use super::{Machine, SmcOutcome, Worlds};

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

/// Makes `per_cpu` the data of this CPU.
pub fn set_this(per_cpu: Option<&'static PerCpu>) {
    TPIDR_EL2.set(per_cpu.map_or(0, |data| core::ptr::from_ref(data) as u64));
}

/// Whether tables may lie there: in the pool, or outside the core's own image. Of what is outside only adopted pages are mapped; any other
/// traps.
fn is_table_memory(entry: Pa) -> bool {
    pool::holds(entry) || !crate::platform::entry::image_layout().holds(entry)
}

impl Worlds for Cpu {
    fn get_shadow_ctxt(&self, shadow: Shadow, reg: ShadowReg) -> u64 {
        world::with_context(ContextAt::Vm(shadow), |context| context.slot(reg).copied().unwrap_or(0))
    }

    fn set_shadow_ctxt(&self, shadow: Shadow, reg: ShadowReg, value: u64) {
        world::with_context(ContextAt::Vm(shadow), |context| {
            if let Some(slot) = context.slot(reg) {
                *slot = value;
            }
        });
    }

    fn save_sysregs(&self, at: ContextAt) {
        world::save_sysregs(at);
    }

    fn restore_sysregs(&self, at: ContextAt) {
        world::restore_sysregs(at);
    }

    fn fpsimd_save_state(&self, at: ContextAt) {
        world::fpsimd_save_state(at);
    }

    fn fpsimd_restore_state(&self, at: ContextAt) {
        world::fpsimd_restore_state(at);
    }

    fn activate_traps(&self, lines: VirtualLines) {
        world::activate_traps(lines);
    }

    fn deactivate_traps(&self) {
        world::deactivate_traps();
    }

    fn timer_enable_traps(&self, cntvoff: u64) {
        world::timer_enable_traps(cntvoff);
    }

    fn timer_disable_traps(&self) {
        world::timer_disable_traps();
    }

    fn host_el2_restore_state(&self) {
        world::host_el2_restore_state();
    }

    fn vm_el2_restore_state(&self, vttbr: u64, ia_bits: u32, flush: bool) {
        world::vm_el2_restore_state(vttbr, ia_bits, flush);
    }

    fn vgic_save_state(&self, shadow: Shadow) {
        world::with_context(ContextAt::Vm(shadow), vgic::save);
    }

    fn vgic_restore_state(&self, shadow: Shadow, lrs: usize) {
        world::with_context(ContextAt::Vm(shadow), |context| vgic::restore(context, lrs));
    }

    fn vgic_info(&self) -> VgicInfo {
        vgic::info()
    }

    fn set_per_cpu(&self, vm: VmId, vcpu: VcpuId) {
        world::here().set_current(vm, vcpu);
    }

    fn get_cur_vmid(&self) -> VmId {
        world::here().current().0
    }

    fn get_cur_vcpuid(&self) -> VcpuId {
        world::here().current().1
    }

    fn get_cur_cpu(&self) -> CpuId {
        world::here().cpu
    }

    fn run_vm(&self, shadow: Shadow) -> ExitCode {
        world::run_vm(shadow)
    }

    fn fault_ipa(&self, shadow: Shadow) -> Option<Ipa> {
        world::fault_ipa(shadow)
    }

    fn counter(&self) -> u64 {
        aarch64_cpu::registers::CNTPCT_EL0.get()
    }

    fn entropy(&self) -> Option<[u64; 4]> {
        world::entropy()
    }
}

impl Machine for Cpu {
    fn pt_load(&self, entry: Pa) -> u64 {
        assert!(is_table_memory(entry) && entry.is_aligned(8), "page-table entry {entry} that is no table memory");
        // SAFETY: the pool is the core's, mapped at its physical addresses; the entry is aligned. The hardware may
        // read it at the same time, and other CPUs under another table's lock never write it.
        unsafe { (entry.raw() as *const u64).read_volatile() }
    }

    fn pt_store(&self, entry: Pa, value: u64) {
        assert!(is_table_memory(entry) && entry.is_aligned(8), "page-table entry {entry} that is no table memory");
        // SAFETY: as above; one aligned 64-bit store, which walkers see whole.
        unsafe { (entry.raw() as *mut u64).write_volatile(value) };
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

    fn tlb_flush_ipa(&self, _: VmId, root: u64, ipa: Ipa) {
        maintenance::flush_ipa(root, ipa);
    }

    fn tlb_flush_vm(&self, _: VmId, root: u64) {
        maintenance::flush_vm(root);
    }

    fn adopt_page(&self, pfn: Pfn) -> bool {
        window::adopt(pfn)
    }

    fn release_page(&self, pfn: Pfn) {
        window::release(pfn);
    }

    fn read_page(&self, pfn: Pfn, first_word: usize, out: &mut [u64]) {
        window::read(pfn, first_word, out);
    }

    fn write_page(&self, pfn: Pfn, first_word: usize, words: &[u64]) {
        window::write(pfn, first_word, words);
    }

    fn clear_phys_page(&self, pfn: Pfn) {
        window::clear(pfn);
    }

    fn sync_page_to_poc(&self, range: PhysRange) {
        window::clean(range);
        maintenance::invalidate_icache_all();
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

    fn id_register(&self, reg: SysregId) -> u64 {
        sysreg::id_register(reg)
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
        if let Some(cpu) = this() {
            cpu.count(event);
        }
    }

    fn counted(&self, event: Event) -> u64 {
        all().iter().map(|cpu| cpu.counted(event)).sum()
    }

    fn check(&self) {
        halt::check();
    }
}
