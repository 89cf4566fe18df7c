//! Runs of real machines, without the core: they test the tool, and show how its library is used.
//!
//! Ignored by `cargo test` alone, since they need what `scripts/setup qemu busybox host:6.12 rpi-dtb` installs; `scripts/test qemu` runs them.

use corevisor_tool::{
    arm64_image,
    machine::Machine,
    project::Project,
    run::{Boot, Outcome, Run},
    running::Running,
};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// After so long a machine has hung: others may be at work here.
const LIMIT: Duration = Duration::from_secs(300);

fn host(machine: Machine) -> Run {
    Run::new(&Project::find().unwrap(), machine).boot(Boot::NoCore).timeout(LIMIT)
}

/// Where the kernel has QEMU's process, as long as there is one.
fn process(machine: &Running) -> PathBuf {
    PathBuf::from(format!("/proc/{}", machine.id()))
}

/// A core of one instruction: a branch to the kernel behind it.
fn null_core(dir: &Path) -> PathBuf {
    let mut core = vec![0; 4096];
    core[0..4].copy_from_slice(&0x1408_0000_u32.to_le_bytes());
    core[16..24].copy_from_slice(&4096_u64.to_le_bytes());
    core[24..32].copy_from_slice(&0xa_u64.to_le_bytes());
    core[56..60].copy_from_slice(b"ARM\x64");
    assert!(arm64_image::image_size(&core).is_ok());
    let path = dir.join("core.bin");
    std::fs::write(&path, core).unwrap();
    path
}

#[test]
#[ignore = "needs QEMU"]
fn a_script_finds_its_files_and_gives_its_status() {
    let machine = Machine::virt().cpu("cortex-a72").smp(2).gic(2).memory("512M");
    let done = host(machine).file("/opt/word", "hello").script("nproc; cat /opt/word; exit 3").finish().unwrap();
    assert_eq!(done.outcome, Outcome::PoweredOff { script: Some(3) }, "{}", done.tail(20));
    assert!(done.console.contains("\n2\nhello"), "{}", done.console);
    assert!(!done.is_success());
}

#[test]
#[ignore = "needs QEMU"]
fn a_bundle_boots() {
    let dir = tempfile::tempdir().unwrap();
    let run = host(Machine::virt().cpu("cortex-a72")).boot(Boot::Core).core(null_core(dir.path()));
    let done = run.append("loglevel=7").script("true").finish().unwrap();
    assert!(done.is_success(), "{}", done.tail(20));
    assert!(done.console.contains("CPU: All CPU(s) started at EL2"), "{}", done.console);
}

#[test]
#[ignore = "needs QEMU"]
fn a_shell_can_be_typed_into_and_the_machine_asked() {
    let mut machine = host(Machine::virt().smp(1)).start().unwrap();
    machine.wait_for("host:~#", LIMIT).unwrap();
    assert_eq!(machine.qmp("query-status", &Value::Null).unwrap()["status"], "running");
    machine.send("echo $((6 * 7))\n").unwrap();
    machine.wait_for("\n42\n", LIMIT).unwrap();
    let missed = machine.wait_for("what nobody says", Duration::from_millis(100)).unwrap_err();
    assert!(missed.to_string().contains("42"), "{missed}");
    machine.send("exit\n").unwrap();
    assert_eq!(machine.finish().outcome, Outcome::PoweredOff { script: None });
}

#[test]
#[ignore = "needs QEMU"]
fn the_ways_to_fail_are_told_apart_a_reset_and_a_panic() {
    let outcome = |script: &str| host(Machine::virt().smp(1)).script(script).finish().unwrap().outcome;
    assert_eq!(outcome("reboot -f"), Outcome::Reset);
    assert_eq!(outcome("echo c > /proc/sysrq-trigger"), Outcome::Panicked("sysrq triggered crash".into()));
}

#[test]
#[ignore = "needs QEMU"]
fn the_ways_to_fail_are_told_apart_a_line_that_ends_it_and_a_qemu_that_dies() {
    let told =
        host(Machine::virt().smp(1)).script("echo all is; echo lost; sleep 1000").stop_at("lost").finish().unwrap();
    assert_eq!(told.outcome, Outcome::Stopped("lost".into()));

    let none = host(Machine::virt().cpu("pentium")).script("").finish().unwrap();
    assert!(matches!(&none.outcome, Outcome::QemuDied { message, .. } if message.contains("pentium")));
}

#[test]
#[ignore = "needs QEMU"]
fn a_machine_that_hangs_is_killed_at_its_limit_and_its_last_lines_are_shown() {
    let limit = Duration::from_secs(1);
    let mut machine =
        host(Machine::virt().smp(1)).script("echo here it hangs; sleep 1000").timeout(limit).start().unwrap();
    // Whoever waits is the one whose limit ends it. No boot takes less than a second, so the run's is over then.
    machine.wait_for("\nhere it hangs\n", LIMIT).unwrap();
    let process = process(&machine);
    assert!(process.exists());
    let done = machine.finish();
    assert_eq!(done.outcome, Outcome::TimedOut(limit));
    assert_eq!(done.story(), "no end within 1 s, QEMU was killed");
    assert_eq!(done.tail(1), "here it hangs");
    assert!(!done.is_success() && !process.exists());
}

#[test]
#[ignore = "needs QEMU"]
fn disk_and_network_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("a,b.img");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let machine = Machine::virt().drive(&disk).net(true);
    let done = host(machine)
        .script("echo written | dd of=/dev/vda conv=fsync && ip address show eth0 && ping -c 1 10.0.2.2")
        .finish()
        .unwrap();
    assert!(done.is_success(), "{}", done.console);
    assert!(std::fs::read(&disk).unwrap().starts_with(b"written\n"));
}

#[test]
#[ignore = "needs QEMU"]
fn disk_and_network_behind_an_smmu_go_by_its_rules() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let machine = Machine::virt().drive(&disk).net(true).smmu(true);
    let script =
        "ls /sys/class/iommu; for device in /sys/bus/pci/devices/*/virtio*; do ls -d ${device%/*}/iommu_group; done
        echo written | dd of=/dev/vda conv=fsync && ping -c 1 10.0.2.2";
    let done = host(machine).script(script).finish().unwrap();
    assert!(done.is_success(), "{}", done.console);
    assert!(done.console.contains("smmu3.0x0000000009050000"), "Linux drives it: {}", done.console);
    assert_eq!(done.console.matches("/iommu_group\n").count(), 2, "both are behind it: {}", done.console);
    assert!(std::fs::read(&disk).unwrap().starts_with(b"written\n"));
}

#[test]
#[ignore = "needs QEMU, and scripts/setup rpi-dtb"]
fn the_raspberry_pi_has_a_console_four_cpus_and_all_of_its_memory() {
    let script = "nproc; awk '/MemTotal/ { print ($2 > 1800000) ? \"two\" : \"less\" }' /proc/meminfo";
    let done = host(Machine::raspi4b()).script(script).finish().unwrap();
    assert!(done.is_success(), "{}", done.tail(20));
    assert!(done.console.contains("\n4\ntwo\n"), "{}", done.console);
}

#[test]
#[ignore = "needs QEMU"]
fn no_qemu_outlives_what_started_it() {
    let machine = host(Machine::virt()).start().unwrap();
    let process = process(&machine);
    assert!(process.exists());
    drop(machine);
    assert!(!process.exists());
}
