//! Where memory that the core needs at boot goes: at the top of RAM, clear of all that is in use.
//!
//! Pure. The page records are the only large thing; they lie in whole 2 MiB blocks, so that the host's map around
//! them stays in large blocks.
#![forbid(unsafe_code)]

use crate::abstract_machine::addr::{Pa, PhysRange};

/// The highest `size` bytes of `ram` (sorted), aligned to `align` (a power of two), that overlap none of `taken`.
pub fn find_top(ram: &[PhysRange], taken: &[PhysRange], size: u64, align: u64) -> Option<PhysRange> {
    ram.iter().rev().find_map(|bank| find_in_bank(*bank, taken, size, align))
}

fn find_in_bank(bank: PhysRange, taken: &[PhysRange], size: u64, align: u64) -> Option<PhysRange> {
    let mut end = bank.end();
    loop {
        let base = Pa::new(end.raw().checked_sub(size)?).align_down(align);
        let candidate = PhysRange::new(base, size)?;
        if base < bank.base() {
            return None;
        }
        match taken.iter().filter(|range| !range.is_empty() && range.overlaps(candidate)).min_by_key(|r| r.base()) {
            None => return Some(candidate),
            // Everything at or above the lowest obstacle is out: go on below it.
            Some(obstacle) => end = obstacle.base(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u64, end: u64) -> PhysRange {
        PhysRange::between(Pa::new(base), Pa::new(end))
    }

    #[test]
    fn the_top_of_the_last_bank_is_taken_first() {
        let ram = [range(0, 0x1000_0000), range(0x4000_0000, 0x8000_0000)];
        assert_eq!(find_top(&ram, &[], 0x40_0000, 0x20_0000), Some(range(0x7fc0_0000, 0x8000_0000)));
    }

    #[test]
    fn what_is_in_use_is_stepped_over() {
        let ram = [range(0x4000_0000, 0x4100_0000)];
        let taken = [range(0x40ff_f000, 0x4100_0000), range(0x40c0_0000, 0x40d0_0000), range(0x40e8_0000, 0x40e9_0000)];
        assert_eq!(find_top(&ram, &taken, 0x20_0000, 0x20_0000), Some(range(0x40a0_0000, 0x40c0_0000)));
        assert_eq!(find_top(&ram, &taken, 0x10_0000, 0x1000), Some(range(0x40ef_f000, 0x40ff_f000)));
    }

    #[test]
    fn a_bank_that_is_full_leads_to_the_one_below() {
        let ram = [range(0, 0x40_0000), range(0x4000_0000, 0x4010_0000)];
        assert_eq!(find_top(&ram, &[], 0x20_0000, 0x20_0000), Some(range(0x20_0000, 0x40_0000)));
        assert_eq!(find_top(&ram, &[range(0, 0x40_0000)], 0x20_0000, 0x20_0000), None);
    }
}
