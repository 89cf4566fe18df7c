//! vCPUs over the C interface: accesses, PSCI, waiting, timers, and lines that user space drives.
#![allow(missing_docs)]

mod common;

use common::{Driver, START, syndrome};
use corevisor_interface::guest::psci;
use corevisor_interface::mailbox::{
    ENTRY_INJECT_ABORT, ENTRY_TIMER_UNMASK, ENTRY_VFIQ, ENTRY_VIRQ, ExitReason, Mailbox,
};
use kserv_linux_model::*;

const RUN: u32 = 0;
const BLOCK: u32 = 1;
const MMIO: u32 = 2;
const FAULT: u32 = 3;
const OFF: u32 = 4;
const SYSTEM_EVENT: u32 = 5;
const NEVER: u64 = u64::MAX;

fn read(driver: &mut Driver, sas: u64, sse: bool, sf: bool, data: u64) -> u64 {
    let action = driver.run(0, ExitReason::MmioRead, |mailbox| {
        (mailbox.esr, mailbox.ipa, mailbox.x[7]) = (syndrome(sas, sse, 7, sf, false), 0x900_0018, 0x5555);
    });
    assert_eq!((action.kind, action.addr, action.len, action.write), (MMIO, 0x900_0018, 1 << sas, 0));
    let mut mailbox = driver.mailboxes[0];
    kserv_mmio_done(driver.vm(), 0, &mut mailbox, data);
    // It is over: a second time changes nothing.
    kserv_mmio_done(driver.vm(), 0, &mut mailbox, !data);
    mailbox.x[7]
}

#[test]
fn a_load_from_user_space_gives_what_the_instruction_would_give() {
    let mut driver = Driver::new(2, 0, 1);
    for (sas, sse, sf, data, expected) in [
        (0, false, false, 0x1234_5680, 0x80),
        (0, true, false, 0x80, 0xffff_ff80),
        (0, true, true, 0x80, 0xffff_ffff_ffff_ff80),
        (1, true, false, 0x8000, 0xffff_8000),
        (1, false, true, 0x1_8000, 0x8000),
        (2, true, true, 0x8000_0000, 0xffff_ffff_8000_0000),
        (2, false, false, u64::MAX, 0xffff_ffff),
        (3, false, true, u64::MAX - 1, u64::MAX - 1),
    ] {
        assert_eq!(read(&mut driver, sas, sse, sf, data), expected, "{sas} {sse} {sf}");
    }
}

#[test]
fn a_store_is_told_with_its_width_and_changes_no_register() {
    let mut driver = Driver::new(2, 0, 1);
    let action = driver.run(0, ExitReason::MmioWrite, |mailbox| {
        (mailbox.esr, mailbox.ipa) = (syndrome(1, false, 3, false, true), 0xa00_0000);
        mailbox.x = [0x1234_5678; 32];
    });
    assert_eq!((action.kind, action.addr, action.len, action.write, action.data), (MMIO, 0xa00_0000, 2, 1, 0x5678));
    let mut mailbox = driver.mailboxes[0];
    kserv_mmio_done(driver.vm(), 0, &mut mailbox, 9);
    assert_eq!(mailbox.x, [0x1234_5678; 32]);
    // XZR.
    let action = driver.run(0, ExitReason::MmioWrite, |mailbox| mailbox.esr = syndrome(2, false, 31, false, true));
    assert_eq!(action.data, 0);
}

#[test]
fn an_access_or_fault_can_end_with_an_abort_and_nothing_else_can() {
    let mut driver = Driver::new(2, 0, 1);
    let flags = |driver: &mut Driver| {
        assert_eq!(driver.enter(0), 0);
        driver.mailboxes[0].entry_flags & ENTRY_INJECT_ABORT
    };
    driver.run(0, ExitReason::Wfx, |mailbox| mailbox.esr = 1);
    kserv_abort(driver.vm(), 0);
    assert_eq!(kserv_events_set(driver.vm(), 0, false, false, true), -22);
    assert_eq!(flags(&mut driver), 0);
    driver.exit(0, ExitReason::Irq);
    let action = driver.run(0, ExitReason::MemoryFault, |mailbox| {
        (mailbox.esr, mailbox.ipa) = (0x24 << 26 | 1 << 6, 0x4000_1000);
    });
    assert_eq!((action.kind, action.addr, action.write, action.fetch), (FAULT, 0x4000_1000, 1, 0));
    kserv_abort(driver.vm(), 0);
    assert_eq!(flags(&mut driver), ENTRY_INJECT_ABORT);
    let action = driver.run(0, ExitReason::MemoryFault, |mailbox| mailbox.esr = 0x20 << 26 | 1 << 6);
    assert_eq!((action.kind, action.write, action.fetch), (FAULT, 1, 1), "the walk would write");
    let action = driver.run(0, ExitReason::MemoryFault, |mailbox| mailbox.esr = 0x20 << 26);
    assert_eq!((action.kind, action.write, action.fetch), (FAULT, 0, 1));
    driver.run(0, ExitReason::MmioRead, |mailbox| mailbox.esr = syndrome(2, false, 1, false, false));
    assert_eq!(kserv_events_set(driver.vm(), 0, true, false, false), -22, "no SError");
    assert_eq!(kserv_events_set(driver.vm(), 0, false, true, false), 0, "nor a syndrome of one");
    assert_eq!(kserv_events_set(driver.vm(), 0, false, false, true), 0);
    let mut mailbox = driver.mailboxes[0];
    mailbox.x[1] = 77;
    kserv_mmio_done(driver.vm(), 0, &mut mailbox, 5);
    assert_eq!(mailbox.x[1], 77, "the load did not happen");
    assert_eq!(flags(&mut driver), ENTRY_INJECT_ABORT);
    assert_eq!(flags(&mut driver), 0, "once");
}

#[test]
fn a_vcpu_is_off_until_another_switches_it_on() {
    let mut driver = Driver::new(2, 0, 2);
    assert_eq!((kserv_mp_state_get(driver.vm(), 0), kserv_mp_state_get(driver.vm(), 1)), (0, 5));
    assert_eq!((driver.enter(1), kserv_runnable(driver.vm(), 1, START)), (1, false));
    let call = |driver: &mut Driver, vcpu: u32, x: [u64; 3]| {
        driver.kicks = 0;
        let action = driver.run(vcpu, ExitReason::Psci, |mailbox| mailbox.x[..3].copy_from_slice(&x));
        (action.kind, driver.mailboxes[vcpu as usize].x[0], driver.kicks)
    };
    assert_eq!(call(&mut driver, 0, [psci::CPU_ON, 1, 0x4008_0000]), (RUN, 0, 0b10));
    assert_eq!((kserv_mp_state_get(driver.vm(), 1), kserv_runnable(driver.vm(), 1, START)), (0, true));
    assert_eq!(call(&mut driver, 0, [psci::CPU_ON, 2, 0]).1, -2i64 as u64);
    assert_eq!(call(&mut driver, 1, [psci::CPU_OFF, 0, 0]).0, OFF);
    assert_eq!((driver.enter(1), kserv_mp_state_get(driver.vm(), 1)), (1, 5));
    // Once more; then it is started while its exit for CPU_OFF is still to come, since the core knew of that first.
    assert_eq!(call(&mut driver, 0, [psci::CPU_ON, 1, 0]), (RUN, 0, 0b10));
    assert_eq!(call(&mut driver, 0, [psci::CPU_ON, 1, 0]), (RUN, 0, 0));
    assert_eq!(call(&mut driver, 1, [psci::CPU_OFF, 0, 0]).0, RUN);
    assert_eq!((driver.enter(1), kserv_mp_state_get(driver.vm(), 1)), (0, 0));
    assert_eq!(call(&mut driver, 1, [psci::CPU_OFF, 0, 0]).0, OFF);
    assert_eq!(call(&mut driver, 0, [0x8400_0050, 0, 0]).1, -1i64 as u64, "TRNG");
    assert_eq!(call(&mut driver, 0, [psci::CPU_SUSPEND, 0, 0]).0, BLOCK);
}

#[test]
fn power_off_and_reset_are_events_and_switch_every_vcpu_off() {
    for (function, event, ndata, data) in [
        (psci::SYSTEM_OFF, 1, 0, 0),
        (psci::SYSTEM_RESET, 2, 0, 0),
        (psci::SYSTEM_RESET2, 2, 1, 1),
        (0x8400_0012, 2, 1, 1),
    ] {
        let mut driver = Driver::new(2, 0, 3);
        assert_eq!(driver.mp_state_set(1, 0), 0);
        driver.kicks = 0;
        let action = driver.run(0, ExitReason::SystemOff, |mailbox| mailbox.x[0] = function & 0xffff_ffff);
        assert_eq!((action.kind, action.event, action.event_ndata, action.data), (SYSTEM_EVENT, event, ndata, data));
        assert_eq!(driver.kicks, 0b110);
        assert!((0..3).all(|vcpu| kserv_mp_state_get(driver.vm(), vcpu) == 5));
        // User space resets them.
        assert_eq!(driver.init(0, false), 0);
        assert_eq!(driver.enter(0), 0);
    }
}

#[test]
fn mp_state_takes_what_kvm_takes() {
    let mut driver = Driver::new(2, 0, 1);
    assert_eq!((driver.mp_state_set(0, 1), driver.mp_state_set(1, 0), driver.mp_state_set(99, 0)), (-22, -22, -22));
    assert_eq!((driver.mp_state_set(0, 5), driver.enter(0)), (0, 1));
    assert_eq!((driver.mp_state_set(0, 0), driver.enter(0)), (0, 0));
    assert_eq!(kserv_mp_state_get(driver.vm(), 3), -22);
    // Before KVM_ARM_VCPU_INIT, which says what it is.
    let mut driver = Driver::bare(2);
    assert_eq!(kserv_vcpu_create(driver.vm(), 0), 0);
    assert_eq!((driver.mp_state_set(0, 0), driver.mp_state_set(0, 5), driver.mp_state_set(0, 1)), (0, 0, -22));
    assert_eq!(
        (kserv_mp_state_get(driver.vm(), 0), driver.init(0, false), kserv_mp_state_get(driver.vm(), 0)),
        (5, 0, 0)
    );
}

fn timer(mailbox: &mut Mailbox, ctl: u64, cval: u64) {
    (mailbox.cntv_ctl, mailbox.cntv_cval, mailbox.cntvoff) = (ctl, cval, START);
}

#[test]
fn the_timers_level_is_user_spaces_to_deliver_and_masks_the_timer_until_it_is_low_again() {
    let mut driver = Driver::new(2, 0, 1);
    let level = |driver: &mut Driver| kserv_irq_level(driver.vm(), 0, driver.now);
    driver.run(0, ExitReason::Irq, |mailbox| timer(mailbox, 1, 100));
    assert_eq!(level(&mut driver), 0);
    assert_eq!(driver.enter(0), 0);
    assert_eq!(driver.mailboxes[0].entry_flags, ENTRY_TIMER_UNMASK);
    driver.now += 100;
    assert_eq!(driver.exit(0, ExitReason::Timer).kind, RUN);
    assert_eq!(level(&mut driver), 1);
    // User space's interrupt controller raises the vCPU's line.
    assert_eq!(driver.irq_line(0, 1), 0);
    assert_eq!(driver.kicks, 1);
    assert_eq!(driver.enter(0), 0);
    assert_eq!(driver.mailboxes[0].entry_flags, ENTRY_VIRQ, "the timer stays masked");
    assert_ne!(kserv_run_until(driver.vm(), 0, driver.now), NEVER, "it may be set anew without an exit");
    // The VM's handler set it anew.
    timer(&mut driver.mailboxes[0], 1, 300);
    driver.exit(0, ExitReason::Irq);
    assert_eq!(level(&mut driver), 0);
    assert_eq!(driver.irq_line(0, 0), 0);
    driver.enter(0);
    assert_eq!(driver.mailboxes[0].entry_flags, ENTRY_TIMER_UNMASK);
    assert_eq!(kserv_run_until(driver.vm(), 0, driver.now), NEVER);
}

#[test]
fn a_vcpu_that_waits_goes_on_for_a_line_or_a_timer() {
    let mut driver = Driver::new(2, 0, 1);
    let wait = |driver: &mut Driver, ctl| driver.run(0, ExitReason::Wfx, |mailbox| timer(mailbox, ctl, 100));
    let action = wait(&mut driver, 1);
    assert_eq!((action.kind, action.until), (BLOCK, START + 100));
    assert_eq!(kserv_block_until(driver.vm(), 0), START + 100);
    assert!(!kserv_runnable(driver.vm(), 0, START + 99) && kserv_runnable(driver.vm(), 0, START + 100));
    let action = wait(&mut driver, 0);
    assert_eq!((action.kind, action.until), (BLOCK, NEVER));
    assert!(!kserv_runnable(driver.vm(), 0, u64::MAX));
    // FIQ of vCPU 0.
    assert_eq!(driver.irq_line(1, 1), 0);
    assert!(kserv_runnable(driver.vm(), 0, START));
    assert_eq!(wait(&mut driver, 0).kind, RUN, "it is there already");
    assert_eq!(driver.enter(0), 0);
    assert_eq!(driver.mailboxes[0].entry_flags & (ENTRY_VIRQ | ENTRY_VFIQ), ENTRY_VFIQ);
    driver.exit(0, ExitReason::Irq);
    let action = driver.run(0, ExitReason::Wfx, |mailbox| mailbox.esr = 1);
    assert_eq!(action.kind, RUN, "WFE");
}

#[test]
fn a_wait_that_a_signal_ends_is_over() {
    let mut driver = Driver::new(2, 0, 2);
    assert_eq!(driver.run(0, ExitReason::Wfx, |_| ()).kind, BLOCK);
    assert!(!kserv_runnable(driver.vm(), 0, START));
    kserv_end_wait(driver.vm(), 0);
    assert_eq!(
        (kserv_runnable(driver.vm(), 0, START), kserv_block_until(driver.vm(), 0), driver.enter(0)),
        (true, NEVER, 0)
    );
    kserv_end_wait(driver.vm(), 0);
    assert!(!kserv_runnable(driver.vm(), 0, START), "it runs");
    // One that is off does not wait.
    for vcpu in [1, 99] {
        kserv_end_wait(driver.vm(), vcpu);
        assert!(!kserv_runnable(driver.vm(), vcpu, START));
    }
}

#[test]
fn a_vcpu_that_waits_is_looked_at_when_its_timer_fires_by_the_clock_that_user_space_set_meanwhile() {
    const TIMER_CNT: u64 = 0x6030_0000_0013_df1a;
    let mut driver = Driver::new(2, 0, 1);
    driver.run(0, ExitReason::Wfx, |mailbox| timer(mailbox, 1, 100));
    assert_eq!(kserv_block_until(driver.vm(), 0), START + 100);
    // It was stopped for 500 ticks, which it has not lived.
    driver.now = START + 550;
    assert_eq!(driver.set(0, TIMER_CNT, [50, 0]), 0);
    assert_eq!(kserv_block_until(driver.vm(), 0), START + 600);
    assert!(!kserv_runnable(driver.vm(), 0, START + 599) && kserv_runnable(driver.vm(), 0, START + 600));
}

/// ISS of MSR, MRS for CNTP_CTL_EL0 (op2 1), CNTP_CVAL_EL0 (2), CNTP_TVAL_EL0 (0), x3.
fn cntp(op2: u64, read: bool) -> u64 {
    0x18 << 26 | 3 << 20 | op2 << 17 | 3 << 14 | 14 << 10 | 3 << 5 | 2 << 1 | u64::from(read)
}

#[test]
fn the_physical_timer_is_emulated_and_has_a_level_of_its_own() {
    let mut driver = Driver::new(2, 0, 1);
    let write = |driver: &mut Driver, op2, value| {
        driver.run(0, ExitReason::Sysreg, |mailbox| (mailbox.esr, mailbox.x[3]) = (cntp(op2, false), value));
    };
    write(&mut driver, 0, 50);
    write(&mut driver, 1, 1);
    assert_eq!(kserv_run_until(driver.vm(), 0, driver.now), START + 50);
    driver.run(0, ExitReason::Sysreg, |mailbox| mailbox.esr = cntp(2, true));
    assert_eq!(driver.mailboxes[0].x[3], START + 50);
    assert_eq!(kserv_irq_level(driver.vm(), 0, START + 49), 0);
    assert_eq!(kserv_irq_level(driver.vm(), 0, START + 50), 2);
    driver.now += 50;
    driver.run(0, ExitReason::Sysreg, |mailbox| mailbox.esr = cntp(1, true));
    assert_eq!(driver.mailboxes[0].x[3], 5);
}

#[test]
fn lines_of_vcpus_and_of_the_interrupt_controller_exclude_each_other() {
    let mut driver = Driver::new(2, 0, 2);
    assert_eq!((driver.irq_line(1 << 16, 1), driver.irq_line(2, 1), driver.irq_line(2 << 16, 1)), (0, -22, -22));
    assert_eq!((driver.irq_line(1 << 24 | 40, 1), driver.irq_line(2 << 24 | 20, 1)), (-6, -6));
    assert_eq!(driver.irq_line(3 << 24, 1), -22);
    assert_eq!(driver.set_spi(1, true), -11);
    let mut driver = Driver::new(2, 2, 2);
    assert_eq!(driver.irq_line(0, 1), -6);
    assert_eq!((driver.irq_line(1 << 24 | 40, 1), driver.irq_line(2 << 24 | 1 << 16 | 20, 1)), (0, 0));
    assert_eq!((driver.irq_line(1 << 24 | 31, 1), driver.irq_line(1 << 24 | 288, 1)), (-22, -22));
    assert_eq!((driver.irq_line(2 << 24 | 15, 1), driver.irq_line(2 << 24 | 32, 1)), (-22, -22));
    assert_eq!((driver.set_spi(255, true), driver.set_spi(256, true), driver.set_spi(u32::MAX, true)), (0, -22, -22));
    assert_eq!(kserv_irq_level(driver.vm(), 0, u64::MAX), 0, "the timers' lines are the kernel's");
}

#[test]
fn an_entry_that_did_not_happen_leaves_the_vcpu_ready() {
    let mut driver = Driver::new(2, 0, 1);
    assert_eq!(driver.enter(0), 0);
    assert!(!kserv_runnable(driver.vm(), 0, START), "it runs");
    not_entered(&mut driver, 0);
    assert!(kserv_runnable(driver.vm(), 0, START));
    not_entered(&mut driver, 99);
}

#[test]
fn an_abort_is_not_lost_with_an_entry_that_did_not_happen() {
    let mut driver = Driver::new(2, 0, 1);
    driver.run(0, ExitReason::MmioRead, |mailbox| (mailbox.esr, mailbox.ipa) = (0x24 << 26, 0x3fff_0000));
    assert_eq!(driver.enter(0), 0);
    assert_eq!(driver.mailboxes[0].entry_flags & ENTRY_INJECT_ABORT, ENTRY_INJECT_ABORT, "nobody can serve the access");
    not_entered(&mut driver, 0);
    for (due, when) in [(ENTRY_INJECT_ABORT, "the vCPU did not run"), (0, "it has run")] {
        assert_eq!(driver.enter(0), 0);
        assert_eq!(driver.mailboxes[0].entry_flags & ENTRY_INJECT_ABORT, due, "{when}");
        driver.exit(0, ExitReason::Irq);
    }
}

/// The core refuses an entry.
fn not_entered(driver: &mut Driver, vcpu: u32) {
    let mailbox = driver.mailboxes[0];
    kserv_not_entered(driver.vm(), vcpu, &mailbox);
}

#[test]
fn exits_are_counted_by_reason_and_an_unknown_reason_ends_the_vm() {
    let mut driver = Driver::new(2, 0, 1);
    for _ in 0..3 {
        driver.run(0, ExitReason::Irq, |_| ());
    }
    assert_eq!(
        (kserv_exits(driver.vm(), 0, 0), kserv_exits(driver.vm(), 0, 11), kserv_exits(driver.vm(), 16, 0)),
        (3, 0, 0)
    );
    assert_eq!((driver.enter(0), driver.exit_raw(0, 99).kind), (0, 7));
    assert_eq!((driver.enter(0), driver.exit(0, ExitReason::Stopped).kind), (0, 6));
}

#[test]
fn a_wait_that_a_disabled_timer_does_not_end_is_not_looked_at_again_for_it() {
    // The interrupt controller is in the kernel, and nothing is enabled there.
    let mut driver = Driver::new(2, 2, 1);
    let deadline = START + 5000;
    let action = driver.run(0, ExitReason::Wfx, |mailbox| {
        (mailbox.esr, mailbox.cntv_ctl, mailbox.cntv_cval, mailbox.cntvoff) = (0, 1, deadline, 0);
    });
    assert_eq!((action.kind, action.until), (BLOCK, deadline));
    driver.now = deadline - 1;
    let now = driver.now;
    assert!(!kserv_runnable(driver.vm(), 0, now));
    assert_eq!(kserv_block_until(driver.vm(), 0), deadline);
    // It fired, and nobody hears of it: the next look is not at once, but when something happens.
    assert!(!kserv_runnable(driver.vm(), 0, deadline));
    assert_eq!(kserv_block_until(driver.vm(), 0), NEVER);
}
