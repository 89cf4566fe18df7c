//! The context switch: every vCPU fills its general, FP and EL1 system registers with values of its own, leaves the VM in every way
//! there is, and finds them again, `rounds=N` times. In half of the rounds it does not load FP registers, in half it does not look at them: there are runs in which it
//! does not use FP, after which it must find what it loaded last.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use corevisor_guests::leave::{
        Action, File, Fp, GENERAL, WORDS, changed, check_keys, check_system, has_keys, leave_with, mask_fp, write_keys,
        write_system,
    };
    use corevisor_guests::{calls, fail, gic, mrs, msr, say, tree::Tree};

    /// Ways to leave, in turn.
    const ACTIONS: [Action; 6] =
        [Action::Version, Action::MmioRead, Action::MmioWriteZero, Action::Wait, Action::IdRegister, Action::Nothing];

    static ROUNDS: AtomicU64 = AtomicU64::new(0);
    static DONE: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

    /// A number that depends on all of its inputs (splitmix64).
    fn mix(seed: u64, number: u64) -> u64 {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 30).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub fn run(vcpu: u64, dtb: u64) -> ! {
        if vcpu == 0 {
            let tree = Tree::at(dtb);
            let rounds = tree.and_then(|tree| tree.number("rounds=")).unwrap_or(1000);
            ROUNDS.store(rounds, SeqCst);
            gic::start(tree.is_some_and(|tree| tree.has("arm,gic-v3")));
            let vcpus = calls::all_on();
            work(0);
            for other in 1..vcpus {
                while DONE[other as usize].load(SeqCst) == 0 {}
            }
            say!("ok, {vcpus} vCPUs, {rounds} rounds each");
            calls::system_off()
        }
        work(vcpu);
        DONE[vcpu as usize].store(1, SeqCst);
        calls::cpu_off()
    }

    fn work(vcpu: u64) {
        // The timer's interrupt is never taken (PSTATE.I), but ends a WFI.
        gic::start_vcpu();
        msr!("cntv_cval_el0", 0);
        let has_keys = has_keys();
        // Different VMs, different values: the counter is not the same when they start.
        let salt = mrs!("cntvct_el0") << 8 | vcpu;
        let mut last: File = [0; WORDS];
        for round in 0..ROUNDS.load(SeqCst) {
            // New values now and then; the same ones also survive many switches.
            let seed = mix(salt, round / 64);
            let word = |number| mix(seed, number);
            if round % 64 == 0 {
                write_system(word);
                if has_keys {
                    write_keys(word);
                }
            }
            let action = ACTIONS[round as usize % ACTIONS.len()];
            msr!("cntv_ctl_el0", u64::from(action == Action::Wait));
            // FP registers get new values whenever they are loaded: older ones must not come back.
            let fp_seed = mix(salt, !round);
            let fp = Fp { loaded: round == 0 || fp_seed & 1 != 0, stored: fp_seed & 2 != 0 };
            if fp.loaded {
                last = core::array::from_fn(|number| mix(fp_seed, number as u64));
                mask_fp(&mut last);
            }
            check_file(&last, seed, action, round, fp);
            check_system(word, round);
            if has_keys {
                check_keys(word, round);
            }
        }
    }

    /// `last` is what FP registers hold, or are to hold.
    fn check_file(last: &File, seed: u64, action: Action, round: u64, fp: Fp) {
        let mut values: File = core::array::from_fn(|number| mix(seed, number as u64));
        values[GENERAL..].copy_from_slice(&last[GENERAL..]);
        let found = leave_with(&values, action, fp);
        if let Some(number) = changed(&values, &found) {
            let (is, was) = (found[number], values[number]);
            fail!("round {round}, {action:?}, {fp:?}: register {number} is {is:#x}, not {was:#x}");
        }
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("registers", run);
