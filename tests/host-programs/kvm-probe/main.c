/* kvm-probe api|run|irq|life ROUNDS|file PATH|moved|swapped RECLAIM|spin|fours ROUNDS SEED|fours-killed ROUNDS SEED|fuzz SEED ROUNDS: asks /dev/kvm, and says on each line what is so ("ok") and what is not.
 * kvm-probe bench|bench-protected IMAGE TREE GIC: runs the payload of scripts/bench. kvm-probe mark before|after: a mark of its plugin. */
#include "probe.h"
#include <fcntl.h>

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "mark"))
        return mark(argv[2]);
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        perror("/dev/kvm");
        return 2;
    }
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    said(size >= 4096 && size % 4096 == 0, "kvm_run has %d bytes", size);
    run_size = size > 0 ? size : 4096;
    catch_alarms();
    const char *what = argc > 1 ? argv[1] : "";
    if (argc == 5 && !strncmp(what, "bench", 5))
        return bench(argv[2], argv[3], argv[4], !strcmp(what, "bench-protected"));
    if (!strcmp(what, "api")) {
        test_system();
        test_memory();
        test_vcpu();
        test_registers();
    } else if (!strcmp(what, "run")) {
        test_runs();
    } else if (!strcmp(what, "irq")) {
        test_interrupts();
        test_tables();
    } else if (!strcmp(what, "life") && argc == 3) {
        test_lifecycle(atoi(argv[2]));
    } else if (!strcmp(what, "spin")) {
        spin();
    } else if (!strcmp(what, "file") && argc == 3) {
        test_file(argv[2]);
    } else if (!strcmp(what, "moved")) {
        test_moved();
    } else if (!strcmp(what, "swapped") && argc == 3) {
        test_swapped(argv[2]);
    } else if ((!strcmp(what, "fours") || !strcmp(what, "fours-killed")) && argc == 4) {
        fours(atoi(argv[2]), atoi(argv[3]), !strcmp(what, "fours-killed"));
    } else if (!strcmp(what, "fuzz") && argc == 4) {
        fuzz(atoi(argv[2]), atoi(argv[3]));
    } else {
        fprintf(stderr, "usage: kvm-probe api | run | irq | life ROUNDS | file PATH | moved | swapped RECLAIM | spin | fours[-killed] ROUNDS SEED | fuzz SEED ROUNDS | bench[-protected] IMAGE TREE GIC | mark before|after\n");
        return 2;
    }
    return verdict();
}
