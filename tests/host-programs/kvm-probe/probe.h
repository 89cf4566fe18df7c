/* A small VMM of our own, to ask /dev/kvm for what the API promises: on the kernel's own KVM and on the driver. */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    GUEST_RAM = 0x40000000,
    RESULTS = GUEST_RAM + 0x10000,
    RAM_SIZE = 2 << 20,
    NO_RAM = 0x0a000000,
    DONE = NO_RAM + 0xff0,
    MAX_VCPU_FDS = 4,
};

/* A VM of the probe; fds are -1 where there is none. */
struct vm {
    int fd, vcpus[MAX_VCPU_FDS];
    struct kvm_run *run[MAX_VCPU_FDS];
    unsigned char *ram;
};

extern int kvm;
extern size_t run_size;

/* One line of the report. `what` is a true sentence. Errors quote errno. */
void said(bool so, const char *what, ...) __attribute__((format(printf, 2, 3)));
int verdict(void);

/* Whether an ioctl fails with one of up to two errors. */
#define FAILS(error, call) said((errno = 0, (call) == -1) && errno == (error), "%s -> %s", #call, #error)
#define FAILS2(error, other, call) \
    said((errno = 0, (call) == -1) && (errno == (error) || errno == (other)), "%s -> %s or %s", #call, #error, #other)
#define WORKS(call) said((errno = 0, (call) >= 0), "%s", #call)

/* A VM with RAM that holds the payload, and `vcpus` initialised vCPUs, the second and later ones off. NULL: it said why. */
struct vm *make_vm(int vcpus);
void end_vm(struct vm *vm);
int init_vcpu(struct vm *vm, int vcpu, uint32_t features);
uint64_t get_reg(struct vm *vm, int vcpu, uint64_t id);
int set_reg(struct vm *vm, int vcpu, uint64_t id, uint64_t value);
/* Starts vCPU 0 at a label of the payload at the next run. */
void start_at(struct vm *vm, const char *label);
int memory(struct vm *vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, const void *hva);
/* Runs a vCPU once, again after signals. The exit's reason, or -errno. */
int run_once(struct vm *vm, int vcpu);
/* SIGALRM ends a run and nothing else. */
void catch_alarms(void);
/* Runs vCPU 0 and a while later ends the run by a signal, if nothing else has: whether nothing else has. */
bool stays_inside(struct vm *vm);
/* Runs vCPU 0 until it accesses DONE; other exits are counted and answered with zero. Whether it came there. */
bool run_to_done(struct vm *vm, int *exits);
/* A word of the page of results. */
uint64_t result(struct vm *vm, int n);

/* KVM_SET_DEVICE_ATTR of 64 bits. */
int set_attribute(int fd, uint32_t group, uint64_t number, uint64_t value);
/* Gives the VM the interrupt controller that the machine has, where the payload looks for it: its version, and the device. */
int with_gic(struct vm *vm, int *fd);

#define CORE(field) \
    (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | (offsetof(struct kvm_regs, field) / sizeof(uint32_t)))
#define X(n) (CORE(regs.regs[0]) + 2 * (n))

extern const char payload[], payload_end[], guest_widths[], guest_loads[], guest_aborts[], guest_aborts_at[], guest_calls[], guest_off[], guest_reset[], guest_spin[], guest_wfi[],
    guest_pair[], guest_swap[], guest_clock[], guest_smp[], guest_irq[], guest_keeps[], guest_gic[], guest_bells[], guest_rings[], guest_peals[], guest_naps[], guest_touches[], guest_counts[], guest_looks[], guest_anywhere[], guest_walks[], guest_enables[], guest_retakes[], guest_pair_at[], guest_waits[], guest_lost[], guest_cpu_off[];

/* The sum of the numbers that `format` finds in the lines of a file. */
long numbers(const char *path, const char *format);
/* KiB of memory that can be had, the best of some looks; and whether `rounds` of work lost a page each since it was `before`. */
long settled(void);
void no_leak(int rounds, long before, const char *what);
/* Random numbers, the same for the same seed. */
void seed_chance(unsigned seed);
uint64_t chance(void);

void test_system(void);
void test_memory(void);
void test_vcpu(void);
void test_registers(void);
void test_runs(void);
/* Who waits for a page of the VMM's (userfaultfd) keeps nobody else from anything. */
void test_late_pages(void);
void test_power(void);
void test_interrupts(void);
void test_tables(void);
void test_lifecycle(int rounds);
/* A guest that computes for ever. */
void spin(void);
void test_file(const char *path);
void test_moved(void);
void test_swapped(const char *reclaim);
void fours(int rounds, unsigned seed, bool killed);
void fuzz(unsigned seed, unsigned rounds);
int bench(const char *image, const char *tree, const char *gic, bool protected);
int mark(const char *what);
