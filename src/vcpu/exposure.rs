//! What an exit of a VM shows to the host, and what the next entry takes back: one row for each reason, and no other code decides it.
//!
//! The interface's mailbox page has the same table in words (K §3.5; docs/architecture.md, VMs).
#![forbid(unsafe_code)]

use crate::abstract_machine::addr::PAGE_SIZE;
use crate::abstract_machine::regs::{ESR, FaultKind, Syndrome, SysregId};
use crate::interface::mailbox::ExitReason;

/// General registers, by what the exit was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Regs {
    /// None.
    None,
    /// The one that the abort's syndrome names (SRT).
    Srt,
    /// The one that the trapped MSR writes from.
    RtIfWritten,
    /// The one that the trapped MRS reads to.
    RtIfRead,
    /// x0.
    X0,
    /// x0 to x3.
    X0ToX3,
}

impl Regs {
    /// As a mask of x0 to x30. Register 31 is XZR: never shown, never taken (K §8.3 A8).
    #[inline(always)]
    pub fn mask(self, syndrome: Syndrome) -> u64 {
        let one = |n: u8| if n < 31 { 1 << n } else { 0 };
        match self {
            Self::Srt => one(syndrome.srt()),
            Self::RtIfWritten if !syndrome.is_sys_read() => one(syndrome.sys_rt()),
            Self::RtIfRead if syndrome.is_sys_read() => one(syndrome.sys_rt()),
            Self::None | Self::RtIfWritten | Self::RtIfRead => 0,
            Self::X0 => 0b1,
            Self::X0ToX3 => 0b1111,
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exposure {
    /// General registers that the host is shown.
    pub shown: Regs,
    /// Bits of ESR_EL2 that the host is shown.
    pub esr: u64,
    /// Bits of the faulting address that the host is shown.
    pub ipa: u64,
    /// General registers whose values the next entry takes from the host.
    pub taken: Regs,
    /// Whether the VM goes on behind the instruction that exited.
    pub steps: bool,
    /// Whether the host may end the access with an external abort instead.
    pub abortable: bool,
}

const CNTP_TVAL_EL0: SysregId = SysregId::new(3, 3, 14, 2, 0);
const CNTP_CTL_EL0: SysregId = SysregId::new(3, 3, 14, 2, 1);

const NOTHING: Exposure =
    Exposure { shown: Regs::None, esr: 0, ipa: 0, taken: Regs::None, steps: false, abortable: false };

const CLASS: u64 = ESR::EC.mask << ESR::EC.shift;
const WRITE: u64 = ESR::WNR.mask << ESR::WNR.shift;
/// Syndrome of an access: width, sign extension, register.
const ACCESS: u64 = ESR::ISV.mask << ESR::ISV.shift
    | ESR::SAS.mask << ESR::SAS.shift
    | ESR::SSE.mask << ESR::SSE.shift
    | ESR::SRT.mask << ESR::SRT.shift
    | ESR::SF.mask << ESR::SF.shift;
const SYSREG: u64 = ESR::SYS_ID.mask << ESR::SYS_ID.shift
    | ESR::SYS_RT.mask << ESR::SYS_RT.shift
    | ESR::SYS_CRM.mask << ESR::SYS_CRM.shift
    | ESR::SYS_READ.mask << ESR::SYS_READ.shift;
const PAGE: u64 = !(PAGE_SIZE - 1);

/// Of the registers that a call shows, the one that says which it is; the others are its arguments.
pub const NUMBER_OF_CALL: u64 = 1 << 0;

/// Which bits of the registers that an exit for `reason` shows: what a store stores, and what a register of 32 bits takes.
#[inline(always)]
pub fn bits(reason: ExitReason, syndrome: Syndrome) -> u64 {
    match reason {
        ExitReason::MmioWrite => u64::MAX >> (64 - 8 * syndrome.access_size()),
        ExitReason::Sysreg if matches!(syndrome.sys_register(), CNTP_CTL_EL0 | CNTP_TVAL_EL0) => u32::MAX.into(),
        _ => u64::MAX,
    }
}

/// What is shown, `esr`, of the abort `syndrome` of a stage-1 walk: whether the walk would have written, as it does to set an access flag or dirty state in a table that it can only read. WnR
/// says what the instruction would have done. A host that took that for the walk's would not map tables that are read-only. As Linux's KVM does (`kvm_is_write_fault`).
pub fn of_walk(syndrome: Syndrome, esr: u64) -> u64 {
    if syndrome.fault_kind() == FaultKind::Permission { esr | WRITE } else { esr & !WRITE }
}

/// The row of `reason`.
#[inline(always)]
pub const fn of(reason: ExitReason) -> Exposure {
    match reason {
        ExitReason::Irq | ExitReason::Timer | ExitReason::Stopped => NOTHING,
        ExitReason::Wfx => Exposure { esr: ESR::WFX_TI.mask << ESR::WFX_TI.shift, steps: true, ..NOTHING },
        ExitReason::MmioRead => {
            Exposure { esr: ACCESS, ipa: u64::MAX, taken: Regs::Srt, steps: true, abortable: true, ..NOTHING }
        }
        ExitReason::MmioWrite => {
            Exposure { shown: Regs::Srt, esr: ACCESS, ipa: u64::MAX, steps: true, abortable: true, ..NOTHING }
        }
        ExitReason::MemoryFault => Exposure { esr: CLASS | WRITE, ipa: PAGE, abortable: true, ..NOTHING },
        // The call's instruction is over already, and the core has answered it.
        ExitReason::Psci => Exposure { shown: Regs::X0ToX3, ..NOTHING },
        ExitReason::Sysreg => {
            Exposure { shown: Regs::RtIfWritten, esr: SYSREG, taken: Regs::RtIfRead, steps: true, ..NOTHING }
        }
        ExitReason::SystemOff => Exposure { shown: Regs::X0, ..NOTHING },
        ExitReason::Failed => Exposure { esr: CLASS, ..NOTHING },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a8_register_31_is_neither_shown_nor_taken() {
        let syndrome = Syndrome::new(0x1f << 16 | 0x1f << 5 | 1);
        assert_eq!([Regs::Srt, Regs::RtIfRead, Regs::RtIfWritten].map(|regs| regs.mask(syndrome)), [0; 3]);
    }

    #[test]
    fn a_walk_writes_only_what_it_may_read() {
        let walk = |write: u64, kind: u64| {
            of_walk(Syndrome::new(0x24 << 26 | 1 << 7 | write << 6 | kind << 2 | 3), write << 6)
        };
        assert_eq!([walk(0, 1), walk(1, 1)], [0, 0], "a table that is not there");
        assert_eq!([walk(0, 3), walk(1, 3)], [1 << 6, 1 << 6], "one that is read-only");
    }

    #[test]
    fn an_exit_that_nobody_asked_for_shows_and_takes_nothing() {
        for reason in [ExitReason::Irq, ExitReason::Timer, ExitReason::Stopped] {
            assert_eq!(of(reason), NOTHING);
        }
    }

    #[test]
    fn only_accesses_end_with_an_abort() {
        for reason in ExitReason::ALL {
            let access = matches!(reason, ExitReason::MmioRead | ExitReason::MmioWrite | ExitReason::MemoryFault);
            assert_eq!(of(reason).abortable, access, "{reason:?}");
        }
    }
}
