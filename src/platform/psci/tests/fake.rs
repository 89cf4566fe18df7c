//! A PSCI firmware of a few lines, for tests: CPU states of its own, answers that can be set, a record of all calls.

use core::cell::Cell;
use std::collections::HashMap;
use std::sync::Mutex;
use std::thread;
use std::vec::Vec;

use crate::platform::psci::call::id;
use crate::platform::psci::{Machine, SystemEnd};

std::thread_local! {
    /// The CPU that this thread plays.
    pub(super) static THIS_CPU: Cell<u64> = const { Cell::new(0) };
}

pub(super) const DENIED: u64 = -3i32 as u32 as u64;
pub(super) const ALREADY_ON: u64 = -4i32 as u32 as u64;
const INVALID_PARAMETERS: u64 = -2i32 as u32 as u64;
/// As firmware returns it: 32 bits, the upper half of x0 is whatever it was.
pub(super) const NOT_SUPPORTED: u64 = 0xdead_beef_ffff_ffff;

#[derive(Default)]
pub(super) struct State {
    /// Answers to any call, by function and first argument, before the firmware acts.
    pub(super) answers: HashMap<(u32, u64), [u64; 4]>,
    pub(super) calls: Vec<(u32, [u64; 3])>,
    pub(super) on: Vec<bool>,
    /// Questions that a CPU still answers with "on" after CPU_OFF.
    pub(super) slow_off: u32,
    pub(super) slow: HashMap<u64, u32>,
    pub(super) events: u32,
    pub(super) ends: Vec<SystemEnd>,
}

/// The machine with its firmware; CPU n has affinity n.
pub(super) struct Fake(pub(super) Mutex<State>);

impl Fake {
    /// Boot CPU on, the others off. PSCI 1.1 that has nothing optional.
    pub(super) fn new(cpus: usize) -> Self {
        let mut on = std::vec![false; cpus];
        on[0] = true;
        let fake = Self(Mutex::new(State { on, ..State::default() }));
        fake.answer(id::PSCI_VERSION, 0, 0x1_0001);
        fake
    }

    pub(super) fn answer(&self, function: u32, argument: u64, x0: u64) {
        self.0.lock().unwrap().answers.insert((function, argument), [x0, 1 << 40 | 1, 1 << 40 | 2, 1 << 40 | 3]);
    }

    /// Firmware with every optional call.
    pub(super) fn rich(cpus: usize) -> Self {
        let fake = Self::new(cpus);
        for function in [id::CPU_SUSPEND_64, id::SYSTEM_SUSPEND_64, id::SYSTEM_RESET2_64, id::SMCCC_VERSION] {
            fake.answer(id::PSCI_FEATURES, function.into(), 0);
        }
        fake.answer(id::SMCCC_VERSION, 0, 0x1_0002);
        fake.answer(id::TRNG_VERSION, 0, 0x1_0000);
        let arch = [id::SMCCC_ARCH_WORKAROUND_1, id::SMCCC_ARCH_WORKAROUND_3, id::SMCCC_ARCH_SOC_ID];
        arch.iter().for_each(|&function| fake.answer(id::SMCCC_ARCH_FEATURES, function.into(), 0));
        fake
    }

    /// What a CPU does that the firmware has off: nothing, until the firmware starts it. Firmware would start it in the
    /// core's entry; here it goes on behind its CPU_OFF, which comes to the same.
    pub(super) fn wait_for_power(&self, cpu: u64) {
        while !self.0.lock().unwrap().on[cpu as usize] {
            thread::yield_now();
        }
    }

    pub(super) fn take_calls(&self) -> Vec<(u32, [u64; 3])> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }
}

impl State {
    /// Whether `cpu` is on as far as the firmware tells now.
    fn seems_on(&mut self, cpu: u64) -> Option<bool> {
        let on = *self.on.get(cpu as usize)?;
        match self.slow.get_mut(&cpu) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Some(true)
            }
            _ => Some(on),
        }
    }
}

impl Machine for Fake {
    fn smc(&self, function: u32, args: [u64; 3]) -> [u64; 4] {
        let mut state = self.0.lock().unwrap();
        state.calls.push((function, args));
        if let Some(&answer) = state.answers.get(&(function, args[0])) {
            return answer;
        }
        let this = THIS_CPU.get();
        let x0 = match function {
            id::CPU_ON_64 => match state.seems_on(args[0]) {
                None => INVALID_PARAMETERS,
                Some(true) => ALREADY_ON,
                Some(false) => {
                    state.on[args[0] as usize] = true;
                    0
                }
            },
            id::CPU_OFF => {
                let slow_off = state.slow_off;
                state.slow.insert(this, slow_off);
                state.on[this as usize] = false;
                drop(state);
                self.wait_for_power(this);
                0
            }
            id::AFFINITY_INFO_64 => state.seems_on(args[0]).map_or(INVALID_PARAMETERS, |on| u64::from(!on)),
            _ => NOT_SUPPORTED,
        };
        [x0, 0, 0, 0]
    }

    fn wait_for_event(&self) {
        thread::yield_now();
    }

    fn send_event(&self) {
        self.0.lock().unwrap().events += 1;
    }

    fn end(&self, how: SystemEnd) {
        self.0.lock().unwrap().ends.push(how);
    }
}
