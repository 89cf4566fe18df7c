//! Debian in Debian's QEMU in Debian.

use super::{Host, Whose, driver, finish, told};
use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, HEALTH, NO_CLOCK, NO_SELF_TESTS},
    runner::Case,
};
use corevisor_tool::kvm::GuestGic;

pub fn cases() -> Vec<Case> {
    use {GuestGic::*, Whose::*};
    let mut cases = vec![
        told(driver(), "two guests at once", two).only_in_full_if(true),
        told(driver(), "a guest reboots in the same QEMU", reboots).only_in_full_if(true),
    ];
    for (host, guest) in [
        (driver(), Guest { gic: Off, vcpus: 1, bus: "device" }),
        (driver(), Guest { gic: V2, vcpus: 1, bus: "device" }),
        (driver(), Guest { gic: V2, vcpus: 2, bus: "pci" }),
        (driver(), Guest { gic: V2, vcpus: 4, bus: "device" }),
        (Host::new(Driver, 3), Guest { gic: V3, vcpus: 1, bus: "device" }),
        (Host::new(Driver, 3), Guest { gic: V3, vcpus: 2, bus: "pci" }),
        (Host::new(Driver, 3), Guest { gic: V3, vcpus: 4, bus: "pci" }),
        (Host::new(Driver, 3).cpu("neoverse-n2"), Guest { gic: V3, vcpus: 4, bus: "pci" }),
        (Host::new(Own, 2), Guest { gic: Off, vcpus: 1, bus: "device" }),
    ] {
        let default = host.whose == Driver && guest.vcpus == 2;
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

/// Debian in QEMU in Debian: CPUs, memory, disk both ways, network, power-off.
fn debian(bed: &Bed, host: &Host, guest: &Guest) -> Result<(), Failure> {
    let Guest { gic, vcpus, bus } = guest;
    let run = host.run(bed, &format!("{FUNCTIONS}\nCPUS={vcpus} TIMER=virt\n{HEALTH}\nexit 0\n"))?;
    let rom = if *bus == "pci" { ",romfile=" } else { "" };
    let script = format!(
        r#"
        VCPUS={vcpus} GIC={} APPEND='{NO_CLOCK} {NO_SELF_TESTS}'
        kvm_up
        seq 1 200000 | head -c 1048576 > /tmp/disk.img
        head -c 1048576 /dev/zero >> /tmp/disk.img
        vm_of_script -drive if=none,id=disk,format=raw,file=/tmp/disk.img -device virtio-blk-{bus},drive=disk \
            -netdev user,id=net -device virtio-net-{bus},netdev=net{rom} || fail "the guest's status is $?"
        head -c 1048576 /tmp/disk.img > /tmp/first
        tail -c 1048576 /tmp/disk.img | cmp - /tmp/first || fail "the disk does not hold what the guest wrote"
        "#,
        gic.name(),
    );
    finish(run, &script)?.says("corevisor-guest: script ended with status 0")
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

/// The disk remembers how often the guest has started.
fn reboots(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let guest = r#"
        read -r boot < /dev/vda
        echo "guest: boot $boot"
        [ $boot -lt 2 ] || exit 0
        echo $((boot + 1)) | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
        sync
        reboot -f
        sleep 100
    "#;
    let script = r#"
        VCPUS=2 GIC=2
        kvm_up
        { echo 1; head -c 1048574 /dev/zero; } > /tmp/disk.img
        vm_without_console -chardev stdio,id=console,signal=off -serial chardev:console \
            -drive if=none,id=disk,format=raw,file=/tmp/disk.img -device virtio-blk-device,drive=disk < /dev/null ||
            fail "QEMU ends with status $?"
    "#;
    let done = finish(host.run(bed, guest)?, script)?;
    done.says("guest: boot 1")?;
    done.says("guest: boot 2")?;
    done.says("corevisor-guest: script ended with status 0")
}
