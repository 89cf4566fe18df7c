// The world switch between the core and a VM. run_vm is a function of the core that returns when the VM traps: in
// between, VBAR_EL2 points to the vectors here, so a trap of the host pays nothing for there being VMs.
// The Context (abstract_machine/shadow.rs) is memory that only the core reaches.

    // One of the 16 entries: a VM left for EL2. x0 and x1 go to the stack until the Context is at hand.
    .macro  from_vm kind
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\kind
    b       vm_exit
    .endm

    // A trap of the core itself while these vectors stand: the few instructions of vm_exit. Told by boot/vectors.S.
    .macro  core_in_vm kind
    .balign 128
    msr     tpidr_el0, x0
    msr     tpidrro_el0, x1
    mov     x1, #\kind
    b       core_trap
    .endm

    .section .text.vectors, "ax"
    .balign 2048
vm_vectors:
    core_in_vm 0
    core_in_vm 1
    core_in_vm 2
    core_in_vm 3
    core_in_vm 4
    core_in_vm 5
    core_in_vm 6
    core_in_vm 7
    from_vm {EXIT_TRAP}
    from_vm {EXIT_IRQ}
    from_vm {EXIT_IRQ}
    from_vm {EXIT_SERROR}
    core_in_vm 12                        // EL1 in AArch32: HCR_EL2.RW = 1, so never
    core_in_vm 13
    core_in_vm 14
    core_in_vm 15

    .section .text, "ax"
// ---------------------------------------------------------------------------------------------------------
// run_vm(x0 = Context, x1 = PerCpu) -> kind of exit. Everything the compiler expects a function to keep is
// kept; pc, pstate, x0-x30 and the syndrome registers of the VM are in the Context afterwards.
    .globl  run_vm
run_vm:
    stp     x29, x30, [sp, #-112]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mrs     x2, elr_el2                 // where the host goes on
    mrs     x3, spsr_el2
    stp     x2, x3, [sp, #96]
    str     x0, [x1, #{PERCPU_CONTEXT}]
    adrp    x2, vm_vectors
    add     x2, x2, :lo12:vm_vectors
    msr     vbar_el2, x2
    ldp     x2, x3, [x0, #{CONTEXT_PC}]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x2, x3, [x0, #(8 * 2)]
    ldp     x4, x5, [x0, #(8 * 4)]
    ldp     x6, x7, [x0, #(8 * 6)]
    ldp     x8, x9, [x0, #(8 * 8)]
    ldp     x10, x11, [x0, #(8 * 10)]
    ldp     x12, x13, [x0, #(8 * 12)]
    ldp     x14, x15, [x0, #(8 * 14)]
    ldp     x16, x17, [x0, #(8 * 16)]
    ldp     x18, x19, [x0, #(8 * 18)]
    ldp     x20, x21, [x0, #(8 * 20)]
    ldp     x22, x23, [x0, #(8 * 22)]
    ldp     x24, x25, [x0, #(8 * 24)]
    ldp     x26, x27, [x0, #(8 * 26)]
    ldp     x28, x29, [x0, #(8 * 28)]
    ldr     x30, [x0, #(8 * 30)]
    ldp     x0, x1, [x0, #(8 * 0)]
    eret                                // synchronizes the new VBAR_EL2 and all that was set before
    dsb     nsh                         // no speculation past the return
    isb

// x0, x1 of the VM are on the stack, x1 = kind of exit; all else is the VM's.
vm_exit:
    mrs     x0, tpidr_el2
    ldr     x0, [x0, #{PERCPU_CONTEXT}]
    stp     x2, x3, [x0, #(8 * 2)]
    stp     x4, x5, [x0, #(8 * 4)]
    stp     x6, x7, [x0, #(8 * 6)]
    stp     x8, x9, [x0, #(8 * 8)]
    stp     x10, x11, [x0, #(8 * 10)]
    stp     x12, x13, [x0, #(8 * 12)]
    stp     x14, x15, [x0, #(8 * 14)]
    stp     x16, x17, [x0, #(8 * 16)]
    stp     x18, x19, [x0, #(8 * 18)]
    stp     x20, x21, [x0, #(8 * 20)]
    stp     x22, x23, [x0, #(8 * 22)]
    stp     x24, x25, [x0, #(8 * 24)]
    stp     x26, x27, [x0, #(8 * 26)]
    stp     x28, x29, [x0, #(8 * 28)]
    str     x30, [x0, #(8 * 30)]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0, #(8 * 0)]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #{CONTEXT_PC}]
    mrs     x2, esr_el2
    mrs     x3, far_el2
    mrs     x4, hpfar_el2
    stp     x2, x3, [x0, #{CONTEXT_SYNDROME}]
    str     x4, [x0, #({CONTEXT_SYNDROME} + 16)]
    adrp    x2, vectors
    add     x2, x2, :lo12:vectors
    msr     vbar_el2, x2
    isb                                 // from here on a trap of the core is told as one of its own
    mov     x0, x1
    ldp     x2, x3, [sp, #96]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #112
    ret

// ---------------------------------------------------------------------------------------------------------
// SIMD registers to and from memory: x0 = 512 bytes for q0-q31. The core itself never uses them.
    .arch_extension fp
    .arch_extension simd
    .globl  fpsimd_save
fpsimd_save:
    stp     q0, q1, [x0, #(32 * 0)]
    stp     q2, q3, [x0, #(32 * 1)]
    stp     q4, q5, [x0, #(32 * 2)]
    stp     q6, q7, [x0, #(32 * 3)]
    stp     q8, q9, [x0, #(32 * 4)]
    stp     q10, q11, [x0, #(32 * 5)]
    stp     q12, q13, [x0, #(32 * 6)]
    stp     q14, q15, [x0, #(32 * 7)]
    stp     q16, q17, [x0, #(32 * 8)]
    stp     q18, q19, [x0, #(32 * 9)]
    stp     q20, q21, [x0, #(32 * 10)]
    stp     q22, q23, [x0, #(32 * 11)]
    stp     q24, q25, [x0, #(32 * 12)]
    stp     q26, q27, [x0, #(32 * 13)]
    stp     q28, q29, [x0, #(32 * 14)]
    stp     q30, q31, [x0, #(32 * 15)]
    ret
    .globl  fpsimd_restore
fpsimd_restore:
    ldp     q0, q1, [x0, #(32 * 0)]
    ldp     q2, q3, [x0, #(32 * 1)]
    ldp     q4, q5, [x0, #(32 * 2)]
    ldp     q6, q7, [x0, #(32 * 3)]
    ldp     q8, q9, [x0, #(32 * 4)]
    ldp     q10, q11, [x0, #(32 * 5)]
    ldp     q12, q13, [x0, #(32 * 6)]
    ldp     q14, q15, [x0, #(32 * 7)]
    ldp     q16, q17, [x0, #(32 * 8)]
    ldp     q18, q19, [x0, #(32 * 9)]
    ldp     q20, q21, [x0, #(32 * 10)]
    ldp     q22, q23, [x0, #(32 * 11)]
    ldp     q24, q25, [x0, #(32 * 12)]
    ldp     q26, q27, [x0, #(32 * 13)]
    ldp     q28, q29, [x0, #(32 * 14)]
    ldp     q30, q31, [x0, #(32 * 15)]
    ret

// ---------------------------------------------------------------------------------------------------------
// SVE registers of the host, on a CPU that has them: x0 = room for 32 vectors, 16 predicates and FFR, of the
// longest vectors that the CPU has (ZCR_EL2 lets EL2 use them). The vectors hold q0-q31.
    .arch_extension sve
    .globl  sve_save
sve_save:
    rdvl    x1, #16
    add     x1, x0, x1, lsl #1          // behind 32 vectors
    str     z0, [x0, #0, mul vl]
    str     z1, [x0, #1, mul vl]
    str     z2, [x0, #2, mul vl]
    str     z3, [x0, #3, mul vl]
    str     z4, [x0, #4, mul vl]
    str     z5, [x0, #5, mul vl]
    str     z6, [x0, #6, mul vl]
    str     z7, [x0, #7, mul vl]
    str     z8, [x0, #8, mul vl]
    str     z9, [x0, #9, mul vl]
    str     z10, [x0, #10, mul vl]
    str     z11, [x0, #11, mul vl]
    str     z12, [x0, #12, mul vl]
    str     z13, [x0, #13, mul vl]
    str     z14, [x0, #14, mul vl]
    str     z15, [x0, #15, mul vl]
    str     z16, [x0, #16, mul vl]
    str     z17, [x0, #17, mul vl]
    str     z18, [x0, #18, mul vl]
    str     z19, [x0, #19, mul vl]
    str     z20, [x0, #20, mul vl]
    str     z21, [x0, #21, mul vl]
    str     z22, [x0, #22, mul vl]
    str     z23, [x0, #23, mul vl]
    str     z24, [x0, #24, mul vl]
    str     z25, [x0, #25, mul vl]
    str     z26, [x0, #26, mul vl]
    str     z27, [x0, #27, mul vl]
    str     z28, [x0, #28, mul vl]
    str     z29, [x0, #29, mul vl]
    str     z30, [x0, #30, mul vl]
    str     z31, [x0, #31, mul vl]
    str     p0, [x1, #0, mul vl]
    str     p1, [x1, #1, mul vl]
    str     p2, [x1, #2, mul vl]
    str     p3, [x1, #3, mul vl]
    str     p4, [x1, #4, mul vl]
    str     p5, [x1, #5, mul vl]
    str     p6, [x1, #6, mul vl]
    str     p7, [x1, #7, mul vl]
    str     p8, [x1, #8, mul vl]
    str     p9, [x1, #9, mul vl]
    str     p10, [x1, #10, mul vl]
    str     p11, [x1, #11, mul vl]
    str     p12, [x1, #12, mul vl]
    str     p13, [x1, #13, mul vl]
    str     p14, [x1, #14, mul vl]
    str     p15, [x1, #15, mul vl]
    rdffr   p0.b
    str     p0, [x1, #16, mul vl]
    ldr     p0, [x1, #0, mul vl]
    ret
    .globl  sve_restore
sve_restore:
    rdvl    x1, #16
    add     x1, x0, x1, lsl #1
    ldr     z0, [x0, #0, mul vl]
    ldr     z1, [x0, #1, mul vl]
    ldr     z2, [x0, #2, mul vl]
    ldr     z3, [x0, #3, mul vl]
    ldr     z4, [x0, #4, mul vl]
    ldr     z5, [x0, #5, mul vl]
    ldr     z6, [x0, #6, mul vl]
    ldr     z7, [x0, #7, mul vl]
    ldr     z8, [x0, #8, mul vl]
    ldr     z9, [x0, #9, mul vl]
    ldr     z10, [x0, #10, mul vl]
    ldr     z11, [x0, #11, mul vl]
    ldr     z12, [x0, #12, mul vl]
    ldr     z13, [x0, #13, mul vl]
    ldr     z14, [x0, #14, mul vl]
    ldr     z15, [x0, #15, mul vl]
    ldr     z16, [x0, #16, mul vl]
    ldr     z17, [x0, #17, mul vl]
    ldr     z18, [x0, #18, mul vl]
    ldr     z19, [x0, #19, mul vl]
    ldr     z20, [x0, #20, mul vl]
    ldr     z21, [x0, #21, mul vl]
    ldr     z22, [x0, #22, mul vl]
    ldr     z23, [x0, #23, mul vl]
    ldr     z24, [x0, #24, mul vl]
    ldr     z25, [x0, #25, mul vl]
    ldr     z26, [x0, #26, mul vl]
    ldr     z27, [x0, #27, mul vl]
    ldr     z28, [x0, #28, mul vl]
    ldr     z29, [x0, #29, mul vl]
    ldr     z30, [x0, #30, mul vl]
    ldr     z31, [x0, #31, mul vl]
    ldr     p0, [x1, #16, mul vl]
    wrffr   p0.b
    ldr     p0, [x1, #0, mul vl]
    ldr     p1, [x1, #1, mul vl]
    ldr     p2, [x1, #2, mul vl]
    ldr     p3, [x1, #3, mul vl]
    ldr     p4, [x1, #4, mul vl]
    ldr     p5, [x1, #5, mul vl]
    ldr     p6, [x1, #6, mul vl]
    ldr     p7, [x1, #7, mul vl]
    ldr     p8, [x1, #8, mul vl]
    ldr     p9, [x1, #9, mul vl]
    ldr     p10, [x1, #10, mul vl]
    ldr     p11, [x1, #11, mul vl]
    ldr     p12, [x1, #12, mul vl]
    ldr     p13, [x1, #13, mul vl]
    ldr     p14, [x1, #14, mul vl]
    ldr     p15, [x1, #15, mul vl]
    ret
