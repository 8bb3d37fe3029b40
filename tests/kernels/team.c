// Parallel regions of every shape that kernels have, run by the team (entrenar/_kernels/team.c): exit 0 if all hold.
#define _GNU_SOURCE
#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "team.h"

void GOMP_parallel(team_body *body, void *data, unsigned threads, unsigned flags) {
    (void)flags;
    team.parallel(body, data, threads);
}
void GOMP_barrier(void) { team.barrier(); }
_Bool GOMP_loop_nonmonotonic_dynamic_start(long s, long e, long i, long c, long *f, long *l) {
    return team.loop_start(s, e, i, c, f, l);
}
_Bool GOMP_loop_nonmonotonic_dynamic_next(long *f, long *l) { return team.loop_next(f, l); }
void GOMP_loop_end(void) { team.barrier(); }
void GOMP_loop_end_nowait(void) {}
int omp_get_thread_num(void) { return team.thread(); }
int omp_get_num_threads(void) { return team.threads(); }

enum { MOST = 1000 };

static void dynamic(int threads, long start, long end, long step, int two) {
    int counts[2][MOST] = {{0}};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (long i = start; i < end; i += step) __atomic_fetch_add(&counts[0][i - start], 1, __ATOMIC_RELAXED);
        if (two) {
#pragma omp for schedule(dynamic, 7)
            for (long i = end - 1; i >= start; i -= step)
                __atomic_fetch_add(&counts[1][i - start], 1, __ATOMIC_RELAXED);
        }
    }
    for (long i = 0; i < end - start; i++) {
        assert(counts[0][i] == (i % step == 0));
        assert(counts[1][i] == (two && (end - 1 - start - i) % step == 0));
    }
}
static void fixed(int threads, long n) {
    long sums[64] = {0}, total = 0;
    int seen = 0;
#pragma omp parallel num_threads(threads)
    {
        __atomic_fetch_add(&seen, 1, __ATOMIC_RELAXED);
        assert(omp_get_num_threads() == threads);
#pragma omp for schedule(static)
        for (long i = 0; i < n; i++) sums[omp_get_thread_num()] += i;
        long all = 0;  // behind the loop's barrier every thread sees every sum
        for (int t = 0; t < threads; t++) all += sums[t];
        assert(all == n * (n - 1) / 2);
    }
    for (int t = 0; t < threads; t++) total += sums[t];
    assert(seen == threads && total == n * (n - 1) / 2);
}
static void nested(void) {
    int inner[4] = {0};
#pragma omp parallel num_threads(4)
    {
        int outer = omp_get_thread_num();
#pragma omp parallel num_threads(3)
        {
            assert(omp_get_num_threads() == 1 && omp_get_thread_num() == 0);
#pragma omp for schedule(dynamic)
            for (int i = 0; i < 10; i++) inner[outer]++;
        }
        assert(omp_get_thread_num() == outer && omp_get_num_threads() == 4);
    }
    for (int t = 0; t < 4; t++) assert(inner[t] == 10);
}
static void all(int rounds) {
    assert(omp_get_num_threads() == 1 && omp_get_thread_num() == 0);
    for (int round = 0; round < rounds; round++) {
        for (int threads = 1; threads <= 5; threads++) {
            fixed(threads, round % 40);
            dynamic(threads, round % 3, 40, 1 + round % 4, round % 2);
        }
        nested();
    }
    dynamic(3, 5, 5, 1, 1);  // nothing to do
}
static cpu_set_t
of_worker(const cpu_set_t *wanted) {  // the CPUs that the second thread may run on, set first where wanted
    cpu_set_t found;
#pragma omp parallel num_threads(2)
    if (omp_get_thread_num() == 1) {
        if (wanted) assert(sched_setaffinity(0, sizeof *wanted, wanted) == 0);
        assert(sched_getaffinity(0, sizeof found, &found) == 0);
    }
    return found;
}
static void a_worker_leaves_its_callers_cpu(void) {
    cpu_set_t both, one, set;
    assert(sched_getaffinity(0, sizeof both, &both) == 0);
    if (CPU_COUNT(&both) < 2) return;
    int left = 0;
    for (int i = 0; i < 100 && !left; i++) {  // the scheduler may move the caller meanwhile
        CPU_ZERO(&one);
        CPU_SET(sched_getcpu(), &one);
        of_worker(&one);
        for (int j = 0; j < 15 && !left; j++) {  // it tries once in 10 ms
            usleep(1000);
            set = of_worker(NULL);
            left = !CPU_EQUAL(&set, &one);
        }
    }
    assert(left && CPU_COUNT(&set) == CPU_COUNT(&both) - 1);
    assert(sched_setaffinity(0, sizeof one, &one) == 0);  // as a tool does that gives a process one CPU
    of_worker(&one);
    for (int j = 0; j < 15; j++) {
        usleep(1000);
        set = of_worker(NULL);
        assert(CPU_EQUAL(&set, &one));
    }
    assert(sched_setaffinity(0, sizeof both, &both) == 0);
    of_worker(&both);
}
static void more_threads_than_cpus_leave_none(void) {  // two share a CPU wherever they go
    cpu_set_t all;
    assert(sched_getaffinity(0, sizeof all, &all) == 0);
    int threads = CPU_COUNT(&all) + 1, narrowed = 0;
    for (int i = 0; i < 15; i++) {
        usleep(1000);
#pragma omp parallel num_threads(threads)
        {
            cpu_set_t set;
            if (i == 0) assert(sched_setaffinity(0, sizeof all, &all) == 0);
            assert(sched_getaffinity(0, sizeof set, &set) == 0);
            if (!CPU_EQUAL(&set, &all)) __atomic_fetch_add(&narrowed, 1, __ATOMIC_RELAXED);
        }
    }
    assert(!narrowed);
}
static void *in_a_thread(void *rounds) {
    all((int)(long)rounds);
    return NULL;
}

int main(int count, char **arguments) {
    int rounds = atoi(arguments[count - 1]);
    // TEAM_ACTIVE too: five threads and more are a crowd on few CPUs, and must not spin for as long as they may
    for (int policy = TEAM_ADAPTIVE; policy <= TEAM_ACTIVE; policy++) {
        team_set_waiting(policy);
        a_worker_leaves_its_callers_cpu();
        more_threads_than_cpus_leave_none();
        all(rounds);
        usleep(20000);  // the workers have gone to sleep
        all(2);
        pthread_t threads[3];
        for (int t = 0; t < 3; t++) pthread_create(&threads[t], NULL, in_a_thread, (void *)(long)(rounds / 4));
        for (int t = 0; t < 3; t++) pthread_join(threads[t], NULL);
        pid_t child = fork();
        if (child == 0) {
            all(2);
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    puts("ok");
    return 0;
}
