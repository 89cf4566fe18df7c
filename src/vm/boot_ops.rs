//! Layer 21, BootOps: the life of a VM and of its vCPUs.
//!
//! | primitive                    | VM state                | does                                                          | lock          |
//! |------------------------------|-------------------------|---------------------------------------------------------------|---------------|
//! | [`register_vm`]              | Unused -> Ready         | a new VM, with a table                                        | Core; Vm      |
//! | [`register_vcpu`]            | Ready                   | a new vCPU, with a context out of the VM's pool               | Vm, below it S2Page, Npt |
//! | [`set_boot_info`]            | Ready                   | one more image of a protected VM                              | Vm            |
//! | [`remap_vm_image`]           | Ready                   | more pages of an image                                        | Vm, below it S2Page, Npt |
//! | [`verify_and_load_images`]   | Ready -> Verified       | the images are what was signed                                | Vm, below it S2Page, Npt |
//! | [`set_vcpu_active`]          | Verified                | a CPU takes a vCPU to run it                                  | Vm            |
//! | [`vcpu_started`]             | any                     | the start that it was taken with is over                      | Vm            |
//! | [`set_vcpu_inactive`], [`give_vcpu_back`] | any        | the CPU gives it back                                         | Vm            |
//! | [`posted`]                   | Verified                | SGIs between vCPUs that run                                   | Vm            |
//! | [`psci_cpu_on`], [`psci_cpu_off`], [`psci_affinity_info`] | Verified | a VM's own view of its vCPUs' power           | Vm            |
//! | [`set_cntvoff`]              | Ready; ordinary: Verified | offset of the VM's virtual counter                            | Vm            |
//! | [`destroy_vm`]               | PowerOff -> Dying -> Unused | table, pool, contexts, mailboxes and id are free again    | Vm; Core      |
//!
//! Power-off is layer 18; memory is `vm_memory`'s. A call in another state is [`CallError::WrongState`] and changes nothing; for an id
//! without a VM it is [`CallError::NoSuchObject`].
//!
//! Below: BootAux. Above: the vCPU and trap layers. Specification: `spec::vm`. Source: SeKVM layer BootOps; K §2 L21, §4.4,
//! §8.2 D2, D4, D7, D8, D12, §8.3 A7, A9.
#![forbid(unsafe_code)]

pub mod posted;

use super::authenticate::Manifest;
use super::boot_aux::{hash_images, load_image_pages, read_manifest};
use super::boot_core::{free_vmid, gen_vmid};
use super::{Active, Check, Entering, Image, Power, Snapshot, Start, Vcpu, VcpuState, Vm, VmState, Vms, authenticate};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Gfn, Pfn, VcpuId, VmId};
use crate::abstract_machine::shadow::{Shadow, ShadowReg};
use crate::interface::CallError;
use crate::interface::calls::{MAX_IMAGES, MAX_PAGES};
use crate::memory::memory_ops;
use crate::npt::VmKind;

// ---- building a VM ----------------------------------------------------------------------------------------------------

/// A new VM with `ipa_bits` bits of addresses; the host gives the pages from `root` on for the root of its table. K: `register_kvm`.
///
/// # Errors
/// [`CallError::NoSpace`] if every id is in use; as [`memory_ops::register_vm_table`]. Nothing has changed then.
pub fn register_vm<M: Machine>(vms: &Vms<M>, kind: VmKind, ipa_bits: u32, root: Pfn) -> Result<VmId, CallError> {
    let id = gen_vmid(vms)?;
    let made = vms.place(id).and_then(|mut vm| {
        memory_ops::register_vm_table(vms.memory(), id, kind, ipa_bits, root)?;
        let (vttbr, _) = memory_ops::vm_vttbr(vms.memory(), id).ok_or(CallError::WrongState)?;
        vms.note_guard(id, false);
        *vm = Vm { state: VmState::Ready, kind, ipa_bits, vttbr, ..Vm::UNUSED };
        Ok(id)
    });
    if made.is_err() {
        free_vmid(vms, id);
    }
    made
}

/// A new vCPU; `mailbox` is held, so that it stays the host's for as long as the VM lives. K: `register_vcpu`.
///
/// # Errors
/// [`CallError::NoSuchObject`] (no such VM, or no such number of a vCPU), [`CallError::WrongState`] (also if it was registered before: D4),
/// [`CallError::NoMemory`] if the pool is empty; as [`memory_ops::hold_mailbox`]. Nothing has changed then.
pub fn register_vcpu<M: Machine>(vms: &Vms<M>, id: VmId, vcpu: VcpuId, mailbox: Pfn) -> Result<(), CallError> {
    let mut vm = vms.vm(id)?;
    vm.in_state(&[VmState::Ready])?;
    let place = vm.vcpus.get_mut(vcpu.index()).ok_or(CallError::NoSuchObject)?;
    if place.state != VcpuState::Unused {
        return Err(CallError::WrongState);
    }
    memory_ops::hold_mailbox(vms.memory(), mailbox)?;
    let context = memory_ops::alloc_pool_page(vms.memory(), id).inspect_err(|_| vms.let_go(mailbox))?;
    let shadow = Shadow::new(context.addr());
    *place = Vcpu { state: VcpuState::Ready, shadow, mailbox, ..Vcpu::UNUSED };
    Ok(())
}

/// One more image of `size` bytes, which the VM sees from `gfn` on: its index. K: `set_boot_info`.
///
/// # Errors
/// [`CallError::InvalidParameter`] if it is empty, beyond the VM's addresses, or over another image; [`CallError::NoSpace`] if there are
/// [`MAX_IMAGES`] (D12: never a number that cannot be used); [`CallError::WrongState`] also for an ordinary VM. Nothing has changed then.
pub fn set_boot_info<M: Machine>(vms: &Vms<M>, id: VmId, gfn: Gfn, size: u64) -> Result<u64, CallError> {
    let mut vm = vms.vm(id)?;
    vm.in_state(&[VmState::Ready])?;
    vm.of_kind(VmKind::Protected)?;
    let image = Image { gfn, size, loaded: 0 };
    if size == 0 {
        return Err(CallError::InvalidParameter);
    }
    vm.has_range(gfn, image.pages())?;
    if vm.images().iter().any(|other| other.overlaps(&image)) {
        return Err(CallError::InvalidParameter);
    }
    let index = vm.image_count;
    *vm.images.get_mut(index).ok_or(CallError::NoSpace)? = image;
    vm.image_count += 1;
    // What was checked so far was checked against fewer images.
    vm.check = None;
    Ok(index as u64)
}

const _: () = assert!(MAX_IMAGES as usize == Vm::UNUSED.images.len());

/// The host's `pages` pages from `pfn` on are the next pages of image `image`: from now on they are the VM's, as many as it took. K: `remap_vm_image`.
///
/// # Errors
/// As [`load_image_pages`]; [`CallError::WrongState`] also for an ordinary VM. Nothing has changed then.
pub fn remap_vm_image<M: Machine>(
    vms: &Vms<M>,
    id: VmId,
    image: usize,
    pfn: Pfn,
    pages: u64,
) -> Result<u64, CallError> {
    let mut vm = vms.vm(id)?;
    vm.in_state(&[VmState::Ready])?;
    vm.of_kind(VmKind::Protected)?;
    load_image_pages(vms, id, &mut vm, image, pfn, pages)
}

/// The VM may run from now on: an ordinary one as it is (`manifest` is `None`); a protected one if all its images are those that the manifest in
/// the host's page `manifest` names, and that is signed. Made again and again while it returns `Again`; a host that changes the manifest
/// meanwhile starts anew. K: `verify_and_load_images`.
///
/// # Errors
/// [`CallError::WrongState`] (also if a page of an image is missing, or there is none), [`CallError::InvalidParameter`] (manifest for an
/// ordinary VM, or none for a protected one), [`CallError::NotAuthentic`], [`CallError::Again`]; as [`read_manifest`]. The VM is still READY then.
pub fn verify_and_load_images<M: Machine>(vms: &Vms<M>, id: VmId, manifest: Option<Pfn>) -> Result<(), CallError> {
    let mut vm = vms.vm(id)?;
    vm.in_state(&[VmState::Ready])?;
    match (vm.kind, manifest) {
        (VmKind::Ordinary, None) => {}
        (VmKind::Protected, Some(page)) => verify_images(vms, id, &mut vm, page)?,
        _ => return Err(CallError::InvalidParameter),
    }
    vm.state = VmState::Verified;
    vm.resumable = true;
    Ok(())
}

fn verify_images<M: Machine>(vms: &Vms<M>, id: VmId, vm: &mut Vm, page: Pfn) -> Result<(), CallError> {
    // A VM is made from images or from a snapshot, not from both.
    if vm.snapshot != Snapshot::NONE
        || vm.image_count == 0
        || vm.images().iter().any(|image| image.loaded < image.pages())
    {
        return Err(CallError::WrongState);
    }
    let mut manifest = Manifest::EMPTY;
    read_manifest(vms, page, &mut manifest)?;
    let identity = manifest.identity();
    if vm.check.as_ref().is_none_or(|check| check.identity != identity) {
        authenticate::check_manifest(&manifest, vm.images(), vms.keys())?;
        vm.check = Some(Check::new(identity));
    }
    match hash_images(vms, id, vm, &manifest) {
        Ok(true) => {
            (vm.entry, vm.x0, vm.identity) = (manifest.entry(), manifest.x0(), identity);
            vm.check = None;
            Ok(())
        }
        Ok(false) => Err(CallError::Again),
        Err(error) => {
            vm.check = None;
            Err(error)
        }
    }
}

/// What is subtracted from the physical counter to give the VM's virtual one, in ticks of CNTFRQ_EL0.
///
/// # Errors
/// [`CallError::WrongState`], [`CallError::NoSuchObject`].
pub fn set_cntvoff<M: Machine>(vms: &Vms<M>, id: VmId, offset: u64) -> Result<(), CallError> {
    let mut vm = vms.vm(id)?;
    // A protected VM's clock is nothing that the host turns back. An ordinary one's is stopped with it, and set when it goes on.
    let when: &[VmState] = match vm.kind {
        VmKind::Protected => &[VmState::Ready],
        VmKind::Ordinary => &[VmState::Ready, VmState::Verified],
    };
    vm.in_state(when)?;
    vm.cntvoff = offset;
    Ok(())
}

// ---- vCPUs --------------------------------------------------------------------------------------------------------------

/// This CPU takes the vCPU to run it; nobody else does until [`set_vcpu_inactive`]. While one is taken, no memory of the VM goes back to
/// the host (K §8.3 A7). K: `set_vcpu_active`.
///
/// # Errors
/// [`CallError::NoSuchObject`]; [`CallError::WrongState`] if the VM may not run, the vCPU runs already, switched itself off, or may not be started
/// by the host: in a protected VM only vCPU 0 may, the others when the VM says so.
pub fn set_vcpu_active<M: Machine>(vms: &Vms<M>, id: VmId, vcpu: VcpuId) -> Result<Entering, CallError> {
    let mut guard = vms.vm_at_once(id)?;
    let vm = &mut *guard;
    vm.in_state(&[VmState::Verified])?;
    let (kind, cntvoff, entry, x0) = (vm.kind, vm.cntvoff, vm.entry, vm.x0);
    let (vttbr, ia_bits) = (vm.vttbr, vm.ipa_bits);
    let place = vm.vcpu(vcpu)?;
    if place.state != VcpuState::Ready {
        return Err(CallError::WrongState);
    }
    let shadow = place.shadow;
    let start = match (place.power, kind) {
        (Power::On, _) => Start::Resume,
        (Power::Pending, _) => Start::Psci {
            pc: vms.machine().get_shadow_ctxt(shadow, ShadowReg::Pc),
            x0: vms.machine().get_shadow_ctxt(shadow, ShadowReg::X(0)),
        },
        (Power::Never, VmKind::Ordinary) => Start::Mailbox,
        (Power::Never, VmKind::Protected) if vcpu.index() == 0 => Start::Manifest { pc: entry, x0 },
        (Power::Never | Power::Off, _) => return Err(CallError::WrongState),
    };
    let mailbox = place.mailbox;

    place.state = VcpuState::Active;
    // Two vCPUs of a VM may mean different things by one address and ASID: what one left in a CPU's TLB is not the other's.
    let here = Some(vms.machine().get_cur_cpu());
    let flush = place.last_cpu != here;
    if flush {
        vm.vcpus.iter_mut().filter(|other| other.last_cpu == here).for_each(|other| other.last_cpu = None);
        vm.vcpu(vcpu)?.last_cpu = here;
    }
    vm.active += 1;
    let active = Active { vm: id, vcpu, cntvoff };
    Ok(Entering { active, kind, shadow, mailbox, vttbr, ia_bits, flush, start })
}

/// The start that [`set_vcpu_active`] told is made: the next run goes on where this one leaves.
pub fn vcpu_started<M: Machine>(vms: &Vms<M>, id: VmId, vcpu: VcpuId) {
    let Ok(mut vm) = vms.vm(id) else { return };
    if let Ok(place) = vm.vcpu(vcpu) {
        place.power = Power::On;
    }
}

/// This CPU runs the vCPU no more. K: `set_vcpu_inactive`.
pub fn set_vcpu_inactive<M: Machine>(vms: &Vms<M>, id: VmId, vcpu: VcpuId) {
    if let Ok(mut vm) = vms.vm(id) {
        // What was sent to it meanwhile waits for its next run, in which it is kicked again.
        if let Ok(place) = vm.vcpu(vcpu) {
            place.posted &= !Vcpu::KICKED;
        }
        inactive(&mut vm, vcpu);
    }
}

#[inline(always)]
fn inactive(vm: &mut Vm, vcpu: VcpuId) {
    let Ok(place) = vm.vcpu(vcpu) else { return };
    if place.state == VcpuState::Active {
        place.state = VcpuState::Ready;
        vm.active -= 1;
    }
}

/// The same for a vCPU that ran: while `show` shows what there is to show, which is told whether the VM is powered on, and the SGIs that were posted to the vCPU, nobody
/// else does anything with the VM. K: `get_vm_poweron`, `set_vcpu_inactive`.
#[inline(always)]
pub fn give_vcpu_back<M: Machine, R>(vms: &Vms<M>, id: VmId, vcpu: VcpuId, show: impl FnOnce(bool, u16) -> R) -> R {
    // It exists: a vCPU of it runs.
    let Ok(mut vm) = vms.vm_at_once(id) else { return show(false, 0) };
    let on = matches!(vm.state, VmState::Ready | VmState::Verified);
    let posted = vm.vcpu(vcpu).map_or(0, |vcpu| core::mem::take(&mut vcpu.posted) as u16);
    let shown = show(on, posted);
    inactive(&mut vm, vcpu);
    shown
}

/// What PSCI answers a VM. Arm DEN 0022 §5.2.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i64)]
pub enum PsciResult {
    /// Done. As an answer of AFFINITY_INFO: on.
    Success = 0,
    /// AFFINITY_INFO: off.
    Off = 1,
    /// AFFINITY_INFO: about to be on.
    Pending = 2,
    /// There is no such vCPU.
    InvalidParameters = -2,
    /// The VM is being switched off.
    Denied = -3,
    /// It is on.
    AlreadyOn = -4,
    /// It was switched on already and has not run yet.
    OnPending = -5,
}

impl PsciResult {
    /// The value for x0.
    pub const fn x0(self) -> u64 {
        self as i64 as u64
    }
}

/// The vCPU that a VM calls `mpidr`: affinity 0 is the number, all else is 0.
fn vcpu_of_mpidr(mpidr: u64) -> Result<VcpuId, PsciResult> {
    u16::try_from(mpidr).map(VcpuId::new).map_err(|_| PsciResult::InvalidParameters)
}

/// A vCPU of `vm` switches another one on, which starts at `entry` with `context` in x0. The host cannot choose where (K §8.3 A9).
pub fn psci_cpu_on<M: Machine>(vms: &Vms<M>, id: VmId, mpidr: u64, entry: u64, context: u64) -> PsciResult {
    let answer = || -> Result<(), PsciResult> {
        let mut vm = vms.vm(id).map_err(|_| PsciResult::Denied)?;
        vm.in_state(&[VmState::Verified]).map_err(|_| PsciResult::Denied)?;
        let place = vm.vcpu(vcpu_of_mpidr(mpidr)?).map_err(|_| PsciResult::InvalidParameters)?;
        match (place.power, place.state) {
            (Power::Pending, _) => return Err(PsciResult::OnPending),
            // One that is switching itself off is on until it has left.
            (Power::On, _) | (_, VcpuState::Active) => return Err(PsciResult::AlreadyOn),
            (Power::Never | Power::Off, _) => {}
        }
        vms.machine().set_shadow_ctxt(place.shadow, ShadowReg::Pc, entry);
        vms.machine().set_shadow_ctxt(place.shadow, ShadowReg::X(0), context);
        place.power = Power::Pending;
        Ok(())
    };
    answer().err().unwrap_or(PsciResult::Success)
}

/// The vCPU, which runs, switches itself off: it does not run again until [`psci_cpu_on`].
pub fn psci_cpu_off<M: Machine>(vms: &Vms<M>, id: VmId, vcpu: VcpuId) {
    let Ok(mut vm) = vms.vm(id) else { return };
    if let Ok(place) = vm.vcpu(vcpu) {
        place.power = Power::Off;
    }
}

/// Whether the vCPU that the VM calls `mpidr` is on.
pub fn psci_affinity_info<M: Machine>(vms: &Vms<M>, id: VmId, mpidr: u64) -> PsciResult {
    let answer = || -> Result<PsciResult, PsciResult> {
        let mut vm = vms.vm(id).map_err(|_| PsciResult::Denied)?;
        let place = vm.vcpu(vcpu_of_mpidr(mpidr)?).map_err(|_| PsciResult::InvalidParameters)?;
        Ok(match (place.power, place.state) {
            (Power::On, _) | (_, VcpuState::Active) => PsciResult::Success,
            (Power::Pending, _) => PsciResult::Pending,
            (Power::Never | Power::Off, _) => PsciResult::Off,
        })
    };
    answer().unwrap_or_else(|error| error)
}

// ---- the end --------------------------------------------------------------------------------------------------------------

/// The VM is gone when this returns `Ok`: what its table, its pool and its contexts were is the host's again, its mailboxes are no longer held,
/// its id is free. No CPU remembers anything of it by then.
///
/// # Errors
/// [`CallError::WrongState`] if it is not powered off; [`CallError::Busy`] while a vCPU runs (K §8.3 A7) or memory is mapped;
/// [`CallError::Again`]: a part is done.
pub fn destroy_vm<M: Machine>(vms: &Vms<M>, id: VmId) -> Result<(), CallError> {
    let mut guard = vms.vm(id)?;
    let vm = &mut *guard;
    vm.in_state(&[VmState::PowerOff, VmState::Dying])?;
    let mem = vms.memory();
    if vm.active != 0 || memory_ops::vm_pages(mem, id).is_some_and(|pages| pages != 0) {
        return Err(CallError::Busy);
    }
    // What may be left are windows and tables without a leaf.
    if memory_ops::clear_vm_range(mem, id, MAX_PAGES)? != 0 {
        return Err(CallError::Again);
    }
    vm.state = VmState::Dying;
    for vcpu in vm.vcpus.iter_mut().filter(|vcpu| vcpu.state != VcpuState::Unused) {
        memory_ops::free_pool_page(mem, id, Pfn::containing(vcpu.shadow.page()));
        vms.let_go(vcpu.mailbox);
        *vcpu = Vcpu::UNUSED;
    }
    if !memory_ops::free_vm_table(mem, id, MAX_PAGES)? {
        return Err(CallError::Again);
    }
    *vm = Vm::UNUSED;
    free_vmid(vms, id);
    Ok(())
}
