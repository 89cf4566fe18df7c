// Entry, entry of secondary vCPUs, vectors. The MMU stays off: all memory is Device, all accesses are aligned.
.section .text.start, "ax"
.global _start
_start:
    mov     x19, x0
    ldr     x1, =__bss_start
    ldr     x2, =__bss_end
1:  cmp     x1, x2
    b.hs    2f
    stp     xzr, xzr, [x1], #16
    b       1b
2:  mov     x20, #0
    b       prepare

// PSCI CPU_ON comes here, with the vCPU's number in x0.
.global guest_secondary_entry
guest_secondary_entry:
    mov     x20, x0
    mov     x19, #0

prepare:
    ldr     x1, =__stacks
    add     x2, x20, #1
    add     x1, x1, x2, lsl #14
    mov     sp, x1
    ldr     x1, =guest_vectors
    msr     vbar_el1, x1
    // FP and SIMD.
    mov     x1, #(3 << 20)
    msr     cpacr_el1, x1
    isb
    mov     x0, x20
    mov     x1, x19
    bl      guest_entered
    b       .

.section .text.vectors, "ax"
.macro save
    sub     sp, sp, #192
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
    mrs     x0, elr_el1
    mrs     x1, spsr_el1
    stp     x0, x1, [sp, #160]
.endm
.macro vector name
    .balign 128
    b       \name
.endm

.balign 2048
guest_vectors:
    .rept 4
    vector  other
    .endr
    vector  sync
    vector  irq
    vector  other
    vector  other
    .rept 8
    vector  other
    .endr

irq:
    save
    bl      guest_irq
    b       back

sync:
    save
    mrs     x0, esr_el1
    mrs     x1, elr_el1
    mrs     x2, far_el1
    bl      guest_sync
    // Where to go on.
    str     x0, [sp, #160]
    b       back

other:
    save
    mrs     x0, esr_el1
    mrs     x1, elr_el1
    mrs     x2, far_el1
    bl      guest_unexpected

back:
    ldp     x0, x1, [sp, #160]
    msr     elr_el1, x0
    msr     spsr_el1, x1
    ldp     x0, x1, [sp]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x30, [sp, #144]
    add     sp, sp, #192
    eret
