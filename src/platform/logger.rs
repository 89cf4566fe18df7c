//! The core's log: back end of the `log` crate, writing whole lines to the console and to the ring.
//!
//! | function            | lock                                                    |
//! |---------------------|---------------------------------------------------------|
//! | `log::info!` etc.   | [`Logger`]'s, for one record, console output included   |
//! | [`read_from`]       | the same, for one copy                                  |
//! | [`panic_writer`]    | tried for a bounded time, then by-passed                |
//!
//! Before [`enable_locking`] no lock is taken at all: an exclusive access may fail for ever, or fault, while the MMU is
//! off, and only the boot CPU runs then. A `Display` that is logged may not log itself (the lock is held).
//!
//! Nothing of a VM's registers or private memory is ever logged: host and console see the text. Control characters (text
//! may come from a device tree or the host) are replaced, and every line gets the prefix, so no one can imitate a line.
//!
//! Below: console, ring.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::console::Console;
use super::ring::{ReadOut, Ring};

/// Bytes of recent text that are kept for the host to read.
pub const RING_SIZE: usize = 16 * 1024;
/// Level without `corevisor.log=`.
pub const DEFAULT_LEVEL: LevelFilter = LevelFilter::Info;
/// Attempts of the panic path to get the lock. Its owner may be writing a line at 115200 baud: some milliseconds.
const PANIC_PATIENCE: u32 = 1_000_000;
const PREFIX: &str = "corevisor: ";

/// Text that the logger writes under its lock; the console needs none.
type History = Ring<RING_SIZE>;

/// The log. One per machine, [`init`] sets it up; a type so that tests can have their own.
pub struct Logger {
    history: &'static SpinMutex<History>,
    /// Written by [`Logger::set_console`] only, when no other CPU runs.
    console: UnsafeCell<Option<Console>>,
    /// Locks work: MMU and caches are on.
    locking: AtomicBool,
}

// SAFETY: `console` changes only in `set_console`, whose caller vouches that nobody else uses the logger meanwhile; a
// `Console` itself is `Sync`. The rest is `Sync` by itself.
unsafe impl Sync for Logger {}

/// Apart from [`LOGGER`], so that it is all zeros and takes no room in the image.
static HISTORY: SpinMutex<History> = SpinMutex::new(Ring::new());
static LOGGER: Logger = Logger::new(&HISTORY);

impl Logger {
    const fn new(history: &'static SpinMutex<History>) -> Self {
        Self { history, console: UnsafeCell::new(None), locking: AtomicBool::new(false) }
    }

    /// # Safety
    /// No other CPU, and nobody further up the stack, uses the logger.
    unsafe fn set_console(&self, console: Option<Console>) {
        // SAFETY: the caller vouches for it.
        unsafe { *self.console.get() = console };
    }

    fn console(&self) -> Option<&Console> {
        // SAFETY: nobody changes the console while it is in use, see `set_console`.
        unsafe { (*self.console.get()).as_ref() }
    }

    /// Runs `action` on the history, with the lock if locks work yet.
    fn with_history<R>(&self, action: impl FnOnce(&mut History) -> R) -> R {
        if self.locking.load(Ordering::Acquire) {
            return action(&mut self.history.lock());
        }
        // SAFETY: before `enable_locking` only the boot CPU runs, and a record's text does not log, so this reference
        // is the only one.
        action(unsafe { &mut *self.history.as_mut_ptr() })
    }

    fn record(&self, level: Level, text: fmt::Arguments<'_>) {
        self.with_history(|history| {
            let mut line =
                Line { history: Some(history), console: self.console(), level, at_start: true, panic: false };
            // A `Display` that fails cuts its own line short.
            let _ = line.write_fmt(text);
            line.finish();
        });
    }

    fn panic_writer(&self) -> PanicWriter<'_> {
        let mut history = None;
        if self.locking.load(Ordering::Acquire) {
            history = (0..PANIC_PATIENCE).find_map(|_| self.history.try_lock());
        }
        PanicWriter { history, console: self.console(), at_start: true }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.record(record.level(), *record.args());
        }
    }

    fn flush(&self) {}
}

/// Makes this the `log` crate's back end: lines of `level` and above go to `console` and to the ring. Works with the
/// MMU off. May be called again, to change the console's address.
///
/// # Safety
/// Only the boot CPU runs, and not from within a record being logged. If [`enable_locking`] was called, no other CPU
/// has logged or will log meanwhile.
pub unsafe fn init(console: Option<Console>, level: LevelFilter) {
    // SAFETY: the caller vouches that nobody else logs; `set_logger_racy` makes plain accesses only, and a second call
    // fails without effect.
    unsafe {
        LOGGER.set_console(console);
        let _ = log::set_logger_racy(&LOGGER);
    }
    set_level(level);
}

/// From now on lines are written under the lock. To be called once by the boot CPU when its MMU and caches are on and
/// before it starts another CPU; a CPU whose MMU is off may not log from then on.
pub fn enable_locking() {
    LOGGER.locking.store(true, Ordering::Release);
}

/// Logs lines of `level` and above.
fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Copies recent text from byte number `seq` on into `buf`, see [`Ring::read_from`]. Takes the logger's lock, so it must
/// not be called while something is being logged on this CPU; `buf` is the core's own memory.
pub fn read_from(seq: u64, buf: &mut [u8]) -> ReadOut {
    LOGGER.with_history(|history| history.read_from(seq, buf))
}

/// A writer for the panic path, which cannot dead-lock: it waits a bounded time for the lock and writes to the console
/// without it if need be (text of others may then mix in, and the ring is left out).
///
/// Keep it until the machine is halted, so that ordinary lines of other CPUs do not mix in.
pub fn panic_writer() -> PanicWriter<'static> {
    LOGGER.panic_writer()
}

/// See [`panic_writer`].
pub struct PanicWriter<'a> {
    history: Option<SpinMutexGuard<'a, History>>,
    console: Option<&'a Console>,
    at_start: bool,
}

impl Write for PanicWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let history = self.history.as_deref_mut();
        let mut line =
            Line { history, console: self.console, level: Level::Error, at_start: self.at_start, panic: true };
        line.write_str(text)?;
        self.at_start = line.at_start;
        Ok(())
    }
}

/// Text on its way to console and ring: prefix before each line, control characters replaced.
struct Line<'a> {
    history: Option<&'a mut History>,
    console: Option<&'a Console>,
    level: Level,
    /// Nothing of the current line was written yet.
    at_start: bool,
    /// The console may need to be switched on, and the prefix names no level.
    panic: bool,
}

impl Line<'_> {
    fn raw(&mut self, text: &[u8]) {
        if let Some(history) = &mut self.history {
            history.write(text);
        }
        match self.console {
            Some(console) if self.panic => console.force_write(text),
            Some(console) => console.write(text),
            None => {}
        }
    }

    fn prefix(&mut self) {
        self.raw(PREFIX.as_bytes());
        if !self.panic {
            self.raw(level_name(self.level).as_bytes());
        }
        self.at_start = false;
    }

    /// Ends the line; an empty record is a line too.
    fn finish(&mut self) {
        if self.at_start {
            self.prefix();
        }
        self.raw(b"\n");
    }
}

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(char::is_control) {
            if self.at_start {
                self.prefix();
            }
            let plain = piece.trim_end_matches(char::is_control);
            self.raw(plain.as_bytes());
            match piece.get(plain.len()..).unwrap_or_default() {
                "" => {}
                "\t" => self.raw(b"\t"),
                "\n" => {
                    self.raw(b"\n");
                    self.at_start = true;
                }
                _ => self.raw(b"?"),
            }
        }
        Ok(())
    }
}

const fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    }
}

/// A value of `corevisor.log=` that is no level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownLevel<'a>(pub &'a str);

/// The level that the kernel command line `bootargs` asks for with
/// `corevisor.log=error|warn|info|debug|trace|off`; the last one counts, `None` if there is none. Text in double quotes
/// is one word, as in Linux; what stands behind `--` is not for the core.
///
/// # Errors
/// [`UnknownLevel`] if the last value is not one of these words.
pub fn level_from_bootargs(bootargs: &str) -> Result<Option<LevelFilter>, UnknownLevel<'_>> {
    let mut quoted = false;
    bootargs
        .split(|c: char| {
            quoted ^= c == '"';
            !quoted && c.is_ascii_whitespace()
        })
        .take_while(|&word| word != "--")
        .filter_map(|word| word.strip_prefix("corevisor.log="))
        .last()
        .map(level)
        .transpose()
}

fn level(word: &str) -> Result<LevelFilter, UnknownLevel<'_>> {
    Ok(match word.trim_matches('"') {
        "off" => LevelFilter::Off,
        "error" => LevelFilter::Error,
        "warn" => LevelFilter::Warn,
        "info" => LevelFilter::Info,
        "debug" => LevelFilter::Debug,
        "trace" => LevelFilter::Trace,
        _ => return Err(UnknownLevel(word)),
    })
}

#[cfg(test)]
mod tests;
