//! A sorted set of page-covered ranges: the device windows.
#![forbid(unsafe_code)]

use super::error::Reason;
use super::list::List;
use crate::abstract_machine::addr::PhysRange;

/// Adds the pages that hold `range`; touching and overlapping ranges become one.
pub(super) fn add<const N: usize>(set: &mut List<PhysRange, N>, range: PhysRange) -> Result<(), Reason> {
    if range.is_empty() {
        return Ok(());
    }
    let range = range.page_cover();
    // All ranges from `first` up to, not including, `last` touch the new one.
    let first = set.partition_point(|r| r.end() < range.base());
    let last = set.partition_point(|r| r.base() <= range.end());
    let touching = set.get(first..last).unwrap_or_default();
    let merged = match (touching.first(), touching.last()) {
        (Some(low), Some(high)) => PhysRange::between(low.base().min(range.base()), high.end().max(range.end())),
        _ => range,
    };
    match set.get_mut(first) {
        Some(place) if first < last => {
            *place = merged;
            set.remove(first + 1, last - first - 1);
            Ok(())
        }
        _ => set.insert(first, merged).map_err(|_| Reason::TooMany("device windows")),
    }
}

/// Takes out every page that holds a byte of `range`.
pub(super) fn cut<const N: usize>(set: &mut List<PhysRange, N>, range: PhysRange) -> Result<(), Reason> {
    if range.is_empty() {
        return Ok(());
    }
    let range = range.page_cover();
    let first = set.partition_point(|r| r.end() <= range.base());
    let last = set.partition_point(|r| r.base() < range.end());
    let touching = set.get(first..last).unwrap_or_default();
    let (Some(low), Some(high)) = (touching.first(), touching.last()) else { return Ok(()) };
    let rest = [PhysRange::between(low.base(), range.base()), PhysRange::between(range.end(), high.end())];
    set.remove(first, last - first);
    for part in rest.into_iter().rev().filter(|part| !part.is_empty()) {
        set.insert(first, part).map_err(|_| Reason::TooMany("device windows"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abstract_machine::addr::Pa;

    fn range(base: u64, end: u64) -> PhysRange {
        PhysRange::between(Pa::new(base), Pa::new(end))
    }

    /// As Qualcomm's `wifi@17a10040` has it: an address of the device's, and a size of 0.
    #[test]
    fn a_range_of_size_0_within_a_page_neither_adds_nor_takes_that_page() {
        let mut set = List::<PhysRange, 4>::new(range(0, 0));
        add(&mut set, range(0x1040, 0x1040)).unwrap();
        assert!(set.is_empty());
        add(&mut set, range(0x1000, 0x3000)).unwrap();
        cut(&mut set, range(0x1040, 0x1040)).unwrap();
        assert_eq!(&*set, [range(0x1000, 0x3000)]);
    }

    #[test]
    fn ranges_that_touch_or_share_a_page_become_one_in_any_order() {
        let mut set = List::<_, 4>::new(range(0, 0));
        for (base, end) in [(0x5000, 0x6000), (0x1000, 0x1200), (0x1200, 0x1400), (0x9000, 0x9001), (0x2000, 0x5000)] {
            add(&mut set, range(base, end)).unwrap();
        }
        assert_eq!(*set, [range(0x1000, 0x6000), range(0x9000, 0xa000)]);
        add(&mut set, range(0, 0x20000)).unwrap();
        assert_eq!(*set, [range(0, 0x20000)]);
    }

    #[test]
    fn a_cut_takes_whole_pages_and_splits_what_is_around_it() {
        let mut set = List::<_, 3>::new(range(0, 0));
        add(&mut set, range(0, 0x8000)).unwrap();
        cut(&mut set, range(0x2800, 0x3000)).unwrap();
        cut(&mut set, range(0x7fff, 0x9000)).unwrap();
        cut(&mut set, range(0x20000, 0x30000)).unwrap();
        assert_eq!(*set, [range(0, 0x2000), range(0x3000, 0x7000)]);
        cut(&mut set, range(0, u64::MAX)).unwrap();
        assert!(set.is_empty());
    }

    #[test]
    fn sets_agree_with_a_map_of_pages_over_random_calls() {
        let mut seed = 1u64;
        let mut next = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let mut set = List::<_, 64>::new(range(0, 0));
        let mut pages = [false; 64];
        for _ in 0..2000 {
            let (base, len) = (next(60), next(5));
            let (change, value) = (range(base << 12, (base + len) << 12), next(2) == 0);
            if value {
                add(&mut set, change).unwrap()
            } else {
                cut(&mut set, change).unwrap()
            }
            (base..base + len).for_each(|page| pages[page as usize] = value);
            let held = |page: usize| set.iter().any(|r| r.contains(Pa::new((page as u64) << 12)));
            assert!((0..64).all(|page| held(page) == pages[page]));
            assert!(set.windows(2).all(|pair| pair[0].end() < pair[1].base()));
        }
    }
}
