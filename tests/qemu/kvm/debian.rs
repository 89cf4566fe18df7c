//! Debian in Debian's QEMU in Debian.

use super::{Host, Whose, driver, finish, told};
use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, HEALTH, NO_CLOCK, NO_SELF_TESTS},
    runner::Case,
};
use corevisor_tool::{kvm::GuestGic, machine::Board};

pub fn cases() -> Vec<Case> {
    use {GuestGic::*, Whose::*};
    let mut cases = vec![
        told(driver(), "two guests at once", two).only_in_full_if(true),
        told(driver(), "two guests talk to each other over a bridge of the host", talk).only_in_full_if(true),
        told(
            Host::new(Driver, 3),
            "timer ticks reach a busy guest without the host, unless the driver is told so",
            ticks,
        )
        .only_in_full_if(true),
    ];
    for host in [driver(), Host::new(Driver, 3)] {
        cases.push(told(host, "a guest reboots in the same QEMU", reboots).only_in_full_if(true));
    }
    for (host, guest) in [
        (driver(), Guest { gic: Off, vcpus: 1, bus: "device" }),
        (driver(), Guest { gic: V2, vcpus: 1, bus: "device" }),
        (driver(), Guest { gic: V2, vcpus: 2, bus: "pci" }),
        (driver(), Guest { gic: V2, vcpus: 4, bus: "device" }),
        (Host::new(Driver, 3), Guest { gic: V3, vcpus: 1, bus: "device" }),
        (Host::new(Driver, 3), Guest { gic: V3, vcpus: 2, bus: "pci" }),
        (Host::new(Driver, 3), Guest { gic: V3, vcpus: 4, bus: "pci" }),
        (Host::new(Driver, 3), Guest { gic: V3, vcpus: 4, bus: "device" }),
        (Host::new(Driver, 3).cpu("neoverse-n2"), Guest { gic: V3, vcpus: 1, bus: "device" }),
        (Host::new(Driver, 3).cpu("neoverse-n2"), Guest { gic: V3, vcpus: 2, bus: "pci" }),
        (Host::new(Driver, 3).cpu("neoverse-n2"), Guest { gic: V3, vcpus: 4, bus: "pci" }),
        (driver().kernel("6.1"), Guest { gic: V2, vcpus: 2, bus: "device" }),
        (Host::new(Driver, 3).kernel("6.1"), Guest { gic: V3, vcpus: 2, bus: "pci" }),
        (driver().kernel("6.18"), Guest { gic: V2, vcpus: 2, bus: "device" }),
        (Host::new(Driver, 3).kernel("6.18"), Guest { gic: V3, vcpus: 2, bus: "pci" }),
        (driver().on(Board::Raspi4b), Guest { gic: V2, vcpus: 2, bus: "device" }),
        (driver().cpu("cortex-a53").on(Board::Zcu102), Guest { gic: Off, vcpus: 1, bus: "device" }),
        (Host::new(Own, 2), Guest { gic: Off, vcpus: 1, bus: "device" }),
    ] {
        let usual = host.cpu != "neoverse-n2" && host.board == Board::Virt && host.kernel == "6.12";
        let default = host.whose == Driver && usual && guest.vcpus == 2;
        let act = move |bed: &Bed| debian(bed, &host, &guest);
        cases.push(Case::new("kvm", format!("{}: {}", guest.name(), host.name()), act).only_in_full_if(!default));
    }
    cases
}

/// A guest of QEMU.
#[derive(Clone, Copy)]
struct Guest {
    gic: GuestGic,
    vcpus: u32,
    /// "device" on virtio-mmio, "pci" on PCI.
    bus: &'static str,
}

impl Guest {
    fn name(&self) -> String {
        let gic = match self.gic {
            GuestGic::Off => "QEMU's GICv2",
            GuestGic::V2 => "an in-kernel GICv2",
            GuestGic::V3 => "an in-kernel GICv3",
        };
        let bus = if self.bus == "pci" { "PCI" } else { "mmio" };
        format!("Debian in QEMU, {gic}, {} vCPUs, {bus}, has memory, disk, network and powers off", self.vcpus)
    }
}

/// Disk and network send messages, and each vCPU has got some.
const MESSAGES: &str = r#"
grep ITS /proc/interrupts
is "devices that interrupt by messages" "$(grep -c 'ITS.*virtio.-\(req\.0\|input\.0\)' /proc/interrupts)" 2
"#;

/// What only virtio-console brings to the host.
const SAYS: &str = r#"
seconds=0
until [ -c /dev/hvc0 ] || [ $seconds = 60 ]; do sleep 1; seconds=$((seconds + 1)); done
[ -c /dev/hvc0 ] || fail "there is no virtio-console"
echo "guest: here on hvc0" > /dev/hvc0
"#;

/// Debian in QEMU in Debian: CPUs, memory, disk both ways, network, a second console, power-off.
fn debian(bed: &Bed, host: &Host, guest: &Guest) -> Result<(), Failure> {
    let Guest { gic, vcpus, bus } = guest;
    let messages = if (*gic, *bus) == (GuestGic::V3, "pci") { MESSAGES } else { "" };
    let guest = format!("{FUNCTIONS}\nCPUS={vcpus} TIMER=virt NET=1\n{HEALTH}\n{SAYS}\n{messages}\nexit 0\n");
    let run = host.run(bed, &guest)?;
    // A disk that a thread of its own serves interrupts by an eventfd that leads to a message.
    let (thread, watch) =
        if messages.is_empty() { ("", "") } else { (",iothread=io -object iothread,id=io", "seen_eventfds &") };
    let rom = if *bus == "pci" { ",romfile=" } else { "" };
    let script = format!(
        r#"
        VCPUS={vcpus} GIC={} APPEND='{NO_CLOCK} {NO_SELF_TESTS}'
        kvm_up
        seen_eventfds() {{
            mount -t debugfs debugfs /sys/kernel/debug
            until grep ' [1-9][0-9]* irqfds, [1-9]' /sys/kernel/debug/corevisor_kvm/vms; do sleep 1; done
        }}
        {watch}
        seq 1 200000 | head -c 1048576 > /tmp/disk.img
        head -c 1048576 /dev/zero >> /tmp/disk.img
        vm_of_script -drive if=none,id=disk,format=raw,file=/tmp/disk.img -device virtio-blk-{bus},drive=disk{thread} \
            -netdev user,id=net -device virtio-net-{bus},netdev=net{rom} \
            -device virtio-serial-{bus} -chardev file,id=line,path=/tmp/line -device virtconsole,chardev=line ||
            fail "the guest's status is $?"
        head -c 1048576 /tmp/disk.img > /tmp/first
        tail -c 1048576 /tmp/disk.img | cmp - /tmp/first || fail "the disk does not hold what the guest wrote"
        grep '^guest: here on hvc0' /tmp/line || fail "over virtio-console came: $(cat /tmp/line)"
        "#,
        gic.name(),
    );
    let done = finish(run, &script)?;
    done.says("corevisor-guest: script ended with status 0")?;
    if watch.is_empty() { Ok(()) } else { done.says(" irqfds, ") }
}

/// Two guests with two vCPUs each, at the same time.
fn two(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let run = host.run(bed, &format!("{FUNCTIONS}\nCPUS=2 TIMER=virt\n{HEALTH}\nexit 0\n"))?;
    let script = r#"
        VCPUS=2 GIC=2
        kvm_up
        vm < /dev/null > /tmp/one &
        vm < /dev/null > /tmp/two || fail "the second ends with status $?"
        wait
        for guest in one two; do
            grep -q '^corevisor-guest: script ended with status 0' /tmp/$guest || { cat /tmp/$guest; fail "guest $guest"; }
        done
        echo "both came to their ends"
    "#;
    finish(run, script)?.says("\nboth came to their ends")
}

/// The first gets from the second what it sends, once they have heard of each other.
const TALK: &str = r#"
who=$(sed -n 's/.* who=\([12]\).*/\1/p' /proc/cmdline)
ip address flush dev eth0
ip address add 10.9.0.$who/24 dev eth0
other=10.9.0.$((3 - who)) tries=0
until ping -q -c 1 -W 1 $other; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || fail "the other is not heard"
done
if [ $who = 1 ]; then
    # It would end what it hears when it has nothing more to say.
    mkfifo /tmp/silence
    nc -l -p 77 <> /tmp/silence > /tmp/file
else
    seq 1 150000 > /tmp/file
    until nc -w 9 $other 77 < /tmp/file; do sleep 1; done
fi
echo "file: $(wc -c < /tmp/file) bytes, $(md5sum < /tmp/file)"
exit 0
"#;

fn talk(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let script = r#"
        GIC=2
        kvm_up
        brctl addbr br0
        ip link set br0 up
        for who in 1 2; do
            APPEND="who=$who" vm -netdev tap,id=net,ifname=tap$who,script=no,downscript=no \
                -device virtio-net-device,netdev=net,mac=52:54:00:00:00:0$who < /dev/null > /tmp/guest.$who 2>&1 &
            until ip link set tap$who up 2>/dev/null; do sleep 1; done
            brctl addif br0 tap$who || fail "tap$who does not go on the bridge"
        done
        wait
        for who in 1 2; do
            grep '^file: ' /tmp/guest.$who > /tmp/file.$who || { cat /tmp/guest.$who; fail "guest $who"; }
        done
        cmp /tmp/file.1 /tmp/file.2 || fail "they had different files: $(cat /tmp/file.1 /tmp/file.2)"
        cat /tmp/file.1
    "#;
    finish(host.run(bed, &format!("{FUNCTIONS}\n{TALK}"))?, script)?.says("\nfile: 938895 bytes, ")
}

/// The disk remembers how often the guest has started. With GICv3 it interrupts by messages, each time anew.
fn reboots(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let guest = r#"
        read -r boot < /dev/vda
        echo "guest: boot $boot, $(grep -c 'ITS.*virtio.-req\.0' /proc/interrupts) queues by messages"
        [ $boot -lt 2 ] || exit 0
        echo $((boot + 1)) | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
        sync
        reboot -f
        sleep 100
    "#;
    let (bus, queues) = if host.gic == 2 { ("device", 0) } else { ("pci", 1) };
    let script = format!(
        r#"
        VCPUS=2 GIC={}
        kvm_up
        {{ echo 1; head -c 1048574 /dev/zero; }} > /tmp/disk.img
        vm_without_console -chardev stdio,id=console,signal=off -serial chardev:console \
            -drive if=none,id=disk,format=raw,file=/tmp/disk.img -device virtio-blk-{bus},drive=disk < /dev/null ||
            fail "QEMU ends with status $?"
        "#,
        host.gic
    );
    let done = finish(host.run(bed, guest)?, &script)?;
    done.says(&format!("guest: boot 1, {queues} queues by messages"))?;
    done.says(&format!("guest: boot 2, {queues} queues by messages"))?;
    done.says("corevisor-guest: script ended with status 0")
}

/// Busy for a while, then how often its timer has ticked.
const BUSY: &str = r#"
n=0
while [ $n -lt 20000 ]; do n=$((n + 1)); done
echo "guest: ticks $(sed -n 's/^ *[0-9]*: *\([0-9]*\) .* arch_timer$/\1/p' /proc/interrupts)"
sleep 2
exit 0
"#;

/// How often the vCPU left for its timer while the guest ticked: with what the core delivers by itself, and with the module's parameter that says no.
fn ticks(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let script = r#"
        GIC=3
        exits_and_ticks() { # NAME
            rm -f /tmp/guest
            vm < /dev/null > /tmp/guest 2>&1 &
            vmm=$!
            until grep -q '^guest: ticks [0-9]' /tmp/guest; do
                kill -0 $vmm 2>/dev/null || { cat /tmp/guest; fail "the guest ends early"; }
                sleep 1
            done
            echo "$1 exits: $(sed -n 's/^ *vcpu 0:.* timer \([0-9]*\) .*/\1/p' /sys/kernel/debug/corevisor_kvm/vms)"
            echo "$1 ticks: $(tr -d '\r' < /tmp/guest | sed -n 's/^guest: ticks //p')"
            wait $vmm || fail "QEMU ends with status $?"
        }
        kvm_up
        mount -t debugfs debugfs /sys/kernel/debug
        exits_and_ticks direct
        rmmod corevisor_kvm || fail "the driver does not go"
        driver_up direct=0
        exits_and_ticks indirect
    "#;
    let done = finish(host.run(bed, BUSY)?, script)?;
    let [exits, ticks] = [done.number("\ndirect exits: ")?, done.number("\ndirect ticks: ")?];
    done.check(ticks >= 100 && exits * 10 <= ticks, format!("{exits} exits for {ticks} ticks of the core's"))?;
    let [exits, ticks] = [done.number("\nindirect exits: ")?, done.number("\nindirect ticks: ")?];
    done.check(ticks >= 100 && exits * 2 >= ticks, format!("{exits} exits for {ticks} ticks of the driver's"))
}
