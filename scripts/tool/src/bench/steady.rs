//! A guest's steady work: tests/host-programs/workload.c in a Debian guest, beside the same kernel and work on the machine itself.

use super::{Bench, BenchError, DONE, LIMIT, PARTS, WARM, counting, profile::Count, profile_of};
use crate::{
    error::{create_dir, read},
    machine::Machine,
    project::Project,
    run::{Boot, Run},
};

/// The guest's memory, and the machine's where there is no guest.
pub(super) const MEMORY: &str = "256M";

/// The work, once all is warm: instructions of all that runs on the machine meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Steady {
    /// All rounds.
    pub(super) all: u64,
    /// Of these in the core.
    pub(super) core: u64,
    /// Of each part, as [`PARTS`], the round that took the least.
    pub(super) least: [u64; PARTS.len()],
}

impl Steady {
    /// Of marks in the order of execution, from those of one run of the work; `None`: it came to no end.
    pub(super) fn of(marks: &[(u32, Count)]) -> Option<Self> {
        let index = |mark: u32| marks.iter().position(|(number, _)| *number == mark);
        let steady = marks.get(index(WARM)?..=index(DONE)?)?;
        let whole = steady.last()?.1 - steady.first()?.1;
        let least = |mark: u32| {
            let steps = steady.windows(2).filter(|two| two[1].0 == mark);
            steps.map(|two| (two[1].1 - two[0].1).all).min()
        };
        let mut parts = [0; PARTS.len()];
        for (part, (_, mark)) in parts.iter_mut().zip(PARTS) {
            *part = least(mark)?;
        }
        Some(Self { all: whole.all, core: whole.core, least: parts })
    }

    /// How much more it takes than on the machine itself, in percent.
    pub(super) fn slow_down(&self, bare: &Self) -> f64 {
        (self.all as f64 / bare.all as f64 - 1.0) * 100.0
    }
}

impl Bench {
    /// The start of a script that works.
    pub(super) fn work(&self) -> String {
        format!("workload {} || exit 1\n", self.rounds)
    }

    /// The same on a machine of the guest's size, at EL1, without core or host.
    pub(super) fn bare(
        &self,
        project: &Project,
        (gic, cpu): (u32, &str),
        append: &str,
        progress: &mut impl FnMut(&str),
    ) -> Result<Steady, BenchError> {
        let name = format!("the guest's work without a hypervisor, {cpu}");
        progress(&format!("{name}, with the profiler"));
        let dir = project.root().join("target/bench");
        create_dir(&dir)?;
        let counters = dir.join(format!("counters-bare-{gic}"));
        let machine = Machine::virt().gic(gic).cpu(cpu).smp(1).memory(MEMORY);
        let run = Run::new(project, counting(project, machine, &counters))
            .kernel("6.12")
            .boot(Boot::NoCore)
            .file("/bin/workload", read(&dir.join("workload"))?)
            .append(append)
            .timeout(LIMIT);
        let done = run.script(self.work()).finish()?;
        if !done.is_success() {
            return Err(BenchError::Failed { name, story: done.story(), tail: done.tail(15) });
        }
        Steady::of(profile_of(&counters)?.marks()).ok_or(BenchError::NotSaid { name, what: "the end of its work" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(all: u64, core: u64) -> Count {
        Count { all, core }
    }

    #[test]
    fn the_steady_part_is_what_follows_the_first_round() {
        let round = |start: u64, long: u64| {
            [(8, 0), (9, 10), (10, 20), (11, 30), (12, 30 + long)]
                .map(|(mark, at)| (mark, count(start + at, start / 10)))
        };
        let mut marks = vec![(1, count(0, 0)), (2, count(50, 5))];
        marks.extend(round(100, 1));
        marks.push((WARM, count(200, 20)));
        marks.extend(round(200, 40));
        marks.extend(round(300, 30));
        assert_eq!(Steady::of(&marks), None);
        marks.push((DONE, count(400, 35)));
        let steady = Steady::of(&marks).unwrap();
        assert_eq!(steady, Steady { all: 200, core: 15, least: [10, 10, 10, 30] });
        assert!((steady.slow_down(&Steady { all: 160, ..steady }) - 25.0).abs() < 1e-9);
    }
}
