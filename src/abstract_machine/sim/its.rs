//! An ITS, as far as it reads memory of the core's: its queue of commands, its device table, and the interrupt translation tables that commands name, all in the pool.
//!
//! | what the core does                                     | seen by the ITS before                                                                          |
//! |--------------------------------------------------------|-------------------------------------------------------------------------------------------------|
//! | moves GITS_CWRITER on                                  | all that it stored: the command, and what the command leads to                                   |
//! | lets an entry of the device table lead to a page       | that page: an interrupt of any device, known or not, makes the ITS look there at once             |
//!
//! IHI 0069H 5.2, 5.3. What another CPU stored and did not publish is not looked at: the lock around an ITS is not modelled here.
#![forbid(unsafe_code)]

use std::format;

use super::{Sim, State};
use crate::abstract_machine::addr::{Pa, PhysRange};

/// An entry of a device table of two levels: there is a page, and where.
const VALID: u64 = 1 << 63;
const ADDRESS: u64 = ((1 << 52) - 1) & !0xfff;

/// Where an ITS is told of commands, and where it looks for devices.
pub(super) struct Its {
    writer: Pa,
    level1: Option<PhysRange>,
}

impl Sim {
    /// There is an ITS with GITS_CWRITER at `writer`; `level1` is the first level of a device table of two.
    pub fn load_its(&self, writer: Pa, level1: Option<PhysRange>) {
        self.state().itss.push(Its { writer, level1 });
    }
}

impl State {
    /// The core stores to a register.
    pub(super) fn tell_its(&mut self, at: Pa) {
        if self.itss.iter().any(|its| its.writer == at)
            && let Some(unseen) = self.tables.unpublished()
        {
            self.tables.violation(format!("GITS_CWRITER was moved on before {unseen:#x} was published"));
        }
    }

    /// The core stores to the pool.
    pub(super) fn link_its_table(&mut self, entry: Pa, value: u64) {
        let in_table = |its: &Its| its.level1.is_some_and(|level1| level1.contains(entry));
        if value & VALID != 0 && self.itss.iter().any(in_table) && !self.tables.is_published(value & ADDRESS) {
            let text = format!("a device table of an ITS leads to {:#x} before it was published", value & ADDRESS);
            self.tables.violation(text);
        }
    }
}
