//! What the core's image is made of.

use crate::error::{ElfError, read};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use std::path::Path;

/// A section that takes memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name: `.text`.
    pub name: String,
    /// Bytes in memory.
    pub size: u64,
    /// Whether it takes room in the flat image.
    pub in_file: bool,
}

/// The sizes of the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the flat image, without a host.
    pub flat: u64,
    /// The sections, in the order of their addresses.
    pub sections: Vec<Section>,
    /// Functions and constants with their sizes, the largest first.
    pub symbols: Vec<(String, u64)>,
}

/// Measures the core.
///
/// # Errors
/// [`ElfError`].
pub fn measure(flat: &Path, elf: &Path) -> Result<Sizes, ElfError> {
    let bytes = read(elf)?;
    let file = object::File::parse(&*bytes).map_err(ElfError::at(elf))?;
    let mut sections: Vec<_> = file
        .sections()
        .filter(|section| section.size() != 0 && is_loaded(section.flags()))
        .map(|section| {
            let in_file = section.file_range().is_some();
            (
                section.address(),
                Section { name: section.name().unwrap_or("?").to_owned(), size: section.size(), in_file },
            )
        })
        .collect();
    sections.sort_by_key(|(address, _)| *address);
    let mut symbols: Vec<_> = file
        .symbols()
        .filter(|symbol| symbol.size() != 0 && matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Data))
        .map(|symbol| (addr2line::demangle_auto(symbol.name().unwrap_or("?").into(), None).into_owned(), symbol.size()))
        .collect();
    symbols.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let sections = sections.into_iter().map(|(_, section)| section).collect();
    Ok(Sizes { flat: read(flat)?.len() as u64, sections, symbols })
}

fn is_loaded(flags: object::SectionFlags) -> bool {
    matches!(flags, object::SectionFlags::Elf { sh_flags, .. } if sh_flags.0 & object::elf::SHF_ALLOC.0 != 0)
}
