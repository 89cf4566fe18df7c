//! QEMU's control socket: why the machine stopped, and commands to it.
//!
//! The socket is one end of a pair whose other end QEMU inherits, so there is no path to find or to clean up.

use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::{Mutex, mpsc},
    time::Duration,
};
use thiserror::Error;

/// Why QEMU ended the machine, in its own words: `guest-shutdown`, `guest-reset`, `host-signal`, ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// The event's `reason`.
    pub reason: String,
}

/// A command to QEMU failed.
#[derive(Debug, Error)]
pub enum QmpError {
    /// QEMU is gone or does not answer.
    #[error("QEMU does not answer the command {0}: it has ended, or hangs")]
    Silent(String),
    /// QEMU says no.
    #[error("QEMU refuses the command {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's reason.
        reason: String,
    },
}

/// The way to QEMU: commands go out here, answers come from [`listen`].
#[derive(Debug)]
pub struct Qmp {
    talk: Mutex<(UnixStream, mpsc::Receiver<Value>)>,
}

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

impl Qmp {
    /// Greets QEMU at the other end of `socket`. `answers` is what [`listen`] fills.
    ///
    /// # Errors
    /// When the socket is closed already.
    pub fn new(socket: UnixStream, answers: mpsc::Receiver<Value>) -> std::io::Result<Self> {
        let mut out = &socket;
        writeln!(out, "{}", json!({ "execute": "qmp_capabilities", "id": GREETING }))?;
        Ok(Self { talk: Mutex::new((socket, answers)) })
    }

    /// Runs a command, `arguments` an object or null, and gives what it returns.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn execute(&self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let silent = || QmpError::Silent(command.to_owned());
        let mut talk = self.talk.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut message = json!({ "execute": command, "id": command });
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        writeln!(talk.0, "{message}").map_err(|_| silent())?;
        loop {
            let mut answer = talk.1.recv_timeout(PATIENCE).map_err(|_| silent())?;
            if answer["id"] != command {
                continue;
            }
            if let Some(reason) = answer["error"]["desc"].as_str() {
                return Err(QmpError::Refused { command: command.to_owned(), reason: reason.to_owned() });
            }
            return Ok(answer["return"].take());
        }
    }
}

const GREETING: &str = "greeting";

/// Reads what QEMU says until it closes the socket: events go to `on_shutdown`, answers into the channel.
pub fn listen(socket: UnixStream, answers: &mpsc::Sender<Value>, mut on_shutdown: impl FnMut(Shutdown)) {
    for line in BufReader::new(socket).lines() {
        let Ok(line) = line else { return };
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if message["event"] == "SHUTDOWN" {
            on_shutdown(Shutdown { reason: message["data"]["reason"].as_str().unwrap_or("unknown").to_owned() });
        } else if message["id"] != GREETING && (message.get("return").is_some() || message.get("error").is_some()) {
            // The receiver is gone when nobody will ask again.
            let _ = answers.send(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A QEMU of three answers.
    fn fake_qemu(socket: UnixStream) {
        let mut out = socket.try_clone().unwrap();
        writeln!(out, "{}", json!({ "QMP": {} })).unwrap();
        for line in BufReader::new(socket).lines() {
            let asked: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let id = &asked["id"];
            let answer = match asked["execute"].as_str().unwrap() {
                "qmp_capabilities" => json!({ "return": {}, "id": id }),
                "double" => json!({ "return": asked["arguments"]["n"].as_u64().unwrap() * 2, "id": id }),
                "quit" => break,
                _ => json!({ "error": { "desc": "no such command" }, "id": id }),
            };
            writeln!(out, "{answer}").unwrap();
        }
        writeln!(out, "{}", json!({ "event": "SHUTDOWN", "data": { "reason": "host-qmp-quit" } })).unwrap();
    }

    #[test]
    fn commands_are_answered_and_the_end_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || fake_qemu(theirs));
        let (send, answers) = mpsc::channel();
        let ear = ours.try_clone().unwrap();
        let listener = thread::spawn(move || {
            let mut reasons = Vec::new();
            listen(ear, &send, |shutdown| reasons.push(shutdown.reason));
            reasons
        });
        let qmp = Qmp::new(ours, answers).unwrap();
        assert_eq!(qmp.execute("double", &json!({ "n": 21 })).unwrap(), 42);
        let refused = qmp.execute("fly", &Value::Null).unwrap_err();
        assert_eq!(refused.to_string(), "QEMU refuses the command fly: no such command");
        assert!(matches!(qmp.execute("quit", &Value::Null), Err(QmpError::Silent(_))));
        qemu.join().unwrap();
        assert_eq!(listener.join().unwrap(), ["host-qmp-quit"]);
    }
}
