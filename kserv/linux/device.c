// SPDX-License-Identifier: GPL-2.0
/*
 * The interrupt controller in the kernel and GICv3's translation service as KVM_CREATE_DEVICE makes them, and their attributes. What they mean is the
 * model's.
 */
#include <linux/anon_inodes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

/* The groups that VGICv2 and VGICv3 have: <uapi/asm/kvm.h>. */
static bool is_register_group(u32 group)
{
	switch (group) {
	case KVM_DEV_ARM_VGIC_GRP_DIST_REGS:
	case KVM_DEV_ARM_VGIC_GRP_CPU_REGS:
	case KVM_DEV_ARM_VGIC_GRP_REDIST_REGS:
	case KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS:
	case KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO:
		return true;
	default:
		return false;
	}
}

static size_t value_size(const struct kvm_device_attr *attr)
{
	switch (attr->group) {
	case KVM_DEV_ARM_VGIC_GRP_ADDR:
		return sizeof(u64);
	case KVM_DEV_ARM_VGIC_GRP_NR_IRQS:
		return sizeof(u32);
	default:
		return 0;
	}
}

static int register_attr(struct cv_vm *vm, const struct kvm_device_attr *attr, bool write)
{
	struct kserv_reg reg;
	int error;

	mutex_lock(&vm->lock);
	error = cv_lock_vcpus(vm);
	if (error)
		goto out;
	error = cv_with_model(vm, kserv_gic_attr_find(vm->model, attr->group, attr->attr, &reg));
	if (!error)
		error = cv_reg_access(vm, &reg, (void __user *)(unsigned long)attr->addr, write);
	cv_unlock_vcpus(vm);
out:
	mutex_unlock(&vm->lock);
	return error;
}

/* What an attribute made the translation service do in the VM's memory. its_lock is held. */
static int its_served(struct cv_vm *vm)
{
	u32 kick = 0;
	int error;

	cv_its_serve(vm, true);
	error = cv_with_model(vm, kserv_its_outcome(vm->model, &kick));
	cv_kick(vm, kick);
	return error;
}

/* KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES. */
static int save_pending(struct cv_vm *vm, const struct kvm_device_attr *attr)
{
	u64 value = 0;
	u32 kick = 0;
	int error;

	mutex_lock(&vm->lock);
	error = cv_lock_vcpus(vm);
	if (error)
		goto out;
	mutex_lock(&vm->its_lock);
	error = cv_with_model(vm, kserv_gic_set(vm->model, attr->group, attr->attr, &value, &kick));
	if (!error)
		error = its_served(vm);
	mutex_unlock(&vm->its_lock);
	cv_unlock_vcpus(vm);
out:
	mutex_unlock(&vm->lock);
	return error;
}

static int set_attr(struct cv_vm *vm, const struct kvm_device_attr *attr)
{
	void __user *user = (void __user *)(unsigned long)attr->addr;
	u64 value = 0;
	u32 kick = 0;
	int error;

	if (is_register_group(attr->group))
		return register_attr(vm, attr, true);
	if (attr->group == KVM_DEV_ARM_VGIC_GRP_CTRL && attr->attr == KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES)
		return save_pending(vm, attr);
	if (copy_from_user(&value, user, value_size(attr)))
		return -EFAULT;
	mutex_lock(&vm->lock);
	error = cv_with_model(vm, kserv_gic_set(vm->model, attr->group, attr->attr, &value, &kick));
	mutex_unlock(&vm->lock);
	cv_kick(vm, kick);
	return error;
}

static int get_attr(struct cv_vm *vm, const struct kvm_device_attr *attr)
{
	void __user *user = (void __user *)(unsigned long)attr->addr;
	u64 value = 0;
	int error;

	if (is_register_group(attr->group))
		return register_attr(vm, attr, false);
	/* Which redistributor region is asked for stands in the value. */
	if (copy_from_user(&value, user, value_size(attr)))
		return -EFAULT;
	mutex_lock(&vm->lock);
	error = cv_with_model(vm, kserv_gic_get(vm->model, attr->group, attr->attr, &value));
	mutex_unlock(&vm->lock);
	if (error)
		return error;
	return copy_to_user(user, &value, value_size(attr)) ? -EFAULT : 0;
}

static int has_attr(struct cv_vm *vm, const struct kvm_device_attr *attr)
{
	return cv_with_model(vm, kserv_gic_has(vm->model, attr->group, attr->attr));
}

static const struct file_operations its_ops;

/* An attribute of the translation service, with its locks held. */
static int its_access(struct cv_vm *vm, const struct kvm_device_attr *attr, u64 *value, bool write)
{
	u32 kick = 0;
	int error;

	/* Commands that a vCPU left behind when it was interrupted: what they do belongs into the tables. */
	if (write && attr->group == KVM_DEV_ARM_VGIC_GRP_CTRL && attr->attr == KVM_DEV_ARM_ITS_SAVE_TABLES)
		cv_its_serve(vm, true);
	if (!write)
		return cv_with_model(vm, kserv_its_get(vm->model, attr->group, attr->attr, value));
	error = cv_with_model(vm, kserv_its_set(vm->model, attr->group, attr->attr, value, &kick));
	cv_kick(vm, kick);
	return error ? error : its_served(vm);
}

/* Its address and registers are 64 bits of user space. Only its address can be asked for and set while vCPUs run. */
static int its_attr(struct cv_vm *vm, const struct kvm_device_attr *attr, bool write)
{
	void __user *user = (void __user *)(unsigned long)attr->addr;
	size_t size = attr->group == KVM_DEV_ARM_VGIC_GRP_CTRL ? 0 : sizeof(u64);
	bool still = attr->group != KVM_DEV_ARM_VGIC_GRP_ADDR;
	u64 value = 0;
	int error;

	if (write && copy_from_user(&value, user, size))
		return -EFAULT;
	mutex_lock(&vm->lock);
	error = still ? cv_lock_vcpus(vm) : 0;
	if (!error) {
		mutex_lock(&vm->its_lock);
		error = its_access(vm, attr, &value, write);
		mutex_unlock(&vm->its_lock);
		if (still)
			cv_unlock_vcpus(vm);
	}
	mutex_unlock(&vm->lock);
	if (!error && !write && copy_to_user(user, &value, size))
		error = -EFAULT;
	return error;
}

static int its_ioctl(struct cv_vm *vm, unsigned int ioctl, const struct kvm_device_attr *attr)
{
	if (ioctl == KVM_HAS_DEVICE_ATTR)
		return cv_with_model(vm, kserv_its_has(vm->model, attr->group, attr->attr));
	return its_attr(vm, attr, ioctl == KVM_SET_DEVICE_ATTR);
}

static long device_ioctl(struct file *file, unsigned int ioctl, unsigned long arg)
{
	struct cv_vm *vm = file->private_data;
	struct kvm_device_attr attr;

	if (vm->mm != current->mm)
		return -EIO;
	if (ioctl != KVM_SET_DEVICE_ATTR && ioctl != KVM_GET_DEVICE_ATTR && ioctl != KVM_HAS_DEVICE_ATTR)
		return -ENOTTY;
	if (copy_from_user(&attr, (void __user *)arg, sizeof(attr)))
		return -EFAULT;
	if (attr.flags)
		return -EINVAL;
	if (file->f_op == &its_ops)
		return its_ioctl(vm, ioctl, &attr);
	switch (ioctl) {
	case KVM_SET_DEVICE_ATTR:
		return set_attr(vm, &attr);
	case KVM_GET_DEVICE_ATTR:
		return get_attr(vm, &attr);
	default:
		return has_attr(vm, &attr);
	}
}

static int device_release(struct inode *inode, struct file *file)
{
	cv_vm_put(file->private_data);
	return 0;
}

static const struct file_operations device_ops = {
	.owner = THIS_MODULE,
	.release = device_release,
	.unlocked_ioctl = device_ioctl,
	.llseek = noop_llseek,
};

static const struct file_operations its_ops = {
	.owner = THIS_MODULE,
	.release = device_release,
	.unlocked_ioctl = device_ioctl,
	.llseek = noop_llseek,
};

#define ITS 4

/* `version` 2, 3, or ITS. */
static int create_gic(struct cv_vm *vm, u32 version)
{
	int error;

	mutex_lock(&vm->lock);
	error = cv_lock_vcpus(vm);
	if (!error) {
		if (vm->up)
			error = -EBUSY;
		else if (version == ITS)
			error = cv_with_model(vm, kserv_its_create(vm->model));
		else
			error = cv_with_model(vm, kserv_gic_create(vm->model, version));
		if (!error && version != ITS)
			WRITE_ONCE(vm->has_gic, true);
		cv_unlock_vcpus(vm);
	}
	mutex_unlock(&vm->lock);
	return error;
}

/* KVM_CREATE_DEVICE. */
int cv_device_create(struct cv_vm *vm, struct kvm_create_device *args)
{
	const char *name;
	u32 version;
	int result;

	switch (args->type) {
	case KVM_DEV_TYPE_ARM_VGIC_V2:
		version = 2;
		name = "kvm-arm-vgic-v2";
		break;
	case KVM_DEV_TYPE_ARM_VGIC_V3:
		version = 3;
		name = "kvm-arm-vgic-v3";
		break;
	case KVM_DEV_TYPE_ARM_VGIC_ITS:
		version = ITS;
		name = "kvm-arm-vgic-its";
		break;
	default:
		return -ENODEV;
	}
	if (args->flags & ~KVM_CREATE_DEVICE_TEST)
		return -EINVAL;
	if (cv_core.gic != (version == ITS ? 3 : version))
		return -ENODEV;
	if (args->flags & KVM_CREATE_DEVICE_TEST)
		return 0;
	result = create_gic(vm, version);
	if (result)
		return result;
	cv_vm_get(vm);
	result = anon_inode_getfd(name, version == ITS ? &its_ops : &device_ops, vm, O_RDWR | O_CLOEXEC);
	if (result < 0) {
		cv_vm_put(vm);
		return result;
	}
	args->fd = result;
	return 0;
}

/* KVM_CREATE_IRQCHIP: the old way to a GICv2. */
int cv_create_irqchip(struct cv_vm *vm)
{
	return cv_core.gic == 2 ? create_gic(vm, 2) : -ENODEV;
}

/* KVM_ARM_SET_DEVICE_ADDR, which goes with it. */
int cv_set_device_addr(struct cv_vm *vm, const struct kvm_arm_device_addr *args)
{
	u64 kind = (args->id & KVM_ARM_DEVICE_TYPE_MASK) >> KVM_ARM_DEVICE_TYPE_SHIFT, value = args->addr;
	u32 kick = 0;

	if ((args->id & KVM_ARM_DEVICE_ID_MASK) >> KVM_ARM_DEVICE_ID_SHIFT != KVM_ARM_DEVICE_VGIC_V2)
		return -ENODEV;
	return cv_with_model(vm, kserv_gic_set(vm->model, KVM_DEV_ARM_VGIC_GRP_ADDR, kind, &value, &kick));
}
