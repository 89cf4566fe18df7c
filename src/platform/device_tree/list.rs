//! A list of at most `N` items without a heap.
//!
//! It may not grow past `N`: a full list says [`Full`] and has not changed.
#![forbid(unsafe_code)]

use core::fmt;
use core::ops::{Deref, DerefMut};

/// The list has no room for one more item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Up to `N` items, in order; read it as a slice.
#[derive(Clone, Copy)]
pub struct List<T: Copy, const N: usize> {
    items: [T; N],
    len: usize,
}

impl<T: Copy, const N: usize> List<T, N> {
    /// A list without items; `filler` is what the unused places hold, and is never seen.
    pub const fn new(filler: T) -> Self {
        Self { items: [filler; N], len: 0 }
    }

    /// Puts `item` at the end.
    ///
    /// # Errors
    /// [`Full`] if there are `N` items already.
    pub fn push(&mut self, item: T) -> Result<(), Full> {
        self.insert(self.len, item)
    }

    /// Puts `item` before the item at `at`; at the end if there is none.
    ///
    /// # Errors
    /// [`Full`] if there are `N` items already.
    pub fn insert(&mut self, at: usize, item: T) -> Result<(), Full> {
        let at = at.min(self.len);
        let tail = self.items.get_mut(at..=self.len).ok_or(Full)?;
        tail.copy_within(..tail.len() - 1, 1);
        if let Some(place) = tail.first_mut() {
            *place = item;
        }
        self.len += 1;
        Ok(())
    }

    /// Takes out the `count` items from `at` on, or those of them that there are.
    pub fn remove(&mut self, at: usize, count: usize) {
        let count = count.min(self.len.saturating_sub(at));
        if let Some(tail) = self.items.get_mut(at..self.len) {
            tail.copy_within(count.., 0);
            self.len -= count;
        }
    }

    /// Takes out everything.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl<T: Copy, const N: usize> Deref for List<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.items.get(..self.len).unwrap_or_default()
    }
}

impl<T: Copy, const N: usize> DerefMut for List<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.items.get_mut(..self.len).unwrap_or_default()
    }
}

impl<T: Copy + fmt::Debug, const N: usize> fmt::Debug for List<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_list_refuses_and_stays_as_it_was() {
        let mut list = List::<u8, 2>::new(0);
        assert_eq!((list.push(2), list.insert(0, 1)), (Ok(()), Ok(())));
        assert_eq!((list.push(3), list.insert(0, 3)), (Err(Full), Err(Full)));
        assert_eq!(*list, [1, 2]);
    }

    #[test]
    fn remove_takes_what_there_is_and_keeps_the_order() {
        let mut list = List::<u8, 8>::new(0);
        (1..=5).for_each(|n| list.push(n).unwrap());
        list.remove(1, 2);
        assert_eq!(*list, [1, 4, 5]);
        list.remove(2, 9);
        list.remove(7, 1);
        assert_eq!(*list, [1, 4]);
    }
}
