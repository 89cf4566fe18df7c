//! Digests of images, with the core's test build (`src/platform/failure.rs`): by the CPU's instructions and without them, on a host whose registers are all full.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;

use corevisor_interface::calls::CallError;
use kserv_model::random::Random;

use super::{Context, ensure};
use crate::arch::call::hvc;
use crate::arch::registers;
use crate::guest::{Failure, Guest, Image, Plan};
use crate::scheduler;
use crate::session::plan;

/// The call of the core's test build, and what of it is asked for here.
const TEST_HOOK: u64 = 0xc600_8fff;
/// So many messages, from a seed, by instructions and by software.
const COMPARE_DIGESTS: u64 = 10;
/// Whether instructions are used from now on.
const FORGO_INSTRUCTIONS: u64 = 11;

const MESSAGES: u64 = 2000;
/// VMs that are as signed, and as many that are not, for each way.
const VMS: u64 = 2;

fn ask(what: u64, arguments: [u64; 2]) {
    hvc(TEST_HOOK, [what, arguments[0], arguments[1], 0, 0]);
}

/// What the core says of a VM of these images; every page of it is back afterwards.
fn verdict(context: &Context<'_>, plan: &Plan<'_>) -> Result<(), Failure> {
    let guest = Guest::make(plan, context.info, scheduler::cpus_for(plan.vcpus))?;
    let account = guest.destroy()?;
    ensure(account.given == account.back, "not all pages came back")
}

/// The same, with one bit of one image another one.
fn verdict_changed(context: &Context<'_>, plan: &Plan<'_>, random: &mut Random) -> Result<(), Failure> {
    let n = random.below(plan.images.len() as u64) as usize;
    let mut bytes = plan.images[n].bytes.to_vec();
    let bit = random.below(8 * bytes.len() as u64) as usize;
    bytes[bit / 8] ^= 1 << (bit % 8);
    let mut images: Vec<Image<'_>> = plan.images.clone();
    images[n].bytes = &bytes;
    verdict(context, &Plan { images, ..plan.clone() })
}

/// Instructions and software make the same of every message; each accepts the VM as it was signed and refuses it with any bit changed; and whatever this host has in its registers
/// meanwhile, in streaming mode or out of it, is there afterwards.
pub fn digests(context: &Context<'_>) -> Result<String, Failure> {
    let vm = context.wishes.vms.first().ok_or_else(|| Failure::Text("a VM is wanted".into()))?;
    let plan = plan(vm, context.archive, false)?;
    ensure(plan.manifest.is_some(), "a protected VM is wanted")?;
    let seed = context.wishes.number("seed").unwrap_or(1);
    let mut random = Random::new(seed);
    ask(COMPARE_DIGESTS, [seed, MESSAGES]);
    registers::fill();
    for forgone in [0, 1, 0] {
        ask(FORGO_INSTRUCTIONS, [forgone, 0]);
        for _ in 0..VMS {
            verdict(context, &plan)?;
            let changed = verdict_changed(context, &plan, &mut random);
            let refused = changed == Err(Failure::Call("VerifyVm", CallError::NotAuthentic));
            ensure(refused, &alloc::format!("seed {seed}: a changed image: {changed:?}"))?;
        }
    }
    Ok(alloc::format!(
        "{} VMs accepted and as many refused, {} calls with every register full, in streaming mode: {}",
        3 * VMS,
        registers::switches(),
        registers::streaming_switches()
    ))
}
