// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/kvm for a kernel that runs at EL1 under corevisor: the module, and the ioctls of the device itself.
 *
 * Built-in KVM has registered nothing then ("HYP mode not available"), so the name and its minor number are free.
 */
#include <linux/init.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include <asm/sysreg.h>
#include <asm/virt.h>

#include "driver.h"

/* The core's pages have 4 KiB: what a kernel with larger ones calls a page is several there. */
/* The Rust object uses x18 as any other register. */
static_assert(!IS_ENABLED(CONFIG_SHADOW_CALL_STACK), "corevisor_kvm is for kernels without shadow call stacks (CONFIG_SHADOW_CALL_STACK)");
static_assert(PAGE_SIZE == SZ_4K, "corevisor_kvm is for kernels with pages of 4 KiB (CONFIG_ARM64_4K_PAGES)");

struct cv_core cv_core;

bool cv_all_protected;
module_param_named(protected, cv_all_protected, bool, 0644);
MODULE_PARM_DESC(protected, "every VM is a protected one, also for a VMM that knows nothing of it");

/* As KVM's on arm64, by its name. */
unsigned int cv_halt_poll_ns = 500000;
module_param_named(halt_poll_ns, cv_halt_poll_ns, uint, 0644);
MODULE_PARM_DESC(halt_poll_ns, "how long a vCPU that waits is looked at before its thread sleeps, at most; 0: not at all");

static long cv_dev_ioctl(struct file *file, unsigned int ioctl, unsigned long arg)
{
	switch (ioctl) {
	case KVM_GET_API_VERSION:
		return arg ? -EINVAL : KVM_API_VERSION;
	case KVM_CREATE_VM:
		return cv_vm_create(arg);
	case KVM_CHECK_EXTENSION:
		return cv_check_extension(NULL, arg);
	case KVM_GET_VCPU_MMAP_SIZE:
		return arg ? -EINVAL : PAGE_SIZE;
	default:
		return -EINVAL;
	}
}

static const struct file_operations cv_dev_ops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = cv_dev_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice cv_dev = {
	.minor = KVM_MINOR,
	.name = "kvm",
	.fops = &cv_dev_ops,
	.mode = 0660,
};

/* HVC is undefined at EL1 where nobody owns EL2: the device tree says whether it may be made. */
static bool cv_core_named(void)
{
	struct device_node *node = of_find_node_by_path("/hypervisor");
	bool named = node && of_device_is_compatible(node, "corevisor");

	of_node_put(node);
	return named;
}

static void cv_read_machine(struct kserv_machine *machine)
{
	machine->list_registers = cv_core.list_registers;
	machine->gic = cv_core.gic;
	machine->midr = read_sysreg(midr_el1);
	machine->revidr = read_sysreg(revidr_el1);
	machine->aidr = read_sysreg(aidr_el1);
	machine->ctr = read_sysreg(ctr_el0);
	machine->clidr = read_sysreg(clidr_el1);
	machine->id[0] = read_sysreg_s(SYS_ID_AA64PFR0_EL1);
	machine->id[1] = read_sysreg_s(SYS_ID_AA64PFR1_EL1);
	machine->id[2] = read_sysreg_s(SYS_ID_AA64DFR0_EL1);
	machine->id[3] = read_sysreg_s(SYS_ID_AA64ISAR0_EL1);
	machine->id[4] = read_sysreg_s(SYS_ID_AA64ISAR1_EL1);
	machine->id[5] = read_sysreg_s(SYS_ID_AA64ISAR2_EL1);
	machine->id[6] = read_sysreg_s(SYS_ID_AA64MMFR0_EL1);
	machine->id[7] = read_sysreg_s(SYS_ID_AA64MMFR1_EL1);
	machine->id[8] = read_sysreg_s(SYS_ID_AA64MMFR2_EL1);
}

static int __init cv_find_core(void)
{
	struct cv_answer answer;
	s64 version;

	/* Interrupts that are masked by priority would not make a VM leave. */
	if (system_uses_irq_prio_masking()) {
		pr_err("corevisor_kvm: this kernel was started with irqchip.gicv3_pseudo_nmi=1, with which VMs cannot run: start it without\n");
		return -EOPNOTSUPP;
	}
	if (!cv_core_named()) {
		pr_err("corevisor_kvm: this kernel does not run under corevisor (no /hypervisor node that says so)\n");
		return -ENODEV;
	}
	version = cv_call(CV_CALL_CORE_VERSION, 0, 0, 0, 0, 0);
	if (version != CV_INTERFACE_VERSION) {
		pr_err("corevisor_kvm: the core's interface is version %lld, this module was built for %llu\n", version,
		       CV_INTERFACE_VERSION);
		return -ENODEV;
	}
	answer = cv_hvc(CV_CALL_CORE_INFO, 0, 0, 0, 0, 0);
	if (answer.x[0]) {
		pr_err("corevisor_kvm: the core does not say what it can do for VMs (%lld)\n", answer.x[0]);
		return -ENODEV;
	}
	cv_core.list_registers = answer.x[1];
	cv_core.gic = answer.x[2] & 0xff;
	cv_core.ipa_bits = answer.x[2] >> 8 & 0xff;
	cv_core.context_pages = answer.x[2] >> 16 & 0xff;
	cv_core.gicv = answer.x[3];
	cv_read_machine(&cv_core.machine);
	return 0;
}

static int __init cv_init(void)
{
	int error;

	error = cv_find_core();
	if (error)
		return error;
	error = cv_timer_module_init();
	if (error)
		return error;
	cv_core.machine.direct = cv_direct_init();
	error = cv_irq_module_init();
	if (error)
		goto no_irqs;
	error = cv_leave_init();
	if (error)
		goto no_notice;
	cv_debugfs_init();
	error = misc_register(&cv_dev);
	if (error) {
		pr_err("corevisor_kvm: /dev/kvm cannot be registered (%d): does this kernel's own KVM work?\n", error);
		goto no_device;
	}
	pr_info("corevisor_kvm: /dev/kvm is there: VMs of up to %u bits of addresses, GICv%u with %u list registers\n",
		cv_core.ipa_bits, cv_core.gic, cv_core.list_registers);
	return 0;

no_device:
	cv_debugfs_exit();
	cv_manifest_free();
	cv_leave_exit();
no_notice:
	cv_irq_module_exit();
no_irqs:
	cv_direct_exit();
	cv_timer_module_exit();
	return error;
}

static void __exit cv_exit(void)
{
	misc_deregister(&cv_dev);
	cv_debugfs_exit();
	cv_leave_exit();
	cv_irq_module_exit();
	cv_direct_exit();
	cv_timer_module_exit();
	cv_manifest_free();
}

void kserv_model_panic(const char *text, size_t length)
{
	panic("corevisor_kvm: the model found a fault of its own: %.*s", (int)length, text);
}

module_init(cv_init);
module_exit(cv_exit);
MODULE_DESCRIPTION("KVM's interface for VMs under corevisor");
MODULE_LICENSE("GPL");
