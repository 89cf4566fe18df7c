//! A host that attacks with its own interrupt controller (kserv/mini/src/checks/gic): redistributors and an interrupt translation service write memory that
//! no stage 2 guards, where the host says; the core stands in front of the registers by which it says so.

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

/// The cases.
pub fn cases() -> Vec<Case> {
    let attacked = |gic, cpus, model: &'static str| {
        let name = format!(
            "the GIC writes no memory but the host's, whatever tables, queues and commands it is given, {cpus} x {model}, GICv{gic}"
        );
        let machine = Machine::virt().gic(gic).cpu(model).smp(cpus);
        Case::new("hostile", name, move |bed: &Bed| attacked(bed, machine.clone()))
    };
    let nothing = "the GIC of version 2 has no tables in memory, and the host says that there is nothing to attack";
    vec![
        attacked(3, 2, "max"),
        attacked(3, 4, "cortex-a72").only_in_full_if(true),
        // Virtual LPIs: one more frame of each redistributor, one more table of the ITS, more commands.
        attacked(4, 2, "max").only_in_full_if(true),
        Case::new("hostile", nothing, |bed: &Bed| {
            check(bed, machine(2, 2))?.says("mini: test gic: ok, this interrupt controller has no tables in memory: ")
        })
        .only_in_full_if(true),
    ]
}

/// The check of the mini host.
fn check(bed: &Bed, machine: Machine) -> Result<Finished, Failure> {
    let vms = Vms::new().vm(Vm::guest("keeper").protected(true)).line("test=gic");
    // Elsewhere every refused access is a warning of the core.
    let run = Run::new(&bed.project, machine).timeout(LIMIT).append("corevisor.log=error");
    let done = run.boot(Boot::Mini(vms)).finish()?;
    done.succeeded()?;
    done.check(!done.console.to_lowercase().contains(SECRET), "a secret is on the console")?;
    Ok(done)
}

fn attacked(bed: &Bed, machine: Machine) -> Result<(), Failure> {
    let done = check(bed, machine)?;
    done.says("mini: test gic: ok, ")?;
    done.says(" redistributors, ")?;
    done.says("guest keeper: ok, every secret as it was")
}
