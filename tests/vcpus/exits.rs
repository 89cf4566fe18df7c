//! How a VM leaves, by example: what the host is shown of it, and what the VM finds when it goes on.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;

use crate::bench::{Bench, FLASH, RELEASED, SECRET, assert_none_shown, fill, random_trap, word_of};
use crate::common::vms::{PAGE, arguments};
use corevisor::abstract_machine::addr::Ipa;
use corevisor::abstract_machine::per_cpu::Event;
use corevisor::abstract_machine::regs::hpfar_of_ipa;
use corevisor::abstract_machine::shadow::{BankReg, Context};
use corevisor::abstract_machine::sim::run_as;
use corevisor::abstract_machine::{ExitCode, Machine, VgicWord};
use corevisor::interface::calls::{VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::guest::{NOT_SUPPORTED, psci, trng};
use corevisor::interface::mailbox::{ENTRY_INJECT_ABORT, ExitReason, Register};
use corevisor::interface::{CallError, HostCall};
use corevisor::vm::host_calls::vm_call;
use corevisor_evidence::Rng;

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
            // FP is the VM's now, and its instruction is made again.
            0x07 => assert_eq!((reason, ran[0].pc, ran[0].pstate), (ExitReason::Irq, 0x1000, 0x5)),
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

#[test]
fn an_access_whose_address_the_core_cannot_translate_is_made_again_and_no_exit() {
    let bench = Bench::started(VM_ORDINARY);
    let store = || {
        // To memory that is lent read-only.
        bench.trap(0x24 << 26 | 1 << 25 | 1 << 6 | 0b00_1111, |context| {
            (context.pc, context.pstate, context.syndrome[2]) = (0x1000, 0x5, hpfar_of_ipa(Ipa::new(0x4000_0000)));
        })
    };
    bench.host.world.sim().set_untranslatable(true);
    let (reason, ran) = store();
    assert_eq!((reason, ran[0].pc, ran[0].pstate), (ExitReason::Irq, 0x1000, 0x5));
    bench.host.world.sim().set_untranslatable(false);
    assert_eq!(store().0, ExitReason::MemoryFault);
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

/// Every number that may be meant in `text`: hexadecimal of either case, with or without `0x`, decimal, octal and binary, glued to words or not.
fn numbers_in(text: &str) -> BTreeSet<u64> {
    let runs = |radix: u32| {
        let runs = text.split(move |c: char| !c.is_digit(radix)).filter(|run| !run.is_empty());
        // Of what is too long, the end: letters before a hexadecimal number may be digits too.
        let most = match radix {
            16 => 16,
            10 => 20,
            8 => 22,
            _ => 64,
        };
        runs.filter_map(move |run| u64::from_str_radix(&run[run.len().saturating_sub(most)..], radix).ok())
    };
    [2, 8, 10, 16].into_iter().flat_map(runs).collect()
}

/// The secrets of `context`, whole and the halves of each that say something.
fn secrets_of(context: &Context) -> impl Iterator<Item = u64> {
    let words = context.x.iter().chain(&context.bank).chain(&context.q).chain(&context.fp_control);
    let words = words.chain(&context.syndrome).chain([&context.pc]).copied();
    let secrets: Vec<u64> = words.filter(|word| word >> 48 == SECRET >> 48).collect();
    secrets.into_iter().flat_map(|word| [word, word & 0xffff_ffff, word >> 32]).filter(|part| part >> 24 != 0)
}

#[test]
fn numbers_are_found_however_they_are_written() {
    for text in ["x5 is 6829443443224829994.", "x5=0x5EC70EA0AF09602A", "[1,5ec70ea0af09602a]", "be5ec70ea0af09602a"] {
        let secret = 0x5ec7_0ea0_af09_602a;
        assert_eq!(6_829_443_443_224_829_994, secret, "the examples are one number");
        assert!(numbers_in(text).contains(&secret), "{text}");
    }
    assert!(numbers_in("0b101").contains(&5) && numbers_in("0o17").contains(&0o17));
}

#[test]
fn d6_no_register_of_a_vm_is_in_what_the_core_says() {
    static SAID: Said = Said(Mutex::new(String::new()));
    log::set_logger(&SAID).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let rng = &mut Rng::new(6);
    let mut secrets = BTreeSet::new();
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        let bench = Bench::started(kind);
        for _ in 0..500 {
            let mut context = Context::EMPTY;
            random_trap(rng, &mut context);
            secrets.extend(secrets_of(&context));
            bench.next(move |live| {
                *live = context;
                ExitCode::Trap
            });
            bench.run().unwrap();
        }
        let mut last = Context::EMPTY;
        fill(&mut Rng::new(7), &mut last);
        secrets.extend(secrets_of(&last));
        bench.next(|context| {
            fill(&mut Rng::new(7), context);
            ExitCode::SError
        });
        assert_eq!(bench.run(), Ok(ExitReason::Failed));
    }
    // A copy: what fails with the lock held fails for all that say something after it.
    let said = SAID.0.lock().unwrap().clone();
    assert!(said.contains("SError while it ran"), "the core did say something: {said}");
    let shown: Vec<_> = numbers_in(&said).intersection(&secrets).copied().collect();
    assert!(shown.is_empty(), "{shown:x?}: {said}");
    // Whatever was made of one: all of them have this in them.
    assert!(!said.to_lowercase().contains("5ec7"), "{said}");
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
fn an_serror_that_comes_when_a_vm_has_left_already_is_the_vms_and_ends_it() {
    let bench = Bench::started(VM_PROTECTED);
    // A load from a device: what the exit would show is not shown.
    bench.next(|context| {
        fill(&mut Rng::new(1), context);
        let load = 0x24 << 26 | 1 << 25 | 1 << 24 | 3 << 22 | 5 << 16 | 1 << 15 | 5;
        context.syndrome = [load, 0, 0x900_0000 >> 8];
        ExitCode::Trap
    });
    bench.host.world.sim().set_late_serror();
    assert_eq!(bench.run(), Ok(ExitReason::Failed));
    assert_none_shown(&bench.mailbox(), &[], "failed");
    assert_eq!(bench.run(), Err(CallError::WrongState), "it runs on");
}

#[test]
fn an_serror_that_waits_when_the_host_runs_a_vcpu_is_the_hosts_and_the_vm_goes_on_after_it() {
    let bench = Bench::started(VM_PROTECTED);
    bench.host.world.sim().set_early_serror(true);
    assert_eq!(bench.run(), Ok(ExitReason::Irq));
    assert_eq!(bench.take_seen(), [], "the VM has run");
    bench.host.world.sim().set_early_serror(false);
    assert_eq!(bench.run(), Ok(ExitReason::Irq));
    assert_eq!(bench.take_seen().len(), 1);
}

#[test]
fn a_vm_that_another_cpu_switches_off_shows_nothing_of_its_last_exit() {
    let bench = Bench::started(VM_PROTECTED);
    let (vm, vms) = (bench.vm, bench.host.world.core.vms());
    let (ask, asked) = channel();
    let (answer, answered) = channel();
    bench.next(move |context| {
        fill(&mut Rng::new(1), context);
        // A store to a device, which would show its register.
        context.syndrome = [0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 1 << 6 | 0b00_0111, 0, 0x0900_0000 >> 8];
        ask.send(()).unwrap();
        answered.recv().unwrap();
        ExitCode::Trap
    });
    thread::scope(|threads| {
        threads.spawn(move || {
            run_as(1);
            asked.recv().unwrap();
            vm_call(vms, HostCall::PowerOffVm, &arguments(&[vm])).unwrap();
            answer.send(()).unwrap();
        });
        assert_eq!(bench.run(), Ok(ExitReason::Stopped));
    });
    assert_none_shown(&bench.mailbox(), &[], "stopped");
    assert_eq!(bench.mailbox()[word_of("esr")..=word_of("ipa")], [0, 0]);
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
fn the_host_learns_how_many_interrupts_ended_that_no_list_register_has() {
    const LRENPIE: u64 = 1 << 2;
    let bench = Bench::started(VM_ORDINARY);
    bench.write_mailbox(&[(word_of("vgic_hcr"), LRENPIE | 7 << 27)]);
    bench.next(|context| {
        assert_eq!(context.vgic[VgicWord::Hcr as usize], LRENPIE, "the count is not the host's to set");
        context.vgic[VgicWord::Hcr as usize] |= 1 | 2 << 27;
        ExitCode::Irq
    });
    assert_eq!(bench.run(), Ok(ExitReason::Irq));
    assert_eq!(bench.mailbox()[word_of("vgic_hcr")], 2 << 27);
}

#[test]
fn a_vms_random_numbers_are_new_each_time_the_cores_and_as_many_as_it_wants() {
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        let bench = Bench::started(kind);
        let ask = |function: u64, bits: u64| {
            let (reason, ran) = bench.trap(0x16 << 26, move |context| {
                context.x[..5].copy_from_slice(&[function, bits, 7, 7, 7]);
            });
            assert_eq!(reason, ExitReason::Irq, "no host was asked");
            let mailbox = bench.mailbox();
            assert!(
                ran[0].x[1..4].iter().all(|word| *word < 1 << 20 || !mailbox.contains(word)),
                "the host reads them"
            );
            <[u64; 5]>::try_from(&ran[0].x[..5]).unwrap()
        };
        assert_eq!(ask(trng::VERSION, 0)[0], 1 << 16);
        let mut seen = std::collections::BTreeSet::new();
        for bits in [1, 31, 32, 33, 64, 65, 96, 97, 127, 128, 129, 191, 192] {
            for (function, width) in [(trng::RND32, 32_u32), (trng::RND64, 64)] {
                let x = ask(function, bits);
                if bits > 3 * u64::from(width) {
                    assert_eq!(x, [-2_i64 as u64, 0, 0, 0, 7]);
                    continue;
                }
                assert_eq!((x[0], x[4]), (0, 7));
                // The number, its highest bits in x1.
                let all = [x[3], x[2], x[1]];
                for (n, word) in (0..).zip(all) {
                    let left = bits.saturating_sub(n * u64::from(width)).min(u64::from(width)) as u32;
                    assert_eq!(word.checked_shr(left).unwrap_or(0), 0, "{bits} bits of {function:#x}: {x:x?}");
                    assert!(left < 20 || seen.insert(word), "{word:#x} was there before");
                }
            }
        }
        assert_eq!((ask(trng::RND64, 0)[0], ask(trng::RND64, 193)[0]), (-2_i64 as u64, -2_i64 as u64));
        assert_eq!((ask(trng::RND64, 1 << 32 | 96)[0], ask(trng::RND32, 1 << 32 | 96)[0]), (-2_i64 as u64, 0));
        // Where nothing is random there is no such service.
        bench.host.world.sim().set_predictable(true);
        for function in [trng::VERSION, trng::FEATURES, trng::GET_UUID, trng::RND32, trng::RND64] {
            assert_eq!(ask(function, 64), [NOT_SUPPORTED, 64, 7, 7, 7]);
        }
    }
}

#[test]
fn a_store_to_flash_memory_is_an_access_to_a_device_and_nothing_of_the_kind_in_a_protected_vm() {
    // What KVM and its VMMs make of a slot that is read-only: reads find memory, writes are commands.
    let store = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 3 << 16 | 1 << 6 | 0b00_1111;
    let write = |bench: &Bench, esr: u64| {
        let act = |context: &mut Context| context.syndrome[2] = FLASH >> 8;
        bench.trap(esr, act)
    };
    let ordinary = Bench::started(VM_ORDINARY);
    assert_eq!(write(&ordinary, store).0, ExitReason::MmioWrite);
    assert_eq!(ordinary.mailbox()[word_of("ipa")], FLASH);
    // One that the syndrome does not describe.
    assert_eq!(write(&ordinary, store & !(1 << 24)).0, ExitReason::MemoryFault);
    // IL: an instruction of two bytes, which PC + 4 would step over too far.
    assert_eq!(write(&ordinary, store & !(1 << 25)).0, ExitReason::MemoryFault);
    let protected = Bench::started(VM_PROTECTED);
    let denied = protected.host.world.sim().counted(Event::VmAccessDenied);
    assert_eq!(write(&protected, store).0, ExitReason::Irq);
    assert_eq!(protected.host.world.sim().counted(Event::VmAccessDenied), denied + 1);
}

#[test]
fn the_mmio_guard_hides_every_device_that_the_vm_has_not_named() {
    let bench = Bench::started(VM_PROTECTED);
    let call = |function: u64, gpa: u64| {
        let (_, ran) = bench.trap(0x16 << 26, move |context| context.x[..2].copy_from_slice(&[function, gpa]));
        ran[0].x[0]
    };
    let load = |page: u64| {
        let esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 0b00_0111;
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
fn the_host_of_an_ordinary_vm_reads_the_syndrome_of_a_fault_and_cannot_write_it() {
    let bench = Bench::started(VM_ORDINARY);
    let store = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 7 << 16 | 1 << 6 | 0b00_0111;
    let (reason, _) = bench.trap(store, |context| {
        (context.syndrome[1], context.syndrome[2]) = (0x7774, 0x7000_0000 >> 8);
    });
    assert_eq!(reason, ExitReason::MemoryFault);
    let read = |register: Register| bench.host.call(HostCall::GetRegister, &[bench.vm, 0, register as u64]);
    assert_eq!(read(Register::Syndrome).map(|x| x[1]), Ok(store));
    assert_eq!(read(Register::FaultAddress).map(|x| x[1]), Ok(0x7774));
    for register in [Register::Syndrome, Register::FaultAddress] {
        let write = bench.host.done(HostCall::SetRegister, &[bench.vm, 0, register as u64, 0]);
        assert_eq!(write, Err(CallError::InvalidParameter));
    }
}
