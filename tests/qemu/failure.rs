//! A core that fails: it says all that is known, and no CPU runs anything any more. The build with `test-hooks` fails when
//! the host's test module asks for it (`src/platform/failure.rs`).

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, LIMIT, check},
    made,
    runner::Case,
};
use corevisor::abstract_machine::{
    per_cpu::{EMERGENCY_STACK_SIZE, STACK_SIZE},
    regs::TrapFrame,
};
use corevisor_evidence::tell;
use corevisor_tool::{
    machine::Machine,
    run::Run,
    stack::{Program, StackError},
};
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Where QEMU's virt puts the core, and how large its block is.
const CORE: std::ops::Range<u64> = 0x4020_0000..0x4040_0000;
/// The last line of a failing core.
const LAST: &str = "corevisor: all CPUs stopped";
/// How often the CPUs are looked at until all of them are in the core.
const LOOKS: usize = 200;

/// The cases.
pub fn cases() -> Vec<Case> {
    // What one CPU finds out does not depend on the others, and how they are stopped not on why.
    let new = |name: &str, kind: &'static str, texts: &'static [&'static str]| {
        Case::new("failure", name, move |bed| {
            fails(bed, bed.run(Machine::virt().smp(1).cpu("cortex-a72")), 1, kind, texts)
        })
    };
    // From 9 CPUs on their stacks are not in the core's block.
    let many = |what: &str, kind: &'static str, texts: &'static [&'static str]| {
        let name = format!("{what} is told with names on a machine with many CPUs");
        let run = |bed: &Bed| bed.run(Machine::virt().smp(9).cpu("cortex-a72"));
        Case::new("failure", name, move |bed| fails(bed, run(bed), 9, kind, texts)).only_in_full_if(true)
    };
    vec![
        Case::new("failure", "a panic of the core is told with a backtrace, and stops four busy CPUs", |bed| {
            let run = bed.stock(Machine::virt().smp(4));
            fails(bed, run, 4, "0", &["panic: asked for by a test", "if_asked"])
        }),
        new(
            "the core's text cannot be written",
            "1",
            &["synchronous exception in the core", "ESR_EL2 0x9600004f", "touch"],
        ),
        new(
            "the page below the boot stack is not there",
            "2",
            &["synchronous exception in the core", "ESR_EL2 0x96000007"],
        ),
        new("the core's data cannot be executed", "3", &["synchronous exception in the core", "ESR_EL2 0x8600000f"]),
        new(
            "an SError of the core's own is told",
            "5",
            &[
                "SError in the core",
                "ESR_EL2 0xbe000011",
                "registers: not shown, an SError comes at any place",
                "serror",
            ],
        ),
        new(
            "the oracle of the test build stops a core whose record gives a page away that the host's table maps",
            "7",
            &["panic: oracle: HostIso", "judge"],
        ),
        new(
            "a trap of the core while it has a VM's registers shows none of them",
            "d",
            &["SError in the core", "registers: not shown, a VM is on this CPU"],
        ),
        Case::new("failure", "an SError while the host runs is the host's, which judges it", hosts_serror),
        Case::new(
            "failure",
            "an SError that a VM left behind is taken where it is expected, and the core goes on",
            |bed| goes_on(bed, "c", "an SError where a VM's is expected is taken there"),
        ),
        Case::new("failure", "a translation for a VM that traps in the core is one that failed, no more", |bed| {
            goes_on(bed, "8", "a translation that trapped is one that failed")
        }),
        Case::new("failure", "no way into the core needs more than its stack, the report of a panic on it", stacks),
        new("a stack that is used up runs into its guard page", "4", &["synchronous exception in the core", "deeper"]),
        many("a stack that is used up", "4", &["synchronous exception in the core", "ESR_EL2 0x96000047", "deeper"]),
        many("a panic", "0", &["panic: asked for by a test", "if_asked"]),
    ]
}

/// By the code itself. In the test build too, which has more.
fn stacks(bed: &Bed) -> Result<(), Failure> {
    let entries = [
        ("platform::boot::trap_lower_hvc", STACK_SIZE),
        ("platform::boot::trap_lower_sync", STACK_SIZE),
        ("platform::failure::unexpected_interrupt", STACK_SIZE),
        ("platform::boot::trap_lower_serror", STACK_SIZE),
        ("platform::cpus::secondary_main", STACK_SIZE),
        ("platform::failure::core_trapped", EMERGENCY_STACK_SIZE),
    ];
    let failed = |error: StackError| Failure::new(error.to_string());
    let mut program = Program::of(&bed.project.core_elf()).map_err(|error| failed(error.into()))?;
    for (entry, size) in entries {
        // Assembly puts a frame on it first.
        let need = program.need(entry).map_err(failed)?;
        let bytes = need.bytes + size_of::<TrapFrame>() as u64;
        check(bytes <= size, format!("{entry} may need {bytes} bytes of {size}:\n{need}"))?;
        tell(&format!("stack: {entry}"), &[("bytes", bytes), ("of", size)]);
    }
    Ok(())
}

/// The host keeps all `cpus` CPUs busy and asks the core for a failure of `kind`. The report, with names, must hold `texts`.
fn fails(bed: &Bed, run: Run, cpus: usize, kind: &str, texts: &[&str]) -> Result<(), Failure> {
    let script = format!(
        "insmod /lib/corevisor_test.ko\nfor cpu in $(seq 0 {}); do taskset -c $cpu sh -c 'while :; do echo tick > /dev/null; done' & done\n\
         echo 'hvc c6008fff {kind}' > /proc/corevisor\necho 'the host goes on'\n",
        cpus - 1
    );
    let hooks = bed.project.root().join("target/test/corevisor-hooks.bin");
    let mut machine = run.core(hooks).file("/lib/corevisor_test.ko", made::module(bed)?).script(script).start()?;
    machine.wait_for(LAST, LIMIT)?;

    let everywhere = (0..LOOKS).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let places = program_counters(&machine);
        places.len() == cpus && places.iter().all(|place| CORE.contains(place))
    });
    let console = machine.console();
    check(
        everywhere,
        format!("some CPU still runs the host: {:x?}\n{}", program_counters(&machine), machine.tail(30)),
    )?;
    drop(machine);

    let report = console.split_once("corevisor: FATAL on CPU ").map_or("", |(_, report)| report);
    check(report.matches("FATAL").count() == 0, "the core fails more than once")?;
    check(!report.contains("the host goes on"), "the host goes on")?;
    let named = symbolized(bed, report)?;
    let shows = report.contains("  x0  0x");
    let hides = report.contains("registers: not shown");
    check(!(shows && hides), format!("the report shows registers all the same:\n{named}"))?;
    for text in texts {
        check(named.contains(text), format!("the report should say {text:?}:\n{named}"))?;
    }
    Ok(())
}

/// The core's test build acts as if an SError had come while the host ran; the host must take it, with its syndrome.
fn hosts_serror(bed: &Bed) -> Result<(), Failure> {
    let script = "insmod /lib/corevisor_test.ko\necho 'hvc c6008fff 6' > /proc/corevisor\necho 'the host goes on'\n";
    let hooks = bed.project.root().join("target/test/corevisor-hooks.bin");
    let run = bed.run(Machine::virt().smp(1).cpu("max"));
    let mut machine = run.core(hooks).file("/lib/corevisor_test.ko", made::module(bed)?).script(script).start()?;
    machine.wait_for("Kernel panic - not syncing: Asynchronous SError Interrupt", LIMIT)?;
    let console = machine.console();
    for text in ["SError while the host ran, ESR_EL2 0xbe000011", "SError Interrupt on CPU0, code 0x00000000be000011"] {
        check(console.contains(text), format!("the console should say {text:?}\n{}", machine.tail(30)))?;
    }
    check(
        !console.contains("the host goes on") && !console.contains("FATAL"),
        format!("something else:\n{}", machine.tail(30)),
    )
}

/// The core's test build traps, as it may: it translates an address through tables where no memory is, which QEMU makes an exception of the core's own; it comes to its vector as for a VM's
/// SError. It says so, and host and core go on.
fn goes_on(bed: &Bed, kind: &str, says: &str) -> Result<(), Failure> {
    let script = format!(
        "{FUNCTIONS}insmod /lib/corevisor_test.ko || fail \"the test module does not load\"\n\
         echo 'hvc c6008fff {kind}' > /proc/corevisor\nif complaints; then fail \"the kernel complains\"; fi\nexit 0\n"
    );
    let hooks = bed.project.root().join("target/test/corevisor-hooks.bin");
    for cpu in ["cortex-a72", "max"] {
        let run = bed.run(Machine::virt().smp(1).cpu(cpu));
        let done =
            run.core(&hooks).file("/lib/corevisor_test.ko", made::module(bed)?).script(script.as_str()).finish()?;
        done.succeeded()?;
        done.says(says)?;
    }
    Ok(())
}

/// Where each CPU is.
fn program_counters(machine: &corevisor_tool::running::Running) -> Vec<u64> {
    let arguments = serde_json::json!({ "command-line": "info registers -a" });
    let Ok(answer) = machine.qmp("human-monitor-command", &arguments) else { return Vec::new() };
    let text = answer.as_str().unwrap_or_default().to_owned();
    text.split(" PC=").skip(1).filter_map(|rest| u64::from_str_radix(rest.get(..16)?, 16).ok()).collect()
}

/// `report` as `scripts/symbolize` shows it.
fn symbolized(bed: &Bed, report: &str) -> Result<String, Failure> {
    let root = bed.project.root();
    let elf = root.join("target/hooks/aarch64-unknown-none-softfloat/release/corevisor");
    let mut child = Command::new(root.join("scripts/symbolize"))
        .arg("--elf")
        .arg(elf)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(report.as_bytes())?;
    }
    let done = child.wait_with_output()?;
    check(done.status.success(), "scripts/symbolize failed")?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
