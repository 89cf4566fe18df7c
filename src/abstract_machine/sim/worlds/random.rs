//! The simulated machine's source of random numbers: the same in each run, and nothing twice.
#![forbid(unsafe_code)]

use super::super::Sim;

/// Where `Machine::entropy` draws from.
#[derive(Default)]
pub(super) struct Source {
    /// How often it was drawn from.
    drawn: u64,
    /// Nothing is random here.
    dry: bool,
}

impl Source {
    fn next(&self) -> Option<[u64; 4]> {
        let n = self.drawn + 1;
        (!self.dry).then(|| [1, 2, 3, 4].map(|word: u64| (n << 8 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    pub(super) fn draw(&mut self) -> Option<[u64; 4]> {
        let words = self.next();
        self.drawn += 1;
        words
    }
}

impl Sim {
    /// From now on the machine has no source of random numbers (`true`), or has one.
    pub fn set_predictable(&self, predictable: bool) {
        self.worlds().source.dry = predictable;
    }

    /// The random words that are drawn next.
    pub fn next_entropy(&self) -> Option<[u64; 4]> {
        self.worlds().source.next()
    }
}
