//! Layer 21, one part: snapshots.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault("seal: one nonce for all of a snapshot", "src/vm/seal.rs", "    snapshot.sequence += 1;\n", ""),
    fault(
        "seal: the place is not under the seal",
        "src/vm/seal.rs",
        "bytes_of([self.kind, self.place, self.sequence, self.snapshot])",
        "bytes_of([self.kind, 0, self.sequence, self.snapshot])",
    ),
    fault(
        "seal: parts of two snapshots become one VM",
        "src/vm/seal.rs",
        "\n        && (expected == 0 || head.snapshot == expected);",
        ";\n    let _ = expected;",
    ),
    fault(
        "seal: a VM that was never verified is saved",
        "src/vm/seal.rs",
        "    if !vm.resumable {",
        "    if vm.state == VmState::Unused {",
    ),
    fault(
        "seal: a VM is saved while a vCPU runs",
        "src/vm/seal.rs",
        "if vm.active != 0 { Err(CallError::Busy) } else { Ok(()) }",
        "Ok(())",
    ),
    fault(
        "seal: a page goes out twice",
        "src/vm/seal.rs",
        "    if gfn < vm.snapshot.next || out == tag {",
        "    if out == tag {",
    ),
    fault(
        "seal: what was changed outside comes in all the same",
        "src/vm/seal.rs",
        "    opened.map_err(|_| CallError::NotAuthentic)\n",
        "    let _ = opened;\n    Ok(())\n",
    ),
    fault(
        "seal: a VM comes back without some of its pages",
        "src/vm/seal.rs",
        "        && vm.snapshot.pages == word(0)\n",
        "",
    ),
    fault(
        "seal: a shared page comes back private",
        "src/vm/seal.rs",
        "    if head.kind == Kind::SharedPage as u64 {",
        "    if head.kind == 0 {",
    ),
    fault(
        "seal: a page that comes back stays in caches",
        "src/vm/seal.rs",
        "        vms.machine().sync_page_to_poc(range);\n",
        "        let _ = range;\n",
    ),
    fault(
        "seal: a VM of which a part was reclaimed is saved",
        "src/vm/seal.rs",
        "if !memory_ops::has_memory(vms.memory(), id) {",
        "if false {",
    ),
    fault(
        "seal: what goes out is what the caches hold",
        "src/vm/seal.rs",
        "            machine.sync_page_to_poc(PhysRange::of_pages(pfn, 1));\n",
        "            let _ = machine;\n",
    ),
    fault("vm_power: a VM that switched itself off is saved", "src/vm/vm_power.rs", "    vm.resumable = false;\n", ""),
    fault(
        "seal: a head is read again once it was checked",
        "src/vm/seal.rs",
        "    memory_ops::assign_pfn_to_vm(vms.memory(), id, gfn, data, Scrub::Keep)?;\n",
        "    let head = vms.with_host_page(tag, |_| read_head(vms, tag))?;\n    memory_ops::assign_pfn_to_vm(vms.memory(), id, gfn, data, Scrub::Keep)?;\n",
    ),
];
