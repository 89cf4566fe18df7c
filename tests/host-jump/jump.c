// SPDX-License-Identifier: GPL-2.0
/*
 * Executes what stands at a physical address, for the tests in QEMU: jump ADDRESS. With a second argument the kernel copies from there and to there,
 * and what comes of it is printed. Needs tests/host-module.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char *outcome(ssize_t done)
{
	return done < 0 ? strerror(errno) : "done";
}

/* Through a pipe: from a process into the kernel, and from the kernel to a process. */
static int copy(char *memory)
{
	char word[8] = { 0 };
	int ends[2];

	if (pipe(ends) < 0) {
		perror("pipe");
		return 1;
	}
	printf("write: %s, ", outcome(write(ends[1], memory, sizeof(word))));
	if (write(ends[1], word, sizeof(word)) != sizeof(word)) {
		perror("pipe");
		return 1;
	}
	printf("read: %s\n", outcome(read(ends[0], memory, sizeof(word))));
	return 0;
}

int main(int argc, char **argv)
{
	unsigned long address = argc >= 2 ? strtoul(argv[1], NULL, 0) : 0;
	int fd = open("/dev/corevisor", O_RDWR);
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED, fd, address & ~0xfffUL);

	if (page == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	if (argc > 2)
		return copy(page + (address & 0xfff));
	((void (*)(void))(page + (address & 0xfff)))();
	printf("came back\n");
	return 0;
}
