//! The context switch: every vCPU fills its general, FP and EL1 system registers with values of its own, leaves the VM in every way
//! there is, and finds them again, `rounds=N` times.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use core::arch::global_asm;
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use corevisor_guests::{calls, fail, gic, mrs, msr, say, tree::Tree};

    /// x0 to x30, q0 to q31 (low, high), FPSR, FPCR.
    const GENERAL: usize = 31;
    const WORDS: usize = GENERAL + 64 + 2;
    type File = [u64; WORDS];

    static ROUNDS: AtomicU64 = AtomicU64::new(0);
    static DONE: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

    // leave(values, action, found): loads all registers from `values`, does `action`, stores all to `found`.
    // x0 is the action's own; x1 is an address for the actions that need one.
    global_asm!(
        r#"
        .arch_extension fp
        .arch_extension simd
        .section .text.leave, "ax"
        .global guest_leave
        guest_leave:
            sub     sp, sp, #128
            stp     x19, x20, [sp, #16]
            stp     x21, x22, [sp, #32]
            stp     x23, x24, [sp, #48]
            stp     x25, x26, [sp, #64]
            stp     x27, x28, [sp, #80]
            stp     x29, x30, [sp, #96]
            str     x2, [sp]
            adr     x3, 10f
            add     x3, x3, x1, lsl #3
            str     x3, [sp, #8]
            add     x3, x0, #248
            .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
            ldp     x4, x5, [x3], #16
            fmov    d\n, x4
            fmov    v\n\().d[1], x5
            .endr
            ldp     x4, x5, [x3]
            msr     fpsr, x4
            msr     fpcr, x5
            ldp     x2, x3, [x0, #16]
            ldp     x4, x5, [x0, #32]
            ldp     x6, x7, [x0, #48]
            ldp     x8, x9, [x0, #64]
            ldp     x10, x11, [x0, #80]
            ldp     x12, x13, [x0, #96]
            ldp     x14, x15, [x0, #112]
            ldp     x16, x17, [x0, #128]
            ldp     x18, x19, [x0, #144]
            ldp     x20, x21, [x0, #160]
            ldp     x22, x23, [x0, #176]
            ldp     x24, x25, [x0, #192]
            ldp     x26, x27, [x0, #208]
            ldp     x28, x29, [x0, #224]
            ldr     x30, [x0, #240]
            ldr     x1, [x0, #8]
            // To the action, with one register too few: x0 is the action's anyway.
            ldr     x0, [sp, #8]
            br      x0
        // Actions: two instructions (8 bytes) each.
        10: b       20f                     // 0: PSCI_VERSION
            nop
            b       21f                     // 1: MMIO read
            nop
            b       22f                     // 2: MMIO write
            nop
            wfi                             // 3: WFI, with an interrupt pending
            b       30f
            mrs     x0, id_aa64pfr0_el1     // 4: a trapped register
            b       30f
            b       25f                     // 5: nothing, for a while: physical interrupts
            nop
        20: mov     x0, #0x84000000
            // The core changes x0 only, though SMCCC lets it change x1 to x17.
            hvc     #0
            b       30f
        21: mov     x0, #0x09000000
            ldr     w0, [x0, #0x18]
            b       30f
        22: mov     x0, #0x09000000
            str     wzr, [x0, #0x38]
            b       30f
        25: mov     x0, #2000
        26: subs    x0, x0, #1
            b.ne    26b
        30: mov     v0.16b, v0.16b          // in streaming mode, the host's, there is no such instruction
            ldr     x0, [sp]
            stp     x1, x2, [x0, #8]
            stp     x3, x4, [x0, #24]
            stp     x5, x6, [x0, #40]
            stp     x7, x8, [x0, #56]
            stp     x9, x10, [x0, #72]
            stp     x11, x12, [x0, #88]
            stp     x13, x14, [x0, #104]
            stp     x15, x16, [x0, #120]
            stp     x17, x18, [x0, #136]
            stp     x19, x20, [x0, #152]
            stp     x21, x22, [x0, #168]
            stp     x23, x24, [x0, #184]
            stp     x25, x26, [x0, #200]
            stp     x27, x28, [x0, #216]
            stp     x29, x30, [x0, #232]
            add     x3, x0, #248
            .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
            fmov    x4, d\n
            fmov    x5, v\n\().d[1]
            stp     x4, x5, [x3], #16
            .endr
            mrs     x4, fpsr
            mrs     x5, fpcr
            stp     x4, x5, [x3]
            ldp     x19, x20, [sp, #16]
            ldp     x21, x22, [sp, #32]
            ldp     x23, x24, [sp, #48]
            ldp     x25, x26, [sp, #64]
            ldp     x27, x28, [sp, #80]
            ldp     x29, x30, [sp, #96]
            add     sp, sp, #128
            ret
        "#
    );

    unsafe extern "C" {
        fn guest_leave(values: *const u64, action: u64, found: *mut u64);
    }

    /// A number that depends on all of its inputs (splitmix64).
    fn mix(seed: u64, number: u64) -> u64 {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 30).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    macro_rules! system_registers {
        ($write:ident $check:ident $($name:literal, $mask:literal;)*) => {
            /// Writes them all, for `seed`.
            fn $write(seed: u64) {
                let mut number = 1000;
                $(number += 1; msr!($name, mix(seed, number) & $mask);)*
                let _ = number;
            }

            /// Fails if one has changed.
            fn $check(seed: u64, round: u64) {
                let mut number = 1000;
                $(
                    number += 1;
                    let (found, wanted) = (mrs!($name), mix(seed, number) & $mask);
                    if found != wanted {
                        fail!("round {round}: {} is {found:#x}, not {wanted:#x}", $name);
                    }
                )*
                let _ = number;
            }
        };
    }

    // What every CPU stores of each; bits that make something happen stay 0 (the MMU is off).
    system_registers! { write_system check_system
        "ttbr0_el1", 0xffff_0000_ffff_fffe;
        "ttbr1_el1", 0xffff_0000_ffff_fffe;
        "tcr_el1", 0x0000_0010_3f3f_3f3f;
        "mair_el1", 0xffff_ffff_ffff_ffff;
        "contextidr_el1", 0xffff_ffff;
        "tpidr_el0", 0xffff_ffff_ffff_ffff;
        "tpidrro_el0", 0xffff_ffff_ffff_ffff;
        "tpidr_el1", 0xffff_ffff_ffff_ffff;
        "sp_el0", 0xffff_ffff_ffff_fff0;
        "elr_el1", 0x0000_ffff_ffff_fffc;
        "spsr_el1", 0xf000_03c0;
        "far_el1", 0x0000_ffff_ffff_ffff;
        "esr_el1", 0xffff_ffff;
        "cntkctl_el1", 0xf0;
    }

    // Keys of pointer authentication: IA, IB, DA, DB, GA, low and high.
    system_registers! { write_keys check_keys
        "s3_0_c2_c1_0", 0xffff_ffff_ffff_ffff;
        "s3_0_c2_c1_1", 0xffff_ffff_ffff_ffff;
        "s3_0_c2_c1_2", 0xffff_ffff_ffff_ffff;
        "s3_0_c2_c1_3", 0xffff_ffff_ffff_ffff;
        "s3_0_c2_c2_0", 0xffff_ffff_ffff_ffff;
        "s3_0_c2_c2_1", 0xffff_ffff_ffff_ffff;
        "s3_0_c2_c2_2", 0xffff_ffff_ffff_ffff;
        "s3_0_c2_c2_3", 0xffff_ffff_ffff_ffff;
        "s3_0_c2_c3_0", 0xffff_ffff_ffff_ffff;
        "s3_0_c2_c3_1", 0xffff_ffff_ffff_ffff;
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
        // Different VMs, different values: the counter is not the same when they start.
        // ID_AA64ISAR1_EL1: APA, API, GPA, GPI.
        let has_keys = mrs!("id_aa64isar1_el1") & 0xff00_0ff0 != 0;
        let salt = mrs!("cntvct_el0") << 8 | vcpu;
        for round in 0..ROUNDS.load(SeqCst) {
            // New values now and then; the same ones also survive many switches.
            let seed = mix(salt, round / 64);
            if round % 64 == 0 {
                write_system(seed);
                if has_keys {
                    write_keys(seed);
                }
            }
            let action = round % 6;
            msr!("cntv_ctl_el0", if action == 3 { 1 } else { 0 });
            check_file(seed, action, round);
            check_system(seed, round);
            if has_keys {
                check_keys(seed, round);
            }
        }
    }

    fn check_file(seed: u64, action: u64, round: u64) {
        let mut values: File = core::array::from_fn(|number| mix(seed, number as u64));
        // FPSR and FPCR: flags; rounding modes.
        values[WORDS - 2] &= 0x9f;
        values[WORDS - 1] &= 0x07c0_0000;
        let mut found: File = [0; WORDS];
        // SAFETY: the function keeps the calling convention, but for FP registers, which nothing here uses.
        unsafe { guest_leave(values.as_ptr(), action, found.as_mut_ptr()) };
        for number in 1..WORDS {
            if found[number] != values[number] {
                fail!(
                    "round {round}, action {action}: register {number} is {:#x}, not {:#x}",
                    found[number],
                    values[number]
                );
            }
        }
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("registers", run);
