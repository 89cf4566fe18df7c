//! Layers 27-34: a vCPU's exits and entries.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault(
        "vcpu_ops: a list register is read a second time",
        "src/vcpu/vcpu_ops.rs",
        "        *lr = list_register(vgic.version, page.read(word!(lr) + n))?;\n",
        "        list_register(vgic.version, page.read(word!(lr) + n))?;\n        *lr = page.read(word!(lr) + n);\n",
    ),
    fault(
        "vcpu_ops_aux: a word of the mailbox is read a second time",
        "src/vcpu/vcpu_ops_aux.rs",
        "            let value = page.read(X + usize::from(n));\n",
        "            page.read(X + usize::from(n));\n            let value = page.read(X + usize::from(n));\n",
    ),
    fault(
        "exposure: a load shows what its register held",
        "src/vcpu/exposure.rs",
        "Exposure { esr: ACCESS, ipa: u64::MAX, taken: Regs::Srt,",
        "Exposure { esr: ACCESS, ipa: u64::MAX, shown: Regs::Srt, taken: Regs::Srt,",
    ),
    fault(
        "exposure: the host answers a PSCI call",
        "src/vcpu/exposure.rs",
        "shown: Regs::X0ToX3, ..NOTHING",
        "shown: Regs::X0ToX3, taken: Regs::X0, ..NOTHING",
    ),
    fault(
        "exposure: a store shows its whole register",
        "src/vcpu/exposure.rs",
        "        ExitReason::MmioWrite => u64::MAX >> (64 - 8 * syndrome.access_size()),",
        "        ExitReason::MmioWrite => u64::MAX,",
    ),
    fault(
        "exposure: a walk's fault says what its instruction would have done",
        "src/vcpu/exposure.rs",
        "    if syndrome.fault_kind() == FaultKind::Permission { esr | WRITE } else { esr & !WRITE }",
        "    if syndrome.is_write() { esr | WRITE } else { esr & !WRITE }",
    ),
    fault(
        "vcpu_ops_aux: a vCPU starts without the interrupts that wait for it",
        "src/vcpu/vcpu_ops_aux.rs",
        "    (lrs as u8..VGIC_WORDS as u8)",
        "    (lrs as u8 * 0..VGIC_WORDS as u8)",
    ),
    fault(
        "vcpu_ops_aux: CPU_OFF shows what stands in registers",
        "src/vcpu/vcpu_ops_aux.rs",
        "!is_call(ctxt, psci::CPU_ON)",
        "is_call(ctxt, 0)",
    ),
    fault(
        "exposure: register 31 is an answer of the host",
        "src/vcpu/exposure.rs",
        "|n: u8| if n < 31 {",
        "|n: u8| if n < 32 {",
    ),
    fault(
        "vcpu_ops_aux: a load gives more bits than it has",
        "src/vcpu/vcpu_ops_aux.rs",
        "ctxt.set(ShadowReg::X(n), loaded(value, syndrome));",
        "ctxt.set(ShadowReg::X(n), value);",
    ),
    fault(
        "vcpu_ops_aux: a vCPU starts with the FP registers that it had",
        "src/vcpu/vcpu_ops_aux.rs",
        "    (0..64).for_each(|n| set(ShadowReg::Q(n), 0));\n",
        "",
    ),
    fault(
        "vcpu_ops: unknown flags of an entry are taken for nothing",
        "src/vcpu/vcpu_ops.rs",
        "    if flags & !KNOWN != 0 || wrong {",
        "    if wrong {",
    ),
    fault(
        "vcpu_ops: a list register ends a physical interrupt of the host's",
        "src/vcpu/vcpu_ops.rs",
        "    if hardware && (physical, virtual_) != (TIMER_INTID, TIMER_INTID) {",
        "    if hardware && physical == 0 && virtual_ == 0 {",
    ),
    fault(
        "vcpu_ops: more list registers than there are",
        "src/vcpu/vcpu_ops.rs",
        "lr_count > usize::from(vgic.list_registers) || lr_count > MAX",
        "lr_count > MAX",
    ),
    fault(
        "vcpu_ops: x0 at a protected VM's start is the host's",
        "src/vcpu/vcpu_ops.rs",
        "Start::Manifest { pc: signed, x0 } => (signed == pc",
        "Start::Manifest { pc: signed, .. } => (signed == pc",
    ),
    fault(
        "vcpu_ops: a protected VM starts and nobody says where",
        "src/vcpu/vcpu_ops.rs",
        "(signed == pc, (signed, x0))",
        "(true, (signed, x0))",
    ),
    fault(
        "ctxt_switch: a vCPU that could not enter stays taken",
        "src/vcpu/ctxt_switch.rs",
        "            set_vcpu_inactive(vms, vmid, vcpuid);\n            return",
        "            return",
    ),
    fault(
        "ctxt_switch: the host goes on with a VM's FP registers",
        "src/vcpu/ctxt_switch.rs",
        "    machine.fpsimd_restore_state(ContextAt::Host);\n",
        "",
    ),
    fault(
        "ctxt_switch: a vCPU is given back before its tables are left",
        "src/vcpu/ctxt_switch.rs",
        "    machine.host_el2_restore_state();\n    machine.deactivate_traps();",
        "    set_vcpu_inactive(vms, active.vm, active.vcpu);\n    machine.host_el2_restore_state();\n    machine.deactivate_traps();",
    ),
    fault(
        "ctxt_switch: the host's traps are back before its tables",
        "src/vcpu/ctxt_switch.rs",
        "    machine.host_el2_restore_state();\n    machine.deactivate_traps();",
        "    machine.deactivate_traps();\n    machine.host_el2_restore_state();",
    ),
    fault(
        "trap_handler: an SError of the host's ends the VM that it was about to run",
        "src/trap/trap_handler.rs",
        "reason.unwrap_or(ExitReason::Irq)",
        "reason.unwrap_or(ExitReason::Failed)",
    ),
    fault(
        "pvops: a workaround that firmware does not have is there",
        "src/trap/fault_handler/pvops.rs",
        "x0 != NOT_SUPPORTED => SUCCESS,\n        _ => NOT_SUPPORTED",
        "x0 != NOT_SUPPORTED => SUCCESS,\n        _ => SUCCESS",
    ),
    fault(
        "ctxt_switch: an exit of a VM that was switched off is shown",
        "src/vcpu/ctxt_switch.rs",
        "            _ if !on => ExitReason::Stopped,\n",
        "",
    ),
    fault(
        "mem_handler: a store to read-only memory is tried for ever",
        "src/trap/mem_handler.rs",
        "kind != FaultKind::Permission && memory_ops",
        "memory_ops",
    ),
    fault(
        "mem_handler: a device that the VM did not name hears of it",
        "src/trap/mem_handler.rs",
        " && mmio_guard::allows(core.vms(), vmid, Gfn::containing(ipa))",
        "",
    ),
    fault(
        "mem_handler: a store to flash memory is an abort",
        "src/trap/mem_handler.rs",
        "kind == FaultKind::Permission && memory_ops::walk_vm(core.memory(), vmid, gfn).is_none();",
        "kind == FaultKind::Permission;",
    ),
    fault(
        "vm_exit: an SMC is not stepped over",
        "src/trap/trap_dispatcher/vm_exit.rs",
        "            step_over(ctxt);\n            pvops::call",
        "            pvops::call",
    ),
    fault(
        "pvops: an ordinary VM shares its host's pages",
        "src/trap/fault_handler/pvops.rs",
        "        _ if !is_protected(core, vmid) => NOT_SUPPORTED,\n",
        "",
    ),
    fault(
        "pvops: a VM that switched itself off may run",
        "src/trap/fault_handler/pvops.rs",
        "            let _ = end_vm(core.vms(), vmid);\n            return",
        "            return",
    ),
    fault(
        "trng: more bits come than were asked for",
        "src/trap/fault_handler/trng.rs",
        "word >> (u64::from(u64::BITS) - bits)",
        "word >> (u64::from(u64::BITS) - width)",
    ),
    fault(
        "trng: what is not random is given for random",
        "src/trap/fault_handler/trng.rs",
        "core.machine().entropy() else { return NOT_SUPPORTED }",
        "core.machine().entropy().or(Some([0; 4])) else { return NOT_SUPPORTED }",
    ),
    fault(
        "sys64: a VM's process does what its kernel may",
        "src/trap/fault_handler/sys64.rs",
        "outcome != Outcome::Host && is_el0(",
        "outcome == Outcome::Undefined && is_el0(",
    ),
    fault(
        "trap: after an SError the VM runs on",
        "src/trap/trap_handler_raw.rs",
        "    let _ = end_vm(core.vms(), active.vm);\n",
        "",
    ),
    fault(
        "trap: the host is not back after an entry that failed",
        "src/trap/trap_handler_raw.rs",
        "Err(_) => ctxt_switch::restore_host(machine),",
        "Err(_) => {}",
    ),
];
