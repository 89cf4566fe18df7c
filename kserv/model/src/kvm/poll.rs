//! How long the thread of a vCPU that waits looks for its end before it sleeps: a sleep and the way out of it cost more than many waits last.
//!
//! As KVM does it, each vCPU has a window of its own, which its waits make longer and shorter. Times may be of any unit.
//! Source: Linux, Documentation/virt/kvm/halt-polling.rst.
#![forbid(unsafe_code)]

/// The first window is this part of the longest one: of KVM's 500 us its 10.
const FIRST_OF: u64 = 50;
/// By what a window that was too short grows.
const GROWTH: u64 = 2;

/// The window of the next wait, after one that took `waited` with the window `window`. `most`: the longest one; 0: nobody looks.
#[must_use]
pub fn next_window(window: u64, waited: u64, most: u64) -> u64 {
    let window = window.min(most);
    if waited <= window {
        window
    } else if waited > most {
        // Looking was in vain, and longer looking would be.
        0
    } else {
        window.saturating_mul(GROWTH).max(most / FIRST_OF).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 500_000;

    #[test]
    fn waits_that_are_short_make_the_window_long_enough_for_them() {
        let mut window = 0;
        for longer in [10_000, 20_000, 40_000, 80_000, 160_000, 160_000] {
            window = next_window(window, 100_000, MOST);
            assert_eq!(window, longer);
        }
    }

    #[test]
    fn a_long_wait_ends_the_looking() {
        assert_eq!(next_window(160_000, MOST + 1, MOST), 0);
        assert_eq!(next_window(0, u64::MAX, MOST), 0);
    }

    #[test]
    fn no_window_is_longer_than_the_longest() {
        assert_eq!(next_window(320_000, MOST, MOST), MOST);
        assert_eq!(next_window(u64::MAX, 1, MOST), MOST, "the owner made it shorter");
        assert_eq!(next_window(u64::MAX, u64::MAX - 1, u64::MAX), u64::MAX);
    }

    #[test]
    fn nobody_looks_where_none_is_wanted() {
        for waited in [0, 1, 1000, u64::MAX] {
            assert_eq!(next_window(160_000, waited, 0), 0);
        }
    }
}
