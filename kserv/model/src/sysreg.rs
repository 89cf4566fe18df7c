//! From the syndrome of a trapped MRS or MSR to a register that the host serves.
//!
//! | register                                         | served by               |
//! |--------------------------------------------------|-------------------------|
//! | ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1     | [`crate::gicv3`]        |
//! | CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTP_TVAL_EL0       | [`crate::vtimer`]       |
//! | any other                                        | reads as zero, ignored  |
//!
//! Source: Arm ARM D24.2.40, ISS of a trapped MSR, MRS (EC 0x18).
#![forbid(unsafe_code)]

use corevisor_interface::mailbox::Mailbox;

/// A register that the host serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// SGIs of group 1.
    IccSgi1r,
    /// SGIs of the other group 1.
    IccAsgi1r,
    /// SGIs of group 0.
    IccSgi0r,
    /// Physical timer: control.
    CntpCtl,
    /// Physical timer: compare value.
    CntpCval,
    /// Physical timer: compare value, relative.
    CntpTval,
    /// Another one: op0, op1, CRn, CRm, op2 as in the ISS.
    Unknown(u64),
}

/// One trapped access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SysregAccess {
    /// Which register.
    pub register: Register,
    /// The value of an MSR; `None` is an MRS.
    pub write: Option<u64>,
    rt: usize,
}

const fn iss(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

/// The bits of the ISS that name the register.
const NAME: u64 = iss(3, 7, 15, 15, 7);

impl SysregAccess {
    /// The access of a Sysreg exit.
    pub fn decode(mailbox: &Mailbox) -> Self {
        let esr = mailbox.esr;
        let register = match esr & NAME {
            name if name == iss(3, 0, 12, 11, 5) => Register::IccSgi1r,
            name if name == iss(3, 0, 12, 11, 6) => Register::IccAsgi1r,
            name if name == iss(3, 0, 12, 11, 7) => Register::IccSgi0r,
            name if name == iss(3, 3, 14, 2, 0) => Register::CntpTval,
            name if name == iss(3, 3, 14, 2, 1) => Register::CntpCtl,
            name if name == iss(3, 3, 14, 2, 2) => Register::CntpCval,
            name => Register::Unknown(name),
        };
        let rt = (esr >> 5 & 31) as usize;
        let value = || if rt == 31 { 0 } else { mailbox.x[rt] };
        Self { register, write: (esr & 1 == 0).then(value), rt }
    }

    /// Ends an MRS with `value`.
    pub fn finish(&self, value: u64, mailbox: &mut Mailbox) {
        if self.write.is_none() && self.rt != 31 {
            mailbox.x[self.rt] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_known_by_their_encoding() {
        // ESR values as a Cortex-A72 in QEMU gives them: MSR ICC_SGI1R_EL1, x0; MRS x3, CNTP_CTL_EL0.
        let mut mailbox = Mailbox { esr: 0x623a_3016, ..Mailbox::EMPTY };
        mailbox.x[0] = 0x1_0001;
        let access = SysregAccess::decode(&mailbox);
        assert_eq!((access.register, access.write), (Register::IccSgi1r, Some(0x1_0001)));
        mailbox.esr = 0x6200_0000 | iss(3, 3, 14, 2, 1) | 3 << 5 | 1;
        let access = SysregAccess::decode(&mailbox);
        assert_eq!((access.register, access.write), (Register::CntpCtl, None));
        access.finish(5, &mut mailbox);
        assert_eq!(mailbox.x[3], 5);
    }

    #[test]
    fn register_31_is_zero_and_takes_nothing() {
        let mut mailbox = Mailbox { esr: iss(3, 3, 14, 2, 2) | 31 << 5, x: [9; 32], ..Mailbox::EMPTY };
        assert_eq!(SysregAccess::decode(&mailbox).write, Some(0));
        mailbox.esr |= 1;
        SysregAccess::decode(&mailbox).finish(1, &mut mailbox);
        assert_eq!(mailbox.x, [9; 32]);
    }
}
