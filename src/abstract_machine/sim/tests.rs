use super::*;
use crate::abstract_machine::addr::PhysRange;
use crate::abstract_machine::shape::Shape;

const POOL: u64 = 0x8000_0000;
// AF, S2AP, inner shareable, write-back; a block.
const BLOCK: u64 = 0x7fd;

fn sim() -> (Sim, Pa) {
    let sim = Sim::new(2, PhysRange::new(Pa::new(POOL), 8 * 4096).unwrap());
    let root = sim.alloc_table(0).unwrap();
    sim.publish_tables();
    sim.load_stage2(VmId::HOST, root, 39, 40);
    (sim, root)
}

/// The host's table at `root`.
fn host(root: Pa) -> Stage2 {
    Stage2 { vttbr: root.raw(), shape: Shape::new(39) }
}

/// That of `VM`.
fn of_vm(root: Pa) -> Stage2 {
    Stage2 { vttbr: root.raw() | 7 << 48, ..host(root) }
}

fn slot(table: Pa, index: u64) -> Pa {
    Pa::new(table.raw() + index * 8)
}

fn violation_of(act: impl FnOnce(&Sim, Pa)) -> String {
    let (sim, root) = sim();
    act(&sim, root);
    sim.violations_at_rest().join("; ")
}

const AT_1G: Ipa = Ipa::new(1 << 30);

#[test]
fn a_leaf_that_was_stored_and_published_translates() {
    let (sim, root) = sim();
    assert_eq!(sim.host_access(0, AT_1G, AccessKind::Read), Err(Fault::Translation(1)));
    sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
    sim.publish_tables();
    assert_eq!(sim.host_access(0, Ipa::new(0x4000_0008), AccessKind::Write), Ok(Pa::new(0x4000_0008)));
    assert_eq!(sim.violations(), Vec::<String>::new());
}

#[test]
fn a_cpu_remembers_a_leaf_until_it_is_told_to_forget() {
    let (sim, root) = sim();
    sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
    sim.publish_tables();
    assert!(sim.host_access(1, AT_1G, AccessKind::Read).is_ok());
    sim.pt_store(slot(root, 1), 0);
    assert!(sim.host_access(1, AT_1G, AccessKind::Read).is_ok(), "not flushed");
    sim.tlb_flush_ipa(VmId::HOST, host(root), Ipa::new(0x7fff_f000));
    assert!(sim.host_access(1, AT_1G, AccessKind::Read).is_err(), "flushed by any address of the block");
    assert!(
        violation_of(|sim, root| {
            sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
            sim.publish_tables();
            sim.pt_store(slot(root, 1), 0);
        })
        .contains("unmapped and never flushed")
    );
}

#[test]
fn what_breaks_the_rules_of_the_architecture_is_written_down() {
    let leaf = 1 << 30 | BLOCK;
    let overwritten = violation_of(|sim, root| {
        sim.pt_store(slot(root, 1), leaf);
        sim.pt_store(slot(root, 1), 2 << 30 | BLOCK);
    });
    assert!(overwritten.contains("break before make"), "{overwritten}");
    let not_flushed = violation_of(|sim, root| {
        sim.pt_store(slot(root, 1), leaf);
        sim.pt_store(slot(root, 1), 0);
        sim.pt_store(slot(root, 1), leaf);
    });
    assert!(not_flushed.contains("TLBs may remember"), "{not_flushed}");
    let not_published = violation_of(|sim, root| sim.pt_store(slot(root, 1), leaf));
    assert!(not_published.contains("never published"), "{not_published}");
    let garbage = violation_of(|sim, root| {
        let table = sim.alloc_table(0).unwrap();
        sim.pt_store(slot(root, 1), table.raw() | 3);
        sim.publish_tables();
    });
    assert!(garbage.contains("before its contents were published"), "{garbage}");
    let freed = violation_of(|sim, root| {
        let table = sim.alloc_table(0).unwrap();
        sim.publish_tables();
        sim.pt_store(slot(root, 1), table.raw() | 3);
        sim.publish_tables();
        sim.free_table(table, 0);
    });
    assert!(freed.contains("was freed while Live"), "{freed}");
    let misaligned = violation_of(|sim, root| {
        sim.pt_store(slot(root, 1), 0x4000_1000 | BLOCK);
        sim.publish_tables();
    });
    assert!(misaligned.contains("not aligned to its size"), "{misaligned}");
    let other_root = violation_of(|sim, root| sim.tlb_flush_vm(VmId::HOST, host(Pa::new(root.raw() + 4096))));
    assert!(other_root.contains("of another"), "{other_root}");
    let other_form =
        violation_of(|sim, root| sim.tlb_flush_vm(VmId::HOST, Stage2 { shape: Shape::new(48), ..host(root) }));
    assert!(other_form.contains("the form of another"), "{other_form}");
}

/// A level-2 table with one block, linked at 1 GiB.
fn with_table(sim: &Sim, root: Pa) -> Pa {
    let table = sim.alloc_table(0).unwrap();
    sim.pt_store(slot(table, 0), 1 << 30 | BLOCK);
    sim.publish_tables();
    sim.pt_store(slot(root, 1), table.raw() | 3);
    sim.publish_tables();
    table
}

#[test]
fn a_table_may_be_freed_after_the_whole_vm_was_flushed_and_not_before() {
    let act = |flush: fn(&Sim, Pa)| {
        violation_of(|sim, root| {
            let table = with_table(sim, root);
            assert!(sim.host_access(1, AT_1G, AccessKind::Read).is_ok());
            sim.pt_store(slot(root, 1), 0);
            flush(sim, root);
            sim.free_table(table, 0);
        })
    };
    assert_eq!(act(|sim, root| sim.tlb_flush_vm(VmId::HOST, host(root))), "");
    assert!(act(|sim, root| sim.tlb_flush_ipa(VmId::HOST, host(root), AT_1G)).contains("freed while Stale"));
    assert!(act(|_, _| ()).contains("freed while a walk cache remembers it"));
}

#[test]
fn a_block_over_pages_that_a_tlb_remembers_is_a_conflict() {
    let text = violation_of(|sim, root| {
        let table = with_table(sim, root);
        assert!(sim.host_access(1, AT_1G, AccessKind::Read).is_ok());
        sim.pt_store(slot(root, 1), 0);
        sim.tlb_flush_ipa(VmId::HOST, host(root), Ipa::new(0x4020_0000));
        sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
        sim.publish_tables();
        assert!(sim.host_access(1, Ipa::new(0x4020_0000), AccessKind::Read).is_ok());
        let _ = table;
    });
    assert!(text.contains("TLB conflict"), "{text}");
}

#[test]
fn speculation_remembers_what_was_valid_for_a_moment() {
    let (sim, root) = sim();
    sim.watch(&[AT_1G]);
    sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
    sim.pt_store(slot(root, 1), 0);
    assert!(sim.host_access(0, AT_1G, AccessKind::Read).is_ok());
}

#[test]
fn a_pool_gives_aligned_runs_and_ends() {
    let sim = Sim::new(1, PhysRange::new(Pa::new(POOL + 0x1000), 8 * 4096).unwrap());
    assert_eq!(sim.alloc_table(2), Some(Pa::new(POOL + 0x4000)));
    assert_eq!(sim.alloc_table(2), None);
    assert_eq!((0..4).filter_map(|_| sim.alloc_table(0)).count(), 4);
    assert_eq!((sim.alloc_table(0), sim.free_pages()), (None, 0));
    assert_eq!(sim.pt_load(Pa::new(POOL + 0x4ff8)), 0);
}

#[test]
#[should_panic(expected = "double free?")]
fn a_double_free_panics() {
    let (sim, _) = sim();
    let table = sim.alloc_table(0).unwrap();
    sim.free_table(table, 0);
    sim.free_table(table, 0);
}

#[test]
#[should_panic(expected = "outside the pool")]
fn an_entry_outside_the_pool_panics() {
    sim().0.pt_store(Pa::new(POOL + 8 * 4096), 0);
}

#[test]
#[should_panic(expected = "the table page is free")]
fn a_freed_table_page_is_not_to_be_read() {
    let (sim, _) = sim();
    let table = sim.alloc_table(0).unwrap();
    sim.free_table(table, 0);
    sim.pt_load(table);
}

#[test]
#[should_panic(expected = "a CPU went on")]
fn a_halted_machine_lets_no_cpu_go_on() {
    let (sim, _) = sim();
    sim.halt();
    sim.check();
}

const VM: VmId = VmId::new(7);

/// A root for a VM, adopted and loaded, and one more adopted page.
fn with_vm() -> (Sim, Pa, Pa) {
    let (sim, _) = sim();
    let (root, page) = (Pfn::new(0x4_0000), Pfn::new(0x4_0001));
    assert!(sim.adopt_page(root) && sim.adopt_page(page));
    sim.publish_tables();
    sim.load_stage2(VM, root.addr(), 39, 40);
    (sim, root.addr(), page.addr())
}

#[test]
fn a_vm_walks_its_own_table_and_its_entries_carry_its_id() {
    let (sim, root, _) = with_vm();
    sim.sync_page_to_poc(PhysRange::between(Pa::new(1 << 30), Pa::new(2 << 30)));
    sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
    sim.publish_tables();
    assert_eq!(sim.vm_access(0, VM, AT_1G, AccessKind::Write), Ok(Pa::new(1 << 30)));
    assert!(sim.host_access(0, AT_1G, AccessKind::Read).is_err());
    assert!(sim.vm_access(0, VmId::new(8), AT_1G, AccessKind::Read).is_err());
    sim.pt_store(slot(root, 1), 0);
    sim.tlb_flush_ipa(VmId::HOST, host(Pa::new(sim.regime(VmId::HOST).unwrap().root)), AT_1G);
    assert!(sim.vm_access(0, VM, AT_1G, AccessKind::Read).is_ok(), "another's flush");
    sim.tlb_flush_ipa(VM, of_vm(root), AT_1G);
    assert!(sim.vm_access(0, VM, AT_1G, AccessKind::Read).is_err());
    // The VM ran between the store and its flush.
    assert_eq!(sim.violations(), ["0x40000000 was unmapped and never flushed"]);
}

#[test]
fn an_adopted_page_is_released_only_when_nothing_leads_to_it() {
    let act = |flush: fn(&Sim, Pa)| {
        let (sim, root, page) = with_vm();
        sim.pt_store(slot(root, 1), page.raw() | 3);
        sim.publish_tables();
        assert!(sim.vm_access(1, VM, AT_1G, AccessKind::Read).is_err());
        flush(&sim, root);
        sim.release_page(Pfn::containing(page));
        sim.violations_at_rest().join("; ")
    };
    assert!(act(|_, _| ()).contains("released while Live"));
    assert!(act(|sim, root| sim.pt_store(slot(root, 1), 0)).contains("released while Stale"));
    let flushed = act(|sim, root| {
        sim.pt_store(slot(root, 1), 0);
        sim.tlb_flush_vm(VM, of_vm(root));
    });
    assert_eq!(flushed, "");
}

#[test]
fn a_root_is_released_only_after_every_tlb_forgot_its_vm() {
    let act = |flush: bool| {
        let (sim, root, _) = with_vm();
        sim.sync_page_to_poc(PhysRange::between(Pa::new(1 << 30), Pa::new(2 << 30)));
        sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
        sim.publish_tables();
        assert!(sim.vm_access(1, VM, AT_1G, AccessKind::Read).is_ok());
        sim.pt_store(slot(root, 1), 0);
        if flush {
            sim.tlb_flush_vm(VM, of_vm(root));
        }
        sim.release_page(Pfn::containing(root));
        assert_eq!(sim.regime(VM), None);
        sim.violations_at_rest().join("; ")
    };
    assert!(act(false).contains("while a TLB knows the VM"));
    assert_eq!(act(true), "");
}

#[test]
fn a_vm_that_gets_what_only_caches_hold_is_written_down() {
    let act = |prepare: fn(&Sim, Pfn)| {
        let (sim, root, _) = with_vm();
        sim.write_ram(Pfn::new(1 << 18), 7);
        prepare(&sim, Pfn::new(1 << 18));
        sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
        sim.publish_tables();
        sim.violations_at_rest().join("; ")
    };
    assert!(act(|_, _| ()).contains("not clean in memory"));
    assert!(act(|sim, pfn| sim.clear_phys_page(pfn)).contains("instructions are cached"));
    assert_eq!(act(|sim, pfn| sim.sync_page_to_poc(PhysRange::new(pfn.addr(), 4096).unwrap())), "");
}

#[test]
fn with_fwb_a_vm_may_get_what_only_caches_hold_by_a_leaf_that_is_made_for_it() {
    // MemAttr 0b0110 for 0b1111.
    const FORCED: u64 = BLOCK & !0x3c | 0b0110 << 2;
    let act = |forced, leaf, prepare: fn(&Sim, Pfn)| {
        let (sim, root, _) = with_vm();
        if forced {
            sim.force_write_back();
        }
        sim.write_ram(Pfn::new(1 << 18), 7);
        prepare(&sim, Pfn::new(1 << 18));
        sim.pt_store(slot(root, 1), 1 << 30 | leaf);
        sim.publish_tables();
        sim.violations_at_rest().join("; ")
    };
    let no_instructions = |sim: &Sim, _| sim.sync_page_to_poc(PhysRange::default());
    let clean = |sim: &Sim, pfn| sim.sync_page_to_poc(PhysRange::of_pages(pfn, 1));
    assert_eq!(act(true, FORCED, no_instructions), "");
    assert!(act(true, FORCED, |_, _| ()).contains("instructions are cached"));
    assert!(act(false, BLOCK, no_instructions).contains("not clean in memory"));
    assert!(act(true, BLOCK, clean).contains("MemAttr is reserved with FWB"));
    assert!(act(false, FORCED, clean).contains("MemAttr is that of FWB"));
    let (sim, root) = sim();
    sim.force_write_back();
    sim.pt_store(slot(root, 1), 1 << 30 | FORCED);
    sim.publish_tables();
    assert!(sim.violations_at_rest().join("; ").contains("the host got 0x40000000 with the MemAttr of FWB"));
}

#[test]
fn memory_beneath_the_caches_holds_what_was_there_until_it_is_cleaned() {
    let (sim, _) = sim();
    let page = Pfn::new(0x4_0000);
    let pages = PhysRange::of_pages(page, 1);
    sim.write_ram(page, 7);
    sim.write_ram(page, 8);
    assert_eq!((sim.read_ram(page), sim.read_beneath(page)), (8, canary(page)));
    sim.sync_page_to_poc(pages);
    assert_eq!(sim.read_beneath(page), 8);
    sim.zero_phys_run(pages);
    assert_eq!((sim.read_ram(page), sim.read_beneath(page)), (0, 8));
    sim.clear_phys_run(pages);
    assert_eq!(sim.read_beneath(page), 0);
}

#[test]
fn a_root_whose_zeroes_were_not_published_is_no_table_yet() {
    let (sim, _) = sim();
    let root = Pfn::new(0x4_0000);
    assert!(sim.adopt_page(root));
    sim.load_stage2(VM, root.addr(), 39, 40);
    assert_eq!(sim.violations(), ["the table at 0x40000000 was linked before its contents were published"]);
}

/// An SMMU that uses a table of one page, and room for more.
fn with_smmu() -> (Sim, Pa) {
    let tables = PhysRange::new(Pa::new(0x10_0000_0000), 4 * 4096).unwrap();
    let sim = sim().0.with_smmu(tables);
    sim.load_smmu(tables.base(), 39);
    (sim, tables.base())
}

#[test]
fn an_smmu_is_led_to_a_table_after_that_was_published_to_smmus() {
    let act = |publish: fn(&Sim), at_last: fn(&Sim)| {
        let (sim, root) = with_smmu();
        let table = Pa::new(root.raw() + 4096);
        sim.pt_store(slot(table, 0), 1 << 30 | BLOCK);
        publish(&sim);
        sim.pt_store(slot(root, 1), table.raw() | 3);
        at_last(&sim);
        sim.violations_at_rest().join("; ")
    };
    let for_smmus: fn(&Sim) = |sim| sim.publish_to_smmus();
    let for_cpus: fn(&Sim) = |sim| sim.publish_tables();
    assert_eq!(act(for_smmus, for_smmus), "");
    assert!(act(|_| (), for_smmus).contains("leads the SMMU to 0x1000001000, which was not published before"));
    assert!(act(for_cpus, for_smmus).contains("which was not published before"));
    assert!(act(for_smmus, for_cpus).contains("was never published"));
    let (sim, root) = with_smmu();
    sim.pt_store(root, 0);
    sim.load_smmu(root, 39);
    assert_eq!(sim.violations(), ["the SMMU began with a table that was not published"]);
}

#[test]
fn an_its_is_told_of_commands_after_they_were_published() {
    let writer = Pa::new(0x808_0088);
    let act = |publish: fn(&Sim), level1: bool| {
        let (sim, _) = sim();
        let [queue, devices, table] = [(); 3].map(|()| sim.alloc_table(0).unwrap());
        sim.set_registers(Box::new(|_, _, _| 0));
        sim.load_its(writer, PhysRange::new(devices, PAGE_SIZE));
        sim.pt_store(queue, 0x05);
        publish(&sim);
        if level1 {
            sim.pt_store(devices, 1 << 63 | table.raw());
        } else {
            sim.mmio_write(Pa::new(0x808_0000), 8, 0);
            sim.mmio_write(writer, 8, 0x20);
        }
        sim.violations().join("; ")
    };
    let publish = |sim: &Sim| sim.publish_tables();
    assert_eq!((act(publish, false), act(publish, true)), (String::new(), String::new()));
    assert!(act(|_| (), false).contains("GITS_CWRITER was moved on before 0x8000"));
    assert!(act(|_| (), true).contains("a device table of an ITS leads to 0x80003000 before it was published"));
}

#[test]
fn a_page_that_the_host_reaches_is_neither_adopted_nor_released() {
    let act = |unmap: fn(&Sim, Pa), act: fn(&Sim)| {
        let (sim, root) = sim();
        assert!(sim.adopt_page(Pfn::new(0x4_0001)));
        sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
        sim.publish_tables();
        assert!(sim.host_access(1, AT_1G, AccessKind::Read).is_ok());
        unmap(&sim, root);
        act(&sim);
        sim.tlb_flush_ipa(VmId::HOST, host(root), AT_1G);
        sim.violations_at_rest().join("; ")
    };
    let unmap = |sim: &Sim, root| {
        sim.pt_store(slot(root, 1), 0);
        sim.tlb_flush_ipa(VmId::HOST, host(root), AT_1G);
    };
    let adopt: fn(&Sim) = |sim| assert!(sim.adopt_page(Pfn::new(0x4_0000)));
    let release: fn(&Sim) = |sim| sim.release_page(Pfn::new(0x4_0001));
    for (what, text) in [(adopt, "was adopted while"), (release, "was released while")] {
        assert!(act(|_, _| (), what).contains(text), "mapped");
        assert!(act(|sim, root| sim.pt_store(slot(root, 1), 0), what).contains(text), "remembered");
        assert_eq!(act(unmap, what), "");
    }
}

#[test]
fn what_becomes_a_vms_alone_is_cleaned_after_the_host_lost_it() {
    let act = |steps: [fn(&Sim, Pa, Pa); 3]| {
        let (sim, root, _) = with_vm();
        let host = Pa::new(sim.regime(VmId::HOST).unwrap().root);
        sim.pt_store(slot(host, 1), 1 << 30 | BLOCK);
        sim.publish_tables();
        steps.iter().for_each(|step| step(&sim, host, root));
        sim.violations_at_rest().join("; ")
    };
    let clean = |sim: &Sim, _, _| sim.sync_page_to_poc(PhysRange::of_pages(Pfn::new(0x4_0005), 1));
    let take = |sim: &Sim, host: Pa, _| {
        sim.pt_store(slot(host, 1), 0);
        sim.tlb_flush_ipa(VmId::HOST, self::host(host), AT_1G);
    };
    let give = |sim: &Sim, _, root: Pa| {
        sim.pt_store(slot(root, 1), 1 << 30 | BLOCK);
        sim.publish_tables();
    };
    assert_eq!(act([take, clean, give]), "");
    assert!(act([clean, take, give]).contains("was cleaned while others reached it"));
    assert!(act([give, clean, take]).contains("was cleaned while others reached it"));
    assert_eq!(act([give, take, clean]), "");
    assert_eq!(act([clean, give, |_, _, _| ()]), "", "it is lent");
}

#[test]
fn a_page_is_what_was_written_to_it_word_by_word() {
    let (sim, _) = sim();
    let page = Pfn::new(0x4_0000);
    sim.write_page(page, 510, &[1, 2]);
    let mut words = [0; 3];
    sim.read_page(page, 509, &mut words);
    assert_eq!(words, [canary(page), 1, 2]);
}

#[test]
#[should_panic(expected = "it was not adopted")]
fn a_page_that_was_not_adopted_is_not_released() {
    sim().0.release_page(Pfn::new(0x4_0000));
}
