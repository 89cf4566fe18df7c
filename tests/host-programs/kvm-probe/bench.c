/* A machine for the payload of scripts/bench (tests/guests/src/bin/bench.rs), as the mini host gives it: RAM, an interrupt controller
 * in the kernel, and a PL011 here, whose text goes to standard output. */
#include "probe.h"
#include "../mark.h"
#include <pthread.h>
#include <sched.h>

enum {
    VCPUS = 2,
    MEMORY = 17 << 20,
    BLOCK = 2 << 20,
    IMAGE_AT = 0x80000,
    /* From here on memory comes in blocks, but for the last MiB. */
    BLOCKS = 4 << 20,
    GIC_DIST = 0x08000000,
    GIC_CPU = 0x08010000,
    GIC_REDIST = 0x080a0000,
    UART_DATA = 0x09000000,
    UART_FLAGS = 0x09000018,
    UART_BOTH_EMPTY = 0x90,
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void must(int result, const char *what)
{
    if (result == -1)
        die(what);
}

/* The pages that the payload touches one by one are small ones, the blocks that it touches are huge ones. */
static unsigned char *new_memory(void)
{
    unsigned char *all = mmap(NULL, MEMORY + BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        die("memory");
    unsigned char *ram = (unsigned char *)(((uintptr_t)all + BLOCK - 1) / BLOCK * BLOCK);
    must(madvise(ram, MEMORY, MADV_NOHUGEPAGE), "small pages");
    must(madvise(ram + BLOCKS, MEMORY / BLOCK * BLOCK - BLOCKS, MADV_HUGEPAGE), "huge pages");
    return ram;
}

static void load(const char *path, unsigned char *at, size_t room)
{
    FILE *file = fopen(path, "r");
    if (!file)
        die(path);
    size_t size = fread(at, 1, room, file);
    if (size == 0 || size == room) {
        fprintf(stderr, "%s: empty or too large\n", path);
        exit(1);
    }
    fclose(file);
}

static void attribute(int device, uint32_t group, uint64_t attr, uint64_t value, const char *what)
{
    struct kvm_device_attr set = {.group = group, .attr = attr, .addr = (uintptr_t)&value};
    must(ioctl(device, KVM_SET_DEVICE_ATTR, &set), what);
}

static void make_gic(struct vm *vm, bool v3)
{
    struct kvm_create_device device = {.type = v3 ? KVM_DEV_TYPE_ARM_VGIC_V3 : KVM_DEV_TYPE_ARM_VGIC_V2};
    must(ioctl(vm->fd, KVM_CREATE_DEVICE, &device), "an interrupt controller");
    uint32_t group = KVM_DEV_ARM_VGIC_GRP_ADDR;
    attribute(device.fd, group, v3 ? KVM_VGIC_V3_ADDR_TYPE_DIST : KVM_VGIC_V2_ADDR_TYPE_DIST, GIC_DIST, "its distributor");
    if (v3)
        attribute(device.fd, group, KVM_VGIC_V3_ADDR_TYPE_REDIST, GIC_REDIST, "its redistributors");
    else
        attribute(device.fd, group, KVM_VGIC_V2_ADDR_TYPE_CPU, GIC_CPU, "its CPU interface");
    attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0, "its start");
}

static void make_machine(struct vm *vm, const char *image, const char *tree, bool v3, bool protected)
{
    vm->fd = ioctl(kvm, KVM_CREATE_VM, protected ? 1UL << 31 : 0UL);
    must(vm->fd, "a VM");
    vm->ram = new_memory();
    load(tree, vm->ram, IMAGE_AT);
    load(image, vm->ram + IMAGE_AT, BLOCKS - IMAGE_AT);
    must(memory(vm, 0, 0, GUEST_RAM, MEMORY, vm->ram), "its memory");
    for (int n = 0; n < VCPUS; n++) {
        vm->vcpus[n] = ioctl(vm->fd, KVM_CREATE_VCPU, n);
        must(vm->vcpus[n], "a vCPU");
        vm->run[n] = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpus[n], 0);
        if (vm->run[n] == MAP_FAILED)
            die("a vCPU's structure");
        must(init_vcpu(vm, n, 1 << KVM_ARM_VCPU_PSCI_0_2 | (n != 0) << KVM_ARM_VCPU_POWER_OFF), "a vCPU's start");
    }
    make_gic(vm, v3);
    must(set_reg(vm, 0, CORE(regs.pc), GUEST_RAM + IMAGE_AT), "the program counter");
    must(set_reg(vm, 0, X(0), GUEST_RAM), "the device tree's address");
}

/* One access to the PL011; there is nothing else. */
static void serve(struct kvm_run *run)
{
    uint32_t value = run->mmio.phys_addr == UART_FLAGS ? UART_BOTH_EMPTY : 0;
    if (!run->mmio.is_write)
        memcpy(run->mmio.data, &value, sizeof value);
    else if (run->mmio.phys_addr == UART_DATA)
        putchar(run->mmio.data[0]);
}

static struct vm machine;

/* Each vCPU stays on a CPU of its own. The first one to see the end ends all. */
static void *run_vcpu(void *number)
{
    int n = (int)(intptr_t)number, reason;
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(n, &cpus);
    must(sched_setaffinity(0, sizeof cpus, &cpus), "a CPU for each vCPU");
    while ((reason = run_once(&machine, n)) == KVM_EXIT_MMIO)
        serve(machine.run[n]);
    bool off = reason == KVM_EXIT_SYSTEM_EVENT && machine.run[n]->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN;
    printf("probe: vCPU %d ends with exit %d\n", n, reason);
    exit(off ? 0 : 1);
}

int bench(const char *image, const char *tree, const char *gic, bool protected)
{
    pthread_t thread;
    /* What was measured before ends here. */
    if (protected)
        MARK(101);
    else
        MARK(100);
    printf("probe: %s VM, GICv%s\n", protected ? "a protected" : "an ordinary", gic);
    make_machine(&machine, image, tree, !strcmp(gic, "3"), protected);
    if (pthread_create(&thread, NULL, run_vcpu, (void *)1) != 0)
        die("a thread");
    run_vcpu(0);
    return 1;
}

int mark(const char *what)
{
    if (!strcmp(what, "before"))
        MARK(102);
    else if (!strcmp(what, "after"))
        MARK(103);
    else
        return 2;
    return 0;
}
