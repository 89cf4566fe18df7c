//! What lies below the PSCI server: real firmware called by SMC, secondaries that the core holds itself, or nothing.
//!
//! | board              | [`Below`]      | start                  | off                   | end of the run          |
//! |--------------------|----------------|------------------------|-----------------------|-------------------------|
//! | PSCI by SMC        | [`Below::Smc`] | CPU_ON, core's entry   | CPU_OFF               | SYSTEM_OFF, RESET       |
//! | spin tables        | `SpinTable`    | SEV, see [`super`]     | parked in the core    | [`Machine::end`]        |
//! | neither, entered at EL3 | `Nothing` | denied                 | denied (only one CPU) | [`Machine::end`]        |
//!
//! No state but what was asked at boot; no lock is needed, and none may be held by the caller: a call may not come back.
//! The firmware gets the core's entry point, never the host's.
//!
//! Arm DEN0022 §5; DEN0028 §7; DEN0098.
#![forbid(unsafe_code)]

use super::call::{Call, PsciError, SmcCall, id};
use crate::abstract_machine::addr::{CpuId, Pa};

/// How a machine's run ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SystemEnd {
    /// Power off.
    Off,
    /// Cold reset.
    Reset,
}

/// The machine's part of PSCI: everything that is not a decision.
pub trait Machine {
    /// Calls the firmware: x0 and x1 to x3 in, x0 to x3 out. Only on boards with PSCI by SMC ([`Below::Smc`]).
    fn smc(&self, function: u32, args: [u64; 3]) -> [u64; 4];
    /// WFE: returns at the latest after the next [`Machine::send_event`] of another CPU, often earlier.
    fn wait_for_event(&self);
    /// Makes earlier writes visible to all CPUs, then SEV.
    fn send_event(&self);
    /// Powers the board off, or resets it, without firmware. Returns if the board has no such hook or it failed.
    fn end(&self, how: SystemEnd);
}

/// What the core stands on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Below {
    /// Firmware with PSCI by SMC.
    Smc(SmcFirmware),
    /// The core started the secondaries itself; those that do not run the host wait in
    /// [`super::Psci::wait_for_start`].
    SpinTable,
    /// One CPU, nothing below.
    Nothing,
}

/// Why the firmware cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeError {
    /// No PSCI by SMC, or one older than 0.2; its answer to PSCI_VERSION.
    TooOld(u32),
}

/// What the firmware can do, asked once at boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SmcFirmware {
    /// The core's entry point for every CPU that the firmware starts.
    entry: Pa,
    version: u32,
    /// CPU_SUSPEND's features, if it has the call.
    cpu_suspend: Option<u32>,
    system_suspend: bool,
    system_reset2: bool,
    /// It can scrub all memory after a reset (DEN0022 §5.12).
    mem_protect: bool,
    /// It answers SMCCC_ARCH_FEATURES.
    smccc: bool,
    /// Calls of the whitelist that it implements, a bit for each entry of [`PASSED_ON`].
    passed_on: u8,
    trng: bool,
}

/// Calls that go to the firmware unchanged if SMCCC_ARCH_FEATURES says that it has them.
const PASSED_ON: [u32; 4] =
    [id::SMCCC_ARCH_WORKAROUND_1, id::SMCCC_ARCH_WORKAROUND_2, id::SMCCC_ARCH_WORKAROUND_3, id::SMCCC_ARCH_SOC_ID];
const VERSION_0_2: u32 = 2;
const VERSION_1_0: u32 = 1 << 16;
/// SMCCC version 1.1, the first with calls besides SMCCC_VERSION; also TRNG version 1.0.
const SMCCC_1_1: u32 = 0x0001_0001;
const TRNG_1_0: u32 = 1 << 16;
/// CPU_SUSPEND feature bit 1: extended StateID format.
const EXTENDED_STATE_ID: u32 = 1 << 1;
/// AFFINITY_INFO's answer for a CPU that is off.
const AFFINITY_OFF: u32 = 1;

impl SmcFirmware {
    /// Asks the firmware what it can do. `entry` is where it shall start CPUs in the core: MMU and caches are off there.
    ///
    /// # Errors
    /// [`ProbeError::TooOld`].
    pub fn probe(machine: &impl Machine, entry: Pa) -> Result<Self, ProbeError> {
        let ask = |function, argument| PsciError::check(machine.smc(function, [argument, 0, 0])[0]).ok();
        let version = machine.smc(id::PSCI_VERSION, [0; 3])[0] as u32;
        if !(VERSION_0_2..1 << 31).contains(&version) {
            return Err(ProbeError::TooOld(version));
        }
        if version < VERSION_1_0 {
            // CPU_SUSPEND is mandatory there and has the original format; there is nothing that could be asked.
            let cpu_suspend = Some(0);
            return Ok(Self {
                entry,
                version,
                cpu_suspend,
                system_suspend: false,
                system_reset2: false,
                mem_protect: false,
                smccc: false,
                passed_on: 0,
                trng: false,
            });
        }
        let feature = |function: u32| ask(id::PSCI_FEATURES, u64::from(function));
        let smccc = feature(id::SMCCC_VERSION).is_some()
            && ask(id::SMCCC_VERSION, 0).is_some_and(|version| version >= SMCCC_1_1);
        let has = |function: u32| smccc && ask(id::SMCCC_ARCH_FEATURES, u64::from(function)).is_some();
        let bits = PASSED_ON.iter().enumerate().map(|(bit, &function)| u8::from(has(function)) << bit);
        Ok(Self {
            entry,
            version,
            cpu_suspend: feature(id::CPU_SUSPEND_64),
            system_suspend: feature(id::SYSTEM_SUSPEND_64).is_some(),
            system_reset2: feature(id::SYSTEM_RESET2_64).is_some(),
            mem_protect: feature(id::MEM_PROTECT).is_some(),
            smccc,
            passed_on: bits.fold(0, |all, bit| all | bit),
            trng: smccc && ask(id::TRNG_VERSION, 0).is_some_and(|version| version >= TRNG_1_0),
        })
    }

    /// PSCI version: major in the upper, minor in the lower 16 bits.
    pub const fn version(&self) -> u32 {
        self.version
    }
}

impl Below {
    /// Starts `target`, in state `OnPending` by now.
    pub(super) fn cpu_on(&self, machine: &impl Machine, target: CpuId, affinity: u64) -> Result<(), PsciError> {
        match self {
            Self::Smc(firmware) => {
                let args = [affinity, firmware.entry.raw(), target.index() as u64];
                PsciError::check(machine.smc(id::CPU_ON_64, args)[0]).map(drop)
            }
            Self::SpinTable => {
                machine.send_event();
                Ok(())
            }
            Self::Nothing => Err(PsciError::Denied),
        }
    }

    /// Switches the calling CPU off. `Ok` means that the CPU goes on running in the core, which parks it.
    pub(super) fn cpu_off(&self, machine: &impl Machine) -> Result<(), PsciError> {
        match self {
            Self::Smc(_) => PsciError::check(machine.smc(id::CPU_OFF, [0; 3])[0]).map(drop),
            Self::SpinTable => Ok(()),
            Self::Nothing => Err(PsciError::Denied),
        }
    }

    /// Whether a CPU that the table calls off has really got there.
    pub(super) fn is_off(&self, machine: &impl Machine, affinity: u64) -> bool {
        match self {
            Self::Smc(_) => {
                let answer = PsciError::check(machine.smc(id::AFFINITY_INFO_64, [affinity, 0, 0])[0]);
                answer.is_err() || answer == Ok(AFFINITY_OFF)
            }
            Self::SpinTable | Self::Nothing => true,
        }
    }

    /// CPU_SUSPEND's features: `None` if power-down states do not exist here.
    pub(super) const fn cpu_suspend_features(&self) -> Option<u32> {
        match self {
            Self::Smc(firmware) => firmware.cpu_suspend,
            Self::SpinTable | Self::Nothing => None,
        }
    }

    /// Whether power_state parameters have the extended format.
    pub(super) const fn extended_state_id(&self) -> bool {
        matches!(self.cpu_suspend_features(), Some(features) if features & EXTENDED_STATE_ID != 0)
    }

    /// Whether the system can be suspended to RAM.
    pub(super) const fn has_system_suspend(&self) -> bool {
        matches!(self, Self::Smc(firmware) if firmware.system_suspend)
    }

    /// Whether there is a warm reset.
    pub(super) const fn has_system_reset2(&self) -> bool {
        matches!(self, Self::Smc(firmware) if firmware.system_reset2)
    }

    /// Takes the calling CPU into the power-down state `state`. Comes back if it was not powered down, else the CPU
    /// arrives at the core's entry.
    pub(super) fn cpu_suspend(&self, machine: &impl Machine, cpu: CpuId, state: u32) -> Result<(), PsciError> {
        let Self::Smc(firmware) = self else { return Err(PsciError::NotSupported) };
        let args = [u64::from(state), firmware.entry.raw(), cpu.index() as u64];
        PsciError::check(machine.smc(id::CPU_SUSPEND_64, args)[0]).map(drop)
    }

    /// Suspends the system to RAM; comes back as [`Self::cpu_suspend`] does.
    pub(super) fn system_suspend(&self, machine: &impl Machine, cpu: CpuId) -> Result<(), PsciError> {
        let Self::Smc(firmware) = self else { return Err(PsciError::NotSupported) };
        let args = [firmware.entry.raw(), cpu.index() as u64, 0];
        PsciError::check(machine.smc(id::SYSTEM_SUSPEND_64, args)[0]).map(drop)
    }

    /// Ends the run; comes back only if that fails.
    pub(super) fn end(&self, machine: &impl Machine, how: SystemEnd) {
        if let Self::Smc(_) = self {
            let function = if how == SystemEnd::Off { id::SYSTEM_OFF } else { id::SYSTEM_RESET };
            machine.smc(function, [0; 3]);
        }
        machine.end(how);
    }

    /// Whether the firmware will (or will not, if not `on`) scrub all memory after a reset.
    pub(super) fn mem_protect(&self, machine: &impl Machine, on: bool) -> bool {
        matches!(self, Self::Smc(firmware) if firmware.mem_protect)
            && PsciError::check(machine.smc(id::MEM_PROTECT, [on.into(), 0, 0])[0]).is_ok()
    }

    /// Architectural warm reset (reset type 0); comes back only with an error.
    pub(super) fn warm_reset(&self, machine: &impl Machine) -> PsciError {
        if !self.has_system_reset2() {
            return PsciError::NotSupported;
        }
        PsciError::check(machine.smc(id::SYSTEM_RESET2_64, [0; 3])[0]).err().unwrap_or(PsciError::InternalFailure)
    }

    /// The firmware's answer to SMCCC_ARCH_FEATURES for `function` on the calling CPU, or NOT_SUPPORTED. Asked anew every
    /// time: it may differ between CPUs, and besides errors there is a negative NOT_REQUIRED (DEN0028 §7.1).
    pub(super) fn arch_features(&self, machine: &impl Machine, function: u32) -> u64 {
        match self {
            Self::Smc(firmware) if firmware.smccc && PASSED_ON.contains(&function) => {
                sign_extend(machine.smc(id::SMCCC_ARCH_FEATURES, [function.into(), 0, 0])[0])
            }
            _ => PsciError::NotSupported.code(),
        }
    }

    /// Whether `function`, a call that only firmware can answer, may go there.
    pub(super) fn passes_on(&self, function: u32) -> bool {
        let Self::Smc(firmware) = self else { return false };
        if let Some(bit) = PASSED_ON.iter().position(|&known| known == function) {
            return firmware.passed_on & (1 << bit) != 0;
        }
        firmware.trng && matches!(SmcCall::new(function.into(), 0, 0, 0).decode(), Call::Firmware)
    }
}

/// The low 32 bits of a result, as a signed number.
pub(super) const fn sign_extend(x0: u64) -> u64 {
    x0 as i32 as i64 as u64
}
