// SHA-256's compression (FIPS 180-4, 6.2.2) by the CPU's instructions for it (FEAT_SHA256; Arm ARM C7.2): 99 instructions for a block of 64 bytes.
// What the SIMD registers held before is the caller's concern (src/abstract_machine/cpu/digest.rs). FPSR and FPCR have no part in it.
//
// v0-v3    the message schedule W: the words that the next 16 rounds take, four in each
// v4, v5   the hash value: H0-H3, H4-H7
// v6, v7   the working variables: a-d, e-h
// v8, v9   of four rounds: W + K; a-d before them
// v16-v31  the round constants K, four in each

    .section .text.digest, "ax"
    .arch_extension sha2

// Four rounds with W of v\w and K of v\k.
    .macro  rounds w, k
    add     v8.4s, v\w\().4s, v\k\().4s
    mov     v9.16b, v6.16b
    sha256h q6, q7, v8.4s
    sha256h2 q7, q9, v8.4s
    .endm

// The same; then v\w holds W of the four rounds 16 later, which comes of itself and the 12 words behind it: v\w1, v\w2, v\w3.
    .macro  rounds_and_schedule w, w1, w2, w3, k
    rounds  \w, \k
    sha256su0 v\w\().4s, v\w1\().4s
    sha256su1 v\w\().4s, v\w2\().4s, v\w3\().4s
    .endm

// sha256_blocks(x0 = hash value, x1 = blocks, x2 = how many, at least one, x3 = round constants): the hash value becomes that after the blocks.
    .globl  sha256_blocks
sha256_blocks:
    ld1     {{v16.4s-v19.4s}}, [x3], #64
    ld1     {{v20.4s-v23.4s}}, [x3], #64
    ld1     {{v24.4s-v27.4s}}, [x3], #64
    ld1     {{v28.4s-v31.4s}}, [x3]
    ld1     {{v4.4s-v5.4s}}, [x0]
1:  ld1     {{v0.16b-v3.16b}}, [x1], #64
    rev32   v0.16b, v0.16b              // the standard's words are big endian
    rev32   v1.16b, v1.16b
    rev32   v2.16b, v2.16b
    rev32   v3.16b, v3.16b
    mov     v6.16b, v4.16b
    mov     v7.16b, v5.16b
    rounds_and_schedule 0, 1, 2, 3, 16
    rounds_and_schedule 1, 2, 3, 0, 17
    rounds_and_schedule 2, 3, 0, 1, 18
    rounds_and_schedule 3, 0, 1, 2, 19
    rounds_and_schedule 0, 1, 2, 3, 20
    rounds_and_schedule 1, 2, 3, 0, 21
    rounds_and_schedule 2, 3, 0, 1, 22
    rounds_and_schedule 3, 0, 1, 2, 23
    rounds_and_schedule 0, 1, 2, 3, 24
    rounds_and_schedule 1, 2, 3, 0, 25
    rounds_and_schedule 2, 3, 0, 1, 26
    rounds_and_schedule 3, 0, 1, 2, 27
    rounds  0, 28
    rounds  1, 29
    rounds  2, 30
    rounds  3, 31
    add     v4.4s, v4.4s, v6.4s
    add     v5.4s, v5.4s, v7.4s
    subs    x2, x2, #1
    b.ne    1b
    st1     {{v4.4s-v5.4s}}, [x0]
    ret
    .arch_extension nosha2
