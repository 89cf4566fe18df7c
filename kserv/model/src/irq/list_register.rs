//! List registers in the forms of GICv2 (GICH_LR, IHI 0048B §5.3.8) and GICv3 (ICH_LR_EL2, IHI 0069H §12.4.8).
//!
//! Hardware-linked ones (HW) are never made: the core refuses them.
#![forbid(unsafe_code)]

/// Where an interrupt's number is: 10 bits, or 32.
const V2_INTID: u64 = 0x3ff;
const V3_INTID: u64 = 0xffff_ffff;

/// Whose form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// GICH_LR.
    V2,
    /// ICH_LR_EL2.
    V3,
}

/// What a list register says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListRegister {
    /// Interrupt.
    pub intid: usize,
    /// GICv2 SGI: which vCPU sent it.
    pub source: u8,
    /// Priority; the lower three bits do not reach the machine.
    pub priority: u8,
    /// Group 1.
    pub group1: bool,
    /// It is pending.
    pub pending: bool,
    /// It is active.
    pub active: bool,
    /// Its end makes a maintenance interrupt: an exit.
    pub eoi: bool,
}

impl ListRegister {
    /// Whether it holds an interrupt.
    pub const fn is_valid(&self) -> bool {
        self.pending || self.active
    }

    /// As the machine takes it.
    pub fn encode(&self, form: Form) -> u64 {
        let bit = |set: bool, at: u32| u64::from(set) << at;
        match form {
            Form::V2 => {
                self.intid as u64 & V2_INTID
                    | (u64::from(self.source) & 7) << 10
                    | bit(self.eoi, 19)
                    | u64::from(self.priority >> 3) << 23
                    | bit(self.pending, 28)
                    | bit(self.active, 29)
                    | bit(self.group1, 30)
            }
            Form::V3 => {
                self.intid as u64 & V3_INTID
                    | bit(self.eoi, 41)
                    | u64::from(self.priority) << 48
                    | bit(self.group1, 60)
                    | bit(self.pending, 62)
                    | bit(self.active, 63)
            }
        }
    }

    /// What the machine left.
    pub const fn decode(form: Form, value: u64) -> Self {
        let (intid, source, priority, group, pending, active, eoi) = match form {
            Form::V2 => (V2_INTID, (value >> 10 & 7) as u8, (value >> 23 & 31) as u8 * 8, 30, 28, 29, 19),
            Form::V3 => (V3_INTID, 0, (value >> 48) as u8, 60, 62, 63, 41),
        };
        Self {
            intid: (value & intid) as usize,
            source,
            priority,
            group1: value >> group & 1 != 0,
            pending: value >> pending & 1 != 0,
            active: value >> active & 1 != 0,
            eoi: value >> eoi & 1 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_register_is_what_the_manuals_say() {
        let sgi = ListRegister { intid: 3, source: 5, priority: 0xa0, pending: true, ..Default::default() };
        assert_eq!(sgi.encode(Form::V2), 3 | 5 << 10 | 0x14 << 23 | 1 << 28);
        let level =
            ListRegister { intid: 33, priority: 0xa0, group1: true, active: true, eoi: true, ..Default::default() };
        assert_eq!(level.encode(Form::V3), 33 | 1 << 41 | 0xa0 << 48 | 1 << 60 | 1 << 63);
        assert_eq!(level.encode(Form::V2), 33 | 1 << 19 | 0x14 << 23 | 1 << 29 | 1 << 30);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for bits in 0..16u8 {
            let bit = |n: u8| bits >> n & 1 != 0;
            let one = ListRegister {
                intid: 5 + usize::from(bits),
                source: 0,
                priority: 0xf8 - 8 * bits,
                group1: bit(0),
                pending: bit(1),
                active: bit(2),
                eoi: bit(3),
            };
            for form in [Form::V2, Form::V3] {
                assert_eq!(ListRegister::decode(form, one.encode(form)), one);
                assert_eq!(one.encode(form) >> if form == Form::V2 { 31 } else { 61 } & 1, 0);
            }
        }
    }
}
