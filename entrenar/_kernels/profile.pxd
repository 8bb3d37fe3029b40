# Counters of kernels. An entry point of a kernel module reads as
#
#     cdef int RMS_NORM_FORWARD = register("rms_norm_forward")   # once, where the module is imported
#
#     cdef int64_t started = begin_kernel()
#     ...
#     end_kernel(RMS_NORM_FORWARD, started, flops, nbytes)
#
# which is one branch that is never taken while counting is off. A kernel that another one calls counts as part of it.
from libc.stdint cimport int64_t

cdef bint counting

cdef int register(str name) except -1
cdef int64_t count_begin() noexcept nogil
cdef void count_end(int kernel, int64_t started, int64_t flops, int64_t nbytes) noexcept nogil


cdef inline int64_t begin_kernel() noexcept nogil:
    return count_begin() if counting else 0


cdef inline void end_kernel(int kernel, int64_t started, int64_t flops, int64_t nbytes) noexcept nogil:
    if started:
        count_end(kernel, started, flops, nbytes)
