from libc.stdint cimport uint32_t

from entrenar._kernels.simd.digest cimport digest_sums

cdef digest_sums digest(const uint32_t* words, Py_ssize_t n) noexcept nogil
