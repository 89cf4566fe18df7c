//! A GICv3's tables at boot: which registers the core keeps between host and GIC, and the tables of the ITSs. GIC architecture (IHI 0069H) 5, 12.11, 12.19.
//!
//! All or none: with one part that the core cannot stand in front of, the GIC could be made to write any memory anyway; so the host keeps all of it then, with a warning.

use super::boot::in_pool;
use super::boot_error::BootError;
use super::device_tree::{Gic, MAX_CPUS, MachineDescription};
use super::own_map;
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{PAGE_SHIFT, PAGE_SIZE, Pa, PhysRange};
use crate::abstract_machine::cpu::{Cpu, pool};
use crate::abstract_machine::gic_registers as regs;
use crate::mmio::gic_its::{GITS_BASER, GITS_CBASER, GITS_CTLR, GITS_CWRITER, GITS_TYPER};
use crate::mmio::gic_redistributor::GICR_CTLR;
use crate::mmio::its::{Its, Level1, MOST_DEVICE_BITS, Setup};
use crate::mmio::{Frame, FrameKind, MOST_ITS, Mediated};
use crate::npt::descriptor::CoreAccess;
use regs::GITS_BASER::Type::Value as Kind;
use tock_registers::fields::FieldValue;

/// Most pages of registers: for each redistributor two.
const MOST_FRAMES: usize = 2 * MAX_CPUS + MOST_ITS;

/// Distances within a redistributor.
const VLPI_BASE: u64 = 0x2_0000;
const GICR_TYPER: u64 = 0x08;
const GICD_TYPER: u64 = 0x04;

/// How often a register is asked until it shows what was wanted.
const PATIENCE: u32 = 1 << 20;
/// log2 of the pages of a device table of one level: 13 bits of devices, of 8 bytes each.
const FLAT_ORDER: u32 = 4;

/// Why the core cannot stand between host and GIC.
#[derive(Clone, Copy, Debug)]
enum Unfit {
    TooManyFrames,
    TooSmall,
    NotQuiescent,
    NotCoherent,
    /// Its commands name redistributors by address, and it would write there.
    PhysicalTargets,
    /// The boot loader switched a redistributor's LPIs on, and they cannot be switched off: their tables may be in anybody's memory.
    LpisStayOn,
}

/// What ends the set-up.
enum Trouble {
    /// The machine runs without.
    Unfit(Unfit, PhysRange),
    /// It does not.
    Boot(BootError),
}

impl<E: Into<BootError>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Boot(error.into())
    }
}

/// The pages between host and GIC, in no order yet.
struct Frames {
    all: &'static mut [Frame; MOST_FRAMES],
    count: usize,
}

impl Frames {
    /// The page at `at`, which is mapped for the core from now on.
    fn add(&mut self, at: Pa, kind: FrameKind) -> Result<(), Trouble> {
        let page = PhysRange::between(at, Pa::new(at.raw() + PAGE_SIZE));
        *self.all.get_mut(self.count).ok_or(Trouble::Unfit(Unfit::TooManyFrames, page))? = Frame { at, kind };
        self.count += 1;
        Ok(own_map::map(page, CoreAccess::Device)?)
    }
}

/// Puts the core between host and GIC, where that is a GICv3: the pages leave the host's windows. `None` where the GIC has no tables in memory, or the core cannot.
///
/// # Errors
/// [`BootError`], if there is no room for maps, tables, or what is left of the windows.
pub fn mediate(description: &mut MachineDescription) -> Result<Option<Mediated>, BootError> {
    let gic = description.gic;
    let Some(Gic::V3 { gicd, redistributors, stride, its, .. }) = gic else { return Ok(None) };
    // Before anything is written: what the core has for such a GIC would stay in caches, and what it reads there be old.
    let stands = if description.gic_incoherent {
        Err(Trouble::Unfit(Unfit::NotCoherent, gicd))
    } else {
        stand_between(gicd, &redistributors, stride, &its)
    };
    match stands {
        Ok((frames, mediated)) => {
            for frame in frames {
                let page = PhysRange::between(frame.at, Pa::new(frame.at.raw() + PAGE_SIZE));
                description.take_window(page)?;
            }
            Ok(Some(mediated))
        }
        Err(Trouble::Boot(error)) => Err(error),
        Err(Trouble::Unfit(why, range)) => {
            log::warn!("the GIC's registers at {range} stay the host's ({why:?}): the GIC reaches all memory");
            Ok(None)
        }
    }
}

fn stand_between(
    gicd: PhysRange,
    redistributors: &[PhysRange],
    stride: Option<u64>,
    its: &[PhysRange],
) -> Result<(&'static [Frame], Mediated), Trouble> {
    let nothing = Frame { at: Pa::new(0), kind: FrameKind::Redistributor };
    let mut frames = Frames { all: in_pool([nothing; MOST_FRAMES])?, count: 0 };
    for region in redistributors {
        find_redistributors(*region, stride, &mut frames)?;
    }
    let mut units = [const { None }; MOST_ITS];
    for (n, (range, unit)) in its.iter().zip(&mut units).enumerate() {
        if range.size() < 0x1_0000 {
            return Err(Trouble::Unfit(Unfit::TooSmall, *range));
        }
        frames.add(range.base(), FrameKind::Its(n))?;
        *unit = Some(in_pool(Its::new(set_up_its(*range)?))?);
    }
    let found = frames.all.get_mut(..frames.count).unwrap_or_default();
    sort(found);
    let first = PhysRange::between(gicd.base(), Pa::new(gicd.base().raw() + PAGE_SIZE));
    own_map::map(first, CoreAccess::Device)?;
    let typer = Cpu.mmio_read(Pa::new(gicd.base().raw() + GICD_TYPER), 4);
    own_map::unmap(first);
    // IDbits: bits of interrupt numbers, less one.
    let lpi_bits = (typer >> 19 & 0x1f) as u32 + 1;
    Ok((found, Mediated::new(found, lpi_bits, units)))
}

/// Ascending order. They stand in it nearly always, and the library's way of sorting is 2 KiB of code.
fn sort(frames: &mut [Frame]) {
    for end in 1..frames.len() {
        for n in (1..=end).rev() {
            if frames.get(n - 1).map(|frame| frame.at) > frames.get(n).map(|frame| frame.at) {
                frames.swap(n - 1, n);
            }
        }
    }
}

/// The frames of the redistributors in `region`: one behind the other, up to the one that says it is the last.
fn find_redistributors(region: PhysRange, stride: Option<u64>, frames: &mut Frames) -> Result<(), Trouble> {
    let mut at = region.base();
    loop {
        let small = Trouble::Unfit(Unfit::TooSmall, region);
        if !region.contains(at) || !at.is_aligned(PAGE_SIZE) {
            return Err(small);
        }
        frames.add(at, FrameKind::Redistributor)?;
        let typer = Cpu.mmio_read(Pa::new(at.raw() + GICR_TYPER), 8);
        let virtual_lpis = regs::GICR_TYPER::VLPIS.is_set(typer);
        if virtual_lpis {
            frames.add(Pa::new(at.raw() + VLPI_BASE), FrameKind::VirtualLpis)?;
        }
        switch_lpis_off(at).map_err(|why| Trouble::Unfit(why, region))?;
        if regs::GICR_TYPER::Last.is_set(typer) {
            return Ok(());
        }
        let step = stride.unwrap_or(if virtual_lpis { 2 * VLPI_BASE } else { VLPI_BASE });
        at = at.checked_add(step).ok_or(small)?;
    }
}

/// The redistributor at `frame` may have LPIs from the boot loader (U-Boot has them on some boards), with tables in memory that is anybody's from now on: off with them. Many cannot be
/// switched off again (Arm IHI 0069 §12.11, GICR_CTLR.EnableLPIs).
fn switch_lpis_off(frame: Pa) -> Result<(), Unfit> {
    let control = Pa::new(frame.raw() + GICR_CTLR);
    let value = Cpu.mmio_read(control, 4);
    if !regs::GICR_CTLR::EnableLPIs.is_set(value) {
        return Ok(());
    }
    Cpu.mmio_write(control, 4, regs::GICR_CTLR::EnableLPIs::CLEAR.modify(value));
    let off = regs::GICR_CTLR::EnableLPIs::CLEAR + regs::GICR_CTLR::RWP::CLEAR;
    let is_off = (0..PATIENCE).any(|_| off.matches_all(Cpu.mmio_read(control, 4)));
    if is_off { Ok(()) } else { Err(Unfit::LpisStayOn) }
}

/// Switches the ITS at `range` off and gives it its queue, a table of devices and one of collections, in pages of the pool.
fn set_up_its(range: PhysRange) -> Result<Setup, Trouble> {
    let frame = range.base();
    let register = |offset: u64| Pa::new(frame.raw() + offset);
    let typer = Cpu.mmio_read(register(GITS_TYPER), 8);
    if regs::GITS_TYPER::PTA.is_set(typer) {
        return Err(Trouble::Unfit(Unfit::PhysicalTargets, range));
    }
    Cpu.mmio_write(register(GITS_CTLR), 4, 0);
    if !(0..PATIENCE).any(|_| regs::GITS_CTLR::Quiescent.is_set(Cpu.mmio_read(register(GITS_CTLR), 4))) {
        return Err(Trouble::Unfit(Unfit::NotQuiescent, range));
    }
    let mut setup = Setup {
        frame,
        queue: pages(0)?,
        level1: None,
        page_order: 0,
        device_entry: 8,
        itt_entry: regs::GITS_TYPER::ITT_entry_size.read(typer) + 1,
        device_bits: (regs::GITS_TYPER::Devbits.read(typer) as u32 + 1).min(MOST_DEVICE_BITS),
        basers: [0; 8],
    };
    for n in 0..setup.basers.len() {
        let at = register(GITS_BASER + 8 * n as u64);
        let value = match regs::GITS_BASER::Type.read_as_enum(Cpu.mmio_read(at, 8)) {
            Some(Kind::Devices) => device_table(at, &mut setup)?,
            Some(Kind::Collections) => table(at, pages(page_order(at))?, 1).value,
            // Tables of virtual CPUs: the host has none.
            None => 0,
        };
        Cpu.mmio_write(at, 8, value);
        let now = Cpu.mmio_read(at, 8);
        if value != 0 && !regs::GITS_BASER::Shareability.is_set(now) {
            return Err(Trouble::Unfit(Unfit::NotCoherent, range));
        }
        let shown = if value == 0 { 0 } else { now };
        if let Some(baser) = setup.basers.get_mut(n) {
            *baser = shown;
        }
    }
    let queue = regs::GITS_CBASER::Valid::SET
        + regs::GITS_CBASER::InnerCache::WriteBackAllocate
        + regs::GITS_CBASER::Shareability::InnerShareable;
    Cpu.mmio_write(register(GITS_CBASER), 8, queue.value | setup.queue.raw());
    if !regs::GITS_CBASER::Shareability.is_set(Cpu.mmio_read(register(GITS_CBASER), 8)) {
        return Err(Trouble::Unfit(Unfit::NotCoherent, range));
    }
    Cpu.mmio_write(register(GITS_CWRITER), 8, 0);
    Ok(setup)
}

fn pages(order: u32) -> Result<Pa, Trouble> {
    Ok(pool::alloc(order).ok_or(BootError::OutOfTables)?)
}

/// log2 of the pages of 4 KiB in one of the table's: 4 KiB if the register takes that, else what it says.
fn page_order(baser: Pa) -> u32 {
    Cpu.mmio_write(baser, 8, 0);
    match regs::GITS_BASER::Page_Size.read(Cpu.mmio_read(baser, 8)) {
        0 => 0,
        1 => 2,
        _ => 4,
    }
}

/// GITS_BASER for a table of `count` pages at `base`, of one level. Its page size is that of [`page_order`].
fn table(baser: Pa, base: Pa, count: u64) -> FieldValue<u64, regs::GITS_BASER::Register> {
    let page_size = regs::GITS_BASER::Page_Size.read(Cpu.mmio_read(baser, 8));
    regs::GITS_BASER::Valid::SET
        + regs::GITS_BASER::InnerCache::WriteBackAllocate
        + regs::GITS_BASER::Shareability::InnerShareable
        + regs::GITS_BASER::Physical_Address.val(base.raw() >> PAGE_SHIFT)
        + regs::GITS_BASER::Page_Size.val(page_size)
        + regs::GITS_BASER::Size.val(count - 1)
}

/// GITS_BASER for the table of devices: of two levels if the ITS takes that, else with as many devices as fit.
fn device_table(baser: Pa, setup: &mut Setup) -> Result<u64, Trouble> {
    setup.page_order = page_order(baser);
    setup.device_entry = regs::GITS_BASER::Entry_Size.read(Cpu.mmio_read(baser, 8)) + 1;
    Cpu.mmio_write(baser, 8, regs::GITS_BASER::Indirect::SET.value);
    if regs::GITS_BASER::Indirect.is_set(Cpu.mmio_read(baser, 8)) {
        let Level1 { order, device_bits } = Level1::new(setup.device_bits, setup.page_order, setup.device_entry);
        let base = pages(order)?;
        setup.level1 = PhysRange::new(base, PAGE_SIZE << order);
        setup.device_bits = device_bits;
        return Ok((table(baser, base, 1 << (order - setup.page_order)) + regs::GITS_BASER::Indirect::SET).value);
    }
    let order = FLAT_ORDER.max(setup.page_order);
    setup.device_bits = setup.device_bits.min(((PAGE_SIZE << order) / setup.device_entry).ilog2());
    Ok(table(baser, pages(order)?, 1 << (order - setup.page_order)).value)
}
