//! Virtual machines under the core, driven by the mini host: the guests of tests/guests and a stock Debian, ordinary and protected.

use crate::{
    bed::{Bed, Checks, Failure, LIMIT},
    matrix,
    runner::Case,
};
use corevisor_evidence::tell;
use corevisor_tool::{
    machine::Machine,
    outcome::{Finished, Outcome},
    run::{Boot, Run},
    sign::Key,
    vms::{Payload, Vm, Vms},
};

/// The machines: each interrupt controller with a CPU of its time.
fn machine(gic: u32) -> Machine {
    let machine = Machine::virt().gic(gic);
    if gic == 2 { machine.cpu("cortex-a72") } else { machine.cpu("max") }
}

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("vms", name, act);
    let mut cases = vec![
        new("an image changed after it was signed does not start", tampered),
        new("a VM signed with a key that the core was not given does not start", other_key),
        new("the demo: three VMs at work, and every attempt to read a protected one refused", demo).mostly_waits(),
        new("guests run on a machine with 64 GiB", much_memory),
        new("guests run on a machine with 64 CPUs that all have SVE", |bed| many_cpus(bed, 64)),
        new("guests run on a machine with 63 CPUs that all have SVE", |bed| many_cpus(bed, 63)).only_in_full_if(true),
        new("guests run on a machine with 33 CPUs that all have SVE", |bed| many_cpus(bed, 33)).only_in_full_if(true),
        new("guests run on a machine with 9 CPUs that all have SVE", |bed| many_cpus(bed, 9)).only_in_full_if(true),
        new("on a Raspberry Pi 4 guests run, ordinary and protected", raspi_guests),
        new("on a Raspberry Pi 4 Debian in a protected VM powers off", raspi_debian).only_in_full_if(true),
    ];
    for gic in [2, 3] {
        let guest = |name: &str, act: fn(&Bed, u32) -> Result<(), Failure>| {
            Case::new("vms", format!("{name}, GICv{gic}"), move |bed| act(bed, gic))
        };
        cases.extend([
            guest("two at once, ordinary and protected, say hello and power off", hello),
            guest("four vCPUs start, interrupt each other and stop", smp),
            guest("nothing that a guest tries gets anywhere", hostile),
            guest("registers survive exits on 1 to 4 CPUs", |bed, gic| registers(bed, gic, 600, &[1, 4])),
            guest(
                "wrong calls get named errors, memory comes back all zero, VMs come and go with nothing lost",
                |bed, gic| checks(bed, gic, &["refused-calls", "reclaim", "lifecycle"]),
            ),
            guest("protected VMs are sealed amid their work, go on elsewhere, and nothing changed comes in", snapshot),
            guest(
                "images are digested by the CPU's instructions as by software, and no register of the host changes",
                digests,
            ),
            guest("as many VMs as there are numbers for live at once", |bed, gic| checks(bed, gic, &["many"]))
                .only_in_full_if(true),
            guest("registers survive 100,000 exits on 1 to 4 CPUs", |bed, gic| registers(bed, gic, 25_000, &[1, 2, 4]))
                .only_in_full_if(true),
            guest("registers of host and VMs survive 50,000 switches, two VMs on 4 CPUs", |bed, gic| {
                switches(bed, gic, 4, 50_000)
            })
            .only_in_full_if(gic == 2)
            .starts_early(),
            guest("registers of host and VMs survive vCPUs that wander, eight on 3 CPUs", |bed, gic| {
                wandering(bed, gic, 100)
            }),
            guest("registers of host and VMs survive 100,000 switches, two VMs on 1, 2 and 4 CPUs", |bed, gic| {
                [1, 2, 4].into_iter().try_for_each(|cpus| switches(bed, gic, cpus, 100_000))
            })
            .only_in_full_if(true),
        ]);
        for (protected, vcpus) in [(false, 1), (false, 2), (false, 4), (true, 1), (true, 2), (true, 4)] {
            // By default an ordinary one; the protected one wanders.
            let selected = (2, false, 2) == (gic, protected, vcpus);
            let name = format!("Debian's 6.12 in {} lives and powers off, {vcpus} vCPUs, GICv{gic}", kind(protected));
            let act = move |bed: &Bed| debian(bed, gic, protected, vcpus);
            cases.push(Case::new("vms", name, act).only_in_full_if(!selected).starts_early());
        }
        cases.push(
            guest("Debian's 6.12 in a protected VM whose two vCPUs wander over 4 CPUs", wandering_debian)
                .only_in_full_if(gic == 2)
                .starts_early(),
        );
        cases.push(guest("two Debians at once, one of them protected", two_debians).only_in_full_if(true));
        cases.push(guest("Debian's 6.1 in a protected VM", older_debian).only_in_full_if(true));
    }
    cases
}

fn kind(protected: bool) -> &'static str {
    if protected { "a protected VM" } else { "an ordinary VM" }
}

fn run(bed: &Bed, machine: Machine, vms: Vms) -> Run {
    Run::new(&bed.project, machine).timeout(LIMIT).append("corevisor.log=debug").boot(Boot::Mini(vms))
}

/// Runs VMs to their end, and looks for `lines`. The mini host says that every page of the VMs came back to it, readable.
fn well(run: Run, lines: &[&str]) -> Result<Finished, Failure> {
    let done = run.finish()?;
    done.succeeded()?;
    done.check(!done.console.contains("FAILED"), "a guest failed")?;
    done.says("pages that the VMs had are back")?;
    for line in lines {
        done.says(line)?;
    }
    Ok(done)
}

/// An ordinary and a protected VM of the same guest at once.
fn both(vm: &Vm) -> Vms {
    Vms::new().vm(vm.clone()).vm(vm.clone().protected(true))
}

fn hello(bed: &Bed, gic: u32) -> Result<(), Failure> {
    let done = well(run(bed, machine(gic).smp(2), both(&Vm::guest("hello"))), &[])?;
    done.says_times(&format!("guest hello: ok, device tree at 0x40000000, GICv{gic}"), 2)
}

/// Checks that the mini host makes (kserv/mini/src/checks).
fn checks(bed: &Bed, gic: u32, names: &[&str]) -> Result<(), Failure> {
    let vms = names.iter().fold(Vms::new(), |vms, name| vms.line(format!("test={name}")));
    let done = run(bed, machine(gic), vms).finish()?;
    done.succeeded()?;
    names.iter().try_for_each(|name| done.says(&format!("mini: test {name}: ok, ")))
}

/// Bytes of an image that ends amid a page: with the device tree's page it takes two calls to be checked by instructions, five by software.
const LARGE: u64 = (512 << 10) - 877;

/// The core's test build compares what both make of random messages; then each checks a VM's images, as signed and changed.
fn digests(bed: &Bed, gic: u32) -> Result<(), Failure> {
    let seed = corevisor_evidence::seeds(1)[0];
    let mut rng = corevisor_evidence::Rng::new(seed);
    let image = bed.project.root().join(format!("target/test/digests-{gic}.bin"));
    std::fs::write(&image, (0..LARGE).map(|_| rng.next() as u8).collect::<Vec<_>>())?;
    let vms = Vms::new().vm(Vm::new(Payload::File(image)).protected(true)).line("test=digests");
    // With FEAT_SME_FA64 the instructions are there in streaming mode, too: a core that did not leave it would not be noticed. The oracle of that build looks at all of the memory.
    let machine = if gic == 3 { machine(gic).cpu("max,sme_fa64=off") } else { machine(gic) }.memory("128M");
    let hooks = bed.project.root().join("target/test/corevisor-hooks.bin");
    let done = run(bed, machine, vms.line(format!("seed={seed}"))).core(hooks).finish()?;
    done.succeeded()?;
    done.says("SHA-256 by instructions and by software, messages alike: 2000, of 1 to 16 blocks")?;
    done.says_times("digests by software", 1)?;
    done.says("mini: test digests: ok, 6 VMs accepted and as many refused")?;
    let (streaming, wanted) = (done.number("full, in streaming mode: ")?, if gic == 3 { 10 } else { 0 });
    done.check(streaming >= wanted, format!("{streaming} calls in streaming mode, not {wanted}"))?;
    tell(&format!("digests of images, GICv{gic}"), &[("seed", seed), ("messages", 2000), ("VMs", 12)]);
    Ok(())
}

fn snapshot(bed: &Bed, gic: u32) -> Result<(), Failure> {
    let done = run(bed, machine(gic).smp(2), Vms::for_snapshot().line("test=snapshot")).finish()?;
    done.succeeded()?;
    done.says("mini: test snapshot: ok, 2 VMs with ")?;
    done.says_times("guest worker: working, ", 1)?;
    for round in 1..=40 {
        done.says_times(&format!("guest worker: round {round} of 40"), 1)?;
    }
    done.says_times("guest worker: ok, 40 timer interrupts", 1)?;
    done.says_times("guest registers: ok, 2 vCPUs, 3000 rounds each", 1)
}

fn smp(bed: &Bed, gic: u32) -> Result<(), Failure> {
    let done = well(run(bed, machine(gic).smp(2), both(&Vm::guest("smp").vcpus(4))), &[])?;
    done.says_times("guest smp: ok, 4 vCPUs, 61 interrupts", 2)
}

fn hostile(bed: &Bed, gic: u32) -> Result<(), Failure> {
    let done = well(run(bed, machine(gic).smp(2), both(&Vm::guest("hostile"))), &[])?;
    done.says_times("guest hostile: ok, ", 2)
}

/// Every VM leaves at least once a round.
fn registers(bed: &Bed, gic: u32, rounds: u32, cpus: &[u32]) -> Result<(), Failure> {
    for cpus in cpus {
        let vm = Vm::guest("registers").vcpus(2).append(&format!("rounds={rounds}"));
        let done = well(run(bed, machine(gic).smp(*cpus), both(&vm)), &[])?;
        done.says_times(&format!("guest registers: ok, 2 vCPUs, {rounds} rounds each"), 2)?;
    }
    Ok(())
}

/// The mini host fills its own registers, too, before each run of a vCPU, and looks at them afterwards: two vCPUs on each CPU.
fn switches(bed: &Bed, gic: u32, cpus: u32, least: u64) -> Result<(), Failure> {
    // Half of a guest's rounds leave for the host; with GICv3 a third, for the timer's interrupt is delivered by the core.
    let rounds = least / u64::from(cpus) * if gic == 3 { 3 } else { 2 } / 2 + 500;
    let vm = Vm::guest("registers").vcpus(cpus as usize).append(&format!("rounds={rounds}"));
    let done =
        well(run(bed, machine(gic).smp(cpus), both(&vm).line("fill")), &["every register of this host as it was"])?;
    done.says_times(&format!("guest registers: ok, {cpus} vCPUs, {rounds} rounds each"), 2)?;
    let count = done.number("as it was, switches: ")?;
    done.check(count >= least, format!("{count} switches, not {least}"))?;
    // Cortex-A72 has no SME; with it half of the switches have the host in streaming mode.
    let (streaming, wanted) = (done.number("in streaming mode: ")?, if gic == 3 { least / 3 } else { 0 });
    done.check(streaming >= wanted, format!("{streaming} switches in streaming mode, not {wanted}"))
}

/// The same with vCPUs that go from CPU to CPU: as many as CPUs for each VM, so that each CPU has two and now and then many or none.
fn wandering(bed: &Bed, gic: u32, least: u64) -> Result<(), Failure> {
    let vm = Vm::guest("registers").vcpus(4).append("rounds=2500");
    let vms = both(&vm).line("fill").line("move=1");
    let done = well(run(bed, machine(gic).smp(3), vms), &["every register of this host as it was"])?;
    done.says_times("guest registers: ok, 4 vCPUs, 2500 rounds each", 2)?;
    moved(&done, least)
}

fn moved(done: &Finished, least: u64) -> Result<(), Failure> {
    let count = done.number("vCPUs went from CPU to CPU: ")?;
    done.check(count >= least, format!("vCPUs moved {count} times, not {least}"))
}

/// What Debian does in a VM.
const SCRIPT: &str = r#"
    fail() { echo "NOT SO: $*"; exit 1; }
    [ "$(nproc)" = $CPUS ] || fail "$(nproc) CPUs, not $CPUS"
    for cpu in $(seq 0 $((CPUS - 1))); do
        taskset $(printf '%x' $((1 << cpu))) sha256sum /bin/busybox > /tmp/sum.$cpu || fail "CPU $cpu does not work"
        cmp /tmp/sum.0 /tmp/sum.$cpu || fail "CPU $cpu computes something else"
    done
    sleep 0.2
    dmesg | grep -E 'WARNING:|Call trace|Internal error|BUG:|Unhandled fault|rcu: INFO' && fail "the kernel complains"
    echo "debian: well with $CPUS CPUs"
    exit 0
"#;

fn debian_vm(kernel: &str, protected: bool, vcpus: usize) -> Vm {
    // Its watchdogs look at the clock, and this machine may be busy.
    let vm = Vm::debian(kernel).append("nowatchdog rcupdate.rcu_cpu_stall_suppress=1");
    vm.protected(protected).vcpus(vcpus).script(format!("CPUS={vcpus}\n{SCRIPT}"))
}

fn debian(bed: &Bed, gic: u32, protected: bool, vcpus: usize) -> Result<(), Failure> {
    let vms = Vms::new().vm(debian_vm("6.12", protected, vcpus));
    well(run(bed, machine(gic).smp(2), vms), &[&format!("debian: well with {vcpus} CPUs")]).map(|_| ())
}

/// Two vCPUs wander over four CPUs.
fn wandering_debian(bed: &Bed, gic: u32) -> Result<(), Failure> {
    let vms = Vms::new().vm(debian_vm("6.12", true, 2)).line("move=2");
    let done = well(run(bed, machine(gic).smp(4), vms), &["debian: well with 2 CPUs"])?;
    moved(&done, 100)
}

fn older_debian(bed: &Bed, gic: u32) -> Result<(), Failure> {
    let vms = Vms::new().vm(debian_vm("6.1", true, 2));
    well(run(bed, machine(gic).smp(2), vms), &["debian: well with 2 CPUs"]).map(|_| ())
}

fn two_debians(bed: &Bed, gic: u32) -> Result<(), Failure> {
    let vms = Vms::new().vm(debian_vm("6.12", true, 2)).vm(debian_vm("6.12", false, 1));
    let lines = ["debian: well with 2 CPUs", "debian: well with 1 CPUs"];
    well(run(bed, machine(gic).smp(2), vms), &lines).map(|_| ())
}

fn much_memory(bed: &Bed) -> Result<(), Failure> {
    let done =
        well(run(bed, matrix::much_memory(machine(3).smp(2)), both(&Vm::guest("hello"))), &["65536 MiB of RAM"])?;
    done.says_times("guest hello: ok, ", 2)
}

/// The mini host starts all CPUs, each of which gets what it needs of the core's memory, before it asks for VMs. CPUs that take turns cost next to nothing.
fn many_cpus(bed: &Bed, cpus: u32) -> Result<(), Failure> {
    let machine = machine(3).smp(cpus).memory("4G").arg("-accel").arg("tcg,thread=single");
    let started = format!("mini: {cpus} CPUs, ");
    let done = well(run(bed, machine, both(&Vm::guest("hello"))), &[&format!("corevisor: {cpus} CPUs, "), &started])?;
    done.says_times("guest hello: ok, ", 2)?;
    // Records of 4 GiB, the core's block, and one for the CPUs.
    let kept = done.number("the core keeps ")?;
    done.check(kept == 12 << 10, format!("the core keeps {kept} KiB"))
}

fn raspi_guests(bed: &Bed) -> Result<(), Failure> {
    let guests = both(&Vm::guest("smp").vcpus(2)).vm(Vm::guest("worker").protected(true));
    let done = well(run(bed, Machine::raspi4b(), guests), &["guest worker: ok"])?;
    done.says_times("guest smp: ok, 2 vCPUs, 21 interrupts", 2)
}

fn raspi_debian(bed: &Bed) -> Result<(), Failure> {
    let vms = Vms::new().vm(debian_vm("6.12", true, 2));
    well(run(bed, Machine::raspi4b(), vms), &["debian: well with 2 CPUs"]).map(|_| ())
}

/// The mini host says that the core refused, and nothing of the guest ran.
fn refused(done: &Finished) -> Result<(), Failure> {
    done.check(matches!(&done.outcome, Outcome::MiniFailed(_)), "the mini host should have complained")?;
    done.says("NotAuthentic")?;
    done.says_times("guest hello: ", 0)
}

fn tampered(bed: &Bed) -> Result<(), Failure> {
    let vms = Vms::new().vm(Vm::guest("hello").protected(true).tampered());
    refused(&run(bed, machine(3).smp(1), vms).finish()?)
}

fn other_key(bed: &Bed) -> Result<(), Failure> {
    let vms = Vms::new().vm(Vm::guest("hello").protected(true));
    refused(&run(bed, machine(2).smp(1), vms).trusted(Key::generate().public()).finish()?)
}

fn demo(bed: &Bed) -> Result<(), Failure> {
    let lines =
        ["host starts vm0 with one bit of its kernel changed: refused by the core", "shows to it: \"PUBLIC-0\""];
    let done = well(run(bed, machine(3), Vms::demo()), &lines)?;
    for vm in ["vm0", "vm1"] {
        for what in ["read", "write"] {
            done.says(&format!("host {what} of {vm}'s page at "))?;
        }
    }
    done.check(!done.console.contains("SECRET"), "a secret is on the console")?;
    done.says_times("guest worker: ok", 3)
}
