//! The ticket lock under an interleaving explorer (loom): every order of two CPUs, and every order with a bounded number of
//! preemptions and polls of three, under the C11 memory model.
//!
//! The primitives under test are `wait_lock` and the drop of what it gives (K: `pass_lock`) over `Turn`; only the atomics are loom's: the orderings are `Counters`' own. The data is a cell
//! that reports every access that is not ordered after the last one.
#![forbid(unsafe_code)]

use corevisor_evidence::tell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering as O};

use corevisor::abstract_machine::turn::{Counters, Held, Ticket, Turn, Word, Words};
use corevisor::locks::wait_lock;
use corevisor::spec::locks::Line;
use loom::cell::Cell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

/// A word of loom's under the real lock's counters. The parameters are for the seeded faults: without them an order that the
/// counters ask for is lost on the way.
struct Loom<const ACQUIRE: bool, const RELEASE: bool>(AtomicU32);

impl<const ACQUIRE: bool, const RELEASE: bool> Word for Loom<ACQUIRE, RELEASE> {
    fn zero() -> Self {
        Self(AtomicU32::new(0))
    }

    fn load(&self, order: Ordering) -> u32 {
        self.0.load(if ACQUIRE { order } else { Ordering::Relaxed })
    }

    fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, if RELEASE { order } else { Ordering::Relaxed });
    }

    fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        self.0.fetch_add(value, order)
    }

    fn relax() {
        loom::thread::yield_now();
    }
}

type Right = Counters<Loom<true, true>>;

/// A lock that gives everybody the same ticket: no exclusion at all.
struct Nothing(AtomicU32);

impl Words for Nothing {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn incr_ticket(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn get_now(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn incr_now(&self) {}

    fn relax() {
        loom::thread::yield_now();
    }
}

fn explore(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) -> usize {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    // One exploration at a time, so that the count is its own.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    RUNS.store(0, O::Relaxed);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        RUNS.fetch_add(1, O::Relaxed);
        model();
    });
    RUNS.load(O::Relaxed)
}

/// `cpus` CPUs add one each, `rounds` times, to a number that is not atomic.
fn count_together<W: Words + Send + 'static>(cpus: usize, rounds: u32) {
    let turn: Arc<Turn<Cell<u32>, W>> = Arc::new(Turn::with_words(Cell::new(0)));
    let others: Vec<_> = (1..cpus)
        .map(|_| {
            let turn = turn.clone();
            loom::thread::spawn(move || add(&turn, rounds))
        })
        .collect();
    add(&turn, rounds);
    for other in others {
        other.join().unwrap();
    }
    let held = wait_lock(&turn);
    assert_eq!(held.get(), cpus as u32 * rounds);
    drop(held);
}

fn add<W: Words>(turn: &Turn<Cell<u32>, W>, rounds: u32) {
    for _ in 0..rounds {
        let held = wait_lock(turn);
        held.set(held.get() + 1);
        drop(held);
    }
}

#[test]
fn two_cpus_exclude_each_other_and_see_what_the_other_wrote() {
    let runs = explore(None, || count_together::<Right>(2, 2));
    tell("locks_explored: all interleavings", &[("CPUs", 2), ("interleavings", runs as u64)]);
    assert!(runs > 10);
}

/// The line as the specification has it, kept in step with the words.
struct Watched {
    words: Right,
    line: Mutex<Line<u32>>,
}

impl Words for Watched {
    fn new() -> Self {
        Self { words: Right::new(), line: Mutex::new(Line::new()) }
    }

    fn incr_ticket(&self) -> u32 {
        let my = self.words.incr_ticket();
        let mut line = self.line.lock().unwrap();
        *line = std::mem::take(&mut *line).join(my);
        my
    }

    fn get_now(&self) -> u32 {
        self.words.get_now()
    }

    fn incr_now(&self) {
        // Whoever passes the lock on is the first in the specification's line, so all before him were served.
        let mut line = self.line.lock().unwrap();
        let first = line.holder().expect("passed by somebody who is not in line");
        *line = std::mem::take(&mut *line).pass(first).expect("passed by somebody else");
        drop(line);
        self.words.incr_now();
    }

    fn relax() {
        Right::relax();
    }
}

/// What the lock protects: a cell that reports races, and who was served, in order.
struct Data {
    cell: Cell<u32>,
    served: Vec<u32>,
}

type Line3 = Turn<Data, Watched>;
type Waiting = (u32, Ticket<'static, Data, Watched>);

/// One turn for `me`.
fn serve(me: u32, mut held: Held<'static, Data, Watched>) {
    held.cell.set(held.cell.get() + 1);
    held.served.push(me);
    drop(held);
}

/// CPU `me` takes a ticket and looks at most `polls` times whether it is its turn. An explorer cannot follow CPUs that
/// wait for ever, so one that was not served in time hands its ticket in.
fn stand_in_line(me: u32, turn: &'static Line3, places: &Mutex<Vec<u32>>, polls: u32) -> Option<Waiting> {
    let mut ticket = turn.incr_ticket();
    // Nothing of loom's happens in between: this is the order of the tickets.
    places.lock().unwrap().push(me);
    for _ in 0..polls {
        match ticket.pull() {
            Ok(held) => {
                serve(me, held);
                return None;
            }
            Err(again) => ticket = again,
        }
    }
    Some((me, ticket))
}

#[test]
fn three_cpus_are_served_one_at_a_time_and_who_came_first_is_served_first() {
    const POLLS: u32 = 2;
    let runs = explore(Some(4), || {
        let data = Data { cell: Cell::new(0), served: vec![] };
        let turn: &'static Line3 = Box::leak(Box::new(Turn::with_words(data)));
        let places: &'static Mutex<Vec<u32>> = Box::leak(Box::new(Mutex::new(vec![])));
        let others: Vec<_> =
            (1..3).map(|me| loom::thread::spawn(move || stand_in_line(me, turn, places, POLLS))).collect();
        let mut waiting: Vec<Waiting> = stand_in_line(0, turn, places, POLLS).into_iter().collect();
        waiting.extend(others.into_iter().filter_map(|other| other.join().unwrap()));
        // Those who were not served in time are served now: one of them is always next.
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting = waiting
                .into_iter()
                .filter_map(|(me, ticket)| match ticket.pull() {
                    Ok(held) => {
                        serve(me, held);
                        None
                    }
                    Err(again) => Some((me, again)),
                })
                .collect();
            assert!(waiting.len() < before, "nobody's turn");
        }
        let held = wait_lock(turn);
        assert_eq!(held.cell.get(), 3);
        assert_eq!(held.served, *places.lock().unwrap());
        drop(held);
    });
    let bounds = [("CPUs", 3), ("most preemptions", 4), ("most polls", POLLS as u64), ("interleavings", runs as u64)];
    tell("locks_explored: bounded interleavings", &bounds);
    assert!(runs > 100);
}

/// Whether the explorer finds something wrong.
fn is_caught(model: impl Fn() + Sync + Send + 'static) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| explore(None, model))).is_err()
}

#[test]
fn control_a_lock_without_release_is_caught() {
    assert!(is_caught(|| count_together::<Counters<Loom<true, false>>>(2, 1)));
}

#[test]
fn control_a_lock_without_acquire_is_caught() {
    assert!(is_caught(|| count_together::<Counters<Loom<false, true>>>(2, 1)));
}

#[test]
fn control_a_lock_that_excludes_nobody_is_caught() {
    assert!(is_caught(|| count_together::<Nothing>(2, 1)));
}
