//! Every exit with its entry, next to the specification.

use crate::bench::{Bench, ENTRY, FLASH, assert_none_shown, fill, random_trap, view, word_of};
use crate::common::vms::PAGE;
use corevisor::abstract_machine::regs::SysregId;
use corevisor::abstract_machine::shadow::Context;
use corevisor::abstract_machine::{ExitCode, VgicInfo};
use corevisor::interface::CallError;
use corevisor::interface::calls::{VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::mailbox::{ENTRY_INJECT_ABORT, ExitReason};
use corevisor::spec::id_registers;
use corevisor::spec::vcpu::{self as spec, Around, Next};
use corevisor_evidence::{Rng, factor, tell};

#[test]
fn every_exit_and_entry_is_what_the_specification_says_and_nothing_else_reaches_the_host() {
    let mut compared = 0;
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        let rng = &mut Rng::new(27 + kind);
        let bench = Bench::started(kind);
        let sim = bench.host.world.sim();
        // The VM's FP registers: it writes some of them, or none.
        let mut own = ([0; 64], [0; 2]);
        for round in 0..3_000 * factor() {
            let gicv3 = rng.below(2) == 0;
            let version = if gicv3 { 3 } else { 2 };
            sim.set_vgic(VgicInfo { version, list_registers: 4, gicv: None });
            sim.set_predictable(rng.below(4) == 0);
            let random = sim.next_entropy();
            let raw = rng.next();
            let mut before = Context::EMPTY;
            random_trap(rng, &mut before);
            let syndrome = before.syndrome[0];
            let (crm, op2) = ((syndrome >> 1 & 15) as u8, (syndrome >> 17 & 7) as u8);
            sim.set_id_register(SysregId::new(3, 0, 0, crm, op2), raw);
            let (uses_fp, kept, streaming) = (rng.below(3) != 0, rng.next(), rng.below(4) == 0);
            let is_kept = |n: usize| !uses_fp || kept >> (n % 64) & 1 != 0;
            (0..64).filter(|n| is_kept(*n)).for_each(|n| before.q[n] = own.0[n]);
            (0..2).filter(|n| is_kept(*n)).for_each(|n| before.fp_control[n] = own.1[n]);
            let changes_fp = own != (before.q, before.fp_control);
            own = (before.q, before.fp_control);
            let mut host_before = Context::EMPTY;
            fill(&mut Rng::new(round), &mut host_before);
            sim.set_live(0, host_before);
            sim.set_streaming(0, streaming);
            bench.next(move |context| {
                let exits = context.control;
                *context = before;
                context.control = exits;
                ExitCode::Trap
            });
            let reason = bench.run().unwrap();
            let seen = bench.take_seen();

            let vcpu = view(&before);
            let around = Around {
                protected: kind == VM_PROTECTED,
                mapped: (ENTRY..ENTRY + 2 * PAGE).contains(&vcpu.regs.hpfar)
                    || kind == VM_ORDINARY && vcpu.regs.hpfar == FLASH,
                gicv3,
                fp: changes_fp || streaming,
                id: id_registers::visible(crm, op2, raw, gicv3),
                random,
            };
            let (after, next) = spec::trap(vcpu, around);
            let said = format!("round {round}: esr {syndrome:#x} ipa {:#x} x0 {:#x}", vcpu.regs.hpfar, vcpu.x[0]);
            let words = bench.mailbox();
            let live = sim.live(0);
            assert_eq!((live.bank, live.q, live.fp_control), (host_before.bank, host_before.q, host_before.fp_control));
            assert_eq!(sim.is_streaming(0), streaming, "{said}");
            sim.set_streaming(0, false);
            match next {
                Next::Resume => {
                    assert_eq!((reason, seen.len()), (ExitReason::Irq, 2), "{said}");
                    assert_eq!(view(&seen[1]), after, "{said}");
                    assert_eq!((seen[1].q, seen[1].fp_control), own, "{said}");
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
                    let entered = bench.take_seen()[0];
                    assert_eq!((entered.q, entered.fp_control), own, "{said}");
                    assert_eq!(view(&entered), spec::enter(after, expected, &answer, abort && abortable), "{said}");
                }
            }
            let blank: Vec<_> = (4..512).map(|n| (n, 0)).collect();
            bench.write_mailbox(&blank);
            compared += 1;
        }
        assert!(sim.violations().is_empty(), "{:?}", sim.violations());
    }
    tell("vcpus: exits and entries", &[("exits", compared as u64)]);
}
