//! Protected guests of Debian's unmodified QEMU.

use super::{Host, driver, finish, told};
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
    vec![
        told(driver(), "a protected Debian in QEMU runs its script and powers off", protected).only_in_full_if(true),
        told(driver(), "a protected Debian whose initrd was tampered with is refused", tampered).only_in_full_if(true),
    ]
}

/// A key of the test's own; the manifest is made on this machine, by its QEMU, and the guest runs in the host's.
fn with_protected_guest(host: KvmHost) -> KvmHost {
    let shape = GuestShape { vcpus: 1, memory: "256M".into(), gic: GuestGic::Off, append: String::new() };
    host.protected(shape, Key::from_seed([5; 32])).guest_script("grep MemTotal /proc/meminfo && exit 7")
}

fn protected(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let run = host.run_with(bed, with_protected_guest)?;
    let script = r#"
        kvm_up
        vm_of_script &
        vmm=$! seconds=0 vms=/sys/kernel/debug/corevisor_kvm/vms
        until grep -q '^vm [0-9]*: protected,.* [0-9]\{4,\} pages lent' $vms || [ $seconds = 60 ]; do sleep 1; seconds=$((seconds + 1)); done
        grep '^vm' $vms
        wait $vmm
        [ $? = 7 ] || fail "the guest's script ends otherwise"
    "#;
    let done = finish(run, script)?;
    done.says(": protected, 40 bits, ")?;
    done.says("corevisor-guest: script ended with status 7")
}

/// QEMU stops the VM and waits for its monitor: it is ended here.
fn tampered(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let run = host.run_with(bed, |host| with_protected_guest(host).tampered())?;
    let script = r#"
        kvm_up
        if vm_of_script > /tmp/said 2>&1; then fail 'QEMU says that all is well'; fi
        grep 'kvm run failed' /tmp/said
        if grep -q corevisor-guest /tmp/said; then fail 'the guest has run'; fi
        dmesg | grep 'the core refuses a protected VM'
    "#;
    let done = finish(run, script)?;
    done.says("error: kvm run failed Key was rejected by service")?;
    done.says("its images are not what the manifest says, or its key is not trusted")?;
    done.says_times("script ended with status 7", 0)
}
