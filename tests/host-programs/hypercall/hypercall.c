// SPDX-License-Identifier: GPL-2.0
/*
 * Measures a null hypercall and a null SMC of the host, and shows what the core has counted.
 *
 * Each loop runs with interrupts off. Where one tick of the counter is one instruction (QEMU's max with -icount) the
 * ticks are instructions; the marks around the loops are for scripts/qemu-plugin.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/arm-smccc.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include "../mark.h"

#define TURNS 10000
#define CORE_VERSION 0xc6008000
#define CORE_STATISTICS 0xc6008001
#define PSCI_VERSION 0x84000000

static u64 ticks(void)
{
	u64 now;

	asm volatile("isb; mrs %0, cntvct_el0; isb" : "=r"(now) :: "memory");
	return now;
}

#define CLOBBERED "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", \
	"x16", "x17", "memory", "cc"

#define LOOP(name, first_mark, second_mark, call)					\
	static u64 name(u64 function)							\
	{										\
		u64 turns = TURNS, start, end;						\
		unsigned long flags;							\
											\
		local_irq_save(flags);							\
		start = ticks();							\
		MARK(first_mark);							\
		asm volatile("1: mov x0, %1\n" call "\nsubs %0, %0, #1\nb.ne 1b"	\
			     : "+r"(turns) : "r"(function) : CLOBBERED);		\
		MARK(second_mark);							\
		end = ticks();								\
		local_irq_restore(flags);						\
		return end - start;							\
	}

LOOP(empty_loop, 16, 17, "")
LOOP(hvc_loop, 18, 19, "hvc #0")
LOOP(smc_loop, 20, 21, "smc #0")

static void show(const char *name, u64 all, u64 loop)
{
	u64 hundredth = (all - loop) * 100 / TURNS;

	pr_info("%s takes %llu.%02llu ticks\n", name, hundredth / 100, hundredth % 100);
}

static int __init start(void)
{
	struct arm_smccc_res res;
	u64 loop, event;

	/* The core counts these calls too: whoever reads this knows that there were event + 1 of them. */
	for (event = 0;; event++) {
		arm_smccc_1_1_hvc(CORE_STATISTICS, event, &res);
		if (res.a0)
			break;
		pr_info("event %llu: %lu\n", event, res.a1);
	}
	arm_smccc_1_1_hvc(CORE_VERSION, &res);
	if ((long)res.a0 < 0)
		return -ENODEV;
	loop = empty_loop(0);
	show("null hypercall", hvc_loop(CORE_VERSION), loop);
	show("null SMC", smc_loop(PSCI_VERSION), loop);
	return 0;
}

static void __exit stop(void)
{
}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("Measures calls to the core");
MODULE_LICENSE("GPL");
