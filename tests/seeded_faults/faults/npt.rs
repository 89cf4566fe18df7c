//! Layers 5-8: stage-2 tables.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault(
        "npt_walk: a run goes on over what is mapped",
        "src/npt/npt_walk.rs",
        "most, |desc| !desc.is_valid())",
        "most, |_| true)",
    ),
    fault(
        "npt_ops: all pages of a run are the first one's memory",
        "src/npt/pt_walk.rs",
        "machine.pt_store_runs(slot, count, level.size(), runs",
        "machine.pt_store_runs(slot, count, level.size() * 0, runs",
    ),
    fault(
        "pt_walk: of runs that are mapped together each is the first one's memory",
        "src/npt/pt_walk.rs",
        "runs.map(|(leaf, leaves)| (leaf.raw(), leaves)));",
        "core::iter::once((runs.map(|(leaf, _)| leaf.raw()).next().unwrap_or(0), count)));",
    ),
    fault(
        "npt_ops: the host keeps all pages of a run but the first",
        "src/npt/npt_walk.rs",
        "            pt_walk::clear_slots(machine, slot, pages);\n",
        "            pt_walk::clear_slots(machine, slot, pages.min(1));\n",
    ),
    fault(
        "npt_ops: the host keeps what of a run stands in the next table",
        "src/npt/npt_ops.rs",
        "pfn.checked_add(done).filter(|_| done < count) {\n        let (was_there",
        "pfn.checked_add(done).filter(|_| done < 1) {\n        let (was_there",
    ),
    fault(
        "npt_walk: a leaf may be overwritten",
        "src/npt/npt_walk.rs",
        "        Walk::Mapped(..) => return Err(SetNptError::Occupied),\n",
        "        Walk::Mapped(..) => {}\n",
    ),
    fault(
        "npt_walk: block over table allowed",
        "src/npt/npt_walk.rs",
        "        Walk::Hole(largest) if level < largest => return Err(SetNptError::Occupied),\n",
        "",
    ),
    fault("npt_walk: no alignment check", "src/npt/npt_walk.rs", "if !ia.is_aligned(level.size()) {", "if false {"),
    fault(
        "npt_walk: no range check in walk",
        "src/npt/npt_walk.rs",
        "    ia.raw() >> npt.shape().ia_bits() == 0\n",
        "    let _ = (npt, ia); true\n",
    ),
    fault(
        "npt_walk: split without break",
        "src/npt/npt_walk.rs",
        "    set_leaf(machine, level, slot_table, ia, Desc::INVALID);\n    Ok(Some(Split",
        "    Ok(Some(Split",
    ),
    fault(
        "npt_walk: split loses the last leaf",
        "src/npt/npt_walk.rs",
        "        offset += smaller.size();\n    }\n    set_leaf",
        "        offset += smaller.size();\n    }\n    set_leaf(machine, smaller, new_table, Ia::new(level.size() - smaller.size()), Desc::INVALID);\n    set_leaf",
    ),
    fault(
        "npt_ops: clear without flush",
        "src/npt/npt_ops.rs",
        "        machine.tlb_flush_run(VmId::HOST, npt.stage2(), pfn.identity().addr(), count);\n",
        "",
    ),
    fault(
        "npt_ops: flush before clear",
        "src/npt/npt_ops.rs",
        "    while let Some(page) = pfn.checked_add(done).filter(|_| done < count) {\n        let (was_there, pages) = clear_host(machine, &mut npt, page.identity().addr(), count - done);\n        cleared |= was_there;\n        done += pages;\n    }\n    if cleared {\n        machine.tlb_flush_run(VmId::HOST, npt.stage2(), pfn.identity().addr(), count);\n    }\n",
        "    machine.tlb_flush_run(VmId::HOST, npt.stage2(), pfn.identity().addr(), count);\n    while let Some(page) = pfn.checked_add(done).filter(|_| done < count) {\n        let (was_there, pages) = clear_host(machine, &mut npt, page.identity().addr(), count - done);\n        cleared |= was_there;\n        done += pages;\n    }\n    let _ = cleared;\n",
    ),
    fault(
        "npt_ops: of a run the first page is flushed",
        "src/npt/npt_ops.rs",
        "machine.tlb_flush_run(VmId::HOST, npt.stage2(), pfn.identity().addr(), count);",
        "machine.tlb_flush_run(VmId::HOST, npt.stage2(), pfn.identity().addr(), 1);",
    ),
    fault(
        "npt_ops: split without flush",
        "src/npt/npt_ops.rs",
        "    machine.tlb_flush_ipa(VmId::HOST, npt.stage2(), ipa);\n    npt_walk::finish_split",
        "    npt_walk::finish_split",
    ),
    fault(
        "npt_ops: map without publish",
        "src/npt/npt_ops.rs",
        "            machine.publish_tables();\n            return table.map(|_| ());",
        "            return table.map(|_| ());",
    ),
    fault(
        "npt_ops: merge flushes one address",
        "src/npt/npt_ops.rs",
        "    machine.tlb_flush_vm(VmId::HOST, npt.stage2());\n    npt_walk::free_unlinked",
        "    machine.tlb_flush_ipa(VmId::HOST, npt.stage2(), pfn.identity().addr());\n    npt_walk::free_unlinked",
    ),
    fault(
        "npt_ops: forget without flush",
        "src/npt/npt_ops.rs",
        "    machine.tlb_flush_vm(VmId::HOST, npt.stage2());\n    npt_walk::free_parked",
        "    npt_walk::free_parked",
    ),
    fault(
        "npt_walk: free_tree forgets the tables below",
        "src/npt/npt_walk.rs",
        "                free_tree(machine, npt, next, smaller);\n",
        "                let _ = (next, smaller);\n",
    ),
    fault(
        "pt_walk: link before zeroes are published",
        "src/npt/pt_walk.rs",
        "    machine.publish_tables();\n    machine.pt_store(slot, table.raw());",
        "    machine.pt_store(slot, table.raw());",
    ),
    fault(
        "descriptor: window executable",
        "src/npt/descriptor.rs",
        "STAGE2::SH::Inner + STAGE2::XN::Never",
        "STAGE2::SH::Inner + STAGE2::XN::Execute",
    ),
    fault(
        "descriptor: no access flag",
        "src/npt/descriptor.rs",
        "(attributes + STAGE2::AF::SET).value)",
        "attributes.value)",
    ),
    fault(
        "shape: concatenated root one page short",
        "src/abstract_machine/shape.rs",
        "{ self.ia_bits - 39 }",
        "{ self.ia_bits - 40 }",
    ),
    fault(
        "vm: mapped over what is mapped",
        "src/npt/npt_ops/vm.rs",
        "        let table = prepared?;\n",
        "        let table = match prepared { Err(SetNptError::Occupied) => return Ok(Prepared { table: Pa::new(0), leaves: 1 }), other => other? };\n",
    ),
    fault(
        "vm: cut without flush",
        "src/npt/npt_ops/vm.rs",
        "            machine.tlb_flush_vm(vm, table.npt.stage2());\n",
        "",
    ),
    fault(
        "vm: flush before cut",
        "src/npt/npt_ops/vm.rs",
        "            npt_walk::park_all(machine, &mut table.npt);\n            machine.tlb_flush_vm(vm, table.npt.stage2());\n",
        "            machine.tlb_flush_vm(vm, table.npt.stage2());\n            npt_walk::park_all(machine, &mut table.npt);\n",
    ),
    fault(
        "vm: unmapped without flush",
        "src/npt/npt_ops/vm.rs",
        "            machine.tlb_flush_ipa(vm, table.npt.stage2(), ipa);\n        }\n    });\n",
        "            let _ = (vm, ipa);\n        }\n    });\n",
    ),
    fault(
        "vm: split without flush",
        "src/npt/npt_ops/vm.rs",
        "            machine.tlb_flush_ipa(vm, table.npt.stage2(), ipa);\n            npt_walk::finish_split",
        "            npt_walk::finish_split",
    ),
    fault(
        "vm: a page does not return to its pool",
        "src/npt/page_pool.rs",
        "    machine.clear_phys_page(page);\n    push(machine, pool, page.addr());\n",
        "    machine.clear_phys_page(page);\n    let _ = pool;\n",
    ),
    fault(
        "vm: a page returns to its pool with its content",
        "src/npt/page_pool.rs",
        "    machine.clear_phys_page(page);\n",
        "",
    ),
    fault("vm: the list's link stays in a page", "src/npt/page_pool.rs", "    machine.pt_store(page, 0);\n", ""),
    fault(
        "vm: an empty table is not given back",
        "src/npt/npt_walk.rs",
        "                    pt_alloc::free_table_page(machine, npt, table);\n                    return (at, Apart::Table);",
        "                    return (at, Apart::Table);",
    ),
    fault(
        "vm: a root's zeroes are not published",
        "src/npt/npt_ops/vm.rs",
        "root_of_vm(vm, kind, shape, root));\n        npts.machine().publish_tables();\n",
        "root_of_vm(vm, kind, shape, root));\n",
    ),
];
