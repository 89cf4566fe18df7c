//! The host's calls, in one table: numbers, arguments, errors.
//!
//! They stand in the range of vendor-specific hypervisor services, from function number 0x8000 on, so that they never meet
//! those that Linux's guests use (0 and up). x0 is the number, x1 to x5 the arguments, of [`HostCall::MapRuns`] x1 to x17; x0 is the result: 0 or a count, or a
//! negative [`CallError`]. Results beyond x0 stand in x1 to x3. An unknown call returns [`CallError::NotSupported`]; the calls
//! of Linux's EL2 boot stub (0 to 5) are unknown calls (K §8.3 A19).
//!
//! A call that works on a range does at most [`MAX_PAGES`] pages and says how many it did, so that no call keeps a CPU long.

/// Version of this table: major in the upper 16 bits, minor in the lower. A call is never changed, only added (minor) or
/// removed (major). Gone: 0x15, which took an image's pages one by one.
pub const INTERFACE_VERSION: u64 = 1 << 16 | 1;

/// SMCCC: fast call, 64 bit, vendor-specific hypervisor service, function 0x8000.
const HOST_BASE: u64 = 0xc600_8000;

/// Most pages of 4 KiB that one call works on: a 2 MiB block.
pub const MAX_PAGES: u64 = 512;
/// Registers that hold arguments: x1 to x17.
pub const ARGUMENTS: usize = 17;
/// Most runs of pages that one MapRuns works on.
pub const MAX_RUNS: usize = ARGUMENTS - 4;
/// Most pages that one MapRuns maps.
pub const MAX_RUN_PAGES: u64 = 64;
/// Most VMs at a time; VM ids are 1 to this. The host is 0.
pub const MAX_VMS: u64 = 127;
/// Most vCPUs of one VM; vCPU ids are 0 to one less.
pub const MAX_VCPUS: u64 = 16;
/// Most images of one VM. K: 5.
pub const MAX_IMAGES: u64 = 5;

macro_rules! calls {
    ($($(#[doc = $doc:literal])* $name:ident($($argument:ident),*) = $number:expr,)*) => {
        /// The calls that the host can make.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum HostCall {
            $($(#[doc = $doc])* $name,)*
        }

        impl HostCall {
            /// Every call.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The call with this function identifier.
            pub const fn from_function(function: u64) -> Option<Self> {
                match function {
                    $(number if number == $number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its function identifier, for x0.
            pub const fn function(self) -> u64 {
                match self { $(Self::$name => $number,)* }
            }

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The names of its arguments, x1 and on.
            pub const fn arguments(self) -> &'static [&'static str] {
                match self { $(Self::$name => &[$(stringify!($argument)),*],)* }
            }

            /// What it does, for the header.
            pub const fn doc(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc, "\n"),*),)* }
            }
        }
    };
}

calls! {
    /// x0 = [`INTERFACE_VERSION`].
    CoreVersion() = HOST_BASE,
    /// x0 = 0, x1 = how often the event was counted, over all CPUs since boot (numbers: `per_cpu::Event`, in order).
    CoreStatistics(event) = HOST_BASE + 1,
    /// x0 = 0, x1 = next sequence number, x2, x3 = up to 16 bytes of the core's log from sequence number `seq` on, the
    /// first in the low byte; `x1 - seq` may be larger than 16 if older lines are gone; no more if x1 = seq.
    CoreLogRead(seq) = HOST_BASE + 2,
    /// What this machine can do for VMs: x0 = 0, x1 = number of GIC list registers, x2 = GIC architecture version for VMs (2 or
    /// 3; 0: none) in bits 7:0, most bits of a VM's addresses in bits 15:8, vCPU context pages per vCPU in bits 23:16, x3 = physical address of the
    /// GICv2 virtual CPU interface (GICV), else 0.
    CoreInfo() = HOST_BASE + 3,

    /// A new VM, `kind` [`VM_ORDINARY`] or [`VM_PROTECTED`], with `ipa_bits` (32 to the most that CoreInfo says) of address space. The
    /// host gives the page(s) at `root` for its stage-2 root: `1 << (ipa_bits - 39)` pages from 40 to 43 bits, aligned to their size, else 1.
    /// x0 = 0, x1 = VM id. State: READY. K: `register_kvm`.
    RegisterVm(kind, ipa_bits, root) = HOST_BASE + 0x10,
    /// A new vCPU, whose [`crate::mailbox::Mailbox`] is the host's page at `mailbox`, which stays the host's for as long as the VM lives and
    /// cannot be given away. VM state READY. Takes its context pages from the VM's pool. K: `register_vcpu`.
    RegisterVcpu(vm, vcpu, mailbox) = HOST_BASE + 0x11,
    /// The host's `pages` pages from `pa` on become the VM's pool, from which its tables and vCPU contexts come. They come back to
    /// the host, scrubbed, at [`HostCall::DestroyVm`]. x0 = pages given, at most [`MAX_PAGES`].
    DonatePool(vm, pa, pages) = HOST_BASE + 0x12,
    /// Pages of the VM's pool that are free: x0 = 0, x1 = free, x2 = all.
    PoolInfo(vm) = HOST_BASE + 0x13,
    /// One more image of `size` bytes, which the VM will see at `gpa`, page-aligned; not empty, within the VM's addresses, over no other image. x0 = 0, x1 = image index;
    /// [`CallError::NoSpace`] after [`MAX_IMAGES`]. State READY, protected VMs only. K: `set_boot_info`.
    SetBootInfo(vm, gpa, size) = HOST_BASE + 0x14,
    /// The host's `pages` pages from `pa` on are the next pages of image `image`, as far as it has so many: they leave the host at once. x0 = pages taken (a whole 2 MiB block, or
    /// up to `pages`). State READY. K: `remap_vm_image`.
    RemapImagePages(vm, image, pa, pages) = HOST_BASE + 0x23,
    /// Protected VM: checks the images against the manifest ([`crate::boot::Manifest`]) in the host's page at `manifest`, copied once, with its
    /// signature; all pages of every image must be there. Ordinary VM: `manifest` is 0. State READY to VERIFIED; the VM can run.
    /// A wrong signature or digest leaves the VM READY as it was, its pages with it. Works in steps: returns
    /// [`CallError::Again`] until done. K: `verify_and_load_images`.
    VerifyVm(vm, manifest) = HOST_BASE + 0x16,
    /// Protected VM: the host's pages become the VM's, private, at `gpa`, scrubbed first (K §8.3 A18); only from 1 GiB to 256 GiB, what is
    /// elsewhere is for devices. Ordinary VM: they are lent to it. As blocks where both sides are aligned. x0 = pages mapped (a whole 2 MiB
    /// block, or up to `pages`); what is mapped already is refused (A4). State READY or VERIFIED.
    MapMemory(vm, gpa, pa, pages, flags) = HOST_BASE + 0x17,
    /// The same for pages that lie anywhere: of the host's `runs` (1 to [`MAX_RUNS`]) runs of pages, in x5 and on, the VM sees one behind the other from `gpa` on. A run is the address of
    /// its first page, and in bits 11:0 how many more belong to it. Each page is mapped as by MapMemory, in order, none as a part of a block: a page that stands there twice is lent twice, or is
    /// not the host's the second time. x0 = pages mapped: up to the first that cannot be, [`MAX_RUN_PAGES`] at most, and none of another 2 MiB of the VM's than `gpa`. State READY or VERIFIED.
    MapRuns(vm, gpa, runs, flags, run) = HOST_BASE + 0x24,
    /// Ordinary VM: takes what was lent at `gpa` back. x0 = pages done, mapped or not, at most [`MAX_PAGES`]. State READY or VERIFIED.
    UnmapMemory(vm, gpa, pages) = HOST_BASE + 0x18,
    /// Maps the GICv2 virtual CPU interface (the only window a VM may have) at `gpa`; for a protected VM below 1 GiB or from 256 GiB on, never where it has memory. State
    /// READY. K: `map_io`.
    MapIo(vm, gpa, pa, pages) = HOST_BASE + 0x19,
    /// The VM's virtual counter is the physical one less `offset`, in ticks of CNTFRQ_EL0. State READY; an ordinary VM also
    /// VERIFIED, for the entries that follow. K: `TIMER_SET_CNTVOFF`.
    SetCntvoff(vm, offset) = HOST_BASE + 0x1a,
    /// Runs the vCPU until something is the host's to do. x0 = a [`crate::mailbox::ExitReason`], the rest in the mailbox. State VERIFIED. K: `VCPU_RUN`.
    VcpuRun(vm, vcpu) = HOST_BASE + 0x1b,
    /// Reads register `register` ([`crate::mailbox::Register`]) of a vCPU that does not run ([`CallError::Busy`] while it does). Ordinary VMs only. x0 = 0, x1 = value. State READY, VERIFIED or POWEROFF.
    GetRegister(vm, vcpu, register) = HOST_BASE + 0x1c,
    /// Writes it, in the same states; [`CallError::InvalidParameter`] for one that can only be read. The vCPU goes on at exactly the program counter that is written, also after an exit that would have gone on behind an instruction.
    SetRegister(vm, vcpu, register, value) = HOST_BASE + 0x1d,
    /// No vCPU of the VM runs any more from now on. From every state: POWEROFF. Those that run right now leave at their next exit: the host
    /// makes them exit by an interrupt. K §8.3 A10.
    PowerOffVm(vm) = HOST_BASE + 0x1e,
    /// Takes up to [`MAX_PAGES`] pages of a VM in state POWEROFF back to the host: unmapped, scrubbed if they were private.
    /// [`CallError::Busy`] while a vCPU runs. x0 = pages taken, each table that went back into the pool among them; 0: none is left. K: `clear_vm_stage2_range`, A7.
    ReclaimVm(vm) = HOST_BASE + 0x1f,
    /// The VM is gone: pool, root and id are free again. Needs all memory reclaimed, else [`CallError::Busy`]. In steps: [`CallError::Again`].
    DestroyVm(vm) = HOST_BASE + 0x20,
    /// x0 = 0, x1 = state (`vm::VmState`), x2 = pages private or shared, x3 = kind.
    VmInfo(vm) = HOST_BASE + 0x21,
    /// Whether the VM's page at `gpa` is: x0 = 0, x1 = 0 not mapped, 1 private, 2 shared, 3 lent, 4 window; x2 = its physical address if it is shared or lent.
    PageInfo(vm, gpa) = HOST_BASE + 0x22,

    /// Seals the page at `gpa` of a protected VM in state POWEROFF that was VERIFIED before, none of whose vCPUs runs and of which nothing is
    /// reclaimed, into the host's pages at `out` (ciphertext) and `tag` (first 64 bytes: what it is, and the seal). Pages go in ascending order, each once.
    /// A snapshot lives until the machine starts again; without a source of random numbers there is none ([`CallError::NotSupported`]). K §4.8.
    SealPage(vm, gpa, out, tag) = HOST_BASE + 0x30,
    /// The host's page `data` with seal `tag` becomes the page at `gpa` of a protected VM in state READY without images.
    UnsealPage(vm, gpa, data, tag) = HOST_BASE + 0x31,
    /// Seals all registers of a vCPU, as SealPage does a page, into the host's page at `out`, 64 bytes of seal first.
    SealVcpu(vm, vcpu, out) = HOST_BASE + 0x32,
    /// The vCPU goes on from the sealed registers in the host's page at `data`. State READY without images, vCPU registered.
    UnsealVcpu(vm, vcpu, data) = HOST_BASE + 0x33,
    /// Ends a save (`phase` 0, every page and vCPU sealed: the host's page `data` gets what belongs to the snapshot; x1 = its number, x2 = its pages) or a
    /// restore (`phase` 1: the VM becomes VERIFIED if every page and vCPU of the snapshot in `data` is there, and no vCPU more).
    SealVm(vm, phase, data) = HOST_BASE + 0x34,

    /// x0-x3 = the core's UID, as SMCCC's "call UID" query gives it. Guests of KVM look for KVM's UID here.
    CallUid() = 0x8600_ff01,
    /// x0 = major, x1 = minor version of the interface.
    CallRevision() = 0x8600_ff03,
}

/// `kind` of RegisterVm: its memory is lent by the host, and the host may read and write its registers.
pub const VM_ORDINARY: u64 = 0;
/// `kind` of RegisterVm: its memory is its own.
pub const VM_PROTECTED: u64 = 1;
/// Flag of MapMemory and MapRuns: an ordinary VM may only read and execute it (K §8.3 A24).
pub const MAP_READ_ONLY: u64 = 1;

/// The core's UID: 1d7ff4a1-6a4e-4b1c-9c55-c04e5150cafe, as four words of RFC 4122 order.
pub const CORE_UID: [u64; 4] = [0xa1f4_7f1d, 0x1c4b_4e6a, 0x4ec0_559c, 0xfeca_5051];

/// Why a call failed: negative numbers in x0. Nothing has changed then, except where the call says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i64)]
pub enum CallError {
    /// There is no such call, or not on this machine.
    NotSupported = -1,
    /// An argument is out of its range, or not aligned.
    InvalidParameter = -3,
    /// There is no such VM, vCPU or image.
    NoSuchObject = -16,
    /// The VM or vCPU is not in a state in which the call is allowed, or not of that kind.
    WrongState = -17,
    /// The page is not the host's (what a VM shares with it is the VM's), or not the VM's.
    NotOwner = -18,
    /// The page is the host's, but lent to a VM or a mailbox; where it would be lent or shared once more: 255 times already.
    InUse = -19,
    /// Something is mapped there already.
    Occupied = -20,
    /// The VM's pool has no page left: [`HostCall::DonatePool`]. Pages that it had may stand in its tables by now, empty: the same call goes on there.
    NoMemory = -21,
    /// The core itself has no room left: VM ids, or table pages of its own.
    NoSpace = -22,
    /// vCPUs run, or memory is left.
    Busy = -23,
    /// Not done yet: make the same call again.
    Again = -24,
    /// Signature, digest or seal is wrong.
    NotAuthentic = -25,
}

impl CallError {
    /// Every error.
    pub const ALL: &[Self] = &[
        Self::NotSupported,
        Self::InvalidParameter,
        Self::NoSuchObject,
        Self::WrongState,
        Self::NotOwner,
        Self::InUse,
        Self::Occupied,
        Self::NoMemory,
        Self::NoSpace,
        Self::Busy,
        Self::Again,
        Self::NotAuthentic,
    ];

    /// The value for x0.
    pub const fn x0(self) -> u64 {
        self as i64 as u64
    }

    /// The error that x0 holds.
    pub fn from_x0(x0: u64) -> Option<Self> {
        Self::ALL.iter().copied().find(|error| error.x0() == x0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_found_by_its_number_and_no_two_share_one() {
        for (n, call) in HostCall::ALL.iter().enumerate() {
            assert_eq!(HostCall::from_function(call.function()), Some(*call));
            assert!(HostCall::ALL.iter().skip(n + 1).all(|other| other.function() != call.function()));
        }
    }

    #[test]
    fn the_calls_of_linuxs_boot_stub_do_not_exist() {
        for stub in 0..=16 {
            assert_eq!(HostCall::from_function(stub), None);
        }
    }

    #[test]
    fn every_error_is_found_by_its_number() {
        assert!(CallError::ALL.iter().all(|error| CallError::from_x0(error.x0()) == Some(*error)));
        assert_eq!(CallError::from_x0(0), None);
    }
}
