"""Cross-entropy of logits with integer targets, row by row."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memset

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of

cdef enum:
    GRAIN = 4096  # logits worth a thread

cdef int CROSS_ENTROPY_FORWARD = register("cross_entropy_forward")
cdef int CROSS_ENTROPY_BACKWARD = register("cross_entropy_backward")


cdef void forward_row(float* loss, float* lse, const float* logits, int64_t target, Py_ssize_t vocabulary,
                      int64_t ignore_index) noexcept nogil:
    loss[0] = 0
    lse[0] = 0
    if target != ignore_index:
        lse[0] = simd.softmax.log_sum_exp(logits, vocabulary)
        loss[0] = lse[0] - logits[target]


cdef void backward_row(float* dlogits, const float* logits, float lse, int64_t target, float scale,
                       Py_ssize_t vocabulary, int64_t ignore_index, bint accumulate) noexcept nogil:
    if target != ignore_index:
        simd.softmax.cross_entropy_backward(dlogits, logits, lse, target, scale, vocabulary, accumulate)
    elif not accumulate:
        memset(dlogits, 0, vocabulary * sizeof(float))


# loss [rows] = lse - logits[target], lse [rows] = ln sum e^logits; 0 for rows whose target is ignore_index
# dlogits [rows][vocabulary] (+)= scale [rows, or one with stride 0] (e^(logits - lse) - onehot); dlogits may be logits
cdef void cross_entropy_forward(float* loss, float* lse, const float* logits, const int64_t* targets, Py_ssize_t rows,
                                Py_ssize_t vocabulary, int64_t ignore_index) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * vocabulary, GRAIN)):
        forward_row(loss + i, lse + i, logits + i * vocabulary, targets[i], vocabulary, ignore_index)
    end_kernel(CROSS_ENTROPY_FORWARD, started, shape_of(rows, vocabulary), 3 * rows * vocabulary, 4 * rows * vocabulary)


cdef void cross_entropy_backward(float* dlogits, const float* logits, const float* lse, const int64_t* targets,
                                 const float* scale, Py_ssize_t scale_stride, Py_ssize_t rows, Py_ssize_t vocabulary,
                                 int64_t ignore_index, bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * vocabulary, GRAIN)):
        backward_row(dlogits + i * vocabulary, logits + i * vocabulary, lse[i], targets[i], scale[i * scale_stride],
                     vocabulary, ignore_index, accumulate)
    end_kernel(CROSS_ENTROPY_BACKWARD, started, shape_of(rows, vocabulary), 3 * rows * vocabulary,
               8 * rows * vocabulary)
