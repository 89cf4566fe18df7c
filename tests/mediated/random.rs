//! Random accesses of a host to all three kinds of pages, next to `spec::mmio`: what it loads, what the ITS is given, what is lent, compared after each.

use std::collections::BTreeMap;

use corevisor::abstract_machine::Machine;
use corevisor::abstract_machine::addr::{Pa, Pfn};
use corevisor::spec::invariants::View;
use corevisor::spec::mmio::{Gicr, Given, Its, gicr_store, its_load, its_run, its_store, load};
use corevisor_evidence::{Rng, factor, tell};

use super::{
    BASER, Bed, CBASER, CORES, CREADR, CTLR, CWRITER, GICR, ITS, PENDBASER, PROPBASER, QUEUE, RAM, TABLES, TYPER,
    VALID, VLPI, bed,
};

const GICR_OFFSETS: [u64; 10] = [CTLR, 0x04, TYPER, 0x14, 0x40, PROPBASER, 0x74, PENDBASER, 0x7c, 0xa0];
const ITS_OFFSETS: [u64; 15] =
    [CTLR, 0x04, TYPER, 0x0c, 0x40, CBASER, 0x84, CWRITER, 0x8c, CREADR, BASER, 0x104, 0x108, 0x138, 0x13c];

/// Code and specification.
struct Both {
    bed: Bed,
    gicr: Gicr,
    its: Its,
    /// Where each device's table is.
    tables: BTreeMap<u32, u64>,
    /// What the specification's ITS was given and the code's is still to be compared with.
    expected: Vec<Given>,
    /// Where the next command stands in the core's queue.
    at: u64,
}

impl Both {
    fn new() -> Self {
        let bed = bed();
        let words = [CTLR, TYPER].map(|register| (register, bed.real(ITS + register))).into();
        let mut fixed = [0; 8];
        (fixed[0], fixed[1]) = (VALID | 1 << 56 | 7 << 48, VALID | 4 << 56 | 7 << 48);
        let its = Its { words, fixed, ..Its::default() };
        Self { bed, gicr: Gicr::new(), its, tables: BTreeMap::new(), expected: vec![], at: 0 }
    }

    fn load(&mut self, frame: u64, offset: u64, size: u64) {
        let loaded = self.bed.load(frame + offset, size);
        if frame == ITS && offset & !7 == CREADR {
            self.run();
            self.compare_given();
        }
        let expected = match frame {
            GICR => load(&self.gicr, offset, size),
            VLPI => 0,
            _ => its_load(&self.its, offset, size),
        };
        assert_eq!(loaded, expected, "{frame:#x} + {offset:#x}, {size} bytes");
    }

    fn store(&mut self, frame: u64, offset: u64, size: u64, value: u64) {
        self.bed.store(frame + offset, size, value);
        match frame {
            GICR => {
                let (s, gicr) = (self.bed.world.spec.clone(), std::mem::take(&mut self.gicr));
                (self.bed.world.spec, self.gicr) = gicr_store(s, gicr, offset, size, value, 16);
            }
            VLPI => {}
            _ => {
                self.its = its_store(std::mem::take(&mut self.its), offset, size, value);
                self.run();
            }
        }
        self.compare_given();
    }

    /// The specification's ITS runs; what it is given is compared when the code's has run too.
    fn run(&mut self) {
        let world = &self.bed.world;
        let read = |at: Pa| {
            let mut words = [0; 4];
            world.sim().read_page(Pfn::containing(at), (at.raw() % 4096 / 8) as usize, &mut words);
            words
        };
        let (its, given) = its_run(&world.spec, std::mem::take(&mut self.its), 64, read);
        self.its = its;
        self.expected.extend(given);
    }

    /// The code's ITS was given the same, with tables of the core's own.
    fn compare_given(&mut self) {
        let stores = std::mem::take(&mut self.bed.registers.lock().unwrap().stores);
        let given = stores.iter().filter(|store| store.0 == ITS + CWRITER).count();
        assert_eq!(given, self.expected.len(), "commands given: {:x?}", self.expected);
        for expected in std::mem::take(&mut self.expected) {
            let words = self.bed.given(self.at / 32);
            self.at = (self.at + 32) % 4096;
            match expected {
                Given::Command(command) => {
                    assert_eq!(words, command);
                    if command[0] & 0xff == 0x08 {
                        self.tables.remove(&((command[0] >> 32) as u32));
                    }
                }
                Given::Map(device, events) => self.compare_map(device, events, words),
            }
        }
        assert_eq!(self.bed.real(ITS + CWRITER), self.at);
    }

    fn compare_map(&mut self, device: u32, events: u32, [first, second, third, last]: [u64; 4]) {
        assert_eq!((first, second, last), (0x08 | u64::from(device) << 32, u64::from(events) - 1, 0));
        let (table, sim) = (third & !VALID, self.bed.world.sim());
        assert!(third & VALID != 0 && table % 4096 == 0 && sim.pool().contains(Pa::new(table)), "{third:#x}");
        self.tables.remove(&device);
        assert!(!self.tables.values().any(|other| *other == table), "{table:#x} is two devices'");
        self.tables.insert(device, table);
    }

    /// What is lent, and what is the core's, is what the specification says.
    fn compare_pages(&self) {
        assert_eq!(View::of(self.bed.world.core.memory()).foreign, self.bed.world.spec.pages);
    }
}

/// A register's value: mostly an address that matters, with bits that matter.
fn value(rng: &mut Rng) -> u64 {
    let address = rng.pick(&[TABLES, TABLES + 0x1_0000, QUEUE, CORES, CORES & !0xffff, RAM + (4 << 20), RAM, 0]);
    let low = rng.pick(&[0, 0xf, 0xb, 1, 3, 0x1f, 0x20, 0x40, 0xfe0]);
    match rng.below(8) {
        0 => rng.next(),
        1 => rng.below(130) * 32,
        2 => rng.below(2),
        _ => VALID & rng.next() | address | low,
    }
}

/// A command: mostly one that exists, of a few devices.
fn command(rng: &mut Rng) -> [u64; 4] {
    let code = rng.pick(&[1, 3, 4, 5, 8, 8, 8, 9, 10, 11, 12, 13, 14, 15, 0x29, 0, 0xff]);
    let device = rng.pick(&[0, 1, 2, 0x108, 0x7fff, 0xffff, 0x1_0000, 0xffff_ffff]);
    [code | device << 32 | rng.next() & 0xff00, rng.below(40), VALID & rng.next() | CORES, rng.next()]
}

fn step(both: &mut Both, rng: &mut Rng) {
    let size = rng.pick(&[4, 8]);
    let frame = rng.pick(&[GICR, ITS, ITS, ITS, VLPI]);
    let offset = rng.pick(if frame == ITS { &ITS_OFFSETS[..] } else { &GICR_OFFSETS[..] }) / size * size;
    match rng.below(10) {
        0..=2 => both.load(frame, offset, size),
        3..=5 => both.store(frame, offset, size, value(rng)),
        // An ITS that is on, with a queue, gets commands.
        6 => both.store(ITS, CTLR, 4, 1),
        7 => both.store(ITS, CBASER, 8, VALID | QUEUE),
        8 => {
            for n in 0..rng.below(20) {
                let at = QUEUE + (both.its.reader + 32 * n) % 4096;
                both.bed.world.sim().write_page(Pfn::new(at >> 12), (at % 4096 / 8) as usize, &command(rng));
            }
            let writer = (both.its.reader + 32 * rng.below(20)) % 4096;
            both.store(ITS, CWRITER, 8, writer);
        }
        _ => {
            let page = Pfn::containing(Pa::new(rng.pick(&[QUEUE, TABLES + 0x3000, TABLES + 0x1_1000])));
            if both.bed.world.assign_page_to_core(page).is_err() {
                let _ = both.bed.world.return_page_to_host(page);
            }
        }
    }
}

#[test]
fn random_accesses_lead_to_what_the_specification_says() {
    let (machines, steps) = (20 * factor() as u64, 600);
    let mut given = 0;
    for seed in 1..=machines {
        let (mut both, mut rng) = (Both::new(), Rng::new(seed));
        for n in 0..steps {
            step(&mut both, &mut rng);
            if n % 20 == 0 {
                both.compare_pages();
            }
        }
        both.compare_pages();
        given += both.tables.len() as u64;
    }
    assert!(given > machines, "hardly any device has a table: {given}");
    tell("accesses to registers behind the core", &[("machines", machines), ("accesses", machines * steps)]);
}
