//! CPUs as threads: races and long loops.

use super::*;
use crate::platform::psci::call::id;
use crate::platform::psci::{After, Leave};
use std::sync::Barrier;
use std::thread;

const STOP: u64 = u64::MAX;

fn boards(cpus: usize, slow_off: u32) -> [Psci; 2] {
    let fake = Fake::new(cpus);
    fake.0.lock().unwrap().slow_off = slow_off;
    [smc_board(fake, cpus), board(Fake::new(cpus), Below::SpinTable, cpus)]
}

/// What a secondary does: arrive, check, switch off, until it is told to stop. Returns how often it ran.
fn secondary(psci: &Psci, cpu: u16) -> u64 {
    let mut runs = 0;
    if matches!(psci.below, Below::Smc(_)) {
        psci.machine.wait_for_power(cpu.into());
    }
    let mut start = psci.wait_for_start(CpuId::new(cpu));
    while start.context != STOP {
        runs += 1;
        assert_eq!(start.entry.raw(), ENTRY + 0x1000 * u64::from(cpu));
        assert_eq!(start.context >> 32, cpu.into());
        assert_eq!(call(psci, cpu, id::CPU_OFF, [0; 3]), PsciOutcome::Leave(Leave::CpuOff));
        start = match psci.leave(CpuId::new(cpu), Leave::CpuOff) {
            After::Start(start) => start,
            other => panic!("{other:?}"),
        };
    }
    runs
}

/// What a host does to start a CPU that may still be on its way to off.
fn start_until_accepted(psci: &Psci, by: u16, target: u16, context: u64) {
    let args = [target.into(), ENTRY + 0x1000 * u64::from(target), context];
    loop {
        match result(psci, by, id::CPU_ON_64, args) {
            0 => return,
            -4 | -5 => thread::yield_now(),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_thousand_rounds_of_hotplug_lose_no_start_and_no_context() {
    for slow_off in [0, 3] {
        for psci in boards(4, slow_off) {
            thread::scope(|scope| {
                let cpus: std::vec::Vec<_> = (1..4u16)
                    .map(|cpu| {
                        scope.spawn({
                            let psci = &psci;
                            move || secondary(psci, cpu)
                        })
                    })
                    .collect();
                for round in 0..1000u64 {
                    (1..4u16).for_each(|cpu| start_until_accepted(&psci, 0, cpu, u64::from(cpu) << 32 | round));
                }
                (1..4u16).for_each(|cpu| start_until_accepted(&psci, 0, cpu, STOP));
                cpus.into_iter().for_each(|cpu| assert_eq!(cpu.join().unwrap(), 1000));
            });
        }
    }
}

#[test]
fn of_cpus_that_race_to_start_another_one_wins_each_time() {
    for psci in boards(5, 2) {
        let (rounds, racers) = (300, 4);
        let barrier = Barrier::new(racers);
        thread::scope(|scope| {
            let target = scope.spawn(|| secondary(&psci, 4));
            let wins: std::vec::Vec<_> = (0..racers as u16)
                .map(|cpu| {
                    let (psci, barrier) = (&psci, &barrier);
                    scope.spawn(move || {
                        let mut wins = 0;
                        for round in 0..rounds {
                            barrier.wait();
                            let args = [4, ENTRY + 0x4000, 4 << 32 | round];
                            match result(psci, cpu, id::CPU_ON_64, args) {
                                0 => wins += 1,
                                error => assert!([-4, -5].contains(&error), "{error}"),
                            }
                        }
                        wins
                    })
                })
                .collect();
            let wins: u64 = wins.into_iter().map(|racer| racer.join().unwrap()).sum();
            start_until_accepted(&psci, 0, 4, STOP);
            assert_eq!(target.join().unwrap(), wins);
        });
    }
}

#[test]
fn affinity_info_polled_as_linux_does_ends_with_off() {
    for psci in boards(2, 5) {
        thread::scope(|scope| {
            let cpu = scope.spawn(|| secondary(&psci, 1));
            for round in 0..200 {
                // Once AFFINITY_INFO says off, a start is accepted at once.
                while result(&psci, 0, id::AFFINITY_INFO_64, [1, 0, 0]) != 1 {
                    thread::yield_now();
                }
                assert_eq!(result(&psci, 0, id::CPU_ON_64, [1, ENTRY + 0x1000, 1 << 32 | round]), 0);
            }
            start_until_accepted(&psci, 0, 1, STOP);
            assert_eq!(cpu.join().unwrap(), 200);
        });
    }
}
