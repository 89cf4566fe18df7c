//! Layer 24, MmioCore: an ITS's registers, and its commands. GIC architecture (IHI 0069H) 5.2, 5.3, 12.19.
//!
//! | primitive               | does                                                                              | lock                |
//! |-------------------------|-----------------------------------------------------------------------------------|---------------------|
//! | [`handle_gits_access`]  | answers an access to the first page of the control frame, and runs commands        | Mmio; S2Page, inside |
//!
//! What the host writes to GITS_BASER, GITS_CBASER and GITS_CWRITER it reads again, but the ITS has none of it: its device table, its collections, its queue and every device's interrupt
//! translation table stand in pages of the core's pool. When the host moves GITS_CWRITER on, each command is read once from the host's queue, looked at, and given to the ITS, a MAPD with a
//! table of the core's; then the host sees GITS_CREADR moved on. A command that the host does not have, one that there is no room for, and one that the ITS itself refuses, are counted and left out, as an
//! ITS may do with a command that is in error: the other devices need those behind it. The real ITS never stays at one: it gets one in its place that does nothing, and goes on. A queue outside
//! the host's memory, where there is no command to leave out, and an ITS that is late stall it as the host sees it.
//!
//! Below: MmioCoreAux, MemoryOps. Above: MmioOpsAux. Specification: `spec::mmio`. Source: SeKVM layer MmioCore; K §2 L24; docs/architecture.md, Devices.
#![forbid(unsafe_code)]

use super::its::{Its, Itt, LEVEL1_ENTRY};
use super::its_command::{self, Command, WORDS};
use super::mmio_raw::{Access, merge, part_of};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{PAGE_SIZE, Pa, Pfn};
use crate::abstract_machine::gic_registers as regs;
use crate::abstract_machine::gic_registers::bits_of;
use crate::abstract_machine::per_cpu::Event;
use crate::memory::Memory;
use crate::memory::memory_ops::{drop_mailbox, hold_mailbox};

/// Registers of the control frame that are looked at.
pub const GITS_CTLR: u64 = 0x00;
/// What it can do.
pub const GITS_TYPER: u64 = 0x08;
/// Its queue of commands.
pub const GITS_CBASER: u64 = 0x80;
/// Where the next command is written.
pub const GITS_CWRITER: u64 = 0x88;
/// Where the next command is read.
pub const GITS_CREADR: u64 = 0x90;
/// Its tables: eight registers.
pub const GITS_BASER: u64 = 0x100;

const ENABLED: u64 = regs::GITS_CTLR::Enabled::SET.value;
const STALLED: u64 = regs::GITS_CREADR::Stalled::SET.value;
const RETRY: u64 = regs::GITS_CWRITER::Retry::SET.value;
/// In GITS_CREADR the same.
const QUEUE_OFFSET: u64 = bits_of(regs::GITS_CWRITER::Offset);
const QUEUE_ADDRESS: u64 = bits_of(regs::GITS_CBASER::Physical_Address);
const QUEUE_PAGES: u64 = bits_of(regs::GITS_CBASER::Size);
/// What of GITS_BASER only the ITS says.
const BASER_FIXED: u64 = bits_of(regs::GITS_BASER::Type) | bits_of(regs::GITS_BASER::Entry_Size);
/// Virtual LPIs, which the host does not have.
const VIRTUAL: u64 = bits_of(regs::GITS_TYPER::Virtual)
    | bits_of(regs::GITS_TYPER::VMOVP)
    | bits_of(regs::GITS_TYPER::VSGI)
    | bits_of(regs::GITS_TYPER::VMAPP)
    | bits_of(regs::GITS_TYPER::SVPET);

/// Most bits of an event's number.
const MOST_EVENT_BITS: u32 = 11;
/// Most pages of the pool that an ITS comes to have by the host's commands: interrupt translation tables, and pages of its device table.
const MOST_PAGES: u64 = 96;
/// Commands that one access runs at most; the next one goes on.
const AT_A_TIME: usize = 64;
/// How often GITS_CREADR is asked before the ITS counts as late.
const PATIENCE: u32 = 1 << 20;

/// What an access of the host to the first page of the control frame leads to: what a load gives.
pub fn handle_gits_access<M: Machine>(mem: &Memory<M>, its: &mut Its, access: Access) -> u64 {
    let machine = mem.machine();
    let register = access.offset() & !7;
    let Some(value) = access.store else {
        if register == GITS_CREADR {
            // Whoever waits for commands asks here.
            run_commands(mem, its);
        }
        return load(machine, its, access);
    };
    match register {
        GITS_CTLR if access.offset() == GITS_CTLR => machine.mmio_write(access.at, access.size, value),
        GITS_CBASER => {
            its.cbaser = merge(access, its.cbaser, value);
            (its.host_reader, its.host_writer, its.stalled) = (0, 0, false);
        }
        GITS_CWRITER => {
            its.host_writer = merge(access, its.host_writer, value) & QUEUE_OFFSET;
            its.stalled = false;
        }
        GITS_BASER..0x140 => {
            if let Some(baser) = its.basers.get_mut(((register - GITS_BASER) / 8) as usize) {
                *baser = merge(access, *baser, value);
            }
        }
        // Read-only, or for virtual LPIs.
        _ => {}
    }
    run_commands(mem, its);
    0
}

fn load<M: Machine>(machine: &M, its: &Its, access: Access) -> u64 {
    let value = match access.offset() & !7 {
        GITS_TYPER => {
            let typer = its.setup.frame.checked_add(GITS_TYPER).map_or(0, |at| machine.mmio_read(at, 8));
            let bits = regs::GITS_TYPER::Devbits.val(u64::from(its.setup.device_bits - 1));
            bits.modify(typer & !VIRTUAL)
        }
        GITS_CBASER => its.cbaser,
        GITS_CWRITER => its.host_writer,
        GITS_CREADR => its.host_reader | if its.stalled { STALLED } else { 0 },
        register @ GITS_BASER..0x140 => {
            let n = ((register - GITS_BASER) / 8) as usize;
            let fixed = its.setup.basers.get(n).map_or(0, |baser| baser & BASER_FIXED);
            its.basers.get(n).map_or(0, |baser| baser & !BASER_FIXED | fixed)
        }
        _ => return machine.mmio_read(access.at, access.size),
    };
    part_of(access, value)
}

/// Gives the ITS the commands that the host has written, as many as [`AT_A_TIME`].
fn run_commands<M: Machine>(mem: &Memory<M>, its: &mut Its) {
    let control = mem.machine().mmio_read(its.setup.frame, 4);
    for _ in 0..AT_A_TIME {
        if control & ENABLED == 0 || its.stalled || its.host_reader == its.host_writer {
            return;
        }
        let words = read_command(mem, its);
        let done = words.and_then(|words| run_command(mem.machine(), its, words));
        if done.is_none() {
            let level = mem.machine().count_to_tell(Event::HostAccessDenied);
            let (frame, at) = (its.setup.frame, its.host_reader);
            let Some([first, ..]) = words.filter(|_| !its.late) else {
                // The same command again, once there is one, or the ITS has come to it.
                log::log!(level, "host: the ITS at {frame} stalls at command {at:#x}");
                its.stalled = true;
                return;
            };
            log::log!(level, "host: the ITS at {frame} leaves out command {first:#x}, at {at:#x}");
        }
        let size = ((its.cbaser & QUEUE_PAGES) + 1) * PAGE_SIZE;
        its.host_reader = (its.host_reader + its_command::SIZE) % size;
    }
}

/// The next command of the host, read once. `None` if its queue is not in its memory.
fn read_command<M: Machine>(mem: &Memory<M>, its: &Its) -> Option<[u64; WORDS]> {
    let at = Pa::new(its.cbaser & QUEUE_ADDRESS).checked_add(its.host_reader)?;
    let page = Pfn::containing(at);
    hold_mailbox(mem, page).ok()?;
    let mut words = [0; WORDS];
    mem.machine().read_page(page, (at.raw() % PAGE_SIZE / 8) as usize, &mut words);
    drop_mailbox(mem, page).ok()?;
    Some(words)
}

/// Runs one command. `None` if the ITS cannot have it, or does not take it; if it is late then, it may yet take it.
fn run_command<M: Machine>(machine: &M, its: &mut Its, words: [u64; WORDS]) -> Option<()> {
    if its.late {
        // It had its time: whether it is there by now is asked once, and what became of that command is no matter.
        let _ = settle(machine, its, 1);
    }
    if its.late {
        return None;
    }
    match Command::decode(words) {
        Command::Plain => give(machine, its, words),
        Command::Unknown => None,
        Command::MapDevice { device, event_bits } => {
            let events = event_bits.min(MOST_EVENT_BITS);
            let known = device >> its.setup.device_bits == 0;
            let room = known && has_entry(machine, its, device)?;
            let itt = room.then(|| new_itt(machine, its, events)).flatten()?;
            let base = its.itts.get(itt)?.as_ref()?.base;
            let done = give(machine, its, its_command::map_device(device, events, base));
            // A late one may yet do it: then the device has this table as well as the one before.
            if done.is_some() {
                forget(its, device);
            }
            if done.is_some() || its.late {
                its.itts.get_mut(itt)?.as_mut()?.device = Some(device);
            }
            done
        }
        Command::UnmapDevice { device } => {
            give(machine, its, words)?;
            forget(its, device);
            Some(())
        }
    }
}

/// The ITS has no table of `device` any more: what it had may be another device's.
fn forget(its: &mut Its, device: u32) {
    its.itts.iter_mut().flatten().filter(|itt| itt.device == Some(device)).for_each(|itt| itt.device = None);
}

/// Takes `1 << order` pages of the pool for this ITS. `None` if it has too many, or the pool has none.
fn take_pages<M: Machine>(machine: &M, its: &mut Its, order: u32) -> Option<Pa> {
    let pages = Some(its.pages + (1 << order)).filter(|pages| *pages <= MOST_PAGES)?;
    let base = machine.alloc_table(order)?;
    its.pages = pages;
    Some(base)
}

/// Makes sure that the device table has a place for `device`. `None` if there is no page for it.
fn has_entry<M: Machine>(machine: &M, its: &mut Its, device: u32) -> Option<bool> {
    const VALID: u64 = 1 << 63;
    let Some(level1) = its.setup.level1 else { return Some(true) };
    let page = PAGE_SIZE << its.setup.page_order;
    let slot = level1.base().checked_add(u64::from(device) / (page / its.setup.device_entry) * LEVEL1_ENTRY)?;
    if !level1.contains(slot) {
        return Some(false);
    }
    if machine.pt_load(slot) & VALID == 0 {
        let table = take_pages(machine, its, its.setup.page_order)?;
        // An interrupt of any device makes the ITS look there at once.
        machine.publish_tables();
        machine.pt_store(slot, table.raw() | VALID);
    }
    Some(true)
}

/// A table of zeroes for `events` bits of events: one that was used before, or a new one. Its place in the list.
fn new_itt<M: Machine>(machine: &M, its: &mut Its, events: u32) -> Option<usize> {
    let bytes = its.setup.itt_entry << events;
    let order = bytes.div_ceil(PAGE_SIZE).next_power_of_two().ilog2();
    let fits = |itt: &Option<Itt>| itt.is_some_and(|itt| itt.device.is_none() && itt.order >= order);
    if let Some(place) = its.itts.iter().position(fits) {
        let itt = its.itts.get(place)?.as_ref()?;
        let words = PAGE_SIZE << itt.order;
        (0..words).step_by(8).filter_map(|offset| itt.base.checked_add(offset)).for_each(|at| machine.pt_store(at, 0));
        return Some(place);
    }
    let place = its.itts.iter().position(Option::is_none)?;
    let base = take_pages(machine, its, order)?;
    *its.itts.get_mut(place)? = Some(Itt { device: None, base, order });
    Some(place)
}

/// Gives the ITS a command and waits until it has run it. `None` if it does not.
fn give<M: Machine>(machine: &M, its: &mut Its, words: [u64; WORDS]) -> Option<()> {
    write_command(machine, its, its.writer, words)?;
    its.writer = (its.writer + its_command::SIZE) % PAGE_SIZE;
    its.late = true;
    machine.mmio_write(its.setup.frame.checked_add(GITS_CWRITER)?, 8, its.writer);
    settle(machine, its, PATIENCE)
}

/// Writes a command to this place in the core's queue.
fn write_command<M: Machine>(machine: &M, its: &Its, offset: u64, words: [u64; WORDS]) -> Option<()> {
    let at = its.setup.queue.checked_add(offset)?;
    for (n, word) in (0..).zip(words) {
        machine.pt_store(at.checked_add(8 * n)?, word);
    }
    // The command, and before it all that it leads to: the ITS needs neither before it is told.
    machine.publish_tables();
    Some(())
}

/// Asks, at most so often, whether the ITS has run the last command that it got; then it is not late any more. At a command that it refuses it stands still, and so would all that come
/// later: it gets one that does nothing in its place. `None` if it refused the command, or is still late.
fn settle<M: Machine>(machine: &M, its: &mut Its, patience: u32) -> Option<()> {
    let (frame, mut refused) = (its.setup.frame, false);
    let (reader, writer) = (frame.checked_add(GITS_CREADR)?, frame.checked_add(GITS_CWRITER)?);
    for _ in 0..patience {
        let at = machine.mmio_read(reader, 8);
        if at & STALLED != 0 {
            // Told once; it may take a while.
            if !refused {
                write_command(machine, its, at & QUEUE_OFFSET & (PAGE_SIZE - 1), its_command::nothing())?;
                machine.mmio_write(writer, 8, its.writer | RETRY);
                refused = true;
            }
        } else if at & QUEUE_OFFSET == its.writer {
            its.late = false;
            return (!refused).then_some(());
        }
    }
    None
}
