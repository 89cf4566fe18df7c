//! Virtual machines of a Debian host, by `/dev/kvm`: Debian's own QEMU, and a small VMM that asks the API (`kvm-probe`).
//!
//! Each case is run on the kernel's own KVM first (host at EL2, no core): what does not hold there is no demand on the driver.

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, HEALTH, NO_CLOCK},
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
}

/// The machines: each interrupt controller with a CPU of its time. With an EL2 of the old kind KVM runs as nVHE.
fn machine(gic: u32) -> Machine {
    let machine = Machine::virt().gic(gic).smp(2);
    if gic == 2 { machine.cpu("cortex-a72") } else { machine.cpu("max") }
}

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for gic in [2, 3] {
        let own = format!("the kernel's own KVM, GICv{gic}");
        let new = |name: String, act: fn(&Bed, Whose, u32) -> Result<(), Failure>| {
            Case::new("kvm", name, move |bed| act(bed, Whose::Own, gic)).only_in_full_if(true)
        };
        cases.extend([
            new(format!("every answer to the probe is as it should be, {own}"), answers),
            new(format!("guests of the probe run as they should, {own}"), runs),
            new(format!("200 VMs and 50 killed VMMs leave nothing behind, {own}"), lives),
            new(format!("60 rounds of random calls leave the host well, {own}"), fuzzed),
        ]);
        for guest in [GuestGic::Off, if gic == 2 { GuestGic::V2 } else { GuestGic::V3 }] {
            let name = format!("Debian in QEMU has disk and network and powers off, GIC {}, {own}", guest.name());
            let act = move |bed: &Bed| debian(bed, Whose::Own, gic, &Guest::new(guest));
            cases.push(Case::new("kvm", name, act).only_in_full_if(true));
        }
    }
    cases
}

/// A host with QEMU and `/dev/kvm`, and a guest that examines itself as the host does.
fn host(bed: &Bed, whose: Whose, machine: Machine, guest_script: &str) -> Result<Run, Failure> {
    let (driver, run) = match whose {
        Whose::Own => (Driver::Own, bed.run(machine.el2(true)).boot(Boot::NoCore)),
    };
    Ok(KvmHost::new(&bed.project, "6.12", driver).guest_script(guest_script).equip(run)?)
}

/// Runs `script` in the host, with the functions of both; the kernel's log must be clean at the end.
fn finish(run: Run, script: &str) -> Result<Finished, Failure> {
    let clean = "if complaints; then fail 'the host kernel complains'; fi";
    let done = run.script(format!("{USE}{FUNCTIONS}\n{script}\n{clean}\nexit 0\n")).finish()?;
    done.succeeded()?;
    Ok(done)
}

fn probe(bed: &Bed, whose: Whose, gic: u32, what: &str) -> Result<Finished, Failure> {
    let run = host(bed, whose, machine(gic), "")?.file("/bin/kvm-probe", made::kvm_probe(bed)?);
    let done = finish(run, &format!("driver_up\ntimeout 200 kvm-probe {what} || fail 'the probe ends with status' $?"))?;
    done.says(" of ")?;
    done.check(done.console.lines().any(|line| line.ends_with("are not so")), "the probe came to no end")?;
    done.says_times("\nnot ok", 0)?;
    Ok(done)
}

fn answers(bed: &Bed, whose: Whose, gic: u32) -> Result<(), Failure> {
    probe(bed, whose, gic, "api").map(|_| ())
}

fn runs(bed: &Bed, whose: Whose, gic: u32) -> Result<(), Failure> {
    probe(bed, whose, gic, "run").map(|_| ())
}

fn lives(bed: &Bed, whose: Whose, gic: u32) -> Result<(), Failure> {
    let done = probe(bed, whose, gic, "life 200")?;
    done.says("200 times a VM that lives")
}

fn fuzzed(bed: &Bed, whose: Whose, gic: u32) -> Result<(), Failure> {
    let done = probe(bed, whose, gic, "fuzz 1 60")?;
    done.says("a VM lives afterwards")
}

/// A guest of QEMU.
struct Guest {
    gic: GuestGic,
    vcpus: u32,
    /// "device" on virtio-mmio, "pci" on PCI.
    bus: &'static str,
}

impl Guest {
    fn new(gic: GuestGic) -> Self {
        Self { gic, vcpus: 1, bus: "device" }
    }
}

/// Debian in QEMU in Debian: CPUs, memory, disk both ways, network, power-off.
fn debian(bed: &Bed, whose: Whose, gic: u32, guest: &Guest) -> Result<(), Failure> {
    let run = host(bed, whose, machine(gic), &format!("{FUNCTIONS}\nCPUS={}\n{HEALTH}\nexit 0\n", guest.vcpus))?;
    let Guest { gic, vcpus, bus } = guest;
    let rom = if *bus == "pci" { ",romfile=" } else { "" };
    let script = format!(
        r#"
        VCPUS={vcpus} GIC={} APPEND='{NO_CLOCK}'
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
