//! The interrupt engine against a CPU interface that behaves as the architecture says, over random sequences with fixed seeds.
//!
//! Checked at every acknowledge: that the interrupt was raised and not yet delivered (edges: one raise, one delivery; a level: the line
//! is up), and if nothing is offered that nothing waits that could preempt; that it is enabled and of the highest priority that waits for this vCPU, that it is active nowhere else. Checked at the end: nothing
//! that was raised is still owed. Checked at every entry (`Interface::load`): the vCPU gets to run.
#![forbid(unsafe_code)]

mod common;

use common::world::{SPIS, World};
use corevisor_evidence::{Rng, tell};
use kserv_model::irq::{Bits, Engine, Form, HCR_LRENPIE, HCR_UIE, ListRegister};

fn run(form: Form, prompt: bool, core: bool) {
    let (mut rng, mut delivered, mut worlds, mut by_core) = (Rng::new(0x5eed + form as u64), 0, 0, 0);
    for vcpus in [1, 2, 4] {
        for lrs in [1, 2, 4, 16] {
            for _ in 0..12 {
                let mut world = World::new(form, vcpus, lrs, prompt, &mut rng);
                if core {
                    world.use_core();
                }
                for _ in 0..1500 {
                    world.step(&mut rng);
                }
                world.drain();
                delivered += world.delivered;
                by_core += world.by_core;
                worlds += 1;
            }
        }
    }
    let counts = [("worlds", worlds), ("interrupts", delivered as u64), ("by the core", by_core as u64)];
    tell(&format!("interrupts: {form:?}"), &counts);
    assert!(delivered > 10_000 && (by_core > 1_000) == core);
}

/// An engine with interrupts 32 and on raised, of these priorities, edge-triggered, for vCPU 0.
fn raised(form: Form, priorities: &[u8]) -> Engine<4, SPIS> {
    let mut engine = Engine::new(form, 4);
    engine.set_enables([true, true]);
    for (intid, priority) in (32..).zip(priorities) {
        engine.set_edge(intid, true);
        engine.set_route(intid, 1);
        engine.set_priority(0, intid, *priority);
        engine.write_bits(0, intid / 32, Bits::Enabled, 1 << (intid % 32), true);
        engine.pulse(0, intid);
    }
    engine
}

/// (interrupt, pending, active, EOI bit) of each list register of an entry, and the maintenance interrupts asked for.
fn entry(
    engine: &mut Engine<4, SPIS>,
    form: Form,
    lrs: &mut [u64],
    eoim: bool,
) -> (Vec<(usize, bool, bool, bool)>, u64) {
    let filled = engine.fill(0, lrs, eoim);
    let used = lrs[..filled.count].iter().map(|lr| ListRegister::decode(form, *lr));
    (used.map(|lr| (lr.intid, lr.pending, lr.active, lr.eoi)).collect(), filled.hcr)
}

/// The vCPU acknowledges what its list registers `taken` hold.
fn acknowledge(engine: &mut Engine<4, SPIS>, form: Form, lrs: &mut [u64], taken: &[usize]) {
    for n in taken {
        let lr = ListRegister::decode(form, lrs[*n]);
        lrs[*n] = ListRegister { pending: false, active: true, ..lr }.encode(form);
    }
    engine.fold(0, lrs, 0);
}

#[test]
fn when_there_are_more_than_list_registers_the_most_urgent_go_first_and_the_rest_is_asked_for() {
    for form in [Form::V2, Form::V3] {
        let mut engine = raised(form, &[0xa0, 0x80, 0xa0, 0x90, 0xa0]);
        let mut lrs = [0; 4];
        let (held, hcr) = entry(&mut engine, form, &mut lrs[..2], false);
        assert_eq!((held, hcr), (vec![(33, true, false, false), (35, true, false, true)], HCR_UIE));
        // With one register UIE would never let the vCPU run.
        let (held, hcr) = entry(&mut engine, form, &mut lrs[..1], false);
        assert_eq!((held, hcr), (vec![(33, true, false, true)], 0));
        let (held, hcr) = entry(&mut engine, form, &mut lrs, false);
        assert_eq!((held.len(), hcr), (4, HCR_UIE));
        let (held, hcr) = entry(&mut engine, form, &mut [0; 5], false);
        assert_eq!((held.iter().any(|lr| lr.3), held.len(), hcr), (false, 5, 0));
        assert!(entry(&mut engine, form, &mut [], false).0.is_empty() && engine.deliverable(0, u8::MAX));
    }
}

#[test]
fn what_can_preempt_all_active_ones_takes_a_register_and_the_others_end_is_counted() {
    for form in [Form::V2, Form::V3] {
        let mut engine = raised(form, &[0xa0, 0x90]);
        let mut lrs = [0; 2];
        entry(&mut engine, form, &mut lrs, false);
        acknowledge(&mut engine, form, &mut lrs, &[0, 1]);
        for (priority, held, hcr) in [
            (0xa0, vec![(33, false, true, true), (32, false, true, false)], HCR_UIE),
            (0x80, vec![(33, false, true, false), (34, true, false, true)], HCR_UIE | HCR_LRENPIE),
        ] {
            engine.set_edge(34, true);
            engine.set_route(34, 1);
            engine.set_priority(0, 34, priority);
            engine.write_bits(0, 1, Bits::Enabled, 1 << 2, true);
            engine.pulse(0, 34);
            assert_eq!(entry(&mut engine, form, &mut lrs, false), (held, hcr));
        }
        // The end of what has no register.
        acknowledge(&mut engine, form, &mut lrs, &[]);
        entry(&mut engine, form, &mut lrs, false);
        engine.fold(0, &lrs, 1);
        assert_eq!(engine.bits(0, 1, Bits::Active), 0b10);
    }
}

#[test]
fn where_ends_and_deactivations_are_apart_active_ones_hold_nothing_back() {
    let mut engine = raised(Form::V3, &[0x80]);
    let mut lrs = [0; 1];
    entry(&mut engine, Form::V3, &mut lrs, true);
    acknowledge(&mut engine, Form::V3, &mut lrs, &[0]);
    engine.set_route(33, 1);
    engine.set_priority(0, 33, 0xa0);
    engine.write_bits(0, 1, Bits::Enabled, 1 << 1, true);
    engine.set_line(0, 33, true);
    assert_eq!(entry(&mut engine, Form::V3, &mut lrs, false).0, [(32, false, true, true)]);
    assert_eq!(entry(&mut engine, Form::V3, &mut lrs, true).0, [(33, true, false, true)]);
}

#[test]
fn what_another_vcpu_writes_to_active_and_pending_state_wins_over_the_list_register() {
    for (pending, active) in [(false, false), (true, false), (false, true)] {
        let mut engine = raised(Form::V2, &[0x80]);
        let mut lrs = [0; 4];
        entry(&mut engine, Form::V2, &mut lrs, false);
        engine.take_kicks();
        engine.write_bits(1, 1, Bits::Pending, 1, pending);
        engine.write_bits(1, 1, Bits::Active, 1, active);
        assert_eq!(engine.take_kicks(), 1, "the vCPU that has it is told");
        // Meanwhile it was acknowledged, or not.
        for taken in [&[0][..], &[]] {
            let (mut engine, mut lrs) = (engine.clone(), lrs);
            acknowledge(&mut engine, Form::V2, &mut lrs, taken);
            assert_eq!(
                (engine.bits(0, 1, Bits::Pending), engine.bits(0, 1, Bits::Active)),
                (pending.into(), active.into())
            );
            assert_eq!(engine.is_held(0, 32), active);
            assert_eq!(engine.deliverable(0, u8::MAX), pending && !active);
        }
    }
    // A guest may make an interrupt active that never was.
    let mut engine = Engine::<4, SPIS>::new(Form::V2, 1);
    engine.write_bits(0, 2, Bits::Active, 2, true);
    assert_eq!(entry(&mut engine, Form::V2, &mut [0; 4], false).0, [(65, false, true, false)]);
    engine.fold(0, &[0; 4], 0);
    assert_eq!(engine.bits(0, 2, Bits::Active), 0);
}

#[test]
fn v2_loses_no_interrupt_and_delivers_none_twice() {
    run(Form::V2, true, false);
}

#[test]
fn v3_loses_no_interrupt_and_delivers_none_twice() {
    run(Form::V3, true, false);
}

#[test]
fn v2_loses_nothing_when_vcpus_are_slow_to_exit() {
    run(Form::V2, false, false);
}

#[test]
fn v3_loses_nothing_when_vcpus_are_slow_to_exit() {
    run(Form::V3, false, false);
}

#[test]
fn v3_loses_nothing_and_delivers_nothing_twice_where_the_core_delivers_sgis() {
    run(Form::V3, true, true);
}

#[test]
fn v3_loses_nothing_where_the_core_delivers_sgis_and_vcpus_are_slow_to_exit() {
    run(Form::V3, false, true);
}

#[test]
fn the_core_may_deliver_what_is_enabled_and_has_no_state_here() {
    const NAMED: u64 = 1 << 24 | 0xffff;
    let timer = 27;
    let mut engine = Engine::<4, SPIS>::new(Form::V3, 2);
    (0..2).for_each(|vcpu| engine.write_bits(vcpu, 0, Bits::Enabled, u32::MAX, false));
    assert_eq!(engine.direct(0) & NAMED, 0);
    engine.write_bits(0, 0, Bits::Enabled, 0b111 | 1 << timer, true);
    assert_eq!(engine.direct(0) & NAMED, 0, "the distributor forwards nothing");
    engine.set_enables([false, true]);
    (0..32).for_each(|intid| engine.set_priority(0, intid, 0xa0));
    engine.set_priority(0, timer, 0xb0);
    assert_eq!(engine.direct(0), 0b111 | 0xa0 << 16 | 1 << 24 | 0xb0 << 30);
    assert_eq!(engine.direct(1) & 0xffff, 0);
    // Another priority, another group, pending, pending at the vCPU, disabled.
    engine.take_kicks();
    engine.set_priority(0, 2, 0x80);
    engine.write_bits(0, 0, Bits::Group, 0b10, false);
    engine.set_line(0, timer, true);
    assert_eq!(engine.take_kicks(), 1, "the core must not go on with them");
    assert_eq!(engine.direct(0), 0b1 | 0xa0 << 16 | 0xb0 << 30);
    engine.send_sgi(1, 1, 0, None);
    assert_eq!(engine.direct(0) & NAMED, 0);
    let mut lrs = [0; 4];
    engine.fill(0, &mut lrs, false);
    assert_eq!(engine.direct(0), 0b1 | 0xa0 << 16 | 1 << 24 | 0xb0 << 30, "in list registers the core finds them");
    engine.take_kicks();
    engine.write_bits(1, 0, Bits::Enabled, 0b1, true);
    engine.write_bits(0, 0, Bits::Enabled, 0b1, false);
    assert_eq!((engine.direct(0) & 0xffff, engine.take_kicks()), (0, 1));
    // Active with its line low: its end would make no exit.
    engine.fold(0, &lrs, 0);
    engine.write_bits(0, 0, Bits::Active, 1 << timer, true);
    engine.set_line(0, timer, false);
    assert_eq!(engine.direct(0) & NAMED, 0);
    engine.fill(0, &mut lrs, false);
    assert_eq!(engine.direct(0) & NAMED, 0);
    assert_eq!(Engine::<4, SPIS>::new(Form::V2, 1).direct(0), 0, "GICv2's SGIs have senders");
}

#[test]
fn what_the_core_delivered_comes_back_as_it_is() {
    let (sgi, timer) = (3, 27);
    for (pending, active) in [(true, false), (false, true), (true, true), (false, false)] {
        let mut engine = Engine::<4, SPIS>::new(Form::V3, 1);
        engine.set_enables([true, true]);
        engine.write_bits(0, 0, Bits::Enabled, 1 << sgi | 1 << timer, true);
        let lr = |intid| ListRegister { intid, group1: true, pending, active, ..Default::default() }.encode(Form::V3);
        assert!(engine.fold(0, &[0, lr(sgi), lr(timer)], 0));
        assert_eq!(engine.bits(0, 0, Bits::Pending), u32::from(pending) << sgi, "the timer's is what its line is");
        assert_eq!(engine.bits(0, 0, Bits::Active), if active { 1 << sgi | 1 << timer } else { 0 });
        assert_eq!(engine.has_ended(0, timer), !pending && !active);
        assert!(!engine.fold(0, &[lr(sgi), lr(64), u64::MAX], 0), "none of them is the timer's");
    }
}
