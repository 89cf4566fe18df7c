//! The interrupt controllers as devices: user space says where they are, saves and restores them; lines reach the VM.
#![allow(missing_docs)]

mod common;

use common::{Driver, START};
use corevisor_interface::mailbox::{DIRECT_KICK, DIRECT_KICK_SGI_SHIFT, DIRECT_TIMER, ExitReason, Mailbox};
use kserv_linux_model::access::kserv_device_access;
use kserv_linux_model::*;
use kserv_model::kvm::NOT_DIRECT;
use kserv_model::random::Random;

const DIST: u64 = 0x800_0000;
const REDIST: u64 = 0x80a_0000;
const SGI_FRAME: u64 = 0x1_0000;
const EINVAL: i32 = -22;
const ENXIO: i32 = -6;

/// Interrupts in the list registers of an entry, pending or active.
fn listed(mailbox: &Mailbox) -> Vec<u64> {
    mailbox.lr[..mailbox.lr_count as usize].iter().map(|lr| lr & 0x3ff).collect()
}

fn enter(driver: &mut Driver, vcpu: u32) -> Vec<u64> {
    assert_eq!(driver.enter(vcpu), 0);
    listed(&driver.mailboxes[vcpu as usize])
}

/// Whether the VM has taken every listed interrupt; then it ends them all.
fn end_all(driver: &mut Driver, vcpu: u32) {
    driver.mailboxes[vcpu as usize].lr = [0; 16];
    driver.exit(vcpu, ExitReason::Irq);
}

#[test]
fn a_device_is_made_once_for_a_machine_that_has_it_before_anything_ran() {
    let mut driver = Driver::bare(2);
    assert_eq!((kserv_gic_create(driver.vm(), 3), kserv_gic_create(driver.vm(), 9)), (-19, -19));
    assert_eq!(kserv_gic_version(driver.vm()), 0);
    assert_eq!((kserv_gic_create(driver.vm(), 2), kserv_gic_create(driver.vm(), 2)), (0, -17));
    assert_eq!(kserv_vcpu_create(driver.vm(), 7), 0);
    assert_eq!(kserv_vcpu_create(driver.vm(), 8), EINVAL, "GICv2 has 8 vCPUs");
    let mut driver = Driver::bare(2);
    assert_eq!(kserv_vcpu_create(driver.vm(), 8), 0);
    assert_eq!(kserv_gic_create(driver.vm(), 2), -7);
    let mut driver = Driver::new(2, 0, 1);
    assert_eq!(kserv_gic_create(driver.vm(), 2), -16);
}

#[test]
fn addresses_are_said_once_aligned_and_apart() {
    let mut driver = Driver::bare(3);
    assert_eq!(kserv_gic_has(driver.vm(), 0, 2), ENXIO, "there is no device");
    assert_eq!(kserv_gic_create(driver.vm(), 3), 0);
    assert_eq!([0, 1, 2, 3, 4, 5].map(|attr| kserv_gic_has(driver.vm(), 0, attr)), [ENXIO, ENXIO, 0, 0, ENXIO, 0]);
    assert_eq!(kserv_vcpu_create(driver.vm(), 0), 0);
    assert_eq!(driver.init(0, false), 0);
    assert_eq!(kserv_first_run(driver.vm()), ENXIO, "no addresses");
    assert_eq!(driver.set_gic(0, 2, DIST + 0x1000), EINVAL);
    assert_eq!([u64::MAX, 1 << 48, 1 << 40].map(|base| driver.set_gic(0, 2, base)), [EINVAL, -7, -7], "40 bits");
    assert_eq!((driver.set_gic(0, 2, DIST), driver.set_gic(0, 2, DIST)), (0, -17));
    assert_eq!(driver.set_gic(0, 5, 1 << 52 | DIST), EINVAL, "over the distributor");
    assert_eq!(driver.set_gic(0, 5, REDIST), EINVAL, "no count");
    assert_eq!(driver.set_gic(0, 5, 1 << 52 | REDIST | 1), EINVAL, "a second region");
    assert_eq!(driver.set_gic(0, 5, 1 << 52 | REDIST), 0);
    assert_eq!(
        (driver.set_gic(0, 5, 1 << 52 | 0x900_0000), driver.set_gic(0, 3, 0x900_0000)),
        (EINVAL, EINVAL),
        "as KVM"
    );
    let mut value = 0;
    assert_eq!((kserv_gic_get(driver.vm(), 0, 5, &mut value), value), (0, 1 << 52 | REDIST));
    assert_eq!((kserv_gic_get(driver.vm(), 0, 2, &mut value), value), (0, DIST));
    assert_eq!(kserv_first_run(driver.vm()), -16, "not initialised");
    assert_eq!(driver.find_gic(1, 0), Err(-16));
    assert_eq!(kserv_gic_has(driver.vm(), 1, 0), 0);
    assert_eq!((kserv_gic_get(driver.vm(), 3, 0, &mut value), value), (0, 32), "not said yet");
    assert_eq!([63, 65, 320, 1 << 40].map(|irqs| driver.set_gic(3, 0, irqs)), [EINVAL; 4]);
    assert_eq!((driver.set_gic(3, 0, 96), driver.set_gic(3, 0, 96)), (0, -16));
    assert_eq!((driver.set_gic(4, 0, 0), driver.set_gic(4, 0, 0)), (0, 0));
    assert_eq!((kserv_first_run(driver.vm()), kserv_vcpu_create(driver.vm(), 1)), (0, -16));
    assert_eq!((driver.set_spi(63, false), driver.set_spi(64, false)), (0, EINVAL), "96 interrupts");
    assert!(kserv_gic_overlaps(driver.vm(), REDIST + 0x1_ffff, 1));
    assert!(!kserv_gic_overlaps(driver.vm(), REDIST + 0x2_0000, 0x1000));
    assert!(!kserv_gic_overlaps(driver.vm(), DIST - 0x1000, 0x1000));
}

#[test]
fn a_region_without_room_for_all_vcpus_keeps_the_vm_from_running() {
    for (room, outcome) in [(1, ENXIO), (2, 0), (3, 0)] {
        let mut driver = Driver::bare(3);
        for vcpu in 0..2 {
            assert_eq!((kserv_vcpu_create(driver.vm(), vcpu), driver.init(vcpu, false)), (0, 0));
        }
        assert_eq!(kserv_gic_create(driver.vm(), 3), 0);
        assert_eq!(
            [(0, 2, DIST), (0, 5, room << 52 | REDIST), (4, 0, 0)]
                .map(|(group, attr, value)| driver.set_gic(group, attr, value)),
            [0; 3]
        );
        assert_eq!(kserv_first_run(driver.vm()), outcome);
    }
}

#[test]
fn gicv2_becomes_ready_at_the_first_run_and_tells_where_its_cpu_interface_is() {
    let mut driver = Driver::bare(2);
    assert_eq!((kserv_gic_create(driver.vm(), 2), kserv_vcpu_create(driver.vm(), 0), driver.init(0, false)), (0, 0, 0));
    assert_eq!(kserv_gic_cpu_base(driver.vm()), u64::MAX);
    assert_eq!((driver.set_gic(0, 0, DIST), driver.set_gic(0, 1, DIST)), (0, EINVAL));
    assert_eq!((driver.set_gic(0, 1, 0x801_0000), kserv_gic_initialized(driver.vm())), (0, false));
    assert_eq!((kserv_first_run(driver.vm()), kserv_gic_initialized(driver.vm())), (0, true));
    assert_eq!(kserv_gic_cpu_base(driver.vm()), 0x801_0000);
    // 256 interrupts, one vCPU.
    assert_eq!(driver.load(0, DIST + 4), 7);
}

#[test]
fn an_access_beside_the_interrupt_controller_is_user_spaces() {
    let mut driver = Driver::new(3, 3, 2);
    assert_eq!(driver.load(0, DIST + 4) & 0x1f, 8, "288 interrupts");
    assert_eq!(driver.load(0, REDIST + 0x2_0000 + 0xc), 1, "affinity of the second redistributor");
    for address in [DIST - 4, DIST + 0x1_0000, REDIST + 0x4_0000, 0x900_0000] {
        let action = driver.run(0, ExitReason::MmioRead, |mailbox| {
            (mailbox.esr, mailbox.ipa) = (common::syndrome(2, false, 1, false, false), address);
        });
        assert_eq!((action.kind, action.addr), (2, address));
    }
}

/// What the core takes for missing memory may be the interrupt controller's: user space may put it anywhere.
#[test]
fn an_access_that_was_shown_as_missing_memory_reaches_the_interrupt_controller() {
    for gic in [2, 3] {
        let mut driver = Driver::new(gic.into(), gic, 1);
        let mut access = |address, len, write, mut value| {
            let mut kick = 0;
            // SAFETY: what it wants is here.
            let found = unsafe { kserv_device_access(driver.vm(), 0, address, len, write, &mut value, &mut kick) };
            (found, value)
        };
        assert_eq!(access(DIST + 0x104, 4, true, 0x300), (1, 0x300));
        assert_eq!(access(DIST + 0x104, 4, false, 7), (1, 0x300));
        assert_eq!(access(DIST - 4, 4, true, 0x300), (0, 0x300));
        assert_eq!(access(DIST + 0x104, 3, false, 7), (0, 7));
    }
    let mut driver = Driver::bare(3);
    // SAFETY: what it wants is here.
    assert_eq!(unsafe { kserv_device_access(driver.vm(), 0, DIST, 4, false, &mut 0, &mut 0) }, 0, "no vCPU, no device");
}

#[test]
fn an_spi_reaches_the_vcpu_that_waits_and_its_end_is_told_to_who_watches() {
    for (gic, write_route) in [(2, DIST + 0x828), (3, DIST + 0x6000 + 8 * 42)] {
        let mut driver = Driver::new(gic.into(), gic, 2);
        assert_eq!(driver.mp_state_set(1, 0), 0);
        driver.store(0, DIST, 3);
        // Interrupt 42, SPI 10: enabled, for vCPU 1.
        driver.store(0, DIST + 0x104, 1 << 10);
        driver.store(0, write_route, if gic == 2 { 0x02_00_00 } else { 1 });
        assert_eq!(kserv_watch_spi(driver.vm(), 10, true), 0);
        let action = driver.run(1, ExitReason::Wfx, |_| ());
        assert_eq!(action.kind, 1);
        driver.kicks = 0;
        assert_eq!(driver.set_spi(10, true), 0);
        assert_eq!((driver.kicks, kserv_runnable(driver.vm(), 1, 0)), (2, true));
        assert_eq!(enter(&mut driver, 1), [42]);
        assert_eq!(kserv_next_ended_spi(driver.vm()), -1);
        end_all(&mut driver, 1);
        assert_eq!((kserv_next_ended_spi(driver.vm()), kserv_next_ended_spi(driver.vm())), (10, -1));
        // The line is still up: a level comes again.
        assert_eq!(enter(&mut driver, 1), [42]);
        assert_eq!(kserv_watch_spi(driver.vm(), 10, false), 0);
        assert_eq!(driver.set_spi(10, false), 0);
        end_all(&mut driver, 1);
        assert_eq!(kserv_next_ended_spi(driver.vm()), -1);
        assert_eq!(enter(&mut driver, 1), []);
    }
}

#[test]
fn an_interrupt_that_the_vcpus_priority_mask_keeps_away_ends_no_wait() {
    for gic in [2, 3] {
        let mut driver = Driver::new(gic.into(), gic, 1);
        driver.store(0, DIST, 3);
        driver.store(0, DIST + 0x104, 1 << 10);
        // Interrupt 42 has priority 0xa0, and goes to vCPU 0.
        driver.store(0, DIST + 0x428, 0xa0 << 16);
        let route = if gic == 2 { DIST + 0x828 } else { DIST + 0x6000 + 8 * 42 };
        driver.store(0, route, if gic == 2 { 1 << 16 } else { 0 });
        assert_eq!(driver.set_spi(10, true), 0);
        let mut wait = |mask: u64| driver.run(0, ExitReason::Wfx, |mailbox| mailbox.vgic_vmcr = mask << 24).kind;
        assert_eq!([0xf0, 0xa8, 0xa0, 0x80, 0].map(&mut wait), [0, 0, 1, 1, 1]);
        assert!(!kserv_runnable(driver.vm(), 0, START));
        // User space opens it: ICC_PMR_EL1, or GICC_PMR in its five bits.
        let (group, attr, value) = if gic == 2 { (2, 4, 0x1e) } else { (6, 3 << 14 | 4 << 7 | 6 << 3, 0xf0) };
        assert_eq!(driver.set_attr(group, attr, value), 0);
        assert!(kserv_runnable(driver.vm(), 0, START));
    }
}

#[test]
fn the_virtual_timer_is_interrupt_27_and_the_physical_one_30() {
    let mut driver = Driver::new(3, 3, 1);
    driver.store(0, DIST, 3);
    driver.store(0, REDIST + SGI_FRAME + 0x100, 1 << 27 | 1 << 30);
    let until = driver.now + 100;
    let offset = driver.now;
    let action = driver.run(0, ExitReason::Wfx, |mailbox| {
        (mailbox.cntv_ctl, mailbox.cntv_cval, mailbox.cntvoff) = (1, 100, offset);
    });
    assert_eq!((action.kind, action.until), (1, until));
    driver.now = until;
    assert!(kserv_runnable(driver.vm(), 0, until));
    assert_eq!(enter(&mut driver, 0), [27]);
    end_all(&mut driver, 0);
    // CNTP_CVAL, CNTP_CTL.
    for (op2, value) in [(2, until), (1, 1)] {
        driver.run(0, ExitReason::Sysreg, |mailbox| {
            mailbox.esr = 0x18 << 26 | 3 << 20 | op2 << 17 | 3 << 14 | 14 << 10 | 3 << 5 | 2 << 1;
            mailbox.x[3] = value;
        });
    }
    assert!(enter(&mut driver, 0).contains(&30));
}

/// What QEMU saves of a GICv2: (group, attribute).
fn registers_of_v2(vcpus: u64) -> Vec<(u32, u64)> {
    let mut all = vec![(1, 0)];
    for vcpu in 0..vcpus {
        let banked = [0x80, 0x100, 0x200, 0x300, 0xc04]
            .into_iter()
            .chain((0x400..0x420).step_by(4))
            .chain((0xf20..0xf30).step_by(4));
        all.extend(banked.map(|offset| (1, vcpu << 32 | offset)));
        all.extend([0x00, 0x04, 0x08, 0x1c, 0xd0].map(|offset| (2, vcpu << 32 | offset)));
    }
    for word in 1..9 {
        all.extend([0x80, 0x100, 0x200, 0x300].map(|base| (1, base + 4 * word)));
        all.extend((0..2).map(|half| (1, 0xc00 + 8 * word + 4 * half)));
        all.extend((0..8).flat_map(|n| [(1, 0x400 + 32 * word + 4 * n), (1, 0x800 + 32 * word + 4 * n)]));
    }
    all
}

/// What it saves of a GICv3.
fn registers_of_v3(vcpus: u64) -> Vec<(u32, u64)> {
    let mut all = vec![(1, 0)];
    for vcpu in 0..vcpus {
        let frame = [0x80, 0x100, 0x200, 0x300, 0xc04].into_iter().chain((0x400..0x420).step_by(4));
        all.extend(frame.map(|offset| (5, (vcpu << 32) | (SGI_FRAME + offset))));
        all.push((5, vcpu << 32 | 0x14));
        all.push((7, vcpu << 32));
        // PMR, BPR0, AP0R0, AP1R0, CTLR, BPR1, IGRPEN0, IGRPEN1.
        let icc = |crn: u64, crm: u64, op2: u64| 3 << 14 | crn << 7 | crm << 3 | op2;
        let names = [(4, 6, 0), (12, 8, 3), (12, 8, 4), (12, 9, 0), (12, 12, 4), (12, 12, 3), (12, 12, 6), (12, 12, 7)];
        all.extend(names.map(|(crn, crm, op2)| (6, vcpu << 32 | icc(crn, crm, op2))));
    }
    for word in 1..9 {
        all.extend([0x80, 0x100, 0x200, 0x300].map(|base| (1, base + 4 * word)));
        all.extend((0..2).map(|half| (1, 0xc00 + 8 * word + 4 * half)));
        all.extend((0..8).map(|n| (1, 0x400 + 32 * word + 4 * n)));
        all.extend((0..64).map(|n| (1, 0x6000 + 256 * word + 4 * n)));
        all.push((7, 32 * word));
    }
    all
}

/// Anything that a VM can do to its interrupt controller, and devices to it.
fn disturb(driver: &mut Driver, rng: &mut Random, gic: u32, vcpus: u32) {
    let vcpu = rng.below(vcpus.into()) as u32;
    let value = rng.next() as u32;
    match rng.below(6) {
        0 => {
            let base = rng.pick(&[0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380]);
            driver.store(vcpu, DIST + base + 4 * rng.below(9), value);
        }
        1 => driver.store(vcpu, DIST + 0x400 + 4 * rng.below(72), value),
        2 | 3 => driver.store(vcpu, DIST + 0xc08 + 4 * rng.below(16), value),
        4 if gic == 2 => driver.store(vcpu, DIST + 0xf00, value & 0x0003_000f),
        4 => {
            let base = rng.pick(&[0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0x408, 0x410]);
            driver.store(vcpu, REDIST + u64::from(vcpu) * 0x2_0000 + SGI_FRAME + base, value);
        }
        _ => assert_eq!(driver.set_spi(rng.below(256) as u32, value & 1 != 0), 0),
    }
}

/// Runs every vCPU until nothing is left: which interrupts it took, each at once ended.
fn drain(driver: &mut Driver, vcpus: u32) -> Vec<(u32, Vec<u64>)> {
    let mut taken = vec![];
    for spi in 0..256 {
        assert_eq!(driver.set_spi(spi, false), 0);
    }
    for round in 0..400 {
        for vcpu in 0..vcpus {
            let listed = enter(driver, vcpu);
            end_all(driver, vcpu);
            if !listed.is_empty() {
                taken.push((round << 8 | vcpu, listed));
            }
        }
    }
    taken
}

#[test]
fn what_is_saved_of_one_vm_and_restored_into_another_behaves_the_same() {
    for gic in [2, 3] {
        for seed in 0..12 {
            let mut rng = Random::new(seed);
            let vcpus = 1 + (seed as u32 % 4);
            let registers = if gic == 2 { registers_of_v2(vcpus.into()) } else { registers_of_v3(vcpus.into()) };
            let mut one = Driver::new(gic.into(), gic, vcpus);
            let mut two = Driver::new(gic.into(), gic, vcpus);
            for driver in [&mut one, &mut two] {
                (1..vcpus).for_each(|vcpu| assert_eq!(driver.mp_state_set(vcpu, 0), 0));
            }
            for vcpu in 0..vcpus as usize {
                let vmcr = rng.next() & if gic == 2 { 0xfffc_021f } else { 0xfffc_0213 };
                one.cores[vcpu][200] = vmcr;
                one.cores[vcpu][201] = rng.next() & 0xffff_ffff;
                one.cores[vcpu][205] = if gic == 3 { rng.next() & 0xffff_ffff } else { 0 };
                // Exits show it.
                for driver in [&mut one, &mut two] {
                    driver.mailboxes[vcpu].vgic_vmcr = vmcr;
                }
                one.store(vcpu as u32, DIST, 3);
            }
            // First of all: who has an active interrupt whose route changes is in no register of either controller.
            for spi in 0..256 {
                match gic {
                    2 if spi % 4 == 0 => one.store(0, DIST + 0x820 + spi, rng.next() as u32),
                    2 => {}
                    _ => one.store(0, DIST + 0x6100 + 8 * spi, rng.next() as u32 & 3),
                }
            }
            for _ in 0..300 {
                disturb(&mut one, &mut rng, gic, vcpus);
            }
            if gic == 2 {
                // Its interface has no levels: KVM, too, saves one that is up as a latch.
                (0..256).for_each(|spi| assert_eq!(one.set_spi(spi, false), 0));
            }
            let saved: Vec<u64> = registers.iter().map(|(group, attr)| one.get_attr(*group, *attr).unwrap()).collect();
            // A register of enables only sets: who restores a GICv3 clears first.
            (0..u64::from(vcpus)).filter(|_| gic == 3).for_each(|vcpu| {
                assert_eq!(two.set_attr(5, vcpu << 32 | (SGI_FRAME + 0x180), 0xffff_ffff), 0);
            });
            for ((group, attr), value) in registers.iter().zip(&saved) {
                assert_eq!(two.set_attr(*group, *attr, *value), 0, "{group} {attr:#x} {value:#x}");
            }
            for ((group, attr), value) in registers.iter().zip(&saved) {
                assert_eq!(two.get_attr(*group, *attr), Ok(*value), "GICv{gic}, seed {seed}: {group} {attr:#x}");
            }
            assert_eq!(drain(&mut one, vcpus), drain(&mut two, vcpus), "GICv{gic}, seed {seed}");
        }
    }
}

#[test]
fn the_virtual_cpu_interface_is_parts_of_the_cores_registers() {
    let mut driver = Driver::new(2, 2, 2);
    let at = |offset: u64| 1 << 32 | offset;
    for (offset, value) in [(0x00, 0x201), (0x04, 0x1e), (0x08, 5), (0x1c, 6), (0xd0, 0x8000_0001)] {
        assert_eq!(driver.set_attr(2, at(offset), value), 0);
        assert_eq!(driver.get_attr(2, at(offset)), Ok(value));
    }
    let size = |driver: &mut Driver, offset| driver.find_gic(2, at(offset)).map(|reg| reg.size).ok();
    assert_eq!(
        [0x00, 0xd0, 0xd4].map(|offset| size(&mut driver, offset)),
        [Some(4); 3],
        "user space has 32 bits for each"
    );
    assert_eq!((driver.cores[1][200], driver.cores[1][201]), (0x1e << 27 | 5 << 21 | 6 << 18 | 0x201, 0x8000_0001));
    assert_eq!((driver.find_gic(2, 0x0c).err(), driver.find_gic(2, 2 << 32).err()), (Some(ENXIO), Some(EINVAL)));

    let mut driver = Driver::new(3, 3, 2);
    let icc = |crn: u64, crm: u64, op2: u64| 1 << 32 | 3 << 14 | crn << 7 | crm << 3 | op2;
    for (register, value) in [(icc(4, 6, 0), 0xf0), (icc(12, 12, 3), 3), (icc(12, 12, 7), 1), (icc(12, 9, 0), 2)] {
        assert_eq!(driver.set_attr(6, register, value), 0);
        assert_eq!(driver.get_attr(6, register), Ok(value));
    }
    let ctlr = icc(12, 12, 4);
    assert_eq!(driver.get_attr(6, ctlr), Ok(0x400));
    assert_eq!((driver.set_attr(6, ctlr, 0x700), driver.set_attr(6, ctlr, 0x403)), (EINVAL, 0));
    assert_eq!(driver.cores[1][200], 0xf0 << 24 | 3 << 18 | 1 << 9 | 1 << 4 | 2);
    assert_eq!(driver.cores[1][205], 2);
    assert_eq!(driver.get_attr(6, icc(12, 12, 3)), Ok(1), "with CBPR it is BPR0 plus one");
    let sre = icc(12, 12, 5);
    assert_eq!((driver.get_attr(6, sre), driver.set_attr(6, sre, 7), driver.set_attr(6, sre, 0)), (Ok(7), 0, EINVAL));
    assert_eq!(driver.find_gic(6, icc(12, 12, 0)), Err(ENXIO), "ICC_IAR1_EL1");
    assert_eq!(driver.find_gic(6, 7 << 32 | icc(4, 6, 0)), Err(EINVAL));
}

#[test]
fn with_gicv3_latches_and_levels_stand_apart() {
    let mut driver = Driver::new(3, 3, 1);
    assert_eq!(driver.set_spi(10, true), 0);
    assert_eq!((driver.get_attr(1, 0x204), driver.get_attr(7, 32)), (Ok(0), Ok(1 << 10)));
    assert_eq!(driver.load(0, DIST + 0x204), 1 << 10, "the VM sees both");
    assert_eq!(driver.set_attr(1, 0x204, 1 << 3), 0);
    assert_eq!((driver.get_attr(1, 0x204), driver.load(0, DIST + 0x204)), (Ok(1 << 3), 1 << 10 | 1 << 3));
    assert_eq!((driver.set_attr(1, 0x284, u32::MAX.into()), driver.get_attr(1, 0x284)), (0, Ok(0)), "nothing");
    assert_eq!((driver.set_attr(7, 32, 0), driver.load(0, DIST + 0x204)), (0, 1 << 3));
    assert_eq!((driver.find_gic(7, 33).err(), driver.find_gic(7, 1 << 10).err()), (Some(EINVAL), Some(EINVAL)));
    assert_eq!(kserv_gic_has(driver.vm(), 7, 1 << 10), ENXIO);
}

#[test]
fn registers_that_do_not_exist_are_said_to() {
    let mut driver = Driver::new(3, 3, 1);
    for (group, attr) in [(1, 0x8000), (1, 2), (1, 0xf00), (2, 0), (5, 0x2_0000), (5, 0x1_0084), (8, 0), (9, 0), (0, 0)]
    {
        assert_eq!(driver.find_gic(group, attr), Err(ENXIO), "{group} {attr:#x}");
    }
    assert_eq!(driver.set_attr(1, 8, 0), EINVAL, "IIDR is what it is");
    let iidr = driver.get_attr(1, 8).unwrap();
    assert_eq!(driver.set_attr(1, 8, iidr), 0);
    assert_eq!(driver.find_gic(5, 1 << 32), Err(EINVAL), "there is no vCPU 1");
}

#[test]
fn the_timers_interrupts_are_where_they_are() {
    let mut driver = Driver::bare(3);
    let mut value = 0;
    assert_eq!((kserv_vcpu_attr_get(driver.vm(), 1, 0, &mut value), value), (0, 27));
    assert_eq!((kserv_vcpu_attr_get(driver.vm(), 1, 1, &mut value), value), (0, 30));
    assert_eq!(
        (kserv_vcpu_attr_get(driver.vm(), 1, 4, &mut value), kserv_vcpu_attr_get(driver.vm(), 0, 0, &mut value)),
        (-6, -6)
    );
    assert_eq!((kserv_vcpu_attr_set(driver.vm(), 1, 0, 27), kserv_vcpu_attr_set(driver.vm(), 2, 0, 27)), (EINVAL, -6));
    assert_eq!(kserv_gic_create(driver.vm(), 3), 0);
    assert_eq!([27, 28, 32, 0].map(|irq| kserv_vcpu_attr_set(driver.vm(), 1, 0, irq)), [0, EINVAL, EINVAL, EINVAL]);
    let mut ready = Driver::new(3, 3, 1);
    assert_eq!(kserv_vcpu_attr_set(ready.vm(), 1, 1, 30), -16);
}

#[test]
fn an_irqfd_on_a_level_leaves_it_up_until_somebody_lowers_it() {
    let mut driver = Driver::new(3, 3, 1);
    driver.store(0, DIST + 0xc08, 2 << 2);
    // SAFETY: `kicks` is the driver's.
    let pulse = |driver: &mut Driver, spi| unsafe { kserv_pulse_spi(driver.vm(), spi, &raw mut driver.kicks) };
    assert_eq!((pulse(&mut driver, 0), pulse(&mut driver, 1)), (0, 0));
    assert_eq!((driver.load(0, DIST + 0x204), driver.get_attr(7, 32)), (3, Ok(1)), "33 is an edge, 32 a level");
    assert_eq!((driver.set_spi(0, false), driver.load(0, DIST + 0x204)), (0, 2));
}

/// SGIs 0 to 15 and the virtual timer's interrupt are enabled, in group 1, at one priority.
fn enable_private(driver: &mut Driver) {
    driver.store(0, DIST, 0b10);
    driver.store(0, REDIST + SGI_FRAME + 0x80, u32::MAX);
    for n in 0..8 {
        driver.store(0, REDIST + SGI_FRAME + 0x400 + 4 * n, 0xa0a0_a0a0);
    }
    driver.store(0, REDIST + SGI_FRAME + 0x100, 0xffff | 1 << 27);
}

#[test]
fn the_core_delivers_by_itself_where_machine_and_vm_have_gicv3_and_the_driver_says_so() {
    let kick = DIRECT_KICK | 8 << DIRECT_KICK_SGI_SHIFT;
    let private = 0xffff | 0xa0 << 16 | DIRECT_TIMER | 0xa0 << 30;
    for (direct, expected) in [(kick, kick | private), (0, private), (NOT_DIRECT, 0)] {
        let mut driver = Driver::direct(3, 3, 1, direct);
        enable_private(&mut driver);
        assert_eq!(enter(&mut driver, 0), []);
        assert_eq!(driver.mailboxes[0].direct, expected);
    }
    // No core takes it where the machine's list registers are GICv2's, or where user space has the interrupt controller.
    for gic in [2, 0] {
        let mut driver = Driver::direct(2, gic, 1, kick);
        driver.mailboxes[0].direct = u64::MAX;
        assert_eq!(enter(&mut driver, 0), []);
        assert_eq!(driver.mailboxes[0].direct, 0, "GICv{gic}");
    }
}

#[test]
fn what_the_core_delivered_is_the_drivers_after_the_exit_and_goes_with_the_state() {
    let mut driver = Driver::direct(3, 3, 2, DIRECT_KICK | 8 << DIRECT_KICK_SGI_SHIFT);
    enable_private(&mut driver);
    assert_eq!(enter(&mut driver, 0), []);
    // SGI 3 pending by the core, SGI 4 sent by vCPU 1 when the exit was on its way.
    let mailbox = &mut driver.mailboxes[0];
    (mailbox.lr_count, mailbox.lr[0], mailbox.sgis) = (1, 1 << 62 | 1 << 60 | 0xa0 << 48 | 3, 1 << 4);
    driver.exit(0, ExitReason::Irq);
    driver.mailboxes[0].sgis = 0;
    assert_eq!(driver.load(0, REDIST + SGI_FRAME + 0x200), 1 << 3 | 1 << 4);
    assert_eq!(enter(&mut driver, 0), [3, 4]);
    assert_eq!(driver.mailboxes[0].direct & 0x18, 0x18, "in list registers the core finds them");
}
