//! `scripts/setup` at the command line: silent where all is there, and one line where something cannot be had.

use crate::{
    bed::{Bed, Failure, check},
    runner::Case,
};
use std::{path::Path, process::Command};

/// Nobody listens there: apt tries for some seconds. And one that is known at once not to be there.
const NO_MIRRORS: [&str; 2] = ["http://127.0.0.1:9/debian", "file:///nonexistent"];

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("scripts/setup", name, act);
    vec![
        new("where all is there it says nothing, asks nobody, and does next to nothing", second_time),
        new("what cannot be had ends with one line that says what to do, and nothing is left half done", not_had)
            .mostly_waits(),
    ]
}

/// Status, standard output and standard error of `scripts/setup` in the project at `root`.
fn setup(root: &Path, parts: &[&str], environment: &[(&str, &str)]) -> Result<(Option<i32>, String, String), Failure> {
    // Processor time, not the clock: 0.05 s is usual, and no process of it may have more than a second.
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -t 1; exec \"$@\"", "bash"]).arg(root.join("scripts/setup")).args(parts);
    let done = command.envs(environment.iter().copied()).stdin(std::process::Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((done.status.code(), text(&done.stdout), text(&done.stderr)))
}

/// The parts without a name are those that `scripts/test qemu` has installed before any case.
fn second_time(bed: &Bed) -> Result<(), Failure> {
    let done = setup(bed.project.root(), &[], &[("DEBIAN_MIRROR", NO_MIRRORS[0])])?;
    check(done == (Some(0), String::new(), String::new()), format!("{done:?}"))
}

/// In a copy of the scripts, below which nothing is installed.
fn not_had(bed: &Bed) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let copied = Command::new("cp").arg("-r").arg(bed.project.root().join("scripts")).arg(dir.path()).status()?;
    check(copied.success(), "the scripts cannot be copied")?;
    let is_not = |parts: &[&str], environment: &[(&str, &str)], begins: &str, ends: &str| {
        let (status, said, told) = setup(dir.path(), parts, environment)?;
        let line = told.strip_prefix("setup: ").and_then(|told| told.strip_suffix('\n')).unwrap_or_default();
        check(
            status == Some(1)
                && said.is_empty()
                && line.starts_with(begins)
                && line.ends_with(ends)
                && !line.contains('\n'),
            format!(
                "{parts:?} should end with status 1 and \"setup: {begins} ... {ends}\": {status:?}, {said:?}, {told:?}"
            ),
        )
    };
    let network = "check the network and the apt sources or set DEBIAN_MIRROR to the address of a Debian mirror, then start again";
    for (part, mirror) in [("busybox", 0), ("host:6.12", 1), ("kvm-host", 1)] {
        is_not(&[part], &[("DEBIAN_MIRROR", NO_MIRRORS[mirror])], "Debian's index of ", network)?;
    }
    let host = dir.path().join("target/host");
    check(!host.exists() || host.read_dir()?.next().is_none(), "something is there all the same")?;

    let other =
        "/bin/true is not a QEMU 9 or newer with the machine raspi4b: name another one, or unset it and start again";
    is_not(&["qemu"], &[("QEMU", "/bin/true")], "QEMU=/bin/true", other)?;
    is_not(&["busybox", "bread"], &[], "there is no part called bread", "(scripts/setup --help lists them)")
}
