"""RMSNorm and layer norm over rows. Gradients of the weight are summed in blocks of rows of a fixed size, in order."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memset

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport SCRATCH_PARTIALS, ceil_div, min, scratch, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of

cdef enum:
    ROWS = 32     # of a job; the partial sums of the weight's gradient are one vector a job
    GRAIN = 8192  # elements worth a thread

cdef int RMS_NORM_FORWARD = register("rms_norm_forward")
cdef int RMS_NORM_BACKWARD = register("rms_norm_backward")
cdef int LAYER_NORM_FORWARD = register("layer_norm_forward")
cdef int LAYER_NORM_BACKWARD = register("layer_norm_backward")


cdef void add_partials(float* total, const float* partial, Py_ssize_t blocks, Py_ssize_t stride, Py_ssize_t dim,
                       bint accumulate) noexcept nogil:
    """total [dim] (+)= sum of partial [blocks][stride], in order"""
    cdef Py_ssize_t i
    if not accumulate:
        memset(total, 0, dim * sizeof(float))
    for i in range(blocks):
        simd.elementwise.add(total, total, partial + i * stride, dim)


# y [rows][dim] = x rstd w, rstd [rows] = 1 / sqrt(mean(x^2) + eps)
# dx [rows][dim] (+)= rstd (dy w - xhat mean(dy w xhat)), dw [dim] (+)= sum over rows of dy xhat, xhat = x rstd;
# dx or dw may be NULL; -1 where scratch is out
cdef void rms_norm_forward(float* y, float* rstd, const float* x, const float* w, Py_ssize_t rows, Py_ssize_t dim,
                           float eps) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * dim, GRAIN)):
        rstd[i] = simd.norm.rms_forward(y + i * dim, x + i * dim, w, dim, eps)
    end_kernel(RMS_NORM_FORWARD, started, shape_of(rows, dim), 4 * rows * dim, 8 * rows * dim)


cdef void rms_block(float* dx, float* dw, const float* dy, const float* x, const float* w, const float* rstd,
                    Py_ssize_t first, Py_ssize_t last, Py_ssize_t dim, bint accumulate) noexcept nogil:
    cdef Py_ssize_t i
    if dw != NULL:
        memset(dw, 0, dim * sizeof(float))
    for i in range(first, last):
        simd.norm.rms_backward(NULL if dx == NULL else dx + i * dim, dw, dy + i * dim, x + i * dim, w, rstd[i], dim,
                               accumulate)


cdef int rms_norm_backward(float* dx, float* dw, const float* dy, const float* x, const float* w, const float* rstd,
                           Py_ssize_t rows, Py_ssize_t dim, bint accumulate_x, bint accumulate_w) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t blocks = ceil_div(rows, ROWS), i
    cdef float* partial = NULL
    if dw != NULL:
        partial = <float*> scratch(SCRATCH_PARTIALS, blocks * dim * sizeof(float))
        if partial == NULL:
            end_kernel(RMS_NORM_BACKWARD, started, shape_of(rows, dim), 9 * rows * dim, 12 * rows * dim)
            return -1
    for i in prange(blocks, schedule="static", num_threads=threads_for(rows * dim, GRAIN)):
        rms_block(dx, NULL if dw == NULL else partial + i * dim, dy, x, w, rstd, i * ROWS, min((i + 1) * ROWS, rows),
                  dim, accumulate_x)
    if dw != NULL:
        add_partials(dw, partial, blocks, dim, dim, accumulate_w)
    end_kernel(RMS_NORM_BACKWARD, started, shape_of(rows, dim), 9 * rows * dim, 12 * rows * dim)
    return 0


# y [rows][dim] = (x - mean) rstd w + b; w and b may be NULL
# dx (+)= rstd (g - mean(g) - xhat mean(g xhat)) with g = dy w; dw (+)= sum dy xhat; db (+)= sum dy; each may be NULL;
# -1 where scratch is out
cdef void layer_norm_forward(float* y, float* mean, float* rstd, const float* x, const float* w, const float* b,
                             Py_ssize_t rows, Py_ssize_t dim, float eps) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * dim, GRAIN)):
        simd.norm.layer_forward(y + i * dim, mean + i, rstd + i, x + i * dim, w, b, dim, eps)
    end_kernel(LAYER_NORM_FORWARD, started, shape_of(rows, dim), 8 * rows * dim, 8 * rows * dim)


cdef void layer_block(float* dx, float* dw, float* db, const float* dy, const float* x, const float* w,
                      const float* mean, const float* rstd, Py_ssize_t first, Py_ssize_t last, Py_ssize_t dim,
                      bint accumulate) noexcept nogil:
    cdef Py_ssize_t i
    if dw != NULL:
        memset(dw, 0, dim * sizeof(float))
    if db != NULL:
        memset(db, 0, dim * sizeof(float))
    for i in range(first, last):
        simd.norm.layer_backward(NULL if dx == NULL else dx + i * dim, dw, db, dy + i * dim, x + i * dim, w, mean[i],
                                 rstd[i], dim, accumulate)


cdef int layer_norm_backward(float* dx, float* dw, float* db, const float* dy, const float* x, const float* w,
                             const float* mean, const float* rstd, Py_ssize_t rows, Py_ssize_t dim,
                             bint accumulate_x, bint accumulate_w, bint accumulate_b) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t blocks = ceil_div(rows, ROWS), i
    cdef float* partial = <float*> scratch(SCRATCH_PARTIALS, 2 * blocks * dim * sizeof(float))
    if partial == NULL:
        end_kernel(LAYER_NORM_BACKWARD, started, shape_of(rows, dim), 12 * rows * dim, 12 * rows * dim)
        return -1
    for i in prange(blocks, schedule="static", num_threads=threads_for(rows * dim, GRAIN)):
        layer_block(dx, NULL if dw == NULL else partial + 2 * i * dim,
                    NULL if db == NULL else partial + (2 * i + 1) * dim, dy, x, w, mean, rstd, i * ROWS,
                    min((i + 1) * ROWS, rows), dim, accumulate_x)
    if dw != NULL:
        add_partials(dw, partial, blocks, 2 * dim, dim, accumulate_w)
    if db != NULL:
        add_partials(db, partial + dim, blocks, 2 * dim, dim, accumulate_b)
    end_kernel(LAYER_NORM_BACKWARD, started, shape_of(rows, dim), 12 * rows * dim, 12 * rows * dim)
    return 0
