//! A GICv3's registers behind the core: a machine with them, and random accesses of the host next to `spec::mmio`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use corevisor::abstract_machine::Machine;
use corevisor::abstract_machine::addr::{PAGE_SIZE, Pa, Pfn, PhysRange};
use corevisor::abstract_machine::regs::TrapFrame;
use corevisor::abstract_machine::sim::{Trapped, run_as};
use corevisor::mmio::its::{Its, Level1, Setup};
use corevisor::mmio::{Frame, FrameKind, MOST_ITS, Mediated};
use corevisor::spec::invariants::View;
use corevisor::spec::mmio::{self as spec, Gicr, Given, gicr_store, its_load, its_run, its_store};
use corevisor::spec::world::{Layout, World};
use corevisor::trap::trap_handler::host_trap_handler;
use corevisor_evidence::Rng;

pub const ITS: u64 = 0x0808_0000;
pub const GICR: u64 = 0x080a_0000;
pub const VLPI: u64 = 0x080c_0000;
pub const RAM: u64 = 0x4000_0000;
pub const POOL: u64 = RAM + 0x10_0000;
/// A page of the core's.
pub const CORES: u64 = POOL + 0x1000;
/// Where the host has its tables, and its queue.
pub const TABLES: u64 = RAM + 0x20_0000;
pub const QUEUE: u64 = RAM + 0x30_0000;

pub const CTLR: u64 = 0x00;
pub const TYPER: u64 = 0x08;
pub const PROPBASER: u64 = 0x70;
pub const PENDBASER: u64 = 0x78;
pub const CBASER: u64 = 0x80;
pub const CWRITER: u64 = 0x88;
pub const CREADR: u64 = 0x90;
pub const BASER: u64 = 0x100;
pub const VALID: u64 = 1 << 63;
/// Of GITS_CWRITER.
pub const RETRY: u64 = 1;
/// Of GITS_CREADR.
pub const STALLED: u64 = 1;

pub const PC: u64 = 0xffff_8000_0000_4444;
pub const VBAR: u64 = 0xffff_8000_1000_0000;

/// Doublewords of registers, and every store: address, bytes, value.
#[derive(Default)]
pub struct Registers {
    pub values: BTreeMap<u64, u64>,
    pub stores: Vec<(u64, u64, u64)>,
    /// Loads from GITS_CREADR.
    pub asked: usize,
    /// The ITS does not take its commands.
    pub deaf: bool,
    /// Places in its queue of commands that the ITS refuses: it stands there until it is told to try again, when another one is there.
    pub refused: BTreeSet<u64>,
}

impl Registers {
    fn access(&mut self, at: u64, size: u64, store: Option<u64>) -> u64 {
        let (register, shift) = (at & !7, at % 8 * 8);
        let mask = if size == 8 { u64::MAX } else { u64::from(u32::MAX) << shift };
        if let Some(value) = store {
            self.stores.push((at, size, value));
            let old = self.values.get(&register).copied().unwrap_or(0);
            self.values.insert(register, old & !mask | value << shift & mask);
            if register == ITS + CWRITER {
                self.values.insert(register, value & !RETRY);
                self.run_its(value);
            }
        } else if register == ITS + CREADR {
            self.asked += 1;
        }
        (self.values.get(&register).copied().unwrap_or(0) & mask) >> shift
    }

    /// The ITS goes on with its commands up to where GITS_CWRITER, now `written`, says.
    pub fn run_its(&mut self, written: u64) {
        let reader = self.values.get(&(ITS + CREADR)).copied().unwrap_or(0);
        let (mut at, stalled) = (reader & !STALLED, reader & STALLED != 0);
        if self.deaf || stalled && written & RETRY == 0 {
            return;
        }
        if stalled {
            self.refused.remove(&at);
        }
        while at != written & !RETRY {
            if self.refused.contains(&at) {
                at |= STALLED;
                break;
            }
            at = (at + 32) % 4096;
        }
        self.values.insert(ITS + CREADR, at);
    }
}

pub struct Bed {
    pub world: World,
    pub registers: Arc<Mutex<Registers>>,
    /// The core's queue.
    pub queue: Pa,
    /// The first level of the device table.
    pub level1: PhysRange,
}

/// A redistributor, its page of virtual LPIs, and an ITS of 16 bits of devices with a device table of two levels, on.
pub fn bed() -> Bed {
    bed_with(16)
}

/// The same with a GIC of so many bits of interrupt numbers.
pub fn bed_with(lpi_bits: u32) -> Bed {
    bed_of(lpi_bits, 16, 0)
}

/// The same with an ITS of so many bits of devices, whose tables have pages of `4 KiB << page_order`.
pub fn bed_of(lpi_bits: u32, device_bits: u32, page_order: u32) -> Bed {
    let regions = vec![(RAM, 4 << 20, true)];
    let mut world = World::new(&Layout { regions, pool: POOL, pool_pages: 200, ia_bits: 40, cpus: 2, smmu: None });
    let registers = Arc::new(Mutex::new(Registers::default()));
    let inside = registers.clone();
    world.sim().set_registers(Box::new(move |at, size, store| inside.lock().unwrap().access(at.raw(), size, store)));
    let shape = Level1::new(device_bits, page_order, 8);
    assert_eq!(shape.device_bits, device_bits);
    let [queue, base] = [0, shape.order].map(|order| world.sim().alloc_table(order).unwrap());
    let level1 = PhysRange::new(base, PAGE_SIZE << shape.order).unwrap();
    world.sim().publish_tables();
    world.sim().load_its(Pa::new(ITS + CWRITER), Some(level1));
    let mut basers = [0; 8];
    (basers[0], basers[1]) = (VALID | 1 << 56 | 7 << 48, VALID | 4 << 56 | 7 << 48);
    let setup = Setup {
        frame: Pa::new(ITS),
        queue,
        level1: Some(level1),
        page_order,
        device_entry: 8,
        itt_entry: 12,
        device_bits,
        basers,
    };
    let mut its = [const { None }; MOST_ITS];
    its[0] = Some(Box::leak(Box::new(Its::new(setup))));
    let frames = vec![
        Frame { at: Pa::new(ITS), kind: FrameKind::Its(0) },
        Frame { at: Pa::new(GICR), kind: FrameKind::Redistributor },
        Frame { at: Pa::new(VLPI), kind: FrameKind::VirtualLpis },
    ];
    let core = world.core;
    world.core = core.with_mediated(Some(Mediated::new(frames.leak(), lpi_bits, its)));
    let mut all = registers.lock().unwrap();
    all.values.insert(ITS + CTLR, 1);
    all.values.insert(ITS + TYPER, 1 | 1 << 1 | 0xb << 4 | 0xf << 8 | 0x13 << 13 | 1 << 37 | 1 << 40);
    drop(all);
    Bed { world, registers, queue, level1 }
}

impl Bed {
    /// The host's access with this syndrome, by an instruction of 4 bytes, or with bit 25 (IL) of 2: x0 to x30 afterwards, and whether it went on (not: it took an abort).
    pub fn trap(&mut self, at: u64, iss: u64, x: [u64; 31]) -> ([u64; 31], bool) {
        run_as(0);
        let esr = 0x24 << 26 | (iss ^ 1 << 25) | 0b00_0111;
        let far = 0xffff_0000_0000_0000 | at;
        let trapped =
            Trapped { esr, far, hpfar: at & !0xfff, pc: PC, pstate: 0x5, vbar_el1: VBAR, ..Trapped::default() };
        self.world.sim().set_trapped(0, trapped);
        let mut frame = TrapFrame { x, sp: 0 };
        host_trap_handler(&self.world.core, &mut frame);
        let pc = self.world.sim().trapped(0).pc;
        assert!(pc == PC + 4 || pc == VBAR + 0x200, "{at:#x}: {pc:#x}");
        let violations = self.world.sim().violations_at_rest();
        assert!(violations.is_empty(), "{at:#x}: {violations:?}");
        (frame.x, pc == PC + 4)
    }

    /// An aligned load by x3.
    pub fn load(&mut self, at: u64, size: u64) -> u64 {
        let (x, went_on) = self.trap(at, described(size, 3, false), [0x5a5a_5a5a_5a5a_5a5a; 31]);
        assert!(went_on, "{at:#x}");
        x[3]
    }

    /// An aligned store of x3.
    pub fn store(&mut self, at: u64, size: u64, value: u64) {
        let mut x = [0x5a5a; 31];
        x[3] = value;
        assert!(self.trap(at, described(size, 3, true), x).1, "{at:#x}");
    }

    /// What the register really holds.
    pub fn real(&self, at: u64) -> u64 {
        self.registers.lock().unwrap().values.get(&at).copied().unwrap_or(0)
    }

    /// The host puts commands into its queue, from command `first` on, and moves GITS_CWRITER behind them.
    pub fn commands(&mut self, first: u64, commands: &[[u64; 4]]) {
        for (n, words) in (first..).zip(commands) {
            let at = QUEUE + n % 128 * 32;
            self.world.sim().write_page(Pfn::containing(Pa::new(at)), (at % 0x1000 / 8) as usize, words);
        }
        self.store(ITS + CWRITER, 8, (first + commands.len() as u64) % 128 * 32);
    }

    /// The command at this place in the core's queue.
    pub fn given(&self, n: u64) -> [u64; 4] {
        [0, 1, 2, 3].map(|word| self.world.sim().pt_load(Pa::new(self.queue.raw() + n * 32 + word * 8)))
    }

    pub fn set_queue(&mut self, at: u64) {
        self.store(ITS + CBASER, 8, VALID | at);
    }
}

/// The syndrome of a load or a store that is described.
pub fn described(size: u64, register: u64, write: bool) -> u64 {
    let sas = size.trailing_zeros() as u64;
    1 << 24 | sas << 22 | register << 16 | u64::from(size == 8) << 15 | u64::from(write) << 6
}

const GICR_OFFSETS: [u64; 10] = [CTLR, 0x04, TYPER, 0x14, 0x40, PROPBASER, 0x74, PENDBASER, 0x7c, 0xa0];
const ITS_OFFSETS: [u64; 15] =
    [CTLR, 0x04, TYPER, 0x0c, 0x40, CBASER, 0x84, CWRITER, 0x8c, CREADR, BASER, 0x104, 0x108, 0x138, 0x13c];

/// Code and specification.
pub struct Both {
    bed: Bed,
    gicr: Gicr,
    its: spec::Its,
    /// Where each device's table is.
    pub tables: BTreeMap<u32, u64>,
    /// What the specification's ITS was given and the code's is still to be compared with.
    expected: Vec<Given>,
    /// Where the next command stands in the core's queue.
    at: u64,
}

impl Both {
    /// With an ITS of so many bits of devices.
    pub fn new(device_bits: u32) -> Self {
        let bed = bed_of(16, device_bits, 0);
        let words = [CTLR, TYPER].map(|register| (register, bed.real(ITS + register))).into();
        let mut fixed = [0; 8];
        (fixed[0], fixed[1]) = (VALID | 1 << 56 | 7 << 48, VALID | 4 << 56 | 7 << 48);
        let its = spec::Its { words, fixed, device_bits, ..spec::Its::default() };
        Self { bed, gicr: Gicr::new(), its, tables: BTreeMap::new(), expected: vec![], at: 0 }
    }

    fn load(&mut self, frame: u64, offset: u64, size: u64) {
        let loaded = self.bed.load(frame + offset, size);
        if frame == ITS && offset & !7 == CREADR {
            self.run();
            self.compare_given();
        }
        let expected = match frame {
            GICR => spec::load(&self.gicr, offset, size),
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
    pub fn compare_pages(&self) {
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
pub fn command(rng: &mut Rng) -> [u64; 4] {
    let code = rng.pick(&[1, 3, 4, 5, 8, 8, 8, 9, 10, 11, 12, 13, 14, 15, 0x29, 0, 0xff]);
    let device = rng.pick(&[0, 1, 2, 0x108, 0x7fff, 0xffff, 0x1_0000, 0xe_0000, 0xf_ffff, 0x10_0000, 0xffff_ffff]);
    [code | device << 32 | rng.next() & 0xff00, rng.below(40), VALID & rng.next() | CORES, rng.next()]
}

pub fn step(both: &mut Both, rng: &mut Rng) {
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
