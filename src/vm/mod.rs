//! Layers 18-21: the life of VMs.
//!
//! | layer | module             | holds                                                                  |
//! |-------|--------------------|------------------------------------------------------------------------|
//! | 18    | [`vm_power`]       | power-off, and whether a VM still runs                                 |
//! | 19    | [`boot_core`]      | VM ids, given out and taken back                                       |
//! | -     | [`keys`]           | public keys whose signatures count                                     |
//! | 20    | [`authenticate`]   | manifests                                                              |
//! | 20    | [`boot_aux`]       | images, from the host's pages to a verdict                             |
//! | 21    | [`boot_ops`]       | the life of a VM and of its vCPUs                                      |
//! | 21    | [`vm_memory`]      | its memory, given and taken back; what the host may see                |
//! | 21    | [`mmio_guard`]     | which of its device addresses the host may hear of                     |
//! | 21    | [`seal`]           | snapshots of protected VMs                                             |
//! | 21    | [`host_calls`]     | the host's calls about VMs, from numbers to types                      |
//!
//! This file holds the state that these layers share: one [`Vm`] for each id, behind a lock of rank `Vm`, and the ids that are in
//! use, behind one of rank `Core`.
#![forbid(unsafe_code)]

pub mod authenticate;
pub mod boot_aux;
pub mod boot_core;
pub mod boot_ops;
pub mod host_calls;
pub mod keys;
pub mod mmio_guard;
pub mod seal;
pub mod vm_memory;
pub mod vm_power;

use core::sync::atomic::{AtomicU64, Ordering};

use keys::{Digest512, Keys, PublicKey, SealingKey};
use mmio_guard::MmioGuard;
use spin::Once;

use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{CpuId, Gfn, PAGE_SHIFT, PAGE_SIZE, Pa, Pfn, VcpuId, VmId};
use crate::abstract_machine::sha256::Sha256;
use crate::abstract_machine::shadow::Shadow;
use crate::interface::CallError;
use crate::interface::calls::{MAX_IMAGES, MAX_VCPUS, MAX_VMS};
use crate::locks::{Guard, Lock, Rank};
use crate::memory::Memory;
use crate::memory::mem_manager::Denied;
use crate::memory::memory_ops;
use crate::npt::VmKind;

const VCPU_SLOTS: usize = MAX_VCPUS as usize;
const IMAGE_SLOTS: usize = MAX_IMAGES as usize;

/// Where a VM is in its life. K §4.4, with its numbers; `Dying` is new.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum VmState {
    /// There is no such VM.
    Unused = 0,
    /// The host builds it: vCPUs, images.
    Ready = 2,
    /// It may run.
    Verified = 3,
    /// It never runs again; its memory goes back to the host.
    PowerOff = 4,
    /// Its memory is gone, its tables go.
    Dying = 5,
}

/// Where a vCPU is in its life. K §4.4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuState {
    /// There is no such vCPU.
    Unused,
    /// It does not run.
    Ready,
    /// It runs on some CPU.
    Active,
}

/// What a vCPU's power is, as PSCI sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    /// It was never started. Whether the host may start it depends on the VM's kind.
    Never,
    /// CPU_ON was called for it; it has not run since. Where it starts stands in its shadow.
    Pending,
    /// It is on.
    On,
    /// It switched itself off.
    Off,
}

/// How a vCPU's next run begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Where it left.
    Resume,
    /// All registers at reset, at `pc` with `x0`: the VM itself said so, by CPU_ON. The mailbox has no say.
    Psci {
        /// Entry point.
        pc: u64,
        /// Its x0.
        x0: u64,
    },
    /// All registers at reset, at `pc` with `x0`: the manifest says so. The mailbox's `pc` must say the same (else InvalidParameter).
    Manifest {
        /// Entry point.
        pc: u64,
        /// Its x0.
        x0: u64,
    },
    /// All registers at reset; `pc` and `x0` are the mailbox's.
    Mailbox,
}

/// A vCPU that this CPU runs. Nobody else does until `boot_ops::set_vcpu_inactive`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Active {
    /// The VM.
    pub vm: VmId,
    /// The vCPU.
    pub vcpu: VcpuId,
    /// CNTVOFF_EL2.
    pub cntvoff: u64,
}

/// One that this CPU is about to run: what its entry needs besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entering {
    /// Which.
    pub active: Active,
    /// Whose memory it runs in: what the host may see of it.
    pub kind: VmKind,
    /// Its registers.
    pub shadow: Shadow,
    /// The host's page for it: held, so it stays the host's.
    pub mailbox: Pfn,
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// Bits of its addresses.
    pub ia_bits: u32,
    /// What this CPU remembers of the VM's translations may be another vCPU's, or older than what this one did elsewhere.
    pub flush: bool,
    /// How this run begins.
    pub start: Start,
}

/// One vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vcpu {
    pub(crate) state: VcpuState,
    pub(crate) power: Power,
    pub(crate) shadow: Shadow,
    pub(crate) mailbox: Pfn,
    /// The CPU on which it ran last and none of the VM's other vCPUs since.
    pub(crate) last_cpu: Option<CpuId>,
    /// SGIs that the VM's other vCPUs have sent to it while it runs, one bit each; and [`Vcpu::KICKED`]. One word, for an exit takes all of it.
    pub(crate) posted: u32,
}

impl Vcpu {
    pub(crate) const UNUSED: Self = Self {
        state: VcpuState::Unused,
        power: Power::Never,
        shadow: Shadow::new(Pa::new(0)),
        mailbox: Pfn::new(0),
        last_cpu: None,
        posted: 0,
    };
    /// Bit of `posted`: its CPU was kicked because of them, since it entered and since it looked last.
    pub(crate) const KICKED: u32 = 1 << 16;
}

/// One boot image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Image {
    pub(crate) gfn: Gfn,
    pub(crate) size: u64,
    /// Pages that are the VM's already: from the first on.
    pub(crate) loaded: u64,
}

impl Image {
    const NONE: Self = Self { gfn: Gfn::new(0), size: 0, loaded: 0 };

    /// Pages that it has a byte in.
    pub(crate) const fn pages(&self) -> u64 {
        self.size.div_ceil(PAGE_SIZE)
    }

    /// Whether some page is in both.
    pub(crate) const fn overlaps(&self, other: &Self) -> bool {
        self.gfn.raw() < other.gfn.raw() + other.pages() && other.gfn.raw() < self.gfn.raw() + self.pages()
    }
}

/// How far the check of a VM's images is.
pub struct Check {
    /// Of the manifest that it is about, whose signature is good.
    pub(crate) identity: Digest512,
    /// Of the image's pages so far.
    pub(crate) digest: Sha256,
    /// Images that are done.
    pub(crate) image: usize,
    /// Pages of the image that are done.
    pub(crate) page: u64,
}

impl Check {
    /// The check against a manifest with this identity, at its beginning.
    pub(crate) fn new(identity: Digest512) -> Self {
        Self { identity, digest: Sha256::NEW, image: 0, page: 0 }
    }
}

/// A snapshot on its way, out of a VM or into one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Its number; 0: there is none.
    pub(crate) number: u64,
    /// Sequence number of the next seal.
    pub(crate) sequence: u64,
    /// Pages so far.
    pub(crate) pages: u64,
    /// On the way out: the first gfn that may come next.
    pub(crate) next: Gfn,
    /// vCPUs so far, by bit.
    pub(crate) vcpus: u16,
}

impl Snapshot {
    /// None.
    pub(crate) const NONE: Self = Self { number: 0, sequence: 0, pages: 0, next: Gfn::new(0), vcpus: 0 };
}

/// All that the core knows of one VM, besides its tables.
pub struct Vm {
    pub(crate) state: VmState,
    pub(crate) kind: VmKind,
    pub(crate) ipa_bits: u32,
    /// VTTBR_EL2: its table and its id.
    pub(crate) vttbr: u64,
    pub(crate) active: u32,
    pub(crate) vcpus: [Vcpu; VCPU_SLOTS],
    pub(crate) images: [Image; IMAGE_SLOTS],
    pub(crate) image_count: usize,
    pub(crate) entry: u64,
    pub(crate) x0: u64,
    pub(crate) cntvoff: u64,
    /// The check of the images, if it has begun.
    pub(crate) check: Option<Check>,
    /// Of the manifest that the images were checked against: what the VM is.
    pub(crate) identity: Digest512,
    /// Which device addresses it has named.
    pub(crate) guard: MmioGuard,
    /// Whether it could go on from where it is: it was allowed to run, and has neither switched itself off nor failed.
    pub(crate) resumable: bool,
    /// The snapshot that is made of it (after that), or that it is made from (before).
    pub(crate) snapshot: Snapshot,
}

impl Vm {
    /// No VM.
    pub const UNUSED: Self = Self {
        state: VmState::Unused,
        kind: VmKind::Ordinary,
        ipa_bits: 0,
        vttbr: 0,
        active: 0,
        vcpus: [Vcpu::UNUSED; VCPU_SLOTS],
        images: [Image::NONE; IMAGE_SLOTS],
        image_count: 0,
        entry: 0,
        x0: 0,
        cntvoff: 0,
        check: None,
        identity: [0; 64],
        guard: MmioGuard::NONE,
        resumable: false,
        snapshot: Snapshot::NONE,
    };

    /// The vCPU with this number, if it was registered.
    ///
    /// # Errors
    /// [`CallError::NoSuchObject`].
    pub(crate) fn vcpu(&mut self, vcpu: VcpuId) -> Result<&mut Vcpu, CallError> {
        let found = self.vcpus.get_mut(vcpu.index()).filter(|vcpu| vcpu.state != VcpuState::Unused);
        found.ok_or(CallError::NoSuchObject)
    }

    /// The images so far.
    pub(crate) fn images(&self) -> &[Image] {
        self.images.get(..self.image_count).unwrap_or(&[])
    }

    /// # Errors
    /// [`CallError::WrongState`] if the VM is in none of `states`.
    pub(crate) fn in_state(&self, states: &[VmState]) -> Result<(), CallError> {
        if states.contains(&self.state) { Ok(()) } else { Err(CallError::WrongState) }
    }

    /// # Errors
    /// [`CallError::InvalidParameter`] if `pages` is 0, or the VM does not have all addresses of the `pages` pages from `gfn` on.
    pub(crate) fn has_range(&self, gfn: Gfn, pages: u64) -> Result<(), CallError> {
        let end = gfn.raw().checked_add(pages).filter(|end| *end <= 1 << (self.ipa_bits - PAGE_SHIFT));
        if pages != 0 && end.is_some() { Ok(()) } else { Err(CallError::InvalidParameter) }
    }

    /// # Errors
    /// [`CallError::WrongState`] if the VM is of the other kind.
    pub(crate) fn of_kind(&self, kind: VmKind) -> Result<(), CallError> {
        if self.kind == kind { Ok(()) } else { Err(CallError::WrongState) }
    }
}

/// A VM's place behind its lock.
pub type VmLock = Lock<Vm>;

/// A place without a VM.
pub const fn no_vm() -> VmLock {
    Lock::new(Rank::Vm, Vm::UNUSED)
}

/// There are 127 of them, and one allocation of 256 KiB at most holds them all.
const _: () = assert!(size_of::<VmLock>() * MAX_VMS as usize <= 256 * 1024);

/// Numbers that were given out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    /// VM ids in use: bit n is id n + 1.
    pub(crate) vms: u128,
    /// Snapshots begun since boot; a number is never given twice.
    pub(crate) snapshots: u64,
}

/// The VMs, and the memory that they live in.
pub struct Vms<M> {
    memory: Memory<M>,
    ids: Lock<Ids>,
    slots: &'static [VmLock],
    keys: Once<Keys>,
    sealing: Once<SealingKey>,
    /// VM ids whose VM may have enrolled in the MMIO guard, one bit each.
    guarded: [AtomicU64; GUARDED_WORDS],
}

const GUARDED_WORDS: usize = (MAX_VMS as usize + 1).div_ceil(64);

/// The one place where a refusal of the memory layers becomes an error of the interface.
impl From<Denied> for CallError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NotDescribed | Denied::PageZero | Denied::NotOwner => Self::NotOwner,
            Denied::OutOfTables => Self::NoSpace,
            Denied::OutOfPool => Self::NoMemory,
            Denied::NoSuchVm => Self::NoSuchObject,
            Denied::WrongKind => Self::WrongState,
            Denied::InUse => Self::InUse,
            Denied::Occupied => Self::Occupied,
            Denied::Misaligned | Denied::OutOfRange => Self::InvalidParameter,
            Denied::Busy => Self::Busy,
        }
    }
}

impl<M: Machine> Vms<M> {
    /// No VM yet. `slots` are [`MAX_VMS`] times [`no_vm`].
    pub const fn new(memory: Memory<M>, slots: &'static [VmLock]) -> Self {
        Self {
            memory,
            ids: Lock::new(Rank::Core, Ids { vms: 0, snapshots: 0 }),
            slots,
            keys: Once::new(),
            sealing: Once::new(),
            guarded: [const { AtomicU64::new(0) }; GUARDED_WORDS],
        }
    }

    /// The layers below.
    pub const fn memory(&self) -> &Memory<M> {
        &self.memory
    }

    /// The machine.
    pub const fn machine(&self) -> &M {
        self.memory.machine()
    }

    /// Public keys whose manifests count besides the one of the build: once, at boot, the first [`keys::MAX_KEYS`].
    pub fn set_keys(&self, keys: impl Iterator<Item = PublicKey>) {
        self.keys.call_once(|| Keys::with(keys));
    }

    /// Public keys whose manifests count.
    pub(crate) fn keys(&self) -> &Keys {
        self.keys.get().unwrap_or(&Keys::OF_BUILD)
    }

    /// The machine's sealing key: of this boot, so a snapshot lives until the machine starts again; none if the machine has no source of
    /// random numbers.
    pub(crate) fn sealing(&self) -> Option<&SealingKey> {
        // A generator may have nothing for a moment; then the next call asks again.
        self.sealing.try_call_once(|| self.machine().entropy().map(SealingKey::from_words).ok_or(())).ok()
    }

    /// `act`, while the host's page `pfn` cannot become anybody else's.
    ///
    /// # Errors
    /// As [`memory_ops::hold_mailbox`].
    pub(crate) fn with_host_page<R>(&self, pfn: Pfn, act: impl FnOnce(&M) -> R) -> Result<R, CallError> {
        self.hold(pfn)?;
        let result = act(self.machine());
        self.let_go(pfn);
        Ok(result)
    }

    #[inline(never)]
    fn hold(&self, pfn: Pfn) -> Result<(), CallError> {
        Ok(memory_ops::hold_mailbox(&self.memory, pfn)?)
    }

    /// A page that was held is not any more.
    pub(crate) fn let_go(&self, pfn: Pfn) {
        // It was held, so nothing can be wrong with it.
        let _ = memory_ops::drop_mailbox(&self.memory, pfn);
    }

    /// Whether the VM may have enrolled in the MMIO guard. Without a lock, for every access to a device asks: once a VM was told that it is enrolled, no CPU
    /// says "no" any more, for it was noted before ([`note_guard`](Self::note_guard)).
    #[inline(always)]
    pub(crate) fn may_be_guarded(&self, vm: VmId) -> bool {
        let n = usize::from(vm.raw());
        self.guarded.get(n / 64).is_none_or(|word| word.load(Ordering::Acquire) >> (n % 64) & 1 != 0)
    }

    /// The VM is about to enroll, or it is a new one (`false`), of which no vCPU has run. Its lock is held.
    pub(crate) fn note_guard(&self, vm: VmId, enrolls: bool) {
        let n = usize::from(vm.raw());
        let Some(word) = self.guarded.get(n / 64) else { return };
        if enrolls {
            word.fetch_or(1 << (n % 64), Ordering::SeqCst);
        } else {
            word.fetch_and(!(1 << (n % 64)), Ordering::SeqCst);
        }
    }

    /// The ids in use, behind their lock.
    pub(crate) const fn ids(&self) -> &Lock<Ids> {
        &self.ids
    }

    /// The VM's place, locked, whether there is a VM or not.
    ///
    /// # Errors
    /// [`CallError::NoSuchObject`] if there is no place with this number: the host's 0, and beyond the last.
    #[inline(never)]
    pub(crate) fn place(&self, vm: VmId) -> Result<Guard<'_, Vm>, CallError> {
        self.place_at_once(vm)
    }

    #[inline(always)]
    fn place_at_once(&self, vm: VmId) -> Result<Guard<'_, Vm>, CallError> {
        // The host's number comes out beyond the last.
        let slot = self.slots.get(usize::from(vm.raw().wrapping_sub(1)));
        slot.map(Lock::acquire).ok_or(CallError::NoSuchObject)
    }

    /// The VM, locked.
    ///
    /// # Errors
    /// [`CallError::NoSuchObject`] if there is none.
    #[inline(never)]
    pub(crate) fn vm(&self, vm: VmId) -> Result<Guard<'_, Vm>, CallError> {
        self.vm_at_once(vm)
    }

    /// The same without a call, for the way of a vCPU in and out: there it is a quarter of the cost.
    ///
    /// # Errors
    /// As [`vm`](Self::vm).
    #[inline(always)]
    pub(crate) fn vm_at_once(&self, vm: VmId) -> Result<Guard<'_, Vm>, CallError> {
        let place = self.place_at_once(vm)?;
        if place.state == VmState::Unused { Err(CallError::NoSuchObject) } else { Ok(place) }
    }
}

/// Number of places for VMs.
pub const fn slots() -> usize {
    MAX_VMS as usize
}
