//! The interrupt translation service: its tables, its queue, its commands. GIC architecture (IHI 0069H) 5.3, 12.19.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use corevisor_interface::calls::VM_PROTECTED;

use super::super::{Bare, ensure, returned};
use super::tables::{FIRST_LPI, Redistributor};
use super::{Ground, PATTERN, counted, fill};
use crate::arch::lpis::Frame;
use crate::arch::memory;
use crate::guest::Failure;
use crate::pages::PAGE;

const GITS_CTLR: u64 = 0;
const GITS_TYPER: u64 = 8;
pub const GITS_CBASER: u64 = 0x80;
pub const GITS_CWRITER: u64 = 0x88;
pub const GITS_CREADR: u64 = 0x90;
pub const GITS_BASER: u64 = 0x100;
pub const BASERS: u64 = 8;
/// GITS_CTLR.Enabled.
const ENABLED: u32 = 1;
/// GITS_CREADR.Stalled.
pub const STALLED: u64 = 1;
pub const VALID: u64 = 1 << 63;
/// Normal memory, write-back, inner shareable.
const ATTRIBUTES: u64 = 7 << 59 | 1 << 10;
/// Type and size of an entry, which only the ITS says.
const BASER_FIXED: u64 = 7 << 56 | 0x1f << 48;
/// GITS_TYPER: virtual LPIs of several kinds; redistributors are named by address.
const VIRTUAL: u64 = 1 << 1 | 1 << 37 | 1 << 39 | 1 << 40;
const BY_ADDRESS: u64 = 1 << 19;

/// Doublewords of a command.
pub type Command = [u64; 4];
/// Bytes of a command.
pub const SIZE: u64 = 32;
const MOVI: u64 = 0x01;
const INT: u64 = 0x03;
const CLEAR: u64 = 0x04;
const SYNC: u64 = 0x05;
const MAPD: u64 = 0x08;
const MAPC: u64 = 0x09;
const MAPTI: u64 = 0x0a;
const INV: u64 = 0x0c;
const INVALL: u64 = 0x0d;
const MOVALL: u64 = 0x0e;
const DISCARD: u64 = 0x0f;
/// Of a GICv4: VMOVI, VMOVP, VSGI, VSYNC, VMAPP, VMAPTI, VMAPI, VINVALL, INVDB. The rest never was.
const UNKNOWN: [u64; 14] = [0x00, 0x02, 0x06, 0x10, 0x21, 0x22, 0x23, 0x25, 0x29, 0x2a, 0x2b, 0x2d, 0x2e, 0xff];

/// Bits of a device's events, less one; and the event that is used.
const EVENT_BITS: u64 = 4;
const EVENT: u64 = 9;
/// The device of the controls.
const DEVICE: u64 = 8;
/// LPIs of a redistributor's own.
const LPIS: u64 = 64;

/// The ITS, with a queue in this host's memory.
pub struct Service {
    pub frame: Frame,
    /// Two pages.
    pub queue: u64,
    writer: AtomicU64,
    size: AtomicU64,
}

impl Service {
    /// Off.
    pub fn new(at: u64, queue: u64) -> Self {
        Self { frame: Frame::service(at), queue, writer: AtomicU64::new(0), size: AtomicU64::new(PAGE) }
    }

    /// On, with an empty queue of so many pages.
    pub fn start(&self, pages: u64) {
        self.stop();
        self.frame.write64(GITS_CBASER, VALID | ATTRIBUTES | self.queue | (pages - 1));
        self.frame.write64(GITS_CWRITER, 0);
        self.writer.store(0, SeqCst);
        self.size.store(pages * PAGE, SeqCst);
        self.frame.write(GITS_CTLR, ENABLED);
    }

    /// Off.
    pub fn stop(&self) {
        self.frame.write(GITS_CTLR, 0);
    }

    /// Puts these commands into the queue and moves GITS_CWRITER behind them: GITS_CREADR then.
    fn give(&self, commands: &[Command]) -> u64 {
        let (mut writer, size) = (self.writer.load(SeqCst), self.size.load(SeqCst));
        for words in commands {
            let at = self.queue + writer;
            (0..).zip(words).for_each(|(n, word)| memory::copy_to(at + 8 * n, &word.to_le_bytes()));
            memory::clean(at, SIZE);
            writer = (writer + SIZE) % size;
        }
        self.writer.store(writer, SeqCst);
        self.frame.write64(GITS_CWRITER, writer);
        self.frame.read64(GITS_CREADR)
    }

    /// The same; they are all run.
    fn run(&self, commands: &[Command]) -> Result<(), Failure> {
        let (reader, writer) = (self.give(commands), self.writer.load(SeqCst));
        ensure(reader == writer, &alloc::format!("commands up to {writer:#x}: the ITS is at {reader:#x}"))
    }

    /// How commands name a redistributor.
    pub fn name_of(&self, redistributor: &Redistributor) -> u64 {
        if self.frame.read64(GITS_TYPER) & BY_ADDRESS != 0 {
            redistributor.frame.at()
        } else {
            redistributor.number() << 16
        }
    }
}

pub const fn map_device(device: u64, itt: u64) -> Command {
    [MAPD | device << 32, EVENT_BITS, VALID | itt, 0]
}

/// Commands about one event of a device, as collection `n` has it, and about all; `name` is that of a redistributor.
pub const fn about(device: u64, event: u64, lpi: u64, n: u64, name: u64) -> [Command; 11] {
    [
        [MAPC, 0, VALID | name | n, 0],
        [MAPTI | device << 32, event | lpi << 32, n, 0],
        [INV | device << 32, event, 0, 0],
        [SYNC, 0, name, 0],
        [INT | device << 32, event, 0, 0],
        [CLEAR | device << 32, event, 0, 0],
        [DISCARD | device << 32, event, 0, 0],
        [MAPD | device << 32, 0, 0, 0],
        [INVALL, 0, n, 0],
        [MOVALL, 0, name, name],
        [MOVI | device << 32, event, n, 0],
    ]
}

/// An event of a device becomes an LPI, for each redistributor.
pub fn works(ground: &Ground, what: &str) -> Result<(), Failure> {
    ground.service.start(1);
    for n in 0..ground.redistributors.len() {
        interrupts(ground, n, ground.used(0))
            .map_err(|failure| Failure::Text(alloc::format!("{what}, redistributor {n}: {failure}")))?;
    }
    Ok(())
}

/// The same with this table for the device's events, for one redistributor; and then all is as before.
fn interrupts(ground: &Ground, n: usize, itt: u64) -> Result<(), Failure> {
    let (redistributor, service) = (&ground.redistributors[n], &ground.service);
    (0..2).for_each(|page| fill(ground.used(page), PATTERN));
    let lpi = FIRST_LPI + LPIS * n as u64 + DEVICE;
    let name = service.name_of(redistributor);
    let [mapc, mapti, inv, sync, int, clear, discard, unmap, ..] = about(DEVICE, EVENT, lpi, n as u64, name);
    let pending = redistributor.tables.pend + lpi / 8;
    let is_pending = || {
        let mut byte = [0];
        memory::clean(pending, 1);
        memory::copy_from(pending, &mut byte);
        byte[0] >> (lpi % 8) & 1 == 1
    };
    service.run(&[map_device(DEVICE, itt), mapc, mapti, inv, sync])?;
    ensure(!is_pending(), "an LPI is pending before its interrupt")?;
    service.run(&[int, sync])?;
    ensure(is_pending(), "an LPI does not become pending")?;
    if redistributor.is_own {
        let taken: Vec<u32> =
            core::iter::from_fn(|| ground.gic.take()).filter(|id| u64::from(*id) >= FIRST_LPI).collect();
        ensure(taken == [lpi as u32], &alloc::format!("of LPI {lpi} this CPU takes {taken:?}"))?;
    } else {
        service.run(&[clear, sync])?;
    }
    ensure(!is_pending(), "an LPI stays pending")?;
    // Gone is gone.
    service.run(&[discard, int, unmap, int, sync])?;
    ensure(!is_pending(), "an LPI of a device that is gone")?;
    ground.is_unused("an interrupt")
}

/// Tables that this host names are read again, and the ITS has none of them.
pub fn tables(ground: &Ground) -> Result<(), Failure> {
    let frame = ground.service.frame;
    ensure(frame.read64(GITS_TYPER) & VIRTUAL == 0, "this host's ITS has virtual LPIs")?;
    let own = ("a page of this host's", ground.used(1));
    for (what, place) in ground.places.iter().copied().chain([own]) {
        ground.service.stop();
        for n in 0..BASERS {
            let register = GITS_BASER + 8 * n;
            let (fixed, value) = (frame.read64(register) & BASER_FIXED, VALID | ATTRIBUTES | place | 0xff);
            frame.write64(register, value);
            let found = frame.read64(register);
            ensure(
                found == value & !BASER_FIXED | fixed,
                &alloc::format!("GITS_BASER{n} is {found:#x}, not {value:#x}"),
            )?;
            let halves = u64::from(frame.read(register)) | u64::from(frame.read(register + 4)) << 32;
            ensure(halves == found, &alloc::format!("GITS_BASER{n} is {halves:#x} by halves"))?;
        }
        works(ground, &alloc::format!("with tables in {what}"))?;
        ground.victim.have_a_turn();
    }
    Ok(())
}

/// A queue that is not this host's, or a page of it that is not, or not any more, stalls at its first command there.
pub fn queues(ground: &Ground) -> Result<(), Failure> {
    let (service, frame) = (&ground.service, ground.service.frame);
    let devices = [("the ITS itself", frame.at()), ("a redistributor", ground.last()?.frame.at())];
    for (what, place) in ground.places.iter().copied().chain(devices) {
        service.start(1);
        let value = VALID | ATTRIBUTES | place;
        frame.write64(GITS_CBASER, value);
        ensure(frame.read64(GITS_CBASER) == value, "GITS_CBASER is not what was written")?;
        ensure(frame.read64(GITS_CREADR) == 0, "a new queue is not empty")?;
        let what = alloc::format!("a queue in {what}");
        ground.refused(&what, 1, || {
            frame.write64(GITS_CWRITER, SIZE);
            ensure(frame.read64(GITS_CREADR) == STALLED, "it does not stall")
        })?;
        // Once more, and no further.
        ground.refused(&what, 1, || {
            frame.write(GITS_CWRITER, (PAGE - SIZE) as u32);
            ensure(frame.read(GITS_CREADR) == STALLED as u32, "it does not stay")
        })?;
    }
    let sync: Command = [SYNC, 0, service.name_of(ground.last()?), 0];
    // The second of two pages is private.
    service.start(2);
    let vm = Bare::with_root(VM_PROTECTED, service.queue + PAGE)?;
    let first = alloc::vec![sync; (PAGE / SIZE) as usize - 1];
    service.run(&first)?;
    ground.refused("the second page of a queue", 1, || {
        service.give(&[sync]);
        frame.write64(GITS_CWRITER, PAGE + 2 * SIZE);
        let reader = frame.read64(GITS_CREADR);
        ensure(reader == PAGE | STALLED, &alloc::format!("GITS_CREADR is {reader:#x}"))
    })?;
    vm.end()?;
    returned(service.queue + PAGE)?;
    // The only one becomes so, between two commands.
    service.start(1);
    service.run(&[sync, sync])?;
    let vm = Bare::with_root(VM_PROTECTED, service.queue)?;
    ground.refused("a queue that left", 1, || {
        frame.write64(GITS_CWRITER, 3 * SIZE);
        let reader = frame.read64(GITS_CREADR);
        ensure(reader == (2 * SIZE) | STALLED, &alloc::format!("GITS_CREADR is {reader:#x}"))
    })?;
    vm.end()?;
    returned(service.queue)?;
    works(ground, "after queues that stalled")
}

/// A device's table is the core's, wherever this host says that it is.
pub fn translations(ground: &Ground) -> Result<(), Failure> {
    let own = [("a page of this host's", ground.used(1)), ("a table of a redistributor's", ground.last()?.tables.pend)];
    ground.service.start(1);
    for (what, place) in ground.places.iter().copied().chain(own) {
        for n in 0..ground.redistributors.len() {
            interrupts(ground, n, place).map_err(|failure| {
                Failure::Text(alloc::format!("a device's table in {what}, redistributor {n}: {failure}"))
            })?;
        }
        ground.victim.have_a_turn();
    }
    Ok(())
}

/// Commands that this host does not have, or that there is no room for, are counted, and left out.
pub fn unknown(ground: &Ground) -> Result<(), Failure> {
    ground.service.start(1);
    for (what, place) in &ground.places {
        let commands = UNKNOWN.map(|code| [code | DEVICE << 32, 1 << 32 | EVENT, VALID | place, VALID | place | 4]);
        ground.refused(&alloc::format!("unknown commands about {what}"), commands.len() as u64, || {
            ground.service.run(&commands)
        })?;
    }
    // A device that there is no room for anywhere: one that there is gets its own in spite of it.
    let beyond = map_device(u32::MAX.into(), ground.used(0));
    ground.refused("a device beyond all tables", 2, || ground.service.run(&[beyond, beyond]))?;
    let before = counted(super::HOST_ACCESS_DENIED)?;
    interrupts(ground, 0, ground.used(0))?;
    ensure(counted(super::HOST_ACCESS_DENIED)? == before, "commands that this host has are refused")
}
