//! Which CPUs run the host: the power states of DEN0022 §6.6 as a table, its lock outside.
//!
//! ```text
//!            begin_on            enter              begin_suspend
//!   Off ---------------> OnPending ------> On ------------------> Suspended       Absent -> Off: enter, once
//!    ^  <--------------- (cancel_on)       |  <------------------ (enter, cancel_suspend)
//!    +-------------------------------------+
//!            begin_off (cancel_off back)
//! ```
//!
//! Each transition checks everything first and changes nothing if it fails. A CPU in `OnPending` is reserved by the CPU
//! that asked (`by`), so a failed start is taken back by that CPU only, and a CPU makes one call at a time.
#![forbid(unsafe_code)]

use super::call::PsciError;
use crate::abstract_machine::addr::{CpuId, Ipa};
use crate::abstract_machine::regs::MPIDR_AFFINITY;

/// Where and with what in x0 a CPU begins to run the host, at EL1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// The host's entry point; it was in the host's RAM when the host named it.
    pub entry: Ipa,
    /// The host's own value, for x0.
    pub context: u64,
}

/// Power state of a CPU as the host sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuPower {
    /// Awaited out of a spin table, not seen yet: for the host there is no such CPU.
    Absent,
    /// Not running the host: powered off, on its way there, or parked in the core.
    Off,
    /// Asked to run, has not arrived yet.
    OnPending {
        /// Where it will begin.
        start: Start,
        /// The CPU that asked.
        by: CpuId,
    },
    /// Running the host.
    On,
    /// In a power-down state from which it returns to the host by itself.
    Suspended {
        /// Where it will go on.
        start: Start,
    },
}

/// Why a CPU cannot be added to the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddCpuError {
    /// There are more CPUs than the core has room for.
    TableFull,
    /// Another CPU has the same affinity.
    Duplicate,
}

#[derive(Clone, Copy)]
struct Slot {
    affinity: u64,
    power: CpuPower,
}

/// Power states of up to `N` CPUs, by [`CpuId`].
#[derive(Clone)]
pub struct PowerTable<const N: usize> {
    slots: [Slot; N],
    count: usize,
}

impl<const N: usize> PowerTable<N> {
    /// The table of a machine whose boot CPU, number 0, has this MPIDR and runs. `N` is at least 1.
    pub const fn new(boot_mpidr: u64) -> Self {
        const { assert!(N > 0 && N <= u16::MAX as usize) };
        let mut slots = [Slot { affinity: 0, power: CpuPower::Off }; N];
        slots[0] = Slot { affinity: boot_mpidr & MPIDR_AFFINITY, power: CpuPower::On };
        Self { slots, count: 1 }
    }

    /// Adds a CPU that is off, or one that is awaited (`here` false); gives its dense number, the next in order.
    ///
    /// # Errors
    /// [`AddCpuError::TableFull`], [`AddCpuError::Duplicate`].
    pub fn add(&mut self, mpidr: u64, here: bool) -> Result<CpuId, AddCpuError> {
        if self.find(mpidr).is_some() {
            return Err(AddCpuError::Duplicate);
        }
        let slot = self.slots.get_mut(self.count).ok_or(AddCpuError::TableFull)?;
        let power = if here { CpuPower::Off } else { CpuPower::Absent };
        *slot = Slot { affinity: mpidr & MPIDR_AFFINITY, power };
        self.count += 1;
        Ok(CpuId::new((self.count - 1) as u16))
    }

    /// The CPU with the affinity in `mpidr`; its other bits do not count.
    pub fn find(&self, mpidr: u64) -> Option<CpuId> {
        let index = self.known().iter().position(|slot| slot.affinity == mpidr & MPIDR_AFFINITY)?;
        Some(CpuId::new(index as u16))
    }

    /// Number of CPUs.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// State of `cpu`; `None` if there is no such CPU.
    pub fn power(&self, cpu: CpuId) -> Option<CpuPower> {
        self.known().get(cpu.index()).map(|slot| slot.power)
    }

    /// Affinity of `cpu` as firmware and host name it; `None` if there is no such CPU.
    pub fn affinity(&self, cpu: CpuId) -> Option<u64> {
        self.known().get(cpu.index()).map(|slot| slot.affinity)
    }

    /// `Off` -> `OnPending`: `by` wants `target` to begin at `start`.
    ///
    /// # Errors
    /// [`PsciError::AlreadyOn`], [`PsciError::OnPending`], [`PsciError::InvalidParameters`] if it has not come.
    pub fn begin_on(&mut self, by: CpuId, target: CpuId, start: Start) -> Result<(), PsciError> {
        let power = self.slot(target)?;
        match *power {
            CpuPower::Off => *power = CpuPower::OnPending { start, by },
            CpuPower::Absent => return Err(PsciError::InvalidParameters),
            CpuPower::OnPending { .. } => return Err(PsciError::OnPending),
            CpuPower::On | CpuPower::Suspended { .. } => return Err(PsciError::AlreadyOn),
        }
        Ok(())
    }

    /// `OnPending` -> `Off`, if it was `by` who asked: the firmware refused. Anything else stays.
    pub fn cancel_on(&mut self, by: CpuId, target: CpuId) {
        if let Ok(power) = self.slot(target)
            && matches!(*power, CpuPower::OnPending { by: owner, .. } if owner == by)
        {
            *power = CpuPower::Off;
        }
    }

    /// `On` -> `Off`.
    ///
    /// # Errors
    /// [`PsciError::Denied`] for the last CPU: nobody could ever start another one.
    pub fn begin_off(&mut self, cpu: CpuId) -> Result<(), PsciError> {
        self.expect_on(cpu)?;
        if self.others_are_off(cpu) {
            return Err(PsciError::Denied);
        }
        *self.slot(cpu)? = CpuPower::Off;
        Ok(())
    }

    /// Back to `On`: the firmware refused to switch `cpu` off. `false`, and no change, while another CPU has a start of it
    /// under way: the firmware will refuse that too, because `cpu` runs; try again when it was taken back.
    #[must_use]
    pub fn cancel_off(&mut self, cpu: CpuId) -> bool {
        match self.slot(cpu) {
            Ok(CpuPower::OnPending { .. }) => return false,
            Ok(power @ CpuPower::Off) => *power = CpuPower::On,
            Ok(CpuPower::Absent | CpuPower::On | CpuPower::Suspended { .. }) | Err(_) => {}
        }
        true
    }

    /// `On` -> `Suspended`: `cpu` goes into a power-down state and will come back at `start`.
    ///
    /// # Errors
    /// [`PsciError::InternalFailure`] if it is not on.
    pub fn begin_suspend(&mut self, cpu: CpuId, start: Start) -> Result<(), PsciError> {
        self.expect_on(cpu)?;
        *self.slot(cpu)? = CpuPower::Suspended { start };
        Ok(())
    }

    /// As [`Self::begin_suspend`], for the whole system.
    ///
    /// # Errors
    /// [`PsciError::Denied`] unless all other CPUs are off.
    pub fn begin_system_suspend(&mut self, cpu: CpuId, start: Start) -> Result<(), PsciError> {
        if !self.others_are_off(cpu) {
            return Err(PsciError::Denied);
        }
        self.begin_suspend(cpu, start)
    }

    /// `Suspended` -> `On` without a power-down: the firmware came back.
    pub fn cancel_suspend(&mut self, cpu: CpuId) {
        if let Ok(power) = self.slot(cpu)
            && matches!(*power, CpuPower::Suspended { .. })
        {
            *power = CpuPower::On;
        }
    }

    /// `OnPending` or `Suspended` -> `On`: `cpu` has arrived in the core. `None` if nobody wants it to run: no change then, but that an awaited CPU
    /// is there from now on (`Absent` -> `Off`).
    pub fn enter(&mut self, cpu: CpuId) -> Option<Start> {
        let power = self.slot(cpu).ok()?;
        match *power {
            CpuPower::OnPending { start, .. } | CpuPower::Suspended { start } => {
                *power = CpuPower::On;
                Some(start)
            }
            CpuPower::Absent => {
                *power = CpuPower::Off;
                None
            }
            CpuPower::Off | CpuPower::On => None,
        }
    }

    fn known(&self) -> &[Slot] {
        self.slots.get(..self.count).unwrap_or(&[])
    }

    fn slot(&mut self, cpu: CpuId) -> Result<&mut CpuPower, PsciError> {
        match self.slots.get_mut(..self.count).and_then(|slots| slots.get_mut(cpu.index())) {
            Some(slot) => Ok(&mut slot.power),
            None => Err(PsciError::InternalFailure),
        }
    }

    fn expect_on(&mut self, cpu: CpuId) -> Result<(), PsciError> {
        match self.slot(cpu)? {
            CpuPower::On => Ok(()),
            _ => Err(PsciError::InternalFailure),
        }
    }

    fn others_are_off(&self, cpu: CpuId) -> bool {
        let is_off = |power| matches!(power, CpuPower::Off | CpuPower::Absent);
        self.known().iter().enumerate().all(|(index, slot)| index == cpu.index() || is_off(slot.power))
    }
}
