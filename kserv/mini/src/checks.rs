//! Checks of the core by name.
#![forbid(unsafe_code)]

use kserv_model::archive::Archive;

use crate::calls::CoreInfo;
use crate::guest::Failure;
use crate::session::Wishes;

pub fn run(_wishes: &Wishes<'_>, _archive: Archive<'_>, _info: &CoreInfo) -> Result<(), Failure> {
    Err(Failure::Text("no test".into()))
}
