//! Layers 13-17: who owns each page.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault(
        "mem_manager: host maps core pages",
        "src/memory/mem_manager.rs",
        "            if !state.host_may_access() {",
        "            if false && !state.host_may_access() {",
    ),
    fault(
        "mem_manager: block not checked",
        "src/memory/mem_manager.rs",
        "|| host_may_access_block(&pages, mem.regions(), block);",
        "|| true;",
    ),
    fault(
        "mem_manager: block may leave its region",
        "src/memory/mem_manager.rs",
        "(uniform && region.range.contains_range(block))",
        "uniform",
    ),
    fault(
        "mem_manager: assign without clear",
        "src/memory/mem_manager.rs",
        "    npt_ops::clear_pfn_host(mem.npts(), pfn);\n",
        "",
    ),
    fault(
        "mem_manager: assign without the state check",
        "src/memory/mem_manager.rs",
        "    expect_host_pages(mem, &pages, pfn, 1)?;\n",
        "",
    ),
    fault(
        "mem_manager: a lent page is given away",
        "src/memory/mem_manager.rs",
        "        Some((PageState::Lent(_), _)) => Err(Denied::InUse),\n",
        "        Some((PageState::Lent(_), run)) => Ok(run),\n",
    ),
    fault(
        "mem_manager: page 0 given away",
        "src/memory/mem_manager.rs",
        "    if pfn == Pfn::new(0) {\n        return (0, Err(Denied::PageZero)); // K §8.3 A15\n    }\n",
        "",
    ),
    fault("mem_manager: no scrub", "src/memory/mem_manager.rs", "    mem.machine().clear_phys_page(pfn);\n", ""),
    fault(
        "page_manager: Dma is host accessible",
        "src/memory/page_manager.rs",
        "Self::Host | Self::Lent(_) | Self::Shared { .. })",
        "Self::Host | Self::Lent(_) | Self::Shared { .. } | Self::Dma { .. })",
    ),
    fault(
        "page_manager: block counter not counted down",
        "src/memory/page_manager.rs",
        "(false, true) => *foreign -= 1,",
        "(false, true) => {}",
    ),
    fault(
        "page_manager: block counter counts every set",
        "src/memory/page_manager.rs",
        "(true, false) => *foreign += 1,",
        "(_, false) => *foreign += 1,",
    ),
    fault(
        "mem_region: end of region included",
        "src/memory/mem_region.rs",
        "filter(|region| region.range.contains(addr))",
        "filter(|region| region.range.contains(addr) || region.range.end() == addr)",
    ),
    fault(
        "page_index: slot off by one bank",
        "src/memory/page_index.rs",
        "let slot = first_slot + (pfn.raw()",
        "let slot = first_slot * 0 + (pfn.raw()",
    ),
    fault(
        "memory_ops: is_host_memory says yes to windows",
        "src/memory/memory_ops.rs",
        ".is_some_and(|state| state.host_may_access())",
        ".is_none_or(|state| state.host_may_access())",
    ),
    fault(
        "vm: donation without scrub",
        "src/memory/mem_manager/protected.rs",
        "            run(pfn, count).for_each(|page| mem.machine().clear_phys_page(page));\n",
        "",
    ),
    fault(
        "vm: donation leaves the host's page mapped",
        "src/memory/mem_manager/protected.rs",
        "Level::L3 => npt_ops::clear_run_host(mem.npts(), pfn, count),",
        "Level::L3 => {}",
    ),
    fault(
        "vm: donation of a block unmaps its first page",
        "src/memory/mem_manager/protected.rs",
        "npt_ops::clear_block_host(mem.npts(), pfn)",
        "npt_ops::clear_pfn_host(mem.npts(), pfn)",
    ),
    fault(
        "vm: instruction caches keep what the host left",
        "src/memory/mem_manager/protected.rs",
        "            mem.machine().sync_page_to_poc(bytes_of(pfn, 0));\n",
        "",
    ),
    fault(
        "vm: an image stays in the host's caches",
        "src/memory/mem_manager/protected.rs",
        "Scrub::Keep => mem.machine().sync_page_to_poc(bytes_of(pfn, count)),",
        "Scrub::Keep => {}",
    ),
    fault(
        "vm: what is lent stays in the host's caches",
        "src/memory/mem_manager/ordinary.rs",
        "    mem.machine().sync_page_to_poc(bytes_of(pfn, count)); // K §8.3 A21\n",
        "",
    ),
    fault(
        "vm: the last revoke leaves the host's mapping",
        "src/memory/mem_manager/protected.rs",
        "                npt_ops::clear_pfn_host(mem.npts(), pfn);\n",
        "",
    ),
    fault("vm: a revoke does not count", "src/memory/mem_manager/protected.rs", "count: count - 1 }", "count }"),
    fault(
        "vm: a second loan does not count",
        "src/memory/mem_manager.rs",
        "Ok((count.checked_add(1).ok_or(Denied::InUse)?, run)),",
        "Ok((count, run)),",
    ),
    fault(
        "vm: what is taken back is still counted",
        "src/memory/mem_manager/ordinary.rs",
        "    less_lent(mem, &mut records, Pfn::containing(leaf.address()), count);\n",
        "    let _ = &mut records;\n",
    ),
    fault(
        "vm: a misaligned block is donated",
        "src/memory/mem_manager/protected.rs",
        "    if !pfn.addr().is_aligned(level.size()) {",
        "    if false {",
    ),
    fault(
        "vm: the root goes back with its content",
        "src/memory/mem_manager/vm_table.rs",
        "        release(mem, &mut pages, root, 1 << shape.root_order());\n",
        "        give_to_host(mem, &mut pages, root, 1 << shape.root_order());\n",
    ),
    fault(
        "vm: reclaim without scrub",
        "src/memory/mem_manager/reclaim.rs",
        "            run(page, own).for_each(|page| mem.machine().clear_phys_page(page));\n",
        "",
    ),
    fault(
        "vm: reclaim forgets shared pages",
        "src/memory/mem_manager/reclaim.rs",
        "PageState::Private { vm: owner, .. } | PageState::Shared { vm: owner, .. }",
        "PageState::Private { vm: owner, .. }",
    ),
    fault(
        "vm: reclaim leaves lent pages lent",
        "src/memory/mem_manager/reclaim.rs",
        "            less_lent(mem, pages, page, others);\n",
        "            let _ = less_lent::<M>;\n",
    ),
    fault(
        "vm: a kind is as good as another",
        "src/memory/mem_manager.rs",
        "        (_, false) => Err(Denied::WrongKind),\n",
        "        (_, false) => Ok(()),\n",
    ),
    fault(
        "vm: memory is given while it is taken",
        "src/memory/mem_manager.rs",
        "        (false, _) => Err(Denied::Busy),\n",
        "",
    ),
    fault(
        "vm: read-only memory is writable",
        "src/memory/memory_ops.rs",
        "if read_only { Stage2Access::RamReadOnly }",
        "if read_only && pages == 0 { Stage2Access::RamReadOnly }",
    ),
    fault(
        "vm: an id is given out twice",
        "src/memory/mem_manager/vm_table.rs",
        "        return Err(Denied::InUse);\n",
        "        {}\n",
    ),
    fault(
        "vm: a table goes while its contexts are in use",
        "src/memory/mem_manager/vm_table.rs",
        " || table.pool_free < table.pool_all {",
        " {",
    ),
    fault(
        "vm: an adopted root stays when there is no room for the rest",
        "src/memory/mem_manager/vm_table.rs",
        "            run(pfn, n as u64).for_each(|adopted| mem.machine().release_page(adopted));\n",
        "            let _ = n;\n",
    ),
];
