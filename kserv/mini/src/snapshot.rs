//! A protected VM, stopped in the middle of its work and kept by this host: sealed pages and registers, which mean nothing to it, and what is
//! this host's own of the VM: interrupt controller, timers, serial port, mailboxes. It goes on as another VM, wherever in memory.
//!
//! | function                | does                                                                    |
//! |-------------------------|-------------------------------------------------------------------------|
//! | [`Snapshot::take`]      | stops a VM and seals it; the VM is still to be destroyed                |
//! | [`Snapshot::restore`]   | all that follows, for a new VM that goes on                             |
//! | [`Snapshot::empty_vm`], [`Snapshot::give_pages`], [`Snapshot::give_vcpus`], [`Snapshot::finish`] | the same step by step |
//!
//! Lock: none of its own; all of the VM's while it is taken.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use corevisor_interface::calls::{CallError, MAX_VCPUS};
use corevisor_interface::mailbox::Mailbox;
use kserv_model::layout::RAM_BASE;
use kserv_model::vm::State;

use crate::arch::memory;
use crate::calls::{self, CoreInfo};
use crate::guest::{Failure, Guest, Shape, at};
use crate::pages::{self, PAGE};
use crate::scheduler;

/// Bytes of a page's seal.
pub const TAG: usize = 64;

/// A page in the host's keeping.
#[derive(Clone, Debug)]
pub struct SealedPage {
    /// Where the VM sees it.
    pub gpa: u64,
    /// Ciphertext.
    pub data: Vec<u8>,
    /// What it is, and the seal.
    pub tag: [u8; TAG],
}

/// A VM in the host's keeping.
pub struct Snapshot {
    /// What the VM is.
    pub shape: Shape,
    /// Its pages, in ascending order.
    pub pages: Vec<SealedPage>,
    /// Its vCPUs' registers.
    pub vcpus: Vec<Vec<u8>>,
    /// What belongs together.
    pub whole: Vec<u8>,
    /// This host's part of it.
    state: Box<State<{ MAX_VCPUS as usize }, 64>>,
    mailboxes: Vec<Mailbox>,
    console: Vec<u8>,
}

/// A page of this host's for the time of some calls.
pub struct Borrowed(u64);

impl Borrowed {
    /// A page with these bytes first.
    ///
    /// # Errors
    /// No memory.
    pub fn with(bytes: &[u8]) -> Result<Self, Failure> {
        let page = pages::take_top(1, PAGE).ok_or(Failure::Memory(PAGE))?;
        memory::zero(page, PAGE);
        memory::copy_to(page, bytes);
        Ok(Self(page))
    }

    /// Its address.
    pub const fn pa(&self) -> u64 {
        self.0
    }

    /// What stands in it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = alloc::vec![0; PAGE as usize];
        memory::copy_from(self.0, &mut bytes);
        bytes
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        pages::give(self.0, 1);
    }
}

impl Snapshot {
    /// Stops the VM wherever its vCPUs are, and seals all of it. It never runs again, and has to be destroyed.
    ///
    /// # Errors
    /// What the core refused.
    pub fn take(guest: &Arc<Guest>, shape: &Shape) -> Result<Self, Failure> {
        at("PowerOffVm", calls::power_off_vm(guest.id))?;
        scheduler::remove(guest);
        scheduler::kick_all();
        // A vCPU that another CPU runs keeps its mailbox until it has left.
        let mut mailboxes = guest.hold();
        let inner = guest.inner();
        let mut snapshot = Self {
            shape: shape.clone(),
            pages: Vec::new(),
            vcpus: Vec::new(),
            whole: Vec::new(),
            state: Box::new(inner.model.snapshot()),
            mailboxes: mailboxes.iter_mut().map(|page| *page.mailbox()).collect(),
            console: inner.console.rest().to_vec(),
        };
        drop(inner);
        let (out, tag) = (Borrowed::with(&[])?, Borrowed::with(&[])?);
        for gpa in (0..guest.ram.1).map(|n| RAM_BASE + n * PAGE) {
            if guest.inner().model.memory().is_mapped(gpa) {
                at("SealPage", calls::seal_page(guest.id, gpa, out.pa(), tag.pa()))?;
                let mut seal = [0; TAG];
                memory::copy_from(tag.pa(), &mut seal);
                snapshot.pages.push(SealedPage { gpa, data: out.bytes(), tag: seal });
            }
        }
        for vcpu in 0..mailboxes.len() {
            at("SealVcpu", calls::seal_vcpu(guest.id, vcpu as u64, out.pa()))?;
            snapshot.vcpus.push(out.bytes());
        }
        let (_, count) = at("SealVm", calls::end_save(guest.id, out.pa()))?;
        snapshot.whole = out.bytes();
        if count != snapshot.pages.len() as u64 {
            return Err(Failure::Text(alloc::format!("{} pages were sealed, not {count}", snapshot.pages.len())));
        }
        Ok(snapshot)
    }

    /// A VM like it, empty. vCPU n will run on CPU `cpus[n]`.
    ///
    /// # Errors
    /// As [`Guest::make_empty`].
    pub fn empty_vm(&self, info: &CoreInfo, cpus: Vec<usize>) -> Result<Arc<Guest>, Failure> {
        Guest::make_empty(&self.shape, info, cpus)
    }

    /// These of its pages become the VM's.
    ///
    /// # Errors
    /// What the core refused.
    pub fn give_pages(&self, guest: &Guest, which: Range<usize>) -> Result<(), Failure> {
        let mut inner = guest.inner();
        for page in self.pages.get(which).unwrap_or_default() {
            let pa = guest.ram.0 + (page.gpa - RAM_BASE);
            memory::copy_to(pa, &page.data);
            let tag = Borrowed::with(&page.tag)?;
            guest.with_pool(&mut inner, "UnsealPage", || calls::unseal_page(guest.id, page.gpa, pa, tag.pa()))?;
            inner.model.mapped(page.gpa, 1);
        }
        Ok(())
    }

    /// Its vCPUs' registers become those of the VM's.
    ///
    /// # Errors
    /// What the core refused.
    pub fn give_vcpus(&self, guest: &Guest) -> Result<(), Failure> {
        for (vcpu, sealed) in self.vcpus.iter().enumerate() {
            let page = Borrowed::with(sealed)?;
            at("UnsealVcpu", calls::unseal_vcpu(guest.id, vcpu as u64, page.pa()))?;
        }
        Ok(())
    }

    /// The VM is whole, as the core says, and can go on: what this host knows of it moves along.
    ///
    /// # Errors
    /// What the core refused: [`CallError::WrongState`] if something is missing.
    pub fn finish(&self, guest: &Guest) -> Result<Result<(), CallError>, Failure> {
        let whole = Borrowed::with(&self.whole)?;
        if let Err(error) = calls::end_restore(guest.id, whole.pa()) {
            return Ok(Err(error));
        }
        for (mut page, mailbox) in guest.hold().into_iter().zip(&self.mailboxes) {
            *page.mailbox() = *mailbox;
        }
        let mut inner = guest.inner();
        if !inner.model.go_on(&self.state) {
            return Err(Failure::Text("another interrupt controller or another number of vCPUs".into()));
        }
        self.console.iter().for_each(|byte| inner.console.send(*byte));
        Ok(Ok(()))
    }

    /// A VM that goes on where this one was stopped.
    ///
    /// # Errors
    /// What the core refused; what the VM had is given back then.
    pub fn restore(&self, info: &CoreInfo, cpus: Vec<usize>) -> Result<Arc<Guest>, Failure> {
        let guest = self.empty_vm(info, cpus)?;
        guest.or_destroy(|| {
            self.give_pages(&guest, 0..self.pages.len())?;
            self.give_vcpus(&guest)?;
            at("SealVm", self.finish(&guest)?)
        })?;
        Ok(guest)
    }
}
