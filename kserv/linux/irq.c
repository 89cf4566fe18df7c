// SPDX-License-Identifier: GPL-2.0
/*
 * Interrupts from outside: KVM_IRQ_LINE, routes, irqfds with and without resampling; and ioeventfds, the way out.
 *
 * An irqfd hangs on its eventfd's wait queue and is called there with interrupts off. It goes when the VMM takes it away, when the eventfd is
 * closed, or with the VM; the last part of that may sleep and is done by a workqueue.
 */
#include <linux/eventfd.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "driver.h"

static struct workqueue_struct *cleanup;

struct cv_ioeventfd {
	struct list_head link;
	struct eventfd_ctx *context;
	u64 addr;
	u32 len;		/* 0: any */
	bool any_data;
	u64 data;
};

struct cv_irqfd {
	struct list_head link;
	struct cv_vm *vm;
	u32 gsi;
	struct eventfd_ctx *context;
	struct eventfd_ctx *resample;
	wait_queue_entry_t wait;
	poll_table poll;
	struct work_struct shutdown;
	/* On the VM's list; io_lock. */
	bool active;
};

/* ---- routes --------------------------------------------------------------------------------------------------------------- */

/* Where a GSI leads; type 0: nowhere, as those do that can have no route. */
static struct cv_gsi route_of(const struct cv_vm *vm, u32 gsi)
{
	return gsi < CV_MAX_GSIS ? vm->gsis[gsi] : (struct cv_gsi){};
}

static int set_gsi(struct cv_vm *vm, u32 gsi, bool level, bool pulse)
{
	struct cv_gsi route;
	unsigned long flags;
	u32 kick = 0;
	int error;

	spin_lock_irqsave(&vm->io_lock, flags);
	route = route_of(vm, gsi);
	spin_unlock_irqrestore(&vm->io_lock, flags);
	switch (route.type) {
	case KVM_IRQ_ROUTING_IRQCHIP:
		if (pulse)
			error = cv_with_model(vm, kserv_pulse_spi(vm->model, route.pin, &kick));
		else
			error = cv_with_model(vm, kserv_set_spi(vm->model, route.pin, level, &kick));
		break;
	case KVM_IRQ_ROUTING_MSI:
		if (!level)
			return 0;
		error = cv_with_model(vm, kserv_msi(vm->model, route.msi_addr, route.msi_data, route.msi_devid,
						    route.has_devid, &kick));
		break;
	default:
		return -EINVAL;
	}
	cv_kick(vm, kick);
	return error;
}

/* KVM_SET_GSI_ROUTING: replaces all routes. */
int cv_set_routing(struct cv_vm *vm, const struct kvm_irq_routing *args, const void __user *entries)
{
	struct kvm_irq_routing_entry entry;
	struct cv_gsi *routes, *route;
	unsigned long flags;
	int error = 0;
	u32 n;

	if (args->flags || args->nr > CV_MAX_GSIS)
		return -EINVAL;
	routes = kvcalloc(CV_MAX_GSIS, sizeof(*routes), GFP_KERNEL_ACCOUNT);
	if (!routes)
		return -ENOMEM;
	for (n = 0; n < args->nr && !error; n++) {
		if (copy_from_user(&entry, entries + n * sizeof(entry), sizeof(entry))) {
			error = -EFAULT;
			break;
		}
		error = -EINVAL;
		if (entry.gsi >= CV_MAX_GSIS || entry.flags & ~KVM_MSI_VALID_DEVID)
			break;
		route = &routes[entry.gsi];
		route->type = entry.type;
		if (entry.type == KVM_IRQ_ROUTING_IRQCHIP && !entry.u.irqchip.irqchip &&
		    entry.u.irqchip.pin < CV_MAX_PINS) {
			route->pin = entry.u.irqchip.pin;
		} else if (entry.type == KVM_IRQ_ROUTING_MSI) {
			route->msi_addr = (u64)entry.u.msi.address_hi << 32 | entry.u.msi.address_lo;
			route->msi_data = entry.u.msi.data;
			route->msi_devid = entry.u.msi.devid;
			route->has_devid = entry.flags & KVM_MSI_VALID_DEVID;
		} else {
			break;
		}
		error = 0;
	}
	if (!error) {
		spin_lock_irqsave(&vm->io_lock, flags);
		memcpy(vm->gsis, routes, sizeof(vm->gsis));
		spin_unlock_irqrestore(&vm->io_lock, flags);
	}
	kvfree(routes);
	return error;
}

int cv_irq_line(struct cv_vm *vm, const struct kvm_irq_level *line)
{
	u32 kick = 0;
	int error = cv_with_model(vm, kserv_irq_line(vm->model, line->irq, line->level, &kick));

	cv_kick(vm, kick);
	return error;
}

int cv_signal_msi(struct cv_vm *vm, const struct kvm_msi *msi)
{
	u64 address = (u64)msi->address_hi << 32 | msi->address_lo;
	u32 kick = 0;
	int error;

	if (msi->flags & ~KVM_MSI_VALID_DEVID)
		return -EINVAL;
	error = cv_with_model(vm, kserv_msi(vm->model, address, msi->data, msi->devid,
					    msi->flags & KVM_MSI_VALID_DEVID, &kick));
	cv_kick(vm, kick);
	return error;
}

/* ---- ioeventfds ----------------------------------------------------------------------------------------------------------- */

static bool matches(const struct cv_ioeventfd *entry, const struct kvm_ioeventfd *args, struct eventfd_ctx *context)
{
	return entry->addr == args->addr && entry->len == args->len && entry->context == context &&
	       entry->any_data == !(args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH) &&
	       (entry->any_data || entry->data == args->datamatch);
}

static int remove_ioeventfd(struct cv_vm *vm, const struct kvm_ioeventfd *args, struct eventfd_ctx *context)
{
	struct cv_ioeventfd *entry, *found = NULL;
	unsigned long flags;

	spin_lock_irqsave(&vm->io_lock, flags);
	list_for_each_entry(entry, &vm->ioeventfds, link) {
		if (matches(entry, args, context)) {
			found = entry;
			list_del(&entry->link);
			break;
		}
	}
	spin_unlock_irqrestore(&vm->io_lock, flags);
	if (!found)
		return -ENOENT;
	eventfd_ctx_put(found->context);
	kfree(found);
	return 0;
}

static bool collides(const struct cv_ioeventfd *a, const struct cv_ioeventfd *b)
{
	return a->addr == b->addr && (!a->len || !b->len || a->len == b->len) &&
	       (a->any_data || b->any_data || a->data == b->data);
}

static int add_ioeventfd(struct cv_vm *vm, const struct kvm_ioeventfd *args, struct eventfd_ctx *context)
{
	struct cv_ioeventfd *entry = kzalloc(sizeof(*entry), GFP_KERNEL_ACCOUNT), *other;
	unsigned long flags;
	int error = 0;

	if (!entry)
		return -ENOMEM;
	entry->context = context;
	entry->addr = args->addr;
	entry->len = args->len;
	entry->any_data = !(args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH);
	entry->data = args->datamatch;
	spin_lock_irqsave(&vm->io_lock, flags);
	list_for_each_entry(other, &vm->ioeventfds, link) {
		if (collides(entry, other))
			error = -EEXIST;
	}
	if (!error)
		list_add(&entry->link, &vm->ioeventfds);
	spin_unlock_irqrestore(&vm->io_lock, flags);
	if (error)
		kfree(entry);
	return error;
}

/* KVM_IOEVENTFD. */
int cv_ioeventfd(struct cv_vm *vm, const struct kvm_ioeventfd *args)
{
	const u32 known = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_DEASSIGN;
	struct eventfd_ctx *context;
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
	if (args->flags & KVM_IOEVENTFD_FLAG_DEASSIGN) {
		error = remove_ioeventfd(vm, args, context);
		eventfd_ctx_put(context);
		return error;
	}
	error = add_ioeventfd(vm, args, context);
	if (error)
		eventfd_ctx_put(context);
	return error;
}

/* Whether a store was for an eventfd, which is told. */
bool cv_ioeventfd_write(struct cv_vm *vm, u64 addr, u32 len, u64 data)
{
	struct cv_ioeventfd *entry;
	unsigned long flags;
	bool found = false;

	if (list_empty(&vm->ioeventfds))
		return false;
	spin_lock_irqsave(&vm->io_lock, flags);
	list_for_each_entry(entry, &vm->ioeventfds, link) {
		if (entry->addr == addr && (!entry->len || entry->len == len) &&
		    (entry->any_data || entry->data == data)) {
			cv_eventfd_signal(entry->context);
			found = true;
			break;
		}
	}
	spin_unlock_irqrestore(&vm->io_lock, flags);
	return found;
}

/* ---- irqfds --------------------------------------------------------------------------------------------------------------- */

static void irqfd_shutdown(struct work_struct *work)
{
	struct cv_irqfd *irqfd = container_of(work, struct cv_irqfd, shutdown);
	struct cv_vm *vm = irqfd->vm;
	u64 count;

	eventfd_ctx_remove_wait_queue(irqfd->context, &irqfd->wait, &count);
	if (irqfd->resample) {
		set_gsi(vm, irqfd->gsi, false, false);
		cv_with_model(vm, kserv_watch_spi(vm->model, route_of(vm, irqfd->gsi).pin, false));
		eventfd_ctx_put(irqfd->resample);
	}
	eventfd_ctx_put(irqfd->context);
	kfree(irqfd);
	cv_vm_put(vm);
}

/* io_lock is held. */
static void irqfd_deactivate(struct cv_irqfd *irqfd)
{
	if (!irqfd->active)
		return;
	irqfd->active = false;
	list_del(&irqfd->link);
	queue_work(cleanup, &irqfd->shutdown);
}

/* The eventfd was written, or is closed. Its wait queue is locked, interrupts are off. */
static int irqfd_wakeup(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct cv_irqfd *irqfd = container_of(wait, struct cv_irqfd, wait);
	__poll_t events = key_to_poll(key);
	unsigned long flags;
	u64 count;

	if (events & EPOLLIN) {
		eventfd_ctx_do_read(irqfd->context, &count);
		set_gsi(irqfd->vm, irqfd->gsi, true, !irqfd->resample);
	}
	if (events & EPOLLHUP) {
		spin_lock_irqsave(&irqfd->vm->io_lock, flags);
		irqfd_deactivate(irqfd);
		spin_unlock_irqrestore(&irqfd->vm->io_lock, flags);
	}
	return 0;
}

static void irqfd_queue(struct file *file, wait_queue_head_t *head, poll_table *poll)
{
	struct cv_irqfd *irqfd = container_of(poll, struct cv_irqfd, poll);

	add_wait_queue_priority(head, &irqfd->wait);
}

static int irqfd_assign(struct cv_vm *vm, const struct kvm_irqfd *args)
{
	struct cv_irqfd *irqfd, *other;
	struct file *file;
	unsigned long flags;
	__poll_t events;
	int error;

	irqfd = kzalloc(sizeof(*irqfd), GFP_KERNEL_ACCOUNT);
	if (!irqfd)
		return -ENOMEM;
	irqfd->vm = vm;
	irqfd->gsi = args->gsi;
	INIT_WORK(&irqfd->shutdown, irqfd_shutdown);
	file = eventfd_fget(args->fd);
	if (IS_ERR(file)) {
		error = PTR_ERR(file);
		goto free;
	}
	irqfd->context = eventfd_ctx_fileget(file);
	if (IS_ERR(irqfd->context)) {
		error = PTR_ERR(irqfd->context);
		goto put_file;
	}
	if (args->flags & KVM_IRQFD_FLAG_RESAMPLE) {
		irqfd->resample = eventfd_ctx_fdget(args->resamplefd);
		if (IS_ERR(irqfd->resample)) {
			error = PTR_ERR(irqfd->resample);
			goto put_context;
		}
	}

	error = 0;
	spin_lock_irqsave(&vm->io_lock, flags);
	list_for_each_entry(other, &vm->irqfds, link) {
		if (other->context == irqfd->context)
			error = -EBUSY;
	}
	if (!error) {
		irqfd->active = true;
		list_add(&irqfd->link, &vm->irqfds);
		cv_vm_get(vm);
	}
	spin_unlock_irqrestore(&vm->io_lock, flags);
	if (error)
		goto put_resample;
	if (irqfd->resample) {
		cv_with_model(vm, kserv_watch_spi(vm->model, route_of(vm, irqfd->gsi).pin, true));
		WRITE_ONCE(vm->has_resampler, true);
	}

	init_waitqueue_func_entry(&irqfd->wait, irqfd_wakeup);
	init_poll_funcptr(&irqfd->poll, irqfd_queue);
	events = vfs_poll(file, &irqfd->poll);
	/* It was written before we hung on it. */
	if (events & EPOLLIN)
		set_gsi(vm, irqfd->gsi, true, !irqfd->resample);
	fput(file);
	return 0;

put_resample:
	if (irqfd->resample)
		eventfd_ctx_put(irqfd->resample);
put_context:
	eventfd_ctx_put(irqfd->context);
put_file:
	fput(file);
free:
	kfree(irqfd);
	return error;
}

static int irqfd_deassign(struct cv_vm *vm, const struct kvm_irqfd *args)
{
	struct eventfd_ctx *context = eventfd_ctx_fdget(args->fd);
	struct cv_irqfd *irqfd, *next;
	unsigned long flags;

	if (IS_ERR(context))
		return PTR_ERR(context);
	spin_lock_irqsave(&vm->io_lock, flags);
	list_for_each_entry_safe(irqfd, next, &vm->irqfds, link) {
		if (irqfd->context == context && irqfd->gsi == args->gsi)
			irqfd_deactivate(irqfd);
	}
	spin_unlock_irqrestore(&vm->io_lock, flags);
	eventfd_ctx_put(context);
	/* When this returns nothing comes by it any more. */
	flush_workqueue(cleanup);
	return 0;
}

/* KVM_IRQFD. */
int cv_irqfd(struct cv_vm *vm, const struct kvm_irqfd *args)
{
	int result;

	if (args->flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE))
		return -EINVAL;
	mutex_lock(&vm->lock);
	if (args->flags & KVM_IRQFD_FLAG_DEASSIGN)
		result = irqfd_deassign(vm, args);
	else if (!cv_with_model(vm, kserv_gic_initialized(vm->model)))
		result = -EAGAIN;
	else
		result = irqfd_assign(vm, args);
	mutex_unlock(&vm->lock);
	return result;
}

/* After an exit: SPIs whose end is to be told are lowered, and their VMM told. */
void cv_irq_resampled(struct cv_vm *vm)
{
	struct cv_irqfd *irqfd;
	unsigned long flags;
	s32 spi;

	while ((spi = cv_with_model(vm, kserv_next_ended_spi(vm->model))) >= 0) {
		u32 kick = 0;

		cv_with_model(vm, kserv_set_spi(vm->model, spi, false, &kick));
		cv_kick(vm, kick);
		spin_lock_irqsave(&vm->io_lock, flags);
		list_for_each_entry(irqfd, &vm->irqfds, link) {
			struct cv_gsi route = route_of(vm, irqfd->gsi);

			if (irqfd->resample && route.type == KVM_IRQ_ROUTING_IRQCHIP && route.pin == spi)
				cv_eventfd_signal(irqfd->resample);
		}
		spin_unlock_irqrestore(&vm->io_lock, flags);
	}
}

/* ---- begin and end -------------------------------------------------------------------------------------------------------- */

void cv_irq_init(struct cv_vm *vm)
{
	u32 n;

	spin_lock_init(&vm->io_lock);
	INIT_LIST_HEAD(&vm->ioeventfds);
	INIT_LIST_HEAD(&vm->irqfds);
	for (n = 0; n < CV_MAX_GSIS; n++)
		vm->gsis[n] = (struct cv_gsi){ .type = KVM_IRQ_ROUTING_IRQCHIP, .pin = n };
}

/* The VM's file is closed: its irqfds, which hold on to it, go; ioeventfds too. */
void cv_irq_free(struct cv_vm *vm)
{
	struct cv_ioeventfd *entry, *next_entry;
	struct cv_irqfd *irqfd, *next;
	unsigned long flags;
	LIST_HEAD(entries);

	spin_lock_irqsave(&vm->io_lock, flags);
	list_for_each_entry_safe(irqfd, next, &vm->irqfds, link)
		irqfd_deactivate(irqfd);
	list_splice_init(&vm->ioeventfds, &entries);
	spin_unlock_irqrestore(&vm->io_lock, flags);
	list_for_each_entry_safe(entry, next_entry, &entries, link) {
		eventfd_ctx_put(entry->context);
		kfree(entry);
	}
}

int cv_irq_module_init(void)
{
	cleanup = alloc_workqueue("corevisor-kvm-irqfd", 0, 0);
	return cleanup ? 0 : -ENOMEM;
}

void cv_irq_module_exit(void)
{
	destroy_workqueue(cleanup);
}
