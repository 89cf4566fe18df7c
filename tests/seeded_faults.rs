//! The kill table of the layers: each fault is planted in a copy of the sources, and some test must notice it.
//!
//! The quick test only checks that each fault can still be planted. The long one plants them, one after the other, in
//! `target/seeded_faults`: `cargo test --test seeded_faults -- --ignored --nocapture`; about 15 minutes on two cores.
//! It prints which tests noticed which fault.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

/// A change of the sources that breaks what a layer promises.
struct Fault {
    /// Layer, and what it does wrong.
    name: &'static str,
    file: &'static str,
    /// Stands in the file exactly once.
    from: &'static str,
    to: &'static str,
}

/// Those that take a second, and those that are asked if nobody has noticed yet.
const TESTS: [&[&str]; 2] = [
    &["tables", "pages", "vm_pages", "traps", "noninterference", "small_world", "locks_explored", "concurrency"],
    &["lib", "lifecycle", "vcpus", "authentic_boot", "small_vm_world", "kill_table", "refinement"],
];

const FAULTS: &[Fault] = &[
    Fault {
        name: "npt_walk: a leaf may be overwritten",
        file: "src/npt/npt_walk.rs",
        from: "        Walk::Mapped(..) => return Err(SetNptError::Occupied),\n",
        to: "        Walk::Mapped(..) => {}\n",
    },
    Fault {
        name: "npt_walk: block over table allowed",
        file: "src/npt/npt_walk.rs",
        from: "        Walk::Hole(largest) if level < largest => return Err(SetNptError::Occupied),\n",
        to: "",
    },
    Fault {
        name: "npt_walk: no alignment check",
        file: "src/npt/npt_walk.rs",
        from: "if !ia.is_aligned(level.size()) {",
        to: "if false {",
    },
    Fault {
        name: "npt_walk: no range check in walk",
        file: "src/npt/npt_walk.rs",
        from: "    ia.raw() >> npt.shape().ia_bits() == 0\n",
        to: "    let _ = (npt, ia); true\n",
    },
    Fault {
        name: "npt_walk: split without break",
        file: "src/npt/npt_walk.rs",
        from: "    set_leaf(machine, level, slot_table, ia, Desc::INVALID);\n    Ok(Some(Split",
        to: "    Ok(Some(Split",
    },
    Fault {
        name: "npt_walk: split loses the last leaf",
        file: "src/npt/npt_walk.rs",
        from: "        offset += smaller.size();\n    }\n    set_leaf",
        to: "        offset += smaller.size();\n    }\n    set_leaf(machine, smaller, new_table, Ia::new(level.size() - smaller.size()), Desc::INVALID);\n    set_leaf",
    },
    Fault {
        name: "npt_ops: clear without flush",
        file: "src/npt/npt_ops.rs",
        from: "    if npt_walk::clear_npt(machine, &mut npt, ipa.into()).is_some() {\n        machine.tlb_flush_ipa(VmId::HOST, root, ipa);\n    }",
        to: "    let _ = npt_walk::clear_npt(machine, &mut npt, ipa.into());",
    },
    Fault {
        name: "npt_ops: flush before clear",
        file: "src/npt/npt_ops.rs",
        from: "    if npt_walk::clear_npt(machine, &mut npt, ipa.into()).is_some() {\n        machine.tlb_flush_ipa(VmId::HOST, root, ipa);\n    }",
        to: "    machine.tlb_flush_ipa(VmId::HOST, root, ipa);\n    let _ = npt_walk::clear_npt(machine, &mut npt, ipa.into());",
    },
    Fault {
        name: "npt_ops: split without flush",
        file: "src/npt/npt_ops.rs",
        from: "    machine.tlb_flush_ipa(VmId::HOST, npt.vttbr(), ipa);\n    npt_walk::finish_split",
        to: "    npt_walk::finish_split",
    },
    Fault {
        name: "npt_ops: map without publish",
        file: "src/npt/npt_ops.rs",
        from: "            let set = npt_walk::set_npt(machine, &mut npt, ia, level, leaf);\n            machine.publish_tables();",
        to: "            let set = npt_walk::set_npt(machine, &mut npt, ia, level, leaf);",
    },
    Fault {
        name: "npt_ops: merge flushes one address",
        file: "src/npt/npt_ops.rs",
        from: "    machine.tlb_flush_vm(VmId::HOST, npt.vttbr());\n    npt_walk::free_unlinked",
        to: "    machine.tlb_flush_ipa(VmId::HOST, npt.vttbr(), pfn.identity().addr());\n    npt_walk::free_unlinked",
    },
    Fault {
        name: "npt_ops: forget without flush",
        file: "src/npt/npt_ops.rs",
        from: "    machine.tlb_flush_vm(VmId::HOST, npt.vttbr());\n    npt_walk::free_parked",
        to: "    npt_walk::free_parked",
    },
    Fault {
        name: "npt_walk: free_tree forgets the tables below",
        file: "src/npt/npt_walk.rs",
        from: "                free_tree(machine, npt, next, smaller);\n",
        to: "                let _ = (next, smaller);\n",
    },
    Fault {
        name: "pt_walk: link before zeroes are published",
        file: "src/npt/pt_walk.rs",
        from: "    machine.publish_tables();\n    machine.pt_store(slot, table.raw());",
        to: "    machine.pt_store(slot, table.raw());",
    },
    Fault {
        name: "descriptor: window executable",
        file: "src/npt/descriptor.rs",
        from: "STAGE2::SH::Inner + STAGE2::XN::Never",
        to: "STAGE2::SH::Inner + STAGE2::XN::Execute",
    },
    Fault {
        name: "descriptor: no access flag",
        file: "src/npt/descriptor.rs",
        from: "(attributes + STAGE2::AF::SET).value)",
        to: "attributes.value)",
    },
    Fault {
        name: "shape: concatenated root one page short",
        file: "src/abstract_machine/shape.rs",
        from: "{ self.ia_bits - 39 }",
        to: "{ self.ia_bits - 40 }",
    },
    Fault {
        name: "mem_manager: host maps core pages",
        file: "src/memory/mem_manager.rs",
        from: "            if !state.host_may_access() {",
        to: "            if false && !state.host_may_access() {",
    },
    Fault {
        name: "mem_manager: block not checked",
        file: "src/memory/mem_manager.rs",
        from: "|| host_may_access_block(&pages, mem.regions(), block);",
        to: "|| true;",
    },
    Fault {
        name: "mem_manager: block may leave its region",
        file: "src/memory/mem_manager.rs",
        from: "(uniform && region.range.contains_range(block))",
        to: "uniform",
    },
    Fault {
        name: "mem_manager: assign without clear",
        file: "src/memory/mem_manager.rs",
        from: "    npt_ops::clear_pfn_host(mem.npts(), pfn);\n",
        to: "",
    },
    Fault {
        name: "mem_manager: assign without the state check",
        file: "src/memory/mem_manager.rs",
        from: "    expect_host_pages(mem, &pages, pfn, 1)?;\n",
        to: "",
    },
    Fault {
        name: "mem_manager: a lent page is given away",
        file: "src/memory/mem_manager.rs",
        from: "        Some(PageState::Lent(_)) => Err(Denied::InUse),\n        _ => expect_state",
        to: "        Some(PageState::Lent(_)) => Ok(()),\n        _ => expect_state",
    },
    Fault {
        name: "vm_memory: a program counter that was set is moved on",
        file: "src/vm/vm_memory.rs",
        from: "dirty & !DIRTY_PC",
        to: "dirty | DIRTY_PC & 0",
    },
    Fault {
        name: "vcpu_ops: the mailbox is read a second time",
        file: "src/vcpu/vcpu_ops.rs",
        from: "        *lr = list_register(vgic.version, page.read(word!(lr) + n))?;\n",
        to: "        list_register(vgic.version, page.read(word!(lr) + n))?;\n        *lr = page.read(word!(lr) + n);\n",
    },
    Fault {
        name: "mem_manager: page 0 given away",
        file: "src/memory/mem_manager.rs",
        from: "    if pfn == Pfn::new(0) {\n        return Err(Denied::PageZero); // K §8.3 A15\n    }\n    pfn.checked_add",
        to: "    pfn.checked_add",
    },
    Fault {
        name: "mem_manager: no scrub",
        file: "src/memory/mem_manager.rs",
        from: "    mem.machine().clear_phys_page(pfn);\n",
        to: "",
    },
    Fault {
        name: "page_manager: Dma is host accessible",
        file: "src/memory/page_manager.rs",
        from: "Self::Host | Self::Lent(_) | Self::Shared { .. })",
        to: "Self::Host | Self::Lent(_) | Self::Shared { .. } | Self::Dma { .. })",
    },
    Fault {
        name: "page_manager: block counter not counted down",
        file: "src/memory/page_manager.rs",
        from: "(false, true) => *foreign -= 1,",
        to: "(false, true) => {}",
    },
    Fault {
        name: "page_manager: block counter counts every set",
        file: "src/memory/page_manager.rs",
        from: "(true, false) => *foreign += 1,",
        to: "(_, false) => *foreign += 1,",
    },
    Fault {
        name: "mem_region: end of region included",
        file: "src/memory/mem_region.rs",
        from: "filter(|region| region.range.contains(addr))",
        to: "filter(|region| region.range.contains(addr) || region.range.end() == addr)",
    },
    Fault {
        name: "page_index: slot off by one bank",
        file: "src/memory/page_index.rs",
        from: "let slot = first_slot + (pfn.raw()",
        to: "let slot = first_slot * 0 + (pfn.raw()",
    },
    Fault {
        name: "memory_ops: is_host_memory says yes to windows",
        file: "src/memory/memory_ops.rs",
        from: ".is_some_and(|state| state.host_may_access())",
        to: ".is_none_or(|state| state.host_may_access())",
    },
    Fault {
        name: "fault: permission fault maps again",
        file: "src/trap/fault_handler.rs",
        from: "FaultKind::Translation | FaultKind::AccessFlag => {",
        to: "FaultKind::Translation | FaultKind::AccessFlag | FaultKind::Permission => {",
    },
    Fault {
        name: "fault: FAR not given",
        file: "src/vcpu/vcpu_ops_aux.rs",
        from: "    el1.write(El1Reg::Far, va);\n",
        to: "",
    },
    Fault {
        name: "fault: WnR lost",
        file: "src/vcpu/vcpu_ops_aux.rs",
        from: "ESR::WNR.val(u64::from(is_write))",
        to: "ESR::WNR.val(0 * u64::from(is_write))",
    },
    Fault {
        name: "fault: ELR is the vector",
        file: "src/vcpu/vcpu_ops_aux.rs",
        from: "    el1.write(El1Reg::Elr, pc);\n    el1.write(El1Reg::Spsr, pstate);",
        to: "    el1.write(El1Reg::Elr, pstate);\n    el1.write(El1Reg::Spsr, pc);",
    },
    Fault {
        name: "trap: SMC not stepped over",
        file: "src/trap/trap_handler_raw.rs",
        from: "    machine.set_host_pc(machine.host_pc().wrapping_add(INSTRUCTION_SIZE));\n",
        to: "",
    },
    Fault {
        name: "trap: any immediate is ours",
        file: "src/trap/trap_handler_raw.rs",
        from: "    let answer = match core.machine().read_esr_el2().immediate() {\n        0 =>",
        to: "    let answer = match core.machine().read_esr_el2().immediate() {\n        0 | 1 =>",
    },
    Fault {
        name: "trap: restart keeps registers",
        file: "src/trap/trap_handler_raw.rs",
        from: "            frame.x = [0; 31];\n",
        to: "",
    },
    Fault {
        name: "trap: no check at the start",
        file: "src/trap/trap_handler.rs",
        from: "pub fn host_trap_handler<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {\n    core.machine().check();",
        to: "pub fn host_trap_handler<M: Machine>(core: &Core<M>, frame: &mut TrapFrame) {",
    },
    Fault {
        name: "dispatcher: event limit off by one",
        file: "src/trap/trap_dispatcher.rs",
        from: "and_then(|n| Event::ALL.get(n))",
        to: "and_then(|n| Event::ALL.get(n.saturating_sub(1)))",
    },
    Fault {
        name: "turn: pull without waiting",
        file: "src/abstract_machine/turn.rs",
        from: "if self.turn.words.get_now() == self.my {",
        to: "if self.turn.words.get_now() <= self.my {",
    },
    Fault {
        name: "vm: donation without scrub",
        file: "src/memory/mem_manager/protected.rs",
        from: "            run(pfn, count).for_each(|page| mem.machine().clear_phys_page(page));\n",
        to: "",
    },
    Fault {
        name: "vm: donation leaves the host's page mapped",
        file: "src/memory/mem_manager/protected.rs",
        from: "Level::L3 => npt_ops::clear_pfn_host(mem.npts(), pfn),",
        to: "Level::L3 => {}",
    },
    Fault {
        name: "vm: donation of a block unmaps its first page",
        file: "src/memory/mem_manager/protected.rs",
        from: "npt_ops::clear_block_host(mem.npts(), pfn)",
        to: "npt_ops::clear_pfn_host(mem.npts(), pfn)",
    },
    Fault {
        name: "vm: instruction caches keep what the host left",
        file: "src/memory/mem_manager/protected.rs",
        from: "            mem.machine().sync_page_to_poc(bytes_of(pfn, 0));\n",
        to: "",
    },
    Fault {
        name: "vm: an image stays in the host's caches",
        file: "src/memory/mem_manager/protected.rs",
        from: "Scrub::Keep => mem.machine().sync_page_to_poc(bytes_of(pfn, count)),",
        to: "Scrub::Keep => {}",
    },
    Fault {
        name: "vm: what is lent stays in the host's caches",
        file: "src/memory/mem_manager/ordinary.rs",
        from: "    mem.machine().sync_page_to_poc(bytes_of(pfn, count)); // K §8.3 A21\n",
        to: "",
    },
    Fault {
        name: "vm: the last revoke leaves the host's mapping",
        file: "src/memory/mem_manager/protected.rs",
        from: "                npt_ops::clear_pfn_host(mem.npts(), pfn);\n",
        to: "",
    },
    Fault {
        name: "vm: a revoke does not count",
        file: "src/memory/mem_manager/protected.rs",
        from: "count: count - 1 }",
        to: "count }",
    },
    Fault {
        name: "vm: a second loan does not count",
        file: "src/memory/mem_manager.rs",
        from: "count.checked_add(1).ok_or(Denied::InUse),\n        Some(_) => Err(Denied::NotOwner),\n    }\n}\n\n/// State of",
        to: "Ok(count),\n        Some(_) => Err(Denied::NotOwner),\n    }\n}\n\n/// State of",
    },
    Fault {
        name: "vm: what is taken back is still counted",
        file: "src/memory/mem_manager/ordinary.rs",
        from: "        less_lent(mem, &mut records, page);\n    }\n    Ok(count)",
        to: "        let _ = (&mut records, page);\n    }\n    Ok(count)",
    },
    Fault {
        name: "vm: mapped over what is mapped",
        file: "src/npt/npt_ops/vm.rs",
        from: "        prepared.map(|_| ())\n",
        to: "        match prepared { Err(SetNptError::Occupied) => Ok(()), other => other.map(|_| ()) }\n",
    },
    Fault {
        name: "vm: a misaligned block is donated",
        file: "src/memory/mem_manager/protected.rs",
        from: "    if !pfn.addr().is_aligned(level.size()) {",
        to: "    if false {",
    },
    Fault {
        name: "vm: cut without flush",
        file: "src/npt/npt_ops/vm.rs",
        from: "            machine.tlb_flush_vm(vm, table.npt.vttbr());\n",
        to: "",
    },
    Fault {
        name: "vm: flush before cut",
        file: "src/npt/npt_ops/vm.rs",
        from: "            npt_walk::park_all(machine, &mut table.npt);\n            machine.tlb_flush_vm(vm, table.npt.vttbr());\n",
        to: "            machine.tlb_flush_vm(vm, table.npt.vttbr());\n            npt_walk::park_all(machine, &mut table.npt);\n",
    },
    Fault {
        name: "vm: unmapped without flush",
        file: "src/npt/npt_ops/vm.rs",
        from: "            machine.tlb_flush_ipa(vm, table.npt.vttbr(), ipa);\n        }\n    });\n",
        to: "            let _ = (vm, ipa);\n        }\n    });\n",
    },
    Fault {
        name: "vm: split without flush",
        file: "src/npt/npt_ops/vm.rs",
        from: "            machine.tlb_flush_ipa(vm, table.npt.vttbr(), ipa);\n            npt_walk::finish_split",
        to: "            npt_walk::finish_split",
    },
    Fault {
        name: "vm: a page does not return to its pool",
        file: "src/npt/page_pool.rs",
        from: "    machine.clear_phys_page(page);\n    push(machine, pool, page.addr());\n",
        to: "    machine.clear_phys_page(page);\n    let _ = pool;\n",
    },
    Fault {
        name: "vm: a page returns to its pool with its content",
        file: "src/npt/page_pool.rs",
        from: "    machine.clear_phys_page(page);\n",
        to: "",
    },
    Fault {
        name: "vm: the list's link stays in a page",
        file: "src/npt/page_pool.rs",
        from: "    machine.pt_store(page, 0);\n",
        to: "",
    },
    Fault {
        name: "vm: the root goes back with its content",
        file: "src/memory/mem_manager/vm_table.rs",
        from: "        release(mem, &mut pages, root, 1 << shape.root_order());\n",
        to: "        give_to_host(mem, &mut pages, root, 1 << shape.root_order());\n",
    },
    Fault {
        name: "vm: reclaim without scrub",
        file: "src/memory/mem_manager/reclaim.rs",
        from: "            mem.machine().clear_phys_page(page);\n",
        to: "",
    },
    Fault {
        name: "vm: reclaim forgets shared pages",
        file: "src/memory/mem_manager/reclaim.rs",
        from: "PageState::Private { vm: owner, .. } | PageState::Shared { vm: owner, .. }",
        to: "PageState::Private { vm: owner, .. }",
    },
    Fault {
        name: "vm: reclaim leaves lent pages lent",
        file: "src/memory/mem_manager/reclaim.rs",
        from: "            less_lent(mem, pages, page);\n",
        to: "            let _ = less_lent::<M>;\n",
    },
    Fault {
        name: "vm: a kind is as good as another",
        file: "src/memory/mem_manager.rs",
        from: "        (_, false) => Err(Denied::WrongKind),\n",
        to: "        (_, false) => Ok(()),\n",
    },
    Fault {
        name: "vm: memory is given while it is taken",
        file: "src/memory/mem_manager.rs",
        from: "        (false, _) => Err(Denied::Busy),\n",
        to: "",
    },
    Fault {
        name: "vm: an empty table is not given back",
        file: "src/npt/npt_walk.rs",
        from: "                    pt_alloc::free_table_page(machine, npt, table);\n                    return (at, Apart::Table);",
        to: "                    return (at, Apart::Table);",
    },
    Fault {
        name: "vm: read-only memory is writable",
        file: "src/memory/memory_ops.rs",
        from: "if read_only { Stage2Access::RamReadOnly }",
        to: "if read_only && pages == 0 { Stage2Access::RamReadOnly }",
    },
    Fault {
        name: "vm: an id is given out twice",
        file: "src/memory/mem_manager/vm_table.rs",
        from: "        return Err(Denied::InUse);\n",
        to: "        {}\n",
    },
    Fault {
        name: "vm: a table goes while its contexts are in use",
        file: "src/memory/mem_manager/vm_table.rs",
        from: " || table.pool_free < table.pool_all {",
        to: " {",
    },
    Fault {
        name: "vm: an adopted root stays when there is no room for the rest",
        file: "src/memory/mem_manager/vm_table.rs",
        from: "            run(pfn, n as u64).for_each(|adopted| mem.machine().release_page(adopted));\n",
        to: "            let _ = n;\n",
    },
    Fault {
        name: "locks: order not checked",
        file: "src/locks.rs",
        from: "                assert!(*last < rank,",
        to: "                assert!(true || *last < rank,",
    },
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_fault_can_be_planted() {
    for fault in FAULTS {
        let text = fs::read_to_string(root().join(fault.file)).unwrap();
        assert_eq!(text.matches(fault.from).count(), 1, "{}: {} has changed", fault.name, fault.file);
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(|_| ());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != "target" {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Runs tests in `place`; the names of those that failed, or `None` if none did.
fn failures(place: &Path, tests: &[&str]) -> Option<Vec<String>> {
    // A fault may hang a test: that is noticed too.
    let mut cargo = Command::new("timeout");
    cargo.args(["300", env!("CARGO"), "test", "--offline", "--quiet", "--no-fail-fast"]);
    tests.iter().for_each(|test| {
        let target: &[&str] = if *test == "lib" { &["--lib"] } else { &["--test", test] };
        cargo.args(target);
    });
    cargo.current_dir(place).env("CARGO_TARGET_DIR", place.join("target")).env("RUST_BACKTRACE", "0");
    let output = cargo.env("RUSTFLAGS", "-Awarnings").stdin(Stdio::null()).output().unwrap();
    if output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("could not compile"), "{text}");
    let names = text.lines().filter_map(|line| line.strip_prefix("    "));
    let mut names: Vec<_> = names.filter(|name| !name.contains([' ', '`'])).map(String::from).collect();
    names.sort();
    names.dedup();
    Some(names)
}

#[test]
#[ignore = "long: builds and runs all tests once for each fault"]
fn every_fault_planted_in_the_layers_is_noticed() {
    let place = root().join("target/seeded_faults");
    fs::create_dir_all(&place).unwrap();
    for part in ["src", "tests", "scripts", "kserv", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml"] {
        if part == "src" || part == "tests" {
            let _ = fs::remove_dir_all(place.join(part));
        }
        copy(&root().join(part), &place.join(part)).unwrap();
    }
    TESTS.iter().for_each(|tests| assert_eq!(failures(&place, tests), None, "without a fault"));
    let only = env::var("COREVISOR_FAULT").unwrap_or_default();
    let mut survived = vec![];
    for fault in FAULTS.iter().filter(|fault| fault.name.contains(&only)) {
        let file = place.join(fault.file);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen(fault.from, fault.to, 1)).unwrap();
        let failed = TESTS.iter().find_map(|tests| failures(&place, tests));
        fs::write(&file, text).unwrap();
        match failed {
            Some(names) => println!("noticed by {:2}: {}: {}", names.len(), fault.name, names.join(" ")),
            None => survived.push(fault.name),
        }
    }
    assert!(survived.is_empty(), "not noticed: {survived:?}");
}
