// Entry of the mini host: from the core to Rust, on the first CPU and on every other.
// What holds here: EL1, physical addresses, MMU and data cache off, interrupts masked (they stay so). x0 = device tree.

    .section .head.text, "ax"
    .globl  _start
_start:
    b       primary_entry               // code0
    .long   0                           // code1
    .quad   0                           // text_offset
    .quad   __image_end                 // image_size
    .quad   0b1010                      // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    .section .text.boot, "ax"

// Translation on, with the tables at x9. Clobbers x10, x11.
    .macro  mmu_on
    ldr     x10, ={MAIR}
    msr     mair_el1, x10
    ldr     x10, ={TCR}
    mrs     x11, id_aa64mmfr0_el1       // IPS as the CPU has it; more than 48 bits need other tables
    and     x11, x11, #0xf
    cmp     x11, #5
    b.ls    8f
    mov     x11, #5
8:  bfi     x10, x11, #32, #3
    msr     tcr_el1, x10
    msr     ttbr0_el1, x9
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x10, ={SCTLR_ON}
    msr     sctlr_el1, x10
    isb
    .endm

// Vectors and stack of this CPU: x0 = its number. Clobbers x9, x10.
    .macro  cpu_state
    msr     tpidr_el1, x0
    adrp    x9, mini_vectors
    add     x9, x9, :lo12:mini_vectors
    msr     vbar_el1, x9
    msr     spsel, #1
    adrp    x9, {STACKS}
    add     x9, x9, :lo12:{STACKS}
    add     x10, x0, #1
    mov     x29, #{STACK_SIZE}
    madd    x9, x10, x29, x9
    mov     sp, x9
    mov     x29, xzr                    // end of the frame chain
    .endm

primary_entry:
    mov     x19, x0
    adrp    x20, _start
    msr     daifset, #0xf
    ldr     x9, ={SCTLR_OFF}
    msr     sctlr_el1, x9
    isb
    adrp    x9, __bss_start
    add     x9, x9, :lo12:__bss_start
    adrp    x10, __image_end
    add     x10, x10, :lo12:__image_end
1:  stp     xzr, xzr, [x9], #16
    cmp     x9, x10
    b.lo    1b
    bl      relocate

    // The first tables: the 1 GiB blocks in which the image, the device tree's start and its end are.
    adrp    x9, {EARLY_TABLE}
    add     x9, x9, :lo12:{EARLY_TABLE}
    mov     x12, x20
    bl      early_block
    mov     x12, x19
    bl      early_block
    mov     x13, #0x200000
    add     x12, x19, x13
    bl      early_block

    // What was written with the cache off is newer than any line.
    adrp    x13, __image_end
    add     x13, x13, :lo12:__image_end
    mov     x12, x20
    mrs     x14, ctr_el0
    ubfx    x14, x14, #16, #4
    mov     x15, #4
    lsl     x15, x15, x14
    dsb     sy
2:  dc      ivac, x12
    add     x12, x12, x15
    cmp     x12, x13
    b.lo    2b
    dsb     sy
    mmu_on
    mov     x0, xzr
    cpu_state
    mov     x0, x19
    mov     x1, x20
    bl      {primary_main}
    b       .

// A normal block for the address in x12, in the table at x9. Clobbers x13, x14.
early_block:
    lsr     x12, x12, #30
    ldr     x13, ={NORMAL_BLOCK}
    orr     x13, x13, x12, lsl #30
    and     x14, x12, #511
    str     x13, [x9, x14, lsl #3]
    ret

// A CPU that PSCI CPU_ON started: x0 = its number. The tables are those of the first CPU.
    .globl  secondary_entry
secondary_entry:
    msr     daifset, #0xf
    ldr     x9, ={SCTLR_OFF}
    msr     sctlr_el1, x9
    isb
    adrp    x9, {TABLE}
    add     x9, x9, :lo12:{TABLE}
    mmu_on
    cpu_state
    bl      {secondary_main}
    b       .

// switch_tables(x0): this CPU's translation goes over to other tables; off in between, so that old and new never meet.
    .globl  switch_tables
switch_tables:
    dsb     sy
    mrs     x10, sctlr_el1
    ldr     x9, ={SCTLR_OFF}
    msr     sctlr_el1, x9
    isb
    msr     ttbr0_el1, x0
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
    msr     sctlr_el1, x10
    isb
    ret

// Accesses that may fail: 0, or ESR_EL1 if the access at x0 failed. guarded_store(x0, x1 = word), guarded_zero(x0: DC ZVA); the others store the word
// that they found at x1: guarded_load(x0, x1), and two that add 1: guarded_exclusive by LDXR and STXR, guarded_atomic by LDADD. Those by bytes, halves of
// words, pairs, and with a new address in x0 after it are for registers, which are not reached so.
    .arch_extension lse
    .globl  guarded_load, guarded_store, guarded_zero, guarded_exclusive, guarded_atomic
    .globl  guarded_load_byte, guarded_store_byte, guarded_load_half, guarded_load_pair, guarded_store_pair, guarded_load_step
guarded_load:
guarded_start:
    ldr     x2, [x0]
    b       1f
guarded_store:
    str     x1, [x0]
    dsb     sy
    b       2f
guarded_zero:
    dc      zva, x0
    dsb     sy
    b       2f
guarded_exclusive:
    ldxr    x2, [x0]
    add     x3, x2, #1
    stxr    w4, x3, [x0]
    cbnz    w4, guarded_exclusive
    b       1f
guarded_atomic:
    mov     x3, #1
    ldadd   x3, x2, [x0]
    b       1f
guarded_load_byte:
    ldrb    w2, [x0]
    b       1f
guarded_store_byte:
    strb    w1, [x0]
    dsb     sy
    b       2f
guarded_load_half:
    ldrh    w2, [x0]
    b       1f
guarded_load_pair:
    ldp     x2, x3, [x0]
    b       1f
guarded_store_pair:
    stp     x1, x1, [x0]
    dsb     sy
    b       2f
guarded_load_step:
    ldr     x2, [x0], #8
    b       1f
guarded_end:
1:  str     x2, [x1]
2:  mov     x0, xzr
    ret
guarded_failed:
    mrs     x0, esr_el1
    ret

// guarded_call(x0 = address of code that changes x0 and x2 to x4 at most, x1 = where its x2 goes): 0, or ESR_EL1 if its first instruction was not fetched, or
// is none.
    .globl  guarded_call
guarded_call:
    mov     x5, x30
    mov     x6, x0
    blr     x0
    str     x2, [x1]
    mov     x30, x5
    mov     x0, xzr
    ret
guarded_call_failed:
    mov     x30, x5
    mrs     x0, esr_el1
    ret

    .macro  ends_in_rust kind
    .balign 128
    mov     x0, #\kind
    mrs     x1, esr_el1
    mrs     x2, elr_el1
    mrs     x3, far_el1
    b       {unexpected}
    .endm

    .section .text.vectors, "ax"
    .balign 2048
mini_vectors:
    ends_in_rust 0
    ends_in_rust 1
    ends_in_rust 2
    ends_in_rust 3
    .balign 128                         // synchronous, from here
    stp     x0, x1, [sp, #-16]!
    mrs     x0, elr_el1
    adr     x1, guarded_start
    cmp     x0, x1
    b.lo    1f
    adr     x1, guarded_end
    cmp     x0, x1
    b.hs    1f
    adr     x0, guarded_failed
0:  msr     elr_el1, x0
    ldp     x0, x1, [sp], #16
    eret
1:  cmp     x0, x6                      // the first instruction of where guarded_call went
    b.ne    1f
    adr     x0, guarded_call_failed
    b       0b
1:  mov     x0, #4
    mrs     x1, esr_el1
    mrs     x2, elr_el1
    mrs     x3, far_el1
    b       {unexpected}
    ends_in_rust 5                      // IRQ: masked
    ends_in_rust 6
    ends_in_rust 7
    ends_in_rust 8
    ends_in_rust 9
    ends_in_rust 10
    ends_in_rust 11
    ends_in_rust 12
    ends_in_rust 13
    ends_in_rust 14
    ends_in_rust 15
    .balign 128
