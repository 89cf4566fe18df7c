/* SPDX-License-Identifier: GPL-2.0 */
/* Trace events, named like KVM's: /sys/kernel/tracing/events/corevisor_kvm. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM corevisor_kvm

#if !defined(COREVISOR_KVM_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define COREVISOR_KVM_TRACE_H

#include <linux/tracepoint.h>

#define cv_exit_names							\
	{ CV_EXIT_IRQ, "irq" }, { CV_EXIT_TIMER, "timer" }, { CV_EXIT_WFX, "wfx" }, { CV_EXIT_MMIO_READ, "mmio_read" },	\
	{ CV_EXIT_MMIO_WRITE, "mmio_write" }, { CV_EXIT_MEMORY_FAULT, "memory_fault" }, { CV_EXIT_PSCI, "psci" },	\
	{ CV_EXIT_SYSREG, "sysreg" }, { CV_EXIT_SYSTEM_OFF, "system_off" }, { CV_EXIT_STOPPED, "stopped" },	\
	{ CV_EXIT_FAILED, "failed" }

TRACE_EVENT(kvm_entry,
	TP_PROTO(u32 vcpu),
	TP_ARGS(vcpu),
	TP_STRUCT__entry(
		__field(u32, vcpu)
	),
	TP_fast_assign(
		__entry->vcpu = vcpu;
	),
	TP_printk("vcpu %u", __entry->vcpu)
);

TRACE_EVENT(kvm_exit,
	TP_PROTO(u32 vcpu, s64 reason, u64 esr, u64 ipa),
	TP_ARGS(vcpu, reason, esr, ipa),
	TP_STRUCT__entry(
		__field(u32, vcpu)
		__field(s64, reason)
		__field(u64, esr)
		__field(u64, ipa)
	),
	TP_fast_assign(
		__entry->vcpu = vcpu;
		__entry->reason = reason;
		__entry->esr = esr;
		__entry->ipa = ipa;
	),
	TP_printk("vcpu %u reason %s esr 0x%llx ipa 0x%llx", __entry->vcpu,
		  __print_symbolic(__entry->reason, cv_exit_names), __entry->esr, __entry->ipa)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
