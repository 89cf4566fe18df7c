//! Layer 21, BootOps, one part: a VM's memory, as the host gives it and takes it back, and what the host may see of a VM.
//!
//! | primitive                          | VM state         | does                                                      | lock |
//! |------------------------------------|------------------|-----------------------------------------------------------|------|
//! | [`donate_pool`], [`pool_info`]     | Ready, Verified; any | pages for tables and contexts                         | Vm, below it S2Page, Npt |
//! | [`map_memory`]                     | Ready, Verified  | memory for the VM: given, or lent                         | Vm, below it S2Page, Npt |
//! | [`unmap_memory`]                   | Ready, Verified  | takes back what was lent                                  | Vm, below it S2Page, Npt |
//! | [`map_io`]                         | Ready            | the GIC's virtual CPU interface                           | Vm, below it S2Page, Npt |
//! | [`reclaim_vm`]                     | PowerOff         | its memory becomes the host's again                       | Vm, below it S2Page, Npt |
//! | [`get_register`], [`set_register`] | not Dying        | a register of an ordinary VM's vCPU that does not run     | Vm   |
//! | [`vm_info`], [`page_info`]         | any              | state and pages                                           | Vm; Npt |
//! | [`is_vm_memory`]                   |                  | whether an address can be memory of a VM                  | none |
//!
//! Each holds the VM's lock all the while: nothing is mapped for a VM that somebody else switches off, reclaims or destroys meanwhile,
//! and no vCPU starts while memory goes back (K §8.3 A7).
//!
//! Below: BootOps. Above: the trap layers. Specification: `spec::vm`. Source: SeKVM layers MemHandler (`clear_vm_stage2_range`), BootOps
//! (`map_io`); K §2 L21, L30, §8.2 D3, D7, §8.3 A7, A9, A16.
#![forbid(unsafe_code)]

use super::{Vcpu, VcpuState, VmState, Vms};
use crate::abstract_machine::addr::{Gfn, Ipa, PAGE_SIZE, Pa, Pfn, PhysRange, VcpuId, VmId};
use crate::abstract_machine::shadow::{BankReg, DIRTY_PC, ShadowReg};
use crate::abstract_machine::{Machine, VgicWord};
use crate::interface::CallError;
use crate::interface::calls::MAX_PAGES;
use crate::interface::mailbox::Register;
use crate::memory::memory_ops::{self, Scrub};
use crate::memory::page_manager::PageState;
use crate::npt::VmKind;

/// Where a VM has memory; everything else is devices. K §3.5: the window rule.
const MEMORY: core::ops::Range<u64> = 0x4000_0000..0x40_0000_0000;

/// Whether `ipa` can be memory of a VM, and is no device's.
pub fn is_vm_memory(ipa: Ipa) -> bool {
    MEMORY.contains(&ipa.raw())
}

/// Whether all of the `pages` pages from `gfn` on can be; there is one at least.
fn are_vm_memory(gfn: Gfn, pages: u64) -> bool {
    let last = gfn.checked_add(pages.saturating_sub(1));
    is_vm_memory(gfn.addr()) && last.is_some_and(|last| is_vm_memory(last.addr()))
}

/// Whether none of the `pages` pages from `gfn` on can be.
fn are_devices(gfn: Gfn, pages: u64) -> bool {
    let behind = gfn.raw().saturating_add(pages);
    behind <= MEMORY.start / PAGE_SIZE || MEMORY.end / PAGE_SIZE <= gfn.raw()
}

const BUILT: &[VmState] = &[VmState::Ready, VmState::Verified];

/// The host's `pages` pages from `pfn` on become the VM's pool. Pages given.
///
/// # Errors
/// [`CallError::WrongState`], [`CallError::InvalidParameter`] for 0 pages; as [`memory_ops::donate_pool`], if the first was refused.
pub fn donate_pool<M: Machine>(vms: &Vms<M>, id: VmId, pfn: Pfn, pages: u64) -> Result<u64, CallError> {
    let vm = vms.vm(id)?;
    vm.in_state(BUILT)?;
    if pages == 0 {
        return Err(CallError::InvalidParameter);
    }
    Ok(memory_ops::donate_pool(vms.memory(), id, pfn, pages)?)
}

/// Free pages of the VM's pool, and all.
///
/// # Errors
/// [`CallError::NoSuchObject`].
pub fn pool_info<M: Machine>(vms: &Vms<M>, id: VmId) -> Result<(u64, u64), CallError> {
    let _vm = vms.vm(id)?;
    memory_ops::pool_info(vms.memory(), id).ok_or(CallError::NoSuchObject)
}

/// Memory for the VM at `gfn`, from the host's page `pfn` on: a protected VM's own from now on, scrubbed; an ordinary VM's to use. Pages mapped.
/// Where a protected VM has its devices it gets no memory: what it tells a device must not end in a page that nobody reads.
///
/// # Errors
/// [`CallError::WrongState`]; [`CallError::InvalidParameter`] for 0 pages, addresses that the VM does not have, and for a protected VM those of
/// devices ([`is_vm_memory`]) and `read_only`; as [`memory_ops::prot_and_map_vm_s2pt`] or [`memory_ops::lend_pages_to_vm`], if the first page was refused.
pub fn map_memory<M: Machine>(
    vms: &Vms<M>,
    id: VmId,
    gfn: Gfn,
    pfn: Pfn,
    pages: u64,
    read_only: bool,
) -> Result<u64, CallError> {
    let vm = vms.vm(id)?;
    vm.in_state(BUILT)?;
    vm.has_range(gfn, pages)?;
    let mem = vms.memory();
    match vm.kind {
        VmKind::Protected if read_only || !are_vm_memory(gfn, pages) => Err(CallError::InvalidParameter),
        VmKind::Protected => Ok(memory_ops::prot_and_map_vm_s2pt(mem, id, gfn, pfn, pages, Scrub::Zero)?),
        VmKind::Ordinary => Ok(memory_ops::lend_pages_to_vm(mem, id, gfn, pfn, pages, read_only)?),
    }
}

/// Takes back what was lent to an ordinary VM in the `pages` pages from `gfn` on. Pages done, mapped or not.
///
/// # Errors
/// [`CallError::WrongState`] also for a protected VM, [`CallError::InvalidParameter`] for 0 pages and addresses that the VM does not have; as
/// [`memory_ops::take_back_lent`].
pub fn unmap_memory<M: Machine>(vms: &Vms<M>, id: VmId, gfn: Gfn, pages: u64) -> Result<u64, CallError> {
    let vm = vms.vm(id)?;
    vm.in_state(BUILT)?;
    vm.of_kind(VmKind::Ordinary)?;
    vm.has_range(gfn, pages)?;
    Ok(memory_ops::take_back_lent(vms.memory(), id, gfn, pages)?)
}

/// The VM sees the GIC's virtual CPU interface, or `pages` pages of it from `pa` on, at `gfn`. It is the only window that a VM may have (K §8.3
/// A16), and a protected one has it where it has its devices, never where it has memory: what it stored there would be gone, and what it loaded the host's to steer. At which
/// device's address it stands, no manifest says: what a device is, is the host's to say anyway. Pages mapped. K: `map_io`.
///
/// # Errors
/// [`CallError::WrongState`]; [`CallError::InvalidParameter`] for 0 pages, addresses that the VM does not have, and for a protected VM those of memory
/// ([`is_vm_memory`]); [`CallError::NotOwner`] for any other window; as [`memory_ops::map_vm_io`], if the first page was refused.
pub fn map_io<M: Machine>(vms: &Vms<M>, id: VmId, gfn: Gfn, pa: Pa, pages: u64) -> Result<u64, CallError> {
    let vm = vms.vm(id)?;
    vm.in_state(&[VmState::Ready])?;
    vm.has_range(gfn, pages)?;
    if vm.kind == VmKind::Protected && !are_devices(gfn, pages) {
        return Err(CallError::InvalidParameter);
    }
    let window = pages.checked_mul(PAGE_SIZE).and_then(|size| PhysRange::new(pa, size));
    let window = window.ok_or(CallError::InvalidParameter)?;
    let allowed = vms.machine().vgic_info().gicv;
    if pages > MAX_PAGES || !allowed.is_some_and(|gicv| gicv.contains_range(window)) {
        return Err(CallError::NotOwner);
    }
    for n in 0..pages {
        let at = gfn.checked_add(n).ok_or(CallError::InvalidParameter)?;
        match memory_ops::map_vm_io(vms.memory(), id, at, Pa::new(pa.raw() + n * PAGE_SIZE)) {
            Err(reason) if n == 0 => return Err(reason.into()),
            Err(_) => return Ok(n),
            Ok(()) => {}
        }
    }
    Ok(pages)
}

/// Up to [`MAX_PAGES`] pages of a VM that is switched off become the host's again, scrubbed if they were the VM's own. Pages taken; 0: none is left.
/// K: `clear_vm_stage2_range`.
///
/// # Errors
/// [`CallError::WrongState`] while it may run (D3), [`CallError::Busy`] while a vCPU still runs (K §8.3 A7).
pub fn reclaim_vm<M: Machine>(vms: &Vms<M>, id: VmId) -> Result<u64, CallError> {
    let vm = vms.vm(id)?;
    vm.in_state(&[VmState::PowerOff])?;
    if vm.active != 0 {
        return Err(CallError::Busy);
    }
    Ok(memory_ops::clear_vm_range(vms.memory(), id, MAX_PAGES)?)
}

// ---- what the host may see ------------------------------------------------------------------------------------------------

/// The register that the interface calls `register`.
fn register_of(register: u64) -> Option<ShadowReg> {
    let n = u8::try_from(register).ok()?;
    const EL1: u8 = Register::El1 as u8;
    const Q0: u8 = Register::Q0 as u8;
    const SP_EL0: u8 = Register::SpEl0 as u8;
    const PC: u8 = Register::Pc as u8;
    const PSTATE: u8 = Register::Pstate as u8;
    const SP_EL1: u8 = Register::SpEl1 as u8;
    const FPSR: u8 = Register::Fpsr as u8;
    const FPCR: u8 = Register::Fpcr as u8;
    const VMCR: u8 = Register::Vmcr as u8;
    const AP0R: u8 = Register::Ap0r as u8;
    const AP1R3: u8 = AP0R + 7;
    const SYNDROME: u8 = Register::Syndrome as u8;
    const FAULT_ADDRESS: u8 = Register::FaultAddress as u8;
    Some(match n {
        0..SP_EL0 => ShadowReg::X(n),
        SP_EL0 => ShadowReg::Bank(BankReg::SpEl0),
        PC => ShadowReg::Pc,
        PSTATE => ShadowReg::Pstate,
        SP_EL1 => ShadowReg::Bank(BankReg::SpEl1),
        FPSR => ShadowReg::Fpsr,
        FPCR => ShadowReg::Fpcr,
        VMCR => VgicWord::Vmcr.reg(),
        AP0R..=AP1R3 => ShadowReg::Vgic(VgicWord::Ap0r as u8 + (n - AP0R)),
        SYNDROME => ShadowReg::EsrEl2,
        FAULT_ADDRESS => ShadowReg::FarEl2,
        Q0..FPSR => ShadowReg::Q(n - Q0),
        EL1..Q0 => ShadowReg::Bank(*BankReg::ALL.get(usize::from(n - EL1))?),
        _ => return None,
    })
}

/// What a host may write into an ordinary VM's processor state: AArch64, EL0 or EL1, and flags and masks only (K §8.3 A9: EL2h would be the core).
fn is_pstate_of_vm(value: u64) -> bool {
    const EL0T: u64 = 0;
    const EL1T: u64 = 4;
    const EL1H: u64 = 5;
    // N Z C V, TCO DIT UAO PAN, ALLINT (which exceptions set where there is FEAT_NMI), SSBS, BTYPE, D A I F, M[3:0].
    const ALLOWED: u64 = 0xf << 28 | 0xf << 22 | 0x3 << 12 | 0x3 << 10 | 0xf << 6 | 0xf;
    value & !ALLOWED == 0 && [EL0T, EL1T, EL1H].contains(&(value & 0xf))
}

/// The vCPU's context, if the host may look into it now.
fn open_vcpu<M: Machine>(vms: &Vms<M>, id: VmId, vcpu: VcpuId, act: impl FnOnce(&Vcpu)) -> Result<(), CallError> {
    let mut vm = vms.vm(id)?;
    vm.in_state(&[VmState::Ready, VmState::Verified, VmState::PowerOff])?;
    vm.of_kind(VmKind::Ordinary)?;
    let vcpu = vm.vcpu(vcpu)?;
    if vcpu.state == VcpuState::Active {
        return Err(CallError::Busy);
    }
    act(vcpu);
    Ok(())
}

/// A register of a vCPU of an ordinary VM that does not run.
///
/// # Errors
/// [`CallError::WrongState`] (also for a protected VM), [`CallError::NoSuchObject`], [`CallError::Busy`] while it runs, [`CallError::InvalidParameter`] if there is
/// no such register.
pub fn get_register<M: Machine>(vms: &Vms<M>, id: VmId, vcpu: VcpuId, register: u64) -> Result<u64, CallError> {
    let reg = register_of(register);
    let mut value = 0;
    open_vcpu(vms, id, vcpu, |vcpu| {
        value = reg.map_or(0, |reg| vms.machine().get_shadow_ctxt(vcpu.shadow, reg));
    })?;
    reg.map(|_| value).ok_or(CallError::InvalidParameter)
}

/// Writes it. A program counter is where the vCPU goes on, also after an exit that would have gone on behind an instruction.
///
/// # Errors
/// As [`get_register`]; [`CallError::InvalidParameter`] also for what can only be read, and for a processor state that is not a VM's (A9).
pub fn set_register<M: Machine>(
    vms: &Vms<M>,
    id: VmId,
    vcpu: VcpuId,
    register: u64,
    value: u64,
) -> Result<(), CallError> {
    let reg = register_of(register).filter(|reg| match reg {
        ShadowReg::Pstate => is_pstate_of_vm(value),
        // What the core itself decides by.
        ShadowReg::EsrEl2 | ShadowReg::FarEl2 => false,
        _ => true,
    });
    open_vcpu(vms, id, vcpu, |vcpu| {
        if let Some(reg) = reg {
            vms.machine().set_shadow_ctxt(vcpu.shadow, reg, value);
        }
        // What the last exit left to do to the old program counter is nothing to do to this one.
        if reg == Some(ShadowReg::Pc) {
            let dirty = vms.machine().get_shadow_ctxt(vcpu.shadow, ShadowReg::Dirty);
            vms.machine().set_shadow_ctxt(vcpu.shadow, ShadowReg::Dirty, dirty & !DIRTY_PC);
        }
    })?;
    reg.map(|_| ()).ok_or(CallError::InvalidParameter)
}

/// State, pages of memory, and kind of a VM.
///
/// # Errors
/// [`CallError::NoSuchObject`].
pub fn vm_info<M: Machine>(vms: &Vms<M>, id: VmId) -> Result<(VmState, u64, VmKind), CallError> {
    let vm = vms.vm(id)?;
    Ok((vm.state, memory_ops::vm_pages(vms.memory(), id).unwrap_or(0), vm.kind))
}

/// What a VM has at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageInfo {
    /// Nothing.
    NotMapped,
    /// A page of its own.
    Private,
    /// A page of its own that it shows to the host.
    Shared(Pfn),
    /// A page of the host.
    Lent(Pfn),
    /// A window of device registers.
    Window,
}

/// What the VM has at `gfn`; where a private page is, is nobody's business.
///
/// # Errors
/// [`CallError::NoSuchObject`], [`CallError::InvalidParameter`] if the VM has no such address.
pub fn page_info<M: Machine>(vms: &Vms<M>, id: VmId, gfn: Gfn) -> Result<PageInfo, CallError> {
    let vm = vms.vm(id)?;
    vm.has_range(gfn, 1)?;
    let mem = vms.memory();
    Ok(match memory_ops::walk_vm(mem, id, gfn) {
        Some((_, PageState::Private { .. })) => PageInfo::Private,
        Some((pfn, PageState::Shared { .. })) => PageInfo::Shared(pfn),
        Some((pfn, PageState::Lent(_))) => PageInfo::Lent(pfn),
        _ if memory_ops::is_vm_window(mem, id, gfn) => PageInfo::Window,
        _ => PageInfo::NotMapped,
    })
}
