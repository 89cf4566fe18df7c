//! A VM and its vCPUs as the host sees them: what follows from an exit, and what an entry needs.
//!
//! | function            | does                                                                                              |
//! |---------------------|---------------------------------------------------------------------------------------------------|
//! | [`Vm::boot`]        | fills the mailbox for the first entry of vCPU 0                                                   |
//! | [`Vm::on_entry`]    | before VcpuRun: timers, list registers, flags into the mailbox                                    |
//! | [`Vm::on_exit`]     | after VcpuRun: takes the list registers back, serves the exit, says what the vCPU does next       |
//! | [`Vm::run_until`]   | when a vCPU that runs has to be made to exit                                                      |
//! | [`Vm::runnable`]    | whether a vCPU that waits has to go on                                                            |
//! | [`Vm::snapshot`], [`Vm::go_on`] | a VM that is stopped goes on as another one (module `moved`)                         |
//! | [`Vm::receive`], [`Vm::set_line`], [`Vm::pulse`] | the world outside: console input, devices                            |
//!
//! The caller holds one lock per VM around each call, but not while the vCPU runs. Every call gives a mask `kick` of vCPUs: the caller
//! wakes those that wait, starts those that were switched on, and makes those that run exit (by an interrupt to their CPU), so that their
//! list registers are made anew. Times are of the physical counter. Source: K §3.5; `corevisor_interface::mailbox`.
#![forbid(unsafe_code)]

use corevisor_interface::mailbox::{
    DIRECT_KICK, DIRECT_KICK_SGI_SHIFT, ExitReason, MAX_LIST_REGISTERS, Mailbox, START_PSTATE,
};

mod devices;
mod moved;

pub use crate::gic::{Gic, GicVersion};
use devices::{Console, device};
pub use moved::State;

use crate::gicv2::GicV2;
use crate::gicv3::GicV3;
use crate::layout::{GICD_BASE, PTIMER_INTID, UART_BASE, UART_INTID, UART_SIZE, VTIMER_INTID};
use crate::memory::{Fault, MapRequest, Memory};
use crate::mmio::{Access, Bus, Range};
use crate::passage::Passage;
use crate::pl011::Pl011;
use crate::psci::{Psci, PsciAction, result};
use crate::sysreg::{Register, SysregAccess};

/// Faults at one address without any progress until the access fails in the VM.
const MOST_REPEATS: u32 = 64;

const GIC_RANGE: Range = Range { base: GICD_BASE, size: UART_BASE - GICD_BASE };
const UART_RANGE: Range = Range { base: UART_BASE, size: UART_SIZE };

/// Why a VM ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It switched itself off.
    Off,
    /// It asked for a reset.
    Reset,
    /// Its last vCPU went off.
    AllOff,
    /// The host powered it off.
    Stopped,
    /// It did what the core cannot serve: ESR.
    Failed(u64),
}

/// What a vCPU does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It runs again.
    Run,
    /// It waits until it is kicked, or until this time.
    Block {
        /// When a timer of it fires.
        until: Option<u64>,
    },
    /// MapMemory with this, then [`Vm::mapped`] with the pages done; then it runs again. If the core says `NoMemory`, DonatePool first.
    Map(MapRequest),
    /// It is off until it is kicked.
    Off,
    /// The VM is at its end; all vCPUs leave.
    PowerOff(Ended),
}

/// What follows from a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// For the vCPU that exited.
    pub action: Action,
    /// Other vCPUs to wake, start or make exit: one bit each.
    pub kick: u32,
}

/// State of a vCPU, for the host's scheduler and status line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuState {
    /// Switched off.
    Off,
    /// It can run.
    Ready,
    /// It runs: between `on_entry` and `on_exit`.
    Running,
    /// It waits for an interrupt, or for a time.
    Blocked {
        /// When a timer of it fires.
        until: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Vcpu {
    state: VcpuState,
    passage: Passage,
    /// Lines of both timers, as the interrupt controller has them.
    lines: [bool; 2],
    /// They are what they are at this time.
    lines_at: u64,
    last_fault: u64,
    repeats: u32,
}

impl Vcpu {
    const OFF: Self = Self {
        state: VcpuState::Off,
        passage: Passage::NEW,
        lines: [false; 2],
        lines_at: 0,
        last_fault: u64::MAX,
        repeats: 0,
    };
}

/// A VM with up to `V` vCPUs and `S` SPIs.
#[derive(Debug)]
pub struct Vm<'a, const V: usize = 8, const S: usize = 64> {
    gic: Gic<V, S>,
    uart: Pl011,
    psci: Psci,
    memory: Memory<'a>,
    bus: Bus,
    vcpus: [Vcpu; V],
    count: usize,
    list_registers: usize,
    unknown_registers: u64,
    ended: Option<Ended>,
}

/// What [`Vm::on_exit`] is told.
struct Exit<'a> {
    vcpu: usize,
    reason: ExitReason,
    mailbox: &'a mut Mailbox,
    now: u64,
    send: &'a mut dyn FnMut(u8),
}

impl<'a, const V: usize, const S: usize> Vm<'a, V, S> {
    /// A VM of `vcpus` vCPUs (cut to what the interrupt controller can have) on a machine with so many list registers (CoreInfo x1).
    pub fn new(gic: GicVersion, vcpus: usize, list_registers: usize, memory: Memory<'a>) -> Self {
        let mut gic = match gic {
            GicVersion::V2 => Gic::V2(GicV2::new(vcpus)),
            GicVersion::V3 => Gic::V3(GicV3::new(vcpus)),
        };
        let count = gic.irqs().vcpus();
        let mut all = [Vcpu::OFF; V];
        all[0].state = VcpuState::Ready;
        Self {
            gic,
            uart: Pl011::new(),
            psci: Psci::new(count),
            memory,
            bus: Bus::new(),
            vcpus: all,
            count,
            list_registers: list_registers.min(MAX_LIST_REGISTERS),
            unknown_registers: 0,
            ended: None,
        }
    }

    /// The core may deliver private interrupts by itself, and interrupt the CPUs of running vCPUs by this machine's SGI `kick`: it has a higher priority
    /// than the machine's other interrupts, and the maintenance interrupt is enabled. Only with GICv3.
    pub fn let_core_deliver(&mut self, kick: u8) {
        if matches!(self.gic, Gic::V3(_)) {
            let kick = DIRECT_KICK | u64::from(kick & 15) << DIRECT_KICK_SGI_SHIFT;
            self.vcpus.iter_mut().for_each(|vcpu| vcpu.passage.direct = Some(kick));
        }
    }

    /// Number of vCPUs.
    pub const fn vcpus(&self) -> usize {
        self.count
    }

    /// Its memory.
    pub const fn memory(&mut self) -> &mut Memory<'a> {
        &mut self.memory
    }

    /// State of a vCPU; [`VcpuState::Off`] if there is none.
    pub fn state(&self, vcpu: usize) -> VcpuState {
        self.vcpus.get(vcpu).map_or(VcpuState::Off, |vcpu| vcpu.state)
    }

    /// Whether it has ended, and why.
    pub const fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Exits of all its vCPUs for this reason.
    pub fn exits(&self, reason: ExitReason) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.passage.exits(reason)).sum()
    }

    /// Accesses where no device is, and to registers that nobody serves.
    pub const fn unknown(&self) -> (u64, u64) {
        (self.bus.unknown, self.unknown_registers)
    }

    /// The mailbox for the first entry of vCPU 0.
    pub const fn boot(mailbox: &mut Mailbox, entry: u64, x0: u64) {
        mailbox.pc = entry;
        mailbox.pstate = START_PSTATE;
        mailbox.x0 = x0;
    }

    /// Prepares an entry: call it right before VcpuRun. `false`: the vCPU is off or the VM has ended, and must not run.
    pub fn on_entry(&mut self, vcpu: usize, mailbox: &mut Mailbox, now: u64) -> bool {
        if vcpu >= self.count || self.ended.is_some() || self.vcpus[vcpu].state == VcpuState::Off {
            return false;
        }
        // The exit before has looked already, if there was nothing between.
        if self.vcpus[vcpu].lines_at != now {
            self.update_timers(vcpu, now);
        }
        let one = &mut self.vcpus[vcpu];
        mailbox.entry_flags = one.passage.entry_flags(now);
        one.state = VcpuState::Running;
        one.passage.fill(self.gic.irqs(), vcpu, mailbox, self.list_registers);
        true
    }

    /// Serves an exit: call it right after VcpuRun. `send` gets what the VM writes to its console.
    ///
    /// Any content of the mailbox is served: what makes no sense reads as zero or is ignored.
    pub fn on_exit(
        &mut self,
        vcpu: usize,
        reason: ExitReason,
        mailbox: &mut Mailbox,
        now: u64,
        send: &mut dyn FnMut(u8),
    ) -> Decision {
        if vcpu >= self.count {
            return Decision { action: Action::Off, kick: 0 };
        }
        self.take_back(vcpu, mailbox, reason == ExitReason::Timer);
        let one = &mut self.vcpus[vcpu];
        one.passage.count(reason);
        if reason != ExitReason::MemoryFault {
            one.repeats = 0;
        }
        self.update_timers(vcpu, now);
        self.psci.left(vcpu, reason, mailbox.x[0]);
        let action = self.serve(Exit { vcpu, reason, mailbox, now, send });
        self.vcpus[vcpu].state = match action {
            Action::Run | Action::Map(_) => VcpuState::Ready,
            Action::Block { until } => VcpuState::Blocked { until },
            Action::Off | Action::PowerOff(_) => VcpuState::Off,
        };
        Decision { action, kick: self.kicks() & !(1 << vcpu) }
    }

    /// What every exit shows: list registers, timer.
    #[inline(always)]
    fn take_back(&mut self, vcpu: usize, mailbox: &Mailbox, timer_fired: bool) {
        let passage = &mut self.vcpus[vcpu].passage;
        passage.take_back(Some(self.gic.irqs()), vcpu, mailbox, self.list_registers, timer_fired);
    }

    fn serve(&mut self, exit: Exit<'_>) -> Action {
        let Exit { vcpu, reason, mailbox, now, send } = exit;
        if let Some(ended) = self.ended {
            return Action::PowerOff(ended);
        }
        match reason {
            ExitReason::Irq | ExitReason::Timer => Action::Run,
            ExitReason::Wfx => self.wait(vcpu, mailbox.esr & 3 == 0, now),
            ExitReason::MmioRead | ExitReason::MmioWrite => {
                self.mmio(vcpu, reason, mailbox, send);
                Action::Run
            }
            ExitReason::MemoryFault => self.fault(vcpu, mailbox),
            ExitReason::Psci => self.psci(vcpu, mailbox, now),
            ExitReason::Sysreg => {
                self.sysreg(vcpu, mailbox, now);
                Action::Run
            }
            ExitReason::SystemOff => {
                let off = mailbox.x[0] & 0xffff_ffff == corevisor_interface::guest::psci::SYSTEM_OFF;
                self.end(if off { Ended::Off } else { Ended::Reset })
            }
            ExitReason::Stopped => self.end(Ended::Stopped),
            ExitReason::Failed => self.end(Ended::Failed(mailbox.esr)),
        }
    }

    /// WFI waits; WFE and the forms with a time-out only give way.
    fn wait(&mut self, vcpu: usize, interrupt: bool, now: u64) -> Action {
        let mask = self.vcpus[vcpu].passage.mask;
        if !interrupt || self.gic.irqs().deliverable(vcpu, mask) {
            return Action::Run;
        }
        Action::Block { until: self.vcpus[vcpu].passage.deadline(now) }
    }

    fn mmio(&mut self, vcpu: usize, reason: ExitReason, mailbox: &mut Mailbox, send: &mut dyn FnMut(u8)) {
        let Some(access) = Access::decode(reason, mailbox) else {
            self.bus.miss(mailbox.ipa);
            self.vcpus[vcpu].passage.inject_abort = true;
            return;
        };
        let value = match GIC_RANGE.offset(access.address, access.width) {
            Some(offset) => device(&mut self.gic, vcpu, offset, &access),
            None => {
                // A copy, so that an access to the interrupt controller stays in registers.
                let (access, mut console) = (access, Console { port: &mut self.uart, send });
                let value = self.bus.dispatch(vcpu, &access, &mut [(UART_RANGE, &mut console)]);
                self.update_uart();
                value
            }
        };
        access.finish(value, mailbox);
    }

    fn fault(&mut self, vcpu: usize, mailbox: &Mailbox) -> Action {
        // Of a fetch it is set only if its walk would write.
        let write = mailbox.esr & 1 << 6 != 0;
        let one = &mut self.vcpus[vcpu];
        one.repeats = if one.last_fault == mailbox.ipa { one.repeats.saturating_add(1) } else { 0 };
        one.last_fault = mailbox.ipa;
        match self.memory.on_fault(mailbox.ipa, write) {
            Fault::Map(request) if one.repeats < MOST_REPEATS => return Action::Map(request),
            Fault::Mapped if one.repeats < MOST_REPEATS => {}
            Fault::Nothing => {
                self.bus.miss(mailbox.ipa);
                one.passage.inject_abort = true;
            }
            _ => one.passage.inject_abort = true,
        }
        Action::Run
    }

    fn psci(&mut self, vcpu: usize, mailbox: &mut Mailbox, now: u64) -> Action {
        let x = [mailbox.x[0], mailbox.x[1], mailbox.x[2], mailbox.x[3]];
        mailbox.x[0] = result::SUCCESS;
        match self.psci.call(vcpu, x) {
            PsciAction::Return(value) => mailbox.x[0] = value,
            PsciAction::Start(target) => {
                let Vcpu { mut passage, lines, .. } = self.vcpus[target];
                passage.restart();
                self.vcpus[target] = Vcpu { state: VcpuState::Ready, passage, lines, ..Vcpu::OFF };
                self.update_timers(target, now);
                self.gic.irqs().kick(target);
            }
            PsciAction::Off if self.psci.count() == 0 => return self.end(Ended::AllOff),
            PsciAction::Off => return Action::Off,
            PsciAction::Suspend => return self.wait(vcpu, true, now),
        }
        Action::Run
    }

    fn sysreg(&mut self, vcpu: usize, mailbox: &mut Mailbox, now: u64) {
        let access = SysregAccess::decode(mailbox);
        let mut value = 0;
        match (access.register, access.write, &mut self.gic) {
            (sgi @ (Register::IccSgi1r | Register::IccAsgi1r | Register::IccSgi0r), Some(value), Gic::V3(gic)) => {
                gic.send_sgi(vcpu, sgi, value);
            }
            (timer @ (Register::CntpCtl | Register::CntpCval | Register::CntpTval), write, _) => {
                value = self.vcpus[vcpu].passage.timer_register(timer, write, now);
                // A read changes nothing, and the exit has looked already.
                if write.is_some() {
                    self.update_timers(vcpu, now);
                }
            }
            _ => self.unknown_registers = self.unknown_registers.wrapping_add(1),
        }
        access.finish(value, mailbox);
    }

    fn end(&mut self, ended: Ended) -> Action {
        self.ended = Some(ended);
        for vcpu in 0..self.count {
            self.gic.irqs().kick(vcpu);
        }
        Action::PowerOff(ended)
    }

    #[inline(always)]
    fn update_timers(&mut self, vcpu: usize, now: u64) {
        let one = &mut self.vcpus[vcpu];
        let lines = one.passage.lines(now);
        one.lines_at = now;
        if lines != core::mem::replace(&mut one.lines, lines) {
            self.gic.irqs().set_line(vcpu, VTIMER_INTID, lines[0]);
            self.gic.irqs().set_line(vcpu, PTIMER_INTID, lines[1]);
        }
    }

    fn update_uart(&mut self) {
        let level = self.uart.asserted();
        self.gic.irqs().set_line(0, UART_INTID, level);
    }

    fn kicks(&mut self) -> u32 {
        self.gic.irqs().take_kicks()
    }

    /// When a vCPU that runs has to be made to exit, if nothing else does: call it at each entry. For its emulated physical timer, and for a
    /// virtual timer that the core masks ([`VirtualTimer::poll`]).
    pub fn run_until(&mut self, vcpu: usize, now: u64) -> Option<u64> {
        let passage = &mut self.vcpus.get_mut(vcpu)?.passage;
        [passage.virtual_timer.poll(now), passage.emulated_deadline(now)].into_iter().flatten().min()
    }

    /// Whether [`Vm::run_until`] would say a time, so that it has to be called before the vCPU goes on. Changes nothing.
    pub fn needs_deadline(&self, vcpu: usize, now: u64) -> bool {
        let needs = |passage: &Passage| passage.virtual_timer.is_polled() || passage.emulated_deadline(now).is_some();
        self.vcpus.get(vcpu).is_some_and(|one| needs(&one.passage))
    }

    /// Whether a vCPU has something to do at `now`: it is ready, or what it waits for is there.
    pub fn runnable(&mut self, vcpu: usize, now: u64) -> bool {
        if vcpu >= self.count || self.ended.is_some() {
            return false;
        }
        match self.vcpus[vcpu].state {
            VcpuState::Ready => true,
            VcpuState::Off | VcpuState::Running => false,
            VcpuState::Blocked { .. } => {
                self.update_timers(vcpu, now);
                let mask = self.vcpus[vcpu].passage.mask;
                self.gic.irqs().deliverable(vcpu, mask)
            }
        }
    }

    /// The core has mapped `pages` at `gpa`, after [`Action::Map`] or before the VM ran.
    pub fn mapped(&mut self, gpa: u64, pages: u64) {
        self.memory.mapped(gpa, pages);
    }

    /// Console input. How many bytes there was room for, and vCPUs to kick.
    pub fn receive(&mut self, bytes: &[u8]) -> (usize, u32) {
        let taken = bytes.len().min(self.uart.room());
        for byte in &bytes[..taken] {
            self.uart.receive(*byte);
        }
        self.update_uart();
        (taken, self.kicks())
    }

    /// The level of an SPI that a device of the caller's drives. vCPUs to kick.
    pub fn set_line(&mut self, intid: usize, level: bool) -> u32 {
        if intid >= crate::irq::PRIVATE {
            self.gic.irqs().set_line(0, intid, level);
        }
        self.kicks()
    }

    /// An edge on an SPI. vCPUs to kick.
    pub fn pulse(&mut self, intid: usize) -> u32 {
        if intid >= crate::irq::PRIVATE {
            self.gic.irqs().pulse(0, intid);
        }
        self.kicks()
    }
}
