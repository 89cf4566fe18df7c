//! Layer 11, MmioSPTWalk: whole walks through the table of the SMMUs.
//!
//! | primitive            | does                                                                            | lock |
//! |----------------------|---------------------------------------------------------------------------------|------|
//! | [`add_smmu_pt`]      | tables for a range, which becomes reachable; at boot                            | Spt  |
//! | [`walk_smmu_pt`]     | the leaf that maps an address                                                   | Spt  |
//! | [`walk_smmu_block`]  | which pages of a block are reachable                                            | Spt  |
//! | [`set_smmu_pt`]      | pages of one block become reachable                                             | Spt  |
//! | [`clear_smmu_pt`]    | pages of one block become unreachable; the TLBs still hold them                 | Spt  |
//!
//! A block's entry changes between leaf, table and nothing in one store: where blocks are used at all, the SMMUs allow that
//! ([`Spt::largest`]), and devices that use the rest of the block notice nothing. A table is complete, and seen to be, before an entry leads to it.
//!
//! Below: MmioPTWalk. Above: MmioSPTOps. Specification: `spec::spt`. Source: SeKVM layer MmioSPTWalk; K §2 L11.
#![forbid(unsafe_code)]

use super::Spt;
use super::mmio_pt_alloc::Reserve;
use super::mmio_pt_walk::{
    set_smmu_pmd, set_smmu_pte, smmu_pmd, smmu_pte, walk_smmu_pgd, walk_smmu_pmd, walk_smmu_pte,
};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_2M, BLOCK_PAGES, Ia, Ipa, PAGE_SIZE, Pa, Pfn, PhysRange};
use crate::npt::Level;
use crate::npt::descriptor::{Desc, Kind, Stage2Access};
use crate::npt::pt_alloc::OutOfTables;

/// Pages of one block of 2 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    first: Pa,
    pages: u64,
}

impl Part {
    /// The part of the `count` pages from `pfn` on that lies in the block of the first. `None` if there are none.
    pub fn first_of(pfn: Pfn, count: u64) -> Option<Self> {
        let pages = count.min(BLOCK_PAGES - pfn.raw() % BLOCK_PAGES);
        (pages > 0).then_some(Self { first: pfn.addr(), pages })
    }

    /// How many pages these are.
    pub const fn pages(self) -> u64 {
        self.pages
    }

    /// Where a device sees the first of them.
    pub fn first_ipa(self) -> Ipa {
        Ipa::new(self.first.raw())
    }

    fn is_block(self) -> bool {
        self.pages == BLOCK_PAGES
    }

    /// What an entry for the first page, or for the block, is looked up by.
    fn at(self) -> Ia {
        Ia::new(self.first.raw())
    }

    fn addresses(self) -> impl Iterator<Item = Pa> {
        (0..self.pages).map_while(move |n| self.first.checked_add(n * PAGE_SIZE))
    }
}

/// Gives `range`, whole pages, its tables, and maps it for `access`. What lies beyond the table's input size is left out: no address of a device leads
/// there. For boot: the SMMUs do not use the table yet.
///
/// # Errors
/// [`OutOfTables`].
pub fn add_smmu_pt<M: Machine>(
    machine: &M,
    spt: &Spt,
    range: PhysRange,
    access: Stage2Access,
    reserve: &mut Reserve,
) -> Result<(), OutOfTables> {
    let (mut pfn, mut left) = (range.first_pfn(), range.pages());
    while let Some(part) = Part::first_of(pfn, left) {
        if let Some(pgd) = walk_smmu_pgd(machine, spt, part.at(), Some(reserve))?
            && let Some(pmd) = walk_smmu_pmd(machine, pgd, part.at(), Some(reserve))?
            && let Some(pte) = walk_smmu_pte(machine, pmd, part.at(), Some(reserve))?
        {
            set_part(machine, spt, (pmd, pte), part, access);
        }
        left -= part.pages;
        let Some(next) = pfn.checked_add(part.pages) else { break };
        pfn = next;
    }
    Ok(())
}

/// The level-2 and the level-3 table for an address; none where no memory is.
fn tables_for<M: Machine>(machine: &M, spt: &Spt, at: Ia) -> Option<(Pa, Pa)> {
    // Without a reserve no step can run out of tables.
    let pgd = walk_smmu_pgd(machine, spt, at, None).ok()??;
    let pmd = walk_smmu_pmd(machine, pgd, at, None).ok()??;
    let pte = walk_smmu_pte(machine, pmd, at, None).ok()??;
    Some((pmd, pte))
}

/// The leaf that maps `at`. K: `walk_smmu_pt`.
pub fn walk_smmu_pt<M: Machine>(machine: &M, spt: &Spt, at: Ia) -> Option<(Level, Desc)> {
    let (pmd, pte) = tables_for(machine, spt, at)?;
    let block = smmu_pmd(machine, pmd, at);
    match block.kind(Some(Level::L2)) {
        Kind::Invalid => None,
        Kind::Leaf(_) => Some((Level::L2, block)),
        Kind::Table(_) => Some((Level::L3, smmu_pte(machine, pte, at))).filter(|(_, leaf)| leaf.is_valid()),
    }
}

/// Which pages of the 2 MiB block around `at` devices reach at their own addresses: a bit for each.
pub fn walk_smmu_block<M: Machine>(machine: &M, spt: &Spt, at: Ia) -> [u64; BLOCK_PAGES as usize / 64] {
    let (mut reached, base) = ([0; BLOCK_PAGES as usize / 64], at.align_down(BLOCK_2M));
    let Some((pmd, pte)) = tables_for(machine, spt, base) else { return reached };
    let entry = smmu_pmd(machine, pmd, base);
    let block = entry.kind(Some(Level::L2));
    for n in 0..BLOCK_PAGES {
        let page = base.raw() + n * PAGE_SIZE;
        let is_reached = match block {
            Kind::Invalid => false,
            Kind::Leaf(to) => to.raw() == base.raw(),
            Kind::Table(_) => smmu_pte(machine, pte, Ia::new(page)).kind(Some(Level::L3)) == Kind::Leaf(Pa::new(page)),
        };
        if let Some(word) = reached.get_mut(n as usize / 64) {
            *word |= u64::from(is_reached) << (n % 64);
        }
    }
    reached
}

/// Devices reach these pages of RAM from now on. Whether TLBs have to forget what stood in their place: an entry that leads to a table, no leaf. K: `set_smmu_pt`.
pub fn set_smmu_pt<M: Machine>(machine: &M, spt: &Spt, part: Part) -> bool {
    tables_for(machine, spt, part.at()).is_some_and(|tables| set_part(machine, spt, tables, part, Stage2Access::Ram))
}

fn set_part<M: Machine>(machine: &M, spt: &Spt, (pmd, pte): (Pa, Pa), part: Part, access: Stage2Access) -> bool {
    let stands = smmu_pmd(machine, pmd, part.at()).kind(Some(Level::L2));
    if part.is_block() && spt.largest < Level::L3 {
        set_smmu_pmd(machine, pmd, part.at(), Desc::stage2(Level::L2, part.first, access));
        return matches!(stands, Kind::Table(_));
    }
    match stands {
        // All of it is reachable.
        Kind::Leaf(_) => return false,
        Kind::Invalid => fill(machine, pte, part.at(), Desc::INVALID),
        Kind::Table(_) => {}
    }
    for page in part.addresses() {
        set_smmu_pte(machine, pte, Ia::new(page.raw()), Desc::stage2(Level::L3, page, access));
    }
    if stands == Kind::Invalid {
        lead_to(machine, pmd, pte, part.at());
    }
    false
}

/// No walk leads to these pages any more; TLBs may still. K: `clear_smmu_pt`.
pub fn clear_smmu_pt<M: Machine>(machine: &M, spt: &Spt, part: Part) {
    let Some((pmd, pte)) = tables_for(machine, spt, part.at()) else { return };
    let block = smmu_pmd(machine, pmd, part.at());
    if part.is_block() {
        return set_smmu_pmd(machine, pmd, part.at(), Desc::INVALID);
    }
    if let Kind::Leaf(_) = block.kind(Some(Level::L2)) {
        fill(machine, pte, part.at(), block);
        lead_to(machine, pmd, pte, part.at());
    }
    for page in part.addresses() {
        set_smmu_pte(machine, pte, Ia::new(page.raw()), Desc::INVALID);
    }
}

/// Fills the level-3 table at `pte`, which no entry leads to, with the pages of `block`.
fn fill<M: Machine>(machine: &M, pte: Pa, at: Ia, block: Desc) {
    let base = at.align_down(BLOCK_2M).raw();
    for offset in (0..BLOCK_2M).step_by(PAGE_SIZE as usize) {
        let page = if block.is_valid() { block.shrunk(Level::L3, offset) } else { Desc::INVALID };
        set_smmu_pte(machine, pte, Ia::new(base + offset), page);
    }
}

/// The block's entry leads to its level-3 table, whatever it was.
fn lead_to<M: Machine>(machine: &M, pmd: Pa, pte: Pa, at: Ia) {
    machine.publish_to_smmus();
    set_smmu_pmd(machine, pmd, at, Desc::table(pte));
}
