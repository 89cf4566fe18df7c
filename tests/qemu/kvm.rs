//! Virtual machines of a Debian host, by `/dev/kvm`: Debian's own QEMU, and a small VMM that asks the API (`kvm-probe`).
//!
//! What the probe and the guests demand was tried on the kernel's own KVM first (host at EL2, no core; those cases need `--full`):
//! what does not hold there is no demand on the driver.
//!
//! | module        | cases                                                          |
//! |---------------|----------------------------------------------------------------|
//! | [`probes`]    | the driver's life, and what `kvm-probe` finds                  |
//! | [`debian`]    | Debian in Debian's QEMU: machines, vCPUs, several at once      |
//! | [`life`]      | stop and go on, save and bring back, kill                      |
//! | [`protected`] | the same as a protected guest                                  |
//! | [`selftests`] | the kernel's own                                               |
//! | [`stress`]    | stress-ng in guest and host at once                            |

mod debian;
mod life;
mod probes;
mod protected;
mod selftests;
mod stress;

pub use protected::protected_guest_behind_smmu;

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, NO_SELF_TESTS},
    made,
    runner::Case,
};
use corevisor_tool::{
    kvm::{Driver as Module, KvmHost, USE},
    machine::{Board, Machine},
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
    cpu: &'static str,
    kernel: &'static str,
    board: Board,
    /// Its PCI devices, its disks among them, stand behind an SMMU that the core drives.
    smmu: bool,
    /// CPUs run at the same time; else they take turns, at half the cost.
    at_once: bool,
}

impl Host {
    /// Each interrupt controller with a CPU of its time. On the older one KVM runs as nVHE.
    fn new(whose: Whose, gic: u32) -> Self {
        Self {
            whose,
            gic,
            cpu: if gic == 2 { "cortex-a72" } else { "max" },
            kernel: "6.12",
            board: Board::Virt,
            smmu: false,
            at_once: false,
        }
    }

    fn cpu(self, cpu: &'static str) -> Self {
        Self { cpu, ..self }
    }

    fn kernel(self, kernel: &'static str) -> Self {
        Self { kernel, ..self }
    }

    /// A real board as QEMU has it, with the CPUs and the interrupt controller that are named already.
    fn on(self, board: Board) -> Self {
        Self { board, ..self }
    }

    fn behind_smmu(self) -> Self {
        Self { smmu: true, ..self }
    }

    fn at_once(self) -> Self {
        Self { at_once: true, ..self }
    }

    fn name(&self) -> String {
        let Self { whose, gic, cpu, kernel, board, .. } = self;
        let board = if *board == Board::Virt { String::new() } else { format!("{board}, ") };
        format!("{}, {board}{cpu}, GICv{gic}, {kernel} host", whose.name())
    }

    fn machine(&self) -> Machine {
        match self.board {
            Board::Virt => Machine::virt().gic(self.gic).smp(2).cpu(self.cpu).smmu(self.smmu),
            board => Machine::of(board).gic(self.gic).cpu(self.cpu),
        }
    }

    /// QEMU, `/dev/kvm` and a guest with a script for it.
    fn run(&self, bed: &Bed, guest_script: &str) -> Result<Run, Failure> {
        self.run_with(bed, |host| host.guest_script(guest_script))
    }

    /// QEMU, `/dev/kvm` and what `more` says.
    fn run_with(&self, bed: &Bed, more: impl FnOnce(KvmHost) -> KvmHost) -> Result<Run, Failure> {
        self.run_on(bed, self.machine(), more)
    }

    /// The same on a machine with more than usual.
    fn run_on(&self, bed: &Bed, machine: Machine, more: impl FnOnce(KvmHost) -> KvmHost) -> Result<Run, Failure> {
        let run = |machine| if self.at_once { bed.stock(machine).append(NO_SELF_TESTS) } else { bed.run(machine) };
        let (driver, run) = match self.whose {
            Whose::Own => (Module::Own, run(machine.el2(true)).boot(Boot::NoCore)),
            Whose::Driver => (Module::Module(made::driver(bed, self.kernel)?), run(machine)),
        };
        let host = more(KvmHost::new(&bed.project, self.kernel, driver));
        Ok(host.equip(run.kernel(self.kernel))?)
    }
}

/// The cases. By default few run: a guest in a guest is slow. What the driver cannot do yet is in docs/status.md, not here.
pub fn cases() -> Vec<Case> {
    [probes::cases(), debian::cases(), life::cases(), protected::cases(), selftests::cases(), stress::cases()]
        .into_iter()
        .flatten()
        .collect()
}

/// The usual host with the driver.
fn driver() -> Host {
    Host::new(Whose::Driver, 2)
}

/// A story about a host.
fn told(host: Host, name: &str, act: fn(&Bed, &Host) -> Result<(), Failure>) -> Case {
    Case::new("kvm", format!("{name}: {}", host.name()), move |bed| act(bed, &host))
}

/// Runs `script` in the host, with the functions of both; the kernel's log must be clean at the end.
fn finish(run: Run, script: &str) -> Result<Finished, Failure> {
    let clean = "if complaints; then fail 'the host kernel complains'; fi";
    let functions = if script.contains("insmod") { "" } else { USE };
    let done = run.script(format!("{functions}{FUNCTIONS}\n{script}\n{clean}\nexit 0\n")).finish()?;
    done.succeeded()?;
    Ok(done)
}
