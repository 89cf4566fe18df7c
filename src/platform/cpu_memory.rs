//! Where data, stacks and vectors of the CPUs stand on a machine with many of them: in whole 2 MiB blocks of their own beside the page records.
//!
//! What each CPU needs grows with their number, and the page pool does not: 64 CPUs would use it up, and from 40 on the host could give no page for VMs
//! (`own_map::adopt` leaves a quarter of the pool to the host's table). [`FEW`] CPUs have room in the pool, and the core keeps nothing more of such a machine's RAM.
//!
//! From the bottom up: the data of all CPUs, one behind the other; then for each CPU a page that is never mapped, its stack, its emergency stack, its vectors. So a stack that is
//! used up runs into a page that is not there, as in the pool. Pure.
#![forbid(unsafe_code)]

use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SIZE, Pa, PhysRange};
use crate::abstract_machine::per_cpu::{EMERGENCY_STACK_SIZE, PerCpu, STACK_SIZE, VECTORS_SIZE};

/// So many CPUs at most have their data and stacks in the page pool: 72 of its some 395 pages, with the longest vectors.
pub const FEW: usize = 8;

/// Bytes of guard page, stack and emergency stack.
pub const STACKS_SIZE: u64 = PAGE_SIZE + STACK_SIZE + EMERGENCY_STACK_SIZE;

/// Bytes of all that a CPU has besides its data.
const AREA_SIZE: u64 = STACKS_SIZE + VECTORS_SIZE;

/// Bytes of the data of `cpus` CPUs, in whole pages.
pub const fn data_size(cpus: usize) -> u64 {
    (size_of::<PerCpu>() * cpus).next_multiple_of(PAGE_SIZE as usize) as u64
}

/// Bytes of memory of their own for `cpus` CPUs, whole 2 MiB blocks; 0 if the pool has room for them.
pub const fn size(cpus: usize) -> u64 {
    if cpus <= FEW { 0 } else { (data_size(cpus) + cpus as u64 * AREA_SIZE).next_multiple_of(BLOCK_2M) }
}

/// Where one CPU's stacks and vectors stand. Its guard page is the one below `stack`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// The stack on which traps of the host are served.
    pub stack: PhysRange,
    /// The one for a trap of the core itself, above it.
    pub emergency: PhysRange,
    /// The host's vectors while a VM has the CPU.
    pub vectors: PhysRange,
}

impl Area {
    /// All that is to be mapped of it.
    pub const fn mapped(&self) -> PhysRange {
        PhysRange::between(self.stack.base(), self.vectors.end())
    }
}

/// That of CPU `n` of `cpus` in `memory`, which has [`size`] bytes.
pub const fn area(memory: PhysRange, cpus: usize, n: usize) -> Area {
    let guard = memory.base().raw() + data_size(cpus) + n as u64 * AREA_SIZE;
    let stack = Pa::new(guard + PAGE_SIZE);
    let emergency = Pa::new(stack.raw() + STACK_SIZE);
    let vectors = Pa::new(emergency.raw() + EMERGENCY_STACK_SIZE);
    Area {
        stack: PhysRange::between(stack, emergency),
        emergency: PhysRange::between(emergency, vectors),
        vectors: PhysRange::between(vectors, Pa::new(vectors.raw() + VECTORS_SIZE)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::device_tree::MAX_CPUS;
    use super::*;

    #[test]
    fn few_cpus_take_nothing_and_as_many_as_there_may_be_one_block() {
        assert!((0..=FEW).all(|cpus| size(cpus) == 0));
        assert!((FEW + 1..=MAX_CPUS).all(|cpus| size(cpus) == BLOCK_2M));
    }

    #[test]
    fn nothing_of_a_cpu_overlaps_anothers_and_a_page_below_each_stack_is_nobodys() {
        for cpus in [FEW + 1, 33, MAX_CPUS - 1, MAX_CPUS] {
            let memory = PhysRange::new(Pa::new(0xffe0_0000), size(cpus)).unwrap();
            let mut free_from = Pa::new(memory.base().raw() + data_size(cpus));
            assert!(data_size(cpus) >= (cpus * size_of::<PerCpu>()) as u64);
            for n in 0..cpus {
                let area = area(memory, cpus, n);
                assert_eq!(area.mapped().base(), Pa::new(free_from.raw() + PAGE_SIZE), "the guard page of CPU {n}");
                assert!(
                    [area.stack, area.emergency, area.vectors].iter().all(|part| part.base().is_aligned(PAGE_SIZE))
                );
                assert_eq!((area.stack.size(), area.emergency.size()), (STACK_SIZE, EMERGENCY_STACK_SIZE));
                assert_eq!((area.stack.end(), area.emergency.end()), (area.emergency.base(), area.vectors.base()));
                assert!(memory.contains_range(area.mapped()), "CPU {n} of {cpus}");
                free_from = area.mapped().end();
            }
        }
    }
}
