//! Layer 18, VMPower: whether a VM may still run.
//!
//! | primitive              | does                                             | lock |
//! |------------------------|--------------------------------------------------|------|
//! | [`set_vm_poweroff`]    | no vCPU of the VM enters any more                | Vm   |
//! | [`end_vm`]             | the same, and nobody makes it go on from a snapshot | Vm |
//! | [`vm_kind`]            | whose memory the VM runs in                      | Vm   |
//!
//! The host may power off any VM (K §8.3 A10: otherwise one that was killed could never be reclaimed), and a VM itself. There is
//! no way back: only destroying the VM makes its id free again.
//!
//! Below: MemoryOps. Above: BootCore. Specification: `spec::vm`. Source: SeKVM layer VMPower; K §2 L18, §8.2 D3, §8.3 A10.
#![forbid(unsafe_code)]

use super::{Vm, VmState, Vms};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::VmId;
use crate::interface::CallError;
use crate::npt::VmKind;

/// From now on no vCPU of `vm` enters. Those that run leave at their next exit. K: `set_vm_poweroff`.
///
/// # Errors
/// [`CallError::NoSuchObject`].
pub fn set_vm_poweroff<M: Machine>(vms: &Vms<M>, vm: VmId) -> Result<(), CallError> {
    switch_off(&mut *vms.vm(vm)?);
    Ok(())
}

/// One whose tables go already stays as it is.
fn switch_off(vm: &mut Vm) {
    if vm.state != VmState::Dying {
        vm.state = VmState::PowerOff;
    }
}

/// The VM has switched itself off, or failed: [`set_vm_poweroff`], and it is over. A snapshot of it would go on behind a call that never returns, or behind what it failed at.
///
/// # Errors
/// [`CallError::NoSuchObject`].
pub fn end_vm<M: Machine>(vms: &Vms<M>, vm: VmId) -> Result<(), CallError> {
    let mut vm = vms.vm(vm)?;
    switch_off(&mut vm);
    vm.resumable = false;
    Ok(())
}

/// Whose memory `vm` runs in.
///
/// # Errors
/// [`CallError::NoSuchObject`].
pub fn vm_kind<M: Machine>(vms: &Vms<M>, vm: VmId) -> Result<VmKind, CallError> {
    Ok(vms.vm(vm)?.kind)
}
