// SPDX-License-Identifier: GPL-2.0
/*
 * Registers of vCPUs, and where they are: at the core once the vCPU has run, else in a cache here. The model says which core registers a
 * register of KVM_GET_REG_LIST is made of, and turns their words into what user space sees.
 */
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

/* Numbers of registers: mailbox::Register. */
#define REG_SYNDROME 210
#define REG_FAULT_ADDRESS 211

/* Registers of a protected vCPU are nobody's business: user space finds what it wrote itself. */
static bool at_core(const struct cv_vcpu *vcpu)
{
	return vcpu->in_core && !vcpu->vm->protected;
}

static int core_get(struct cv_vcpu *vcpu, u32 n, u64 *value)
{
	struct cv_answer answer = cv_hvc(CV_CALL_GET_REGISTER, vcpu->vm->id, vcpu->id, n, 0, 0);

	*value = answer.x[1];
	return cv_errno(answer.x[0]);
}

static int core_set(struct cv_vcpu *vcpu, u32 n, u64 value)
{
	return cv_errno(cv_call4(CV_CALL_SET_REGISTER, vcpu->vm->id, vcpu->id, n, value));
}

/* Register that an exit gives to the vCPU, or -1; whether it goes on behind the instruction. The core has the same table (vcpu::exposure). */
static int given_register(struct cv_vcpu *vcpu, bool *steps)
{
	u64 esr = *cv_mailbox(vcpu, CV_MAILBOX_ESR);
	int n = -1;

	*steps = true;
	switch (vcpu->last_reason) {
	case CV_EXIT_MMIO_READ:
		n = esr >> 16 & 0x1f;
		break;
	case CV_EXIT_SYSREG:
		if (esr & 1)
			n = esr >> 5 & 0x1f;
		break;
	case CV_EXIT_WFX:
	case CV_EXIT_MMIO_WRITE:
		break;
	default:
		*steps = false;
	}
	return n == 31 ? -1 : n;
}

/*
 * Ends the last exit now instead of at the next entry, so that the registers are what they will be. Not where user space still has it: as in KVM it is at
 * the access, which it may end in an abort.
 */
int cv_finish_exit(struct cv_vcpu *vcpu)
{
	bool steps;
	int n, error = 0;
	u64 pc;

	if (!vcpu->unfinished || !at_core(vcpu) || vcpu->mmio_due || vcpu->abort_asked)
		return 0;
	n = given_register(vcpu, &steps);
	if (n >= 0)
		error = core_set(vcpu, n, cv_mailbox(vcpu, CV_MAILBOX_X)[n]);
	if (!error && steps) {
		error = core_get(vcpu, CV_REG_PC, &pc);
		if (!error)
			error = core_set(vcpu, CV_REG_PC, pc + 4);
	}
	vcpu->unfinished = false;
	return error;
}

/* ---- accesses above the start of VMs' memory, where no memory is ------------------------------------------------------------- */

/* ISS of a data abort. */
#define ISS_ISV BIT(24)
#define ISS_SAS(esr) ((esr) >> 22 & 3)
#define ISS_SSE BIT(21)
#define ISS_SRT(esr) ((esr) >> 16 & 0x1f)
#define ISS_SF BIT(15)
/* A cache is maintained. */
#define ISS_CM BIT(8)
/* The walk to it faulted. */
#define ISS_S1PTW BIT(7)
#define ISS_WNR BIT(6)
#define ISS_DFSC GENMASK(5, 0)

static int set_register(struct cv_vcpu *vcpu, u32 n, u64 value)
{
	if (at_core(vcpu))
		return core_set(vcpu, n, value);
	vcpu->cache[n] = value;
	return 0;
}

static int get_register(struct cv_vcpu *vcpu, u32 n, u64 *value)
{
	if (at_core(vcpu))
		return core_get(vcpu, n, value);
	*value = vcpu->cache[n];
	return 0;
}

static int step(struct cv_vcpu *vcpu)
{
	u64 pc;

	return get_register(vcpu, CV_REG_PC, &pc) ?: set_register(vcpu, CV_REG_PC, pc + 4);
}

/*
 * The core takes such an access for one to memory that is still missing, and shows nothing of it. The registers of an ordinary VM tell what it was:
 * `action` becomes a KSERV_MMIO. -ENOSYS: the syndrome does not describe it, as far as it goes is told in `action`; -EPERM: a protected VM, or a table of the VM's
 * that is in no memory, or (`memory`) in some that it may not write: an abort; -EALREADY: there is nothing to do.
 */
int cv_emulate_begin(struct cv_vcpu *vcpu, struct kserv_action *action, bool memory)
{
	u64 esr, far, data = 0;
	int error;

	if (!at_core(vcpu))
		return -EPERM;
	error = core_get(vcpu, REG_SYNDROME, &esr) ?: core_get(vcpu, REG_FAULT_ADDRESS, &far);
	if (error)
		return error;
	if (esr & ISS_S1PTW)
		return -EPERM;
	/* As if there were a cache, with nothing in it. */
	if (esr & ISS_CM && !memory)
		return step(vcpu) ?: -EALREADY;
	action->addr = (action->addr & PAGE_MASK) | (far & ~PAGE_MASK);
	/* What KVM shows of it. */
	action->esr = esr & (ISS_CM | ISS_WNR | ISS_DFSC);
	if (!(esr & ISS_ISV))
		return -ENOSYS;
	action->len = 1 << ISS_SAS(esr);
	action->write = !!(esr & ISS_WNR);
	vcpu->syndrome = esr;
	if (action->write) {
		if (ISS_SRT(esr) != 31)
			error = core_get(vcpu, ISS_SRT(esr), &data);
		action->data = action->len < 8 ? data & (BIT_ULL(action->len * 8) - 1) : data;
	}
	vcpu->emulated = !error;
	return error;
}

/* The access is made; `data` is what a load gives. */
int cv_emulate_end(struct cv_vcpu *vcpu, u64 data)
{
	u64 esr = vcpu->syndrome;
	u32 bits = 8 << ISS_SAS(esr);

	vcpu->emulated = false;
	if (esr & ISS_WNR)
		return step(vcpu);
	data = esr & ISS_SSE ? sign_extend64(data, bits - 1) : data & (U64_MAX >> (64 - bits));
	if (!(esr & ISS_SF))
		data &= U32_MAX;
	if (ISS_SRT(esr) != 31) {
		int error = set_register(vcpu, ISS_SRT(esr), data);

		if (error)
			return error;
	}
	return step(vcpu);
}

void cv_reset_cache(struct cv_vcpu *vcpu)
{
	unsigned long flags;
	u32 n;

	raw_spin_lock_irqsave(&vcpu->vm->model_lock, flags);
	for (n = 0; n < KSERV_CORE_REGISTERS; n++)
		vcpu->cache[n] = kserv_reset_value(vcpu->vm->model, vcpu->id, n);
	raw_spin_unlock_irqrestore(&vcpu->vm->model_lock, flags);
}

/* Where a vCPU starts that the VM has switched on, and that has not run: the core knows, and its cache has it then. */
static int pull_start(struct cv_vcpu *vcpu)
{
	struct cv_vm *vm = vcpu->vm;

	if (!vm->up || vcpu->in_core || vcpu->by_user || vm->protected ||
	    cv_with_model(vm, kserv_mp_state_get(vm->model, vcpu->id)) != KVM_MP_STATE_RUNNABLE)
		return 0;
	return core_get(vcpu, 0, &vcpu->cache[0]) ?: core_get(vcpu, CV_REG_PC, &vcpu->cache[CV_REG_PC]);
}

/* User space has a store. It has been made, or will be: not twice. */
static bool has_store(const struct cv_vcpu *vcpu)
{
	if (!vcpu->mmio_due)
		return false;
	return vcpu->emulated ? vcpu->syndrome & ISS_WNR : vcpu->last_reason == CV_EXIT_MMIO_WRITE;
}

/* The core's registers of a vCPU go into its cache, for the core's VM is about to end. `life` is held for writing. */
int cv_vcpu_pull(struct cv_vcpu *vcpu)
{
	struct cv_vm *vm = vcpu->vm;
	bool runnable = cv_with_model(vm, kserv_mp_state_get(vm->model, vcpu->id)) == KVM_MP_STATE_RUNNABLE;
	int error = 0;
	u32 n;

	if (at_core(vcpu)) {
		if (has_store(vcpu)) {
			vcpu->mmio_due = false;
			if (vcpu->emulated)
				error = cv_emulate_end(vcpu, 0);
		}
		cv_finish_exit(vcpu);
		for (n = 0; n < KSERV_CORE_REGISTERS; n++) {
			if (kserv_core_register_exists(n))
				error = core_get(vcpu, n, &vcpu->cache[n]) ?: error;
		}
	} else {
		error = pull_start(vcpu);
	}
	vcpu->in_core = false;
	vcpu->unfinished = false;
	vcpu->by_user = runnable;
	return error;
}

/* The cache goes to the core. */
int cv_load_registers(struct cv_vcpu *vcpu)
{
	u32 n;
	int error;

	for (n = 0; n < KSERV_CORE_REGISTERS; n++) {
		/* Those that nobody wrote are zero. */
		if (!vcpu->cache[n] || !kserv_core_register_exists(n))
			continue;
		error = core_set(vcpu, n, vcpu->cache[n]);
		if (error)
			return error;
	}
	return 0;
}

/* Reads or writes the core registers that `reg` is made of. `life` is held, and the vCPU does not run. */
static int reg_words(struct cv_vcpu *vcpu, const struct kserv_reg *reg, bool write, u64 words[2])
{
	int error = 0;
	u32 n;

	if (!reg->words)
		return 0;
	error = cv_finish_exit(vcpu) ?: pull_start(vcpu);
	for (n = 0; !error && n < reg->words; n++) {
		u32 at = reg->core + n;

		if (at >= KSERV_CORE_REGISTERS)
			return -EINVAL;
		/* The answer to a load, and the step over an access, come behind this, as in KVM: by then the core will have forgotten them. */
		vcpu->rewritten |= write && vcpu->mmio_due;
		if (!at_core(vcpu) && write)
			vcpu->cache[at] = words[n];
		else if (!at_core(vcpu))
			words[n] = vcpu->cache[at];
		else if (write)
			error = core_set(vcpu, at, words[n]);
		else
			error = core_get(vcpu, at, &words[n]);
	}
	return error;
}

/* KVM_GET_ONE_REG, KVM_SET_ONE_REG, and the registers of the interrupt controller. The vCPU does not run. */
int cv_reg_access(struct cv_vm *vm, struct kserv_reg *reg, void __user *user, bool write)
{
	struct cv_vcpu *vcpu = reg->vcpu < CV_MAX_VCPUS ? vm->vcpus[reg->vcpu] : NULL;
	u64 core[2] = {}, value[2] = {};
	u32 kick = 0;
	int error;

	if (reg->words && !vcpu)
		return -EINVAL;
	if (reg->size > sizeof(value))
		return -EINVAL;
	if (write && copy_from_user(value, user, reg->size))
		return -EFAULT;
	down_read(&vm->life);
	error = reg->words ? reg_words(vcpu, reg, false, core) : 0;
	if (!error && write) {
		error = cv_with_model(vm, kserv_reg_set(vm->model, reg, cv_now(), value, core, &kick));
		if (!error && reg->words)
			error = reg_words(vcpu, reg, true, core);
	} else if (!error) {
		error = cv_with_model(vm, kserv_reg_get(vm->model, reg, cv_now(), core, value));
	}
	up_read(&vm->life);
	cv_kick(vm, kick);
	if (!error && !write && copy_to_user(user, value, reg->size))
		error = -EFAULT;
	return error;
}

long cv_one_reg(struct cv_vcpu *vcpu, void __user *argp, bool write)
{
	struct kvm_one_reg one;
	struct kserv_reg reg;
	int error;

	if (copy_from_user(&one, argp, sizeof(one)))
		return -EFAULT;
	error = cv_with_model(vcpu->vm, kserv_reg_find(vcpu->vm->model, vcpu->id, one.id, &reg));
	if (error)
		return error;
	reg.vcpu = vcpu->id;
	return cv_reg_access(vcpu->vm, &reg, (void __user *)(unsigned long)one.addr, write);
}

long cv_reg_list(struct cv_vcpu *vcpu, struct kvm_reg_list __user *user)
{
	u32 count = kserv_reg_count(vcpu->vm->model), n;
	u64 room, id;

	if (get_user(room, &user->n) || put_user((u64)count, &user->n))
		return -EFAULT;
	if (room < count)
		return -E2BIG;
	for (n = 0; n < count; n++) {
		id = kserv_reg_id(vcpu->vm->model, n);
		if (put_user(id, &user->reg[n]))
			return -EFAULT;
	}
	return 0;
}
