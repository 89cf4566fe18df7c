//! Virtual machines of a Debian host, by `/dev/kvm`: Debian's own QEMU, and a small VMM that asks the API (`kvm-probe`).
//!
//! Each case is there for the kernel's own KVM too (host at EL2, no core; with `--full`): what does not hold there is no demand on
//! the driver.

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, HEALTH, NO_CLOCK, NO_SELF_TESTS},
    made,
    runner::Case,
};
use corevisor_tool::{
    kvm::{Driver, GuestGic, KvmHost, USE},
    machine::Machine,
    outcome::Finished,
    run::{Boot, Run},
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

    /// The in-kernel interrupt controller that fits.
    fn own_gic(&self) -> GuestGic {
        if self.gic == 2 { GuestGic::V2 } else { GuestGic::V3 }
    }

    /// QEMU, `/dev/kvm` and a guest with a script for it.
    fn run(&self, bed: &Bed, guest_script: &str) -> Result<Run, Failure> {
        let (driver, run) = match self.whose {
            Whose::Own => (Driver::Own, bed.run(self.machine().el2(true)).boot(Boot::NoCore)),
            Whose::Driver => (Driver::Module(made::driver(bed, self.kernel)?), bed.run(self.machine())),
        };
        let host = KvmHost::new(&bed.project, self.kernel, driver).guest_script(guest_script);
        Ok(host.equip(run.kernel(self.kernel))?)
    }
}

/// The cases. By default few run: a guest in a guest is slow.
pub fn cases() -> Vec<Case> {
    let hosts =
        [Host::new(Whose::Driver, 2), Host::new(Whose::Driver, 3), Host::new(Whose::Own, 2), Host::new(Whose::Own, 3)];
    let mut cases = vec![Case::new("kvm", "the driver says what it found, and does not load without the core", loads)];
    for host in hosts {
        let by_default = host.whose == Whose::Driver && host.gic == 2;
        let new = |name: &str, default: bool, act: fn(&Bed, &Host) -> Result<(), Failure>| {
            Case::new("kvm", format!("{name}: {}", host.name()), move |bed| act(bed, &host)).only_in_full_if(!default)
        };
        cases.extend([
            new("the API answers the probe as it should", by_default, |bed, host| probe(bed, host, "api").map(|_| ())),
            new("the probe's guests run as they should", by_default, |bed, host| probe(bed, host, "run").map(|_| ())),
            new("200 VMs and 50 killed VMMs leave nothing behind", false, lives),
            new("60 rounds of random calls leave the host well", false, fuzzed),
        ]);
        for guest in guests(&host) {
            let default = by_default && guest.gic == GuestGic::Off;
            let act = move |bed: &Bed| debian(bed, &host, &guest);
            cases.push(Case::new("kvm", format!("{}: {}", guest.name(), host.name()), act).only_in_full_if(!default));
        }
    }
    cases
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

fn guests(host: &Host) -> Vec<Guest> {
    let all = [
        (GuestGic::Off, 1, "device"),
        (host.own_gic(), 1, "device"),
        (host.own_gic(), 2, "pci"),
        (host.own_gic(), 4, "device"),
    ];
    all.into_iter().map(|(gic, vcpus, bus)| Guest { gic, vcpus, bus }).collect()
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
