//! Layer 12, MmioSPTOps: the table of the SMMUs under its lock, with their TLBs kept in step.
//!
//! | primitive        | does                                                                     | lock      |
//! |------------------|--------------------------------------------------------------------------|-----------|
//! | [`init_spt`]     | a table of all RAM, and of the pages that take interrupts; at boot       | none yet  |
//! | [`walk_spt_block`] | which pages of a block devices reach                                   | takes Spt |
//! | [`map_spt`]      | devices reach some pages                                                 | takes Spt |
//! | [`unmap_spt`]    | devices no longer reach some pages, and no TLB of an SMMU says otherwise  | takes Spt |
//!
//! Unlike the proof's, [`unmap_spt`] makes the SMMUs forget, and waits for accesses that are on their way (K §8.3 A6). None of them can fail.
//!
//! Below: MmioSPTWalk. Above: MemManager. Specification: `spec::spt`. Source: SeKVM layer MmioSPTOps; K §2 L12.
#![forbid(unsafe_code)]

use super::Spt;
use super::mmio_pt_alloc::{Reserve, alloc_smmu_root};
use super::mmio_spt_walk::{Part, add_smmu_pt, clear_smmu_pt, set_smmu_pt, walk_smmu_block};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_PAGES, Ipa, Pfn, PhysRange};
use crate::abstract_machine::shape::Shape;
use crate::locks::{Lock, Rank};
use crate::npt::Level;
use crate::npt::descriptor::Stage2Access;
use crate::npt::pt_alloc::OutOfTables;

/// A table in which devices reach all of `ram`, by leaves of at most `largest` ([`Level::L2`] or [`Level::L3`]), and all of `doorbells`. It stands in `tables`: zeroed memory of the
/// core's own, aligned to 2 MiB, of [`pages_for`](super::mmio_pt_alloc::pages_for) pages. K: `init_spt`.
///
/// # Errors
/// [`OutOfTables`].
pub fn init_spt<M: Machine>(
    machine: &M,
    shape: Shape,
    largest: Level,
    tables: PhysRange,
    ram: impl Iterator<Item = PhysRange>,
    doorbells: impl Iterator<Item = PhysRange>,
) -> Result<Lock<Spt>, OutOfTables> {
    let mut reserve = Reserve::new(tables);
    let spt = Spt { root: alloc_smmu_root(&mut reserve, shape)?, shape, largest };
    for range in ram {
        add_smmu_pt(machine, &spt, range, Stage2Access::Ram, &mut reserve)?;
    }
    for range in doorbells {
        add_smmu_pt(machine, &spt, range, Stage2Access::Window, &mut reserve)?;
    }
    machine.publish_to_smmus();
    Ok(Lock::new(Rank::Spt, spt))
}

/// Which pages of the 2 MiB block around `at` devices reach, each at its own address: a bit for each. `None` for an address that no device has.
pub fn walk_spt_block<M: Machine>(machine: &M, spt: &Lock<Spt>, at: Ipa) -> Option<[u64; BLOCK_PAGES as usize / 64]> {
    let spt = spt.acquire();
    (at.raw() >> spt.shape().ia_bits() == 0).then(|| walk_smmu_block(machine, &spt, at.into()))
}

/// Devices reach the `count` pages from `pfn` on, RAM of one bank, from now on. K: `map_spt`.
pub fn map_spt<M: Machine>(machine: &M, spt: &Lock<Spt>, pfn: Pfn, count: u64) {
    let spt = spt.acquire();
    for part in parts(pfn, count) {
        if set_smmu_pt(machine, &spt, part) {
            // What remembers the table would look there for ever, and it is not kept any more. One address of the block is enough.
            machine.smmu_flush(part.first_ipa(), 1);
        }
    }
    machine.publish_to_smmus();
}

/// Devices do not reach the `count` pages from `pfn` on any more: no walk leads there, no SMMU remembers one, and every access that was on its way is over.
/// K: `unmap_spt`.
pub fn unmap_spt<M: Machine>(machine: &M, spt: &Lock<Spt>, pfn: Pfn, count: u64) {
    let spt = spt.acquire();
    for part in parts(pfn, count) {
        clear_smmu_pt(machine, &spt, part);
    }
    machine.smmu_flush(pfn.identity().addr(), count);
}

/// The pages from `pfn` on, block by block.
fn parts(pfn: Pfn, count: u64) -> impl Iterator<Item = Part> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let part = Part::first_of(pfn.checked_add(done)?, count - done)?;
        done += part.pages();
        Some(part)
    })
}
