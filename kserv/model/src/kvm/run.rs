//! Before an entry of a vCPU, after its exit, and while it waits.
#![forbid(unsafe_code)]

use corevisor_interface::guest::psci;
use corevisor_interface::mailbox::{
    DIRECT_KICK, DIRECT_KICK_SGI_SHIFT, ENTRY_VFIQ, ENTRY_VIRQ, ExitReason, MAX_LIST_REGISTERS, Mailbox,
};

use super::{Errno, Kvm, NOT_DIRECT, State};
use crate::gic::GicVersion;
use crate::layout::{PTIMER_INTID, VTIMER_INTID};
use crate::mmio::Access;
use crate::passage::Passage;
use crate::psci::{PsciAction, result};
use crate::sysreg::{Register, SysregAccess};

/// Classes of exceptions: an instruction or a data access of a VM that has no memory there.
const CLASS_FETCH: u64 = 0x20;
/// Data abort: it was a write.
const ISS_WNR: u64 = 1 << 6;
/// First time after which a vCPU is made to exit whose virtual timer the core masks and user space's interrupt controller has, in ticks: the VM may
/// have set it anew without an exit.
const LOOK: u64 = 100_000;
/// SYSTEM_RESET2 in its 32-bit form.
const SYSTEM_RESET2_32: u64 = psci::SYSTEM_RESET2 & !(1 << 30);
/// KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2.
const RESET2: u64 = 1;

/// What a vCPU does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It runs again.
    Run,
    /// It waits until it is runnable, or until this time.
    Block(Option<u64>),
    /// An access that is not the interrupt controller's; [`Kvm::finish_access`] ends a load.
    Mmio(Access),
    /// Memory is missing.
    Fault {
        /// Page in the VM.
        gpa: u64,
        /// For a write.
        write: bool,
        /// For an instruction.
        fetch: bool,
    },
    /// It is off.
    Off,
    /// The VM switched itself off.
    Shutdown,
    /// It asked for a reset; by SYSTEM_RESET2 if this is 1.
    Reset(u64),
    /// The host powered it off.
    Stopped,
    /// It did what the core cannot serve: syndrome.
    Failed(u64),
    /// The translation service has commands to read ([`Kvm::next_for_its`]); then it runs again.
    Its,
}

impl Kvm {
    /// Whether the VM can run: KVM makes its interrupt controller ready at the first run.
    ///
    /// # Errors
    /// [`Errno::NoSuchDevice`] if it has no addresses, [`Errno::Busy`] if it is not initialised.
    pub fn first_run(&mut self) -> Result<(), Errno> {
        self.ready_gic()?;
        self.has_run = true;
        let direct = self.direct();
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.passage.direct = direct);
        Ok(())
    }

    /// Prepares an entry: right before VcpuRun. `false`: the vCPU is off and must not run.
    pub fn on_entry(&mut self, vcpu: usize, mailbox: &mut Mailbox, now: u64) -> bool {
        if !self.is_initialized(vcpu) || !self.psci.is_on(vcpu) {
            return false;
        }
        self.update_timers(vcpu, now);
        let count = self.list_registers();
        let one = &mut self.vcpus[vcpu];
        let mut flags = one.passage.entry_flags(now);
        (one.abortable, one.access, one.state) = (false, None, State::Running);
        if self.device.initialized {
            one.passage.fill(&mut self.gic.irqs, vcpu, mailbox, count);
        } else {
            (mailbox.lr_count, mailbox.vgic_hcr, mailbox.direct) = (0, 0, 0);
            let [irq, fiq] = one.lines;
            flags |= if irq { ENTRY_VIRQ } else { 0 } | if fiq { ENTRY_VFIQ } else { 0 };
        }
        mailbox.entry_flags = flags;
        true
    }

    /// The kick of `Mailbox::direct`, if the core may deliver by itself.
    fn direct(&self) -> Option<u64> {
        let here = self.machine.gic == 3 && self.device.is(GicVersion::V3) && self.device.initialized;
        (here && self.machine.direct != NOT_DIRECT)
            .then_some(self.machine.direct & (DIRECT_KICK | 15 << DIRECT_KICK_SGI_SHIFT))
    }

    fn list_registers(&self) -> usize {
        usize::try_from(self.machine.list_registers).unwrap_or(MAX_LIST_REGISTERS).min(MAX_LIST_REGISTERS)
    }

    /// VcpuRun failed after [`Kvm::on_entry`]: the vCPU did not run. What was due is due at the next entry.
    pub fn not_entered(&mut self, vcpu: usize, mailbox: &Mailbox) {
        if let Some(one) = self.vcpus.get_mut(vcpu).filter(|one| one.state == State::Running) {
            one.state = State::Ready;
            one.passage.refused(mailbox);
        }
    }

    /// Serves an exit: right after VcpuRun. Any content of the mailbox is served. The second value: vCPUs to kick.
    pub fn on_exit(&mut self, vcpu: usize, reason: ExitReason, mailbox: &mut Mailbox, now: u64) -> (Action, u32) {
        if !self.is_initialized(vcpu) {
            return (Action::Off, 0);
        }
        let count = self.list_registers();
        let one = &mut self.vcpus[vcpu];
        let irqs = self.device.initialized.then_some(&mut self.gic.irqs);
        one.passage.take_back(irqs, vcpu, mailbox, count, reason == ExitReason::Timer);
        one.passage.count(reason);
        one.state = State::Ready;
        self.update_timers(vcpu, now);
        self.psci.left(vcpu, reason, mailbox.x[0]);
        let action = self.serve(vcpu, reason, mailbox, now);
        if let Action::Block(until) = action {
            self.vcpus[vcpu].state = State::Blocked { until };
        }
        (action, self.take_kicks() & !(1 << vcpu))
    }

    /// Serves an exit that is nobody's business but this vCPU's, and prepares its next entry, both at once: it reads a timer or the interrupt controller, while no
    /// interrupt has any state and its timers are as they were and far away. `false`, and nothing has changed: the exit is for [`Kvm::on_exit`].
    pub fn answer(&mut self, vcpu: usize, reason: ExitReason, mailbox: &mut Mailbox, now: u64) -> bool {
        let quiet = self.device.initialized && self.kicks == 0 && self.gic.irqs.is_quiet(vcpu);
        let Some(one) = self.vcpus.get(vcpu).filter(|one| quiet && one.state == State::Running) else { return false };
        if !one.passage.is_as_before(mailbox, now) {
            return false;
        }
        match reason {
            ExitReason::Sysreg => {
                let access = SysregAccess::decode(mailbox);
                let timer = matches!(access.register, Register::CntpCtl | Register::CntpCval | Register::CntpTval);
                if access.write.is_some() || !timer {
                    return false;
                }
                access.finish(one.passage.physical_timer.read(access.register, now), mailbox);
            }
            ExitReason::MmioRead => {
                let Some(access) = Access::decode(reason, mailbox).filter(|access| access.write.is_none()) else {
                    return false;
                };
                let Some(value) = self.gic_access(vcpu, &access) else { return false };
                access.finish(value, mailbox);
            }
            _ => return false,
        }
        let one = &mut self.vcpus[vcpu];
        one.passage.count(reason);
        mailbox.entry_flags = one.passage.entry_flags(now);
        one.passage.fill_none(&mut self.gic.irqs, vcpu, mailbox);
        true
    }

    fn serve(&mut self, vcpu: usize, reason: ExitReason, mailbox: &mut Mailbox, now: u64) -> Action {
        match reason {
            ExitReason::Irq | ExitReason::Timer => Action::Run,
            ExitReason::Wfx => self.wait(vcpu, mailbox.esr & 3 == 0, now),
            ExitReason::MmioRead | ExitReason::MmioWrite => self.access(vcpu, reason, mailbox),
            ExitReason::MemoryFault => {
                self.vcpus[vcpu].abortable = true;
                let class = mailbox.esr >> 26 & 0x3f;
                // Of a fetch it is set only if its walk would write.
                let write = mailbox.esr & ISS_WNR != 0;
                Action::Fault { gpa: mailbox.ipa, write, fetch: class == CLASS_FETCH }
            }
            ExitReason::Psci => self.call(vcpu, mailbox, now),
            ExitReason::Sysreg => {
                self.sysreg(vcpu, mailbox, now);
                Action::Run
            }
            ExitReason::SystemOff => {
                self.all_off();
                match mailbox.x[0] & 0xffff_ffff {
                    psci::SYSTEM_OFF => Action::Shutdown,
                    psci::SYSTEM_RESET2 | SYSTEM_RESET2_32 => Action::Reset(RESET2),
                    _ => Action::Reset(0),
                }
            }
            ExitReason::Stopped => Action::Stopped,
            ExitReason::Failed => Action::Failed(mailbox.esr),
        }
    }

    /// WFI waits; WFE and the forms with a time-out only give way.
    fn wait(&mut self, vcpu: usize, interrupt: bool, now: u64) -> Action {
        if !interrupt || self.wakes(vcpu, now) {
            return Action::Run;
        }
        Action::Block(self.vcpus[vcpu].passage.deadline(now))
    }

    /// User space has changed the timers of a vCPU, which may be waiting for them.
    pub(super) fn wait_anew(&mut self, vcpu: usize, now: u64) {
        let Some(one) = self.vcpus.get_mut(vcpu) else { return };
        if let State::Blocked { until } = &mut one.state {
            *until = one.passage.deadline(now);
        }
    }

    /// A signal has ended a vCPU's wait, as any interrupt may: it goes on behind the instruction.
    pub fn end_wait(&mut self, vcpu: usize) {
        if let Some(one) = self.vcpus.get_mut(vcpu).filter(|one| matches!(one.state, State::Blocked { .. })) {
            one.state = State::Ready;
        }
    }

    /// Whether there is something that ends a vCPU's wait.
    fn wakes(&self, vcpu: usize, now: u64) -> bool {
        let one = &self.vcpus[vcpu];
        if self.device.initialized {
            self.gic.irqs.deliverable(vcpu, one.passage.mask)
        } else {
            one.lines != [false; 2]
                || one.passage.virtual_timer.asserted(now)
                || one.passage.physical_timer.asserted(now)
        }
    }

    fn access(&mut self, vcpu: usize, reason: ExitReason, mailbox: &mut Mailbox) -> Action {
        let Some(access) = Access::decode(reason, mailbox) else {
            self.vcpus[vcpu].passage.inject_abort = true;
            return Action::Run;
        };
        if let Some(value) = self.gic_access(vcpu, &access) {
            access.finish(value, mailbox);
            return if access.write.is_some() && self.next_for_its().is_some() { Action::Its } else { Action::Run };
        }
        let one = &mut self.vcpus[vcpu];
        (one.abortable, one.access) = (true, Some(access));
        Action::Mmio(access)
    }

    /// An access of a vCPU that the core showed as missing memory: `None` if it is not the interrupt controller's, 0 for a store.
    pub fn emulated_access(&mut self, vcpu: usize, access: &Access) -> Option<u64> {
        if self.is_initialized(vcpu) { self.gic_access(vcpu, access) } else { None }
    }

    /// Ends the load that user space served. Nothing happens if there is none.
    pub fn finish_access(&mut self, vcpu: usize, mailbox: &mut Mailbox, value: u64) {
        if let Some(access) = self.vcpus.get_mut(vcpu).and_then(|one| one.access.take()) {
            access.finish(value, mailbox);
        }
    }

    /// The access or fault of the last exit ends with an external abort. Nothing happens if there was none.
    pub fn abort(&mut self, vcpu: usize) {
        if let Some(one) = self.vcpus.get_mut(vcpu).filter(|one| one.abortable) {
            (one.passage.inject_abort, one.access) = (true, None);
        }
    }

    fn call(&mut self, vcpu: usize, mailbox: &mut Mailbox, now: u64) -> Action {
        let x = [mailbox.x[0], mailbox.x[1], mailbox.x[2], mailbox.x[3]];
        mailbox.x[0] = result::SUCCESS;
        match self.psci.call(vcpu, x) {
            PsciAction::Return(value) => mailbox.x[0] = value,
            PsciAction::Start(target) => {
                let cntvoff = self.cntvoff;
                if let Some(one) = self.vcpus.get_mut(target) {
                    one.reset();
                    one.passage.virtual_timer.set_offset(cntvoff);
                    self.update_timers(target, now);
                    self.kicks |= 1 << target;
                }
            }
            PsciAction::Off => return Action::Off,
            PsciAction::Suspend => return self.wait(vcpu, true, now),
        }
        Action::Run
    }

    fn sysreg(&mut self, vcpu: usize, mailbox: &mut Mailbox, now: u64) {
        let access = SysregAccess::decode(mailbox);
        let mut value = 0;
        match (access.register, access.write) {
            (sgi @ (Register::IccSgi1r | Register::IccAsgi1r | Register::IccSgi0r), Some(value))
                if self.device.is(GicVersion::V3) && self.device.initialized =>
            {
                self.gic.send_sgi(vcpu, sgi, value);
            }
            (timer @ (Register::CntpCtl | Register::CntpCval | Register::CntpTval), write) => {
                value = self.vcpus[vcpu].passage.timer_register(timer, write, now);
                self.update_timers(vcpu, now);
            }
            _ => self.unknown_registers = self.unknown_registers.wrapping_add(1),
        }
        access.finish(value, mailbox);
    }

    fn all_off(&mut self) {
        for vcpu in 0..self.count() {
            self.psci.set_on(vcpu, false);
            self.kicks |= 1 << vcpu;
        }
    }

    fn update_timers(&mut self, vcpu: usize, now: u64) {
        let Some(one) = self.vcpus.get(vcpu).filter(|_| self.device.initialized) else { return };
        let lines = one.passage.lines(now);
        self.gic.irqs.set_line(vcpu, VTIMER_INTID, lines[0]);
        self.gic.irqs.set_line(vcpu, PTIMER_INTID, lines[1]);
    }

    /// Whether a vCPU has something to do at `now`.
    pub fn runnable(&mut self, vcpu: usize, now: u64) -> bool {
        if !self.is_initialized(vcpu) || !self.psci.is_on(vcpu) {
            return false;
        }
        match self.vcpus[vcpu].state {
            State::Ready => true,
            State::Running => false,
            State::Blocked { until } => {
                self.update_timers(vcpu, now);
                let wakes = self.wakes(vcpu, now);
                // A timer whose interrupt the VM has disabled ends no wait; perhaps the other one will.
                if !wakes && until.is_some_and(|until| until <= now) {
                    let until = self.vcpus[vcpu].passage.deadline(now);
                    self.vcpus[vcpu].state = State::Blocked { until };
                }
                wakes
            }
        }
    }

    /// When a vCPU that waits must be looked at, if nothing else happens.
    pub fn block_until(&self, vcpu: usize) -> Option<u64> {
        match self.vcpus.get(vcpu)?.state {
            State::Blocked { until } => until,
            _ => None,
        }
    }

    /// When a vCPU that is about to run has to be made to exit, if nothing else does.
    pub fn run_until(&mut self, vcpu: usize, now: u64) -> Option<u64> {
        let in_kernel = self.device.initialized;
        let passage = &mut self.vcpus.get_mut(vcpu)?.passage;
        let look = match in_kernel {
            true => passage.virtual_timer.poll(now),
            false => passage.virtual_timer.asserted(now).then(|| now.saturating_add(LOOK)),
        };
        [look, passage.emulated_deadline(now)].into_iter().flatten().min()
    }

    /// Output of the timers, for an interrupt controller in user space: bit 0 virtual, bit 1 physical.
    pub fn irq_level(&self, vcpu: usize, now: u64) -> u32 {
        let Some(one) = self.vcpus.get(vcpu).filter(|_| !self.device.exists()) else { return 0 };
        let Passage { virtual_timer, physical_timer, .. } = &one.passage;
        u32::from(virtual_timer.asserted(now)) | u32::from(physical_timer.asserted(now)) << 1
    }
}
