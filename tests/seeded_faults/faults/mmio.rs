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
        "gic_redistributor: a redistributor's tables are not looked at",
        "src/mmio/gic_redistributor.rs",
        "tables.is_some_and(|tables| lend_all(mem, &tables))",
        "tables.is_some()",
    ),
    fault(
        "gic_redistributor: pending bits may be anywhere",
        "src/mmio/gic_redistributor.rs",
        "lend_all(mem, &tables)",
        "lend_all(mem, &tables[..1])",
    ),
    fault(
        "gic_redistributor: a table is a page shorter than the redistributor thinks",
        "src/mmio/gic_redistributor.rs",
        "range.page_cover()",
        "PhysRange::between(range.base(), Pa::new(range.end().raw() - PAGE_SIZE))",
    ),
    fault(
        "gic_redistributor: tables move after they were looked at",
        "src/mmio/gic_redistributor.rs",
        "        GICR_PROPBASER..0x80 if enabled() || !arrived() => {}",
        "        GICR_PROPBASER..0x80 if enabled() && !arrived() => {}",
    ),
    fault(
        "gic_redistributor: what was lent in vain stays lent",
        "src/mmio/gic_redistributor.rs",
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
        "gic_its: a device has the host's table",
        "src/mmio/gic_its.rs",
        "give(machine, its, its_command::map_device(device, events, base))",
        "give(machine, its, words)",
    ),
    fault(
        "gic_its: a device has more events than its table",
        "src/mmio/gic_its.rs",
        "let events = event_bits.min(MOST_EVENT_BITS);",
        "let events = event_bits; let _ = MOST_EVENT_BITS;",
    ),
    fault(
        "gic_its: two devices have one table",
        "src/mmio/gic_its.rs",
        "                its.itts.get_mut(itt)?.as_mut()?.device = Some(device);\n",
        "",
    ),
    fault(
        "gic_its: a table comes back with what it held",
        "src/mmio/gic_its.rs",
        ".for_each(|at| machine.pt_store(at, 0));",
        ".for_each(|_| ());",
    ),
    fault(
        "gic_its: a device beyond the table has a place in it",
        "src/mmio/gic_its.rs",
        "let known = device >> its.setup.device_bits == 0;",
        "let known = true;",
    ),
    fault(
        "its: half of the devices have no place in the first level",
        "src/mmio/its.rs",
        "let bytes = LEVEL1_ENTRY << device_bits.saturating_sub(devices);",
        "let bytes = LEVEL1_ENTRY << device_bits.saturating_sub(devices + 1);",
    ),
    fault(
        "gic_its: the pool is an ITS's for ever",
        "src/mmio/gic_its.rs",
        ".filter(|pages| *pages <= MOST_PAGES)?",
        ".filter(|pages| *pages <= 1000 * MOST_PAGES)?",
    ),
    fault(
        "gic_its: pages of the device table are not counted",
        "src/mmio/gic_its.rs",
        "let table = take_pages(machine, its, its.setup.page_order)?;",
        "let table = machine.alloc_table(its.setup.page_order)?;",
    ),
    fault(
        "gic_its: an ITS stands at what it refuses for ever",
        "src/mmio/gic_its.rs",
        "its.writer | RETRY",
        "its.writer | RETRY ^ 1",
    ),
    fault(
        "gic_its: a command that is left out stops all others",
        "src/mmio/gic_its.rs",
        "words.filter(|_| !its.late)",
        "words.filter(|_| false)",
    ),
    fault(
        "gic_its: a command that a late ITS has not run is left out",
        "src/mmio/gic_its.rs",
        "words.filter(|_| !its.late)",
        "words.filter(|_| true)",
    ),
    fault(
        "gic_its: an ITS that takes nothing is waited for every time",
        "src/mmio/gic_its.rs",
        "settle(machine, its, 1)",
        "settle(machine, its, PATIENCE)",
    ),
    fault(
        "gic_its: a device loses its table though the ITS still has it",
        "src/mmio/gic_its.rs",
        "            give(machine, its, words)?;\n            forget(its, device);\n            Some(())",
        "            let done = give(machine, its, words);\n            forget(its, device);\n            done",
    ),
    fault(
        "gic_its: a table that a late ITS may take is another device's",
        "src/mmio/gic_its.rs",
        "if done.is_some() || its.late {",
        "if done.is_some() {",
    ),
    fault(
        "gic_redistributor: tables are cut to what a host uses, and the redistributor uses more",
        "src/mmio/gic_redistributor.rs",
        "Some(bits.min(lpi_bits)).filter(|bits| *bits <= MOST_ID_BITS)?",
        "bits.min(lpi_bits).min(MOST_ID_BITS)",
    ),
    fault(
        "gic_its: the host's queue may be anybody's",
        "src/mmio/gic_its.rs",
        "    hold_mailbox(mem, page).ok()?;\n    let mut words = [0; WORDS];\n    mem.machine().read_page(page, (at.raw() % PAGE_SIZE / 8) as usize, &mut words);\n    drop_mailbox(mem, page).ok()?;\n",
        "    let _ = (hold_mailbox(mem, page), drop_mailbox(mem, page));\n    let mut words = [0; WORDS];\n    mem.machine().read_page(page, (at.raw() % PAGE_SIZE / 8) as usize, &mut words);\n",
    ),
    fault(
        "gic_its: an ITS that is off gets commands",
        "src/mmio/gic_its.rs",
        "control & ENABLED == 0 || its.stalled",
        "its.stalled",
    ),
    fault(
        "gic_its: the host has virtual LPIs",
        "src/mmio/gic_its.rs",
        "bits.modify(typer & !VIRTUAL)",
        "bits.modify(typer)",
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
        "gic_redistributor: tables move while the redistributor still uses them",
        "src/mmio/gic_redistributor.rs",
        "GICR_PROPBASER..0x80 if enabled() || !arrived() => {}",
        "GICR_PROPBASER..0x80 if enabled() => {}",
    ),
    fault(
        "gic_its: a command is read again once it was looked at",
        "src/mmio/gic_its.rs",
        "let words = read_command(mem, its);",
        "let words = read_command(mem, its).and_then(|_| read_command(mem, its));",
    ),
    fault(
        "gic_its: a device table leads to a page that the ITS does not see yet",
        "src/mmio/gic_its.rs",
        "        machine.publish_tables();\n        machine.pt_store(slot,",
        "        machine.pt_store(slot,",
    ),
    fault(
        "gic_its: the ITS is told of a command that it does not see yet",
        "src/mmio/gic_its.rs",
        "    machine.publish_tables();\n    Some(())",
        "    Some(())",
    ),
];
