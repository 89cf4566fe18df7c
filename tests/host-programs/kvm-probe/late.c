/* Pages that the VMM brings only when somebody asks for them (userfaultfd), and what goes on meanwhile. */
#include "probe.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>

enum { PAGE = 4096, SLOT = 3, LATE = 0x50000000 };

static int follow(unsigned char *pages, size_t size)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {(uintptr_t)pages, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd == -1 || ioctl(fd, UFFDIO_API, &api) == -1 || ioctl(fd, UFFDIO_REGISTER, &range) == -1)
        return -1;
    return fd;
}

static void bring(int fd, unsigned char *pages, size_t size)
{
    unsigned char *content = aligned_alloc(PAGE, size);
    memset(content, 7, size);
    struct uffdio_copy copy = {.dst = (uintptr_t)pages, .src = (uintptr_t)content, .len = size};
    said(ioctl(fd, UFFDIO_COPY, &copy) == 0, "the VMM brings what is asked for");
    free(content);
}

static void *touches(void *vm)
{
    int exits;
    return run_to_done(vm, &exits) ? vm : NULL;
}

static void *asks_for_log(void *arg)
{
    struct vm *vm = arg;
    uint64_t dirty[RAM_SIZE / PAGE / 64] = {0};
    struct kvm_dirty_log log = {.slot = SLOT, .dirty_bitmap = dirty};
    return ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log) == 0 ? vm : NULL;
}

void test_late_pages(void)
{
    struct timespec last;
    pthread_t guest, log;
    void *done = NULL, *asked = NULL;
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    unsigned char *pages = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd = follow(pages, RAM_SIZE);
    said(fd >= 0 && memory(vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES, LATE, RAM_SIZE, pages) == 0, "a slot whose pages come late");
    set_reg(vm, 0, X(1), LATE);
    set_reg(vm, 0, X(2), 1);
    start_at(vm, guest_touches);
    pthread_create(&guest, NULL, touches, vm);
    struct pollfd missed = {.fd = fd, .events = POLLIN};
    said(poll(&missed, 1, 60000) == 1, "a guest waits for one");
    pthread_create(&log, NULL, asks_for_log, vm);
    /* A minute is for a VMM that would be stuck, not for one that is slow. */
    clock_gettime(CLOCK_REALTIME, &last);
    last.tv_sec += 60;
    int late = pthread_timedjoin_np(log, &asked, &last);
    said(!late && asked, "meanwhile who asks for the dirty log has it");
    bring(fd, pages, RAM_SIZE);
    if (late)
        pthread_join(log, NULL);
    pthread_join(guest, &done);
    said(done != NULL, "then the guest goes on");
    said(asks_for_log(vm) != NULL, "the log again");
    end_vm(vm);
    close(fd);
    munmap(pages, RAM_SIZE);
}
