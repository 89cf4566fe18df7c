// SPDX-License-Identifier: GPL-2.0
/*
 * irqfds, with and without resampling.
 *
 * An irqfd hangs on its eventfd's wait queue and is called there with interrupts off and the queue locked. It goes when the VMM takes it away, when the
 * eventfd is closed, or with the VM; the last part of that may sleep and is done by a workqueue.
 *
 * io_lock is taken below an eventfd's queue, so no eventfd is signalled under it: those that resample are found under RCU.
 */
#include <linux/eventfd.h>
#include <linux/nospec.h>
#include <linux/poll.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "driver.h"

static struct workqueue_struct *cleanup;

#define NO_PIN (-1)

struct cv_irqfd {
	struct list_head link;
	struct cv_vm *vm;
	u32 gsi;
	struct eventfd_ctx *context;
	struct eventfd_ctx *resample;
	/* Of those that resample; changed under io_lock, read under RCU. */
	struct list_head resample_link;
	/* The SPI whose end it hears of; changed under io_lock. */
	s32 pin;
	wait_queue_entry_t wait;
	poll_table poll;
	struct work_struct shutdown;
	/* On the VM's list; io_lock. */
	bool active;
};

/* From now on it hears of the end of SPI `pin`. Several may hear of one. io_lock is held. */
static void watch(struct cv_vm *vm, struct cv_irqfd *irqfd, s32 pin)
{
	s32 old = irqfd->pin;

	if (pin == old)
		return;
	if (pin != NO_PIN && !vm->watchers[pin]++)
		cv_with_model(vm, kserv_watch_spi(vm->model, pin, true));
	if (old != NO_PIN && !--vm->watchers[old])
		cv_with_model(vm, kserv_watch_spi(vm->model, old, false));
	WRITE_ONCE(irqfd->pin, pin);
}

/* Where its GSI leads. io_lock is held. */
static s32 pin_of(const struct cv_vm *vm, const struct cv_irqfd *irqfd)
{
	const struct cv_gsi *route = irqfd->gsi < CV_MAX_GSIS ? &vm->gsis[array_index_nospec(irqfd->gsi, CV_MAX_GSIS)] : NULL;

	return route && route->type == KVM_IRQ_ROUTING_IRQCHIP ? route->pin : NO_PIN;
}

/* The routes are others now. io_lock is held. */
void cv_irqfds_rerouted(struct cv_vm *vm)
{
	struct cv_irqfd *irqfd;

	list_for_each_entry(irqfd, &vm->resamplers, resample_link)
		watch(vm, irqfd, pin_of(vm, irqfd));
}

/* It hears of no end any more. With the last of its GSI the line goes down. */
static void end_resampling(struct cv_irqfd *irqfd)
{
	struct cv_vm *vm = irqfd->vm;
	struct cv_irqfd *other;
	unsigned long flags;
	bool last = true;

	spin_lock_irqsave(&vm->io_lock, flags);
	list_del_rcu(&irqfd->resample_link);
	watch(vm, irqfd, NO_PIN);
	list_for_each_entry(other, &vm->resamplers, resample_link)
		last &= other->gsi != irqfd->gsi;
	spin_unlock_irqrestore(&vm->io_lock, flags);
	if (last)
		cv_set_gsi(vm, irqfd->gsi, false, false);
	synchronize_rcu_expedited();
	eventfd_ctx_put(irqfd->resample);
}

static void irqfd_shutdown(struct work_struct *work)
{
	struct cv_irqfd *irqfd = container_of(work, struct cv_irqfd, shutdown);
	struct cv_vm *vm = irqfd->vm;
	u64 count;

	eventfd_ctx_remove_wait_queue(irqfd->context, &irqfd->wait, &count);
	if (irqfd->resample)
		end_resampling(irqfd);
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
		cv_set_gsi(irqfd->vm, irqfd->gsi, true, !irqfd->resample);
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

/* An eventfd interrupts by one irqfd only. */
static int irqfd_activate(struct cv_irqfd *irqfd)
{
	struct cv_vm *vm = irqfd->vm;
	struct cv_irqfd *other;
	unsigned long flags;
	int error = 0;

	spin_lock_irqsave(&vm->io_lock, flags);
	list_for_each_entry(other, &vm->irqfds, link) {
		if (other->context == irqfd->context)
			error = -EBUSY;
	}
	if (!error) {
		irqfd->active = true;
		list_add(&irqfd->link, &vm->irqfds);
		cv_vm_get(vm);
		if (irqfd->resample) {
			list_add_rcu(&irqfd->resample_link, &vm->resamplers);
			watch(vm, irqfd, pin_of(vm, irqfd));
		}
	}
	spin_unlock_irqrestore(&vm->io_lock, flags);
	return error;
}

static int irqfd_assign(struct cv_vm *vm, const struct kvm_irqfd *args)
{
	struct cv_irqfd *irqfd;
	struct file *file;
	__poll_t events;
	int error;

	irqfd = kzalloc(sizeof(*irqfd), GFP_KERNEL_ACCOUNT);
	if (!irqfd)
		return -ENOMEM;
	irqfd->vm = vm;
	irqfd->gsi = args->gsi;
	irqfd->pin = NO_PIN;
	INIT_WORK(&irqfd->shutdown, irqfd_shutdown);
	init_waitqueue_func_entry(&irqfd->wait, irqfd_wakeup);
	init_poll_funcptr(&irqfd->poll, irqfd_queue);
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
	error = irqfd_activate(irqfd);
	if (error)
		goto put_resample;

	events = vfs_poll(file, &irqfd->poll);
	/* It was written before we hung on it. */
	if (events & EPOLLIN)
		cv_set_gsi(vm, irqfd->gsi, true, !irqfd->resample);
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
	s32 spi;

	while ((spi = cv_with_model(vm, kserv_next_ended_spi(vm->model))) >= 0) {
		u32 kick = 0;

		cv_with_model(vm, kserv_set_spi(vm->model, spi, false, &kick));
		cv_kick(vm, kick);
		rcu_read_lock();
		list_for_each_entry_rcu(irqfd, &vm->resamplers, resample_link) {
			if (READ_ONCE(irqfd->pin) == spi)
				cv_eventfd_signal(irqfd->resample);
		}
		rcu_read_unlock();
	}
}

/* The VM's file is closed: its irqfds, which hold on to it, go. */
void cv_irqfds_free(struct cv_vm *vm)
{
	struct cv_irqfd *irqfd, *next;
	unsigned long flags;

	spin_lock_irqsave(&vm->io_lock, flags);
	list_for_each_entry_safe(irqfd, next, &vm->irqfds, link)
		irqfd_deactivate(irqfd);
	spin_unlock_irqrestore(&vm->io_lock, flags);
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
