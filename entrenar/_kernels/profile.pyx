"""Counters of kernels: calls, seconds, FLOPs and bytes of each entry point, shape and phase, off until `enable`.

FLOPs are those of the formula, a multiply-add two, an elementary function one; bytes are the operands', read and
written once each, whatever the caches make of it. Counting changes no result. Calls from any thread are counted; a
kernel that another one calls counts as part of it. One thread may be watched: its time outside of kernels is counted
too, with what of that it had a CPU.
"""
from libc.stdint cimport int64_t

from entrenar._kernels.cpu cimport simd

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <time.h>
    enum { MOST_KERNELS = 128, MOST_SHAPES = 128, MOST_PHASES = 16 };
    enum { FREE, BEING_WRITTEN, READY };
    typedef struct {
        int64_t calls, nanoseconds, flops, bytes;
    } counter;
    typedef struct {
        int64_t extent[4];
        int32_t type, format, phase, padding;
    } counter_key;
    typedef struct {
        int state;
        counter_key key;
        counter count;
    } counter_slot;
    typedef struct {
        int64_t nanoseconds, cpu;
    } outside_time;
    static counter_slot slots[MOST_KERNELS][MOST_SHAPES];  // of a kernel: a table with open addressing
    static counter others[MOST_KERNELS][MOST_PHASES];      // shapes for which the table has no room
    static outside_time outside[MOST_PHASES];              // of the watched thread
    static int64_t elsewhere;                              // nanoseconds of kernels that other threads called
    static int phase;
    static _Thread_local int depth;    // kernels that the thread is in
    static _Thread_local int watched;
    static _Thread_local int64_t last, last_cpu;  // when the watched thread left a kernel, and its CPU time then
    typedef struct {
        int64_t calls, started, ended, nanoseconds, flops, bytes;
        double least;  // nanoseconds at the machine's peak
    } meter_reading;
    static _Thread_local int metered;
    static _Thread_local meter_reading meter;     // of the thread's kernels since it was last read
    static double flop_time[3], byte_time;        // nanoseconds at the peak: of an operation by format, of a byte

    static int64_t nanoseconds_of(clockid_t clock) {
        struct timespec t;
        clock_gettime(clock, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static void set_out(int64_t now) {
        last = now;
        last_cpu = nanoseconds_of(CLOCK_THREAD_CPUTIME_ID);
    }
    static void add_outside(int64_t now) {
        outside_time *o = &outside[phase];
        __atomic_fetch_add(&o->nanoseconds, now - last, __ATOMIC_RELAXED);
        __atomic_fetch_add(&o->cpu, nanoseconds_of(CLOCK_THREAD_CPUTIME_ID) - last_cpu, __ATOMIC_RELAXED);
    }
    static int64_t enter(void) {
        const int64_t now = nanoseconds_of(CLOCK_MONOTONIC);
        if (depth++ == 0 && watched) add_outside(now);
        return now;
    }
    static void set_phase_number(int number) {
        if (watched) {
            const int64_t now = nanoseconds_of(CLOCK_MONOTONIC);
            add_outside(now);
            set_out(now);
        }
        __atomic_store_n(&phase, number, __ATOMIC_RELAXED);
    }
    static void set_watched(int on) {
        const int64_t now = nanoseconds_of(CLOCK_MONOTONIC);
        if (watched) add_outside(now);
        watched = on;
        set_out(now);
    }

    static uint64_t hash_of(const counter_key *key) {
        uint64_t words[sizeof *key / 8], hash = 0;
        memcpy(words, key, sizeof *key);
        for (size_t i = 0; i < sizeof *key / 8; i++) hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15u;
        return hash >> 32;
    }
    static counter *counter_of(int kernel, const counter_key *key) {
        const uint64_t hash = hash_of(key);
        for (int i = 0; i < MOST_SHAPES; i++) {
            counter_slot *s = &slots[kernel][(hash + i) % MOST_SHAPES];
            int state = __atomic_load_n(&s->state, __ATOMIC_ACQUIRE);
            if (state == FREE
                && __atomic_compare_exchange_n(&s->state, &state, BEING_WRITTEN, 0, __ATOMIC_ACQUIRE,
                                               __ATOMIC_ACQUIRE)) {
                s->key = *key;
                __atomic_store_n(&s->state, READY, __ATOMIC_RELEASE);
                return &s->count;
            }
            while (state == BEING_WRITTEN) state = __atomic_load_n(&s->state, __ATOMIC_ACQUIRE);
            if (memcmp(&s->key, key, sizeof *key) == 0) return &s->count;
        }
        return &others[kernel][key->phase];
    }
    static void add_to_meter(int64_t started, int64_t now, int format, int64_t flops, int64_t bytes) {
        const double compute = flops * flop_time[format], memory = bytes * byte_time;
        if (meter.calls++ == 0) meter.started = started;
        meter.ended = now;
        meter.nanoseconds += now - started;
        meter.flops += flops;
        meter.bytes += bytes;
        meter.least += compute > memory ? compute : memory;
    }
    static meter_reading read_meter(void) {
        const meter_reading found = meter;
        memset(&meter, 0, sizeof meter);
        return found;
    }
    static int set_metered(int on) {
        const int before = metered;
        metered = on;
        return before;
    }
    static void set_times(double fp32, double int16, double int8, double byte) {
        flop_time[0] = fp32;
        flop_time[1] = int16;
        flop_time[2] = int8;
        byte_time = byte;
    }
    static void leave(int kernel, int64_t started, const int64_t *extent, int type, int format, int64_t flops,
                      int64_t bytes) {
        if (--depth) return;
        const int64_t now = nanoseconds_of(CLOCK_MONOTONIC);
        if (metered) add_to_meter(started, now, format, flops, bytes);
        counter_key key = {{extent[0], extent[1], extent[2], extent[3]}, type, format, 0, 0};
        key.phase = __atomic_load_n(&phase, __ATOMIC_RELAXED);
        counter *c = counter_of(kernel, &key);
        __atomic_fetch_add(&c->calls, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&c->nanoseconds, now - started, __ATOMIC_RELAXED);
        __atomic_fetch_add(&c->flops, flops, __ATOMIC_RELAXED);
        __atomic_fetch_add(&c->bytes, bytes, __ATOMIC_RELAXED);
        if (watched)
            set_out(now);
        else
            __atomic_fetch_add(&elsewhere, now - started, __ATOMIC_RELAXED);
    }
    static counter loaded(const counter *c) {
        counter found;
        found.calls = __atomic_load_n(&c->calls, __ATOMIC_RELAXED);
        found.nanoseconds = __atomic_load_n(&c->nanoseconds, __ATOMIC_RELAXED);
        found.flops = __atomic_load_n(&c->flops, __ATOMIC_RELAXED);
        found.bytes = __atomic_load_n(&c->bytes, __ATOMIC_RELAXED);
        return found;
    }
    static counter read_slot(int kernel, int number, counter_key *key) {
        const counter_slot *s = &slots[kernel][number];
        if (__atomic_load_n(&s->state, __ATOMIC_ACQUIRE) != READY) return (counter){0, 0, 0, 0};
        *key = s->key;
        return loaded(&s->count);
    }
    static counter read_others(int kernel, int number) { return loaded(&others[kernel][number]); }
    static void add_counter(counter *sum, counter c) {
        sum->calls += c.calls;
        sum->nanoseconds += c.nanoseconds;
        sum->flops += c.flops;
        sum->bytes += c.bytes;
    }
    static counter total(int kernel) {
        counter sum = {0, 0, 0, 0};
        counter_key key;
        for (int i = 0; i < MOST_SHAPES; i++) add_counter(&sum, read_slot(kernel, i, &key));
        for (int i = 0; i < MOST_PHASES; i++) add_counter(&sum, read_others(kernel, i));
        return sum;
    }
    static outside_time read_outside(int number) { return outside[number]; }
    static int64_t read_elsewhere(void) { return __atomic_load_n(&elsewhere, __ATOMIC_RELAXED); }
    static void clear_counters(int kernels) {
        memset(slots, 0, sizeof slots[0] * kernels);
        memset(others, 0, sizeof others[0] * kernels);
        memset(outside, 0, sizeof outside);
        elsewhere = 0;
    }
    """
    const int MOST_KERNELS, MOST_SHAPES, MOST_PHASES
    ctypedef struct counter:
        int64_t calls, nanoseconds, flops, bytes
    ctypedef struct counter_key:
        int64_t extent[4]
        int type, format, phase
    ctypedef struct outside_time:
        int64_t nanoseconds, cpu
    ctypedef struct meter_reading:
        int64_t calls, started, ended, nanoseconds, flops, bytes
        double least
    int64_t enter() noexcept nogil
    void leave(int kernel, int64_t started, const int64_t* extent, int type, int format, int64_t flops,
               int64_t nbytes) noexcept nogil
    void set_phase_number(int number) noexcept nogil
    void set_watched(bint on) noexcept nogil
    meter_reading read_meter() noexcept nogil
    bint set_metered(bint on) noexcept nogil
    void set_times(double fp32, double int16, double int8, double byte) noexcept nogil
    counter read_slot(int kernel, int number, counter_key* key) noexcept nogil
    counter read_others(int kernel, int number) noexcept nogil
    counter total(int kernel) noexcept nogil
    outside_time read_outside(int number) noexcept nogil
    int64_t read_elsewhere() noexcept nogil
    void clear_counters(int kernels) noexcept nogil

FORMATS = ("fp32", "int16", "int8")  # in which a product computes, by its number in simd/gemm.h
cdef bint counting = False
cdef list names = []       # a kernel's id is where its name stands
cdef str current = ""      # the phase
cdef list phases = [""]    # a phase's number is where its name stands; the first is what belongs to none


cdef int register(str name) except -1:
    """The id of the kernel `name`, whose counters start at zero."""
    if name in names:
        raise AssertionError(f"Two kernels are called {name!r}.")
    if len(names) == MOST_KERNELS:
        raise AssertionError(f"There are counters for {MOST_KERNELS} kernels; {name!r} is one more.")
    names.append(name)
    return <int> len(names) - 1


cdef int64_t count_begin() noexcept nogil:
    return enter()


cdef void count_end(int kernel, int64_t started, kernel_shape shape, int64_t flops, int64_t nbytes) noexcept nogil:
    leave(kernel, started, shape.extent, shape.type, shape.format, flops, nbytes)


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
    """Set every counter to zero, and forget shapes and phases; no kernel may run in another thread meanwhile."""
    set_phase("")
    phases[1:] = []
    clear_counters(<int> len(names))


def watch(bint on):
    """Whether the calling thread's time outside of kernels is counted from now on."""
    set_watched(on)


cdef bint metering(bint on) noexcept nogil:
    """Whether the calling thread's kernels are metered from now on; returns whether they were."""
    return set_metered(on)


def meter(rates):
    """Meter the calling thread's kernels from now on against peak rates, or no longer where `rates` is None.

    Rates are (fp32, int16, int8) operations and bytes read, each in 1e9 a second: one peak for all threads. Kernels are
    metered where they are counted (`enable`).
    """
    if rates is not None:
        fp32, int16, int8, read = rates
        set_times(1 / fp32, 1 / (int16 or fp32), 1 / (int8 or fp32), 1 / read)
    read_meter()
    set_metered(rates is not None)


def take():
    """(calls, start, end, nanoseconds, FLOPs, bytes, nanoseconds at the peak) of the thread's kernels since the last.

    Start and end of the first and the last kernel are nanoseconds of CLOCK_MONOTONIC. At the peak a kernel takes as
    long as its arithmetic or its memory traffic, whichever is longer.
    """
    cdef meter_reading found = read_meter()
    return found.calls, found.started, found.ended, found.nanoseconds, found.flops, found.bytes, found.least


def set_phase(str name):
    """Count what follows, in every thread, under the phase `name` ("": under none); returns the one before.

    There is room for a few names; further ones count as none.
    """
    global current
    cdef str before = current
    if name not in phases and len(phases) < MOST_PHASES:
        phases.append(name)
    current = name if name in phases else ""
    set_phase_number(<int> phases.index(current))
    return before


def counters():
    """{kernel: (calls, seconds, FLOPs, bytes)} of the kernels that were called, in the order of their registration."""
    cdef counter c
    cdef int kernel
    found = {}
    for kernel, name in enumerate(names):
        c = total(kernel)
        if c.calls:
            found[name] = (c.calls, c.nanoseconds / 1e9, c.flops, c.bytes)
    return found


cdef tuple described(counter_key* key):
    """Phase, extents, weight type ("" where the kernel has no weight) and format of a key."""
    extents = tuple(key.extent[i] for i in range(4))
    while extents and not extents[-1]:
        extents = extents[:-1]
    weight = simd.weight_types[key.type].name.decode() if key.type >= 0 else ""
    return phases[key.phase], extents, weight, FORMATS[key.format]


def shapes():
    """[((kernel, phase, extents, weight type, format), (calls, seconds, FLOPs, bytes))] of what was called.

    The extents are None where a kernel met more shapes than there are counters: those count together.
    """
    cdef counter c
    cdef counter_key key
    cdef int kernel, i
    found = []
    for kernel, name in enumerate(names):
        for i in range(MOST_SHAPES):
            c = read_slot(kernel, i, &key)
            if c.calls:
                found.append(((name, *described(&key)), (c.calls, c.nanoseconds / 1e9, c.flops, c.bytes)))
        for i in range(<int> len(phases)):
            c = read_others(kernel, i)
            if c.calls:
                others = (name, phases[i], None, "", FORMATS[0])
                found.append((others, (c.calls, c.nanoseconds / 1e9, c.flops, c.bytes)))
    return found


def outside():
    """{phase: (seconds, CPU seconds)} of the watched thread outside of kernels, up to now where it is the caller."""
    cdef outside_time o
    cdef int i
    set_phase_number(<int> phases.index(current))
    found = {}
    for i, name in enumerate(phases):
        o = read_outside(i)
        if o.nanoseconds:
            found[name] = (o.nanoseconds / 1e9, o.cpu / 1e9)
    return found


def elsewhere():
    """Seconds of kernels that threads called which were not watched."""
    return read_elsewhere() / 1e9
