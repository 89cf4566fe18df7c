//! Random numbers that a seed gives again: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
//!
//! For schedules, attacks and tests. Never for keys.
#![forbid(unsafe_code)]

/// What the state grows by for each number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A source of random numbers.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The number that [`Random::next`] says at its call `n`, counted from 0: for those who count instead of keeping a state.
    pub const fn nth(self, n: u64) -> u64 {
        Self(self.0.wrapping_add(n.wrapping_mul(STEP))).next()
    }

    /// Any number.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `limit`, which is not 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One of these, of which there is at least one.
    pub const fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// One of these; the default if there is none.
    pub fn one_of<T: Copy + Default>(&mut self, of: &[T]) -> T {
        if of.is_empty() { T::default() } else { self.pick(of) }
    }

    /// True in so many of a hundred.
    pub const fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        let mut random = Random::new(1_234_567);
        let published = [0x599e_d017_fb08_fc85, 0x2c73_f084_5854_0fa5, 0x883e_bce5_a3f2_7c77];
        assert_eq!([(); 3].map(|()| random.next()), published);
        assert_eq!([0, 1, 2].map(|n| Random::new(1_234_567).nth(n)), published);
    }

    #[test]
    fn of_nothing_there_is_the_default() {
        assert_eq!(Random::new(1).one_of::<u64>(&[]), 0);
        assert_eq!(Random::new(1).one_of(&[7]), 7);
    }
}
