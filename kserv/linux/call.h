/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The core's calls: HVC #0, x0 the function, x1 to x5 the arguments, x0 to x3 the answer. Semantics: include/corevisor.h.
 *
 * None of them sleeps; each takes a bounded time with interrupts masked at EL2. Only to be made under the core (cv_core_present()): without a
 * hypervisor HVC is undefined.
 */
#ifndef COREVISOR_KVM_CALL_H
#define COREVISOR_KVM_CALL_H

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

/* A call of which only x0 matters: CV_ERR_* or a count. */
static inline s64 cv_call(u64 function, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	return cv_hvc(function, a1, a2, a3, a4, a5).x[0];
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
