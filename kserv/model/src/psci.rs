//! The host's half of PSCI: which vCPUs run. The core has checked a CPU_ON's target, keeps entry and context, and has answered; the host only schedules.
//!
//! | call                 | answer                                                                    |
//! |----------------------|---------------------------------------------------------------------------|
//! | CPU_ON               | the target is on; the caller of [`Psci::call`] starts it: now, or when the exit for its CPU_OFF comes |
//! | CPU_OFF              | the vCPU is off, or starts again at once                                  |
//! | CPU_SUSPEND          | as WFI; 0 when it goes on                                                 |
//! | AFFINITY_INFO        | on, or off                                                                |
//! | any other            | NOT_SUPPORTED                                                             |
//!
//! SYSTEM_OFF and SYSTEM_RESET arrive as the exit SystemOff. Source: Arm DEN 0022F; contract with the core: `corevisor_interface::mailbox`.
#![forbid(unsafe_code)]

use corevisor_interface::guest::psci;
use corevisor_interface::mailbox::ExitReason;

use crate::layout::vcpu_of;

/// SMCCC: 64-bit calling convention.
const SMC64: u64 = 1 << 30;

/// PSCI results.
pub mod result {
    /// Done.
    pub const SUCCESS: u64 = 0;
    /// There is no such function.
    pub const NOT_SUPPORTED: u64 = -1i64 as u64;
    /// There is no such vCPU.
    pub const INVALID_PARAMETERS: u64 = -2i64 as u64;
    /// AFFINITY_INFO: on.
    pub const ON: u64 = 0;
    /// AFFINITY_INFO: off.
    pub const OFF: u64 = 1;
}

/// What follows from a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsciAction {
    /// x0 is this; the vCPU goes on.
    Return(u64),
    /// This vCPU, which may be the caller, is on from now on: run it. The caller goes on.
    Start(usize),
    /// The caller is off.
    Off,
    /// The caller waits for an interrupt; then x0 is SUCCESS.
    Suspend,
}

/// Which of a VM's vCPUs are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Psci {
    on: u64,
    /// Started by another while the exit for their CPU_OFF is still to come: for the core they were off already.
    again: u64,
    vcpus: usize,
}

impl Psci {
    /// vCPU 0 is on, the others are off. At most 64.
    pub const fn new(vcpus: usize) -> Self {
        Self { on: 1, again: 0, vcpus: if vcpus > 64 { 64 } else { vcpus } }
    }

    /// There are no vCPUs yet: [`Psci::set_on`] makes them.
    pub const fn none() -> Self {
        Self { on: 0, again: 0, vcpus: 0 }
    }

    /// Whether the vCPU is on.
    pub const fn is_on(&self, vcpu: usize) -> bool {
        vcpu < self.vcpus && self.on >> vcpu & 1 != 0
    }

    /// Switches a vCPU on or off without a call of the VM; there are at least so many vCPUs then.
    pub fn set_on(&mut self, vcpu: usize, on: bool) {
        if vcpu < 64 {
            self.vcpus = self.vcpus.max(vcpu + 1);
            self.on = self.on & !(1 << vcpu) | u64::from(on) << vcpu;
            self.forget_start(vcpu);
        }
    }

    /// How many are on.
    pub const fn count(&self) -> u32 {
        self.on.count_ones()
    }

    /// An exit of `vcpu`, with `x0` in the mailbox: if it is not for CPU_OFF, none for that was to come.
    pub fn left(&mut self, vcpu: usize, reason: ExitReason, x0: u64) {
        if reason != ExitReason::Psci || x0 & 0xffff_ffff != psci::CPU_OFF {
            self.forget_start(vcpu);
        }
    }

    /// Whether the vCPU was to start again.
    fn forget_start(&mut self, vcpu: usize) -> bool {
        let bit = 1_u64.checked_shl(vcpu as u32).unwrap_or(0);
        let was = self.again & bit != 0;
        self.again &= !bit;
        was
    }

    /// A Psci exit of `vcpu` with `x[0]` to `x[3]`.
    pub fn call(&mut self, vcpu: usize, x: [u64; 4]) -> PsciAction {
        let function = x[0] & 0xffff_ffff;
        let narrow = function & SMC64 == 0;
        let target = if narrow { x[1] & 0xffff_ffff } else { x[1] };
        match function | SMC64 {
            psci::CPU_ON => match vcpu_of(target, self.vcpus) {
                None => PsciAction::Return(result::INVALID_PARAMETERS),
                Some(target) if self.is_on(target) => {
                    self.again |= 1 << target;
                    PsciAction::Return(result::SUCCESS)
                }
                Some(target) => {
                    self.on |= 1 << target;
                    PsciAction::Start(target)
                }
            },
            psci::CPU_SUSPEND => PsciAction::Suspend,
            psci::AFFINITY_INFO => match vcpu_of(target, self.vcpus) {
                Some(target) if x[2] == 0 => {
                    PsciAction::Return(if self.is_on(target) { result::ON } else { result::OFF })
                }
                _ => PsciAction::Return(result::INVALID_PARAMETERS),
            },
            _ if function == psci::CPU_OFF => {
                if self.forget_start(vcpu) {
                    return PsciAction::Start(vcpu);
                }
                if vcpu < self.vcpus {
                    self.on &= !(1 << vcpu);
                }
                PsciAction::Off
            }
            _ => PsciAction::Return(result::NOT_SUPPORTED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_goes_on_and_off_and_its_state_can_be_asked_for() {
        let mut psci = Psci::new(2);
        assert_eq!(psci.call(0, [psci::AFFINITY_INFO, 1, 0, 0]), PsciAction::Return(result::OFF));
        assert_eq!(psci.call(0, [psci::CPU_ON, 1, 0x4000_0000, 7]), PsciAction::Start(1));
        assert_eq!(psci.call(0, [0x8400_0004, 1, 0, 0]), PsciAction::Return(result::ON));
        assert_eq!(psci.call(1, [psci::CPU_OFF, 0, 0, 0]), PsciAction::Off);
        assert!(!psci.is_on(1) && psci.is_on(0) && psci.count() == 1);
        assert_eq!(psci.call(0, [0x8400_0003, 1, 0, 0]), PsciAction::Start(1));
    }

    #[test]
    fn a_vcpu_that_is_started_before_the_host_hears_that_it_was_off_runs_again() {
        let mut psci = Psci::new(2);
        assert_eq!(psci.call(0, [psci::CPU_ON, 1, 0, 0]), PsciAction::Start(1));
        // For the core vCPU 1 is off, or it would not have let this through.
        assert_eq!(psci.call(0, [psci::CPU_ON, 1, 0, 0]), PsciAction::Return(result::SUCCESS));
        assert_eq!(psci.call(1, [psci::CPU_OFF, 0, 0, 0]), PsciAction::Start(1));
        assert!(psci.is_on(1));
        assert_eq!(psci.call(1, [psci::CPU_OFF, 0, 0, 0]), PsciAction::Off);
        assert!(!psci.is_on(1));
        // One that was on for another reason leaves for another reason first.
        psci.set_on(1, true);
        assert_eq!(psci.call(0, [psci::CPU_ON, 1, 0, 0]), PsciAction::Return(result::SUCCESS));
        psci.left(1, ExitReason::Irq, 0);
        assert_eq!(psci.call(1, [psci::CPU_OFF, 0, 0, 0]), PsciAction::Off);
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        let mut psci = Psci::new(2);
        assert_eq!(psci.call(0, [psci::CPU_ON, 2, 0, 0]), PsciAction::Return(result::INVALID_PARAMETERS));
        assert_eq!(psci.call(0, [psci::AFFINITY_INFO, 1, 1, 0]), PsciAction::Return(result::INVALID_PARAMETERS));
        assert_eq!(psci.call(0, [0xc400_0002, 0, 0, 0]), PsciAction::Return(result::NOT_SUPPORTED));
        assert_eq!(psci.call(0, [0x1234, 0, 0, 0]), PsciAction::Return(result::NOT_SUPPORTED));
        assert_eq!(psci.call(0, [psci::CPU_SUSPEND, 0, 0, 0]), PsciAction::Suspend);
        assert_eq!(Psci::new(1000).call(999, [psci::CPU_OFF, 0, 0, 0]), PsciAction::Off);
    }
}
