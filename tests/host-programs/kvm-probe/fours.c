/* Four VMMs at once, over and over: a process and a VM each. They end by themselves, or are killed. */
#include "probe.h"
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>

enum { VMMS = 4 };

/* Lives that came to their end, counted by all processes. */
static atomic_uint *lives;

/* A VM from its making to its end: two come to DONE, one switches itself off, one resets itself. */
static bool one_of_four(int n)
{
    static const char *const guests[VMMS] = {guest_keeps, guest_calls, guest_off, guest_reset};
    static const unsigned events[VMMS] = {0, 0, KVM_SYSTEM_EVENT_SHUTDOWN, KVM_SYSTEM_EVENT_RESET};
    struct vm *vm = make_vm(1);
    int exits;
    bool well;
    if (!vm)
        return false;
    start_at(vm, guests[n]);
    if (events[n])
        well = run_once(vm, 0) == KVM_EXIT_SYSTEM_EVENT && vm->run[0]->system_event.type == events[n];
    else
        well = run_to_done(vm, &exits) && exits == (n == 0 ? 200 : 0);
    end_vm(vm);
    atomic_fetch_add(lives, well);
    return well;
}

/* A process that begins when all four are there: the parent closes the other end of `start`. */
static void vmm(int n, int start, bool for_ever)
{
    char none;
    if (read(start, &none, 1) != 0)
        _exit(2);
    while (one_of_four(n))
        if (!for_ever)
            /* Every second VMM leaves a VM behind that never ran. */
            _exit(n % 2 == 0 || make_vm(1) ? 0 : 3);
        else
            n = (n + 1) % VMMS;
    _exit(4);
}

/* Starts four at once; kills each at a moment of its own, or lets them end. */
static bool round_of_four(bool killed)
{
    pid_t children[VMMS];
    int start[2], status;
    bool well = true;
    if (pipe(start) == -1)
        return false;
    for (int n = 0; n < VMMS; n++) {
        children[n] = fork();
        if (children[n] == 0) {
            close(start[1]);
            vmm(n, start[0], killed);
        }
    }
    close(start[0]);
    close(start[1]);
    for (int n = 0; n < VMMS; n++) {
        struct timespec moment = {.tv_nsec = chance() % 20000000};
        if (killed)
            nanosleep(&moment, NULL);
        if (killed && kill(children[n], SIGKILL) == -1)
            well = false;
    }
    for (int n = 0; n < VMMS; n++)
        well &= waitpid(children[n], &status, 0) == children[n] && (killed ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL : status == 0);
    return well;
}

void fours(int rounds, unsigned seed, bool killed)
{
    const char *how = killed ? "four VMMs are killed" : "four VMMs come and go";
    int well = 0;
    lives = mmap(NULL, sizeof *lives, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    seed_chance(seed);
    for (int n = 0; n < 20; n++)
        round_of_four(killed);
    long before = settled();
    atomic_store(lives, 0);
    for (int n = 0; n < rounds; n++)
        well += round_of_four(killed);
    said(well == rounds, "%d of %d times %s (seed %u)", well, rounds, how, seed);
    said(killed || atomic_load(lives) == (unsigned)rounds * VMMS, "%u VMs came to their ends", atomic_load(lives));
    no_leak(rounds, before, how);
    round_of_four(false);
}
