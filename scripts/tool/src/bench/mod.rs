//! The project's numbers, in executed instructions: `scripts/bench`.
//!
//! The host boots and does a fixed work, with the core and without it, in a QEMU that counts instructions
//! (`-icount`) and has `scripts/qemu-plugin` loaded, which counts those of the core apart. docs/benchmarks.md says what
//! each figure means.

pub mod image;
pub mod kvm;
pub mod profile;
mod steady;
pub mod table;
mod vms;

use crate::{
    error::{ElfError, FileError, create_dir, read},
    kvm::KvmError,
    machine::{Board, Machine},
    project::Project,
    run::{Boot, Finished, Run, RunError},
    sign::SignError,
};
use profile::{Count, HOST_STARTS, NoSymbols, Profile, ProfileError, Symbols, Whose};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use table::{Budget, Row, Table};
use thiserror::Error;

/// Marks of tests/host-programs/workload.c: user space is there; after some idle time; all is warm; the end.
const BOOTED: u32 = 1;
const SETTLED: u32 = 2;
const WARM: u32 = 3;
const DONE: u32 = 4;
/// In each round of it, what ends with these marks. A round starts with the mark before.
const PARTS: [(&str, u32); 4] =
    [("fork and exec", 9), ("hashing", 10), ("page faults", 11), ("file copy in tmpfs", 12)];
/// Marks of tests/host-programs/hypercall, and the turns of its loops.
const EMPTY_LOOP: (u32, u32) = (16, 17);
const HVC_LOOP: (u32, u32) = (18, 19);
const SMC_LOOP: (u32, u32) = (20, 21);
const TURNS: u64 = 10_000;

/// What the core counts, in the order of `per_cpu::Event`.
const EVENTS: [&str; 5] = [
    "host stage-2 faults served",
    "host accesses denied",
    "host hypercalls",
    "host SMCs",
    "host instructions undefined",
];

/// What makes the host's own work differ less from run to run.
const QUIET: &str = "norandmaps transparent_hugepage=never";

/// A run may take this long before it is given up.
const LIMIT: Duration = Duration::from_secs(600);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The CPU model.
    pub cpu: String,
    /// The memory, as QEMU writes it.
    pub memory: String,
    /// The host's kernel.
    pub kernel: String,
    /// Rounds of the steady part.
    pub rounds: u32,
    /// One CPU only.
    pub quick: bool,
    /// The rows of VMs only.
    pub vms_only: bool,
    /// The rows of a Linux host's VMs only.
    pub kvm_only: bool,
    /// Every run twice, to see whether they are the same.
    pub twice: bool,
    /// That many functions of the core that take the most instructions, and the most room.
    pub top: usize,
    /// With the inlined functions and lines in them.
    pub lines: bool,
}

/// The numbers cannot be had.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// QEMU cannot be started.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The core's image cannot be measured.
    #[error(transparent)]
    Sizes(#[from] ElfError),
    /// The counters cannot be read.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The core's symbols cannot be read.
    #[error(transparent)]
    Symbols(#[from] NoSymbols),
    /// A Linux host that runs VMs cannot be made.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Its protected VM cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The host did not do its work.
    #[error("the run {name} failed: {story}; its last lines:\n{tail}")]
    Failed {
        /// Which run.
        name: String,
        /// How it ended.
        story: String,
        /// The console's end.
        tail: String,
    },
    /// The console does not say what it should.
    #[error("the run {name} does not say {what:?} on its console")]
    NotSaid {
        /// Which run.
        name: String,
        /// What is looked for.
        what: &'static str,
    },
}

/// A run and what was counted in it.
#[derive(Debug)]
struct Measured {
    name: String,
    core: bool,
    cpus: u32,
    console: String,
    profile: Profile,
}

impl Measured {
    /// The number behind `before` on the console.
    fn said<T: FromStr>(&self, before: &'static str) -> Result<T, BenchError> {
        let rest = self.console.split(before).nth(1);
        let number = rest.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.parse().ok());
        number.ok_or_else(|| BenchError::NotSaid { name: self.name.clone(), what: before })
    }

    /// What one turn of a loop takes that an empty loop does not.
    fn per_turn(&self, (from, to): (u32, u32)) -> Result<Cost, BenchError> {
        let whole = self.profile.between(from, to)?;
        let empty = self.profile.between(EMPTY_LOOP.0, EMPTY_LOOP.1)?;
        let per_turn = |count: u64| count as f64 / TURNS as f64;
        Ok(Cost { all: per_turn(whole.all.saturating_sub(empty.all)), core: per_turn(whole.core) })
    }
}

struct Cost {
    all: f64,
    core: f64,
}

impl Bench {
    /// Measures. `progress` is told what happens.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn measure(&self, project: &Project, mut progress: impl FnMut(&str)) -> Result<Table, BenchError> {
        if self.vms_only {
            let mut table = Table::new(self.about(project));
            self.vms(project, &mut table, &mut progress)?;
            return Ok(table);
        }
        if self.kvm_only {
            let mut table = Table::new(self.about(project));
            self.kvm(project, &mut table, &mut progress)?;
            return Ok(table);
        }
        let mut runs = Vec::new();
        for cpus in [1, 2].into_iter().take(if self.quick { 1 } else { 2 }) {
            for core in [true, false] {
                progress(&format!("{}, with the profiler", run_name(core, cpus)));
                runs.push(self.run(project, core, cpus)?);
            }
        }
        let mut table = Table::new(self.about(project));
        self.core_alone(project, &mut table, &runs)?;
        self.host(&mut table, &runs)?;
        self.vms(project, &mut table, &mut progress)?;
        if self.twice {
            self.again(project, &mut table, &runs, &mut progress)?;
        }
        if self.top != 0 {
            self.profile(project, &mut table, &runs)?;
        }
        Ok(table)
    }

    fn about(&self, project: &Project) -> Value {
        let git = |args: &[&str]| {
            let output = std::process::Command::new("git").arg("-C").arg(project.root()).args(args).output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let qemu = std::process::Command::new(project.qemu()).arg("--version").output().ok();
        let qemu = qemu.and_then(|output| Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned()));
        json!({
            "commit": git(&["describe", "--always", "--dirty"]),
            "qemu": qemu,
            "cpu": self.cpu,
            "memory": self.memory,
            "kernel": self.kernel,
            "rounds": self.rounds,
        })
    }

    fn run(&self, project: &Project, core: bool, cpus: u32) -> Result<Measured, BenchError> {
        let name = run_name(core, cpus);
        let dir = project.root().join("target/bench");
        create_dir(&dir)?;
        let counters = dir.join(format!("counters-{}-{cpus}", if core { "core" } else { "no-core" }));
        let machine = Machine::virt().cpu(&self.cpu).smp(cpus).memory(&self.memory);
        let mut run = Run::new(project, counting(project, machine, &counters))
            .kernel(&self.kernel)
            .boot(if core { Boot::Core } else { Boot::NoCore })
            .file("/bin/workload", read(&dir.join("workload"))?)
            .append(QUIET)
            .timeout(LIMIT);
        let mut script = self.work();
        if core {
            run = run.file("/lib/hypercall.ko", read(&dir.join("modules/hypercall/hypercall.ko"))?);
            script.push_str("insmod /lib/hypercall.ko && dmesg | grep hypercall:\n");
        }
        let done: Finished = run.script(script).finish()?;
        if !done.is_success() {
            return Err(BenchError::Failed { name, story: done.story(), tail: done.tail(15) });
        }
        let profile = profile_of(&counters)?;
        Ok(Measured { name, core, cpus, console: done.console, profile })
    }

    /// What concerns the core by itself: its start, its size.
    fn core_alone(&self, project: &Project, table: &mut Table, runs: &[Measured]) -> Result<(), BenchError> {
        let sizes = image::measure(&project.core(), &project.core_elf())?;
        let budget_of_2g = |row: Row, most| if self.memory == "2G" { row.budget(Budget::AtMost(most)) } else { row };
        table.heading("the core's size, in bytes");
        table.push(Row::count("image", "flat image without a host", sizes.flat).budget(Budget::AtMost(128.0 * 1024.0)));
        for section in &sizes.sections {
            let id = format!("section{}", section.name);
            let what = format!("  {}{}", section.name, if section.in_file { "" } else { " (memory only)" });
            table.push(Row::count(&id, &what, section.size));
        }
        for run in runs.iter().filter(|run| run.core).take(1) {
            let kept = run.said::<u64>("the core keeps ")? << 10;
            let what = format!("memory kept of {}", self.memory);
            table.push(budget_of_2g(Row::count("memory", &what, kept), 6.0 * 1024.0 * 1024.0));
        }

        table.heading("the core's start, in instructions");
        for run in runs.iter().filter(|run| run.core) {
            let id = format!("start.{}", run.cpus);
            let what = format!("before the host's first instruction, {}", cpus_text(run.cpus));
            let start = run.profile.until(HOST_STARTS)?;
            table.push(budget_of_2g(Row::count(&id, &what, start.core), 10e6));
            let what = "  by its own counter, until it says so on the console, in ticks";
            table.push(Row::count(&format!("{id}.ticks"), what, run.said("the counter stands at ")?));
        }
        Ok(())
    }

    /// What concerns the host while it runs.
    fn host(&self, table: &mut Table, runs: &[Measured]) -> Result<(), BenchError> {
        for run in runs.iter().filter(|run| run.core) {
            let cpus = cpus_text(run.cpus);
            let n = run.cpus;
            table.heading(&format!("the host under the core, {cpus}"));
            let count = run.profile.between(HOST_STARTS, DONE)?;
            let what = "instructions at EL2, from the host's first to the end of boot and workload";
            table.push(Row::count(&format!("el2.{n}"), what, count.core).budget(Budget::AtMost(2e6)));
            let parts = [("boot", HOST_STARTS, BOOTED), ("first round", BOOTED, WARM), ("steady part", WARM, DONE)];
            for (part, from, to) in parts {
                let core = run.profile.between(from, to)?.core;
                table.push(Row::count(&format!("el2.{n}.{part}"), &format!("  of these in the {part}"), core));
            }
            for (event, name) in EVENTS.into_iter().enumerate() {
                let counted = event_count(&run.console, event)
                    .ok_or(BenchError::NotSaid { name: run.name.clone(), what: "event" })?;
                table.push(Row::count(&format!("event.{n}.{event}"), name, counted));
            }
            if let Some(bare) = runs.iter().find(|other| !other.core && other.cpus == run.cpus) {
                self.compare(table, run, bare)?;
            }
        }
        for run in runs.iter().filter(|run| run.core && run.cpus == 1) {
            table.heading("calls of the host to the core, in instructions");
            let calls = [
                ("hvc", "null hypercall (CORE_VERSION)", HVC_LOOP, Some(80.0), "null hypercall takes "),
                ("smc", "null SMC (PSCI_VERSION)", SMC_LOOP, None, "null SMC takes "),
            ];
            for (id, what, marks, budget, said) in calls {
                let cost = run.per_turn(marks)?;
                let row = Row::new(id, what, cost.all);
                table.push(match budget {
                    Some(most) => row.budget(Budget::AtMost(most)),
                    None => row,
                });
                table.push(Row::new(&format!("{id}.el2"), "  of these at EL2", cost.core));
                let ticks = run.said(said)?;
                table.push(Row::new(&format!("{id}.ticks"), "  by the host's own counter, in ticks", ticks));
            }
        }
        Ok(())
    }

    /// With the core and without it.
    fn compare(&self, table: &mut Table, with: &Measured, bare: &Measured) -> Result<(), BenchError> {
        let n = with.cpus;
        table.heading(&format!("the same host, {}, in instructions: with the core, without it, ratio", cpus_text(n)));
        let whole = |run: &Measured| -> Result<_, BenchError> {
            let profile = &run.profile;
            let start = if run.core { profile.until(HOST_STARTS)? } else { Count::default() };
            Ok([
                ("host boot", profile.until(BOOTED)? - start),
                ("30 s without work", profile.between(BOOTED, SETTLED)?),
                ("first round of the workload", profile.between(SETTLED, WARM)?),
                ("all rounds that follow", profile.between(WARM, DONE)?),
                ("all of it, with the core's own start", profile.until(DONE)?),
            ])
        };
        for ((what, with), (_, bare)) in whole(with)?.into_iter().zip(whole(bare)?) {
            table.push(Row::compared(&format!("{what}.{n}"), what, with.all, bare.all));
        }
        // The host's own instructions without those at EL2, in its least disturbed rounds.
        let (mut own, mut own_bare) = (0, 0);
        for (what, mark) in PARTS {
            let least = |run: &Measured| run.profile.least_step(WARM, mark).ok_or(ProfileError::Missing(mark));
            let (with, bare) = (least(with)?, least(bare)?);
            let id = format!("round.{n}.{what}");
            table.push(Row::compared(&id, &format!("  of a steady round, the least: {what}"), with, bare));
            (own, own_bare) = (own + with, own_bare + bare);
        }
        let percent = |part: f64, of: u64| part * 100.0 / of as f64;
        let steady = with.profile.between(WARM, DONE)?;
        let el2 = percent(steady.core as f64, steady.all);
        let slow = "slow-down of the steady work by the core's instructions, in percent";
        table.push(Row::percent(&format!("slowdown.{n}"), slow, el2).budget(Budget::AtMost(0.01)));
        let own = percent(own as f64 - own_bare as f64, own_bare);
        let what = "  difference of the host's own instructions, in percent (noise: see docs)";
        table.push(Row::percent(&format!("slowdown.{n}.own"), what, own));
        Ok(())
    }

    /// Runs everything once more.
    fn again(
        &self,
        project: &Project,
        table: &mut Table,
        runs: &[Measured],
        progress: &mut impl FnMut(&str),
    ) -> Result<(), BenchError> {
        table.heading("the same runs once more");
        for first in runs {
            progress(&format!("{}, once more", first.name));
            let second = self.run(project, first.core, first.cpus)?;
            let differs = |of: fn(&Count) -> u64| {
                let pairs = first.profile.marks().iter().zip(second.profile.marks());
                pairs.map(|((_, a), (_, b))| of(a).abs_diff(of(b))).max().unwrap_or(0)
            };
            let id = format!("again.{}.{}", first.core, first.cpus);
            table.push(Row::count(
                &id,
                &format!("{}: largest difference, all", first.name),
                differs(|count| count.all),
            ));
            if first.core {
                table.push(Row::count(&format!("{id}.el2"), "  at EL2", differs(|count| count.core)));
            }
        }
        Ok(())
    }

    /// Where the core's instructions go.
    fn profile(&self, project: &Project, table: &mut Table, runs: &[Measured]) -> Result<(), BenchError> {
        let symbols = Symbols::load(&project.core_elf())?;
        let name = |offset| if self.lines { symbols.inlined(offset) } else { symbols.function(offset) };
        for run in runs.iter().filter(|run| run.core && run.cpus == 1) {
            let parts = [
                ("of the core's start", None, HOST_STARTS),
                ("at EL2 during the host's boot", Some(HOST_STARTS), BOOTED),
                ("at EL2 during the workload", Some(BOOTED), DONE),
                ("of a null hypercall, times 10,000", Some(HVC_LOOP.0), HVC_LOOP.1),
                ("of a null SMC, times 10,000", Some(SMC_LOOP.0), SMC_LOOP.1),
            ];
            for (what, from, to) in parts {
                table.heading(&format!("instructions {what}, by function"));
                for (name, count) in run.profile.by_name(Whose::Core, from, to, name)?.into_iter().take(self.top) {
                    table.push(Row::count(&format!("profile.{what}.{name}"), &name, count));
                }
            }
        }
        table.heading("bytes of the image, by function");
        for (name, size) in image::measure(&project.core(), &project.core_elf())?.symbols.into_iter().take(self.top) {
            table.push(Row::count(&format!("size.{name}"), &name, size));
        }
        Ok(())
    }
}

fn run_name(core: bool, cpus: u32) -> String {
    format!("{} the core, {}", if core { "with" } else { "without" }, cpus_text(cpus))
}

fn cpus_text(cpus: u32) -> String {
    format!("{cpus} CPU{}", if cpus == 1 { "" } else { "s" })
}

/// How often the core counted an event, before the module's own calls.
fn event_count(console: &str, event: usize) -> Option<u64> {
    let before = format!("hypercall: event {event}: ");
    let counted: u64 = console.split(&before).nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    let own = if EVENTS[event] == "host hypercalls" { event as u64 + 1 } else { 0 };
    Some(counted.saturating_sub(own))
}

/// The machine with the profiler, and the same time of day in every run.
fn counting(project: &Project, machine: Machine, counters: &Path) -> Machine {
    let machine = machine.icount(true).arg("-rtc").arg("base=2026-01-01T00:00:00,clock=vm");
    machine.arg("-plugin").arg(plugin_argument(project, counters))
}

/// What the profiler has written.
fn profile_of(counters: &Path) -> Result<Profile, BenchError> {
    Ok(Profile::parse(&profile::read_counters(counters)?)?)
}

/// `-plugin`'s argument: a comma list, in which a comma in a file's name is written twice.
fn plugin_argument(project: &Project, counters: &Path) -> std::ffi::OsString {
    let plugin: PathBuf = project.root().join("target/debug/libcorevisor_qemu_plugin.so");
    let doubled = |path: &Path| path.display().to_string().replace(',', ",,");
    format!("{},base={:#x},out={}", doubled(&plugin), Board::Virt.image_base(), doubled(counters)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_in_the_cores_order() {
        let source = include_str!("../../../../src/abstract_machine/per_cpu.rs");
        // The lines of `events!`; bench counts the first ones.
        let list =
            source.split_once("\nevents! {").map_or("", |(_, list)| list.split("\n}").next().unwrap_or_default());
        let quoted =
            list.lines().filter(|line| !line.trim_start().starts_with("//")).filter_map(|line| line.split('"').nth(1));
        assert_eq!(quoted.take(EVENTS.len()).collect::<Vec<_>>(), EVENTS);
    }

    #[test]
    fn the_modules_own_calls_are_not_the_hosts() {
        let console = "[    1.0] hypercall: event 0: 17\n[    1.0] hypercall: event 2: 3\n";
        assert_eq!((event_count(console, 0), event_count(console, 2)), (Some(17), Some(0)));
        assert_eq!(event_count(console, 1), None);
    }
}
