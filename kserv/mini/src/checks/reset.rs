//! What memory holds after a reset: this machine's keeps what it held, so nothing of a VM that lived before may be in it.
#![forbid(unsafe_code)]

use alloc::string::String;

use corevisor_interface::calls::VM_PROTECTED;
use corevisor_interface::guest::psci::SYSTEM_RESET;
use kserv_model::layout::RAM_BASE;

use super::{Bare, Context, ensure, page};
use crate::arch::call::{Conduit, psci};
use crate::arch::entry::{try_read, try_write};
use crate::arch::memory;
use crate::calls;
use crate::guest::{Failure, at};
use crate::pages::{self, PAGE};

/// In the first word of a page of this host's own, which is the same page in both of its lives.
const NOTE: u64 = 0x4e4f_5445_0000_0001;
/// In every word of the VM's page.
const SECRET: u64 = 0x5ec2_e755_ec2e_7500;
/// Pages of the VM's pool.
const POOL: u64 = 16;

/// In its first life this host gives a page full of secrets to a protected VM, and resets the machine; in its second it looks where page and pool were.
pub fn reset(_: &Context<'_>) -> Result<String, Failure> {
    let note = page()?;
    let word = |n: u64| try_read(note + 8 * n).map_err(|_| Failure::Text("a free page cannot be read".into()));
    let write = |at, word| ensure(try_write(at, word).is_ok(), "a free page cannot be written");
    if word(0)? == NOTE {
        let (private, pool) = (word(1)?, word(2)?);
        write(note, 0)?;
        ensure(word(3)? == SECRET, "this machine's memory does not keep what it held, so there is nothing to see")?;
        for at in (0..POOL).map(|n| pool + n * PAGE).chain([private]) {
            ensure(try_read(at).is_ok(), &alloc::format!("the page at {at:#x} is not this host's"))?;
            ensure(memory::is_zero(at), &alloc::format!("the page at {at:#x} holds what a VM had before the reset"))?;
        }
        pages::give(note, 1);
        return Ok(alloc::format!("{} pages of a VM are zero after a reset", POOL + 1));
    }
    let private = page()?;
    (private..private + PAGE).step_by(8).try_for_each(|at| write(at, SECRET))?;
    let mut vm = Bare::new(VM_PROTECTED, POOL)?;
    vm.vcpu(0)?;
    let image = at("SetBootInfo", calls::set_boot_info(vm.id, RAM_BASE, PAGE))?;
    at("RemapImagePages", calls::remap_image_pages(vm.id, image, private, 1))?;
    for (n, word) in [NOTE, private, vm.held[1].0, SECRET].into_iter().enumerate() {
        write(note + 8 * n as u64, word)?;
    }
    memory::clean(note, PAGE);
    let status = psci(Conduit::Smc, SYSTEM_RESET, [0; 3]);
    Err(Failure::Text(alloc::format!("SYSTEM_RESET comes back with {status:#x}")))
}
