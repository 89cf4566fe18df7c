//! Tries everything that a guest may try; each attempt must end as told here, and the VM must live on.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use core::arch::asm;
    use corevisor_guests::{
        arch::{self, attempt},
        calls::{self, NOT_SUPPORTED, hvc, smc},
        fail, mrs, say,
    };

    /// What must come of an attempt.
    enum Wanted {
        /// The exception "unknown": undefined instruction.
        Undefined,
        /// A data or instruction abort.
        Abort,
        /// No exception, this value.
        Value(u64),
        /// No exception, a negative value.
        Error,
        /// No exception.
        Nothing,
        /// An undefined instruction, or no effect.
        Harmless,
        /// An abort, or a value.
        Answered,
    }
    use Wanted::*;

    /// An instruction whose result does not matter.
    macro_rules! does {
        ($($text:tt)*) => {
            || {
                // SAFETY: an exception is expected; no memory of Rust's is concerned.
                unsafe { asm!($($text)*, out("x9") _, options(nostack)) };
                0
            }
        };
    }

    fn check(count: &mut u32, name: &str, wanted: Wanted, what: impl FnOnce() -> u64) {
        *count += 1;
        let found = attempt(what);
        let class = found.err().map(|esr| esr >> 26);
        let good = match wanted {
            Undefined => class == Some(0),
            Abort => matches!(class, Some(0x20 | 0x21 | 0x24 | 0x25)),
            Value(value) => found == Ok(value),
            Error => matches!(found, Ok(value) if (value as i64) < 0),
            Nothing => found.is_ok(),
            Harmless => matches!(class, None | Some(0)),
            Answered => matches!(class, None | Some(0x25)),
        };
        if !good {
            fail!("{name}: {found:x?}");
        }
    }

    pub fn run(_vcpu: u64, _dtb: u64) -> ! {
        let mut count = 0;
        let n = &mut count;
        let none = [0; 3];

        // Calls that are nobody's, the host's, EL2's.
        check(n, "unknown HVC", Value(NOT_SUPPORTED), || hvc(0xc600_7fff, none));
        check(n, "unknown SMC", Value(NOT_SUPPORTED), || smc(0xc300_1234, none));
        check(n, "HVC of an Arm service", Value(NOT_SUPPORTED), || hvc(0x8000_7fff, none));
        check(n, "small numbers: Linux's boot stub", Value(NOT_SUPPORTED), || hvc(0, none));
        for call in [0, 1, 2, 3, 0x10, 0x12, 0x15, 0x17, 0x1b, 0x1d, 0x1f, 0x20, 0x22, 0x30, 0x34] {
            check(n, "a call of the host's", Value(NOT_SUPPORTED), || hvc(0xc600_8000 + call, [1, 0, 0]));
        }
        check(n, "HVC #1", Harmless, does!("hvc #1"));
        // Every owner of SMCCC but those that are somebody's: Arm's own calls, PSCI, the hypervisor's.
        for owner in (0..64).filter(|owner| ![0, 4, 6].contains(owner)) {
            for call in [0x8000_0000, 0xc000_0000, 0x4000_0000, 0] {
                let function = call | owner << 24 | owner;
                check(n, "an SMC to anybody", Value(NOT_SUPPORTED), || smc(function, [u64::MAX; 3]));
                check(n, "an HVC to anybody", Value(NOT_SUPPORTED), || hvc(function, [u64::MAX; 3]));
            }
        }

        // Sharing what cannot be shared.
        check(n, "share an address within a page", Error, || calls::share(arch::SHARED + 8));
        check(n, "share what is no memory", Error, || calls::share(0x0900_0000));
        check(n, "share beyond the VM's memory", Error, || calls::share(0x3f_ffff_f000));
        check(n, "share beyond all addresses", Error, || calls::share(0xffff_ffff_ffff_f000));
        check(n, "take back what is not shared", Error, || calls::unshare(arch::SHARED));
        check(n, "HypSec's share with a size that wraps around", Error, || hvc(0x81000, [arch::SHARED, u64::MAX, 0]));
        check(n, "HypSec's share of an odd address", Error, || hvc(0x81000, [arch::SHARED + 1, 4096, 0]));

        // PSCI with wrong arguments.
        check(n, "start itself", Value(calls::ALREADY_ON), || calls::cpu_on(0));
        check(n, "start nobody", Value(calls::INVALID_PARAMETERS), || calls::cpu_on(0xff_ffff_ffff));
        for entry in [0, u64::MAX, 0x0900_0000, 1 << 47, arch::SHARED + 2] {
            check(n, "start nobody, anywhere", Value(calls::INVALID_PARAMETERS), || {
                hvc(0xc400_0003, [15 << 8, entry, 0])
            });
        }
        check(n, "PSCI function that is not there", Value(NOT_SUPPORTED), || hvc(0x8400_001f, none));

        // Random numbers.
        let error = |bits: u64| calls::random(bits).err().unwrap_or(0);
        check(n, "no random bit", Value(calls::INVALID_PARAMETERS), || error(0));
        check(n, "more random bits than registers have", Value(calls::INVALID_PARAMETERS), || error(193));
        check(n, "random numbers that are all alike", Value(0), || match (calls::random(192), calls::random(192)) {
            (Ok(one), Ok(other)) => (0..3).filter(|n| one[*n] == other[*n]).count() as u64,
            _ => u64::MAX,
        });
        check(n, "more bits than were asked for", Value(0), || calls::random(5).map_or(1, |x| x[0] | x[1] | x[2] >> 5));

        // Registers above it, and beside it.
        check(n, "HCR_EL2", Undefined, does!("mrs x9, hcr_el2"));
        check(n, "VTTBR_EL2", Undefined, does!("msr vttbr_el2, xzr"));
        check(n, "VBAR_EL2", Undefined, does!("msr vbar_el2, xzr"));
        check(n, "SCR_EL3", Undefined, does!("mrs x9, s3_6_c1_c1_0"));
        check(n, "ICH_HCR_EL2", Undefined, does!("msr s3_4_c12_c11_0, xzr"));
        check(n, "CNTHCTL_EL2", Undefined, does!("mrs x9, cnthctl_el2"));
        check(n, "ACTLR_EL1", Harmless, does!("mrs x9, actlr_el1"));
        check(n, "PMCR_EL0", Harmless, does!("mrs x9, pmcr_el0"));
        check(n, "PMCCNTR_EL0 write", Harmless, does!("msr pmccntr_el0, xzr"));
        check(n, "MDSCR_EL1", Harmless, does!("mrs x9, mdscr_el1"));
        check(n, "OSLAR_EL1", Harmless, does!("msr oslar_el1, xzr"));
        check(n, "DBGBVR0_EL1", Harmless, does!("mrs x9, dbgbvr0_el1"));
        check(n, "an implementation-defined register", Harmless, does!("mrs x9, s3_1_c15_c2_0"));
        check(n, "a register that is not there", Undefined, does!("mrs x9, s3_7_c11_c13_7"));
        check(n, "LORC_EL1", Harmless, does!("mrs x9, s3_0_c10_c4_3"));
        check(n, "TRCOSLAR", Harmless, does!("msr s2_1_c1_c0_4, xzr"));
        // With CPACR_EL1.ZEN and SMEN open, so that it is not the guest's own trap that stops them.
        let open =
            does!("mrs x9, cpacr_el1", "orr x9, x9, #0x30000", "orr x9, x9, #0x3000000", "msr cpacr_el1, x9", "isb");
        check(n, "CPACR_EL1", Harmless, open);
        check(n, "SVE", Undefined, does!(".inst 0x04bf5029")); // rdvl x9, #1
        check(n, "SMCR_EL1", Undefined, does!("mrs x9, s3_0_c1_c2_6"));
        check(n, "the physical timer", Harmless, does!("mrs x9, cntp_ctl_el0"));
        check(
            n,
            "the physical timer, on",
            Harmless,
            does!("mov x9, #3", "msr cntp_ctl_el0, x9", "msr cntp_ctl_el0, xzr"),
        );
        check(n, "ID registers", Nothing, || {
            mrs!("id_aa64pfr0_el1") | mrs!("id_aa64mmfr0_el1") | mrs!("id_aa64dfr0_el1") | mrs!("id_aa64isar1_el1")
        });
        let pfr0 = mrs!("id_aa64pfr0_el1");
        // SVE, RAS, AMU, MPAM are not for VMs.
        check(n, "what ID_AA64PFR0_EL1 promises", Value(0), || pfr0 >> 28 & 0xff | pfr0 >> 40 & 0xff);
        check(n, "an ID register cannot be written", Undefined, does!("msr s3_0_c0_c4_0, xzr"));

        // Caches and TLBs.
        check(n, "DC ISW", Harmless, does!("dc isw, xzr"));
        check(n, "DC CSW", Harmless, does!("dc csw, xzr"));
        check(n, "DC CISW", Harmless, does!("dc cisw, xzr"));
        check(n, "IC IALLU", Nothing, does!("ic iallu"));
        check(n, "TLBI VMALLE1", Nothing, does!("tlbi vmalle1"));
        check(n, "TLBI ALLE2", Undefined, does!("tlbi alle2"));
        check(n, "TLBI VMALLS12E1", Undefined, does!("tlbi vmalls12e1"));
        check(n, "AT S12E1R", Undefined, does!("at s12e1r, xzr"));

        // Memory that is not there, and instructions that cannot be served as MMIO.
        check(n, "read beyond the IPA size", Abort, || arch::read64(0x8_0000_0000_0000));
        check(n, "write beyond the IPA size", Abort, || {
            arch::write32(0x8_0000_0000_0000, 1);
            0
        });
        check(n, "an address that nothing has", Answered, does!("ldr x9, [{}]", in(reg) 0x0a00_0000_u64));

        // Accesses to devices that no syndrome describes: the host ends them.
        let device = 0x0900_0018_u64;
        check(n, "a pair from a device", Answered, does!("ldp x9, xzr, [{}]", in(reg) device));
        check(n, "a pair to a device", Answered, does!("stp xzr, xzr, [{}]", in(reg) device));
        check(n, "an exclusive load from a device", Answered, does!("ldxr x9, [{}]", in(reg) device));
        check(
            n,
            "a load with writeback from a device",
            Answered,
            does!("mov x9, {}", "ldr wzr, [x9], #4", in(reg) device),
        );
        check(n, "an unaligned load from a device", Answered, does!("ldur w9, [{}, #2]", in(reg) device));
        check(n, "DC ZVA of a device", Answered, does!("dc zva, {}", in(reg) device));
        check(n, "DC CIVAC of a device", Nothing, does!("dc civac, {}", in(reg) device));
        // Register 31 is nobody's.
        check(n, "a load to XZR from a device", Nothing, does!("ldr wzr, [{}]", in(reg) device));
        check(n, "a signed load to XZR from a device", Nothing, does!("ldrsw xzr, [{}]", in(reg) device));
        check(n, "a store of XZR to a device", Nothing, does!("str wzr, [{}]", in(reg) 0x0900_0038_u64));

        // Exceptions of its own stay its own.
        check(n, "SMC #1", Harmless, does!("smc #1"));
        check(n, "WFE", Nothing, does!("sevl", "wfe"));
        match attempt(does!("brk #1")) {
            Err(esr) if esr >> 26 == 0x3c => *n += 1,
            other => fail!("BRK: {other:x?}"),
        }
        match attempt(does!("svc #1", "nop")) {
            // SVC returns behind the instruction, so one more was skipped: a NOP.
            Err(esr) if esr >> 26 == 0x15 => *n += 1,
            other => fail!("SVC: {other:x?}"),
        }

        say!("ok, {count} attempts");
        calls::system_off()
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("hostile", run);
