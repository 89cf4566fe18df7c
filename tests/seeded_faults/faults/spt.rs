//! Layers 9-12: what devices reach.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault(
        "spt: no SMMU forgets what devices lose",
        "src/spt/mmio_spt_ops.rs",
        "    machine.smmu_flush(pfn.identity().addr(), count);\n",
        "",
    ),
    fault(
        "spt: SMMUs forget the first page only",
        "src/spt/mmio_spt_ops.rs",
        "    machine.smmu_flush(pfn.identity().addr(), count);\n",
        "    machine.smmu_flush(pfn.identity().addr(), 1);\n",
    ),
    fault(
        "spt: SMMUs forget before the entries go",
        "src/spt/mmio_spt_ops.rs",
        "    for part in parts(pfn, count) {\n        clear_smmu_pt(machine, &spt, part);\n    }\n    machine.smmu_flush(pfn.identity().addr(), count);\n",
        "    machine.smmu_flush(pfn.identity().addr(), count);\n    for part in parts(pfn, count) {\n        clear_smmu_pt(machine, &spt, part);\n    }\n    machine.publish_to_smmus();\n",
    ),
    fault(
        "spt: a table that a block replaced is remembered",
        "src/spt/mmio_spt_ops.rs",
        "            machine.smmu_flush(part.first_ipa(), 1);\n",
        "",
    ),
    fault(
        "spt: what devices gain is not published",
        "src/spt/mmio_spt_ops.rs",
        "        }\n    }\n    machine.publish_to_smmus();\n}\n",
        "        }\n    }\n}\n",
    ),
    fault(
        "spt: the first page stays",
        "src/spt/mmio_spt_walk.rs",
        "    for page in part.addresses() {\n        set_smmu_pte(machine, pte, Ia::new(page.raw()), Desc::INVALID);\n",
        "    for page in part.addresses().skip(1) {\n        set_smmu_pte(machine, pte, Ia::new(page.raw()), Desc::INVALID);\n",
    ),
    fault(
        "spt: a block that goes leaves its table",
        "src/spt/mmio_spt_walk.rs",
        "        return set_smmu_pmd(machine, pmd, part.at(), Desc::INVALID);\n",
        "        return set_smmu_pmd(machine, pmd, part.at(), Desc::table(pte));\n",
    ),
    fault(
        "spt: a split block loses the rest",
        "src/spt/mmio_spt_walk.rs",
        "        fill(machine, pte, part.at(), block);\n",
        "        fill(machine, pte, part.at(), Desc::INVALID);\n",
    ),
    fault(
        "spt: a table comes back with what it held",
        "src/spt/mmio_spt_walk.rs",
        "        Kind::Invalid => fill(machine, pte, part.at(), Desc::INVALID),\n",
        "        Kind::Invalid => {}\n",
    ),
    fault(
        "spt: blocks where an SMMU does not allow them",
        "src/spt/mmio_spt_walk.rs",
        "    if part.is_block() && spt.largest < Level::L3 {",
        "    if part.is_block() {",
    ),
    fault(
        "spt: an address beyond the table is looked up in it",
        "src/spt/mmio_pt_walk.rs",
        "    if at.raw() >> spt.shape.ia_bits() != 0 {",
        "    if false {",
    ),
    fault(
        "spt: too few pages for the tables",
        "src/spt/mmio_pt_alloc.rs",
        "level1 + 2 * parts(range, BLOCK_1G) + parts(range, BLOCK_2M)",
        "level1 + parts(range, BLOCK_1G) + parts(range, BLOCK_2M)",
    ),
    fault(
        "mem_manager: devices keep what the host loses",
        "src/memory/mem_manager.rs",
        "        mmio_spt_ops::unmap_spt(mem.machine(), spt, pfn, count);\n",
        "        let _ = spt;\n",
    ),
    fault(
        "mem_manager: devices do not get back what the host gets",
        "src/memory/mem_manager.rs",
        "    } else {\n        show_to_devices(mem, pfn, count);\n    }\n",
        "    }\n",
    ),
    fault(
        "mem_manager: what a VM shows stays out of devices' reach",
        "src/memory/mem_manager/protected.rs",
        "    if count == 1 {\n        show_to_devices(mem, pfn, 1);\n    }\n",
        "",
    ),
    fault(
        "mem_manager: pages that the core could not adopt are lost for devices",
        "src/memory/mem_manager/vm_table.rs",
        "            show_to_devices(mem, pfn, count);\n",
        "",
    ),
    fault(
        "stream table: half of the streams have no entry",
        "src/abstract_machine/stream_table.rs",
        "entries.raw() | (SPLIT + 1) as u64",
        "entries.raw() | SPLIT as u64",
    ),
    fault(
        "oracle: what devices reach is not looked at",
        "src/memory/oracle.rs",
        "reached.is_some_and(|reached| reached != state.host_may_access())",
        "false && reached.is_some_and(|reached| reached != state.host_may_access())",
    ),
    fault(
        "spt: an entry leads to a table that SMMUs do not see yet",
        "src/spt/mmio_spt_walk.rs",
        "    machine.publish_to_smmus();\n    set_smmu_pmd(machine, pmd, at, Desc::table(pte));\n",
        "    set_smmu_pmd(machine, pmd, at, Desc::table(pte));\n",
    ),
    fault(
        "spt: what devices gain is published to CPUs only",
        "src/spt/mmio_spt_ops.rs",
        "        }\n    }\n    machine.publish_to_smmus();\n}\n",
        "        }\n    }\n    machine.publish_tables();\n}\n",
    ),
];
