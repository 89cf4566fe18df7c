//! When a virtual machine of a Linux host hears of its timer, by the payload of `scripts/bench`. All is counted in instructions: a
//! nanosecond of the machine is one.

use crate::{
    bed::{Bed, Checks, Failure, NO_CLOCK, NO_SELF_TESTS},
    made,
    runner::Case,
};
use corevisor_tool::{
    bench::kvm::payload_tree,
    kvm::{Driver, GuestGic, KvmHost, USE},
    machine::Machine,
    run::Run,
};

/// Rounds of the payload's rows.
const ROUNDS: u64 = 32;
/// Nanoseconds in which a VM that computes must have acknowledged its timer's interrupt: a tick of the host's own comes every 4,000,000.
const SOON: u64 = 20_000;

/// The cases.
pub fn cases() -> Vec<Case> {
    let act = |gic| move |bed: &Bed| computes(bed, gic);
    vec![
        Case::new("kvm", "a VM that computes hears of its timer at once, GICv2", act(GuestGic::V2)),
        Case::new("kvm", "a VM that computes hears of its timer at once, GICv3", act(GuestGic::V3))
            .only_in_full_if(true),
    ]
}

fn computes(bed: &Bed, gic: GuestGic) -> Result<(), Failure> {
    let (number, cpu) = if gic == GuestGic::V2 { (2, "cortex-a72") } else { (3, "max") };
    let machine = Machine::virt().gic(number).cpu(cpu).smp(2).icount(true);
    let run = Run::new(&bed.project, machine).append(NO_CLOCK).append(NO_SELF_TESTS);
    let host = KvmHost::new(&bed.project, "6.12", Driver::Module(made::driver(bed, "6.12")?));
    let script = format!(
        "{USE}kvm_up\nkvm-probe bench /payload /tree {number} || no_kvm 'the payload'\ngrep corevisor_kvm /proc/interrupts\nexit 0\n"
    );
    let done = host
        .equip(run)?
        .file("/bin/kvm-probe", made::kvm_probe(bed)?)
        .file("/payload", std::fs::read(bed.project.guest("bench"))?)
        .file("/tree", payload_tree(gic))
        .script(script)
        .finish()?;
    done.succeeded()?;
    done.says("guest bench: ok")?;
    let per_second = done.number("guest bench: frequency ")?;
    let late = done.number("row timer_polling ")? * 1_000_000_000 / per_second / ROUNDS;
    done.check(late < SOON, format!("the timer's interrupt comes {late} ns late"))
}
