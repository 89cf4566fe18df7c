// SPDX-License-Identifier: GPL-2.0
/*
 * What of the memory slots is lent to the VM, and how it comes back. memory.c finds the memory.
 *
 * What is lent stays so until its slot goes, the VM or the VMM ends, or the VMM changes its own mapping of it (MMU notifier): the page is taken back from the
 * VM first, then unpinned.
 *
 * What the VMM's own tables map as one block is lent as one: one pin, one note. It also comes back as one, whatever part of it is asked for; the rest
 * of it comes again by faults.
 *
 * A vCPU starts with its caches off. The core cleans to memory what it maps, and empties the instruction caches: nothing is left to do here.
 */
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "driver.h"

/* The block that page `n` of `slot` is in. */
struct cv_block *cv_block_of(struct cv_slot *slot, u64 n)
{
	u64 gfn = slot->gpa >> PAGE_SHIFT;

	return &slot->blocks[(gfn + n) / CV_BLOCK_PAGES - gfn / CV_BLOCK_PAGES];
}

/* Where its page is noted if it is lent by itself. There must be room for it. */
static struct page **place_of(struct cv_slot *slot, u64 n)
{
	return &cv_block_of(slot, n)->pages[((slot->gpa >> PAGE_SHIFT) + n) % CV_BLOCK_PAGES];
}

/* What is lent by itself as page `n` of `slot`. */
struct page *cv_single(struct cv_slot *slot, u64 n)
{
	return READ_ONCE(cv_block_of(slot, n)->pages) ? READ_ONCE(*place_of(slot, n)) : NULL;
}

bool cv_is_lent(struct cv_slot *slot, u64 n)
{
	return cv_single(slot, n) || READ_ONCE(cv_block_of(slot, n)->page);
}

/* Room for notes of single pages in the block of page `n`. */
int cv_make_room(struct cv_slot *slot, u64 n)
{
	struct cv_block *block = cv_block_of(slot, n);
	struct page **pages;

	if (READ_ONCE(block->pages))
		return 0;
	pages = kcalloc(CV_BLOCK_PAGES, sizeof(pages[0]), GFP_KERNEL_ACCOUNT);
	if (!pages)
		return -ENOMEM;
	/* Another vCPU may have made it meanwhile. */
	if (cmpxchg(&block->pages, NULL, pages))
		kfree(pages);
	return 0;
}

/* Whether page `n` of `slot` is in a block that lies wholly in the slot, there and in the VMM's memory; *first is then the block's first page. */
bool cv_has_block(struct cv_slot *slot, u64 n, u64 *first)
{
	u64 within = ((slot->gpa >> PAGE_SHIFT) + n) % CV_BLOCK_PAGES;

	*first = n - within;
	return n >= within && *first + CV_BLOCK_PAGES <= slot->npages;
}

static void note_page(struct cv_vm *vm, struct cv_slot *slot, u64 n, struct page *page)
{
	*place_of(slot, n) = page;
	cv_block_of(slot, n)->single++;
	vm->lent++;
}

static void note_block(struct cv_vm *vm, struct cv_slot *slot, u64 first, struct page *page)
{
	cv_block_of(slot, first)->page = page;
	vm->lent += CV_BLOCK_PAGES;
}

/* What is noted for page `n`, or for its block, is noted no more, and the VMM's or the host's again. */
static void forget(struct cv_vm *vm, struct cv_slot *slot, u64 n)
{
	struct cv_block *block = cv_block_of(slot, n);
	bool whole = block->page;
	struct page *page = whole ? block->page : cv_single(slot, n);

	if (vm->protected)
		__free_pages(page, whole ? ilog2(CV_BLOCK_PAGES) : 0);
	else
		unpin_user_page(page);
	if (whole) {
		block->page = NULL;
		vm->lent -= CV_BLOCK_PAGES;
	} else {
		*place_of(slot, n) = NULL;
		block->single--;
		vm->lent--;
	}
}

/* Unmaps lent pages [n, n + count) at the core. False: the VM is switched off, or the core has lost count of it. */
static bool unmap(struct cv_vm *vm, struct cv_slot *slot, u64 n, u64 count)
{
	u64 end = n + count;
	s64 done;

	for (; n < end; n += done) {
		done = cv_call3(CV_CALL_UNMAP_MEMORY, vm->id, slot->gpa + (n << PAGE_SHIFT), end - n);
		if (done == CV_ERR_WRONG_STATE)
			return false;
		if (WARN_ONCE(done <= 0, "corevisor_kvm: VM %llu keeps memory at %#llx: %lld\n", vm->id,
			      slot->gpa + (n << PAGE_SHIFT), done)) {
			vm->failed = true;
			return false;
		}
	}
	return true;
}

/* Pages from page `n` of `slot` to the next block. */
static u64 to_next_block(struct cv_slot *slot, u64 n)
{
	return CV_BLOCK_PAGES - ((slot->gpa >> PAGE_SHIFT) + n) % CV_BLOCK_PAGES;
}

/* Whether anything of the block of page `n` is lent. */
static bool is_used(struct cv_slot *slot, u64 n)
{
	struct cv_block *block = cv_block_of(slot, n);

	return READ_ONCE(block->page) || READ_ONCE(block->single);
}

/*
 * Takes pages [first, first + count) of `slot` back from the VM, and what else is in their blocks where these are lent whole. False: the VM is switched off,
 * and what it has stays pinned until it is taken apart. mmu_lock is held.
 */
bool cv_take_back(struct cv_vm *vm, struct cv_slot *slot, u64 first, u64 count)
{
	u64 n = first, end = first + count, run, k;

	/* What is a protected VM's own is so until its end. */
	if (vm->protected && vm->up)
		return false;

	while (n < end) {
		if (cv_block_of(slot, n)->page) {
			cv_has_block(slot, n, &n);
			if (vm->up && !unmap(vm, slot, n, CV_BLOCK_PAGES))
				return false;
			forget(vm, slot, n);
			n += CV_BLOCK_PAGES;
			continue;
		}
		if (!cv_block_of(slot, n)->single) {
			n += to_next_block(slot, n);
			continue;
		}
		for (run = 0; n + run < end && run < CV_MAX_PAGES && cv_single(slot, n + run); run++)
			;
		if (run && vm->up && !unmap(vm, slot, n, run))
			return false;
		for (k = n; k < n + run; k++)
			forget(vm, slot, k);
		n += max(run, 1ULL);
	}
	return true;
}

/*
 * The same for the whole slot, a block at a time, so that nobody waits for long. Nothing is lent meanwhile: slots_lock or `life` is held for writing.
 */
bool cv_take_all_back(struct cv_vm *vm, struct cv_slot *slot)
{
	bool taken = true;
	u64 n, count;

	for (n = 0; n < slot->npages && taken; n += count) {
		count = min(to_next_block(slot, n), slot->npages - n);
		if (!is_used(slot, n))
			continue;
		spin_lock(&vm->mmu_lock);
		taken = cv_take_back(vm, slot, n, count);
		spin_unlock(&vm->mmu_lock);
		cond_resched();
	}
	return taken;
}

void cv_unpin(struct cv_pinned *pinned)
{
	unpin_user_pages(pinned->pages, cv_is_block(pinned) ? 1 : pinned->count);
}

static s64 map(struct cv_vm *vm, struct cv_slot *slot, u64 n, struct page *page, u64 count, bool write)
{
	u64 flags = slot->flags & KVM_MEM_READONLY || (slot->dirty && !write) ? CV_MAP_READ_ONLY : 0;

	return cv_call(CV_CALL_MAP_MEMORY, vm->id, slot->gpa + (n << PAGE_SHIFT), page_to_phys(page), count, flags);
}

/* Lends a pinned block. 0, CV_ERR_*, or CV_ERR_OCCUPIED if a part of it is lent otherwise. mmu_lock is held. */
static s64 lend_block(struct cv_vm *vm, struct cv_slot *slot, struct cv_pinned *pinned, bool write)
{
	struct cv_block *block = cv_block_of(slot, pinned->first);
	s64 done;

	if (block->page || block->single)
		return CV_ERR_OCCUPIED;
	done = map(vm, slot, pinned->first, pinned->pages[0], CV_BLOCK_PAGES, write);
	if (done == CV_BLOCK_PAGES) {
		note_block(vm, slot, pinned->first, pinned->pages[0]);
		return 0;
	}
	if (done <= 0)
		return done ?: CV_ERR_INVALID_PARAMETER;
	/* Of a block that the core cannot map whole it maps no part for long; unless the VM is off, and all of it comes back at its end. */
	if (unmap(vm, slot, pinned->first, done))
		return CV_ERR_OCCUPIED;
	note_block(vm, slot, pinned->first, pinned->pages[0]);
	return 0;
}

/* How many of the pinned pages from `from` on follow one another in memory, and are not lent yet. */
static unsigned long run_of(struct cv_slot *slot, const struct cv_pinned *pinned, unsigned long from)
{
	unsigned long run = 1;

	while (from + run < pinned->count && !cv_single(slot, pinned->first + from + run) &&
	       page_to_pfn(pinned->pages[from + run]) == page_to_pfn(pinned->pages[from]) + run)
		run++;
	return run;
}

/*
 * Lends pinned pages, as far as they are not lent and may be: 0, or CV_ERR_* for the last that may not. What is not lent by it is unpinned. mmu_lock is held.
 */
static s64 lend_pages(struct cv_vm *vm, struct cv_slot *slot, struct cv_pinned *pinned, bool write)
{
	unsigned long done = 0, k;
	s64 result, error = 0;

	while (done < pinned->count) {
		if (cv_is_lent(slot, pinned->first + done)) {
			unpin_user_page(pinned->pages[done++]);
			continue;
		}
		result = map(vm, slot, pinned->first + done, pinned->pages[done], run_of(slot, pinned, done), write);
		if (result <= 0) {
			error = result ?: CV_ERR_INVALID_PARAMETER;
			if (error == CV_ERR_NO_MEMORY || error == CV_ERR_WRONG_STATE)
				break;
			/* It is the core's to refuse (a page is lent 255 times at most); those behind it may be lent. */
			unpin_user_page(pinned->pages[done++]);
			continue;
		}
		for (k = 0; k < result; k++)
			note_page(vm, slot, pinned->first + done + k, pinned->pages[done + k]);
		if (slot->dirty && write)
			bitmap_set(slot->dirty, pinned->first + done, result);
		done += result;
	}
	unpin_user_pages(pinned->pages + done, pinned->count - done);
	return error;
}

/*
 * Lends what was pinned, page `n` among it, or unpins it. 0, or CV_ERR_* if that page is not lent now; CV_ERR_OCCUPIED: it can only be lent by itself, and
 * there was no room to note that. mmu_lock is held.
 */
s64 cv_lend(struct cv_vm *vm, struct cv_slot *slot, u64 n, struct cv_pinned *pinned, bool write)
{
	s64 result;

	if (cv_is_block(pinned)) {
		result = lend_block(vm, slot, pinned, write);
		if (!result)
			return 0;
		/* The pin holds the page that was touched as well. */
		*pinned = (struct cv_pinned){ .first = n, .count = 1, .pages = { pinned->pages[0] + (n - pinned->first) } };
		if (result != CV_ERR_OCCUPIED || !cv_block_of(slot, n)->pages) {
			cv_unpin(pinned);
			return cv_is_lent(slot, n) ? 0 : result;
		}
	}
	result = lend_pages(vm, slot, pinned, write);
	return cv_is_lent(slot, n) ? 0 : result;
}

/* The first `done` of the `count` pages from `page` on are the VM's; the others go back. mmu_lock is held. */
void cv_note_new_pages(struct cv_vm *vm, struct cv_slot *slot, u64 first, struct page *page, u64 count, u64 done)
{
	u64 k;

	if (done == CV_BLOCK_PAGES) {
		note_block(vm, slot, first, page);
		return;
	}
	split_page(page, ilog2(count));
	for (k = 0; k < done; k++)
		note_page(vm, slot, first + k, page + k);
	for (; k < count; k++)
		__free_page(page + k);
}

/* The core has it now. */
void cv_memory_note_page(struct cv_vm *vm, u64 gpa, struct page *page)
{
	struct cv_slot *slot;

	spin_lock(&vm->mmu_lock);
	slot = cv_find_slot(vm, gpa);
	if (!WARN_ON(!slot))
		note_page(vm, slot, (gpa - slot->gpa) >> PAGE_SHIFT, page);
	spin_unlock(&vm->mmu_lock);
}

/* ---- the VMM's own mappings ----------------------------------------------------------------------------------------------- */

/* What of the VMM's memory is taken back at a time. */
#define PART (CV_BLOCK_PAGES << PAGE_SHIFT)

/* The first address of [start, end) that is in a slot; `end`: none. mmu_lock is held. */
static unsigned long first_in_slots(struct cv_vm *vm, unsigned long start, unsigned long end)
{
	struct cv_slot *slot;
	unsigned long first = end, from;

	list_for_each_entry(slot, &vm->slots, link) {
		from = max(start, slot->hva);
		if (from < slot->hva + (slot->npages << PAGE_SHIFT))
			first = min(first, from);
	}
	return first;
}

/* What of [start, end) is lent comes back. mmu_lock is held. */
static void take_range_back(struct cv_vm *vm, unsigned long start, unsigned long end)
{
	struct cv_slot *slot;
	unsigned long from, to;

	list_for_each_entry(slot, &vm->slots, link) {
		from = max(start, slot->hva);
		to = min(end, slot->hva + (slot->npages << PAGE_SHIFT));
		if (from < to)
			cv_take_back(vm, slot, (from - slot->hva) >> PAGE_SHIFT, (to - from + PAGE_SIZE - 1) >> PAGE_SHIFT);
	}
}

static int invalidate_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct cv_vm *vm = container_of(notifier, struct cv_vm, notifier);
	unsigned long at = range->start, next;

	/* The VMM's memory is not what a protected VM has. */
	if (vm->protected)
		return 0;
	spin_lock(&vm->mmu_lock);
	vm->mmu_invalidating++;
	/* Nothing is lent until it is over, so the lock may be let go between parts. */
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
	vm->mmu_seq++;
	vm->mmu_invalidating--;
	spin_unlock(&vm->mmu_lock);
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
};
