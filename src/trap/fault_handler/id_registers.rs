//! The ID registers of a VM: which trap, and what they answer. The filter itself is the interface's ([`crate::interface::id_registers`]), because the host
//! tells its own user space the same.
#![forbid(unsafe_code)]

use crate::abstract_machine::regs::SysregId;
use crate::interface::id_registers;

/// Whether `reg` is one of the ID registers that trap together (HCR_EL2.TID3).
pub const fn is_id_register(reg: SysregId) -> bool {
    reg.op0 == 3 && reg.op1 == 0 && reg.crn == 0 && reg.crm >= 1 && reg.crm <= 7
}

/// What a VM reads where the CPU has `raw`. `gic_registers`: the VM reaches its GIC by system registers.
pub fn visible(reg: SysregId, raw: u64, gic_registers: bool) -> u64 {
    id_registers::visible(reg.crm, reg.op2, raw, gic_registers)
}
