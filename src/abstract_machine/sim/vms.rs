//! What VMs' hardware does, what pages hold, and what caches hold back of them.
//!
//! A page that became a VM's must be clean in memory, because a guest begins with its caches off, and gone from the instruction caches (K §8.3
//! A21); and what scrubbed it must have been the last that anybody else could do to it. Both are judged when its leaf becomes valid. So is a page that a VM had and that
//! was scrubbed, when the host gets it: no instruction cache may hold what the VM executed there.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::vec::Vec;

use super::reach::covers;
use super::tables::NewLeaf;
use super::walker::{AccessKind, Fault};
use super::{Sabotage, Sim, State};
use crate::abstract_machine::PageDigester;
use crate::abstract_machine::addr::{Ipa, PAGE_SIZE, Pa, Pfn, PhysRange, VmId};
use crate::abstract_machine::sha256::Sha256;

const WORDS: usize = 512;

/// What a page holds that nobody has written yet: different for each page, never zero.
pub const fn canary(pfn: Pfn) -> u64 {
    0xca4a_5100_0000_0000 | pfn.raw()
}

/// A CPU without instructions for it.
pub struct Digester<'s>(pub(super) &'s Sim);

impl PageDigester for Digester<'_> {
    fn is_fast(&self) -> bool {
        false
    }

    fn add(&mut self, digest: &mut Sha256, pfn: Pfn) {
        let page = self.0.state().content(pfn);
        digest.add_page(|word| page.word(word));
    }
}

/// What a page holds.
#[derive(Clone)]
pub(super) enum Content {
    /// Each word is this.
    Filled(u64),
    /// Word by word.
    Words(Vec<u64>),
}

impl Content {
    fn word(&self, n: usize) -> u64 {
        match self {
            Self::Filled(value) => *value,
            Self::Words(words) => words.get(n).copied().unwrap_or(0),
        }
    }
}

/// Pages of which caches hold something that memory, or an instruction cache, does not have yet.
#[derive(Default)]
pub(super) struct Caches {
    /// With what memory still holds beneath the caches.
    dirty: BTreeMap<u64, Content>,
    /// What a clean line still holds of pages that somebody wrote around the caches.
    outdated: BTreeMap<u64, Content>,
    stale_instructions: BTreeSet<u64>,
    /// Of which instruction caches may hold what a VM executed: first and last page of what its TLB entries led to.
    fetched: BTreeMap<u64, u64>,
    /// Those that were scrubbed since.
    foreign_instructions: BTreeSet<u64>,
    /// Scrubbed while somebody could still write them.
    too_early: BTreeSet<u64>,
    /// VMs run with HCR_EL2.FWB.
    pub(super) forced: bool,
}

impl Caches {
    /// `before` is what the page held until now.
    fn written(&mut self, pfn: Pfn, before: Content) {
        self.dirty.entry(pfn.raw()).or_insert(before);
        self.outdated.remove(&pfn.raw());
        self.stale_instructions.insert(pfn.raw());
    }

    /// Clean to the point of coherency.
    fn clean(&mut self, range: PhysRange) {
        let first = range.first_pfn().raw();
        self.dirty.retain(|pfn, _| !(first..first + range.pages()).contains(pfn));
        self.too_early.retain(|pfn| !(first..first + range.pages()).contains(pfn));
        self.outdated.retain(|pfn, _| !(first..first + range.pages()).contains(pfn));
    }

    /// The same, and all instruction caches invalid.
    fn sync(&mut self, range: PhysRange) {
        self.clean(range);
        self.stale_instructions.clear();
        self.foreign_instructions.clear();
    }

    /// A TLB leads the VM to this leaf: it may execute what is there. The host's instructions are its own.
    pub(super) fn fetched(&mut self, vm: u16, leaf: &super::Leaf) {
        let (first, pages) = (leaf.output / PAGE_SIZE, leaf.size / PAGE_SIZE);
        if vm == 0 {
            return;
        }
        let last = self.fetched.entry(first).or_default();
        *last = (*last).max(first + pages - 1);
    }

    /// Whether a VM may have executed what is in the page; a leaf has 2^18 pages at most.
    fn was_fetched(&self, pfn: u64) -> bool {
        self.fetched.range(..=pfn).rev().take_while(|(first, _)| pfn - *first < 1 << 18).any(|(_, last)| pfn <= *last)
    }

    /// Why a VM must not have memory that is mapped with `mem_attr`: not all of it fits how VMs run.
    fn misfit(&self, mem_attr: u64) -> Option<&'static str> {
        // Arm ARM D8.6.6: without FWB 0b0110 is non-cacheable outside and write-through inside, with it 0b1xxx is reserved.
        match (mem_attr, self.forced) {
            (0b1111, true) => Some("MemAttr is reserved with FWB"),
            (0b0110, false) => Some("MemAttr is that of FWB"),
            _ => None,
        }
    }
}

/// What there is for the core's own tables of adopted pages.
pub(super) struct Room {
    /// So many more pages can be adopted.
    pub(super) pages: usize,
    /// Pages of the pool that are not for them.
    pub(super) kept: usize,
}

impl Room {
    pub(super) const ENDLESS: Self = Self { pages: usize::MAX, kept: 0 };
}

impl State {
    pub(super) fn content(&self, pfn: Pfn) -> Content {
        self.caches.outdated.get(&pfn.raw()).cloned().unwrap_or_else(|| self.in_memory(pfn))
    }

    /// What is in memory, or on its way there.
    fn in_memory(&self, pfn: Pfn) -> Content {
        self.ram.get(&pfn.raw()).cloned().unwrap_or(Content::Filled(canary(pfn)))
    }

    /// Clean to the point of coherency.
    pub(super) fn clean(&mut self, pages: PhysRange) {
        if self.sabotage != Some(Sabotage::NoSync) {
            self.caches.clean(pages);
        }
    }

    /// The same, and in no instruction cache.
    pub(super) fn sync(&mut self, range: PhysRange) {
        self.synced.push(range);
        if self.sabotage != Some(Sabotage::NoSync) {
            self.caches.sync(range);
            self.note_cleaned(range);
            // What is still in a TLB may be fetched again at once.
            self.caches.fetched.clear();
            for vm in self.tables.vms() {
                self.cpus.iter().flat_map(|cpu| cpu.tlb.leaves(vm)).for_each(|leaf| self.caches.fetched(vm, &leaf));
            }
        }
    }

    /// Zeroes, page by page.
    pub(super) fn scrub_all(&mut self, pages: PhysRange, clean: bool) {
        if self.sabotage != Some(Sabotage::NoScrub) {
            let first = pages.first_pfn().raw();
            (first..first + pages.pages()).for_each(|pfn| self.scrub(Pfn::new(pfn), clean));
        }
    }

    /// What a page holds changes by a store that stays in the caches.
    fn write(&mut self, pfn: Pfn, content: Content) {
        let before = self.content(pfn);
        self.ram.insert(pfn.raw(), content);
        self.caches.written(pfn, before);
    }

    /// Zeroes that are in memory, if `clean`. What the host or a device may still write meanwhile, by what a TLB remembers, is not.
    fn scrub(&mut self, pfn: Pfn, clean: bool) {
        if self.tables.scrub(pfn.addr().raw()) {
            return;
        }
        self.write(pfn, Content::Filled(0));
        if self.caches.was_fetched(pfn.raw()) {
            self.caches.foreign_instructions.insert(pfn.raw());
        }
        if self.others_reach(pfn) {
            self.caches.too_early.insert(pfn.raw());
        } else {
            self.caches.too_early.remove(&pfn.raw());
            if clean {
                self.note_cleaned(PhysRange::of_pages(pfn, 1));
                self.caches.dirty.remove(&pfn.raw());
            }
        }
        let vms = self.tables.vms();
        let known =
            vms.into_iter().find(|vm| self.cpus.iter().any(|cpu| cpu.tlb.leaves(*vm).any(|leaf| covers(&leaf, pfn))));
        if let Some(vm) = known {
            self.tables.violation(format!("{pfn:?} was scrubbed while a TLB still leads VM {vm} to it"));
        }
    }

    pub(super) fn check_caches(&mut self, leaf: NewLeaf) {
        // The host runs without FWB, always.
        if leaf.vm == 0 && leaf.mem_attr == 0b0110 {
            self.tables.violation(format!("the host got {:#x} with the MemAttr of FWB", leaf.output));
        }
        if leaf.vm == 0 {
            let pfns = leaf.output / PAGE_SIZE..(leaf.output + leaf.size) / PAGE_SIZE;
            if let Some(pfn) = self.caches.foreign_instructions.range(pfns).next() {
                self.tables.violation(format!("the host got page {pfn:#x}, of which a VM's instructions are cached"));
            }
        }
        if leaf.vm == 0 || !matches!(leaf.mem_attr, 0b1111 | 0b0110) {
            return;
        }
        if let Some(misfit) = self.caches.misfit(leaf.mem_attr) {
            self.tables.violation(format!("VM {} got {:#x}: {misfit}", leaf.vm, leaf.output));
        }
        let range = PhysRange::between(Pa::new(leaf.output), Pa::new(leaf.output + leaf.size));
        let pfns = range.first_pfn().raw()..range.first_pfn().raw() + range.pages();
        // With FWB no access of the VM goes around the caches.
        if let Some((pfn, _)) = self.caches.dirty.range(pfns.clone()).next().filter(|_| !self.caches.forced) {
            self.tables.violation(format!("VM {} got page {pfn:#x}, which is not clean in memory (A21)", leaf.vm));
        }
        if let Some(pfn) = self.caches.too_early.range(pfns.clone()).next() {
            self.tables
                .violation(format!("VM {} got page {pfn:#x}, which others could write after its scrub", leaf.vm));
        }
        if let Some(pfn) = self.caches.stale_instructions.range(pfns).next() {
            self.tables.violation(format!("VM {} got page {pfn:#x}, of which instructions are cached (A21)", leaf.vm));
        }
    }

    pub(super) fn adopt(&mut self, pfn: Pfn) -> bool {
        if self.room_to_adopt.pages == 0 || self.tables.free_pages() < self.room_to_adopt.kept {
            return false;
        }
        self.room_to_adopt.pages -= 1;
        self.expect_unreached(pfn, "adopted");
        self.tables.adopt(pfn.addr().raw());
        self.ram.remove(&pfn.raw());
        true
    }

    pub(super) fn release(&mut self, pfn: Pfn) {
        self.expect_unreached(pfn, "released");
        let at = pfn.addr().raw();
        let remembered = self.cpus.iter().any(|cpu| cpu.tlb.knows_table(at));
        let tlbs: Vec<_> = self.cpus.iter().map(|cpu| cpu.tlb.clone()).collect();
        self.tables.release(at, remembered, |vm| tlbs.iter().any(|tlb| tlb.knows_vm(vm)));
        self.room_to_adopt.pages = self.room_to_adopt.pages.saturating_add(1);
        self.write(pfn, Content::Filled(0));
        self.caches.dirty.remove(&pfn.raw());
        self.caches.too_early.remove(&pfn.raw());
    }

    pub(super) fn read_page(&self, pfn: Pfn, first_word: usize, out: &mut [u64]) {
        let content = self.content(pfn);
        out.iter_mut().enumerate().for_each(|(n, word)| *word = content.word(first_word + n));
    }

    pub(super) fn write_page(&mut self, pfn: Pfn, first_word: usize, words: &[u64]) {
        let content = self.content(pfn);
        let mut all: Vec<u64> = (0..WORDS).map(|n| content.word(n)).collect();
        all[first_word..first_word + words.len()].copy_from_slice(words);
        self.write(pfn, Content::Words(all));
    }
}

impl Sim {
    /// First word of a page.
    pub fn read_ram(&self, pfn: Pfn) -> u64 {
        self.state().content(pfn).word(0)
    }

    /// Fills a page, as its owner on the host's side would.
    pub fn write_ram(&self, pfn: Pfn, value: u64) {
        self.state().write(pfn, Content::Filled(value));
    }

    /// First word of a page in memory itself, beneath the caches: what somebody finds who goes around them.
    pub fn read_beneath(&self, pfn: Pfn) -> u64 {
        let state = self.state();
        let beneath = state.caches.dirty.get(&pfn.raw()).cloned();
        beneath.unwrap_or_else(|| state.in_memory(pfn)).word(0)
    }

    /// The CPUs have FEAT_S2FWB: VMs run with HCR_EL2.FWB, the host never does.
    pub fn force_write_back(&self) {
        self.state().caches.forced = true;
    }

    /// What the hardware of `cpu` makes of the access of `vm` to `ipa`.
    ///
    /// # Errors
    /// The fault.
    pub fn vm_access(&self, cpu: usize, vm: VmId, ipa: Ipa, kind: AccessKind) -> Result<Pa, Fault> {
        let mut state = self.state();
        state.section_over();
        if state.tables.regime(vm.raw()).is_none() {
            return Err(Fault::Translation(0));
        }
        state.translate(cpu, vm.raw(), ipa.raw(), kind)
    }

    /// The VM's load from the page at `ipa`.
    ///
    /// # Errors
    /// The fault.
    pub fn vm_load(&self, cpu: usize, vm: VmId, ipa: Ipa) -> Result<u64, Fault> {
        let pa = self.vm_access(cpu, vm, ipa, AccessKind::Read)?;
        Ok(self.read_ram(Pfn::containing(pa)))
    }

    /// The VM's store to the page at `ipa`, which stays in the caches.
    ///
    /// # Errors
    /// The fault.
    pub fn vm_store(&self, cpu: usize, vm: VmId, ipa: Ipa, value: u64) -> Result<(), Fault> {
        let pa = self.vm_access(cpu, vm, ipa, AccessKind::Write)?;
        self.state().write(Pfn::containing(pa), Content::Filled(value));
        Ok(())
    }

    /// Fills a page around the caches, which hold a line of what was there before: as a VM does whose MMU is off, or whose own table says so.
    pub fn write_around(&self, pfn: Pfn, value: u64) {
        let mut state = self.state();
        let before = state.content(pfn);
        state.caches.dirty.remove(&pfn.raw());
        state.caches.outdated.insert(pfn.raw(), before);
        state.ram.insert(pfn.raw(), Content::Filled(value));
    }

    /// After every store to a table, all CPUs walk to these addresses of host and VMs on their own account, as speculation may.
    pub fn watch_vms(&self, ipas: &[(VmId, Ipa)]) {
        self.state().watched = ipas.to_vec();
    }

    /// So many more pages can be adopted before the core has no page left for its own tables.
    pub fn limit_adoption(&self, pages: usize) {
        self.state().room_to_adopt.pages = pages;
    }

    /// None can be adopted while fewer pages than these are left in the pool.
    pub fn keep_from_adoption(&self, pages: usize) {
        self.state().room_to_adopt.kept = pages;
    }

    /// Whether a TLB remembers anything of `vm`.
    pub fn knows_vm(&self, vm: VmId) -> bool {
        self.state().cpus.iter().any(|cpu| cpu.tlb.knows_vm(vm.raw()))
    }

    /// Pages that the core adopted.
    pub fn adopted(&self) -> BTreeSet<Pfn> {
        self.state().tables.adopted().into_iter().map(|addr| Pfn::new(addr / PAGE_SIZE)).collect()
    }

    /// All leaves and tables of `vm` that stand below a root whose entries are parked, as if they were not.
    pub fn enumerate_parked(&self, vm: VmId) -> (Vec<super::Leaf>, Vec<super::TableAt>) {
        let state = self.state();
        let Some(regime) = state.tables.regime(vm.raw()) else { return (Vec::new(), Vec::new()) };
        let roots: Vec<u64> = regime.root_tables().iter().map(|at| at.table).collect();
        let words: BTreeMap<u64, u64> = state.tables.snapshot();
        regime.enumerate(|addr| {
            let raw = words.get(&addr).copied().unwrap_or(0);
            if roots.contains(&(addr & !0xfff)) && raw & 2 != 0 { raw | 1 } else { raw }
        })
    }
}
