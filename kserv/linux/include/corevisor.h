/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Made from src/interface by `scripts/header`; do not edit. */
#ifndef COREVISOR_H
#define COREVISOR_H

#define CV_INTERFACE_VERSION 0x10001ULL
#define CV_MAX_PAGES 0x200ULL
#define CV_MAX_RUNS 0xdULL
#define CV_MAX_VMS 0x7fULL
#define CV_MAX_VCPUS 0x10ULL
#define CV_MAX_IMAGES 0x5ULL
#define CV_MAX_LIST_REGISTERS 0x10ULL
#define CV_VM_ORDINARY 0x0ULL
#define CV_VM_PROTECTED 0x1ULL
#define CV_MAP_READ_ONLY 0x1ULL
#define CV_START_PSTATE 0x3c5ULL
#define CV_MANIFEST_MAGIC 0x3246494e414d5643ULL
#define CV_OLD_MANIFEST_MAGIC 0x3146494e414d5643ULL
#define CV_MANIFEST_SIZE 0x170ULL
#define CV_ENTRY_VIRQ 0x1ULL
#define CV_ENTRY_VFIQ 0x2ULL
#define CV_ENTRY_INJECT_ABORT 0x4ULL
#define CV_ENTRY_TIMER_UNMASK 0x8ULL
#define CV_ENTRY_KEEP_REGISTERS 0x10ULL
#define CV_DIRECT_SGIS 0xffffULL
#define CV_DIRECT_SGI_PRIORITY_SHIFT 0x10ULL
#define CV_DIRECT_TIMER 0x1000000ULL
#define CV_DIRECT_KICK 0x2000000ULL
#define CV_DIRECT_KICK_SGI_SHIFT 0x1aULL
#define CV_DIRECT_TIMER_PRIORITY_SHIFT 0x1eULL

/* Offsets in the mailbox page; every field is a little-endian 64-bit word, x and lr are arrays of them. */
#define CV_MAILBOX_ENTRY_FLAGS 0x0
#define CV_MAILBOX_PC 0x8
#define CV_MAILBOX_PSTATE 0x10
#define CV_MAILBOX_X0 0x18
#define CV_MAILBOX_X 0x20
#define CV_MAILBOX_ESR 0x120
#define CV_MAILBOX_IPA 0x128
#define CV_MAILBOX_LR_COUNT 0x130
#define CV_MAILBOX_LR 0x138
#define CV_MAILBOX_VGIC_HCR 0x1b8
#define CV_MAILBOX_VGIC_VMCR 0x1c0
#define CV_MAILBOX_VGIC_MISR 0x1c8
#define CV_MAILBOX_CNTV_CTL 0x1d0
#define CV_MAILBOX_CNTV_CVAL 0x1d8
#define CV_MAILBOX_CNTVOFF 0x1e0
#define CV_MAILBOX_EXITS 0x1e8
#define CV_MAILBOX_POWERED 0x1f0
#define CV_MAILBOX_DIRECT 0x1f8
#define CV_MAILBOX_SGIS 0x200

/* ()
 * x0 = [`INTERFACE_VERSION`].
 */
#define CV_CALL_CORE_VERSION 0xc6008000ULL

/* (event)
 * x0 = 0, x1 = how often the event was counted, over all CPUs since boot (numbers: `per_cpu::Event`, in order).
 */
#define CV_CALL_CORE_STATISTICS 0xc6008001ULL

/* (seq)
 * x0 = 0, x1 = next sequence number, x2, x3 = up to 16 bytes of the core's log from sequence number `seq` on, the
 * first in the low byte; `x1 - seq` may be larger than 16 if older lines are gone; no more if x1 = seq.
 */
#define CV_CALL_CORE_LOG_READ 0xc6008002ULL

/* ()
 * What this machine can do for VMs: x0 = 0, x1 = number of GIC list registers, x2 = GIC architecture version for VMs (2 or
 * 3; 0: none) in bits 7:0, most bits of a VM's addresses in bits 15:8, vCPU context pages per vCPU in bits 23:16, x3 = physical address of the
 * GICv2 virtual CPU interface (GICV), else 0.
 */
#define CV_CALL_CORE_INFO 0xc6008003ULL

/* (kind, ipa_bits, root)
 * A new VM, `kind` [`VM_ORDINARY`] or [`VM_PROTECTED`], with `ipa_bits` (32 to the most that CoreInfo says) of address space. The
 * host gives the page(s) at `root` for its stage-2 root: `1 << (ipa_bits - 39)` pages from 40 to 43 bits, aligned to their size, else 1.
 * x0 = 0, x1 = VM id. State: READY. K: `register_kvm`.
 */
#define CV_CALL_REGISTER_VM 0xc6008010ULL

/* (vm, vcpu, mailbox)
 * A new vCPU, whose [`crate::mailbox::Mailbox`] is the host's page at `mailbox`, which stays the host's for as long as the VM lives and
 * cannot be given away. VM state READY. Takes its context pages from the VM's pool. K: `register_vcpu`.
 */
#define CV_CALL_REGISTER_VCPU 0xc6008011ULL

/* (vm, pa, pages)
 * The host's `pages` pages from `pa` on become the VM's pool, from which its tables and vCPU contexts come. They come back to
 * the host, scrubbed, at [`HostCall::DestroyVm`]. x0 = pages given, at most [`MAX_PAGES`].
 */
#define CV_CALL_DONATE_POOL 0xc6008012ULL

/* (vm)
 * Pages of the VM's pool that are free: x0 = 0, x1 = free, x2 = all.
 */
#define CV_CALL_POOL_INFO 0xc6008013ULL

/* (vm, gpa, size)
 * One more image of `size` bytes, which the VM will see at `gpa`, page-aligned; not empty, within the VM's addresses, over no other image. x0 = 0, x1 = image index;
 * [`CallError::NoSpace`] after [`MAX_IMAGES`]. State READY, protected VMs only. K: `set_boot_info`.
 */
#define CV_CALL_SET_BOOT_INFO 0xc6008014ULL

/* (vm, image, pa, pages)
 * The host's `pages` pages from `pa` on are the next pages of image `image`, as far as it has so many: they leave the host at once. x0 = pages taken (a whole 2 MiB block, or
 * up to `pages`). State READY. K: `remap_vm_image`.
 */
#define CV_CALL_REMAP_IMAGE_PAGES 0xc6008023ULL

/* (vm, manifest)
 * Protected VM: checks the images against the manifest ([`crate::boot::Manifest`]) in the host's page at `manifest`, copied once, with its
 * signature; all pages of every image must be there. Ordinary VM: `manifest` is 0. State READY to VERIFIED; the VM can run.
 * A wrong signature or digest leaves the VM READY as it was, its pages with it. Works in steps: returns
 * [`CallError::Again`] until done. K: `verify_and_load_images`.
 */
#define CV_CALL_VERIFY_VM 0xc6008016ULL

/* (vm, gpa, pa, pages, flags)
 * Protected VM: the host's pages become the VM's, private, at `gpa`, scrubbed first (K §8.3 A18); only from 1 GiB to 256 GiB, what is
 * elsewhere is for devices. Ordinary VM: they are lent to it. As blocks where both sides are aligned. x0 = pages mapped (a whole 2 MiB
 * block, or up to `pages`); what is mapped already is refused (A4). State READY or VERIFIED.
 */
#define CV_CALL_MAP_MEMORY 0xc6008017ULL

/* (vm, gpa, runs, flags, run)
 * The same for pages that lie anywhere: of the host's `runs` (1 to [`MAX_RUNS`]) runs of pages, in x5 and on, the VM sees one behind the other from `gpa` on. A run is the address of
 * its first page, and in bits 11:0 how many more belong to it. Each page is mapped as by MapMemory, in order, none as a part of a block: a page that stands there twice is lent twice, or is
 * not the host's the second time. x0 = pages mapped: up to the first that cannot be, [`MAX_RUN_PAGES`] at most, and none of another 2 MiB of the VM's than `gpa`. State READY or VERIFIED.
 */
#define CV_CALL_MAP_RUNS 0xc6008024ULL

/* (vm, gpa, pages)
 * Ordinary VM: takes what was lent at `gpa` back. x0 = pages done, mapped or not, at most [`MAX_PAGES`]. State READY or VERIFIED.
 */
#define CV_CALL_UNMAP_MEMORY 0xc6008018ULL

/* (vm, gpa, pa, pages)
 * Maps the GICv2 virtual CPU interface (the only window a VM may have) at `gpa`; for a protected VM below 1 GiB or from 256 GiB on, never where it has memory. State
 * READY. K: `map_io`.
 */
#define CV_CALL_MAP_IO 0xc6008019ULL

/* (vm, offset)
 * The VM's virtual counter is the physical one less `offset`, in ticks of CNTFRQ_EL0. State READY; an ordinary VM also
 * VERIFIED, for the entries that follow. K: `TIMER_SET_CNTVOFF`.
 */
#define CV_CALL_SET_CNTVOFF 0xc600801aULL

/* (vm, vcpu)
 * Runs the vCPU until something is the host's to do. x0 = a [`crate::mailbox::ExitReason`], the rest in the mailbox. State VERIFIED. K: `VCPU_RUN`.
 */
#define CV_CALL_VCPU_RUN 0xc600801bULL

/* (vm, vcpu, register)
 * Reads register `register` ([`crate::mailbox::Register`]) of a vCPU that does not run ([`CallError::Busy`] while it does). Ordinary VMs only. x0 = 0, x1 = value. State READY, VERIFIED or POWEROFF.
 */
#define CV_CALL_GET_REGISTER 0xc600801cULL

/* (vm, vcpu, register, value)
 * Writes it, in the same states; [`CallError::InvalidParameter`] for one that can only be read. The vCPU goes on at exactly the program counter that is written, also after an exit that would have gone on behind an instruction.
 */
#define CV_CALL_SET_REGISTER 0xc600801dULL

/* (vm)
 * No vCPU of the VM runs any more from now on. From every state: POWEROFF. Those that run right now leave at their next exit: the host
 * makes them exit by an interrupt. K §8.3 A10.
 */
#define CV_CALL_POWER_OFF_VM 0xc600801eULL

/* (vm)
 * Takes up to [`MAX_PAGES`] pages of a VM in state POWEROFF back to the host: unmapped, scrubbed if they were private.
 * [`CallError::Busy`] while a vCPU runs. x0 = pages taken, each table that went back into the pool among them; 0: none is left. K: `clear_vm_stage2_range`, A7.
 */
#define CV_CALL_RECLAIM_VM 0xc600801fULL

/* (vm)
 * The VM is gone: pool, root and id are free again. Needs all memory reclaimed, else [`CallError::Busy`]. In steps: [`CallError::Again`].
 */
#define CV_CALL_DESTROY_VM 0xc6008020ULL

/* (vm)
 * x0 = 0, x1 = state (`vm::VmState`), x2 = pages private or shared, x3 = kind.
 */
#define CV_CALL_VM_INFO 0xc6008021ULL

/* (vm, gpa)
 * Whether the VM's page at `gpa` is: x0 = 0, x1 = 0 not mapped, 1 private, 2 shared, 3 lent, 4 window; x2 = its physical address if it is shared or lent.
 */
#define CV_CALL_PAGE_INFO 0xc6008022ULL

/* (vm, gpa, out, tag)
 * Seals the page at `gpa` of a protected VM in state POWEROFF that was VERIFIED before, none of whose vCPUs runs and of which nothing is
 * reclaimed, into the host's pages at `out` (ciphertext) and `tag` (first 64 bytes: what it is, and the seal). Pages go in ascending order, each once.
 * A snapshot lives until the machine starts again; without a source of random numbers there is none ([`CallError::NotSupported`]). K §4.8.
 */
#define CV_CALL_SEAL_PAGE 0xc6008030ULL

/* (vm, gpa, data, tag)
 * The host's page `data` with seal `tag` becomes the page at `gpa` of a protected VM in state READY without images.
 */
#define CV_CALL_UNSEAL_PAGE 0xc6008031ULL

/* (vm, vcpu, out)
 * Seals all registers of a vCPU, as SealPage does a page, into the host's page at `out`, 64 bytes of seal first.
 */
#define CV_CALL_SEAL_VCPU 0xc6008032ULL

/* (vm, vcpu, data)
 * The vCPU goes on from the sealed registers in the host's page at `data`. State READY without images, vCPU registered.
 */
#define CV_CALL_UNSEAL_VCPU 0xc6008033ULL

/* (vm, phase, data)
 * Ends a save (`phase` 0, every page and vCPU sealed: the host's page `data` gets what belongs to the snapshot; x1 = its number, x2 = its pages) or a
 * restore (`phase` 1: the VM becomes VERIFIED if every page and vCPU of the snapshot in `data` is there, and no vCPU more).
 */
#define CV_CALL_SEAL_VM 0xc6008034ULL

/* ()
 * x0-x3 = the core's UID, as SMCCC's "call UID" query gives it. Guests of KVM look for KVM's UID here.
 */
#define CV_CALL_CALL_UID 0x8600ff01ULL

/* ()
 * x0 = major, x1 = minor version of the interface.
 */
#define CV_CALL_CALL_REVISION 0x8600ff03ULL

#define CV_ERR_NOT_SUPPORTED (-1)
#define CV_ERR_INVALID_PARAMETER (-3)
#define CV_ERR_NO_SUCH_OBJECT (-16)
#define CV_ERR_WRONG_STATE (-17)
#define CV_ERR_NOT_OWNER (-18)
#define CV_ERR_IN_USE (-19)
#define CV_ERR_OCCUPIED (-20)
#define CV_ERR_NO_MEMORY (-21)
#define CV_ERR_NO_SPACE (-22)
#define CV_ERR_BUSY (-23)
#define CV_ERR_AGAIN (-24)
#define CV_ERR_NOT_AUTHENTIC (-25)

#define CV_EXIT_IRQ 0
#define CV_EXIT_TIMER 1
#define CV_EXIT_WFX 2
#define CV_EXIT_MMIO_READ 3
#define CV_EXIT_MMIO_WRITE 4
#define CV_EXIT_MEMORY_FAULT 5
#define CV_EXIT_PSCI 6
#define CV_EXIT_SYSREG 7
#define CV_EXIT_SYSTEM_OFF 8
#define CV_EXIT_STOPPED 9
#define CV_EXIT_FAILED 10

#endif
