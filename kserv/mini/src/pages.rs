//! Which RAM is free: ranges of whole pages, in order. Large pieces are taken from the bottom, single pages from the top, so that the
//! bottom stays in large pieces.
//!
//! Lock: [`PAGES`].
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::ops::Range;

use crate::sync::Mutex;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a block.
pub const BLOCK: u64 = 2 << 20;

static PAGES: Mutex<Vec<Range<u64>>> = Mutex::new(Vec::new());

/// Takes away from each range what is in `taken`, and cuts to whole pages.
pub fn without(ranges: &[Range<u64>], taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = ranges.to_vec();
    for gone in taken {
        let gone = gone.start & !(PAGE - 1)..gone.end.next_multiple_of(PAGE);
        let pieces = left.iter().flat_map(|range| {
            [range.start..range.end.min(gone.start), range.start.max(gone.end)..range.end]
                .map(|piece| if range.start < gone.end && gone.start < range.end { piece } else { range.clone() })
        });
        let mut next: Vec<Range<u64>> = Vec::new();
        for piece in pieces {
            if !piece.is_empty() && next.last() != Some(&piece) {
                next.push(piece);
            }
        }
        left = next;
    }
    let whole = left.iter().map(|range| range.start.next_multiple_of(PAGE)..range.end & !(PAGE - 1));
    let mut whole: Vec<_> = whole.filter(|range| !range.is_empty()).collect();
    whole.sort_by_key(|range| range.start);
    whole
}

/// These ranges are free.
pub fn start(ranges: Vec<Range<u64>>) {
    *PAGES.lock() = ranges;
}

/// Bytes that are free.
pub fn free_bytes() -> u64 {
    PAGES.lock().iter().map(|range| range.end - range.start).sum()
}

/// Takes `pages` in one piece, aligned to `align` bytes: the lowest.
pub fn take(pages: u64, align: u64) -> Option<u64> {
    let mut free = PAGES.lock();
    let size = pages.checked_mul(PAGE)?;
    let (n, at) = free.iter().enumerate().find_map(|(n, range)| {
        let at = range.start.checked_next_multiple_of(align)?;
        (at < range.end && range.end - at >= size).then_some((n, at))
    })?;
    cut(&mut free, n, at..at + size);
    Some(at)
}

/// Takes `pages` in one piece from the top, aligned to `align` bytes.
pub fn take_top(pages: u64, align: u64) -> Option<u64> {
    let mut free = PAGES.lock();
    let size = pages.checked_mul(PAGE)?;
    let (n, at) = free.iter().enumerate().rev().find_map(|(n, range)| {
        let at = range.end.checked_sub(size)? & !(align - 1);
        (at >= range.start).then_some((n, at))
    })?;
    cut(&mut free, n, at..at + size);
    Some(at)
}

fn cut(free: &mut Vec<Range<u64>>, n: usize, gone: Range<u64>) {
    let range = free.remove(n);
    if gone.end < range.end {
        free.insert(n, gone.end..range.end);
    }
    if range.start < gone.start {
        free.insert(n, range.start..gone.start);
    }
}

/// Gives back what [`take`] or [`take_top`] gave.
pub fn give(at: u64, pages: u64) {
    let mut free = PAGES.lock();
    let mut range = at..at + pages * PAGE;
    let n = free.partition_point(|other| other.start < range.start);
    if free.get(n).is_some_and(|next| next.start == range.end) {
        range.end = free.remove(n).end;
    }
    if n > 0 && free[n - 1].end == range.start {
        free[n - 1].end = range.end;
    } else {
        free.insert(n, range);
    }
}
