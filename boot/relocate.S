// A static PIE moves itself: the core (boot/entry.S), and the mini host (kserv/mini/src/arch/entry.S). No data but the image's own is
// touched, and no address but PC-relative ones is used.

    .section .text.boot, "ax"

// Applies the RELR relocations (ELF gABI): an even word is an address to relocate; an odd one is a bitmap of
// the 63 words that follow the last address. x20 = base. Clobbers x9-x14.
relocate:
    adrp    x9, __relr_start
    add     x9, x9, :lo12:__relr_start
    adrp    x10, __relr_end
    add     x10, x10, :lo12:__relr_end
1:  cmp     x9, x10
    b.hs    5f
    ldr     x11, [x9], #8
    tbnz    x11, #0, 2f
    add     x12, x11, x20               // an address: this word, and the bitmaps start behind it
    ldr     x13, [x12]
    add     x13, x13, x20
    str     x13, [x12], #8
    b       1b
2:  mov     x14, x12                    // a bitmap over the words from x12 on
3:  lsr     x11, x11, #1
    cbz     x11, 4f
    tbz     x11, #0, 6f
    ldr     x13, [x14]
    add     x13, x13, x20
    str     x13, [x14]
6:  add     x14, x14, #8
    b       3b
4:  add     x12, x12, #(63 * 8)
    b       1b
5:  ret
