//! Layers 18-21: the life of VMs. Specification.
//!
//! One function, [`step`]: the state, a call, the new state and the answer. What memory layers do is as small here as the VM layers see it: a VM's
//! address space is a map from gfn to page, and pools never end ([`World`](crate::spec::world::World) and `spec::memory` say the rest). Calls that take
//! steps are one step: a caller makes them until they are decided.
//!
//! K §4.4 with §8.2 D1-D5, D7, D8, D12 and §8.3 A3, A7, A9, A10: a call in the wrong state is an error and changes nothing; a number out of range
//! names nothing; ids come back.
#![forbid(unsafe_code)]

mod memory;

use std::collections::BTreeMap;
use std::ops::Range;
use std::vec::Vec;

use crate::interface::CallError;
use crate::vm::VmState;

/// A page of RAM that is not plainly the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page {
    /// The core's.
    Core,
    /// This VM's own, at this gfn.
    Private(u64, u64),
    /// The host's, lent or held so many times.
    Lent(u64),
}

/// A vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vcpu {
    /// Its mailbox.
    pub mailbox: u64,
    /// Whether some CPU runs it.
    pub active: bool,
    /// Its power.
    pub power: Power,
}

/// Power of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    /// It was never started.
    Never,
    /// It starts next at this address with this x0.
    Pending(u64, u64),
    /// On.
    On,
    /// Off.
    Off,
}

/// How a run begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Where it left.
    Resume,
    /// Here, with this x0: the VM's own will.
    Psci(u64, u64),
    /// Here, with this x0: the manifest's.
    Manifest(u64, u64),
    /// As the mailbox says.
    Mailbox,
}

/// What a VM has at a gfn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaf {
    /// This page.
    Ram(u64),
    /// A window.
    Window,
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vm {
    /// Its state, never `Unused`.
    pub state: VmState,
    /// Whether its memory is its own.
    pub protected: bool,
    /// Pages of its address space.
    pub size: u64,
    /// vCPUs by number.
    pub vcpus: BTreeMap<u64, Vcpu>,
    /// Images: first gfn, bytes, pages loaded.
    pub images: Vec<(u64, u64, u64)>,
    /// Its address space.
    pub map: BTreeMap<u64, Leaf>,
    /// Root and pool.
    pub given: Vec<u64>,
    /// Entry point and x0 of the manifest that it was checked against.
    pub entry: (u64, u64),
    /// Offset of its virtual counter.
    pub cntvoff: u64,
}

/// The abstract state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lives {
    /// Pages that are RAM.
    pub ram: Vec<Range<u64>>,
    /// Pages that are not plainly the host's.
    pub pages: BTreeMap<u64, Page>,
    /// VMs by id.
    pub vms: BTreeMap<u64, Vm>,
    /// Bits of the machine's addresses.
    pub ia_bits: u64,
    /// The GIC's virtual CPU interface, in pages.
    pub gicv: Range<u64>,
}

/// A manifest, as far as it decides anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Signed by a key that counts, and of this VM's images as they are.
    pub authentic: bool,
    /// Entry point and x0.
    pub entry: (u64, u64),
}

/// A call. Pages and gfns are numbers of pages, a run is its first page and how many it has: one of none is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Call {
    RegisterVm { protected: bool, bits: u64, root: u64 },
    RegisterVcpu { vm: u64, vcpu: u64, mailbox: u64 },
    DonatePool { vm: u64, pfn: u64, pages: u64 },
    SetBootInfo { vm: u64, gfn: u64, size: u64 },
    RemapImagePages { vm: u64, image: u64, pfn: u64, pages: u64 },
    VerifyVm { vm: u64, manifest: Option<Manifest> },
    MapMemory { vm: u64, gfn: u64, pfn: u64, pages: u64 },
    MapRuns { vm: u64, gfn: u64, runs: [(u64, u64); 4] },
    UnmapMemory { vm: u64, gfn: u64, pages: u64 },
    MapIo { vm: u64, gfn: u64, pfn: u64, pages: u64 },
    SetCntvoff { vm: u64, offset: u64 },
    Activate { vm: u64, vcpu: u64 },
    Started { vm: u64, vcpu: u64 },
    Leave { vm: u64, vcpu: u64 },
    CpuOn { vm: u64, target: u64, entry: u64, context: u64 },
    CpuOff { vm: u64, vcpu: u64 },
    AffinityInfo { vm: u64, target: u64 },
    PowerOffVm { vm: u64 },
    ReclaimVm { vm: u64 },
    DestroyVm { vm: u64 },
}

/// What a call gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nothing.
    Done,
    /// An id, an index or a count.
    Number(u64),
    /// How the run begins.
    Start(Start),
    /// What PSCI says to the VM.
    Psci(i64),
}

type Outcome = Result<Answer, CallError>;

/// The state after `call`, and its answer.
pub fn step(s: &Lives, call: Call) -> (Lives, Outcome) {
    let mut after = s.clone();
    match transition(&mut after, call) {
        // What is refused changes nothing.
        Err(error) => (s.clone(), Err(error)),
        answer => (after, answer),
    }
}

impl Lives {
    fn is_ram(&self, pfn: u64) -> bool {
        self.ram.iter().any(|bank| bank.contains(&pfn))
    }

    fn expect_host(&self, pfn: u64) -> Result<(), CallError> {
        match self.pages.get(&pfn) {
            None if pfn != 0 && self.is_ram(pfn) => Ok(()),
            Some(Page::Lent(_)) => Err(CallError::InUse),
            _ => Err(CallError::NotOwner),
        }
    }

    fn hold(&mut self, pfn: u64) -> Result<(), CallError> {
        let times = match self.pages.get(&pfn) {
            None => self.expect_host(pfn).map(|()| 1)?,
            Some(Page::Lent(255)) => return Err(CallError::InUse),
            Some(Page::Lent(times)) => times + 1,
            Some(_) => return Err(CallError::NotOwner),
        };
        self.pages.insert(pfn, Page::Lent(times));
        Ok(())
    }

    fn let_go(&mut self, pfn: u64) {
        match self.pages.get(&pfn) {
            Some(Page::Lent(1)) => self.pages.remove(&pfn),
            Some(Page::Lent(times)) => self.pages.insert(pfn, Page::Lent(times - 1)),
            _ => None,
        };
    }

    fn vm(&mut self, vm: u64, states: &[VmState]) -> Result<&mut Vm, CallError> {
        let vm = self.vms.get_mut(&vm).ok_or(CallError::NoSuchObject)?;
        if states.contains(&vm.state) { Ok(vm) } else { Err(CallError::WrongState) }
    }
}

impl Vm {
    fn vcpu(&mut self, vcpu: u64) -> Result<&mut Vcpu, CallError> {
        self.vcpus.get_mut(&vcpu).ok_or(CallError::NoSuchObject)
    }

    fn has(&self, gfn: u64, pages: u64) -> Result<(), CallError> {
        let inside = pages != 0 && gfn.checked_add(pages).is_some_and(|end| end <= self.size);
        if inside { Ok(()) } else { Err(CallError::InvalidParameter) }
    }

    fn is_running(&self) -> bool {
        self.vcpus.values().any(|vcpu| vcpu.active)
    }
}

/// Pages of a run that one call does: up to the next 2 MiB if both sides come to it together, and at most 2 MiB.
fn run_of(gfn: u64, pfn: u64, pages: u64) -> u64 {
    let most = pages.min(512);
    if gfn % 512 == pfn % 512 { most.min(512 - gfn % 512) } else { most }
}

const ALL: &[VmState] = &[VmState::Ready, VmState::Verified, VmState::PowerOff, VmState::Dying];
const BUILT: &[VmState] = &[VmState::Ready, VmState::Verified];

/// `act` for each of `pages`, until one is refused; an error only if it is the first.
fn until_refused(pages: u64, mut act: impl FnMut(u64) -> Result<(), CallError>) -> Outcome {
    for n in 0..pages {
        match act(n) {
            Err(error) if n == 0 => return Err(error),
            Err(_) => return Ok(Answer::Number(n)),
            Ok(()) => {}
        }
    }
    Ok(Answer::Number(pages))
}

fn transition(s: &mut Lives, call: Call) -> Outcome {
    // D7, D8: a number that no vCPU can have names none, before anything else is looked at.
    if let Call::RegisterVcpu { vcpu: 16.., .. } | Call::Activate { vcpu: 16.., .. } = call {
        return Err(CallError::NoSuchObject);
    }
    match call {
        Call::RegisterVm { protected, bits, root } => {
            let id = (1..=127).find(|id| !s.vms.contains_key(id)).ok_or(CallError::NoSpace)?;
            let pages = if bits > 39 && bits <= 43 { 1 << (bits - 39) } else { 1 };
            if !(32..=s.ia_bits).contains(&bits) || !root.is_multiple_of(pages) {
                return Err(CallError::InvalidParameter);
            }
            (root..root + pages).try_for_each(|page| s.expect_host(page))?;
            s.pages.extend((root..root + pages).map(|page| (page, Page::Core)));
            let vm = Vm {
                state: VmState::Ready,
                protected,
                size: 1 << (bits - 12),
                vcpus: BTreeMap::new(),
                images: Vec::new(),
                map: BTreeMap::new(),
                given: (root..root + pages).collect(),
                entry: (0, 0),
                cntvoff: 0,
            };
            s.vms.insert(id, vm);
            Ok(Answer::Number(id))
        }
        Call::RegisterVcpu { vm, vcpu, mailbox } => {
            let known = &s.vm(vm, &[VmState::Ready])?.vcpus;
            if known.contains_key(&vcpu) {
                return Err(CallError::WrongState); // D4
            }
            s.hold(mailbox)?;
            s.vm(vm, ALL)?.vcpus.insert(vcpu, Vcpu { mailbox, active: false, power: Power::Never });
            Ok(Answer::Done)
        }
        Call::DonatePool { vm, pfn, pages } => {
            s.vm(vm, BUILT)?;
            if pages == 0 {
                return Err(CallError::InvalidParameter);
            }
            until_refused(pages.min(512), |n| {
                s.expect_host(pfn + n)?;
                s.pages.insert(pfn + n, Page::Core);
                s.vm(vm, ALL)?.given.push(pfn + n);
                Ok(())
            })
        }
        Call::SetBootInfo { vm, gfn, size } => {
            let vm = s.vm(vm, &[VmState::Ready])?;
            if !vm.protected {
                return Err(CallError::WrongState);
            }
            let pages = size.div_ceil(4096);
            vm.has(gfn, pages)?;
            if vm.images.iter().any(|other| other.0 < gfn + pages && gfn < other.0 + other.1.div_ceil(4096)) {
                return Err(CallError::InvalidParameter);
            }
            if vm.images.len() == 5 {
                return Err(CallError::NoSpace); // D12
            }
            vm.images.push((gfn, size, 0));
            Ok(Answer::Number(vm.images.len() as u64 - 1))
        }
        Call::RemapImagePages { vm: id, image, pfn, pages } => {
            let vm = s.vm(id, &[VmState::Ready])?;
            vm.protected.then_some(()).ok_or(CallError::WrongState)?;
            let (first, size, loaded) = *vm.images.get(image as usize).ok_or(CallError::NoSuchObject)?;
            let missing = size.div_ceil(4096) - loaded;
            (pages != 0).then_some(()).ok_or(CallError::InvalidParameter)?;
            (missing != 0).then_some(()).ok_or(CallError::WrongState)?;
            // A3: these pages, there, and nothing around them.
            until_refused(run_of(first + loaded, pfn, pages.min(missing)), |n| {
                memory::give(s, id, first + loaded + n, pfn + n)?;
                s.vm(id, ALL).map(|vm| vm.images[image as usize].2 += 1)
            })
        }
        Call::VerifyVm { vm, manifest } => {
            let vm = s.vm(vm, &[VmState::Ready])?;
            match (vm.protected, manifest) {
                (false, None) => {}
                (true, Some(manifest)) => {
                    let complete = vm.images.iter().all(|(_, size, loaded)| size.div_ceil(4096) == *loaded);
                    if !complete || vm.images.is_empty() {
                        return Err(CallError::WrongState);
                    }
                    if !manifest.authentic {
                        return Err(CallError::NotAuthentic); // D2
                    }
                    vm.entry = manifest.entry;
                }
                _ => return Err(CallError::InvalidParameter),
            }
            vm.state = VmState::Verified;
            Ok(Answer::Done)
        }
        Call::MapMemory { vm, gfn, pfn, pages } => memory::map_memory(s, vm, gfn, pfn, pages),
        Call::MapRuns { vm, gfn, runs } => memory::map_runs(s, vm, gfn, &runs),
        Call::UnmapMemory { vm, gfn, pages } => memory::unmap_memory(s, vm, gfn, pages),
        Call::MapIo { vm, gfn, pfn, pages } => memory::map_io(s, vm, gfn, pfn, pages),
        Call::SetCntvoff { vm, offset } => {
            // An ordinary VM's clock may be set later too.
            let vm = s.vm(vm, &[VmState::Ready, VmState::Verified])?;
            if vm.protected && vm.state == VmState::Verified {
                return Err(CallError::WrongState);
            }
            vm.cntvoff = offset;
            Ok(Answer::Done)
        }
        Call::Activate { vm, vcpu } => {
            let vm = s.vm(vm, &[VmState::Verified])?;
            let (protected, entry) = (vm.protected, vm.entry);
            let place = vm.vcpu(vcpu)?;
            let start = match place.power {
                _ if place.active => return Err(CallError::WrongState),
                Power::On => Start::Resume,
                Power::Pending(pc, x0) => Start::Psci(pc, x0), // A9
                Power::Never if !protected => Start::Mailbox,
                Power::Never if vcpu == 0 => Start::Manifest(entry.0, entry.1),
                Power::Never | Power::Off => return Err(CallError::WrongState),
            };
            place.active = true;
            Ok(Answer::Start(start))
        }
        Call::Started { vm, vcpu } => {
            s.vm(vm, ALL)?.vcpu(vcpu)?.power = Power::On;
            Ok(Answer::Done)
        }
        Call::Leave { vm, vcpu } => {
            s.vm(vm, ALL)?.vcpu(vcpu)?.active = false;
            Ok(Answer::Done)
        }
        Call::CpuOn { vm, target, entry, context } => {
            let Ok(vm) = s.vm(vm, &[VmState::Verified]) else { return Ok(Answer::Psci(-3)) };
            let Ok(place) = vm.vcpu(target) else { return Ok(Answer::Psci(-2)) };
            match place.power {
                Power::Pending(..) => return Ok(Answer::Psci(-5)),
                Power::On => return Ok(Answer::Psci(-4)),
                Power::Never | Power::Off if place.active => return Ok(Answer::Psci(-4)),
                Power::Never | Power::Off => place.power = Power::Pending(entry, context),
            }
            Ok(Answer::Psci(0))
        }
        Call::CpuOff { vm, vcpu } => {
            s.vm(vm, ALL)?.vcpu(vcpu)?.power = Power::Off;
            Ok(Answer::Done)
        }
        Call::AffinityInfo { vm, target } => {
            let Ok(vm) = s.vm(vm, ALL) else { return Ok(Answer::Psci(-3)) };
            let Ok(place) = vm.vcpu(target) else { return Ok(Answer::Psci(-2)) };
            Ok(Answer::Psci(match place.power {
                _ if place.active => 0,
                Power::On => 0,
                Power::Pending(..) => 2,
                Power::Never | Power::Off => 1,
            }))
        }
        Call::PowerOffVm { vm } => {
            let vm = s.vm(vm, ALL)?;
            if vm.state != VmState::Dying {
                vm.state = VmState::PowerOff; // A10: from every state
            }
            Ok(Answer::Done)
        }
        Call::ReclaimVm { vm: id } => {
            let vm = s.vm(id, &[VmState::PowerOff])?; // D3
            if vm.is_running() {
                return Err(CallError::Busy); // A7
            }
            let map = core::mem::take(&mut vm.map);
            for leaf in map.into_values() {
                match leaf {
                    Leaf::Ram(pfn) if s.vms[&id].protected => {
                        s.pages.remove(&pfn);
                    }
                    Leaf::Ram(pfn) => s.let_go(pfn),
                    Leaf::Window => {}
                }
            }
            Ok(Answer::Done)
        }
        Call::DestroyVm { vm: id } => {
            let vm = s.vm(id, &[VmState::PowerOff, VmState::Dying])?;
            if vm.is_running() || vm.map.values().any(|leaf| matches!(leaf, Leaf::Ram(_))) {
                return Err(CallError::Busy); // A7
            }
            if let Some(vm) = s.vms.remove(&id) {
                s.pages.retain(|page, _| !vm.given.contains(page));
                vm.vcpus.values().for_each(|vcpu| s.let_go(vcpu.mailbox));
            }
            Ok(Answer::Done)
        }
    }
}
