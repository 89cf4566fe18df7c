//! The host attacks with its own GICv3. A redistributor writes pending bits where GICR_PENDBASER says, an interrupt translation service (ITS) its tables
//! where GITS_BASER and its commands say: memory that no stage 2 and no SMMU guards. A protected VM with secrets (tests/guests/src/bin/keeper.rs) runs
//! meanwhile and finds all as it was; what must work for the host works, before, between and after the attacks.
//!
//! What a redistributor has used stays lent to it: those pages are no VM's any more in this run.
#![forbid(unsafe_code)]

mod odd;
mod race;
mod service;
mod tables;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use corevisor_interface::calls::MAX_PAGES;

use self::service::Service;
use self::tables::{Redistributor, Tables};
use super::victim::{Victim, forbidden, secret_in};
use super::{Context, ensure};
use crate::arch::gic::Gic;
use crate::arch::memory;
use crate::calls;
use crate::guest::{Failure, at};
use crate::pages::{self, BLOCK, PAGE};

/// The core's counts of host accesses that it refused, and of those to registers that it stands in front of (`Event`).
const HOST_ACCESS_DENIED: u64 = 1;
const HOST_MMIO: u64 = 22;

/// What a redistributor's tables are aligned to; the configuration of 16 bits of interrupts needs less.
const ALIGNMENT: u64 = 0x1_0000;
/// A part of the attacker's block: a configuration table, and behind it one of pending bits. The first parts are for other things.
const PART: u64 = 2 * ALIGNMENT;
const PART_OF_QUEUE: u64 = 0;
const PART_OF_HALVES: u64 = 1;
const PART_TO_SPARE: u64 = 2;
const FIRST_OF_TABLES: u64 = 3;
/// In the part of the queue: pages that the ITS is told to use, and one for a translation table of this host's.
const USED: u64 = 4 * PAGE;
const ROOT: u64 = 8 * PAGE;
/// In every word of the pages that the ITS is told to use.
const PATTERN: u64 = 0x17b5_0000_17b5_0000;
/// Where nothing is.
const NOWHERE: u64 = 0x7f_ffff_0000;

/// All that the attacks are about.
struct Ground {
    gic: Gic,
    redistributors: Vec<Redistributor>,
    service: Service,
    victim: Victim,
    /// Memory of this host's.
    block: u64,
    /// What is not this host's, aligned for any table.
    places: Vec<(&'static str, u64)>,
    attacks: AtomicU64,
}

impl Ground {
    fn new(context: &Context<'_>, gic: Gic, its: u64) -> Result<Self, Failure> {
        let victim = Victim::start(context)?;
        let private = victim.private.iter().copied().find(|page| page.is_multiple_of(ALIGNMENT));
        let private = private.ok_or_else(|| Failure::Text("no private page is aligned as tables are".into()))?;
        let core = forbidden().into_iter().next().unwrap_or_default();
        let block = pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?;
        memory::zero(block, BLOCK);
        let frames = gic.redistributors();
        ensure(
            FIRST_OF_TABLES + frames.len() as u64 <= BLOCK / PART,
            "there are more redistributors than this is for",
        )?;
        let tables = |n: u64| Tables::at(block + (FIRST_OF_TABLES + n) * PART);
        let redistributors = (0..).zip(frames).map(|(n, (frame, own))| Redistributor::new(frame, own, tables(n)));
        Ok(Self {
            gic,
            redistributors: redistributors.collect(),
            service: Service::new(its, block + PART_OF_QUEUE * PART),
            victim,
            block,
            places: alloc::vec![("a private page", private), ("the core's memory", core), ("no memory", NOWHERE)],
            attacks: AtomicU64::new(0),
        })
    }

    /// Tables that no redistributor works with.
    fn spare(&self) -> Tables {
        Tables::at(self.block + PART_TO_SPARE * PART)
    }

    /// The redistributor that is attacked hardest: of the last CPU.
    fn last(&self) -> Result<&Redistributor, Failure> {
        self.redistributors.last().ok_or_else(|| Failure::Text("there is no redistributor".into()))
    }

    /// What this host does here is an attack: the core has refused exactly so many things of it.
    fn refused<T>(&self, what: &str, times: u64, attack: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let before = counted(HOST_ACCESS_DENIED)?;
        let done = attack().map_err(|failure| Failure::Text(alloc::format!("{what}: {failure}")))?;
        let found = counted(HOST_ACCESS_DENIED)? - before;
        ensure(found == times, &alloc::format!("{what}: the core has counted {found} refusals, not {times}"))?;
        self.attacks.fetch_add(times, SeqCst);
        self.victim.have_a_turn();
        Ok(done)
    }

    /// A page that the ITS is told to use, full of [`PATTERN`].
    fn used(&self, n: u64) -> u64 {
        self.block + PART_OF_QUEUE * PART + USED + n * PAGE
    }

    /// Nothing has written the pages that the ITS was told to use.
    fn is_unused(&self, what: &str) -> Result<(), Failure> {
        (0..2).try_for_each(|n| {
            ensure(holds(self.used(n), PATTERN), &alloc::format!("{what}: the ITS has written a page of this host's"))
        })
    }
}

/// How often the core has counted this.
fn counted(event: u64) -> Result<u64, Failure> {
    at("CoreStatistics", calls::core_statistics(event))
}

/// Fills a page of this host's with a word.
fn fill(page: u64, word: u64) {
    (page..page + PAGE).step_by(8).for_each(|at| memory::copy_to(at, &word.to_le_bytes()));
    memory::clean(page, PAGE);
}

/// Whether each word of a page of this host's is this one.
fn holds(page: u64, word: u64) -> bool {
    memory::clean(page, PAGE);
    (page..page + PAGE).step_by(8).all(|at| {
        let mut bytes = [0; 8];
        memory::copy_from(at, &mut bytes);
        u64::from_le_bytes(bytes) == word
    })
}

/// All of it.
pub fn gic(context: &Context<'_>) -> Result<String, Failure> {
    let gic = context.machine.gic.filter(|gic| !gic.redistributors().is_empty());
    let (Some(gic), Some(its)) = (gic, context.machine.its) else {
        return Ok("this interrupt controller has no tables in memory: there is nothing to attack".into());
    };
    let ground = Arc::new(Ground::new(context, gic, its)?);
    between(&ground)?;
    for (n, redistributor) in ground.redistributors.iter().enumerate() {
        let all = || {
            redistributor.refuses(&ground)?;
            redistributor.accepts(&ground)?;
            redistributor.stays(&ground)
        };
        all().map_err(|failure| Failure::Text(alloc::format!("redistributor {n}: {failure}")))?;
    }
    service::works(&ground, "at first")?;
    service::tables(&ground)?;
    service::queues(&ground)?;
    service::translations(&ground)?;
    service::unknown(&ground)?;
    let accesses = odd::accesses(&ground)?;
    service::works(&ground, "after odd accesses")?;
    let (moves, enabled) = race::race(&ground)?;
    ground.service.start(1);
    ground.redistributors.iter().try_for_each(Redistributor::restart)?;
    while ground.gic.take().is_some() {}
    service::works(&ground, "after the race")?;
    let worn = tables::wear_out(&ground)?;
    service::works(&ground, "at last")?;
    end(&ground)?;
    Ok(alloc::format!(
        "{} redistributors, {} attacks refused, {accesses} odd accesses; in the race {moves} moves of the queue, {enabled} times LPIs; {worn} times more until no more",
        ground.redistributors.len(),
        ground.attacks.load(SeqCst)
    ))
}

/// The core stands between this host and these registers.
fn between(ground: &Ground) -> Result<(), Failure> {
    for frame in ground.redistributors.iter().map(|one| one.frame).chain([ground.service.frame]) {
        let before = counted(HOST_MMIO)?;
        let _ = frame.read(0);
        ensure(counted(HOST_MMIO)? == before + 1, "the core does not stand between this host and its GIC")?;
    }
    Ok(())
}

/// All is off; the VM says how it is; nothing of it is where this host reads.
fn end(ground: &Ground) -> Result<(), Failure> {
    ground.service.stop();
    ground.redistributors.iter().for_each(|one| _ = one.disable());
    while ground.gic.take().is_some() {}
    let own = (ground.block..ground.block + BLOCK).step_by(PAGE as usize);
    if let Some((at, word)) = own.chain(ground.victim.memory()).find_map(secret_in) {
        return Err(Failure::Text(alloc::format!("at {at:#x} this host reads {word:#x}, a secret")));
    }
    ground.victim.finish()?;
    pages::give(ground.block, MAX_PAGES);
    Ok(())
}
