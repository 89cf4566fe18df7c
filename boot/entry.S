// Entry of the core: from a boot loader to Rust, on the CPU that boots and on every other.
//
// What holds here: physical addresses, MMU and data cache off, interrupts masked. Every address is PC-relative.
// x19 = device tree, x20 = physical base of the image, from the first lines on.
// Names in braces come from the Rust types (src/platform/entry.rs), so no offset is counted by hand.

// ---------------------------------------------------------------------------------------------------------
// The arm64 Image header (Linux, Documentation/arch/arm64/booting.rst): QEMU, U-Boot and the Pi's firmware read it.
    .section .head.text, "ax"
    .globl  _start
_start:
    b       primary_entry               // code0
    .long   0                           // code1
    .quad   0                           // text_offset: the base itself
    .quad   __core_block_size           // image_size (scripts/image adds the host kernel's)
    .quad   0b1010                      // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    .section .text.boot, "ax"

// ---------------------------------------------------------------------------------------------------------
// What comes to EL3 nevertheless: see el3_trap. Clobbers x9.
    .macro  guard_el3
    msr     tpidr_el2, xzr              // no data yet
    adrp    x9, el3_vectors
    add     x9, x9, :lo12:el3_vectors
    msr     vbar_el3, x9
    isb
    .endm

// From EL3 to EL2: non-secure, AArch64, HVC on, nothing trapped that EL2 should decide (src/platform/el3.rs has the values). Clobbers x9, x10.
// Goes on behind the macro at EL2; the link register is used for that.
    .macro  drop_to_el2
    ldr     x9, ={SCR_EL3_VALUE}
    msr     scr_el3, x9
    ldr     x9, ={CPTR_EL3_VALUE}       // no trap of SVE and SME
    msr     cptr_el3, x9
    ldr     x9, ={MDCR_EL3_VALUE}
    msr     mdcr_el3, x9
    isb
    mrs     x9, id_aa64pfr0_el1         // SVE: ZCR_EL3, vectors as long as the CPU has them
    ubfx    x9, x9, #32, #4
    cbz     x9, 5f
    mov     x9, #0x1ff
    msr     S3_6_C1_C2_0, x9
5:  mrs     x9, id_aa64pfr1_el1         // SME: SMCR_EL3, the same, and all of its parts
    ubfx    x9, x9, #24, #4
    cbz     x9, 6f
    ldr     x9, ={SMCR_EL3_VALUE}
    msr     S3_6_C1_C2_6, x9
6:  mrs     x9, id_aa64pfr0_el1         // MPAM of either version: MPAM3_EL3, on and not trapped
    ubfx    x9, x9, #40, #4
    mrs     x10, id_aa64pfr1_el1
    ubfx    x10, x10, #16, #4
    orr     x9, x9, x10
    cbz     x9, 7f
    mov     x9, #(1 << 63)
    msr     S3_6_C10_C5_0, x9
7:
    mrs     x9, id_aa64pfr0_el1         // GIC system registers, if there are any
    ubfx    x9, x9, #24, #4
    cbz     x9, 8f
    mrs     x9, S3_6_C12_C12_5          // ICC_SRE_EL3: SRE and lower-EL enable
    mov     x10, #0b1001
    orr     x9, x9, x10
    msr     S3_6_C12_C12_5, x9
    isb
8:  ldr     x9, =0x30c50830             // SCTLR_EL2: RES1, MMU and caches off
    msr     sctlr_el2, x9
    mov     x9, #{SPSR_EL2H_MASKED}
    msr     spsr_el3, x9
    adr     x9, 9f
    msr     elr_el3, x9
    eret
9:
    .endm

// Leaves the MMU off and HCR_EL2 with E2H = 0, whatever stood there: in this order, for E2H says of which form the tables are. Then EL2's own
// extensions, which mean zero where they are not known: another form of tables and of permissions (TCR2_EL2: D128, PIE), guarded returns. A reset leaves them unknown, and
// a loader may have used them. Clobbers x9.
    .macro  plain_el2
    ldr     x9, =0x30c50830
    msr     sctlr_el2, x9
    isb
    mov     x9, #{HCR_EL2_RW}
    dsb     nsh                         // AmpereOne: erratum AC04_CPU_23
    msr     hcr_el2, x9
    isb
    mrs     x9, S3_0_C0_C7_3            // ID_AA64MMFR3_EL1
    tst     x9, #0xf                    // TCRX
    b.eq    5f
    msr     S3_4_C2_C0_3, xzr           // TCR2_EL2
5:  tst     x9, #0xf0                   // SCTLRX
    b.eq    6f
    msr     S3_4_C1_C0_3, xzr           // SCTLR2_EL2
6:  mrs     x9, id_aa64pfr1_el1
    tst     x9, #(0xf << 44)            // GCS
    b.eq    7f
    msr     S3_4_C2_C5_0, xzr           // GCSCR_EL2
7:  isb
    .endm

// Turns the core's own translation on: MAIR, TCR, TTBR0 from MMU_SETTINGS. Clobbers x9-x12.
    .macro  mmu_on
    adrp    x9, {MMU_SETTINGS}
    add     x9, x9, :lo12:{MMU_SETTINGS}
    ldr     x10, [x9, #{MMU_MAIR}]
    msr     mair_el2, x10
    ldr     x10, [x9, #{MMU_TCR}]
    msr     tcr_el2, x10
    ldr     x10, [x9, #{MMU_TTBR0}]
    msr     ttbr0_el2, x10
    ldr     x10, [x9, #{MMU_SCTLR}]
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x10
    isb
    .endm

// ---------------------------------------------------------------------------------------------------------
primary_entry:
    msr     daifset, #0b1111            // as the boot protocol has it, whatever the loader left
    mov     x19, x0
    adrp    x20, _start
    mrs     x9, CurrentEL
    lsr     x21, x9, #2                 // the exception level that we were entered at
    cmp     x21, #2
    b.ne    1f
    // A loader that left its MMU on: what it wrote must be in memory before its caches go off.
    mrs     x9, sctlr_el2
    mov     x10, #0b101
    tst     x9, x10
    b.eq    1f
    bl      clean_image
    plain_el2
1:  msr     spsel, #1
    adrp    x9, {BOOT_STACK}
    add     x9, x9, :lo12:{BOOT_STACK}
    add     sp, x9, #{BOOT_STACK_SIZE_4K}, lsl #12
    bl      zero_bss
    bl      relocate
    mov     x29, xzr                    // end of the frame chain
    mov     x0, x19
    mov     x1, #{UNFIT_PLACE}
    tst     x20, #({CORE_BLOCK_SIZE_4K} * 4096 - 1)
    b.ne    4f
    mov     x1, #{UNFIT_EL1}
    cmp     x21, #2
    b.eq    3f
    b.lo    4f

    guard_el3
    bl      {open_to_non_secure}
    mov     x22, sp
    drop_to_el2
    mov     sp, x22
3:  plain_el2
    // A CPU whose EL2 is always with E2H: it says so in the register, or in ID_AA64MMFR4_EL1.E2H0.
    mov     x0, x19
    mov     x1, #{UNFIT_E2H}
    mrs     x9, hcr_el2
    tbnz    x9, #34, 4f
    mrs     x9, S3_0_C0_C7_4
    tbnz    x9, #27, 4f
    mov     x0, x20
    mov     x1, x19
    bl      {build_early_map}           // fills MMU_SETTINGS
    bl      invalidate_block            // what was written with the cache off is newer than any line
    mmu_on
    mov     x0, x19
    mov     x1, x20
    mov     x2, x21
    bl      {primary_main}
    b       .

    // Nothing can be done but to say why (x1).
4:  bl      {refuse}
5:  wfe
    b       5b

// bss to zero, 16 bytes at a time (both ends are aligned). Clobbers x9, x10.
zero_bss:
    adrp    x9, __bss_start
    add     x9, x9, :lo12:__bss_start
    adrp    x10, __bss_end
    add     x10, x10, :lo12:__bss_end
1:  stp     xzr, xzr, [x9], #16
    cmp     x9, x10
    b.lo    1b
    ret

// Smallest data cache line into x11 (CTR_EL0.DminLine), the core's block into x9..x10. Clobbers x12.
    .macro  block_and_line
    mrs     x12, ctr_el0
    ubfx    x12, x12, #16, #4
    mov     x11, #4
    lsl     x11, x11, x12
    mov     x9, x20
    add     x10, x9, #{CORE_BLOCK_SIZE_4K}, lsl #12
    .endm

invalidate_block:
    dsb     sy
    block_and_line
1:  dc      ivac, x9
    add     x9, x9, x11
    cmp     x9, x10
    b.lo    1b
    dsb     sy
    ret

clean_image:
    block_and_line
1:  dc      cvac, x9
    add     x9, x9, x11
    cmp     x9, x10
    b.lo    1b
    dsb     sy
    ret

// ---------------------------------------------------------------------------------------------------------
// Every other CPU, from PSCI firmware or from a spin table. It finds its PerCpu by its affinity in SECONDARY_TABLE;
// all that is read here, before its MMU is on, was cleaned to memory.
    .globl  secondary_entry
secondary_entry:
    msr     daifset, #0b1111
    mrs     x9, CurrentEL
    cmp     x9, #0xc
    b.ne    1f
    guard_el3
    drop_to_el2
1:  plain_el2
    adrp    x9, {SECONDARY_TABLE}
    add     x9, x9, :lo12:{SECONDARY_TABLE}
    mrs     x10, mpidr_el1
    ldr     x11, ={MPIDR_AFFINITY}
    and     x10, x10, x11
2:  ldp     x12, x19, [x9], #16
    cbz     x19, 3f                     // the end: a CPU that nobody described stays here
    cmp     x12, x10
    b.ne    2b
    mmu_on
    msr     spsel, #1
    ldr     x9, [x19, #{PERCPU_STACK_TOP}]
    mov     sp, x9
    mov     x0, x19
    mov     x29, xzr
    bl      {secondary_main}
3:  wfe
    b       3b

// ---------------------------------------------------------------------------------------------------------
// enter_host(x0 = x0 for the host, x1 = entry, x2 = SPSR_EL2, x3 = stack top): to EL1 for the first time on
// this CPU; every other register is zero (booting.rst: x1-x3 = 0), so nothing of the core shows.
    .globl  enter_host
enter_host:
    msr     elr_el2, x1
    msr     spsr_el2, x2
    mov     sp, x3
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, xzr
    .endr
    eret
    dsb     nsh
    isb

// ---------------------------------------------------------------------------------------------------------
// Something came to EL3, where nobody serves it: on a CPU whose core runs it is told there, as a trap of the core, with EL3's
// syndrome, and the machine stops. Before that the CPU stays here.
el3_trap:
    msr     tpidr_el0, x0
    mrs     x0, tpidr_el2
    cbz     x0, 2f
    mrs     x0, esr_el3
    msr     esr_el2, x0
    mrs     x0, elr_el3
    msr     elr_el2, x0
    mrs     x0, spsr_el3
    msr     spsr_el2, x0
    mov     x0, #{SPSR_EL2H_MASKED}
    msr     spsr_el3, x0
    adr     x0, 1f
    msr     elr_el3, x0
    eret
1:  msr     tpidrro_el0, x1
    mov     x1, #{CORE_EL3}
    b       core_trap
2:  wfe
    b       2b

    .ltorg

    .section .text.vectors, "ax"
    .balign 2048
el3_vectors:
    .rept   16
    .balign 128
    b       el3_trap
    .endr
