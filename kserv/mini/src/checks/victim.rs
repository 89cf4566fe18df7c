//! A protected VM with secrets (tests/guests/src/bin/keeper.rs) that runs while this host attacks: it must find all as it was, and nothing of it may be
//! where the host can read.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use corevisor_interface::calls::{CallError, HostCall, MAX_VMS};
use kserv_model::layout::RAM_BASE;

use super::drive::{SHARED, protected_guest};
use super::{Context, ensure};
use crate::arch::call::hvc;
use crate::arch::cpu;
use crate::arch::entry::try_read;
use crate::calls::{self, page_state};
use crate::guest::{Failure, Guest};
use crate::pages::{BLOCK, PAGE};
use crate::scheduler;
use crate::session::bury;

/// The upper half of every word that VMs of the tests keep secret.
pub const TAG: u64 = 0x5ec2_e75e;
/// How long it may take until its secrets are there.
const START_MS: u64 = 200;
/// Its turn between two attacks, in microseconds.
const TURN_US: u64 = 200;

/// The VM.
pub struct Victim {
    guest: Arc<Guest>,
    /// Pages that stay its own.
    pub private: Vec<u64>,
    /// The page that it shows now and then.
    pub shared: u64,
    /// Its vCPUs.
    vcpus: u64,
    /// The CPUs that they run on.
    cpus: Vec<usize>,
}

impl Victim {
    /// Starts the first protected VM of the configuration, and waits for its secrets.
    ///
    /// # Errors
    /// There is none, or it does not start.
    pub fn start(context: &Context<'_>) -> Result<Self, Failure> {
        let (plan, guest) = protected_guest(context)?;
        scheduler::add(&guest);
        let until = cpu::counter() + cpu::frequency() * START_MS / 1000;
        scheduler::run(|| cpu::counter() >= until);
        let own = |n: &u64| {
            let gpa = RAM_BASE + n * PAGE;
            gpa != SHARED && calls::page_info(guest.id, gpa).is_ok_and(|(state, _)| state == page_state::PRIVATE)
        };
        let private: Vec<u64> = (0..guest.ram.1).filter(own).map(|n| guest.ram.0 + n * PAGE).collect();
        ensure(private.len() >= 16, "the VM has no secrets yet")?;
        Ok(Self {
            private,
            shared: guest.ram.0 + SHARED - RAM_BASE,
            vcpus: plan.vcpus as u64,
            cpus: guest.cpus.iter().map(|cpu| cpu.load(Ordering::Relaxed)).collect(),
            guest,
        })
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.guest.id
    }

    /// The pages through which its vCPUs run. Not while they do.
    pub fn mailboxes(&self) -> Vec<u64> {
        self.guest.mailboxes()
    }

    /// Its memory, whether it is private or not.
    pub fn memory(&self) -> impl Iterator<Item = u64> {
        let (start, pages) = self.guest.ram;
        (0..pages).map(move |n| start + n * PAGE)
    }

    /// Bytes for its console.
    pub fn tell(&self, bytes: &[u8]) {
        let _ = self.guest.inner().model.receive(bytes);
        scheduler::kick_all();
    }

    /// Whether it has ended, well or not.
    pub fn has_ended(&self) -> bool {
        self.guest.is_over()
    }

    /// Interrupts are taken, and its vCPUs have a turn if they run on this CPU.
    pub fn have_a_turn(&self) {
        scheduler::run_for(if self.cpus.contains(&cpu::index()) { TURN_US } else { 0 });
    }

    /// The host may stop any VM, and may take its vCPUs' exits away from who serves them: neither tells anything about the core.
    pub fn would_end(&self, call: HostCall, arguments: &[u64; 5]) -> bool {
        arguments[0] == self.guest.id
            && match call {
                HostCall::PowerOffVm => true,
                HostCall::VcpuRun => arguments[1] < self.vcpus,
                _ => false,
            }
    }

    /// It ends, and says itself how it is; all other VMs are gone.
    ///
    /// # Errors
    /// It has seen something, or pages did not come back.
    pub fn finish(&self) -> Result<(), Failure> {
        self.tell(b"q");
        scheduler::run(|| self.guest.is_over());
        let account = bury(&self.guest)?;
        ensure(account.given == account.back, "pages of the attacked VM did not come back")?;
        ensure(!scheduler::has_failed(), "the attacked VM did not end well")
    }
}

/// Every VM but `spared` that there is.
pub fn others(spared: u64) -> impl Iterator<Item = u64> {
    (1..=MAX_VMS).filter(move |vm| *vm != spared && calls::vm_info(*vm).is_ok())
}

/// Takes a VM down, wherever it is in its life; whether it is gone. It tries each step so often.
pub fn end(vm: u64, tries: u32) -> bool {
    let call = |call: HostCall| hvc(call.function(), [vm, 0, 0, 0, 0])[0];
    call(HostCall::PowerOffVm);
    // Where it is on its way out already, there is nothing left to reclaim.
    for _ in 0..tries {
        match call(HostCall::ReclaimVm) {
            0 => break,
            error if error == CallError::WrongState.x0() => break,
            _ => scheduler::kick_all(),
        }
    }
    (0..tries).any(|_| call(HostCall::DestroyVm) == 0)
}

/// What a call gave: a result or an error by its name.
///
/// # Errors
/// The core does not know the call, or its error has no name.
pub fn answer(call: HostCall, arguments: &[u64; 5], x: [u64; 4]) -> Result<Result<[u64; 4], CallError>, String> {
    match CallError::from_x0(x[0]) {
        Some(CallError::NotSupported) if !is_about_seals(call) => {
            Err(alloc::format!("{call:?} {arguments:x?}: the core does not know the call"))
        }
        Some(error) => Ok(Err(error)),
        None if (x[0] as i64) < 0 && !matches!(call, HostCall::CallUid) => {
            Err(alloc::format!("{call:?} {arguments:x?}: an error without a name, {:#x}", x[0]))
        }
        None => Ok(Ok(x)),
    }
}

/// Snapshots need random numbers, which not every machine has.
const fn is_about_seals(call: HostCall) -> bool {
    use HostCall::{SealPage, SealVcpu, SealVm, UnsealPage, UnsealVcpu};
    matches!(call, SealPage | SealVcpu | SealVm | UnsealPage | UnsealVcpu)
}

/// Whether a word has a secret of tests/guests/src/bin/canary.rs in it: whole, or as much as a register of 32 bits, or of addresses, holds.
pub const fn is_canary(word: u64) -> bool {
    const LOW: u64 = 0xf;
    word >> 32 == TAG || (word & 0xffff_ffff) & !LOW == TAG & !LOW
}

/// The first secret of the keeper's in a page, and where, if the host can read the page.
pub fn secret_in(page: u64) -> Option<(u64, u64)> {
    found_in(page, |word| word >> 32 == TAG)
}

/// The first word of a page that is such a one, and where, if the host can read the page.
pub fn found_in(page: u64, is_it: impl Fn(u64) -> bool) -> Option<(u64, u64)> {
    let mut words = (page..page + PAGE).step_by(8).map_while(|at| try_read(at).ok().map(|word| (at, word)));
    words.find(|(_, word)| is_it(*word))
}

/// Addresses around this host's memory that it cannot reach, and some where nothing is.
pub fn forbidden() -> Vec<u64> {
    /// RAM starts at a multiple of it on the machines that there are.
    const GIB: u64 = 1 << 30;
    let start = crate::arch::entry::image().start & !(GIB - 1);
    let around = (start..start + GIB).step_by(BLOCK as usize);
    let mut list: Vec<u64> =
        around.filter(|pa| try_read(*pa).is_err_and(|abort| abort.is_refusal())).take(64).collect();
    // Devices of QEMU's virt, or of a Raspberry Pi 4, whose RAM begins at 0: GICC, GICV, a serial port.
    list.extend(if start == 0 {
        [0xff84_2000, 0xff84_6000, 0xfe20_1000]
    } else {
        [0x0801_0000, 0x0804_0000, 0x0900_0000]
    });
    list.extend([0x7f_ffff_f000, 1 << 47, 1 << 52]);
    list
}
