//! Layer 23, MmioCoreAux: a redistributor's registers. GIC architecture (IHI 0069H) 12.11.
//!
//! | primitive               | does                                                                        | lock                |
//! |-------------------------|-----------------------------------------------------------------------------|---------------------|
//! | [`handle_gicr_access`]  | passes an access on, unless it would give the redistributor other memory     | Mmio; S2Page, inside |
//!
//! A redistributor uses its tables from GICR_CTLR.EnableLPIs on. Then they are looked at: all of it must be the host's, and is from then on lent to the redistributor, so it
//! becomes nobody else's; and the registers that say where they are do not change any more. Where they are not, EnableLPIs stays clear. What was lent once stays lent: there is no way to
//! know when a redistributor is done with it. One that was told to stop uses its tables until RWP is clear: till then the registers do not change either, and it is not started again.
//!
//! Below: MmioRaw, MemoryOps. Above: MmioCore. Specification: `spec::mmio`. Source: SeKVM layer MmioCoreAux; K §2 L23; docs/architecture.md, Devices.
#![forbid(unsafe_code)]

use super::mmio_raw::Access;
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{PAGE_SIZE, Pa, Pfn, PhysRange};
use crate::abstract_machine::gic_registers as regs;
use crate::abstract_machine::gic_registers::bits_of;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::FIRST_LPI;
use crate::memory::Memory;
use crate::memory::memory_ops::{drop_mailbox, hold_mailbox};

/// Registers of RD_base that are looked at, from the start of a redistributor's first frame; all others are passed on.
pub const GICR_CTLR: u64 = 0x00;
const GICR_PROPBASER: u64 = 0x70;
const GICR_PENDBASER: u64 = 0x78;

const ENABLE_LPIS: u64 = regs::GICR_CTLR::EnableLPIs::SET.value;
const RWP: u64 = regs::GICR_CTLR::RWP::SET.value;
/// So often a redistributor is asked whether a write has arrived, for those that only now got one that is no matter here.
const PATIENCE: u32 = 1000;
/// Most bits of interrupt numbers that a redistributor's tables may be for: 16 pages, looked at one by one. Linux uses no more (`ITS_MAX_LPI_NRBITS`); a GIC may have 32.
const MOST_ID_BITS: u32 = 16;
const PROP_ADDRESS: u64 = bits_of(regs::GICR_PROPBASER::Physical_Address);
const PEND_ADDRESS: u64 = bits_of(regs::GICR_PENDBASER::Physical_Address);

/// What an access of the host to the first page of a redistributor leads to: what a load gives. `lpi_bits`: see [`super::Mediated::new`].
pub fn handle_gicr_access<M: Machine>(mem: &Memory<M>, access: Access, lpi_bits: u32) -> u64 {
    let machine = mem.machine();
    let Some(value) = access.store else { return machine.mmio_read(access.at, access.size) };
    let page = access.at.align_down(PAGE_SIZE);
    let register = |offset: u64, size| page.checked_add(offset).map_or(0, |at| machine.mmio_read(at, size));
    let arrived = || (0..PATIENCE).any(|_| register(GICR_CTLR, 4) & RWP == 0);
    let enabled = || register(GICR_CTLR, 4) & ENABLE_LPIS != 0;
    match access.offset() {
        GICR_CTLR if value & ENABLE_LPIS != 0 && !enabled() => {
            let lent = if arrived() {
                let tables = lpi_tables(register(GICR_PROPBASER, 8), register(GICR_PENDBASER, 8), lpi_bits);
                tables.is_some_and(|tables| lend_all(mem, &tables))
            } else {
                false
            };
            if !lent {
                let level = machine.count_to_tell(Event::HostAccessDenied);
                log::log!(
                    level,
                    "host: the tables of the redistributor at {page} are not all its own, in use or too large: no LPIs there"
                );
            }
            let allowed = if lent { value } else { value & !ENABLE_LPIS };
            machine.mmio_write(access.at, access.size, allowed);
        }
        // The redistributor would not look at it, or would at both.
        GICR_PROPBASER..0x80 if enabled() || !arrived() => {}
        _ => machine.mmio_write(access.at, access.size, value),
    }
    0
}

/// Where the redistributor reads its configuration, and where it reads and writes what is pending. `None` if there is no such memory, or too
/// much of it.
fn lpi_tables(prop: u64, pend: u64, lpi_bits: u32) -> Option<[PhysRange; 2]> {
    let bits = regs::GICR_PROPBASER::IDbits.read(prop) as u32 + 1;
    let bits = Some(bits.min(lpi_bits)).filter(|bits| *bits <= MOST_ID_BITS)?;
    let numbers = 1u64 << bits;
    let configuration = PhysRange::new(Pa::new(prop & PROP_ADDRESS), numbers.checked_sub(FIRST_LPI)?)?;
    let pending = PhysRange::new(Pa::new(pend & PEND_ADDRESS), numbers / 8)?;
    Some([configuration, pending])
}

/// Lends all pages of these ranges, or none. Whether it did.
fn lend_all<M: Machine>(mem: &Memory<M>, ranges: &[PhysRange]) -> bool {
    let pages = || ranges.iter().flat_map(|range| pages_of(range.page_cover()));
    let lent = pages().take_while(|page| hold_mailbox(mem, *page).is_ok()).count();
    if lent == pages().count() {
        return true;
    }
    // Just lent, and by nobody else taken back.
    for page in pages().take(lent) {
        let _ = drop_mailbox(mem, page);
    }
    false
}

fn pages_of(range: PhysRange) -> impl Iterator<Item = Pfn> {
    (0..range.pages()).map_while(move |n| range.first_pfn().checked_add(n))
}
