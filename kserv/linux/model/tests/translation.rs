//! MSIs of a VM with GICv3: its commands, its configuration, its interrupts.
#![allow(missing_docs)]

mod common;

use common::Driver;
use common::its_guest::{DOORBELL, ENABLED, Guest, ITS, PENDING, RAM, REDIST, TABLE, VALID};
use corevisor_interface::mailbox::ExitReason;
use kserv_linux_model::its::*;
use kserv_linux_model::*;

const EBUSY: i32 = -16;

#[test]
fn a_service_is_made_once_with_gicv3_only_and_says_what_it_can() {
    let mut driver = Driver::bare(2);
    assert_eq!(kserv_its_create(driver.vm()), -19);
    assert_eq!(unsafe_msi(&mut driver), -19);
    let mut driver = Driver::bare(3);
    assert_eq!(kserv_its_create(driver.vm()), -19);
    assert_eq!(
        (kserv_gic_create(driver.vm(), 3), kserv_its_create(driver.vm()), kserv_its_create(driver.vm())),
        (0, 0, -17)
    );
    assert_eq!(
        (kserv_its_has(driver.vm(), 0, 4), kserv_its_has(driver.vm(), 4, 0), kserv_its_has(driver.vm(), 4, 4)),
        (0, 0, 0)
    );
    assert_eq!((kserv_its_has(driver.vm(), 4, 1), kserv_its_has(driver.vm(), 4, 2)), (0, 0));
    assert_eq!((kserv_its_has(driver.vm(), 4, 3), kserv_its_has(driver.vm(), 7, 0)), (-6, -6));
    assert_eq!((driver.set_its(0, 4, ITS + 0x1000), driver.set_its(0, 4, 1 << 50)), (-22, -7));
    assert_eq!((driver.set_its(0, 4, ITS), driver.set_its(0, 4, ITS)), (0, -17));
    let mut value = 0;
    assert_eq!((kserv_its_get(driver.vm(), 0, 4, &mut value), value), (0, ITS));
    assert_eq!(driver.set_gic(0, 2, ITS), -22, "the distributor would be over it");
    assert_eq!(kserv_its_create(Driver::new(3, 3, 1).vm()), -16);
}

fn unsafe_msi(driver: &mut Driver) -> i32 {
    // SAFETY: `kicks` is the driver's.
    unsafe { kserv_msi(driver.vm(), DOORBELL, 0, 0, true, &raw mut driver.kicks) }
}

#[test]
fn registers_say_what_linux_looks_for() {
    let mut guest = Guest::new(2);
    assert_eq!(guest.driver.load(0, 0x800_0004) & (1 << 17 | 31 << 19), 1 << 17 | 15 << 19, "LPIs, 16 bits");
    assert_eq!(guest.driver.load(0, REDIST + 8) & 1, 1, "GICR_TYPER.PLPIS");
    assert_eq!(guest.driver.load(0, ITS), 0x8000_0001);
    assert_eq!(guest.load(ITS + 8) & 1, 1);
    assert_eq!(guest.load(REDIST + 0x70), TABLE | 15);
    assert_eq!(guest.load(REDIST + 0x78), PENDING, "PTZ reads as zero");
    guest.store(ITS + 0x100, u64::MAX);
    assert_eq!(guest.load(ITS + 0x100) >> 56 & 7, 1, "unchanged while it is on, and a table of devices");
    assert_eq!((guest.driver.load(0, ITS + 0xffe8) >> 4) & 15, 3);
    let mut without = Driver::new(3, 3, 1);
    assert_eq!((without.load(0, 0x800_0004) >> 17 & 1, without.load(0, REDIST + 8) & 1), (0, 0));
    without.store(0, REDIST, 1);
    assert_eq!(without.load(0, REDIST), 0);
}

#[test]
fn a_message_is_an_lpi_at_the_vcpu_of_its_collection() {
    let mut guest = Guest::new(2);
    guest.map(8, 0, 8192, 0);
    guest.map(8, 1, 8200, 1);
    guest.driver.kicks = 0;
    assert_eq!((guest.send(8, 1), guest.driver.kicks), (1, 2));
    assert_eq!((guest.take(0), guest.take(1), guest.take(1)), (vec![], vec![8200], vec![]));
    assert_eq!((guest.send(8, 0), guest.send(8, 0)), (1, 1));
    assert_eq!((guest.take(0), guest.take(0)), (vec![8192], vec![]), "two messages before it ran are one interrupt");
    assert_eq!((guest.send(8, 2), guest.send(9, 0)), (0, 0), "of nobody");
    // SAFETY: `kicks` is the driver's.
    let elsewhere = |guest: &mut Guest, address, has| unsafe {
        kserv_msi(guest.driver.vm(), address, 0, 8, has, &raw mut guest.driver.kicks)
    };
    assert_eq!((elsewhere(&mut guest, DOORBELL + 4, true), elsewhere(&mut guest, DOORBELL, false)), (-22, -22));
}

#[test]
fn an_lpi_that_is_in_a_list_register_comes_again_after_a_message_meanwhile() {
    let mut guest = Guest::new(1);
    guest.map(1, 0, 8193, 0);
    guest.send(1, 0);
    assert_eq!(guest.enter(0), [8193]);
    assert_eq!(guest.send(1, 0), 1);
    // Acknowledged, not ended.
    let lr = &mut guest.driver.mailboxes[0].lr[0];
    *lr = *lr & !(3 << 62) | 2 << 62;
    guest.driver.exit(0, ExitReason::Irq);
    assert_eq!(guest.enter(0), [8193]);
    guest.end(0);
    assert_eq!(guest.take(0).len() + guest.take(0).len(), 0, "it was pending and active in one register");
}

#[test]
fn an_lpi_of_several_events_is_one_interrupt() {
    let mut guest = Guest::new(2);
    (0..3).for_each(|event| guest.map(1, event, 8192, 0));
    (0..3).for_each(|event| assert_eq!(guest.send(1, event), 1));
    assert_eq!(guest.enter(0), [8192], "in one list register");
    // It comes once more by another event, while it is there.
    guest.send(1, 2);
    guest.end(0);
    assert_eq!((guest.take(0), guest.take(0)), (vec![8192], vec![]));
    // What configures it by one event does so for all.
    guest.configure(8192, ENABLED & !1);
    guest.command([1 << 32 | 0x0c, 2, 0]);
    guest.send(1, 0);
    assert_eq!(guest.take(0), []);
    guest.configure(8192, ENABLED);
    guest.command([1 << 32 | 0x0c, 1, 0]);
    assert_eq!(guest.take(0), [8192]);
    // It outlives the event by which it came, and ends by any.
    guest.send(1, 0);
    guest.command([1 << 32 | 0x0f, 0, 0]);
    assert_eq!((guest.take(0), guest.take(0)), (vec![8192], vec![]));
    guest.send(1, 1);
    guest.command([1 << 32 | 0x04, 2, 0]);
    assert_eq!(guest.take(0), []);
    // The one by which it came last says where.
    guest.command([1 << 32 | 0x01, 2, 1]);
    (1..3).for_each(|event| assert_eq!(guest.send(1, event), 1));
    assert_eq!((guest.take(0), guest.take(1)), (vec![], vec![8192]));
    guest.send(1, 2);
    guest.command([1 << 32 | 0x08, 0, 0]);
    assert_eq!((guest.take(0), guest.take(1)), (vec![], vec![]), "with all events it is gone");
}

#[test]
fn an_lpi_is_silent_until_its_configuration_says_otherwise_and_is_read_again() {
    let mut guest = Guest::new(1);
    guest.map(1, 0, 8300, 0);
    guest.configure(8300, 0xa0);
    guest.command([1 << 32 | 0x0c, 0, 0]);
    guest.send(1, 0);
    assert_eq!(guest.take(0), []);
    guest.configure(8300, ENABLED);
    assert_eq!(guest.take(0), [], "nobody has read it");
    guest.command([0x0d, 0, 0]);
    assert_eq!(guest.take(0), [8300]);
}

/// As a kernel finds it that another one has started: with the other's translations, and nothing of what came before it enabled LPIs.
#[test]
fn a_redistributor_that_takes_no_lpis_loses_them() {
    let mut guest = Guest::new(2);
    guest.map(1, 0, 8192, 0);
    guest.map(1, 1, 8193, 1);
    assert_eq!((guest.send(1, 0), guest.send(1, 1)), (1, 1));
    guest.driver.store(0, REDIST, 0);
    assert_eq!((guest.send(1, 0), guest.send(1, 1)), (EBUSY, 1));
    guest.command([1 << 32 | 0x03, 0, 0]);
    guest.driver.store(0, REDIST, 1);
    assert_eq!(
        (guest.take(0), guest.take(1)),
        (vec![], vec![8193]),
        "what was pending, a message and INT; not the other's"
    );
    assert_eq!((guest.send(1, 0), guest.take(0)), (1, vec![8192]));
    // Nor has a service that is off any.
    guest.driver.store(0, ITS, 0);
    assert_eq!((guest.send(1, 0), guest.send(9, 9)), (EBUSY, EBUSY));
    guest.driver.store(0, ITS, 1);
    assert_eq!(guest.take(0), []);
    // Or a collection of nobody's.
    guest.command([0x09, 0, 0]);
    assert_eq!(guest.send(1, 0), 0);
    guest.command([0x09, 0, VALID]);
    assert_eq!((guest.take(0), guest.send(1, 0), guest.take(0)), (vec![], 1, vec![8192]));
}

#[test]
fn translations_move_and_end() {
    let mut guest = Guest::new(2);
    guest.map(1, 0, 8192, 0);
    guest.map(1, 1, 8193, 0);
    guest.map(2, 0, 8194, 0);
    guest.command([1 << 32 | 0x01, 0, 1]);
    guest.send(1, 0);
    assert_eq!((guest.take(0), guest.take(1)), (vec![], vec![8192]), "MOVI");
    guest.command([0x09, 0, VALID | 1 << 16]);
    guest.send(1, 1);
    assert_eq!((guest.take(0), guest.take(1)), (vec![], vec![8193]), "MAPC to another vCPU");
    guest.command([1 << 32 | 0x03, 1, 0]);
    assert_eq!(guest.take(1), [8193], "INT");
    guest.command([1 << 32 | 0x03, 1, 0]);
    guest.command([1 << 32 | 0x04, 1, 0]);
    assert_eq!(guest.take(1), [], "CLEAR");
    guest.send(1, 1);
    guest.command([1 << 32 | 0x0f, 1, 0]);
    assert_eq!((guest.take(1), guest.send(1, 1)), (vec![], 0), "DISCARD");
    guest.command([1 << 32 | 0x08, 0, 0]);
    assert_eq!((guest.send(1, 0), guest.send(2, 0)), (0, 1), "MAPD without V");
    assert_eq!(guest.take(1), [8194]);
    assert_eq!((guest.driver.set_its(4, 4, 0), guest.send(2, 0)), (0, EBUSY), "RESET");
}

#[test]
fn commands_that_make_no_sense_and_queues_that_are_not_there_stop_nothing() {
    let mut guest = Guest::new(1);
    guest.map(1, 0, 8191, 0);
    guest.map(1, 1, 0x1_0000, 0);
    guest.map(1, 2, 8192, 31);
    guest.map(1, 3, 8193, 999);
    guest.map(1, 0x1_0000, 8194, 0);
    guest.command([2 << 32 | 0x0a, 8195 << 32, 0]);
    assert_eq!((guest.send(1, 0), guest.send(1, 1), guest.send(1, 3)), (0, 0, 0));
    assert_eq!(
        (guest.send(1, 0x1_0000), guest.send(2, 0)),
        (0, 0),
        "an event that it cannot have, a device that is not mapped"
    );
    assert_eq!(guest.send(1, 2), 0, "a collection that nobody has");
    for number in [0x00, 0x02, 0x05, 0x0e, 0x10, 0xff] {
        guest.command([number, u64::MAX, u64::MAX]);
    }
    // Nothing is there to read: passed over.
    guest.ram = 0..0;
    guest.tail = (guest.tail + 64) % 4096;
    let tail = guest.tail;
    guest.store(ITS + 0x88, tail);
    assert_eq!(guest.load(ITS + 0x90), tail);
    // Behind the queue's end.
    guest.store(ITS + 0x88, 0x1000);
    assert_eq!(guest.load(ITS + 0x90), tail);
    guest.store(ITS + 0x88, tail);
    guest.ram = RAM;
    guest.map(1, 3, 8195, 0);
    assert_eq!((guest.send(1, 3), guest.take(0)), (1, vec![8195]));
}

#[test]
fn there_is_room_for_256_translations() {
    let mut guest = Guest::new(1);
    (0..300).for_each(|n| guest.map(n / 8, n % 8, 8192 + n, 0));
    let sent = (0..300).filter(|n| guest.send(n / 8, n % 8) == 1).count();
    assert_eq!(sent, 256);
    let mut taken: Vec<u64> = (0..64).flat_map(|_| guest.take(0)).collect();
    taken.sort_unstable();
    assert_eq!(taken, (8192..8192 + 256).collect::<Vec<u64>>());
}

/// A kernel that another one starts (kexec, kdump) leaves the LPIs of the other vCPUs enabled.
#[test]
fn a_vcpu_that_takes_no_lpis_itself_may_say_where_their_configuration_is() {
    let mut guest = Guest::new(2);
    guest.map(1, 0, 8192, 0);
    let moved = TABLE + 0x10_0000;
    guest.store(REDIST + 0x70, moved | 15);
    assert_eq!(guest.load(REDIST + 0x70), TABLE | 15, "it has its own enabled");
    guest.driver.store(0, REDIST, 0);
    guest.store(REDIST + 0x70, moved | 15);
    assert_eq!((guest.load(REDIST + 0x70), guest.driver.load(1, REDIST + 0x2_0000)), (moved | 15, 1));
    guest.driver.store(0, REDIST, 1);
    guest.poke(moved, &[ENABLED & !1]);
    guest.command([0x0d, 0, 0]);
    assert_eq!((guest.send(1, 0), guest.take(0)), (1, vec![]), "off by what stands there");
    guest.poke(moved, &[ENABLED]);
    guest.command([0x0d, 0, 0]);
    assert_eq!(guest.take(0), [8192]);
}
