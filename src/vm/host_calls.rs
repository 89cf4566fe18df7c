//! Layer 21, BootOps, one part: the host's calls about VMs, from numbers in registers to types.
//!
//! | primitive        | does                                                                                  | lock    |
//! |------------------|---------------------------------------------------------------------------------------|---------|
//! | [`vm_call`]      | checks the arguments of a call of [`crate::interface::calls`], and makes it           | by call |
//!
//! No number of the host goes further down than this: below, a VM id is one that has a place, a vCPU number one that a VM can have, a page a
//! page (K §8.2 D7: the published code indexes its arrays with what the host says; D8). What depends on the VM, as the size of its
//! addresses, is checked under its lock.
//!
//! Below: BootOps. Above: TrapDispatcher. Specification: `spec::vm`. Source: SeKVM layer TrapDispatcher; K §4.1, §8.2 D7, D8.
#![forbid(unsafe_code)]

use super::vm_memory::PageInfo;
use super::{Vms, boot_ops, seal, vm_memory, vm_power};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Gfn, Ipa, PAGE_SIZE, Pa, Pfn, VcpuId, VmId};
use crate::interface::calls::{ARGUMENTS, MAP_READ_ONLY, MAX_RUNS, MAX_VCPUS, MAX_VMS, VM_ORDINARY, VM_PROTECTED};
use crate::interface::{CallError, HostCall};
use crate::memory::memory_ops::Run;
use crate::npt::VmKind;

/// x0 to x3; what a call does not return is 0.
pub type Answer = Result<[u64; 4], CallError>;

/// Makes the host's call `call` with the arguments `x`, from x1 on: every call about VMs but VcpuRun.
///
/// # Errors
/// As the call; [`CallError::NotSupported`] for calls that are not about VMs.
#[inline(never)]
pub fn vm_call<M: Machine>(vms: &Vms<M>, call: HostCall, x: &[u64; ARGUMENTS]) -> Answer {
    let [x1, x2, x3, x4, x5, ..] = *x;
    match call {
        HostCall::RegisterVm => {
            let (kind, bits) = (kind_of(x1)?, u32::try_from(x2).map_err(|_| CallError::InvalidParameter)?);
            let id = boot_ops::register_vm(vms, kind, bits, page(x3)?)?;
            Ok([0, id.raw().into(), 0, 0])
        }
        HostCall::RegisterVcpu => done(boot_ops::register_vcpu(vms, vm(x1)?, vcpu(x2)?, page(x3)?)),
        HostCall::DonatePool => count(vm_memory::donate_pool(vms, vm(x1)?, page(x2)?, x3)),
        HostCall::PoolInfo => vm_memory::pool_info(vms, vm(x1)?).map(|(free, all)| [0, free, all, 0]),
        HostCall::SetBootInfo => boot_ops::set_boot_info(vms, vm(x1)?, gfn(x2)?, x3).map(|index| [0, index, 0, 0]),
        HostCall::RemapImagePages => {
            let image = usize::try_from(x2).map_err(|_| CallError::NoSuchObject)?;
            count(boot_ops::remap_vm_image(vms, vm(x1)?, image, page(x3)?, x4))
        }
        HostCall::VerifyVm => {
            let manifest = if x2 == 0 { None } else { Some(page(x2)?) };
            done(boot_ops::verify_and_load_images(vms, vm(x1)?, manifest))
        }
        HostCall::MapMemory => {
            let read_only = is_read_only(x5)?;
            count(vm_memory::map_memory(vms, vm(x1)?, gfn(x2)?, page(x3)?, x4, read_only))
        }
        HostCall::MapRuns => map_runs(vms, x),
        HostCall::UnmapMemory => count(vm_memory::unmap_memory(vms, vm(x1)?, gfn(x2)?, x3)),
        HostCall::MapIo => count(vm_memory::map_io(vms, vm(x1)?, gfn(x2)?, page(x3)?.addr(), x4)),
        HostCall::SetCntvoff => done(boot_ops::set_cntvoff(vms, vm(x1)?, x2)),
        HostCall::GetRegister => vm_memory::get_register(vms, vm(x1)?, vcpu(x2)?, x3).map(|value| [0, value, 0, 0]),
        HostCall::SetRegister => done(vm_memory::set_register(vms, vm(x1)?, vcpu(x2)?, x3, x4)),
        HostCall::PowerOffVm => done(vm_power::set_vm_poweroff(vms, vm(x1)?)),
        HostCall::ReclaimVm => count(vm_memory::reclaim_vm(vms, vm(x1)?)),
        HostCall::DestroyVm => done(boot_ops::destroy_vm(vms, vm(x1)?)),
        HostCall::VmInfo => {
            let (state, pages, kind) = vm_memory::vm_info(vms, vm(x1)?)?;
            let kind = if kind == VmKind::Protected { VM_PROTECTED } else { VM_ORDINARY };
            Ok([0, state as u64, pages, kind])
        }
        HostCall::PageInfo => Ok(match vm_memory::page_info(vms, vm(x1)?, gfn(x2)?)? {
            PageInfo::NotMapped => [0; 4],
            PageInfo::Private => [0, 1, 0, 0],
            PageInfo::Shared(pfn) => [0, 2, pfn.addr().raw(), 0],
            PageInfo::Lent(pfn) => [0, 3, pfn.addr().raw(), 0],
            PageInfo::Window => [0, 4, 0, 0],
        }),
        HostCall::SealPage => done(seal::seal_page(vms, vm(x1)?, gfn(x2)?, page(x3)?, page(x4)?)),
        HostCall::UnsealPage => done(seal::unseal_page(vms, vm(x1)?, gfn(x2)?, page(x3)?, page(x4)?)),
        HostCall::SealVcpu => done(seal::seal_vcpu(vms, vm(x1)?, vcpu(x2)?, page(x3)?)),
        HostCall::UnsealVcpu => done(seal::unseal_vcpu(vms, vm(x1)?, vcpu(x2)?, page(x3)?)),
        HostCall::SealVm => match x2 {
            0 => seal::seal_vm(vms, vm(x1)?, page(x3)?).map(|(number, pages)| [0, number, pages, 0]),
            1 => done(seal::unseal_vm(vms, vm(x1)?, page(x3)?)),
            _ => Err(CallError::InvalidParameter),
        },
        _ => Err(CallError::NotSupported),
    }
}

/// Out of line, for its part of the stack.
#[inline(never)]
fn map_runs<M: Machine>(vms: &Vms<M>, x: &[u64; ARGUMENTS]) -> Answer {
    let [x1, x2, x3, x4, named @ ..] = x;
    let named = usize::try_from(*x3).ok().and_then(|count| named.get(..count)).unwrap_or_default();
    let mut runs = [Run { first: Pfn::new(0), pages: 0 }; MAX_RUNS];
    for (run, x) in runs.iter_mut().zip(named) {
        *run = run_of(*x);
    }
    let runs = runs.get(..named.len()).filter(|runs| !runs.is_empty()).ok_or(CallError::InvalidParameter)?;
    count(vm_memory::map_runs(vms, vm(*x1)?, gfn(*x2)?, runs, is_read_only(*x4)?))
}

fn done(result: Result<(), CallError>) -> Answer {
    result.map(|()| [0; 4])
}

fn count(result: Result<u64, CallError>) -> Answer {
    result.map(|count| [count, 0, 0, 0])
}

/// The VM that the host calls `x`.
///
/// # Errors
/// [`CallError::NoSuchObject`] if no VM can have this id: the host's own is not a VM's.
pub fn vm(x: u64) -> Result<VmId, CallError> {
    // From 1 on.
    if x.wrapping_sub(1) < MAX_VMS { Ok(VmId::new(x as u16)) } else { Err(CallError::NoSuchObject) }
}

/// The vCPU that the host calls `x`.
///
/// # Errors
/// [`CallError::NoSuchObject`] if no VM can have it.
pub fn vcpu(x: u64) -> Result<VcpuId, CallError> {
    if x < MAX_VCPUS { Ok(VcpuId::new(x as u16)) } else { Err(CallError::NoSuchObject) }
}

fn kind_of(x: u64) -> Result<VmKind, CallError> {
    match x {
        VM_ORDINARY => Ok(VmKind::Ordinary),
        VM_PROTECTED => Ok(VmKind::Protected),
        _ => Err(CallError::InvalidParameter),
    }
}

/// Flags of MapMemory and MapRuns.
fn is_read_only(x: u64) -> Result<bool, CallError> {
    if x & !MAP_READ_ONLY == 0 { Ok(x & MAP_READ_ONLY != 0) } else { Err(CallError::InvalidParameter) }
}

/// The run that the host calls `x`: the address of its first page, with as many more in bits 11:0.
fn run_of(x: u64) -> Run {
    Run { first: Pfn::containing(Pa::new(x)), pages: x % PAGE_SIZE + 1 }
}

fn page(x: u64) -> Result<Pfn, CallError> {
    let pa = Pa::new(x);
    if pa.is_aligned(PAGE_SIZE) { Ok(Pfn::containing(pa)) } else { Err(CallError::InvalidParameter) }
}

fn gfn(x: u64) -> Result<Gfn, CallError> {
    let ipa = Ipa::new(x);
    if ipa.is_aligned(PAGE_SIZE) { Ok(Gfn::containing(ipa)) } else { Err(CallError::InvalidParameter) }
}
