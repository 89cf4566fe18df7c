//! Virtual machines of a Debian host, by `/dev/kvm`: Debian's own QEMU, and a small VMM that asks the API (`kvm-probe`).
//!
//! What the probe and the guests demand was tried on the kernel's own KVM first (host at EL2, no core; those cases need `--full`):
//! what does not hold there is no demand on the driver.

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, HEALTH, NO_CLOCK, NO_SELF_TESTS},
    made,
    runner::Case,
};
use corevisor_tool::{
    kvm::{Driver as Module, GuestGic, KvmHost, USE},
    kvm_protected::GuestShape,
    machine::Machine,
    outcome::Finished,
    run::{Boot, Run},
    sign::Key,
};

/// Whose `/dev/kvm`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// The kernel's.
    Own,
    /// The driver's, under the core.
    Driver,
}

impl Whose {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "the kernel's own KVM",
            Self::Driver => "core and driver",
        }
    }
}

/// A host: whose KVM, on which machine, with which kernel.
#[derive(Clone, Copy)]
struct Host {
    whose: Whose,
    gic: u32,
    kernel: &'static str,
}

impl Host {
    fn new(whose: Whose, gic: u32) -> Self {
        Self { whose, gic, kernel: "6.12" }
    }

    fn name(&self) -> String {
        let Self { whose, gic, kernel } = self;
        format!("{}, GICv{gic}, host {kernel}", whose.name())
    }

    /// Each interrupt controller with a CPU of its time. On the older one KVM runs as nVHE.
    fn machine(&self) -> Machine {
        let machine = Machine::virt().gic(self.gic).smp(2);
        if self.gic == 2 { machine.cpu("cortex-a72") } else { machine.cpu("max") }
    }

    /// QEMU, `/dev/kvm` and a guest with a script for it.
    fn run(&self, bed: &Bed, guest_script: &str) -> Result<Run, Failure> {
        self.run_with(bed, |host| host.guest_script(guest_script))
    }

    /// QEMU, `/dev/kvm` and what `more` says.
    fn run_with(&self, bed: &Bed, more: impl FnOnce(KvmHost) -> KvmHost) -> Result<Run, Failure> {
        let (driver, run) = match self.whose {
            Whose::Own => (Module::Own, bed.run(self.machine().el2(true)).boot(Boot::NoCore)),
            Whose::Driver => (Module::Module(made::driver(bed, self.kernel)?), bed.run(self.machine())),
        };
        let host = more(KvmHost::new(&bed.project, self.kernel, driver));
        Ok(host.equip(run.kernel(self.kernel))?)
    }
}

/// The cases. By default few run: a guest in a guest is slow. What the driver cannot do yet is in docs/status.md, not here.
pub fn cases() -> Vec<Case> {
    use {GuestGic::*, Whose::*};
    let driver = Host::new(Driver, 2);
    let mut cases = vec![
        Case::new("kvm", "the driver says what it found, and does not load without the core", loads),
        probed(driver, "200 VMs and 50 killed VMMs leave nothing behind", lives).only_in_full_if(true),
        probed(driver, "60 rounds of random calls leave the host well", fuzzed).only_in_full_if(true),
    ];
    for host in [driver, Host::new(Driver, 3), Host::new(Own, 2), Host::new(Own, 3)] {
        let default = host.whose == Driver && host.gic == 2;
        cases.push(probed(host, "the API answers the probe as it should", answers).only_in_full_if(!default));
    }
    for host in [driver, Host::new(Driver, 3), Host::new(Own, 2), Host::new(Own, 3)] {
        let default = host.whose == Driver && host.gic == 2;
        cases.push(probed(host, "the probe's guests run as they should", runs).only_in_full_if(!default));
    }
    cases.push(probed(driver, "two guests at once", two).only_in_full_if(true));
    cases.push(probed(driver, "a guest reboots in the same QEMU", reboots).only_in_full_if(true));
    cases.push(
        probed(driver, "a protected Debian in QEMU runs its script and powers off", protected).only_in_full_if(true),
    );
    cases.push(
        probed(driver, "a protected Debian whose initrd was tampered with is refused", tampered).only_in_full_if(true),
    );
    for (host, guest) in [
        (driver, Guest { gic: Off, vcpus: 1, bus: "device" }),
        (driver, Guest { gic: V2, vcpus: 1, bus: "device" }),
        (driver, Guest { gic: V2, vcpus: 2, bus: "pci" }),
        (Host::new(Driver, 3), Guest { gic: V3, vcpus: 2, bus: "pci" }),
        (Host::new(Own, 2), Guest { gic: Off, vcpus: 1, bus: "device" }),
    ] {
        let default = host.whose == Driver && guest.vcpus == 2;
        let act = move |bed: &Bed| debian(bed, &host, &guest);
        cases.push(Case::new("kvm", format!("{}: {}", guest.name(), host.name()), act).only_in_full_if(!default));
    }
    cases
}

fn probed(host: Host, name: &str, act: fn(&Bed, &Host) -> Result<(), Failure>) -> Case {
    Case::new("kvm", format!("{name}: {}", host.name()), move |bed| act(bed, &host))
}

fn answers(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "api").map(|_| ())
}

fn runs(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "run").map(|_| ())
}

fn loads(bed: &Bed) -> Result<(), Failure> {
    let driver = Host::new(Whose::Driver, 2);
    let script = "kvm_up\ndmesg | grep corevisor_kvm\nrmmod corevisor_kvm || fail 'it does not go'\n[ ! -e /dev/kvm ] || fail 'it left /dev/kvm'";
    finish(driver.run(bed, "")?, script)?.says("GICv2 with 4 list registers")?;
    let module = std::fs::read(made::driver(bed, driver.kernel)?)?;
    let script = "insmod /lib/driver.ko && fail 'it loads'\n[ ! -e /dev/kvm ] || fail 'there is a /dev/kvm'";
    finish(bed.run(driver.machine()).boot(Boot::NoCore).file("/lib/driver.ko", module), script).map(|_| ())
}

/// Runs `script` in the host, with the functions of both; the kernel's log must be clean at the end.
fn finish(run: Run, script: &str) -> Result<Finished, Failure> {
    let clean = "if complaints; then fail 'the host kernel complains'; fi";
    let functions = if script.contains("insmod") { "" } else { USE };
    let done = run.script(format!("{functions}{FUNCTIONS}\n{script}\n{clean}\nexit 0\n")).finish()?;
    done.succeeded()?;
    Ok(done)
}

fn probe(bed: &Bed, host: &Host, what: &str) -> Result<Finished, Failure> {
    let run = host.run(bed, "")?.file("/bin/kvm-probe", made::kvm_probe(bed)?);
    let done =
        finish(run, &format!("driver_up\ntimeout 200 kvm-probe {what} || fail 'the probe ends with status' $?"))?;
    done.check(done.console.lines().any(|line| line.ends_with("are not so")), "the probe came to no end")?;
    done.says_times("\nnot ok", 0)?;
    Ok(done)
}

fn lives(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let done = probe(bed, host, "life 200")?;
    done.says("200 times a VM that lives")?;
    done.says("50 times a VMM that is killed")
}

fn fuzzed(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "fuzz 1 60")?.says("a VM lives afterwards")
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
