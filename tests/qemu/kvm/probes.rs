//! The driver's own life, and what `tests/host-programs/kvm-probe` finds.

use super::{Host, Whose, driver, finish, told};
use crate::{
    bed::{Bed, Checks, Failure, LIMIT, check},
    made,
    runner::Case,
};
use corevisor_tool::{
    machine::{Board, Machine},
    outcome::Finished,
    run::{Boot, Run},
};
use std::process::Command;

pub fn cases() -> Vec<Case> {
    use Whose::*;
    let mut cases = vec![
        Case::new(
            "kvm",
            "the driver says what it found and what its VMs do, and does not load without the core",
            loads,
        )
        .mostly_waits(),
        Case::new("kvm", "the driver that Debian's dkms added, built and installed loads", by_dkms)
            .only_in_full_if(true),
        told(driver(), "200 VMs and 50 killed VMMs leave nothing behind", lives).only_in_full_if(true),
    ];
    for host in [driver(), Host::new(Driver, 3)] {
        cases.push(told(host, "60 rounds of random calls leave the host well", fuzzed).only_in_full_if(true));
    }
    for (name, board) in [("a Raspberry Pi 4", Board::Raspi4b), ("a ZCU102", Board::Zcu102)] {
        let name = format!("on {name} the probe's guests run, and eventfds interrupt them");
        cases.push(Case::new("kvm", name, move |bed| on_board(bed, board, &["run", "irq"])).only_in_full_if(true));
    }
    // QEMU's model does not connect the virtual interrupts of its GICv3 to its CPUs: under the kernel's own KVM guests hear of none, either.
    let on_imx8mp = |bed: &Bed| on_board(bed, Board::Imx8mpEvk, &["run"]);
    cases.push(Case::new("kvm", "on an i.MX 8M Plus EVK the probe's guests run", on_imx8mp).only_in_full_if(true));
    for host in [driver(), Host::new(Driver, 3), Host::new(Own, 2)] {
        cases.push(
            told(host, "500 times four VMs start and stop, and 500 times four VMMs are killed", fours)
                .only_in_full_if(true),
        );
    }
    for host in [driver(), driver().kernel("6.1"), driver().kernel("6.18"), Host::new(Own, 2)] {
        let default = host.whose == Driver && host.kernel == "6.12";
        cases.push(told(host, "a guest's memory is a file's, on ext4", of_a_file).only_in_full_if(true));
        cases.push(told(host, "a guest goes on while its memory is swapped", swapped).only_in_full_if(true));
        cases
            .push(told(host, "a guest goes on while the host moves its memory about", moved).only_in_full_if(!default));
    }
    let hosts = [
        driver(),
        Host::new(Driver, 3),
        Host::new(Own, 2),
        Host::new(Own, 3),
        driver().kernel("6.1"),
        driver().kernel("6.18"),
    ];
    for host in hosts {
        let ours = host.whose == Driver && host.kernel == "6.12";
        let default = ours && host.gic == 2;
        cases.push(told(host, "the API answers the probe as it should", answers).only_in_full_if(!default));
        // Not every CPU sets access flags by itself.
        cases.push(told(host, "the probe's guests run as they should", runs).only_in_full_if(!ours));
        cases.push(told(host, "eventfds interrupt and are rung as they should", eventfds).only_in_full_if(!default));
    }
    cases
}

fn answers(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "api").map(|_| ())
}

fn runs(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "run").map(|_| ())
}

fn eventfds(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "irq").map(|_| ())
}

/// The core's log, its counters and the trace events, while VMs come and go. Number 5 are entries of vCPUs.
const FILES: &str = r#"
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
files=/sys/kernel/debug/corevisor_kvm events=/sys/kernel/tracing/events/corevisor_kvm
entries() { sed -n 's/^5 //p' $files/statistics; }
traced() { grep -c "$1" /sys/kernel/tracing/trace; }
head -n 1 $files/log | grep '^corevisor: version .* entered at EL2' || fail "the log begins so: $(head -n 1 $files/log)"
is "entries of vCPUs before the first VM" "$(entries)" 0
kvm-probe fours 1 1 > /tmp/probe || fail "the probe ends with status $?"
before=$(entries)
[ "$before" -ge 4 ] || fail "four VMs made $before entries"
is "trace events that nobody asked for" "$(traced ': kvm_e')" 0
echo 1 > $events/enable
kvm-probe fours 1 1 > /tmp/probe || fail "the probe ends with status $?"
echo 0 > $events/enable
made=$(($(entries) - before))
echo "traced: $made entries, the first exits:"
grep -m 4 ': kvm_exit:' /sys/kernel/tracing/trace
[ $made -ge 4 ] || fail "four VMs more made $made entries"
for event in 'kvm_entry: vcpu 0' 'kvm_exit: vcpu 0 reason'; do is "traces of $event" "$(traced ": $event")" $made; done
grep -q ': kvm_exit: vcpu 0 reason system_off esr 0x' /sys/kernel/tracing/trace || fail "nobody's power-off is traced"
"#;

fn loads(bed: &Bed) -> Result<(), Failure> {
    let driver = driver();
    let script = format!(
        "kvm_up\ndmesg | grep corevisor_kvm\n{FILES}\nrmmod corevisor_kvm || fail 'it does not go'\n[ ! -e /dev/kvm ] || fail 'it left /dev/kvm'"
    );
    let done = finish(with_probe(bed, driver.run(bed, "")?)?, &script)?;
    done.says("GICv2 with 4 list registers")?;
    done.says("\ntraced: ")?;
    let module = std::fs::read(made::driver(bed, driver.kernel)?)?;
    let script = "insmod /lib/driver.ko && fail 'it loads'\n[ ! -e /dev/kvm ] || fail 'there is a /dev/kvm'";
    finish(bed.run(driver.machine()).boot(Boot::NoCore).file("/lib/driver.ko", module), script).map(|_| ())
}

fn by_dkms(bed: &Bed) -> Result<(), Failure> {
    let module = std::fs::read(made::driver_by_dkms(bed, driver().kernel)?)?;
    let script = "insmod /lib/driver.ko || fail 'it does not load'\n[ -c /dev/kvm ] || fail 'there is no /dev/kvm'\nrmmod corevisor_kvm || fail 'it does not go'";
    finish(bed.run(driver().machine()).file("/lib/driver.ko", module), script).map(|_| ())
}

/// What the boards' timers and interrupt controllers do for guests of the probe's own.
fn on_board(bed: &Bed, board: Board, what: &[&str]) -> Result<(), Failure> {
    let module = std::fs::read(made::driver(bed, driver().kernel)?)?;
    for what in what {
        let run = bed.run(Machine::of(board)).file("/lib/driver.ko", module.clone());
        probed(with_probe(bed, run)?, &format!("insmod /lib/driver.ko || fail 'it does not load'\n{}", ask(what)))?;
    }
    Ok(())
}

fn ask(what: &str) -> String {
    format!("timeout 250 kvm-probe {what} || fail 'the probe ends with status' $?")
}

fn probe(bed: &Bed, host: &Host, what: &str) -> Result<Finished, Failure> {
    probed(with_probe(bed, host.run(bed, "")?)?, &format!("driver_up\n{}", ask(what)))
}

fn with_probe(bed: &Bed, run: Run) -> Result<Run, Failure> {
    Ok(run.file("/bin/kvm-probe", made::kvm_probe(bed)?))
}

fn probed(run: Run, script: &str) -> Result<Finished, Failure> {
    let done = finish(run, script)?;
    done.check(done.console.lines().any(|line| line.ends_with("are not so")), "the probe came to no end")?;
    done.says_times("\nnot ok", 0)?;
    Ok(done)
}

fn lives(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let script = format!("driver_up\nmount -t debugfs debugfs /sys/kernel/debug\n{}", ask("life 200"));
    let done = probed(with_probe(bed, host.run(bed, "")?)?, &script)?;
    done.says("200 times a VM that lives")?;
    done.says("50 times a VMM that is killed")?;
    done.says("40 of 40 times a VM is off and begins anew while its memory is taken away")
}

/// With a disk of an ext4 file system, mounted at /data by the script's `data_up`.
fn with_disk(bed: &Bed, host: &Host, script: &str) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk.img");
    std::fs::File::create(&disk)?.set_len(64 << 20)?;
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&disk).status()?;
    check(made.success(), "mke2fs makes no file system")?;
    let run = with_probe(bed, host.run_on(bed, host.machine().drive(&disk), |host| host)?)?;
    let up = r#"
        data_up() { mkdir -p /data && mount -t ext4 "$(disk_called "")" /data || fail "the disk cannot be mounted"; }
        kvm_up
        data_up
    "#;
    probed(run, &format!("{up}{script}")).map(|_| ())
}

/// What the disk has afterwards is what the host's kernel thought that the file has.
fn of_a_file(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let script = r#"
        timeout 250 kvm-probe file /data/memory || fail "the probe ends with status" $?
        before=$(sha256sum < /data/memory)
        umount /data && data_up
        is "the file on the disk" "$(sha256sum < /data/memory)" "$before"
    "#;
    with_disk(bed, host, script)
}

fn swapped(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let script = r#"
        dd if=/dev/zero of=/data/swap bs=1M count=40 2>/dev/null && mkswap /data/swap > /dev/null && swapon /data/swap || fail "no swap"
        mkdir -p /group && mount -t cgroup2 cgroup2 /group || fail "no control groups"
        echo +memory > /group/cgroup.subtree_control && mkdir /group/probe || fail "no group"
        (echo 0 > /group/probe/cgroup.procs && exec timeout 250 kvm-probe swapped /group/probe/memory.reclaim) || fail "the probe ends with status" $?
    "#;
    with_disk(bed, host, script)
}

fn moved(bed: &Bed, host: &Host) -> Result<(), Failure> {
    // The guest uses its memory while a child copies it: with CPUs that take turns, each page of the child's waits until the guest's turn is over.
    probe(bed, &host.at_once(), "moved").map(|_| ())
}

fn fuzzed(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "fuzz 1 60")?.says("a VM lives afterwards")
}

/// Four small guests at once, and as often four whose VMMs are killed.
fn fours(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let run = with_probe(bed, host.run(bed, "")?)?.timeout(LIMIT * 3);
    let script = r#"
        driver_up
        for how in fours fours-killed; do timeout 700 kvm-probe $how 500 1 || fail "$how: the probe ends with status $?"; done
        if [ -e /lib/corevisor_kvm.ko ]; then
            mount -t debugfs debugfs /sys/kernel/debug
            is "VMs that the driver still has" "$(grep -c '^vm' /sys/kernel/debug/corevisor_kvm/vms)" 0
            rmmod corevisor_kvm || fail "the driver does not go"
        fi
    "#;
    let done = probed(run, script)?;
    done.says("500 of 500 times four VMMs come and go")?;
    done.says("2000 VMs came to their ends")?;
    done.says("500 of 500 times four VMMs are killed")?;
    if host.whose == Whose::Driver {
        done.counted("host accesses denied", 0)?;
        done.counted("VM exits: failed", 0)?;
    }
    Ok(())
}
