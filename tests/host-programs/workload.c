/* The fixed work of scripts/bench, run in the host: forks, hashes, touches fresh pages, copies files; with marks for
 * scripts/qemu-plugin between its parts. usage: workload ROUNDS
 *
 * All on the first CPU: where the kernel moves it otherwise differs from run to run.
 * The kernel puts work off: after each part it is given time to do it, so that the next one is not charged with it. The
 * machine skips idle time. */
#define _GNU_SOURCE
#include "mark.h"
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    FORKS = 40,
    HASHED = 1 << 20,
    FRESH = 2 << 20,
    FRESH_TIMES = 24,
    FILE_SIZE = 1 << 20,
    FILE_TIMES = 16,
    CHUNK = 64 << 10,
    PAGE = 4096,
    PAUSE_US = 100000,
    SETTLE_S = 30,
};

static unsigned char chunk[CHUNK];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Fork, exec of this program, which ends at once, wait. */
static void fork_exec(void)
{
    for (int n = 0; n < FORKS; n++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0) {
            execl("/proc/self/exe", "workload", (char *)NULL);
            _exit(1);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status != 0)
            fail("waitpid");
    }
}

/* SHA-256 (FIPS 180-4) of whole blocks. */
static const uint32_t k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

static void sha256_block(uint32_t state[8], const unsigned char *block)
{
    uint32_t w[64], s[8];
    for (int n = 0; n < 16; n++) {
        memcpy(&w[n], block + 4 * n, 4);
        w[n] = __builtin_bswap32(w[n]);
    }
    for (int n = 16; n < 64; n++) {
        uint32_t a = w[n - 15], b = w[n - 2];
        w[n] = w[n - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[n - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(s, state, sizeof s);
    for (int n = 0; n < 64; n++) {
        uint32_t e = s[4], a = s[0];
        uint32_t one = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k[n] + w[n];
        uint32_t two = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
        /* Written out: the C library has another memmove for CPUs with SVE, which guests do not have. */
        s[7] = s[6], s[6] = s[5], s[5] = s[4], s[4] = s[3] + one;
        s[3] = s[2], s[2] = s[1], s[1] = s[0], s[0] = one + two;
    }
    for (int n = 0; n < 8; n++)
        state[n] += s[n];
}

static uint32_t hash(void)
{
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (size_t at = 0; at < HASHED; at += 64)
        sha256_block(state, chunk + at % CHUNK);
    return state[0];
}

/* A fault for each page of fresh memory, no large ones. */
static void page_faults(void)
{
    char *fresh = mmap(NULL, FRESH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fresh == MAP_FAILED)
        fail("mmap");
    madvise(fresh, FRESH, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < FRESH; at += PAGE)
        fresh[at] = 1;
    munmap(fresh, FRESH);
}

static int open_file(const char *path, int flags)
{
    int file = open(path, flags, 0600);
    if (file < 0)
        fail(path);
    return file;
}

/* /tmp is a tmpfs. */
static void copy_file(void)
{
    int from = open_file("/tmp/from", O_RDWR | O_CREAT | O_TRUNC), to = open_file("/tmp/to", O_WRONLY | O_CREAT | O_TRUNC);
    for (size_t at = 0; at < FILE_SIZE; at += CHUNK)
        if (write(from, chunk, CHUNK) != CHUNK)
            fail("write");
    lseek(from, 0, SEEK_SET);
    for (size_t at = 0; at < FILE_SIZE; at += CHUNK)
        if (read(from, chunk, CHUNK) != CHUNK || write(to, chunk, CHUNK) != CHUNK)
            fail("copy");
    close(from);
    close(to);
    unlink("/tmp/from");
    unlink("/tmp/to");
}

static uint32_t work(void)
{
    MARK(8);
    fork_exec();
    usleep(PAUSE_US);
    MARK(9);
    uint32_t result = hash();
    usleep(PAUSE_US);
    MARK(10);
    for (int n = 0; n < FRESH_TIMES; n++)
        page_faults();
    usleep(PAUSE_US);
    MARK(11);
    for (int n = 0; n < FILE_TIMES; n++)
        copy_file();
    usleep(PAUSE_US);
    MARK(12);
    return result;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 0; /* the child of fork_exec */
    int rounds = atoi(argv[1]);
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    if (sched_setaffinity(0, sizeof first, &first))
        fail("sched_setaffinity");
    for (size_t at = 0; at < CHUNK; at++)
        chunk[at] = at * 7 + (at >> 8);
    MARK(1); /* boot is over */
    sleep(SETTLE_S);
    MARK(2); /* what the kernel put off during boot is done */
    uint32_t result = work();
    MARK(3); /* all is warm: the steady part */
    for (int n = 0; n < rounds; n++)
        result ^= work();
    MARK(4);
    printf("workload: %08x\n", result);
    return 0;
}
