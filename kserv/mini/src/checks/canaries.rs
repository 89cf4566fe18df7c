//! Register canaries, and a host that lies: a protected VM leaves with secrets in every register (tests/guests/src/bin/canary.rs).
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use corevisor_interface::calls::{CallError, HostCall};
use corevisor_interface::mailbox::{ENTRY_INJECT_ABORT, ExitReason, Mailbox};
use kserv_model::random::Random;

use super::drive::{Driven, interrupt_in, run};
use super::stage::play;
use super::victim::{TAG, found_in, is_canary};
use super::{Context, ensure};
use crate::arch::entry::try_write;
use crate::arch::registers;
use crate::calls;
use crate::guest::{Failure, at};
use crate::pages::PAGE;
use crate::scheduler;

/// "CANARIES": the VM's verdict.
const VERDICT: u64 = u64::from_le_bytes(*b"CANARIES");
/// What a host lies with.
const LIE: u64 = 0x1111_0000_0000_0000;
/// Exits that the guest makes, each at least once.
const KINDS: [ExitReason; 9] = [
    ExitReason::Irq,
    ExitReason::Timer,
    ExitReason::Wfx,
    ExitReason::MmioRead,
    ExitReason::MmioWrite,
    ExitReason::MemoryFault,
    ExitReason::Psci,
    ExitReason::Sysreg,
    ExitReason::SystemOff,
];

/// After each exit nothing that this host can read has a secret in it: x0 to x3, the mailbox, and whatever of the VM's memory it can read; the other
/// registers, which were full before, are as they were. And what the host puts into registers of the mailbox that an exit does not take reaches none.
pub fn canaries(context: &Context<'_>) -> Result<String, Failure> {
    let driven = Driven::new(context)?;
    let mut over = false;
    let mut runs = 0_u64;
    while !over {
        for vcpu in (0..driven.mailboxes.len()).filter(|vcpu| driven.is_on(*vcpu)) {
            driven.prepare(vcpu);
            interrupt_in(1 + runs % 64 * 97);
            let x = registers::run(HostCall::VcpuRun.function(), driven.guest.id, vcpu as u64)
                .map_err(Failure::Register)?;
            scheduler::run_for(0);
            let exit = calls::exit_of(x[0]).map_err(|error| Failure::Call("VcpuRun", error))?;
            runs += 1;
            if let Some(word) = x.into_iter().find(|word| is_canary(*word)) {
                return Err(Failure::Text(alloc::format!("{exit:?}: a secret in this host's registers: {word:#x}")));
            }
            search(&driven, vcpu, exit)?;
            over |= driven.serve(vcpu, exit)?;
            lie(&driven, vcpu, exit);
            // The VM is off: no other vCPU runs any more, though it was on.
            if over {
                break;
            }
        }
        if runs.is_multiple_of(256) || over {
            let mut own = (0..driven.guest.ram.1).map(|n| driven.guest.ram.0 + n * PAGE);
            ensure(own.all(|page| found_in(page, is_canary).is_none()), "a secret in memory that this host reads")?;
        }
    }
    let [verdict, ways] = driven.verdict()?;
    ensure(verdict == VERDICT, "the VM shows something else")?;
    ensure(!says_secret()?, "a secret in the core's log")?;
    let exits = driven.said();
    for kind in KINDS {
        ensure(driven.exits[kind as usize].load(SeqCst) != 0, &alloc::format!("no exit {kind:?}: {exits}"))?;
    }
    let given = driven.end()?;
    Ok(alloc::format!("{ways} ways out, {runs} runs with every register full (exits: {exits}), {given} pages back"))
}

fn search(driven: &Driven, vcpu: usize, exit: ExitReason) -> Result<(), Failure> {
    match found_in(driven.mailboxes[vcpu], is_canary) {
        None => Ok(()),
        Some((at, word)) => Err(Failure::Text(alloc::format!(
            "{exit:?}: a secret in the mailbox, at {:#x}: {word:#x}",
            at - driven.mailboxes[vcpu]
        ))),
    }
}

/// Every register of the mailbox gets another value than the VM has, but for the one that the exit takes; and what the core wrote about the exit is another one's:
/// its syndrome names another register.
fn lie(driven: &Driven, vcpu: usize, exit: ExitReason) {
    let esr = driven.word(vcpu, offset_of!(Mailbox, esr));
    let taken = match exit {
        ExitReason::MmioRead => esr >> 16 & 31,
        ExitReason::Sysreg => esr >> 5 & 31,
        _ => u64::MAX,
    };
    // There is no register 31: what stands there is taken by nobody.
    for n in (0..32).filter(|n| *n != taken || taken == 31) {
        let _ = try_write(driven.mailboxes[vcpu] + offset_of!(Mailbox, x) as u64 + 8 * n, LIE | n);
    }
    let told = [
        (offset_of!(Mailbox, esr), esr ^ (5 << 16 | 5 << 5)),
        (offset_of!(Mailbox, ipa), LIE),
        (offset_of!(Mailbox, cntv_ctl), 0),
        (offset_of!(Mailbox, cntv_cval), LIE),
        (offset_of!(Mailbox, cntvoff), LIE),
        (offset_of!(Mailbox, exits), LIE),
        (offset_of!(Mailbox, powered), 0),
    ];
    for (offset, word) in told {
        let _ = try_write(driven.mailboxes[vcpu] + offset as u64, word);
    }
}

/// Whether the core's log has a secret in it, as a number.
fn says_secret() -> Result<bool, Failure> {
    let (mut seq, mut text) = (0, Vec::new());
    loop {
        let [_, next, low, high] = at("CoreLogRead", calls::raw(HostCall::CoreLogRead, [seq, 0, 0, 0, 0]))?;
        if next == seq {
            break;
        }
        text.extend([low, high].into_iter().flat_map(u64::to_le_bytes));
        seq = next;
    }
    ensure(!text.is_empty(), "the core has no log")?;
    text.retain(|byte| *byte != b'_');
    text.make_ascii_lowercase();
    let secret = alloc::format!("{:x}", TAG >> 4);
    Ok(text.windows(secret.len()).any(|part| part == secret.as_bytes()))
}

/// Other CPUs write anything into every word of the mailboxes, all the time that the VM runs: the VM finds all as it left it.
///
/// They write a few words in most turns of the VM's, and as many as they can in every fourth: most entries would be refused, were it so in all.
pub fn mailbox(context: &Context<'_>) -> Result<String, Failure> {
    let driven = Arc::new(Driven::new(context)?);
    let [refused, written, turn] = [const { AtomicU64::new(0) }; 3].map(Arc::new);
    let shared = (driven.clone(), refused.clone(), written.clone(), turn);
    let seed = context.wishes.number("seed").unwrap_or(1);
    play(move |stage, cpu| {
        let (driven, refused, written, turn) = &shared;
        if cpu != 0 {
            let mut random = Random::new(seed << 8 | cpu as u64);
            while !stage.is_over() {
                let now = turn.load(SeqCst);
                let is_turn = || turn.load(SeqCst) == now && !stage.is_over();
                let mut left = random.pick(&[1, 4, 16, u64::MAX]);
                // At any time of the turn.
                (0..random.below(1000)).for_each(|_| core::hint::spin_loop());
                while is_turn() {
                    if left != 0 {
                        scribble(driven, &mut random);
                        written.fetch_add(1, SeqCst);
                        left -= 1;
                    }
                }
            }
            return Ok(());
        }
        let mut over = false;
        while !over && !stage.is_over() {
            for vcpu in (0..driven.mailboxes.len()).filter(|vcpu| driven.is_on(*vcpu)) {
                driven.prepare(vcpu);
                turn.fetch_add(1, SeqCst);
                match run(driven.guest.id, vcpu as u64) {
                    Ok(exit) => over |= driven.serve(vcpu, exit)?,
                    // What was written is nothing that may be; or the vCPU is off, whatever the mailbox said.
                    Err(CallError::InvalidParameter | CallError::WrongState) => _ = refused.fetch_add(1, SeqCst),
                    Err(error) => return Err(Failure::Call("VcpuRun", error)),
                }
            }
        }
        Ok(())
    })?;
    let [verdict, ways] = driven.verdict()?;
    ensure(verdict == VERDICT, "the VM shows something else")?;
    let exits = driven.said();
    let driven = Arc::into_inner(driven).ok_or_else(|| Failure::Text("a CPU still writes".into()))?;
    driven.end()?;
    let [refused, written] = [refused, written].map(|count| count.load(SeqCst));
    ensure(refused != 0, "no entry was ever refused")?;
    Ok(alloc::format!("{ways} ways out (exits: {exits}), {refused} entries refused, {written} words written meanwhile"))
}

/// One word of a mailbox becomes anything, but for an abort, which the host may want of an access.
fn scribble(driven: &Driven, random: &mut Random) {
    let word = random.below(Mailbox::WORDS as u64);
    let bits = random.next();
    let small = random.below(64);
    let flags = word * 8 == offset_of!(Mailbox, entry_flags) as u64;
    let value = random.pick(&[bits, small, u64::MAX, 1 << 62 | small << 32 | small]);
    let value = if flags { value & !ENTRY_INJECT_ABORT } else { value };
    let _ = try_write(random.pick(&driven.mailboxes) + 8 * word, value);
}
