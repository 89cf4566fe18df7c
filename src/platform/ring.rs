//! The log's memory: the last `N` bytes of text, the oldest overwritten, read out by sequence number.
//!
//! A byte's sequence number is how many bytes were written before it since boot; it never wraps (64 bits). A reader
//! keeps the number it got last and learns how much it missed. Pure: no lock, no machine; the logger's lock guards it.
//!
//! The host may read it (call CoreLogRead): nothing of a VM's registers or private memory may be written here.
#![forbid(unsafe_code)]

/// The last `N` bytes written. `N` is a power of two.
pub struct Ring<const N: usize> {
    bytes: [u8; N],
    /// Sequence number of the next byte to be written.
    end: u64,
}

/// What [`Ring::read_from`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadOut {
    /// Sequence number to ask for next.
    pub next: u64,
    /// Number of bytes put into the buffer.
    pub len: usize,
    /// Number of bytes between the number asked for and the first byte read that are gone.
    pub lost: u64,
}

impl<const N: usize> Ring<N> {
    const MASK: u64 = {
        assert!(N.is_power_of_two());
        N as u64 - 1
    };

    /// An empty ring.
    pub const fn new() -> Self {
        Self { bytes: [0; N], end: 0 }
    }

    /// Appends `text`, over the oldest bytes if need be.
    pub fn write(&mut self, text: &[u8]) {
        for &byte in text {
            self.bytes[(self.end & Self::MASK) as usize] = byte;
            self.end += 1;
        }
    }

    /// Sequence number of the oldest byte that is still there.
    pub const fn start(&self) -> u64 {
        self.end.saturating_sub(N as u64)
    }

    /// Sequence number of the next byte to be written.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Copies bytes from number `seq` on into `buf`, as many as there are and fit.
    ///
    /// If some of the bytes asked for are gone, reading goes on at the first line that is whole. A number in the future
    /// gives nothing and leads back to the end.
    pub fn read_from(&self, seq: u64, buf: &mut [u8]) -> ReadOut {
        let first = if seq < self.start() { self.first_whole_line() } else { seq.min(self.end) };
        let len = usize::try_from(self.end - first).unwrap_or(usize::MAX).min(buf.len());
        for (number, byte) in (first..).zip(&mut buf[..len]) {
            *byte = self.byte(number);
        }
        ReadOut { next: first + len as u64, len, lost: first.saturating_sub(seq) }
    }

    fn byte(&self, number: u64) -> u8 {
        self.bytes[(number & Self::MASK) as usize]
    }

    /// Number of the first byte behind the first new line; of the oldest byte if there is no new line.
    fn first_whole_line(&self) -> u64 {
        let start = self.start();
        (start..self.end).find(|&number| self.byte(number) == b'\n').map_or(start, |number| number + 1)
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn read<const N: usize>(ring: &Ring<N>, seq: u64, size: usize) -> (Vec<u8>, ReadOut) {
        let mut buf = std::vec![0; size];
        let out = ring.read_from(seq, &mut buf);
        buf.truncate(out.len);
        (buf, out)
    }

    #[test]
    fn an_empty_ring_gives_nothing_for_any_number() {
        let ring = Ring::<16>::new();
        for seq in [0, 1, 16, u64::MAX] {
            assert_eq!(read(&ring, seq, 8).1, ReadOut { next: 0, len: 0, lost: 0 });
        }
    }

    #[test]
    fn a_reader_that_keeps_up_misses_nothing() {
        let mut ring = Ring::<16>::new();
        let (mut seen, mut seq) = (Vec::new(), 0);
        for line in 0..100u8 {
            let text = [b'a' + line % 26, b'b', b'\n'];
            ring.write(&text);
            let (bytes, out) = read(&ring, seq, 16);
            assert_eq!((out.lost, &bytes[..]), (0, &text[..]));
            seen.extend(bytes);
            seq = out.next;
        }
        assert_eq!((seen.len(), seq), (300, 300));
    }

    #[test]
    fn a_reader_that_fell_behind_goes_on_at_a_whole_line_and_knows_what_it_lost() {
        let mut ring = Ring::<16>::new();
        ring.write(b"first\nsecond\nthird\nlast\n");
        // 24 bytes written, the oldest kept is number 8, in the middle of "second".
        let (bytes, out) = read(&ring, 3, 64);
        assert_eq!(bytes, b"third\nlast\n");
        assert_eq!(out, ReadOut { next: 24, len: 11, lost: 10 });
    }

    #[test]
    fn without_a_new_line_reading_goes_on_at_the_oldest_byte() {
        let mut ring = Ring::<4>::new();
        ring.write(b"abcdefg");
        assert_eq!(read(&ring, 0, 64), (b"defg".to_vec(), ReadOut { next: 7, len: 4, lost: 3 }));
    }

    #[test]
    fn a_small_buffer_takes_the_text_in_pieces() {
        let mut ring = Ring::<16>::new();
        ring.write(b"abcdefgh");
        let (mut seen, mut seq) = (Vec::new(), 0);
        while seq < ring.end() {
            let (bytes, out) = read(&ring, seq, 3);
            seen.extend(bytes);
            seq = out.next;
        }
        assert_eq!(seen, b"abcdefgh");
        assert_eq!(read(&ring, 0, 0).1, ReadOut { next: 0, len: 0, lost: 0 });
    }

    #[test]
    fn every_read_of_every_length_of_history_is_a_piece_of_what_was_written() {
        let history: Vec<u8> = (0..40u8).map(|n| if n % 7 == 6 { b'\n' } else { b'a' + n % 26 }).collect();
        for written in 0..=history.len() {
            let mut ring = Ring::<8>::new();
            ring.write(&history[..written]);
            for seq in 0..=written as u64 + 2 {
                for size in 0..10 {
                    let (bytes, out) = read(&ring, seq, size);
                    let first = out.next as usize - out.len;
                    assert_eq!(bytes, history[first..first + out.len]);
                    assert_eq!(out.lost, (first as u64).saturating_sub(seq));
                    assert!(first + 8 >= written && out.next as usize <= written);
                    assert!(out.len == size || out.next as usize == written);
                }
            }
        }
    }
}
