//! Anything in any order over the C interface, with fixed seeds: nothing panics, and what is said stays within what the header promises.
#![allow(missing_docs)]

mod common;

use common::steps::{driver, step};
use corevisor_evidence::Rng;

#[test]
fn no_order_of_calls_and_no_mailbox_is_too_much() {
    // STEPS=1000000 for a long one.
    let steps: u64 = std::env::var("STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(4000);
    for seed in 0..24 {
        let (mut rng, mut driver) = (Rng::new(seed), driver(seed));
        let ids = driver.ids();
        for _ in 0..steps {
            step(&mut driver, &mut rng, &ids);
        }
    }
}
