// SPDX-License-Identifier: GPL-2.0
/*
 * What of the memory slots is lent to the VM.
 *
 * A fault pins the page, or the huge page around it, and lends it. It stays so until its slot goes, the VM ends, or the VMM changes its
 * own mapping of it (MMU notifier): the page is taken back from the VM first, then unpinned. What the notifier takes may be being faulted in
 * meanwhile, so a fault looks at `mmu_seq` before it pins and again before it lends, as KVM does.
 *
 * A vCPU starts with its caches off. The core cleans to memory what it maps, and empties the instruction caches: nothing is left to do here.
 */
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "driver.h"

/* ---- lending and taking back ---------------------------------------------------------------------------------------------- */

/*
 * Unmaps the run of lent pages [n, n + *run) at the core. A part of a block can be cut out only with a page for a table: without one the whole block
 * goes, and comes again by faults.
 */
static s64 unmap_run(struct cv_vm *vm, struct cv_slot *slot, u64 *n, u64 run)
{
	u64 gfn = slot->gpa >> PAGE_SHIFT, block;
	s64 done;

	done = cv_call3(CV_CALL_UNMAP_MEMORY, vm->id, (gfn + *n) << PAGE_SHIFT, run);
	if (done != CV_ERR_NO_MEMORY)
		return done;
	block = ALIGN_DOWN(gfn + *n, CV_BLOCK_PAGES);
	if (block < gfn || block + CV_BLOCK_PAGES > gfn + slot->npages)
		return done;
	*n = block - gfn;
	return cv_call3(CV_CALL_UNMAP_MEMORY, vm->id, block << PAGE_SHIFT, CV_BLOCK_PAGES);
}

/*
 * Takes pages [first, first + count) of `slot` back from the VM. False: the VM is switched off, and what it has stays pinned until it is taken apart.
 * mmu_lock is held.
 */
bool cv_take_back(struct cv_vm *vm, struct cv_slot *slot, u64 first, u64 count)
{
	u64 n = first, end = first + count, run, k;
	s64 done;

	/* What is a protected VM's own is so until its end. */
	if (vm->protected && vm->up)
		return false;

	while (n < end) {
		if (!slot->pages[n]) {
			n++;
			continue;
		}
		for (run = 1; n + run < end && run < CV_MAX_PAGES && slot->pages[n + run]; run++)
			;
		if (vm->up) {
			done = unmap_run(vm, slot, &n, run);
			if (done == CV_ERR_WRONG_STATE)
				return false;
			if (WARN_ONCE(done <= 0, "corevisor_kvm: VM %llu keeps memory at %#llx: %lld\n", vm->id,
				      slot->gpa + (n << PAGE_SHIFT), done)) {
				vm->failed = true;
				return false;
			}
			run = done;
		}
		for (k = n; k < n + run; k++) {
			if (!slot->pages[k])
				continue;
			if (vm->protected)
				__free_page(slot->pages[k]);
			else
				unpin_user_page(slot->pages[k]);
			slot->pages[k] = NULL;
			vm->lent--;
		}
		n += run;
	}
	return true;
}

/* How many of pages[0..count), which are not none, follow one another in memory. A block has many: with CONFIG_SPARSEMEM_VMEMMAP, which arm64 has, it is
 * enough to compare where their structures are. */
static unsigned long run_of(struct page **pages, unsigned long count)
{
	unsigned long run = 1;

	while (run < count && pages[run] == pages[0] + run)
		run++;
	return run;
}

/* Lends pages[0..count), which are not lent yet, at page `first` of `slot`. How many were, or an error. mmu_lock is held. */
static long lend(struct cv_vm *vm, struct cv_slot *slot, u64 first, struct page **pages, unsigned long count, bool write)
{
	u64 flags = slot->flags & KVM_MEM_READONLY || (slot->dirty && !write) ? CV_MAP_READ_ONLY : 0;
	unsigned long done = 0, run;
	struct page **place;
	void *taken;
	s64 result;

	while (done < count) {
		if (slot->pages[first + done]) {
			unpin_user_page(pages[done++]);
			continue;
		}
		run = run_of(pages + done, count - done);
		place = &slot->pages[first + done];
		taken = memchr_inv(place, 0, run * sizeof(*place));
		if (taken)
			run = (taken - (void *)place) / sizeof(*place);
		result = cv_call(CV_CALL_MAP_MEMORY, vm->id, slot->gpa + ((first + done) << PAGE_SHIFT),
				 page_to_phys(pages[done]), run, flags);
		if (result <= 0) {
			unpin_user_pages(pages + done, count - done);
			return done ? done : result;
		}
		memcpy(place, &pages[done], result * sizeof(pages[0]));
		if (slot->dirty && write)
			bitmap_set(slot->dirty, first + done, result);
		vm->lent += result;
		done += result;
	}
	return done;
}

/* The part of `slot` to be pinned for a fault at its page `n`: a whole block if the memory is a huge page, else a few pages. */
static void choose_range(struct cv_slot *slot, struct page *page, u64 n, u64 *first, u64 *count)
{
	u64 gfn = (slot->gpa >> PAGE_SHIFT) + n, within = gfn % CV_BLOCK_PAGES;
	bool same = (slot->hva - slot->gpa) % (CV_BLOCK_PAGES << PAGE_SHIFT) == 0;
	u64 from;

	if (same && n >= within && n - within + CV_BLOCK_PAGES <= slot->npages && PageCompound(page) &&
	    compound_order(compound_head(page)) >= ilog2(CV_BLOCK_PAGES)) {
		*first = n - within;
		*count = CV_BLOCK_PAGES;
		return;
	}
	from = gfn & ~(CV_FAULT_AROUND - 1);
	*first = max(from, slot->gpa >> PAGE_SHIFT) - (slot->gpa >> PAGE_SHIFT);
	*count = min(from + CV_FAULT_AROUND, (slot->gpa >> PAGE_SHIFT) + slot->npages) - (slot->gpa >> PAGE_SHIFT) - *first;
}

static long pin(struct cv_slot *slot, u64 first, unsigned long count, struct page **pages)
{
	unsigned int flags = FOLL_LONGTERM | (slot->flags & KVM_MEM_READONLY ? 0 : FOLL_WRITE);

	return pin_user_pages_fast(slot->hva + (first << PAGE_SHIFT), count, flags, pages);
}

/* The VM may write them at any time from now on. */
static void mark_dirty(struct page **pages, unsigned long count)
{
	unsigned long k, n, run;
	struct folio *folio;

	for (k = 0; k < count; k += run) {
		run = run_of(pages + k, count - k);
		/* The pages of a huge one are dirty together. */
		for (n = 0; n < run; n += folio_nr_pages(folio) - folio_page_idx(folio, pages[k + n])) {
			folio = page_folio(pages[k + n]);
			set_page_dirty_lock(pages[k + n]);
		}
	}
}

/* Pins what a fault at page `n` wants; `pages` has room for a block. How many, from *first on. */
static long pin_around(struct cv_slot *slot, u64 n, struct page **pages, u64 *first)
{
	u64 count;
	long pinned;

	pinned = pin(slot, n, 1, pages);
	if (pinned <= 0)
		return pinned ? pinned : -EFAULT;
	*first = n;
	count = 1;
	if (!READ_ONCE(slot->dirty))
		choose_range(slot, pages[0], n, first, &count);
	unpin_user_page(pages[0]);
	pinned = pin(slot, *first, count, pages);
	if (pinned <= 0 || *first + pinned <= n) {
		/* Something around it is no memory: only itself. */
		if (pinned > 0)
			unpin_user_pages(pages, pinned);
		*first = n;
		pinned = pin(slot, n, 1, pages);
		if (pinned <= 0)
			return pinned ? pinned : -EFAULT;
	}
	if (!(slot->flags & KVM_MEM_READONLY))
		mark_dirty(pages, pinned);
	return pinned;
}

static int serve_fault(struct cv_vm *vm, struct cv_slot *slot, u64 n, bool write, struct page **pages)
{
	unsigned long seq;
	long pinned, done;
	u64 first;
	int error;

	for (;;) {
		if (fatal_signal_pending(current))
			return -EINTR;
		if (READ_ONCE(vm->failed))
			return -EIO;
		seq = READ_ONCE(vm->mmu_seq);
		smp_rmb();
		pinned = pin_around(slot, n, pages, &first);
		if (pinned < 0)
			return pinned;
		spin_lock(&vm->mmu_lock);
		if (vm->mmu_invalidating || vm->mmu_seq != seq) {
			spin_unlock(&vm->mmu_lock);
			unpin_user_pages(pages, pinned);
			cond_resched();
			continue;
		}
		/* A page whose first write is to be noticed was lent read-only. */
		if (slot->dirty && write && slot->pages[n] && !test_bit(n, slot->dirty))
			cv_take_back(vm, slot, n, 1);
		done = lend(vm, slot, first, pages, pinned, write);
		spin_unlock(&vm->mmu_lock);
		if (done > 0)
			return 0;
		if (done != CV_ERR_NO_MEMORY)
			return done ? cv_errno(done) : -EFAULT;
		error = cv_vm_more_pool(vm, 8);
		if (error)
			return error;
	}
}

/* A page for the place at `gpa`, which must be in a slot and empty. Nothing else adds pages meanwhile: the VM does not run yet. */
struct page *cv_memory_new_page(struct cv_vm *vm, u64 gpa)
{
	struct cv_slot *slot;
	struct page *page;

	down_read(&vm->slots_lock);
	slot = cv_find_slot(vm, gpa);
	if (!slot)
		page = ERR_PTR(-ENOENT);
	else if (slot->pages[(gpa - slot->gpa) >> PAGE_SHIFT])
		page = ERR_PTR(-EEXIST);
	else
		page = alloc_page(GFP_KERNEL_ACCOUNT) ?: ERR_PTR(-ENOMEM);
	up_read(&vm->slots_lock);
	return page;
}

/* The core has it now. */
void cv_memory_note_page(struct cv_vm *vm, u64 gpa, struct page *page)
{
	struct cv_slot *slot;

	spin_lock(&vm->mmu_lock);
	slot = cv_find_slot(vm, gpa);
	if (!WARN_ON(!slot)) {
		slot->pages[(gpa - slot->gpa) >> PAGE_SHIFT] = page;
		vm->lent++;
	}
	spin_unlock(&vm->mmu_lock);
}

/* New pages for the place `n` of `slot` and what is around it: a block if one can be had and fits, else a few, else one. */
static struct page *new_pages(struct cv_slot *slot, u64 n, u64 *first, u64 *count)
{
	static const u64 sizes[] = { CV_BLOCK_PAGES, CV_FAULT_AROUND };
	u64 gfn = (slot->gpa >> PAGE_SHIFT) + n, from;
	struct page *page;
	int k;

	for (k = 0; k < ARRAY_SIZE(sizes); k++) {
		if (n < gfn % sizes[k])
			continue;
		from = n - gfn % sizes[k];
		if (from + sizes[k] > slot->npages || memchr_inv(&slot->pages[from], 0, sizes[k] * sizeof(slot->pages[0])))
			continue;
		page = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_NORETRY, ilog2(sizes[k]));
		if (!page)
			continue;
		split_page(page, ilog2(sizes[k]));
		*first = from;
		*count = sizes[k];
		return page;
	}
	*first = n;
	*count = 1;
	return alloc_page(GFP_KERNEL_ACCOUNT);
}

/* Memory of a protected VM's own for the place `n` of `slot`. */
static int serve_protected_fault(struct cv_vm *vm, struct cv_slot *slot, u64 n)
{
	u64 first, count, k;
	struct page *page;
	s64 done;
	int error;

	page = new_pages(slot, n, &first, &count);
	if (!page)
		return -ENOMEM;
	for (;;) {
		spin_lock(&vm->mmu_lock);
		done = cv_call(CV_CALL_MAP_MEMORY, vm->id, slot->gpa + (first << PAGE_SHIFT), page_to_phys(page), count, 0);
		for (k = 0; k < count && done > 0 && k < done; k++)
			slot->pages[first + k] = page + k;
		if (done > 0)
			vm->lent += done;
		spin_unlock(&vm->mmu_lock);
		if (done != CV_ERR_NO_MEMORY)
			break;
		error = cv_vm_more_pool(vm, 8);
		if (error) {
			done = CV_ERR_NO_MEMORY;
			break;
		}
	}
	for (k = max_t(s64, done, 0); k < count; k++)
		__free_page(page + k);
	/* Another vCPU was faster. */
	if (done == CV_ERR_OCCUPIED)
		return 0;
	return done > 0 ? 0 : cv_errno(done);
}

/*
 * The VM touched `gpa`, which is not lent. 0: it is now, or was by the time. -ENOENT: no slot; -EACCES: a write to a read-only one. The caller
 * holds `life`.
 */
int cv_memory_fault(struct cv_vm *vm, u64 gpa, bool write)
{
	struct cv_slot *slot;
	struct page **pages;
	int error;

	pages = kvmalloc_array(CV_BLOCK_PAGES, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	down_read(&vm->slots_lock);
	slot = cv_find_slot(vm, gpa);
	if (!slot)
		error = -ENOENT;
	else if (write && slot->flags & KVM_MEM_READONLY)
		error = -EACCES;
	else if (READ_ONCE(slot->pages[(gpa - slot->gpa) >> PAGE_SHIFT]) && !(write && slot->dirty))
		error = 0;
	else if (vm->protected)
		error = serve_protected_fault(vm, slot, (gpa - slot->gpa) >> PAGE_SHIFT);
	else
		error = serve_fault(vm, slot, (gpa - slot->gpa) >> PAGE_SHIFT, write, pages);
	up_read(&vm->slots_lock);
	kvfree(pages);
	return error;
}

/*
 * An access that the core took for one to a device, because it is below the VM's memory, to what may be a slot all the same. -ENOENT: none;
 * -EACCES: a write to a read-only one.
 */
int cv_memory_access(struct cv_vm *vm, u64 gpa, void *data, u32 len, bool write)
{
	struct cv_slot *slot;
	void __user *at;
	int error = 0;

	down_read(&vm->slots_lock);
	slot = cv_find_slot(vm, gpa);
	if (!slot) {
		error = -ENOENT;
	} else {
		at = (void __user *)(slot->hva + (gpa - slot->gpa));
		if (write && slot->flags & KVM_MEM_READONLY)
			error = -EACCES;
		else if (write ? copy_to_user(at, data, len) : copy_from_user(data, at, len))
			error = -EFAULT;
		else if (write && slot->dirty)
			set_bit((gpa - slot->gpa) >> PAGE_SHIFT, slot->dirty);
	}
	up_read(&vm->slots_lock);
	return error;
}

/* ---- the VMM's own mappings ----------------------------------------------------------------------------------------------- */

static int invalidate_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct cv_vm *vm = container_of(notifier, struct cv_vm, notifier);
	struct cv_slot *slot;
	unsigned long from, to;

	/* The VMM's memory is not what a protected VM has. */
	if (vm->protected)
		return 0;
	spin_lock(&vm->mmu_lock);
	vm->mmu_invalidating++;
	list_for_each_entry(slot, &vm->slots, link) {
		from = max(range->start, slot->hva);
		to = min(range->end, slot->hva + (slot->npages << PAGE_SHIFT));
		if (from < to)
			cv_take_back(vm, slot, (from - slot->hva) >> PAGE_SHIFT, (to - from + PAGE_SIZE - 1) >> PAGE_SHIFT);
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

const struct mmu_notifier_ops cv_notifier_ops = {
	.invalidate_range_start = invalidate_start,
	.invalidate_range_end = invalidate_end,
};
