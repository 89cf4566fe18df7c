//! What is done to a guest of Debian's QEMU while it runs: stopped, saved, brought back, killed.

use super::{Host, Whose, driver, finish, told};
use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure},
    runner::Case,
};
use corevisor_tool::kvm::GuestGic;

pub fn cases() -> Vec<Case> {
    use Whose::*;
    let mut cases = Vec::new();
    for host in [driver(), Host::new(Driver, 3), Host::new(Own, 2), Host::new(Own, 3)] {
        cases.push(told(host, "a guest is stopped and goes on, and its time with it", stopped));
        cases.push(told(host, "a guest is saved, and brought back in the same QEMU and in another", saved));
    }
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

fn run(bed: &Bed, host: &Host, script: &str) -> Result<corevisor_tool::outcome::Finished, Failure> {
    let gic = if host.gic == 2 { GuestGic::V2 } else { GuestGic::V3 };
    let run = host.run(bed, &format!("{FUNCTIONS}\n{COUNTS}"))?;
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
        cp /guest/disk.qcow2 /tmp/disk.qcow2
        disk="-drive if=none,id=disk,format=qcow2,file=/tmp/disk.qcow2 -device virtio-blk-device,drive=disk"
        vm_with_monitor $disk || fail "no monitor"
        counted 4
        hmp savevm one || fail "it is not saved"
        last=$(grep -c '^count' /tmp/guest)
        counted $((last + 3))
        hmp loadvm one || fail "it is not brought back"
        rest=0
        until [ "$(grep -c "^count $((last + 2)) at" /tmp/guest)" = 2 ] || [ $rest = 60 ]; do sleep 1; rest=$((rest + 1)); done
        is "times that it came to $((last + 2))" "$(grep -c "^count $((last + 2)) at" /tmp/guest)" 2
        later=$(($(at $((last + 2))) - $(at $last)))
        [ $later -le 6 ] || fail "its clock went on for $later s while it was away"
        echo "in the same QEMU: it went back to $last"
        qmp quit > /dev/null
        wait $vmm
        vm_with_monitor $disk -loadvm one || fail "no monitor"
        counted $((last + 2))
        is "counts before" "$(grep -c "^count $last at" /tmp/guest)" 0
        echo "in another QEMU: it went on from $last"
        counted 16
        ends
    "#;
    let done = run(bed, host, script)?;
    done.says("\nin the same QEMU: it went back to")?;
    done.says("\nin another QEMU: it went on from")
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
