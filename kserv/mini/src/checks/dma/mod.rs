//! A device that does what this host tells it: QEMU's edu copies from anywhere to anywhere. Where the core says that it keeps devices to what this host may
//! reach (`/hypervisor`, `corevisor,devices-confined`), it reaches that, and no more; where it does not say so, nothing is attacked.
//!
//! A VM's page is attacked after the device has used it, by the same address, while it was this host's or was shown: whatever remembers translations for
//! devices has them. What the device writes there the VM must not find: tests/guests/src/bin/bait.rs looks all the time. And the core must have counted
//! each attack: of a page that it has scrubbed a device that reads it anyway tells nothing.
#![forbid(unsafe_code)]

mod attacker;

use alloc::string::String;
use alloc::vec::Vec;

use corevisor_interface::calls::{MAX_PAGES, VM_ORDINARY, VM_PROTECTED};
use kserv_model::layout::RAM_BASE;

use self::attacker::{Attacker, all_are, is_nothing, words};
use super::reach::{Taker, WAYS, Way};
use super::victim::Victim;
use super::{Bare, Context, ensure, page};
use crate::arch::cpu;
use crate::arch::entry::try_read;
use crate::calls::{self, page_state};
use crate::guest::{Failure, at};
use crate::machine::Machine;
use crate::pages::{self, BLOCK, PAGE};
use crate::scheduler;

/// The page that the VM shows, secrets on either side, and what is in every word of it then (tests/guests/src/bin/bait.rs).
const SHOWN: u64 = 0x4050_0000;
const PUBLIC: u64 = u64::from_le_bytes(*b"PUBLIC-0");
/// How often the VM shows it.
const TIMES: usize = 2;
/// Bits of a VM's addresses with which its root is so many pages (Arm ARM D8.2.10, concatenated tables).
const LARGE_BITS: u64 = 42;
const LARGE_ROOT: u64 = 8;
/// Pages of a VM's pool.
const POOL: u64 = 16;
/// The VM does what it was told in so many seconds, or is lost.
const PATIENCE: u64 = 30;
/// After it took the page back it fills it with secrets: this is enough, in microseconds.
const REFILLED: u64 = 50_000;
/// What the device writes where it is seen if it gets there.
const LIE: u64 = 0x0bad_c0de_0000_0000;

/// All of it.
pub fn dma(context: &Context<'_>) -> Result<String, Failure> {
    let attacker = Attacker::new(context.machine)?;
    copies(&attacker)?;
    if !context.machine.devices_confined {
        let (transfers, _) = attacker.end();
        return Ok(alloc::format!(
            "devices are not confined on this machine: {transfers} transfers in this host's own memory, nothing else was tried"
        ));
    }
    for way in WAYS {
        leave(&attacker, way).map_err(|failure| Failure::Text(alloc::format!("{way:?}: {failure}")))?;
    }
    leave_together(&attacker, context)?;
    lent(&attacker)?;
    kept(&attacker, context)?;
    let (transfers, attacks) = attacker.end();
    Ok(alloc::format!("devices are confined: {transfers} transfers, {attacks} of them at what is not this host's"))
}

/// The control: the device copies within this host's memory, wherever it is.
fn copies(attacker: &Attacker) -> Result<(), Failure> {
    let (block, top) = (pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?, page()?);
    let low = pages::take(1, PAGE).ok_or(Failure::Memory(PAGE))?;
    write_first(attacker, block + BLOCK / 2)?;
    for (from, to) in [(low, top), (top, block), (block + BLOCK - PAGE, low)] {
        attacker.copy(from, to)?;
    }
    pages::give(low, 1);
    pages::give(top, 1);
    pages::give(block, MAX_PAGES);
    Ok(())
}

/// The device writes a page of this host's before this check reads it.
fn write_first(attacker: &Attacker, page: u64) -> Result<(), Failure> {
    attacker.write(page, PAGE, LIE)?;
    all_are(&words(page, PAGE)?, LIE, &alloc::format!("written by the device to {page:#x}, this host's"))
}

/// A page leaves this host and comes back, under the hands of the device.
fn leave(attacker: &Attacker, way: Way) -> Result<(), Failure> {
    let block = pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?;
    let middle = block + BLOCK / 2;
    let gone = if way == Way::Block { alloc::vec![block, middle, block + BLOCK - PAGE] } else { alloc::vec![middle] };
    gone.iter().try_for_each(|page| attacker.reaches(*page, "before it left"))?;
    let mut taker = Taker::new(way)?;
    taker.take(middle)?;
    gone.iter().try_for_each(|page| attacker.attacks(*page, PAGE, "a page that left"))?;
    if way != Way::Block {
        attacker.reaches(middle + PAGE, "the page beside one that left")?;
    }
    taker.end()?;
    for page in &gone {
        // The device comes first: it needs no CPU that has been there.
        all_are(&attacker.read(*page, PAGE)?, 0, "a page that came back")?;
        write_first(attacker, *page)?;
    }
    pages::give(block, MAX_PAGES);
    Ok(())
}

/// The pages of a large root leave together, of a block of which another page is away: what remembers them remembers each by itself. The last of them has
/// an entry then.
fn leave_together(attacker: &Attacker, context: &Context<'_>) -> Result<(), Failure> {
    ensure(context.info.ipa_bits >= LARGE_BITS, "VMs of this machine cannot have a root of so many pages")?;
    let block = pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?;
    let (root, last) = (block + BLOCK / 2, block + BLOCK / 2 + (LARGE_ROOT - 1) * PAGE);
    let apart = Bare::with_root(VM_PROTECTED, block)?;
    [root, last].into_iter().try_for_each(|page| attacker.reaches(page, "before it left with others"))?;
    let id = at("RegisterVm", calls::register_vm(VM_ORDINARY, LARGE_BITS, root))?;
    let (pool, lent) = (pages::take_top(POOL, PAGE).ok_or(Failure::Memory(POOL * PAGE))?, page()?);
    let vm = Bare { id, held: alloc::vec![(pool, POOL)], mailboxes: Vec::new() };
    let given = at("DonatePool", calls::donate_pool(vm.id, pool, POOL))?;
    ensure(given == POOL, "not all of a pool was taken")?;
    let mapped = at("MapMemory", calls::map_memory(vm.id, (1 << LARGE_BITS) - BLOCK, lent, 1, 0))?;
    ensure(mapped == 1, "a page was not lent")?;
    [root, last].into_iter().try_for_each(|page| attacker.attacks(page, PAGE, "a page that left with others"))?;
    attacker.reaches(last + PAGE, "the page behind those that left")?;
    vm.end()?;
    apart.end()?;
    [root, last].into_iter().try_for_each(|page| write_first(attacker, page))?;
    pages::give(lent, 1);
    pages::give(block, MAX_PAGES);
    Ok(())
}

/// What an ordinary VM has of this host's stays this host's, and its devices'.
fn lent(attacker: &Attacker) -> Result<(), Failure> {
    let (vm, page) = (Bare::ready()?, page()?);
    attacker.reaches(page, "before it was lent")?;
    let mapped = at("MapMemory", calls::map_memory(vm.id, RAM_BASE, page, 1, 0))?;
    ensure(mapped == 1, "a page was not lent")?;
    attacker.reaches(page, "a page that is lent to an ordinary VM")?;
    vm.end()?;
    attacker.reaches(page, "a page that was lent to an ordinary VM")?;
    pages::give(page, 1);
    Ok(())
}

/// A protected VM, the core, its devices: all is as it was.
fn kept(attacker: &Attacker, context: &Context<'_>) -> Result<(), Failure> {
    let Some(vm) = context.wishes.vms.iter().find(|vm| vm.protected) else {
        return Err(Failure::Text("it needs a protected VM: --vm guest:bait --protected".into()));
    };
    let pages = vm.memory / PAGE;
    // Where its memory will be, and was.
    let place = || pages::take(pages, BLOCK).ok_or(Failure::Memory(vm.memory)).inspect(|at| pages::give(*at, pages));
    let start = place()?;
    let shown = start + SHOWN - RAM_BASE;
    let reaches = |what| {
        let taken = pages::take(pages, BLOCK);
        ensure(taken == Some(start), "the VM's memory is not where it was expected")?;
        [shown - PAGE, shown, shown + PAGE].into_iter().try_for_each(|page| attacker.reaches(page, what))?;
        pages::give(start, pages);
        Ok(())
    };
    // Once by pages, as another page of the block is away; then the block is whole, and goes whole.
    let block = shown & !(BLOCK - 1);
    let apart = Bare::with_root(VM_PROTECTED, block)?;
    reaches("before the VM had it")?;
    apart.end()?;
    attacker.write(block + BLOCK - PAGE, PAGE, LIE)?;
    let victim = Victim::start(context)?;
    ensure(victim.memory().next() == Some(start), "the VM's memory is not where the device was")?;
    secrets(attacker, &victim, shown)?;
    for _ in 0..TIMES {
        show(attacker, &victim, shown)?;
    }
    core(attacker, context.machine)?;
    smmu(attacker)?;
    context.machine.its.map_or(Ok(()), |its| service(attacker, its))?;
    // All the same after that.
    secrets(attacker, &victim, shown)?;
    victim.finish()?;
    reaches("after the VM had it")
}

/// Nothing of what is private is read; what is written the VM will not find.
fn secrets(attacker: &Attacker, victim: &Victim, shown: u64) -> Result<(), Failure> {
    for page in [shown - PAGE, shown, shown + PAGE] {
        ensure(victim.private.contains(&page), "the VM has no secrets where it should")?;
        attacker.attacks(page, PAGE, "a private page")?;
    }
    Ok(())
}

/// The VM shows its page and takes it back.
fn show(attacker: &Attacker, victim: &Victim, shown: u64) -> Result<(), Failure> {
    become_state(victim, b"s", page_state::SHARED)?;
    all_are(&attacker.read(shown, PAGE)?, PUBLIC, "a page that is shown, read")?;
    attacker.write(shown, PAGE, LIE)?;
    all_are(&words(shown, PAGE)?, LIE, "a page that is shown, written")?;
    // From what is shown into the secrets behind it, and from those before it.
    for (start, private) in [(shown + PAGE / 2, 1), (shown - PAGE / 2, 0)] {
        let found = attacker.refused("across a page's end", || attacker.read(start, PAGE))?;
        let mut halves = found.chunks(found.len() / 2);
        let secret = halves.nth(private).and_then(|half| half.iter().find(|word| !is_nothing(**word)));
        if let Some(word) = secret {
            return Err(Failure::Text(alloc::format!(
                "from {start:#x} on, across a page's end, the device reads {word:#x}"
            )));
        }
        attacker.refused("across a page's end", || attacker.write(start, PAGE, LIE))?;
    }
    become_state(victim, b"u", page_state::PRIVATE)?;
    scheduler::run_for(REFILLED);
    attacker.attacks(shown, PAGE, "a page that was shown before")
}

/// The VM hears its word, and does it.
fn become_state(victim: &Victim, word: &[u8], state: u64) -> Result<(), Failure> {
    victim.tell(word);
    let until = cpu::counter() + cpu::frequency() * PATIENCE;
    let is = || calls::page_info(victim.id(), SHOWN).is_ok_and(|(found, _)| found == state);
    while !is() && !victim.has_ended() && cpu::counter() < until {
        scheduler::run_for(1000);
    }
    ensure(is(), "the VM does not do what its console says")
}

/// What is between, before and behind this host's RAM is the core's: its image, its records.
fn core(attacker: &Attacker, machine: &Machine) -> Result<(), Failure> {
    /// RAM of QEMU's virt starts and ends at multiples of it.
    const GIB: u64 = 1 << 30;
    let mut banks = machine.ram.clone();
    banks.sort_by_key(|bank| bank.start);
    let (Some(first), Some(last)) = (banks.first(), banks.last()) else { return ensure(false, "there is no RAM") };
    let starts = core::iter::once(first.start & !(GIB - 1)).chain(banks.iter().map(|bank| bank.end));
    let ends = banks.iter().map(|bank| bank.start).chain([last.end.next_multiple_of(GIB)]);
    let gaps: Vec<_> = starts.zip(ends).filter(|(start, end)| start < end).collect();
    ensure(!gaps.is_empty(), "the core has no memory")?;
    for (start, end) in gaps {
        let middle = (start + (end - start) / 2) & !(PAGE - 1);
        for page in [start, start + PAGE, middle, end - PAGE].into_iter().filter(|page| (start..end).contains(page)) {
            ensure(try_read(page).is_err_and(|abort| abort.is_refusal()), "this host reads the core's memory")?;
            attacker.attacks(page, PAGE, "the core's memory")?;
        }
    }
    Ok(())
}

/// The SMMU is the core's: there is nothing for this host, and its devices change nothing.
fn smmu(attacker: &Attacker) -> Result<(), Failure> {
    /// Of QEMU's virt, which alone has such a device.
    const SMMU: u64 = 0x0905_0000;
    const SIZE: u64 = 0x2_0000;
    /// Registers: 0 in the first would switch it off; the second says where its table of streams is.
    const CR0: u64 = 0x20;
    const STRTAB_BASE: u64 = 0x80;
    for at in (SMMU..SMMU + SIZE).step_by(PAGE as usize).chain([SMMU + CR0, SMMU + STRTAB_BASE]) {
        ensure(try_read(at).is_err_and(|abort| abort.is_refusal()), "this host reads the SMMU's registers")?;
    }
    attacker.refused("the SMMU's registers", || attacker.write(SMMU + STRTAB_BASE, 8, 0))?;
    attacker.refused("the SMMU's registers", || attacker.write(SMMU + CR0, 4, 0))
}

/// Devices write to the interrupt translation service's one register for them, and to no other.
fn service(attacker: &Attacker, its: u64) -> Result<(), Failure> {
    /// What it is, and never 0; where its commands are.
    const GITS_TYPER: u64 = 8;
    const GITS_CBASER: u64 = 0x80;
    let read = |register| try_read(its + register).map_err(|_| Failure::Text("this host has no ITS".into()));
    let (kind, before) = (read(GITS_TYPER)?, read(GITS_CBASER)?);
    ensure(kind != 0, "the ITS says nothing of itself")?;
    let found = attacker.refused("the ITS", || attacker.read(its + GITS_TYPER, 8))?;
    ensure(found.iter().all(|word| is_nothing(*word)), "the device reads the ITS")?;
    attacker.refused("the ITS", || attacker.write(its + GITS_CBASER, 8, LIE))?;
    ensure(read(GITS_CBASER)? == before, "the device writes the ITS")
}
