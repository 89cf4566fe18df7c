//! A Debian host whose PCI devices stand behind an SMMUv3 that the core drives: its devices work, and it sees no SMMU.
//!
//! What a device may reach is tried elsewhere, by a host that attacks; here it is what an honest host needs.

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, check, healthy},
    confinement::poked,
    host_life, host_tree, kvm, matrix,
    runner::Case,
    scripts_run::scripts_run,
};
use corevisor_tool::{machine::Machine, modules::load_list, project::Kernel};
use std::ffi::OsStr;

/// The registers of QEMU's SMMUv3 (its first and its second page of 64 KiB), virtio-mmio (first and last), fw_cfg.
const NOT_THE_HOSTS: &str = "0x09050000 0x0905fff8 0x09060000 0x0906fff8 0x0a000000 0x0a003e00 0x09020000";

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("smmu", name, act);
    let full = |name: &str, act: fn(&Bed) -> Result<(), Failure>| new(name, act).only_in_full_if(true);
    let mut cases = vec![
        new("the registers of the SMMU and of what reaches memory beside it are out of reach", out_of_reach),
        full("an nvme disk keeps what the host writes", nvme),
        full("a reboot starts the core and its host again", |bed| {
            host_life::reboot(bed, Machine::virt().smp(2).smmu(true), 1)
        }),
        full("scripts/run --smmu gives a script disk and network, and the raspi4b has no SMMU", run_script),
        kvm::protected_guest_behind_smmu(),
    ];
    for (kernel, gic, cpu) in [
        ("6.12", 3, "max"),
        ("6.12", 2, "cortex-a72"),
        ("6.12", 3, "cortex-a72"),
        ("6.1", 2, "max"),
        ("6.1", 3, "max"),
        ("6.12", 4, "max"),
    ] {
        let name = format!("disk and network work and no SMMU is seen: Debian's {kernel}, GICv{gic}, 4 x {cpu}");
        let selected = (kernel, gic, cpu) == ("6.12", 3, "max");
        cases.push(Case::new("smmu", name, move |bed| lives(bed, kernel, gic, cpu)).only_in_full_if(!selected));
    }
    cases
}

/// What such a host knows of its machine: no SMMU, nothing beside it; and disk and card interrupt it by messages, which a device
/// writes to the GIC.
const SEEN: &str = r#"
    tree=/proc/device-tree
    [ -e $tree/hypervisor/corevisor,devices-confined ] || fail "the core does not say that devices are confined"
    for gone in $tree/smmuv3* $tree/pcie*/iommu-map* $tree/virtio_mmio* $tree/fw-cfg*; do
        [ ! -e $gone ] || fail "the host's device tree has $gone"
    done
    [ -e $tree/pcie@10000000/msi-map ] || fail "the PCI bus has lost its MSIs"
    is "SMMUs that the kernel knows" "$(ls /sys/class/iommu | wc -l)" 0
    is "disks and cards on PCI" "$(ls -d /sys/bus/pci/devices/*/virtio* | wc -l)" 2
    messages() { awk "/virtio.*-$1/ { n = 0; for (i = 2; i <= 5; i++) n += \$i; sum += n } END { print sum + 0 }" /proc/interrupts; }
    for kind in req input; do
        echo "host: $(messages $kind) messages of virtio-$kind"
        [ $(messages $kind) -gt 0 ] || fail "no message of virtio-$kind came"
    done
"#;

fn lives(bed: &Bed, kernel: &str, gic: u32, cpu: &str) -> Result<(), Failure> {
    let machine = Machine::virt().gic(gic).cpu(cpu).smp(4).smmu(true);
    host_tree::is_confined(&matrix::lives(bed, machine, kernel, 4, SEEN)?)
}

fn out_of_reach(bed: &Bed) -> Result<(), Failure> {
    let script = format!(
        "for address in {NOT_THE_HOSTS}; do poke $address; done\nif complaints; then fail 'the kernel complains'; fi"
    );
    poked(bed.run(Machine::virt().smp(1).smmu(true)), &script).map(|_| ())
}

/// An nvme disk goes by the SMMU's rules whatever it is told. The kernel's modules for it are in no initramfs of ours.
fn nvme(bed: &Bed) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk.img");
    let pattern = matrix::pattern();
    std::fs::write(&disk, [&pattern[..], &vec![0; pattern.len()]].concat())?;
    let drive = format!("if=none,id=nvme0,format=raw,file={}", disk.display());
    let machine = Machine::virt().smp(4).smmu(true).arg("-drive").arg(drive);
    let mut run = bed.stock(machine.arg("-device").arg("nvme,drive=nvme0,serial=nvme0"));
    let kernel = Kernel::resolve(&bed.project, "6.12")?;
    let modules = kernel.modules.ok_or_else(|| Failure::new("no modules of Debian's 6.12"))?;
    let mut script = String::new();
    for (number, module) in load_list(&modules.dir, &["nvme"], &[])?.into_iter().enumerate() {
        let path = format!("/lib/nvme/{number}.ko");
        script.push_str(&format!("insmod {path} || fail 'no {}'\n", module.path));
        run = run.file(path, module.content);
    }
    script.push_str(
        r#"
        disk=/dev/nvme0n1 seconds=0
        until [ -b $disk ] || [ $seconds = 60 ]; do sleep 1; seconds=$((seconds + 1)); done
        dd if=$disk of=/tmp/first bs=64k count=16 2>/dev/null || fail "the disk cannot be read"
        dd if=/tmp/first of=$disk bs=64k seek=16 conv=fsync 2>/dev/null || fail "the disk cannot be written"
        echo 3 > /proc/sys/vm/drop_caches
        dd if=$disk bs=64k skip=16 count=16 2>/dev/null | cmp - /tmp/first || fail "the disk does not keep what is written"
        if complaints; then fail "the kernel complains"; fi
    "#,
    );
    let done = healthy(run, 4, &script)?;
    done.check(std::fs::read(&disk)? == [&pattern[..], &pattern].concat(), "the file does not hold what the host wrote")
}

fn run_script(bed: &Bed) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20])?;
    let args = ["--smmu", "--net", "--drive"].map(OsStr::new);
    let script = format!("{FUNCTIONS}{SEEN_BY_SCRIPT}");
    scripts_run(bed, args.into_iter().chain([disk.as_os_str()]), &script)?.is(0, &["under corevisor"], "")?;
    check(std::fs::read(&disk)?.starts_with(b"written\n"), "the disk's file does not hold what the script wrote")?;

    let done = scripts_run(bed, ["--smmu", "--board", "raspi4b", "--dry-run"], "")?;
    let refused = done.status != Some(0) && done.told.contains("neither an SMMU nor PCI devices: leave --smmu out");
    check(refused, format!("{:?}, standard error: {}", done.status, done.told))
}

const SEEN_BY_SCRIPT: &str = r#"
    [ -e /proc/device-tree/hypervisor/corevisor,devices-confined ] || fail "devices are not confined"
    echo written | dd of=/dev/vda conv=fsync 2>/dev/null || fail "the disk cannot be written"
    ping -q -c 1 10.0.2.2 || fail "no answer from the network"
    exit 0
"#;
