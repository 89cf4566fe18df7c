//! Layers 27-34: the host's traps.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault(
        "fault: permission fault maps again",
        "src/trap/fault_handler.rs",
        "FaultKind::Translation | FaultKind::AccessFlag => {",
        "FaultKind::Translation | FaultKind::AccessFlag | FaultKind::Permission => {",
    ),
    fault("fault: FAR not given", "src/vcpu/vcpu_ops_aux.rs", "    el1.write(El1Reg::Far, va);\n", ""),
    fault(
        "fault: WnR lost",
        "src/vcpu/vcpu_ops_aux.rs",
        "ESR::WNR.val(u64::from(is_write))",
        "ESR::WNR.val(0 * u64::from(is_write))",
    ),
    fault(
        "fault: ELR is the vector",
        "src/vcpu/vcpu_ops_aux.rs",
        "    el1.write(El1Reg::Elr, pc);\n    el1.write(El1Reg::Spsr, pstate);",
        "    el1.write(El1Reg::Elr, pstate);\n    el1.write(El1Reg::Spsr, pc);",
    ),
    fault(
        "trap: SMC not stepped over",
        "src/trap/trap_handler_raw.rs",
        "    machine.set_host_pc(machine.host_pc().wrapping_add(INSTRUCTION_SIZE));\n",
        "",
    ),
    fault(
        "trap: any immediate is ours",
        "src/trap/trap_handler_raw.rs",
        "    let answer = match core.machine().read_esr_el2().immediate() {\n        0 =>",
        "    let answer = match core.machine().read_esr_el2().immediate() {\n        0 | 1 =>",
    ),
    fault("trap: restart keeps registers", "src/trap/trap_handler_raw.rs", "            frame.x = [0; 31];\n", ""),
    fault(
        "trap: no check at the start",
        "src/trap/trap_handler.rs",
        "pub fn host_trap_handler<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {\n    core.machine().check();",
        "pub fn host_trap_handler<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {",
    ),
    fault(
        "dispatcher: event limit off by one",
        "src/trap/trap_dispatcher.rs",
        "and_then(|n| Event::ALL.get(n))",
        "and_then(|n| Event::ALL.get(n.saturating_sub(1)))",
    ),
    fault(
        "fault: a process takes the fault that is for its kernel",
        "src/trap/fault_handler.rs",
        "        && !is_el0(machine.host_pstate());",
        "        ;",
    ),
];
