// SPDX-License-Identifier: GPL-2.0
/*
 * Starts another kernel from the running one, for the tests in QEMU: kexec IMAGE INITRD
 *
 * Debian's arm64 kernels have kexec_load only. The new kernel gets the old one's device tree with the place of its initrd
 * changed; a few instructions put it into x0, as the boot protocol wants it.
 */
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define ROUND(n) (((n) + 0xfff) & ~0xfffUL)

static void stop(const char *what)
{
	perror(what);
	exit(1);
}

static char *load(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY);
	size_t room = 64 * MIB, at = 0;
	char *text = calloc(1, room);
	ssize_t got = 0;

	if (fd < 0 || !text)
		stop(path);
	while (at < room && (got = read(fd, text + at, room - at)) > 0)
		at += got;
	if (got < 0)
		stop(path);
	*size = at;
	return text;
}

static uint32_t be32(const void *at)
{
	const uint8_t *b = at;

	return (uint32_t)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
}

/* Sets a property of one or two cells, wherever in the tree it is. */
static void set(char *tree, const char *name, uint64_t value)
{
	char *at = tree + be32(tree + 8), *names = tree + be32(tree + 12);

	for (;;) {
		uint32_t token = be32(at), size;

		at += 4;
		if (token == 1) {
			at += (strlen(at) + 4) & ~3UL;
		} else if (token == 3) {
			size = be32(at);
			if (!strcmp(names + be32(at + 4), name))
				for (uint32_t i = 0; i < size; i++)
					at[8 + i] = value >> 8 * (size - 1 - i);
			at += 8 + ((size + 3) & ~3U);
		} else if (token == 9) {
			return;
		}
	}
}

int main(int argc, char **argv)
{
	/* ldr x0, tree; ldr x4, kernel; mov x1-x3, 0; br x4 */
	static struct {
		uint32_t code[6];
		uint64_t tree, kernel;
	} start = { { 0x580000c0, 0x580000e4, 0xd2800001, 0xd2800002, 0xd2800003, 0xd61f0080 }, 0, 0 };
	size_t kernel_size, initrd_size, tree_size;
	char *kernel, *initrd, *tree;
	unsigned long base = 0x50000000;

	if (argc != 3)
		return 2;
	kernel = load(argv[1], &kernel_size);
	initrd = load(argv[2], &initrd_size);
	tree = load("/sys/firmware/fdt", &tree_size);
	start.kernel = base;
	unsigned long initrd_at = base + 96 * MIB, tree_at = base + 192 * MIB, start_at = tree_at + 2 * MIB;

	start.tree = tree_at;
	set(tree, "linux,initrd-start", initrd_at);
	set(tree, "linux,initrd-end", initrd_at + initrd_size);
	struct kexec_segment segments[] = {
		{ kernel, kernel_size, (void *)base, ROUND(kernel_size) },
		{ initrd, initrd_size, (void *)initrd_at, ROUND(initrd_size) },
		{ tree, tree_size, (void *)tree_at, ROUND(tree_size) },
		{ &start, sizeof(start), (void *)start_at, 0x1000 },
	};

	if (syscall(SYS_kexec_load, start_at, 4, segments, KEXEC_ARCH_AARCH64))
		stop("kexec_load");
	printf("host: loaded the next kernel\n");
	sync();
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
	stop("reboot");
}
