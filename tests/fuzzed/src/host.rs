//! Targets of the host's own part: device models, and the driver's C interface.

use corevisor_evidence::Rng;
use corevisor_interface::mailbox::{ExitReason, Mailbox};
use kserv_model::gicv2::GicV2;
use kserv_model::gicv3::GicV3;
use kserv_model::irq::Form;
use kserv_model::layout::GICR_STRIDE;
use kserv_model::mmio::{Access, Device, Width};
use kserv_model::pl011::Pl011;
use kserv_model::sysreg::{Register, SysregAccess};

use crate::driver::steps;
use crate::interface::world::World;

/// Most steps of one input.
const STEPS: usize = 1000;

/// The interrupt engine next to what is known of every interrupt.
pub fn interrupts(bytes: &[u8]) {
    let rng = &mut Rng::of(bytes);
    let (form, vcpus, lrs) = (rng.pick(&[Form::V2, Form::V3]), rng.pick(&[1, 2, 4]), rng.pick(&[1, 2, 4, 16]));
    let prompt = rng.below(2) == 0;
    let mut world = World::new(form, vcpus, lrs, prompt, rng);
    for _ in 0..STEPS {
        if rng.is_spent() {
            break;
        }
        world.step(rng);
    }
    world.drain();
}

/// An access as a mailbox describes it: what is loaded is no wider than the access.
fn access(rng: &mut Rng) {
    let mut mailbox = Mailbox::EMPTY;
    mailbox.esr = rng.next();
    mailbox.ipa = rng.next();
    let register = (mailbox.esr >> 16 & 31) as usize;
    let before = mailbox.x;
    if let Some(access) = Access::decode(rng.pick(&[ExitReason::MmioRead, ExitReason::MmioWrite]), &mailbox) {
        let value = rng.next();
        access.finish(value, &mut mailbox);
        let same = (0..mailbox.x.len()).filter(|n| *n != register).all(|n| mailbox.x[n] == before[n]);
        assert!(same, "another register changed");
        assert!(access.write.is_none() || mailbox.x == before, "a store changed a register");
        assert!(access.write.is_none_or(|value| value & !access.width.mask() == 0));
    }
    let decoded = SysregAccess::decode(&mailbox);
    decoded.finish(rng.next(), &mut mailbox);
}

/// Accesses to both interrupt controllers and the serial port.
pub fn devices(bytes: &[u8]) {
    let rng = &mut Rng::of(bytes);
    let (mut v2, mut v3, mut uart) = (GicV2::<8, 40>::new(5), GicV3::<3, 988>::new(3), Pl011::new());
    let (mut lrs, mut sent) = ([0; 4], 0);
    for _ in 0..STEPS {
        if rng.is_spent() {
            break;
        }
        let width = rng.pick(&[Width::Byte, Width::Half, Width::Word, Width::Double]);
        let (vcpu, value) = (rng.below(10) as usize, rng.next());
        let offset = if rng.below(16) == 0 { rng.next() } else { rng.below(1 << 16) };
        match rng.below(10) {
            0 => _ = v2.read(vcpu, offset & 0xfff, width),
            1 => v2.write(vcpu, offset & 0xfff, width, value),
            2 => _ = v3.read_distributor(offset, width),
            3 => v3.write_distributor(offset, width, value),
            4 => _ = v3.read_redistributors(offset % (8 * GICR_STRIDE), width),
            5 => v3.write_redistributors(offset % (8 * GICR_STRIDE), width, value),
            6 => v3.send_sgi(vcpu, rng.pick(&[Register::IccSgi1r, Register::IccSgi0r, Register::IccAsgi1r]), value),
            7 => {
                v2.irqs.set_line(vcpu, offset as usize, value & 1 == 0);
                v3.irqs.pulse(vcpu, offset as usize);
                let filled = v3.irqs.fill(vcpu, &mut lrs, value & 2 == 0);
                assert!(filled.count <= lrs.len());
                lrs[rng.below(4) as usize] ^= value;
                v3.irqs.fold(vcpu, &lrs, value as u32);
                v2.irqs.fill(vcpu, &mut lrs, value & 2 == 0);
                v2.irqs.fold(vcpu, &lrs, value as u32);
            }
            8 => {
                let room = uart.room();
                assert_eq!(uart.receive(value as u8), room > 0);
                uart.write(offset, value as u32, &mut |_| sent += 1);
                uart.read(offset);
            }
            _ => access(rng),
        }
    }
    v2.write(0, 0x184, Width::Word, 0xffff_ffff);
    v2.write(0, 0x104, Width::Word, 0x55);
    assert_eq!(v2.read(0, 0x104, Width::Word), 0x55, "a register forgets");
}

/// Calls over the C interface.
pub fn kvm(bytes: &[u8]) {
    let rng = &mut Rng::of(bytes);
    let mut driver = steps::driver(rng.below(24));
    let ids = driver.ids();
    for _ in 0..STEPS {
        if rng.is_spent() {
            break;
        }
        steps::step(&mut driver, rng, &ids);
    }
}
