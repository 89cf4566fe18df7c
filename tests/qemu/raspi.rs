//! The Raspberry Pi 4, in QEMU's model of it.
//!
//! CPUs that wait at a spin table, in QEMU's start-up code or in the core, turn at full speed there: three of them cost more than the boot,
//! if each has a thread. So only the first case of the default selection starts all of them at the same time.

use crate::{
    bed::{Bed, Checks, Failure, LIMIT, check, healthy},
    host_life::HOTPLUG,
    runner::Case,
};
use corevisor_tool::{machine::Machine, raspi, raspi::set, run::Boot};
use dtoolkit::{fdt::Fdt, model::DeviceTree};
use std::process::{Command, Stdio};

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("raspi4b", name, act);
    vec![
        new(
            "the kernel8.img that scripts/image writes for the board boots in the model, CPUs go off and on in a loop",
            kernel8,
        )
        .starts_early(),
        new(
            "a CPU that never leaves its spin table is told of, the host lives on the others, and page 0 is nobody's",
            absent,
        ),
        new("Debian's 6.12 lives on all four CPUs, three times in a row", |bed| {
            (0..3).try_for_each(|_| healthy(bed.stock(Machine::raspi4b()), 4, "").map(|_| ()))
        })
        .only_in_full_if(true),
        new("Debian's 6.1 lives on all four CPUs", |bed| {
            healthy(bed.stock(Machine::raspi4b()).kernel("6.1"), 4, HOTPLUG).map(|_| ())
        })
        .only_in_full_if(true),
        new("three reboots start the core and its host again each time", reboot).only_in_full_if(true),
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
    let run = bed.stock(Machine::raspi4b()).boot(Boot::File(output.join("kernel8.img")));
    healthy(run, 4, HOTPLUG).map(|_| ())
}

/// CPU 3 gets another release address, at which nobody looks.
fn absent(bed: &Bed) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let dtb = dir.path().join("dtb");
    let bytes = raspi::for_qemu(&bed.project.pi_dtb()).map_err(|error| Failure::new(error.to_string()))?;
    let fdt = Fdt::new(&bytes).map_err(|error| Failure::new(error.to_string()))?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    let cpu = tree.find_node_mut("/cpus/cpu@3").ok_or_else(|| Failure::new("the Pi's tree has no CPU 3"))?;
    set(cpu, "cpu-release-addr", &0x1f0_u64.to_be_bytes());
    std::fs::write(&dtb, tree.to_dtb())?;
    let script = r#"
        [ $(nproc) = 3 ] || exit 1
        dmesg | grep -q 'failed to boot CPU3 (-22)' || exit 3
        for address in 0 0xd8 0xf80; do
            devmem $address 64 > /tmp/out 2> /tmp/error
            [ $? = 135 ] || exit 2
        done
        exit 0
    "#;
    let done = bed.run(Machine::raspi4b()).dtb(dtb).script(script).finish()?;
    done.succeeded()?;
    done.says("CPU 3 (MPIDR 0x3) does not come out of a spin table: the host cannot start it")?;
    done.counted("host accesses denied", 3)
}

/// Nothing of the board remembers a reboot, so the console is typed into.
fn reboot(bed: &Bed) -> Result<(), Failure> {
    let mut machine = bed.run(Machine::raspi4b().allow_reboot(true)).start()?;
    for _ in 0..3 {
        machine.wait_for("host:~#", LIMIT)?;
        machine.send("nproc; reboot -f\n")?;
        machine.wait_for("\n4\n", LIMIT)?;
    }
    machine.wait_for("host:~#", LIMIT)?;
    machine.send("exit\n")?;
    let done = machine.finish();
    done.succeeded()?;
    done.says_times("entered at EL2", 4)
}
