//! The VM under test, in each state that it can be in, made of the same pages each time.
#![forbid(unsafe_code)]

use corevisor_interface::calls::{CallError, MAX_PAGES, VM_ORDINARY, VM_PROTECTED};
use corevisor_interface::mailbox::{Mailbox, START_PSTATE};
use kserv_model::layout::RAM_BASE;

use super::values::IPA_BITS;
use crate::arch::entry::try_write;
use crate::arch::memory;
use crate::calls;
use crate::guest::{Failure, at};
use crate::pages::{BLOCK, PAGE};

/// What the VM under test is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Place {
    Root,
    /// [`POOL`] pages.
    Pool,
    Mailbox,
    Memory,
    Image,
}

impl Place {
    /// How many there are.
    pub const COUNT: usize = 5;
    /// Pages that they are in.
    pub const PAGES: u64 = 4 + LARGE_POOL;

    /// Where they are, from `start` on. The pool is last.
    pub fn all(start: u64) -> [u64; Self::COUNT] {
        [0, 4, 1, 2, 3].map(|n| start + n * PAGE)
    }
}

/// Pages of the pool.
const POOL: u64 = 8;
/// So many that DestroyVm does not end at once.
const LARGE_POOL: u64 = MAX_PAGES + 8;

/// Where the VM is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It was never made.
    None,
    /// READY, ordinary, nothing but a root.
    Empty,
    /// READY, ordinary, with pool, vCPU, memory.
    Ordinary,
    /// READY, protected, with pool, vCPU, memory, and one of the two pages of an image.
    Protected,
    /// VERIFIED, never run.
    Verified,
    /// VERIFIED, and its vCPU has run.
    Ran,
    /// POWEROFF, ordinary, with all that it had.
    Off,
    /// POWEROFF, protected, with all that it had.
    OffProtected,
    /// POWEROFF, and all memory is back.
    Reclaimed,
    /// DestroyVm has begun.
    Dying,
}

/// Every state.
pub const STATES: [State; 10] = [
    State::None,
    State::Empty,
    State::Ordinary,
    State::Protected,
    State::Verified,
    State::Ran,
    State::Off,
    State::OffProtected,
    State::Reclaimed,
    State::Dying,
];

impl State {
    /// Makes the VM of the pages `of`: its number; 0 if there is none.
    pub fn make(self, of: &[u64; Place::COUNT]) -> Result<u64, Failure> {
        let place = |place: Place| of[place as usize];
        if self == Self::None {
            return Ok(0);
        }
        let protected = matches!(self, Self::Protected | Self::OffProtected);
        let kind = if protected { VM_PROTECTED } else { VM_ORDINARY };
        let vm = at("RegisterVm", calls::register_vm(kind, IPA_BITS, place(Place::Root)))?;
        if self == Self::Empty {
            return Ok(vm);
        }
        let pool = if self == Self::Dying { LARGE_POOL } else { POOL };
        let mut given = 0;
        while given < pool {
            given += at("DonatePool", calls::donate_pool(vm, place(Place::Pool) + given * PAGE, pool - given))?;
        }
        let mailbox = place(Place::Mailbox);
        memory::zero(mailbox, PAGE);
        // Where it would start, were it allowed to.
        for (at, word) in
            [(core::mem::offset_of!(Mailbox, pc), RAM_BASE), (core::mem::offset_of!(Mailbox, pstate), START_PSTATE)]
        {
            let _ = try_write(mailbox + at as u64, word);
        }
        at("RegisterVcpu", calls::register_vcpu(vm, 0, mailbox))?;
        if protected {
            let image = at("SetBootInfo", calls::set_boot_info(vm, RAM_BASE + BLOCK, 2 * PAGE))?;
            at("RemapImagePages", calls::remap_image_pages(vm, image, place(Place::Image), 1))?;
        }
        at("MapMemory", calls::map_memory(vm, RAM_BASE, place(Place::Memory), 1, 0))?;
        if matches!(self, Self::Ordinary | Self::Protected) {
            return Ok(vm);
        }
        if !protected {
            at("VerifyVm", calls::verify_vm(vm, 0))?;
        }
        if matches!(self, Self::Ran) {
            at("VcpuRun", calls::vcpu_run(vm, 0))?;
        }
        if matches!(self, Self::Verified | Self::Ran) {
            return Ok(vm);
        }
        at("PowerOffVm", calls::power_off_vm(vm))?;
        if matches!(self, Self::Off | Self::OffProtected) {
            return Ok(vm);
        }
        while at("ReclaimVm", calls::reclaim_vm(vm))? != 0 {}
        if self == Self::Reclaimed {
            return Ok(vm);
        }
        match calls::destroy_vm(vm) {
            Err(CallError::Again) => Ok(vm),
            other => Err(Failure::Text(alloc::format!("DestroyVm of a VM with a large pool gives {other:?}"))),
        }
    }
}
