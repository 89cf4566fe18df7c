//! Interrupts where the architecture leaves it open, or is vague, and guests and VMMs know what KVM does.
#![allow(missing_docs)]

mod common;

use common::Driver;
use corevisor_interface::mailbox::ExitReason;
use kserv_linux_model::*;

const DIST: u64 = 0x800_0000;
const REDIST: u64 = 0x80a_0000;
const SGI_FRAME: u64 = 0x1_0000;
const EINVAL: i32 = -22;

/// Interrupts in the list registers of an entry, pending or active.
fn enter(driver: &mut Driver, vcpu: u32) -> Vec<u64> {
    assert_eq!(driver.enter(vcpu), 0);
    let mailbox = &driver.mailboxes[vcpu as usize];
    mailbox.lr[..mailbox.lr_count as usize].iter().map(|lr| lr & 0x3ff).collect()
}

/// The VM has taken every listed interrupt, and ends them all.
fn end_all(driver: &mut Driver, vcpu: u32) {
    driver.mailboxes[vcpu as usize].lr = [0; 16];
    driver.exit(vcpu, ExitReason::Irq);
}

#[test]
fn a_line_makes_gicv2_ready_and_gicv3_says_that_it_is_not() {
    for (gic, result) in [(2, 0), (3, -16)] {
        for line in [1 << 24 | 40, 2 << 24 | 20] {
            let mut driver = Driver::bare(gic);
            assert_eq!(kserv_gic_create(driver.vm(), gic as u32), 0);
            assert_eq!((kserv_vcpu_create(driver.vm(), 0), driver.init(0, false)), (0, 0));
            assert_eq!((driver.irq_line(line, 1), driver.irq_line(1 << 24 | 31, 1)), (result, EINVAL));
            assert_eq!(kserv_gic_initialized(driver.vm()), gic == 2);
        }
    }
}

#[test]
fn an_edge_counts_whatever_the_line_was_before_it_was_one() {
    let mut driver = Driver::new(3, 3, 1);
    // SAFETY: `kicks` is the driver's.
    let pulse = |driver: &mut Driver| unsafe { kserv_pulse_spi(driver.vm(), 0, &raw mut driver.kicks) };
    driver.store(0, DIST, 2);
    driver.store(0, DIST + 0x84, u32::MAX);
    // A level, and nobody lowers it; then the VM says that it is an edge.
    assert_eq!(pulse(&mut driver), 0);
    driver.store(0, DIST + 0xc08, 2);
    driver.store(0, DIST + 0x104, 1);
    assert_eq!(enter(&mut driver, 0), [], "what was up is no edge");
    end_all(&mut driver, 0);
    assert_eq!((pulse(&mut driver), enter(&mut driver, 0)), (0, vec![32]));
    end_all(&mut driver, 0);
    for (level, expected) in [(true, vec![32]), (true, vec![32]), (false, vec![]), (true, vec![32])] {
        assert_eq!((driver.set_spi(0, level), enter(&mut driver, 0)), (0, expected), "{level}");
        end_all(&mut driver, 0);
    }
}

#[test]
fn with_gicv2_an_spi_that_names_no_vcpu_goes_to_the_first() {
    let mut driver = Driver::new(2, 2, 2);
    driver.store(0, DIST, 1);
    driver.store(0, DIST + 0x104, 1);
    assert_eq!((driver.load(0, DIST + 0x820), driver.set_spi(0, true)), (0, 0));
    assert_eq!(enter(&mut driver, 0), [32]);
    end_all(&mut driver, 0);
    // vCPUs that there are not are none.
    driver.store(0, DIST + 0x820, 0x80);
    assert_eq!((driver.load(0, DIST + 0x820), enter(&mut driver, 0)), (0, vec![32]));
    let mut driver = Driver::new(3, 3, 2);
    driver.store(0, DIST, 2);
    driver.store(0, DIST + 0x84, u32::MAX);
    driver.store(0, DIST + 0x104, 1);
    driver.store(0, DIST + 0x6000 + 8 * 32, 77);
    assert_eq!((driver.set_spi(0, true), enter(&mut driver, 0)), (0, vec![]), "GICv3's may go to nobody");
}

#[test]
fn sgis_are_enabled_from_the_beginning() {
    let (mut v2, mut v3) = (Driver::new(2, 2, 1), Driver::new(3, 3, 1));
    assert_eq!((v2.load(0, DIST + 0x100), v3.load(0, REDIST + SGI_FRAME + 0x100)), (0xffff, 0xffff));
    v2.store(0, DIST + 0x180, 1);
    v3.store(0, REDIST + SGI_FRAME + 0x180, 1);
    assert_eq!((v2.load(0, DIST + 0x100), v3.load(0, REDIST + SGI_FRAME + 0x100)), (0xffff, 0xfffe));
}

#[test]
fn an_interrupts_active_state_is_asked_for_where_it_is() {
    let mut driver = Driver::new(3, 3, 2);
    assert_eq!(driver.mp_state_set(1, 0), 0);
    driver.store(0, DIST, 2);
    driver.store(0, DIST + 0x84, u32::MAX);
    driver.store(0, DIST + 0x104, 1);
    driver.store(0, DIST + 0x6000 + 8 * 32, 1);
    assert_eq!((driver.set_spi(0, true), enter(&mut driver, 1)), (0, vec![32]));
    driver.kicks = 0;
    // Whether vCPU 1 has taken it stands in its list register.
    assert_eq!((driver.load(0, DIST + 0x304), driver.kicks), (0, 2));
    let lr = &mut driver.mailboxes[1].lr[0];
    *lr = *lr & !(3 << 62) | 2 << 62;
    driver.exit(1, ExitReason::Irq);
    driver.kicks = 0;
    assert_eq!((driver.load(0, DIST + 0x304), driver.kicks), (1, 0));

    // The other way round: the distributor has no vCPU of its own.
    let mut driver = Driver::new(3, 3, 2);
    driver.store(0, DIST, 2);
    driver.store(0, DIST + 0x84, u32::MAX);
    driver.store(0, DIST + 0x104, 1);
    driver.store(0, DIST + 0x6000 + 8 * 32, 0);
    assert_eq!((driver.set_spi(0, true), enter(&mut driver, 0)), (0, vec![32]));
    assert_eq!(driver.mp_state_set(1, 0), 0);
    driver.enter(1);
    driver.kicks = 0;
    assert_eq!((driver.load(1, DIST + 0x304), driver.kicks), (0, 1));
}
