// SPDX-License-Identifier: GPL-2.0
/*
 * Protected VMs: their memory is given, not lent, and what they start with is what the manifest says.
 *
 * A page that is a VM's own is out of this kernel's reach, so it cannot be the VMM's at the same time: it is allocated here. The VMM's memory
 * of the slot stays the VMM's; it is only where the images are copied from when the VM starts. So nothing that the VMM or this kernel does to it
 * (swap, fork, core dump, a read) meets an external abort.
 *
 * The manifest (scripts/sign) lists the images with their addresses and sizes, and where the VM starts: these pages go to the core. What the VMM itself
 * has loaded is found by the Image header at PC, the device tree at x0 and the initrd that /chosen names: where that is not what was signed, the core
 * refuses the VM, and the administrator is told what differs.
 */
#include <linux/debugfs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

/* struct Manifest of src/interface/src/boot.rs, little endian. */
struct manifest_image {
	__le64 gpa;
	__le64 size;
	u8 digest[32];
};

struct manifest {
	__le64 magic;
	__le64 images;
	__le64 entry;
	__le64 x0;
	struct manifest_image image[CV_MAX_IMAGES];
	u8 public_key[32];
	u8 signature[64];
};

static_assert(sizeof(struct manifest) == CV_MANIFEST_SIZE);

/* The one that VMs made from now on start with; cv_vms_lock. */
static void *current_manifest;

static ssize_t manifest_write(struct file *file, const char __user *user, size_t size, loff_t *at)
{
	struct manifest *manifest;
	__le64 magic;
	void *old;

	if (*at || size < sizeof(magic))
		return -EINVAL;
	if (copy_from_user(&magic, user, sizeof(magic)))
		return -EFAULT;
	if (le64_to_cpu(magic) == CV_OLD_MANIFEST_MAGIC) {
		pr_err_ratelimited("corevisor_kvm: the manifest is of an older version: sign the images again (scripts/sign)\n");
		return -EINVAL;
	}
	if (size != CV_MANIFEST_SIZE)
		return -EINVAL;
	manifest = memdup_user(user, size);
	if (IS_ERR(manifest))
		return PTR_ERR(manifest);
	if (le64_to_cpu(manifest->magic) != CV_MANIFEST_MAGIC || le64_to_cpu(manifest->images) > CV_MAX_IMAGES) {
		kfree(manifest);
		return -EINVAL;
	}
	mutex_lock(&cv_vms_lock);
	old = current_manifest;
	current_manifest = manifest;
	mutex_unlock(&cv_vms_lock);
	kfree(old);
	return size;
}

const struct file_operations cv_manifest_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = manifest_write,
	.llseek = noop_llseek,
};

void cv_manifest_free(void)
{
	kfree(current_manifest);
}

/* A new protected VM gets the manifest that is there, in a page of its own that the core can read. */
int cv_protected_init(struct cv_vm *vm)
{
	int error = -ENOKEY;

	vm->manifest = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (!vm->manifest)
		return -ENOMEM;
	mutex_lock(&cv_vms_lock);
	if (current_manifest) {
		memcpy(vm->manifest, current_manifest, CV_MANIFEST_SIZE);
		error = 0;
	}
	mutex_unlock(&cv_vms_lock);
	if (error)
		pr_err_ratelimited("corevisor_kvm: a protected VM needs a manifest: write one to debugfs' corevisor_kvm/manifest\n");
	return error;
}

/* Gives the core the next pages of image `index`, with what the VMM has of its `bytes` from `gpa` on. How many bytes, or an error. */
static s64 give_pages(struct cv_vm *vm, u64 index, u64 gpa, u64 bytes)
{
	u64 count, size, done = 0;
	struct page *page;
	int error;
	s64 taken;

	page = cv_memory_new_pages(vm, gpa, PFN_UP(bytes), &count);
	if (IS_ERR(page))
		return PTR_ERR(page);
	size = min(bytes, count << PAGE_SHIFT);
	error = cv_memory_access(vm, gpa, page_address(page), size, false);
	memset(page_address(page) + size, 0, (count << PAGE_SHIFT) - size);
	while (!error && done < count) {
		taken = cv_call4(CV_CALL_REMAP_IMAGE_PAGES, vm->id, index, page_to_phys(page) + (done << PAGE_SHIFT), count - done);
		if (taken == CV_ERR_NO_MEMORY)
			error = cv_vm_more_pool(vm, 8);
		else if (taken <= 0)
			error = cv_errno(taken) ?: -EIO;
		else
			done += taken;
	}
	if (done)
		cv_memory_note_pages(vm, gpa, page, count, done);
	else
		__free_pages(page, ilog2(count));
	return error ?: size;
}

static int give_image(struct cv_vm *vm, const struct manifest_image *image)
{
	u64 gpa = le64_to_cpu(image->gpa), size = le64_to_cpu(image->size), done;
	struct cv_answer answer;
	s64 given;

	answer = cv_hvc(CV_CALL_SET_BOOT_INFO, vm->id, gpa, size, 0, 0);
	if (answer.x[0])
		return cv_errno(answer.x[0]);
	for (done = 0; done < size; done += given) {
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
		given = give_pages(vm, answer.x[1], gpa + done, size - done);
		if (given < 0)
			return given;
	}
	return 0;
}

static bool read_vm(void *context, u64 gpa, void *to, size_t size)
{
	/* The VMM's device tree may be long. */
	cond_resched();
	return !fatal_signal_pending(current) && !cv_memory_access(context, gpa, to, size, false);
}

/* In what the VMM has loaded differs from the manifest; where the difference is not in the places, it is in the bytes. */
static const char *difference(struct cv_vm *vm)
{
	struct kserv_boot found, expected;
	struct cv_vcpu *first = vm->vcpus[0];
	const char *wrong;

	wrong = kserv_boot_of_manifest(vm->manifest, CV_MANIFEST_SIZE, &expected);
	if (!wrong && first)
		wrong = kserv_boot_infer(read_vm, vm, first->cache[CV_REG_PC], first->cache[0], &found);
	if (!wrong && first)
		wrong = kserv_boot_explain(&found, &expected);
	return wrong ?: "all images are where they should be, so their bytes or the key are others";
}

/* All images go to the core, and are checked there. */
int cv_protected_verify(struct cv_vm *vm)
{
	struct manifest *manifest = vm->manifest;
	s64 result;
	u64 n;
	int error;

	for (n = 0; n < le64_to_cpu(manifest->images); n++) {
		error = give_image(vm, &manifest->image[n]);
		if (error) {
			pr_err_ratelimited("corevisor_kvm: image %llu of a protected VM, at %#llx, cannot be given to the core: %d\n", n,
			       le64_to_cpu(manifest->image[n].gpa), error);
			return error;
		}
	}
	do {
		cond_resched();
		result = cv_call2(CV_CALL_VERIFY_VM, vm->id, virt_to_phys(manifest));
	} while (result == CV_ERR_AGAIN);
	if (result == CV_ERR_NOT_AUTHENTIC)
		pr_err_ratelimited("corevisor_kvm: the core refuses a protected VM: its images are not what the manifest says, or its key is not trusted (%s)\n",
				   difference(vm));
	return cv_errno(result);
}

/* Where the first vCPU starts: what was signed, whatever the VMM has set. */
void cv_protected_start(struct cv_vcpu *vcpu)
{
	struct manifest *manifest = vcpu->vm->manifest;

	*cv_mailbox(vcpu, CV_MAILBOX_PC) = le64_to_cpu(manifest->entry);
	*cv_mailbox(vcpu, CV_MAILBOX_X0) = le64_to_cpu(manifest->x0);
	*cv_mailbox(vcpu, CV_MAILBOX_PSTATE) = CV_START_PSTATE;
}
