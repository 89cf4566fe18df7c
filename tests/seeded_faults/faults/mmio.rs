//! Layers 22-26: registers that the host reaches through the core.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault(
        "mmio_raw: register 31 is stored as register 30",
        "src/mmio/mmio_raw.rs",
        "x.get(usize::from(syndrome.srt())).copied().unwrap_or(0)",
        "x.get(usize::from(syndrome.srt())).copied().unwrap_or(x[30])",
    ),
    fault(
        "mmio_raw: accesses of any size",
        "src/mmio/mmio_raw.rs",
        "    if !matches!(size, 4 | 8) || !at.is_aligned(size) {",
        "    if !at.is_aligned(size) {",
    ),
    fault(
        "mmio_core_aux: a redistributor's tables are not looked at",
        "src/mmio/mmio_core_aux.rs",
        "tables.is_some_and(|tables| lend_all(mem, &tables))",
        "tables.is_some()",
    ),
    fault(
        "mmio_core_aux: pending bits may be anywhere",
        "src/mmio/mmio_core_aux.rs",
        "lend_all(mem, &tables)",
        "lend_all(mem, &tables[..1])",
    ),
    fault(
        "mmio_core_aux: a table is a page shorter than the redistributor thinks",
        "src/mmio/mmio_core_aux.rs",
        "range.page_cover()",
        "PhysRange::between(range.base(), Pa::new(range.end().raw() - PAGE_SIZE))",
    ),
    fault(
        "mmio_core_aux: tables move after they were looked at",
        "src/mmio/mmio_core_aux.rs",
        "        GICR_PROPBASER..0x80 if enabled() || !arrived() => {}",
        "        GICR_PROPBASER..0x80 if enabled() && !arrived() => {}",
    ),
    fault(
        "mmio_core_aux: what was lent in vain stays lent",
        "src/mmio/mmio_core_aux.rs",
        "pages().take(lent)",
        "pages().take(0)",
    ),
    fault(
        "its_command: what is unknown is plain",
        "src/mmio/its_command.rs",
        "            None => Self::Unknown,",
        "            None => Self::Plain,",
    ),
    fault(
        "mmio_core: a device has the host's table",
        "src/mmio/mmio_core.rs",
        "give(machine, its, its_command::map_device(device, events, base))",
        "give(machine, its, words)",
    ),
    fault(
        "mmio_core: a device has more events than its table",
        "src/mmio/mmio_core.rs",
        "let events = event_bits.min(MOST_EVENT_BITS);",
        "let events = event_bits; let _ = MOST_EVENT_BITS;",
    ),
    fault(
        "mmio_core: two devices have one table",
        "src/mmio/mmio_core.rs",
        "                its.itts.get_mut(itt)?.as_mut()?.device = Some(device);\n",
        "",
    ),
    fault(
        "mmio_core: a table comes back with what it held",
        "src/mmio/mmio_core.rs",
        ".for_each(|at| machine.pt_store(at, 0));",
        ".for_each(|_| ());",
    ),
    fault(
        "mmio_core: a device beyond the table has a place in it",
        "src/mmio/mmio_core.rs",
        "let known = device >> its.setup.device_bits == 0;",
        "let known = true;",
    ),
    fault(
        "mmio_core: the pool is an ITS's for ever",
        "src/mmio/mmio_core.rs",
        ".filter(|pages| *pages <= MOST_PAGES)?",
        ".filter(|pages| *pages <= 1000 * MOST_PAGES)?",
    ),
    fault(
        "mmio_core: pages of the device table are not counted",
        "src/mmio/mmio_core.rs",
        "let table = take_pages(machine, its, its.setup.page_order)?;",
        "let table = machine.alloc_table(its.setup.page_order)?;",
    ),
    fault(
        "mmio_core: an ITS stands at what it refuses for ever",
        "src/mmio/mmio_core.rs",
        "its.writer | RETRY",
        "its.writer | RETRY ^ 1",
    ),
    fault(
        "mmio_core: an ITS that takes nothing is waited for every time",
        "src/mmio/mmio_core.rs",
        "settle(machine, its, 1)",
        "settle(machine, its, PATIENCE)",
    ),
    fault(
        "mmio_core: a device loses its table though the ITS still has it",
        "src/mmio/mmio_core.rs",
        "            give(machine, its, words)?;\n            forget(its, device);\n            Some(())",
        "            let done = give(machine, its, words);\n            forget(its, device);\n            done",
    ),
    fault(
        "mmio_core: a table that a late ITS may take is another device's",
        "src/mmio/mmio_core.rs",
        "if done.is_some() || its.late {",
        "if done.is_some() {",
    ),
    fault(
        "mmio_core_aux: tables are cut to what a host uses, and the redistributor uses more",
        "src/mmio/mmio_core_aux.rs",
        "Some(((prop & PROP_ID_BITS) as u32 + 1).min(lpi_bits)).filter(|bits| *bits <= MOST_ID_BITS)?",
        "((prop & PROP_ID_BITS) as u32 + 1).min(lpi_bits).min(MOST_ID_BITS)",
    ),
    fault(
        "mmio_core: the host's queue may be anybody's",
        "src/mmio/mmio_core.rs",
        "    hold_mailbox(mem, page).ok()?;\n    let mut words = [0; WORDS];\n    mem.machine().read_page(page, (at.raw() % PAGE_SIZE / 8) as usize, &mut words);\n    drop_mailbox(mem, page).ok()?;\n",
        "    let _ = (hold_mailbox(mem, page), drop_mailbox(mem, page));\n    let mut words = [0; WORDS];\n    mem.machine().read_page(page, (at.raw() % PAGE_SIZE / 8) as usize, &mut words);\n",
    ),
    fault(
        "mmio_core: an ITS that is off gets commands",
        "src/mmio/mmio_core.rs",
        "control & ENABLED == 0 || its.stalled",
        "its.stalled",
    ),
    fault(
        "mmio_core: the host has virtual LPIs",
        "src/mmio/mmio_core.rs",
        "typer & !VIRTUAL & !DEVICE_BITS | bits",
        "typer & !DEVICE_BITS | bits",
    ),
    fault(
        "mmio_ops: the host does not step over the access",
        "src/mmio/mmio_ops.rs",
        "machine.host_pc().wrapping_add(INSTRUCTION_SIZE)",
        "machine.host_pc().wrapping_add(0 * INSTRUCTION_SIZE)",
    ),
    fault(
        "fault: what no register is reached by is left alone",
        "src/trap/fault_handler.rs",
        "                Some(false) => Err(Denied::NotOwner),\n",
        "                Some(false) => Ok(()),\n",
    ),
    fault(
        "mmio_core_aux: tables move while the redistributor still uses them",
        "src/mmio/mmio_core_aux.rs",
        "GICR_PROPBASER..0x80 if enabled() || !arrived() => {}",
        "GICR_PROPBASER..0x80 if enabled() => {}",
    ),
    fault(
        "mmio_core: a command is read again once it was looked at",
        "src/mmio/mmio_core.rs",
        "read_command(mem, its).and_then(|words| run",
        "read_command(mem, its).and_then(|_| read_command(mem, its)).and_then(|words| run",
    ),
    fault(
        "mmio_core: a device table leads to a page that the ITS does not see yet",
        "src/mmio/mmio_core.rs",
        "        machine.publish_tables();\n        machine.pt_store(slot,",
        "        machine.pt_store(slot,",
    ),
    fault(
        "mmio_core: the ITS is told of a command that it does not see yet",
        "src/mmio/mmio_core.rs",
        "    machine.publish_tables();\n    Some(())",
        "    Some(())",
    ),
];
