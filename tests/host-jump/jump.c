// SPDX-License-Identifier: GPL-2.0
/* Executes what stands at a physical address, for the tests in QEMU: jump ADDRESS. Needs tests/host-module. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
	unsigned long address = argc == 2 ? strtoul(argv[1], NULL, 0) : 0;
	int fd = open("/dev/corevisor", O_RDWR);
	char *page = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, address & ~0xfffUL);

	if (page == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	((void (*)(void))(page + (address & 0xfff)))();
	printf("came back\n");
	return 0;
}
