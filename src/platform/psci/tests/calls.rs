//! Every call with every kind of argument, on each kind of board.

use super::*;
use crate::platform::psci::call::{PsciError, id};
use crate::platform::psci::{AddCpuError, After, CpuPower, Leave, ProbeError, Start, SystemEnd};
use fake::{ALREADY_ON, DENIED, NOT_SUPPORTED};

const BOTH_ON: [u32; 2] = [id::CPU_ON, id::CPU_ON_64];

fn start(context: u64) -> Start {
    Start { entry: Ipa::new(ENTRY), context }
}

fn boards() -> [Psci; 3] {
    [smc_board(Fake::new(4), 4), board(Fake::new(4), Below::SpinTable, 4), board(Fake::new(1), Below::Nothing, 1)]
}

#[test]
fn versions_are_those_of_the_core_on_every_board() {
    for psci in boards() {
        assert_eq!(result(&psci, 0, id::PSCI_VERSION, [0; 3]), 0x1_0001);
        assert_eq!(result(&psci, 0, id::SMCCC_VERSION, [0; 3]), 0x1_0002);
        assert_eq!(result(&psci, 0, id::MIGRATE_INFO_TYPE, [0; 3]), 2);
    }
}

#[test]
fn what_is_not_on_the_list_is_not_supported_and_never_reaches_the_firmware() {
    let psci = smc_board(Fake::rich(4), 4);
    let allowed =
        |function: u32| SmcCall::new(function.into(), 0, 0, 0).decode() != crate::platform::psci::call::Call::Unknown;
    let mut refused = 0;
    for base in [
        0u32,
        0x4000_0000,
        0x8000_0000,
        0x8300_0000,
        0x8400_0000,
        0x8600_0000,
        0xb200_0000,
        0xc000_0000,
        0xc200_0000,
        0xc300_0000,
        0xc400_0000,
        0xc500_0000,
        0xc600_0000,
        0xffff_0000,
    ] {
        for function in (base..=base + 0xffff).filter(|&function| !allowed(function)) {
            assert_eq!(result(&psci, 0, function, [0; 3]), -1, "{function:#x}");
            refused += 1;
        }
    }
    assert_eq!(refused, 14 * 0x1_0000 - 27);
    // CPU_FREEZE, CPU_DEFAULT_SUSPEND, NODE_HW_STATE, SET_SUSPEND_MODE, STAT_RESIDENCY, MIGRATE, MEM_PROTECT.
    for function in [0x8400_000b, 0x8400_000c, 0xc400_000d, 0x8400_000f, 0xc400_0010, 0xc400_0005, 0x8400_0013] {
        assert_eq!(result(&psci, 0, function, [0; 3]), -1);
        assert_eq!(result(&psci, 0, id::PSCI_FEATURES, [function.into(), 0, 0]), -1);
    }
    assert_eq!(psci_calls(&psci), []);
}

fn psci_calls(psci: &Psci) -> std::vec::Vec<(u32, [u64; 3])> {
    psci.machine.take_calls()
}

#[test]
fn cpu_on_starts_the_core_in_firmware_and_keeps_the_hosts_entry_for_itself() {
    let psci = smc_board(Fake::new(4), 4);
    assert_eq!(result(&psci, 0, id::CPU_ON_64, [2, ENTRY, u64::MAX]), 0);
    assert_eq!(psci_calls(&psci), [(id::CPU_ON_64, [2, CORE_ENTRY, 2])]);
    assert_eq!(result(&psci, 0, id::AFFINITY_INFO_64, [2, 0, 0]), 2);
    assert_eq!(psci.cpu_entered(CpuId::new(2)), Some(start(u64::MAX)));
    assert_eq!(result(&psci, 0, id::AFFINITY_INFO_64, [2, 0, 0]), 0);
    assert_eq!(psci.cpu_entered(CpuId::new(2)), None);
}

#[test]
fn a_spin_table_cpu_is_woken_by_an_event() {
    let psci = board(Fake::new(4), Below::SpinTable, 4);
    assert_eq!(result(&psci, 0, id::CPU_ON_64, [3, ENTRY, 5]), 0);
    assert_eq!(psci.machine.0.lock().unwrap().events, 1);
    assert_eq!(psci.wait_for_start(CpuId::new(3)), start(5));
    assert_eq!(psci_calls(&psci), []);
}

#[test]
fn a_cpu_that_has_not_come_out_of_its_spin_table_is_no_cpu_of_the_hosts() {
    let psci = Psci::new(Fake::new(3), Below::SpinTable, SetUp::default(), 0);
    assert_eq!((psci.await_cpu(1), psci.await_cpu(2)), (Ok(CpuId::new(1)), Ok(CpuId::new(2))));
    let ask = |cpu| {
        let info = result(&psci, 0, id::AFFINITY_INFO_64, [cpu, 0, 0]);
        (info, result(&psci, 0, id::CPU_ON_64, [cpu, ENTRY, 5]))
    };
    assert_eq!((ask(1), ask(2)), ((-2, -2), (-2, -2)));
    // Number 2 comes, and waits.
    assert_eq!(psci.cpu_entered(CpuId::new(2)), None);
    assert_eq!((ask(1), ask(2)), ((-2, -2), (1, 0)));
    assert_eq!(psci.wait_for_start(CpuId::new(2)), start(5));
    // For the last of those that came there is nobody else.
    let last = Psci::new(Fake::new(2), Below::SpinTable, SetUp::default(), 0);
    last.await_cpu(1).unwrap();
    assert_eq!(last.leave(CpuId::new(0), Leave::CpuOff), After::Return(PsciError::Denied.code()));
}

#[test]
fn a_32_bit_call_has_32_bit_arguments() {
    let psci = smc_board(Fake::new(4), 4);
    let junk = 0xabcd_0000_0000_0000;
    assert_eq!(result(&psci, 0, id::CPU_ON, [junk | 1, junk | ENTRY, junk | 7]), 0);
    assert_eq!(psci.cpu_entered(CpuId::new(1)), Some(start(7)));
    assert_eq!(result(&psci, 0, id::AFFINITY_INFO, [junk | 1, junk, junk]), 0);
    assert_eq!(result(&psci, 0, id::CPU_ON_64, [2, junk | ENTRY, 0]), PsciError::InvalidAddress as i64);
}

#[test]
fn cpu_on_refuses_each_bad_argument_and_changes_nothing() {
    let psci = smc_board(Fake::new(4), 4);
    let cases = [
        ([4, ENTRY, 0], -2),
        ([0x100, ENTRY, 0], -2),
        ([0xff_ffff, ENTRY, 0], -2),
        ([0, ENTRY, 0], -4),
        ([1, 0, 0], -9),
        ([1, ENTRY + 2, 0], -9),
        ([1, ENTRY - 4, 0], -9),
        ([1, 0x9000_0000, 0], -9),
        ([1, CORE_ENTRY, 0], -9),
        ([4, 0, 0], -2),
    ];
    for function in BOTH_ON {
        for (args, error) in cases {
            assert_eq!(result(&psci, 0, function, args), error, "{args:x?}");
        }
    }
    assert_eq!(result(&psci, 0, id::CPU_ON_64, [1 << 32, ENTRY, 0]), -2);
    assert_eq!(result(&psci, 0, id::CPU_ON_64, [1, u64::MAX - 3, 0]), -9);
    assert_eq!(psci_calls(&psci), []);
    assert!((1..4).all(|cpu| psci.power(CpuId::new(cpu)) == Some(CpuPower::Off)));
}

#[test]
fn a_second_cpu_on_is_on_pending_and_then_already_on() {
    let psci = smc_board(Fake::new(4), 4);
    for (expected, enter) in [(0, false), (-5, true), (-4, false)] {
        assert_eq!(result(&psci, 0, id::CPU_ON_64, [1, ENTRY, 0]), expected);
        if enter {
            psci.wait_for_start(CpuId::new(1));
        }
    }
}

#[test]
fn a_start_that_the_firmware_refuses_is_rolled_back_for_every_error() {
    for code in -10i32..0 {
        let psci = smc_board(Fake::new(4), 4);
        psci.machine.answer(id::CPU_ON_64, 1, 0xdead_0000_0000_0000 | u64::from(code as u32));
        let expected = if code == -10 { -6 } else { code.into() };
        assert_eq!(result(&psci, 0, id::CPU_ON_64, [1, ENTRY, 0]), expected);
        assert_eq!(psci.power(CpuId::new(1)), Some(CpuPower::Off));
        assert_eq!(psci.cpu_entered(CpuId::new(1)), None);
    }
}

#[test]
fn a_single_cpu_without_firmware_starts_nothing_and_halts_at_its_end() {
    let psci = board(Fake::new(1), Below::Nothing, 2);
    assert_eq!(result(&psci, 0, id::CPU_ON_64, [1, ENTRY, 0]), -3);
    assert_eq!(psci.power(CpuId::new(1)), Some(CpuPower::Off));
    for (function, how) in [(id::SYSTEM_OFF, SystemEnd::Off), (id::SYSTEM_RESET, SystemEnd::Reset)] {
        let outcome = call(&psci, 0, function, [0; 3]);
        assert_eq!(outcome, PsciOutcome::Leave(Leave::System(how)));
        assert_eq!(psci.leave(CpuId::new(0), Leave::System(how)), After::Halt);
    }
    assert_eq!(psci.machine.0.lock().unwrap().ends, [SystemEnd::Off, SystemEnd::Reset]);
    assert_eq!(psci_calls(&psci), []);
}

#[test]
fn the_end_of_the_run_goes_to_firmware_first() {
    let psci = smc_board(Fake::new(1), 1);
    for how in [SystemEnd::Off, SystemEnd::Reset] {
        assert_eq!(psci.leave(CpuId::new(0), Leave::System(how)), After::Halt);
    }
    assert_eq!(psci_calls(&psci), [(id::SYSTEM_OFF, [0; 3]), (id::SYSTEM_RESET, [0; 3])]);
}

#[test]
fn the_last_cpu_cannot_switch_itself_off() {
    for psci in boards() {
        assert_eq!(call(&psci, 0, id::CPU_OFF, [0; 3]), PsciOutcome::Leave(Leave::CpuOff));
        assert_eq!(psci.leave(CpuId::new(0), Leave::CpuOff), After::Return(PsciError::Denied.code()));
        assert_eq!(psci.power(CpuId::new(0)), Some(CpuPower::On));
    }
}

#[test]
fn a_cpu_that_the_firmware_does_not_let_go_stays_on() {
    let psci = smc_board(Fake::new(4), 4);
    result(&psci, 0, id::CPU_ON_64, [1, ENTRY, 0]);
    psci.wait_for_start(CpuId::new(1));
    psci.machine.answer(id::CPU_OFF, 0, DENIED);
    assert_eq!(psci.leave(CpuId::new(1), Leave::CpuOff), After::Return(-3i64 as u64));
    assert_eq!(psci.power(CpuId::new(1)), Some(CpuPower::On));
}

#[test]
fn a_cpu_on_its_way_to_off_is_on_for_the_host_until_the_firmware_has_it() {
    let psci = smc_board(Fake::new(4), 4);
    psci.table.lock().begin_on(CpuId::new(0), CpuId::new(1), start(0)).unwrap();
    psci.table.lock().enter(CpuId::new(1)).unwrap();
    psci.table.lock().begin_off(CpuId::new(1)).unwrap();
    psci.machine.answer(id::CPU_ON_64, 1, ALREADY_ON);
    for answer in [0, 2] {
        psci.machine.answer(id::AFFINITY_INFO_64, 1, answer);
        assert_eq!(result(&psci, 0, id::AFFINITY_INFO_64, [1, 0, 0]), 0);
    }
    assert_eq!(result(&psci, 0, id::CPU_ON_64, [1, ENTRY, 0]), -4);
    assert_eq!(psci.power(CpuId::new(1)), Some(CpuPower::Off));
    psci.machine.answer(id::AFFINITY_INFO_64, 1, 1);
    assert_eq!(result(&psci, 0, id::AFFINITY_INFO_64, [1, 0, 0]), 1);
}

#[test]
fn affinity_info_knows_levels_and_refuses_what_does_not_exist() {
    let psci = Psci::new(Fake::new(1), Below::SpinTable, SetUp::default(), 0x8000_0000);
    for mpidr in [1, 0x100, 0x101, 0x1_0000_0000] {
        psci.add_cpu(mpidr).unwrap();
    }
    let info = |target, level| result(&psci, 0, id::AFFINITY_INFO_64, [target, level, 0]);
    assert_eq!((info(0, 0), info(1, 0), info(2, 0)), (0, 1, -2));
    assert_eq!((info(0x77, 1), info(0x177, 1), info(0x277, 1)), (0, 1, -2));
    assert_eq!((info(0xffff, 2), info(0x1_0000, 2)), (0, -2));
    assert_eq!((info(0, 3), info(0x1_0000_0000, 3), info(0x2_0000_0000, 3)), (0, 1, -2));
    assert!((4..40).all(|level| info(0, level) == -2));
    assert_eq!(info(0, 1 << 32), 0, "the level has 32 bits");
    assert_eq!(result(&psci, 0, id::CPU_ON_64, [0x101, ENTRY, 0]), 0);
    assert_eq!(info(0x100, 1), 2);
    // In a 32-bit call there is no Aff3.
    assert_eq!(result(&psci, 0, id::AFFINITY_INFO, [0x1_0000_0000, 0, 0]), 0);
}

#[test]
fn the_table_refuses_a_second_cpu_of_the_same_affinity_and_one_too_many() {
    let psci = board(Fake::new(1), Below::SpinTable, 8);
    assert_eq!(psci.add_cpu(0x8100_0003), Err(AddCpuError::Duplicate));
    assert_eq!(psci.add_cpu(8), Err(AddCpuError::TableFull));
    assert_eq!(psci.find_cpu(0xc100_0003), Some(CpuId::new(3)));
    assert_eq!(psci.power(CpuId::new(8)), None);
    assert_eq!(result(&psci, 9, id::CPU_ON_64, [1, ENTRY, 0]), 0, "the caller's number only marks the reservation");
}

#[test]
fn standby_and_power_down_without_firmware_are_a_wait() {
    for psci in boards() {
        for (state, outcome) in [(0, PsciOutcome::Standby), (0x0301_ffff, PsciOutcome::Standby)] {
            for function in [id::CPU_SUSPEND, id::CPU_SUSPEND_64] {
                assert_eq!(call(&psci, 0, function, [state, 0, 0]), outcome);
            }
        }
        for bit in (17..24).chain(26..32) {
            assert_eq!(result(&psci, 0, id::CPU_SUSPEND_64, [1 << bit, ENTRY, 0]), -2, "bit {bit}");
        }
        assert_eq!(result(&psci, 0, id::PSCI_FEATURES, [id::CPU_SUSPEND_64.into(), 0, 0]), 0);
    }
}

#[test]
fn a_power_down_state_goes_to_firmware_with_the_cores_entry() {
    let psci = smc_board(Fake::rich(4), 4);
    assert_eq!(result(&psci, 0, id::CPU_SUSPEND_64, [1 << 16, CORE_ENTRY, 0]), -9);
    let leave = Leave::CpuSuspend { state: 0x1_0002, start: start(9) };
    assert_eq!(call(&psci, 0, id::CPU_SUSPEND_64, [0x1_0002, ENTRY, 9]), PsciOutcome::Leave(leave));
    // The firmware comes back at once: an interrupt was pending.
    psci.machine.answer(id::CPU_SUSPEND_64, 0x1_0002, 0);
    assert_eq!(psci.leave(CpuId::new(0), leave), After::Return(0));
    assert_eq!(psci_calls(&psci), [(id::CPU_SUSPEND_64, [0x1_0002, CORE_ENTRY, 0])]);
    assert_eq!(psci.power(CpuId::new(0)), Some(CpuPower::On));
    psci.machine.answer(id::CPU_SUSPEND_64, 0x1_0002, DENIED);
    assert_eq!(psci.leave(CpuId::new(0), leave), After::Return(-3i64 as u64));
}

#[test]
fn a_suspended_cpu_counts_as_on_and_comes_back_where_the_host_said() {
    let psci = smc_board(Fake::rich(4), 4);
    psci.table.lock().begin_suspend(CpuId::new(0), start(9)).unwrap();
    assert_eq!(result(&psci, 1, id::AFFINITY_INFO_64, [0, 0, 0]), 0);
    assert_eq!(result(&psci, 1, id::CPU_ON_64, [0, ENTRY, 0]), -4);
    assert_eq!(psci.wait_for_start(CpuId::new(0)), start(9));
    assert_eq!(psci.power(CpuId::new(0)), Some(CpuPower::On));
}

#[test]
fn firmware_with_extended_state_ids_is_passed_on_to_the_host() {
    let fake = Fake::rich(1);
    fake.answer(id::PSCI_FEATURES, id::CPU_SUSPEND_64.into(), 0b11);
    let psci = smc_board(fake, 1);
    assert_eq!(result(&psci, 0, id::PSCI_FEATURES, [id::CPU_SUSPEND.into(), 0, 0]), 0b10);
    assert_eq!(call(&psci, 0, id::CPU_SUSPEND_64, [0x0fff_ffff, 0, 0]), PsciOutcome::Standby);
    let state = 0x4fff_ffff;
    let leave = Leave::CpuSuspend { state: state as u32, start: start(0) };
    assert_eq!(call(&psci, 0, id::CPU_SUSPEND_64, [state, ENTRY, 0]), PsciOutcome::Leave(leave));
    for bit in [28, 29, 31] {
        assert_eq!(result(&psci, 0, id::CPU_SUSPEND_64, [1 << bit, ENTRY, 0]), -2);
    }
}

#[test]
fn system_suspend_needs_firmware_an_entry_and_all_other_cpus_off() {
    let poor = smc_board(Fake::new(2), 2);
    assert_eq!(result(&poor, 0, id::SYSTEM_SUSPEND_64, [ENTRY, 0, 0]), -1);
    let psci = smc_board(Fake::rich(2), 2);
    assert_eq!(result(&psci, 0, id::SYSTEM_SUSPEND, [0, 0, 0]), -9);
    let leave = Leave::SystemSuspend { start: start(4) };
    assert_eq!(call(&psci, 0, id::SYSTEM_SUSPEND_64, [ENTRY, 4, 0]), PsciOutcome::Leave(leave));
    psci.machine.answer(id::SYSTEM_SUSPEND_64, CORE_ENTRY, 0);
    assert_eq!(psci.leave(CpuId::new(0), leave), After::Return(0));
    assert_eq!(psci_calls(&psci), [(id::SYSTEM_SUSPEND_64, [CORE_ENTRY, 0, 0])]);
    result(&psci, 0, id::CPU_ON_64, [1, ENTRY, 0]);
    psci_calls(&psci);
    assert_eq!(psci.leave(CpuId::new(0), leave), After::Return(-3i64 as u64));
    assert_eq!(psci_calls(&psci), []);
    assert_eq!(psci.power(CpuId::new(0)), Some(CpuPower::On));
}

#[test]
fn system_reset2_is_the_architectural_warm_reset_only() {
    let poor = smc_board(Fake::new(1), 1);
    assert_eq!(result(&poor, 0, id::SYSTEM_RESET2_64, [0; 3]), -1);
    let psci = smc_board(Fake::rich(1), 1);
    for reset_type in [1, 2, 0x8000_0000, 0x8000_0001, 0xffff_ffff] {
        assert_eq!(result(&psci, 0, id::SYSTEM_RESET2_64, [reset_type, 0, 0]), -2);
    }
    assert_eq!(call(&psci, 0, id::SYSTEM_RESET2, [0, 77, 0]), PsciOutcome::Leave(Leave::WarmReset));
    assert_eq!(psci.leave(CpuId::new(0), Leave::WarmReset), After::Return(-1i64 as u64));
    assert_eq!(psci_calls(&psci), [(id::SYSTEM_RESET2_64, [0; 3])]);
}

#[test]
fn psci_features_tells_the_truth_about_each_call() {
    let [rich, poor] = [smc_board(Fake::rich(1), 1), smc_board(Fake::new(1), 1)];
    let optional = [id::SYSTEM_SUSPEND, id::SYSTEM_SUSPEND_64, id::SYSTEM_RESET2, id::SYSTEM_RESET2_64];
    for function in (0x8400_0000..0x8400_0100).chain(0xc400_0000..0xc400_0100).chain([id::SMCCC_VERSION]) {
        for (psci, is_rich) in [(&rich, true), (&poor, false)] {
            let answer = result(psci, 0, id::PSCI_FEATURES, [function.into(), 0, 0]);
            let trng = function & 0xf0 == 0x50;
            // PSCI_FEATURES itself answers NOT_SUPPORTED for a function that is not there, so it is asked for one that is.
            let first = if function == id::PSCI_FEATURES { id::PSCI_VERSION.into() } else { 0 };
            let implemented = !trng && call(psci, 0, function, [first, 0x77, 0]) != PsciOutcome::Return(u64::MAX);
            assert_eq!(answer, if implemented { 0 } else { -1 }, "{function:#x}");
            assert!(!optional.contains(&function) || implemented == is_rich);
        }
    }
}

#[test]
fn arch_calls_pass_only_if_the_firmware_has_them() {
    let psci = smc_board(Fake::rich(1), 1);
    psci.machine.answer(id::SMCCC_ARCH_FEATURES, id::SMCCC_ARCH_WORKAROUND_2.into(), 0xffff_fffe);
    let features = |function: u32| result(&psci, 0, id::SMCCC_ARCH_FEATURES, [function.into(), 0, 0]);
    for (function, answer) in [
        (id::SMCCC_VERSION, 0),
        (id::SMCCC_ARCH_FEATURES, 0),
        (id::SMCCC_ARCH_WORKAROUND_1, 0),
        (id::SMCCC_ARCH_WORKAROUND_2, -2),
        (id::SMCCC_ARCH_SOC_ID, 0),
        (id::PSCI_VERSION, -1),
        (id::TRNG_RND, -1),
        (0x8000_0003, -1),
    ] {
        assert_eq!(features(function), answer, "{function:#x}");
    }
    psci.machine.answer(id::SMCCC_ARCH_WORKAROUND_1, 5, 0xffff_fff0);
    let all = PsciOutcome::ReturnAll([-16i64 as u64, 1, 2, 3]);
    assert_eq!(call(&psci, 0, id::SMCCC_ARCH_WORKAROUND_1, [1 << 32 | 5, 0, 0]), all);
    // Not implemented when asked at boot.
    assert_eq!(result(&psci, 0, id::SMCCC_ARCH_WORKAROUND_2, [0; 3]), -1);
    assert_eq!(result(&psci, 0, id::SMCCC_ARCH_SOC_ID, [2, 0, 0]), -3);
    let poor = smc_board(Fake::new(1), 1);
    for function in [id::SMCCC_ARCH_WORKAROUND_1, id::SMCCC_ARCH_SOC_ID, id::TRNG_VERSION, id::TRNG_RND_64] {
        assert_eq!(result(&poor, 0, function, [0; 3]), -1);
        assert_eq!(result(&poor, 0, id::SMCCC_ARCH_FEATURES, [function.into(), 0, 0]), -1);
    }
    assert_eq!(psci_calls(&poor), []);
}

#[test]
fn random_numbers_come_from_firmware_in_the_width_of_the_call() {
    let psci = smc_board(Fake::rich(1), 1);
    psci.machine.answer(id::TRNG_RND, 96, 0);
    psci.machine.answer(id::TRNG_RND_64, 192, 0);
    assert_eq!(call(&psci, 0, id::TRNG_RND, [96, 0, 0]), PsciOutcome::ReturnAll([0, 1, 2, 3]));
    let wide = [0, 1 << 40 | 1, 1 << 40 | 2, 1 << 40 | 3];
    assert_eq!(call(&psci, 0, id::TRNG_RND_64, [192, 0, 0]), PsciOutcome::ReturnAll(wide));
    for function in [id::TRNG_VERSION, id::TRNG_FEATURES, id::TRNG_GET_UUID] {
        assert!(matches!(call(&psci, 0, function, [0; 3]), PsciOutcome::ReturnAll(_)));
    }
}

#[test]
fn firmware_without_psci_0_2_is_refused_and_0_2_is_asked_nothing_more() {
    for (answer, expected) in [(NOT_SUPPORTED, 0xffff_ffff), (1, 1), (0, 0)] {
        let fake = Fake::new(1);
        fake.answer(id::PSCI_VERSION, 0, answer);
        assert_eq!(SmcFirmware::probe(&fake, Pa::new(0)), Err(ProbeError::TooOld(expected)));
    }
    let fake = Fake::rich(1);
    fake.answer(id::PSCI_VERSION, 0, 2);
    let firmware = SmcFirmware::probe(&fake, Pa::new(0)).unwrap();
    assert_eq!(firmware.version(), 2);
    assert_eq!(fake.take_calls(), [(id::PSCI_VERSION, [0; 3])]);
    let psci = board(fake, Below::Smc(firmware), 1);
    assert_eq!(result(&psci, 0, id::SYSTEM_SUSPEND_64, [ENTRY, 0, 0]), -1);
}
