//! A machine while it runs: its console both ways, its control socket, and an end to it in any case.

use crate::{
    outcome::{Finished, LAST_WORDS, Last, Outcome, judge, judge_last, tail},
    qmp::{self, Qmp, QmpError, Shutdown},
    run::{CONSOLE, Run, RunError},
};
use nix::{
    sys::resource::{UsageWho, getrusage},
    sys::time::TimeValLike,
};
use serde_json::Value;
use std::{
    cell::Cell,
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use thiserror::Error;

/// A text did not come.
#[derive(Debug, Error)]
#[error("the console did not show {text:?} {why}; its last lines:\n{tail}")]
pub struct NotSeen {
    text: String,
    why: String,
    tail: String,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    qmp: Option<Qmp>,
    started: Instant,
    timeout: Option<Duration>,
    stop_at: Vec<String>,
    interrupt: Option<Arc<AtomicUsize>>,
    may_reboot: bool,
    scripted: bool,
    /// How far [`Running::wait_for`] has read.
    seen: usize,
    /// Removed with it.
    dir: TempDir,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    console: Vec<u8>,
    errors: Vec<u8>,
    shutdown: Option<Shutdown>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// How often ends that nobody notifies of are looked for.
const TICK: Duration = Duration::from_millis(20);

impl Running {
    pub(crate) fn start(run: &Run, dir: TempDir, args: Vec<std::ffi::OsString>) -> Result<Self, RunError> {
        let program = run.project.qemu();
        let failed = |source| RunError::Qemu { program: program.display().to_string(), source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(&program);
        command.args(args);
        command.args(["-chardev".to_owned(), format!("socket,id=qmp,fd={}", theirs.as_raw_fd())]);
        command.args(["-mon", "chardev=qmp,mode=control"]);
        if !run.terminal {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            // A Ctrl-C on the terminal is ours to handle, not QEMU's.
            command.process_group(0);
        }
        let mut child = spawn(&mut command, &theirs).map_err(failed)?;
        drop(theirs);

        let shared = Arc::new(Shared::default());
        let mut readers = Vec::new();
        if let Some(out) = child.stdout.take() {
            let (shared, mut show) = (shared.clone(), run.echo.then(io::stdout));
            readers.push(thread::spawn(move || {
                copy_text(out, |text| {
                    if let Some(out) = &mut show {
                        // A reader that has gone away does not stop the machine.
                        let _ = out.write_all(text).and_then(|()| out.flush());
                    }
                    shared.change(|state| state.console.extend_from_slice(text));
                });
            }));
        }
        if let Some(err) = child.stderr.take() {
            let shared = shared.clone();
            readers.push(thread::spawn(move || {
                copy_text(err, |text| shared.change(|state| state.errors.extend_from_slice(text)));
            }));
        }
        let (send, answers) = mpsc::channel();
        let qmp = match ours.try_clone() {
            Ok(ear) => {
                let shared = shared.clone();
                readers.push(thread::spawn(move || {
                    qmp::listen(ear, &send, |shutdown| {
                        shared.change(|state| state.shutdown = state.shutdown.take().or(Some(shutdown)));
                    });
                }));
                // A QEMU that has ended already says why on its standard error.
                Qmp::new(ours, answers).ok()
            }
            Err(_) => None,
        };
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            shared,
            readers,
            qmp,
            started: Instant::now(),
            timeout: run.timeout,
            stop_at: run.stop_at.clone(),
            interrupt: run.interrupt.clone(),
            may_reboot: run.machine.may_reboot(),
            scripted: run.extra.script.as_ref().is_some_and(|script| !script.is_empty()),
            seen: 0,
            dir,
        })
    }

    /// QEMU's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that the console has said so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().console).into_owned()
    }

    /// The last lines of the console.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.console(), lines)
    }

    /// Types into the console.
    ///
    /// # Errors
    /// When the machine has ended or has the terminal.
    pub fn send(&mut self, text: &str) -> io::Result<()> {
        let stdin = self.stdin.as_mut().ok_or_else(|| io::Error::other("the machine's console is not ours"))?;
        stdin.write_all(text.as_bytes())?;
        stdin.flush()
    }

    /// Waits until the console shows `text`, after what earlier calls waited for.
    ///
    /// # Errors
    /// [`NotSeen`] when it does not within `limit`, or the machine ends before; with the last lines.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<(), NotSeen> {
        let end = Instant::now() + limit;
        let mut last_look = false;
        loop {
            let state = self.shared.lock();
            let found = find(&state.console[self.seen.min(state.console.len())..], text.as_bytes());
            if let Some(at) = found {
                self.seen += at + text.len();
                return Ok(());
            }
            let why = if last_look {
                Some("before the machine ended".to_owned())
            } else if Instant::now() >= end {
                Some(format!("within {} s", limit.as_secs_f64()))
            } else {
                None
            };
            if let Some(why) = why {
                let tail = tail(&String::from_utf8_lossy(&state.console), 20);
                return Err(NotSeen { text: text.to_owned(), why, tail });
            }
            drop(self.shared.changed.wait_timeout(state, TICK));
            if matches!(self.try_wait(), Ok(Some(_)) | Err(_)) {
                self.join();
                last_look = true;
            }
        }
    }

    /// Runs a command of QEMU's control protocol: `query-status`, `pmemsave`, ...
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        match &self.qmp {
            Some(qmp) => qmp.execute(command, arguments),
            None => Err(QmpError::Silent(command.to_owned())),
        }
    }

    /// Waits for the machine's end, or ends it for one of the run's reasons.
    pub fn finish(mut self) -> Finished {
        let outcome = self.wait();
        self.finished(outcome)
    }

    /// Ends the machine now.
    pub fn kill(mut self) -> Finished {
        self.end();
        self.finished(Outcome::Quit)
    }

    fn finished(&self, outcome: Outcome) -> Finished {
        Finished { outcome, console: self.console(), elapsed: self.started.elapsed(), scripted: self.scripted }
    }

    fn wait(&mut self) -> Outcome {
        let mut looked = 0;
        loop {
            match self.try_wait() {
                Ok(Some(status)) => {
                    self.join();
                    return self.judge(status);
                }
                Ok(None) => {}
                Err(error) => {
                    self.end();
                    return Outcome::QemuDied { status: error.to_string(), message: String::new() };
                }
            }
            if let Some(signal) = self.interrupt.as_ref().map(|signal| signal.load(Ordering::SeqCst))
                && signal != 0
            {
                self.end();
                return Outcome::Interrupted(i32::try_from(signal).unwrap_or(0));
            }
            if let Some(limit) = self.timeout.filter(|limit| self.started.elapsed() >= *limit) {
                self.end();
                return Outcome::TimedOut(limit);
            }
            let state = self.shared.lock();
            if let Some((last, text, at)) = self.last_words(&state.console, &mut looked) {
                drop(state);
                // The rest of the line.
                thread::sleep(TICK * 5);
                self.end();
                return judge_last(last, text, &self.console(), at);
            }
            drop(self.shared.changed.wait_timeout(state, TICK));
        }
    }

    /// A text to end the machine at in what is new on the console: what it means, itself, and where it stands.
    fn last_words(&self, console: &[u8], looked: &mut usize) -> Option<(Last, String, usize)> {
        let wanted = self.stop_at.iter().map(|text| (text.as_str(), Last::Wanted));
        let texts = || LAST_WORDS.into_iter().chain(wanted.clone());
        let new = &console[*looked..];
        let found =
            texts().find_map(|(text, last)| Some((last, text.to_owned(), *looked + find(new, text.as_bytes())?)));
        // The start of a text may stand at the end of what came.
        let longest = texts().map(|(text, _)| text.len()).max().unwrap_or(0);
        *looked = console.len().saturating_sub(longest).max(*looked);
        found
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(Child::try_wait)
    }

    /// Waits for QEMU in one of two ways. What the ended children of this process have used grows only here, by one at a time.
    fn reap<T>(&mut self, wait: impl FnOnce(&mut Child) -> T) -> T {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let before = cpu_of_children();
        let ended = wait(&mut self.child);
        CPU_OF_MACHINES.set(CPU_OF_MACHINES.get() + cpu_of_children().saturating_sub(before));
        ended
    }

    fn judge(&self, status: ExitStatus) -> Outcome {
        let state = self.shared.lock();
        let console = String::from_utf8_lossy(&state.console);
        let errors = String::from_utf8_lossy(&state.errors);
        judge(state.shutdown.as_ref(), status, &console, &errors, self.may_reboot)
    }

    /// Ends QEMU if it still runs, and waits for it.
    fn end(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.reap(Child::wait);
        self.join();
    }

    fn join(&mut self) {
        self.stdin = None;
        if let Ok(recorded) = std::fs::read(self.dir.path().join(CONSOLE)) {
            let text = recorded.into_iter().filter(|byte| *byte != b'\r').collect();
            self.shared.change(|state| state.console = text);
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

thread_local! {
    static CPU_OF_MACHINES: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The CPU time of all machines that ended on this thread: QEMU's own and the kernel's for it.
pub fn cpu_of_machines() -> Duration {
    CPU_OF_MACHINES.get()
}

/// The CPU time of every ended and awaited child of this process.
pub fn cpu_of_children() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Duration::ZERO };
    let micros = |time: nix::sys::time::TimeVal| u64::try_from(time.num_microseconds()).unwrap_or(0);
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    if what.is_empty() {
        return Some(0);
    }
    text.windows(what.len()).position(|window| window == what)
}

/// Hands on what comes from `from`, without the carriage returns of a serial line, until its end.
fn copy_text(mut from: impl Read, mut to: impl FnMut(&[u8])) {
    let mut chunk = [0; 4096];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => {
                let text: Vec<u8> = chunk[..count].iter().copied().filter(|byte| *byte != b'\r').collect();
                to(&text);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Starts QEMU so that it inherits `socket`, and ends when the thread that starts it does.
#[allow(unsafe_code, reason = "what a child does between fork and exec has no safe form")]
fn spawn(command: &mut Command, socket: &UnixStream) -> io::Result<Child> {
    use nix::{
        fcntl::{FcntlArg, FdFlag, fcntl},
        sys::{prctl, signal::Signal},
    };
    let number = socket.as_raw_fd();
    // SAFETY: between fork and exec only prctl and fcntl are called, which are async-signal-safe, and nothing is
    // allocated. `number` is open in the child as it is in us until this function's caller drops `socket`.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            fcntl(std::os::fd::BorrowedFd::borrow_raw(number), FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(())
        });
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_loses_its_carriage_returns() {
        let mut all = Vec::new();
        copy_text(&b"one\r\ntwo\r\n"[..], |text| all.extend_from_slice(text));
        assert_eq!(all, b"one\ntwo\n");
    }
}
