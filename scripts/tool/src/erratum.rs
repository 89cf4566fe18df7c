//! What no program for a Cortex-A53 may have in its code.

use crate::error::{ElfError, read};
use object::{Object, ObjectSection, SectionKind};
use std::path::Path;

/// Places of erratum 835769 in a program's code: a load or store right before a 64-bit multiply-accumulate, which may then compute wrong (Cortex-A53 MPCore Software
/// Developers Errata Notice). Dependent pairs, which are harmless, count too: the compiler keeps these apart as well.
///
/// # Errors
/// [`ElfError`].
pub fn places(elf: &Path) -> Result<Vec<u64>, ElfError> {
    let bytes = read(elf)?;
    let wrong = ElfError::at(elf);
    let file = object::File::parse(&*bytes).map_err(&wrong)?;
    let mut places = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let code = section.data().map_err(&wrong)?.as_chunks::<4>().0;
        let pairs = (section.address()..).step_by(4).zip(code.windows(2));
        let found = pairs.filter(|(_, pair)| is_pair(u32::from_le_bytes(pair[0]), u32::from_le_bytes(pair[1])));
        places.extend(found.map(|(at, _)| at));
    }
    Ok(places)
}

/// Arm ARM C4.1: "Loads and Stores"; "Data-processing (3 source)" with 64-bit results.
fn is_pair(first: u32, second: u32) -> bool {
    const ZERO: u32 = 31;
    let loads_or_stores = first >> 25 & 0b0101 == 0b0100;
    let operation = second >> 21 & 0b111;
    let accumulates = second >> 24 == 0x9b && matches!(operation, 0b000 | 0b001 | 0b101) && second >> 10 & 31 != ZERO;
    loads_or_stores && accumulates
}

#[cfg(test)]
mod tests {
    use super::*;

    const LDR: u32 = 0xf940_0020; // ldr x0, [x1]
    const STP: u32 = 0xa900_0c02; // stp x2, x3, [x0]
    const MADD: u32 = 0x9b04_0c62; // madd x2, x3, x4, x3
    const UMADDL: u32 = 0x9ba4_0c62; // umaddl x2, w3, w4, x3
    const MUL: u32 = 0x9b04_7c62; // mul x2, x3, x4
    const MADD_W: u32 = 0x1b04_0c62; // madd w2, w3, w4, w3
    const UMULH: u32 = 0x9bc4_7c62; // umulh x2, x3, x4
    const ADD: u32 = 0x8b02_0020; // add x0, x1, x2

    #[test]
    fn a_load_or_store_right_before_a_64_bit_accumulation_is_found_and_nothing_else() {
        for (first, second, found) in [
            (LDR, MADD, true),
            (STP, MADD, true),
            (LDR, UMADDL, true),
            (ADD, MADD, false),
            (LDR, MUL, false),
            (LDR, MADD_W, false),
            (LDR, UMULH, false),
            (MADD, LDR, false),
        ] {
            assert_eq!(is_pair(first, second), found, "{first:#x} {second:#x}");
        }
    }
}
