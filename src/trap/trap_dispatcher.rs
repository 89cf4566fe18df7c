//! Layer 32, TrapDispatcher: which call, which answer.
//!
//! | primitive                | answers                                    | lock            |
//! |--------------------------|--------------------------------------------|-----------------|
//! | [`host_hvc_dispatcher`]  | a hypercall of the host                    | by call         |
//! | [`host_smc_dispatcher`]  | an SMC of the host: PSCI and a whitelist   | S2Page, for entry points |
//! | [`vm_exit_dispatcher`](vm_exit::vm_exit_dispatcher) | a trap of a VM  | by case         |
//!
//! A call is checked whole before anything is done; a wrong one gets an error with a name, whatever it is, and never
//! stops the machine.
//!
//! Below: FaultHandler. Above: TrapHandlerRaw. Specification: `spec::trap`. Source: SeKVM layer TrapDispatcher; K §2 L32, §4.1.
#![forbid(unsafe_code)]

pub mod vm_exit;

use super::Core;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::{Machine, SmcOutcome};
use crate::interface::{CORE_UID, CallError, HostCall, INTERFACE_VERSION};
use crate::memory::memory_ops;
use crate::vm::host_calls;

/// Answers the host's hypercall with the arguments `args` (x0 is the number): x0 to x3. VcpuRun is not among them: it is an entry
/// point of its own (`trap_handler::host_vcpu_run_handler`). K: `host_hvc_dispatcher`.
///
/// # Errors
/// [`CallError::NotSupported`] for an unknown number, [`CallError::InvalidParameter`], and what the call says. Nothing has changed then.
#[inline]
pub fn host_hvc_dispatcher<M: Machine>(core: &Core<M>, args: &[u64; 6]) -> Result<[u64; 4], CallError> {
    let [function, x1, x2, x3, ..] = *args;
    // The null call is what a host measures: nothing else stands before it.
    if function == HostCall::CoreVersion.function() {
        return Ok([INTERFACE_VERSION, x1, x2, x3]);
    }
    host_call(core, args)
}

// Out of line, so that the null call pays for nothing of this.
#[inline(never)]
fn host_call<M: Machine>(core: &Core<M>, args: &[u64; 6]) -> Result<[u64; 4], CallError> {
    let [function, x1, x2, x3, x4, x5] = *args;
    // Neither CoreVersion nor VcpuRun: they were answered before.
    match HostCall::from_function(function).ok_or(CallError::NotSupported)? {
        HostCall::CoreStatistics => Ok([0, statistics(core, x1)?, x2, x3]),
        HostCall::CoreLogRead => {
            let (next, text) = log_read(core, x1);
            Ok([0, next, text as u64, (text >> 64) as u64])
        }
        HostCall::CallUid => Ok(CORE_UID),
        HostCall::CallRevision => Ok([INTERFACE_VERSION >> 16, INTERFACE_VERSION & 0xffff, x2, x3]),
        HostCall::CoreInfo => Ok(info(core)),
        call => host_calls::vm_call(core.vms(), call, [x1, x2, x3, x4, x5]),
    }
}

/// What this machine can do for VMs.
fn info<M: Machine>(core: &Core<M>) -> [u64; 4] {
    let vgic = core.machine().vgic_info();
    let sizes = u64::from(vgic.version)
        | u64::from(core.memory().npts().host().acquire().shape().ia_bits()) << 8
        | CONTEXT_PAGES << 16;
    [0, vgic.list_registers.into(), sizes, vgic.gicv.map_or(0, |window| window.base().raw())]
}

/// Pages of a VM's pool that each vCPU takes.
const CONTEXT_PAGES: u64 = 1;

fn statistics<M: Machine>(core: &Core<M>, event: u64) -> Result<u64, CallError> {
    let event = usize::try_from(event).ok().and_then(|n| Event::ALL.get(n)).ok_or(CallError::InvalidParameter)?;
    Ok(core.machine().counted(*event))
}

/// Next sequence number, and 16 bytes of text, the first in the low byte.
fn log_read<M: Machine>(core: &Core<M>, seq: u64) -> (u64, u128) {
    let mut text = [0; 16];
    let (next, _) = core.machine().read_log(seq, &mut text);
    (next, u128::from_le_bytes(text))
}

/// Answers the host's SMC with the arguments `args` (x0 is the number). It may not return: CPU off, system off.
pub fn host_smc_dispatcher<M: Machine>(core: &Core<M>, args: [u64; 4]) -> SmcOutcome {
    core.machine().host_smc(args, &|ipa| memory_ops::is_host_memory(core.memory(), ipa))
}
