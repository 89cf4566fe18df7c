//! The world switch, but for the registers that `bank`, `fp` and `vgic` move: who runs, stage 2, traps, timers. K §3.3, §3.4, §3.7.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use super::super::addr::Ipa;
use super::super::per_cpu::PerCpu;
use super::super::regs::{FaultKind, Syndrome};
use super::super::shadow::{Context, Shadow};
use super::super::shape::Shape;
use super::super::world::{ContextAt, ExitCode, VirtualLines};
use super::{bank, el2, fp, sysreg, this};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CNTHCTL_EL2, CNTVOFF_EL2, HCR_EL2, MDCR_EL2, Readable, VTCR_EL2, VTTBR_EL2, Writeable};

const EXIT_TRAP: u64 = 0;
const EXIT_IRQ: u64 = 1;
const EXIT_SERROR: u64 = 2;

global_asm!(
    include_str!("../../../boot/switch.S"),
    EXIT_TRAP = const EXIT_TRAP,
    EXIT_IRQ = const EXIT_IRQ,
    EXIT_SERROR = const EXIT_SERROR,
    PERCPU_CONTEXT = const offset_of!(PerCpu, context),
    CONTEXT_PC = const offset_of!(Context, pc),
    CONTEXT_SYNDROME = const offset_of!(Context, syndrome),
);
const _: () = assert!(offset_of!(Context, x) == 0 && offset_of!(Context, pstate) == offset_of!(Context, pc) + 8);

unsafe extern "C" {
    #[link_name = "run_vm"]
    fn switch_to(context: *mut Context, data: u64) -> u64;
}

/// This CPU's data.
///
/// # Panics
/// Before the CPU has any: a broken core.
pub fn here() -> &'static PerCpu {
    match this() {
        Some(data) => data,
        None => panic!("this CPU has no data"),
    }
}

/// Lets `change` use the context at `at`.
pub fn with_context<R>(at: ContextAt, change: impl FnOnce(&mut Context) -> R) -> R {
    let page = match at {
        ContextAt::Host => here().host_context,
        ContextAt::Vm(shadow) => shadow.page(),
    };
    assert!(page.is_aligned(4096) && page.raw() != 0, "no context at {page}");
    // SAFETY: a page of the core's own, mapped; whose context it is, only that CPU uses (host), or only the CPU that made the vCPU active, under its
    // VM's state (`vm::boot_ops::set_vcpu_active`). A page that is not the core's is not mapped, and traps.
    change(unsafe { &mut *(page.raw() as *mut Context) })
}

/// [`Worlds::save_sysregs`](super::super::Worlds::save_sysregs).
pub fn save_sysregs(at: ContextAt) {
    with_context(at, |context| bank::save(&mut context.bank));
}

/// [`Worlds::restore_sysregs`](super::super::Worlds::restore_sysregs).
pub fn restore_sysregs(at: ContextAt) {
    with_context(at, |context| bank::restore(&context.bank));
}

/// [`Worlds::fpsimd_save_state`](super::super::Worlds::fpsimd_save_state).
pub fn fpsimd_save_state(at: ContextAt) {
    with_context(at, |context| match at {
        // SAFETY: the area is this CPU's own, allocated at boot where the CPU has SVE.
        ContextAt::Host => unsafe { fp::save_host(context, host_vectors()) },
        ContextAt::Vm(_) => fp::save_vm(context),
    });
}

/// [`Worlds::fpsimd_restore_state`](super::super::Worlds::fpsimd_restore_state).
pub fn fpsimd_restore_state(at: ContextAt) {
    with_context(at, |context| match at {
        // SAFETY: as above; every run of a VM began with a save.
        ContextAt::Host => unsafe { fp::restore_host(context, host_vectors()) },
        ContextAt::Vm(_) => fp::restore_vm(context),
    });
}

fn host_vectors() -> *mut u8 {
    let area = here().host_vectors;
    assert!(area.is_some() || !fp::has_sve(), "no room for the host's vectors");
    area.map_or(core::ptr::null_mut(), |area| area.raw() as *mut u8)
}

/// HCR_EL2 while a VM runs: stage 2; interrupts and SErrors to EL2; WFI, SMC, ID registers, ACTLR, set/way, LOR, error records and
/// implementation-defined registers trapped; maintenance broadcast to where its other vCPUs may be.
fn vm_hcr(lines: VirtualLines) -> u64 {
    let pauth = u64::from(bank::has_pauth());
    let ras = u64::from(sysreg::IdAa64pfr0::get().read(sysreg::ID_AA64PFR0::RAS) != 0);
    let lor = u64::from(sysreg::IdAa64mmfr1::get().read(sysreg::ID_AA64MMFR1::LO) != 0);
    (HCR_EL2::VM::Enable
        + HCR_EL2::SWIO::SET
        + HCR_EL2::FMO::EnableVirtualFIQ
        + HCR_EL2::IMO::EnableVirtualIRQ
        + HCR_EL2::AMO::SET
        + HCR_EL2::VI.val(lines.virq.into())
        + HCR_EL2::VF.val(lines.vfiq.into())
        + HCR_EL2::FB::SET
        + HCR_EL2::TSC::EnableTrapEl1SmcToEl2
        + HCR_EL2::RW::EL1IsAarch64
        + HCR_EL2::API.val(pauth)
        + HCR_EL2::APK.val(pauth))
    .value
        | vm_hcr_bits::BSU_INNER
        | vm_hcr_bits::TWI
        | vm_hcr_bits::TID3
        | vm_hcr_bits::TIDCP
        | vm_hcr_bits::TACR
        | vm_hcr_bits::TSW
        | vm_hcr_bits::TLOR * lor
        | vm_hcr_bits::TERR * ras
}

/// Fields of HCR_EL2 that `aarch64-cpu` lacks. Arm ARM D24.2.48.
mod vm_hcr_bits {
    pub(super) const BSU_INNER: u64 = 0b01 << 10;
    pub(super) const TWI: u64 = 1 << 13;
    pub(super) const TID3: u64 = 1 << 18;
    pub(super) const TIDCP: u64 = 1 << 20;
    pub(super) const TACR: u64 = 1 << 21;
    pub(super) const TSW: u64 = 1 << 22;
    pub(super) const TLOR: u64 = 1 << 35;
    pub(super) const TERR: u64 = 1 << 36;
}

/// MDCR_EL2 while a VM runs: debug registers, PMU, profiling and trace trap.
fn vm_mdcr(host: u64) -> u64 {
    const TPMCR: u64 = 1 << 5;
    const TPM: u64 = 1 << 6;
    const TDA: u64 = 1 << 9;
    const TDOSA: u64 = 1 << 10;
    const TDRA: u64 = 1 << 11;
    const TPMS: u64 = 1 << 14;
    const TTRF: u64 = 1 << 19;
    const E2PB: u64 = 0b11 << 12;
    const E2TB: u64 = 0b11 << 24;
    let dfr0 = sysreg::IdAa64dfr0::get();
    let spe = if dfr0.read(sysreg::ID_AA64DFR0::PMSVer) != 0 { TPMS } else { 0 };
    let filter = if dfr0.read(sysreg::ID_AA64DFR0::TraceFilt) != 0 { TTRF } else { 0 };
    host & !(E2PB | E2TB) | TPMCR | TPM | TDA | TDOSA | TDRA | spe | filter
}

/// [`Worlds::activate_traps`](super::super::Worlds::activate_traps).
pub fn activate_traps(lines: VirtualLines) {
    let mdcr = MDCR_EL2.get();
    with_context(ContextAt::Host, |host| {
        host.control = [HCR_EL2.get(), mdcr, if has_hcrx() { sysreg::Hcrx::get().get() } else { 0 }, 0, 0];
    });
    MDCR_EL2.set(vm_mdcr(mdcr));
    if has_hcrx() {
        // Memory copy instructions keep no state; whatever else would need state that is not switched.
        sysreg::Hcrx::set(sysreg::HCRX_EL2::MSCEn::SET.value);
    }
    sysreg::Cptr::set(fp::cptr(true, true));
    HCR_EL2.set(vm_hcr(lines));
}

/// [`Worlds::deactivate_traps`](super::super::Worlds::deactivate_traps).
pub fn deactivate_traps() {
    let [hcr, mdcr, hcrx, ..] = with_context(ContextAt::Host, |host| host.control);
    HCR_EL2.set(hcr);
    MDCR_EL2.set(mdcr);
    if has_hcrx() {
        sysreg::Hcrx::set(hcrx);
    }
    sysreg::Cptr::set(fp::cptr(false, false));
    barrier::isb(barrier::SY);
}

fn has_hcrx() -> bool {
    sysreg::IdAa64mmfr1::get().read(sysreg::ID_AA64MMFR1::HCX) != 0
}

/// [`Worlds::timer_enable_traps`](super::super::Worlds::timer_enable_traps).
pub fn timer_enable_traps(cntvoff: u64) {
    CNTVOFF_EL2.set(cntvoff);
    CNTHCTL_EL2.write(CNTHCTL_EL2::EL1PCEN::CLEAR + CNTHCTL_EL2::EL1PCTEN::SET);
}

/// [`Worlds::timer_disable_traps`](super::super::Worlds::timer_disable_traps).
pub fn timer_disable_traps() {
    CNTVOFF_EL2.set(0);
    CNTHCTL_EL2.write(CNTHCTL_EL2::EL1PCEN::SET + CNTHCTL_EL2::EL1PCTEN::SET);
}

/// [`Worlds::host_el2_restore_state`](super::super::Worlds::host_el2_restore_state).
pub fn host_el2_restore_state() {
    if let Some((vttbr, shape)) = el2::host_stage2() {
        VTCR_EL2.set(el2::vtcr(shape));
        VTTBR_EL2.set(vttbr);
        barrier::isb(barrier::SY);
    }
}

/// [`Worlds::vm_el2_restore_state`](super::super::Worlds::vm_el2_restore_state).
pub fn vm_el2_restore_state(vttbr: u64, ia_bits: u32, flush: bool) {
    VTCR_EL2.set(el2::vtcr(Shape::new(ia_bits)));
    VTTBR_EL2.set(vttbr);
    barrier::isb(barrier::SY);
    if flush {
        // SAFETY: translations of this VM are walked again; instructions fetched again.
        unsafe {
            asm!("tlbi vmalls12e1", "ic iallu", "dsb nsh", "isb", options(nostack, preserves_flags));
        }
    }
}

/// [`Worlds::entropy`](super::super::Worlds::entropy): the CPU's generator (FEAT_RNG).
pub fn entropy() -> Option<[u64; 4]> {
    if sysreg::IdAa64isar0::get().read(sysreg::ID_AA64ISAR0::RNDR) == 0 {
        return None;
    }
    let mut words = [0; 4];
    for word in &mut words {
        let failed: u64;
        // SAFETY: the CPU has the register; NZCV says whether it had a number.
        unsafe {
            asm!("mrs {}, S3_3_C2_C4_0", "cset {}, eq", out(reg) *word, out(reg) failed, options(nomem, nostack))
        };
        if failed != 0 {
            return None;
        }
    }
    Some(words)
}

/// [`Worlds::run_vm`](super::super::Worlds::run_vm).
pub fn run_vm(shadow: Shadow) -> ExitCode {
    let context = shadow.page().raw() as *mut Context;
    // SAFETY: the context is the caller's and stays mapped; all that governs EL1 is set for this VM, so it reaches only its own. What
    // the core expects of a function is kept by the assembly.
    match unsafe { switch_to(context, core::ptr::from_ref(here()) as u64) } {
        EXIT_IRQ => ExitCode::Irq,
        EXIT_SERROR => ExitCode::SError,
        _ => ExitCode::Trap,
    }
}

/// [`Worlds::fault_ipa`](super::super::Worlds::fault_ipa).
pub fn fault_ipa(shadow: Shadow) -> Option<Ipa> {
    let [esr, far, hpfar] = with_context(ContextAt::Vm(shadow), |context| context.syndrome);
    let syndrome = Syndrome::new(esr);
    if syndrome.fault_kind() != FaultKind::Permission || syndrome.is_stage1_walk() {
        // HPFAR_EL2.FIPA: bits 47 to 12 of the address stand at bits 39 to 4.
        return Some(Ipa::new((hpfar & 0xff_ffff_fff0) << 8));
    }
    const FAULT: u64 = 1;
    const PA: u64 = 0xffff_ffff_f000;
    let par: u64;
    // SAFETY: a translation by the VM's own tables, whose only effect is PAR_EL1, which is given back at once.
    unsafe {
        asm!(
            "mrs {old}, par_el1",
            "at s1e1r, {far}",
            "isb",
            "mrs {par}, par_el1",
            "msr par_el1, {old}",
            old = out(reg) _, far = in(reg) far, par = out(reg) par,
            options(nostack, preserves_flags),
        );
    }
    (par & FAULT == 0).then(|| Ipa::new(par & PA))
}
