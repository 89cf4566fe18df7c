//! Layers 22-26: what redistributors and ITSs get of what the host says, and what the host reads again. GIC architecture (IHI 0069H) 5.2, 5.3, 12.11, 12.19, written down a second time.
//!
//! Registers are doublewords by their place in the page. What becomes of a page's owner is a part of [`State`]; all else is in [`Gicr`] and [`Its`].
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::{State, memory};
use crate::abstract_machine::addr::{Pa, Pfn};
use crate::memory::page_manager::PageState;

/// The registers of a page that have been written, as the hardware has them.
pub type Words = BTreeMap<u64, u64>;

/// A redistributor: the first page of RD_base.
pub type Gicr = Words;

/// `size` bytes at `offset`.
pub fn load(words: &Words, offset: u64, size: u64) -> u64 {
    let all = words.get(&(offset & !7)).copied().unwrap_or(0);
    if size == 8 { all } else { all >> (offset % 8 * 8) & 0xffff_ffff }
}

fn stored(old: u64, offset: u64, size: u64, value: u64) -> u64 {
    let shift = offset % 8 * 8;
    match size {
        8 => value,
        _ => old & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift,
    }
}

fn store(words: &mut Words, offset: u64, size: u64, value: u64) {
    let old = words.get(&(offset & !7)).copied().unwrap_or(0);
    words.insert(offset & !7, stored(old, offset, size, value));
}

/// Pages that hold a byte of `size` bytes at `base`.
fn pages(base: u64, size: u64) -> Vec<Pfn> {
    (base >> 12..(base + size).div_ceil(4096)).map(|n| Pfn::containing(Pa::new(n << 12))).collect()
}

/// One more loan of all these pages; `None` if one of them is not the host's.
fn lend(mut s: State, all: &[Pfn]) -> Option<State> {
    for pfn in all {
        let count = match memory::get_pfn_state(&s, *pfn)? {
            _ if *pfn == Pfn::new(0) => return None,
            PageState::Host => 1,
            PageState::Lent(count) => count.checked_add(1)?,
            _ => return None,
        };
        memory::set_pfn_state(&mut s, *pfn, PageState::Lent(count));
    }
    Some(s)
}

/// The host stores to a redistributor. It comes to have tables only where all of them are the host's, which they are from then on; then they stay where they are, until it is off and
/// says that no write is on its way.
pub fn gicr_store(s: State, mut gicr: Gicr, offset: u64, size: u64, value: u64, lpi_bits: u32) -> (State, Gicr) {
    let (on, stops) = (load(&gicr, 0, 4) & 1 == 1, load(&gicr, 0, 4) >> 3 & 1 == 1);
    if offset == 0 && value & 1 == 1 && !on {
        let (prop, pend) = (load(&gicr, 0x70, 8), load(&gicr, 0x78, 8));
        let numbers = 1u64 << ((prop & 0x1f) as u32 + 1).min(lpi_bits);
        let address = |register: u64, low: u32| register & ((1 << 52) - 1) >> low << low;
        let mut all = Vec::new();
        let possible = (8192..=65536).contains(&numbers) && !stops;
        if possible {
            all = pages(address(prop, 12), numbers - 8192);
            all.extend(pages(address(pend, 16), numbers / 8));
        }
        let lent = if possible { lend(s.clone(), &all) } else { None };
        store(&mut gicr, offset, size, if lent.is_some() { value } else { value & !1 });
        return (lent.unwrap_or(s), gicr);
    }
    if !((on || stops) && (0x70..0x80).contains(&offset)) {
        store(&mut gicr, offset, size, value);
    }
    (s, gicr)
}

/// What an ITS is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Given {
    /// The host's command.
    Command([u64; 4]),
    /// MAPD of this device for so many bits of events, with a table of the core's: zeroes, large enough, no other device's.
    Map(u32, u32),
}

/// An ITS: the first page of its control frame.
#[derive(Clone, Default)]
pub struct Its {
    /// What the hardware says: GITS_CTLR, GITS_TYPER and what is only passed on.
    pub words: Words,
    /// Type and entry size of GITS_BASER.
    pub fixed: [u64; 8],
    /// Bits of a device's number.
    pub device_bits: u32,
    /// What the host said.
    pub basers: [u64; 8],
    /// What the host said.
    pub cbaser: u64,
    /// What the host said.
    pub writer: u64,
    /// How far the ITS has come.
    pub reader: u64,
    /// Its next command is not in the host's memory.
    pub stalled: bool,
    /// Each table of the core's: its pages, and the device that has it.
    pub tables: Vec<(u64, Option<u32>)>,
    /// Blocks of 512 devices that have had a page of the device table.
    pub blocks: BTreeSet<u32>,
}

/// What the host loads from an ITS. Virtual LPIs are none of its features; it has the bits of devices that the core has a table for.
pub fn its_load(its: &Its, offset: u64, size: u64) -> u64 {
    let part = |value| load(&Words::from([(offset & !7, value)]), offset, size);
    match offset & !7 {
        0x08 => {
            let typer = load(&its.words, 0x08, 8);
            let (keep, bits) = (
                !(1 << 1 | 0x1f << 13 | 1 << 37 | 1 << 39 | 1 << 40 | 0b11 << 41),
                u64::from(its.device_bits - 1) << 13,
            );
            part(typer & keep | bits)
        }
        0x80 => part(its.cbaser),
        0x88 => part(its.writer),
        0x90 => part(its.reader | u64::from(its.stalled)),
        register @ 0x100..0x140 => {
            let n = (register - 0x100) as usize / 8;
            part(its.basers[n] & !(0x71f << 48) | its.fixed[n] & 0x71f << 48)
        }
        _ => load(&its.words, offset, size),
    }
}

/// The host stores to an ITS: only GITS_CTLR goes through.
pub fn its_store(mut its: Its, offset: u64, size: u64, value: u64) -> Its {
    match offset & !7 {
        0x00 if offset == 0 => store(&mut its.words, offset, size, value),
        0x80 => {
            its.cbaser = stored(its.cbaser, offset, size, value);
            (its.writer, its.reader, its.stalled) = (0, 0, false);
        }
        0x88 => {
            its.writer = stored(its.writer, offset, size, value) & 0xf_ffe0;
            its.stalled = false;
        }
        register @ 0x100..0x140 => {
            let n = (register - 0x100) as usize / 8;
            its.basers[n] = stored(its.basers[n], offset, size, value);
        }
        _ => {}
    }
    its
}

/// The ITS runs what the host has written, up to `most` commands: what it is given. `read` is the host's memory.
pub fn its_run(s: &State, mut its: Its, most: usize, read: impl Fn(Pa) -> [u64; 4]) -> (Its, Vec<Given>) {
    let mut given = Vec::new();
    for _ in 0..most {
        if load(&its.words, 0, 4) & 1 == 0 || its.stalled || its.reader == its.writer {
            break;
        }
        let at = Pa::new((its.cbaser & ((1 << 52) - 1) >> 12 << 12) + its.reader);
        let hosts = Pfn::containing(at) != Pfn::new(0) && lend(s.clone(), &[Pfn::containing(at)]).is_some();
        if !hosts {
            its.stalled = true;
            break;
        }
        given.extend(its_command(&mut its, read(at)));
        its.reader = (its.reader + 32) % (((its.cbaser & 0xff) + 1) * 4096);
    }
    (its, given)
}

/// One command: what the ITS gets of it. Nothing of one that is none of the host's, or that there is no room for.
fn its_command(its: &mut Its, words: [u64; 4]) -> Option<Given> {
    let device = (words[0] >> 32) as u32;
    let forget = |its: &mut Its| its.tables.iter_mut().filter(|t| t.1 == Some(device)).for_each(|t| t.1 = None);
    match words[0] & 0xff {
        0x08 if words[2] >> 63 == 1 => {
            let events = ((words[1] & 0x1f) as u32 + 1).min(11);
            let pages = (12u64 << events).div_ceil(4096).next_power_of_two();
            if device >> its.device_bits != 0 {
                return None;
            }
            // No more than 96 pages in all, a block's page first.
            let used = |its: &Its| its.tables.iter().map(|(pages, _)| pages).sum::<u64>() + its.blocks.len() as u64;
            if !its.blocks.contains(&(device >> 9)) && used(its) + 1 > 96 {
                return None;
            }
            its.blocks.insert(device >> 9);
            let free = its.tables.iter().position(|(have, owner)| owner.is_none() && *have >= pages);
            let table = match free {
                Some(table) => table,
                None if its.tables.len() < 64 && used(its) + pages <= 96 => {
                    its.tables.push((pages, None));
                    its.tables.len() - 1
                }
                None => return None,
            };
            forget(its);
            its.tables[table].1 = Some(device);
            Some(Given::Map(device, events))
        }
        0x08 => {
            forget(its);
            Some(Given::Command(words))
        }
        0x01 | 0x03 | 0x04 | 0x05 | 0x09..=0x0f => Some(Given::Command(words)),
        _ => None,
    }
}
