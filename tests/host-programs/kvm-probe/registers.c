/* ONE_REG: the list, every register in it, and what is not in it. */
#include "probe.h"

enum { LARGEST = 256 };

static struct kvm_reg_list *list_of(struct vm *vm)
{
    struct kvm_reg_list none = {0};
    FAILS(E2BIG, ioctl(vm->vcpus[0], KVM_GET_REG_LIST, &none));
    said(none.n > 60 && none.n < 5000, "the list has %llu registers", (unsigned long long)none.n);
    struct kvm_reg_list *list = calloc(1, sizeof *list + none.n * sizeof(uint64_t));
    list->n = none.n;
    WORKS(ioctl(vm->vcpus[0], KVM_GET_REG_LIST, list));
    return list;
}

static void each(struct vm *vm, struct kvm_reg_list *list)
{
    int unread = 0, unset = 0, twice = 0;
    for (uint64_t n = 0; n < list->n; n++) {
        unsigned char value[LARGEST] = {0};
        struct kvm_one_reg reg = {list->reg[n], (uintptr_t)value};
        if ((reg.id & KVM_REG_ARCH_MASK) != KVM_REG_ARM64 || ioctl(vm->vcpus[0], KVM_GET_ONE_REG, &reg) == -1) {
            printf("# %#llx cannot be read: %s\n", (unsigned long long)reg.id, strerror(errno));
            unread++;
        } else if (ioctl(vm->vcpus[0], KVM_SET_ONE_REG, &reg) == -1) {
            printf("# %#llx cannot be set to what it is: %s\n", (unsigned long long)reg.id, strerror(errno));
            unset++;
        }
        for (uint64_t other = 0; other < n; other++)
            twice += list->reg[other] == reg.id;
    }
    said(!unread, "every listed register can be read");
    said(!unset, "every listed register can be set to what it is");
    said(!twice, "no register is listed twice");
}

static bool listed(struct kvm_reg_list *list, uint64_t id)
{
    for (uint64_t n = 0; n < list->n; n++)
        if (list->reg[n] == id)
            return true;
    return false;
}

static void core(struct vm *vm, struct kvm_reg_list *list)
{
    bool all = true;
    for (int n = 0; n < 31; n++) {
        uint64_t value = 0x0123456789abcdefULL * (n + 1);
        all &= listed(list, X(n)) && set_reg(vm, 0, X(n), value) == 0 && get_reg(vm, 0, X(n)) == value;
    }
    said(all, "x0 to x30 keep what they are given");
    static const uint64_t others[] = {CORE(regs.sp), CORE(regs.pc), CORE(sp_el1), CORE(elr_el1)};
    for (size_t n = 0; n < sizeof others / sizeof *others; n++) {
        uint64_t value = 0x40001000 + 16 * n;
        said(listed(list, others[n]) && set_reg(vm, 0, others[n], value) == 0 && get_reg(vm, 0, others[n]) == value,
            "core register %#llx keeps what it is given", (unsigned long long)others[n]);
    }
    all = true;
    for (int n = 0; n < 32; n++) {
        uint64_t given[2] = {n, ~(uint64_t)n}, got[2] = {0};
        uint64_t id = KVM_REG_ARM64 | KVM_REG_SIZE_U128 | KVM_REG_ARM_CORE | (offsetof(struct kvm_regs, fp_regs.vregs[0]) / 4 + 4 * n);
        struct kvm_one_reg set = {id, (uintptr_t)given}, get = {id, (uintptr_t)got};
        all &= ioctl(vm->vcpus[0], KVM_SET_ONE_REG, &set) == 0 && ioctl(vm->vcpus[0], KVM_GET_ONE_REG, &get) == 0 &&
               memcmp(given, got, sizeof got) == 0;
    }
    said(all, "v0 to v31 keep what they are given");
    said((get_reg(vm, 0, CORE(regs.pstate)) & 0x3cf) == 0x3c5, "after initialisation PSTATE is EL1h with DAIF masked");
    FAILS(EINVAL, set_reg(vm, 0, CORE(regs.pstate), 0x9)); /* EL2h */
}

void test_registers(void)
{
    struct vm *vm = make_vm(1);
    if (!vm)
        return;
    struct kvm_reg_list *list = list_of(vm);
    core(vm, list);
    each(vm, list);
    uint64_t value = 0;
    struct kvm_one_reg reg = {ARM64_SYS_REG(3, 7, 15, 15, 7), (uintptr_t)&value};
    FAILS(ENOENT, ioctl(vm->vcpus[0], KVM_GET_ONE_REG, &reg));
    FAILS(ENOENT, ioctl(vm->vcpus[0], KVM_SET_ONE_REG, &reg));
    reg.id = 0;
    FAILS2(EINVAL, ENOENT, ioctl(vm->vcpus[0], KVM_GET_ONE_REG, &reg));
    reg.id = X(0) - KVM_REG_SIZE_U64 + KVM_REG_SIZE_U32;
    FAILS2(EINVAL, ENOENT, ioctl(vm->vcpus[0], KVM_GET_ONE_REG, &reg));
    reg.id = X(0) + 1;
    FAILS2(EINVAL, ENOENT, ioctl(vm->vcpus[0], KVM_GET_ONE_REG, &reg));
    reg.id = X(0) + 0x7000;
    FAILS2(EINVAL, ENOENT, ioctl(vm->vcpus[0], KVM_GET_ONE_REG, &reg));
    reg = (struct kvm_one_reg){X(0), 8};
    FAILS(EFAULT, ioctl(vm->vcpus[0], KVM_GET_ONE_REG, &reg));
    FAILS(EFAULT, ioctl(vm->vcpus[0], KVM_SET_ONE_REG, &reg));
    said((get_reg(vm, 0, ARM64_SYS_REG(3, 0, 0, 0, 5)) & 0xff00ffffff) == 0, "the first vCPU's MPIDR has affinity 0");
    free(list);
    end_vm(vm);
}
