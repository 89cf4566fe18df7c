//! Works with secrets in memory and in registers, sleeps by its timer, shares a page with the host and takes it back. What the
//! demo runs, and attacks.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use core::arch::asm;
    use corevisor_guests::{arch, calls, fail, gic, mrs, say, tree::Tree};

    /// "SECRET-0": the host must not see it, and looks for it.
    const SECRET: u64 = u64::from_le_bytes(*b"SECRET-0");
    /// "PUBLIC-0": in the shared page.
    const PUBLIC: u64 = u64::from_le_bytes(*b"PUBLIC-0");
    const WORDS: u64 = 512;

    pub fn run(_vcpu: u64, dtb: u64) -> ! {
        let Some(tree) = Tree::at(dtb) else { fail!("no device tree") };
        let rounds = tree.number("rounds=").unwrap_or(10);
        let millis = tree.number("sleep=").unwrap_or(10);
        gic::start(tree.has("arm,gic-v3"));
        gic::start_vcpu();
        arch::interrupts(true);

        // A secret in every word of a page.
        let secrets = arch::SECRETS;
        for word in 0..WORDS {
            // SAFETY: behind all that the linker placed.
            unsafe { arch::write64(secrets + 8 * word, SECRET + word) };
        }
        // SAFETY: the page is for sharing only.
        unsafe { arch::write64(arch::SHARED, PUBLIC) };
        let shared = calls::share(arch::SHARED);
        say!(
            "working, {rounds} rounds, {}",
            if shared == calls::SUCCESS { "one page shared" } else { "nothing to share" }
        );

        let mut ticks = 0;
        for round in 1..=rounds {
            gic::timer_in(mrs!("cntfrq_el0") / 1000 * millis);
            ticks += 1;
            // Masked from the look at the counter to the sleep: an interrupt that comes between must end the sleep.
            arch::interrupts(false);
            while gic::timers() < ticks {
                if !secrets_survive_sleep() {
                    fail!("round {round}: registers changed");
                }
            }
            arch::interrupts(true);
            for word in 0..WORDS {
                let found = arch::read64(secrets + 8 * word);
                if found != SECRET + word {
                    fail!("round {round}: word {word} of the secret is {found:#x}");
                }
            }
            say!("round {round} of {rounds}");
        }
        if shared == calls::SUCCESS && calls::unshare(arch::SHARED) != calls::SUCCESS {
            fail!("the page cannot be taken back");
        }
        say!("ok, {ticks} timer interrupts");
        calls::system_off()
    }

    /// Waits for an interrupt with the secret in registers, general and FP, and takes it; checks that they are there afterwards. Interrupts are masked before and
    /// after.
    fn secrets_survive_sleep() -> bool {
        let (general, low, high): (u64, u64, u64);
        // SAFETY: only registers change; the interrupt handler keeps x20, and FP is used nowhere else.
        unsafe {
            asm!(
                ".arch_extension fp",
                "fmov d8, {secret}",
                "fmov v31.d[1], {secret}",
                "wfi",
                "msr daifclr, #2",
                "isb",
                "msr daifset, #2",
                "fmov {low}, d8",
                "fmov {high}, v31.d[1]",
                secret = in(reg) SECRET,
                low = out(reg) low,
                high = out(reg) high,
                inout("x20") SECRET => general,
                options(nostack),
            );
        }
        general == SECRET && low == SECRET && high == SECRET
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("worker", run);
