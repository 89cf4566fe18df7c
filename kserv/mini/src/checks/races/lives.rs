//! Races about VMs that run while they end.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use corevisor_interface::calls::{CallError, HostCall, MAP_READ_ONLY, MAX_PAGES, VM_ORDINARY, VM_PROTECTED};
use corevisor_interface::mailbox::ExitReason;
use kserv_model::layout::RAM_BASE;

use super::super::drive::{RUN_FOR, run, run_for};
use super::super::stage::{Stage, play};
use super::{Bare, Context, DATA, Small, Work, ensure, linger, reclaim, rounds, strange};
use crate::arch::entry::{try_read, try_write};
use crate::arch::{cpu, memory};
use crate::calls;
use crate::checks::returned;
use crate::guest::{Failure, at};
use crate::jobs::Numbers;
use crate::pages::{self, BLOCK, PAGE};
use crate::scheduler;

/// What the CPUs of a race share.
#[derive(Default)]
struct Shared {
    /// The VM; 0 when the round is over.
    vm: AtomicU64,
    /// Where the pages for it are.
    ram: AtomicU64,
    /// Its memory is gone.
    gone: AtomicU64,
    /// Runs; calls that were refused; calls about running vCPUs that had to wait; maps.
    runs: AtomicU64,
    refused: AtomicU64,
    busy: AtomicU64,
    maps: AtomicU64,
    /// Faults of each CPU's vCPU.
    faults: Numbers,
}

impl Shared {
    fn all_faults(&self) -> u64 {
        self.faults.iter().map(|count| count.load(SeqCst)).sum()
    }
}

fn add(to: &AtomicU64, more: u64) {
    to.fetch_add(more, SeqCst);
}

fn others() -> usize {
    scheduler::online() - 1
}

/// A CPU that runs its vCPU for as long as the round takes, whatever becomes of the VM.
fn keep_running(shared: &Shared, stage: &Stage, cpu: usize) -> Result<(), Failure> {
    run_again_and_again(shared, stage, cpu, cpu::frequency() / RUN_FOR)
}

/// The same, with runs so long that it is not their end by which a CPU forgets what it knew of the VM.
fn keep_running_long(shared: &Shared, stage: &Stage, cpu: usize) -> Result<(), Failure> {
    run_again_and_again(shared, stage, cpu, cpu::frequency() / 50)
}

fn run_again_and_again(shared: &Shared, stage: &Stage, cpu: usize, ticks: u64) -> Result<(), Failure> {
    loop {
        let vm = shared.vm.load(SeqCst);
        if vm == 0 || stage.is_over() {
            return Ok(());
        }
        match run_for(vm, cpu as u64 - 1, ticks) {
            Ok(ExitReason::Irq | ExitReason::Timer | ExitReason::Stopped | ExitReason::SystemOff) => {
                add(&shared.runs, 1)
            }
            Ok(ExitReason::MemoryFault) => add(&shared.faults[cpu], 1),
            Err(CallError::WrongState | CallError::NoSuchObject) => add(&shared.refused, 1),
            other => return Err(strange("VcpuRun", other)),
        }
    }
}

/// What another CPU does in a round.
type Other = fn(&Shared, &Stage, usize) -> Result<(), Failure>;

/// Each round: the first CPU plays it, and gets the VM's number out to the others by `shared.vm`; between two meetings these do `other`.
fn rounds_of(
    rounds: u64,
    shared: &Arc<Shared>,
    other: Other,
    first: impl Fn(u64, &Shared, &Stage) -> Result<(), Failure> + Send + Sync + 'static,
) -> Result<(), Failure> {
    let all = shared.clone();
    play(move |stage, cpu| {
        for round in 0..rounds {
            if cpu == 0 {
                first(round, &all, stage)?;
            } else if stage.meet() {
                other(&all, stage, cpu)?;
                stage.meet();
            }
        }
        Ok(())
    })
}

fn told(rounds: u64, shared: &Shared) -> Result<String, Failure> {
    let [runs, refused, busy] = [&shared.runs, &shared.refused, &shared.busy].map(|count| count.load(SeqCst));
    // A fault is the end of a run, too: on an idle machine there may be no others.
    ensure(runs + shared.all_faults() != 0, "no vCPU ever ran")?;
    Ok(alloc::format!(
        "{rounds} rounds on {} CPUs: {runs} runs, {refused} refused, {busy} times not yet",
        scheduler::online()
    ))
}

/// vCPUs run on all other CPUs while the VM is switched off, emptied and destroyed, and another one gets its number.
pub fn run_and_destroy(context: &Context<'_>) -> Result<String, Failure> {
    let (rounds, shared) = (rounds(context, 16), Arc::new(Shared::default()));
    rounds_of(rounds, &shared, keep_running, |round, shared, stage| {
        let vcpus = others();
        let small = Small::new(&vec![Work::Write; vcpus])?;
        shared.vm.store(small.vm.id, SeqCst);
        stage.meet();
        if round % 2 == 0 {
            stage.wait(|| small.words(vcpus).iter().all(|word| *word != 0));
        }
        linger(round);
        add(&shared.busy, small.take_down()?);
        small.is_still(vcpus)?;
        let id = small.vm.id;
        small.end()?;
        // Those who still run the old one must not get the new one to run, which is not ready.
        let mut next = Bare::new(VM_ORDINARY, 8)?;
        next.vcpu(0)?;
        ensure(next.id == id, "the number of a VM that is gone is not used again")?;
        linger(round / 2);
        shared.vm.store(0, SeqCst);
        stage.meet();
        next.end().map(|_| ())
    })?;
    told(rounds, &shared)
}

/// One vCPU switches the VM off while its siblings run, and its memory is wanted at once.
pub fn power_off(context: &Context<'_>) -> Result<String, Failure> {
    let (rounds, shared) = (rounds(context, 16), Arc::new(Shared::default()));
    rounds_of(rounds, &shared, keep_running, |_, shared, stage| {
        let vcpus = others();
        let mut works = vec![Work::Write; vcpus];
        works[0] = Work::Quit;
        let small = Small::new(&works)?;
        shared.vm.store(small.vm.id, SeqCst);
        stage.meet();
        add(&shared.busy, reclaim(small.vm.id)?);
        small.is_still(vcpus)?;
        // No sibling is in it any more, though all still try.
        small.end()?;
        shared.vm.store(0, SeqCst);
        stage.meet();
        Ok(())
    })?;
    told(rounds, &shared)
}

/// Lent pages are taken back from under vCPUs that write into them all the time.
pub fn unmap_and_run(context: &Context<'_>) -> Result<String, Failure> {
    let (rounds, shared) = (rounds(context, 20), Arc::new(Shared::default()));
    rounds_of(1, &shared, keep_running_long, move |_, shared, stage| {
        let vcpus = others();
        let small = Small::new(&vec![Work::Write; vcpus])?;
        shared.vm.store(small.vm.id, SeqCst);
        stage.meet();
        for _ in 0..rounds {
            let before = small.words(vcpus);
            stage.wait(|| small.words(vcpus).iter().zip(&before).all(|(now, before)| now != before));
            let done = at("UnmapMemory", calls::raw(HostCall::UnmapMemory, [small.vm.id, DATA, 1, 0, 0]))?;
            ensure(done[0] == 1, "nothing was taken back")?;
            let faults = || shared.faults[1..=vcpus].iter().map(|count| count.load(SeqCst));
            let before: Vec<u64> = faults().collect();
            small.is_still(vcpus)?;
            stage.wait(|| faults().zip(&before).all(|(now, before)| now != *before));
            at("MapMemory", calls::map_memory(small.vm.id, DATA, small.data, 1, 0))?;
        }
        small.take_down()?;
        shared.vm.store(0, SeqCst);
        stage.meet();
        small.end()
    })?;
    let (told, faults) = (told(rounds, &shared)?, shared.all_faults());
    ensure(faults >= rounds * others() as u64, "a vCPU whose page was taken back did not fault")?;
    Ok(alloc::format!("{told}, {faults} faults"))
}

/// Not a race, but with the same VM: a page that it writes into all the time is lent read-only, and for writing.
pub fn read_only(_: &Context<'_>) -> Result<String, Failure> {
    const TRIES: u64 = 20;
    let small = Small::new(&[Work::Write])?;
    let lend = |flags| {
        at("UnmapMemory", calls::raw(HostCall::UnmapMemory, [small.vm.id, DATA, 1, 0, 0]))?;
        at("MapMemory", calls::map_memory(small.vm.id, DATA, small.data, 1, flags))
    };
    lend(MAP_READ_ONLY)?;
    let mut faults = 0;
    for _ in 0..TRIES {
        match run(small.vm.id, 0) {
            Ok(ExitReason::MemoryFault) => faults += 1,
            Ok(ExitReason::Irq) => {}
            other => return Err(strange("VcpuRun", other)),
        }
    }
    ensure(faults != 0 && small.words(1) == [0], "a VM writes into what is lent read-only")?;
    lend(0)?;
    while small.words(1) == [0] {
        run(small.vm.id, 0).map_err(|error| Failure::Call("VcpuRun", error))?;
    }
    small.take_down()?;
    small.end()?;
    Ok(alloc::format!("{faults} faults"))
}

/// Pages that a wandering VM can have.
const WANDERED: u64 = 64;

/// vCPUs fault on one page after the other, which their CPUs map, while the VM is switched off and emptied.
pub fn fault_and_off(context: &Context<'_>) -> Result<String, Failure> {
    let (rounds, shared) = (rounds(context, 16), Arc::new(Shared::default()));
    let ram = pages::take(WANDERED, PAGE).ok_or(Failure::Memory(WANDERED * PAGE))?;
    shared.ram.store(ram, SeqCst);
    rounds_of(rounds, &shared, resolve, switch_off)?;
    pages::give(ram, WANDERED);
    let maps = shared.maps.load(SeqCst);
    ensure(maps != 0, "nothing was mapped")?;
    Ok(alloc::format!("{}, {maps} pages mapped", told(rounds, &shared)?))
}

fn switch_off(round: u64, shared: &Shared, stage: &Stage) -> Result<(), Failure> {
    let small = Small::new(&vec![Work::Wander; others()])?;
    shared.gone.store(0, SeqCst);
    shared.vm.store(small.vm.id, SeqCst);
    let maps = shared.maps.load(SeqCst);
    stage.meet();
    stage.wait(|| shared.maps.load(SeqCst) != maps);
    linger(round);
    add(&shared.busy, small.take_down()?);
    shared.gone.store(1, SeqCst);
    linger(round / 2);
    shared.vm.store(0, SeqCst);
    stage.meet();
    small.end()?;
    // None is lent any more: each can be given away for good.
    let (ram, taker) = (shared.ram.load(SeqCst), Bare::new(VM_ORDINARY, 1)?);
    let given = at("DonatePool", calls::donate_pool(taker.id, ram, WANDERED))?;
    ensure(given == WANDERED, "a page is still lent to a VM that is gone")?;
    taker.end()?;
    (0..WANDERED).try_for_each(|n| returned(ram + n * PAGE))
}

/// Runs its vCPU and maps what it wants.
fn resolve(shared: &Shared, stage: &Stage, cpu: usize) -> Result<(), Failure> {
    let ram = shared.ram.load(SeqCst);
    let mut mapped = 0;
    loop {
        let vm = shared.vm.load(SeqCst);
        if vm == 0 || stage.is_over() {
            return Ok(());
        }
        match run(vm, cpu as u64 - 1) {
            Ok(ExitReason::MemoryFault) => {
                // All vCPUs go through the same pages: whoever is second finds them mapped.
                let (gone, n) = (shared.gone.load(SeqCst), mapped % WANDERED);
                match calls::map_memory(vm, DATA + (1 + n) * PAGE, ram + n * PAGE, 1, 0) {
                    Ok(_) if gone != 0 => return Err(strange("mapped for a VM whose memory was reclaimed", n)),
                    Ok(_) => add(&shared.maps, 1),
                    Err(CallError::Occupied | CallError::WrongState | CallError::NoSuchObject) => {
                        add(&shared.refused, 1)
                    }
                    other => return Err(strange("MapMemory", other)),
                }
                mapped += 1;
            }
            Ok(_) => add(&shared.runs, 1),
            Err(CallError::WrongState | CallError::NoSuchObject) => add(&shared.refused, 1),
            other => return Err(strange("VcpuRun", other)),
        }
    }
}

/// What this host leaves in pages.
const MARK: u64 = 0x4057_1111;

/// The host's other CPUs read the pages of a protected VM while these come back.
pub fn fault_and_reclaim(context: &Context<'_>) -> Result<String, Failure> {
    let (rounds, shared) = (rounds(context, 6), Arc::new(Shared::default()));
    let block = pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?;
    memory::zero(block, BLOCK);
    let all = shared.clone();
    play(move |stage, cpu| {
        if cpu != 0 {
            return look(&all, stage, block);
        }
        for round in 0..rounds {
            (0..MAX_PAGES).for_each(|n| _ = try_write(block + n * PAGE, MARK));
            let vm = Bare::new(VM_PROTECTED, 16)?;
            // As a block, or as pages.
            let gpa = RAM_BASE + PAGE * (round % 2);
            let mut done = 0;
            while done < MAX_PAGES {
                let from = done * PAGE;
                done += at("MapMemory", calls::map_memory(vm.id, gpa + from, block + from, MAX_PAGES - done, 0))?;
            }
            linger(round);
            vm.end()?;
            (0..MAX_PAGES).try_for_each(|n| returned(block + n * PAGE))?;
        }
        Ok(())
    })?;
    pages::give(block, MAX_PAGES);
    let [read, refused] = [&shared.runs, &shared.refused].map(|count| count.load(SeqCst));
    ensure(refused != 0 && read != 0, "nobody looked while the pages were away")?;
    Ok(alloc::format!("{rounds} rounds on {} CPUs: {read} pages read, {refused} refused", scheduler::online()))
}

fn look(shared: &Shared, stage: &Stage, block: u64) -> Result<(), Failure> {
    let mut n = 0;
    while !stage.is_over() {
        n = (n + 7) % MAX_PAGES;
        match try_read(block + n * PAGE) {
            Ok(0 | MARK) => add(&shared.runs, 1),
            Err(abort) if abort.is_refusal() => add(&shared.refused, 1),
            other => return Err(strange("a page on its way", other)),
        }
        // The core needs its locks for the reclaim, too.
        linger(1);
    }
    Ok(())
}
