//! Random machines, random calls: after each, code and specification agree and the invariants hold.
//!
//! A failure prints its seed; `COREVISOR_TEST_SEED=n` runs that one alone, `COREVISOR_TEST_FACTOR=n` runs n times as many.
#![forbid(unsafe_code)]

mod common;

use common::driver::{Machines, run};
use corevisor_evidence::{seeds, tell};

/// Many seeds, on two threads.
fn run_all(name: &str, machines: Machines, sequences: u64, steps: usize) {
    let seeds = seeds(sequences);
    let (mut calls, mut states) = (0, 0);
    std::thread::scope(|scope| {
        let halves: Vec<_> = seeds.chunks(seeds.len().div_ceil(2)).collect();
        let threads: Vec<_> = halves
            .into_iter()
            .map(|seeds| {
                scope.spawn(move || {
                    let one = |seed: &u64| {
                        std::panic::catch_unwind(|| run(*seed, machines, steps, None)).unwrap_or_else(|panic| {
                            eprintln!("{name}: failed with seed {seed}");
                            std::panic::resume_unwind(panic)
                        })
                    };
                    seeds.iter().map(one).fold((0, 0), |sum, (calls, states)| (sum.0 + calls, sum.1 + states))
                })
            })
            .collect();
        for thread in threads {
            let (more_calls, more_states) = thread.join().expect("see above");
            calls += more_calls;
            states += more_states;
        }
    });
    let counts = [
        ("sequences", seeds.len() as u64),
        ("steps of each", steps as u64),
        ("calls", calls as u64),
        ("states replayed", states as u64),
    ];
    let first = seeds.first().copied().unwrap_or(0);
    tell(&format!("refinement: {name}"), &[[("first seed", first)].as_slice(), &counts].concat());
}

#[test]
fn code_and_specification_agree_on_random_machines_and_calls() {
    run_all("small machines", Machines::Small, 300, 150);
}

#[test]
fn code_and_specification_agree_where_whole_gibibytes_are_mapped() {
    run_all("large machines", Machines::Large, 10, 60);
}

#[test]
fn code_and_specification_agree_while_vms_come_and_go() {
    run_all("machines with VMs", Machines::WithVms, 60, 150);
}
