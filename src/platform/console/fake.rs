//! A UART in memory, for tests: keeps what was sent, counts polls, can play dead.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::boxed::Box;
use std::string::String;
use std::sync::Mutex;
use std::vec::Vec;

use super::{Console, Driver, Uart};

#[derive(Default)]
pub(crate) struct Fake {
    sent: Mutex<Vec<u8>>,
    dead: AtomicBool,
    polls: AtomicU32,
    enables: AtomicU32,
}

impl Fake {
    pub(crate) fn leak() -> &'static Self {
        Box::leak(Box::default())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.sent.lock().unwrap().clone()).unwrap()
    }

    pub(crate) fn set_dead(&self, dead: bool) {
        self.dead.store(dead, Ordering::SeqCst);
    }

    pub(crate) fn polls(&self) -> u32 {
        self.polls.load(Ordering::SeqCst)
    }

    pub(crate) fn enables(&self) -> u32 {
        self.enables.load(Ordering::SeqCst)
    }
}

impl Uart for Fake {
    fn enable(&self) {
        self.enables.fetch_add(1, Ordering::SeqCst);
    }

    fn ready(&self) -> bool {
        self.polls.fetch_add(1, Ordering::SeqCst);
        !self.dead.load(Ordering::SeqCst)
    }

    fn send(&self, byte: u8) {
        self.sent.lock().unwrap().push(byte);
    }
}

impl Console {
    pub(crate) fn fake(fake: &'static Fake) -> Self {
        Self::with(Driver::Fake(fake))
    }
}
