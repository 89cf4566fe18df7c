//! The Raspberry Pi 4, in QEMU's model of it.

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, LIMIT, check, healthy},
    host_life::HOTPLUG,
    runner::Case,
};
use corevisor_tool::{machine::Machine, run::Boot};
use std::process::{Command, Stdio};

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("raspi4b", name, act);
    vec![
        new("Debian's 6.12 lives on all four CPUs, three times in a row", |bed| {
            (0..3).try_for_each(|_| healthy(bed.run(Machine::raspi4b()), 4, "").map(|_| ()))
        }),
        new("Debian's 6.1 lives on all four CPUs", |bed| {
            healthy(bed.run(Machine::raspi4b()).kernel("6.1"), 4, "").map(|_| ())
        }),
        new("CPUs go off and on in a loop, parked by the core itself", |bed| {
            bed.run(Machine::raspi4b()).script(format!("{FUNCTIONS}{HOTPLUG}")).finish()?.succeeded()
        }),
        new("the kernel8.img that scripts/image writes for the board boots in the model", kernel8),
        new("a reboot starts the core and its host again, twice", reboot),
    ]
}

/// The very file for the SD card; only the device tree is QEMU's copy.
fn kernel8(bed: &Bed) -> Result<(), Failure> {
    let output = bed.project.root().join("target/test/raspi4b");
    let mut image = Command::new(bed.project.root().join("scripts/image"));
    let made = image.args(["--board", "raspi4b", "--output"]).arg(&output).stdin(Stdio::null()).output()?;
    check(made.status.success(), String::from_utf8_lossy(&made.stderr))?;
    for file in ["config.txt", "cmdline.txt", "bcm2711-rpi-4-b.dtb", "initrd.img", "sdcard.img"] {
        check(output.join(file).exists(), format!("scripts/image made no {file}"))?;
    }
    let run = bed.run(Machine::raspi4b()).boot(Boot::File(output.join("kernel8.img")));
    healthy(run, 4, "").map(|_| ())
}

/// Nothing of the board remembers a reboot, so the console is typed into.
fn reboot(bed: &Bed) -> Result<(), Failure> {
    let mut machine = bed.run(Machine::raspi4b().allow_reboot(true)).start()?;
    for _ in 0..2 {
        machine.wait_for("host:~#", LIMIT)?;
        machine.send("nproc; reboot -f\n")?;
        machine.wait_for("\n4\n", LIMIT)?;
    }
    machine.wait_for("host:~#", LIMIT)?;
    machine.send("exit\n")?;
    let done = machine.finish();
    done.succeeded()?;
    done.says_times("entered at EL2", 3)
}
