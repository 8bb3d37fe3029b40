from libc.stdint cimport uint64_t

cdef uint64_t random_key() noexcept
cdef uint64_t next_stream() noexcept
