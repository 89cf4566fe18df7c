//! Pages that left the host, by every way that a page can leave by: nobody of this host reaches them in any way that a CPU has, by tables or
//! by what a TLB remembers; what comes back is zero.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use corevisor_interface::calls::{MAX_PAGES, VM_PROTECTED};
use kserv_model::layout::RAM_BASE;

use super::stage::{Stage, play};
use super::{Bare, Context, ensure, returned};
use crate::arch::entry::{Access, RETURN, try_access, try_write};
use crate::arch::{cpu, memory, mmu};
use crate::guest::{Failure, at};
use crate::jobs::Numbers;
use crate::pages::{self, BLOCK, PAGE};
use crate::{calls, scheduler};

/// The upper half of what this host writes into its pages.
const MARK: u64 = 0x4057_0000 << 32;
/// Where in a page code is; before it there are words.
const CODE: u64 = 1024;
/// Where DC ZVA is tried: it zeroes up to 2 KiB around it.
const ZEROED: u64 = 3072;
/// Pages of a VM's pool.
const POOL: u64 = 16;
const ROUNDS: u64 = 4;
/// How often each CPU reaches the page before it goes, and is refused after it went, at least.
const WARM: u64 = 48;

/// How a page leaves the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// As the root of a VM's tables.
    Root,
    /// For a VM's pool.
    Pool,
    /// As a page of a protected VM's image.
    Image,
    /// As a page of a protected VM's memory.
    Page,
    /// The same with all the block around it.
    Block,
}

/// All of them.
pub const WAYS: [Way; 5] = [Way::Root, Way::Pool, Way::Image, Way::Page, Way::Block];

/// A VM that takes one page, after all that has to be done before.
pub struct Taker {
    way: Way,
    vm: Option<Bare>,
    image: u64,
}

impl Taker {
    /// A VM that is ready to take a page so.
    ///
    /// # Errors
    /// What the core refused.
    pub fn new(way: Way) -> Result<Self, Failure> {
        let vm = if way == Way::Root { None } else { Some(Bare::new(VM_PROTECTED, POOL)?) };
        let image = match &vm {
            Some(vm) if way == Way::Image => at("SetBootInfo", calls::set_boot_info(vm.id, RAM_BASE, PAGE))?,
            _ => 0,
        };
        Ok(Self { way, vm, image })
    }

    /// The page goes.
    ///
    /// # Errors
    /// What the core refused.
    pub fn take(&mut self, pa: u64) -> Result<(), Failure> {
        let Some(vm) = &self.vm else {
            self.vm = Some(Bare::with_root(VM_PROTECTED, pa)?);
            return Ok(());
        };
        let one = |call, result| at(call, result).and_then(|done: u64| ensure(done == 1, "not all was taken"));
        match self.way {
            Way::Root => Ok(()),
            Way::Pool => one("DonatePool", calls::donate_pool(vm.id, pa, 1)),
            Way::Image => one("RemapImagePages", calls::remap_image_pages(vm.id, self.image, pa, 1)),
            Way::Page => one("MapMemory", calls::map_memory(vm.id, RAM_BASE, pa, 1, 0)),
            Way::Block => {
                let done = at("MapMemory", calls::map_memory(vm.id, RAM_BASE, pa & !(BLOCK - 1), MAX_PAGES, 0))?;
                ensure(done == MAX_PAGES, "a block was not taken as one")
            }
        }
    }

    /// And comes back.
    ///
    /// # Errors
    /// What the core refused.
    pub fn end(self) -> Result<(), Failure> {
        self.vm.map_or(Ok(()), |vm| vm.end().map(|_| ()))
    }
}

/// This host's words, and code, in a page.
fn fill(pa: u64) -> Result<(), Failure> {
    for at in (pa..pa + PAGE).step_by(8) {
        let word = if at - pa < CODE { MARK } else { u64::from(RETURN) << 32 | u64::from(RETURN) };
        ensure(try_write(at, word).is_ok(), "a free page cannot be written")?;
    }
    memory::clean_code(pa, PAGE);
    Ok(())
}

fn place_of(access: Access, cpu: usize) -> u64 {
    match access {
        Access::Execute => CODE,
        Access::Zero => ZEROED,
        _ => 8 * cpu as u64,
    }
}

/// Each way, each access: refused while the page is away.
pub fn refused(_: &Context<'_>) -> Result<String, Failure> {
    let block = pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?;
    // In the middle, so that what is around it is still this host's, but for a block.
    let page = block + BLOCK / 2;
    let mut count = 0;
    for way in WAYS {
        fill(page)?;
        fill(page + PAGE)?;
        for access in Access::all(MARK) {
            ensure(
                try_access(access, page + place_of(access, 0)).is_ok(),
                "an access to this host's own page is refused",
            )?;
        }
        fill(page)?;
        let mut taker = Taker::new(way)?;
        taker.take(page)?;
        for access in Access::all(MARK) {
            for offset in [0, CODE, ZEROED, PAGE - 8] {
                match try_access(access, page + offset) {
                    Err(abort) if abort.is_refusal() => count += 1,
                    other => {
                        return Err(Failure::Text(alloc::format!("{way:?}, {access:?} at {offset:#x}: {other:x?}")));
                    }
                }
            }
            let beside = try_access(access, page + PAGE + place_of(access, 0)).is_ok();
            ensure(beside == (way != Way::Block), "the page beside it is not whose it should be")?;
        }
        taker.end()?;
        returned(page)?;
    }
    pages::give(block, MAX_PAGES);
    Ok(alloc::format!("{} ways, {count} accesses refused", WAYS.len()))
}

/// This host's tables of stage 1 in pages that left: as a root, and as a table of the second level.
pub fn walked(_: &Context<'_>) -> Result<String, Failure> {
    /// What a level-1 entry maps.
    const GIB: u64 = 1 << 30;
    let block = pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?;
    let (data, root, gone) = (block, block + PAGE, block + BLOCK / 2);
    let mut count = 0;
    for way in WAYS.into_iter().filter(|way| *way != Way::Block) {
        let put = |at, word| ensure(try_write(at, word).is_ok(), "a free page cannot be written");
        [root, gone].into_iter().for_each(|page| memory::zero(page, PAGE));
        put(data, MARK)?;
        // The same translation, by a root and by a second level.
        put(gone, data & !(GIB - 1) | mmu::NORMAL_BLOCK)?;
        let through_root = || mmu::try_through(gone, data % GIB);
        ensure(through_root() == Ok(MARK), "a table of this host's own does not work")?;
        put(gone, data & !(BLOCK - 1) | mmu::NORMAL_BLOCK)?;
        put(root, mmu::table(gone))?;
        let through_both = || mmu::try_through(root, data % BLOCK);
        ensure(through_both() == Ok(MARK), "two tables of this host's own do not work")?;
        let mut taker = Taker::new(way)?;
        taker.take(gone)?;
        for result in [through_root(), through_both(), through_root(), through_both()] {
            match result {
                Err(abort) if abort.is_refusal() => count += 1,
                other => return Err(Failure::Text(alloc::format!("{way:?}: a walk through it: {other:x?}"))),
            }
        }
        taker.end()?;
        returned(gone)?;
    }
    pages::give(block, MAX_PAGES);
    Ok(alloc::format!("{count} walks refused"))
}

/// What the CPUs share while one of them gives a page away that the others use.
#[derive(Default)]
struct Bait {
    /// The page that the others are to use; 0: none.
    page: AtomicU64,
    /// The page that is gone: it was given away, and the call is over.
    gone: AtomicU64,
    /// Successes and refusals of each CPU for this page; and the page that it has in hand.
    reached: Numbers,
    refused: Numbers,
    hand: Numbers,
    total: [AtomicU64; 2],
}

impl Bait {
    /// Waits until all other CPUs say so, or something is wrong.
    fn all(stage: &Stage, says: impl Fn(usize) -> bool) {
        stage.wait(|| (1..scheduler::online()).all(&says));
    }

    /// A CPU that uses the page all the time.
    fn use_it(&self, stage: &Stage, cpu: usize) -> Result<(), Failure> {
        let ways: alloc::vec::Vec<_> = Access::all(MARK | cpu as u64).filter(|way| *way != Access::Zero).collect();
        for turn in 0.. {
            if stage.is_over() {
                break;
            }
            let page = self.page.load(SeqCst);
            self.hand[cpu].store(page, SeqCst);
            if page == 0 || self.page.load(SeqCst) != page {
                cpu::relax();
                continue;
            }
            let gone = self.gone.load(SeqCst) == page;
            let access: Access = ways[turn % ways.len()];
            match try_access(access, page + place_of(access, cpu)) {
                Ok(word) if gone => {
                    return Err(Failure::Text(alloc::format!("{access:?} of a page that is away: {word:#x}")));
                }
                // Scrubbed while this CPU could still reach it.
                Ok(word)
                    if matches!(access, Access::Load | Access::Exclusive | Access::Atomic)
                        && word >> 32 != MARK >> 32 =>
                {
                    return Err(Failure::Text(alloc::format!("{access:?} found {word:#x}, not this host's word")));
                }
                Ok(_) => _ = self.reached[cpu].fetch_add(1, SeqCst),
                Err(abort) if abort.is_refusal() => {
                    self.refused[cpu].fetch_add(u64::from(gone), SeqCst);
                }
                Err(abort) => return Err(Failure::Text(alloc::format!("{access:?}: ESR {:#x}", abort.esr))),
            }
        }
        Ok(())
    }

    /// One page goes and comes back, under the others' hands.
    ///
    /// `apart`: the host's table has pages there before, not a block that must be split first, since a neighbour is away.
    fn round(&self, stage: &Stage, way: Way, page: u64, apart: bool) -> Result<(), Failure> {
        fill(page)?;
        let neighbour = page + 2 * PAGE;
        let other = if apart { Some(Bare::with_root(VM_PROTECTED, neighbour)?) } else { None };
        let mut taker = Taker::new(way)?;
        self.reached.iter().chain(self.refused.iter()).for_each(|count| count.store(0, SeqCst));
        self.page.store(page, SeqCst);
        Self::all(stage, |cpu| self.reached[cpu].load(SeqCst) >= WARM);
        taker.take(page)?;
        self.gone.store(page, SeqCst);
        Self::all(stage, |cpu| self.refused[cpu].load(SeqCst) >= WARM);
        self.page.store(0, SeqCst);
        Self::all(stage, |cpu| self.hand[cpu].load(SeqCst) == 0);
        self.gone.store(0, SeqCst);
        for (total, counts) in self.total.iter().zip([&self.reached, &self.refused]) {
            total.fetch_add(counts.iter().map(|count| count.load(SeqCst)).sum(), SeqCst);
        }
        taker.end()?;
        other.map_or(Ok(()), |vm| vm.end().and_then(|_| returned(neighbour)))?;
        returned(page)
    }

    fn give_away(&self, stage: &Stage, page: u64, rounds: u64) -> Result<(), Failure> {
        for (round, way) in (0..rounds).flat_map(|round| WAYS.map(|way| (round, way))) {
            if !stage.is_over() {
                self.round(stage, way, page, round % 2 == 1 && way != Way::Block)?;
            }
        }
        Ok(())
    }
}

/// Other CPUs use a page, in every way, all the while that this one gives it away: from then on they are refused, whatever their TLBs held.
pub fn stale(context: &Context<'_>) -> Result<String, Failure> {
    let rounds = context.wishes.number("rounds").unwrap_or(ROUNDS);
    let block = pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?;
    let bait = Arc::new(Bait::default());
    let shared = bait.clone();
    play(move |stage, cpu| match cpu {
        0 => shared.give_away(stage, block + BLOCK / 2, rounds),
        cpu => shared.use_it(stage, cpu),
    })?;
    pages::give(block, MAX_PAGES);
    let [reached, refused] = [0, 1].map(|n| bait.total[n].load(SeqCst));
    let (given, others) = (rounds * WAYS.len() as u64, scheduler::online() - 1);
    Ok(alloc::format!(
        "{given} pages and blocks taken from under {others} CPUs: {reached} accesses before, {refused} refused after"
    ))
}
