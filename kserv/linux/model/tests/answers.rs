//! Exits that are answered at once: the same comes of them as of an exit and an entry.
#![allow(missing_docs)]

mod common;

use common::steps::step;
use common::{Driver, PMR_OPEN, syndrome};
use corevisor_evidence::{Rng, seeds, tell};
use corevisor_interface::mailbox::{ExitReason, Mailbox};
use kserv_model::kvm::NOT_DIRECT;

/// The trap of an access to CNTP_TVAL_EL0, CTL, CVAL (op2 0 to 2) or another register, from or into x3.
fn timer_trap(rng: &mut Rng) -> u64 {
    let (op2, crm, read) = (rng.below(4), 2 + rng.below(8) / 7, rng.below(4) != 0);
    0x18 << 26 | 1 << 25 | 3 << 20 | op2 << 17 | 3 << 14 | 14 << 10 | 3 << 5 | crm << 1 | u64::from(read)
}

/// What the core could show of an exit: mostly one that is answered.
fn exit(mailbox: &mut Mailbox, rng: &mut Rng, now: u64) -> ExitReason {
    mailbox.x[3] = rng.below(4) * now / 2;
    if rng.below(20) == 0 {
        (mailbox.cntv_ctl, mailbox.cntv_cval) = (rng.below(8), rng.below(3) * now);
    }
    (mailbox.vgic_hcr, mailbox.vgic_misr) = ((rng.below(40) / 39) << 27, (rng.below(40) / 39) << 2);
    mailbox.vgic_vmcr = PMR_OPEN | (rng.below(30) / 29) << 9;
    mailbox.sgis = rng.below(40) / 39;
    match rng.below(8) {
        0..=2 => {
            mailbox.esr = timer_trap(rng);
            ExitReason::Sysreg
        }
        3..=5 => {
            let write = rng.below(12) == 0;
            (mailbox.esr, mailbox.ipa) = (syndrome(2, false, 3, true, write), 0x800_0000 + rng.below(0x400) * 4);
            if rng.below(4) == 0 {
                mailbox.ipa = 0x80a_0000 + rng.below(0x80) * 4;
            }
            if write { ExitReason::MmioWrite } else { ExitReason::MmioRead }
        }
        6 => ExitReason::Irq,
        _ => ExitReason::ALL[rng.below(ExitReason::ALL.len() as u64) as usize],
    }
}

#[test]
fn an_answer_at_once_is_what_an_exit_and_an_entry_would_have_made() {
    let (mut answered, mut refused) = (0_u64, 0_u64);
    let seeds = seeds(60);
    for seed in &seeds {
        let gic = 2 + seed % 2;
        let direct = if seed % 4 == 1 { 0x18 } else { NOT_DIRECT };
        let make = || Driver::direct(gic, gic as u32, 2, direct);
        let (mut one, mut two, mut rng) = (make(), make(), Rng::new(*seed));
        let ids = one.ids();
        for turn in 0..400 {
            // The world around changes now and then, the same for both.
            if rng.below(40) == 0 {
                let mut same = rng.clone();
                step(&mut one, &mut rng, &ids);
                step(&mut two, &mut same, &ids);
            }
            let vcpu = rng.below(2) as u32;
            assert_eq!((one.now, one.kicks), (two.now, two.kicks));
            if (one.enter(vcpu), two.enter(vcpu)) != (0, 0) {
                one.mp_state_set(vcpu, 0);
                two.mp_state_set(vcpu, 0);
                continue;
            }
            one.now += rng.below(2000);
            two.now = one.now;
            let at = vcpu as usize;
            let reason = exit(&mut one.mailboxes[at], &mut rng, two.now);
            two.mailboxes[at] = one.mailboxes[at];
            let what = format!("seed {seed}, turn {turn}, {reason:?}");
            if one.answer(vcpu, reason) {
                answered += 1;
                assert!(matches!(reason, ExitReason::Sysreg | ExitReason::MmioRead), "{what}");
                assert_eq!((two.exit(vcpu, reason).kind, two.enter(vcpu)), (0, 0), "{what}");
                assert_eq!(one.mailboxes[at], two.mailboxes[at], "{what}");
                assert_eq!(one.exit(vcpu, ExitReason::Irq), two.exit(vcpu, ExitReason::Irq), "{what}");
            } else {
                refused += 1;
                assert_eq!(one.mailboxes[at], two.mailboxes[at], "{what}: a refusal changes nothing");
                assert_eq!(one.exit(vcpu, reason), two.exit(vcpu, reason), "{what}");
                assert_eq!(one.mailboxes[at], two.mailboxes[at], "{what}");
            }
        }
    }
    assert!(answered > 1000 && refused > 1000, "{answered} answered, {refused} refused");
    tell("answers", &[("sequences", seeds.len() as u64), ("answered", answered), ("refused", refused)]);
}
