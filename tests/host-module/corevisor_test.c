// SPDX-License-Identifier: GPL-2.0
/*
 * A host that pokes at the core, for the tests in QEMU. A command is written to /proc/corevisor, its result read from there:
 *
 *   hvc X0 [X1 X2 X3]    the call, HVC #0           -> x0 x1 x2 x3
 *   hvc1 X0 ...          the same with HVC #1
 *   smc X0 ..., smc1 X0 ...                         the same by SMC
 *   tpidr2 VALUE         writes TPIDR2_EL0 (FEAT_SME)         -> what it reads then
 *   log                  all of the core's log, by its hypercall
 *   read ADDRESS         of physical memory, as a device      -> the 64 bits there
 *   readcached ADDRESS   the same, as normal memory
 *   write ADDRESS VALUE
 *
 * /dev/corevisor maps physical memory at the address that is the offset, as normal memory that may be executed.
 * All numbers are hexadecimal. What the core refuses kills the process that wrote the command (an oops).
 */
#include <linux/init.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define CORE_LOG_READ 0xc6008002UL
#define LOG_MAX (64 * 1024)

static char *answer;

#define CALL(name, instruction)                                                                  \
	static void name(u64 r[4])                                                               \
	{                                                                                        \
		register u64 x0 asm("x0") = r[0];                                                \
		register u64 x1 asm("x1") = r[1];                                                \
		register u64 x2 asm("x2") = r[2];                                                \
		register u64 x3 asm("x3") = r[3];                                                \
		asm volatile(instruction                                                         \
			     : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)                            \
			     :                                                                   \
			     : "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",  \
			       "x14", "x15", "x16", "x17", "memory");                           \
		r[0] = x0;                                                                       \
		r[1] = x1;                                                                       \
		r[2] = x2;                                                                       \
		r[3] = x3;                                                                       \
	}

CALL(hvc0, "hvc #0")
CALL(hvc1, "hvc #1")
CALL(smc0, ".inst 0xd4000003")
CALL(smc1, ".inst 0xd4000023")

static const struct {
	const char *name;
	void (*call)(u64 r[4]);
} calls[] = { { "hvc", hvc0 }, { "hvc1", hvc1 }, { "smc", smc0 }, { "smc1", smc1 } };

static void read_log(void)
{
	u64 seq = 0;
	size_t at = 0;

	while (at + 17 < LOG_MAX) {
		u64 r[4] = { CORE_LOG_READ, seq, 0, 0 };
		u64 next, count;

		hvc0(r);
		next = r[1];
		if (r[0] || next == seq)
			break;
		count = min_t(u64, next - seq, 16);
		memcpy(answer + at, &r[2], count);
		at += count;
		seq = next;
	}
	answer[at] = 0;
}

static int touch(const char *what, u64 address, u64 value)
{
	u64 page = address & PAGE_MASK, offset = address & ~PAGE_MASK;
	void __iomem *device;
	void *memory;

	if (!strcmp(what, "readcached")) {
		memory = memremap(page, PAGE_SIZE, MEMREMAP_WB);
		if (!memory)
			return -ENOMEM;
		sprintf(answer, "%llx\n", READ_ONCE(*(u64 *)(memory + offset)));
		memunmap(memory);
		return 0;
	}
	device = ioremap(page, PAGE_SIZE);
	if (!device)
		return -ENOMEM;
	if (!strcmp(what, "read"))
		sprintf(answer, "%llx\n", readq(device + offset));
	else if (!strcmp(what, "write"))
		writeq(value, device + offset);
	else
		return -EINVAL;
	iounmap(device);
	return 0;
}

static ssize_t command_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char line[128], what[16];
	u64 r[4] = {};
	int i, error;

	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, text, size))
		return -EFAULT;
	line[size] = 0;
	if (sscanf(line, "%15s %llx %llx %llx %llx", what, &r[0], &r[1], &r[2], &r[3]) < 1)
		return -EINVAL;
	answer[0] = 0;
	if (!strcmp(what, "log")) {
		read_log();
		return size;
	}
	if (!strcmp(what, "tpidr2")) {
		u64 value;

		asm volatile("msr S3_3_C13_C0_5, %1\n\tisb\n\tmrs %0, S3_3_C13_C0_5" : "=r"(value) : "r"(r[0]));
		sprintf(answer, "%llx\n", value);
		return size;
	}
	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		if (strcmp(what, calls[i].name))
			continue;
		calls[i].call(r);
		sprintf(answer, "%llx %llx %llx %llx\n", r[0], r[1], r[2], r[3]);
		return size;
	}
	error = touch(what, r[0], r[1]);
	return error ? error : size;
}

static int answer_show(struct seq_file *seq, void *unused)
{
	seq_puts(seq, answer);
	return 0;
}

static int answer_open(struct inode *inode, struct file *file)
{
	return single_open(file, answer_show, NULL);
}

static const struct proc_ops ops = {
	.proc_open = answer_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = command_write,
};

static int map_anything(struct file *file, struct vm_area_struct *vma)
{
	return remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff, vma->vm_end - vma->vm_start, vma->vm_page_prot);
}

static const struct file_operations map_ops = { .owner = THIS_MODULE, .mmap = map_anything };
static struct miscdevice map_device = { .minor = MISC_DYNAMIC_MINOR, .name = "corevisor", .fops = &map_ops };

static int __init corevisor_test_init(void)
{
	answer = vzalloc(LOG_MAX);
	if (!answer)
		return -ENOMEM;
	if (!proc_create("corevisor", 0600, NULL, &ops))
		return -ENOMEM;
	return misc_register(&map_device);
}

/* No exit: a process that an oops has killed may still hold the file. */
module_init(corevisor_test_init);
MODULE_DESCRIPTION("Pokes at corevisor from its host");
MODULE_LICENSE("GPL");
