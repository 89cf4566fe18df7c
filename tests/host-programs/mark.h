/* A mark in a measured run: an instruction that does nothing, and that scripts/qemu-plugin knows.
 * movz xzr, #(0xcb00 + number) */
#define MARK(number) __asm__ volatile(".inst 0xd299601f + ((" #number ") << 5)" ::: "memory")
