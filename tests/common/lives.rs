//! Random lives of VMs next to their specification.
#![forbid(unsafe_code)]
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;

use corevisor::spec::vm::{Answer, Call, Manifest};
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
            14..=17 => {
                let (gfn, pfn) = (self.gfn(), self.pfn());
                Call::MapMemory { vm, gfn, pfn, pages: self.pages() }
            }
            18 | 19 => Call::UnmapMemory { vm, gfn: self.gfn(), pages: self.pages() },
            20 => {
                let pfn = GICV.raw() / PAGE + self.rng.below(3);
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

/// By name of a call, how often it was done and how often refused.
pub type Counts = BTreeMap<String, (u64, u64)>;

/// One machine and a sequence of `calls` calls, shorter if the numbers are used up.
pub fn run(rng: &mut Rng, calls: usize, counts: &mut Counts) {
    let mut world = VmWorld::new(&layout(), SCRATCH);
    let mut chooser = Chooser { rng };
    let mut pools = 0x4_2000;
    for n in 0..calls {
        if chooser.rng.is_spent() {
            break;
        }
        let call = chooser.call(&world);
        let answer = world.step(call);
        if let (Call::RegisterVm { .. }, Ok(Answer::Number(vm))) = (call, answer) {
            // The specification's pools never end.
            world.step(Call::DonatePool { vm, pfn: pools, pages: 60 }).unwrap();
            pools += 60;
        }
        let name = format!("{call:?}").split([' ', '{']).next().unwrap_or_default().to_string();
        let (done, refused) = counts.entry(name).or_default();
        *(if answer.is_ok() { done } else { refused }) += 1;
        if n % 10 == 0 {
            world.check();
        }
    }
    world.check();
}
