//! Which device addresses of a protected VM the host may hear of: a part of a VM's state, beside the layers.
//!
//! | primitive           | does                                                        | lock |
//! |---------------------|-------------------------------------------------------------|------|
//! | [`enroll`]          | from now on only addresses that the VM names leave it       | Vm   |
//! | [`map`], [`unmap`]  | the VM names a page, and takes that back                    | Vm   |
//! | [`allows`]          | whether an access to a page may be shown                    | Vm, if it may have enrolled |
//!
//! A VM that has not enrolled shows every access outside its memory. The pages are kept as [`MAX_RANGES`] runs, so that the
//! register frames of a machine fit; beyond that a page is refused, which the VM is told.
//!
//! Below: VMPower. Above: MemHandler, FaultHandler. Specification: `spec::vcpu`. Source: new; Linux's `arm-smccc.h` (MMIO guard), K has none.
#![forbid(unsafe_code)]

use super::Vms;
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Gfn, VmId};
use crate::interface::CallError;

/// Runs of pages that one VM can name.
pub const MAX_RANGES: usize = 8;

/// A VM's guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioGuard {
    enrolled: bool,
    /// First page and the one behind the last; an empty run is free.
    runs: [(u64, u64); MAX_RANGES],
}

impl MmioGuard {
    /// Not enrolled, nothing named.
    pub const NONE: Self = Self { enrolled: false, runs: [(0, 0); MAX_RANGES] };

    /// The guard as words, for a snapshot.
    pub(crate) fn words(&self) -> [u64; 1 + 2 * MAX_RANGES] {
        let mut words = [0; 1 + 2 * MAX_RANGES];
        let runs = self.runs.iter().flat_map(|(first, end)| [*first, *end]);
        words.iter_mut().zip(core::iter::once(u64::from(self.enrolled)).chain(runs)).for_each(|(at, word)| *at = word);
        words
    }

    /// The guard that [`Self::words`] gave.
    pub(crate) fn from_words(mut words: impl Iterator<Item = u64>) -> Self {
        let mut guard = Self { enrolled: words.next() != Some(0), ..Self::NONE };
        for run in &mut guard.runs {
            *run = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        }
        guard
    }

    /// Whether the VM has enrolled.
    pub(crate) const fn is_enrolled(&self) -> bool {
        self.enrolled
    }

    fn allows(&self, page: u64) -> bool {
        !self.enrolled || self.runs.iter().any(|(first, end)| (*first..*end).contains(&page))
    }

    fn add(&mut self, page: u64) -> Result<(), CallError> {
        if self.runs.iter().any(|(first, end)| (*first..*end).contains(&page)) {
            return Ok(());
        }
        let is_used = |run: &&mut (u64, u64)| run.0 < run.1;
        if let Some(run) = self.runs.iter_mut().filter(is_used).find(|run| run.1 == page) {
            run.1 += 1;
        } else if let Some(run) = self.runs.iter_mut().filter(is_used).find(|run| run.0 == page + 1) {
            run.0 = page;
        } else {
            *self.free()? = (page, page + 1);
        }
        Ok(())
    }

    fn remove(&mut self, page: u64) -> Result<(), CallError> {
        let Some(at) = self.runs.iter().position(|(first, end)| (*first..*end).contains(&page)) else {
            return Err(CallError::InvalidParameter);
        };
        let Some((first, end)) = self.runs.get(at).copied() else { return Err(CallError::InvalidParameter) };
        if first < page && page + 1 < end {
            // It falls in two.
            *self.free()? = (page + 1, end);
        }
        let left = if first < page { (first, page) } else { (page + 1, end) };
        if let Some(run) = self.runs.get_mut(at) {
            *run = left;
        }
        Ok(())
    }

    fn free(&mut self) -> Result<&mut (u64, u64), CallError> {
        self.runs.iter_mut().find(|run| run.0 >= run.1).ok_or(CallError::NoSpace)
    }
}

/// From now on an access of `vm` to a device address that it has not named is an abort in the VM, and no exit.
///
/// # Errors
/// [`CallError::NoSuchObject`].
pub fn enroll<M: Machine>(vms: &Vms<M>, vm: VmId) -> Result<(), CallError> {
    let mut place = vms.vm(vm)?;
    vms.note_guard(vm, true);
    place.guard.enrolled = true;
    Ok(())
}

/// `vm` names the page at `gfn`; naming it twice is naming it once.
///
/// # Errors
/// [`CallError::NoSuchObject`]; [`CallError::NoSpace`] if it would be one run too many.
pub fn map<M: Machine>(vms: &Vms<M>, vm: VmId, gfn: Gfn) -> Result<(), CallError> {
    vms.vm(vm)?.guard.add(gfn.raw())
}

/// `vm` takes the name back.
///
/// # Errors
/// [`CallError::NoSuchObject`]; [`CallError::InvalidParameter`] if it was not named; [`CallError::NoSpace`] if what is left is one run too many.
pub fn unmap<M: Machine>(vms: &Vms<M>, vm: VmId, gfn: Gfn) -> Result<(), CallError> {
    vms.vm(vm)?.guard.remove(gfn.raw())
}

/// Whether an access of `vm` to a device address in the page at `gfn` may be shown to the host.
#[inline(always)]
pub fn allows<M: Machine>(vms: &Vms<M>, vm: VmId, gfn: Gfn) -> bool {
    !vms.may_be_guarded(vm) || vms.vm_at_once(vm).is_ok_and(|vm| vm.guard.allows(gfn.raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_run_and_a_run_falls_in_two() {
        let mut guard = MmioGuard { enrolled: true, ..MmioGuard::NONE };
        for page in [10, 11, 12, 9, 13] {
            guard.add(page).unwrap();
        }
        assert_eq!(guard.runs.iter().filter(|run| run.0 < run.1).count(), 1);
        guard.remove(11).unwrap();
        assert_eq!(
            (8..15).map(|page| guard.allows(page)).collect::<std::vec::Vec<_>>(),
            [false, true, true, false, true, true, false]
        );
        assert_eq!(guard.remove(11), Err(CallError::InvalidParameter));
    }

    #[test]
    fn one_run_too_many_is_refused_and_changes_nothing() {
        let mut guard = MmioGuard { enrolled: true, ..MmioGuard::NONE };
        for n in 0..MAX_RANGES as u64 {
            guard.add(n * 10).unwrap();
        }
        let before = guard;
        assert_eq!(guard.add(1000), Err(CallError::NoSpace));
        assert_eq!(guard, before);
    }

    #[test]
    fn a_vm_that_has_not_enrolled_shows_every_device() {
        assert!(MmioGuard::NONE.allows(5));
    }
}
