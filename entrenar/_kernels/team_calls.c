// What GCC calls for `#pragma omp parallel` and `omp for`, in every extension, passed on to the one team in cpu. The
// names are hidden: they do not clash with those of libgomp or of another package's copy of it.
#include <Python.h>
#include "team.h"

static const team_calls *calls;

static const team_calls *find(void) {
    PyGILState_STATE state = PyGILState_Ensure();
    const team_calls *found = PyCapsule_Import(TEAM_CAPSULE, 0);
    if (!found) Py_FatalError("entrenar: the module of its threads is gone");
    PyGILState_Release(state);
    __atomic_store_n(&calls, found, __ATOMIC_RELEASE);
    return found;
}
static inline const team_calls *to(void) {
    const team_calls *known = __atomic_load_n(&calls, __ATOMIC_ACQUIRE);
    return __builtin_expect(known != NULL, 1) ? known : find();
}

void GOMP_parallel(team_body *body, void *data, unsigned threads, unsigned flags) {
    (void)flags;
    to()->parallel(body, data, threads);
}
void GOMP_barrier(void) { to()->barrier(); }
_Bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long increment, long chunk, long *first, long *last) {
    return to()->loop_start(start, end, increment, chunk, first, last);
}
_Bool GOMP_loop_nonmonotonic_dynamic_next(long *first, long *last) { return to()->loop_next(first, last); }
_Bool GOMP_loop_dynamic_start(long start, long end, long increment, long chunk, long *first, long *last) {
    return to()->loop_start(start, end, increment, chunk, first, last);
}
_Bool GOMP_loop_dynamic_next(long *first, long *last) { return to()->loop_next(first, last); }
void GOMP_loop_end(void) { to()->barrier(); }
void GOMP_loop_end_nowait(void) {}
int omp_get_thread_num(void) { return to()->thread(); }
int omp_get_num_threads(void) { return to()->threads(); }
int omp_get_max_threads(void) { return 1; }
