//! Register canaries: leaves the VM in every way there is, with a secret in every register that the way does not show, and in memory; the host searches
//! what it sees for them (kserv/mini/src/checks/canaries.rs). vCPU 1 is there to switch itself off, again and again. In the end the VM shows a page with the
//! verdict: only if all was as it left it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use corevisor_guests::leave::{
        Action, File, WORDS, changed, check_keys, check_system, has_keys, leave, mask_fp, write_keys, write_system,
    };
    use corevisor_guests::{arch, calls, fail, mrs, msr, tree::Tree};

    /// In every secret word (kserv/mini/src/checks/victim.rs): upper half, and lower half but for its last bits.
    const TAG: u64 = 0x5ec2_e75e;
    const SECRET: u64 = TAG << 32 | TAG;
    /// "CANARIES", and how often all was as it had been.
    const VERDICT: u64 = u64::from_le_bytes(*b"CANARIES");
    /// Pages with nothing in them, and nothing at them until they are used.
    const FRESH: u64 = 0x4020_0000;
    /// Words of secrets in memory.
    const WORDS_OF_SECRETS: u64 = 512;

    const ACTIONS: [Action; 19] = [
        Action::Version,
        Action::MmioRead,
        Action::MmioWriteZero,
        Action::Wait,
        Action::IdRegister,
        Action::Nothing,
        Action::VersionBySmc,
        Action::Suspend,
        Action::MmioReadZero,
        Action::MmioWrite,
        Action::FaultRead,
        Action::FaultWrite,
        Action::TimerRead,
        Action::TimerReadZero,
        Action::TimerWriteZero,
        Action::TimerWrite,
        Action::Share,
        Action::Unshare,
        Action::CpuOn,
    ];

    pub fn run(vcpu: u64, dtb: u64) -> ! {
        let rounds = Tree::at(dtb).and_then(|tree| tree.number("rounds=")).unwrap_or(20);
        fill_system();
        if vcpu != 0 {
            leave(&values(Action::CpuOff, 0), Action::CpuOff);
            fail!("CPU_OFF came back");
        }
        for n in 0..WORDS_OF_SECRETS {
            // SAFETY: behind all that the linker placed.
            unsafe { arch::write64(arch::SECRETS + 8 * n, SECRET) };
        }
        for round in 0..rounds {
            for action in ACTIONS {
                once(action, round);
            }
        }
        for n in 0..WORDS_OF_SECRETS {
            let found = arch::read64(arch::SECRETS + 8 * n);
            if found != SECRET {
                fail!("word {n} of the secrets is {found:#x}");
            }
        }
        // SAFETY: the page is for sharing only.
        unsafe {
            arch::write64(arch::SHARED, VERDICT);
            arch::write64(arch::SHARED + 8, rounds * ACTIONS.len() as u64);
        }
        if calls::share(arch::SHARED) != calls::SUCCESS {
            fail!("the verdict cannot be shown");
        }
        leave(&values(Action::SystemOff, 0), Action::SystemOff);
        fail!("SYSTEM_OFF came back");
    }

    fn fill_system() {
        write_system(|_| SECRET);
        if has_keys() {
            write_keys(|_| SECRET);
        }
    }

    fn fresh(action: Action, round: u64) -> u64 {
        FRESH + (2 * round + u64::from(action == Action::FaultWrite)) * 4096
    }

    /// Secrets, but for what the way to leave shows.
    fn values(action: Action, round: u64) -> File {
        let mut values: File = [SECRET; WORDS];
        mask_fp(&mut values);
        let shown: &[u64] = match action {
            Action::FaultRead | Action::FaultWrite => &[fresh(action, round)],
            // Of four bytes that are stored.
            Action::MmioWrite => &[SECRET & !0xffff_ffff | 0x3333_4444],
            Action::TimerWrite => &[0x1111_2222_3333_4444],
            Action::Share | Action::Unshare => &[arch::SHARED, 0, 0],
            Action::CpuOn => &[1, entry(), 1],
            _ => &[],
        };
        values[1..=shown.len()].copy_from_slice(shown);
        values
    }

    fn entry() -> u64 {
        let entry: u64;
        // SAFETY: only computes an address.
        unsafe { core::arch::asm!("ldr {}, =guest_secondary_entry", out(reg) entry, options(nostack)) };
        entry
    }

    fn once(action: Action, round: u64) {
        // Every other time the timer fires meanwhile.
        if action == Action::Nothing && round % 2 == 1 {
            msr!("cntv_cval_el0", mrs!("cntvct_el0"));
            msr!("cntv_ctl_el0", 1);
        }
        let values = values(action, round);
        let found = leave(&values, action);
        msr!("cntv_ctl_el0", 0);
        if let Some(number) = changed(&values, &found) {
            let (is, was) = (found[number], values[number]);
            fail!("round {round}, {action:?}: register {number} is {is:#x}, not {was:#x}");
        }
        if action == Action::FaultRead && found[0] != 0 {
            fail!("round {round}: a fresh page holds {:#x}", found[0]);
        }
        check_system(|_| SECRET, round);
        if has_keys() {
            check_keys(|_| SECRET, round);
        }
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("canary", run);
