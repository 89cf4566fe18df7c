//! `scripts/run` as a person has it: a script on standard input, the console on standard output, and how it ended in the status and one line.

use crate::{
    bed::{Bed, Failure, LIMIT, NO_CLOCK, NO_SELF_TESTS, check},
    made,
    runner::Case,
};
use std::{
    ffi::OsStr,
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

/// The smallest machine that there is no other reason to choose.
const SMALL: [&str; 8] = ["--cpu", "cortex-a72", "--smp", "1", "--memory", "512M", "--gic", "2"];
/// Beyond a guest's memory: a device of its VMM's, of which a protected guest is shown nothing.
const BEYOND: &str = "0x90000000";

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("scripts/run", name, act);
    vec![
        new("what is no good end has a status and a line: a script's own, a panic, a file that is no kernel", bad_ends)
            .mostly_waits(),
        new("a host that hangs is killed at the limit, its last lines are shown, and the status is 124", hangs)
            .only_in_full_if(true),
        new("a host without a script powers off, and the status is 0", no_script).only_in_full_if(true),
        new("--guest gives a script to a Debian guest, and ends with it", |bed| guest(bed, &[], "ordinary", 0))
            .only_in_full_if(true),
        new("--guest --protected signs the guest, gives it a script, and ends with its status", |bed| {
            guest(bed, &["--protected"], "protected", 7)
        })
        .only_in_full_if(true),
    ]
}

/// How `scripts/run` ended.
pub struct Ended {
    /// Its exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// Its standard output.
    pub said: String,
    /// Its standard error.
    pub told: String,
}

impl Ended {
    /// Fails unless the status is `status`, the console has all of `texts`, and standard error is `line`, or nothing.
    pub fn is(&self, status: i32, texts: &[&str], line: &str) -> Result<(), Failure> {
        let told = self.told.trim_end() == line;
        let good = self.status == Some(status) && told && texts.iter().all(|text| self.said.contains(text));
        let wanted = format!("it should be {status}, {line:?}, and say {texts:?}");
        check(good, format!("status {:?}, standard error: {}\n{wanted}\n{}", self.status, self.told, self.said))
    }
}

/// Runs it with `args` and `script` on standard input, at most until [`LIMIT`].
pub fn scripts_run<A: AsRef<OsStr>>(
    bed: &Bed,
    args: impl IntoIterator<Item = A>,
    script: &str,
) -> Result<Ended, Failure> {
    limited(bed, LIMIT, args, script)
}

fn limited<A: AsRef<OsStr>>(
    bed: &Bed,
    limit: Duration,
    args: impl IntoIterator<Item = A>,
    script: &str,
) -> Result<Ended, Failure> {
    let mut run = Command::new(bed.project.root().join("scripts/run"));
    let run = run.args(["--timeout", &limit.as_secs().to_string()]).args(args);
    let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // A run that refuses its options does not read.
    let _ = child.stdin.take().map(|mut input| input.write_all(script.as_bytes()));
    let done = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { status: done.status.code(), said: text(&done.stdout), told: text(&done.stderr) })
}

fn bad_ends(bed: &Bed) -> Result<(), Failure> {
    let done = scripts_run(bed, SMALL, "echo here is the script; exit 3")?;
    let said = ["under corevisor", "\nhere is the script", "host ends the run: System(Off)"];
    done.is(3, &said, "run: the host powered off; its script ended with status 3")?;

    let done = scripts_run(bed, SMALL, "echo c > /proc/sysrq-trigger")?;
    done.is(
        1,
        &["Kernel panic - not syncing: sysrq triggered crash"],
        "run: the host's kernel panicked: sysrq triggered crash",
    )?;

    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(&file, [0x1f, 0x8b, 8, 0].repeat(4096))?;
    let kernel = ["--kernel".as_ref(), file.path().as_os_str()];
    let done = scripts_run(bed, kernel, "true")?;
    let name = file.path().display();
    let why = "it is compressed with gzip: unpack it first (`zcat FILE > Image`)";
    done.is(1, &[], &format!("run: {name}: the host kernel cannot be carried: {why}"))?;
    check(done.said.is_empty(), format!("a machine was started: {}", done.said))
}

fn no_script(bed: &Bed) -> Result<(), Failure> {
    scripts_run(bed, SMALL, "")?.is(0, &["under corevisor", "host ends the run: System(Off)"], "")
}

/// A host that hangs. The core's first lines come within a second; what is waited for here is the limit.
fn hangs(bed: &Bed) -> Result<(), Failure> {
    let done = limited(bed, Duration::from_secs(20), SMALL, "while :; do sleep 1; done")?;
    let (shown, line) = done.told.trim_end().rsplit_once('\n').unwrap_or_default();
    check(
        done.status == Some(124)
            && line == "run: no end within 20 s, QEMU was killed"
            && shown.starts_with("the console's last lines:\n")
            && shown.contains("corevisor: "),
        format!("status {:?}, standard error: {}\n{}", done.status, done.told, done.said),
    )
}

/// The guest finds out which kind it is; the host, which this is about, is not asked.
fn guest(bed: &Bed, options: &[&str], kind: &str, status: i32) -> Result<(), Failure> {
    // What is built is told, and here nothing shall be.
    made::driver(bed, "6.12")?;
    let script = format!(
        "echo guest: $(nproc) CPUs, $(devmem {BEYOND} > /dev/null && echo ordinary || echo protected)\nexit {status}\n"
    );
    let machine = ["--guest", "--vcpus", "2", "--cpu", "cortex-a72", "--gic", "2", "--smp", "2", "--log", "debug"];
    // CPUs that take turns, as in all stories in which nothing depends on those that run at the same time.
    let turns = ["--qemu-arg", "-accel", "--qemu-arg", "tcg,thread=single", "--append", NO_CLOCK];
    let kernels = ["--append", NO_SELF_TESTS, "--guest-append", NO_SELF_TESTS];
    let done = scripts_run(bed, machine.iter().chain(&turns).chain(&kernels).chain(options), &script)?;
    let line = if status == 0 {
        String::new()
    } else {
        format!("run: the host powered off; its script ended with status {status}")
    };
    let ends = [
        format!("\nguest: 2 CPUs, {kind}"),
        format!("corevisor-guest: script ended with status {status}"),
        format!("corevisor-host: script ended with status {status}"),
        "host ends the run: System(Off)".to_owned(),
    ];
    done.is(status, &ends.each_ref().map(String::as_str), &line)?;
    // Of a guest that is not in a VM of the core's it counts nothing.
    let entries = done.said.split("vCPU entries: ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or("nothing");
    check(entries.trim().parse().is_ok_and(|entries: u64| entries > 100), format!("vCPU entries: {entries}"))
}
