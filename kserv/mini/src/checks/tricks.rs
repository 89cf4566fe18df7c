//! Tricks with PSCI, SMC, processor states, entry points and alignment.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::mem::offset_of;

use corevisor_interface::calls::{CallError, HostCall, MAX_PAGES, VM_ORDINARY, VM_PROTECTED};
use corevisor_interface::guest::NOT_SUPPORTED;
use corevisor_interface::guest::psci::{AFFINITY_INFO, CPU_ON, CPU_SUSPEND};
use corevisor_interface::mailbox::{ENTRY_KEEP_REGISTERS, ExitReason, Mailbox, Register, START_PSTATE};
use kserv_model::layout::RAM_BASE;
use kserv_model::psci::result::OFF;

use super::drive::{Driven, run};
use super::stage::play;
use super::victim::forbidden;
use super::{Bare, Context, ensure, page};
use crate::arch::call::{Conduit, psci};
use crate::arch::entry::{try_read, try_write};
use crate::arch::{cpu, memory};
use crate::calls::{self, CoreInfo, page_state};
use crate::guest::{Failure, at};
use crate::pages::{self, BLOCK, PAGE};
use crate::scheduler;

/// PSCI's error for an entry point.
const INVALID_ADDRESS: u64 = -9_i64 as u64;
/// PSCI SYSTEM_SUSPEND, 64 bit: a VM has none.
const SYSTEM_SUSPEND: u64 = 0xc400_000e;
/// CPU_SUSPEND: a state in which the CPU begins anew.
const POWER_DOWN: u64 = 1 << 16;

/// PSCI by SMC, which is how the core's host calls it.
fn smc(function: u64, arguments: [u64; 3]) -> u64 {
    psci(Conduit::Smc, function, arguments)
}

/// Where no CPU of this host may ever begin: what is the core's, a VM's or nobody's, and what is no instruction's address.
fn bad_entries(private: u64, pool: u64) -> Vec<u64> {
    let mut list = forbidden();
    list.extend([private, private + 0x800, pool, u64::MAX, u64::MAX - 3, 1 << 63, 1 << 48]);
    let own = crate::arch::entry::image().start;
    list.extend([own + 2, own | 1 << 52]);
    list
}

/// Every way to name an entry point by PSCI, with a CPU that is off, one that is on, and this one: refused, and the CPU that is off stays so.
pub fn psci_entries(_: &Context<'_>) -> Result<String, Failure> {
    let vm = Bare::new(VM_PROTECTED, 8)?;
    let private = page()?;
    at("MapMemory", calls::map_memory(vm.id, RAM_BASE, private, 1, 0))?;
    let entries = bad_entries(private, vm.held[1].0);
    let (own, other) = (cpu::affinity(), scheduler::affinity_of(1).unwrap_or_default());
    play(move |_, cpu| {
        if cpu == 1 {
            scheduler::leave_cpu(Conduit::Smc);
        }
        Ok(())
    })?;
    let until = cpu::counter() + 5 * cpu::frequency();
    while smc(AFFINITY_INFO, [other, 0, 0]) != OFF {
        ensure(cpu::counter() < until, "a CPU that switched itself off is not off")?;
    }
    let mut count = 0;
    for entry in &entries {
        let calls = [
            (CPU_ON, [other, *entry, 1]),
            (CPU_ON, [own, *entry, 0]),
            (CPU_SUSPEND, [POWER_DOWN, *entry, 0]),
            (SYSTEM_SUSPEND, [*entry, 0, 0]),
        ];
        for (function, arguments) in calls {
            let status = smc(function, arguments);
            let only = function == CPU_ON && arguments[0] == other;
            let right = if only { status == INVALID_ADDRESS } else { (status as i64) < 0 };
            ensure(right, &alloc::format!("{function:#x} {arguments:x?} gives {:#x}", status))?;
            count += 1;
        }
        ensure(smc(AFFINITY_INFO, [other, 0, 0]) == OFF, "a CPU began where it may not")?;
    }
    for target in [u64::MAX, other | 0xff << 8, other | 1 << 32] {
        let status = smc(CPU_ON, [target, crate::arch::entry::image().start, 0]);
        ensure((status as i64) < 0, "a CPU that is not there was started")?;
        count += 1;
    }
    ensure(cpu::start(Conduit::Smc, other, 1) == 0, "the CPU does not start again")?;
    let until = cpu::counter() + 5 * cpu::frequency();
    while scheduler::online() < 2 {
        ensure(cpu::counter() < until, "the CPU was started again but does not come")?;
    }
    vm.end()?;
    super::returned(private)?;
    pages::give(private, 1);
    Ok(alloc::format!("{count} calls refused, {} entry points", entries.len()))
}

/// Numbers of SMCCC functions that end or change what runs, or that the firmware may answer: not for a sweep. PSCI, TRNG, SMCCC's own.
const fn is_known(function: u64) -> bool {
    matches!(function & 0x3fff_ffff, 0x0400_0000..=0x0400_001f | 0x0400_0050..=0x0400_0053)
        || matches!(function & 0x3fff_ffff, 0..=2 | 0x3fff | 0x7fff | 0x8000)
}

/// SMCs to every owner there can be, fast and yielding, 32 and 64 bit: none exists but those that are known.
pub fn smc_numbers(_: &Context<'_>) -> Result<String, Failure> {
    let mut count = 0_u64;
    for form in [0_u64, 1 << 30, 1 << 31, 3 << 30] {
        for owner in 0..64_u64 {
            for number in [0, 1, 2, 3, 8, 9, 0x3f, 0x60, 0x66, 0x100, 0x7fff, 0x8000, 0xff00, 0xff01, 0xff03, 0xffff] {
                let function = form | owner << 24 | number;
                if is_known(function) {
                    continue;
                }
                for argument in [0, u64::MAX] {
                    let x0 = smc(function, [argument; 3]);
                    ensure(x0 == NOT_SUPPORTED, &alloc::format!("SMC {function:#x} gives {x0:#x}"))?;
                    count += 1;
                }
            }
        }
    }
    Ok(alloc::format!("{count} SMCs do not exist"))
}

/// Processor states that are no VM's: EL2, EL3, AArch32, modes that are none, an illegal state, a single step, bits that nobody has.
const BAD_STATES: [u64; 14] = [
    0x3c9,
    0x3c8,
    0x3cd,
    0x3cc,
    0x3c1,
    0x3c6,
    0x3cf,
    0x1d3,
    0x1da,
    0x10,
    0x3c5 | 1 << 20,
    0x3c5 | 1 << 21,
    0x3c5 | 1 << 32,
    u64::MAX,
];

/// What the mailbox asks for at an entry.
fn ask(mailbox: u64, flags: u64, pc: u64, pstate: u64) {
    let words = [
        (offset_of!(Mailbox, entry_flags), flags),
        (offset_of!(Mailbox, pc), pc),
        (offset_of!(Mailbox, pstate), pstate),
    ];
    words.into_iter().for_each(|(offset, word)| _ = try_write(mailbox + offset as u64, word));
}

fn refused(what: &str, got: Result<ExitReason, CallError>, wanted: CallError) -> Result<(), Failure> {
    ensure(got == Err(wanted), &alloc::format!("{what}: {got:?}"))
}

/// Where and how vCPUs start: an ordinary VM's in no other state than the one, wherever its host wants; a protected one's nowhere else than it was signed for.
pub fn entries(context: &Context<'_>) -> Result<String, Failure> {
    let mut count = ordinary_entries()?;
    let driven = Driven::new(context)?;
    let (id, mailboxes) = (driven.guest.id, driven.mailboxes.clone());
    for pstate in BAD_STATES.into_iter().chain([0x3c0, 0x3c4, 5, 0]) {
        ask(mailboxes[0], 0, driven.entry, pstate);
        refused("a protected VM in another state", run(id, 0), CallError::InvalidParameter)?;
        count += 1;
    }
    let core = forbidden()[0];
    for pc in
        [0, RAM_BASE, driven.entry + 4, driven.entry + 1, driven.entry | 1 << 48, core, u64::MAX, driven.guest.ram.0]
    {
        ask(mailboxes[0], 0, pc, START_PSTATE);
        refused("a protected VM elsewhere", run(id, 0), CallError::InvalidParameter)?;
        count += 1;
    }
    ask(mailboxes[0], ENTRY_KEEP_REGISTERS, driven.entry, START_PSTATE);
    refused("a protected VM with registers of the host", run(id, 0), CallError::InvalidParameter)?;
    for (vcpu, mailbox) in mailboxes.iter().enumerate().skip(1) {
        ask(*mailbox, 0, driven.entry, START_PSTATE);
        refused("a vCPU that the VM has not started", run(id, vcpu as u64), CallError::WrongState)?;
        count += 1;
    }
    for register in 0..256 {
        let get = calls::get_register(id, 0, register);
        let set = calls::raw(HostCall::SetRegister, [id, 0, register, 0, 0]);
        ensure(get == Err(CallError::WrongState) && set == Err(CallError::WrongState), "a protected VM's register")?;
        count += 2;
    }
    // And so it is as it was.
    to_the_end(&driven)?;
    driven.end()?;
    Ok(alloc::format!("{count} entries and registers refused"))
}

fn to_the_end(driven: &Driven) -> Result<(), Failure> {
    let mut over = false;
    while !over {
        for vcpu in (0..driven.mailboxes.len()).filter(|vcpu| driven.is_on(*vcpu)) {
            driven.prepare(vcpu);
            let exit = run(driven.guest.id, vcpu as u64).map_err(|error| Failure::Call("VcpuRun", error))?;
            over |= driven.serve(vcpu, exit)?;
        }
    }
    driven.verdict().map(|_| ())
}

/// A vCPU of an ordinary VM starts in one state only, and its host gives it no other; wherever it starts, it leaves again.
fn ordinary_entries() -> Result<u64, Failure> {
    let mut count = 0;
    let places =
        [0, 1, RAM_BASE + 2, 0x0900_0000, 0x0801_0000, RAM_BASE + BLOCK, 1 << 36, 1 << 48, u64::MAX - 3, u64::MAX];
    for pc in places {
        let mut vm = Bare::new(VM_ORDINARY, 16)?;
        let mailbox = vm.vcpu(0)?;
        at("VerifyVm", calls::verify_vm(vm.id, 0))?;
        for pstate in BAD_STATES.into_iter().chain([0x3c0, 0x3c4, 5, 0]) {
            ask(mailbox, 0, pc, pstate);
            refused("an ordinary VM in another state", run(vm.id, 0), CallError::InvalidParameter)?;
            count += 1;
        }
        for pstate in BAD_STATES {
            let set = calls::raw(HostCall::SetRegister, [vm.id, 0, Register::Pstate as u64, pstate, 0]);
            ensure(
                set.map(|_| ()) == Err(CallError::InvalidParameter),
                &alloc::format!("the state {pstate:#x} was set"),
            )?;
            count += 1;
        }
        // EL0t, EL1t, EL1h, everything open.
        let state = [0, 4, 5][(pc >> 1) as usize % 3];
        at("SetRegister", calls::raw(HostCall::SetRegister, [vm.id, 0, Register::Pstate as u64, state, 0]))?;
        at("SetRegister", calls::raw(HostCall::SetRegister, [vm.id, 0, Register::Pc as u64, pc, 0]))?;
        for n in 0..4 {
            ask(mailbox, if n == 0 { ENTRY_KEEP_REGISTERS } else { 0 }, 0, 0);
            let exit = run(vm.id, 0);
            let fine = matches!(exit, Ok(ExitReason::Irq | ExitReason::MemoryFault | ExitReason::Timer));
            ensure(fine, &alloc::format!("a start at {pc:#x} in state {state:#x}: {exit:?}"))?;
        }
        vm.end()?;
    }
    Ok(count)
}

/// Blocks that are not aligned on one side or on both: all their pages are mapped, where they should be and nowhere else.
pub fn unaligned(context: &Context<'_>) -> Result<String, Failure> {
    let CoreInfo { ipa_bits, .. } = *context.info;
    ensure(ipa_bits >= 36, "VMs of this machine are too small")?;
    let ram = pages::take(3 * MAX_PAGES, BLOCK).ok_or(Failure::Memory(3 * BLOCK))?;
    let mut looked = 0;
    for kind in [VM_ORDINARY, VM_PROTECTED] {
        for (gpa_by, pa_by) in [(0, 0), (1, 0), (0, 1), (1, 1), (511, 511), (3, 500)] {
            let vm = Bare::new(kind, 16)?;
            let (gpa, pa) = (RAM_BASE + BLOCK + gpa_by * PAGE, ram + BLOCK / 2 + pa_by * PAGE + BLOCK / 2);
            let mut done = 0;
            while done < MAX_PAGES {
                let from = done * PAGE;
                done += at("MapMemory", calls::map_memory(vm.id, gpa + from, pa + from, MAX_PAGES - done, 0))?;
            }
            ensure(done == MAX_PAGES, "more was mapped than was asked for")?;
            for n in 0..MAX_PAGES {
                let (state, where_) = at("PageInfo", calls::page_info(vm.id, gpa + n * PAGE))?;
                let lent = kind == VM_ORDINARY;
                let right = if lent {
                    (state, where_) == (page_state::LENT, pa + n * PAGE)
                } else {
                    state == page_state::PRIVATE
                };
                ensure(right, &alloc::format!("page {n}, by {gpa_by} and {pa_by}: {state} at {where_:#x}"))?;
                ensure(try_read(pa + n * PAGE).is_ok() == lent, "the host reaches a page, or not, against what it is")?;
                looked += 1;
            }
            for beside in [gpa - PAGE, gpa + BLOCK] {
                ensure(
                    calls::page_info(vm.id, beside) == Ok((page_state::NOTHING, 0)),
                    "more is mapped than was asked for",
                )?;
            }
            for beside in [pa - PAGE, pa + BLOCK] {
                ensure(try_read(beside).is_ok(), "a page beside the block is gone")?;
            }
            if kind == VM_ORDINARY {
                memory::zero(ram, 3 * BLOCK);
            }
            vm.end()?;
        }
    }
    super::all_back(ram, 3 * BLOCK)?;
    pages::give(ram, 3 * MAX_PAGES);
    Ok(alloc::format!("12 blocks, {looked} pages looked at"))
}
