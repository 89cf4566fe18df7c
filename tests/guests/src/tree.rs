//! What a guest wants of its device tree: found as text, without parsing it.

use crate::arch::read64;

/// The device tree as its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    at: u64,
    size: u64,
}

impl Tree {
    /// The tree at `at`, if there is one.
    pub fn at(at: u64) -> Option<Self> {
        // Big endian: magic, size.
        let first = if at == 0 { 0 } else { read64(at) };
        if first as u32 != 0xedfe_0dd0 {
            return None;
        }
        Some(Self { at, size: u64::from(((first >> 32) as u32).swap_bytes()).min(2 << 20) })
    }

    fn byte(&self, offset: u64) -> u8 {
        (read64((self.at + offset) & !7) >> (8 * ((self.at + offset) & 7))) as u8
    }

    /// Where the text `what` ends for the first time.
    fn behind(&self, what: &str) -> Option<u64> {
        let what = what.as_bytes();
        let is_at = |at: u64| what.iter().enumerate().all(|(n, byte)| self.byte(at + n as u64) == *byte);
        (0..self.size.checked_sub(what.len() as u64)?).find(|at| is_at(*at)).map(|at| at + what.len() as u64)
    }

    /// Whether the text is anywhere in it.
    pub fn has(&self, what: &str) -> bool {
        self.behind(what).is_some()
    }

    /// The decimal number behind the text.
    pub fn number(&self, what: &str) -> Option<u64> {
        let start = self.behind(what)?;
        let digit = |at: u64| (self.byte(at) as char).to_digit(10).map(u64::from);
        digit(start)?;
        Some((start..self.size).map_while(digit).take(18).fold(0, |number, digit| number * 10 + digit))
    }
}
