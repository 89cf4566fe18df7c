//! Protected guests of Debian's unmodified QEMU.

use super::{Host, Whose, driver, finish, told};
use crate::{
    bed::{Bed, Checks, Failure},
    runner::Case,
};
use corevisor_tool::{
    kvm::{GuestGic, KvmHost},
    kvm_protected::GuestShape,
    sign::Key,
};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![told(driver(), "a protected Debian whose initrd was tampered with is refused", tampered)];
    for (host, vcpus, gic, its) in [
        (driver(), 1, GuestGic::Off, "QEMU's GICv2"),
        (driver(), 2, GuestGic::V2, "an in-kernel GICv2"),
        (Host::new(Whose::Driver, 3), 2, GuestGic::V3, "an in-kernel GICv3"),
    ] {
        let name = format!("a protected Debian in QEMU, {its}, {vcpus} vCPUs, runs its script and powers off");
        let act = move |bed: &Bed| protected(bed, &host, shape(vcpus, gic));
        cases.push(Case::new("kvm", format!("{name}: {}", host.name()), act));
    }
    cases.into_iter().map(|case| case.only_in_full_if(true)).collect()
}

/// While such a guest runs pages leave the host, and what its devices reach, and come back.
pub fn protected_guest_behind_smmu() -> Case {
    let host = Host::new(Whose::Driver, 3).behind_smmu();
    let name = format!("a protected Debian in QEMU runs its script and powers off: {}", host.name());
    let act = move |bed: &Bed| protected(bed, &host, shape(2, GuestGic::V3));
    Case::new("smmu", name, act).only_in_full_if(true)
}

fn shape(vcpus: u8, gic: GuestGic) -> GuestShape {
    GuestShape { vcpus, memory: "256M".into(), gic, append: String::new() }
}

/// A key of the test's own; the manifest is made on this machine, by its QEMU, and the guest runs in the host's.
fn with_guest(host: KvmHost, shape: GuestShape) -> KvmHost {
    host.protected(shape, Key::from_seed([5; 32]))
        .guest_script("grep MemTotal /proc/meminfo && echo guest: $(nproc) CPUs && exit 7")
}

fn protected(bed: &Bed, host: &Host, shape: GuestShape) -> Result<(), Failure> {
    let (vcpus, gic) = (shape.vcpus, shape.gic.name());
    let run = host.run_with(bed, |host| with_guest(host, shape))?;
    let script = r#"
        kvm_up
        vm_of_script &
        vmm=$! seconds=0 vms=/sys/kernel/debug/corevisor_kvm/vms
        until grep -q '^vm [0-9]*: protected,.* [0-9]\{4,\} pages lent' $vms || [ $seconds = 60 ]; do sleep 1; seconds=$((seconds + 1)); done
        grep '^vm' $vms
        wait $vmm
        [ $? = 7 ] || fail "the guest's script ends otherwise"
    "#;
    let done = finish(run, &format!("VCPUS={vcpus} GIC={gic}\n{script}"))?;
    done.says(": protected, 40 bits, ")?;
    done.says(&format!("\nguest: {vcpus} CPUs"))?;
    done.says("corevisor-guest: script ended with status 7")
}

/// QEMU stops the VM and waits for its monitor: it is ended here; once more with another difference. A manifest of the version before the driver itself refuses, and says why.
fn tampered(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let run = host.run_with(bed, |host| with_guest(host, shape(1, GuestGic::Off)).tampered())?;
    let script = r#"
        kvm_up
        if vm_of_script > /tmp/said 2>&1; then fail 'QEMU says that all is well'; fi
        grep 'kvm run failed' /tmp/said
        if grep -q corevisor-guest /tmp/said; then fail 'the guest has run'; fi
        dmesg | grep 'the core refuses a protected VM'
        dmesg -c > /dev/null
        MEMORY=192M
        if vm_of_script > /tmp/said 2>&1; then fail 'QEMU says that all is well'; fi
        dmesg | grep 'the core refuses a protected VM'
        { printf CVMANIF1; head -c 520 /dev/zero; } > /tmp/old
        if cat /tmp/old > /sys/kernel/debug/corevisor_kvm/manifest; then fail 'an old manifest is taken'; fi
        dmesg | grep 'the manifest is of an older version: sign the images again'
    "#;
    let done = finish(run, script)?;
    done.says("error: kvm run failed Key was rejected by service")?;
    done.says(
        "its images are not what the manifest says, or its key is not trusted (all images are where they should be",
    )?;
    // With less memory QEMU puts initrd and device tree elsewhere.
    done.says("or its key is not trusted (the manifest's x0 is not the VM's device tree)")?;
    done.says("the manifest is of an older version: sign the images again")?;
    done.says_times("script ended with status 7", 0)
}
