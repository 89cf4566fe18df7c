// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel leaves the machine: reboot, kexec, power-off, hibernation.
 *
 * The core stays for the next kernel, which knows nothing of VMs and of what the core keeps for them. So VMs end before, and none is made any more. A
 * kernel that crashes, and starts another without a word, leaves its VMs to the core.
 */
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/suspend.h>

#include "driver.h"

/* VMMs cannot keep their host from leaving: so long it waits for all of them. */
#define PATIENCE_MS 2000

/* None is made at the core any more. Who makes one holds its `life`; so does who ends it, after this was set. */
static bool leaving;

bool cv_is_leaving(void)
{
	return READ_ONCE(leaving);
}

static int on_reboot(struct notifier_block *block, unsigned long action, void *unused)
{
	unsigned long last = jiffies + msecs_to_jiffies(PATIENCE_MS);
	struct cv_vm *vm;

	mutex_lock(&cv_vms_lock);
	WRITE_ONCE(leaving, true);
	list_for_each_entry(vm, &cv_vms, link) {
		atomic_inc(&vm->pausing);
		cv_kick_all(vm);
	}
	list_for_each_entry(vm, &cv_vms, link) {
		if (!cv_vm_end_before(vm, last))
			pr_err("corevisor_kvm: VM %llu does not end; what the core has of it is not for the next kernel\n", vm->id);
		atomic_dec(&vm->pausing);
	}
	mutex_unlock(&cv_vms_lock);
	return NOTIFY_DONE;
}

/* What the core knows of VMs is in no image of this kernel. */
static int on_sleep(struct notifier_block *block, unsigned long action, void *unused)
{
	int error = 0;

	switch (action) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		mutex_lock(&cv_vms_lock);
		if (list_empty(&cv_vms))
			WRITE_ONCE(leaving, true);
		else
			error = -EBUSY;
		mutex_unlock(&cv_vms_lock);
		if (error)
			pr_err("corevisor_kvm: no hibernation while there are VMs\n");
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
		WRITE_ONCE(leaving, false);
		break;
	}
	return notifier_from_errno(error);
}

static struct notifier_block reboot_block = { .notifier_call = on_reboot };
static struct notifier_block sleep_block = { .notifier_call = on_sleep };

int cv_leave_init(void)
{
	int error = register_reboot_notifier(&reboot_block);

	if (error)
		return error;
	error = register_pm_notifier(&sleep_block);
	if (error)
		unregister_reboot_notifier(&reboot_block);
	return error;
}

void cv_leave_exit(void)
{
	unregister_pm_notifier(&sleep_block);
	unregister_reboot_notifier(&reboot_block);
}
