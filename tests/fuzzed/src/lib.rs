//! What each fuzz target of `fuzz/` does with its bytes. A target fails by a panic; under `scripts/fuzz` AddressSanitizer watches too.
//!
//! | target       | bytes are                                            | next to                                                      |
//! |--------------|------------------------------------------------------|--------------------------------------------------------------|
//! | `host_calls` | a machine, then calls, traps and accesses            | specification, invariants, every order of stores             |
//! | `vm_lives`   | calls of the life of VMs                             | specification, invariants                                    |
//! | `hypercalls` | x0 to x5 of hypercalls                               | results or named errors; rules of the machine                |
//! | `registers`  | accesses to a GICv3's registers behind the core      | specification                                                |
//! | `trees`      | a device tree                                        | what must hold of the description and of the host's tree     |
//! | `files`      | a kind, then a file of it                            | what is read is in the file; what is written can be read     |
//! | `snapshots`  | changes of a snapshot or of a manifest               | what comes in is what went out, and what was signed          |
//! | `interrupts` | raises, lines, runs of vCPUs                         | no interrupt lost, none twice                                |
//! | `devices`    | accesses to interrupt controllers and serial port    | registers that forget nothing, a value as wide as its access |
//! | `kvm`        | calls over the driver's C interface                  | what its header promises; memory, by AddressSanitizer        |
#![allow(missing_docs)]

#[path = "../../common/mod.rs"]
mod common;
#[path = "../../../kserv/linux/model/tests/common/mod.rs"]
mod driver;
#[path = "../../../kserv/model/tests/common/mod.rs"]
mod interface;

mod core;
mod host;
mod parsed;

/// A target: its name, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("host_calls", core::host_calls),
    ("vm_lives", core::vm_lives),
    ("hypercalls", core::hypercalls),
    ("registers", core::registers),
    ("trees", parsed::trees),
    ("files", parsed::files),
    ("snapshots", core::snapshots),
    ("interrupts", host::interrupts),
    ("devices", host::devices),
    ("kvm", host::kvm),
];

/// Gives `bytes` to the target `name`.
///
/// # Panics
/// If there is no such target, or what the target is for does not hold.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.0 == name);
    target.unwrap_or_else(|| panic!("{name}: no such target")).1(bytes);
}

/// `count` bytes of no pattern.
pub fn numbers(seed: u64, count: usize) -> Vec<u8> {
    let mut rng = corevisor_evidence::Rng::new(seed);
    (0..count).map(|_| rng.below(256) as u8).collect()
}

pub use parsed::files_of_each_kind;
