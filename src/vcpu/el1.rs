//! The EL1 state of who takes an exception: host or VM, its registers in the CPU or in its shadow context.
//!
//! | type         | whose                                          | PC and PSTATE      | EL1 registers |
//! |--------------|------------------------------------------------|--------------------|---------------|
//! | [`Host`]     | the trapped host                               | ELR_EL2, SPSR_EL2  | in the CPU    |
//! | [`VmEl1`]    | a VM, after an exit that no host saw: `loaded` | shadow             | in the CPU    |
//! | [`VmEl1`]    | a VM that does not run: `saved`                | shadow             | shadow        |
//!
//! Source: Arm ARM (DDI 0487) D1.3 (exception entry).
#![forbid(unsafe_code)]

use crate::abstract_machine::Machine;
use crate::abstract_machine::regs::El1Reg;
use crate::abstract_machine::shadow::{Context, ShadowReg};

/// What exception entry reads and writes.
pub trait El1State {
    /// Program counter.
    fn pc(&self) -> u64;
    /// Sets it.
    fn set_pc(&mut self, pc: u64);
    /// Processor state.
    fn pstate(&self) -> u64;
    /// Sets it.
    fn set_pstate(&mut self, pstate: u64);
    /// Reads a register of EL1.
    fn read(&self, reg: El1Reg) -> u64;
    /// Writes a register of EL1.
    fn write(&mut self, reg: El1Reg, value: u64);
}

/// The trapped host.
pub struct Host<'m, M>(pub &'m M);

/// A VM of which this CPU has the context.
pub struct VmEl1<'m, M> {
    ctxt: &'m mut Context,
    /// Where its EL1 registers are, if not in the context.
    cpu: Option<&'m M>,
}

impl<'m, M> VmEl1<'m, M> {
    /// The VM that this CPU runs, after an exit that the core serves: its EL1 registers were not saved.
    pub fn loaded(machine: &'m M, ctxt: &'m mut Context) -> Self {
        Self { ctxt, cpu: Some(machine) }
    }

    /// A VM all of whose registers are in its shadow context.
    pub fn saved(ctxt: &'m mut Context) -> Self {
        Self { ctxt, cpu: None }
    }
}

impl<M: Machine> El1State for Host<'_, M> {
    fn pc(&self) -> u64 {
        self.0.host_pc()
    }

    fn set_pc(&mut self, pc: u64) {
        self.0.set_host_pc(pc);
    }

    fn pstate(&self) -> u64 {
        self.0.host_pstate()
    }

    fn set_pstate(&mut self, pstate: u64) {
        self.0.set_host_pstate(pstate);
    }

    fn read(&self, reg: El1Reg) -> u64 {
        self.0.read_el1(reg)
    }

    fn write(&mut self, reg: El1Reg, value: u64) {
        self.0.write_el1(reg, value);
    }
}

impl<M: Machine> El1State for VmEl1<'_, M> {
    fn pc(&self) -> u64 {
        self.ctxt.pc
    }

    fn set_pc(&mut self, pc: u64) {
        self.ctxt.pc = pc;
    }

    fn pstate(&self) -> u64 {
        self.ctxt.pstate
    }

    fn set_pstate(&mut self, pstate: u64) {
        self.ctxt.pstate = pstate;
    }

    fn read(&self, reg: El1Reg) -> u64 {
        match self.cpu {
            Some(machine) => machine.read_el1(reg),
            None => self.ctxt.get(ShadowReg::Bank(reg.into())),
        }
    }

    fn write(&mut self, reg: El1Reg, value: u64) {
        match self.cpu {
            Some(machine) => machine.write_el1(reg, value),
            None => self.ctxt.set(ShadowReg::Bank(reg.into()), value),
        }
    }
}
