//! All states of a small machine against a model, and all interleavings of its hardest race.

use core::ops::ControlFlow;
use std::collections::HashSet;
use std::vec::Vec;

use super::*;
use crate::platform::psci::PsciError;
use crate::platform::psci::power::{CpuPower, PowerTable, Start};

const CPUS: u16 = 3;
const START: Start = Start { entry: Ipa::new(ENTRY), context: 0 };
type Table = PowerTable<3>;

fn new_table() -> Table {
    let mut table = Table::new(0);
    (1..u64::from(CPUS)).for_each(|cpu| assert!(table.add(cpu, true).is_ok()));
    table
}

/// The model: a letter for each CPU; a digit is a start asked for by that CPU.
fn letters(table: &Table) -> Vec<char> {
    (0..CPUS)
        .map(|cpu| match table.power(CpuId::new(cpu)).unwrap() {
            CpuPower::Absent => 'a',
            CpuPower::Off => 'f',
            CpuPower::On => 'n',
            CpuPower::Suspended { .. } => 's',
            CpuPower::OnPending { by, .. } => char::from(b'0' + by.index() as u8),
        })
        .collect()
}

#[derive(Clone, Copy, Debug)]
enum Op {
    On(u16, u16),
    CancelOn(u16, u16),
    Off(u16),
    CancelOff(u16),
    Suspend(u16),
    SystemSuspend(u16),
    CancelSuspend(u16),
    Enter(u16),
}

fn ops() -> Vec<Op> {
    let one = [Op::Off, Op::CancelOff, Op::Suspend, Op::SystemSuspend, Op::CancelSuspend, Op::Enter];
    let two = [Op::On, Op::CancelOn];
    let mut all: Vec<_> = (0..CPUS).flat_map(|cpu| one.map(|op| op(cpu))).collect();
    all.extend((0..CPUS).flat_map(|by| (0..CPUS).flat_map(move |target| two.map(|op| op(by, target)))));
    all
}

fn apply(table: &mut Table, op: Op) -> Result<bool, PsciError> {
    let id = CpuId::new;
    match op {
        Op::On(by, target) => table.begin_on(id(by), id(target), START)?,
        Op::CancelOn(by, target) => table.cancel_on(id(by), id(target)),
        Op::Off(cpu) => table.begin_off(id(cpu))?,
        Op::CancelOff(cpu) => return Ok(table.cancel_off(id(cpu))),
        Op::Suspend(cpu) => table.begin_suspend(id(cpu), START)?,
        Op::SystemSuspend(cpu) => table.begin_system_suspend(id(cpu), START)?,
        Op::CancelSuspend(cpu) => table.cancel_suspend(id(cpu)),
        Op::Enter(cpu) => return Ok(table.enter(id(cpu)).is_some()),
    }
    Ok(true)
}

/// What the operation should do, said once more in another way: the letter that the CPU has afterwards.
fn model(state: &mut [char], op: Op) -> Result<bool, PsciError> {
    use PsciError::{AlreadyOn, Denied, InternalFailure, InvalidParameters, OnPending};
    let others_off = |cpu: u16| (0..CPUS).all(|c| c == cpu || matches!(state[c as usize], 'f' | 'a'));
    let digit = |by: u16| char::from(b'0' + by as u8);
    let now = |cpu: u16| state[cpu as usize];
    let (cpu, after) = match op {
        Op::On(by, target) => match now(target) {
            'f' => (target, digit(by)),
            'a' => return Err(InvalidParameters),
            'n' | 's' => return Err(AlreadyOn),
            _ => return Err(OnPending),
        },
        Op::CancelOn(by, target) => (target, if now(target) == digit(by) { 'f' } else { now(target) }),
        Op::CancelOff(cpu) if now(cpu).is_ascii_digit() => return Ok(false),
        Op::CancelOff(cpu) => (cpu, if now(cpu) == 'f' { 'n' } else { now(cpu) }),
        Op::CancelSuspend(cpu) => (cpu, if now(cpu) == 's' { 'n' } else { now(cpu) }),
        Op::Enter(cpu) if now(cpu) == 'a' => {
            state[cpu as usize] = 'f';
            return Ok(false);
        }
        Op::Enter(cpu) if now(cpu) == 'f' || now(cpu) == 'n' => return Ok(false),
        Op::Enter(cpu) => (cpu, 'n'),
        Op::SystemSuspend(cpu) if !others_off(cpu) => return Err(Denied),
        Op::Off(cpu) | Op::Suspend(cpu) | Op::SystemSuspend(cpu) if now(cpu) != 'n' => return Err(InternalFailure),
        Op::Off(cpu) if others_off(cpu) => return Err(Denied),
        Op::Off(cpu) => (cpu, 'f'),
        Op::Suspend(cpu) | Op::SystemSuspend(cpu) => (cpu, 's'),
    };
    state[cpu as usize] = after;
    Ok(true)
}

#[test]
fn every_operation_in_every_state_of_three_cpus_does_what_the_model_says() {
    let mut awaiting = Table::new(0);
    assert!(awaiting.add(1, true).is_ok() && awaiting.add(2, false).is_ok());
    let (mut seen, mut todo) = (HashSet::new(), std::vec![new_table(), awaiting]);
    let mut checked = 0;
    while let Some(table) = todo.pop() {
        if !seen.insert(letters(&table)) {
            continue;
        }
        for op in ops() {
            let (mut after, mut expected) = (table.clone(), letters(&table));
            assert_eq!(apply(&mut after, op), model(&mut expected, op), "{op:?} in {:?}", letters(&table));
            assert_eq!(letters(&after), expected, "{op:?} in {:?}", letters(&table));
            checked += 1;
            todo.push(after);
        }
    }
    // Six letters for each of three CPUs, and of two while the third has not come; 36 operations.
    assert_eq!((seen.len(), checked), (252, 252 * 36));
}

/// Two CPUs (0 and 1) that start CPU 2, twice each, while CPU 2 switches itself off, twice; every step apart.
#[derive(Clone)]
struct Race {
    table: Table,
    /// CPU 2 is on in the firmware.
    powered: bool,
    /// Steps and attempts left of callers 0 and 1.
    callers: [(Caller, u8); 2],
    target: (Target, u8),
    starts: u32,
    arrivals: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Caller {
    Idle,
    Reserved,
    Refused,
}

#[derive(Clone, Copy, PartialEq)]
enum Target {
    Running,
    Leaving,
    Refused,
    Gone,
}

impl Race {
    fn new() -> Self {
        let mut table = new_table();
        for cpu in [1, 2] {
            table.begin_on(CpuId::new(0), CpuId::new(cpu), START).unwrap();
            table.enter(CpuId::new(cpu)).unwrap();
        }
        let (callers, target) = ([(Caller::Idle, 2); 2], (Target::Running, 2));
        Self { table, powered: true, callers, target, starts: 0, arrivals: 0 }
    }

    /// The next step of caller `by`, or `Break` if it has none.
    fn step_caller(&mut self, by: usize) -> ControlFlow<()> {
        let (me, target) = (CpuId::new(by as u16), CpuId::new(2));
        let (state, left) = self.callers[by];
        self.callers[by] = match state {
            Caller::Idle if left == 0 => return ControlFlow::Break(()),
            Caller::Idle => match self.table.begin_on(me, target, START) {
                Ok(()) => (Caller::Reserved, left),
                Err(_) => (Caller::Idle, left - 1),
            },
            Caller::Reserved if self.powered => (Caller::Refused, left),
            Caller::Reserved => {
                self.powered = true;
                self.starts += 1;
                (Caller::Idle, left - 1)
            }
            Caller::Refused => {
                self.table.cancel_on(me, target);
                (Caller::Idle, left - 1)
            }
        };
        ControlFlow::Continue(())
    }

    /// The next step of CPU 2; the firmware lets it go or not as `refuse` says.
    fn step_target(&mut self, refuse: bool) -> ControlFlow<()> {
        let me = CpuId::new(2);
        let (state, left) = self.target;
        self.target = match state {
            Target::Running if left == 0 => return ControlFlow::Break(()),
            Target::Running => {
                self.table.begin_off(me).unwrap();
                (Target::Leaving, left - 1)
            }
            Target::Leaving if refuse => (Target::Refused, left),
            Target::Leaving => {
                self.powered = false;
                (Target::Gone, left)
            }
            // A wait for the others is no step.
            Target::Refused if !self.table.cancel_off(me) => return ControlFlow::Break(()),
            Target::Refused => (Target::Running, left),
            Target::Gone if !self.powered => return ControlFlow::Break(()),
            Target::Gone => {
                assert!(self.table.enter(me).is_some(), "a CPU that was started finds no start");
                self.arrivals += 1;
                (Target::Running, left)
            }
        };
        ControlFlow::Continue(())
    }

    fn explore(&self, ends: &mut u64) {
        let mut moved = false;
        for by in 0..2 {
            let mut next = self.clone();
            if next.step_caller(by).is_continue() {
                moved = true;
                next.explore(ends);
            }
        }
        for refuse in [false, true] {
            let mut next = self.clone();
            if (!refuse || self.target.0 == Target::Leaving) && next.step_target(refuse).is_continue() {
                moved = true;
                next.explore(ends);
            }
        }
        if !moved {
            *ends += 1;
            assert_eq!(self.starts, self.arrivals);
            let on = self.table.power(CpuId::new(2)) == Some(CpuPower::On);
            assert_eq!(on, self.powered, "table and firmware disagree for ever");
            assert!(on || self.table.power(CpuId::new(2)) == Some(CpuPower::Off));
        }
    }
}

#[test]
fn in_every_interleaving_of_two_starters_and_a_leaver_no_start_is_lost_and_none_is_left_over() {
    let mut ends = 0;
    Race::new().explore(&mut ends);
    assert!(ends > 1000, "{ends}");
}
