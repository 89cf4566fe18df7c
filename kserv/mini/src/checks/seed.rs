//! The seed of the core's keys: what the boot loader gave the core is nowhere in this host's memory.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec;
use core::ops::Range;

use fdt::Fdt;

use super::{Context, ensure};
use crate::arch::entry::try_read;
use crate::guest::Failure;

/// Bytes of a device tree's header, and the largest tree that is looked at.
const SIZES: Range<u64> = 40..2 << 20;
/// First word, and the version: DTSpec 5.2.
const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;

/// The big-endian word at `pa`, which this host may read.
fn be32(pa: u64) -> Option<u32> {
    let word = try_read(pa & !7).ok()?.to_le_bytes();
    word.get(pa as usize & 4..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Whether the device tree at `pa`, if there is one, has a seed.
fn seed_at(pa: u64) -> Option<bool> {
    if be32(pa)? != MAGIC || be32(pa + 20)? != VERSION {
        return None;
    }
    let size = u64::from(be32(pa + 4)?);
    if !SIZES.contains(&size) {
        return None;
    }
    let mut bytes = vec![0; size as usize];
    for (at, word) in (pa..).step_by(8).zip(bytes.chunks_mut(8)) {
        word.copy_from_slice(try_read(at).ok()?.to_le_bytes().get(..word.len())?);
    }
    let tree = Fdt::new(&bytes).ok()?;
    Some(tree.find_node("/chosen").is_some_and(|chosen| chosen.property("rng-seed").is_some()))
}

/// Looks at every place of RAM where a device tree can begin.
pub fn seed(context: &Context<'_>) -> Result<String, Failure> {
    let mut trees = 0;
    for pa in context.machine.ram.iter().flat_map(|bank| bank.clone().step_by(8)) {
        // The magic number is looked for first, in one load: nearly every word is another one.
        if try_read(pa).is_ok_and(|word| word as u32 == MAGIC.swap_bytes())
            && let Some(has_seed) = seed_at(pa)
        {
            trees += 1;
            ensure(!has_seed, "a device tree in this host's memory has the seed of the core's keys")?;
        }
    }
    ensure(trees > 0, "not even this host's own device tree was found")?;
    Ok(alloc::format!("{trees} device trees, none with a seed"))
}
