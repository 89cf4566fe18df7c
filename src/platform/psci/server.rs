//! [`Psci`]: the server itself. Checks a call, decides, and keeps the table in step with what lies below.
//!
//! [`Psci::call`] answers what can be answered and says what remains for the trap handler; [`Psci::leave`] does what may
//! not come back. A start reserves the target in the table first (`OnPending`), calls the firmware without the lock, and
//! takes the reservation back if the firmware refuses: of two CPUs that start a third one, one gets ON_PENDING.
//!
//! A CPU that is being switched off is `Off` in the table before it is in the firmware. Until then AFFINITY_INFO, which
//! asks the firmware, says ON, and CPU_ON gets the firmware's ALREADY_ON: what DEN0022 §5.6 tells a host to poll for.
//!
//! What it may not do: take an address or a call to the firmware that is not on the whitelist. DEN0022 §5.
#![forbid(unsafe_code)]

use spin::{Mutex, MutexGuard};

use super::call::{self, Call, PsciError, SmcCall, id};
use super::firmware::{Below, Machine, SystemEnd, sign_extend};
use super::power::{AddCpuError, CpuPower, PowerTable, Start};
use crate::abstract_machine::addr::{CpuId, Ipa};
use crate::abstract_machine::regs::MPIDR_AFFINITY;

const SUCCESS: u64 = 0;
/// AFFINITY_INFO's answers, and the highest affinity level.
const AFFINITY_ON: u64 = 0;
const AFFINITY_OFF: u64 = 1;
const AFFINITY_ON_PENDING: u64 = 2;
const HIGHEST_LEVEL: u32 = 3;

/// power_state, original format (DEN0022 §5.4.2): StateType, and the bits that must be zero.
const ORIGINAL_POWER_DOWN: u32 = 1 << 16;
const ORIGINAL_RESERVED: u32 = 0xfcfe_0000;
/// PowerLevel there: 0 for a state that takes power from the CPU alone.
const ORIGINAL_LEVEL: u32 = 0b11 << 24;
/// The same in the extended format.
const EXTENDED_POWER_DOWN: u32 = 1 << 30;
const EXTENDED_RESERVED: u32 = 0xb000_0000;

/// What the trap handler has to do for an SMC. See the module [`super`].
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsciOutcome {
    /// Put this in x0 and go on.
    Return(u64),
    /// Put these in x0 to x3 and go on.
    ReturnAll([u64; 4]),
    /// Wait for an interrupt, put 0 in x0 and go on.
    Standby,
    /// Clean up what this CPU does, then call [`Psci::leave`].
    Leave(Leave),
}

/// Ways for a CPU to leave the host. Arguments have been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// Off.
    CpuOff,
    /// Into the firmware's power-down state `state`, to come back at `start`.
    CpuSuspend {
        /// power_state, in the firmware's format.
        state: u32,
        /// Where the host wants to go on.
        start: Start,
    },
    /// Suspend to RAM, to come back at `start`.
    SystemSuspend {
        /// Where the host wants to go on.
        start: Start,
    },
    /// End of the run.
    System(SystemEnd),
    /// Architectural warm reset by the firmware.
    WarmReset,
}

/// What follows [`Psci::leave`].
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// The CPU did not leave: put this in x0 and go on.
    Return(u64),
    /// The CPU left and was called again: it begins anew.
    Start(Start),
    /// The machine's run is over and nothing can switch it off: stop all CPUs.
    Halt,
}

/// What the core has set up in devices, which a deep power state may take: an SMMU that lost it lets all accesses through, or an ITS has other tables than the core
/// takes it to have. The core is not there when the power comes back, only when a CPU does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetUp {
    /// SMMUs: no state deeper than a CPU's own, so that their domain keeps its power.
    pub smmus: bool,
    /// ITSs: no suspend to RAM.
    pub its: bool,
}

/// The PSCI server of a machine with up to `N` CPUs.
pub struct Psci<M: Machine, const N: usize> {
    pub(super) machine: M,
    pub(super) below: Below,
    pub(super) set_up: SetUp,
    pub(super) table: Mutex<PowerTable<N>>,
}

impl<M: Machine, const N: usize> Psci<M, N> {
    /// The server for the boot CPU (number 0, running, with this MPIDR_EL1) on top of `below`.
    pub const fn new(machine: M, below: Below, set_up: SetUp, boot_mpidr: u64) -> Self {
        Self { machine, below, set_up, table: Mutex::new(PowerTable::new(boot_mpidr)) }
    }

    /// Whether the host may suspend the system to RAM.
    fn has_system_suspend(&self) -> bool {
        self.below.has_system_suspend() && self.set_up == SetUp::default()
    }

    /// The table, locked. Never inlined: the loop of a lock has its price in every place.
    #[inline(never)]
    fn table(&self) -> MutexGuard<'_, PowerTable<N>> {
        self.table.lock()
    }

    /// Adds a CPU that the host may start; gives its dense number, the next in order. Takes the lock.
    ///
    /// # Errors
    /// [`AddCpuError::TableFull`], [`AddCpuError::Duplicate`].
    pub fn add_cpu(&self, mpidr: u64) -> Result<CpuId, AddCpuError> {
        self.table().add(mpidr, true)
    }

    /// The same for a CPU that waits at a spin table: until it has come ([`Self::wait_for_start`]) the host gets INVALID_PARAMETERS for it, as for a CPU that
    /// is not there. Takes the lock.
    ///
    /// # Errors
    /// [`AddCpuError::TableFull`], [`AddCpuError::Duplicate`].
    pub fn await_cpu(&self, mpidr: u64) -> Result<CpuId, AddCpuError> {
        self.table().add(mpidr, false)
    }

    /// The CPU with this MPIDR_EL1. Takes the lock.
    pub fn find_cpu(&self, mpidr: u64) -> Option<CpuId> {
        self.table().find(mpidr)
    }

    /// Power state of `cpu`; `None` if there is no such CPU. Takes the lock.
    pub fn power(&self, cpu: CpuId) -> Option<CpuPower> {
        self.table().power(cpu)
    }

    /// `cpu` has arrived in the core: where it shall enter the host, from now on in state `On`. `None` if nobody asked
    /// for it. Takes the lock.
    pub fn cpu_entered(&self, cpu: CpuId) -> Option<Start> {
        self.table().enter(cpu)
    }

    /// Waits, in WFE, until somebody wants `cpu` to run the host. A CPU that nobody ever asks for waits for ever.
    pub fn wait_for_start(&self, cpu: CpuId) -> Start {
        loop {
            if let Some(start) = self.cpu_entered(cpu) {
                return start;
            }
            self.machine.wait_for_event();
        }
    }

    /// Serves an SMC that the host made on `cpu`. `is_host_memory` says whether the host owns RAM at an address.
    /// Takes the lock, and calls the firmware without it.
    pub fn call(&self, cpu: CpuId, call: SmcCall, is_host_memory: impl Fn(Ipa) -> bool) -> PsciOutcome {
        let check = |entry, context| check_start(entry, context, &is_host_memory);
        let result = match call.decode() {
            Call::Version => Ok(call::PSCI_1_1),
            Call::CpuOn { target, entry, context } => self.cpu_on(cpu, target, || check(entry, context)),
            Call::CpuOff => return PsciOutcome::Leave(Leave::CpuOff),
            Call::CpuSuspend { state, entry, context } => match self.power_down(state) {
                Err(error) => Err(error),
                Ok(false) => return PsciOutcome::Standby,
                Ok(true) => match check(entry, context) {
                    Err(error) => Err(error),
                    Ok(start) => return PsciOutcome::Leave(Leave::CpuSuspend { state, start }),
                },
            },
            Call::AffinityInfo { target, level } => self.affinity_info(target, level),
            Call::MigrateInfoType => Ok(call::MIGRATION_NOT_REQUIRED),
            Call::SystemOff => return PsciOutcome::Leave(Leave::System(SystemEnd::Off)),
            Call::SystemReset => return PsciOutcome::Leave(Leave::System(SystemEnd::Reset)),
            Call::SystemReset2 { reset_type } if self.below.has_system_reset2() => match reset_type {
                0 => return PsciOutcome::Leave(Leave::WarmReset),
                _ => Err(PsciError::InvalidParameters),
            },
            Call::SystemSuspend { entry, context } if self.has_system_suspend() => match check(entry, context) {
                Err(error) => Err(error),
                Ok(start) => return PsciOutcome::Leave(Leave::SystemSuspend { start }),
            },
            Call::PsciFeatures { function } => self.features(function),
            Call::SmcccVersion => Ok(call::SMCCC_1_2),
            Call::ArchFeatures { function } => Ok(self.arch_features(function)),
            Call::Firmware => return self.pass_on(call),
            Call::SystemReset2 { .. } | Call::SystemSuspend { .. } | Call::Unknown => Err(PsciError::NotSupported),
        };
        PsciOutcome::Return(result.unwrap_or_else(PsciError::code))
    }

    /// Does what [`PsciOutcome::Leave`] said. May not come back: no lock may be held, and this CPU's stack may be lost.
    pub fn leave(&self, cpu: CpuId, leave: Leave) -> After {
        let result = match leave {
            Leave::CpuOff => match self.cpu_off(cpu) {
                Ok(()) => return After::Start(self.wait_for_start(cpu)),
                Err(error) => Err(error),
            },
            Leave::CpuSuspend { state, start } => self.suspend(
                cpu,
                |table| table.begin_suspend(cpu, start),
                || self.below.cpu_suspend(&self.machine, cpu, state),
            ),
            Leave::SystemSuspend { start } => self.suspend(
                cpu,
                |table| table.begin_system_suspend(cpu, start),
                || self.below.system_suspend(&self.machine, cpu),
            ),
            Leave::WarmReset => {
                // Firmware refuses it while it has memory to scrub itself.
                self.below.mem_protect(&self.machine, false);
                Err(self.below.warm_reset(&self.machine))
            }
            Leave::System(how) => {
                self.below.end(&self.machine, how);
                return After::Halt;
            }
        };
        After::Return(result.map_or_else(PsciError::code, |()| SUCCESS))
    }

    /// Asks the firmware, if it can, to scrub all memory after a reset that the core does not see coming. Whether it will.
    pub fn protect_memory(&self) -> bool {
        self.below.mem_protect(&self.machine, true)
    }

    /// CPUs that run the host. Takes the lock.
    pub fn running(&self) -> usize {
        let table = self.table();
        let power = |index| table.power(CpuId::new(index as u16));
        (0..table.count()).filter(|index| power(*index) == Some(CpuPower::On)).count()
    }

    fn cpu_on(&self, cpu: CpuId, target: u64, start: impl Fn() -> Result<Start, PsciError>) -> Result<u64, PsciError> {
        let target = self.find_cpu(target).ok_or(PsciError::InvalidParameters)?;
        let start = start()?;
        let affinity = {
            let mut table = self.table();
            table.begin_on(cpu, target, start)?;
            table.affinity(target).ok_or(PsciError::InternalFailure)?
        };
        match self.below.cpu_on(&self.machine, target, affinity) {
            Ok(()) => Ok(SUCCESS),
            Err(error) => {
                self.table().cancel_on(cpu, target);
                Err(error)
            }
        }
    }

    /// `Ok`: the CPU is off for the host and still runs in the core.
    fn cpu_off(&self, cpu: CpuId) -> Result<(), PsciError> {
        self.table().begin_off(cpu)?;
        let result = self.below.cpu_off(&self.machine);
        // Waits for one SMC of another CPU at most, which has no interrupts in between.
        while result.is_err() && !self.table().cancel_off(cpu) {
            core::hint::spin_loop();
        }
        result
    }

    fn suspend(
        &self,
        cpu: CpuId,
        begin: impl FnOnce(&mut PowerTable<N>) -> Result<(), PsciError>,
        sleep: impl FnOnce() -> Result<(), PsciError>,
    ) -> Result<(), PsciError> {
        begin(&mut self.table())?;
        let result = sleep();
        self.table().cancel_suspend(cpu);
        result
    }

    /// Whether power_state asks for a power-down that there is; a power-down that there is not becomes a standby, which
    /// DEN0022 §5.4.4 permits. Where there are SMMUs only a CPU's own states are there: in the extended format nothing says how deep a state is.
    fn power_down(&self, state: u32) -> Result<bool, PsciError> {
        let (power_down, reserved, deep) = match self.below.extended_state_id() {
            true => (EXTENDED_POWER_DOWN, EXTENDED_RESERVED, EXTENDED_POWER_DOWN),
            false => (ORIGINAL_POWER_DOWN, ORIGINAL_RESERVED, ORIGINAL_LEVEL),
        };
        if state & reserved != 0 {
            return Err(PsciError::InvalidParameters);
        }
        let is_too_deep = self.set_up.smmus && state & deep != 0;
        Ok(state & power_down != 0 && !is_too_deep && self.below.cpu_suspend_features().is_some())
    }

    /// DEN0022 §5.7: the CPUs whose affinity agrees with `target` from `level` on; one that is on counts most.
    fn affinity_info(&self, target: u64, level: u32) -> Result<u64, PsciError> {
        let mask = match level {
            0 => MPIDR_AFFINITY,
            1 => MPIDR_AFFINITY & !0xff,
            2 => MPIDR_AFFINITY & !0xffff,
            HIGHEST_LEVEL => MPIDR_AFFINITY & !0xff_ffff,
            _ => return Err(PsciError::InvalidParameters),
        };
        let mut answer = None;
        for index in 0..N {
            let cpu = CpuId::new(index as u16);
            let Some((affinity, power)) = self.snapshot(cpu) else { break };
            if (affinity ^ target) & mask != 0 {
                continue;
            }
            let state = match power {
                CpuPower::Absent => continue,
                CpuPower::Off if self.below.is_off(&self.machine, affinity) => AFFINITY_OFF,
                CpuPower::OnPending { .. } => AFFINITY_ON_PENDING,
                CpuPower::Off | CpuPower::On | CpuPower::Suspended { .. } => return Ok(AFFINITY_ON),
            };
            answer = answer.max(Some(state));
        }
        answer.ok_or(PsciError::InvalidParameters)
    }

    fn snapshot(&self, cpu: CpuId) -> Option<(u64, CpuPower)> {
        let table = self.table();
        Some((table.affinity(cpu)?, table.power(cpu)?))
    }

    fn features(&self, function: u32) -> Result<u64, PsciError> {
        match SmcCall::new(function.into(), 0, 0, 0).decode() {
            // Bit 1: format of power_state. Bit 0, OS-initiated mode, is not offered.
            Call::CpuSuspend { .. } => Ok(u64::from(self.below.extended_state_id()) << 1),
            Call::SystemReset2 { .. } if self.below.has_system_reset2() => Ok(SUCCESS),
            Call::SystemSuspend { .. } if self.has_system_suspend() => Ok(SUCCESS),
            Call::SystemReset2 { .. } | Call::SystemSuspend { .. } => Err(PsciError::NotSupported),
            Call::ArchFeatures { .. } | Call::Firmware | Call::Unknown => Err(PsciError::NotSupported),
            _ => Ok(SUCCESS),
        }
    }

    fn arch_features(&self, function: u32) -> u64 {
        match function {
            id::SMCCC_VERSION | id::SMCCC_ARCH_FEATURES => SUCCESS,
            _ => self.below.arch_features(&self.machine, function),
        }
    }

    fn pass_on(&self, call: SmcCall) -> PsciOutcome {
        let function = call.function();
        if !self.below.passes_on(function) {
            return PsciOutcome::Return(PsciError::NotSupported.code());
        }
        if function == id::SMCCC_ARCH_SOC_ID && call.args()[0] > 1 {
            return PsciOutcome::Return(call::SMCCC_INVALID_PARAMETER);
        }
        let mut results = self.machine.smc(function, call.args());
        if !call::is_smc64(function) {
            let [x0, rest @ ..] = &mut results;
            *x0 = sign_extend(*x0);
            rest.iter_mut().for_each(|x| *x &= u64::from(u32::MAX));
        }
        PsciOutcome::ReturnAll(results)
    }
}

/// An entry point that the host names: aligned, and in its RAM.
fn check_start(entry: u64, context: u64, is_host_memory: impl Fn(Ipa) -> bool) -> Result<Start, PsciError> {
    let entry = Ipa::new(entry);
    if !entry.is_aligned(4) || !is_host_memory(entry) {
        return Err(PsciError::InvalidAddress);
    }
    Ok(Start { entry, context })
}
