//! ONE_REG over the C interface: the list is what there is, and what there is can be saved and restored.
#![allow(missing_docs)]

mod common;

use common::Driver;
use kserv_linux_model::*;
use kserv_model::random::Random;

const U64: u64 = 0x6030_0000_0000_0000;
const PC: u64 = U64 | 0x0010_0000 | 64;
const PSTATE: u64 = U64 | 0x0010_0000 | 66;

const fn sysreg(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    U64 | 0x13_0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}
const TIMER_CTL: u64 = sysreg(3, 3, 14, 3, 1);
const TIMER_CNT: u64 = sysreg(3, 3, 14, 3, 2);
const TIMER_CVAL: u64 = sysreg(3, 3, 14, 0, 2);
const PTIMER_CTL: u64 = sysreg(3, 3, 14, 2, 1);
const PTIMER_CVAL: u64 = sysreg(3, 3, 14, 2, 2);
const MPIDR: u64 = sysreg(3, 0, 0, 0, 5);

const EINVAL: i32 = -22;
const ENOENT: i32 = -2;

#[test]
fn every_listed_register_can_be_read_and_written_back_and_is_listed_once() {
    for gic in [0, 2, 3] {
        let mut driver = Driver::new(gic, 0, 2);
        let mut ids = driver.ids();
        let count = ids.len();
        for id in &ids {
            let reg = driver.find(1, *id).unwrap_or_else(|errno| panic!("{id:#x} is listed: {errno}"));
            let bytes = 1 << (id >> 52 & 0xf);
            assert_eq!(reg.size, bytes, "{id:#x}");
            let value = driver.get(1, *id).unwrap();
            assert_eq!(driver.set(1, *id, value), 0, "{id:#x}");
            assert_eq!(driver.get(1, *id).unwrap(), value, "{id:#x}");
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
        assert_eq!(kserv_reg_id(driver.vm(), count as u32), 0);
        println!("GIC {gic}: {count} registers");
    }
}

#[test]
fn an_id_that_is_not_listed_does_not_exist() {
    let mut driver = Driver::new(3, 0, 1);
    let ids = driver.ids();
    // Every core register of every size, every system register, the firmware's, and anything.
    let groups = [0x10_u64, 0x11, 0x13, 0x14, 0x15, 0x16];
    for group in groups {
        for low in 0..0x1_0000 {
            for size in [2, 3, 4] {
                let id = 0x6000_0000_0000_0000 | size << 52 | group << 16 | low;
                if driver.find(0, id) != Err(ENOENT) {
                    assert!(ids.contains(&id), "{id:#x}");
                }
            }
        }
    }
    let mut rng = Random::new(1);
    for _ in 0..100_000 {
        let id = rng.pick(&ids) ^ 1 << rng.below(64);
        assert_eq!(driver.find(0, id).is_ok(), ids.contains(&id), "{id:#x}");
    }
    assert_eq!(driver.find(1, PC), Err(ENOENT), "there is no such vCPU");
    assert_eq!(driver.find(16, PC), Err(ENOENT));
}

#[test]
fn no_core_register_stands_behind_two_ids_and_all_of_them_stand_behind_one() {
    let mut driver = Driver::new(3, 0, 1);
    let mut seen = vec![];
    for id in driver.ids() {
        let reg = driver.find(0, id).unwrap();
        seen.extend((0..reg.words as i32).map(|n| reg.core + n));
    }
    seen.sort_unstable();
    let mut once = seen.clone();
    once.dedup();
    assert_eq!(once, seen);
    let exist: Vec<i32> = (0..300).filter(|n| kserv_core_register_exists(*n as u32)).collect();
    let missing: Vec<i32> = exist.iter().copied().filter(|n| !seen.contains(n)).collect();
    // SP_EL0 and SP_EL1 are 31 and 34, MPIDR is fixed, DISR is nobody's, and 200 and on are the interrupt controller's.
    assert_eq!(missing, [&[40, 41, 44, 67][..], &(200..=208).collect::<Vec<_>>()].concat());
    assert!(seen.iter().all(|n| exist.contains(n)));
}

#[test]
fn the_cores_registers_are_named_in_its_order() {
    let names: Vec<String> =
        corevisor::abstract_machine::shadow::BankReg::ALL.iter().map(|reg| format!("{reg:?}")).collect();
    assert_eq!(names, kserv_model::kvm::registers::EL1.map(|(name, _)| name));
}

#[test]
fn registers_that_user_space_writes_are_what_the_core_gets() {
    let mut driver = Driver::new(2, 0, 1);
    assert_eq!(driver.set(0, PC, [0x4008_0000, 0]), 0);
    assert_eq!(driver.cores[0][32], 0x4008_0000);
    // x30, SP_EL0, SP_EL1, ELR_EL1, SPSR_EL1, q31, FPCR, TTBR1_EL1.
    for (id, core, value) in [
        (U64 | 0x10_0000 | 60, 30, [1, 0]),
        (U64 | 0x10_0000 | 62, 31, [2, 0]),
        (U64 | 0x10_0000 | 68, 34, [3, 0]),
        (U64 | 0x10_0000 | 70, 42, [4, 0]),
        (U64 | 0x10_0000 | 72, 43, [5, 0]),
        (0x6040_0000_0010_0000 | (84 + 31 * 4), 190, [6, 7]),
        (0x6020_0000_0010_0000 | 213, 193, [0x300_0000, 0]),
        (sysreg(3, 0, 2, 0, 1), 50, [8, 0]),
    ] {
        assert_eq!(driver.set(0, id, value), 0, "{id:#x}");
        assert_eq!(driver.cores[0][core], value[0], "{id:#x}");
        assert_eq!(driver.get(0, id), Ok(value), "{id:#x}");
    }
    assert_eq!(driver.cores[0][191], 7);
}

#[test]
fn what_aarch32_is_like_reads_as_zero_and_ignores_writes() {
    let mut driver = Driver::new(2, 0, 1);
    let id = |crm: u64, op2: u64| 0x6030_0000_0013_c000 | crm << 3 | op2;
    // ID_PFR0, ID_MMFR3, ID_ISAR6, MVFR2, ID_PFR2, ID_MMFR5.
    for (crm, op2) in [(1, 0), (1, 7), (2, 7), (3, 2), (3, 4), (3, 6)] {
        assert_eq!(driver.set(0, id(crm, op2), [0x1bad_c0de, 0]), 0, "{crm} {op2}");
        assert_eq!(driver.get(0, id(crm, op2)), Ok([0, 0]));
    }
    // ID_AFR0, nobody's, ID_DFR1.
    for (crm, op2) in [(1, 3), (3, 3), (3, 5)] {
        assert_eq!(driver.set(0, id(crm, op2), [0x1bad_c0de, 0]), EINVAL, "{crm} {op2}");
        assert_eq!((driver.get(0, id(crm, op2)), driver.set(0, id(crm, op2), [0, 0])), (Ok([0, 0]), 0));
    }
}

#[test]
fn a_processor_state_that_the_core_would_refuse_is_refused_here() {
    let mut driver = Driver::new(2, 0, 1);
    assert_eq!(driver.get(0, PSTATE), Ok([0x3c5, 0]));
    for good in [0x3c5, 0, 4, 0x6000_03c5, 0x6140_2005] {
        assert_eq!(driver.set(0, PSTATE, [good, 0]), 0, "{good:#x}");
    }
    for bad in [0x3c9, 8, 0xd, 0x10, 0x1f, 1, 1 << 20 | 5, 1 << 32 | 5, u64::MAX] {
        assert_eq!(driver.set(0, PSTATE, [bad, 0]), EINVAL, "{bad:#x}");
    }
}

#[test]
fn id_registers_are_what_the_vm_reads_and_take_nothing_else() {
    let mut driver = Driver::new(3, 0, 2);
    let (pfr0, isar0) = (sysreg(3, 0, 0, 4, 0), sysreg(3, 0, 0, 6, 0));
    // No EL3, EL2, SVE, RAS, AMU; the GIC's registers are there.
    assert_eq!(driver.get(0, pfr0), Ok([0x1101_0000_0111_0011, 0]));
    let value = driver.get(0, isar0).unwrap();
    assert_eq!(driver.set(0, isar0, value), 0);
    assert_eq!(driver.set(0, isar0, [value[0] ^ 1 << 4, 0]), EINVAL);
    assert_eq!(driver.get(0, sysreg(3, 0, 0, 1, 0)), Ok([0, 0]), "ID_PFR0_EL1: no AArch32");
    assert_eq!(driver.get(0, MPIDR), Ok([0x8000_0000, 0]));
    assert_eq!(driver.get(1, MPIDR), Ok([0x8000_0001, 0]));
    assert_eq!(driver.set(1, MPIDR, [0x8000_0002, 0]), EINVAL);
    assert_eq!(driver.get(0, U64 | 0x14_0000), Ok([0x1_0001, 0]), "PSCI 1.1");
    assert_eq!(driver.set(0, U64 | 0x14_0000, [2, 0]), EINVAL);
}

#[test]
fn keys_are_there_only_where_the_vm_has_pointer_authentication() {
    let key = sysreg(3, 0, 2, 1, 0);
    assert!(Driver::new(3, 0, 1).find(0, key).is_ok());
    assert_eq!(Driver::new(2, 0, 1).find(0, key), Err(ENOENT), "Cortex-A72");
}

#[test]
fn the_virtual_counter_is_the_whole_vms_and_goes_on_from_what_was_written() {
    let mut driver = Driver::new(2, 0, 2);
    driver.now += 500;
    assert_eq!(driver.get(1, TIMER_CNT), Ok([500, 0]));
    assert_eq!(driver.set(1, TIMER_CNT, [20, 0]), 0);
    assert_eq!(driver.kicks, 0b11, "those that wait look at their timers");
    driver.now += 7;
    assert_eq!(driver.get(0, TIMER_CNT), Ok([27, 0]));
    assert_eq!(kserv_cntvoff(driver.vm()), driver.now - 27);
    // A counter ahead of the machine's.
    assert_eq!(driver.set(0, TIMER_CNT, [u64::MAX / 2, 0]), 0);
    assert_eq!(driver.get(0, TIMER_CNT), Ok([u64::MAX / 2, 0]));
}

#[test]
fn timers_that_are_restored_fire_as_if_they_had_never_been_away() {
    let mut driver = Driver::new(2, 0, 1);
    for (id, value) in [(TIMER_CVAL, 1000), (TIMER_CTL, 1), (PTIMER_CVAL, driver.now + 2000), (PTIMER_CTL, 1)] {
        assert_eq!(driver.set(0, id, [value, 0]), 0);
        assert_eq!(driver.get(0, id), Ok([value, 0]));
    }
    assert_eq!((driver.cores[0][78], driver.cores[0][79]), (1, 1000));
    let level = |driver: &mut Driver, at| kserv_irq_level(driver.vm(), 0, at);
    let start = driver.now;
    assert_eq!([999, 1000, 1999, 2000].map(|at| level(&mut driver, start + at)), [0, 1, 1, 3]);
    driver.now += 1000;
    assert_eq!(driver.get(0, TIMER_CTL), Ok([5, 0]), "the condition is met");
    assert_eq!(driver.set(0, TIMER_CTL, [3, 0]), 0);
    assert_eq!(level(&mut driver, start + 3000), 2, "masked");
}

#[test]
fn a_vcpu_that_is_initialised_again_is_as_new() {
    let mut driver = Driver::new(2, 0, 1);
    assert_eq!(driver.set(0, PTIMER_CTL, [1, 0]), 0);
    assert_eq!(driver.init(0, false), 0);
    assert_eq!(driver.get(0, PTIMER_CTL), Ok([0, 0]));
    assert_eq!((driver.cores[0][33], driver.cores[0][44], driver.cores[0][46]), (0x3c5, 0x8000_0000, 0x30d0_0800));
}

#[test]
fn features_that_are_not_there_are_refused_as_kvm_does() {
    let mut driver = Driver::bare(2);
    assert_eq!(kserv_vcpu_create(driver.vm(), 0), 0);
    assert_eq!(kserv_vcpu_create(driver.vm(), 0), -17);
    assert_eq!(kserv_vcpu_create(driver.vm(), 16), EINVAL);
    let mut init = |target, first, second| kserv_vcpu_init(driver.vm(), 0, target, &[first, second, 0, 0, 0, 0, 0]);
    assert_eq!(init(4, 4, 0), EINVAL, "target");
    for bit in [1, 3, 4, 5, 6, 7] {
        assert_eq!(init(5, 4 | 1 << bit, 0), EINVAL, "feature {bit}");
    }
    assert_eq!((init(5, 1 << 8, 0), init(5, 4, 1)), (ENOENT, ENOENT));
    assert_eq!((init(5, 4, 0), init(5, 5, 0)), (0, 0), "only power may differ");
    assert_eq!(init(5, 1, 0), EINVAL);
    assert_eq!(kserv_vcpu_init(driver.vm(), 1, 5, &[4, 0, 0, 0, 0, 0, 0]), EINVAL, "there is no such vCPU");
}
