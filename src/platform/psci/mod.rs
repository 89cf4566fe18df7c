//! PSCI server for the host: PSCI 1.1 and SMCCC 1.2 by SMC, a whitelist; everything else is NOT_SUPPORTED.
//!
//! | module      | holds                                                                    |
//! |-------------|--------------------------------------------------------------------------|
//! | [`call`]    | function numbers, decoding, error codes                                  |
//! | [`power`]   | the table of CPU power states                                            |
//! | [`firmware`] | what lies below: SMC firmware, spin tables, nothing; the [`Machine`] trait |
//! | [`server`]  | [`Psci`]: checks, decides, keeps table and firmware in step              |
//! | [`bcm2835_pm`] | reset and power-off of the Raspberry Pi                               |
//! | [`machine`] | the real [`Machine`] (target only)                                       |
//!
//! # How it is wired
//!
//! Boot CPU, MMU and caches on (the table's lock needs them):
//! ```text
//! let machine = BoardMachine::new(pm);                       // pm: Option<Bcm2835Pm>
//! let below = Below::Smc(SmcFirmware::probe(&machine, secondary_entry_pa)?);   // or SpinTable, or Nothing
//! let psci = Psci::<_, MAX_CPUS>::new(machine, below, set_up, MPIDR_EL1.get());   // set_up: SMMUs, ITSs
//! for each other CPU: psci.add_cpu(mpidr)? == its CpuId      // numbered 1, 2, ... in this order
//! ```
//! On a spin-table board they are added by `await_cpu` instead; the core then starts each secondary by its release address (clean the line, SEV) and waits
//! until they are in `wait_for_start`, or for a bounded time: the host can start those that arrived. Entry has no argument: a CPU finds its number by
//! MPIDR. The context id that PSCI firmware gives it, in x0, is the number too, and is not looked at.
//!
//! Secondary entry, and return from a power-down state: own stack, MMU and caches on, then the same on every board:
//! ```text
//! let start = psci.wait_for_start(cpu);                      // at once on SMC boards
//! enter the host: EL1 registers as after reset, SPSR_EL2 = EL1h with DAIF masked, ELR_EL2 = start.entry, x0 = start.context
//! ```
//! Trap of an SMC from the host (ESR_EL2.ISS = 0; another immediate is NOT_SUPPORTED), ELR advanced by the trap handler:
//! ```text
//! match psci.call(cpu, SmcCall::new(x0, x1, x2, x3), |ipa| is RAM that the host owns) {
//!     PsciOutcome::Return(x0)     => frame.x0 = x0,           // x1 to x17 stay
//!     PsciOutcome::ReturnAll(x)   => frame.x0..x3 = x,
//!     PsciOutcome::Standby        => { WFI (HCR_EL2.IMO, FMO clear); frame.x0 = 0 }
//!     PsciOutcome::Leave(leave)   => {
//!         // no lock held, nothing of this CPU left to do that matters
//!         match psci.leave(cpu, leave) {
//!             After::Return(x0)   => frame.x0 = x0,           // refused, or not powered down after all
//!             After::Start(start) => begin anew, as a secondary does behind wait_for_start
//!             After::Halt         => one line on the console, stop all CPUs
//!         }
//!     }
//! }
//! ```
//!
//! Lock: the table's (a leaf, `spin::Mutex`), taken inside for a few loads and stores; never held over an SMC or a wait.

pub mod bcm2835_pm;
pub mod call;
pub mod firmware;
#[cfg(all(target_os = "none", target_arch = "aarch64"))]
pub mod machine;
pub mod power;
pub mod server;

pub use bcm2835_pm::Bcm2835Pm;
pub use call::{PsciError, SmcCall};
pub use firmware::{Below, Machine, ProbeError, SmcFirmware, SystemEnd};
#[cfg(all(target_os = "none", target_arch = "aarch64"))]
pub use machine::BoardMachine;
pub use power::{AddCpuError, CpuPower, Start};
pub use server::{After, Leave, Psci, PsciOutcome, SetUp};

#[cfg(test)]
mod tests;
