//! What is done to a guest of Debian's QEMU while it runs: stopped, saved, brought back, killed.

use super::{Host, Whose, driver, finish, told};
use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, LIMIT},
    runner::Case,
};
use corevisor_evidence::factor;
use corevisor_tool::{kvm::GuestGic, outcome::Finished};

pub fn cases() -> Vec<Case> {
    use Whose::*;
    let mut cases = Vec::new();
    for host in [driver(), Host::new(Driver, 3), Host::new(Own, 2), Host::new(Own, 3)] {
        cases.push(told(host, "a guest is stopped and goes on, and its time with it", stopped));
        cases.push(told(host, "a guest is saved, and brought back in the same QEMU and in another", saved));
    }
    for host in [driver(), Host::new(Driver, 3), Host::new(Own, 2)] {
        let name = "a busy guest's threads go from CPU to CPU, and one that waits leaves the CPUs alone";
        cases.push(told(host, name, wanders));
    }
    for host in [driver(), Host::new(Driver, 3)] {
        cases.push(told(host, "a CPU of the host goes off and on while a guest runs", hotplug));
        cases.push(told(host, &format!("{} starts and stops of four guests lose nothing", rounds()), starts));
    }
    cases.push(told(
        driver(),
        &format!("QEMU killed {} times at random moments leaves nothing behind", kills()),
        killed,
    ));
    cases.into_iter().map(|case| case.only_in_full_if(true)).collect()
}

/// The guest counts, about one a second, and notes each on its disk, if it has one.
const COUNTS: &str = r#"
n=0
while [ $n -lt 16 ]; do
    n=$((n + 1))
    read -r up _ < /proc/uptime
    if [ -e /dev/vda ]; then
        echo "count $n" | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
        read -r there < /dev/vda
        [ "$there" = "count $n" ] || fail "the disk says $there, not count $n"
    fi
    echo "count $n at $up"
    sleep 1
done
if grep -q disk-by-messages /proc/cmdline; then
    is "queues of the disk that interrupt by messages" "$(grep -c 'ITS.*virtio.-req\.0' /proc/interrupts)" 1
fi
if complaints; then fail "the guest's kernel complains"; fi
exit 0
"#;

/// What the host knows of it.
const LOOKS: &str = r#"
# Waits until the guest has counted so far.
counted() { # NUMBER
    seconds=0
    until grep -q "^count $1 at " /tmp/guest; do
        kill -0 $vmm 2>/dev/null && [ $seconds -lt 200 ] || { cat /tmp/guest; fail "the guest does not come to $1"; }
        sleep 1
        seconds=$((seconds + 1))
    done
}
# Its uptime at a count, in seconds; if there are several, the last.
at() { sed -n "s/^count $1 at \([0-9]*\).*/\1/p" /tmp/guest | tail -n 1; }
up() { read -r up _ < /proc/uptime; echo "${up%.*}"; }
ends() {
    wait $vmm || { cat /tmp/guest; fail "QEMU ends with status $?"; }
    cat /tmp/guest
    grep -q '^corevisor-guest: script ended with status 0' /tmp/guest || fail "the guest's script"
}
"#;

/// A guest that counts.
fn run(bed: &Bed, host: &Host, script: &str) -> Result<Finished, Failure> {
    run_with(bed, host, COUNTS, script)
}

fn run_with(bed: &Bed, host: &Host, guest: &str, script: &str) -> Result<Finished, Failure> {
    let gic = if host.gic == 2 { GuestGic::V2 } else { GuestGic::V3 };
    let run = host.run(bed, &format!("{FUNCTIONS}\n{guest}"))?;
    finish(run.file("/guest/disk.qcow2", qcow2()), &format!("{LOOKS}\nVCPUS=2 GIC={}\nkvm_up\n{script}", gic.name()))
}

fn stopped(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let script = r#"
        vm_with_monitor || fail "no monitor"
        counted 3
        for round in 1 2 3; do
            qmp stop || fail "it does not stop"
            before=$(grep -c '^count' /tmp/guest)
            seen=$(at $before)
            sleep 12
            is "what it has counted meanwhile" "$(grep -c '^count' /tmp/guest)" "$before"
            qmp cont || fail "it does not go on"
            counted $((before + 1))
            slept=$(($(at $((before + 1))) - seen))
            echo "round $round: count $before at $seen, the next $slept s later"
            [ $slept -le 6 ] || fail "the guest's clock went on while it stood"
        done
        begin=$(up) first=$((before + 2))
        counted $first
        begin=$(up)
        counted 16
        host=$(($(up) - begin)) guest=$(($(at 16) - $(at $first)))
        echo "from $first to 16: $guest s in the guest, $host s in the host"
        [ $((guest - host)) -le 3 ] && [ $((host - guest)) -le 3 ] || fail "the guest's clock has another rate"
        ends
    "#;
    run(bed, host, script)?.says("\nround 3: ")
}

fn saved(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let script = r#"
        # With GICv3 the disk's interrupts are messages: its translation service is saved, too.
        bus=device
        [ $GIC != 3 ] || { bus=pci APPEND=disk-by-messages; }
        cp /guest/disk.qcow2 /tmp/disk.qcow2
        disk="-drive if=none,id=disk,format=qcow2,file=/tmp/disk.qcow2 -device virtio-blk-$bus,drive=disk"
        vm_with_monitor $disk || fail "no monitor"
        counted 4
        hmp savevm one || fail "it is not saved"
        last=$(grep -c '^count' /tmp/guest)
        counted $((last + 3))
        begin=$(up)
        hmp loadvm one || fail "it is not brought back"
        rest=0
        until [ "$(grep -c "^count $((last + 2)) at" /tmp/guest)" = 2 ] || [ $rest = 60 ]; do sleep 1; rest=$((rest + 1)); done
        is "times that it came to $((last + 2))" "$(grep -c "^count $((last + 2)) at" /tmp/guest)" 2
        later=$(($(at $((last + 2))) - $(at $last)))
        # What it was away is longer than these 3 s: it counted three times meanwhile.
        took=$(($(up) - begin))
        [ $later -le $((took + 3)) ] || fail "its clock went on for $later s, and the host's for $took s: also while it was away"
        echo "in the same QEMU: it went back to $last"
        qmp quit > /dev/null
        wait $vmm
        vm_with_monitor $disk -loadvm one || fail "no monitor"
        counted $((last + 2))
        is "times that it counted what it had counted" "$(grep -c '^count 4 at' /tmp/guest)" 0
        echo "in another QEMU: it went on from $(sed -n 's/^count \([0-9]*\) at.*/\1/p' /tmp/guest | head -n 1)"
        counted 16
        ends
    "#;
    let done = run(bed, host, script)?;
    done.says("\nin the same QEMU: it went back to")?;
    done.says("\nin another QEMU: it went on from")
}

fn hotplug(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let script = r#"
        vm_with_monitor || fail "no monitor"
        for round in 1 2 3; do
            counted $((4 * round - 2))
            echo 0 > /sys/devices/system/cpu/cpu1/online || fail "the CPU stays"
            is "CPUs in round $round" "$(nproc)" 1
            counted $((4 * round))
            echo 1 > /sys/devices/system/cpu/cpu1/online || fail "the CPU does not come back"
            is "CPUs after round $round" "$(nproc)" 2
        done
        ends
        echo "the guest did not notice"
    "#;
    run(bed, host, script)?.says("\nthe guest did not notice")
}

/// The guest computes on both vCPUs for 20 s and looks at its clock all the while; then it waits.
const WANDERS: &str = r#"
looks() {
    last=0 looked=0
    read -r up _ < /proc/uptime
    end=$((${up%.*} + 20))
    until [ ${up%.*} -ge $end ]; do
        read -r up _ < /proc/uptime
        now=${up%.*}${up#*.}
        [ $now -ge $last ] || fail "the clock was at $last, then at $now (hundredths of a second)"
        last=$now looked=$((looked + 1))
    done
    echo "guest: looked $looked times until $up"
}
looks &
looks
wait $! || fail "the clock of the other"
if complaints; then fail "the guest's kernel complains"; fi
echo "guest: waits"
sleep 30
exit 0
"#;

/// The threads of QEMU, its vCPUs' among them, go to another CPU each second while the guest is busy. While it waits they take less than half of a CPU, and
/// each vCPU sleeps in the driver for more than half of the time.
fn wanders(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let script = r#"
        busy() { awk '{ print $14 + $15 }' /proc/$qemu/stat; }
        asleep() { sed -n 's/.* halt_wait_ns //p' $vms 2>/dev/null; }
        said() { grep -q "$1" /tmp/guest; }
        vm_with_monitor || fail "no monitor"
        qemu=$(pidof qemu-system-aarch64) vms=/sys/kernel/debug/corevisor_kvm/vms round=0 sent=0
        mount -t debugfs debugfs /sys/kernel/debug
        until said '^guest: waits'; do
            kill -0 $vmm 2>/dev/null && [ $round -lt 200 ] || { cat /tmp/guest; fail "the guest does not come to its end"; }
            round=$((round + 1))
            for thread in /proc/$qemu/task/*; do
                taskset -p $((1 + (round + ${thread##*/}) % 2)) ${thread##*/} > /dev/null && sent=$((sent + 1))
            done
            sleep 1
        done
        went=$(sed -n 's/^se.nr_migrations *: *//p' /proc/$qemu/task/*/sched | sort -n | tail -n 2 | head -n 1)
        echo "in $round rounds threads were sent $sent times, and two at least went $went times from CPU to CPU"
        [ $round -ge 5 ] && [ $sent -ge $((3 * round)) ] && [ $went -ge $((round / 2)) ] || fail "they should go more often"
        sleep 3
        begin=$(up) used=$(busy) slept=$(asleep)
        sleep 15
        took=$(($(up) - begin)) used=$(($(busy) - used)) later=$(asleep)
        echo "while the guest waits QEMU uses $used of ${took}00 hundredths of a second"
        [ $used -lt $((took * 50)) ] || fail "it should wait too"
        [ ! -e $vms ] || is "vCPUs that sleep" "$(echo $later | wc -w)" 2
        for one in $slept; do
            slept=$((${later%%[!0-9]*} - one)) later=${later#*[!0-9]}
            echo "a vCPU slept for $slept ns of $took s"
            [ $slept -ge $((took * 500000000)) ] || fail "it should sleep more"
        done
        ends
    "#;
    run_with(bed, host, WANDERS, script)?.says_times("guest: looked ", 2)
}

/// An empty disk of 1 MiB: header, table of reference counts, the counts of these four clusters, and a table of nothing.
/// Source: QEMU, docs/interop/qcow2.txt (version 2).
fn qcow2() -> Vec<u8> {
    const CLUSTER_BITS: u32 = 16;
    const CLUSTER: usize = 1 << CLUSTER_BITS;
    let mut image = vec![0; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &2_u32.to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    (0..4).for_each(|cluster| put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes()));
    image
}

/// What the host has of memory, and what the driver has of VMs.
const ACCOUNTS: &str = r#"
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
# KiB that are free, or kept by a CPU for its next request (no part of MemAvailable), or can be made free: the best of some looks, for what the
# kernel gives back late. And what the kernel says of it, in FILE.
available() { # FILE
    best=0
    for look in 1 2 3 4 5; do
        sync
        echo 3 > /proc/sys/vm/drop_caches
        sleep 0.3
        now=$(awk '/^MemAvailable:/ { sum += $2 } /^ *count:/ { sum += 4 * $2 } END { print sum }' /proc/meminfo /proc/zoneinfo)
        [ "$now" -gt $best ] || continue
        best=$now
        { cat /proc/meminfo; grep '^ *count:' /proc/zoneinfo; } > "$1"
        awk '{ print $1, $3 * $4 / 1024, "KiB of objects" }' /proc/slabinfo >> "$1"
    done
    echo $best
}
no_vms() { is "VMs that the driver still has" "$(grep -c '^vm' /sys/kernel/debug/corevisor_kvm/vms)" 0; }
account() { before=$(available /tmp/before); }
nothing_lost() { # KIB-ALLOWED
    no_vms
    lost=$((before - $(available /tmp/after)))
    echo "$lost KiB lost, $1 allowed"
    [ $lost -le $1 ] || { diff /tmp/before /tmp/after; fail "memory is lost"; }
}
"#;

/// How much longer than usual (`COREVISOR_TEST_FACTOR`).
fn times() -> u32 {
    u32::try_from(factor()).expect("a factor of some thousands at most")
}

/// How often four guests start and stop: 25 times, 500 times with `COREVISOR_TEST_FACTOR=20`.
fn rounds() -> u32 {
    25 * times()
}

/// Guests that say hello: QEMU's and the driver's part is all that takes time.
fn starts(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let rounds = rounds();
    let hello = std::fs::read(bed.project.guest("hello"))?;
    let gic = if host.gic == 2 { GuestGic::V2 } else { GuestGic::V3 };
    let script = format!(
        r#"
        GIC={} MEMORY=64M
        {ACCOUNTS}
        four() {{
            for n in 1 2 3 4; do vm < /dev/null > /tmp/hello.$n 2>&1 & done
            wait
            for n in 1 2 3 4; do
                grep -q '^guest hello: ok' /tmp/hello.$n || {{ cat /tmp/hello.$n; fail "guest $n of round $1"; }}
            done
        }}
        kvm_up
        GUEST_KERNEL=/guest/hello
        four 0
        account
        for round in $(seq {rounds}); do four $round; done
        nothing_lost 4096
        echo "{rounds} times four guests started and stopped"
        "#,
        gic.name()
    );
    let run = host.run(bed, "")?.file("/guest/hello", hello).timeout(LIMIT * 3 * times());
    finish(run, &script)?.says(" times four guests started and stopped")
}

/// How often a QEMU is killed.
fn kills() -> u32 {
    30 * times()
}

/// At moments from its very start to the middle of the guest's life.
fn killed(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let kills = kills();
    let script = format!(
        r#"
        VCPUS=2 GIC=2 MEMORY=128M
        {ACCOUNTS}
        seed=20261121
        one_killed() {{
            vm < /dev/null > /tmp/killed 2>&1 &
            seed=$(((seed * 1103515245 + 12345) & 0x7fffffff))
            chance=$((seed >> 8 & 0x7fff))
            sleep $((chance * 8 / 32768)).$((chance % 10))
            lent=$(sed -n 's/^vm.* \([0-9]*\) pages lent.*/\1/p' /sys/kernel/debug/corevisor_kvm/vms)
            until killall -9 qemu-system-aarch64 2>/dev/null; do :; done
            wait
            no_vms
            echo "killed after $chance of 32768 parts of 8 s, with ${{lent:-no}} pages lent"
        }}
        kvm_up
        one_killed
        one_killed
        account
        for round in $(seq {kills}); do one_killed; done
        nothing_lost 4096
        vm_of_script || fail "a guest afterwards: $?"
        rmmod corevisor_kvm || fail "the driver does not go"
        "#
    );
    // Longer than any is left to live.
    let done = finish(host.run(bed, "sleep 20; exit 0")?.timeout(LIMIT * 3 * times()), &script)?;
    done.says("corevisor-guest: script ended with status 0")
}
