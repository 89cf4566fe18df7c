//! The C interface of `kserv/linux/include/kserv_model.h` over [`kserv_model::kvm`]: nothing is decided here.
//!
//! This crate is the only one of the driver's Rust that has `unsafe`: C passes pointers. What each function demands of its caller is what the header says:
//! a `vm` that [`kserv_vm_init`] filled (or, there, memory of the right size and alignment), held under its lock; other pointers to valid, aligned memory of
//! their type, not used by anybody else meanwhile; `mailbox` the vCPU's page, while the vCPU does not run.
#![cfg_attr(target_os = "none", no_std)]

pub mod access;
pub mod boot;
pub mod its;
mod wait;

use core::ptr;

use corevisor_interface::mailbox::{ExitReason, Mailbox};
use kserv_model::kvm::registers::{self, Found};
use kserv_model::kvm::{Action, Errno, Kvm, Machine};
use kserv_model::mmio::Access;

pub use wait::{kserv_block_until, kserv_end_wait, kserv_poll_window, kserv_runnable};

/// A VM, opaque to C.
pub type Vm = Kvm;

/// A new VM's content: copied, because it is larger than a kernel's stack.
static TEMPLATE: Kvm = Kvm::new();

/// A time that never comes.
const NEVER: u64 = u64::MAX;
const ENTRY_RUN: u32 = 0;
const ENTRY_OFF: u32 = 1;
/// KVM_SYSTEM_EVENT_SHUTDOWN.
const EVENT_SHUTDOWN: u8 = 1;
/// KVM_SYSTEM_EVENT_RESET.
const EVENT_RESET: u8 = 2;

/// `struct kserv_reg`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Reg {
    /// First core register, or -1.
    pub core: i32,
    /// Core registers.
    pub words: u32,
    /// Bytes in user space.
    pub size: u32,
    /// Whose.
    pub vcpu: u32,
    /// ONE_REG id, or attribute of the interrupt controller.
    pub token: u64,
    /// Group of an attribute; 0: ONE_REG.
    pub group: u32,
    /// Nothing.
    pub pad: u32,
}

/// `struct kserv_action`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RawAction {
    /// `enum kserv_action_kind`.
    pub kind: u32,
    /// Bytes of an access.
    pub len: u32,
    /// It is a write.
    pub write: u8,
    /// It is a fetch.
    pub fetch: u8,
    /// KVM_SYSTEM_EVENT_*.
    pub event: u8,
    /// Words that go with it.
    pub event_ndata: u8,
    /// Nothing.
    pub pad: u32,
    /// Address.
    pub addr: u64,
    /// Stored value, or the event's word.
    pub data: u64,
    /// End of a wait.
    pub until: u64,
    /// Syndrome.
    pub esr: u64,
}

impl RawAction {
    fn of(action: Action) -> Self {
        let none = Self { until: NEVER, ..Self::default() };
        match action {
            Action::Run => none,
            Action::Block(until) => Self { kind: 1, until: until.unwrap_or(NEVER), ..none },
            Action::Mmio(Access { address, width, write, .. }) => Self {
                kind: 2,
                len: width as u32,
                write: write.is_some().into(),
                addr: address,
                data: write.unwrap_or(0),
                ..none
            },
            Action::Fault { gpa, write, fetch } => {
                Self { kind: 3, write: write.into(), fetch: fetch.into(), addr: gpa, ..none }
            }
            Action::Off => Self { kind: 4, ..none },
            Action::Shutdown => Self { kind: 5, event: EVENT_SHUTDOWN, ..none },
            Action::Reset(how) => {
                Self { kind: 5, event: EVENT_RESET, event_ndata: (how != 0).into(), data: how, ..none }
            }
            Action::Stopped => Self { kind: 6, ..none },
            Action::Failed(esr) => Self { kind: 7, esr, ..none },
            Action::Its => Self { kind: 8, ..none },
        }
    }
}

pub(crate) fn status(result: Result<(), Errno>) -> i32 {
    result.map_or_else(|errno| -(errno as i32), |()| 0)
}

/// Says a mask of vCPUs to the caller.
///
/// # Safety
/// `kick` points to a `u32` of the caller's.
pub(crate) unsafe fn kicked(result: Result<u32, Errno>, kick: *mut u32) -> i32 {
    match result {
        Ok(mask) => {
            // SAFETY: the caller's promise.
            unsafe { *kick |= mask };
            0
        }
        Err(errno) => -(errno as i32),
    }
}

/// Size of a VM.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_vm_size() -> usize {
    size_of::<Vm>()
}

/// Alignment of a VM.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_vm_align() -> usize {
    align_of::<Vm>()
}

/// A VM without vCPUs.
///
/// # Safety
/// `vm`: writable memory of [`kserv_vm_size`] bytes; the rest as this module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_vm_init(vm: *mut Vm, machine: &Machine, ipa_bits: u32, cntvoff: u64) {
    // SAFETY: the caller's promise; the template is another place.
    unsafe {
        ptr::copy_nonoverlapping(&raw const TEMPLATE, vm, 1);
        (*vm).init(*machine, ipa_bits, cntvoff);
    }
}

/// Makes a vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_vcpu_create(vm: &mut Vm, vcpu: u32) -> i32 {
    status(vm.create_vcpu(vcpu as usize))
}

/// KVM_ARM_VCPU_INIT.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_vcpu_init(vm: &mut Vm, vcpu: u32, target: u32, features: &[u32; 7]) -> i32 {
    status(vm.init_vcpu(vcpu as usize, target, *features))
}

/// Whether that was made.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_vcpu_initialized(vm: &Vm, vcpu: u32) -> bool {
    vm.is_initialized(vcpu as usize)
}

/// A core register after KVM_ARM_VCPU_INIT.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_reset_value(_vm: &Vm, vcpu: u32, n: u32) -> u64 {
    registers::reset_value(vcpu as usize, n)
}

/// Whether there is such a core register.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_core_register_exists(n: u32) -> bool {
    registers::core_register_exists(n)
}

/// KVM_GET_MP_STATE.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_mp_state_get(vm: &Vm, vcpu: u32) -> i32 {
    vm.mp_state(vcpu as usize).map_or_else(|errno| -(errno as i32), |state| state as i32)
}

/// KVM_SET_MP_STATE.
///
/// # Safety
/// As this module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_mp_state_set(vm: &mut Vm, vcpu: u32, state: u32, kick: *mut u32) -> i32 {
    // SAFETY: the caller's promise about `kick`.
    unsafe { kicked(vm.set_mp_state(vcpu as usize, state), kick) }
}

/// KVM_SET_VCPU_EVENTS. Without an SError its syndrome means nothing.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_events_set(vm: &mut Vm, vcpu: u32, serror: bool, _has_esr: bool, ext_dabt: bool) -> i32 {
    status(vm.set_events(vcpu as usize, serror, ext_dabt))
}

/// KVM_GET_DEVICE_ATTR of a vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_vcpu_attr_get(vm: &Vm, group: u32, attr: u64, value: &mut u32) -> i32 {
    status(vm.vcpu_attribute(group, attr).map(|got| *value = got))
}

/// KVM_SET_DEVICE_ATTR of a vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_vcpu_attr_set(vm: &Vm, group: u32, attr: u64, value: u32) -> i32 {
    status(vm.set_vcpu_attribute(group, attr, value))
}

/// How many registers are listed.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_reg_count(vm: &Vm) -> u32 {
    vm.register_count() as u32
}

/// The id at this place.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_reg_id(vm: &Vm, index: u32) -> u64 {
    vm.register_id(index as usize).unwrap_or(0)
}

fn found(result: Result<Found, Errno>, token: u64, group: u32, reg: &mut Reg) -> i32 {
    match result {
        Ok(found) => {
            let (core, words) = found.core().map_or((-1, 0), |(first, words)| (first as i32, words));
            *reg = Reg { core, words, size: found.size(), vcpu: found.vcpu as u32, token, group, pad: 0 };
            0
        }
        Err(errno) => -(errno as i32),
    }
}

/// The register that C found before.
fn again(vm: &mut Vm, reg: &Reg) -> Result<Found, Errno> {
    match reg.group {
        0 => vm.find_register(reg.vcpu as usize, reg.token),
        group => vm.find_gic_register(group, reg.token),
    }
}

/// The register with this id.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_reg_find(vm: &Vm, vcpu: u32, id: u64, reg: &mut Reg) -> i32 {
    found(vm.find_register(vcpu as usize, id), id, 0, reg)
}

/// What user space sees.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_reg_get(vm: &mut Vm, reg: &Reg, now: u64, core: &[u64; 2], value: &mut [u64; 2]) -> i32 {
    let got = again(vm, reg).and_then(|found| vm.get_register(&found, now, *core));
    status(got.map(|got| *value = got))
}

/// What user space writes.
///
/// # Safety
/// As this module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_reg_set(
    vm: &mut Vm,
    reg: &Reg,
    now: u64,
    value: &[u64; 2],
    core: &mut [u64; 2],
    kick: *mut u32,
) -> i32 {
    let set = again(vm, reg).and_then(|found| vm.set_register(&found, now, *value, *core));
    let kicks = vm.take_kicks();
    // SAFETY: the caller's promise about `kick`.
    unsafe { kicked(set.map(|words| *core = words).map(|()| kicks), kick) }
}

/// CNTVOFF for the core.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_cntvoff(vm: &Vm) -> u64 {
    vm.cntvoff()
}

/// Before the VM's first entry.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_first_run(vm: &mut Vm) -> i32 {
    status(vm.first_run())
}

/// Before an entry.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_on_entry(vm: &mut Vm, vcpu: u32, mailbox: &mut Mailbox, now: u64) -> u32 {
    if vm.on_entry(vcpu as usize, mailbox, now) { ENTRY_RUN } else { ENTRY_OFF }
}

/// The entry did not happen.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_not_entered(vm: &mut Vm, vcpu: u32, mailbox: &Mailbox) {
    vm.not_entered(vcpu as usize, mailbox);
}

/// After an exit.
///
/// # Safety
/// As this module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_on_exit(
    vm: &mut Vm,
    vcpu: u32,
    reason: u64,
    mailbox: &mut Mailbox,
    now: u64,
    action: &mut RawAction,
    kick: *mut u32,
) {
    // A reason that this interface does not have is a core of another version: the VM cannot go on.
    let reason = ExitReason::from_x0(reason).unwrap_or(ExitReason::Failed);
    let (next, kicks) = vm.on_exit(vcpu as usize, reason, mailbox, now);
    *action = RawAction::of(next);
    // SAFETY: the caller's promise about `kick`.
    unsafe { *kick |= kicks };
}

/// Ends a load.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_mmio_done(vm: &mut Vm, vcpu: u32, mailbox: &mut Mailbox, data: u64) {
    vm.finish_access(vcpu as usize, mailbox, data);
}

/// Ends an access or a fault by an abort.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_abort(vm: &mut Vm, vcpu: u32) {
    vm.abort(vcpu as usize);
}

/// When a run must end.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_run_until(vm: &mut Vm, vcpu: u32, now: u64) -> u64 {
    vm.run_until(vcpu as usize, now).unwrap_or(NEVER)
}

/// Output of the timers.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_irq_level(vm: &mut Vm, vcpu: u32, now: u64) -> u32 {
    vm.irq_level(vcpu as usize, now)
}

/// Exits of a vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_exits(vm: &Vm, vcpu: u32, reason: u64) -> u64 {
    vm.exits(vcpu as usize, reason)
}

/// KVM_IRQ_LINE.
///
/// # Safety
/// As this module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_irq_line(vm: &mut Vm, irq: u32, level: u32, kick: *mut u32) -> i32 {
    // SAFETY: the caller's promise about `kick`.
    unsafe { kicked(vm.irq_line(irq, level != 0), kick) }
}

/// The level of an SPI.
///
/// # Safety
/// As this module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_set_spi(vm: &mut Vm, spi: u32, level: bool, kick: *mut u32) -> i32 {
    // SAFETY: the caller's promise about `kick`.
    unsafe { kicked(vm.set_spi(spi as usize, level), kick) }
}

/// An edge on an SPI.
///
/// # Safety
/// As this module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_pulse_spi(vm: &mut Vm, spi: u32, kick: *mut u32) -> i32 {
    // SAFETY: the caller's promise about `kick`.
    unsafe { kicked(vm.pulse_spi(spi as usize), kick) }
}

/// Whether the end of an SPI is told.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_watch_spi(vm: &mut Vm, spi: u32, on: bool) -> i32 {
    status(vm.watch_spi(spi as usize, on))
}

/// A watched SPI that ended.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_next_ended_spi(vm: &mut Vm) -> i32 {
    vm.next_ended_spi().and_then(|spi| i32::try_from(spi).ok()).unwrap_or(-1)
}

/// KVM_CREATE_DEVICE.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_gic_create(vm: &mut Vm, version: u32) -> i32 {
    status(vm.create_gic(version))
}

/// 0, 2, 3.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_gic_version(vm: &Vm) -> u32 {
    vm.gic_version()
}

/// Whether it is initialised.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_gic_initialized(vm: &Vm) -> bool {
    vm.is_gic_initialized()
}

/// KVM_HAS_DEVICE_ATTR.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_gic_has(vm: &Vm, group: u32, attr: u64) -> i32 {
    status(vm.has_gic(group, attr).or_else(|_| vm.has_gic_register(group, attr)))
}

/// KVM_GET_DEVICE_ATTR.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_gic_get(vm: &mut Vm, group: u32, attr: u64, value: &mut u64) -> i32 {
    status(vm.get_gic(group, attr, *value).map(|got| *value = got))
}

/// KVM_SET_DEVICE_ATTR.
///
/// # Safety
/// As this module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_gic_set(vm: &mut Vm, group: u32, attr: u64, value: Option<&u64>, kick: *mut u32) -> i32 {
    let set = vm.set_gic(group, attr, value.copied().unwrap_or(0));
    let kicks = vm.take_kicks();
    // SAFETY: the caller's promise about `kick`.
    unsafe { kicked(set.map(|()| kicks), kick) }
}

/// A register of it.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_gic_attr_find(vm: &mut Vm, group: u32, attr: u64, reg: &mut Reg) -> i32 {
    if group == 0 {
        return -(Errno::NoSuchDevice as i32);
    }
    found(vm.find_gic_register(group, attr), attr, group, reg)
}

/// Where GICv2's CPU interface is.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_gic_cpu_base(vm: &Vm) -> u64 {
    vm.gic_cpu_base().unwrap_or(NEVER)
}

/// Whether something of it is in the range.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_gic_overlaps(vm: &Vm, gpa: u64, size: u64) -> bool {
    vm.gic_overlaps(gpa, size)
}

#[cfg(target_os = "none")]
mod panic {
    use core::panic::PanicInfo;

    unsafe extern "C" {
        fn kserv_model_panic(text: *const u8, length: usize) -> !;
    }

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        // Its file says enough; formatting the rest would be most of this object.
        let file = info.location().map_or("kserv-model", |location| location.file());
        // SAFETY: C's function, which only reads `length` bytes.
        unsafe { kserv_model_panic(file.as_ptr(), file.len()) }
    }
}
