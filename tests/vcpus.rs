//! vCPUs between host and VM: every exit and entry next to its specification, with random registers, and what of them the host finds.
//! A VM is a script: it sets its registers, and says why it leaves.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

mod common;

use std::sync::{Arc, Mutex};

use common::vms::{Host, PAGE, TestManifest, image, key};
use common::{Rng, factor};
use corevisor::abstract_machine::addr::{Pa, Pfn, VcpuId, VmId};
use corevisor::abstract_machine::per_cpu::Event;
use corevisor::abstract_machine::regs::SysregId;
use corevisor::abstract_machine::shadow::{BankReg, Context, Shadow};
use corevisor::abstract_machine::sim::worlds::Switch;
use corevisor::abstract_machine::sim::{Trapped, run_as};
use corevisor::abstract_machine::{ContextAt, ExitCode, Machine, VgicInfo, VirtualLines, Worlds};
use corevisor::interface::calls::{VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::guest::psci;
use corevisor::interface::mailbox::{
    ENTRY_INJECT_ABORT, ENTRY_TIMER_UNMASK, ENTRY_VIRQ, ExitReason, Mailbox, Register, START_PSTATE,
};
use corevisor::interface::{CallError, HostCall};
use corevisor::spec::vcpu::{self as spec, Around, Next, Vcpu};
use corevisor::trap::fault_handler::id_registers;
use corevisor::trap::trap_handler::host_vcpu_run_handler;

const ENTRY: u64 = 0x4020_0000;
const TREE: u64 = 0x4000_0000;
const RELEASED: u64 = 0x4300_0000;
/// A tag that all secrets of a VM carry, so that none is met by chance.
const SECRET: u64 = 0x5ec7 << 48;

/// A step of a VM: what it does with its registers, and why it leaves.
type Step = Box<dyn FnMut(&mut Context) -> ExitCode + Send>;

/// A VM with one vCPU, and what it does.
struct Bench {
    host: Host,
    vm: u64,
    mailbox: u64,
    steps: Arc<Mutex<Vec<Step>>>,
    seen: Arc<Mutex<Vec<Context>>>,
}

impl Bench {
    fn new(kind: u64) -> Self {
        run_as(0);
        let mut host = Host::default();
        let vm = host.vm(kind, 30);
        let mailbox = host.pages(1);
        host.done(HostCall::RegisterVcpu, &[vm, 0, mailbox]).unwrap();
        if kind == VM_PROTECTED {
            let images = [image(ENTRY, 2 * PAGE as usize)];
            host.load(vm, &images);
            let manifest = TestManifest::of(&images, ENTRY, TREE).sign(&key(1));
            host.verify(vm, &manifest).unwrap();
        } else {
            let pages = host.pages(2);
            host.done(HostCall::VerifyVm, &[vm]).unwrap();
            assert_eq!(host.call(HostCall::MapMemory, &[vm, ENTRY, pages, 2, 0]).unwrap()[0], 2);
        }
        let bench = Self { host, vm, mailbox, steps: Arc::default(), seen: Arc::default() };
        let (steps, seen) = (bench.steps.clone(), bench.seen.clone());
        bench.host.world.sim().set_script(Box::new(move |context| {
            seen.lock().unwrap().push(*context);
            let mut steps = steps.lock().unwrap();
            if steps.is_empty() { ExitCode::Irq } else { steps.remove(0)(context) }
        }));
        bench.write_mailbox(&(0..512).map(|n| (n, 0)).collect::<Vec<_>>());
        bench.write_mailbox(&[(word_of("pc"), ENTRY), (word_of("pstate"), START_PSTATE), (word_of("x0"), TREE)]);
        bench
    }

    /// One that has started and left by an interrupt.
    fn started(kind: u64) -> Self {
        let bench = Self::new(kind);
        assert_eq!(bench.run(), Ok(ExitReason::Irq));
        bench.take_seen();
        bench
    }

    fn write_mailbox(&self, words: &[(usize, u64)]) {
        for (word, value) in words {
            self.host.world.sim().write_page(Pfn::containing(Pa::new(self.mailbox)), *word, &[*value]);
        }
    }

    fn mailbox(&self) -> [u64; 512] {
        let mut words = [0; 512];
        self.host.world.sim().read_page(Pfn::containing(Pa::new(self.mailbox)), 0, &mut words);
        words
    }

    fn next(&self, step: impl FnMut(&mut Context) -> ExitCode + Send + 'static) {
        self.steps.lock().unwrap().push(Box::new(step));
    }

    fn run(&self) -> Result<ExitReason, CallError> {
        let x0 = host_vcpu_run_handler(&self.host.world.core, self.vm, 0);
        ExitReason::from_x0(x0).ok_or_else(|| CallError::from_x0(x0).unwrap())
    }

    /// The contexts with which the VM was run since the last time.
    fn take_seen(&self) -> Vec<Context> {
        core::mem::take(&mut self.seen.lock().unwrap())
    }

    /// The VM traps with `esr`; the reason, and the contexts with which it ran on in this call.
    fn trap(&self, esr: u64, set: impl Fn(&mut Context) + Send + 'static) -> (ExitReason, Vec<Context>) {
        self.next(move |context| {
            context.syndrome = [esr, 0, 0];
            set(context);
            ExitCode::Trap
        });
        let reason = self.run().unwrap();
        (reason, self.take_seen().split_off(1))
    }
}

/// Word of a field of the mailbox.
fn word_of(field: &str) -> usize {
    (match field {
        "entry_flags" => core::mem::offset_of!(Mailbox, entry_flags),
        "pc" => core::mem::offset_of!(Mailbox, pc),
        "pstate" => core::mem::offset_of!(Mailbox, pstate),
        "x0" => core::mem::offset_of!(Mailbox, x0),
        "x" => core::mem::offset_of!(Mailbox, x),
        "esr" => core::mem::offset_of!(Mailbox, esr),
        "ipa" => core::mem::offset_of!(Mailbox, ipa),
        "lr_count" => core::mem::offset_of!(Mailbox, lr_count),
        "lr" => core::mem::offset_of!(Mailbox, lr),
        "cntv_ctl" => core::mem::offset_of!(Mailbox, cntv_ctl),
        "exits" => core::mem::offset_of!(Mailbox, exits),
        "powered" => core::mem::offset_of!(Mailbox, powered),
        _ => panic!("{field}"),
    }) / 8
}

/// The specification's view of a context.
fn view(c: &Context) -> Vcpu {
    let bank = |reg: BankReg| c.bank[reg as usize];
    let regs = Trapped {
        esr: c.syndrome[0],
        far: c.syndrome[1],
        hpfar: (c.syndrome[2] & 0xff_ffff_fff0) << 8,
        pc: c.pc,
        pstate: c.pstate,
        elr_el1: bank(BankReg::ElrEl1),
        spsr_el1: bank(BankReg::SpsrEl1),
        esr_el1: bank(BankReg::Esr),
        far_el1: bank(BankReg::Far),
        sctlr_el1: bank(BankReg::Sctlr),
        vbar_el1: bank(BankReg::Vbar),
    };
    Vcpu { x: core::array::from_fn(|n| c.x[n]), regs }
}

/// Every register a secret of its own, except those that decide.
fn fill(rng: &mut Rng, c: &mut Context) {
    let mut secret = || SECRET | rng.next() >> 16;
    c.x[..31].iter_mut().for_each(|x| *x = secret());
    c.bank.iter_mut().for_each(|x| *x = secret());
    c.q.iter_mut().for_each(|x| *x = secret());
    c.fp_control.iter_mut().for_each(|x| *x = secret());
    c.pc = secret() & !3;
    c.bank[BankReg::CntvCtl as usize] = 0;
    c.bank[BankReg::CntvCval as usize] = 0;
}

/// A random trap that changes nothing but the vCPU.
fn random_trap(rng: &mut Rng, c: &mut Context) {
    fill(rng, c);
    c.pstate = rng.pick(&[0x0, 0x4, 0x5, 0x3c5, 0x6000_0000, 0x8140_0005, 0x10]);
    let class = match rng.below(3) {
        0 => rng.below(64),
        _ => rng.pick(&[0x01, 0x16, 0x17, 0x18, 0x18, 0x20, 0x24, 0x24, 0x24]),
    };
    let iss = match class {
        0x16 | 0x17 => rng.pick(&[0, 0, 0, 0, 7]),
        0x18 => random_sysreg(rng) | rng.below(32) << 5 | rng.below(2),
        _ => rng.next() & 0x1ff_ffff,
    };
    // Faults that are served by looking at a table are as common as the others together.
    let fsc = if matches!(class, 0x20 | 0x24) && rng.below(4) > 0 { iss & !0x3f | 0b00_0111 } else { iss };
    let page = rng.pick(&[0x0900_0000, ENTRY, ENTRY + PAGE, RELEASED, 0x3f_ffff_f000, 0x40_0000_0000, 0x3fff_f000]);
    c.syndrome = [class << 26 | 1 << 25 | fsc, SECRET | rng.next() & 0xfff | rng.below(16) << 12, page >> 8];
    if matches!(class, 0x16 | 0x17) {
        let calls = [
            psci::VERSION,
            psci::FEATURES,
            psci::MIGRATE_INFO_TYPE,
            psci::CPU_SUSPEND,
            0x8000_0000,
            0x8000_0001,
            0x8600_ff01,
            0x8600_0000,
            0xc600_0002,
            0xc600_0003,
            0xc600_0004,
            0xc600_0005,
            rng.next(),
        ];
        c.x[0] = rng.pick(&calls);
        let asked = rng.pick(&calls);
        c.x[1] = rng.pick(&[asked, RELEASED, RELEASED + 8]);
    }
}

fn random_sysreg(rng: &mut Rng) -> u64 {
    let iss =
        |op0: u64, op1: u64, crn: u64, crm: u64, op2: u64| op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1;
    match rng.below(8) {
        0 => iss(3, 0, 0, 1 + rng.below(7), rng.below(8)),
        1 => iss(3, 0, 12, 11, 5 + rng.below(3)),
        2 => iss(3, 3, 14, 2, rng.below(3)),
        3 => iss(3, 3, rng.pick(&[9, 14]), 8 + rng.below(8), rng.below(8)),
        4 => iss(2, rng.below(4), rng.below(3), rng.below(16), rng.below(8)),
        5 => iss(1, 0, 7, rng.pick(&[6, 10, 14]), 2),
        6 => iss(3, 0, 1, 0, 1),
        _ => rng.next() & 0x3f_fc1e,
    }
}

#[test]
fn every_exit_and_entry_is_what_the_specification_says_and_nothing_else_reaches_the_host() {
    let mut compared = 0;
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        let rng = &mut Rng::new(27 + kind);
        let bench = Bench::started(kind);
        let sim = bench.host.world.sim();
        for crm in 1..8 {
            (0..8).for_each(|op2| sim.set_id_register(SysregId::new(3, 0, 0, crm, op2), 0x1111_1111_1111_1111));
        }
        for round in 0..3_000 * factor() {
            let gicv3 = rng.below(2) == 0;
            let version = if gicv3 { 3 } else { 2 };
            sim.set_vgic(VgicInfo { version, list_registers: 4, gicv: None });
            let mut before = Context::EMPTY;
            random_trap(rng, &mut before);
            let mut host_before = Context::EMPTY;
            fill(&mut Rng::new(round), &mut host_before);
            sim.set_live(0, host_before);
            bench.next(move |context| {
                let exits = context.control;
                *context = before;
                context.control = exits;
                ExitCode::Trap
            });
            let reason = bench.run().unwrap();
            let seen = bench.take_seen();

            let vcpu = view(&before);
            let syndrome = before.syndrome[0];
            let id_register = SysregId::new(3, 0, 0, (syndrome >> 1 & 15) as u8, (syndrome >> 17 & 7) as u8);
            let around = Around {
                protected: kind == VM_PROTECTED,
                mapped: (ENTRY..ENTRY + 2 * PAGE).contains(&vcpu.regs.hpfar),
                gicv3,
                id: id_registers::visible(id_register, sim.id_register(id_register), gicv3),
            };
            let (after, next) = spec::trap(vcpu, around);
            let said = format!("round {round}: esr {syndrome:#x} ipa {:#x} x0 {:#x}", vcpu.regs.hpfar, vcpu.x[0]);
            let words = bench.mailbox();
            let live = sim.live(0);
            assert_eq!((live.bank, live.q, live.fp_control), (host_before.bank, host_before.q, host_before.fp_control));
            match next {
                Next::Resume => {
                    assert_eq!((reason, seen.len()), (ExitReason::Irq, 2), "{said}");
                    assert_eq!(view(&seen[1]), after, "{said}");
                    assert_eq!((seen[1].q, seen[1].fp_control), (before.q, before.fp_control), "{said}");
                    assert_none_shown(&words, &[], &said);
                }
                Next::Host(expected) => {
                    assert_eq!((reason as u64, seen.len()), (expected, 1), "{said}");
                    let shown = spec::shown(&after, expected);
                    assert_eq!((words[word_of("esr")], words[word_of("ipa")]), (shown.esr, shown.ipa), "{said}");
                    for (n, value) in &shown.x {
                        assert_eq!(words[word_of("x") + n], *value, "{said}: x{n}");
                    }
                    assert_none_shown(&words, &shown.x.values().copied().collect::<Vec<_>>(), &said);
                    // What the host writes: everything, of which the entry takes what the exit allows (A2: whatever syndrome it writes).
                    let answer: [u64; 32] = core::array::from_fn(|_| rng.next());
                    let words: Vec<_> = (0..32).map(|n| (word_of("x") + n, answer[n])).collect();
                    bench.write_mailbox(&words);
                    bench.write_mailbox(&[(word_of("esr"), rng.next()), (word_of("ipa"), rng.next())]);
                    bench.write_mailbox(&[(word_of("pc"), rng.next()), (word_of("pstate"), rng.next())]);
                    let abortable =
                        matches!(reason, ExitReason::MmioRead | ExitReason::MmioWrite | ExitReason::MemoryFault);
                    let abort = rng.below(3) == 0;
                    bench.write_mailbox(&[(word_of("entry_flags"), if abort { ENTRY_INJECT_ABORT } else { 0 })]);
                    if abort && !abortable {
                        assert_eq!(bench.run(), Err(CallError::InvalidParameter), "{said}");
                        bench.write_mailbox(&[(word_of("entry_flags"), 0)]);
                    }
                    assert_eq!(bench.run(), Ok(ExitReason::Irq));
                    bench.write_mailbox(&[(word_of("entry_flags"), 0)]);
                    let entered = view(&bench.take_seen()[0]);
                    assert_eq!(entered, spec::enter(after, expected, &answer, abort && abortable), "{said}");
                }
            }
            let blank: Vec<_> = (4..512).map(|n| (n, 0)).collect();
            bench.write_mailbox(&blank);
            compared += 1;
        }
        assert!(sim.violations().is_empty(), "{:?}", sim.violations());
    }
    println!("{compared} exits compared");
}

/// None of a VM's secrets stands in what the host can read, but those that the exit shows.
fn assert_none_shown(words: &[u64; 512], allowed: &[u64], said: &str) {
    for (n, word) in words.iter().enumerate() {
        assert!(word >> 48 != 0x5ec7 || allowed.contains(word), "{said}: word {n} of the mailbox holds {word:#x}");
    }
}

#[test]
fn m1_every_exception_class_of_a_vm_has_a_decided_outcome() {
    let bench = Bench::started(VM_PROTECTED);
    for class in 0..64 {
        let (reason, ran) = bench.trap(class << 26 | 1 << 25, |context| {
            (context.pc, context.pstate, context.x[0]) = (0x1000, 0x5, 0x8400_0000);
            context.bank[BankReg::Vbar as usize] = 0x8_0000;
            context.bank[BankReg::Sctlr as usize] = 1 << 23;
            context.syndrome[2] = 0x9_0000;
        });
        match class {
            0x01 => assert_eq!(reason, ExitReason::Wfx),
            0x16 | 0x17 => assert_eq!((reason, ran[0].x[0]), (ExitReason::Irq, 0x1_0001)),
            0x20 | 0x24 => assert_eq!(reason, ExitReason::MemoryFault, "no syndrome of an access"),
            _ => {
                // D9: where the CPU would go.
                assert_eq!((reason, ran[0].pc, ran[0].pstate), (ExitReason::Irq, 0x8_0200, 0x3c5), "class {class:#x}");
                let esr = ran[0].bank[BankReg::Esr as usize];
                let own = if matches!(class, 0x0e | 0x3c) { class << 26 } else { 0 };
                assert_eq!(esr, own | 1 << 25, "class {class:#x}");
            }
        }
    }
}

#[test]
fn a2_the_register_of_an_access_is_the_one_that_the_cpu_named_whatever_the_mailbox_says() {
    let bench = Bench::started(VM_PROTECTED);
    // A load to x3 from a device.
    let load = 0x24 << 26 | 1 << 25 | 1 << 24 | 3 << 22 | 3 << 16 | 1 << 15 | 0b00_0111;
    let (reason, _) = bench.trap(load, |context| {
        context.x[3..8].fill(7);
        context.syndrome[2] = 0x9_0000;
    });
    assert_eq!(reason, ExitReason::MmioRead);
    bench.write_mailbox(&[(word_of("esr"), load & !(31 << 16) | 5 << 16)]);
    bench.write_mailbox(&[(word_of("x") + 3, 33), (word_of("x") + 5, 55)]);
    bench.run().unwrap();
    assert_eq!(bench.take_seen()[0].x[3..8], [33, 7, 7, 7, 7]);
}

#[test]
fn a8_a_load_to_xzr_changes_nothing_and_a_store_of_xzr_shows_nothing() {
    let bench = Bench::started(VM_PROTECTED);
    for write in [0, 1] {
        let esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 31 << 16 | write << 6 | 0b00_0111;
        let (reason, _) = bench.trap(esr, |context| {
            fill(&mut Rng::new(8), context);
            (context.pc, context.pstate) = (0x1000, 0x5);
            context.syndrome = [context.syndrome[0], 0, 0x9_0000];
        });
        assert_eq!(reason as u64, 3 + write);
        assert_none_shown(&bench.mailbox(), &[], "xzr");
        bench.write_mailbox(&(0..32).map(|n| (word_of("x") + n, 0xbad)).collect::<Vec<_>>());
        bench.run().unwrap();
        let ran = bench.take_seen()[0];
        assert_eq!(ran.pc, 0x1004);
        assert!(ran.x.iter().all(|x| *x != 0xbad));
    }
}

/// What the core says, from all tests of this file.
struct Said(Mutex<String>);

impl log::Log for Said {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push_str(&format!("{}\n", record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn d6_no_register_of_a_vm_is_in_what_the_core_says() {
    static SAID: Said = Said(Mutex::new(String::new()));
    log::set_logger(&SAID).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let rng = &mut Rng::new(6);
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        let bench = Bench::started(kind);
        for _ in 0..500 {
            let mut context = Context::EMPTY;
            random_trap(rng, &mut context);
            bench.next(move |live| {
                *live = context;
                ExitCode::Trap
            });
            bench.run().unwrap();
        }
        bench.next(|context| {
            fill(&mut Rng::new(7), context);
            ExitCode::SError
        });
        assert_eq!(bench.run(), Ok(ExitReason::Failed));
    }
    let said = SAID.0.lock().unwrap();
    assert!(said.contains("SError while it ran"), "the core did say something: {said}");
    assert!(!said.contains("5ec7"), "{said}");
}

#[test]
fn d9_an_exception_of_a_vm_enters_the_vector_of_where_it_came_from_with_everything_masked() {
    let bench = Bench::started(VM_PROTECTED);
    for (pstate, offset) in [(0x0, 0x400), (0x4, 0x000), (0x5, 0x200), (0x10, 0x600)] {
        // An access to EL2's registers; one to a device that the host ends with an abort.
        let undefined = 0x18 << 26 | 1 << 25 | 3 << 20 | 4 << 14 | 1 << 10 | 1;
        let device = 0x24 << 26 | 1 << 25 | 1 << 24 | 3 << 22 | 3 << 16 | 0b00_0111;
        for (esr, at_el1) in [(undefined, 0x0200_0000), (device, 0x9600_0010)] {
            let (_, ran) = bench.trap(esr, move |context| {
                (context.pc, context.pstate) = (0x1000, pstate);
                (context.syndrome[1], context.syndrome[2]) = (0x7770, 0x9_0000);
                context.bank[BankReg::Vbar as usize] = 0x8_0000;
                context.bank[BankReg::Sctlr as usize] = 1 << 23;
            });
            let context = ran.first().copied().unwrap_or_else(|| {
                bench.write_mailbox(&[(word_of("entry_flags"), ENTRY_INJECT_ABORT)]);
                bench.run().unwrap();
                bench.write_mailbox(&[(word_of("entry_flags"), 0)]);
                bench.take_seen()[0]
            });
            let bank = |reg: BankReg| context.bank[reg as usize];
            assert_eq!((context.pc, context.pstate), (0x8_0000 + offset, 0x3c5), "from {pstate:#x}");
            assert_eq!((bank(BankReg::ElrEl1), bank(BankReg::SpsrEl1)), (0x1000, pstate));
            // Aborts of EL0 have a class of their own.
            let from_el0 = if at_el1 == 0x9600_0010 && pstate & 0xf == 0 { 1 << 26 } else { 0 };
            assert_eq!(bank(BankReg::Esr), at_el1 - from_el0, "from {pstate:#x}");
        }
    }
}

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
        (word_of("entry_flags"), 1 << 4),
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
        let rng = &mut Rng::new(17);
        let run = |words: &[(usize, u64)]| {
            bench.write_mailbox(&(0..512).map(|n| (n, 0)).collect::<Vec<_>>());
            bench.write_mailbox(words);
            sim.set_race(race.then_some(Pfn::containing(Pa::new(bench.mailbox))));
            let reason = bench.run();
            sim.set_race(None);
            (reason, bench.take_seen().iter().map(view).collect::<Vec<_>>())
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
            let words: Vec<_> = (0..32).map(|n| (word_of("x") + n, rng.next())).collect();
            all.push(run(&words));
        }
        assert!(all.iter().all(|(reason, _)| reason.is_ok()));
        all
    };
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        assert_eq!(lives(kind, true), lives(kind, false));
    }
}

#[test]
fn the_world_switch_has_the_order_of_k_3_7() {
    let bench = Bench::started(VM_PROTECTED);
    bench.host.world.sim().switches();
    bench.next(|context| {
        (context.syndrome[0], context.x[0]) = (0x16 << 26, psci::VERSION);
        ExitCode::Trap
    });
    bench.run().unwrap();
    let (vm, vcpu) = (VmId::new(bench.vm as u16), VcpuId::new(0));
    let switches: Vec<Switch> = bench.host.world.sim().switches().into_iter().map(|(_, switch)| switch).collect();
    let Some(Switch::RunVm(shadow)) = switches.iter().find(|switch| matches!(switch, Switch::RunVm(_))) else {
        panic!()
    };
    let (shadow, at): (Shadow, _) = (*shadow, ContextAt::Vm(*shadow));
    let (vttbr, ia_bits) = corevisor::memory::memory_ops::vm_vttbr(bench.host.world.core.memory(), vm).unwrap();
    let expected = [
        Switch::SaveSysregs(ContextAt::Host),
        Switch::FpsimdSaveState(ContextAt::Host),
        Switch::SetPerCpu(vm, vcpu),
        Switch::VmEl2RestoreState { vttbr, ia_bits, flush: false },
        Switch::TimerEnableTraps(0),
        Switch::ActivateTraps(VirtualLines::default()),
        Switch::RestoreSysregs(at),
        Switch::FpsimdRestoreState(at),
        Switch::VgicRestoreState(shadow, 0),
        Switch::RunVm(shadow),
        // Served by the core: neither EL1 nor FP is touched.
        Switch::RunVm(shadow),
        Switch::VgicSaveState(shadow),
        Switch::SaveSysregs(at),
        Switch::FpsimdSaveState(at),
        Switch::DeactivateTraps,
        Switch::TimerDisableTraps,
        // The VM's tables are left before the vCPU is given back (A7).
        Switch::HostEl2RestoreState,
        Switch::SetPerCpu(VmId::HOST, VcpuId::new(0)),
        Switch::HostEl2RestoreState,
        Switch::RestoreSysregs(ContextAt::Host),
        // Not a second "save", as published (K §0).
        Switch::FpsimdRestoreState(ContextAt::Host),
    ];
    assert_eq!(switches, expected);
}

#[test]
fn a_vcpu_that_comes_from_another_cpu_finds_no_translation_of_its_vm_there() {
    let bench = Bench::started(VM_PROTECTED);
    let flushed = |cpu: usize| {
        run_as(cpu);
        bench.host.world.sim().switches();
        bench.run().unwrap();
        let switches = bench.host.world.sim().switches();
        switches.iter().any(|(_, switch)| matches!(switch, Switch::VmEl2RestoreState { flush: true, .. }))
    };
    assert_eq!([0, 1, 1, 0, 0, 2].map(flushed), [false, true, false, true, false, true]);
    run_as(0);
}

#[test]
fn a_vcpu_that_runs_where_another_one_of_its_vm_ran_finds_nothing_of_its_translations() {
    run_as(0);
    let mut host = Host::default();
    let vm = host.vm(VM_ORDINARY, 30);
    for vcpu in 0..2 {
        let mailbox = host.pages(1);
        host.done(HostCall::RegisterVcpu, &[vm, vcpu, mailbox]).unwrap();
        let sim = host.world.sim();
        (0..512).for_each(|word| sim.write_page(Pfn::containing(Pa::new(mailbox)), word, &[0]));
        sim.write_page(Pfn::containing(Pa::new(mailbox)), word_of("pstate"), &[START_PSTATE]);
    }
    host.done(HostCall::VerifyVm, &[vm]).unwrap();
    let flushed = |vcpu: u64| {
        assert_eq!(host_vcpu_run_handler(&host.world.core, vm, vcpu), ExitReason::Irq as u64);
        let switches = host.world.sim().switches();
        switches.iter().any(|(_, switch)| matches!(switch, Switch::VmEl2RestoreState { flush: true, .. }))
    };
    assert_eq!([0, 0, 1, 1, 0, 1].map(flushed), [true, false, true, false, true, true]);
}

#[test]
fn an_interrupt_of_the_vms_timer_is_told_and_masked_until_the_host_says_otherwise() {
    let bench = Bench::started(VM_PROTECTED);
    let ctl = BankReg::CntvCtl as usize;
    let fire = |bench: &Bench, value: u64| {
        bench.next(move |context| {
            context.bank[ctl] = value;
            ExitCode::Irq
        });
        bench.run().unwrap()
    };
    for (value, reason) in
        [(0, ExitReason::Irq), (0b100, ExitReason::Irq), (0b001, ExitReason::Irq), (0b111, ExitReason::Irq)]
    {
        assert_eq!(fire(&bench, value), reason, "{value:#b}");
    }
    assert_eq!(fire(&bench, 0b101), ExitReason::Timer);
    assert_eq!(bench.mailbox()[word_of("cntv_ctl")], 0b101, "the VM's own view");
    bench.take_seen();
    assert_eq!(bench.run(), Ok(ExitReason::Irq), "masked: no second time");
    assert_eq!(bench.take_seen()[0].bank[ctl], 0b111);
    assert_eq!(bench.mailbox()[word_of("cntv_ctl")], 0b101);
    bench.write_mailbox(&[(word_of("entry_flags"), ENTRY_TIMER_UNMASK)]);
    assert_eq!(bench.run(), Ok(ExitReason::Timer));
    assert_eq!(bench.take_seen()[0].bank[ctl], 0b101);
    bench.write_mailbox(&[(word_of("entry_flags"), 0)]);
    // The VM sets its timer anew: the mask is over.
    assert_eq!(fire(&bench, 0b001), ExitReason::Irq);
    bench.take_seen();
    bench.run().unwrap();
    assert_eq!(bench.take_seen()[0].bank[ctl], 0b001);
}

#[test]
fn a_vm_that_was_switched_off_while_it_ran_leaves_and_shows_nothing() {
    let bench = Bench::started(VM_PROTECTED);
    bench.host.done(HostCall::PowerOffVm, &[bench.vm]).unwrap();
    assert_eq!(bench.run(), Err(CallError::WrongState));
    // Off by its own will, by a failure.
    for (code, reason) in [(ExitCode::Trap, ExitReason::SystemOff), (ExitCode::SError, ExitReason::Failed)] {
        let bench = Bench::started(VM_PROTECTED);
        bench.next(move |context| {
            fill(&mut Rng::new(1), context);
            (context.syndrome[0], context.x[0]) = (0x16 << 26, psci::SYSTEM_OFF);
            code
        });
        assert_eq!(bench.run(), Ok(reason));
        assert_none_shown(&bench.mailbox(), &[], "off");
        assert_eq!(bench.mailbox()[word_of("powered")], 0);
        assert_eq!(bench.run(), Err(CallError::WrongState));
        bench.host.destroy(bench.vm);
    }
}

#[test]
fn a_call_on_a_long_range_is_done_in_steps_between_which_interrupts_get_in() {
    let mut bench = Bench::started(VM_PROTECTED);
    let pages = bench.host.pages(100);
    let given = bench.host.call(HostCall::MapMemory, &[bench.vm, RELEASED, pages, 100, 0]).unwrap()[0];
    assert_eq!(given, 100);
    for (function, state) in [(0x81000, 2), (0x82000, 1)] {
        let (reason, ran) = bench.trap(0x16 << 26, move |context| {
            (context.pc, context.x[0], context.x[1], context.x[2]) = (0x1004, function, RELEASED, 100 * PAGE);
        });
        // M3: the range is x1, x2. The rest is left to the next time.
        assert_eq!(reason, ExitReason::Irq);
        assert_eq!(
            (ran[0].pc, ran[0].x[0], ran[0].x[1], ran[0].x[2]),
            (0x1000, function, RELEASED + 32 * PAGE, 68 * PAGE)
        );
        for left in [36, 4, 0] {
            let (_, ran) = bench.trap(0x16 << 26, |context| context.pc = 0x1004);
            assert_eq!(ran[0].x[2], left * PAGE);
        }
        for n in 0..100 {
            let info = bench.host.call(HostCall::PageInfo, &[bench.vm, RELEASED + n * PAGE]).unwrap();
            assert_eq!(info[1], state);
        }
    }
}

#[test]
fn the_mmio_guard_hides_every_device_that_the_vm_has_not_named() {
    let bench = Bench::started(VM_PROTECTED);
    let call = |function: u64, gpa: u64| {
        let (_, ran) = bench.trap(0x16 << 26, move |context| context.x[..2].copy_from_slice(&[function, gpa]));
        ran[0].x[0]
    };
    let load = |page: u64| {
        let esr = 0x24 << 26 | 1 << 24 | 2 << 22 | 0b00_0111;
        bench.trap(esr, move |context| (context.syndrome[1], context.syndrome[2]) = (0, page >> 8)).0
    };
    assert_eq!(load(0x0900_0000), ExitReason::MmioRead);
    assert_eq!((call(0xc600_0005, 0), call(0xc600_0006, 0), call(0xc600_0007, 0x0900_0000)), (PAGE, 0, 0));
    assert_eq!(call(0xc600_0007, 0x0900_0008), u64::MAX - 2);
    assert_eq!((load(0x0900_0000), load(0x0900_1000)), (ExitReason::MmioRead, ExitReason::Irq));
    assert_eq!(bench.host.world.sim().counted(Event::VmAccessDenied), 1);
    assert_eq!((call(0xc600_0008, 0x0900_0000), load(0x0900_0000)), (0, ExitReason::Irq));
}

#[test]
fn a_vcpu_that_the_vm_starts_starts_where_the_vm_says() {
    run_as(0);
    let mut host = Host::default();
    let vm = host.vm(VM_PROTECTED, 30);
    let mailbox = host.pages(2);
    host.done(HostCall::RegisterVcpu, &[vm, 0, mailbox]).unwrap();
    host.done(HostCall::RegisterVcpu, &[vm, 1, mailbox + PAGE]).unwrap();
    let images = [image(ENTRY, PAGE as usize)];
    host.load(vm, &images);
    host.verify(vm, &TestManifest::of(&images, ENTRY, TREE).sign(&key(1))).unwrap();
    let write = |page: u64, word: usize, value: u64| {
        host.world.sim().write_page(Pfn::containing(Pa::new(page)), word, &[value]);
    };
    for page in [mailbox, mailbox + PAGE] {
        (0..512).for_each(|word| write(page, word, 0));
        write(page, word_of("pc"), ENTRY);
        write(page, word_of("pstate"), START_PSTATE);
    }
    let run = |vcpu: u64| host_vcpu_run_handler(&host.world.core, vm, vcpu);
    assert_eq!(run(1), CallError::WrongState.x0(), "the host cannot start it");
    host.world.sim().set_script(Box::new(|context| {
        context.syndrome[0] = 0x16 << 26;
        context.x[..4].copy_from_slice(&[psci::CPU_ON, 1, 0x4020_0040, 0x77]);
        ExitCode::Trap
    }));
    assert_eq!(run(0), ExitReason::Psci as u64);
    let seen = Arc::new(Mutex::new(None));
    let saved = seen.clone();
    host.world.sim().set_script(Box::new(move |context| {
        *saved.lock().unwrap() = Some(*context);
        ExitCode::Irq
    }));
    assert_eq!(run(1), ExitReason::Irq as u64);
    let context = seen.lock().unwrap().unwrap();
    assert_eq!((context.pc, context.x[0], context.x[1], context.pstate), (0x4020_0040, 0x77, 0, START_PSTATE));
    assert_eq!(context.bank[BankReg::Mpidr as usize], 1 << 31 | 1);
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
