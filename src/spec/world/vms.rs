//! What a world does for VMs: each call by code and specification.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::vec::Vec;

use super::{VM_WINDOW, World, abstract_table};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Gfn, Ipa, Pa, Pfn, VmId};
use crate::abstract_machine::sim::walker::AccessKind;
use crate::memory::mem_manager::{self, Denied, ordinary, protected};
use crate::memory::memory_ops::{self, Run, Scrub};
use crate::memory::page_manager::PageState;
use crate::npt::descriptor::Stage2Access;
use crate::npt::npt_ops::vm::vm_s2pt;
use crate::npt::{Level, VM_SLOTS, VmKind};
use crate::spec::invariants::View;
use crate::spec::{State, npt, vm_memory};

type Step<T> = Result<T, Denied>;

impl World {
    /// A new VM; its table is what the CPUs walk for it from now on.
    pub fn register_vm_table(&mut self, vm: VmId, kind: VmKind, ipa_bits: u32, root: Pfn) -> Step<()> {
        let code = memory_ops::register_vm_table(self.mem(), vm, kind, ipa_bits, root);
        if code.is_ok() {
            self.sim().load_stage2(vm, root.addr(), ipa_bits, 48);
        }
        self.agreed(code, |s| vm_memory::register_vm_table(s, vm, kind, ipa_bits, root))
    }

    /// One page for the VM's pool.
    pub fn donate_pool_page(&mut self, vm: VmId, pfn: Pfn) -> Step<()> {
        let code = memory_ops::donate_pool_page(self.mem(), vm, pfn);
        self.agreed(code, |s| vm_memory::donate_pool_page(s, vm, pfn))
    }

    /// A context page out of the VM's pool: zeroed, and the core's to write.
    pub fn alloc_pool_page(&mut self, vm: VmId) -> Step<Pfn> {
        let code = memory_ops::alloc_pool_page(self.mem(), vm);
        if let Ok(page) = code {
            for word in 0..512 {
                let at = Pa::new(page.addr().raw() + word * 8);
                assert_eq!(self.sim().pt_load(at), 0, "word {word} of a page out of the pool");
                self.sim().pt_store(at, 0x5ec2_e700 | word);
            }
            self.sim().publish_tables();
        }
        self.agreed(code, |s| vm_memory::alloc_pool_page(s, vm, code.ok()))
    }

    /// A context page comes back.
    pub fn free_pool_page(&mut self, vm: VmId, page: Pfn) {
        memory_ops::free_pool_page(self.mem(), vm, page);
        self.agreed((), |s| (vm_memory::free_pool_page(s, vm, page), ()));
    }

    /// One page, image or not, for a protected VM.
    pub fn assign_pfn_to_vm(&mut self, vm: VmId, gfn: Gfn, pfn: Pfn, scrub: Scrub) -> Step<()> {
        let code = memory_ops::assign_pfn_to_vm(self.mem(), vm, gfn, pfn, scrub);
        self.agreed(code, |s| vm_memory::assign(s, vm, gfn, pfn, Level::L3, scrub))
    }

    /// 2 MiB for a protected VM.
    pub fn assign_block_to_vm(&mut self, vm: VmId, gfn: Gfn, pfn: Pfn) -> Step<()> {
        let code = protected::assign_block_to_vm(self.mem(), vm, gfn, pfn, Scrub::Zero);
        self.agreed(code, |s| vm_memory::assign(s, vm, gfn, pfn, Level::L2, Scrub::Zero))
    }

    /// Pages for a protected VM.
    pub fn prot_and_map_vm_s2pt(&mut self, vm: VmId, gfn: Gfn, pfn: Pfn, pages: u64) -> Step<u64> {
        let code = memory_ops::prot_and_map_vm_s2pt(self.mem(), vm, gfn, pfn, pages, Scrub::Zero);
        self.agreed(code, |s| vm_memory::prot_and_map_vm_s2pt(s, vm, gfn, pfn, pages))
    }

    /// Pages lent to an ordinary VM.
    pub fn lend_pages_to_vm(&mut self, vm: VmId, gfn: Gfn, pfn: Pfn, pages: u64, read_only: bool) -> Step<u64> {
        let code = memory_ops::lend_pages_to_vm(self.mem(), vm, gfn, pfn, pages, read_only);
        self.agreed(code, |s| vm_memory::lend_pages_to_vm(s, vm, gfn, pfn, pages, read_only))
    }

    /// Pages that lie anywhere for a protected VM.
    pub fn assign_runs_to_vm(&mut self, vm: VmId, gfn: Gfn, runs: &[Run]) -> Step<u64> {
        let code = memory_ops::assign_runs_to_vm(self.mem(), vm, gfn, runs, Scrub::Zero);
        self.agreed(code, |s| vm_memory::assign_runs_to_vm(s, vm, gfn, runs))
    }

    /// Pages that lie anywhere lent to an ordinary VM.
    pub fn lend_runs_to_vm(&mut self, vm: VmId, gfn: Gfn, runs: &[Run], read_only: bool) -> Step<u64> {
        let code = memory_ops::lend_runs_to_vm(self.mem(), vm, gfn, runs, read_only);
        self.agreed(code, |s| vm_memory::lend_runs_to_vm(s, vm, gfn, runs, read_only))
    }

    /// 2 MiB lent to an ordinary VM.
    pub fn lend_block_to_vm(&mut self, vm: VmId, gfn: Gfn, pfn: Pfn, access: Stage2Access) -> Step<()> {
        let code = ordinary::lend_block_to_vm(self.mem(), vm, gfn, pfn, access);
        self.agreed(code, |s| vm_memory::lend(s, vm, gfn, pfn, Level::L2, access))
    }

    /// Pages taken back from an ordinary VM.
    pub fn take_back_lent(&mut self, vm: VmId, gfn: Gfn, pages: u64) -> Step<u64> {
        let code = memory_ops::take_back_lent(self.mem(), vm, gfn, pages);
        self.agreed(code, |s| vm_memory::take_back_lent(s, vm, gfn, pages))
    }

    /// A protected VM shows a page.
    pub fn grant_vm_page(&mut self, vm: VmId, gfn: Gfn) -> Step<()> {
        let code = memory_ops::grant_vm_page(self.mem(), vm, gfn);
        self.agreed(code, |s| vm_memory::grant_vm_page(s, vm, gfn))
    }

    /// A protected VM shows a page no more.
    pub fn revoke_vm_page(&mut self, vm: VmId, gfn: Gfn) -> Step<()> {
        let code = memory_ops::revoke_vm_page(self.mem(), vm, gfn);
        self.agreed(code, |s| vm_memory::revoke_vm_page(s, vm, gfn))
    }

    /// A window for a VM.
    pub fn map_vm_io(&mut self, vm: VmId, gfn: Gfn, pa: Pa) -> Step<()> {
        let code = memory_ops::map_vm_io(self.mem(), vm, gfn, pa);
        self.agreed(code, |s| vm_memory::map_vm_io(s, vm, gfn, pa))
    }

    /// A page is held as a mailbox.
    pub fn hold_mailbox(&mut self, pfn: Pfn) -> Step<()> {
        let code = mem_manager::hold_mailbox(self.mem(), pfn);
        self.agreed(code, |s| vm_memory::hold_mailbox(s, pfn))
    }

    /// A page is held no more. A caller of the core drops only what it held.
    pub fn drop_mailbox(&mut self, pfn: Pfn) -> Step<()> {
        let code = mem_manager::drop_mailbox(self.mem(), pfn);
        self.agreed(code, |s| vm_memory::drop_mailbox(s, pfn))
    }

    /// Memory of a VM on its way back.
    pub fn clear_vm_range(&mut self, vm: VmId, most: u64) -> Step<u64> {
        let code = memory_ops::clear_vm_range(self.mem(), vm, most);
        self.placed.get_mut().retain(|(owner, _), _| *owner != vm);
        self.agreed(code, |s| vm_memory::clear_vm_range(s, vm, most))
    }

    /// Table and pool of a VM on their way back.
    pub fn free_vm_table(&mut self, vm: VmId, most: u64) -> Step<bool> {
        let before = self.sim().adopted();
        let code = memory_ops::free_vm_table(self.mem(), vm, most);
        let gave: BTreeSet<Pfn> = before.difference(&self.sim().adopted()).copied().collect();
        self.agreed(code, |s| vm_memory::free_vm_table(s, vm, most, &gave))
    }

    /// Both look.
    pub fn walk_vm(&mut self, vm: VmId, gfn: Gfn) -> Option<(Pfn, PageState)> {
        let code = memory_ops::walk_vm(self.mem(), vm, gfn);
        let spec = vm_memory::walk_vm(&self.spec, vm, gfn);
        let is_window = self.spec.vms.get(&vm).filter(|found| !found.cut).and_then(|found| found.table.translate(gfn));
        let is_window = is_window.is_some_and(|(_, access)| access == Stage2Access::Window);
        assert_eq!(memory_ops::is_vm_window(self.mem(), vm, gfn), is_window);
        self.agreed(code, |s| (s, spec))
    }

    /// The VM on `cpu` touches `ipa`: where the hardware leads it, which is where the specification says. A store leaves a value.
    pub fn vm_touch(&mut self, cpu: usize, vm: VmId, ipa: Ipa, kind: AccessKind) -> Option<Pa> {
        self.calls += 1;
        let found = self.sim().vm_access(cpu, vm, ipa, kind).ok();
        let allowed = vm_may_access(&self.spec, vm, ipa, kind);
        assert_eq!(found, allowed, "{vm:?} on CPU {cpu} at {ipa}");
        if let (Some(pa), AccessKind::Write) = (found, kind) {
            let state = self.spec.pages.get(&Pfn::containing(pa));
            let secret = if let Some(PageState::Private { .. }) = state { self.secret } else { 0 };
            let value = (0x7e57_0000 + self.calls as u64) ^ secret;
            assert!(self.sim().vm_store(cpu, vm, ipa, value).is_ok());
            self.spec.ram.insert(Pfn::containing(pa), value);
        }
        found
    }

    /// So many pages can be adopted from now on.
    pub fn limit_adoption(&mut self, pages: usize) {
        self.sim().limit_adoption(pages);
        self.spec.room_to_adopt = pages;
    }

    /// None can be adopted while fewer pages than these are left in the pool.
    pub fn keep_from_adoption(&mut self, pages: usize) {
        self.sim().keep_from_adoption(pages);
        self.spec.kept_from_adoption = pages;
    }

    pub(super) fn check_vms(&self, view: &View<'_>) {
        let ids = (1..=VM_SLOTS as u16).map(VmId::new).filter(|vm| vm_s2pt(self.mem().npts(), *vm).is_some());
        assert!(ids.eq(self.spec.vms.keys().copied()), "VMs that have a table");
        for (vm, spec) in &self.spec.vms {
            let own = &view.vms[vm];
            let code = abstract_table(&own.leaves, &own.tables, spec.table.ia_bits, VM_WINDOW);
            assert_eq!(code, Ok(spec.table.clone()), "stage 2 of {vm:?}");
            let root: BTreeSet<Pfn> = own.root.clone();
            let expected: BTreeSet<Pfn> =
                (spec.root.raw()..spec.root.raw() + spec.table.root_pages() as u64).map(Pfn::new).collect();
            assert_eq!(root, expected, "root of {vm:?}");
            let table = own.table;
            assert_eq!((table.kind, table.live), (spec.kind, !spec.cut), "{vm:?}");
            let pool = Some((spec.free as u64, spec.pool.len() as u64));
            assert_eq!(memory_ops::pool_info(self.mem(), *vm), pool, "pool of {vm:?}");
            assert_eq!(spec.pool.len(), spec.free + spec.table.tables.len() + spec.contexts.len(), "{vm:?}");
            let vttbr = spec.root.addr().raw() | u64::from(vm.raw()) << 48;
            let expected = (!spec.cut).then_some((vttbr, spec.table.ia_bits));
            assert_eq!(memory_ops::vm_vttbr(self.mem(), *vm), expected, "VTTBR of {vm:?}");
            if spec.kind == VmKind::Protected && !spec.cut {
                self.placed.borrow().iter().filter(|((owner, _), _)| owner == vm).for_each(|((_, gfn), pfn)| {
                    let now = spec.table.translate(*gfn).map(|(pfn, _)| pfn);
                    assert_eq!(now, Some(*pfn), "{gfn:?} of {vm:?} changed its page (K §6.4 f)");
                });
            }
        }
        let live = self.spec.vms.iter().filter(|(_, spec)| spec.kind == VmKind::Protected && !spec.cut);
        let leaves = live.flat_map(|(vm, spec)| spec.table.leaves.iter().map(|(gfn, leaf)| (*vm, *gfn, *leaf)));
        let first_pages: Vec<_> = leaves.map(|(vm, gfn, leaf)| ((vm, gfn), leaf.pfn)).collect();
        self.placed.borrow_mut().extend(first_pages);
    }
}

/// Where the access leads, by the specification.
fn vm_may_access(s: &State, vm: VmId, ipa: Ipa, kind: AccessKind) -> Option<Pa> {
    let found = s.vms.get(&vm).filter(|found| !found.cut)?;
    let gfn = Gfn::containing(ipa);
    if !found.table.in_range(gfn) {
        return None;
    }
    let (pfn, access): (Pfn, Stage2Access) = npt::Table::translate(&found.table, gfn)?;
    let allowed = match access {
        Stage2Access::Ram => true,
        Stage2Access::RamReadOnly => kind != AccessKind::Write,
        Stage2Access::Window => kind != AccessKind::Execute,
    };
    allowed.then(|| Pa::new(pfn.addr().raw() + (ipa.raw() & 0xfff)))
}
