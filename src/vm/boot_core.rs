//! Layer 19, BootCore: the numbers that are given out.
//!
//! | primitive          | does                                        | lock |
//! |--------------------|---------------------------------------------|------|
//! | [`gen_vmid`]       | gives the lowest free VM id                 | Core |
//! | [`free_vmid`]      | takes one back                              | Core |
//! | [`gen_snapshot`]   | gives the number of a snapshot, never again | Core |
//!
//! The proof counts up and panics at the end, so that a machine starts 15 VMs between two reboots (K §4.4). Here an id is free again
//! when its VM is destroyed: by then no TLB knows it, for the layer below flushed it before it gave the table's pages back. The remap
//! addresses of the proof (`alloc_remap_addr`) do not exist: an image goes straight to where the VM sees it.
//!
//! Below: VMPower. Above: BootAux. Specification: `spec::vm`. Source: SeKVM layer BootCore; K §2 L19.
#![forbid(unsafe_code)]

use super::Vms;
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::VmId;
use crate::interface::CallError;
use crate::interface::calls::MAX_VMS;

/// Gives the lowest id that is in no use. Nobody else gets it until [`free_vmid`]. K: `gen_vmid`.
///
/// # Errors
/// [`CallError::NoSpace`] if all are in use.
pub fn gen_vmid<M: Machine>(vms: &Vms<M>) -> Result<VmId, CallError> {
    let mut ids = vms.ids().acquire();
    let lowest = ids.vms.trailing_ones();
    if u64::from(lowest) >= MAX_VMS {
        return Err(CallError::NoSpace);
    }
    ids.vms |= 1 << lowest;
    Ok(VmId::new(lowest as u16 + 1))
}

/// The number of a new snapshot: never given before, from 1 on.
pub fn gen_snapshot<M: Machine>(vms: &Vms<M>) -> u64 {
    let mut ids = vms.ids().acquire();
    ids.snapshots += 1;
    ids.snapshots
}

/// Takes `vm` back; no VM has it any more. The VM's lock may be held.
pub fn free_vmid<M: Machine>(vms: &Vms<M>, vm: VmId) {
    let mut ids = vms.ids().acquire();
    if let Some(bit) = u32::from(vm.raw()).checked_sub(1).and_then(|n| 1u128.checked_shl(n)) {
        ids.vms &= !bit;
    }
}
