/* A guest whose memory is a shared mapping of a file, on a file system that wants to know of each first write to a page. */
#include "probe.h"
#include <fcntl.h>

enum { SIZE = 1 << 20, PAGE = 4096, WHERE = 0x48000000 };

static bool touches(struct vm *vm)
{
    int exits;
    set_reg(vm, 0, X(1), WHERE);
    set_reg(vm, 0, X(2), SIZE / PAGE);
    start_at(vm, guest_touches);
    return run_to_done(vm, &exits) && exits == 0;
}

/* Whether the file has what the guest stores in each page: its address. */
static bool has_it(int file)
{
    for (uint64_t n = 0, found; n < SIZE / PAGE; n++)
        if (pread(file, &found, sizeof found, n * PAGE) != sizeof found || found != WHERE + n * PAGE)
            return false;
    return true;
}

void test_file(const char *path)
{
    struct vm *vm = make_vm(1);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (!vm || file == -1 || ftruncate(file, SIZE) == -1)
        return said(false, "a file of %d bytes", SIZE);
    unsigned char *mapped = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    said(mapped != MAP_FAILED && memory(vm, 1, 0, WHERE, SIZE, mapped) == 0, "a slot of a file's memory");
    said(touches(vm) && has_it(file), "the file has what the guest wrote");
    said(msync(mapped, SIZE, MS_SYNC) == 0 && touches(vm) && has_it(file), "and again, when it was written back");
    memset(mapped, 0, SIZE);
    said(msync(mapped, SIZE, MS_SYNC) == 0 && !has_it(file), "zeros are written back");
    said(touches(vm) && has_it(file), "and what the guest writes then is the file's");
    end_vm(vm);

    vm = make_vm(1);
    if (!vm || memory(vm, 1, 0, WHERE, SIZE, mapped) == -1 || !touches(vm))
        return said(false, "another VM with the file");
    said(ftruncate(file, SIZE / 2) == 0, "the file is cut off under the guest");
    set_reg(vm, 0, X(1), WHERE + SIZE / 2);
    set_reg(vm, 0, X(2), 1);
    start_at(vm, guest_touches);
    said(run_once(vm, 0) == -EFAULT, "a store behind its end -> EFAULT");
    end_vm(vm);
    munmap(mapped, SIZE);
    close(file);
}
