//! Targets over the core's layers on the simulated machine.
#![forbid(unsafe_code)]

use corevisor::abstract_machine::ExitCode;
use corevisor::abstract_machine::regs::TrapFrame;
use corevisor::abstract_machine::sim::{Trapped, run_as};
use corevisor::interface::calls::{MAX_PAGES, VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::{CallError, HostCall};
use corevisor::spec::world::host_sync;
use corevisor::vm::VmState;

use crate::common::driver::{Machines, run_with};
use crate::common::mediated;
use crate::common::snapshots::{KERNEL, PAGES, empty, inside, ran, restore, save};
use crate::common::vms::{Host, PAGE, TestManifest, image, key};
use corevisor_evidence::Rng;

use crate::common::lives;

/// Most steps of one input.
const STEPS: usize = 200;

/// The same where everything is compared after each.
const FEW: usize = 30;

/// A machine as the bytes say, and calls, traps and accesses on it.
pub fn host_calls(bytes: &[u8]) {
    run_as(0);
    let rng = &mut Rng::of(bytes);
    let machines = rng.pick(&[Machines::WithVms, Machines::Small]);
    run_with(rng, machines, FEW, None);
}

/// Accesses of the host to a GICv3's registers behind the core.
pub fn registers(bytes: &[u8]) {
    let rng = &mut Rng::of(bytes);
    let mut both = mediated::Both::new(20);
    for _ in 0..STEPS {
        if rng.is_spent() {
            break;
        }
        mediated::step(&mut both, rng);
    }
    both.compare_pages();
}

/// Lives of VMs.
pub fn vm_lives(bytes: &[u8]) {
    run_as(0);
    lives::run(&mut Rng::of(bytes), STEPS, &mut lives::Counts::new());
}

/// Any hypercalls, with two VMs there.
pub fn hypercalls(bytes: &[u8]) {
    const HVC: u64 = 0x16 << 26 | 1 << 25;
    run_as(0);
    let rng = &mut Rng::of(bytes);
    let mut host = Host::default();
    host.world.sim().set_script(Box::new(|_| ExitCode::Irq));
    let vms = [host.vm(VM_ORDINARY, 20), host.vm(VM_PROTECTED, 20)];
    vms.iter().for_each(|vm| host.vcpu(*vm, 0));
    let free = host.pages(64);
    for _ in 0..STEPS {
        if rng.is_spent() {
            break;
        }
        let function = rng.pick(HostCall::ALL);
        let argument = |rng: &mut Rng| match rng.below(8) {
            0 => rng.next(),
            1 => rng.below(MAX_PAGES + 2),
            2 => free + rng.below(64) * PAGE,
            3 => 0x4000_0000 + rng.below(1 << 14) * PAGE,
            4 => 1 << rng.below(64),
            5 => u64::MAX - rng.below(256),
            _ => rng.below(4),
        };
        let mut frame = TrapFrame { x: [0xaaaa; 31], sp: 0 };
        frame.x[0] = function.function();
        let arguments = if function == HostCall::MapRuns { 17 } else { 5 };
        frame.x[1..=arguments].iter_mut().for_each(|x| *x = argument(rng));
        let before = frame.x;
        host.world.sim().set_trapped(0, Trapped { esr: HVC, pc: 0x1000, pstate: 0x5, ..Trapped::default() });
        host_sync(&host.world.core, &mut frame);
        let x0 = frame.x[0];
        assert!((x0 as i64) >= 0 || CallError::from_x0(x0).is_some(), "{function:?} gave {x0:#x}");
        assert_eq!(frame.x[4..], before[4..], "{function:?}: no result stands there");
    }
    let violations = host.world.sim().violations_at_rest();
    assert!(violations.is_empty(), "{violations:?}");
}

/// Changes some bytes of `of`: where, and which bits.
fn change(rng: &mut Rng, of: &mut [u8]) {
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(of.len() as u64) as usize;
        of[at] ^= rng.below(256) as u8;
    }
}

/// Changes of what a host keeps of a VM, or of a signed VM that it starts.
pub fn snapshots(bytes: &[u8]) {
    run_as(0);
    let rng = &mut Rng::of(bytes);
    if rng.below(4) == 0 {
        return manifest(rng);
    }
    let (mut host, old, content) = ran();
    let mut kept = save(&mut host, old);
    host.destroy(old);
    let (from, to) = (rng.below(4) as usize, rng.below(4) as usize);
    match rng.below(6) {
        0 => change(rng, &mut kept.pages[from].1),
        1 => change(rng, &mut kept.pages[from].2),
        2 => change(rng, &mut kept.vcpus[from % 2]),
        3 => change(rng, &mut kept.whole),
        4 => kept.pages[to].0 = rng.pick(&PAGES) + rng.below(2) * PAGE,
        _ => kept.pages[to] = (kept.pages[to].0, kept.pages[from].1.clone(), kept.pages[from].2.clone()),
    }
    let vm = empty(&mut host);
    let restored = restore(&mut host, vm, &kept);
    assert_eq!(restored.is_ok(), host.state(vm) == VmState::Verified as u64, "{restored:?}");
    if restored.is_ok() {
        let now: Vec<_> = PAGES.iter().map(|gpa| inside(&host, vm, *gpa)).collect();
        assert!(now == content, "something else came back");
    }
    host.destroy(vm);
}

/// A VM whose manifest or image was changed after it was signed.
fn manifest(rng: &mut Rng) {
    let mut host = Host::default();
    let vm = host.vm(VM_PROTECTED, 30);
    host.vcpu(vm, 0);
    let good = [image(KERNEL, 5000)];
    let mut images = good.clone();
    let signed = TestManifest::of(&images, KERNEL, 7).sign(&key(1));
    let mut shown = signed.clone();
    if rng.below(2) == 0 {
        change(rng, &mut shown);
    } else {
        change(rng, &mut images[0].bytes);
    }
    host.load(vm, &images);
    let same = shown == signed && images[0].bytes == good[0].bytes;
    assert_eq!(host.verify(vm, &shown), if same { Ok(()) } else { Err(CallError::NotAuthentic) });
    host.destroy(vm);
}
