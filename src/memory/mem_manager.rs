//! Layer 16, MemManager: who owns a page of RAM, and who may reach it.
//!
//! The only place where a page changes hands. A transition checks everything first; after that it cannot fail.
//!
//! | primitive                  | transition                                     | lock             |
//! |----------------------------|------------------------------------------------|------------------|
//! | [`map_page_host`]          | the host maps what it owns or was shown        | S2Page, then Npt |
//! | [`assign_page_to_core`]    | `Host` -> `Core`                               | S2Page, then Npt |
//! | [`return_page_to_host`]    | `Core` -> `Host`, scrubbed                     | S2Page, then Npt |
//! | [`hold_mailbox`]           | `Host` -> `Lent(1)`, `Lent(n)` -> `Lent(n + 1)` | S2Page          |
//! | [`drop_mailbox`]           | back                                           | S2Page           |
//! | [`vm_table`]               | a VM's root and pool: `Host` -> `Core` and back | S2Page, then Npt |
//! | [`protected`]              | a protected VM's memory: `Host` -> `Private` <-> `Shared` | S2Page, then Npt |
//! | [`ordinary`]               | an ordinary VM's memory: `Host` <-> `Lent`     | S2Page, then Npt |
//! | [`reclaim`]                | all of a VM's memory -> `Host`                 | S2Page, then Npt |
//!
//! [`return_page_to_host`] is the proof's; the core never gives a page of its own back, so it is there for the specification's tests only.
//!
//! No two Npt locks are held at once; what was checked in one table stays true while S2Page is held, because nobody changes a table without it.
//!
//! What the host may access its devices may, and nothing else: each transition that changes the one changes the other (`take_from_host`, `show_to_devices`; K §8.3 A6).
//!
//! Below: PageManager (page records), NPTOps (stage-2 tables), MmioSPTOps (the SMMUs' table). Above: MemoryOps.
//! Specification: `spec::memory`. Source: SeKVM layer MemManager; K §2 L16, §8.3 A1, A4, A5, A7, A14, A15, A18, A21, A22, A24.
#![forbid(unsafe_code)]

pub mod ordinary;
pub mod protected;
pub mod reclaim;
pub mod vm_table;

use super::Memory;
use super::mem_region::{RegionKind, mem_region_search};
use super::page_manager::{
    PageState, S2Pages, change_pfn_run, get_pfn_run, get_pfn_state, host_blocks, host_may_access_block, set_pfn_run,
    set_pfn_state,
};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{BLOCK_2M, BLOCK_PAGES, Gfn, Ipa, PAGE_SIZE, Pa, Pfn, PhysRange, VmId};
use crate::interface::calls::MAX_RUN_PAGES;
use crate::npt::descriptor::{Desc, Stage2Access};
use crate::npt::npt_ops;
use crate::npt::npt_ops::vm::Prepared;
use crate::npt::npt_walk::{SetNptError, Walk};
use crate::npt::{Level, VmKind};
use crate::spt::mmio_spt_ops;

/// Most pages in one transition, but for a block: what other CPUs wait for, with their faults, is not long.
pub const PART: u64 = MAX_RUN_PAGES;

/// Pages of RAM behind one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first.
    pub first: Pfn,
    /// How many.
    pub pages: u64,
}

/// Why an access or a transition is refused. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    /// The device tree describes neither RAM nor a device there.
    NotDescribed,
    /// Page 0 is never given away (K §8.3 A15).
    PageZero,
    /// The page is not the asker's, or not in the state that the transition starts from.
    NotOwner,
    /// The core's own pool has no page left for a table.
    OutOfTables,
    /// The page is the host's, but lent (a mailbox is), and so cannot be given away; or it is lent or shared as often as can be counted; or the
    /// VM's place is taken.
    InUse,
    /// Something is mapped there already (K §8.3 A4), or a table stands where a block would.
    Occupied,
    /// The VM's pool has no page left.
    OutOfPool,
    /// There is no such VM.
    NoSuchVm,
    /// The VM is not of the kind whose memory changes hands that way.
    WrongKind,
    /// An address or a root is not aligned to its size (K §8.3 A5).
    Misaligned,
    /// An address is beyond the VM's address space, or an address space is none.
    OutOfRange,
    /// The VM's memory is on its way back to the host, or not all of it is back yet.
    Busy,
}

impl From<SetNptError> for Denied {
    /// For the table of a VM.
    fn from(error: SetNptError) -> Self {
        match error {
            SetNptError::Misaligned => Self::Misaligned,
            SetNptError::OutOfRange => Self::OutOfRange,
            SetNptError::Occupied => Self::Occupied,
            SetNptError::OutOfTables => Self::OutOfPool,
        }
    }
}

/// Maps what lies at the host's `ipa` for the host: its own page, or one that it was shown, or a device window; by
/// the largest block in which it may access every page. With a block of 2 MiB come those behind it, up to the first that the host may not access whole, or that is
/// mapped by pages, or to the end of their table: most of memory is the host's, and will be touched. If it is mapped already, that is success. If the pool is
/// empty, the host's tables are given back once: they only repeat what the page records say, and are filled again on demand.
/// K: `map_page_host`.
///
/// # Errors
/// [`Denied::NotDescribed`], [`Denied::NotOwner`] if a page of RAM is the core's or private to a VM,
/// [`Denied::OutOfTables`].
pub fn map_page_host<M: Machine>(mem: &Memory<M>, ipa: Ipa) -> Result<(), Denied> {
    let pa = ipa.identity();
    let pages = mem.s2page().acquire();
    let region = mem_region_search(mem.regions(), pa).ok_or(Denied::NotDescribed)?;
    let access = match region.kind {
        RegionKind::Device => Stage2Access::Window,
        RegionKind::Ram { .. } => {
            let state = get_pfn_state(&pages, mem.regions(), Pfn::containing(pa)).ok_or(Denied::NotDescribed)?;
            if !state.host_may_access() {
                return Err(Denied::NotOwner);
            }
            Stage2Access::Ram
        }
    };

    let leaf_of = |level: Level| {
        let block = block_around(pa, level)?;
        if !region.range.contains_range(block) {
            return None;
        }
        let leaves = match (access, level) {
            (Stage2Access::Window, _) | (_, Level::L3) => 1,
            (_, Level::L2) => host_blocks(&pages, mem.regions(), blocks_from(block.base(), region.range)),
            _ => host_may_access_block(&pages, mem.regions(), block).into(),
        };
        (leaves > 0).then(|| (Desc::stage2(level, block.base(), access), leaves))
    };
    let mut mapped = npt_ops::map_largest_s2pt(mem.npts(), ipa, leaf_of);
    if mapped == Err(SetNptError::OutOfTables) {
        npt_ops::forget_host(mem.npts());
        mapped = npt_ops::map_largest_s2pt(mem.npts(), ipa, leaf_of);
    }
    match mapped {
        Ok(()) => Ok(()),
        Err(SetNptError::OutOfTables) => Err(Denied::OutOfTables),
        // Beyond the table's input size there is nothing that a device tree could have described.
        Err(SetNptError::OutOfRange | SetNptError::Misaligned | SetNptError::Occupied) => Err(Denied::NotDescribed),
    }
}

/// The whole 2 MiB blocks from `base` on, the first page of one, to the end of `bank`.
fn blocks_from(base: Pa, bank: PhysRange) -> PhysRange {
    let size = bank.end().raw().saturating_sub(base.raw()) / BLOCK_2M * BLOCK_2M;
    PhysRange::new(base, size).unwrap_or_default()
}

/// The host's page `pfn` becomes the core's. Afterwards the host's stage 2 does not reach it, and no CPU holds a
/// translation to it.
///
/// Initiator: `Host`. K: what `protect_el2_mem` does page by page, at any time.
///
/// # Errors
/// [`Denied::PageZero`], [`Denied::NotDescribed`] if the page is no RAM, [`Denied::InUse`] if it is lent, [`Denied::NotOwner`] if it is not the host's.
pub fn assign_page_to_core<M: Machine>(mem: &Memory<M>, pfn: Pfn) -> Result<(), Denied> {
    let mut pages = mem.s2page().acquire();
    expect_host_pages(mem, &pages, pfn, 1)?;
    take_from_host(mem, pfn, 1);
    set_pfn_state(&mut pages, mem.regions(), pfn, PageState::Core);
    Ok(())
}

/// The core's page `pfn`, which nothing uses any more, becomes the host's: scrubbed, so nothing of the core shows. If
/// this makes a whole block the host's, the tables in its place go, and the next fault maps the block.
///
/// Initiator: `Core`.
///
/// # Errors
/// [`Denied::NotDescribed`] if the page is no RAM, [`Denied::NotOwner`] if it is not in state `Core`.
#[cfg(not(target_os = "none"))]
pub fn return_page_to_host<M: Machine>(mem: &Memory<M>, pfn: Pfn) -> Result<(), Denied> {
    let mut pages = mem.s2page().acquire();
    match get_pfn_state(&pages, mem.regions(), pfn) {
        None => return Err(Denied::NotDescribed),
        Some(PageState::Core) => {}
        Some(_) => return Err(Denied::NotOwner),
    }
    mem.machine().clear_phys_page(pfn);
    give_to_host(mem, &mut pages, pfn, 1);
    Ok(())
}

/// The host's page `pfn` may be read and written by the core until [`drop_mailbox`]; the host cannot give it away meanwhile.
///
/// Initiator: `Host`, `Lent`.
///
/// # Errors
/// [`Denied::PageZero`], [`Denied::NotDescribed`], [`Denied::NotOwner`], [`Denied::InUse`] if it is lent 255 times.
pub fn hold_mailbox<M: Machine>(mem: &Memory<M>, pfn: Pfn) -> Result<(), Denied> {
    let mut pages = mem.s2page().acquire();
    lend_more(mem, &mut pages, pfn, 1).map(|_| ())
}

/// Ends [`hold_mailbox`].
///
/// Initiator: `Lent`.
///
/// # Errors
/// [`Denied::NotDescribed`], [`Denied::NotOwner`] if the page is not lent.
pub fn drop_mailbox<M: Machine>(mem: &Memory<M>, pfn: Pfn) -> Result<(), Denied> {
    let mut pages = mem.s2page().acquire();
    match get_pfn_state(&pages, mem.regions(), pfn) {
        None => Err(Denied::NotDescribed),
        Some(PageState::Lent(count)) => {
            set_pfn_state(&mut pages, mem.regions(), pfn, lent_less(count));
            Ok(())
        }
        Some(_) => Err(Denied::NotOwner),
    }
}

/// State of `pfn`, which is in `state`, once it is lent once more.
fn lent_more(pfn: Pfn, state: Option<PageState>) -> Result<PageState, Denied> {
    match state {
        _ if pfn == Pfn::new(0) => Err(Denied::PageZero), // K §8.3 A15
        None => Err(Denied::NotDescribed),
        Some(PageState::Host) => Ok(PageState::Lent(1)),
        Some(PageState::Lent(count)) => Ok(PageState::Lent(count.checked_add(1).ok_or(Denied::InUse)?)),
        Some(_) => Err(Denied::NotOwner),
    }
}

/// Lends `pfn` once more, and those of the `most` pages from it on that are in the same state, as far as they were looked at. How many.
fn lend_more<M: Machine>(mem: &Memory<M>, pages: &mut S2Pages, pfn: Pfn, most: u64) -> Result<u64, Denied> {
    change_pfn_run(pages, mem.regions(), pfn, most, |state| lent_more(pfn, state))
}

/// State of a page that was lent `count` times, once it is lent once less.
fn lent_less(count: u8) -> PageState {
    if count > 1 { PageState::Lent(count - 1) } else { PageState::Host }
}

/// The host and its devices lose the `count` pages from `pfn` on: afterwards no CPU and no SMMU holds a translation to them.
fn take_from_host<M: Machine>(mem: &Memory<M>, pfn: Pfn, count: u64) {
    if count == BLOCK_PAGES && pfn.addr().is_aligned(BLOCK_2M) {
        npt_ops::clear_block_host(mem.npts(), pfn);
    } else {
        npt_ops::clear_run_host(mem.npts(), pfn, count);
    }
    if let Some(spt) = mem.spt() {
        mmio_spt_ops::unmap_spt(mem.machine(), spt, pfn, count);
    }
}

/// The host's devices reach the `count` pages from `pfn` on, which the host may access by now.
fn show_to_devices<M: Machine>(mem: &Memory<M>, pfn: Pfn, count: u64) {
    if let Some(spt) = mem.spt() {
        mmio_spt_ops::map_spt(mem.machine(), spt, pfn, count);
    }
}

/// The `count` pages from `pfn` on, within one 2 MiB block, scrubbed and reached by nobody else, become the host's. Where this lets the
/// host access a whole block, the tables in its place go, and the next fault maps the block.
fn give_to_host<M: Machine>(mem: &Memory<M>, pages: &mut S2Pages, pfn: Pfn, count: u64) {
    set_pfn_run(pages, mem.regions(), pfn, count, PageState::Host);
    let whole = |level: &Level| {
        let block = block_around(pfn.addr(), *level);
        block.is_some_and(|block| host_may_access_block(pages, mem.regions(), block))
    };
    // A whole GiB is looked at only where one of its parts is whole.
    if whole(&Level::L2) {
        let level = if whole(&Level::L1) { Level::L1 } else { Level::L2 };
        npt_ops::merge_host(mem.npts(), pfn, level);
        // As a block, whatever part of it is new.
        let block = Pfn::containing(pfn.addr().align_down(Level::L2.size()));
        show_to_devices(mem, block, BLOCK_PAGES);
    } else {
        show_to_devices(mem, pfn, count);
    }
}

/// The pages from `pfn` on.
fn run(pfn: Pfn, count: u64) -> impl Iterator<Item = Pfn> {
    (0..count).map_while(move |n| pfn.checked_add(n))
}

/// `act` for the `count` pages from `pfn` on, run by run: it gets the first page of a run and how many there may be in it, and says how many there are. Pages before the
/// first that is refused, and why it is.
fn by_runs(pfn: Pfn, count: u64, mut act: impl FnMut(Pfn, u64) -> Result<u64, Denied>) -> (u64, Result<(), Denied>) {
    let mut done = 0;
    while let Some(page) = pfn.checked_add(done).filter(|_| done < count) {
        match act(page, count - done) {
            Ok(run) => done += run,
            Err(reason) => return (done, Err(reason)),
        }
    }
    (done, Ok(()))
}

/// `act` for the first `most` pages of `runs`, part by part, until one is refused: as in [`by_runs`]. Pages done.
fn by_parts_of(runs: &[Run], most: u64, mut act: impl FnMut(Pfn, u64) -> Result<u64, Denied>) -> u64 {
    let mut done = 0;
    for run in runs {
        let (part, _) = by_runs(run.first, run.pages.min(most - done), &mut act);
        done += part;
        if part < run.pages {
            break;
        }
    }
    done
}

/// The first `count` pages of `runs`.
fn first_of(runs: &[Run], count: u64) -> impl Iterator<Item = Run> {
    runs.iter().scan(count, |left, run| {
        let pages = run.pages.min(*left);
        *left -= pages;
        (pages > 0).then_some(Run { first: run.first, pages })
    })
}

/// Where a VM gets leaves, and of which level.
#[derive(Clone, Copy)]
struct Place {
    vm: VmId,
    gfn: Gfn,
    level: Level,
}

impl Place {
    /// Pages of one leaf.
    const fn leaf_pages(self) -> u64 {
        self.level.size() / PAGE_SIZE
    }
}

/// Makes sure that pages of `runs`, [`PART`] at most, or a block, can be mapped at `place`: how many the table has room for. Of the pages themselves `may` says whether they can be
/// the VM's: it is asked of those of the first leaf.
fn prepare<M: Machine>(
    mem: &Memory<M>,
    place: Place,
    runs: &[Run],
    may: impl FnOnce(Pfn, u64) -> Result<(), Denied>,
) -> Result<(u64, Prepared), Denied> {
    let Place { vm, gfn, level } = place;
    let first = runs.first().ok_or(Denied::OutOfRange)?.first;
    if !first.addr().is_aligned(level.size()) {
        return Err(Denied::Misaligned); // K §8.3 A5
    }
    may(first, place.leaf_pages())?;
    let all = runs.iter().map(|run| run.pages).sum::<u64>();
    let prepared = npt_ops::vm::prepare_vm_s2pt(mem.npts(), vm, gfn.addr(), level, all.min(PART))?;
    Ok((prepared.leaves() * place.leaf_pages(), prepared))
}

/// Maps the first `count` pages of `runs` at `place`, where [`prepare`] made sure that they can be. By now they are the VM's, or lent to it.
fn fill<M: Machine>(mem: &Memory<M>, place: Place, access: Stage2Access, runs: &[Run], count: u64, prepared: Prepared) {
    let Place { vm, gfn, level } = place;
    let forced = mem.machine().forces_write_back();
    // The machine takes no more of them than there are to be.
    let leaves = runs.iter().map(|run| {
        let leaf = Desc::of_vm(level, run.first.addr(), access, forced);
        (leaf, run.pages / place.leaf_pages())
    });
    let count = count / place.leaf_pages();
    npt_ops::vm::fill_vm_s2pt(mem.npts(), vm, gfn.addr(), level, (prepared, count), leaves);
}

/// Whether `vm` is a VM that has not begun to give its memory back. Its kind.
fn expect_live<M: Machine>(mem: &Memory<M>, vm: VmId) -> Result<VmKind, Denied> {
    let (kind, live) = npt_ops::vm::vm_kind(mem.npts(), vm).ok_or(Denied::NoSuchVm)?;
    if live { Ok(kind) } else { Err(Denied::Busy) }
}

/// The same, and whether it is of this kind.
fn expect_vm<M: Machine>(mem: &Memory<M>, vm: VmId, kind: VmKind) -> Result<(), Denied> {
    if expect_live(mem, vm)? == kind { Ok(()) } else { Err(Denied::WrongKind) }
}

/// Whether the host may give the `count` pages from `pfn` on away: all RAM, all plainly its own, page 0 not among them.
fn expect_host_pages<M: Machine>(mem: &Memory<M>, pages: &S2Pages, pfn: Pfn, count: u64) -> Result<(), Denied> {
    if pfn.checked_add(count).is_none() {
        return Err(Denied::NotDescribed);
    }
    expect_pages(mem, pages, pfn, count, expect_host)
}

/// Whether each of the `count` pages from `pfn` on is in a state that `may` lets pass; it is asked of each run of pages in one state, of the first of them.
fn expect_pages<M: Machine, T>(
    mem: &Memory<M>,
    pages: &S2Pages,
    pfn: Pfn,
    count: u64,
    may: impl Fn(Pfn, Option<PageState>) -> Result<T, Denied>,
) -> Result<(), Denied> {
    let passed = by_runs(pfn, count, |page, most| {
        let found = get_pfn_run(pages, mem.regions(), page, most);
        may(page, found.map(|(state, _)| state))?;
        Ok(found.map_or(0, |(_, run)| run))
    });
    passed.1
}

/// Whether the host may give `pfn` away, which is in `state`.
fn expect_host(pfn: Pfn, state: Option<PageState>) -> Result<(), Denied> {
    match state {
        _ if pfn == Pfn::new(0) => Err(Denied::PageZero), // K §8.3 A15
        None => Err(Denied::NotDescribed),
        Some(PageState::Host) => Ok(()),
        Some(PageState::Lent(_)) => Err(Denied::InUse),
        Some(_) => Err(Denied::NotOwner),
    }
}

/// What stands at `gfn` of a VM: the page, and its state; none where nothing or a window is mapped, or the VM is on its way out.
pub fn walk_vm<M: Machine>(mem: &Memory<M>, vm: VmId, gfn: Gfn) -> Option<(Pfn, PageState)> {
    let pages = mem.s2page().acquire();
    let pfn = mapped_page(mem, vm, gfn)?;
    Some((pfn, get_pfn_state(&pages, mem.regions(), pfn)?))
}

/// The physical page that a VM's `gfn` is mapped to.
fn mapped_page<M: Machine>(mem: &Memory<M>, vm: VmId, gfn: Gfn) -> Option<Pfn> {
    let Walk::Mapped(level, leaf) = npt_ops::vm::walk_vm_s2pt(mem.npts(), vm, gfn.addr())? else { return None };
    let within = gfn.addr().raw() & (level.size() - 1);
    leaf.address().checked_add(within).map(Pfn::containing)
}

/// The naturally aligned block of `level` around `pa`, unless it runs past the end of the address space.
fn block_around(pa: Pa, level: Level) -> Option<PhysRange> {
    PhysRange::new(pa.align_down(level.size()), level.size())
}
