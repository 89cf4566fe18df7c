//! The registers of both interrupt controllers, as drivers use them, and under random accesses with fixed seeds.
#![forbid(unsafe_code)]

use kserv_model::gicv2::GicV2;
use kserv_model::gicv3::GicV3;
use kserv_model::irq::{Form, ListRegister};
use kserv_model::layout::GICR_STRIDE;
use kserv_model::mmio::{Device, Width};
use kserv_model::random::Random;
use kserv_model::sysreg::Register;

type V2 = GicV2<8, 64>;
type V3 = GicV3<16, 64>;

fn read(gic: &mut V2, vcpu: usize, offset: u64) -> u32 {
    gic.read(vcpu, offset, Width::Word) as u32
}

fn write(gic: &mut V2, vcpu: usize, offset: u64, value: u32) {
    gic.write(vcpu, offset, Width::Word, value.into());
}

/// (interrupt, sender) of each list register of an entry.
fn entry2(gic: &mut V2, vcpu: usize) -> Vec<(usize, u8)> {
    let mut lrs = [0; 4];
    let filled = gic.irqs.fill(vcpu, &mut lrs, false);
    let found = lrs[..filled.count].iter().map(|lr| ListRegister::decode(Form::V2, *lr));
    found.map(|lr| (lr.intid, lr.source)).collect()
}

fn entry3(gic: &mut V3, vcpu: usize) -> Vec<usize> {
    let mut lrs = [0; 16];
    let filled = gic.irqs.fill(vcpu, &mut lrs, false);
    lrs[..filled.count].iter().map(|lr| ListRegister::decode(Form::V3, *lr).intid).collect()
}

#[test]
fn v2_is_what_linux_looks_for() {
    let mut gic = V2::new(4);
    assert_eq!(read(&mut gic, 0, 0x004), 2 | 3 << 5);
    assert_eq!(read(&mut gic, 0, 0xfe8) >> 4 & 0xf, 2);
    assert_eq!(read(&mut gic, 0, 0x008) & 0xfff, 0x43b);
    // gic_get_cpumask: the mask of the reading CPU, in every byte.
    for vcpu in 0..4 {
        assert_eq!(read(&mut gic, vcpu, 0x800), 0x0101_0101 << vcpu);
        assert_eq!(gic.read(vcpu, 0x81f, Width::Byte), 1 << vcpu);
    }
    assert_eq!((read(&mut gic, 0, 0xc00), read(&mut gic, 0, 0xc04)), (0xaaaa_aaaa, 0));
    assert_eq!(read(&mut gic, 0, 0x100), 0xffff);
    write(&mut gic, 0, 0x000, 1);
    assert_eq!(read(&mut gic, 0, 0x000), 1);
}

#[test]
fn v2_byte_registers_take_bytes_and_words_and_others_only_words() {
    let mut gic = V2::new(2);
    write(&mut gic, 0, 0x420, 0xf8a7_4431);
    assert_eq!(read(&mut gic, 0, 0x420), 0xf8a0_4030);
    gic.write(0, 0x421, Width::Byte, 0xff);
    assert_eq!((read(&mut gic, 0, 0x420), gic.read(0, 0x421, Width::Byte)), (0xf8a0_f830, 0xf8));
    // Private priorities are the vCPU's own.
    gic.write(1, 0x41b, Width::Byte, 0x80);
    assert_eq!((gic.read(0, 0x41b, Width::Byte), gic.read(1, 0x41b, Width::Byte)), (0, 0x80));
    write(&mut gic, 0, 0x820, 0xff01_0302);
    assert_eq!(read(&mut gic, 0, 0x820), 0x0301_0302);
    for (offset, width) in [(0x104, Width::Byte), (0x104, Width::Half), (0x106, Width::Word), (0x420, Width::Double)] {
        gic.write(0, offset, width, 0xffff_ffff);
        assert_eq!(gic.read(0, offset, width), 0);
    }
    assert_eq!(read(&mut gic, 0, 0x104), 0);
    write(&mut gic, 0, 0x104, 6);
    write(&mut gic, 0, 0x184, 2);
    assert_eq!((read(&mut gic, 0, 0x104), read(&mut gic, 0, 0x184)), (4, 4));
}

#[test]
fn v2_sgis_reach_those_named_with_their_sender() {
    let mut gic = V2::new(4);
    write(&mut gic, 0, 0x000, 1);
    write(&mut gic, 1, 0xf00, 0b1101 << 16 | 5);
    assert_eq!(gic.irqs.take_kicks(), 0b1111);
    assert_eq!(entry2(&mut gic, 0), [(5, 1)]);
    assert_eq!(entry2(&mut gic, 1), []);
    assert_eq!(entry2(&mut gic, 3), [(5, 1)]);
    // All but oneself; only oneself; reserved.
    write(&mut gic, 2, 0xf00, 1 << 24 | 6);
    write(&mut gic, 2, 0xf00, 2 << 24 | 7);
    write(&mut gic, 2, 0xf00, 3 << 24 | 8);
    assert_eq!(entry2(&mut gic, 2), [(5, 1), (7, 2)]);
    assert_eq!(entry2(&mut gic, 1), [(6, 2)]);
    // Two senders of one SGI.
    write(&mut gic, 3, 0xf00, 2 << 16 | 6);
    assert_eq!(gic.read(1, 0xf26, Width::Byte), 1 << 2 | 1 << 3);
    assert_eq!(entry2(&mut gic, 1), [(6, 2)]);
    gic.write(1, 0xf16, Width::Byte, 1 << 2);
    assert_eq!(entry2(&mut gic, 1), [(6, 3)]);
    write(&mut gic, 1, 0xf14, 0xff << 16);
    assert_eq!(entry2(&mut gic, 1), []);
    gic.write(0, 0xf2f, Width::Byte, 1 << 1);
    assert_eq!(entry2(&mut gic, 0), [(5, 1), (6, 2), (15, 1)]);
}

#[test]
fn v2_forwards_each_group_where_it_is_enabled() {
    let mut gic = V2::new(1);
    for at in [0x101, 0x201] {
        write(&mut gic, 0, at & !1 | 4, 0b110);
    }
    write(&mut gic, 0, 0x820, 0x0101_0101);
    write(&mut gic, 0, 0x084, 0b100);
    assert_eq!(entry2(&mut gic, 0), []);
    write(&mut gic, 0, 0x000, 1);
    assert_eq!(entry2(&mut gic, 0), [(33, 0)]);
    write(&mut gic, 0, 0x000, 2);
    assert_eq!(entry2(&mut gic, 0), [(34, 0)]);
    write(&mut gic, 0, 0x000, 3);
    assert_eq!(entry2(&mut gic, 0), [(33, 0), (34, 0)]);
    // A write of the group register is the whole word.
    write(&mut gic, 0, 0x084, 0b10);
    assert_eq!(read(&mut gic, 0, 0x084), 0b10);
}

#[test]
fn v3_is_what_linux_looks_for() {
    let mut gic = V3::new(3);
    assert_eq!(gic.read_distributor(0xffe8, Width::Word) >> 4, 3);
    assert_eq!(gic.read_distributor(0x4, Width::Word) & 31, 2);
    gic.write_distributor(0, Width::Word, 0x13);
    assert_eq!(gic.read_distributor(0, Width::Word), 0x53);
    for vcpu in 0..3u64 {
        let base = vcpu * GICR_STRIDE;
        let last = u64::from(vcpu == 2) << 4;
        assert_eq!(gic.read_redistributors(base + 8, Width::Double), vcpu << 32 | vcpu << 8 | last);
        assert_eq!(gic.read_redistributors(base + 12, Width::Word), vcpu);
        assert_eq!(gic.read_redistributors(base + 0xffe8, Width::Word) >> 4, 3);
        // gic_enable_redist: sleep off, children awake.
        assert_eq!(gic.read_redistributors(base + 0x14, Width::Word), 6);
        gic.write_redistributors(base + 0x14, Width::Word, 0);
        assert_eq!(gic.read_redistributors(base + 0x14, Width::Word), 0);
    }
    assert_eq!(gic.read_redistributors(3 * GICR_STRIDE + 8, Width::Double), 0);
    // All in group 1; the distributor has no private interrupts, a redistributor only its own.
    assert_eq!(gic.read_distributor(0x84, Width::Word), 0xffff_ffff);
    assert_eq!((gic.read_distributor(0x80, Width::Word), gic.read_distributor(0x400, Width::Word)), (0, 0));
    gic.write_distributor(0x100, Width::Word, 0xffff_ffff);
    assert_eq!(gic.read_redistributors(0x1_0100, Width::Word), 0xffff, "SGIs, as KVM");
    gic.write_redistributors(0x1_0180, Width::Word, 0xffff);
    gic.write_redistributors(GICR_STRIDE + 0x1_0100, Width::Word, 0x0800_ffff);
    assert_eq!(gic.read_redistributors(GICR_STRIDE + 0x1_0180, Width::Word), 0x0800_ffff);
    assert_eq!(gic.read_redistributors(0x1_0100, Width::Word), 0);
    assert_eq!(gic.read_redistributors(0x1_0104, Width::Word), 0);
    assert_eq!(gic.read_redistributors(0x1_0c00, Width::Word), 0xaaaa_aaaa);
}

#[test]
fn v3_spis_go_where_irouter_says() {
    let mut gic = V3::new(4);
    gic.write_distributor(0, Width::Word, 2);
    gic.write_distributor(0x104, Width::Word, 2);
    gic.irqs.set_line(0, 33, true);
    assert_eq!(entry3(&mut gic, 0), [33]);
    gic.irqs.fold(0, &[0; 16], 0);
    gic.write_distributor(0x6100 + 8, Width::Double, 2);
    assert_eq!(gic.read_distributor(0x6100 + 8, Width::Double), 2);
    assert_eq!((entry3(&mut gic, 0), entry3(&mut gic, 2)), (vec![], vec![33]));
    gic.irqs.fold(2, &[0; 16], 0);
    // By halves, and to where nobody is.
    gic.write_distributor(0x6100 + 8, Width::Word, 3);
    assert_eq!(entry3(&mut gic, 3), [33]);
    gic.irqs.fold(3, &[0; 16], 0);
    gic.write_distributor(0x6100 + 12, Width::Word, 1);
    assert_eq!(gic.read_distributor(0x6100 + 8, Width::Double), 1 << 32 | 3);
    assert!((0..4).all(|vcpu| entry3(&mut gic, vcpu).is_empty()));
}

#[test]
fn v3_sgis_reach_the_affinities_named() {
    let mut gic = V3::new(16);
    gic.write_distributor(0, Width::Word, 2);
    for vcpu in 0..16 {
        gic.write_redistributors(vcpu * GICR_STRIDE + 0x1_0100, Width::Word, 0xffff);
    }
    gic.irqs.take_kicks();
    gic.send_sgi(0, Register::IccSgi1r, 3 << 24 | 0x8002);
    assert_eq!(gic.irqs.take_kicks(), 0x8002);
    assert_eq!((entry3(&mut gic, 1), entry3(&mut gic, 15), entry3(&mut gic, 0)), (vec![3], vec![3], vec![]));
    gic.send_sgi(5, Register::IccSgi1r, 4 << 24 | 1 << 40);
    assert_eq!(gic.irqs.take_kicks(), 0xffff & !(1 << 5));
    assert_eq!((entry3(&mut gic, 5), entry3(&mut gic, 6)), (vec![], vec![4]));
    // Other clusters do not exist; group 0's registers send nothing to group 1.
    for value in [1 << 16 | 1, 1 << 32 | 1, 1 << 48 | 1, 1 << 44 | 1] {
        gic.send_sgi(0, Register::IccSgi1r, value);
    }
    gic.send_sgi(0, Register::IccSgi0r, 1);
    assert_eq!(gic.irqs.take_kicks(), 0);
    gic.write_redistributors(0x1_0080, Width::Word, !1);
    gic.write_distributor(0, Width::Word, 3);
    gic.irqs.take_kicks();
    gic.send_sgi(0, Register::IccSgi0r, 1);
    assert_eq!((gic.irqs.take_kicks(), entry3(&mut gic, 0)), (1, vec![0, 4]));
}

#[test]
fn no_access_makes_a_distributor_panic_or_a_register_forget() {
    let mut rng = Random::new(7);
    let widths = [Width::Byte, Width::Half, Width::Word, Width::Word, Width::Word, Width::Double];
    let (mut v2, mut v3) = (GicV2::<8, 40>::new(5), GicV3::<3, 988>::new(3));
    let mut lrs = [[0u64; 4]; 8];
    for n in 0..200_000u64 {
        let (width, value, vcpu) = (rng.pick(&widths), rng.next() >> rng.below(64), rng.below(10) as usize);
        let offset = if n % 16 == 0 { rng.next() >> rng.below(64) } else { rng.below(0x1100) };
        v2.read(vcpu, offset, width);
        v2.write(vcpu, offset, width, value);
        let offset = if n % 16 == 0 { offset } else { rng.below(0x1_0000) };
        v3.read_distributor(offset, width);
        v3.write_distributor(offset, width, value);
        let offset = if n % 16 == 0 { offset } else { rng.below(8 * GICR_STRIDE) };
        v3.read_redistributors(offset, width);
        v3.write_redistributors(offset, width, value);
        let register = rng.pick(&[Register::IccSgi1r, Register::IccSgi0r, Register::IccAsgi1r, Register::CntpCtl]);
        v3.send_sgi(vcpu, register, value);
        if n % 4 == 0 {
            let random: Vec<u64> = (0..rng.below(6)).map(|_| rng.next()).collect();
            let lr = &mut lrs[vcpu % 8];
            v2.irqs.fill(vcpu, lr, rng.below(2) == 0);
            v2.irqs.fold(vcpu, if n % 8 == 0 { lr } else { &random }, rng.below(40) as u32);
            v3.irqs.fill(vcpu, lr, rng.below(2) == 0);
            v3.irqs.fold(vcpu, if n % 8 == 0 { &random } else { lr }, rng.next() as u32);
        }
        v3.irqs.set_line(vcpu, value as usize, n % 3 == 0);
        v2.irqs.pulse(vcpu, value as usize % 1100);
    }
    // Still what it was.
    assert_eq!(v2.read(0, 4, Width::Word), 2 | 4 << 5);
    v2.write(0, 0x104, Width::Word, 0);
    v2.write(0, 0x184, Width::Word, 0xffff_ffff);
    v2.write(0, 0x104, Width::Word, 0x55);
    assert_eq!(v2.read(0, 0x104, Width::Word), 0x55);
}
