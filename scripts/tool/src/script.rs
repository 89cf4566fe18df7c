//! A script for the host's shell from standard input, without ever waiting for an input that has nothing to say.

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{io::Read, os::fd::AsFd, time::Duration};
use thiserror::Error;

/// What stood on an input.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Everything up to its end.
    Text(Vec<u8>),
    /// It stays open and says nothing.
    Silent,
}

/// An input that began and did not end.
#[derive(Debug, Error)]
pub enum InputError {
    /// It fell silent without an end, so what came may be half a script.
    #[error("standard input gave {0} bytes, then neither more nor an end: close it, or use --script FILE")]
    NoEnd(usize),
    /// It cannot be read.
    #[error("cannot read standard input: {0}")]
    Read(#[from] std::io::Error),
}

/// How long an input may take before its first byte.
pub const FIRST_BYTE: Duration = Duration::from_secs(1);
/// How long it may pause later.
pub const NEXT_BYTE: Duration = Duration::from_secs(10);

/// Reads an input to its end: waits `first` for something to come, and `next` whenever it pauses.
///
/// # Errors
/// [`InputError`]; an input that says nothing at all is no error but [`Input::Silent`].
pub fn read_input(mut input: impl Read + AsFd, first: Duration, next: Duration) -> Result<Input, InputError> {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let patience = if text.is_empty() { first } else { next };
        if !has_something(&input, patience)? {
            return if text.is_empty() { Ok(Input::Silent) } else { Err(InputError::NoEnd(text.len())) };
        }
        match input.read(&mut chunk)? {
            0 => return Ok(Input::Text(text)),
            count => text.extend_from_slice(&chunk[..count]),
        }
    }
}

fn has_something(input: &impl AsFd, patience: Duration) -> std::io::Result<bool> {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, os::unix::net::UnixStream};

    const SHORT: Duration = Duration::from_millis(30);

    #[test]
    fn a_closed_input_is_read_whole() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"uname\n").unwrap();
        drop(ours);
        assert_eq!(read_input(theirs, SHORT, SHORT).unwrap(), Input::Text(b"uname\n".to_vec()));
        let nothing = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(read_input(nothing, SHORT, SHORT).unwrap(), Input::Text(Vec::new()));
    }

    #[test]
    fn an_open_and_silent_input_is_not_waited_for() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(read_input(theirs, SHORT, SHORT).unwrap(), Input::Silent);
    }

    #[test]
    fn half_a_script_is_not_taken_for_a_whole_one() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"rm -rf /tmp").unwrap();
        let error = read_input(theirs, SHORT, SHORT).unwrap_err();
        assert!(matches!(error, InputError::NoEnd(11)));
    }
}
