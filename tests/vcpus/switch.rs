//! The world switch: the order of its steps, what it flushes, and the timer that it watches over.

use std::sync::mpsc::channel;
use std::thread;

use crate::bench::{Bench, word_of};
use crate::common::vms::{Host, arguments};
use corevisor::abstract_machine::addr::{Pa, Pfn, VcpuId, VmId};
use corevisor::abstract_machine::shadow::{BankReg, Context};
use corevisor::abstract_machine::sim::run_as;
use corevisor::abstract_machine::sim::worlds::{Switch, Whose};
use corevisor::abstract_machine::{ExitCode, Machine, VirtualLines};
use corevisor::interface::calls::{VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::guest::psci;
use corevisor::interface::mailbox::{ENTRY_TIMER_UNMASK, ExitReason, START_PSTATE};
use corevisor::interface::{CallError, HostCall};
use corevisor::trap::trap_handler::host_vcpu_run_handler;
use corevisor::vm::host_calls::vm_call;

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
    let mailbox = Pfn::containing(Pa::new(bench.mailbox));
    let switches: Vec<Switch> = bench.host.world.sim().switches().into_iter().map(|(_, switch)| switch).collect();
    let (vttbr, ia_bits) = corevisor::memory::memory_ops::vm_vttbr(bench.host.world.core.memory(), vm).unwrap();
    let expected = [
        // With the host's tables, by which buffers are written.
        Switch::StopHostRecording,
        Switch::SaveSysregs(Whose::Host),
        Switch::FpsimdSaveState(Whose::Host),
        Switch::SetPerCpu(vm, vcpu),
        Switch::VmEl2RestoreState { vttbr, ia_bits, flush: false },
        Switch::OpenPage(mailbox),
        Switch::TimerEnableTraps(0),
        Switch::ActivateTraps(VirtualLines::default()),
        Switch::RestoreSysregs(Whose::Vm),
        Switch::FpsimdRestoreState(Whose::Vm),
        Switch::VgicRestoreState(0),
        Switch::RunVm,
        // Served by the core: neither EL1 nor FP is touched.
        Switch::RunVm,
        Switch::VgicSaveState(0),
        Switch::SaveSysregs(Whose::Vm),
        Switch::FpsimdSaveState(Whose::Vm),
        // The VM's tables are left before the vCPU is given back (A7), and before the host's HCRX_EL2 lets its own TCR2_EL1 hold for them.
        Switch::HostEl2RestoreState,
        Switch::DeactivateTraps,
        Switch::TimerDisableTraps,
        // As long as the vCPU is the CPU's, its mailbox is the host's and stays so.
        Switch::ClosePage(mailbox),
        Switch::SetPerCpu(VmId::HOST, VcpuId::new(0)),
        Switch::RestoreSysregs(Whose::Host),
        // Not a second "save", as published (K §0).
        Switch::FpsimdRestoreState(Whose::Host),
        Switch::ResumeHostRecording,
    ];
    assert_eq!(switches, expected);
}

#[test]
fn what_records_for_the_host_goes_on_after_an_entry_that_is_refused() {
    let bench = Bench::started(VM_PROTECTED);
    // Refused before anything of the VM's is loaded, and after its tables are.
    for (vm, word, expected) in [(bench.vm + 1, 0, CallError::NoSuchObject), (bench.vm, 1, CallError::InvalidParameter)]
    {
        bench.write_mailbox(&[(word_of("direct"), word << 63)]);
        bench.host.world.sim().switches();
        let x0 = host_vcpu_run_handler(&bench.host.world.core, vm, 0);
        assert_eq!(CallError::from_x0(x0), Some(expected));
        let switches: Vec<_> = bench.host.world.sim().switches().into_iter().map(|(_, switch)| switch).collect();
        assert_eq!(
            (switches.first(), switches.last()),
            (Some(&Switch::StopHostRecording), Some(&Switch::ResumeHostRecording))
        );
    }
}

/// The steps of FP in the VM's next run.
fn fp_steps(bench: &Bench) -> Vec<Switch> {
    bench.host.world.sim().switches();
    bench.run().unwrap();
    let switches = bench.host.world.sim().switches().into_iter().map(|(_, switch)| switch);
    switches.filter(|switch| matches!(switch, Switch::FpsimdOpen)).collect()
}

#[test]
fn fp_is_switched_once_a_run_and_only_for_a_vm_that_uses_it() {
    let bench = Bench::started(VM_PROTECTED);
    let sim = bench.host.world.sim();
    let mut host = Context::EMPTY;
    (host.q, host.fp_control) = ([0x4057; 64], [0x4058; 2]);
    sim.set_live(0, host);
    let after_the_host = |value: u64| {
        move |context: &mut Context| {
            assert_eq!((context.q, context.fp_control), ([value; 64], [value; 2]));
            context.syndrome[0] = 0x16 << 26;
            context.x[0] = psci::VERSION;
            ExitCode::Trap
        }
    };
    assert!(fp_steps(&bench).is_empty(), "untouched");
    for value in 1..4 {
        // Twice: what was loaded is not loaded again after an exit that the core serves.
        bench.next(after_the_host(value - 1));
        for _ in 0..2 {
            bench.next(move |context| {
                (context.q, context.fp_control) = ([value; 64], [value; 2]);
                after_the_host(value)(context)
            });
        }
        assert_eq!(fp_steps(&bench), [Switch::FpsimdOpen]);
        assert_eq!((sim.live(0).q, sim.live(0).fp_control), (host.q, host.fp_control));
        bench.next(after_the_host(value));
        assert!(fp_steps(&bench).is_empty(), "a run without");
        assert_eq!((sim.live(0).q, sim.live(0).fp_control), (host.q, host.fp_control));
    }
    assert!(sim.violations().is_empty(), "{:?}", sim.violations());
}

#[test]
fn a_host_in_streaming_mode_is_out_of_it_while_a_vm_runs_and_no_fp_traps_then() {
    let bench = Bench::started(VM_ORDINARY);
    let sim = bench.host.world.sim();
    let mut host = Context::EMPTY;
    host.q = [0x4057; 64];
    sim.set_live(0, host);
    sim.set_streaming(0, true);
    bench.next(|context| {
        assert_eq!(context.q, [0; 64]);
        context.q = [7; 64];
        ExitCode::Irq
    });
    assert!(fp_steps(&bench).is_empty());
    assert_eq!((sim.is_streaming(0), sim.live(0).q), (true, host.q));
    bench.next(|context| {
        assert_eq!(context.q, [7; 64]);
        ExitCode::Irq
    });
    sim.set_streaming(0, false);
    assert!(fp_steps(&bench).is_empty());
    assert_eq!((sim.is_streaming(0), sim.live(0).q), (false, host.q));
    assert!(sim.violations().is_empty(), "{:?}", sim.violations());
}

#[test]
fn a_second_fp_trap_in_one_run_is_an_undefined_instruction_and_no_endless_loop() {
    let bench = Bench::started(VM_PROTECTED);
    for (n, undefined) in [false, true].into_iter().enumerate() {
        bench.next(move |context| {
            if n == 0 {
                (context.pc, context.pstate) = (0x1000, 0x5);
                context.bank[BankReg::Vbar as usize] = 0x8_0000;
            }
            context.syndrome[0] = 0x07 << 26 | 1 << 25;
            assert_eq!(context.pc, 0x1000, "{undefined}");
            ExitCode::Trap
        });
    }
    bench.run().unwrap();
    assert_eq!(bench.take_seen().last().unwrap().pc, 0x8_0200);
}

#[test]
fn a7_no_table_goes_while_a_cpu_walks_it_on_its_way_out() {
    let bench = Bench::started(VM_PROTECTED);
    let (vm, vms) = (bench.vm, bench.host.world.core.vms());
    let (ask, asked) = channel();
    let (answer, answered) = channel();
    bench.host.world.sim().set_leaving(Box::new(move || {
        ask.send(()).unwrap();
        answered.recv().unwrap();
    }));
    thread::scope(|threads| {
        // Another CPU, while this one has the VM's tables.
        let other = threads.spawn(move || {
            run_as(1);
            asked.recv().unwrap();
            vm_call(vms, HostCall::PowerOffVm, &arguments(&[vm])).unwrap();
            let reclaimed = vm_call(vms, HostCall::ReclaimVm, &arguments(&[vm]));
            answer.send(()).unwrap();
            reclaimed
        });
        // Switched off before anything was shown.
        assert_eq!(bench.run(), Ok(ExitReason::Stopped));
        assert_eq!(other.join().unwrap(), Err(CallError::Busy));
    });
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
