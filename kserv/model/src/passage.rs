//! A vCPU's way into the VM and out of it: what both models of a VM ([`crate::vm`], [`crate::kvm`]) keep for it, and do alike.
//!
//! | function                    | does                                                                          |
//! |-----------------------------|-------------------------------------------------------------------------------|
//! | [`Passage::entry_flags`]    | the flags of an entry                                                         |
//! | [`Passage::fill`]           | the list registers of an entry                                                |
//! | [`Passage::take_back`]      | what every exit shows: list registers, timer                                  |
//! | [`Passage::is_as_before`]   | whether an exit shows nothing of all that                                     |
//! | [`Passage::refused`]        | the entry did not happen                                                      |
//! | [`Passage::deadline`]       | when a timer fires next                                                       |
//! | [`Passage::timer_register`] | a trapped access to the physical timer                                        |
//!
//! Times are of the physical counter. Source: K §3.5; `corevisor_interface::mailbox`.
#![forbid(unsafe_code)]

use corevisor_interface::mailbox::{ENTRY_INJECT_ABORT, ENTRY_TIMER_UNMASK, ExitReason, Mailbox};

use crate::irq::Engine;
use crate::layout::VTIMER_INTID;
use crate::sysreg::Register;
use crate::vtimer::{PhysicalTimer, VirtualTimer};

/// VMCR: the VM ends and deactivates interrupts apart.
const VMCR_EOIM: u64 = 1 << 9;
/// VMCR: the priority mask, 31:24; with GICv2 31:27, the others are zero.
const VMCR_PMR_SHIFT: u32 = 24;
/// MISR: an interrupt without list register ended.
const MISR_LRENP: u64 = 1 << 2;

/// What is kept of one vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    pub(crate) virtual_timer: VirtualTimer,
    pub(crate) physical_timer: PhysicalTimer,
    /// It deactivates interrupts apart from ending them.
    split_eoi: bool,
    /// It takes interrupts whose priority is below this.
    pub(crate) mask: u8,
    /// The access of its last exit ends with an abort.
    pub(crate) inject_abort: bool,
    /// If the core may deliver by itself what the interrupt controller lets it: its kick, as `Mailbox::direct` has it, or 0 without one.
    pub(crate) direct: Option<u64>,
    exits: [u64; ExitReason::ALL.len()],
}

impl Passage {
    /// It has not run yet.
    pub(crate) const NEW: Self = Self {
        virtual_timer: VirtualTimer::new(),
        physical_timer: PhysicalTimer::new(),
        split_eoi: false,
        mask: u8::MAX,
        inject_abort: false,
        direct: None,
        exits: [0; ExitReason::ALL.len()],
    };

    /// It starts anew; its exits were exits all the same.
    pub(crate) const fn restart(&mut self) {
        *self = Self { exits: self.exits, direct: self.direct, ..Self::NEW };
    }

    /// Exits for this reason.
    pub(crate) const fn exits(&self, reason: ExitReason) -> u64 {
        self.exits[reason as usize]
    }

    /// ENTRY_*: the abort that is due, and whether the timer may interrupt again.
    #[inline(always)]
    pub(crate) fn entry_flags(&mut self, now: u64) -> u64 {
        let abort = if core::mem::take(&mut self.inject_abort) { ENTRY_INJECT_ABORT } else { 0 };
        abort | if self.virtual_timer.asserted(now) { 0 } else { ENTRY_TIMER_UNMASK }
    }

    /// The list registers, of which the machine has `most`.
    #[inline(always)]
    pub(crate) fn fill<const V: usize, const S: usize>(
        &self,
        irqs: &mut Engine<V, S>,
        vcpu: usize,
        mailbox: &mut Mailbox,
        most: usize,
    ) {
        let filled = irqs.fill(vcpu, &mut mailbox.lr[..most], self.split_eoi);
        (mailbox.lr_count, mailbox.vgic_hcr) = (filled.count as u64, filled.hcr);
        // With something that waits for a list register, each end of an interrupt is to be heard of.
        mailbox.direct = match self.direct {
            Some(kick) if filled.hcr == 0 => kick | irqs.direct(vcpu),
            _ => 0,
        };
    }

    /// The list registers of an entry for which there is no interrupt ([`Engine::is_quiet`]).
    #[inline(always)]
    pub(crate) fn fill_none<const V: usize, const S: usize>(
        &self,
        irqs: &mut Engine<V, S>,
        vcpu: usize,
        mailbox: &mut Mailbox,
    ) {
        (mailbox.lr_count, mailbox.vgic_hcr) = (0, 0);
        mailbox.direct = self.direct.map_or(0, |kick| kick | irqs.direct(vcpu));
    }

    /// VcpuRun was refused: what stood in the mailbox is due at the next entry. List registers come back there by themselves.
    pub(crate) const fn refused(&mut self, mailbox: &Mailbox) {
        self.inject_abort |= mailbox.entry_flags & ENTRY_INJECT_ABORT != 0;
    }

    /// After an exit: list registers, if the interrupt controller is here, and timer, which has `fired` if that was the reason.
    #[inline(always)]
    pub(crate) fn take_back<const V: usize, const S: usize>(
        &mut self,
        irqs: Option<&mut Engine<V, S>>,
        vcpu: usize,
        mailbox: &Mailbox,
        most: usize,
        fired: bool,
    ) {
        let (mut timer_came, mut timer_ended) = (false, false);
        if let Some(irqs) = irqs {
            let ends = (mailbox.vgic_hcr >> 27 & 31).max(u64::from(mailbox.vgic_misr & MISR_LRENP != 0));
            // The core gives back as many as it got, and those that it has filled.
            let used = usize::try_from(mailbox.lr_count).unwrap_or(usize::MAX).min(most);
            timer_came = irqs.fold(vcpu, &mailbox.lr[..used], ends as u32);
            if mailbox.sgis != 0 {
                irqs.sent_to(vcpu, mailbox.sgis);
            }
            timer_ended = irqs.has_ended(vcpu, VTIMER_INTID);
        }
        self.note_interface(mailbox.vgic_vmcr);
        self.virtual_timer.observe(mailbox, fired || timer_came, timer_ended);
    }

    #[inline(always)]
    const fn interface(vmcr: u64) -> (bool, u8) {
        (vmcr & VMCR_EOIM != 0, (vmcr >> VMCR_PMR_SHIFT) as u8)
    }

    /// How its CPU interface is set.
    #[inline(always)]
    pub(crate) const fn note_interface(&mut self, vmcr: u64) {
        (self.split_eoi, self.mask) = Self::interface(vmcr);
    }

    /// Whether an exit shows no interrupt, and the timers as they were: neither one is due, or has to be looked at for any other reason.
    #[inline(always)]
    pub(crate) fn is_as_before(&self, mailbox: &Mailbox, now: u64) -> bool {
        let interrupts = mailbox.lr_count | mailbox.sgis | mailbox.vgic_hcr >> 27 & 31 | mailbox.vgic_misr & MISR_LRENP;
        let timer = &self.virtual_timer;
        interrupts == 0
            && (self.split_eoi, self.mask) == Self::interface(mailbox.vgic_vmcr)
            && timer.is_as_seen(mailbox)
            && !(timer.is_polled() || timer.asserted(now) || self.physical_timer.deadline().is_some())
    }

    /// One more exit for this reason.
    #[inline(always)]
    pub(crate) const fn count(&mut self, reason: ExitReason) {
        self.exits[reason as usize] = self.exits[reason as usize].wrapping_add(1);
    }

    /// Lines of the virtual and the physical timer to the interrupt controller.
    #[inline(always)]
    pub(crate) fn lines(&self, now: u64) -> [bool; 2] {
        [self.virtual_timer.line(now), self.physical_timer.asserted(now)]
    }

    /// When a timer fires after `now`, the earlier one.
    pub(crate) fn deadline(&self, now: u64) -> Option<u64> {
        let timers = [self.virtual_timer.deadline(), self.physical_timer.deadline()];
        timers.into_iter().flatten().filter(|deadline| *deadline > now).min()
    }

    /// When the physical timer, which the CPU does not have, fires after `now`.
    #[inline(always)]
    pub(crate) fn emulated_deadline(&self, now: u64) -> Option<u64> {
        self.physical_timer.deadline().filter(|deadline| *deadline > now)
    }

    /// An access to CNTP_*: what is read.
    pub(crate) fn timer_register(&mut self, register: Register, write: Option<u64>, now: u64) -> u64 {
        match write {
            Some(value) => self.physical_timer.write(register, value, now),
            None => return self.physical_timer.read(register, now),
        }
        0
    }
}
