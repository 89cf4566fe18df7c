//! A redistributor's tables: which it gets, and what becomes of their pages. GIC architecture (IHI 0069H) 12.11.
#![forbid(unsafe_code)]

use corevisor_interface::calls::{CallError, HostCall, VM_PROTECTED};
use kserv_model::layout::RAM_BASE;

use super::super::{Bare, ensure, returned};
use super::{ALIGNMENT, Ground, PART, PART_OF_HALVES};
use crate::arch::lpis::Frame;
use crate::arch::memory;
use crate::calls::{self, raw};
use crate::guest::{Failure, at};
use crate::pages::PAGE;

const GICR_CTLR: u64 = 0;
const GICR_TYPER: u64 = 8;
pub const GICR_PROPBASER: u64 = 0x70;
pub const GICR_PENDBASER: u64 = 0x78;
/// GICR_CTLR.EnableLPIs.
const ENABLE_LPIS: u32 = 1;
/// GICR_TYPER: virtual LPIs; the number of the CPU.
const VLPIS: u64 = 1 << 1;
const NUMBER_SHIFT: u32 = 8;
const NUMBER: u64 = 0xffff;
/// Where the frame of virtual LPIs is, behind the first one; its registers have the same places.
const VLPI_FRAME: u64 = 0x2_0000;
const VALID: u64 = 1 << 63;
/// GICR_PROPBASER: normal memory, write-back, inner shareable; 16 bits of interrupts' numbers. GICR_PENDBASER: the same.
const ATTRIBUTES: u64 = 7 << 7 | 1 << 10;
const ID_BITS: u64 = 15;
/// Addresses in GICR_PENDBASER.
pub const PEND_ADDRESS: u64 = ((1 << 52) - 1) & !0xffff;
/// Pages of the tables.
const PROP_PAGES: u64 = 14;
const PEND_PAGES: u64 = 2;
/// The first LPI.
pub const FIRST_LPI: u64 = 8192;
/// An LPI's configuration: its priority, and whether it is enabled.
const PRIORITY: u8 = 0xa0;
const ENABLED: u8 = 1;
/// Pages of a VM's pool.
const POOL: u64 = 16;
/// Nobody counts further than that how often a page is lent.
const MOST_LENT: u64 = 1000;

/// Where a redistributor's configuration is, and where what is pending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tables {
    pub prop: u64,
    pub pend: u64,
}

impl Tables {
    /// In a part of the attacker's block.
    pub const fn at(part: u64) -> Self {
        Self { prop: part, pend: part + ALIGNMENT }
    }

    /// All pages of them.
    pub fn pages(self) -> impl Iterator<Item = u64> {
        let pages = |start: u64, count: u64| (start..start + count * PAGE).step_by(PAGE as usize);
        pages(self.prop, PROP_PAGES).chain(pages(self.pend, PEND_PAGES))
    }
}

/// A redistributor, and the tables that it gets.
pub struct Redistributor {
    pub frame: Frame,
    /// It is this CPU's, which takes the LPIs that come.
    pub is_own: bool,
    pub tables: Tables,
}

impl Redistributor {
    /// Its LPIs interrupt if it is this CPU's; else they only become pending.
    pub fn new(frame: Frame, is_own: bool, tables: Tables) -> Self {
        let entry = if is_own { PRIORITY | ENABLED } else { PRIORITY };
        let page = [entry; PAGE as usize];
        (0..PROP_PAGES).for_each(|n| memory::copy_to(tables.prop + n * PAGE, &page));
        memory::clean(tables.prop, PROP_PAGES * PAGE);
        Self { frame, is_own, tables }
    }

    /// The CPU's number.
    pub fn number(&self) -> u64 {
        self.frame.read64(GICR_TYPER) >> NUMBER_SHIFT & NUMBER
    }

    /// Its frame of virtual LPIs.
    pub fn virtual_lpis(&self) -> Option<Frame> {
        (self.frame.read64(GICR_TYPER) & VLPIS != 0).then(|| self.frame.behind(VLPI_FRAME))
    }

    /// Tells it where its tables are.
    pub fn name(&self, tables: Tables) {
        self.frame.write64(GICR_PROPBASER, tables.prop | ATTRIBUTES | ID_BITS);
        self.frame.write64(GICR_PENDBASER, tables.pend | ATTRIBUTES);
    }

    /// Sets EnableLPIs: whether it is set.
    pub fn enable(&self) -> bool {
        self.frame.write(GICR_CTLR, self.frame.read(GICR_CTLR) | ENABLE_LPIS);
        self.is_enabled()
    }

    fn is_enabled(&self) -> bool {
        self.frame.read(GICR_CTLR) & ENABLE_LPIS != 0
    }

    /// Clears EnableLPIs, which QEMU's lets be cleared: whether it is.
    pub fn disable(&self) -> bool {
        self.frame.write(GICR_CTLR, self.frame.read(GICR_CTLR) & !ENABLE_LPIS);
        !self.is_enabled()
    }

    /// It works with these tables from now on.
    pub fn enable_with(&self, tables: Tables) -> Result<(), Failure> {
        ensure(self.disable(), "LPIs stay enabled")?;
        self.name(tables);
        ensure(self.enable(), "LPIs are not enabled, with tables of this host's own")
    }

    /// With its own, in which nothing is pending.
    pub fn restart(&self) -> Result<(), Failure> {
        ensure(self.disable(), "LPIs stay enabled")?;
        memory::zero(self.tables.pend, PEND_PAGES * PAGE);
        memory::clean(self.tables.pend, PEND_PAGES * PAGE);
        self.enable_with(self.tables)
    }

    /// Not with these.
    fn is_refused(&self, ground: &Ground, what: &str, tables: Tables) -> Result<(), Failure> {
        ground.refused(what, 1, || {
            self.name(tables);
            ensure(!self.enable(), "LPIs are enabled")
        })
    }

    /// Tables that are not this host's, wholly or by a page, are none; and of those that are nothing is lent then.
    pub fn refuses(&self, ground: &Ground) -> Result<(), Failure> {
        let own = self.tables;
        for (what, place) in &ground.places {
            self.is_refused(ground, &alloc::format!("pending bits in {what}"), Tables { pend: *place, ..own })?;
            self.is_refused(ground, &alloc::format!("configuration in {what}"), Tables { prop: *place, ..own })?;
        }
        // The second of two pages, the last of fourteen.
        let pend = ground.block + PART_OF_HALVES * PART + ALIGNMENT;
        let private = pend + PAGE;
        let prop = private - (PROP_PAGES - 1) * PAGE;
        let vm = Bare::with_root(VM_PROTECTED, private)?;
        self.is_refused(ground, "half of the pending bits private", Tables { pend, ..own })?;
        self.is_refused(ground, "a page of the configuration private", Tables { prop, ..own })?;
        vm.end()?;
        returned(private)?;
        // They can all go.
        for page in [own.prop, own.pend, own.pend + PAGE, pend, prop] {
            let mut word = [0; 8];
            memory::copy_from(page, &mut word);
            Bare::with_root(VM_PROTECTED, page)?.end()?;
            returned(page)?;
            (page..page + PAGE).step_by(8).for_each(|at| memory::copy_to(at, &word));
        }
        self.no_virtual_lpis(ground)
    }

    /// The frame of virtual LPIs is there where the redistributor says so, and has nothing in it.
    fn no_virtual_lpis(&self, ground: &Ground) -> Result<(), Failure> {
        let Some(frame) = self.virtual_lpis() else { return Ok(()) };
        for register in [GICR_PROPBASER, GICR_PENDBASER] {
            for (_, place) in &ground.places {
                frame.write64(register, VALID | place);
                ensure(frame.read64(register) == 0, "this host has virtual LPIs")?;
            }
        }
        Ok(())
    }

    /// Tables of this host's own are taken, and their pages cannot leave it from then on.
    pub fn accepts(&self, ground: &Ground) -> Result<(), Failure> {
        self.enable_with(self.tables)?;
        self.tables.pages().try_for_each(kept)?;
        let vm = Bare::new(VM_PROTECTED, POOL)?;
        let image = at("SetBootInfo", calls::set_boot_info(vm.id, RAM_BASE + PAGE, PAGE))?;
        let ways = [
            (HostCall::DonatePool, [vm.id, self.tables.pend, 1, 0, 0]),
            (HostCall::RemapImagePages, [vm.id, image, self.tables.pend, 1, 0]),
            (HostCall::MapMemory, [vm.id, RAM_BASE, self.tables.pend, 1, 0]),
            (HostCall::MapMemory, [vm.id, RAM_BASE, self.tables.prop, PROP_PAGES, 0]),
        ];
        for (call, arguments) in ways {
            let got = raw(call, arguments);
            ensure(got == Err(CallError::InUse), &alloc::format!("{call:?} of a table's page: {got:x?}"))?;
        }
        vm.end()?;
        ground.victim.have_a_turn();
        Ok(())
    }

    /// While LPIs are enabled it stays with its tables; afterwards too, as far as others are refused.
    pub fn stays(&self, ground: &Ground) -> Result<(), Failure> {
        let registers = || (self.frame.read64(GICR_PROPBASER), self.frame.read64(GICR_PENDBASER));
        let before = registers();
        for (what, place) in &ground.places {
            self.name(Tables { prop: *place, pend: *place });
            for register in [GICR_PROPBASER, GICR_PENDBASER] {
                self.frame.write(register, *place as u32);
                self.frame.write(register + 4, 1);
            }
            ensure(registers() == before, &alloc::format!("the registers of enabled tables now name {what}"))?;
        }
        ensure(self.disable(), "LPIs stay enabled")?;
        for (what, place) in &ground.places {
            self.is_refused(
                ground,
                &alloc::format!("from one's own tables to {what}"),
                Tables { prop: *place, pend: *place },
            )?;
        }
        self.tables.pages().try_for_each(kept)?;
        self.enable_with(self.tables)
    }
}

/// The page stays this host's: nobody can make it a root.
fn kept(page: u64) -> Result<(), Failure> {
    let got = calls::register_vm(VM_PROTECTED, 36, page);
    ensure(
        got == Err(CallError::InUse),
        &alloc::format!("the page of a table at {page:#x} can be given away: {got:x?}"),
    )
}

/// Tables are lent again and again, until they cannot be: they do not become free by that. How often it went.
pub fn wear_out(ground: &Ground) -> Result<u64, Failure> {
    let (redistributor, tables) = (ground.last()?, ground.spare());
    ensure(redistributor.disable(), "LPIs stay enabled")?;
    redistributor.name(tables);
    let mut times = 0;
    while redistributor.enable() {
        times += 1;
        ensure(redistributor.disable() && times < MOST_LENT, "tables are lent without an end")?;
        if times % 64 == 0 {
            kept(tables.pend)?;
        }
    }
    ensure(times > 0, "tables of this host's own are refused")?;
    tables.pages().try_for_each(kept)?;
    redistributor.enable_with(redistributor.tables)?;
    Ok(times)
}
