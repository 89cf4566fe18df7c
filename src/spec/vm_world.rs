//! The life of VMs: code and specification side by side. Each step is done by both, then both answers and both states are compared.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::vec::Vec;

use ed25519_compact::{KeyPair, Seed};
use sha2::{Digest, Sha256};

use super::invariants::View;
use super::vm::{Answer, Call, Leaf, Lives, Manifest, Page, Power, Start, Vcpu, Vm, step};
use super::world::{Layout, World};
use crate::abstract_machine::addr::{Pa, Pfn, PhysRange, VcpuId, VmId};
use crate::abstract_machine::shadow::ShadowReg;
use crate::abstract_machine::sim::Sim;
use crate::abstract_machine::{Machine, VgicInfo, Worlds};
use crate::interface::boot::{MANIFEST_MAGIC, Manifest as Form};
use crate::interface::calls::{ARGUMENTS, MAX_VMS};
use crate::interface::{CallError, HostCall};
use crate::memory::page_manager::PageState;
use crate::npt::VmKind;
use crate::vm::host_calls::{self, vm_call};
use crate::vm::{self, VcpuState, VmState, Vms, boot_ops};

const PAGE: u64 = 4096;
/// The GIC's virtual CPU interface of the test machine: two pages, as GICv2 has them.
pub const GICV: Pa = Pa::new(0x0804_0000);

/// A core, and the specification of its VMs.
pub struct VmWorld {
    /// The code, and the machine.
    pub world: World,
    /// The specification.
    pub spec: Lives,
    /// The host's page for manifests, which nothing else uses.
    scratch: u64,
    signer: KeyPair,
}

impl VmWorld {
    /// A machine without VMs. `scratch` is a page of the host that no call of the test names.
    pub fn new(layout: &Layout, scratch: u64) -> Self {
        let world = World::new(layout);
        world.sim().set_vgic(VgicInfo { version: 2, list_registers: 4, gicv: PhysRange::new(GICV, 2 * PAGE) });
        let signer = KeyPair::from_seed(Seed::new([9; 32]));
        world.core.vms().set_keys([*signer.pk].into_iter());
        let ram = layout.regions.iter().filter(|region| region.2);
        let spec = Lives {
            ram: ram.map(|(base, size, _)| base / PAGE..(base + size) / PAGE).collect(),
            pages: (layout.pool / PAGE..layout.pool / PAGE + layout.pool_pages)
                .map(|page| (page, Page::Core))
                .collect(),
            vms: BTreeMap::new(),
            ia_bits: layout.ia_bits.into(),
            gicv: GICV.raw() / PAGE..GICV.raw() / PAGE + 2,
        };
        Self { world, spec, scratch, signer }
    }

    /// Both make the call.
    pub fn step(&mut self, call: Call) -> Result<Answer, CallError> {
        let (after, spec) = step(&self.spec, call);
        let code = self.code(call);
        assert_eq!(code, spec, "{call:x?}\nleft: code, right: specification");
        self.spec = after;
        code
    }

    /// Both states are one, and what must always hold, does.
    pub fn check(&self) {
        let view = View::of(self.world.core.memory());
        let pages: BTreeMap<u64, Page> = view.foreign.iter().map(|(pfn, state)| (pfn.raw(), page_of(*state))).collect();
        assert_eq!(pages, self.spec.pages, "page records");
        for id in 1..=MAX_VMS {
            let known = self.spec.vms.get(&id).map(|vm| Vm { given: Vec::new(), ..vm.clone() });
            assert_eq!(abstract_vm(self.world.core.vms(), id), known, "VM {id}");
        }
        let core = pages.iter().filter(|(_, page)| **page == Page::Core).map(|(pfn, _)| Pfn::new(*pfn)).collect();
        let mut mailboxes: BTreeMap<Pfn, u8> = BTreeMap::new();
        for vcpu in self.spec.vms.values().flat_map(|vm| vm.vcpus.values()) {
            *mailboxes.entry(Pfn::new(vcpu.mailbox)).or_default() += 1;
        }
        if let Err(broken) = view.check(&core, &mailboxes) {
            panic!("{broken}");
        }
    }

    /// The calls of the host go through the one boundary; those of the vCPU layers do not.
    fn code(&self, call: Call) -> Result<Answer, CallError> {
        let vms = self.world.core.vms();
        let id = |vm: u64| host_calls::vm(vm);
        let number = |n: u64| Ok(Answer::Number(n));
        let make = |call: HostCall, x: &[u64]| {
            let mut all = [0; ARGUMENTS];
            all[..x.len()].copy_from_slice(x);
            vm_call(vms, call, &all)
        };
        // Made until it is decided: `Again`, or for a count that is not 0.
        let repeat = |call: HostCall, x: &[u64]| loop {
            match make(call, x) {
                Err(CallError::Again) => {}
                Ok([pages, ..]) if pages != 0 => {}
                decided => return decided.map(|_| Answer::Done),
            }
        };
        match call {
            Call::RegisterVm { protected, bits, root } => {
                let id = make(HostCall::RegisterVm, &[protected.into(), bits, root * PAGE])?[1];
                let root = Pa::new(root * PAGE);
                self.world.sim().load_stage2(VmId::new(id as u16), root, bits as u32, 48);
                number(id)
            }
            Call::RegisterVcpu { vm, vcpu, mailbox } => {
                make(HostCall::RegisterVcpu, &[vm, vcpu, mailbox * PAGE]).map(|_| Answer::Done)
            }
            Call::DonatePool { vm, pfn, pages } => number(make(HostCall::DonatePool, &[vm, pfn * PAGE, pages])?[0]),
            Call::SetBootInfo { vm, gfn, size } => number(make(HostCall::SetBootInfo, &[vm, gfn * PAGE, size])?[1]),
            Call::RemapImagePages { vm, image, pfn, pages } => {
                number(make(HostCall::RemapImagePages, &[vm, image, pfn * PAGE, pages])?[0])
            }
            Call::VerifyVm { vm, manifest } => match manifest {
                None => repeat(HostCall::VerifyVm, &[vm, 0]),
                Some(manifest) => {
                    self.write_manifest(vm, manifest);
                    repeat(HostCall::VerifyVm, &[vm, self.scratch])
                }
            },
            Call::MapMemory { vm, gfn, pfn, pages } => {
                number(make(HostCall::MapMemory, &[vm, gfn * PAGE, pfn * PAGE, pages])?[0])
            }
            Call::MapRuns { vm, gfn, runs } => {
                let runs = runs.iter().filter(|(_, pages)| *pages != 0);
                let runs: Vec<u64> = runs.map(|(pfn, pages)| (pfn * PAGE) | (pages - 1)).collect();
                let x = [&[vm, gfn * PAGE, runs.len() as u64, 0], &runs[..]].concat();
                number(make(HostCall::MapRuns, &x)?[0])
            }
            Call::UnmapMemory { vm, gfn, pages } => number(make(HostCall::UnmapMemory, &[vm, gfn * PAGE, pages])?[0]),
            Call::MapIo { vm, gfn, pfn, pages } => {
                number(make(HostCall::MapIo, &[vm, gfn * PAGE, pfn * PAGE, pages])?[0])
            }
            Call::SetCntvoff { vm, offset } => make(HostCall::SetCntvoff, &[vm, offset]).map(|_| Answer::Done),
            Call::PowerOffVm { vm } => make(HostCall::PowerOffVm, &[vm]).map(|_| Answer::Done),
            Call::ReclaimVm { vm } => repeat(HostCall::ReclaimVm, &[vm]),
            Call::DestroyVm { vm } => repeat(HostCall::DestroyVm, &[vm]),
            Call::Activate { vm, vcpu } => {
                let active = boot_ops::set_vcpu_active(vms, id(vm)?, host_calls::vcpu(vcpu)?)?;
                assert_eq!((active.active.vm, active.active.vcpu), (id(vm)?, host_calls::vcpu(vcpu)?));
                Ok(Answer::Start(match active.start {
                    vm::Start::Resume => Start::Resume,
                    vm::Start::Psci { pc, x0 } => Start::Psci(pc, x0),
                    vm::Start::Manifest { pc, x0 } => Start::Manifest(pc, x0),
                    vm::Start::Mailbox => Start::Mailbox,
                }))
            }
            // These three have no answer: who calls them holds the vCPU.
            Call::Started { vm, vcpu } => self.held(vm, vcpu, boot_ops::vcpu_started),
            Call::Leave { vm, vcpu } => self.held(vm, vcpu, boot_ops::set_vcpu_inactive),
            Call::CpuOff { vm, vcpu } => self.held(vm, vcpu, boot_ops::psci_cpu_off),
            Call::CpuOn { vm, target, entry, context } => {
                let id = VmId::new(vm as u16);
                Ok(Answer::Psci(boot_ops::psci_cpu_on(vms, id, target, entry, context) as i64))
            }
            Call::AffinityInfo { vm, target } => {
                Ok(Answer::Psci(boot_ops::psci_affinity_info(vms, VmId::new(vm as u16), target) as i64))
            }
        }
    }

    fn held(&self, vm: u64, vcpu: u64, act: fn(&Vms<Sim>, VmId, VcpuId)) -> Result<Answer, CallError> {
        let known = self.spec.vms.get(&vm).is_some_and(|vm| vm.vcpus.contains_key(&vcpu));
        act(self.world.core.vms(), VmId::new(vm as u16), VcpuId::new(vcpu as u16));
        if known { Ok(Answer::Done) } else { Err(CallError::NoSuchObject) }
    }

    /// Signs the images as they are, or as they are not.
    fn write_manifest(&self, id: u64, manifest: Manifest) {
        let mut words = [MANIFEST_MAGIC, 0, manifest.entry.0, manifest.entry.1].to_vec();
        let vm = self.spec.vms.get(&id);
        let images = vm.map_or(&[][..], |vm| &vm.images[..]);
        words[1] = images.len() as u64;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for (gfn, size, _) in images {
            bytes.extend((gfn * PAGE).to_le_bytes());
            bytes.extend(size.to_le_bytes());
            let mut hash = Sha256::new();
            for at in *gfn..gfn + size.div_ceil(PAGE) {
                if let Some(Leaf::Ram(pfn)) = vm.and_then(|vm| vm.map.get(&at)) {
                    let mut page = [0; 512];
                    self.world.sim().read_page(Pfn::new(*pfn), 0, &mut page);
                    page.iter().for_each(|word| hash.update(word.to_le_bytes()));
                }
            }
            bytes.extend(hash.finalize());
        }
        bytes.resize(Form::SIGNED_SIZE - 32, 0);
        if !manifest.authentic {
            // A digest, or a place that must be zero.
            bytes[100] ^= 1;
        }
        bytes.extend(*self.signer.pk);
        let signature = self.signer.sk.sign(&bytes, None);
        bytes.extend(&signature[..]);
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        self.world.sim().write_page(Pfn::containing(Pa::new(self.scratch)), 0, &words);
    }
}

fn page_of(state: PageState) -> Page {
    match state {
        PageState::Lent(times) => Page::Lent(times.into()),
        PageState::Private { vm, gfn } => Page::Private(vm.raw().into(), gfn.raw()),
        _ => Page::Core,
    }
}

/// What the code knows of a VM, without root and pool.
pub fn abstract_vm(vms: &Vms<Sim>, id: u64) -> Option<Vm> {
    let vm = vms.place(VmId::new(id as u16)).ok()?;
    if vm.state == VmState::Unused {
        return None;
    }
    let mut map = BTreeMap::new();
    for leaf in vms.machine().enumerate(VmId::new(id as u16)).0 {
        for page in 0..leaf.size / PAGE {
            let pfn = leaf.output / PAGE + page;
            let is_ram = vms.memory().regions().as_slice().iter().any(|region| {
                region.kind != crate::memory::mem_region::RegionKind::Device
                    && region.range.contains(Pa::new(pfn * PAGE))
            });
            map.insert(leaf.base / PAGE + page, if is_ram { Leaf::Ram(pfn) } else { Leaf::Window });
        }
    }
    let vcpus = vm.vcpus.iter().enumerate().filter(|(_, vcpu)| vcpu.state != VcpuState::Unused);
    let vcpus: BTreeMap<u64, Vcpu> = vcpus
        .map(|(n, vcpu)| {
            let reg = |reg| vms.machine().get_shadow_ctxt(vcpu.shadow, reg);
            let power = match vcpu.power {
                vm::Power::Never => Power::Never,
                vm::Power::Pending => Power::Pending(reg(ShadowReg::Pc), reg(ShadowReg::X(0))),
                vm::Power::On => Power::On,
                vm::Power::Off => Power::Off,
            };
            (n as u64, Vcpu { mailbox: vcpu.mailbox.raw(), active: vcpu.state == VcpuState::Active, power })
        })
        .collect();
    assert_eq!(vm.active as usize, vcpus.values().filter(|vcpu| vcpu.active).count(), "vCPUs that run");
    Some(Vm {
        state: vm.state,
        protected: vm.kind == VmKind::Protected,
        size: 1 << (vm.ipa_bits - 12),
        vcpus,
        images: vm.images().iter().map(|image| (image.gfn.raw(), image.size, image.loaded)).collect(),
        map,
        given: Vec::new(),
        entry: (vm.entry, vm.x0),
        cntvoff: vm.cntvoff,
    })
}
