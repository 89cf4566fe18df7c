//! What each CPU keeps for itself: its number, its stacks, its counters. TPIDR_EL2 points to it.
//!
//! boot/entry.S and boot/vectors.S read the first fields; their offsets come from this type.

use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::addr::{BLOCK_PAGES, CpuId, Pfn, VcpuId, VmId};
use super::features::{Features, SeenIds};
use super::shadow::Context;
use super::world::VgicInfo;

/// Size of a CPU's stack in bytes.
pub const STACK_SIZE: u64 = 8 * 1024;
/// Size in bytes of the stack that a trap of the core itself runs on.
pub const EMERGENCY_STACK_SIZE: u64 = 4 * 1024;
/// Size in bytes of an area that holds z0-z31, p0-p15 and FFR of any CPU: the architecture's longest vectors have 2,048 bits. Whole pages.
pub const VECTORS_SIZE: u64 = 12 * 1024;

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
    /// A host access to what is not the host's: answered by an external abort, or for its kernel's data accesses by an alignment fault.
    HostAccessDenied = "host accesses denied",
    /// A hypercall of the host; that which lets a vCPU run is an entry.
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
    /// An SError while the host ran: it went back to the host.
    HostSError = "host SErrors",
    /// A device's access to what the host may not access: refused by an SMMU.
    DeviceAccessDenied = "device accesses denied",
    /// An access of the host to a register that it reaches through the core.
    HostMmio = "host accesses to mediated registers",
}

/// Events of a kind that are told on the console; the rest is only counted, or a host could drown every other line.
pub const TOLD: u64 = 32;

/// Where this CPU's memory of a page is empty. No page has this address or number, so no wrong value of a layer's is taken for one that was found; page 0
/// would be the likeliest wrong value of all.
const NOTHING: u64 = u64::MAX;

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
    found: Found,
    /// What this CPU looked at last through its window: a page, or ([`BLOCK`](PerCpu::BLOCK)) any of a 2 MiB block; [`NOTHING`] before.
    seen: AtomicU64,
    /// The 2 MiB block of which this CPU changed pages last through its windows, in the same form.
    changed: AtomicU64,
    world: UnsafeCell<World>,
}

/// Adopted pages that this CPU has found to be such, so that it need not look into the core's map at every word.
struct Found {
    /// How often pages had been released when they were found.
    releases: AtomicU64,
    pages: [AtomicU64; Found::PLACES],
}

impl Found {
    const PLACES: usize = 8;

    const fn place(page: u64) -> usize {
        (page >> 12) as usize % Self::PLACES
    }
}

// SAFETY: `world` is reached only through a raw pointer (`PerCpu::world`), by the CPU whose data this is; the rest is atomic or constant.
unsafe impl Sync for PerCpu {}

/// What a CPU keeps of the host while a VM has its registers, and which vCPU it runs.
// What is small comes first: one instruction reaches it.
#[repr(C)]
pub struct World {
    /// What the CPU has.
    pub features: Features,
    /// The VM that runs here; the host when none.
    pub vm: VmId,
    /// Its vCPU; the CPU's own number when the host runs.
    pub vcpu: VcpuId,
    /// The GIC's virtual CPU interface.
    pub vgic: VgicInfo,
    /// Active-priority registers of each group that it has, with GICv3.
    pub priorities: u8,
    /// List registers from this one on are empty.
    pub list_registers: u8,
    /// The host was in SVE streaming mode.
    pub streaming: bool,
    /// The FP registers of the host are saved: those of the VM that runs here are in the CPU, or come there with it.
    pub fp_saved: bool,
    /// Address of the area for the host's vectors; 0 if there is none.
    pub vectors: u64,
    /// PMCR_EL0 of the host.
    pub pmcr: u64,
    /// PMSCR_EL1 of the host.
    pub pmscr: u64,
    /// TRFCR_EL1 of the host.
    pub trfcr: u64,
    /// HCR_EL2.VSE of the host when it left for a VM: an SError waits for it until it is back.
    pub serror: u64,
    /// The host's registers.
    pub host: Context,
    /// What VMs see of the CPU's ID registers.
    pub ids: SeenIds,
    /// PMBLIMITR_EL1 of the host.
    pub pmblimitr: u64,
    /// TRBLIMITR_EL1 of the host.
    pub trblimitr: u64,
    /// BRBCR_EL1 of the host.
    pub brbcr: u64,
    /// FPMR of a host in SVE streaming mode.
    pub fpmr: u64,
}

impl PerCpu {
    /// The data of a CPU that has not started.
    pub const fn new(cpu: CpuId, mpidr: u64, stack_top: u64, emergency_top: u64) -> Self {
        let world = World {
            host: Context::EMPTY,
            features: Features::NONE,
            ids: SeenIds::NONE,
            vm: VmId::HOST,
            vcpu: VcpuId::new(cpu.raw()),
            vgic: VgicInfo::NONE,
            priorities: 0,
            list_registers: 0,
            streaming: false,
            fp_saved: false,
            vectors: 0,
            pmcr: 0,
            pmscr: 0,
            trfcr: 0,
            serror: 0,
            pmblimitr: 0,
            trblimitr: 0,
            brbcr: 0,
            fpmr: 0,
        };
        let events = [const { AtomicU64::new(0) }; Event::COUNT];
        let found = Found { releases: AtomicU64::new(0), pages: [const { AtomicU64::new(NOTHING) }; Found::PLACES] };
        Self {
            stack_top,
            emergency_top,
            mpidr,
            cpu,
            events,
            found,
            seen: AtomicU64::new(NOTHING),
            changed: AtomicU64::new(NOTHING),
            world: UnsafeCell::new(world),
        }
    }

    /// The same data with an area for the host's vectors at the address `area`: [`VECTORS_SIZE`] bytes that are this CPU's for good; 0 if there is none yet.
    pub fn with_vectors(mut self, area: u64) -> Self {
        self.world.get_mut().vectors = area;
        self
    }

    /// Addresses of both stacks, which lie one above the other; none for the data of early boot, whose stacks are the image's.
    pub const fn stacks(&self) -> Range<u64> {
        match self.stack_top.checked_sub(STACK_SIZE) {
            Some(bottom) => bottom..self.emergency_top,
            None => 0..0,
        }
    }

    /// Whether this CPU found `page` to be adopted, and no page has been released since: `releases` counts them.
    #[inline]
    pub fn has_found(&self, page: u64, releases: u64) -> bool {
        self.found.releases.load(Ordering::Relaxed) == releases
            && self.found.pages[Found::place(page)].load(Ordering::Relaxed) == page
    }

    /// This CPU found `page` to be adopted, when `releases` pages had been released.
    pub fn remember(&self, page: u64, releases: u64) {
        if self.found.releases.swap(releases, Ordering::Relaxed) != releases {
            self.found.pages.iter().for_each(|known| known.store(NOTHING, Ordering::Relaxed));
        }
        self.found.pages[Found::place(page)].store(page, Ordering::Relaxed);
    }

    /// Bit of `seen`: the rest is the number of a block.
    const BLOCK: u64 = 1 << 63;

    const fn block_of(pfn: Pfn) -> u64 {
        (pfn.raw() / BLOCK_PAGES) | Self::BLOCK
    }

    /// Whether `pfn` is the page that this CPU looked at last, or lies in the block.
    #[inline]
    pub fn has_seen(&self, pfn: Pfn) -> bool {
        let seen = self.seen.load(Ordering::Relaxed);
        seen == Self::block_of(pfn) || seen == pfn.raw()
    }

    /// Whether `pfn` lies in the block of which this CPU changed pages last.
    #[inline]
    pub fn has_changed(&self, pfn: Pfn) -> bool {
        self.changed.load(Ordering::Relaxed) == Self::block_of(pfn)
    }

    /// This CPU changes pages in the 2 MiB block around `pfn`, of all of which is known that it may.
    pub fn note_changed(&self, pfn: Pfn) {
        self.changed.store(Self::block_of(pfn), Ordering::Relaxed);
    }

    /// This CPU looks at `pfn`, of which is known that it may; with `block` it is known of all of the 2 MiB block around it.
    pub fn note_seen(&self, pfn: Pfn, block: bool) {
        self.seen.store(if block { Self::block_of(pfn) } else { pfn.raw() }, Ordering::Relaxed);
    }

    /// The world switch's part; only the CPU itself follows the pointer.
    pub const fn world(&self) -> *mut World {
        self.world.get()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu() -> PerCpu {
        PerCpu::new(CpuId::new(0), 0, 0, 0)
    }

    #[test]
    fn a_cpu_that_has_looked_at_nothing_has_found_nothing_page_0_least_of_all() {
        let cpu = cpu();
        for page in (0..64).map(|n| n * 4096) {
            assert!(!cpu.has_found(page, 0), "{page:#x}");
        }
        for pfn in (0..64).map(Pfn::new) {
            assert!(!cpu.has_seen(pfn) && !cpu.has_changed(pfn), "{pfn:?}");
        }
    }

    #[test]
    fn a_cpus_stacks_end_above_its_guard_page_and_early_boot_has_none() {
        let cpu = PerCpu::new(CpuId::new(0), 0, 0x8000_3000, 0x8000_4000);
        assert_eq!(cpu.stacks(), 0x8000_1000..0x8000_4000);
        assert!(PerCpu::new(CpuId::new(0), 0, 0, 0x8000_4000).stacks().is_empty());
    }

    #[test]
    fn what_was_found_is_known_until_a_page_is_released() {
        let cpu = cpu();
        (1..=8).for_each(|n| cpu.remember(n << 12, 0));
        assert!((1..=8).all(|n| cpu.has_found(n << 12, 0)) && !cpu.has_found(0, 0));
        // Another page takes the place of one.
        cpu.remember(9 << 12, 0);
        assert!(cpu.has_found(9 << 12, 0) && !cpu.has_found(1 << 12, 0) && cpu.has_found(2 << 12, 0));
        assert!(!cpu.has_found(9 << 12, 1), "nothing is known once a page was released");
        cpu.remember(2 << 12, 1);
        assert!(cpu.has_found(2 << 12, 1));
        assert!((0..16).filter(|n| *n != 2).all(|n| !cpu.has_found(n << 12, 1)), "nor is it again afterwards");
    }

    #[test]
    fn what_was_seen_is_a_page_or_its_block_and_what_was_changed_a_block() {
        let cpu = cpu();
        cpu.note_seen(Pfn::new(513), false);
        assert!(cpu.has_seen(Pfn::new(513)) && !cpu.has_seen(Pfn::new(514)) && !cpu.has_seen(Pfn::new(0)));
        cpu.note_seen(Pfn::new(513), true);
        assert!(cpu.has_seen(Pfn::new(512)) && cpu.has_seen(Pfn::new(1023)));
        assert!(!cpu.has_seen(Pfn::new(511)) && !cpu.has_seen(Pfn::new(1024)) && !cpu.has_seen(Pfn::new(1)));
        cpu.note_changed(Pfn::new(5));
        assert!(cpu.has_changed(Pfn::new(0)) && cpu.has_changed(Pfn::new(511)) && !cpu.has_changed(Pfn::new(512)));
        assert!(!cpu.has_seen(Pfn::new(0)));
    }
}
