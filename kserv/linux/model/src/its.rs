//! The translation service and messages, for C: [`kserv_model::kvm::its_device`].

use kserv_model::its::{COMMAND, Want};

use crate::{Vm, kicked, status};

/// KVM_CREATE_DEVICE.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_its_create(vm: &mut Vm) -> i32 {
    status(vm.create_its())
}

/// KVM_HAS_DEVICE_ATTR.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_its_has(vm: &Vm, group: u32, attr: u64) -> i32 {
    status(vm.has_its_attribute(group, attr))
}

/// KVM_GET_DEVICE_ATTR.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_its_get(vm: &Vm, group: u32, attr: u64, value: &mut u64) -> i32 {
    status(vm.its_attribute(group, attr).map(|got| *value = got))
}

/// KVM_SET_DEVICE_ATTR.
///
/// # Safety
/// As this crate says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_its_set(vm: &mut Vm, group: u32, attr: u64, value: Option<&u64>, kick: *mut u32) -> i32 {
    let set = vm.set_its_attribute(group, attr, value.copied().unwrap_or(0));
    let kicks = vm.take_kicks();
    // SAFETY: the caller's promise about `kick`.
    unsafe { kicked(set.map(|()| kicks), kick) }
}

/// `struct kserv_its_want`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RawWant {
    /// Where.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// It is a write.
    pub write: u8,
    /// It is the next command.
    pub command: u8,
    /// Nothing.
    pub pad: [u8; 2],
    /// Of this.
    pub bytes: [u8; 8],
}

/// What the service wants of the VM's memory.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_its_next(vm: &mut Vm, want: &mut RawWant) -> bool {
    let command = vm.is_its_between_commands().into();
    let wanted = vm.next_for_its().map(|wanted| match wanted {
        Want::Read { address, length } => RawWant { gpa: address, len: length as u32, command, ..RawWant::default() },
        Want::Write { address, length, bytes } => {
            RawWant { gpa: address, len: length as u32, write: 1, bytes, ..RawWant::default() }
        }
    });
    *want = wanted.unwrap_or_default();
    wanted.is_some()
}

/// What came of tables.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_its_outcome(vm: &mut Vm, kick: &mut u32) -> i32 {
    let outcome = vm.its_outcome();
    *kick |= vm.take_kicks();
    status(outcome)
}

/// That is done, or could not be.
///
/// # Safety
/// As this crate says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_its_feed(vm: &mut Vm, bytes: &[u8; COMMAND], ok: bool, kick: *mut u32) {
    let kicks = vm.feed_its(ok.then_some(bytes));
    // SAFETY: the caller's promise about `kick`.
    unsafe { *kick |= kicks };
}

/// A device's message.
///
/// # Safety
/// As this crate says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_msi(
    vm: &mut Vm,
    address: u64,
    data: u32,
    device: u32,
    has_device: bool,
    kick: *mut u32,
) -> i32 {
    let sent = vm.message(address, data, has_device.then_some(device));
    let there = sent.is_ok_and(|(there, _)| there);
    // SAFETY: the caller's promise about `kick`.
    let status = unsafe { kicked(sent.map(|(_, kicks)| kicks), kick) };
    if status == 0 { there.into() } else { status }
}
