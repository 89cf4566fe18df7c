//! The tests in QEMU: whole machines with the core and a stock Linux host, judged by what their console says.
//!
//! `scripts/test qemu` installs and builds what they need and runs them; `scripts/test qemu NAME` runs some. They are
//! no test of `cargo test`, which must not need QEMU. No case looks at a clock: limits only end what hangs.
//!
//! | module           | cases                                                                  |
//! |------------------|------------------------------------------------------------------------|
//! | [`matrix`]       | kernels x interrupt controllers x CPUs x memory                        |
//! | [`raspi`]        | the Raspberry Pi 4 in QEMU's model                                     |
//! | [`host_life`]    | CPUs off and on, reboot, panic, kexec, suspend; the clock              |
//! | [`confinement`]  | a host that pokes at what is not its own                               |
//! | [`boot_paths`]   | ways into the core                                                     |
//! | [`consoles`]     | the core's console on other serial ports                               |
//! | [`broken`]       | broken inputs: one clear line each                                     |
//! | [`failure`]      | the core itself fails                                                  |
//! | [`hostile`]      | a host that attacks at random; `--soak`                                |
//! | [`dma`]          | the same with a device                                                 |
//! | [`gic`]          | the same with its interrupt controller                                 |
//! | [`vms`]          | virtual machines under the mini host                                   |
//! | [`kvm`]          | virtual machines of a Linux host, by `/dev/kvm`                        |
//! | [`kvm_timer`]    | when such a machine hears of its timer                                 |
//! | [`placed`]       | machines whose memory is filled by hand                                |
//! | [`smmu`]         | a Linux host whose devices stand behind an SMMU                        |
//! | [`scripts_run`]  | `scripts/run` at the command line                                      |
//! | [`setup`]        | `scripts/setup` where all is there, and where something cannot be had  |
//! | [`host_tree`]    | what the host's device tree must say                                   |
//! | [`runner`]       | runs the cases; [`bed`]: what they stand on; [`made`]: programs for it |

mod bed;
mod boards;
mod boot_paths;
mod broken;
mod confinement;
mod consoles;
mod dma;
mod failure;
mod gic;
mod host_life;
mod host_tree;
mod hostile;
mod kvm;
mod kvm_timer;
mod made;
mod matrix;
mod placed;
mod raspi;
mod runner;
mod scripts_run;
mod setup;
mod smmu;
mod vms;

use corevisor_tool::project::Project;
use std::process::ExitCode;

fn main() -> ExitCode {
    let project = match Project::find() {
        Ok(project) => project,
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let bed = bed::Bed { project };
    let words: Vec<_> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "--soak") {
        let number = |n: usize, usual| words.get(n).map_or(Some(usual), |word| word.parse().ok());
        let (Some(minutes), Some(seed)) = (number(1, 60), number(2, 1)) else {
            println!("--soak wants minutes and a first seed: {words:?}");
            return ExitCode::from(2);
        };
        return hostile::soak(&bed, minutes, seed);
    }
    let cases = [
        matrix::cases(),
        boards::cases(),
        raspi::cases(),
        host_life::cases(),
        confinement::cases(),
        boot_paths::cases(),
        consoles::cases(),
        broken::cases(),
        failure::cases(),
        vms::cases(),
        hostile::cases(),
        dma::cases(),
        gic::cases(),
        kvm::cases(),
        kvm_timer::cases(),
        smmu::cases(),
        scripts_run::cases(),
        setup::cases(),
    ];
    runner::run(cases.into_iter().flatten().collect(), &bed)
}
