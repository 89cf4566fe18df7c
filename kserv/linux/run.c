// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_RUN: a loop around VcpuRun with interrupts off.
 *
 * The physical interrupt that ends a run is taken when they are on again. Whoever wants a vCPU to look around changes the model first and kicks
 * afterwards: the kick finds the thread asleep, or inside, where an interrupt makes it leave.
 */
#include <linux/uaccess.h>
#include <linux/vtime.h>

#include "compat.h"
#include "driver.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* ---- running -------------------------------------------------------------------------------------------------------------- */

/* Makes the core's VM if there is none, and brings the vCPU into it. `life` is held for reading, also if it was let go in between. */
static int be_in_core(struct cv_vcpu *vcpu)
{
	struct cv_vm *vm = vcpu->vm;
	int error;

	while (!vm->up) {
		/* Only one that can run brings the core's VM to life. */
		if (!cv_has_work(vcpu))
			return -EAGAIN;
		up_read(&vm->life);
		mutex_lock(&vm->lock);
		error = 0;
		/* Nobody holds `life` for long while there is none, so nobody needs to be told. */
		if (!READ_ONCE(vm->up)) {
			down_write(&vm->life);
			error = cv_vm_build(vm);
			up_write(&vm->life);
		}
		mutex_unlock(&vm->lock);
		down_read(&vm->life);
		if (error)
			return error;
	}
	if (!vcpu->in_core && vcpu->by_user && !vm->protected)
		return cv_load_registers(vcpu);
	return 0;
}

/* The VM's clock, where it was turned. A protected VM's is not for the host to turn. */
static s64 set_clock(struct cv_vm *vm, u64 cntvoff)
{
	s64 result;

	if (likely(cntvoff == READ_ONCE(vm->cntvoff)) || vm->protected)
		return 0;
	result = cv_call2(CV_CALL_SET_CNTVOFF, vm->id, cntvoff);
	if (!result)
		WRITE_ONCE(vm->cntvoff, cntvoff);
	return result;
}

/*
 * The core masks a timer that fires while the vCPU runs; one that has fired before must not end the run at once: it is held, unless the core may take
 * it for the interrupt in the list register. Whether it is held.
 */
static bool hold_timer(struct cv_vcpu *vcpu)
{
	bool due = !(*cv_mailbox(vcpu, CV_MAILBOX_ENTRY_FLAGS) & CV_ENTRY_TIMER_UNMASK);

	vcpu->timer_masked &= due;
	if (!due || vcpu->timer_masked || *cv_mailbox(vcpu, CV_MAILBOX_DIRECT) & CV_DIRECT_TIMER)
		return false;
	cv_timer_hold();
	return true;
}

/* An entry that succeeded, and its exit: the core has the registers now. */
static void was_inside(struct cv_vcpu *vcpu, s64 reason)
{
	vcpu->in_core = true;
	vcpu->by_user = false;
	vcpu->abort_asked = false;
	vcpu->timer_masked |= reason == CV_EXIT_TIMER;
	vcpu->last_reason = reason;
	vcpu->unfinished = reason != CV_EXIT_IRQ && reason != CV_EXIT_TIMER;
}

/*
 * Whether an exit was answered without leaving enter(): what user space and other threads want of this one comes first, and a held timer's interrupt is for
 * the next entry to decide about.
 */
static bool answered(struct cv_vcpu *vcpu, s64 reason, bool held)
{
	struct cv_vm *vm = vcpu->vm;
	bool done;

	if ((reason != CV_EXIT_SYSREG && reason != CV_EXIT_MMIO_READ) || held || cv_is_disturbed() ||
	    atomic_read(&vm->pausing))
		return false;
	raw_spin_lock(&vm->model_lock);
	done = kserv_answer(vm->model, vcpu->id, reason, vcpu->mailbox, cv_now());
	raw_spin_unlock(&vm->model_lock);
	if (done)
		was_inside(vcpu, reason);
	return done;
}

/* Interrupts are on again. The time since vtime_account_guest_enter() was the VM's; a tick that came meanwhile is taken first, or it would be the system's. */
static void end_guest_time(void)
{
	preempt_disable();
	local_irq_enable();
	isb();
	local_irq_disable();
	vtime_account_guest_exit();
	local_irq_enable();
	preempt_enable();
}

/*
 * One entry, with interrupts off around it; or several, where exits are answered at once. The exit's reason, CV_ERR_*, -EAGAIN if something else is to be done
 * first, -EINTR if the vCPU is off.
 */
static s64 enter(struct cv_vcpu *vcpu, struct kserv_action *action, u32 *kick)
{
	struct cv_vm *vm = vcpu->vm;
	enum kserv_entry entry;
	u64 until = KSERV_NEVER, cntvoff, now;
	s64 reason;
	bool held, timed = false;

	local_irq_disable();
	WRITE_ONCE(vcpu->inside, true);
	smp_mb();
	if (cv_is_disturbed() || atomic_read(&vm->pausing)) {
		reason = -EAGAIN;
		goto out;
	}
	raw_spin_lock(&vm->model_lock);
	now = cv_now();
	entry = kserv_on_entry(vm->model, vcpu->id, vcpu->mailbox, now);
	if (entry == KSERV_ENTRY_RUN)
		until = kserv_run_until(vm->model, vcpu->id, now);
	cntvoff = kserv_cntvoff(vm->model);
	raw_spin_unlock(&vm->model_lock);
	if (entry != KSERV_ENTRY_RUN) {
		reason = -EINTR;
		goto out;
	}
	if (!vcpu->in_core && vcpu->by_user) {
		if (vm->protected)
			cv_protected_start(vcpu);
		else
			*cv_mailbox(vcpu, CV_MAILBOX_ENTRY_FLAGS) |= CV_ENTRY_KEEP_REGISTERS;
	}
	if (until != KSERV_NEVER)
		cv_set_timer(vcpu, until);

	held = hold_timer(vcpu);
	reason = set_clock(vm, cntvoff);
	if (!reason) {
		timed = true;
		vtime_account_guest_enter();
		do {
			trace_kvm_entry(vcpu->id);
			reason = cv_run(vm->id, vcpu->id);
			trace_kvm_exit(vcpu->id, reason, *cv_mailbox(vcpu, CV_MAILBOX_ESR), *cv_mailbox(vcpu, CV_MAILBOX_IPA));
		} while (answered(vcpu, reason, held));
	}

	raw_spin_lock(&vm->model_lock);
	if (reason < 0)
		kserv_not_entered(vm->model, vcpu->id, vcpu->mailbox);
	else
		kserv_on_exit(vm->model, vcpu->id, reason, vcpu->mailbox, cv_now(), action, kick);
	raw_spin_unlock(&vm->model_lock);
	if (held)
		cv_timer_release();
	if (reason >= 0)
		was_inside(vcpu, reason);
out:
	WRITE_ONCE(vcpu->inside, false);
	if (timed)
		end_guest_time();
	else
		local_irq_enable();
	if (until != KSERV_NEVER)
		hrtimer_cancel(&vcpu->timer);
	return reason;
}

static void end_with_abort(struct cv_vcpu *vcpu)
{
	vcpu->abort_asked = true;
	cv_with_model(vcpu->vm, (kserv_abort(vcpu->vm->model, vcpu->id), 0));
}

/* Nothing, if it was a store. */
static void finish_load(struct cv_vcpu *vcpu, u64 data)
{
	cv_with_model(vcpu->vm, (kserv_mmio_done(vcpu->vm->model, vcpu->id, vcpu->mailbox, data), 0));
}

/* User space makes the access, unless it is a store that an eventfd waits for. 0: served; 1: to user space. */
static int device_access(struct cv_vcpu *vcpu, const struct kserv_action *action)
{
	struct kvm_run *run = vcpu->run;

	if (action->write && cv_ioeventfd_write(vcpu->vm, action->addr, action->len, action->data))
		return 0;
	run->exit_reason = KVM_EXIT_MMIO;
	run->mmio.phys_addr = action->addr;
	run->mmio.len = action->len;
	run->mmio.is_write = action->write;
	memset(run->mmio.data, 0, sizeof(run->mmio.data));
	if (action->write)
		memcpy(run->mmio.data, &action->data, action->len);
	vcpu->mmio_due = true;
	vcpu->rewritten = false;
	return 1;
}

/* An access outside of where the core knows memory. 0: served; 1: user space does it. */
static int serve_mmio(struct cv_vcpu *vcpu, const struct kserv_action *action)
{
	u64 data = action->data;
	int error;

	error = cv_memory_access(vcpu->vm, action->addr, &data, action->len, action->write);
	if (!error) {
		if (!action->write)
			finish_load(vcpu, data);
		/* What is below a VM's memory stays the VMM's (flash), for a protected VM. */
		if (vcpu->vm->protected)
			return 0;
		/* What cannot be lent is served so each time. */
		error = cv_memory_fault(vcpu->vm, action->addr, action->write);
		return error == -ENOENT || error == -EPERM ? 0 : error;
	}
	return error == -EFAULT ? error : device_access(vcpu, action);
}

/*
 * The translation service has commands, or tables to save or restore: they and what they name are in the VM's memory. its_lock is held. `patient`: to the end; else,
 * as a VM can give it commands for as long as it likes, up to the command before which this thread, or `life`, is wanted. Whether that was the end.
 */
bool cv_its_serve(struct cv_vm *vm, bool patient)
{
	struct kserv_its_want want;
	u32 kick;

	while (cv_with_model(vm, kserv_its_next(vm->model, &want))) {
		u8 bytes[32] = {};
		bool ok;

		/* Between two commands the registers say all that there is to know, to who saves them meanwhile. */
		if (!patient && want.command && (cv_is_wanted() || atomic_read(&vm->pausing)))
			return false;
		if (want.write)
			ok = !cv_memory_access(vm, want.gpa, want.bytes, min_t(u32, want.len, sizeof(want.bytes)), true);
		else
			ok = !cv_memory_access(vm, want.gpa, bytes, min_t(u32, want.len, sizeof(bytes)), false);
		kick = 0;
		cv_with_model(vm, (kserv_its_feed(vm->model, bytes, ok, &kick), 0));
		cv_kick(vm, kick);
		if (fatal_signal_pending(current))
			return false;
		cond_resched();
	}
	return true;
}

/* The VM gave it commands. What is left of them is done before this vCPU runs again. */
static int serve_its(struct cv_vcpu *vcpu)
{
	mutex_lock(&vcpu->vm->its_lock);
	vcpu->commands_left = !cv_its_serve(vcpu->vm, false);
	mutex_unlock(&vcpu->vm->its_lock);
	return 0;
}

/* An access above the start of VMs' memory: the interrupt controller may be there, too. 0: served; 1: user space does it. */
static int emulated_access(struct cv_vcpu *vcpu, const struct kserv_action *action)
{
	struct cv_vm *vm = vcpu->vm;
	u64 value = action->data;
	u32 kick = 0;
	int error;
	enum kserv_device device = cv_with_model(vm, kserv_device_access(vm->model, vcpu->id, action->addr, action->len,
									 action->write, &value, &kick));

	cv_kick(vm, kick);
	if (device == KSERV_DEVICE_NOT_HERE && device_access(vcpu, action))
		return 1;
	error = cv_emulate_end(vcpu, value);
	if (!error && device == KSERV_DEVICE_SERVED_ITS)
		return serve_its(vcpu);
	return error;
}

/* Memory that is not there yet, or no memory. 0: it is there, or the VM takes an abort; 1: user space is asked. */
static int serve_fault(struct cv_vcpu *vcpu, struct kserv_action *action)
{
	struct kvm_run *run = vcpu->run;
	int error = cv_memory_fault(vcpu->vm, action->addr, action->write);

	if (error != -ENOENT && error != -EACCES)
		return error;
	error = action->fetch ? -EPERM : cv_emulate_begin(vcpu, action, error == -EACCES);
	if (!error)
		return emulated_access(vcpu, action);
	if (error == -EALREADY)
		return 0;
	if (error == -ENOSYS) {
		if (!vcpu->vm->nisv_to_user)
			return -ENOSYS;
		run->exit_reason = KVM_EXIT_ARM_NISV;
		run->arm_nisv.esr_iss = action->esr;
		run->arm_nisv.fault_ipa = action->addr;
		return 1;
	}
	end_with_abort(vcpu);
	return 0;
}

static int system_event(struct cv_vcpu *vcpu, const struct kserv_action *action)
{
	struct kvm_run *run = vcpu->run;

	memset(&run->system_event, 0, sizeof(run->system_event));
	run->exit_reason = KVM_EXIT_SYSTEM_EVENT;
	run->system_event.type = action->event;
	run->system_event.ndata = action->event_ndata;
	if (action->event_ndata)
		run->system_event.data[0] = action->data;
	return 1;
}

/* What follows from an exit. 0: the vCPU runs on; 1: to user space, whose kvm_run is filled; else an error. */
static int serve(struct cv_vcpu *vcpu, struct kserv_action *action)
{
	switch (action->kind) {
	case KSERV_RUN:
	case KSERV_BLOCK:
	case KSERV_OFF:
	case KSERV_STOPPED:
		return 0;
	case KSERV_MMIO:
		return serve_mmio(vcpu, action);
	case KSERV_FAULT:
		return serve_fault(vcpu, action);
	case KSERV_ITS:
		return serve_its(vcpu);
	case KSERV_SYSTEM_EVENT:
		return system_event(vcpu, action);
	default:
		vcpu->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
		vcpu->run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
		vcpu->run->internal.ndata = 1;
		vcpu->run->internal.data[0] = action->esr;
		return 1;
	}
}

static int interrupted(struct cv_vcpu *vcpu)
{
	cv_with_model(vcpu->vm, (kserv_end_wait(vcpu->vm->model, vcpu->id), 0));
	vcpu->run->exit_reason = KVM_EXIT_INTR;
	vcpu->exits_signal++;
	return -EINTR;
}

/* One turn of KVM_RUN's loop; `life` is held. 0: again; 1: to user space; -EAGAIN: wait for work first. */
static int turn(struct cv_vcpu *vcpu, bool *ended)
{
	struct kserv_action action = {};
	u32 kick = 0;
	s64 reason;
	int result;

	vcpu->waits = false;
	result = be_in_core(vcpu);
	if (result)
		return result;
	if (vcpu->commands_left) {
		serve_its(vcpu);
		if (vcpu->commands_left)
			return 0;
	}
	reason = enter(vcpu, &action, &kick);
	if (kick)
		cv_kick(vcpu->vm, kick);
	if (reason == -EAGAIN)
		return 0;
	if (reason == -EINTR)
		return -EAGAIN;
	if (reason == CV_ERR_WRONG_STATE) {
		/* Another vCPU has just switched the VM off, and will say so. */
		return -EAGAIN;
	}
	if (reason < 0) {
		pr_err_ratelimited("corevisor_kvm: the core does not run vCPU %u of VM %llu: %lld\n", vcpu->id,
				   vcpu->vm->id, reason);
		return cv_errno(reason);
	}
	if (!list_empty(&vcpu->vm->resamplers))
		cv_irq_resampled(vcpu->vm);
	*ended = action.kind == KSERV_SYSTEM_EVENT || action.kind == KSERV_FAIL;
	/* Its memory is gone; another vCPU must not begin anew from the images, which nobody asked for. */
	if (action.kind == KSERV_FAIL && vcpu->vm->protected)
		WRITE_ONCE(vcpu->vm->failed, true);
	vcpu->waits = action.kind == KSERV_BLOCK;
	result = serve(vcpu, &action);
	if (!result && (action.kind == KSERV_BLOCK || action.kind == KSERV_OFF || action.kind == KSERV_STOPPED))
		return -EAGAIN;
	return result;
}

/* Whether nothing wants anything of this thread or of `life`. */
static bool undisturbed(struct cv_vcpu *vcpu)
{
	return !cv_is_disturbed() && !atomic_read(&vcpu->vm->pausing) && !cv_irq_level_changed(vcpu);
}

static int run_loop(struct cv_vcpu *vcpu)
{
	struct cv_vm *vm = vcpu->vm;
	/* Whether the last turn, or wait, left the vCPU so that it goes on. */
	bool ready = false, ended = false;
	int result;

	for (;;) {
		cv_give_way();
		if (cv_is_wanted())
			return interrupted(vcpu);
		/* So that `life` is free for who ends the VM. */
		if (cv_is_leaving())
			return -ESHUTDOWN;
		if (cv_irq_level_changed(vcpu))
			return interrupted(vcpu);
		if (!ready && !cv_has_work(vcpu)) {
			ready = cv_wait_for_work(vcpu);
			continue;
		}
		down_read(&vm->life);
		do
			result = turn(vcpu, &ended);
		while (!result && undisturbed(vcpu));
		up_read(&vm->life);
		if (ended)
			cv_vm_retire(vm);
		ready = !result;
		if (result == -EAGAIN)
			ready = cv_wait_for_work(vcpu);
		else if (result)
			return min(result, 0);
	}
}

static void show_irq_level(struct cv_vcpu *vcpu)
{
	if (READ_ONCE(vcpu->vm->has_gic))
		return;
	vcpu->irq_level_told = cv_with_model(vcpu->vm, kserv_irq_level(vcpu->vm->model, vcpu->id, cv_now()));
	vcpu->run->s.regs.device_irq_level = vcpu->irq_level_told;
}

/* User space has made an access: what it loaded is in kvm_run. */
static int take_answer(struct cv_vcpu *vcpu)
{
	u64 data = 0;
	int error = 0;

	if (!vcpu->mmio_due)
		return 0;
	memcpy(&data, vcpu->run->mmio.data, min_t(u32, READ_ONCE(vcpu->run->mmio.len), sizeof(data)));
	/* Who takes the core's VM apart meanwhile ends this exit for us, with what the mailbox has: all of the answer, or nothing. */
	down_read(&vcpu->vm->life);
	vcpu->mmio_due = false;
	if (vcpu->emulated)
		error = cv_emulate_end(vcpu, data);
	else
		finish_load(vcpu, data);
	if (!error && vcpu->rewritten)
		error = cv_finish_exit(vcpu);
	up_read(&vcpu->vm->life);
	return error;
}

long cv_vcpu_run(struct cv_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	int result;

	if (!cv_with_model(vcpu->vm, kserv_vcpu_initialized(vcpu->vm->model, vcpu->id)))
		return -ENOEXEC;
	if (READ_ONCE(vcpu->vm->failed))
		return -EIO;
	result = take_answer(vcpu);
	if (result)
		return result;
	if (cv_immediate_exit(run)) {
		/* What user space did is done: it may look at the registers, or save them. */
		down_read(&vcpu->vm->life);
		cv_finish_exit(vcpu);
		up_read(&vcpu->vm->life);
		return -EINTR;
	}
	/* In `real_blocked` the old mask keeps a signal that is blocked outside, and ignored: it ends a run, too. */
	if (vcpu->sigset_active)
		sigprocmask(SIG_SETMASK, &vcpu->sigset, &current->real_blocked);
	rcu_assign_pointer(vcpu->task, current);
	run->exit_reason = KVM_EXIT_UNKNOWN;
	result = run_loop(vcpu);
	rcu_assign_pointer(vcpu->task, NULL);
	show_irq_level(vcpu);
	vcpu->exits_user++;
	if (vcpu->sigset_active) {
		sigprocmask(SIG_SETMASK, &current->real_blocked, NULL);
		sigemptyset(&current->real_blocked);
	}
	return result;
}
