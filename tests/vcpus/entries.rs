//! How a vCPU starts and goes on: what of the mailbox is taken, and when.

use std::sync::{Arc, Mutex};

use crate::bench::{Bench, ENTRY, TREE, random_trap, view, word_of};
use crate::common::vms::{Host, PAGE, TestManifest, image, key};
use corevisor::abstract_machine::addr::{Pa, Pfn, VmId};
use corevisor::abstract_machine::shadow::{BankReg, Context};
use corevisor::abstract_machine::sim::run_as;
use corevisor::abstract_machine::sim::worlds::Switch;
use corevisor::abstract_machine::{ExitCode, Machine, VirtualLines, Worlds};
use corevisor::interface::calls::{VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::guest::psci;
use corevisor::interface::mailbox::{
    ENTRY_INJECT_ABORT, ENTRY_KEEP_REGISTERS, ENTRY_VIRQ, ExitReason, Register, START_PSTATE,
};
use corevisor::interface::{CallError, HostCall};
use corevisor::trap::trap_handler::host_vcpu_run_handler;
use corevisor_evidence::Rng;

#[test]
fn a_program_counter_that_the_host_sets_is_where_the_vcpu_goes_on() {
    let bench = Bench::started(VM_ORDINARY);
    let load = 0x24 << 26 | 1 << 25 | 1 << 24 | 3 << 22 | 3 << 16 | 1 << 15 | 0b00_0111;
    for (esr, expected) in [(1 << 26 | 1 << 25, ExitReason::Wfx), (load, ExitReason::MmioRead)] {
        for set in [None, Some(0x4020_0100)] {
            let (reason, _) = bench.trap(esr, |context| {
                (context.pc, context.pstate) = (0x1000, 0x5);
                context.syndrome[2] = 0x9_0000;
            });
            assert_eq!(reason, expected);
            if let Some(pc) = set {
                bench.host.done(HostCall::SetRegister, &[bench.vm, 0, Register::Pc as u64, pc]).unwrap();
            }
            bench.write_mailbox(&[(word_of("x") + 3, 33)]);
            bench.run().unwrap();
            let ran = bench.take_seen()[0];
            assert_eq!(ran.pc, set.unwrap_or(0x1004), "{reason:?}");
            if reason == ExitReason::MmioRead {
                assert_eq!(ran.x[3], 33, "what the exit asked for is taken all the same");
            }
        }
    }
}

#[test]
fn a_register_that_the_host_sets_is_what_the_vcpu_finds_whatever_the_mailbox_says() {
    let bench = Bench::started(VM_ORDINARY);
    // A load of a word to w3, one of a byte with its sign to w3, and an MRS of CNTP_CTL_EL0 to x3.
    let load = |more: u64| 0x24 << 26 | 1 << 25 | 1 << 24 | more | 3 << 16 | 0b00_0111;
    let read = 0x18 << 26 | 1 << 25 | 3 << 20 | 1 << 17 | 3 << 14 | 14 << 10 | 3 << 5 | 2 << 1 | 1;
    let mmio = ExitReason::MmioRead;
    for (esr, expected) in [(load(2 << 22), mmio), (load(1 << 21), mmio), (read, ExitReason::Sysreg)] {
        let (reason, _) = bench.trap(esr, |context| {
            (context.pc, context.pstate) = (0x1000, 0x5);
            context.syndrome[2] = 0x9_0000;
        });
        assert_eq!(reason, expected);
        for (register, value) in [(3, 0x1111_2222_3333_4484), (4, 44)] {
            bench.host.done(HostCall::SetRegister, &[bench.vm, 0, register, value]).unwrap();
        }
        bench.write_mailbox(&[(word_of("x") + 3, 33), (word_of("x") + 4, 34)]);
        bench.run().unwrap();
        let ran = bench.take_seen()[0];
        assert_eq!((ran.x[3], ran.x[4], ran.pc), (0x1111_2222_3333_4484, 44, 0x1004), "{reason:?}");
    }
}

#[test]
fn an_ordinary_vcpu_starts_with_the_registers_that_the_host_wrote_if_it_says_so() {
    let keep = (word_of("entry_flags"), ENTRY_KEEP_REGISTERS);
    let bench = Bench::new(VM_ORDINARY);
    let sctlr = Register::El1 as u64 + BankReg::Sctlr as u64;
    let (pc, pstate) = (Register::Pc as u64, Register::Pstate as u64);
    for (register, value) in [(3, 33), (pc, 0x4020_0100), (pstate, 0x4), (sctlr, 0x30d0_1805)] {
        bench.host.done(HostCall::SetRegister, &[bench.vm, 0, register, value]).unwrap();
    }
    // The mailbox's own start is not looked at.
    bench.write_mailbox(&[keep, (word_of("pstate"), 0)]);
    for _ in 0..2 {
        assert_eq!(bench.run(), Ok(ExitReason::Irq));
        let ran = bench.take_seen()[0];
        assert_eq!((ran.x[3], ran.x[0], ran.pc, ran.pstate), (33, 0, 0x4020_0100, 0x4));
        assert_eq!(ran.bank[BankReg::Sctlr as usize], 0x30d0_1805);
    }
    let bench = Bench::new(VM_PROTECTED);
    bench.write_mailbox(&[keep]);
    assert_eq!(bench.run(), Err(CallError::InvalidParameter));
}

#[test]
fn a9_a_vcpu_starts_in_no_other_state_and_a_protected_one_nowhere_else() {
    for pstate in [0x0, 0x4, 0x5, 0x9, 0x3c9, 0x3cd, 0x1d3, 0x13c5, u64::MAX] {
        for kind in [VM_PROTECTED, VM_ORDINARY] {
            let bench = Bench::new(kind);
            bench.write_mailbox(&[(word_of("pstate"), pstate)]);
            assert_eq!(bench.run(), Err(CallError::InvalidParameter));
            bench.write_mailbox(&[(word_of("pstate"), START_PSTATE)]);
            assert_eq!(bench.run(), Ok(ExitReason::Irq), "the refusal changed nothing");
        }
    }
    let bench = Bench::new(VM_PROTECTED);
    bench.write_mailbox(&[(word_of("pc"), ENTRY + 4), (word_of("x0"), 0xbad)]);
    assert_eq!(bench.run(), Err(CallError::InvalidParameter));
    bench.write_mailbox(&[(word_of("pc"), ENTRY)]);
    assert_eq!(bench.run(), Ok(ExitReason::Irq));
    let ran = bench.take_seen()[0];
    assert_eq!((ran.pc, ran.pstate, ran.x[0], ran.x[1]), (ENTRY, START_PSTATE, TREE, 0));
    assert_eq!((ran.bank[BankReg::Sctlr as usize], ran.bank[BankReg::Mpidr as usize]), (0x30d0_0800, 1 << 31));
}

#[test]
fn a17_wrong_words_in_the_mailbox_are_refused_and_change_nothing() {
    let bench = Bench::started(VM_PROTECTED);
    let link = |physical: u64, virtual_: u64| 1 << 31 | 1 << 28 | physical << 10 | virtual_;
    for wrong in [
        (word_of("entry_flags"), ENTRY_KEEP_REGISTERS),
        (word_of("entry_flags"), 1 << 5),
        (word_of("entry_flags"), u64::MAX),
        (word_of("entry_flags"), ENTRY_INJECT_ABORT),
        (word_of("lr_count"), 5),
        (word_of("lr_count"), u64::MAX),
        (word_of("lr"), link(27, 30)),
        (word_of("lr") + 3, link(33, 27)),
    ] {
        bench.write_mailbox(&[(word_of("entry_flags"), 0), (word_of("lr_count"), 4), wrong]);
        assert_eq!(bench.run(), Err(CallError::InvalidParameter), "{wrong:?}");
        bench.write_mailbox(&[(wrong.0, 0)]);
        assert_eq!(bench.host.world.sim().get_cur_vmid(), VmId::HOST);
    }
    bench.write_mailbox(&[
        (word_of("entry_flags"), ENTRY_VIRQ),
        (word_of("lr_count"), 2),
        (word_of("lr"), link(27, 27)),
    ]);
    bench.write_mailbox(&[
        (word_of("lr") + 1, 1 << 28 | 7 << 20 | 0x1_0000_0000 | 40),
        (word_of("lr") + 2, link(33, 33)),
    ]);
    bench.host.world.sim().switches();
    assert_eq!(bench.run(), Ok(ExitReason::Irq));
    let vgic = bench.take_seen()[0].vgic;
    assert_eq!(vgic[..3], [link(27, 27), 1 << 28 | 40, 0], "reserved bits and registers not in use are empty");
    let lines = VirtualLines { virq: true, vfiq: false };
    let switches = bench.host.world.sim().switches();
    assert!(switches.iter().any(|(_, switch)| *switch == Switch::ActivateTraps(lines)));
}

#[test]
fn a17_what_the_host_writes_after_the_mailbox_was_read_changes_nothing() {
    let lives = |kind: u64, race: bool| {
        let bench = Bench::started(kind);
        let sim = bench.host.world.sim();
        let mailbox = [Pfn::containing(Pa::new(bench.mailbox))];
        let rng = &mut Rng::new(17);
        let run = |words: &[(usize, u64)]| {
            bench.write_mailbox(&(0..512).map(|n| (n, 0)).collect::<Vec<_>>());
            bench.write_mailbox(words);
            sim.set_race(if race { &mailbox[..] } else { &[] });
            let reason = bench.run();
            sim.set_race(&[]);
            (reason, bench.take_seen().iter().map(|context| (view(context), context.vgic)).collect::<Vec<_>>())
        };
        let mut all = vec![];
        for _ in 0..500 {
            let mut trap = Context::EMPTY;
            random_trap(rng, &mut trap);
            bench.next(move |context| {
                trap.control = context.control;
                *context = trap;
                ExitCode::Trap
            });
            all.push(run(&[]));
            let mut words: Vec<_> = (0..32).map(|n| (word_of("x") + n, rng.next())).collect();
            words.extend([(word_of("lr_count"), 2), (word_of("lr"), 1 << 28 | 40), (word_of("lr") + 1, 1 << 28 | 41)]);
            all.push(run(&words));
        }
        assert!(all.iter().all(|(reason, _)| reason.is_ok()));
        all
    };
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        assert_eq!(lives(kind, true), lives(kind, false));
    }
}

/// A protected VM with two vCPUs, whose mailboxes say the right start.
struct Pair {
    host: Host,
    vm: u64,
    mailbox: u64,
}

impl Pair {
    fn new() -> Self {
        run_as(0);
        let mut host = Host::default();
        let vm = host.vm(VM_PROTECTED, 30);
        let mailbox = host.pages(2);
        host.done(HostCall::RegisterVcpu, &[vm, 0, mailbox]).unwrap();
        host.done(HostCall::RegisterVcpu, &[vm, 1, mailbox + PAGE]).unwrap();
        let images = [image(ENTRY, PAGE as usize)];
        host.load(vm, &images);
        host.verify(vm, &TestManifest::of(&images, ENTRY, TREE).sign(&key(1))).unwrap();
        let pair = Self { host, vm, mailbox };
        for vcpu in 0..2 {
            (0..512).for_each(|word| pair.write(vcpu, word, 0));
            pair.write(vcpu, word_of("pc"), ENTRY);
            pair.write(vcpu, word_of("pstate"), START_PSTATE);
        }
        pair
    }

    fn write(&self, vcpu: u64, word: usize, value: u64) {
        self.host.world.sim().write_page(Pfn::containing(Pa::new(self.mailbox + vcpu * PAGE)), word, &[value]);
    }

    fn run(&self, vcpu: u64) -> u64 {
        host_vcpu_run_handler(&self.host.world.core, self.vm, vcpu)
    }

    /// The vCPU calls with x0 to x3, after it did `act` to its registers.
    fn call(&self, vcpu: u64, x: [u64; 4], act: fn(&mut Context)) -> u64 {
        self.host.world.sim().set_script(Box::new(move |context| {
            act(context);
            context.syndrome[0] = 0x16 << 26;
            context.x[..4].copy_from_slice(&x);
            ExitCode::Trap
        }));
        self.run(vcpu)
    }

    /// The registers with which the vCPU goes on.
    fn entered(&self, vcpu: u64) -> Context {
        let seen = Arc::new(Mutex::new(None));
        let saved = seen.clone();
        self.host.world.sim().set_script(Box::new(move |context| {
            *saved.lock().unwrap() = Some(*context);
            ExitCode::Irq
        }));
        assert_eq!(self.run(vcpu), ExitReason::Irq as u64);
        let context = seen.lock().unwrap().take();
        context.unwrap()
    }
}

const ON: [u64; 4] = [psci::CPU_ON, 1, 0x4020_0040, 0x77];

#[test]
fn a_vcpu_that_the_vm_starts_starts_where_the_vm_says() {
    let pair = Pair::new();
    assert_eq!(pair.run(1), CallError::WrongState.x0(), "the host cannot start it");
    assert_eq!(pair.call(0, ON, |_| ()), ExitReason::Psci as u64);
    let context = pair.entered(1);
    assert_eq!((context.pc, context.x[0], context.x[1], context.pstate), (0x4020_0040, 0x77, 0, START_PSTATE));
    assert_eq!(context.bank[BankReg::Mpidr as usize], 1 << 31 | 1);
}

#[test]
fn a_start_that_the_core_has_taken_has_succeeded_whatever_the_host_says() {
    let pair = Pair::new();
    assert_eq!(pair.call(0, ON, |_| ()), ExitReason::Psci as u64);
    (0..31).for_each(|n| pair.write(0, word_of("x") + n, 0xbad0 + n as u64));
    let context = pair.entered(0);
    assert_eq!(context.x[..4], [0, ON[1], ON[2], ON[3]]);
    assert!(context.x[4..31].iter().all(|x| *x == 0));
}

#[test]
fn a_call_without_arguments_shows_its_number_only() {
    let pair = Pair::new();
    (0..31).for_each(|n| pair.write(0, word_of("x") + n, 0x77));
    assert_eq!(pair.call(0, [psci::CPU_OFF, 0x5ec1, 0x5ec2, 0x5ec3], |_| ()), ExitReason::Psci as u64);
    let mut words = [0; 4];
    pair.host.world.sim().read_page(Pfn::containing(Pa::new(pair.mailbox)), word_of("x"), &mut words);
    assert_eq!(words, [psci::CPU_OFF, 0x77, 0x77, 0x77]);
}

#[test]
fn a_vm_that_ended_by_itself_is_not_saved() {
    let sealed = |end: &dyn Fn(&Pair) -> u64, reason: u64| {
        let mut pair = Pair::new();
        assert_eq!(end(&pair), reason);
        let (out, tag) = (pair.host.pages(1), pair.host.pages(1));
        let page = pair.host.call(HostCall::SealPage, &[pair.vm, ENTRY, out, tag]).map(|_| ());
        (page, pair.host.call(HostCall::SealVcpu, &[pair.vm, 0, out]).map(|_| ()))
    };
    let off = |pair: &Pair| {
        pair.call(1, ON, |_| ());
        pair.host.call(HostCall::PowerOffVm, &[pair.vm]).unwrap();
        0
    };
    assert_eq!(sealed(&off, 0).0, Ok(()), "the host switched it off");
    let refused = (Err(CallError::WrongState), Err(CallError::WrongState));
    for call in [psci::SYSTEM_OFF, psci::SYSTEM_RESET, psci::SYSTEM_RESET2] {
        let end = |pair: &Pair| pair.call(0, [call, 0, 0, 0], |_| ());
        assert_eq!(sealed(&end, ExitReason::SystemOff as u64), refused, "{call:#x}");
    }
    let failed = |pair: &Pair| {
        pair.host.world.sim().set_script(Box::new(|_| ExitCode::SError));
        pair.run(0)
    };
    assert_eq!(sealed(&failed, ExitReason::Failed as u64), refused);
}

#[test]
fn an_interrupt_that_is_pending_before_a_vcpu_starts_reaches_it() {
    const PENDING: u64 = 1 << 28 | 40;
    let pair = Pair::new();
    pair.write(1, word_of("lr_count"), 1);
    pair.write(1, word_of("lr"), PENDING);
    assert_eq!(pair.call(0, ON, |_| ()), ExitReason::Psci as u64);
    let context = pair.entered(1);
    assert_eq!(context.vgic[..2], [PENDING, 0], "at its first start");
    assert_eq!(pair.call(1, [psci::CPU_OFF, 0, 0, 0], |context| context.vgic[16..].fill(7)), ExitReason::Psci as u64);
    pair.write(1, word_of("lr_count"), 0);
    assert_eq!(pair.call(0, ON, |_| ()), ExitReason::Psci as u64);
    let context = pair.entered(1);
    assert!(context.vgic.iter().all(|word| *word == 0), "at the next, with none: {:x?}", context.vgic);
}

#[test]
fn a_store_shows_the_host_the_bytes_that_it_stores() {
    for (size, shown) in [(0, 0x88), (1, 0x7788), (2, 0x5566_7788), (3, 0x1122_3344_5566_7788)] {
        let bench = Bench::started(VM_PROTECTED);
        bench.write_mailbox(&[(word_of("x") + 5, 0)]);
        let store = 0x24 << 26 | 1 << 25 | 1 << 24 | size << 22 | 5 << 16 | 1 << 15 | 1 << 6 | 5;
        let (reason, _) = bench.trap(store, |context| {
            context.x[5] = 0x1122_3344_5566_7788;
            context.syndrome[2] = 0x900_0000 >> 8;
        });
        assert_eq!((reason, bench.mailbox()[word_of("x") + 5]), (ExitReason::MmioWrite, shown), "{} bytes", 1 << size);
    }
    // MSR CNTP_CTL_EL0, X5.
    let bench = Bench::started(VM_PROTECTED);
    let write = 0x18 << 26 | 1 << 25 | 0x32_f804 | 5 << 5;
    let (reason, _) = bench.trap(write, |context| context.x[5] = 0x1122_3344_0000_0001);
    assert_eq!((reason, bench.mailbox()[word_of("x") + 5]), (ExitReason::Sysreg, 1));
}

#[test]
fn a_vcpu_that_is_started_again_has_nothing_of_its_first_life() {
    let pair = Pair::new();
    pair.call(0, ON, |_| ());
    let off = pair.call(1, [psci::CPU_OFF, 0, 0, 0], |context| {
        (context.x, context.q, context.fp_control) = ([7; 32], [7; 64], [7; 2]);
        context.bank.iter_mut().filter(|reg| **reg == 0).for_each(|reg| *reg = 7);
    });
    assert_eq!(off, ExitReason::Psci as u64);
    assert_eq!(pair.run(1), CallError::WrongState.x0(), "it is off");
    assert_eq!(pair.call(0, ON, |_| ()), ExitReason::Psci as u64);
    let context = pair.entered(1);
    assert_eq!((context.x[0], context.q, context.fp_control), (0x77, [0; 64], [0; 2]));
    assert!(context.x[1..31].iter().chain(&context.bank).all(|value| *value != 7));
}

#[test]
fn numbers_that_no_vm_or_vcpu_has_are_refused_before_anything_is_switched() {
    let bench = Bench::started(VM_PROTECTED);
    bench.host.world.sim().switches();
    for (vm, vcpu) in [(0, 0), (128, 0), (u64::MAX, 0), (1 << 16 | bench.vm, 0), (bench.vm, 16), (bench.vm, 1 << 16)] {
        assert_eq!(host_vcpu_run_handler(&bench.host.world.core, vm, vcpu), CallError::NoSuchObject.x0());
    }
    assert!(bench.host.world.sim().switches().is_empty());
    // M8: the vCPU's number is checked, not the VM's twice.
    for (vm, vcpu) in [(bench.vm, 15), (127, 0)] {
        assert_eq!(host_vcpu_run_handler(&bench.host.world.core, vm, vcpu), CallError::NoSuchObject.x0());
    }
    assert_eq!(bench.host.world.sim().get_cur_vmid(), VmId::HOST);
}
