/* VMs that come and go, also with their process; and random calls. */
#include "probe.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

long numbers(const char *path, const char *format)
{
    char text[256];
    long sum = 0, number;
    FILE *file = fopen(path, "r");
    while (file && fgets(text, sizeof text, file))
        if (sscanf(text, format, &number) == 1)
            sum += number;
    if (file)
        fclose(file);
    return sum;
}

/* MemAvailable in KiB, with what the kernel can drop, and what each CPU keeps for its next request, which is no part of it. */
static long available(void)
{
    sync();
    FILE *file = fopen("/proc/sys/vm/drop_caches", "w");
    if (file) {
        fputs("3", file);
        fclose(file);
    }
    return numbers("/proc/meminfo", "MemAvailable: %ld") + 4 * numbers("/proc/zoneinfo", " count: %ld");
}

/* What the kernel gives back late is waited for a while: the best of some measurements. */
long settled(void)
{
    long best = available();
    for (int n = 0; n < 5; n++) {
        usleep(200000);
        long now = available();
        best = now > best ? now : best;
    }
    return best;
}

/* Rounds of work are leaks if each costs a page or more. */
void no_leak(int rounds, long before, const char *what)
{
    long lost = before - settled(), allowed = 2048 + 2L * rounds;
    said(before > 0 && lost < allowed, "%d times %s: %ld KiB lost, %ld allowed", rounds, what, lost, allowed);
}

static void one_life(void)
{
    int exits;
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    start_at(vm, guest_calls);
    if (!run_to_done(vm, &exits))
        said(false, "a VM of many runs");
    end_vm(vm);
}

void spin(void)
{
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    start_at(vm, guest_spin);
    said(stays_inside(vm), "a guest computes");
    int reason = run_once(vm, 0);
    said(false, "it does so for ever (exit %d)", reason);
}

/* A child with a VM that computes, ended at a moment that the seed decides. */
static void killed_child(unsigned seed)
{
    pid_t child = fork();
    if (child == 0) {
        struct vm *vm = make_vm(1);
        if (!vm)
            _exit(1);
        start_at(vm, guest_spin);
        run_once(vm, 0);
        _exit(1);
    }
    struct timespec moment = {.tv_nsec = (seed * 2654435761u >> 7) % 30000000};
    nanosleep(&moment, NULL);
    kill(child, SIGKILL);
    int status;
    said(waitpid(child, &status, 0) == child && WIFSIGNALED(status), "VMM %u is killed after %ld us", seed, moment.tv_nsec / 1000);
}

enum { FAR = 0x48000000, MUCH = 64 << 20 };

/* A VMM whose guest has much memory, ends. Its child, which the memory is not for, has the VM's files and tells its number. */
static void ends_with_a_child(int tell)
{
    int exits;
    struct vm *vm = make_vm(1);
    void *much = mmap(NULL, MUCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!vm || much == MAP_FAILED || madvise(much, MUCH, MADV_DONTFORK) || memory(vm, 1, 0, FAR, MUCH, much) == -1)
        _exit(1);
    set_reg(vm, 0, X(1), FAR);
    set_reg(vm, 0, X(2), MUCH / 4096);
    start_at(vm, guest_touches);
    if (!run_to_done(vm, &exits) || exits)
        _exit(2);
    pid_t child = fork();
    while (child == 0)
        pause();
    _exit(write(tell, &child, sizeof child) == sizeof child ? 0 : 3);
}

static void left_to_a_child(void)
{
    int ends[2], status = -1;
    pid_t child = 0;
    long before = settled();
    if (pipe(ends) == -1)
        return said(false, "a pipe");
    pid_t parent = fork();
    if (parent == 0)
        ends_with_a_child(ends[1]);
    waitpid(parent, &status, 0);
    said(status == 0 && read(ends[0], &child, sizeof child) == sizeof child, "a VMM ends, and its child has the VM's files");
    long lost = before - settled();
    said(lost < (MUCH >> 10) / 4, "the VM's memory is free: %ld KiB lost of %d", lost, MUCH >> 10);
    if (child > 0)
        kill(child, SIGKILL);
    close(ends[0]);
    close(ends[1]);
}

static volatile bool shaking;

static void *shake(void *ram)
{
    /* A fault that the memory is taken away from starts anew: there is time for one between. */
    while (shaking) {
        madvise((unsigned char *)ram + RAM_SIZE / 2, RAM_SIZE / 2, MADV_DONTNEED);
        usleep(100);
    }
    return NULL;
}

/* How often the driver had to hold what it could not take back just then; -1: the kernel's own KVM never has to. */
static long holds(void)
{
    if (access("/sys/kernel/debug/corevisor_kvm/vms", R_OK) == -1)
        return -1;
    return numbers("/sys/kernel/debug/corevisor_kvm/vms", "vm %*d: ordinary, %*d bits, %*d pages lent, held %ld times");
}

/* The VMM takes memory away all the time, and the VM switches itself off and begins anew again and again, so that the one meets the other's end. */
static void off_while_shaken(int rounds)
{
    struct vm *vm = make_vm(1);
    pthread_t thread;
    int exits, done = 0;
    if (!vm)
        return;
    shaking = true;
    pthread_create(&thread, NULL, shake, vm->ram);
    for (int n = 0; n < rounds; n++) {
        init_vcpu(vm, 0, 1 << KVM_ARM_VCPU_PSCI_0_2);
        set_reg(vm, 0, X(1), GUEST_RAM + RAM_SIZE / 2);
        set_reg(vm, 0, X(2), 64);
        start_at(vm, guest_touches);
        if (!run_to_done(vm, &exits))
            break;
        start_at(vm, guest_off);
        done += run_once(vm, 0) == KVM_EXIT_SYSTEM_EVENT;
    }
    shaking = false;
    pthread_join(thread, NULL);
    said(done == rounds, "%d of %d times a VM is off and begins anew while its memory is taken away", done, rounds);
    said(holds() != 0, "what could not be taken back then was held, %ld times", holds());
    end_vm(vm);
}

void test_lifecycle(int rounds)
{
    for (int n = 0; n < 20; n++)
        one_life();
    long before = settled();
    for (int n = 0; n < rounds; n++)
        one_life();
    no_leak(rounds, before, "a VM that lives");
    for (unsigned n = 0; n < 2; n++)
        killed_child(n);
    before = settled();
    for (int n = 0; n < rounds / 4; n++)
        killed_child(n);
    no_leak(rounds / 4, before, "a VMM that is killed");
    left_to_a_child();
    before = settled();
    off_while_shaken(rounds / 5);
    no_leak(rounds / 5, before, "a VM is off while its memory is taken away");
    one_life();
}

/* xorshift: the same calls for the same seed. */
static uint64_t state;
void seed_chance(unsigned seed)
{
    state = 0x9e3779b97f4a7c15ULL ^ seed;
    for (int n = 0; n < 10; n++)
        chance();
}

uint64_t chance(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t odd(void)
{
    static const uint64_t values[] = {0, 1, 2, 3, 5, 7, 8, 0xfff, 0x1000, 0x10000, GUEST_RAM, GUEST_RAM + 0x1000, RAM_SIZE, NO_RAM, 0x08000000, 0x80a0000,
        0x7fffffff, 0x80000000, 0xffffffff, 1ULL << 32, 1ULL << 40, 1ULL << 48, 1ULL << 63, -1ULL, -4096ULL};
    return chance() % 3 ? values[chance() % (sizeof values / sizeof *values)] : chance();
}

static const unsigned long calls[] = {KVM_CREATE_VM, KVM_CHECK_EXTENSION, KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION, KVM_RUN, KVM_GET_ONE_REG,
    KVM_SET_ONE_REG, KVM_GET_REG_LIST, KVM_ARM_VCPU_INIT, KVM_ARM_PREFERRED_TARGET, KVM_GET_MP_STATE, KVM_SET_MP_STATE, KVM_IRQ_LINE,
    KVM_CREATE_DEVICE, KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_IOEVENTFD, KVM_IRQFD, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI,
    KVM_ENABLE_CAP, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, KVM_SET_SIGNAL_MASK, KVM_SET_GUEST_DEBUG, KVM_CREATE_IRQCHIP, KVM_GET_DIRTY_LOG,
    KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE, KVM_ARM_SET_DEVICE_ADDR, KVM_REGISTER_COALESCED_MMIO, KVM_GET_STATS_FD};

/* Calls for devices that were answered well, of all children. */
static struct answers {
    atomic_uint made, asked;
} *answers;

/* What a device is made or asked by, as it should be. */
static void for_device(unsigned long call, uint64_t *words)
{
    static const uint32_t types[] = {KVM_DEV_TYPE_ARM_VGIC_V2, KVM_DEV_TYPE_ARM_VGIC_V3, KVM_DEV_TYPE_ARM_VGIC_ITS};
    struct kvm_create_device device = {.type = types[chance() % 3], .fd = -1, .flags = chance() % 8 == 0};
    struct kvm_device_attr attr = {.group = chance() % (chance() % 2 ? 10 : 5), .attr = chance() % 8, .addr = (uintptr_t)(words + 100)};
    /* A register: its place, now and then in the second page of 64 KiB, and now and then another vCPU's. */
    if (chance() % 2)
        attr.attr = (chance() & 0xffc) | (chance() % 4 ? 0 : 0x10000) | (chance() % 4 ? 0 : odd() << 32);
    if (call == KVM_CREATE_DEVICE)
        memcpy(words, &device, sizeof device);
    else
        memcpy(words, &attr, sizeof attr);
}

static bool asks_device(unsigned long call) { return call == KVM_SET_DEVICE_ATTR || call == KVM_GET_DEVICE_ATTR || call == KVM_HAS_DEVICE_ATTR; }

/* A structure whose words are odd, addresses among them good ones now and then. */
static void *structure(unsigned long call, unsigned char *ram)
{
    /* A list of registers is longer than what it is asked by. */
    static uint64_t words[1024];
    for (size_t n = 0; n < 128; n++)
        words[n] = chance() % 4 ? odd() : (uintptr_t)ram + (chance() & 0xfff);
    if ((call == KVM_CREATE_DEVICE || asks_device(call)) && chance() % 4) {
        for_device(call, words);
    } else if (chance() % 2) {
        struct kvm_userspace_memory_region *region = (void *)words;
        region->slot = chance() % 6;
        region->flags = chance() % 4 ? 0 : chance() % 4;
        region->guest_phys_addr = chance() % 4 ? GUEST_RAM + (chance() % 1024) * 4096 : odd();
        region->memory_size = chance() % 4 ? (chance() % 64) * 4096 : odd();
        region->userspace_addr = chance() % 4 ? (uintptr_t)ram + (chance() % 256) * 4096 : odd();
    }
    return words;
}

static void random_calls(unsigned seed)
{
    static const struct itimerval often = {.it_interval.tv_usec = 20000, .it_value.tv_usec = 20000};
    int fds[64], count = 0, device = -1;
    seed_chance(seed);
    struct vm *vm = make_vm(1);
    if (!vm)
        _exit(1);
    fds[count++] = kvm;
    fds[count++] = vm->fd;
    fds[count++] = vm->vcpus[0];
    if (chance() % 2 && with_gic(vm, &device)) {
        answers->made++;
        fds[count++] = device;
    }
    start_at(vm, guest_calls);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int n = 0; n < 400; n++) {
        unsigned long call = calls[chance() % (sizeof calls / sizeof *calls)];
        int fd = fds[chance() % count];
        if (chance() % 3 == 0)
            fd = call == KVM_RUN || call == KVM_GET_ONE_REG || call == KVM_SET_ONE_REG ? vm->vcpus[0] : vm->fd;
        if (asks_device(call) && device >= 0 && chance() % 3)
            fd = device;
        vm->run[0]->immediate_exit = chance() % 2;
        struct kvm_create_device *words = structure(call, vm->ram);
        void *argument = chance() % 8 ? words : (void *)odd();
        if (call == KVM_RUN && chance() % 4)
            argument = NULL;
        int got = ioctl(fd, call, argument);
        answers->asked += got == 0 && fd == device && asks_device(call);
        if (got == 0 && call == KVM_CREATE_DEVICE && argument == words && !words->flags) {
            answers->made++;
            device = got = words->fd;
        }
        if (got > 2 && count < 64 && (call == KVM_CREATE_VM || call == KVM_CREATE_VCPU || call == KVM_CREATE_DEVICE))
            fds[count++] = got;
    }
}

/* A run that does not end by itself is ended after 20 ms, and a child that does not (it may block the signal) after 5 s. Whether it ended well. */
static bool child_of_random_calls(unsigned seed)
{
    int status, waited = 0;
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stdout))
            _exit(1);
        random_calls(seed);
        _exit(0);
    }
    while (waitpid(child, &status, WNOHANG) == 0) {
        usleep(5000);
        if (++waited == 1000)
            kill(child, SIGKILL);
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void fuzz(unsigned seed, unsigned rounds)
{
    unsigned well = 0;
    answers = mmap(NULL, sizeof *answers, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (answers == MAP_FAILED)
        return said(false, "a page for all");
    for (unsigned n = 0; n < rounds; n++)
        well += child_of_random_calls(seed + n);
    said(well >= rounds / 2, "%u of %u rounds of 400 random calls from seed %u came to their end", well, rounds, seed);
    said(answers->made >= rounds / 4, "%u devices are made by them", answers->made);
    said(answers->asked >= rounds / 2, "%u times an attribute of a device is there, told, or taken", answers->asked);
    one_life();
    int exits;
    struct vm *vm = make_vm(1);
    if (vm) {
        start_at(vm, guest_keeps);
        said(run_to_done(vm, &exits) && exits == 200, "a VM lives afterwards");
        end_vm(vm);
    }
}
