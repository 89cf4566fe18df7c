//! A host that attacks with a device (kserv/mini/src/checks/dma): QEMU's edu reads and writes what the host tells it, behind an SMMU that the core drives, and
//! without one.

use crate::{
    bed::{Bed, Checks, Failure, LIMIT},
    hostile::{SECRET, machine},
    runner::Case,
};
use corevisor_tool::{
    machine::Machine,
    outcome::Finished,
    run::{Boot, Run},
    vms::{Vm, Vms},
};

/// The device, which else has addresses of 28 bits only.
const EDU: &str = "edu,dma_mask=0xffffffffffff";

/// The cases.
pub fn cases() -> Vec<Case> {
    let confined = |gic, cpus, memory: &'static str| {
        let name = format!(
            "a device behind an SMMU reaches what is the host's and nothing else, whatever it reached before, {cpus} CPUs, {memory}, GICv{gic}"
        );
        Case::new("hostile", name, move |bed: &Bed| confined(bed, machine(gic, cpus).memory(memory)))
    };
    let without = "a device that no SMMU confines is not attacked with, and the host says so";
    vec![
        // 300 transfers, each of which takes 0.1 s.
        confined(3, 2, "2G").mostly_waits(),
        // RAM above 4 GiB, and another architecture version.
        confined(2, 4, "5G").only_in_full_if(true),
        Case::new("hostile", without, not_confined),
    ]
}

/// The check of the mini host on a machine with the device.
fn check(bed: &Bed, machine: Machine) -> Result<Finished, Failure> {
    let vms = Vms::new().vm(Vm::guest("bait").protected(true)).line("test=dma");
    // Elsewhere every refused access is a warning of the core.
    let run = Run::new(&bed.project, machine.arg("-device").arg(EDU)).timeout(LIMIT).append("corevisor.log=error");
    let done = run.boot(Boot::Mini(vms)).finish()?;
    done.succeeded()?;
    done.check(!done.console.to_lowercase().contains(SECRET), "a secret is on the console")?;
    Ok(done)
}

fn confined(bed: &Bed, machine: Machine) -> Result<(), Failure> {
    let done = check(bed, machine.smmu(true))?;
    done.says("mini: test dma: ok, devices are confined: ")?;
    done.says("guest bait: ok, all that it keeps as it was, ")?;
    done.says("shown 2 times")
}

fn not_confined(bed: &Bed) -> Result<(), Failure> {
    check(bed, machine(3, 1))?.says("mini: test dma: ok, devices are not confined on this machine: ")
}
