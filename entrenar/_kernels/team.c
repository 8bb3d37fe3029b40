// A team of threads for parallel regions, one team a calling thread, made when first needed and again after a fork.
//
// Waiting: a thread that spins reacts at once, and a step waits many thousand times; but where other programs use the
// same CPUs, spinning takes the CPU from the thread that is waited for. Threads spin only while they get their CPUs:
// each compares elapsed time with its CPU time, and where a share of it went to others, the team sleeps instead of
// spinning for a while.
//
// Placing: the scheduler puts a thread that another wakes on that one's CPU, and may leave both there though another
// CPU is idle, where a team of two takes the time of one. So a worker that finds itself on its caller's CPU leaves it,
// and stays away from that CPU.
#define _GNU_SOURCE
#include "team.h"

static int waiting = TEAM_ADAPTIVE;
void team_set_waiting(int policy) { __atomic_store_n(&waiting, policy, __ATOMIC_RELAXED); }
int team_waiting(void) { return __atomic_load_n(&waiting, __ATOMIC_RELAXED); }

#include <errno.h>
#ifndef _OPENMP  // built for one thread
const team_calls team;
int team_place(int threads, const int *cpus, int count, int each) { return ENOSYS; }
#else
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MILLISECOND 1000000LL
static const int64_t SPIN = 5 * MILLISECOND;  // of a thread that gets its CPU, before it sleeps
static const int64_t SPIN_ACTIVE = 300000 * MILLISECOND;
static const int64_t SPIN_CROWDED = MILLISECOND / 50;  // where this process has more threads in teams than CPUs
static const int64_t WINDOW = 10 * MILLISECOND;        // over which time and CPU time are compared
static const double LOST = 0.15;                       // share of a window beyond which others use the CPUs
// After the last such window the team sleeps at once for HOLD, and twice as long where spinning shows one within QUIET.
static const int64_t HOLD = 20 * MILLISECOND;
static const int64_t LONGEST_HOLD = 1000 * MILLISECOND;
static const int64_t QUIET = 200 * MILLISECOND;
static const int64_t GAP = MILLISECOND;  // outside of regions: the thread may have slept there, so nothing is known
enum { LOOPS = 8, LINE = 64, MOST_CPUS = 8192 };

typedef struct {
    cpu_set_t sets[MOST_CPUS / CPU_SETSIZE];
} cpus_allowed;

typedef struct team_state team_state;
typedef struct {
    team_state *team;
    int index, size;  // of the team that runs now
    int loops;        // dynamic loops begun in this region
    long start, end, increment, chunk;
    int64_t since, cpu_since, slept;  // the window: when it began, CPU time then, time asleep in it
    int known;                        // whether the window has begun
} member;
typedef struct {
    _Alignas(LINE) uint32_t go;  // counts the regions that the worker was given
    int sleeps;
    pthread_t thread;
    member self;
    int64_t left;  // when it last left its caller's CPU, or tried to
} worker;
struct team_state {
    team_body *body;
    void *data;
    int size;     // of this region, the caller included
    int workers;  // threads there are beside the caller
    int capacity;
    worker **list;
    pid_t caller;
    int cpu;         // that the caller was on when this region began
    int64_t parted;  // when a worker last left it
    int64_t ended;   // when the last region did
    int64_t hold, held_until;
    _Alignas(LINE) uint32_t generation;  // of the barrier
    int sleepers;
    _Alignas(LINE) int arrived;
    _Alignas(LINE) long next[LOOPS];  // chunks that each dynamic loop has given out
    _Alignas(LINE) int ending;
};

static _Thread_local member me = {.size = 1};
static _Thread_local team_state *mine;
static _Thread_local int depth;  // regions that the thread is in
static int crowd;                // threads in all teams
static int cpus = 1;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int get_allowed(pid_t thread, cpus_allowed *set) { return sched_getaffinity(thread, sizeof *set, set->sets); }
static int set_allowed(const cpus_allowed *set) { return sched_setaffinity(0, sizeof *set, set->sets); }
static int count_allowed(const cpus_allowed *set) { return CPU_COUNT_S(sizeof *set, set->sets); }

static int64_t now_on(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000 * MILLISECOND + t.tv_nsec;
}
static inline int64_t now(void) { return now_on(CLOCK_MONOTONIC); }
static void futex(uint32_t *word, int operation, uint32_t value) {
    syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}
static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t spin_of(team_state *t, int64_t at) {
    int policy = team_waiting();
    if (policy == TEAM_ACTIVE) return __atomic_load_n(&crowd, __ATOMIC_RELAXED) > cpus ? SPIN_CROWDED : SPIN_ACTIVE;
    if (policy == TEAM_PASSIVE) return 0;
    return at < __atomic_load_n(&t->held_until, __ATOMIC_RELAXED) ? 0 : SPIN;
}

// Until *word is no longer `old`: spin as long as allowed, then sleep. The waking side calls futex where `sleepers`.
static void wait_change(team_state *t, member *m, uint32_t *word, uint32_t old, int *sleepers) {
    int64_t began = 0;
    for (;;) {
        for (int i = 0; i < 64; i++) {
            if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != old) return;
            relax();
        }
        int64_t at = now();
        if (!began) began = at;
        if (at - began >= spin_of(t, at)) break;
    }
    int64_t began_sleeping = now();
    __atomic_fetch_add(sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == old) futex(word, FUTEX_WAIT, old);
    __atomic_fetch_sub(sleepers, 1, __ATOMIC_SEQ_CST);
    m->slept += now() - began_sleeping;
}
static void change(uint32_t *word, uint32_t value, int *sleepers) {
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(sleepers, __ATOMIC_SEQ_CST)) futex(word, FUTEX_WAKE, INT_MAX);
}

static void begin_window(member *m, int64_t at) {
    m->since = at;
    m->cpu_since = now_on(CLOCK_THREAD_CPUTIME_ID);
    m->slept = 0;
    m->known = 1;
}
// Once a window: did this thread get the CPU while it was awake?
static void look(team_state *t, member *m) {
    if (team_waiting() != TEAM_ADAPTIVE) return;
    int64_t at = now();
    if (!m->known) {
        begin_window(m, at);
        return;
    }
    int64_t passed = at - m->since;
    if (passed < WINDOW) return;
    int64_t awake = passed - m->slept, got = now_on(CLOCK_THREAD_CPUTIME_ID) - m->cpu_since;
    int parted = __atomic_load_n(&t->parted, __ATOMIC_RELAXED) >= m->since;  // until then two were on one CPU
    if (!parted && awake - got > LOST * (double)passed) {
        int64_t held_until = __atomic_load_n(&t->held_until, __ATOMIC_RELAXED);
        int64_t hold = __atomic_load_n(&t->hold, __ATOMIC_RELAXED);
        if (at - held_until >= QUIET || !hold) hold = HOLD;
        else if (at >= held_until) hold = 2 * hold < LONGEST_HOLD ? 2 * hold : LONGEST_HOLD;
        __atomic_store_n(&t->hold, hold, __ATOMIC_RELAXED);
        if (at + hold > held_until) __atomic_store_n(&t->held_until, at + hold, __ATOMIC_RELAXED);
    }
    begin_window(m, at);
}

static void meet(team_state *t, member *m) {
    if (m->size == 1) return;
    look(t, m);
    uint32_t generation = __atomic_load_n(&t->generation, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&t->arrived, 1, __ATOMIC_ACQ_REL) == m->size) {
        __atomic_store_n(&t->arrived, 0, __ATOMIC_RELAXED);
        change(&t->generation, generation + 1, &t->sleepers);
    } else {
        wait_change(t, m, &t->generation, generation, &t->sleepers);
    }
}
static void barrier(void) {
    if (me.team) meet(me.team, &me);
}

// Leave the CPU that the caller is on, for the others that it may use; tried once a window.
static void leave(team_state *t, worker *w) {
    int64_t at = now();
    if (at - w->left < WINDOW) return;
    w->left = at;
    cpus_allowed others = {0};
    if (get_allowed(t->caller, &others) || count_allowed(&others) < t->size) return;  // two share a CPU in any case
    CPU_CLR_S(t->cpu, sizeof others, others.sets);
    if (!set_allowed(&others)) __atomic_store_n(&t->parted, at, __ATOMIC_RELAXED);
}

static void *work(void *pointer) {
    worker *w = pointer;
    team_state *t = w->self.team;
    uint32_t seen = 0;
    me = w->self;
    depth = 1;
    for (;;) {
        wait_change(t, &me, &w->go, seen, &w->sleeps);
        seen = __atomic_load_n(&w->go, __ATOMIC_ACQUIRE);
        if (__atomic_load_n(&t->ending, __ATOMIC_ACQUIRE)) return NULL;
        me.size = t->size;
        me.loops = 0;
        if (sched_getcpu() == t->cpu) leave(t, w);
        t->body(t->data);
        meet(t, &me);
    }
}

static void end_team(void *pointer) {  // of a thread that ends
    team_state *t = pointer;
    __atomic_store_n(&t->ending, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < t->workers; i++) {
        worker *w = t->list[i];
        change(&w->go, w->go + 1, &w->sleeps);
        pthread_join(w->thread, NULL);
        free(w);
    }
    __atomic_fetch_sub(&crowd, 1 + t->workers, __ATOMIC_RELAXED);
    free(t->list);
    free(t);
    mine = NULL;
}
static void after_fork(void) {  // the workers are the parent's; their memory is left as it is
    mine = NULL;
    me = (member){.size = 1};
    depth = 0;
    crowd = 0;
    pthread_setspecific(key, NULL);
}
static void make_key(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
    else cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);  // a machine of more than 1024
    pthread_key_create(&key, end_team);
    pthread_atfork(NULL, NULL, after_fork);
}

// Signals are the calling thread's, but for those that a fault of the worker itself raises.
static int start(worker *w) {
    sigset_t block, before;
    sigfillset(&block);
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&block, faults[i]);
    pthread_sigmask(SIG_BLOCK, &block, &before);
    int failed = pthread_create(&w->thread, NULL, work, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}
// The team with workers for `size` threads, or as many as there is memory for; NULL for none.
static team_state *team_of(int size) {
    pthread_once(&once, make_key);
    team_state *t = mine;
    if (!t) {
        t = aligned_alloc(LINE, sizeof *t);
        if (!t) return NULL;
        memset(t, 0, sizeof *t);
        mine = t;
        t->caller = (pid_t)syscall(SYS_gettid);
        __atomic_fetch_add(&crowd, 1, __ATOMIC_RELAXED);
        pthread_setspecific(key, t);
    }
    if (size - 1 > t->capacity) {
        worker **list = realloc(t->list, (size - 1) * sizeof *list);
        if (!list) return t;
        t->list = list;
        t->capacity = size - 1;
    }
    while (t->workers < size - 1) {
        worker *w = aligned_alloc(LINE, sizeof *w);
        if (!w) return t;
        memset(w, 0, sizeof *w);
        w->self = (member){.team = t, .index = t->workers + 1, .size = 1};
        if (start(w)) {
            free(w);
            return t;
        }
        t->list[t->workers++] = w;
        __atomic_fetch_add(&crowd, 1, __ATOMIC_RELAXED);
    }
    return t;
}

static void alone(team_body *body, void *data) {  // one thread, or a region inside of a region
    member before = me;
    me = (member){.size = 1};
    depth++;
    body(data);
    depth--;
    me = before;
}
static void parallel(team_body *body, void *data, unsigned threads) {
    team_state *t = threads > 1 && depth == 0 ? team_of((int)threads) : NULL;
    if (!t || !t->workers) {
        alone(body, data);
        return;
    }
    if (now() - t->ended > GAP) me.known = 0;
    t->body = body;
    t->data = data;
    t->size = t->workers + 1 < (int)threads ? t->workers + 1 : (int)threads;
    t->cpu = sched_getcpu();
    memset(t->next, 0, sizeof t->next);
    me.team = t;
    me.index = 0;
    me.size = t->size;
    me.loops = 0;
    for (int i = 0; i < t->size - 1; i++) change(&t->list[i]->go, t->list[i]->go + 1, &t->list[i]->sleeps);
    depth++;
    body(data);
    depth--;
    meet(t, &me);
    me.team = NULL;
    me.size = 1;
    t->ended = now();
}

// Dynamic loops: every thread knows the loop's bounds, so only the number of chunks given out is shared.
static int loop_next(long *first, long *last) {
    long one = me.increment * me.chunk;
    long taken = me.team ? __atomic_fetch_add(&me.team->next[me.loops - 1], 1, __ATOMIC_RELAXED) : me.index++;
    long total = (me.end - me.start + me.increment + (me.increment > 0 ? -1 : 1)) / me.increment;
    if (taken * me.chunk >= total) return 0;
    *first = me.start + taken * one;
    *last = (taken + 1) * me.chunk >= total ? me.end : *first + one;
    return 1;
}
static int loop_start(long start, long end, long increment, long chunk, long *first, long *last) {
    if (me.loops == LOOPS) {
        fprintf(stderr, "entrenar: a parallel region has more than %d dynamic loops\n", LOOPS);
        abort();
    }
    me.loops++;
    me.start = start;
    me.end = end;
    me.increment = increment;
    me.chunk = chunk;
    if (!me.team) me.index = 0;  // a thread alone counts for itself
    return loop_next(first, last);
}
static int thread_number(void) { return me.team ? me.index : 0; }
static int thread_count(void) { return me.size; }

typedef struct {
    const int *cpus;
    int count, each, failed;
} placement;
static void place(void *pointer) {
    placement *p = pointer;
    cpus_allowed set = {0};
    int first = p->each ? thread_number() % p->count : 0, last = p->each ? first + 1 : p->count;
    for (int i = first; i < last; i++) CPU_SET_S(p->cpus[i], sizeof set, set.sets);
    if (set_allowed(&set)) __atomic_store_n(&p->failed, errno, __ATOMIC_RELAXED);
}
int team_place(int threads, const int *cpus, int count, int each) {
    placement p = {cpus, count, each, 0};
    for (int i = 0; i < count; i++)
        if (cpus[i] < 0 || cpus[i] >= MOST_CPUS) return EINVAL;
    parallel(place, &p, threads ? threads : mine ? mine->workers + 1 : 1);
    return p.failed;
}

const team_calls team = {parallel, barrier, loop_start, loop_next, thread_number, thread_count};
#endif
