//! Starts every vCPU, sends interrupts between them, stops them: PSCI CPU_ON, CPU_OFF, AFFINITY_INFO, SGIs.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use corevisor_guests::{arch, calls, fail, gic, mrs, say, tree::Tree};

    /// What each vCPU has done: 0 nothing, 1 ready.
    static READY: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
    static STOP: AtomicU64 = AtomicU64::new(0);

    pub fn run(vcpu: u64, dtb: u64) -> ! {
        if vcpu == 0 { first(dtb) } else { other(vcpu) }
    }

    /// Echoes every interrupt to vCPU 0.
    fn other(vcpu: u64) -> ! {
        if arch::vcpu() != vcpu {
            fail!("vCPU {vcpu} finds itself to be {}", arch::vcpu());
        }
        gic::start_vcpu();
        let mut seen = 0;
        READY[vcpu as usize].store(1, SeqCst);
        while STOP.load(SeqCst) == 0 {
            arch::interrupts(false);
            if gic::sgis(vcpu) == seen && STOP.load(SeqCst) == 0 {
                arch::wait();
            }
            arch::interrupts(true);
            while seen < gic::sgis(vcpu) {
                seen += 1;
                gic::send_sgi(0);
            }
        }
        arch::interrupts(false);
        calls::cpu_off()
    }

    fn first(dtb: u64) -> ! {
        let Some(tree) = Tree::at(dtb) else { fail!("no device tree") };
        let rounds = tree.number("rounds=").unwrap_or(20);
        gic::start(tree.has("arm,gic-v3"));
        gic::start_vcpu();
        arch::interrupts(true);
        let vcpus = calls::all_on();
        let nobody = calls::cpu_on(99);
        if nobody != calls::INVALID_PARAMETERS {
            fail!("starting a vCPU that is not there: {nobody:#x}");
        }
        for vcpu in 1..vcpus {
            until(|| READY[vcpu as usize].load(SeqCst) == 1, || fail!("vCPU {vcpu} does not come"));
        }
        let again = if vcpus > 1 { calls::cpu_on(1) } else { calls::ALREADY_ON };
        if again != calls::ALREADY_ON {
            fail!("starting a vCPU twice: {again:#x}");
        }
        // To itself, then there and back.
        gic::send_sgi(0);
        until(|| gic::sgis(0) == 1, || fail!("no interrupt from itself"));
        let mut sent = 1;
        for round in 0..rounds {
            for vcpu in 1..vcpus {
                gic::send_sgi(vcpu);
                sent += 1;
                until(|| gic::sgis(0) == sent, || fail!("round {round}: no answer from vCPU {vcpu}"));
            }
        }
        STOP.store(1, SeqCst);
        for vcpu in 1..vcpus {
            gic::send_sgi(vcpu);
            until(|| calls::affinity_info(vcpu) == 1, || fail!("vCPU {vcpu} does not stop"));
        }
        say!("ok, {vcpus} vCPUs, {sent} interrupts");
        calls::system_off()
    }

    /// Waits, a minute of the VM's time at most.
    fn until(condition: impl Fn() -> bool, or: impl Fn()) {
        let end = mrs!("cntvct_el0") + 60 * mrs!("cntfrq_el0");
        while !condition() {
            if mrs!("cntvct_el0") > end {
                or();
            }
        }
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("smp", run);
