//! What `scripts/qemu-plugin` has counted: instructions until each mark, and where in the core they were.

use crate::error::{FileError, read};
use std::{collections::BTreeMap, path::Path};
use thiserror::Error;

/// The mark of the host's first instruction.
pub const HOST_STARTS: u32 = 256;

/// What was executed until a mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// By all CPUs, at any exception level.
    pub all: u64,
    /// In the core.
    pub core: u64,
}

impl std::ops::Sub for Count {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self { all: self.all - before.all, core: self.core - before.core }
    }
}

/// A run's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// By number of mark, in their order.
    marks: Vec<(u32, Count)>,
    /// By offset in the core: how often that instruction was executed until each mark.
    at: BTreeMap<u64, Vec<u64>>,
    /// The same by offset in the mini host.
    host: BTreeMap<u64, Vec<u64>>,
}

/// Whose instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The core's.
    Core,
    /// The mini host's.
    Host,
}

/// The counters are not what the plugin writes.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// A line is broken.
    #[error("line {0} of the plugin's counters is none that it writes: {1:?}")]
    Line(usize, String),
    /// The run did not come so far.
    #[error("the run did not come to mark {0}")]
    Missing(u32),
}

impl Profile {
    /// Reads the plugin's file.
    ///
    /// # Errors
    /// [`ProfileError::Line`].
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let mut profile = Self::default();
        for (number, line) in text.lines().enumerate() {
            let broken = || ProfileError::Line(number + 1, line.to_owned());
            let (word, rest) = line.split_once(' ').ok_or_else(broken)?;
            let numbers = rest.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>().map_err(|_| broken())?;
            match (word, numbers.as_slice()) {
                ("mark", [mark, all, core]) => {
                    let mark = u32::try_from(*mark).map_err(|_| broken())?;
                    profile.marks.push((mark, Count { all: *all, core: *core }));
                }
                ("at" | "host", [offset, counts @ ..]) if counts.len() == profile.marks.len() => {
                    let whose = if word == "at" { &mut profile.at } else { &mut profile.host };
                    whose.insert(*offset, counts.to_vec());
                }
                _ => return Err(broken()),
            }
        }
        Ok(profile)
    }

    /// Every mark, in the order of execution.
    pub fn marks(&self) -> &[(u32, Count)] {
        &self.marks
    }

    /// What follows the mark `from` until the next of `ends`, or until the run's end: its marks only.
    pub fn part(&self, from: u32, ends: &[u32]) -> Option<Self> {
        let behind = &self.marks[self.index(from).ok()? + 1..];
        let marks = behind.iter().take_while(|(mark, _)| !ends.contains(mark)).copied().collect();
        Some(Self { marks, ..Self::default() })
    }

    fn index(&self, mark: u32) -> Result<usize, ProfileError> {
        self.marks.iter().position(|(number, _)| *number == mark).ok_or(ProfileError::Missing(mark))
    }

    /// What was executed until a mark.
    ///
    /// # Errors
    /// [`ProfileError::Missing`].
    pub fn until(&self, mark: u32) -> Result<Count, ProfileError> {
        Ok(self.marks[self.index(mark)?].1)
    }

    /// What was executed between two marks.
    ///
    /// # Errors
    /// [`ProfileError::Missing`].
    pub fn between(&self, from: u32, to: u32) -> Result<Count, ProfileError> {
        Ok(self.until(to)? - self.until(from)?)
    }

    /// From any mark to `mark` next to it, after `after`: instructions outside the core, in the case that took the least.
    pub fn least_step(&self, after: u32, mark: u32) -> Option<u64> {
        let outside = |step: Count| step.all - step.core;
        let marks = &self.marks[self.index(after).ok()?..];
        let steps = marks.windows(2).filter(|two| two[1].0 == mark);
        steps.map(|two| outside(two[1].1 - two[0].1)).min()
    }

    /// Instructions of the core or the host between two marks (`None`: from the start), by what `name` calls their offsets, the
    /// most first.
    ///
    /// # Errors
    /// [`ProfileError::Missing`].
    pub fn by_name(
        &self,
        whose: Whose,
        from: Option<u32>,
        to: u32,
        mut name: impl FnMut(u64) -> String,
    ) -> Result<Vec<(String, u64)>, ProfileError> {
        let (from, to) = (from.map(|mark| self.index(mark)).transpose()?, self.index(to)?);
        let mut sums = BTreeMap::<String, u64>::new();
        for (offset, counts) in if whose == Whose::Core { &self.at } else { &self.host } {
            let count = counts[to] - from.map_or(0, |from| counts[from]);
            if count != 0 {
                *sums.entry(name(*offset)).or_default() += count;
            }
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Ok(sums)
    }
}

/// The functions and lines of the core, or of the mini host.
pub struct Symbols(addr2line::Loader);

/// No symbols in its file.
#[derive(Debug, Error)]
#[error("cannot read the symbols of {path}: {why}")]
pub struct NoSymbols {
    path: String,
    why: String,
}

impl Symbols {
    /// Reads those of this ELF file, which is linked at 0.
    ///
    /// # Errors
    /// [`NoSymbols`].
    pub fn load(elf: &Path) -> Result<Self, NoSymbols> {
        let failed =
            |error: Box<dyn std::error::Error>| NoSymbols { path: elf.display().to_string(), why: error.to_string() };
        addr2line::Loader::new(elf).map(Self).map_err(failed)
    }

    /// The function at an offset, for the reader the outermost that was not inlined.
    pub fn function(&self, offset: u64) -> String {
        match self.0.find_symbol(offset) {
            Some(name) => addr2line::demangle_auto(name.into(), None).into_owned(),
            None => format!("{offset:#x}"),
        }
    }

    /// The inlined functions at an offset, the innermost first, with the line in it.
    pub fn inlined(&self, offset: u64) -> String {
        let mut names = Vec::new();
        if let Ok(mut frames) = self.0.find_frames(offset) {
            while let Ok(Some(frame)) = frames.next() {
                let name =
                    frame.function.as_ref().and_then(|name| name.demangle().ok().map(std::borrow::Cow::into_owned));
                let line = frame.location.as_ref().and_then(|location| location.line).unwrap_or(0);
                names.push(format!("{}:{line}", name.unwrap_or_else(|| "?".to_owned())));
            }
        }
        if names.is_empty() { self.function(offset) } else { names.join(" < ") }
    }
}

impl std::fmt::Debug for Symbols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Symbols")
    }
}

/// Reads the counters of a run.
///
/// # Errors
/// With the path in the message.
pub fn read_counters(path: &Path) -> Result<String, FileError> {
    Ok(String::from_utf8_lossy(&read(path)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "mark 256 100 90\nmark 1 1000 95\nat 4 80 80\nat 8 10 15\nhost 12 0 7\n";

    #[test]
    fn counts_are_between_marks() {
        let profile = Profile::parse(TEXT).unwrap();
        assert_eq!(profile.until(HOST_STARTS).unwrap(), Count { all: 100, core: 90 });
        assert_eq!(profile.between(HOST_STARTS, 1).unwrap(), Count { all: 900, core: 5 });
        assert!(matches!(profile.until(2), Err(ProfileError::Missing(2))));
    }

    #[test]
    fn functions_are_sorted_by_what_they_took_in_that_time() {
        let profile = Profile::parse(TEXT).unwrap();
        let name = |offset: u64| format!("f{offset}");
        let boot = profile.by_name(Whose::Core, None, HOST_STARTS, name).unwrap();
        assert_eq!(boot, [("f4".to_owned(), 80), ("f8".to_owned(), 10)]);
        assert_eq!(profile.by_name(Whose::Core, Some(HOST_STARTS), 1, name).unwrap(), [("f8".to_owned(), 5)]);
        assert_eq!(profile.by_name(Whose::Host, None, 1, name).unwrap(), [("f12".to_owned(), 7)]);
    }

    #[test]
    fn the_least_step_is_looked_for_where_it_is_asked_for() {
        let text = "mark 8 0 0\nmark 9 1 0\nmark 3 10 0\nmark 9 20 2\nmark 8 30 2\nmark 9 37 2\nmark 4 50 2\n";
        let profile = Profile::parse(text).unwrap();
        assert_eq!(profile.least_step(3, 9), Some(7));
        assert_eq!((profile.least_step(3, 10), profile.least_step(2, 9)), (None, None));
    }

    #[test]
    fn a_part_of_a_run_has_its_own_marks_only() {
        let profile =
            Profile::parse("mark 2 1 0\nmark 100 2 0\nmark 2 3 0\nmark 3 4 0\nmark 101 5 0\nmark 2 6 0\n").unwrap();
        let marks = |from, ends: &[u32]| {
            profile.part(from, ends).map(|part| part.marks().iter().map(|mark| mark.1.all).collect())
        };
        assert_eq!(marks(100, &[100, 101]), Some(vec![3, 4]));
        assert_eq!(marks(101, &[100, 101]), Some(vec![6]));
        assert_eq!(marks(102, &[]), None);
    }

    #[test]
    fn broken_lines_are_named() {
        for text in ["mark 1 2", "mark 1 2 x", "at 4 1", "hello", "at"] {
            assert!(matches!(Profile::parse(text), Err(ProfileError::Line(1, _))), "{text}");
        }
    }
}
