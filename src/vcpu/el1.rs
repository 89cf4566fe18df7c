//! The EL1 state of who takes an exception: host or VM, its registers in the CPU or in its shadow context.
//!
//! | type       | whose                   | PC and PSTATE      | EL1 registers |
//! |------------|-------------------------|--------------------|---------------|
//! | [`Host`]   | the trapped host        | ELR_EL2, SPSR_EL2  | in the CPU    |
//! | [`Loaded`] | a VM between two runs that no host saw | shadow | in the CPU    |
//! | [`Saved`]  | a VM that does not run  | shadow             | shadow        |
#![forbid(unsafe_code)]

use crate::abstract_machine::Machine;
use crate::abstract_machine::regs::El1Reg;
use crate::abstract_machine::shadow::{BankReg, Shadow, ShadowReg};

/// What exception entry reads and writes.
pub trait El1State {
    /// Program counter.
    fn pc(&self) -> u64;
    /// Sets it.
    fn set_pc(&self, pc: u64);
    /// Processor state.
    fn pstate(&self) -> u64;
    /// Sets it.
    fn set_pstate(&self, pstate: u64);
    /// Reads a register of EL1.
    fn read(&self, reg: El1Reg) -> u64;
    /// Writes a register of EL1.
    fn write(&self, reg: El1Reg, value: u64);
}

/// The trapped host.
pub struct Host<'m, M>(pub &'m M);

/// The VM that this CPU runs, after an exit that the core serves: its EL1 registers were not saved.
pub struct Loaded<'m, M>(pub &'m M, pub Shadow);

/// A VM all of whose registers are in its shadow context.
pub struct Saved<'m, M>(pub &'m M, pub Shadow);

impl<M: Machine> El1State for Host<'_, M> {
    fn pc(&self) -> u64 {
        self.0.host_pc()
    }

    fn set_pc(&self, pc: u64) {
        self.0.set_host_pc(pc);
    }

    fn pstate(&self) -> u64 {
        self.0.host_pstate()
    }

    fn set_pstate(&self, pstate: u64) {
        self.0.set_host_pstate(pstate);
    }

    fn read(&self, reg: El1Reg) -> u64 {
        self.0.read_el1(reg)
    }

    fn write(&self, reg: El1Reg, value: u64) {
        self.0.write_el1(reg, value);
    }
}

impl<M: Machine> El1State for Loaded<'_, M> {
    fn pc(&self) -> u64 {
        self.0.get_shadow_ctxt(self.1, ShadowReg::Pc)
    }

    fn set_pc(&self, pc: u64) {
        self.0.set_shadow_ctxt(self.1, ShadowReg::Pc, pc);
    }

    fn pstate(&self) -> u64 {
        self.0.get_shadow_ctxt(self.1, ShadowReg::Pstate)
    }

    fn set_pstate(&self, pstate: u64) {
        self.0.set_shadow_ctxt(self.1, ShadowReg::Pstate, pstate);
    }

    fn read(&self, reg: El1Reg) -> u64 {
        self.0.read_el1(reg)
    }

    fn write(&self, reg: El1Reg, value: u64) {
        self.0.write_el1(reg, value);
    }
}

impl<M: Machine> El1State for Saved<'_, M> {
    fn pc(&self) -> u64 {
        self.0.get_shadow_ctxt(self.1, ShadowReg::Pc)
    }

    fn set_pc(&self, pc: u64) {
        self.0.set_shadow_ctxt(self.1, ShadowReg::Pc, pc);
    }

    fn pstate(&self) -> u64 {
        self.0.get_shadow_ctxt(self.1, ShadowReg::Pstate)
    }

    fn set_pstate(&self, pstate: u64) {
        self.0.set_shadow_ctxt(self.1, ShadowReg::Pstate, pstate);
    }

    fn read(&self, reg: El1Reg) -> u64 {
        self.0.get_shadow_ctxt(self.1, ShadowReg::Bank(banked(reg)))
    }

    fn write(&self, reg: El1Reg, value: u64) {
        self.0.set_shadow_ctxt(self.1, ShadowReg::Bank(banked(reg)), value);
    }
}

/// Where a shadow context keeps the register.
const fn banked(reg: El1Reg) -> BankReg {
    match reg {
        El1Reg::Elr => BankReg::ElrEl1,
        El1Reg::Spsr => BankReg::SpsrEl1,
        El1Reg::Esr => BankReg::Esr,
        El1Reg::Far => BankReg::Far,
        El1Reg::Sctlr => BankReg::Sctlr,
        El1Reg::Vbar => BankReg::Vbar,
    }
}
