//! The seed of the core's keys: the tree that the boot loader gave the core is nowhere in this host's memory.
//!
//! Looked for is the name of the seed's property, which stands among the tree's strings: this host's own memory management may have written over the tree's head by now.
#![forbid(unsafe_code)]

use alloc::string::String;
use core::hint::black_box;

use super::{Context, ensure};
use crate::arch::entry::{image, try_read};
use crate::guest::Failure;

/// `rng-seed`, as a word; not as it is, or this program would find itself.
const NAME: u64 = !u64::from_le_bytes(*b"rng-seed");

/// Looks at every byte of RAM, but for this program and what it was given to read: its own tree, in which the name is that of a seed of its own.
pub fn seed(context: &Context<'_>) -> Result<String, Failure> {
    let name = !black_box(NAME);
    let (mut words, mut own) = (0_u64, 0);
    for bank in &context.machine.ram {
        let mut before = 0_u64;
        for pa in bank.clone().step_by(8) {
            let word = try_read(pa).unwrap_or(0);
            let both = u128::from(before) | u128::from(word) << 64;
            words += 1;
            before = word;
            if both == 0 || (0..8).all(|byte| (both >> (byte * 8)) as u64 != name) {
                continue;
            }
            let known = context.machine.taken.iter().any(|taken| taken.contains(&pa));
            own += u64::from(known);
            ensure(
                known || image().contains(&pa),
                "a device tree with the seed of the core's keys is in this host's memory",
            )?;
        }
    }
    ensure(own > 0, "the name is not even found in this host's own device tree")?;
    Ok(alloc::format!("{} MiB looked at", words >> 17))
}
