/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of the driver share.
 *
 * Locks, outer first:
 *   cv_vms_lock	which VMs there are
 *   vcpu->mutex	one ioctl of a vCPU at a time; KVM_RUN holds it
 *   vm->lock		vCPUs, devices, ioeventfds, irqfds, routes come and go
 *   vm->life		read: the core's VM stays what it is, and how a vCPU's last exit goes on is its own thread's to change; write: it is made, or taken
 *			apart (reset, end)
 *   vm->its_lock	the commands and tables of an ITS are read and written by one at a time
 *   vm->slots_lock	read: slots stay; write: they change
 *   (mmap_lock, locks of the VMM's page tables)
 *   vm->mmu_lock	which pages are lent: also taken by the MMU notifier, under these; locks of a file's pages are taken under it
 *   vm->io_lock	routes, irqfds' lists; with interrupts off. Taken below an eventfd's wait queue: none is signalled under it
 *   vm->model_lock	struct kserv_vm, raw, with interrupts off; nothing is taken below it
 */
#ifndef COREVISOR_KVM_DRIVER_H
#define COREVISOR_KVM_DRIVER_H

#include <linux/cpumask.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hrtimer.h>
#include <linux/kref.h>
#include <linux/kvm.h>
#include <linux/list.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/rcuwait.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/task_work.h>

#include <asm/arch_timer.h>

#include "call.h"
#include "kserv_model.h"

#define CV_BLOCK_PAGES 512ULL
#define CV_MAX_SLOTS 512
#define CV_DEFAULT_IPA_BITS 40
/* QEMU makes a route for each of its 256 SPIs, and wants to have some left for MSIs. */
#define CV_MAX_GSIS 1024
/* SPIs that a route may lead to: those that an interrupt controller can have at most. */
#define CV_MAX_PINS (1020 - 32)
/* A store to a device looks at all of them. KVM sets no limit; QEMU has some for each queue of a device. */
#define CV_MAX_IOEVENTFDS 4096
/* Pages tried around a fault in memory without huge pages. */
#define CV_FAULT_AROUND 16ULL

/* What CoreInfo says, and the module's parameters. */
struct cv_core {
	u32 list_registers;
	u32 gic;
	u32 ipa_bits;
	u32 context_pages;
	u64 gicv;
	struct kserv_machine machine;
};

extern struct cv_core cv_core;
extern bool cv_all_protected;
extern unsigned int cv_halt_poll_ns;

/* Pages that the core has until the VM's end. */
struct cv_held {
	struct list_head link;
	struct page *page;
	unsigned int order;
};

/* 2 MiB of a VM's addresses. */
struct cv_block {
	/* The first page of what is lent there as a block; NULL: none. */
	struct page *page;
	/*
	 * The page that is lent by itself at each of its places; NULL: none. Only there once a page is to be lent so, and
	 * then as long as the slot.
	 */
	struct page **pages;
	/* Pages lent one by one. */
	u16 single;
	/* What is lent there has a reference of the driver's on it, because it could not be taken back when it should have been. */
	bool held;
};

struct cv_slot {
	struct list_head link;
	u32 id;
	u32 flags;
	u64 gpa;
	u64 npages;
	unsigned long hva;
	/* Each block of the VM's addresses that the slot has a part of. vm->mmu_lock. */
	struct cv_block *blocks;
	/*
	 * KVM_MEM_LOG_DIRTY_PAGES: which pages the VM may have written since the last KVM_GET_DIRTY_LOG. The others are lent read-only, one by one.
	 * mmu_lock.
	 */
	unsigned long *dirty;
};

/* Memory for the pages [first, first + count) of a slot, with a reference on each page, or, where they are a block, on its first. */
struct cv_found {
	u64 first;
	unsigned long count;
	struct page *pages[CV_FAULT_AROUND];
};

static inline bool cv_is_block(const struct cv_found *found)
{
	return found->count == CV_BLOCK_PAGES;
}

/* Number of the program counter: mailbox::Register. */
#define CV_REG_PC 32

struct cv_vcpu {
	struct cv_vm *vm;
	u32 id;
	struct mutex mutex;
	struct kvm_run *run;
	u64 *mailbox;

	/* The thread in KVM_RUN; under RCU. */
	struct task_struct __rcu *task;
	/* Between the check for kicks and the exit from the core. */
	bool inside;
	/* Its thread, while it sleeps: woken from hard interrupts, too, where a wait queue's lock may sleep (PREEMPT_RT). */
	struct rcuwait wait;
	struct hrtimer timer;
	/* Somebody changed the model for it. */
	bool kicked;
	/* The VM waits for an interrupt: not one that is off. */
	bool waits;
	/* How long its next wait is looked at before the thread sleeps, in ticks. */
	u64 poll_window;

	/* Registers while the core has none of them; by number of corevisor.h. */
	u64 *cache;
	bool in_core;
	/* User space made it runnable, not the VM's CPU_ON: it starts with `cache`. */
	bool by_user;
	/* The last exit, if it is not over before the next entry. */
	bool unfinished;
	u32 last_reason;
	/* User space has run->mmio: the answer to a load, or the end of a store, comes with the next KVM_RUN. */
	bool mmio_due;
	/* It is an access above the start of VMs' memory: this driver finishes it, by this syndrome. */
	bool emulated;
	u64 syndrome;
	/* User space has written registers meanwhile. */
	bool rewritten;
	bool abort_asked;
	/* It gave the translation service commands that are not done yet. */
	bool commands_left;
	/* Its timer ended a run, and is masked by the core since. */
	bool timer_masked;
	bool sigset_active;
	sigset_t sigset;
	u32 irq_level_told;
	u64 exits_user, exits_signal;
	/* How often it waited, was looked at meanwhile, and needed no sleep; and ticks: of looking with and without success, and of sleep. */
	u64 halts, polls, polls_good;
	u64 poll_good_ticks, poll_vain_ticks, sleep_ticks;
};

struct cv_gsi {
	u32 type;
	u32 pin;
	u64 msi_addr;
	u32 msi_data;
	u32 msi_devid;
	bool has_devid;
};

struct cv_vm {
	struct kref refs;
	struct list_head link;
	struct mm_struct *mm;
	struct mmu_notifier notifier;
	u32 ipa_bits;
	bool protected;
	/* Of a protected VM: a page. */
	void *manifest;

	struct kserv_vm *model;
	raw_spinlock_t model_lock;

	struct mutex lock;
	struct cv_vcpu *vcpus[CV_MAX_VCPUS];
	bool nisv_to_user;
	/* The model has an interrupt controller: user space is not told of timers' outputs. */
	bool has_gic;

	struct rw_semaphore life;
	bool up;		/* the core has the VM */
	bool failed;		/* and cannot run it any more: -EIO */
	u64 id;
	u64 cntvoff;
	struct list_head held;
	struct mutex held_lock;
	atomic_t pausing;

	struct rw_semaphore slots_lock;
	struct list_head slots;
	/* Removed, but what was lent is still the VM's, which is being taken apart. */
	struct list_head dead_slots;
	spinlock_t mmu_lock;
	unsigned long mmu_seq;
	/* Changes of the VMM's mappings that have begun and not ended, and a range around all of them. mmu_lock. */
	long mmu_invalidating;
	unsigned long changes_from, changes_to;
	u64 lent;
	/* How often something that was lent had to be held. */
	u64 holds;

	/* Changed under `lock`, read under RCU. */
	struct list_head ioeventfds;
	unsigned int ioeventfd_count;
	spinlock_t io_lock;
	struct list_head irqfds;
	/* Those of them that resample; read under RCU, too. */
	struct list_head resamplers;
	/* How many of these hear of the end of each SPI. */
	u32 watchers[CV_MAX_PINS];
	struct cv_gsi gsis[CV_MAX_GSIS];
	struct mutex its_lock;
};

/* As this kernel reads it, which knows the errata of counters. */
static inline u64 cv_now(void)
{
	u64 count;

	preempt_disable_notrace();
	count = __arch_counter_get_cntpct_stable();
	preempt_enable_notrace();
	return count;
}

/*
 * Whether this thread is wanted elsewhere: by a signal, or for what it does on its way to user space, such as to look whether its CPU time is over. The flag
 * alone is set by each change of the CPU's task, too (rseq); what that wants is in time whenever the thread gets there.
 */
static inline bool cv_is_wanted(void)
{
	if (signal_pending(current))
		return true;
	if (!test_thread_flag(TIF_NOTIFY_RESUME))
		return false;
#ifdef CONFIG_MEMCG
	/* memory.high is exceeded. */
	if (current->memcg_nr_pages_over_high)
		return true;
#endif
	return task_work_pending(current);
}

/* Whether another task is to have this CPU; a lazy kernel says so beside need_resched(), and means it before user space, or a VM, goes on. */
static inline bool cv_must_give_way(void)
{
#ifdef TIF_NEED_RESCHED_LAZY
	if (test_thread_flag(TIF_NEED_RESCHED_LAZY))
		return true;
#endif
	return need_resched();
}

/* Either of the two; mostly one look at the thread's flags says that it is none. */
static inline bool cv_is_disturbed(void)
{
	unsigned long any = _TIF_SIGPENDING | _TIF_NOTIFY_SIGNAL | _TIF_NOTIFY_RESUME | _TIF_NEED_RESCHED;

#ifdef TIF_NEED_RESCHED_LAZY
	any |= _TIF_NEED_RESCHED_LAZY;
#endif
	return (read_thread_flags() & any) && (cv_is_wanted() || cv_must_give_way());
}

/* cond_resched() for that: there it does nothing. */
static inline void cv_give_way(void)
{
	cond_resched();
	if (cv_must_give_way())
		schedule();
}

/* Nanoseconds of so many of the counter's ticks. */
static inline u64 cv_ns_of(u64 ticks)
{
	return mul_u64_u32_div(ticks, NSEC_PER_SEC, read_sysreg(cntfrq_el0));
}

static inline u64 *cv_mailbox(struct cv_vcpu *vcpu, u32 offset)
{
	return vcpu->mailbox + offset / sizeof(u64);
}

#define cv_with_model(vm, expression)					\
({									\
	unsigned long __flags;						\
	typeof(expression) __result;					\
									\
	raw_spin_lock_irqsave(&(vm)->model_lock, __flags);		\
	__result = (expression);					\
	raw_spin_unlock_irqrestore(&(vm)->model_lock, __flags);		\
	__result;							\
})

/* Without an interrupt controller in the kernel user space is told when a timer's output changes. */
static inline bool cv_irq_level_changed(struct cv_vcpu *vcpu)
{
	u32 level;

	if (READ_ONCE(vcpu->vm->has_gic))
		return false;
	level = cv_with_model(vcpu->vm, kserv_irq_level(vcpu->vm->model, vcpu->id, cv_now()));
	return level != vcpu->irq_level_told;
}

/* vm.c */
extern const struct file_operations cv_vm_ops;
int cv_vm_create(unsigned long type);
int cv_check_extension(struct cv_vm *vm, unsigned long extension);
void cv_vm_get(struct cv_vm *vm);
void cv_vm_put(struct cv_vm *vm);
void cv_kick_all(struct cv_vm *vm);
void cv_kick(struct cv_vm *vm, u32 mask);
int cv_lock_vcpus(struct cv_vm *vm);
void cv_unlock_vcpus(struct cv_vm *vm);
extern struct list_head cv_vms;
extern struct mutex cv_vms_lock;

/* core.c */
int cv_vm_build(struct cv_vm *vm);
int cv_vm_retire(struct cv_vm *vm);
int cv_vm_more_pool(struct cv_vm *vm, unsigned int pages);
void cv_vm_end(struct cv_vm *vm);
bool cv_vm_end_before(struct cv_vm *vm, unsigned long last);

/* leave.c */
bool cv_is_leaving(void);
int cv_leave_init(void);
void cv_leave_exit(void);

/* vcpu.c */
int cv_vcpu_create(struct cv_vm *vm, unsigned long id);
void cv_vcpu_free(struct cv_vcpu *vcpu);

/* run.c */
long cv_vcpu_run(struct cv_vcpu *vcpu);
bool cv_its_serve(struct cv_vm *vm, bool patient);

/* wait.c */
enum hrtimer_restart cv_timer_fired(struct hrtimer *timer);
void cv_set_timer(struct cv_vcpu *vcpu, u64 at);
bool cv_has_work(struct cv_vcpu *vcpu);
bool cv_wait_for_work(struct cv_vcpu *vcpu);

/* timer.c */
unsigned int cv_map_ppi(u32 ppi, u32 trigger);
int cv_timer_module_init(void);
void cv_timer_module_exit(void);
void cv_timer_hold(void);
void cv_timer_release(void);

/* direct.c */
u64 cv_direct_init(void);
void cv_direct_exit(void);

/* reg.c */
int cv_vcpu_pull(struct cv_vcpu *vcpu);
int cv_load_registers(struct cv_vcpu *vcpu);
void cv_reset_cache(struct cv_vcpu *vcpu);
int cv_finish_exit(struct cv_vcpu *vcpu);
int cv_emulate_begin(struct cv_vcpu *vcpu, struct kserv_action *action, bool memory);
int cv_emulate_end(struct cv_vcpu *vcpu, u64 data);
int cv_reg_access(struct cv_vm *vm, struct kserv_reg *reg, void __user *user, bool write);
long cv_one_reg(struct cv_vcpu *vcpu, void __user *argp, bool write);
long cv_reg_list(struct cv_vcpu *vcpu, struct kvm_reg_list __user *user);

/* slots.c */
struct cv_slot *cv_find_slot(struct cv_vm *vm, u64 gpa);
int cv_memory_set(struct cv_vm *vm, const struct kvm_userspace_memory_region *region);
int cv_memory_dirty_log(struct cv_vm *vm, const struct kvm_dirty_log *log);
void cv_memory_forget(struct cv_vm *vm);
void cv_memory_free(struct cv_vm *vm);

/* lend.c */
struct cv_block *cv_block_of(struct cv_slot *slot, u64 n);
struct page *cv_single(struct cv_slot *slot, u64 n);
bool cv_is_lent(struct cv_slot *slot, u64 n);
bool cv_is_used(struct cv_slot *slot, u64 n);
u64 cv_to_next_block(struct cv_slot *slot, u64 n);
int cv_make_room(struct cv_slot *slot, u64 n);
bool cv_has_block(struct cv_slot *slot, u64 n, u64 *first);
s64 cv_lend(struct cv_vm *vm, struct cv_slot *slot, u64 n, struct cv_found *found, bool write);
bool cv_take_back(struct cv_vm *vm, struct cv_slot *slot, u64 first, u64 count);
bool cv_take_all_back(struct cv_vm *vm, struct cv_slot *slot);
void cv_memory_keep(struct cv_vm *vm);
void cv_note_new_pages(struct cv_vm *vm, struct cv_slot *slot, u64 first, struct page *page, u64 count, u64 done);
void cv_memory_note_pages(struct cv_vm *vm, u64 gpa, struct page *page, u64 count, u64 done);

/* follow.c */
extern const struct mmu_notifier_ops cv_notifier_ops;

/* memory.c */
int cv_memory_fault(struct cv_vm *vm, u64 gpa, bool write);
int cv_memory_access(struct cv_vm *vm, u64 gpa, void *data, u32 len, bool write);
struct page *cv_memory_new_pages(struct cv_vm *vm, u64 gpa, u64 most, u64 *count);

/* protected.c */
extern const struct file_operations cv_manifest_fops;
int cv_protected_init(struct cv_vm *vm);
int cv_protected_verify(struct cv_vm *vm);
void cv_protected_start(struct cv_vcpu *vcpu);
void cv_manifest_free(void);

/* irq.c */
int cv_set_gsi(struct cv_vm *vm, u32 gsi, bool level, bool pulse);
int cv_irq_line(struct cv_vm *vm, const struct kvm_irq_level *line);
int cv_signal_msi(struct cv_vm *vm, const struct kvm_msi *msi);
int cv_set_routing(struct cv_vm *vm, const struct kvm_irq_routing *args, const void __user *entries);
void cv_irq_init(struct cv_vm *vm);
void cv_irq_free(struct cv_vm *vm);

/* irqfd.c */
int cv_irqfd(struct cv_vm *vm, const struct kvm_irqfd *args);
void cv_irqfds_rerouted(struct cv_vm *vm);
void cv_irq_resampled(struct cv_vm *vm);
void cv_irqfds_free(struct cv_vm *vm);
int cv_irq_module_init(void);
void cv_irq_module_exit(void);

/* ioeventfd.c */
int cv_ioeventfd(struct cv_vm *vm, const struct kvm_ioeventfd *args);
bool cv_ioeventfd_write(struct cv_vm *vm, u64 addr, u32 len, u64 data);
void cv_ioeventfds_free(struct cv_vm *vm);

/* device.c */
int cv_device_create(struct cv_vm *vm, struct kvm_create_device *args);
int cv_create_irqchip(struct cv_vm *vm);
int cv_set_device_addr(struct cv_vm *vm, const struct kvm_arm_device_addr *args);

/* debugfs.c */
void cv_debugfs_init(void);
void cv_debugfs_exit(void);

#endif
