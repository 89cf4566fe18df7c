//! What VMs cost: leaving one (tests/guests/src/bin/bench.rs under the mini host, ordinary and protected), and the host's calls about them
//! (kserv/mini/src/checks/costs.rs).

use super::{
    Bench, BenchError, plugin_argument,
    profile::{Count, Profile, Symbols, Whose},
    profile_of,
    table::{Budget, Row, Table},
};
use crate::{
    error::create_dir,
    machine::Machine,
    project::Project,
    run::{Boot, Run},
    vms::{Vm, Vms},
};
use std::{collections::BTreeMap, time::Duration};

/// Pages of it are given in blocks, but for the last MiB.
pub(super) const MEMORY: u64 = 17 << 20;
/// What a protected VM's row may be of an ordinary one's.
pub(super) const NOT_MORE_THAN: f64 = 1.1;
/// A CPU whose interrupt controller can be a GICv2.
pub(super) const GICV2_CPU: &str = "cortex-a72";
/// Memory of the machine in which a VM has 4 GiB.
const COSTS_MEMORY: &str = "8G";
/// Where the core puts the mini host: behind its own block.
const MINI_BASE: u64 = 0x4040_0000;
const LIMIT: Duration = Duration::from_secs(300);
/// Rounds of a batch of the guest.
const ROUNDS: u64 = 32;
/// The host gives so many pages at a fault where it cannot give a block.
const FAULT_AROUND: u64 = 16;

/// A row of the guest.
pub(super) struct Path {
    /// As the guest calls it.
    pub(super) name: &'static str,
    what: &'static str,
    /// The guest's number of the row, whose marks stand around it; `None`: by its virtual counter only.
    row: Option<u32>,
    /// Rounds of a batch.
    rounds: u64,
    pub(super) budget: Option<f64>,
}

const fn path(name: &'static str, what: &'static str, row: u32, budget: Option<f64>) -> Path {
    Path { name, what, row: Some(row), rounds: ROUNDS, budget }
}

/// Budgets: docs/benchmarks.md, Budgets.
pub(super) const PATHS: &[Path] = &[
    path("psci_version", "PSCI_VERSION", 1, Some(100.0)),
    path("affinity_info", "AFFINITY_INFO (the core's answer)", 3, None),
    path("id_register", "ID register read (ID_AA64PFR0_EL1)", 2, Some(120.0)),
    path("host_register", "register read served by the host (CNTP_CTL_EL0)", 4, Some(1400.0)),
    path("gicd", "read of an emulated interrupt-controller register (GICD_CTLR), by way of the host", 5, Some(1400.0)),
    path("switch", "world switch, VM to host and back, FP not in use by the VM", 13, None),
    path("switch_fp", "world switch, VM to host and back, FP in use by the VM", 14, None),
    path("pl011", "MMIO to the host's PL011 and back (UARTFR)", 6, Some(5000.0)),
    path("sgi_self", "SGI to self, until acknowledged and ended", 7, Some(600.0)),
    path("ipi", "IPI to another vCPU, until acknowledged, both CPUs' instructions", 12, Some(1800.0)),
    Path {
        name: "timer_polling",
        what: "virtual timer, deadline to acknowledge, polling",
        row: None,
        rounds: ROUNDS,
        budget: Some(900.0),
    },
    Path {
        name: "timer_wfi",
        what: "virtual timer, deadline to acknowledge, after WFI",
        row: None,
        rounds: ROUNDS,
        budget: Some(4000.0),
    },
    Path {
        name: "touch_fault",
        what: "first touch of memory given by pages: one fault, 16 pages",
        row: Some(8),
        rounds: ROUNDS / FAULT_AROUND,
        budget: None,
    },
    path("touch_page", "  for each page of 4 KiB", 8, Some(4000.0)),
    Path {
        name: "touch_block",
        what: "first touch of memory given by blocks: one fault, 2 MiB",
        row: Some(9),
        rounds: 1,
        budget: None,
    },
    path("share", "share a page with the host", 10, None),
    path("unshare", "take it back", 11, None),
];

/// What `test=costs` of the mini host says (kserv/mini/src/checks/costs.rs).
const COSTS: &[(&str, &str)] = &[
    ("donate_page.vms.1", "donate a page to a protected VM, 1 VM"),
    ("donate_page.vms.8", "  8 VMs"),
    ("donate_page.vms.32", "  32 VMs"),
    ("donate_page.mib.64", "  another VM with 64 MiB"),
    ("donate_page.mib.256", "  another VM with 256 MiB"),
    ("donate_page.mib.1024", "  another VM with 1 GiB"),
    ("donate_page.mib.4096", "  another VM with 4 GiB"),
    ("reclaim_page.vms.1", "reclaim it, 1 VM"),
    ("reclaim_page.vms.8", "  8 VMs"),
    ("reclaim_page.vms.32", "  32 VMs"),
    ("reclaim_page.mib.64", "  another VM with 64 MiB"),
    ("reclaim_page.mib.256", "  another VM with 256 MiB"),
    ("reclaim_page.mib.1024", "  another VM with 1 GiB"),
    ("reclaim_page.mib.4096", "  another VM with 4 GiB"),
    ("donate_block", "donate 2 MiB to a protected VM"),
    ("donate_block.mib.64", "  each, to a VM that gets 64 MiB"),
    ("donate_block.mib.256", "  each, to a VM that gets 256 MiB"),
    ("donate_block.mib.1024", "  each, to a VM that gets 1 GiB"),
    ("donate_block.mib.4096", "  each, to a VM that gets 4 GiB"),
    ("reclaim_block", "reclaim 2 MiB"),
    ("reclaim_block.mib.64", "  each, of a VM with 64 MiB"),
    ("reclaim_block.mib.256", "  each, of a VM with 256 MiB"),
    ("reclaim_block.mib.1024", "  each, of a VM with 1 GiB"),
    ("reclaim_block.mib.4096", "  each, of a VM with 4 GiB"),
    ("vm_create", "create a VM of 1 MiB, until it can run"),
    ("vm_first", "boot such a VM, until its first instruction"),
    ("vm_run", "run it: one character to the console, PSCI SYSTEM_OFF"),
    ("vm_destroy", "destroy it, with all its memory looked at by the host"),
];
/// What begins so must not cost more than this.
const NOT_GROWING: [(&str, &str); 4] = [
    ("donate_page.", "donate_page.vms.1"),
    ("reclaim_page.", "reclaim_page.vms.1"),
    ("donate_block.", "donate_block"),
    ("reclaim_block.", "reclaim_block"),
];

impl Bench {
    /// Adds the rows of VMs.
    pub(super) fn vms(
        &self,
        project: &Project,
        table: &mut Table,
        progress: &mut impl FnMut(&str),
    ) -> Result<(), BenchError> {
        for (gic, cpu) in [(3, self.cpu.as_str()), (2, GICV2_CPU)] {
            let mut ordinary = BTreeMap::new();
            for protected in [false, true] {
                let kind = if protected { "a protected VM" } else { "an ordinary VM" };
                let name = format!("{kind}, GICv{gic}");
                progress(&format!("{name}, with the profiler"));
                let (profile, console) = self.run_vm(project, protected, (gic, cpu), &name)?;
                table
                    .heading(&format!("out of {kind} and back, GICv{gic}, {cpu}, in instructions (core, host and VM)"));
                let empty = least(&profile, 0).unwrap_or_default();
                for path in PATHS {
                    let Some((all, core)) = cost(path, &profile, &console, empty) else { continue };
                    let of_gic = if gic == 3 { "" } else { "gicv2." };
                    let id = format!("vm.{of_gic}{}.{}", if protected { "protected" } else { "ordinary" }, path.name);
                    let row = Row::new(&id, path.what, all);
                    // What it may be by itself, and a tenth more than an ordinary VM's at most.
                    let alone = path.budget.filter(|_| gic == 3);
                    let beside = if protected { ordinary.get(path.name).map(|all| all * NOT_MORE_THAN) } else { None };
                    table.push(match alone.into_iter().chain(beside).min_by(f64::total_cmp) {
                        Some(most) => row.budget(Budget::AtMost(most)),
                        None => row,
                    });
                    if !protected {
                        ordinary.insert(path.name, all);
                    }
                    if let Some(core) = core {
                        table.push(Row::new(&format!("{id}.el2"), "    of these at EL2", core));
                    }
                }
                if self.top != 0 && gic == 3 {
                    self.vm_functions(project, table, &profile, kind)?;
                }
            }
        }
        progress("calls about VMs");
        let machine = Machine::virt().cpu(&self.cpu).smp(1).memory(COSTS_MEMORY).icount(true);
        let console = self.run_mini(project, Vms::new().line("test=costs"), machine, "calls about VMs", None)?;
        let said = |name: &str| number(&console, &format!("mini: cost {name} "));
        table.heading(&format!(
            "calls of the mini host about VMs, GICv3, {}, in instructions (core and host)",
            self.cpu
        ));
        for (name, what) in COSTS {
            let Some(value) = said(name) else { continue };
            let row = Row::count(&format!("vm.{name}"), what, value);
            // What must not grow: by a twentieth more than with one VM, or with the least memory, at most.
            let first = NOT_GROWING.iter().find(|(start, _)| name.starts_with(start) && !name.ends_with(".1"));
            table.push(match first.and_then(|(_, first)| said(first)).filter(|_| name.contains('.')) {
                Some(first) => row.budget(Budget::AtMost((first as f64 * 1.05).floor())),
                None => row,
            });
        }
        Ok(())
    }

    /// Where the core's and the mini host's instructions of each row go.
    fn vm_functions(
        &self,
        project: &Project,
        table: &mut Table,
        profile: &Profile,
        kind: &str,
    ) -> Result<(), BenchError> {
        let parts =
            [(Whose::Core, "at EL2", project.core_elf()), (Whose::Host, "of the mini host", project.mini_elf())];
        for (whose, at, elf) in parts {
            let symbols = Symbols::load(&elf)?;
            let name = |offset| if self.lines { symbols.inlined(offset) } else { symbols.function(offset) };
            for (path, row) in PATHS.iter().filter_map(|path| Some((path, path.row?))) {
                let Ok(functions) = profile.by_name(whose, Some(2 * row), 2 * row + 1, name) else { continue };
                let all: u64 = functions.iter().map(|(_, count)| count).sum();
                table.heading(&format!("instructions {at} out of {kind}, first {} times: {}", path.rounds, path.what));
                let id = format!("profile.vm.{kind}.{whose:?}.{}", path.name);
                table.push(Row::count(&id, "all", all));
                for (name, count) in functions.into_iter().take(self.top) {
                    table.push(Row::count(&format!("{id}.{name}"), &name, count));
                }
            }
        }
        Ok(())
    }

    fn run_vm(
        &self,
        project: &Project,
        protected: bool,
        (gic, cpu): (u32, &str),
        name: &str,
    ) -> Result<(Profile, String), BenchError> {
        let dir = project.root().join("target/bench");
        create_dir(&dir)?;
        let counters = dir.join(format!("counters-vm-{gic}-{}", u8::from(protected)));
        let machine = Machine::virt().gic(gic).cpu(cpu).smp(2).memory(&self.memory).icount(true);
        let vm = Vm::guest("bench").vcpus(2).memory(MEMORY).protected(protected);
        let console = self.run_mini(project, Vms::new().vm(vm), machine, name, Some(&counters))?;
        if !console.contains("guest bench: ok") {
            return Err(BenchError::NotSaid { name: name.to_owned(), what: "guest bench: ok" });
        }
        Ok((profile_of(&counters)?, console))
    }

    /// The mini host to its end: the console. `counters`: with the profiler.
    fn run_mini(
        &self,
        project: &Project,
        vms: Vms,
        mut machine: Machine,
        name: &str,
        counters: Option<&std::path::Path>,
    ) -> Result<String, BenchError> {
        if let Some(counters) = counters {
            // The mini host is identity mapped, and its VMs execute nothing at its addresses: theirs are below.
            let mut plugin = plugin_argument(project, counters);
            plugin.push(format!(",host={MINI_BASE:#x}"));
            machine = machine.arg("-plugin").arg(plugin);
        }
        let done = Run::new(project, machine).boot(Boot::Mini(vms)).timeout(LIMIT).finish()?;
        if !done.is_success() {
            return Err(BenchError::Failed { name: name.to_owned(), story: done.story(), tail: done.tail(15) });
        }
        if !done.console.contains(&format!("host kernel at {MINI_BASE:#x}")) {
            return Err(BenchError::NotSaid { name: name.to_owned(), what: "where the mini host is" });
        }
        Ok(done.console)
    }
}

/// The number behind `before`.
fn number(console: &str, before: &str) -> Option<u64> {
    console.split(before).nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The batch of a row that took the least.
pub(super) fn least(profile: &Profile, row: u32) -> Option<Count> {
    let batches = profile.marks().windows(2).filter(|two| two[0].0 == 2 * row && two[1].0 == 2 * row + 1);
    batches.map(|two| two[1].1 - two[0].1).min_by_key(|count| count.all)
}

/// What one turn takes, and of that in the core. `None`: the guest has no such row.
pub(super) fn cost(path: &Path, profile: &Profile, console: &str, empty: Count) -> Option<(f64, Option<f64>)> {
    let per_turn = |count: u64| count as f64 / path.rounds as f64;
    match path.row {
        Some(row) => {
            let count = least(profile, row)?;
            let loops = empty.all * path.rounds.max(if path.row == Some(8) { ROUNDS } else { 0 }) / ROUNDS;
            Some((per_turn(count.all.saturating_sub(loops)), Some(per_turn(count.core))))
        }
        None => {
            let ticks = number(console, &format!("row {} ", path.name))?;
            // One instruction is 1 ns.
            Some((per_turn(ticks) * 1e9 / number(console, "guest bench: frequency ")? as f64, None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_that_took_the_least_counts_less_the_empty_loop() {
        let text = "mark 0 0 0\nmark 1 64 0\nmark 2 100 0\nmark 3 9000 5000\nmark 2 10000 5000\nmark 3 13264 8200\n";
        let profile = Profile::parse(text).unwrap();
        let empty = least(&profile, 0).unwrap();
        assert_eq!(cost(&PATHS[0], &profile, "", empty), Some((100.0, Some(100.0))));
        assert_eq!(cost(&PATHS[1], &profile, "", empty), None);
    }

    #[test]
    fn the_timers_rows_are_the_guests_own() {
        let console = "guest bench: frequency 500000000\nguest bench: row timer_polling 1600/32\n";
        let path = PATHS.iter().find(|path| path.name == "timer_polling").unwrap();
        assert_eq!(cost(path, &Profile::default(), console, Count::default()), Some((100.0, None)));
    }

    #[test]
    fn every_row_is_one_of_the_guests() {
        let guest = include_str!("../../../../tests/guests/src/bin/bench.rs");
        for path in PATHS.iter().filter(|path| path.name != "touch_fault") {
            assert!(guest.contains(&format!("row(\"{}\"", path.name)), "{}", path.name);
            assert!(path.row.is_none_or(|row| guest.contains(&format!("batches!({row}, "))), "{}", path.name);
        }
        assert!(guest.contains(&format!("const ROUNDS: u64 = {ROUNDS};")));
        let mini = include_str!("../../../../kserv/mini/src/checks/costs.rs");
        for (name, _) in COSTS {
            let name = name.split('.').next().unwrap_or_default();
            assert!(mini.contains(&format!("\"{name}")), "{name}");
        }
        let host = include_str!("../../../../kserv/model/src/memory.rs");
        assert!(host.contains(&format!("FAULT_AROUND: u64 = {FAULT_AROUND};")));
    }
}
