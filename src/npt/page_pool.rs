//! Pages that the host gave for one VM's tables and vCPU contexts.
//!
//! | primitive              | does                                                        | lock |
//! |------------------------|-------------------------------------------------------------|------|
//! | [`give_page`]          | one more page for the pool                                  | Npt  |
//! | [`take_page`]          | a page of zeroes out of the pool                            | Npt  |
//! | [`return_page`]        | a page that was taken comes back                            | Npt  |
//! | [`retire_page`]        | a free page leaves the pool for good                        | Npt  |
//!
//! The list of free pages stands in the pages themselves: the first word of each is the address of the next, 0 at the end (page 0 is
//! never given away). Everything else in a free page is zero. So a pool costs nothing but its pages, and a VM that takes too much
//! takes it from itself.
//!
//! Below: AbstractMachine. Above: PTAlloc. Specification: `spec::npt`. Source: new; K §8.1 (pools cut at build time); docs/architecture.md, Memory.
#![forbid(unsafe_code)]

use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Pa, Pfn};

/// The pool of one VM.
#[derive(Default, Debug)]
pub struct PagePool {
    head: Pa,
    free: u64,
    all: u64,
}

impl PagePool {
    /// A pool without pages.
    pub const fn new() -> Self {
        Self { head: Pa::new(0), free: 0, all: 0 }
    }

    /// Pages that are free.
    pub const fn free(&self) -> u64 {
        self.free
    }

    /// All pages: free, tables and contexts.
    pub const fn all(&self) -> u64 {
        self.all
    }
}

fn push<M: Machine>(machine: &M, pool: &mut PagePool, page: Pa) {
    machine.pt_store(page, pool.head.raw());
    pool.head = page;
    pool.free += 1;
}

/// One more page for the pool: adopted by the machine, all zero.
pub fn give_page<M: Machine>(machine: &M, pool: &mut PagePool, page: Pfn) {
    push(machine, pool, page.addr());
    pool.all += 1;
}

/// A page of zeroes; `None` if the pool is empty.
pub fn take_page<M: Machine>(machine: &M, pool: &mut PagePool) -> Option<Pfn> {
    let page = pool.head;
    pool.free = pool.free.checked_sub(1)?;
    pool.head = Pa::new(machine.pt_load(page));
    machine.pt_store(page, 0);
    Some(Pfn::containing(page))
}

/// A page that was taken comes back; nothing refers to it any more. It is scrubbed first.
pub fn return_page<M: Machine>(machine: &M, pool: &mut PagePool, page: Pfn) {
    machine.clear_phys_page(page);
    push(machine, pool, page.addr());
}

/// A free page leaves the pool for good.
pub fn retire_page<M: Machine>(machine: &M, pool: &mut PagePool) -> Option<Pfn> {
    let page = take_page(machine, pool)?;
    pool.all -= 1;
    Some(page)
}
