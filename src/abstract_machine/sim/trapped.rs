//! The registers of a host that trapped, on one CPU.
#![forbid(unsafe_code)]

use std::boxed::Box;

use super::Sim;
use super::walker::{AccessKind, Fault};
use crate::abstract_machine::addr::{Ipa, Pa};
use crate::abstract_machine::regs::{El1Reg, SysregId};

/// What registers of devices do: address, bytes, what is stored; gives what is loaded.
pub type Registers = Box<dyn Fn(Pa, u64, Option<u64>) -> u64 + Send + Sync>;

/// The registers of a trapped host, on one CPU.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Trapped {
    /// ESR_EL2.
    pub esr: u64,
    /// The faulting page, as HPFAR_EL2 gives it.
    pub hpfar: u64,
    /// FAR_EL2.
    pub far: u64,
    /// The SError that waits for the host: its syndrome, as VSESR_EL2 and HCR_EL2.VSE have it.
    pub serror: Option<u64>,
    /// ELR_EL2.
    pub pc: u64,
    /// SPSR_EL2.
    pub pstate: u64,
    /// ELR_EL1.
    pub elr_el1: u64,
    /// SPSR_EL1.
    pub spsr_el1: u64,
    /// ESR_EL1.
    pub esr_el1: u64,
    /// FAR_EL1.
    pub far_el1: u64,
    /// SCTLR_EL1.
    pub sctlr_el1: u64,
    /// VBAR_EL1.
    pub vbar_el1: u64,
}

pub(super) fn el1(trapped: &mut Trapped, reg: El1Reg) -> &mut u64 {
    match reg {
        El1Reg::Elr => &mut trapped.elr_el1,
        El1Reg::Spsr => &mut trapped.spsr_el1,
        El1Reg::Esr => &mut trapped.esr_el1,
        El1Reg::Far => &mut trapped.far_el1,
        El1Reg::Sctlr => &mut trapped.sctlr_el1,
        El1Reg::Vbar => &mut trapped.vbar_el1,
    }
}

impl Sim {
    /// The registers of the host on `cpu`.
    pub fn trapped(&self, cpu: usize) -> Trapped {
        self.state().cpus[cpu].trapped
    }

    /// Sets the registers of the host on `cpu`.
    pub fn set_trapped(&self, cpu: usize, trapped: Trapped) {
        self.state().cpus[cpu].trapped = trapped;
    }

    /// The registers after the stage-2 abort of an access to `ipa` by virtual address `va`.
    pub fn take_abort(&self, cpu: usize, ipa: Ipa, va: u64, kind: AccessKind, fault: Fault) {
        let class = if kind == AccessKind::Execute { 0x20 } else { 0x24 };
        let write = u64::from(kind == AccessKind::Write);
        let mut state = self.state();
        let trapped = &mut state.cpus[cpu].trapped;
        trapped.esr = class << 26 | 1 << 25 | write << 6 | fault.fsc();
        // HPFAR is written for translation, access-flag and address-size faults only.
        trapped.hpfar = if let Fault::Permission(_) = fault { 0xbad_0000_0000 } else { ipa.raw() & !0xfff };
        trapped.far = va;
    }

    /// What an ID register of every CPU holds; zero if no test says so.
    pub fn set_id_register(&self, reg: SysregId, value: u64) {
        self.state().id_registers.insert(reg, value);
    }

    /// The log's text; its first byte has sequence number `first`.
    pub fn set_log_text(&self, first: u64, text: &[u8]) {
        self.state().text = (first, text.to_vec());
    }

    /// Registers of devices. Without, there are none.
    pub fn set_registers(&self, registers: Registers) {
        *self.registers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(registers);
    }

    pub(super) fn register(&self, at: Pa, size: u64, store: Option<u64>) -> u64 {
        assert!(matches!(size, 4 | 8) && at.is_aligned(size), "{size} bytes at {at}: no access to a register");
        let registers = self.registers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        registers.as_ref().unwrap_or_else(|| panic!("no register is at {at}"))(at, size, store)
    }
}
