//! Accesses of a VM that need neither exit nor entry, for C: [`kserv_model::kvm::Kvm::answer`], and those that C has decoded,
//! [`kserv_model::kvm::Kvm::emulated_access`].

use corevisor_interface::mailbox::{ExitReason, Mailbox};
use kserv_model::mmio::{Access, Width};

use crate::Vm;

const NOT_HERE: u32 = 0;
const SERVED: u32 = 1;
const SERVED_ITS: u32 = 2;

/// An access to the interrupt controller at an address where the core takes what is missing for memory.
///
/// # Safety
/// As this crate says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_device_access(
    vm: &mut Vm,
    vcpu: u32,
    address: u64,
    len: u32,
    write: bool,
    value: &mut u64,
    kick: *mut u32,
) -> u32 {
    let access = Width::of(len.into()).map(|width| Access::at(address, width, write.then_some(*value)));
    let Some(loaded) = access.and_then(|access| vm.emulated_access(vcpu as usize, &access)) else { return NOT_HERE };
    // SAFETY: the caller's promise about `kick`.
    unsafe { *kick |= vm.take_kicks() };
    if write {
        return if vm.next_for_its().is_some() { SERVED_ITS } else { SERVED };
    }
    *value = loaded;
    SERVED
}

/// After an exit: whether it was served, and the next entry prepared, at once.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_answer(vm: &mut Vm, vcpu: u32, reason: u64, mailbox: &mut Mailbox, now: u64) -> bool {
    ExitReason::from_x0(reason).is_some_and(|reason| vm.answer(vcpu as usize, reason, mailbox, now))
}
