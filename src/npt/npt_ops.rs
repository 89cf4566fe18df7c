//! Layer 8, NPTOps: the tables under their locks, with the TLBs kept in step.
//!
//! | primitive                | does                                                               | lock      |
//! |--------------------------|--------------------------------------------------------------------|-----------|
//! | [`walk_s2pt`]            | the leaf at an address                                             | takes Npt |
//! | [`map_largest_s2pt`]     | puts a leaf where nothing is, of the largest size that both table and owner allow | takes Npt |
//! | [`clear_run_host`]       | the host no longer reaches some pages, and no TLB says otherwise | takes Npt |
//! | [`merge_host`]           | the tables in the place of one block go                            | takes Npt |
//! | [`clear_block_host`]     | the same for a block of 2 MiB                                      | takes Npt |
//! | [`forget_host`]          | all tables of the host below the root go                           | takes Npt |
//! | [`vm`]                   | the same for the tables of VMs                                     | takes Npt |
//!
//! What one critical section makes valid is one leaf, or leaves behind one another in one table where nothing stood: a walk meets one of them, so it gives what it gave
//! before or what it gives after, in whatever order they are seen (K §6.1 17; the proof has one leaf only). What was valid is unmapped by: invalid entry, DSB, TLBI by
//! IPA and of combined entries, DSB, and only then anything else (break before make; VRM's sequential TLB invalidation).
//!
//! Below: NPTWalk. Above: MemManager. Specification: `spec::npt`. Source: SeKVM layer NPTOps; K §2 L8.
#![forbid(unsafe_code)]

pub mod vm;

use super::descriptor::Desc;
use super::npt_walk::{self, SetNptError, Walk};
use super::{Level, Npt, Npts};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Ia, Ipa, Pfn, VmId};

/// The leaf that maps the host's `ipa`. K: `walk_s2pt`.
pub fn walk_s2pt<M: Machine>(npts: &Npts<M>, ipa: Ipa) -> Option<(Level, Desc)> {
    let mut npt = npts.host().acquire();
    match npt_walk::walk_npt(npts.machine(), &mut npt, ipa.into()) {
        Walk::Mapped(level, leaf) => Some((level, leaf)),
        Walk::Hole(_) => None,
    }
}

/// Maps the host's `ipa` by the largest leaf that fits into the table and for which `leaf_of` has one; `leaf_of` is
/// asked from the largest level down, and says how many leaves of that level, the one around `ipa` first, may be put behind one another: they are, as far as
/// nothing stands there and to the end of the table. If something is mapped at `ipa` already, by another CPU a moment ago, that is success.
///
/// # Errors
/// [`SetNptError::OutOfTables`], or [`SetNptError::OutOfRange`] for an address the table has no place for, or
/// [`SetNptError::Occupied`] if `leaf_of` has none that fits. Nothing that translates has changed.
pub fn map_largest_s2pt<M: Machine>(
    npts: &Npts<M>,
    ipa: Ipa,
    leaf_of: impl Fn(Level) -> Option<(Desc, u64)>,
) -> Result<(), SetNptError> {
    let machine = npts.machine();
    let mut npt = npts.host().acquire();
    let Walk::Hole(largest) = npt_walk::walk_npt(machine, &mut npt, ipa.into()) else { return Ok(()) };
    for level in Level::ALL.into_iter().filter(|level| *level >= largest) {
        if let Some((leaf, most)) = leaf_of(level) {
            let ia = Ia::from(ipa).align_down(level.size());
            let table = npt_walk::prepare_npt(machine, &mut npt, ia, level);
            if let Ok(table) = table {
                let count = npt_walk::free_slots(machine, table, ia, level, most);
                npt_walk::set_free(machine, table, ia, level, count, leaf);
            }
            machine.publish_tables();
            return table.map(|_| ());
        }
    }
    Err(SetNptError::Occupied)
}

/// Makes the host's stage 2 forget the `count` pages from `pfn` on: afterwards no CPU holds a translation to them. All entries go first, then there is one flush. A block around
/// a page is split, so the rest of it stays mapped. If the pool has no page for the split, the whole block goes: the host's table only
/// repeats what the page records say, so the rest comes back when the host touches it. K: `clear_pfn_host`.
pub fn clear_run_host<M: Machine>(npts: &Npts<M>, pfn: Pfn, count: u64) {
    let machine = npts.machine();
    let mut npt = npts.host().acquire();
    let (mut cleared, mut done) = (false, 0);
    while let Some(page) = pfn.checked_add(done).filter(|_| done < count) {
        let (was_there, pages) = clear_host(machine, &mut npt, page.identity().addr(), count - done);
        cleared |= was_there;
        done += pages;
    }
    if cleared {
        machine.tlb_flush_run(VmId::HOST, npt.vttbr(), pfn.identity().addr(), count);
    }
}

/// Takes the host's page at `ipa` out of its table, out of a block around it if need be, and those behind it as far as that is one step, up to `most`. Whether anything
/// was there, which the TLBs still hold, and how many pages are done.
fn clear_host<M: Machine>(machine: &M, npt: &mut Npt, ipa: Ipa, most: u64) -> (bool, u64) {
    loop {
        match npt_walk::clear_pages(machine, npt, ipa.into(), most, |_| true) {
            (Walk::Hole(_), pages) => return (false, pages),
            (Walk::Mapped(Level::L3, _), pages) => return (true, pages),
            (Walk::Mapped(..), _) if split_host(machine, npt, ipa) => {}
            (Walk::Mapped(..), _) => return (npt_walk::clear_npt(machine, npt, ipa.into()).is_some(), 1),
        }
    }
}

/// The block that maps the host's `ipa` becomes leaves of the next smaller level. Whether it did: not if there is none, or no table.
fn split_host<M: Machine>(machine: &M, npt: &mut Npt, ipa: Ipa) -> bool {
    let Ok(Some(split)) = npt_walk::split_npt(machine, npt, ipa.into()) else { return false };
    machine.tlb_flush_ipa(VmId::HOST, npt.vttbr(), ipa);
    npt_walk::finish_split(machine, split);
    machine.publish_tables();
    true
}

/// Makes the host's stage 2 forget the 2 MiB from `pfn` on, which is aligned to it: afterwards no CPU holds a translation to it. However
/// it was mapped, this is one flush, or two where a 1 GiB block is split. If the pool has no page for that split, the whole block goes.
pub fn clear_block_host<M: Machine>(npts: &Npts<M>, pfn: Pfn) {
    let machine = npts.machine();
    let ipa = pfn.identity().addr();
    let mut npt = npts.host().acquire();
    let root = npt.vttbr();
    if let Walk::Mapped(Level::L1, _) = npt_walk::walk_npt(machine, &mut npt, ipa.into()) {
        split_host(machine, &mut npt, ipa);
    }
    if let Some(unlinked) = npt_walk::unlink_npt(machine, &mut npt, ipa.into(), Level::L2) {
        // By address it would take one flush for each page that the table mapped.
        machine.tlb_flush_vm(VmId::HOST, root);
        npt_walk::free_unlinked(machine, &mut npt, unlinked);
    } else if npt_walk::clear_npt(machine, &mut npt, ipa.into()).is_some() {
        machine.tlb_flush_ipa(VmId::HOST, root, ipa);
    }
}

/// Where a block of `level` around `pfn` could be mapped for the host, but a table stands: the table goes, with all below
/// it, so that the next fault can map the block. Nothing happens if no table stands there.
pub fn merge_host<M: Machine>(npts: &Npts<M>, pfn: Pfn, level: Level) {
    let machine = npts.machine();
    let mut npt = npts.host().acquire();
    let Some(unlinked) = npt_walk::unlink_npt(machine, &mut npt, pfn.identity().addr().into(), level) else { return };
    // By address it would take one flush for each page that the table mapped.
    machine.tlb_flush_vm(VmId::HOST, npt.vttbr());
    npt_walk::free_unlinked(machine, &mut npt, unlinked);
}

/// Gives all tables of the host below the root back to the pool. What they mapped comes back when the host touches it:
/// its table is a cache of what the page records say.
pub fn forget_host<M: Machine>(npts: &Npts<M>) {
    let machine = npts.machine();
    let mut npt = npts.host().acquire();
    npt_walk::park_all(machine, &mut npt);
    machine.tlb_flush_vm(VmId::HOST, npt.vttbr());
    npt_walk::free_parked(machine, &mut npt);
}
