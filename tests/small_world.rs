//! Every sequence of calls up to a depth over a handful of pages: two CPUs, two banks, one block, a window, and a pool that
//! ends after three tables. After each, code and specification agree and the invariants hold.
#![forbid(unsafe_code)]

use corevisor::abstract_machine::addr::{Ipa, Pfn};
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::npt::Level;
use corevisor::spec::world::{Layout, World};
use corevisor_evidence::tell;

const BLOCK: u64 = 0x4000_0000;
const PAGES: u64 = 0x8000_0000;
const WINDOW: u64 = 0x0900_0000;

#[derive(Clone, Copy, Debug)]
enum Act {
    Touch(usize, u64, AccessKind),
    Assign(u64),
    Return(u64),
    Ask,
}

/// Everything that can happen.
const ACTS: [Act; 13] = [
    Act::Touch(0, BLOCK, AccessKind::Read),
    Act::Touch(1, BLOCK + 0x1000, AccessKind::Write),
    Act::Touch(1, PAGES, AccessKind::Execute),
    Act::Touch(0, WINDOW, AccessKind::Execute),
    Act::Touch(1, WINDOW, AccessKind::Write),
    Act::Touch(0, BLOCK - 0x1000, AccessKind::Read),
    Act::Assign(BLOCK),
    Act::Assign(BLOCK + 0x1000),
    Act::Assign(PAGES),
    Act::Return(BLOCK),
    Act::Return(BLOCK + 0x1000),
    Act::Return(PAGES),
    Act::Ask,
];

fn act(world: &mut World, act: Act) {
    match act {
        Act::Touch(cpu, at, kind) => {
            world.touch(cpu, Ipa::new(at), kind);
        }
        Act::Assign(at) => {
            let _ = world.assign_page_to_core(Pfn::new(at >> 12));
        }
        Act::Return(at) => {
            let _ = world.return_page_to_host(Pfn::new(at >> 12));
        }
        // The host asks: nothing changes.
        Act::Ask => {
            world.is_host_memory(Ipa::new(BLOCK));
        }
    }
}

/// Runs every sequence of exactly `depth` acts, on two threads; the shorter ones are its beginnings.
fn every_sequence(depth: u32) -> usize {
    std::thread::scope(|scope| {
        let halves = [0, 1].map(|part| scope.spawn(move || part_of_sequences(depth, part, 2)));
        halves.into_iter().map(|half| half.join().expect("it said what it found")).sum()
    })
}

/// Of those sequences, every one whose number divided by `parts` leaves `part`: those that begin with the same acts, if `parts` is a power of the number of acts.
fn part_of_sequences(depth: u32, part: usize, parts: usize) -> usize {
    let regions = vec![(WINDOW, 0x1000, false), (BLOCK, 2 << 20, true), (PAGES, 0x6000, true)];
    let layout = Layout { regions, pool: PAGES + 0x1000, pool_pages: 4, ia_bits: 39, cpus: 2, smmu: Some(Level::L2) };
    let numbers = (part..ACTS.len().pow(depth)).step_by(parts);
    let count = numbers.len();
    for n in numbers {
        let mut world = World::new(&layout);
        let mut rest = n;
        for _ in 0..depth {
            act(&mut world, ACTS[rest % ACTS.len()]);
            rest /= ACTS.len();
        }
        world.check();
        world.give_way();
    }
    count
}

/// All sequences there are of so many calls.
fn told(most: u64, sequences: usize) {
    let bounds = [("different calls", ACTS.len() as u64), ("most calls", most), ("sequences", sequences as u64)];
    tell("small_world: every sequence", &bounds);
}

#[test]
fn every_sequence_of_up_to_four_calls_agrees_with_the_specification() {
    let counts: Vec<usize> = (1..=4).map(every_sequence).collect();
    told(4, counts.iter().sum());
}

/// Which of the parts a program does that the test has started.
const PART: &str = "COREVISOR_SMALL_WORLD_PART";

/// A simulated machine keeps some of its memory until its program ends, and 371,293 of them do not fit: each beginning of two calls is done by a program of its own.
#[test]
#[ignore = "long: cargo test --test small_world -- --ignored"]
fn every_sequence_of_five_calls_agrees_with_the_specification() {
    let parts = ACTS.len().pow(2);
    if let Ok(part) = std::env::var(PART) {
        part_of_sequences(5, part.parse().unwrap(), parts);
        return;
    }
    let this = std::env::current_exe().unwrap();
    for part in 0..parts {
        let mut program = std::process::Command::new(&this);
        program.args(["--exact", "every_sequence_of_five_calls_agrees_with_the_specification", "--include-ignored"]);
        let done = program.env(PART, part.to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains("1 passed"), "{PART}={part}: {}\n{said}", done.status);
    }
    told(5, ACTS.len().pow(5));
}
