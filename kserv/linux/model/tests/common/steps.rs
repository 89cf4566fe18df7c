//! One step of anything over the C interface.
#![allow(dead_code, missing_docs)]

use corevisor_interface::mailbox::{ENTRY_INJECT_ABORT, ENTRY_TIMER_UNMASK, ENTRY_VFIQ, ENTRY_VIRQ};
use kserv_linux_model::its::*;
use kserv_linux_model::*;

use super::Driver;
use corevisor_evidence::Rng;

/// A number that is likely to mean something.
fn any(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => rng.next(),
        1 => rng.next() as u32 as u64,
        2 => rng.below(16),
        3 => 1 << rng.below(64),
        4 => u64::MAX - rng.below(16),
        5 => rng.pick(&[0x800_0000, 0x801_0000, 0x80a_0000, 0x900_0000]) + rng.below(0x300) * 4,
        6 => 0,
        _ => rng.below(1 << 16),
    }
}

fn some_mailbox(driver: &mut Driver, rng: &mut Rng, vcpu: u32) {
    let Some(mailbox) = driver.mailboxes.get_mut(vcpu as usize) else { return };
    for x in &mut mailbox.x[..6] {
        *x = any(rng);
    }
    // A data abort with syndrome, more often than not.
    mailbox.esr = if rng.below(3) == 0 { any(rng) } else { 0x24 << 26 | 1 << 24 | rng.next() & 0xff_ffff };
    mailbox.ipa = any(rng);
    (mailbox.cntv_ctl, mailbox.cntv_cval, mailbox.cntvoff) = (rng.below(8), any(rng), any(rng));
    (mailbox.vgic_hcr, mailbox.vgic_vmcr, mailbox.vgic_misr) = (any(rng), any(rng), any(rng));
    mailbox.lr_count = any(rng);
    for lr in &mut mailbox.lr {
        if rng.below(3) == 0 {
            *lr = any(rng);
        }
    }
}

/// One call, or several that belong together.
pub fn step(driver: &mut Driver, rng: &mut Rng, ids: &[u64]) {
    let vcpu = rng.pick(&[0, 1, 2, 3, 15, 16, u32::MAX]);
    let kick = &raw mut driver.kicks;
    let bits = rng.below(40);
    driver.now = driver.now.wrapping_add(rng.below(1 << bits));
    match rng.below(22) {
        0..=4 => {
            if (vcpu as usize) < driver.mailboxes.len() && driver.enter(vcpu) == 0 {
                let mailbox = &driver.mailboxes[vcpu as usize];
                let known = ENTRY_VIRQ | ENTRY_VFIQ | ENTRY_INJECT_ABORT | ENTRY_TIMER_UNMASK;
                assert_eq!(mailbox.entry_flags & !known, 0);
                assert!(mailbox.lr_count <= 4);
                // The core refuses a list register that links a physical interrupt.
                let hardware = if kserv_gic_version(driver.vm()) == 2 { 1 << 31 } else { 1 << 61 };
                let mailbox = &driver.mailboxes[vcpu as usize];
                assert!(mailbox.lr[..mailbox.lr_count as usize].iter().all(|lr| lr & hardware == 0));
            }
        }
        5..=9 => {
            some_mailbox(driver, rng, vcpu);
            if (vcpu as usize) < driver.mailboxes.len() {
                let reason = if rng.below(20) == 0 { any(rng) } else { rng.below(11) };
                let action = driver.exit_raw(vcpu, reason);
                assert!(action.kind <= 8);
                if action.kind == 2 {
                    assert!([1, 2, 4, 8].contains(&action.len) && action.write <= 1);
                }
                if rng.below(2) == 0 {
                    let mut mailbox = driver.mailboxes[vcpu as usize];
                    kserv_mmio_done(driver.vm(), vcpu, &mut mailbox, any(rng));
                    driver.mailboxes[vcpu as usize] = mailbox;
                }
            }
        }
        10 => kserv_abort(driver.vm(), vcpu),
        11 => {
            kserv_runnable(driver.vm(), vcpu, driver.now);
            kserv_block_until(driver.vm(), vcpu);
            kserv_run_until(driver.vm(), vcpu, driver.now);
            assert!(kserv_irq_level(driver.vm(), vcpu, driver.now) < 4);
        }
        12 => {
            let bits = any(rng) as u32;
            driver.irq_line(bits, bits & 1);
            driver.irq_line((bits & 3) << 24 | (vcpu & 0xff) << 16 | bits >> 4 & 63, bits & 1);
        }
        13 => {
            let spi = any(rng) as u32;
            driver.set_spi(spi, spi & 1 != 0);
            // SAFETY: `kick` is the driver's.
            unsafe { kserv_pulse_spi(driver.vm(), spi, kick) };
            kserv_watch_spi(driver.vm(), spi, spi & 2 != 0);
            while kserv_next_ended_spi(driver.vm()) >= 0 {}
        }
        14 => {
            let id = if rng.below(4) == 0 { any(rng) } else { rng.pick(ids) };
            let value = [any(rng), any(rng)];
            driver.set(vcpu, id, value);
            if let Ok(seen) = driver.get(vcpu, id) {
                assert_eq!(driver.set(vcpu, id, seen), 0, "{id:#x}: what is read can be written");
            }
        }
        15 | 16 => {
            let group = rng.below(10) as u32;
            let attr = match rng.below(3) {
                0 => any(rng),
                _ => (rng.below(4) << 32) | (rng.below(0x4000) * 4),
            };
            driver.set_attr(group, attr, any(rng));
            let _ = driver.get_attr(group, attr);
            let mut value = any(rng);
            kserv_gic_get(driver.vm(), group, attr & 7, &mut value);
            kserv_gic_has(driver.vm(), group, attr);
            driver.set_gic(group, attr & 7, any(rng));
        }
        17 => {
            // A register that C made up.
            let reg = Reg {
                core: 0,
                words: rng.below(3) as u32,
                size: 8,
                vcpu,
                token: any(rng),
                group: rng.below(10) as u32,
                pad: 0,
            };
            let (now, core, mut value, mut words) = (driver.now, [any(rng); 2], [0; 2], [0; 2]);
            kserv_reg_get(driver.vm(), &reg, now, &core, &mut value);
            // SAFETY: `kick` is the driver's.
            unsafe { kserv_reg_set(driver.vm(), &reg, now, &value, &mut words, kick) };
        }
        18 => {
            driver.mp_state_set(vcpu, rng.below(7) as u32);
            kserv_events_set(driver.vm(), vcpu, rng.below(4) == 0, rng.below(4) == 0, rng.below(2) == 0);
        }
        19 => {
            kserv_vcpu_create(driver.vm(), vcpu);
            if (vcpu as usize) < driver.cores.len() {
                driver.init(vcpu, rng.below(2) == 0);
            }
            kserv_vcpu_init(driver.vm(), vcpu, rng.below(7) as u32, &[any(rng) as u32, 0, 0, 0, 0, 0, 0]);
        }
        20 => {
            let (mut want, mut bytes) = (RawWant::default(), [0; 32]);
            while kserv_its_next(driver.vm(), &mut want) && rng.below(50) != 0 {
                assert!(want.len == 1 || want.len == if want.write != 0 { 8 } else { 32 });
                bytes.fill_with(|| rng.next() as u8);
                // A command more often than not, about few devices, events and LPIs.
                bytes[0] = rng.below(16) as u8;
                for at in [5, 6, 7, 9, 10, 11, 14, 15] {
                    bytes[at] = 0;
                }
                (bytes[4], bytes[8], bytes[13]) = (bytes[4] & 3, bytes[8] & 3, 0x20 + (bytes[13] & 1));
                // SAFETY: `kick` is the driver's.
                unsafe { kserv_its_feed(driver.vm(), &bytes, rng.below(9) != 0, kick) };
            }
            assert!(kserv_its_outcome(driver.vm(), &mut driver.kicks) <= 0);
            let mailbox = driver.mailboxes[0];
            kserv_not_entered(driver.vm(), vcpu, &mailbox);
            kserv_first_run(driver.vm());
            kserv_gic_overlaps(driver.vm(), any(rng), any(rng));
            kserv_exits(driver.vm(), vcpu, any(rng));
        }
        _ => {
            kserv_gic_create(driver.vm(), rng.below(5) as u32);
            kserv_its_create(driver.vm());
            let doorbell = if rng.below(4) == 0 { any(rng) } else { 0x809_0040 };
            let (group, attr, value) = match rng.below(3) {
                0 => (8, rng.pick(&[0, 4, 8, 0x80, 0x88, 0x90, 0x100, 0x108, 0x110, 0xffe8]), any(rng)),
                1 => (8, rng.pick(&[0, 0x80, 0x100, 0x108]), 1 << 63 | any(rng) & 3 << 62 | rng.below(2)),
                _ => (rng.pick(&[0, 4]), rng.below(6), any(rng)),
            };
            // SAFETY: `kick` is the driver's.
            unsafe {
                kserv_its_set(driver.vm(), group, attr, Some(&value), kick);
                kserv_msi(driver.vm(), doorbell, rng.below(4) as u32, 0, true, kick);
            }
        }
    }
    assert_eq!(driver.kicks >> 16, 0, "there are 16 vCPUs");
    driver.kicks = 0;
}

/// A driver for the sequence `seed`: of every kind, in turn.
pub fn driver(seed: u64) -> Driver {
    let machine = [0, 2, 3][seed as usize % 3];
    match seed {
        0..12 => Driver::bare(machine),
        _ if machine == 3 => Driver::with_its(1 + seed as u32 % 4),
        _ => Driver::new(machine, machine as u32, 1 + seed as u32 % 4),
    }
}
