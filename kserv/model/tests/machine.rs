//! A whole VM's host side: exits in, decisions out, as the core gives and takes them.
#![forbid(unsafe_code)]

use corevisor_interface::mailbox::{ENTRY_INJECT_ABORT, ENTRY_TIMER_UNMASK, ExitReason, Mailbox, START_PSTATE};
use kserv_model::irq::{Form, ListRegister};
use kserv_model::memory::{Chunk, MapRequest, Memory, Slot};
use kserv_model::random::Random;
use kserv_model::vm::{Action, Ended, GicVersion, VcpuState, Vm};

const RAM: u64 = 0x4000_0000;
const CPU_ON: u64 = 0xc400_0003;

/// VMCR with a priority mask that lets everything through.
const OPEN: Mailbox = Mailbox { vgic_vmcr: 0xf8 << 24, ..Mailbox::EMPTY };

fn vm(chunks: &mut [Chunk], gic: GicVersion, vcpus: usize) -> Vm<'_> {
    let mut memory = Memory::new(chunks);
    memory.add(Slot { gpa: RAM, size: 0x40_0000, pa: 0x8000_0000, read_only: false }).unwrap();
    Vm::new(gic, vcpus, 4, memory)
}

/// The VM under test with its mailboxes and what it printed.
struct Bench<'a> {
    vm: Vm<'a>,
    boxes: Vec<Mailbox>,
    printed: Vec<u8>,
    now: u64,
    form: Form,
}

impl<'a> Bench<'a> {
    fn new(chunks: &'a mut [Chunk], gic: GicVersion, vcpus: usize) -> Self {
        let form = if gic == GicVersion::V2 { Form::V2 } else { Form::V3 };
        Self { vm: vm(chunks, gic, vcpus), boxes: vec![OPEN; vcpus], printed: vec![], now: 1000, form }
    }

    fn enter(&mut self, vcpu: usize) -> bool {
        self.vm.on_entry(vcpu, &mut self.boxes[vcpu], self.now)
    }

    fn exit(&mut self, vcpu: usize, reason: ExitReason) -> (Action, u32) {
        let decision =
            self.vm.on_exit(vcpu, reason, &mut self.boxes[vcpu], self.now, &mut |byte| self.printed.push(byte));
        (decision.action, decision.kick)
    }

    /// A 32-bit store by the VM.
    fn store(&mut self, vcpu: usize, address: u64, value: u32) -> u32 {
        assert!(self.enter(vcpu));
        let mailbox = &mut self.boxes[vcpu];
        (mailbox.ipa, mailbox.esr, mailbox.x[3]) =
            (address, 0x24 << 26 | 1 << 24 | 2 << 22 | 3 << 16 | 1 << 6, value.into());
        let (action, kick) = self.exit(vcpu, ExitReason::MmioWrite);
        assert_eq!(action, Action::Run);
        kick
    }

    fn load(&mut self, vcpu: usize, address: u64) -> u64 {
        assert!(self.enter(vcpu));
        (self.boxes[vcpu].ipa, self.boxes[vcpu].esr) = (address, 0x24 << 26 | 1 << 24 | 2 << 22 | 3 << 16);
        self.exit(vcpu, ExitReason::MmioRead);
        self.boxes[vcpu].x[3]
    }

    fn lrs(&self, vcpu: usize) -> Vec<ListRegister> {
        let mailbox = &self.boxes[vcpu];
        mailbox.lr[..mailbox.lr_count as usize].iter().map(|lr| ListRegister::decode(self.form, *lr)).collect()
    }

    fn intids(&self, vcpu: usize) -> Vec<usize> {
        self.lrs(vcpu).iter().map(|lr| lr.intid).collect()
    }

    /// The VM does this with its first list register.
    fn change(&mut self, vcpu: usize, pending: bool, active: bool) {
        let lr = ListRegister { pending, active, ..self.lrs(vcpu)[0] };
        self.boxes[vcpu].lr[0] = lr.encode(self.form);
    }

    /// Interrupts on, as Linux does.
    fn set_up_gic(&mut self) {
        for vcpu in 0..self.vm.vcpus() {
            match self.form {
                Form::V2 => self.store(vcpu, 0x0800_0100, 0x4800_ffff),
                Form::V3 => self.store(0, 0x080a_0000 + vcpu as u64 * 0x2_0000 + 0x1_0100, 0x4800_ffff),
            };
            if self.form == Form::V2 {
                break;
            }
        }
        self.store(0, 0x0800_0000, 0x13);
        self.store(0, 0x0800_0104, 1 << 1);
        if self.form == Form::V2 {
            self.store(0, 0x0800_0820, 0x0101_0101);
        }
    }
}

#[test]
fn the_first_entry_is_where_the_mailbox_says_and_others_wait_for_psci() {
    let mut chunks = [Chunk::EMPTY; 2];
    let mut bench = Bench::new(&mut chunks, GicVersion::V3, 2);
    Vm::<8, 64>::boot(&mut bench.boxes[0], 0x4020_0000, RAM);
    assert!(bench.enter(0) && !bench.enter(1));
    let mailbox = &bench.boxes[0];
    assert_eq!((mailbox.pc, mailbox.pstate, mailbox.x0), (0x4020_0000, START_PSTATE, RAM));
    bench.boxes[0].x[..4].copy_from_slice(&[CPU_ON, 1, 0x4020_0000, 7]);
    assert_eq!(bench.exit(0, ExitReason::Psci), (Action::Run, 0b10));
    assert_eq!(bench.boxes[0].x[0], 0);
    assert!(bench.vm.state(1) == VcpuState::Ready && bench.enter(1));
    bench.boxes[1].x[0] = 0x8400_0002;
    assert_eq!(bench.exit(1, ExitReason::Psci), (Action::Off, 0));
    assert!(!bench.enter(1));
    assert!(bench.enter(0));
    bench.boxes[0].x[0] = 0x8400_0002;
    assert_eq!(bench.exit(0, ExitReason::Psci).0, Action::PowerOff(Ended::AllOff));
}

#[test]
fn a_fault_is_a_block_then_nothing_and_elsewhere_an_abort() {
    let mut chunks = [Chunk::EMPTY; 2];
    let mut bench = Bench::new(&mut chunks, GicVersion::V2, 1);
    assert!(bench.enter(0));
    bench.boxes[0].ipa = RAM + 0x20_1000;
    let request = MapRequest { gpa: RAM + 0x20_0000, pa: 0x8020_0000, pages: 512, flags: 0 };
    assert_eq!(bench.exit(0, ExitReason::MemoryFault), (Action::Map(request), 0));
    bench.vm.mapped(request.gpa, 512);
    assert!(bench.enter(0));
    assert_eq!(bench.exit(0, ExitReason::MemoryFault).0, Action::Run);
    assert!(bench.enter(0) && bench.boxes[0].entry_flags & ENTRY_INJECT_ABORT == 0);
    bench.boxes[0].ipa = RAM + 0x40_0000;
    assert_eq!(bench.exit(0, ExitReason::MemoryFault).0, Action::Run);
    assert!(bench.enter(0) && bench.boxes[0].entry_flags & ENTRY_INJECT_ABORT != 0);
    bench.exit(0, ExitReason::Irq);
    assert!(bench.enter(0) && bench.boxes[0].entry_flags & ENTRY_INJECT_ABORT == 0);
    // A fault that no mapping ends is an abort some time.
    let mut aborted = false;
    for _ in 0..100 {
        bench.boxes[0].ipa = request.gpa;
        bench.exit(0, ExitReason::MemoryFault);
        aborted |= bench.enter(0) && bench.boxes[0].entry_flags & ENTRY_INJECT_ABORT != 0;
    }
    assert!(aborted);
}

#[test]
fn the_virtual_timer_interrupts_once_for_each_time_it_fires() {
    for gic in [GicVersion::V2, GicVersion::V3] {
        let mut chunks = [Chunk::EMPTY; 2];
        let mut bench = Bench::new(&mut chunks, gic, 1);
        bench.set_up_gic();
        assert!(bench.enter(0) && bench.boxes[0].entry_flags & ENTRY_TIMER_UNMASK != 0);
        // It is set, and the VM waits.
        (bench.boxes[0].cntv_ctl, bench.boxes[0].cntv_cval, bench.boxes[0].cntvoff) = (1, 500, 1000);
        assert_eq!(bench.exit(0, ExitReason::Wfx), (Action::Block { until: Some(1500) }, 0));
        assert!(!bench.vm.runnable(0, 1499) && bench.vm.runnable(0, 1500));
        bench.now = 1500;
        assert!(bench.enter(0));
        // Masked at the CPU until its condition is gone; its end is an exit.
        assert_eq!(bench.boxes[0].entry_flags & ENTRY_TIMER_UNMASK, 0);
        let lr = bench.lrs(0)[0];
        assert_eq!((lr.intid, lr.pending, lr.active, lr.eoi), (27, true, false, true));
        // Acknowledged, and the timer set anew before an exit for another reason: it may fire again.
        bench.change(0, false, true);
        bench.boxes[0].cntv_cval = 900;
        bench.exit(0, ExitReason::Irq);
        assert!(bench.enter(0));
        assert_ne!(bench.boxes[0].entry_flags & ENTRY_TIMER_UNMASK, 0);
        let lr = bench.lrs(0)[0];
        assert_eq!((lr.intid, lr.pending, lr.active, lr.eoi), (27, false, true, false));
        // Fires while it is still active: pending again only after its end.
        bench.now = 1900;
        assert_eq!(bench.exit(0, ExitReason::Timer).0, Action::Run);
        assert!(bench.enter(0));
        let lr = bench.lrs(0)[0];
        assert_eq!((lr.pending, lr.active, lr.eoi), (false, true, true));
        bench.change(0, false, false);
        bench.exit(0, ExitReason::Irq);
        assert!(bench.enter(0));
        assert_eq!((bench.lrs(0)[0].pending, bench.lrs(0)[0].active), (true, false));
        // The VM masks it.
        bench.change(0, false, false);
        bench.boxes[0].cntv_ctl = 3;
        bench.exit(0, ExitReason::Irq);
        assert!(bench.enter(0) && bench.boxes[0].lr_count == 0);
        assert_ne!(bench.boxes[0].entry_flags & ENTRY_TIMER_UNMASK, 0);
    }
}

#[test]
fn a_handler_that_masks_the_timer_is_not_interrupted_for_ever() {
    let mut chunks = [Chunk::EMPTY; 2];
    let mut bench = Bench::new(&mut chunks, GicVersion::V3, 1);
    bench.set_up_gic();
    assert!(bench.enter(0));
    (bench.boxes[0].cntv_ctl, bench.boxes[0].cntv_cval) = (1 | 4, 500);
    bench.exit(0, ExitReason::Timer);
    assert!(bench.enter(0) && bench.intids(0) == [27] && bench.boxes[0].entry_flags & ENTRY_TIMER_UNMASK == 0);
    // The VM masks it, which the core cannot tell from its own mask, and ends the interrupt. That may have been one from before the
    // timer fired, so it gets another.
    bench.change(0, false, false);
    bench.exit(0, ExitReason::Irq);
    assert!(bench.enter(0) && bench.intids(0) == [27]);
    bench.change(0, false, false);
    bench.exit(0, ExitReason::Irq);
    assert!(bench.enter(0) && bench.boxes[0].lr_count == 0);
    assert_eq!(bench.boxes[0].entry_flags & ENTRY_TIMER_UNMASK, 0, "its own mask would be lost");
    assert!(bench.vm.run_until(0, bench.now).is_some_and(|until| until > bench.now));
    // It unmasks it.
    bench.exit(0, ExitReason::Timer);
    assert!(bench.enter(0) && bench.intids(0) == [27] && bench.vm.run_until(0, bench.now).is_none());
    // It sets it anew, and ends the interrupt.
    bench.change(0, false, false);
    (bench.boxes[0].cntv_ctl, bench.boxes[0].cntv_cval) = (1, 5000);
    bench.exit(0, ExitReason::Irq);
    assert!(bench.enter(0) && bench.boxes[0].entry_flags & ENTRY_TIMER_UNMASK != 0);
}

#[test]
fn the_physical_timer_works_by_its_trapped_registers() {
    let mut chunks = [Chunk::EMPTY; 2];
    let mut bench = Bench::new(&mut chunks, GicVersion::V3, 1);
    bench.set_up_gic();
    let sysreg = |op2: u64, read: u64| 0x18 << 26 | 3 << 20 | op2 << 17 | 3 << 14 | 14 << 10 | 2 << 1 | 4 << 5 | read;
    for (op2, value) in [(0, 100u64), (1, 1)] {
        assert!(bench.enter(0));
        (bench.boxes[0].esr, bench.boxes[0].x[4]) = (sysreg(op2, 0), value);
        assert_eq!(bench.exit(0, ExitReason::Sysreg).0, Action::Run);
    }
    assert!(bench.enter(0));
    bench.boxes[0].esr = 0;
    assert_eq!(bench.exit(0, ExitReason::Wfx).0, Action::Block { until: Some(1100) });
    assert_eq!((bench.vm.run_until(0, 1099), bench.vm.run_until(0, 1100)), (Some(1100), None));
    bench.now = 1100;
    assert!(bench.vm.runnable(0, bench.now) && bench.enter(0));
    assert_eq!(bench.intids(0), [30]);
    bench.boxes[0].esr = sysreg(1, 1);
    bench.exit(0, ExitReason::Sysreg);
    assert_eq!(bench.boxes[0].x[4], 5);
    assert!(bench.enter(0));
    (bench.boxes[0].esr, bench.boxes[0].x[4]) = (sysreg(1, 0), 3);
    bench.exit(0, ExitReason::Sysreg);
    assert!(bench.enter(0) && bench.boxes[0].lr_count == 0);
}

#[test]
fn a_timer_whose_interrupt_is_off_wakes_nobody() {
    let mut chunks = [Chunk::EMPTY; 2];
    let mut bench = Bench::new(&mut chunks, GicVersion::V2, 1);
    assert!(bench.enter(0));
    (bench.boxes[0].cntv_ctl, bench.boxes[0].cntv_cval, bench.now) = (1, 500, 500);
    assert_eq!(bench.exit(0, ExitReason::Wfx).0, Action::Block { until: None });
    // WFE only gives way.
    assert!(bench.enter(0));
    bench.boxes[0].esr = 1;
    assert_eq!(bench.exit(0, ExitReason::Wfx).0, Action::Run);
}

#[test]
fn the_console_prints_hears_and_interrupts() {
    for gic in [GicVersion::V2, GicVersion::V3] {
        let mut chunks = [Chunk::EMPTY; 2];
        let mut bench = Bench::new(&mut chunks, gic, 2);
        bench.set_up_gic();
        for byte in *b"hello" {
            bench.store(0, 0x0900_0000, byte.into());
        }
        assert_eq!(bench.printed, b"hello");
        bench.store(0, 0x0900_0038, 1 << 4);
        assert_eq!(bench.vm.receive(b"a"), (1, 1));
        assert!(bench.enter(0));
        assert_eq!(bench.intids(0), [33]);
        bench.change(0, false, true);
        bench.exit(0, ExitReason::Irq);
        assert_eq!(bench.load(0, 0x0900_0000), u64::from(b'a'));
        assert!(bench.enter(0) && !bench.lrs(0)[0].eoi);
        bench.change(0, false, false);
        bench.exit(0, ExitReason::Irq);
        assert!(bench.enter(0) && bench.boxes[0].lr_count == 0);
        assert_eq!(bench.vm.receive(&[b'x'; 1000]).0, 256);
    }
}

#[test]
fn an_sgi_wakes_the_vcpu_that_waits() {
    for gic in [GicVersion::V2, GicVersion::V3] {
        let mut chunks = [Chunk::EMPTY; 2];
        let mut bench = Bench::new(&mut chunks, gic, 2);
        bench.set_up_gic();
        assert!(bench.enter(0));
        bench.boxes[0].x[..2].copy_from_slice(&[CPU_ON, 1]);
        bench.exit(0, ExitReason::Psci);
        assert!(bench.enter(1));
        bench.boxes[1].esr = 0;
        assert_eq!(bench.exit(1, ExitReason::Wfx).0, Action::Block { until: None });
        assert!(!bench.vm.runnable(1, u64::MAX));
        let kick = match gic {
            GicVersion::V2 => bench.store(0, 0x0800_0f00, 1 << 24 | 2),
            GicVersion::V3 => {
                assert!(bench.enter(0));
                (bench.boxes[0].esr, bench.boxes[0].x[0]) = (0x623a_3016, 2 << 24 | 2);
                bench.exit(0, ExitReason::Sysreg).1
            }
        };
        assert_eq!(kick, 0b10);
        assert!(bench.vm.runnable(1, 0) && bench.enter(1));
        assert_eq!(bench.intids(1), [2]);
    }
}

#[test]
fn a_vm_that_ends_kicks_all_its_vcpus_and_none_runs_again() {
    for (reason, function, ended) in [
        (ExitReason::SystemOff, 0x8400_0008, Ended::Off),
        (ExitReason::SystemOff, 0x8400_0009, Ended::Reset),
        (ExitReason::Stopped, 0, Ended::Stopped),
        (ExitReason::Failed, 0, Ended::Failed(0x2f << 26)),
    ] {
        let mut chunks = [Chunk::EMPTY; 2];
        let mut bench = Bench::new(&mut chunks, GicVersion::V3, 4);
        assert!(bench.enter(0));
        (bench.boxes[0].x[0], bench.boxes[0].esr) = (function, 0x2f << 26);
        assert_eq!(bench.exit(0, reason), (Action::PowerOff(ended), 0b1110));
        assert!((0..4).all(|vcpu| !bench.enter(vcpu) && !bench.vm.runnable(vcpu, u64::MAX)));
        assert_eq!(bench.exit(1, ExitReason::Irq).0, Action::PowerOff(ended));
        assert_eq!(bench.vm.ended(), Some(ended));
    }
}

#[test]
fn what_is_nowhere_reads_as_zero_and_is_counted() {
    let mut chunks = [Chunk::EMPTY; 2];
    let mut bench = Bench::new(&mut chunks, GicVersion::V2, 1);
    bench.boxes[0].x[3] = 7;
    assert_eq!(bench.load(0, 0x0a00_0000), 0);
    bench.store(0, 0x1000, 1);
    assert!(bench.enter(0));
    (bench.boxes[0].esr, bench.boxes[0].x[4]) = (4 << 5 | 1, 9);
    bench.exit(0, ExitReason::Sysreg);
    assert_eq!((bench.boxes[0].x[4], bench.vm.unknown()), (0, (2, 1)));
}

#[test]
fn no_mailbox_makes_the_model_panic() {
    let reasons = ExitReason::ALL;
    for gic in [GicVersion::V2, GicVersion::V3] {
        let mut rng = Random::new(11);
        for _ in 0..200 {
            let mut chunks = [Chunk::EMPTY; 2];
            let mut bench = Bench::new(&mut chunks, gic, 3);
            bench.set_up_gic();
            for _ in 0..400 {
                let vcpu = rng.below(3) as usize;
                let mailbox = &mut bench.boxes[vcpu];
                for at in 0..32 {
                    mailbox.x[at] = rng.next() >> rng.below(64);
                }
                mailbox.x[0] = rng.pick(&[CPU_ON, 0x8400_0002, 0xc400_0001, 0xc400_0004, mailbox.x[0]]);
                mailbox.x[1] = rng.pick(&[0, 1, 2, 3, mailbox.x[1]]);
                mailbox.esr = rng.next() >> rng.below(64) | rng.pick(&[0, 1 << 24]);
                let anywhere = rng.next();
                let base = rng.pick(&[0x0800_0000, 0x080a_0000, 0x0900_0000, RAM, anywhere]);
                mailbox.ipa = base.wrapping_add(rng.below(0x5_0000));
                for at in 0..16 {
                    if rng.below(8) == 0 {
                        mailbox.lr[at] = rng.next();
                    }
                }
                (mailbox.lr_count, mailbox.vgic_hcr) = (rng.next(), rng.next());
                (mailbox.vgic_vmcr, mailbox.vgic_misr) = (rng.next(), rng.next());
                (mailbox.cntv_ctl, mailbox.cntv_cval, mailbox.cntvoff) = (rng.below(8), rng.next(), rng.next());
                bench.now = rng.next();
                // The VM's end would end the test.
                let most = if rng.below(100) == 0 { 11 } else { 8 };
                let reason = rng.pick(&reasons[..most]);
                if let (Action::Map(request), _) = bench.exit(vcpu, reason) {
                    bench.vm.mapped(request.gpa, rng.below(request.pages + 1));
                }
                bench.vm.runnable(vcpu, bench.now);
                bench.enter(vcpu);
                assert!(bench.boxes[vcpu].lr_count <= 4 || bench.vm.state(vcpu) == VcpuState::Off);
            }
        }
    }
}
