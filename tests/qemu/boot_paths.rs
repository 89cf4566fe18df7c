//! The ways into the core.

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, HEALTH, LIMIT, check},
    confinement::CALLING,
    made,
    placed::{Placed, initrd_with, load, whole},
    runner::Case,
};
use corevisor_tool::{
    machine::Machine,
    outcome::{Finished, Outcome},
    project::Kernel,
    run::Boot,
};

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("boot", name, act);
    vec![
        new("U-Boot's booti starts the core and its host", booti),
        new("kernel and initrd may come as boot modules", modules),
        new("the core runs far from where it was linked", |bed| at(bed, 0x7a60_0000)),
        new("the core runs at any multiple of 2 MiB", |bed| {
            [0x4400_0000, 0xb000_0000].into_iter().try_for_each(|to| at(bed, to))
        })
        .only_in_full_if(true),
        new("entered at EL1 the core says what it needs, and stops", el1),
        new("loaded to no multiple of 2 MiB the core says so, and stops", misplaced),
        new("entered at EL3 the core drops to EL2, and the host lives on one CPU", el3),
        new("entered at EL3 what comes to that level is told, and the machine stops", el3_trap),
    ]
}

fn health(cpus: u32) -> String {
    format!("{FUNCTIONS}\nCPUS={cpus}\n{HEALTH}\nexit 0\n")
}

/// The host was well, under a core that was loaded to `at`.
fn well(done: &Finished, at: &str) -> Result<(), Failure> {
    done.succeeded()?;
    done.says(&format!(" at {at}, entered at EL2"))?;
    done.counted("host accesses denied", 0)?;
    done.counted("host instructions undefined", 0)
}

fn booti(bed: &Bed) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let (core, initrd) = (dir.path().join("core"), dir.path().join("initrd"));
    let initrd_file = initrd_with(bed, &health(2))?;
    std::fs::write(&core, whole(bed)?)?;
    std::fs::write(&initrd, &initrd_file)?;
    let firmware = bed.project.host().join("u-boot/qemu_arm64.bin");
    let machine = Machine::virt().smp(2).cpu("cortex-a72").arg("-bios").arg(firmware);
    let machine = load(load(machine, &core, 0x5000_0000), &initrd, 0x6000_0000);
    let mut machine = bed.run(machine).boot(Boot::Nothing).no_initrd().start()?;
    machine.wait_for("Hit any key to stop autoboot", LIMIT)?;
    machine.send("\n")?;
    machine.wait_for("=> ", LIMIT)?;
    machine.send("setenv bootargs console=ttyAMA0 panic=-1 quiet corevisor.log=debug\n")?;
    machine.wait_for("=> ", LIMIT)?;
    machine.send(&format!("booti 0x50000000 0x60000000:{:x} ${{fdtcontroladdr}}\n", initrd_file.len()))?;
    well(&machine.finish(), "0x50000000")
}

fn modules(bed: &Bed) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let initrd = dir.path().join("initrd");
    std::fs::write(&initrd, initrd_with(bed, &health(2))?)?;
    let kernel = Kernel::resolve(&bed.project, "6.12")?.image;
    let bootargs = "bootargs=console=ttyAMA0 panic=-1 quiet";
    let machine = Machine::virt().smp(2).arg("-device");
    let machine = machine.arg(format!("guest-loader,addr=0x50000000,kernel={},{bootargs}", kernel.display()));
    let machine = machine.arg("-device").arg(format!("guest-loader,addr=0x58000000,initrd={}", initrd.display()));
    let done = bed.run(machine).boot(Boot::File(bed.project.core())).no_initrd().finish()?;
    well(&done, "0x40200000")
}

fn at(bed: &Bed, at: u64) -> Result<(), Failure> {
    let mut placed = Placed::virt(bed, 2, &[], &health(2))?;
    placed.core_at = at;
    well(&placed.run(bed)?.finish()?, &format!("{at:#x}"))
}

fn el1(bed: &Bed) -> Result<(), Failure> {
    for machine in [Machine::virt(), Machine::virt().cpu("cortex-a72").gic(2)] {
        let done = bed.run(machine.smp(2).el2(false)).script("true").finish()?;
        done.core_stopped(&["entered at EL1", "EL2", "virtualization=on"])?;
    }
    Ok(())
}

fn misplaced(bed: &Bed) -> Result<(), Failure> {
    let mut placed = Placed::virt(bed, 1, &[], "true")?;
    placed.core_at = 0x7a68_0000;
    placed.run(bed)?.finish()?.core_stopped(&["cannot start", "not loaded to a multiple of 2 MiB"])
}

fn el3(bed: &Bed) -> Result<(), Failure> {
    // QEMU has no PSCI for a machine that starts at EL3, and no firmware is there to offer it.
    // Debian's 6.12 does not use SME; the test module does.
    let script =
        health(1).replace("\nexit 0", &format!("{CALLING}\nis TPIDR2_EL0 \"$(call tpidr2 5ec2)\" 5ec2\nexit 0"));
    let placed = Placed::virt_with(bed, 1, &["secure=on"], &script, module(bed)?)?;
    let done = placed.run(bed)?.finish()?;
    done.says("entered at EL3")?;
    done.says("corevisor-host: script ended with status 0")?;
    done.check(
        matches!(done.outcome, Outcome::Halted(_) | Outcome::PoweredOff { .. }),
        "the host should stop by itself",
    )
}

fn module(bed: &Bed) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    Ok(vec![("/lib/corevisor_test.ko".to_owned(), made::module(bed)?)])
}

/// The test build of the core makes an SMC, which no firmware answers.
fn el3_trap(bed: &Bed) -> Result<(), Failure> {
    let script = format!("{FUNCTIONS}{CALLING}\ncall hvc c6008fff 9\necho 'the host goes on'\n");
    let mut placed = Placed::virt_with(bed, 1, &["secure=on"], &script, module(bed)?)?;
    placed.core = Some(bed.project.root().join("target/test/corevisor-hooks.bin"));
    let mut machine = placed.run(bed)?.start()?;
    machine.wait_for("corevisor: all CPUs stopped", LIMIT)?;
    let console = machine.console();
    check(console.contains("trap to EL3: ESR_EL3 0x5e000000"), format!("no report:\n{}", machine.tail(30)))?;
    check(!console.contains("the host goes on"), "the host goes on")
}
