// SPDX-License-Identifier: GPL-2.0
/*
 * A vCPU that has nothing to do: its thread looks for a while whether that ends, as KVM's does (halt_poll_ns), and sleeps then.
 *
 * Whoever has work for it changes the model, says so in `kicked`, and wakes the thread, in this order (cv_kick).
 */
#include <linux/sched/stat.h>

#include "driver.h"

enum hrtimer_restart cv_timer_fired(struct hrtimer *timer)
{
	struct cv_vcpu *vcpu = container_of(timer, struct cv_vcpu, timer);

	/* A vCPU that runs has left by the interrupt itself. */
	rcuwait_wake_up(&vcpu->wait);
	return HRTIMER_NORESTART;
}

/* The vCPU's timer fires at `at`. */
void cv_set_timer(struct cv_vcpu *vcpu, u64 at)
{
	u64 now, ticks, ns;

	/* Time that passes between the look at the clock and the start would be added. */
	preempt_disable();
	now = cv_now();
	ticks = at > now ? at - now : 0;
	/* Whoever waits for longer than a day looks at it again then. Not earlier than it is. */
	ns = cv_ns_of(min_t(u64, ticks, 86400ull * read_sysreg(cntfrq_el0))) + 1;
	hrtimer_start(&vcpu->timer, ns_to_ktime(ns), HRTIMER_MODE_REL_PINNED_HARD);
	preempt_enable();
}

bool cv_has_work(struct cv_vcpu *vcpu)
{
	return cv_with_model(vcpu->vm, kserv_runnable(vcpu->vm->model, vcpu->id, cv_now())) || cv_irq_level_changed(vcpu);
}

/* Whether this CPU has nothing better to do than to look at a vCPU that waits. */
static bool may_poll(void)
{
	return single_task_running() && !cv_is_disturbed();
}

/*
 * Looks for work from `start` on for as long as the vCPU's window is, without sleep. `until`: when there will be some. Whether there is. The model and its lock
 * are left alone until the time has come, or somebody has changed it.
 */
static bool poll_for_work(struct cv_vcpu *vcpu, u64 start, u64 until)
{
	u64 now = start;
	bool found = false;

	vcpu->polls++;
	do {
		if (now >= until || READ_ONCE(vcpu->kicked)) {
			smp_store_mb(vcpu->kicked, false);
			found = cv_has_work(vcpu);
			/* A deadline that leads to no work is none. */
			if (now >= until)
				until = KSERV_NEVER;
		}
		cpu_relax();
		now = cv_now();
	} while (!found && now - start < vcpu->poll_window && may_poll());
	vcpu->polls_good += found;
	*(found ? &vcpu->poll_good_ticks : &vcpu->poll_vain_ticks) += now - start;
	return found;
}

/*
 * Sleeps until the vCPU has something to do, or a signal comes. Whether it has. At each look its timer is set anew: it may have fired early (the deadline
 * is of the counter, the timer follows a clock whose rate is adjusted), been set for less than the whole time, or the deadline may be another one.
 */
static bool sleep_for_work(struct cv_vcpu *vcpu)
{
	bool found;
	u64 until;

	prepare_to_rcuwait(&vcpu->wait);
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		found = cv_has_work(vcpu);
		if (found || cv_is_wanted())
			break;
		until = cv_with_model(vcpu->vm, kserv_block_until(vcpu->vm->model, vcpu->id));
		if (until != KSERV_NEVER)
			cv_set_timer(vcpu, until);
		schedule();
	}
	finish_rcuwait(&vcpu->wait);
	hrtimer_cancel(&vcpu->timer);
	return found;
}

/* Waits until the vCPU has something to do, or a signal comes. Whether it has. */
bool cv_wait_for_work(struct cv_vcpu *vcpu)
{
	u64 until = cv_with_model(vcpu->vm, kserv_block_until(vcpu->vm->model, vcpu->id));
	u64 most = mul_u64_u32_div(read_sysreg(cntfrq_el0), READ_ONCE(cv_halt_poll_ns), NSEC_PER_SEC);
	u64 start = cv_now(), asleep;
	bool found;

	vcpu->halts++;
	vcpu->poll_window = min(vcpu->poll_window, most);
	found = vcpu->waits && vcpu->poll_window && poll_for_work(vcpu, start, until);
	if (!found) {
		asleep = cv_now();
		found = sleep_for_work(vcpu);
		vcpu->sleep_ticks += cv_now() - asleep;
	}
	if (vcpu->waits)
		vcpu->poll_window = kserv_poll_window(vcpu->poll_window, cv_now() - start, most);
	return found;
}
