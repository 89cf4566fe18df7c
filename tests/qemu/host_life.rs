//! What a host does in its life: CPUs off and on, reboot, panic, kexec, suspend; and its clock.

use crate::{
    bed::{Bed, Checks, Failure, LIMIT, healthy},
    confinement::with_module,
    made,
    runner::Case,
};
use corevisor_tool::{
    initrd,
    machine::Machine,
    outcome::{Finished, Outcome},
    project::Kernel,
};

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("host life", name, act);
    vec![
        new("CPUs go off and on in a loop, GICv3, max", |bed| {
            healthy(bed.stock(Machine::virt().smp(4)), 4, HOTPLUG).map(|_| ())
        }),
        new("CPUs go off and on in a loop, GICv2, cortex-a53", |bed| {
            healthy(bed.run(Machine::virt().smp(2).gic(2).cpu("cortex-a53")), 2, HOTPLUG).map(|_| ())
        }),
        new("a reboot starts the core and its host again, neoverse-v1", |bed| {
            reboot(bed, Machine::virt().smp(2).cpu("neoverse-v1"), 1)
        }),
        new("three reboots start the core and its host again each time, neoverse-v1", |bed| {
            reboot(bed, Machine::virt().smp(2).cpu("neoverse-v1"), 3)
        })
        .only_in_full_if(true),
        new("after a kernel panic the core and its host start again", panic),
        new("kexec starts another kernel with all CPUs under the same core", |bed| kexec(bed, false))
            .only_in_full_if(true),
        new("kexec while a VM runs: it ends, and the other kernel has all of its memory", |bed| kexec(bed, true)),
        new("suspend to idle ends at the alarm of the clock, cortex-a76", suspend).mostly_waits(),
        Case::new("clock", "no interrupt and no tick of the clock enters the core", ticks),
    ]
}

/// All CPUs but the first go off and come back, several times. Has [`FUNCTIONS`]' checks.
pub const HOTPLUG: &str = r#"
    all=$(nproc)
    for round in 1 2 3 4 5; do
        for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
            echo 0 > $cpu/online || fail "round $round: ${cpu##*/} does not go off"
        done
        is "round $round: CPUs left" $(nproc) 1
        for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
            echo 1 > $cpu/online || fail "round $round: ${cpu##*/} does not come back"
        done
        is "round $round: CPUs" $(nproc) $all
    done
    # Each of them works.
    for cpu in $(seq 0 $((all - 1))); do
        taskset $(printf '%x' $((1 << cpu))) sha256sum /bin/busybox > /tmp/sum.$cpu || fail "CPU $cpu does not work"
        cmp /tmp/sum.0 /tmp/sum.$cpu || fail "CPU $cpu computes something else"
    done
    if complaints; then fail "the kernel complains"; fi
"#;

/// A host on `machine`, which has two CPUs, examines itself and reboots, so many times.
pub fn reboot(bed: &Bed, machine: Machine, times: usize) -> Result<(), Failure> {
    starts_again(bed, machine, times, "reboot -f").map(|_| ())
}

/// The same, where the host ends its life by `end`.
fn starts_again(bed: &Bed, machine: Machine, times: usize, end: &str) -> Result<Finished, Failure> {
    // The disk remembers how often the host has started.
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk.img");
    std::fs::write(&disk, [b"1\n", &[0; (2 << 20) - 2][..]].concat())?;
    let script = r#"
        read -r boot < /dev/vda
        echo "host: boot $boot"
        [ $boot -le $REBOOTS ] || exit 0
        echo $((boot + 1)) | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
        sync
    "#;
    let machine = machine.drive(&disk).allow_reboot(true);
    let run = bed.run(machine).append("panic=1");
    let done = healthy(run, 2, &format!("REBOOTS={times}\n{script}\n{end}\nfail 'the host goes on'"))?;
    let boots = times + 1;
    done.says(&format!("host: boot {boots}"))?;
    done.says_times("entered at EL2", boots)?;
    done.says_times("under corevisor", boots)?;
    Ok(done)
}

fn panic(bed: &Bed) -> Result<(), Failure> {
    let done = starts_again(bed, Machine::virt().smp(2), 1, "echo c > /proc/sysrq-trigger")?;
    done.says_times("Kernel panic - not syncing: sysrq triggered crash", 1)?;
    done.says_times("host ends the run: ", 2)
}

fn kexec(bed: &Bed, with_vm: bool) -> Result<(), Failure> {
    let kernel = Kernel::resolve(&bed.project, "6.12")?;
    let second_initrd = std::fs::read(initrd::base(&bed.project, &kernel)?)?;
    // Not on `max`: with 52-bit addresses Debian's 6.12 has an oops in kexec_load, without the core too.
    let mut run = bed
        .run(Machine::virt().smp(2).cpu("cortex-a72").memory("1G"))
        // Where the next kernel goes (kexec.c) no page is free then. For each page that kexec_load gets from there Linux walks the
        // list of all pages that it has (kimage_alloc_page): three minutes in QEMU, with or without the core.
        .append("crashkernel=256M@0x50000000")
        .file("/kexec", made::program(bed, "kexec")?)
        .file("/next.kernel", std::fs::read(&kernel.image)?)
        .file("/next.initrd", second_initrd);
    let mut script = String::new();
    if with_vm {
        run = run
            .file("/lib/driver.ko", std::fs::read(made::driver(bed, "6.12")?)?)
            .file("/bin/kvm-probe", made::kvm_probe(bed)?);
        script.push_str(
            "insmod /lib/driver.ko\nkvm-probe spin > /tmp/spin &\nuntil grep computes /tmp/spin; do sleep 1; done\n",
        );
    }
    let run = run.script(script + "/kexec /next.kernel /next.initrd");
    let mut machine = run.start()?;
    machine.wait_for("host: loaded the next kernel", LIMIT)?;
    // The second initrd has no script, so it ends in a shell.
    machine.wait_for("host:~#", LIMIT)?;
    // Most of what it has is written: also where the core had something of a VM's.
    machine.send("dd if=/dev/zero of=/tmp/fill bs=1M count=$(awk '/MemFree/ { print int($2 / 1300) }' /proc/meminfo); rm /tmp/fill\n")?;
    machine.wait_for("records out", LIMIT)?;
    machine.send("echo second; nproc; dmesg | grep -cE 'WARNING:|Call trace|Internal error|BUG:'; exit\n")?;
    machine.wait_for("\nsecond\n2\n0\n", LIMIT)?;
    let done = machine.finish();
    done.ended(&Outcome::PoweredOff { script: None })?;
    done.says_times("entered at EL2", 1)?;
    done.says_times("-arm64, 2 CPUs, ", 2)?;
    done.counted("host accesses denied", 0)
}

fn suspend(bed: &Bed) -> Result<(), Failure> {
    let script = r#"
        rtc=/sys/class/rtc/rtc0
        echo +3 > $rtc/wakealarm || fail "no alarm"
        before=$(cat $rtc/since_epoch)
        echo freeze > /sys/power/state || fail "no suspend to idle"
        [ $(cat $rtc/since_epoch) -gt $before ] || fail "the clock did not move"
        dmesg | grep -q 'PM: suspend entry (s2idle)' || fail "no entry"
        dmesg | grep -q 'PM: suspend exit' || fail "no exit"
        is "CPUs" $(nproc) 2
        if complaints; then fail "the kernel complains"; fi
    "#;
    healthy(bed.run(Machine::virt().smp(2).cpu("cortex-a76")), 2, script).map(|_| ())
}

fn ticks(bed: &Bed) -> Result<(), Failure> {
    let script = r#"
        interrupts() { awk '/arch_timer/ { n = 0; for (i = 2; i <= 3; i++) n += $i; print n; exit }' /proc/interrupts; }
        # Traps of every kind but the hypercalls that ask.
        traps() {
            sum=0
            for event in 0 1 3 4; do
                sum=$((sum + 0x$(call hvc c6008001 $event | cut -d ' ' -f 2)))
            done
            echo $sum
        }
        busy() { i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; }
        busy
        traps > /dev/null
        ticks=$(interrupts)
        before=$(traps)
        while [ $(($(interrupts) - ticks)) -lt 1000 ]; do
            sleep 0.1
            busy
        done
        after=$(traps)
        echo "host: $(($(interrupts) - ticks)) interrupts of the timer, $((after - before)) traps"
        # New memory may be touched for the first time.
        [ $((after - before)) -lt 10 ] || fail "the core runs too often"
    "#;
    with_module(bed, script).map(|_| ())
}
