// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/kernel/debug/corevisor_kvm: `log`, the core's log; `statistics`, what the core has counted; `vms`, each VM with its vCPUs' exits;
 * `manifest`, to be written: what protected VMs made from then on start with.
 */
#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "driver.h"

static struct dentry *directory;

static int log_show(struct seq_file *seq, void *unused)
{
	struct cv_answer answer;
	u64 at = 0, next;

	for (;;) {
		answer = cv_hvc(CV_CALL_CORE_LOG_READ, at, 0, 0, 0, 0);
		next = answer.x[1];
		if (answer.x[0] || next == at)
			return 0;
		seq_write(seq, &answer.x[2], min_t(u64, next - at, 2 * sizeof(u64)));
		if (seq_has_overflowed(seq))
			return 0;
		at = next;
	}
}
DEFINE_SHOW_ATTRIBUTE(log);

static int statistics_show(struct seq_file *seq, void *unused)
{
	struct cv_answer answer;
	u64 event;

	for (event = 0; ; event++) {
		answer = cv_hvc(CV_CALL_CORE_STATISTICS, event, 0, 0, 0, 0);
		if (answer.x[0])
			return 0;
		seq_printf(seq, "%llu %llu\n", event, answer.x[1]);
	}
}
DEFINE_SHOW_ATTRIBUTE(statistics);

static const char *const reasons[] = {
	[CV_EXIT_IRQ] = "irq", [CV_EXIT_TIMER] = "timer", [CV_EXIT_WFX] = "wfx", [CV_EXIT_MMIO_READ] = "mmio_read",
	[CV_EXIT_MMIO_WRITE] = "mmio_write", [CV_EXIT_MEMORY_FAULT] = "memory_fault", [CV_EXIT_PSCI] = "psci",
	[CV_EXIT_SYSREG] = "sysreg", [CV_EXIT_SYSTEM_OFF] = "system_off", [CV_EXIT_STOPPED] = "stopped",
	[CV_EXIT_FAILED] = "failed",
};

/* How its waits went, by the names of KVM's statistics. */
static void show_waits(struct seq_file *seq, struct cv_vcpu *vcpu)
{
	seq_printf(seq, "    halt_attempted_poll %llu halt_successful_poll %llu halt_poll_success_ns %llu halt_poll_fail_ns %llu",
		   vcpu->polls, vcpu->polls_good, cv_ns_of(vcpu->poll_good_ticks), cv_ns_of(vcpu->poll_vain_ticks));
	seq_printf(seq, " halt_wait_ns %llu\n", cv_ns_of(vcpu->sleep_ticks));
}

static void show_vcpu(struct seq_file *seq, struct cv_vm *vm, struct cv_vcpu *vcpu)
{
	u32 n;

	seq_printf(seq, "  vcpu %u:", vcpu->id);
	for (n = 0; n < ARRAY_SIZE(reasons); n++)
		seq_printf(seq, " %s %llu", reasons[n], cv_with_model(vm, kserv_exits(vm->model, vcpu->id, n)));
	seq_printf(seq, " halts %llu user %llu signal %llu\n", vcpu->halts, vcpu->exits_user, vcpu->exits_signal);
	show_waits(seq, vcpu);
}

/* 6.1 has no length(). */
static unsigned int length(const struct list_head *list)
{
	const struct list_head *at;
	unsigned int n = 0;

	list_for_each(at, list)
		n++;
	return n;
}

static void show_vm(struct seq_file *seq, struct cv_vm *vm)
{
	unsigned int irqfds;
	unsigned long flags;

	spin_lock_irqsave(&vm->io_lock, flags);
	irqfds = length(&vm->irqfds);
	spin_unlock_irqrestore(&vm->io_lock, flags);
	seq_printf(seq, "vm %lld: %s, %u bits, %llu pages lent, held %llu times, %u irqfds, %u ioeventfds\n", vm->up ? (s64)vm->id : -1,
		   vm->protected ? "protected" : "ordinary", vm->ipa_bits, vm->lent, vm->holds, irqfds, READ_ONCE(vm->ioeventfd_count));
}

static int vms_show(struct seq_file *seq, void *unused)
{
	struct cv_vm *vm;
	int n;

	mutex_lock(&cv_vms_lock);
	list_for_each_entry(vm, &cv_vms, link) {
		show_vm(seq, vm);
		for (n = 0; n < CV_MAX_VCPUS; n++) {
			if (READ_ONCE(vm->vcpus[n]))
				show_vcpu(seq, vm, vm->vcpus[n]);
		}
	}
	mutex_unlock(&cv_vms_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(vms);

void cv_debugfs_init(void)
{
	directory = debugfs_create_dir("corevisor_kvm", NULL);
	debugfs_create_file("log", 0400, directory, NULL, &log_fops);
	debugfs_create_file("statistics", 0400, directory, NULL, &statistics_fops);
	debugfs_create_file("manifest", 0200, directory, NULL, &cv_manifest_fops);
	debugfs_create_file("vms", 0400, directory, NULL, &vms_fops);
}

void cv_debugfs_exit(void)
{
	debugfs_remove_recursive(directory);
}
