//! VMs at work, a status line for each, and what the host may not do to them.
#![forbid(unsafe_code)]

use alloc::string::String;
use core::fmt::Write;

use corevisor_interface::mailbox::ExitReason;
use kserv_model::archive::Archive;

use crate::calls::CoreInfo;
use crate::guest::{Failure, Model};
use crate::session::Wishes;

/// Exits by reason, those that there were: "1234 irq 200 mmio 34".
pub fn exits(model: &Model) -> String {
    let all: u64 = ExitReason::ALL.iter().map(|reason| model.exits(*reason)).sum();
    let mut text = String::new();
    let _ = write!(text, "{all}");
    for reason in ExitReason::ALL {
        let count = model.exits(reason);
        if count != 0 {
            let _ = write!(text, ", {reason:?} {count}");
        }
    }
    text
}

pub fn run(_wishes: &Wishes<'_>, _archive: Archive<'_>, _info: &CoreInfo) -> Result<(), Failure> {
    Err(Failure::Text("no demo".into()))
}
