//! Tests of the log: whole lines, prefixes, levels, the panic path.

use super::*;
use crate::platform::console::fake::Fake;
use std::boxed::Box;
use std::string::{String, ToString};
use std::thread;
use std::vec::Vec;

fn logger_on_console() -> (&'static Logger, &'static Fake) {
    let history = Box::leak(Box::new(SpinMutex::new(Ring::new())));
    let (logger, fake) = (Box::leak(Box::new(Logger::new(history))), Fake::leak());
    // SAFETY: nobody else has the logger yet.
    unsafe { logger.set_console(Some(Console::fake(fake))) };
    logger.locking.store(true, Ordering::SeqCst);
    (logger, fake)
}

fn ring_text(logger: &Logger) -> String {
    let mut buf = std::vec![0; RING_SIZE];
    let out = logger.with_history(|history| history.read_from(0, &mut buf));
    buf.truncate(out.len);
    String::from_utf8(buf).unwrap()
}

#[test]
fn a_line_names_its_level_unless_it_is_information() {
    let (logger, fake) = logger_on_console();
    for level in [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace] {
        logger.record(level, format_args!("x={}", 1));
    }
    let expected = "corevisor: error: x=1\ncorevisor: warning: x=1\ncorevisor: x=1\ncorevisor: debug: x=1\n\
                    corevisor: trace: x=1\n";
    assert_eq!(ring_text(logger), expected);
    assert_eq!(fake.text(), expected.replace('\n', "\r\n"));
}

#[test]
fn text_from_outside_cannot_imitate_a_line_or_control_the_terminal() {
    let (logger, _) = logger_on_console();
    logger.record(Level::Info, format_args!("a\nb\r\u{1b}[2J\tc\u{7f}\u{85}é"));
    assert_eq!(ring_text(logger), "corevisor: a\ncorevisor: b??[2J\tc??é\n");
}

#[test]
fn an_empty_record_is_one_line_with_the_prefix() {
    let (logger, _) = logger_on_console();
    logger.record(Level::Warn, format_args!(""));
    assert_eq!(ring_text(logger), "corevisor: warning: \n");
}

#[test]
fn before_locks_work_lines_are_written_without_them() {
    let (logger, fake) = logger_on_console();
    logger.locking.store(false, Ordering::SeqCst);
    let guard = logger.history.lock();
    drop(guard);
    logger.record(Level::Info, format_args!("early"));
    assert_eq!(fake.text(), "corevisor: early\r\n");
    assert!(logger.panic_writer().history.is_none());
}

#[test]
fn lines_of_different_cpus_do_not_mix_on_the_console_or_in_the_ring() {
    let (logger, fake) = logger_on_console();
    let cpus: Vec<_> = (0..4)
        .map(|cpu| {
            thread::spawn(move || {
                for n in 0..50 {
                    logger.record(Level::Info, format_args!("cpu {cpu} says {n} {}", "x".repeat(20)));
                }
            })
        })
        .collect();
    cpus.into_iter().for_each(|cpu| cpu.join().unwrap());
    for text in [ring_text(logger), fake.text().replace("\r\n", "\n")] {
        let mut lines: Vec<_> = text.lines().map(ToString::to_string).collect();
        let mut expected: Vec<_> = (0..4)
            .flat_map(|cpu| (0..50).map(move |n| (cpu, n)))
            .map(|(cpu, n)| std::format!("corevisor: cpu {cpu} says {n} {}", "x".repeat(20)))
            .collect();
        lines.sort();
        expected.sort();
        assert_eq!(lines, expected);
    }
}

#[test]
fn a_panic_writes_to_console_and_ring_if_the_lock_is_free() {
    let (logger, fake) = logger_on_console();
    let mut writer = logger.panic_writer();
    writeln!(writer, "panic: {}", 7).unwrap();
    write!(writer, "x0 {:#x}", 1).unwrap();
    writeln!(writer, " x1 {:#x}", 2).unwrap();
    drop(writer);
    let expected = "corevisor: panic: 7\ncorevisor: x0 0x1 x1 0x2\n";
    assert_eq!(ring_text(logger), expected);
    assert_eq!(fake.text(), expected.replace('\n', "\r\n"));
}

#[test]
fn a_panic_while_a_line_is_being_written_still_reaches_the_console() {
    struct Panics(&'static Logger);
    impl fmt::Display for Panics {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            writeln!(self.0.panic_writer(), "panic in the middle")
        }
    }
    let (logger, fake) = logger_on_console();
    logger.record(Level::Info, format_args!("start {}", Panics(logger)));
    assert_eq!(fake.text(), "corevisor: start corevisor: panic in the middle\r\n\r\n");
}

#[test]
fn the_panic_path_switches_the_transmitter_on() {
    let (logger, fake) = logger_on_console();
    let before = fake.enables();
    write!(logger.panic_writer(), "x").unwrap();
    assert!(fake.enables() > before);
}

#[test]
fn the_last_level_on_the_command_line_counts() {
    use LevelFilter::*;
    let words = [("off", Off), ("error", Error), ("warn", Warn), ("info", Info), ("debug", Debug), ("trace", Trace)];
    for (word, level) in words {
        let line = std::format!("console=ttyAMA0 corevisor.log=info corevisor.log={word} quiet");
        assert_eq!(level_from_bootargs(&line), Ok(Some(level)));
    }
}

#[test]
fn a_command_line_without_a_level_sets_none() {
    for line in [
        "",
        "   ",
        "quiet",
        "corevisor.log",
        "xcorevisor.log=debug",
        "corevisor.logx=debug",
        "a=\"b corevisor.log=debug c\"",
        "init=/bin/sh -- corevisor.log=debug",
        "a=\"never closed corevisor.log=debug",
    ] {
        assert_eq!(level_from_bootargs(line), Ok(None), "{line}");
    }
}

#[test]
fn a_level_that_does_not_exist_is_named_in_the_error() {
    for word in ["", "loud", "INFO", "info,debug", "infο"] {
        let line = std::format!("corevisor.log=info corevisor.log={word}");
        assert_eq!(level_from_bootargs(&line), Err(UnknownLevel(word)));
    }
    assert_eq!(level_from_bootargs("corevisor.log=\"debug\""), Ok(Some(LevelFilter::Debug)));
}
