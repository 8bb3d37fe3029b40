"""Optimizer updates: one pass over parameters, gradients and state, in place, all parameters in one parallel region.

Each parameter is cut into blocks of fixed size, which are the jobs; `first_job` numbers them across parameters.
"""
from cython.parallel cimport prange
from libc.stdint cimport int64_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport SCRATCH_PARTIALS, bisect, ceil_div, min, piece_size, scratch, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of
from entrenar._kernels.simd.optimizer cimport adam_options, schedulefree_options, sgd_options

cdef enum:
    BLOCK = 16384  # floats of a job
    GRAIN = 32768  # floats worth a thread

cdef int SGD_STEP = register("sgd_step")
cdef int ADAM_STEP = register("adam_step")
cdef int SCHEDULEFREE_STEP = register("schedulefree_step")
cdef int SUM_SQUARES = register("sum_squares")
cdef int CLAMP = register("clamp")


cdef Py_ssize_t number_jobs(optimizer_run* runs, Py_ssize_t count) noexcept nogil:
    """Set every run's first job; the number of jobs of all."""
    cdef Py_ssize_t i, jobs = 0
    for i in range(count):
        runs[i].first_job = jobs
        jobs += ceil_div(runs[i].n, BLOCK)
    return jobs


cdef inline Py_ssize_t run_of(const optimizer_run* runs, Py_ssize_t count, Py_ssize_t job) noexcept nogil:
    return bisect(&runs.first_job, sizeof(optimizer_run), count, job)


cdef Py_ssize_t floats(const optimizer_run* runs, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i, total = 0
    for i in range(count):
        total += runs[i].n
    return total


cdef void sgd_job(const optimizer_run* r, Py_ssize_t at, const sgd_options* options) noexcept nogil:
    simd.optimizer.sgd(r.p + at, r.state + at if r.state != NULL else NULL, r.g + at,
                       min(r.n - at, BLOCK), options)


cdef void adam_job(const optimizer_run* r, Py_ssize_t at, const adam_options* options) noexcept nogil:
    simd.optimizer.adam(r.p + at, r.state + at, r.state2 + at, r.g + at, min(r.n - at, BLOCK), options)


# options[count], one of each run. g' = scale g + weight_decay p;
# state = momentum state + (1 - dampening) g' (g' itself on the first step);
# p -= lr state, or lr (g' + momentum state) with Nesterov, or lr g' without momentum (state NULL).
cdef void sgd_step(const optimizer_run* runs, Py_ssize_t count, Py_ssize_t jobs,
                   const sgd_options* options) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t job, i, n = floats(runs, count)
    for job in prange(jobs, schedule="static", num_threads=threads_for(n, GRAIN)):
        i = run_of(runs, count, job)
        sgd_job(runs + i, (job - runs[i].first_job) * BLOCK, options + i)
    end_kernel(SGD_STEP, started, shape_of(n), 6 * n, 20 * n)


# options[count]. g' = scale g + l2 p;  state = beta1 state + (1 - beta1) g';  state2 = beta2 state2 + (1 - beta2) g'^2;
# p = decay p - step_size state / (denominator_scale sqrt(state2) + eps).
cdef void adam_step(const optimizer_run* runs, Py_ssize_t count, Py_ssize_t jobs,
                    const adam_options* options) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t job, i, n = floats(runs, count)
    for job in prange(jobs, schedule="static", num_threads=threads_for(n, GRAIN)):
        i = run_of(runs, count, job)
        adam_job(runs + i, (job - runs[i].first_job) * BLOCK, options + i)
    end_kernel(ADAM_STEP, started, shape_of(n), 14 * n, 28 * n)


cdef void schedulefree_job(const optimizer_run* r, Py_ssize_t at, const schedulefree_options* options) noexcept nogil:
    simd.optimizer.schedulefree(r.p + at, r.state + at, r.state2 + at, r.g + at, min(r.n - at, BLOCK), options)


# options[count]; p is y, state z. g' = scale g;  state2 = beta2 state2 + (1 - beta2) g'^2;
# step = g' / (denominator_scale sqrt(state2) + eps) + weight_decay p;
# p = p + average (state - p) - y_step step;  state -= lr step.
cdef void schedulefree_step(const optimizer_run* runs, Py_ssize_t count, Py_ssize_t jobs,
                            const schedulefree_options* options) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t job, i, n = floats(runs, count)
    for job in prange(jobs, schedule="static", num_threads=threads_for(n, GRAIN)):
        i = run_of(runs, count, job)
        schedulefree_job(runs + i, (job - runs[i].first_job) * BLOCK, options + i)
    end_kernel(SCHEDULEFREE_STEP, started, shape_of(n), 17 * n, 28 * n)


cdef double squares_job(const optimizer_run* r, Py_ssize_t at) noexcept nogil:
    return simd.optimizer.sum_squares(r.g + at, min(r.n - at, BLOCK))


# totals[count] = sums of each g squared, in float64, block sums added in order; -1 where scratch memory is out
cdef int sum_squares(double* totals, const optimizer_run* runs, Py_ssize_t count, Py_ssize_t jobs) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t job, i, n = floats(runs, count)
    cdef double* parts = <double*> scratch(SCRATCH_PARTIALS, jobs * sizeof(double))
    if parts == NULL:
        end_kernel(SUM_SQUARES, started, shape_of(n), 2 * n, 4 * n)
        return -1
    for job in prange(jobs, schedule="static", num_threads=threads_for(n, GRAIN)):
        i = run_of(runs, count, job)
        parts[job] = squares_job(runs + i, (job - runs[i].first_job) * BLOCK)
    for i in range(count):
        totals[i] = 0
    for job in range(jobs):
        totals[run_of(runs, count, job)] += parts[job]
    end_kernel(SUM_SQUARES, started, shape_of(n), 2 * n, 4 * n)
    return 0


# x [n] = min(max(x, -limit), limit), in place
cdef void clamp(float* x, float limit, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, BLOCK), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.optimizer.clamp(x + i * BLOCK, limit, piece_size(n, BLOCK, i))
    end_kernel(CLAMP, started, shape_of(n), 0, 8 * n)
