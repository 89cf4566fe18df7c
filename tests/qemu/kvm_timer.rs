//! When a virtual machine of a Linux host hears of its timer, by the payload of `scripts/bench`. All is counted in instructions: a
//! nanosecond of the machine is one.

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, NO_CLOCK, NO_SELF_TESTS},
    made,
    runner::Case,
};
use corevisor_tool::{
    bench::kvm::payload_tree,
    kvm::{Driver, GuestGic, KvmHost, USE},
    machine::Machine,
    run::{Finished, Run},
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
        Case::new(
            "kvm",
            "a VM that waits for its timer is looked at before its thread sleeps, as halt_poll_ns says, GICv3",
            waits,
        ),
    ]
}

/// A host with the payload, which does `script` after its start.
fn with_payload(bed: &Bed, gic: GuestGic, script: &str) -> Result<Finished, Failure> {
    let (number, cpu) = if gic == GuestGic::V2 { (2, "cortex-a72") } else { (3, "max") };
    let machine = Machine::virt().gic(number).cpu(cpu).smp(2).icount(true);
    let run = Run::new(&bed.project, machine).append(NO_CLOCK).append(NO_SELF_TESTS);
    let host = KvmHost::new(&bed.project, "6.12", Driver::Module(made::driver(bed, "6.12")?));
    let payload = format!("payload() {{ kvm-probe bench /payload /tree {number} || no_kvm 'the payload'; }}\n");
    let done = host
        .equip(run)?
        .file("/bin/kvm-probe", made::kvm_probe(bed)?)
        .file("/payload", std::fs::read(bed.project.guest("bench"))?)
        .file("/tree", payload_tree(gic))
        .script(format!("{USE}{FUNCTIONS}kvm_up\n{payload}{script}\nexit 0\n"))
        .finish()?;
    done.succeeded()?;
    done.says("guest bench: ok")?;
    Ok(done)
}

fn computes(bed: &Bed, gic: GuestGic) -> Result<(), Failure> {
    let done = with_payload(bed, gic, "payload\ngrep corevisor_kvm /proc/interrupts")?;
    let per_second = done.number("guest bench: frequency ")?;
    let late = done.number("row timer_polling ")? * 1_000_000_000 / per_second / ROUNDS;
    done.check(late < SOON, format!("the timer's interrupt comes {late} ns late"))
}

/// The payload waits 100 us for its timer, which are short enough to be looked at.
fn waits(bed: &Bed) -> Result<(), Failure> {
    let script = r#"
        mount -t debugfs debugfs /sys/kernel/debug
        seen() { # WITH
            # A VM that has ended shows nothing any more. Who looks disturbs it: the times are of another run.
            while :; do cat /sys/kernel/debug/corevisor_kvm/vms; sleep 0.005; done > /tmp/seen &
            payload > /tmp/payload
            kill $!
            wait $!
            for what in attempted successful; do
                echo "$1 $what $(sed -n "s/.* halt_${what}_poll \([0-9]*\).*/\1/p" /tmp/seen | sort -n | tail -n 1)"
            done
            payload | sed "s/row timer_wfi/row timer_wfi $1/"
        }
        is "the longest time" "$(cat /sys/module/corevisor_kvm/parameters/halt_poll_ns)" 500000
        seen with
        echo 0 > /sys/module/corevisor_kvm/parameters/halt_poll_ns
        seen without
    "#;
    let done = with_payload(bed, GuestGic::V3, script)?;
    let (attempted, successful) = (done.number("with attempted ")?, done.number("with successful ")?);
    done.check(successful >= ROUNDS, format!("{successful} of {attempted} looks at a VM that waits had success"))?;
    done.check(done.number("without attempted ")? == 0, "a VM is looked at that should not be")?;
    let (with, without) = (done.number("row timer_wfi with ")?, done.number("row timer_wfi without ")?);
    done.check(
        2 * with < without,
        format!("its interrupt comes after {with} ticks with, after {without} without looking"),
    )
}
