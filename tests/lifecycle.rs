//! The life of VMs: each call in each state, random sequences of calls next to their specification, and what K §8.2 and §8.3 found
//! missing elsewhere.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

mod common;

use common::Rng;
use common::vms::{Host, PAGE, TestManifest, image, key, layout};
use corevisor::abstract_machine::addr::{VcpuId, VmId};
use corevisor::interface::calls::{MAX_VCPUS, MAX_VMS, VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::{CallError, HostCall};
use corevisor::spec::vm::{Answer, Call, Manifest, Power, Start};
use corevisor::spec::vm_world::VmWorld;
use corevisor::vm::{VmState, boot_ops, vm_power};

const SCRATCH: u64 = 0x43ff_f000;
const GICV: u64 = 0x0804_0000;
const GOOD: Manifest = Manifest { authentic: true, entry: (0x4020_0000, 0x4000_0000) };

/// A VM in `state`, with vCPUs 0 (ready) and, if it can run, 1 (running); protected ones with an image.
fn vm_in(state: VmState, kind: u64) -> (Host, u64) {
    let mut host = Host::default();
    let vm = host.vm(kind, 30);
    host.vcpu(vm, 0);
    let images = [image(0x4020_0000, 2 * PAGE as usize)];
    if kind == VM_PROTECTED {
        host.load(vm, &images);
    }
    if state >= VmState::Verified {
        let manifest = TestManifest::of(&images, 0x4020_0000, 0).sign(&key(1));
        let verified =
            if kind == VM_PROTECTED { host.verify(vm, &manifest) } else { host.done(HostCall::VerifyVm, &[vm]) };
        assert_eq!(verified, Ok(()));
    }
    if state >= VmState::PowerOff {
        host.done(HostCall::PowerOffVm, &[vm]).unwrap();
    }
    if state == VmState::Dying {
        // A VM with so large a pool that one call does not take all of it.
        host.done(HostCall::PowerOffVm, &[vm]).unwrap();
        host.destroy(vm);
        let vm = host.vm(kind, 512);
        let more = host.pages(512);
        host.call(HostCall::DonatePool, &[vm, more, 512]).unwrap();
        host.vcpu(vm, 0);
        host.done(HostCall::PowerOffVm, &[vm]).unwrap();
        while host.call(HostCall::ReclaimVm, &[vm]).unwrap()[0] != 0 {}
        assert_eq!(host.done(HostCall::DestroyVm, &[vm]), Err(CallError::Again));
    }
    if state == VmState::Unused {
        host.destroy(vm);
    } else {
        assert_eq!(host.state(vm), state as u64);
    }
    (host, vm)
}

#[test]
fn d3_d11_each_call_is_allowed_in_exactly_the_states_of_its_row() {
    use CallError::{NoSuchObject as None, WrongState as No};
    use VmState::{Dying, PowerOff, Ready, Unused, Verified};
    const STATES: [VmState; 5] = [Unused, Ready, Verified, PowerOff, Dying];
    type Row<'a> = (HostCall, &'a [u64], [Result<(), CallError>; 5], [Result<(), CallError>; 5]);
    let (yes, no, none, bad) = (Ok(()), Err(No), Err(None), Err(CallError::InvalidParameter));
    // Where a vCPU is asked for that DestroyVm has let go already, there is none.
    let free = 0x4380_0000;
    let gpa = 0x8000_0000;
    #[rustfmt::skip]
    let rows: &[Row<'_>] = &[
        //                                                   Unused Ready Verified PowerOff Dying: protected,  ordinary
        (HostCall::RegisterVcpu,   &[1, 5, free],            [none, yes, no,  no,  no ], [none, yes, no,  no,  no ]),
        (HostCall::RegisterVcpu,   &[1, 0, free],            [none, no,  no,  no,  no ], [none, no,  no,  no,  no ]),
        (HostCall::DonatePool,     &[1, free, 1],            [none, yes, yes, no,  no ], [none, yes, yes, no,  no ]),
        (HostCall::PoolInfo,       &[1],                     [none, yes, yes, yes, yes], [none, yes, yes, yes, yes]),
        (HostCall::SetBootInfo,    &[1, gpa, 1],             [none, yes, no,  no,  no ], [none, no,  no,  no,  no ]),
        (HostCall::RemapImagePage, &[1, 0, free],            [none, no,  no,  no,  no ], [none, no,  no,  no,  no ]),
        (HostCall::VerifyVm,       &[1, 0],                  [none, bad, no,  no,  no ], [none, yes, no,  no,  no ]),
        (HostCall::MapMemory,      &[1, gpa, free, 1],       [none, yes, yes, no,  no ], [none, yes, yes, no,  no ]),
        (HostCall::UnmapMemory,    &[1, gpa, 1],             [none, no,  no,  no,  no ], [none, yes, yes, no,  no ]),
        (HostCall::MapIo,          &[1, gpa, GICV, 2],       [none, yes, no,  no,  no ], [none, yes, no,  no,  no ]),
        (HostCall::SetCntvoff,     &[1, 7],                  [none, yes, no,  no,  no ], [none, yes, yes, no,  no ]),
        (HostCall::GetRegister,    &[1, 0, 3],               [none, no,  no,  no,  no ], [none, yes, yes, yes, no ]),
        (HostCall::SetRegister,    &[1, 0, 3, 9],            [none, no,  no,  no,  no ], [none, yes, yes, yes, no ]),
        (HostCall::PowerOffVm,     &[1],                     [none, yes, yes, yes, yes], [none, yes, yes, yes, yes]),
        (HostCall::ReclaimVm,      &[1],                     [none, no,  no,  yes, no ], [none, no,  no,  yes, no ]),
        (HostCall::VmInfo,         &[1],                     [none, yes, yes, yes, yes], [none, yes, yes, yes, yes]),
        (HostCall::PageInfo,       &[1, gpa],                [none, yes, yes, yes, yes], [none, yes, yes, yes, yes]),
    ];
    for (call, x, protected, ordinary) in rows {
        for (kind, expected) in [(VM_PROTECTED, protected), (VM_ORDINARY, ordinary)] {
            for (state, expected) in STATES.iter().zip(expected) {
                let (host, vm) = vm_in(*state, kind);
                assert_eq!(vm, 1);
                let before = host.call(HostCall::VmInfo, &[1]);
                let answer = host.call(*call, x).map(|_| ());
                assert_eq!(answer, *expected, "{call:?} {x:x?} of kind {kind} in state {state:?}");
                if answer.is_err() {
                    assert_eq!(host.call(HostCall::VmInfo, &[1]), before, "{call:?} was refused");
                }
            }
        }
    }
    // The two that go on from state to state.
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        let pages_left = if kind == VM_PROTECTED { Err(CallError::Busy) } else { yes };
        for (state, expected) in STATES.iter().zip([none, no, no, pages_left, yes]) {
            let (host, vm) = vm_in(*state, kind);
            let answer = loop {
                match host.done(HostCall::DestroyVm, &[vm]) {
                    Err(CallError::Again) => {}
                    decided => break decided,
                }
            };
            assert_eq!(answer, expected, "DestroyVm of kind {kind} in state {state:?}");
        }
        for state in STATES {
            let (host, vm) = vm_in(state, kind);
            let (vms, id) = (host.world.core.vms(), VmId::new(vm as u16));
            let runs = boot_ops::set_vcpu_active(vms, id, VcpuId::new(0)).map(|_| ());
            let expected = if state == Verified {
                yes
            } else if state == Unused {
                none
            } else {
                no
            };
            assert_eq!(runs, expected, "VcpuRun in state {state:?}");
            assert_eq!(vm_power::get_vm_poweron(vms, id), matches!(state, Ready | Verified));
        }
    }
}

#[test]
fn d7_d8_no_number_of_the_host_reaches_beyond_a_table() {
    let (host, vm) = vm_in(VmState::Verified, VM_ORDINARY);
    let wild = [0, MAX_VMS + 1, 0x1_0001, u64::MAX, 1 << 63, 1 << 16, (1 << 32) + 1];
    for call in HostCall::ALL {
        for id in wild {
            let answer = host.call(*call, &[id, 0, 0, 1, 0]);
            assert!(answer.is_err(), "{call:?} of VM {id:#x}");
            let arguments = call.arguments();
            let registers = [HostCall::GetRegister, HostCall::SetRegister, HostCall::RegisterVcpu];
            if arguments.get(1) == Some(&"vcpu") && registers.contains(call) && id != 0 {
                assert_eq!(
                    host.call(*call, &[vm, id, 0, 1, 0]),
                    Err(CallError::NoSuchObject),
                    "{call:?} of vCPU {id:#x}"
                );
            }
        }
    }
    let vms = host.world.core.vms();
    for vcpu in [MAX_VCPUS as u16, 127, u16::MAX] {
        let run = boot_ops::set_vcpu_active(vms, VmId::new(vm as u16), VcpuId::new(vcpu));
        assert_eq!(run, Err(CallError::NoSuchObject));
    }
}

#[test]
fn a_register_has_one_number_and_others_have_none() {
    let (host, vm) = vm_in(VmState::Verified, VM_ORDINARY);
    let known: Vec<u64> = (0..300).filter(|n| host.call(HostCall::GetRegister, &[vm, 0, *n]).is_ok()).collect();
    let expected: Vec<u64> = (0..=34).chain(40..40 + 40).chain(128..=193).chain(200..=208).collect();
    assert_eq!(known, expected);
    for n in known.iter().filter(|n| **n != 33) {
        host.done(HostCall::SetRegister, &[vm, 0, *n, 0x1000 + n]).unwrap();
    }
    // SP_EL0 and SP_EL1 have a number among the EL1 registers, too.
    for n in known.iter().filter(|n| ![31, 33, 34].contains(*n)) {
        assert_eq!(host.call(HostCall::GetRegister, &[vm, 0, *n]).unwrap()[1], 0x1000 + n);
    }
    assert_eq!(host.call(HostCall::GetRegister, &[vm, 0, 31]).unwrap()[1], 0x1000 + 40);
    assert_eq!(host.call(HostCall::GetRegister, &[vm, 0, 34]).unwrap()[1], 0x1000 + 41);
}

#[test]
fn a9_a_processor_state_beyond_el1_is_never_a_vms() {
    let (host, vm) = vm_in(VmState::Verified, VM_ORDINARY);
    let set = |value| host.done(HostCall::SetRegister, &[vm, 0, 33, value]);
    for good in [0x3c5, 0, 4, 5, 0x6000_03c5, 0x6140_1005] {
        assert_eq!(set(good), Ok(()), "{good:#x}");
    }
    for bad in [0x3c9, 8, 9, 0xd, 0x10, 0x1f, 1, 2, 3, 6, 7, 1 << 20 | 5, 1 << 21 | 5, 1 << 32 | 5, u64::MAX] {
        assert_eq!(set(bad), Err(CallError::InvalidParameter), "{bad:#x}");
    }
    assert_eq!(host.call(HostCall::GetRegister, &[vm, 0, 33]).unwrap()[1], 0x6140_1005);
}

#[test]
fn ids_come_back_and_no_number_of_vms_needs_a_reboot() {
    let mut host = Host::default();
    let start = host.next;
    for _ in 0..300 {
        host.next = start;
        let vm = host.vm(VM_PROTECTED, 4);
        assert_eq!(vm, 1);
        host.vcpu(vm, 0);
        host.destroy(vm);
    }
    host.next = start;
    let all: Vec<u64> = (0..MAX_VMS).map(|_| host.vm(VM_ORDINARY, 1)).collect();
    assert_eq!(all, (1..=MAX_VMS).collect::<Vec<_>>());
    let root = host.pages(4).next_multiple_of(2 * PAGE);
    assert_eq!(host.call(HostCall::RegisterVm, &[VM_ORDINARY, 40, root]), Err(CallError::NoSpace));
    host.destroy(77);
    assert_eq!(host.vm(VM_ORDINARY, 1), 77, "the lowest that is free");
}

#[test]
fn a_vm_that_could_not_be_made_leaves_its_id_free() {
    let mut host = Host::default();
    for (x, error) in [
        ([2, 40, 0x4200_0000], CallError::InvalidParameter),
        ([u64::MAX, 40, 0x4200_0000], CallError::InvalidParameter),
        ([0, 31, 0x4200_0000], CallError::InvalidParameter),
        ([0, 41, 0x4200_0000], CallError::InvalidParameter),
        ([0, 1 << 32 | 40, 0x4200_0000], CallError::InvalidParameter),
        ([0, 40, 0x4200_1000], CallError::InvalidParameter),
        ([0, 40, 0x4200_0800], CallError::InvalidParameter),
        ([0, 40, 0x4000_2000], CallError::NotOwner),
        ([0, 40, 0x0900_0000], CallError::NotOwner),
        ([0, 39, 0], CallError::NotOwner),
        ([0, 39, u64::MAX - 0xfff], CallError::NotOwner),
    ] {
        assert_eq!(host.call(HostCall::RegisterVm, &x), Err(error), "{x:x?}");
    }
    assert_eq!(host.vm(VM_PROTECTED, 1), 1);
}

#[test]
fn a7_d3_no_memory_goes_back_while_a_vcpu_runs_and_none_while_the_vm_is_on() {
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        let (host, vm) = vm_in(VmState::Verified, kind);
        let (vms, id) = (host.world.core.vms(), VmId::new(vm as u16));
        boot_ops::set_vcpu_active(vms, id, VcpuId::new(0)).unwrap();
        assert_eq!(host.call(HostCall::ReclaimVm, &[vm]), Err(CallError::WrongState));
        // A vCPU switches the VM off while it runs itself.
        vm_power::set_vm_poweroff(vms, id).unwrap();
        assert_eq!(host.call(HostCall::ReclaimVm, &[vm]), Err(CallError::Busy));
        assert_eq!(host.done(HostCall::DestroyVm, &[vm]), Err(CallError::Busy));
        boot_ops::set_vcpu_inactive(vms, id, VcpuId::new(0));
        host.destroy(vm);
    }
}

#[test]
fn a10_the_host_can_switch_off_a_vm_that_never_ran() {
    for state in [VmState::Ready, VmState::Verified, VmState::PowerOff] {
        for kind in [VM_PROTECTED, VM_ORDINARY] {
            let (host, vm) = vm_in(state, kind);
            host.destroy(vm);
            assert_eq!(host.call(HostCall::VmInfo, &[vm]), Err(CallError::NoSuchObject));
        }
    }
}

#[test]
fn d14_what_was_given_for_a_vm_is_the_hosts_again_when_it_is_gone() {
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        let mut world = VmWorld::new(&layout(), SCRATCH);
        let before = world.spec.clone();
        let base = 0x4100_0000 / PAGE;
        let protected = kind == VM_PROTECTED;
        world.step(Call::RegisterVm { protected, bits: 40, root: base }).unwrap();
        world.step(Call::DonatePool { vm: 1, pfn: base + 2, pages: 40 }).unwrap();
        world.step(Call::RegisterVcpu { vm: 1, vcpu: 3, mailbox: base + 100 }).unwrap();
        assert_eq!(
            world.step(Call::MapMemory { vm: 1, gfn: 512, pfn: base + 512, pages: 700 }),
            Ok(Answer::Number(512))
        );
        world.step(Call::MapMemory { vm: 1, gfn: 1, pfn: base + 110, pages: 7 }).unwrap();
        world.step(Call::MapIo { vm: 1, gfn: 0x8000, pfn: GICV / PAGE, pages: 2 }).unwrap();
        world.check();
        world.step(Call::PowerOffVm { vm: 1 }).unwrap();
        world.step(Call::ReclaimVm { vm: 1 }).unwrap();
        world.check();
        world.step(Call::DestroyVm { vm: 1 }).unwrap();
        world.check();
        assert_eq!(world.spec, before);
    }
}

#[test]
fn d4_a_vcpu_is_registered_once_and_holds_its_mailbox() {
    let (mut host, vm) = vm_in(VmState::Ready, VM_PROTECTED);
    let mailbox = host.pages(1);
    assert_eq!(host.done(HostCall::RegisterVcpu, &[vm, 0, mailbox]), Err(CallError::WrongState));
    host.done(HostCall::RegisterVcpu, &[vm, 15, mailbox]).unwrap();
    // It cannot be given away.
    assert_eq!(host.call(HostCall::MapMemory, &[vm, 0x9000_0000, mailbox, 1]), Err(CallError::InUse));
    assert_eq!(host.call(HostCall::DonatePool, &[vm, mailbox, 1]), Err(CallError::InUse));
    assert_eq!(host.call(HostCall::RegisterVm, &[VM_PROTECTED, 36, mailbox]), Err(CallError::InUse));
    host.destroy(vm);
    let vm = host.vm(VM_PROTECTED, 10);
    assert_eq!(host.call(HostCall::MapMemory, &[vm, 0x9000_0000, mailbox, 1]).unwrap()[0], 1);
    let given = host.done(HostCall::RegisterVcpu, &[vm, 0, mailbox]);
    assert_eq!(given, Err(CallError::NotOwner), "what was given away is no mailbox");
}

#[test]
fn a_vm_without_a_pool_gets_no_vcpu_and_its_mailbox_is_let_go() {
    let mut host = Host::default();
    let root = host.pages(4).next_multiple_of(2 * PAGE);
    let vm = host.call(HostCall::RegisterVm, &[VM_PROTECTED, 40, root]).unwrap()[1];
    let mailbox = host.pages(1);
    assert_eq!(host.done(HostCall::RegisterVcpu, &[vm, 0, mailbox]), Err(CallError::NoMemory));
    assert_eq!(host.call(HostCall::DonatePool, &[vm, mailbox, 1]), Ok([1, 0, 0, 0]));
    assert_eq!(host.call(HostCall::PoolInfo, &[vm]), Ok([0, 1, 1, 0]));
}

#[test]
fn a16_the_only_window_of_a_vm_is_the_gics_virtual_cpu_interface() {
    let (host, vm) = vm_in(VmState::Ready, VM_ORDINARY);
    for (pa, pages) in [
        (0x0800_0000, 1),
        (GICV - PAGE, 1),
        (GICV - PAGE, 2),
        (GICV + PAGE, 2),
        (GICV + 2 * PAGE, 1),
        (0x4200_0000, 1),
        (GICV, u64::MAX >> 12),
    ] {
        let answer = host.call(HostCall::MapIo, &[vm, 0x0801_0000, pa, pages]);
        assert!(matches!(answer, Err(CallError::NotOwner | CallError::InvalidParameter)), "{pa:#x}: {answer:?}");
    }
    assert_eq!(host.call(HostCall::MapIo, &[vm, 0x0801_0000, GICV, 2]), Ok([2, 0, 0, 0]));
    assert_eq!(host.call(HostCall::PageInfo, &[vm, 0x0801_1000]), Ok([0, 4, 0, 0]));
}

#[test]
fn where_a_private_page_is_stays_the_cores_secret() {
    let (mut host, vm) = vm_in(VmState::Ready, VM_PROTECTED);
    let page = host.pages(1);
    host.call(HostCall::MapMemory, &[vm, 0x8000_0000, page, 1]).unwrap();
    assert_eq!(host.call(HostCall::PageInfo, &[vm, 0x8000_0000]), Ok([0, 1, 0, 0]));
    let (mut host, vm) = vm_in(VmState::Ready, VM_ORDINARY);
    let page = host.pages(1);
    host.call(HostCall::MapMemory, &[vm, 0x8000_0000, page, 1, 1]).unwrap();
    assert_eq!(host.call(HostCall::PageInfo, &[vm, 0x8000_0000]), Ok([0, 3, page, 0]));
    assert_eq!(host.call(HostCall::MapMemory, &[vm, 0x8000_1000, page, 1, 2]), Err(CallError::InvalidParameter));
}

// ---- code and specification, side by side -----------------------------------------------------------------------------

struct Chooser {
    rng: Rng,
}

impl Chooser {
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
        let base = self.rng.pick(&[0, 0, 512, 0x4_0000, 0x4_0200, (1 << 20) - 4, (1 << 28) - 3]);
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

    fn call(&mut self, world: &VmWorld) -> Call {
        let vm = self.vm(world);
        match self.rng.below(29) {
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
            9..=11 => Call::RemapImagePage { vm, image: self.rng.below(3), pfn: self.pfn() },
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
            14..=17 => {
                let (gfn, pfn) = (self.gfn(), self.pfn());
                Call::MapMemory { vm, gfn, pfn, pages: self.pages() }
            }
            18 | 19 => Call::UnmapMemory { vm, gfn: self.gfn(), pages: self.pages() },
            20 => {
                let pfn = GICV / PAGE + self.rng.below(3);
                Call::MapIo { vm, gfn: self.gfn(), pfn, pages: self.rng.below(3) }
            }
            21 => Call::SetCntvoff { vm, offset: self.rng.next() },
            22 | 23 => Call::Activate { vm, vcpu: self.vcpu() },
            24 => Call::Started { vm, vcpu: self.vcpu() },
            25 => Call::Leave { vm, vcpu: self.vcpu() },
            26 => Call::CpuOff { vm, vcpu: self.vcpu() },
            27 => Call::AffinityInfo { vm, target: self.vcpu() },
            _ => Call::CpuOn { vm, target: self.vcpu(), entry: self.rng.next(), context: self.rng.next() },
        }
    }
}

#[test]
fn random_lives_of_vms_are_what_the_specification_says() {
    let mut counts = std::collections::BTreeMap::new();
    for seed in 0..40 * common::factor() {
        let mut world = VmWorld::new(&layout(), SCRATCH);
        let mut chooser = Chooser { rng: Rng::new(seed) };
        let mut pools = 0x4_2000;
        for n in 0..400 {
            let call = chooser.call(&world);
            let answer = world.step(call);
            if let (Call::RegisterVm { .. }, Ok(Answer::Number(vm))) = (call, answer) {
                // The specification's pools never end.
                world.step(Call::DonatePool { vm, pfn: pools, pages: 60 }).unwrap();
                pools += 60;
            }
            let name = format!("{call:?}").split([' ', '{']).next().unwrap_or_default().to_string();
            let counted: &mut (u64, u64) = counts.entry(name).or_default();
            if answer.is_ok() {
                counted.0 += 1
            } else {
                counted.1 += 1
            }
            if n % 10 == 0 {
                world.check();
            }
        }
        world.check();
    }
    println!("{counts:?}");
    assert!(counts.values().all(|(done, _)| *done > 10), "a call that never succeeds tests little: {counts:?}");
}

#[test]
fn a_vms_own_view_of_its_vcpus_power_is_psci() {
    let mut world = VmWorld::new(&layout(), SCRATCH);
    let base = 0x4100_0000 / PAGE;
    world.step(Call::RegisterVm { protected: true, bits: 40, root: base }).unwrap();
    world.step(Call::DonatePool { vm: 1, pfn: base + 2, pages: 40 }).unwrap();
    for vcpu in 0..3 {
        world.step(Call::RegisterVcpu { vm: 1, vcpu, mailbox: base + 100 + vcpu }).unwrap();
    }
    world.step(Call::SetBootInfo { vm: 1, gfn: 0x4_0200, size: 4096 }).unwrap();
    world.step(Call::RemapImagePage { vm: 1, image: 0, pfn: base + 110 }).unwrap();
    let manifest = Manifest { authentic: true, entry: (0x4020_0010, 5) };
    world.step(Call::VerifyVm { vm: 1, manifest: Some(manifest) }).unwrap();

    let mut psci = |call| match world.step(call) {
        Ok(Answer::Psci(x0)) => x0,
        Ok(Answer::Start(start)) => panic!("{start:?}"),
        other => panic!("{other:?}"),
    };
    let on = |target| Call::CpuOn { vm: 1, target, entry: 0x4020_0040, context: 77 };
    assert_eq!(psci(on(3)), -2, "no such vCPU");
    assert_eq!(psci(on(1 << 32)), -2);
    assert_eq!(psci(Call::AffinityInfo { vm: 1, target: 1 }), 1);
    assert_eq!(psci(on(1)), 0);
    assert_eq!(psci(on(1)), -5, "pending");
    assert_eq!(psci(Call::AffinityInfo { vm: 1, target: 1 }), 2);
    assert_eq!(world.step(Call::Activate { vm: 1, vcpu: 2 }), Err(CallError::WrongState), "a9: only the VM starts it");
    assert_eq!(world.step(Call::Activate { vm: 1, vcpu: 0 }), Ok(Answer::Start(Start::Manifest(0x4020_0010, 5))));
    assert_eq!(world.step(Call::Activate { vm: 1, vcpu: 0 }), Err(CallError::WrongState), "it runs on another CPU");
    assert_eq!(world.step(Call::Activate { vm: 1, vcpu: 1 }), Ok(Answer::Start(Start::Psci(0x4020_0040, 77))));
    world.step(Call::Started { vm: 1, vcpu: 1 }).unwrap();
    world.step(Call::CpuOff { vm: 1, vcpu: 1 }).unwrap();
    assert_eq!(world.step(on(1)), Ok(Answer::Psci(-4)), "on until it has left");
    world.step(Call::Leave { vm: 1, vcpu: 1 }).unwrap();
    assert_eq!(world.step(Call::Activate { vm: 1, vcpu: 1 }), Err(CallError::WrongState), "off");
    assert_eq!(world.step(on(1)), Ok(Answer::Psci(0)));
    assert_eq!(world.spec.vms[&1].vcpus[&1].power, Power::Pending(0x4020_0040, 77));
    world.step(Call::PowerOffVm { vm: 1 }).unwrap();
    assert_eq!(world.step(on(2)), Ok(Answer::Psci(-3)));
    world.check();
}
