/* Interrupts that come by eventfds, with an interrupt controller in the kernel; stores that end in eventfds. */
#include "probe.h"
#include <pthread.h>
#include <sys/eventfd.h>

enum { BY_EDGE = 40, BY_LEVEL = 41, FIRST_SPI = 32, READY = NO_RAM + 0x50, BELL = NO_RAM + 0x60, ANY_BELL = NO_RAM + 0x68, TAKEN = NO_RAM + 0x70, ENDED = NO_RAM + 0x78 };

int set_attribute(int fd, uint32_t group, uint64_t number, uint64_t value)
{
    struct kvm_device_attr attr = {.group = group, .attr = number, .addr = (uintptr_t)&value};
    return ioctl(fd, KVM_SET_DEVICE_ATTR, &attr);
}

int with_gic(struct vm *vm, int *fd)
{
    struct kvm_create_device device = {.type = KVM_DEV_TYPE_ARM_VGIC_V3};
    int version = 3, error;
    if (ioctl(vm->fd, KVM_CREATE_DEVICE, &device) == -1) {
        version = 2;
        device.type = KVM_DEV_TYPE_ARM_VGIC_V2;
        if (ioctl(vm->fd, KVM_CREATE_DEVICE, &device) == -1) {
            said(false, "an interrupt controller in the kernel");
            return 0;
        }
    }
    error = set_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, version == 3 ? KVM_VGIC_V3_ADDR_TYPE_DIST : KVM_VGIC_V2_ADDR_TYPE_DIST, 0x08000000);
    if (version == 3)
        error |= set_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, 0x080a0000);
    else
        error |= set_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V2_ADDR_TYPE_CPU, 0x08010000);
    error |= set_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0);
    said(error == 0, "a GICv%d in the kernel", version);
    *fd = device.fd;
    return version;
}

static int irqfd(struct vm *vm, int fd, uint32_t gsi, uint32_t flags, int resample)
{
    struct kvm_irqfd args = {.fd = fd, .gsi = gsi, .flags = flags, .resamplefd = resample};
    return ioctl(vm->fd, KVM_IRQFD, &args);
}

static void ring(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) != sizeof one)
        said(false, "the eventfd can be written");
}

/* How often it was rung since this was asked last. */
static uint64_t rings(int fd)
{
    uint64_t count = 0;
    return read(fd, &count, sizeof count) == sizeof count ? count : 0;
}

static bool exits_at(struct vm *vm, uint64_t address, uint32_t value)
{
    int reason = run_once(vm, 0);
    struct kvm_run *run = vm->run[0];
    uint32_t data;
    memcpy(&data, run->mmio.data, sizeof data);
    if (reason == KVM_EXIT_MMIO && run->mmio.phys_addr == address && data == value)
        return true;
    printf("# exit %d at %#llx with %u\n", reason, (unsigned long long)run->mmio.phys_addr, data);
    return false;
}

static bool interrupted_by(struct vm *vm, uint32_t number) { return exits_at(vm, TAKEN, number) && exits_at(vm, ENDED, number); }

static void *ring_later(void *fd)
{
    usleep(50000);
    ring(*(int *)fd);
    return NULL;
}

static void by_edge(struct vm *vm, int fd)
{
    WORKS(irqfd(vm, fd, BY_EDGE - FIRST_SPI, 0, -1));
    FAILS(EBUSY, irqfd(vm, fd, BY_EDGE - FIRST_SPI, 0, -1));
    said(stays_inside(vm), "nothing comes before the eventfd is written");
    ring(fd);
    said(interrupted_by(vm, BY_EDGE) && stays_inside(vm), "an eventfd's interrupt comes once");
    pthread_t thread;
    pthread_create(&thread, NULL, ring_later, &fd);
    said(interrupted_by(vm, BY_EDGE), "it comes to a vCPU that waits in KVM_RUN");
    pthread_join(thread, NULL);
    WORKS(irqfd(vm, fd, BY_EDGE - FIRST_SPI, KVM_IRQFD_FLAG_DEASSIGN, -1));
    ring(fd);
    said(stays_inside(vm), "none comes when the eventfd is taken away");
    rings(fd);
    ring(fd);
    WORKS(irqfd(vm, fd, BY_EDGE - FIRST_SPI, 0, -1));
    said(interrupted_by(vm, BY_EDGE), "one comes that was written before the eventfd was given");
    WORKS(irqfd(vm, fd, BY_EDGE - FIRST_SPI, KVM_IRQFD_FLAG_DEASSIGN, -1));
}

static void by_level(struct vm *vm, int fd, int resample)
{
    WORKS(irqfd(vm, fd, BY_LEVEL - FIRST_SPI, KVM_IRQFD_FLAG_RESAMPLE, resample));
    for (int round = 1; round <= 3; round++) {
        ring(fd);
        bool taken = exits_at(vm, TAKEN, BY_LEVEL);
        said(taken && rings(resample) == 0, "round %d: the interrupt is taken, its end not told yet", round);
        said(exits_at(vm, ENDED, BY_LEVEL) && rings(resample) == 1, "round %d: its end is told, once", round);
        said(stays_inside(vm) && rings(resample) == 0, "round %d: the line is down", round);
    }
    WORKS(irqfd(vm, fd, BY_LEVEL - FIRST_SPI, KVM_IRQFD_FLAG_DEASSIGN, -1));
}

/* Two devices on one line: one that goes leaves it to the other. */
static void by_shared_level(struct vm *vm, int fd, int resample)
{
    int other = eventfd(0, EFD_NONBLOCK), others = eventfd(0, EFD_NONBLOCK);
    WORKS(irqfd(vm, fd, BY_LEVEL - FIRST_SPI, KVM_IRQFD_FLAG_RESAMPLE, resample));
    WORKS(irqfd(vm, other, BY_LEVEL - FIRST_SPI, KVM_IRQFD_FLAG_RESAMPLE, others));
    ring(other);
    said(interrupted_by(vm, BY_LEVEL) && rings(resample) == 1 && rings(others) == 1, "the end of an interrupt that two share is told to both");
    ring(fd);
    WORKS(irqfd(vm, other, BY_LEVEL - FIRST_SPI, KVM_IRQFD_FLAG_DEASSIGN, -1));
    said(interrupted_by(vm, BY_LEVEL), "one goes, and the other's interrupt is still there");
    said(rings(resample) == 1 && rings(others) == 0, "its end is told to the one that is left");
    WORKS(irqfd(vm, fd, BY_LEVEL - FIRST_SPI, KVM_IRQFD_FLAG_DEASSIGN, -1));
    close(other);
    close(others);
}

static int route(struct vm *vm, uint32_t count, const struct kvm_irq_routing_entry *entries)
{
    struct {
        struct kvm_irq_routing routing;
        struct kvm_irq_routing_entry entries[4];
    } table = {.routing.nr = count};
    memcpy(table.entries, entries, count * sizeof *entries);
    return ioctl(vm->fd, KVM_SET_GSI_ROUTING, &table);
}

static void routed(struct vm *vm, int fd, int other)
{
    struct kvm_irq_routing_entry entry = {.gsi = 60, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip.pin = BY_EDGE - FIRST_SPI};
    struct kvm_irq_routing_entry bad = entry;
    WORKS(irqfd(vm, fd, BY_EDGE - FIRST_SPI, 0, -1));
    WORKS(irqfd(vm, other, 60, 0, -1));
    WORKS(route(vm, 1, &entry));
    ring(fd);
    said(stays_inside(vm), "an interrupt without a route goes nowhere");
    ring(other);
    said(interrupted_by(vm, BY_EDGE), "a route leads to another interrupt");
    bad.type = 77;
    FAILS(EINVAL, route(vm, 1, &bad));
    bad = entry;
    bad.u.irqchip.irqchip = 5;
    FAILS(EINVAL, route(vm, 1, &bad));
    bad = entry;
    bad.gsi = 100000;
    FAILS(EINVAL, route(vm, 1, &bad));
    bad = entry;
    bad.flags = KVM_MSI_VALID_DEVID;
    FAILS(EINVAL, route(vm, 1, &bad));
    struct kvm_irq_routing_entry twice[] = {entry, entry};
    FAILS(EINVAL, route(vm, 2, twice));
    twice[1].type = KVM_IRQ_ROUTING_MSI;
    FAILS(EINVAL, route(vm, 2, twice));
    ring(other);
    said(interrupted_by(vm, BY_EDGE), "what was refused changes no route");
    close(other);
    WORKS(irqfd(vm, fd, BY_EDGE - FIRST_SPI, KVM_IRQFD_FLAG_DEASSIGN, -1));
}

static int bell(struct vm *vm, int fd, uint64_t address, uint32_t length, uint64_t value, uint32_t flags)
{
    struct kvm_ioeventfd args = {.datamatch = value, .addr = address, .len = length, .fd = fd, .flags = flags};
    return ioctl(vm->fd, KVM_IOEVENTFD, &args);
}

static void bells(struct vm *vm, int one, int any)
{
    const uint32_t match = KVM_IOEVENTFD_FLAG_DATAMATCH, off = KVM_IOEVENTFD_FLAG_DEASSIGN;
    WORKS(bell(vm, one, BELL, 4, 7, match));
    FAILS(EEXIST, bell(vm, any, BELL, 4, 7, match));
    FAILS(EEXIST, bell(vm, any, BELL, 4, 0, 0));
    FAILS(EINVAL, bell(vm, one, BELL, 3, 0, 0));
    FAILS(EINVAL, bell(vm, one, BELL, 16, 0, 0));
    FAILS(EINVAL, bell(vm, one, BELL, 0, 7, match));
    FAILS(EINVAL, bell(vm, one, -2ULL, 4, 0, 0));
    FAILS(EINVAL, bell(vm, one, BELL, 4, 0, 1u << 31));
    FAILS(EBADF, bell(vm, -1, BELL, 4, 0, 0));
    FAILS(ENOENT, bell(vm, one, BELL, 4, 8, match | off));
    WORKS(bell(vm, any, ANY_BELL, 0, 0, 0));
    start_at(vm, guest_bells);
    said(exits_at(vm, BELL, 8), "a store of another value is the VMM's");
    said(exits_at(vm, BELL, 7) && vm->run[0]->mmio.len == 2, "one of another width too");
    said(exits_at(vm, DONE, 0), "others do not end the run");
    said(rings(one) == 1 && rings(any) == 2, "eventfds have them");
    WORKS(bell(vm, one, BELL, 4, 7, match | off));
    WORKS(bell(vm, any, ANY_BELL, 0, 0, off));
    start_at(vm, guest_bells);
    said(exits_at(vm, BELL, 7) && rings(one) == 0, "taken away, they have none");
}

/* A line before anybody has initialised the interrupt controller, and more vCPUs than it can have. */
static void early(int version)
{
    const uint32_t ppi = KVM_ARM_IRQ_TYPE_PPI << KVM_ARM_IRQ_TYPE_SHIFT | 20;
    struct kvm_create_device device = {.type = version == 3 ? KVM_DEV_TYPE_ARM_VGIC_V3 : KVM_DEV_TYPE_ARM_VGIC_V2};
    struct kvm_irq_level line = {.irq = ppi, .level = 1};
    struct vm *vm = make_vm(1);
    if (!vm || ioctl(vm->fd, KVM_CREATE_DEVICE, &device) == -1)
        return said(false, "an interrupt controller that is not initialised");
    if (version == 3) {
        FAILS(EBUSY, ioctl(vm->fd, KVM_IRQ_LINE, &line));
    } else {
        FAILS(EINVAL, ioctl(vm->fd, KVM_CREATE_VCPU, 8));
        WORKS(ioctl(vm->fd, KVM_IRQ_LINE, &line));
        FAILS(EBUSY, ioctl(vm->fd, KVM_CREATE_VCPU, 1));
    }
    close(device.fd);
    end_vm(vm);
}

/* An interrupt controller above 4 GiB, where other VMs have memory. */
static void far_away(int version)
{
    const uint64_t far = 1ULL << 32;
    struct kvm_create_device device = {.type = version == 3 ? KVM_DEV_TYPE_ARM_VGIC_V3 : KVM_DEV_TYPE_ARM_VGIC_V2};
    struct vm *vm = make_vm(1);
    if (!vm || ioctl(vm->fd, KVM_CREATE_DEVICE, &device) == -1)
        return said(false, "another interrupt controller");
    if (version == 3) {
        WORKS(set_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, far));
        WORKS(set_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, far + 0x100000));
    } else {
        WORKS(set_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V2_ADDR_TYPE_DIST, far));
        WORKS(set_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V2_ADDR_TYPE_CPU, 0x08010000));
    }
    WORKS(set_attribute(device.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0));
    set_reg(vm, 0, X(1), far + 0x104);
    set_reg(vm, 0, X(2), 0x300);
    start_at(vm, guest_enables);
    said(exits_at(vm, READY, 0x300), "a guest enables interrupts there");
    close(device.fd);
    end_vm(vm);
}

/* An end of them may be there, as long as it is far away. */
static void many_bells(int fd)
{
    struct vm *vm = make_vm(1);
    int n = 0;
    if (!vm)
        return;
    for (errno = 0; n < 4200 && bell(vm, fd, BELL, 4, n, KVM_IOEVENTFD_FLAG_DATAMATCH) == 0;)
        n++;
    said(n == 4200 || (n >= 4000 && errno == ENOSPC), "%d stores that ring", n);
    errno = 0;
    end_vm(vm);
}

/* A level that is still up when its interrupt has ended is an interrupt again, at once: nothing else makes this guest leave. */
static void retaken(struct vm *vm)
{
    struct kvm_irq_level line = {.irq = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | BY_LEVEL, .level = 1};
    int exits;
    start_at(vm, guest_retakes);
    set_reg(vm, 0, CORE(regs.pstate), PSR_MODE_EL1h | PSR_D_BIT | PSR_A_BIT | PSR_I_BIT | PSR_F_BIT);
    WORKS(ioctl(vm->fd, KVM_IRQ_LINE, &line));
    bool done = run_to_done(vm, &exits);
    said(done && exits == 0 && result(vm, 0) >= 100, "an interrupt comes again when it ends with its line up: %llu of 100 times",
        (unsigned long long)result(vm, 0));
    line.level = 0;
    WORKS(ioctl(vm->fd, KVM_IRQ_LINE, &line));
}

/* A guest whose store rings an eventfd that interrupts it. */
static void rings_itself(struct vm *vm, int fd)
{
    struct kvm_irq_routing_entry entry = {.gsi = BY_EDGE - FIRST_SPI, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip.pin = BY_EDGE - FIRST_SPI};
    WORKS(route(vm, 1, &entry));
    WORKS(irqfd(vm, fd, BY_EDGE - FIRST_SPI, 0, -1));
    WORKS(bell(vm, fd, BELL, 4, 0, 0));
    start_at(vm, guest_rings);
    said(interrupted_by(vm, BY_EDGE) && stays_inside(vm), "a guest rings an eventfd that interrupts itself");
    WORKS(bell(vm, fd, BELL, 4, 0, KVM_IOEVENTFD_FLAG_DEASSIGN));
    WORKS(irqfd(vm, fd, BY_EDGE - FIRST_SPI, KVM_IRQFD_FLAG_DEASSIGN, -1));
}

static void *peals(void *vm)
{
    int exits;
    set_reg(vm, 0, X(1), 3000);
    start_at(vm, guest_peals);
    /* The other rings already: an interrupt that is taken, or a store that is not rung with, is an exit. */
    set_reg(vm, 0, CORE(regs.pstate), PSR_MODE_EL1h | PSR_D_BIT | PSR_A_BIT | PSR_I_BIT | PSR_F_BIT);
    if (!run_to_done(vm, &exits))
        return NULL;
    if (exits != 0)
        printf("# %d exits\n", exits);
    return exits == 0 ? vm : NULL;
}

/* Two guests that ring each other, at the same time: each eventfd interrupts one and is rung by the other. */
static void ring_each_other(struct vm *vm)
{
    int to_one = eventfd(0, EFD_NONBLOCK), to_other = eventfd(0, EFD_NONBLOCK), gic;
    struct vm *other = make_vm(1);
    pthread_t thread;
    void *done = NULL;
    if (!other || !with_gic(other, &gic))
        return;
    said(irqfd(vm, to_one, BY_EDGE - FIRST_SPI, 0, -1) == 0 && bell(vm, to_other, BELL, 4, 0, 0) == 0
            && irqfd(other, to_other, BY_EDGE - FIRST_SPI, 0, -1) == 0 && bell(other, to_one, BELL, 4, 0, 0) == 0,
        "two guests that ring each other");
    pthread_create(&thread, NULL, peals, other);
    bool one_done = peals(vm);
    pthread_join(thread, &done);
    said(one_done && done, "3000 times each");
    close(to_one);
    close(to_other);
    close(gic);
    end_vm(other);
}

void test_interrupts(void)
{
    struct vm *vm = make_vm(1);
    int fd = eventfd(0, EFD_NONBLOCK), other = eventfd(0, EFD_NONBLOCK), resample = eventfd(0, EFD_NONBLOCK);
    if (!vm)
        return;
    FAILS(EAGAIN, irqfd(vm, fd, BY_EDGE - FIRST_SPI, 0, -1));
    int gic, version = with_gic(vm, &gic);
    struct kvm_msi msi = {.address_lo = 0x08090040};
    FAILS(ENODEV, ioctl(vm->fd, KVM_SIGNAL_MSI, &msi));
    FAILS(EBADF, irqfd(vm, -1, BY_EDGE - FIRST_SPI, 0, -1));
    FAILS(EINVAL, irqfd(vm, fd, BY_EDGE - FIRST_SPI, 1u << 31, -1));
    FAILS(EBADF, irqfd(vm, fd, BY_EDGE - FIRST_SPI, KVM_IRQFD_FLAG_RESAMPLE, -1));
    start_at(vm, guest_gic);
    set_reg(vm, 0, X(1), version);
    said(exits_at(vm, READY, 0), "a guest with its interrupt controller ready");
    by_edge(vm, fd);
    by_level(vm, fd, resample);
    by_shared_level(vm, fd, resample);
    routed(vm, fd, other);
    bells(vm, fd, resample);
    many_bells(fd);
    retaken(vm);
    rings_itself(vm, fd);
    ring_each_other(vm);
    far_away(version);
    early(version);
    close(fd);
    close(gic);
    close(resample);
    end_vm(vm);
}
