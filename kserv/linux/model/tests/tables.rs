//! Save and restore of the translation service: the tables as KVM's ABI of revision 0 has them, and what a VM may have made of them.
#![allow(missing_docs)]

mod common;

use common::Driver;
use common::its_guest::{COLLECTIONS, DEVICES, ENABLED, EVENTS, Guest, ITS, PENDING, QUEUE, RAM, REDIST, TABLE, VALID};
use corevisor_evidence::Rng;
use kserv_linux_model::its::*;

const CTRL: u32 = 4;
const SAVE: u64 = 1;
const RESTORE: u64 = 2;
const REGS: u32 = 8;
const EFAULT: i32 = -14;
const EINVAL: i32 = -22;
const ENOMEM: i32 = -12;

fn events(device: u64) -> u64 {
    EVENTS + 0x8_0000 * (device % 0x100)
}

/// What user space saves: registers in the order in which it restores them, then CTLR.
fn registers(guest: &mut Guest) -> Vec<(u64, u64)> {
    [4, 0x80, 0x90, 0x88, 0x100, 0x108, 0].map(|offset| (offset, guest.get_its(offset))).to_vec()
}

/// Another VM with this one's memory; its service has the registers, and is not on yet.
fn moved(guest: &mut Guest, vcpus: u32) -> (Guest, u64) {
    let mut registers = registers(guest);
    let ctlr = registers.pop().unwrap().1;
    let mut other = Guest::bare(vcpus);
    other.memory.clone_from(&guest.memory);
    other.tail = guest.tail;
    other.devices.clone_from(&guest.devices);
    for (offset, value) in registers {
        assert_eq!(other.set_its(REGS, offset, value), 0, "{offset:#x}");
    }
    (other, ctlr)
}

fn restored(guest: &mut Guest, vcpus: u32) -> Guest {
    let (mut other, ctlr) = moved(guest, vcpus);
    assert_eq!(other.set_its(CTRL, RESTORE, 0), 0);
    assert_eq!(other.set_its(REGS, 0, ctlr), 0);
    other
}

fn saved(guest: &mut Guest) {
    assert_eq!((guest.save_pending(), guest.set_its(CTRL, SAVE, 0)), (0, 0));
}

/// A VM whose tables are whatever `fill` makes them: what becomes of their restoring.
fn restoring(devices: u64, fill: impl FnOnce(&mut Guest)) -> (i32, Guest) {
    let mut guest = Guest::bare(2);
    assert_eq!(guest.set_its(REGS, 0x100, devices), 0);
    assert_eq!(guest.set_its(REGS, 0x108, VALID | COLLECTIONS), 0);
    guest.set_word(COLLECTIONS, VALID);
    fill(&mut guest);
    let outcome = guest.set_its(CTRL, RESTORE, 0);
    (outcome, guest)
}

/// Whether nothing is left of what was restored: what is saved then has no entry.
fn is_empty(guest: &mut Guest) -> bool {
    guest.memory.clear();
    guest.set_its(CTRL, SAVE, 0) == 0 && guest.memory.values().flatten().all(|byte| *byte == 0)
}

#[test]
fn tables_are_laid_out_as_the_api_says() {
    let mut guest = Guest::new(2);
    guest.map(8, 3, 8200, 1);
    guest.map(8, 1, 8201, 0);
    guest.map(0x40, 0, 8192, 7);
    guest.command([0x48 << 32 | 0x08, 4, VALID | events(0x48)]);
    saved(&mut guest);
    let entry = |next: u64, device: u64, bits: u64| VALID | next << 49 | events(device) >> 8 << 5 | (bits - 1);
    assert_eq!(guest.word(DEVICES + 8 * 8), entry(0x38, 8, 16));
    assert_eq!(guest.word(DEVICES + 8 * 0x40), entry(8, 0x40, 16));
    assert_eq!(guest.word(DEVICES + 8 * 0x48), entry(0, 0x48, 5), "the last one, without translations");
    assert_eq!(guest.word(events(8) + 8), 2 << 48 | 8201 << 16);
    assert_eq!(guest.word(events(8) + 24), 8200 << 16 | 1);
    assert_eq!(guest.word(events(0x40)), 8192 << 16 | 7);
    let collections: Vec<u64> = (0..4).map(|n| guest.word(COLLECTIONS + 8 * n)).collect();
    assert_eq!(collections, [VALID, VALID | 1 << 16 | 1, VALID | 0xffff_ffff << 16 | 7, 0], "7 is nobody's");
}

#[test]
fn what_a_command_has_begun_is_no_command() {
    let first = DEVICES + 0x10_0000;
    let mut guest = Guest::with_devices(1, VALID | 1 << 62 | first);
    guest.set_word(first, VALID | DEVICES);
    guest.map(8, 0, 8192, 0);
    saved(&mut guest);
    assert_eq!(guest.word(DEVICES + 8 * 8) & VALID, VALID);
    // MAPD without V reads the table of tables for what it erases: of which two commands are read, and how often is anything else wanted?
    for words in [[0x0d, 0, 0], [8 << 32 | 0x08, 0, 0]] {
        let bytes: Vec<u8> = words.into_iter().chain([0]).flat_map(u64::to_le_bytes).collect();
        guest.poke(QUEUE + guest.tail, &bytes);
        guest.tail += 32;
    }
    guest.wants.clear();
    let tail = guest.tail;
    guest.store(ITS + 0x88, tail);
    let commands: Vec<bool> = guest.wants.iter().map(|want| want.command != 0).collect();
    // INVALL and its one configuration; MAPD, the table of tables, and the entry that is erased.
    assert_eq!(commands, [true, false, true, false, false]);
    assert_eq!((guest.wants[3].len, guest.wants[3].write), (32, 0), "as long as a command");
    assert_eq!(guest.word(DEVICES + 8 * 8), 0);
}

#[test]
fn a_far_next_device_is_as_far_as_the_entry_can_say() {
    let mut guest = Guest::with_devices(1, VALID | DEVICES | 7);
    guest.map(1, 0, 8192, 0);
    guest.map(0xffff, 0xffff, 8193, 0);
    saved(&mut guest);
    assert_eq!(guest.word(DEVICES + 8) >> 49 & 0x3fff, 0x3fff);
    let mut other = restored(&mut guest, 1);
    assert_eq!((other.send(1, 0), other.send(0xffff, 0xffff), other.take(0).len()), (1, 1, 2));
}

#[test]
fn another_vm_goes_on_with_what_was_saved() {
    let mut guest = Guest::new(2);
    guest.map(8, 0, 8192, 0);
    guest.map(8, 1, 8200, 1);
    guest.map(9, 5, 8305, 1);
    guest.configure(8192, 0xa0);
    guest.command([8 << 32 | 0x0c, 0, 0]);
    assert_eq!((guest.send(8, 1), guest.send(8, 0)), (1, 1));
    saved(&mut guest);
    assert_eq!(guest.peek(PENDING + 0x10_0000 + 8200 / 8, 1), [1 << (8200 % 8)], "pending in its vCPU's table");
    assert_eq!(guest.peek(PENDING + 8192 / 8, 1), [1], "also one that is not enabled");
    let before = guest.memory.clone();

    let mut other = restored(&mut guest, 2);
    assert_eq!(other.peek(PENDING + 0x10_0000 + 8200 / 8, 1), [0], "it is consumed");
    assert_eq!((other.take(0), other.take(1), other.take(1)), (vec![], vec![8200], vec![]));
    assert_eq!((other.send(9, 5), other.take(1)), (1, vec![8305]));
    other.configure(8192, ENABLED);
    other.command([0x0d, 0, 0]);
    assert_eq!(other.take(0), [8192]);
    assert_eq!((other.send(8, 2), other.send(10, 0)), (0, 0));
    // What it does is what the other would do, and comes out as it went in.
    other.configure(8192, 0xa0);
    other.command([8 << 32 | 0x0c, 0, 0]);
    assert_eq!((other.send(8, 1), other.send(8, 0)), (1, 1));
    saved(&mut other);
    for table in [DEVICES, events(8), events(9), COLLECTIONS, PENDING, PENDING + 0x10_0000] {
        let page = |memory: &std::collections::HashMap<u64, Vec<u8>>| memory.get(&(table / 4096)).cloned();
        assert_eq!(page(&other.memory), page(&before), "{table:#x}");
    }
}

#[test]
fn the_same_vm_goes_back_to_what_was_saved() {
    let mut guest = Guest::new(1);
    guest.map(8, 0, 8192, 0);
    saved(&mut guest);
    let (memory, mut registers) = (guest.memory.clone(), registers(&mut guest));
    guest.map(8, 1, 8193, 0);
    guest.send(8, 1);
    guest.memory = memory;
    assert_eq!(guest.set_its(CTRL, 4, 0), 0, "RESET");
    let ctlr = registers.pop().unwrap().1;
    registers.into_iter().for_each(|(offset, value)| assert_eq!(guest.set_its(REGS, offset, value), 0));
    assert_eq!((guest.set_its(CTRL, RESTORE, 0), guest.set_its(REGS, 0, ctlr)), (0, 0));
    assert_eq!((guest.take(0), guest.send(8, 1), guest.send(8, 0), guest.take(0)), (vec![], 0, 1, vec![8192]));
}

#[test]
fn a_table_of_tables_is_followed() {
    let first = DEVICES + 0x10_0000;
    let mut guest = Guest::with_devices(1, VALID | 1 << 62 | first);
    guest.set_word(first + 8, VALID | DEVICES);
    // Its number is in the second table of devices; there is none for that of the other.
    guest.map(0x2008, 0, 8192, 0);
    saved(&mut guest);
    assert_eq!(guest.word(DEVICES + 8 * 8) & VALID, VALID);
    let mut other = restored(&mut guest, 1);
    assert_eq!((other.send(0x2008, 0), other.take(0)), (1, vec![8192]));
    other.map(0x4000, 0, 8193, 0);
    assert_eq!(other.set_its(CTRL, SAVE, 0), EINVAL, "nowhere to save it");
}

#[test]
fn what_was_taken_away_does_not_come_back() {
    let first = DEVICES + 0x10_0000;
    for (table, of) in [(VALID | DEVICES, 0), (VALID | 1 << 62 | first, first)] {
        let mut guest = Guest::with_devices(1, table);
        if of != 0 {
            guest.set_word(of, VALID | DEVICES);
        }
        for (device, event) in [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0)] {
            guest.map(device, event, 8192 + 8 * device + event, 0);
        }
        saved(&mut guest);
        guest.command([2 << 32 | 0x0f, 0, 0]);
        guest.command([1 << 32 | 0x08, 0, 0]);
        assert_eq!((guest.word(DEVICES + 8), guest.word(events(2))), (0, 0));
        saved(&mut guest);
        let mut other = restored(&mut guest, 1);
        let sent = [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0)].map(|(device, event)| other.send(device, event));
        assert_eq!(sent, [0, 0, 1, 1, 1]);
    }
}

#[test]
fn a_vm_that_has_no_tables_yet_has_nothing_to_save() {
    let mut guest = Guest::bare(1);
    assert_eq!((guest.set_its(CTRL, SAVE, 0), guest.set_its(CTRL, RESTORE, 0), guest.save_pending()), (0, 0, 0));
    assert_eq!((guest.steps, guest.memory.len()), (0, 0));
    let mut without = Driver::new(3, 3, 1);
    assert_eq!(without.set_gic(4, 3, 0), 0);
    assert!(!kserv_its_next(without.vm(), &mut RawWant::default()));
    assert_eq!(Driver::bare(3).set_gic(4, 3, 0), -6);
}

#[test]
fn where_the_vm_has_no_memory_nothing_is_saved_or_restored() {
    let mut guest = Guest::new(1);
    guest.map(8, 0, 8192, 0);
    let (mut other, _) = moved(&mut guest, 1);
    guest.ram = 0..0;
    assert_eq!((guest.save_pending(), guest.set_its(CTRL, SAVE, 0)), (EFAULT, EFAULT));
    guest.ram = RAM;
    saved(&mut guest);
    assert_eq!((guest.send(8, 0), guest.take(0)), (1, vec![8192]), "it goes on as it was");
    other.memory = guest.memory;
    for missing in [COLLECTIONS, DEVICES, events(8), TABLE, PENDING + 1024] {
        other.ram = missing + 0x1000..RAM.end;
        if missing == TABLE {
            other.ram = DEVICES..RAM.end;
        }
        assert_eq!(other.set_its(CTRL, RESTORE, 0), EFAULT, "{missing:#x}");
        other.ram = RAM;
        let memory = other.memory.clone();
        assert!(is_empty(&mut other));
        other.memory = memory;
    }
    assert_eq!(other.set_its(CTRL, RESTORE, 0), 0);
}

#[test]
fn tables_that_make_no_sense_are_refused_and_nothing_is_left_of_them() {
    let device = |bits: u64| VALID | events(1) >> 8 << 5 | (bits - 1);
    let lpi = |lpi: u64, next: u64, collection: u64| next << 48 | lpi << 16 | collection;
    type Words<'a> = &'a [(u64, u64)];
    let cases: [(&str, i32, Words<'_>); 9] = [
        ("a vCPU that is not there", EINVAL, &[(COLLECTIONS, VALID | 2 << 16)]),
        ("a collection twice", -17, &[(COLLECTIONS + 8, VALID)]),
        ("a collection beyond the room", ENOMEM, &[(COLLECTIONS + 8, VALID | 32)]),
        ("events of 17 bits", EINVAL, &[(DEVICES, device(17))]),
        ("no LPI", EINVAL, &[(DEVICES, device(4)), (events(1), lpi(8191, 0, 0))]),
        ("an LPI too high", EINVAL, &[(DEVICES, device(4)), (events(1), lpi(0x1_0000, 0, 0))]),
        ("a collection of nobody's", EINVAL, &[(DEVICES, device(4)), (events(1), lpi(8192, 0, 1))]),
        ("a next event behind the table", EINVAL, &[(DEVICES, device(4)), (events(1), lpi(8192, 16, 0))]),
        (
            "the second of two",
            EINVAL,
            &[(DEVICES, device(4)), (events(1), lpi(8192, 1, 0)), (events(1) + 8, lpi(1, 0, 0))],
        ),
    ];
    for (what, expected, words) in cases {
        let fill = |guest: &mut Guest| words.iter().for_each(|(address, value)| guest.set_word(*address, *value));
        let (outcome, mut guest) = restoring(VALID | DEVICES, fill);
        assert_eq!(outcome, expected, "{what}");
        assert!(is_empty(&mut guest), "{what}");
    }
}

#[test]
fn more_than_there_is_room_for_is_refused() {
    for (devices, each) in [(257, 0), (1, 257), (129, 2)] {
        let (outcome, mut guest) = restoring(VALID | DEVICES, |guest| {
            for device in 0..devices {
                guest.set_word(
                    DEVICES + 8 * device,
                    VALID | u64::from(device + 1 < devices) << 49 | events(device) >> 8 << 5 | 15,
                );
                for event in 0..each {
                    let next = u64::from(event + 1 < each);
                    guest.set_word(events(device) + 8 * event, next << 48 | (8192 + each * device + event) << 16);
                }
            }
        });
        // Those without events are read to the end of their tables.
        assert_eq!(outcome, ENOMEM, "{devices} devices, {each} events");
        assert!(is_empty(&mut guest));
    }
}

#[test]
fn the_work_is_bounded_whatever_the_tables_are() {
    // A table of tables that is one table over and over again, with a device in each place, all with the same 2^16 events, none of which is there.
    let (outcome, guest) = restoring(VALID | 1 << 62 | DEVICES | 0xff, |guest| {
        (0..8).for_each(|n| guest.set_word(DEVICES + 8 * n, VALID | (DEVICES + 0x10_0000)));
        (0..8192).for_each(|n| guest.set_word(DEVICES + 0x10_0000 + 8 * n, VALID | 1 << 49 | events(1) >> 8 << 5 | 15));
    });
    assert_eq!(outcome, ENOMEM);
    assert!(guest.steps <= 256 * (0x1_0000 / 4) + 0x1_0000, "{} steps", guest.steps);
    // No device at all, as far as tables go.
    let (outcome, guest) = restoring(VALID | 1 << 62 | DEVICES | 0xff, |guest| {
        (0..0x10_0000).step_by(8).for_each(|at| guest.set_word(DEVICES + at, VALID | (DEVICES + 0x20_0000)));
    });
    assert_eq!(outcome, 0);
    assert!(guest.steps <= 0x1_0000, "{} steps", guest.steps);
}

#[test]
fn nothing_that_stands_in_the_tables_is_too_much() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let (outcome, mut guest) = restoring(VALID | rng.below(2) << 62 | DEVICES | rng.below(3), |guest| {
            for n in 0..64 {
                // Valid ones, near to each other, in tables of which one may be any other.
                let table = rng.pick(&[DEVICES, COLLECTIONS, EVENTS, PENDING]);
                let entry = match rng.below(4) {
                    0 => rng.next(),
                    1 => VALID | rng.below(3) << 49 | table >> 8 << 5 | rng.below(18),
                    2 => rng.below(3) << 48 | (8190 + rng.below(8)) << 16 | rng.below(3),
                    _ => VALID | table,
                };
                [DEVICES, COLLECTIONS, EVENTS].iter().for_each(|table| {
                    if rng.below(3) == 0 {
                        guest.set_word(table + 8 * n, entry);
                    }
                });
            }
        });
        assert!([0, EFAULT, EINVAL, ENOMEM, -17].contains(&outcome), "{seed}: {outcome}");
        if outcome == 0 {
            let again = (guest.save_pending(), guest.set_its(CTRL, SAVE, 0));
            assert!(again == (0, 0) || again == (0, EINVAL), "{seed}: {again:?}");
        } else {
            assert!(is_empty(&mut guest), "{seed}");
        }
    }
}

#[test]
fn a_walk_that_nobody_ends_is_given_up() {
    let mut guest = Guest::new(1);
    guest.map(8, 0, 8192, 0);
    saved(&mut guest);
    let (mut other, _) = moved(&mut guest, 1);
    assert_eq!(other.driver.set_its(CTRL, RESTORE, 0), 0);
    assert!(kserv_its_next(other.driver.vm(), &mut RawWant::default()));
    let kick = &mut 0;
    assert_eq!((kserv_its_outcome(other.driver.vm(), kick), kserv_its_outcome(other.driver.vm(), kick)), (-4, 0));
    assert!(!kserv_its_next(other.driver.vm(), &mut RawWant::default()));
    assert_eq!(other.set_its(CTRL, RESTORE, 0), 0);
}

#[test]
fn registers_are_user_spaces_as_the_api_says() {
    let mut driver = Driver::bare(3);
    let mut value = 0;
    assert_eq!(kserv_its_has(driver.vm(), REGS, 0), -6, "there is no service");
    assert_eq!((kserv_gic_create_v3(&mut driver), kserv_its_create(driver.vm())), (0, 0));
    for (offset, expected) in
        [(0, 0), (4, 0), (8, 0), (0x80, 0), (0x88, 0), (0x90, 0), (0x100, 0), (0x138, 0), (0xffe8, 0), (0xffd4, 0)]
    {
        assert_eq!(kserv_its_has(driver.vm(), REGS, offset), expected, "{offset:#x}");
    }
    for (offset, expected) in
        [(2, EINVAL), (0xc, EINVAL), (0x84, EINVAL), (0x98, -6), (0x140, -6), (0x1_0000, -6), (u64::MAX - 7, -6)]
    {
        assert_eq!(kserv_its_has(driver.vm(), REGS, offset), expected, "{offset:#x}");
    }
    assert_eq!(kserv_its_get(driver.vm(), REGS, 0, &mut value), -6, "it has no address");
    assert_eq!(driver.set_its(REGS, 0x80, VALID), -6);

    let mut guest = Guest::bare(1);
    assert_eq!(guest.set_its(REGS, 0, 1), 0);
    assert_eq!(guest.get_its(0), 1 << 31, "without tables and a queue it does not go on");
    for (offset, value) in
        [(0x80, VALID | QUEUE_OF_TWO), (0x100, VALID | DEVICES), (0x108, VALID | 1 << 62 | COLLECTIONS)]
    {
        assert_eq!(guest.set_its(REGS, offset, value), 0);
    }
    assert_eq!(guest.get_its(0x108), VALID | 4 << 56 | 7 << 48 | COLLECTIONS | 2 << 8, "one level, pages of 64 KiB");
    assert_eq!((guest.set_its(REGS, 0x90, 0x40), guest.get_its(0x90)), (0, 0x40));
    assert_eq!((guest.set_its(REGS, 0x90, 0x2000), guest.get_its(0x90)), (EINVAL, 0x40));
    assert_eq!((guest.set_its(REGS, 0x88, 0x40), guest.get_its(0x88)), (0, 0x40));
    assert_eq!((guest.set_its(REGS, 8, 0), guest.set_its(REGS, 0xffe8, 0)), (0, 0), "what cannot be written is not");
    let iidr = guest.get_its(4);
    assert_eq!(
        (guest.set_its(REGS, 4, iidr), guest.set_its(REGS, 4, iidr | 1 << 12)),
        (0, EINVAL),
        "there are no tables of revision 1"
    );
    assert_eq!((guest.set_its(REGS, 0, 1), guest.get_its(0)), (0, 1 << 31 | 1));
    assert_eq!(guest.set_its(REGS, 0x90, 0), -16, "it is on");
    assert_eq!((guest.set_its(REGS, 0x80, 0), guest.get_its(0x80)), (0, VALID | QUEUE_OF_TWO));
    assert_eq!(
        (guest.set_its(CTRL, 4, 0), guest.get_its(0), guest.get_its(0x80), guest.get_its(0x88)),
        (0, 1 << 31, 0, 0)
    );
    assert_eq!(guest.get_its(0x100) & VALID, 0, "RESET");
    assert_eq!(guest.load(REDIST + 0x70), TABLE | 15);
}

const QUEUE_OF_TWO: u64 = common::its_guest::QUEUE | 1;

fn kserv_gic_create_v3(driver: &mut Driver) -> i32 {
    kserv_linux_model::kserv_gic_create(driver.vm(), 3)
}

#[test]
fn commands_wait_until_user_space_puts_it_on() {
    let mut guest = Guest::new(1);
    guest.map(8, 0, 8192, 0);
    saved(&mut guest);
    // A command that was not done yet when it was saved.
    guest.configure(8193, ENABLED);
    let command: Vec<u8> = [8 << 32 | 0x0a, 8193 << 32 | 1, 0, 0_u64].into_iter().flat_map(u64::to_le_bytes).collect();
    guest.poke(common::its_guest::QUEUE + guest.tail, &command);
    let (mut other, ctlr) = moved(&mut guest, 1);
    let tail = guest.tail + 32;
    assert_eq!((other.set_its(REGS, 0x88, tail), other.set_its(CTRL, RESTORE, 0)), (0, 0));
    assert_eq!((other.get_its(0x90), other.get_its(0)), (tail - 32, 0), "not quiescent");
    assert_eq!((other.set_its(REGS, 0, ctlr), other.get_its(0x90), other.get_its(0)), (0, tail, 1 << 31 | 1));
    assert_eq!((other.send(8, 1), other.take(0)), (1, vec![8193]));
}

#[test]
fn tables_that_the_vm_takes_away_are_forgotten() {
    let mut guest = Guest::new(1);
    guest.map(8, 0, 8192, 0);
    guest.driver.store(0, ITS, 0);
    guest.store(ITS + 0x108, COLLECTIONS);
    guest.store(ITS + 0x108, VALID | COLLECTIONS);
    guest.driver.store(0, ITS, 1);
    assert_eq!((guest.send(8, 0), guest.take(0)), (0, vec![]), "its collection is nobody's");
    guest.driver.store(0, ITS, 0);
    guest.store(ITS + 0x100, DEVICES);
    guest.store(ITS + 0x100, VALID | DEVICES);
    guest.driver.store(0, ITS, 1);
    assert_eq!(guest.send(8, 0), 0);
}
