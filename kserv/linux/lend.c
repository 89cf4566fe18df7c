// SPDX-License-Identifier: GPL-2.0
/*
 * What of the memory slots is lent to the VM, and how it comes back. memory.c finds the memory, follow.c follows what
 * becomes of it.
 *
 * What is lent stays so until its slot goes, the VM or the VMM ends, or the VMM's own mapping of it changes (MMU notifier): the page is taken back from the VM
 * first. So nothing holds it, as in KVM: it can be moved, shared, written back and swapped as any other of the VMM's. Only what cannot be taken back just then,
 * because the VM is switched off and being taken apart, is held until that is over.
 *
 * What the VMM's own tables map as one block is lent as one, with one note. It also comes back as one, whatever part of it is asked for; the rest
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

/* Whether anything of the block of page `n` is lent. */
bool cv_is_used(struct cv_slot *slot, u64 n)
{
	struct cv_block *block = cv_block_of(slot, n);

	return READ_ONCE(block->page) || READ_ONCE(block->single);
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

/*
 * What is lent in the block of page `n` cannot be taken back now. Its pages are not for others until it is, whatever becomes of the VMM's mapping: that is still as it was,
 * so the pages are the VMM's.
 */
static void hold(struct cv_vm *vm, struct cv_slot *slot, u64 n)
{
	struct cv_block *block = cv_block_of(slot, n);
	unsigned int k;

	if (block->held)
		return;
	block->held = true;
	vm->holds++;
	if (block->page)
		get_page(block->page);
	for (k = 0; block->single && k < CV_BLOCK_PAGES; k++) {
		if (block->pages[k])
			get_page(block->pages[k]);
	}
}

/* What is noted for page `n`, or for its block, is noted no more, and the VMM's or the host's again. */
static void forget(struct cv_vm *vm, struct cv_slot *slot, u64 n)
{
	struct cv_block *block = cv_block_of(slot, n);
	bool whole = block->page;
	struct page *page = whole ? block->page : cv_single(slot, n);

	if (vm->protected)
		__free_pages(page, whole ? ilog2(CV_BLOCK_PAGES) : 0);
	else if (block->held)
		put_page(page);
	if (whole) {
		block->page = NULL;
		vm->lent -= CV_BLOCK_PAGES;
	} else {
		*place_of(slot, n) = NULL;
		block->single--;
		vm->lent--;
	}
	if (!cv_is_used(slot, n))
		block->held = false;
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
u64 cv_to_next_block(struct cv_slot *slot, u64 n)
{
	return CV_BLOCK_PAGES - ((slot->gpa >> PAGE_SHIFT) + n) % CV_BLOCK_PAGES;
}

/* Lent pages [n, n + count), all of one block, come back from the VM. False: they do not, and are held. */
static bool take_run_back(struct cv_vm *vm, struct cv_slot *slot, u64 n, u64 count)
{
	u64 k;

	if (vm->up && !unmap(vm, slot, n, count)) {
		hold(vm, slot, n);
		return false;
	}
	if (cv_block_of(slot, n)->page) {
		forget(vm, slot, n);
		return true;
	}
	for (k = n; k < n + count; k++)
		forget(vm, slot, k);
	return true;
}

/* How many pages from page `n` on, to `end` or the end of n's block, are lent one by one. */
static u64 singles_of(struct cv_slot *slot, u64 n, u64 end)
{
	u64 run, most = min(end - n, cv_to_next_block(slot, n));

	for (run = 0; run < most && cv_single(slot, n + run); run++)
		;
	return run;
}

/*
 * Takes pages [first, first + count) of `slot` back from the VM, and what else is in their blocks where these are lent whole. False: the VM is being
 * taken apart, and what it has of them is held until that is over. mmu_lock is held.
 */
bool cv_take_back(struct cv_vm *vm, struct cv_slot *slot, u64 first, u64 count)
{
	u64 n = first, end = first + count, run;
	bool taken = true;

	/* What is a protected VM's own is so until its end. */
	if (vm->protected && vm->up)
		return false;

	while (n < end) {
		if (cv_block_of(slot, n)->page) {
			cv_has_block(slot, n, &n);
			taken &= take_run_back(vm, slot, n, CV_BLOCK_PAGES);
			n += CV_BLOCK_PAGES;
			continue;
		}
		if (!cv_is_used(slot, n)) {
			n += cv_to_next_block(slot, n);
			continue;
		}
		run = singles_of(slot, n, end);
		if (run)
			taken &= take_run_back(vm, slot, n, run);
		n += max(run, 1ULL);
	}
	return taken;
}

/*
 * The same for the whole slot, a block at a time, so that nobody waits for long. Nothing is lent meanwhile: slots_lock or `life` is held for writing.
 */
bool cv_take_all_back(struct cv_vm *vm, struct cv_slot *slot)
{
	bool taken = true;
	u64 n, count;

	for (n = 0; n < slot->npages; n += count) {
		count = min(cv_to_next_block(slot, n), slot->npages - n);
		if (!cv_is_used(slot, n))
			continue;
		spin_lock(&vm->mmu_lock);
		taken &= cv_take_back(vm, slot, n, count);
		spin_unlock(&vm->mmu_lock);
		cond_resched();
	}
	return taken;
}

/* The core does not give back what is lent: nobody else may have it, ever. `life` is held for writing. */
void cv_memory_keep(struct cv_vm *vm)
{
	struct cv_slot *slot;
	u64 n;

	list_for_each_entry(slot, &vm->slots, link) {
		for (n = 0; !vm->protected && n < slot->npages; n += cv_to_next_block(slot, n)) {
			spin_lock(&vm->mmu_lock);
			hold(vm, slot, n);
			spin_unlock(&vm->mmu_lock);
			cond_resched();
		}
	}
}

static u64 flags_of(const struct cv_slot *slot, bool write)
{
	return slot->flags & KVM_MEM_READONLY || (slot->dirty && !write) ? CV_MAP_READ_ONLY : 0;
}

/* Lends a block that was found. 0, CV_ERR_*, or CV_ERR_OCCUPIED if a part of it is lent otherwise. mmu_lock is held. */
static s64 lend_block(struct cv_vm *vm, struct cv_slot *slot, struct cv_found *found, bool write)
{
	struct cv_block *block = cv_block_of(slot, found->first);
	s64 done;

	if (block->page || block->single)
		return CV_ERR_OCCUPIED;
	done = cv_call(CV_CALL_MAP_MEMORY, vm->id, slot->gpa + (found->first << PAGE_SHIFT),
		       page_to_phys(found->pages[0]), CV_BLOCK_PAGES, flags_of(slot, write));
	if (done == CV_BLOCK_PAGES) {
		note_block(vm, slot, found->first, found->pages[0]);
		return 0;
	}
	if (done <= 0)
		return done ?: CV_ERR_INVALID_PARAMETER;
	/* Of a block that the core cannot map whole it maps no part for long; unless the VM is off, and all of it comes back at its end. */
	if (unmap(vm, slot, found->first, done))
		return CV_ERR_OCCUPIED;
	note_block(vm, slot, found->first, found->pages[0]);
	return 0;
}

/*
 * Maps the found pages from `from` on, to the first that is lent, as many as one call takes, wherever they are: how many, or CV_ERR_* if it is the first that may
 * not be.
 */
static s64 map_found(struct cv_vm *vm, struct cv_slot *slot, const struct cv_found *found, unsigned long from, bool write)
{
	unsigned long k, count = 0;
	u64 runs[CV_MAX_RUNS] = {};

	for (k = from; k < found->count && !cv_single(slot, found->first + k); k++) {
		if (count && page_to_pfn(found->pages[k]) == page_to_pfn(found->pages[k - 1]) + 1)
			/* One page more of the run. */
			runs[count - 1]++;
		else if (count < CV_MAX_RUNS)
			runs[count++] = page_to_phys(found->pages[k]);
		else
			break;
	}
	return cv_map_runs(vm->id, slot->gpa + ((found->first + from) << PAGE_SHIFT), count, flags_of(slot, write), runs);
}

/* Lends found pages, as far as they are not lent and may be: 0, or CV_ERR_* for the last that may not. mmu_lock is held. */
static s64 lend_pages(struct cv_vm *vm, struct cv_slot *slot, struct cv_found *found, bool write)
{
	unsigned long done = 0, k;
	s64 result, error = 0;

	while (done < found->count) {
		if (cv_is_lent(slot, found->first + done)) {
			done++;
			continue;
		}
		result = map_found(vm, slot, found, done, write);
		if (result <= 0) {
			error = result ?: CV_ERR_INVALID_PARAMETER;
			if (error == CV_ERR_NO_MEMORY || error == CV_ERR_WRONG_STATE)
				break;
			/* It is the core's to refuse (a page is lent 255 times at most); those behind it may be lent. */
			done++;
			continue;
		}
		for (k = 0; k < result; k++)
			note_page(vm, slot, found->first + done + k, found->pages[done + k]);
		if (slot->dirty && write)
			bitmap_set(slot->dirty, found->first + done, result);
		done += result;
	}
	return error;
}

/*
 * Lends what was found, page `n` among it. 0, or CV_ERR_* if that page is not lent now; CV_ERR_OCCUPIED: it can only be lent by itself, and
 * there was no room to note that; CV_ERR_IN_USE of a block: likely the same. mmu_lock is held.
 */
s64 cv_lend(struct cv_vm *vm, struct cv_slot *slot, u64 n, struct cv_found *found, bool write)
{
	s64 result;

	if (cv_is_block(found)) {
		result = lend_block(vm, slot, found, write);
		if (!result)
			return 0;
		/* Who holds a page of the block holds the page that was touched as well. */
		*found = (struct cv_found){ .first = n, .count = 1, .pages = { found->pages[0] + (n - found->first) } };
		if ((result != CV_ERR_OCCUPIED && result != CV_ERR_IN_USE) || !cv_block_of(slot, n)->pages)
			return cv_is_lent(slot, n) ? 0 : result;
	}
	result = lend_pages(vm, slot, found, write);
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

/* The same by the address of the first page. */
void cv_memory_note_pages(struct cv_vm *vm, u64 gpa, struct page *page, u64 count, u64 done)
{
	struct cv_slot *slot;

	spin_lock(&vm->mmu_lock);
	slot = cv_find_slot(vm, gpa);
	if (!WARN_ON(!slot))
		cv_note_new_pages(vm, slot, (gpa - slot->gpa) >> PAGE_SHIFT, page, count, done);
	spin_unlock(&vm->mmu_lock);
}
