// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that a VM touched: the VMM's is found, a protected VM gets new pages. lend.c gives it to the VM.
 *
 * A fault takes the page, or the block around it. What is found is held until it is lent, and then the MMU notifier's to follow. What that takes back may be being
 * faulted in meanwhile, so a fault looks at `mmu_seq` before it looks for memory and again before it lends, as KVM does.
 */
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/uaccess.h>

#include "driver.h"

/*
 * Whether the caller's own tables map `addr` by a block of 2 MiB or more. Holds as long as no MMU notifier says otherwise. As in KVM, interrupts are off
 * meanwhile, so that nobody frees the tables; an entry may change at any time, so each is read once.
 */
static bool is_mapped_as_block(unsigned long addr)
{
	pgd_t *pgdp = pgd_offset(current->mm, addr), pgd;
	bool block = false;
	unsigned long flags;
	p4d_t *p4dp, p4d;
	pud_t *pudp, pud;

	local_irq_save(flags);
	pgd = READ_ONCE(*pgdp);
	if (pgd_none(pgd))
		goto out;
	p4dp = p4d_offset_lockless(pgdp, pgd, addr);
	p4d = READ_ONCE(*p4dp);
	if (p4d_none(p4d))
		goto out;
	pudp = pud_offset_lockless(p4dp, p4d, addr);
	pud = READ_ONCE(*pudp);
	if (pud_leaf(pud))
		block = true;
	else if (pud_present(pud))
		block = pmd_leaf(READ_ONCE(*pmd_offset_lockless(pudp, pud, addr)));
out:
	local_irq_restore(flags);
	return block;
}

static unsigned long address_of(const struct cv_slot *slot, u64 n)
{
	return slot->hva + (n << PAGE_SHIFT);
}

static bool is_writable(const struct cv_slot *slot)
{
	return !(slot->flags & KVM_MEM_READONLY);
}

/* A page of a block holds all of it. */
static unsigned long held_pages(const struct cv_found *found)
{
	return cv_is_block(found) ? 1 : found->count;
}

static void let_go(struct cv_found *found)
{
	unsigned long k;

	for (k = 0; k < held_pages(found); k++)
		put_page(found->pages[k]);
}

/* Makes of the found page `n` the block that it is in, if the VMM's tables have it as one. */
static bool be_block(struct cv_slot *slot, u64 n, struct cv_found *found)
{
	struct page *page = found->pages[0];
	u64 first;

	if ((slot->hva - slot->gpa) % (CV_BLOCK_PAGES << PAGE_SHIFT) || !cv_has_block(slot, n, &first))
		return false;
	if (!PageCompound(page) || compound_order(compound_head(page)) < ilog2(CV_BLOCK_PAGES) ||
	    page_to_pfn(page) % CV_BLOCK_PAGES != n - first || !is_mapped_as_block(address_of(slot, n)))
		return false;
	found->first = first;
	found->count = CV_BLOCK_PAGES;
	found->pages[0] = page - (n - first);
	return true;
}

/*
 * Finds up to `count` pages from page `from` on: how many. What is to be written and not there is faulted in first: get_user_pages_fast() would do so too, but look
 * each page up three times.
 */
static long find_run(struct cv_slot *slot, u64 from, unsigned long count, unsigned int flags, struct page **pages)
{
	unsigned long at = address_of(slot, from);
	long done = get_user_pages_fast_only(at, count, flags, pages);

	done = max(done, 0L);
	if (done == count)
		return done;
	at += done << PAGE_SHIFT;
	if (flags)
		fault_in_safe_writeable((char __user *)at, (count - done) << PAGE_SHIFT);
	return done + max(get_user_pages_fast(at, count - done, flags, pages + done), 0);
}

/* Finds page `n` alone, to be written or not. -EHWPOISON: the machine has lost it. */
static int find_one(struct cv_slot *slot, u64 n, bool write, struct cv_found *found)
{
	unsigned int flags = write ? FOLL_WRITE : 0;
	long done = find_run(slot, n, 1, flags, found->pages);

	if (!done)
		done = get_user_pages_unlocked(address_of(slot, n), 1, found->pages, flags | FOLL_HWPOISON);
	found->first = n;
	found->count = 1;
	return done > 0 ? 0 : done ?: -EFAULT;
}

/* Finds page `n` and some around it. */
static int find_some(struct cv_slot *slot, u64 n, struct cv_found *found)
{
	u64 gfn = slot->gpa >> PAGE_SHIFT, from, end;

	from = max((gfn + n) & ~(CV_FAULT_AROUND - 1), gfn) - gfn;
	end = min(((gfn + n) | (CV_FAULT_AROUND - 1)) + 1 - gfn, slot->npages);
	found->first = from;
	found->count = find_run(slot, from, end - from, is_writable(slot) ? FOLL_WRITE : 0, found->pages);
	if (from + found->count > n)
		return 0;
	/* Something around it is no memory: only itself. */
	let_go(found);
	return find_one(slot, n, is_writable(slot), found);
}

/*
 * Finds what a fault at page `n` wants: a whole block if the memory is one, else a few pages, or, where dirty pages are followed or it is to be found `alone`, one. A page alone is tried
 * first only where it may turn out to be a block's: where nothing of that block is lent yet.
 */
static int find_around(struct cv_slot *slot, u64 n, bool alone, struct cv_found *found)
{
	bool followed = READ_ONCE(slot->dirty), whole = !followed && !READ_ONCE(cv_block_of(slot, n)->single);
	int error;

	alone |= followed;
	if (whole || alone) {
		error = find_one(slot, n, is_writable(slot), found);
		if (error || (whole && be_block(slot, n, found)) || alone)
			return error;
		let_go(found);
	}
	return find_some(slot, n, found);
}

/* The VM may write what is lent at any time from now on. The pages of a huge one are dirty together. mmu_lock is held, so that nobody has them written back before. */
static void mark_dirty(const struct cv_slot *slot, const struct cv_found *found)
{
	unsigned long k;

	for (k = 0; k < held_pages(found) && is_writable(slot); k++)
		set_page_dirty(found->pages[k]);
}

/* Whether what was found when mmu_seq was `seq` may be something else by now. mmu_lock is held. */
static bool is_stale(const struct cv_vm *vm, const struct cv_slot *slot, const struct cv_found *found, unsigned long seq)
{
	unsigned long from = address_of(slot, found->first), to = address_of(slot, found->first + found->count);

	return vm->mmu_seq != seq || (vm->mmu_invalidating && from < vm->changes_to && vm->changes_from < to);
}

/* How a fault is served: what the tries so far have shown. */
struct cv_try {
	u64 n;
	bool write;
	/* A part of its block is lent, or lent too often: not as a block. */
	bool single;
	/* The VMM's mapping changed meanwhile: without the pages around it, which takes less long. */
	bool alone;
	/* The page that a read-only slot has there is lent too often: the VMM's own copy of it. */
	bool own;
};

/* One try: 0, an error, or, if there is to be another one, -EAGAIN. */
static int try_to_lend(struct cv_vm *vm, struct cv_slot *slot, struct cv_try *try)
{
	unsigned long seq = READ_ONCE(vm->mmu_seq);
	struct cv_found found;
	s64 result = 0;
	int error;
	bool block;

	smp_rmb();
	if (try->own)
		error = find_one(slot, try->n, true, &found);
	else
		error = find_around(slot, try->n, try->alone, &found);
	if (error)
		return error;
	block = cv_is_block(&found) && !try->single;
	error = block ? 0 : cv_make_room(slot, try->n);
	if (error)
		goto out;
	spin_lock(&vm->mmu_lock);
	if (vm->failed) {
		error = -EIO;
	} else if (is_stale(vm, slot, &found, seq)) {
		try->alone = true;
		error = -EAGAIN;
	} else {
		/* A page that is to be written may have been lent read-only, for its first write to be noticed. */
		if (slot->dirty && try->write && cv_single(slot, try->n))
			cv_take_back(vm, slot, try->n, 1);
		mark_dirty(slot, &found);
		result = cv_lend(vm, slot, try->n, &found, try->write);
	}
	spin_unlock(&vm->mmu_lock);
out:
	let_go(&found);
	if (result == CV_ERR_NO_MEMORY)
		return cv_vm_more_pool(vm, 8) ?: -EAGAIN;
	/* Another vCPU has switched the VM off: its next entry says so. */
	if (result == CV_ERR_WRONG_STATE)
		return 0;
	if (block && (result == CV_ERR_OCCUPIED || result == CV_ERR_IN_USE))
		try->single = true;
	else if (result == CV_ERR_IN_USE && !is_writable(slot) && !try->own)
		try->own = true;
	else
		return error ?: result ? cv_errno(result) : 0;
	return -EAGAIN;
}

static int serve_fault(struct cv_vm *vm, struct cv_slot *slot, u64 n, bool write)
{
	struct cv_try try = { .n = n, .write = write };
	int error;

	while ((error = try_to_lend(vm, slot, &try)) == -EAGAIN) {
		/* The VM touches it once more, if it is not there then. */
		if (cv_is_wanted() || atomic_read(&vm->pausing))
			return 0;
		cond_resched();
	}
	/* As KVM: the VMM is told where its memory was, and may tell the VM. */
	if (error == -EHWPOISON) {
		send_sig_mceerr(BUS_MCEERR_AR, (void __user *)address_of(slot, n), PAGE_SHIFT, current);
		return 0;
	}
	/* There is no copy of what the VMM may not write itself. */
	return try.own && error == -EFAULT ? cv_errno(CV_ERR_IN_USE) : error;
}

/* Of several pages behind one another, which it is no error not to have. */
#define GFP_RUN (GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_NORETRY)

/*
 * New pages, behind one another, for the places from `gpa` on, which must be in a slot and empty: up to `most`, as many as can be had at once and a block has from there on.
 * Nothing else adds pages meanwhile: the VM does not run yet.
 */
struct page *cv_memory_new_pages(struct cv_vm *vm, u64 gpa, u64 most, u64 *count)
{
	struct page *page = NULL;
	struct cv_slot *slot;
	unsigned int order;
	int error = 0;
	u64 n, k;

	down_read(&vm->slots_lock);
	slot = cv_find_slot(vm, gpa);
	if (!slot) {
		error = -ENOENT;
		goto out;
	}
	n = (gpa - slot->gpa) >> PAGE_SHIFT;
	order = ilog2(min(most, slot->npages - n));
	order = min_t(unsigned int, order, __ffs64(gpa >> PAGE_SHIFT | CV_BLOCK_PAGES));
	for (k = 0; k < 1ULL << order && !error; k++)
		error = cv_is_lent(slot, n + k) ? -EEXIST : 0;
	error = error ?: cv_make_room(slot, n);
	while (!error && !page && order)
		page = alloc_pages(GFP_RUN, order--);
	*count = page ? 2ULL << order : 1;
	if (!error && !page)
		page = alloc_page(GFP_KERNEL_ACCOUNT);
	error = error ?: page ? 0 : -ENOMEM;
out:
	up_read(&vm->slots_lock);
	return error ? ERR_PTR(error) : page;
}

/* Pages behind one another for the place `n` of `slot` and what is around it: a block if one can be had and fits, else a few, else one. */
static struct page *new_pages(struct cv_slot *slot, u64 n, u64 *first, u64 *count)
{
	u64 gfn = slot->gpa >> PAGE_SHIFT, k;
	struct page *page;

	*count = CV_BLOCK_PAGES;
	if (cv_has_block(slot, n, first) && !cv_block_of(slot, n)->single) {
		page = alloc_pages(GFP_RUN, ilog2(CV_BLOCK_PAGES));
		if (page)
			return page;
	}
	*count = CV_FAULT_AROUND;
	*first = n - (gfn + n) % CV_FAULT_AROUND;
	for (k = 0; k < *count && *first + k < slot->npages && !cv_single(slot, *first + k); k++)
		;
	page = k == *count ? alloc_pages(GFP_RUN, ilog2(CV_FAULT_AROUND)) : NULL;
	if (page)
		return page;
	*first = n;
	*count = 1;
	return alloc_page(GFP_KERNEL_ACCOUNT);
}

/* Memory of a protected VM's own for the place `n` of `slot`. */
static int serve_protected_fault(struct cv_vm *vm, struct cv_slot *slot, u64 n)
{
	struct page *page;
	u64 first, count;
	int error = 0;
	s64 done;

	/* Of a block it may get a part. */
	page = cv_make_room(slot, n) ? NULL : new_pages(slot, n, &first, &count);
	if (!page)
		return -ENOMEM;
	do {
		spin_lock(&vm->mmu_lock);
		done = cv_call(CV_CALL_MAP_MEMORY, vm->id, slot->gpa + (first << PAGE_SHIFT), page_to_phys(page), count, 0);
		if (done > 0)
			cv_note_new_pages(vm, slot, first, page, count, done);
		spin_unlock(&vm->mmu_lock);
	} while (done == CV_ERR_NO_MEMORY && !(error = cv_vm_more_pool(vm, 8)));
	if (done > 0)
		return 0;
	__free_pages(page, ilog2(count));
	/* Another vCPU was faster, or has switched the VM off, as its next entry says. */
	if (done == CV_ERR_OCCUPIED || done == CV_ERR_WRONG_STATE)
		return 0;
	return error ?: done ? cv_errno(done) : -EFAULT;
}

/*
 * The VM touched `gpa`, which is not lent. 0: it is now, or was by the time. -ENOENT: no slot; -EACCES: a write to a read-only one. The caller
 * holds `life`.
 */
int cv_memory_fault(struct cv_vm *vm, u64 gpa, bool write)
{
	struct cv_slot *slot;
	int error;
	u64 n;

	if (READ_ONCE(vm->failed))
		return -EIO;
	down_read(&vm->slots_lock);
	slot = cv_find_slot(vm, gpa);
	n = slot ? (gpa - slot->gpa) >> PAGE_SHIFT : 0;
	/* What is lent faults for a write only, whatever the syndrome says: of a walk that sets an access flag it says what the instruction was that led to it. */
	if (slot && slot->dirty && is_writable(slot) && cv_is_lent(slot, n))
		write = true;
	if (!slot)
		error = -ENOENT;
	else if (write && !is_writable(slot))
		error = -EACCES;
	else if (cv_is_lent(slot, n) && !(write && slot->dirty))
		error = 0;
	else if (vm->protected)
		error = serve_protected_fault(vm, slot, n);
	else
		error = serve_fault(vm, slot, n, write);
	up_read(&vm->slots_lock);
	return error;
}

static void note_written(struct cv_vm *vm, struct cv_slot *slot, u64 first, u64 count)
{
	spin_lock(&vm->mmu_lock);
	if (slot->dirty)
		bitmap_set(slot->dirty, first, count);
	spin_unlock(&vm->mmu_lock);
}

/*
 * An access that the core took for one to a device, because it is below the VM's memory, to what may be a slot all the same. -ENOENT: none, or not all of
 * it in one; -EACCES: a write to a read-only one.
 */
int cv_memory_access(struct cv_vm *vm, u64 gpa, void *data, u32 len, bool write)
{
	struct cv_slot *slot;
	void __user *at;
	int error = 0;
	u64 first;

	down_read(&vm->slots_lock);
	slot = cv_find_slot(vm, gpa);
	if (!slot || len > (slot->npages << PAGE_SHIFT) - (gpa - slot->gpa)) {
		error = -ENOENT;
	} else {
		at = (void __user *)(slot->hva + (gpa - slot->gpa));
		first = (gpa - slot->gpa) >> PAGE_SHIFT;
		if (write && !is_writable(slot))
			error = -EACCES;
		else if (write ? copy_to_user(at, data, len) : copy_from_user(data, at, len))
			error = -EFAULT;
		else if (write)
			note_written(vm, slot, first, ((gpa - slot->gpa + len - 1) >> PAGE_SHIFT) - first + 1);
	}
	up_read(&vm->slots_lock);
	return error;
}
