//! Keeps secrets in memory and in registers on every vCPU, leaves its VM in many ways, shows one page and takes it back, until the host sends
//! `q` to its console. What the mini host's storm attacks.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use core::arch::asm;
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use corevisor_guests::{arch, calls, console, fail, gic, mrs, say, tree::Tree};

    /// The upper half of every secret word, by which the host recognises one (kserv/mini/src/checks/storm).
    const TAG: u64 = 0x5ec2_e75e << 32;
    /// "PUBLIC-0": in the page that is shown.
    const PUBLIC: u64 = u64::from_le_bytes(*b"PUBLIC-0");
    /// Pages of secrets of each vCPU.
    const PAGES: u64 = 16;
    const WORDS: u64 = PAGES * 512;
    /// Longest sleep in microseconds.
    const SLEEP: u64 = 500;

    static STOP: AtomicU64 = AtomicU64::new(0);
    static ROUNDS: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
    static V3: AtomicU64 = AtomicU64::new(0);

    pub fn run(vcpu: u64, dtb: u64) -> ! {
        if vcpu != 0 {
            gic::start_vcpu();
            keep(vcpu);
            calls::cpu_off()
        }
        let Some(tree) = Tree::at(dtb) else { fail!("no device tree") };
        V3.store(tree.has("arm,gic-v3").into(), SeqCst);
        gic::start(V3.load(SeqCst) != 0);
        gic::start_vcpu();
        let vcpus = calls::all_on();
        say!("keeping, {vcpus} vCPUs");
        keep(0);
        for other in 1..vcpus {
            while calls::affinity_info(other) != 1 {
                sleep(SLEEP);
            }
        }
        let rounds: u64 = ROUNDS.iter().map(|rounds| rounds.load(SeqCst)).sum();
        say!("ok, every secret as it was, {rounds} rounds");
        calls::system_off()
    }

    const fn secret(vcpu: u64, number: u64) -> u64 {
        TAG | vcpu << 24 | number
    }

    fn keep(vcpu: u64) {
        let own = arch::SECRETS + vcpu * PAGES * 4096;
        for word in 0..WORDS {
            // SAFETY: behind all that the linker placed, this vCPU's part.
            unsafe { arch::write64(own + 8 * word, secret(vcpu, word)) };
        }
        if vcpu == 0 {
            // SAFETY: the page is for sharing only.
            unsafe { arch::write64(arch::SHARED, PUBLIC) };
        }
        arch::interrupts(true);
        let mut round = 0;
        while STOP.load(SeqCst) == 0 {
            round += 1;
            for word in 0..WORDS {
                let found = arch::read64(own + 8 * word);
                if found != secret(vcpu, word) {
                    fail!("vCPU {vcpu}, round {round}: word {word} of the secret is {found:#x}");
                }
            }
            leave(vcpu, round);
            if vcpu == 0 {
                show(round);
                if console::received() == Some(b'q') {
                    STOP.store(1, SeqCst);
                }
            }
            ROUNDS[vcpu as usize].store(round, SeqCst);
        }
    }

    /// One page is the host's to see every other round.
    fn show(round: u64) {
        let result = if round % 2 == 1 { calls::share(arch::SHARED) } else { calls::unshare(arch::SHARED) };
        // An ordinary VM has nothing to show.
        if result != calls::SUCCESS && result != calls::NOT_SUPPORTED && result != calls::INVALID_PARAMETERS {
            fail!("round {round}: share or unshare gives {result:#x}");
        }
    }

    fn sleep(microseconds: u64) {
        // The interrupt must not be taken before the wait for it.
        arch::interrupts(false);
        gic::timer_in(mrs!("cntfrq_el0") * microseconds / 1_000_000);
        arch::wait();
        arch::interrupts(true);
    }

    /// Leaves the VM with secrets in registers; they must be there afterwards.
    fn leave(vcpu: u64, round: u64) {
        let word = secret(vcpu, round & 0xff_ffff);
        let (general, low, high): (u64, u64, u64);
        arch::interrupts(false);
        gic::timer_in(mrs!("cntfrq_el0") * (1 + round % SLEEP) / 1_000_000);
        // SAFETY: only registers change; the interrupt handler keeps x20, and FP is used nowhere else.
        unsafe {
            asm!(
                ".arch_extension fp",
                "fmov d8, {secret}",
                "fmov v31.d[1], {secret}",
                "tbnz {round}, #0, 2f",
                "ldr {scratch:w}, [{flags}]",
                "mrs {scratch}, id_aa64pfr0_el1",
                "b 3f",
                "2: wfi",
                "3: fmov {low}, d8",
                "fmov {high}, v31.d[1]",
                secret = in(reg) word,
                round = in(reg) round,
                flags = in(reg) console::FLAGS,
                scratch = out(reg) _,
                low = out(reg) low,
                high = out(reg) high,
                inout("x20") word => general,
                options(nostack),
            );
        }
        arch::interrupts(true);
        if [general, low, high] != [word; 3] {
            fail!("vCPU {vcpu}, round {round}: registers are {general:#x}, {low:#x}, {high:#x}, not {word:#x}");
        }
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("keeper", run);
