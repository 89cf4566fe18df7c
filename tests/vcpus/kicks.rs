//! Kicks of a CPU that runs a vCPU: how many there are, and whose turn it is after one.

use std::sync::mpsc::channel;
use std::thread;

use crate::bench::word_of;
use crate::direct::{ALL, KICK, SGI_5_TO_1, Two, finds, never, sgi};
use corevisor::abstract_machine::Worlds;
use corevisor::abstract_machine::addr::CpuId;
use corevisor::abstract_machine::sim::run_as;
use corevisor::interface::CallError;
use corevisor::interface::mailbox::ExitReason;
use corevisor::trap::trap_handler::host_vcpu_run_handler;

#[test]
fn a_vcpu_that_is_kicked_all_the_time_does_not_keep_its_cpu_from_the_hosts_interrupts() {
    let two = Two::new();
    let sim = two.bench.host.world.sim();
    let send_and_interrupt = || {
        let sender = two.sends(SGI_5_TO_1);
        sim.set_waiting(1, true);
        sender
    };
    let (sender, receiver) = two.while_one_runs(send_and_interrupt, never());
    assert_eq!((sender, receiver), (Ok(ExitReason::Irq), ExitReason::Irq));
    // The SGI was delivered all the same, and the kick is over.
    assert_eq!((two.shown(1, "lr_count"), two.shown(1, "lr"), two.shown(1, "sgis")), (1, sgi(5), 0));
    assert_eq!(sim.kicks(), []);
    sim.set_waiting(1, false);
    // The next kick counts as well, if it is there already.
    two.write(1, word_of("lr_count"), 0);
    let send_and_kick_again = || {
        let sender = two.sends(SGI_5_TO_1);
        sim.kick(CpuId::new(1), KICK + 1);
        sender
    };
    assert_eq!(two.while_one_runs(send_and_kick_again, never()), (Ok(ExitReason::Irq), ExitReason::Irq));
}

#[test]
fn a_vcpu_is_kicked_once_for_all_that_is_sent_before_it_looks() {
    let two = Two::new();
    let sim = two.bench.host.world.sim();
    let takes_the_kick = || {
        run_as(1);
        let taken = sim.take_kick(KICK);
        run_as(0);
        taken
    };
    let send_twice = || {
        assert_eq!(two.sends(SGI_5_TO_1), Ok(ExitReason::Irq));
        assert!(takes_the_kick());
        // It has not looked yet: what it finds then has this in it.
        assert_eq!((two.sends(SGI_5_TO_1), two.sends(7 << 24 | 0b10)), (Ok(ExitReason::Irq), Ok(ExitReason::Irq)));
        assert!(!takes_the_kick());
    };
    assert_eq!(two.while_one_runs(send_twice, never()), ((), ExitReason::Irq));
    assert_eq!(two.shown(1, "sgis"), 1 << 5 | 1 << 7);
    // It has left: another run, another kick; and another after it has looked.
    let two_looks = || {
        assert_eq!(two.sends(SGI_5_TO_1), Ok(ExitReason::Irq));
        assert_eq!(sim.kicks(), [(1, KICK)]);
    };
    assert_eq!(two.while_one_runs(two_looks, finds(sgi(5))), ((), ExitReason::Irq));
}

#[test]
fn an_sgi_that_is_sent_while_an_entry_is_refused_comes_with_the_next_kick() {
    let two = Two::new();
    let (sim, core, vm) = (two.bench.host.world.sim(), &two.bench.host.world.core, two.bench.vm);
    two.write(1, word_of("direct"), 1 << 63);
    let (leaving, is_leaving) = channel();
    let (go, may_go) = channel();
    let mut first = true;
    sim.set_leaving(Box::new(move || {
        if std::mem::take(&mut first) {
            leaving.send(()).unwrap();
            may_go.recv().unwrap();
        }
    }));
    thread::scope(|threads| {
        let one = threads.spawn(move || {
            run_as(1);
            host_vcpu_run_handler(core, vm, 1)
        });
        is_leaving.recv().unwrap();
        assert_eq!(two.sends(SGI_5_TO_1), Ok(ExitReason::Irq));
        go.send(()).unwrap();
        assert_eq!(CallError::from_x0(one.join().unwrap()), Some(CallError::InvalidParameter));
    });
    // The kick is the host's, which runs there.
    run_as(1);
    assert!(sim.take_kick(KICK));
    run_as(0);
    two.write(1, word_of("direct"), ALL);
    let (sender, receiver) = two.while_one_runs(|| two.sends(7 << 24 | 0b10), finds(sgi(5)));
    assert_eq!((sender, receiver), (Ok(ExitReason::Irq), ExitReason::Irq));
    assert_eq!((two.shown(1, "lr_count"), two.shown(1, "sgis")), (2, 0));
}
