/* What the probe's VMs run, at EL1 with the MMU off: copied as a whole to GUEST_RAM, started at one of the labels.
 * x9 is where no memory is: an access there ends in the VMM. x10 is a page for results. */
#define DONE 0xff0

    .section .rodata
    .balign 4096
    .globl payload, payload_end
payload:
    .macro begin name
    .globl \name
\name:
    movz    x9, #0x0a00, lsl #16
    movz    x10, #0x4001, lsl #16
    .endm
    .macro done
    str     wzr, [x9, #DONE]
1:  wfi
    b       1b
    .endm

/* Loads and stores of every width. */
    begin guest_widths
    ldr     x0, 2f
    strb    w0, [x9, #0x01]
    strh    w0, [x9, #0x02]
    str     w0, [x9, #0x04]
    str     x0, [x9, #0x08]
    ldrb    w1, [x9, #0x11]
    ldrh    w2, [x9, #0x12]
    ldr     w3, [x9, #0x14]
    ldr     x4, [x9, #0x18]
    ldrsb   x5, [x9, #0x20]
    ldrsh   x6, [x9, #0x22]
    ldrsw   x7, [x9, #0x24]
    ldrsb   w8, [x9, #0x28]
    stp     x1, x2, [x10]
    stp     x3, x4, [x10, #16]
    stp     x5, x6, [x10, #32]
    stp     x7, x8, [x10, #48]
    str     xzr, [x9, #0x30]
    done
    .balign 8
2:  .quad   0x8182838485868788

/* Stores at x1, which ends in an abort. Results: ELR_EL1 and ESR_EL1 of it. */
    .globl guest_aborts_at
    begin guest_aborts
    adr     x0, abort_vectors
    msr     vbar_el1, x0
    isb
guest_aborts_at:
    str     w2, [x1]
    done

/* A word from x1, and all of the register that it came to. */
    begin guest_loads
    ldr     w0, [x1]
    str     x0, [x10]
    done

/* SMCCC and PSCI calls that do not end the VM. */
    begin guest_calls
    movz    x0, #0x8400, lsl #16
    hvc     #0
    str     x0, [x10]
    movz    x0, #0x8000, lsl #16
    hvc     #0
    str     x0, [x10, #8]
    movz    x0, #0x8400, lsl #16
    movk    x0, #0x000a
    movz    x1, #0xc400, lsl #16
    movk    x1, #0x0003
    hvc     #0
    str     x0, [x10, #16]
    movz    x0, #0xc5ff, lsl #16
    movk    x0, #0x0077
    hvc     #0
    str     x0, [x10, #24]
    mrs     x0, mpidr_el1
    str     x0, [x10, #32]
    mrs     x0, CurrentEL
    str     x0, [x10, #40]
    done

    begin guest_off
    movz    x0, #0x8400, lsl #16
    movk    x0, #0x0008
    hvc     #0
    done

    begin guest_reset
    movz    x0, #0x8400, lsl #16
    movk    x0, #0x0009
    hvc     #0
    done

    begin guest_cpu_off
    movz    x0, #0x8400, lsl #16
    movk    x0, #0x0002
    hvc     #0
    done

    begin guest_spin
1:  b       1b

    begin guest_wfi
1:  wfi
    b       1b

/*
 * x1: a table of level 1, x2: TCR_EL1. With the MMU on, the walk to this code sets an access flag in the table, where the CPU does that (ID_AA64MMFR1_EL1.HAFDBS, which is result 0).
 */
    begin guest_walks
    mrs     x0, id_aa64mmfr1_el1
    and     x0, x0, #0xf
    str     x0, [x10]
    cbz     x0, 1f
    msr     ttbr0_el1, x1
    msr     tcr_el1, x2
    mov     x0, #0xff                   // attribute 0: memory; 1: devices
    msr     mair_el1, x0
    isb
    mrs     x3, sctlr_el1
    orr     x0, x3, #1                  // M
    orr     x0, x0, #4                  // C
    msr     sctlr_el1, x0
    isb
    msr     sctlr_el1, x3
    isb
1:  done

/* An access that the syndrome does not describe. */
    begin guest_pair
    ldp     x0, x1, [x9]
    done

/* The same as a store, at x1. */
    begin guest_pair_at
    stp     x2, x3, [x1]
    done

/* Waits once. */
    begin guest_waits
    wfi
    done

/* x1: an address, x2: what to put there. What was there goes to the VMM. */
    begin guest_swap
    ldr     x0, [x1]
    str     x0, [x9, #0x40]
    str     x2, [x1]
    ldr     x0, [x1]
    str     x0, [x9, #0x48]
    done

/* x1: an address, x2: a number of pages: each is read. */
    begin guest_looks
1:  ldr     x3, [x1]
    add     x1, x1, #4096
    subs    x2, x2, #1
    b.ne    1b
    done

/* x1: an address, x2: a number of pages. Each has x3 there, and gets one more, over and over, until the VMM says stop. */
    begin guest_counts
1:  mov     x4, x1
    mov     x5, x2
2:  ldr     x6, [x4]
    cmp     x6, x3
    b.ne    3f
    add     x6, x6, #1
    str     x6, [x4]
    add     x4, x4, #4096
    subs    x5, x5, #1
    b.ne    2b
    add     x3, x3, #1
    str     x3, [x10, #8]
    ldr     x6, [x10]
    cbz     x6, 1b
    done
3:  str     x4, [x10, #16]
    done

/* The virtual counter, twice, and its frequency. */
    begin guest_clock
    mrs     x0, cntvct_el0
    movz    x2, #20000
1:  subs    x2, x2, #1
    b.ne    1b
    isb
    mrs     x1, cntvct_el0
    mrs     x2, cntfrq_el0
    stp     x0, x1, [x10]
    str     x2, [x10, #16]
    done

/* Waits for its virtual timer, a second; when that was asked for, when it had fired. */
    begin guest_naps
    mrs     x0, cntfrq_el0
    mrs     x1, cntvct_el0
    add     x0, x0, x1
    msr     cntv_cval_el0, x0
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    isb
1:  wfi
    mrs     x0, cntv_ctl_el0
    tbz     x0, #2, 1b
    isb
    mrs     x2, cntvct_el0
    stp     x1, x2, [x10]
    msr     cntv_ctl_el0, xzr
    done

/* Stores to x2 pages from x1 on. */
    begin guest_touches
1:  str     x1, [x1]
    add     x1, x1, #4096
    subs    x2, x2, #1
    b.ne    1b
    done

/* Stores x2 at x1, which may be anywhere: the MMU is on for it, with the table at x3. */
    begin guest_anywhere
    mov     x0, #0xff
    msr     mair_el1, x0
    msr     ttbr0_el1, x3
    /* 39 bits by TTBR0 only, 4 KiB, write-back, inner shareable; 36 bits of addresses. */
    movz    x0, #0x3519
    movk    x0, #0x0080, lsl #16
    movk    x0, #0x0001, lsl #32
    msr     tcr_el1, x0
    isb
    tlbi    vmalle1
    dsb     sy
    mrs     x4, sctlr_el1
    bic     x4, x4, #2
    orr     x0, x4, #1
    msr     sctlr_el1, x0
    isb
    str     x2, [x1]
    msr     sctlr_el1, x4
    isb
    done

/* The same where the walk to x1 comes to a table that is in no memory. Results: ESR_EL1 and FAR_EL1 of the abort. */
    begin guest_lost
    adr     x0, lost_vectors
    msr     vbar_el1, x0
    isb
    b       guest_anywhere

/* vCPU 0 starts vCPU 1, which sets a flag. */
    begin guest_smp
    movz    x0, #0xc400, lsl #16
    movk    x0, #0x0003
    mov     x1, #1
    adr     x2, guest_second
    movz    x3, #0x1234
    hvc     #0
    str     x0, [x10]
1:  ldr     x0, [x10, #16]
    cbz     x0, 1b
    /* Once more: it is on already. */
    movz    x0, #0xc400, lsl #16
    movk    x0, #0x0003
    mov     x1, #1
    adr     x2, guest_second
    hvc     #0
    str     x0, [x10, #24]
    done
guest_second:
    movz    x10, #0x4001, lsl #16
    str     x0, [x10, #8]
    mov     x0, #1
    str     x0, [x10, #16]
1:  wfi
    b       1b

/* Counts interrupts in x11, and says each to the VMM, who takes the line down. */
    begin guest_irq
    adr     x0, vectors
    msr     vbar_el1, x0
    isb
    mov     x11, #0
    msr     daifclr, #2
    str     wzr, [x9, #0x50]
1:  wfi
    b       1b

/* Every register of the general kind and of FP holds x1; many exits; all are still what they were? x0 and x10 differ. */
    begin guest_keeps
    mov     x0, #3 << 20
    msr     cpacr_el1, x0
    isb
    movz    x11, #200
    fmov    d0, x11
    fmov    d31, x11
    mov     x12, x11
    mov     x28, x11
    msr     tpidr_el0, x11
    msr     tpidr_el1, x11
1:  str     w11, [x9, #0x60]
    fmov    x0, d0
    fmov    x1, d31
    mrs     x2, tpidr_el0
    mrs     x3, tpidr_el1
    cmp     x0, x12
    ccmp    x1, x12, #0, eq
    ccmp    x2, x12, #0, eq
    ccmp    x3, x12, #0, eq
    ccmp    x28, x12, #0, eq
    b.ne    2f
    subs    x11, x11, #1
    b.ne    1b
    str     x12, [x10]
2:  done

/* x1: version of the interrupt controller. SPI 40 comes by edge, 41 by level. The VMM sees each interrupt twice: as it is taken, and as it has ended. */
    begin guest_gic
    adr     x0, gic_vectors
    msr     vbar_el1, x0
    movz    x12, #0x0800, lsl #16
    movz    x13, #0x0801, lsl #16
    mov     x14, x1
    movz    w0, #2, lsl #16
    str     w0, [x12, #0xc08]
    movz    w0, #0x300
    str     w0, [x12, #0x104]
    cmp     x14, #3
    b.eq    3f
    movz    w0, #0x0101
    movk    w0, #0x0101, lsl #16
    str     w0, [x12, #0x828]
    movz    w0, #1
    str     w0, [x12]
    movz    w0, #0xff
    str     w0, [x13, #4]
    movz    w0, #1
    str     w0, [x13]
    b       4f
3:  movn    w0, #0
    str     w0, [x12, #0x84]
    movz    w0, #0x12
    str     w0, [x12]
    mov     x0, #7
    msr     s3_0_c12_c12_5, x0
    isb
    mov     x0, #0xff
    msr     s3_0_c4_c6_0, x0
    mov     x0, #1
    msr     s3_0_c12_c12_7, x0
    isb
4:  msr     daifclr, #2
    str     wzr, [x9, #0x50]
1:  wfi
    b       1b

/* Stores w2 at x1, and tells what is there then. */
    begin guest_enables
    str     w2, [x1]
    ldr     w0, [x1]
    str     w0, [x9, #0x50]
    done

/* Stores for which eventfds wait, and some for which none does. */
    begin guest_bells
    movz    w0, #7
    str     w0, [x9, #0x60]
    movz    w1, #8
    str     w1, [x9, #0x60]
    strh    w0, [x9, #0x60]
    strb    w0, [x9, #0x68]
    str     x0, [x9, #0x68]
    done

/* A store for which an eventfd waits that interrupts. The guest of guest_gic goes on here. */
    begin guest_rings
    msr     daifclr, #2
    movz    w0, #7
    str     w0, [x9, #0x60]
1:  wfi
    b       1b

/*
 * The guest of guest_gic goes on here, with interrupts masked and SPI 41's line up. The interrupt comes again as soon as it has ended: 100 times, with no
 * exit that the guest makes in between. Result 0: how often it came; 1: turns of the loop since the last one, which end the test.
 */
    begin guest_retakes
    adr     x0, quiet_vectors
    msr     vbar_el1, x0
    isb
    mov     x11, #0
    mov     x16, #0
    msr     daifclr, #2
1:  add     x16, x16, #1
    cmp     x11, #100
    b.hs    2f
    cmp     x16, #1000
    b.lo    1b
2:  msr     daifset, #2
    stp     x11, x16, [x10]
    adr     x0, gic_vectors
    msr     vbar_el1, x0
    isb
    done

/* x1 such stores, one after the other, for a vCPU that starts with interrupts masked. */
    begin guest_peals
    movz    w0, #7
1:  str     w0, [x9, #0x60]
    subs    x1, x1, #1
    b.ne    1b
    done

    .balign 2048
gic_vectors:
    .org    gic_vectors + 0x280
    cmp     x14, #3
    b.eq    3f
    ldr     w15, [x13, #0xc]
    str     w15, [x9, #0x70]
    str     w15, [x13, #0x10]
    b       4f
3:  mrs     x15, s3_0_c12_c12_0
    str     w15, [x9, #0x70]
    msr     s3_0_c12_c12_1, x15
    isb
4:  str     w15, [x9, #0x78]
    eret
    .org    gic_vectors + 0x800

quiet_vectors:
    .org    quiet_vectors + 0x280
    cmp     x14, #3
    b.eq    3f
    ldr     w15, [x13, #0xc]
    str     w15, [x13, #0x10]
    b       4f
3:  mrs     x15, s3_0_c12_c12_0
    msr     s3_0_c12_c12_1, x15
    isb
4:  cmp     w15, #41
    b.ne    5f
    add     x11, x11, #1
    mov     x16, #0
    cmp     x11, #100
    b.lo    5f
    mrs     x15, spsr_el1
    orr     x15, x15, #0x80             // I: enough of them, or the loop would never go on
    msr     spsr_el1, x15
5:  eret
    .org    quiet_vectors + 0x800

lost_vectors:
    .org    lost_vectors + 0x200
    mrs     x0, esr_el1
    mrs     x1, far_el1
    stp     x0, x1, [x10]
    msr     sctlr_el1, x4
    isb
    done
    .org    lost_vectors + 0x800

abort_vectors:
    .org    abort_vectors + 0x200
    mrs     x0, elr_el1
    mrs     x1, esr_el1
    stp     x0, x1, [x10]
    done
    .org    abort_vectors + 0x800

vectors:
    .org    vectors + 0x280
    add     x11, x11, #1
    str     w11, [x9, #0x58]
    eret
    .org    vectors + 0x800
payload_end:
