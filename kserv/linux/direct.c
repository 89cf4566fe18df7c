// SPDX-License-Identifier: GPL-2.0
/*
 * What VMs with an interrupt controller need of this kernel's:
 *
 *   maintenance interrupt   by which a VM leaves that has ended an interrupt which comes again, or whose list registers have room for others. Nobody else
 *                           enables it, and one that is not enabled ends no run
 *   a kick                  an SGI by which the core makes a CPU leave its VM for a moment, to put another vCPU's SGI into a list register
 *
 * The kick, and the end of the timer's interrupt, are for the core where it delivers private interrupts of VMs by itself (mailbox word `direct`): with a GICv3. The
 * core takes the reasons for a maintenance interrupt back at each exit, so it is over when the handler here hears of it.
 *
 * A kick that comes when the VM has left already arrives here and means nothing: the exit showed what it was for. The core takes only what is the most urgent
 * interrupt of the CPU, so the kick must be more urgent than all others; the kernel gives all the same priority, and has none for one more SGI: it is
 * written here, into the CPU's redistributor. Without such an SGI (firmware may keep them), vCPUs send to others by way of this driver.
 */
#include <linux/cpuhotplug.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/irq.h>
#include <linux/irqchip/arm-gic-v3.h>
#include <linux/irqdomain.h>
#include <linux/of.h>
#include <linux/of_address.h>
#include <linux/of_irq.h>
#include <linux/percpu.h>

#include <asm/cputype.h>

#include "driver.h"

/* Arm BSA, table of PPIs: INTID 25. */
#define MAINTENANCE_PPI 9
/* The kernel uses SGIs 0 to 7. */
#define KICK_SGI 8
/* GICD_INT_DEF_PRI, what all others have, is 0xa0. */
#define KICK_PRIORITY 0x80
#define SGI_BASE SZ_64K
#define MAX_REGIONS 16

static bool direct = true;
module_param(direct, bool, 0444);
MODULE_PARM_DESC(direct, "with GICv3 the core delivers a VM's SGIs and its timer's interrupt by itself");

struct region {
	void __iomem *base;
	resource_size_t size;
};

static struct region regions[MAX_REGIONS];
static unsigned int region_count;
static u64 region_stride;
static unsigned int maintenance_irq, kick_irq;
static int hotplug_state;
static bool no_kick;
static DEFINE_PER_CPU(int, nothing);

static irqreturn_t nothing_to_do(int irq, void *unused)
{
	return IRQ_HANDLED;
}

/* The SGI frame of this CPU's redistributor: one frame behind the other, up to the one that says it is the last. */
static void __iomem *own_sgi_base(void)
{
	u64 mpidr = read_cpuid_mpidr(), typer, at;
	u32 own = MPIDR_AFFINITY_LEVEL(mpidr, 3) << 24 | MPIDR_AFFINITY_LEVEL(mpidr, 2) << 16 |
		  MPIDR_AFFINITY_LEVEL(mpidr, 1) << 8 | MPIDR_AFFINITY_LEVEL(mpidr, 0);
	unsigned int n;

	for (n = 0; n < region_count; n++) {
		for (at = 0; at + 2 * SZ_64K <= regions[n].size;) {
			typer = readq_relaxed(regions[n].base + at + GICR_TYPER);
			if (typer >> 32 == own)
				return regions[n].base + at + SGI_BASE;
			if (typer & GICR_TYPER_LAST)
				break;
			at += region_stride ?: (typer & GICR_TYPER_VLPIS ? 4 : 2) * SZ_64K;
		}
	}
	return NULL;
}

static void enable_kick(void)
{
	void __iomem *base = own_sgi_base();

	if (base) {
		writeb_relaxed(KICK_PRIORITY, base + GICR_IPRIORITYR0 + KICK_SGI);
		enable_percpu_irq(kick_irq, IRQ_TYPE_EDGE_RISING);
	}
	/* Firmware that keeps the SGI for itself lets neither write through. */
	if (!base || readb_relaxed(base + GICR_IPRIORITYR0 + KICK_SGI) != KICK_PRIORITY ||
	    !(readl_relaxed(base + GICR_ISENABLER0) & BIT(KICK_SGI)))
		WRITE_ONCE(no_kick, true);
}

static int cpu_comes(unsigned int cpu)
{
	enable_percpu_irq(maintenance_irq, irq_get_trigger_type(maintenance_irq));
	if (kick_irq)
		enable_kick();
	return 0;
}

static int cpu_goes(unsigned int cpu)
{
	disable_percpu_irq(maintenance_irq);
	if (kick_irq)
		disable_percpu_irq(kick_irq);
	return 0;
}

static void unmap_redistributors(void)
{
	while (region_count)
		iounmap(regions[--region_count].base);
}

static int map_redistributors(struct device_node *gic)
{
	struct resource resource;
	u32 count = 1, n;

	of_property_read_u32(gic, "#redistributor-regions", &count);
	of_property_read_u64(gic, "redistributor-stride", &region_stride);
	for (n = 0; n < min_t(u32, count, MAX_REGIONS); n++) {
		if (of_address_to_resource(gic, 1 + n, &resource))
			return -EINVAL;
		regions[n].size = resource_size(&resource);
		regions[n].base = ioremap(resource.start, regions[n].size);
		if (!regions[n].base)
			return -ENOMEM;
		region_count++;
	}
	return 0;
}

/* The SGI as an interrupt of the kernel's. 0: it cannot be had. */
static unsigned int map_kick(void)
{
	struct device_node *gic = of_find_compatible_node(NULL, NULL, "arm,gic-v3");
	struct irq_fwspec spec = { .fwnode = of_fwnode_handle(gic), .param_count = 1, .param = { KICK_SGI } };
	unsigned int irq = 0;

	if (gic && !map_redistributors(gic))
		irq = irq_create_fwspec_mapping(&spec);
	of_node_put(gic);
	if (irq && request_percpu_irq(irq, nothing_to_do, "corevisor_kvm kick", &nothing)) {
		irq_dispose_mapping(irq);
		irq = 0;
	}
	if (!irq)
		unmap_redistributors();
	return irq;
}

static void free_kick(void)
{
	if (!kick_irq)
		return;
	free_percpu_irq(kick_irq, &nothing);
	irq_dispose_mapping(kick_irq);
	unmap_redistributors();
}

/* Whether this kernel has the maintenance interrupt, and the kick if that is wanted and can be had. */
static bool set_up(void)
{
	maintenance_irq = cv_map_ppi(MAINTENANCE_PPI, IRQ_TYPE_LEVEL_HIGH);
	if (!maintenance_irq)
		return false;
	if (request_percpu_irq(maintenance_irq, nothing_to_do, "corevisor_kvm maintenance", &nothing)) {
		maintenance_irq = 0;
		return false;
	}
	if (direct && cv_core.gic == 3)
		kick_irq = map_kick();
	hotplug_state = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "corevisor_kvm:direct", cpu_comes, cpu_goes);
	if (hotplug_state < 0)
		cv_direct_exit();
	return maintenance_irq;
}

/* What the models of VMs are told: kserv_machine.direct. Nothing here fails but that it says no. */
u64 cv_direct_init(void)
{
	if (!cv_core.gic)
		return KSERV_NOT_DIRECT;
	if (!set_up()) {
		pr_warn("corevisor_kvm: no maintenance interrupt: what a VM gets next when it has ended an interrupt may be late\n");
		return KSERV_NOT_DIRECT;
	}
	if (!direct || cv_core.gic != 3)
		return KSERV_NOT_DIRECT;
	if (!kick_irq || READ_ONCE(no_kick)) {
		pr_info("corevisor_kvm: no SGI for the core: VMs get interrupts from other vCPUs by way of this driver\n");
		return 0;
	}
	return CV_DIRECT_KICK | (u64)KICK_SGI << CV_DIRECT_KICK_SGI_SHIFT;
}

void cv_direct_exit(void)
{
	if (!maintenance_irq)
		return;
	if (hotplug_state > 0)
		cpuhp_remove_state(hotplug_state);
	free_kick();
	free_percpu_irq(maintenance_irq, &nothing);
	maintenance_irq = 0;
}
