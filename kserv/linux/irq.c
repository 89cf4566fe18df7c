// SPDX-License-Identifier: GPL-2.0
/*
 * Interrupts from outside: KVM_IRQ_LINE, KVM_SIGNAL_MSI, and the routes that irqfds (irqfd.c) take.
 */
#include <linux/nospec.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

/* ---- routes --------------------------------------------------------------------------------------------------------------- */

/* Where a GSI leads; type 0: nowhere, as those do that can have no route. */
static struct cv_gsi route_of(const struct cv_vm *vm, u32 gsi)
{
	return gsi < CV_MAX_GSIS ? vm->gsis[array_index_nospec(gsi, CV_MAX_GSIS)] : (struct cv_gsi){};
}

/* An interrupt by a GSI. Called with an eventfd's wait queue locked, too. */
int cv_set_gsi(struct cv_vm *vm, u32 gsi, bool level, bool pulse)
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
		if (entry.gsi >= CV_MAX_GSIS || entry.flags & (entry.type == KVM_IRQ_ROUTING_MSI ? ~KVM_MSI_VALID_DEVID : ~0U))
			break;
		route = &routes[array_index_nospec(entry.gsi, CV_MAX_GSIS)];
		/* Two routes are for two interrupt controllers of one VM, which there are not. */
		if (route->type)
			break;
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
		cv_irqfds_rerouted(vm);
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

/* ---- begin and end -------------------------------------------------------------------------------------------------------- */

void cv_irq_init(struct cv_vm *vm)
{
	u32 n;

	spin_lock_init(&vm->io_lock);
	INIT_LIST_HEAD(&vm->ioeventfds);
	INIT_LIST_HEAD(&vm->irqfds);
	INIT_LIST_HEAD(&vm->resamplers);
	/* GSIs behind the last pin lead nowhere. */
	for (n = 0; n < CV_MAX_PINS; n++)
		vm->gsis[n] = (struct cv_gsi){ .type = KVM_IRQ_ROUTING_IRQCHIP, .pin = n };
}

/* The VM's file is closed. */
void cv_irq_free(struct cv_vm *vm)
{
	cv_irqfds_free(vm);
	cv_ioeventfds_free(vm);
}
