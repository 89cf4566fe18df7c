// SPDX-License-Identifier: GPL-2.0
/*
 * A VM's other half, at the core: made, and taken apart.
 *
 * It is made when a vCPU runs for the first time, because the core wants to know all vCPUs by then, and again after a reset: a VM that has
 * switched itself off never runs again there. Between the two the registers are in the vCPUs' caches.
 */
#include <linux/delay.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "driver.h"

#define FIRST_POOL 8
#define MORE_POOL_ORDER 4

static struct page *hold_pages(struct cv_vm *vm, unsigned int order)
{
	struct cv_held *held = kmalloc(sizeof(*held), GFP_KERNEL_ACCOUNT);

	if (!held)
		return NULL;
	held->order = order;
	held->page = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_NOWARN, order);
	if (!held->page) {
		kfree(held);
		return NULL;
	}
	list_add(&held->link, &vm->held);
	return held->page;
}

static void release_held(struct cv_vm *vm)
{
	struct cv_held *held, *next;

	list_for_each_entry_safe(held, next, &vm->held, link) {
		__free_pages(held->page, held->order);
		kfree(held);
	}
	INIT_LIST_HEAD(&vm->held);
}

/* Gives the core at least `pages` pages for the VM's tables and contexts; none to one that is switched off, which whoever wants them hears from the core. */
int cv_vm_more_pool(struct cv_vm *vm, unsigned int pages)
{
	unsigned int order = MORE_POOL_ORDER, done = 0;
	struct page *page;
	int result = 0;
	s64 given;

	mutex_lock(&vm->held_lock);
	while (done < pages) {
		page = hold_pages(vm, order);
		if (!page) {
			result = order ? 0 : -ENOMEM;
			if (result)
				break;
			order--;
			continue;
		}
		given = cv_call3(CV_CALL_DONATE_POOL, vm->id, page_to_phys(page), 1UL << order);
		if (given < 0) {
			result = given == CV_ERR_WRONG_STATE ? 0 : cv_errno(given);
			break;
		}
		done += given;
	}
	mutex_unlock(&vm->held_lock);
	return result;
}

/* Whether the core has the VM, and by which id: whoever holds mmu_lock, the MMU notifier too, sees both or neither. */
static void set_up(struct cv_vm *vm, bool up, u64 id)
{
	spin_lock(&vm->mmu_lock);
	vm->id = id;
	vm->up = up;
	spin_unlock(&vm->mmu_lock);
}

/*
 * What the core has of the VM comes back. Nobody runs it: the caller holds `life` for writing. An error cannot be: the
 * pages would not be ours again, so they are not freed.
 */
static void destroy(struct cv_vm *vm)
{
	s64 result;

	cv_call1(CV_CALL_POWER_OFF_VM, vm->id);
	do {
		cond_resched();
		result = cv_call1(CV_CALL_RECLAIM_VM, vm->id);
	} while (result > 0 || result == CV_ERR_BUSY);
	if (!result) {
		/* It has no memory any more, and with DESTROY_VM its id is another's. */
		set_up(vm, false, vm->id);
		do {
			cond_resched();
			result = cv_call1(CV_CALL_DESTROY_VM, vm->id);
		} while (result == CV_ERR_AGAIN || result == CV_ERR_BUSY);
	}
	if (WARN(result, "corevisor_kvm: VM %llu does not end: %lld; its memory is lost\n", vm->id, result)) {
		vm->failed = true;
		INIT_LIST_HEAD(&vm->held);
		cv_memory_keep(vm);
	}
	release_held(vm);
	if (!vm->up)
		cv_memory_forget(vm);
}

static int map_cpu_interface(struct cv_vm *vm)
{
	u64 base = cv_with_model(vm, kserv_gic_cpu_base(vm->model));
	s64 done;
	int n, error;

	if (base == KSERV_NEVER)
		return 0;
	for (n = 0; n < 2; n++) {
		while ((done = cv_call4(CV_CALL_MAP_IO, vm->id, base + n * SZ_4K, cv_core.gicv + n * SZ_4K, 1)) ==
		       CV_ERR_NO_MEMORY) {
			error = cv_vm_more_pool(vm, 4);
			if (error)
				return error;
		}
		if (done < 0)
			return cv_errno(done);
	}
	return 0;
}

static int fill_core_vm(struct cv_vm *vm)
{
	unsigned int n, vcpus = 0;
	s64 result;
	int error;

	for (n = 0; n < CV_MAX_VCPUS; n++)
		vcpus += vm->vcpus[n] != NULL;
	error = cv_vm_more_pool(vm, FIRST_POOL + vcpus * cv_core.context_pages);
	if (error)
		return error;
	for (n = 0; n < CV_MAX_VCPUS; n++) {
		if (!vm->vcpus[n])
			continue;
		result = cv_call3(CV_CALL_REGISTER_VCPU, vm->id, n, virt_to_phys(vm->vcpus[n]->mailbox));
		if (result)
			return cv_errno(result);
	}
	vm->cntvoff = cv_with_model(vm, kserv_cntvoff(vm->model));
	result = cv_call2(CV_CALL_SET_CNTVOFF, vm->id, vm->cntvoff);
	if (result)
		return cv_errno(result);
	error = map_cpu_interface(vm);
	if (error)
		return error;
	if (vm->protected)
		return cv_protected_verify(vm);
	do {
		cond_resched();
		result = cv_call2(CV_CALL_VERIFY_VM, vm->id, 0);
	} while (result == CV_ERR_AGAIN);
	return cv_errno(result);
}

/* Makes the core's VM, ready to run. The caller holds `life` for writing, and nobody adds vCPUs. */
int cv_vm_build(struct cv_vm *vm)
{
	/* Beyond 43 bits there is one more level, and one page again. */
	unsigned int order = vm->ipa_bits > 39 && vm->ipa_bits <= 43 ? vm->ipa_bits - 39 : 0;
	struct cv_answer answer;
	struct page *root;
	int error;

	if (vm->up)
		return 0;
	if (vm->failed)
		return -EIO;
	if (cv_is_leaving())
		return -ESHUTDOWN;
	error = cv_with_model(vm, kserv_first_run(vm->model));
	if (error)
		return error;
	root = hold_pages(vm, order);
	if (!root)
		return -ENOMEM;
	answer = cv_hvc(CV_CALL_REGISTER_VM, vm->protected ? CV_VM_PROTECTED : CV_VM_ORDINARY, vm->ipa_bits, page_to_phys(root), 0, 0);
	if (answer.x[0]) {
		release_held(vm);
		return cv_errno(answer.x[0]);
	}
	set_up(vm, true, answer.x[1]);
	error = fill_core_vm(vm);
	if (error)
		destroy(vm);
	return error;
}

/*
 * Takes the core's VM apart: reset, end, one more vCPU. The registers are in the caches afterwards. Not to be called from within `life`.
 */
int cv_vm_retire(struct cv_vm *vm)
{
	int n;

	atomic_inc(&vm->pausing);
	cv_kick_all(vm);
	down_write(&vm->life);
	atomic_dec(&vm->pausing);
	if (vm->up) {
		for (n = 0; n < CV_MAX_VCPUS; n++) {
			if (vm->vcpus[n])
				cv_vcpu_pull(vm->vcpus[n]);
		}
		destroy(vm);
	}
	up_write(&vm->life);
	return 0;
}

/* The VM's VMM is gone, or its last file: nobody can run it any more. What the core has of it comes back now, whoever still has a file of it. */
void cv_vm_end(struct cv_vm *vm)
{
	down_write(&vm->life);
	if (vm->up)
		destroy(vm);
	up_write(&vm->life);
}

/*
 * Ends it like that, unless one of its threads waits beyond `last` (jiffies): for memory that its VMM does not bring, for example. Whether it has ended. The
 * caller has raised `pausing` and kicked its vCPUs.
 */
bool cv_vm_end_before(struct cv_vm *vm, unsigned long last)
{
	bool ended;

	while (!(ended = down_write_trylock(&vm->life)) && time_before(jiffies, last))
		msleep(1);
	if (!ended)
		return false;
	if (vm->up)
		destroy(vm);
	up_write(&vm->life);
	return true;
}
