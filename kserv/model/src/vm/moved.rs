//! A VM that is stopped in the middle of its work, and goes on as another one: after a snapshot.
//!
//! | function             | does                                                                                          |
//! |----------------------|-----------------------------------------------------------------------------------------------|
//! | [`Vm::on_stop`]      | after VcpuRun, if the host stopped the VM: takes the list registers back; nothing is served   |
//! | [`Vm::on_refusal`]   | VcpuRun did not run the vCPU: what `on_entry` did for it is undone                            |
//! | [`Vm::snapshot`]      | interrupt controller, timers, serial port, PSCI, vCPUs: all but the memory                    |
//! | [`Vm::go_on`]        | a VM with other memory takes all that, and goes on                                            |
//!
//! Beside this the VM needs its memory, its registers and its mailboxes, which say what the last exits are answered.
#![forbid(unsafe_code)]

use corevisor_interface::mailbox::Mailbox;

use super::{Gic, Vcpu, VcpuState, Vm};
use crate::mmio::Bus;
use crate::pl011::Pl011;
use crate::psci::Psci;

/// What a VM is at a moment, but for its memory.
#[derive(Clone, Debug)]
pub struct State<const V: usize = 8, const S: usize = 64> {
    gic: Gic<V, S>,
    uart: Pl011,
    psci: Psci,
    bus: Bus,
    vcpus: [Vcpu; V],
    count: usize,
    unknown_registers: u64,
}

impl<const V: usize, const S: usize> State<V, S> {
    /// Number of vCPUs.
    pub const fn vcpus(&self) -> usize {
        self.count
    }
}

impl<const V: usize, const S: usize> Vm<'_, V, S> {
    /// The vCPU left because the host stopped the VM: list registers and timer are taken back as at every exit. It would run on.
    pub fn on_stop(&mut self, vcpu: usize, mailbox: &Mailbox, now: u64) {
        if vcpu >= self.count {
            return;
        }
        self.take_back(vcpu, mailbox, false);
        self.update_timers(vcpu, now);
        self.ready_again(vcpu);
    }

    /// VcpuRun was refused after `on_entry`.
    pub fn on_refusal(&mut self, vcpu: usize, mailbox: &Mailbox) {
        if vcpu >= self.count {
            return;
        }
        // What is in list registers comes back at the next `on_entry`.
        self.vcpus[vcpu].passage.refused(mailbox);
        self.ready_again(vcpu);
    }

    fn ready_again(&mut self, vcpu: usize) {
        let state = &mut self.vcpus[vcpu].state;
        if *state == VcpuState::Running {
            *state = VcpuState::Ready;
        }
    }

    /// How it is now. No vCPU runs.
    pub fn snapshot(&self) -> State<V, S> {
        State {
            gic: self.gic.clone(),
            uart: self.uart.clone(),
            psci: self.psci,
            bus: self.bus,
            vcpus: self.vcpus,
            count: self.count,
            unknown_registers: self.unknown_registers,
        }
    }

    /// Goes on as the VM went that `state` is of. `false` if it has another interrupt controller or another number of vCPUs: nothing has changed then.
    pub fn go_on(&mut self, state: &State<V, S>) -> bool {
        let same = matches!((&self.gic, &state.gic), (Gic::V2(_), Gic::V2(_)) | (Gic::V3(_), Gic::V3(_)));
        if !same || self.count != state.count {
            return false;
        }
        self.gic.clone_from(&state.gic);
        self.uart.clone_from(&state.uart);
        (self.psci, self.bus, self.vcpus) = (state.psci, state.bus, state.vcpus);
        (self.unknown_registers, self.ended) = (state.unknown_registers, None);
        // Whose timer fired meanwhile is found out at the first look.
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.lines_at = 0);
        (0..self.count).for_each(|vcpu| self.ready_again(vcpu));
        true
    }
}

#[cfg(test)]
mod tests {
    use corevisor_interface::mailbox::{ENTRY_INJECT_ABORT, ExitReason};

    use super::*;
    use crate::gic::GicVersion;
    use crate::irq::{Form, ListRegister};
    use crate::layout::{GICD_BASE, UART_BASE, UART_INTID};
    use crate::memory::Memory;

    const NOW: u64 = 1000;

    fn vm<'a>(gic: GicVersion) -> Vm<'a, 4, 64> {
        Vm::new(gic, 2, 4, Memory::new(&mut []))
    }

    fn store(vm: &mut Vm<'_, 4, 64>, mailbox: &mut Mailbox, address: u64, value: u64) {
        assert!(vm.on_entry(0, mailbox, NOW));
        // A word from x1.
        (mailbox.esr, mailbox.ipa, mailbox.x[1]) = (0x24 << 26 | 1 << 24 | 2 << 22 | 1 << 16 | 1 << 6, address, value);
        vm.on_exit(0, ExitReason::MmioWrite, mailbox, NOW, &mut |_| ());
    }

    /// The serial port's interrupt is on and waits; the vCPU is stopped with it in a list register, acknowledged or not.
    fn stopped(gic: GicVersion, active: bool) -> (Vm<'static, 4, 64>, Mailbox) {
        let (mut vm, mut mailbox) = (vm(gic), Mailbox::EMPTY);
        let form = if gic == GicVersion::V2 { Form::V2 } else { Form::V3 };
        store(&mut vm, &mut mailbox, GICD_BASE, 3);
        store(&mut vm, &mut mailbox, GICD_BASE + 0x104, 1 << (UART_INTID - 32));
        store(&mut vm, &mut mailbox, GICD_BASE + 0x800 + UART_INTID as u64 / 4 * 4, 1 << (8 * (UART_INTID % 4)));
        store(&mut vm, &mut mailbox, UART_BASE + 0x38, 1 << 4);
        assert_eq!(vm.receive(b"x").0, 1);
        assert!(vm.on_entry(0, &mut mailbox, NOW) && mailbox.lr_count == 1);
        let mut register = ListRegister::decode(form, mailbox.lr[0]);
        assert!(register.intid == UART_INTID && register.pending);
        (register.active, register.pending) = (active, !active);
        mailbox.lr[0] = register.encode(form);
        vm.on_stop(0, &mailbox, NOW);
        (vm, mailbox)
    }

    #[test]
    fn a_vm_that_goes_on_has_the_interrupts_that_it_had() {
        for gic in [GicVersion::V2, GicVersion::V3] {
            for active in [false, true] {
                let (old, mut mailbox) = stopped(gic, active);
                let mut new = vm(gic);
                assert!(new.go_on(&old.snapshot()));
                assert!(new.on_entry(0, &mut mailbox, 2 * NOW));
                let form = if gic == GicVersion::V2 { Form::V2 } else { Form::V3 };
                let register = ListRegister::decode(form, mailbox.lr[0]);
                assert_eq!((mailbox.lr_count, register.intid), (1, UART_INTID));
                assert_eq!((register.active, register.pending), (active, !active));
                // And what the serial port had for it.
                assert_eq!(new.snapshot().uart.clone().read(0), u32::from(b'x'));
            }
        }
    }

    #[test]
    fn an_entry_that_was_refused_happens_later() {
        let (mut vm, mut mailbox) = (vm(GicVersion::V3), Mailbox::EMPTY);
        assert!(vm.on_entry(0, &mut mailbox, NOW));
        // A fetch from nowhere.
        (mailbox.esr, mailbox.ipa) = (0x20 << 26, 0x1000);
        vm.on_exit(0, ExitReason::MemoryFault, &mut mailbox, NOW, &mut |_| ());
        assert!(vm.on_entry(0, &mut mailbox, NOW));
        assert_eq!(mailbox.entry_flags & ENTRY_INJECT_ABORT, ENTRY_INJECT_ABORT);
        vm.on_refusal(0, &mailbox);
        assert_eq!(vm.state(0), VcpuState::Ready);
        assert!(vm.on_entry(0, &mut mailbox, NOW));
        assert_eq!(mailbox.entry_flags & ENTRY_INJECT_ABORT, ENTRY_INJECT_ABORT);
    }

    #[test]
    fn another_kind_of_vm_does_not_go_on() {
        let (old, _) = stopped(GicVersion::V2, false);
        assert!(!vm(GicVersion::V3).go_on(&old.snapshot()));
        assert!(!Vm::<4, 64>::new(GicVersion::V2, 1, 4, Memory::new(&mut [])).go_on(&old.snapshot()));
    }
}
