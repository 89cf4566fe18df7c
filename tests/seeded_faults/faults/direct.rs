//! Layers 28 and 31: interrupts that the core delivers by itself.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault(
        "direct: bits without a meaning are taken for nothing",
        "src/vcpu/vcpu_ops/direct.rs",
        "raw & !DIRECT_KNOWN != 0 || raw",
        "raw",
    ),
    fault(
        "direct: a list register of the host's that has ended is used again",
        "src/vcpu/vcpu_ops/direct.rs",
        "n >= host && lists.read(LISTS::TIMER)",
        "lists.read(LISTS::TIMER)",
    ),
    fault(
        "direct: an SGI takes the timer's list register",
        "src/vcpu/vcpu_ops/direct.rs",
        "let ended = n >= host && lists.read(LISTS::TIMER) as usize != n + 1;",
        "let ended = n >= host;",
    ),
    fault(
        "direct: one interrupt stands in two list registers",
        "src/vcpu/vcpu_ops/direct.rs",
        "} else if lr.read(ICH_LR::VINTID) == intid {",
        "} else if lr.read(ICH_LR::VINTID) == intid && n >= host {",
    ),
    fault(
        "direct: more list registers than there are",
        "src/vcpu/vcpu_ops/direct.rs",
        "let room = n < usize::from",
        "let room = n <= usize::from",
    ),
    fault(
        "direct: the exit does not show what the core delivered",
        "src/vcpu/vcpu_ops/direct.rs",
        "        lists.modify(LISTS::USED.val(place.n as u64 + 1));\n",
        "",
    ),
    fault(
        "direct: the timer's interrupt comes again while it is there",
        "src/vcpu/vcpu_ops/direct.rs",
        "        Some(n) if Lr::new(machine.list_register(n)).read(ICH_LR::STATE) != 0 => {}\n",
        "",
    ),
    fault(
        "direct: a timer that was served goes on interrupting",
        "src/vcpu/vcpu_ops/direct.rs",
        "    machine.set_cntv_ctl(ctl.get() | CNT_CTL::IMASK::SET.value);\n",
        "",
    ),
    fault(
        "direct: a timer that the VM may have masked is opened",
        "src/vcpu/vcpu_ops/direct.rs",
        "        if ctl.is_set(CNT_CTL::ISTATUS) {\n            return false;\n        }\n",
        "",
    ),
    fault(
        "direct: the end of the timer's interrupt does not open the timer",
        "src/vcpu/vcpu_ops/direct.rs",
        "        machine.set_cntv_ctl(ctl.get() & !CNT_CTL::IMASK::SET.value);\n",
        "",
    ),
    fault(
        "direct: the maintenance interrupt of the timer's end stays",
        "src/vcpu/vcpu_ops/direct.rs",
        "    machine.set_list_register(n, 0);\n",
        "",
    ),
    fault(
        "posted: an SGI for a vCPU that does not run is noted",
        "src/vm/boot_ops/posted.rs",
        "vcpu.state == VcpuState::Active",
        "vcpu.state != VcpuState::Unused",
    ),
    fault(
        "posted: what had no list register is forgotten",
        "src/vm/boot_ops/posted.rs",
        "        vcpu.posted |= u32::from(sgis);\n",
        "",
    ),
    fault(
        "posted: a vCPU that leaves forgets what was sent to it",
        "src/vm/boot_ops.rs",
        "|vcpu| core::mem::take(&mut vcpu.posted) as u16);\n    let shown",
        "|vcpu| core::mem::take(&mut vcpu.posted) as u16 & 0);\n    let shown",
    ),
    fault(
        "posted: nobody tells the receiver's CPU",
        "src/vm/boot_ops/posted.rs",
        "            vcpu.last_cpu.map(&kick);\n",
        "            let _ = &kick;\n",
    ),
    fault(
        "interrupts: affinities are not looked at",
        "src/trap/fault_handler/interrupts.rs",
        " == 0 || value & elsewhere != 0 {",
        " == 0 || elsewhere == 0 {",
    ),
    fault(
        "interrupts: SGIs that the host kept for itself are sent",
        "src/trap/fault_handler/interrupts.rs",
        "    if direct.sgis() >> sgi & 1 == 0 || value",
        "    if value",
    ),
    fault(
        "interrupts: a receiver gets an SGI that its host kept for itself",
        "src/trap/fault_handler/interrupts.rs",
        "sgi.into()).filter(|_| allowed) {",
        "sgi.into()).filter(|_| allowed || true) {",
    ),
    fault(
        "interrupts: the sender's own part of an SGI is left out",
        "src/trap/fault_handler/interrupts.rs",
        "    place.into_iter().for_each(|place| deliver(machine, ctxt, place));\n",
        "",
    ),
    fault(
        "interrupts: a vCPU that is kicked all the time keeps its CPU",
        "src/trap/fault_handler/interrupts.rs",
        " && !machine.interrupt_waits()",
        "",
    ),
    fault(
        "posted: a kick for each SGI",
        "src/vm/boot_ops/posted.rs",
        "if vcpu.posted & Vcpu::KICKED == 0 {",
        "if vcpu.posted != 0 {",
    ),
];
