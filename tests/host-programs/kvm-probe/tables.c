/* GICv3's translation service: its registers, and its tables in the VM's memory. No vCPU runs a payload for it: user space gives the commands. */
#include "probe.h"
#include <pthread.h>
#include <signal.h>

enum {
    DEVICES = GUEST_RAM + 0x100000,
    COLLECTIONS = GUEST_RAM + 0x110000,
    QUEUE = GUEST_RAM + 0x120000,
    EVENTS = GUEST_RAM + 0x130000,
    CONFIG = GUEST_RAM + 0x140000,
    PENDING = GUEST_RAM + 0x150000,
    ITS = 0x08080000,
    DOORBELL = ITS + 0x10040,
    REDIST_REGS = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    CTRL = KVM_DEV_ARM_VGIC_GRP_CTRL,
    REGS = KVM_DEV_ARM_VGIC_GRP_ITS_REGS,
    CTLR = 0,
    IIDR = 4,
    CBASER = 0x80,
    CWRITER = 0x88,
    CREADR = 0x90,
    DEVICE_TABLE = 0x100,
    COLLECTION_TABLE = 0x108,
};
#define VALID (1ULL << 63)

/* A VM with GICv3 and a translation service. */
struct service {
    struct vm *vm;
    int gic, its;
};

static uint64_t reg(int its, uint64_t offset)
{
    uint64_t value = 0;
    struct kvm_device_attr attr = {.group = REGS, .attr = offset, .addr = (uintptr_t)&value};
    if (ioctl(its, KVM_GET_DEVICE_ATTR, &attr) == -1)
        said(false, "register %#llx can be read", (unsigned long long)offset);
    return value;
}

static int has(int its, uint32_t group, uint64_t number)
{
    struct kvm_device_attr attr = {.group = group, .attr = number};
    return ioctl(its, KVM_HAS_DEVICE_ATTR, &attr);
}

static uint64_t *word(struct vm *vm, uint64_t address) { return (uint64_t *)(vm->ram + (address - GUEST_RAM)); }

/* The redistributor takes LPIs, whose configuration is that all are enabled. */
static void lpis(struct service *service)
{
    memset(word(service->vm, CONFIG), 0xa1, 0x1000);
    int error = set_attribute(service->gic, REDIST_REGS, 0x70, CONFIG | 15) | set_attribute(service->gic, REDIST_REGS, 0x74, 0);
    error |= set_attribute(service->gic, REDIST_REGS, 0x78, PENDING) | set_attribute(service->gic, REDIST_REGS, 0x7c, 0);
    error |= set_attribute(service->gic, REDIST_REGS, 0, 1);
    said(error == 0, "LPIs have their tables");
}

static int registers(int its)
{
    return set_attribute(its, REGS, CBASER, VALID | QUEUE) | set_attribute(its, REGS, DEVICE_TABLE, VALID | DEVICES) |
           set_attribute(its, REGS, COLLECTION_TABLE, VALID | COLLECTIONS);
}

/* False: the machine has no GICv3. */
static bool with_service(struct service *service)
{
    struct kvm_create_device device = {.type = KVM_DEV_TYPE_ARM_VGIC_ITS};
    service->vm = make_vm(1);
    if (!service->vm)
        return false;
    int version = with_gic(service->vm, &service->gic);
    if (version != 3) {
        FAILS(ENODEV, ioctl(service->vm->fd, KVM_CREATE_DEVICE, &device));
        close(service->gic);
        end_vm(service->vm);
        return false;
    }
    WORKS(ioctl(service->vm->fd, KVM_CREATE_DEVICE, &device));
    service->its = device.fd;
    WORKS(set_attribute(service->its, CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0));
    return true;
}

static void end_service(struct service *service)
{
    close(service->its);
    close(service->gic);
    end_vm(service->vm);
}

static void attributes(struct service *service)
{
    int its = service->its;
    uint64_t value;
    struct kvm_device_attr get = {.group = REGS, .attr = CTLR, .addr = (uintptr_t)&value};
    WORKS(has(its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE));
    WORKS(has(its, CTRL, KVM_DEV_ARM_ITS_SAVE_TABLES));
    WORKS(has(its, CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES));
    WORKS(has(its, CTRL, KVM_DEV_ARM_ITS_CTRL_RESET));
    WORKS(has(its, REGS, CTLR));
    FAILS(ENXIO, has(its, CTRL, 77));
    FAILS(ENXIO, has(its, REGS, 0x98));
    FAILS(EINVAL, has(its, REGS, CBASER + 4));
    FAILS(ENXIO, ioctl(its, KVM_GET_DEVICE_ATTR, &get));
    FAILS(ENXIO, set_attribute(its, REGS, CBASER, 0));
    FAILS(EINVAL, set_attribute(its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, ITS + 0x1000));
    WORKS(set_attribute(its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, ITS));
    FAILS(EEXIST, set_attribute(its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, ITS));
    get.addr = 8;
    FAILS(EFAULT, ioctl(its, KVM_GET_DEVICE_ATTR, &get));
    FAILS(EFAULT, ioctl(its, KVM_SET_DEVICE_ATTR, &get));
    FAILS(EINVAL, set_attribute(its, REGS, CBASER + 4, 0));
    FAILS(ENXIO, set_attribute(its, REGS, 0x98, 0));
}

static void restored_registers(struct service *service)
{
    int its = service->its;
    said(reg(its, CTLR) == 1u << 31, "it is off and quiescent");
    WORKS(set_attribute(its, REGS, IIDR, reg(its, IIDR)));
    FAILS(EINVAL, set_attribute(its, REGS, IIDR, 1 << 12));
    WORKS(registers(its));
    FAILS(EINVAL, set_attribute(its, REGS, CREADR, 0x1000));
    WORKS(set_attribute(its, REGS, CREADR, 0x40));
    WORKS(set_attribute(its, REGS, CWRITER, 0x40));
    said(reg(its, CREADR) == 0x40 && reg(its, CWRITER) == 0x40, "CREADR and CWRITER are what was restored");
    WORKS(set_attribute(its, REGS, CBASER, VALID | QUEUE));
    said(reg(its, CREADR) == 0, "CBASER resets CREADR");
    WORKS(set_attribute(its, REGS, CTLR, 1));
    FAILS(EBUSY, set_attribute(its, REGS, CREADR, 0x40));
    WORKS(set_attribute(its, CTRL, KVM_DEV_ARM_ITS_CTRL_RESET, 0));
    said(reg(its, CTLR) == 1u << 31 && reg(its, CBASER) == 0 && !(reg(its, DEVICE_TABLE) & VALID), "RESET puts it off, without tables");
}

/* A command, which is done when the write of CWRITER is. */
static void command(struct service *service, uint64_t first, uint64_t second, uint64_t third)
{
    uint64_t at = reg(service->its, CWRITER), *words = word(service->vm, QUEUE + at);
    words[0] = first;
    words[1] = second;
    words[2] = third;
    words[3] = 0;
    if (set_attribute(service->its, REGS, CWRITER, at + 32) == -1 || reg(service->its, CREADR) != at + 32)
        said(false, "command %#llx is done", (unsigned long long)first);
}

static const uint64_t DEVICE_ENTRY = VALID | (uint64_t)(EVENTS >> 8) << 5 | 4;

static void saved(struct service *service)
{
    struct vm *vm = service->vm;
    struct kvm_msi msi = {.address_lo = DOORBELL, .data = 3, .flags = KVM_MSI_VALID_DEVID, .devid = 8};
    lpis(service);
    WORKS(registers(service->its));
    WORKS(set_attribute(service->its, REGS, CTLR, 1));
    command(service, 0x09, 0, VALID);
    command(service, 8ULL << 32 | 0x08, 4, VALID | EVENTS);
    command(service, 8ULL << 32 | 0x0a, 8200ULL << 32 | 3, 0);
    command(service, 8ULL << 32 | 0x0a, 8192ULL << 32 | 5, 0);
    said(ioctl(vm->fd, KVM_SIGNAL_MSI, &msi) == 1, "a message has an interrupt");
    WORKS(set_attribute(service->gic, CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, 0));
    WORKS(set_attribute(service->its, CTRL, KVM_DEV_ARM_ITS_SAVE_TABLES, 0));
    said(*word(vm, DEVICES + 8 * 8) == DEVICE_ENTRY, "the device's entry is as the API says");
    said(*word(vm, EVENTS + 3 * 8) == (2ULL << 48 | 8200 << 16) && *word(vm, EVENTS + 5 * 8) == 8192 << 16, "its translations are");
    said(*word(vm, COLLECTIONS) == VALID && *word(vm, COLLECTIONS + 8) == 0, "the collection is");
    said(vm->ram[PENDING - GUEST_RAM + 8200 / 8] == 1 << 8200 % 8, "what is pending is");
}

/* What comes before GITS_CTLR. */
static int restore(struct service *service)
{
    int error = set_attribute(service->its, CTRL, KVM_DEV_ARM_ITS_CTRL_RESET, 0) | registers(service->its);
    return error ? error : set_attribute(service->its, CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES, 0);
}

static void restored(struct service *old)
{
    struct service service;
    struct kvm_msi msi = {.address_lo = DOORBELL, .data = 5, .flags = KVM_MSI_VALID_DEVID, .devid = 8};
    if (!with_service(&service))
        return;
    memcpy(service.vm->ram, old->vm->ram, RAM_SIZE);
    WORKS(set_attribute(service.its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, ITS));
    lpis(&service);
    WORKS(restore(&service));
    WORKS(set_attribute(service.its, REGS, CTLR, 1));
    said(service.vm->ram[PENDING - GUEST_RAM + 8200 / 8] == 0, "what was pending is so in the other VM, not in its table");
    said(ioctl(service.vm->fd, KVM_SIGNAL_MSI, &msi) == 1, "a message has its interrupt in the other VM");
    WORKS(set_attribute(service.gic, CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, 0));
    said(service.vm->ram[PENDING - GUEST_RAM + 8200 / 8] == 1 << 8200 % 8, "it is pending there");
    said(service.vm->ram[PENDING - GUEST_RAM + 8192 / 8] == 1, "as is the other one");
    /* A device that is taken away does not come back. */
    command(&service, 8ULL << 32 | 0x08, 0, 0);
    WORKS(set_attribute(service.its, CTRL, KVM_DEV_ARM_ITS_SAVE_TABLES, 0));
    WORKS(restore(&service));
    WORKS(set_attribute(service.its, REGS, CTLR, 1));
    said(ioctl(service.vm->fd, KVM_SIGNAL_MSI, &msi) == 0, "a device that was unmapped has no interrupt");
    end_service(&service);
}

static void refused(struct service *service)
{
    struct vm *vm = service->vm;
    uint64_t *device = word(vm, DEVICES + 8 * 8), *event = word(vm, EVENTS + 3 * 8), *collection = word(vm, COLLECTIONS), was;
    *collection = VALID | 9 << 16;
    FAILS(EINVAL, restore(service));
    *collection = VALID;
    was = *device;
    *device = was | 0x1f;
    FAILS(EINVAL, restore(service));
    *device = (was & ~(0xfffffffffULL << 5)) | (uint64_t)(0x1000000000ULL >> 8) << 5;
    FAILS(EFAULT, restore(service));
    *device = was;
    was = *event;
    *event = 5 << 16;
    FAILS(EINVAL, restore(service));
    *event = 8200 << 16 | 7;
    FAILS(EINVAL, restore(service));
    *event = 200ULL << 48 | 8200 << 16;
    FAILS(EINVAL, restore(service));
    *event = was;
    WORKS(restore(service));
}

static void *runs(void *argument)
{
    struct vm *vm = argument;
    while (!__atomic_load_n(&vm->run[0]->immediate_exit, __ATOMIC_SEQ_CST))
        ioctl(vm->vcpus[0], KVM_RUN, 0);
    return NULL;
}

static void while_a_vcpu_runs(struct service *service)
{
    pthread_t thread;
    int tries = 0;
    start_at(service->vm, guest_wfi);
    pthread_create(&thread, NULL, runs, service->vm);
    while (set_attribute(service->its, CTRL, KVM_DEV_ARM_ITS_SAVE_TABLES, 0) == 0 && tries++ < 1000)
        usleep(10000);
    FAILS(EBUSY, set_attribute(service->its, CTRL, KVM_DEV_ARM_ITS_SAVE_TABLES, 0));
    FAILS(EBUSY, set_attribute(service->its, CTRL, KVM_DEV_ARM_ITS_RESTORE_TABLES, 0));
    FAILS(EBUSY, set_attribute(service->its, CTRL, KVM_DEV_ARM_ITS_CTRL_RESET, 0));
    FAILS(EBUSY, set_attribute(service->its, REGS, CWRITER, 0));
    FAILS(EBUSY, set_attribute(service->gic, CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, 0));
    __atomic_store_n(&service->vm->run[0]->immediate_exit, 1, __ATOMIC_SEQ_CST);
    pthread_kill(thread, SIGALRM);
    pthread_join(thread, NULL);
    service->vm->run[0]->immediate_exit = 0;
}

void test_tables(void)
{
    struct service service;
    if (!with_service(&service))
        return;
    attributes(&service);
    restored_registers(&service);
    saved(&service);
    restored(&service);
    refused(&service);
    while_a_vcpu_runs(&service);
    end_service(&service);
}
