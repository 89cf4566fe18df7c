//! Every call of the host by the way that a trap takes, with every argument at, below and above its limits: an error with a name or a
//! result, never a stop, and registers that are no result stay as they were.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use common::snapshots::{KERNEL, PAGES, empty, one_that_ran, save};
use common::vms::{Host, PAGE, TestManifest, image, key};
use corevisor::abstract_machine::addr::{Pa, Pfn, VmId};
use corevisor::abstract_machine::regs::TrapFrame;
use corevisor::abstract_machine::sim::{Trapped, run_as};
use corevisor::abstract_machine::{ExitCode, Machine, Worlds};
use corevisor::interface::calls::{MAX_PAGES, MAX_VCPUS, MAX_VMS, VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::mailbox::{Mailbox, START_PSTATE};
use corevisor::interface::{CallError, HostCall, INTERFACE_VERSION};
use corevisor::memory::page_manager::PageState;
use corevisor::npt::npt_ops::vm::vm_s2pt;
use corevisor::spec::invariants::View;
use corevisor::spec::vm::Vm;
use corevisor::spec::vm_world::{GICV, abstract_vm};
use corevisor::spec::world::host_sync;
use corevisor_evidence::{Rng, seeds, tell};

const SEED: u64 = 41;
const HVC: u64 = 0x16 << 26 | 1 << 25;

/// x0 to x30 after the host's call.
fn call(host: &Host, immediate: u64, x: [u64; 6]) -> [u64; 31] {
    let mut frame = TrapFrame { x: core::array::from_fn(|n| 0xaaaa_0000 + n as u64), sp: 0 };
    frame.x[..6].copy_from_slice(&x);
    let sim = host.world.sim();
    sim.set_trapped(0, Trapped { esr: HVC | immediate, pc: 0x1000, pstate: 0x5, ..Trapped::default() });
    host_sync(&host.world.core, &mut frame);
    assert_eq!(sim.get_cur_vmid().raw(), 0, "the host is back");
    frame.x
}

fn is_named(x0: u64) -> bool {
    (x0 as i64) >= 0 || CallError::from_x0(x0).is_some()
}

/// Where VMs get memory.
const MEM: u64 = 0x6000_0000;
/// Pages of the host's that calls name.
const FREE_PAGES: u64 = 1024;

/// A host with a VM for each call, and what it knows of them.
struct Bed {
    host: Host,
    vms: Vec<u64>,
    /// Protected: without images; with images and not verified; verified; off, and not saved yet; without anything, for a snapshot.
    building: u64,
    loaded: u64,
    running: u64,
    off: u64,
    restored: u64,
    /// Ordinary: not verified; verified.
    fresh: u64,
    ordinary: u64,
    /// The manifest of `loaded`.
    manifest: u64,
    /// Of the snapshot: gpa, page and head; vCPUs; the whole.
    sealed: Vec<[u64; 3]>,
    sealed_vcpus: Vec<u64>,
    sealed_vm: u64,
    /// How many pages of `off` are saved.
    saved: usize,
    /// And how many came back in `restored`.
    brought: usize,
    /// The first page that calls name.
    free: u64,
    /// The core's pages: its own, and what was given for each VM.
    own: BTreeSet<Pfn>,
    given: BTreeMap<u64, BTreeSet<Pfn>>,
    mailboxes: BTreeMap<u64, Vec<Pfn>>,
}

fn pages(base: u64, count: u64) -> impl Iterator<Item = Pfn> {
    (0..count).map(move |n| Pfn::containing(Pa::new(base + n * PAGE)))
}

/// The core's pages, and those of the host's that are lent: here to mailboxes only.
fn core_and_lent(host: &Host) -> [BTreeSet<Pfn>; 2] {
    let foreign = View::of(host.world.core.memory()).foreign;
    let of = |wanted: fn(&PageState) -> bool| {
        foreign.iter().filter(|(_, state)| wanted(state)).map(|(pfn, _)| *pfn).collect()
    };
    [of(|state| *state == PageState::Core), of(|state| matches!(state, PageState::Lent(_)))]
}

impl Bed {
    fn new() -> Self {
        let mut host = Host::default();
        host.world.sim().set_script(Box::new(|_| ExitCode::Irq));
        let mut before = core_and_lent(&host);
        let own = before[0].clone();
        let (mut given, mut mailboxes) = (BTreeMap::new(), BTreeMap::new());
        let mut follow = |host: &Host, vm: u64| {
            let now = core_and_lent(host);
            given.insert(vm, &now[0] - &before[0]);
            mailboxes.insert(vm, (&now[1] - &before[1]).into_iter().collect::<Vec<_>>());
            before = now;
            vm
        };
        let (saved, _) = one_that_ran(&mut host);
        follow(&host, saved);
        let kept = save(&mut host, saved);
        let (off, _) = one_that_ran(&mut host);
        follow(&host, off);
        let restored = empty(&mut host);
        follow(&host, restored);
        let [building, loaded, running] = [(); 3].map(|()| {
            let vm = host.vm(VM_PROTECTED, 30);
            host.vcpu(vm, 0);
            follow(&host, vm)
        });
        let images = [image(KERNEL, 2 * PAGE as usize)];
        let manifest = TestManifest::of(&images, KERNEL, 7).sign(&key(1));
        [loaded, running].iter().for_each(|vm| host.load(*vm, &images));
        host.verify(running, &manifest).unwrap();
        let manifest = host.hold(&manifest);
        let [(fresh, _), (ordinary, mailbox)] = [(); 2].map(|()| {
            let vm = host.vm(VM_ORDINARY, 30);
            let mailbox = host.pages(1);
            host.done(HostCall::RegisterVcpu, &[vm, 0, mailbox]).unwrap();
            follow(&host, vm);
            (vm, mailbox)
        });
        host.done(HostCall::VerifyVm, &[ordinary]).unwrap();
        // An entry without flags; the ordinary VM starts where its host says.
        mailboxes.values().flatten().for_each(|page| host.world.sim().write_page(*page, 0, &[0; 512]));
        for (field, value) in [(offset_of!(Mailbox, pc), MEM), (offset_of!(Mailbox, pstate), START_PSTATE)] {
            host.world.sim().write_page(Pfn::containing(Pa::new(mailbox)), field / 8, &[value]);
        }
        let free = host.pages(FREE_PAGES);
        for (n, page) in (0..).zip(pages(free, FREE_PAGES)) {
            host.world.sim().write_ram(page, 0xf4ee_0000 + n);
        }
        let vms = vec![saved, off, restored, building, loaded, running, fresh, ordinary];
        for vm in &vms {
            let id = VmId::new(*vm as u16);
            let root = vm_s2pt(host.world.core.memory().npts(), id).unwrap().vttbr & 0xffff_ffff_f000;
            host.world.sim().load_stage2(id, Pa::new(root), 40, 48);
        }
        let sealed = kept.pages.iter().map(|(gpa, data, tag)| [*gpa, host.hold(data), host.hold(tag)]).collect();
        let sealed_vcpus = kept.vcpus.iter().map(|data| host.hold(data)).collect();
        let sealed_vm = host.hold(&kept.whole);
        Self {
            host,
            vms,
            building,
            loaded,
            running,
            off,
            restored,
            fresh,
            ordinary,
            manifest,
            sealed,
            sealed_vcpus,
            sealed_vm,
            saved: 0,
            brought: 0,
            free,
            own,
            given,
            mailboxes,
        }
    }

    /// Arguments with which `call` may well succeed.
    fn likely(&self, rng: &mut Rng, call: HostCall) -> [u64; 5] {
        let any = if self.vms.is_empty() { 1 } else { rng.pick(&self.vms) };
        let page = self.free + rng.below(FREE_PAGES) * PAGE;
        let other = self.free + rng.below(FREE_PAGES) * PAGE;
        let gpa = MEM + rng.below(64) * PAGE;
        let few = 1 + rng.below(3);
        let [protected, ordinary] =
            [[self.running, self.building], [self.ordinary, self.fresh]].map(|vms| rng.pick(&vms));
        let either = rng.pick(&[protected, ordinary]);
        match call {
            HostCall::CoreStatistics => [rng.below(20), 0, 0, 0, 0],
            HostCall::RegisterVm => [rng.below(2), rng.pick(&[32, 39, 40]), page & !(2 * PAGE - 1), 0, 0],
            HostCall::RegisterVcpu => [any, rng.below(16), page, 0, 0],
            HostCall::DonatePool => [any, page, few, 0, 0],
            HostCall::SetBootInfo => [self.building, KERNEL + rng.below(8) * 4 * PAGE, 1 + rng.below(3 * PAGE), 0, 0],
            HostCall::RemapImagePages => [self.building, rng.below(3), page, few, 0],
            HostCall::VerifyVm => rng.pick(&[[self.loaded, self.manifest, 0, 0, 0], [self.fresh, 0, 0, 0, 0]]),
            HostCall::MapMemory if either == ordinary => [ordinary, gpa, page, few, rng.below(2)],
            HostCall::MapMemory => [protected, gpa, page, few, 0],
            HostCall::UnmapMemory => [ordinary, gpa, few, 0, 0],
            HostCall::MapIo => [
                rng.pick(&[self.fresh, self.building]),
                0x0801_0000 + rng.below(8) * PAGE,
                GICV.raw(),
                1 + rng.below(2),
                0,
            ],
            HostCall::SetCntvoff => [rng.pick(&[ordinary, self.building]), rng.next(), 0, 0, 0],
            HostCall::VcpuRun => [rng.pick(&[self.running, self.ordinary]), 0, 0, 0, 0],
            HostCall::GetRegister => [ordinary, 0, rng.below(40), 0, 0],
            HostCall::SetRegister => [ordinary, 0, rng.below(40), rng.below(1 << 20), 0],
            HostCall::PageInfo => [either, gpa, 0, 0, 0],
            HostCall::SealPage => [self.off, PAGES[self.saved % PAGES.len()], page, other, 0],
            HostCall::UnsealPage => {
                let [gpa, data, tag] = self.sealed[self.brought % self.sealed.len()];
                [self.restored, gpa, data, tag, 0]
            }
            HostCall::SealVcpu => [self.off, rng.below(2), page, 0, 0],
            HostCall::UnsealVcpu => {
                let vcpu = rng.below(2);
                [self.restored, vcpu, self.sealed_vcpus[vcpu as usize], 0, 0]
            }
            HostCall::SealVm => rng.pick(&[[self.off, 0, page, 0, 0], [self.restored, 1, self.sealed_vm, 0, 0]]),
            _ => [any, 0, 0, 0, 0],
        }
    }

    /// What an error must leave as it was: the VM that the call names, its pool, and what stands in the host's pages that it names.
    fn named(&self, x: &[u64; 6]) -> (Option<Vm>, Result<[u64; 4], CallError>, Vec<u64>) {
        let vm = if (1..=MAX_VMS).contains(&x[1]) { abstract_vm(self.host.world.core.vms(), x[1]) } else { None };
        let here = x.iter().filter(|x| (self.free..self.free + FREE_PAGES * PAGE).contains(x));
        let words = here.map(|x| self.host.world.sim().read_ram(Pfn::containing(Pa::new(*x)))).collect();
        (vm, self.host.call(HostCall::PoolInfo, &[x[1]]), words)
    }

    /// Everything of that kind: all pages that are not plainly the host's, all VMs.
    fn all(&self) -> (BTreeMap<Pfn, PageState>, Vec<Option<Vm>>) {
        let vms = (1..=MAX_VMS).map(|vm| abstract_vm(self.host.world.core.vms(), vm)).collect();
        (View::of(self.host.world.core.memory()).foreign, vms)
    }

    /// A call that did something: what changes hands by it.
    fn follow(&mut self, call: HostCall, x: &[u64; 6], answer: &[u64; 31]) {
        match call {
            HostCall::RegisterVm => {
                let root = if x[2] > 39 { 1 << (x[2] - 39) } else { 1 };
                self.vms.push(answer[1]);
                self.given.insert(answer[1], pages(x[3], root).collect());
                self.mailboxes.insert(answer[1], vec![]);
                self.host.world.sim().load_stage2(VmId::new(answer[1] as u16), Pa::new(x[3]), x[2] as u32, 48);
            }
            HostCall::SealPage => self.saved += 1,
            HostCall::UnsealPage => self.brought += 1,
            HostCall::DonatePool => self.given.get_mut(&x[1]).unwrap().extend(pages(x[2], answer[0])),
            HostCall::RegisterVcpu => self.mailboxes.get_mut(&x[1]).unwrap().push(Pfn::containing(Pa::new(x[3]))),
            HostCall::MapMemory if answer[0] > 0 => {
                // All five arguments arrived: the leaf leads where it should, and may be written (S2AP) if it should.
                let (leaves, _) = self.host.world.sim().enumerate(VmId::new(x[1] as u16));
                let mut leaves = leaves.into_iter();
                let leaf = leaves.find(|leaf| (leaf.base..leaf.base + leaf.size).contains(&x[2])).unwrap();
                let output = leaf.output + (x[2] - leaf.base);
                assert_eq!((output, leaf.raw >> 7 & 1), (x[3], 1 - x[5]), "{x:x?}");
                // Fewer, up to one that cannot be given.
                assert!(answer[0] <= x[4], "{x:x?}");
            }
            HostCall::DestroyVm => {
                self.vms.retain(|vm| *vm != x[1]);
                self.given.remove(&x[1]);
                self.mailboxes.remove(&x[1]);
            }
            _ => {}
        }
    }

    /// The invariants, over all that the core has.
    fn check(&self) {
        let core = self.own.iter().chain(self.given.values().flatten()).copied().collect();
        let mut mailboxes: BTreeMap<Pfn, u8> = BTreeMap::new();
        self.mailboxes.values().flatten().for_each(|page| *mailboxes.entry(*page).or_default() += 1);
        View::of(self.host.world.core.memory()).check(&core, &mailboxes).unwrap_or_else(|broken| panic!("{broken}"));
        let violations = self.host.world.sim().violations_at_rest();
        assert!(violations.is_empty(), "{violations:?}");
    }
}

/// What a draw is about: SealVm ends a snapshot's making, and its way back.
fn name_of(call: HostCall, x: &[u64; 6]) -> String {
    if call == HostCall::SealVm { format!("{} {}", call.name(), x[2]) } else { call.name().to_string() }
}

#[test]
fn d7_every_call_with_every_argument_at_its_limits_ends_with_a_result_or_a_named_error() {
    const LIVES: u64 = 8;
    const CALLS: u64 = 4_000;
    run_as(0);
    let mut done: BTreeMap<String, u64> = BTreeMap::new();
    let (mut refused, mut calls) = (0, 0);
    for seed in seeds(LIVES) {
        println!("seed {seed}: COREVISOR_TEST_SEED={seed} makes these calls alone");
        let (rng, mut bed) = (&mut Rng::new(SEED + seed), Bed::new());
        let limits = [
            0,
            1,
            2,
            31,
            32,
            40,
            41,
            48,
            64,
            PAGE - 1,
            PAGE,
            PAGE + 1,
            MAX_VCPUS - 1,
            MAX_VCPUS,
            MAX_VMS,
            MAX_VMS + 1,
            MAX_PAGES,
            MAX_PAGES + 1,
            bed.free,
            bed.free + 8,
            0x4000_0000,
            0x4020_0000,
            0x0804_0000,
            1 << 39,
            1 << 40,
            1 << 48,
            1 << 52,
            1 << 63,
            u64::MAX - PAGE + 1,
            u64::MAX,
            bed.ordinary,
            bed.running,
            bed.ordinary | 1 << 16,
            bed.ordinary | 1 << 32,
        ];
        bed.check();
        for n in 0..CALLS {
            let function = rng.pick(HostCall::ALL);
            let mut x = [function.function(), 0, 0, 0, 0, 0];
            // As it should be, wrong in one argument, or anyhow.
            let way = rng.below(4);
            x[1..].copy_from_slice(&bed.likely(rng, function));
            match way {
                0 => {}
                1 | 2 => x[1 + rng.below(5) as usize] = rng.pick(&limits),
                _ => {
                    x[1..].iter_mut().for_each(|x| *x = rng.pick(&limits));
                    // Most calls are about a VM that there is.
                    if rng.below(4) > 0 && function != HostCall::RegisterVm && !bed.vms.is_empty() {
                        x[1] = rng.pick(&bed.vms);
                    }
                }
            }
            // There are few VMs at first, and they live for most of the time.
            let ends = matches!(function, HostCall::PowerOffVm | HostCall::ReclaimVm);
            if ends && n < CALLS * 4 / 5 && rng.below(50) > 0 || function == HostCall::RegisterVm && rng.below(8) > 0 {
                continue;
            }
            let all = (n % 211 == 0).then(|| bed.all());
            let mut named = bed.named(&x);
            let mut after = call(&bed.host, 0, x);
            // What takes steps is made until it is decided: in between nothing need be as it was.
            let mut steps = false;
            while after[0] == CallError::Again.x0() {
                (steps, after) = (true, call(&bed.host, 0, x));
            }
            calls += 1;
            assert!(is_named(after[0]), "{function:?} {x:x?} gave {:#x}", after[0]);
            assert_eq!(after[4..6], x[4..6], "{function:?}: no result stands there");
            assert!((6..31).all(|n| after[n] == 0xaaaa_0000 + n as u64), "{function:?}");
            if (after[0] as i64) < 0 {
                refused += 1;
                assert_eq!(after[1..4], x[1..4], "{function:?}: an error changes x0 only");
                if !steps {
                    // A table that was taken for a leaf stays, where the pool has none for the next level.
                    if after[0] == CallError::NoMemory.x0() {
                        named.1 = bed.named(&x).1;
                    }
                    assert_eq!(bed.named(&x), named, "{function:?} {x:x?}: an error changes nothing");
                    all.into_iter().for_each(|all| assert_eq!(bed.all(), all, "{function:?} {x:x?}"));
                }
            } else {
                // Of pages the answer is a number, and none is nothing.
                let counts = matches!(
                    function,
                    HostCall::DonatePool
                        | HostCall::RemapImagePages
                        | HostCall::MapMemory
                        | HostCall::UnmapMemory
                        | HostCall::MapIo
                        | HostCall::ReclaimVm
                );
                *done.entry(name_of(function, &x)).or_default() += u64::from(!counts || after[0] > 0);
                bed.follow(function, &x, &after);
            }
            if n % 300 == 0 {
                bed.check();
            }
        }
        bed.check();
        let version = call(&bed.host, 0, [HostCall::CoreVersion.function(), 7, 8, 9, 10, 11]);
        assert_eq!(version[..6], [INTERFACE_VERSION, 7, 8, 9, 10, 11], "the core goes on");
    }
    let succeeded = done.values().sum::<u64>();
    tell("hypercalls", &[("lives", LIVES), ("calls", calls), ("done", succeeded), ("refused", refused)]);
    let names = HostCall::ALL.iter().filter(|call| **call != HostCall::SealVm).map(|call| call.name().to_string());
    let names = names.chain(["SealVm 0".to_string(), "SealVm 1".to_string()]);
    let never: Vec<_> = names.filter(|name| done.get(name).is_none_or(|n| *n < 3)).collect();
    assert!(
        never.is_empty() || seeds(LIVES).len() == 1,
        "a call that never succeeds tests little: {never:?} of {done:#?}"
    );
}

#[test]
fn a_call_with_another_immediate_is_another_interface_for_every_call() {
    run_as(0);
    let mut host = Host::default();
    let vm = host.vm(VM_ORDINARY, 20);
    for function in HostCall::ALL {
        let after = call(&host, 1, [function.function(), vm, 0, 0, 0, 0]);
        assert_eq!(after[..3], [CallError::NotSupported.x0(), vm, 0], "{function:?}");
    }
}

#[test]
fn a19_numbers_beside_the_table_are_no_calls() {
    run_as(0);
    let host = Host::default();
    for function in (0..17).chain(0xc600_7ff0..0xc600_8100).chain([u64::MAX, 1 << 32 | 0xc600_8000]) {
        if HostCall::from_function(function).is_none() {
            assert_eq!(call(&host, 0, [function, 1, 2, 3, 4, 5])[..4], [CallError::NotSupported.x0(), 1, 2, 3]);
        }
    }
}
