//! What each CPU keeps for itself: its number, its stacks, its counters. TPIDR_EL2 points to it.
//!
//! boot/entry.S and boot/vectors.S read the first fields; their offsets come from this type.

use core::sync::atomic::{AtomicU64, Ordering};

use super::addr::{CpuId, Pa, VcpuId, VmId};

/// Size of a CPU's stack in bytes.
pub const STACK_SIZE: u64 = 8 * 1024;
/// Size in bytes of the stack that a trap of the core itself runs on.
pub const EMERGENCY_STACK_SIZE: u64 = 4 * 1024;

macro_rules! events {
    ($($(#[doc = $doc:literal])* $event:ident = $name:literal,)*) => {
        /// What is counted on every CPU. The order is the interface's: append only.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Event {
            $($(#[doc = $doc])* $event,)*
        }

        impl Event {
            /// Every kind, in order.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$event,)*];
            /// Number of kinds of events.
            pub const COUNT: usize = [$(Self::$event as usize,)*].len();

            /// What this kind is called in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$event => $name,)* }
            }
        }
    };
}

events! {
    /// A host access that the core answered by mapping more of the host's memory.
    HostFaultServed = "host stage-2 faults served",
    /// A host access to what is not the host's: answered by an external abort.
    HostAccessDenied = "host accesses denied",
    /// A hypercall of the host.
    HostHypercall = "host hypercalls",
    /// An SMC of the host.
    HostSmc = "host SMCs",
    /// An instruction or register that the host has no right to: answered by an undefined instruction.
    HostUndefined = "host instructions undefined",
    /// The host let a vCPU run.
    VcpuEntry = "vCPU entries",
    /// An exit of a VM that the core served: no host took part.
    VmExitServed = "VM exits served by the core",
    /// A VM took an undefined instruction for something that VMs do not have.
    VmUndefined = "VM instructions undefined",
    /// A VM took an external abort of the core's: for an address that it may not show, or that stage 2 refuses for good.
    VmAccessDenied = "VM accesses denied",
    /// Exits to the host, by reason: a physical interrupt.
    ExitIrq = "VM exits: interrupt",
    /// The VM's timer.
    ExitTimer = "VM exits: timer",
    /// WFI.
    ExitWfx = "VM exits: wait for interrupt",
    /// A load from a device.
    ExitMmioRead = "VM exits: device read",
    /// A store to a device.
    ExitMmioWrite = "VM exits: device write",
    /// Memory that is not there yet.
    ExitMemoryFault = "VM exits: memory fault",
    /// A call for the host.
    ExitPsci = "VM exits: PSCI",
    /// A system register for the host.
    ExitSysreg = "VM exits: system register",
    /// The VM's end by its own will.
    ExitSystemOff = "VM exits: system off",
    /// By the host's.
    ExitStopped = "VM exits: stopped",
    /// By a failure.
    ExitFailed = "VM exits: failed",
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
    /// The Context of the VM that runs, or ran last; for boot/switch.S.
    pub context: AtomicU64,
    /// Dense number of the CPU.
    pub cpu: CpuId,
    /// Page with the host's registers while a VM runs here: a [`super::shadow::Context`].
    pub host_context: Pa,
    /// Room for the host's SVE state, on a CPU that has SVE.
    pub host_vectors: Option<Pa>,
    current: AtomicU64,
    events: [AtomicU64; Event::COUNT],
}

impl PerCpu {
    /// The data of a CPU that has not started.
    pub const fn new(cpu: CpuId, mpidr: u64, stack_top: u64, emergency_top: u64) -> Self {
        Self {
            stack_top,
            emergency_top,
            mpidr,
            context: AtomicU64::new(0),
            cpu,
            host_context: Pa::new(0),
            host_vectors: None,
            current: AtomicU64::new(0),
            events: [const { AtomicU64::new(0) }; Event::COUNT],
        }
    }

    /// The same, with room for the host's registers.
    #[must_use]
    pub const fn with_host_context(mut self, page: Pa, vectors: Option<Pa>) -> Self {
        self.host_context = page;
        self.host_vectors = vectors;
        self
    }

    /// Who runs on this CPU. K: `get_cur_vmid`, `get_cur_vcpuid`.
    pub fn current(&self) -> (VmId, VcpuId) {
        let word = self.current.load(Ordering::Relaxed);
        (VmId::new((word >> 16) as u16), VcpuId::new(word as u16))
    }

    /// Says who runs on this CPU. K: `set_per_cpu`. Only this CPU does.
    pub fn set_current(&self, vm: VmId, vcpu: VcpuId) {
        self.current.store(u64::from(vm.raw()) << 16 | vcpu.index() as u64, Ordering::Relaxed);
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
