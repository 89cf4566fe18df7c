//! Numbers that decide what a test does: random ones with a fixed seed, or what a fuzzer thought of.
#![forbid(unsafe_code)]

/// xorshift64*: small, fast, and the same on every machine. Or bytes that were given, one after the other.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
    given: Option<Vec<u8>>,
}

impl Rng {
    /// From `seed` on.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, given: None }
    }

    /// Numbers out of `bytes`, each from as few as it needs; zeroes when they are used up.
    pub fn of(bytes: &[u8]) -> Self {
        Self { state: 1, given: Some(bytes.iter().rev().copied().collect()) }
    }

    /// Whether given bytes are used up.
    pub fn is_spent(&self) -> bool {
        self.given.as_ref().is_some_and(Vec::is_empty)
    }

    /// The next number of 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        if let Some(given) = &mut self.given {
            return (0..8).fold(0, |number, n| number | u64::from(given.pop().unwrap_or(0)) << (8 * n));
        }
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        match &mut self.given {
            Some(given) if end <= 1 << 8 => u64::from(given.pop().unwrap_or(0)) % end,
            Some(given) if end <= 1 << 16 => {
                u64::from(u16::from_le_bytes([0; 2].map(|_: u8| given.pop().unwrap_or(0)))) % end
            }
            _ => self.next() % end,
        }
    }

    /// One of `from`.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
