// A page of a mapped file that is no longer in the file raises SIGBUS where it is read: in a kernel, on any thread.
// The handler knows the mapped ranges. It uses only what is safe in a signal handler, and leaves the signals of other
// addresses to the handler that was there before.
#define _GNU_SOURCE
#include "sigbus.h"
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RANGES = 1024, NAME_BYTES = 512 };
typedef struct {
    _Atomic uintptr_t start, end;  // both 0: free
    char name[NAME_BYTES];
} range;

static range ranges[RANGES];
static struct sigaction former;
static atomic_flag installed = ATOMIC_FLAG_INIT, said = ATOMIC_FLAG_INIT;

static void end_with_sentence(const range *found) {
    static const char before[] = "\nerror: ";
    static const char after[] = ": was cut off while it was in use, or its disk failed; a model's file must stay as it "
                                "is until the run ends. Restore it and start again.\n";
    const struct iovec parts[] = {{(void *)before, sizeof before - 1},
                                  {(void *)found->name, strnlen(found->name, NAME_BYTES)},
                                  {(void *)after, sizeof after - 1}};
    while (atomic_flag_test_and_set(&said)) pause();  // another thread says it, and ends the process
    ssize_t written = writev(STDERR_FILENO, parts, 3);
    (void)written;  // there is nobody left to tell
    _exit(1);
}

static void on_sigbus(int number, siginfo_t *information, void *context) {
    uintptr_t address = (uintptr_t)information->si_addr;
    for (int i = 0; information->si_code > 0 && i < RANGES; i++)
        if (address >= atomic_load(&ranges[i].start) && address < atomic_load(&ranges[i].end))
            end_with_sentence(&ranges[i]);
    if (former.sa_flags & SA_SIGINFO) former.sa_sigaction(number, information, context);
    else if (former.sa_handler == SIG_DFL || former.sa_handler == SIG_IGN) {
        if (information->si_code <= 0 && former.sa_handler == SIG_IGN) return;  // sent by a process
        sigaction(SIGBUS, &former, NULL);  // the access is tried again, and ends the process as it would have
        if (information->si_code <= 0) raise(SIGBUS);  // no access: what was sent comes again after this handler
    } else former.sa_handler(number);
}

static void install(void) {
    struct sigaction ours = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    ours.sa_sigaction = on_sigbus;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, &former);
}

int sigbus_watch(const void *start, size_t size, const char *name) {
    for (int i = 0; i < RANGES; i++) {
        if (atomic_load(&ranges[i].end)) continue;
        size_t length = strlen(name), skipped = length < NAME_BYTES ? 0 : length - NAME_BYTES + 1;  // its end says more
        memcpy(ranges[i].name, name + skipped, length - skipped + 1);
        atomic_store(&ranges[i].start, (uintptr_t)start);
        atomic_store(&ranges[i].end, (uintptr_t)start + size);
        if (!atomic_flag_test_and_set(&installed)) install();
        return i;
    }
    return -1;
}

void sigbus_forget(int number) {
    if (number < 0 || number >= RANGES) return;
    atomic_store(&ranges[number].end, 0);
    atomic_store(&ranges[number].start, 0);
}
