//! The PL011 at 0x0900_0000: text out, bytes in.

use crate::arch::{read32, write32};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

const UART: u64 = 0x0900_0000;
/// UARTFR: reading it changes nothing.
pub const FLAGS: u64 = UART + 0x18;
const FULL: u32 = 1 << 5;
const EMPTY: u32 = 1 << 4;

/// The guest's name: length and address. Two words, as there are no locks.
static NAME: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// Names the guest.
pub fn start(name: &'static str) {
    NAME[0].store(name.len(), SeqCst);
    NAME[1].store(name.as_ptr() as usize, SeqCst);
}

/// The guest's name.
pub fn name() -> &'static str {
    let (length, at) = (NAME[0].load(SeqCst), NAME[1].load(SeqCst));
    if at == 0 {
        return "nobody";
    }
    // SAFETY: `start` put a `&'static str` there.
    unsafe { core::str::from_utf8_unchecked(core::slice::from_raw_parts(at as *const u8, length)) }
}

/// The next byte from the host, if there is one.
pub fn received() -> Option<u8> {
    (read32(FLAGS) & EMPTY == 0).then(|| read32(UART) as u8)
}

/// The console.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while read32(FLAGS) & FULL != 0 {}
            write32(UART, byte.into());
        }
        Ok(())
    }
}

/// One line: `guest NAME: ...`.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::console::Console, "guest {}: {}", $crate::console::name(), format_args!($($text)*));
    }};
}

/// Says that the test failed, and powers the VM off.
#[macro_export]
macro_rules! fail {
    ($($text:tt)*) => {{
        $crate::say!("FAILED: {}", format_args!($($text)*));
        $crate::calls::system_off()
    }};
}
