//! What tests of several crates share.
//!
//! | item       | is                                                             |
//! |------------|----------------------------------------------------------------|
//! | [`Rng`]    | numbers from a seed, or those that a fuzzer thought of         |
//! | [`tell`]   | how much a test has looked at, for people and for programs     |
//! | [`factor`] | how much longer than usual random tests are to run             |
//! | [`seeds`]  | the seeds of a random test                                     |
#![forbid(unsafe_code)]

mod rng;

use std::fs::OpenOptions;
use std::io::Write;

pub use rng::Rng;

/// How much longer than usual random tests run: `COREVISOR_TEST_FACTOR=20 cargo test`. 1 if the variable is not there.
///
/// # Panics
/// If its value is no number above 0.
pub fn factor() -> u64 {
    let Ok(text) = std::env::var("COREVISOR_TEST_FACTOR") else { return 1 };
    let factor = text.parse().ok().filter(|factor| *factor > 0);
    factor.unwrap_or_else(|| panic!("COREVISOR_TEST_FACTOR is {text:?}, and not a number above 0"))
}

/// The seeds from 1 to `count` times [`factor`]; or the one that COREVISOR_TEST_SEED says, to do a sequence again.
///
/// # Panics
/// If the value of that variable is no number.
pub fn seeds(count: u64) -> Vec<u64> {
    let Ok(text) = std::env::var("COREVISOR_TEST_SEED") else { return (1..=count * factor()).collect() };
    vec![text.parse().unwrap_or_else(|_| panic!("COREVISOR_TEST_SEED is {text:?}, and not a number"))]
}

/// A test says what it has done, by names and numbers (of sequences, states, calls; its seed, if it has one). `cargo test` shows it with `--nocapture`. It also
/// becomes a line of JSON in the file that COREVISOR_EVIDENCE names, from which `scripts/test` makes its summary.
///
/// # Panics
/// If that file cannot be written.
pub fn tell(test: &str, counts: &[(&str, u64)]) {
    println!("{}", line(test, counts));
    if let Some(path) = std::env::var_os("COREVISOR_EVIDENCE") {
        let json = json(test, counts) + "\n";
        // One write a line: tests of several threads write at once.
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(json.as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// In the order in which they were said. Names are plain ASCII, whose escapes are Rust's.
fn json(test: &str, counts: &[(&str, u64)]) -> String {
    let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name:?}:{count}")).collect();
    format!("{{\"test\":{test:?},\"counts\":{{{}}}}}", counts.join(","))
}

fn line(test: &str, counts: &[(&str, u64)]) -> String {
    let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!("{test}: {}", counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_reads_the_same_that_people_read() {
        let json: serde_json::Value =
            serde_json::from_str(&json("a \"test\"", &[("seed", u64::MAX), ("calls", 0)])).unwrap();
        assert_eq!(json, serde_json::json!({ "test": "a \"test\"", "counts": { "seed": u64::MAX, "calls": 0 } }));
    }

    #[test]
    fn a_test_says_its_counts_in_one_line_each_by_its_name() {
        assert_eq!(
            line("small_world", &[("calls", 13), ("sequences", 30_940)]),
            "small_world: calls 13, sequences 30940"
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_others() {
        let numbers = |seed| {
            let mut rng = Rng::new(seed);
            (0..4).map(|_| rng.next()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
    }

    #[test]
    fn given_bytes_are_used_up_one_for_a_small_number_and_then_there_are_zeroes() {
        let mut rng = Rng::of(&[3, 1, 2]);
        assert_eq!((rng.below(10), rng.below(1 << 16), rng.is_spent()), (3, 0x0201, true));
        assert_eq!((rng.below(10), rng.next()), (0, 0));
    }
}
