// The world switch's two ends: run_vm puts a vCPU on the CPU, asks Rust each time it leaves, and comes back as an ordinary function when it
// stays away.
//
// While a VM runs, VBAR_EL2 points to `vm_vectors`, so the host's way in (boot/vectors.S) has nothing to ask. SP_EL2 stays where
// run_vm left it: there stand the address of the Context and the core's callee-saved registers.
// It is assembled behind boot/vectors.S, whose macros it uses: a trap of the core while these vectors stand is told as any other.
// Below: the SIMD registers, which the core itself (built without them) never touches. Offsets come from the Rust types.

    .section .text.switch, "ax"

// run_vm(x0 = Context, x1 = for x2, x2 = left(ExitCode, Context, x1) -> w0 = whether it stays away). EL2 is set up for the VM.
// The frame of run_vm, of 16 words: x29, x30; x0 to x2; x19 to x28 from word 6 on. An exit for which `left` says no goes back with all that stands in the
// Context; the core's own registers are not touched between. An SError that waits was there when the host came here (boot/vectors.S): it is the host's, and stays masked
// until that is back. The VM, which would be taken for its cause, does not run, and nothing is asked.
    .globl  run_vm
run_vm:
    mrs     x9, isr_el1
    tbnz    x9, #{ISR_A}, not_run
    stp     x29, x30, [sp, #-128]!
    stp     x0, x1, [sp, #(8 * 2)]
    str     x2, [sp, #(8 * 4)]
    stp     x19, x20, [sp, #(8 * 6)]
    stp     x21, x22, [sp, #(8 * 8)]
    stp     x23, x24, [sp, #(8 * 10)]
    stp     x25, x26, [sp, #(8 * 12)]
    stp     x27, x28, [sp, #(8 * 14)]
    adr     x9, vm_vectors
    msr     vbar_el2, x9
    b       vm_enter

// x0 = kind; the VM's x0 and x1 stand on the stack, then what run_vm left there.
vm_exit:
    ldr     x1, [sp, #(16 + 8 * 2)]
    save_volatile x1
    save_rest x1
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x1, #(8 * 0)]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x1, #{CONTEXT_PC}]
    mrs     x2, esr_el2
    mrs     x3, far_el2
    mrs     x4, hpfar_el2
    stp     x2, x3, [x1, #{CONTEXT_SYNDROME}]
    str     x4, [x1, #({CONTEXT_SYNDROME} + 16)]
    ldp     x2, x9, [sp, #(8 * 3)]
    mov     x29, sp                     // the core's frame chain
    blr     x9
    tbnz    w0, #0, vm_leave
    ldr     x0, [sp, #(8 * 2)]
vm_enter:
    ldp     x9, x10, [x0, #{CONTEXT_PC}]
    msr     elr_el2, x9
    msr     spsr_el2, x10
    load_volatile x0
    load_rest x0
    ldr     x30, [x0, #(8 * 30)]
    ldp     x0, x1, [x0, #(8 * 0)]
    eret
    dsb     nsh                         // no speculation past the entry
    isb

    // It stays away. All that it began comes to its end here; if an SError comes of that, it is the VM's: it is taken here, and why the VM left. Behind the
    // barrier the virtual CPU interface says what the VM did (IHI 0069 4.2.6). Later ones are the core's own, and come to its vector.
vm_leave:
    dsb     sy
    isb                                 // ISR_EL1 is not read before
    mrs     x2, isr_el1
    tbnz    x2, #{ISR_A}, vm_serror
vm_left:
    adr     x2, vectors
    msr     vbar_el2, x2
    ldp     x19, x20, [sp, #(8 * 6)]
    ldp     x21, x22, [sp, #(8 * 8)]
    ldp     x23, x24, [sp, #(8 * 10)]
    ldp     x25, x26, [sp, #(8 * 12)]
    ldp     x27, x28, [sp, #(8 * 14)]
    ldp     x29, x30, [sp], #128
    msr     daifclr, #{DAIF_A}          // last: nothing of the VM stands in x19-x30 any more
not_run:
    ret

vm_serror:
    bl      take_serror
    mov     x0, #{EXIT_SERROR}
    ldp     x1, x2, [sp, #(8 * 2)]
    ldr     x9, [sp, #(8 * 4)]
    mov     x29, sp
    blr     x9                          // it stays away in any case
    b       vm_left

// take_serror(): takes the SError that is pending. It comes before or behind one instruction, where `core_trap` knows it, and lets this go on.
// What a trap of the core uses on its way (from_core) is EL1's, and stays so. Clobbers x0, x1, x9, x10.
    .globl  take_serror, serror_at, serror_behind
take_serror:
    mrs     x9, tpidr_el0
    mrs     x10, tpidrro_el0
    msr     daifclr, #{DAIF_A}
serror_at:
    isb
serror_behind:
    msr     daifset, #{DAIF_A}
    msr     tpidr_el0, x9
    msr     tpidrro_el0, x10
    ret

// translate_stage1(x0 = virtual address) -> x0 = PAR_EL1 after a load's translation by EL1's stage 1; 1 (F) if the CPU took an exception for it instead: the walk
// may meet an external abort, or an update of a descriptor that memory of that kind does not have, by what EL1 has put into its tables and TCR_EL1. That one instruction
// may trap; `core_trap` comes back here. Then ELR_EL2, SPSR_EL2 and the syndrome are those of that trap: whoever ran before has his in a Context.
// What a trap of the core uses on its way (from_core) is EL1's, and stays so.
    .globl  translate_stage1
translate_stage1:
    mrs     x9, tpidr_el0
    mrs     x10, tpidrro_el0
    dmb     sy                          // no read of PAR_EL1 close to a load of device memory (Cortex-A77: erratum 1508412)
    mrs     x11, par_el1
translate_at:
    at      s1e1r, x0
    isb
    mrs     x0, par_el1
    b       1f
translate_trapped:
    mov     x0, #1
1:  dmb     sy                          // the same
    msr     tpidr_el0, x9
    msr     tpidrro_el0, x10
    msr     par_el1, x11
    ret

    .macro  from_vm, kind
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x0, #\kind
    b       vm_exit
    .endm

    .section .text.vectors, "ax"
    .balign 2048
vm_vectors:
    from_core 0
    from_core 1
    from_core 2
    from_core 3
    from_core {CORE_SYNC}
    from_core 5
    from_core 6
    from_core {CORE_SERROR}
    from_vm {EXIT_TRAP}
    from_vm {EXIT_IRQ}
    from_vm {EXIT_IRQ}
    from_vm {EXIT_SERROR}
    from_core 12
    from_core 13
    from_core 14
    from_core 15

// ---------------------------------------------------------------------------------------------------------
    .section .text.fpsimd, "ax"
    .arch_extension fp
    .arch_extension simd

// fpsimd_save(x0 = Context.q): q0-q31, then FPSR, FPCR.
    .globl  fpsimd_save
fpsimd_save:
    stp     q0, q1, [x0, #0]
    stp     q2, q3, [x0, #32]
    stp     q4, q5, [x0, #64]
    stp     q6, q7, [x0, #96]
    stp     q8, q9, [x0, #128]
    stp     q10, q11, [x0, #160]
    stp     q12, q13, [x0, #192]
    stp     q14, q15, [x0, #224]
    stp     q16, q17, [x0, #256]
    stp     q18, q19, [x0, #288]
    stp     q20, q21, [x0, #320]
    stp     q22, q23, [x0, #352]
    stp     q24, q25, [x0, #384]
    stp     q26, q27, [x0, #416]
    stp     q28, q29, [x0, #448]
    stp     q30, q31, [x0, #480]
    mrs     x9, fpsr
    mrs     x10, fpcr
    add     x0, x0, #512
    stp     x9, x10, [x0]
    ret

// fpsimd_restore(x0 = Context.q).
    .globl  fpsimd_restore
fpsimd_restore:
    ldp     q0, q1, [x0, #0]
    ldp     q2, q3, [x0, #32]
    ldp     q4, q5, [x0, #64]
    ldp     q6, q7, [x0, #96]
    ldp     q8, q9, [x0, #128]
    ldp     q10, q11, [x0, #160]
    ldp     q12, q13, [x0, #192]
    ldp     q14, q15, [x0, #224]
    ldp     q16, q17, [x0, #256]
    ldp     q18, q19, [x0, #288]
    ldp     q20, q21, [x0, #320]
    ldp     q22, q23, [x0, #352]
    ldp     q24, q25, [x0, #384]
    ldp     q26, q27, [x0, #416]
    ldp     q28, q29, [x0, #448]
    ldp     q30, q31, [x0, #480]
    add     x0, x0, #512
    ldp     x9, x10, [x0]
    msr     fpsr, x9
    msr     fpcr, x10
    ret

    .arch_extension sve

// sve_vector_bytes() -> x0: bytes of a vector at EL2.
    .globl  sve_vector_bytes
sve_vector_bytes:
    rdvl    x0, #1
    ret

// sve_save(x0 = area, x1 = 0: z0-z31; 1: and p0-p15; 2: and FFR).
    .globl  sve_save
sve_save:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     z\n, [x0, #\n, mul vl]
    .endr
    cbz     x1, 1f
    addvl   x0, x0, #31
    addvl   x0, x0, #1
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    str     p\n, [x0, #\n, mul vl]
    .endr
    tbz     x1, #1, 1f
    rdffr   p0.b
    str     p0, [x0, #16, mul vl]
1:  ret

// sve_restore(x0 = area, x1 as above).
    .globl  sve_restore
sve_restore:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ldr     z\n, [x0, #\n, mul vl]
    .endr
    cbz     x1, 1f
    addvl   x0, x0, #31
    addvl   x0, x0, #1
    tbz     x1, #1, 2f
    ldr     p0, [x0, #16, mul vl]
    wrffr   p0.b
2:  .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    ldr     p\n, [x0, #\n, mul vl]
    .endr
1:  ret
    .arch_extension nosve
