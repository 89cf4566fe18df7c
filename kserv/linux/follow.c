// SPDX-License-Identifier: GPL-2.0
/*
 * What the VMM's kernel does with the VMM's memory, and who asks whether it is used: the MMU notifier.
 */
#include "driver.h"

/* What of the VMM's memory is taken back at a time. */
#define PART (CV_BLOCK_PAGES << PAGE_SHIFT)

/* How many pages of `slot` something of [start, end) is in, from *n on; 0: none. */
static u64 pages_in(const struct cv_slot *slot, unsigned long start, unsigned long end, u64 *n)
{
	unsigned long from = max(start, slot->hva), to = min(end, slot->hva + (slot->npages << PAGE_SHIFT));

	if (from >= to)
		return 0;
	*n = (from - slot->hva) >> PAGE_SHIFT;
	return PFN_UP(to - slot->hva) - *n;
}

/* The first address of [start, end) that is in a slot; `end`: none. mmu_lock is held. */
static unsigned long first_in_slots(struct cv_vm *vm, unsigned long start, unsigned long end)
{
	unsigned long first = end;
	struct cv_slot *slot;
	u64 n;

	list_for_each_entry(slot, &vm->slots, link) {
		if (pages_in(slot, start, end, &n))
			first = min(first, max(start, slot->hva));
	}
	return first;
}

/* What of [start, end) is lent comes back. mmu_lock is held. */
static void take_range_back(struct cv_vm *vm, unsigned long start, unsigned long end)
{
	struct cv_slot *slot;
	u64 n, count;

	list_for_each_entry(slot, &vm->slots, link) {
		count = pages_in(slot, start, end, &n);
		if (count)
			cv_take_back(vm, slot, n, count);
	}
}

/* One more change, of `range`, has begun: the range that changes is noted, or one around all that do. mmu_lock is held. */
static void note_change(struct cv_vm *vm, const struct mmu_notifier_range *range)
{
	bool first = !vm->mmu_invalidating++;

	vm->changes_from = first ? range->start : min(vm->changes_from, range->start);
	vm->changes_to = first ? range->end : max(vm->changes_to, range->end);
}

static int invalidate_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct cv_vm *vm = container_of(notifier, struct cv_vm, notifier);
	unsigned long at = range->start, next;

	/* The VMM's memory is not what a protected VM has. */
	if (vm->protected)
		return 0;
	spin_lock(&vm->mmu_lock);
	note_change(vm, range);
	/* Nothing of it is lent until it is over, so the lock may be let go between parts. */
	while ((at = first_in_slots(vm, at, range->end)) < range->end) {
		next = range->end - at > PART ? at + PART : range->end;
		take_range_back(vm, at, next);
		at = next;
		if (mmu_notifier_range_blockable(range))
			cond_resched_lock(&vm->mmu_lock);
	}
	spin_unlock(&vm->mmu_lock);
	return 0;
}

static void invalidate_end(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct cv_vm *vm = container_of(notifier, struct cv_vm, notifier);

	if (vm->protected)
		return;
	spin_lock(&vm->mmu_lock);
	/* A fault that goes on meanwhile holds its slot: if the change concerned it, the slot is there now. */
	if (first_in_slots(vm, range->start, range->end) < range->end)
		vm->mmu_seq++;
	vm->mmu_invalidating--;
	spin_unlock(&vm->mmu_lock);
}

/* Whether any of pages [n, end) of `slot` is lent. mmu_lock is held. */
static bool is_any_lent(struct cv_slot *slot, u64 n, u64 end)
{
	while (n < end) {
		if (!cv_is_used(slot, n))
			n += cv_to_next_block(slot, n);
		else if (cv_is_lent(slot, n))
			return true;
		else
			n++;
	}
	return false;
}

/* Whether any of [start, end) is. mmu_lock is held. */
static bool is_range_lent(struct cv_vm *vm, unsigned long start, unsigned long end)
{
	struct cv_slot *slot;
	u64 n, count;

	list_for_each_entry(slot, &vm->slots, link) {
		count = pages_in(slot, start, end, &n);
		if (count && is_any_lent(slot, n, n + count))
			return true;
	}
	return false;
}

/*
 * Whether the VM used [start, end) since the last time. The core tells nobody when a VM touches what it has, so what is lent counts as used, and, unless somebody `looks` only, comes back: if the
 * VM goes on using it, or a page near it, it is lent again by the next time. The mapping stays, so this is no invalidation.
 */
static bool is_young(struct mmu_notifier *notifier, unsigned long start, unsigned long end, bool looks)
{
	struct cv_vm *vm = container_of(notifier, struct cv_vm, notifier);
	bool young;

	if (vm->protected)
		return false;
	spin_lock(&vm->mmu_lock);
	young = is_range_lent(vm, start, end);
	if (young && !looks)
		take_range_back(vm, start, end);
	spin_unlock(&vm->mmu_lock);
	return young;
}

static int clear_young(struct mmu_notifier *notifier, struct mm_struct *mm, unsigned long start, unsigned long end)
{
	return is_young(notifier, start, end, false);
}

static int test_young(struct mmu_notifier *notifier, struct mm_struct *mm, unsigned long address)
{
	return is_young(notifier, address, address + PAGE_SIZE, true);
}

/* The VMM ended, or the VM does. A process that the VMM has forked may have the VM's files for long. */
static void release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	cv_vm_end(container_of(notifier, struct cv_vm, notifier));
}

const struct mmu_notifier_ops cv_notifier_ops = {
	.release = release,
	.invalidate_range_start = invalidate_start,
	.invalidate_range_end = invalidate_end,
	.clear_flush_young = clear_young,
	.clear_young = clear_young,
	.test_young = test_young,
};
