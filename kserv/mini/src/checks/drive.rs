//! A VM of the configuration whose vCPUs are run by hand, without the host's model of a machine: each exit is served as far as tests/guests/src/bin/canary.rs and
//! sharer.rs need, from a mailbox in which anything may stand.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use corevisor_interface::calls::CallError;
use corevisor_interface::guest::psci;
use corevisor_interface::mailbox::{ExitReason, Mailbox, START_PSTATE};
use kserv_model::layout::{DTB_BASE, RAM_BASE, UART_BASE};

use super::{Context, ensure};
use crate::arch::cpu;
use crate::arch::entry::{try_read, try_write};
use crate::calls::{self, page_state};
use crate::guest::{Failure, Guest, Plan};
use crate::pages::PAGE;
use crate::session::plan;
use crate::sync::Mutex;
use crate::{demo, say, scheduler};

/// The page that guests show (tests/guests/src/arch.rs).
pub const SHARED: u64 = 0x400f_0000;
/// The serial port's flags; nothing was received. Its first register is for data.
const FLAGS: u64 = UART_BASE + 0x18;
const EMPTY: u64 = 1 << 4;
/// Parts of a second after which a vCPU leaves.
pub const RUN_FOR: u64 = 10_000;
/// A VM that leaves more often is lost.
const MOST_EXITS: u64 = 100_000;

/// The first protected VM of the configuration, ready to run.
///
/// # Errors
/// There is none, or it cannot be made.
pub fn protected_guest<'a>(context: &Context<'a>) -> Result<(Plan<'a>, Arc<Guest>), Failure> {
    let Some(vm) = context.wishes.vms.iter().find(|vm| vm.protected) else {
        return Err(Failure::Text("it needs a protected VM: --vm guest:NAME --protected".into()));
    };
    let plan = plan(vm, context.archive, false)?;
    let guest = Guest::make(&plan, context.info, scheduler::cpus_for(plan.vcpus))?;
    Ok((plan, guest))
}

/// The VM.
pub struct Driven {
    /// It.
    pub guest: Arc<Guest>,
    /// Where each vCPU's mailbox is.
    pub mailboxes: Vec<u64>,
    /// Where it was signed to start.
    pub entry: u64,
    /// vCPUs that are on, by bit.
    on: AtomicU64,
    /// Exits for each reason.
    pub exits: [AtomicU64; ExitReason::ALL.len()],
    line: Mutex<String>,
}

impl Driven {
    /// The first protected VM of the configuration, ready to run.
    ///
    /// # Errors
    /// There is none.
    pub fn new(context: &Context<'_>) -> Result<Self, Failure> {
        let (plan, guest) = protected_guest(context)?;
        let mailboxes = guest.mailboxes();
        let exits = [const { AtomicU64::new(0) }; ExitReason::ALL.len()];
        Ok(Self { guest, mailboxes, entry: plan.entry, on: AtomicU64::new(1), exits, line: Mutex::default() })
    }

    /// A word of a vCPU's mailbox, by its offset.
    pub fn word(&self, vcpu: usize, offset: usize) -> u64 {
        try_read(self.mailboxes[vcpu] + offset as u64).unwrap_or(0)
    }

    fn put(&self, vcpu: usize, offset: usize, word: u64) {
        let _ = try_write(self.mailboxes[vcpu] + offset as u64, word);
    }

    /// Register `n` of the mailbox.
    fn x(&self, vcpu: usize, n: usize) -> u64 {
        self.word(vcpu, offset_of!(Mailbox, x) + 8 * n)
    }

    fn put_x(&self, vcpu: usize, n: usize, word: u64) {
        self.put(vcpu, offset_of!(Mailbox, x) + 8 * n, word);
    }

    /// Whether a vCPU may run.
    pub fn is_on(&self, vcpu: usize) -> bool {
        self.on.load(SeqCst) >> vcpu & 1 != 0
    }

    /// Before a run: the mailbox asks for nothing special, and starts where it must.
    pub fn prepare(&self, vcpu: usize) {
        self.put(vcpu, offset_of!(Mailbox, entry_flags), 0);
        self.put(vcpu, offset_of!(Mailbox, lr_count), 0);
        self.put(vcpu, offset_of!(Mailbox, pc), self.entry);
        self.put(vcpu, offset_of!(Mailbox, pstate), START_PSTATE);
        self.put(vcpu, offset_of!(Mailbox, x0), DTB_BASE);
    }

    /// After a run: what the exit wants. Whether the VM has ended.
    ///
    /// # Errors
    /// It failed.
    pub fn serve(&self, vcpu: usize, exit: ExitReason) -> Result<bool, Failure> {
        self.exits[exit as usize].fetch_add(1, SeqCst);
        let all: u64 = self.exits.iter().map(|count| count.load(SeqCst)).sum();
        ensure(all < MOST_EXITS, "the VM does not come to its end")?;
        let (esr, ipa) = (self.word(vcpu, offset_of!(Mailbox, esr)), self.word(vcpu, offset_of!(Mailbox, ipa)));
        match exit {
            ExitReason::Irq | ExitReason::Timer | ExitReason::Wfx => {}
            ExitReason::MmioRead => self.put_x(vcpu, (esr >> 16 & 31) as usize, if ipa == FLAGS { EMPTY } else { 0 }),
            ExitReason::MmioWrite if ipa == UART_BASE => self.print(self.x(vcpu, (esr >> 16 & 31) as usize) as u8),
            ExitReason::MmioWrite => {}
            ExitReason::MemoryFault => self.map(ipa)?,
            ExitReason::Psci => self.switch(vcpu),
            ExitReason::Sysreg => self.put_x(vcpu, (esr >> 5 & 31) as usize, 0),
            ExitReason::SystemOff | ExitReason::Stopped => return Ok(true),
            ExitReason::Failed => return Err(Failure::Text(alloc::format!("the VM failed: ESR {esr:#x}"))),
        }
        Ok(false)
    }

    /// The page that the VM wants, if it can have it and does not already.
    fn map(&self, ipa: u64) -> Result<(), Failure> {
        let n = (ipa.wrapping_sub(RAM_BASE)) / PAGE;
        if n >= self.guest.ram.1 {
            return Ok(());
        }
        let (gpa, pa) = (RAM_BASE + n * PAGE, self.guest.ram.0 + n * PAGE);
        let mut inner = self.guest.inner();
        match self.guest.with_pool(&mut inner, "MapMemory", || calls::map_memory(self.guest.id, gpa, pa, 1, 0)) {
            Ok(_) => inner.model.mapped(gpa, 1),
            Err(Failure::Call(_, CallError::Occupied)) => {}
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    /// vCPUs are switched on and off; the core knows better, if the mailbox lies.
    fn switch(&self, vcpu: usize) {
        let (function, target) = (self.x(vcpu, 0), self.x(vcpu, 1));
        if function == psci::CPU_OFF {
            self.on.fetch_and(!(1 << vcpu), SeqCst);
        } else if function == psci::CPU_ON && target < self.mailboxes.len() as u64 {
            self.on.fetch_or(1 << target, SeqCst);
        }
        self.put_x(vcpu, 0, 0);
    }

    fn print(&self, byte: u8) {
        let mut line = self.line.lock();
        if byte == b'\n' {
            say!("{}: {line}", self.guest.name);
            line.clear();
        } else if byte.is_ascii_graphic() || byte == b' ' {
            line.push(byte.into());
        }
    }

    /// The words of the page that the VM shows, of which there must be one.
    ///
    /// # Errors
    /// It shows none: it found something that was not as it left it, and its line says what.
    pub fn verdict(&self) -> Result<[u64; 2], Failure> {
        let (state, pa) = calls::page_info(self.guest.id, SHARED).unwrap_or_default();
        ensure(state == page_state::SHARED, "the VM does not say that all was as it left it")?;
        let words = [pa, pa + 8].map(try_read);
        match words {
            [Ok(word), Ok(other)] => Ok([word, other]),
            _ => Err(Failure::Text("the page that the VM shows cannot be read".into())),
        }
    }

    /// Its exits by reason.
    pub fn said(&self) -> String {
        demo::exits_by(|reason| self.exits[reason as usize].load(SeqCst))
    }

    /// It is gone, with every page back.
    ///
    /// # Errors
    /// What the core refused, or pages that are missing.
    pub fn end(self) -> Result<u64, Failure> {
        self.guest.inner().console.clear();
        let account = self.guest.destroy()?;
        ensure(account.given == account.back, "not all pages came back")?;
        Ok(account.given)
    }
}

/// This CPU's next interrupt comes soon.
pub fn interrupt_in(ticks: u64) {
    cpu::set_deadline(Some(cpu::counter() + ticks));
}

/// Runs a vCPU once, for so many ticks at most, and takes what interrupts this CPU.
pub fn run_for(vm: u64, vcpu: u64, ticks: u64) -> Result<ExitReason, CallError> {
    interrupt_in(ticks);
    let exit = calls::vcpu_run(vm, vcpu);
    scheduler::run_for(0);
    exit
}

/// The same for so short a time that others soon have a turn.
pub fn run(vm: u64, vcpu: u64) -> Result<ExitReason, CallError> {
    run_for(vm, vcpu, cpu::frequency() / RUN_FOR)
}
