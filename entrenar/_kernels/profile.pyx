"""Counters of kernels: calls, seconds, FLOPs and bytes of each entry point, off until `enable`.

FLOPs are those of the formula, a multiply-add two, an elementary function one; bytes are the operands', read and
written once each, whatever the caches make of it. Counting changes no result. Calls from any thread are counted; a
kernel that another one calls counts as part of it.
"""
from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    enum { MOST_KERNELS = 128 };
    typedef struct {
        int64_t calls, nanoseconds, flops, bytes;
    } counter;
    static counter counters[MOST_KERNELS];
    static _Thread_local int depth;  // kernels that the thread is in

    static int64_t nanoseconds(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static int64_t enter(void) {
        depth++;
        return nanoseconds();
    }
    static void leave(int kernel, int64_t started, int64_t flops, int64_t bytes) {
        if (--depth) return;
        counter *c = &counters[kernel];
        __atomic_fetch_add(&c->calls, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&c->nanoseconds, nanoseconds() - started, __ATOMIC_RELAXED);
        __atomic_fetch_add(&c->flops, flops, __ATOMIC_RELAXED);
        __atomic_fetch_add(&c->bytes, bytes, __ATOMIC_RELAXED);
    }
    static counter read_counter(int kernel) {
        const counter *c = &counters[kernel];
        counter found;
        found.calls = __atomic_load_n(&c->calls, __ATOMIC_RELAXED);
        found.nanoseconds = __atomic_load_n(&c->nanoseconds, __ATOMIC_RELAXED);
        found.flops = __atomic_load_n(&c->flops, __ATOMIC_RELAXED);
        found.bytes = __atomic_load_n(&c->bytes, __ATOMIC_RELAXED);
        return found;
    }
    static void clear_counter(int kernel) {
        counter *c = &counters[kernel];
        __atomic_store_n(&c->calls, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&c->nanoseconds, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&c->flops, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&c->bytes, 0, __ATOMIC_RELAXED);
    }
    """
    const int MOST_KERNELS
    ctypedef struct counter:
        int64_t calls, nanoseconds, flops, bytes
    int64_t enter() noexcept nogil
    void leave(int kernel, int64_t started, int64_t flops, int64_t nbytes) noexcept nogil
    counter read_counter(int kernel) noexcept nogil
    void clear_counter(int kernel) noexcept nogil

cdef bint counting = False
cdef list names = []  # a kernel's id is where its name stands


cdef int register(str name) except -1:
    """The id of the kernel `name`, whose counter starts at zero."""
    if name in names:
        raise AssertionError(f"Two kernels are called {name!r}.")
    if len(names) == MOST_KERNELS:
        raise AssertionError(f"There are counters for {MOST_KERNELS} kernels; {name!r} is one more.")
    names.append(name)
    return <int> len(names) - 1


cdef int64_t count_begin() noexcept nogil:
    return enter()


cdef void count_end(int kernel, int64_t started, int64_t flops, int64_t nbytes) noexcept nogil:
    leave(kernel, started, flops, nbytes)


def enable():
    """Count from now on, in every thread; what was counted before stays (see `reset`)."""
    global counting
    counting = True


def disable():
    """Stop counting; kernels that run now are still counted."""
    global counting
    counting = False


def enabled():
    """Whether kernels are counted."""
    return bool(counting)


def reset():
    """Set every counter to zero."""
    cdef int kernel
    for kernel in range(<int> len(names)):
        clear_counter(kernel)


def counters():
    """{kernel: (calls, seconds, FLOPs, bytes)} of the kernels that were called, in the order of their registration."""
    cdef counter c
    cdef int kernel
    found = {}
    for kernel, name in enumerate(names):
        c = read_counter(kernel)
        if c.calls:
            found[name] = (c.calls, c.nanoseconds / 1e9, c.flops, c.bytes)
    return found
