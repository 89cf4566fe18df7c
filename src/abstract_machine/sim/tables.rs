//! Table memory, and the rules for those who write it: break before make, publish before use, forget before free.
//!
//! Each page of the pool, and each adopted page, has a place: free, taken but linked nowhere, part of a live table, or taken out of one and
//! not yet forgotten by the TLBs. A store is judged by the place of its page. What breaks a rule of the architecture is written
//! down as a violation; what no program may do (use of a free page, double free) panics at once.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::string::String;
use std::thread::{self, ThreadId};
use std::vec::Vec;
use std::{format, vec};

use super::walker::{Entry, Regime, TableAt, decode, entry_size, oddity};

/// Where a page of the pool is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Free,
    /// Taken; no live entry leads to it.
    Unlinked,
    /// Part of the table of this VM.
    Live {
        vm: u16,
        level: u32,
        base: u64,
    },
    /// Taken out of the table of this VM; a TLB or walk cache may remember it.
    Stale {
        vm: u16,
    },
}

/// One step of a critical section, for replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogEntry {
    /// `pt_store`.
    Store {
        /// Address of the entry.
        entry: u64,
        /// What stood there.
        old: u64,
        /// What stands there now.
        new: u64,
    },
    /// `publish_tables`, or the barriers of a flush: stores do not move over it.
    Barrier,
    /// `alloc_table`, `adopt_page`, or a scrub: the pages are zero.
    Alloc(u64, u32),
    /// `free_table`, `release_page`.
    Free(u64, u32),
    /// `tlb_flush_ipa`.
    FlushIpa(u64),
    /// `tlb_flush_vm`.
    FlushVm,
}

/// An entry that was valid, is not any more, and may still be remembered by a TLB.
#[derive(Clone, Copy)]
struct Broken {
    thread: ThreadId,
    vm: u16,
    base: u64,
    size: u64,
    was_table: bool,
}

/// A leaf that a store made valid in a live table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewLeaf {
    /// Whose table it is.
    pub vm: u16,
    /// First address that it leads to.
    pub output: u64,
    /// Bytes that it maps.
    pub size: u64,
    /// MemAttr\[3:0\].
    pub mem_attr: u64,
}

/// The pool that tables come from, and the pages that were adopted.
pub struct Tables {
    base: u64,
    pool_pages: usize,
    words: Vec<u64>,
    places: Vec<Place>,
    // Page address -> place, for adopted pages; they stand behind the pool's.
    adopted: BTreeMap<u64, usize>,
    // First page of each taken run, with its order.
    runs: BTreeMap<usize, u32>,
    stage2: BTreeMap<u16, Regime>,
    // Pages and entries whose stores their CPU has not made visible yet.
    unseen_pages: Vec<(ThreadId, usize)>,
    unseen_entries: Vec<(ThreadId, u64)>,
    broken: Vec<Broken>,
    pub(super) violations: Vec<String>,
    pub(super) log: Option<Vec<LogEntry>>,
}

const WORDS: usize = 512;
/// What stands in pages that nobody may look at: a valid-looking entry, so that looking shows.
const POISON: u64 = 0x0000_5a5a_5a5a_5fff;

impl Tables {
    pub(super) fn new(base: u64, pages: usize) -> Self {
        assert_eq!(base % 4096, 0, "pool base");
        Self {
            base,
            pool_pages: pages,
            adopted: BTreeMap::new(),
            words: vec![POISON; pages * WORDS],
            places: vec![Place::Free; pages],
            runs: BTreeMap::new(),
            stage2: BTreeMap::new(),
            unseen_pages: vec![],
            unseen_entries: vec![],
            broken: vec![],
            violations: vec![],
            log: None,
        }
    }

    fn note(&mut self, entry: LogEntry) {
        if let Some(log) = &mut self.log {
            log.push(entry);
        }
    }

    pub(super) fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    fn find(&self, addr: u64) -> Option<usize> {
        let in_pool = addr.checked_sub(self.base).map(|offset| (offset / 4096) as usize);
        in_pool.filter(|page| *page < self.pool_pages).or_else(|| self.adopted.get(&(addr & !0xfff)).copied())
    }

    fn page_of(&self, addr: u64, what: &str) -> usize {
        self.find(addr).unwrap_or_else(|| panic!("{what} at {addr:#x}: outside the pool"))
    }

    fn addr_of(&self, page: usize) -> u64 {
        if page < self.pool_pages {
            return self.base + page as u64 * 4096;
        }
        self.adopted.iter().find(|(_, p)| **p == page).map_or(0, |(addr, _)| *addr)
    }

    fn word_of(&self, addr: u64, what: &str) -> usize {
        let page = self.page_of(addr, what);
        assert_eq!(addr % 8, 0, "{what} at {addr:#x}: not aligned");
        assert_ne!(self.places[page], Place::Free, "{what} at {addr:#x}: the table page is free");
        page * WORDS + (addr % 4096 / 8) as usize
    }

    pub(super) fn load(&self, addr: u64) -> u64 {
        self.words[self.word_of(addr, "load")]
    }

    /// What the hardware sees: a walk through a page that is free or stale is a violation, not a panic.
    pub(super) fn walk_load(&mut self, addr: u64) -> u64 {
        let page = self.find(addr);
        let place = page.map_or(Place::Free, |page| self.places[page]);
        // A walk that began before a table was taken out may still read it: that is why it is kept until the flush.
        if !matches!(place, Place::Live { .. } | Place::Stale { .. }) {
            self.violation(format!("a walk reads {addr:#x}, which is {place:?}"));
        }
        page.map_or(0, |page| self.words[page * WORDS + (addr % 4096 / 8) as usize])
    }

    pub(super) fn store(&mut self, addr: u64, new: u64) -> Option<NewLeaf> {
        let word = self.word_of(addr, "store");
        let page = word / WORDS;
        let old = self.words[word];
        self.words[word] = new;
        self.note(LogEntry::Store { entry: addr, old, new });
        let me = thread::current().id();
        let (was, is) = (old & 1 == 1, new & 1 == 1);
        match self.places[page] {
            Place::Free => unreachable!("checked by word_of"),
            Place::Unlinked => self.unseen_pages.push((me, page)),
            Place::Stale { .. } if is => self.violation(format!("store of {new:#x} into the stale table at {addr:#x}")),
            Place::Stale { .. } => {}
            Place::Live { vm, level, base } => {
                let size = entry_size(level);
                let base = base + (word % WORDS) as u64 * size;
                if was && is && old != new {
                    self.violation(format!("break before make: {addr:#x} (level {level}) {old:#x} became {new:#x}"));
                }
                if was && old != new {
                    let table = if let Entry::Table(table) = decode(level, old) { Some(table) } else { None };
                    self.broken.push(Broken { thread: me, vm, base, size, was_table: table.is_some() });
                    if let Some(table) = table {
                        self.unlink(vm, level + 1, table);
                    }
                }
                if is && old != new {
                    self.made_valid(me, addr, vm, TableAt { level, base, table: addr }, new);
                    if let Entry::Leaf(output) = decode(level, new) {
                        return Some(NewLeaf { vm, output, size, mem_attr: new >> 2 & 0xf });
                    }
                }
            }
        }
        None
    }

    fn made_valid(&mut self, me: ThreadId, addr: u64, vm: u16, at: TableAt, new: u64) {
        let (level, base, size) = (at.level, at.base, entry_size(at.level));
        if let Some(text) = oddity(level, new) {
            self.violation(text);
        }
        if self.broken.iter().any(|b| b.vm == vm && b.base < base + size && base < b.base + b.size) {
            self.violation(format!("{addr:#x} became valid while TLBs may remember what stood there"));
        }
        self.unseen_entries.push((me, addr));
        if let Entry::Table(table) = decode(level, new) {
            self.link(vm, TableAt { level: level + 1, base, table });
        }
    }

    /// A live entry leads to the table now, and so to all below it.
    fn link(&mut self, vm: u16, at: TableAt) {
        let Some(page) = self.find(at.table) else {
            return self.violation(format!("a table entry of VM {vm} leads out of the pool: {:#x}", at.table));
        };
        if self.places[page] != Place::Unlinked {
            return self.violation(format!("the table at {:#x} was linked while {:?}", at.table, self.places[page]));
        }
        if self.unseen_pages.iter().any(|(_, p)| *p == page) {
            self.violation(format!("the table at {:#x} was linked before its contents were published", at.table));
        }
        self.places[page] = Place::Live { vm, level: at.level, base: at.base };
        for index in 0..WORDS {
            let raw = self.words[page * WORDS + index];
            if let Some(text) = oddity(at.level, raw) {
                self.violation(text);
            }
            if let Entry::Table(table) = decode(at.level, raw) {
                let base = at.base + index as u64 * entry_size(at.level);
                self.link(vm, TableAt { level: at.level + 1, base, table });
            }
        }
    }

    fn unlink(&mut self, vm: u16, level: u32, table: u64) {
        let page = self.page_of(table, "unlink");
        self.places[page] = Place::Stale { vm };
        for index in 0..WORDS {
            if let Entry::Table(next) = decode(level, self.words[page * WORDS + index]) {
                self.unlink(vm, level + 1, next);
            }
        }
    }

    /// A new root: its pages are live from now on.
    pub(super) fn load_root(&mut self, vm: u16, regime: Regime) {
        assert!(regime.root_is_aligned(), "VTTBR {:#x} is not aligned to the size of the root", regime.root);
        for at in regime.root_tables() {
            self.link(vm, at);
        }
        self.stage2.insert(vm, regime);
    }

    /// VMs that have a table.
    pub(super) fn vms(&self) -> Vec<u16> {
        self.stage2.keys().copied().filter(|vm| *vm != 0).collect()
    }

    pub(super) fn regime(&self, vm: u16) -> Option<Regime> {
        self.stage2.get(&vm).copied()
    }

    pub(super) fn alloc(&mut self, order: u32) -> Option<u64> {
        let count = 1usize << order;
        let fits = |first: &usize| {
            let addr = self.base + *first as u64 * 4096;
            addr.is_multiple_of(4096 << order)
                && self.places[..self.pool_pages]
                    .get(*first..*first + count)
                    .is_some_and(|run| run.iter().all(|p| *p == Place::Free))
        };
        let first = (0..self.pool_pages).find(fits)?;
        self.places[first..first + count].fill(Place::Unlinked);
        self.words[first * WORDS..(first + count) * WORDS].fill(0);
        let me = thread::current().id();
        self.unseen_pages.extend((first..first + count).map(|page| (me, page)));
        self.runs.insert(first, order);
        let base = self.base + first as u64 * 4096;
        self.note(LogEntry::Alloc(base, order));
        Some(base)
    }

    pub(super) fn free(&mut self, base: u64, order: u32, remembered: bool) {
        let first = self.page_of(base, "free");
        match self.runs.remove(&first) {
            None => panic!("free of {base:#x}: it is not taken (double free?)"),
            Some(taken) => assert_eq!(taken, order, "free of {base:#x}: taken with another order"),
        }
        for page in first..first + (1 << order) {
            if self.places[page] != Place::Unlinked {
                self.violation(format!("the table at {base:#x} was freed while {:?}", self.places[page]));
            }
            self.places[page] = Place::Free;
            self.words[page * WORDS..(page + 1) * WORDS].fill(POISON);
            self.unseen_pages.retain(|(_, p)| *p != page);
        }
        if remembered {
            self.violation(format!("the table at {base:#x} was freed while a walk cache remembers it"));
        }
        self.note(LogEntry::Free(base, order));
    }

    /// DSB: this CPU's stores are visible to all walks from now on.
    pub(super) fn publish(&mut self) {
        let me = thread::current().id();
        self.unseen_pages.retain(|(thread, _)| *thread != me);
        self.unseen_entries.retain(|(thread, _)| *thread != me);
        self.note(LogEntry::Barrier);
    }

    /// Something in table memory that this CPU stored and others may not see yet.
    pub(super) fn unpublished(&self) -> Option<u64> {
        let me = thread::current().id();
        let page = self.unseen_pages.iter().find(|(thread, _)| *thread == me).map(|(_, page)| self.addr_of(*page));
        page.or_else(|| self.unseen_entries.iter().find(|(thread, _)| *thread == me).map(|(_, entry)| *entry))
    }

    /// Whether everybody sees what stands in the page at `addr`.
    pub(super) fn is_published(&self, addr: u64) -> bool {
        self.find(addr).is_some_and(|page| self.unseen_pages.iter().all(|(_, unseen)| *unseen != page))
    }

    /// The TLBs have forgotten `ipa`. What a table led to is not covered by one address.
    pub(super) fn flushed_ipa(&mut self, vm: u16, ipa: u64) {
        self.note(LogEntry::FlushIpa(ipa));
        let me = thread::current().id();
        let done = |b: &Broken| b.thread == me && b.vm == vm && !b.was_table && ipa >= b.base && ipa - b.base < b.size;
        self.broken.retain(|b| !done(b));
    }

    /// The TLBs have forgotten all of `vm`.
    pub(super) fn flushed_vm(&mut self, vm: u16) {
        self.note(LogEntry::FlushVm);
        let me = thread::current().id();
        self.broken.retain(|b| b.vm != vm || b.thread != me);
        if self.broken.iter().all(|b| b.vm != vm) {
            for place in &mut self.places {
                if *place == (Place::Stale { vm }) {
                    *place = Place::Unlinked;
                }
            }
        }
    }

    /// The host runs again on the thread's CPU: its critical sections are over.
    pub(super) fn section_over(&mut self) {
        let me = thread::current().id();
        if let Some((_, entry)) = self.unseen_entries.iter().find(|(thread, _)| *thread == me) {
            self.violations.push(format!("{entry:#x} was made valid and never published"));
            self.unseen_entries.retain(|(thread, _)| *thread != me);
        }
        if let Some(b) = self.broken.iter().find(|b| b.thread == me) {
            self.violations.push(format!("{:#x} was unmapped and never flushed", b.base));
            self.broken.retain(|b| b.thread != me);
        }
    }

    pub(super) fn free_pages(&self) -> usize {
        self.places[..self.pool_pages].iter().filter(|p| **p == Place::Free).count()
    }

    pub(super) fn pool(&self) -> (u64, u64) {
        (self.base, self.pool_pages as u64 * 4096)
    }

    /// Where the adopted pages are.
    pub(super) fn adopted(&self) -> Vec<u64> {
        self.adopted.keys().copied().collect()
    }

    /// The core's own map gains a page, zeroed.
    pub(super) fn adopt(&mut self, addr: u64) {
        assert_eq!(self.find(addr), None, "adoption of {addr:#x}: it is the core's already");
        // The place of a page that was released, or a new one.
        let taken: Vec<usize> = self.adopted.values().copied().collect();
        let page = (self.pool_pages..self.places.len()).find(|page| !taken.contains(page)).unwrap_or_else(|| {
            self.places.push(Place::Free);
            self.words.extend([POISON; WORDS]);
            self.places.len() - 1
        });
        self.adopted.insert(addr, page);
        self.places[page] = Place::Unlinked;
        self.zero(page);
    }

    fn zero(&mut self, page: usize) {
        self.words[page * WORDS..(page + 1) * WORDS].fill(0);
        self.unseen_pages.push((thread::current().id(), page));
        self.note(LogEntry::Alloc(self.addr_of(page), 0));
    }

    /// A scrub. Whether the page is one of these.
    pub(super) fn scrub(&mut self, addr: u64) -> bool {
        let Some(page) = self.find(addr) else { return false };
        if self.places[page] != Place::Unlinked {
            self.violation(format!("the page at {addr:#x} was scrubbed while {:?}", self.places[page]));
        }
        self.zero(page);
        true
    }

    /// The core's own map loses a page. `remembered` says whether a walk cache remembers it, `known` whether TLBs know a VM.
    pub(super) fn release(&mut self, addr: u64, remembered: bool, known: impl Fn(u16) -> bool) {
        let page = self.adopted.remove(&addr).unwrap_or_else(|| panic!("release of {addr:#x}: it was not adopted"));
        // A root goes with its VM, after its entries and after what TLBs know of it.
        let is_root = |regime: &Regime| regime.root_tables().iter().any(|at| at.table == addr);
        if let Some(vm) = self.stage2.iter().find(|(_, regime)| is_root(regime)).map(|(vm, _)| *vm) {
            if known(vm) {
                self.violation(format!("the root of VM {vm} was released while a TLB knows the VM"));
            }
            if self.broken.iter().any(|b| b.vm == vm) {
                self.violation(format!("the root of VM {vm} was released before the VM was flushed"));
            }
            let live = self.places.iter_mut().filter(|place| matches!(place, Place::Live { vm: v, .. } if *v == vm));
            let live = live.map(|place| *place = Place::Unlinked).count() as u64;
            if self.stage2.remove(&vm).is_some_and(|regime| regime.root_pages() != live) {
                self.violation(format!("the root of VM {vm} was released while tables are linked"));
            }
        }
        if self.places[page] != Place::Unlinked {
            self.violation(format!("the page at {addr:#x} was released while {:?}", self.places[page]));
        }
        if remembered {
            self.violation(format!("the page at {addr:#x} was released while a walk cache remembers it"));
        }
        self.places[page] = Place::Free;
        self.words[page * WORDS..(page + 1) * WORDS].fill(POISON);
        self.unseen_pages.retain(|(_, p)| *p != page);
        self.note(LogEntry::Free(addr, 0));
    }

    /// The table memory of all taken pages, for replay.
    pub(super) fn snapshot(&self) -> BTreeMap<u64, u64> {
        let taken = self.places.iter().enumerate().filter(|(_, p)| **p != Place::Free).map(|(page, _)| page);
        taken
            .flat_map(|page| {
                let base = self.addr_of(page);
                (0..WORDS).map(move |word| (base + word as u64 * 8, self.words[page * WORDS + word]))
            })
            .collect()
    }
}
