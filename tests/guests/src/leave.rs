//! Leaving the VM with every register full: all general and FP registers, and what there is of EL1, are loaded, the VM is left in one of the ways there
//! are, and all is stored. FP registers are not touched before or afterwards where a test wants that: a core may switch them by use.

use core::arch::global_asm;

use crate::{fail, mrs, msr};

/// x0 to x30, q0 to q31 (low, high), FPSR, FPCR.
pub const GENERAL: usize = 31;
/// Words of a [`File`].
pub const WORDS: usize = GENERAL + 64 + 2;
/// All registers: of x0 only what was found in it.
pub type File = [u64; WORDS];

/// A way to leave. x0 is its own; where it wants an address or arguments, these are x1 and on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Action {
    /// PSCI_VERSION by HVC: the core serves it.
    Version,
    /// A load from the serial port.
    MmioRead,
    /// A store of XZR to it.
    MmioWriteZero,
    /// WFI.
    Wait,
    /// A read of an ID register, which the core serves.
    IdRegister,
    /// Nothing, for a while.
    Nothing,
    /// PSCI_VERSION by SMC.
    VersionBySmc,
    /// CPU_SUSPEND.
    Suspend,
    /// A load from the serial port to XZR.
    MmioReadZero,
    /// A store of w1 to it.
    MmioWrite,
    /// A load from x1, where no memory is yet.
    FaultRead,
    /// A store to x1, where no memory is yet.
    FaultWrite,
    /// A read of a register that the host serves.
    TimerRead,
    /// The same, to XZR.
    TimerReadZero,
    /// A write of XZR to it.
    TimerWriteZero,
    /// A write of x1 to such a register.
    TimerWrite,
    /// MEM_SHARE of x1.
    Share,
    /// MEM_UNSHARE of x1.
    Unshare,
    /// CPU_ON of x1 at x2 with x3.
    CpuOn,
    /// CPU_OFF.
    CpuOff,
    /// SYSTEM_OFF.
    SystemOff,
}

/// What is done with the FP registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fp {
    /// They are loaded before the VM leaves.
    pub loaded: bool,
    /// They are stored afterwards.
    pub stored: bool,
}

impl Fp {
    /// All of it.
    pub const FULL: Self = Self { loaded: true, stored: true };
}

// leave(values, action, found, fp): loads all registers from `values`, does `action`, stores all to `found`; FP registers where bit 0 (load) and bit 1 (store) of
// `fp` say so. x0 is the action's own; x1 is an address for the actions that need one.
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
        str     x3, [sp, #112]
        adr     x4, 10f
        add     x4, x4, x1, lsl #3
        str     x4, [sp, #8]
        tbz     x3, #0, 9f
        add     x3, x0, #248
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        ldp     x4, x5, [x3], #16
        fmov    d\n, x4
        fmov    v\n\().d[1], x5
        .endr
        ldp     x4, x5, [x3]
        msr     fpsr, x4
        msr     fpcr, x5
    9:  ldp     x2, x3, [x0, #16]
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
    // Actions: two instructions (8 bytes) each, in the order of `Action`.
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
        b       31f                     // 6: PSCI_VERSION by SMC
        nop
        b       32f                     // 7: CPU_SUSPEND
        nop
        b       33f                     // 8: MMIO read to XZR
        nop
        b       34f                     // 9: MMIO write of w1
        nop
        ldr     x0, [x1]                // 10: a load from memory that is not there yet
        b       30f
        str     x1, [x1]                // 11: a store to it
        b       30f
        mrs     x0, cntp_ctl_el0        // 12: a register that the host serves
        b       30f
        mrs     xzr, cntp_ctl_el0       // 13: read to XZR
        b       30f
        msr     cntp_ctl_el0, xzr       // 14: written from XZR
        b       30f
        msr     cntp_cval_el0, x1       // 15: written from x1
        b       30f
        b       35f                     // 16: MEM_SHARE of x1
        nop
        b       36f                     // 17: MEM_UNSHARE of x1
        nop
        b       37f                     // 18: CPU_ON of x1 at x2 with x3
        nop
        b       38f                     // 19: CPU_OFF
        nop
        b       39f                     // 20: SYSTEM_OFF
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
        b       30f
    31: mov     x0, #0x84000000
        smc     #0
        b       30f
    32: movz    x0, #0xc400, lsl #16
        movk    x0, #1
        hvc     #0
        b       30f
    33: mov     x0, #0x09000000
        ldr     wzr, [x0, #0x18]
        b       30f
    34: mov     x0, #0x09000000
        str     w1, [x0, #0x38]
        b       30f
    35: movz    x0, #0xc600, lsl #16
        movk    x0, #3
        hvc     #0
        b       30f
    36: movz    x0, #0xc600, lsl #16
        movk    x0, #4
        hvc     #0
        b       30f
    37: movz    x0, #0xc400, lsl #16
        movk    x0, #3
        hvc     #0
        b       30f
    38: movz    x0, #0x8400, lsl #16
        movk    x0, #2
        hvc     #0
        b       30f
    39: movz    x0, #0x8400, lsl #16
        movk    x0, #8
        hvc     #0
    30: str     x0, [sp, #8]
        ldr     x0, [sp, #112]
        tbz     x0, #1, 40f
        mov     v0.16b, v0.16b          // in streaming mode, the host's, there is no such instruction
    40: ldr     x0, [sp]
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
        ldr     x4, [sp, #112]
        tbz     x4, #1, 41f
        add     x3, x0, #248
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        fmov    x4, d\n
        fmov    x5, v\n\().d[1]
        stp     x4, x5, [x3], #16
        .endr
        mrs     x4, fpsr
        mrs     x5, fpcr
        stp     x4, x5, [x3]
    41: ldr     x4, [sp, #8]
        str     x4, [x0]
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
    fn guest_leave(values: *const u64, action: u64, found: *mut u64, fp: u64);
}

/// Leaves with `values` in all registers; what is in them afterwards.
pub fn leave(values: &File, action: Action) -> File {
    leave_with(values, action, Fp::FULL)
}

/// The same with so much of FP. Registers that are not stored are found as `values` says.
pub fn leave_with(values: &File, action: Action, fp: Fp) -> File {
    let mut found = *values;
    let parts = u64::from(fp.loaded) | u64::from(fp.stored) << 1;
    // SAFETY: the function keeps the calling convention, but for FP registers, which nothing here uses.
    unsafe { guest_leave(values.as_ptr(), action as u64, found.as_mut_ptr(), parts) };
    found
}

/// The first register from x1 on that is not as it was.
pub fn changed(values: &File, found: &File) -> Option<usize> {
    (1..WORDS).find(|number| found[*number] != values[*number])
}

/// What FPSR and FPCR can hold of any value: flags; rounding modes.
pub fn mask_fp(values: &mut File) {
    values[WORDS - 2] &= 0x9f;
    values[WORDS - 1] &= 0x07c0_0000;
}

/// Whether there are keys of pointer authentication: ID_AA64ISAR1_EL1.{APA, API, GPA, GPI}.
pub fn has_keys() -> bool {
    mrs!("id_aa64isar1_el1") & 0xff00_0ff0 != 0
}

macro_rules! system_registers {
    ($write:ident $check:ident $first:literal $($name:literal, $mask:literal;)*) => {
        /// Writes them all: number n gets `value(n)`, as far as it can hold it.
        pub fn $write(value: impl Fn(u64) -> u64) {
            let mut number = $first;
            $(number += 1; msr!($name, value(number) & $mask);)*
            let _ = number;
        }

        /// Fails if one has changed.
        pub fn $check(value: impl Fn(u64) -> u64, round: u64) {
            let mut number = $first;
            $(
                number += 1;
                let (found, wanted) = (mrs!($name), value(number) & $mask);
                if found != wanted {
                    fail!("round {round}: {} is {found:#x}, not {wanted:#x}", $name);
                }
            )*
            let _ = number;
        }
    };
}

// What every CPU stores of each; bits that make something happen stay 0 (the MMU is off).
system_registers! { write_system check_system 1000
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
system_registers! { write_keys check_keys 1000
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
