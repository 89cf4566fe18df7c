//! Checks of the core by name: `test=NAME` in `config`, `test=all` for all. One line for each that holds; the first that does not ends
//! the run with an error.
//!
//! | check           | holds if                                                                                    |
//! |-----------------|---------------------------------------------------------------------------------------------|
//! | `refused-calls` | each call with wrong arguments gets its named error, and nothing has changed                |
//! | `reclaim`       | memory of a protected VM is out of the host's reach, and comes back all zero                |
//! | `reach`         | what left this host, by any way, is reached by no load, store, atomic, DC ZVA or fetch of it |
//! | `walks`         | nor by tables of this host that stand in it                                                 |
//! | `stale-tlb`     | the same for other CPUs that use a page while it leaves; only by its name, with 2 CPUs or more |
//! | `unaligned`     | blocks that are not aligned on one side or both become pages, all where they should be      |
//! | `read-only`     | a VM never writes into a page that is lent read-only                                        |
//! | `seed`          | the device tree with the seed that the boot loader gave the core is nowhere in this host's memory; only by its name |
//! | `smc-numbers`   | SMCs that nobody knows do not exist                                                         |
//! | `lifecycle`     | VMs start, run and go, `rounds=N` times (default 20), and every page comes back each time   |
//! | `many`          | as many VMs as there are numbers for (or `vms=N`) live at the same time, and all end        |
//! | the races       | as `races/mod.rs` says of each: `run-and-destroy`, `power-off`, `fault-and-reclaim`, `fault-and-off`, `unmap-and-run`, `share-and-touch`, `resolvers`; only by name, with 2 CPUs or more |
//! | `psci-entries`  | no CPU starts where it is not the host's; only by its name, with 2 CPUs                     |
//! | `entries`       | vCPUs start in no other state, and a protected VM's nowhere else; as `canaries`            |
//! | `canaries`      | after each kind of exit nothing that this host reads has a secret in it, and what it lies with reaches no register; wants --vm guest:canary --vcpus 2 --protected; only by its name |
//! | `sweep`         | no system register of this host has what a VM wrote into every one that there may be; wants --vm guest:sweep --protected; only by its name |
//! | `mailbox`       | the same VM finds all as it left it while other CPUs write anything into its mailboxes; the same, with 2 CPUs or more |
//! | `limits`        | every call with every argument at its limits and with addresses of everybody, in every state of a VM: a result or a named error, nothing lost; needs a VM; only by its name |
//! | `storm`         | random calls and accesses of all CPUs at once get nowhere (`seed=N`, `rounds=N`); needs a VM; only by its name |
//! | `snapshot`      | protected VMs are sealed, destroyed and go on, and nothing that was changed comes in; asked for by its name, with such VMs |
//! | `dma`           | a device that does what this host tells it reaches what this host reaches, and no more; wants a PCI device of QEMU's (edu) and --vm guest:bait --protected; only by its name |
//! | `gic`           | tables and queues that this host gives its own GICv3 are its own or not used, and what is used leaves it no more; wants --vm guest:keeper --protected, and 2 CPUs or more; only by its name |
//! | `digests`       | images are digested by the CPU's instructions and without them, with the same verdict, and no register of this host changes; wants the core's test build and --protected; only by its name |
//! | `reset`         | memory of a protected VM and its pool are zero after a reset, which this host makes and lives twice for; only by its name |
//! | `costs`         | always: it prints what calls take, for scripts/bench; only if asked for by its name         |
#![forbid(unsafe_code)]

mod canaries;
mod costs;
mod digests;
mod dma;
mod drive;
mod gic;
mod life;
mod limits;
mod races;
mod reach;
mod refused;
mod reset;
mod seed;
mod snapshot;
mod stage;
mod storm;
mod sweep;
mod tricks;
mod victim;

use alloc::string::String;
use alloc::vec::Vec;

use corevisor_interface::calls::{CallError, VM_ORDINARY};
use kserv_model::archive::Archive;
use kserv_model::layout::FLAT_BASE;

use crate::arch::cpu;
use crate::arch::entry::try_read;
use crate::arch::memory;
use crate::calls::{self, CoreInfo};
use crate::guest::{Failure, Image, Plan, at};
use crate::machine::Machine;
use crate::pages::{self, PAGE};
use crate::say;
use crate::session::Wishes;

/// What a check gets.
struct Context<'a> {
    wishes: &'a Wishes<'a>,
    archive: Archive<'a>,
    info: &'a CoreInfo,
    machine: &'a Machine,
}

type Check = fn(&Context<'_>) -> Result<String, Failure>;

const CHECKS: &[(&str, Check)] = &[
    ("refused-calls", refused::calls),
    ("reclaim", life::reclaim),
    ("reach", reach::refused),
    ("walks", reach::walked),
    ("stale-tlb", reach::stale),
    ("unaligned", tricks::unaligned),
    ("read-only", races::read_only),
    ("seed", seed::seed),
    ("smc-numbers", tricks::smc_numbers),
    ("lifecycle", life::lifecycle),
    ("many", life::many),
    ("limits", limits::limits),
    ("run-and-destroy", races::run_and_destroy),
    ("power-off", races::power_off),
    ("fault-and-reclaim", races::fault_and_reclaim),
    ("fault-and-off", races::fault_and_off),
    ("unmap-and-run", races::unmap_and_run),
    ("resolvers", races::resolvers),
    ("share-and-touch", races::share_and_touch),
    ("psci-entries", tricks::psci_entries),
    ("entries", tricks::entries),
    ("canaries", canaries::canaries),
    ("mailbox", canaries::mailbox),
    ("sweep", sweep::sweep),
    ("storm", storm::storm),
    ("snapshot", snapshot::snapshot),
    ("dma", dma::dma),
    ("gic", gic::gic),
    ("digests", digests::digests),
    ("reset", reset::reset),
    ("costs", costs::costs),
];

/// Checks that `all` leaves out: they need something (a VM, two CPUs), or check nothing.
const ONLY_BY_NAME: &[&str] = &[
    "stale-tlb",
    "seed",
    "limits",
    "run-and-destroy",
    "power-off",
    "fault-and-reclaim",
    "fault-and-off",
    "unmap-and-run",
    "resolvers",
    "share-and-touch",
    "psci-entries",
    "entries",
    "canaries",
    "mailbox",
    "sweep",
    "storm",
    "snapshot",
    "dma",
    "gic",
    "digests",
    "reset",
    "costs",
];

/// The smallest guest: one character to the serial port, then PSCI SYSTEM_OFF.
const TINY: [u32; 7] = [
    0xd2a1_2001, // movz x1, #0x0900, lsl #16
    0x5280_0422, // movz w2, #'!'
    0xb900_0022, // str w2, [x1]
    0xd2b0_8000, // movz x0, #0x8400, lsl #16
    0xf280_0100, // movk x0, #8
    0xd400_0002, // hvc #0
    0x1400_0000, // b .
];

/// Does the checks that are asked for.
///
/// # Errors
/// The first that does not hold.
pub fn run(wishes: &Wishes<'_>, archive: Archive<'_>, info: &CoreInfo, machine: &Machine) -> Result<(), Failure> {
    let context = Context { wishes, archive, info, machine };
    let asked: Vec<&str> =
        wishes.options.iter().filter(|(key, _)| *key == "test").filter_map(|(_, value)| *value).collect();
    if let Some(unknown) = asked.iter().find(|name| **name != "all" && CHECKS.iter().all(|(known, _)| known != *name)) {
        return Err(Failure::Text(alloc::format!("there is no test {unknown}")));
    }
    for (name, check) in CHECKS
        .iter()
        .filter(|(name, _)| asked.iter().any(|asked| *asked == "all" && !ONLY_BY_NAME.contains(name) || asked == name))
    {
        let free = pages::free_bytes();
        let said = check(&context).map_err(|failure| Failure::Text(alloc::format!("test {name}: {failure}")))?;
        if pages::free_bytes() != free {
            return Err(Failure::Text(alloc::format!("test {name}: this host's own memory leaks")));
        }
        say!("test {name}: ok, {said}");
    }
    Ok(())
}

fn tiny_bytes() -> Vec<u8> {
    TINY.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// An ordinary VM with the smallest guest.
fn tiny<'a>(name: &'a str, code: &'a [u8]) -> Plan<'a> {
    Plan {
        name,
        manifest: None,
        vcpus: 1,
        memory: 1 << 20,
        images: alloc::vec![Image { gpa: FLAT_BASE, bytes: code }],
        entry: FLAT_BASE,
        x0: 0,
        raw_console: false,
    }
}

/// A VM that only exists: for calls about it.
struct Bare {
    id: u64,
    /// Pages that the core has: start, number.
    held: Vec<(u64, u64)>,
    mailboxes: Vec<u64>,
}

impl Bare {
    /// State READY, with a pool of `pool` pages.
    fn new(kind: u64, pool: u64) -> Result<Self, Failure> {
        let root = page()?;
        let mut vm = Self::with_root(kind, root).inspect_err(|_| pages::give(root, 1))?;
        vm.held.push((root, 1));
        let pa = pages::take_top(pool, PAGE).ok_or(Failure::Memory(pool * PAGE))?;
        vm.held.push((pa, pool));
        let given = at("DonatePool", calls::donate_pool(vm.id, pa, pool))?;
        if given != pool {
            return Err(Failure::Text(alloc::format!("DonatePool took {given} of {pool} pages")));
        }
        Ok(vm)
    }

    /// State READY, with the caller's page as its root, and no pool.
    fn with_root(kind: u64, root: u64) -> Result<Self, Failure> {
        let id = at("RegisterVm", calls::register_vm(kind, 36, root))?;
        Ok(Self { id, held: Vec::new(), mailboxes: Vec::new() })
    }

    /// An ordinary one in state VERIFIED with vCPU 0.
    fn ready() -> Result<Self, Failure> {
        let mut vm = Self::new(VM_ORDINARY, 16)?;
        vm.vcpu(0)?;
        at("VerifyVm", calls::verify_vm(vm.id, 0))?;
        Ok(vm)
    }

    fn vcpu(&mut self, vcpu: u64) -> Result<u64, Failure> {
        let mailbox = page()?;
        memory::zero(mailbox, PAGE);
        self.mailboxes.push(mailbox);
        at("RegisterVcpu", calls::register_vcpu(self.id, vcpu, mailbox))?;
        Ok(mailbox)
    }

    /// Destroys it: pages that ReclaimVm gave. All that it had must be readable and zero then.
    fn end(self) -> Result<u64, Failure> {
        self.end_timed().map(|(taken, _)| taken)
    }

    /// The same, and ticks that ReclaimVm took.
    fn end_timed(self) -> Result<(u64, u64), Failure> {
        at("PowerOffVm", calls::power_off_vm(self.id))?;
        let (mut taken, start) = (0, cpu::counter());
        loop {
            match at("ReclaimVm", calls::reclaim_vm(self.id))? {
                0 => break,
                pages => taken += pages,
            }
        }
        let ticks = cpu::counter() - start;
        loop {
            match calls::destroy_vm(self.id) {
                Err(CallError::Again) => {}
                other => break at("DestroyVm", other)?,
            }
        }
        for (pa, count) in self.held {
            (0..count).try_for_each(|n| returned(pa + n * PAGE))?;
            pages::give(pa, count);
        }
        self.mailboxes.into_iter().for_each(|pa| pages::give(pa, 1));
        Ok((taken, ticks))
    }
}

fn page() -> Result<u64, Failure> {
    pages::take_top(1, PAGE).ok_or(Failure::Memory(PAGE))
}

/// The page is the host's again, and zero.
fn returned(pa: u64) -> Result<(), Failure> {
    match try_read(pa) {
        Err(abort) => Err(Failure::Text(alloc::format!("the page at {pa:#x} is not back: ESR {:#x}", abort.esr))),
        Ok(_) if memory::is_zero(pa) => Ok(()),
        Ok(_) => Err(Failure::Text(alloc::format!("the page at {pa:#x} came back with something in it"))),
    }
}

/// Every page of `size` bytes from `start` on is the host's.
fn all_back(start: u64, size: u64) -> Result<(), Failure> {
    let lost = (start..start + size).step_by(PAGE as usize).filter(|page| try_read(*page).is_err()).count();
    ensure(lost == 0, &alloc::format!("{lost} of the attacker's pages did not come back"))
}

/// Names what is wrong if `holds` is false.
fn ensure(holds: bool, what: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::Text(what.into())) }
}
