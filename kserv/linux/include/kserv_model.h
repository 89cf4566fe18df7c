/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the Linux driver's C part asks of the model, the Rust library kserv/linux/model (one object, x.o_shipped).
 *
 * One struct kserv_vm for each VM, in memory that C allocates (kserv_vm_size, kserv_vm_align; kvzalloc will do) and that kserv_vm_init
 * fills. Every function that takes one is called under one raw spinlock of that VM with interrupts off. Nothing sleeps, allocates,
 * takes a lock, uses FP/SIMD or more than 2 KiB of stack. Any argument is served: what makes no sense is an error, never a crash.
 *
 * Times are of the physical counter (CNTPCT_EL0), absolute. Errors are negative errno numbers. `kick` is always a mask of vCPUs, one
 * bit each, ORed into what is there: after the lock is dropped C wakes those that wait and makes those that run exit (by an IPI).
 *
 * Registers of a vCPU have two homes, C's cache and the core (GetRegister, SetRegister); the model does not know where they are: it
 * names core registers by number (0 to KSERV_CORE_REGISTERS - 1), and turns their words into what ONE_REG shows and back.
 *
 * Which address is memory, and whose, is C's to know: for an MMIO or FAULT action C looks into its memory slots first.
 */
#ifndef KSERV_MODEL_H
#define KSERV_MODEL_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#endif

#define KSERV_MAX_VCPUS 16
#define KSERV_MAX_SPIS 256
/* Numbers of core registers: mailbox::Register of src/interface, all below this. */
#define KSERV_CORE_REGISTERS 256
/* A time that never comes. */
#define KSERV_NEVER (~0ULL)

struct kserv_vm;

/* The machine, from CoreInfo and the host's own registers (MRS at EL1, any CPU). */
struct kserv_machine {
	uint64_t list_registers;	/* CoreInfo x1 */
	uint64_t gic;			/* CoreInfo x2, bits 7:0: 2, 3 or 0 */
	uint64_t midr, revidr, aidr, ctr, clidr;
	/* ID_AA64PFR0, PFR1, DFR0, ISAR0, ISAR1, ISAR2, MMFR0, MMFR1, MMFR2, as the host reads them; the model filters as the core does. */
	uint64_t id[9];
	/*
	 * What lets the core deliver private interrupts by itself, where `gic` is 3: CV_DIRECT_KICK with the number of the SGI, 0 without one; KSERV_NOT_DIRECT: it
	 * delivers none.
	 */
	uint64_t direct;
};

#define KSERV_NOT_DIRECT (~0ULL)

/* ---- VM and vCPUs ---------------------------------------------------------------------------------------------------------- */

size_t kserv_vm_size(void);
size_t kserv_vm_align(void);
/* A VM without vCPUs and without interrupt controller, with addresses of so many bits. `cntvoff`: its virtual counter starts there (the time now). */
void kserv_vm_init(struct kserv_vm *vm, const struct kserv_machine *machine, uint32_t ipa_bits, uint64_t cntvoff);

/* KVM_CREATE_VCPU. -EINVAL: number too large; -EEXIST; -EBUSY: the interrupt controller is initialised already; -E2BIG: more than it can have. */
int kserv_vcpu_create(struct kserv_vm *vm, uint32_t vcpu);
/*
 * KVM_ARM_VCPU_INIT, the first and every later one: off or ready, timers off, model-held registers at reset. C resets its cache
 * (kserv_reset_value) and, if the vCPU has run, makes a new VM at the core. `target` must be 5 (generic); features: words as in struct
 * kvm_vcpu_init. -ENOENT: unknown feature; -EINVAL: unsupported one, or another set than at the first time.
 */
int kserv_vcpu_init(struct kserv_vm *vm, uint32_t vcpu, uint32_t target, const uint32_t features[7]);
bool kserv_vcpu_initialized(const struct kserv_vm *vm, uint32_t vcpu);
/* What core register `n` of `vcpu` holds after KVM_ARM_VCPU_INIT. Zero for numbers that are none. */
uint64_t kserv_reset_value(const struct kserv_vm *vm, uint32_t vcpu, uint32_t n);
/* Whether core register `n` exists, so that it is worth saving. */
bool kserv_core_register_exists(uint32_t n);

/* KVM_MP_STATE_RUNNABLE (0) or KVM_MP_STATE_STOPPED (5); -EINVAL for any other. */
int kserv_mp_state_get(const struct kserv_vm *vm, uint32_t vcpu);
int kserv_mp_state_set(struct kserv_vm *vm, uint32_t vcpu, uint32_t state, uint32_t *kick);
/*
 * KVM_SET_VCPU_EVENTS. A pending SError cannot be: -EINVAL. `ext_dabt`: the MMIO access that the last exit reported ends with an
 * external abort instead; -EINVAL if there is none. What KVM_GET_VCPU_EVENTS gives is all zero.
 */
int kserv_events_set(struct kserv_vm *vm, uint32_t vcpu, bool serror, bool serror_has_esr, bool ext_dabt);

/*
 * Attributes of a vCPU: group TIMER_CTRL (1), IRQ_VTIMER (0) and IRQ_PTIMER (1), the timers' interrupts. -ENXIO: another one. They cannot be moved:
 * -EINVAL for another number, or without an interrupt controller in the kernel; -EBUSY once it is initialised.
 */
int kserv_vcpu_attr_get(const struct kserv_vm *vm, uint32_t group, uint64_t attr, uint32_t *value);
int kserv_vcpu_attr_set(const struct kserv_vm *vm, uint32_t group, uint64_t attr, uint32_t value);

/* ---- ONE_REG --------------------------------------------------------------------------------------------------------------- */

struct kserv_reg {
	int32_t core;		/* first core register that it is made of; -1: none */
	uint32_t words;		/* how many, from there on: 0, 1 or 2 */
	uint32_t size;		/* bytes in user space: 4, 8 or 16 */
	uint32_t vcpu;		/* whose: for kserv_gic_attr_find */
	uint64_t token;		/* the model's, and so is the rest */
	uint32_t group;
	uint32_t pad;
};

uint32_t kserv_reg_count(const struct kserv_vm *vm);
/* The id at this place of KVM_GET_REG_LIST; 0 if there is none. */
uint64_t kserv_reg_id(const struct kserv_vm *vm, uint32_t index);
/* -ENOENT for an id that is not in the list, and only for such. */
int kserv_reg_find(const struct kserv_vm *vm, uint32_t vcpu, uint64_t id, struct kserv_reg *reg);
/* `core`: content of the core registers reg->core and on. `value`: what user space sees, low word first. */
int kserv_reg_get(struct kserv_vm *vm, const struct kserv_reg *reg, uint64_t now, const uint64_t core[2], uint64_t value[2]);
/*
 * `core` is content before, and after: if 0 is returned C writes reg->words of them back. -EINVAL: not this value (a read-only register
 * takes the value that it has).
 */
int kserv_reg_set(struct kserv_vm *vm, const struct kserv_reg *reg, uint64_t now, const uint64_t value[2], uint64_t core[2],
		  uint32_t *kick);
/* For SetCntvoff: C compares it with what the core has before each KVM_RUN. It changes by KVM_REG_ARM_TIMER_CNT. */
uint64_t kserv_cntvoff(const struct kserv_vm *vm);

/* ---- running --------------------------------------------------------------------------------------------------------------- */

/*
 * At the first KVM_RUN of the VM, before its first entry: makes GICv2 ready as KVM does. -ENXIO: the interrupt controller has no
 * addresses; -EBUSY: it is not initialised (GICv3).
 */
int kserv_first_run(struct kserv_vm *vm);

enum kserv_entry {
	KSERV_ENTRY_RUN = 0,	/* the mailbox is filled; VcpuRun follows */
	KSERV_ENTRY_OFF = 1,	/* it is switched off, or the VM has ended: wait for a kick */
};

/*
 * Right before VcpuRun: entry_flags, list registers, vgic_hcr of the mailbox. pc, pstate and x0 of a first entry, and a flag that asks the
 * core to keep registers, are C's: it ORs the latter in.
 */
enum kserv_entry kserv_on_entry(struct kserv_vm *vm, uint32_t vcpu, void *mailbox, uint64_t now);
/* VcpuRun returned an error instead of a reason: the vCPU is ready as before, and what the mailbox was filled with is due again. */
void kserv_not_entered(struct kserv_vm *vm, uint32_t vcpu, const void *mailbox);

enum kserv_action_kind {
	KSERV_RUN = 0,		/* again */
	KSERV_BLOCK = 1,	/* until kserv_runnable, or a kick, or `until` */
	KSERV_MMIO = 2,		/* addr, len, write, data; then kserv_mmio_done, kserv_abort, or nothing for a write */
	KSERV_FAULT = 3,	/* memory at `addr` (page) is to be mapped; `write`, `fetch`; or kserv_abort */
	KSERV_OFF = 4,		/* switched off: as KSERV_ENTRY_OFF */
	KSERV_SYSTEM_EVENT = 5,	/* KVM_EXIT_SYSTEM_EVENT with type `event` and, if event_ndata, data[0] `data`; all vCPUs are off */
	KSERV_STOPPED = 6,	/* somebody made PowerOffVm */
	KSERV_FAIL = 7,		/* the VM did what the core cannot serve: `esr`; it never runs again */
	KSERV_ITS = 8,		/* kserv_its_next has something; then again */
};

struct kserv_action {
	uint32_t kind;
	uint32_t len;		/* 1, 2, 4, 8 */
	uint8_t write;
	uint8_t fetch;
	uint8_t event;		/* KVM_SYSTEM_EVENT_SHUTDOWN 1, RESET 2 */
	uint8_t event_ndata;
	uint32_t pad;
	uint64_t addr;
	uint64_t data;
	uint64_t until;		/* KSERV_NEVER: only by an interrupt */
	uint64_t esr;
};

/*
 * Right after VcpuRun: serves an exit that is nobody else's business, and prepares the next entry. True: VcpuRun again, at once. False: nothing has changed,
 * the exit is for kserv_on_exit.
 */
bool kserv_answer(struct kserv_vm *vm, uint32_t vcpu, uint64_t reason, void *mailbox, uint64_t now);
/*
 * Right after VcpuRun; `reason` is its x0 (not negative). MMIO to the interrupt controller, PSCI, timers and SGIs are served here. Every
 * access that is not the interrupt controller's comes as KSERV_MMIO, also where a memory slot is below 1 GiB: C makes it on the slot's
 * memory then, and maps the page for the next time.
 */
void kserv_on_exit(struct kserv_vm *vm, uint32_t vcpu, uint64_t reason, void *mailbox, uint64_t now, struct kserv_action *action,
		   uint32_t *kick);
/* Ends the load of a KSERV_MMIO with `data` (low bytes count; the model extends it as the instruction says). For a store: nothing. */
void kserv_mmio_done(struct kserv_vm *vm, uint32_t vcpu, void *mailbox, uint64_t data);
enum kserv_device {
	KSERV_DEVICE_NOT_HERE = 0,
	KSERV_DEVICE_SERVED = 1,
	KSERV_DEVICE_SERVED_ITS = 2,	/* kserv_its_next has something */
};

/*
 * A KSERV_FAULT where no memory is, which C has decoded from the vCPU's registers: served if the interrupt controller is there. `value`: what is stored,
 * or what was loaded.
 */
enum kserv_device kserv_device_access(struct kserv_vm *vm, uint32_t vcpu, uint64_t address, uint32_t len, bool write, uint64_t *value,
				      uint32_t *kick);
/* Ends a KSERV_MMIO or KSERV_FAULT with an external abort in the VM, at its next entry. */
void kserv_abort(struct kserv_vm *vm, uint32_t vcpu);

/* Whether a vCPU has something to do: it is ready, or what it waits for is there. */
bool kserv_runnable(struct kserv_vm *vm, uint32_t vcpu, uint64_t now);
/* When a vCPU that waits must be looked at (hrtimer); KSERV_NEVER. */
uint64_t kserv_block_until(const struct kserv_vm *vm, uint32_t vcpu);
/* KVM_RUN returns for a signal: a vCPU that waits goes on with the next one. */
void kserv_end_wait(struct kserv_vm *vm, uint32_t vcpu);
/*
 * How long a vCPU's thread looks for the end of its next wait before it sleeps, after a wait that took `waited` in all with the window `window` (at first 0);
 * `most`: the longest one. All of one unit. Needs no lock.
 */
uint64_t kserv_poll_window(uint64_t window, uint64_t waited, uint64_t most);
/* When a vCPU that is about to run must be made to exit, if nothing else does (hrtimer); KSERV_NEVER. */
uint64_t kserv_run_until(struct kserv_vm *vm, uint32_t vcpu, uint64_t now);
/*
 * Without an interrupt controller in the kernel: timers' output for run->s.regs.device_irq_level (bit 0 virtual, 1 physical). Before each
 * entry C compares it with what user space was told last; if they differ: KVM_EXIT_INTR, -EINTR. Zero with one in the kernel.
 */
uint32_t kserv_irq_level(struct kserv_vm *vm, uint32_t vcpu, uint64_t now);
/* Exits of a vCPU for this reason; 0 if there is none such. */
uint64_t kserv_exits(const struct kserv_vm *vm, uint32_t vcpu, uint64_t reason);

/* ---- interrupts ------------------------------------------------------------------------------------------------------------ */

/* KVM_IRQ_LINE: `irq` with type, vCPU and number as user space gives it. -EINVAL, -ENXIO as KVM. */
int kserv_irq_line(struct kserv_vm *vm, uint32_t irq, uint32_t level, uint32_t *kick);
/* irqfd and routing: `spi` from 0 on (GSI = SPI). -EINVAL if there is none, -EAGAIN before kserv_gic_init. */
int kserv_set_spi(struct kserv_vm *vm, uint32_t spi, bool level, uint32_t *kick);
/* An irqfd without resampling: an edge, or a level that stays until kserv_set_spi or KVM_IRQ_LINE lowers it, as in KVM. */
int kserv_pulse_spi(struct kserv_vm *vm, uint32_t spi, uint32_t *kick);
/* irqfd with resampling: whether the end of this SPI is to be told. */
int kserv_watch_spi(struct kserv_vm *vm, uint32_t spi, bool on);
/* The next watched SPI that the VM has ended, or -1: to be asked until -1 after each kserv_on_exit with a watched SPI. */
int32_t kserv_next_ended_spi(struct kserv_vm *vm);
/*
 * KVM_SIGNAL_MSI and MSI routes: 1 if the VM has an interrupt for it, 0 if not; -EINVAL: not the ITS's doorbell, or no device id; -ENODEV: no ITS.
 */
int kserv_msi(struct kserv_vm *vm, uint64_t address, uint32_t data, uint32_t device, bool has_device, uint32_t *kick);

/* ---- the interrupt controller in the kernel (KVM_CREATE_DEVICE) ------------------------------------------------------------- */

/* `version` 2 or 3. -ENODEV: not on this machine; -EEXIST; -EBUSY: a vCPU has run; -E2BIG: GICv2 with more than 8 vCPUs. */
int kserv_gic_create(struct kserv_vm *vm, uint32_t version);
/* 0 none, 2, 3. */
uint32_t kserv_gic_version(const struct kserv_vm *vm);
bool kserv_gic_initialized(const struct kserv_vm *vm);
/*
 * KVM_HAS/GET/SET_DEVICE_ATTR of groups ADDR (0), NR_IRQS (3), CTRL (4: INIT): `group` and `attr` as user space gives them. `value` holds 64 bits
 * (NR_IRQS: 32). -ENXIO: no such attribute; -EINVAL, -EEXIST, -EBUSY, -E2BIG, -ENOENT, -ENODEV as KVM.
 */
int kserv_gic_has(const struct kserv_vm *vm, uint32_t group, uint64_t attr);
int kserv_gic_get(struct kserv_vm *vm, uint32_t group, uint64_t attr, uint64_t *value);
int kserv_gic_set(struct kserv_vm *vm, uint32_t group, uint64_t attr, const uint64_t *value, uint32_t *kick);
/*
 * The other groups, DIST_REGS (1), CPU_REGS (2), REDIST_REGS (5), CPU_SYSREGS (6), LEVEL_INFO (7): find, then kserv_reg_get or kserv_reg_set, with
 * all vCPUs of the VM out of KVM_RUN (else C says -EBUSY). -ENXIO: no such register; -EINVAL: no such vCPU; -EBUSY: not initialised.
 * kserv_gic_has answers for these groups, too.
 */
int kserv_gic_attr_find(struct kserv_vm *vm, uint32_t group, uint64_t attr, struct kserv_reg *reg);
/* GICv2: where the VM sees its CPU interface, for MapIo (2 pages); KSERV_NEVER if it has none. */
uint64_t kserv_gic_cpu_base(const struct kserv_vm *vm);
/* Whether [gpa, gpa + size) overlaps the interrupt controller's registers. */
bool kserv_gic_overlaps(const struct kserv_vm *vm, uint64_t gpa, uint64_t size);

/* ---- GICv3's translation service (KVM_DEV_TYPE_ARM_VGIC_ITS) ------------------------------------------------------------------ */

/* -ENODEV: no GICv3 in the kernel; -EEXIST; -EBUSY: a vCPU has run. */
int kserv_its_create(struct kserv_vm *vm);
/*
 * Groups ADDR (0: attribute 4), CTRL (4: INIT 0, SAVE_TABLES 1, RESTORE_TABLES 2, RESET 4), ITS_REGS (8): the latter two with all vCPUs out of KVM_RUN,
 * and kserv_its_next and kserv_its_outcome after each kserv_its_set. `value`: 64 bits.
 */
int kserv_its_has(const struct kserv_vm *vm, uint32_t group, uint64_t attr);
int kserv_its_get(const struct kserv_vm *vm, uint32_t group, uint64_t attr, uint64_t *value);
int kserv_its_set(struct kserv_vm *vm, uint32_t group, uint64_t attr, const uint64_t *value, uint32_t *kick);
/*
 * Its commands and tables stand in the VM's memory, which only C reaches, and not under the VM's lock. After KSERV_ITS, and after kserv_its_set or
 * SAVE_PENDING_TABLES of the GICv3, under a mutex of the VM: while kserv_its_next says true: read `len` bytes (at most 32) at `gpa`, or write so many of `bytes`
 * (at most 8) there; what was read goes to kserv_its_feed (`ok`: there was memory). The VM can go on giving commands as long as it likes: look at signals.
 */
struct kserv_its_want {
	uint64_t gpa;
	uint32_t len;
	uint8_t write;
	/* It is the next command of the VM's; else a part of one, or of tables, that is not to be left half done. */
	uint8_t command;
	uint8_t pad[2];
	uint8_t bytes[8];
};

bool kserv_its_next(struct kserv_vm *vm, struct kserv_its_want *want);
void kserv_its_feed(struct kserv_vm *vm, const uint8_t bytes[32], bool ok, uint32_t *kick);
/* What came of saving or restoring, which is given up if it is not done: 0, -EFAULT, -EINVAL, -EEXIST, -ENOMEM, -EINTR. */
int kserv_its_outcome(struct kserv_vm *vm, uint32_t *kick);

/* ---- what a protected VM starts with ------------------------------------------------------------------------------------------ */

struct kserv_image {
	uint64_t gpa, size;
};

/* For SetBootInfo and RemapImagePages, in this order: kernel, device tree, initrd; entry and x0 of vCPU 0. */
struct kserv_boot {
	uint64_t entry, x0, images;
	struct kserv_image image[5];
};

/* Copies `size` bytes of the VM's memory at `gpa` to `to`; false: there is none. May sleep. */
typedef bool (*kserv_read)(void *context, uint64_t gpa, void *to, size_t size);

/*
 * These three need no VM and no lock. They return NULL, or a text that says what is wrong. The first looks at PC (an arm64 Image, or QEMU's few
 * instructions before it), at x0 (device tree), and into /chosen; the kernel's size is that of the memory it needs. The second reads a
 * manifest as `scripts/sign` makes it, whose sizes are to be used for SetBootInfo. The third compares them, for a good message.
 */
const char *kserv_boot_infer(kserv_read read, void *context, uint64_t pc, uint64_t x0, struct kserv_boot *boot);
const char *kserv_boot_of_manifest(const void *manifest, size_t size, struct kserv_boot *boot);
const char *kserv_boot_explain(const struct kserv_boot *found, const struct kserv_boot *manifest);

/* ---- what C gives ---------------------------------------------------------------------------------------------------------- */

/* The model found a fault of its own, which cannot be: BUG(). `text` is not terminated. */
void kserv_model_panic(const char *text, size_t length) __attribute__((noreturn));

#endif
