//! The registers by which a GICv3 could be made to write memory that the host does not reach: what the host says, what redistributors and ITSs get of it, and what the host
//! reads again. Layers 22-26 with 31, against registers that write down what is done to them.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;
mod random;

use common::mediated::{
    BASER, Bed, CBASER, CORES, CREADR, CTLR, CWRITER, GICR, ITS, PENDBASER, POOL, PROPBASER, QUEUE, RAM, STALLED,
    TABLES, TYPER, VALID, VLPI, bed, bed_of, bed_with, command, described,
};
use corevisor::abstract_machine::Machine;
use corevisor::abstract_machine::addr::{Pa, Pfn};
use corevisor::abstract_machine::per_cpu::Event;
use corevisor::memory::mem_manager::Denied;
use corevisor::memory::memory_ops::assign_page_to_core;
use corevisor::mmio::its_command::map_device;
use corevisor_evidence::Rng;

#[test]
fn what_concerns_no_memory_goes_through_as_it_is() {
    let mut bed = bed();
    bed.store(GICR + 0x14, 4, 0x1234_5678_9abc_def0);
    assert_eq!(bed.registers.lock().unwrap().stores, [(GICR + 0x14, 4, 0x9abc_def0)]);
    assert_eq!((bed.load(GICR + 0x14, 4), bed.load(GICR + 0x10, 8)), (0x9abc_def0, 0x9abc_def0 << 32));
    assert_eq!(bed.world.sim().counted(Event::HostMmio), 3);
}

#[test]
fn registers_are_reached_by_words_and_doublewords_and_by_nothing_else() {
    let mut bed = bed();
    let x = [7; 31];
    for size in [1, 2] {
        assert!(!bed.trap(GICR + 0x14, described(size, 3, true), x).1, "{size} bytes");
    }
    // A pair of registers, an instruction of 2 bytes, a fetch's walk, a doubleword that is not aligned.
    for (at, iss) in [
        (0x10, 0),
        (0x10, described(8, 3, false) | 1 << 25),
        (0x10, described(8, 3, false) | 1 << 7),
        (0x14, described(8, 3, true)),
    ] {
        assert!(!bed.trap(GICR + at, iss, x).1, "{iss:#x}");
    }
    assert_eq!(bed.registers.lock().unwrap().stores, []);
    assert_eq!(bed.world.sim().counted(Event::HostAccessDenied), 6);
}

#[test]
fn a8_register_31_stores_zero_and_loads_nothing() {
    let mut bed = bed();
    bed.store(GICR + 0x10, 8, u64::MAX);
    assert_eq!(bed.trap(GICR + 0x10, described(8, 31, false), [9; 31]), ([9; 31], true));
    assert_eq!(bed.trap(GICR + 0x10, described(8, 31, true), [9; 31]), ([9; 31], true));
    assert_eq!(bed.real(GICR + 0x10), 0);
}

/// The host's tables of 16 bits of LPIs: 56 KiB of configuration at `prop`, 8 KiB of pending bits at `pend`.
fn enable_lpis(bed: &mut Bed, prop: u64, pend: u64) -> bool {
    bed.store(GICR + PROPBASER, 8, prop | 7 << 7 | 0xf);
    bed.store(GICR + PENDBASER, 8, pend);
    bed.store(GICR + CTLR, 4, 1);
    bed.load(GICR + CTLR, 4) & 1 == 1
}

#[test]
fn a_redistributor_gets_no_table_outside_the_hosts_memory() {
    for (prop, pend) in [
        (TABLES, CORES & !0xffff),
        (CORES, TABLES),
        // The last page of each is the core's, or beyond the RAM.
        (POOL - 0xd000, TABLES),
        (TABLES, RAM + (4 << 20)),
        (RAM + (4 << 20) - 0xd000, TABLES),
        (0xf_ffff_ffff_f000, TABLES),
    ] {
        let mut bed = bed();
        assert!(!enable_lpis(&mut bed, prop, pend), "{prop:#x} {pend:#x}");
        assert_eq!(bed.real(GICR + CTLR) & 1, 0, "{prop:#x} {pend:#x}");
        // Nothing stayed lent.
        let mem = bed.world.core.memory();
        assert_eq!(assign_page_to_core(mem, Pfn::containing(Pa::new(TABLES))), Ok(()), "{prop:#x} {pend:#x}");
    }
}

#[test]
fn what_a_redistributor_uses_becomes_nobody_elses_and_stays_where_it_is() {
    let mut bed = bed();
    assert!(enable_lpis(&mut bed, TABLES, TABLES + 0x1_0000));
    let mem = bed.world.core.memory();
    let given = |at: u64| assign_page_to_core(mem, Pfn::containing(Pa::new(at)));
    for at in [TABLES, TABLES + 0xd000, TABLES + 0x1_0000, TABLES + 0x1_1000] {
        assert_eq!(given(at), Err(Denied::InUse), "{at:#x}");
    }
    assert_eq!((given(TABLES + 0xe000), given(TABLES + 0x1_2000)), (Ok(()), Ok(())), "behind their ends");
    // The registers do not change any more, by whichever half.
    bed.store(GICR + PENDBASER, 8, CORES & !0xffff);
    bed.store(GICR + PROPBASER + 4, 4, 1);
    assert_eq!(bed.real(GICR + PENDBASER), TABLES + 0x1_0000);
    assert_eq!(bed.real(GICR + PROPBASER), TABLES | 7 << 7 | 0xf);
}

#[test]
fn a_redistributor_that_was_told_to_stop_keeps_its_tables_until_it_has() {
    let mut bed = bed();
    let pend = TABLES + 0x1_0000;
    assert!(enable_lpis(&mut bed, TABLES, pend));
    bed.store(GICR + CTLR, 4, 0);
    // Its registers say so at once, but RWP says that it is not over.
    bed.registers.lock().unwrap().values.insert(GICR + CTLR, 1 << 3);
    bed.store(GICR + PENDBASER, 8, CORES & !0xffff);
    bed.store(GICR + PROPBASER + 4, 4, 1);
    assert_eq!((bed.real(GICR + PENDBASER), bed.real(GICR + PROPBASER)), (pend, TABLES | 7 << 7 | 0xf));
    bed.store(GICR + CTLR, 4, 1 << 3 | 1);
    assert_eq!(bed.real(GICR + CTLR), 1 << 3, "nor does it start again meanwhile");
    assert_eq!(bed.world.sim().counted(Event::HostAccessDenied), 1);
    // It is over.
    bed.registers.lock().unwrap().values.insert(GICR + CTLR, 0);
    assert!(!enable_lpis(&mut bed, TABLES, CORES & !0xffff));
    assert!(enable_lpis(&mut bed, TABLES, pend));
}

#[test]
fn a_table_is_as_long_as_the_gic_has_interrupts() {
    let mut bed = bed();
    // 32 bits are more than GICD_TYPER says: 16 count. Fewer than LPIs need are none.
    bed.store(GICR + PROPBASER, 8, TABLES | 0x1f);
    bed.store(GICR + PENDBASER, 8, TABLES + 0x1_0000);
    bed.store(GICR + CTLR, 4, 1);
    assert_eq!(bed.real(GICR + CTLR), 1);
    let mut other = self::bed();
    other.store(GICR + PROPBASER, 8, TABLES | 0xb);
    other.store(GICR + CTLR, 4, 1);
    assert_eq!(other.real(GICR + CTLR), 0);
}

#[test]
fn the_host_has_no_virtual_lpis() {
    let mut bed = bed();
    bed.store(VLPI + PENDBASER, 8, VALID | CORES);
    assert_eq!((bed.load(VLPI + PENDBASER, 8), bed.load(VLPI + PROPBASER, 4)), (0, 0));
    assert_eq!(bed.registers.lock().unwrap().stores, []);
    let typer = bed.load(ITS + TYPER, 8);
    assert_eq!(typer, 1 | 0xb << 4 | 0xf << 8 | 15 << 13, "physical LPIs, 16 bits of devices");
    assert_eq!(bed.load(ITS + TYPER + 4, 4), 0);
}

#[test]
fn tables_that_the_host_names_are_read_again_and_the_its_has_none_of_them() {
    let mut bed = bed();
    bed.store(ITS + BASER, 8, VALID | 1 << 62 | 7 << 59 | CORES | 1 << 10 | 0xff);
    bed.store(ITS + BASER + 12, 4, 0x8000_0000);
    bed.store(ITS + CBASER, 8, VALID | CORES | 0xf);
    assert_eq!(bed.load(ITS + BASER, 8), VALID | 1 << 62 | 7 << 59 | 1 << 56 | 7 << 48 | CORES | 1 << 10 | 0xff);
    assert_eq!(bed.load(ITS + BASER + 8, 8), VALID | 4 << 56 | 7 << 48);
    assert_eq!((bed.load(ITS + CBASER, 8), bed.load(ITS + CBASER + 4, 4)), (VALID | CORES | 0xf, 0x8000_0000));
    assert_eq!(bed.registers.lock().unwrap().stores, []);
}

#[test]
fn a_command_that_names_no_memory_reaches_the_its_as_it_is() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    let plain = [[0x09, 0, VALID | 3, 0], [0x0a | 8 << 32, 0x2001_0000_0001, 3, 0], [0x05, 0, 0, 0]];
    bed.commands(0, &plain);
    assert_eq!([0, 1, 2].map(|n| bed.given(n)), plain);
    assert_eq!((bed.load(ITS + CREADR, 8), bed.real(ITS + CWRITER)), (0x60, 0x60));
}

#[test]
fn a_devices_table_is_the_cores_wherever_the_host_says_that_it_is() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    bed.commands(0, &[map_device(0x108, 5, Pa::new(CORES)), map_device(0x109, 30, Pa::new(QUEUE))]);
    let given = [bed.given(0), bed.given(1)];
    for (n, events) in [(0, 5), (1, 11)] {
        let [first, second, third, last] = given[n as usize];
        assert_eq!((first, second, last), (0x08 | (0x108 + n) << 32, events - 1, 0), "a device of fewer events");
        let itt = Pa::new(third & !VALID);
        assert!(third & VALID != 0 && bed.world.sim().pool().contains(itt) && itt.is_aligned(0x1000));
        assert!((0..(12 << events) / 8).all(|word| bed.world.sim().pt_load(Pa::new(itt.raw() + 8 * word)) == 0));
    }
    assert_ne!(given[0][2], given[1][2]);
    assert_eq!(bed.load(ITS + CREADR, 8), 0x40);
    // A page of the device table is there for them; gone devices leave their tables for others.
    bed.commands(2, &[[0x08 | 0x108 << 32, 0, 0, 0], map_device(0x7f00, 5, Pa::new(0))]);
    assert_eq!((bed.given(2), bed.given(3)[2]), ([0x08 | 0x108 << 32, 0, 0, 0], given[0][2]));
}

#[test]
fn a_table_that_a_device_left_is_zero_when_the_next_one_gets_it() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    bed.commands(0, &[map_device(1, 5, Pa::new(0))]);
    let table = bed.given(0)[2] & !VALID;
    // What the ITS has written there, to the last word.
    (0..512).for_each(|word| bed.world.sim().pt_store(Pa::new(table + 8 * word), 0x1d_1d1d));
    bed.commands(1, &[[0x08 | 1 << 32, 0, 0, 0], map_device(2, 5, Pa::new(0))]);
    assert_eq!(bed.given(2)[2], VALID | table);
    assert!((0..512).all(|word| bed.world.sim().pt_load(Pa::new(table + 8 * word)) == 0));
}

#[test]
fn commands_that_the_host_does_not_have_are_left_out() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    bed.commands(0, &[[0x29, 0, VALID | CORES, CORES], [0x05, 7, 7, 7], [0xff, 1, 2, 3]]);
    assert_eq!((bed.given(0), bed.given(1)), ([0x05, 7, 7, 7], [0; 4]));
    assert_eq!(bed.load(ITS + CREADR, 8), 0x60);
}

#[test]
fn a_queue_outside_the_hosts_memory_stalls_the_its_as_the_host_sees_it() {
    for queue in [CORES, RAM + (4 << 20), ITS, 0] {
        let mut bed = bed();
        bed.set_queue(queue);
        bed.store(ITS + CWRITER, 8, 0x20);
        assert_eq!(bed.load(ITS + CREADR, 8), 1, "{queue:#x}: stalled at its first command");
        assert_eq!(bed.registers.lock().unwrap().stores, [], "{queue:#x}");
        // Another queue, and it goes on.
        bed.set_queue(QUEUE);
        bed.commands(0, &[[0x05, 0, 0, 0]]);
        assert_eq!(bed.load(ITS + CREADR, 8), 0x20, "{queue:#x}");
    }
}

#[test]
fn a17_a_command_that_changes_as_soon_as_it_was_read_is_what_was_read() {
    let life = |race: bool| {
        let (mut bed, mut rng) = (bed(), Rng::new(17));
        let queue = [Pfn::containing(Pa::new(QUEUE))];
        let rounds = (0..500).map(|_| {
            bed.set_queue(QUEUE);
            bed.world.sim().set_race(if race { &queue[..] } else { &[] });
            bed.commands(0, &[command(&mut rng)]);
            bed.world.sim().set_race(&[]);
            (bed.load(ITS + CREADR, 8), bed.real(ITS + CWRITER), (0..128).map(|n| bed.given(n)).collect::<Vec<_>>())
        });
        rounds.collect::<Vec<_>>()
    };
    let (raced, alone) = (life(true), life(false));
    assert!(alone.iter().filter(|(reader, ..)| *reader == 0x20).count() > 100, "hardly any command is taken");
    assert!(raced == alone);
}

#[test]
fn a_full_queue_is_run_to_its_end_and_both_queues_go_round() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    let mut at = 0;
    for _ in 0..5 {
        let commands: Vec<_> = (0..100).map(|n| [0x05, at + n, 0, 0]).collect();
        bed.commands(at, &commands);
        at += 100;
        assert_eq!(bed.load(ITS + CREADR, 8), at % 128 * 32);
        assert_eq!(bed.given((at - 1) % 128)[1], at - 1);
    }
}

#[test]
fn an_its_that_is_off_gets_nothing_until_it_is_on() {
    let mut bed = bed();
    bed.store(ITS + CTLR, 4, 0);
    bed.set_queue(QUEUE);
    bed.commands(0, &[[0x05, 1, 2, 3]]);
    assert_eq!((bed.load(ITS + CREADR, 8), bed.given(0)), (0, [0; 4]));
    bed.store(ITS + CTLR, 4, 1);
    assert_eq!((bed.load(ITS + CREADR, 8), bed.given(0)), (0x20, [0x05, 1, 2, 3]));
}

#[test]
fn an_its_that_takes_no_command_hangs_nobody() {
    let mut bed = bed();
    bed.registers.lock().unwrap().deaf = true;
    bed.set_queue(QUEUE);
    bed.commands(0, &[[0x05, 0, 0, 0]]);
    assert_eq!(bed.load(ITS + CREADR, 8), STALLED);
    // It had its time: from now on it is asked once for each attempt, and gets nothing.
    bed.registers.lock().unwrap().asked = 0;
    for _ in 0..10 {
        bed.commands(0, &[[0x05, 0, 0, 0]]);
        assert_eq!((bed.load(ITS + CREADR, 8), bed.given(1)), (STALLED, [0; 4]));
    }
    assert_eq!(bed.registers.lock().unwrap().asked, 10);
    // Until it has come on after all.
    let mut registers = bed.registers.lock().unwrap();
    registers.deaf = false;
    registers.run_its(0x20);
    drop(registers);
    bed.commands(0, &[[0x05, 7, 0, 0]]);
    assert_eq!((bed.load(ITS + CREADR, 8), bed.given(1)), (0x20, [0x05, 7, 0, 0]));
}

#[test]
fn a_command_that_the_its_refuses_is_left_out_and_it_goes_on_with_the_next_one() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    bed.registers.lock().unwrap().refused = [0x20, 0x40].into();
    let commands = [[0x05, 1, 0, 0], [0x0a | 8 << 32, 2, 0xffff, 0], [0x0c | 8 << 32, 2, 0, 0], [0x05, 4, 0, 0]];
    bed.commands(0, &commands);
    assert_eq!(bed.load(ITS + CREADR, 8), 0x80);
    // What the ITS stood at is none any more: it waits for a redistributor, and it has gone on.
    let nothing = [0x05, 0, 0, 0];
    assert_eq!([0, 1, 2, 3].map(|n| bed.given(n)), [commands[0], nothing, nothing, commands[3]]);
    assert_eq!((bed.real(ITS + CREADR), bed.real(ITS + CWRITER)), (0x80, 0x80));
    assert_eq!(bed.world.sim().counted(Event::HostAccessDenied), 2);
    assert!(bed.registers.lock().unwrap().asked < 20, "it is asked for what never comes");
}

#[test]
fn a_device_keeps_its_table_while_the_its_refuses_to_take_it_away_or_to_give_another() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    bed.registers.lock().unwrap().refused = [0x20, 0x40].into();
    let (map, unmap) = (|device| map_device(device, 5, Pa::new(0)), [0x08 | 1 << 32, 0, 0, 0]);
    let next = |bed: &mut Bed, command| {
        bed.set_queue(QUEUE);
        bed.commands(0, &[command]);
        assert_eq!(bed.load(ITS + CREADR, 8), 0x20, "{command:x?}");
        bed.world.sim().counted(Event::HostAccessDenied)
    };
    assert_eq!(next(&mut bed, map(1)), 0);
    assert_eq!((next(&mut bed, unmap), next(&mut bed, map(1))), (1, 2));
    let free = bed.world.sim().free_pages();
    assert_eq!(next(&mut bed, map(2)), 2);
    assert_eq!(bed.world.sim().free_pages(), free, "the table of the refused MAPD is nobody's");
    assert!(bed.given(3)[2] & VALID != 0 && bed.given(3)[2] != bed.given(0)[2], "two devices have one table");
    // Once the ITS has done it, the first one's is free.
    assert_eq!((next(&mut bed, unmap), next(&mut bed, map(3))), (2, 2));
    assert_eq!(bed.given(5)[2], bed.given(0)[2]);
}

#[test]
fn a_table_that_a_late_its_may_yet_take_is_no_other_devices() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    bed.commands(0, &[map_device(1, 5, Pa::new(0))]);
    bed.registers.lock().unwrap().deaf = true;
    bed.commands(1, &[map_device(1, 5, Pa::new(0))]);
    assert_eq!(bed.load(ITS + CREADR, 8), 0x20 | STALLED);
    let mut registers = bed.registers.lock().unwrap();
    registers.deaf = false;
    registers.run_its(0x40);
    drop(registers);
    bed.commands(1, &[map_device(2, 5, Pa::new(0))]);
    let tables = [0, 1, 2].map(|n| bed.given(n)[2]);
    assert!(tables[0] != tables[1] && tables[1] != tables[2] && tables[2] != tables[0], "{tables:x?}");
}

#[test]
fn devices_that_there_is_no_room_for_are_left_out_and_the_pool_has_pages_left() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    let denied = |bed: &Bed| bed.world.sim().counted(Event::HostAccessDenied);
    let before = bed.world.sim().free_pages();
    for n in 0..70 {
        bed.commands(n, &[map_device(n as u32, 11, Pa::new(0))]);
    }
    // 12 bytes for each of 2048 events: eight pages; eleven devices have room in 96, with a page of the device table.
    assert_eq!((bed.load(ITS + CREADR, 8), bed.real(ITS + CREADR), denied(&bed)), (70 * 32, 11 * 32, 59));
    assert_eq!(before - bed.world.sim().free_pages(), 11 * 8 + 1);
    // Devices far from one another take a page of the device table each.
    let mut spread = self::bed();
    spread.set_queue(QUEUE);
    let before = spread.world.sim().free_pages();
    for n in 0..70 {
        spread.commands(n, &[map_device(n as u32 * 512, 5, Pa::new(0))]);
    }
    assert_eq!((spread.load(ITS + CREADR, 8), spread.real(ITS + CREADR), denied(&spread)), (70 * 32, 48 * 32, 22));
    assert_eq!(before - spread.world.sim().free_pages(), 96);
    // A device that is unmapped makes room for the next one.
    bed.commands(70, &[[0x08 | 3 << 32, 0, 0, 0], map_device(71, 11, Pa::new(0)), map_device(72, 11, Pa::new(0))]);
    assert_eq!((bed.load(ITS + CREADR, 8), bed.real(ITS + CREADR), denied(&bed)), (73 * 32, 13 * 32, 60));
    assert_eq!((bed.given(12)[0] >> 32, bed.given(12)[2]), (71, bed.given(3)[2]));
    // No more devices than 64 have a table, however small.
    let mut many = self::bed();
    many.set_queue(QUEUE);
    for n in 0..70 {
        many.commands(n, &[map_device(n as u32, 5, Pa::new(0))]);
    }
    assert_eq!((many.load(ITS + CREADR, 8), many.real(ITS + CREADR), denied(&many)), (70 * 32, 64 * 32, 6));
}

#[test]
fn a_device_beyond_the_table_takes_interrupts_from_no_other() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    let (beyond, known) = (map_device(1 << 16, 5, Pa::new(0)), map_device(8, 5, Pa::new(0)));
    let event = |device: u64| [0x0a | device << 32, 1 | 8200 << 32, 0, 0];
    bed.commands(0, &[beyond, known, event(8), [0x05, 0, 0, 0]]);
    assert_eq!((bed.load(ITS + CREADR, 8), bed.real(ITS + CREADR)), (0x80, 0x60));
    assert_eq!((bed.given(0)[0], bed.given(1), bed.given(2)), (known[0], event(8), [0x05, 0, 0, 0]));
    assert_eq!(bed.world.sim().counted(Event::HostAccessDenied), 1);
}

#[test]
fn devices_of_20_bits_have_their_places_with_pages_of_every_size() {
    for (order, devices) in [(0, 512), (2, 2048), (4, 8192)] {
        let mut bed = bed_of(16, 20, order);
        bed.set_queue(QUEUE);
        assert_eq!(bed.load(ITS + TYPER, 8) >> 13 & 0x1f, 19);
        let known: [u64; 5] = [0, 0x4_0000, 0xa_0000, 0xe_0000, 0xf_ffff];
        let commands: Vec<_> =
            known.iter().chain(&[0x10_0000]).map(|device| map_device(*device as u32, 5, Pa::new(0))).collect();
        bed.commands(0, &commands);
        assert_eq!((bed.load(ITS + CREADR, 8), bed.real(ITS + CREADR)), (6 * 32, 5 * 32), "the last one is beyond");
        let (sim, level1) = (bed.world.sim(), bed.level1);
        let entries = (level1.base().raw()..level1.end().raw()).step_by(8).map(|at| sim.pt_load(Pa::new(at)));
        let pages: Vec<_> = (0..).zip(entries).filter(|(_, entry)| *entry != 0).collect();
        assert_eq!(pages.iter().map(|(slot, _)| *slot).collect::<Vec<u64>>(), known.map(|device| device / devices));
        for (slot, entry) in &pages {
            let page = Pa::new(entry & !VALID);
            assert!(entry & VALID != 0 && sim.pool().contains(page) && page.is_aligned(0x1000 << order), "{slot}");
            assert!(pages.iter().filter(|(_, other)| entry == other).count() == 1 && !level1.contains(page), "{slot}");
        }
    }
}

#[test]
fn a_pool_that_is_empty_costs_an_its_nothing_of_what_it_may_have() {
    let mut bed = bed();
    bed.set_queue(QUEUE);
    let all: Vec<Pa> = std::iter::from_fn(|| bed.world.sim().alloc_table(0)).collect();
    for n in 0..200 {
        bed.commands(n, &[map_device(1, 5, Pa::new(0))]);
        assert_eq!((bed.load(ITS + CREADR, 8), bed.real(ITS + CREADR)), ((n + 1) % 128 * 32, 0));
    }
    bed.world.sim().publish_tables();
    all.into_iter().for_each(|page| bed.world.sim().free_table(page, 0));
    bed.commands(200, &[map_device(1, 5, Pa::new(0))]);
    assert_eq!((bed.load(ITS + CREADR, 8), bed.real(ITS + CREADR)), (201 % 128 * 32, 0x20));
}

#[test]
fn tables_of_more_interrupts_than_a_host_uses_are_none() {
    // The GIC has 24 bits of them: the tables are not cut, or it would reach beyond what was looked at.
    let mut bed = bed_with(24);
    for (bits, taken) in [(24, 0), (17, 0), (16, 1)] {
        bed.store(GICR + PROPBASER, 8, TABLES | (bits - 1));
        bed.store(GICR + PENDBASER, 8, TABLES + 0x1_0000);
        bed.store(GICR + CTLR, 4, 1);
        assert_eq!(bed.real(GICR + CTLR), taken, "{bits} bits");
    }
}
