// Exception vectors of EL2 and the way back. A trap of the host saves x0-x30 into a TrapFrame on this CPU's
// stack, calls Rust with a pointer to it, and returns with what stands in it then: nothing else of the host
// is touched. A trap of the core itself never returns, but of one instruction (boot/switch.S: translate_at), and an SError at another (serror_at).

    // x2-x30 to and from 31 words at `base`: a TrapFrame, or a Context. Volatile is what Rust does not keep, but x0, x1, x18 and x30.
    .macro  save_volatile base
    stp     x2, x3, [\base, #(8 * 2)]
    stp     x4, x5, [\base, #(8 * 4)]
    stp     x6, x7, [\base, #(8 * 6)]
    stp     x8, x9, [\base, #(8 * 8)]
    stp     x10, x11, [\base, #(8 * 10)]
    stp     x12, x13, [\base, #(8 * 12)]
    stp     x14, x15, [\base, #(8 * 14)]
    stp     x16, x17, [\base, #(8 * 16)]
    .endm

    .macro  save_rest base
    stp     x18, x19, [\base, #(8 * 18)]
    stp     x20, x21, [\base, #(8 * 20)]
    stp     x22, x23, [\base, #(8 * 22)]
    stp     x24, x25, [\base, #(8 * 24)]
    stp     x26, x27, [\base, #(8 * 26)]
    stp     x28, x29, [\base, #(8 * 28)]
    str     x30, [\base, #(8 * 30)]
    .endm

    .macro  load_volatile base
    ldp     x2, x3, [\base, #(8 * 2)]
    ldp     x4, x5, [\base, #(8 * 4)]
    ldp     x6, x7, [\base, #(8 * 6)]
    ldp     x8, x9, [\base, #(8 * 8)]
    ldp     x10, x11, [\base, #(8 * 10)]
    ldp     x12, x13, [\base, #(8 * 12)]
    ldp     x14, x15, [\base, #(8 * 14)]
    ldp     x16, x17, [\base, #(8 * 16)]
    .endm

    .macro  load_rest base
    ldp     x18, x19, [\base, #(8 * 18)]
    ldp     x20, x21, [\base, #(8 * 20)]
    ldp     x22, x23, [\base, #(8 * 22)]
    ldp     x24, x25, [\base, #(8 * 24)]
    ldp     x26, x27, [\base, #(8 * 26)]
    ldp     x28, x29, [\base, #(8 * 28)]
    .endm

    // From here on an SError is the core's own, and comes to its vector. One that is pending already is of whoever ran before: it waits until
    // that one is back.
    .macro  unmask_serror scratch
    mrs     \scratch, isr_el1
    tbnz    \scratch, #{ISR_A}, 9f
    msr     daifclr, #{DAIF_A}
9:
    .endm

    // One of the 16 entries: 128 bytes. `host` entries go on to Rust and come back.
    .macro  from_host, handler
    .balign 128
    sub     sp, sp, #{FRAME_SIZE}
    stp     x0, x1, [sp, #(8 * 0)]
    save_volatile sp
    save_rest sp
    mov     x0, sp
    mov     x29, xzr                    // end of the core's frame chain
    bl      \handler
    b       return_to_host
    .endm

    // A trap of the core: this CPU's stack may be what is broken, so another one is taken. The host will not
    // run again, so its thread registers serve as scratch.
    .macro  from_core, kind
    .balign 128
    msr     tpidr_el0, x0
    msr     tpidrro_el0, x1
    mov     x1, #\kind
    b       core_trap
    .endm

    // A synchronous exception of the host. A hypercall goes the short way: what Rust keeps by itself (x19-x28) is not
    // saved, x29 stands in the place of x19, and only x0-x3 are the call's.
    .macro  from_host_sync
    .balign 128
    sub     sp, sp, #{FRAME_SIZE}
    stp     x0, x1, [sp, #(8 * 0)]
    mrs     x0, esr_el2
    lsr     x0, x0, #{ESR_EC_SHIFT}
    cmp     x0, #{ESR_EC_HVC64}
    b.ne    host_sync
    save_volatile sp
    unmask_serror x1
    stp     x18, x29, [sp, #(8 * 18)]
    str     x30, [sp, #(8 * 30)]
    mov     x0, sp
    mov     x29, xzr                    // end of the core's frame chain
    bl      {trap_lower_hvc}
    b       return_from_hvc
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .globl  vectors
vectors:
    from_core 0                         // current EL with SP_EL0: never used by the core
    from_core 1
    from_core 2
    from_core 3
    from_core {CORE_SYNC}               // current EL: synchronous
    from_core 5                         // IRQ: masked, so never
    from_core 6                         // FIQ
    from_core {CORE_SERROR}             // SError
    from_host_sync
    from_host {trap_lower_irq}
    from_host {trap_lower_irq}
    from_host {trap_lower_serror}
    from_core 12                        // EL1 in AArch32: HCR_EL2.RW = 1, so never
    from_core 13
    from_core 14
    from_core 15

    .section .text.switch, "ax"
host_sync:
    save_volatile sp
    save_rest sp
    unmask_serror x1
    mov     x0, sp
    mov     x29, xzr
    bl      {trap_lower_sync}
    b       return_to_host

return_to_host:
    load_rest sp
    b       return_volatile

return_from_hvc:
    ldp     x18, x29, [sp, #(8 * 18)]
return_volatile:
    load_volatile sp
    ldr     x30, [sp, #(8 * 30)]
    ldp     x0, x1, [sp, #(8 * 0)]
    add     sp, sp, #{FRAME_SIZE}
    eret
    dsb     nsh                         // no speculation past the return
    isb

    .globl  core_trap
core_trap:
    mrs     x0, elr_el2
    cmp     x1, #{CORE_SYNC}
    b.ne    3f
    adr     x1, translate_at
    cmp     x0, x1
    b.eq    2f
    mov     x1, #{CORE_SYNC}
    b       1f
3:  cmp     x1, #{CORE_SERROR}
    b.ne    1f
    adr     x1, serror_at
    sub     x0, x0, x1
    cmp     x0, #4                      // before the instruction, or behind it
    b.ls    4f
    mov     x1, #{CORE_SERROR}
1:  mrs     x0, tpidr_el2
    ldr     x0, [x0, #{PERCPU_EMERGENCY_TOP}]
    // x0 = top of the emergency stack, x1 = kind; the trapped SP goes into the frame's last slot.
    sub     x0, x0, #{FRAME_SIZE}
    stp     x2, x3, [x0, #(8 * 2)]
    mov     x2, x1                      // kind
    mov     x3, sp
    str     x3, [x0, #(8 * 31)]
    mov     sp, x0
    mrs     x0, tpidr_el0
    mrs     x1, tpidrro_el0
    stp     x0, x1, [sp, #(8 * 0)]
    stp     x4, x5, [sp, #(8 * 4)]
    stp     x6, x7, [sp, #(8 * 6)]
    stp     x8, x9, [sp, #(8 * 8)]
    stp     x10, x11, [sp, #(8 * 10)]
    stp     x12, x13, [sp, #(8 * 12)]
    stp     x14, x15, [sp, #(8 * 14)]
    stp     x16, x17, [sp, #(8 * 16)]
    save_rest sp
    mov     x0, sp
    mov     w1, w2
    bl      {core_trapped}
    b       .

4:  adr     x0, serror_behind           // expected: x0 and x1 are nobody's there
    b       5f
2:  adr     x0, translate_trapped
5:  msr     elr_el2, x0
    eret
    dsb     nsh
    isb
