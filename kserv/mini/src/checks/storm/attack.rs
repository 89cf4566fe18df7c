//! One CPU's part of the storm.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use corevisor_interface::calls::{HostCall, VM_ORDINARY};
use corevisor_interface::mailbox::{MAX_LIST_REGISTERS, Mailbox, START_PSTATE};
use kserv_model::layout::RAM_BASE;
use kserv_model::random::Random;

use super::super::victim::{self, TAG, secret_in};
use super::draw::{self, Places};
use crate::arch::call::hvc;
use crate::arch::cpu;
use crate::arch::entry::{try_read, try_write};
use crate::calls;
use crate::pages::PAGE;
use crate::sync::Mutex;

/// Parts of a second after which a vCPU of the storm leaves.
const RUN_FOR: u64 = 20_000;

/// What is left of the storm's calls.
#[derive(Debug, Default)]
pub struct Known {
    /// VMs that may be there.
    pub vms: Vec<u64>,
    /// vCPUs: VM, vCPU, mailbox.
    pub vcpus: Vec<(u64, u64, u64)>,
}

impl Known {
    fn forget(&mut self, vm: u64) {
        self.vms.retain(|other| *other != vm);
        self.vcpus.retain(|(other, ..)| *other != vm);
    }
}

/// What the CPUs share.
pub struct Storm {
    /// Where to attack.
    pub places: Places,
    /// VMs of the storm.
    pub known: Mutex<Known>,
    /// What was done.
    pub counts: Counts,
    /// What went wrong first.
    pub wrong: Mutex<Option<String>>,
}

/// How often something was done, all CPUs together.
#[derive(Debug, Default)]
pub struct Counts {
    calls: AtomicU64,
    /// Calls that did something.
    served: AtomicU64,
    /// Loads and stores.
    touches: AtomicU64,
    /// Of these, refused.
    denied: AtomicU64,
    /// Runs of vCPUs.
    runs: AtomicU64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, served, touches, denied, runs } = self;
        let [calls, served, touches, denied, runs] =
            [calls, served, touches, denied, runs].map(|count| count.load(Ordering::Relaxed));
        write!(f, "{calls} calls ({served} served), {runs} runs, {touches} accesses ({denied} refused)")
    }
}

/// One more.
fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}

impl Storm {
    fn fail(&self, text: String) {
        self.wrong.lock().get_or_insert(text);
    }

    /// So many steps of this CPU, from a seed of its own.
    pub fn rage(&self, seed: u64, steps: u64) {
        let mut random = Random::new(seed);
        for step in 0..steps {
            match random.below(100) {
                0..70 => self.call(&mut random),
                70..82 => self.touch(&mut random),
                82..94 => self.run(&mut random),
                94..96 => self.bury(&mut random),
                96..98 => self.raise(&mut random),
                _ => self.look(&mut random),
            }
            if step % 16 == 0 {
                self.places.victim.have_a_turn();
            }
            if self.wrong.lock().is_some() {
                return;
            }
        }
    }

    fn call(&self, random: &mut Random) {
        let call = draw::call(random);
        let known = self.known.lock().vms.clone();
        let mut arguments = [0; 5];
        for (slot, name) in arguments.iter_mut().zip(call.arguments()) {
            *slot = draw::argument(random, &self.places, &known, name);
        }
        if !self.places.victim.would_end(call, &arguments) {
            self.make(call, arguments);
        }
    }

    /// The calls that bring an ordinary VM to where its vCPU runs; other CPUs call in between.
    fn raise(&self, random: &mut Random) {
        let place = |random: &mut Random| draw::arena(random, &self.places);
        let Some([_, vm, ..]) = self.make(HostCall::RegisterVm, [VM_ORDINARY, 36, place(random), 0, 0]) else {
            return;
        };
        for _ in 0..8 {
            self.make(HostCall::DonatePool, [vm, place(random), 1 + random.below(2), 0, 0]);
        }
        self.make(HostCall::RegisterVcpu, [vm, 0, place(random), 0, 0]);
        self.make(HostCall::VerifyVm, [vm, 0, 0, 0, 0]);
        for n in 0..4 {
            let pa = place(random);
            // Code that does something now and then: calls, waits, and loads and stores that miss.
            for at in (pa..pa + PAGE).step_by(8 * 16) {
                let word = random.one_of(&[0xd400_0002_d400_0002, 0xd503_207f_d503_207f, 0xf940_0041_f900_0041]);
                let _ = try_write(at, if random.percent(50) { word } else { random.next() });
            }
            self.make(HostCall::MapMemory, [vm, RAM_BASE + n * PAGE, pa, 1, 0]);
        }
    }

    /// Makes a call, and remembers what it gave.
    fn make(&self, call: HostCall, arguments: [u64; 5]) -> Option<[u64; 4]> {
        count(&self.counts.calls);
        let x = match victim::answer(call, &arguments, calls::bare(call, arguments)) {
            Ok(answer) => answer.ok()?,
            Err(text) => {
                self.fail(text);
                return None;
            }
        };
        count(&self.counts.served);
        let mut known = self.known.lock();
        match call {
            HostCall::RegisterVm => known.vms.push(x[1]),
            HostCall::RegisterVcpu => known.vcpus.push((arguments[0], arguments[1], arguments[2])),
            HostCall::DestroyVm => known.forget(arguments[0]),
            _ => {}
        }
        Some(x)
    }

    /// A load or a store somewhere.
    fn touch(&self, random: &mut Random) {
        count(&self.counts.touches);
        let private = random.percent(40);
        let pa = if private { random.one_of(&self.places.victim.private) } else { draw::arena(random, &self.places) };
        let at = pa + random.below(512) * 8;
        let result = if random.percent(50) { try_read(at) } else { try_write(at, random.next()).map(|()| 0) };
        match result {
            Ok(word) if private || word >> 32 == TAG => {
                self.fail(alloc::format!("the host reached a private page at {at:#x}: {word:#x}"));
            }
            Ok(_) => {}
            Err(abort) if abort.is_refusal() => count(&self.counts.denied),
            Err(abort) => {
                self.fail(alloc::format!("at {at:#x}: ESR {:#x} instead of an abort of the core's", abort.esr))
            }
        }
    }

    /// Runs a vCPU of the storm, with what may be in its mailbox.
    fn run(&self, random: &mut Random) {
        let vcpus = self.known.lock().vcpus.clone();
        let Some((vm, vcpu, page)) = (!vcpus.is_empty()).then(|| vcpus[random.below(vcpus.len() as u64) as usize])
        else {
            return;
        };
        // What is not written is not the host's page any more; then VcpuRun says so.
        let word = |at: usize, value: u64| _ = try_write(page + at as u64, value);
        word(core::mem::offset_of!(Mailbox, entry_flags), random.below(16));
        word(core::mem::offset_of!(Mailbox, pc), RAM_BASE + random.below(4) * PAGE);
        let pstate = if random.percent(95) { START_PSTATE } else { random.next() };
        word(core::mem::offset_of!(Mailbox, pstate), pstate);
        word(core::mem::offset_of!(Mailbox, lr_count), random.below(MAX_LIST_REGISTERS as u64 + 2));
        for n in 0..4 {
            let bits = [random.next(), random.below(1 << 10), 1 << 62 | random.below(16) << 48 | random.below(1 << 10)];
            word(core::mem::offset_of!(Mailbox, lr) + 8 * n, random.one_of(&bits));
        }
        cpu::set_deadline(Some(cpu::counter() + cpu::frequency() / RUN_FOR));
        let x = hvc(HostCall::VcpuRun.function(), [vm, vcpu, 0, 0, 0]);
        cpu::set_deadline(None);
        if (x[0] as i64) >= 0 {
            count(&self.counts.runs);
        }
        self.search(page);
    }

    /// A VM of the storm ends, as far as the other CPUs let it.
    fn bury(&self, random: &mut Random) {
        let known = self.known.lock().vms.clone();
        if !known.is_empty() {
            let vm = random.one_of(&known);
            self.end(vm, 600);
        }
    }

    /// Takes a VM down, as [`victim::end`]; whether it is gone.
    pub fn end(&self, vm: u64, tries: u32) -> bool {
        let gone = victim::end(vm, tries);
        if gone {
            self.known.lock().forget(vm);
        }
        gone
    }

    /// Looks for secrets in a page, if the host can read it.
    pub fn search(&self, page: u64) {
        if let Some((at, word)) = secret_in(page) {
            self.fail(alloc::format!("a secret of the VM is in the host's memory at {at:#x}: {word:#x}"));
        }
    }

    fn look(&self, random: &mut Random) {
        self.search(draw::arena(random, &self.places));
    }
}
