//! What the core has set up in devices stays: power states that may take it are not the host's. What memory held is gone after a reset.

use super::*;
use crate::platform::psci::call::id;
use crate::platform::psci::{After, CpuPower, Leave, Start, SystemEnd};

const SMMUS: SetUp = SetUp { smmus: true, its: false };
const ITS: SetUp = SetUp { smmus: false, its: true };
/// CPU_SUSPEND, original format: power-down of the CPU alone, and of two levels around it.
const CPU_DOWN: u64 = 1 << 16;
const CLUSTER_DOWN: u64 = 1 << 24 | CPU_DOWN;
const SYSTEM_DOWN: u64 = 2 << 24 | CPU_DOWN;

fn rich_board(set_up: SetUp, extended: bool) -> Psci {
    let fake = Fake::rich(1);
    fake.answer(id::PSCI_FEATURES, id::CPU_SUSPEND_64.into(), u64::from(extended) << 1);
    let below = Below::Smc(SmcFirmware::probe(&fake, Pa::new(CORE_ENTRY)).unwrap());
    fake.take_calls();
    board_with(fake, below, set_up, 1)
}

#[test]
fn suspend_to_ram_is_not_there_where_the_core_has_smmus_or_an_its_and_never_reaches_the_firmware() {
    for (set_up, features, answer) in [(SMMUS, -1, -1), (ITS, -1, -1), (SetUp::default(), 0, -9)] {
        let psci = rich_board(set_up, false);
        for function in [id::SYSTEM_SUSPEND, id::SYSTEM_SUSPEND_64] {
            assert_eq!(result(&psci, 0, id::PSCI_FEATURES, [function.into(), 0, 0]), features);
            assert_eq!(result(&psci, 0, function, [0, 0, 0]), answer);
            let outcome = call(&psci, 0, function, [ENTRY, 0, 0]);
            assert_eq!(outcome == PsciOutcome::Return(u64::MAX), set_up != SetUp::default());
        }
        assert_eq!(psci.machine.take_calls(), []);
    }
}

#[test]
fn where_the_core_has_smmus_a_state_deeper_than_the_cpus_own_is_a_standby() {
    let start = Start { entry: Ipa::new(ENTRY), context: 0 };
    let down = |state: u64| PsciOutcome::Leave(Leave::CpuSuspend { state: state as u32, start });
    for (set_up, extended, state, outcome) in [
        (SMMUS, false, CPU_DOWN, down(CPU_DOWN)),
        (SMMUS, false, CLUSTER_DOWN, PsciOutcome::Standby),
        (SMMUS, false, SYSTEM_DOWN, PsciOutcome::Standby),
        (SMMUS, true, 1 << 30, PsciOutcome::Standby),
        (SMMUS, true, 0, PsciOutcome::Standby),
        (ITS, false, SYSTEM_DOWN, down(SYSTEM_DOWN)),
        (SetUp::default(), false, SYSTEM_DOWN, down(SYSTEM_DOWN)),
        (SetUp::default(), true, 1 << 30, down(1 << 30)),
    ] {
        let psci = rich_board(set_up, extended);
        for function in [id::CPU_SUSPEND, id::CPU_SUSPEND_64] {
            assert_eq!(call(&psci, 0, function, [state, ENTRY, 0]), outcome, "{set_up:?} {extended} {state:#x}");
        }
        assert_eq!(psci.machine.take_calls(), []);
    }
}

#[test]
fn firmware_that_can_scrub_memory_after_a_reset_is_told_to_and_a_warm_reset_is_none_of_those() {
    let fake = Fake::rich(1);
    fake.answer(id::PSCI_FEATURES, id::MEM_PROTECT.into(), 0);
    for on in [0, 1] {
        fake.answer(id::MEM_PROTECT, on, 0);
    }
    let psci = smc_board(fake, 1);
    assert!(psci.protect_memory());
    assert_eq!(psci.machine.take_calls(), [(id::MEM_PROTECT, [1, 0, 0])]);
    assert_eq!(psci.leave(CpuId::new(0), Leave::System(SystemEnd::Reset)), After::Halt);
    assert_eq!(psci.machine.take_calls(), [(id::SYSTEM_RESET, [0; 3])]);
    let _ = psci.leave(CpuId::new(0), Leave::WarmReset);
    assert_eq!(psci.machine.take_calls(), [(id::MEM_PROTECT, [0; 3]), (id::SYSTEM_RESET2_64, [0; 3])]);
    // It is not the host's.
    for function in [id::MEM_PROTECT, id::MEM_PROTECT + 1, 0xc400_0014] {
        assert_eq!(result(&psci, 0, function, [0; 3]), -1);
        assert_eq!(result(&psci, 0, id::PSCI_FEATURES, [function.into(), 0, 0]), -1);
    }
    assert_eq!(psci.machine.take_calls(), []);
    assert!(!smc_board(Fake::rich(1), 1).protect_memory());
    assert!(!board(Fake::new(1), Below::SpinTable, 1).protect_memory());
}

#[test]
fn cpus_that_run_the_host_are_counted() {
    let psci = smc_board(Fake::new(3), 3);
    assert_eq!(psci.running(), 1);
    assert_eq!(result(&psci, 0, id::CPU_ON_64, [1, ENTRY, 0]), 0);
    assert_eq!(psci.running(), 1);
    psci.wait_for_start(CpuId::new(1));
    assert_eq!((psci.running(), psci.power(CpuId::new(1))), (2, Some(CpuPower::On)));
}
