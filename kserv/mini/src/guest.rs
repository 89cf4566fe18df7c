//! A VM from its registration to its end, with every page that it got counted and looked at when it is gone.
//!
//! Lock: [`Guest::inner`], taken around each step of a vCPU, never while it runs; below it only the console's and the pages'.
#![forbid(unsafe_code)]

mod plan;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use corevisor_interface::calls::{CallError, MAX_VCPUS, VM_ORDINARY, VM_PROTECTED};
use corevisor_interface::mailbox::{ExitReason, Mailbox};
use kserv_model::layout::{GICC_BASE, RAM_BASE};
use kserv_model::memory::{MapRequest, Memory, Slot};
use kserv_model::vm::{GicVersion, Vm};

pub use plan::{Image, Plan, Shape};

use crate::arch::gic::CORE_KICK;
use crate::arch::memory::{self, MailboxPage};
use crate::arch::{cpu, registers};
use crate::calls::{self, CoreInfo};
use crate::console::VmConsole;
use crate::pages::{self, BLOCK, PAGE};
use crate::say;
use crate::sync::{Mutex, MutexGuard};

/// The models of a VM with as many vCPUs as the core allows.
pub type Model = Vm<'static, { MAX_VCPUS as usize }, 64>;

/// It is made on the stack.
const _: () = assert!(size_of::<Model>() <= 32 * 1024);

/// Pages for the pool when a VM is made, beyond its vCPUs' contexts.
const FIRST_POOL: u64 = 8;
/// Pages for the pool when it is empty.
const MORE_POOL: u64 = 16;

/// VmInfo: the VM is off, and never runs again.
const POWER_OFF: u64 = 4;

/// Why something about a VM did not work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// A call to the core.
    Call(&'static str, CallError),
    /// This host has not so much memory in one piece: bytes.
    Memory(u64),
    /// A register of this host is not what it was: which.
    Register(String),
    /// Something else.
    Text(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(call, error) => write!(f, "the core refuses {call}: {error:?}"),
            Self::Memory(bytes) => write!(f, "no {bytes} bytes of memory in one piece are free"),
            Self::Register(register) => write!(f, "this host's registers: {register}"),
            Self::Text(text) => write!(f, "{text}"),
        }
    }
}

/// Names the call in an error.
pub fn at<T>(call: &'static str, result: Result<T, CallError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::Call(call, error))
}

/// What its lock guards.
pub struct Inner {
    /// The models.
    pub model: Box<Model>,
    /// Console.
    pub console: VmConsole,
    /// Pages that the core has for good until the end: root, pool. Start and number.
    held: Vec<(u64, u64)>,
}

/// A VM.
pub struct Guest {
    /// Name.
    pub name: String,
    /// The core's number for it.
    pub id: u64,
    /// Whether it is protected.
    pub protected: bool,
    /// vCPU n runs on this CPU: in its queue, or at work there.
    pub cpus: Vec<AtomicUsize>,
    /// First address of its memory here, and pages.
    pub ram: (u64, u64),
    /// Below each of `mailboxes`.
    inner: Mutex<Inner>,
    /// Each is held while its vCPU runs.
    mailboxes: Vec<Mutex<MailboxPage>>,
    over: AtomicBool,
}

/// The CPU that a vCPU runs on, as far as its VM has to do with it.
pub trait Host {
    /// After an exit: these vCPUs of the VM are to be looked at, one bit each; `interrupted`: an interrupt of this machine waits. Whether this
    /// vCPU may go on at once.
    fn after(&mut self, kick: u32, interrupted: bool) -> bool;
}

/// All that was given to a VM, and where it is after its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Account {
    /// Pages given: root, pool, memory.
    pub given: u64,
    /// Pages that came back, readable, and zero where they were the VM's own.
    pub back: u64,
}

impl Guest {
    /// Makes the VM, ready to run. vCPU n will run on CPU `cpus[n]`.
    ///
    /// # Errors
    /// [`Failure`]; what the VM had is given back then.
    pub fn make(plan: &Plan<'_>, info: &CoreInfo, cpus: Vec<usize>) -> Result<Arc<Self>, Failure> {
        let guest = Self::make_empty(&plan.shape(), info, cpus)?;
        guest.or_destroy(|| {
            at("SetCntvoff", calls::set_cntvoff(guest.id, cpu::counter()))?;
            guest.load(plan)
        })?;
        Ok(guest)
    }

    /// Does what is left to do for the VM; destroys it if that fails.
    ///
    /// # Errors
    /// What `rest` says.
    pub fn or_destroy<T>(&self, rest: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        rest().inspect_err(|_| {
            if let Err(also) = self.destroy() {
                say!("error: {}: {also}", self.name);
            }
        })
    }

    /// The VM with its vCPUs, and nothing in it: state READY.
    ///
    /// # Errors
    /// [`Failure`]; what the VM had is given back then.
    pub fn make_empty(shape: &Shape, info: &CoreInfo, cpus: Vec<usize>) -> Result<Arc<Self>, Failure> {
        let gic = info.gic.ok_or_else(|| Failure::Text("the core has no interrupt controller for VMs".into()))?;
        let bits = u64::from(64 - (RAM_BASE + shape.memory - 1).leading_zeros()).max(32);
        if bits > info.ipa_bits {
            return Err(Failure::Text(alloc::format!(
                "VMs of this machine have at most {} bits of addresses",
                info.ipa_bits
            )));
        }
        let ram_pages = shape.memory / PAGE;
        let align = if shape.memory >= BLOCK { BLOCK } else { PAGE };
        let ram = pages::take(ram_pages, align).ok_or(Failure::Memory(shape.memory))?;
        let kind = if shape.protected { VM_PROTECTED } else { VM_ORDINARY };
        let Some(root) = pages::take_top(1, PAGE) else {
            pages::give(ram, ram_pages);
            return Err(Failure::Memory(PAGE));
        };
        let id = match calls::register_vm(kind, bits, root) {
            Ok(id) => id,
            Err(error) => {
                pages::give(ram, ram_pages);
                pages::give(root, 1);
                return Err(Failure::Call("RegisterVm", error));
            }
        };
        let slot = Slot { gpa: RAM_BASE, size: ram_pages * PAGE, pa: ram, read_only: false };
        let mut model_memory = Memory::new(Box::leak(vec![kserv_model::memory::Chunk::EMPTY; slot.chunks()].into()));
        model_memory.add(slot).map_err(|error| Failure::Text(alloc::format!("{error:?}")))?;
        let mut model = Box::new(Vm::new(gic, shape.vcpus, info.list_registers, model_memory));
        model.let_core_deliver(CORE_KICK as u8);
        let inner = Inner { model, console: VmConsole::new(&shape.name, shape.raw_console), held: vec![(root, 1)] };
        let pages = (0..cpus.len()).map_while(|_| pages::take_top(1, PAGE));
        let mailboxes: Vec<_> = pages.map(|pa| Mutex::new(MailboxPage::new(pa))).collect();
        let guest = Arc::new(Self {
            name: shape.name.clone(),
            id,
            protected: shape.protected,
            cpus: cpus.into_iter().map(AtomicUsize::new).collect(),
            ram: (ram, ram_pages),
            inner: Mutex::new(inner),
            mailboxes,
            over: AtomicBool::new(false),
        });
        guest.or_destroy(|| guest.register_vcpus(info, gic))?;
        Ok(guest)
    }

    fn register_vcpus(&self, info: &CoreInfo, gic: GicVersion) -> Result<(), Failure> {
        let mut inner = self.inner.lock();
        if self.mailboxes.len() < self.cpus.len() {
            return Err(Failure::Memory(PAGE));
        }
        self.more_pool(&mut inner, FIRST_POOL + info.context_pages * self.cpus.len() as u64)?;
        for (vcpu, page) in self.mailboxes.iter().enumerate() {
            let mailbox = page.lock().pa();
            at("RegisterVcpu", calls::register_vcpu(self.id, vcpu as u64, mailbox))?;
        }
        if gic == GicVersion::V2 {
            self.with_pool(&mut inner, "MapIo", || calls::map_io(self.id, GICC_BASE, info.gicv, 2))?;
        }
        Ok(())
    }

    /// Its images, and the core's verdict on them.
    fn load(&self, plan: &Plan<'_>) -> Result<(), Failure> {
        let mut inner = self.inner.lock();
        for image in &plan.images {
            let (offset, size) = (image.gpa - RAM_BASE, image.bytes.len() as u64);
            if image.gpa < RAM_BASE || offset.checked_add(size).is_none_or(|end| end > plan.memory) {
                return Err(Failure::Text(alloc::format!("an image at {:#x} is outside of its memory", image.gpa)));
            }
            memory::copy_to(self.ram.0 + offset, image.bytes);
            memory::clean_code(self.ram.0 + offset, size);
            if self.protected {
                self.give_image(&mut inner, image, offset)?;
            }
        }
        let manifest = match plan.manifest {
            None => 0,
            Some(bytes) => {
                let page = pages::take_top(1, PAGE).ok_or(Failure::Memory(PAGE))?;
                memory::zero(page, PAGE);
                memory::copy_to(page, bytes.get(..PAGE as usize).unwrap_or(bytes));
                page
            }
        };
        let verdict = loop {
            match self.verify(manifest)? {
                Err(CallError::Again) => {}
                other => break other,
            }
        };
        if manifest != 0 {
            pages::give(manifest, 1);
        }
        at("VerifyVm", verdict)?;
        Model::boot(self.mailboxes[0].lock().mailbox(), plan.entry, plan.x0);
        Ok(())
    }

    fn verify(&self, manifest: u64) -> Result<Result<(), CallError>, Failure> {
        if !registers::are_filled() {
            return Ok(calls::verify_vm(self.id, manifest));
        }
        calls::verify_vm_filled(self.id, manifest).map_err(Failure::Register)
    }

    fn give_image(&self, inner: &mut Inner, image: &Image<'_>, offset: u64) -> Result<(), Failure> {
        let size = image.bytes.len() as u64;
        let index = at("SetBootInfo", calls::set_boot_info(self.id, image.gpa, size))?;
        let (pages, mut done) = (size.div_ceil(PAGE), 0);
        while done < pages {
            let (pa, left) = (self.ram.0 + offset + done * PAGE, pages - done);
            let taken =
                self.with_pool(inner, "RemapImagePages", || calls::remap_image_pages(self.id, index, pa, left))?;
            inner.model.mapped(image.gpa + done * PAGE, taken);
            done += taken;
        }
        Ok(())
    }

    fn more_pool(&self, inner: &mut Inner, pages: u64) -> Result<(), Failure> {
        let pa = pages::take_top(pages, PAGE).ok_or(Failure::Memory(pages * PAGE))?;
        inner.held.push((pa, pages));
        let mut done = 0;
        while done < pages {
            done += at("DonatePool", calls::donate_pool(self.id, pa + done * PAGE, pages - done))?;
        }
        Ok(())
    }

    /// Makes a call; as often as the pool is empty, it gets more.
    ///
    /// # Errors
    /// What the call says, or that there is no memory for the pool.
    pub fn with_pool<T>(
        &self,
        inner: &mut Inner,
        name: &'static str,
        call: impl Fn() -> Result<T, CallError>,
    ) -> Result<T, Failure> {
        loop {
            match call() {
                Err(CallError::NoMemory) => self.more_pool(inner, MORE_POOL)?,
                other => return at(name, other),
            }
        }
    }

    fn map(&self, inner: &mut Inner, request: MapRequest) -> Result<(), Failure> {
        if !self.protected {
            // A VM starts with its caches off and must find zeros and what it was given, not what a cache line once held.
            memory::clean(request.pa, request.pages * PAGE);
        }
        let MapRequest { gpa, pa, pages, flags } = request;
        let done = self.with_pool(inner, "MapMemory", || calls::map_memory(self.id, gpa, pa, pages, flags))?;
        inner.model.mapped(gpa, done);
        Ok(())
    }

    /// Runs a vCPU and serves its exits until somebody else may run: it waits, is off, or this CPU has something else to do. `host` is told
    /// what concerns this CPU and others, under no lock but the vCPU's own.
    ///
    /// # Errors
    /// What the core refused: the VM is over then.
    pub fn run(&self, vcpu: usize, host: &mut impl Host) -> Result<(), Failure> {
        let Some(page) = self.mailboxes.get(vcpu) else { return Ok(()) };
        let mut page = page.lock();
        let mut now = cpu::counter();
        let mut inner = self.inner.lock();
        while inner.model.on_entry(vcpu, page.mailbox(), now) {
            drop(inner);
            let reason = match page.run(|| self.enter(vcpu as u64))? {
                // Another vCPU has switched the VM off; whoever ran it will say so.
                Err(CallError::WrongState) if calls::vm_info(self.id).is_ok_and(|(state, ..)| state == POWER_OFF) => {
                    self.inner.lock().model.on_refusal(vcpu, page.mailbox());
                    return Ok(());
                }
                result => at("VcpuRun", result)?,
            };
            if reason == ExitReason::Stopped {
                // By another vCPU of its own, whose exit says how the VM ended, or by `stop`; or for a snapshot.
                self.inner.lock().model.on_stop(vcpu, page.mailbox(), cpu::counter());
                return Ok(());
            }
            now = cpu::counter();
            inner = self.inner.lock();
            let (goes_on, kick) = self.serve(&mut inner, vcpu, reason, page.mailbox(), now)?;
            if kick != 0 || reason == ExitReason::Irq {
                drop(inner);
                if !host.after(kick, reason == ExitReason::Irq) {
                    return Ok(());
                }
                inner = self.inner.lock();
            }
            if !goes_on {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What follows from an exit: whether the vCPU goes on at once, and whom others are to look at.
    fn serve(
        &self,
        inner: &mut Inner,
        vcpu: usize,
        reason: ExitReason,
        mailbox: &mut Mailbox,
        now: u64,
    ) -> Result<(bool, u32), Failure> {
        use kserv_model::vm::Action;
        let Inner { model, console, .. } = inner;
        let decision = model.on_exit(vcpu, reason, mailbox, now, &mut |byte| console.send(byte));
        let goes_on = match decision.action {
            // Its emulated timer may have changed, or its virtual one waits to be looked at: the deadline of this CPU is made anew.
            Action::Run if matches!(reason, ExitReason::Sysreg | ExitReason::Irq) => !model.needs_deadline(vcpu, now),
            Action::Run => true,
            Action::Map(request) => {
                self.map(inner, request)?;
                true
            }
            Action::Block { .. } | Action::Off => false,
            Action::PowerOff(_) => {
                self.over.store(true, Ordering::Release);
                false
            }
        };
        Ok((goes_on, decision.kick))
    }

    fn enter(&self, vcpu: u64) -> Result<Result<ExitReason, CallError>, Failure> {
        if !registers::are_filled() {
            return Ok(calls::vcpu_run(self.id, vcpu));
        }
        calls::vcpu_run_filled(self.id, vcpu).map_err(Failure::Register)
    }

    /// The pages through which its vCPUs run. Waits for each that runs; not with [`Self::inner`] held.
    pub fn mailboxes(&self) -> Vec<u64> {
        self.mailboxes.iter().map(|page| page.lock().pa()).collect()
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// It has ended, whatever its vCPUs do.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Release);
        // It fails where the VM is off already.
        let _ = calls::power_off_vm(self.id);
    }

    /// The mailboxes of all vCPUs, none of which runs meanwhile. As [`Self::mailboxes`].
    pub fn hold(&self) -> Vec<MutexGuard<'_, MailboxPage>> {
        self.mailboxes.iter().map(Mutex::lock).collect()
    }

    /// What its lock guards.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Destroys it, gives its memory back to this host, and looks at every page of it.
    ///
    /// # Errors
    /// What the core refused. Its memory is lost then.
    pub fn destroy(&self) -> Result<Account, Failure> {
        self.stop();
        let mut taken = 0;
        loop {
            match calls::reclaim_vm(self.id) {
                // A vCPU is still on its way out.
                Err(CallError::Busy) => crate::scheduler::kick_all(),
                Ok(0) => break,
                Ok(pages) => taken += pages,
                Err(error) => return Err(Failure::Call("ReclaimVm", error)),
            }
        }
        loop {
            match calls::destroy_vm(self.id) {
                Err(CallError::Again) => {}
                Ok(()) => break,
                Err(error) => return Err(Failure::Call("DestroyVm", error)),
            }
        }
        // A vCPU may be on its way out of `run` still, with its mailbox, and about to look at the rest.
        let mailboxes = self.mailboxes();
        let mut inner = self.inner.lock();
        let memory = inner.model.memory().pages();
        let mut account = Account { given: memory, back: 0 };
        // Tables and windows are counted too.
        if taken < memory {
            return Err(Failure::Text(alloc::format!("{memory} pages of memory were mapped, {taken} came back")));
        }
        for n in 0..self.ram.1 {
            if inner.model.memory().is_mapped(RAM_BASE + n * PAGE) {
                let pa = self.ram.0 + n * PAGE;
                account.back += u64::from(returned(pa, self.protected));
                if !self.protected {
                    memory::zero(pa, PAGE);
                }
            }
        }
        pages::give(self.ram.0, self.ram.1);
        for (pa, count) in inner.held.drain(..) {
            account.given += count;
            account.back += (0..count).filter(|n| returned(pa + n * PAGE, true)).count() as u64;
            pages::give(pa, count);
        }
        mailboxes.into_iter().for_each(|page| pages::give(page, 1));
        Ok(account)
    }
}

/// Whether the page is this host's again, and zero if it should be.
fn returned(pa: u64, scrubbed: bool) -> bool {
    crate::arch::entry::try_read(pa).is_ok() && (!scrubbed || memory::is_zero(pa))
}
