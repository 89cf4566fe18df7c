//! What leaving the VM costs, by the virtual counter and by marks of scripts/qemu-plugin: for `scripts/bench`. Everything happens with
//! interrupts masked: an interrupt is acknowledged where it is waited for.
//!
//! A line `row NAME TICKS/ROUNDS` is the least of some batches, less an empty loop; marks 2n and 2n + 1 stand around every batch of row n,
//! the empty loop is row 0.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use core::arch::asm;
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use corevisor_guests::{arch, calls, fail, gic, mrs, msr, say, tree::Tree};

    /// Rounds of a batch; batches.
    const ROUNDS: u64 = 32;
    const BATCHES: u64 = 4;
    /// Memory that ends amid a block (17 MiB), so that the host gives it page by page.
    const PAGES: u64 = 0x4100_0000;
    /// Whole blocks.
    const BLOCKS: u64 = 0x4040_0000;
    const PAGE: u64 = 4096;
    const BLOCK: u64 = 2 << 20;
    const NOTHING: u32 = 1020;
    /// Bits of an interrupt's number.
    const NUMBER: u32 = 0x3ff;

    /// vCPU 1: interrupts taken, and 1 when it is there.
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    static READY: AtomicU64 = AtomicU64::new(0);

    /// Times batches of `$op` between marks: ticks of the least. `$op` gets a number that counts on.
    macro_rules! batches {
        ($row:literal, $batches:expr, $rounds:expr, $op:expr) => {{
            let mut least = u64::MAX;
            let mut number = 0_u64;
            for _ in 0..$batches {
                // SAFETY: an instruction that does nothing: movz xzr, #(0xcb00 + n).
                unsafe { asm!(".inst 0xd299601f + ({n} << 5)", n = const 2 * $row, options(nostack)) };
                let start = mrs!("cntvct_el0");
                for _ in 0..$rounds {
                    $op(number);
                    number += 1;
                }
                let ticks = mrs!("cntvct_el0") - start;
                // SAFETY: as above.
                unsafe { asm!(".inst 0xd299601f + ({n} << 5)", n = const 2 * $row + 1, options(nostack)) };
                least = least.min(ticks);
            }
            least
        }};
    }

    fn row(name: &str, ticks: u64, rounds: u64) {
        say!("row {name} {ticks}/{rounds}");
    }

    pub fn run(vcpu: u64, dtb: u64) -> ! {
        if vcpu == 0 { first(dtb) } else { other() }
    }

    /// A call that changes x0 only, as the core promises.
    #[inline(always)]
    fn call(function: u64) {
        // SAFETY: the calls made here change x0 and no memory.
        unsafe { asm!("hvc #0", inout("x0") function => _, in("x1") 0, in("x2") 0, options(nostack)) };
    }

    /// Acknowledges the next interrupt, which is waited for.
    #[inline(always)]
    fn take(by_turns: bool) -> u32 {
        loop {
            let acknowledged = gic::acknowledge();
            if acknowledged & NUMBER < NOTHING {
                return acknowledged;
            }
            if by_turns {
                // All CPUs run in one thread under -icount: this gives the other one its turn.
                // SAFETY: changes nothing.
                unsafe { asm!("yield", options(nostack)) };
            }
        }
    }

    /// Ticks from the virtual timer's deadline until its interrupt is acknowledged.
    fn timer(ahead: u64, wait: bool) -> u64 {
        let at = mrs!("cntvct_el0") + ahead;
        msr!("cntv_cval_el0", at);
        msr!("cntv_ctl_el0", 1);
        if wait {
            arch::wait();
        }
        let number = take(false);
        let now = mrs!("cntvct_el0");
        msr!("cntv_ctl_el0", 0);
        gic::end(number);
        if number != gic::TIMER {
            fail!("interrupt {number} in place of the timer's");
        }
        now - at
    }

    /// vCPU 1 counts interrupts.
    fn other() -> ! {
        gic::start_vcpu();
        READY.store(1, SeqCst);
        loop {
            let number = take(true);
            TAKEN.store(TAKEN.load(SeqCst) + 1, SeqCst);
            gic::end(number);
        }
    }

    fn until(counter: &AtomicU64, value: u64) {
        while counter.load(SeqCst) != value {
            // SAFETY: changes nothing.
            unsafe { asm!("yield", options(nostack)) };
        }
    }

    fn first(dtb: u64) -> ! {
        let Some(tree) = Tree::at(dtb) else { fail!("no device tree") };
        gic::start(tree.has("arm,gic-v3"));
        gic::start_vcpu();
        say!("frequency {}", mrs!("cntfrq_el0"));
        // SAFETY: no instruction at all.
        let empty = batches!(0, BATCHES, ROUNDS, |_| unsafe { asm!("", options(nostack)) });
        row("empty", empty, ROUNDS);
        let net = |ticks: u64| ticks.saturating_sub(empty);

        let ticks = batches!(1, BATCHES, ROUNDS, |_| call(0x8400_0000));
        row("psci_version", net(ticks), ROUNDS);
        let ticks = batches!(2, BATCHES, ROUNDS, |_| mrs!("id_aa64pfr0_el1"));
        row("id_register", net(ticks), ROUNDS);
        let ticks = batches!(3, BATCHES, ROUNDS, |_| call(0xc400_0004));
        row("affinity_info", net(ticks), ROUNDS);
        let ticks = batches!(4, BATCHES, ROUNDS, |_| mrs!("cntp_ctl_el0"));
        row("host_register", net(ticks), ROUNDS);
        let ticks = batches!(5, BATCHES, ROUNDS, |_| arch::read32(0x0800_0000));
        row("gicd", net(ticks), ROUNDS);
        let ticks = batches!(6, BATCHES, ROUNDS, |_| arch::read32(0x0900_0018));
        row("pl011", net(ticks), ROUNDS);
        let ticks = batches!(7, BATCHES, ROUNDS, |_| {
            gic::send_sgi(0);
            let number = take(false);
            gic::end(number);
        });
        row("sgi_self", net(ticks), ROUNDS);

        let least = |ahead, wait| (0..BATCHES).map(|_| (0..ROUNDS).map(|_| timer(ahead, wait)).sum::<u64>()).min();
        row("timer_polling", least(20_000, false).unwrap_or(0), ROUNDS);
        row("timer_wfi", least(100_000, true).unwrap_or(0), ROUNDS);

        // SAFETY: behind all that the linker placed.
        let ticks = batches!(8, BATCHES, ROUNDS, |n| unsafe { arch::write64(PAGES + PAGE * n, n) });
        row("touch_page", net(ticks), ROUNDS);
        // SAFETY: as above.
        let ticks = batches!(9, BATCHES, 1, |n| unsafe { arch::write64(BLOCKS + BLOCK * n, n) });
        row("touch_block", ticks, 1);

        // SAFETY: the page is for sharing only. Only what is there can be shared.
        unsafe { arch::write64(arch::SHARED, 0) };
        if calls::share(arch::SHARED) == calls::SUCCESS {
            calls::unshare(arch::SHARED);
            let ticks = batches!(10, BATCHES, ROUNDS, |n| calls::share(PAGES + PAGE * n));
            row("share", net(ticks), ROUNDS);
            let ticks = batches!(11, BATCHES, ROUNDS, |n| calls::unshare(PAGES + PAGE * n));
            row("unshare", net(ticks), ROUNDS);
        }

        // World switches: the VM uses FP in none of its runs, or in each.
        let ticks = batches!(13, BATCHES, ROUNDS, |_| mrs!("cntp_ctl_el0"));
        row("switch", net(ticks), ROUNDS);
        let ticks = batches!(14, BATCHES, ROUNDS, |_| {
            // SAFETY: a register of FP, which nothing here uses.
            unsafe { asm!(".arch_extension fp", "fmov d0, xzr", options(nomem, nostack, preserves_flags)) };
            mrs!("cntp_ctl_el0")
        });
        row("switch_fp", net(ticks), ROUNDS);

        if calls::cpu_on(1) == calls::SUCCESS {
            until(&READY, 1);
            let ticks = batches!(12, BATCHES, ROUNDS, |n| {
                gic::send_sgi(1);
                until(&TAKEN, n + 1);
            });
            row("ipi", net(ticks), ROUNDS);
        }
        say!("ok");
        calls::system_off()
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("bench", run);
