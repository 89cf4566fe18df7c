//! Layer 0, AbstractMachine: all that the layers can do to the machine.
//!
//! The layers above are ordinary safe Rust over the trait [`Machine`]. It has two implementations:
//! [`cpu`] is the real CPU at EL2; `unsafe` stands only here, in `platform` and in `boot`;
//! [`sim`] is a simulated machine for the development machine, on which every layer is tested next to its
//! specification.
//!
//! | part           | holds                                                                            |
//! |----------------|----------------------------------------------------------------------------------|
//! | [`addr`]       | a type for each kind of address and number                                       |
//! | [`turn`]       | the words of a ticket lock, and the data that a held turn gives access to        |
//! | [`regs`]       | trapped registers by name: syndromes, the host's EL1 registers, its x0-x30       |
//! | [`shadow`]     | the registers of a VM that does not run, by name                                 |
//! | [`world`]      | the world switch: host to VM and back                                            |
//! | [`per_cpu`]    | what each CPU keeps: stacks, identity, counters                                  |
//! | [`features`]   | what each CPU has                                                                |
//! | [`sha256`]     | digests of pages                                                                 |
//! | [`shape`]      | the form of a stage-2 table: address bits, levels, root                          |
//! | [`gic_registers`] | fields of a GICv3's ITSs and redistributors                                  |
//! | [`stream_table`] | the form of an SMMU's table of streams                                         |
//! | `cpu`          | system registers, TLB and cache maintenance, page-table memory, SMC              |
//! | `sim`          | the same on the development machine, with a TLB that remembers too much          |
//!
//! Source: SeKVM layer AbstractMachine; K §1.2.

pub mod addr;
pub mod features;
pub mod gic_registers;
pub mod per_cpu;
pub mod regs;
pub mod sha256;
pub mod shadow;
pub mod shape;
pub mod stream_table;
pub mod turn;
pub mod world;

#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(not(target_os = "none"))]
pub mod sim;

use addr::{Ipa, Pa, Pfn, PhysRange, VmId};
use regs::{El1Reg, Syndrome, SysregId};
use sha256::Sha256;
use shape::Stage2;
pub use world::{ContextAt, ExitCode, VgicInfo, VgicWord, VirtualLines, Worlds};

/// What the firmware, or the board in its place, did with a call that the core passed on or served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SmcOutcome {
    /// The call is over; x0 to x3 for the caller.
    Return([u64; 4]),
    /// The CPU starts again at this address in the host, with this value in x0 (power-down suspend, or a CPU
    /// that was switched off and on again): everything else of its EL1 state is at reset.
    Restart {
        /// Where the host runs on: an address with the host's MMU off.
        entry: Ipa,
        /// Its x0.
        context: u64,
    },
}

/// A page that belongs to somebody else, who may write it at any time from any CPU. What is read is therefore kept and used; reading it again would be another
/// value (K §8.3 A2, A17).
pub trait ForeignPage {
    /// Reads a word, in one access. `word` is below 512.
    fn read(&self, word: usize) -> u64;

    /// Writes a word, in one access. `word` is below 512.
    fn write(&self, word: usize, value: u64);
}

/// A CPU that digests pages.
pub trait PageDigester {
    /// Whether it has instructions for that, with which a byte takes two of them at most; else it takes about sixty.
    fn is_fast(&self) -> bool;

    /// Adds the page `pfn` to `digest`: a page of somebody else, who does not write it meanwhile. FIPS 180-4, 6.2.2.
    fn add(&mut self, digest: &mut Sha256, pfn: Pfn);
}

/// Bytes of a page-table entry.
pub const ENTRY_SIZE: u64 = 8;

/// The machine, as the layers see it.
///
/// An implementation is shared by all CPUs; a method that speaks of "this CPU" means the one that calls it.
/// Page-table memory is reached by physical address, but only within the pool that the tables come from and pages that
/// were adopted: an entry outside it is a broken invariant and stops the machine, so no error in a layer can make the core
/// write elsewhere.
pub trait Machine: Worlds {
    /// A page of somebody else, within the core's reach until it is dropped.
    type Foreign<'v>: ForeignPage
    where
        Self: 'v;

    /// This CPU while it digests pages.
    type Digester<'d>: PageDigester
    where
        Self: 'd;

    /// Reads the page-table entry at `entry`, which lies in the pool, in one access. K: `pt_load`.
    fn pt_load(&self, entry: Pa) -> u64;

    /// Writes the page-table entry at `entry`, which lies in the pool, in one access. K: `pt_store`.
    fn pt_store(&self, entry: Pa, value: u64);

    /// How many of the `most` entries from `entry` on, all in one table, are as `fits` says, up to the first that is not: as so many [`pt_load`](Self::pt_load)s.
    fn pt_load_run(&self, entry: Pa, most: u64, mut fits: impl FnMut(u64) -> bool) -> u64 {
        let at = |n| Pa::new(entry.raw() + n * ENTRY_SIZE);
        (0..most).find(|n| !fits(self.pt_load(at(*n)))).unwrap_or(most)
    }

    /// Writes `count` entries from `entry` on, all in one table: of each of `runs` as many as it says, the first is its value, each behind that `step` more. As so many
    /// [`pt_store`](Self::pt_store)s, in any order.
    fn pt_store_runs(&self, entry: Pa, count: u64, step: u64, runs: impl Iterator<Item = (u64, u64)>) {
        let values = runs.flat_map(|(value, entries)| (0..entries).map(move |n| value + n * step));
        let entries = (0..count).map(|n| Pa::new(entry.raw() + n * ENTRY_SIZE));
        entries.zip(values).for_each(|(entry, value)| self.pt_store(entry, value));
    }

    /// Takes `1 << order` pages for tables from the pool: zeroed, aligned to their size. `None` if the pool
    /// has no such run left.
    fn alloc_table(&self, order: u32) -> Option<Pa>;

    /// Gives table pages back that no table and no TLB refers to any more.
    fn free_table(&self, base: Pa, order: u32);

    /// Makes earlier [`pt_store`](Self::pt_store)s visible to every table walk that starts after it
    /// (DSB ISHST, ISB): enough after an invalid entry became valid, which no TLB holds.
    fn publish_tables(&self);

    /// The same for the walks of SMMUs, which may stand outside the CPUs' inner domain (DSB OSHST). IHI 0070, 3.15.
    fn publish_to_smmus(&self) {
        self.publish_tables();
    }

    /// Forgets, on every CPU, what was cached for the `pages` pages from `ipa` of `vm` on, including combined stage-1 entries, and waits
    /// until it is done: DSB; TLBI IPAS2E1IS for each; DSB; TLBI VMALLE1IS; DSB; ISB. For many pages all of `vm` instead. K §2 L8, Arm ARM D8.16.
    /// `table` is the VM's.
    fn tlb_flush_run(&self, vm: VmId, table: Stage2, ipa: Ipa, pages: u64);

    /// [`tlb_flush_run`](Self::tlb_flush_run) for one page.
    fn tlb_flush_ipa(&self, vm: VmId, table: Stage2, ipa: Ipa) {
        self.tlb_flush_run(vm, table, ipa, 1);
    }

    /// Forgets, on every CPU, all that was cached for `vm`, whose table this is.
    fn tlb_flush_vm(&self, vm: VmId, table: Stage2);

    /// Makes every SMMU forget what it cached for the `pages` pages from `at` on, and of the tables on the way to them, after earlier
    /// [`pt_store`](Self::pt_store)s are seen by it; and waits until that is done and devices' accesses that used it are over. On a machine without SMMUs: nothing.
    /// IHI 0070, 4.4 and 4.6.3. Under the lock S2Page: there is one queue of commands.
    fn smmu_flush(&self, at: Ipa, pages: u64);

    /// The core's own map gains the page, zeroed: from now on `pt_load`, `pt_store` and the shadow contexts reach it.
    /// `false` if the core has no page left for its own tables; nothing has changed then.
    fn adopt_page(&self, pfn: Pfn) -> bool;

    /// Scrubs an adopted page, cleans it to the point of coherency, and takes it out of the core's own map on all CPUs.
    fn release_page(&self, pfn: Pfn);

    /// Brings a page of somebody else, which stays theirs meanwhile, within the reach of this CPU. One at a time.
    fn open_page(&self, pfn: Pfn) -> Self::Foreign<'_>;

    /// Copies words (of 8 bytes) of a page of somebody else, from its `first_word` on, each read once; all lie in the page, which has 512.
    fn read_page(&self, pfn: Pfn, first_word: usize, out: &mut [u64]);

    /// Writes words of a page of somebody else, from its `first_word` on, each once; all lie in the page.
    fn write_page(&self, pfn: Pfn, first_word: usize, words: &[u64]);

    /// This CPU digests pages from now on, until that is dropped; in a call of the host. Registers of the host that it may need for that are saved before, and
    /// come back then. One at a time.
    fn digester(&self) -> Self::Digester<'_>;

    /// Fills whole pages, any pages of RAM, with zeroes and cleans them to the point of coherency.
    fn clear_phys_run(&self, pages: PhysRange);

    /// The same for one page. K: `clear_phys_page`.
    fn clear_phys_page(&self, pfn: Pfn) {
        self.clear_phys_run(PhysRange::of_pages(pfn, 1));
    }

    /// Fills whole pages, any pages of RAM, with zeroes, which every cacheable access finds; what goes around the caches may not, before they are cleaned.
    fn zero_phys_run(&self, pages: PhysRange);

    /// Whether every access of a VM to its RAM is a write-back one, whatever its stage 1 says or if it has none (FEAT_S2FWB): it never goes around the caches, and data that
    /// became instructions need not be cleaned for it (CTR_EL0.IDC, which comes with it). Then its leaves are made for that ([`Desc::of_vm`](crate::npt::descriptor::Desc::of_vm)).
    fn forces_write_back(&self) -> bool;

    /// Cleans whole pages from the data caches to the point of coherency, and drops them there: whoever reads them next reads memory.
    fn clean_phys_run(&self, pages: PhysRange);

    /// Cleans the range from the data caches to the point of coherency and drops it from the instruction
    /// caches of all CPUs: for memory that changes hands (K A21).
    fn sync_page_to_poc(&self, range: PhysRange);

    /// Drops everything from the instruction caches of all CPUs: what is left of [`sync_page_to_poc`](Self::sync_page_to_poc) for memory that is clean.
    fn forget_instructions(&self);

    /// Syndrome of the trap that this CPU serves. K: `read_esr_el2`.
    fn read_esr_el2(&self) -> Syndrome;

    /// Page of the intermediate physical address that faulted (HPFAR_EL2): valid for stage-2 translation and
    /// access-flag faults, and for faults of a stage-1 walk. K: `read_hpfar_el2`.
    fn read_hpfar_el2(&self) -> Ipa;

    /// Virtual address that faulted (FAR_EL2).
    fn read_far_el2(&self) -> u64;

    /// Where the trapped host goes on (ELR_EL2).
    fn host_pc(&self) -> u64;

    /// Sets where the trapped host goes on (ELR_EL2).
    fn set_host_pc(&self, pc: u64);

    /// The trapped host's processor state (SPSR_EL2).
    fn host_pstate(&self) -> u64;

    /// Sets the trapped host's processor state (SPSR_EL2).
    fn set_host_pstate(&self, pstate: u64);

    /// Makes the SError of `syndrome` the host's: it takes it as soon as it does not mask SErrors (VSESR_EL2, HCR_EL2.VSE).
    fn pend_host_serror(&self, syndrome: Syndrome);

    /// Loads 4 or 8 bytes, as `size` says, from a register of a device that is mapped for the core, aligned to them.
    fn mmio_read(&self, at: Pa, size: u64) -> u64;

    /// Stores 4 or 8 bytes, as `size` says, to a register of a device that is mapped for the core, aligned to them.
    fn mmio_write(&self, at: Pa, size: u64, value: u64);

    /// Reads an EL1 register of the host.
    fn read_el1(&self, reg: El1Reg) -> u64;

    /// Writes an EL1 register of the host.
    fn write_el1(&self, reg: El1Reg, value: u64);

    /// What this CPU's ID register holds; zero where the architecture has none. `reg` is one of op0 3, op1 0, CRn 0, CRm 1 to 7.
    /// As `view` shows it, which always shows the same of the same: so the machine may keep that.
    fn id_register(&self, reg: SysregId, view: impl FnOnce(u64) -> u64) -> u64;

    /// Serves a trapped SMC of the host from the whitelist: PSCI, and what firmware may be asked. It may not
    /// return (CPU or system off). `is_host_memory` says whether an address is the host's, for entry points.
    fn host_smc(&self, args: [u64; 4], is_host_memory: &dyn Fn(Ipa) -> bool) -> SmcOutcome;

    /// Copies recent log lines from sequence number `seq` on into `out`: the next sequence number and the
    /// number of bytes copied.
    fn read_log(&self, seq: u64, out: &mut [u8]) -> (u64, usize);

    /// One more event of this kind on this CPU.
    fn count(&self, event: per_cpu::Event);

    /// Sum of the events of this kind over all CPUs.
    fn counted(&self, event: per_cpu::Event) -> u64;

    /// One more of this event, and how loud to tell it: the first [`TOLD`](per_cpu::TOLD) are warnings.
    fn count_to_tell(&self, event: per_cpu::Event) -> log::Level {
        self.count(event);
        if self.counted(event) <= per_cpu::TOLD { log::Level::Warn } else { log::Level::Trace }
    }

    /// Stops this CPU for good if the machine was halted by a failure. K: `check`.
    fn check(&self);
}
