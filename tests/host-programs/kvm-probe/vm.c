#include "probe.h"
#include <signal.h>
#include <stdarg.h>
#include <sys/time.h>

int kvm = -1;
size_t run_size;
static int lines, wrong;
/* What was not so first. */
static char first_wrong[160];

void said(bool so, const char *what, ...)
{
    int error = errno;
    char line[160];
    va_list more;
    va_start(more, what);
    vsnprintf(line, sizeof line, what, more);
    va_end(more);
    printf("%s %d - %s", so ? "ok" : "not ok", ++lines, line);
    if (!so && !wrong++)
        strcpy(first_wrong, line);
    if (!so && error)
        printf(" (%s)", strerror(error));
    printf("\n");
    fflush(stdout);
}

int verdict(void)
{
    printf("1..%d\n", lines);
    if (wrong)
        printf("# the first that is not so: %s\n", first_wrong);
    printf("probe: %d of %d are not so\n", wrong, lines);
    return wrong ? 1 : 0;
}

int memory(struct vm *vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, const void *hva)
{
    struct kvm_userspace_memory_region region = {slot, flags, gpa, size, (uintptr_t)hva};
    return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

int init_vcpu(struct vm *vm, int vcpu, uint32_t features)
{
    struct kvm_vcpu_init init;
    if (ioctl(vm->fd, KVM_ARM_PREFERRED_TARGET, &init) == -1)
        return -1;
    memset(init.features, 0, sizeof init.features);
    init.features[0] = features;
    return ioctl(vm->vcpus[vcpu], KVM_ARM_VCPU_INIT, &init);
}

static int fill_vm(struct vm *vm, int vcpus)
{
    if (vm->fd == -1)
        return -1;
    vm->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (vm->ram == MAP_FAILED)
        return -1;
    memcpy(vm->ram, payload, payload_end - payload);
    if (memory(vm, 0, 0, GUEST_RAM, RAM_SIZE, vm->ram) == -1)
        return -1;
    for (int n = 0; n < vcpus; n++) {
        vm->vcpus[n] = ioctl(vm->fd, KVM_CREATE_VCPU, n);
        if (vm->vcpus[n] == -1)
            return -1;
        vm->run[n] = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpus[n], 0);
        if (vm->run[n] == MAP_FAILED || init_vcpu(vm, n, 1 << KVM_ARM_VCPU_PSCI_0_2 | (n != 0) << KVM_ARM_VCPU_POWER_OFF) == -1)
            return -1;
    }
    return 0;
}

struct vm *make_vm(int vcpus)
{
    struct vm *vm = calloc(1, sizeof *vm);
    vm->fd = ioctl(kvm, KVM_CREATE_VM, 0);
    memset(vm->vcpus, -1, sizeof vm->vcpus);
    if (fill_vm(vm, vcpus) == 0)
        return vm;
    said(false, "a VM with %d vCPUs", vcpus);
    end_vm(vm);
    return NULL;
}

void end_vm(struct vm *vm)
{
    for (int n = 0; n < MAX_VCPU_FDS; n++) {
        if (vm->run[n] && vm->run[n] != MAP_FAILED)
            munmap(vm->run[n], run_size);
        if (vm->vcpus[n] != -1)
            close(vm->vcpus[n]);
    }
    if (vm->fd != -1)
        close(vm->fd);
    if (vm->ram && vm->ram != MAP_FAILED)
        munmap(vm->ram, RAM_SIZE);
    free(vm);
}

uint64_t get_reg(struct vm *vm, int vcpu, uint64_t id)
{
    uint64_t value = 0;
    struct kvm_one_reg reg = {id, (uintptr_t)&value};
    if (ioctl(vm->vcpus[vcpu], KVM_GET_ONE_REG, &reg) == -1)
        said(false, "register %#llx can be read", (unsigned long long)id);
    return value;
}

int set_reg(struct vm *vm, int vcpu, uint64_t id, uint64_t value)
{
    struct kvm_one_reg reg = {id, (uintptr_t)&value};
    return ioctl(vm->vcpus[vcpu], KVM_SET_ONE_REG, &reg);
}

void start_at(struct vm *vm, const char *label)
{
    /* What the last exit left to do, such as the step over a store, is done by the next run: before the new place is set. */
    vm->run[0]->immediate_exit = 1;
    ioctl(vm->vcpus[0], KVM_RUN, 0);
    vm->run[0]->immediate_exit = 0;
    if (set_reg(vm, 0, CORE(regs.pc), GUEST_RAM + (uint64_t)(label - payload)) == -1)
        said(false, "the program counter can be set");
}

int run_once(struct vm *vm, int vcpu)
{
    while (ioctl(vm->vcpus[vcpu], KVM_RUN, 0) == -1)
        if (errno != EINTR && errno != EAGAIN)
            return -errno;
    return vm->run[vcpu]->exit_reason;
}

uint64_t result(struct vm *vm, int n) { return ((uint64_t *)(vm->ram + RESULTS - GUEST_RAM))[n]; }

static volatile sig_atomic_t alarms;

static void on_alarm(int signal)
{
    (void)signal;
    alarms++;
}

void catch_alarms(void)
{
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
}

bool stays_inside(struct vm *vm)
{
    /* More than one: the first may come before the run. */
    struct itimerval soon = {{.tv_usec = 100000}, {.tv_usec = 100000}}, never = {0};
    bool inside;
    alarms = 0;
    setitimer(ITIMER_REAL, &soon, NULL);
    /* A run may also end so for what its thread has to do in the kernel. */
    do {
        errno = 0;
        inside = ioctl(vm->vcpus[0], KVM_RUN, 0) == -1 && errno == EINTR;
    } while (inside && !alarms);
    setitimer(ITIMER_REAL, &never, NULL);
    return inside && vm->run[0]->exit_reason == KVM_EXIT_INTR;
}

bool run_to_done(struct vm *vm, int *exits)
{
    struct kvm_run *run = vm->run[0];
    for (*exits = 0; *exits < 100000; ++*exits) {
        int reason = run_once(vm, 0);
        if (reason != KVM_EXIT_MMIO) {
            printf("# exit %d at %#llx\n", reason, (unsigned long long)get_reg(vm, 0, CORE(regs.pc)));
            return false;
        }
        if (run->mmio.phys_addr == DONE)
            return true;
        if (!run->mmio.is_write)
            memset(run->mmio.data, 0, sizeof run->mmio.data);
    }
    return false;
}
