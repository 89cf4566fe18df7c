//! From an exit's syndrome to an access, and its result back into the register that the instruction named.
//!
//! | function           | does                                                                   |
//! |--------------------|------------------------------------------------------------------------|
//! | [`Access::decode`] | MmioRead and MmioWrite exits: address, width, register, value          |
//! | [`Access::finish`] | a load's result: cut to its width, extended, placed in `mailbox.x[SRT]` |
//! | [`Bus::dispatch`]  | to the device whose range holds the whole access; else zero, counted   |
//!
//! Source: Arm ARM (DDI 0487) D24.2.40, ISS of a Data Abort; `corevisor_interface::mailbox`.
#![forbid(unsafe_code)]

use corevisor_interface::mailbox::{ExitReason, Mailbox};

const ISS_ISV: u64 = 1 << 24;
const ISS_SSE: u64 = 1 << 21;
const ISS_SF: u64 = 1 << 15;

/// Bytes of an access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Width {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Half = 2,
    /// 32 bits.
    Word = 4,
    /// 64 bits.
    Double = 8,
}

impl Width {
    /// From SAS.
    const fn from_sas(sas: u64) -> Self {
        match sas & 3 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            _ => Self::Double,
        }
    }

    /// So many bytes.
    pub const fn of(bytes: u64) -> Option<Self> {
        Some(match bytes {
            1 => Self::Byte,
            2 => Self::Half,
            4 => Self::Word,
            8 => Self::Double,
            _ => return None,
        })
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// The bits of a value of this width.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self as u32)
    }
}

/// One access of a VM to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Address in the VM.
    pub address: u64,
    /// Bytes.
    pub width: Width,
    /// What is stored, cut to the width; `None` is a load.
    pub write: Option<u64>,
    register: usize,
    sign_extend: bool,
    sixty_four: bool,
}

impl Access {
    /// The access of an exit. `None` if the reason is another, or the syndrome says nothing (the core does not send that).
    #[inline(always)]
    pub fn decode(reason: ExitReason, mailbox: &Mailbox) -> Option<Self> {
        let esr = mailbox.esr;
        let write = match reason {
            ExitReason::MmioRead => false,
            ExitReason::MmioWrite => true,
            _ => return None,
        };
        if esr & ISS_ISV == 0 {
            return None;
        }
        let width = Width::from_sas(esr >> 22);
        let register = (esr >> 16 & 31) as usize;
        // Register 31 is XZR.
        let value = || if register == 31 { 0 } else { mailbox.x[register] & width.mask() };
        Some(Self {
            address: mailbox.ipa,
            width,
            write: write.then(value),
            register,
            sign_extend: esr & ISS_SSE != 0,
            sixty_four: esr & ISS_SF != 0,
        })
    }

    /// An access that somebody else has decoded, and finishes.
    pub const fn at(address: u64, width: Width, write: Option<u64>) -> Self {
        Self { address, width, write, register: 31, sign_extend: false, sixty_four: true }
    }

    /// Ends a load with `value`. Nothing to do for a store, or for a load into XZR (K A8).
    #[inline(always)]
    pub fn finish(&self, value: u64, mailbox: &mut Mailbox) {
        if self.write.is_some() || self.register == 31 {
            return;
        }
        let mut value = value & self.width.mask();
        if self.sign_extend {
            let unused = 64 - 8 * self.width as u32;
            value = ((value << unused) as i64 >> unused) as u64;
        }
        if !self.sixty_four {
            value &= Width::Word.mask().max(if self.width == Width::Double { u64::MAX } else { 0 });
        }
        mailbox.x[self.register] = value;
    }
}

/// Part of a VM's address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

impl Range {
    /// The offset of an access that is wholly in it.
    pub const fn offset(&self, address: u64, width: Width) -> Option<u64> {
        match address.checked_sub(self.base) {
            Some(offset) if offset < self.size && self.size - offset >= width.bytes() => Some(offset),
            _ => None,
        }
    }
}

/// A device as the bus sees it.
pub trait Device {
    /// A load at `offset` by `vcpu`.
    fn read(&mut self, vcpu: usize, offset: u64, width: Width) -> u64;
    /// A store.
    fn write(&mut self, vcpu: usize, offset: u64, width: Width, value: u64);
}

/// What was found at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bus {
    /// Loads and stores where nothing is.
    pub unknown: u64,
    /// The last such address.
    pub last_unknown: u64,
}

impl Bus {
    /// Nothing was accessed yet.
    pub const fn new() -> Self {
        Self { unknown: 0, last_unknown: 0 }
    }

    /// Hands the access to the first device whose range holds it. A load where nothing is reads zero, a store is ignored.
    pub fn dispatch(&mut self, vcpu: usize, access: &Access, devices: &mut [(Range, &mut dyn Device)]) -> u64 {
        for (range, device) in devices {
            let Some(offset) = range.offset(access.address, access.width) else { continue };
            return match access.write {
                None => device.read(vcpu, offset, access.width),
                Some(value) => {
                    device.write(vcpu, offset, access.width, value);
                    0
                }
            };
        }
        self.miss(access.address);
        0
    }

    /// Counts an access where nothing is.
    pub fn miss(&mut self, address: u64) {
        self.unknown = self.unknown.wrapping_add(1);
        self.last_unknown = address;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syndrome(sas: u64, sse: bool, srt: u64, sf: bool, write: bool) -> u64 {
        0x24 << 26
            | ISS_ISV
            | sas << 22
            | u64::from(sse) << 21
            | srt << 16
            | u64::from(sf) << 15
            | u64::from(write) << 6
    }

    fn load(sas: u64, sse: bool, sf: bool, value: u64) -> u64 {
        let mut mailbox = Mailbox { esr: syndrome(sas, sse, 5, sf, false), ..Mailbox::EMPTY };
        mailbox.x[5] = 0x5555_5555_5555_5555;
        let access = Access::decode(ExitReason::MmioRead, &mailbox).unwrap();
        access.finish(value, &mut mailbox);
        mailbox.x[5]
    }

    #[test]
    fn a_load_is_cut_to_its_width_and_extended_as_the_instruction_says() {
        assert_eq!(load(0, false, false, 0x1234_5680), 0x80);
        assert_eq!(load(0, true, false, 0x80), 0xffff_ff80);
        assert_eq!(load(0, true, true, 0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(load(0, true, true, 0x7f), 0x7f);
        assert_eq!(load(1, true, false, 0x8000), 0xffff_8000);
        assert_eq!(load(1, false, true, 0x1_8000), 0x8000);
        assert_eq!(load(2, true, true, 0x8000_0000), 0xffff_ffff_8000_0000);
        assert_eq!(load(2, false, false, u64::MAX), 0xffff_ffff);
        assert_eq!(load(3, false, true, u64::MAX), u64::MAX);
        assert_eq!(load(3, true, true, 1 << 63), 1 << 63);
    }

    #[test]
    fn a8_register_31_is_zero_when_stored_and_nothing_when_loaded() {
        let mut mailbox = Mailbox { esr: syndrome(2, false, 31, false, true), x: [7; 32], ..Mailbox::EMPTY };
        assert_eq!(Access::decode(ExitReason::MmioWrite, &mailbox).unwrap().write, Some(0));
        mailbox.esr = syndrome(2, false, 31, false, false);
        Access::decode(ExitReason::MmioRead, &mailbox).unwrap().finish(1, &mut mailbox);
        assert_eq!(mailbox.x, [7; 32]);
    }

    #[test]
    fn a_store_is_cut_to_its_width() {
        let mut mailbox = Mailbox { esr: syndrome(1, false, 3, false, true), ipa: 0x900_0000, ..Mailbox::EMPTY };
        mailbox.x[3] = 0x1234_5678;
        let access = Access::decode(ExitReason::MmioWrite, &mailbox).unwrap();
        assert_eq!((access.address, access.width, access.write), (0x900_0000, Width::Half, Some(0x5678)));
    }

    #[test]
    fn what_is_no_access_is_not_decoded() {
        let mailbox = Mailbox { esr: 0x24 << 26, ..Mailbox::EMPTY };
        assert_eq!(Access::decode(ExitReason::MmioRead, &mailbox), None);
        let mailbox = Mailbox { esr: syndrome(2, false, 1, false, false), ..Mailbox::EMPTY };
        assert_eq!(Access::decode(ExitReason::Wfx, &mailbox), None);
    }

    struct Cell(u64);
    impl Device for Cell {
        fn read(&mut self, _: usize, offset: u64, _: Width) -> u64 {
            self.0 + offset
        }
        fn write(&mut self, _: usize, _: u64, _: Width, value: u64) {
            self.0 = value;
        }
    }

    #[test]
    fn an_access_reaches_the_device_that_holds_all_of_it_and_others_are_counted() {
        let (mut one, mut two, mut bus) = (Cell(10), Cell(20), Bus::new());
        let mut devices: [(Range, &mut dyn Device); 2] =
            [(Range { base: 0x1000, size: 16 }, &mut one), (Range { base: u64::MAX - 15, size: 16 }, &mut two)];
        let at =
            |address, width, write| Access { address, width, write, register: 0, sign_extend: false, sixty_four: true };
        assert_eq!(bus.dispatch(0, &at(0x1004, Width::Word, None), &mut devices), 14);
        assert_eq!(bus.dispatch(0, &at(u64::MAX - 7, Width::Double, None), &mut devices), 28);
        assert_eq!(bus.unknown, 0);
        assert_eq!(bus.dispatch(0, &at(0x100c, Width::Double, None), &mut devices), 0);
        assert_eq!(bus.dispatch(0, &at(u64::MAX, Width::Half, Some(1)), &mut devices), 0);
        assert_eq!((bus.unknown, bus.last_unknown), (2, u64::MAX));
    }
}
