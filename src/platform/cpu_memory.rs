//! Where data, stacks and vectors of the CPUs stand on a machine with many of them: in whole 2 MiB blocks of their own beside the page records.
//!
//! What each CPU needs grows with their number, and the page pool does not: 64 CPUs would use it up, and from 40 on the host could give no page for VMs
//! (`own_map::adopt` leaves a quarter of the pool to the host's table). [`FEW`] CPUs have room in the pool, and the core keeps nothing more of such a machine's RAM.
//!
//! From the bottom up: the data of all CPUs, one behind the other; then for each CPU a page that is never mapped, its stack, its emergency stack, its vectors. So a stack that is
//! used up runs into a page that is not there, as in the pool. Pure.
#![forbid(unsafe_code)]

use super::device_tree::MAX_CPUS;
use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SIZE, Pa, PhysRange};
use crate::abstract_machine::per_cpu::{EMERGENCY_STACK_SIZE, PerCpu, STACK_SIZE, VECTORS_SIZE};

/// So many CPUs at most have their data and stacks in the page pool: 72 of its some 395 pages, with the longest vectors.
pub const FEW: usize = 8;

/// Bytes of guard page, stack and emergency stack.
pub const STACKS_SIZE: u64 = PAGE_SIZE + STACK_SIZE + EMERGENCY_STACK_SIZE;
/// Bytes of all that a CPU has besides its data.
const AREA_SIZE: u64 = STACKS_SIZE + VECTORS_SIZE;
/// Bytes of the data of as many CPUs as there may be, in whole pages: behind them stand the areas.
const DATA_SIZE: u64 = (size_of::<PerCpu>() * MAX_CPUS).next_multiple_of(PAGE_SIZE as usize) as u64;
/// Bytes of it all.
const SIZE: u64 = (DATA_SIZE + MAX_CPUS as u64 * AREA_SIZE).next_multiple_of(BLOCK_2M);

/// Bytes of memory of their own for `cpus` CPUs, whole 2 MiB blocks; 0 if the pool has room for them.
pub const fn size(cpus: usize) -> u64 {
    if cpus <= FEW { 0 } else { SIZE }
}

/// Where one CPU's stacks and vectors stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// All that is to be mapped of it: what lies above the guard page.
    pub mapped: PhysRange,
    /// The end of the stack on which traps of the host are served; the one for a trap of the core itself begins there.
    pub stack_top: Pa,
    /// The host's vectors while a VM has the CPU: [`VECTORS_SIZE`] bytes.
    pub vectors: Pa,
}

/// Where the data of all CPUs stand in `memory`, which has [`size`] bytes.
pub const fn data(memory: PhysRange) -> PhysRange {
    PhysRange::between(memory.base(), Pa::new(memory.base().raw().wrapping_add(DATA_SIZE)))
}

/// The area of CPU `n`, less than [`MAX_CPUS`], there.
pub const fn area(memory: PhysRange, n: usize) -> Area {
    // All of it lies in `memory`: nothing wraps.
    let guard = data(memory).end().raw().wrapping_add((n as u64).wrapping_mul(AREA_SIZE));
    let stack = Pa::new(guard.wrapping_add(PAGE_SIZE));
    Area {
        mapped: PhysRange::between(stack, Pa::new(guard.wrapping_add(AREA_SIZE))),
        stack_top: Pa::new(stack.raw().wrapping_add(STACK_SIZE)),
        vectors: Pa::new(guard.wrapping_add(STACKS_SIZE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_cpus_take_nothing_and_as_many_as_there_may_be_one_block() {
        assert!((0..=FEW).all(|cpus| size(cpus) == 0));
        assert!((FEW + 1..=MAX_CPUS).all(|cpus| size(cpus) == BLOCK_2M));
    }

    #[test]
    fn nothing_of_a_cpu_overlaps_anothers_and_a_page_below_each_stack_is_nobodys() {
        let memory = PhysRange::new(Pa::new(0xffe0_0000), size(MAX_CPUS)).unwrap();
        assert!(data(memory).base() == memory.base() && data(memory).size() >= (MAX_CPUS * size_of::<PerCpu>()) as u64);
        let mut below = data(memory).end();
        for n in 0..MAX_CPUS {
            let area = area(memory, n);
            let [bottom, end] = [area.mapped.base(), area.mapped.end()].map(Pa::raw);
            assert_eq!(bottom - PAGE_SIZE, below.raw(), "the guard page of CPU {n}");
            assert_eq!(area.stack_top.raw() - bottom, STACK_SIZE);
            assert_eq!(area.vectors.raw() - area.stack_top.raw(), EMERGENCY_STACK_SIZE);
            assert_eq!(end - area.vectors.raw(), VECTORS_SIZE);
            assert!(bottom % PAGE_SIZE == 0 && memory.contains_range(area.mapped), "CPU {n}");
            below = area.mapped.end();
        }
    }
}
