//! System registers that nobody thought of: a protected VM writes secrets into every encoding that there is (tests/guests/src/bin/sweep.rs); this host reads all
//! of its own after an exit. What an implementation has of its own is not among them: the core refuses that by itself.
#![forbid(unsafe_code)]

use alloc::string::String;

use corevisor_interface::mailbox::ExitReason;

use super::drive::{Driven, interrupt_in};
use super::victim::is_canary;
use super::{Context, ensure, page};
use crate::arch::entry::{Access, RETURN, try_access};
use crate::arch::{cpu, memory};
use crate::guest::{Failure, at};
use crate::{calls, pages, scheduler};

/// "SWEPT--0": the VM's verdict.
const VERDICT: u64 = u64::from_le_bytes(*b"SWEPT--0");
/// MRS x2, of a register of op0 3.
const MRS_X2: u32 = 0xd538_0002;

/// What an implementation may have of its own, as instructions with x2: RAMINDEX and the data that it reads from a cache's RAM (Cortex-A57, A72), L2CTLR_EL1, and the first
/// and last encoding of each of the two groups.
const OF_THE_IMPLEMENTATION: [u32; 8] = [
    0xd508_f402, // SYS #0, c15, c4, #0, x2
    0xd538_f002, // MRS x2, S3_0_c15_c0_0
    0xd538_f102, // MRS x2, S3_0_c15_c1_0
    0xd539_b042, // MRS x2, S3_1_c11_c0_2
    0xd53f_ffe2, // MRS x2, S3_7_c15_c15_7
    0xd538_b002, // MRS x2, S3_0_c11_c0_0
    0xd53f_bfe2, // MRS x2, S3_7_c11_c15_7
    0xd518_f002, // MSR S3_0_c15_c0_0, x2
];
/// The core's count of instructions that it refused this host.
const HOST_UNDEFINED: u64 = 4;

/// Whether reading it changes what this host lives by: the interrupt controller's.
const fn has_effects(encoding: u32) -> bool {
    encoding >> 12 & 15 == 12
}

/// The core refuses each of them, whether the CPU has it or not.
fn refuses_the_implementations(code: u64) -> Result<(), Failure> {
    let refused = || at("CoreStatistics", calls::core_statistics(HOST_UNDEFINED));
    for instruction in OF_THE_IMPLEMENTATION {
        let before = refused()?;
        memory::copy_to(code, [instruction, RETURN].map(u32::to_le_bytes).as_flattened());
        memory::clean_code(code, 8);
        let is_undefined = try_access(Access::Execute, code).is_err();
        ensure(
            is_undefined && refused()? == before + 1,
            &alloc::format!("{instruction:#x}: undefined: {is_undefined}, refused by the core before: {before}"),
        )?;
    }
    Ok(())
}

/// Every register of this host that can be read: how many.
fn read_all(code: u64) -> Result<u64, Failure> {
    let mut count = 0;
    for encoding in (0..1 << 14).map(|fields| fields << 5).filter(|encoding| !has_effects(*encoding)) {
        let instructions = [MRS_X2 | encoding, RETURN].map(u32::to_le_bytes);
        memory::copy_to(code, instructions.as_flattened());
        memory::clean_code(code, 8);
        // What does not exist is an exception.
        if let Ok(word) = try_access(Access::Execute, code) {
            count += 1;
            ensure(
                !is_canary(word),
                &alloc::format!("a secret in this host's register, MRS {encoding:#x}: {word:#x}"),
            )?;
        }
    }
    Ok(count)
}

/// Nothing of the VM's is in any of them.
pub fn sweep(context: &Context<'_>) -> Result<String, Failure> {
    let (driven, code) = (Driven::new(context)?, page()?);
    refuses_the_implementations(code)?;
    let before = read_all(code)?;
    let (mut looks, mut over) = (0, false);
    while !over {
        driven.prepare(0);
        interrupt_in(cpu::frequency() / 1000);
        let exit = calls::vcpu_run(driven.guest.id, 0).map_err(|error| Failure::Call("VcpuRun", error))?;
        if exit == ExitReason::Wfx {
            looks += 1;
            let now = read_all(code)?;
            ensure(now == before, &alloc::format!("{before} registers before, {now} after a run"))?;
        }
        scheduler::run_for(0);
        over = driven.serve(0, exit)?;
    }
    let [verdict, counts] = driven.verdict()?;
    ensure(verdict == VERDICT && looks != 0, "the VM did not come so far")?;
    driven.end()?;
    pages::give(code, 1);
    let (written, kept) = (counts & 0xffff_ffff, counts >> 32);
    Ok(alloc::format!(
        "{looks} times {before} registers read; of the VM's {written} were written, {kept} held a secret"
    ))
}
