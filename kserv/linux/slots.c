// SPDX-License-Identifier: GPL-2.0
/*
 * Memory slots: created, deleted, moved, followed.
 */
#include <linux/bitmap.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

struct cv_slot *cv_find_slot(struct cv_vm *vm, u64 gpa)
{
	struct cv_slot *slot;

	list_for_each_entry(slot, &vm->slots, link) {
		if (gpa >= slot->gpa && gpa - slot->gpa < slot->npages << PAGE_SHIFT)
			return slot;
	}
	return NULL;
}

/* Of its first and its last block it may have a part. */
static u64 blocks_of(const struct cv_slot *slot)
{
	return slot->npages / CV_BLOCK_PAGES + 2;
}

static void free_slot(struct cv_slot *slot)
{
	u64 n;

	for (n = 0; slot->blocks && n < blocks_of(slot); n++)
		kfree(slot->blocks[n].pages);
	kvfree(slot->blocks);
	kvfree(slot->dirty);
	kfree(slot);
}

static void remove_slot(struct cv_vm *vm, struct cv_slot *slot)
{
	bool taken = cv_take_all_back(vm, slot);

	spin_lock(&vm->mmu_lock);
	if (taken)
		list_del(&slot->link);
	else
		list_move(&slot->link, &vm->dead_slots);
	spin_unlock(&vm->mmu_lock);
	if (taken)
		free_slot(slot);
}

static bool overlaps(struct cv_vm *vm, const struct kvm_userspace_memory_region *region)
{
	struct cv_slot *slot;

	list_for_each_entry(slot, &vm->slots, link) {
		if (slot->id != region->slot && region->guest_phys_addr < slot->gpa + (slot->npages << PAGE_SHIFT) &&
		    slot->gpa < region->guest_phys_addr + region->memory_size)
			return true;
	}
	return false;
}

static int check_region(struct cv_vm *vm, const struct kvm_userspace_memory_region *region)
{
	u64 end = region->guest_phys_addr + region->memory_size;

	if (region->slot >= CV_MAX_SLOTS || region->flags & ~(KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES))
		return -EINVAL;
	if (!PAGE_ALIGNED(region->guest_phys_addr | region->memory_size | region->userspace_addr))
		return -EINVAL;
	/* A tagged address is not the one that the VMM's mapping has. */
	if (region->userspace_addr != untagged_addr(region->userspace_addr))
		return -EINVAL;
	if (!access_ok((void __user *)(unsigned long)region->userspace_addr, region->memory_size))
		return -EINVAL;
	if (end < region->guest_phys_addr || region->memory_size >> PAGE_SHIFT > INT_MAX)
		return -EINVAL;
	if (region->memory_size && end > BIT_ULL(vm->ipa_bits))
		return -EFAULT;
	return 0;
}

static unsigned long *dirty_bits(const struct cv_slot *slot)
{
	return kvcalloc(BITS_TO_LONGS(slot->npages), sizeof(long), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
}

/* Dirty pages are followed from now on, or not any more. Either way all that is lent comes back, to be faulted in anew. */
static int set_flags(struct cv_vm *vm, struct cv_slot *slot, u32 flags)
{
	bool log = flags & KVM_MEM_LOG_DIRTY_PAGES && !vm->protected;
	unsigned long *dirty = NULL;

	if (log && !slot->dirty) {
		dirty = dirty_bits(slot);
		if (!dirty)
			return -ENOMEM;
	}
	if (log != !!slot->dirty)
		cv_take_all_back(vm, slot);
	spin_lock(&vm->mmu_lock);
	slot->flags = flags;
	if (log != !!slot->dirty)
		swap(slot->dirty, dirty);
	spin_unlock(&vm->mmu_lock);
	kvfree(dirty);
	return 0;
}

static int add_slot(struct cv_vm *vm, const struct kvm_userspace_memory_region *region)
{
	struct cv_slot *slot = kzalloc(sizeof(*slot), GFP_KERNEL_ACCOUNT);

	if (!slot)
		return -ENOMEM;
	slot->id = region->slot;
	slot->flags = region->flags;
	slot->gpa = region->guest_phys_addr;
	slot->npages = region->memory_size >> PAGE_SHIFT;
	slot->hva = region->userspace_addr;
	slot->blocks = kvcalloc(blocks_of(slot), sizeof(slot->blocks[0]), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!slot->blocks) {
		free_slot(slot);
		return -ENOMEM;
	}
	if (region->flags & KVM_MEM_LOG_DIRTY_PAGES && !vm->protected) {
		slot->dirty = dirty_bits(slot);
		if (!slot->dirty) {
			free_slot(slot);
			return -ENOMEM;
		}
	}
	spin_lock(&vm->mmu_lock);
	list_add(&slot->link, &vm->slots);
	spin_unlock(&vm->mmu_lock);
	return 0;
}

/* KVM_SET_USER_MEMORY_REGION: create, delete (size 0), move, change flags. Size and user address of a slot stay, as in KVM. */
int cv_memory_set(struct cv_vm *vm, const struct kvm_userspace_memory_region *region)
{
	struct cv_slot *slot, *old = NULL;
	int error;

	error = check_region(vm, region);
	if (error)
		return error;
	down_read(&vm->life);
	down_write(&vm->slots_lock);
	list_for_each_entry(slot, &vm->slots, link) {
		if (slot->id == region->slot)
			old = slot;
	}
	error = -EINVAL;
	if (!region->memory_size) {
		if (old) {
			remove_slot(vm, old);
			error = 0;
		}
		goto out;
	}
	if (old && (old->npages != region->memory_size >> PAGE_SHIFT || old->hva != region->userspace_addr ||
		    (old->flags ^ region->flags) & KVM_MEM_READONLY))
		goto out;
	error = -EEXIST;
	if (overlaps(vm, region))
		goto out;
	error = 0;
	if (old && old->gpa == region->guest_phys_addr) {
		error = set_flags(vm, old, region->flags);
		goto out;
	}
	error = add_slot(vm, region);
	if (!error && old)
		remove_slot(vm, old);
out:
	up_write(&vm->slots_lock);
	up_read(&vm->life);
	return error;
}

/* Which of the pages from `first` on, as many as a word has bits, were written. They come back, and are not dirty any more. */
static unsigned long take_dirty(struct cv_vm *vm, struct cv_slot *slot, u64 first)
{
	unsigned long *word = &slot->dirty[first / BITS_PER_LONG], dirty, n;

	if (!READ_ONCE(*word))
		return 0;
	/* Pages become dirty under this lock; another thread may ask for the same word. */
	spin_lock(&vm->mmu_lock);
	dirty = *word;
	for_each_set_bit(n, &dirty, BITS_PER_LONG) {
		/* What does not come back, of a VM that is off, may still be written by another vCPU on its way out. */
		if (cv_take_back(vm, slot, first + n, 1))
			__clear_bit(n, word);
	}
	spin_unlock(&vm->mmu_lock);
	cond_resched();
	return dirty;
}

/*
 * KVM_GET_DIRTY_LOG: what the VM may have written since the last time. It is taken back, so that the next write is noticed. Slots stay, so slots_lock is held for
 * reading only: whoever asks may be the one who brings a page (userfaultfd) for which a vCPU waits with slots_lock held.
 */
int cv_memory_dirty_log(struct cv_vm *vm, const struct kvm_dirty_log *log)
{
	struct cv_slot *slot, *found = NULL;
	unsigned long *bits = NULL;
	int error = -ENOENT;
	size_t size = 0;
	u64 n;

	down_read(&vm->life);
	down_read(&vm->slots_lock);
	list_for_each_entry(slot, &vm->slots, link) {
		if (slot->id == log->slot && slot->flags & KVM_MEM_LOG_DIRTY_PAGES)
			found = slot;
	}
	if (found) {
		size = BITS_TO_LONGS(found->npages) * sizeof(long);
		bits = kvzalloc(size, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
		error = bits ? 0 : -ENOMEM;
	}
	for (n = 0; bits && found->dirty && n < found->npages; n += BITS_PER_LONG)
		bits[n / BITS_PER_LONG] = take_dirty(vm, found, n);
	up_read(&vm->slots_lock);
	up_read(&vm->life);
	if (bits && copy_to_user(log->dirty_bitmap, bits, size))
		error = -EFAULT;
	kvfree(bits);
	return error;
}

/* The core's VM is gone, and nothing is lent any more. `life` is held for writing: no slot comes or goes. */
void cv_memory_forget(struct cv_vm *vm)
{
	struct cv_slot *slot, *next;

	list_for_each_entry(slot, &vm->slots, link)
		cv_take_all_back(vm, slot);
	list_for_each_entry_safe(slot, next, &vm->dead_slots, link) {
		cv_take_all_back(vm, slot);
		list_del(&slot->link);
		free_slot(slot);
	}
}

void cv_memory_free(struct cv_vm *vm)
{
	struct cv_slot *slot, *next;

	list_for_each_entry_safe(slot, next, &vm->slots, link)
		free_slot(slot);
}
