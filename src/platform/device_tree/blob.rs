//! The flattened format itself: header, tokens, and a buffer to write them to (DTSpec §5).
//!
//! Knows nothing of nodes' meaning. Reads any bytes without panicking; every position is checked.
#![forbid(unsafe_code)]

use super::error::Reason;
use super::normalise::MAX_BLOB;

/// First word of a blob.
pub(super) const MAGIC: u32 = 0xd00d_feed;
/// Bytes of a version 17 header, the one that is written.
pub(super) const HEADER_SIZE: usize = 40;
pub(super) const BEGIN_NODE: u32 = 1;
pub(super) const END_NODE: u32 = 2;
pub(super) const PROP: u32 = 3;
pub(super) const NOP: u32 = 4;
pub(super) const END: u32 = 9;

/// The big-endian word at byte `at`.
#[inline(never)]
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

/// The big-endian doubleword at byte `at`.
#[inline(never)]
pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_be_bytes(*word))
}

/// The bytes before the first NUL, or `None` without one.
pub(super) fn until_nul(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..bytes.iter().position(|b| *b == 0)?)
}

/// Header fields (DTSpec §5.2), in bytes from the start of the blob.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) total: usize,
    pub(super) boot_cpu: u32,
    reservations: usize,
    structure: (usize, usize),
    strings: (usize, usize),
}

impl Header {
    /// Reads a header and checks it against itself; `bytes` may end behind the header.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Reason> {
        let field = |at: usize| be32(bytes, at).ok_or(Reason::Truncated);
        let size = |at: usize| field(at).map(|n| n as usize);
        if field(0)? != MAGIC {
            return Err(Reason::BadMagic);
        }
        let (total, version, compatible) = (size(4)?, field(20)?, field(24)?);
        if total > MAX_BLOB {
            return Err(Reason::TooLarge);
        }
        if version < 16 || compatible > 17 {
            return Err(Reason::UnsupportedVersion(if version < 16 { version } else { compatible }));
        }
        let (structure, strings, reservations) = (size(8)?, size(12)?, size(16)?);
        // Version 16 has no size of the structure block: it ends with its last token.
        let structure_size = if version >= 17 { size(36)? } else { total.saturating_sub(structure) };
        let block = |offset: usize, size: usize, align: usize, name| {
            let fits = offset >= HEADER_SIZE - 4 && offset.checked_add(size).is_some_and(|end| end <= total);
            if fits && offset.is_multiple_of(align) { Ok((offset, size)) } else { Err(Reason::BadHeader(name)) }
        };
        Ok(Self {
            total,
            boot_cpu: field(28)?,
            reservations: block(reservations, 16, 8, "off_mem_rsvmap")?.0,
            structure: block(structure, structure_size, 4, "off_dt_struct")?,
            strings: block(strings, size(32)?, 1, "off_dt_strings")?,
        })
    }

    /// Upper limit in bytes of the blob after normalising, without reservations.
    pub(super) fn used(&self) -> usize {
        HEADER_SIZE + self.structure.1 + self.strings.1
    }

    pub(super) fn structure<'a>(&self, blob: &'a [u8]) -> &'a [u8] {
        slice(blob, self.structure)
    }

    pub(super) fn strings<'a>(&self, blob: &'a [u8]) -> &'a [u8] {
        slice(blob, self.strings)
    }

    /// The memory reservation block with its terminator (DTSpec §5.3).
    pub(super) fn reservations<'a>(&self, blob: &'a [u8]) -> Result<&'a [u8], Reason> {
        let bytes = blob.get(self.reservations..self.total).unwrap_or_default();
        let entries = bytes.chunks_exact(16).position(|entry| entry.iter().all(|b| *b == 0));
        let entries = entries.ok_or(Reason::BadHeader("off_mem_rsvmap"))?;
        Ok(slice(bytes, (0, (entries + 1) * 16)))
    }
}

fn slice(bytes: &[u8], (offset, size): (usize, usize)) -> &[u8] {
    bytes.get(offset..).and_then(|rest| rest.get(..size)).unwrap_or_default()
}

/// One token of the structure block with what belongs to it (DTSpec §5.4).
#[derive(Clone, Copy)]
pub(super) enum Token<'a> {
    Begin { name: &'a [u8] },
    Prop { name_offset: u32, value: &'a [u8] },
    End,
    Nop,
    Done,
}

/// Reads a structure block from its start.
#[derive(Clone)]
pub(super) struct Tokens<'a> {
    rest: &'a [u8],
    size: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(structure: &'a [u8]) -> Self {
        Self { rest: structure, size: structure.len() }
    }

    /// Byte of the structure block where the next token stands.
    pub(super) fn at(&self) -> usize {
        self.size - self.rest.len()
    }

    /// Takes `len` bytes and their padding; the padding may be missing at the end of the block.
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, _) = self.rest.split_at_checked(len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(taken)
    }

    /// Reads one token; `Done` once and again at the end.
    pub(super) fn next(&mut self) -> Result<Token<'a>, Reason> {
        let (word, rest) = self.rest.split_first_chunk().ok_or(Reason::StructureEndsEarly)?;
        match u32::from_be_bytes(*word) {
            BEGIN_NODE => {
                let len = rest.iter().position(|b| *b == 0).ok_or(Reason::BadNodeName)?;
                self.rest = rest;
                let name = self.take(len + 1).and_then(<[u8]>::split_last);
                Ok(Token::Begin { name: name.ok_or(Reason::BadNodeName)?.1 })
            }
            PROP => {
                let (len, rest) = rest.split_first_chunk().ok_or(Reason::StructureEndsEarly)?;
                let (name_offset, rest) = rest.split_first_chunk().ok_or(Reason::StructureEndsEarly)?;
                self.rest = rest;
                let value = self.take(u32::from_be_bytes(*len) as usize).ok_or(Reason::PropertyTooLong)?;
                Ok(Token::Prop { name_offset: u32::from_be_bytes(*name_offset), value })
            }
            END_NODE => {
                self.rest = rest;
                Ok(Token::End)
            }
            NOP => {
                self.rest = rest;
                Ok(Token::Nop)
            }
            END => Ok(Token::Done),
            other => Err(Reason::BadToken(other)),
        }
    }
}

/// `count` padding bytes, 4 at most.
fn zeros(count: usize) -> &'static [u8] {
    const ZEROS: &[u8] = &[0; 4];
    ZEROS.get(..count).unwrap_or_default()
}

/// A caller's buffer, written from its start.
pub(super) struct Output<'o> {
    buffer: &'o mut [u8],
    pub(super) len: usize,
}

impl<'o> Output<'o> {
    pub(super) fn new(buffer: &'o mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// Appends `bytes`.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        let room = self.buffer.get_mut(self.len..).and_then(|rest| rest.get_mut(..bytes.len()));
        room.ok_or(Reason::BufferTooSmall)?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Appends a big-endian word.
    pub(super) fn put_u32(&mut self, word: u32) -> Result<(), Reason> {
        self.put(&word.to_be_bytes())
    }

    /// Appends `number` in 1 or 2 cells.
    pub(super) fn put_number(&mut self, number: u64, cells: usize) -> Result<(), Reason> {
        if cells == 2 { self.put(&number.to_be_bytes()) } else { self.put_u32(number as u32) }
    }

    /// Begins a node.
    pub(super) fn begin_node(&mut self, name: &[u8]) -> Result<(), Reason> {
        self.put_u32(BEGIN_NODE)?;
        self.put(name)?;
        self.put(zeros(4 - name.len() % 4))
    }

    /// Ends a node.
    pub(super) fn end_node(&mut self) -> Result<(), Reason> {
        self.put_u32(END_NODE)
    }

    /// Appends a property whose value is made of `parts`.
    pub(super) fn property(&mut self, name_offset: u32, parts: &[&[u8]]) -> Result<(), Reason> {
        let start = self.open_property(name_offset)?;
        for part in parts {
            self.put(part)?;
        }
        self.close_property(start)
    }

    /// Begins a property; its value is what is written until [`close_property`](Self::close_property), which gets
    /// the number that this returns.
    pub(super) fn open_property(&mut self, name_offset: u32) -> Result<usize, Reason> {
        self.put_u32(PROP)?;
        self.put_u32(0)?;
        self.put_u32(name_offset)?;
        Ok(self.len)
    }

    /// Ends a property whose value began at byte `start`.
    pub(super) fn close_property(&mut self, start: usize) -> Result<(), Reason> {
        let len = self.len - start;
        self.patch(start - 8, len as u32)?;
        self.put(zeros(len.next_multiple_of(4) - len))
    }

    /// Overwrites the word at byte `at`, which was written before.
    pub(super) fn patch(&mut self, at: usize, word: u32) -> Result<(), Reason> {
        let place = self.buffer.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>());
        *place.ok_or(Reason::BufferTooSmall)? = word.to_be_bytes();
        Ok(())
    }

    /// Writes header and reservations; [`finish`](Self::finish) fills in what is not known yet.
    pub(super) fn start(&mut self, reservations: &[u8]) -> Result<(), Reason> {
        self.put(&[0; HEADER_SIZE])?;
        self.put(reservations)
    }

    /// Fills in the header of a blob whose structure block starts at `structure` and whose strings start at `strings`
    /// and end where the output ends. Returns the blob's size in bytes.
    pub(super) fn finish(&mut self, structure: usize, strings: usize, boot_cpu: u32) -> Result<usize, Reason> {
        // Every position lies below `MAX_BLOB` plus what the editor adds, so the casts lose nothing.
        let fields = [
            MAGIC,
            self.len as u32,
            structure as u32,
            strings as u32,
            HEADER_SIZE as u32,
            17,
            16,
            boot_cpu,
            (self.len - strings) as u32,
            (strings - structure) as u32,
        ];
        for (index, field) in fields.into_iter().enumerate() {
            self.patch(index * 4, field)?;
        }
        Ok(self.len)
    }
}
