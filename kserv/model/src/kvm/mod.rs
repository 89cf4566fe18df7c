//! A VM as `/dev/kvm` shows it: what the Linux driver's C part asks (`kserv/linux/include/kserv_model.h`).
//!
//! | module              | holds                                                                                |
//! |---------------------|--------------------------------------------------------------------------------------|
//! | this one            | vCPUs: made, initialised, their power                                                |
//! | `run`               | before an entry, after an exit; waiting                                              |
//! | [`poll`]            | how long a wait is looked at before its thread sleeps                                |
//! | [`registers`]       | ONE_REG: which ids there are, and what stands behind each                            |
//! | [`gic_device`]      | the interrupt controller as a device: addresses, size, initialisation; lines         |
//! | [`its_device`]      | GICv3's translation service as a device, and messages                                |
//! | [`gic_registers`]   | its registers as user space saves and restores them                                  |
//!
//! Unlike [`crate::vm::Vm`] it knows no memory and no other device: accesses go to user space. A VM may have no interrupt controller
//! here; user space then drives the lines of each vCPU itself (KVM_CAP_ARM_USER_IRQ). The caller holds one lock per VM around each call.
//! Times are of the physical counter. Source: Linux, Documentation/virt/kvm; PSCI (DEN 0022F).
#![forbid(unsafe_code)]

pub mod gic_device;
pub mod gic_registers;
pub mod its_device;
pub mod poll;
pub mod registers;
mod run;

use corevisor_interface::mailbox::ExitReason;

use crate::gicv3::GicV3;
use crate::irq::{Form, PRIVATE, SGIS};
use crate::its::{Its, LPIS};
use crate::layout::{PTIMER_INTID, VTIMER_INTID};
use crate::mmio::Access;
use crate::passage::Passage;
use crate::psci::Psci;
pub use gic_device::GicDevice;
pub use run::Action;

/// Most vCPUs.
pub const VCPUS: usize = corevisor_interface::calls::MAX_VCPUS as usize;
/// Most SPIs: QEMU's virt machine has so many.
pub const SPIS: usize = 256;

/// The only target: KVM_ARM_TARGET_GENERIC_V8.
const TARGET: u32 = 5;
/// Feature: the vCPU starts switched off.
const FEATURE_POWER_OFF: u32 = 1 << 0;
/// Feature: PSCI 0.2 and later.
const FEATURE_PSCI_0_2: u32 = 1 << 2;
/// Features: pointer authentication by address, and generic; both or none, as in KVM.
const FEATURE_PTRAUTH: u32 = 0b11 << 5;
/// Features that KVM has: bits 0 to 7.
const FEATURES_KNOWN: u32 = 0xff;

/// KVM_ARM_VCPU_TIMER_CTRL.
const GROUP_TIMER: u32 = 1;
const TIMER_VIRTUAL: u64 = 0;
const TIMER_PHYSICAL: u64 = 1;

/// KVM_MP_STATE_RUNNABLE.
pub const MP_RUNNABLE: u32 = 0;
/// KVM_MP_STATE_STOPPED.
pub const MP_STOPPED: u32 = 5;

/// Why a call of user space fails: errno numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Errno {
    /// ENOENT.
    NoEntry = 2,
    /// EINTR.
    Interrupted = 4,
    /// ENXIO.
    NoSuchDevice = 6,
    /// E2BIG.
    TooBig = 7,
    /// EAGAIN.
    Again = 11,
    /// ENOMEM.
    NoMemory = 12,
    /// EFAULT.
    Fault = 14,
    /// EBUSY.
    Busy = 16,
    /// EEXIST.
    Exists = 17,
    /// ENODEV.
    NoDevice = 19,
    /// EINVAL.
    Invalid = 22,
}

/// The machine as the host knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Machine {
    /// CoreInfo x1: list registers.
    pub list_registers: u64,
    /// CoreInfo x2, bits 7:0: version of the interrupt controller for VMs; 0: none.
    pub gic: u64,
    /// MIDR_EL1.
    pub midr: u64,
    /// REVIDR_EL1.
    pub revidr: u64,
    /// AIDR_EL1.
    pub aidr: u64,
    /// CTR_EL0.
    pub ctr: u64,
    /// CLIDR_EL1.
    pub clidr: u64,
    /// ID_AA64 PFR0, PFR1, DFR0, ISAR0, ISAR1, ISAR2, MMFR0, MMFR1, MMFR2, as the host reads them.
    pub id: [u64; 9],
    /// What lets the core deliver private interrupts by itself, where the interrupt controller for VMs is a GICv3: the kick of `Mailbox::direct`, 0 without one;
    /// [`NOT_DIRECT`]: it may not.
    pub direct: u64,
}

/// [`Machine::direct`]: the core delivers nothing by itself.
pub const NOT_DIRECT: u64 = u64::MAX;

impl Machine {
    /// Nothing is known.
    pub const EMPTY: Self = Self {
        list_registers: 0,
        gic: 0,
        midr: 0,
        revidr: 0,
        aidr: 0,
        ctr: 0,
        clidr: 0,
        id: [0; 9],
        direct: NOT_DIRECT,
    };
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    Running,
    Blocked { until: Option<u64> },
}

#[derive(Clone, Copy, Debug)]
struct Vcpu {
    created: bool,
    initialized: bool,
    features: u32,
    state: State,
    passage: Passage,
    /// Without an interrupt controller here: IRQ and FIQ, as user space drives them.
    lines: [bool; 2],
    /// SPSR of abort, undefined, IRQ and FIQ mode: kept for user space, there is no AArch32.
    banked_spsr: [u64; 4],
    /// The last exit was an access that may end with an abort.
    abortable: bool,
    /// The access that user space serves.
    access: Option<Access>,
}

impl Vcpu {
    const NONE: Self = Self {
        created: false,
        initialized: false,
        features: 0,
        state: State::Ready,
        passage: Passage::NEW,
        lines: [false; 2],
        banked_spsr: [0; 4],
        abortable: false,
        access: None,
    };

    /// As after KVM_ARM_VCPU_INIT; what user space and the interrupt controller know of it stays.
    fn reset(&mut self) {
        self.state = State::Ready;
        self.passage.restart();
        self.banked_spsr = [0; 4];
        (self.abortable, self.access) = (false, None);
    }
}

/// A VM.
#[derive(Debug)]
pub struct Kvm {
    machine: Machine,
    vcpus: [Vcpu; VCPUS],
    psci: Psci,
    device: GicDevice,
    /// Of GICv2 only its interrupts are used.
    gic: GicV3<VCPUS, { SPIS + LPIS }>,
    its: Its,
    has_its: bool,
    its_base: Option<u64>,
    ipa_bits: u32,
    cntvoff: u64,
    has_run: bool,
    kicks: u32,
    unknown_registers: u64,
}

impl Kvm {
    /// A VM of no machine: a pattern to copy, because it is larger than a kernel's stack. [`Kvm::init`] follows.
    pub const fn new() -> Self {
        Self {
            machine: Machine::EMPTY,
            vcpus: [Vcpu::NONE; VCPUS],
            psci: Psci::none(),
            device: GicDevice::NONE,
            gic: GicV3::new(0),
            its: Its::new(),
            has_its: false,
            its_base: None,
            ipa_bits: 0,
            cntvoff: 0,
            has_run: false,
            kicks: 0,
            unknown_registers: 0,
        }
    }

    /// On this machine, with addresses of so many bits, 48 at most; its virtual counter is zero at `cntvoff`.
    pub const fn init(&mut self, machine: Machine, ipa_bits: u32, cntvoff: u64) {
        self.machine = machine;
        self.ipa_bits = if ipa_bits < 48 { ipa_bits } else { 48 };
        self.cntvoff = cntvoff;
    }

    /// Makes a vCPU.
    ///
    /// # Errors
    /// [`Errno::Invalid`] for a number that is too large, also for GICv2, [`Errno::Exists`], [`Errno::Busy`] when the interrupt controller is initialised.
    pub fn create_vcpu(&mut self, vcpu: usize) -> Result<(), Errno> {
        let place = self.vcpus.get_mut(vcpu).ok_or(Errno::Invalid)?;
        if self.device.initialized {
            return Err(Errno::Busy);
        }
        if place.created {
            return Err(Errno::Exists);
        }
        if vcpu >= self.device.most_vcpus() {
            return Err(Errno::Invalid);
        }
        *place = Vcpu { created: true, ..Vcpu::NONE };
        self.psci.set_on(vcpu, false);
        Ok(())
    }

    /// KVM_ARM_VCPU_INIT.
    ///
    /// # Errors
    /// [`Errno::NoEntry`] for features that KVM does not know, [`Errno::Invalid`] for those that are not here, another target, or other features than before.
    pub fn init_vcpu(&mut self, vcpu: usize, target: u32, features: [u32; 7]) -> Result<(), Errno> {
        let (cntvoff, has_ptrauth) = (self.cntvoff, self.has_pointer_authentication());
        let one = self.created(vcpu)?;
        if features[0] & !FEATURES_KNOWN != 0 || features[1..].iter().any(|word| *word != 0) {
            return Err(Errno::NoEntry);
        }
        let ptrauth = features[0] & FEATURE_PTRAUTH;
        let here = FEATURE_POWER_OFF | FEATURE_PSCI_0_2 | if has_ptrauth { FEATURE_PTRAUTH } else { 0 };
        let changed = one.initialized && (one.features ^ features[0]) & !FEATURE_POWER_OFF != 0;
        // A VM has it wherever the machine does; a VMM that sees so in the ID registers asks for it.
        let halved = ptrauth != 0 && ptrauth != FEATURE_PTRAUTH;
        if target != TARGET || features[0] & !here != 0 || halved || changed {
            return Err(Errno::Invalid);
        }
        one.reset();
        one.passage.virtual_timer.set_offset(cntvoff);
        (one.initialized, one.features) = (true, features[0]);
        self.psci.set_on(vcpu, features[0] & FEATURE_POWER_OFF == 0);
        Ok(())
    }

    fn created(&mut self, vcpu: usize) -> Result<&mut Vcpu, Errno> {
        self.vcpus.get_mut(vcpu).filter(|vcpu| vcpu.created).ok_or(Errno::Invalid)
    }

    /// Whether KVM_ARM_VCPU_INIT was made.
    pub fn is_initialized(&self, vcpu: usize) -> bool {
        self.vcpus.get(vcpu).is_some_and(|vcpu| vcpu.initialized)
    }

    /// Behind the last vCPU.
    fn count(&self) -> usize {
        self.vcpus.iter().rposition(|vcpu| vcpu.created).map_or(0, |last| last + 1)
    }

    /// KVM_GET_MP_STATE.
    ///
    /// # Errors
    /// [`Errno::Invalid`].
    pub fn mp_state(&self, vcpu: usize) -> Result<u32, Errno> {
        let there = self.vcpus.get(vcpu).is_some_and(|vcpu| vcpu.created);
        let state = if self.psci.is_on(vcpu) { MP_RUNNABLE } else { MP_STOPPED };
        if there { Ok(state) } else { Err(Errno::Invalid) }
    }

    /// KVM_SET_MP_STATE. Before KVM_ARM_VCPU_INIT, which decides, nothing comes of it.
    ///
    /// # Errors
    /// [`Errno::Invalid`].
    pub fn set_mp_state(&mut self, vcpu: usize, state: u32) -> Result<u32, Errno> {
        self.created(vcpu)?;
        let on = match state {
            MP_RUNNABLE => true,
            MP_STOPPED => false,
            _ => return Err(Errno::Invalid),
        };
        if !self.is_initialized(vcpu) {
            return Ok(0);
        }
        self.psci.set_on(vcpu, on);
        self.kicks |= 1 << vcpu;
        Ok(self.take_kicks())
    }

    /// KVM_SET_VCPU_EVENTS.
    ///
    /// # Errors
    /// [`Errno::Invalid`] for a pending SError, and for an abort without an access of the last exit.
    pub fn set_events(&mut self, vcpu: usize, serror: bool, abort: bool) -> Result<(), Errno> {
        let one = self.created(vcpu)?;
        if serror || abort && !one.abortable {
            return Err(Errno::Invalid);
        }
        if abort {
            self.abort(vcpu);
        }
        Ok(())
    }

    /// Attribute of a vCPU: which interrupt a timer has.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`] for any other.
    pub const fn vcpu_attribute(&self, group: u32, attribute: u64) -> Result<u32, Errno> {
        match (group, attribute) {
            (GROUP_TIMER, TIMER_VIRTUAL) => Ok(VTIMER_INTID as u32),
            (GROUP_TIMER, TIMER_PHYSICAL) => Ok(PTIMER_INTID as u32),
            _ => Err(Errno::NoSuchDevice),
        }
    }

    /// The same as user space sets it: it can be only what it is.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`]; [`Errno::Busy`] when the interrupt controller is initialised; [`Errno::Invalid`] without one, or for another interrupt.
    pub fn set_vcpu_attribute(&self, group: u32, attribute: u64, value: u32) -> Result<(), Errno> {
        let is = self.vcpu_attribute(group, attribute)?;
        if !self.device.exists() || !(SGIS as u32..PRIVATE as u32).contains(&value) {
            return Err(Errno::Invalid);
        }
        if self.device.initialized {
            return Err(Errno::Busy);
        }
        if value == is { Ok(()) } else { Err(Errno::Invalid) }
    }

    /// CNTVOFF that the core must have.
    pub const fn cntvoff(&self) -> u64 {
        self.cntvoff
    }

    /// Exits of a vCPU for this reason.
    pub fn exits(&self, vcpu: usize, reason: u64) -> u64 {
        let of = |vcpu: &Vcpu| ExitReason::from_x0(reason).map(|reason| vcpu.passage.exits(reason));
        self.vcpus.get(vcpu).and_then(of).unwrap_or(0)
    }

    /// Accesses to system registers that nobody serves.
    pub const fn unknown_registers(&self) -> u64 {
        self.unknown_registers
    }

    /// vCPUs to wake, start or make exit since the last call.
    pub fn take_kicks(&mut self) -> u32 {
        core::mem::take(&mut self.kicks) | self.gic.irqs.take_kicks()
    }

    const fn form(&self) -> Form {
        self.gic.irqs.form()
    }
}

impl Default for Kvm {
    fn default() -> Self {
        Self::new()
    }
}
