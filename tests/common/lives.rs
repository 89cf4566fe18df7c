//! Random lives of VMs next to their specification.
#![forbid(unsafe_code)]
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;

use corevisor::interface::CallError;
use corevisor::spec::vm::{Answer, Call, Lives, Manifest, Start};
use corevisor::spec::vm_world::{GICV, VmWorld};

use super::vms::{PAGE, layout};
use corevisor_evidence::Rng;

/// The last page of RAM.
pub const SCRATCH: u64 = 0x43ff_f000;

const GOOD: Manifest = Manifest { authentic: true, entry: (0x4020_0000, 0x4000_0000) };

struct Chooser<'r> {
    rng: &'r mut Rng,
}

impl Chooser<'_> {
    fn vm(&mut self, world: &VmWorld) -> u64 {
        let known: Vec<u64> = world.spec.vms.keys().copied().collect();
        if known.is_empty() || self.rng.below(20) == 0 {
            self.rng.pick(&[0, 1, 2, 9, 128])
        } else {
            self.rng.pick(&known)
        }
    }

    fn vcpu(&mut self) -> u64 {
        if self.rng.below(12) == 0 { self.rng.pick(&[7, 15, 16, 99]) } else { self.rng.below(3) }
    }

    fn gfn(&mut self) -> u64 {
        let base = self.rng.pick(&[0, 0x3_fffd, 0x4_0000, 0x4_0000, 0x4_0200, (1 << 20) - 4, (1 << 28) - 3]);
        base + if self.rng.below(3) == 0 { 0 } else { self.rng.below(6) }
    }

    /// Mostly the host's.
    fn pfn(&mut self) -> u64 {
        match self.rng.below(20) {
            0 => self.rng.pick(&[0, 0x4_0001, 0x4_0005, 0x0800, 0x5_0000, 1 << 30]),
            1 => 0x4_1000 + 512 * self.rng.below(4),
            _ => 0x4_1000 + self.rng.below(400),
        }
    }

    fn pages(&mut self) -> u64 {
        self.rng.pick(&[0, 1, 1, 1, 2, 3, 5, 40, 512, 513])
    }

    /// Few pages or many, some of them twice.
    fn runs(&mut self) -> [(u64, u64); 4] {
        let twice = self.pfn();
        [(); 4].map(|()| {
            let first = if self.rng.below(6) == 0 { twice } else { self.pfn() };
            (first, self.rng.pick(&[0, 1, 1, 1, 2, 5, 40, 512]))
        })
    }

    fn call(&mut self, world: &VmWorld) -> Call {
        let vm = self.vm(world);
        match self.rng.below(32) {
            0 if world.spec.vms.len() < 5 => {
                let bits = self.rng.pick(&[31, 32, 36, 39, 40, 40, 40, 41]);
                Call::RegisterVm { protected: self.rng.below(2) == 0, bits, root: self.pfn() }
            }
            0 | 1 if self.rng.below(4) == 0 => Call::PowerOffVm { vm },
            0 | 1 => Call::VerifyVm { vm, manifest: None },
            2 => Call::ReclaimVm { vm },
            3 | 4 => Call::DestroyVm { vm },
            5 | 6 => Call::RegisterVcpu { vm, vcpu: self.vcpu(), mailbox: self.pfn() },
            7 => Call::DonatePool { vm, pfn: self.pfn(), pages: self.rng.below(4) },
            8 => {
                let size = self.rng.pick(&[0, 1, 4095, 4096, 4097, 9000, u64::MAX]);
                Call::SetBootInfo { vm, gfn: self.gfn(), size }
            }
            9..=11 => Call::RemapImagePages { vm, image: self.rng.below(3), pfn: self.pfn(), pages: self.rng.below(4) },
            12 | 13 => {
                let manifest = Manifest { authentic: self.rng.below(4) > 0, ..GOOD };
                // An entry within an image, as a manifest needs it.
                let entry = world.spec.vms.get(&vm).and_then(|vm| vm.images.first()).map_or(0, |image| image.0 * PAGE);
                let protected = world.spec.vms.get(&vm).is_some_and(|vm| vm.protected) ^ (self.rng.below(9) == 0);
                Call::VerifyVm {
                    vm,
                    manifest: protected.then_some(Manifest { entry: (entry, self.rng.next()), ..manifest }),
                }
            }
            14..=16 => {
                let (gfn, pfn) = (self.gfn(), self.pfn());
                Call::MapMemory { vm, gfn, pfn, pages: self.pages() }
            }
            17 => Call::MapRuns { vm, gfn: self.gfn(), runs: self.runs() },
            18 | 19 => Call::UnmapMemory { vm, gfn: self.gfn(), pages: self.pages() },
            20 | 28 => {
                let pfn = GICV.raw() / PAGE + self.rng.below(3);
                Call::MapIo { vm, gfn: self.gfn(), pfn, pages: self.rng.below(3) }
            }
            21 => Call::SetCntvoff { vm, offset: self.rng.next() },
            22 | 23 => Call::Activate { vm, vcpu: self.vcpu() },
            24 => Call::Started { vm, vcpu: self.vcpu() },
            25 => Call::Leave { vm, vcpu: self.vcpu() },
            26 => Call::CpuOff { vm, vcpu: self.vcpu() },
            27 | 29 => Call::AffinityInfo { vm, target: self.vcpu() },
            _ => Call::CpuOn { vm, target: self.vcpu(), entry: self.rng.next(), context: self.rng.next() },
        }
    }
}

/// By call, kind of its VM and answer, how often: a call that is always refused, or by one kind of VM, tests little.
pub type Counts = BTreeMap<(String, &'static str, String), u64>;

/// The kinds of VMs, and what names none.
const KINDS: [&str; 2] = ["protected", "ordinary"];
const NO_VM: &str = "no VM";

/// What must have come of each call: its name, the kinds, the answers.
const WANTED: &[(&str, &[&str], &[&str])] = &[
    ("RegisterVm", &KINDS, &["done", "refused"]),
    ("RegisterVcpu", &KINDS, &["done", "refused"]),
    ("DonatePool", &KINDS, &["done", "refused"]),
    ("SetBootInfo", &["protected"], &["done", "refused"]),
    ("SetBootInfo", &["ordinary"], &["refused"]),
    ("RemapImagePages", &["protected"], &["done", "refused"]),
    ("VerifyVm", &KINDS, &["done", "refused"]),
    ("MapMemory", &KINDS, &["done", "refused"]),
    ("MapRuns", &KINDS, &["done", "refused"]),
    ("UnmapMemory", &["ordinary"], &["done", "refused"]),
    ("UnmapMemory", &["protected"], &["refused"]),
    ("MapIo", &KINDS, &["done", "refused"]),
    ("SetCntvoff", &KINDS, &["done", "refused"]),
    ("Activate", &["protected"], &["resumed", "started as the VM says", "started as the manifest says", "refused"]),
    ("Activate", &["ordinary"], &["resumed", "started as the VM says", "started as the mailbox says", "refused"]),
    ("Started", &KINDS, &["done"]),
    ("Leave", &KINDS, &["done"]),
    ("CpuOff", &KINDS, &["done"]),
    // SUCCESS, INVALID_PARAMETERS, DENIED, ALREADY_ON, ON_PENDING.
    ("CpuOn", &KINDS, &["psci 0", "psci -2", "psci -3", "psci -4", "psci -5"]),
    // ON, OFF, ON_PENDING, INVALID_PARAMETERS.
    ("AffinityInfo", &KINDS, &["psci 0", "psci 1", "psci 2", "psci -2"]),
    ("PowerOffVm", &KINDS, &["done"]),
    ("ReclaimVm", &KINDS, &["done", "refused"]),
    ("DestroyVm", &KINDS, &["done", "refused"]),
];

/// The VM that a call is about.
fn vm_of(call: Call) -> Option<u64> {
    match call {
        Call::RegisterVm { .. } => None,
        Call::RegisterVcpu { vm, .. }
        | Call::DonatePool { vm, .. }
        | Call::SetBootInfo { vm, .. }
        | Call::RemapImagePages { vm, .. }
        | Call::VerifyVm { vm, .. }
        | Call::MapMemory { vm, .. }
        | Call::MapRuns { vm, .. }
        | Call::UnmapMemory { vm, .. }
        | Call::MapIo { vm, .. }
        | Call::SetCntvoff { vm, .. }
        | Call::Activate { vm, .. }
        | Call::Started { vm, .. }
        | Call::Leave { vm, .. }
        | Call::CpuOn { vm, .. }
        | Call::CpuOff { vm, .. }
        | Call::AffinityInfo { vm, .. }
        | Call::PowerOffVm { vm }
        | Call::ReclaimVm { vm }
        | Call::DestroyVm { vm } => Some(vm),
    }
}

/// The kind of the VM that `call` is about, by the state before it.
pub fn kind_of(before: &Lives, call: Call) -> &'static str {
    let protected = match (call, vm_of(call)) {
        (Call::RegisterVm { protected, .. }, _) => Some(protected),
        (_, vm) => vm.and_then(|vm| before.vms.get(&vm)).map(|vm| vm.protected),
    };
    protected.map_or(NO_VM, |protected| if protected { KINDS[0] } else { KINDS[1] })
}

/// One more call of a VM of this kind.
pub fn count(counts: &mut Counts, call: Call, kind: &'static str, answer: Result<Answer, CallError>) {
    let name = format!("{call:?}").split([' ', '{']).next().unwrap_or_default().to_string();
    let counts_pages = !matches!(call, Call::RegisterVm { .. } | Call::SetBootInfo { .. });
    let said = match answer {
        Err(_) => "refused".to_string(),
        // No page was given, mapped or taken.
        Ok(Answer::Number(0)) if counts_pages => "nothing".to_string(),
        Ok(Answer::Done | Answer::Number(_)) => "done".to_string(),
        Ok(Answer::Psci(x0)) => format!("psci {x0}"),
        Ok(Answer::Start(Start::Resume)) => "resumed".to_string(),
        Ok(Answer::Start(Start::Psci(..))) => "started as the VM says".to_string(),
        Ok(Answer::Start(Start::Manifest(..))) => "started as the manifest says".to_string(),
        Ok(Answer::Start(Start::Mailbox)) => "started as the mailbox says".to_string(),
    };
    *counts.entry((name, kind, said)).or_default() += 1;
}

/// How many calls did something, and how many were refused.
pub fn done_and_refused(counts: &Counts) -> (u64, u64) {
    let is_refused = |said: &str| said == "refused" || said.starts_with("psci -");
    let sum = |refused| counts.iter().filter(|((_, _, said), _)| is_refused(said) == refused).map(|(_, n)| n).sum();
    (sum(false), sum(true))
}

/// What was wanted and came less than `least` times.
pub fn lacking(counts: &Counts, least: u64) -> Vec<String> {
    let wanted = WANTED.iter().flat_map(|(name, kinds, answers)| {
        kinds
            .iter()
            .flat_map(move |kind| answers.iter().map(move |answer| (name.to_string(), *kind, answer.to_string())))
    });
    let seen = wanted.map(|key| (counts.get(&key).copied().unwrap_or_default(), key));
    seen.filter(|(n, _)| *n < least)
        .map(|(n, (name, kind, said))| format!("{name}, {kind}: {said} {n} times"))
        .collect()
}

/// The calls that make VM 1, protected, and VM 2, ordinary, with three vCPUs each and both verified, of the host's pages from `base` on: by chance
/// alone few VMs come so far, and these are few of a protected one's states.
pub fn settled(base: u64) -> Vec<Call> {
    let mut calls = vec![];
    for (vm, protected, base) in [(1, true, base), (2, false, base + 0x80)] {
        calls.push(Call::RegisterVm { protected, bits: 40, root: base });
        calls.push(Call::DonatePool { vm, pfn: base + 2, pages: 40 });
        calls.extend((0..3).map(|vcpu| Call::RegisterVcpu { vm, vcpu, mailbox: base + 0x30 + vcpu }));
        if protected {
            calls.push(Call::SetBootInfo { vm, gfn: 0x4_0200, size: PAGE });
            calls.push(Call::RemapImagePages { vm, image: 0, pfn: base + 0x38, pages: 1 });
        }
        let manifest = Manifest { entry: (0x4_0200 * PAGE, 5), ..GOOD };
        calls.push(Call::VerifyVm { vm, manifest: protected.then_some(manifest) });
    }
    calls
}

/// One machine and a sequence of `calls` calls, shorter if the numbers are used up.
pub fn run(rng: &mut Rng, calls: usize, counts: &mut Counts) {
    run_in(VmWorld::new(&layout(), SCRATCH), rng, calls, counts);
}

/// The same where the VMs of [`settled`] are; `verified`: both, else the ordinary one.
pub fn run_settled(verified: bool, rng: &mut Rng, calls: usize, counts: &mut Counts) {
    let mut world = VmWorld::new(&layout(), SCRATCH);
    let made = settled(0x4_3000).into_iter();
    let made = made.filter(|call| verified || !matches!(call, Call::VerifyVm { manifest: Some(_), .. }));
    made.for_each(|call| _ = world.step(call).unwrap());
    run_in(world, rng, calls, counts);
}

fn run_in(mut world: VmWorld, rng: &mut Rng, calls: usize, counts: &mut Counts) {
    let mut chooser = Chooser { rng };
    let mut pools = 0x4_2000;
    for n in 0..calls {
        if chooser.rng.is_spent() {
            break;
        }
        let call = chooser.call(&world);
        let kind = kind_of(&world.spec, call);
        let answer = world.step(call);
        if let (Call::RegisterVm { .. }, Ok(Answer::Number(vm))) = (call, answer) {
            // The specification's pools never end.
            world.step(Call::DonatePool { vm, pfn: pools, pages: 60 }).unwrap();
            pools += 60;
        }
        count(counts, call, kind, answer);
        if n % 10 == 0 {
            world.check();
        }
    }
    world.check();
}
