//! A vCPU that waits, for C: [`kserv_model::kvm`], its modules `run` and [`kserv_model::kvm::poll`].

use kserv_model::kvm::poll;

use crate::{NEVER, Vm};

/// Whether a vCPU has something to do.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_runnable(vm: &mut Vm, vcpu: u32, now: u64) -> bool {
    vm.runnable(vcpu as usize, now)
}

/// When a wait must be looked at.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_block_until(vm: &Vm, vcpu: u32) -> u64 {
    vm.block_until(vcpu as usize).unwrap_or(NEVER)
}

/// A signal ends a wait.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_end_wait(vm: &mut Vm, vcpu: u32) {
    vm.end_wait(vcpu as usize);
}

/// How long the next wait is looked at.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_poll_window(window: u64, waited: u64, most: u64) -> u64 {
    poll::next_window(window, waited, most)
}
