//! From boot/*.S to Rust, and from Rust to the host: the names and offsets that the assembly uses, and the memory
//! that exists before anything else does.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, offset_of};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{SCTLR_EL2, TCR_EL2, VBAR_EL2, Writeable};

use super::{boot, el3, failure};
use crate::abstract_machine::addr::{BLOCK_2M, CpuId, Pa, PhysRange};
use crate::abstract_machine::cpu::{self, el2};
use crate::abstract_machine::per_cpu::PerCpu;
use crate::abstract_machine::regs::{ESR, MPIDR_AFFINITY, SPSR, TrapFrame};
use crate::abstract_machine::shadow::Context;
use crate::abstract_machine::world::ExitCode;
use crate::npt::Level;
use crate::npt::descriptor::{CoreAccess, Desc, MAIR_EL2_VALUE};
use crate::platform::device_tree::MAX_CPUS;

/// Bytes of the stack that the boot CPU starts on; the lowest page becomes its guard.
const BOOT_STACK_SIZE: usize = 128 * 1024;
/// Bytes of the stack on which a trap of the core during boot is reported.
const BOOT_EMERGENCY_SIZE: usize = 8 * 1024;

/// ESR_EL2.EC of a hypercall.
const ESR_EC_HVC64: u64 = ESR::EC::Value::Hvc64 as u64;

/// What a CPU loads to turn its translation on. Cleaned to memory before another CPU starts.
#[repr(C, align(64))]
struct MmuSettings {
    mair: u64,
    tcr: u64,
    ttbr0: u64,
    sctlr: u64,
}

/// Memory that assembly and one CPU at a time use at boot.
#[repr(C, align(4096))]
struct BootCell<T>(UnsafeCell<T>);

// SAFETY: written by the boot CPU only, before it starts another one.
unsafe impl<T> Sync for BootCell<T> {}

static BOOT_STACK: BootCell<[u8; BOOT_STACK_SIZE]> = BootCell(UnsafeCell::new([0; BOOT_STACK_SIZE]));
static BOOT_EMERGENCY: BootCell<[u8; BOOT_EMERGENCY_SIZE]> = BootCell(UnsafeCell::new([0; BOOT_EMERGENCY_SIZE]));
static MMU_SETTINGS: BootCell<MmuSettings> =
    BootCell(UnsafeCell::new(MmuSettings { mair: 0, tcr: 0, ttbr0: 0, sctlr: 0 }));
static SECONDARY_TABLE: BootCell<[(u64, u64); MAX_CPUS + 1]> = BootCell(UnsafeCell::new([(0, 0); MAX_CPUS + 1]));
static EARLY_TABLES: BootCell<[[u64; 512]; EARLY_TABLE_COUNT]> =
    BootCell(UnsafeCell::new([[0; 512]; EARLY_TABLE_COUNT]));
static BOOT_PER_CPU: BootCell<MaybeUninit<PerCpu>> = BootCell(UnsafeCell::new(MaybeUninit::uninit()));

/// Root, and a level-1 and a level-2 table for each of: image, device tree, the block behind the device tree.
const EARLY_TABLE_COUNT: usize = 7;

/// Number of the vector of a synchronous exception of the core itself.
const CORE_SYNC: u64 = 4;
/// ISR_EL1.A: an SError is pending. Arm ARM D24.2.103.
const ISR_EL1_A: u64 = 8;
/// PSTATE.A in the immediate of MSR DAIFClr. Arm ARM C5.2.3.
const DAIF_A: u64 = 4;

global_asm!(
    include_str!("../../boot/entry.S"),
    include_str!("../../boot/relocate.S"),
    SCR_EL3_VALUE = const el3::SCR_EL3_VALUE,
    CPTR_EL3_VALUE = const el3::CPTR_EL3_VALUE,
    MDCR_EL3_VALUE = const el3::MDCR_EL3_VALUE,
    SMCR_EL3_VALUE = const el3::SMCR_EL3_VALUE,
    CORE_EL3 = const failure::CORE_EL3,
    SPSR_EL2H_MASKED = const 0x3c9,
    HCR_EL2_RW = const 1_u64 << 31,
    MMU_SETTINGS = sym MMU_SETTINGS,
    MMU_MAIR = const offset_of!(MmuSettings, mair),
    MMU_TCR = const offset_of!(MmuSettings, tcr),
    MMU_TTBR0 = const offset_of!(MmuSettings, ttbr0),
    MMU_SCTLR = const offset_of!(MmuSettings, sctlr),
    BOOT_STACK = sym BOOT_STACK,
    BOOT_STACK_SIZE_4K = const BOOT_STACK_SIZE / 4096,
    CORE_BLOCK_SIZE_4K = const BLOCK_2M / 4096,
    SECONDARY_TABLE = sym SECONDARY_TABLE,
    MPIDR_AFFINITY = const MPIDR_AFFINITY,
    PERCPU_STACK_TOP = const offset_of!(PerCpu, stack_top),
    build_early_map = sym build_early_map,
    primary_main = sym boot::primary_main,
    secondary_main = sym super::cpus::secondary_main,
    refuse = sym boot::refuse,
    UNFIT_EL1 = const boot::Unfit::El1 as u64,
    UNFIT_E2H = const boot::Unfit::E2h as u64,
    UNFIT_PLACE = const boot::Unfit::Place as u64,
    open_to_non_secure = sym el3::open_to_non_secure,
);

global_asm!(
    include_str!("../../boot/vectors.S"),
    include_str!("../../boot/switch.S"),
    include_str!("../../boot/digest.S"),
    FRAME_SIZE = const size_of::<TrapFrame>(),
    PERCPU_EMERGENCY_TOP = const offset_of!(PerCpu, emergency_top),
    ESR_EC_SHIFT = const ESR::EC.shift,
    ESR_EC_HVC64 = const ESR_EC_HVC64,
    trap_lower_sync = sym boot::trap_lower_sync,
    trap_lower_hvc = sym boot::trap_lower_hvc,
    trap_lower_irq = sym failure::unexpected_interrupt,
    trap_lower_serror = sym boot::trap_lower_serror,
    CORE_SYNC = const CORE_SYNC,
    CORE_SERROR = const failure::CORE_SERROR,
    ISR_A = const ISR_EL1_A,
    DAIF_A = const DAIF_A,
    core_trapped = sym failure::core_trapped,
    CONTEXT_PC = const offset_of!(Context, pc),
    CONTEXT_SYNDROME = const offset_of!(Context, syndrome),
    EXIT_TRAP = const ExitCode::Trap as u64,
    EXIT_IRQ = const ExitCode::Irq as u64,
    EXIT_SERROR = const ExitCode::SError as u64,
);

// The first word of each is x0, and PC and PSTATE are a pair.
const _: () = assert!(offset_of!(TrapFrame, x) == 0 && offset_of!(Context, x) == 0);
const _: () = assert!(offset_of!(Context, pstate) == offset_of!(Context, pc) + 8);

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
    static vectors: u8;
    fn secondary_entry();
    fn enter_host(x0: u64, entry: u64, spsr: u64, stack_top: u64) -> !;
}

fn address(symbol: *const u8) -> Pa {
    Pa::new(symbol as u64)
}

/// The parts of the core's image, as they lie in memory.
pub struct ImageLayout {
    /// Header and code.
    pub text: PhysRange,
    /// Constants and relocated data.
    pub rodata: PhysRange,
    /// Data, bss and the boot stacks.
    pub data: PhysRange,
    /// The rest of the core's 2 MiB block.
    pub free: PhysRange,
    /// The page below the boot stack.
    pub stack_guard: PhysRange,
}

/// Where the core lies.
pub fn image_layout() -> ImageLayout {
    // SAFETY: the linker script defines the symbols; only their addresses are taken.
    let (start, text, rodata, end) = unsafe { (&__image_start, &__text_end, &__rodata_end, &__image_end) };
    let (start, text, rodata, end) = (address(start), address(text), address(rodata), address(end));
    let stack = address(BOOT_STACK.0.get().cast());
    ImageLayout {
        text: PhysRange::between(start, text),
        rodata: PhysRange::between(text, rodata),
        data: PhysRange::between(rodata, end),
        free: PhysRange::between(end, Pa::new(start.raw() + BLOCK_2M)),
        stack_guard: PhysRange::between(stack, Pa::new(stack.raw() + 4096)),
    }
}

/// The first map, with which the MMU is turned on: the core's block and the device tree, in blocks. Runs with the MMU off,
/// so it takes no lock and makes no exclusive access.
extern "C" fn build_early_map(base: u64, dtb: u64) {
    // SAFETY: the boot CPU alone runs, and nothing else refers to the tables or settings yet.
    let (tables, settings) = unsafe { (&mut *EARLY_TABLES.0.get(), &mut *MMU_SETTINGS.0.get()) };
    let mut used = 1;
    let mut map = |at: u64, desc: Desc| {
        let mut table = 0;
        for shift in [39, 30] {
            let index = (at >> shift & 511) as usize;
            if tables[table][index] == 0 {
                tables[table][index] = Desc::table(address((&raw const tables[used]).cast())).raw();
                used += 1;
            }
            let next =
                Desc::from_raw(tables[table][index]).address().raw() - address((&raw const tables[0]).cast()).raw();
            table = (next / 4096) as usize;
        }
        let slot = &mut tables[table][(at >> 21 & 511) as usize];
        if *slot == 0 {
            *slot = desc.raw();
        }
    };
    // For a few instructions the core's block is writable and executable at once; the map of `own_map` ends that.
    let everything = Desc::stage1(Level::L2, Pa::new(base), CoreAccess::ReadWrite).raw() & !(1 << 54);
    map(base, Desc::from_raw(everything));
    let dtb_block = dtb & !(BLOCK_2M - 1);
    for at in [dtb_block, dtb_block + BLOCK_2M] {
        map(at, Desc::stage1(Level::L2, Pa::new(at), CoreAccess::Read));
    }

    let root = address((&raw const tables[0]).cast()).raw();
    *settings = MmuSettings { mair: MAIR_EL2_VALUE, tcr: tcr(), ttbr0: root, sctlr: sctlr() };
}

/// TCR_EL2 for the core's map: 48 bits, write-back walks.
fn tcr() -> u64 {
    const RES1: u64 = 1 << 31 | 1 << 23;
    RES1 | (TCR_EL2::PS.val(el2::physical_size_field())
        + TCR_EL2::TG0::KiB_4
        + TCR_EL2::SH0::Inner
        + TCR_EL2::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL2::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL2::T0SZ.val(16))
    .value
}

/// SCTLR_EL2 while the core runs: MMU, caches, stack alignment check; RES1 as in boot/entry.S.
fn sctlr() -> u64 {
    0x30c5_0830 | (SCTLR_EL2::M::Enable + SCTLR_EL2::C::Cacheable + SCTLR_EL2::I::Cacheable + SCTLR_EL2::SA::SET).value
}

/// Gives the boot CPU vectors, and a stack for reporting its own traps.
pub fn early_traps() {
    let top = BOOT_EMERGENCY.0.get() as u64 + BOOT_EMERGENCY_SIZE as u64;
    // SAFETY: the boot CPU alone runs, and nothing refers to its data yet; this is the only place that does.
    let place = unsafe { &mut *BOOT_PER_CPU.0.get() };
    cpu::set_this(Some(place.write(PerCpu::new(CpuId::new(0), el2::affinity(), 0, top))));
    install_vectors();
}

/// Points VBAR_EL2 to boot/vectors.S.
pub fn install_vectors() {
    VBAR_EL2.set((&raw const vectors) as u64);
    barrier::isb(barrier::SY);
}

/// Makes `root` the core's translation on this CPU, and the one that other CPUs start with. The MMU is off for the few
/// instructions of the change, so no TLB ever sees two maps.
///
/// # Safety
/// `root` maps the core's code, data and stacks where they are.
pub unsafe fn install_map(root: Pa) {
    // SAFETY: boot CPU alone; the settings are read by other CPUs only after they were cleaned.
    unsafe { (*MMU_SETTINGS.0.get()).ttbr0 = root.raw() };
    // SAFETY: between the two writes of SCTLR_EL2 no memory is touched but instructions, whose addresses are
    // physical with and without the MMU; the caller vouches for the new map.
    unsafe {
        asm!(
            "mrs {old}, sctlr_el2",
            "bic {off}, {old}, #1",
            "dsb sy",
            "msr sctlr_el2, {off}",
            "isb",
            "msr ttbr0_el2, {root}",
            "isb",
            "tlbi alle2",
            "dsb nsh",
            "isb",
            "msr sctlr_el2, {old}",
            "isb",
            old = out(reg) _, off = out(reg) _, root = in(reg) root.raw(),
            options(nostack, preserves_flags),
        );
    }
}

/// Fills what another CPU finds before its MMU is on, and cleans it to memory.
pub fn publish_secondaries(cpus: &'static [PerCpu]) {
    // SAFETY: no other CPU runs yet, and nothing else refers to the table.
    let table = unsafe { &mut *SECONDARY_TABLE.0.get() };
    for (entry, data) in table.iter_mut().zip(cpus) {
        *entry = (data.mpidr, core::ptr::from_ref(data) as u64);
    }
    // All of the image but the page in it that is not mapped: an instruction by address on that is a fault. The map's tables are read through the caches.
    let layout = image_layout();
    cpu::maintenance::clean_to_poc(PhysRange::between(layout.text.base(), layout.stack_guard.base()));
    cpu::maintenance::clean_to_poc(PhysRange::between(layout.stack_guard.end(), layout.data.end()));
}

/// Where another CPU starts, from firmware or from a spin table.
pub fn secondary_entry_point() -> Pa {
    Pa::new(secondary_entry as *const () as u64)
}

/// Starts the host on this CPU: EL1 with its MMU off, at `entry`, with `x0`. This CPU's stack is empty afterwards.
pub fn start_host(data: &'static PerCpu, entry: u64, x0: u64) -> ! {
    el2::reset_el1();
    let spsr = (SPSR::M::EL1h + SPSR::DAIF::Masked).value;
    // SAFETY: EL2 is set up for the host, so EL1 reaches only what its stage 2 gives; nothing on this CPU's stack is used
    // any more, for this call does not return.
    unsafe { enter_host(x0, entry, spsr, data.stack_top) }
}
