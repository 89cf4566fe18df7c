//! A cpio archive in the "newc" form, read in place. Archives may stand one behind another, with zeros between.
//!
//! | function             | gives                                            |
//! |----------------------|--------------------------------------------------|
//! | [`Archive::entries`] | every entry, or what is wrong with the next one  |
//! | [`Archive::find`]    | the bytes of the file with a name                |
//!
//! Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
#![forbid(unsafe_code)]

use core::fmt;

const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";
const TRAILER: &[u8] = b"TRAILER!!!";

/// What is wrong with an archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArchiveError {
    /// An entry does not begin with "070701".
    Magic {
        /// Where.
        offset: usize,
    },
    /// A header, name or file goes beyond the archive's end.
    Truncated {
        /// Where the entry begins.
        offset: usize,
    },
    /// A field of the header is not hexadecimal.
    Field {
        /// Where the entry begins.
        offset: usize,
    },
    /// A name is empty, does not end with a zero byte, or is not UTF-8.
    Name {
        /// Where the entry begins.
        offset: usize,
    },
    /// The file is not there.
    NotFound,
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic { offset } => write!(f, "no cpio entry (newc) at byte {offset}"),
            Self::Truncated { offset } => write!(f, "the cpio entry at byte {offset} goes beyond the archive's end"),
            Self::Field { offset } => write!(f, "the cpio entry at byte {offset} has a field that is no number"),
            Self::Name { offset } => write!(f, "the cpio entry at byte {offset} has no proper name"),
            Self::NotFound => write!(f, "no such file in the archive"),
        }
    }
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Name as it stands there, without a leading slash.
    pub name: &'a str,
    /// Type and permission bits.
    pub mode: u32,
    /// Content (target of a symbolic link).
    pub data: &'a [u8],
}

impl Entry<'_> {
    /// Whether it is a regular file.
    pub const fn is_file(&self) -> bool {
        self.mode & 0o170000 == 0o100000
    }
}

/// An archive in memory.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
}

impl<'a> Archive<'a> {
    /// Over these bytes; nothing is checked yet.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Its entries in order, end marks left out. Ends after the first error.
    pub const fn entries(&self) -> Entries<'a> {
        Entries { bytes: self.bytes, at: 0, fresh: true }
    }

    /// The content of the regular file `name`: the last one, as Linux unpacks it.
    ///
    /// # Errors
    /// [`ArchiveError::NotFound`], or what is wrong with the archive.
    pub fn find(&self, name: &str) -> Result<&'a [u8], ArchiveError> {
        let name = name.trim_start_matches('/');
        let mut found = Err(ArchiveError::NotFound);
        for entry in self.entries() {
            let entry = entry?;
            if entry.is_file() && entry.name == name {
                found = Ok(entry.data);
            }
        }
        found
    }
}

/// The entries of an [`Archive`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    /// No entry since the start or the last end mark: zeros or the end may follow.
    fresh: bool,
}

impl<'a> Entries<'a> {
    fn read(&mut self) -> Result<Option<Entry<'a>>, ArchiveError> {
        loop {
            if self.fresh {
                let rest = self.bytes.get(self.at..).unwrap_or_default();
                match rest.iter().position(|byte| *byte != 0) {
                    None => return Ok(None),
                    Some(zeros) => self.at += zeros,
                }
            }
            let offset = self.at;
            let entry = self.one(offset)?;
            self.fresh = entry.name.as_bytes() == TRAILER;
            if !self.fresh {
                return Ok(Some(entry));
            }
        }
    }

    fn one(&mut self, offset: usize) -> Result<Entry<'a>, ArchiveError> {
        let truncated = ArchiveError::Truncated { offset };
        let rest = self.bytes.get(offset..).ok_or(truncated)?;
        if rest.len() >= MAGIC.len() && !rest.starts_with(MAGIC) {
            return Err(ArchiveError::Magic { offset });
        }
        let header = rest.get(..HEADER).ok_or(truncated)?;
        let field = |n: usize| -> Result<u32, ArchiveError> {
            let digits = &header[6 + n * 8..14 + n * 8];
            digits.iter().try_fold(0u32, |value, digit| {
                let digit = char::from(*digit).to_digit(16).ok_or(ArchiveError::Field { offset })?;
                Ok(value << 4 | digit)
            })
        };
        let (mode, size, name_size) = (field(1)?, field(6)? as usize, field(11)? as usize);
        let name = rest.get(HEADER..HEADER.checked_add(name_size).ok_or(truncated)?).ok_or(truncated)?;
        let Some((0, name)) = name.split_last() else { return Err(ArchiveError::Name { offset }) };
        let name = core::str::from_utf8(name).map_err(|_| ArchiveError::Name { offset })?;
        if name.is_empty() || name.contains('\0') {
            return Err(ArchiveError::Name { offset });
        }
        // Alignment is that of the archive, which begins aligned.
        let align = |at: usize| at.checked_next_multiple_of(4).ok_or(truncated);
        let data = align(offset.checked_add(HEADER + name_size).ok_or(truncated)?)?;
        let end = data.checked_add(size).ok_or(truncated)?;
        let content = self.bytes.get(data..end).ok_or(truncated)?;
        self.at = align(end)?;
        Ok(Entry { name: name.trim_start_matches('/'), mode, data: content })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read();
        if read.is_err() {
            (self.at, self.fresh) = (self.bytes.len(), true);
        }
        read.transpose()
    }
}
