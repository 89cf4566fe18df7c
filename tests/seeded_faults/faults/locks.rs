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
        "locks: order not checked",
        "src/locks.rs",
        "                assert!(*last < rank,",
        "                assert!(true || *last < rank,",
    ),
];
