//! Random lives of VMs next to their specification, and PSCI.

use crate::SCRATCH;
use crate::common::vms::{PAGE, layout};
use corevisor_evidence::{Rng, factor, tell};

use crate::common::lives;
use corevisor::interface::CallError;
use corevisor::spec::vm::{Answer, Call, Manifest, Power, Start};
use corevisor::spec::vm_world::VmWorld;

#[test]
fn random_lives_of_vms_are_what_the_specification_says() {
    let mut counts = lives::Counts::new();
    let seeds = 40 * factor();
    for seed in 0..seeds {
        let rng = &mut Rng::new(seed);
        match seed % 4 {
            0 => lives::run(rng, 400, &mut counts),
            kind => lives::run_settled(kind < 3, rng, 400, &mut counts),
        }
    }
    let (done, refused) = lives::done_and_refused(&counts);
    tell("lifecycle: random lives", &[("seeds", seeds), ("calls done", done), ("calls refused", refused)]);
    let lacking = lives::lacking(&counts, 5);
    assert!(lacking.is_empty(), "what seldom happens tests little: {lacking:#?}\nof {counts:#?}");
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
    world.step(Call::RemapImagePages { vm: 1, image: 0, pfn: base + 110, pages: 1 }).unwrap();
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
