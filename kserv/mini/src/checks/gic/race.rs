//! Two CPUs and more at the same registers: one moves the queue on and enables LPIs, the others change what queue and tables are, and what stands in them.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use kserv_model::random::Random;

use super::super::ensure;
use super::super::stage::{Stage, play};
use super::service::{
    BASERS, Command, GITS_BASER, GITS_CBASER, GITS_CREADR, GITS_CWRITER, SIZE, STALLED, VALID, about, map_device,
};
use super::tables::{FIRST_LPI, GICR_PENDBASER, GICR_PROPBASER, PEND_ADDRESS, Tables};
use super::{Ground, PATTERN, fill};
use crate::arch::memory;
use crate::guest::Failure;
use crate::pages::PAGE;
use crate::scheduler;

/// Moves of the queue, for each of the others. A move runs up to 64 commands, and one of theirs may too, one after the other.
const ROUNDS: u64 = 200;
/// Of so many changes of the others one is of what stands in registers, for each kind; the rest is of commands in the queue.
const KINDS: u64 = 32;
/// The VM has a turn now and then.
const TURN: u64 = 16;
/// One move in so many goes beyond the first page. And how often it is looked whether registers change that should not.
const BEYOND: u64 = 32;
const LOOKS: u64 = 4;
/// Times that LPIs are enabled, at most: a page is lent no more than 255 times.
const MOST_ENABLED: u64 = 100;
/// Devices that the commands are about: few, for each has a table of the core's.
const DEVICES: u64 = 3;
const FIRST_DEVICE: u64 = 0x40;
/// Offsets in GITS_CREADR.
const OFFSET: u64 = 0xf_ffe0;

/// All CPUs at it: moves of the queue, and times that LPIs were enabled.
pub fn race(ground: &Arc<Ground>) -> Result<(u64, u64), Failure> {
    fill(ground.used(0), PATTERN);
    fill(ground.used(1), PATTERN);
    ensure(ground.last()?.disable(), "LPIs stay enabled")?;
    ground.last()?.name(ground.spare());
    ground.service.start(1);
    let counts = Arc::new([const { AtomicU64::new(0) }; 2]);
    let (shared, told) = (ground.clone(), counts.clone());
    play(move |stage, cpu| match cpu {
        0 => move_on(&shared, stage, &told),
        cpu => change(&shared, stage, Random::new(cpu as u64)),
    })?;
    ground.is_unused("the race")?;
    Ok((counts[0].load(SeqCst), counts[1].load(SeqCst)))
}

fn move_on(ground: &Ground, stage: &Stage, [moves, enabled]: &[AtomicU64; 2]) -> Result<(), Failure> {
    let (its, last, mut random) = (ground.service.frame, ground.last()?, Random::new(0));
    for round in 0..ROUNDS / (scheduler::online() as u64 - 1) {
        if stage.is_over() {
            break;
        }
        // Seldom where a queue of one page never gets: each access goes on running commands then.
        let most = if random.below(BEYOND) == 0 { 2 * PAGE } else { PAGE };
        its.write64(GITS_CWRITER, random.below(most / SIZE) * SIZE);
        let reader = its.read64(GITS_CREADR);
        ensure(reader & !(OFFSET | STALLED) == 0, &alloc::format!("GITS_CREADR is {reader:#x}"))?;
        moves.fetch_add(1, SeqCst);
        if enabled.load(SeqCst) < MOST_ENABLED && last.enable() {
            // From now on they do not change, whoever writes them.
            let registers = || (last.frame.read64(GICR_PROPBASER), last.frame.read64(GICR_PENDBASER));
            let (prop, pend) = registers();
            let spare = ground.spare();
            let own = prop & PEND_ADDRESS == spare.prop && pend & PEND_ADDRESS == spare.pend;
            ensure(own, &alloc::format!("LPIs are enabled with tables at {prop:#x} and {pend:#x}"))?;
            ensure((0..LOOKS).all(|_| registers() == (prop, pend)), "the registers of enabled tables change")?;
            ensure(last.disable(), "LPIs stay enabled")?;
            enabled.fetch_add(1, SeqCst);
        }
        if round % TURN == 0 {
            ground.victim.have_a_turn();
        }
    }
    Ok(())
}

/// What the others do, each change at a time.
fn change(ground: &Ground, stage: &Stage, mut random: Random) -> Result<(), Failure> {
    let (its, last, queue) = (ground.service.frame, ground.last()?, ground.service.queue);
    let names: alloc::vec::Vec<u64> = ground.redistributors.iter().map(|one| ground.service.name_of(one)).collect();
    while !stage.is_over() {
        let (_, place) = random.pick(&ground.places);
        match random.below(KINDS) {
            // More often its own than another's: or it would stall most of the time.
            0 => its.write64(GITS_CBASER, VALID | if random.below(4) == 0 { place } else { queue } | random.below(2)),
            1 => its.write64(GITS_BASER + 8 * random.below(BASERS), VALID | place | random.below(0x100)),
            2 => last.name(ground.spare()),
            3 => last.name(Tables { pend: place, ..ground.spare() }),
            4 => last.name(Tables { prop: place, ..ground.spare() }),
            5 => its.write64(GITS_CWRITER, random.below(PAGE / SIZE) * SIZE),
            _ => {
                let command = command(ground, &names, place, &mut random);
                let at = queue + random.below(PAGE / SIZE) * SIZE;
                (0..).zip(command).for_each(|(n, word)| memory::copy_to(at + 8 * n, &word.to_le_bytes()));
            }
        }
    }
    Ok(())
}

fn command(ground: &Ground, names: &[u64], place: u64, random: &mut Random) -> Command {
    let device = FIRST_DEVICE + random.below(DEVICES);
    let n = random.below(names.len() as u64);
    match random.below(4) {
        0 => map_device(device, if random.below(2) == 0 { place } else { ground.used(1) }),
        1 => [0x20 | random.below(0x10) | device << 32, random.next(), VALID | place, VALID | place],
        _ => {
            let (event, lpi) = (random.below(16), FIRST_LPI + random.below(0x100));
            random.pick(&about(device, event, lpi, n, names[n as usize]))
        }
    }
}
