//! Controls: the machine leaves something out, and the evidence must notice. What is caught here by a random sequence would
//! be caught in the core as well if a layer forgot to ask for it.
//!
//! | fault                             | caught by                                                            |
//! |-----------------------------------|----------------------------------------------------------------------|
//! | no flush by address               | the machine's rules, TLBs that disagree, the host reaching the page  |
//! | a flush of this CPU only          | the same, on another CPU                                             |
//! | no flush of a VM                  | a table freed while a walk cache remembers it                        |
//! | no barrier after a store          | an entry made valid and never published                              |
//! | no scrub                          | the content of a returned page                                       |
//! | a flush of another VM than meant  | what a TLB leads a VM to after its memory is gone; tables freed too early |
//! | no sync                           | a VM that gets a page that is in caches only (A21)                   |
#![forbid(unsafe_code)]

mod common;

use std::panic::{catch_unwind, set_hook};

use common::driver::{Machines, run};
use corevisor::abstract_machine::sim::Sabotage;

#[test]
fn every_planted_fault_is_caught() {
    set_hook(Box::new(|_| {}));
    let faults = [
        (Machines::Small, Sabotage::NoFlushIpa),
        (Machines::Small, Sabotage::LocalFlushOnly),
        (Machines::Small, Sabotage::NoFlushVm),
        (Machines::Small, Sabotage::NoPublish),
        (Machines::Small, Sabotage::NoScrub),
        (Machines::WithVms, Sabotage::FlushOfHostOnly),
        (Machines::WithVms, Sabotage::NoSync),
    ];
    // On two threads.
    std::thread::scope(|scope| {
        for half in 0..2 {
            let faults = faults.iter().skip(half).step_by(2);
            scope.spawn(move || faults.for_each(|(machines, sabotage)| is_caught(*machines, *sabotage)));
        }
    });
}

fn is_caught(machines: Machines, sabotage: Sabotage) {
    let caught: Vec<String> = (1..=40)
        .filter_map(|seed| catch_unwind(|| run(seed, machines, 100, Some(sabotage))).err())
        .map(|panic| match panic.downcast::<String>() {
            Ok(text) => text.chars().take(100).collect(),
            Err(_) => String::from("?"),
        })
        .collect();
    println!("{sabotage:?}: caught in {} of 40 sequences, first by: {:?}", caught.len(), caught.first());
    assert!(!caught.is_empty(), "{sabotage:?} is not caught");
}
