//! Who else reaches a page that changes hands.
//!
//! | what the core does to a page  | nobody else reaches it                                                                                  |
//! |-------------------------------|---------------------------------------------------------------------------------------------------------|
//! | adopts it                     | from before: its zeroes are tables and contexts from now on                                             |
//! | releases it                   | until after: it holds tables and contexts until it was scrubbed                                         |
//! | scrubs it for a VM            | from before, or the zeroes may not be the last that was written: judged when the VM gets it ([`vms`](super::vms)) |
//! | cleans it for a VM            | from before, if it is the VM's alone afterwards: who reaches it may still write around the caches       |
//!
//! A page that is lent, or shown, is cleaned or scrubbed while the host reaches it, and it stays the host's to write: so what a page is afterwards decides, when the host
//! runs again.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::format;
use std::thread::{self, ThreadId};
use std::vec::Vec;

use super::State;
use super::walker::Leaf;
use crate::abstract_machine::addr::{PAGE_SIZE, Pfn, PhysRange};

/// Pages that were cleaned while somebody else reached them, and which CPU did it: the host has not run there since.
#[derive(Default)]
pub(super) struct CleanedEarly(BTreeMap<Pfn, ThreadId>);

/// Whether the leaf leads to the page.
pub(super) fn covers(leaf: &Leaf, pfn: Pfn) -> bool {
    let at = pfn.addr().raw();
    leaf.output <= at && at - leaf.output < leaf.size
}

impl State {
    /// Whether the host, by its table or by what a TLB remembers of it, or a device may use the page at any moment. All of them have it at its own address.
    pub(super) fn others_reach(&mut self, pfn: Pfn) -> bool {
        let by_tlb = self.cpus.iter().any(|cpu| cpu.tlb.leaves(0).any(|leaf| covers(&leaf, pfn)));
        by_tlb || self.host_walks_to(pfn) || self.device_reaches(pfn)
    }

    fn host_walks_to(&mut self, pfn: Pfn) -> bool {
        let tables = &mut self.tables;
        let Some(regime) = tables.regime(0) else { return false };
        regime.walk(pfn.addr().raw(), None, |addr| tables.walk_load(addr)).1.is_ok()
    }

    /// What is done to the page now nobody else may see, or undo.
    pub(super) fn expect_unreached(&mut self, pfn: Pfn, done: &str) {
        if self.others_reach(pfn) {
            self.tables.violation(format!("{pfn:?} was {done} while the host or a device reaches it"));
        }
    }

    /// These pages are clean in memory.
    pub(super) fn note_cleaned(&mut self, pages: PhysRange) {
        let me = thread::current().id();
        for pfn in (0..pages.pages()).map(|n| Pfn::new(pages.base().raw() / PAGE_SIZE + n)) {
            if self.others_reach(pfn) {
                self.cleaned_early.0.insert(pfn, me);
            } else {
                self.cleaned_early.0.remove(&pfn);
            }
        }
    }

    /// The host runs again on the thread's CPU: what its critical sections owe is due.
    pub(super) fn section_over(&mut self) {
        self.tables.section_over();
        let me = thread::current().id();
        let mine: Vec<Pfn> = self.cleaned_early.0.extract_if(.., |_, cpu| *cpu == me).map(|(pfn, _)| pfn).collect();
        for pfn in mine {
            if !self.others_reach(pfn) && self.vm_maps(pfn) {
                let text = format!("{pfn:?} is a VM's alone, and was cleaned while others reached it (A21)");
                self.tables.violation(text);
            }
        }
    }

    /// Whether a VM's table leads to the page.
    fn vm_maps(&mut self, pfn: Pfn) -> bool {
        let tables = &mut self.tables;
        tables.vms().into_iter().filter_map(|vm| tables.regime(vm)).collect::<Vec<_>>().into_iter().any(|regime| {
            let (leaves, _) = regime.enumerate(|addr| tables.walk_load(addr));
            leaves.iter().any(|leaf| covers(leaf, pfn))
        })
    }
}
