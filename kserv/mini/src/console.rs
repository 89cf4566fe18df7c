//! The machine's serial port: whole lines of this program and of VMs, or the bytes of the only VM as they come.
//!
//! Lock: [`STATE`], taken last of all.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use spin::Once;

use crate::arch::uart::Uart;
use crate::sync::Mutex;

static UART: Once<Uart> = Once::new();
/// Whether the last byte ended a line.
static STATE: Mutex<bool> = Mutex::new(true);

/// Longest line of a VM that is kept until it ends.
const LONGEST: usize = 512;

/// From now on there is a console.
pub fn start(uart: Uart) {
    UART.call_once(|| uart);
}

fn put(byte: u8) {
    if let Some(uart) = UART.get() {
        uart.put(byte);
    }
}

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

/// One line of this program.
pub fn line(text: fmt::Arguments<'_>) {
    let mut fresh = STATE.lock();
    write_line(&mut fresh, text);
}

fn write_line(fresh: &mut bool, text: fmt::Arguments<'_>) {
    let before = if *fresh { "" } else { "\n" };
    let _ = writeln!(Port, "{before}mini: {text}");
    *fresh = true;
}

/// The last line: also if another CPU, or this one, holds the lock.
pub fn last_line(text: fmt::Arguments<'_>) {
    for _ in 0..10_000_000 {
        if let Some(mut fresh) = STATE.try_lock() {
            return write_line(&mut fresh, text);
        }
    }
    write_line(&mut false, text);
}

/// A received byte.
pub fn get() -> Option<u8> {
    UART.get()?.get()
}

/// Writes a line: `say!("{} pages", n)`.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::console::line(format_args!($($text)*)) };
}

/// What a VM writes.
#[derive(Debug)]
pub struct VmConsole {
    /// Bytes go out as they come; else by line, with the name in front.
    raw: bool,
    name: String,
    line: Vec<u8>,
}

impl VmConsole {
    /// Of the VM `name`.
    pub fn new(name: &str, raw: bool) -> Self {
        Self { raw, name: name.into(), line: Vec::new() }
    }

    /// One more byte.
    pub fn send(&mut self, byte: u8) {
        if self.raw {
            let mut fresh = STATE.lock();
            put(byte);
            *fresh = byte == b'\n';
            return;
        }
        match byte {
            b'\n' => self.flush(),
            b'\r' => {}
            _ => self.line.push(byte),
        }
        if self.line.len() >= LONGEST {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut fresh = STATE.lock();
        let before = if *fresh { "" } else { "\n" };
        let _ = write!(Port, "{before}[{}] ", self.name);
        self.line.drain(..).for_each(put);
        let _ = Port.write_str("\n");
        *fresh = true;
    }

    /// What is left of a line.
    pub fn rest(&self) -> &[u8] {
        &self.line
    }

    /// What is left of a line is forgotten.
    pub fn clear(&mut self) {
        self.line.clear();
    }

    /// What is left of a line goes out.
    pub fn end(&mut self) {
        if !self.line.is_empty() {
            self.flush();
        }
    }
}
