//! When the core itself is wrong: say all that is known, and stop every CPU. Nothing here returns, and no lock is given
//! back (K §8.2 D1).

use core::fmt::Write;
use core::panic::PanicInfo;

use aarch64_cpu::registers::{CurrentEL, ELR_EL2, ESR_EL2, FAR_EL2, HPFAR_EL2, Readable, SPSR_EL2};

use super::entry;
use super::logger::{self, PanicWriter};
use crate::abstract_machine::addr::Pa;
use crate::abstract_machine::cpu::{self, halt};
use crate::abstract_machine::per_cpu::Event;
use crate::abstract_machine::regs::TrapFrame;

/// Frames of a backtrace at most.
const MAX_FRAMES: usize = 24;

/// What stands for a vector when something came to EL3 on a board that left that level to the core (boot/entry.S).
pub const CORE_EL3: u32 = 16;

/// Kind of an SError at the core's own level: the number of its vector.
pub const CORE_SERROR: u32 = 7;

/// In place of x0 to x30, where some of them may be a VM's, or hold what is secret.
const NOT_SHOWN: &str = "registers: not shown";

/// An assertion of the core did not hold.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    let frame_pointer: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) frame_pointer, options(nomem, nostack, preserves_flags)) };
    report(|out| {
        let _ = writeln!(out, "panic: {}", info.message());
        if let Some(at) = info.location() {
            let _ = writeln!(out, "  at {}:{}", at.file(), at.line());
        }
        backtrace(out, None, frame_pointer);
    })
}

/// The core itself trapped: boot/vectors.S comes here on the CPU's emergency stack.
pub extern "C" fn core_trapped(frame: &TrapFrame, kind: u32) -> ! {
    const KINDS: [&str; 4] = ["synchronous exception", "IRQ", "FIQ", "SError"];
    let what = KINDS.get(kind as usize & 3).copied().unwrap_or("trap");
    if kind == CORE_EL3 {
        // It may have been the host or a VM: their registers are not shown.
        report(|out| {
            let _ = writeln!(out, "trap to EL3: ESR_EL3 {:#x}  SPSR_EL3 {:#x}", ESR_EL2.get(), SPSR_EL2.get());
        });
    }
    report(|out| {
        let _ = writeln!(out, "{what} in the core (vector {kind})");
        let _ = writeln!(
            out,
            "  ESR_EL2 {:#x}  FAR_EL2 {:#x}  SPSR_EL2 {:#x}",
            ESR_EL2.get(),
            FAR_EL2.get(),
            SPSR_EL2.get()
        );
        let _ = writeln!(out, "  pc {:#x}  sp {:#x}", ELR_EL2.get(), frame.sp);
        // The host may have caused it, for whatever moment: amid a seal of a VM's memory, or while x29 is its own.
        let is_anywhere = kind == CORE_SERROR;
        if cpu::has_vm() {
            let _ = writeln!(out, "  {NOT_SHOWN}, a VM is on this CPU");
        } else if is_anywhere {
            let _ = writeln!(out, "  {NOT_SHOWN}, an SError comes at any place");
        } else {
            show_registers(out, frame);
        }
        backtrace(out, Some(ELR_EL2.get()), if is_anywhere { 0 } else { frame.x[29] });
    })
}

/// The general registers, two a line.
fn show_registers(out: &mut dyn Write, frame: &TrapFrame) {
    for (n, pair) in frame.x.chunks(2).enumerate() {
        let (first, second) = (pair.first().copied().unwrap_or(0), pair.get(1).copied());
        let _ = match second {
            Some(second) => writeln!(out, "  x{:<2} {first:#018x}  x{:<2} {second:#018x}", 2 * n, 2 * n + 1),
            None => writeln!(out, "  x{:<2} {first:#018x}", 2 * n),
        };
    }
}

/// A physical interrupt came to EL2, although they are the host's.
pub extern "C" fn unexpected_interrupt(_: &TrapFrame) {
    panic!("a physical interrupt was taken to EL2");
}

/// EL1 trapped although there is no host yet.
pub extern "C" fn unexpected_trap(_: &TrapFrame) {
    panic!("a trap of EL1, syndrome {:#x}, host IPA {:#x}", ESR_EL2.get(), HPFAR_EL2.get() << 8);
}

fn report(text: impl FnOnce(&mut PanicWriter<'_>)) -> ! {
    if !halt::begin() {
        // Another CPU reports already, or this report failed itself.
        halt::stay();
    }
    // First: a console that has no clock any more, because the host switched it off, may hold this CPU for ever.
    halt::stop_others();
    let mut out = logger::panic_writer();
    let cpu = cpu::this().map_or(0, |data| data.cpu.index());
    let _ = writeln!(out, "FATAL on CPU {cpu} at EL{}", CurrentEL.get() >> 2);
    text(&mut out);
    for event in Event::ALL {
        let count: u64 = cpu::all().iter().map(|data| data.counted(event)).sum();
        let _ = writeln!(out, "  {}: {count}", event.name());
    }
    let _ = writeln!(out, "all CPUs stopped; nothing of this machine runs any more");
    halt::stay()
}

/// Addresses as offsets into the image, so that `scripts/symbolize` can name them: the place of the trap, then the chain
/// of frame records (x29, x30).
fn backtrace(out: &mut PanicWriter<'_>, pc: Option<u64>, mut frame_pointer: u64) {
    let layout = entry::image_layout();
    let base = layout.text.base().raw();
    let _ = write!(out, "backtrace (scripts/symbolize names these):");
    if let Some(pc) = pc {
        let _ = write!(out, " {:#x}", pc.wrapping_sub(base));
    }
    // Those of a CPU's own need not lie in the core's block.
    let stacks = cpu::this().map_or(0..0, |data| data.stacks());
    for _ in 0..MAX_FRAMES {
        let in_stack = |at: u64| layout.data.contains(Pa::new(at)) || stacks.contains(&at);
        if frame_pointer & 7 != 0 || !in_stack(frame_pointer) || !in_stack(frame_pointer + 15) {
            break;
        }
        // SAFETY: 16 aligned bytes of the core's own data or this CPU's stacks, which are mapped; the boot stack's guard page would trap, and
        // the second report stays silent.
        let [next, link] = unsafe { (frame_pointer as *const [u64; 2]).read_volatile() };
        let _ = write!(out, " {:#x}", link.wrapping_sub(base));
        frame_pointer = next;
    }
    let _ = writeln!(out);
}

/// Failures that a test can ask for: HVC with this number in x0 and the kind of failure in x1.
#[cfg(feature = "test-hooks")]
pub mod provoke {
    use aarch64_cpu::asm::barrier;
    use aarch64_cpu::registers::{
        ELR_EL2, ESR_EL2, HCR_EL2, Readable, SP, SPSR_EL2, TPIDR_EL0, TPIDRRO_EL0, TTBR0_EL1, Writeable,
    };

    use core::sync::atomic::{AtomicU64, Ordering};

    use super::entry;
    use crate::abstract_machine::addr::{VcpuId, VmId};
    use crate::abstract_machine::cpu::{self, Cpu, digest::target_tests, el2};
    use crate::abstract_machine::regs::{Hypercall, TrapFrame};
    use crate::abstract_machine::{Machine, Worlds};
    use crate::interface::HostCall;
    use crate::memory::{Memory, oracle};

    /// ESR_EL2 of an SError: class 0x2f, IL, ISS 0x11 (as a CPU with FEAT_RAS tells it: asynchronous).
    const SERROR: u64 = 0xbe00_0011;

    /// Far from the numbers of the interface.
    const FAIL: u64 = 0xc600_8fff;
    /// The kind of failure that the oracle is to find.
    const FOR_THE_ORACLE: u64 = 7;

    static JUDGED: AtomicU64 = AtomicU64::new(0);

    /// After a call of the host: whether records and tables agree. Out of line: what it needs of the stack, a call that checks a signature has no room for. Not after VcpuRun, of which there are too many, and not after those that only tell something.
    #[inline(never)]
    pub fn judge<M: Machine>(mem: &Memory<M>, asked: &[u64; 2]) {
        use HostCall::{CoreLogRead, CoreStatistics, GetRegister, PageInfo, PoolInfo, VcpuRun, VmInfo};
        if let Some(VcpuRun | CoreStatistics | CoreLogRead | GetRegister | PageInfo | PoolInfo | VmInfo) =
            HostCall::from_function(asked[0])
        {
            return;
        }
        if *asked == [FAIL, FOR_THE_ORACLE] {
            oracle::plant(mem);
        }
        if let Err(broken) = oracle::check(mem) {
            panic!("oracle: {broken:x?}");
        }
        JUDGED.fetch_add(1, Ordering::Relaxed);
    }

    /// After how many calls.
    pub fn judged() -> u64 {
        JUDGED.load(Ordering::Relaxed)
    }

    /// Fails as the call asks for; returns if it does not ask.
    pub fn if_asked([call, kind, first, second, ..]: &Hypercall) {
        if *call != FAIL {
            return;
        }
        let layout = entry::image_layout();
        match *kind {
            0 => panic!("asked for by a test"),
            // Each is the error that the test wants to see caught.
            1 => touch(layout.text.base().raw(), true),
            2 => touch(layout.stack_guard.base().raw(), false),
            3 => jump(layout.data.base().raw()),
            4 => drop(deeper(0)),
            5 => serror(),
            6 => {
                ESR_EL2.set(SERROR);
                super::super::boot::trap_lower_serror(&mut TrapFrame { x: [0; 31], sp: 0 });
            }
            FOR_THE_ORACLE => {}
            8 => translate_through_nothing(),
            12 => vms_serror(),
            13 => {
                Cpu.set_per_cpu(VmId::new(1), VcpuId::new(0));
                serror();
            }
            10 => target_tests::compare(*first, *second),
            11 => target_tests::forgo(*first != 0),
            // SAFETY: SMC, which nobody answers: entered at EL3, the report is the test.
            9 => unsafe { core::arch::asm!(".inst 0xd4000003") },
            address => jump(address),
        }
    }

    // Never inlined: the report of the test must name it, whatever the optimizer makes of its caller.
    #[inline(never)]
    fn touch(at: u64, write: bool) {
        let at = at as *mut u64;
        // SAFETY: it is not safe; the access must trap, and the trap is the test.
        unsafe {
            if write {
                at.write_volatile(0);
            } else {
                at.read_volatile();
            }
        }
    }

    /// What hardware does for an SError at EL2, done by hand, for QEMU has none: the core's own vector must be the one.
    #[inline(never)]
    fn serror() {
        // SAFETY: it is not safe; the report is the test.
        unsafe {
            core::arch::asm!(
                "adr {pc}, .", "msr elr_el2, {pc}", "msr spsr_el2, {pstate}", "msr esr_el2, {esr}", "mrs {pc}, vbar_el2",
                "add {pc}, {pc}, #0x380", "br {pc}",
                pc = out(reg) _, pstate = in(reg) 0x2c9_u64, esr = in(reg) SERROR
            );
        }
    }

    /// The same for the SError that a VM left behind, at the two places where hardware may take it (boot/switch.S: take_serror): the core goes on, and the registers of EL1 stay
    /// as they are.
    fn vms_serror() {
        let (elr, spsr) = (ELR_EL2.get(), SPSR_EL2.get());
        let threads = [TPIDR_EL0.get(), TPIDRRO_EL0.get()];
        for behind in [0_u64, 4] {
            // SAFETY: the core's own vector, which comes back to the window, and that by x30 to here; PSTATE is put back.
            unsafe {
                core::arch::asm!(
                    "mrs {masks}, daif", "mrs x9, tpidr_el0", "mrs x10, tpidrro_el0",
                    "adr {pc}, serror_at", "add {pc}, {pc}, {behind}", "msr elr_el2, {pc}", "msr spsr_el2, {pstate}", "msr esr_el2, {esr}",
                    "mrs {pc}, vbar_el2", "add {pc}, {pc}, #0x380", "adr x30, 2f", "br {pc}",
                    "2:", "msr daif, {masks}",
                    masks = out(reg) _, pc = out(reg) _, behind = in(reg) behind, pstate = in(reg) 0x2c9_u64, esr = in(reg) SERROR,
                    out("x0") _, out("x1") _, out("x9") _, out("x10") _, out("x30") _
                );
            }
            assert!(threads == [TPIDR_EL0.get(), TPIDRRO_EL0.get()], "registers of EL1 have changed");
        }
        ELR_EL2.set(elr);
        SPSR_EL2.set(spsr);
        log::warn!("an SError where a VM's is expected is taken there");
    }

    /// The core translates an address of EL1 by tables where no memory is, which QEMU answers as hardware may: by an exception of AT itself. The registers of EL1 stay
    /// as they are.
    fn translate_through_nothing() {
        /// QEMU's virt has nothing there.
        const NOTHING: u64 = 0x0f00_0000;
        let (ttbr0, hcr, elr, spsr) = (TTBR0_EL1.get(), HCR_EL2.get(), ELR_EL2.get(), SPSR_EL2.get());
        let threads = [TPIDR_EL0.get(), TPIDRRO_EL0.get()];
        TTBR0_EL1.set(NOTHING);
        el2::write_hcr(hcr & !HCR_EL2::VM::Enable.value);
        let found = cpu::translate_stage1(0x1000);
        let trapped = ELR_EL2.get() != elr;
        TTBR0_EL1.set(ttbr0);
        el2::write_hcr(hcr);
        ELR_EL2.set(elr);
        SPSR_EL2.set(spsr);
        barrier::isb(barrier::SY);
        cpu::maintenance::flush_all_local();
        assert!(trapped, "the translation should have trapped");
        assert!(found.is_none(), "a translation through nothing: {found:?}");
        assert!(threads == [TPIDR_EL0.get(), TPIDRRO_EL0.get()], "registers of EL1 have changed");
        log::warn!("a translation that trapped is one that failed");
    }

    fn jump(at: u64) {
        // SAFETY: it is not safe; the fetch must trap, and the trap is the test.
        unsafe { core::mem::transmute::<usize, extern "C" fn()>(at as usize)() };
    }

    #[expect(unconditional_recursion, reason = "the stack must run into its guard page")]
    fn deeper(depth: u64) -> u64 {
        let here = [depth; 32];
        deeper(core::hint::black_box(here)[7] + SP.get())
    }
}
