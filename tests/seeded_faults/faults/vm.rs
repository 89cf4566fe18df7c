//! Layers 18-21: the life of VMs.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault(
        "vm_memory: a program counter that was set is moved on",
        "src/vm/vm_memory.rs",
        "dirty & !DIRTY_PC",
        "dirty | DIRTY_PC & 0",
    ),
    fault(
        "vm_memory: memory where a protected VM has its devices",
        "src/vm/vm_memory.rs",
        "read_only || !are_vm_memory(gfn, pages)",
        "read_only || !are_vm_memory(gfn, pages) && pages == 0",
    ),
    fault(
        "vm_memory: only the first page of a range is looked at",
        "src/vm/vm_memory.rs",
        "last.is_some_and(|last| is_vm_memory(last.addr()))",
        "last.is_some()",
    ),
    fault(
        "vm_power: a VM whose tables go may be reclaimed once more",
        "src/vm/vm_power.rs",
        "    if vm.state != VmState::Dying {",
        "    if vm.state != VmState::Unused {",
    ),
    fault(
        "boot_core: a snapshot number is given twice",
        "src/vm/boot_core.rs",
        "ids.snapshots += 1;",
        "ids.snapshots |= 1;",
    ),
    fault("boot_core: an id that is given out stays free", "src/vm/boot_core.rs", "    ids.vms |= 1 << lowest;\n", ""),
    fault(
        "boot_ops: a vCPU is registered twice",
        "src/vm/boot_ops.rs",
        "    if place.state != VcpuState::Unused {",
        "    if place.state == VcpuState::Active {",
    ),
    fault(
        "boot_ops: a mailbox is not held",
        "src/vm/boot_ops.rs",
        "    memory_ops::hold_mailbox(vms.memory(), mailbox)?;\n",
        "",
    ),
    fault(
        "boot_ops: a mailbox stays held when the pool is empty",
        "src/vm/boot_ops.rs",
        ".inspect_err(|_| vms.let_go(mailbox))?",
        "?",
    ),
    fault(
        "boot_ops: one image may lie over another",
        "src/vm/boot_ops.rs",
        ".any(|other| other.overlaps(&image))",
        ".any(|other| other.gfn == image.gfn && other.size == 0)",
    ),
    fault(
        "vm: images may have one page in common",
        "src/vm/mod.rs",
        "self.gfn.raw() < other.gfn.raw() + other.pages() &&",
        "self.gfn.raw() + 1 < other.gfn.raw() + other.pages() &&",
    ),
    fault(
        "boot_ops: what was checked counts when there is one image more",
        "src/vm/boot_ops.rs",
        "    vm.check = None;\n    Ok(index as u64)",
        "    Ok(index as u64)",
    )
    .survives(
        "Equivalent. The check goes on with a digest for an image that the manifest does not have, which is all zero, and so fails as it does when it \
         begins anew.",
    ),
    fault(
        "boot_ops: a manifest is not asked for its signature",
        "src/vm/boot_ops.rs",
        "        authenticate::check_manifest(&manifest, vm.images(), vms.keys())?;\n",
        "",
    ),
    fault(
        "boot_ops: a check goes on with another manifest",
        "src/vm/boot_ops.rs",
        "is_none_or(|check| check.identity != identity)",
        "is_none()",
    ),
    fault(
        "boot_ops: the clock of a protected VM is turned while it runs",
        "src/vm/boot_ops.rs",
        "VmKind::Protected => &[VmState::Ready],",
        "VmKind::Protected => &[VmState::Ready, VmState::Verified],",
    ),
    fault(
        "boot_ops: two CPUs run one vCPU",
        "src/vm/boot_ops.rs",
        "    if place.state != VcpuState::Ready {\n        return",
        "    if place.state == VcpuState::Unused {\n        return",
    ),
    fault(
        "boot_ops: the host starts any vCPU of a protected VM",
        "src/vm/boot_ops.rs",
        "if vcpu.index() == 0 =>",
        "if vcpu.index() < 16 =>",
    ),
    fault(
        "boot_ops: a vCPU that moved to another CPU meets that CPU's TLB",
        "src/vm/boot_ops.rs",
        "let flush = place.last_cpu != here;",
        "let flush = place.last_cpu.is_none();",
    ),
    fault(
        "boot_ops: a vCPU meets what another one left in the TLB",
        "src/vm/boot_ops.rs",
        ".for_each(|other| other.last_cpu = None);",
        ".for_each(|_| {});",
    ),
    fault(
        "boot_ops: of two vCPUs that run one is counted",
        "src/vm/boot_ops.rs",
        "    vm.active += 1;\n",
        "    vm.active = 1;\n",
    ),
    fault(
        "boot_ops: CPU_ON of a vCPU that switches itself off",
        "src/vm/boot_ops.rs",
        "            (Power::On, _) | (_, VcpuState::Active) => return Err(PsciResult::AlreadyOn),\n            (Power::Never | Power::Off, _) => {}",
        "            (Power::On, _) => return Err(PsciResult::AlreadyOn),\n            (Power::Never | Power::Off, _) => {}",
    ),
    fault(
        "boot_ops: a VM goes while a vCPU runs",
        "src/vm/boot_ops.rs",
        "    if vm.active != 0 || memory_ops::vm_pages",
        "    if memory_ops::vm_pages",
    ),
    fault("boot_ops: a mailbox stays held for ever", "src/vm/boot_ops.rs", "        vms.let_go(vcpu.mailbox);\n", ""),
    fault(
        "vm_memory: memory is reclaimed while a vCPU runs",
        "src/vm/vm_memory.rs",
        "    if vm.active != 0 {\n        return Err(CallError::Busy);\n    }\n    Ok(memory_ops::clear",
        "    Ok(memory_ops::clear",
    ),
    fault(
        "vm_memory: the host sets a processor state of EL2",
        "src/vm/vm_memory.rs",
        "[EL0T, EL1T, EL1H].contains(&(value & 0xf))",
        "[EL0T, EL1T, EL1H, 9].contains(&(value & 0xf))",
    ),
    fault(
        "vm_memory: the host reads a protected VM's registers",
        "src/vm/vm_memory.rs",
        "    vm.of_kind(VmKind::Ordinary)?;\n    let vcpu",
        "    let vcpu",
    ),
    fault(
        "vm_memory: any window of devices is a VM's",
        "src/vm/vm_memory.rs",
        "!allowed.is_some_and(|gicv| gicv.contains_range(window))",
        "allowed.is_none()",
    ),
    fault(
        "mmio_guard: a VM that named its devices shows every access",
        "src/vm/mmio_guard.rs",
        "        !self.enrolled || self.runs",
        "        true || self.runs",
    ),
    fault(
        "authenticate: an image may be shorter or longer than signed",
        "src/vm/authenticate.rs",
        " && self.word(at + 8) == image.size",
        "",
    ),
    fault(
        "authenticate: a VM may start outside its images",
        "src/vm/authenticate.rs",
        " && manifest.enters(images);",
        ";",
    ),
    fault(
        "authenticate: anybody's key counts",
        "src/vm/authenticate.rs",
        "    keys.contains(&key) && is_good",
        "    is_good",
    ),
    fault("authenticate: a signature is not looked at", "src/vm/authenticate.rs", " && is_good(&state)", ""),
    fault(
        "boot_aux: the host's bytes stay behind an image's last one",
        "src/vm/boot_aux.rs",
        "        && used != 0\n",
        "        && used == 0\n",
    ),
    fault(
        "boot_aux: an image takes pages behind its last one",
        "src/vm/boot_aux.rs",
        "pages.min(missing), Scrub::Keep)?;",
        "pages.max(missing), Scrub::Keep)?;",
    ),
    fault(
        "boot_aux: what is zeroed behind an image stays in caches",
        "src/vm/boot_aux.rs",
        "        machine.sync_page_to_poc(range);\n",
        "        let _ = range;\n",
    ),
    fault(
        "boot_aux: a digest is not compared",
        "src/vm/boot_aux.rs",
        "if digest != manifest.digest(check.image) {",
        "if digest == [0; 32] {",
    ),
    fault(
        "boot_aux: one page is digested in place of all",
        "src/vm/boot_aux.rs",
        "image.gfn.checked_add(check.page)",
        "image.gfn.checked_add(0)",
    ),
    fault(
        "boot_aux: a digest goes on into the next image's",
        "src/vm/boot_aux.rs",
        "mem::replace(&mut check.digest, Sha256::NEW).finish()",
        "check.digest.clone().finish()",
    ),
    fault(
        "sha256: the length behind a message is in bytes",
        "src/abstract_machine/sha256.rs",
        "*length = (self.pages * PAGE_SIZE * 8).to_be_bytes();",
        "*length = (self.pages * PAGE_SIZE).to_be_bytes();",
    ),
    fault(
        "sha256: a page counts, and all but its last block is digested",
        "src/abstract_machine/sha256.rs",
        "(0..PAGE_BLOCKS).map(",
        "(0..PAGE_BLOCKS - 1).map(",
    ),
    fault(
        "sha256: the round constants are those of square roots",
        "src/abstract_machine/sha256.rs",
        "[u32; 64] = fractions(3);",
        "[u32; 64] = fractions(2);",
    ),
    fault(
        "vm_memory: a window where a protected VM has its memory",
        "src/vm/vm_memory.rs",
        "&& !are_devices(gfn, pages) {",
        "&& !are_devices(gfn, pages) && pages == 0 {",
    ),
    fault(
        "protected: what a VM overwrote shows around the caches",
        "src/memory/mem_manager/protected.rs",
        "nothing that it overwrote.\n        mem.machine().sync_page_to_poc(PhysRange::of_pages(pfn, 1));\n",
        "nothing that it overwrote.\n",
    ),
    fault(
        "reclaim: the host executes what a VM left in instruction caches",
        "src/memory/mem_manager/reclaim.rs",
        "        mem.machine().forget_instructions();\n",
        "",
    ),
    fault(
        "memory_ops: pools and contexts outlive the machine's end",
        "src/memory/memory_ops.rs",
        "scrub_foreign(mem, &pages, own, |state| state == PageState::Core)",
        "scrub_foreign(mem, &pages, own, |state| state != PageState::Core)",
    ),
    fault(
        "boot_ops: a manifest is read again once it was checked",
        "src/vm/boot_ops.rs",
        "    match hash_images(vms, id, vm, &manifest) {",
        "    read_manifest(vms, page, &mut manifest)?;\n    match hash_images(vms, id, vm, &manifest) {",
    ),
];
