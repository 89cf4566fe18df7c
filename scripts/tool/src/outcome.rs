//! How a run ended, told from QEMU's own reason and from the console's last words.

use crate::qmp::Shutdown;
use std::{fmt, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

/// What `/init` prints before a script's status.
pub const SCRIPT_ENDED: &str = "corevisor-host: script ended with status ";
/// What is said on the console before a machine stands still for good, and what each means.
pub(crate) const LAST_WORDS: [(&str, Last); 5] = [
    ("corevisor: all CPUs stopped", Last::CoreFailed),
    ("corevisor: error: cannot start: ", Last::CoreRefused),
    ("corevisor: this board has no power-off", Last::PoweredOff),
    ("reboot: System halted", Last::LinuxHalted),
    // Before it has a log.
    ("corevisor: cannot start: ", Last::CoreRefused),
];
const CORE_FAILED: &str = "corevisor: FATAL ";
/// How the mini host's line begins when something is not as it should be.
const MINI_ERROR: &str = "mini: error: ";
const LINUX_PANIC: &str = "Kernel panic - not syncing: ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    CoreFailed,
    CoreRefused,
    PoweredOff,
    LinuxHalted,
    /// A text of [`Run::stop_at`](crate::run::Run::stop_at).
    Wanted,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The host powered off by itself; with the status of its script if it ran one to its end.
    PoweredOff {
        /// The script's status.
        script: Option<i32>,
    },
    /// The host's kernel panicked and reset the machine.
    Panicked(String),
    /// The mini host powered off because something is not as it should be: its line.
    MiniFailed(String),
    /// The machine was reset.
    Reset,
    /// The core stopped the machine, because it failed or cannot run here: its message.
    CoreStopped(String),
    /// The host's kernel stopped the machine without power-off: its line.
    Halted(String),
    /// The console showed a text of [`Run::stop_at`](crate::run::Run::stop_at).
    Stopped(String),
    /// The limit of time.
    TimedOut(Duration),
    /// A signal to us, or to QEMU.
    Interrupted(i32),
    /// QEMU was told to end, by its monitor or by QMP.
    Quit,
    /// QEMU ended without a word of the machine.
    QemuDied {
        /// Its exit status in words.
        status: String,
        /// The last line of its standard error.
        message: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff { script: None } => f.write_str("the host powered off"),
            Self::PoweredOff { script: Some(status) } => {
                write!(f, "the host powered off; its script ended with status {status}")
            }
            Self::Panicked(why) => write!(f, "the host's kernel panicked: {why}"),
            Self::MiniFailed(line) => write!(f, "the mini host failed: {line}"),
            Self::Reset => f.write_str("the host reset the machine instead of powering off"),
            Self::CoreStopped(why) => write!(f, "the core stopped the machine: {why}"),
            Self::Halted(line) => write!(f, "the machine stopped: {line}"),
            Self::Stopped(text) => write!(f, "ended at the console's text: {text}"),
            Self::TimedOut(limit) => write!(f, "no end within {} s, QEMU was killed", limit.as_secs_f64()),
            Self::Interrupted(signal) => write!(f, "interrupted by signal {signal}"),
            Self::Quit => f.write_str("QEMU was told to quit before the host powered off"),
            Self::QemuDied { status, message } if message.is_empty() => write!(f, "QEMU ended by itself ({status})"),
            Self::QemuDied { status, message } => write!(f, "QEMU ended by itself ({status}): {message}"),
        }
    }
}

/// What is left of a run.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// All that the console said, lines ended by `\n` alone.
    pub console: String,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether a script was to run.
    pub(crate) scripted: bool,
}

impl Finished {
    /// Whether the host powered off by itself, and its script, if it had one, ended with status 0.
    pub fn is_success(&self) -> bool {
        match self.outcome {
            Outcome::PoweredOff { script: Some(status) } => status == 0,
            Outcome::PoweredOff { script: None } => !self.scripted,
            _ => false,
        }
    }

    /// One line that says how it ended.
    pub fn story(&self) -> String {
        match self.outcome {
            Outcome::PoweredOff { script: None } if self.scripted => {
                "the host powered off before its script came to an end".to_owned()
            }
            _ => self.outcome.to_string(),
        }
    }

    /// The last lines of the console.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.console, lines)
    }
}

pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

pub(crate) fn judge(
    shutdown: Option<&Shutdown>,
    status: ExitStatus,
    console: &str,
    errors: &str,
    may_reboot: bool,
) -> Outcome {
    let panic = console.split(LINUX_PANIC).nth(1).filter(|_| !may_reboot);
    let panic = panic.map(|rest| Outcome::Panicked(rest.lines().next().unwrap_or_default().trim().to_owned()));
    match shutdown.map(|shutdown| shutdown.reason.as_str()) {
        Some("guest-shutdown") => match console.split_once(MINI_ERROR) {
            Some((_, rest)) => Outcome::MiniFailed(rest.lines().next().unwrap_or_default().trim().to_owned()),
            None => Outcome::PoweredOff { script: script_status(console) },
        },
        Some("guest-reset") => panic.unwrap_or(Outcome::Reset),
        Some("guest-panic") => panic.unwrap_or_else(|| Outcome::Panicked(String::new())),
        Some("host-signal") => Outcome::Interrupted(15),
        Some("host-qmp-quit" | "host-ui") => Outcome::Quit,
        _ => Outcome::QemuDied {
            status: match status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => format!("status {}", status.code().unwrap_or_default()),
            },
            message: errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned(),
        },
    }
}

/// The status of the script, from the last line that says one.
fn script_status(console: &str) -> Option<i32> {
    let (_, after) = console.rsplit_once(SCRIPT_ENDED)?;
    after.lines().next()?.trim().parse().ok()
}

/// How a machine ended that said its last words `text` at `at`.
pub(crate) fn judge_last(last: Last, text: String, console: &str, at: usize) -> Outcome {
    let line =
        |at: usize| console.get(at..).and_then(|rest| rest.lines().next()).unwrap_or(&text).trim_end().to_owned();
    let core_line = |text: &str| text.trim_start_matches("corevisor: ").trim_start_matches("error: ").trim().to_owned();
    match last {
        Last::Wanted => Outcome::Stopped(text),
        Last::PoweredOff => Outcome::PoweredOff { script: script_status(console) },
        Last::LinuxHalted => Outcome::Halted(line(at)),
        Last::CoreRefused => Outcome::CoreStopped(core_line(&line(at))),
        Last::CoreFailed => {
            // "FATAL on CPU 1 at EL2", and what on the line after it.
            let report = console.rfind(CORE_FAILED).and_then(|at| console.get(at..)).unwrap_or_default();
            let lines: Vec<_> = report.lines().take(2).map(core_line).collect();
            Outcome::CoreStopped(if lines.is_empty() { core_line(&line(at)) } else { lines.join(": ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(reason: &str, console: &str) -> Outcome {
        let shutdown = Shutdown { reason: reason.to_owned() };
        judge(Some(&shutdown), ExitStatus::from_raw(0), console, "", false)
    }

    #[test]
    fn power_off_with_and_without_a_script() {
        assert_eq!(judged("guest-shutdown", "boot\n"), Outcome::PoweredOff { script: None });
        let said = "corevisor-host: script ended with status 0\nx\ncorevisor-host: script ended with status 3\nbye";
        assert_eq!(judged("guest-shutdown", said), Outcome::PoweredOff { script: Some(3) });
    }

    #[test]
    fn a_mini_host_that_complains_has_failed() {
        let said = "mini: vm0 runs\nmini: error: vm1: not authentic\nmini: vm0 off\n";
        assert_eq!(judged("guest-shutdown", said), Outcome::MiniFailed("vm1: not authentic".into()));
    }

    #[test]
    fn success_is_power_off_with_a_script_that_was_content() {
        let done = |script, scripted| {
            let outcome = Outcome::PoweredOff { script };
            Finished { outcome, console: String::new(), elapsed: Duration::ZERO, scripted }.is_success()
        };
        assert!(done(None, false) && done(Some(0), true));
        assert!(!done(None, true) && !done(Some(1), true));
    }

    #[test]
    fn a_reset_after_a_panic_is_a_panic() {
        assert_eq!(judged("guest-reset", "hello"), Outcome::Reset);
        let said = "[1.0] Kernel panic - not syncing: VFS: no root\n[1.1] CPU: 0";
        assert_eq!(judged("guest-reset", said), Outcome::Panicked("VFS: no root".into()));
    }

    #[test]
    fn a_qemu_that_dies_is_quoted() {
        let died = judge(None, ExitStatus::from_raw(1 << 8), "", "warning\nqemu: no such CPU\n\n", false);
        assert_eq!(died.to_string(), "QEMU ended by itself (status 1): qemu: no such CPU");
        let killed = judge(None, ExitStatus::from_raw(9), "", "", false);
        assert_eq!(killed.to_string(), "QEMU ended by itself (signal 9)");
    }

    #[test]
    fn the_cores_last_words_are_quoted() {
        let last =
            |console: &str, text: &str, last| judge_last(last, text.to_owned(), console, console.find(text).unwrap());
        let failed =
            "x\ncorevisor: FATAL on CPU 1 at EL2\ncorevisor: panic: no page\ncorevisor: all CPUs stopped; so\n";
        assert_eq!(
            last(failed, LAST_WORDS[0].0, LAST_WORDS[0].1),
            Outcome::CoreStopped("FATAL on CPU 1 at EL2: panic: no page".into())
        );
        let refused = "corevisor: error: cannot start: no memory in the device tree\nmore";
        let outcome = last(refused, LAST_WORDS[1].0, LAST_WORDS[1].1);
        assert_eq!(outcome, Outcome::CoreStopped("cannot start: no memory in the device tree".into()));
        let off = "corevisor-host: script ended with status 0\ncorevisor: this board has no power-off; it may be\n";
        assert_eq!(last(off, LAST_WORDS[2].0, LAST_WORDS[2].1), Outcome::PoweredOff { script: Some(0) });
        let halted = "[    1.5] reboot: System halted\n";
        assert_eq!(last(halted, LAST_WORDS[3].0, LAST_WORDS[3].1), Outcome::Halted("reboot: System halted".into()));
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
    }
}
