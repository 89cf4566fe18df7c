//! The mini host: starts VMs from an archive under corevisor, runs them on all CPUs, gives each a console, and tests the core.
//!
//! | module        | holds                                                              |
//! |---------------|--------------------------------------------------------------------|
//! | `machine`     | what the device tree says                                          |
//! | `console`     | the serial port: own lines, VMs' lines                             |
//! | `calls`       | the core's calls, with types                                       |
//! | `pages`       | which RAM is free                                                  |
//! | `guest`       | a VM: made, started, ended, destroyed with all memory counted      |
//! | `scheduler`   | vCPUs on CPUs                                                      |
//! | `jobs`        | what all CPUs do at the same time                                  |
//! | `snapshot`    | a protected VM, stopped and kept, and going on                     |
//! | `session`     | what the archive's `config` asks for, from the first VM to the end |
//! | `demo`        | VMs at work, and what the host may not do to them                  |
//! | `checks`      | hostile and other checks of the core, by name                      |
//! | `arch`        | the machine: the only place with `unsafe`                          |
//!
//! It is untrusted: nothing here protects a VM. Files and options: kserv/mini/README.md.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod arch;
#[cfg(target_os = "none")]
mod calls;
#[cfg(target_os = "none")]
mod checks;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod demo;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod jobs;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod pages;
#[cfg(target_os = "none")]
mod scheduler;
#[cfg(target_os = "none")]
mod session;
#[cfg(target_os = "none")]
mod snapshot;
#[cfg(target_os = "none")]
mod sync;

#[cfg(target_os = "none")]
use session::{fail, start, start_secondary};

/// On the development machine the program only says what it is.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("kserv-mini runs under corevisor: scripts/run --mini --vm FILE");
    std::process::exit(2);
}
