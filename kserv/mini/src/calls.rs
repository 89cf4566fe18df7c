//! The core's calls with types: one function for each call that this host makes. Semantics: `corevisor_interface::calls`.
#![forbid(unsafe_code)]

use alloc::string::String;

use corevisor_interface::calls::{ARGUMENTS, CallError, HostCall, MAX_RUNS};
use corevisor_interface::mailbox::ExitReason;
use kserv_model::vm::GicVersion;

use crate::arch::call::{hvc, hvc_long};
use crate::arch::registers;
use crate::pages::PAGE;

/// Any call, any arguments: x0 to x3.
///
/// # Errors
/// What the core said.
pub fn raw(call: HostCall, arguments: [u64; 5]) -> Result<[u64; 4], CallError> {
    named(hvc(call.function(), arguments))
}

fn named(x: [u64; 4]) -> Result<[u64; 4], CallError> {
    if (x[0] as i64) < 0 { Err(CallError::from_x0(x[0]).unwrap_or(CallError::NotSupported)) } else { Ok(x) }
}

/// The same, whatever the core makes of it. Of a MapRuns each further run is the one that is named, another two pages on.
pub fn bare(call: HostCall, arguments: [u64; 5]) -> [u64; 4] {
    if call != HostCall::MapRuns {
        return hvc(call.function(), arguments);
    }
    let mut all = [0; ARGUMENTS];
    let (named, further) = all.split_at_mut(arguments.len());
    named.copy_from_slice(&arguments);
    let mut run = arguments[4];
    for x in further {
        run = run.wrapping_add(2 * PAGE);
        *x = run;
    }
    hvc_long(call.function(), all)
}

fn one(call: HostCall, arguments: [u64; 5]) -> Result<u64, CallError> {
    raw(call, arguments).map(|x| x[0])
}

/// What the machine can do for VMs.
#[derive(Clone, Copy, Debug)]
pub struct CoreInfo {
    /// GIC list registers.
    pub list_registers: usize,
    /// Interrupt controller of VMs.
    pub gic: Option<GicVersion>,
    /// Most bits of a VM's addresses.
    pub ipa_bits: u64,
    /// Context pages of a vCPU.
    pub context_pages: u64,
    /// GICv2 virtual CPU interface.
    pub gicv: u64,
}

/// Version of the interface.
///
/// # Errors
/// What the core said, as for each function here.
pub fn version() -> Result<u64, CallError> {
    one(HostCall::CoreVersion, [0; 5])
}

/// How often the core has counted this event.
pub fn core_statistics(event: u64) -> Result<u64, CallError> {
    raw(HostCall::CoreStatistics, [event, 0, 0, 0, 0]).map(|x| x[1])
}

/// What the machine can do for VMs.
pub fn core_info() -> Result<CoreInfo, CallError> {
    raw(HostCall::CoreInfo, [0; 5]).map(|x| CoreInfo {
        list_registers: x[1] as usize,
        gic: GicVersion::from_core_info(x[2]),
        ipa_bits: x[2] >> 8 & 0xff,
        context_pages: x[2] >> 16 & 0xff,
        gicv: x[3],
    })
}

/// A new VM: its id.
pub fn register_vm(kind: u64, ipa_bits: u64, root: u64) -> Result<u64, CallError> {
    raw(HostCall::RegisterVm, [kind, ipa_bits, root, 0, 0]).map(|x| x[1])
}

/// A new vCPU.
pub fn register_vcpu(vm: u64, vcpu: u64, mailbox: u64) -> Result<(), CallError> {
    one(HostCall::RegisterVcpu, [vm, vcpu, mailbox, 0, 0]).map(|_| ())
}

/// Pages for the VM's pool: how many were given.
pub fn donate_pool(vm: u64, pa: u64, pages: u64) -> Result<u64, CallError> {
    one(HostCall::DonatePool, [vm, pa, pages, 0, 0])
}

/// Pages of the pool: free, all.
pub fn pool_info(vm: u64) -> Result<(u64, u64), CallError> {
    raw(HostCall::PoolInfo, [vm, 0, 0, 0, 0]).map(|x| (x[1], x[2]))
}

/// One more image: its index.
pub fn set_boot_info(vm: u64, gpa: u64, size: u64) -> Result<u64, CallError> {
    raw(HostCall::SetBootInfo, [vm, gpa, size, 0, 0]).map(|x| x[1])
}

/// The next pages of an image: how many it took.
pub fn remap_image_pages(vm: u64, image: u64, pa: u64, pages: u64) -> Result<u64, CallError> {
    one(HostCall::RemapImagePages, [vm, image, pa, pages, 0])
}

/// Checks the images; to be repeated while it says `Again`.
pub fn verify_vm(vm: u64, manifest: u64) -> Result<(), CallError> {
    one(HostCall::VerifyVm, [vm, manifest, 0, 0, 0]).map(|_| ())
}

/// The same, with every register of this host full.
///
/// # Errors
/// The outer one names the register that is not what it was.
pub fn verify_vm_filled(vm: u64, manifest: u64) -> Result<Result<(), CallError>, String> {
    let [x0, ..] = registers::run(HostCall::VerifyVm.function(), vm, manifest)?;
    Ok(CallError::from_x0(x0).map_or(Ok(()), Err))
}

/// Memory for the VM: pages mapped.
pub fn map_memory(vm: u64, gpa: u64, pa: u64, pages: u64, flags: u64) -> Result<u64, CallError> {
    one(HostCall::MapMemory, [vm, gpa, pa, pages, flags])
}

/// Memory that lies anywhere: pages mapped. `runs` are as the call takes them.
pub fn map_runs(vm: u64, gpa: u64, runs: &[u64], flags: u64) -> Result<u64, CallError> {
    let mut all = [0; ARGUMENTS];
    let (named, places) = all.split_at_mut(ARGUMENTS - MAX_RUNS);
    named.copy_from_slice(&[vm, gpa, runs.len() as u64, flags]);
    places.iter_mut().zip(runs).for_each(|(place, run)| *place = *run);
    self::named(hvc_long(HostCall::MapRuns.function(), all)).map(|x| x[0])
}

/// A window for the VM.
pub fn map_io(vm: u64, gpa: u64, pa: u64, pages: u64) -> Result<(), CallError> {
    one(HostCall::MapIo, [vm, gpa, pa, pages, 0]).map(|_| ())
}

/// Virtual counter offset.
pub fn set_cntvoff(vm: u64, offset: u64) -> Result<(), CallError> {
    one(HostCall::SetCntvoff, [vm, offset, 0, 0, 0]).map(|_| ())
}

/// Runs a vCPU until something is to do.
pub fn vcpu_run(vm: u64, vcpu: u64) -> Result<ExitReason, CallError> {
    one(HostCall::VcpuRun, [vm, vcpu, 0, 0, 0]).and_then(exit_of)
}

/// The same, with every register of this host full.
///
/// # Errors
/// The outer one names the register that is not what it was.
pub fn vcpu_run_filled(vm: u64, vcpu: u64) -> Result<Result<ExitReason, CallError>, String> {
    let [x0, ..] = registers::run(HostCall::VcpuRun.function(), vm, vcpu)?;
    Ok(exit_of(x0))
}

/// What VcpuRun's x0 says.
///
/// # Errors
/// Why it did not run.
pub fn exit_of(x0: u64) -> Result<ExitReason, CallError> {
    match CallError::from_x0(x0) {
        Some(error) => Err(error),
        None => ExitReason::from_x0(x0).ok_or(CallError::NotSupported),
    }
}

/// A register of a vCPU.
pub fn get_register(vm: u64, vcpu: u64, register: u64) -> Result<u64, CallError> {
    raw(HostCall::GetRegister, [vm, vcpu, register, 0, 0]).map(|x| x[1])
}

/// Stops a VM.
pub fn power_off_vm(vm: u64) -> Result<(), CallError> {
    one(HostCall::PowerOffVm, [vm, 0, 0, 0, 0]).map(|_| ())
}

/// Takes pages back: how many; 0: none is left.
pub fn reclaim_vm(vm: u64) -> Result<u64, CallError> {
    one(HostCall::ReclaimVm, [vm, 0, 0, 0, 0])
}

/// The VM is gone; to be repeated while it says `Again`.
pub fn destroy_vm(vm: u64) -> Result<(), CallError> {
    one(HostCall::DestroyVm, [vm, 0, 0, 0, 0]).map(|_| ())
}

/// State, pages private or shared, kind.
pub fn vm_info(vm: u64) -> Result<(u64, u64, u64), CallError> {
    raw(HostCall::VmInfo, [vm, 0, 0, 0, 0]).map(|x| (x[1], x[2], x[3]))
}

/// What PageInfo says of a page.
pub mod page_state {
    /// Nothing is mapped.
    pub const NOTHING: u64 = 0;
    /// The VM's own.
    pub const PRIVATE: u64 = 1;
    /// The VM's own, shown to this host.
    pub const SHARED: u64 = 2;
    /// This host's, lent to the VM.
    pub const LENT: u64 = 3;
}

/// What a page of a VM is ([`page_state`], or 4: a window), and where, if it is shared or lent.
pub fn page_info(vm: u64, gpa: u64) -> Result<(u64, u64), CallError> {
    raw(HostCall::PageInfo, [vm, gpa, 0, 0, 0]).map(|x| (x[1], x[2]))
}

/// A page of a VM that is off: sealed into the host's pages.
pub fn seal_page(vm: u64, gpa: u64, out: u64, tag: u64) -> Result<(), CallError> {
    one(HostCall::SealPage, [vm, gpa, out, tag, 0]).map(|_| ())
}

/// A sealed page becomes a page of a VM that is being made.
pub fn unseal_page(vm: u64, gpa: u64, data: u64, tag: u64) -> Result<(), CallError> {
    one(HostCall::UnsealPage, [vm, gpa, data, tag, 0]).map(|_| ())
}

/// The registers of a vCPU: sealed into the host's page.
pub fn seal_vcpu(vm: u64, vcpu: u64, out: u64) -> Result<(), CallError> {
    one(HostCall::SealVcpu, [vm, vcpu, out, 0, 0]).map(|_| ())
}

/// Sealed registers become a vCPU's.
pub fn unseal_vcpu(vm: u64, vcpu: u64, data: u64) -> Result<(), CallError> {
    one(HostCall::UnsealVcpu, [vm, vcpu, data, 0, 0]).map(|_| ())
}

/// Ends a save: number of the snapshot, its pages.
pub fn end_save(vm: u64, out: u64) -> Result<(u64, u64), CallError> {
    raw(HostCall::SealVm, [vm, 0, out, 0, 0]).map(|x| (x[1], x[2]))
}

/// Ends a restore: the VM can run.
pub fn end_restore(vm: u64, data: u64) -> Result<(), CallError> {
    one(HostCall::SealVm, [vm, 1, data, 0, 0]).map(|_| ())
}
