//! A VM's memory as the host sees it: which of its own memory stands where, what is mapped, and what to map next.
//!
//! | function               | does                                                                                     |
//! |------------------------|------------------------------------------------------------------------------------------|
//! | [`Memory::add`]        | a slot: a range of the VM's addresses over a range of the host's                         |
//! | [`Memory::on_fault`]   | what to map for a fault: the whole 2 MiB block if nothing of it is mapped and both sides are aligned, else pages |
//! | [`Memory::mapped`]     | the core has mapped them (MapMemory, or RemapImagePages and VerifyVm)                     |
//! | [`Memory::unmapped`]   | it has not any more                                                                      |
//!
//! The records are the host's notes; the core's are what counts.
#![forbid(unsafe_code)]

use corevisor_interface::calls::{MAP_READ_ONLY, MAX_PAGES};

use crate::layout::{BLOCK, PAGE};

/// Most slots.
pub const MAX_SLOTS: usize = 4;
/// Pages mapped at once where a block cannot be: those around the fault that are free, within so many.
pub const FAULT_AROUND: u64 = 16;

/// A range of the VM's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// First address in the VM; page-aligned.
    pub gpa: u64,
    /// Bytes; whole pages.
    pub size: u64,
    /// First address in the host's (physical) memory; page-aligned.
    pub pa: u64,
    /// The VM may not write it (ordinary VMs only).
    pub read_only: bool,
}

impl Slot {
    const fn holds(&self, gpa: u64) -> bool {
        gpa >= self.gpa && gpa - self.gpa < self.size
    }

    const fn first_block(&self) -> u64 {
        self.gpa / BLOCK
    }

    /// How many [`Chunk`]s it needs.
    pub const fn chunks(&self) -> usize {
        if self.size == 0 {
            return 0;
        }
        ((self.gpa + self.size - 1) / BLOCK - self.first_block() + 1) as usize
    }
}

/// Which pages of a 2 MiB block are mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Chunk([u64; 8]);

impl Chunk {
    /// None.
    pub const EMPTY: Self = Self([0; 8]);

    const fn get(&self, page: usize) -> bool {
        self.0[page / 64 % 8] >> (page % 64) & 1 != 0
    }

    /// Notes `count` pages from `page` on, all in this block: how many were not so before.
    fn set(&mut self, page: usize, count: usize, mapped: bool) -> u64 {
        let mut changed = 0;
        let end = page + count;
        for (n, word) in self.0.iter_mut().enumerate().take(end.div_ceil(64)).skip(page / 64) {
            let (first, last) = (page.saturating_sub(n * 64), (end - n * 64).min(64));
            let mask = u64::MAX << first & u64::MAX >> (64 - last);
            changed += u64::from((if mapped { mask & !*word } else { mask & *word }).count_ones());
            *word = if mapped { *word | mask } else { *word & !mask };
        }
        changed
    }
}

/// Pages that a [`Chunk`] notes.
const PAGES_OF_CHUNK: u64 = BLOCK / PAGE;

/// Why a slot cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotError {
    /// Empty, not whole pages, or beyond the end of addresses.
    Range,
    /// It meets another slot's addresses.
    Overlap,
    /// There are [`MAX_SLOTS`] already.
    TooMany,
    /// There are not enough [`Chunk`]s for it.
    NoRoom,
}

/// What to ask the core for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRequest {
    /// Address in the VM.
    pub gpa: u64,
    /// Address in the host's memory.
    pub pa: u64,
    /// Pages.
    pub pages: u64,
    /// Flags of MapMemory.
    pub flags: u64,
}

/// What a fault is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Map this, then let the VM try again.
    Map(MapRequest),
    /// It is mapped: another vCPU was faster.
    Mapped,
    /// A write to memory that may not be written.
    ReadOnly,
    /// The VM has no memory there.
    Nothing,
}

/// The slots of a VM, over records given by the caller.
#[derive(Debug)]
pub struct Memory<'a> {
    slots: [Option<(Slot, usize)>; MAX_SLOTS],
    chunks: &'a mut [Chunk],
    used: usize,
    pages: u64,
}

impl<'a> Memory<'a> {
    /// No slot yet. `chunks`: one for each 2 MiB of memory ([`Slot::chunks`]).
    pub fn new(chunks: &'a mut [Chunk]) -> Self {
        chunks.fill(Chunk::EMPTY);
        Self { slots: [None; MAX_SLOTS], chunks, used: 0, pages: 0 }
    }

    /// One more slot.
    ///
    /// # Errors
    /// [`SlotError`]; nothing has changed then.
    pub fn add(&mut self, slot: Slot) -> Result<(), SlotError> {
        let whole = (slot.gpa | slot.size | slot.pa).is_multiple_of(PAGE) && slot.size != 0;
        let fits = |from: u64| from.checked_add(slot.size).is_some();
        if !whole || !fits(slot.gpa) || !fits(slot.pa) {
            return Err(SlotError::Range);
        }
        let meets = |other: &Slot| slot.gpa < other.gpa + other.size && other.gpa < slot.gpa + slot.size;
        if self.slots.iter().flatten().any(|(other, _)| meets(other)) {
            return Err(SlotError::Overlap);
        }
        let free = self.slots.iter_mut().find(|slot| slot.is_none()).ok_or(SlotError::TooMany)?;
        let needed = slot.chunks();
        if self.chunks.len() - self.used < needed {
            return Err(SlotError::NoRoom);
        }
        *free = Some((slot, self.used));
        self.used += needed;
        Ok(())
    }

    /// The slots.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().flatten().map(|(slot, _)| slot)
    }

    /// Slot, record and page in it of an address.
    fn find(&self, gpa: u64) -> Option<(&Slot, usize, usize)> {
        let (slot, first) = self.slots.iter().flatten().find(|(slot, _)| slot.holds(gpa))?;
        let chunk = first + (gpa / BLOCK - slot.first_block()) as usize;
        Some((slot, chunk, (gpa % BLOCK / PAGE) as usize))
    }

    /// Where the host has the byte that the VM sees at `gpa`.
    pub fn host_address(&self, gpa: u64) -> Option<u64> {
        self.find(gpa).map(|(slot, ..)| slot.pa + (gpa - slot.gpa))
    }

    /// Whether the page at `gpa` is mapped.
    pub fn is_mapped(&self, gpa: u64) -> bool {
        self.find(gpa).is_some_and(|(_, chunk, page)| self.chunks[chunk].get(page))
    }

    /// How many pages are mapped.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// What to do about a fault at `gpa`.
    pub fn on_fault(&self, gpa: u64, write: bool) -> Fault {
        let gpa = gpa & !(PAGE - 1);
        let Some((slot, chunk, page)) = self.find(gpa) else { return Fault::Nothing };
        if write && slot.read_only {
            return Fault::ReadOnly;
        }
        let chunk = self.chunks[chunk];
        if chunk.get(page) {
            return Fault::Mapped;
        }
        let request = |gpa: u64, pages| {
            let flags = if slot.read_only { MAP_READ_ONLY } else { 0 };
            Fault::Map(MapRequest { gpa, pa: slot.pa + (gpa - slot.gpa), pages, flags })
        };
        let block = gpa & !(BLOCK - 1);
        let whole = block >= slot.gpa && slot.gpa + slot.size - block >= BLOCK;
        if whole && chunk == Chunk::EMPTY && (slot.pa.wrapping_sub(slot.gpa)).is_multiple_of(BLOCK) {
            return request(block, MAX_PAGES);
        }
        // The free run around the page, within its group.
        let free = |at: u64| slot.holds(at) && !chunk.get((at % BLOCK / PAGE) as usize);
        let group = gpa & !(FAULT_AROUND * PAGE - 1);
        let (mut from, mut to) = (gpa, gpa + PAGE);
        while from > group && free(from - PAGE) {
            from -= PAGE;
        }
        while to - group < FAULT_AROUND * PAGE && free(to) {
            to += PAGE;
        }
        request(from, (to - from) / PAGE)
    }

    /// The core has mapped `pages` from `gpa` on.
    pub fn mapped(&mut self, gpa: u64, pages: u64) {
        self.note(gpa, pages, true);
    }

    /// The core has unmapped them.
    pub fn unmapped(&mut self, gpa: u64, pages: u64) {
        self.note(gpa, pages, false);
    }

    fn note(&mut self, gpa: u64, pages: u64, mapped: bool) {
        let (mut at, mut left) = (gpa & !(PAGE - 1), pages);
        while left != 0 {
            // One slot, one record at a time.
            let Some((slot, chunk, page)) = self.find(at) else { return };
            let in_slot = (slot.size - (at - slot.gpa)) / PAGE;
            let run = left.min(in_slot).min(PAGES_OF_CHUNK - page as u64);
            let changed = self.chunks[chunk].set(page, run as usize, mapped);
            self.pages = if mapped { self.pages + changed } else { self.pages - changed };
            left -= run;
            let Some(next) = at.checked_add(run * PAGE) else { return };
            at = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 0x4000_0000;

    fn slot(gpa: u64, size: u64, pa: u64) -> Slot {
        Slot { gpa, size, pa, read_only: false }
    }

    fn map(gpa: u64, pa: u64, pages: u64) -> Fault {
        Fault::Map(MapRequest { gpa, pa, pages, flags: 0 })
    }

    #[test]
    fn a_free_aligned_block_is_mapped_whole_and_only_once() {
        let mut chunks = [Chunk::EMPTY; 4];
        let mut memory = Memory::new(&mut chunks);
        memory.add(slot(RAM, 2 * BLOCK, 0x8000_0000)).unwrap();
        assert_eq!(memory.on_fault(RAM + BLOCK + 0x1234, true), map(RAM + BLOCK, 0x8000_0000 + BLOCK, 512));
        memory.mapped(RAM + BLOCK, 512);
        assert_eq!(memory.on_fault(RAM + BLOCK, false), Fault::Mapped);
        assert_eq!(memory.pages(), 512);
        assert_eq!(memory.on_fault(RAM - 1, false), Fault::Nothing);
        assert_eq!(memory.on_fault(RAM + 2 * BLOCK, false), Fault::Nothing);
        memory.unmapped(RAM + BLOCK, 512);
        assert_eq!(memory.pages(), 0);
    }

    #[test]
    fn a_block_with_an_image_in_it_is_mapped_by_pages_around_the_fault() {
        let mut chunks = [Chunk::EMPTY; 4];
        let mut memory = Memory::new(&mut chunks);
        memory.add(slot(RAM, 2 * BLOCK, 0x8000_0000)).unwrap();
        memory.mapped(RAM, 3);
        assert_eq!(memory.on_fault(RAM + 0x5000, false), map(RAM + 0x3000, 0x8000_3000, 13));
        assert_eq!(memory.on_fault(RAM + 0x1f_f000, false), map(RAM + 0x1f_0000, 0x801f_0000, 16));
    }

    #[test]
    fn memory_that_is_not_aligned_alike_is_mapped_by_pages() {
        let mut chunks = [Chunk::EMPTY; 2];
        let mut memory = Memory::new(&mut chunks);
        memory.add(slot(RAM, BLOCK + PAGE, 0x8000_1000)).unwrap();
        assert_eq!(memory.on_fault(RAM, false), map(RAM, 0x8000_1000, 16));
        // The last page is alone in its block.
        assert_eq!(memory.on_fault(RAM + BLOCK, false), map(RAM + BLOCK, 0x8020_1000, 1));
    }

    #[test]
    fn runs_of_any_length_at_any_place_are_noted_page_by_page() {
        let mut chunks = [Chunk::EMPTY; 3];
        let mut memory = Memory::new(&mut chunks);
        memory.add(slot(RAM + 3 * PAGE, 2 * BLOCK, 0)).unwrap();
        let mut oracle = std::vec![false; 3 * 512];
        let mut seed = 1u64;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (from, count, on) = ((seed >> 33) % 1100, (seed >> 20) % 700, seed >> 63 == 0);
            if on {
                memory.mapped(RAM + from * PAGE, count)
            } else {
                memory.unmapped(RAM + from * PAGE, count)
            }
            // A run that begins outside of the slot is not noted; one that leaves it ends there.
            if from >= 3 {
                (from..(from + count).min(2 * 512 + 3)).for_each(|page| oracle[page as usize] = on);
            }
            assert_eq!(memory.pages(), oracle.iter().filter(|mapped| **mapped).count() as u64);
        }
        for (page, mapped) in oracle.iter().enumerate() {
            assert_eq!(memory.is_mapped(RAM + page as u64 * PAGE), *mapped, "{page}");
        }
    }

    #[test]
    fn read_only_memory_is_mapped_so_and_a_write_to_it_is_no_fault_to_serve() {
        let mut chunks = [Chunk::EMPTY; 1];
        let mut memory = Memory::new(&mut chunks);
        memory.add(Slot { read_only: true, ..slot(RAM, BLOCK, 0) }).unwrap();
        assert_eq!(memory.on_fault(RAM, true), Fault::ReadOnly);
        assert_eq!(
            memory.on_fault(RAM, false),
            Fault::Map(MapRequest { gpa: RAM, pa: 0, pages: 512, flags: MAP_READ_ONLY })
        );
    }

    #[test]
    fn a_slot_that_cannot_be_is_refused() {
        let mut chunks = [Chunk::EMPTY; 2];
        let mut memory = Memory::new(&mut chunks);
        for bad in [slot(RAM, 0, 0), slot(RAM + 1, PAGE, 0), slot(RAM, PAGE, 1), slot(!0xfff, 2 * PAGE, 0)] {
            assert_eq!(memory.add(bad), Err(SlotError::Range));
        }
        memory.add(slot(RAM, PAGE, 0)).unwrap();
        assert_eq!(memory.add(slot(RAM, BLOCK, 0)), Err(SlotError::Overlap));
        assert_eq!(memory.add(slot(RAM + BLOCK, 2 * BLOCK, 0)), Err(SlotError::NoRoom));
        memory.add(slot(RAM + BLOCK, BLOCK, 0)).unwrap();
        assert_eq!((memory.host_address(RAM + BLOCK + 5), memory.host_address(RAM + PAGE)), (Some(5), None));
    }
}
