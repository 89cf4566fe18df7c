//! A host that attacks (kserv/mini/src/checks): one attack by one, each by its name, on one CPU or from several; and at random, on every CPU at once (`storm`),
//! while a protected VM keeps its secrets.

use crate::{
    bed::{Bed, Checks, Failure, LIMIT},
    runner::Case,
};
use corevisor_evidence::tell;
use corevisor_tool::{
    machine::Machine,
    outcome::Finished,
    run::{Boot, Run},
    vms::{Vm, Vms},
};
use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

/// What hangs ends then. A machine with other work needs minutes for a storm of 4 CPUs.
const STORM_LIMIT: Duration = Duration::from_secs(1200);
/// Steps of each CPU in a storm of the soak: a minute or so.
const SOAK_ROUNDS: u32 = 4000;

/// In every word that the guests keep secret.
pub const SECRET: &str = "5ec2e75";

/// The cases.
pub fn cases() -> Vec<Case> {
    let storm = |gic, cpus, rounds| {
        let name = format!("random calls, accesses and runs of {cpus} CPUs at once get nowhere, GICv{gic}");
        Case::new("hostile", name, move |bed: &Bed| storm(bed, gic, cpus, 1, rounds).map(drop))
    };
    let mut cases =
        vec![storm(3, 2, 400), storm(2, 4, 2000).only_in_full_if(true), storm(3, 4, 2000).only_in_full_if(true)];
    for (gic, cpus, rounds, default) in [(3, 2, 100, true), (2, 4, 100, false)] {
        let name = format!(
            "in a storm of {cpus} CPUs the oracle finds records and tables agree after every call that changes something, GICv{gic}"
        );
        let case = Case::new("hostile", name, move |bed: &Bed| watched(bed, gic, cpus, rounds));
        cases.push(case.only_in_full_if(!default));
    }
    for attack in ATTACKS {
        let case = |gic, cpus| {
            let name = format!("{}, {cpus} CPUs, GICv{gic}", attack.title);
            Case::new("hostile", name, move |bed: &Bed| attack.run(bed, machine(gic, cpus)))
        };
        let other = 5 - attack.gic;
        cases.extend([case(attack.gic, attack.cpus[0]), case(other, attack.cpus[1]).only_in_full_if(true)]);
    }
    let name = format!("{}, on a Raspberry Pi 4, whose page 0 is nobody's", LIMITS.title);
    let limits = Case::new("hostile", name, |bed: &Bed| LIMITS.run(bed, Machine::raspi4b()));
    cases.push(limits.only_in_full_if(true));
    let name = "after a reset of the machine, whose memory keeps what it held, nothing of a protected VM is in it";
    cases.push(Case::new("hostile", name, reset));
    cases
}

/// A check of the mini host.
struct Attack {
    /// What is true if it holds.
    title: &'static str,
    /// Its name.
    check: &'static str,
    /// CPUs in the default selection, and with `--full`.
    cpus: [u32; 2],
    /// The interrupt controller of the default selection; the other one with `--full`.
    gic: u32,
    /// What it is made against.
    vms: fn() -> Vms,
    /// What else the console must say.
    says: &'static [&'static str],
}

/// An attack of one CPU on nobody in particular.
const fn alone(check: &'static str, gic: u32, title: &'static str) -> Attack {
    Attack { title, check, cpus: [1, 2], gic, vms: Vms::new, says: &[] }
}

/// A race, with more CPUs if `--full`.
const fn race(check: &'static str, cpus: [u32; 2], gic: u32, title: &'static str) -> Attack {
    Attack { title, check, cpus, gic, vms: Vms::new, says: &[] }
}

/// An attack on the guest that leaves with secrets in every register.
const fn canaries(check: &'static str, cpus: [u32; 2], gic: u32, title: &'static str) -> Attack {
    let vms = || Vms::new().vm(Vm::guest("canary").vcpus(2).protected(true));
    Attack { title, check, cpus, gic, vms, says: &["380 ways out"] }
}

const LIMITS: Attack = Attack {
    title: "every call with every argument at its limits, in every state of a VM, gets a result or a named error, and nothing is lost",
    check: "limits",
    cpus: [1, 2],
    gic: 3,
    vms: || Vms::new().vm(Vm::guest("keeper").protected(true)),
    says: &["in 10 states; ", "guest keeper: ok, every secret as it was"],
};

const ATTACKS: &[Attack] = &[
    LIMITS,
    Attack {
        title: "no load, store, atomic, DC ZVA or fetch reaches a page that left the host, whichever way it left",
        check: "reach",
        cpus: [1, 2],
        gic: 2,
        vms: Vms::new,
        says: &["5 ways, "],
    },
    alone("walks", 3, "no walk of this host's own tables goes through a page that left it"),
    Attack {
        title: "a page that other CPUs use while it leaves the host is out of their reach at once, whatever their TLBs hold",
        check: "stale-tlb",
        cpus: [2, 4],
        gic: 3,
        vms: Vms::new,
        says: &["20 pages and blocks taken from under "],
    },
    canaries(
        "canaries",
        [1, 1],
        3,
        "after each kind of exit no secret is in what the host reads, its registers are its own, and its lies reach no register of the VM",
    ),
    canaries(
        "mailbox",
        [2, 4],
        2,
        "a VM whose mailboxes other CPUs overwrite all the time finds every register as it left it",
    ),
    Attack {
        title: "of what a VM writes into every system register that there may be nothing is in any of the host's",
        check: "sweep",
        cpus: [1, 1],
        gic: 3,
        vms: || Vms::new().vm(Vm::guest("sweep").protected(true)),
        says: &[" registers read; of the VM's "],
    },
    Attack {
        title: "vCPUs start in no other state than the one, a protected VM's nowhere else than it was signed for, and its registers are not the host's",
        check: "entries",
        cpus: [1, 2],
        gic: 2,
        vms: || Vms::new().vm(Vm::guest("canary").vcpus(2).protected(true)),
        says: &[" entries and registers refused"],
    },
    Attack {
        title: "no PSCI call starts a CPU in what is the core's, a VM's or nobody's",
        check: "psci-entries",
        cpus: [2, 2],
        gic: 3,
        vms: Vms::new,
        says: &[" calls refused, "],
    },
    alone("seed", 2, "the seed that the core makes its keys of is nowhere in the host's memory"),
    alone("smc-numbers", 2, "SMCs to every owner there can be do not exist"),
    alone("read-only", 2, "what is lent read-only a VM reads and never writes, until it is lent for writing"),
    alone(
        "unaligned",
        3,
        "blocks that are not aligned on both sides become pages, all where they should be and nothing beside them",
    ),
    Attack {
        title: "of a page that a VM shows and takes back all the time the host finds nothing secret and changes nothing",
        check: "share-and-touch",
        cpus: [2, 4],
        gic: 2,
        vms: || Vms::new().vm(Vm::guest("sharer").protected(true)),
        says: &["300 times shown and taken back"],
    },
    race(
        "run-and-destroy",
        [2, 4],
        2,
        "vCPUs that run while their VM is switched off, emptied and destroyed write nothing afterwards",
    ),
    race(
        "power-off",
        [3, 4],
        3,
        "a VM that switches itself off while its siblings run gives its memory back when they have left, and not before",
    ),
    race(
        "fault-and-reclaim",
        [2, 3],
        2,
        "pages of a protected VM on their way back are external aborts, then zeroes, and never anything else",
    ),
    race(
        "fault-and-off",
        [2, 4],
        3,
        "a VM that faults while it is switched off gets no page after its last was taken, and none stays lent",
    ),
    race(
        "unmap-and-run",
        [2, 4],
        2,
        "a VM that writes into lent pages all the time writes nothing once they are taken back",
    ),
    race(
        "resolvers",
        [2, 4],
        3,
        "of several CPUs that map the same page, or at the same address, one wins and the others keep what they have",
    ),
];

/// The machine of an attack or a storm.
pub fn machine(gic: u32, cpus: u32) -> Machine {
    Machine::virt().gic(gic).cpu(if gic == 2 { "cortex-a72" } else { "max" }).smp(cpus)
}

fn run(bed: &Bed, machine: Machine, vms: Vms, log: &str) -> Run {
    let run = Run::new(&bed.project, machine).timeout(LIMIT).append(format!("corevisor.log={log}"));
    run.boot(Boot::Mini(vms))
}

fn finish(run: Run) -> Result<Finished, Failure> {
    let done = run.finish()?;
    done.succeeded()?;
    Ok(done)
}

impl Attack {
    fn run(&self, bed: &Bed, machine: Machine) -> Result<(), Failure> {
        // The core's log is searched, too. Elsewhere every refused access is a warning of the core: thousands of them.
        let log = if self.check == "canaries" { "trace" } else { "error" };
        let done = finish(run(bed, machine, (self.vms)().line(format!("test={}", self.check)), log))?;
        done.check(!done.console.to_lowercase().contains(SECRET), "a secret is on the console")?;
        done.says(&format!("mini: test {}: ok, ", self.check))?;
        self.says.iter().try_for_each(|line| done.says(line))
    }
}

/// The host has two lives: the first ends by a reset.
fn reset(bed: &Bed) -> Result<(), Failure> {
    let done = finish(run(bed, machine(3, 2).allow_reboot(true), Vms::new().line("test=reset"), "info"))?;
    done.says_times("entered at EL2", 2)?;
    done.says("pages that were not the host's are zero")?;
    done.says("mini: test reset: ok, 17 pages")
}

/// The machine of a storm: with GICv3 it has an SMMU, so that what devices reach changes with every page that changes hands.
fn stormy(gic: u32, cpus: u32) -> Machine {
    machine(gic, cpus).smmu(gic == 3)
}

/// One storm: the line in which the mini host says what it did.
fn storm(bed: &Bed, gic: u32, cpus: u32, seed: u64, rounds: u32) -> Result<String, Failure> {
    // Every refused access is a warning.
    let run = run(bed, stormy(gic, cpus), storm_of(seed, rounds), "error").timeout(STORM_LIMIT);
    let line = weathered(&finish(run)?)?;
    let done = line.rsplit(": ").next().unwrap_or_default().split(|c: char| !c.is_ascii_digit());
    let done = done.filter_map(|number| number.parse().ok());
    let names = ["calls", "served", "runs of vCPUs", "accesses", "refused"];
    let counts: Vec<(&str, u64)> = names.into_iter().zip(done).collect();
    tell(&format!("storm of {cpus} CPUs, GICv{gic}"), &[[("seed", seed)].as_slice(), &counts].concat());
    Ok(line)
}

fn storm_of(seed: u64, rounds: u32) -> Vms {
    let vms = Vms::new().vm(Vm::guest("keeper").vcpus(2).protected(true)).line("test=storm");
    vms.line(format!("seed={seed}")).line(format!("rounds={rounds}"))
}

fn weathered(done: &Finished) -> Result<String, Failure> {
    done.says("guest keeper: ok, every secret as it was")?;
    let line = done.console.lines().find(|line| line.contains("mini: test storm: ok, "));
    line.map(|line| line.trim().to_owned()).ok_or_else(|| Failure::new("the storm did not say how it ended"))
}

/// A storm in the test build, whose oracle compares records and tables after each call of the host that may change something, but VcpuRun, and stops the machine where they disagree.
fn watched(bed: &Bed, gic: u32, cpus: u32, rounds: u32) -> Result<(), Failure> {
    // It looks at every page of RAM.
    let machine = stormy(gic, cpus).memory("128M");
    let hooks = bed.project.root().join("target/test/corevisor-hooks.bin");
    let done = finish(run(bed, machine, storm_of(1, rounds), "info").core(hooks))?;
    weathered(&done)?;
    let calls = done.number("the oracle found nothing wrong, calls: ")?;
    done.check(calls >= u64::from(cpus * rounds) / 2, format!("the oracle looked after {calls} calls only"))
}

/// One storm after another with new seeds, on each interrupt controller in turn, for so many minutes.
pub fn soak(bed: &Bed, minutes: u64, first: u64) -> ExitCode {
    let (start, long) = (Instant::now(), Duration::from_secs(60 * minutes));
    println!("storms with seeds from {first} on, for {minutes} minutes; one alone: scripts/test --soak 0 SEED");
    let (mut seed, mut failed) = (first, 0);
    loop {
        let gic = if seed % 2 == 0 { 2 } else { 3 };
        match storm(bed, gic, 4, seed, SOAK_ROUNDS) {
            Ok(line) => println!("[{:3} min] GICv{gic}, {line}", start.elapsed().as_secs() / 60),
            Err(failure) => {
                println!("FAILED: seed {seed}, GICv{gic}\n{failure}");
                failed += 1;
            }
        }
        // A pipe that nobody reads is no reason to stop.
        let _ = std::io::stdout().flush();
        seed += 1;
        if start.elapsed() >= long {
            break;
        }
    }
    println!("\n{} passed, {failed} failed", seed - first - failed);
    ExitCode::from(u8::from(failed != 0))
}
