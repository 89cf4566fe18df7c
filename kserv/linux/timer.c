// SPDX-License-Identifier: GPL-2.0
/*
 * The interrupt of the virtual timer, which is the VMs'.
 *
 * This kernel keeps its clock on the physical timer: the core has taken the virtual one out of its device tree. So nothing else enables this interrupt,
 * and a VM that runs when its timer fires would not leave before the next interrupt of this kernel's own. The core masks the timer at that exit, so there is
 * nothing to do here.
 */
#include <linux/cpuhotplug.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/of.h>
#include <linux/of_irq.h>
#include <linux/percpu.h>

#include "driver.h"

/* Of a GIC's interrupt specifier: what kind, and its number among them. */
#define GIC_SPECIFIER_PPI 1
#define VIRTUAL_TIMER_PPI 11

static unsigned int timer_irq;
static int hotplug_state;
/* There is nothing to tell the handler, but a per-CPU interrupt wants something. */
static DEFINE_PER_CPU(int, nothing);

static irqreturn_t virtual_timer_fired(int irq, void *unused)
{
	return IRQ_HANDLED;
}

static int cpu_comes(unsigned int cpu)
{
	enable_percpu_irq(timer_irq, irq_get_trigger_type(timer_irq));
	return 0;
}

static int cpu_goes(unsigned int cpu)
{
	disable_percpu_irq(timer_irq);
	return 0;
}

/*
 * A private interrupt of the CPUs: it is described like the physical timer's, but for its number, and its trigger where `trigger` is not IRQ_TYPE_NONE. 0: it
 * cannot be had.
 */
unsigned int cv_map_ppi(u32 ppi, u32 trigger)
{
	struct device_node *node = of_find_compatible_node(NULL, NULL, "arm,armv8-timer");
	struct of_phandle_args args;
	unsigned int irq = 0;

	if (node && !of_irq_parse_one(node, 0, &args)) {
		if (args.args_count >= 3 && args.args[0] == GIC_SPECIFIER_PPI) {
			args.args[1] = ppi;
			if (trigger != IRQ_TYPE_NONE)
				args.args[2] = (args.args[2] & ~IRQ_TYPE_SENSE_MASK) | trigger;
			irq = irq_create_of_mapping(&args);
		}
		of_node_put(args.np);
	}
	of_node_put(node);
	return irq;
}

/*
 * This CPU does not hear of the virtual timer until cv_timer_release(): it has fired before the VM is entered, and the VM has its interrupt in a list register.
 * The entry would end at once otherwise. With interrupts off.
 */
void cv_timer_hold(void)
{
	disable_percpu_irq(timer_irq);
}

void cv_timer_release(void)
{
	enable_percpu_irq(timer_irq, irq_get_trigger_type(timer_irq));
}

int cv_timer_module_init(void)
{
	int error = -ENODEV;

	timer_irq = cv_map_ppi(VIRTUAL_TIMER_PPI, IRQ_TYPE_NONE);
	if (timer_irq)
		error = request_percpu_irq(timer_irq, virtual_timer_fired, "corevisor_kvm", &nothing);
	if (error) {
		pr_err("corevisor_kvm: the interrupt of the virtual timer cannot be had: %d\n", error);
		return error;
	}
	hotplug_state = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "corevisor_kvm:online", cpu_comes, cpu_goes);
	if (hotplug_state < 0) {
		free_percpu_irq(timer_irq, &nothing);
		return hotplug_state;
	}
	return 0;
}

void cv_timer_module_exit(void)
{
	cpuhp_remove_state(hotplug_state);
	free_percpu_irq(timer_irq, &nothing);
}
