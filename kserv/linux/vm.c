// SPDX-License-Identifier: GPL-2.0
/*
 * A VM: its file and its ioctls, capabilities, and how its vCPUs are kicked. Its other half, at the core: core.c.
 */
#include <linux/anon_inodes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "driver.h"

LIST_HEAD(cv_vms);
DEFINE_MUTEX(cv_vms_lock);
static unsigned int vm_count;

/* APA, API, GPA, GPI of ID_AA64ISAR1; GPA3, APA3 of ID_AA64ISAR2: VMs have what the machine has. */
static bool cv_has_pointer_authentication(void)
{
	return cv_core.machine.id[4] & 0xff000ff0 || cv_core.machine.id[5] & 0xff00;
}

/* With the interrupt controller that the machine has for VMs. */
static int most_vcpus(void)
{
	return cv_core.gic == 2 ? 8 : CV_MAX_VCPUS;
}

int cv_check_extension(struct cv_vm *vm, unsigned long extension)
{
	switch (extension) {
	case KVM_CAP_USER_MEMORY:
	case KVM_CAP_USER_MEMORY2:
	case KVM_CAP_DESTROY_MEMORY_REGION_WORKS:
	case KVM_CAP_JOIN_MEMORY_REGIONS_WORKS:
	case KVM_CAP_SYNC_MMU:
	case KVM_CAP_ONE_REG:
	case KVM_CAP_ARM_PSCI:
	case KVM_CAP_ARM_PSCI_0_2:
	case KVM_CAP_READONLY_MEM:
	case KVM_CAP_MP_STATE:
	case KVM_CAP_IMMEDIATE_EXIT:
	case KVM_CAP_VCPU_EVENTS:
	case KVM_CAP_ARM_INJECT_EXT_DABT:
	case KVM_CAP_ARM_IRQ_LINE_LAYOUT_2:
	case KVM_CAP_ARM_USER_IRQ:
	case KVM_CAP_ARM_NISV_TO_USER:
	case KVM_CAP_ARM_SET_DEVICE_ADDR:
	case KVM_CAP_DEVICE_CTRL:
	case KVM_CAP_IOEVENTFD:
	case KVM_CAP_IOEVENTFD_ANY_LENGTH:
	case KVM_CAP_IRQFD:
	case KVM_CAP_IRQFD_RESAMPLE:
	case KVM_CAP_INTERNAL_ERROR_DATA:
	case KVM_CAP_SYSTEM_EVENT_DATA:
	case KVM_CAP_CHECK_EXTENSION_VM:
	case KVM_CAP_ENABLE_CAP_VM:
	case KVM_CAP_VCPU_ATTRIBUTES:
		return 1;
	case KVM_CAP_ARM_PTRAUTH_ADDRESS:
	case KVM_CAP_ARM_PTRAUTH_GENERIC:
		return cv_has_pointer_authentication();
	case KVM_CAP_IRQCHIP:
		return cv_core.gic != 0;
	case KVM_CAP_SIGNAL_MSI:
		return cv_core.gic == 3;
	case KVM_CAP_MSI_DEVID:
		/* A VM's business, as in KVM: whether it has a translation service. */
		return vm ? !cv_with_model(vm, kserv_its_has(vm->model, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE)) : -EINVAL;
	case KVM_CAP_IRQ_ROUTING:
		return CV_MAX_GSIS;
	case KVM_CAP_NR_VCPUS:
		return min_t(int, num_online_cpus(), most_vcpus());
	case KVM_CAP_MAX_VCPUS:
	case KVM_CAP_MAX_VCPU_ID:
		return most_vcpus();
	case KVM_CAP_NR_MEMSLOTS:
		return CV_MAX_SLOTS;
	case KVM_CAP_ARM_VM_IPA_SIZE:
		return cv_core.ipa_bits;
	default:
		return 0;
	}
}

void cv_vm_get(struct cv_vm *vm)
{
	kref_get(&vm->refs);
}

void cv_kick(struct cv_vm *vm, u32 mask)
{
	unsigned long left = mask;
	struct task_struct *task;
	struct cv_vcpu *vcpu;
	unsigned int n;

	/* What the kick is about was written before, under the model's lock. */
	smp_mb();
	for_each_set_bit(n, &left, CV_MAX_VCPUS) {
		vcpu = READ_ONCE(vm->vcpus[n]);
		if (!vcpu)
			continue;
		WRITE_ONCE(vcpu->kicked, true);
		rcuwait_wake_up(&vcpu->wait);
		if (!READ_ONCE(vcpu->inside))
			continue;
		rcu_read_lock();
		task = rcu_dereference(vcpu->task);
		if (task)
			kick_process(task);
		rcu_read_unlock();
	}
}

void cv_kick_all(struct cv_vm *vm)
{
	cv_kick(vm, GENMASK(CV_MAX_VCPUS - 1, 0));
}

/* All vCPUs are out of their ioctls afterwards, or -EBUSY. The caller holds vm->lock. */
int cv_lock_vcpus(struct cv_vm *vm)
{
	int n;

	for (n = 0; n < CV_MAX_VCPUS; n++) {
		if (vm->vcpus[n] && !mutex_trylock(&vm->vcpus[n]->mutex))
			goto busy;
	}
	return 0;

busy:
	while (n-- > 0) {
		if (vm->vcpus[n])
			mutex_unlock(&vm->vcpus[n]->mutex);
	}
	return -EBUSY;
}

void cv_unlock_vcpus(struct cv_vm *vm)
{
	int n;

	for (n = 0; n < CV_MAX_VCPUS; n++) {
		if (vm->vcpus[n])
			mutex_unlock(&vm->vcpus[n]->mutex);
	}
}

/* ---- the VM's file -------------------------------------------------------------------------------------------------------- */

static void free_vm(struct kref *refs)
{
	struct cv_vm *vm = container_of(refs, struct cv_vm, refs);
	int n;

	cv_irq_free(vm);
	mmu_notifier_unregister(&vm->notifier, vm->mm);
	cv_vm_end(vm);
	/* It is among the VMs until the core has nothing of it. */
	mutex_lock(&cv_vms_lock);
	list_del(&vm->link);
	vm_count--;
	mutex_unlock(&cv_vms_lock);

	cv_memory_free(vm);
	for (n = 0; n < CV_MAX_VCPUS; n++)
		cv_vcpu_free(vm->vcpus[n]);
	mmdrop(vm->mm);
	free_page((unsigned long)vm->manifest);
	kvfree(vm->model);
	kvfree(vm);
}

void cv_vm_put(struct cv_vm *vm)
{
	kref_put(&vm->refs, free_vm);
}

static int vm_release(struct inode *inode, struct file *file)
{
	struct cv_vm *vm = file->private_data;

	cv_irq_free(vm);
	cv_vm_put(vm);
	return 0;
}

static int enable_cap(struct cv_vm *vm, const struct kvm_enable_cap *cap)
{
	if (cap->flags)
		return -EINVAL;
	switch (cap->cap) {
	case KVM_CAP_ARM_NISV_TO_USER:
		vm->nisv_to_user = true;
		return 0;
	default:
		return -EINVAL;
	}
}

static long set_routing(struct cv_vm *vm, void __user *argp)
{
	struct kvm_irq_routing routing;

	if (copy_from_user(&routing, argp, sizeof(routing)))
		return -EFAULT;
	return cv_set_routing(vm, &routing, argp + sizeof(routing));
}

static long preferred_target(void __user *argp)
{
	/* Target 5 is KVM_ARM_TARGET_GENERIC_V8; no feature is on by itself. */
	struct kvm_vcpu_init init = { .target = KVM_ARM_TARGET_GENERIC_V8 };

	return copy_to_user(argp, &init, sizeof(init)) ? -EFAULT : 0;
}

#define with_argument(type, call)					\
({									\
	type argument;							\
									\
	copy_from_user(&argument, argp, sizeof(argument)) ? -EFAULT : (call);	\
})

static long vm_ioctl(struct file *file, unsigned int ioctl, unsigned long arg)
{
	struct cv_vm *vm = file->private_data;
	void __user *argp = (void __user *)arg;

	if (vm->mm != current->mm)
		return -EIO;
	switch (ioctl) {
	case KVM_CREATE_VCPU:
		return cv_vcpu_create(vm, arg);
	case KVM_CHECK_EXTENSION:
		return cv_check_extension(vm, arg);
	case KVM_ENABLE_CAP:
		return with_argument(struct kvm_enable_cap, enable_cap(vm, &argument));
	case KVM_SET_USER_MEMORY_REGION:
	/* It begins as the other; what follows is looked at if a flag says so, which is refused. */
	case KVM_SET_USER_MEMORY_REGION2:
		return with_argument(struct kvm_userspace_memory_region, cv_memory_set(vm, &argument));
	case KVM_GET_DIRTY_LOG:
		return with_argument(struct kvm_dirty_log, cv_memory_dirty_log(vm, &argument));
	case KVM_ARM_PREFERRED_TARGET:
		return preferred_target(argp);
	case KVM_IRQ_LINE:
		return with_argument(struct kvm_irq_level, cv_irq_line(vm, &argument));
	case KVM_SIGNAL_MSI:
		return with_argument(struct kvm_msi, cv_signal_msi(vm, &argument));
	case KVM_IOEVENTFD:
		return with_argument(struct kvm_ioeventfd, cv_ioeventfd(vm, &argument));
	case KVM_IRQFD:
		return with_argument(struct kvm_irqfd, cv_irqfd(vm, &argument));
	case KVM_SET_GSI_ROUTING:
		return set_routing(vm, argp);
	case KVM_CREATE_IRQCHIP:
		return cv_create_irqchip(vm);
	case KVM_ARM_SET_DEVICE_ADDR:
		return with_argument(struct kvm_arm_device_addr, cv_set_device_addr(vm, &argument));
	case KVM_CREATE_DEVICE: {
		struct kvm_create_device device;
		int result;

		if (copy_from_user(&device, argp, sizeof(device)))
			return -EFAULT;
		result = cv_device_create(vm, &device);
		if (!result && copy_to_user(argp, &device, sizeof(device)))
			return -EFAULT;
		return result;
	}
	default:
		return -ENOTTY;
	}
}

const struct file_operations cv_vm_ops = {
	.owner = THIS_MODULE,
	.release = vm_release,
	.unlocked_ioctl = vm_ioctl,
	.llseek = noop_llseek,
};

static struct cv_vm *alloc_vm(u32 ipa_bits, bool protected)
{
	struct cv_vm *vm = kvzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);

	if (!vm)
		return NULL;
	vm->model = kvzalloc(kserv_vm_size(), GFP_KERNEL_ACCOUNT);
	if (!vm->model) {
		kvfree(vm);
		return NULL;
	}
	kref_init(&vm->refs);
	vm->ipa_bits = ipa_bits;
	vm->protected = protected;
	raw_spin_lock_init(&vm->model_lock);
	mutex_init(&vm->lock);
	mutex_init(&vm->held_lock);
	mutex_init(&vm->its_lock);
	init_rwsem(&vm->life);
	init_rwsem(&vm->slots_lock);
	spin_lock_init(&vm->mmu_lock);
	INIT_LIST_HEAD(&vm->held);
	INIT_LIST_HEAD(&vm->slots);
	INIT_LIST_HEAD(&vm->dead_slots);
	cv_irq_init(vm);
	kserv_vm_init(vm->model, &cv_core.machine, ipa_bits, cv_now());
	return vm;
}

/* KVM_CREATE_VM: bits 7:0 of `type` are the address size, bit 31 asks for a protected VM. */
int cv_vm_create(unsigned long type)
{
	u32 bits = type & KVM_VM_TYPE_ARM_IPA_SIZE_MASK;
	bool protected = type & BIT(31) || cv_all_protected;
	struct cv_vm *vm;
	int error;

	if (type & ~(KVM_VM_TYPE_ARM_IPA_SIZE_MASK | BIT(31)))
		return -EINVAL;
	if (!bits)
		bits = min_t(u32, CV_DEFAULT_IPA_BITS, cv_core.ipa_bits);
	if (bits < 32 || bits > cv_core.ipa_bits)
		return -EINVAL;
	vm = alloc_vm(bits, protected);
	if (!vm)
		return -ENOMEM;
	error = protected ? cv_protected_init(vm) : 0;
	if (error)
		goto no_number;
	mutex_lock(&cv_vms_lock);
	error = vm_count < CV_MAX_VMS ? 0 : -ENOMEM;
	if (!error) {
		vm_count++;
		list_add(&vm->link, &cv_vms);
	}
	mutex_unlock(&cv_vms_lock);
	if (error)
		goto no_number;

	vm->mm = current->mm;
	mmgrab(vm->mm);
	vm->notifier.ops = &cv_notifier_ops;
	error = mmu_notifier_register(&vm->notifier, vm->mm);
	if (error)
		goto no_notifier;
	error = anon_inode_getfd("kvm-vm", &cv_vm_ops, vm, O_RDWR | O_CLOEXEC);
	if (error < 0)
		cv_vm_put(vm);
	return error;

no_notifier:
	mmdrop(vm->mm);
	mutex_lock(&cv_vms_lock);
	list_del(&vm->link);
	vm_count--;
	mutex_unlock(&cv_vms_lock);
no_number:
	free_page((unsigned long)vm->manifest);
	kvfree(vm->model);
	kvfree(vm);
	return error;
}
