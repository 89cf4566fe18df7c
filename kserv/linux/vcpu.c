// SPDX-License-Identifier: GPL-2.0
/*
 * A vCPU: its file and its ioctls but for KVM_RUN (run.c) and registers (reg.c).
 */
#include <linux/anon_inodes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "driver.h"

/* ---- states --------------------------------------------------------------------------------------------------------------- */

static long vcpu_init(struct cv_vcpu *vcpu, void __user *argp)
{
	struct cv_vm *vm = vcpu->vm;
	struct kvm_vcpu_init init;
	int error;

	if (copy_from_user(&init, argp, sizeof(init)))
		return -EFAULT;
	error = cv_with_model(vm, kserv_vcpu_init(vm->model, vcpu->id, init.target, init.features));
	if (error)
		return error;
	/* Whoever resets a vCPU that ran resets the machine: what the core knows of its CPUs' power is over. */
	if (vm->up)
		cv_vm_retire(vm);
	down_read(&vm->life);
	cv_reset_cache(vcpu);
	vcpu->by_user = cv_with_model(vm, kserv_mp_state_get(vm->model, vcpu->id)) == KVM_MP_STATE_RUNNABLE;
	vcpu->unfinished = false;
	vcpu->mmio_due = false;
	vcpu->emulated = false;
	vcpu->abort_asked = false;
	up_read(&vm->life);
	return 0;
}

/*
 * Whether the core knows something else of a vCPU's power: of one that has run, or that the VM has switched on, it knows what the VM did. It would not run it
 * then, or have it switched on by nobody.
 */
static bool contradicts(struct cv_vcpu *vcpu, u32 state)
{
	struct cv_vm *vm = vcpu->vm;
	u32 is = cv_with_model(vm, kserv_mp_state_get(vm->model, vcpu->id));

	if (!vm->up || vm->protected || state == is || (state != KVM_MP_STATE_RUNNABLE && state != KVM_MP_STATE_STOPPED))
		return false;
	return vcpu->in_core || (is == KVM_MP_STATE_RUNNABLE && !vcpu->by_user);
}

static long set_mp_state(struct cv_vcpu *vcpu, void __user *argp)
{
	struct cv_vm *vm = vcpu->vm;
	struct kvm_mp_state state;
	u32 kick = 0;
	int error;

	if (copy_from_user(&state, argp, sizeof(state)))
		return -EFAULT;
	down_read(&vm->life);
	/* Until `life` is held again the VM may run and do it once more. */
	while (contradicts(vcpu, state.mp_state)) {
		up_read(&vm->life);
		cv_vm_retire(vm);
		down_read(&vm->life);
	}
	error = cv_with_model(vm, kserv_mp_state_set(vm->model, vcpu->id, state.mp_state, &kick));
	if (!error && !vcpu->in_core)
		vcpu->by_user = state.mp_state == KVM_MP_STATE_RUNNABLE;
	up_read(&vm->life);
	cv_kick(vm, kick);
	return error;
}

static long get_mp_state(struct cv_vcpu *vcpu, void __user *argp)
{
	struct kvm_mp_state state = {
		.mp_state = cv_with_model(vcpu->vm, kserv_mp_state_get(vcpu->vm->model, vcpu->id)),
	};

	/* What KVM_ARM_VCPU_INIT makes of it by itself. */
	if (!cv_with_model(vcpu->vm, kserv_vcpu_initialized(vcpu->vm->model, vcpu->id)))
		state.mp_state = KVM_MP_STATE_RUNNABLE;

	return copy_to_user(argp, &state, sizeof(state)) ? -EFAULT : 0;
}

static long set_events(struct cv_vcpu *vcpu, void __user *argp)
{
	struct kvm_vcpu_events events;
	int error;

	if (copy_from_user(&events, argp, sizeof(events)))
		return -EFAULT;
	if (memchr_inv(events.exception.pad, 0, sizeof(events.exception.pad)) || memchr_inv(events.reserved, 0, sizeof(events.reserved)))
		return -EINVAL;
	down_read(&vcpu->vm->life);
	error = cv_with_model(vcpu->vm,
			      kserv_events_set(vcpu->vm->model, vcpu->id, events.exception.serror_pending,
					       events.exception.serror_has_esr, events.exception.ext_dabt_pending));
	if (!error && events.exception.ext_dabt_pending) {
		vcpu->abort_asked = true;
		vcpu->mmio_due = false;
		vcpu->emulated = false;
	}
	up_read(&vcpu->vm->life);
	return error;
}

static long get_events(void __user *argp)
{
	struct kvm_vcpu_events events = {};

	return copy_to_user(argp, &events, sizeof(events)) ? -EFAULT : 0;
}

/* Which interrupts the timers have; neither PMU nor stolen time. */
static long device_attr(struct cv_vcpu *vcpu, unsigned int ioctl, void __user *argp)
{
	struct kvm_device_attr attr;
	void __user *user;
	u32 intid = 0;
	int error;

	if (copy_from_user(&attr, argp, sizeof(attr)))
		return -EFAULT;
	if (attr.flags)
		return -EINVAL;
	user = (void __user *)(unsigned long)attr.addr;
	error = cv_with_model(vcpu->vm, kserv_vcpu_attr_get(vcpu->vm->model, attr.group, attr.attr, &intid));
	if (error || ioctl == KVM_HAS_DEVICE_ATTR)
		return error;
	if (ioctl == KVM_GET_DEVICE_ATTR)
		return copy_to_user(user, &intid, sizeof(intid)) ? -EFAULT : 0;
	if (copy_from_user(&intid, user, sizeof(intid)))
		return -EFAULT;
	return cv_with_model(vcpu->vm, kserv_vcpu_attr_set(vcpu->vm->model, attr.group, attr.attr, intid));
}

static long set_signal_mask(struct cv_vcpu *vcpu, void __user *argp)
{
	struct kvm_signal_mask mask;
	sigset_t sigset;

	if (!argp) {
		vcpu->sigset_active = false;
		return 0;
	}
	if (copy_from_user(&mask, argp, sizeof(mask)))
		return -EFAULT;
	if (mask.len != sizeof(sigset))
		return -EINVAL;
	/* What a fault leaves half copied is nobody's mask: it may block SIGKILL. */
	if (copy_from_user(&sigset, argp + sizeof(mask), sizeof(sigset)))
		return -EFAULT;
	sigdelsetmask(&sigset, sigmask(SIGKILL) | sigmask(SIGSTOP));
	vcpu->sigset = sigset;
	vcpu->sigset_active = true;
	return 0;
}

/* ---- the vCPU's file ------------------------------------------------------------------------------------------------------ */

static long locked_ioctl(struct cv_vcpu *vcpu, unsigned int ioctl, void __user *argp)
{
	if (ioctl == KVM_ARM_VCPU_INIT)
		return vcpu_init(vcpu, argp);
	if (ioctl == KVM_SET_SIGNAL_MASK)
		return set_signal_mask(vcpu, argp);
	if (ioctl == KVM_RUN)
		return argp ? -EINVAL : cv_vcpu_run(vcpu);
	switch (ioctl) {
	case KVM_GET_MP_STATE:
		return get_mp_state(vcpu, argp);
	case KVM_SET_MP_STATE:
		return set_mp_state(vcpu, argp);
	case KVM_HAS_DEVICE_ATTR:
	case KVM_GET_DEVICE_ATTR:
	case KVM_SET_DEVICE_ATTR:
		return device_attr(vcpu, ioctl, argp);
	}
	if (!cv_with_model(vcpu->vm, kserv_vcpu_initialized(vcpu->vm->model, vcpu->id)))
		return -ENOEXEC;
	switch (ioctl) {
	case KVM_GET_ONE_REG:
		return cv_one_reg(vcpu, argp, false);
	case KVM_SET_ONE_REG:
		return cv_one_reg(vcpu, argp, true);
	case KVM_GET_REG_LIST:
		return cv_reg_list(vcpu, argp);
	case KVM_GET_VCPU_EVENTS:
		return get_events(argp);
	case KVM_SET_VCPU_EVENTS:
		return set_events(vcpu, argp);
	default:
		return -EINVAL;
	}
}

static long vcpu_ioctl(struct file *file, unsigned int ioctl, unsigned long arg)
{
	struct cv_vcpu *vcpu = file->private_data;
	long result;

	if (vcpu->vm->mm != current->mm)
		return -EIO;
	if (mutex_lock_killable(&vcpu->mutex))
		return -EINTR;
	result = locked_ioctl(vcpu, ioctl, (void __user *)arg);
	mutex_unlock(&vcpu->mutex);
	return result;
}

static vm_fault_t run_fault(struct vm_fault *fault)
{
	struct cv_vcpu *vcpu = fault->vma->vm_file->private_data;

	if (fault->pgoff)
		return VM_FAULT_SIGBUS;
	fault->page = virt_to_page(vcpu->run);
	get_page(fault->page);
	return 0;
}

static const struct vm_operations_struct run_vm_ops = {
	.fault = run_fault,
};

static int vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = &run_vm_ops;
	return 0;
}

static int vcpu_release(struct inode *inode, struct file *file)
{
	struct cv_vcpu *vcpu = file->private_data;

	cv_vm_put(vcpu->vm);
	return 0;
}

static const struct file_operations vcpu_ops = {
	.owner = THIS_MODULE,
	.release = vcpu_release,
	.unlocked_ioctl = vcpu_ioctl,
	.mmap = vcpu_mmap,
	.llseek = noop_llseek,
};

void cv_vcpu_free(struct cv_vcpu *vcpu)
{
	if (!vcpu)
		return;
	free_page((unsigned long)vcpu->run);
	free_page((unsigned long)vcpu->mailbox);
	kfree(vcpu->cache);
	kfree(vcpu);
}

static struct cv_vcpu *alloc_vcpu(struct cv_vm *vm, u32 id)
{
	struct cv_vcpu *vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL_ACCOUNT);

	if (!vcpu)
		return NULL;
	vcpu->vm = vm;
	vcpu->id = id;
	mutex_init(&vcpu->mutex);
	rcuwait_init(&vcpu->wait);
	cv_hrtimer_setup(&vcpu->timer, cv_timer_fired, HRTIMER_MODE_REL_PINNED_HARD);
	vcpu->run = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	vcpu->mailbox = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	vcpu->cache = kcalloc(KSERV_CORE_REGISTERS, sizeof(u64), GFP_KERNEL_ACCOUNT);
	if (!vcpu->run || !vcpu->mailbox || !vcpu->cache) {
		cv_vcpu_free(vcpu);
		return NULL;
	}
	return vcpu;
}

/* KVM_CREATE_VCPU. */
int cv_vcpu_create(struct cv_vm *vm, unsigned long id)
{
	struct cv_vcpu *vcpu;
	struct file *file;
	int fd, error;

	if (id >= CV_MAX_VCPUS)
		return -EINVAL;
	vcpu = alloc_vcpu(vm, id);
	if (!vcpu)
		return -ENOMEM;
	/* Of all that may fail behind the model this is the likely one: a VMM may have no number left, and try again when it has. */
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		goto no_fd;
	mutex_lock(&vm->lock);
	error = cv_with_model(vm, kserv_vcpu_create(vm->model, id));
	if (error)
		goto no_vcpu;
	/* The core wants to know a VM's vCPUs before it runs. */
	if (vm->up)
		cv_vm_retire(vm);
	/* Who kicks, or reads debugfs, looks at it without a lock. */
	smp_store_release(&vm->vcpus[id], vcpu);
	cv_vm_get(vm);
	file = anon_inode_getfile("kvm-vcpu", &vcpu_ops, vcpu, O_RDWR);
	if (!IS_ERR(file)) {
		fd_install(fd, file);
	} else {
		/* It stays in the VM, without a file: its number is not free again, and it is never run. */
		put_unused_fd(fd);
		fd = PTR_ERR(file);
		cv_vm_put(vm);
	}
	mutex_unlock(&vm->lock);
	return fd;

no_vcpu:
	mutex_unlock(&vm->lock);
	put_unused_fd(fd);
	fd = error;
no_fd:
	cv_vcpu_free(vcpu);
	return fd;
}
