//! What each CPU keeps for itself: its number, its stacks, its counters. TPIDR_EL2 points to it.
//!
//! boot/entry.S and boot/vectors.S read the first fields; their offsets come from this type.

use core::sync::atomic::{AtomicU64, Ordering};

use super::addr::CpuId;

/// Size of a CPU's stack in bytes.
pub const STACK_SIZE: u64 = 8 * 1024;
/// Size in bytes of the stack that a trap of the core itself runs on.
pub const EMERGENCY_STACK_SIZE: u64 = 4 * 1024;

/// What is counted on every CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Event {
    /// A host access that the core answered by mapping more of the host's memory.
    HostFaultServed,
    /// A host access to what is not the host's: answered by an external abort.
    HostAccessDenied,
    /// A hypercall of the host.
    HostHypercall,
    /// An SMC of the host.
    HostSmc,
    /// An instruction or register that the host has no right to: answered by an undefined instruction.
    HostUndefined,
}

impl Event {
    /// Number of kinds of events.
    pub const COUNT: usize = 5;
    /// Every kind, in order.
    pub const ALL: [Self; Self::COUNT] =
        [Self::HostFaultServed, Self::HostAccessDenied, Self::HostHypercall, Self::HostSmc, Self::HostUndefined];

    /// What this kind is called in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostFaultServed => "host stage-2 faults served",
            Self::HostAccessDenied => "host accesses denied",
            Self::HostHypercall => "host hypercalls",
            Self::HostSmc => "host SMCs",
            Self::HostUndefined => "host instructions undefined",
        }
    }
}

/// Data of one CPU.
#[repr(C)]
pub struct PerCpu {
    /// Top of the stack on which traps of the host are served.
    pub stack_top: u64,
    /// Top of the stack on which a trap of the core itself is reported.
    pub emergency_top: u64,
    /// Affinity of the CPU: MPIDR_EL1 without its flag bits.
    pub mpidr: u64,
    /// Dense number of the CPU.
    pub cpu: CpuId,
    events: [AtomicU64; Event::COUNT],
}

impl PerCpu {
    /// The data of a CPU that has not started.
    pub const fn new(cpu: CpuId, mpidr: u64, stack_top: u64, emergency_top: u64) -> Self {
        Self { stack_top, emergency_top, mpidr, cpu, events: [const { AtomicU64::new(0) }; Event::COUNT] }
    }

    /// One more of this event. Only this CPU writes its counters, so load and store need not be one access.
    pub fn count(&self, event: Event) {
        let counter = &self.events[event as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// How often this event was counted on this CPU.
    pub fn counted(&self, event: Event) -> u64 {
        self.events[event as usize].load(Ordering::Relaxed)
    }
}
