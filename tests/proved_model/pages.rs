//! Pages.v next to `spec::memory` and `spec::vm_memory`: who owns each page, who maps it, what stands in it.
use std::collections::{BTreeMap, BTreeSet};

use corevisor::abstract_machine::addr::{Gfn, Ipa, Pa, Pfn, PhysRange, VmId};
use corevisor::abstract_machine::per_cpu::Event;
use corevisor::memory::mem_manager::Denied;
use corevisor::memory::memory_ops::Scrub;
use corevisor::memory::page_manager::PageState;
use corevisor::npt::descriptor::Stage2Access;
use corevisor::npt::{Level, VmKind};
use corevisor::spec::{Region, State, memory, npt, vm_memory};

use crate::{BANKS, ENDLESS, IA_BITS, Model, PAGE, Seed, WINDOWS, joined, report, same};
use corevisor_evidence::{Rng, seeds};

struct Pages {
    model: Model,
    spec: State,
    /// Pages that the core took for itself.
    own: BTreeSet<u64>,
    /// What the model's host maps.
    mapped: BTreeSet<u64>,
    rng: Rng,
}

fn told<T>(result: Result<T, Denied>, done: impl FnOnce(T) -> String) -> String {
    result.map_or_else(|why| format!("refused {why:?}"), done)
}

fn done(result: Result<(), Denied>) -> String {
    told(result, |()| "done".to_string())
}

fn number(result: Result<u64, Denied>) -> String {
    told(result, |n| format!("number {n}"))
}

impl Pages {
    fn new(seed: u64) -> Self {
        let range = |(first, pages): (u64, u64)| PhysRange::new(Pa::new(first * PAGE), pages * PAGE).unwrap();
        let mut regions: Vec<Region> = BANKS.iter().map(|bank| Region { range: range(*bank), is_ram: true }).collect();
        regions.insert(1, Region { range: range(WINDOWS), is_ram: false });
        let spec = State {
            regions,
            pages: BTreeMap::new(),
            host: npt::Table::new(IA_BITS as u32),
            free_tables: ENDLESS,
            vms: BTreeMap::new(),
            mailboxes: BTreeMap::new(),
            room_to_adopt: ENDLESS,
            kept_from_adoption: 0,
            ram: BTreeMap::new(),
            cpus: vec![],
            counts: [0; Event::COUNT],
            log: (0, vec![]),
        };
        Self { model: Model::start(), spec, own: BTreeSet::new(), mapped: BTreeSet::new(), rng: Rng::new(seed) }
    }

    fn vm(&mut self) -> u64 {
        let known: Vec<u64> = self.spec.vms.iter().filter(|(_, vm)| !vm.cut).map(|(id, _)| id.raw().into()).collect();
        match self.rng.below(15) {
            0 => self.rng.pick(&[0, 5, 128]),
            1..=10 if !known.is_empty() => self.rng.pick(&known),
            _ => 1 + self.rng.below(4),
        }
    }

    fn pfn(&mut self) -> u64 {
        match self.rng.below(16) {
            0 => self.rng.pick(&[0, 1, 4, 0x0801, 0x0804, 0x4_0600, 0x4_092b, 0x4_092c, 1 << 27]),
            1 => 0x4_0000 + 512 * self.rng.below(3),
            _ => 0x4_0800 + self.rng.below(200),
        }
    }

    fn gfn(&mut self) -> u64 {
        let base = self.rng.pick(&[0, 0, 0, 512, 0x4_0000, (1 << 20) - 4, (1 << 28) - 4]);
        base + self.rng.below(8)
    }

    /// A gfn where the VM has something, if it has anything.
    fn used(&mut self, v: u64) -> u64 {
        let known: Vec<u64> = (self.spec.vms.get(&VmId::new(v as u16)).iter())
            .flat_map(|vm| vm.table.leaves.iter())
            .map(|(gfn, leaf)| gfn.raw() + if leaf.level == Level::L3 { 0 } else { 7 })
            .collect();
        if known.is_empty() || self.rng.below(6) == 0 { self.gfn() } else { self.rng.pick(&known) }
    }

    /// A page that a VM shares: which, whose, and where the VM has it.
    fn shared(&mut self) -> Option<(u64, VmId, u64)> {
        let all = self.spec.pages.iter().filter_map(|(pfn, state)| match state {
            PageState::Shared { vm, gfn, count: ..5 } => Some((pfn.raw(), *vm, gfn.raw())),
            _ => None,
        });
        let all: Vec<_> = all.collect();
        if all.is_empty() { None } else { Some(self.rng.pick(&all)) }
    }

    /// One random operation, by both: what was asked, and the answer of each.
    fn act(&mut self) -> Option<(String, String, String)> {
        let (v, p) = (self.vm(), self.pfn());
        let (id, pfn) = (VmId::new(v as u16), Pfn::new(p));
        let mut s = self.spec.clone();
        let (asked, answer);
        match self.rng.below(32) {
            2 | 3 => {
                asked = format!("p DonatePoolPage {v} {p}");
                let result;
                (s, result) = vm_memory::donate_pool_page(s, id, pfn);
                answer = done(result);
            }
            4..=6 => {
                let (gfn, zero) = (self.gfn(), self.rng.below(2));
                asked = format!("p Assign {v} {gfn} {p} {zero}");
                let scrub = if zero == 1 { Scrub::Zero } else { Scrub::Keep };
                let result;
                (s, result) = vm_memory::assign(s, id, Gfn::new(gfn), pfn, Level::L3, scrub);
                answer = done(result);
            }
            7 | 8 => {
                let (gfn, pages) = (self.gfn(), self.rng.pick(&[0, 1, 2, 5, 40, 512, 513]));
                asked = format!("p AssignRun {v} {gfn} {p} {pages}");
                let result;
                (s, result) = vm_memory::prot_and_map_vm_s2pt(s, id, Gfn::new(gfn), pfn, pages);
                answer = number(result);
            }
            9..=11 => {
                let (gfn, pages) = (self.gfn(), self.rng.pick(&[0, 1, 2, 5, 40, 512, 513]));
                asked = format!("p LendRun {v} {gfn} {p} {pages}");
                let read_only = self.rng.below(2) == 0;
                let result;
                (s, result) = vm_memory::lend_pages_to_vm(s, id, Gfn::new(gfn), pfn, pages, read_only);
                answer = number(result);
            }
            12 | 13 => {
                let (gfn, pages) = (self.used(v), self.rng.pick(&[0, 1, 2, 30, 600]));
                asked = format!("p TakeBackRun {v} {gfn} {pages}");
                let result;
                (s, result) = vm_memory::take_back_lent(s, id, Gfn::new(gfn), pages);
                answer = number(result);
            }
            14..=16 => {
                let gfn = self.used(v);
                asked = format!("p GrantVmPage {v} {gfn}");
                let result;
                (s, result) = vm_memory::grant_vm_page(s, id, Gfn::new(gfn));
                answer = done(result);
            }
            17 | 18 => {
                let shared = self.shared().map(|(_, vm, gfn)| (vm, gfn));
                let (id, gfn) = shared.filter(|_| self.rng.below(3) > 0).unwrap_or((id, self.used(v)));
                let v = id.raw();
                asked = format!("p RevokeVmPage {v} {gfn}");
                let result;
                (s, result) = vm_memory::revoke_vm_page(s, id, Gfn::new(gfn));
                answer = done(result);
            }
            19 => {
                asked = format!("p HoldMailbox {p}");
                let result;
                (s, result) = vm_memory::hold_mailbox(s, pfn);
                answer = done(result);
            }
            20 => {
                // By one who holds it, or of a page that nobody could hold.
                let held: Vec<u64> = s.mailboxes.keys().map(|page| page.raw()).collect();
                let page = if held.is_empty() || self.rng.below(5) == 0 { p } else { self.rng.pick(&held) };
                let pfn = Pfn::new(page);
                if matches!(memory::get_pfn_state(&s, pfn), Some(PageState::Lent(_))) && !held.contains(&page) {
                    return None;
                }
                asked = format!("p DropMailbox {page}");
                let result;
                (s, result) = vm_memory::drop_mailbox(s, pfn);
                answer = done(result);
            }
            21 => {
                let (gfn, window) = (self.gfn(), if self.rng.below(4) == 0 { p } else { 0x0800 + self.rng.below(4) });
                asked = format!("p MapVmIo {v} {gfn} {window}");
                let result;
                (s, result) = vm_memory::map_vm_io(s, id, Gfn::new(gfn), Pfn::new(window).addr());
                answer = done(result);
            }
            22 => {
                asked = format!("p AssignPageToCore {p}");
                let result;
                (s, result) = memory::assign_page_to_core(s, pfn);
                if result.is_ok() {
                    self.own.insert(p);
                }
                answer = done(result);
            }
            23 => {
                let own: Vec<u64> = self.own.iter().copied().collect();
                let page = if own.is_empty() || self.rng.below(4) == 0 { p } else { self.rng.pick(&own) };
                let pfn = Pfn::new(page);
                // What the core uses for a VM goes back with the VM.
                if memory::get_pfn_state(&s, pfn) == Some(PageState::Core) && !own.contains(&page) {
                    return None;
                }
                asked = format!("p ReturnPageToHost {page}");
                let result;
                (s, result) = memory::return_page_to_host(s, pfn);
                self.own.remove(&page);
                answer = done(result);
            }
            24..=26 => {
                let value = self.rng.below(1 << 60);
                let p = self.shared().filter(|_| self.rng.below(3) == 0).map_or(p, |(page, ..)| page);
                let pfn = Pfn::new(p);
                asked = format!("p HostStore {p} {value}");
                let result;
                (s, result) = memory::map_page_host(s, Ipa::new(p * PAGE));
                if result.is_ok() && memory::get_pfn_state(&s, pfn).is_some() {
                    s.ram.insert(pfn, value);
                }
                answer = done(result);
            }
            27 | 28 => {
                let (gfn, value) = (self.used(v), self.rng.below(1 << 60));
                asked = format!("p VmStore {v} {gfn} {value}");
                answer = match s.vms.get(&id) {
                    None => "refused NoSuchVm".to_string(),
                    Some(vm) if vm.cut => "refused Busy".to_string(),
                    Some(_) => match vm_memory::walk_vm(&s, id, Gfn::new(gfn)) {
                        None => "refused NotOwner".to_string(),
                        Some((page, _)) => {
                            s.ram.insert(page, value);
                            "done".to_string()
                        }
                    },
                };
            }
            29 if self.rng.below(3) == 0 => return self.clear_some(v),
            30 if self.rng.below(3) == 0 => {
                let result;
                (s, result) = vm_memory::clear_vm_range(s, id, u64::MAX);
                asked = format!("p ClearVmRange {v}");
                // The model clears nothing of a VM that is not there, and calls that done.
                answer = told(result.or(Ok(0)), |_| "done".to_string());
            }
            0 | 1 | 29 | 30 => {
                let kind = self.rng.below(2);
                let bits = self.rng.pick(&[31, 32, 36, 39, 40, 40, 41]);
                asked = format!("p RegisterVmTable {v} {kind} {bits} {p}");
                let kind = if kind == 1 { VmKind::Protected } else { VmKind::Ordinary };
                let result;
                (s, result) = vm_memory::register_vm_table(s, id, kind, bits, pfn);
                if let (Ok(()), Some(vm)) = (result, s.vms.get_mut(&id)) {
                    vm.free = ENDLESS;
                }
                answer = done(result);
            }
            _ => {
                // Tables without leaves are nothing to the model.
                let vm = s.vms.get(&id);
                if vm.is_some_and(|vm| vm.table.leaves.is_empty() && !vm.table.tables.is_empty()) {
                    return None;
                }
                let pool = vm.map(|vm| vm.pool.clone()).unwrap_or_default();
                asked = format!("p FreeVmTable {v}");
                let result;
                (s, result) = vm_memory::free_vm_table(s, id, 1 << 40, &pool);
                answer = told(result, |all| if all { "done".to_string() } else { "more".to_string() });
            }
        }
        self.spec = s;
        let model = self.model.ask(&asked);
        Some((asked, model, answer))
    }

    /// The kinds of the VMs that there are.
    fn kinds(&self) -> BTreeMap<u64, &'static str> {
        let kind = |kind| if kind == VmKind::Protected { KINDS[0] } else { KINDS[1] };
        self.spec.vms.iter().map(|(id, vm)| (id.raw().into(), kind(vm.kind))).collect()
    }

    /// One page shared, or held as a mailbox, more often than can be counted.
    fn storm(&mut self) {
        let owned = self.spec.pages.values().find_map(|state| match state {
            PageState::Private { vm, gfn } | PageState::Shared { vm, gfn, .. } => Some((*vm, *gfn)),
            _ => None,
        });
        let p = self.pfn();
        for _ in 0..257 {
            let s = self.spec.clone();
            let (after, result, asked) = if let Some((id, gfn)) = owned {
                let (after, result) = vm_memory::grant_vm_page(s, id, gfn);
                (after, result, format!("p GrantVmPage {} {}", id.raw(), gfn.raw()))
            } else {
                let (after, result) = vm_memory::hold_mailbox(s, Pfn::new(p));
                (after, result, format!("p HoldMailbox {p}"))
            };
            self.spec = after;
            let model = self.model.ask(&asked);
            assert_eq!(model, done(result), "{asked}\nleft: the model, right: Rust");
        }
        self.compare("a storm");
    }

    /// Some steps of the specification: the model clears the pages that went.
    fn clear_some(&mut self, v: u64) -> Option<(String, String, String)> {
        let id = VmId::new(v as u16);
        let gfns = |s: &State| -> BTreeSet<u64> {
            (s.vms.get(&id).iter())
                .flat_map(|vm| vm.table.leaves.iter())
                .flat_map(|(gfn, leaf)| gfn.raw()..gfn.raw() + npt::pages_of(leaf.level as u32))
                .collect()
        };
        let before = gfns(&self.spec);
        let most = 1 + self.rng.below(4);
        self.spec = vm_memory::clear_vm_range(self.spec.clone(), id, most).0;
        let mut model = self.model.ask(&format!("p CutVm {v}"));
        for gfn in before.difference(&gfns(&self.spec)) {
            model = self.model.ask(&format!("p ClearVmPage {v} {gfn}"));
        }
        Some((format!("p ClearSome {v} {most}"), model, "done".to_string()))
    }

    /// What the specification's table of the host leads to is what the model lets it: a page more is one that the model maps, or refuses; a
    /// page less may be forgotten at any time, if it is one that the host may reach.
    fn host(&mut self, after: &str) {
        let reached: BTreeSet<u64> = (self.spec.host.leaves.iter())
            .flat_map(|(gfn, leaf)| gfn.raw()..gfn.raw() + npt::pages_of(leaf.level as u32))
            .collect();
        for page in reached.difference(&self.mapped) {
            let answer = self.model.ask(&format!("p MapPageHost {page}"));
            assert_eq!(answer, "done", "after {after}: the host maps page {page:#x}, which the model does not allow");
        }
        for page in self.mapped.difference(&reached) {
            let may = memory::host_may_access(&self.spec, Pa::new(page * PAGE));
            assert_eq!(may, Ok(()), "after {after}: the model's host still maps page {page:#x}");
            self.model.ask(&format!("p ForgetPageHost {page}"));
        }
        self.mapped = reached;
    }

    /// The model's map of the host before it is told anything of the specification's.
    fn compare(&mut self, after: &str) {
        let shown = self.model.show("p");
        self.mapped = (shown.iter())
            .filter_map(|line| line.strip_prefix("host "))
            .flat_map(|ends| {
                let (first, last) = ends.split_once(' ').unwrap();
                first.parse::<u64>().unwrap()..=last.parse::<u64>().unwrap()
            })
            .collect();
        self.host(after);
        let model = shown.into_iter().filter(|line| !line.starts_with("host ")).collect();
        same(&model, &page_lines(&self.spec), after);
    }
}

fn page_line(pfn: Pfn, state: PageState) -> String {
    let state = match state {
        PageState::Host => "host".to_string(),
        PageState::Core => "core".to_string(),
        PageState::Lent(times) => format!("lent {times}"),
        PageState::Private { vm, gfn } => format!("private {} {}", vm.raw(), gfn.raw()),
        PageState::Shared { vm, gfn, count } => format!("shared {} {} {count}", vm.raw(), gfn.raw()),
        PageState::Dma { vm } => format!("dma {}", vm.raw()),
    };
    format!("page {} {state}", pfn.raw())
}

fn page_lines(s: &State) -> BTreeSet<String> {
    let mut lines: BTreeSet<String> = s.pages.iter().map(|(pfn, state)| page_line(*pfn, *state)).collect();
    lines.extend(s.mailboxes.iter().map(|(pfn, times)| format!("mailbox {} {times}", pfn.raw())));
    lines.extend(s.ram.iter().map(|(pfn, value)| format!("content {} {value}", pfn.raw())));
    for (id, vm) in &s.vms {
        let kind = if vm.kind == VmKind::Protected { "protected" } else { "ordinary" };
        let root = vm.root.raw()..vm.root.raw() + vm.table.root_pages() as u64;
        let given = joined(vm.pool.iter().map(|page| page.raw()).chain(root));
        let cut = if vm.cut { "cut" } else { "whole" };
        lines.insert(format!("vm {} {kind} {} {cut} given{given}", id.raw(), 1u64 << (vm.table.ia_bits - 12)));
        for (gfn, leaf) in &vm.table.leaves {
            let what = if leaf.access == Stage2Access::Window { "window" } else { "ram" };
            lines.extend(
                (0..npt::pages_of(leaf.level as u32))
                    .map(|n| format!("leaf {} {} {what} {}", id.raw(), gfn.raw() + n, leaf.pfn.raw() + n)),
            );
        }
    }
    lines
}

/// An operation, the kind of the VM that it is about, and what came of it.
type Key = (String, &'static str, &'static str);

const KINDS: [&str; 2] = ["protected", "ordinary"];
const NO_VM: &str = "no VM";

/// What an operation counts as. `before`: the kinds of the VMs that there were.
fn key_of(asked: &str, before: &BTreeMap<u64, &'static str>, answer: &str) -> Key {
    let words: Vec<_> = asked.split(' ').collect();
    let number = |n: usize| words.get(n).and_then(|word| word.parse::<u64>().ok());
    let about_a_page = ["HoldMailbox", "DropMailbox", "AssignPageToCore", "ReturnPageToHost", "HostStore"];
    let kind = match words[1] {
        "RegisterVmTable" => number(3).map(|kind| if kind == 1 { KINDS[0] } else { KINDS[1] }),
        name if about_a_page.contains(&name) => None,
        _ => number(2).and_then(|vm| before.get(&vm).copied()),
    };
    let said = match answer {
        // No page was given, mapped or taken.
        "number 0" => "nothing",
        refused if refused.starts_with("refused") => "refused",
        _ => "done",
    };
    (words[1].to_string(), kind.unwrap_or(NO_VM), said)
}

/// What must happen: an operation that one kind of VM never succeeds with tests little.
fn wanted() -> Vec<Key> {
    const BOTH: &[&str] = &KINDS;
    const NONE: &[&str] = &[NO_VM];
    let wanted: [(&str, &[&'static str], &[&'static str]); 18] = [
        ("RegisterVmTable", BOTH, &["done", "refused"]),
        ("DonatePoolPage", BOTH, &["done", "refused"]),
        ("Assign", &["protected"], &["done", "refused"]),
        ("AssignRun", &["protected"], &["done", "refused"]),
        ("LendRun", &["ordinary"], &["done", "refused"]),
        ("TakeBackRun", &["ordinary"], &["done"]),
        ("TakeBackRun", &["protected"], &["refused"]),
        ("GrantVmPage", &["protected"], &["done", "refused"]),
        ("RevokeVmPage", &["protected"], &["done", "refused"]),
        ("HoldMailbox", NONE, &["done", "refused"]),
        ("DropMailbox", NONE, &["done", "refused"]),
        ("MapVmIo", BOTH, &["done", "refused"]),
        ("AssignPageToCore", NONE, &["done", "refused"]),
        ("ReturnPageToHost", NONE, &["done", "refused"]),
        ("HostStore", NONE, &["done", "refused"]),
        ("VmStore", BOTH, &["done", "refused"]),
        ("ClearVmRange", BOTH, &["done"]),
        ("FreeVmTable", BOTH, &["done"]),
    ];
    let keys = wanted.iter().flat_map(|(name, kinds, answers)| {
        kinds.iter().flat_map(move |kind| answers.iter().map(move |said| (name.to_string(), *kind, *said)))
    });
    keys.collect()
}

#[test]
#[ignore = "needs the program extracted from the proofs: scripts/test proofs"]
fn the_proved_model_and_the_specification_of_pages_agree() {
    const SEQUENCES: u64 = 12;
    const STEPS: usize = 500;
    let mut counts = BTreeMap::new();
    let seeds = seeds(SEQUENCES);
    for seed in &seeds {
        let _seed = Seed(*seed);
        let mut pages = Pages::new(*seed);
        for _ in 0..STEPS {
            if pages.rng.below(200) == 0 {
                pages.storm();
            }
            let before = pages.kinds();
            if let Some((asked, model, spec)) = pages.act() {
                assert_eq!(model, spec, "{asked}\nleft: the model, right: Rust");
                pages.compare(&asked);
                *counts.entry(key_of(&asked, &before, &model)).or_default() += 1;
            }
        }
    }
    report("pages", "4 VMs", &seeds, STEPS, counts.values().sum());
    let lacking: Vec<_> = wanted().into_iter().filter(|key| counts.get(key).is_none_or(|n| *n <= 5)).collect();
    assert!(lacking.is_empty() || seeds.len() == 1, "what seldom happens tests little: {lacking:?}\nof {counts:#?}");
}
