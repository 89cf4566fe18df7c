//! Keeps secrets in the pages around one, which it shows when its console says `s` and takes back when it says `u`, until that says `q`. What the mini
//! host attacks with a device (kserv/mini/src/checks/dma): all that is private must stay as it was.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use corevisor_guests::{arch, calls, console, fail, gic, mrs, say, tree::Tree};

    /// The upper half of every secret word, by which the host recognises one.
    const TAG: u64 = 0x5ec2_e75e << 32;
    /// "PUBLIC-0": every word of the page when it is shown.
    const PUBLIC: u64 = u64::from_le_bytes(*b"PUBLIC-0");
    /// The page, in the middle of a block in which nothing else is: the host maps that as one.
    const SHOWN: u64 = 0x4050_0000;
    const PAGE: u64 = 4096;
    /// Pages of secrets on either side of it.
    const AROUND: u64 = 4;
    /// Between two looks, in microseconds.
    const SLEEP: u64 = 2000;

    pub fn run(_vcpu: u64, dtb: u64) -> ! {
        let Some(tree) = Tree::at(dtb) else { fail!("no device tree") };
        gic::start(tree.has("arm,gic-v3"));
        gic::start_vcpu();
        let (first, end) = (SHOWN - AROUND * PAGE, SHOWN + (AROUND + 1) * PAGE);
        fill(first, end);
        let (mut shown, mut times, mut rounds) = (false, 0, 0u64);
        loop {
            rounds += 1;
            check(first, SHOWN, rounds);
            if !shown {
                check(SHOWN, SHOWN + PAGE, rounds);
            }
            check(SHOWN + PAGE, end, rounds);
            match console::received() {
                Some(b's') if !shown => {
                    // SAFETY: the page is for this only, behind all that the linker placed.
                    words(SHOWN, SHOWN + PAGE).for_each(|at| unsafe { arch::write64(at, PUBLIC) });
                    must("share", calls::share(SHOWN));
                    (shown, times) = (true, times + 1);
                }
                Some(b'u') if shown => {
                    must("unshare", calls::unshare(SHOWN));
                    fill(SHOWN, SHOWN + PAGE);
                    shown = false;
                }
                Some(b'q') => break,
                _ => sleep(),
            }
        }
        say!("ok, all that it keeps as it was, {rounds} rounds, shown {times} times");
        calls::system_off()
    }

    fn words(start: u64, end: u64) -> impl Iterator<Item = u64> {
        (start..end).step_by(8)
    }

    const fn secret(at: u64) -> u64 {
        TAG | at & 0xffff_ffff
    }

    fn fill(start: u64, end: u64) {
        // SAFETY: behind all that the linker placed.
        words(start, end).for_each(|at| unsafe { arch::write64(at, secret(at)) });
    }

    fn check(start: u64, end: u64, round: u64) {
        for at in words(start, end) {
            let found = arch::read64(at);
            if found != secret(at) {
                fail!("round {round}: the secret at {at:#x} is {found:#x}");
            }
        }
    }

    fn must(what: &str, result: u64) {
        if result != calls::SUCCESS {
            fail!("{what} gives {result:#x}");
        }
    }

    fn sleep() {
        // The interrupt must not be taken before the wait for it.
        arch::interrupts(false);
        gic::timer_in(mrs!("cntfrq_el0") * SLEEP / 1_000_000);
        arch::wait();
        arch::interrupts(true);
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("bait", run);
