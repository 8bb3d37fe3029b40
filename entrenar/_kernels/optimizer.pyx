"""Optimizer updates: one pass over parameter, gradient and state, in place, cut into fixed blocks."""
from cython.parallel cimport prange

from entrenar._kernels.cpu cimport scratch, simd, threads_for
from entrenar._kernels.simd.optimizer cimport adam_options, sgd_options

cdef enum:
    BLOCK = 16384  # floats of a job
    GRAIN = 32768  # floats that pay for waking one more thread


# g' = g + weight_decay p;  buffer = momentum buffer + (1 - dampening) g' (g' itself on the first step);
# p -= lr buffer, or lr (g' + momentum buffer) with Nesterov, or lr g' without momentum (buffer NULL). All [n].
cdef void sgd_step(float* p, float* buffer, const float* g, Py_ssize_t n, const sgd_options* options) noexcept nogil:
    cdef Py_ssize_t i, at
    for i in prange((n + BLOCK - 1) // BLOCK, schedule="static", num_threads=threads_for(n, GRAIN)):
        at = i * BLOCK
        simd.optimizer.sgd(p + at, buffer + at if buffer != NULL else NULL, g + at, min(n - at, <Py_ssize_t> BLOCK),
                           options)


# g' = g + l2 p;  m = beta1 m + (1 - beta1) g';  v = beta2 v + (1 - beta2) g'^2;
# p = decay p - step_size m / (denominator_scale sqrt(v) + eps). All [n].
cdef void adam_step(float* p, float* m, float* v, const float* g, Py_ssize_t n,
                    const adam_options* options) noexcept nogil:
    cdef Py_ssize_t i, at
    for i in prange((n + BLOCK - 1) // BLOCK, schedule="static", num_threads=threads_for(n, GRAIN)):
        at = i * BLOCK
        simd.optimizer.adam(p + at, m + at, v + at, g + at, min(n - at, <Py_ssize_t> BLOCK), options)


# total = sum of x [n] squared, in float64, block sums added in order; -1 where scratch memory is out
cdef int sum_squares(double* total, const float* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, i
    cdef double* parts = <double*> scratch(3, blocks * sizeof(double))
    if parts == NULL:
        return -1
    for i in prange(blocks, schedule="static", num_threads=threads_for(n, GRAIN)):
        parts[i] = simd.optimizer.sum_squares(x + i * BLOCK, min(n - i * BLOCK, <Py_ssize_t> BLOCK))
    total[0] = 0
    for i in range(blocks):
        total[0] += parts[i]
    return 0


# x [n] = min(max(x, -limit), limit), in place
cdef void clamp(float* x, float limit, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in prange((n + BLOCK - 1) // BLOCK, schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.optimizer.clamp(x + i * BLOCK, limit, min(n - i * BLOCK, <Py_ssize_t> BLOCK))
