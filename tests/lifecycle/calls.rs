//! Each call in each state, and each item of K §8.2 and §8.3 by its number.

use crate::common::vms::{Host, PAGE, TestManifest, image, key, layout};
use crate::{GICV, SCRATCH};
use corevisor::abstract_machine::addr::{VcpuId, VmId};
use corevisor::interface::calls::{MAX_VCPUS, MAX_VMS, VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::{CallError, HostCall};
use corevisor::spec::vm::{Answer, Call};
use corevisor::spec::vm_world::VmWorld;
use corevisor::vm::{VmState, boot_ops, vm_power};

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
        (HostCall::RemapImagePages, &[1, 0, free, 1],        [none, no,  no,  no,  no ], [none, no,  no,  no,  no ]),
        (HostCall::VerifyVm,       &[1, 0],                  [none, bad, no,  no,  no ], [none, yes, no,  no,  no ]),
        (HostCall::MapMemory,      &[1, gpa, free, 1],       [none, yes, yes, no,  no ], [none, yes, yes, no,  no ]),
        (HostCall::UnmapMemory,    &[1, gpa, 1],             [none, no,  no,  no,  no ], [none, yes, yes, no,  no ]),
        (HostCall::MapIo,          &[1, 0, GICV, 2],         [none, yes, no,  no,  no ], [none, yes, no,  no,  no ]),
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
        }
    }
}

#[test]
fn a_vm_whose_tables_go_is_not_switched_off_once_more() {
    for kind in [VM_PROTECTED, VM_ORDINARY] {
        let (host, vm) = vm_in(VmState::Dying, kind);
        host.done(HostCall::PowerOffVm, &[vm]).unwrap();
        assert_eq!(host.state(vm), VmState::Dying as u64);
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
    let expected: Vec<u64> = (0..=34).chain(40..40 + 40).chain(128..=193).chain(200..=208).chain(210..=211).collect();
    assert_eq!(known, expected);
    // The last two can only be read.
    let written: Vec<u64> = known.into_iter().filter(|n| *n != 33 && *n < 210).collect();
    for n in &written {
        host.done(HostCall::SetRegister, &[vm, 0, *n, 0x1000 + n]).unwrap();
    }
    // SP_EL0 and SP_EL1 have a number among the EL1 registers, too.
    for n in written.iter().filter(|n| ![31, 33, 34].contains(*n)) {
        assert_eq!(host.call(HostCall::GetRegister, &[vm, 0, *n]).unwrap()[1], 0x1000 + n);
    }
    assert_eq!(host.call(HostCall::GetRegister, &[vm, 0, 31]).unwrap()[1], 0x1000 + 40);
    assert_eq!(host.call(HostCall::GetRegister, &[vm, 0, 34]).unwrap()[1], 0x1000 + 41);
}

#[test]
fn a9_a_processor_state_beyond_el1_is_never_a_vms() {
    let (host, vm) = vm_in(VmState::Verified, VM_ORDINARY);
    let set = |value| host.done(HostCall::SetRegister, &[vm, 0, 33, value]);
    for good in [0x3c5, 0, 4, 5, 0x6000_03c5, 0x6140_2005, 0x6140_1005] {
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
            world.step(Call::MapMemory { vm: 1, gfn: 0x4_0200, pfn: base + 512, pages: 700 }),
            Ok(Answer::Number(512))
        );
        world.step(Call::MapMemory { vm: 1, gfn: 0x4_0001, pfn: base + 110, pages: 7 }).unwrap();
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
fn a16_where_a_protected_vm_has_memory_there_is_no_window() {
    const FIRST: u64 = 0x4000_0000;
    const END: u64 = 0x40_0000_0000;
    let (mut host, vm) = vm_in(VmState::Ready, VM_PROTECTED);
    // In each of them at least one of the pages is memory; of the last one too many.
    for (gpa, pages) in [
        (FIRST, 1),
        (FIRST - PAGE, 2),
        (0x5000_0000, 2),
        (END - PAGE, 1),
        (END - PAGE, 2),
        (FIRST - PAGE, (END - FIRST) / PAGE + 2),
    ] {
        let answer = host.call(HostCall::MapIo, &[vm, gpa, GICV, pages]);
        assert_eq!(answer, Err(CallError::InvalidParameter), "{gpa:#x}");
        assert_eq!(host.call(HostCall::PageInfo, &[vm, gpa]), Ok([0; 4]), "{gpa:#x}");
    }
    let page = host.pages(1);
    assert_eq!(host.call(HostCall::MapMemory, &[vm, FIRST, page, 1]), Ok([1, 0, 0, 0]), "its memory");
    assert_eq!(host.call(HostCall::MapIo, &[vm, FIRST - PAGE, GICV, 1]), Ok([1, 0, 0, 0]));
    assert_eq!(host.call(HostCall::MapIo, &[vm, END, GICV, 2]), Ok([2, 0, 0, 0]));
    // An ordinary VM has its devices where the host says.
    let (host, vm) = vm_in(VmState::Ready, VM_ORDINARY);
    assert_eq!(host.call(HostCall::MapIo, &[vm, 0x5000_0000, GICV, 2]), Ok([2, 0, 0, 0]));
}

#[test]
fn where_a_protected_vm_has_its_devices_the_host_puts_no_memory() {
    const LAST: u64 = 0x40_0000_0000 - PAGE;
    let (mut host, vm) = vm_in(VmState::Verified, VM_PROTECTED);
    let pages = host.pages(2);
    for gpa in [0, 0x0900_0000, 0x4000_0000 - PAGE, LAST, LAST + PAGE] {
        // In each of them at least one of two pages is a device's.
        assert_eq!(host.call(HostCall::MapMemory, &[vm, gpa, pages, 2]), Err(CallError::InvalidParameter), "{gpa:#x}");
        assert_eq!(host.call(HostCall::PageInfo, &[vm, gpa]), Ok([0; 4]), "{gpa:#x}");
    }
    assert_eq!(host.call(HostCall::MapMemory, &[vm, 0x4000_0000, pages, 1]).unwrap()[0], 1);
    assert_eq!(host.call(HostCall::MapMemory, &[vm, LAST, pages + PAGE, 1]).unwrap()[0], 1);
    // An ordinary VM's memory is the host's, wherever it is: a flash memory, for one.
    let (mut host, vm) = vm_in(VmState::Verified, VM_ORDINARY);
    let page = host.pages(1);
    assert_eq!(host.call(HostCall::MapMemory, &[vm, 0, page, 1]).unwrap()[0], 1);
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
