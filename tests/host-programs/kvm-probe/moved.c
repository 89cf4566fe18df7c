/* A guest that uses its memory all the while, and a host that moves it about: pages become blocks, blocks pages, a child gets copies, equal pages become one; or that
 * has little memory, and swaps. */
#include "probe.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif

enum { PAGE = 4096, BLOCK = 2 << 20, SIZE = 2 * BLOCK, PAGES = SIZE / PAGE, WHERE = 0x48000000, PATIENCE = 600 };

/* What the guest and the VMM tell each other: the guest's page for results. */
struct told {
    volatile uint64_t stop, rounds, wrong_at;
};

static struct told *told_by(struct vm *vm) { return (struct told *)(vm->ram + (RESULTS - GUEST_RAM)); }

static void *runs(void *vm)
{
    int exits;
    return run_to_done(vm, &exits) && exits == 0 ? vm : NULL;
}

static void begin(struct vm *vm, pthread_t *thread)
{
    told_by(vm)->stop = 0;
    set_reg(vm, 0, X(1), WHERE);
    set_reg(vm, 0, X(2), PAGES);
    set_reg(vm, 0, X(3), told_by(vm)->rounds);
    start_at(vm, guest_counts);
    pthread_create(thread, NULL, runs, vm);
}

/* The guest comes by all its pages twice, or finds a wrong one. */
static void goes_on(struct vm *vm, const char *after)
{
    uint64_t from = told_by(vm)->rounds;
    for (int n = 0; n < PATIENCE && told_by(vm)->rounds < from + 2 && !told_by(vm)->wrong_at; n++)
        usleep(100000);
    said(told_by(vm)->rounds >= from + 2 && !told_by(vm)->wrong_at, "the guest goes on %s", after);
}

static bool ends(struct vm *vm, pthread_t thread, const unsigned char *memory)
{
    void *done;
    told_by(vm)->stop = 1;
    pthread_join(thread, &done);
    for (int n = 0; n < PAGES; n++)
        if (*(volatile uint64_t *)(memory + n * PAGE) != told_by(vm)->rounds)
            return false;
    return done && !told_by(vm)->wrong_at;
}

/* An address's entry of /proc/self/pagemap, as root sees it. */
static uint64_t entry_of(const unsigned char *at)
{
    uint64_t entry = 0;
    int file = open("/proc/self/pagemap", O_RDONLY);
    if (pread(file, &entry, sizeof entry, (uintptr_t)at / PAGE * sizeof entry) != sizeof entry)
        entry = 0;
    close(file);
    return entry;
}

/* Its page frame; 0: none. */
static uint64_t frame_of(const unsigned char *at)
{
    uint64_t entry = entry_of(at);
    return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

/* How many of the pages are in swap. */
static int swapped_of(const unsigned char *memory)
{
    int count = 0;
    for (int n = 0; n < PAGES; n++)
        count += entry_of(memory + n * PAGE) >> 62 & 1;
    return count;
}

static bool write_to(const char *path, const char *text)
{
    int file = open(path, O_WRONLY);
    bool good = file != -1 && write(file, text, strlen(text)) == (ssize_t)strlen(text);
    close(file);
    return good;
}

static long number_in(const char *path)
{
    char text[32] = "";
    int file = open(path, O_RDONLY);
    if (file == -1 || read(file, text, sizeof text - 1) <= 0)
        text[0] = 0;
    close(file);
    return atol(text);
}

/* A fault of the guest's may hold a page just then. */
static bool collapses(unsigned char *memory)
{
    for (int n = 0; n < PATIENCE; n++) {
        if (madvise(memory, SIZE, MADV_COLLAPSE) == 0)
            return true;
        if (errno != EAGAIN && errno != EBUSY)
            return false;
    }
    return false;
}

static void become_blocks(struct vm *vm, unsigned char *memory)
{
    uint64_t before = frame_of(memory), after;
    bool done = madvise(memory, SIZE, MADV_HUGEPAGE) == 0 && collapses(memory);
    after = frame_of(memory);
    said(done && before && after && after != before && after % (BLOCK / PAGE) == 0, "its pages become blocks: frame %#llx, then %#llx",
        (unsigned long long)before, (unsigned long long)after);
    goes_on(vm, "in blocks");
}

/* The kernel is told that it should rather not use these pages' frames. */
static void become_others(struct vm *vm, unsigned char *memory)
{
    enum { SOME = 8 };
    int moved = 0;
    said(madvise(memory + PAGE, PAGE, MADV_NOHUGEPAGE) == 0, "a block becomes pages");
    goes_on(vm, "in pages");
    for (int n = 0; n < SOME; n++) {
        unsigned char *page = memory + n * PAGE;
        uint64_t before = frame_of(page);
        for (int again = 0; again < PATIENCE && madvise(page, PAGE, MADV_SOFT_OFFLINE) == -1; again++)
            ;
        moved += before && frame_of(page) && frame_of(page) != before;
    }
    said(moved == SOME, "%d of %d pages move", moved, SOME);
    goes_on(vm, "where they are now");
}

/* A child's memory stays as it was, whatever the guest writes meanwhile; and it may write itself. */
static int watches(unsigned char *memory)
{
    unsigned char *before = malloc(SIZE);
    memcpy(before, memory, SIZE);
    usleep(50000);
    int changed = memcmp(before, memory, SIZE) != 0;
    memset(memory, 0x55, SIZE);
    return changed;
}

static void are_copied(struct vm *vm, unsigned char *memory)
{
    int good = 0, status;
    for (int n = 0; n < 10; n++) {
        pid_t child = fork();
        if (child == 0)
            _exit(watches(memory));
        good += waitpid(child, &status, 0) == child && status == 0;
    }
    said(good == 10, "%d of ten children have copies of their own", good);
    goes_on(vm, "with what is its own");
}

/* While the guest does not run: what it is lent becomes one page, because all its pages are equal. */
static void become_one(const unsigned char *memory)
{
#define KSM "/sys/kernel/mm/ksm/"
    bool set = write_to(KSM "pages_to_scan", "10000") && write_to(KSM "run", "1");
    set &= madvise((void *)memory, SIZE, MADV_MERGEABLE) == 0;
    for (int n = 0; n < PATIENCE && number_in(KSM "pages_sharing") < PAGES / 2; n++)
        usleep(100000);
    long sharing = number_in(KSM "pages_sharing");
    write_to(KSM "run", "0");
    said(set && sharing >= PAGES / 2, "%ld of its %d pages are others' again", sharing, PAGES);
}

/* A VM with a slot of small pages that the guest is to use. NULL: it said why. */
static struct vm *with_pages(unsigned char **pages)
{
    struct vm *vm = make_vm(1);
    unsigned char *space = mmap(NULL, SIZE + BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *pages = space + -(uintptr_t)space % BLOCK;
    bool made = vm && space != MAP_FAILED && madvise(*pages, SIZE, MADV_NOHUGEPAGE) == 0 && memory(vm, 1, 0, WHERE, SIZE, *pages) == 0;
    said(made, "a slot of small pages");
    return made ? vm : NULL;
}

/* With what is written followed: a page that was written, taken back, and read, is written again. */
static void followed(void)
{
    int exits, status;
    struct vm *vm = make_vm(1);
    uint64_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!vm || page == MAP_FAILED || memory(vm, 1, KVM_MEM_LOG_DIRTY_PAGES, WHERE, PAGE, page) == -1)
        return said(false, "a slot that is followed");
    for (uint64_t value = 1; value <= 3; value++) {
        /* The child's copy of the VMM's memory makes this come back from the VM. */
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        waitpid(child, &status, 0);
        set_reg(vm, 0, X(1), WHERE);
        set_reg(vm, 0, X(2), value);
        start_at(vm, guest_swap);
        said(run_to_done(vm, &exits) && exits == 2 && *page == value, "a page that is followed is written, time %d", (int)value);
    }
    end_vm(vm);
    munmap(page, PAGE);
}

/* Memory that nobody has written is one page of zeroes, which can be lent 255 times only. */
static void read_only(void)
{
    int exits;
    struct vm *vm = make_vm(1);
    void *zeroes = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!vm || zeroes == MAP_FAILED || madvise(zeroes, BLOCK, MADV_NOHUGEPAGE) || memory(vm, 1, KVM_MEM_READONLY, WHERE, BLOCK, zeroes) == -1)
        return said(false, "a read-only slot");
    set_reg(vm, 0, X(1), WHERE);
    set_reg(vm, 0, X(2), BLOCK / PAGE);
    start_at(vm, guest_looks);
    said(run_to_done(vm, &exits) && exits == 0, "the guest reads %d pages of zeroes that nobody wrote", BLOCK / PAGE);
    end_vm(vm);
    munmap(zeroes, BLOCK);
}

static volatile sig_atomic_t lost;
static void *volatile lost_at;

static void on_bus_error(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    lost = info->si_code == BUS_MCEERR_AR ? 1 : 2;
    lost_at = info->si_addr;
}

/* The machine loses a page of the guest's: the VMM is told which. */
static void lost_page(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO}, before;
    struct vm *vm = make_vm(1);
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!vm || page == MAP_FAILED || memory(vm, 1, 0, WHERE, PAGE, page) == -1)
        return said(false, "a slot of a page");
    page[0] = 1;
    sigaction(SIGBUS, &action, &before);
    said(madvise(page, PAGE, MADV_HWPOISON) == 0, "a page is lost");
    set_reg(vm, 0, X(1), WHERE);
    set_reg(vm, 0, X(2), 1);
    start_at(vm, guest_touches);
    bool ended = ioctl(vm->vcpus[0], KVM_RUN, 0) == -1 && errno == EINTR;
    said(ended && lost == 1 && lost_at == page, "the guest's touch is the VMM's SIGBUS there");
    sigaction(SIGBUS, &before, NULL);
    end_vm(vm);
}

void test_moved(void)
{
    pthread_t thread;
    unsigned char *pages;
    struct vm *vm = with_pages(&pages);
    if (!vm)
        return;
    begin(vm, &thread);
    goes_on(vm, "with pages as they come");
    become_blocks(vm, pages);
    become_others(vm, pages);
    are_copied(vm, pages);
    said(ends(vm, thread, pages), "each page has what the guest wrote last");
    become_one(pages);
    begin(vm, &thread);
    goes_on(vm, "from what it wrote");
    said(ends(vm, thread, pages), "each page has what the guest wrote last, again");
    end_vm(vm);
    followed();
    read_only();
    lost_page();
}

enum { COLD = 0x50000000 };

/* The guest writes into each page of another slot, and leaves it alone then. What it wrote: the page's address. */
static const unsigned char *left_alone(struct vm *vm)
{
    int exits;
    unsigned char *cold = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool made = cold != MAP_FAILED && madvise(cold, SIZE, MADV_NOHUGEPAGE) == 0 && memory(vm, 2, 0, COLD, SIZE, cold) == 0;
    set_reg(vm, 0, X(1), COLD);
    set_reg(vm, 0, X(2), PAGES);
    start_at(vm, guest_touches);
    said(made && run_to_done(vm, &exits) && exits == 0, "the guest writes %d pages that it does not need for long", PAGES);
    return cold;
}

static bool has_all(const unsigned char *cold)
{
    for (uint64_t n = 0; n < PAGES; n++)
        if (*(volatile uint64_t *)(cold + n * PAGE) != COLD + n * PAGE)
            return false;
    return true;
}

/* There is swap, and `reclaim` is memory.reclaim of this program's own control group. */
void test_swapped(const char *reclaim)
{
    pthread_t thread;
    unsigned char *pages;
    struct vm *vm = with_pages(&pages);
    if (!vm)
        return;
    const unsigned char *cold = left_alone(vm);
    begin(vm, &thread);
    goes_on(vm, "with other pages");
    said(ends(vm, thread, pages), "each page has what the guest wrote");
    /* What was used of late, Linux 6.1 does not give up at once. */
    for (int n = 0; n < PATIENCE && swapped_of(pages) < PAGES / 2; n++)
        if (madvise(pages, SIZE, MADV_PAGEOUT) == -1)
            break;
    said(swapped_of(pages) >= PAGES / 2, "the VMM gives them up: %d pages are swapped", swapped_of(pages));
    begin(vm, &thread);
    goes_on(vm, "with what comes back from the disk");
    for (int n = 0; n < PATIENCE && swapped_of(cold) < PAGES / 2; n++)
        write_to(reclaim, "1M");
    said(swapped_of(cold) >= PAGES / 2, "where memory is short %d of the others are swapped", swapped_of(cold));
    goes_on(vm, "meanwhile");
    said(ends(vm, thread, pages) && has_all(cold), "each page has what the guest wrote last");
    end_vm(vm);
}
