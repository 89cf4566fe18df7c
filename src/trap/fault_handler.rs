//! Layer 31, FaultHandler: the host touched what its stage 2 does not map.
//!
//! | primitive                       | does                                                      | lock             |
//! |---------------------------------|-----------------------------------------------------------|------------------|
//! | [`handle_host_stage2_fault`]    | maps what is the host's; anything else is an abort        | S2Page, then Npt |
//! | [`stage2_inject_el1_fault`]     | a synchronous external abort into the host                | none             |
//! | [`inject_undefined`]            | an undefined instruction into the host                    | none             |
//!
//! A refused access never stops the machine (K §8.3 A22) and is never answered by a translation fault, which the host would
//! take for one of its own and retry for ever. The host kills the process, or the thread, that did it.
//!
//! Below: MemoryOps. Above: TrapDispatcher. Specification: `spec::trap`. Source: SeKVM layer FaultHandler; K §2 L31, §3.6;
//! Arm ARM D1.3.1 for exception entry.
#![forbid(unsafe_code)]

use tock_registers::LocalRegisterCopy;

use super::Core;
use crate::abstract_machine::Machine;
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::{ESR, El1Reg, ExceptionClass, FaultKind, SCTLR_EL1_ENTRY, SPSR, Syndrome};
use crate::memory::mem_manager::{self, Denied};

/// Serves a stage-2 abort of the host: maps the page if it is the host's, else injects an abort. K: `handle_host_stage2_fault`.
pub fn handle_host_stage2_fault<M: Machine>(core: &Core<M>) {
    let machine = core.machine();
    let syndrome = machine.read_esr_el2();
    let mapped = match syndrome.fault_kind() {
        FaultKind::Translation | FaultKind::AccessFlag => {
            mem_manager::map_page_host(core.memory(), machine.read_hpfar_el2())
        }
        // Mapped, and still refused: execution from a device window. Nothing else is mapped with less than all rights.
        FaultKind::Permission | FaultKind::Other => Err(Denied::NotOwner),
    };
    match mapped {
        Ok(()) => machine.count(Event::HostFaultServed),
        Err(reason) => deny(machine, syndrome, reason),
    }
}

/// Denied accesses that are told on the console; the rest is only counted, or a host could drown every other line.
const TOLD: u64 = 32;

fn deny<M: Machine>(machine: &M, syndrome: Syndrome, reason: Denied) {
    machine.count(Event::HostAccessDenied);
    let level = if machine.counted(Event::HostAccessDenied) <= TOLD { log::Level::Warn } else { log::Level::Trace };
    // HPFAR_EL2 means nothing after a permission fault, so both addresses are shown.
    log::log!(
        level,
        "host {} denied ({reason:?}), {:?} fault: va {:#x}, ipa {}, pc {:#x}: external abort injected",
        if syndrome.is_write() { "write" } else { "read or fetch" },
        syndrome.fault_kind(),
        machine.read_far_el2(),
        machine.read_hpfar_el2(),
        machine.host_pc(),
    );
    stage2_inject_el1_fault(machine, syndrome);
}

/// Makes the host take a synchronous external abort for the access that trapped with `syndrome`.
/// K §8.3 A22: `stage2_inject_el1_fault`.
pub fn stage2_inject_el1_fault<M: Machine>(machine: &M, syndrome: Syndrome) {
    let from_el0 = is_el0(machine.host_pstate());
    let class = match (syndrome.class(), from_el0) {
        (ExceptionClass::InstrAbort, true) => ESR::EC::InstrAbortLowerEl,
        (ExceptionClass::InstrAbort, false) => ESR::EC::InstrAbortCurrentEl,
        (_, true) => ESR::EC::DataAbortLowerEl,
        (_, false) => ESR::EC::DataAbortCurrentEl,
    };
    let is_write = syndrome.class() == ExceptionClass::DataAbort && syndrome.is_write();
    let access = ESR::WNR.val(u64::from(is_write)) + ESR::FNV.val(u64::from(syndrome.is_far_invalid()));
    let esr = (class + ESR::IL::SET + access + ESR::FSC::SyncExternalAbort).value;
    machine.write_el1(El1Reg::Far, machine.read_far_el2());
    inject_el1_sync(machine, esr);
}

/// Makes the host take an undefined-instruction exception for the instruction that trapped.
pub fn inject_undefined<M: Machine>(machine: &M) {
    machine.count(Event::HostUndefined);
    inject_el1_sync(machine, (ESR::EC::Unknown + ESR::IL::SET).value);
}

/// Entry into EL1 with syndrome `esr`, as the CPU would do it.
fn inject_el1_sync<M: Machine>(machine: &M, esr: u64) {
    let (pc, pstate) = (machine.host_pc(), machine.host_pstate());
    machine.write_el1(El1Reg::Elr, pc);
    machine.write_el1(El1Reg::Spsr, pstate);
    machine.write_el1(El1Reg::Esr, esr);
    machine.set_host_pc(machine.read_el1(El1Reg::Vbar).wrapping_add(vector_offset(pstate)));
    machine.set_host_pstate(entry_pstate(pstate, machine.read_el1(El1Reg::Sctlr)));
}

fn is_el0(pstate: u64) -> bool {
    LocalRegisterCopy::<u64, SPSR::Register>::new(pstate).read(SPSR::M) & 0b0_1111 == 0
}

/// Offset of the synchronous vector for an exception from `pstate`: current EL with SP_EL0, current EL with SP_ELx, lower EL in
/// AArch64, lower EL in AArch32.
fn vector_offset(pstate: u64) -> u64 {
    match LocalRegisterCopy::<u64, SPSR::Register>::new(pstate).read_as_enum(SPSR::M) {
        Some(SPSR::M::Value::EL1t) => 0x000,
        Some(SPSR::M::Value::EL1h) => 0x200,
        Some(SPSR::M::Value::EL0t) => 0x400,
        _ => 0x600,
    }
}

/// Processor state after exception entry into EL1 from `pstate`.
fn entry_pstate(pstate: u64, sctlr: u64) -> u64 {
    let old = LocalRegisterCopy::<u64, SPSR::Register>::new(pstate);
    let sctlr = LocalRegisterCopy::<u64, SCTLR_EL1_ENTRY::Register>::new(sctlr);
    let pan = !sctlr.is_set(SCTLR_EL1_ENTRY::SPAN) || old.is_set(SPSR::PAN);
    (SPSR::M::EL1h
        + SPSR::DAIF::Masked
        + SPSR::NZCV.val(old.read(SPSR::NZCV))
        + SPSR::DIT.val(old.read(SPSR::DIT))
        // Set by every exception on a CPU with memory tagging; it means something only where EL1 may use tags. In the
        // state of an AArch32 process the bit is another one.
        + SPSR::TCO.val(sctlr.read(SCTLR_EL1_ENTRY::ATA))
        + SPSR::PAN.val(u64::from(pan))
        + SPSR::SSBS.val(sctlr.read(SCTLR_EL1_ENTRY::DSSBS)))
    .value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_enters_the_vector_of_the_level_that_it_came_from() {
        assert_eq!([0x3c4, 0x3c5, 0x3c0, 0x010].map(vector_offset), [0x000, 0x200, 0x400, 0x600]);
    }

    #[test]
    fn exception_entry_masks_everything_and_keeps_the_flags() {
        let pstate = 0b1010 << 28 | 1 << 24 | 1 << 21;
        assert_eq!(entry_pstate(pstate, 1 << 23), 0b1010 << 28 | 1 << 24 | 0x3c5);
    }

    #[test]
    fn exception_entry_sets_tco_where_tags_are_used_and_nowhere_else() {
        assert_eq!(entry_pstate(0, 1 << 43 | 1 << 23), 1 << 25 | 0x3c5);
        assert_eq!(entry_pstate(1 << 25, 1 << 23), 0x3c5);
    }

    #[test]
    fn exception_entry_sets_pan_unless_the_host_keeps_it() {
        assert_eq!(entry_pstate(0, 0), 1 << 22 | 0x3c5);
        assert_eq!(entry_pstate(1 << 22, 1 << 23), 1 << 22 | 0x3c5);
    }
}
