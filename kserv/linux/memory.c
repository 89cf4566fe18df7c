// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that a VM touched: the VMM's is pinned, a protected VM gets new pages. lend.c gives it to the VM.
 *
 * A fault takes the page, or the block around it. What the MMU notifier takes back may be being faulted in meanwhile, so a fault looks at `mmu_seq` before it
 * pins and again before it lends, as KVM does.
 */
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/uaccess.h>

#include "driver.h"

/*
 * Whether the caller's own tables map `addr` by a block of 2 MiB or more. Holds as long as no MMU notifier says otherwise. As in KVM, interrupts are off
 * meanwhile, so that nobody frees the tables.
 */
static bool is_mapped_as_block(unsigned long addr)
{
	unsigned long flags;
	pgd_t *pgd = pgd_offset(current->mm, addr);
	bool block = false;
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd;

	local_irq_save(flags);
	p4d = p4d_offset(pgd, addr);
	if (!pgd_none(READ_ONCE(*pgd)) && !p4d_none(READ_ONCE(*p4d))) {
		pud = pud_offset(p4d, addr);
		if (pud_leaf(READ_ONCE(*pud))) {
			block = true;
		} else if (!pud_none(READ_ONCE(*pud))) {
			pmd = pmd_offset(pud, addr);
			block = pmd_leaf(READ_ONCE(*pmd));
		}
	}
	local_irq_restore(flags);
	return block;
}

/*
 * A pin for long moves the page away from where memory may be taken offline or given to a device (CMA): nobody moves an anonymous page that is pinned, so the MMU
 * notifier would not hear of it. Memory of a file whose file system wants to know of each first write, and such without struct pages that last, cannot be pinned so: there an
 * ordinary pin is enough, because it goes as soon as the notifier says that the page is to be written back, moved or cut off.
 */
static long pin(struct cv_slot *slot, u64 first, unsigned long count, struct page **pages)
{
	unsigned int flags = slot->flags & KVM_MEM_READONLY ? 0 : FOLL_WRITE;
	unsigned long hva = slot->hva + (first << PAGE_SHIFT);
	long done = pin_user_pages_fast(hva, count, flags | FOLL_LONGTERM, pages);

	if (done == -EFAULT || done == -EOPNOTSUPP)
		done = pin_user_pages_fast(hva, count, flags, pages);
	return done;
}

/* Makes of the pinned page `n` the block that it is in, if the VMM's tables have it as one. */
static bool be_block(struct cv_slot *slot, u64 n, struct cv_pinned *pinned)
{
	struct page *page = pinned->pages[0];
	u64 first;

	if ((slot->hva - slot->gpa) % (CV_BLOCK_PAGES << PAGE_SHIFT) || !cv_has_block(slot, n, &first))
		return false;
	if (!PageCompound(page) || compound_order(compound_head(page)) < ilog2(CV_BLOCK_PAGES) ||
	    page_to_pfn(page) % CV_BLOCK_PAGES != n - first || !is_mapped_as_block(slot->hva + (n << PAGE_SHIFT)))
		return false;
	/* A pin on any of its pages holds all of a huge page. */
	pinned->first = first;
	pinned->count = CV_BLOCK_PAGES;
	pinned->pages[0] = page - (n - first);
	return true;
}

/* Pins page `n` alone. */
static int pin_one(struct cv_slot *slot, u64 n, struct cv_pinned *pinned)
{
	long done = pin(slot, n, 1, pinned->pages);

	pinned->first = n;
	pinned->count = 1;
	return done > 0 ? 0 : done ?: -EFAULT;
}

/* Pins page `n` and some around it. */
static int pin_some(struct cv_slot *slot, u64 n, struct cv_pinned *pinned)
{
	u64 gfn = slot->gpa >> PAGE_SHIFT, from, end;
	long done;

	from = max((gfn + n) & ~(CV_FAULT_AROUND - 1), gfn) - gfn;
	end = min(((gfn + n) | (CV_FAULT_AROUND - 1)) + 1 - gfn, slot->npages);
	done = pin(slot, from, end - from, pinned->pages);
	if (done > 0 && from + done > n) {
		pinned->first = from;
		pinned->count = done;
		return 0;
	}
	/* Something around it is no memory: only itself. */
	if (done > 0)
		unpin_user_pages(pinned->pages, done);
	return pin_one(slot, n, pinned);
}

/*
 * Pins what a fault at page `n` wants: a whole block if the memory is one, else a few pages, or, where dirty pages are followed, one. A page alone is tried first only
 * where it may turn out to be a block's: where nothing of that block is lent yet.
 */
static int pin_around(struct cv_slot *slot, u64 n, struct cv_pinned *pinned)
{
	int error;

	if (READ_ONCE(slot->dirty))
		return pin_one(slot, n, pinned);
	if (!READ_ONCE(cv_block_of(slot, n)->single)) {
		error = pin_one(slot, n, pinned);
		if (error || be_block(slot, n, pinned))
			return error;
		unpin_user_page(pinned->pages[0]);
	}
	return pin_some(slot, n, pinned);
}

/* The VM may write what is pinned at any time from now on. The pages of a huge one are dirty together. mmu_lock is held, so that nobody has them written back before. */
static void mark_dirty(const struct cv_slot *slot, const struct cv_pinned *pinned)
{
	unsigned long k;

	for (k = 0; k < (cv_is_block(pinned) ? 1 : pinned->count) && !(slot->flags & KVM_MEM_READONLY); k++)
		set_page_dirty(pinned->pages[k]);
}

static int serve_fault(struct cv_vm *vm, struct cv_slot *slot, u64 n, bool write)
{
	struct cv_pinned pinned;
	unsigned long seq;
	/* Whether what is pinned is to be lent as a block; and whether that was tried, and a part of it is lent otherwise. */
	bool block, single = false;
	s64 result;
	int error;

	for (;;) {
		if (fatal_signal_pending(current))
			return -EINTR;
		if (READ_ONCE(vm->failed))
			return -EIO;
		seq = READ_ONCE(vm->mmu_seq);
		smp_rmb();
		error = pin_around(slot, n, &pinned);
		if (error)
			return error;
		block = cv_is_block(&pinned) && !single;
		error = block ? 0 : cv_make_room(slot, n);
		if (error) {
			cv_unpin(&pinned);
			return error;
		}
		spin_lock(&vm->mmu_lock);
		if (vm->mmu_invalidating || vm->mmu_seq != seq) {
			spin_unlock(&vm->mmu_lock);
			cv_unpin(&pinned);
			cond_resched();
			continue;
		}
		/* A page whose first write is to be noticed was lent read-only. */
		if (slot->dirty && write && cv_single(slot, n) && !test_bit(n, slot->dirty))
			cv_take_back(vm, slot, n, 1);
		mark_dirty(slot, &pinned);
		result = cv_lend(vm, slot, n, &pinned, write);
		spin_unlock(&vm->mmu_lock);
		if (result == CV_ERR_OCCUPIED && block) {
			single = true;
			continue;
		}
		if (result != CV_ERR_NO_MEMORY)
			return result ? cv_errno(result) : 0;
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
	else if (cv_is_lent(slot, (gpa - slot->gpa) >> PAGE_SHIFT))
		page = ERR_PTR(-EEXIST);
	else if (cv_make_room(slot, (gpa - slot->gpa) >> PAGE_SHIFT))
		page = ERR_PTR(-ENOMEM);
	else
		page = alloc_page(GFP_KERNEL_ACCOUNT) ?: ERR_PTR(-ENOMEM);
	up_read(&vm->slots_lock);
	return page;
}

/* Pages behind one another for the place `n` of `slot` and what is around it: a block if one can be had and fits, else a few, else one. */
static struct page *new_pages(struct cv_slot *slot, u64 n, u64 *first, u64 *count)
{
	u64 gfn = slot->gpa >> PAGE_SHIFT, k;
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_NORETRY;
	struct page *page;

	*count = CV_BLOCK_PAGES;
	if (cv_has_block(slot, n, first) && !cv_block_of(slot, n)->single) {
		page = alloc_pages(gfp, ilog2(CV_BLOCK_PAGES));
		if (page)
			return page;
	}
	*count = CV_FAULT_AROUND;
	*first = n - (gfn + n) % CV_FAULT_AROUND;
	for (k = 0; k < *count && *first + k < slot->npages && !cv_single(slot, *first + k); k++)
		;
	page = k == *count ? alloc_pages(gfp, ilog2(CV_FAULT_AROUND)) : NULL;
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
	/* Another vCPU was faster. */
	if (done == CV_ERR_OCCUPIED)
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

	down_read(&vm->slots_lock);
	slot = cv_find_slot(vm, gpa);
	n = slot ? (gpa - slot->gpa) >> PAGE_SHIFT : 0;
	if (!slot)
		error = -ENOENT;
	else if (write && slot->flags & KVM_MEM_READONLY)
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
		if (write && slot->flags & KVM_MEM_READONLY)
			error = -EACCES;
		else if (write ? copy_to_user(at, data, len) : copy_from_user(data, at, len))
			error = -EFAULT;
		else if (write)
			note_written(vm, slot, first, ((gpa - slot->gpa + len - 1) >> PAGE_SHIFT) - first + 1);
	}
	up_read(&vm->slots_lock);
	return error;
}
