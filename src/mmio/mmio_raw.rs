//! Layer 22, MmioRaw: an access of the host to a register that is not its own.
//!
//! | primitive               | gives                                                               | lock |
//! |-------------------------|---------------------------------------------------------------------|------|
//! | [`host_access`]         | the access that the syndrome describes                              | none |
//! | [`host_get_mmio_data`]  | what the host's register holds, as many bits as the access has      | none |
//! | [`host_dispatch_mmio_data`] | a load's value into the host's register                         | none |
//! | [`part_of`], [`merge`]  | the word of a doubleword register that an access is for             | none |
//!
//! Register 31 is XZR (K §8.3 A8).
//!
//! Below: AbstractMachine. Above: MmioCoreAux. Specification: `spec::mmio`. Source: SeKVM layer MmioRaw; K §2 L22, §4.7.
#![forbid(unsafe_code)]

use crate::abstract_machine::addr::{Ipa, PAGE_SIZE, Pa};
use crate::abstract_machine::regs::{ExceptionClass, Syndrome};

/// x0 to x30 of the host.
pub type Registers = [u64; 31];

/// A load or a store of a word or a doubleword, aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The first byte.
    pub at: Pa,
    /// 4 or 8 bytes.
    pub size: u64,
    /// What is stored; `None` is a load.
    pub store: Option<u64>,
}

impl Access {
    /// Place of the access in its page.
    pub const fn offset(self) -> u64 {
        self.at.raw() % PAGE_SIZE
    }
}

/// The access of `syndrome` to the page at `page`, by virtual address `va`. `None` for what no register is reached by: a fetch, a walk, what the syndrome does not describe, another size,
/// or not aligned.
pub fn host_access(syndrome: Syndrome, page: Ipa, va: u64, x: &Registers) -> Option<Access> {
    if syndrome.class() != ExceptionClass::DataAbort || !syndrome.is_described() || syndrome.is_stage1_walk() {
        return None;
    }
    let (at, size) = (page.identity().checked_add(va % PAGE_SIZE)?, u64::from(syndrome.access_size()));
    if !matches!(size, 4 | 8) || !at.is_aligned(size) {
        return None;
    }
    let store = syndrome.is_write().then(|| host_get_mmio_data(syndrome, x));
    Some(Access { at, size, store })
}

/// What the host stores. K: `host_get_mmio_data`.
pub fn host_get_mmio_data(syndrome: Syndrome, x: &Registers) -> u64 {
    let value = x.get(usize::from(syndrome.srt())).copied().unwrap_or(0);
    if syndrome.access_size() == 8 { value } else { value & u64::from(u32::MAX) }
}

/// What the host loads. K: part of `__handle_smmu_read`.
pub fn host_dispatch_mmio_data(syndrome: Syndrome, x: &mut Registers, value: u64) {
    let Some(register) = x.get_mut(usize::from(syndrome.srt())) else { return };
    *register = match (syndrome.access_size(), syndrome.is_sign_extended(), syndrome.is_64_bit_register()) {
        (4, true, true) => value as u32 as i32 as i64 as u64,
        (4, ..) => value & u64::from(u32::MAX),
        _ => value,
    };
}

/// The part of the doubleword register `value` that `access` loads.
pub const fn part_of(access: Access, value: u64) -> u64 {
    if access.size == 8 { value } else { value >> (access.offset() % 8 * 8) & u32::MAX as u64 }
}

/// The doubleword register `old` after `access` stored `new` into it, or into half of it.
pub const fn merge(access: Access, old: u64, new: u64) -> u64 {
    if access.size == 8 {
        return new;
    }
    let shift = access.offset() % 8 * 8;
    old & !((u32::MAX as u64) << shift) | (new & u32::MAX as u64) << shift
}
