/* Guests that run: the payload, and what the VMM sees of it. */
#include "probe.h"
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>

static const uint64_t pattern = 0x8182838485868788;

/* One access of guest_widths: what the VMM must see. */
static void access_is(struct vm *vm, bool write, unsigned offset, unsigned bytes)
{
    struct kvm_run *run = vm->run[0];
    int reason = run_once(vm, 0);
    bool so = reason == KVM_EXIT_MMIO && run->mmio.phys_addr == NO_RAM + offset && run->mmio.len == bytes && run->mmio.is_write == write;
    if (so && write)
        so = memcmp(run->mmio.data, &pattern, bytes) == 0;
    said(so, "%s of %u bytes at +%#x (exit %d at %#llx, %u bytes)", write ? "store" : "load", bytes, offset, reason,
        (unsigned long long)run->mmio.phys_addr, run->mmio.len);
    if (!write)
        memcpy(run->mmio.data, &pattern, sizeof pattern);
}

static void widths(struct vm *vm)
{
    start_at(vm, guest_widths);
    for (unsigned bytes = 1; bytes <= 8; bytes *= 2)
        access_is(vm, true, bytes, bytes);
    for (unsigned bytes = 1; bytes <= 8; bytes *= 2)
        access_is(vm, false, 0x10 + bytes, bytes);
    access_is(vm, false, 0x20, 1);
    access_is(vm, false, 0x22, 2);
    access_is(vm, false, 0x24, 4);
    access_is(vm, false, 0x28, 1);
    said(run_once(vm, 0) == KVM_EXIT_MMIO && vm->run[0]->mmio.len == 8 && vm->run[0]->mmio.phys_addr == NO_RAM + 0x30, "a store of xzr");
    static const uint64_t loaded[] = {0x88, 0x8788, 0x85868788, 0x8182838485868788, 0xffffffffffffff88, 0xffffffffffff8788,
        0xffffffff85868788, 0xffffff88};
    /* QEMU 10.0's TCG never sets the syndrome's sign bit (SSE): there the kernel's own KVM cannot extend it either. */
    static const uint64_t unextended[] = {0x88, 0x8788, 0x85868788, 0x8182838485868788, 0x88, 0x8788, 0x85868788, 0x88};
    for (int n = 0; n < 8; n++)
        said(result(vm, n) == loaded[n] || result(vm, n) == unextended[n], "load %d gave %#llx", n, (unsigned long long)result(vm, n));
    int exits;
    said(run_to_done(vm, &exits) && exits == 0, "nothing else");
}

/* A load that the VMM answers, at two kinds of address; registers that it writes before the answer, or behind it. */
static void rewritten_loads(struct vm *vm)
{
    static const uint64_t places[] = {NO_RAM + 0x40, 0x50000040}, new = 0x1111222233334484;
    struct kvm_run *run = vm->run[0];
    for (int n = 0; n < 4; n++) {
        bool before = n & 1;
        int exits;
        set_reg(vm, 0, X(1), places[n / 2]);
        start_at(vm, guest_loads);
        said(run_once(vm, 0) == KVM_EXIT_MMIO && run->mmio.phys_addr == places[n / 2] && run->mmio.len == 4, "a load from %#llx", (unsigned long long)places[n / 2]);
        memcpy(run->mmio.data, &pattern, sizeof pattern);
        if (before)
            set_reg(vm, 0, X(0), new), set_reg(vm, 0, CORE(regs.pc), get_reg(vm, 0, CORE(regs.pc)));
        run->immediate_exit = 1;
        ioctl(vm->vcpus[0], KVM_RUN, 0);
        run->immediate_exit = 0;
        said(get_reg(vm, 0, X(0)) == (pattern & UINT32_MAX), "its answer is in the register");
        if (!before)
            set_reg(vm, 0, X(0), new);
        said(run_to_done(vm, &exits) && exits == 0 && result(vm, 0) == (before ? pattern & UINT32_MAX : new),
            "a register that is written %s the answer: %#llx", before ? "before" : "behind", (unsigned long long)result(vm, 0));
    }
}

/* The VMM ends a store in an abort: the guest takes it at the store, whether or not the VMM has looked there before. */
static void aborted_stores(struct vm *vm)
{
    static const uint64_t places[] = {NO_RAM + 0x40, 0x80000000};
    enum { DATA_ABORT = 0x25, EXTERNAL = 0x10 };
    const uint64_t at = GUEST_RAM + (uint64_t)(guest_aborts_at - payload);
    struct kvm_vcpu_events events = {.exception.ext_dabt_pending = 1};
    struct kvm_run *run = vm->run[0];
    for (int n = 0; n < 4; n++) {
        unsigned long long place = places[n / 2];
        int exits;
        set_reg(vm, 0, X(1), place);
        start_at(vm, guest_aborts);
        said(run_once(vm, 0) == KVM_EXIT_MMIO && run->mmio.phys_addr == place && run->mmio.is_write, "a store to %#llx", place);
        if (n & 1)
            said(get_reg(vm, 0, CORE(regs.pc)) == at, "the vCPU is still there");
        WORKS(ioctl(vm->vcpus[0], KVM_SET_VCPU_EVENTS, &events));
        bool done = run_to_done(vm, &exits);
        said(done && exits == 0 && result(vm, 0) == at, "its abort is taken there: %#llx", (unsigned long long)result(vm, 0));
        said(result(vm, 1) >> 26 == DATA_ABORT && (result(vm, 1) & 0x3f) == EXTERNAL, "an external one: %#llx", (unsigned long long)result(vm, 1));
    }
}

static void calls(struct vm *vm)
{
    int exits;
    start_at(vm, guest_calls);
    said(run_to_done(vm, &exits) && exits == 0, "calls of the guest do not reach the VMM");
    said(result(vm, 0) >= 0x2, "PSCI_VERSION says %#llx", (unsigned long long)result(vm, 0));
    said(result(vm, 1) >= 0x10000 && result(vm, 1) < 0x20000, "SMCCC_VERSION says %#llx", (unsigned long long)result(vm, 1));
    said((int32_t)result(vm, 2) == 0, "PSCI_FEATURES knows CPU_ON");
    said((int32_t)result(vm, 3) == -1, "an unknown call is not supported: %#llx", (unsigned long long)result(vm, 3));
    said((result(vm, 4) & 0xff00ffffff) == 0, "MPIDR_EL1 is %#llx", (unsigned long long)result(vm, 4));
    said(result(vm, 5) == 1 << 2, "the guest is at EL1");
}

static void ends(const char *label, uint32_t type, const char *what)
{
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    start_at(vm, label);
    int reason = run_once(vm, 0);
    said(reason == KVM_EXIT_SYSTEM_EVENT && vm->run[0]->system_event.type == type, "%s is a system event (exit %d)", what, reason);
    end_vm(vm);
}

static void interrupted(struct vm *vm, const char *label, const char *what)
{
    start_at(vm, label);
    said(stays_inside(vm), "a signal ends a run %s, with its exit reason", what);
}

static void immediate(struct vm *vm)
{
    start_at(vm, guest_spin);
    vm->run[0]->immediate_exit = 1;
    FAILS(EINTR, ioctl(vm->vcpus[0], KVM_RUN, 0));
    said(get_reg(vm, 0, CORE(regs.pc)) == GUEST_RAM + (uint64_t)(guest_spin - payload), "and no instruction was run");
    vm->run[0]->immediate_exit = 0;
}

/* Loads from and stores to a place that the host gives and takes. */
static void slots(struct vm *vm)
{
    static unsigned char page[4096] __attribute__((aligned(4096)));
    const uint64_t gpa = 0x50000000, moved = 0x58000000, in = 0x1111, out = 0x2222;
    struct kvm_run *run = vm->run[0];
    int exits;
    memcpy(page, &in, sizeof in);
    said(memory(vm, 3, 0, gpa, sizeof page, page) == 0, "a slot while the VM lives");
    set_reg(vm, 0, X(1), gpa);
    set_reg(vm, 0, X(2), out);
    start_at(vm, guest_swap);
    said(run_once(vm, 0) == KVM_EXIT_MMIO && memcmp(run->mmio.data, &in, 8) == 0, "the guest sees what the host wrote");
    said(run_to_done(vm, &exits) && memcmp(page, &out, 8) == 0, "the host sees what the guest wrote");

    said(memory(vm, 3, 0, moved, sizeof page, page) == 0, "the slot moves");
    set_reg(vm, 0, X(1), moved);
    start_at(vm, guest_swap);
    said(run_once(vm, 0) == KVM_EXIT_MMIO && run->mmio.phys_addr == NO_RAM + 0x40 && memcmp(run->mmio.data, &out, 8) == 0,
        "its content with it");
    run_to_done(vm, &exits);
    set_reg(vm, 0, X(1), gpa);
    start_at(vm, guest_swap);
    said(run_once(vm, 0) == KVM_EXIT_MMIO && run->mmio.phys_addr == gpa && !run->mmio.is_write, "nothing is where it was");
    run_to_done(vm, &exits);

    said(memory(vm, 3, 0, 0, 0, NULL) == 0, "the slot goes");
}

/* A slot that is read-only, where memory is, or where flash memory is. */
static void read_only_slot(struct vm *vm, uint64_t gpa)
{
    static unsigned char page[4096] __attribute__((aligned(4096)));
    const uint64_t in = 0x1111, out = 0x2222;
    struct kvm_run *run = vm->run[0];
    int exits;
    memcpy(page, &in, sizeof in);
    said(memory(vm, 3, KVM_MEM_READONLY, gpa, sizeof page, page) == 0, "a slot that is read-only, at %#llx", (unsigned long long)gpa);
    set_reg(vm, 0, X(1), gpa);
    set_reg(vm, 0, X(2), out);
    start_at(vm, guest_swap);
    said(run_once(vm, 0) == KVM_EXIT_MMIO && run->mmio.phys_addr == NO_RAM + 0x40 && memcmp(run->mmio.data, &in, 8) == 0,
        "a load from a read-only slot");
    said(run_once(vm, 0) == KVM_EXIT_MMIO && run->mmio.phys_addr == gpa && run->mmio.is_write, "a store to it goes to the VMM");
    said(run_to_done(vm, &exits) && memcmp(page, &in, 8) == 0, "and nowhere else");
    said(memory(vm, 3, 0, 0, 0, NULL) == 0, "the slot goes");
}

/* A slot whose dirty pages are followed holds a table of the guest's, in which the CPU sets an access flag: the guest writes without a store. */
static void walks_that_write(struct vm *vm)
{
    static uint64_t table[512] __attribute__((aligned(4096)));
    enum { BLOCK = 1, DEVICE = 1 << 2, INNER = 3 << 8, ACCESSED = 1 << 10 };
    const uint64_t gpa = 0x50000000, never_executed = 3ULL << 53;
    /* 39 bits of address by TTBR0_EL1 only, write-back walks, 36 bits of physical ones, HA. */
    const uint64_t tcr = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 1ULL << 32 | 1ULL << 39;
    uint64_t dirty = 0;
    int exits;
    table[0] = BLOCK | DEVICE | ACCESSED | never_executed;
    table[1] = GUEST_RAM | BLOCK | INNER;
    said(memory(vm, 3, KVM_MEM_LOG_DIRTY_PAGES, gpa, sizeof table, table) == 0, "a slot for a table of the guest's");
    set_reg(vm, 0, X(1), gpa);
    set_reg(vm, 0, X(2), tcr);
    start_at(vm, guest_walks);
    said(run_to_done(vm, &exits) && exits == 0, "a guest with its MMU on");
    struct kvm_dirty_log log = {.slot = 3, .dirty_bitmap = &dirty};
    bool asked = ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log) == 0;
    if (result(vm, 0))
        said(asked && table[1] & ACCESSED && dirty == 1, "the access flag that the CPU set is there, its page dirty");
    said(memory(vm, 3, 0, 0, 0, NULL) == 0, "the slot goes");
}

/* Stores that begin in one page and end in the next: of the slot, or behind it, where the VMM has memory that is not the VM's. */
static void across_pages(struct vm *vm)
{
    enum { TABLE = 0x20000, PAGE = 4096 };
    /* Blocks of 1 GiB, each at its own address, normal memory. */
    const uint64_t gpa = 0x0c000000, table[] = {0x701, GUEST_RAM | 0x701}, stored = 0x1122334455667788, nothing = 0;
    unsigned char *pages = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int exits;
    if (pages == MAP_FAILED || memory(vm, 3, 0, gpa, 2 * PAGE, pages) == -1)
        return said(false, "a slot of two pages");
    memcpy(vm->ram + TABLE, table, sizeof table);
    set_reg(vm, 0, X(2), stored);
    set_reg(vm, 0, X(3), GUEST_RAM + TABLE);
    /* Its last page has not been touched yet. */
    set_reg(vm, 0, X(1), gpa + 2 * PAGE - 4);
    start_at(vm, guest_anywhere);
    said(run_to_done(vm, &exits) && exits == 1, "a store across the end of a slot goes to the VMM");
    said(memcmp(pages + 2 * PAGE, &nothing, 8) == 0, "and not to what the VMM has behind the slot's memory");
    set_reg(vm, 0, X(1), gpa + PAGE - 4);
    start_at(vm, guest_anywhere);
    said(run_to_done(vm, &exits) && exits == 0 && memcmp(pages + PAGE - 4, &stored, 8) == 0, "a store across two pages of a slot");
    said(memory(vm, 3, 0, 0, 0, NULL) == 0, "the slot goes");
    munmap(pages, 3 * PAGE);
}

static uint64_t frequency(void)
{
    uint64_t frequency;
    __asm__("mrs %0, cntfrq_el0" : "=r"(frequency));
    return frequency;
}

static void clock_runs(struct vm *vm)
{
    int exits;
    start_at(vm, guest_clock);
    said(run_to_done(vm, &exits), "the guest reads the virtual counter");
    said(result(vm, 1) > result(vm, 0), "it goes forward: %llu", (unsigned long long)(result(vm, 1) - result(vm, 0)));
    said(result(vm, 2) == frequency(), "at the host's frequency");
}

/* KVM_RUN until the guest says that it is done. A signal after `seconds` ends it. */
static bool done_within(struct vm *vm, unsigned seconds)
{
    struct kvm_run *run = vm->run[0];
    struct itimerval late = {.it_value = {.tv_sec = seconds}}, never = {0}, left;
    int result;
    setitimer(ITIMER_REAL, &late, NULL);
    /* Without an interrupt controller in the kernel a run also ends when the timer's output changes. */
    do
        result = ioctl(vm->vcpus[0], KVM_RUN, 0);
    while (result == -1 && errno == EINTR && getitimer(ITIMER_REAL, &left) == 0 && left.it_value.tv_sec + left.it_value.tv_usec > 0);
    setitimer(ITIMER_REAL, &never, NULL);
    return result == 0 && run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == DONE;
}

/* The host's clock may go faster than the counter by which a guest waits: NTP does that, as far as here in a bad hour. */
static void naps(struct vm *vm)
{
    struct timex fast = {.modes = ADJ_TICK, .tick = 11000}, usual = {.modes = ADJ_TICK, .tick = 10000};
    said(adjtimex(&fast) != -1, "the host's clock goes faster by a tenth");
    start_at(vm, guest_naps);
    bool woken = done_within(vm, 5);
    said(woken && result(vm, 1) - result(vm, 0) >= frequency(), "a guest that waits for its timer is woken, and not before");
    said(adjtimex(&usual) != -1, "the host's clock goes as it did");
}

static void undescribed(void)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_ARM_NISV_TO_USER};
    enum { WRITE = 1 << 6, MAINTENANCE = 1 << 8, TRANSLATION = 4, LEVEL = 3 };
    const uint64_t places[] = {NO_RAM + 0x120, 0x50000120};
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    start_at(vm, guest_pair);
    said(run_once(vm, 0) == -ENOSYS, "a load of a pair where no memory is -> ENOSYS");
    WORKS(ioctl(vm->fd, KVM_ENABLE_CAP, &cap));
    for (int n = 0; n < 2; n++) {
        set_reg(vm, 0, X(1), places[n]);
        start_at(vm, guest_pair_at);
        int reason = run_once(vm, 0);
        unsigned long long iss = vm->run[0]->arm_nisv.esr_iss, at = vm->run[0]->arm_nisv.fault_ipa;
        said(reason == KVM_EXIT_ARM_NISV && at == places[n], "the VMM is told where a store of a pair went: %#llx", at);
        said((iss & ~(uint64_t)(MAINTENANCE | LEVEL)) == (WRITE | TRANSLATION), "that it is a store, and what the fault is: %#llx", iss);
    }
    end_vm(vm);
}

/* A wait that a signal has ended is over. */
static void waits(void)
{
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    start_at(vm, guest_waits);
    said(stays_inside(vm), "a signal ends a guest's wait");
    said(done_within(vm, 5), "and the guest goes on behind it");
    end_vm(vm);
}

/* Ticks that found the host's CPUs in its kernel, and in a VM. */
static void ticks(long *system, long *guest)
{
    FILE *stat = fopen("/proc/stat", "r");
    /* "cpu", user, nice, system, idle, iowait, irq, softirq, steal, guest. */
    if (!stat || fscanf(stat, "cpu %*s %*s %ld %*s %*s %*s %*s %*s %ld", system, guest) != 2)
        said(false, "/proc/stat has the CPUs' time");
    if (stat)
        fclose(stat);
}

/* Not by the process's own time: a tick that comes late, as in a machine that is itself emulated, is one, and the time is as it is. */
static void counted(struct vm *vm)
{
    long system, guest, system_before = 0, guest_before = 0;
    start_at(vm, guest_spin);
    ticks(&system_before, &guest_before);
    done_within(vm, 2);
    system = system_before, guest = guest_before;
    ticks(&system, &guest);
    system -= system_before, guest -= guest_before;
    said(guest > system, "the time of a guest that computes is a guest's: %ld, of the kernel's %ld", guest, system);
}

static void *teller(void *arg)
{
    usleep(200000);
    pthread_kill(*(pthread_t *)arg, SIGCHLD);
    return NULL;
}

/* A signal that is blocked, and ignored by default: where KVM_SET_SIGNAL_MASK opens it, it ends a run. */
static void ignored_signal(void)
{
    struct vm *vm = make_vm(1);
    static const uint32_t none_blocked[3] = {8};
    struct itimerval late = {.it_value.tv_sec = 5}, never = {0}, left;
    pthread_t thread, self = pthread_self();
    sigset_t child, pending;
    int result;
    if (!vm)
        return;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &child, NULL);
    WORKS(ioctl(vm->vcpus[0], KVM_SET_SIGNAL_MASK, none_blocked));
    start_at(vm, guest_spin);
    pthread_create(&thread, NULL, teller, &self);
    setitimer(ITIMER_REAL, &late, NULL);
    do {
        result = ioctl(vm->vcpus[0], KVM_RUN, 0);
        sigpending(&pending);
        getitimer(ITIMER_REAL, &left);
    } while (result == -1 && errno == EINTR && !sigismember(&pending, SIGCHLD) && left.it_value.tv_sec + left.it_value.tv_usec > 0);
    setitimer(ITIMER_REAL, &never, NULL);
    said(result == -1 && sigismember(&pending, SIGCHLD), "a signal that is ignored, and blocked outside, ends a run that it is open for");
    pthread_join(thread, NULL);
    pthread_sigmask(SIG_UNBLOCK, &child, NULL);
    end_vm(vm);
}

/* The walk to what a guest stores to comes to where no memory is: the guest's own fault, and its abort. */
static void lost_walk(void)
{
    enum { TABLE = 0x20000, DATA_ABORT = 0x25, EXTERNAL = 0x10, EXTERNAL_IN_WALK = 0x14 };
    const uint64_t nowhere = 0x50000000, at = 0x80000008, table[] = {0x701, GUEST_RAM | 0x701, nowhere | 3};
    struct vm *vm = make_vm(1);
    int exits;
    if (!vm)
        return;
    memcpy(vm->ram + TABLE, table, sizeof table);
    set_reg(vm, 0, X(1), at);
    set_reg(vm, 0, X(3), GUEST_RAM + TABLE);
    start_at(vm, guest_lost);
    bool done = run_to_done(vm, &exits);
    unsigned long long esr = result(vm, 0);
    said(done && exits == 0 && esr >> 26 == DATA_ABORT && result(vm, 1) == at, "a table that is in no memory is an abort in the guest: %#llx", esr);
    said((esr & 0x3f) == EXTERNAL || (esr & 0x3c) == EXTERNAL_IN_WALK, "an external one");
    end_vm(vm);
}

/* What a child may use of the CPUs: a guest that computes never ends a run by itself. */
static void limited(void)
{
    struct timespec used = {0};
    clockid_t clock;
    int status = 0;
    pid_t child = fork(), ended = 0;
    if (child == 0) {
        struct rlimit second = {1, 1};
        setrlimit(RLIMIT_CPU, &second);
        spin();
        _exit(1);
    }
    /* By what it has used, not by a clock. */
    while (!ended && used.tv_sec < 10 && clock_getcpuclockid(child, &clock) == 0) {
        usleep(20000);
        clock_gettime(clock, &used);
        ended = waitpid(child, &status, WNOHANG);
    }
    said(ended == child && WIFSIGNALED(status), "a VMM that may use a second of CPU time ends by a signal");
    if (!ended) {
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
    }
}

static void *second(void *arg)
{
    run_once(arg, 1);
    return NULL;
}

static void smp(void)
{
    struct vm *vm = make_vm(2);
    pthread_t thread;
    int exits;
    if (!vm)
        return;
    pthread_create(&thread, NULL, second, vm);
    start_at(vm, guest_smp);
    said(run_to_done(vm, &exits), "two vCPUs");
    said(result(vm, 0) == 0, "CPU_ON starts the second");
    said(result(vm, 1) == 0x1234, "with its context in x0");
    said((int64_t)result(vm, 3) == -4, "a second CPU_ON finds it on: %lld", (long long)result(vm, 3));
    /* Never joined: it waits in the guest until the process ends or is told to. */
    vm->run[1]->immediate_exit = 1;
    pthread_kill(thread, SIGALRM);
    pthread_detach(thread);
}

/* The line of an interrupt controller outside of the kernel. */
static void interrupts(void)
{
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    struct kvm_run *run = vm->run[0];
    struct kvm_irq_level irq = {.irq = KVM_ARM_IRQ_TYPE_CPU << KVM_ARM_IRQ_TYPE_SHIFT};
    start_at(vm, guest_irq);
    said(run_once(vm, 0) == KVM_EXIT_MMIO && run->mmio.phys_addr == NO_RAM + 0x50, "a guest with interrupts open");
    for (uint32_t round = 1; round <= 3; round++) {
        irq.level = 1;
        said(ioctl(vm->fd, KVM_IRQ_LINE, &irq) == 0, "the line goes up");
        int reason = run_once(vm, 0);
        said(reason == KVM_EXIT_MMIO && run->mmio.phys_addr == NO_RAM + 0x58 && memcmp(run->mmio.data, &round, 4) == 0,
            "interrupt %u arrives (exit %d at %#llx)", round, reason, (unsigned long long)run->mmio.phys_addr);
        irq.level = 0;
        ioctl(vm->fd, KVM_IRQ_LINE, &irq);
    }
    said(stays_inside(vm), "with the line down no more of them");
    end_vm(vm);
}

void test_runs(void)
{
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    int exits;
    widths(vm);
    rewritten_loads(vm);
    aborted_stores(vm);
    calls(vm);
    start_at(vm, guest_keeps);
    said(run_to_done(vm, &exits) && exits == 200 && result(vm, 0) == 200, "registers survive 200 exits: %d", exits);
    slots(vm);
    read_only_slot(vm, 0x50000000);
    read_only_slot(vm, 0x04000000);
    walks_that_write(vm);
    across_pages(vm);
    clock_runs(vm);
    naps(vm);
    immediate(vm);
    counted(vm);
    interrupted(vm, guest_spin, "of a guest that computes");
    interrupted(vm, guest_wfi, "of a guest that waits");
    end_vm(vm);
    ends(guest_off, KVM_SYSTEM_EVENT_SHUTDOWN, "SYSTEM_OFF");
    ends(guest_reset, KVM_SYSTEM_EVENT_RESET, "SYSTEM_RESET");
    undescribed();
    waits();
    ignored_signal();
    lost_walk();
    smp();
    test_power();
    interrupts();
    test_late_pages();
    limited();
}
