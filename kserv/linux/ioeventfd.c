// SPDX-License-Identifier: GPL-2.0
/*
 * ioeventfds, the way out: a store of the VM that ends in an eventfd.
 *
 * The list changes under vm->lock, and is read under RCU: who waits for an eventfd is called when it is signalled, and may be an irqfd, of this VM or
 * another, that wants locks of its own. So none is held then.
 */
#include <linux/eventfd.h>
#include <linux/rculist.h>
#include <linux/slab.h>

#include "compat.h"
#include "driver.h"

struct cv_ioeventfd {
	struct list_head link;
	struct eventfd_ctx *context;
	u64 addr;
	u32 len;		/* 0: any */
	bool any_data;
	u64 data;
};

static void free_entry(struct cv_ioeventfd *entry)
{
	eventfd_ctx_put(entry->context);
	kfree(entry);
}

static bool matches(const struct cv_ioeventfd *entry, const struct kvm_ioeventfd *args, struct eventfd_ctx *context)
{
	return entry->addr == args->addr && entry->len == args->len && entry->context == context &&
	       entry->any_data == !(args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH) &&
	       (entry->any_data || entry->data == args->datamatch);
}

/* vm->lock is held. */
static int remove(struct cv_vm *vm, const struct kvm_ioeventfd *args, struct eventfd_ctx *context)
{
	struct cv_ioeventfd *entry;

	list_for_each_entry(entry, &vm->ioeventfds, link) {
		if (!matches(entry, args, context))
			continue;
		list_del_rcu(&entry->link);
		vm->ioeventfd_count--;
		/* When this returns it is not signalled any more. */
		synchronize_rcu_expedited();
		free_entry(entry);
		return 0;
	}
	return -ENOENT;
}

static bool collides(const struct cv_ioeventfd *a, const struct cv_ioeventfd *b)
{
	return a->addr == b->addr && (!a->len || !b->len || a->len == b->len) &&
	       (a->any_data || b->any_data || a->data == b->data);
}

/* vm->lock is held. If it works the entry has the context. */
static int add(struct cv_vm *vm, const struct kvm_ioeventfd *args, struct eventfd_ctx *context)
{
	struct cv_ioeventfd *entry, *other;

	if (vm->ioeventfd_count == CV_MAX_IOEVENTFDS)
		return -ENOSPC;
	entry = kzalloc(sizeof(*entry), GFP_KERNEL_ACCOUNT);
	if (!entry)
		return -ENOMEM;
	entry->context = context;
	entry->addr = args->addr;
	entry->len = args->len;
	entry->any_data = !(args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH);
	entry->data = args->datamatch;
	list_for_each_entry(other, &vm->ioeventfds, link) {
		if (collides(entry, other)) {
			kfree(entry);
			return -EEXIST;
		}
	}
	list_add_rcu(&entry->link, &vm->ioeventfds);
	vm->ioeventfd_count++;
	return 0;
}

/* KVM_IOEVENTFD. */
int cv_ioeventfd(struct cv_vm *vm, const struct kvm_ioeventfd *args)
{
	const u32 known = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_DEASSIGN;
	struct eventfd_ctx *context;
	bool off = args->flags & KVM_IOEVENTFD_FLAG_DEASSIGN;
	int error;

	/* No port I/O here, nor virtio-ccw. */
	if (args->flags & ~known || args->addr + args->len < args->addr)
		return -EINVAL;
	if (args->len > 8 || (args->len && !is_power_of_2(args->len)))
		return -EINVAL;
	if (!args->len && args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH)
		return -EINVAL;
	context = eventfd_ctx_fdget(args->fd);
	if (IS_ERR(context))
		return PTR_ERR(context);
	mutex_lock(&vm->lock);
	error = off ? remove(vm, args, context) : add(vm, args, context);
	mutex_unlock(&vm->lock);
	if (off || error)
		eventfd_ctx_put(context);
	return error;
}

/* Whether a store was for an eventfd, which is told. No lock may be held. */
bool cv_ioeventfd_write(struct cv_vm *vm, u64 addr, u32 len, u64 data)
{
	struct cv_ioeventfd *entry;
	bool found = false;

	rcu_read_lock();
	list_for_each_entry_rcu(entry, &vm->ioeventfds, link) {
		if (entry->addr == addr && (!entry->len || entry->len == len) &&
		    (entry->any_data || entry->data == data)) {
			cv_eventfd_signal(entry->context);
			found = true;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/* The VM's file is closed, so none comes or goes any more; vCPUs may still run. */
void cv_ioeventfds_free(struct cv_vm *vm)
{
	struct cv_ioeventfd *entry, *next;
	LIST_HEAD(entries);

	list_splice_init_rcu(&vm->ioeventfds, &entries, synchronize_rcu_expedited);
	list_for_each_entry_safe(entry, next, &entries, link)
		free_entry(entry);
}
