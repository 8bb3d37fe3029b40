# Counters of kernels. An entry point of a kernel module reads as
#
#     cdef int RMS_NORM_FORWARD = register("rms_norm_forward")   # once, where the module is imported
#
#     cdef int64_t started = begin_kernel()
#     ...
#     end_kernel(RMS_NORM_FORWARD, started, shape_of(rows, dim), flops, nbytes)
#
# which is one branch that is never taken while counting is off. A kernel that another one calls counts as part of it.
from libc.stdint cimport int64_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar._kernels.simd.weights.types cimport weight_type

cdef bint counting

# What a call works on: extents, 0 behind the last one; a product has the type of its weight (-1: none), and computes in
# a format of simd/gemm.h.
cdef struct kernel_shape:
    int64_t extent[4]
    int type
    int format

cdef int register(str name) except -1
cdef bint metering(bint on) noexcept nogil
cdef int64_t count_begin() noexcept nogil
cdef void count_end(int kernel, int64_t started, kernel_shape shape, int64_t flops, int64_t nbytes) noexcept nogil


cdef inline kernel_shape shape_of(int64_t first, int64_t second=0, int64_t third=0, int64_t fourth=0) noexcept nogil:
    cdef kernel_shape shape
    shape.extent[0] = first
    shape.extent[1] = second
    shape.extent[2] = third
    shape.extent[3] = fourth
    shape.type = -1
    shape.format = 0
    return shape


cdef inline kernel_shape product_shape(int64_t m, int64_t n, int64_t k, int type, int format) noexcept nogil:
    cdef kernel_shape shape = shape_of(m, n, k)
    shape.type = type
    shape.format = format
    return shape


cdef inline int64_t begin_kernel() noexcept nogil:
    return count_begin() if counting else 0


cdef inline void end_kernel(int kernel, int64_t started, kernel_shape shape, int64_t flops,
                            int64_t nbytes) noexcept nogil:
    if started:
        count_end(kernel, started, shape, flops, nbytes)


cdef inline int64_t weight_bytes(const matrix_view* w, Py_ssize_t rows) noexcept nogil:
    """Bytes of `rows` rows of a matrix of any type, its scales included."""
    cdef const weight_type* t = &simd.weight_types[w.type]
    cdef int64_t blocks = rows * (w.columns // t.block), scales = 0
    if t.has_scales:
        scales = 4 * blocks if w.quantized_scales == NULL else blocks + 4 * (blocks // t.scale_block)
    return blocks * t.block_bytes + scales
