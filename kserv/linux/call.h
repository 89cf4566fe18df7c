/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The core's calls: HVC #0, x0 the function, x1 to x5 the arguments (of MapRuns to x17), x0 to x3 the answer; the core leaves the others as they were.
 * Semantics: include/corevisor.h.
 *
 * None of them sleeps; each takes a bounded time with interrupts masked at EL2. Only to be made under the core (cv_core_present()): without a
 * hypervisor HVC is undefined.
 */
#ifndef COREVISOR_KVM_CALL_H
#define COREVISOR_KVM_CALL_H

#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/types.h>

#include "corevisor.h"

struct cv_answer {
	u64 x[4];
};

static inline struct cv_answer cv_hvc(u64 function, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	register u64 x0 asm("x0") = function;
	register u64 x1 asm("x1") = a1;
	register u64 x2 asm("x2") = a2;
	register u64 x3 asm("x3") = a3;
	register u64 x4 asm("x4") = a4;
	register u64 x5 asm("x5") = a5;

	asm volatile("hvc #0"
		     : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3), "+r"(x4), "+r"(x5)
		     :
		     : "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
		       "x16", "x17", "memory");
	return (struct cv_answer){ { x0, x1, x2, x3 } };
}

/*
 * MapRuns of `count` runs: pages mapped, or CV_ERR_*. By hand, because arm_smccc_1_2_hvc() goes through memory, for all registers and both ways.
 */
static inline s64 cv_map_runs(u64 vm, u64 gpa, u64 count, u64 flags, const u64 runs[CV_MAX_RUNS])
{
	/* Read before any register is set: a sanitizer may make a call of each access to memory. */
	const u64 r0 = runs[0], r1 = runs[1], r2 = runs[2], r3 = runs[3], r4 = runs[4], r5 = runs[5], r6 = runs[6], r7 = runs[7], r8 = runs[8],
		  r9 = runs[9], r10 = runs[10], r11 = runs[11], r12 = runs[12];
	register u64 x0 asm("x0") = CV_CALL_MAP_RUNS;
	register u64 x1 asm("x1") = vm;
	register u64 x2 asm("x2") = gpa;
	register u64 x3 asm("x3") = count;
	register u64 x4 asm("x4") = flags;
	register u64 x5 asm("x5") = r0;
	register u64 x6 asm("x6") = r1;
	register u64 x7 asm("x7") = r2;
	register u64 x8 asm("x8") = r3;
	register u64 x9 asm("x9") = r4;
	register u64 x10 asm("x10") = r5;
	register u64 x11 asm("x11") = r6;
	register u64 x12 asm("x12") = r7;
	register u64 x13 asm("x13") = r8;
	register u64 x14 asm("x14") = r9;
	register u64 x15 asm("x15") = r10;
	register u64 x16 asm("x16") = r11;
	register u64 x17 asm("x17") = r12;

	BUILD_BUG_ON(CV_MAX_RUNS != 13);
	asm volatile("hvc #0"
		     : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)
		     : "r"(x4), "r"(x5), "r"(x6), "r"(x7), "r"(x8), "r"(x9), "r"(x10), "r"(x11),
		       "r"(x12), "r"(x13), "r"(x14), "r"(x15), "r"(x16), "r"(x17)
		     : "memory");
	return x0;
}

/* A call of which only x0 matters: CV_ERR_* or a count. */
static inline s64 cv_call(u64 function, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	return cv_hvc(function, a1, a2, a3, a4, a5).x[0];
}

/* VcpuRun, by hand too: registers that are no arguments need not be set. */
static inline s64 cv_run(u64 vm, u64 vcpu)
{
	register u64 x0 asm("x0") = CV_CALL_VCPU_RUN;
	register u64 x1 asm("x1") = vm;
	register u64 x2 asm("x2") = vcpu;

	asm volatile("hvc #0"
		     : "+r"(x0), "+r"(x1), "+r"(x2)
		     :
		     : "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
		       "x16", "x17", "memory");
	return x0;
}

#define cv_call1(function, a1) cv_call(function, a1, 0, 0, 0, 0)
#define cv_call2(function, a1, a2) cv_call(function, a1, a2, 0, 0, 0)
#define cv_call3(function, a1, a2, a3) cv_call(function, a1, a2, a3, 0, 0)
#define cv_call4(function, a1, a2, a3, a4) cv_call(function, a1, a2, a3, a4, 0)

/* What user space hears of a refusal that the driver did not expect. */
static inline int cv_errno(s64 error)
{
	switch (error) {
	case CV_ERR_NOT_SUPPORTED:
		return -EOPNOTSUPP;
	case CV_ERR_NO_MEMORY:
		return -ENOMEM;
	case CV_ERR_NO_SPACE:
		return -ENOSPC;
	case CV_ERR_BUSY:
	case CV_ERR_AGAIN:
		return -EBUSY;
	case CV_ERR_NO_SUCH_OBJECT:
		return -ENOENT;
	case CV_ERR_NOT_OWNER:
	case CV_ERR_IN_USE:
		return -EPERM;
	case CV_ERR_OCCUPIED:
		return -EEXIST;
	case CV_ERR_NOT_AUTHENTIC:
		return -EKEYREJECTED;
	case CV_ERR_WRONG_STATE:
		return -EIO;
	default:
		return error < 0 ? -EINVAL : 0;
	}
}

#endif
