# Made from the header by scripts/simd_pxd.py.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "simd/digest.h" nogil:
    ctypedef struct digest_sums:
        uint64_t plain
        uint64_t weighted
        uint64_t mixed
    ctypedef struct digest_ops:
        void (*add)(digest_sums* sums, const uint32_t* words, Py_ssize_t n, uint64_t first) noexcept nogil
