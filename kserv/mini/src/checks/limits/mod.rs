//! Every call of the interface's table, with each argument at, below and above its limits and with addresses of everybody (this host's own, the
//! core's, devices', other VMs', wrapping, unaligned), each value of one argument with each value of each other, in each state that a VM can be in;
//! and the numbers beside the table. Not random: two runs make the same calls.
//!
//! It holds if
//! - every call is answered by a result or a named error, and never by a result where an argument is beyond its limits or names what is not this host's,
//! - an error leaves the VM under test as it was,
//! - after each call that did something all VMs can be ended, and every page comes back,
//! - a protected VM that runs meanwhile finds all its memory as it was, and its private pages stay external aborts.
#![forbid(unsafe_code)]

mod states;
mod values;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use corevisor_interface::calls::{CallError, HostCall};
use kserv_model::layout::RAM_BASE;

use super::victim::{self, Victim, answer, forbidden, others};
use super::{Context, all_back, ensure};
use crate::arch::call::hvc;
use crate::arch::cpu;
use crate::arch::entry::{try_read, try_write};
use crate::calls;
use crate::guest::Failure;
use crate::pages::{self, BLOCK, PAGE};
use states::{Place, STATES, State};
use values::Places;

/// What calls may take, and what they may go on to behind it.
const FREE: u64 = 2 * BLOCK;
/// Addresses of the core's that are tried.
const OF_THE_CORE: usize = 2;
/// Parts of a second after which a vCPU leaves.
const RUN_FOR: u64 = 20_000;
/// The attacked VM has a turn after so many calls.
const TURN: u64 = 64;

struct Attacker {
    victim: Victim,
    places: Places,
    gicv: u64,
    calls: u64,
    served: u64,
    ended: u64,
}

/// All of it.
pub fn limits(context: &Context<'_>) -> Result<String, Failure> {
    let victim = Victim::start(context)?;
    let size = FREE + Place::PAGES * PAGE;
    let free = pages::take(size / PAGE, BLOCK).ok_or(Failure::Memory(size))?;
    let places = Places {
        of: Place::all(free + FREE),
        free,
        foreign: vec![victim.private[0], victim.private[victim.private.len() - 1], victim.shared],
        lent: victim.mailboxes(),
        forbidden: few(forbidden()),
        end: end_of_ram(free),
        vms: [0, victim.id()],
        ipa_bits: context.info.ipa_bits,
    };
    let mut attacker = Attacker { victim, places, gicv: context.info.gicv, calls: 0, served: 0, ended: 0 };
    attacker.beside_the_table()?;
    for state in STATES {
        attacker.in_state(state)?;
    }
    let Attacker { victim, calls, served, ended, .. } = attacker;
    for page in &victim.private {
        for result in [try_read(*page).map(|_| ()), try_write(*page, 0)] {
            ensure(result.is_err_and(|abort| abort.is_refusal()), "the host reaches a private page")?;
        }
    }
    victim.finish()?;
    all_back(free, size)?;
    pages::give(free, size / PAGE);
    Ok(alloc::format!("{calls} calls, {served} of them served, in {} states; {ended} VMs ended", STATES.len()))
}

/// Of many addresses of the core the first ones; and what follows, which is different.
fn few(forbidden: Vec<u64>) -> Vec<u64> {
    let devices = forbidden.len().saturating_sub(6);
    forbidden.into_iter().enumerate().filter(|(n, _)| *n < OF_THE_CORE || *n >= devices).map(|(_, pa)| pa).collect()
}

/// The first address behind the RAM around `pa` that is not there.
fn end_of_ram(pa: u64) -> u64 {
    let mut at = pa;
    while try_read(at).is_ok() {
        at += BLOCK;
    }
    at
}

impl Attacker {
    fn call(&mut self, call: HostCall, arguments: [u64; 5]) -> Result<Result<[u64; 4], CallError>, Failure> {
        self.calls += 1;
        if self.calls.is_multiple_of(TURN) {
            self.victim.have_a_turn();
        }
        if call == HostCall::VcpuRun {
            cpu::set_deadline(Some(cpu::counter() + cpu::frequency() / RUN_FOR));
        }
        let x = calls::bare(call, arguments);
        answer(call, &arguments, x).map_err(Failure::Text)
    }

    /// Numbers that are no calls, or not in this form.
    fn beside_the_table(&mut self) -> Result<(), Failure> {
        let offsets = (0..0x100).map(|n| 0x8000 + n);
        let forms = [0xc600_0000, 0x8600_0000, 0x4600_0000, 0x0600_0000, 1 << 63 | 0xc600_0000];
        let numbers = forms.into_iter().flat_map(|form| offsets.clone().map(move |offset| form | offset));
        for function in numbers.chain(0..0x40).filter(|number| HostCall::from_function(*number).is_none()) {
            for argument in [0, 1, self.places.free, u64::MAX] {
                self.calls += 1;
                let x0 = hvc(function, [argument; 5])[0];
                ensure(x0 == CallError::NotSupported.x0(), &alloc::format!("the number {function:#x} gives {x0:#x}"))?;
            }
        }
        Ok(())
    }

    /// Every call in one state.
    fn in_state(&mut self, state: State) -> Result<(), Failure> {
        self.make(state)?;
        for call in HostCall::ALL {
            for arguments in values::arguments(&self.places, *call) {
                if self.victim.would_end(*call, &arguments) || self.is_a_gift(*call, &arguments) {
                    continue;
                }
                let before = self.look();
                let got = self.call(*call, arguments)?;
                let about = || alloc::format!("{state:?}: {call:?} {arguments:x?}: {got:x?}");
                match got {
                    Ok(_) => {
                        self.served += 1;
                        let wrong = self.places.wrong(*call, &arguments, self.gicv);
                        ensure(wrong.is_none(), &alloc::format!("{}, with this {wrong:?}", about()))?;
                        if changes(*call) {
                            self.end_all()
                                .map_err(|failure| Failure::Text(alloc::format!("{}: {failure}", about())))?;
                            self.make(state)?;
                        }
                    }
                    // Not done yet, and so not an error.
                    Err(CallError::Again) => {
                        self.end_all()?;
                        self.make(state)?;
                    }
                    Err(_) => ensure(self.look() == before, &alloc::format!("{}: and something has changed", about()))?,
                }
            }
        }
        self.end_all()
    }

    /// What the attacked VM is given comes back at its end, and not before.
    fn is_a_gift(&self, call: HostCall, arguments: &[u64; 5]) -> bool {
        let page = match call {
            HostCall::DonatePool => arguments[1],
            HostCall::MapMemory => arguments[2],
            HostCall::MapRuns => arguments[4] & !(PAGE - 1),
            _ => return false,
        };
        arguments[0] == self.victim.id() && self.places.is_free(page)
    }

    fn make(&mut self, state: State) -> Result<(), Failure> {
        cpu::set_deadline(Some(cpu::counter() + cpu::frequency() / RUN_FOR));
        self.places.vms[0] = state.make(&self.places.of)?;
        Ok(())
    }

    /// What can be seen of the VM under test.
    fn look(&self) -> impl PartialEq + use<> {
        let vm = self.places.vms[0];
        let pages = [RAM_BASE, RAM_BASE + BLOCK].map(|gpa| calls::page_info(vm, gpa));
        // Tables may have been added before the refusal.
        (calls::vm_info(vm), calls::pool_info(vm).map(|(_, all)| all), pages)
    }

    /// Every VM but the attacked one ends, and what it had is this host's.
    fn end_all(&mut self) -> Result<(), Failure> {
        for vm in others(self.victim.id()) {
            ensure(victim::end(vm, 1000), "a VM cannot be ended")?;
            self.ended += 1;
        }
        let Places { of, free, .. } = &self.places;
        for page in of.iter().chain(&[*free, free + PAGE, free + BLOCK - PAGE, free + BLOCK]) {
            ensure(try_read(*page).is_ok(), &alloc::format!("the page at {page:#x} did not come back"))?;
        }
        Ok(())
    }
}

/// Whether a call that is served changes something.
const fn changes(call: HostCall) -> bool {
    use HostCall::{
        CallRevision, CallUid, CoreInfo, CoreLogRead, CoreStatistics, CoreVersion, GetRegister, PageInfo, PoolInfo,
        VmInfo,
    };
    !matches!(
        call,
        CoreVersion
            | CoreStatistics
            | CoreLogRead
            | CoreInfo
            | PoolInfo
            | GetRegister
            | VmInfo
            | PageInfo
            | CallUid
            | CallRevision
    )
}
