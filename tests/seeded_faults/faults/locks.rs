//! Layers 0-4: turns and locks.
#![forbid(unsafe_code)]

use super::{Fault, fault};

/// The faults.
pub const FAULTS: &[Fault] = &[
    fault(
        "turn: pull without waiting",
        "src/abstract_machine/turn.rs",
        "if self.turn.words.get_now() == self.my {",
        "if self.turn.words.get_now() <= self.my {",
    ),
    fault(
        "turn: the number served is read without acquire",
        "src/abstract_machine/turn.rs",
        "self.now.load(Ordering::Acquire)",
        "self.now.load(Ordering::Relaxed)",
    ),
    fault(
        "turn: the next is served without release",
        "src/abstract_machine/turn.rs",
        "self.now.store(next, Ordering::Release)",
        "self.now.store(next, Ordering::Relaxed)",
    ),
    fault(
        "locks: order not checked",
        "src/locks.rs",
        "                assert!(*last < rank,",
        "                assert!(true || *last < rank,",
    ),
];
