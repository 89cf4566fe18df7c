//! Accesses that no register is reached by, to each page that the core stands in front of: external aborts, and the host goes on.
#![forbid(unsafe_code)]

use super::super::ensure;
use super::tables::{GICR_PENDBASER, GICR_PROPBASER};
use super::{Ground, PART, PART_OF_QUEUE, ROOT};
use crate::arch::entry::Odd;
use crate::arch::{memory, mmu};
use crate::guest::Failure;
use crate::pages::PAGE;

/// GICR_TYPER and GITS_TYPER, which are read-only.
const TYPER: u64 = 8;

/// Each kind, at each page: how many were refused.
pub fn accesses(ground: &Ground) -> Result<u64, Failure> {
    let root = ground.block + PART_OF_QUEUE * PART + ROOT;
    memory::zero(root, PAGE);
    let all = ground.redistributors.iter().flat_map(|one| core::iter::once(one.frame).chain(one.virtual_lpis()));
    let mut count = 0;
    for frame in all.chain([ground.service.frame]) {
        let state = || (frame.read64(TYPER), frame.read64(GICR_PROPBASER), frame.read64(GICR_PENDBASER));
        let before = state();
        for odd in Odd::ALL {
            let what = alloc::format!("{odd:?} at {:#x}", frame.at());
            ground.refused(&what, 1, || match mmu::try_odd(root, frame, TYPER, odd) {
                Err(abort) if abort.is_refusal() => Ok(()),
                other => Err(Failure::Text(alloc::format!("{other:x?}"))),
            })?;
            count += 1;
        }
        ensure(state() == before, "an odd access has changed a register")?;
    }
    Ok(count)
}
