//! Races of two to four CPUs, each by its name, so many rounds each (`rounds=N`).
//!
//! | race                | CPUs do at the same time                                               | required                                                      |
//! |---------------------|------------------------------------------------------------------------|---------------------------------------------------------------|
//! | `run-and-destroy`   | run vCPUs; power off, reclaim, destroy, and a new VM of the same number | nothing is written by the VM once reclaim is done; runs end with an exit or a named error |
//! | `power-off`         | run vCPUs, one of which switches the VM off itself; reclaim            | the same                                                      |
//! | `fault-and-reclaim` | the host faults on a protected VM's pages; these come back             | external aborts, then zeroes; never anything else             |
//! | `fault-and-off`     | a VM faults and its host maps; power off and reclaim                   | no mapping after the last page; no page stays lent            |
//! | `unmap-and-run`     | a VM writes into lent pages; these are taken back                      | nothing is written after UnmapMemory is over                  |
//! | `share-and-touch`   | a protected VM shows a page and takes it back; the host loads, stores, adds to it | nothing secret is found, nothing of the VM's is changed; wants --vm guest:sharer --protected |
//! | `resolvers`         | map the same page at one address; other pages at one address; a page at several; a block and its pages | exactly one wins; the others get named errors and keep their pages |
#![forbid(unsafe_code)]

mod lives;
mod resolvers;
mod shares;

use alloc::vec::Vec;

use corevisor_interface::calls::CallError;
use corevisor_interface::mailbox::{Mailbox, START_PSTATE};
use kserv_model::layout::RAM_BASE;

use super::drive::RUN_FOR;
use super::{Bare, Context, ensure, page};
use crate::arch::cpu;
use crate::arch::entry::{try_read, try_write};
use crate::arch::memory;
use crate::guest::{Failure, at};
use crate::pages::{self, PAGE};
use crate::{calls, scheduler};

pub use lives::{fault_and_off, fault_and_reclaim, power_off, read_only, run_and_destroy, unmap_and_run};
pub use resolvers::resolvers;
pub use shares::share_and_touch;

/// Pages of a VM's pool.
const POOL: u64 = 12;

/// Adds 1 to x1 and stores it at x0, for ever.
const WRITER: [u32; 3] = [
    0x9100_0421, // add x1, x1, #1
    0xf900_0001, // str x1, [x0]
    0x17ff_fffe, // b -2
];
/// After some rounds, SYSTEM_OFF.
const QUITTER: [u32; 7] = [
    0xd282_7102, // movz x2, #5000
    0xf100_0442, // subs x2, x2, #1
    0x54ff_ffe1, // b.ne -1
    0xd2b0_8000, // movz x0, #0x8400, lsl #16
    0xf280_0100, // movk x0, #8
    0xd400_0002, // hvc #0
    0x1400_0000, // b .
];
/// Stores x0 at x0 and goes on to the next page, for ever.
const WANDERER: [u32; 3] = [
    0xf900_0000, // str x0, [x0]
    0x9140_0400, // add x0, x0, #0x1000
    0x17ff_fffe, // b -2
];

/// What a vCPU does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// Writes a word of its own in the page of data, and counts.
    Write,
    /// Switches the VM off.
    Quit,
    /// Writes into one page after the other.
    Wander,
}

impl Work {
    const ALL: [Self; 3] = [Self::Write, Self::Quit, Self::Wander];

    /// Where its code is in the page of code.
    const fn place(self) -> u64 {
        0x400 * self as u64
    }

    const fn code(self) -> &'static [u32] {
        match self {
            Self::Write => &WRITER,
            Self::Quit => &QUITTER,
            Self::Wander => &WANDERER,
        }
    }
}

/// An ordinary VM of one page of code and one of data, with a vCPU for each other CPU.
struct Small {
    vm: Bare,
    code: u64,
    data: u64,
}

/// Where its data is in the VM.
const DATA: u64 = RAM_BASE + PAGE;

impl Small {
    /// VERIFIED; vCPU `n` does `works[n]`.
    fn new(works: &[Work]) -> Result<Self, Failure> {
        let mut vm = Bare::new(corevisor_interface::calls::VM_ORDINARY, POOL)?;
        let (code, data) = (page()?, page()?);
        for (n, work) in works.iter().enumerate() {
            let mailbox = vm.vcpu(n as u64)?;
            let words = [
                (core::mem::offset_of!(Mailbox, pc), RAM_BASE + work.place()),
                (core::mem::offset_of!(Mailbox, pstate), START_PSTATE),
                (core::mem::offset_of!(Mailbox, x0), DATA + 64 * n as u64),
            ];
            words.iter().for_each(|(at, word)| _ = try_write(mailbox + *at as u64, *word));
        }
        memory::zero(code, PAGE);
        for work in Work::ALL {
            let bytes: Vec<u8> = work.code().iter().flat_map(|word| word.to_le_bytes()).collect();
            memory::copy_to(code + work.place(), &bytes);
        }
        memory::zero(data, PAGE);
        memory::clean(data, PAGE);
        memory::clean_code(code, PAGE);
        at("VerifyVm", calls::verify_vm(vm.id, 0))?;
        for (gpa, pa) in [(RAM_BASE, code), (DATA, data)] {
            at("MapMemory", calls::map_memory(vm.id, gpa, pa, 1, 0))?;
        }
        Ok(Self { vm, code, data })
    }

    /// Switched off, and all memory back, however long its vCPUs take: how often ReclaimVm found one running.
    fn take_down(&self) -> Result<u64, Failure> {
        at("PowerOffVm", calls::power_off_vm(self.vm.id))?;
        reclaim(self.vm.id)
    }

    /// It is gone; its pages are free.
    fn end(self) -> Result<(), Failure> {
        self.vm.end()?;
        pages::give(self.code, 1);
        pages::give(self.data, 1);
        Ok(())
    }

    /// The words that vCPUs write.
    fn words(&self, vcpus: usize) -> Vec<u64> {
        (0..vcpus).map(|n| try_read(self.data + 64 * n as u64).unwrap_or(u64::MAX)).collect()
    }

    /// Nobody writes: what this host puts there stays.
    fn is_still(&self, vcpus: usize) -> Result<(), Failure> {
        const STILL: u64 = 0x5711_1111_0000_0000;
        (0..vcpus).for_each(|n| _ = try_write(self.data + 64 * n as u64, STILL));
        let until = cpu::counter() + cpu::frequency() / RUN_FOR;
        while cpu::counter() < until {}
        let words = self.words(vcpus);
        ensure(words.iter().all(|word| *word == STILL), &alloc::format!("the VM still writes: {words:x?}"))
    }
}

/// All memory of a VM that is off or goes off by itself: how often a vCPU still ran.
fn reclaim(vm: u64) -> Result<u64, Failure> {
    let mut busy = 0;
    loop {
        match calls::reclaim_vm(vm) {
            Ok(0) => return Ok(busy),
            Ok(_) => {}
            Err(CallError::Busy) => {
                busy += 1;
                scheduler::kick_all();
            }
            // Still on.
            Err(CallError::WrongState) if calls::vm_info(vm).is_ok() => {}
            Err(error) => return Err(Failure::Call("ReclaimVm", error)),
        }
    }
}

/// A number of rounds, for those who pass the time differently in each.
fn linger(round: u64) {
    let until = cpu::counter() + cpu::frequency() / RUN_FOR * (round % 8) / 4;
    while cpu::counter() < until {
        cpu::relax();
    }
}

fn rounds(context: &Context<'_>, usual: u64) -> u64 {
    context.wishes.number("rounds").unwrap_or(usual)
}

/// Text of an outcome that none of these is.
fn strange(what: &str, got: impl core::fmt::Debug) -> Failure {
    Failure::Text(alloc::format!("{what}: {got:x?}"))
}
