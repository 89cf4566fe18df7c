/* What the API answers to good and bad input, without a guest that runs. */
#include "probe.h"
#include <sys/prctl.h>
#include <sys/resource.h>

static int extension(int fd, int which) { return ioctl(fd, KVM_CHECK_EXTENSION, which); }

/* The driver has protected VMs, but nobody gave it a manifest here; the kernel's own KVM does not know this bit of the type. */
static void a_protected_vm(void)
{
    if (access("/sys/module/corevisor_kvm", F_OK) == -1)
        return FAILS(EINVAL, ioctl(kvm, KVM_CREATE_VM, 1UL << 31));
    FAILS(ENOKEY, ioctl(kvm, KVM_CREATE_VM, 1UL << 31));
    FAILS(ENOKEY, ioctl(kvm, KVM_CREATE_VM, 1UL << 31 | 40));
    FAILS(EINVAL, ioctl(kvm, KVM_CREATE_VM, 1UL << 31 | 20));
    FAILS(EINVAL, ioctl(kvm, KVM_CREATE_VM, 3UL << 30));
}

void test_system(void)
{
    said(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12, "the API's version is 12");
    FAILS(EINVAL, ioctl(kvm, KVM_GET_API_VERSION, 1));
    FAILS(EINVAL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 1));
    FAILS2(EINVAL, ENOTTY, ioctl(kvm, _IO(KVMIO, 0xff), 0));
    static const int there[] = {KVM_CAP_USER_MEMORY, KVM_CAP_DESTROY_MEMORY_REGION_WORKS, KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, KVM_CAP_ONE_REG,
        KVM_CAP_ARM_PSCI, KVM_CAP_ARM_PSCI_0_2, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_MP_STATE, KVM_CAP_NR_VCPUS, KVM_CAP_MAX_VCPUS,
        KVM_CAP_MAX_VCPU_ID, KVM_CAP_NR_MEMSLOTS, KVM_CAP_READONLY_MEM, KVM_CAP_IOEVENTFD, KVM_CAP_DEVICE_CTRL};
    for (size_t n = 0; n < sizeof there / sizeof *there; n++)
        said(extension(kvm, there[n]) > 0, "capability %d is there", there[n]);
    said(extension(kvm, KVM_CAP_VCPU_ATTRIBUTES) == 1, "vCPUs have attributes");
    FAILS(EINVAL, ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MSI_DEVID));
    said(extension(kvm, 0x7fff) == 0 && extension(kvm, -1) == 0, "an unknown capability is 0");
    said(extension(kvm, KVM_CAP_NR_VCPUS) <= extension(kvm, KVM_CAP_MAX_VCPUS), "no more vCPUs are recommended than possible");
    int ipa = extension(kvm, KVM_CAP_ARM_VM_IPA_SIZE);
    said(ipa == 0 || (ipa >= 32 && ipa <= 52), "the IPA size, %d, is 0 or from 32 to 52", ipa);
    FAILS(EINVAL, ioctl(kvm, KVM_CREATE_VM, 20UL));
    FAILS(EINVAL, ioctl(kvm, KVM_CREATE_VM, 64UL));
    FAILS(EINVAL, ioctl(kvm, KVM_CREATE_VM, 1UL << 20));
    a_protected_vm();
    int vm = ioctl(kvm, KVM_CREATE_VM, ipa ? (unsigned long)ipa : 0UL);
    said(vm >= 0, "a VM with the largest IPA size");
    if (vm < 0)
        return;
    said(extension(vm, KVM_CAP_USER_MEMORY) == 1, "a VM answers for capabilities too");
    said(extension(vm, KVM_CAP_MSI_DEVID) == 0, "without a translation service no MSI has a device");
    FAILS2(EINVAL, ENOTTY, ioctl(vm, _IO(KVMIO, 0xff), 0));
    FAILS2(EINVAL, ENOTTY, ioctl(vm, KVM_RUN, 0));
    struct kvm_create_device device = {.type = 0x7777};
    FAILS(ENODEV, ioctl(vm, KVM_CREATE_DEVICE, &device));
    FAILS(EFAULT, ioctl(vm, KVM_CREATE_DEVICE, (void *)8));
    FAILS(EFAULT, ioctl(vm, KVM_SET_USER_MEMORY_REGION, (void *)8));
    close(vm);
}

/* As linux/kvm.h has it from 6.8 on. */
struct newer_region {
    struct kvm_userspace_memory_region region;
    uint64_t guest_memfd_and_room[16];
};
#define SET_NEWER_REGION _IOW(KVMIO, 0x49, struct newer_region)
enum { NEWER_REGION = 231, OF_GUEST_MEMFD = 1 << 2 };

static void regions_of_the_newer_kind(struct vm *vm, uint64_t gpa)
{
    struct newer_region region = {.region = {3, 0, gpa, 4096, (uintptr_t)vm->ram}};
    said(extension(vm->fd, NEWER_REGION) == 1, "regions of the newer kind are there");
    WORKS(ioctl(vm->fd, SET_NEWER_REGION, &region));
    FAILS(EEXIST, memory(vm, 1, 0, gpa, 4096, vm->ram));
    region.region.memory_size = 0;
    WORKS(ioctl(vm->fd, SET_NEWER_REGION, &region));
    region.region.memory_size = 4096;
    region.region.flags = OF_GUEST_MEMFD;
    FAILS(EINVAL, ioctl(vm->fd, SET_NEWER_REGION, &region));
}

/* All of a VM's addresses in one region, most of it without memory. */
static void largest_region(void)
{
    int ipa = extension(kvm, KVM_CAP_ARM_VM_IPA_SIZE), bits = ipa && ipa < 40 ? ipa : 40;
    struct vm vm = {.fd = ioctl(kvm, KVM_CREATE_VM, 0)};
    void *somewhere = (void *)(1ULL << 40);
    said(memory(&vm, 0, 0, 0, 1ULL << bits, somewhere) == 0, "a region of %d bits", bits);
    said(memory(&vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, 1ULL << bits, somewhere) == 0, "whose writes are followed");
    said(memory(&vm, 0, 0, 0, 0, NULL) == 0, "and that goes");
    close(vm.fd);
}

void test_memory(void)
{
    largest_region();
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    const unsigned char *ram = vm->ram;
    const uint64_t page = 4096, gpa = 0x80000000;
    FAILS(EINVAL, memory(vm, 1, 0, gpa, page + 1, ram));
    FAILS(EINVAL, memory(vm, 1, 0, gpa + 1, page, ram));
    FAILS(EINVAL, memory(vm, 1, 0, gpa, page, ram + 1));
    FAILS(EINVAL, memory(vm, 1, 0x80000000, gpa, page, ram));
    FAILS(EINVAL, memory(vm, 0x8000, 0, gpa, page, ram));
    FAILS(EINVAL, memory(vm, 1 << 16 | 1, 0, gpa, page, ram));
    FAILS(EINVAL, memory(vm, 1, 0, -page, 2 * page, ram));
    FAILS2(EFAULT, EINVAL, memory(vm, 1, 0, 1ULL << 56, page, ram));
    FAILS(EINVAL, memory(vm, 1, 0, gpa, page, (void *)0xffff800000000000));
    FAILS(EINVAL, memory(vm, 1, 0, gpa, 0, ram));
    /* Also where the kernel takes tagged pointers otherwise. */
    if (prctl(PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE, 0, 0, 0) == 0) {
        FAILS(EINVAL, memory(vm, 1, 0, gpa, page, (void *)((uintptr_t)ram | 1ULL << 56)));
        prctl(PR_SET_TAGGED_ADDR_CTRL, 0, 0, 0, 0);
    }
    FAILS(EEXIST, memory(vm, 1, 0, GUEST_RAM + RAM_SIZE - page, 2 * page, ram));
    FAILS(EEXIST, memory(vm, 1, 0, GUEST_RAM, page, ram));
    WORKS(memory(vm, 1, 0, GUEST_RAM + RAM_SIZE, page, ram));
    WORKS(memory(vm, 1, 0, GUEST_RAM + RAM_SIZE, page, ram));
    FAILS(EINVAL, memory(vm, 1, 0, GUEST_RAM + RAM_SIZE, 2 * page, ram));
    FAILS(EINVAL, memory(vm, 1, KVM_MEM_READONLY, GUEST_RAM + RAM_SIZE, page, ram));
    FAILS(EINVAL, memory(vm, 1, 0, GUEST_RAM + RAM_SIZE, page, ram + page));
    FAILS(EEXIST, memory(vm, 1, 0, GUEST_RAM + page, page, ram));
    regions_of_the_newer_kind(vm, gpa + 2 * page);
    WORKS(memory(vm, 1, 0, gpa, page, ram));
    WORKS(memory(vm, 2, KVM_MEM_READONLY, gpa + page, page, ram + page));
    WORKS(memory(vm, 1, 0, 0, 0, NULL));
    FAILS(EINVAL, memory(vm, 1, 0, 0, 0, NULL));
    WORKS(memory(vm, 2, 0, gpa + page, 0, ram + page));
    end_vm(vm);
}

static struct kvm_irq_level line(uint32_t type, uint32_t vcpu, uint32_t number)
{
    return (struct kvm_irq_level){.irq = type << KVM_ARM_IRQ_TYPE_SHIFT | vcpu << KVM_ARM_IRQ_VCPU_SHIFT | number, .level = 1};
}

static void before_init(struct vm *vm)
{
    uint64_t value;
    struct kvm_one_reg reg = {CORE(regs.pc), (uintptr_t)&value};
    struct kvm_reg_list list = {0};
    vm->vcpus[1] = ioctl(vm->fd, KVM_CREATE_VCPU, 1);
    said(vm->vcpus[1] >= 0, "a second vCPU");
    FAILS(ENOEXEC, ioctl(vm->vcpus[1], KVM_RUN, 0));
    FAILS(ENOEXEC, ioctl(vm->vcpus[1], KVM_GET_ONE_REG, &reg));
    FAILS(ENOEXEC, ioctl(vm->vcpus[1], KVM_SET_ONE_REG, &reg));
    FAILS(ENOEXEC, ioctl(vm->vcpus[1], KVM_GET_REG_LIST, &list));
    struct kvm_mp_state state = {7};
    WORKS(ioctl(vm->vcpus[1], KVM_GET_MP_STATE, &state));
    said(state.mp_state == KVM_MP_STATE_RUNNABLE, "it is runnable");
    WORKS(ioctl(vm->vcpus[1], KVM_SET_MP_STATE, &state));
    struct kvm_device_attr timer = {.group = KVM_ARM_VCPU_TIMER_CTRL, .attr = KVM_ARM_VCPU_TIMER_IRQ_VTIMER};
    WORKS(ioctl(vm->vcpus[1], KVM_HAS_DEVICE_ATTR, &timer));
}

/* A process with no number left for another file. */
static void no_file_left(struct vm *vm)
{
    struct rlimit usual, full;
    int next = dup(0);
    close(next);
    getrlimit(RLIMIT_NOFILE, &usual);
    full = (struct rlimit){next, usual.rlim_max};
    setrlimit(RLIMIT_NOFILE, &full);
    FAILS(EMFILE, ioctl(vm->fd, KVM_CREATE_VCPU, 1));
    setrlimit(RLIMIT_NOFILE, &usual);
}

static void events(struct vm *vm)
{
    struct kvm_vcpu_events events = {.exception.serror_has_esr = 1, .exception.serror_esr = 7};
    struct kvm_vcpu_events padded = {.exception.pad[4] = 1}, reserved = {.reserved[11] = 1};
    WORKS(ioctl(vm->vcpus[0], KVM_SET_VCPU_EVENTS, &events));
    FAILS(EINVAL, ioctl(vm->vcpus[0], KVM_SET_VCPU_EVENTS, &padded));
    FAILS(EINVAL, ioctl(vm->vcpus[0], KVM_SET_VCPU_EVENTS, &reserved));
}

static void inits(struct vm *vm)
{
    struct kvm_vcpu_init init;
    WORKS(ioctl(vm->fd, KVM_ARM_PREFERRED_TARGET, &init));
    struct kvm_vcpu_init bad = init;
    bad.target = 0x1000;
    FAILS(EINVAL, ioctl(vm->vcpus[1], KVM_ARM_VCPU_INIT, &bad));
    FAILS(ENOENT, init_vcpu(vm, 1, 1u << 31));
    bad = init;
    bad.features[3] = 1;
    FAILS(ENOENT, ioctl(vm->vcpus[1], KVM_ARM_VCPU_INIT, &bad));
    FAILS(EFAULT, ioctl(vm->vcpus[1], KVM_ARM_VCPU_INIT, (void *)8));
    WORKS(init_vcpu(vm, 0, 1 << KVM_ARM_VCPU_PSCI_0_2));
    FAILS(EINVAL, init_vcpu(vm, 0, 0));
}

void test_vcpu(void)
{
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    FAILS(EEXIST, ioctl(vm->fd, KVM_CREATE_VCPU, 0));
    FAILS(EINVAL, ioctl(vm->fd, KVM_CREATE_VCPU, 4096));
    FAILS(EINVAL, ioctl(vm->fd, KVM_CREATE_VCPU, -1));
    no_file_left(vm);
    before_init(vm);
    inits(vm);
    events(vm);
    FAILS2(EINVAL, ENOTTY, ioctl(vm->vcpus[0], _IO(KVMIO, 0xff), 0));
    FAILS(EINVAL, ioctl(vm->vcpus[0], KVM_RUN, 1));

    struct kvm_mp_state state = {7};
    WORKS(ioctl(vm->vcpus[0], KVM_GET_MP_STATE, &state));
    said(state.mp_state == KVM_MP_STATE_RUNNABLE, "the first vCPU is runnable");
    state.mp_state = KVM_MP_STATE_STOPPED;
    WORKS(ioctl(vm->vcpus[0], KVM_SET_MP_STATE, &state));
    state.mp_state = 7;
    ioctl(vm->vcpus[0], KVM_GET_MP_STATE, &state);
    said(state.mp_state == KVM_MP_STATE_STOPPED, "and stopped when told so");
    state.mp_state = 77;
    FAILS(EINVAL, ioctl(vm->vcpus[0], KVM_SET_MP_STATE, &state));

    struct kvm_irq_level irq = line(KVM_ARM_IRQ_TYPE_SPI, 0, 40);
    FAILS(ENXIO, ioctl(vm->fd, KVM_IRQ_LINE, &irq));
    irq = line(KVM_ARM_IRQ_TYPE_PPI, 0, 20);
    FAILS(ENXIO, ioctl(vm->fd, KVM_IRQ_LINE, &irq));
    irq = line(KVM_ARM_IRQ_TYPE_CPU, 200, 0);
    FAILS(EINVAL, ioctl(vm->fd, KVM_IRQ_LINE, &irq));
    irq = line(KVM_ARM_IRQ_TYPE_CPU, 0, 2);
    FAILS(EINVAL, ioctl(vm->fd, KVM_IRQ_LINE, &irq));
    irq = line(9, 0, 0);
    FAILS(EINVAL, ioctl(vm->fd, KVM_IRQ_LINE, &irq));
    end_vm(vm);
}
