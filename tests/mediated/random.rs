//! Random accesses of a host to all three kinds of pages, next to `spec::mmio`: what it loads, what the ITS is given, what is lent, compared after each.
#![forbid(unsafe_code)]

use super::common::mediated::{Both, step};
use corevisor_evidence::{Rng, factor, tell};

#[test]
fn random_accesses_lead_to_what_the_specification_says() {
    let (machines, steps) = (20 * factor() as u64, 600);
    let mut given = 0;
    for seed in 1..=machines {
        let bits = if seed % 2 == 0 { 20 } else { 16 };
        let (mut both, mut rng) = (Both::new(bits), Rng::new(seed));
        for n in 0..steps {
            step(&mut both, &mut rng);
            if n % 20 == 0 {
                both.compare_pages();
            }
        }
        both.compare_pages();
        given += both.tables.len() as u64;
    }
    assert!(given > machines, "hardly any device has a table: {given}");
    tell("accesses to registers behind the core", &[("machines", machines), ("accesses", machines * steps)]);
}
