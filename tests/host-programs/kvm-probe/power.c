/* What a VMM sees of vCPUs that the guest switches on and off, and what it may change. */
#include "probe.h"

static uint32_t power_of(struct vm *vm, int vcpu)
{
    struct kvm_mp_state state = {77};
    ioctl(vm->vcpus[vcpu], KVM_GET_MP_STATE, &state);
    return state.mp_state;
}

static int set_power(struct vm *vm, int vcpu, uint32_t power)
{
    struct kvm_mp_state state = {power};
    return ioctl(vm->vcpus[vcpu], KVM_SET_MP_STATE, &state);
}

/* Runs the first vCPU until the guest has given one of them this power. */
static bool comes_to(struct vm *vm, int vcpu, uint32_t power)
{
    for (int n = 0; n < 50 && stays_inside(vm); n++)
        if (power_of(vm, vcpu) == power)
            return true;
    return false;
}

/* The first switches the second on, which has not run when the VMM looks at it. */
static void switched_on(void)
{
    struct vm *vm = make_vm(2);
    if (!vm)
        return;
    start_at(vm, guest_smp);
    said(comes_to(vm, 1, KVM_MP_STATE_RUNNABLE), "a guest switches a vCPU on");
    uint64_t pc = get_reg(vm, 1, CORE(regs.pc));
    said(pc > GUEST_RAM && pc < GUEST_RAM + (uint64_t)(payload_end - payload) && get_reg(vm, 1, X(0)) == 0x1234,
        "its registers say where it starts, and with what: %#llx", (unsigned long long)pc);
    end_vm(vm);
}

static void switched_off(void)
{
    struct vm *vm = make_vm(1);
    int exits;
    if (!vm)
        return;
    start_at(vm, guest_cpu_off);
    said(comes_to(vm, 0, KVM_MP_STATE_STOPPED), "a guest switches its own vCPU off");
    WORKS(set_power(vm, 0, KVM_MP_STATE_RUNNABLE));
    start_at(vm, guest_clock);
    said(run_to_done(vm, &exits) && result(vm, 1) > result(vm, 0), "it runs where the VMM has it go on");
    WORKS(set_power(vm, 0, KVM_MP_STATE_STOPPED));
    said(stays_inside(vm), "and not when it is stopped");
    WORKS(set_power(vm, 0, KVM_MP_STATE_RUNNABLE));
    start_at(vm, guest_clock);
    said(run_to_done(vm, &exits), "and again");
    end_vm(vm);
}

void test_power(void)
{
    switched_on();
    switched_off();
}
